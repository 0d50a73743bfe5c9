-- Leases, groups of consumers and their slots, competing consumers
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(64);
INSERT INTO event_store.events (stream, type, data)
SELECT 'a-' || i % 7, 't', to_jsonb(i) FROM generate_series(1, 70) i;
-- ends leases, without waiting for it
CREATE FUNCTION silence(_subscription text, _consumer text) RETURNS void LANGUAGE sql AS $$
	UPDATE event_store.subscription_batch SET leased_until = now() WHERE consumer = _consumer;
	UPDATE event_store.subscription_failure SET leased_until = now(), due = now() WHERE consumer = _consumer;
	UPDATE event_store.subscription_heartbeat SET alive_until = now() WHERE consumer = _consumer;
$$;

-- a lease: beyond the transaction, for one consumer
SELECT event_store.create_subscription('one', first_delay => '0', jitter => 0, max_attempts => 2);
SELECT array_agg(position) FROM event_store.poll('one', 5, 'c1', lease => '1 min');
SELECT count(*) FROM event_store.poll('one', 5, 'c2', lease => '1 min');
SELECT count(*) FROM event_store.poll('one', 5);
SELECT array_agg(position) FROM event_store.poll('one', 3, 'c1', lease => '1 min');
SELECT leased, queued, acknowledged, open_events, consumers FROM event_store.subscriptions;
SELECT event_store.ack('one', '{1,2}', 'c2'), event_store.ack('one', '{1,2,9}', 'c1'), event_store.ack_up_to('one', 4), event_store.ack_up_to('one', 4, 'c1');
SELECT leased, acknowledged, checkpoint FROM event_store.subscriptions;
-- failed under a lease: what is behind it is recalled
SELECT event_store.nack('one', 5, 'bad', consumer => 'c2'), event_store.nack('one', 1, 'bad', consumer => 'c1'), event_store.nack('one', 6, 'bad', consumer => 'c1');
SELECT event_store.ack_up_to('one', 8, 'c1');
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('one', 4, 'c1', lease => '1 min');
SELECT leased, waiting, retries FROM event_store.subscriptions;
-- the second time it is dead
SELECT event_store.nack('one', 6, 'bad', consumer => 'c1');
SELECT event_store.ack('one', '{9,10,11}', 'c1');
SELECT position, attempts, consumer FROM event_store.dead_letters('one');
-- who falls silent loses what it has: another gets it, each event alone
SELECT array_agg(position) FROM event_store.poll('one', 4, 'c1', lease => '1 min');
SELECT silence('one', 'c1');
SELECT position, attempt FROM event_store.poll('one', 100, 'c2', lease => '1 min');
-- late, but nobody has it yet
SELECT event_store.ack('one', '{14}', 'c1');
SELECT event_store.ack('one', '{12}', 'c2');
SELECT position, attempt FROM event_store.poll('one', 100, 'c2', lease => '1 min');
-- it kills the next one, too: dead
SELECT silence('one', 'c2');
SELECT position, attempt FROM event_store.poll('one', 100, 'c3', lease => '1 min');
SELECT event_store.ack('one', '{15}', 'c3');
SELECT position, attempts, error, consumer FROM event_store.dead_letters('one');
SELECT array_agg(position) FROM event_store.poll('one', 5, 'c3', lease => '1 min');
-- leaving counts for nothing
SELECT event_store.leave('one', 'c3'), event_store.leave('one', 'c3');
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('one', 5, 'c4', lease => '1 min');
SELECT event_store.heartbeat('one', 'c4'), event_store.heartbeat('one', 'c5'), event_store.leave('one', 'c5');
SELECT event_store.discard_dead_letters('one', 'x'), event_store.ack_up_to('one', 100, 'c4');
SELECT array_agg(position ORDER BY position) FROM event_store.poll('one', NULL, 'c4', lease => '1 min');
SELECT event_store.ack('one', '{17}', 'c4');
SELECT array_agg(position ORDER BY position), count(*) FROM event_store.poll('one', 10, 'c4', lease => '1 min');
SELECT event_store.ack_up_to('one', 22, 'c4'), event_store.ack_up_to('one', 22, 'c4');
SELECT checkpoint, acknowledged, waiting, leased FROM event_store.subscriptions;
-- one by one, in a transaction of its own each
BEGIN;
SELECT array_agg(position) FROM event_store.poll('one', 3, 'c4');
SELECT event_store.ack_up_to('one', 1000, 'c4');
COMMIT;
SELECT checkpoint, acknowledged, waiting, leased FROM event_store.subscriptions;

-- the first time it falls silent, its events come together again; then each alone, until the one that kills is dead
SELECT event_store.create_subscription('deadly', types => '{t}', max_attempts => 4);
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('deadly', 9, 'c1', lease => '1 min');
SELECT silence('deadly', 'c1');
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('deadly', 9, 'c2', lease => '1 min');
DO $$
DECLARE
	_event record;
	_polls int := 0;
	_done bigint[] := '{}';
