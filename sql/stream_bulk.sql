-- INSERT and COPY into the view; uses raises() of common_install
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(64);

INSERT INTO event_store.events (stream, type, data) VALUES ('order-1', 'Placed', '1'), ('order-2', 'Placed', '2'), ('order-1', 'Paid', '3');
SELECT position, stream, version, type, data, metadata, schema_version FROM event_store.events ORDER BY position;
COPY event_store.events (stream, type, occurred_at, data, metadata) FROM STDIN;
order-3	Placed	2020-01-01 00:00+00	{"a": 1}	{"m": 1}
order-1	Shipped	2020-01-02 00:00+00	{"a": "tab\\tand \\"quotes\\""}	{}
\.
SELECT stream, version, type, data, metadata, extract(year FROM occurred_at) FROM event_store.events WHERE position > 3 ORDER BY position;
-- every column that may be given
INSERT INTO event_store.events (stream, version, type, schema_version, event_id, occurred_at, source, correlation_id, causation_id, data, metadata, category)
VALUES ('order-4', 1, 'Placed', 2, '00000000-0000-0000-0000-000000000001', '2020-01-01', 's', 'c', '00000000-0000-0000-0000-000000000002', '1', '{"m": 1}', 'order');
SELECT stream, version, type, schema_version, event_id, source, correlation_id, causation_id, data, metadata, category FROM event_store.events WHERE stream = 'order-4';
-- guards
SELECT raises($$INSERT INTO event_store.events (stream, type) VALUES ('a', 'X')$$);
SELECT raises($$INSERT INTO event_store.events (stream, data) VALUES ('a', '1')$$);
SELECT raises($$INSERT INTO event_store.events (type, data) VALUES ('X', '1')$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data) VALUES ('', 'X', '1')$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data, metadata) VALUES ('a', 'X', '1', '[]')$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data, position) VALUES ('a', 'X', '1', 5)$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data, recorded_at) VALUES ('a', 'X', '1', now())$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data, version) VALUES ('a', 'X', '1', 2)$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data, version) VALUES ('a', 'X', '1', 0)$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data, version) VALUES ('order-1', 'X', '1', 3)$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data, category) VALUES ('a-1', 'X', '1', 'b')$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data, schema_version) VALUES ('a-1', 'X', '1', -1)$$);
SELECT count(*) FROM event_store.events;
-- rows are appends: repeated by id they change nothing
INSERT INTO event_store.events (stream, type, data, event_id) VALUES
	('idem-1', 'A', '1', '00000000-0000-0000-0000-00000000000a'),
	('idem-1', 'A', '1', '00000000-0000-0000-0000-00000000000a'),
	('idem-1', 'B', '2', '00000000-0000-0000-0000-00000000000b');
INSERT INTO event_store.events (stream, type, data, event_id) VALUES
	('idem-1', 'B', '2', '00000000-0000-0000-0000-00000000000b'),
	('idem-1', 'C', '3', '00000000-0000-0000-0000-00000000000c');
SELECT version, type FROM event_store.read_stream('idem-1');
SELECT raises($$INSERT INTO event_store.events (stream, type, data, event_id) VALUES ('idem-1', 'C', '4', '00000000-0000-0000-0000-00000000000c')$$);
SELECT raises($$INSERT INTO event_store.events (stream, type, data, event_id) VALUES ('idem-1', 'D', '4', '00000000-0000-0000-0000-00000000000d'), ('idem-1', 'D', '5', '00000000-0000-0000-0000-00000000000d')$$);

-- more rows than one batch holds, more streams than a batch locks
INSERT INTO event_store.events (stream, type, data) SELECT 'bulk-' || i % 3000, 'T' || i % 5, to_jsonb(i) FROM generate_series(1, 12000) i;
SELECT count(*), count(DISTINCT stream), max(version), count(DISTINCT position) FROM event_store.read_category('bulk', 0, NULL);
-- in the order given
SELECT count(*) FROM (SELECT data::int AS n, lag(data::int) OVER (ORDER BY position) AS before FROM event_store.read_category('bulk', 0, NULL)) x WHERE n <> before + 1;
SELECT count(*) < 100 AS few_locks FROM pg_locks WHERE pid = pg_backend_pid();
-- out of itself
INSERT INTO event_store.events (stream, type, data) SELECT 'copy-' || stream, type, data FROM event_store.events WHERE category = 'bulk' ORDER BY position;
SELECT count(*) FROM event_store.events WHERE category = 'copy';
INSERT INTO event_store.events (stream, type, data) SELECT 'again-1', type, data FROM event_store.read_category('copy', 0, 100);
SELECT event_store.stream_version('again-1');

-- what is rolled back is not written: inside of a statement, too
CREATE FUNCTION insert_inside(i int) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		INSERT INTO event_store.events (stream, type, data) VALUES ('inner-' || i % 2, 'Inner', to_jsonb(i));
		IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF;
	EXCEPTION WHEN raise_exception THEN RETURN 'undone';
	END;
	RETURN 'done';
END $$;
INSERT INTO event_store.events (stream, type, data) SELECT 'outer-1', insert_inside(i), to_jsonb(i) FROM generate_series(1, 10) i;
SELECT stream, version, type, data FROM event_store.events WHERE stream ~ '^(inner|outer)' ORDER BY stream, version;
BEGIN;
INSERT INTO event_store.events (stream, type, data) VALUES ('rb-1', 'X', '1');
SAVEPOINT s;
INSERT INTO event_store.events (stream, type, data) SELECT 'rb-1', 'Y', '1' FROM generate_series(1, 100);
ROLLBACK TO s;
INSERT INTO event_store.events (stream, type, data) VALUES ('rb-1', 'Z', '1');
COMMIT;
SELECT version, type FROM event_store.read_stream('rb-1');
-- an error in the middle of a statement
SELECT raises($$INSERT INTO event_store.events (stream, type, data) SELECT 'err-1', 'X', to_jsonb(1 / (50 - i)) FROM generate_series(1, 100) i$$);
INSERT INTO event_store.events (stream, type, data) VALUES ('err-1', 'Only', '1');
SELECT version, type FROM event_store.read_stream('err-1');
-- WITH, and nothing at all
WITH a AS (INSERT INTO event_store.events (stream, type, data) VALUES ('with-1', 'A', '1')),
	 b AS (INSERT INTO event_store.events (stream, type, data) VALUES ('with-2', 'B', '1'))
INSERT INTO event_store.events (stream, type, data) VALUES ('with-3', 'C', '1');
SELECT stream, type FROM event_store.events WHERE category = 'with' ORDER BY stream;
INSERT INTO event_store.events (stream, type, data) SELECT 'none-1', 'X', '1' WHERE false;
SELECT event_store.stream_version('none-1');
SELECT count(*) AS wrong FROM (
	SELECT stream FROM event_store.events GROUP BY stream
	HAVING min(version) <> 1 OR max(version) <> count(*)) x;
