-- ---------------------------------------------------------------------------
-- outbox: messages to be sent elsewhere, and who sends them
-- ---------------------------------------------------------------------------

-- Messages lie in one of four tables, which are emptied as a whole: see README.md.
-- The first five columns behind the slot have the names and the types that Debezium's
-- outbox event router takes by default.
CREATE SEQUENCE event_store.outbox_current MINVALUE 0;
ALTER SEQUENCE event_store.outbox_current OWNER TO @extowner@;
COMMENT ON SEQUENCE event_store.outbox_current IS 'by its remainder: which of the tables outbox_0 to outbox_3 is written';
SELECT pg_extension_config_dump('event_store.outbox_current', '');

CREATE TABLE event_store.outbox_0 (
	position		bigint NOT NULL,
	published_at	timestamptz NOT NULL,
	slot			int NOT NULL,
	id				uuid NOT NULL,
	aggregatetype	text COLLATE "C" NOT NULL,
	aggregateid		text COLLATE "C",
	type			text COLLATE "C" NOT NULL,
	headers			jsonb NOT NULL,
	payload			jsonb NOT NULL
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX outbox_0_slot_position ON event_store.outbox_0 (slot, position) WITH (deduplicate_items = off);
ALTER TABLE event_store.outbox_0 OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_0 IS 'messages of the outbox that wait, are out, or were sent lately: rows are only inserted, and the table is emptied as a whole; see the view outbox_messages';
COMMENT ON COLUMN event_store.outbox_0.position IS 'what the message is acknowledged by; drawn with those of events';
COMMENT ON COLUMN event_store.outbox_0.published_at IS 'the clock when it was published';
COMMENT ON COLUMN event_store.outbox_0.slot IS 'the slot of its key';
COMMENT ON COLUMN event_store.outbox_0.id IS 'the message id: what identifies it for ever';
COMMENT ON COLUMN event_store.outbox_0.aggregatetype IS 'the topic';
COMMENT ON COLUMN event_store.outbox_0.aggregateid IS 'the key: messages of one are delivered in order; NULL: in any';
COMMENT ON COLUMN event_store.outbox_0.type IS 'what kind of message it is';
COMMENT ON COLUMN event_store.outbox_0.headers IS 'what goes beside the payload: a JSON object';
COMMENT ON COLUMN event_store.outbox_0.payload IS 'any JSON value';
SELECT pg_extension_config_dump('event_store.outbox_0', '');

CREATE TABLE event_store.outbox_1 (LIKE event_store.outbox_0 INCLUDING COMMENTS)
	WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX outbox_1_slot_position ON event_store.outbox_1 (slot, position) WITH (deduplicate_items = off);
ALTER TABLE event_store.outbox_1 OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_1 IS 'messages of the outbox, as outbox_0';
SELECT pg_extension_config_dump('event_store.outbox_1', '');

CREATE TABLE event_store.outbox_2 (LIKE event_store.outbox_0 INCLUDING COMMENTS)
	WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX outbox_2_slot_position ON event_store.outbox_2 (slot, position) WITH (deduplicate_items = off);
ALTER TABLE event_store.outbox_2 OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_2 IS 'messages of the outbox, as outbox_0';
SELECT pg_extension_config_dump('event_store.outbox_2', '');

CREATE TABLE event_store.outbox_3 (LIKE event_store.outbox_0 INCLUDING COMMENTS)
	WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX outbox_3_slot_position ON event_store.outbox_3 (slot, position) WITH (deduplicate_items = off);
ALTER TABLE event_store.outbox_3 OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_3 IS 'messages of the outbox, as outbox_0';
SELECT pg_extension_config_dump('event_store.outbox_3', '');

CREATE TABLE event_store.outbox_delayed (
	LIKE event_store.outbox_0 INCLUDING COMMENTS,
	due				timestamptz NOT NULL,
	-- what is deleted must be told by a key where all tables are published for logical replication
	CONSTRAINT outbox_delayed_pkey PRIMARY KEY (position)
);
CREATE INDEX outbox_delayed_due ON event_store.outbox_delayed (due);
ALTER TABLE event_store.outbox_delayed OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_delayed IS 'messages that are not to be sent before a time';
COMMENT ON COLUMN event_store.outbox_delayed.position IS 'a number; the message gets another one when it is due';
COMMENT ON COLUMN event_store.outbox_delayed.due IS 'when it is to be sent at the earliest';
SELECT pg_extension_config_dump('event_store.outbox_delayed', '');

CREATE TABLE event_store.outbox_kept (
	LIKE event_store.outbox_0 INCLUDING COMMENTS,
	CONSTRAINT outbox_kept_pkey PRIMARY KEY (position)
);
ALTER TABLE event_store.outbox_kept OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_kept IS 'messages that have failed, and those that wait behind them: event_store.subscription_failure, subscription_id 0, says what of each';
SELECT pg_extension_config_dump('event_store.outbox_kept', '');

CREATE SEQUENCE event_store.outbox_slot_current MINVALUE 0;
ALTER SEQUENCE event_store.outbox_slot_current OWNER TO @extowner@;
COMMENT ON SEQUENCE event_store.outbox_slot_current IS 'by its remainder: which of the tables outbox_slot_0 and outbox_slot_1 is written';
SELECT pg_extension_config_dump('event_store.outbox_slot_current', '');

CREATE TABLE event_store.outbox_slot_0 (
	version			bigint NOT NULL,
	checkpoint		bigint NOT NULL,
	leased_to		bigint NOT NULL,
	acknowledged	bigint NOT NULL,
	acknowledged_at	timestamptz NOT NULL,
	rate			float8 NOT NULL,
	leased_at		timestamptz,
	leased_until	timestamptz,
	lease			interval,
	slot			int NOT NULL,
	consumer		text COLLATE "C",
	decided			bigint[]
) WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX outbox_slot_0_version ON event_store.outbox_slot_0 (slot, version) WITH (deduplicate_items = off);
ALTER TABLE event_store.outbox_slot_0 OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_slot_0 IS 'how far the slots of the outbox have come: rows are only inserted, and the table is emptied as a whole';
COMMENT ON COLUMN event_store.outbox_slot_0.version IS 'rises with each change of the slot; the highest in both tables counts';
COMMENT ON COLUMN event_store.outbox_slot_0.checkpoint IS 'up to here all messages of the slot are done, or have failed';
COMMENT ON COLUMN event_store.outbox_slot_0.leased_to IS 'and those up to here are out, if there is a consumer';
COMMENT ON COLUMN event_store.outbox_slot_0.acknowledged IS 'messages that were acknowledged so far';
COMMENT ON COLUMN event_store.outbox_slot_0.acknowledged_at IS 'when that was last';
COMMENT ON COLUMN event_store.outbox_slot_0.rate IS 'how many a second were, about then: the mean of the last minute, roughly';
COMMENT ON COLUMN event_store.outbox_slot_0.leased_at IS 'since when messages are out';
COMMENT ON COLUMN event_store.outbox_slot_0.leased_until IS 'until when, unless the relay is heard of';
COMMENT ON COLUMN event_store.outbox_slot_0.lease IS 'for how long, from when it is heard of';
COMMENT ON COLUMN event_store.outbox_slot_0.slot IS 'the slot';
COMMENT ON COLUMN event_store.outbox_slot_0.consumer IS 'the relay that has messages; NULL: nobody';
COMMENT ON COLUMN event_store.outbox_slot_0.decided IS 'messages behind the checkpoint that are done, or have failed, ascending';
SELECT pg_extension_config_dump('event_store.outbox_slot_0', '');

CREATE TABLE event_store.outbox_slot_1 (LIKE event_store.outbox_slot_0 INCLUDING COMMENTS)
	WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE INDEX outbox_slot_1_version ON event_store.outbox_slot_1 (slot, version) WITH (deduplicate_items = off);
ALTER TABLE event_store.outbox_slot_1 OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_slot_1 IS 'how far the slots of the outbox have come, as outbox_slot_0';
SELECT pg_extension_config_dump('event_store.outbox_slot_1', '');

CREATE TABLE event_store.outbox_policy (
	id					int NOT NULL DEFAULT 1 CHECK (id = 1),
	paused				boolean NOT NULL,
	max_attempts		int NOT NULL,
	first_delay			interval NOT NULL,
	delay_factor		float8 NOT NULL,
	max_delay			interval NOT NULL,
	jitter				float8 NOT NULL,
	breaker_failures	int,
	breaker_window		interval NOT NULL,
	breaker_timeout		interval NOT NULL,
	breaker_probes		int NOT NULL,
	CONSTRAINT outbox_policy_pkey PRIMARY KEY (id)
);
ALTER TABLE event_store.outbox_policy OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_policy IS 'what alter_outbox() has set: one row, or none while everything has its default';
COMMENT ON COLUMN event_store.outbox_policy.id IS 'always 1: there is one row at the most';
COMMENT ON COLUMN event_store.outbox_policy.paused IS 'whether polls return nothing';
COMMENT ON COLUMN event_store.outbox_policy.max_attempts IS 'after so many failed attempts a message is a dead letter';
COMMENT ON COLUMN event_store.outbox_policy.first_delay IS 'from the first failure to the second attempt';
COMMENT ON COLUMN event_store.outbox_policy.delay_factor IS 'by which the delay grows with each failure';
COMMENT ON COLUMN event_store.outbox_policy.max_delay IS 'to which it grows';
COMMENT ON COLUMN event_store.outbox_policy.jitter IS 'by which part of itself, at most, a delay is made longer or shorter at random';
COMMENT ON COLUMN event_store.outbox_policy.breaker_failures IS 'so many failures within breaker_window open the circuit breaker; NULL: there is none';
COMMENT ON COLUMN event_store.outbox_policy.breaker_window IS 'see breaker_failures';
COMMENT ON COLUMN event_store.outbox_policy.breaker_timeout IS 'how long the circuit breaker stays open';
COMMENT ON COLUMN event_store.outbox_policy.breaker_probes IS 'so many messages are let through after that, and must succeed';
SELECT pg_extension_config_dump('event_store.outbox_policy', '');

CREATE TABLE event_store.outbox_route (
	name		text COLLATE "C" NOT NULL,
	categories	text[],
	types		text[],
	topic		text NOT NULL,
	key			text,
	payload		jsonb,
	translation	text COLLATE "C",
	created_at	timestamptz NOT NULL DEFAULT now(),
	CONSTRAINT outbox_route_pkey PRIMARY KEY (name)
);
ALTER TABLE event_store.outbox_route OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_route IS 'which events are published as they are appended: see route_to_outbox()';
COMMENT ON COLUMN event_store.outbox_route.name IS 'the route''s name';
COMMENT ON COLUMN event_store.outbox_route.categories IS 'categories of streams; NULL: all';
COMMENT ON COLUMN event_store.outbox_route.types IS 'types of events; NULL: all';
COMMENT ON COLUMN event_store.outbox_route.topic IS 'template of the topic';
COMMENT ON COLUMN event_store.outbox_route.key IS 'template of the key; NULL: no key';
COMMENT ON COLUMN event_store.outbox_route.payload IS 'template of the payload; NULL: the event''s data';
COMMENT ON COLUMN event_store.outbox_route.translation IS 'the translation of events before they are published; NULL: none';
COMMENT ON COLUMN event_store.outbox_route.created_at IS 'when it was made';
SELECT pg_extension_config_dump('event_store.outbox_route', '');

CREATE FUNCTION event_store.keep_routed_translation() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'event_store_keep_routed_translation';
REVOKE ALL ON FUNCTION event_store.keep_routed_translation() FROM PUBLIC;
ALTER FUNCTION event_store.keep_routed_translation() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.keep_routed_translation() IS
'trigger: refuses to delete a translation that a route of the outbox has; raises 23503';
CREATE TRIGGER keep_routed AFTER DELETE ON event_store.translation
	FOR EACH ROW EXECUTE FUNCTION event_store.keep_routed_translation();

CREATE TYPE event_store.outbox_message AS (
	id				bigint,
	message_id		uuid,
	topic			text,
	key				text,
	type			text,
	payload			jsonb,
	headers			jsonb,
	published_at	timestamptz,
	attempt			int
);
ALTER TYPE event_store.outbox_message OWNER TO @extowner@;
COMMENT ON TYPE event_store.outbox_message IS 'a message as it is delivered to a relay';
COMMENT ON COLUMN event_store.outbox_message.id IS 'what is acknowledged';
COMMENT ON COLUMN event_store.outbox_message.message_id IS 'identifies the message for ever: the same in each delivery';
COMMENT ON COLUMN event_store.outbox_message.topic IS 'where it is to be sent';
COMMENT ON COLUMN event_store.outbox_message.key IS 'messages of one key are delivered in order; NULL: in any';
COMMENT ON COLUMN event_store.outbox_message.type IS 'what kind of message it is: the event''s type, or what publish() was given';
COMMENT ON COLUMN event_store.outbox_message.payload IS 'any JSON value';
COMMENT ON COLUMN event_store.outbox_message.headers IS 'what goes beside the payload: a JSON object';
COMMENT ON COLUMN event_store.outbox_message.published_at IS 'the clock when it was published';
COMMENT ON COLUMN event_store.outbox_message.attempt IS 'which delivery this is, as far as is known: 1 for the first';

CREATE FUNCTION event_store.publish(
	topic text,
	key text,
	payload jsonb,
	headers jsonb DEFAULT '{}',
	message_id uuid DEFAULT NULL,
	deliver_after interval DEFAULT NULL,
	type text DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_publish';
REVOKE ALL ON FUNCTION event_store.publish(text, text, jsonb, jsonb, uuid, interval, text) FROM PUBLIC;
ALTER FUNCTION event_store.publish(text, text, jsonb, jsonb, uuid, interval, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.publish(text, text, jsonb, jsonb, uuid, interval, text) IS
'publish(topic, key, payload, headers = {}, message_id = NULL, deliver_after = NULL, type = NULL) -> bigint: puts a message into the outbox; it is sent if this transaction commits, and otherwise it never was. Returns its id in the outbox. Messages of one key (1 to 1024 bytes) are delivered in the order in which they were published, whatever their topics; without a key (NULL) in any order. headers: a JSON object. message_id: what identifies the message for ever; NULL: a new UUID version 7. It is not looked up: who publishes one id twice has two messages. deliver_after: it is not delivered before; then it is put into the outbox as if it were published then, those of a key in the order of their times, under another id, but with the same message_id. type: NULL: the topic. With event_store.outbox_mode = wal the message is written to the write-ahead log only, for logical decoding, with the prefix event_store.outbox. Raises VE002 for an invalid argument, VE016 for mode wal where wal_level is not logical.';

CREATE FUNCTION event_store.outbox_poll(
	relay text,
	max_count int DEFAULT 100,
	lease interval DEFAULT '30 s',
	wait interval DEFAULT NULL
) RETURNS SETOF event_store.outbox_message
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME', 'event_store_outbox_poll';
REVOKE ALL ON FUNCTION event_store.outbox_poll(text, int, interval, interval) FROM PUBLIC;
ALTER FUNCTION event_store.outbox_poll(text, int, interval, interval) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.outbox_poll(text, int, interval, interval) IS
'outbox_poll(relay, max_count = 100, lease = 30 s, wait = NULL) -> setof outbox_message: messages for a relay to send, at most max_count (NULL: as many as there are). They are the relay''s for so long: it says outbox_ack() of what it has sent, outbox_nack() of what failed; each of these, and outbox_heartbeat(), makes the time begin anew for the rest. When it is over they are delivered again, which counts as a failed attempt; if it happens again, each alone. Any number of relays, by different names, share the work, 16 at a time. Of a key no message is delivered while an earlier one is out, or has failed and is not sent yet. Only messages of transactions that have ended, and behind which no transaction is still publishing, are delivered. wait: if there is nothing, waits so long for something, and returns as soon as it is there, or when there was something to be put in order. Returns nothing while the outbox is paused or its circuit breaker open. Raises VE002 for an invalid argument, 0A000 in REPEATABLE READ and SERIALIZABLE, 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.outbox_ack(
	relay text,
	ids bigint[]
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_outbox_ack';
REVOKE ALL ON FUNCTION event_store.outbox_ack(text, bigint[]) FROM PUBLIC;
ALTER FUNCTION event_store.outbox_ack(text, bigint[]) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.outbox_ack(text, bigint[]) IS
'outbox_ack(relay, ids) -> bigint: these messages were sent; returns how many of them the relay had. Raises VE002 for NULL, 0A000 in REPEATABLE READ and SERIALIZABLE.';

CREATE FUNCTION event_store.outbox_nack(
	relay text,
	id bigint,
	error text,
	retry_after interval DEFAULT NULL
) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_outbox_nack';
REVOKE ALL ON FUNCTION event_store.outbox_nack(text, bigint, text, interval) FROM PUBLIC;
ALTER FUNCTION event_store.outbox_nack(text, bigint, text, interval) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.outbox_nack(text, bigint, text, interval) IS
'outbox_nack(relay, id, error, retry_after = NULL) -> text: a message could not be sent. It is delivered again, after the delay of the policy (see alter_outbox()) or retry_after, and what comes behind it of its key waits for it; after max_attempts attempts it is a dead letter, which its key waits behind until somebody decides. Returns retry, dead, or NULL if the relay does not have that message. Raises VE002 for an invalid argument, 0A000 in REPEATABLE READ and SERIALIZABLE.';

CREATE FUNCTION event_store.outbox_heartbeat(
	relay text,
	lease interval DEFAULT '30 s'
) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_outbox_heartbeat';
REVOKE ALL ON FUNCTION event_store.outbox_heartbeat(text, interval) FROM PUBLIC;
ALTER FUNCTION event_store.outbox_heartbeat(text, interval) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.outbox_heartbeat(text, interval) IS
'outbox_heartbeat(relay, lease = 30 s) -> boolean: the relay is at it still: what it has it has for so long from now. Whether it has anything. Raises VE002 for an invalid argument, 0A000 in REPEATABLE READ and SERIALIZABLE.';

CREATE FUNCTION event_store.outbox_release(
	relay text
) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_outbox_release';
REVOKE ALL ON FUNCTION event_store.outbox_release(text) FROM PUBLIC;
ALTER FUNCTION event_store.outbox_release(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.outbox_release(text) IS
'outbox_release(relay) -> boolean: the relay gives back what it has, and has not acknowledged; it is delivered again at once, and counts for no failed attempt. For a relay that stops, or starts anew under its old name. Whether it had anything. Raises VE002 for an invalid argument, 0A000 in REPEATABLE READ and SERIALIZABLE.';

CREATE FUNCTION event_store.tend_outbox() RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_tend_outbox';
REVOKE ALL ON FUNCTION event_store.tend_outbox() FROM PUBLIC;
ALTER FUNCTION event_store.tend_outbox() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.tend_outbox() IS
'tend_outbox() -> bigint: puts delayed messages that are due into the outbox, returns how many (1,000 at most), and empties tables that nothing is needed of any more, when the transaction commits. Polls and acknowledgements do so by themselves; a task of the worker calls it every second. Only the owner of the store may. Raises 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.alter_outbox(
	paused boolean DEFAULT NULL,
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
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_alter_outbox';
REVOKE ALL ON FUNCTION event_store.alter_outbox(boolean, int, interval, float8, interval, float8, int, interval, interval, int) FROM PUBLIC;
ALTER FUNCTION event_store.alter_outbox(boolean, int, interval, float8, interval, float8, int, interval, interval, int) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.alter_outbox(boolean, int, interval, float8, interval, float8, int, interval, interval, int) IS
'alter_outbox(paused = NULL, max_attempts = NULL, first_delay = NULL, delay_factor = NULL, max_delay = NULL, jitter = NULL, breaker_failures = NULL, breaker_window = NULL, breaker_timeout = NULL, breaker_probes = NULL) -> void: sets how the outbox goes about failures; NULL leaves things as they are. They mean what they mean for subscriptions, with the same defaults: see create_subscription(); breaker_failures 0 takes the circuit breaker away. paused: polls return nothing. Raises VE002 for a value out of range.';

CREATE FUNCTION event_store.outbox_replay_dead_letters(
	id bigint DEFAULT NULL,
	key text DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_outbox_replay_dead_letters';
REVOKE ALL ON FUNCTION event_store.outbox_replay_dead_letters(bigint, text) FROM PUBLIC;
ALTER FUNCTION event_store.outbox_replay_dead_letters(bigint, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.outbox_replay_dead_letters(bigint, text) IS
'outbox_replay_dead_letters(id = NULL, key = NULL) -> bigint: delivers dead letters of the outbox again: the one with an id, those of a key, or all; what is parked behind them follows in order. Their attempts are counted anew. Returns how many they are. Raises VE002 if both are given, 0A000 in REPEATABLE READ and SERIALIZABLE.';

CREATE FUNCTION event_store.outbox_discard_dead_letters(
	reason text,
	id bigint DEFAULT NULL,
	key text DEFAULT NULL
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_outbox_discard_dead_letters';
REVOKE ALL ON FUNCTION event_store.outbox_discard_dead_letters(text, bigint, text) FROM PUBLIC;
ALTER FUNCTION event_store.outbox_discard_dead_letters(text, bigint, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.outbox_discard_dead_letters(text, bigint, text) IS
'outbox_discard_dead_letters(reason, id = NULL, key = NULL) -> bigint: gives dead letters of the outbox up: the one with an id, those of a key, or all; what is parked behind them is delivered. The reason stands in the view outbox_history. Returns how many they were. Raises VE002 if the reason is empty, or both are given, 0A000 in REPEATABLE READ and SERIALIZABLE.';

CREATE FUNCTION event_store.route_to_outbox(
	name text,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL,
	topic text DEFAULT '{category}',
	key text DEFAULT '{stream}',
	payload jsonb DEFAULT NULL,
	translation text DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_route_to_outbox';
REVOKE ALL ON FUNCTION event_store.route_to_outbox(text, text[], text[], text, text, jsonb, text) FROM PUBLIC;
ALTER FUNCTION event_store.route_to_outbox(text, text[], text[], text, text, jsonb, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.route_to_outbox(text, text[], text[], text, text, jsonb, text) IS
'route_to_outbox(name, categories = NULL, types = NULL, topic = {category}, key = {stream}, payload = NULL, translation = NULL) -> void: from now on, each event of these categories and types (NULL: all) that is appended is published by the same transaction. topic and key are templates: {stream}, {category}, {id} (of the stream''s name, what stands behind the category), {type}, {version}, {position}, {event_id}, {correlation_id}, {causation_id}, {source}, {schema_version}, {occurred_at}, {recorded_at} (in UTC), {data} and {metadata} stand for what the event has, {data.customer.id} for what is at a path in it; {{ stands for a brace. key NULL, or an event that lacks what the key names: no key. payload: NULL: the event''s data; or JSON whose strings are templates, where one that is nothing but a placeholder becomes the JSON value, and null where there is none. The message''s type is that of the event; its headers say which event it is, and carry correlation_id, causation_id, source, and traceparent and tracestate of the metadata. translation: categories and types are those of the event that is appended; type, stream, data and all else that the message is made of are what this translation makes of it, and an event that it passes over is not published; an append whose translation fails, fails. An append of an event that lacks what the topic names fails with VE019. Appends that are under way may miss a new route. Raises VE002 for an invalid argument or template, VE018 if there is a route of that name, VE023 if there is no such translation.';

CREATE FUNCTION event_store.drop_route(
	name text
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_drop_route';
REVOKE ALL ON FUNCTION event_store.drop_route(text) FROM PUBLIC;
ALTER FUNCTION event_store.drop_route(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.drop_route(text) IS
'drop_route(name) -> void: ends a route; what it has published stays. Raises VE017 if there is none of that name.';

CREATE VIEW event_store.outbox_routes AS
	SELECT r.name, r.categories, r.types, r.topic, r.key, r.payload, r.translation, r.created_at
	  FROM event_store.outbox_route AS r;
ALTER VIEW event_store.outbox_routes OWNER TO @extowner@;
COMMENT ON VIEW event_store.outbox_routes IS 'which events are published as they are appended';
COMMENT ON COLUMN event_store.outbox_routes.name IS 'the route''s name';
COMMENT ON COLUMN event_store.outbox_routes.categories IS 'categories of streams; NULL: all';
COMMENT ON COLUMN event_store.outbox_routes.types IS 'types of events; NULL: all';
COMMENT ON COLUMN event_store.outbox_routes.topic IS 'template of the topic';
COMMENT ON COLUMN event_store.outbox_routes.key IS 'template of the key; NULL: no key';
COMMENT ON COLUMN event_store.outbox_routes.payload IS 'template of the payload; NULL: the event''s data';
COMMENT ON COLUMN event_store.outbox_routes.translation IS 'the translation of events before they are published; NULL: none';
COMMENT ON COLUMN event_store.outbox_routes.created_at IS 'when it was made';

CREATE VIEW event_store.outbox_slots AS
	SELECT DISTINCT ON (s.slot) s.slot, s.checkpoint, s.consumer AS relay, s.leased_at, s.leased_until,
		   s.leased_to, s.acknowledged, nullif(s.acknowledged_at, '2000-01-01 00:00+00') AS acknowledged_at,
		   s.rate * exp(greatest(least(extract(epoch FROM s.acknowledged_at - statement_timestamp())::float8 / 60, 0), -700)) AS rate,
		   coalesce(s.decided, '{}') AS decided
	  FROM (SELECT * FROM event_store.outbox_slot_0 UNION ALL SELECT * FROM event_store.outbox_slot_1) AS s
	 ORDER BY s.slot, s.version DESC;
ALTER VIEW event_store.outbox_slots OWNER TO @extowner@;
COMMENT ON VIEW event_store.outbox_slots IS 'how far the slots of the outbox have come; one that never had a message is not there';
COMMENT ON COLUMN event_store.outbox_slots.slot IS 'the slot, 1 to 16';
COMMENT ON COLUMN event_store.outbox_slots.checkpoint IS 'up to here all messages of the slot are done, or have failed';
COMMENT ON COLUMN event_store.outbox_slots.relay IS 'who has messages of it; NULL: nobody';
COMMENT ON COLUMN event_store.outbox_slots.leased_at IS 'since when';
COMMENT ON COLUMN event_store.outbox_slots.leased_until IS 'until when, unless the relay is heard of';
COMMENT ON COLUMN event_store.outbox_slots.leased_to IS 'up to which message';
COMMENT ON COLUMN event_store.outbox_slots.acknowledged IS 'messages of it that were acknowledged so far';
COMMENT ON COLUMN event_store.outbox_slots.acknowledged_at IS 'when that was last';
COMMENT ON COLUMN event_store.outbox_slots.rate IS 'messages a second, over the last minute or so';
COMMENT ON COLUMN event_store.outbox_slots.decided IS 'messages behind the checkpoint that are done, or have failed';

CREATE VIEW event_store.outbox_messages AS
	SELECT m.position AS id, m.id AS message_id, m.aggregatetype AS topic, m.aggregateid AS key, m.type,
		   CASE WHEN m.position <= s.leased_to AND s.relay IS NOT NULL THEN 'leased' ELSE 'waiting' END AS state,
		   CASE WHEN m.position <= s.leased_to THEN s.relay END AS relay,
		   0 AS attempts, NULL::timestamptz AS due, NULL::text AS error, m.published_at, m.payload, m.headers
	  FROM (SELECT * FROM event_store.outbox_0 UNION ALL SELECT * FROM event_store.outbox_1
			UNION ALL SELECT * FROM event_store.outbox_2 UNION ALL SELECT * FROM event_store.outbox_3) AS m
	  LEFT JOIN event_store.outbox_slots AS s ON s.slot = m.slot
	 WHERE m.position > coalesce(s.checkpoint, 0) AND m.position <> ALL (coalesce(s.decided, '{}'))
	UNION ALL
	SELECT k.position, k.id, k.aggregatetype, k.aggregateid, k.type,
		   CASE WHEN f.dead THEN 'dead' WHEN f.consumer IS NOT NULL THEN 'leased' WHEN f.attempts > 0 THEN 'retry' ELSE 'parked' END,
		   f.consumer, f.attempts, CASE WHEN f.consumer IS NULL THEN f.due END, f.error, k.published_at, k.payload, k.headers
	  FROM event_store.outbox_kept AS k
	  JOIN event_store.subscription_failure AS f ON f.subscription_id = 0 AND f.position = k.position
	UNION ALL
	SELECT d.position, d.id, d.aggregatetype, d.aggregateid, d.type, 'delayed', NULL, 0, d.due, NULL, d.published_at, d.payload, d.headers
	  FROM event_store.outbox_delayed AS d;
ALTER VIEW event_store.outbox_messages OWNER TO @extowner@;
COMMENT ON VIEW event_store.outbox_messages IS 'messages that are not sent yet, and what keeps each of them';
COMMENT ON COLUMN event_store.outbox_messages.id IS 'what is acknowledged; of a delayed message: a number that it has until it is due';
COMMENT ON COLUMN event_store.outbox_messages.message_id IS 'identifies the message for ever';
COMMENT ON COLUMN event_store.outbox_messages.topic IS 'where it is to be sent';
COMMENT ON COLUMN event_store.outbox_messages.key IS 'messages of one key are delivered in order; NULL: in any';
COMMENT ON COLUMN event_store.outbox_messages.type IS 'what kind of message it is';
COMMENT ON COLUMN event_store.outbox_messages.state IS 'delayed; waiting; leased; retry: it has failed, and will be tried again; parked: it waits behind one of its key that has failed; dead: a dead letter';
COMMENT ON COLUMN event_store.outbox_messages.relay IS 'who has it';
COMMENT ON COLUMN event_store.outbox_messages.attempts IS 'how often it has failed';
COMMENT ON COLUMN event_store.outbox_messages.due IS 'when it is delivered at the earliest; NULL: it waits for others, or its turn';
COMMENT ON COLUMN event_store.outbox_messages.error IS 'of the last failure';
COMMENT ON COLUMN event_store.outbox_messages.published_at IS 'the clock when it was published';
COMMENT ON COLUMN event_store.outbox_messages.payload IS 'any JSON value';
COMMENT ON COLUMN event_store.outbox_messages.headers IS 'what goes beside the payload: a JSON object';

CREATE VIEW event_store.outbox_dead_letters AS
	SELECT k.position AS id, k.id AS message_id, k.aggregatetype AS topic, k.aggregateid AS key, k.type, f.attempts, f.error,
		   f.failed_by AS relay, f.first_failed_at, f.failed_at,
		   (SELECT count(*) FROM event_store.subscription_failure AS p
			 WHERE p.subscription_id = 0 AND p.stream_id = f.stream_id AND p.position > f.position) AS parked,
		   k.payload, k.headers
	  FROM event_store.subscription_failure AS f
	  JOIN event_store.outbox_kept AS k ON k.position = f.position
	 WHERE f.subscription_id = 0 AND f.dead;
ALTER VIEW event_store.outbox_dead_letters OWNER TO @extowner@;
COMMENT ON VIEW event_store.outbox_dead_letters IS 'messages that could not be sent, and wait for somebody to decide: outbox_replay_dead_letters(), outbox_discard_dead_letters()';
COMMENT ON COLUMN event_store.outbox_dead_letters.id IS 'the message';
COMMENT ON COLUMN event_store.outbox_dead_letters.message_id IS 'identifies the message for ever';
COMMENT ON COLUMN event_store.outbox_dead_letters.topic IS 'where it was to be sent';
COMMENT ON COLUMN event_store.outbox_dead_letters.key IS 'its key';
COMMENT ON COLUMN event_store.outbox_dead_letters.type IS 'what kind of message it is';
COMMENT ON COLUMN event_store.outbox_dead_letters.attempts IS 'how often it has failed';
COMMENT ON COLUMN event_store.outbox_dead_letters.error IS 'of the last failure';
COMMENT ON COLUMN event_store.outbox_dead_letters.relay IS 'the relay of the last failure';
COMMENT ON COLUMN event_store.outbox_dead_letters.first_failed_at IS 'when it failed first';
COMMENT ON COLUMN event_store.outbox_dead_letters.failed_at IS 'when it failed last';
COMMENT ON COLUMN event_store.outbox_dead_letters.parked IS 'how many messages of its key wait behind it';
COMMENT ON COLUMN event_store.outbox_dead_letters.payload IS 'any JSON value';
COMMENT ON COLUMN event_store.outbox_dead_letters.headers IS 'what goes beside the payload: a JSON object';

CREATE VIEW event_store.outbox_status AS
	SELECT coalesce(m.waiting, 0) AS waiting,
		   coalesce(m.leased, 0) AS leased,
		   coalesce(m.delayed, 0) AS delayed,
		   coalesce(m.retries, 0) AS retries,
		   coalesce(m.parked, 0) AS parked,
		   coalesce(m.dead_letters, 0) AS dead_letters,
		   statement_timestamp() - m.oldest AS age,
		   s.acknowledged, s.acknowledged_at, s.rate,
		   (SELECT coalesce(sum(f.failures), 0) FROM event_store.subscription_fault AS f WHERE f.subscription_id = 0)::bigint AS failures,
		   s.relays,
		   coalesce(p.paused, false) AS paused,
		   coalesce(b.state, 'closed') AS breaker,
		   CASE WHEN b.state = 'open' THEN b.until END AS breaker_until,
		   pg_total_relation_size('event_store.outbox_0') + pg_total_relation_size('event_store.outbox_1')
		   + pg_total_relation_size('event_store.outbox_2') + pg_total_relation_size('event_store.outbox_3')
		   + pg_total_relation_size('event_store.outbox_slot_0')
		   + pg_total_relation_size('event_store.outbox_slot_1') + pg_total_relation_size('event_store.outbox_kept')
		   + pg_total_relation_size('event_store.outbox_delayed') AS bytes
	  FROM (SELECT count(*) FILTER (WHERE x.state = 'waiting') AS waiting,
				   count(*) FILTER (WHERE x.state = 'leased') AS leased,
				   count(*) FILTER (WHERE x.state = 'delayed') AS delayed,
				   count(*) FILTER (WHERE x.state = 'retry') AS retries,
				   count(*) FILTER (WHERE x.state = 'parked') AS parked,
				   count(*) FILTER (WHERE x.state = 'dead') AS dead_letters,
				   min(x.published_at) FILTER (WHERE x.state <> 'delayed') AS oldest
			  FROM event_store.outbox_messages AS x) AS m
	  CROSS JOIN (SELECT coalesce(sum(o.acknowledged), 0)::bigint AS acknowledged, max(o.acknowledged_at) AS acknowledged_at,
						 coalesce(sum(o.rate), 0) AS rate,
						 coalesce(array_agg(DISTINCT o.relay ORDER BY o.relay) FILTER (WHERE o.relay IS NOT NULL AND o.leased_until > statement_timestamp()), '{}') AS relays
					FROM event_store.outbox_slots AS o) AS s
	  LEFT JOIN event_store.outbox_policy AS p ON true
	  LEFT JOIN event_store.subscription_breaker AS b ON b.subscription_id = 0;
ALTER VIEW event_store.outbox_status OWNER TO @extowner@;
COMMENT ON VIEW event_store.outbox_status IS 'how the outbox fares: one row. The backlog is counted, which takes as long as it is.';
COMMENT ON COLUMN event_store.outbox_status.waiting IS 'messages that wait for a relay';
COMMENT ON COLUMN event_store.outbox_status.leased IS 'messages that a relay has';
COMMENT ON COLUMN event_store.outbox_status.delayed IS 'messages that are not due';
COMMENT ON COLUMN event_store.outbox_status.retries IS 'messages that have failed and will be tried again';
COMMENT ON COLUMN event_store.outbox_status.parked IS 'messages that wait behind one of their key that has failed';
COMMENT ON COLUMN event_store.outbox_status.dead_letters IS 'messages that have failed for good';
COMMENT ON COLUMN event_store.outbox_status.age IS 'how long ago the first of all these was published, but for those delayed; NULL: there is none';
COMMENT ON COLUMN event_store.outbox_status.acknowledged IS 'messages that were acknowledged so far';
COMMENT ON COLUMN event_store.outbox_status.acknowledged_at IS 'when that was last';
COMMENT ON COLUMN event_store.outbox_status.rate IS 'messages acknowledged a second, over the last minute or so';
COMMENT ON COLUMN event_store.outbox_status.failures IS 'attempts that failed so far';
COMMENT ON COLUMN event_store.outbox_status.relays IS 'relays that have messages of slots';
COMMENT ON COLUMN event_store.outbox_status.paused IS 'whether polls return nothing';
COMMENT ON COLUMN event_store.outbox_status.breaker IS 'the circuit breaker: closed, open, half-open';
COMMENT ON COLUMN event_store.outbox_status.breaker_until IS 'how long it stays open';
COMMENT ON COLUMN event_store.outbox_status.bytes IS 'what the tables of the outbox take, indexes included';

CREATE VIEW event_store.outbox_history AS
	SELECT c.at, c.change, c.detail, c.changed_by
	  FROM event_store.subscription_change AS c
	 WHERE c.subscription_id = 0;
ALTER VIEW event_store.outbox_history OWNER TO @extowner@;
COMMENT ON VIEW event_store.outbox_history IS 'what was done to dead letters of the outbox, and when its circuit breaker changed';
COMMENT ON COLUMN event_store.outbox_history.at IS 'when';
COMMENT ON COLUMN event_store.outbox_history.change IS 'replayed, discarded, breaker opened, breaker half-open, breaker closed';
COMMENT ON COLUMN event_store.outbox_history.detail IS 'what there is to say of it';
COMMENT ON COLUMN event_store.outbox_history.changed_by IS 'the session''s user';
