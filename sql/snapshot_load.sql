-- Snapshots that are saved by hand, and streams that are loaded from them
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(16);
INSERT INTO event_store.events (stream, type, data)
SELECT 'a-' || i % 3, 't', to_jsonb(i) FROM generate_series(0, 59) i;
-- what load_stream() gives, on a line
CREATE FUNCTION loaded(text, int = NULL, text = NULL, bigint = NULL) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(CASE type WHEN '$snapshot' THEN format('[%s: %s]', version, data) ELSE version::text END, ' ' ORDER BY o)
	  FROM event_store.load_stream($1, $2, $3, $4) WITH ORDINALITY AS l (position, stream, version, type, schema_version, event_id, recorded_at, occurred_at, source, correlation_id, causation_id, data, metadata, o) $$;
-- the SQLSTATE and message that a statement ends with
CREATE FUNCTION tried(_sql text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE _sql;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ': ' || SQLERRM;
END $$;

-- without a snapshot it is the stream
SELECT loaded('a-1');
SELECT loaded('nothing') IS NULL AS nothing;
SELECT event_store.save_snapshot('a-1', 18, '{"n": 18}');
SELECT loaded('a-1');
-- the row of the snapshot: of the event at that version, but for what is the snapshot's own
SELECT l.type, l.schema_version, l.data, l.metadata, l.event_id, l.source, l.correlation_id, l.causation_id,
	(l.stream, l.version, l.position, l.recorded_at, l.occurred_at) = (e.stream, e.version, e.position, e.recorded_at, e.occurred_at) AS of_the_event
  FROM event_store.load_stream('a-1') AS l JOIN event_store.read_stream('a-1') AS e USING (version)
 WHERE l.type = '$snapshot';
-- the other ways to call it
SELECT (event_store.load_stream('a-1')).version;
SELECT (r.load_stream).type FROM (SELECT event_store.load_stream('a-1') LIMIT 1) AS r;
SELECT version FROM event_store.load_stream('a-1') LIMIT 1;
EXPLAIN (COSTS OFF) SELECT version, data FROM event_store.load_stream('a-1') ORDER BY version;
SELECT s.stream, l.version, l.type FROM event_store.streams() AS s, LATERAL event_store.load_stream(s.stream, until_version => 2) AS l ORDER BY 1, 2;
-- up to a version
SELECT event_store.save_snapshot('a-1', 5, '{"n": 5}'), event_store.save_snapshot('a-1', 10, '{"n": 10}');
SELECT v, loaded('a-1', NULL, NULL, v) FROM unnest('{0,1,4,5,6,10,17,18,19,100}'::bigint[]) v;
-- the newest are kept; one that is older than these is not
SELECT event_store.save_snapshot('a-1', 20, '{"n": 20}');
SELECT event_store.save_snapshot('a-1', 7, '{"n": 7}');
SELECT stream, fold, version, schema_version, size > 0 AS size, created_at <= now() + '1 min' AS created FROM event_store.snapshots;
SELECT event_store.save_snapshot('a-1', 19, '{"n": 19}', keep => 1), event_store.save_snapshot('a-1', 19, '{"n": 19}', keep => 2);
SELECT version FROM event_store.snapshots;
-- the same version again replaces it
SELECT event_store.save_snapshot('a-1', 20, '{"n": "twenty"}');
SELECT loaded('a-1');
SELECT count(*) FROM event_store.snapshot;
-- schema versions and folds have snapshots of their own
SELECT event_store.save_snapshot('a-1', 15, '"two"', 2), event_store.save_snapshot('a-1', 16, '"named"', fold => 'balance'), event_store.save_snapshot('a-1', 17, 'null', 3, 'balance');
SELECT loaded('a-1'), loaded('a-1', 2), loaded('a-1', 3);
SELECT loaded('a-1', NULL, 'balance'), loaded('a-1', 1, 'balance'), loaded('a-1', 3, 'balance');
SELECT loaded('a-1', 2, 'balance'), loaded('a-1', NULL, 'other');
SELECT event_store.drop_snapshots('a-1', 'balance', 3), event_store.drop_snapshots('a-1', ''), event_store.drop_snapshots('a-2'), event_store.drop_snapshots('nothing'), event_store.drop_snapshots(), event_store.drop_snapshots();

-- a snapshot that does not fit the events is not used: of another event, of none, of a stream that was created anew
SELECT event_store.save_snapshot('a-2', v, to_jsonb(v)) FROM unnest('{6,12,18}'::int[]) v;
SELECT loaded('a-2');
UPDATE event_store.snapshot SET position = position + 1 WHERE version = 18;
SELECT loaded('a-2');
UPDATE event_store.snapshot SET version = 1000 WHERE version = 12;
SELECT loaded('a-2');
UPDATE event_store.snapshot SET stream_id = 59 WHERE version = 6;
SELECT loaded('a-2');
-- and does not keep one that is good from being kept
SELECT event_store.save_snapshot('a-2', 9, '9', keep => 1), loaded('a-2') IS NOT NULL;
SELECT loaded('a-2');
SELECT version FROM event_store.snapshot WHERE stream_id = (SELECT id FROM event_store.stream WHERE name = 'a-2');
SELECT event_store.drop_snapshots();

-- guards
SELECT tried($$SELECT event_store.save_snapshot(NULL, 1, '1')$$);
SELECT tried($$SELECT event_store.save_snapshot('', 1, '1')$$);
SELECT tried($$SELECT event_store.save_snapshot('nothing', 1, '1')$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', NULL, '1')$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 0, '1')$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 21, '1')$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 9223372036854775807, '1')$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, NULL)$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1', 0)$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1', NULL)$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1', fold => '')$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1', fold => repeat('x', 1025))$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1', fold => E'a\nb')$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1', keep => 0)$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1', keep => 10001)$$);
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1', keep => NULL)$$);
SELECT tried($$SELECT event_store.load_stream(NULL)$$);
SELECT tried($$SELECT event_store.load_stream('')$$);
SELECT tried($$SELECT event_store.load_stream('a-1', 0)$$);
SELECT tried($$SELECT event_store.load_stream('a-1', fold => '')$$);
SELECT tried($$SELECT event_store.load_stream('a-1', until_version => -1)$$);
SELECT tried($$SELECT event_store.drop_snapshots('')$$);
SELECT tried($$SELECT event_store.drop_snapshots(schema_version => 0)$$);
SELECT tried($$SELECT event_store.drop_snapshots(fold => E'\t')$$);
SELECT count(*) FROM event_store.snapshot;
-- names as long as they may be
SELECT event_store.append(repeat('s', 1024), 't', '1') IS NOT NULL, event_store.save_snapshot('a-1', 1, '1', fold => repeat('x', 1024));
SELECT event_store.save_snapshot(repeat('s', 1024), 1, '1', fold => repeat('x', 1024));
SELECT event_store.drop_snapshots(fold => repeat('x', 1024));

