-- ---------------------------------------------------------------------------
-- inbox: what was processed already
-- ---------------------------------------------------------------------------

CREATE SEQUENCE event_store.inbox_window_id AS int;
CREATE TABLE event_store.inbox_window (
	id				int NOT NULL,
	consumer		text COLLATE "C" NOT NULL,
	keep_for		interval,
	keep_count		bigint,
	shared_turn		int NOT NULL,
	CONSTRAINT inbox_window_pkey PRIMARY KEY (id),
	CONSTRAINT inbox_window_consumer_key UNIQUE (consumer)
);
ALTER TABLE event_store.inbox_window OWNER TO @extowner@;
ALTER SEQUENCE event_store.inbox_window_id OWNER TO @extowner@;
COMMENT ON SEQUENCE event_store.inbox_window_id IS 'ids of windows';
COMMENT ON TABLE event_store.inbox_window IS 'how long the inbox remembers: windows of consumers, and the one of all others if it was set; the entries of a window are in inbox_<id>_0, _1 and _2';
COMMENT ON COLUMN event_store.inbox_window.id IS 'the window''s id; 0: that of all consumers without one of their own';
COMMENT ON COLUMN event_store.inbox_window.consumer IS 'the consumer; empty in window 0';
COMMENT ON COLUMN event_store.inbox_window.keep_for IS 'so long an entry is kept at least; this and keep_count NULL: as in window 0';
COMMENT ON COLUMN event_store.inbox_window.keep_count IS 'so many of the latest entries are kept at least';
COMMENT ON COLUMN event_store.inbox_window.shared_turn IS 'turn of window 0 when this one was made: older entries of the consumer are there, until what was written up to that turn has been emptied';
SELECT pg_extension_config_dump('event_store.inbox_window', '');
SELECT pg_extension_config_dump('event_store.inbox_window_id', '');

-- Dumped with the parts: who did not know which one is the oldest could empty
-- the youngest.
CREATE TABLE event_store.inbox_turn (
	window_id			int NOT NULL,
	turn				int NOT NULL,
	opened_at			timestamptz NOT NULL,
	last_sealed_at		timestamptz,
	oldest_sealed_at	timestamptz,
	last_is_empty		boolean NOT NULL DEFAULT false,
	oldest_is_empty		boolean NOT NULL DEFAULT false,
	CONSTRAINT inbox_turn_pkey PRIMARY KEY (window_id)
) WITH (fillfactor = 50);
ALTER TABLE event_store.inbox_turn OWNER TO @extowner@;
COMMENT ON TABLE event_store.inbox_turn IS 'how far the rotation of the parts of windows has come';
COMMENT ON COLUMN event_store.inbox_turn.window_id IS 'event_store.inbox_window.id';
COMMENT ON COLUMN event_store.inbox_turn.turn IS 'entries are written into part number turn % 3; the one before is the last, the other the oldest';
COMMENT ON COLUMN event_store.inbox_turn.opened_at IS 'since when they are';
COMMENT ON COLUMN event_store.inbox_turn.last_sealed_at IS 'when no transaction that had written into the last part was left; NULL: not yet known';
COMMENT ON COLUMN event_store.inbox_turn.oldest_sealed_at IS 'the same for the oldest';
COMMENT ON COLUMN event_store.inbox_turn.last_is_empty IS 'whether the last is sealed, and empty';
COMMENT ON COLUMN event_store.inbox_turn.oldest_is_empty IS 'whether the oldest is, or has been emptied since';
SELECT pg_extension_config_dump('event_store.inbox_turn', '');

-- The parts of window 0; those of other windows are made by set_dedup_window().
CREATE TABLE event_store.inbox_0_0 (
	key			uuid NOT NULL,
	fingerprint	uuid,
	result		jsonb,
	finished	boolean,
	CONSTRAINT inbox_0_0_pkey PRIMARY KEY (key)
);
ALTER TABLE event_store.inbox_0_0 OWNER TO @extowner@;
COMMENT ON TABLE event_store.inbox_0_0 IS 'a part of the window of all consumers that have none of their own: see inbox_window';
COMMENT ON COLUMN event_store.inbox_0_0.key IS 'the first 128 bits of the SHA-256 of kind, consumer and id';
COMMENT ON COLUMN event_store.inbox_0_0.fingerprint IS 'of what was asked for; NULL: it is a mark';
COMMENT ON COLUMN event_store.inbox_0_0.result IS 'what came of it';
COMMENT ON COLUMN event_store.inbox_0_0.finished IS 'whether the result was noted';
SELECT pg_extension_config_dump('event_store.inbox_0_0', '');

