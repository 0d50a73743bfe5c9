-- what translations make of events
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SET timezone = 'America/New_York';
SELECT event_store.append('order-1', 'Placed', '{"id": 1, "customer": {"name": "Ada", "secret": "s", "address": {"city": "London", "zip": "W1"}}, "net": 10.50, "tax": 2, "internal": true, "lines": [{"sku": "a", "cost": 1}, {"sku": "b", "cost": 2}]}',
	'{"user": "eve", "traceparent": "00-1", "tracestate": "x=1"}', occurred_at => '2025-01-01 00:30+00', correlation_id => 'c', causation_id => 'aaaaaaaa-2222-3333-4444-555555555555', schema_version => 4, source => 'shop') \g /dev/null
SELECT event_store.append('order-1', 'Paid', '{"amount": 12.5, "method": "card"}') \g /dev/null
SELECT event_store.append('order-2', 'Paid', '{"amount": 0.5}') \g /dev/null
SELECT event_store.append('order-2', 'Noted', '"just text"') \g /dev/null
SELECT event_store.append('stock-1', 'Paid', '[1, 2]') \g /dev/null

-- the rules given, applied to all events
CREATE FUNCTION pg_temp.translated(rules jsonb) RETURNS TABLE (stream text, version int, type text, data jsonb, metadata jsonb, rest text) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM event_store.create_translation('t', rules);
	RETURN QUERY SELECT t.stream, t.version, t.type, t.data, t.metadata, concat_ws(' ', t.schema_version, t.source, t.correlation_id, t.causation_id,
		t.position = e.position AND t.event_id = e.event_id AND t.recorded_at = e.recorded_at AND t.occurred_at = e.occurred_at)
	  FROM event_store.events AS e, event_store.translate('t', e) AS t ORDER BY e.position;
	PERFORM event_store.drop_translation('t');
