-- Segments: sizes, made ahead, made at need; uses raises() of common_install
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT count(*) FROM event_store.segments();
SELECT event_store.settled_position(), event_store.last_position();
SELECT count(*) FROM event_store.read_all();
SELECT raises('SELECT event_store.set_segment_size(15)');
SELECT raises('SELECT event_store.set_segment_size(NULL)');
SELECT raises('SELECT event_store.set_segment_size(1000000000001)');
SELECT raises('SELECT event_store.prepare_segments(-1)');
SELECT raises('SELECT event_store.prepare_segments(1001)');
SELECT raises('SELECT event_store.prepare_segments(NULL)');
SELECT raises('BEGIN; SELECT event_store.set_segment_size(16)');
-- the default size
SELECT event_store.prepare_segments(0);
SELECT * FROM event_store.segments();
SELECT event_store.prepare_segments(0);
SELECT event_store.prepare_segments();
SELECT * FROM event_store.segments();
-- another size for those to come
SELECT event_store.set_segment_size(100);
SELECT event_store.set_segment_size(50);
SELECT event_store.prepare_segments(4);
SELECT * FROM event_store.segments();

-- without a worker: in the appending transaction
DROP EXTENSION event_store;
CREATE EXTENSION event_store;
SET event_store.segment_worker = off;
SELECT event_store.set_segment_size(16);
BEGIN;
INSERT INTO event_store.events (stream, type, data) SELECT 'a-' || i % 3, 'X', to_jsonb(i) FROM generate_series(1, 100) i;
SAVEPOINT s;
INSERT INTO event_store.events (stream, type, data) SELECT 'a-' || i % 3, 'X', to_jsonb(i) FROM generate_series(1, 100) i;
SELECT count(*) >= 13 FROM event_store.segments();
ROLLBACK TO s;
SELECT count(*) = 7 FROM event_store.segments();
-- the positions that were drawn are gone, whole segments stay out
INSERT INTO event_store.events (stream, type, data) SELECT 'a-' || i % 3, 'Y', to_jsonb(i) FROM generate_series(1, 100) i;
COMMIT;
SELECT first_position, last_position FROM event_store.segments();
SELECT count(*), max(position), count(DISTINCT version) FROM event_store.read_all(0, NULL);
-- while the events are being read
SELECT count(x) FROM (SELECT event_store.append('b-0', 'X', data) AS x FROM event_store.events OFFSET 0) y;
RESET event_store.segment_worker;
-- while the events are being read, with a worker
SELECT count(x) FROM (SELECT event_store.append('b-1', 'X', data) AS x FROM event_store.events OFFSET 0) y;
SELECT event_store.stream_version('b-1');
-- what hangs on a segment is refused, what helps is kept
CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
DO $$ BEGIN EXECUTE format('CREATE TRIGGER t BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION noop()',
	(SELECT segment FROM event_store.segments() WHERE event_store.last_position() + 1 BETWEEN first_position AND last_position)); END $$;
SELECT regexp_replace(raises($$SELECT event_store.append('c-1', 'X', '1')$$), 'event_\d+', 'event_n');
DROP FUNCTION noop() CASCADE;
DO $$ BEGIN
	EXECUTE format('CREATE INDEX by_amount ON %1$s (((data->>''amount'')::numeric)) WHERE data ? ''amount''; CREATE INDEX by_data ON %1$s USING gin (data); CREATE INDEX by_time ON %1$s USING brin (recorded_at)',
		(SELECT segment FROM event_store.segments() WHERE event_store.last_position() + 1 BETWEEN first_position AND last_position));
END $$;
SELECT last_version FROM event_store.append('c-1', 'X', '{"amount": 12.5}');
SELECT last_version FROM event_store.append('c-1', 'X', '{"other": 12.5}');
SET enable_seqscan = off;
SELECT stream, data FROM event_store.events WHERE (data->>'amount')::numeric = 12.5 AND data ? 'amount';
SELECT stream, data FROM event_store.events WHERE data @> '{"other": 12.5}';
RESET enable_seqscan;
-- what the store's own tables do not support is refused, not passed over
CREATE INDEX by_upper ON event_store.stream (upper(name));
SELECT raises($$SELECT event_store.append('new-1', 'X', '1')$$);
DROP INDEX event_store.by_upper;
ALTER TABLE event_store.category ADD CHECK (name <> 'new');
SELECT raises($$SELECT event_store.append('new-1', 'X', '1')$$);
ALTER TABLE event_store.category DROP CONSTRAINT category_name_check;
ALTER TABLE event_store.source ADD COLUMN more int;
SELECT raises($$SELECT event_store.append('new-1', 'X', '1')$$);
SELECT raises($$SELECT event_store.stream_version('new-1')$$);
ALTER TABLE event_store.source DROP COLUMN more;
SELECT raises($$SELECT event_store.append('new-1', 'X', '1')$$);
DROP EXTENSION event_store;
CREATE EXTENSION event_store;
SELECT last_version FROM event_store.append('new-1', 'X', '1');
ALTER TYPE event_store.recorded_event ALTER ATTRIBUTE version TYPE text;
SELECT raises($$SELECT * FROM event_store.read_stream('new-1')$$);
ALTER TYPE event_store.recorded_event ALTER ATTRIBUTE version TYPE int;
SELECT version FROM event_store.read_stream('new-1');
