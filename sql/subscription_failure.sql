-- Events that fail: retries, dead letters, what waits behind them, circuit breaker
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(16);
INSERT INTO event_store.events (stream, type, data)
SELECT (ARRAY['a-1', 'a-2', 'a-3'])[1 + (i - 1) % 3], 't', to_jsonb(i) FROM generate_series(1, 30) i;

-- in one transaction: the failure commits with what was done
SELECT event_store.create_subscription('s', first_delay => '0', jitter => 0, max_attempts => 3);
BEGIN;
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('s', 6);
SELECT event_store.nack('s', 2, 'two is bad');
-- what follows in its stream counts for nothing now
SELECT event_store.ack('s', '{1,3,4,5,6}');
COMMIT;
-- it is due at once, alone of its stream; 5 waits behind it
SELECT position, stream, attempt FROM event_store.poll('s', 6);
SELECT event_store.ack('s', '{5}'), event_store.ack('s', '{8}');
SELECT event_store.nack('s', 2, 'again', retry_after => '1 hour');
-- others go on
SELECT array_agg(position) FROM event_store.poll('s', 6);
SELECT event_store.ack_up_to('s', 10);
SELECT retries, waiting, dead_letters, failures, acknowledged, open_events FROM event_store.subscriptions;
-- it may be done before its time, and lets those behind it go
UPDATE event_store.subscription_failure SET due = now(), retry_at = now() WHERE position = 2;
SELECT position, stream, attempt FROM event_store.poll('s', 3);
-- the third time it is a dead letter, and its stream is parked
SELECT event_store.nack('s', 2, 'for good', consumer => 'me');
SELECT event_store.nack('s', 2, 'for good');
SELECT array_agg(position) FROM event_store.poll('s');
SELECT event_store.ack_up_to('s', 100);
SELECT count(*) FROM event_store.poll('s');
SELECT position, stream, version, type, attempts, error, consumer, parked, data FROM event_store.dead_letters('s');
SELECT retries, waiting, dead_letters, failures, acknowledged, open_events FROM event_store.subscriptions;
-- new events of it are parked, others are not
SELECT last_position FROM event_store.append('a-2', 't', '31');
SELECT last_position FROM event_store.append('a-3', 't', '32');
SELECT array_agg(position) FROM event_store.poll('s');
SELECT event_store.ack('s', '{31,32}');
-- replayed it comes back first, with all that is behind it, in order, before newer ones
SELECT event_store.replay_dead_letters('s', stream => 'a-1'), event_store.replay_dead_letters('s', 5), event_store.replay_dead_letters('s', stream => 'a-2');
SELECT last_position FROM event_store.append('a-2', 't', '33');
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('s');
SELECT event_store.ack('s', '{2}');
BEGIN;
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('s', 4);
SELECT count(*) FROM event_store.poll('s', 4);
SELECT event_store.ack('s', '{5,8,11}');
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('s', 4);
COMMIT;
SELECT array_agg(position) FROM event_store.poll('s');
SELECT event_store.ack('s', (SELECT array_agg(position) FROM event_store.poll('s')));
SELECT retries, waiting, dead_letters, acknowledged, open_events FROM event_store.subscriptions;

-- discarded
SELECT event_store.alter_subscription('s', max_attempts => 1);
SELECT last_position FROM event_store.append_events('a-1', '[{"type":"t","data":1},{"type":"t","data":2},{"type":"t","data":3}]');
SELECT event_store.nack('s', 34, 'bad');
SELECT event_store.ack_up_to('s', 100);
SELECT waiting, dead_letters FROM event_store.subscriptions;
SELECT raises('SELECT event_store.discard_dead_letters(''s'', '' '')');
SELECT event_store.discard_dead_letters('s', 'no use', 99), event_store.discard_dead_letters('s', 'no use', 34);
SELECT array_agg(position) FROM event_store.poll('s');
-- the last one open of the three fails: those before it stay in front of it
SELECT event_store.nack('s', 36, 'bad');
SELECT array_agg(position) FROM event_store.poll('s');
SELECT event_store.ack('s', '{35}');
SELECT event_store.discard_dead_letters('s', 'nor that');
SELECT open_events, lag FROM event_store.subscriptions;
SELECT change, detail FROM event_store.subscription_history ORDER BY at;