BEGIN
	PERFORM silence('deadly', 'c2');
	LOOP
		_polls := _polls + 1;
		SELECT array_agg(position) AS positions, array_agg(attempt) AS attempts INTO _event
			FROM event_store.poll('deadly', 9, 'd' || _polls, lease => '1 min');
		EXIT WHEN _event.positions IS NULL OR _event.positions[1] > 9;
		IF _event.positions = '{3}' THEN
			RAISE NOTICE '%', _event;
			PERFORM silence('deadly', 'd' || _polls);
		ELSE
			_done := _done || _event.positions;
			PERFORM event_store.ack('deadly', _event.positions, 'd' || _polls);
			PERFORM event_store.leave('deadly', 'd' || _polls);
		END IF;
		EXIT WHEN _polls = 100;
	END LOOP;
	RAISE NOTICE '% polls: %', _polls, _done;
END $$;
SELECT position, attempts, error, parked FROM event_store.dead_letters('deadly');
SELECT change, detail FROM event_store.subscription_history WHERE subscription = 'deadly' ORDER BY at LIMIT 3;

-- slots: each stream has one, each slot one owner
SELECT event_store.create_subscription('group', slots => 4, first_delay => '0', jitter => 0);
CREATE TABLE got (n serial, consumer text, position bigint, stream text);
INSERT INTO got (consumer, position, stream) SELECT 'a', position, stream FROM event_store.poll('group', 10, 'a', lease => '1 min');
SELECT consumers FROM event_store.subscriptions WHERE name = 'group';
INSERT INTO got (consumer, position, stream) SELECT 'b', position, stream FROM event_store.poll('group', 10, 'b', lease => '1 min');
-- b is there, but nothing is free before a polls again
SELECT count(*) FROM got WHERE consumer = 'b';
INSERT INTO got (consumer, position, stream) SELECT 'a', position, stream FROM event_store.poll('group', 10, 'a', lease => '1 min');
INSERT INTO got (consumer, position, stream) SELECT 'b', position, stream FROM event_store.poll('group', 10, 'b', lease => '1 min');
SELECT (SELECT array_length(slots, 1) FROM event_store.subscription_consumer WHERE consumer = 'a'), (SELECT array_length(slots, 1) FROM event_store.subscription_consumer WHERE consumer = 'b');
-- of a slot that has moved b gets nothing while a has something of it
SELECT count(*) FROM (SELECT stream FROM got GROUP BY stream HAVING count(DISTINCT consumer) > 1) s;
SELECT event_store.ack('group', (SELECT array_agg(position) FROM got WHERE consumer = 'a'), 'a') = (SELECT count(*) FROM got WHERE consumer = 'a') AS all_of_a;
SELECT event_store.ack('group', (SELECT array_agg(position) FROM got WHERE consumer = 'b'), 'b') = (SELECT count(*) FROM got WHERE consumer = 'b') AS all_of_b;
DO $$
DECLARE
	_consumer text;
	_n int;
	_idle int := 0;
BEGIN
	WHILE _idle < 2 LOOP
		FOREACH _consumer IN ARRAY ARRAY['a', 'b'] LOOP
			INSERT INTO got (consumer, position, stream) SELECT _consumer, position, stream FROM event_store.poll('group', 7, _consumer, lease => '1 min');
			GET DIAGNOSTICS _n = ROW_COUNT;
			_idle := CASE WHEN _n = 0 THEN _idle + 1 ELSE 0 END;
			PERFORM event_store.ack_up_to('group', 1000, _consumer);
		END LOOP;
	END LOOP;
END $$;
SELECT count(*), count(DISTINCT position) FROM got;
SELECT count(*) AS out_of_order FROM (SELECT position, lag(position) OVER (PARTITION BY stream ORDER BY n) AS before FROM got) x WHERE before > position;
SELECT open_events, acknowledged, queued, leased FROM event_store.subscriptions WHERE name = 'group';
SELECT count(DISTINCT consumer) FROM got;

