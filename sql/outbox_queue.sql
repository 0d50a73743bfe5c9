-- The outbox: publishing, and relays that take, acknowledge and refuse
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
-- who has what, without what differs from run to run
CREATE VIEW shown AS SELECT id, topic, key, type, state, relay, attempts, error, payload, headers FROM event_store.outbox_messages ORDER BY id;
CREATE FUNCTION take(relay text, max_count int = 100, lease interval = '1 hour') RETURNS text LANGUAGE sql
RETURN (SELECT string_agg(concat_ws(' ', id, key, attempt), ', ' ORDER BY id) FROM event_store.outbox_poll(relay, max_count, lease));

-- nothing is there
SELECT * FROM event_store.outbox_poll('r');
SELECT waiting, leased, delayed, retries, parked, dead_letters, age, acknowledged, acknowledged_at, rate, failures, relays, paused, breaker FROM event_store.outbox_status;
SELECT event_store.outbox_ack('r', '{1,2}'), event_store.outbox_nack('r', 1, 'x'), event_store.outbox_heartbeat('r'), event_store.outbox_release('r');

-- arguments
SELECT event_store.publish(NULL, 'k', '1');
SELECT event_store.publish('', 'k', '1');
SELECT event_store.publish('t', '', '1');
SELECT event_store.publish('t', 'k', NULL);
SELECT event_store.publish('t', 'k', '1', '[]');
SELECT event_store.publish('t', 'k', '1', NULL);
SELECT event_store.publish('t', repeat('k', 1025), '1');
SELECT event_store.publish('t', 'k', '1', deliver_after => '-1 s');
SELECT event_store.outbox_poll(NULL);
SELECT event_store.outbox_poll('');
SELECT event_store.outbox_poll('r', 0);
SELECT event_store.outbox_poll('r', 1, NULL);
SELECT event_store.outbox_poll('r', 1, '0');
SELECT event_store.outbox_ack('r', NULL);
SELECT event_store.outbox_ack('r', '{1,NULL}');
SELECT event_store.outbox_nack('r', NULL, 'x');
SELECT event_store.outbox_nack('r', 1, NULL);
SELECT event_store.outbox_nack('r', 1, 'x', '-1 s');
SELECT event_store.outbox_heartbeat('r', '-1 s');
SELECT event_store.alter_outbox(max_attempts => 0);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT event_store.outbox_poll('r');
ROLLBACK;
BEGIN READ ONLY;
SELECT event_store.publish('t', 'k', '1');
ROLLBACK;

-- a message is as it was published
SELECT event_store.publish('orders', 'c-1', '{"n": 1}', '{"traceparent": "00-a"}', '00000000-0000-0000-0000-000000000001', type => 'Placed');
SELECT event_store.publish('orders', NULL, 'null');
SELECT id, CASE WHEN id = 1 THEN message_id END AS message_id, topic, key, type, payload, headers, attempt FROM event_store.outbox_poll('r') ORDER BY id;
-- an id of its own is a UUID version 7, and rises with the message's
SELECT substr(message_id::text, 15, 1) FROM event_store.outbox_messages WHERE id = 2;
-- while it is out nobody gets it
SELECT take('r'), take('s');
SELECT * FROM shown;
-- nobody else acknowledges it, nor refuses it
SELECT event_store.outbox_ack('s', '{1,2}'), event_store.outbox_nack('s', 1, 'x');
SELECT event_store.outbox_ack('r', '{1,2,3,1}'), event_store.outbox_ack('r', '{1,2}');
SELECT * FROM shown;

-- what is rolled back never was
BEGIN;
SELECT event_store.publish('t', 'k', '1');
ROLLBACK;
BEGIN;
SELECT event_store.publish('t', 'k', '2') > 0;
SAVEPOINT s;
SELECT event_store.publish('t', 'k', '3') > 0;
ROLLBACK TO s;
-- a transaction's own messages are not settled for itself
SELECT take('r');
COMMIT;
SELECT payload FROM event_store.outbox_poll('r');
SELECT event_store.outbox_release('r');
SELECT event_store.outbox_ack('r', array_agg(id)) FROM event_store.outbox_poll('r');

