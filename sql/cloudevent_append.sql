-- CloudEvents 1.0: the examples of the specification, what is checked, and what becomes of it
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SET datestyle = 'ISO';
SET timezone = 'UTC';
-- appends to a stream of its own, and gives back what the event has become
CREATE FUNCTION pg_temp.there_and_back(event jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	again jsonb;
	result event_store.append_result;
BEGIN
	result := event_store.append_cloudevent(event);
	SELECT event_store.to_cloudevent(e) INTO STRICT again FROM event_store.read_stream(result.stream, result.last_version, 1) AS e;
	-- null is as good as nothing, but as data
	RETURN CASE WHEN again = jsonb_strip_nulls(event - 'data') || CASE WHEN event ? 'data' THEN jsonb_build_object('data', event->'data') ELSE '{}' END
		THEN 'same' ELSE again::text END;
END $$;

-- the examples of the JSON event format
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "id": "A234-1234-1234",
	"time": "2018-04-05T17:31:00Z", "comexampleextension1": "value", "comexampleothervalue": 5,
	"datacontenttype": "application/vnd.apache.thrift.binary", "data_base64": "Zm9vYg=="}');
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "id": "B234-1234-1234",
	"time": "2018-04-05T17:31:00Z", "comexampleextension1": "value", "comexampleothervalue": 5, "unsetextension": null,
	"datacontenttype": "application/xml", "data": "<much wow=\"xml\"/>"}');
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "subject": null, "id": "C234-1234-1234",
	"time": "2018-04-05T17:31:00Z", "comexampleextension1": "value", "comexampleothervalue": 5, "datacontenttype": "application/json",
	"data": {"appinfoA": "abc", "appinfoB": 123, "appinfoC": true}}');
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "subject": null, "id": "C234-1234-1235",
	"time": "2018-04-05T17:31:00Z", "comexampleextension1": "value", "comexampleothervalue": 5, "datacontenttype": "application/json", "data": 1.5}');
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "subject": null, "id": "D234-1234-1234",
	"time": "2018-04-05T17:31:00Z", "comexampleextension1": "value", "comexampleothervalue": 5, "data": "I''m just a string"}');
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "id": "D234-1234-1235", "data_base64": "eyAieHl6IjogMTIzIH0="}');
SELECT version, type, source, CASE WHEN occurred_at <> recorded_at THEN occurred_at END AS occurred_at, data, metadata FROM event_store.read_stream('/mycontext');
-- of the same id another event would be: what the examples do
SELECT raises($$SELECT event_store.append_cloudevent('{"specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext", "id": "C234-1234-1234", "data": 1.5}')$$);
-- the smallest
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "t", "source": "s", "id": "1"}');
-- the examples of what attributes can be, and the samples of the conformance tests
SELECT source, pg_temp.there_and_back(jsonb_build_object('specversion', '1.0', 'type', 'com.github.pull_request.opened', 'id', 'x', 'source', source))
  FROM unnest('{https://github.com/cloudevents,mailto:cncf-wg-serverless@lists.cncf.io,urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66,/cloudevents/spec/pull/123,/sensors/tn-1234567/alerts,1-555-123-4567,http://[::1]:80/a%20b?c#d}'::text[]) AS source;
SELECT number, pg_temp.there_and_back(jsonb_build_object('specversion', '1.0', 'type', 'io.cloudevents.minimum', 'id', 'conformance-' || number,
	'source', '//github.com/cloudevents/cloudeventsconformance/yaml/v1.yaml', 'datacontenttype', content, 'data', data))
  FROM (VALUES (1, 'text/plain; charset=us-ascii', '"Hello, World!"'::jsonb), (2, 'text/plain; charset=utf-8', '"Hello, 🌎!"'),
	(3, 'application/json; charset=utf-8', '"Hello, 🌎!"'), (4, 'application/json; charset=utf-8', '{"msg": "Hello, 🌎!"}'),
	(5, 'application/json; charset=utf-8', '["Hello", "🌎!"]'), (6, 'application/xml; charset=utf-8', '"<msg>Hello, 🌎!</msg>"'),
	(7, 'Application/LD+JSON', '{}'), (8, 'text/plain;a="b;\"c\""', '""'), (9, 'application/json', 'null')) AS x(number, content, data);
-- tracing
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "t", "source": "s", "id": "2", "subject": "traced",
	"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01", "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"}');
SELECT metadata->>'traceparent', metadata->>'tracestate' FROM event_store.read_stream('traced');
-- times
SELECT time, pg_temp.there_and_back(jsonb_build_object('specversion', '1.0', 'type', 't', 'source', 's', 'id', time, 'subject', 'times', 'time', time))
  FROM unnest('{2018-04-05T17:31:00Z,2018-04-05t17:31:00z,2018-04-05T17:31:00.5Z,2018-04-05T17:31:00.500Z,2018-04-05T17:31:00.123456789Z,2018-04-05T17:31:00+05:30,2018-04-05T17:31:00-00:00,1990-12-31T23:59:60Z,0001-01-01T00:00:00Z,0000-02-29T12:00:00Z,9999-12-31T23:59:59.999999Z,9999-12-31T23:59:59-01:00,2024-02-29T00:00:00Z}'::text[]) AS time;
