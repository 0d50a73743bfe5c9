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
-- all that an append can set going, and what else is kept
SELECT event_store.create_projection('sums', 'fold', 'sum(n)', mode => 'inline', start_after => NULL);
SELECT event_store.create_projection('counted', 'fold', 'count', categories => '{order}');
SELECT event_store.route_to_outbox('orders', topic => 'orders', categories => '{order}', types => '{C}');
SELECT last_version FROM event_store.append('order-1', 'C', '{"n": 2}');
SELECT state FROM event_store.projection_state('sums', 'order-1') AS state;
SELECT event_store.refresh_projection('counted');
SELECT event_store.save_snapshot('order-1', 3, '{"n": 3}');
SELECT version, type, data FROM event_store.load_stream('order-1');
SELECT event_store.state_at('order-1', 'sum(n)');
SELECT event_store.publish('direct', 'k', '1') > 0;
SELECT topic, key FROM event_store.outbox_poll('relay', 10) ORDER BY 1;
SELECT event_store.set_dedup_window('c', keep_count => 10);
SELECT event_store.mark_processed('c', 'm'), event_store.mark_processed('c', 'm');
SELECT event_store.once('c', 'k', 'SELECT 41 + 1');
CREATE TABLE kept (id int PRIMARY KEY, v text);
CREATE TRIGGER capture AFTER INSERT OR UPDATE ON kept FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
INSERT INTO kept VALUES (1, 'a');
SELECT type, data FROM event_store.read_stream('kept-1');
SELECT count(*) FROM event_store.trace('none', since => now());
RESET debug_discard_caches;
SELECT checkpoint, dead_letters FROM event_store.subscriptions;
SELECT count(*), max(position) FROM event_store.events;
DROP TABLE kept;
DROP EXTENSION event_store;
