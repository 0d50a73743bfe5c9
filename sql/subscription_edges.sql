-- Subscriptions where things meet: savepoints, restarts, rewinds, other numbers of slots, with leases and failures
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
INSERT INTO event_store.events (stream, type, data)
SELECT 'a-' || (i - 1) % 3, 't', to_jsonb(i) FROM generate_series(1, 30) i;
CREATE FUNCTION silence(_subscription text, _consumer text) RETURNS void LANGUAGE sql AS $$
	UPDATE event_store.subscription_batch SET leased_until = now() WHERE consumer = _consumer;
	UPDATE event_store.subscription_failure SET leased_until = now(), due = now() WHERE consumer = _consumer;
	UPDATE event_store.subscription_heartbeat SET alive_until = now() WHERE consumer = _consumer;
$$;
-- of each stream with failures: is the first one due, out, or dead?
CREATE VIEW stuck AS
	SELECT count(*) FROM (SELECT DISTINCT ON (subscription_id, stream_id) * FROM event_store.subscription_failure ORDER BY subscription_id, stream_id, position) f
	WHERE due IS NULL AND NOT dead AND consumer IS NULL;

-- a retry that is acknowledged at once lets the rest of its stream go
SELECT event_store.create_subscription('auto', first_delay => '0', jitter => 0);
SELECT event_store.nack('auto', 1, 'bad');
SELECT array_agg(position) FROM event_store.poll('auto', 10, auto_ack => true);
SELECT array_agg(position) FROM event_store.poll('auto', NULL, auto_ack => true);
SELECT open_events, acknowledged FROM event_store.subscriptions; SELECT * FROM stuck;

-- who comes back under its name gets what it had when the lease is over
SELECT event_store.create_subscription('back');
SELECT array_agg(position) FROM event_store.poll('back', 5, 'c1', lease => '1 min');
SELECT silence('back', 'c1');
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('back', 6, 'c1', lease => '1 min');
-- and what it was given in order behind that is taken back with it
SELECT array_agg(position) FROM event_store.poll('back', 3, 'c1', lease => '1 hour');
UPDATE event_store.subscription_failure SET leased_until = now(), due = now() WHERE consumer = 'c1' AND position = 1;
SELECT event_store.ack('back', '{4}', 'c1');
-- a heartbeat keeps what is not over
SELECT event_store.heartbeat('back', 'c1', '2 hours'), (SELECT bool_and(leased_until > now() + '1 hour') FROM event_store.subscription_batch);

-- another number of slots does not mix up what a transaction has
SELECT event_store.create_subscription('slots', slots => 4);
SELECT count(*) FROM event_store.poll('slots', 4);
BEGIN;
SELECT count(*) FROM event_store.poll('slots', 4);
SELECT event_store.alter_subscription('slots', slots => 1);
SELECT event_store.ack_up_to('slots', 1000);
COMMIT;
SELECT slots FROM event_store.subscriptions WHERE name = 'slots';
SELECT count(*) FROM event_store.poll('slots', NULL);
SELECT slots, open_events FROM event_store.subscriptions WHERE name = 'slots';
-- a failure in the log waits for what is queued of its stream
SELECT event_store.ack('slots', (SELECT array_agg(position) FROM event_store.poll('slots', NULL)));
SELECT event_store.create_subscription('fewer', slots => 4, first_delay => '0');
SELECT count(*) FROM event_store.poll('fewer', 1);
SELECT event_store.alter_subscription('fewer', slots => 1);
SELECT last_position FROM event_store.append('a-0', 't', '31');
SELECT event_store.nack('fewer', 31, 'bad');
SELECT array_agg(position) FROM event_store.poll('fewer', NULL);
SELECT event_store.ack('fewer', (SELECT array_agg(position) FROM event_store.events));
SELECT array_agg(position), array_agg(attempt) FROM event_store.poll('fewer', NULL);

-- a rewind keeps what lies in front of it, and marks as replays what was delivered
SELECT event_store.create_subscription('rewound', slots => 2);
SELECT count(*) FROM event_store.poll('rewound', 1, 'c', lease => '1 min');
SELECT event_store.rewind_subscription('rewound', 10);
SELECT acknowledged, open_events FROM event_store.subscriptions WHERE name = 'rewound';
SELECT count(*), min(position), bool_or(is_replay) FROM event_store.poll('rewound', NULL, 'c', lease => '1 min');
SELECT event_store.ack_up_to('rewound', 1000, 'c');
SELECT acknowledged, open_events FROM event_store.subscriptions WHERE name = 'rewound';
SELECT event_store.rewind_subscription('rewound', 20);
SELECT count(*), bool_and(is_replay) FROM event_store.poll('rewound', NULL, 'c', lease => '1 min');
-- a late acknowledgement does not swallow a replay
SELECT event_store.create_subscription('late');
SELECT count(*) FROM event_store.poll('late', 5, 'c', lease => '1 min');
SELECT event_store.rewind_subscription('late');
SELECT event_store.ack('late', '{1,2,3,4,5}', 'c');
SELECT array_agg(position) FROM event_store.poll('late', 3, 'c', lease => '1 min');

