-- Folds: built-in ones, functions, aggregates.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
CREATE SCHEMA fold_test;
SET search_path = fold_test, public;

-- an error as a line
CREATE FUNCTION raises(sql text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE detail text; hint text; context text;
BEGIN
	EXECUTE sql;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT,
		context = PG_EXCEPTION_CONTEXT;
	RETURN concat_ws(' | ', SQLSTATE || ' ' || SQLERRM, nullif(detail, ''), nullif(left(hint, 60), ''),
		substring(context FROM '(?n)^fold .*$'));
END $$;

-- an event that is not stored
CREATE FUNCTION event(version int, data jsonb, stream text = 's-1') RETURNS event_store.recorded_event
LANGUAGE sql IMMUTABLE AS $$
	SELECT ROW(version + 100, stream, version, 'T', 1, NULL, NULL, NULL, NULL, NULL, NULL, data, '{}')::event_store.recorded_event
$$;

-- a handler over a list of data
CREATE FUNCTION folded(handler text, VARIADIC data jsonb[]) RETURNS jsonb
LANGUAGE sql AS $$
	SELECT event_store.fold(handler, event(n::int, d) ORDER BY n) FROM unnest(data) WITH ORDINALITY AS u(d, n)
$$;

-- ---------------------------------------------------------------------------
-- JSON merge patch
-- ---------------------------------------------------------------------------

-- the test cases of RFC 7396, appendix A
CREATE TABLE rfc (n int, target jsonb, patch jsonb, result jsonb);
INSERT INTO rfc VALUES
	(1, '{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
	(2, '{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
	(3, '{"a":"b"}', '{"a":null}', '{}'),
	(4, '{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
	(5, '{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
	(6, '{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
	(7, '{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
	(8, '{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
	(9, '["a","b"]', '["c","d"]', '["c","d"]'),
	(10, '{"a":"b"}', '["c"]', '["c"]'),
	(11, '{"a":"foo"}', 'null', 'null'),
	(12, '{"a":"foo"}', '"bar"', '"bar"'),
	(13, '{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
	(14, '[1,2]', '{"a":"b","c":null}', '{"a":"b"}'),
	(15, '{}', '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}');
SELECT count(*) FILTER (WHERE event_store.apply_merge_patch(target, patch) = result) AS as_the_rfc_says FROM rfc;
-- the aggregate takes the first for a patch, too: the same but for nulls in it
SELECT n, event_store.merge_patch(p ORDER BY i), result
FROM rfc, LATERAL (VALUES (1, target), (2, patch)) AS v(i, p)
GROUP BY n, result HAVING event_store.merge_patch(p ORDER BY i) <> result;

-- NULLs
SELECT event_store.apply_merge_patch(NULL, NULL) IS NULL AS none,
	event_store.apply_merge_patch('{"a":null}', NULL) AS target,
	event_store.apply_merge_patch(NULL, '{"a":null,"b":1}') AS patch;
SELECT event_store.merge_patch(p) FROM (VALUES (NULL::jsonb), ('{"a":1}'), (NULL), ('{"b":[]}'), (NULL)) AS v(p);
SELECT event_store.merge_patch(p) IS NULL AS none FROM (VALUES (NULL::jsonb)) AS v(p);
SELECT event_store.merge_patch(p) IS NULL AS none FROM (VALUES (NULL::jsonb)) AS v(p) WHERE false;

-- the plain recursion, as an oracle
CREATE FUNCTION plain_merge(target jsonb, patch jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE k text; v jsonb;
BEGIN
	IF patch IS NULL THEN RETURN target; END IF;
	IF jsonb_typeof(patch) <> 'object' THEN RETURN patch; END IF;
	IF target IS NULL OR jsonb_typeof(target) <> 'object' THEN target := '{}'; END IF;
	FOR k, v IN SELECT * FROM jsonb_each(patch) LOOP
		IF v = 'null' THEN target := target - k;
		ELSE target := target || jsonb_build_object(k, plain_merge(target -> k, v));
		END IF;
	END LOOP;
	RETURN target;
END $$;
CREATE AGGREGATE plain_merge_all(jsonb) (SFUNC = plain_merge, STYPE = jsonb);

-- a random value: objects within objects, arrays with nulls, keys of few names
-- so that they meet, and of many
CREATE FUNCTION random_value(depth int, keys int) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE kind float8 := random();
BEGIN
	IF depth > 0 AND kind < 0.6 THEN
		RETURN (SELECT coalesce(jsonb_object_agg(repeat('k', (random() * 3)::int) || (random() * keys)::int, random_value(depth - 1, keys)), '{}')
			FROM generate_series(1, (random() * CASE WHEN depth = 4 THEN 4 + keys / 10 ELSE 3 END)::int));
	END IF;
	RETURN CASE (random() * 7)::int
		WHEN 0 THEN 'null'::jsonb
		WHEN 1 THEN to_jsonb(random() < 0.5)
		WHEN 2 THEN to_jsonb(repeat('x', (random() * 300)::int))
		WHEN 3 THEN '[null, {"a": null, "b": 1.0}]'
		WHEN 4 THEN '[]'
		WHEN 5 THEN to_jsonb((random() * 1e6)::numeric(20, 4))
		WHEN 6 THEN to_jsonb(repeat('1', (random() * 60)::int + 1)::numeric)
		ELSE 'null' END;
END $$;
SELECT setseed(0.4);
CREATE TABLE patch AS
SELECT g, n, random_value(4, CASE WHEN g % 2 = 0 THEN 5 ELSE 300 END) AS p
FROM generate_series(1, 24) g, generate_series(1, 30) n;
-- equal, and in the same bytes
SELECT count(*), count(*) FILTER (WHERE one = other) AS equal,
	count(*) FILTER (WHERE md5(jsonb_send(one)) = md5(jsonb_send(other))
		AND pg_column_size(one || '{}') = pg_column_size(other || '{}')) AS same
FROM (SELECT g, event_store.merge_patch(p ORDER BY n) AS one, plain_merge_all(p ORDER BY n) AS other
	FROM patch GROUP BY g) v;
-- what comes out can be looked into, key by key
SELECT count(*) > 100 AS many, count(*) FILTER (WHERE one -> k IS DISTINCT FROM v) AS not_found
FROM (SELECT g, event_store.merge_patch(p ORDER BY n) AS one FROM patch GROUP BY g) m,
	jsonb_each(CASE WHEN jsonb_typeof(one) = 'object' THEN one ELSE '{}' END) AS e(k, v);
-- as a window function: the state after each row; a frame that moves
SELECT count(*) FILTER (WHERE one IS DISTINCT FROM other) AS different
FROM (SELECT event_store.merge_patch(p) OVER w AS one, plain_merge_all(p) OVER w AS other
	FROM patch WHERE g <= 10 WINDOW w AS (PARTITION BY g ORDER BY n)) v;
SELECT count(*) FILTER (WHERE one IS DISTINCT FROM other) AS different
FROM (SELECT event_store.merge_patch(p) OVER w AS one, plain_merge_all(p) OVER w AS other
	FROM patch WHERE g <= 4 WINDOW w AS (PARTITION BY g ORDER BY n ROWS BETWEEN 3 PRECEDING AND 1 PRECEDING)) v;
-- one patch
SELECT count(*) FILTER (WHERE event_store.apply_merge_patch(a.p, b.p) IS DISTINCT FROM plain_merge(a.p, b.p)) AS different
FROM patch a JOIN patch b ON b.g = a.g AND b.n = a.n + 1;

-- many keys, added and removed one by one
SELECT event_store.merge_patch(jsonb_build_object('k' || (n * 7919) % 5000, CASE WHEN n % 3 = 0 THEN NULL ELSE n END) ORDER BY n)
	= (SELECT jsonb_object_agg(k, n) FILTER (WHERE n % 3 <> 0)
		FROM (SELECT DISTINCT ON ((n * 7919) % 5000) 'k' || (n * 7919) % 5000 AS k, n
			FROM generate_series(1, 20000) n ORDER BY (n * 7919) % 5000, n DESC) l) AS equal
FROM generate_series(1, 20000) n;
-- all of it taken away again
SELECT event_store.merge_patch(p ORDER BY i)
FROM (SELECT n AS i, jsonb_build_object('k' || n, n) AS p FROM generate_series(1, 1000) n
	UNION ALL SELECT n + 1000, jsonb_build_object('k' || n, NULL) FROM generate_series(1, 1000) n) v;
-- large and deep values
SELECT length((event_store.merge_patch(p ORDER BY i) ->> 'b')), event_store.merge_patch(p ORDER BY i) -> 'a' AS a
FROM (VALUES (1, jsonb_build_object('a', repeat('x', 3000000), 'b', repeat('y', 2000000))), (2, '{"a":1}')) AS v(i, p);
SELECT md5(event_store.merge_patch(p::jsonb ORDER BY i)::text) = md5((repeat('{"a": ', 500) || '2' || repeat('}', 500))::jsonb::text) AS equal
FROM (SELECT i, repeat('{"a":', 500) || i || repeat('}', 500) AS p FROM generate_series(1, 2) i) v;

-- ---------------------------------------------------------------------------
-- Built-in folds
-- ---------------------------------------------------------------------------
SELECT h, folded(h, '{"a":1.50,"b":{"c":"x"},"l":[1,{"m":5}]}', '{"a":-3,"b":{"c":null}}', '{"a":null,"l":[]}', '{}', '[1]', '7', 'null',
	'{"a":0.250,"b":"flat","a.b":9,"l":[4,{"m":-7.0}]}')
FROM unnest(ARRAY['count', 'COUNT ', ' Count ( a ) ', 'count(b)', 'count(b.c)', 'count({})', 'sum(a)', 'sum({a})', 'sum({a.b})', 'sum({"a.b"})', 'sum(zz)',
	'sum(l.1.m)', 'sum({l,-1,m})', 'sum(l.x)', 'min(a)', 'max(a)', 'last(a)', 'last(b.c)', 'min(b)', 'max(b)', 'last(b)', 'max({})', 'min({})',
	'last(l)', 'last({})', 'merge_patch(b)', 'merge_patch(l.1)', 'merge_patch({})', 'merge_patch']) WITH ORDINALITY AS u(h, n)
ORDER BY n;

-- nothing so far
SELECT h, event_store.fold(h, NULL) AS of_null
FROM unnest(ARRAY['count', 'count(a)', 'sum(a)', 'min(a)', 'last(a)', 'merge_patch']) h GROUP BY h ORDER BY h;
SELECT event_store.fold('count', event(1, '{}')) IS NULL AS none WHERE false;
SELECT event_store.fold('sum(a)', event(1, NULL)) IS NULL AS none, event_store.fold('merge_patch', event(1, NULL)) IS NULL AS none,
	event_store.fold('count(a)', event(1, NULL));

-- what is no number
SELECT raises(format('SELECT fold_test.folded(%L, ''{"a":1}'', %L)', 'sum(a)', jsonb_build_object('a', v::jsonb)))
FROM unnest(ARRAY['"1"', 'true', '[]', '{}', '[1]', '"NaN"']) v;
SELECT raises($$SELECT event_store.fold('sum(a)', ROW(7, NULL, NULL, 'T', 1, NULL, NULL, NULL, NULL, NULL, NULL, '{"a":"x"}', '{}')::event_store.recorded_event)$$);

-- sums: the same digits as sum(numeric)
CREATE TABLE number (g int, v numeric);
INSERT INTO number
	SELECT 1, (random() * 1000 - 500)::numeric(10, 2) FROM generate_series(1, 500) UNION ALL
	SELECT 2, (random() * 1e18)::numeric * CASE WHEN random() < 0.5 THEN 1 ELSE -1 END FROM generate_series(1, 500) UNION ALL
	SELECT 3, 9999999999999999 FROM generate_series(1, 3000) UNION ALL
	SELECT 4, -9999999999999999.9999999999999999 FROM generate_series(1, 3000) UNION ALL
	SELECT 5, random()::numeric / (10 ^ (random() * 20)::int)::numeric FROM generate_series(1, 500) UNION ALL
	SELECT 6, (repeat('7', 1000) || '.' || repeat('3', n))::numeric FROM generate_series(1, 200) n UNION ALL
	SELECT 7, v FROM unnest('{0,0.0,0.00,-0,1e-16,1e-17,1e16,9999999999999999,1e15,-1e-4,1e4,10000,1e20,1.0000}'::numeric[]) v UNION ALL
	SELECT 8, 0.0000000000000001 * n FROM generate_series(-20, 30) n UNION ALL
	SELECT 9, (1e100)::numeric UNION ALL SELECT 9, -1e100 UNION ALL
	SELECT 10, 1e-1000 UNION ALL SELECT 10, 5 UNION ALL
	SELECT 11, 10 ^ n::numeric FROM generate_series(-30, 30) n UNION ALL
	SELECT 12, (random() * 1e10)::numeric::bigint FROM generate_series(1, 1000);
SELECT g, event_store.fold('sum(v)', e)::text = to_jsonb(sum(v))::text AS sum_is,
	event_store.fold('min(v)', e) = to_jsonb(min(v)) AS min_is,
	event_store.fold('max(v)', e) = to_jsonb(max(v)) AS max_is,
	event_store.fold('count(v)', e) = to_jsonb(count(v)) AS count_is
FROM number, event(1, jsonb_build_object('v', v)) e GROUP BY g ORDER BY g;
-- each number by itself
SELECT count(*) FROM number, event(1, jsonb_build_object('v', v)) e
GROUP BY v::text HAVING event_store.fold('sum(v)', e)::text <> to_jsonb(sum(v))::text;

-- min and max: jsonb's order, over values of all kinds
SELECT count(*), count(*) FILTER (WHERE low = all_values[1] AND high = all_values[array_upper(all_values, 1)]) AS right
FROM (SELECT event_store.fold('min(v)', e) AS low, event_store.fold('max(v)', e) AS high,
		array_agg(p ORDER BY p) AS all_values
	FROM patch, event(n, jsonb_build_object('v', p)) e WHERE p <> 'null' GROUP BY g, n % 10) v;

-- as window functions
SELECT v, event_store.fold('sum(v)', e) OVER w AS so_far, event_store.fold('max(v)', e) OVER w AS highest,
	event_store.fold('last(v)', e) OVER (ORDER BY n ROWS BETWEEN 2 PRECEDING AND 1 PRECEDING) AS before
FROM unnest('{3,1.50,-4,1,5}'::numeric[]) WITH ORDINALITY AS u(v, n), event(n::int, jsonb_build_object('v', v)) e
WINDOW w AS (ORDER BY n);

-- ---------------------------------------------------------------------------
-- Handlers that are none
-- ---------------------------------------------------------------------------
SELECT h, raises(format('SELECT fold_test.folded(%L, ''{}'')', h))
FROM unnest(ARRAY['', '  ', 'sum', 'sum()', 'sum(a..b)', 'sum(.a)', 'sum(a.)', 'sum(a', 'sum{a}', 'sum({a)', 'sum({{a},{b}})', 'sum({NULL})',
	'sum(a,b)', 'sum(a"b)', 'count()', 'merge', 'a b', 'a.b.c.d', 'no_such', 'no_such.f', 'f(', 'f(int)', '1']) WITH ORDINALITY AS u(h, n) ORDER BY n;
SELECT raises($$SELECT event_store.fold(NULL, fold_test.event(1, '{}'))$$);
SELECT raises($$SELECT event_store.fold(h, fold_test.event(1, '{}')) FROM unnest('{count,merge_patch}'::text[]) h$$);
SELECT h, event_store.fold(h, event(1, '{}')) FROM unnest('{count,merge_patch,count}'::text[]) h GROUP BY h ORDER BY h;

-- ---------------------------------------------------------------------------
-- Functions
-- ---------------------------------------------------------------------------
CREATE FUNCTION f_sql(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE sql
AS $$ SELECT coalesce(state, '{"n": 0}') || jsonb_build_object('n', coalesce((state ->> 'n')::int, 0) + 1, event.stream, event.version) $$;
CREATE FUNCTION f_plpgsql(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql
AS $$ BEGIN
	IF event.data ? 'error' THEN RAISE EXCEPTION 'it says %', event.data ->> 'error' USING ERRCODE = 'XX123'; END IF;
	IF event.data ? 'clear' THEN RETURN NULL; END IF;
	IF event.data ? 'nothing' THEN RETURN state; END IF;
	RETURN jsonb_build_array(event.version, coalesce(state, '[]'));
END $$;
CREATE FUNCTION f_strict(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE sql STRICT AS 'SELECT state';
CREATE FUNCTION f_int(state jsonb, event event_store.recorded_event) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION f_set(state jsonb, event event_store.recorded_event) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION f_args(state jsonb, event jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION f_default(state jsonb, event event_store.recorded_event, more int = 1) RETURNS jsonb LANGUAGE sql AS 'SELECT $1';
CREATE PROCEDURE f_procedure(state jsonb, event event_store.recorded_event) LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE f_aggregate(event event_store.recorded_event) (SFUNC = f_sql, STYPE = jsonb);
CREATE FUNCTION sum(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '"mine"'::jsonb $$;
CREATE FUNCTION "Odd name"(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '"odd"'::jsonb $$;

SELECT h, folded(h, '{}', '{"nothing":1}', '{}') FROM unnest(ARRAY['f_sql', 'fold_test.f_sql', 'F_SQL', 'f_plpgsql',
	'f_plpgsql(jsonb, event_store.recorded_event)', 'fold_test.sum', 'sum(jsonb, event_store.recorded_event)', '"Odd name"']) h;
SELECT folded('f_plpgsql', '{}', '{"clear":1}', '{}'), folded('f_plpgsql', '{}', '{"clear":1}') IS NULL AS none;
SELECT raises('SELECT fold_test.folded(''f_plpgsql'', ''{}'', ''{"error":"no"}'')');
SELECT h, raises(format('SELECT fold_test.folded(%L, ''{}'')', h))
FROM unnest(ARRAY['f_strict', 'f_int', 'f_set', 'f_args', 'f_args(jsonb, jsonb)', 'f_default', 'f_procedure', 'f_aggregate',
	'f_aggregate(event_store.recorded_event)', 'pg_catalog.sum(numeric)', 'pg_catalog.lag(anyelement)']) h;
-- an aggregate of ours with the same states, made of the function
SELECT folded('f_sql', '{}', '{}') = f_aggregate(event(n, '{}') ORDER BY n) AS equal FROM generate_series(1, 2) n;
-- a state that is stored out of line, and grows
CREATE FUNCTION f_grow(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE sql
AS $$ SELECT to_jsonb(coalesce(state #>> '{}', '') || repeat(md5(event.version::text), 100)) $$;
CREATE TABLE large (state jsonb);
INSERT INTO large SELECT event_store.fold('f_grow', event(n, '{}') ORDER BY n) FROM generate_series(1, 50) n;
CREATE FUNCTION f_large(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE sql
AS $$ SELECT l.state FROM fold_test.large l $$;
SELECT length(folded('f_large', '{}', '{}') #>> '{}') AS length, folded('f_large', '{}', '{}') = state AS equal FROM large;
-- folds within folds, by the same plan
CREATE FUNCTION f_inner(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF event.version <= 0 THEN RETURN '1'; END IF;
	RETURN (coalesce(state, '0')::numeric + fold_test.inner_sum(event.version - 1)::numeric)::text::jsonb;
END $$;
CREATE FUNCTION inner_sum(depth int) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	RETURN (SELECT event_store.fold('fold_test.f_inner', fold_test.event(depth, '{}')) FROM generate_series(1, 2));
END $$;
SELECT inner_sum(5);

-- names by the search_path, as it is
CREATE SCHEMA fold_other;
CREATE FUNCTION fold_other.f_only(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$ SELECT '"other"'::jsonb $$;
SELECT raises('SELECT fold_test.folded(''f_only'', ''{}'')');
SET search_path = fold_test, fold_other, public;
SELECT folded('f_only', '{}');
-- replaced, altered, dropped between calls of a prepared statement
PREPARE again AS SELECT folded('f_only', '{}');
EXECUTE again;
CREATE OR REPLACE FUNCTION fold_other.f_only(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN '"new"'; END $$;
EXECUTE again;
DROP FUNCTION fold_other.f_only;
SELECT raises('EXECUTE again');
CREATE FUNCTION fold_other.f_only(state jsonb, event event_store.recorded_event) RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT raises('EXECUTE again');
-- rights: of the current user
CREATE ROLE fold_user;
GRANT USAGE ON SCHEMA event_store, fold_test TO fold_user;
REVOKE EXECUTE ON FUNCTION f_sql FROM PUBLIC;
SET ROLE fold_user;
SELECT folded('f_plpgsql', '{}');
SELECT raises('SELECT fold_test.folded(''f_sql'', ''{}'')');
SELECT raises('SELECT fold_test.folded(''fold_other.f_only'', ''{}'')');
SELECT event_store.merge_patch('{"a":1}'), event_store.apply_merge_patch('{}', '{"a":1}');
RESET ROLE;

-- the parts cannot be called
SELECT left(raises('SELECT event_store.merge_patch_result(NULL)'), 5) IN ('42883', '0A000') AS refused;
SELECT left(raises('SELECT event_store.fold_result(NULL)'), 5) IN ('42883', '0A000') AS refused;

-- ---------------------------------------------------------------------------
-- In the log
-- ---------------------------------------------------------------------------
INSERT INTO event_store.events (stream, type, data)
SELECT 'fold-' || n % 7, 'T', jsonb_build_object('amount', n / 100.0, 'k' || n % 5, n, 'pad', repeat('x', n % 300), 'large', CASE WHEN n % 97 = 0 THEN (SELECT string_agg(md5(n || '.' || i), '') FROM generate_series(1, 500) i) END)
FROM generate_series(1, 500) n;
SELECT count(*), count(*) FILTER (WHERE by_read = by_sql) AS read, count(*) FILTER (WHERE by_view = by_sql) AS view
FROM (SELECT stream, event_store.fold('sum(amount)', e) AS by_read FROM event_store.read_category('fold', 0, NULL) e GROUP BY stream) r
JOIN (SELECT stream, event_store.fold('sum(amount)', e) AS by_view FROM event_store.events e WHERE category = 'fold' GROUP BY stream) v USING (stream)
JOIN (SELECT stream, to_jsonb(sum((data ->> 'amount')::numeric)) AS by_sql FROM event_store.events WHERE category = 'fold' GROUP BY stream) s USING (stream);
SELECT count(*), count(*) FILTER (WHERE one = other) AS equal, count(*) FILTER (WHERE one = folded) AS folds
FROM (SELECT stream, event_store.merge_patch(data ORDER BY version) AS one, plain_merge_all(data ORDER BY version) AS other,
		event_store.fold('merge_patch', e ORDER BY e.version) AS folded
	FROM event_store.events e WHERE category = 'fold' GROUP BY stream) v;
SELECT event_store.fold('f_plpgsql', e ORDER BY e.version) = event_store.fold('f_plpgsql', event_store.as_recorded_event(e) ORDER BY e.version) AS equal,
	event_store.as_recorded_event(NULL) IS NULL AS none
FROM event_store.events e WHERE stream = 'fold-3' AND version < 5;
SELECT raises($$SELECT event_store.fold('sum(pad)', e ORDER BY version) FROM event_store.read_stream('fold-3') e$$)
	~ '^VE015 fold "sum\(pad\)": the value in event 1 of stream "fold-3" is a string, not a number \| fold "sum\(pad\)" of event 1 of stream "fold-3" at position \d+$' AS told;
-- the whole row, in all places of a query
EXPLAIN (COSTS off) SELECT event_store.fold('count', e) FROM event_store.read_stream('fold-1') e;
SELECT count(*) FILTER (WHERE e = o AND (e).data = o.data AND e.version = (o).version) AS equal
FROM event_store.read_stream('fold-1') e JOIN event_store.read_category('fold', 0, NULL) o ON o.stream = 'fold-1' AND o.version = e.version AND o IS NOT DISTINCT FROM e;
SELECT e.version, event_store.fold('sum(amount)', e) OVER (ORDER BY e.version) FROM event_store.read_stream('fold-1', max_count => 3) e;
SELECT count(DISTINCT e), count(e) FROM event_store.read_stream('fold-1') e WHERE e IS NOT NULL OR (e).version > 0;
SELECT (SELECT event_store.fold('count', e) FROM event_store.read_stream(s) e) FROM unnest(ARRAY['fold-1', 'fold-2', 'none']) s;
SELECT (array_agg(e ORDER BY e.version DESC))[1].version, octet_length((array_agg(e ORDER BY length(e.data ->> 'large') DESC NULLS LAST))[1].data ->> 'large') FROM event_store.read_stream('fold-6') e;

-- as a value of plpgsql, as text, as jsonb, kept in a table
CREATE FUNCTION f_row(e event_store.recorded_event) RETURNS int LANGUAGE plpgsql AS $$
DECLARE copy event_store.recorded_event := e;
BEGIN
	copy.version := -1;
	RETURN e.version + length(e.data ->> 'pad') + length(coalesce(e.data ->> 'large', '')) + copy.version;
END $$;
CREATE TABLE kept AS SELECT e FROM event_store.read_category('fold', 0, NULL) e;
SELECT count(*), count(*) FILTER (WHERE f_row(e) = version + length(data ->> 'pad') + length(coalesce(data ->> 'large', '')) - 1) AS plpgsql,
	count(*) FILTER (WHERE to_jsonb(e) ->> 'stream' = stream AND to_jsonb(e) -> 'data' = data) AS jsonb,
	count(*) FILTER (WHERE e::text::event_store.recorded_event = e) AS text,
	count(*) FILTER (WHERE e = (SELECT k.e FROM kept k WHERE (k.e).position = position)) AS kept
FROM event_store.read_category('fold', 0, NULL) e;

-- ---------------------------------------------------------------------------
-- Memory: steps leave nothing behind
-- ---------------------------------------------------------------------------
CREATE TABLE step AS SELECT n, jsonb_build_object('a', n / 100.0, 'b' || n % 20, n, 'o', jsonb_build_object('c' || n % 30, repeat('x', n % 50))) AS data FROM generate_series(1, 1000) n;
CREATE FUNCTION f_c_like(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RETURN event.data; END $$;
-- all memory of the session when the last row has come, by a fold that looks
CREATE FUNCTION f_look(state jsonb, event event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF event.version = 1000 THEN
		RETURN to_jsonb((SELECT sum(total_bytes) FROM pg_backend_memory_contexts));
	END IF;
	RETURN state;
END $$;
SELECT h, memory < 8 * 1024 * 1024 AS bounded
FROM unnest(ARRAY['merge_patch', 'sum(a)', 'max(a)', 'last(o)', 'count(a)', 'merge_patch(o)', 'f_c_like']) h,
LATERAL (SELECT event_store.fold(h, event(n, data)) AS state,
		(event_store.fold('f_look', event(n, data)))::text::bigint AS memory
	FROM (SELECT s.* FROM generate_series(1, 40) r, step s ORDER BY r, n) AS s) v;

DROP SCHEMA fold_test, fold_other CASCADE;
DROP OWNED BY fold_user;
DROP ROLE fold_user;