-- of a key nothing is delivered while an earlier one is out
SELECT count(event_store.publish('t', 'a', to_jsonb(i))) FROM generate_series(1, 5) AS i;
SELECT count(*) FROM event_store.outbox_poll('r', 2);
SELECT count(*) FROM event_store.outbox_poll('r', 2);
SELECT payload FROM event_store.outbox_messages WHERE state = 'leased' ORDER BY id;
SELECT event_store.outbox_ack('r', ARRAY[max(id)]) FROM event_store.outbox_messages WHERE state = 'leased';
SELECT payload, state FROM event_store.outbox_messages ORDER BY id;
-- what is given back is delivered again, but for what was acknowledged
SELECT event_store.outbox_release('r');
SELECT payload FROM event_store.outbox_poll('s', 3) ORDER BY id;
SELECT event_store.outbox_heartbeat('s', '2 hours'), event_store.outbox_heartbeat('r', '2 hours');
SELECT leased_until - leased_at > '1 hour' FROM event_store.outbox_slots WHERE relay = 's';
SELECT event_store.outbox_ack('s', (SELECT array_agg(id) FROM event_store.outbox_messages WHERE state = 'leased'));
SELECT payload, state FROM event_store.outbox_messages ORDER BY id;
SELECT event_store.outbox_ack('s', array_agg(id)) FROM event_store.outbox_poll('s');

-- that a slot was found empty counts for nothing when what emptied it is rolled back
SELECT event_store.publish('t', 'a', to_jsonb(i)) > 0 FROM generate_series(1, 3) AS i;
SELECT event_store.append('a-1', 't', '1') IS NOT NULL;
BEGIN;
SELECT event_store.outbox_ack('r', array_agg(id)) FROM event_store.outbox_poll('r');
SELECT count(*) FROM event_store.outbox_poll('r');
ROLLBACK;
SELECT event_store.outbox_ack('s', array_agg(id)) FROM event_store.outbox_poll('s', 1);
SELECT event_store.publish('t', 'a', '4') > 0;
SELECT payload FROM event_store.outbox_poll('r') ORDER BY id;
SELECT event_store.outbox_ack('r', (SELECT array_agg(id) FROM event_store.outbox_messages WHERE state = 'leased'));

-- many keys, several relays: each message once, and each key in order
CREATE TABLE got (n bigserial, relay text, key text, id bigint);
SELECT count(event_store.publish('t', nullif('k' || i % 23, 'k0'), to_jsonb(i))) FROM generate_series(1, 1000) AS i;
DO $$
DECLARE
	_relay text;
	_count bigint;
	_idle int := 0;
BEGIN
	FOR i IN 1 .. 1000 LOOP
		_relay := 'r' || i % 3;
		WITH taken AS (INSERT INTO got (relay, key, id) SELECT _relay, m.key, m.id FROM event_store.outbox_poll(_relay, 1 + i % 40) AS m RETURNING id)
		SELECT event_store.outbox_ack(_relay, coalesce(array_agg(id), '{}')) INTO _count FROM taken;
		_idle := CASE WHEN _count = 0 THEN _idle + 1 ELSE 0 END;
		EXIT WHEN _idle > 3;
	END LOOP;
