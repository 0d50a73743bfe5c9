-- Snapshots that are taken by policy
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(1000);
CREATE FUNCTION fill(_stream text, _count int, _data jsonb = '{"n": 1}') RETURNS bigint LANGUAGE sql AS $$
	SELECT last_version FROM event_store.append_events(_stream, (SELECT jsonb_agg(jsonb_build_object('type', 't', 'data', _data)) FROM generate_series(1, _count))) $$;
CREATE VIEW taken AS SELECT stream, fold, version, schema_version, l.data AS state
	FROM event_store.snapshots AS s, LATERAL (SELECT * FROM event_store.load_stream(s.stream, s.schema_version, s.fold, s.version) LIMIT 1) AS l (p, s, v, t, sv, e, r, o, so, co, ca, data, m) ORDER BY fold, stream, version, schema_version;
SELECT fill('a-1', 250), fill('a-2', 99), fill('a-3', 100), fill('b-1', 500);
-- what was there before the policy counts
SELECT event_store.set_snapshot_policy('sum(n)', '{a}', keep => 2);
SELECT event_store.take_snapshots();
SELECT * FROM taken;
SELECT event_store.take_snapshots();
SELECT fill('a-1', 99), fill('a-2', 1), fill('c-1', 500);
SELECT event_store.take_snapshots();
SELECT fill('a-1', 1), fill('a-2', 100);
SELECT event_store.take_snapshots();
SELECT fill('a-1', 100);
SELECT event_store.take_snapshots();
SELECT * FROM taken;
SELECT fold, categories, every_events, every, keep, schema_version, checkpoint, due, taken, failures, last_error FROM event_store.snapshot_policies;
-- what was not settled yet is not passed over: a transaction's own events are for the next time
BEGIN;
SELECT fill('a-4', 100), event_store.take_snapshots();
COMMIT;
SELECT event_store.take_snapshots();
-- a rollback takes everything back
BEGIN;
SELECT event_store.set_snapshot_policy('count', every_events => 50), event_store.take_snapshots();
ROLLBACK;
SELECT count(*) FROM event_store.snapshot_policies;

-- bounded: a few events at a time, in the end all; a long stream in pieces
SELECT event_store.drop_snapshots() > 0, event_store.drop_snapshot_policy('sum(n)'), event_store.drop_snapshot_policy('sum(n)');
SELECT event_store.set_snapshot_policy('count', keep => 100);
SELECT event_store.take_snapshots(60), event_store.take_snapshots(60), event_store.take_snapshots(60);
SELECT checkpoint, due FROM event_store.snapshot_policies;
DO $$ BEGIN
	FOR i IN 1..100 LOOP PERFORM event_store.take_snapshots(60); END LOOP;
END $$;
SELECT stream, max(version), event_store.stream_version(stream) FROM event_store.snapshots GROUP BY stream ORDER BY stream;
SELECT checkpoint = (SELECT max(position) FROM event_store.events) AS at_end, due FROM event_store.snapshot_policies;
SELECT * FROM taken WHERE state <> to_jsonb(version);
SELECT count(*) FROM event_store.snapshot_pending;

-- another schema version: the old ones are ignored at once, and removed in time
SELECT event_store.set_snapshot_policy('count', keep => 1, schema_version => 2);
SELECT event_store.save_snapshot('a-1', 10, '"old"', 1, 'count'), event_store.save_snapshot('a-1', 450, '-1', 1, 'count'), event_store.state_at('a-1', 'count');
SELECT type FROM event_store.load_stream('a-1', fold => 'count') LIMIT 1;
SELECT event_store.take_snapshots();
SELECT * FROM taken;

-- by time
SELECT event_store.drop_snapshot_policy('count');
SELECT count(*) FROM event_store.snapshots;
SELECT event_store.set_snapshot_policy('count', '{d}', NULL, '1 hour');
SELECT fill('d-1', 5), fill('d-2', 1), fill('d-3', 1);
SELECT event_store.take_snapshots();
SELECT every_events, every, due FROM event_store.snapshot_policies;
SELECT fill('d-1', 5);
UPDATE event_store.snapshot_pending SET due_at = due_at - interval '1 hour' WHERE stream_id IN (SELECT id FROM event_store.stream WHERE name IN ('d-1', 'd-2'));
SELECT due FROM event_store.snapshot_policies;
SELECT event_store.take_snapshots();
SELECT * FROM taken;
SELECT s.name, n.due_at > now() + '59 min' AS later FROM event_store.snapshot_pending AS n JOIN event_store.stream AS s ON s.id = n.stream_id ORDER BY s.name;
-- both: what comes first
SELECT event_store.set_snapshot_policy('count', '{d}', 10, '1 hour');
SELECT fill('d-3', 9);
SELECT event_store.take_snapshots();
SELECT * FROM taken;

