-- ---------------------------------------------------------------------------
-- subscription: durable readers, and who reads with them
-- ---------------------------------------------------------------------------

CREATE SEQUENCE event_store.subscription_id AS int;
ALTER SEQUENCE event_store.subscription_id OWNER TO @extowner@;
COMMENT ON SEQUENCE event_store.subscription_id IS 'ids of subscriptions';
SELECT pg_extension_config_dump('event_store.subscription_id', '');

CREATE TABLE event_store.subscription (
	id					int NOT NULL DEFAULT nextval('event_store.subscription_id'),
	name				text COLLATE "C" NOT NULL,
	categories			text[],
	types				text[],
	stream_pattern		text,
	mode				text NOT NULL DEFAULT 'ordered',
	priority_key		text,
	slots				int NOT NULL DEFAULT 1,
	wanted_slots		int,
	max_attempts		int NOT NULL DEFAULT 5,
	first_delay			interval NOT NULL DEFAULT '1 s',
	delay_factor		float8 NOT NULL DEFAULT 2,
	max_delay			interval NOT NULL DEFAULT '5 min',
	jitter				float8 NOT NULL DEFAULT 0.2,
	breaker_failures	int,
	breaker_window		interval NOT NULL DEFAULT '1 min',
	breaker_timeout		interval NOT NULL DEFAULT '30 s',
	breaker_probes		int NOT NULL DEFAULT 1,
	paused				boolean NOT NULL DEFAULT false,
	created_at			timestamptz NOT NULL DEFAULT now(),
	CONSTRAINT subscription_pkey PRIMARY KEY (id),
	CONSTRAINT subscription_name_key UNIQUE (name)
);
ALTER TABLE event_store.subscription OWNER TO @extowner@;
COMMENT ON TABLE event_store.subscription IS 'named, durable readers: what they read, and how they go about it; see the view subscriptions';
COMMENT ON COLUMN event_store.subscription.id IS 'what the tables of subscriptions carry in place of the name';
COMMENT ON COLUMN event_store.subscription.name IS 'the subscription''s name';
COMMENT ON COLUMN event_store.subscription.categories IS 'categories that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscription.types IS 'types that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscription.stream_pattern IS 'LIKE pattern of the streams that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscription.mode IS 'ordered: the events of a stream in their order; competing: in any';
COMMENT ON COLUMN event_store.subscription.priority_key IS 'competing: the key of metadata with the priority, a number, the greatest first';
COMMENT ON COLUMN event_store.subscription.slots IS 'into how many parts its streams are divided';
COMMENT ON COLUMN event_store.subscription.wanted_slots IS 'into how many they will be, as soon as no event is out under a lease';
COMMENT ON COLUMN event_store.subscription.max_attempts IS 'after so many failed attempts an event is a dead letter';
COMMENT ON COLUMN event_store.subscription.first_delay IS 'from the first failure to the second attempt';
COMMENT ON COLUMN event_store.subscription.delay_factor IS 'by which the delay grows with each failure';
COMMENT ON COLUMN event_store.subscription.max_delay IS 'to which it grows';
COMMENT ON COLUMN event_store.subscription.jitter IS 'by which part of itself, at most, a delay is made longer or shorter at random';
COMMENT ON COLUMN event_store.subscription.breaker_failures IS 'so many failures within breaker_window open the circuit breaker; NULL: there is none';
COMMENT ON COLUMN event_store.subscription.breaker_window IS 'see breaker_failures';
COMMENT ON COLUMN event_store.subscription.breaker_timeout IS 'how long the circuit breaker stays open';
COMMENT ON COLUMN event_store.subscription.breaker_probes IS 'so many events are let through after that, and must succeed';
COMMENT ON COLUMN event_store.subscription.paused IS 'whether polls return nothing';
COMMENT ON COLUMN event_store.subscription.created_at IS 'when it was created';
SELECT pg_extension_config_dump('event_store.subscription', '');

CREATE TABLE event_store.subscription_cursor (
	subscription_id	int NOT NULL,
	version			bigint NOT NULL,
	checkpoint		bigint NOT NULL,
	decided			bigint[] NOT NULL,
	replay_until	bigint NOT NULL,
	oldest			bigint NOT NULL,
	taken			bigint NOT NULL,
	taken_at		timestamptz NOT NULL,
	rate			float8 NOT NULL,
	poll_size		int NOT NULL,
	CONSTRAINT subscription_cursor_pkey PRIMARY KEY (subscription_id, version)
);
ALTER TABLE event_store.subscription_cursor OWNER TO @extowner@;
COMMENT ON TABLE event_store.subscription_cursor IS 'how far subscriptions have come with the log; a row is never altered, the last version of each counts';
COMMENT ON COLUMN event_store.subscription_cursor.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_cursor.version IS 'rises with each change; rows of earlier ones are deleted now and then';
COMMENT ON COLUMN event_store.subscription_cursor.checkpoint IS 'up to here all events are done, or stand in subscription_batch or subscription_failure';
COMMENT ON COLUMN event_store.subscription_cursor.decided IS 'and these positions behind the first that is not, ascending';
COMMENT ON COLUMN event_store.subscription_cursor.replay_until IS 'deliveries up to here are replays, but for those of subscription_no_replay';
COMMENT ON COLUMN event_store.subscription_cursor.oldest IS 'rows of subscription_batch begin here or later: nobody needs to pass over those that were';
COMMENT ON COLUMN event_store.subscription_cursor.taken IS 'events that the checkpoint has passed so far, again after a rewind too';
COMMENT ON COLUMN event_store.subscription_cursor.taken_at IS 'when it last passed one';
COMMENT ON COLUMN event_store.subscription_cursor.rate IS 'how many a second it passed about then: the mean of the last minute, roughly';
COMMENT ON COLUMN event_store.subscription_cursor.poll_size IS 'how many events the poll wanted for which some were dealt last; 0: none were yet';
SELECT pg_extension_config_dump('event_store.subscription_cursor', '');

