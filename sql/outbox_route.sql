-- Events that are published as they are appended
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
CREATE VIEW shown AS SELECT topic, key, type, payload, headers - '{event_id,recorded_at}'::text[] AS headers FROM event_store.outbox_messages ORDER BY id;

-- arguments
SELECT event_store.route_to_outbox(NULL);
SELECT event_store.route_to_outbox('r', categories => '{}');
SELECT event_store.route_to_outbox('r', types => '{NULL}');
SELECT event_store.route_to_outbox('r', topic => '');
SELECT event_store.route_to_outbox('r', key => '');
SELECT event_store.route_to_outbox('r', topic => '{nothing}');
SELECT event_store.route_to_outbox('r', topic => '{stream.x}');
SELECT event_store.route_to_outbox('r', key => 'a{data.');
SELECT event_store.route_to_outbox('r', topic => repeat('x', 1000) || '{type}' || repeat('x', 25));
SELECT event_store.route_to_outbox('r', payload => '{"a": ["{no}"]}');
SELECT event_store.route_to_outbox('r', payload => '"{no}"');
SELECT event_store.drop_route('r');

SELECT event_store.route_to_outbox('every', topic => 'events.{category}.{type}', key => '{data.customer.id}');
SELECT event_store.route_to_outbox('every');
SELECT event_store.route_to_outbox('orders', '{order}', '{Placed,Paid}', 'orders',
	payload => '{"order": "{id}", "n": "{data.n}", "version": "{version}", "text": "{type} of {stream}, {data.tags.1}, {{{data.n}}}", "all": ["{metadata}", "{data.none}", true, 1, null], "source": "{source}/{correlation_id}"}');
SELECT name, categories, types, topic, key FROM event_store.outbox_routes ORDER BY name;
SELECT event_store.append('order-1-a', 'Placed', '{"n": 5, "customer": {"id": 7}, "tags": ["x", "y"]}', '{"traceparent": "00-4b-00f-01", "tracestate": "a=b", "other": 1}',
	correlation_id => 'c', source => 's', causation_id => '00000000-0000-0000-0000-000000000001', schema_version => 2) IS NOT NULL;
SELECT event_store.append('cart', 'Filled', '"text"') IS NOT NULL;
SELECT * FROM shown;
-- the message says which event it is of
SELECT m.headers->>'event_id' = e.event_id::text AND m.headers->>'recorded_at' IS NOT NULL AND (m.headers->>'position')::bigint = e.position
FROM event_store.outbox_messages AS m JOIN event_store.events AS e ON e.stream = m.headers->>'stream';
-- a duplicate is not published again
SELECT event_store.append('order-2', 'Placed', '{}', event_id => '00000000-0000-0000-0000-000000000002') IS NOT NULL;
SELECT event_store.append('order-2', 'Placed', '{}', event_id => '00000000-0000-0000-0000-000000000002') IS NOT NULL;
SELECT topic, key, payload FROM shown WHERE headers->>'stream' = 'order-2';
-- what is rolled back is not published
BEGIN;
SELECT event_store.append('order-3', 'Placed', '{}') IS NOT NULL;
ROLLBACK;
SELECT count(*) FROM shown WHERE headers->>'stream' = 'order-3';
-- a route that is rolled back never was
BEGIN;
SAVEPOINT s;
SELECT event_store.route_to_outbox('gone', topic => 'gone');
SELECT event_store.append('order-4', 'Other', '{}') IS NOT NULL;
ROLLBACK TO s;
SELECT event_store.append('order-5', 'Other', '{}') IS NOT NULL;
COMMIT;
SELECT event_store.append('order-6', 'Other', '{}') IS NOT NULL;
SELECT topic, key FROM shown WHERE type = 'Other';
-- what lacks the topic fails; what lacks the key has none
SELECT event_store.drop_route('every'), event_store.drop_route('orders');
SELECT event_store.route_to_outbox('strict', topic => '{data.topic}', key => '{data.key}');
SELECT event_store.append('a-1', 't', '{"topic": "x"}') IS NOT NULL;
SELECT event_store.append('a-1', 't', '{"key": "x"}');
SELECT event_store.append('a-1', 't', '{"topic": "x", "key": ""}');
SELECT event_store.append('a-1', 't', jsonb_build_object('topic', repeat('x', 2000)));
SELECT topic, key, payload FROM shown WHERE type = 't';
SELECT event_store.drop_route('strict');
SELECT event_store.append('a-1', 't', '1') IS NOT NULL;
SELECT count(*) FROM shown WHERE type = 't';
-- payloads that are a scalar, or the event's data as it is
SELECT event_store.route_to_outbox('whole', topic => 'w', payload => '"{data}"');
SELECT event_store.route_to_outbox('number', topic => 'n', payload => '42');
SELECT event_store.route_to_outbox('empty', topic => 'e', key => NULL, payload => '{}');
SELECT event_store.append('b-1', 't2', '[1, {"x": null}]') IS NOT NULL;
SELECT topic, key, payload FROM shown WHERE type = 't2';
SELECT event_store.drop_route(name) FROM event_store.outbox_routes;
-- all that an event is; times in UTC, whatever the session's time zone
SET timezone = 'Asia/Kathmandu';
SELECT event_store.route_to_outbox('all', types => '{t3}', topic => 'v{schema_version}.{occurred_at}',
	payload => '{"type": "{type}", "schema_version": "{schema_version}", "event_id": "{event_id}", "occurred_at": "{occurred_at}", "source": "{source}", "correlation_id": "{correlation_id}", "causation_id": "{causation_id}", "data": "{data}", "metadata": "{metadata}"}');
