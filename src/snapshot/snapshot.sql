-- ---------------------------------------------------------------------------
-- snapshot: states of streams at a version, and who takes them
-- ---------------------------------------------------------------------------

CREATE SEQUENCE event_store.snapshot_id;
ALTER SEQUENCE event_store.snapshot_id OWNER TO @extowner@;
COMMENT ON SEQUENCE event_store.snapshot_id IS 'numbers of snapshots, in the order in which they are saved';
SELECT pg_extension_config_dump('event_store.snapshot_id', '');

CREATE TABLE event_store.snapshot (
	stream_id		bigint NOT NULL,
	position		bigint NOT NULL,
	id				bigint NOT NULL,
	recorded_at		timestamptz NOT NULL,
	created_at		timestamptz NOT NULL,
	version			int NOT NULL,
	schema_version	int NOT NULL,
	fold			text COLLATE "C" NOT NULL,
	state			jsonb,
	CONSTRAINT snapshot_pkey PRIMARY KEY (stream_id, fold, schema_version, version, id)
);
ALTER TABLE event_store.snapshot OWNER TO @extowner@;
COMMENT ON TABLE event_store.snapshot IS 'snapshots; a row is never altered, and of those of one version the last saved counts. See the view snapshots';
COMMENT ON COLUMN event_store.snapshot.stream_id IS 'event_store.stream.id';
COMMENT ON COLUMN event_store.snapshot.position IS 'of the event of that version: a snapshot of another event is not used';
COMMENT ON COLUMN event_store.snapshot.id IS 'rises with each one saved';
COMMENT ON COLUMN event_store.snapshot.recorded_at IS 'of the event of that version';
COMMENT ON COLUMN event_store.snapshot.created_at IS 'when it was saved';
COMMENT ON COLUMN event_store.snapshot.version IS 'the stream''s version that it shows';
COMMENT ON COLUMN event_store.snapshot.schema_version IS 'of the state';
COMMENT ON COLUMN event_store.snapshot.fold IS 'the fold''s name; empty: it was saved without one';
COMMENT ON COLUMN event_store.snapshot.state IS 'the state; NULL: the fold had none';
SELECT pg_extension_config_dump('event_store.snapshot', '');

CREATE TABLE event_store.snapshot_policy (
	fold			text COLLATE "C" NOT NULL,
	schema_version	int NOT NULL,
	every_events	int NOT NULL,
	keep			int NOT NULL,
	every			interval,
	categories		text[],
	created_at		timestamptz NOT NULL DEFAULT now(),
	CONSTRAINT snapshot_policy_pkey PRIMARY KEY (fold)
);
ALTER TABLE event_store.snapshot_policy OWNER TO @extowner@;
COMMENT ON TABLE event_store.snapshot_policy IS 'folds of which snapshots are taken, and when; see the view snapshot_policies';
COMMENT ON COLUMN event_store.snapshot_policy.fold IS 'the fold''s name';
COMMENT ON COLUMN event_store.snapshot_policy.schema_version IS 'of the states that it makes now';
COMMENT ON COLUMN event_store.snapshot_policy.every_events IS 'so many events after the last snapshot a stream is due; 2147483647: never by that';
COMMENT ON COLUMN event_store.snapshot_policy.keep IS 'so many snapshots of a stream are kept';
COMMENT ON COLUMN event_store.snapshot_policy.every IS 'so long after an event that no snapshot has the stream is due; NULL: never by that';
COMMENT ON COLUMN event_store.snapshot_policy.categories IS 'categories of the streams; NULL: all';
COMMENT ON COLUMN event_store.snapshot_policy.created_at IS 'when it was first set';
SELECT pg_extension_config_dump('event_store.snapshot_policy', '');