CREATE TABLE event_store.subscription_no_replay (
	subscription_id	int NOT NULL,
	last_position	bigint NOT NULL,
	positions		bigint[] NOT NULL
);
CREATE INDEX subscription_no_replay_position ON event_store.subscription_no_replay
	(subscription_id, last_position);
ALTER TABLE event_store.subscription_no_replay OWNER TO @extowner@;
-- it has no key, but rows of it are deleted, which must go where all tables are published, too
ALTER TABLE event_store.subscription_no_replay REPLICA IDENTITY FULL;
COMMENT ON TABLE event_store.subscription_no_replay IS 'events up to replay_until whose deliveries are no replays all the same: nobody had been given them when the subscription was rewound, or it was not rewound so far';
COMMENT ON COLUMN event_store.subscription_no_replay.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_no_replay.last_position IS 'the highest of positions';
COMMENT ON COLUMN event_store.subscription_no_replay.positions IS 'of the events, ascending';
SELECT pg_extension_config_dump('event_store.subscription_no_replay', '');

CREATE TABLE event_store.subscription_batch (
	subscription_id	int NOT NULL,
	slot			int NOT NULL,
	priority		int NOT NULL,
	first_position	bigint NOT NULL,
	last_position	bigint NOT NULL,
	positions		bigint[] NOT NULL,
	streams			bigint[] NOT NULL,
	consumer		text COLLATE "C",
	delivered_at	timestamptz,
	lease			interval,
	leased_until	timestamptz,
	CONSTRAINT subscription_batch_pkey PRIMARY KEY (subscription_id, first_position)
) WITH (toast_tuple_target = 8160);
CREATE INDEX subscription_batch_queue ON event_store.subscription_batch
	(subscription_id, slot, priority DESC, first_position) WHERE consumer IS NULL;
CREATE INDEX subscription_batch_lease ON event_store.subscription_batch
	(subscription_id, first_position) WHERE consumer IS NOT NULL;
ALTER TABLE event_store.subscription_batch OWNER TO @extowner@;
COMMENT ON TABLE event_store.subscription_batch IS 'events that are dealt out to slots, or delivered under a lease, and not decided yet';
COMMENT ON COLUMN event_store.subscription_batch.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_batch.slot IS 'whose they are';
COMMENT ON COLUMN event_store.subscription_batch.priority IS 'what comes first in a competing subscription: the greatest';
COMMENT ON COLUMN event_store.subscription_batch.first_position IS 'the lowest of positions';
COMMENT ON COLUMN event_store.subscription_batch.last_position IS 'the highest of positions';
COMMENT ON COLUMN event_store.subscription_batch.positions IS 'of the events, ascending';
COMMENT ON COLUMN event_store.subscription_batch.streams IS 'the stream of each: event_store.stream.id';
COMMENT ON COLUMN event_store.subscription_batch.consumer IS 'who has them under a lease; NULL: nobody';
COMMENT ON COLUMN event_store.subscription_batch.delivered_at IS 'since when; without a consumer: when they were passed over by acknowledgements; NULL: nobody has been given them yet, as far as is known';
COMMENT ON COLUMN event_store.subscription_batch.lease IS 'for how long, from when it is last heard that the consumer is at it';
COMMENT ON COLUMN event_store.subscription_batch.leased_until IS 'until then';
SELECT pg_extension_config_dump('event_store.subscription_batch', '');

CREATE TABLE event_store.subscription_failure (
	subscription_id	int NOT NULL,
	position		bigint NOT NULL,
	stream_id		bigint NOT NULL,
	slot			int NOT NULL,
	attempts		int NOT NULL DEFAULT 0,
	dead			boolean NOT NULL DEFAULT false,
	suspect			boolean NOT NULL DEFAULT false,
	due				timestamptz,
	retry_at		timestamptz,
	consumer		text COLLATE "C",
	lease			interval,
	leased_until	timestamptz,
	error			text,
	failed_by		text,
	first_failed_at	timestamptz,
	failed_at		timestamptz,
	delivered		boolean NOT NULL DEFAULT true,
	CONSTRAINT subscription_failure_pkey PRIMARY KEY (subscription_id, position)
);
CREATE INDEX subscription_failure_stream ON event_store.subscription_failure
	(subscription_id, stream_id, position);
CREATE INDEX subscription_failure_due ON event_store.subscription_failure
	(subscription_id, due) WHERE due IS NOT NULL;
CREATE INDEX subscription_failure_dead ON event_store.subscription_failure
	(subscription_id, position) WHERE dead;