SELECT event_store.route_to_outbox('times', types => '{t3}', topic => 'times', payload => '["{occurred_at}", "{recorded_at}"]');
SELECT event_store.append('c-1', 't3', '{"n": 1.50}', '{"user": "ann"}', event_id => '00000000-0000-0000-0000-000000000003', occurred_at => '2020-02-29 23:59:59.000001-01', schema_version => 7,
	correlation_id => 'c', causation_id => '00000000-0000-0000-0000-000000000004', source => 's') IS NOT NULL;
SELECT event_store.append('c-2', 't3', '1') IS NOT NULL;
SELECT topic, payload FROM shown WHERE type = 't3' AND key = 'c-1' AND topic <> 'times';
SELECT (m.payload->>0)::timestamptz = e.occurred_at, (m.payload->>1)::timestamptz = e.recorded_at, m.payload->>1 LIKE '%+00:00', m.headers->>'recorded_at' = m.payload->>1
FROM shown JOIN event_store.outbox_messages AS m USING (topic, key, payload) JOIN event_store.events AS e ON e.stream = m.key WHERE m.topic = 'times' ORDER BY m.key;
-- so a message is enough to append the same event elsewhere
SELECT event_store.drop_route('all'), event_store.drop_route('times');
SELECT event_store.append_events('c-9', jsonb_build_array(payload)) IS NOT NULL FROM shown WHERE type = 't3' AND key = 'c-1' AND topic <> 'times';
SELECT count(*), count(DISTINCT (type, schema_version, event_id, occurred_at, source, correlation_id, causation_id, data, metadata)) FROM event_store.events WHERE stream IN ('c-1', 'c-9');
RESET timezone;
-- many at once, by all ways to append, in order of the events
SELECT event_store.route_to_outbox('many', types => '{many}');
SELECT last_version FROM event_store.append_events('m-1', (SELECT jsonb_agg(jsonb_build_object('type', 'many', 'data', i)) FROM generate_series(1, 2500) AS i));
INSERT INTO event_store.events (stream, type, data) SELECT 'm-' || i % 3, 'many', to_jsonb(i) FROM generate_series(1, 100) AS i;
SELECT count(*), count(*) FILTER (WHERE before > version) AS disorder FROM (
	SELECT (headers->>'version')::int AS version, max((headers->>'version')::int) OVER (PARTITION BY key ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
	FROM event_store.outbox_messages WHERE type = 'many') AS x;
-- an inline projection that appends: what follows is published behind
SELECT event_store.drop_route('many');
SELECT event_store.route_to_outbox('follow', types => '{first,second}', key => 'k');
CREATE FUNCTION follow(e event_store.recorded_event) RETURNS void LANGUAGE sql
AS $$SELECT event_store.append('f-1', 'second', '2') WHERE e.type = 'first'$$;
SELECT event_store.create_projection('follow', 'event', 'follow', mode => 'inline', types => '{first,second}', start_after => NULL) IS NOT NULL;
SELECT event_store.append('f-1', 'first', '1') IS NOT NULL;
SELECT type, headers->>'version' AS version FROM shown WHERE type IN ('first', 'second');
SELECT event_store.drop_projection('follow');
DROP FUNCTION follow;
-- into the WAL
SET event_store.outbox_mode = wal;
SELECT event_store.publish('t', 'k', '1');
SELECT event_store.publish('t', 'k', '1', deliver_after => '1 s');
RESET event_store.outbox_mode;

-- a translation: outer events are published, and nothing of what it passes over
SELECT event_store.drop_route(name) FROM event_store.outbox_routes;
SELECT event_store.create_translation('public', '[{"types": ["Placed"], "where": "(data->>''total'')::int > 0", "type": "com.example.placed", "stream": {"sql": "''orders/'' || split_part(stream, ''-'', 2)"}, "source": "shop", "data": {"pick": ["total"], "rename": {"total": "amount"}}}]');
SELECT event_store.route_to_outbox('public', topic => '{type}', key => '{stream}', translation => 'no such');
SELECT event_store.route_to_outbox('public', '{shop}', topic => '{type}', key => '{stream}', translation => 'public');
SELECT name, categories, topic, translation FROM event_store.outbox_routes;
SELECT event_store.append('shop-1', 'Placed', '{"total": 5, "secret": 1}', '{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01", "user": "ann"}', correlation_id => 'c') IS NOT NULL;
SELECT event_store.append('shop-2', 'Placed', '{"total": 0}') IS NOT NULL;
SELECT event_store.append('shop-3', 'Other', '{"total": 7}') IS NOT NULL;
SELECT count(*) FROM event_store.append_events('shop-4', (SELECT jsonb_agg(jsonb_build_object('type', 'Placed', 'data', jsonb_build_object('total', i - 10))) FROM generate_series(1, 1500) i));
SELECT topic, key, type, payload, headers - '{event_id,position,recorded_at}'::text[] AS headers FROM shown WHERE key IN ('orders/1', 'orders/2', 'orders/3');
SELECT count(*), min(payload->>'amount'), bool_and(payload ?& '{amount}' AND headers->>'source' = 'shop') FROM shown WHERE key = 'orders/4';
-- what fails in it fails the append; it stays while a route names it
SELECT event_store.append('shop-1', 'Placed', '{"total": "many"}');
SELECT event_store.drop_translation('public');
SELECT event_store.drop_route('public'), event_store.drop_translation('public');
DROP VIEW shown;
