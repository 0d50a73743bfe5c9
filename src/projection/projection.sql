-- ---------------------------------------------------------------------------
-- projection: read models that are kept up to date
-- ---------------------------------------------------------------------------

CREATE SEQUENCE event_store.projection_id AS int;
ALTER SEQUENCE event_store.projection_id OWNER TO @extowner@;
COMMENT ON SEQUENCE event_store.projection_id IS 'ids of projections';
SELECT pg_extension_config_dump('event_store.projection_id', '');

CREATE SEQUENCE event_store.projection_revision;
ALTER SEQUENCE event_store.projection_revision OWNER TO @extowner@;
COMMENT ON SEQUENCE event_store.projection_revision IS 'revisions of projections: each is used once, even if its transaction rolls back';
SELECT pg_extension_config_dump('event_store.projection_revision', '');

CREATE TABLE event_store.projection (
	id				int NOT NULL DEFAULT nextval('event_store.projection_id'),
	revision		bigint NOT NULL DEFAULT nextval('event_store.projection_revision'),
	name			text COLLATE "C" NOT NULL,
	kind			text NOT NULL,
	mode			text NOT NULL,
	handler			text NOT NULL,
	key				text,
	categories		text[],
	types			text[],
	owner			text NOT NULL,
	owner_id		oid NOT NULL,
	cluster_id		bigint NOT NULL,
	search_path		text NOT NULL,
	time_zone		text NOT NULL,
	paused			boolean NOT NULL DEFAULT false,
	batch_events	int NOT NULL,
	batch_size		int NOT NULL,
	refresh_every	interval NOT NULL,
	on_error		text NOT NULL,
	max_attempts	int NOT NULL,
	first_delay		interval NOT NULL,
	delay_factor	float8 NOT NULL,
	max_delay		interval NOT NULL,
	tables			text[],
	rebuilds		int,
	keep_old		boolean NOT NULL DEFAULT false,
	since			bigint,
	start_after		bigint NOT NULL,
	created_at		timestamptz NOT NULL DEFAULT now(),
	CONSTRAINT projection_pkey PRIMARY KEY (id),
	CONSTRAINT projection_name_key UNIQUE (name),
	CONSTRAINT projection_rebuilds_key UNIQUE (rebuilds)
);
ALTER TABLE event_store.projection OWNER TO @extowner@;
COMMENT ON TABLE event_store.projection IS 'read models: what they are made of, and how; see the view projections';
COMMENT ON COLUMN event_store.projection.id IS 'what the tables of projections carry in place of the name';
COMMENT ON COLUMN event_store.projection.revision IS 'another one after each change of the row';
COMMENT ON COLUMN event_store.projection.name IS 'the projection''s name';
COMMENT ON COLUMN event_store.projection.kind IS 'what the handler is: set, event, fold, matview';
COMMENT ON COLUMN event_store.projection.mode IS 'when it runs: async, inline, live';
COMMENT ON COLUMN event_store.projection.handler IS 'SQL statements over new_events; or the name of a function, of a built-in fold, of a materialized view';
COMMENT ON COLUMN event_store.projection.key IS 'of a fold: the expression over an event that gives the key of its state; NULL: the stream';
COMMENT ON COLUMN event_store.projection.categories IS 'categories that it reads; NULL: all';
COMMENT ON COLUMN event_store.projection.types IS 'types that it reads; NULL: all';
COMMENT ON COLUMN event_store.projection.owner IS 'the role that the handler runs as: who created it';
COMMENT ON COLUMN event_store.projection.owner_id IS 'that role''s oid, which no role that gets its name later has';
COMMENT ON COLUMN event_store.projection.cluster_id IS 'in this cluster: pg_control_system().system_identifier; in another one the name counts';
COMMENT ON COLUMN event_store.projection.search_path IS 'and the search_path that it has';
COMMENT ON COLUMN event_store.projection.time_zone IS 'and the time zone';
COMMENT ON COLUMN event_store.projection.paused IS 'whether refreshes do nothing';
COMMENT ON COLUMN event_store.projection.batch_events IS 'events that are applied at once, at most';
COMMENT ON COLUMN event_store.projection.batch_size IS 'and kilobytes of events, or of states, after which a batch ends';
COMMENT ON COLUMN event_store.projection.refresh_every IS 'between two refreshes of a materialized view, at least';
COMMENT ON COLUMN event_store.projection.on_error IS 'what becomes of an event that has failed for good: stop, the projection stops before it; skip, it is passed over';
COMMENT ON COLUMN event_store.projection.max_attempts IS 'after so many failed attempts it has';
COMMENT ON COLUMN event_store.projection.first_delay IS 'from the first failure to the second attempt';
COMMENT ON COLUMN event_store.projection.delay_factor IS 'by which the delay grows with each failure';
COMMENT ON COLUMN event_store.projection.max_delay IS 'to which it grows';
COMMENT ON COLUMN event_store.projection.tables IS 'the tables that its handler writes, for a rebuild; NULL: not known';
COMMENT ON COLUMN event_store.projection.rebuilds IS 'id of the projection that it is a rebuild of, or that has replaced it; NULL: it is in service';
COMMENT ON COLUMN event_store.projection.keep_old IS 'of a rebuild: whether that one is kept afterwards';
COMMENT ON COLUMN event_store.projection.since IS 'id of the transaction in which a rebuild had caught up, or one that was in service was replaced; NULL: neither';
COMMENT ON COLUMN event_store.projection.start_after IS 'the position after which it began';
COMMENT ON COLUMN event_store.projection.created_at IS 'when it was created';
SELECT pg_extension_config_dump('event_store.projection', '');

