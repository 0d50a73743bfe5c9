-- Projections: each kind of handler, filters, keys, status, guards, rights
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(64);
INSERT INTO event_store.events (stream, type, data)
SELECT (ARRAY['order-1', 'order-2', 'basket-1'])[1 + i % 3], (ARRAY['Added', 'Paid'])[1 + i % 2],
	jsonb_build_object('amount', i, 'who', (ARRAY['ann', 'bob'])[1 + i % 5 % 2]) FROM generate_series(1, 30) i;
-- of one type in the view, and in its own order
CREATE FUNCTION event_json(e event_store.events) RETURNS jsonb LANGUAGE sql AS
$$SELECT to_jsonb(e) - 'category'$$;

-- set: one statement, several in their order, filters by category, type, both
CREATE TABLE total (stream text PRIMARY KEY, amount numeric, events int, at_last bigint);
SELECT event_store.create_projection('total', 'set', $$
	INSERT INTO total AS t SELECT stream, sum((data->>'amount')::numeric), count(*), max(position) FROM new_events GROUP BY stream
	ON CONFLICT (stream) DO UPDATE SET amount = t.amount + excluded.amount, events = t.events + excluded.events, at_last = excluded.at_last$$);
SELECT event_store.refresh_projection('total', 7), event_store.refresh_projection('total', 1), event_store.refresh_projection('total'), event_store.refresh_projection('total');
SELECT * FROM total ORDER BY stream COLLATE "C";
SELECT count(*) FROM (SELECT stream, sum((data->>'amount')::numeric), count(*), max(position) FROM event_store.events GROUP BY stream EXCEPT SELECT * FROM total) d;
CREATE TABLE log (n serial, step text, position bigint);
SELECT event_store.create_projection('steps', 'set', $$
	INSERT INTO log (step, position) SELECT 'insert', position FROM new_events ORDER BY position;
	UPDATE log SET step = 'update ' || e.type FROM new_events AS e WHERE e.position = log.position;
	INSERT INTO log (step, position) SELECT 'sees ' || count(*), max(l.position) FROM log AS l JOIN new_events USING (position);
	DELETE FROM log WHERE step ~ 'Paid'$$, categories => '{order}', types => '{Paid,"no such type"}', batch_events => 3);
SELECT event_store.refresh_projection('steps');
SELECT * FROM log ORDER BY n;
-- the whole row, and each column; no column at all
CREATE TABLE copied (event jsonb);
SELECT event_store.create_projection('copied', 'set', 'INSERT INTO copied SELECT to_jsonb(e) FROM new_events AS e', categories => '{order}');
SELECT FROM event_store.append('order-9', 'All', '{"a": [1, 2]}', '{"m": 1}', event_id => '00000000-0000-0000-0000-000000000001', occurred_at => '2020-01-01', correlation_id => 'c', causation_id => '00000000-0000-0000-0000-000000000002', schema_version => 3, source => 's');
SELECT event_store.refresh_projection('copied');
SELECT count(*) FROM (SELECT event_json(e) FROM event_store.events AS e WHERE category = 'order' EXCEPT ALL SELECT event FROM copied) d;
CREATE TABLE counted (n bigint);
SELECT event_store.create_projection('counted', 'set', 'INSERT INTO counted SELECT count(*) FROM new_events', batch_events => 10, batch_size => 64);
SELECT event_store.refresh_projection('counted');
TABLE counted;
-- in subqueries, CTEs, joins to itself, ordered by a column that is not shown
CREATE TABLE odd (a text, b bigint);
SELECT event_store.create_projection('odd', 'set', $$
	WITH x AS (SELECT type, position FROM new_events), y AS (SELECT count(*) AS n FROM new_events AS e WHERE EXISTS (SELECT FROM new_events AS f WHERE f.stream = e.stream AND f.version > e.version))
	INSERT INTO odd SELECT (SELECT string_agg(type, ',' ORDER BY version, stream COLLATE "C") FROM new_events WHERE position <= x.position), y.n FROM x, y ORDER BY x.position DESC LIMIT 1$$, types => '{Paid}', batch_events => 4);
