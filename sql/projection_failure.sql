-- Projections that fail: retries, stop, skip, halves; handlers that do what they
-- must not, or whose ground is taken away; owners, roles, names that hide others
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(16);
INSERT INTO event_store.events (stream, type, data) SELECT 'a-' || i % 3, 'Added', jsonb_build_object('n', i) FROM generate_series(1, 40) i;
CREATE TABLE target (position bigint PRIMARY KEY CHECK (position NOT IN (7, 8, 23)), by_whom text DEFAULT current_user);
CREATE VIEW state AS SELECT name, status, checkpoint, open_events AS open, failed_position AS failed, attempts, sql_state, message, detail, skipped, next_attempt_at > statement_timestamp() AS waits FROM event_store.projections;
-- as if the delay were over
CREATE FUNCTION later() RETURNS void LANGUAGE sql AS $$UPDATE event_store.projection_error SET next_attempt_at = statement_timestamp() WHERE next_attempt_at IS NOT NULL$$;

-- stop: what is before the event is applied, found in halves; then retries, with delays
SELECT event_store.create_projection('stop', 'set', 'INSERT INTO target SELECT position FROM new_events', max_attempts => 3, first_delay => '10 s', delay_factor => 3, max_delay => '25 s');
SELECT event_store.refresh_projection('stop');
SELECT * FROM state;
SELECT max(position), count(*) FROM target;
SELECT context, round(extract(epoch FROM next_attempt_at - failed_at)) AS delay, first_failed_at = failed_at AS first FROM event_store.projections;
-- not before it is due
SELECT event_store.refresh_projection('stop');
SELECT later();
SELECT event_store.refresh_projection('stop');
SELECT attempts, round(extract(epoch FROM next_attempt_at - failed_at)) AS delay, first_failed_at < failed_at AS again FROM event_store.projections;
SELECT raises($$SELECT event_store.wait_for_projection('stop', 6)$$), event_store.wait_for_projection('stop', 7, '10 ms');
SELECT later();
SELECT event_store.refresh_projection('stop'), event_store.refresh_projection('stop'), event_store.refresh_projections();
SELECT * FROM state;
SELECT raises($$SELECT event_store.wait_for_projection('stop', 40)$$), event_store.wait_for_projection('stop', 6);
-- others go on
SELECT event_store.create_projection('other', 'fold', 'count', key => '1');
SELECT event_store.refresh_projections();
SELECT event_store.projection_state('other', '1');
-- resumed it tries again, with its attempts counted anew
SELECT event_store.resume_projection('stop');
SELECT status, attempts, failed_position FROM event_store.projections WHERE name = 'stop';
SELECT event_store.refresh_projection('stop');
SELECT attempts, status FROM event_store.projections WHERE name = 'stop';
-- with another handler, or table, it passes
ALTER TABLE target DROP CONSTRAINT target_position_check;
SELECT event_store.resume_projection('stop');
SELECT event_store.refresh_projection('stop', 1);
SELECT * FROM state WHERE name = 'stop';
SELECT event_store.refresh_projection('stop');
SELECT count(*) FROM target;
SELECT * FROM state WHERE name = 'stop';
SELECT event_store.drop_projection('stop'), event_store.drop_projection('other');

-- skip: passed over, kept with the error
TRUNCATE target;
ALTER TABLE target ADD CHECK (position NOT IN (7, 8, 23, 40));
SELECT event_store.create_projection('skip', 'set', 'INSERT INTO target SELECT position FROM new_events', on_error => 'skip', max_attempts => 2, first_delay => '0', batch_events => 16);
SELECT event_store.refresh_projection('skip');
SELECT event_store.refresh_projection('skip');
SELECT event_store.alter_projection('skip', max_attempts => 1);
SELECT event_store.refresh_projection('skip');
SELECT * FROM state;
SELECT projection, position, stream, version, type, attempts, sql_state, message, data, metadata FROM event_store.projection_failures ORDER BY position;
SELECT count(*), count(*) FILTER (WHERE position IN (7, 8, 23, 40)) FROM target;
SELECT event_store.drop_projection('skip');
SELECT count(*) FROM event_store.projection_failures;

