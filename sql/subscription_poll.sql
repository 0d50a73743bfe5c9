-- Subscriptions: what is delivered, what is done, and what guards them
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(16);
INSERT INTO event_store.events (stream, type, data)
SELECT (ARRAY['order', 'basket', 'alone'])[1 + i % 3] || '-' || i % 5, (ARRAY['a', 'b'])[1 + i % 2], to_jsonb(i) FROM generate_series(1, 60) i;

-- in one transaction after the other
SELECT event_store.create_subscription('all');
SELECT position, stream, version, type, data, attempt, is_replay FROM event_store.poll('all', 3);
SELECT array_agg(position) FROM event_store.poll('all', 3);
SELECT event_store.ack('all', '{1,2,3}');
SELECT array_agg(position) FROM event_store.poll('all', 3);
SELECT event_store.ack('all', '{1,2,3}');
-- out of order: what is open stays, what is done behind it does not come again
SELECT event_store.ack('all', '{5,7,7,8,100,-1}');
SELECT checkpoint, done_ahead, acknowledged FROM event_store.subscriptions WHERE name = 'all';
SELECT array_agg(position) FROM event_store.poll('all', 5);
SELECT event_store.ack('all', '{6}');
SELECT array_agg(position) FROM event_store.poll('all', 5);
SELECT event_store.ack('all', '{4}');
SELECT checkpoint, done_ahead, acknowledged FROM event_store.subscriptions WHERE name = 'all';
SELECT event_store.ack_up_to('all', 12), event_store.ack_up_to('all', 12), event_store.ack_up_to('all', 5);
SELECT event_store.ack('all', '{15,17}');
SELECT event_store.ack_up_to('all', 16);
SELECT checkpoint, done_ahead, acknowledged FROM event_store.subscriptions WHERE name = 'all';
SELECT event_store.ack('all', '{}');
-- the end
SELECT event_store.ack_up_to('all', 1000);
SELECT count(*) FROM event_store.poll('all');
SELECT * FROM event_store.subscription_lag('all');
SELECT checkpoint, positions_behind, done_ahead, acknowledged FROM event_store.subscriptions WHERE name = 'all';

-- several polls in a transaction go on from each other
SELECT event_store.rewind_subscription('all');
BEGIN;
SELECT array_agg(position), bool_and(is_replay) FROM event_store.poll('all', 3);
SELECT array_agg(position) FROM event_store.poll('all', 3);
SELECT event_store.ack('all', '{1,2,4}');
SELECT array_agg(position) FROM event_store.poll('all', 3);
SAVEPOINT a;
SELECT array_agg(position) FROM event_store.poll('all', 3);
SELECT event_store.ack_up_to('all', 10);
ROLLBACK TO a;
-- what is not done comes again
SELECT array_agg(position) FROM event_store.poll('all', 3);
ROLLBACK;
-- nothing of it has happened
SELECT checkpoint, done_ahead FROM event_store.subscriptions WHERE name = 'all';
BEGIN;
SELECT array_agg(position) FROM event_store.poll('all', 3);
SELECT event_store.ack_up_to('all', 3);
COMMIT;
SELECT array_agg(position) FROM event_store.poll('all', 3);

-- at most once
SELECT array_agg(position) FROM event_store.poll('all', 3, auto_ack => true);
SELECT array_agg(position) FROM event_store.poll('all', 3, auto_ack => true);
SELECT event_store.ack('all', '{11,20}');
SELECT array_agg(position) FROM event_store.poll('all', 3, auto_ack => true);
SELECT checkpoint, done_ahead FROM event_store.subscriptions WHERE name = 'all';
BEGIN;
SELECT count(*) FROM event_store.poll('all', 3);
SELECT raises('SELECT * FROM event_store.poll(''all'', 3, auto_ack => true)');
ROLLBACK;

-- filters: each gets what plain SQL says
SELECT event_store.create_subscription('orders', categories => '{order}');
SELECT event_store.create_subscription('a of two', categories => '{order,basket}', types => '{a,no such type}');
SELECT event_store.create_subscription('pattern', stream_pattern => '%-_3');
SELECT event_store.create_subscription('three', stream_pattern => '%-3');
SELECT event_store.create_subscription('all of it', '{order}', '{b}', 'order-1', 20);
SELECT (SELECT array_agg(position) FROM event_store.poll('orders', NULL)) = (SELECT array_agg(position ORDER BY position) FROM event_store.events WHERE category = 'order') AS orders,
	(SELECT array_agg(position) FROM event_store.poll('a of two', NULL)) = (SELECT array_agg(position ORDER BY position) FROM event_store.events WHERE category IN ('order', 'basket') AND type = 'a') AS a_of_two,
	(SELECT count(*) FROM event_store.poll('pattern', NULL)) AS pattern,
	(SELECT array_agg(position) FROM event_store.poll('three', NULL)) = (SELECT array_agg(position ORDER BY position) FROM event_store.events WHERE stream LIKE '%-3') AS three,
	(SELECT array_agg(position) FROM event_store.poll('all of it', NULL)) = (SELECT array_agg(position ORDER BY position) FROM event_store.events WHERE stream = 'order-1' AND type = 'b' AND position > 20) AS all_of_it;