CREATE TABLE event_store.projection_checkpoint (
	projection_id	int NOT NULL,
	version			bigint NOT NULL,
	position		bigint NOT NULL,
	applied			bigint NOT NULL,
	applied_at		timestamptz NOT NULL,
	rate			float8 NOT NULL,
	rate_since		timestamptz NOT NULL,
	CONSTRAINT projection_checkpoint_pkey PRIMARY KEY (projection_id, version)
);
ALTER TABLE event_store.projection_checkpoint OWNER TO @extowner@;
COMMENT ON TABLE event_store.projection_checkpoint IS 'how far projections have come; a row is never altered, the last version of each counts';
COMMENT ON COLUMN event_store.projection_checkpoint.projection_id IS 'event_store.projection.id';
COMMENT ON COLUMN event_store.projection_checkpoint.version IS 'rises with each change; rows of earlier ones are deleted now and then';
COMMENT ON COLUMN event_store.projection_checkpoint.position IS 'all events up to here have been applied, or passed over';
COMMENT ON COLUMN event_store.projection_checkpoint.applied IS 'how many so far';
COMMENT ON COLUMN event_store.projection_checkpoint.applied_at IS 'when the last were';
COMMENT ON COLUMN event_store.projection_checkpoint.rate IS 'how many a second about then, each time weighed by exp(-age / 1 min): the share of all weights since rate_since has to be divided out';
COMMENT ON COLUMN event_store.projection_checkpoint.rate_since IS 'since when they are counted; of a rebuild moved on by the times when nobody works at it';
SELECT pg_extension_config_dump('event_store.projection_checkpoint', '');

CREATE TABLE event_store.projection_error (
	projection_id	int NOT NULL,
	position		bigint NOT NULL,
	stopped			boolean NOT NULL,
	attempts		int NOT NULL,
	sql_state		text NOT NULL,
	message			text,
	detail			text,
	context			text,
	first_failed_at	timestamptz NOT NULL,
	failed_at		timestamptz NOT NULL,
	next_attempt_at	timestamptz,
	CONSTRAINT projection_error_pkey PRIMARY KEY (projection_id)
) WITH (fillfactor = 50);
ALTER TABLE event_store.projection_error OWNER TO @extowner@;
COMMENT ON TABLE event_store.projection_error IS 'what keeps projections from going on';
COMMENT ON COLUMN event_store.projection_error.projection_id IS 'event_store.projection.id';
COMMENT ON COLUMN event_store.projection_error.position IS 'of the event that fails; 0: no event is to blame';
COMMENT ON COLUMN event_store.projection_error.stopped IS 'whether it has failed for good';
COMMENT ON COLUMN event_store.projection_error.attempts IS 'attempts so far';
COMMENT ON COLUMN event_store.projection_error.sql_state IS 'SQLSTATE of the last error';
COMMENT ON COLUMN event_store.projection_error.message IS 'its message';
COMMENT ON COLUMN event_store.projection_error.detail IS 'its detail';
COMMENT ON COLUMN event_store.projection_error.context IS 'its context';
COMMENT ON COLUMN event_store.projection_error.first_failed_at IS 'when it failed first';
COMMENT ON COLUMN event_store.projection_error.failed_at IS 'when it failed last';
COMMENT ON COLUMN event_store.projection_error.next_attempt_at IS 'when it is tried again; NULL: not by itself';
SELECT pg_extension_config_dump('event_store.projection_error', '');

