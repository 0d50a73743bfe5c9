-- The state of a stream at any version and time, with and without snapshots
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(64);
-- in steps, so that the clock goes on
DO $$ BEGIN
	FOR step IN 0..19 LOOP
		INSERT INTO event_store.events (stream, type, data)
		SELECT CASE WHEN i % 5 = 0 THEN 'short-' || i % 20 ELSE 'long-' || i % 4 END, 't' || i % 3,
			CASE i % 4 WHEN 0 THEN jsonb_build_object('amount', i, 'tag', i % 7)
				WHEN 1 THEN jsonb_build_object('amount', i / 8.0, 'drop', null)
				WHEN 2 THEN jsonb_build_object('who', jsonb_build_object('name', 'n' || i, 'age', i), 'drop', i)
				ELSE jsonb_build_object('who', jsonb_build_object('age', null), 'amount', null) END
		  FROM generate_series(step * 50, step * 50 + 49) i;
		PERFORM pg_sleep(0.002);
	END LOOP;
END $$;
-- a fold of one's own: neither commutative nor associative
CREATE FUNCTION chain(state jsonb, event event_store.recorded_event) RETURNS jsonb
LANGUAGE sql IMMUTABLE CALLED ON NULL INPUT AS $$
	SELECT jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1, 'md5', md5(coalesce(state->>'md5', '') || event.version || event.type || event.data))
$$;
-- the oracle: event by event from the first one, without anything of snapshots
CREATE FUNCTION from_the_first(_stream text, _fold text, _version bigint, _at timestamptz) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	state jsonb;
	event event_store.recorded_event;
