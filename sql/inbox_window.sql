-- How long the inbox remembers
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
-- by nobody but who says so
SET event_store.inbox_worker = off;
\set VERBOSITY terse
CREATE FUNCTION mark(_consumer text, _from int, _to int) RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FILTER (WHERE is_new) FROM (SELECT event_store.mark_processed(_consumer, i::text) AS is_new FROM generate_series(_from, _to) i) AS m $$;
CREATE PROCEDURE rotate(_times int = 1) LANGUAGE plpgsql AS $$ BEGIN
	FOR i IN 1.._times LOOP PERFORM event_store.rotate_inbox(); COMMIT; END LOOP; END $$;
CREATE VIEW parts AS SELECT w.consumer, w.keep_for, w.keep_count FROM event_store.inbox_windows AS w ORDER BY consumer;
CREATE VIEW turns AS SELECT w.consumer, w.turn FROM event_store.inbox_windows AS w WHERE w.consumer IN ('n', 'both') OR w.consumer IS NULL ORDER BY consumer;
TABLE parts;
TABLE turns;
SELECT event_store.rotate_inbox();
TABLE turns;

-- by count: the latest so many are known, and not many more
SELECT event_store.set_dedup_window('n', keep_count => 100);
SELECT mark('n', 1, 100);
CALL rotate(2);
-- a turn has been, and nothing is forgotten before the next one
SELECT mark('n', 101, 199), event_store.rotate_inbox();
SELECT mark('n', 1, 199);
TABLE turns;
SELECT mark('n', 200, 200);
SELECT event_store.rotate_inbox();
SELECT mark('n', 1, 200);
-- the oldest part goes, since the others have as many as the window holds
SELECT event_store.rotate_inbox();
TABLE turns;
SELECT mark('n', 101, 200);
-- rolled back marks don't count
BEGIN;
SELECT mark('n', 1001, 1200);
ROLLBACK;
CALL rotate(3);
SELECT mark('n', 101, 200);
SELECT mark('n', 1, 100);
-- in the long run there are at most twice as many
DO $$ BEGIN FOR i IN 0..200 LOOP
	PERFORM event_store.mark_processed('n', 'x' || i * 10 + j) FROM generate_series(0, 9) j;
	COMMIT;
	PERFORM event_store.rotate_inbox();
	COMMIT;
END LOOP; END $$;
SELECT count(*) FROM (SELECT FROM event_store.inbox_1_0 UNION ALL SELECT FROM event_store.inbox_1_1 UNION ALL SELECT FROM event_store.inbox_1_2) AS e;
SELECT count(*) FROM generate_series(1910, 2009) i WHERE event_store.mark_processed('n', 'x' || i);
SELECT size < 400000 AS small FROM event_store.inbox_windows WHERE consumer = 'n';

-- by time
SELECT event_store.set_dedup_window('t', '2 seconds');
SELECT mark('t', 1, 10), mark('t', 1, 10) AS again;
SELECT event_store.rotate_inbox();
SELECT pg_sleep(1.1);
CALL rotate(2);
SELECT mark('t', 11, 20);
SELECT pg_sleep(0.5);
CALL rotate(2);
SELECT mark('t', 1, 20);
SELECT pg_sleep(0.7);
CALL rotate(3);
SELECT mark('t', 1, 20);
SELECT pg_sleep(2.2);
CALL rotate(3);
-- more than twice two seconds have passed since the first ones
SELECT mark('t', 1, 10);
-- an idle one forgets as well
SELECT pg_sleep(1.1);
CALL rotate(2);
SELECT pg_sleep(1.1);
CALL rotate(2);
SELECT pg_sleep(1.1);
CALL rotate(2);
SELECT pg_sleep(1.1);
CALL rotate(2);
SELECT pg_sleep(1.1);
CALL rotate(2);
SELECT mark('t', 1, 20);

-- both: as long as either holds
SELECT event_store.set_dedup_window('both', '1 hour', 10);
SELECT mark('both', 1, 100);
CALL rotate(5);
SELECT turn FROM turns WHERE consumer = 'both';
SELECT event_store.set_dedup_window('both', '1 second', 10);
SELECT pg_sleep(1.1);
CALL rotate(5);
SELECT turn FROM turns WHERE consumer = 'both';

-- a window of one's own: what is known stays known
SELECT mark('late', 1, 10);
SELECT event_store.set_dedup_window('late', '1 day');
SELECT mark('late', 1, 20);
SELECT mark('late', 1, 20), mark('other', 1, 10);
-- another length, and that of the others again
SELECT event_store.set_dedup_window('late', keep_count => 5);
TABLE parts;
SELECT event_store.set_dedup_window('late');
SELECT event_store.set_dedup_window(NULL, '3 days', 1000000);
TABLE parts;
SELECT mark('late', 1, 20), mark('other', 1, 10);
SELECT event_store.set_dedup_window(NULL);
TABLE parts;
-- in the transaction that makes it, and rolled back
BEGIN;
SELECT event_store.set_dedup_window('own', keep_count => 10);
SELECT mark('own', 1, 5), mark('own', 1, 6) AS again;
COMMIT;
SELECT mark('own', 1, 7), mark('own', 1, 7) AS again;
BEGIN;
SELECT event_store.set_dedup_window('never', keep_count => 10);
SELECT mark('never', 1, 5);
ROLLBACK;
SELECT mark('never', 1, 5), mark('never', 1, 5) AS again;
-- dropped, it is forgotten with all it has
SELECT event_store.drop_dedup_window('own'), event_store.drop_dedup_window('own') AS again, event_store.drop_dedup_window('never');
SELECT mark('own', 1, 7), mark('own', 1, 7) AS again;
SELECT mark('n', 1, 0), event_store.drop_dedup_window('n');
SELECT mark('n', 1, 3), mark('n', 1, 3) AS again;
BEGIN;
SELECT event_store.drop_dedup_window('t');
ROLLBACK;
SELECT count(*) FROM parts WHERE consumer = 't';

