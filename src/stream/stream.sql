-- ---------------------------------------------------------------------------
-- stream: streams, the view of all events, appending and reading
-- ---------------------------------------------------------------------------

CREATE TABLE event_store.stream (
	id			bigint NOT NULL,
	category_id	int NOT NULL,
	created_at	timestamptz NOT NULL,
	name		text COLLATE "C" NOT NULL,
	segments	bigint[],
	CONSTRAINT stream_pkey PRIMARY KEY (id),
	CONSTRAINT stream_name_key UNIQUE (name)
);
-- Every append and every read of a stream begins here: one page, where the way
-- through the other index takes three.
CREATE INDEX stream_name_hash ON event_store.stream USING hash (name);
ALTER TABLE event_store.stream OWNER TO @extowner@;
-- noted once per stream and segment: leave room for it on the page
ALTER TABLE event_store.stream SET (fillfactor = 95);
COMMENT ON TABLE event_store.stream IS 'all streams: a row is written when a stream gets its first event, and once more for each further segment that it reaches';
COMMENT ON COLUMN event_store.stream.id IS 'position of the stream''s first event';
COMMENT ON COLUMN event_store.stream.category_id IS 'event_store.category.id';
COMMENT ON COLUMN event_store.stream.created_at IS 'recorded_at of the stream''s first event';
COMMENT ON COLUMN event_store.stream.name IS 'the stream''s name: category, dash, id';
COMMENT ON COLUMN event_store.stream.segments IS 'the segments that hold the stream''s events, as pairs: a position in the first and one in the last segment of each unbroken run; NULL: the one that the first event lies in';
SELECT pg_extension_config_dump('event_store.stream', '');
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store.stream
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_change();
ALTER TABLE event_store.stream ENABLE ALWAYS TRIGGER refuse_change;

CREATE TYPE event_store.recorded_event AS (
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
	metadata		jsonb
);
ALTER TYPE event_store.recorded_event OWNER TO @extowner@;
COMMENT ON TYPE event_store.recorded_event IS 'an event as it was recorded';
COMMENT ON COLUMN event_store.recorded_event.position IS 'place in the whole store: strictly increasing, with holes';
COMMENT ON COLUMN event_store.recorded_event.stream IS 'name of the stream';
COMMENT ON COLUMN event_store.recorded_event.version IS 'place in the stream: 1, 2, 3 ... without holes';
COMMENT ON COLUMN event_store.recorded_event.type IS 'the event''s type';
COMMENT ON COLUMN event_store.recorded_event.schema_version IS 'version of the schema that data follows';
COMMENT ON COLUMN event_store.recorded_event.event_id IS 'identifies the event within its stream, for ever';
COMMENT ON COLUMN event_store.recorded_event.recorded_at IS 'the clock at the append; never decreases with position';
COMMENT ON COLUMN event_store.recorded_event.occurred_at IS 'the producer''s word for when it happened (default: recorded_at)';
COMMENT ON COLUMN event_store.recorded_event.source IS 'the system that the event comes from';
COMMENT ON COLUMN event_store.recorded_event.correlation_id IS 'what ties the events of one business transaction together';
COMMENT ON COLUMN event_store.recorded_event.causation_id IS 'id of the event or command that caused this one';
COMMENT ON COLUMN event_store.recorded_event.data IS 'the payload: any JSON value';
COMMENT ON COLUMN event_store.recorded_event.metadata IS 'what the payload does not say: a JSON object';