-- positions that are not the subscription's count for nothing
SELECT event_store.ack('orders', (SELECT array_agg(position) FROM event_store.events WHERE position <= 30)) = (SELECT count(*) FROM event_store.events WHERE category = 'order' AND position <= 30) AS counted;
SELECT min(position) > 30 FROM event_store.poll('orders');
SELECT event_store.alter_subscription('orders', categories => '{}', types => '{a}', stream_pattern => 'basket%');
SELECT categories, types, stream_pattern FROM event_store.subscriptions WHERE name = 'orders';
SELECT (SELECT array_agg(position) FROM event_store.poll('orders', NULL)) = (SELECT array_agg(position ORDER BY position) FROM event_store.events WHERE category = 'basket' AND type = 'a' AND position > 30) AS altered;
SELECT event_store.alter_subscription('orders', stream_pattern => '', types => '{}');
SELECT categories, types, stream_pattern FROM event_store.subscriptions WHERE name = 'orders';

-- where a subscription begins
SELECT event_store.create_subscription('end', start_after => NULL) = event_store.settled_position();
SELECT event_store.create_subscription('now', start_time => clock_timestamp()) = event_store.settled_position();
SELECT event_store.create_subscription('long ago', start_time => '-infinity');
SELECT count(*) FROM event_store.poll('end');
SELECT position > 0 FROM event_store.append('order-9', 'late', '1') e, LATERAL (SELECT e.last_position AS position) p;
SELECT type, is_replay FROM event_store.poll('end');
SELECT type FROM event_store.poll('now');
SELECT event_store.rewind_subscription('end', to_time => '-infinity'), event_store.rewind_subscription('now', event_store.settled_position()) = event_store.settled_position();
SELECT count(*), count(*) FILTER (WHERE is_replay), count(*) FILTER (WHERE NOT is_replay) FROM event_store.poll('end', NULL);
SELECT count(*) FROM event_store.poll('now');
-- one's own appends are not settled, so they are not delivered
BEGIN;
SELECT last_version FROM event_store.append('order-9', 'own', '1');
SELECT count(*) FROM event_store.poll('now');
COMMIT;
SELECT type FROM event_store.poll('now');

-- a filter that finds nothing for long does not look there again
SELECT event_store.set_segment_size(1000);
SELECT event_store.create_subscription('rare', types => '{rare}');
INSERT INTO event_store.events (stream, type, data) SELECT 'many-' || i, 'x', '1' FROM generate_series(1, 2000) i;
SELECT count(*) FROM event_store.poll('rare');
SELECT checkpoint = event_store.settled_position() AS moved FROM event_store.subscriptions WHERE name = 'rare';
SELECT last_version FROM event_store.append('many-1', 'rare', '1');
SELECT type FROM event_store.poll('rare');

-- pause
SELECT event_store.pause_subscription('rare');
SELECT count(*) FROM event_store.poll('rare');
SELECT paused FROM event_store.subscriptions WHERE name = 'rare';
SELECT event_store.resume_subscription('rare');
SELECT count(*) FROM event_store.poll('rare');
SELECT open_events, oldest_recorded_at <= clock_timestamp() AS past FROM event_store.subscription_lag('rare');
SELECT open_events FROM event_store.subscription_lag('long ago', 7);

-- in plpgsql, with the effect in the same transaction
CREATE TABLE effect (position bigint PRIMARY KEY, stream text);
DO $$
DECLARE
	_event event_store.delivered_event;
	_n int;
BEGIN
	LOOP
		_n := 0;
		FOR _event IN SELECT * FROM event_store.poll('long ago', 100) LOOP
			INSERT INTO effect VALUES (_event.position, _event.stream);
			_n := _n + 1;
		END LOOP;
		EXIT WHEN _n = 0;
		PERFORM event_store.ack_up_to('long ago', _event.position);
	END LOOP;
END $$;
SELECT (SELECT count(*) FROM effect) = (SELECT count(*) FROM event_store.events) AS all_there;

-- far ahead of what is open
SELECT event_store.create_subscription('ahead');
INSERT INTO event_store.events (stream, type, data) SELECT 'many-' || i % 10, 'x', '1' FROM generate_series(1, 9000) i;
SELECT event_store.ack('ahead', (SELECT array_agg(position) FROM event_store.events WHERE position > 1)) = count(*) - 1 FROM event_store.events;
SELECT checkpoint = event_store.last_position() AS at_end, done_ahead, queued, open_events FROM event_store.subscriptions WHERE name = 'ahead';
SELECT position FROM event_store.poll('ahead');

