-- append(): results, versions, guards
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(16);

SELECT * FROM event_store.append('order-1', 'Placed', '{"amount": 10}');
SELECT * FROM event_store.append('order-1', 'Paid', '{"amount": 10}', expected_version => 1);
SELECT * FROM event_store.append('order-2', 'Placed', 'null', expected_version => 0);
SELECT * FROM event_store.append('order-1', 'Shipped', '[]', expected_version => event_store.stream_exists());
SELECT * FROM event_store.append('order-1', 'Closed', '"x"', expected_version => event_store.any_version());
-- every field
SELECT * FROM event_store.append('order-3', 'Placed', '{"a": [1, 2.50, "ü", null, true]}', '{"user": "me"}', 0,
	'11111111-1111-1111-1111-111111111111', '2020-02-29 12:00+00', 'corr-1',
	'22222222-2222-2222-2222-222222222222', 3, 'shop');
\x on
SELECT position, stream, version, type, schema_version, event_id, occurred_at AT TIME ZONE 'UTC' AS occurred_at, source,
	correlation_id, causation_id, data, metadata, category
  FROM event_store.events WHERE stream = 'order-3';
\x off
SELECT stream, version, type, data, metadata, occurred_at = recorded_at AS same_time,
	substr(event_id::text, 15, 1) AS uuid_version
  FROM event_store.events WHERE stream = 'order-1' ORDER BY version;
-- ids are in order
SELECT bool_and(event_id > before) FROM (SELECT event_id, lag(event_id) OVER (ORDER BY position) AS before
  FROM event_store.events WHERE stream <> 'order-3') x;

-- expected versions
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', expected_version => 0)$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', expected_version => 3)$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', expected_version => 5)$$);
SELECT raises($$SELECT event_store.append('order-9', 'X', '1', expected_version => 1)$$);
SELECT raises($$SELECT event_store.append('order-9', 'X', '1', expected_version => event_store.stream_exists())$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', expected_version => -1)$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', expected_version => -3)$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', expected_version => 9223372036854775807)$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', expected_version => 2147483648)$$);

-- names
SELECT raises($$SELECT event_store.append(NULL, 'X', '1')$$);
SELECT raises($$SELECT event_store.append('', 'X', '1')$$);
SELECT raises($$SELECT event_store.append(E'a\nb', 'X', '1')$$);
SELECT raises($$SELECT event_store.append(E'a\x7f', 'X', '1')$$);
SELECT raises($$SELECT event_store.append('order-1', E'a\u0080', '1')$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', source => E'\u009fb')$$);
SELECT raises($$SELECT event_store.append(repeat('x', 1025), 'X', '1')$$);
SELECT raises($$SELECT event_store.append(repeat('x', 1024), 'X', '1')$$);
SELECT raises($$SELECT event_store.append('order-1', NULL, '1')$$);
SELECT raises($$SELECT event_store.append('order-1', '', '1')$$);
SELECT raises($$SELECT event_store.append('order-1', E'\t', '1')$$);
SELECT raises($$SELECT event_store.append('order-1', repeat('x', 1025), '1')$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', source => '')$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', source => E'\x01')$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', source => repeat('x', 1025))$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', correlation_id => '')$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', correlation_id => repeat('x', 1025))$$);
-- payload
SELECT raises($$SELECT event_store.append('order-1', 'X', NULL)$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', NULL)$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', '[]')$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', '"x"')$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', schema_version => 0)$$);
SELECT raises($$SELECT event_store.append('order-1', 'X', '1', occurred_at => 'infinity')$$);
-- nothing of this has left anything behind
SELECT left(stream, 10), max(version), count(*) FROM event_store.events GROUP BY stream ORDER BY length(stream), stream;