END $$;
SELECT count(*), count(DISTINCT id), count(DISTINCT relay) FROM got;
SELECT count(*) FROM (SELECT id, max(id) OVER (PARTITION BY key ORDER BY n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM got WHERE key IS NOT NULL) AS x WHERE before > id;
SELECT waiting, leased, age, relays, rate > 0 AS rate FROM event_store.outbox_status;

-- delayed
SELECT event_store.publish('late', 'k', '1', deliver_after => '1 hour') > 0;
SELECT event_store.publish('late', 'k', '2', '{"h": 1}', '00000000-0000-0000-0000-000000000002', deliver_after => '1 hour') > 0;
SELECT event_store.publish('late', 'k', '3') > 0;
SELECT payload, state, due > now() + '50 min' AS far FROM event_store.outbox_messages ORDER BY payload;
SELECT payload FROM event_store.outbox_poll('r');
SELECT event_store.outbox_release('r');
UPDATE event_store.outbox_delayed SET due = clock_timestamp() WHERE payload = '2';
SELECT event_store.tend_outbox();
SELECT message_id, payload, headers FROM event_store.outbox_poll('r') WHERE payload = '2';
SELECT event_store.outbox_ack('r', (SELECT array_agg(id) FROM event_store.outbox_messages WHERE state = 'leased'));
SELECT delayed, waiting + leased AS others FROM event_store.outbox_status;

-- a poll that waits
SELECT count(*) FROM event_store.outbox_poll('r', wait => '10 ms');
SELECT event_store.publish('t', 'w', '1', deliver_after => '30 ms') > 0;
DO $$
DECLARE
	_begin timestamptz := clock_timestamp();
	_n int := 0;
BEGIN
	FOR i IN 1 .. 3 LOOP
		SELECT count(*) INTO _n FROM event_store.outbox_poll('r', wait => '20 s');
		COMMIT;
		EXIT WHEN _n > 0;
	END LOOP;
	RAISE NOTICE '% message, %', _n, CASE WHEN clock_timestamp() < _begin + interval '10 s' THEN 'soon' ELSE 'late' END;
END $$;
SELECT event_store.outbox_ack('r', (SELECT array_agg(id) FROM event_store.outbox_messages WHERE state = 'leased'));

-- paused
SELECT event_store.publish('t', 'p', '1') > 0;
SELECT event_store.alter_outbox(paused => true);
SELECT count(*) FROM event_store.outbox_poll('r');
SELECT event_store.alter_outbox(paused => false);
SELECT event_store.outbox_ack('r', array_agg(id)) FROM event_store.outbox_poll('r');

-- the task of the worker
SELECT command FROM event_store.builtin_tasks() WHERE name = 'tend outbox';

-- tables that have grown are left, and emptied when they are drained
CREATE FUNCTION drain() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	_count bigint;
	_sum bigint := 0;
BEGIN
	LOOP
		SELECT event_store.outbox_ack('r', coalesce(array_agg(id), '{}')) INTO _count FROM event_store.outbox_poll('r', 5000);
		EXIT WHEN _count = 0;
		_sum := _sum + _count;
	END LOOP;
	RETURN _sum;
END $$;
CREATE FUNCTION tables() RETURNS text LANGUAGE sql
RETURN (SELECT string_agg(CASE WHEN pg_relation_size('event_store.outbox_' || n) > 2000000 THEN 'large' WHEN pg_relation_size('event_store.outbox_' || n) > 0 THEN 'small' ELSE 'empty' END, ' ' ORDER BY n) FROM generate_series(0, 3) AS n);
SELECT drain() >= 0, tables();
SELECT count(event_store.publish('t', 'k' || i, jsonb_build_object('x', repeat('x', 400)))) FROM generate_series(1, 6000) AS i;
SELECT tables();
-- it is written no more
SELECT event_store.tend_outbox();
SELECT event_store.publish('t', 'after', '1') > 0;
SELECT tables(), (SELECT last_value FROM event_store.outbox_current);
SELECT waiting FROM event_store.outbox_status;
SELECT drain();
SELECT tables();
-- what waits for a retry, or is dead, keeps no table
SELECT count(event_store.publish('t', 'k' || i, jsonb_build_object('x', repeat('x', 400)))) FROM generate_series(1, 6000) AS i;
SELECT event_store.outbox_nack('r', (SELECT min(id) FROM event_store.outbox_poll('r', 1)), 'no', '1 hour');
SELECT event_store.tend_outbox();
SELECT drain();
SELECT tables();
SELECT state, attempts, error, payload->>'x' = repeat('x', 400) AS whole FROM event_store.outbox_messages WHERE topic = 't';
-- a table that something is left in for long is passed over
SELECT event_store.publish('t', 'held', '1') > 0;
SELECT count(*) FROM event_store.outbox_poll('slow', 1);
DO $$ BEGIN FOR i IN 1 .. 6 LOOP
	PERFORM event_store.publish('t', 'others', jsonb_build_object('x', repeat('x', 1000))) FROM generate_series(1, 2500);
	COMMIT;
	PERFORM drain();
	COMMIT;
END LOOP; END $$;
SELECT (SELECT sum(pg_relation_size('event_store.outbox_' || n)) FROM generate_series(0, 3) AS n) < 10000000 AS small,
	(SELECT count(*) FROM generate_series(0, 3) AS n WHERE pg_relation_size('event_store.outbox_' || n) > 0) <= 2 AS two;
SELECT event_store.outbox_ack('slow', array_agg(id)) FROM event_store.outbox_messages WHERE relay = 'slow';
-- as many changes of slots as fill a table of theirs
DO $$ BEGIN FOR i IN 1 .. 2500 LOOP
	PERFORM event_store.publish('t', 'k', '1');
	COMMIT;
	PERFORM event_store.outbox_poll('r');
	PERFORM event_store.outbox_release('r');
	COMMIT;
END LOOP; END $$;
SELECT pg_relation_size('event_store.outbox_slot_0') + pg_relation_size('event_store.outbox_slot_1') < 1000000, (SELECT last_value > 0 FROM event_store.outbox_slot_current);
SELECT drain();
SELECT acknowledged - (SELECT sum(acknowledged) FROM event_store.outbox_slots) FROM event_store.outbox_status;

DROP FUNCTION drain, tables, take;
DROP VIEW shown;
DROP TABLE got;