ALTER TABLE event_store.subscription_failure OWNER TO @extowner@;
COMMENT ON TABLE event_store.subscription_failure IS 'events that have failed, and those of their streams that wait behind them';
COMMENT ON COLUMN event_store.subscription_failure.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_failure.position IS 'of the event';
COMMENT ON COLUMN event_store.subscription_failure.stream_id IS 'event_store.stream.id';
COMMENT ON COLUMN event_store.subscription_failure.slot IS 'whose it is';
COMMENT ON COLUMN event_store.subscription_failure.attempts IS 'how often it has failed; 0: it waits behind another of its stream';
COMMENT ON COLUMN event_store.subscription_failure.dead IS 'whether it is a dead letter';
COMMENT ON COLUMN event_store.subscription_failure.suspect IS 'whether a consumer fell silent that had it; at the second time it is delivered alone';
COMMENT ON COLUMN event_store.subscription_failure.due IS 'when it is delivered next, or when its lease ends; NULL: not before another one is decided';
COMMENT ON COLUMN event_store.subscription_failure.retry_at IS 'when it is tried again at the earliest; NULL: at once';
COMMENT ON COLUMN event_store.subscription_failure.consumer IS 'who has it under a lease; NULL: nobody';
COMMENT ON COLUMN event_store.subscription_failure.lease IS 'for how long, from when it is last heard that the consumer is at it';
COMMENT ON COLUMN event_store.subscription_failure.leased_until IS 'until then';
COMMENT ON COLUMN event_store.subscription_failure.error IS 'of the last failure';
COMMENT ON COLUMN event_store.subscription_failure.failed_by IS 'the consumer of the last failure';
COMMENT ON COLUMN event_store.subscription_failure.first_failed_at IS 'when it failed first';
COMMENT ON COLUMN event_store.subscription_failure.failed_at IS 'when it failed last';
COMMENT ON COLUMN event_store.subscription_failure.delivered IS 'whether anybody has been given it yet, as far as is known';
SELECT pg_extension_config_dump('event_store.subscription_failure', '');

CREATE TABLE event_store.subscription_consumer (
	subscription_id	int NOT NULL,
	consumer		text COLLATE "C" NOT NULL,
	joined_at		timestamptz NOT NULL DEFAULT clock_timestamp(),
	lease			interval NOT NULL,
	slots			int[] NOT NULL DEFAULT '{}',
	CONSTRAINT subscription_consumer_pkey PRIMARY KEY (subscription_id, consumer)
);
ALTER TABLE event_store.subscription_consumer OWNER TO @extowner@;
COMMENT ON TABLE event_store.subscription_consumer IS 'consumers that have given their name, and the slots that are theirs';
COMMENT ON COLUMN event_store.subscription_consumer.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_consumer.consumer IS 'the name';
COMMENT ON COLUMN event_store.subscription_consumer.joined_at IS 'when it was first heard of';
COMMENT ON COLUMN event_store.subscription_consumer.lease IS 'for how long a call with its name keeps it';
COMMENT ON COLUMN event_store.subscription_consumer.slots IS 'the slots that it owns';
SELECT pg_extension_config_dump('event_store.subscription_consumer', '');

CREATE TABLE event_store.subscription_heartbeat (
	subscription_id	int NOT NULL,
	consumer		text COLLATE "C" NOT NULL,
	alive_until		timestamptz NOT NULL
);
CREATE INDEX subscription_heartbeat_consumer ON event_store.subscription_heartbeat
	(subscription_id, consumer, alive_until);
ALTER TABLE event_store.subscription_heartbeat OWNER TO @extowner@;
-- it has no key, but rows of it are deleted, which must go where all tables are published, too
ALTER TABLE event_store.subscription_heartbeat REPLICA IDENTITY FULL;
COMMENT ON TABLE event_store.subscription_heartbeat IS 'when consumers were heard of; a row is never altered, the latest of each counts';
COMMENT ON COLUMN event_store.subscription_heartbeat.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_heartbeat.consumer IS 'the name';
COMMENT ON COLUMN event_store.subscription_heartbeat.alive_until IS 'if it is not heard of again until then, its slots go to others';
SELECT pg_extension_config_dump('event_store.subscription_heartbeat', '');

CREATE TABLE event_store.subscription_fault (
	subscription_id	int NOT NULL,
	at				timestamptz NOT NULL,
	failures		bigint NOT NULL DEFAULT 1,
	dead_letters	bigint NOT NULL DEFAULT 0,
	consumer		text COLLATE "C"
);
CREATE INDEX subscription_fault_at ON event_store.subscription_fault (subscription_id, at);
ALTER TABLE event_store.subscription_fault OWNER TO @extowner@;
-- it has no key, but rows of it are deleted, which must go where all tables are published, too
ALTER TABLE event_store.subscription_fault REPLICA IDENTITY FULL;
COMMENT ON TABLE event_store.subscription_fault IS 'failed attempts, those of long ago added up';
COMMENT ON COLUMN event_store.subscription_fault.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_fault.at IS 'when; -infinity: long ago';
COMMENT ON COLUMN event_store.subscription_fault.failures IS 'how many attempts failed; 0: more of a silence that has been counted';
COMMENT ON COLUMN event_store.subscription_fault.dead_letters IS 'how many events are dead letters by them';
COMMENT ON COLUMN event_store.subscription_fault.consumer IS 'who fell silent; NULL: nobody, or one without a name';
SELECT pg_extension_config_dump('event_store.subscription_fault', '');

