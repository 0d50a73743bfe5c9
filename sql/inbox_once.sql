-- What is done once
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
\set VERBOSITY terse
CREATE TABLE charge (id int GENERATED ALWAYS AS IDENTITY, amount int CHECK (amount > 0));
CREATE FUNCTION charge(_request jsonb) RETURNS jsonb LANGUAGE sql AS $$
	INSERT INTO charge (amount) VALUES ((_request->>'amount')::int) RETURNING jsonb_build_object('charge', id, 'amount', amount) $$;
SELECT event_store.once('api', 'k-1', 'SELECT charge($1)', '{"amount": 20}');
SELECT event_store.once('api', 'k-1', 'SELECT charge($1)', '{"amount": 20}');
SELECT event_store.once(consumer => 'api', key => 'k-1', command => 'SELECT charge($1)', args => '{"amount": 20}');
TABLE charge;
-- the same key for something else
\set VERBOSITY default
SELECT event_store.once('api', 'k-1', 'SELECT charge($1)', '{"amount": 21}');
\set VERBOSITY terse
SELECT event_store.once('api', 'k-1', 'SELECT charge( $1)', '{"amount": 20}');
SELECT event_store.once('api', 'k-1', 'SELECT charge($1)');
SELECT event_store.once('other', 'k-1', 'SELECT charge($1)', '{"amount": 21}');
-- keys are apart from ids of messages
SELECT event_store.mark_processed('api', 'k-1'), event_store.once('api', 'k-2', 'SELECT 1'), event_store.mark_processed('api', 'k-2');
-- a failure leaves nothing behind
SELECT event_store.once('api', 'k-3', 'SELECT charge($1)', '{"amount": 0}');
SELECT event_store.once('api', 'k-3', 'SELECT charge($1)', '{"amount": 1}');
BEGIN;
SELECT event_store.once('api', 'k-4', 'SELECT charge($1)', '{"amount": 2}');
ROLLBACK;
SELECT event_store.once('api', 'k-4', 'SELECT charge($1)', '{"amount": 3}');
BEGIN;
SAVEPOINT s;
SELECT event_store.once('api', 'k-5', 'SELECT charge($1)', '{"amount": 4}');
ROLLBACK TO s;
SELECT event_store.once('api', 'k-5', 'SELECT charge($1)', '{"amount": 5}'), event_store.once('api', 'k-5', 'SELECT charge($1)', '{"amount": 5}') AS again;
COMMIT;
SELECT amount FROM charge ORDER BY id;
-- what comes back: a value, a row, nothing
SELECT key, command, event_store.once('results', key, command), event_store.once('results', key, command) AS again, event_store.once('results', key, command) IS NULL AS is_null
FROM (VALUES ('number', 'SELECT 1.50'), ('text', $$SELECT 'a "b"'$$), ('time', $$SELECT timestamptz '2026-01-01 00:00+00'$$), ('json null', $$SELECT 'null'::jsonb$$),
	('null', 'SELECT NULL::int'), ('json', $$SELECT json '{"b": 1, "a": [2]}'$$), ('array', 'SELECT ARRAY[1, 2]'), ('row', $$SELECT 1 AS a, 'x' AS b$$),
	('one column', 'SELECT ROW(1, 2)'), ('none', 'SELECT 1 WHERE false'), ('void', 'SELECT pg_sleep(0)'), ('command', 'INSERT INTO charge (amount) VALUES (6)'),
	('returning', 'INSERT INTO charge (amount) VALUES (7) RETURNING amount'), ('two', 'INSERT INTO charge (amount) VALUES (8); SELECT 9')) AS c (key, command);
SELECT amount FROM charge WHERE amount > 5 ORDER BY id;
-- statements before the last are carried out in full, whatever they return
SELECT event_store.once('results', 'all of it', 'INSERT INTO charge (amount) SELECT generate_series(101, 110) RETURNING amount; SELECT generate_series(111, 120); SELECT count(*) FROM charge WHERE amount > 100');
SELECT event_store.once('results', 'large', 'SELECT repeat(md5(random()::text), 100000)') = event_store.once('results', 'large', 'SELECT repeat(md5(random()::text), 100000)');
SELECT event_store.once('results', 'large 2', 'SELECT string_agg(md5(i::text), '''') FROM generate_series(1, 1000) i') = to_jsonb((SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i));
SELECT event_store.once('results', 'large 2', 'SELECT string_agg(md5(i::text), '''') FROM generate_series(1, 1000) i') = to_jsonb((SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i));
SELECT event_store.once('results', 'rows', 'SELECT generate_series(1, 3)');
SELECT event_store.once('results', 'rows', 'SELECT jsonb_agg(i) FROM generate_series(1, 3) i');
SELECT event_store.once('results', 'control', 'COMMIT');
SELECT event_store.once('results', 'syntax', 'SELEC');
-- of one within another: another key, or not
SELECT event_store.once('nested', 'a', $$SELECT event_store.once('nested', 'b', 'SELECT 1')$$), event_store.once('nested', 'b', 'SELECT 1');
SELECT event_store.once('nested', 'c', $$SELECT event_store.once('nested', 'c', 'SELECT 1')$$);
SELECT event_store.once('nested', 'c', 'SELECT 1');
-- it runs as the caller, with his search_path
CREATE ROLE inbox_user;
GRANT USAGE ON SCHEMA event_store TO inbox_user;
GRANT EXECUTE ON FUNCTION event_store.once TO inbox_user;
SET ROLE inbox_user;
SELECT event_store.once('role', 'k', 'SELECT charge($1)', '{"amount": 20}');
SELECT event_store.once('role', 'k', 'SELECT current_user::text'), event_store.begin_once('role', 'k');
SELECT event_store.once('role', 'k', 'SELECT current_user::text');
RESET ROLE;
SELECT event_store.once('role', 'k', 'SELECT current_user::text');
DROP OWNED BY inbox_user;
DROP ROLE inbox_user;

