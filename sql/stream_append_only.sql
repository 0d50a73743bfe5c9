-- UPDATE, DELETE and TRUNCATE are refused: to the owner, on each segment
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store;
CREATE EXTENSION event_store;
RESET client_min_messages;
SELECT event_store.set_segment_size(16);
INSERT INTO event_store.events (stream, type, data) SELECT 'order-' || i % 7, 'X', to_jsonb(i) FROM generate_series(1, 100) i;

CREATE TABLE refused AS
SELECT format(statement, oid::regclass) AS statement, NULL::text AS outcome
  FROM (SELECT oid FROM pg_class WHERE relnamespace = 'event_store'::regnamespace
		   AND relkind IN ('r', 'p', 'v') AND relname <> 'store' AND relname !~ '^(worker|notification|subscription|projection|snapshot|outbox|inbox|translation)') tables,
	   unnest(ARRAY['UPDATE %s SET %%1$I = %%1$I', 'DELETE FROM %s', 'DELETE FROM %s WHERE false', 'TRUNCATE %s',
					'TRUNCATE ONLY %s']) statement;
-- each table has another first column
UPDATE refused SET statement = format(statement, (SELECT attname FROM pg_attribute
	WHERE attrelid = (regexp_match(statement, '(event_store\.\w+)'))[1]::regclass AND attnum = 1))
 WHERE statement LIKE 'UPDATE%';
DELETE FROM refused WHERE statement LIKE 'TRUNCATE%event_store.events';
DELETE FROM refused WHERE statement LIKE 'TRUNCATE ONLY event_store.event';
UPDATE refused SET outcome = split_part(raises(statement), ' | ', 1);
SELECT outcome, count(*) > 50 AS many FROM refused GROUP BY outcome;
SELECT statement FROM refused WHERE outcome <> 'VE005';
-- in replication mode, too
SET session_replication_role = replica;
UPDATE refused SET outcome = split_part(raises(statement), ' | ', 1) WHERE statement NOT LIKE '%event_store.events%';
RESET session_replication_role;
SELECT outcome, count(*) > 50 AS many FROM refused GROUP BY outcome;
SELECT raises('UPDATE event_store.events SET type = ''Y''');
SELECT raises('DELETE FROM event_store.events');
SELECT raises('DELETE FROM event_store.event_1');
SELECT raises('MERGE INTO event_store.event_1 e USING (SELECT 1 AS p) x ON e.position = x.p WHEN MATCHED THEN DELETE');
SELECT count(*) FROM event_store.events;
DROP TABLE refused;