CREATE TABLE event_store.subscription_breaker (
	subscription_id	int NOT NULL,
	state			text NOT NULL DEFAULT 'closed',
	until			timestamptz,
	probes_left		int NOT NULL DEFAULT 0,
	CONSTRAINT subscription_breaker_pkey PRIMARY KEY (subscription_id)
);
ALTER TABLE event_store.subscription_breaker OWNER TO @extowner@;
COMMENT ON TABLE event_store.subscription_breaker IS 'the circuit breakers of subscriptions';
COMMENT ON COLUMN event_store.subscription_breaker.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_breaker.state IS 'closed; open: nothing is delivered; half-open: a few events are, to try';
COMMENT ON COLUMN event_store.subscription_breaker.until IS 'how long it stays open';
COMMENT ON COLUMN event_store.subscription_breaker.probes_left IS 'half-open: how many events have still to succeed';
SELECT pg_extension_config_dump('event_store.subscription_breaker', '');

CREATE TABLE event_store.subscription_change (
	subscription_id	int NOT NULL,
	at				timestamptz NOT NULL DEFAULT clock_timestamp(),
	change			text NOT NULL,
	detail			text,
	changed_by		text NOT NULL DEFAULT session_user
);
CREATE INDEX subscription_change_at ON event_store.subscription_change (subscription_id, at);
ALTER TABLE event_store.subscription_change OWNER TO @extowner@;
-- it has no key, but rows of it are deleted, which must go where all tables are published, too
ALTER TABLE event_store.subscription_change REPLICA IDENTITY FULL;
COMMENT ON TABLE event_store.subscription_change IS 'what was done to subscriptions; see the view subscription_history';
COMMENT ON COLUMN event_store.subscription_change.subscription_id IS 'event_store.subscription.id';
COMMENT ON COLUMN event_store.subscription_change.at IS 'when';
COMMENT ON COLUMN event_store.subscription_change.change IS 'created, altered, slots, paused, resumed, rewound, breaker opened, breaker half-open, breaker closed, breaker reset, replayed, discarded, left, expired';
COMMENT ON COLUMN event_store.subscription_change.detail IS 'what there is to say of it';
COMMENT ON COLUMN event_store.subscription_change.changed_by IS 'the session''s user';
SELECT pg_extension_config_dump('event_store.subscription_change', '');

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
COMMENT ON COLUMN event_store.delivered_event.is_replay IS 'whether the event had been delivered, or passed over, before the subscription was rewound to before it';