-- in a transaction that does not write, or gives up
BEGIN READ ONLY;
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1')$$);
SELECT tried($$SELECT event_store.drop_snapshots()$$);
SELECT loaded('a-1');
COMMIT;
BEGIN;
SELECT event_store.save_snapshot('a-1', 3, '3', keep => 1);
SAVEPOINT s;
SELECT event_store.append_events('a-1', '[{"type": "t", "data": 21}, {"type": "t", "data": 22}]') IS NOT NULL;
SELECT event_store.save_snapshot('a-1', 22, '22', keep => 1);
SELECT loaded('a-1');
ROLLBACK TO s;
SELECT loaded('a-1', NULL, NULL, 5);
SELECT event_store.save_snapshot('a-1', 4, '4', keep => 1);
SAVEPOINT t;
SELECT event_store.drop_snapshots();
SELECT event_store.save_snapshot('a-1', 2, '2', keep => 1);
SELECT loaded('a-1', NULL, NULL, 5);
ROLLBACK TO t;
SELECT loaded('a-1', NULL, NULL, 5);
COMMIT;
SELECT loaded('a-1', NULL, NULL, 5);
BEGIN;
SELECT event_store.save_snapshot('a-1', 5, '5');
ROLLBACK;
SELECT loaded('a-1', NULL, NULL, 5);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT loaded('a-1', NULL, NULL, 6);
SELECT event_store.save_snapshot('a-1', 6, '6', keep => 1);
SELECT event_store.save_snapshot('a-1', 6, '"six"', keep => 1);
SELECT event_store.append('a-1', 't', '1') IS NOT NULL, event_store.save_snapshot('a-1', 20, '20');
SELECT loaded('a-1');
SELECT event_store.save_snapshot('a-1', 21, '21');
SELECT loaded('a-1');
COMMIT;
SELECT loaded('a-1');

