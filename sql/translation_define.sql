-- translations made, altered and dropped; rules that are none
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.append('order-1', 'Placed', '{"a": 1, "b": 2}') \g /dev/null
CREATE FUNCTION pg_temp.translated(name text) RETURNS jsonb LANGUAGE sql AS $$
	SELECT t.data FROM event_store.last_event('order-1') AS e, event_store.translate(name, e) AS t
$$;
SELECT event_store.create_translation('t', '{"data": ["a"]}');
SELECT raises($$SELECT event_store.create_translation('t', '{"data": ["a"]}')$$);
SELECT pg_temp.translated('t');
SELECT event_store.alter_translation('t', '[{"data": ["b"], "types": ["Placed"], "where": "true", "type": {"sql": "''x''"}}, {"type": "y"}]');
SELECT pg_temp.translated('t');
SELECT name, rule, types, categories, condition, type, definition, altered_at >= created_at AS later FROM event_store.translations ORDER BY name, rule;
-- what is undone
BEGIN;
SELECT event_store.alter_translation('t', '{"data": ["a", "b"]}');
SELECT pg_temp.translated('t');
ROLLBACK;
SELECT pg_temp.translated('t');
BEGIN;
SAVEPOINT s;
SELECT event_store.create_translation('u', '{"data": {"set": {"u": 1}}}');
SELECT pg_temp.translated('u');
ROLLBACK TO s;
SELECT raises($$SELECT pg_temp.translated('u')$$);
COMMIT;
-- in an old snapshot of the database it is as it is now
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT pg_temp.translated('t');
SELECT event_store.alter_translation('t', '{"data": ["a"]}');
SELECT pg_temp.translated('t');
COMMIT;
SELECT event_store.drop_translation('t');
SELECT raises($$SELECT pg_temp.translated('t')$$);
SELECT raises($$SELECT event_store.drop_translation('t')$$);
SELECT raises($$SELECT event_store.alter_translation('t', '{}')$$);
-- the table made anew
SELECT event_store.create_translation('t', '{"data": {"compute": {"x": "1"}}}');
SELECT pg_temp.translated('t');
SET client_min_messages = warning;
DROP EXTENSION event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.append('order-1', 'Placed', '{"a": 1, "b": 2}') \g /dev/null
SELECT raises($$SELECT pg_temp.translated('t')$$);

SELECT rules, raises(format('SELECT event_store.create_translation(%L, %L)', 'x', rules)) FROM unnest(ARRAY['[]', '5', 'null', '[5]', '[{}, {"x": 1}]', '{"types": []}', '{"types": "a"}', '{"types": [1]}', '{"types": [""]}', '{"categories": {}}',
	'{"type": null}', '{"type": 5}', '{"type": ""}', '{"type": {"x": 1}}', '{"type": {"sql": 5}}', '{"type": {"sql": "1", "x": 1}}', '{"stream": null}', '{"source": ""}', '{"schema_version": "1"}', '{"schema_version": 0}', '{"schema_version": 1.5}', '{"schema_version": 99999999999}', '{"schema_version": null}', '{"causation_id": "x"}', '{"correlation_id": []}',
	'{"data": null}', '{"data": {"x": 1}}', '{"data": {"pick": "a"}}', '{"data": [""]}', '{"data": ["a..b"]}', '{"data": [5]}', '{"data": [[]]}', '{"data": [[5]]}', '{"data": {"rename": []}}', '{"data": {"rename": {"a": 1}}}', '{"data": {"rename": {"": "a"}}}', '{"data": {"rename": {"a": "b."}}}', '{"data": {"set": []}}', '{"data": {"compute": {"a": 1}}}', '{"metadata": 5}',
	'{"where": 5}', '{"where": ""}', '{"where": "version"}', '{"where": "1 = "}', '{"where": "true) OR (true"}', '{"where": "true; DROP TABLE x"}', '{"where": "true AS x"}', '{"where": "true FROM pg_class"}', '{"where": "true, true"}', '{"where": "true WHERE true"}', '{"where": "true ORDER BY 1"}', '{"where": "true UNION SELECT true"}', '{"where": "DISTINCT true"}', '{"where": "no_such_column"}',
	'{"data": {"compute": {"a": "public.nothing()"}}}', '{"data": {"compute": {"a": "*"}}}', '{"data": {"compute": {"a": "$3"}}}', '{"schema_version": {"sql": "data"}}']::jsonb[]) AS rules;
SELECT raises($$SELECT event_store.create_translation(NULL, '{}')$$);
SELECT raises($$SELECT event_store.create_translation('x', NULL)$$);
SELECT raises($$SELECT event_store.create_translation('', '{}')$$);
SELECT raises($$SELECT event_store.translate(NULL, NULL)$$);
SELECT left(raises($$SELECT event_store.translate(repeat('x', 5000), e) FROM event_store.last_event('order-1') AS e$$), 40);
SELECT raises($$SELECT event_store.create_translation('x', jsonb_agg('{}'::jsonb)) FROM generate_series(1, 1001)$$);
SELECT count(*) FROM event_store.translations;
BEGIN READ ONLY;
SELECT raises($$SELECT event_store.create_translation('x', '{}')$$);
SELECT raises($$SELECT event_store.drop_translation('x')$$);
ROLLBACK;
-- where an expression is wrong
\set VERBOSITY default
SELECT event_store.create_translation('x', '{"data": {"compute": {"a": "version + + (", "b": "1"}}}');
SELECT event_store.create_translation('x', '{"where": "''a"}');
