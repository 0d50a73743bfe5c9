-- changes of whole statements as events, by transition tables: the same as row by row
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store CASCADE;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(1000);

CREATE TABLE by_row (id int PRIMARY KEY, v int, t text, region text NOT NULL DEFAULT 'eu');
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON by_row FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('category=by_row', 'types=ins,upd,del');
CREATE TABLE by_set (LIKE by_row INCLUDING ALL);
CREATE TRIGGER capture_insert AFTER INSERT ON by_set REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('category=by_set', 'types=ins,upd,del');
CREATE TRIGGER capture_update AFTER UPDATE ON by_set REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('category=by_set', 'types=ins,upd,del');
CREATE TRIGGER capture_delete AFTER DELETE ON by_set REFERENCING OLD TABLE AS old_rows
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('category=by_set', 'types=ins,upd,del');
SELECT trigger, level, types, category FROM event_store.check_capture('by_set');

-- The statement is run on both tables: how many events came of it, and how many of them differ?
CREATE FUNCTION on_both(statement text, OUT events bigint, OUT differ bigint) LANGUAGE plpgsql AS $$
DECLARE
	before bigint := event_store.last_position();
BEGIN
	EXECUTE replace(statement, '@', 'by_row');
	EXECUTE replace(statement, '@', 'by_set');
	-- in each stream the same, in the same order
	WITH e AS (
		SELECT split_part(stream, '-', 1) AS category, substr(stream, 7) AS key, version, type,
			replace(data::text, 'by_set-', 'by_row-') AS data
		  FROM event_store.events WHERE position > before)
	SELECT count(*) FILTER (WHERE category = 'by_row'),
		count(*) FILTER (WHERE category = 'by_row' AND NOT EXISTS (SELECT FROM e o WHERE o.category = 'by_set'
			AND (o.key, o.version, o.type, o.data) = (e.key, e.version, e.type, e.data)))
		+ abs(count(*) FILTER (WHERE category = 'by_row') - count(*) FILTER (WHERE category = 'by_set'))
	  INTO events, differ FROM e;
END $$;
SELECT * FROM on_both($$INSERT INTO @ (id, v, t) SELECT n, n, md5(n::text) FROM generate_series(1, 3000) n$$);
SELECT * FROM on_both($$UPDATE @ SET v = v + 1$$);
SELECT * FROM on_both($$UPDATE @ SET v = v + 1 WHERE id % 7 = 3 OR id > 2990$$);
SELECT * FROM on_both($$UPDATE @ SET v = v$$);
SELECT * FROM on_both($$UPDATE @ SET v = CASE id % 2 WHEN 0 THEN v ELSE -v END WHERE id < 1000$$);
SELECT * FROM on_both($$UPDATE @ SET id = id + 10000 WHERE id <= 50$$);
SELECT * FROM on_both($$UPDATE @ SET id = id + 1 WHERE id = (SELECT max(id) FROM @)$$);
SELECT * FROM on_both($$DELETE FROM @ WHERE id % 3 = 0$$);
SELECT * FROM on_both($$INSERT INTO @ (id, v) SELECT n, -n FROM generate_series(1, 200) n ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v$$);
SELECT * FROM on_both($$INSERT INTO @ (id) VALUES (1) ON CONFLICT DO NOTHING$$);
SELECT * FROM on_both($$MERGE INTO @ t USING (SELECT n FROM generate_series(100, 300) n) s ON t.id = s.n
	WHEN MATCHED AND n % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET v = 0 WHEN NOT MATCHED THEN INSERT VALUES (n, n)$$);
SELECT * FROM on_both($$WITH d AS (DELETE FROM @ WHERE id BETWEEN 500 AND 520 RETURNING *), u AS (UPDATE @ SET v = 7 WHERE id BETWEEN 530 AND 540 RETURNING *)
	INSERT INTO @ SELECT id + 20000, v, t, region FROM d UNION ALL SELECT id + 20000, v, t, region FROM u$$);
SELECT * FROM on_both($$DELETE FROM @$$);
SELECT * FROM on_both($$DELETE FROM @$$);
-- the streams are as dense as any
SELECT count(*) FROM (SELECT version - row_number() OVER (PARTITION BY stream ORDER BY position) AS gap FROM event_store.events) x WHERE gap <> 0;
SELECT count(*) < 100 AS few_locks FROM pg_locks WHERE pid = pg_backend_pid();

-- a table that was there before: the new streams of an UPDATE take no positions besides their events
CREATE TABLE before (id int PRIMARY KEY, v int);
INSERT INTO before SELECT n FROM generate_series(1, 2000) n;
CREATE TRIGGER capture AFTER UPDATE ON before REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes();
UPDATE before SET v = 1 WHERE id <= 1000;
UPDATE before SET v = 2 WHERE id <= 1100;
UPDATE before SET v = 3 WHERE id > 1000;
SELECT count(*), max(version), max(position) - min(position) + 1 - count(*) < 300 AS dense FROM event_store.events WHERE category = 'before';