SELECT occurred_at, metadata->'$cloudevent'->>'time' FROM event_store.read_stream('times');
-- fields
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "t", "source": "s", "id": "11111111-2222-3333-4444-555555555555", "subject": "fields-1",
	"time": "2018-04-05T17:31:00Z", "datacontenttype": "application/json", "data": {},
	"correlationid": "c", "causationid": "aaaaaaaa-2222-3333-4444-555555555555", "schemaversion": 3}');
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "t", "source": "/event_store", "id": "AAAAAAAA-2222-3333-4444-555555555555", "subject": "fields-2",
	"time": "2018-04-05T17:31:00Z", "datacontenttype": "application/json", "data": {},
	"correlationid": true, "causationid": "event 7", "schemaversion": "1.0", "dataschema": "https://example.com/s#1"}');
SELECT pg_temp.there_and_back('{"specversion": "1.0", "type": "t", "source": "/event_store", "id": "x", "subject": "fields-3", "correlationid": "", "schemaversion": 1}');
SELECT stream, event_id, source, correlation_id, causation_id, schema_version, metadata FROM event_store.events WHERE category = 'fields' ORDER BY stream;

-- ids that are no UUIDs: version 5 of source, blank, id
SELECT * FROM event_store.append_cloudevent('{"specversion": "1.0", "type": "t", "source": "https://example.com", "id": "é", "subject": "id"}');
SELECT event_id FROM event_store.read_stream('id');
SELECT * FROM event_store.append_cloudevent('{"specversion": "1.0", "type": "t", "source": "https://example.com", "id": "é", "subject": "id"}', expected_version => 0);
SELECT * FROM event_store.append_cloudevent('{"specversion": "1.0", "type": "t", "source": "https://example.com", "id": "e", "subject": "id"}', expected_version => 1);
SELECT raises($$SELECT event_store.append_cloudevent('{"specversion": "1.0", "type": "t", "source": "https://example.com", "id": "f", "subject": "id"}', expected_version => 1)$$);
SELECT raises($$SELECT event_store.append_cloudevent('{"specversion": "1.0", "type": "u", "source": "https://example.com", "id": "e", "subject": "id"}')$$);

-- streams
CREATE FUNCTION pg_temp.stream(stream text, more jsonb DEFAULT '{}') RETURNS text LANGUAGE sql AS $$
	SELECT (event_store.append_cloudevent('{"specversion": "1.0", "type": "t", "source": "/shop", "id": "1", "subject": "s-7", "number": 5, "truth": true}'::jsonb || more, stream)).stream
$$;
SELECT pg_temp.stream(NULL), pg_temp.stream(NULL, '{"subject": null}'), pg_temp.stream('all'), pg_temp.stream('order-{subject}'), pg_temp.stream('{{{type}}}-{number}-{truth}');
SELECT pg_temp.stream('$in');
SELECT event_store.to_cloudevent(e) - 'time' FROM event_store.read_stream('order-s-7') AS e;
SELECT raises(format('SELECT event_store.append_cloudevent(%L, %L)', '{"specversion": "1.0", "type": "t", "source": "$shop", "id": "1", "empty": "", "data": "d"}', stream))
  FROM (VALUES ('a-{subject}'), ('a-{'), ('a-}'), ('a-{source'), ('a-{data}'), ('{empty}'), ('{source}'), (NULL)) AS x(stream);

-- what is no CloudEvent
SELECT left(more::text, 60) AS more, raises(format('SELECT event_store.append_cloudevent(%L)', '{"specversion": "1.0", "type": "t", "source": "s", "id": "1"}'::jsonb || more))
  FROM unnest(ARRAY['{"specversion": null}', '{"specversion": "0.3"}', '{"specversion": 1.0}', '{"id": ""}', '{"id": 1}', '{"id": null}', '{"id": "\u0085"}',
	'{"type": ""}', '{"type": "a\nb"}', '{"type": "\uffff"}', '{"type": null}', '{"source": ""}', '{"source": "a b"}', '{"source": "1a:b"}', '{"source": "%zz"}', '{"source": "a#b#c"}', '{"source": "é"}', '{"source": null}',
	'{"subject": ""}', '{"subject": 5}', '{"time": "2018-04-05"}', '{"time": "2018-04-05T17:31:00"}', '{"time": "2018-02-29T17:31:00Z"}', '{"time": "2018-04-05T24:00:00Z"}', '{"time": "2018-04-05T17:31:00.Z"}', '{"time": "2018-04-05T17:31:00+0100"}', '{"time": "2018-04-05 17:31:00Z"}', '{"time": "2018-04-05T17:31:00Zx"}', '{"time": 5}', '{"time": ""}',
	'{"datacontenttype": "json"}', '{"datacontenttype": "a/b;c"}', '{"datacontenttype": "a/b; c=\"d"}', '{"datacontenttype": ""}', '{"dataschema": "/relative"}', '{"dataschema": ""}',
	'{"datacontenttype": "text/plain", "data": {}}', '{"data": 1, "data_base64": "AAAA"}', '{"data_base64": "AAA"}', '{"data_base64": "A A="}', '{"data_base64": "===="}', '{"data_base64": 5}',
	'{"myExtension": 1}', '{"my_extension": 1}', '{"": 1}', '{"ext": {}}', '{"ext": [1]}', '{"ext": 1.5}', '{"ext": 1.0}', '{"ext": 2147483648}', '{"ext": -2147483649}', '{"ext": 1e300}', '{"ext": "\u0007"}',
	'{"eventstore": "x"}', '{"eventstore": 1}', '{"eventstore": "[]"}', '{"eventstore": "{\"x\": 1}"}', '{"eventstore": "{\"metadata\": []}"}', '{"eventstore": "{\"occurred_at\": \"x\"}"}', '{"eventstore": "{\"source\": \"\"}"}']::jsonb[]) AS more;