CREATE TABLE event_store.projection_failure (
	projection_id	int NOT NULL,
	position		bigint NOT NULL,
	attempts		int NOT NULL,
	sql_state		text NOT NULL,
	message			text,
	detail			text,
	context			text,
	failed_at		timestamptz NOT NULL,
	CONSTRAINT projection_failure_pkey PRIMARY KEY (projection_id, position)
);
ALTER TABLE event_store.projection_failure OWNER TO @extowner@;
COMMENT ON TABLE event_store.projection_failure IS 'events that projections have passed over: their dead letters';
COMMENT ON COLUMN event_store.projection_failure.projection_id IS 'event_store.projection.id';
COMMENT ON COLUMN event_store.projection_failure.position IS 'of the event';
COMMENT ON COLUMN event_store.projection_failure.attempts IS 'attempts that failed';
COMMENT ON COLUMN event_store.projection_failure.sql_state IS 'SQLSTATE of the last error';
COMMENT ON COLUMN event_store.projection_failure.message IS 'its message';
COMMENT ON COLUMN event_store.projection_failure.detail IS 'its detail';
COMMENT ON COLUMN event_store.projection_failure.context IS 'its context';
COMMENT ON COLUMN event_store.projection_failure.failed_at IS 'when it failed last';
SELECT pg_extension_config_dump('event_store.projection_failure', '');

-- A partition for each fold that stores states: projection_state_<id>, with a
-- primary key of its own.  One of the parent would be made for a partition as
-- it is attached, and pg_restore would fail to make it once more.
CREATE TABLE event_store.projection_state (
	projection_id	int NOT NULL,
	key				text COLLATE "C" NOT NULL,
	state			jsonb,
	version			int NOT NULL,
	position		bigint NOT NULL
) PARTITION BY LIST (projection_id);
ALTER TABLE event_store.projection_state OWNER TO @extowner@;
COMMENT ON TABLE event_store.projection_state IS 'the states of folds, a partition for each projection; see the view projection_states';
COMMENT ON COLUMN event_store.projection_state.projection_id IS 'event_store.projection.id';
COMMENT ON COLUMN event_store.projection_state.key IS 'the stream, or the value of the projection''s key';
COMMENT ON COLUMN event_store.projection_state.state IS 'the state';
COMMENT ON COLUMN event_store.projection_state.version IS 'version of the last event of it in its stream';
COMMENT ON COLUMN event_store.projection_state.position IS 'position of that event';
SELECT pg_extension_config_dump('event_store.projection_state', '');

