-- ---------------------------------------------------------------------------
-- common: the schema, the store's settings, interned names
--
-- Tables, and the functions that write, belong to the user who creates the
-- extension (@extowner@), who need not be a superuser, and who grants them to
-- others.  A dump then has the grants as made by the owner, and a restore makes
-- them again for whoever owns the store there.  All functions bear NULL in each
-- argument, so it does no harm that their owner may alter their strictness.
-- ---------------------------------------------------------------------------

CREATE SCHEMA event_store;
ALTER SCHEMA event_store OWNER TO @extowner@;
COMMENT ON SCHEMA event_store IS 'append-only event streams in one global order: see append(), read_stream(), read_all() and the view events';

CREATE TABLE event_store.store (
	id				int PRIMARY KEY DEFAULT 1 CHECK (id = 1),
	segment_size	bigint NOT NULL CHECK (segment_size BETWEEN 16 AND 1000000000000)
);
ALTER TABLE event_store.store OWNER TO @extowner@;
COMMENT ON TABLE event_store.store IS 'settings of the store: one row, or none while every setting has its default';
COMMENT ON COLUMN event_store.store.id IS 'always 1: there is one row at the most';
COMMENT ON COLUMN event_store.store.segment_size IS 'positions in each segment made from now on (default 1,000,000)';

CREATE SEQUENCE event_store.category_id AS int;
CREATE TABLE event_store.category (
	id		int NOT NULL,
	name	text COLLATE "C" NOT NULL,
	CONSTRAINT category_pkey PRIMARY KEY (id),
	CONSTRAINT category_name_key UNIQUE (name)
);
ALTER TABLE event_store.category OWNER TO @extowner@;
ALTER SEQUENCE event_store.category_id OWNER TO @extowner@;
COMMENT ON TABLE event_store.category IS 'interned names of categories: what stands before the first - of a stream''s name';
COMMENT ON SEQUENCE event_store.category_id IS 'ids of categories';
COMMENT ON COLUMN event_store.category.id IS 'what events and streams carry in place of the name';
COMMENT ON COLUMN event_store.category.name IS 'the category''s name';

CREATE SEQUENCE event_store.event_type_id AS int;
CREATE TABLE event_store.event_type (
	id		int NOT NULL,
	name	text COLLATE "C" NOT NULL,
	CONSTRAINT event_type_pkey PRIMARY KEY (id),
	CONSTRAINT event_type_name_key UNIQUE (name)
);
ALTER TABLE event_store.event_type OWNER TO @extowner@;
ALTER SEQUENCE event_store.event_type_id OWNER TO @extowner@;
COMMENT ON TABLE event_store.event_type IS 'interned names of event types';
COMMENT ON SEQUENCE event_store.event_type_id IS 'ids of event types';
COMMENT ON COLUMN event_store.event_type.id IS 'what events carry in place of the name';
COMMENT ON COLUMN event_store.event_type.name IS 'the event type''s name';

CREATE SEQUENCE event_store.source_id AS int;
CREATE TABLE event_store.source (
	id		int NOT NULL,
	name	text COLLATE "C" NOT NULL,
	CONSTRAINT source_pkey PRIMARY KEY (id),
	CONSTRAINT source_name_key UNIQUE (name)
);
ALTER TABLE event_store.source OWNER TO @extowner@;
ALTER SEQUENCE event_store.source_id OWNER TO @extowner@;
COMMENT ON TABLE event_store.source IS 'interned names of sources: the systems that events come from';
COMMENT ON SEQUENCE event_store.source_id IS 'ids of sources';
COMMENT ON COLUMN event_store.source.id IS 'what events carry in place of the name';
COMMENT ON COLUMN event_store.source.name IS 'the source''s name';

SELECT pg_extension_config_dump('event_store.store', '');
SELECT pg_extension_config_dump('event_store.category', '');
SELECT pg_extension_config_dump('event_store.category_id', '');
SELECT pg_extension_config_dump('event_store.event_type', '');
SELECT pg_extension_config_dump('event_store.event_type_id', '');
SELECT pg_extension_config_dump('event_store.source', '');
SELECT pg_extension_config_dump('event_store.source_id', '');

-- Refuses what would change or remove events, or the tables that give them
-- their meaning.
CREATE FUNCTION event_store.refuse_change() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'event_store_refuse_change';
REVOKE ALL ON FUNCTION event_store.refuse_change() FROM PUBLIC;
ALTER FUNCTION event_store.refuse_change() OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.refuse_change() IS
'trigger: refuses UPDATE, DELETE and TRUNCATE of the table it stands on; raises VE005';

CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store.category
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_change();
ALTER TABLE event_store.category ENABLE ALWAYS TRIGGER refuse_change;
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store.event_type
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_change();
ALTER TABLE event_store.event_type ENABLE ALWAYS TRIGGER refuse_change;
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store.source
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_change();
ALTER TABLE event_store.source ENABLE ALWAYS TRIGGER refuse_change;