-- guards
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY[
	'create_subscription(NULL)', 'create_subscription('''')', 'create_subscription(''all'')', 'create_subscription(E''a\nb'')',
	'create_subscription(''n'', categories => ''{}'')', 'create_subscription(''n'', types => ''{a,NULL}'')',
	'create_subscription(''n'', types => ''{""}'')', 'create_subscription(''n'', stream_pattern => '''')',
	'create_subscription(''n'', stream_pattern => ''a\'')', 'create_subscription(''n'', start_after => -1)',
	'create_subscription(''n'', start_after => 5, start_time => now())',
	'alter_subscription(''none'')', 'alter_subscription(NULL)', 'alter_subscription(''all'', types => ''{NULL}'')',
	'drop_subscription(''none'')', 'drop_subscription(NULL)', 'pause_subscription(''none'')', 'resume_subscription(''none'')',
	'rewind_subscription(''none'')', 'rewind_subscription(''all'', 1, now())', 'rewind_subscription(''all'', -1)',
	'poll(NULL)', 'poll(''none'')', 'poll(''all'', 0)', 'ack(''none'', ''{1}'')', 'ack(''all'', NULL)', 'ack(''all'', ''{1,NULL}'')',
	'ack_up_to(''none'', 1)', 'ack_up_to(''all'', NULL)', 'ack_up_to(''all'', -1)', 'subscription_lag(''none'')', 'subscription_lag(''all'', 0)']) call;
SELECT raises('SELECT event_store.create_subscription(''n'', start_after => 100000000)') ~ '^VE002 . position 100000000 lies beyond';
BEGIN READ ONLY;
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY['create_subscription(''n'')', 'poll(''all'')', 'ack(''all'', ''{1}'')', 'ack_up_to(''all'', 1)',
	'rewind_subscription(''all'')', 'pause_subscription(''all'')', 'drop_subscription(''all'')', 'alter_subscription(''all'')']) call;
ROLLBACK;
-- rights: EXECUTE, and SELECT on the view
CREATE ROLE regress_event_store_consumer;
GRANT USAGE ON SCHEMA event_store TO regress_event_store_consumer;
SET ROLE regress_event_store_consumer;
SELECT raises('SELECT event_store.poll(''all'')');
RESET ROLE;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA event_store TO regress_event_store_consumer;
SET ROLE regress_event_store_consumer;
SELECT raises('SELECT event_store.poll(''all'')');
RESET ROLE;
GRANT SELECT ON event_store.events TO regress_event_store_consumer;
SET ROLE regress_event_store_consumer;
SELECT count(*) FROM event_store.poll('all', 3);
SELECT event_store.ack_up_to('all', 1000) > 0;
SELECT current_user, current_setting('search_path') <> 'pg_catalog, pg_temp' AS as_it_was;
SELECT raises('SELECT * FROM event_store.subscription');
RESET ROLE;
-- who may see subscriptions sees how far they are behind, without a right to the events
REVOKE SELECT ON event_store.events FROM regress_event_store_consumer;
SELECT event_store.rewind_subscription('all', 2);
SET ROLE regress_event_store_consumer;
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY['subscription_lag(''all'')', 'settled_position()', 'last_position()', 'poll(''all'')']) call;
SELECT raises('SELECT * FROM event_store.subscriptions');
RESET ROLE;
GRANT SELECT ON event_store.subscriptions TO regress_event_store_consumer;
CREATE TABLE as_owner AS SELECT name, positions_behind, open_events, lag IS NULL AS none FROM event_store.subscriptions;
GRANT SELECT ON as_owner TO regress_event_store_consumer;
SELECT open_events > 0 AND positions_behind > 0 AS behind FROM as_owner WHERE name = 'all';
SET ROLE regress_event_store_consumer;
TABLE as_owner EXCEPT SELECT name, positions_behind, open_events, lag IS NULL FROM event_store.subscriptions;
SELECT l.open_events, l.oldest_recorded_at < now(), current_user FROM event_store.subscription_lag('all', 1) l;
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY['poll(''all'')', 'read_all()']) call;
SELECT event_store.last_position() >= event_store.settled_position();
SELECT raises('SELECT * FROM event_store.events');
RESET ROLE;
DROP TABLE as_owner;
DROP OWNED BY regress_event_store_consumer;
DROP ROLE regress_event_store_consumer;
SELECT event_store.drop_subscription(name) FROM event_store.subscriptions;
SELECT count(*) FROM event_store.subscription_cursor;
DROP TABLE effect;
