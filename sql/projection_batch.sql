-- The ways in which a statement reads new_events: as it is read from the log, or
-- again and again. Whatever the statement, it sees the whole batch, once.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store CASCADE;
CREATE EXTENSION event_store;
DO $$ BEGIN PERFORM event_store.set_segment_size(64); END $$;
CREATE TABLE seen (handler text, n bigint, positions bigint, streams bigint);

SELECT count(event_store.append('s-' || n % 7, 't' || n % 3, jsonb_build_object('n', n), jsonb_build_object('m', n))) FROM generate_series(1, 200) n;

-- each statement adds what it has seen of a batch: events, positions, streams
CREATE TABLE handler (id int, sql text);
INSERT INTO handler VALUES
	-- new_events alone in FROM
	(1, 'INSERT INTO seen SELECT 1, count(*), sum(position), count(DISTINCT stream) FROM new_events'),
	(2, 'INSERT INTO seen SELECT 2, count(*), sum(position), count(DISTINCT stream) FROM (SELECT * FROM new_events ORDER BY position DESC) AS e'),
	(3, 'INSERT INTO seen SELECT 3, sum(n), sum(p), count(*) FROM (SELECT stream, count(*) AS n, sum(position) AS p FROM new_events GROUP BY stream) AS s'),
	(4, 'INSERT INTO seen SELECT 4, max(number), max(total), max(s) FROM (SELECT row_number() OVER w AS number, sum(position) OVER w AS total, dense_rank() OVER (ORDER BY stream) AS s FROM new_events WINDOW w AS (ORDER BY position)) AS e'),
	(5, 'INSERT INTO seen SELECT 5, count((data->>''n'')::int), sum(position), count(DISTINCT stream) FROM new_events WHERE metadata->''m'' = data->''n'' AND type IN (''t0'', ''t1'', ''t2'') AND event_id IS NOT NULL'),
	(6, 'INSERT INTO seen SELECT 6, n, p, s FROM (SELECT count(*) AS n, sum(position) AS p, count(DISTINCT stream) AS s FROM new_events GROUP BY GROUPING SETS ((), (stream))) AS g ORDER BY n DESC LIMIT 1'),
	-- more than once, or beside others
	(7, 'INSERT INTO seen SELECT 7, count(*), sum(a.position), count(DISTINCT b.stream) FROM new_events AS a JOIN new_events AS b USING (position)'),
	(8, 'INSERT INTO seen WITH e AS MATERIALIZED (SELECT * FROM new_events) SELECT 8, count(*), sum(position), count(DISTINCT stream) FROM e'),
	(9, 'INSERT INTO seen SELECT 9, count(*), sum(position), count(DISTINCT stream) FROM (SELECT * FROM new_events WHERE type = ''t0'' UNION ALL SELECT * FROM new_events WHERE type <> ''t0'') AS e'),
	(10, 'INSERT INTO seen SELECT 10, count(*), sum((e).position), count(DISTINCT (e).stream) FROM (SELECT e FROM new_events AS e OFFSET 0) AS x'),
	(11, 'INSERT INTO seen SELECT 11, count(*), sum(e.position), count(DISTINCT e.stream) FROM generate_series(1, 3) AS i, LATERAL (SELECT * FROM new_events WHERE position % 3 = i - 1) AS e'),
	(12, 'INSERT INTO seen SELECT 12, (SELECT count(*) FROM new_events), (SELECT sum(position) FROM new_events), (SELECT count(DISTINCT stream) FROM new_events)'),
	(13, 'INSERT INTO seen SELECT 13, count(*), sum(position), count(DISTINCT stream) FROM new_events WHERE EXISTS (SELECT FROM event_store.streams() AS s WHERE s.stream = new_events.stream)'),
	(14, 'INSERT INTO seen SELECT 14, count(*), sum(position), NULL FROM new_events; INSERT INTO seen SELECT 14, 0, 0, count(DISTINCT stream) FROM new_events'),
	(15, 'INSERT INTO seen SELECT 15, count(*), sum(position), count(DISTINCT stream) FROM new_events, (VALUES (1)) AS v');
