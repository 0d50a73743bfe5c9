-- ---------------------------------------------------------------------------
-- worker: the background worker and its tasks
-- ---------------------------------------------------------------------------

-- What was set or added: tasks of the extension have no row here while they are
-- as the extension made them.
CREATE TABLE event_store.worker_task (
	name		text COLLATE "C" NOT NULL,
	command		text,
	run_every	interval NOT NULL CHECK (run_every BETWEEN '100 milliseconds' AND '10 years'),
	enabled		boolean NOT NULL DEFAULT true,
	CONSTRAINT worker_task_pkey PRIMARY KEY (name)
);
ALTER TABLE event_store.worker_task OWNER TO @extowner@;
COMMENT ON TABLE event_store.worker_task IS 'tasks of the worker that were added, or set otherwise than the extension has them: see set_task()';
COMMENT ON COLUMN event_store.worker_task.name IS 'the task''s name';
COMMENT ON COLUMN event_store.worker_task.command IS 'the SQL command; NULL: that of the extension''s task of this name';
COMMENT ON COLUMN event_store.worker_task.run_every IS 'how long after a run the next is due';
COMMENT ON COLUMN event_store.worker_task.enabled IS 'whether it is run at all';
SELECT pg_extension_config_dump('event_store.worker_task', '');

CREATE TABLE event_store.worker_task_run (
	name				text COLLATE "C" NOT NULL,
	last_started_at		timestamptz,
	last_finished_at	timestamptz,
	runs				bigint NOT NULL DEFAULT 0,
	failures			bigint NOT NULL DEFAULT 0,
	last_failed_at		timestamptz,
	last_error			text,
	next_run_at			timestamptz,
	CONSTRAINT worker_task_run_pkey PRIMARY KEY (name)
) WITH (fillfactor = 50);
ALTER TABLE event_store.worker_task_run OWNER TO @extowner@;
COMMENT ON TABLE event_store.worker_task_run IS 'what became of the tasks'' runs; those of the extension''s tasks where the worker found nothing to do are written down with the next one that did something';
COMMENT ON COLUMN event_store.worker_task_run.name IS 'the task''s name';
COMMENT ON COLUMN event_store.worker_task_run.last_started_at IS 'when the last run began that is written down';
COMMENT ON COLUMN event_store.worker_task_run.last_finished_at IS 'when it ended';
COMMENT ON COLUMN event_store.worker_task_run.runs IS 'runs up to then';
COMMENT ON COLUMN event_store.worker_task_run.failures IS 'runs that ended with an error';
COMMENT ON COLUMN event_store.worker_task_run.last_failed_at IS 'when the last of those ended';
COMMENT ON COLUMN event_store.worker_task_run.last_error IS 'SQLSTATE and message of the last error';
COMMENT ON COLUMN event_store.worker_task_run.next_run_at IS 'when the next run was due then; NULL: at once';
SELECT pg_extension_config_dump('event_store.worker_task_run', '');

CREATE FUNCTION event_store.builtin_tasks(OUT name text, OUT command text, OUT run_every interval)
RETURNS SETOF record
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 6
BEGIN ATOMIC
	VALUES
		('deal to consumers', 'SELECT event_store.deal_subscriptions()', '1 second'::interval),
		('prepare segments', 'SELECT event_store.prepare_segments()', '10 seconds'::interval),
		('publish settled position', 'SELECT event_store.publish_settled_position()', '1 second'::interval),
		('refresh projections', 'SELECT event_store.refresh_projections(''1 second'')', '1 second'::interval),
		('rotate inbox', 'SELECT event_store.rotate_inbox()', '10 seconds'::interval),
		('take snapshots', 'SELECT event_store.take_snapshots()', '2 seconds'::interval),
		('tend outbox', 'SELECT event_store.tend_outbox()', '1 second'::interval);
END;
COMMENT ON FUNCTION event_store.builtin_tasks() IS
'builtin_tasks() -> setof (name, command, run_every): the tasks that the extension brings along';

CREATE VIEW event_store.worker_tasks AS
	SELECT coalesce(t.name, b.name) AS name,
		   coalesce(t.command, b.command) AS command,
		   coalesce(t.run_every, b.run_every) AS run_every,
		   coalesce(t.enabled, true) AS enabled,
		   b.name IS NOT NULL AS built_in,
		   coalesce(r.runs, 0) AS runs,
		   coalesce(r.failures, 0) AS failures,
		   r.last_started_at,
		   r.last_finished_at,
		   r.last_failed_at,
		   r.last_error,
		   r.next_run_at
	  FROM event_store.builtin_tasks() AS b
	  FULL JOIN event_store.worker_task AS t ON t.name = b.name
	  LEFT JOIN event_store.worker_task_run AS r ON r.name = coalesce(t.name, b.name)
	 WHERE coalesce(t.command, b.command) IS NOT NULL;
