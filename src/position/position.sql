-- ---------------------------------------------------------------------------
-- position: the counter, the events' table and its segments, the settled mark
-- ---------------------------------------------------------------------------

-- One row, written in place by the extension (src/position/counter.c): draws
-- are outside of transactions, as a sequence's are.
CREATE TABLE event_store.position_counter (
	last_position		bigint NOT NULL,
	logged_position		bigint NOT NULL,
	settled_position	bigint NOT NULL,
	recorded_at			timestamptz NOT NULL,
	settled_at			timestamptz NOT NULL,
	logged_lsn			pg_lsn NOT NULL,
	id_key				bigint NOT NULL
);
-- 61 bits of a random UUID
INSERT INTO event_store.position_counter VALUES (0, 0, 0, '-infinity', '-infinity', '0/0',
	('x' || substr(replace(gen_random_uuid()::text, '-', ''), 17))::bit(64)::bigint & 2305843009213693951);
ALTER TABLE event_store.position_counter OWNER TO @extowner@;
COMMENT ON TABLE event_store.position_counter IS 'the counter that positions are drawn from: one row, changed in place by the extension alone; a row inserted (by a restore) moves it ahead and is not kept';
COMMENT ON COLUMN event_store.position_counter.last_position IS 'the last position drawn';
COMMENT ON COLUMN event_store.position_counter.logged_position IS 'the position that the write-ahead log covers: where the counter goes on after a crash';
COMMENT ON COLUMN event_store.position_counter.settled_position IS 'a settled mark, published for standbys';
COMMENT ON COLUMN event_store.position_counter.recorded_at IS 'the latest recorded_at given to an event: the next is never earlier';
COMMENT ON COLUMN event_store.position_counter.settled_at IS 'when settled_position was published';
COMMENT ON COLUMN event_store.position_counter.logged_lsn IS 'end of the counter''s own last record in the write-ahead log';
COMMENT ON COLUMN event_store.position_counter.id_key IS 'a random number, with which the ids of events appended without one are computed: it never changes';
SELECT pg_extension_config_dump('event_store.position_counter', 'WHERE last_position > 0');

CREATE FUNCTION event_store.advance_position_counter() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'event_store_advance_position_counter';
REVOKE ALL ON FUNCTION event_store.advance_position_counter() FROM PUBLIC;
ALTER FUNCTION event_store.advance_position_counter() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.advance_position_counter() IS
'trigger: turns a row that a restore inserts into event_store.position_counter into a move ahead of the counter';
CREATE TRIGGER advance BEFORE INSERT ON event_store.position_counter
	FOR EACH ROW EXECUTE FUNCTION event_store.advance_position_counter();
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store.position_counter
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_change();
ALTER TABLE event_store.position_counter ENABLE ALWAYS TRIGGER advance;
ALTER TABLE event_store.position_counter ENABLE ALWAYS TRIGGER refuse_change;

-- Columns stand in the order of their alignment; what is mostly empty comes
-- last, so that a row without it ends with the payload, needs no bitmap of
-- NULLs, and is eight bytes shorter.  The C code knows the numbers
-- (src/common/catalog.h).
CREATE TABLE event_store.event (
	position		bigint NOT NULL,
	stream_id		bigint NOT NULL,
	recorded_at		timestamptz NOT NULL,
	version			int NOT NULL,
	category_id		int NOT NULL,
	type_id			int NOT NULL,
	data			jsonb NOT NULL,
	metadata		jsonb NOT NULL,
	event_id		uuid,
	correlation_id	text COLLATE "C",
	causation_id	uuid,
	source_id		int,
	schema_version	int,
	occurred_at		timestamptz
) PARTITION BY RANGE (position);
ALTER TABLE event_store.event OWNER TO @extowner@;
DO $$
BEGIN
	ALTER TABLE event_store.event
		ALTER COLUMN data SET COMPRESSION lz4,
		ALTER COLUMN metadata SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
	NULL;	-- a server built without lz4 compresses with its default
END
$$;
COMMENT ON TABLE event_store.event IS 'all events, partitioned by range of position into segments (event_store.event_<first position>): query the view event_store.events';
COMMENT ON COLUMN event_store.event.position IS 'place in the whole store: strictly increasing, with holes';
COMMENT ON COLUMN event_store.event.stream_id IS 'the stream: event_store.stream.id';
COMMENT ON COLUMN event_store.event.recorded_at IS 'the clock at the append; never decreases with position';
COMMENT ON COLUMN event_store.event.version IS 'place in the stream: 1, 2, 3 ... without holes';
COMMENT ON COLUMN event_store.event.category_id IS 'the stream''s category: event_store.category.id';
COMMENT ON COLUMN event_store.event.type_id IS 'the event''s type: event_store.event_type.id';
COMMENT ON COLUMN event_store.event.schema_version IS 'version of the schema that data follows; NULL: 1';
COMMENT ON COLUMN event_store.event.event_id IS 'the id that the event was appended with; NULL: event_store.made_event_id(position, recorded_at)';
COMMENT ON COLUMN event_store.event.occurred_at IS 'the producer''s word for when it happened; NULL: as recorded_at';
COMMENT ON COLUMN event_store.event.source_id IS 'where it came from: event_store.source.id, or NULL';
COMMENT ON COLUMN event_store.event.causation_id IS 'id of the event or command that caused this one';
COMMENT ON COLUMN event_store.event.correlation_id IS 'what ties the events of one business transaction together';
COMMENT ON COLUMN event_store.event.data IS 'the payload: any JSON value';
COMMENT ON COLUMN event_store.event.metadata IS 'what the payload does not say: a JSON object';
-- so that pg_dump takes the definition's partitions as tables with data
SELECT pg_extension_config_dump('event_store.event', '');

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store.event
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_change();
ALTER TABLE event_store.event ENABLE ALWAYS TRIGGER refuse_change;

