-- Installing beside other things, as the database's owner, and leaving nothing.
CREATE ROLE es_owner;
CREATE ROLE es_reader;
CREATE ROLE es_writer;
CREATE ROLE es_nobody;
CREATE TABLE public.something_else (id int);
DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO es_owner', current_database()); END $$;

-- what is there before
CREATE TABLE public.objects_before AS
SELECT 'relation' AS kind, oid FROM pg_class UNION ALL
SELECT 'function', oid FROM pg_proc UNION ALL
SELECT 'type', oid FROM pg_type UNION ALL
SELECT 'schema', oid FROM pg_namespace UNION ALL
SELECT 'trigger', oid FROM pg_trigger;

SET ROLE es_owner;
CREATE EXTENSION event_store;
-- the owner of the store need not be a superuser
SELECT event_store.set_segment_size(16);
SELECT (event_store.append('order-1', 'Placed', to_jsonb(i))).last_version FROM generate_series(1, 100) i WHERE i % 50 = 0;
DO $$ BEGIN FOR i IN 1..100 LOOP PERFORM event_store.append('order-1', 'Placed', to_jsonb(i)); END LOOP; END $$;
SELECT count(*) FROM event_store.events;
SELECT count(*) > 5 AS several FROM event_store.segments();
SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'event_store';
RESET ROLE;

-- who may do what
GRANT USAGE ON SCHEMA event_store TO es_reader, es_writer, es_nobody;
GRANT SELECT ON event_store.events TO es_reader;
GRANT INSERT ON event_store.events TO es_writer;
GRANT EXECUTE ON FUNCTION event_store.append TO es_writer;
GRANT EXECUTE ON FUNCTION event_store.append_events TO es_nobody;
SET ROLE es_nobody;
SELECT * FROM event_store.read_all();
SELECT * FROM event_store.read_stream('order-1');
SELECT (event_store.read_stream('order-1')).position;
SELECT event_store.stream_version('order-1');
SELECT * FROM event_store.streams();
SELECT * FROM event_store.segments();
SELECT event_store.settled_position();
SELECT * FROM event_store.events;
SELECT event_store.append('order-1', 'Placed', '1');
SELECT event_store.append_events('order-1', '[{"type":"Placed","data":1}]');
INSERT INTO event_store.events (stream, type, data) VALUES ('order-1', 'Placed', '1');
SELECT event_store.set_segment_size(100);
SELECT event_store.prepare_segments();
SELECT event_store.publish_settled_position();
RESET ROLE;
SET ROLE es_reader;
SELECT count(*) FROM event_store.read_all();
SELECT count(*) FROM event_store.events;
SELECT event_store.append('order-1', 'Placed', '1');
SELECT count(*) FROM event_store.event;
RESET ROLE;
SET ROLE es_writer;
SELECT (event_store.append('order-2', 'Placed', '1')).last_version;
INSERT INTO event_store.events (stream, type, data) VALUES ('order-2', 'Placed', '1');
SELECT count(*) FROM event_store.read_all();
INSERT INTO event_store.event SELECT * FROM event_store.event;
-- a writer reaches new segments without any right on them
DO $$ BEGIN FOR i IN 1..100 LOOP PERFORM event_store.append('order-3', 'Placed', to_jsonb(i)); END LOOP; END $$;
RESET ROLE;
SELECT stream, count(*) FROM event_store.events GROUP BY 1 ORDER BY 1;
SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'event_store';

-- gone without a trace
DROP EXTENSION event_store;
SELECT kind, oid FROM (
	SELECT 'relation' AS kind, oid FROM pg_class WHERE relnamespace <> 'pg_toast'::regnamespace UNION ALL
	SELECT 'function', oid FROM pg_proc UNION ALL
	SELECT 'type', oid FROM pg_type WHERE typname !~ 'objects_before' UNION ALL
	SELECT 'schema', oid FROM pg_namespace UNION ALL
	SELECT 'trigger', oid FROM pg_trigger
	EXCEPT SELECT kind, oid FROM public.objects_before) x
 WHERE oid <> 'public.objects_before'::regclass;
-- a session with warm caches notices
SELECT event_store.append('order-1', 'Placed', '1');
CREATE EXTENSION event_store;
SELECT * FROM event_store.append('order-1', 'Placed', '1');
SELECT position, stream, version, type FROM event_store.read_all();
-- the schema's name must be free
DROP EXTENSION event_store;
CREATE SCHEMA event_store;
\set VERBOSITY terse
CREATE EXTENSION event_store;
\set VERBOSITY default
DROP SCHEMA event_store;
DO $$ BEGIN EXECUTE format('REVOKE CREATE ON DATABASE %I FROM es_owner', current_database()); END $$;
DROP ROLE es_owner;
DROP ROLE es_reader;
DROP ROLE es_writer;
DROP ROLE es_nobody;
DROP TABLE public.objects_before;
DROP TABLE public.something_else;

-- for the tests that follow
-- what a statement raises, as text
CREATE FUNCTION raises(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	state text; message text; detail text; context text;
BEGIN
	EXECUTE statement;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, context = PG_EXCEPTION_CONTEXT;
	RETURN concat_ws(' | ', state, message, nullif(detail, ''),
		CASE WHEN context LIKE '%of the batch%' THEN split_part(context, E'\n', 1) END);
END $$;