CREATE FUNCTION event_store.create_projection(
	name text,
	kind text,
	handler text,
	mode text DEFAULT 'async',
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL,
	key text DEFAULT NULL,
	start_after bigint DEFAULT 0,
	on_error text DEFAULT 'stop',
	max_attempts int DEFAULT 5,
	first_delay interval DEFAULT '1 s',
	delay_factor float8 DEFAULT 2,
	max_delay interval DEFAULT '5 min',
	batch_events int DEFAULT 10000,
	batch_size int DEFAULT 16384,
	refresh_every interval DEFAULT '0 s',
	tables text[] DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_create_projection';
REVOKE ALL ON FUNCTION event_store.create_projection(text, text, text, text, text[], text[], text, bigint, text, int, interval, float8, interval, int, int, interval, text[]) FROM PUBLIC;
ALTER FUNCTION event_store.create_projection(text, text, text, text, text[], text[], text, bigint, text, int, interval, float8, interval, int, int, interval, text[]) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.create_projection(text, text, text, text, text[], text[], text, bigint, text, int, interval, float8, interval, int, int, interval, text[]) IS
'create_projection(name, kind, handler, mode = async, categories = NULL, types = NULL, key = NULL, start_after = 0, on_error = stop, max_attempts = 5, first_delay = 1 s, delay_factor = 2, max_delay = 5 min, batch_events = 10000, batch_size = 16384 kB, refresh_every = 0 s, tables = NULL) -> bigint: makes a read model that is kept up to date with the events of some categories and types (NULL: all); returns where it begins. kind and handler: set, one or more SQL statements that see a batch of events as the relation new_events, with the columns of recorded_event; event, the name of a function that takes a recorded_event, and is called for each; fold, the name of a function f(state jsonb, event recorded_event) returning jsonb, or a built-in fold, whose states the extension stores by stream, or by key, an SQL expression over the columns of an event (NULL: the event has none); matview, the name of a materialized view, which is refreshed when there are such events, CONCURRENTLY if it can be, at most once per refresh_every. mode: async, by refresh_projection() or the worker, in batches of at most batch_events events and about batch_size kilobytes; inline, in the transaction that appends, after all that is there has been applied in this one, for which appends wait, what a handler appends being applied after all that came before it (only the owner of the store may, in READ COMMITTED, in a transaction that has not appended; not for a matview); live, at each projection_state() (only for a fold). Effect and checkpoint commit together. The handler runs as the role that calls this, with its search_path and time zone (DateStyle and the like are as they are by default), in a restricted context (no temporary tables, neither its own nor those of the session that refreshes or appends: pg_temp comes last in its search_path, and what is found there is refused; no SET ROLE, no deferred constraints). The owner of the store must have the privileges of that role, for it can make others use them. start_after: the position after which it begins, in each mode; NULL: the settled end. on_error: an event that fails is tried again, up to max_attempts times, after first_delay, which grows by delay_factor to max_delay; then the projection stops, or skips it (see projection_failures). tables: the tables that a handler of kind set or event writes, which rebuild_projection() has to know; it must own them, and name them without a schema. Needs SELECT on the view events. Raises VE002 for an invalid argument, VE011 if the name is taken, 42883 if there is no such function, and the errors of a handler that cannot be prepared.';

CREATE FUNCTION event_store.alter_projection(
	name text,
	handler text DEFAULT NULL,
	mode text DEFAULT NULL,
	on_error text DEFAULT NULL,
	max_attempts int DEFAULT NULL,
	first_delay interval DEFAULT NULL,
	delay_factor float8 DEFAULT NULL,
	max_delay interval DEFAULT NULL,
	batch_events int DEFAULT NULL,
	batch_size int DEFAULT NULL,
	refresh_every interval DEFAULT NULL,
	tables text[] DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_alter_projection';
REVOKE ALL ON FUNCTION event_store.alter_projection(text, text, text, text, int, interval, float8, interval, int, int, interval, text[]) FROM PUBLIC;
ALTER FUNCTION event_store.alter_projection(text, text, text, text, int, interval, float8, interval, int, int, interval, text[]) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.alter_projection(text, text, text, text, int, interval, float8, interval, int, int, interval, text[]) IS
'alter_projection(name, handler = NULL, mode = NULL, on_error = NULL, max_attempts = NULL, first_delay = NULL, delay_factor = NULL, max_delay = NULL, batch_events = NULL, batch_size = NULL, refresh_every = NULL, tables = NULL) -> void: alters a projection; NULL leaves as it is (an empty array of tables: they are not known). A new handler goes on from the checkpoint: what has been applied stays as it was applied. mode: async or inline, with nothing skipped or repeated; appends wait meanwhile, so let it catch up first; not in a transaction that has appended, and to inline only in READ COMMITTED. One that becomes inline is no longer paused. Waits for who refreshes it. Only its owner, or the owner of the store, may; another handler only its owner. Raises VE002 for an invalid argument, VE010 if there is none of that name, VE012 if it cannot become inline because an event fails.';

CREATE FUNCTION event_store.drop_projection(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_drop_projection';
REVOKE ALL ON FUNCTION event_store.drop_projection(text) FROM PUBLIC;
ALTER FUNCTION event_store.drop_projection(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.drop_projection(text) IS
'drop_projection(name) -> void: drops a projection, its checkpoint, its failures, and the states of a fold; not the tables that its handler wrote. Waits for who refreshes it, but for nobody who reads: states in use are removed later. Only its owner, or the owner of the store, may. Raises VE010 if there is none of that name.';

CREATE FUNCTION event_store.pause_projection(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_pause_projection';
REVOKE ALL ON FUNCTION event_store.pause_projection(text) FROM PUBLIC;
ALTER FUNCTION event_store.pause_projection(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.pause_projection(text) IS
'pause_projection(name) -> void: from now on refreshes of the projection do nothing. Waits for who refreshes it. Only its owner, or the owner of the store, may. Raises VE002 if it is not asynchronous, or was in service before a rebuild, VE010 if there is none of that name.';

CREATE FUNCTION event_store.resume_projection(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_resume_projection';
REVOKE ALL ON FUNCTION event_store.resume_projection(text) FROM PUBLIC;
ALTER FUNCTION event_store.resume_projection(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.resume_projection(text) IS
'resume_projection(name) -> void: ends a pause; a projection that has stopped at an event, or waits to try it again, does so at once, with its attempts counted anew. Only its owner, or the owner of the store, may. Raises VE002 if it is not asynchronous, VE010 if there is none of that name.';

CREATE FUNCTION event_store.rebuild_projection(
	name text,
	handler text DEFAULT NULL,
	keep_old boolean DEFAULT false,
	start_after bigint DEFAULT 0
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_rebuild_projection';
REVOKE ALL ON FUNCTION event_store.rebuild_projection(text, text, boolean, bigint) FROM PUBLIC;
ALTER FUNCTION event_store.rebuild_projection(text, text, boolean, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.rebuild_projection(text, text, boolean, bigint) IS
'rebuild_projection(name, handler = NULL, keep_old = false, start_after = 0) -> void: begins to build a projection anew, from the events after a position, beside the one in service, which goes on; with another handler of its kind, if one is given. The worker, or refresh_projection(), applies the events; when the rebuild has come as far as the one in service it takes its place, in one short transaction, as soon as nobody is in the way: no other transaction has the tables open, or has a snapshot from before it had caught up (it waits 100 ms for them at each refresh; finish_rebuild() as long as it takes). What it builds in are states of its own (fold), or tables like those in service, in a schema event_store_rebuild_<n> that comes first in its search_path (set, event): the tables have to be known (see create_projection), be named by the handler without a schema, and be ordinary ones of the projection''s owner, without foreign keys from or to them, exclusion constraints and invalid indexes, which no other projection writes; their triggers do not work on what a rebuild writes. Then each of them gets the new contents, and keeps its views, grants and triggers. Meanwhile is_replaying() is true for the handler. keep_old: what was in service is kept, and revert_rebuild() can go back to it. See the view projection_rebuilds. Only the owner of the projection, or of the store, may. Raises VE002 if it cannot be rebuilt, VE010 if there is none of that name, VE011 if it is being rebuilt, or the names <name> (new) and <name> (old) are taken.';

CREATE FUNCTION event_store.finish_rebuild(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_finish_rebuild';
REVOKE ALL ON FUNCTION event_store.finish_rebuild(text) FROM PUBLIC;
ALTER FUNCTION event_store.finish_rebuild(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.finish_rebuild(text) IS
'finish_rebuild(name) -> void: applies the events that the rebuild of a projection still lacks, and lets it take its place, in the caller''s transaction, waiting for those who use the tables, or have a snapshot from before it had caught up (of an inline projection: for those who have appended). A rebuild of tables must have caught up in an earlier transaction, or others would see it half built. Only the owner of the projection, or of the store, may. Raises VE010 if there is no such projection, or it is not being rebuilt, VE012 if the rebuild has not caught up, has failed or is paused, or a table has been altered.';

CREATE FUNCTION event_store.revert_rebuild(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_revert_rebuild';
REVOKE ALL ON FUNCTION event_store.revert_rebuild(text) FROM PUBLIC;
ALTER FUNCTION event_store.revert_rebuild(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.revert_rebuild(text) IS
'revert_rebuild(name) -> void: what was in service before a rebuild, and was kept, applies the events that have come since, and takes its place again, like a rebuild. Only the owner of the projection, or of the store, may. Raises VE010 if there is no such projection, or nothing is kept.';

CREATE FUNCTION event_store.cancel_rebuild(name text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_cancel_rebuild';
REVOKE ALL ON FUNCTION event_store.cancel_rebuild(text) FROM PUBLIC;
ALTER FUNCTION event_store.cancel_rebuild(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.cancel_rebuild(text) IS
'cancel_rebuild(name) -> boolean: drops the rebuild of a projection, or what was kept after one; whether there was any. To stop it for a while: pause_projection(''<name> (new)''). Only the owner of the projection, or of the store, may. Raises VE010 if there is none of that name.';

CREATE FUNCTION event_store.refresh_projection(name text, max_count bigint DEFAULT NULL, progress boolean DEFAULT false) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_refresh_projection';
REVOKE ALL ON FUNCTION event_store.refresh_projection(text, bigint, boolean) FROM PUBLIC;
ALTER FUNCTION event_store.refresh_projection(text, bigint, boolean) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.refresh_projection(text, bigint, boolean) IS
'refresh_projection(name, max_count = NULL, progress = false) -> bigint: applies the events behind the checkpoint, to the settled mark, at most max_count (NULL: all), in the caller''s transaction; returns how many. NULL, at once: somebody else is refreshing it. 0: there was nothing, or it is paused, has stopped, waits to try an event again, or is not asynchronous. Then it does the same for the rebuild of the projection, if there is one. progress: each batch is a NOTICE. An event that fails is a WARNING, and stands in the view projections. Needs SELECT on the view events. Raises VE002 for an invalid argument, VE010 if there is none of that name, 40001 in REPEATABLE READ or SERIALIZABLE if it has gone on since the snapshot.';

CREATE PROCEDURE event_store.catch_up_projection(name text, progress boolean DEFAULT false)
LANGUAGE c AS 'MODULE_PATHNAME', 'event_store_catch_up_projection';
REVOKE ALL ON PROCEDURE event_store.catch_up_projection(text, boolean) FROM PUBLIC;
ALTER PROCEDURE event_store.catch_up_projection(text, boolean) OWNER TO @extowner@;
COMMENT ON PROCEDURE event_store.catch_up_projection(text, boolean) IS
'catch_up_projection(name, progress = false): refreshes a projection, and its rebuild if there is one, until there is nothing more to do, and commits after each batch: for many events that is cheaper than one refresh_projection(), and what is done stays done if it is cancelled. progress: each batch is a NOTICE. Outside of transaction blocks only. Needs SELECT on the view events. Raises VE002 for an invalid argument, VE010 if there is none of that name, 55006 if somebody else is refreshing it, 2D000 in a transaction block.';

CREATE FUNCTION event_store.refresh_projections(max_time interval DEFAULT NULL) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_refresh_projections';
REVOKE ALL ON FUNCTION event_store.refresh_projections(interval) FROM PUBLIC;
ALTER FUNCTION event_store.refresh_projections(interval) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.refresh_projections(interval) IS
'refresh_projections(max_time = NULL) -> boolean: refreshes all asynchronous projections that nobody else is refreshing, in the caller''s transaction, for so long in all (NULL: until they are up to date); whether there is more to do. The worker does it all the time. Raises VE002 for a max_time that is not positive.';

CREATE FUNCTION event_store.wait_for_projection(name text, "position" bigint, timeout interval DEFAULT '30 s') RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_wait_for_projection';
ALTER FUNCTION event_store.wait_for_projection(text, bigint, interval) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.wait_for_projection(text, bigint, interval) IS
'wait_for_projection(name, position, timeout = 30 s) -> boolean: waits until a projection has applied all events up to a position, such as append_result.last_position of one''s own committed append: true; false after timeout (NULL: never). It refreshes nothing itself. The next statement sees the effects (in REPEATABLE READ and SERIALIZABLE the next transaction). Inline and live projections are never behind. Called by nothing but SELECT, in READ COMMITTED, it holds no snapshot while it waits. Needs SELECT on the view events. Raises VE002 for an invalid argument, VE010 if there is none of that name, VE012 if it has stopped, 25001 if it would have to wait for the end of its own transaction, which has appended, or refreshes or alters the projection.';

CREATE FUNCTION event_store.projection_state(name text, key text) RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_projection_state';
REVOKE ALL ON FUNCTION event_store.projection_state(text, text) FROM PUBLIC;
ALTER FUNCTION event_store.projection_state(text, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.projection_state(text, text) IS
'projection_state(name, key) -> jsonb: the state of a fold for a stream, or for a value of the projection''s key; NULL: there is none. Of a live fold it is computed now: by stream from that stream, with the caller''s own appends, by another key from all events of the filter up to the settled mark; what its handler raises is raised, whatever on_error. Needs SELECT on the view events. Raises VE002 for NULL or another kind of projection, VE010 if there is none of that name.';

CREATE FUNCTION event_store.projection_as_of(
	name text,
	"time" timestamptz,
	OUT key text,
	OUT state jsonb,
	OUT version int,
	OUT "position" bigint
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1000 AS 'MODULE_PATHNAME', 'event_store_projection_as_of';
REVOKE ALL ON FUNCTION event_store.projection_as_of(text, timestamptz) FROM PUBLIC;
ALTER FUNCTION event_store.projection_as_of(text, timestamptz) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.projection_as_of(text, timestamptz) IS
'projection_as_of(name, time) -> setof (key, state, version, position): the states of a fold as of a time: folded now, from the first event of its filter (behind start_after) to the last that had been recorded then, up to the settled mark, without those that it has passed over (projection_failures); version and position are those of the last event of each key. All states are in memory meanwhile. Of a single stream state_at() is cheaper. Needs SELECT on the view events. Raises VE002 for NULL or another kind of projection, VE010 if there is none of that name.';

CREATE FUNCTION event_store.projection_lag(
	name text,
	max_count bigint DEFAULT 10000,
	OUT open_events bigint,
	OUT oldest_recorded_at timestamptz
) RETURNS record
LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_projection_lag';
ALTER FUNCTION event_store.projection_lag(text, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.projection_lag(text, bigint) IS
'projection_lag(name, max_count = 10000) -> (open_events, oldest_recorded_at): how many events up to the settled mark an asynchronous projection has not applied, counted up to max_count (NULL: all), and when the first of them was recorded. Needs SELECT on the view projections, or on subscriptions or events. Raises VE002 for a max_count that is not positive, VE010 if there is none of that name.';

CREATE FUNCTION event_store.is_replaying() RETURNS boolean
LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'event_store_is_replaying';
COMMENT ON FUNCTION event_store.is_replaying() IS
'is_replaying() -> boolean: whether the caller is the handler of a projection, and the event had been applied before, or will be by the projection in service, so that it should have no effect beyond the read model';

CREATE VIEW event_store.projections AS
	SELECT p.name,
		   p.kind,
		   p.mode,
		   p.handler,
		   p.key,
		   p.categories,
		   p.types,
		   CASE WHEN p.mode <> 'async' THEN 'current'
				WHEN p.rebuilds IS NOT NULL AND p.name LIKE '% (old)' THEN 'kept'
				WHEN p.paused THEN 'paused'
				WHEN e.stopped THEN 'stopped'
				WHEN e.projection_id IS NOT NULL THEN 'retrying'
				ELSE 'running' END AS status,
		   CASE WHEN p.mode = 'async' THEN c.position END AS checkpoint,
		   CASE WHEN p.mode = 'async' THEN greatest(event_store.settled_position() - c.position, 0) END AS positions_behind,
		   CASE WHEN p.mode = 'async' THEN (SELECT l.open_events FROM event_store.projection_lag(p.name) AS l) END AS open_events,
		   CASE WHEN p.mode = 'async' THEN (SELECT statement_timestamp() - l.oldest_recorded_at FROM event_store.projection_lag(p.name, 1) AS l) END AS lag,
		   c.applied,
		   c.applied_at,
		   c.rate * exp(greatest(least(extract(epoch FROM c.applied_at - statement_timestamp())::float8 / 60, 0), -700))
			/ (1 - exp(-greatest(extract(epoch FROM statement_timestamp() - c.rate_since)::float8, 0.001) / 60)) AS rate,
		   nullif(e.position, 0) AS failed_position,
		   e.attempts,
		   e.sql_state,
		   e.message,
		   e.detail,
		   e.context,
		   e.first_failed_at,
		   e.failed_at,
		   e.next_attempt_at,
		   (SELECT count(*) FROM event_store.projection_failure AS f WHERE f.projection_id = p.id) AS skipped,
		   p.on_error,
		   p.max_attempts,
		   p.owner,
		   p.created_at
	  FROM event_store.projection AS p
	  CROSS JOIN LATERAL (SELECT k.* FROM event_store.projection_checkpoint AS k
						   WHERE k.projection_id = p.id ORDER BY k.version DESC LIMIT 1) AS c
	  LEFT JOIN event_store.projection_error AS e ON e.projection_id = p.id;
ALTER VIEW event_store.projections OWNER TO @extowner@;
COMMENT ON VIEW event_store.projections IS 'projections, how far they have come, and what keeps them from going on';
COMMENT ON COLUMN event_store.projections.name IS 'the projection''s name';
COMMENT ON COLUMN event_store.projections.kind IS 'set, event, fold or matview';
COMMENT ON COLUMN event_store.projections.mode IS 'async, inline or live';
COMMENT ON COLUMN event_store.projections.handler IS 'what is run';
COMMENT ON COLUMN event_store.projections.key IS 'of a fold: what gives the key of its states; NULL: the stream';
COMMENT ON COLUMN event_store.projections.categories IS 'categories that it reads; NULL: all';
COMMENT ON COLUMN event_store.projections.types IS 'types that it reads; NULL: all';
COMMENT ON COLUMN event_store.projections.status IS 'running; kept, after a rebuild; paused; retrying, after an error; stopped, by one; current, always: inline and live ones';
COMMENT ON COLUMN event_store.projections.checkpoint IS 'the position up to which all events have been applied; NULL: it has no need of one';
COMMENT ON COLUMN event_store.projections.positions_behind IS 'how far the settled mark is ahead of it: the positions of events of any kind, and those that were never used';
COMMENT ON COLUMN event_store.projections.open_events IS 'events that are not applied, counted up to 10,000; see projection_lag()';
COMMENT ON COLUMN event_store.projections.lag IS 'how long ago the first of them was recorded; NULL: there is none';
COMMENT ON COLUMN event_store.projections.applied IS 'events applied by refreshes so far';
COMMENT ON COLUMN event_store.projections.applied_at IS 'when the last were';
COMMENT ON COLUMN event_store.projections.rate IS 'how many a second, over the last minute or so';
COMMENT ON COLUMN event_store.projections.failed_position IS 'position of the event that fails; NULL: none, or no event is to blame';
COMMENT ON COLUMN event_store.projections.attempts IS 'how often it has';
COMMENT ON COLUMN event_store.projections.sql_state IS 'SQLSTATE of the last error';
COMMENT ON COLUMN event_store.projections.message IS 'its message';
COMMENT ON COLUMN event_store.projections.detail IS 'its detail';
COMMENT ON COLUMN event_store.projections.context IS 'its context';
COMMENT ON COLUMN event_store.projections.first_failed_at IS 'when it failed first';
COMMENT ON COLUMN event_store.projections.failed_at IS 'when it failed last';
COMMENT ON COLUMN event_store.projections.next_attempt_at IS 'when it is tried again; NULL: not by itself';
COMMENT ON COLUMN event_store.projections.skipped IS 'events that were passed over; see projection_failures';
COMMENT ON COLUMN event_store.projections.on_error IS 'stop or skip';
COMMENT ON COLUMN event_store.projections.max_attempts IS 'attempts before it stops or skips';
COMMENT ON COLUMN event_store.projections.owner IS 'the role that the handler runs as';
COMMENT ON COLUMN event_store.projections.created_at IS 'when it was created';

CREATE VIEW event_store.projection_rebuilds AS
	SELECT s.name AS projection,
		   CASE WHEN n.status = 'running' THEN CASE WHEN n.positions_behind = 0 OR t.since IS NOT NULL THEN 'switching' ELSE 'building' END
				ELSE n.status END AS phase,
		   n.checkpoint AS done,
		   event_store.settled_position() AS total,
		   n.applied AS events,
		   c.rate,
		   CASE WHEN n.status = 'running' AND c.rate > 0 AND n.checkpoint > t.start_after THEN statement_timestamp()
				+ make_interval(secs => CASE WHEN n.open_events < 10000 THEN n.open_events
				ELSE greatest(n.open_events, n.positions_behind * (n.applied::float8 / (n.checkpoint - t.start_after))) END / c.rate) END AS expected_end,
		   n.message,
		   n.created_at AS started_at
	  FROM event_store.projection AS t
	  JOIN event_store.projection AS s ON s.id = t.rebuilds
	  JOIN event_store.projections AS n ON n.name = t.name
	  CROSS JOIN LATERAL (SELECT k.rate / (1 - exp(-greatest(extract(epoch FROM k.applied_at - k.rate_since)::float8, 0.001) / 60)) AS rate
							FROM event_store.projection_checkpoint AS k
						   WHERE k.projection_id = t.id ORDER BY k.version DESC LIMIT 1) AS c;
ALTER VIEW event_store.projection_rebuilds OWNER TO @extowner@;
COMMENT ON VIEW event_store.projection_rebuilds IS 'projections that are being rebuilt, and how far that is';
COMMENT ON COLUMN event_store.projection_rebuilds.projection IS 'the projection''s name';
COMMENT ON COLUMN event_store.projection_rebuilds.phase IS 'building; switching, it has caught up, and takes its place as soon as nobody is in the way; paused, retrying, stopped; kept: it was in service before';
COMMENT ON COLUMN event_store.projection_rebuilds.done IS 'position that the rebuild has come to';
COMMENT ON COLUMN event_store.projection_rebuilds.total IS 'the settled mark';
COMMENT ON COLUMN event_store.projection_rebuilds.events IS 'events that it has applied';
COMMENT ON COLUMN event_store.projection_rebuilds.rate IS 'how many a second, over the last minute or so, not counting times when nobody worked at it';
COMMENT ON COLUMN event_store.projection_rebuilds.expected_end IS 'when it has caught up, at that rate, if it is worked at: up to 10,000 open events are counted, more are reckoned from how many there have been so far; NULL: not known';
COMMENT ON COLUMN event_store.projection_rebuilds.message IS 'of the error that it has met last';
COMMENT ON COLUMN event_store.projection_rebuilds.started_at IS 'when it began';

CREATE VIEW event_store.projection_failures AS
	SELECT p.name AS projection, f.position, e.stream, e.version, e.type, f.attempts, f.sql_state,
		   f.message, f.detail, f.context, f.failed_at, e.data, e.metadata
	  FROM event_store.projection AS p
	  JOIN event_store.projection_failure AS f ON f.projection_id = p.id
	  LEFT JOIN event_store.events AS e ON e.position = f.position;
ALTER VIEW event_store.projection_failures OWNER TO @extowner@;
COMMENT ON VIEW event_store.projection_failures IS 'dead letters of projections: events that they have passed over, and why';
COMMENT ON COLUMN event_store.projection_failures.projection IS 'the projection''s name';
COMMENT ON COLUMN event_store.projection_failures.position IS 'position of the event';
COMMENT ON COLUMN event_store.projection_failures.stream IS 'its stream';
COMMENT ON COLUMN event_store.projection_failures.version IS 'its version';
COMMENT ON COLUMN event_store.projection_failures.type IS 'its type';
COMMENT ON COLUMN event_store.projection_failures.attempts IS 'attempts that failed';
COMMENT ON COLUMN event_store.projection_failures.sql_state IS 'SQLSTATE of the last error';
COMMENT ON COLUMN event_store.projection_failures.message IS 'its message';
COMMENT ON COLUMN event_store.projection_failures.detail IS 'its detail';
COMMENT ON COLUMN event_store.projection_failures.context IS 'its context';
COMMENT ON COLUMN event_store.projection_failures.failed_at IS 'when it failed last';
COMMENT ON COLUMN event_store.projection_failures.data IS 'the event''s data';
COMMENT ON COLUMN event_store.projection_failures.metadata IS 'the event''s metadata';

CREATE VIEW event_store.projection_states AS
	SELECT p.name AS projection, s.key, s.state, s.version, s.position
	  FROM event_store.projection AS p
	  JOIN event_store.projection_state AS s ON s.projection_id = p.id;
ALTER VIEW event_store.projection_states OWNER TO @extowner@;
COMMENT ON VIEW event_store.projection_states IS 'the states of folds, but for live ones';
COMMENT ON COLUMN event_store.projection_states.projection IS 'the projection''s name';
COMMENT ON COLUMN event_store.projection_states.key IS 'the stream, or the value of the projection''s key';
COMMENT ON COLUMN event_store.projection_states.state IS 'the state';
COMMENT ON COLUMN event_store.projection_states.version IS 'version of the last event of it in its stream';
COMMENT ON COLUMN event_store.projection_states.position IS 'position of that event';