-- exceptions: what was delivered before them is in hand still
CREATE TABLE effect (subscription text, position bigint);
CREATE PROCEDURE work(_subscription text, _consumer text) LANGUAGE plpgsql AS $$
DECLARE
	_event record;
	_failed text[] := '{}';
	_last bigint := 0;
BEGIN
	FOR _event IN SELECT * FROM event_store.poll(_subscription, 6, _consumer) LOOP
		_last := greatest(_last, _event.position);
		CONTINUE WHEN _event.stream = ANY (_failed);
		BEGIN
			INSERT INTO effect VALUES (_subscription, _event.position);
			IF _event.version = 1 AND _event.attempt = 1 AND _event.stream <> 'a-0' THEN
				RAISE 'boom';
			END IF;
			PERFORM event_store.ack(_subscription, ARRAY[_event.position], _consumer) FROM generate_series(1, _event.version % 2);
			IF _event.version = 3 THEN
				PERFORM event_store.ack_up_to(_subscription, _last, _consumer);
				RAISE division_by_zero;
			END IF;
		EXCEPTION
			WHEN division_by_zero THEN
				INSERT INTO effect VALUES (_subscription, _event.position);
			WHEN OTHERS THEN
				_failed := _failed || _event.stream;
				IF event_store.nack(_subscription, _event.position, sqlerrm, '0', _consumer) IS NULL THEN
					RAISE NOTICE '% not open in %', _event.position, _subscription;
				END IF;
		END;
	END LOOP;
	PERFORM event_store.ack_up_to(_subscription, _last, _consumer);
	COMMIT;
END $$;
SELECT event_store.create_subscription('plain', max_attempts => 10), event_store.create_subscription('member', max_attempts => 10), event_store.create_subscription('several', slots => 4, max_attempts => 10);
DO $$ BEGIN
	FOR _i IN 1 .. 25 LOOP
		CALL work('plain', NULL);
		CALL work('member', 'm');
		CALL work('several', NULL);
	END LOOP;
END $$;
SELECT subscription, count(*), count(DISTINCT position), (SELECT open_events FROM event_store.subscriptions WHERE name = subscription) AS open FROM effect GROUP BY subscription ORDER BY subscription;
SELECT * FROM stuck;

-- failed without a name, while another has what comes before it: that one may still decide it
SELECT event_store.create_subscription('holder', first_delay => '1 h', slots => 2, start_after => 0);
SELECT count(*) FROM event_store.poll('holder', NULL, 'c1', lease => '1 hour');
SELECT event_store.nack('holder', 6, 'bad'), event_store.nack('holder', 6, 'bad', consumer => 'c1');
SELECT position, consumer, due > now() + '30 min' AS later FROM event_store.subscription_failure f JOIN event_store.subscription s ON s.id = f.subscription_id WHERE s.name = 'holder' AND (consumer IS NOT NULL OR attempts > 0) ORDER BY position;
SELECT event_store.ack('holder', '{3}', 'c1'), event_store.ack('holder', '{9}', 'c1');
SELECT position, due > now() + '30 min' AS later FROM event_store.subscription_failure f JOIN event_store.subscription s ON s.id = f.subscription_id WHERE s.name = 'holder' AND due IS NOT NULL;
-- queued behind a failed one: does not count
SELECT event_store.create_subscription('queued', first_delay => '1 h', slots => 2);
SELECT count(*) FROM event_store.poll('queued', 1, 'c', lease => '1 min');
SELECT event_store.leave('queued', 'c');
SELECT event_store.nack('queued', 1, 'bad');
SELECT event_store.ack('queued', '{4,2}');
-- without a name nobody decides what others have
SELECT event_store.ack('holder', '{2,12}'), event_store.ack_up_to('holder', 100), event_store.nack('holder', 2, 'bad');
SELECT event_store.create_subscription('job', mode => 'competing', breaker_failures => 1, breaker_probes => 2, breaker_timeout => '0', first_delay => '1 h');
SELECT count(*) FROM event_store.poll('job', 3, lease => '1 min');
SELECT count(*) FROM event_store.poll('job', 3, 'c', lease => '1 min');
SELECT event_store.ack_up_to('job', 100), event_store.ack('job', '{1,4}'), event_store.ack('job', '{2,5}', 'c');
-- half-open: no more probes are out than there may be
SELECT event_store.ack('job', '{2,3,4,6}') + event_store.ack('job', '{4,6}', 'c');
SELECT event_store.nack('job', 7, 'bad');
SELECT count(*) FROM event_store.poll('job', 5, 'c', lease => '1 min');
SELECT count(*) FROM event_store.poll('job', 5, 'd', lease => '1 min');
SELECT breaker, leased FROM event_store.subscriptions WHERE name = 'job';