-- keys of appends have a window, too
SELECT event_store.set_dedup_window('$append', keep_count => 2);
SELECT count(event_store.append_once('k' || i, 's-' || i, 't', '1')) FROM generate_series(1, 3) i;
CALL rotate(2);
SELECT count(event_store.append_once('k' || i, 's-' || i, 't', '1')) FROM generate_series(4, 5) i;
CALL rotate(2);
SELECT count(event_store.append_once('k' || i, 's-' || i, 't', '1')) FROM generate_series(6, 7) i;
CALL rotate(2);
SELECT (event_store.append_once('k1', 's-1', 't', '1', expected_version => 1)).duplicate, (event_store.append_once('k7', 's-7', 't', '1', expected_version => 0)).duplicate;

-- in a transaction block another process does it
BEGIN;
SELECT event_store.rotate_inbox();
ROLLBACK;
-- what this transaction has marked itself is not sealed
SELECT event_store.set_dedup_window('self', keep_count => 2);
SELECT event_store.rotate_inbox();
BEGIN;
SELECT mark('self', 1, 5);
COMMIT;
CALL rotate(2);
SELECT last_sealed_at IS NOT NULL AS sealed FROM event_store.inbox_turn AS t JOIN event_store.inbox_window AS w ON w.id = t.window_id WHERE consumer = 'self';

-- what was marked in the window of all is known until that is emptied, and no longer
SELECT event_store.set_dedup_window(NULL, keep_count => 5);
CALL rotate(6);
SELECT mark('leaving', 1, 3), mark('leaving', 4, 4);
SELECT event_store.set_dedup_window('leaving', keep_count => 100);
SELECT mark('leaving', 5, 6);
CREATE PROCEDURE turn() LANGUAGE plpgsql AS $$ BEGIN
	PERFORM mark('filler', 1, 0), event_store.mark_processed('filler', gen_random_uuid()::text) FROM generate_series(1, 5);
	COMMIT;
	CALL rotate(2);
END $$;
CALL turn();
SELECT mark('leaving', 1, 6);
CALL turn();
SELECT turn, last_is_empty, oldest_is_empty FROM event_store.inbox_turn WHERE window_id = 0;
SELECT mark('leaving', 1, 8);
SELECT event_store.set_dedup_window(NULL);
DROP PROCEDURE turn;

-- guards
SELECT event_store.set_dedup_window('g', '0 seconds');
SELECT event_store.set_dedup_window('g', '-1 day');
SELECT event_store.set_dedup_window('g', '11 years');
SELECT event_store.set_dedup_window('g', '1 day -2 seconds');
SELECT event_store.set_dedup_window('g', keep_count => 0);
SELECT event_store.set_dedup_window('g', keep_count => 1000000000001);
SELECT event_store.set_dedup_window('', '1 day');
SELECT event_store.drop_dedup_window(NULL);
BEGIN READ ONLY;
SELECT event_store.set_dedup_window('g', '1 day');
ROLLBACK;
BEGIN READ ONLY;
SELECT event_store.rotate_inbox();
ROLLBACK;
CREATE ROLE inbox_user;
GRANT USAGE ON SCHEMA event_store TO inbox_user;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA event_store TO inbox_user;
SET ROLE inbox_user;
SELECT event_store.set_dedup_window('g', '1 day');
SELECT event_store.drop_dedup_window('late');
SELECT event_store.rotate_inbox();
SELECT mark('late', 20, 21);
RESET ROLE;
DROP OWNED BY inbox_user;
DROP ROLE inbox_user;
-- nothing of a window is left but by name
SELECT count(*) FROM pg_class WHERE relnamespace = 'event_store'::regnamespace AND relname ~ '^inbox_\d+_\d$' AND relkind = 'r' AND substring(relname, '\d+')::int NOT IN (SELECT id FROM event_store.inbox_window UNION SELECT 0);
SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'event_store inbox worker' AND state = 'active' AND query_start < now() - interval '1 minute';
-- the tables go with the extension, those of a window too
DROP EXTENSION event_store CASCADE;
CREATE EXTENSION event_store;
SELECT event_store.set_dedup_window('x', '1 day');
DROP EXTENSION event_store;
CREATE EXTENSION event_store;
DROP VIEW IF EXISTS parts, turns;
DROP FUNCTION mark;
DROP PROCEDURE rotate;