BEGIN
	IF _fold = 'count' THEN
		state := '0';
	END IF;
	IF _fold = 'merge_patch' THEN
		RETURN (SELECT event_store.merge_patch(e.data ORDER BY e.version) FROM event_store.read_stream(_stream) AS e WHERE e.version <= coalesce(_version, e.version) AND e.recorded_at <= coalesce(_at, e.recorded_at));
	END IF;
	FOR event IN SELECT * FROM event_store.read_stream(_stream) AS e WHERE e.version <= coalesce(_version, e.version) AND e.recorded_at <= coalesce(_at, e.recorded_at) LOOP
		state := CASE _fold
			WHEN 'chain' THEN chain(state, event)
			WHEN 'count' THEN to_jsonb(state::int + 1)
			WHEN 'sum(amount)' THEN CASE WHEN jsonb_typeof(event.data->'amount') = 'number' THEN to_jsonb(coalesce(state::numeric, 0) + (event.data->'amount')::numeric) ELSE state END
			WHEN 'last(who.age)' THEN CASE WHEN coalesce(jsonb_typeof(event.data#>'{who,age}'), 'null') <> 'null' THEN event.data#>'{who,age}' ELSE state END
			WHEN 'max(tag)' THEN CASE WHEN event.data->'tag' IS NOT NULL AND (state IS NULL OR event.data->'tag' > state) THEN event.data->'tag' ELSE state END
			ELSE 'null' END;
	END LOOP;
	RETURN state;
END $$;
CREATE TABLE folds (fold text);
INSERT INTO folds VALUES ('chain'), ('count'), ('sum(amount)'), ('last(who.age)'), ('max(tag)'), ('merge_patch');
-- random streams, versions and times
SELECT setseed(0.4) IS NOT NULL;
CREATE TABLE wanted AS
	SELECT s.name AS stream, f.fold,
		CASE WHEN random() < 0.6 THEN (random() * 220)::bigint END AS version,
		CASE WHEN random() < 0.5 THEN (SELECT min(recorded_at) FROM event_store.events) + random() * ((SELECT max(recorded_at) FROM event_store.events) - (SELECT min(recorded_at) FROM event_store.events)) END AS at
	  FROM event_store.stream AS s, folds AS f, generate_series(1, 4);
-- the very moments of events, too
INSERT INTO wanted SELECT DISTINCT ON (e.stream, f.fold) e.stream, f.fold, NULL, e.recorded_at FROM event_store.events AS e, folds AS f WHERE e.version > 3 ORDER BY e.stream, f.fold, random();
CREATE TABLE answers AS SELECT w.*, from_the_first(stream, fold, version, at) AS state FROM wanted AS w;
CREATE VIEW wrong AS
	SELECT * FROM answers AS a
	 WHERE event_store.state_at(a.stream, a.fold, a.version, a.at) IS DISTINCT FROM a.state;
SELECT count(*) > 150 AS many, count(DISTINCT state) > 50 AS various FROM answers;
SELECT * FROM wrong;
SELECT count(*) FROM event_store.snapshots;

-- with snapshots at random places, of each fold (as the oracle has them), and some that nobody may trust
CREATE FUNCTION save_some(_count int) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(event_store.save_snapshot(stream, version, coalesce(from_the_first(stream, fold, version, NULL), 'null'), 1, CASE fold WHEN 'chain' THEN 'public.chain' ELSE fold END, keep => 5))
	  FROM (SELECT e.stream, e.version, f.fold FROM event_store.events AS e, folds AS f ORDER BY random() LIMIT _count) AS x
	 WHERE from_the_first(stream, fold, version, NULL) IS NOT NULL
$$;
SELECT save_some(200) > 100;
SELECT count(event_store.save_snapshot(stream, version, '{"wrong": true}', 2, fold)) > 0 FROM event_store.events, folds WHERE version % 10 = 0;
SELECT DISTINCT fold FROM event_store.snapshots ORDER BY fold;
SELECT * FROM wrong;
SELECT save_some(200) > 100;
SELECT * FROM wrong;
-- and again when all are gone
SELECT event_store.drop_snapshots() > 100;
SELECT * FROM wrong;

-- a policy: what takes long to fold is saved
SELECT event_store.set_snapshot_policy('chain', every_events => 50, keep => 2);
SELECT event_store.set_snapshot_policy('sum( amount )', '{long}', 50, keep => 100);
SELECT * FROM wrong;
SELECT fold, count(*) > 3 AS some, bool_and(stream LIKE 'long-%') AS all_long FROM event_store.snapshots GROUP BY fold ORDER BY fold;
SELECT * FROM wrong;
-- a fold that has no state yet
SELECT event_store.set_snapshot_policy('max(tag)', '{long}', 20, keep => 5);
SELECT * FROM wrong;
SELECT count(*) > 5 AS some, bool_or(size IS NULL) AS without FROM event_store.snapshots WHERE fold = 'max(tag)';
SELECT * FROM wrong;
-- one that would not be kept is not saved; nor one that is there
SELECT event_store.drop_snapshots() > 0;
SELECT (event_store.state_at('long-1', 'chain', v)->>'n')::int FROM unnest('{120,60,180,90,120,180}'::int[]) v;
SELECT version FROM event_store.snapshots;
SELECT max(id) - min(id) AS between FROM event_store.snapshot;
-- nothing is saved where nothing may be written, or the caller may not save
SELECT event_store.drop_snapshots();
BEGIN READ ONLY;
SELECT count(*) FROM wrong;
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT count(*) FROM wrong;
COMMIT;
CREATE ROLE es_state_user;
GRANT USAGE ON SCHEMA event_store TO es_state_user;
GRANT SELECT ON event_store.events TO es_state_user;
SET ROLE es_state_user;
SELECT event_store.state_at('long-1', 'count');
RESET ROLE;
GRANT EXECUTE ON FUNCTION event_store.state_at TO es_state_user;
SET ROLE es_state_user;
SELECT event_store.state_at('long-1', 'chain')->>'n' AS n;
RESET ROLE;
SELECT count(*) FROM event_store.snapshot;
GRANT EXECUTE ON FUNCTION event_store.save_snapshot TO es_state_user;
SET ROLE es_state_user;
SELECT event_store.state_at('long-1', 'chain')->>'n' AS n;
-- the owner alone sets policies, and takes by them
SELECT event_store.set_snapshot_policy('count');
SELECT event_store.drop_snapshot_policy('count');
SELECT event_store.take_snapshots();
RESET ROLE;
GRANT EXECUTE ON FUNCTION event_store.set_snapshot_policy, event_store.drop_snapshot_policy, event_store.take_snapshots TO es_state_user;
SET ROLE es_state_user;
SELECT event_store.set_snapshot_policy('count');
SELECT event_store.drop_snapshot_policy('count');
SELECT event_store.take_snapshots();
RESET ROLE;
SELECT stream, fold, version FROM event_store.snapshots;
REVOKE SELECT ON event_store.events FROM es_state_user;
SET ROLE es_state_user;
SELECT event_store.state_at('long-1', 'count');
RESET ROLE;
DROP OWNED BY es_state_user;
DROP ROLE es_state_user;
-- a name means what it means to the caller: another schema's function of that name has snapshots of its own
CREATE SCHEMA es_other;
CREATE FUNCTION es_other.chain(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '"other"'::jsonb $$;
SET search_path = es_other, public;
SELECT event_store.state_at('long-1', 'chain'), event_store.state_at('long-1', 'public.chain')->>'n' AS n;
RESET search_path;

-- what a transaction itself has appended counts; a rollback takes the snapshot with it
SELECT event_store.drop_snapshots();
BEGIN;
SELECT last_version - first_version FROM event_store.append_events('long-1', (SELECT jsonb_agg('{"type": "x", "data": {"amount": 1}}'::jsonb) FROM generate_series(1, 60)));
SAVEPOINT s;
SELECT event_store.state_at('long-1', 'count'), event_store.state_at('long-1', 'chain')->>'n' AS n;
SELECT version FROM event_store.snapshots;
ROLLBACK TO s;
SELECT version FROM event_store.snapshots;
SELECT event_store.state_at('long-1', 'chain')->>'n' AS n;
ROLLBACK;
SELECT version FROM event_store.snapshots;
SELECT * FROM wrong;

-- guards
SELECT event_store.state_at(NULL, 'count');
SELECT event_store.state_at('', 'count');
SELECT event_store.state_at('long-1', NULL);
SELECT event_store.state_at('long-1', '');
SELECT event_store.state_at('long-1', 'no_such_fold');
SELECT event_store.state_at('long-1', 'count', -1);
SELECT event_store.state_at('long-1', 'count', schema_version => 0);
SELECT event_store.state_at('long-1', 'count', 0), event_store.state_at('long-1', 'chain', 0), event_store.state_at('nothing', 'count'), event_store.state_at('long-1', 'count', 1000000000000), event_store.state_at('long-1', 'count', at => '-infinity'), event_store.state_at('long-1', 'count', at => 'infinity');
SELECT event_store.set_snapshot_policy(NULL);
SELECT event_store.set_snapshot_policy('no_such_fold');
SELECT event_store.set_snapshot_policy('count', '{}');
SELECT event_store.set_snapshot_policy('count', '{a,NULL}');
SELECT event_store.set_snapshot_policy('count', '{""}');
SELECT event_store.set_snapshot_policy('count', every_events => 0);
SELECT event_store.set_snapshot_policy('count', every_events => NULL);
SELECT event_store.set_snapshot_policy('count', every => '0.5 s');
SELECT event_store.set_snapshot_policy('count', every => '-1 day');
SELECT event_store.set_snapshot_policy('count', every => '11 years');
SELECT event_store.set_snapshot_policy('count', keep => 0);
SELECT event_store.set_snapshot_policy('count', keep => NULL);
SELECT event_store.set_snapshot_policy('count', schema_version => 0);
SELECT event_store.set_snapshot_policy('count', schema_version => NULL);
SELECT event_store.drop_snapshot_policy(NULL);
SELECT event_store.drop_snapshot_policy('no_such_fold');
SELECT event_store.take_snapshots(0);
BEGIN READ ONLY;
SELECT event_store.set_snapshot_policy('count');
ROLLBACK;
BEGIN READ ONLY;
SELECT event_store.take_snapshots();
ROLLBACK;
DROP VIEW wrong;
DROP TABLE wanted, answers, folds;
DROP FUNCTION from_the_first, save_some, chain;
DROP SCHEMA es_other CASCADE;
DROP EXTENSION event_store;
