-- Messages that fail: retries, dead letters, relays that fall silent, circuit breaker
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
CREATE VIEW shown AS SELECT id, key, state, relay, attempts, error FROM event_store.outbox_messages ORDER BY id;
CREATE FUNCTION take(relay text, max_count int = 100, lease interval = '1 hour') RETURNS text LANGUAGE sql
RETURN (SELECT string_agg(concat_ws(' ', id, key, attempt), ', ' ORDER BY id) FROM event_store.outbox_poll(relay, max_count, lease));

SELECT event_store.alter_outbox(max_attempts => 3, first_delay => '0', jitter => 0);
SELECT count(event_store.publish('t', 'a', to_jsonb(i))) FROM generate_series(1, 5) AS i;
SELECT event_store.publish('t', 'b', '6');
SELECT take('r');
-- the one before it may still be acknowledged, those behind it must wait
SELECT event_store.outbox_nack('r', 3, 'three is bad');
SELECT * FROM shown;
SELECT event_store.outbox_ack('r', '{1,4,5,6}');
SELECT * FROM shown;
-- it waits for 2, which the relay has
SELECT take('s');
SELECT event_store.outbox_ack('r', '{2}');
SELECT take('s');
SELECT event_store.outbox_nack('r', 3, 'not yours'), event_store.outbox_nack('s', 3, 'again', '1 hour');
SELECT id, state, attempts, due > now() + '50 min' AS far, error FROM event_store.outbox_messages ORDER BY id;
-- what is published later waits behind it
SELECT event_store.publish('t', 'a', '7');
SELECT take('s');
SELECT * FROM shown;
-- the time has come
UPDATE event_store.subscription_failure SET due = now(), retry_at = now() WHERE position = 3;
SELECT take('s');
SELECT event_store.outbox_nack('s', 3, 'for good');
SELECT take('s');
SELECT id, key, attempts, error, relay, parked, payload FROM event_store.outbox_dead_letters;
SELECT dead_letters, parked, failures, waiting FROM event_store.outbox_status;
-- somebody decides
SELECT event_store.outbox_discard_dead_letters('');
SELECT event_store.outbox_discard_dead_letters('no', 3, 'a');
SELECT event_store.outbox_replay_dead_letters(99), event_store.outbox_replay_dead_letters(key => 'b');
SELECT event_store.outbox_replay_dead_letters(key => 'a');
SELECT take('s');
SELECT event_store.outbox_nack('s', 3, 'x'), event_store.outbox_ack('s', '{4}');
SELECT take('s');
SELECT event_store.outbox_nack('s', 3, 'x');
SELECT take('s');
SELECT event_store.outbox_nack('s', 3, 'x');
SELECT event_store.outbox_discard_dead_letters('it is useless', 3);
SELECT take('s');
SELECT event_store.outbox_ack('s', '{4,5,7}');
SELECT * FROM shown;
SELECT count(*) FROM event_store.outbox_kept;
SELECT change, detail FROM event_store.outbox_history ORDER BY at;
SELECT acknowledged FROM event_store.outbox_status;

-- who decides must see what there is now
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT event_store.outbox_replay_dead_letters();
ROLLBACK;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT event_store.outbox_discard_dead_letters('no');
ROLLBACK;

-- a relay that falls silent: together once more, then one at a time
SELECT event_store.publish('t', 'c', to_jsonb(i)) FROM generate_series(8, 9) AS i;
SELECT event_store.publish('t', 'd', '10');
SELECT take('dead', lease => '1 ms');
SELECT pg_sleep(0.01);
SELECT take('r', lease => '1 ms');
SELECT * FROM shown;
SELECT pg_sleep(0.01);
-- who has one of these has nothing else
SELECT take('r') ~ '^\d+ . 3$' AS one, take('r') AS more, take('s') ~ '^\d+ . 3$' AS another;
SELECT id, state, attempts FROM shown WHERE relay IS NULL;
DO $$ BEGIN FOR i IN 1 .. 2 LOOP
	PERFORM event_store.outbox_ack(relay, array_agg(id)) FROM event_store.outbox_messages WHERE relay IS NOT NULL GROUP BY relay;
	COMMIT;
	PERFORM take('r');
	COMMIT;
