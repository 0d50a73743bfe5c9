-- Reads cost what they read, not what is stored: counted in buffers.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(500);

-- buffers that a statement touches when all it needs is cached: the least of several runs, since a segment that is
-- made in the background empties caches in between
CREATE FUNCTION buffers(statement text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	plan jsonb;
	least_so_far int;
BEGIN
	FOR i IN 1..5 LOOP
		EXECUTE 'EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ' || statement INTO plan;
		least_so_far := least(least_so_far,
			(plan #>> '{0,Plan,Shared Hit Blocks}')::int + (plan #>> '{0,Plan,Shared Read Blocks}')::int);
	END LOOP;
	RETURN least_so_far;
END $$;
CREATE TABLE reads (n int, statement text, small int, large int);
INSERT INTO reads VALUES
	(1, 'SELECT * FROM event_store.read_stream(''order-1'')'),
	(2, 'SELECT * FROM event_store.read_stream(''order-1'', backward => true, max_count => 1)'),
	(3, 'SELECT * FROM event_store.read_stream(''order-1'', 5, 1)'),
	(4, 'SELECT * FROM event_store.read_category(''rare'')'),
	(5, 'SELECT * FROM event_store.read_category(''order'', types => ''{Rare}'')'),
	(6, 'SELECT * FROM event_store.read_category(''order'') LIMIT 1'),
	(7, 'SELECT * FROM event_store.read_all(0, 10)'),
	(8, 'SELECT * FROM event_store.read_all(100, 10)'),
	(9, 'SELECT * FROM event_store.read_all() LIMIT 3'),
	(10, 'SELECT * FROM event_store.read_all(types => ''{Rare}'')'),
	(11, 'SELECT * FROM event_store.read_all(0, 5, backward => true)'),
	(12, 'SELECT * FROM event_store.last_event(''order-1'')'),
	(13, 'SELECT event_store.stream_version(''order-1'')'),
	(14, 'SELECT * FROM event_store.stream_info(''order-1'')'),
	(15, 'SELECT * FROM event_store.streams(''order'', NULL, 3)'),
	(16, 'SELECT * FROM event_store.find_event(''00000000-0000-0000-0000-000000000001'', ''order-1'')'),
	(17, 'SELECT event_store.append(''order-1'', ''Placed'', ''1'', event_id => ''00000000-0000-0000-0000-000000000001'')'),
	(18, 'SELECT * FROM event_store.last_event(''order-1'', ''Placed'')'),
	(19, 'SELECT * FROM event_store.read_stream(''order-1'', until_version => 3, backward => true, max_count => 1)'),
	(20, 'SELECT * FROM event_store.read_stream(''order-1'', until_time => ''infinity'')'),
	(21, 'SELECT * FROM event_store.read_all(types => ''{Rare}'', backward => true)'),
	(22, 'SELECT * FROM event_store.events_since(''infinity'')'),
	(23, 'SELECT * FROM event_store.events_since(''-infinity'', 3)'),
	(24, 'SELECT * FROM event_store.events_since(''-infinity'', NULL, ''{rare}'')'),
	(25, 'SELECT * FROM event_store.find_event((SELECT event_id FROM event_store.last_event(''rare-1'')))');
SELECT event_store.append('order-1', 'Placed', '1', event_id => '00000000-0000-0000-0000-000000000001') IS NOT NULL;
INSERT INTO event_store.events (stream, type, data) SELECT 'order-1', 'Placed', to_jsonb(i) FROM generate_series(1, 9) i;
INSERT INTO event_store.events (stream, type, data) SELECT 'rare-1', 'Rare', to_jsonb(i) FROM generate_series(1, 5) i;
INSERT INTO event_store.events (stream, type, data) SELECT 'order-2', 'Rare', to_jsonb(i) FROM generate_series(1, 5) i;
INSERT INTO event_store.events (stream, type, data) SELECT 'order-' || i, 'Placed', to_jsonb(i) FROM generate_series(1000, 1400) i;
VACUUM event_store.stream, event_store.segment_content;
UPDATE reads SET small = buffers(statement);
-- forty times as much, in forty segments more
INSERT INTO event_store.events (stream, type, data) SELECT 'order-' || i % 5000 + 2000, 'Placed', to_jsonb(i) FROM generate_series(1, 20000) i;
VACUUM event_store.stream, event_store.segment_content;
SELECT count(*) > 40 FROM event_store.segments();
UPDATE reads SET large = buffers(statement);
-- an index may be one level higher, and what is read may lie in one segment more
SELECT n, statement, CASE WHEN large <= small * 1.5 + 20 THEN 'as much' ELSE format('MORE: %s, then %s', small, large) END FROM reads ORDER BY n;
-- a stream over many segments: the end costs no more than with few
INSERT INTO event_store.events (stream, type, data) SELECT 'long-1', 'Placed', to_jsonb(i) FROM generate_series(1, 600) i;
SELECT buffers('SELECT * FROM event_store.read_stream(''long-1'', 550, 1)') AS few,
	buffers('SELECT event_store.append(''long-1'', ''Placed'', ''1'', event_id => (''ffffffff-0000-7000-8000-'' || lpad((random() * 1e9)::int::text, 12, ''0''))::uuid)') AS append_few \gset
INSERT INTO event_store.events (stream, type, data) SELECT 'long-1', 'Placed', to_jsonb(i) FROM generate_series(1, 10000) i;
SELECT buffers('SELECT * FROM event_store.read_stream(''long-1'', 10550, 1)') < :few * 5;
SELECT buffers('SELECT * FROM event_store.read_stream(''long-1'', backward => true, max_count => 1)') <= :few;
SELECT buffers('SELECT event_store.stream_version(''long-1'')') <= :few;
-- an append with a new id does not ask segments whose ids are all lower or higher
SELECT buffers('SELECT event_store.append(''long-1'', ''Placed'', ''1'', event_id => (''ffffffff-0000-7000-8000-'' || lpad((random() * 1e9)::int::text, 12, ''0''))::uuid)') <= :append_few + 8;
SELECT buffers('SELECT * FROM event_store.find_event(''fffffffe-0000-0000-0000-000000000000'')') < 40;
-- what has a random id, or belongs together, is found at the cost of the segments of the time that is told
SELECT event_store.append('late-1', 'Late', '1', event_id => '5eeb0b3a-5c3f-4e6c-8d0e-2f3f6a1c7b9d', correlation_id => 'late') IS NOT NULL;
SELECT clock_timestamp() AS late \gset
INSERT INTO event_store.events (stream, type, data, correlation_id, event_id)
SELECT 'order-' || i % 5000 + 2000, 'Placed', to_jsonb(i), 'c' || i, gen_random_uuid() FROM generate_series(1, 5000) i;
SELECT event_store.append('late-1', 'Late', '1', event_id => '9d1c7b9d-5c3f-4e6c-8d0e-2f3f6a1c5eeb', correlation_id => 'late') IS NOT NULL;
SELECT clock_timestamp() AS later \gset
INSERT INTO event_store.events (stream, type, data, correlation_id, event_id)
SELECT 'order-' || i % 5000 + 2000, 'Placed', to_jsonb(i), 'c' || i, gen_random_uuid() FROM generate_series(1, 5000) i;
SELECT array_agg(version) FROM event_store.trace('late');
SELECT array_agg(version) FROM event_store.trace('late', since => :'late', until => :'later');
SELECT array_agg(version) FROM event_store.find_event('9d1c7b9d-5c3f-4e6c-8d0e-2f3f6a1c5eeb', since => :'late', until => :'later');
SELECT format('SELECT * FROM event_store.trace(''late'', since => %L, until => %L)', :'late', :'later') AS trace,
	format('SELECT * FROM event_store.find_event(''9d1c7b9d-5c3f-4e6c-8d0e-2f3f6a1c5eeb'', since => %L, until => %L)', :'late', :'later') AS find \gset
SELECT buffers(:'trace') AS trace_cost, buffers(:'find') AS find_cost \gset
INSERT INTO event_store.events (stream, type, data, correlation_id, event_id)
SELECT 'order-' || i % 5000 + 2000, 'Placed', to_jsonb(i), 'c' || i, gen_random_uuid() FROM generate_series(1, 20000) i;
SELECT count(*) > 120 FROM event_store.segments();
SELECT buffers(:'trace') <= :trace_cost + 10, buffers(:'find') <= :find_cost + 10;
-- EXPLAIN tells the index and what was read
CREATE FUNCTION explain(statement text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	line text;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) ' || statement LOOP
		RETURN NEXT regexp_replace(regexp_replace(line, '(Mark: ).*', '\1…'), 'rows=(\d+)(\.00)?', 'rows=\1');
	END LOOP;
END $$;
SELECT explain(statement) FROM reads WHERE n <= 12 OR n = 16 ORDER BY n;
SELECT explain('SELECT * FROM event_store.trace(''none'')') LIMIT 3;
SELECT explain('SELECT * FROM event_store.events_since(now()) ORDER BY position') LIMIT 3;
SELECT explain('SELECT * FROM event_store.read_stream(''order-1'') ORDER BY version DESC LIMIT 1');
SELECT explain('SELECT * FROM event_store.read_stream(''order-1'', backward => true) ORDER BY version DESC LIMIT 1');
DROP TABLE reads;
DROP FUNCTION buffers(text);
DROP FUNCTION explain(text);