CREATE TYPE event_store.append_result AS (
	stream			text,
	first_version	int,
	last_version	int,
	first_position	bigint,
	last_position	bigint,
	duplicate		boolean
);
ALTER TYPE event_store.append_result OWNER TO @extowner@;
COMMENT ON TYPE event_store.append_result IS 'what an append did';
COMMENT ON COLUMN event_store.append_result.stream IS 'name of the stream';
COMMENT ON COLUMN event_store.append_result.first_version IS 'version of the first event appended; NULL after an empty batch';
COMMENT ON COLUMN event_store.append_result.last_version IS 'the stream''s version after the append: the expected version of the next (of a duplicate: the version of its last event)';
COMMENT ON COLUMN event_store.append_result.first_position IS 'position of the first event appended; NULL after an empty batch';
COMMENT ON COLUMN event_store.append_result.last_position IS 'position of the last event appended; NULL after an empty batch';
COMMENT ON COLUMN event_store.append_result.duplicate IS 'true: these events, by their ids, had been appended before; nothing was written, and the other columns tell the first result';

CREATE VIEW event_store.events AS
SELECT e.position,
	   s.name AS stream,
	   e.version,
	   t.name AS type,
	   coalesce(e.schema_version, 1) AS schema_version,
	   coalesce(e.event_id, event_store.made_event_id(e.position, e.recorded_at)) AS event_id,
	   e.recorded_at,
	   coalesce(e.occurred_at, e.recorded_at) AS occurred_at,
	   o.name AS source,
	   e.correlation_id,
	   e.causation_id,
	   e.data,
	   e.metadata,
	   c.name AS category
  FROM event_store.event e
  JOIN event_store.stream s ON s.id = e.stream_id
  JOIN event_store.category c ON c.id = e.category_id
  JOIN event_store.event_type t ON t.id = e.type_id
  LEFT JOIN event_store.source o ON o.id = e.source_id;
ALTER VIEW event_store.events OWNER TO @extowner@;
COMMENT ON VIEW event_store.events IS 'all events with names for ids. INSERT and COPY append, each row like a call of append(), in the order given and at the speed of a batch: columns stream, type and data are wanted; version, if given, is what the event''s version must turn out to be; position and recorded_at are the store''s to give; category follows from stream. UPDATE and DELETE are refused. SELECT on this view is the right to read by functions, INSERT on it (with EXECUTE on the append functions) the right to append.';
COMMENT ON COLUMN event_store.events.position IS 'place in the whole store: strictly increasing, with holes';
COMMENT ON COLUMN event_store.events.stream IS 'name of the stream';
COMMENT ON COLUMN event_store.events.version IS 'place in the stream: 1, 2, 3 ... without holes';
COMMENT ON COLUMN event_store.events.type IS 'the event''s type';
COMMENT ON COLUMN event_store.events.schema_version IS 'version of the schema that data follows';
COMMENT ON COLUMN event_store.events.event_id IS 'identifies the event within its stream, for ever';
COMMENT ON COLUMN event_store.events.recorded_at IS 'the clock at the append; never decreases with position';
COMMENT ON COLUMN event_store.events.occurred_at IS 'the producer''s word for when it happened (default: recorded_at)';
COMMENT ON COLUMN event_store.events.source IS 'the system that the event comes from';
COMMENT ON COLUMN event_store.events.correlation_id IS 'what ties the events of one business transaction together';
COMMENT ON COLUMN event_store.events.causation_id IS 'id of the event or command that caused this one';
COMMENT ON COLUMN event_store.events.data IS 'the payload: any JSON value';
COMMENT ON COLUMN event_store.events.metadata IS 'what the payload does not say: a JSON object';
COMMENT ON COLUMN event_store.events.category IS 'the stream''s category';

CREATE FUNCTION event_store.gather_event() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'event_store_gather_event';
REVOKE ALL ON FUNCTION event_store.gather_event() FROM PUBLIC;
ALTER FUNCTION event_store.gather_event() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.gather_event() IS
'trigger: gathers a row that is inserted into event_store.events; refuses UPDATE and DELETE with VE005';
CREATE FUNCTION event_store.write_gathered() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'event_store_write_gathered';
REVOKE ALL ON FUNCTION event_store.write_gathered() FROM PUBLIC;
ALTER FUNCTION event_store.write_gathered() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.write_gathered() IS
'trigger: appends the rows that gather_event() has gathered';
CREATE TRIGGER gather INSTEAD OF INSERT OR UPDATE OR DELETE ON event_store.events
	FOR EACH ROW EXECUTE FUNCTION event_store.gather_event();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON event_store.events
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_change();
CREATE TRIGGER write_gathered AFTER INSERT ON event_store.events
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.write_gathered();

