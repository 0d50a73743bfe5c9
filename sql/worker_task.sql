-- The worker's tasks, run by hand, and what guards them
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;

SELECT name, command, run_every, enabled, built_in, runs, failures FROM event_store.worker_tasks ORDER BY name;
-- from here on they are due once
SELECT event_store.set_task(name, '1 day') FROM event_store.builtin_tasks();
-- all are due, and then none is
SELECT event_store.run_tasks();
SELECT event_store.run_tasks();
SELECT name, runs, failures, last_started_at <= last_finished_at AS in_order,
	next_run_at > clock_timestamp() AS due_later FROM event_store.worker_tasks ORDER BY name;

-- a task of one's own; one that fails keeps nobody from running, and leaves nothing
CREATE TABLE done (what text);
SELECT event_store.set_task('good', '1 hour', 'INSERT INTO public.done VALUES (''good''); INSERT INTO public.done VALUES (''twice'')');
SELECT event_store.set_task('bad', '1 hour', 'INSERT INTO public.done VALUES (''bad''); SELECT 1 / 0');
SELECT event_store.set_task('worse', '1 hour', 'no statement at all');
SELECT event_store.set_task('worst', '1 hour', 'COMMIT');
SELECT event_store.set_task('later', '1 hour', 'INSERT INTO public.done VALUES (''later'')', enabled => false);
SELECT event_store.run_tasks();
SELECT * FROM done ORDER BY what;
SELECT name, runs, failures, last_error, last_failed_at IS NOT NULL AS failed
  FROM event_store.worker_tasks WHERE NOT built_in ORDER BY name;