CREATE TABLE event_store.snapshot_progress (
	fold				text COLLATE "C" NOT NULL,
	checkpoint			bigint NOT NULL DEFAULT 0,
	sweep_after			bigint,
	taken				bigint NOT NULL DEFAULT 0,
	taken_at			timestamptz,
	failures			bigint NOT NULL DEFAULT 0,
	last_failed_at		timestamptz,
	last_failed_stream	text,
	last_error			text,
	CONSTRAINT snapshot_progress_pkey PRIMARY KEY (fold)
) WITH (fillfactor = 50);
ALTER TABLE event_store.snapshot_progress OWNER TO @extowner@;
COMMENT ON TABLE event_store.snapshot_progress IS 'what take_snapshots() has done by each policy';
COMMENT ON COLUMN event_store.snapshot_progress.fold IS 'event_store.snapshot_policy.fold';
COMMENT ON COLUMN event_store.snapshot_progress.checkpoint IS 'up to here events were looked at';
COMMENT ON COLUMN event_store.snapshot_progress.sweep_after IS 'after this stream snapshots of other schema versions are still to be removed; NULL: they have been';
COMMENT ON COLUMN event_store.snapshot_progress.taken IS 'snapshots taken';
COMMENT ON COLUMN event_store.snapshot_progress.taken_at IS 'when the last one was';
COMMENT ON COLUMN event_store.snapshot_progress.failures IS 'how often the fold failed';
COMMENT ON COLUMN event_store.snapshot_progress.last_failed_at IS 'when it last did';
COMMENT ON COLUMN event_store.snapshot_progress.last_failed_stream IS 'with which stream';
COMMENT ON COLUMN event_store.snapshot_progress.last_error IS 'SQLSTATE and message of that error';
SELECT pg_extension_config_dump('event_store.snapshot_progress', '');

CREATE TABLE event_store.snapshot_pending (
	fold		text COLLATE "C" NOT NULL,
	stream_id	bigint NOT NULL,
	due_at		timestamptz NOT NULL,
	attempts	int NOT NULL DEFAULT 0,
	CONSTRAINT snapshot_pending_pkey PRIMARY KEY (fold, stream_id)
);
CREATE INDEX snapshot_pending_due ON event_store.snapshot_pending (fold, due_at, stream_id);
ALTER TABLE event_store.snapshot_pending OWNER TO @extowner@;
COMMENT ON TABLE event_store.snapshot_pending IS 'streams that are due for a snapshot, or will be';
COMMENT ON COLUMN event_store.snapshot_pending.fold IS 'event_store.snapshot_policy.fold';
COMMENT ON COLUMN event_store.snapshot_pending.stream_id IS 'event_store.stream.id';
COMMENT ON COLUMN event_store.snapshot_pending.due_at IS 'when';
COMMENT ON COLUMN event_store.snapshot_pending.attempts IS 'how often the fold has failed with it';
SELECT pg_extension_config_dump('event_store.snapshot_pending', '');

CREATE FUNCTION event_store.save_snapshot(
	stream text,
	version bigint,
	state jsonb,
	schema_version int DEFAULT 1,
	fold text DEFAULT NULL,
	keep int DEFAULT 3
) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_save_snapshot';
REVOKE ALL ON FUNCTION event_store.save_snapshot(text, bigint, jsonb, int, text, int) FROM PUBLIC;
ALTER FUNCTION event_store.save_snapshot(text, bigint, jsonb, int, text, int) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.save_snapshot(text, bigint, jsonb, int, text, int) IS
'save_snapshot(stream, version, state, schema_version = 1, fold = NULL, keep = 3) -> boolean: saves the state of a stream after the event of this version, in the caller''s transaction, in place of one saved for that version before. schema_version says by which rules the state was made: who loads by others does not get it. fold: 1 to 1,024 bytes that tell states of different kinds apart; for a state that state_at() is to go on from, the name that it has in the view snapshot_policies. Of the snapshots of the stream with this fold and schema version the newest keep (1 to 10,000) stay; false if the one saved is not among them. Waits for nobody. Needs SELECT on the view events as well. Who may save is believed. Raises VE002 for an invalid argument, a stream that does not exist, or a version that it does not have, 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.drop_snapshots(
	stream text DEFAULT NULL,
	fold text DEFAULT NULL,
	schema_version int DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_drop_snapshots';