-- names with all that is allowed
SELECT (event_store.append(n, n, '1', source => n, correlation_id => n)).last_version
  FROM unnest(ARRAY['-', '-x', 'a-b-c', ' ', '''"; DROP', '$system', 'straße-1', E'a\u00a0b', repeat('é', 512)]) n;
SELECT left(stream, 10), left(category, 10), left(type, 10), left(source, 10), left(correlation_id, 10)
  FROM event_store.events WHERE stream !~ '^(order|x)' ORDER BY position;

-- idempotent
SELECT * FROM event_store.append('idem-1', 'A', '{"n": 1.0}', event_id => '00000000-0000-0000-0000-00000000000a') \gset first_
SELECT * FROM event_store.append('idem-1', 'A', '{"n": 1.00}', '{"other": "metadata"}', event_id => '00000000-0000-0000-0000-00000000000a') \gset again_
SELECT :'first_duplicate', :'again_duplicate', :first_first_position = :again_first_position, :again_first_version, :again_last_version;
SELECT duplicate FROM event_store.append('idem-1', 'A', '{"n": 1}', event_id => '00000000-0000-0000-0000-00000000000a', expected_version => 0);
SELECT duplicate FROM event_store.append('idem-1', 'A', '{"n": 1}', event_id => '00000000-0000-0000-0000-00000000000a', expected_version => 77);
SELECT raises($$SELECT event_store.append('idem-1', 'A', '{"n": 2}', event_id => '00000000-0000-0000-0000-00000000000a')$$);
SELECT raises($$SELECT event_store.append('idem-1', 'B', '{"n": 1}', event_id => '00000000-0000-0000-0000-00000000000a')$$);
SELECT raises($$SELECT event_store.append('idem-1', 'A', '{"n": 1}', event_id => '00000000-0000-0000-0000-00000000000a', schema_version => 2)$$);
-- an id identifies an event within its stream
SELECT duplicate FROM event_store.append('idem-2', 'A', '{"n": 2}', event_id => '00000000-0000-0000-0000-00000000000a');
-- far back, many segments later
DO $$ BEGIN FOR i IN 1..200 LOOP PERFORM event_store.append('idem-1', 'Filler', to_jsonb(i)); END LOOP; END $$;
SELECT duplicate, first_version FROM event_store.append('idem-1', 'A', '{"n": 1}', event_id => '00000000-0000-0000-0000-00000000000a');
SELECT count(*), max(version) FROM event_store.events WHERE stream = 'idem-1';

-- in a function, a trigger, a procedure that commits
CREATE TABLE orders (id int, state text);
CREATE FUNCTION order_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM event_store.append('torder-' || NEW.id, 'Changed', to_jsonb(NEW));
	RETURN NEW;
END $$;
CREATE TRIGGER changed AFTER INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION order_changed();
INSERT INTO orders SELECT i, 'new' FROM generate_series(1, 5) i;
UPDATE orders SET state = 'old' WHERE id > 3;
SELECT stream, version, data FROM event_store.read_category('torder');
CREATE PROCEDURE work() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..6 LOOP
		PERFORM event_store.append('work-1', 'Step', to_jsonb(i));
		IF i % 2 = 0 THEN COMMIT; ELSIF i = 3 THEN ROLLBACK; END IF;
	END LOOP;
END $$;
CALL work();
SELECT version, data FROM event_store.read_stream('work-1');
DROP PROCEDURE work();

-- savepoints: dense versions, names that never were
BEGIN;
SELECT last_version FROM event_store.append('save-1', 'One', '1');
SAVEPOINT a;
SELECT last_version FROM event_store.append('save-1', 'Two', '2');
SELECT last_version FROM event_store.append('gone-1', 'OnlyHere', '2', source => 'nowhere');
SAVEPOINT b;
SELECT last_version FROM event_store.append('save-1', 'OnlyHere', '3');
RELEASE b;
ROLLBACK TO a;
SELECT last_version FROM event_store.append('save-1', 'OnlyHere', '4', expected_version => 1);
SELECT last_version FROM event_store.append('gone-1', 'Two', '2', expected_version => 0);
COMMIT;
SELECT version, type, data FROM event_store.read_stream('save-1');
SELECT type, count(*) FROM event_store.read_category('gone') GROUP BY 1;
SELECT name, count(*) FROM event_store.event_type GROUP BY 1 HAVING count(*) > 1;
DO $$
BEGIN
	FOR i IN 1..10 LOOP
		BEGIN
			PERFORM event_store.append('loop-1', 'Type' || i, to_jsonb(i));
			IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF;
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP;
END $$;
SELECT version, type FROM event_store.read_stream('loop-1');

-- isolation levels
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT last_version FROM event_store.append('iso-1', 'X', '1', expected_version => 0);
SELECT last_version FROM event_store.append('iso-1', 'X', '1', expected_version => 1);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT last_version FROM event_store.append('iso-1', 'X', '1', expected_version => 2);
COMMIT;
BEGIN READ ONLY;
SELECT event_store.append('iso-1', 'X', '1');
ROLLBACK;
BEGIN READ ONLY;
SELECT event_store.append_events('iso-1', '[{"type": "X", "data": 1}]');
ROLLBACK;
BEGIN READ ONLY;
SELECT event_store.append_streams('[]');
ROLLBACK;
BEGIN READ ONLY;
INSERT INTO event_store.events (stream, type, data) VALUES ('iso-1', 'X', '1');
ROLLBACK;

-- huge
SELECT last_version FROM event_store.append('huge-1', 'Huge', to_jsonb(repeat('abcdefgh', 2000000)));
SELECT length(data #>> '{}') FROM event_store.last_event('huge-1');

-- everything works with the schema in the search_path, and by named notation
SET search_path = event_store, public;
SELECT last_version FROM append(stream => 'path-1', type => 'X', data => '1', expected_version => 0);
SELECT last_version FROM append_events(stream => 'path-1', events => '[{"type": "Y", "data": 2}]', expected_version => 1);
SELECT stream, version, type FROM read_stream(stream => 'path-1', backward => true);
SELECT count(*) FROM events WHERE stream = 'path-1';
RESET search_path;
-- and with one that is hostile
CREATE SCHEMA hostile;
CREATE FUNCTION hostile.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.eq);
CREATE TABLE hostile.store (segment_size bigint);
SET search_path = hostile, pg_catalog;
DO $$ BEGIN FOR i IN 1..100 LOOP PERFORM event_store.append('path-2', 'X', '1'); END LOOP; END $$;
SELECT event_store.stream_version('path-2');
RESET search_path;
DROP SCHEMA hostile CASCADE;

-- ids that the store makes are computed, not stored; they lead to their events
SELECT event_store.append('made-1', 'Made', to_jsonb(i)) IS NOT NULL AS appended FROM generate_series(1, 3) i;
SELECT count(*) AS events, count(s.event_id) AS stored, count(DISTINCT e.event_id) AS ids,
	bool_and(e.event_id = event_store.made_event_id(e.position, e.recorded_at)) AS same,
	bool_and(f.position = e.position AND f.event_id = e.event_id) AS found
FROM event_store.events e JOIN event_store.event s USING (position), event_store.find_event(e.event_id) f
WHERE e.stream = 'made-1';
-- … to no other
SELECT count(*) FROM event_store.events e,
	event_store.find_event(event_store.made_event_id(e.position, e.recorded_at + '1 ms')) WHERE e.stream = 'made-1';
SELECT count(*) FROM event_store.events e,
	event_store.find_event(event_store.made_event_id(e.position + 1000000, e.recorded_at)) WHERE e.stream = 'made-1';
SELECT count(*) FROM event_store.events e, event_store.find_event(e.event_id, 'path-1') WHERE e.stream = 'made-1';
-- an event that comes back with the id it was given is known
SELECT (event_store.append(stream, type, data, event_id => event_id)).duplicate FROM event_store.last_event('made-1');
SELECT replace(raises(format('SELECT event_store.append(%L, %L, %L, event_id => %L)', stream, type, '4', event_id)), event_id::text, 'ID') AS raises
FROM event_store.last_event('made-1');
-- in another stream it is another event
SELECT first_version, duplicate FROM event_store.last_event('made-1') l, event_store.append('made-2', l.type, l.data, event_id => l.event_id);
SELECT f.stream, f.version, f.data FROM event_store.last_event('made-1') l, event_store.find_event(l.event_id) f ORDER BY 1;
SELECT (event_store.append('made-2', l.type, l.data, event_id => l.event_id)).duplicate FROM event_store.last_event('made-1') l;

-- two names of one hash are two streams
SELECT hashtext('booking-8385' COLLATE "C") = hashtext('customer-6339' COLLATE "C") AS same_hash;
SELECT first_version, last_version FROM event_store.append('booking-8385', 'Booked', '1');
SELECT event_store.stream_version('customer-6339'), count(*) FROM event_store.read_stream('customer-6339');
SELECT first_version, last_version FROM event_store.append_events('customer-6339', '[{"type": "Opened", "data": 2}, {"type": "Closed", "data": 3}]', 0);
SELECT stream, version, data FROM event_store.read_stream('booking-8385')
UNION ALL SELECT stream, version, data FROM event_store.read_stream('customer-6339');

DROP TABLE orders;
DROP FUNCTION order_changed();
-- the oracle: dense versions, one position each
SELECT count(*) AS wrong FROM (
	SELECT stream FROM event_store.events GROUP BY stream
	HAVING min(version) <> 1 OR max(version) <> count(*)) x;
