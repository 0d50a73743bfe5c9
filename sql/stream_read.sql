-- every read, against plain SQL as the oracle; uses raises() of common_install
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(32);
SELECT setseed(0.42);
INSERT INTO event_store.events (stream, type, data, occurred_at, correlation_id, event_id, source)
SELECT (ARRAY['order', 'cart', 'user'])[1 + i % 3] || '-' || (random() * 20)::int, 'T' || (random() * random() * 6)::int, to_jsonb(i),
	'2020-01-01'::timestamptz + i * interval '1 hour', CASE WHEN i % 10 = 0 THEN 'c' || i / 100 END,
	('00000000-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid, CASE WHEN i % 4 = 0 THEN 'src' || i % 8 END
  FROM generate_series(1, 1000) i;
-- holes
DO $$ BEGIN
	FOR i IN 1..20 LOOP
		BEGIN
			PERFORM event_store.append('order-1', 'Gone', to_jsonb(i));
			PERFORM event_store.append('hole-1', 'T' || i % 3, to_jsonb(i));
			IF i % 2 = 0 THEN RAISE EXCEPTION 'no'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP;
END $$;

CREATE VIEW oracle AS SELECT position, stream, version, type, schema_version, event_id, recorded_at, occurred_at, source,
	correlation_id, causation_id, data, metadata FROM event_store.events;
-- rows of two statements in their order, compared
CREATE FUNCTION same(actual text, expected text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	a text[]; e text[];
BEGIN
	EXECUTE 'SELECT array_agg(x::text) FROM (' || actual || ') x' INTO a;
	EXECUTE 'SELECT array_agg(x::text) FROM (' || expected || ') x' INTO e;
	IF a IS DISTINCT FROM e THEN
		RETURN format('DIFFERENT: %s rows, expected %s: %s', cardinality(a), cardinality(e), actual);
	END IF;
	RETURN 'same, ' || CASE WHEN a IS NULL THEN 'empty' ELSE 'not empty' END;
END $$;

-- read_stream
SELECT outcome, count(*) FROM (
SELECT same(
	format('SELECT * FROM event_store.read_stream(%L, %s, %s, %L, %s, %s)', s, f, coalesce(m::text, 'NULL'), b, coalesce(u::text, 'NULL'), coalesce(quote_literal(t), 'NULL')),
	format('SELECT * FROM oracle WHERE stream = %L AND version >= %s AND version <= %s AND occurred_at <= %L ORDER BY version %s LIMIT %s',
		s, f, coalesce(u, 1000), coalesce(t, 'infinity'), CASE WHEN b THEN 'DESC' ELSE 'ASC' END, coalesce(m::text, 'ALL'))) AS outcome
  FROM unnest(ARRAY['order-1', 'cart-7', 'user-20', 'nobody-1', 'hole-1']) s, unnest(ARRAY[0, 1, 2, 15, 1000]) f,
	unnest(ARRAY[NULL, 0, 1, 5]) m, unnest(ARRAY[true, false]) b, unnest(ARRAY[NULL, 0, 3, 16]) u, unnest(ARRAY[NULL, '2020-01-20'::timestamptz]) t
) x GROUP BY outcome ORDER BY 1;
-- read_all, read_category
SELECT outcome, count(*) FROM (
SELECT same(
	format('SELECT * FROM event_store.read_all(%s, %s, %s, %s, %L)', p, coalesce(m::text, 'NULL'), coalesce(quote_literal(c), 'NULL'), coalesce(quote_literal(t), 'NULL'), b),
	format('SELECT * FROM oracle WHERE position %s %s %s %s ORDER BY position %s LIMIT %s',
		CASE WHEN b THEN '<' ELSE '>' END, CASE WHEN b AND p = 0 THEN 10000000 ELSE p END,
		coalesce('AND split_part(stream, ''-'', 1) = ANY (' || quote_literal(c) || ')', ''),
		coalesce('AND type = ANY (' || quote_literal(t) || ')', ''),
		CASE WHEN b THEN 'DESC' ELSE 'ASC' END, coalesce(m::text, 'ALL'))) AS outcome
  FROM unnest(ARRAY[0, 1, 31, 32, 500, 1000, 1010, 100000]) p, unnest(ARRAY[NULL, 0, 1, 40]) m,
	unnest(ARRAY[NULL, '{order}', '{order,hole,order}', '{none}', '{}', '{none,cart,user}']) c,
	unnest(ARRAY[NULL, '{T0}', '{T5,T1}', '{Nope}', '{}']) t, unnest(ARRAY[true, false]) b
) x GROUP BY outcome ORDER BY 1;
SELECT outcome, count(*) FROM (
SELECT same(
	format('SELECT * FROM event_store.read_category(%L, %s, %s, %s, %L)', c, p, coalesce(m::text, 'NULL'), coalesce(quote_literal(t), 'NULL'), b),
	format('SELECT * FROM event_store.read_all(%s, %s, %L, %s, %L)', p, coalesce(m::text, 'NULL'), ARRAY[c], coalesce(quote_literal(t), 'NULL'), b)) AS outcome
  FROM unnest(ARRAY[0, 33, 700]) p, unnest(ARRAY[NULL, 10]) m, unnest(ARRAY['order', 'hole', 'none', '']) c,
	unnest(ARRAY[NULL, '{T0}', '{T5,T1,T1}']) t, unnest(ARRAY[true, false]) b
) x GROUP BY outcome ORDER BY 1;
-- called as functions, in a SELECT list
SELECT same('SELECT (event_store.read_all(0, 50)).*', 'SELECT * FROM oracle ORDER BY position LIMIT 50');
SELECT same('SELECT (event_store.read_stream(''order-1'')).*', 'SELECT * FROM oracle WHERE stream = ''order-1'' ORDER BY version');
SELECT same('SELECT (event_store.read_all()).* LIMIT 3', 'SELECT * FROM oracle ORDER BY position LIMIT 3');
-- a page after the other is all
SELECT same('WITH RECURSIVE pages AS (
		SELECT 0 AS page, ARRAY(SELECT position FROM event_store.read_all(0, 37)) AS positions
		UNION ALL
		SELECT page + 1, ARRAY(SELECT position FROM event_store.read_all(positions[cardinality(positions)], 37)) FROM pages WHERE cardinality(positions) = 37)
	SELECT unnest(positions) FROM pages', 'SELECT position FROM oracle ORDER BY position');
-- the rest
SELECT same(format('SELECT * FROM event_store.find_event(%L)', event_id), format('SELECT * FROM oracle WHERE event_id = %L', event_id)) AS outcome, count(*)
  FROM oracle WHERE position % 50 = 1 GROUP BY 1;
SELECT count(*) FROM event_store.find_event('ffffffff-0000-0000-0000-000000000000');
SELECT count(*) FROM event_store.find_event('00000000-0000-0000-0000-000000000500', 'nobody-1');
SELECT count(*) FROM event_store.find_event('00000000-0000-0000-0000-000000000500', (SELECT stream FROM oracle WHERE event_id = '00000000-0000-0000-0000-000000000500'));
SELECT same(format('SELECT * FROM event_store.last_event(%L, %s)', s, coalesce(quote_literal(t), 'NULL')),
	format('SELECT * FROM oracle WHERE stream = %L AND type = coalesce(%s, type) ORDER BY version DESC LIMIT 1', s, coalesce(quote_literal(t), 'NULL'))) AS outcome, count(*)
  FROM unnest(ARRAY['order-1', 'cart-7', 'nobody']) s, unnest(ARRAY[NULL, 'T0', 'T5', 'Nope']) t GROUP BY 1 ORDER BY 1;
SELECT same(format('SELECT * FROM event_store.trace(%L, %s)', c, coalesce(m::text, 'NULL')),
	format('SELECT * FROM oracle WHERE correlation_id = %L ORDER BY position LIMIT %s', c, coalesce(m::text, 'ALL'))) AS outcome, count(*)
  FROM unnest(ARRAY['c0', 'c5', 'c10', 'none']) c, unnest(ARRAY[NULL, 0, 3]) m GROUP BY 1 ORDER BY 1;
SELECT same(format('SELECT * FROM event_store.events_since(%L, %s, %s, %s)', at, coalesce(m::text, 'NULL'), coalesce(quote_literal(c), 'NULL'), coalesce(quote_literal(t), 'NULL')),
	format('SELECT * FROM oracle WHERE recorded_at >= %L AND (%s IS NULL OR split_part(stream, ''-'', 1) = ANY (%s)) AND (%s IS NULL OR type = ANY (%s)) ORDER BY position LIMIT %s', at,
		coalesce(quote_literal(c), 'NULL::text[]'), coalesce(quote_literal(c), 'NULL'), coalesce(quote_literal(t), 'NULL::text[]'), coalesce(quote_literal(t), 'NULL'), coalesce(m::text, 'ALL'))) AS outcome, count(*)
  FROM (SELECT DISTINCT recorded_at FROM oracle UNION VALUES ('-infinity'::timestamptz), ('2000-01-01'), ('infinity')) x(at),
	unnest(ARRAY[NULL, 5]) m, unnest(ARRAY[NULL, '{order}']) c, unnest(ARRAY[NULL, '{T1}']) t GROUP BY 1 ORDER BY 1;
-- recorded_at rises with position
SELECT count(*) FROM (SELECT recorded_at, lag(recorded_at) OVER (ORDER BY position) AS before FROM oracle) x WHERE recorded_at < before;
SELECT same('SELECT * FROM event_store.streams(NULL, NULL, NULL)',
	'SELECT stream, split_part(stream, ''-'', 1), max(version), min(recorded_at), min(position), max(position), max(recorded_at) FROM oracle GROUP BY 1 ORDER BY stream COLLATE "C"');
SELECT same('SELECT * FROM event_store.streams(''cart'', ''cart-13'', 4)',
	'SELECT stream, split_part(stream, ''-'', 1), max(version), min(recorded_at), min(position), max(position), max(recorded_at) FROM oracle WHERE stream LIKE ''cart-%'' AND stream > ''cart-13'' COLLATE "C" GROUP BY 1 ORDER BY stream COLLATE "C" LIMIT 4');
SELECT same(format('SELECT * FROM event_store.stream_info(%L)', stream), format('SELECT * FROM event_store.streams(NULL, NULL, NULL) WHERE stream = %L', stream)) AS outcome
  FROM event_store.stream_info('order-1');
SELECT count(*) FROM event_store.stream_info('nobody');
SELECT event_store.stream_version('nobody');
-- a category is what stands before the first dash
SELECT last_version FROM event_store.append('-x', 'X', '1') UNION ALL SELECT last_version FROM event_store.append('-x-1', 'X', '1')
	UNION ALL SELECT last_version FROM event_store.append('zz', 'X', '1') UNION ALL SELECT last_version FROM event_store.append('zz-1-2', 'X', '1');
SELECT c, array(SELECT stream FROM event_store.streams(c)) FROM unnest(ARRAY['', '-x', 'zz', 'zz-1', '-x-1']) c;

-- a transaction sees its own appends by stream, not by position
BEGIN;
SELECT last_version FROM event_store.append('own-1', 'Mine', '1', correlation_id => 'own', event_id => 'aaaaaaaa-0000-0000-0000-000000000000');
SELECT count(*) FROM event_store.read_stream('own-1');
SELECT count(*) FROM event_store.trace('own');
SELECT count(*) FROM event_store.find_event('aaaaaaaa-0000-0000-0000-000000000000');
SELECT event_store.stream_version('own-1');
SELECT count(*) FROM event_store.read_category('own');
SELECT count(*) FROM event_store.read_all(0, NULL) WHERE stream = 'own-1';
COMMIT;
SELECT count(*) FROM event_store.read_category('own');

-- by an id, within a time; the middle one of each three is taken back
DO $$ BEGIN
	FOR i IN 1..120 LOOP
		BEGIN
			PERFORM event_store.append('timed-' || i % 5, 'Timed', to_jsonb(i), correlation_id => 'timed' || i % 2,
				event_id => CASE WHEN i % 4 = 0 THEN md5('timed' || i)::uuid END);
			IF i % 3 = 1 THEN RAISE EXCEPTION 'no'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP;
END $$;
-- of one time, over a segment's end
SELECT last_version FROM event_store.append_events('batch-1', (SELECT jsonb_agg(jsonb_build_object('type', 'Timed', 'data', i, 'correlation_id', 'batch')) FROM generate_series(1, 40) i));
SELECT count(DISTINCT recorded_at) FROM oracle WHERE stream = 'batch-1';
CREATE TABLE times AS SELECT DISTINCT recorded_at AS at FROM oracle WHERE stream = 'timed-1' AND version IN (5, 12) OR stream = 'batch-1'
	UNION SELECT recorded_at + '1 us' FROM oracle WHERE stream = 'timed-1' AND version = 5 UNION VALUES ('-infinity'::timestamptz), ('infinity'), (NULL);
SELECT same(format('SELECT * FROM event_store.trace(%L, %s, %L, %L)', c, coalesce(m::text, 'NULL'), a.at, b.at),
	format('SELECT * FROM oracle WHERE correlation_id = %1$L AND (%3$L::timestamptz IS NULL OR recorded_at >= %3$L) AND (%4$L::timestamptz IS NULL OR recorded_at <= %4$L) ORDER BY position LIMIT %2$s', c, coalesce(m::text, 'ALL'), a.at, b.at)) AS outcome, count(*)
  FROM unnest(ARRAY['timed0', 'batch', 'c5', 'none']) c, unnest(ARRAY[NULL, 2]) m, times a, times b GROUP BY 1 ORDER BY 1;
SELECT same(format('SELECT * FROM event_store.find_event(%L, %L, %L, %L)', event_id, s, a.at, b.at),
	format('SELECT * FROM oracle WHERE event_id = %1$L AND stream = coalesce(%2$L, stream) AND (%3$L::timestamptz IS NULL OR recorded_at >= %3$L) AND (%4$L::timestamptz IS NULL OR recorded_at <= %4$L)', event_id, s, a.at, b.at)) AS outcome, count(*)
  FROM oracle, unnest(ARRAY[NULL, stream]) s, times a, times b WHERE stream = 'timed-1' AND version IN (1, 5, 6, 12) GROUP BY 1 ORDER BY 1;
DROP TABLE times;

-- guards
SELECT raises('SELECT * FROM event_store.read_stream(NULL)');
SELECT raises('SELECT * FROM event_store.read_stream('''')');
SELECT raises('SELECT * FROM event_store.read_stream(''x'', -1)');
SELECT raises('SELECT * FROM event_store.read_stream(''x'', 1, -1)');
SELECT raises('SELECT * FROM event_store.read_stream(''x'', until_version => -1)');
SELECT raises('SELECT * FROM event_store.read_stream(''x'', 9223372036854775807)');
SELECT raises('SELECT * FROM event_store.read_category(NULL)');
SELECT raises('SELECT * FROM event_store.read_category(''x'', -1)');
SELECT raises('SELECT * FROM event_store.read_category(''x'', 0, -1)');
SELECT raises('SELECT * FROM event_store.read_category(''x'', types => ''{NULL}'')');
SELECT raises('SELECT * FROM event_store.read_all(-1)');
SELECT raises('SELECT * FROM event_store.read_all(9223372036854775807)');
SELECT raises('SELECT * FROM event_store.read_all(9223372036854775807, backward => true)');
SELECT raises('SELECT * FROM event_store.read_all(categories => ''{NULL,a}'')');
SELECT raises('SELECT * FROM event_store.events_since(NULL)');
SELECT raises('SELECT * FROM event_store.find_event(NULL)');
SELECT raises('SELECT * FROM event_store.last_event(NULL)');
SELECT raises('SELECT * FROM event_store.trace(NULL)');
SELECT raises('SELECT * FROM event_store.trace(''x'', -1)');
SELECT raises('SELECT event_store.stream_version(NULL)');
SELECT raises('SELECT event_store.stream_info(NULL)');
SELECT raises('SELECT event_store.streams(max_count => -1)');

-- cursors, prepared statements, joins, subqueries
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT position, stream FROM event_store.read_all(0, 10);
FETCH 2 FROM c;
FETCH BACKWARD 1 FROM c;
FETCH LAST FROM c;
FETCH FIRST FROM c;
DECLARE n NO SCROLL CURSOR FOR SELECT position, type FROM event_store.read_category('cart');
FETCH 2 FROM n;
COMMIT;
PREPARE page(bigint, text[]) AS SELECT position, stream, type FROM event_store.read_all($1, 3, types => $2);
SET plan_cache_mode = force_generic_plan;
EXECUTE page(0, NULL);
EXECUTE page(100, '{T2}');
EXPLAIN (COSTS OFF) EXECUTE page(100, '{T2}');
RESET plan_cache_mode;
DEALLOCATE page;
SELECT s.stream, e.version, e.type FROM event_store.streams('cart', NULL, 2) s, event_store.read_stream(s.stream, 1, 2) e;
SELECT s, (SELECT type FROM event_store.last_event(s)) FROM unnest(ARRAY['order-1', 'cart-7', 'nobody']) s;
SELECT count(*) FROM event_store.read_all(0, NULL) a JOIN event_store.read_category('cart', 0, NULL) b USING (position, event_id);
SELECT a.stream, b.stream FROM event_store.read_all(0, 2) a, event_store.read_category('cart', 0, 2) b;
SELECT r FROM event_store.read_stream('nobody') r;
SELECT (r).version, count(r) FROM (SELECT r FROM event_store.read_stream('order-1', 1, 1) r) x GROUP BY 1;
SELECT version, ordinality FROM event_store.read_stream('order-1', 1, 2) WITH ORDINALITY;
DROP VIEW oracle;
DROP FUNCTION same(text, text);
