-- events as CloudEvents, and the way there and back for all that can be made up
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SET timezone = 'UTC';
SELECT event_store.append('order-1', 'Placed', '{"total": 21.30}', occurred_at => '2025-03-01 12:00+01') \g /dev/null
SELECT event_store.append('order-1', 'Paid', '{"a": [1, null]}',
	'{"user": "Eve", "try": 2, "ok": true, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01",
	  "user_id": 7, "Upper": 1, "price": 1.5, "gone": null, "tags": ["a"], "id": 5, "time": "x", "data": 1, "eventstore": "e", "correlationid": "c", "schemaversion": 2, "causationid": "x"}',
	event_id => '11111111-2222-3333-4444-555555555555', occurred_at => '2025-03-01 12:00:00.120+01', correlation_id => 'corr', causation_id => 'aaaaaaaa-2222-3333-4444-555555555555', schema_version => 2, source => 'web shop') \g /dev/null
SELECT jsonb_pretty(event_store.to_cloudevent(e, '/shop') - 'id') FROM event_store.read_stream('order-1') AS e;
SELECT event_store.to_cloudevent(e, with_record => true) ?& '{recordedtime,sequence}', event_store.to_cloudevent(e, with_record => true)->>'sequence' FROM event_store.read_stream('order-1') AS e;
SELECT event_store.to_cloudevent(NULL);
SELECT raises($$SELECT event_store.to_cloudevent(e, 'no uri') FROM event_store.read_stream('order-1') AS e$$);
SELECT raises($$SELECT event_store.to_cloudevent(e, NULL) FROM event_store.read_stream('order-1') AS e$$);
SELECT raises($$SELECT event_store.to_cloudevent(e, with_record => NULL) FROM event_store.read_stream('order-1') AS e$$);
-- made by hand
SELECT event_store.to_cloudevent(ROW(NULL, 's', NULL, 't', NULL, '11111111-2222-3333-4444-555555555555', NULL, NULL, NULL, NULL, NULL, NULL, NULL)::event_store.recorded_event, with_record => true);
SELECT event_store.to_cloudevent(ROW(NULL, 's', NULL, 't', NULL, '11111111-2222-3333-4444-555555555555', NULL, time::timestamptz, '/event_store', NULL, NULL, 'null', metadata)::event_store.recorded_event)
  FROM (VALUES ('2020-01-01 00:00+00 BC', '{"\uffff": "\u0085\u007f\u001f"}'::jsonb), ('12020-01-01 00:00+00', '{"sequence": "7"}'),
	-- shadows that are none
	('2020-01-01 00:00+00', '{"$cloudevent": 5}'), ('2020-01-01 00:00+00', '{"$cloudevent": {"id": null}}'), ('2020-01-01 00:00+00', '{"$cloudevent": {"x": 1}}'),
	('2020-01-01 00:00+00', '{"$cloudevent": {"time": "2021-01-01T00:00:00Z"}}'), ('2020-01-01 00:00+00', '{"$cloudevent": {"data": "base64"}}'),
	('2020-01-01 00:00+00', '{"$cloudevent": {"datacontenttype": "text/plain"}}'), ('2020-01-01 00:00+00', '{"$cloudevent": {"subject": ""}}'),
	-- what is said twice, or of another event
	('2020-01-01 00:00+00', '{"$cloudevent": {}}'), ('2020-01-01 00:00+00', '{"$cloudevent": {"id": "x"}}'), ('2020-01-01 00:00+00', '{"$cloudevent": {"id": "11111111-2222-3333-4444-555555555555"}}'),
	('2020-01-01 00:00+00', '{"$cloudevent": {"time": null}}'), ('2020-01-01 00:00+00', '{"$cloudevent": {"time": "2020-01-01T00:00:00Z"}}'),
	('2020-01-01 00:00+00', '{"$cloudevent": {"subject": "s"}}'), ('2020-01-01 00:00+00', '{"$cloudevent": {"datacontenttype": "application/json"}}'),
	-- and one that is
	('2020-01-01 00:00+00', '{"$cloudevent": {"data": "none", "subject": null, "time": "2020-01-01T01:00:00+01:00"}}')) AS x(time, metadata);
SELECT raises(format('SELECT event_store.to_cloudevent(%L::event_store.recorded_event)', row))
  FROM unnest('{"(,s,,,,11111111-2222-3333-4444-555555555555,,,,,,,)","(,,,t,,11111111-2222-3333-4444-555555555555,,,,,,,)","(,s,,t,,,,,,,,,)","(,s,,t,,11111111-2222-3333-4444-555555555555,,,,,,,5)"}'::text[]) AS row;