SELECT event_store.refresh_projection('odd', 8);
TABLE odd;
-- of commands only queries, and none on the tables of a session
SELECT raises($$SELECT event_store.create_projection('x', 'set', 'SELECT count(*) FROM new_events; COMMIT')$$);
SELECT raises($$SELECT event_store.create_projection('x', 'set', 'DO ''BEGIN COMMIT; END''')$$);
SELECT raises($$SELECT event_store.create_projection('x', 'set', 'COPY new_events TO stdout')$$);

-- event: any language, any schema
CREATE SCHEMA "Hand lers";
CREATE TABLE handled (n serial, stream text, version int, amount numeric, replaying boolean);
CREATE FUNCTION "Hand lers"."On Event"(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO handled (stream, version, amount, replaying) VALUES (e.stream, e.version, (e.data->>'amount')::numeric, event_store.is_replaying());
END $$;
CREATE FUNCTION on_event_sql(e event_store.recorded_event) RETURNS int LANGUAGE sql AS
$$INSERT INTO handled (stream, version, amount) VALUES ('sql ' || e.stream, e.version, (e.data->>'amount')::numeric); SELECT 1$$;
SELECT event_store.create_projection('handled', 'event', '"Hand lers"."On Event"', types => '{Added}', batch_events => 1);
SELECT event_store.create_projection('handled sql', 'event', 'on_event_sql', categories => '{basket,order}', start_after => 20);
SELECT event_store.refresh_projection('handled', 3), event_store.refresh_projection('handled'), event_store.refresh_projection('handled sql');
SELECT bool_and(h.stream = e.stream AND h.version = e.version AND h.amount = (e.data->>'amount')::numeric AND NOT h.replaying), count(*)
FROM (SELECT *, row_number() OVER (ORDER BY n) AS r FROM handled WHERE stream !~ 'sql') h
FULL JOIN (SELECT *, row_number() OVER (ORDER BY position) AS r FROM event_store.events WHERE type = 'Added') e USING (r);
SELECT string_agg(stream || ' ' || version, ',' ORDER BY n) FROM handled WHERE stream ~ 'sql';
SELECT event_store.is_replaying();

-- fold: by stream, by key, no key; built in and of one's own
SELECT event_store.create_projection('sums', 'fold', 'sum(amount)');
SELECT event_store.create_projection('by who', 'fold', 'count', key => 'data->>''who''', categories => '{order}');
SELECT event_store.create_projection('months', 'fold', 'max(amount)', key => 'to_char(recorded_at, ''YYYY'') || CASE WHEN version > 3 THEN type END', types => '{Paid}');
CREATE FUNCTION longest(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS
$$SELECT jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1, 'path', coalesce(state->>'path', '') || left(e.type, 1))$$;
SELECT event_store.create_projection('paths', 'fold', 'longest', batch_events => 4);
SELECT event_store.create_projection('key row', 'fold', 'count', key => '(new_events).version % 2', start_after => 10);
SELECT name, event_store.refresh_projection(name, 11), event_store.refresh_projection(name) FROM event_store.projections WHERE kind = 'fold' ORDER BY name COLLATE "C";
SELECT projection, key, state, version, position FROM event_store.projection_states WHERE projection <> 'months' ORDER BY projection COLLATE "C", key;
SELECT state, version FROM event_store.projection_states WHERE projection = 'months';
SELECT event_store.projection_state('sums', 'order-1'), event_store.projection_state('paths', 'basket-1'), event_store.projection_state('by who', 'ann'), event_store.projection_state('by who', 'nobody'), event_store.projection_state('sums', ''), event_store.projection_state('key row', '0');
-- a state that is no state
CREATE FUNCTION forgets(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS
$$SELECT CASE WHEN e.version % 2 = 1 THEN coalesce(state, '0') END$$;
SELECT event_store.create_projection('forgets', 'fold', 'forgets', batch_events => 3);
SELECT event_store.refresh_projection('forgets');
SELECT key, state, version FROM event_store.projection_states WHERE projection = 'forgets' ORDER BY key;
-- live: nothing is stored, nothing is behind; one's own appends by stream
SELECT event_store.create_projection('live', 'fold', 'sum(amount)', 'live');
SELECT event_store.create_projection('live who', 'fold', 'count', 'live', key => 'data->>''who''', categories => '{order}');
SELECT event_store.create_projection('live types', 'fold', 'longest', 'live', categories => '{order}', types => '{Paid}');
SELECT event_store.projection_state('live', 'order-1'), event_store.projection_state('live who', 'ann'), event_store.projection_state('live types', 'order-1'), event_store.projection_state('live types', 'basket-1'), event_store.projection_state('live', 'none'), event_store.projection_state('live', '');
SELECT event_store.refresh_projection('live'), event_store.wait_for_projection('live', 1000);
BEGIN;
SELECT FROM event_store.append('order-1', 'Paid', '{"amount": 1000, "who": "ann"}');
SELECT event_store.projection_state('live', 'order-1'), event_store.projection_state('live who', 'ann'), event_store.projection_state('sums', 'order-1');
ROLLBACK;
SELECT count(*) FROM event_store.projection_states WHERE projection ~ 'live';

-- materialized view: without and with a unique index, with one that will not do
CREATE MATERIALIZED VIEW per_type AS SELECT type, count(*) FROM event_store.events GROUP BY type WITH NO DATA;
SELECT event_store.create_projection('per type', 'matview', 'per_type', categories => '{order}');
SELECT event_store.refresh_projection('per type'), event_store.refresh_projection('per type');
SELECT * FROM per_type ORDER BY type;
CREATE UNIQUE INDEX ON per_type (lower(type));
SELECT FROM event_store.append('order-1', 'Paid', '{"amount": 1, "who": "ann"}');
SELECT event_store.refresh_projection('per type');
CREATE UNIQUE INDEX ON per_type (type);
-- how it was refreshed: CONCURRENTLY keeps the file
SELECT relfilenode FROM pg_class WHERE relname = 'per_type' \gset
SELECT FROM event_store.append('basket-1', 'Paid', '{"amount": 1, "who": "ann"}');
SELECT event_store.refresh_projection('per type', 1);
SELECT FROM event_store.append('order-1', 'Paid', '{"amount": 1, "who": "ann"}');
SELECT event_store.refresh_projection('per type', 1);
SELECT *, (SELECT relfilenode FROM pg_class WHERE relname = 'per_type') = :relfilenode AS concurrently FROM per_type ORDER BY type;
-- at most once per interval
SELECT event_store.alter_projection('per type', refresh_every => '1 hour');
SELECT FROM event_store.append('order-1', 'Paid', '{"amount": 1, "who": "ann"}');
SELECT event_store.refresh_projection('per type');
SELECT open_events, status FROM event_store.projections WHERE name = 'per type';
UPDATE event_store.projection_checkpoint SET applied_at = applied_at - interval '2 hours' WHERE projection_id = (SELECT id FROM event_store.projection WHERE name = 'per type');
SELECT event_store.refresh_projection('per type'), event_store.refresh_projection('per type');

-- what the views say
SELECT name, kind, mode, key, categories, types, status, checkpoint, positions_behind, open_events, lag > '0' AS lag, applied, applied_at IS NOT NULL AS applied_at, rate > 0 AS rate, skipped, on_error, max_attempts, owner = current_user AS own
FROM event_store.projections ORDER BY name COLLATE "C";
SELECT FROM event_store.append('order-1', 'Paid', '{"amount": 5, "who": "ann"}');
SELECT FROM event_store.append('other-1', 'Paid', '{"amount": 5, "who": "ann"}');
SELECT name, open_events, positions_behind, lag > '0' AS lag FROM event_store.projections WHERE name IN ('total', 'by who') ORDER BY name COLLATE "C";
SELECT * FROM event_store.projection_lag('total', 1) AS l (n, at) WHERE at IS NOT NULL \gset
SELECT :n, open_events FROM event_store.projection_lag('total', NULL);
-- as of a time: what the events up to then come to
SELECT event_store.create_projection('then', 'fold', 'sum(amount)', 'live', categories => '{order}');
SELECT recorded_at AS middle FROM event_store.events WHERE position = 15 \gset
SELECT count(*) > 0 AS any, bool_and(a.state = to_jsonb(e.s) AND a.version = e.v AND a.position = e.p) AS equal
  FROM event_store.projection_as_of('then', :'middle') a
  FULL JOIN (SELECT stream, sum((data->>'amount')::numeric) AS s, max(version) AS v, max(position) AS p FROM event_store.events
	WHERE category = 'order' AND recorded_at <= :'middle' GROUP BY 1) e ON e.stream = a.key;
SELECT count(*) FROM event_store.projection_as_of('then', '-infinity');
SELECT raises($$SELECT * FROM event_store.projection_as_of('then', NULL)$$), raises($$SELECT * FROM event_store.projection_as_of('total', now())$$),
	raises($$SELECT * FROM event_store.projection_as_of('none', now())$$);
SELECT event_store.drop_projection('then');
-- in each mode it begins behind the same position
SELECT event_store.create_projection('late ' || mode || coalesce(' ' || key, ''), 'fold', 'count', mode, start_after => 12, key => key)
  FROM unnest('{async,inline,live}'::text[]) mode, unnest('{NULL,type}'::text[]) key;
SELECT event_store.refresh_projection('late async'), event_store.refresh_projection('late async type');
SELECT FROM event_store.append('order-1', 'Paid', '{}');
SELECT event_store.refresh_projection('late async'), event_store.refresh_projection('late async type');
CREATE VIEW late AS SELECT p.name, e.key, e.n FROM event_store.projections AS p,
	LATERAL (SELECT CASE WHEN p.key IS NULL THEN stream ELSE type END AS key, to_jsonb(count(*)) AS n FROM event_store.events WHERE position > 12 GROUP BY 1) AS e WHERE p.name ~ '^late';
SELECT name, count(*) > 1 AS many, bool_and(event_store.projection_state(name, key) = n) AS state FROM late GROUP BY name ORDER BY name COLLATE "C";
SELECT count(*) FROM (SELECT p.name, a.key, a.state FROM event_store.projections AS p, event_store.projection_as_of(p.name, 'infinity') AS a WHERE p.name ~ '^late' EXCEPT SELECT * FROM late) AS x;
DROP VIEW late;
SELECT count(event_store.drop_projection(name)) FROM event_store.projections WHERE name ~ '^late';

-- all at once
SELECT event_store.pause_projection('sums');
SELECT event_store.refresh_projections(), event_store.refresh_projections('1 min');
SELECT name, status, open_events FROM event_store.projections WHERE open_events > 0 ORDER BY name;
SELECT event_store.refresh_projection('sums');
SELECT event_store.resume_projection('sums');
SELECT event_store.refresh_projections('1 ms') IS NOT NULL, event_store.refresh_projections();
SELECT count(*) FROM event_store.projections WHERE open_events > 0;

-- events of other categories only: nothing is applied, and the checkpoint follows now and then
SELECT event_store.create_projection('nothing', 'set', 'INSERT INTO counted SELECT count(*) FROM new_events', categories => '{none}', start_after => 3);
SELECT event_store.refresh_projection('nothing');
SELECT checkpoint, positions_behind > 10 AS behind, open_events FROM event_store.projections WHERE name = 'nothing';
SELECT event_store.wait_for_projection('nothing', 20);
INSERT INTO event_store.events (stream, type, data) SELECT 'mass-1', 't', '1' FROM generate_series(1, 1000);
SELECT event_store.refresh_projection('nothing');
SELECT positions_behind, open_events, applied FROM event_store.projections WHERE name = 'nothing';

-- waiting
SELECT event_store.wait_for_projection('total', 5), event_store.wait_for_projection('total', event_store.last_position(), '50 ms'), event_store.wait_for_projection('total', 1000000, '0');
SELECT event_store.refresh_projection('total');
SELECT event_store.wait_for_projection('total', event_store.last_position(), NULL);

-- huge payloads, and bounds that are minimal
SELECT event_store.create_projection('huge', 'set', 'INSERT INTO counted SELECT -sum(length(data->>''x'')) FROM new_events', categories => '{huge}', batch_size => 64);
SELECT event_store.create_projection('huge state', 'fold', 'merge_patch', categories => '{huge}', batch_size => 64, batch_events => 1, key => '''all''');

SELECT FROM generate_series(1, 3) i, event_store.append('huge-' || i, 'Big', jsonb_build_object('x', repeat('0123456789', 100000), i::text, repeat(md5(i::text), 3000)));
SELECT event_store.refresh_projection('huge'), event_store.refresh_projection('huge state');
SELECT * FROM counted WHERE n < 0 ORDER BY n;
SELECT length(state::text), (SELECT count(*) FROM jsonb_object_keys(state)) FROM event_store.projection_states WHERE projection = 'huge state';

-- NULL keys: the event has none; and keys that are too long
SELECT event_store.create_projection('some', 'fold', 'count', key => 'nullif(data->>''who'', ''ann'')');
SELECT event_store.refresh_projection('some') > 1000 AS applied;
SELECT key, state FROM event_store.projection_states WHERE projection = 'some';
-- of many keys, in a batch that is too small for them
SELECT event_store.create_projection('many', 'fold', 'count', key => 'position / 2', batch_size => 64);
SELECT event_store.refresh_projection('many') > 1000 AS applied;
SELECT count(*) > 500 AS many, sum(state::int) = (SELECT count(*) FROM event_store.events) AS all_of_them FROM event_store.projection_states WHERE projection = 'many';

-- a new handler goes on from the checkpoint
SELECT event_store.alter_projection('counted', handler => 'INSERT INTO counted SELECT 1000000 FROM new_events', batch_events => 100000);
SELECT FROM event_store.append('order-1', 'Paid', '{"amount": 5, "who": "ann"}');
SELECT event_store.refresh_projection('counted') > 0;
SELECT count(*) FROM counted WHERE n = 1000000;
SELECT raises($$SELECT event_store.alter_projection('counted', handler => 'nonsense')$$);
SELECT handler FROM event_store.projections WHERE name = 'counted';
SELECT event_store.alter_projection('sums', handler => 'count');
SELECT raises($$SELECT event_store.alter_projection('sums', handler => 'nonsense')$$);

-- guards
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY[
	'create_projection(NULL, ''set'', ''SELECT'')', 'create_projection(''n'', NULL, ''SELECT'')', 'create_projection(''n'', ''set'', NULL)',
	'create_projection('''', ''set'', ''SELECT'')', 'create_projection(E''a\nb'', ''set'', ''SELECT'')', 'create_projection(repeat(''x'', 2000), ''set'', ''SELECT'')',
	'create_projection(''total'', ''set'', ''SELECT'')', 'create_projection(''n'', ''Set'', ''SELECT'')', 'create_projection(''n'', ''view'', ''SELECT'')',
	'create_projection(''n'', ''set'', '''')', 'create_projection(''n'', ''set'', ''  -- nothing'')', 'create_projection(''n'', ''set'', '';'')', 'create_projection(''n'', ''set'', ''SELEC'')',
	'create_projection(''n'', ''set'', ''SELECT $1 FROM new_events'')', 'create_projection(''n'', ''set'', ''SELECT nope FROM new_events'')', 'create_projection(''n'', ''set'', ''INSERT INTO nope SELECT 1'')',
	'create_projection(''n'', ''set'', ''INSERT INTO new_events VALUES (1)'')', 'create_projection(''n'', ''set'', ''BEGIN'')', 'create_projection(''n'', ''set'', ''SAVEPOINT a'')',
	'create_projection(''n'', ''set'', ''SELECT FROM new_events'', mode => ''live'')', 'create_projection(''n'', ''set'', ''SELECT FROM new_events'', mode => ''sync'')',
	'create_projection(''n'', ''set'', ''SELECT FROM new_events'', key => ''stream'')',
	'create_projection(''n'', ''set'', ''SELECT FROM new_events'', categories => ''{}'')', 'create_projection(''n'', ''set'', ''SELECT FROM new_events'', types => ''{a,NULL}'')',
	'create_projection(''n'', ''set'', ''SELECT FROM new_events'', start_after => -1)',
	'create_projection(''n'', ''set'', ''SELECT FROM new_events'', on_error => ''ignore'')', 'create_projection(''n'', ''set'', ''SELECT FROM new_events'', max_attempts => 0)',
	'create_projection(''n'', ''set'', ''SELECT FROM new_events'', first_delay => ''-1 s'')', 'create_projection(''n'', ''set'', ''SELECT FROM new_events'', delay_factor => ''NaN'')', 'create_projection(''n'', ''set'', ''SELECT FROM new_events'', delay_factor => 0.5)',
	'create_projection(''n'', ''set'', ''SELECT FROM new_events'', max_delay => ''1000000 years'')', 'create_projection(''n'', ''set'', ''SELECT FROM new_events'', batch_events => 0)', 'create_projection(''n'', ''set'', ''SELECT FROM new_events'', batch_size => 1)',
	'create_projection(''n'', ''set'', ''SELECT FROM new_events'', refresh_every => ''-1 s'')',
	'create_projection(''n'', ''event'', ''nope'')', 'create_projection(''n'', ''event'', '''')', 'create_projection(''n'', ''event'', ''a.b.c.d'')', 'create_projection(''n'', ''event'', ''now'')', 'create_projection(''n'', ''event'', ''public.longest'')', 'create_projection(''n'', ''event'', ''count'')',
	'create_projection(''n'', ''fold'', ''nope'')', 'create_projection(''n'', ''fold'', ''sum'')', 'create_projection(''n'', ''fold'', ''on_event_sql'')', 'create_projection(''n'', ''fold'', '' '')',
	'create_projection(''n'', ''fold'', ''count'', key => '''')', 'create_projection(''n'', ''fold'', ''count'', key => ''nope'')', 'create_projection(''n'', ''fold'', ''count'', key => ''count(*)'')', 'create_projection(''n'', ''fold'', ''count'', key => ''(SELECT 1)'')',
	'create_projection(''n'', ''fold'', ''count'', key => ''random()'')', 'create_projection(''n'', ''fold'', ''count'', key => ''generate_series(1, 2)'')', 'create_projection(''n'', ''fold'', ''count'', key => ''1); DROP TABLE total; SELECT (2'')',
	'create_projection(''n'', ''fold'', ''count'', key => ''1)::text, (2'')', 'create_projection(''n'', ''fold'', ''count'', key => ''row_number() OVER ()'')', 'create_projection(''n'', ''fold'', ''count'', key => ''$1'')',
	'create_projection(''n'', ''matview'', ''nope'')', 'create_projection(''n'', ''matview'', ''total'')', 'create_projection(''n'', ''matview'', '''')', 'create_projection(''n'', ''matview'', ''per_type'', mode => ''inline'')', 'create_projection(''n'', ''matview'', ''per_type'', mode => ''live'')',
	'create_projection(''n'', ''matview'', ''per_type; DROP TABLE total'')',
	'alter_projection(NULL)', 'alter_projection(''none'')', 'alter_projection(''total'', mode => ''live'')', 'alter_projection(''live'', mode => ''async'')', 'alter_projection(''sums'', mode => ''live'')', 'alter_projection(''per type'', mode => ''inline'')', 'alter_projection(''total'', on_error => ''ignore'')', 'alter_projection(''total'', batch_events => -1)',
	'drop_projection(NULL)', 'drop_projection(''none'')', 'pause_projection(NULL)', 'pause_projection(''none'')', 'resume_projection(''none'')', 'pause_projection(''live'')', 'resume_projection(''live'')',
	'refresh_projection(NULL)', 'refresh_projection(''none'')', 'refresh_projection(''total'', 0)', 'refresh_projection(repeat(''x'', 2000))', 'refresh_projections(''0'')', 'refresh_projections(''-1 s'')',
	'wait_for_projection(NULL, 1)', 'wait_for_projection(''none'', 1)', 'wait_for_projection(''total'', NULL)', 'wait_for_projection(''total'', -1)',
	'projection_state(NULL, ''a'')', 'projection_state(''none'', ''a'')', 'projection_state(''sums'', NULL)', 'projection_state(''total'', ''a'')', 'projection_lag(NULL)', 'projection_lag(''none'')', 'projection_lag(''total'', 0)']) call;
SELECT raises($$SELECT event_store.create_projection('n', 'set', 'SELECT FROM new_events', start_after => 100000000)$$) ~ '^VE002 . position 100000000 lies beyond';
SELECT count(*) FROM event_store.projections WHERE name = 'n';
SELECT count(*) = count(DISTINCT id) FROM event_store.projection;
BEGIN READ ONLY;
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY['create_projection(''n'', ''set'', ''SELECT FROM new_events'')', 'alter_projection(''total'')', 'drop_projection(''total'')', 'pause_projection(''total'')', 'resume_projection(''total'')',
	'refresh_projection(''total'')', 'refresh_projections()']) call;
SELECT event_store.projection_state('sums', 'order-1') IS NOT NULL, event_store.projection_state('live', 'order-1') IS NOT NULL, event_store.wait_for_projection('total', 1), (SELECT count(*) > 10 FROM event_store.projections), (SELECT open_events FROM event_store.projection_lag('total'));
COMMIT;

-- a rollback to a savepoint takes effect and checkpoint back together
BEGIN;
SELECT FROM event_store.refresh_projection('total');
SELECT checkpoint AS before FROM event_store.projections WHERE name = 'total' \gset
COMMIT;
SELECT FROM event_store.append('order-7', 'Paid', '{"amount": 7}');
BEGIN;
SAVEPOINT a;
SELECT event_store.refresh_projection('total'), (SELECT amount FROM total WHERE stream = 'order-7');
SELECT amount FROM total WHERE stream = 'order-7';
ROLLBACK TO a;
SELECT checkpoint = :before AS as_before, open_events FROM event_store.projections WHERE name = 'total';
SELECT amount FROM total WHERE stream = 'order-7';
SELECT event_store.refresh_projection('total');
COMMIT;
SELECT amount, events FROM total WHERE stream = 'order-7';
SELECT raises($$SELECT event_store.refresh_projection('total') / 0$$);

-- REPEATABLE READ: what nobody has done since
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT event_store.refresh_projection('total');
COMMIT;
SELECT FROM event_store.append('order-7', 'Paid', '{"amount": 7}');
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT event_store.refresh_projection('total'), event_store.refresh_projection('total');
COMMIT;
SELECT amount, events FROM total WHERE stream = 'order-7';

-- many versions of a checkpoint do not stay
SELECT event_store.create_projection('versions', 'set', 'SELECT count(*) FROM new_events', batch_events => 1);
SELECT event_store.refresh_projection('versions') > 1000;
SELECT count(*) <= 64 FROM event_store.projection_checkpoint WHERE projection_id = (SELECT id FROM event_store.projection WHERE name = 'versions');
SELECT open_events, applied > 1000 AS applied FROM event_store.projections WHERE name = 'versions';

-- dropped, nothing of it is left, but the tables that the handler wrote
SELECT count(event_store.drop_projection(name)) > 10 AS dropped FROM event_store.projections;
SELECT (SELECT count(*) FROM event_store.projection_checkpoint), (SELECT count(*) FROM event_store.projection_error), (SELECT count(*) FROM event_store.projection_failure), (SELECT count(*) FROM event_store.projection_state);
SELECT relname FROM pg_class WHERE relname ~ '^projection_state_.*[0-9]';
SELECT count(*) FROM handled WHERE n > 0;
SELECT event_store.create_projection('total', 'set', 'SELECT FROM new_events', start_after => NULL) = event_store.settled_position();
BEGIN;
SELECT event_store.drop_projection('total');
ROLLBACK;
SELECT status FROM event_store.projections;

-- who watches needs no right to read events
CREATE ROLE regress_event_store_watcher;
GRANT USAGE ON SCHEMA event_store TO regress_event_store_watcher;
SET ROLE regress_event_store_watcher;
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY['projection_lag(''total'')', 'settled_position()', 'last_position()']) call;
RESET ROLE;
GRANT SELECT ON event_store.projections, event_store.projection_rebuilds TO regress_event_store_watcher;
SET ROLE regress_event_store_watcher;
SELECT name, positions_behind, open_events, lag FROM event_store.projections;
SELECT count(*) FROM event_store.projection_rebuilds;
SELECT open_events FROM event_store.projection_lag('total');
SELECT event_store.last_position() >= event_store.settled_position();
SELECT call, raises('SELECT event_store.' || call) FROM unnest(ARRAY['read_all()', 'projection_state(''total'', ''a'')', 'wait_for_projection(''total'', 1)']) call;
RESET ROLE;
DROP OWNED BY regress_event_store_watcher;
DROP ROLE regress_event_store_watcher;
SET client_min_messages = warning;
DROP EXTENSION event_store CASCADE;
DROP SCHEMA "Hand lers" CASCADE;
DROP TABLE total, log, copied, counted, odd, handled;
CREATE EXTENSION event_store;
