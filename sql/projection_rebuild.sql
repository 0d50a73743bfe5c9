-- Projections that are built anew beside the one in service.
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
CREATE SCHEMA app;
SET search_path = app, public;
SELECT event_store.set_segment_size(64);
-- whose snapshots a rebuild would wait for
SET event_store.segment_worker = off;
CREATE FUNCTION raises(command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE command;
	RETURN 'nothing';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE || ' | ' || SQLERRM;
END $$;
SELECT count(event_store.append('x-' || (n % 3), 'T', jsonb_build_object('n', n))) FROM generate_series(1, 200) n;

-- tables: contents change, the table and all that hangs on it stay
CREATE TABLE total (k text PRIMARY KEY, n bigint CHECK (n > 0), big text);
CREATE INDEX ON total (n) WHERE n > 3;
CREATE INDEX ON total (lower(k));
CREATE VIEW total_view AS SELECT k, n, length(big) AS big FROM total;
CREATE ROLE regress_event_store_viewer;
GRANT SELECT ON total TO regress_event_store_viewer;
CREATE FUNCTION handler(factor int, size int) RETURNS text LANGUAGE sql AS $$
	SELECT format('INSERT INTO total AS t SELECT stream, %s * count(*), repeat(md5(stream), %s) FROM new_events GROUP BY 1
		ON CONFLICT (k) DO UPDATE SET n = t.n + excluded.n', factor, size)
$$;
SELECT event_store.create_projection('total', 'set', handler(1, 200), tables => '{total}');
SELECT event_store.refresh_projection('total');
SELECT * FROM total_view ORDER BY k;
SELECT 'total'::regclass::oid AS before \gset
SELECT event_store.rebuild_projection('total', handler(2, 300), keep_old => true);
SELECT raises($$SELECT event_store.rebuild_projection('total')$$);
SELECT raises($$SELECT event_store.rebuild_projection('total (new)')$$);
SELECT raises($$SELECT event_store.alter_projection('total (new)', on_error => 'skip')$$);
SELECT projection, phase, done, total, events, rate, expected_end FROM event_store.projection_rebuilds;
-- in pieces, paused and resumed, told of
SELECT event_store.refresh_projection('total', 50, true);
SELECT event_store.pause_projection('total (new)');
SELECT event_store.refresh_projection('total');
SELECT phase, done, events FROM event_store.projection_rebuilds;
SELECT * FROM total_view ORDER BY k;
SELECT raises($$SELECT event_store.finish_rebuild('total')$$);
SELECT event_store.resume_projection('total (new)');
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
SELECT event_store.refresh_projection('total');
SELECT event_store.refresh_projection('total');
SELECT * FROM total_view ORDER BY k;
SELECT 'total'::regclass::oid = :before AS same_table, has_table_privilege('regress_event_store_viewer', 'total', 'SELECT');
SELECT name, status, checkpoint, applied FROM event_store.projections ORDER BY name;
-- its indexes are those of its rows
SET enable_seqscan = off;
SELECT n FROM total WHERE k = 'x-1';
SELECT k FROM total WHERE lower(k) = 'x-2';
SELECT k FROM total WHERE n = 132 AND n > 3;
RESET enable_seqscan;
INSERT INTO total VALUES ('x-1', 1);
-- it goes on, and back
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
SELECT event_store.refresh_projection('total');
SELECT * FROM total_view ORDER BY k;
SELECT event_store.revert_rebuild('total');
-- what this transaction applies a snapshot of another would not show: the change is for the next one
SELECT event_store.refresh_projection('total');
SELECT projection, phase FROM event_store.projection_rebuilds;
SELECT event_store.refresh_projection('total');
SELECT * FROM total_view ORDER BY k;
SELECT name, status FROM event_store.projections ORDER BY name;
SELECT event_store.cancel_rebuild('total'), event_store.cancel_rebuild('total');
SELECT raises($$SELECT event_store.revert_rebuild('total')$$), raises($$SELECT event_store.finish_rebuild('total')$$);
SELECT count(*) FROM pg_namespace WHERE nspname ~ '^event_store_rebuild';
-- a change of places that is rolled back
SELECT event_store.rebuild_projection('total', handler(5, 10));
SELECT raises($$SELECT event_store.finish_rebuild('total')$$);
SELECT event_store.refresh_projection('total') > 0 AS applied;
BEGIN;
SELECT event_store.finish_rebuild('total');
SELECT * FROM total_view ORDER BY k;
ROLLBACK;
SELECT * FROM total_view ORDER BY k;
SELECT event_store.finish_rebuild('total');
SELECT * FROM total_view ORDER BY k;
SELECT name, status FROM event_store.projections ORDER BY name;
VACUUM FULL total;
SELECT * FROM total_view ORDER BY k;
-- a table that was altered meanwhile: the rebuild cannot go on, all else does
SELECT event_store.create_projection('beside', 'fold', 'count', key => '1');
SELECT event_store.rebuild_projection('total');
SELECT event_store.refresh_projection('total') > 0 AS applied;
ALTER TABLE total ADD CONSTRAINT more CHECK (n < 1000000);
SELECT raises($$SELECT event_store.finish_rebuild('total')$$);
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
SELECT event_store.refresh_projections();
SELECT name, status, open_events, message FROM event_store.projections ORDER BY name;
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
SELECT event_store.refresh_projections();
SELECT name, status, open_events, attempts FROM event_store.projections ORDER BY name;
-- undone, it takes its place
ALTER TABLE total DROP CONSTRAINT more;
SELECT event_store.resume_projection('total (new)');
SELECT event_store.refresh_projections();
SELECT event_store.refresh_projections();
SELECT name, status, open_events FROM event_store.projections ORDER BY name;
SELECT t.k, t.n = e.n AS same FROM total t JOIN (SELECT stream, 5 * count(*) AS n FROM event_store.events GROUP BY 1) e ON e.stream = t.k ORDER BY 1;
SELECT event_store.drop_projection('beside');

-- columns that are generated, identity, dropped, added with a default; storage; a serial; CHECKs;
-- indexes of all sorts; options
CREATE TABLE columns (gone1 int, k text NOT NULL, gone2 text, n bigint CHECK (n > 0) DEFAULT 7, id int GENERATED ALWAYS AS IDENTITY (START WITH 10 INCREMENT BY 5),
	twice bigint GENERATED ALWAYS AS (n * 2) STORED, long text COLLATE "C" GENERATED ALWAYS AS (repeat(k || '-', 400)) STORED, gone3 numeric, serial serial,
	by_default bigint GENERATED BY DEFAULT AS IDENTITY, kind varchar(7) CHECK (kind IN ('a', 'b')) DEFAULT 'a',
	PRIMARY KEY (k) DEFERRABLE, CHECK (length(k) < n + 100)) WITH (fillfactor = 60, toast_tuple_target = 2000);
ALTER TABLE columns ALTER long SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX ON columns (id) INCLUDE (n);
CREATE INDEX ON columns (twice DESC NULLS LAST, lower(k)) WHERE n > 3;
CREATE INDEX ON columns USING hash (k);
ALTER TABLE columns DROP gone1;
SELECT event_store.create_projection('columns', 'set', $$
	INSERT INTO columns AS c (k, n) SELECT stream, count(*) FROM new_events GROUP BY 1 ORDER BY 1$$, tables => '{columns}', batch_events => 100000);
SELECT event_store.refresh_projection('columns') > 0 AS applied;
-- rows from before, with what is dropped afterwards
UPDATE columns SET gone2 = repeat('gone', 3), gone3 = n;
ALTER TABLE columns DROP gone2, DROP gone3, ADD added text NOT NULL DEFAULT 'added', ADD more int[] DEFAULT '{1,2}';
CREATE VIEW columns_view AS SELECT k, n = (SELECT count(*) FROM event_store.events WHERE stream = k) AS n, id, twice = n * 2 AS twice, length(long) AS long, serial > 0 AS serial, by_default, kind, added, more FROM columns;
SELECT * FROM columns_view ORDER BY k;
SELECT event_store.rebuild_projection('columns', keep_old => true);
SELECT event_store.refresh_projection('columns') > 0 AS applied;
SELECT event_store.refresh_projection('columns');
SELECT phase FROM event_store.projection_rebuilds;
SELECT * FROM columns_view ORDER BY k;
SET enable_seqscan = off;
SELECT n > 0 AS n FROM columns WHERE id = 15;
SELECT k FROM columns WHERE twice > 10 AND lower(k) = 'x-2' AND n > 3;
RESET enable_seqscan;
-- identity goes on where the new contents have ended, constraints hold
INSERT INTO columns (k, n) VALUES ('later', 1) RETURNING id, by_default, added, more;
SELECT raises($$INSERT INTO columns (k, n) VALUES ('bad', 0)$$), raises($$INSERT INTO columns (k, kind) VALUES ('bad', 'c')$$), raises($$INSERT INTO columns (k) VALUES ('later')$$);
SELECT reloptions FROM pg_class WHERE oid = 'columns'::regclass;
-- and back: what was dropped is where it was, what was added too
SELECT event_store.revert_rebuild('columns');
SELECT event_store.refresh_projection('columns');
SELECT phase FROM event_store.projection_rebuilds;
SELECT * FROM columns_view ORDER BY k;
INSERT INTO columns (k, n) VALUES ('later', 1) RETURNING id, by_default, added, more;
DELETE FROM columns WHERE k = 'later';
SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relname ~ '^columns_.*seq$';
SELECT event_store.cancel_rebuild('columns');
SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relname ~ '^columns_.*seq$';
-- a column that is added in service meanwhile; a table that is rewritten
SELECT event_store.rebuild_projection('columns');
SELECT event_store.refresh_projection('columns') > 0 AS applied;
ALTER TABLE columns ADD extra int;
SELECT raises($$SELECT event_store.finish_rebuild('columns')$$);
SELECT event_store.cancel_rebuild('columns');
SELECT event_store.rebuild_projection('columns');
SELECT event_store.refresh_projection('columns') > 0 AS applied;
VACUUM FULL columns;
SELECT raises($$SELECT event_store.finish_rebuild('columns')$$);
SELECT event_store.cancel_rebuild('columns');
SELECT event_store.rebuild_projection('columns');
CALL event_store.catch_up_projection('columns');
SELECT * FROM event_store.projection_rebuilds;
SELECT k, n, id, twice, added FROM columns_view ORDER BY k;
SELECT event_store.drop_projection('columns');
DROP TABLE columns CASCADE;

-- who has a snapshot from before the change sees no less than before: what is in service follows the rebuild
CREATE TABLE led (position bigint);
SELECT event_store.create_projection('led', 'set', 'INSERT INTO led SELECT position FROM new_events', tables => '{led}');
CALL event_store.catch_up_projection('led');
SELECT event_store.rebuild_projection('led');
SELECT event_store.refresh_projection('led') > 0 AS applied;
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended FROM generate_series(1, 5);
BEGIN;
SELECT projection, phase FROM event_store.projection_rebuilds;
SELECT event_store.refresh_projection('led', 2);
SELECT name, open_events FROM event_store.projections ORDER BY name;
ROLLBACK;
-- but not if that stands still
SELECT event_store.pause_projection('led (new)');
SELECT event_store.refresh_projection('led');
SELECT event_store.resume_projection('led (new)');
SELECT name, open_events FROM event_store.projections ORDER BY name;
SELECT projection, phase FROM event_store.projection_rebuilds;
CALL event_store.catch_up_projection('led');
SELECT name, open_events FROM event_store.projections ORDER BY name;
SELECT count(*) = (SELECT count(*) FROM event_store.events) AS all FROM led;
SELECT event_store.drop_projection('led');
DROP TABLE led;

-- what cannot be rebuilt
CREATE TABLE referencing (k text REFERENCES total);
CREATE TABLE excluding (k int, EXCLUDE (k WITH =));
CREATE TABLE parted (a int) PARTITION BY LIST (a);
SELECT t, raises(format($$SELECT event_store.alter_projection('total', tables => ARRAY[%L])$$, t))
  FROM unnest('{referencing,total,excluding,parted,total_view,nothing,pg_class}'::text[]) t;
\set VERBOSITY default
SELECT event_store.alter_projection('total', tables => '{referencing}');
SELECT event_store.alter_projection('total', tables => '{excluding}');
DROP TABLE excluding;
-- what became so since it was named
SELECT event_store.rebuild_projection('total');
DROP TABLE referencing;
SELECT event_store.rebuild_projection('total');
SELECT event_store.refresh_projection('total') > 0 AS applied;
CREATE TABLE referencing (k text REFERENCES total);
SELECT event_store.refresh_projections();
SELECT name, status, message, detail FROM event_store.projections WHERE name ~ 'total' ORDER BY name;
DROP TABLE referencing;
SELECT event_store.cancel_rebuild('total');
SELECT raises($$SELECT event_store.alter_projection('total', tables => '{total,total}')$$),
	raises($$SELECT event_store.alter_projection('total', tables => ARRAY[NULL])$$);
SELECT event_store.alter_projection('total', tables => '{}');
SELECT raises($$SELECT event_store.rebuild_projection('total')$$);
SELECT event_store.drop_projection('total');

-- a handler that names its table by the schema would write to the one in service
CREATE TABLE bound (k text);
SELECT event_store.create_projection('bound', 'set', 'INSERT INTO app.bound SELECT stream FROM new_events', tables => '{bound}');
SELECT event_store.refresh_projection('bound');
SELECT event_store.rebuild_projection('bound');
SELECT event_store.refresh_projection('bound');
SELECT name, status, message FROM event_store.projections ORDER BY name;
SELECT count(*) FROM bound;
SELECT event_store.drop_projection('bound');
SELECT count(*) FROM pg_namespace WHERE nspname ~ '^event_store_rebuild';

-- event: the function is told
CREATE TABLE handled (p bigint PRIMARY KEY, replaying boolean);
CREATE FUNCTION handle(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO handled VALUES (e.position, event_store.is_replaying());
END $$;
SELECT event_store.create_projection('handled', 'event', 'handle', tables => '{handled}', batch_events => 30);
CALL event_store.catch_up_projection('handled');
SELECT event_store.rebuild_projection('handled');
SELECT count(*), bool_or(replaying) FROM handled;
CALL event_store.catch_up_projection('handled');
SELECT count(*), count(*) FILTER (WHERE replaying) AS replayed, count(*) = (SELECT count(*) FROM event_store.events) AS all FROM handled;
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended, event_store.is_replaying();
CALL event_store.catch_up_projection('handled');
SELECT count(*) FILTER (WHERE NOT replaying) FROM handled;

-- what reaches beyond the model happens once for each event, also where the rebuild was ahead
CREATE TABLE effect (position bigint);
CREATE FUNCTION with_effect(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO handled VALUES (-e.position);
	IF NOT event_store.is_replaying() THEN INSERT INTO effect VALUES (e.position); END IF;
END $$;
SELECT event_store.drop_projection('handled');
TRUNCATE handled;
SELECT event_store.create_projection('handled', 'event', 'with_effect', tables => '{handled}');
SELECT event_store.refresh_projection('handled') > 0 AS applied;
SELECT event_store.rebuild_projection('handled');
SELECT event_store.refresh_projections();
SELECT count(event_store.append('x-1', 'T', '{}')) FROM generate_series(1, 5);
SELECT event_store.refresh_projections();
SELECT count(*) FROM event_store.projection_rebuilds;
SELECT count(*) = count(DISTINCT position) AND count(*) = (SELECT count(*) FROM event_store.events) AS once, (SELECT count(*) FROM handled) = count(*) AS handled FROM effect;
SELECT event_store.drop_projection('handled');

-- fold, with another handler, and inline
SELECT event_store.create_projection('fold', 'fold', 'count');
SELECT event_store.refresh_projection('fold') = (SELECT count(*) FROM event_store.events) AS all;
SELECT event_store.rebuild_projection('fold', 'sum(n)');
SELECT key, state FROM event_store.projection_states ORDER BY projection, key;
SELECT event_store.finish_rebuild('fold');
SELECT projection, key, state FROM event_store.projection_states ORDER BY projection, key;
SELECT count(*) FROM event_store.projection_states s
  JOIN (SELECT stream, sum((data ->> 'n')::numeric) AS n FROM event_store.events GROUP BY 1) e ON e.stream = s.key
 WHERE s.state = to_jsonb(e.n);
SELECT event_store.create_projection('inline', 'fold', 'count', 'inline', categories => '{x}') > 0 AS made;
SELECT event_store.rebuild_projection('inline');
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
SELECT event_store.refresh_projection('inline') > 0 AS applied;
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
SELECT name, mode, status FROM event_store.projections WHERE name ~ 'inline' ORDER BY name;
SELECT count(*) FILTER (WHERE s.state = to_jsonb(e.n)), count(*) FROM event_store.projection_states s
  JOIN (SELECT stream, count(*) AS n FROM event_store.events GROUP BY 1) e ON e.stream = s.key WHERE s.projection = 'inline';
SELECT count(*) FROM pg_class WHERE relname ~ '^projection_state_\d+$';

-- what was inline goes on from where it was replaced when it is gone back to
SELECT event_store.rebuild_projection('inline', keep_old => true);
SELECT event_store.refresh_projection('inline') > 0 AS applied;
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
SELECT event_store.revert_rebuild('inline');
SELECT event_store.refresh_projection('inline') > 0 AS applied;
SELECT event_store.append('x-1', 'T', '{}') IS NOT NULL AS appended;
SELECT count(*) FILTER (WHERE s.state = to_jsonb(e.n)), count(*) FROM event_store.projection_states s
  JOIN (SELECT stream, count(*) AS n FROM event_store.events GROUP BY 1) e ON e.stream = s.key WHERE s.projection = 'inline';
SELECT event_store.cancel_rebuild('inline');

-- an event that stops the rebuild does not stop what is in service
CREATE FUNCTION picky(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF e.data ->> 'n' = '100' THEN RAISE 'no'; END IF;
	RETURN coalesce(state::int, 0) + 1;
END $$;
SELECT event_store.rebuild_projection('fold', 'picky');
SELECT event_store.alter_projection('fold', max_attempts => 1);
SELECT event_store.refresh_projection('fold') > 0 AS applied;
SELECT name, status, message FROM event_store.projections WHERE name ~ 'fold' ORDER BY name;
SELECT projection, phase, message FROM event_store.projection_rebuilds;
SELECT event_store.drop_projection('fold');
SELECT raises($$SELECT event_store.create_projection('live', 'fold', 'count', 'live')$$), raises($$SELECT event_store.rebuild_projection('live')$$);

-- the last batch of a rebuild is full, and the one in service has come further, past what is not its own
SELECT event_store.create_projection('full', 'fold', 'count', categories => '{full}', batch_events => 10);
INSERT INTO event_store.events (stream, type, data) SELECT 'full-1', 't', '1' FROM generate_series(1, 5);
SELECT event_store.refresh_projection('full');
INSERT INTO event_store.events (stream, type, data) SELECT 'full-1', 't', '1' FROM generate_series(1, 5);
SELECT event_store.append('other-1', 't', '1') IS NOT NULL;
SELECT event_store.refresh_projection('full');
SELECT event_store.rebuild_projection('full');
CALL event_store.catch_up_projection('full');
SELECT count(*) FROM event_store.projection_rebuilds;
SELECT event_store.drop_projection('full');

-- the extension goes with what a rebuild has made
CREATE TABLE going (k text);
SELECT event_store.create_projection('going', 'set', 'INSERT INTO going SELECT stream FROM new_events', tables => '{going}');
SELECT event_store.rebuild_projection('going');
DROP FUNCTION handle, with_effect, picky;
DROP EXTENSION event_store;
SELECT count(*) FROM pg_namespace WHERE nspname ~ '^event_store';
SET client_min_messages = warning;
DROP SCHEMA app CASCADE;
DROP ROLE regress_event_store_viewer;