-- the same for each event, and for folds; in batches of one, too
CREATE FUNCTION bad_event(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO target VALUES (e.position);
END $$;
CREATE FUNCTION bad_fold(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF e.position IN (7, 8, 23, 40) THEN RAISE EXCEPTION 'bad fold' USING DETAIL = 'it is ' || e.position, ERRCODE = 'P1234'; END IF;
	RETURN coalesce(state, '[]') || to_jsonb(e.position);
END $$;
CREATE FUNCTION strict_fold(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql STRICT AS 'SELECT state';
TRUNCATE target;
SET client_min_messages = error;
SELECT event_store.create_projection('event', 'event', 'bad_event', on_error => 'skip', max_attempts => 1);
SELECT event_store.create_projection('fold', 'fold', 'bad_fold', on_error => 'skip', max_attempts => 1, key => '1');
SELECT event_store.create_projection('fold of one', 'fold', 'bad_fold', on_error => 'skip', max_attempts => 1, batch_events => 1, key => '1');
SELECT event_store.create_projection('sum', 'fold', 'sum(n)', on_error => 'skip', max_attempts => 1, key => '1');
-- a key that fails is the event's fault; one that is too long for an index fails when states are written
SELECT event_store.create_projection('key', 'fold', 'count', on_error => 'skip', max_attempts => 1, key => '1 / (position - 5)');
SELECT event_store.create_projection('long', 'fold', 'count', on_error => 'skip', max_attempts => 1, key => 'coalesce(data->>''long'', stream)');
SELECT event_store.create_projection('strict', 'fold', 'strict_fold', max_attempts => 1);
SELECT last_position FROM event_store.append('a-1', 'Added', '{"n": "no number"}');
SELECT last_position FROM event_store.append('a-1', 'Added', (SELECT jsonb_build_object('long', string_agg(md5(i::text), '')) FROM generate_series(1, 300) i));
SELECT last_position FROM event_store.append('a-1', 'Added', '{}');
SELECT event_store.refresh_projections(), event_store.refresh_projections();
RESET client_min_messages;
SELECT * FROM state ORDER BY name COLLATE "C";
SELECT projection, string_agg(position || ' ' || sql_state || CASE WHEN projection ~ '^(long|event)$' THEN '' ELSE ' ' || message || coalesce(' ' || detail, '') END, ', ' ORDER BY position) FROM event_store.projection_failures GROUP BY projection ORDER BY projection COLLATE "C";
SELECT context ~ 'projection "fold", event at position 7, stream "a-1", version 3' AS context FROM event_store.projection_failures WHERE projection = 'fold' AND position = 7;
SELECT count(*) FROM target;
SELECT event_store.projection_state('fold', '1') = event_store.projection_state('fold of one', '1') AS same, jsonb_array_length(event_store.projection_state('fold', '1')) AS n, event_store.projection_state('sum', '1') AS sum;
-- as of now they are what they have come to: without the events that they have passed over
CREATE TABLE as_of_now AS SELECT p.name AS projection, a.* FROM (SELECT name FROM event_store.projections WHERE kind = 'fold' AND name <> 'strict') p, event_store.projection_as_of(p.name, 'infinity') a;
SELECT count(DISTINCT projection) AS projections, (SELECT count(*) FROM as_of_now AS a FULL JOIN event_store.projection_states AS s USING (projection, key, state, version, position) WHERE a IS NULL OR s IS NULL) AS different FROM as_of_now;
DROP TABLE as_of_now;
SELECT count(event_store.drop_projection(name)) FROM event_store.projections;
CREATE MATERIALIZED VIEW bad_view AS SELECT 1 / (40 - position) AS n FROM event_store.events WITH NO DATA;
SELECT event_store.create_projection('view', 'matview', 'bad_view', max_attempts => 1);
SELECT event_store.refresh_projection('view');
SELECT * FROM state;
DROP MATERIALIZED VIEW bad_view;
CREATE MATERIALIZED VIEW bad_view AS SELECT position FROM event_store.events;
SELECT event_store.resume_projection('view');
SELECT event_store.refresh_projection('view');
DROP MATERIALIZED VIEW bad_view;
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT event_store.refresh_projection('view');
SELECT status, sql_state, message FROM event_store.projections;
SELECT event_store.drop_projection('view');

-- what is nobody's fault does not count for an event
CREATE FUNCTION transient(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.position = 5 AND current_setting('regress.state', true) <> '' THEN RAISE EXCEPTION 'transient' USING ERRCODE = current_setting('regress.state'); END IF;
END $$;
SELECT event_store.create_projection('transient', 'event', 'transient', max_attempts => 1, first_delay => '0');
SET regress.state = '40P01';
SELECT event_store.refresh_projection('transient'), event_store.refresh_projection('transient');
SELECT * FROM state;
SET regress.state = '53200';
SELECT event_store.refresh_projection('transient');
SET regress.state = '55P03';
SELECT event_store.refresh_projection('transient');
SELECT * FROM state;
-- a handler that raises what a cancel would is no cancel
SET regress.state = '57014';
SELECT event_store.refresh_projection('transient');
SELECT * FROM state;
SET regress.state = '';
SELECT event_store.resume_projection('transient');
SELECT event_store.refresh_projection('transient');
SELECT * FROM state;
SELECT event_store.drop_projection('transient');

-- handlers that do what they must not
CREATE FUNCTION does(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE current_setting('regress.do');
END $$;
CREATE FUNCTION outcome(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	_result text;
BEGIN
	PERFORM set_config('regress.do', command, true);
	PERFORM event_store.resume_projection('does');
	PERFORM set_config('client_min_messages', 'error', true);
	PERFORM event_store.refresh_projection('does', 1);
	PERFORM set_config('client_min_messages', 'notice', true);
	SELECT concat_ws(' ', status, sql_state, message) INTO _result FROM event_store.projections WHERE name = 'does';
	RETURN _result;
END $$;
SELECT event_store.create_projection('does', 'event', 'does', max_attempts => 1);
SELECT event_store.create_projection('second', 'fold', 'count', key => '1');
BEGIN;
SELECT command, outcome(command) FROM unnest(ARRAY[
	'COMMIT', 'ROLLBACK', 'SAVEPOINT a', 'SET ROLE pg_monitor', 'SET SESSION AUTHORIZATION pg_monitor', 'RESET ROLE',
	'CREATE TEMPORARY TABLE t (a int)', 'LISTEN a', 'DECLARE c CURSOR WITH HOLD FOR SELECT 1', 'VACUUM target',
	'SELECT event_store.refresh_projection(''does'')', 'SELECT event_store.drop_projection(''does'')', 'SELECT event_store.alter_projection(''does'', max_attempts => 2)',
	'SELECT event_store.pause_projection(''does'')', 'SELECT event_store.resume_projection(''does'')',
	'SELECT event_store.refresh_projections()', 'SELECT event_store.refresh_projection(''second'', 3)', 'SELECT event_store.create_projection(''third'', ''fold'', ''count'')', 'SELECT event_store.drop_projection(''third'')',
	'SELECT event_store.wait_for_projection(''does'', 1000, ''0'')', 'SELECT event_store.append(''made-1'', ''Made'', ''1'')', 'NOTIFY a', 'CREATE TABLE made_here (a int)', 'DROP TABLE made_here']) command;
COMMIT;
SELECT name, applied FROM event_store.projections ORDER BY name;
SELECT stream, version FROM event_store.events WHERE category = 'made';
-- settings that it makes are its own; those of the session it does not have to undo
SET work_mem = '5MB';
SELECT outcome('SET work_mem = ''7MB'''), outcome('SET search_path = pg_catalog'), outcome('SELECT set_config(''work_mem'', ''8MB'', false)'), outcome('RESET ALL'), outcome('DISCARD PLANS');
SHOW work_mem;
SHOW search_path;
RESET work_mem;
SELECT event_store.drop_projection('does'), event_store.drop_projection('second');
-- a constraint that is checked at the commit would be checked with the rights of another
CREATE TABLE deferred (position bigint REFERENCES target DEFERRABLE INITIALLY DEFERRED);
SELECT event_store.create_projection('deferred', 'set', 'INSERT INTO deferred SELECT position FROM new_events', max_attempts => 1);
SELECT event_store.refresh_projection('deferred');
SELECT status, sql_state, message FROM event_store.projections;
SELECT event_store.drop_projection('deferred');
DROP TABLE deferred;

-- the ground taken away: function, table
CREATE FUNCTION ground(e event_store.recorded_event) RETURNS void LANGUAGE sql AS $$INSERT INTO target VALUES (e.position, 'first')$$;
CREATE FUNCTION ground_fold(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(coalesce(state #>> '{}', '') || 'a')$$;
CREATE FUNCTION ground_key(p bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'first ' || p % 2$$;
TRUNCATE target;
ALTER TABLE target DROP CONSTRAINT target_position_check;
SELECT event_store.create_projection('event', 'event', 'ground', first_delay => '0');
SELECT event_store.create_projection('fold', 'fold', 'ground_fold', first_delay => '0', key => 'ground_key(position)');
SELECT event_store.create_projection('set', 'set', 'INSERT INTO target SELECT position + 1000 FROM new_events', first_delay => '0');
SELECT name, event_store.refresh_projection(name, 4) FROM event_store.projections ORDER BY name;
CREATE OR REPLACE FUNCTION ground(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO target VALUES (e.position, 'second'); END$$;
CREATE OR REPLACE FUNCTION ground_fold(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(coalesce(state #>> '{}', '') || 'b')$$;
CREATE OR REPLACE FUNCTION ground_key(p bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'second ' || p % 2$$;
ALTER TABLE target ADD note text DEFAULT 'noted';
SELECT name, event_store.refresh_projection(name, 4) FROM event_store.projections ORDER BY name;
SELECT by_whom, count(*), min(position), max(position) FROM target WHERE position < 1000 GROUP BY by_whom ORDER BY by_whom;
SELECT key, state FROM event_store.projection_states ORDER BY key;
-- not an event's fault, so that none is passed over
ALTER TABLE target RENAME TO target_before;
SELECT event_store.alter_projection('set', on_error => 'skip', max_attempts => 1);
SELECT event_store.refresh_projection('set');
SELECT status, sql_state, failed_position, skipped FROM event_store.projections WHERE name = 'set';
DROP FUNCTION ground, ground_fold, ground_key;
SELECT name, event_store.refresh_projection(name, 4) FROM event_store.projections ORDER BY name;
SELECT * FROM state ORDER BY name;
CREATE TABLE target (position int, by_whom text);
CREATE FUNCTION ground(e event_store.recorded_event) RETURNS void LANGUAGE sql AS $$INSERT INTO target VALUES (e.position, 'third')$$;
CREATE FUNCTION ground_fold(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(coalesce(state #>> '{}', '') || 'c')$$;
CREATE FUNCTION ground_key(p bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT 'second ' || p % 2$$;
SELECT event_store.resume_projection(name) FROM event_store.projections;
SELECT name, event_store.refresh_projection(name) FROM event_store.projections ORDER BY name;
SELECT count(*) FILTER (WHERE position > 1000), count(*) FILTER (WHERE by_whom = 'third') FROM target;
SELECT key, state FROM event_store.projection_states ORDER BY key;
SELECT count(*) FROM event_store.projections WHERE status <> 'running';
SELECT count(event_store.drop_projection(name)) FROM event_store.projections;
DROP TABLE target_before;
DROP FUNCTION ground, ground_fold, ground_key;

-- owners and roles: the handler runs as who created it, whoever refreshes
CREATE ROLE regress_event_store_owner;
CREATE ROLE regress_event_store_refresher;
GRANT USAGE ON SCHEMA event_store TO regress_event_store_owner, regress_event_store_refresher;
GRANT SELECT ON event_store.events TO regress_event_store_owner, regress_event_store_refresher;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA event_store TO regress_event_store_owner;
GRANT EXECUTE ON FUNCTION event_store.refresh_projection, event_store.refresh_projections, event_store.projection_state TO regress_event_store_refresher;
CREATE SCHEMA regress_owned AUTHORIZATION regress_event_store_owner;
SET ROLE regress_event_store_owner;
SET search_path = regress_owned, public;
CREATE TABLE mine (position bigint, by_whom text DEFAULT current_user, session text DEFAULT session_user);
CREATE FUNCTION mine(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO mine (position) VALUES (e.position); END$$;
SELECT event_store.create_projection('mine', 'set', 'INSERT INTO mine SELECT position FROM new_events');
SELECT event_store.create_projection('mine too', 'event', 'mine');
SELECT event_store.create_projection('my fold', 'fold', 'count', key => '1');
CREATE MATERIALIZED VIEW my_view AS SELECT count(*) FROM event_store.events;
SELECT event_store.create_projection('my view', 'matview', 'my_view');
RESET search_path;
SET ROLE regress_event_store_refresher;
SELECT raises('SELECT count(*) FROM regress_owned.mine');
-- names of the caller's hide nothing
CREATE TEMPORARY TABLE mine (position bigint);
CREATE TEMPORARY TABLE new_events (position bigint);
SET search_path = pg_temp;
SELECT event_store.refresh_projection('mine', 5), event_store.refresh_projection('mine too', 5), event_store.refresh_projection('my fold', 5), event_store.refresh_projection('my view');
RESET search_path;
SELECT count(*) FROM pg_temp.mine;
SELECT event_store.projection_state('my fold', '1');
SELECT raises($$SELECT event_store.drop_projection('mine')$$), raises('SELECT * FROM event_store.projections'), raises('SELECT * FROM event_store.projection_states'), raises('SELECT * FROM event_store.projection_state');
DROP TABLE pg_temp.mine, pg_temp.new_events;
RESET ROLE;
SELECT by_whom, session = session_user AS session, count(*) FROM regress_owned.mine GROUP BY 1, 2;
-- what belongs to another only its owner alters, and whom it belongs to gives it the words
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA event_store TO regress_event_store_refresher;
SET ROLE regress_event_store_refresher;
SELECT raises($$SELECT event_store.drop_projection('mine')$$), raises($$SELECT event_store.alter_projection('mine', batch_events => 2)$$), raises($$SELECT event_store.alter_projection('mine', handler => 'SELECT FROM new_events')$$);
RESET ROLE;
SELECT raises($$SELECT event_store.alter_projection('mine', handler => 'SELECT FROM new_events')$$);
SELECT event_store.alter_projection('mine', batch_events => 2);
-- rights that the owner loses, on its own table, on the function, on events
REVOKE INSERT ON regress_owned.mine FROM regress_event_store_owner;
SELECT event_store.refresh_projection('mine'), event_store.refresh_projection('mine too');
SELECT name, status, sql_state, message, failed_position FROM event_store.projections WHERE name ~ '^mine' ORDER BY name;
GRANT INSERT ON regress_owned.mine TO regress_event_store_owner;
REVOKE EXECUTE ON FUNCTION regress_owned.mine FROM regress_event_store_owner, PUBLIC;
SELECT event_store.resume_projection('mine too');
SELECT event_store.refresh_projection('mine too');
SELECT sql_state, message, failed_position FROM event_store.projections WHERE name = 'mine too';
REVOKE SELECT ON event_store.events FROM regress_event_store_owner;
SELECT event_store.resume_projection('my fold');
SELECT event_store.refresh_projection('my fold');
SELECT sql_state, message, failed_position FROM event_store.projections WHERE name = 'my fold';
-- an owner that is no more
DROP OWNED BY regress_event_store_owner;
DROP ROLE regress_event_store_owner;
SELECT later();
SELECT event_store.resume_projection('mine');
SELECT event_store.refresh_projection('mine');
SELECT status, sql_state, message FROM event_store.projections WHERE name = 'mine';
SELECT event_store.projection_state('my fold', '1');
SELECT count(event_store.drop_projection(name)) FROM event_store.projections;
-- a search_path that has temporary tables at its head hides nothing either
CREATE TABLE shadowed (position bigint);
SET search_path = pg_temp, public, "$user";
SELECT event_store.create_projection('shadowed', 'set', 'INSERT INTO shadowed SELECT position FROM new_events');
CREATE TEMPORARY TABLE shadowed (position bigint);
SELECT event_store.refresh_projection('shadowed', 3);
RESET search_path;
SELECT (SELECT count(*) FROM pg_temp.shadowed), (SELECT count(*) FROM public.shadowed);
DROP TABLE pg_temp.shadowed, public.shadowed;
SELECT event_store.drop_projection('shadowed');
DROP OWNED BY regress_event_store_refresher;
DROP ROLE regress_event_store_refresher;
SET client_min_messages = warning;
DROP EXTENSION event_store CASCADE;
DROP FUNCTION later, outcome;
DROP TABLE target;
CREATE EXTENSION event_store;