CREATE FUNCTION event_store.create_subscription(
	name text,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL,
	stream_pattern text DEFAULT NULL,
	start_after bigint DEFAULT 0,
	mode text DEFAULT 'ordered',
	slots int DEFAULT 1,
	start_time timestamptz DEFAULT NULL,
	priority_key text DEFAULT NULL,
	max_attempts int DEFAULT 5,
	first_delay interval DEFAULT '1 s',
	delay_factor float8 DEFAULT 2,
	max_delay interval DEFAULT '5 min',
	jitter float8 DEFAULT 0.2,
	breaker_failures int DEFAULT NULL,
	breaker_window interval DEFAULT '1 min',
	breaker_timeout interval DEFAULT '30 s',
	breaker_probes int DEFAULT 1
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_create_subscription';
REVOKE ALL ON FUNCTION event_store.create_subscription(text, text[], text[], text, bigint, text, int, timestamptz, text, int, interval, float8, interval, float8, int, interval, interval, int) FROM PUBLIC;
ALTER FUNCTION event_store.create_subscription(text, text[], text[], text, bigint, text, int, timestamptz, text, int, interval, float8, interval, float8, int, interval, interval, int) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.create_subscription(text, text[], text[], text, bigint, text, int, timestamptz, text, int, interval, float8, interval, float8, int, interval, interval, int) IS
'create_subscription(name, categories = NULL, types = NULL, stream_pattern = NULL, start_after = 0, mode = ordered, slots = 1, start_time = NULL, priority_key = NULL, max_attempts = 5, first_delay = 1 s, delay_factor = 2, max_delay = 5 min, jitter = 0.2, breaker_failures = NULL, breaker_window = 1 min, breaker_timeout = 30 s, breaker_probes = 1) -> bigint: makes a durable reader of the events of these categories and types (NULL: all), in streams whose name is LIKE stream_pattern (NULL: all). It begins after position start_after (0: at the beginning; NULL: at the settled end), or with the events recorded at start_time or later. mode: ordered delivers the events of each stream in their order; its streams are divided into slots, 1 to 1024, each of which one consumer works on at a time. competing delivers each event to whoever comes first, in no order but that of the number at the key priority_key of the metadata, the greatest first (none: 0). An event whose handling fails (nack()) is tried max_attempts times, after first_delay, then delay_factor times longer each time, up to max_delay (or first_delay, if that is longer), each delay longer or shorter by up to its part jitter at random; then it is a dead letter. After breaker_failures failures within breaker_window (NULL: never) nothing is delivered for breaker_timeout, then breaker_probes events, and all again when they succeed. Returns the position it begins after. Raises VE002 for an invalid argument or a position beyond the settled mark, VE009 if there is a subscription of that name.';

CREATE FUNCTION event_store.alter_subscription(
	name text,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL,
	stream_pattern text DEFAULT NULL,
	slots int DEFAULT NULL,
	max_attempts int DEFAULT NULL,
	first_delay interval DEFAULT NULL,
	delay_factor float8 DEFAULT NULL,
	max_delay interval DEFAULT NULL,
	jitter float8 DEFAULT NULL,
	breaker_failures int DEFAULT NULL,
	breaker_window interval DEFAULT NULL,
	breaker_timeout interval DEFAULT NULL,
	breaker_probes int DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_alter_subscription';
REVOKE ALL ON FUNCTION event_store.alter_subscription(text, text[], text[], text, int, int, interval, float8, interval, float8, int, interval, interval, int) FROM PUBLIC;
ALTER FUNCTION event_store.alter_subscription(text, text[], text[], text, int, int, interval, float8, interval, float8, int, interval, interval, int) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.alter_subscription(text, text[], text[], text, int, int, interval, float8, interval, float8, int, interval, interval, int) IS
'alter_subscription(name, categories = NULL, types = NULL, stream_pattern = NULL, slots = NULL, max_attempts = NULL, first_delay = NULL, delay_factor = NULL, max_delay = NULL, jitter = NULL, breaker_failures = NULL, breaker_window = NULL, breaker_timeout = NULL, breaker_probes = NULL) -> void: alters a subscription. NULL leaves things as they are; an empty array or pattern takes a filter away, breaker_failures 0 the circuit breaker. A filter counts for events that are not dealt out to slots yet. Another number of slots comes into force when no event is out under a lease; until then nothing new is delivered. Waits for transactions that have polled. Raises VE002 for an invalid argument, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.drop_subscription(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_drop_subscription';
REVOKE ALL ON FUNCTION event_store.drop_subscription(text) FROM PUBLIC;
ALTER FUNCTION event_store.drop_subscription(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.drop_subscription(text) IS
'drop_subscription(name) -> void: drops a subscription, its checkpoint, dead letters and history. Waits for transactions that have polled. Raises VE008 if there is none of that name.';

CREATE FUNCTION event_store.pause_subscription(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_pause_subscription';
REVOKE ALL ON FUNCTION event_store.pause_subscription(text) FROM PUBLIC;
ALTER FUNCTION event_store.pause_subscription(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.pause_subscription(text) IS
'pause_subscription(name) -> void: from now on polls of the subscription return nothing; what was delivered can be acknowledged. Raises VE008 if there is none of that name.';

CREATE FUNCTION event_store.resume_subscription(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_resume_subscription';
REVOKE ALL ON FUNCTION event_store.resume_subscription(text) FROM PUBLIC;
ALTER FUNCTION event_store.resume_subscription(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.resume_subscription(text) IS
'resume_subscription(name) -> void: ends a pause. Raises VE008 if there is no subscription of that name.';

CREATE FUNCTION event_store.reset_breaker(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_reset_breaker';
REVOKE ALL ON FUNCTION event_store.reset_breaker(text) FROM PUBLIC;
ALTER FUNCTION event_store.reset_breaker(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.reset_breaker(text) IS
'reset_breaker(name) -> void: closes the circuit breaker of a subscription, and forgets the failures that count for it. Raises VE008 if there is no subscription of that name.';

CREATE FUNCTION event_store.rewind_subscription(
	name text,
	to_position bigint DEFAULT NULL,
	to_time timestamptz DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_rewind_subscription';
REVOKE ALL ON FUNCTION event_store.rewind_subscription(text, bigint, timestamptz) FROM PUBLIC;
ALTER FUNCTION event_store.rewind_subscription(text, bigint, timestamptz) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.rewind_subscription(text, bigint, timestamptz) IS
'rewind_subscription(name, to_position = NULL, to_time = NULL) -> bigint: sets the checkpoint of a subscription back, or ahead: after to_position, before the first event recorded at to_time or later (infinity: to the settled end), or to the beginning (both NULL). Returns the new checkpoint. Events that it had delivered before, or passed over (by an acknowledgement, or by a rewind ahead), come with is_replay = true; a delivery without a lease that was not acknowledged leaves no trace, and does not count. What is out under a lease is out no more; failures and dead letters behind the new checkpoint are forgotten. Waits for transactions that have polled. Raises VE002 for both, or for a position beyond the settled mark, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.poll(
	subscription text,
	max_count int DEFAULT 100,
	consumer text DEFAULT NULL,
	wait interval DEFAULT NULL,
	lease interval DEFAULT NULL,
	auto_ack boolean DEFAULT false
) RETURNS SETOF event_store.delivered_event
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME', 'event_store_poll';
REVOKE ALL ON FUNCTION event_store.poll(text, int, text, interval, interval, boolean) FROM PUBLIC;
ALTER FUNCTION event_store.poll(text, int, text, interval, interval, boolean) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.poll(text, int, text, interval, interval, boolean) IS
'poll(subscription, max_count = 100, consumer = NULL, wait = NULL, lease = NULL, auto_ack = false) -> setof delivered_event: the next open events of a subscription, in order of position (of slots, in order within each; competing: by priority), to the settled mark; at most max_count (NULL: all). Without a lease they belong to the caller''s transaction, which has their slots to its end: other polls get nothing of these meanwhile. What is not acknowledged when it ends comes again. A further poll in the same transaction goes on from there; after a rollback to a savepoint, from where it was there. lease: they are the consumer''s, beyond the transaction, for so long; acknowledging some of them renews the lease of the rest, heartbeat() that of all. When it is over they are delivered anew, which counts as a failed attempt; if it happens again, each alone. consumer: a name of 1 to 1024 bytes; the slots are divided among the consumers that are heard of: any call with the name counts. An ordered subscription wants it for a lease. wait: if there is nothing, waits so long for something, and returns as soon as it is there; that costs next to nothing, and holds back no VACUUM if the statement is only SELECT columns FROM poll(...); in REPEATABLE READ and SERIALIZABLE, where nothing new can be seen, it does not wait; there it can only be done without consumer and lease, of an ordered subscription with one slot. auto_ack: they are acknowledged at once. Nothing if the subscription is paused, or its circuit breaker open. Needs SELECT on the view events as well. Raises VE002 for an invalid argument, VE008 if there is no such subscription, 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.ack(subscription text, positions bigint[], consumer text DEFAULT NULL) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_ack';
REVOKE ALL ON FUNCTION event_store.ack(text, bigint[], text) FROM PUBLIC;
ALTER FUNCTION event_store.ack(text, bigint[], text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.ack(text, bigint[], text) IS
'ack(subscription, positions, consumer = NULL) -> bigint: the events at these positions are done; returns how many of them were open. In the transaction that polled, the acknowledgement commits with the consumer''s own writes: exactly once. Of what is out under a lease only the consumer''s own counts (without a name: what was leased without one); of other events, with a name, only those delivered to this transaction. Positions that are not open, or not the subscription''s, that have failed and are not due again, or that are behind an event of their stream that has failed, count for nothing. Behind an open event at most 10,000 can be done. Waits for another transaction that has polled. Raises VE002 for NULL, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.ack_up_to(subscription text, "position" bigint, consumer text DEFAULT NULL) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_ack_up_to';
REVOKE ALL ON FUNCTION event_store.ack_up_to(text, bigint, text) FROM PUBLIC;
ALTER FUNCTION event_store.ack_up_to(text, bigint, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.ack_up_to(text, bigint, text) IS
'ack_up_to(subscription, position, consumer = NULL) -> bigint: all events up to a position, that one included, are done; returns how many of them were open. Of a group, or with a lease: those of them that were delivered to this transaction or are leased to the consumer. Otherwise as ack(). Raises VE002 for NULL or a negative position, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.nack(
	subscription text,
	"position" bigint,
	error text,
	retry_after interval DEFAULT NULL,
	consumer text DEFAULT NULL
) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_nack';
REVOKE ALL ON FUNCTION event_store.nack(text, bigint, text, interval, text) FROM PUBLIC;
ALTER FUNCTION event_store.nack(text, bigint, text, interval, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.nack(text, bigint, text, interval, text) IS
'nack(subscription, position, error, retry_after = NULL, consumer = NULL) -> text: the handling of an event has failed, and why. It is delivered again after retry_after, or as the subscription''s policy says (NULL); after max_attempts attempts it is a dead letter. Returns retry or dead, NULL if the event was not open (or is leased to another). Until it is decided, the following events of its stream wait, also those that were delivered with it: acknowledging them counts for nothing. Other streams go on. In a transaction that polled, it commits with the consumer''s own writes. Raises VE002 for an invalid argument, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.heartbeat(subscription text, consumer text, lease interval DEFAULT '30 s') RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_heartbeat';
REVOKE ALL ON FUNCTION event_store.heartbeat(text, text, interval) FROM PUBLIC;
ALTER FUNCTION event_store.heartbeat(text, text, interval) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.heartbeat(text, text, interval) IS
'heartbeat(subscription, consumer, lease = 30 s) -> boolean: the consumer is alive: its slots, and what it has under leases that are not over, are its own for so long from now on. False: it has not polled, or was silent for too long; what it had goes to others. A consumer that is in a transaction, or waits in a poll, is alive anyhow. Raises VE002 for an invalid argument, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.leave(subscription text, consumer text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_leave';
REVOKE ALL ON FUNCTION event_store.leave(text, text) FROM PUBLIC;
ALTER FUNCTION event_store.leave(text, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.leave(text, text) IS
'leave(subscription, consumer) -> boolean: the consumer goes: its slots are free, what it had under a lease is delivered to others, without counting as an attempt. A program that starts under a name that it had before calls it first, or waits for its old leases to end. Returns whether it was there. Raises VE002 for an invalid argument, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.deal_subscriptions() RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_deal_subscriptions';
REVOKE ALL ON FUNCTION event_store.deal_subscriptions() FROM PUBLIC;
ALTER FUNCTION event_store.deal_subscriptions() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.deal_subscriptions() IS
'deal_subscriptions() -> bigint: deals events out to the slots of groups, and to competing consumers, ahead of their polls: of each subscription that has been polled, wherever less is queued than two polls of each slot want; and changes the number of slots where another is wanted and nothing is out under a lease. So consumers in long transactions need not do it, and then nobody waits for their commit. It waits for nobody; what is worked on otherwise it leaves for the next time. Returns how many events it has dealt. The worker does it each second (task deal to consumers). Call it in a transaction of its own: others wait for that as they would for a consumer. Only the owner may. Raises 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.replay_dead_letters(
	subscription text,
	at_position bigint DEFAULT NULL,
	stream text DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_replay_dead_letters';
REVOKE ALL ON FUNCTION event_store.replay_dead_letters(text, bigint, text) FROM PUBLIC;
ALTER FUNCTION event_store.replay_dead_letters(text, bigint, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.replay_dead_letters(text, bigint, text) IS
'replay_dead_letters(subscription, at_position = NULL, stream = NULL) -> bigint: delivers dead letters again: the one at a position, those of a stream, or all; what is parked behind them follows in order. Their attempts are counted anew. Returns how many they are. Raises VE002 if both are given, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.discard_dead_letters(
	subscription text,
	reason text,
	at_position bigint DEFAULT NULL,
	stream text DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_discard_dead_letters';
REVOKE ALL ON FUNCTION event_store.discard_dead_letters(text, text, bigint, text) FROM PUBLIC;
ALTER FUNCTION event_store.discard_dead_letters(text, text, bigint, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.discard_dead_letters(text, text, bigint, text) IS
'discard_dead_letters(subscription, reason, at_position = NULL, stream = NULL) -> bigint: gives dead letters up: the one at a position, those of a stream, or all; what is parked behind them is delivered. The reason stands in the history. Returns how many they were. Raises VE002 if the reason is empty, or both are given, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.subscription_lag(
	subscription text,
	max_count bigint DEFAULT 10000,
	OUT open_events bigint,
	OUT oldest_recorded_at timestamptz
) RETURNS record
LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_subscription_lag';
ALTER FUNCTION event_store.subscription_lag(text, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.subscription_lag(text, bigint) IS
'subscription_lag(subscription, max_count = 10000) -> (open_events, oldest_recorded_at): how many events up to the settled mark a subscription has not done, dead letters and what is parked behind them included, counted up to max_count, and when the first of them was recorded. Needs SELECT on the view subscriptions, or on projections or events. Raises VE002 for a max_count that is not positive, VE008 if there is no such subscription.';

CREATE FUNCTION event_store.dead_letters(
	subscription text,
	max_count bigint DEFAULT 1000,
	OUT "position" bigint,
	OUT stream text,
	OUT version int,
	OUT type text,
	OUT attempts int,
	OUT error text,
	OUT consumer text,
	OUT first_failed_at timestamptz,
	OUT failed_at timestamptz,
	OUT parked bigint,
	OUT data jsonb,
	OUT metadata jsonb
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER PARALLEL UNSAFE ROWS 100
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
	SELECT f.position, e.stream, e.version, e.type, f.attempts, f.error, f.failed_by, f.first_failed_at, f.failed_at,
		   (SELECT count(*) FROM event_store.subscription_failure AS p
			 WHERE p.subscription_id = f.subscription_id AND p.stream_id = f.stream_id
			   AND p.position > f.position AND s.mode = 'ordered'),
		   e.data, e.metadata
	  FROM event_store.subscription AS s
	  JOIN event_store.subscription_failure AS f ON f.subscription_id = s.id AND f.dead
	  LEFT JOIN event_store.events AS e ON e.position = f.position
	 WHERE s.name = dead_letters.subscription
	 ORDER BY f.position
	 LIMIT dead_letters.max_count;
END;
REVOKE ALL ON FUNCTION event_store.dead_letters(text, bigint) FROM PUBLIC;
ALTER FUNCTION event_store.dead_letters(text, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.dead_letters(text, bigint) IS
'dead_letters(subscription, max_count = 1000) -> setof (position, stream, version, type, attempts, error, consumer, first_failed_at, failed_at, parked, data, metadata): the dead letters of a subscription in order of position, at most max_count (NULL: all): the event, how often it failed, the last error and the consumer that met it, and how many events of its stream are parked behind it. Runs with the rights of the store''s owner: who may execute it sees these events. Nothing for an unknown subscription. Raises 2201W for a negative max_count.';

CREATE VIEW event_store.subscriptions AS
	SELECT s.name,
		   s.categories,
		   s.types,
		   s.stream_pattern,
		   s.mode,
		   s.slots,
		   s.paused,
		   c.checkpoint,
		   greatest(event_store.settled_position() - c.checkpoint, 0) AS positions_behind,
		   (SELECT l.open_events FROM event_store.subscription_lag(s.name) AS l) AS open_events,
		   (SELECT statement_timestamp() - l.oldest_recorded_at FROM event_store.subscription_lag(s.name, 1) AS l) AS lag,
		   cardinality(c.decided) AS done_ahead,
		   c.checkpoint < c.replay_until AS replaying,
		   (c.taken - coalesce((SELECT sum(cardinality(b.positions)) FROM event_store.subscription_batch AS b WHERE b.subscription_id = s.id AND b.first_position >= c.oldest), 0)
			- (SELECT count(*) FROM event_store.subscription_failure AS f WHERE f.subscription_id = s.id))::bigint AS acknowledged,
		   c.taken_at,
		   c.rate * exp(greatest(least(extract(epoch FROM c.taken_at - statement_timestamp())::float8 / 60, 0), -700)) AS rate,
		   coalesce((SELECT sum(cardinality(b.positions)) FROM event_store.subscription_batch AS b
			 WHERE b.subscription_id = s.id AND b.first_position >= c.oldest AND b.consumer IS NULL), 0)::bigint AS queued,
		   (coalesce((SELECT sum(cardinality(b.positions)) FROM event_store.subscription_batch AS b
			 WHERE b.subscription_id = s.id AND b.first_position >= c.oldest AND b.consumer IS NOT NULL), 0)
			+ (SELECT count(*) FROM event_store.subscription_failure AS f
				WHERE f.subscription_id = s.id AND f.consumer IS NOT NULL))::bigint AS leased,
		   (SELECT min(b.delivered_at) FROM event_store.subscription_batch AS b
			 WHERE b.subscription_id = s.id AND b.first_position >= c.oldest AND b.consumer IS NOT NULL) AS oldest_leased_at,
		   (SELECT count(*) FROM event_store.subscription_failure AS f
			 WHERE f.subscription_id = s.id AND f.attempts > 0 AND NOT f.dead) AS retries,
		   (SELECT count(*) FROM event_store.subscription_failure AS f
			 WHERE f.subscription_id = s.id AND f.attempts = 0) AS waiting,
		   (SELECT count(*) FROM event_store.subscription_failure AS f
			 WHERE f.subscription_id = s.id AND f.dead) AS dead_letters,
		   (SELECT coalesce(sum(f.failures), 0) FROM event_store.subscription_fault AS f
			 WHERE f.subscription_id = s.id)::bigint AS failures,
		   b.state AS breaker,
		   CASE WHEN b.state = 'open' THEN b.until END AS breaker_until,
		   (SELECT jsonb_object_agg(o.consumer, o.slots) FROM event_store.subscription_consumer AS o
			 WHERE o.subscription_id = s.id
			   AND (SELECT max(h.alive_until) FROM event_store.subscription_heartbeat AS h
					 WHERE h.subscription_id = s.id AND h.consumer = o.consumer) > statement_timestamp()) AS consumers,
		   s.created_at
	  FROM event_store.subscription AS s
	  CROSS JOIN LATERAL (SELECT k.* FROM event_store.subscription_cursor AS k
						   WHERE k.subscription_id = s.id ORDER BY k.version DESC LIMIT 1) AS c
	  LEFT JOIN event_store.subscription_breaker AS b ON b.subscription_id = s.id;
ALTER VIEW event_store.subscriptions OWNER TO @extowner@;
COMMENT ON VIEW event_store.subscriptions IS 'subscriptions, how far they have come, and how they fare; open_events and lag are looked up when asked for';
COMMENT ON COLUMN event_store.subscriptions.name IS 'the subscription''s name';
COMMENT ON COLUMN event_store.subscriptions.categories IS 'categories that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscriptions.types IS 'types that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscriptions.stream_pattern IS 'LIKE pattern of the streams that it reads; NULL: all';
COMMENT ON COLUMN event_store.subscriptions.mode IS 'ordered or competing';
COMMENT ON COLUMN event_store.subscriptions.slots IS 'into how many parts its streams are divided';
COMMENT ON COLUMN event_store.subscriptions.paused IS 'whether polls return nothing';
COMMENT ON COLUMN event_store.subscriptions.checkpoint IS 'the position up to which all events are done, or dealt out, or have failed';
COMMENT ON COLUMN event_store.subscriptions.positions_behind IS 'how far the settled mark is ahead of it: the positions of events of any kind, and those that were never used';
COMMENT ON COLUMN event_store.subscriptions.open_events IS 'events that are not done, dead letters included, counted up to 10,000; see subscription_lag()';
COMMENT ON COLUMN event_store.subscriptions.lag IS 'how long ago the first of them was recorded; NULL: there is none';
COMMENT ON COLUMN event_store.subscriptions.done_ahead IS 'events behind the first open one that are done already';
COMMENT ON COLUMN event_store.subscriptions.replaying IS 'whether what comes next had been passed before a rewind';
COMMENT ON COLUMN event_store.subscriptions.acknowledged IS 'events done so far, again after a rewind too';
COMMENT ON COLUMN event_store.subscriptions.taken_at IS 'when the checkpoint last passed an event';
COMMENT ON COLUMN event_store.subscriptions.rate IS 'events a second that the checkpoint passed, over the last minute or so';
COMMENT ON COLUMN event_store.subscriptions.queued IS 'events that are dealt out to slots and not delivered';
COMMENT ON COLUMN event_store.subscriptions.leased IS 'events that are out under a lease';
COMMENT ON COLUMN event_store.subscriptions.oldest_leased_at IS 'since when the first of them is';
COMMENT ON COLUMN event_store.subscriptions.retries IS 'events that have failed and will be tried again';
COMMENT ON COLUMN event_store.subscriptions.waiting IS 'events that wait behind one of their stream that has failed';
COMMENT ON COLUMN event_store.subscriptions.dead_letters IS 'events that have failed for good';
COMMENT ON COLUMN event_store.subscriptions.failures IS 'attempts that failed so far';
COMMENT ON COLUMN event_store.subscriptions.breaker IS 'the circuit breaker: closed, open, half-open';
COMMENT ON COLUMN event_store.subscriptions.breaker_until IS 'how long it stays open';
COMMENT ON COLUMN event_store.subscriptions.consumers IS 'consumers that are heard of, and their slots';
COMMENT ON COLUMN event_store.subscriptions.created_at IS 'when it was created';

CREATE VIEW event_store.subscription_history AS
	SELECT s.name AS subscription, c.at, c.change, c.detail, c.changed_by
	  FROM event_store.subscription_change AS c
	  JOIN event_store.subscription AS s ON s.id = c.subscription_id;
ALTER VIEW event_store.subscription_history OWNER TO @extowner@;
COMMENT ON VIEW event_store.subscription_history IS 'what was done to subscriptions, and when their circuit breakers changed';
COMMENT ON COLUMN event_store.subscription_history.subscription IS 'the subscription''s name';
COMMENT ON COLUMN event_store.subscription_history.at IS 'when';
COMMENT ON COLUMN event_store.subscription_history.change IS 'created, altered, slots, paused, resumed, rewound, breaker opened, breaker half-open, breaker closed, breaker reset, replayed, discarded, left, expired';
COMMENT ON COLUMN event_store.subscription_history.detail IS 'what there is to say of it';
COMMENT ON COLUMN event_store.subscription_history.changed_by IS 'the session''s user';
