-- ---------------------------------------------------------------------------
-- subscription: durable readers
-- ---------------------------------------------------------------------------

CREATE SEQUENCE event_store.subscription_id AS int;
ALTER SEQUENCE event_store.subscription_id OWNER TO @extowner@;
COMMENT ON SEQUENCE event_store.subscription_id IS 'ids of subscriptions';

CREATE TABLE event_store.subscription (
	id				int NOT NULL DEFAULT nextval('event_store.subscription_id'),
	name			text COLLATE "C" NOT NULL,
	categories		text[],
	types			text[],
	stream_pattern	text,
	paused			boolean NOT NULL DEFAULT false,
	created_at		timestamptz NOT NULL DEFAULT now(),
	CONSTRAINT subscription_pkey PRIMARY KEY (id),
	CONSTRAINT subscription_name_key UNIQUE (name)
);
ALTER TABLE event_store.subscription OWNER TO @extowner@;
COMMENT ON TABLE event_store.subscription IS 'named, durable readers: what they read; see the view subscriptions';
COMMENT ON COLUMN event_store.subscription.id IS 'what the tables of subscriptions carry in place of the name';
COMMENT ON COLUMN event_store.subscription.name IS 'the subscription''s name';
COMMENT ON COLUMN event_store.subscription.categories IS 'categories that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscription.types IS 'types that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscription.stream_pattern IS 'LIKE pattern of the streams that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscription.paused IS 'whether polls return nothing';
COMMENT ON COLUMN event_store.subscription.created_at IS 'when it was created';
SELECT pg_extension_config_dump('event_store.subscription_id', '');
SELECT pg_extension_config_dump('event_store.subscription', '');

CREATE TABLE event_store.subscription_slot (
	subscription_id	int NOT NULL,
	checkpoint		bigint NOT NULL,
	decided			bigint[] NOT NULL DEFAULT '{}',
	replay_until	bigint NOT NULL DEFAULT 0,
	acknowledged	bigint NOT NULL DEFAULT 0,
	acknowledged_at	timestamptz,
	CONSTRAINT subscription_slot_pkey PRIMARY KEY (subscription_id)
) WITH (fillfactor = 20);
ALTER TABLE event_store.subscription_slot OWNER TO @extowner@;
COMMENT ON TABLE event_store.subscription_slot IS 'how far subscriptions have come; who works on one has its row locked';
COMMENT ON COLUMN event_store.subscription_slot.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_slot.checkpoint IS 'the position up to which it is done';
COMMENT ON COLUMN event_store.subscription_slot.decided IS 'positions behind the first open event that are done already, ascending';
COMMENT ON COLUMN event_store.subscription_slot.replay_until IS 'deliveries up to here are replays';
COMMENT ON COLUMN event_store.subscription_slot.acknowledged IS 'events acknowledged so far, again after a rewind too';
COMMENT ON COLUMN event_store.subscription_slot.acknowledged_at IS 'when that was last done';
SELECT pg_extension_config_dump('event_store.subscription_slot', '');

CREATE TYPE event_store.delivered_event AS (
	position		bigint,
	stream			text,
	version			int,
	type			text,
	schema_version	int,
	event_id		uuid,
	recorded_at		timestamptz,
	occurred_at		timestamptz,
	source			text,
	correlation_id	text,
	causation_id	uuid,
	data			jsonb,
	metadata		jsonb,
	attempt			int,
	is_replay		boolean
);
ALTER TYPE event_store.delivered_event OWNER TO @extowner@;
COMMENT ON TYPE event_store.delivered_event IS 'an event as it is delivered to a consumer';
COMMENT ON COLUMN event_store.delivered_event.position IS 'place in the whole store: what is acknowledged';
COMMENT ON COLUMN event_store.delivered_event.stream IS 'name of the stream';
COMMENT ON COLUMN event_store.delivered_event.version IS 'place in the stream: 1, 2, 3 ... without holes';
COMMENT ON COLUMN event_store.delivered_event.type IS 'the event''s type';
COMMENT ON COLUMN event_store.delivered_event.schema_version IS 'version of the schema that data follows';
COMMENT ON COLUMN event_store.delivered_event.event_id IS 'identifies the event within its stream, for ever';
COMMENT ON COLUMN event_store.delivered_event.recorded_at IS 'the clock at the append; never decreases with position';
COMMENT ON COLUMN event_store.delivered_event.occurred_at IS 'the producer''s word for when it happened (default: recorded_at)';
COMMENT ON COLUMN event_store.delivered_event.source IS 'the system that the event comes from';
COMMENT ON COLUMN event_store.delivered_event.correlation_id IS 'what ties the events of one business transaction together';
COMMENT ON COLUMN event_store.delivered_event.causation_id IS 'id of the event or command that caused this one';
COMMENT ON COLUMN event_store.delivered_event.data IS 'the payload: any JSON value';
COMMENT ON COLUMN event_store.delivered_event.metadata IS 'what the payload does not say: a JSON object';
COMMENT ON COLUMN event_store.delivered_event.attempt IS 'which delivery this is, as far as is known: 1 for the first';
COMMENT ON COLUMN event_store.delivered_event.is_replay IS 'whether the event had been passed before the subscription was rewound';