-- a large state is stored as any other, and read when it is looked at
SELECT event_store.save_snapshot('a-0', 20, jsonb_build_object('x', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300000) i)));
SELECT version, length(data->>'x') FROM event_store.load_stream('a-0');
SELECT md5(l.data::text) = md5(jsonb_build_object('x', (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300000) i))::text) AS same FROM event_store.load_stream('a-0') AS l;
SELECT event_store.save_snapshot('a-0', 20, '1', keep => 1), loaded('a-0');
-- a cursor over a stream whose snapshot is replaced and removed meanwhile
SELECT event_store.save_snapshot('a-0', 18, '{"n": 18}'), event_store.drop_snapshots('a-0', schema_version => 2);
BEGIN;
DECLARE c CURSOR FOR SELECT version, type FROM event_store.load_stream('a-0', until_version => 19);
SELECT event_store.drop_snapshots();
FETCH ALL c;
COMMIT;
SELECT loaded('a-0', NULL, NULL, 2);

-- who may: a role needs EXECUTE, and SELECT on events
CREATE ROLE es_snapshot_user;
GRANT USAGE ON SCHEMA event_store TO es_snapshot_user;
SET ROLE es_snapshot_user;
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1')$$);
SELECT tried($$SELECT event_store.drop_snapshots()$$);
SELECT tried($$SELECT * FROM event_store.load_stream('a-1')$$);
SELECT tried($$SELECT event_store.load_stream('a-1')$$);
SELECT tried($$SELECT * FROM event_store.snapshots$$);
SELECT tried($$SELECT * FROM event_store.snapshot$$);
RESET ROLE;
GRANT EXECUTE ON FUNCTION event_store.save_snapshot, event_store.drop_snapshots, event_store.load_stream TO es_snapshot_user;
SET ROLE es_snapshot_user;
SELECT tried($$SELECT event_store.save_snapshot('a-1', 1, '1')$$);
SELECT tried($$SELECT event_store.drop_snapshots()$$);
SELECT tried($$SELECT * FROM event_store.load_stream('a-1')$$);
RESET ROLE;
GRANT SELECT ON event_store.events TO es_snapshot_user;
-- things of the same name that come first in the search_path make no difference
CREATE SCHEMA es_hostile AUTHORIZATION es_snapshot_user;
SET ROLE es_snapshot_user;
SET search_path = es_hostile, pg_catalog, event_store;
CREATE FUNCTION es_hostile.hijacked(int, int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'hijacked'; END $$;
CREATE OPERATOR es_hostile.= (LEFTARG = int, RIGHTARG = int, FUNCTION = es_hostile.hijacked);
CREATE OPERATOR es_hostile.<= (LEFTARG = int, RIGHTARG = int, FUNCTION = es_hostile.hijacked);
CREATE TABLE es_hostile.snapshot (id int);
SELECT event_store.save_snapshot('a-1', 20, '{"by": "user"}'), event_store.save_snapshot('a-1', 20, '{"by": "user, again"}');
SELECT stream, version, data FROM event_store.load_stream('a-1');
SELECT version, data FROM load_stream(stream => 'a-1', schema_version => 1, fold => NULL, until_version => 20);
SELECT event_store.drop_snapshots();
RESET search_path;
RESET ROLE;
DROP OWNED BY es_snapshot_user CASCADE;
DROP ROLE es_snapshot_user;
DROP FUNCTION loaded, tried;
DROP EXTENSION event_store;