-- for programs
SELECT * FROM event_store.begin_once('app', 'a', '{"n": 1}');
SELECT * FROM event_store.begin_once('app', 'a', '{"n": 1}');
BEGIN;
SELECT * FROM event_store.begin_once('app', 'b', '{"n": 1}');
SELECT event_store.finish_once('app', 'b', '{"answer": 42}');
SELECT * FROM event_store.begin_once('app', 'b', '{"n": 1}');
COMMIT;
SELECT * FROM event_store.begin_once('app', 'b', '{"n": 1}');
SELECT * FROM event_store.begin_once('app', 'b', '{"n": 2}');
SELECT * FROM event_store.begin_once('app', 'b');
BEGIN;
SELECT * FROM event_store.begin_once('app', 'c');
SELECT * FROM event_store.begin_once('app', 'c');
ROLLBACK;
BEGIN;
SELECT * FROM event_store.begin_once('app', 'c');
SELECT event_store.finish_once('app', 'c', NULL);
SELECT * FROM event_store.begin_once('app', 'c');
SELECT event_store.finish_once('app', 'c', '1');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT * FROM event_store.begin_once('app', 'd');
ROLLBACK TO s;
\set VERBOSITY default
SELECT event_store.finish_once('app', 'd', '1');
\set VERBOSITY terse
ROLLBACK;
SELECT event_store.finish_once('app', 'b', '1');
SELECT event_store.finish_once('app', 'never', '1');

-- appends
SELECT * FROM event_store.append_once('req-1', 'order-1', 'Placed', '{"n": 1}', expected_version => 0);
SELECT * FROM event_store.append_once('req-1', 'order-1', 'Placed', '{"n": 1}', '{"other": "metadata"}', 0, now());
SELECT * FROM event_store.append('order-1', 'Paid', '{}');
SELECT * FROM event_store.append_once('req-1', 'order-1', 'Placed', '{"n": 1}', expected_version => 7);
SELECT * FROM event_store.append_once('req-2', 'order-1', 'Placed', '{"n": 1}', '{"by": "x"}', 2, '2026-01-01 00:00+00', 'corr', '00000000-0000-0000-0000-000000000001', 3, 'shop');
SELECT version, type, schema_version, occurred_at = '2026-01-01 00:00+00' AS occurred, source, correlation_id, causation_id, data, metadata FROM event_store.read_stream('order-1', 3);
\set VERBOSITY default
SELECT * FROM event_store.append_once('req-1', 'order-1', 'Placed', '{"n": 2}');
\set VERBOSITY terse
SELECT * FROM event_store.append_once('req-1', 'order-1', 'Moved', '{"n": 1}');
SELECT * FROM event_store.append_once('req-1', 'order-2', 'Placed', '{"n": 1}');
SELECT * FROM event_store.append_once('req-1', 'order-1', 'Placed', '{"n": 1}', schema_version => 2);
-- what is refused leaves the key free
SELECT * FROM event_store.append_once('req-3', 'order-1', 'Placed', '{"n": 1}', expected_version => 0);
SELECT * FROM event_store.append_once('req-3', 'order-1', 'Placed', '{"n": 9}', expected_version => 3);
SELECT * FROM event_store.append_events_once('batch-1', 'order-3', '[{"type": "a", "data": 1}, {"type": "b", "data": 2}]', 0);
SELECT * FROM event_store.append_events_once('batch-1', 'order-3', '[{"type": "a", "data": 1}, {"type": "b", "data": 2, "metadata": {"x": 1}}]', 0);
SELECT * FROM event_store.append_events_once('batch-1', 'order-3', '[{"type": "a", "data": 1}]', 0);
SELECT * FROM event_store.append_events_once('batch-1', 'order-3', '[{"type": "b", "data": 2}, {"type": "a", "data": 1}]', 0);
SELECT * FROM event_store.append_events_once('batch-2', 'order-3', '[]');
SELECT * FROM event_store.append_events_once('batch-2', 'order-3', '[{"type": "c", "data": 3}, {"type": "c"}]');
SELECT * FROM event_store.append_events_once('batch-2', 'order-3', '[{"type": "c", "data": 3}]');
-- one key, one append: of one event by either function
SELECT * FROM event_store.append_once('batch-2', 'order-3', 'c', '3');
SELECT stream, version FROM event_store.streams();

-- guards
SELECT event_store.once('c', NULL, 'SELECT 1');
SELECT event_store.once('c', '', 'SELECT 1');
SELECT event_store.once('c', 'k', NULL);
SELECT event_store.once(NULL, 'k', 'SELECT 1');
SELECT event_store.begin_once('c', repeat('x', 1025));
SELECT event_store.append_once(NULL, 's', 't', '1');
SELECT event_store.append_once('', 's', 't', '1');
SELECT event_store.append_once('k', NULL, 't', '1');
SELECT event_store.append_once('k', 's', 't', NULL);
SELECT event_store.append_events_once(NULL, 's', '[]');
BEGIN READ ONLY;
SELECT event_store.once('c', 'k', 'SELECT 1');
ROLLBACK;
BEGIN READ ONLY;
SELECT event_store.append_once('k', 's', 't', '1');
ROLLBACK;
DROP FUNCTION charge(jsonb);
DROP TABLE charge;
