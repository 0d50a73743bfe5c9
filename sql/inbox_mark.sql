-- Marking what was processed
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
\set VERBOSITY terse
SELECT event_store.mark_processed('billing', 'm-1');
SELECT event_store.mark_processed('billing', 'm-1');
SELECT event_store.mark_processed('billing', 'm-2'), event_store.mark_processed('billing', 'm-2') AS again;
-- another consumer, and what only looks alike
SELECT event_store.mark_processed('mailing', 'm-1'), event_store.mark_processed('billingm', '-1'), event_store.mark_processed('billing', 'M-1');
SELECT event_store.mark_processed(consumer => 'billing', message_id => 'm-1');

-- a mark goes with its transaction, and with its savepoint
BEGIN;
SELECT event_store.mark_processed('billing', 'm-3');
ROLLBACK;
BEGIN;
SELECT event_store.mark_processed('billing', 'm-3');
SAVEPOINT s;
SELECT event_store.mark_processed('billing', 'm-3'), event_store.mark_processed('billing', 'm-4');
ROLLBACK TO s;
SELECT event_store.mark_processed('billing', 'm-3'), event_store.mark_processed('billing', 'm-4');
COMMIT;
SELECT event_store.mark_processed('billing', 'm-3'), event_store.mark_processed('billing', 'm-4');
-- the classic pattern
CREATE TABLE account (id int PRIMARY KEY, amount int);
INSERT INTO account VALUES (1, 0);
CREATE PROCEDURE receive(_message text, _amount int) LANGUAGE plpgsql AS $$
BEGIN
	IF event_store.mark_processed('billing', _message) THEN
		UPDATE account SET amount = amount + _amount WHERE id = 1;
	END IF;
END $$;
CALL receive('m-5', 10);
CALL receive('m-5', 10);
CALL receive('m-6', 5);
TABLE account;

-- several
SELECT event_store.mark_processed_all('billing', '{m-9,m-1,m-8,m-9,m-2,m-7}');
SELECT event_store.mark_processed_all('billing', '{m-9,m-8}'), event_store.mark_processed_all('billing', '{}');
SELECT cardinality(event_store.mark_processed_all('many', array_agg(i::text))) FROM generate_series(1, 5000) i;
SELECT cardinality(event_store.mark_processed_all('many', array_agg(i::text))) FROM generate_series(4001, 6000) i;
SELECT count(*) FROM generate_series(1, 6000) i WHERE event_store.mark_processed('many', i::text);

-- and taken back
SELECT event_store.forget_processed('billing', 'm-1'), event_store.forget_processed('billing', 'm-1') AS again, event_store.forget_processed('billing', 'never');
SELECT event_store.mark_processed('billing', 'm-1'), event_store.mark_processed('billing', 'm-1') AS again;
BEGIN;
SELECT event_store.mark_processed('billing', 'f'), event_store.forget_processed('billing', 'f'), event_store.mark_processed('billing', 'f') AS again;
COMMIT;

-- under stricter isolation
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT event_store.mark_processed('billing', 'm-1'), event_store.mark_processed('billing', 's'), event_store.mark_processed('billing', 's') AS again;
COMMIT;

-- ids are whatever they are; only their length is bounded
SELECT event_store.mark_processed('billing', repeat('x', 1024)), event_store.mark_processed('billing', repeat('x', 1023) || 'y'), event_store.mark_processed('billing', repeat('x', 1024)) AS again,
	event_store.mark_processed('billing', E'a\nb\t'), event_store.mark_processed('billing', 'naïve ☕');
\set VERBOSITY default
SELECT event_store.mark_processed('billing', repeat('x', 1025));
\set VERBOSITY terse
SELECT event_store.mark_processed('billing', '');
SELECT event_store.mark_processed('billing', NULL);
SELECT event_store.mark_processed(NULL, 'm');
SELECT event_store.mark_processed('', 'm');
SELECT event_store.mark_processed(E'a\n', 'm');
SELECT event_store.mark_processed(repeat('x', 1025), 'm');
SELECT event_store.mark_processed_all('billing', NULL);
SELECT event_store.mark_processed_all('billing', '{a,NULL}');
SELECT event_store.mark_processed_all('billing', ARRAY['a', '']);
SELECT event_store.mark_processed('billing', 'a') AS still_new;
BEGIN READ ONLY;
SELECT event_store.mark_processed('billing', 'ro');
ROLLBACK;

-- nobody else may, nor write the tables
CREATE ROLE inbox_user;
GRANT USAGE ON SCHEMA event_store TO inbox_user;
SET ROLE inbox_user;
SELECT event_store.mark_processed('billing', 'm-1');
RESET ROLE;
GRANT EXECUTE ON FUNCTION event_store.mark_processed TO inbox_user;
SET ROLE inbox_user;
SELECT event_store.mark_processed('billing', 'm-1'), event_store.mark_processed('billing', 'u');
SELECT count(*) FROM event_store.inbox_0_0;
INSERT INTO event_store.inbox_0_0 (key) VALUES (gen_random_uuid());
RESET ROLE;
DROP OWNED BY inbox_user;
DROP ROLE inbox_user;

-- what would make marks depend on the way they are written is refused
CREATE INDEX added ON event_store.inbox_0_0 (finished);
\set VERBOSITY default
SELECT event_store.mark_processed('billing', 'm-1');
\set VERBOSITY terse
DROP INDEX event_store.added;
SELECT event_store.mark_processed('billing', 'm-1');
-- what may happen to a table of its own
VACUUM FULL event_store.inbox_0_0;
REINDEX TABLE event_store.inbox_0_0;
SELECT event_store.mark_processed('billing', 'm-1'), event_store.mark_processed('billing', 'after'), event_store.mark_processed('billing', 'after') AS again;
-- the extension anew, in the session that knew the old one
DROP EXTENSION event_store;
CREATE EXTENSION event_store;
SELECT event_store.mark_processed('billing', 'm-1'), event_store.mark_processed('billing', 'm-1') AS again;
-- in the very transaction that makes it
BEGIN;
DROP EXTENSION event_store;
CREATE EXTENSION event_store;
SELECT event_store.mark_processed('billing', 'm-1'), event_store.mark_processed('billing', 'm-1') AS again;
COMMIT;
SELECT event_store.mark_processed('billing', 'm-1');
DROP TABLE account;
DROP PROCEDURE receive;
