-- A server with assertions can be told to empty all caches whenever it looks for
-- messages. What is kept has to bear that, and reading it anew has to come to an
-- end. Other servers refuse the setting; then the same comes of it sooner.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SET statement_timeout = '5min';
DO $$
BEGIN
	PERFORM set_config('debug_discard_caches', '1', false);
EXCEPTION WHEN invalid_parameter_value THEN
	NULL;
END $$;
SELECT event_store.set_segment_size(16);
SELECT first_position, last_position FROM event_store.append_events('order-1', '[{"type": "A", "data": null}, {"type": "B", "data": {"n": 1}}]');
-- beyond a segment's end, by the view
INSERT INTO event_store.events (stream, type, data) SELECT 'item-' || i, 'A', '{}' FROM generate_series(1, 16) i;
SELECT position, version, type, data FROM event_store.read_stream('order-1');
SELECT event_store.create_subscription('s', max_attempts => 1);
SELECT array_agg(position) FROM event_store.poll('s', 18);
SELECT event_store.ack_up_to('s', 17), event_store.nack('s', 18, 'bad');
RESET debug_discard_caches;
SELECT checkpoint, dead_letters FROM event_store.subscriptions;
SELECT count(*), max(position) FROM event_store.events;
DROP EXTENSION event_store;