-- altered tasks are due anew; what is not given stays
SELECT event_store.set_task('later', enabled => true);
SELECT event_store.set_task('good', '2 hours');
SELECT name, command, run_every, enabled FROM event_store.worker_tasks WHERE name IN ('good', 'later') ORDER BY name;
SELECT event_store.run_tasks();
SELECT what, count(*) FROM done GROUP BY what ORDER BY what;
-- tasks of the extension can be altered, and set back
SELECT event_store.set_task('prepare segments', '1 day', enabled => false);
SELECT name, command, run_every, enabled, built_in FROM event_store.worker_tasks WHERE built_in ORDER BY name;
SELECT event_store.drop_task('prepare segments'), event_store.drop_task('prepare segments');
SELECT event_store.drop_task('bad'), event_store.drop_task('nothing');
SELECT name, run_every, enabled FROM event_store.worker_tasks ORDER BY name;
-- a task that drops itself
SELECT event_store.set_task('once', '1 hour', 'INSERT INTO public.done VALUES (''once''); SELECT event_store.drop_task(''once'')');
SELECT event_store.run_tasks() > 0;
SELECT count(*) FROM event_store.worker_tasks WHERE name = 'once';
SELECT count(*) FROM done WHERE what = 'once';
-- a task cannot leave anything for those after it: settings, roles, constraints that fail later
CREATE TABLE checked (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
SELECT event_store.set_task('1 path', '1 hour', 'SET search_path = public; SET statement_timeout = ''1 h''');
SELECT event_store.set_task('2 role', '1 hour', 'SET ROLE pg_monitor');
SELECT event_store.set_task('3 deferred', '1 hour', 'INSERT INTO public.checked VALUES (1), (1)');
SELECT event_store.set_task('5 settings', '1 hour', 'INSERT INTO public.done VALUES (current_setting(''search_path'') || '' '' || current_setting(''statement_timeout'') || '' '' || (current_user = session_user))');
SELECT event_store.run_tasks() > 0;
SELECT name, runs, failures, last_error FROM event_store.worker_tasks WHERE name ~ '^[1-5]' ORDER BY name;
SELECT what FROM done WHERE what LIKE 'pg_catalog%';
SELECT event_store.drop_task(name) FROM event_store.worker_tasks WHERE name ~ '^[1-5]';
DROP TABLE checked;
-- nor get the rights of a superuser who runs them
CREATE ROLE regress_event_store_plain;
ALTER TABLE event_store.event OWNER TO regress_event_store_plain;
GRANT USAGE ON SCHEMA event_store TO regress_event_store_plain;
GRANT ALL ON ALL TABLES IN SCHEMA event_store TO regress_event_store_plain;
SELECT event_store.set_task('rise', '1 hour', 'ALTER ROLE regress_event_store_plain SUPERUSER');
SELECT event_store.set_task('back', '1 hour', 'RESET ROLE');
SELECT event_store.run_tasks() > 0;
SELECT name, failures, left(last_error, 5) FROM event_store.worker_tasks WHERE name IN ('rise', 'back') ORDER BY name;
SELECT rolsuper FROM pg_roles WHERE rolname = 'regress_event_store_plain';
SELECT event_store.drop_task('rise'), event_store.drop_task('back');
ALTER TABLE event_store.event OWNER TO CURRENT_USER;
DROP OWNED BY regress_event_store_plain;
DROP ROLE regress_event_store_plain;
-- what was done goes with the transaction
BEGIN;
SELECT event_store.set_task('good', '1 hour');
SELECT event_store.run_tasks() > 0;
SELECT count(*) FROM done WHERE what = 'good';
ROLLBACK;
SELECT count(*) FROM done WHERE what = 'good';

-- guards
SELECT raises('SELECT event_store.set_task(NULL)');
SELECT raises('SELECT event_store.set_task('''')');
SELECT raises('SELECT event_store.set_task(repeat(''x'', 1025), ''1 s'', ''SELECT 1'')');
SELECT raises('SELECT event_store.set_task(''new'')');
SELECT raises('SELECT event_store.set_task(''new'', ''99 ms'', ''SELECT 1'')');
SELECT raises('SELECT event_store.set_task(''new'', ''-1 day'', ''SELECT 1'')');
SELECT raises('SELECT event_store.set_task(''new'', ''-1 month 40 days'', ''SELECT 1'')');
SELECT raises('SELECT event_store.set_task(''new'', ''293000 years'', ''SELECT 1'')');
SELECT raises('SELECT event_store.drop_task(NULL)');
SELECT raises('SELECT event_store.notify_listeners(NULL)');
SELECT raises('SELECT event_store.notify_listeners(-1)');
SELECT raises('SET event_store.notify = loudly');
SELECT event_store.notify_listeners(0), event_store.notify_listeners(5);
BEGIN READ ONLY;
SELECT raises('SELECT event_store.run_tasks()');
SELECT raises('SELECT event_store.set_task(''new'', ''1 s'', ''SELECT 1'')');
SELECT raises('SELECT event_store.drop_task(''good'')');
ROLLBACK;
-- only the owner
CREATE ROLE regress_event_store_user;
GRANT USAGE ON SCHEMA event_store TO regress_event_store_user;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA event_store TO regress_event_store_user;
SET ROLE regress_event_store_user;
SELECT raises(call) FROM unnest(ARRAY['SELECT event_store.run_tasks()', 'SELECT event_store.set_task(''new'', ''1 s'', ''SELECT 1'')',
	'SELECT event_store.drop_task(''good'')', 'SELECT event_store.start_worker()', 'SELECT event_store.stop_worker()',
	'SELECT event_store.notify_listeners(0)', 'SELECT * FROM event_store.worker_tasks', 'INSERT INTO event_store.worker_task VALUES (''x'', ''SELECT 1'', ''1 s'')']) call;
RESET ROLE;
DROP OWNED BY regress_event_store_user;
DROP ROLE regress_event_store_user;
-- the worker works as the owner, who has to be one that may log in
CREATE ROLE regress_event_store_owner;
ALTER TABLE event_store.event OWNER TO regress_event_store_owner;
SELECT raises('SELECT event_store.start_worker()');
ALTER TABLE event_store.event OWNER TO CURRENT_USER;
DROP ROLE regress_event_store_owner;
SELECT event_store.stop_worker();
-- who has just made the store has to commit first
BEGIN;
DROP EXTENSION event_store;
CREATE EXTENSION event_store;
SELECT raises('SELECT event_store.start_worker()');
ROLLBACK;
DROP TABLE done;