SELECT count(event_store.create_projection('p' || id, 'set', sql, batch_events => 30)) FROM handler;
SELECT count(event_store.refresh_projection('p' || id)) FROM handler;

SELECT handler::int, sum(n) = max(e.events) AS events, sum(seen.positions) = max(e.positions) AS positions, count(*) AS batches
FROM seen, (SELECT count(*) AS events, sum(position) AS positions FROM event_store.events) AS e
GROUP BY 1 ORDER BY 1;
SELECT bool_and(streams = 7) FROM seen WHERE streams <> 0;
SELECT DISTINCT status, open_events, message FROM event_store.projections;

-- what a statement leaves unread is done all the same
SELECT event_store.create_projection('first', 'set', 'INSERT INTO seen SELECT ''first'', position FROM new_events LIMIT 1', batch_events => 50);
SELECT event_store.create_projection('none', 'set', 'INSERT INTO seen SELECT ''none'', position FROM new_events WHERE false', batch_events => 50);
SELECT event_store.create_projection('returning', 'set', 'SELECT position / 0 FROM new_events WHERE position < 0', batch_events => 50);
SELECT event_store.refresh_projection('first'), event_store.refresh_projection('none'), event_store.refresh_projection('returning');
SELECT handler, array_agg(n) FROM seen WHERE handler IN ('first', 'none') GROUP BY 1;

-- a rule that makes two statements of one, while the handler is prepared
CREATE TABLE ruled (n bigint, positions bigint);
CREATE TABLE also (n bigint, positions bigint);
SELECT event_store.create_projection('rule', 'set', 'INSERT INTO ruled SELECT count(*), sum(position) FROM new_events', batch_events => 100);
SELECT event_store.refresh_projection('rule', 100);
CREATE RULE also AS ON INSERT TO ruled DO ALSO INSERT INTO also VALUES (NEW.n, NEW.positions);
SELECT event_store.refresh_projection('rule', 100);
SELECT (SELECT array_agg(n) FROM ruled), (SELECT array_agg(n) FROM also), (SELECT sum(n) FROM ruled) = (SELECT count(*) FROM event_store.events) AS all_of_them;

-- a statement whose effects fire a trigger that has a new_events of its own, and
-- one that appends, which an inline projection sees as its own batch
CREATE TABLE outer_seen (n bigint);
CREATE TABLE trigger_seen (n bigint, of text);
CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO trigger_seen SELECT count(*), 'table' FROM new_events;
	PERFORM event_store.append('inner-1', 'inner', to_jsonb(count(*))) FROM new_events;
	RETURN NULL;
END $$;
CREATE TRIGGER look AFTER INSERT ON outer_seen REFERENCING NEW TABLE AS new_events FOR EACH STATEMENT EXECUTE FUNCTION look();
SELECT event_store.create_projection('inner', 'set', 'INSERT INTO trigger_seen SELECT count(*), ''inline '' || max(type) FROM new_events', mode => 'inline', categories => '{inner}');
SELECT event_store.create_projection('outer', 'set', 'INSERT INTO outer_seen SELECT position FROM new_events', categories => '{s}', batch_events => 80);
SELECT event_store.refresh_projection('outer');
SELECT count(*) FROM outer_seen;
SELECT * FROM trigger_seen;

-- a statement that fails in the middle: the event is found, the others are there
CREATE TABLE picky (position bigint, n int CHECK (n <> 123));
SELECT event_store.create_projection('picky', 'set', 'INSERT INTO picky SELECT position, (data->>''n'')::int FROM new_events', categories => '{s}', batch_events => 100, max_attempts => 1, on_error => 'skip', first_delay => '0');
SELECT event_store.refresh_projection('picky');
SELECT count(*), count(DISTINCT position), sum(n) FROM picky;
SELECT projection, data, message FROM event_store.projection_failures;
DROP EXTENSION event_store CASCADE;
DROP TABLE seen, handler, ruled, also, outer_seen, trigger_seen, picky;
DROP FUNCTION look();