CREATE TABLE event_store.inbox_0_1 (LIKE event_store.inbox_0_0 INCLUDING INDEXES INCLUDING COMMENTS);
ALTER TABLE event_store.inbox_0_1 OWNER TO @extowner@;
COMMENT ON TABLE event_store.inbox_0_1 IS 'another part: see inbox_0_0';
SELECT pg_extension_config_dump('event_store.inbox_0_1', '');

CREATE TABLE event_store.inbox_0_2 (LIKE event_store.inbox_0_0 INCLUDING INDEXES INCLUDING COMMENTS);
ALTER TABLE event_store.inbox_0_2 OWNER TO @extowner@;
COMMENT ON TABLE event_store.inbox_0_2 IS 'another part: see inbox_0_0';
SELECT pg_extension_config_dump('event_store.inbox_0_2', '');

CREATE FUNCTION event_store.mark_processed(consumer text, message_id text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_mark_processed';
REVOKE ALL ON FUNCTION event_store.mark_processed(text, text) FROM PUBLIC;
ALTER FUNCTION event_store.mark_processed(text, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.mark_processed(text, text) IS
'mark_processed(consumer, message_id) -> boolean: true if the consumer has not marked this message before, which it has now, in the caller''s transaction; false if it has. Call it first, and process the message in the same transaction if it is true: a rollback takes back the mark with the rest. If another transaction has marked it and not ended, waits for its end: false if it commits, true if it rolls back. consumer: 1 to 1,024 bytes without control characters; message_id: 1 to 1,024 bytes. It is remembered at least for the consumer''s window (set_dedup_window()). Raises VE002 for an invalid argument; 40001 in REPEATABLE READ and SERIALIZABLE if it was marked after the transaction''s snapshot; 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.mark_processed_all(consumer text, message_ids text[]) RETURNS text[]
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_mark_processed_all';
REVOKE ALL ON FUNCTION event_store.mark_processed_all(text, text[]) FROM PUBLIC;
ALTER FUNCTION event_store.mark_processed_all(text, text[]) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.mark_processed_all(text, text[]) IS
'mark_processed_all(consumer, message_ids) -> text[]: marks several messages, as mark_processed() does each, and returns those that are new, in the order given, each once. Two such calls wait for each other in one order, so they cannot deadlock. Raises VE002, 40001, 25006 as mark_processed() does.';

CREATE FUNCTION event_store.forget_processed(consumer text, message_id text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_forget_processed';
REVOKE ALL ON FUNCTION event_store.forget_processed(text, text) FROM PUBLIC;
ALTER FUNCTION event_store.forget_processed(text, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.forget_processed(text, text) IS
'forget_processed(consumer, message_id) -> boolean: takes back the mark of a message, so that it can be processed again; whether there was one. Raises VE002, 40001, 25006 as mark_processed() does.';

CREATE FUNCTION event_store.once(
	consumer text,
	key text,
	command text,
	args jsonb DEFAULT NULL
) RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_once';
REVOKE ALL ON FUNCTION event_store.once(text, text, text, jsonb) FROM PUBLIC;
ALTER FUNCTION event_store.once(text, text, text, jsonb) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.once(text, text, text, jsonb) IS
'once(consumer, key, command, args = NULL) -> jsonb: runs an SQL command, as the caller, unless it was run for this consumer and key before, and returns its result, or the one it had then. command may refer to args, one jsonb value, as $1; the result is the one column of its one row as jsonb, or the row as an object where it has several, or NULL where there is none. The result is told to whoever repeats the call, whatever his rights. Effect, entry and result are of the caller''s transaction: a failure leaves nothing behind, and the next call runs the command. If another transaction is running it, waits for its end. key: 1 to 1,024 bytes, apart from ids of messages. The result is kept at least for the consumer''s window (set_dedup_window()). Raises VE020 if the key was used with another command or args, VE021 if this transaction is running it at the moment, VE002 for an invalid argument or more than one row, whatever the command raises; 40001, 25006 as mark_processed() does.';

CREATE FUNCTION event_store.begin_once(
	consumer text,
	key text,
	request jsonb DEFAULT NULL,
	OUT is_first boolean,
	OUT result jsonb
) RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_begin_once';
REVOKE ALL ON FUNCTION event_store.begin_once(text, text, jsonb) FROM PUBLIC;
ALTER FUNCTION event_store.begin_once(text, text, jsonb) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.begin_once(text, text, jsonb) IS
'begin_once(consumer, key, request = NULL) -> (is_first, result): for what a program does once, and not a command (see once()). is_first: nothing was done for this consumer and key yet: do it in this transaction, and note its result by finish_once() before the commit. Otherwise result is the one that was noted, NULL if none was. request: anything that tells this request from others. Raises VE020 if the key was used with another request, VE021 if this transaction has begun and not finished it; VE002, 40001, 25006 as mark_processed() does.';

CREATE FUNCTION event_store.finish_once(consumer text, key text, result jsonb) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_finish_once';
REVOKE ALL ON FUNCTION event_store.finish_once(text, text, jsonb) FROM PUBLIC;
ALTER FUNCTION event_store.finish_once(text, text, jsonb) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.finish_once(text, text, jsonb) IS
'finish_once(consumer, key, result) -> void: notes the result, which may be NULL, of what this transaction has begun by begin_once(). Raises VE021 if it has not, or has finished it; VE002, 25006 as mark_processed() does.';

CREATE FUNCTION event_store.append_once(
	idempotency_key text,
	stream text,
	type text,
	data jsonb,
	metadata jsonb DEFAULT '{}',
	expected_version bigint DEFAULT NULL,
	occurred_at timestamptz DEFAULT NULL,
	correlation_id text DEFAULT NULL,
	causation_id uuid DEFAULT NULL,
	schema_version int DEFAULT 1,
	source text DEFAULT NULL
) RETURNS event_store.append_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_append_once';
REVOKE ALL ON FUNCTION event_store.append_once(text, text, text, jsonb, jsonb, bigint, timestamptz, text, uuid, int, text) FROM PUBLIC;
ALTER FUNCTION event_store.append_once(text, text, text, jsonb, jsonb, bigint, timestamptz, text, uuid, int, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.append_once(text, text, text, jsonb, jsonb, bigint, timestamptz, text, uuid, int, text) IS
'append_once(idempotency_key, stream, type, data, metadata = {}, expected_version = NULL, occurred_at = NULL, correlation_id = NULL, causation_id = NULL, schema_version = 1, source = NULL) -> append_result: appends one event as append() does, unless an append with this key was made before: then nothing is written, and the first result comes back with duplicate = true, whatever expected_version says. A key, 1 to 1,024 bytes, stands for one append in the whole store, and is remembered at least for the window of the consumer $append (set_dedup_window()). If another transaction is appending with it, waits for its end. Raises VE020 if the key was used for another stream, type, schema_version or data; what append() raises; 40001 as mark_processed() does. Needs INSERT on the view events as well.';

CREATE FUNCTION event_store.append_events_once(
	idempotency_key text,
	stream text,
	events jsonb,
	expected_version bigint DEFAULT NULL
) RETURNS event_store.append_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_append_events_once';
REVOKE ALL ON FUNCTION event_store.append_events_once(text, text, jsonb, bigint) FROM PUBLIC;
ALTER FUNCTION event_store.append_events_once(text, text, jsonb, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.append_events_once(text, text, jsonb, bigint) IS
'append_events_once(idempotency_key, stream, events, expected_version = NULL) -> append_result: appends a batch as append_events() does, unless one with this key was appended before, as in append_once(). events must not be empty. Raises VE020 if the key was used for another stream, or for events with other types, schema versions or data; what append_events() raises; 40001 as mark_processed() does. Needs INSERT on the view events as well.';

CREATE FUNCTION event_store.set_dedup_window(
	consumer text,
	keep_for interval DEFAULT NULL,
	keep_count bigint DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_set_dedup_window';
REVOKE ALL ON FUNCTION event_store.set_dedup_window(text, interval, bigint) FROM PUBLIC;
ALTER FUNCTION event_store.set_dedup_window(text, interval, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.set_dedup_window(text, interval, bigint) IS
'set_dedup_window(consumer, keep_for = NULL, keep_count = NULL) -> void: how long the inbox remembers what this consumer has processed: at least for keep_for (1 s to 10 years) after it, or while it is among the latest keep_count (1 to 1,000,000,000,000); given both, as long as either holds. Both NULL: as other consumers. consumer NULL: all that have no window of their own (7 days at first). What is beyond the window goes by whole tables, so up to twice as much is kept. A consumer with a window has tables of its own; what it has processed before its first one stays known for the window it had then. Only the owner may. Raises VE002 for an invalid argument, 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.drop_dedup_window(consumer text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_drop_dedup_window';
REVOKE ALL ON FUNCTION event_store.drop_dedup_window(text) FROM PUBLIC;
ALTER FUNCTION event_store.drop_dedup_window(text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.drop_dedup_window(text) IS
'drop_dedup_window(consumer) -> boolean: drops the window of a consumer and its tables, for one that is gone: what it has processed since it had the window is forgotten at once. Whether it had one. Waits for transactions that have marked there. Only the owner may. Raises VE002 for an invalid argument, 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.rotate_inbox() RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_rotate_inbox';
REVOKE ALL ON FUNCTION event_store.rotate_inbox() FROM PUBLIC;
ALTER FUNCTION event_store.rotate_inbox() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.rotate_inbox() IS
'rotate_inbox() -> int: forgets what is beyond the windows: empties the tables of which all is, and has others begun; returns how many it emptied. Waits for nobody: what is in use is left for the next call. The worker calls it by its task "rotate inbox", and whoever marks when it is due has it done. In a transaction block, and in REPEATABLE READ and SERIALIZABLE, it has a background process do it, and returns NULL at once. Raises 25006 in a read-only transaction or on a standby.';

CREATE VIEW event_store.inbox_windows AS
	SELECT w.consumer,
		   CASE WHEN w.keep_for IS NULL AND w.keep_count IS NULL THEN d.keep_for ELSE w.keep_for END AS keep_for,
		   CASE WHEN w.keep_for IS NULL AND w.keep_count IS NULL THEN d.keep_count ELSE w.keep_count END AS keep_count,
		   s.size,
		   t.turn,
		   t.opened_at,
		   t.oldest_sealed_at AS oldest_until
	  FROM (SELECT id, consumer, keep_for, keep_count FROM event_store.inbox_window WHERE id > 0
			UNION ALL SELECT 0, NULL, NULL, NULL) AS w
	 CROSS JOIN (SELECT n.keep_for, n.keep_count FROM event_store.inbox_window AS n WHERE n.id = 0
			UNION ALL SELECT '7 days', NULL
			 WHERE NOT EXISTS (SELECT FROM event_store.inbox_window AS n WHERE n.id = 0)) AS d
	 CROSS JOIN LATERAL (SELECT sum(pg_total_relation_size(format('event_store.inbox_%s_%s', w.id, part)::regclass))::bigint AS size
			  FROM generate_series(0, 2) AS part) AS s
	  LEFT JOIN event_store.inbox_turn AS t ON t.window_id = w.id;
ALTER VIEW event_store.inbox_windows OWNER TO @extowner@;
COMMENT ON VIEW event_store.inbox_windows IS 'how long the inbox remembers, and what that takes';
COMMENT ON COLUMN event_store.inbox_windows.consumer IS 'the consumer; NULL: all that have no window of their own';
COMMENT ON COLUMN event_store.inbox_windows.keep_for IS 'so long an entry is kept at least; NULL: not by time';
COMMENT ON COLUMN event_store.inbox_windows.keep_count IS 'so many of the latest entries are kept at least; NULL: not by count';
COMMENT ON COLUMN event_store.inbox_windows.size IS 'bytes that its three tables take, indexes included';
COMMENT ON COLUMN event_store.inbox_windows.turn IS 'how often another table was begun; NULL: rotate_inbox() has not been called yet';
COMMENT ON COLUMN event_store.inbox_windows.opened_at IS 'when the present one was';
COMMENT ON COLUMN event_store.inbox_windows.oldest_until IS 'entries of the oldest table are at least as old as this; NULL: not known';
