-- Inline projections, live ones, and the oracle: what is kept up to date equals
-- what is computed anew
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(64);
INSERT INTO event_store.events (stream, type, data) SELECT 'a-' || i % 3, 'Added', jsonb_build_object('n', i, 'k', i % 2) FROM generate_series(1, 12) i;

-- what is there is applied at once, and what comes with it
CREATE TABLE seen (n serial, projection text, position bigint, stream text, version int);
SELECT event_store.create_projection('set', 'set', $$INSERT INTO seen (projection, position, stream, version) SELECT 'set', position, stream, version FROM new_events$$, 'inline', batch_events => 5);
CREATE FUNCTION seen(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO seen (projection, position, stream, version) VALUES ('event', e.position, e.stream, e.version);
END $$;
SELECT event_store.create_projection('event', 'event', 'seen', 'inline', categories => '{a}', types => '{Added}');
SELECT event_store.create_projection('fold', 'fold', 'sum(n)', 'inline');
SELECT event_store.create_projection('key', 'fold', 'count', 'inline', key => 'data->>''k''');
SELECT event_store.create_projection('later', 'fold', 'count', 'inline', key => '1', start_after => NULL);
SELECT projection, count(*), max(position) FROM seen GROUP BY projection ORDER BY projection;
SELECT name, mode, status, checkpoint, positions_behind, open_events, lag, applied FROM event_store.projections ORDER BY name COLLATE "C";
-- each way of appending
SELECT FROM event_store.append('a-1', 'Added', '{"n": 100, "k": 1}');
SELECT FROM event_store.append('b-1', 'Added', '{"n": 100}');
SELECT FROM event_store.append('a-1', 'Other', '{"n": 100, "k": null}');
SELECT FROM event_store.append_events('a-5', '[{"type": "Added", "data": {"n": 1}}, {"type": "Added", "data": {"n": 2, "k": 0}}]');
SELECT FROM event_store.append_streams('[{"stream": "a-6", "events": [{"type": "Added", "data": {"n": 1}}]}, {"stream": "a-5", "events": [{"type": "Added", "data": {"n": 3, "k": 0}}]}]');
INSERT INTO event_store.events (stream, type, data) SELECT 'a-' || i % 3, 'Added', jsonb_build_object('n', i, 'k', i % 2) FROM generate_series(1, 300) i;
COPY event_store.events (stream, type, data) FROM stdin;
a-1	Added	{"n": 7}
c-1	Added	{"n": 7, "k": 0}
\.
SELECT count(*) FROM (SELECT position, stream, version FROM event_store.events EXCEPT ALL SELECT position, stream, version FROM seen WHERE projection = 'set') d;
SELECT count(*) FROM (SELECT position, stream, version FROM event_store.events WHERE category = 'a' AND type = 'Added' EXCEPT ALL SELECT position, stream, version FROM seen WHERE projection = 'event') d;
SELECT projection, count(*) FROM seen GROUP BY projection ORDER BY projection;
SELECT projection, key, state, version FROM event_store.projection_states ORDER BY projection, key;
SELECT event_store.projection_state('fold', 'a-6'), event_store.projection_state('key', '1'), event_store.refresh_projection('fold'), event_store.wait_for_projection('fold', 1000000);
-- a duplicate is not applied again
SELECT FROM event_store.append('d-1', 'Added', '{"n": 1}', event_id => '00000000-0000-0000-0000-00000000000d');
SELECT (event_store.append('d-1', 'Added', '{"n": 1}', event_id => '00000000-0000-0000-0000-00000000000d')).duplicate;
SELECT event_store.projection_state('fold', 'd-1'), (SELECT count(*) FROM seen WHERE stream = 'd-1');
-- all that an event has
CREATE TABLE whole (event jsonb);
SELECT event_store.create_projection('whole', 'set', 'INSERT INTO whole SELECT to_jsonb(e) FROM new_events AS e', 'inline', categories => '{w}');
SELECT FROM event_store.append('w-1', 'All', '{"a": [1, 2]}', '{"m": 1}', event_id => '00000000-0000-0000-0000-000000000001', occurred_at => '2020-01-01', correlation_id => 'c', causation_id => '00000000-0000-0000-0000-000000000002', schema_version => 3, source => 's');
SELECT FROM event_store.append('w-1', 'Least', '1');
INSERT INTO event_store.events (stream, type, data) VALUES ('w-2', 'Inserted', '1');
SELECT count(*) FROM (SELECT to_jsonb(e) - 'category' FROM event_store.events AS e WHERE category = 'w' EXCEPT ALL SELECT event FROM whole) d;
SELECT count(*) FROM whole;

-- an error aborts the append, and says which projection; a savepoint takes all back
SELECT event_store.create_projection('picky', 'set', 'SELECT 1 / (data->>''n'')::int FROM new_events', 'inline', start_after => NULL, categories => '{a}');
SELECT FROM event_store.append('a-1', 'Added', '{"n": 0}');
SELECT event_store.stream_version('a-1') AS before, event_store.projection_state('fold', 'a-1') AS sum \gset
\set VERBOSITY terse
SELECT raises($$SELECT event_store.append('a-1', 'Added', '{"n": 0}')$$);
\set VERBOSITY default
BEGIN;
SELECT FROM event_store.append('a-1', 'Added', '{"n": 5}');
SAVEPOINT a;
SELECT FROM event_store.append('a-1', 'Added', '{"n": 500}');
ROLLBACK TO a;
SELECT raises($$SELECT event_store.append('a-1', 'Added', '{"n": 0}')$$);
SELECT FROM event_store.append('a-1', 'Added', '{"n": 6}');
COMMIT;
SELECT event_store.stream_version('a-1') - :before AS versions, event_store.projection_state('fold', 'a-1')::int - :sum AS sum;
SELECT event_store.drop_projection('picky');
SELECT raises($$SELECT event_store.create_projection('picky', 'set', 'SELECT 1 / (data->>''k'')::int FROM new_events', 'inline')$$);
SET client_min_messages = error;
SELECT raises($$SELECT event_store.create_projection('picky', 'set', 'SELECT 1 / (data->>''k'')::int FROM new_events', 'inline', on_error => 'skip', max_attempts => 1)$$);
RESET client_min_messages;
SELECT skipped > 100 AS skipped, mode FROM event_store.projections WHERE name = 'picky';
SELECT event_store.drop_projection('picky');

-- appends that are larger than a batch: by key, in several batches
SELECT event_store.create_projection('small', 'fold', 'count', 'inline', key => 'data->>''key''', batch_size => 64, categories => '{big}');
SELECT event_store.create_projection('small set', 'set', 'INSERT INTO seen (projection, position) SELECT ''small'', position FROM new_events WHERE data->>''key'' <> ''''', 'inline', batch_size => 64, categories => '{big}');
INSERT INTO event_store.events (stream, type, data) SELECT 'big-' || i % 7, 'Added', jsonb_build_object('key', i % 700) FROM generate_series(1, 2000) i;
SELECT sum(state::int), count(*), min(state::int), max(state::int) FROM event_store.projection_states WHERE projection = 'small';
SELECT count(*), count(DISTINCT position) FROM seen WHERE projection = 'small';
SELECT event_store.drop_projection('small'), event_store.drop_projection('small set');

-- handlers that append: for themselves, and for others; without an end
CREATE TABLE reaction (n serial, step text);
CREATE FUNCTION react(e event_store.recorded_event) RETURNS void LANGUAGE sql AS $$
	INSERT INTO reaction (step) VALUES (e.stream || ' ' || e.version || ' ' || e.type);
	SELECT event_store.append('react-2', 'n' || substr(e.type, 2)::int - 1, '1') WHERE substr(e.type, 2)::int > 0;
	INSERT INTO reaction (step) VALUES ('done ' || e.stream || ' ' || e.version);
$$;
SELECT event_store.create_projection('react', 'event', 'react', 'inline', categories => '{react}');
SELECT FROM event_store.append('react-1', 'n3', '1');
SELECT step FROM reaction ORDER BY n;
SELECT raises($$SELECT event_store.append('react-1', 'n100', '1')$$);
SELECT event_store.stream_version('react-2');
SELECT event_store.create_projection('react set', 'set', $$SELECT event_store.append('react set-2', type, data) FROM new_events WHERE stream <> 'react set-2'$$, 'inline', categories => '{"react set"}');
SELECT FROM event_store.append_events('react set-1', '[{"type": "a", "data": 1}, {"type": "b", "data": 2}]');
SELECT stream, version, type FROM event_store.events WHERE category = 'react set' ORDER BY position;
-- events of a stream come in their order all the same: what a handler appends comes after all of what it was given
CREATE FUNCTION follow(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.type = 'First' THEN
		PERFORM event_store.append(e.stream, 'Second', e.data || '{"last": "second"}');
		BEGIN
			PERFORM event_store.append(e.stream, 'Taken back', '{"last": "taken back"}');
			RAISE EXCEPTION 'no';
		EXCEPTION WHEN raise_exception THEN
		END;
		PERFORM event_store.append(e.stream, 'Third', '{"third": 3}');
	END IF;
END $$;
SELECT event_store.create_projection('follow', 'event', 'follow', 'inline', categories => '{follow}');
SELECT event_store.create_projection('followed', 'fold', 'merge_patch', 'inline', categories => '{follow}');
SELECT event_store.create_projection('followed set', 'set', $$INSERT INTO seen (projection, position, stream, version) SELECT 'follow', position, stream, version FROM new_events ORDER BY position$$, 'inline', categories => '{follow}');
SELECT FROM event_store.append_events('follow-1', '[{"type": "First", "data": {"last": "first"}}, {"type": "Plain", "data": {"last": "plain"}}, {"type": "First", "data": {"last": "first again"}}]');
SELECT f.state = m.state AS same, f.state FROM event_store.projection_states f, (SELECT event_store.merge_patch(data ORDER BY version) AS state FROM event_store.events WHERE stream = 'follow-1') m WHERE f.projection = 'followed';
SELECT string_agg(version::text, ',' ORDER BY n) FROM seen WHERE projection = 'follow';
SELECT event_store.drop_projection('follow'), event_store.drop_projection('followed'), event_store.drop_projection('followed set'), event_store.drop_projection('react'), event_store.drop_projection('react set');

-- made, altered, dropped within a transaction that is rolled back, in parts too
BEGIN;
SELECT event_store.create_projection('gone', 'set', 'INSERT INTO reaction (step) SELECT ''gone'' FROM new_events', 'inline', start_after => NULL);
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT count(*) FROM reaction WHERE step = 'gone';
ROLLBACK;
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
BEGIN;
SAVEPOINT a;
SELECT event_store.drop_projection('event');
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT max(version) - event_store.stream_version('a-1') FROM seen WHERE projection = 'event' AND stream = 'a-1';
ROLLBACK TO a;
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
COMMIT;
SELECT max(version) - event_store.stream_version('a-1') FROM seen WHERE projection = 'event' AND stream = 'a-1';
SELECT count(*) FROM reaction WHERE step = 'gone';

-- modes: nothing is skipped, nothing comes twice
SELECT event_store.alter_projection('event', mode => 'async');
SELECT status, checkpoint = event_store.settled_position() AS at_end FROM event_store.projections WHERE name = 'event';
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT max(version) - event_store.stream_version('a-1') FROM seen WHERE projection = 'event' AND stream = 'a-1';
SELECT event_store.alter_projection('event', mode => 'inline');
SELECT max(version) - event_store.stream_version('a-1') FROM seen WHERE projection = 'event' AND stream = 'a-1';
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT event_store.alter_projection('event', mode => 'async');
SELECT event_store.pause_projection('event');
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT event_store.refresh_projection('event');
-- one that is paused is no longer
SELECT event_store.alter_projection('event', mode => 'inline');
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT event_store.alter_projection('event', mode => 'async'), event_store.refresh_projection('event');
SELECT count(*) FROM (SELECT position FROM event_store.events WHERE category = 'a' AND type = 'Added' EXCEPT ALL SELECT position FROM seen WHERE projection = 'event') d;
SELECT count(*) FROM (SELECT position FROM seen WHERE projection = 'event' EXCEPT ALL SELECT position FROM event_store.events WHERE category = 'a' AND type = 'Added') d;
-- another handler
SELECT event_store.alter_projection('set', handler => 'INSERT INTO reaction (step) SELECT ''new handler'' FROM new_events');
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT count(*) FROM reaction WHERE step = 'new handler';
-- not where it would leave a gap
BEGIN;
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT raises($$SELECT event_store.create_projection('n', 'set', 'SELECT FROM new_events', 'inline')$$);
SELECT raises($$SELECT event_store.alter_projection('event', mode => 'inline')$$);
SELECT raises($$SELECT event_store.alter_projection('set', mode => 'async')$$);
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT raises($$SELECT event_store.create_projection('n', 'set', 'SELECT FROM new_events', 'inline')$$);
SELECT raises($$SELECT event_store.alter_projection('event', mode => 'inline')$$);
ROLLBACK;
SELECT raises($$SELECT event_store.pause_projection('set')$$), raises($$SELECT event_store.resume_projection('set')$$);
-- only the owner of the store
CREATE ROLE regress_event_store_inline;
GRANT USAGE ON SCHEMA event_store TO regress_event_store_inline;
GRANT SELECT, INSERT ON event_store.events TO regress_event_store_inline;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA event_store TO regress_event_store_inline;
SET ROLE regress_event_store_inline;
SELECT raises($$SELECT event_store.create_projection('n', 'fold', 'count', 'inline')$$), raises($$SELECT event_store.drop_projection('set')$$), raises($$SELECT event_store.alter_projection('set', mode => 'async')$$), raises($$SELECT event_store.alter_projection('set', handler => 'SELECT FROM new_events')$$);
SELECT event_store.create_projection('n', 'fold', 'count');
SELECT raises($$SELECT event_store.alter_projection('n', mode => 'inline')$$);
-- who appends needs no right to what the handler writes
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT raises('SELECT count(*) FROM reaction');
RESET ROLE;
SELECT count(*) FROM reaction WHERE step = 'new handler';
-- nor can who appends give the handler a table of its own
SET ROLE regress_event_store_inline;
CREATE TEMPORARY TABLE reaction (n serial, step text);
CREATE TEMPORARY TABLE new_events (position bigint);
SET search_path = pg_temp;
SELECT FROM event_store.append('a-1', 'Added', '{"n": 1}');
SELECT count(*) FROM reaction;
RESET search_path;
RESET ROLE;
SELECT count(*) FROM public.reaction WHERE step = 'new handler';
DROP TABLE pg_temp.reaction, pg_temp.new_events;
SELECT count(event_store.drop_projection(name)) FROM event_store.projections;
DROP OWNED BY regress_event_store_inline;
DROP ROLE regress_event_store_inline;

-- The oracle. Random appends; refreshes in random pieces; what is kept equals
-- what plain SQL computes from the log, and the aggregate fold() too.
CREATE TABLE model (projection text, key text, n bigint, sum numeric, last bigint, PRIMARY KEY (projection, key));
CREATE FUNCTION model(name text) RETURNS text LANGUAGE sql AS $$
	SELECT format('INSERT INTO model AS m SELECT %L, coalesce(data->>''k'', ''none''), count(*), coalesce(sum((data->>''n'')::numeric), 0), max(position) FROM new_events GROUP BY 2
		ON CONFLICT (projection, key) DO UPDATE SET n = m.n + excluded.n, sum = m.sum + excluded.sum, last = greatest(m.last, excluded.last)', name)
$$;
CREATE FUNCTION random_appends(seed float8, n int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	_data jsonb;
BEGIN
	PERFORM setseed(seed);
	FOR _i IN 1 .. n LOOP
		BEGIN
			_data := jsonb_strip_nulls(jsonb_build_object(
				'k', CASE WHEN random() < 0.9 THEN 'k' || (random() * 5)::int END,
				'n', CASE WHEN random() < 0.8 THEN round((random() * 1000)::numeric, (random() * 6)::int) END,
				's', CASE WHEN random() < 0.5 THEN left(md5(random()::text), (random() * 10)::int) END,
				'o', CASE WHEN random() < 0.5 THEN jsonb_build_object('x' || (random() * 3)::int, (random() * 9)::int, 'deep', jsonb_build_object('y', random() < 0.5)) END))
				|| CASE WHEN random() < 0.3 THEN '{"gone": null, "s": null}' WHEN random() < 0.1 THEN jsonb_build_object('gone', 1, 'huge', repeat(md5(random()::text), 500)) ELSE '{}' END::jsonb;
			IF random() < 0.6 THEN
				PERFORM event_store.append((ARRAY['a', 'b', 'c'])[1 + floor(random() * 3)::int] || '-' || (random() * 4)::int, (ARRAY['x', 'y'])[1 + floor(random() * 2)::int], _data);
			ELSE
				INSERT INTO event_store.events (stream, type, data)
				SELECT (ARRAY['a', 'b'])[1 + i % 2] || '-' || i % 5, (ARRAY['x', 'y'])[1 + i % 3 % 2], _data || jsonb_build_object('i', i) FROM generate_series(1, 1 + (random() * 20)::int) i;
			END IF;
			IF random() < 0.1 THEN
				RAISE EXCEPTION 'rolled back';
			END IF;
		EXCEPTION WHEN raise_exception THEN
		END;
	END LOOP;
END $$;
-- refreshes each, or not, of so many events
CREATE PROCEDURE random_refreshes(seed float8) LANGUAGE plpgsql AS $$
DECLARE
	_name text;
BEGIN
	PERFORM setseed(seed);
	FOR _name IN SELECT name FROM event_store.projections WHERE mode = 'async' ORDER BY random() LOOP
		FOR _i IN 1 .. (random() * 4)::int LOOP
			PERFORM event_store.refresh_projection(_name, 1 + (random() * 60)::int);
			IF random() < 0.3 THEN ROLLBACK; ELSE COMMIT; END IF;
		END LOOP;
	END LOOP;
END $$;
SET client_min_messages = warning;
DROP EXTENSION event_store CASCADE;
RESET client_min_messages;
CREATE EXTENSION event_store;
SELECT event_store.set_segment_size(64);
CREATE FUNCTION model_async(e event_store.recorded_event) RETURNS void LANGUAGE sql AS $$
	INSERT INTO model AS m VALUES ('event async', coalesce(e.data->>'k', 'none'), 1, coalesce((e.data->>'n')::numeric, 0), e.position)
	ON CONFLICT (projection, key) DO UPDATE SET n = m.n + excluded.n, sum = m.sum + excluded.sum, last = greatest(m.last, excluded.last)
$$;
CREATE FUNCTION model_inline(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO model AS m VALUES ('event inline', coalesce(e.data->>'k', 'none'), 1, coalesce((e.data->>'n')::numeric, 0), e.position)
	ON CONFLICT (projection, key) DO UPDATE SET n = m.n + excluded.n, sum = m.sum + excluded.sum, last = greatest(m.last, excluded.last);
END $$;
-- depends on order, and on every event
CREATE FUNCTION chain(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS
$$SELECT to_jsonb(md5(coalesce(state #>> '{}', '') || e.stream || e.version || e.type || e.data::text))$$;
SELECT random_appends(0.1, 30);
SELECT count(event_store.create_projection('set ' || mode, 'set', model('set ' || mode), mode, batch_events => batch)),
	count(event_store.create_projection('event ' || mode, 'event', 'model_' || mode, mode, batch_events => batch))
FROM (VALUES ('async', 7), ('inline', 1000)) m (mode, batch);
-- by stream and by key; filtered, and not
SELECT count(event_store.create_projection(concat_ws('|', fold, key, mode, filter), 'fold', fold, mode, key => key, categories => filter, types => types, batch_events => batch, batch_size => 64))
FROM unnest(ARRAY['merge_patch', 'merge_patch(o)', 'count', 'count(s)', 'sum(n)', 'min(n)', 'max(s)', 'last(o.deep)', 'last(s)', 'chain']) fold,
	unnest(ARRAY[NULL, 'data->>''k''']) key,
	(VALUES ('async', 13), ('inline', 100), ('live', 100)) m (mode, batch),
	(VALUES (NULL::text[], NULL::text[]), ('{a,c}', '{x}')) f (filter, types);