-- without names: each transaction takes what is free
SELECT event_store.leave('group', 'a'), event_store.leave('group', 'b');
SELECT event_store.rewind_subscription('group');
BEGIN;
SELECT count(*), bool_and(is_replay) FROM event_store.poll('group', 20);
SELECT count(*) FROM event_store.poll('group', NULL);
SELECT count(*) FROM event_store.poll('group');
SELECT event_store.nack('group', 8, 'bad');
SELECT event_store.ack_up_to('group', 30);
COMMIT;
-- 1 is in front of 8, 15 … behind: of this stream nothing came through but what was in front
SELECT event_store.ack('group', '{15}');
SELECT queued, leased, retries, waiting FROM event_store.subscriptions WHERE name = 'group';
SELECT array_agg(position ORDER BY position) FILTER (WHERE stream = 'a-1'), count(*) FROM event_store.poll('group', NULL);
SELECT event_store.ack('group', '{8}');
-- another number of slots: nothing is lost, nothing comes twice
TRUNCATE got RESTART IDENTITY;
INSERT INTO got (consumer, position, stream) SELECT 'c', position, stream FROM event_store.poll('group', 5, 'c', lease => '1 min');
SELECT event_store.alter_subscription('group', slots => 9);
SELECT slots FROM event_store.subscriptions WHERE name = 'group';
SELECT count(*) FROM event_store.poll('group', 5, 'c', lease => '1 min');
SELECT count(*) FROM event_store.poll('group', 5, 'd', lease => '1 min');
SELECT event_store.ack_up_to('group', 1000, 'c');
INSERT INTO got (consumer, position, stream) SELECT 'd', position, stream FROM event_store.poll('group', 5, 'd', lease => '1 min');
INSERT INTO got (consumer, position, stream) SELECT 'c', position, stream FROM event_store.poll('group', 5, 'c', lease => '1 min');
SELECT event_store.ack_up_to('group', 1000, 'c') + event_store.ack_up_to('group', 1000, 'd');
SELECT slots FROM event_store.subscriptions WHERE name = 'group';
SELECT event_store.leave('group', 'c'), event_store.leave('group', 'd');
SELECT event_store.alter_subscription('group', slots => 1);
SELECT slots FROM event_store.subscriptions WHERE name = 'group';
INSERT INTO got (consumer, position, stream) SELECT 'e', position, stream FROM event_store.poll('group', 11);
SELECT event_store.ack('group', (SELECT array_agg(position) FROM got WHERE consumer = 'e'));
INSERT INTO event_store.events (stream, type, data) SELECT 'a-' || i % 7, 't', to_jsonb(i) FROM generate_series(1, 14) i;
INSERT INTO got (consumer, position, stream) SELECT 'f', position, stream FROM event_store.poll('group', NULL, auto_ack => true);
SELECT count(*), count(DISTINCT position), min(position), max(position) FROM got;
SELECT count(*) AS out_of_order FROM (SELECT position, lag(position) OVER (PARTITION BY stream ORDER BY n) AS before FROM got) x WHERE before > position;
SELECT open_events FROM event_store.subscriptions WHERE name = 'group';
SELECT change, detail FROM event_store.subscription_history WHERE subscription = 'group' ORDER BY at;

-- competing: by priority, each to whoever comes
SELECT event_store.create_subscription('work', mode => 'competing', priority_key => 'priority', start_after => NULL, first_delay => '0', max_attempts => 2);
INSERT INTO event_store.events (stream, type, data, metadata)
SELECT 'job-' || i % 3, 't', to_jsonb(i), CASE WHEN i % 10 = 0 THEN '{"priority": 5}' WHEN i % 10 = 5 THEN '{"priority": -1.4}' WHEN i % 10 = 7 THEN '{"priority": "high"}' ELSE '{}' END::jsonb FROM generate_series(1, 40) i;
SELECT array_agg(data) FROM event_store.poll('work', 10, 'w1', lease => '1 min');
SELECT array_agg(data) FROM event_store.poll('work', 10, lease => '1 min');
SELECT array_agg(data) FROM event_store.poll('work', 3);
BEGIN;
SELECT array_agg(data) FROM event_store.poll('work', 3);
SELECT array_agg(data) FROM event_store.poll('work', NULL);
SELECT count(*) FROM event_store.poll('work');
SELECT event_store.nack('work', (SELECT position FROM event_store.events WHERE stream LIKE 'job%' AND data = '35'), 'bad');
SELECT event_store.ack('work', (SELECT array_agg(position) FROM event_store.events WHERE stream LIKE 'job%' AND data IN ('5', '15', '25'))) AS acked;
SELECT data, attempt FROM event_store.poll('work');
COMMIT;
SELECT data, attempt FROM event_store.poll('work', 1);
SELECT event_store.nack('work', (SELECT min(position) FROM event_store.poll('work', 1)), 'bad');
SELECT data, attempts, parked FROM event_store.dead_letters('work');
SELECT leased, queued, dead_letters, open_events FROM event_store.subscriptions WHERE name = 'work';
SELECT event_store.ack_up_to('work', 10000, 'w1');
SELECT event_store.ack('work', (SELECT array_agg(position) FROM event_store.events));
SELECT leased, queued, dead_letters, open_events FROM event_store.subscriptions WHERE name = 'work';
SELECT event_store.replay_dead_letters('work');
SELECT data, attempt FROM event_store.poll('work', auto_ack => true);
SELECT open_events FROM event_store.subscriptions WHERE name = 'work';

