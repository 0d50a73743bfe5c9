-- ---------------------------------------------------------------------------
-- outbox: messages to be sent elsewhere, and who sends them
-- ---------------------------------------------------------------------------

-- Messages lie in one of three tables, which are emptied as a whole: see README.md.
-- The first five columns behind the slot have the names and the types that Debezium's
-- outbox event router takes by default.
CREATE SEQUENCE event_store.outbox_current MINVALUE 0;
ALTER SEQUENCE event_store.outbox_current OWNER TO @extowner@;
COMMENT ON SEQUENCE event_store.outbox_current IS 'by its remainder: which of the tables outbox_0 to outbox_2 is written';
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
CREATE INDEX outbox_0_slot_position ON event_store.outbox_0 (slot, position);
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

CREATE TABLE event_store.outbox_1 (
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
CREATE INDEX outbox_1_slot_position ON event_store.outbox_1 (slot, position);
ALTER TABLE event_store.outbox_1 OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_1 IS 'messages of the outbox that wait, are out, or were sent lately: rows are only inserted, and the table is emptied as a whole; see the view outbox_messages';
COMMENT ON COLUMN event_store.outbox_1.position IS 'what the message is acknowledged by; drawn with those of events';
COMMENT ON COLUMN event_store.outbox_1.published_at IS 'the clock when it was published';
COMMENT ON COLUMN event_store.outbox_1.slot IS 'the slot of its key';
COMMENT ON COLUMN event_store.outbox_1.id IS 'the message id: what identifies it for ever';
COMMENT ON COLUMN event_store.outbox_1.aggregatetype IS 'the topic';
COMMENT ON COLUMN event_store.outbox_1.aggregateid IS 'the key: messages of one are delivered in order; NULL: in any';
COMMENT ON COLUMN event_store.outbox_1.type IS 'what kind of message it is';
COMMENT ON COLUMN event_store.outbox_1.headers IS 'what goes beside the payload: a JSON object';
COMMENT ON COLUMN event_store.outbox_1.payload IS 'any JSON value';
SELECT pg_extension_config_dump('event_store.outbox_1', '');

CREATE TABLE event_store.outbox_2 (
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
CREATE INDEX outbox_2_slot_position ON event_store.outbox_2 (slot, position);
ALTER TABLE event_store.outbox_2 OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_2 IS 'messages of the outbox that wait, are out, or were sent lately: rows are only inserted, and the table is emptied as a whole; see the view outbox_messages';
COMMENT ON COLUMN event_store.outbox_2.position IS 'what the message is acknowledged by; drawn with those of events';
COMMENT ON COLUMN event_store.outbox_2.published_at IS 'the clock when it was published';
COMMENT ON COLUMN event_store.outbox_2.slot IS 'the slot of its key';
COMMENT ON COLUMN event_store.outbox_2.id IS 'the message id: what identifies it for ever';
COMMENT ON COLUMN event_store.outbox_2.aggregatetype IS 'the topic';
COMMENT ON COLUMN event_store.outbox_2.aggregateid IS 'the key: messages of one are delivered in order; NULL: in any';
COMMENT ON COLUMN event_store.outbox_2.type IS 'what kind of message it is';
COMMENT ON COLUMN event_store.outbox_2.headers IS 'what goes beside the payload: a JSON object';
COMMENT ON COLUMN event_store.outbox_2.payload IS 'any JSON value';
SELECT pg_extension_config_dump('event_store.outbox_2', '');

CREATE TABLE event_store.outbox_delayed (
	position		bigint NOT NULL,
	published_at	timestamptz NOT NULL,
	slot			int NOT NULL,
	id				uuid NOT NULL,
	aggregatetype	text COLLATE "C" NOT NULL,
	aggregateid		text COLLATE "C",
	type			text COLLATE "C" NOT NULL,
	headers			jsonb NOT NULL,
	payload			jsonb NOT NULL,
	due				timestamptz NOT NULL
);
CREATE INDEX outbox_delayed_due ON event_store.outbox_delayed (due);
ALTER TABLE event_store.outbox_delayed OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_delayed IS 'messages that are not to be sent before a time';
COMMENT ON COLUMN event_store.outbox_delayed.position IS 'a number; the message gets another one when it is due';
COMMENT ON COLUMN event_store.outbox_delayed.published_at IS 'the clock when it was published';
COMMENT ON COLUMN event_store.outbox_delayed.slot IS 'the slot of its key';
COMMENT ON COLUMN event_store.outbox_delayed.id IS 'the message id: what identifies it for ever';
COMMENT ON COLUMN event_store.outbox_delayed.aggregatetype IS 'the topic';
COMMENT ON COLUMN event_store.outbox_delayed.aggregateid IS 'the key: messages of one are delivered in order; NULL: in any';
COMMENT ON COLUMN event_store.outbox_delayed.type IS 'what kind of message it is';
COMMENT ON COLUMN event_store.outbox_delayed.headers IS 'what goes beside the payload: a JSON object';
COMMENT ON COLUMN event_store.outbox_delayed.payload IS 'any JSON value';
COMMENT ON COLUMN event_store.outbox_delayed.due IS 'when it is to be sent at the earliest';
SELECT pg_extension_config_dump('event_store.outbox_delayed', '');

CREATE TABLE event_store.outbox_kept (
	position		bigint NOT NULL,
	published_at	timestamptz NOT NULL,
	slot			int NOT NULL,
	id				uuid NOT NULL,
	aggregatetype	text COLLATE "C" NOT NULL,
	aggregateid		text COLLATE "C",
	type			text COLLATE "C" NOT NULL,
	headers			jsonb NOT NULL,
	payload			jsonb NOT NULL,
	CONSTRAINT outbox_kept_pkey PRIMARY KEY (position)
);
ALTER TABLE event_store.outbox_kept OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_kept IS 'messages that have failed, and those that wait behind them: event_store.subscription_failure, subscription_id 0, says what of each';
COMMENT ON COLUMN event_store.outbox_kept.position IS 'what the message is acknowledged by; drawn with those of events';
COMMENT ON COLUMN event_store.outbox_kept.published_at IS 'the clock when it was published';
COMMENT ON COLUMN event_store.outbox_kept.slot IS 'the slot of its key';
COMMENT ON COLUMN event_store.outbox_kept.id IS 'the message id: what identifies it for ever';
COMMENT ON COLUMN event_store.outbox_kept.aggregatetype IS 'the topic';
COMMENT ON COLUMN event_store.outbox_kept.aggregateid IS 'the key: messages of one are delivered in order; NULL: in any';
COMMENT ON COLUMN event_store.outbox_kept.type IS 'what kind of message it is';
COMMENT ON COLUMN event_store.outbox_kept.headers IS 'what goes beside the payload: a JSON object';
COMMENT ON COLUMN event_store.outbox_kept.payload IS 'any JSON value';
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
CREATE INDEX outbox_slot_0_version ON event_store.outbox_slot_0 (slot, version);
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

CREATE TABLE event_store.outbox_slot_1 (
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
CREATE INDEX outbox_slot_1_version ON event_store.outbox_slot_1 (slot, version);
ALTER TABLE event_store.outbox_slot_1 OWNER TO @extowner@;
COMMENT ON TABLE event_store.outbox_slot_1 IS 'how far the slots of the outbox have come: rows are only inserted, and the table is emptied as a whole';
COMMENT ON COLUMN event_store.outbox_slot_1.version IS 'rises with each change of the slot; the highest in both tables counts';
COMMENT ON COLUMN event_store.outbox_slot_1.checkpoint IS 'up to here all messages of the slot are done, or have failed';
COMMENT ON COLUMN event_store.outbox_slot_1.leased_to IS 'and those up to here are out, if there is a consumer';
COMMENT ON COLUMN event_store.outbox_slot_1.acknowledged IS 'messages that were acknowledged so far';
COMMENT ON COLUMN event_store.outbox_slot_1.acknowledged_at IS 'when that was last';
COMMENT ON COLUMN event_store.outbox_slot_1.rate IS 'how many a second were, about then: the mean of the last minute, roughly';
COMMENT ON COLUMN event_store.outbox_slot_1.leased_at IS 'since when messages are out';
COMMENT ON COLUMN event_store.outbox_slot_1.leased_until IS 'until when, unless the relay is heard of';
COMMENT ON COLUMN event_store.outbox_slot_1.lease IS 'for how long, from when it is heard of';
COMMENT ON COLUMN event_store.outbox_slot_1.slot IS 'the slot';
COMMENT ON COLUMN event_store.outbox_slot_1.consumer IS 'the relay that has messages; NULL: nobody';
COMMENT ON COLUMN event_store.outbox_slot_1.decided IS 'messages behind the checkpoint that are done, or have failed, ascending';
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
COMMENT ON COLUMN event_store.outbox_route.created_at IS 'when it was made';
SELECT pg_extension_config_dump('event_store.outbox_route', '');

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
'publish(topic, key, payload, headers = {}, message_id = NULL, deliver_after = NULL, type = NULL) -> bigint: puts a message into the outbox; it is sent if this transaction commits, and otherwise it never was. Returns its id in the outbox. Messages of one key (1 to 1024 bytes) are delivered in the order in which they were published, whatever their topics; without a key (NULL) in any order. headers: a JSON object. message_id: what identifies the message for ever; NULL: a new UUID version 7. It is not looked up: who publishes one id twice has two messages. deliver_after: it is not delivered before; then it is put into the outbox as if it were published then, under another id, but with the same message_id. type: NULL: the topic. With event_store.outbox_mode = wal the message is written to the write-ahead log only, for logical decoding, with the prefix event_store.outbox. Raises VE002 for an invalid argument, VE016 for mode wal where wal_level is not logical.';

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
'tend_outbox() -> bigint: puts delayed messages that are due into the outbox, returns how many (1,000 at most), and empties tables that nothing is needed of any more, when the transaction commits. Polls and acknowledgements do so by themselves; a task of the worker calls it every second. Only the owner of the store may.';

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

