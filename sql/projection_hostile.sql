-- Projections among those who mean no good, and those who have no luck
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(64);
SELECT count(event_store.append('x-' || (n % 3), 'T', jsonb_build_object('n', n))) FROM generate_series(1, 60) n;

-- a temporary table of the caller's does not stand in for one that is missing, nor do its triggers run
CREATE TABLE missing (p bigint);
CREATE FUNCTION into_missing(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO missing VALUES (e.position); END$$;
CREATE FUNCTION from_missing(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(count(*)) FROM missing$$;
CREATE FUNCTION missing_key(p bigint) RETURNS text LANGUAGE plpgsql STABLE AS $$BEGIN RETURN (SELECT count(*) FROM missing); END$$;
SELECT event_store.create_projection('set', 'set', 'INSERT INTO missing SELECT position FROM new_events', on_error => 'skip', max_attempts => 1, first_delay => '0');
SELECT event_store.create_projection('event', 'event', 'into_missing', on_error => 'skip', max_attempts => 1, first_delay => '0');
SELECT event_store.create_projection('fold', 'fold', 'from_missing', on_error => 'skip', max_attempts => 1, first_delay => '0');
SELECT event_store.create_projection('key', 'fold', 'count', key => 'missing_key(position)', on_error => 'skip', max_attempts => 1, first_delay => '0');
SELECT name, event_store.refresh_projection(name, 10) FROM event_store.projections ORDER BY name;
DROP TABLE missing;
CREATE TEMPORARY TABLE missing (p bigint);
CREATE TEMPORARY TABLE caught (who text);
CREATE FUNCTION pg_temp.catch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE WARNING 'caught %', current_user; INSERT INTO pg_temp.caught VALUES (current_user); RETURN NEW; END$$;
CREATE TRIGGER catch BEFORE INSERT ON missing FOR EACH ROW EXECUTE FUNCTION pg_temp.catch();
SET client_min_messages = error;
SELECT name, event_store.refresh_projection(name) FROM event_store.projections ORDER BY name;
RESET client_min_messages;
SELECT (SELECT count(*) FROM missing), (SELECT count(*) FROM caught);
SELECT name, status, applied, skipped, failed_position, sql_state, message FROM event_store.projections ORDER BY name;
-- inline: the append is refused
SELECT raises($$SELECT event_store.create_projection('inline', 'event', 'into_missing', 'inline', start_after => NULL)$$);
SELECT raises($$SELECT event_store.append('x-1', 'T', '{}')$$);
SELECT event_store.drop_projection('inline');
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
DROP TABLE missing, caught;
CREATE TABLE missing (p bigint);
SELECT count(event_store.resume_projection(name)) FROM event_store.projections;
SELECT event_store.refresh_projections();
SELECT name, status, applied, skipped FROM event_store.projections ORDER BY name;
-- those of a session do not matter otherwise
CREATE TEMPORARY TABLE new_events (position bigint);
CREATE TEMPORARY TABLE missing (p bigint);
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
SELECT event_store.refresh_projections();
SELECT (SELECT count(*) FROM pg_temp.missing), (SELECT count(*) FROM public.missing);
DROP TABLE pg_temp.missing, pg_temp.new_events;
SELECT count(event_store.drop_projection(name)) FROM event_store.projections;

-- errors of each class: those that pass by themselves, those of the caller, the rest the event's
CREATE FUNCTION fails(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.position = 5 THEN RAISE EXCEPTION 'as told' USING ERRCODE = current_setting('regress.state'); END IF;
END $$;
CREATE FUNCTION how(state text, policy text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	_how text;
BEGIN
	PERFORM set_config('client_min_messages', 'error', true), set_config('regress.state', state, true);
	PERFORM event_store.create_projection('fails', 'event', 'fails', on_error => policy, max_attempts => 1, batch_events => 8);
	BEGIN
		PERFORM event_store.refresh_projection('fails');
		SELECT concat_ws(', ', status, 'at ' || failed_position, applied || ' applied', nullif(skipped, 0) || ' skipped') INTO STRICT _how FROM event_store.projections WHERE name = 'fails';
	EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
		_how := 'raised ' || SQLSTATE;
	END;
	PERFORM event_store.drop_projection('fails');
	RETURN _how;
END $$;
SELECT how(state, 'stop') AS stop, how(state, 'skip') AS skip, string_agg(state, ' ' ORDER BY state COLLATE "C")
  FROM unnest(ARRAY['08006', '0A000', '0L000', '21000', '22012', '22023', '22P02', '23502', '23505', '23514', '25006', '25P02', '26000', '28000', '2BP01', '34000', '38001', '39004', '3B001', '3D000', '3F000',
	'40001', '40003', '40P01', '42501', '42601', '42703', '42883', '42P01', '44000', '53000', '53100', '53200', '53300', '54000', '54001', '55000', '55006', '55P03', '57014', '57P01', '57P03', '58000', '58030',
	'72000', 'F0000', 'HV000', 'P0000', 'P0001', 'P0002', 'P0003', 'P0004', 'XX000', 'XX001', 'XX002', 'VE001', 'VE002', 'VE004', 'VE006', 'VE010', 'VE012', 'ZZZZZ']) AS state
 GROUP BY 1, 2 ORDER BY 1, 2;
SELECT how('40001', 'stop') FROM (SELECT) x;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT how('40001', 'stop'), how('40P01', 'skip');
ROLLBACK;

-- a function that is made anew with another result, or for another event type
CREATE FUNCTION turns(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(coalesce(state::int, 0) + 1)$$;
SELECT event_store.create_projection('turns', 'fold', 'turns', key => '1', first_delay => '0');
SELECT event_store.refresh_projection('turns', 10);
DROP FUNCTION turns;
CREATE FUNCTION turns(state jsonb, e event_store.recorded_event) RETURNS json LANGUAGE sql AS $$SELECT '1'::json$$;
SELECT event_store.refresh_projection('turns', 10);
DROP FUNCTION turns;
CREATE FUNCTION turns(state jsonb, e event_store.recorded_event) RETURNS SETOF jsonb LANGUAGE sql AS $$SELECT to_jsonb(1)$$;
SELECT event_store.refresh_projection('turns', 10);
DROP FUNCTION turns;
CREATE PROCEDURE turns(state jsonb, e event_store.recorded_event) LANGUAGE sql AS $$SELECT 1$$;
SELECT event_store.refresh_projection('turns', 10);
DROP PROCEDURE turns;
CREATE FUNCTION turns(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(coalesce(state::int, 0) + 100)$$;
SELECT event_store.refresh_projection('turns', 10);
SELECT event_store.projection_state('turns', '1');
SELECT status, applied, sql_state FROM event_store.projections;
SELECT event_store.drop_projection('turns');

-- the handler of a rebuild cannot end it
CREATE TABLE ended (p bigint);
CREATE FUNCTION ends(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO ended VALUES (e.position);
	IF event_store.is_replaying() THEN EXECUTE current_setting('regress.do'); END IF;
END $$;
SELECT event_store.create_projection('ends', 'event', 'ends', tables => '{ended}', max_attempts => 1);
SELECT event_store.refresh_projection('ends') > 0 AS applied;
SELECT event_store.rebuild_projection('ends');
CREATE FUNCTION outcome_of(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM set_config('client_min_messages', 'error', true), set_config('regress.do', command, true);
	PERFORM event_store.resume_projection('ends (new)');
	PERFORM event_store.refresh_projection('ends');
	RETURN (SELECT concat_ws(', ', status, message) FROM event_store.projections WHERE name = 'ends (new)');
END $$;
SELECT command, outcome_of(command)
  FROM unnest(ARRAY['SELECT event_store.cancel_rebuild(''ends'')', 'SELECT event_store.drop_projection(''ends'')', 'SELECT event_store.drop_projection(''ends (new)'')', 'SELECT event_store.finish_rebuild(''ends'')',
	'SELECT event_store.rebuild_projection(''ends'')', 'SELECT event_store.pause_projection(''ends (new)'')', 'DROP TABLE ended', 'ALTER TABLE ended ADD x int']) command;
SELECT name, status, message FROM event_store.projections ORDER BY name;
SELECT count(*) = (SELECT count(*) FROM event_store.events) AS all FROM ended;
SELECT event_store.cancel_rebuild('ends');

-- names that a rebuild wants; what was in service stands still; a table of two
SELECT event_store.create_projection('ends (new)', 'fold', 'count');
SELECT event_store.rebuild_projection('ends');
SELECT event_store.drop_projection('ends (new)');
SELECT event_store.create_projection('ends (old)', 'fold', 'count');
SELECT event_store.rebuild_projection('ends');
-- which is a name like any other
SELECT event_store.pause_projection('ends (old)'), event_store.resume_projection('ends (old)');
SELECT event_store.rebuild_projection('ends (old)', keep_old => true);
SELECT event_store.refresh_projection('ends (old)') > 0 AS applied;
SELECT event_store.refresh_projection('ends (old)');
SELECT name, status FROM event_store.projections ORDER BY name;
SELECT raises($$SELECT event_store.resume_projection('ends (old) (old)')$$), raises($$SELECT event_store.pause_projection('ends (old) (old)')$$);
SELECT event_store.revert_rebuild('ends (old)');
SELECT event_store.refresh_projection('ends (old)');
SELECT name, status FROM event_store.projections ORDER BY name;
SELECT event_store.drop_projection('ends (old)');
SELECT event_store.create_projection('shares', 'set', 'INSERT INTO ended SELECT -position FROM new_events', tables => '{ended}');
SELECT event_store.rebuild_projection('ends');
SELECT event_store.drop_projection('shares');
SELECT event_store.alter_projection('ends', handler => 'into_missing');
SELECT event_store.drop_projection('ends');

-- slow statements do not keep the rest waiting: a batch is made as large as its pace allows, where time counts
SELECT event_store.create_projection('slow', 'set', 'SELECT pg_sleep(0.002) FROM new_events', categories => '{slow}');
INSERT INTO event_store.events (stream, type, data) SELECT 'slow-1', 't', '1' FROM generate_series(1, 150);
SELECT event_store.refresh_projection('slow');
INSERT INTO event_store.events (stream, type, data) SELECT 'slow-1', 't', '1' FROM generate_series(1, 300);
-- on a machine that is busy the time may be over before anything is done
DO $$
BEGIN
	FOR i IN 1 .. 1000 LOOP
		EXIT WHEN NOT event_store.refresh_projections('10 ms')
			OR (SELECT applied > 150 FROM event_store.projections);
	END LOOP;
END $$;
SELECT applied > 150 AND applied < 450 AS some FROM event_store.projections;
SELECT event_store.refresh_projection('slow') + (SELECT applied - 150 FROM event_store.projections) AS applied;
SELECT event_store.drop_projection('slow');

-- types and categories with all that quoting knows
SELECT count(event_store.append('o''d"d{,}\-1', t, '{"n": 1}')) FROM unnest(ARRAY['a''b', 'a"b', '{a,b}', 'a\b', 'NULL', ' a ', '$1']) t;
SELECT event_store.create_projection('odd', 'fold', 'count', categories => ARRAY['o''d"d{,}\'], types => ARRAY['a''b', 'a"b', '{a,b}', 'a\b', 'NULL', ' a ', '$1'], key => 'type');
SELECT event_store.refresh_projection('odd');
SELECT string_agg(key || '=' || state, ' ' ORDER BY key) FROM event_store.projection_states;
SELECT event_store.drop_projection('odd');
SET client_min_messages = warning;
DROP EXTENSION event_store CASCADE;
DROP TABLE missing, ended;
DROP FUNCTION missing_key(bigint), how(text, text), outcome_of(text);
CREATE EXTENSION event_store;