-- an acknowledgement renews all that the consumer has, what waits for it in front of a failed one, too
SELECT event_store.create_subscription('renewed', first_delay => '1 hour');
SELECT count(*) FROM event_store.poll('renewed', 20, 'r', lease => '1 hour');
SELECT event_store.nack('renewed', 8, 'bad', consumer => 'r');
UPDATE event_store.subscription_batch SET leased_until = now() + '10 min' WHERE consumer = 'r';
UPDATE event_store.subscription_failure SET leased_until = now() + '10 min', due = now() + '10 min' WHERE consumer = 'r';
SELECT event_store.ack('renewed', '{2}', 'r');
SELECT position, attempts, leased_until > now() + interval '30 min' AS renewed, due = leased_until AS due_then
FROM event_store.subscription_failure WHERE consumer = 'r';
SELECT event_store.ack('renewed', '{1}', 'r');

-- a consumer that falls silent has failed once, however much it had
SELECT event_store.create_subscription('silent', slots => 4, breaker_failures => 3, breaker_timeout => '1 hour', first_delay => '0');
SELECT event_store.nack('silent', min(position), 'bad', consumer => 's1') FROM event_store.poll('silent', 3, 's1', lease => '1 hour');
SELECT count(*) FROM event_store.poll('silent', 3, 's1', lease => '2 hours');
SELECT count(*) FROM event_store.poll('silent', 30, 's1', lease => '3 hours');
SELECT count(*) FROM event_store.poll('silent', 1, 's2', lease => '1 hour');
SELECT count(*) FROM event_store.poll('silent', 1, 's3', lease => '1 hour');
SELECT failures, breaker FROM event_store.subscriptions WHERE name = 'silent';
SELECT silence('silent', 's1');
-- those who take its slots over find parts of it, one after the other
SELECT count(*) > 0 AS some FROM event_store.poll('silent', 5, 's2', lease => '1 hour');
SELECT count(*) > 0 AS some FROM event_store.poll('silent', 5, 's3', lease => '1 hour');
SELECT failures, breaker FROM event_store.subscriptions WHERE name = 'silent';
SELECT count(*) FROM event_store.subscription_fault WHERE consumer = 's1' AND failures = 0;
SELECT event_store.reset_breaker('silent');
SELECT silence('silent', 's2'), silence('silent', 's3');
SELECT count(*) > 0 AS some FROM event_store.poll('silent', 5, 's4', lease => '1 hour');
SELECT failures, breaker FROM event_store.subscriptions WHERE name = 'silent';

-- half-open, and who has the probes falls silent: they are taken back, and the breaker opens again
SELECT event_store.create_subscription('probe', mode => 'competing', breaker_failures => 1, breaker_timeout => '0', breaker_probes => 2, first_delay => '0');
SELECT event_store.nack('probe', min(position), 'bad') FROM event_store.poll('probe', 1);
SELECT count(*) FROM event_store.poll('probe', 5, 'p1', lease => '1 hour');
SELECT count(*) FROM event_store.poll('probe', 5, 'p2', lease => '1 hour');
SELECT silence('probe', 'p1');
SELECT count(*) FROM event_store.poll('probe', 5, 'p2', lease => '1 hour');
SELECT failures, breaker, leased FROM event_store.subscriptions WHERE name = 'probe';

SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY[
	'create_subscription(''n'', mode => ''other'')', 'create_subscription(''n'', mode => ''competing'', slots => 2)', 'create_subscription(''n'', slots => 0)',
	'create_subscription(''n'', slots => 2000)', 'create_subscription(''n'', priority_key => ''p'')', 'create_subscription(''n'', mode => ''competing'', priority_key => '''')',
	'alter_subscription(''work'', slots => 2)', 'alter_subscription(''group'', slots => 0)',
	'poll(''one'', lease => ''1 min'')', 'poll(''one'', consumer => ''c'', lease => ''0'')', 'poll(''one'', consumer => ''c'', lease => ''-1 min'')',
	'poll(''one'', consumer => ''c'', lease => ''1 min'', auto_ack => true)', 'poll(''one'', consumer => '''')',
	'heartbeat(''one'', NULL)', 'heartbeat(''one'', ''c'', NULL)', 'heartbeat(''one'', ''c'', ''0'')', 'heartbeat(''none'', ''c'')', 'leave(''one'', NULL)', 'leave(''none'', ''c'')']) call;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT raises('SELECT event_store.poll(''work'')'), raises('SELECT event_store.ack(''work'', ''{1}'')');
ROLLBACK;
SELECT event_store.drop_subscription(name) FROM event_store.subscriptions;
SELECT (SELECT count(*) FROM event_store.subscription_batch), (SELECT count(*) FROM event_store.subscription_failure), (SELECT count(*) FROM event_store.subscription_consumer);
DROP TABLE got;
DROP FUNCTION silence;