END LOOP; END $$;
SELECT * FROM shown;
-- what comes too late counts for nothing
SELECT event_store.publish('t', 'e', '11');
SELECT take('dead', lease => '1 ms');
SELECT pg_sleep(0.01);
SELECT take('r');
SELECT event_store.outbox_ack('dead', '{11}'), event_store.outbox_nack('dead', 11, 'x'), event_store.outbox_heartbeat('dead');
SELECT event_store.outbox_ack('r', '{11}');
-- as long as nobody has noticed, it does
SELECT event_store.publish('t', 'e', '12');
SELECT take('slow', lease => '1 ms');
SELECT pg_sleep(0.01);
SELECT event_store.outbox_ack('slow', '{12}');
-- what it gives back counts for no attempt, of what has failed neither
SELECT event_store.publish('t', 'f', to_jsonb(i)) FROM generate_series(13, 14) AS i;
SELECT take('r');
SELECT event_store.outbox_nack('r', 13, 'x');
SELECT take('r');
SELECT event_store.outbox_heartbeat('r');
SELECT event_store.outbox_release('r'), event_store.outbox_release('r');
SELECT take('s');
SELECT event_store.outbox_ack('s', '{13}');
SELECT take('s');
SELECT event_store.outbox_ack('s', '{14}');

-- in one transaction, rolled back in part
SELECT event_store.publish('t', 'g', to_jsonb(i)) FROM generate_series(15, 17) AS i;
BEGIN;
SELECT take('r');
SAVEPOINT s;
SELECT event_store.outbox_nack('r', 15, 'x');
SELECT event_store.outbox_ack('r', '{16}');
ROLLBACK TO s;
SELECT event_store.outbox_ack('r', '{15}');
SELECT event_store.outbox_nack('r', 16, 'x');
COMMIT;
SELECT * FROM shown;
SELECT take('r');
SELECT event_store.outbox_ack('r', '{16}');
SELECT take('r');
SELECT event_store.outbox_ack('r', '{17}');

-- circuit breaker
SELECT event_store.alter_outbox(breaker_failures => 2, breaker_timeout => '1 hour', breaker_probes => 2, max_attempts => 10);
SELECT event_store.publish('t', 'h' || i, to_jsonb(i)) FROM generate_series(18, 22) AS i;
SELECT take('r') IS NOT NULL;
SELECT event_store.outbox_nack('r', 18, 'x'), event_store.outbox_nack('r', 19, 'x');
SELECT breaker FROM event_store.outbox_status;
SELECT take('s');
SELECT event_store.outbox_ack('r', '{20,21,22}');
UPDATE event_store.subscription_breaker SET until = now() WHERE state = 'open';
SELECT take('s', 1) IS NOT NULL, take('s') IS NOT NULL, take('s');
SELECT breaker FROM event_store.outbox_status;
SELECT event_store.outbox_ack('s', '{18,19}');
SELECT breaker FROM event_store.outbox_status;
SELECT * FROM shown;
SELECT count(*) FROM event_store.outbox_kept;

-- what a relay had that fell silent goes to another, however much of few keys it was
SELECT event_store.alter_outbox(breaker_failures => 0, max_attempts => 10);
SELECT count(event_store.publish('t', 'k' || i % 3, to_jsonb(i))) FROM generate_series(1, 3000) AS i;
SELECT count(*) FROM event_store.outbox_poll('r', 3000, lease => '10 ms');
SELECT pg_sleep(0.02);
SET statement_timeout = '30 s';
CREATE TEMPORARY TABLE taken AS SELECT id, key, payload FROM event_store.outbox_poll('s', 3000);
SELECT count(*), count(DISTINCT key) FROM taken;
SELECT event_store.outbox_ack('s', ARRAY(SELECT id FROM taken));
RESET statement_timeout;
SELECT * FROM shown;
DROP TABLE taken;

-- Slots that have forgotten how far they had come, as after a dump whose snapshot was older
-- than the emptying of one of their tables: what was kept is kept once.
SELECT event_store.alter_outbox(breaker_failures => 0, max_attempts => 1);
SELECT count(event_store.publish('t', 'i', to_jsonb(i))) FROM generate_series(1, 3) AS i;
SELECT event_store.outbox_nack('r', (SELECT min(id) FROM event_store.outbox_poll('r') WHERE key = 'i'), 'x');
SELECT event_store.publish('t', 'i', '4') > 0;
TRUNCATE event_store.outbox_slot_0, event_store.outbox_slot_1;
SELECT count(*) FROM event_store.outbox_poll('r', 10000) WHERE key = 'i';
SELECT payload, state FROM event_store.outbox_messages WHERE key = 'i' ORDER BY id;
SELECT event_store.outbox_discard_dead_letters('x');
SELECT payload FROM event_store.outbox_poll('s', 10000) WHERE key = 'i';

DROP FUNCTION take;
DROP VIEW shown;
