-- Which deliveries are replays, in each mode
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;

-- 1 to 40: five events in each of eight streams
SELECT count(event_store.append('s-' || i % 8, 't', '1', '{"p": 1}')) FROM generate_series(1, 40) i;

-- a group in which one slot is far behind the others: what those were given is a
-- replay, what nobody was is none
SELECT event_store.create_subscription('group', slots => 4);
CREATE TABLE got AS SELECT position, is_replay FROM event_store.poll('group', 1, 'a', lease => '1 h');
SELECT count(*) FROM event_store.poll('group', 1, 'b', lease => '1 h');
INSERT INTO got SELECT position, is_replay FROM event_store.poll('group', NULL, 'a', lease => '1 h');
INSERT INTO got SELECT position, is_replay FROM event_store.poll('group', 3, 'b', lease => '1 h');
SELECT count(*) BETWEEN 4 AND 39 AS some, bool_or(is_replay) FROM got;
SELECT event_store.ack_up_to('group', 40, 'a') > 0 AS acknowledged;
SELECT event_store.rewind_subscription('group');
SELECT event_store.alter_subscription('group', slots => 3);
SELECT event_store.leave('group', 'a'), event_store.leave('group', 'b');
CREATE TABLE again AS SELECT position, is_replay FROM event_store.poll('group', NULL, auto_ack => true);
SELECT count(*) FROM again;
SELECT count(*) FROM again WHERE is_replay <> (position IN (SELECT position FROM got));

-- parked behind a failed one, in a subscription that is not dealt out
SELECT event_store.create_subscription('direct', first_delay => '1 h');
SELECT array_agg(position) FROM event_store.poll('direct', 10, 'a', lease => '1 h');
SELECT event_store.nack('direct', 1, 'bad', consumer => 'a');
SELECT event_store.ack_up_to('direct', 40, 'a');
SELECT count(*) FROM event_store.poll('direct', NULL, 'a', auto_ack => true);
SELECT waiting FROM event_store.subscriptions WHERE name = 'direct';
SELECT event_store.rewind_subscription('direct', 0);
-- 9 was delivered behind 1, 17 and those behind it never were
SELECT array_agg(position) FROM event_store.poll('direct', NULL, 'a', auto_ack => true) WHERE NOT is_replay;

-- a retry in front of the point that was rewound to is none
SELECT event_store.create_subscription('front', first_delay => '0');
SELECT count(*) FROM event_store.poll('front', NULL, 'a', lease => '1 h');
SELECT event_store.nack('front', 3, 'bad', consumer => 'a'), event_store.nack('front', 30, 'bad', consumer => 'a');
SELECT event_store.ack_up_to('front', 40, 'a');
SELECT event_store.rewind_subscription('front', 20);
SELECT array_agg(position) FILTER (WHERE is_replay) AS replays, array_agg(position) FILTER (WHERE NOT is_replay) AS others
  FROM event_store.poll('front', NULL, 'a', auto_ack => true);
SELECT array_agg(position) FILTER (WHERE is_replay) AS replays, array_agg(position) FILTER (WHERE NOT is_replay) AS others
  FROM event_store.poll('front', NULL, 'a', auto_ack => true);

-- what a rewind ahead has passed over is a replay when it comes back
SELECT event_store.create_subscription('ahead', slots => 2);
SELECT event_store.rewind_subscription('ahead', 30);
SELECT bool_or(is_replay), count(*) FROM event_store.poll('ahead', NULL, auto_ack => true);
SELECT event_store.rewind_subscription('ahead', 10);
SELECT bool_and(is_replay), count(*) FROM event_store.poll('ahead', NULL, auto_ack => true);

-- to the end, and to a time
SELECT event_store.rewind_subscription('ahead', to_time => 'infinity') = event_store.settled_position() AS at_end;
SELECT count(*) FROM event_store.poll('ahead');
SELECT event_store.rewind_subscription('ahead', to_time => (SELECT recorded_at FROM event_store.events WHERE position = 21)) BETWEEN 10 AND 20 AS before;
SELECT event_store.rewind_subscription('ahead', to_time => '-infinity');

-- passed over by more than a list holds, then dealt anew
SELECT count(*) FROM (SELECT event_store.append_events('many-' || i % 7, (SELECT jsonb_agg(jsonb_build_object('type', 't', 'data', n)) FROM generate_series(1, 1501) n)) FROM generate_series(1, 7) i) x;
SELECT event_store.create_subscription('many', categories => '{many}');
SELECT event_store.ack('many', (SELECT array_agg(position) FROM event_store.events WHERE category = 'many' AND position % 100 > 0));
SELECT queued FROM event_store.subscriptions WHERE name = 'many';
SELECT event_store.alter_subscription('many', slots => 5);
SELECT event_store.rewind_subscription('many', 40);
SELECT count(*), bool_and(is_replay) FROM event_store.poll('many', NULL, auto_ack => true);

-- At random, with what was delivered as the oracle
CREATE TABLE seen (name text, position bigint, is_replay boolean NOT NULL DEFAULT false, PRIMARY KEY (name, position));
CREATE TABLE wrong (name text, step int, position bigint, is_replay boolean);
CREATE TABLE counted (name text, is_replay boolean, n bigint, PRIMARY KEY (name, is_replay));
CREATE PROCEDURE steps(_name text, _steps int) LANGUAGE plpgsql AS $$
DECLARE
	_events bigint[];
	_flags boolean[];
	_what int;
	_consumer text;
	_position bigint;
	_behind bigint;