REVOKE ALL ON FUNCTION event_store.drop_snapshots(text, text, int) FROM PUBLIC;
ALTER FUNCTION event_store.drop_snapshots(text, text, int) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.drop_snapshots(text, text, int) IS
'drop_snapshots(stream = NULL, fold = NULL, schema_version = NULL) -> bigint: removes the snapshots of a stream, a fold (an empty name: those saved without one) and a schema version; NULL: of all. Returns how many. No answer changes by it, it only takes longer. What another transaction saves at the same time stays. Waits for others who drop the same, so two that drop in crossed order may deadlock (40P01). Raises VE002 for an invalid argument, 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.load_stream(
	stream text,
	schema_version int DEFAULT NULL,
	fold text DEFAULT NULL,
	until_version bigint DEFAULT NULL
) RETURNS SETOF event_store.recorded_event
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 20 SUPPORT event_store.read_support
AS 'MODULE_PATHNAME', 'event_store_load_stream';
REVOKE ALL ON FUNCTION event_store.load_stream(text, int, text, bigint) FROM PUBLIC;
ALTER FUNCTION event_store.load_stream(text, int, text, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.load_stream(text, int, text, bigint) IS
'load_stream(stream, schema_version = NULL, fold = NULL, until_version = NULL) -> setof recorded_event: the newest snapshot of a stream, and the events after it in order of version, up to until_version (NULL: to the end); without a snapshot all of them. The snapshot comes as the first row, of type $snapshot: version, position, recorded_at and occurred_at are those of the event it was taken at, data is the state (NULL: the fold had none), schema_version the snapshot''s, the rest NULL. Only a snapshot of that schema version (NULL: the one that the fold''s policy says, or 1) and fold (NULL: saved without one) is used. Shows what earlier statements of the transaction itself have appended. Needs SELECT on the view events as well. Raises VE002 for an invalid argument.';

CREATE FUNCTION event_store.state_at(
	stream text,
	fold text,
	version bigint DEFAULT NULL,
	at timestamptz DEFAULT NULL,
	schema_version int DEFAULT NULL
) RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_state_at';
REVOKE ALL ON FUNCTION event_store.state_at(text, text, bigint, timestamptz, int) FROM PUBLIC;
ALTER FUNCTION event_store.state_at(text, text, bigint, timestamptz, int) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.state_at(text, text, bigint, timestamptz, int) IS
'state_at(stream, fold, version = NULL, at = NULL, schema_version = NULL) -> jsonb: the state that a fold comes to with the events of a stream up to a version (0: none), and of those recorded (recorded_at, not occurred_at) at a time or before; NULL: all. fold: merge_patch, count, sum(path) ..., or the name of a function f(state jsonb, event event_store.recorded_event) -> jsonb, which must depend on nothing but its arguments. Begins with the nearest snapshot of that fold and schema version (NULL: the one that the fold''s policy says, or 1): the answer is the same as from the first event. Where there is a policy (set_snapshot_policy()) and it had to fold every_events events or more, it saves the state, if the transaction may write and the caller may call save_snapshot(). A stream that does not exist has no events. Shows what earlier statements of the transaction itself have appended. Needs SELECT on the view events as well. Raises VE002 for an invalid argument, 42883 if there is no such function, and whatever the fold raises.';

CREATE FUNCTION event_store.set_snapshot_policy(
	fold text,
	categories text[] DEFAULT NULL,
	every_events int DEFAULT 100,
	every interval DEFAULT NULL,
	keep int DEFAULT 3,
	schema_version int DEFAULT 1
) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_set_snapshot_policy';
REVOKE ALL ON FUNCTION event_store.set_snapshot_policy(text, text[], int, interval, int, int) FROM PUBLIC;
ALTER FUNCTION event_store.set_snapshot_policy(text, text[], int, interval, int, int) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.set_snapshot_policy(text, text[], int, interval, int, int) IS
'set_snapshot_policy(fold, categories = NULL, every_events = 100, every = NULL, keep = 3, schema_version = 1) -> text: from now on snapshots by this fold (see state_at()) are taken of streams of these categories (NULL: all), when one has every_events events more than its newest snapshot, or when an event has waited for one for every (1 s to 10 years); either may be NULL. They are taken by the worker''s task "take snapshots", and by state_at(). The newest keep (1 to 10,000) of a stream stay. Sets all of the policy anew if there is one. When the function does something else than before, say so by another schema_version, in the transaction that changes it: snapshots of others are not used any more, and removed in time. Waits for transactions in which snapshots by it were saved by state_at() or take_snapshots(). The worker calls the fold as the owner of the store, with search_path pg_catalog. Returns the name by which the fold is known from here on. Only the owner may. Raises VE002 for an invalid argument, 42883 if there is no such function.';

CREATE FUNCTION event_store.drop_snapshot_policy(fold text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_drop_snapshot_policy';
REVOKE ALL ON FUNCTION event_store.drop_snapshot_policy(text) FROM PUBLIC;
ALTER FUNCTION event_store.drop_snapshot_policy(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.drop_snapshot_policy(text) IS
'drop_snapshot_policy(fold) -> boolean: drops the policy of a fold, by the name that the view snapshot_policies shows, and the snapshots by that fold with it; whether there was one. Waits for transactions in which some were saved by state_at() or take_snapshots(). Only the owner may. Raises VE002 for NULL.';

CREATE FUNCTION event_store.take_snapshots(max_events bigint DEFAULT 10000) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_take_snapshots';
REVOKE ALL ON FUNCTION event_store.take_snapshots(bigint) FROM PUBLIC;
ALTER FUNCTION event_store.take_snapshots(bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.take_snapshots(bigint) IS
'take_snapshots(max_events = 10000) -> bigint: does what the policies say: for each, looks at the events appended since last time, and takes the snapshots that are due; returns how many. At most max_events events (NULL: all) are looked at, and about as many folded, for each policy; the rest is for the next call. The worker calls it by its task "take snapshots". A fold that fails with a stream does not keep the others from being done (snapshot_policies): the stream is tried again a minute later, then twice as much later each time. Only the owner may. Raises VE002 if max_events is not positive; 40001 in REPEATABLE READ and SERIALIZABLE, if somebody else has done so since the transaction''s snapshot.';

CREATE VIEW event_store.snapshots AS
	SELECT DISTINCT ON (n.stream_id, n.fold, n.schema_version, n.version)
		   s.name AS stream,
		   nullif(n.fold, '') AS fold,
		   n.version,
		   n.schema_version,
		   n.position,
		   n.recorded_at,
		   pg_column_size(n.state) AS size,
		   n.created_at
	  FROM event_store.snapshot AS n
	  JOIN event_store.stream AS s ON s.id = n.stream_id
	 ORDER BY n.stream_id, n.fold, n.schema_version, n.version, n.id DESC;
ALTER VIEW event_store.snapshots OWNER TO @extowner@;
COMMENT ON VIEW event_store.snapshots IS 'the snapshots that there are';
COMMENT ON COLUMN event_store.snapshots.stream IS 'name of the stream';
COMMENT ON COLUMN event_store.snapshots.fold IS 'the fold''s name; NULL: it was saved without one';
COMMENT ON COLUMN event_store.snapshots.version IS 'the stream''s version that it shows';
COMMENT ON COLUMN event_store.snapshots.schema_version IS 'of the state';
COMMENT ON COLUMN event_store.snapshots.position IS 'of the event of that version';
COMMENT ON COLUMN event_store.snapshots.recorded_at IS 'of the event of that version';
COMMENT ON COLUMN event_store.snapshots.size IS 'bytes that the state takes, compressed; NULL: the fold had none';
COMMENT ON COLUMN event_store.snapshots.created_at IS 'when it was saved';

CREATE VIEW event_store.snapshot_policies AS
	SELECT p.fold,
		   p.categories,
		   nullif(p.every_events, 2147483647) AS every_events,
		   p.every,
		   p.keep,
		   p.schema_version,
		   g.checkpoint,
		   (SELECT count(*) FROM event_store.snapshot_pending AS n
			 WHERE n.fold = p.fold AND n.due_at <= statement_timestamp()) AS due,
		   g.taken,
		   g.taken_at,
		   g.failures,
		   g.last_failed_at,
		   g.last_failed_stream,
		   g.last_error,
		   p.created_at
	  FROM event_store.snapshot_policy AS p
	  JOIN event_store.snapshot_progress AS g ON g.fold = p.fold;
ALTER VIEW event_store.snapshot_policies OWNER TO @extowner@;
COMMENT ON VIEW event_store.snapshot_policies IS 'folds of which snapshots are taken, and how that goes';
COMMENT ON COLUMN event_store.snapshot_policies.fold IS 'the fold''s name';
COMMENT ON COLUMN event_store.snapshot_policies.categories IS 'categories of the streams; NULL: all';
COMMENT ON COLUMN event_store.snapshot_policies.every_events IS 'so many events after the last snapshot a stream is due; NULL: never by that';
COMMENT ON COLUMN event_store.snapshot_policies.every IS 'so long after an event that no snapshot has the stream is due; NULL: never by that';
COMMENT ON COLUMN event_store.snapshot_policies.keep IS 'so many snapshots of a stream are kept';
COMMENT ON COLUMN event_store.snapshot_policies.schema_version IS 'of the states that it makes now';
COMMENT ON COLUMN event_store.snapshot_policies.checkpoint IS 'the position up to which take_snapshots() has looked at events';
COMMENT ON COLUMN event_store.snapshot_policies.due IS 'streams that are due';
COMMENT ON COLUMN event_store.snapshot_policies.taken IS 'snapshots that take_snapshots() has taken';
COMMENT ON COLUMN event_store.snapshot_policies.taken_at IS 'when it last took one';
COMMENT ON COLUMN event_store.snapshot_policies.failures IS 'how often the fold failed there';
COMMENT ON COLUMN event_store.snapshot_policies.last_failed_at IS 'when it last did';
COMMENT ON COLUMN event_store.snapshot_policies.last_failed_stream IS 'with which stream';
COMMENT ON COLUMN event_store.snapshot_policies.last_error IS 'SQLSTATE and message of that error';
COMMENT ON COLUMN event_store.snapshot_policies.created_at IS 'when the policy was first set';
