-- append_events() and append_streams(); uses raises() of common_install
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(16);

SELECT * FROM event_store.append_events('order-1', '[
	{"type": "Placed", "data": {"a": 1}},
	{"type": "Paid", "data": null, "metadata": {"m": 1}, "event_id": "00000000-0000-0000-0000-000000000001",
	 "occurred_at": "2020-01-01T00:00:00Z", "correlation_id": "c", "causation_id": "00000000-0000-0000-0000-000000000002",
	 "schema_version": 2, "source": "s"},
	{"type": "Shipped", "data": "text", "event_id": null, "occurred_at": null, "correlation_id": null, "causation_id": null, "source": null}
]', 0);
SELECT version, type, schema_version, source, correlation_id, causation_id, data, metadata, extract(year FROM occurred_at) = 2020 AS in_2020
  FROM event_store.read_stream('order-1');
SELECT * FROM event_store.append_events('order-1', '[]');
SELECT * FROM event_store.append_events('order-1', '[]', 3);
SELECT * FROM event_store.append_events('order-0', '[]');
SELECT event_store.stream_version('order-0');

SELECT raises($$SELECT event_store.append_events('order-1', '[]', 2)$$);
SELECT raises($$SELECT event_store.append_events('order-1', NULL)$$);
SELECT raises($$SELECT event_store.append_events(NULL, '[]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '{}')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '1')$$);
SELECT raises($$SELECT event_store.append_events('order-1', 'null')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[1]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[[]]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1}, {"data": 1}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X"}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "evnt_id": "x"}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": 1, "data": 1}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": null, "data": 1}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "", "data": 1}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "metadata": null}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "metadata": [1]}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "schema_version": 1.5}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "schema_version": 0}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "schema_version": "1"}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "schema_version": 99999999999999999999}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "event_id": "x"}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "event_id": 1}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "occurred_at": "yesterday-ish"}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "occurred_at": "infinity"}]')$$);
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1, "event_id": "00000000-0000-0000-0000-000000000009"},
	{"type": "X", "data": 1, "event_id": "00000000-0000-0000-0000-000000000009"}]')$$);
SET event_store.max_batch_events = 2;
SELECT raises($$SELECT event_store.append_events('order-1', '[{"type": "X", "data": 1}, {"type": "X", "data": 1}, {"type": "X", "data": 1}]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"stream": "a", "events": [{"type": "X", "data": 1}, {"type": "X", "data": 1}]}, {"stream": "b", "events": [{"type": "X", "data": 1}]}]')$$);
RESET event_store.max_batch_events;
SET event_store.max_batch_size = '1kB';
SELECT raises(format('SELECT event_store.append_events(%L, %L)', 'order-1', jsonb_build_array(jsonb_build_object('type', 'X', 'data', repeat('x', 3000)))));
RESET event_store.max_batch_size;
SELECT event_store.stream_version('order-1');

-- a batch is repeated as a whole
SELECT first_version, last_version, duplicate FROM event_store.append_events('idem-1', '[{"type": "A", "data": 1, "event_id": "00000000-0000-0000-0000-000000000001"}, {"type": "B", "data": 2, "event_id": "00000000-0000-0000-0000-000000000002"}]', 0);
SELECT first_version, last_version, duplicate FROM event_store.append_events('idem-1', '[{"type": "C", "data": 3, "event_id": "00000000-0000-0000-0000-000000000003"}]', 2);
SELECT first_version, last_version, duplicate FROM event_store.append_events('idem-1', '[{"type": "A", "data": 1, "event_id": "00000000-0000-0000-0000-000000000001"}, {"type": "B", "data": 2, "event_id": "00000000-0000-0000-0000-000000000002"}]', 0);
SELECT first_version, last_version, duplicate FROM event_store.append_events('idem-1', '[{"type": "B", "data": 2, "event_id": "00000000-0000-0000-0000-000000000002"}]');
SELECT raises($$SELECT event_store.append_events('idem-1', '[{"type": "A", "data": 1, "event_id": "00000000-0000-0000-0000-000000000001"}, {"type": "D", "data": 2, "event_id": "00000000-0000-0000-0000-000000000004"}]')$$);
SELECT raises($$SELECT event_store.append_events('idem-1', '[{"type": "A", "data": 1, "event_id": "00000000-0000-0000-0000-000000000001"}, {"type": "B", "data": 2}]')$$);
SELECT raises($$SELECT event_store.append_events('idem-1', '[{"type": "B", "data": 2, "event_id": "00000000-0000-0000-0000-000000000002"}, {"type": "A", "data": 1, "event_id": "00000000-0000-0000-0000-000000000001"}]')$$);
SELECT raises($$SELECT event_store.append_events('idem-1', '[{"type": "A", "data": 1, "event_id": "00000000-0000-0000-0000-000000000001"}, {"type": "C", "data": 3, "event_id": "00000000-0000-0000-0000-000000000003"}]')$$);
SELECT raises($$SELECT event_store.append_events('idem-1', '[{"type": "A", "data": 9, "event_id": "00000000-0000-0000-0000-000000000001"}]')$$);
SELECT event_store.stream_version('idem-1');