BEGIN
	FOR _step IN 1 .. _steps LOOP
		_what := floor(random() * 22);
		_consumer := (ARRAY['a', 'b', 'c'])[1 + floor(random() * 3)];
		IF _what < 12 THEN
			SELECT array_agg(e.position), array_agg(e.is_replay) INTO _events, _flags
			  FROM event_store.poll(_name, 1 + floor(random() * 30)::int, CASE WHEN _what < 10 THEN _consumer END,
				lease => CASE WHEN _what < 9 THEN '1 h'::interval END, auto_ack => _what >= 9) e;
			CONTINUE WHEN _events IS NULL;
			INSERT INTO wrong SELECT _name, _step, e.position, e.is_replay
			  FROM unnest(_events, _flags) e (position, is_replay)
			 WHERE e.is_replay <> coalesce((SELECT s.is_replay FROM seen s WHERE s.name = _name AND s.position = e.position), false);
			INSERT INTO counted SELECT _name, e.f, count(*) FROM unnest(_flags) e (f) GROUP BY e.f
				ON CONFLICT (name, is_replay) DO UPDATE SET n = counted.n + excluded.n;
			INSERT INTO seen SELECT _name, unnest(_events) ON CONFLICT DO NOTHING;
		ELSIF _what < 15 THEN
			PERFORM event_store.ack_up_to(_name, greatest((SELECT max(e.position) FROM event_store.events e WHERE e.category = 's') - floor(random() * 40)::bigint, 0), c)
			  FROM unnest(ARRAY['a', 'b', 'c']) c;
		ELSIF _what = 15 THEN
			PERFORM event_store.nack(_name, b.positions[1], 'bad', (ARRAY['0', '1 h'])[1 + floor(random() * 2)]::interval, _consumer)
			  FROM event_store.subscription_batch b JOIN event_store.subscription s ON s.id = b.subscription_id
			 WHERE s.name = _name AND b.consumer = _consumer LIMIT 2;
		ELSIF _what = 16 THEN
			-- it falls silent
			UPDATE event_store.subscription_batch SET leased_until = clock_timestamp() WHERE consumer = _consumer;
			UPDATE event_store.subscription_failure SET leased_until = clock_timestamp(), due = clock_timestamp() WHERE consumer = _consumer;
		ELSIF _what = 17 THEN
			PERFORM event_store.leave(_name, _consumer);
		ELSIF _what = 18 AND _name LIKE 'group%' THEN
			PERFORM event_store.alter_subscription(_name, slots => 1 + floor(random() * 5)::int);
		ELSIF _what = 19 THEN
			PERFORM count(event_store.append('s-' || floor(random() * 20), 't', '1', jsonb_build_object('p', floor(random() * 3)))) FROM generate_series(1, 20);
		ELSIF _what = 20 THEN
			PERFORM event_store.replay_dead_letters(_name);
			UPDATE event_store.subscription_failure SET retry_at = clock_timestamp(), due = clock_timestamp() WHERE due IS NOT NULL AND consumer IS NULL;
		ELSIF _what = 21 THEN
			SELECT c.checkpoint INTO _behind FROM event_store.subscriptions c WHERE c.name = _name;
			SELECT greatest(max(e.position) - floor(random() * 400), 0) INTO _position
			  FROM event_store.events e WHERE e.category = 's' AND e.position <= CASE WHEN random() < 0.9 THEN _behind ELSE 100000000 END;
			_position := coalesce(_position, 0);
			-- passed over
			INSERT INTO seen SELECT _name, e.position FROM event_store.events e
				WHERE e.category = 's' AND e.position > _behind AND e.position <= _position ON CONFLICT DO NOTHING;
			PERFORM event_store.rewind_subscription(_name, _position);
			UPDATE seen s SET is_replay = true WHERE s.name = _name AND s.position > _position
				AND s.position <= greatest(_behind, _position);
		END IF;
		COMMIT;
	END LOOP;
END $$;
SELECT event_store.create_subscription('ordered', categories => '{s}', max_attempts => 2),
	event_store.create_subscription('group', slots => 4, categories => '{s}', max_attempts => 2) FROM (SELECT event_store.drop_subscription('group')) x;
SELECT event_store.create_subscription('group of one', categories => '{s}', max_attempts => 3),
	event_store.create_subscription('work', mode => 'competing', categories => '{s}', max_attempts => 2),
	event_store.create_subscription('queue', mode => 'competing', priority_key => 'p', categories => '{s}', max_attempts => 2);
SELECT setseed(0.25);
CALL steps('ordered', 500);
CALL steps('group', 500);
CALL steps('group of one', 500);
CALL steps('work', 500);
CALL steps('queue', 500);
SELECT * FROM wrong ORDER BY name, step, position LIMIT 20;
SELECT name, bool_and(n > 100) FROM counted GROUP BY name HAVING count(*) = 2 ORDER BY name;
DROP TABLE got, again, seen, wrong, counted;
DROP PROCEDURE steps;