-- greater priority comes first, though it came last
SELECT event_store.create_subscription('urgent', mode => 'competing', priority_key => 'p', start_after => NULL);
INSERT INTO event_store.events (stream, type, data, metadata) SELECT 'u-1', 't', to_jsonb(i), jsonb_build_object('p', i) FROM generate_series(1, 5) i;
SELECT array_agg(data) FROM event_store.poll('urgent', 2, auto_ack => true);
INSERT INTO event_store.events (stream, type, data, metadata) VALUES ('u-1', 't', '100', '{"p": 100}');
SELECT array_agg(data) FROM event_store.poll('urgent', 2, auto_ack => true);

-- one rewind does not concern what another subscription has delivered
SELECT event_store.create_subscription('other', slots => 2);
BEGIN;
SELECT count(*) FROM event_store.poll('other', 5);
SELECT event_store.rewind_subscription('late');
SELECT event_store.ack_up_to('other', 1000);
ROLLBACK;
-- consumers of a competing subscription that are gone are forgotten
SELECT count(*) FROM (SELECT silence('job', c) FROM unnest(ARRAY['c', 'd']) c) s;
SELECT count(*) FROM event_store.poll('job', 1, 'e', lease => '1 min');
SELECT consumer FROM event_store.subscription_consumer c JOIN event_store.subscription s ON s.id = c.subscription_id WHERE s.name = 'job';
-- very much is done behind an event that is open: what is open among it goes into the queue
INSERT INTO event_store.events (stream, type, data)
SELECT 'far-' || i % 5, 't', to_jsonb(i) FROM generate_series(1, 24000) i;
CREATE TEMP TABLE far AS SELECT position, stream, data::int AS n FROM event_store.events WHERE stream LIKE 'far-%';
SELECT event_store.create_subscription('far', stream_pattern => 'far-%', first_delay => '0', jitter => 0);
CREATE VIEW far_state AS
	SELECT (SELECT n FROM far WHERE position = checkpoint) AS checkpoint, open_events, acknowledged, done_ahead, queued, waiting, retries FROM event_store.subscriptions WHERE name = 'far';
SELECT event_store.ack('far', (SELECT array_agg(position) FROM far WHERE n BETWEEN 3 AND 10002));
SELECT * FROM far_state;
SELECT event_store.ack('far', (SELECT array_agg(position) FROM far WHERE n IN (10006, 10007)));
SELECT * FROM far_state;
SELECT array_agg(n ORDER BY position) FROM event_store.poll('far', 7) JOIN far USING (position);
-- the same by a failure, in a transaction that was given some of it
SELECT event_store.rewind_subscription('far', 0);
SELECT event_store.ack('far', (SELECT array_agg(position) FROM far WHERE n BETWEEN 13 AND 10012));
BEGIN;
SELECT min(n), max(n) FROM event_store.poll('far', 20) JOIN far USING (position);
SELECT event_store.nack('far', (SELECT position FROM far WHERE n = 10021), 'bad');
SELECT * FROM far_state;
SELECT array_agg(n ORDER BY position) FROM event_store.poll('far', 4) JOIN far USING (position);
SELECT event_store.ack('far', (SELECT array_agg(position) FROM far WHERE n IN (6, 11)));
SELECT event_store.ack_up_to('far', (SELECT position FROM far WHERE n = 5));
SELECT * FROM far_state;
COMMIT;
SELECT array_agg(n ORDER BY n) FROM event_store.poll('far', 15) JOIN far USING (position);
-- one that is acknowledged as often as not, to its end
SELECT event_store.rewind_subscription('far', 0);
SELECT event_store.ack('far', (SELECT array_agg(position) FROM far WHERE n % 2 = 0 AND n % 3 = r)) FROM generate_series(0, 2) r;
SELECT * FROM far_state;
CREATE TEMP TABLE late AS SELECT row_number() OVER () AS i, p.position, n, p.stream FROM event_store.poll('far', NULL) p JOIN far USING (position);
SELECT count(*), count(DISTINCT n), bool_and(n % 2 = 1), min(n), max(n) FROM late;
SELECT count(*) AS out_of_order FROM (SELECT n, lag(n) OVER (PARTITION BY stream ORDER BY i) AS before FROM late) x WHERE before > n;
SELECT event_store.ack('far', (SELECT array_agg(position) FROM late));
SELECT * FROM far_state;
DROP VIEW far_state;
DROP TABLE far, late;

SELECT * FROM stuck;
SELECT event_store.drop_subscription(name) FROM event_store.subscriptions;
SELECT (SELECT count(*) FROM event_store.subscription_heartbeat), (SELECT count(*) FROM event_store.subscription_consumer), (SELECT count(*) FROM event_store.subscription_batch);
DROP VIEW stuck;
DROP PROCEDURE work;
DROP FUNCTION silence;
DROP TABLE effect;