-- random events: appended as CloudEvents in a second place, they are what they were
SELECT setseed(0.42);
CREATE FUNCTION pg_temp.pick(VARIADIC choices text[]) RETURNS text VOLATILE LANGUAGE sql AS $$ SELECT choices[1 + floor(random() * cardinality(choices))::int] $$;
CREATE FUNCTION pg_temp.json(depth int DEFAULT 2) RETURNS jsonb VOLATILE LANGUAGE plpgsql AS $$
DECLARE
	result jsonb;
BEGIN
	CASE floor(random() * CASE WHEN depth > 0 THEN 9 ELSE 7 END)::int
		WHEN 0 THEN RETURN 'null';
		WHEN 1 THEN RETURN to_jsonb(random() < 0.5);
		WHEN 2 THEN RETURN to_jsonb(floor(random() * 100)::int);
		WHEN 3 THEN RETURN to_jsonb(round((random() * 1e12)::numeric - 5e11, floor(random() * 4)::int));
		WHEN 4 THEN RETURN to_jsonb(pg_temp.pick('', 'x', 'a b', E'tab\t', U&'\0085', U&'\FFFE', '🌎', U&'\+01FFFF', 'ü', '"\', E'\x7f', 'AAAA', 'text'));
		WHEN 5 THEN RETURN to_jsonb(gen_random_uuid());
		WHEN 6 THEN RETURN to_jsonb(pg_temp.pick('2147483647', '2147483648', '-2147483648', '1e20')::numeric);
		WHEN 7 THEN
			SELECT coalesce(jsonb_agg(pg_temp.json(depth - 1)), '[]') INTO result FROM generate_series(1, floor(random() * 3)::int);
			RETURN result;
		ELSE
			SELECT coalesce(jsonb_object_agg(pg_temp.pick('user', 'user_id', 'id', 'source', 'type', 'time', 'subject', 'data', 'specversion', 'eventstore', 'correlationid', 'causationid',
				'schemaversion', 'sequence', '', 'A', 'traceparent', 'tracestate', '$cloudevent', '9', 'ü', 'dataschema', 'data_base64') , pg_temp.json(depth - 1)), '{}')
			  INTO result FROM generate_series(1, floor(random() * 9)::int);
			RETURN result;
	END CASE;
END $$;
CREATE FUNCTION pg_temp.object() RETURNS jsonb VOLATILE LANGUAGE plpgsql AS $$
DECLARE
	result jsonb;
BEGIN
	LOOP
		result := pg_temp.json(3);
		EXIT WHEN jsonb_typeof(result) = 'object';
	END LOOP;
	RETURN result;
END $$;
CREATE FUNCTION pg_temp.some_time() RETURNS timestamptz VOLATILE LANGUAGE sql AS $$
	SELECT pg_temp.pick(NULL, '2020-02-29 23:59:59.999999+00', '0044-03-15 12:00+00 BC', '20000-01-01 00:00+00', '1969-12-31 23:59:59.1+00', '0001-01-01 00:00+00')::timestamptz
$$;
INSERT INTO event_store.events (stream, type, data, metadata, event_id, occurred_at, correlation_id, causation_id, schema_version, source)
SELECT 'random-' || n % 10, pg_temp.pick('a', 'com.example.b', 'ü 🌎'), pg_temp.json(), pg_temp.object(), CASE WHEN random() < 0.5 THEN gen_random_uuid() END,
	pg_temp.some_time(), pg_temp.pick(NULL, 'corr', 'ü'), CASE WHEN random() < 0.5 THEN gen_random_uuid() END, pg_temp.pick('1', '2', '2147483647')::int,
	pg_temp.pick(NULL, NULL, '/event_store', '/shop', 'web shop', 'ü', 'a:b', '1:2', '%41', '100%', '#')
  FROM generate_series(1, 2000) n;
CREATE TEMPORARY TABLE made AS SELECT e.position, event_store.to_cloudevent(e) AS event, e AS was FROM event_store.read_category('random', 0, NULL) AS e;
SELECT count(*), count(DISTINCT event) FROM made;
SELECT count(*), bool_or(duplicate) FROM (SELECT (event_store.append_cloudevents(jsonb_agg(event ORDER BY position), 'copy-{subject}')).* FROM made) x;
CREATE TEMPORARY TABLE came AS SELECT replace(e.stream, 'copy-', '') AS stream, e.version, e.type, e.schema_version, e.event_id, e.occurred_at, e.source, e.correlation_id, e.causation_id, e.data,
	-- the stream has another name, which the shadow says; what metadata had in its place is in there
	e.metadata - '$cloudevent' || CASE WHEN e.metadata->'$cloudevent' ? 'metadata' THEN jsonb_build_object('$cloudevent', e.metadata->'$cloudevent'->'metadata') ELSE '{}' END AS metadata, e AS came
  FROM event_store.read_category('copy', 0, NULL) AS e;
SELECT count(*) FROM (
	SELECT stream, version, type, schema_version, event_id, occurred_at, source, correlation_id, causation_id, data, metadata FROM came
	EXCEPT SELECT stream, version, type, schema_version, event_id, occurred_at, source, correlation_id, causation_id, data, metadata FROM event_store.events WHERE category = 'random') x;
-- and what comes out is what went in
SELECT count(*) FILTER (WHERE event_store.to_cloudevent(c.came) <> m.event), count(*), count(*) FILTER (WHERE (m.was).metadata ? '$cloudevent') > 100 FROM made AS m JOIN came AS c ON c.event_id = (m.was).event_id AND c.stream = (m.was).stream;

-- random CloudEvents come out as they went in
CREATE FUNCTION pg_temp.extension() RETURNS jsonb VOLATILE LANGUAGE sql AS $$
	SELECT pg_temp.pick('null', 'true', 'false', '0', '1', '2', '-1', '2147483647', '-2147483648', '""', '"x"', '"🌎"', '"a b"', '"{}"', to_json(gen_random_uuid())::text, '"1"', '"null"')::jsonb
$$;
CREATE TEMPORARY TABLE random_event AS
SELECT n, jsonb_build_object('specversion', '1.0', 'type', pg_temp.pick('a', 'com.example.b', 'ü'), 'id', pg_temp.pick(gen_random_uuid()::text, upper(gen_random_uuid()::text), n::text, 'ü' || n),
	'source', pg_temp.pick('/event_store', '/shop', 'a:b', '#', '?', '%41', 'https://example.com/a?b#c'))
	|| CASE WHEN random() < 0.7 THEN jsonb_build_object('subject', pg_temp.pick('s-1', 's-2', 'x y', 'ü', NULL)) ELSE '{}' END
	|| CASE WHEN random() < 0.7 THEN jsonb_build_object('time', pg_temp.pick('2018-04-05T17:31:00Z', '2018-04-05T17:31:00.10Z', '2018-04-05T17:31:00.123456789+23:59', '2018-04-05t17:31:60-07:00', '0000-01-01T00:00:00+12:00', NULL)) ELSE '{}' END
	|| CASE WHEN random() < 0.3 THEN jsonb_build_object('dataschema', pg_temp.pick('https://example.com/s', 'urn:a', NULL)) ELSE '{}' END
	|| CASE floor(random() * 5)::int
		WHEN 0 THEN jsonb_build_object('datacontenttype', pg_temp.pick('application/json', 'Application/JSON', 'a/b+json; c=d', NULL), 'data', pg_temp.json())
		WHEN 1 THEN jsonb_build_object('datacontenttype', pg_temp.pick('text/plain', 'application/jsonp'), 'data', pg_temp.pick('', 'x', 'AAAA', 'ü', E'a\nb'))
		WHEN 2 THEN jsonb_build_object('datacontenttype', pg_temp.pick('image/png', 'application/json', NULL), 'data_base64', pg_temp.pick('', 'AAAA', 'Zm9vYg==', '+/A='))
		WHEN 3 THEN jsonb_build_object('datacontenttype', pg_temp.pick('text/plain', NULL))
		ELSE jsonb_build_object('data', pg_temp.json()) END
	|| coalesce((SELECT jsonb_object_agg(pg_temp.pick('correlationid', 'causationid', 'schemaversion', 'sequence', 'traceparent', '9', 'user', 'x7'), pg_temp.extension()) FROM generate_series(1, floor(random() * 6)::int)), '{}') AS event
  FROM generate_series(1, 2000) n;
SELECT count(*) FROM random_event, event_store.append_cloudevent(event);
CREATE TEMPORARY TABLE came_out AS SELECT r.n, r.event, e AS came
  FROM random_event AS r, event_store.append_cloudevent(r.event) AS a, event_store.read_stream(a.stream, a.last_version, 1) AS e WHERE a.duplicate;
SELECT count(*), count(*) FILTER (WHERE event_store.to_cloudevent(came) <> jsonb_strip_nulls(event - 'data') || CASE WHEN event ? 'data' THEN jsonb_build_object('data', event->'data') ELSE '{}' END) FROM came_out;