-- an event has waited since it was recorded, not since it was looked at first; a snapshot begins that anew
SELECT event_store.set_snapshot_policy('max(n)', '{w}', NULL, '1 s'), event_store.set_snapshot_policy('min(n)', '{v,w}', 100, '1 hour');
SELECT fill('w-1', 1);
SELECT pg_sleep(1.1);
SELECT fill('w-1', 1), fill('v-1', 1), event_store.save_snapshot('w-1', 1, '1', fold => 'min(n)');
SELECT event_store.take_snapshots();
SELECT stream, fold, version FROM taken WHERE stream ~ '[vw]-';
SELECT n.fold, s.name, n.due_at - interval '1 hour' = e.recorded_at AS since_recorded FROM event_store.snapshot_pending AS n
	JOIN event_store.stream AS s ON s.id = n.stream_id JOIN event_store.events AS e ON e.stream = s.name AND e.version = event_store.stream_version(s.name) WHERE n.fold = 'min(n)' ORDER BY s.name;
SELECT event_store.drop_snapshot_policy('max(n)'), event_store.drop_snapshot_policy('min(n)');

-- an error in a fold keeps no other stream, nor policy, from its snapshots
SELECT event_store.drop_snapshot_policy('count');
CREATE FUNCTION fussy(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF event.data ? 'bad' THEN
		PERFORM set_config('work_mem', '12345', false);
		RAISE EXCEPTION 'cannot stand event %', event.version USING ERRCODE = 'XX123';
	END IF;
	RETURN to_jsonb(coalesce(state::int, 0) + 2);
END $$;
CREATE FUNCTION gone(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE sql RETURN state;
SELECT event_store.set_snapshot_policy('fussy', '{e}', 10), event_store.set_snapshot_policy('gone', '{e}', 10), event_store.set_snapshot_policy('count', '{e}', 10);
DROP FUNCTION gone;
SELECT fill('e-1', 10), fill('e-2', 5), fill('e-2', 1, '{"bad": 1}'), fill('e-2', 5), fill('e-3', 20);
SET client_min_messages = error;
SELECT event_store.take_snapshots();
RESET client_min_messages;
SELECT * FROM taken;
SELECT fold, due, taken, failures, last_failed_stream, last_error, last_failed_at IS NOT NULL AS failed FROM event_store.snapshot_policies ORDER BY fold;
SHOW work_mem;
SELECT s.name, n.attempts, n.due_at > now() + '50 s' AS later FROM event_store.snapshot_pending AS n JOIN event_store.stream AS s ON s.id = n.stream_id WHERE n.fold LIKE '%fussy%';
-- it is tried again, with what has become of the function
UPDATE event_store.snapshot_pending SET due_at = now();
CREATE OR REPLACE FUNCTION fussy(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN to_jsonb(coalesce(state::int, 0) + 2);
END $$;
SELECT event_store.take_snapshots();
SELECT * FROM taken WHERE fold LIKE '%fussy%';

-- nor does one that pretends to be a cancel, which by itself ends all of it
CREATE FUNCTION gives_up(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF event.stream = 'f-1' THEN
		RAISE EXCEPTION 'given up' USING ERRCODE = '57014';
	ELSIF event.stream = 'f-3' THEN
		PERFORM pg_sleep(10);
	END IF;
	RETURN to_jsonb(event.version);
END $$;
SELECT event_store.set_snapshot_policy('gives_up', '{f}', 10);
SELECT fill('f-1', 10), fill('f-2', 10);
SET client_min_messages = error;
SELECT event_store.take_snapshots();
RESET client_min_messages;
SELECT last_failed_stream, last_error FROM event_store.snapshot_policies WHERE fold ~ 'gives_up';
SELECT fill('f-3', 10);
SET statement_timeout = '200 ms';
\set VERBOSITY terse
SELECT event_store.take_snapshots();
\set VERBOSITY default
RESET statement_timeout;
SELECT stream, version, state FROM taken WHERE stream ~ 'f-';
SELECT event_store.drop_snapshot_policy('public.gives_up');
DROP FUNCTION gives_up;

-- by the worker's task, as the owner, with names that are qualified
SELECT event_store.set_task(name, '1 day') FROM event_store.builtin_tasks();
SELECT fill('e-1', 10);
SELECT event_store.run_tasks();
SELECT fold, version FROM taken WHERE stream = 'e-1' ORDER BY 1, 2;
SELECT name, runs, failures FROM event_store.worker_tasks WHERE name = 'take snapshots';
DROP VIEW taken;
DROP FUNCTION fill, fussy;
DROP EXTENSION event_store;