-- tables that inherit: by statement children are seen, by row they are not; partitions written to directly
CREATE TABLE parent (id int PRIMARY KEY, v int);
CREATE TABLE heir (w int) INHERITS (parent);
CREATE TRIGGER by_row AFTER UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('category=parent_row');
CREATE TRIGGER by_set AFTER UPDATE ON parent REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('category=parent_set');
INSERT INTO parent VALUES (1, 1);
INSERT INTO heir VALUES (2, 2, 2);
UPDATE parent SET v = v + 1;
UPDATE heir SET v = v + 1;
SELECT stream, data FROM event_store.events WHERE category LIKE 'parent%' ORDER BY position;
CREATE TABLE whole (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE whole_1 PARTITION OF whole FOR VALUES FROM (0) TO (10);
CREATE TRIGGER by_row AFTER INSERT ON whole FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('category=whole_row');
CREATE TRIGGER by_set AFTER INSERT ON whole REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('category=whole_set');
INSERT INTO whole VALUES (1);
INSERT INTO whole_1 VALUES (2);
-- without its partition, and with it again
ALTER TABLE whole DETACH PARTITION whole_1;
INSERT INTO whole_1 VALUES (3);
ALTER TABLE whole ATTACH PARTITION whole_1 FOR VALUES FROM (0) TO (10);
INSERT INTO whole VALUES (4);
SELECT stream FROM event_store.events WHERE category LIKE 'whole%' ORDER BY position;

-- COPY; larger than what is kept in memory
SET work_mem = '64kB';
COPY by_set (id, v) FROM STDIN;
1	1
2	2
\.
SELECT * FROM on_both($$INSERT INTO @ (id, v, t) SELECT n, n, repeat('x', 1000) FROM generate_series(10, 800) n$$);
SELECT * FROM on_both($$UPDATE @ SET t = repeat('y', 1000) WHERE id >= 10$$);
RESET work_mem;
TRUNCATE by_row, by_set;

-- many rows with one key: one stream, in order
CREATE TABLE item (customer int, no int);
CREATE TRIGGER capture AFTER INSERT ON item REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('key=customer', 'data=new');
INSERT INTO item SELECT n % 3, n FROM generate_series(1, 1000) n;
SELECT stream, count(*), max(version), bool_and(ordered) FROM (SELECT stream, version,
	(data -> 'new' ->> 'no')::int > lag((data -> 'new' ->> 'no')::int, 1, 0) OVER (PARTITION BY stream ORDER BY version) AS ordered
	FROM event_store.read_category('item', 0, NULL)) x GROUP BY 1 ORDER BY 1;

-- partitions: the trigger stands on the table as a whole, so a row that moves has changed
CREATE TABLE place (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE place_eu PARTITION OF place FOR VALUES IN ('eu');
CREATE TABLE place_us (gone int, v int, region text NOT NULL, id int NOT NULL);
ALTER TABLE place_us DROP gone;
ALTER TABLE place ATTACH PARTITION place_us FOR VALUES IN ('us');
CREATE TRIGGER capture_insert AFTER INSERT ON place REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('key=id', 'data=changed');
CREATE TRIGGER capture_update AFTER UPDATE ON place REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('key=id', 'data=changed');
INSERT INTO place VALUES (1, 'eu', 1), (2, 'us', 2), (3, 'eu', 3), (4, 'eu', 4);
UPDATE place SET region = 'us', v = v + 10 WHERE id = 1;
UPDATE place SET v = v + 10;
-- a trigger turns down rows that come to a partition: old rows without new ones
CREATE FUNCTION turn_down() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN CASE WHEN NEW.id <> 3 THEN NEW END; END $$;
CREATE TRIGGER turn_down BEFORE INSERT ON place_us FOR EACH ROW EXECUTE FUNCTION turn_down();
UPDATE place SET region = 'us', v = v + 100;
SELECT stream, version, type, data FROM event_store.read_category('place');
TABLE place ORDER BY id;

-- beside other triggers that read the same transition tables
CREATE TABLE side (id int PRIMARY KEY, v int);
CREATE FUNCTION reads() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '%: % rows, % events', TG_NAME, (SELECT count(*) FROM n),
		(SELECT count(*) FROM event_store.events WHERE category = 'side');
	RETURN NULL;
END $$;
CREATE TRIGGER a_reads AFTER INSERT ON side REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION reads();
CREATE TRIGGER b_capture AFTER INSERT ON side REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes();
CREATE TRIGGER c_reads AFTER INSERT ON side REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION reads();
INSERT INTO side SELECT n, n FROM generate_series(1, 500) n;
INSERT INTO side SELECT WHERE false;
-- columns that were dropped and added
ALTER TABLE side DROP v, ADD w text DEFAULT 'w';
INSERT INTO side VALUES (1000);
SELECT data FROM event_store.read_stream('side-1000');