ALTER VIEW event_store.worker_tasks OWNER TO @extowner@;
COMMENT ON VIEW event_store.worker_tasks IS 'the tasks of the worker, and what became of their runs. run_tasks() runs those that are due as well. A run of a built-in task in which the worker found nothing to do shows only with the next one that did something: an idle worker writes nothing.';
COMMENT ON COLUMN event_store.worker_tasks.name IS 'the task''s name';
COMMENT ON COLUMN event_store.worker_tasks.command IS 'the SQL command';
COMMENT ON COLUMN event_store.worker_tasks.run_every IS 'how long after a run the next is due';
COMMENT ON COLUMN event_store.worker_tasks.enabled IS 'whether it is run at all';
COMMENT ON COLUMN event_store.worker_tasks.built_in IS 'whether the extension brings it along';
COMMENT ON COLUMN event_store.worker_tasks.runs IS 'runs up to then';
COMMENT ON COLUMN event_store.worker_tasks.failures IS 'runs that ended with an error';
COMMENT ON COLUMN event_store.worker_tasks.last_started_at IS 'when the last run began that is written down';
COMMENT ON COLUMN event_store.worker_tasks.last_finished_at IS 'when it ended';
COMMENT ON COLUMN event_store.worker_tasks.last_failed_at IS 'when the last run that failed ended';
COMMENT ON COLUMN event_store.worker_tasks.last_error IS 'SQLSTATE and message of the last error';
COMMENT ON COLUMN event_store.worker_tasks.next_run_at IS 'when the next run was due then; NULL: at once';

CREATE FUNCTION event_store.set_task(
	name text,
	run_every interval DEFAULT NULL,
	command text DEFAULT NULL,
	enabled boolean DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_set_task';
REVOKE ALL ON FUNCTION event_store.set_task(text, interval, text, boolean) FROM PUBLIC;
ALTER FUNCTION event_store.set_task(text, interval, text, boolean) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.set_task(text, interval, text, boolean) IS
'set_task(name, run_every = NULL, command = NULL, enabled = NULL) -> void: adds a task to those of the worker, or alters one; NULL leaves as it is, and is 1 minute and enabled for a task that is new. run_every: 100 ms to 10 years after the end of a run. command: one or more SQL statements, which the worker runs as the owner of the store, in one transaction, with search_path pg_catalog. Only the owner may. Raises VE002 for an invalid argument, or a new task without a command.';

CREATE FUNCTION event_store.drop_task(name text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_drop_task';
REVOKE ALL ON FUNCTION event_store.drop_task(text) FROM PUBLIC;
ALTER FUNCTION event_store.drop_task(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.drop_task(text) IS
'drop_task(name) -> boolean: removes a task that was added, with its history, and sets one of the extension back to how that has it; whether there was anything to remove. Only the owner may. Raises VE002 for NULL.';

CREATE FUNCTION event_store.run_tasks() RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_run_tasks';
REVOKE ALL ON FUNCTION event_store.run_tasks() FROM PUBLIC;
ALTER FUNCTION event_store.run_tasks() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.run_tasks() IS
'run_tasks() -> int: runs the tasks that are due and that nobody else is running, as the worker does, as the owner of the store, but all in the caller''s transaction; returns how many. A task that fails is rolled back, logged and counted (worker_tasks), and does not keep the others from running. For those who have a scheduler but no worker. Only the owner may. Raises 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.start_worker() RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_start_worker';
REVOKE ALL ON FUNCTION event_store.start_worker() FROM PUBLIC;
ALTER FUNCTION event_store.start_worker() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.start_worker() IS
'start_worker() -> boolean: starts the background worker of this database, and returns when it is at work: true, or false if there was one. It works as the owner of the store, survives errors, but not a restart of the server: for that see event_store.worker_databases. Only the owner may. Raises VE007 if no worker can be had.';

CREATE FUNCTION event_store.stop_worker() RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_stop_worker';
REVOKE ALL ON FUNCTION event_store.stop_worker() FROM PUBLIC;
ALTER FUNCTION event_store.stop_worker() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.stop_worker() IS
'stop_worker() -> boolean: ends the background worker of this database, and returns when it has gone: true, or false if there was none. Where event_store.worker_databases names the database, the launcher starts another one soon. Only the owner may. Raises VE007 if it cannot be reached.';