-- earlier events of the stream that are open keep their place
SELECT event_store.create_subscription('order', first_delay => '0', jitter => 0);
BEGIN;
SELECT array_agg(position) FROM event_store.poll('order', 9);
SELECT event_store.nack('order', 7, 'third of its stream');
SELECT event_store.nack('order', 4, 'second of its stream');
COMMIT;
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('order', 4);
SELECT event_store.ack('order', '{1}');
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('order', 4);
SELECT event_store.ack('order', '{7}'), event_store.ack('order', '{4}');
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('order', 1);
SELECT event_store.ack('order', '{7}');
SELECT waiting, retries FROM event_store.subscriptions WHERE name = 'order';
-- a rollback to a savepoint takes a failure back
BEGIN;
SELECT array_agg(position) FROM event_store.poll('order', 3);
SAVEPOINT a;
SELECT event_store.nack('order', 2, 'bad');
ROLLBACK TO a;
SELECT array_agg(position) FROM event_store.poll('order', 3);
SELECT event_store.ack_up_to('order', 3);
COMMIT;
SELECT checkpoint, waiting, retries FROM event_store.subscriptions WHERE name = 'order';
-- acknowledged at once, retries too
SELECT event_store.nack('order', 5, 'bad');
SELECT array_agg(position) FROM event_store.poll('order', 2, auto_ack => true);
SELECT array_agg(position) FROM event_store.poll('order', 2, auto_ack => true);
SELECT checkpoint, waiting, retries FROM event_store.subscriptions WHERE name = 'order';
-- a rewind forgets what has failed behind it
SELECT event_store.nack('order', 9, 'bad');
SELECT event_store.rewind_subscription('order', 8);
SELECT position, attempt, is_replay FROM event_store.poll('order', 2);
SELECT retries, replaying FROM event_store.subscriptions WHERE name = 'order';
-- in REPEATABLE READ
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT array_agg(position) FROM event_store.poll('order', 2);
SELECT event_store.nack('order', 10, 'bad'), event_store.ack('order', '{9,13}');
SELECT raises('SELECT event_store.poll(''order'', consumer => ''c'')');
COMMIT;
SELECT retries, acknowledged FROM event_store.subscriptions WHERE name = 'order';

-- delays: first_delay, then by the factor, up to the ceiling, and jitter about it
SELECT event_store.create_subscription('delay', max_attempts => 6, first_delay => '10 s', delay_factor => 3, max_delay => '100 s', jitter => 0);
DO $$ BEGIN
	FOR _i IN 1 .. 4 LOOP
		PERFORM event_store.nack('delay', 1, 'bad');
		RAISE NOTICE '%', (SELECT round(extract(epoch FROM due - failed_at)) FROM event_store.subscription_failure f JOIN event_store.subscription s ON s.id = f.subscription_id WHERE s.name = 'delay');
		UPDATE event_store.subscription_failure SET due = now() WHERE position = 1;
	END LOOP;
END $$;
SELECT event_store.alter_subscription('delay', jitter => 0.5, max_attempts => 1000, first_delay => '100 s');
DO $$ DECLARE _delays float8[]; BEGIN
	FOR _i IN 1 .. 200 LOOP
		PERFORM event_store.nack('delay', 1, 'bad');
		_delays := _delays || (SELECT extract(epoch FROM due - failed_at)::float8 FROM event_store.subscription_failure f JOIN event_store.subscription s ON s.id = f.subscription_id WHERE s.name = 'delay');
		UPDATE event_store.subscription_failure SET due = now() WHERE position = 1;
	END LOOP;
	RAISE NOTICE 'all within: %, spread: %', (SELECT bool_and(d BETWEEN 49.9 AND 150.1) FROM unnest(_delays) d), (SELECT max(d) - min(d) > 50 FROM unnest(_delays) d);
END $$;