CREATE MATERIALIZED VIEW viewed AS SELECT coalesce(data->>'k', 'none') AS key, count(*) AS n, sum((data->>'n')::numeric) AS sum FROM event_store.events GROUP BY 1;
SELECT event_store.create_projection('viewed', 'matview', 'viewed');
CALL random_refreshes(0.2);
SELECT random_appends(0.3, 60);
CALL random_refreshes(0.4);
SELECT random_appends(0.5, 60);
CALL random_refreshes(0.6);
SELECT event_store.refresh_projections();
CREATE VIEW recomputed AS
SELECT p.name, x.key, x.state
FROM event_store.projections p, LATERAL (
	SELECT key, event_store.fold(p.handler, e.event ORDER BY position) AS state
	FROM (SELECT event_store.as_recorded_event(e) AS event, e.position, CASE WHEN p.key IS NULL THEN e.stream ELSE e.data->>'k' END AS key
		FROM event_store.events e WHERE (p.categories IS NULL OR e.category = ANY (p.categories)) AND (p.types IS NULL OR e.type = ANY (p.types))) e
	WHERE key IS NOT NULL GROUP BY key) x
WHERE p.kind = 'fold';
SELECT count(*) > 500 AS many, (SELECT count(*) > 300 FROM event_store.events) AS events FROM recomputed;
SELECT r.name, r.key, r.state, s.state FROM (SELECT * FROM recomputed WHERE name !~ 'live') r
FULL JOIN event_store.projection_states s ON s.projection = r.name AND s.key = r.key WHERE r.state IS DISTINCT FROM s.state OR r.name IS NULL OR s.projection IS NULL;
SELECT name, key, state FROM recomputed WHERE name ~ 'live' AND state IS DISTINCT FROM event_store.projection_state(name, key);
SELECT name, key, state FROM recomputed WHERE name !~ 'live' AND state IS DISTINCT FROM event_store.projection_state(name, key);
SELECT projection, count(*) FROM (
	SELECT projection, key, n, trim_scale(sum) AS sum, last FROM model
	EXCEPT SELECT p.name, coalesce(data->>'k', 'none'), count(*), trim_scale(coalesce(sum((data->>'n')::numeric), 0)), max(position) FROM event_store.events, event_store.projections p WHERE p.kind IN ('set', 'event') GROUP BY 1, 2) d
GROUP BY projection;
SELECT projection, count(*) = (SELECT count(DISTINCT coalesce(data->>'k', 'none')) FROM event_store.events) AS keys, sum(n) = (SELECT count(*) FROM event_store.events) AS events FROM model GROUP BY projection ORDER BY projection;
SELECT count(*) FROM (SELECT * FROM viewed EXCEPT SELECT key, n, sum FROM model WHERE projection = 'set inline' AND n > 0) d WHERE sum IS NOT NULL;
SELECT DISTINCT mode, status, open_events, skipped FROM event_store.projections ORDER BY mode;
SET client_min_messages = warning;
DROP EXTENSION event_store CASCADE;
DROP TABLE seen, whole, reaction, model;
DROP FUNCTION model(text), random_appends(float8, int);
DROP PROCEDURE random_refreshes(float8);
CREATE EXTENSION event_store;