CREATE FUNCTION event_store.create_subscription(
	name text,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL,
	stream_pattern text DEFAULT NULL,
	start_after bigint DEFAULT 0,
	start_time timestamptz DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_create_subscription';
REVOKE ALL ON FUNCTION event_store.create_subscription(text, text[], text[], text, bigint, timestamptz) FROM PUBLIC;
ALTER FUNCTION event_store.create_subscription(text, text[], text[], text, bigint, timestamptz) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.create_subscription(text, text[], text[], text, bigint, timestamptz) IS
'create_subscription(name, categories = NULL, types = NULL, stream_pattern = NULL, start_after = 0, start_time = NULL) -> bigint: makes a durable reader of the events of these categories and types (NULL: all), in streams whose name is LIKE stream_pattern (NULL: all). It begins after position start_after (0: at the beginning; NULL: at the settled end), or with the events recorded at start_time or later. Returns the position it begins after. Raises VE002 for an invalid argument or a position beyond the settled mark, VE009 if there is a subscription of that name.';

CREATE FUNCTION event_store.alter_subscription(
	name text,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL,
	stream_pattern text DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_alter_subscription';
REVOKE ALL ON FUNCTION event_store.alter_subscription(text, text[], text[], text) FROM PUBLIC;
ALTER FUNCTION event_store.alter_subscription(text, text[], text[], text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.alter_subscription(text, text[], text[], text) IS
'alter_subscription(name, categories = NULL, types = NULL, stream_pattern = NULL) -> void: alters what a subscription reads from its checkpoint on. NULL leaves a filter as it is; an empty array or pattern takes it away. Waits for a transaction that has polled. Raises VE002 for an invalid argument, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.drop_subscription(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_drop_subscription';
REVOKE ALL ON FUNCTION event_store.drop_subscription(text) FROM PUBLIC;
ALTER FUNCTION event_store.drop_subscription(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.drop_subscription(text) IS
'drop_subscription(name) -> void: drops a subscription and its checkpoint. Waits for a transaction that has polled. Raises VE008 if there is none of that name.';

CREATE FUNCTION event_store.pause_subscription(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_pause_subscription';
REVOKE ALL ON FUNCTION event_store.pause_subscription(text) FROM PUBLIC;
ALTER FUNCTION event_store.pause_subscription(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.pause_subscription(text) IS
'pause_subscription(name) -> void: from now on polls of the subscription return nothing. Raises VE008 if there is none of that name.';

CREATE FUNCTION event_store.resume_subscription(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_resume_subscription';
REVOKE ALL ON FUNCTION event_store.resume_subscription(text) FROM PUBLIC;
ALTER FUNCTION event_store.resume_subscription(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.resume_subscription(text) IS
'resume_subscription(name) -> void: ends a pause. Raises VE008 if there is no subscription of that name.';

CREATE FUNCTION event_store.rewind_subscription(
	name text,
	to_position bigint DEFAULT NULL,
	to_time timestamptz DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_rewind_subscription';
REVOKE ALL ON FUNCTION event_store.rewind_subscription(text, bigint, timestamptz) FROM PUBLIC;
ALTER FUNCTION event_store.rewind_subscription(text, bigint, timestamptz) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.rewind_subscription(text, bigint, timestamptz) IS
'rewind_subscription(name, to_position = NULL, to_time = NULL) -> bigint: sets the checkpoint of a subscription back, or ahead: after to_position, before the first event recorded at to_time or later, or to the beginning. Returns the new checkpoint. Events that it had passed before come with is_replay = true. Waits for a transaction that has polled. Raises VE002 for both, or for a position beyond the settled mark, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.poll(
	subscription text,
	max_count int DEFAULT 100,
	wait interval DEFAULT NULL,
	auto_ack boolean DEFAULT false
) RETURNS SETOF event_store.delivered_event
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME', 'event_store_poll';
REVOKE ALL ON FUNCTION event_store.poll(text, int, interval, boolean) FROM PUBLIC;
ALTER FUNCTION event_store.poll(text, int, interval, boolean) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.poll(text, int, interval, boolean) IS
'poll(subscription, max_count = 100, wait = NULL, auto_ack = false) -> setof delivered_event: the next open events of a subscription, in order of position, to the settled mark; at most max_count (NULL: all). They belong to the caller''s transaction, which has the subscription to its end: a poll of another one returns nothing meanwhile. Events that are not acknowledged when it ends come again. A further poll in the same transaction goes on from there; after a rollback to a savepoint it begins with the first open event. wait: if there is nothing, waits so long for something, and returns as soon as it is there; that costs next to nothing, and holds back no VACUUM if the statement is only SELECT columns FROM poll(...); in REPEATABLE READ and SERIALIZABLE, where nothing new can be seen, it does not wait. auto_ack: they are acknowledged at once. Nothing if the subscription is paused. Needs SELECT on the view events as well. Raises VE002 for an invalid argument, VE008 if there is no such subscription, 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.ack(subscription text, positions bigint[]) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_ack';
REVOKE ALL ON FUNCTION event_store.ack(text, bigint[]) FROM PUBLIC;
ALTER FUNCTION event_store.ack(text, bigint[]) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.ack(text, bigint[]) IS
'ack(subscription, positions) -> bigint: the events at these positions are done; returns how many of them were open. In the transaction that polled, the acknowledgement commits with the consumer''s own writes: exactly once. Positions that are not open, or not the subscription''s, count for nothing. Behind an open event at most 10,000 can be done. Waits for another transaction that has polled. Raises VE002 for NULL, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.ack_up_to(subscription text, "position" bigint) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_ack_up_to';
REVOKE ALL ON FUNCTION event_store.ack_up_to(text, bigint) FROM PUBLIC;
ALTER FUNCTION event_store.ack_up_to(text, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.ack_up_to(text, bigint) IS
'ack_up_to(subscription, position) -> bigint: all events up to a position, that one included, are done; returns how many of them were open. Otherwise as ack(). Raises VE002 for NULL or a negative position, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.subscription_lag(
	subscription text,
	max_count bigint DEFAULT 10000,
	OUT open_events bigint,
	OUT oldest_recorded_at timestamptz
) RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_subscription_lag';
REVOKE ALL ON FUNCTION event_store.subscription_lag(text, bigint) FROM PUBLIC;
ALTER FUNCTION event_store.subscription_lag(text, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.subscription_lag(text, bigint) IS
'subscription_lag(subscription, max_count = 10000) -> (open_events, oldest_recorded_at): how many events up to the settled mark a subscription has not acknowledged, counted up to max_count, and when the first of them was recorded. Raises VE002 for a max_count that is not positive, VE008 if there is no such subscription.';

CREATE VIEW event_store.subscriptions AS
	SELECT s.name,
		   s.categories,
		   s.types,
		   s.stream_pattern,
		   s.paused,
		   k.checkpoint,
		   greatest(event_store.settled_position() - k.checkpoint, 0) AS positions_behind,
		   cardinality(k.decided) AS done_ahead,
		   k.checkpoint < k.replay_until AS replaying,
		   k.acknowledged,
		   k.acknowledged_at,
		   s.created_at
	  FROM event_store.subscription AS s
	  JOIN event_store.subscription_slot AS k ON k.subscription_id = s.id;
ALTER VIEW event_store.subscriptions OWNER TO @extowner@;
COMMENT ON VIEW event_store.subscriptions IS 'subscriptions and how far they have come; subscription_lag() counts the open events of one';
COMMENT ON COLUMN event_store.subscriptions.name IS 'the subscription''s name';
COMMENT ON COLUMN event_store.subscriptions.categories IS 'categories that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscriptions.types IS 'types that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscriptions.stream_pattern IS 'LIKE pattern of the streams that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscriptions.paused IS 'whether polls return nothing';
COMMENT ON COLUMN event_store.subscriptions.checkpoint IS 'the position up to which it is done';
COMMENT ON COLUMN event_store.subscriptions.positions_behind IS 'how far the settled mark is ahead of it: the positions of events of any kind, and those that were never used';
COMMENT ON COLUMN event_store.subscriptions.done_ahead IS 'events behind the first open one that are done already';
COMMENT ON COLUMN event_store.subscriptions.replaying IS 'whether what comes next had been passed before a rewind';
COMMENT ON COLUMN event_store.subscriptions.acknowledged IS 'events acknowledged so far, again after a rewind too';
COMMENT ON COLUMN event_store.subscriptions.acknowledged_at IS 'when that was last done';
COMMENT ON COLUMN event_store.subscriptions.created_at IS 'when it was created';