SELECT raises('SELECT event_store.append_cloudevent(''[]'')');
SELECT raises('SELECT event_store.append_cloudevent(''5'')');
SELECT raises('SELECT event_store.append_cloudevent(NULL)');
SELECT raises('SELECT event_store.append_cloudevent(''{}'')');
SELECT raises('SELECT event_store.append_cloudevent(''{"specversion": "1.0", "type": "t", "source": "s", "id": "1"}'', source => NULL)');
SELECT raises('SELECT event_store.append_cloudevent(''{"specversion": "1.0", "type": "t", "source": "s", "id": "1"}'', expected_version => -7)');
SELECT count(*) FROM event_store.read_stream('s');

-- batches
SELECT * FROM event_store.append_cloudevents('[
	{"specversion": "1.0", "type": "com.example.someevent", "source": "/mycontext/4", "id": "B234-1234-1234", "time": "2018-04-05T17:31:00Z",
	 "comexampleextension1": "value", "comexampleothervalue": 5, "datacontenttype": "application/vnd.apache.thrift.binary", "data_base64": "Zm9vYg=="},
	{"specversion": "1.0", "type": "com.example.someotherevent", "source": "/mycontext/9", "id": "C234-1234-1234", "time": "2018-04-05T17:31:05Z",
	 "comexampleextension1": "value", "comexampleothervalue": 5, "datacontenttype": "application/json", "data": {"appinfoA": "abc", "appinfoB": 123, "appinfoC": true}}]');
SELECT * FROM event_store.append_cloudevents('[]');
CREATE TEMPORARY TABLE batch AS SELECT '[{"specversion": "1.0", "type": "t", "source": "/b", "id": "1"},
	{"specversion": "1.0", "type": "t", "source": "/b/2", "id": "1"}, {"specversion": "1.0", "type": "t", "source": "/b", "id": "2"},
	{"specversion": "1.0", "type": "t", "source": "/b", "id": "1"}]'::jsonb AS batch;
SELECT stream, first_version, last_version, duplicate, first_position = last_position AS one FROM batch, event_store.append_cloudevents(batch);
SELECT stream, first_version, last_version, duplicate, first_position = last_position AS one FROM batch, event_store.append_cloudevents(batch || '[{"specversion": "1.0", "type": "t", "source": "/b", "id": "3"}]');
SELECT stream, count(*) FROM batch, event_store.append_cloudevents(batch, 'in-{type}') GROUP BY stream;
SELECT raises('SELECT event_store.append_cloudevents(''[{"specversion": "1.0", "type": "t", "source": "/b", "id": "4"}, {"specversion": "1.0", "type": "u", "source": "/b", "id": "4"}]'')');
SELECT event_store.append_cloudevents('[{"specversion": "1.0", "type": "t", "source": "/b", "id": "4"}, {"specversion": "1.0", "type": "t", "source": "/b"}]');
SELECT raises('SELECT event_store.append_cloudevents(''{}'')');
SELECT raises('SELECT event_store.append_cloudevents(NULL)');
SELECT count(*), max(version) FROM event_store.read_stream('/b');
BEGIN READ ONLY;
SELECT raises('SELECT event_store.append_cloudevents(''[]'')');
SELECT raises('SELECT event_store.append_cloudevent(''{}'')');
ROLLBACK;
-- null is a value of JSON; of what is none it is as good as nothing
SELECT content, more, pg_temp.there_and_back(jsonb_build_object('specversion', '1.0', 'type', 't', 'source', '/null', 'id', n::text, 'time', '2018-04-05T17:31:00Z', 'datacontenttype', content) || more)
  FROM (VALUES (1, 'application/json', '{"data": null}'::jsonb), (2, 'text/plain', '{"data": null}'), (3, 'text/plain', '{"data": null, "data_base64": "AAAA"}'), (4, NULL, '{"data": null}'), (5, NULL, '{"data_base64": null}')) AS x(n, content, more);