END $$;
SELECT * FROM pg_temp.translated('{}');
-- which events
SELECT stream, version, type FROM pg_temp.translated('{"types": ["Paid"]}');
SELECT stream, version, type FROM pg_temp.translated('{"categories": ["stock", "none"]}');
SELECT stream, version, type FROM pg_temp.translated('{"types": ["Paid"], "categories": ["order"], "where": "(data->>''amount'')::numeric > 1"}');
SELECT stream, version, type FROM pg_temp.translated('{"where": "NULL"}');
SELECT stream, version, type FROM pg_temp.translated('{"where": "category = ''stock'' OR event.position = 1 -- of all"}');
-- the first rule that fits
SELECT stream, version, type FROM pg_temp.translated('[{"types": ["Paid"], "where": "category = ''stock''", "type": "stock.paid"}, {"types": ["Paid", "Placed"], "type": {"sql": "''order.'' || lower(type)"}}]');
-- fields
SELECT * FROM pg_temp.translated('{"types": ["Placed"], "type": "x", "stream": "outer-1", "source": "crm", "schema_version": 7, "correlation_id": "d", "causation_id": "bbbbbbbb-2222-3333-4444-555555555555"}');
SELECT * FROM pg_temp.translated('{"types": ["Placed"], "source": null, "correlation_id": null, "causation_id": null}');
SELECT * FROM pg_temp.translated('{"types": ["Placed"], "type": {"sql": "''t'' || version"}, "stream": {"sql": "category || ''-x''"}, "source": {"sql": "NULL"}, "schema_version": {"sql": "schema_version * 10"}, "correlation_id": {"sql": "data->>''id''"}, "causation_id": {"sql": "''cccccccc-2222-3333-4444-555555555555''"}}');
-- data
SELECT data FROM pg_temp.translated('{"data": ["id", "customer.address.city", "customer.nothing", "amount", ["lines"]]}');
SELECT data FROM pg_temp.translated('{"data": {"drop": ["customer.secret", "internal", "lines", "customer.address.zip", "customer.address.city", "amount.x", "nothing"]}}');
SELECT data FROM pg_temp.translated('{"types": ["Placed"], "data": {"pick": ["id", "net", "tax", "customer.address.city", "customer.name"], "rename": {"net": "tax", "tax": "net", "customer.address.city": "city", "customer.name": "customer", "nothing": "x"}}}');
SELECT data FROM pg_temp.translated('{"types": ["Placed"], "data": {"pick": [], "set": {"a": 1, "a.b.c": [true], "list": null}, "compute": {"total": "(data->>''net'')::numeric + (data->>''tax'')::numeric", "missing": "data->''missing''", "null": "''null''::jsonb", "skus": "(SELECT jsonb_agg(l->''sku'') FROM jsonb_array_elements(data->''lines'') AS l)", "time": "occurred_at", "day": "to_char(occurred_at, ''YYYY-MM-DD'')", "text": "''unknown''"}}}');
SELECT data FROM pg_temp.translated('{"types": ["Noted", "Paid"], "data": {"rename": {"amount": "price.gross", "method": "price.method"}, "set": {"price.currency": "EUR"}}}');
SELECT data FROM pg_temp.translated('{"data": {"sql": "data - ''customer'' - ''lines''", "drop": ["id"], "rename": {"net": "a.net", "tax": "a.tax"}}, "where": "jsonb_typeof(data) = ''object''"}');
SELECT data FROM pg_temp.translated('{"types": ["Noted"], "data": {"sql": "NULL"}}');
SELECT data FROM pg_temp.translated('{"types": ["Noted"], "data": {"drop": ["x"], "rename": {"x": "y"}}}');
-- metadata: the trace, unless something is said
SELECT metadata FROM pg_temp.translated('{"types": ["Placed"], "metadata": ["user"]}');
SELECT metadata FROM pg_temp.translated('{"types": ["Placed"], "metadata": {}}');
SELECT metadata FROM pg_temp.translated('{"types": ["Placed"], "metadata": {"drop": ["user"], "set": {"tenant": "a"}, "compute": {"n": "version"}}}');
-- on the way to others
SELECT event_store.create_translation('public', '[{"types": ["Placed"], "type": "com.example.order.placed", "stream": {"sql": "substr(stream, 7)"}, "data": {"pick": ["id", "customer.name"], "rename": {"customer.name": "customer"}}}]');
SELECT event_store.to_cloudevent(t, '/shop') - 'id' FROM event_store.events AS e, event_store.translate('public', e) AS t;
-- in the select list, of NULL, of one made by hand
SELECT (event_store.translate('public', e)).type FROM event_store.events AS e;
SELECT count(*) FROM event_store.translate('public', NULL);
SELECT * FROM event_store.translate('public', ROW(NULL, 'order-9', NULL, 'Placed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::event_store.recorded_event);

-- through arrays: of each element
SELECT event_store.create_translation('paths', '{}');
SELECT data FROM pg_temp.translated('{"types": ["Placed"], "data": ["id", "lines.sku", "customer.none", "none.at", "id.x"]}');
SELECT data FROM pg_temp.translated('{"types": ["Placed"], "data": {"pick": ["customer", "lines"], "drop": ["lines.cost", "customer.secret", "customer.address.zip", "customer.name.x", "none"]}}');
SELECT x.what, t.data FROM (VALUES ('pick', '["a.b", "a.c.d", "e"]'), ('drop', '["a.b", "a.c.d", "e"]'), ('pick', '["a", "a.b"]'), ('drop', '["a", "a.b"]'), ('drop', '[]'), ('pick', '[["a"], ["e", "f"]]')) AS x(what, paths),
	LATERAL (SELECT event_store.alter_translation('paths', jsonb_build_object('data', jsonb_build_object(x.what, x.paths::jsonb)))) AS a,
	(VALUES ('{"a": [{"b": 1, "c": [[{"d": 2, "x": 3}], 4]}, 5, {}, []], "e": {"f": null, "g": []}, "h": "b"}'::jsonb), ('[{"a": {"b": 1}}, "e", {"e": 1}]'), ('"a"'), ('[]')) AS j(data),
	LATERAL event_store.translate('paths', ROW(NULL, 'order-9', NULL, 'Placed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, j.data, NULL)::event_store.recorded_event) AS t WHERE a IS NOT NULL;
-- what expressions may, and as whom
CREATE TABLE written (n int);
CREATE FUNCTION write() RETURNS int LANGUAGE sql AS 'INSERT INTO public.written VALUES (1) RETURNING n';
CREATE FUNCTION who() RETURNS text LANGUAGE sql STABLE AS $$ SELECT current_user || ' ' || current_setting('search_path') || ' ' || current_setting('timezone') || ' ' || current_setting('datestyle') $$;
CREATE ROLE regress_translator;
GRANT USAGE ON SCHEMA event_store TO regress_translator;
GRANT EXECUTE ON FUNCTION event_store.translate TO regress_translator;
SELECT event_store.create_translation('who', jsonb_build_object('types', '["Noted"]'::jsonb, 'data', '{"compute": {"who": "public.who()"}}'::jsonb));
SELECT current_user AS me \gset
SET ROLE regress_translator;
SET datestyle = 'German';
SELECT replace(t.data->>'who', :'me', 'the owner') FROM event_store.translate('who', ROW(NULL, 'order-9', NULL, 'Noted', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{}', NULL)::event_store.recorded_event) AS t;
SELECT current_user, current_setting('datestyle'), current_setting('timezone');
SELECT raises($$SELECT event_store.create_translation('x', '{}')$$);
SELECT raises($$SELECT * FROM event_store.translations$$);
RESET datestyle;
RESET ROLE;
SELECT stream, raises(format('SELECT * FROM pg_temp.translated(%L)', rules)) FROM (VALUES
	('writes', '{"data": {"compute": {"n": "public.write()"}}}'),
	('fails', '{"types": ["Placed"], "data": {"compute": {"n": "1 / 0"}}}'),
	('set', '{"data": {"compute": {"n": "generate_series(1, 2)"}}}'),
	('no type', '{"type": {"sql": "NULL"}}'), ('no version', '{"schema_version": {"sql": "NULL"}}'), ('empty', '{"stream": {"sql": "''''"}}'), ('version', '{"schema_version": {"sql": "0"}}'),
	('metadata', '{"metadata": {"sql": "1"}}'), ('no stream', '{"stream": {"sql": "repeat(''x'', 2000)"}}')) AS x(stream, rules);
SELECT count(*) FROM written;
-- one value of each expression, and a row if the condition holds: nothing to aggregate, no sets, no locks
SELECT stream, raises(format('SELECT * FROM pg_temp.translated(%L)', rules)) FROM (VALUES
	('aggregate', '{"where": "false", "data": {"compute": {"n": "count(*)"}}}'),
	('aggregate of the event', '{"where": "false", "data": {"compute": {"n": "(SELECT max(position))"}}}'),
	('window', '{"data": {"compute": {"n": "row_number() OVER ()"}}}'),
	('no rows', '{"data": {"compute": {"n": "generate_series(1, 0)"}}}'),
	('lock', '{"data": {"compute": {"n": "(SELECT s.id FROM event_store.stream AS s LIMIT 1 FOR UPDATE)"}}}')) AS x(stream, rules);
SELECT stream, data FROM pg_temp.translated('{"types": ["Placed"], "data": {"pick": [], "compute": {"skus": "(SELECT jsonb_agg(l->''sku'') FROM jsonb_array_elements(data->''lines'') AS l)", "series": "(SELECT count(*) FROM generate_series(1, 3))"}}}');
-- what an expression says does not depend on who was the first to use it, nor on who uses it
CREATE FUNCTION german() RETURNS text LANGUAGE sql STABLE AS $$ SELECT to_tsvector('Die Katzen') || ' ' || to_char(1.5, 'L0D0') || ' ' || quote_ident('x') || ' ' || 'a\b' $$;
SELECT event_store.create_translation('literal', '{"types": ["Placed"], "where": "occurred_at >= ''2025-01-01''", "data": {"pick": [], "compute": {"at": "''2025-01-01''::timestamptz", "backslash": "''a\\b''", "x": "NULL = NULL", "german": "public.german()"}}}');
SET default_text_search_config = 'pg_catalog.german';
SET standard_conforming_strings = off;
SET escape_string_warning = off;
SET quote_all_identifiers = on;
SET transform_null_equals = on;
SET timezone = 'Asia/Tokyo';
-- read anew in this session
SELECT event_store.alter_translation('literal', definition) FROM event_store.translations WHERE name = 'literal';
SELECT t.data FROM event_store.events AS e, event_store.translate('literal', e) AS t;
SET timezone = 'America/Lima';
SELECT event_store.alter_translation('literal', definition) FROM event_store.translations WHERE name = 'literal';
SELECT t.data FROM event_store.events AS e, event_store.translate('literal', e) AS t;
RESET default_text_search_config; RESET standard_conforming_strings; RESET escape_string_warning; RESET quote_all_identifiers; RESET transform_null_equals;
SET timezone = 'America/New_York';
DROP FUNCTION german();
-- a function that has gone
SELECT raises($$SELECT t.data FROM event_store.events AS e, event_store.translate('literal', e) AS t$$);
SELECT event_store.create_translation('fails', '[{"types": ["none"]}, {"types": ["Paid"], "where": "1 / (version - 2) > 0"}]');
\set VERBOSITY default
SELECT t.type FROM event_store.events AS e, event_store.translate('fails', e) AS t;
-- one that calls itself ends
SELECT event_store.create_translation('itself', '{}');
SELECT event_store.alter_translation('itself', '{"data": {"compute": {"n": "(SELECT count(*) FROM event_store.last_event(stream) AS e, event_store.translate(''itself'', e))"}}}');
SET max_stack_depth = '300kB';
SELECT split_part(raises($$SELECT t.type FROM event_store.events AS e, event_store.translate('itself', e) AS t$$), '|', 1);
RESET max_stack_depth;
SELECT count(*) FROM event_store.events AS e, event_store.translate('public', e) AS t;
REVOKE ALL ON SCHEMA event_store FROM regress_translator;
REVOKE ALL ON FUNCTION event_store.translate FROM regress_translator;
DROP ROLE regress_translator;
DROP FUNCTION who(), write();
DROP TABLE written;