-- several streams
SELECT stream, first_version, last_version, last_position - first_position + 1 AS positions, duplicate
  FROM event_store.append_streams('[
	{"stream": "b-1", "expected_version": 0, "events": [{"type": "X", "data": 1}, {"type": "Y", "data": 2}]},
	{"stream": "a-1", "events": [{"type": "X", "data": 1}]},
	{"stream": "order-1", "expected_version": 3, "events": []},
	{"stream": "idem-1", "expected_version": null, "events": [{"type": "C", "data": 3, "event_id": "00000000-0000-0000-0000-000000000003"}]}
  ]');
SELECT * FROM event_store.append_streams('[]');
SELECT raises($$SELECT event_store.append_streams(NULL)$$);
SELECT raises($$SELECT event_store.append_streams('{}')$$);
SELECT raises($$SELECT event_store.append_streams('[1]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"events": []}]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"stream": "x"}]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"stream": "x", "events": 1}]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"stream": "", "events": []}]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"stream": "x", "events": [], "other": 1}]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"stream": "x", "events": [], "expected_version": "1"}]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"stream": "x", "events": [], "expected_version": -1}]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"stream": "x", "events": []}, {"stream": "y", "events": []}, {"stream": "x", "events": []}]')$$);
SELECT raises($$SELECT event_store.append_streams('[{"stream": "x", "events": [{"type": "X", "data": 1}]}, {"stream": "y", "events": [{"type": "X", "data": 1}, {"type": "X"}]}]')$$);
-- all or nothing
SELECT raises($$SELECT event_store.append_streams('[{"stream": "x-1", "events": [{"type": "X", "data": 1}]}, {"stream": "b-1", "expected_version": 1, "events": [{"type": "X", "data": 1}]}]')$$);
SELECT event_store.stream_version('x-1'), event_store.stream_version('b-1');

-- more streams in one call than it keeps locks
SELECT count(*), min(first_version), max(last_version), count(DISTINCT first_position)
  FROM event_store.append_streams((SELECT jsonb_agg(jsonb_build_object('stream', 'many-' || i, 'expected_version', 0,
	'events', jsonb_build_array(jsonb_build_object('type', 'X', 'data', i), jsonb_build_object('type', 'Y', 'data', i))))
  FROM generate_series(1, 300) i));
SELECT count(*), min(first_version), max(last_version), bool_or(duplicate)
  FROM event_store.append_streams((SELECT jsonb_agg(jsonb_build_object('stream', 'many-' || i, 'expected_version', 2,
	'events', jsonb_build_array(jsonb_build_object('type', 'X', 'data', i))))
  FROM generate_series(1, 300) i));
SELECT count(*), count(DISTINCT position), count(DISTINCT stream), max(version) FROM event_store.read_category('many', 0, NULL);
SELECT count(*) FROM event_store.streams('many', NULL, NULL);

-- a long batch goes through many segments
SELECT first_version, last_version, last_position - first_position FROM event_store.append_events('long-1',
	(SELECT jsonb_agg(jsonb_build_object('type', 'T' || i % 7, 'data', i)) FROM generate_series(1, 2500) i));
SELECT count(*), bool_and(data = to_jsonb(version)) FROM event_store.read_stream('long-1');
SELECT count(*) AS wrong FROM (
	SELECT stream FROM event_store.events GROUP BY stream
	HAVING min(version) <> 1 OR max(version) <> count(*)) x;

-- empty batches keep no locks, and hide no later one
DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM event_store.append_events('none-' || i, '[]'); END LOOP; END $$;
BEGIN;
SELECT event_store.append_events('n-1', '[]');
SAVEPOINT a;
SELECT last_version FROM event_store.append('n-1', 'X', '1');
ROLLBACK TO a;
SELECT last_version FROM event_store.append('n-1', 'X', '1');
COMMIT;