-- Which category and type has events in which segment: rows are only ever
-- added, and may stand there twice, so that no writer waits for another.
CREATE TABLE event_store.segment_content (
	category_id	int NOT NULL,
	type_id		int NOT NULL,
	segment		bigint NOT NULL
);
CREATE INDEX segment_content_category ON event_store.segment_content (category_id, segment, type_id);
CREATE INDEX segment_content_type ON event_store.segment_content (type_id, segment, category_id);
CREATE INDEX segment_content_pair ON event_store.segment_content (category_id, type_id, segment);
ALTER TABLE event_store.segment_content OWNER TO @extowner@;
COMMENT ON TABLE event_store.segment_content IS 'which pairs of category and type have events in which segment; a pair may be listed more than once';
COMMENT ON COLUMN event_store.segment_content.category_id IS 'event_store.category.id';
COMMENT ON COLUMN event_store.segment_content.type_id IS 'event_store.event_type.id';
COMMENT ON COLUMN event_store.segment_content.segment IS 'first position of the segment';
SELECT pg_extension_config_dump('event_store.segment_content', '');
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store.segment_content
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_change();
ALTER TABLE event_store.segment_content ENABLE ALWAYS TRIGGER refuse_change;

CREATE FUNCTION event_store.made_event_id("position" bigint, recorded_at timestamptz) RETURNS uuid
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'event_store_made_event_id';
COMMENT ON FUNCTION event_store.made_event_id(bigint, timestamptz) IS
'made_event_id(position, recorded_at) -> uuid: the id of an event that was appended without one, a UUID version 7 that is computed, not stored. What the view event_store.events and all functions show; find_event() finds it.';

CREATE FUNCTION event_store.last_position() RETURNS bigint
LANGUAGE c VOLATILE PARALLEL SAFE AS 'MODULE_PATHNAME', 'event_store_last_position';
COMMENT ON FUNCTION event_store.last_position() IS
'last_position() -> bigint: the last position that was drawn, 0 in an empty store; after a crash, and on a standby, up to 128 more than was given out. Events up to there may still be in flight: a reader that keeps a cursor asks settled_position(), or reads by read_all() or read_category(), which never pass the settled mark.';

CREATE FUNCTION event_store.settled_position() RETURNS bigint
LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'event_store_settled_position';
COMMENT ON FUNCTION event_store.settled_position() IS
'settled_position() -> bigint: the settled mark, the position up to which nothing can appear any more. Who reads up to it by plain SQL asks for it in a statement of its own, before the statement that reads, in READ COMMITTED: a snapshot older than the mark may miss events below it. read_all() and read_category() do this by themselves, in any isolation level. Only transactions that have appended and have not ended, prepared ones too, hold the mark back. On a standby: the mark that the primary published last.';

CREATE FUNCTION event_store.publish_settled_position() RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_publish_settled_position';
REVOKE ALL ON FUNCTION event_store.publish_settled_position() FROM PUBLIC;
ALTER FUNCTION event_store.publish_settled_position() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.publish_settled_position() IS
'publish_settled_position() -> bigint: writes the settled mark where standbys read it, and returns it. Appends do so by themselves about once a second; call it on a schedule if readers on a standby shall see the last events before a pause at once, although positions below them were rolled back. Raises 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.set_segment_size(positions bigint) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_set_segment_size';
REVOKE ALL ON FUNCTION event_store.set_segment_size(bigint) FROM PUBLIC;
ALTER FUNCTION event_store.set_segment_size(bigint) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.set_segment_size(bigint) IS
'set_segment_size(positions): how many positions each segment holds that is made from now on; those that exist stay as they are. 16 to 1,000,000,000,000, default 1,000,000. Called right after CREATE EXTENSION it holds for the whole store. Raises VE002 out of bounds; wants the owner of the store.';

CREATE FUNCTION event_store.prepare_segments(ahead int DEFAULT 2) RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_prepare_segments';
REVOKE ALL ON FUNCTION event_store.prepare_segments(int) FROM PUBLIC;
ALTER FUNCTION event_store.prepare_segments(int) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.prepare_segments(int) IS
'prepare_segments(ahead = 2) -> int: makes segments until so many (0 to 1,000) stand ready beyond the one that the next event goes to; returns how many it made. Appends do so by themselves; a scheduled call takes even that off them. Raises VE002 for NULL or out of bounds, 25006 in a read-only transaction or on a standby.';

CREATE FUNCTION event_store.segments(OUT segment regclass, OUT first_position bigint, OUT last_position bigint)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'event_store_segments';
COMMENT ON FUNCTION event_store.segments() IS
'segments() -> setof (segment, first_position, last_position): the segments of the store in order of position, and the range of positions that each is for.';