CREATE FUNCTION event_store.any_version() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '-2'::bigint;
COMMENT ON FUNCTION event_store.any_version() IS
'any_version() -> bigint: expected version "don''t care", the same as NULL (-2)';
CREATE FUNCTION event_store.stream_exists() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN '-4'::bigint;
COMMENT ON FUNCTION event_store.stream_exists() IS
'stream_exists() -> bigint: expected version "any, but the stream must have an event" (-4)';

CREATE FUNCTION event_store.append(
	stream text,
	type text,
	data jsonb,
	metadata jsonb DEFAULT '{}',
	expected_version bigint DEFAULT NULL,
	event_id uuid DEFAULT NULL,
	occurred_at timestamptz DEFAULT NULL,
	correlation_id text DEFAULT NULL,
	causation_id uuid DEFAULT NULL,
	schema_version int DEFAULT 1,
	source text DEFAULT NULL
) RETURNS event_store.append_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_append';
REVOKE ALL ON FUNCTION event_store.append(text, text, jsonb, jsonb, bigint, uuid, timestamptz, text, uuid, int, text) FROM PUBLIC;
ALTER FUNCTION event_store.append(text, text, jsonb, jsonb, bigint, uuid, timestamptz, text, uuid, int, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.append(text, text, jsonb, jsonb, bigint, uuid, timestamptz, text, uuid, int, text) IS
'append(stream, type, data, metadata = {}, expected_version = NULL, event_id = NULL, occurred_at = NULL, correlation_id = NULL, causation_id = NULL, schema_version = 1, source = NULL) -> append_result: appends one event, in the caller''s transaction. stream, type, source, correlation_id: 1 to 1,024 bytes without control characters. data: any JSON value; metadata: a JSON object. expected_version: n exactly n, 0 the stream must not exist, stream_exists() it must, NULL or any_version() don''t care. event_id: default a new UUID version 7; the same id again in the same stream, with the same type, schema version and data, appends nothing and returns the first result with duplicate = true. Raises VE001 (wrong expected version; DETAIL has both), VE002 (invalid argument), VE003 (event id reused with other content), 25006 in a read-only transaction or on a standby, 40001 as any write may in REPEATABLE READ and SERIALIZABLE.';

CREATE FUNCTION event_store.append_events(
	stream text,
	events jsonb,
	expected_version bigint DEFAULT NULL
) RETURNS event_store.append_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_append_events';
REVOKE ALL ON FUNCTION event_store.append_events(text, jsonb, bigint) FROM PUBLIC;
ALTER FUNCTION event_store.append_events(text, jsonb, bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.append_events(text, jsonb, bigint) IS
'append_events(stream, events, expected_version = NULL) -> append_result: appends a batch to one stream, all or nothing. events: a JSON array of objects with the keys type and data, and if wanted metadata, event_id, occurred_at, correlation_id, causation_id, schema_version, source, each as in append(); any other key is an error. An empty array appends nothing and returns the current version. If all ids of the batch had been appended before, in this order, the first result comes back with duplicate = true; if only some had, or with other content, VE003. At most event_store.max_batch_events events and event_store.max_batch_size of JSON a call. Raises VE001, VE002, VE003, 25006, 40001 as append() does.';

CREATE FUNCTION event_store.append_streams(
	appends jsonb
) RETURNS SETOF event_store.append_result
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'event_store_append_streams';
REVOKE ALL ON FUNCTION event_store.append_streams(jsonb) FROM PUBLIC;
ALTER FUNCTION event_store.append_streams(jsonb) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.append_streams(jsonb) IS
'append_streams(appends) -> setof append_result: appends to several streams, all or nothing. appends: a JSON array of objects with the keys stream and events (as in append_events()) and if wanted expected_version; a stream may stand there once. Returns a row for each, in the order given. Streams are locked in one order, so that two such calls cannot deadlock each other. Raises VE001, VE002, VE003, 25006, 40001 as append() does.';

-- Reads.  Rows and costs are told to the planner, and the plan is made, by
-- support code in the library (src/stream/scan.c).
CREATE FUNCTION event_store.read_support(internal) RETURNS internal
LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'event_store_read_support';
COMMENT ON FUNCTION event_store.read_support(internal) IS
'planner support for the functions that read events';

CREATE FUNCTION event_store.read_stream(
	stream text,
	from_version bigint DEFAULT 1,
	max_count bigint DEFAULT NULL,
	backward boolean DEFAULT false,
	until_version bigint DEFAULT NULL,
	until_time timestamptz DEFAULT NULL
) RETURNS SETOF event_store.recorded_event
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 100 SUPPORT event_store.read_support
AS 'MODULE_PATHNAME', 'event_store_read_stream';
COMMENT ON FUNCTION event_store.read_stream(text, bigint, bigint, boolean, bigint, timestamptz) IS
'read_stream(stream, from_version = 1, max_count = NULL, backward = false, until_version = NULL, until_time = NULL) -> setof recorded_event: the events of a stream in order of version, from from_version up to until_version, both included (NULL: to the end), that occurred at until_time or before; backward: the same events in falling order. At most max_count (NULL: all). Shows what earlier statements of the transaction itself have appended. No rows if the stream does not exist. Raises VE002 for a NULL or invalid name or a negative bound.';

CREATE FUNCTION event_store.read_category(
	category text,
	after_position bigint DEFAULT 0,
	max_count bigint DEFAULT 1000,
	types text[] DEFAULT NULL,
	backward boolean DEFAULT false
) RETURNS SETOF event_store.recorded_event
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1000 SUPPORT event_store.read_support
AS 'MODULE_PATHNAME', 'event_store_read_category';
COMMENT ON FUNCTION event_store.read_category(text, bigint, bigint, text[], boolean) IS
'read_category(category, after_position = 0, max_count = 1000, types = NULL, backward = false) -> setof recorded_event: the events of a category (of the given types; NULL: of all) after a position, in order of position, never past the settled mark: who goes on from the last position received skips nothing. backward: in falling order, from before after_position, or from the mark if that is 0. max_count NULL: no limit. Raises VE002 for a NULL category or a negative bound.';

CREATE FUNCTION event_store.read_all(
	after_position bigint DEFAULT 0,
	max_count bigint DEFAULT 1000,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL,
	backward boolean DEFAULT false
) RETURNS SETOF event_store.recorded_event
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1000 SUPPORT event_store.read_support
AS 'MODULE_PATHNAME', 'event_store_read_all';
COMMENT ON FUNCTION event_store.read_all(bigint, bigint, text[], text[], boolean) IS
'read_all(after_position = 0, max_count = 1000, categories = NULL, types = NULL, backward = false) -> setof recorded_event: the events of the whole store (of the given categories and types; NULL: of all) after a position, in order of position, never past the settled mark: who goes on from the last position received skips nothing. backward: in falling order, from before after_position, or from the mark if that is 0. max_count NULL: no limit. Raises VE002 for a negative bound.';

CREATE FUNCTION event_store.events_since(
	since timestamptz,
	max_count bigint DEFAULT 1000,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL
) RETURNS SETOF event_store.recorded_event
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1000 SUPPORT event_store.read_support
AS 'MODULE_PATHNAME', 'event_store_events_since';
COMMENT ON FUNCTION event_store.events_since(timestamptz, bigint, text[], text[]) IS
'events_since(since, max_count = 1000, categories = NULL, types = NULL) -> setof recorded_event: the events recorded at since or later, in order of position, never past the settled mark. Go on with read_all() from the last position received. max_count NULL: no limit. Raises VE002 for a NULL time or a negative max_count.';

CREATE FUNCTION event_store.find_event(
	event_id uuid,
	stream text DEFAULT NULL,
	since timestamptz DEFAULT NULL,
	until timestamptz DEFAULT NULL
) RETURNS SETOF event_store.recorded_event
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 1 SUPPORT event_store.read_support
AS 'MODULE_PATHNAME', 'event_store_find_event';
COMMENT ON FUNCTION event_store.find_event(uuid, text, timestamptz, timestamptz) IS
'find_event(event_id, stream = NULL, since = NULL, until = NULL) -> setof recorded_event: the event with this id; ids are unique within a stream, so without a stream there can be one in each of several, in no particular order. since, until: only if it was recorded between these times, which are included (NULL: no bound); a random id that was given is then looked up in the segments of that time only. Raises VE002 for a NULL id.';

CREATE FUNCTION event_store.last_event(
	stream text,
	type text DEFAULT NULL
) RETURNS SETOF event_store.recorded_event
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 1 SUPPORT event_store.read_support
AS 'MODULE_PATHNAME', 'event_store_last_event';
COMMENT ON FUNCTION event_store.last_event(text, text) IS
'last_event(stream, type = NULL) -> setof recorded_event: the last event of a stream, or the last of that type in it; no row if there is none. Raises VE002 for a NULL or invalid stream.';

CREATE FUNCTION event_store.trace(
	correlation_id text,
	max_count bigint DEFAULT NULL,
	since timestamptz DEFAULT NULL,
	until timestamptz DEFAULT NULL
) RETURNS SETOF event_store.recorded_event
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 20 SUPPORT event_store.read_support
AS 'MODULE_PATHNAME', 'event_store_trace';
COMMENT ON FUNCTION event_store.trace(text, bigint, timestamptz, timestamptz) IS
'trace(correlation_id, max_count = NULL, since = NULL, until = NULL) -> setof recorded_event: the events with this correlation id, over all streams, in order of position. since, until: only those recorded between these times, which are included (NULL: no bound); segments of other times are not looked into. Raises VE002 for a NULL correlation id or a negative max_count.';

CREATE FUNCTION event_store.stream_version(stream text) RETURNS bigint
LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'event_store_stream_version';
COMMENT ON FUNCTION event_store.stream_version(text) IS
'stream_version(stream) -> bigint: the version of the stream''s last event, 0 if there is no such stream. Raises VE002 for a NULL or invalid name.';

CREATE FUNCTION event_store.stream_info(
	stream text,
	OUT stream text, OUT category text, OUT version int, OUT created_at timestamptz,
	OUT first_position bigint, OUT last_position bigint, OUT last_recorded_at timestamptz
) RETURNS SETOF record
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'event_store_stream_info';
COMMENT ON FUNCTION event_store.stream_info(text) IS
'stream_info(stream) -> setof (stream, category, version, created_at, first_position, last_position, last_recorded_at): what there is to know about a stream; no row if there is no such stream. Raises VE002 for a NULL or invalid name.';

CREATE FUNCTION event_store.streams(
	category text DEFAULT NULL,
	after_stream text DEFAULT NULL,
	max_count bigint DEFAULT 1000,
	OUT stream text, OUT category text, OUT version int, OUT created_at timestamptz,
	OUT first_position bigint, OUT last_position bigint, OUT last_recorded_at timestamptz
) RETURNS SETOF record
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 1000 AS 'MODULE_PATHNAME', 'event_store_streams';
COMMENT ON FUNCTION event_store.streams(text, text, bigint) IS
'streams(category = NULL, after_stream = NULL, max_count = 1000) -> setof (stream, category, version, created_at, first_position, last_position, last_recorded_at): streams (of one category; NULL: of all) in byte order of their names, after a name: to page, give the last name received. max_count NULL: no limit. Raises VE002 for a negative max_count.';