-- circuit breaker
SELECT event_store.create_subscription('breaker', breaker_failures => 3, breaker_timeout => '1 hour', breaker_probes => 2, first_delay => '1 hour');
SELECT event_store.nack('breaker', 1, 'bad'), event_store.nack('breaker', 2, 'bad');
SELECT breaker FROM event_store.subscriptions WHERE name = 'breaker';
SELECT count(*) FROM event_store.poll('breaker', 1);
SELECT event_store.nack('breaker', 3, 'bad');
SELECT breaker, breaker_until > now() AS later FROM event_store.subscriptions WHERE name = 'breaker';
SELECT count(*) FROM event_store.poll('breaker');
UPDATE event_store.subscription_breaker SET until = now() WHERE state = 'open';
INSERT INTO event_store.events (stream, type, data) SELECT 'b-' || i, 't', '1' FROM generate_series(1, 10) i;
SELECT count(*) FROM event_store.poll('breaker');
SELECT breaker, breaker_until FROM event_store.subscriptions WHERE name = 'breaker';
-- one that fails opens it again
SELECT event_store.nack('breaker', (SELECT min(position) FROM event_store.poll('breaker')), 'bad');
SELECT breaker FROM event_store.subscriptions WHERE name = 'breaker';
UPDATE event_store.subscription_breaker SET until = now() WHERE state = 'open';
SELECT event_store.ack('breaker', (SELECT array_agg(position) FROM event_store.poll('breaker', 1)));
SELECT breaker FROM event_store.subscriptions WHERE name = 'breaker';
SELECT event_store.ack('breaker', (SELECT array_agg(position) FROM event_store.poll('breaker', 1)));
SELECT breaker FROM event_store.subscriptions WHERE name = 'breaker';
-- failures of before do not count again
SELECT event_store.nack('breaker', (SELECT min(position) FROM event_store.poll('breaker')), 'bad');
SELECT breaker FROM event_store.subscriptions WHERE name = 'breaker';
SELECT event_store.reset_breaker('breaker');
SELECT change FROM event_store.subscription_history WHERE subscription = 'breaker' ORDER BY at;

-- what is dead survives a change of what is read, and counts as open
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY[
	'nack(NULL, 1, ''x'')', 'nack(''none'', 1, ''x'')', 'nack(''s'', NULL, ''x'')', 'nack(''s'', 1, NULL)', 'nack(''s'', 1, ''x'', ''-1 s'')',
	'nack(''s'', 1, ''x'', consumer => '''')', 'ack(''s'', ''{1}'', '''')', 'ack_up_to(''s'', 1, E''a\nb'')',
	'replay_dead_letters(''none'')', 'replay_dead_letters(''s'', 1, ''a-1'')', 'discard_dead_letters(''s'', NULL)', 'discard_dead_letters(''none'', ''x'')',
	'discard_dead_letters(''s'', ''x'', 1, ''a-1'')', 'reset_breaker(''none'')',
	'create_subscription(''n'', max_attempts => 0)', 'create_subscription(''n'', first_delay => ''-1 s'')', 'create_subscription(''n'', delay_factor => 0.5)',
	'create_subscription(''n'', delay_factor => ''NaN'')', 'create_subscription(''n'', max_delay => ''2 years'')', 'create_subscription(''n'', jitter => 1.5)',
	'create_subscription(''n'', breaker_failures => -1)', 'create_subscription(''n'', breaker_window => ''0'')', 'create_subscription(''n'', breaker_probes => 0)',
	'alter_subscription(''s'', jitter => -1)']) call;
SELECT event_store.nack('s', 10000, 'not there'), event_store.nack('s', 1, 'done'), event_store.nack('s', 0, 'none'), event_store.nack('s', -5, 'none');
SELECT count(*) FROM event_store.dead_letters('none');
BEGIN READ ONLY;
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY['nack(''s'', 1, ''x'')', 'replay_dead_letters(''s'')', 'discard_dead_letters(''s'', ''x'')', 'reset_breaker(''s'')', 'heartbeat(''s'', ''c'')', 'leave(''s'', ''c'')']) call;
ROLLBACK;
SELECT event_store.drop_subscription(name) FROM event_store.subscriptions;
SELECT (SELECT count(*) FROM event_store.subscription_failure), (SELECT count(*) FROM event_store.subscription_breaker), (SELECT count(*) FROM event_store.subscription_change), (SELECT count(*) FROM event_store.subscription_fault);
