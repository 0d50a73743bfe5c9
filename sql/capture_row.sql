-- changes of rows as events; uses raises() of common_install
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store CASCADE;
CREATE EXTENSION event_store;
RESET client_min_messages;

-- What was captured since the last look.
CREATE TABLE seen (position bigint NOT NULL);
INSERT INTO seen VALUES (0);
CREATE FUNCTION captured(OUT stream text, OUT version int, OUT type text, OUT data jsonb) RETURNS SETOF record
LANGUAGE plpgsql AS $$
BEGIN
	RETURN QUERY SELECT e.stream, e.version, e.type, e.data FROM event_store.events e, seen
		WHERE e.position > seen.position ORDER BY e.position;
	UPDATE seen SET position = event_store.last_position();
END $$;

-- all by default: the table's name, its primary key, of an update the columns that changed
CREATE TABLE customer (id int PRIMARY KEY, name text, city text);
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON customer
	FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
CREATE TRIGGER capture_truncate AFTER TRUNCATE ON customer
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes();
INSERT INTO customer VALUES (1, 'Ada', 'Bath'), (2, 'Ben', NULL);
UPDATE customer SET city = 'Bonn' WHERE id = 1;
DELETE FROM customer WHERE id = 2;
SELECT * FROM captured();
-- nothing changed, nothing captured; and what is rolled back is not
UPDATE customer SET city = city;
BEGIN; DELETE FROM customer; ROLLBACK;
BEGIN; SAVEPOINT s; UPDATE customer SET city = 'Brno'; ROLLBACK TO s; COMMIT;
SELECT * FROM captured();
-- a key that changes: two streams
UPDATE customer SET id = 3, city = 'Bern' WHERE id = 1;
SELECT * FROM captured();
-- upserts, COPY, MERGE, TRUNCATE
INSERT INTO customer VALUES (3, 'Ada', 'Bari'), (4, 'Eve', 'Bray') ON CONFLICT (id) DO UPDATE SET city = EXCLUDED.city;
INSERT INTO customer VALUES (3, 'Ada', 'Bari') ON CONFLICT DO NOTHING;
COPY customer FROM STDIN;
5	Sue	Brig
6	Max	\N
\.
MERGE INTO customer c USING (VALUES (5, 'Buda'), (6, NULL), (7, 'Bled')) v (id, city) ON c.id = v.id
	WHEN MATCHED AND v.city IS NULL THEN DELETE
	WHEN MATCHED THEN UPDATE SET city = v.city
	WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'Joe', v.city);
TRUNCATE customer;
SELECT * FROM captured();
-- later in the statement, and in the transaction, the event is there
CREATE FUNCTION look_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE '% is at version %', NEW.id, event_store.stream_version('customer-' || NEW.id);
	RETURN NULL;
END $$;
CREATE TRIGGER later AFTER INSERT ON customer FOR EACH ROW EXECUTE FUNCTION look_back();
INSERT INTO customer VALUES (10, 'Kim', 'Bergen');
DROP TRIGGER later ON customer;
-- the fold of what was captured is the row
UPDATE customer SET city = 'Boston' WHERE id = 10;
SELECT event_store.state_at('customer-10', 'merge_patch(new)') = to_jsonb(c) AS same FROM customer c WHERE id = 10;
SELECT count(*) FROM captured();

-- columns left out, masked, changed only; types, source and metadata
CREATE TABLE account (no text PRIMARY KEY, owner text, email text, secret text, balance numeric, note text);
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON account FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes(
	'category=acct', 'types=Opened, Changed ,Closed', 'exclude=secret', 'mask=email', 'data=changed', 'source=bank', 'metadata=table,user');
SELECT trigger, level, types, category, key, columns, masked, may_append FROM event_store.check_capture('account');
INSERT INTO account VALUES ('A 1', 'Ada', 'ada@example.org', 'swordfish', 1.0, NULL);
UPDATE account SET balance = 2.5, email = 'ada@example.com';
UPDATE account SET email = NULL;
UPDATE account SET secret = 'other';
-- compared by image, not by equality: a reader would see the difference
UPDATE account SET balance = 2.50;
UPDATE account SET no = 'A,1%', balance = 3;
DELETE FROM account;
SELECT * FROM captured();
SELECT DISTINCT source, metadata - 'user' AS metadata, metadata ->> 'user' = current_user AS by FROM event_store.events WHERE category = 'acct';
DROP TRIGGER capture ON account;
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON account FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes(
	'columns=no,balance', 'data=new', 'unchanged=append', 'types=,,Gone');
INSERT INTO account VALUES ('A2', 'Ben', NULL, NULL, 1, NULL);
UPDATE account SET balance = 2;
UPDATE account SET owner = 'Eve';
DELETE FROM account;
SELECT * FROM captured();
DROP TRIGGER capture ON account;
-- only when it matters
CREATE TRIGGER capture AFTER UPDATE OF balance ON account FOR EACH ROW WHEN (NEW.balance < 0) EXECUTE FUNCTION event_store.capture_changes('data=changed');
INSERT INTO account VALUES ('A3', 'Ben', NULL, NULL, 1, NULL);
UPDATE account SET balance = 0;
UPDATE account SET balance = -1;
SELECT * FROM captured();
DROP TABLE account;

-- keys: of several columns, with anything in them; replica identity; given; none
CREATE TABLE line (order_no text, pos smallint, at timestamptz, PRIMARY KEY (pos, order_no, at));
CREATE TRIGGER capture AFTER INSERT ON line FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('data=new');
SET TIME ZONE 'Asia/Kolkata';
SET DateStyle = 'German';
INSERT INTO line VALUES ('a,b', 1, '2024-01-01 00:00+00'), (E'a%2Cb\n', 1, 'infinity'), ('', 2, '0044-03-15 00:00+00 BC'), ('ä-ö', 3, '2024-06-01 12:00:00.000001+00');
RESET TIME ZONE;
RESET DateStyle;
SELECT stream FROM captured();
CREATE TABLE badge (no numeric NOT NULL, color text, ok boolean, UNIQUE (no));
ALTER TABLE badge REPLICA IDENTITY USING INDEX badge_no_key;
CREATE TRIGGER capture AFTER INSERT OR UPDATE ON badge FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
INSERT INTO badge VALUES (1.0, 'red', true), ('NaN', 'blue', false);
UPDATE badge SET no = 1.00 WHERE no = 1;		-- the same key
SELECT * FROM captured();
DROP TRIGGER capture ON badge;
CREATE TRIGGER capture AFTER INSERT ON badge FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('key=color,ok', 'columns=no');
INSERT INTO badge VALUES (2, 'red', true), (3, NULL, NULL), (4, '', false), (5, 'red', true);
SELECT * FROM captured();
DROP TRIGGER capture ON badge;
CREATE TRIGGER capture AFTER INSERT ON badge FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('key=', 'columns=no');
INSERT INTO badge VALUES (6), (7);
SELECT * FROM captured();
-- of a type that has several kinds of values
CREATE TABLE docs (k jsonb, j json);
CREATE TRIGGER capture AFTER INSERT ON docs FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('key=k,j', 'columns=k');
INSERT INTO docs VALUES ('1', '1'), ('"1"', '1'), ('"1"', '"1"'), ('true', 'null'), ('"true"', '"null"'), ('{"a": 1}', '""'), ('"{\"a\": 1}"', NULL), (NULL, NULL), ('[1.50, {"b": "x,y%"}]', '1.50');
SELECT stream, version FROM captured();
-- too long for a name
CREATE TABLE wide (k text PRIMARY KEY);
CREATE TRIGGER capture AFTER INSERT ON wide FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
INSERT INTO wide VALUES (repeat('k', 1019));
SELECT raises($$INSERT INTO wide VALUES (repeat('k', 1020))$$);
SELECT length(stream) FROM captured();

-- names of tables that are no names of categories
CREATE SCHEMA "s-1";
CREATE TABLE "s-1"."a.b-c%" (id int PRIMARY KEY);
CREATE TABLE "$sys" (id int PRIMARY KEY);
CREATE TRIGGER capture AFTER INSERT ON "s-1"."a.b-c%" FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
CREATE TRIGGER capture AFTER INSERT ON "$sys" FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
INSERT INTO "s-1"."a.b-c%" VALUES (-1);
INSERT INTO "$sys" VALUES (1);
-- renamed: a default category follows, in the same session
ALTER TABLE "$sys" RENAME TO sys;
INSERT INTO sys VALUES (2);
ALTER SCHEMA "s-1" RENAME TO s2;
INSERT INTO s2."a.b-c%" VALUES (2);
SELECT stream, type, data, (SELECT category FROM event_store.stream_info(stream)) FROM captured();

-- every type, whatever the session's settings are
CREATE TYPE mood AS ENUM ('sad', 'so so', 'happy');
CREATE TYPE pair AS (a int, b timestamptz);
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN text_domain AS text;
CREATE TABLE kinds (
	id int PRIMARY KEY, b boolean, i2 smallint, i8 bigint, f4 real, f8 float8, n numeric, t text, vc varchar(10), c char(4), nm name,
	d date, ts timestamp, tz timestamptz, ti time, tt timetz, iv interval, by bytea, u uuid, j json, jb jsonb, e mood, p pair, po positive,
	td text_domain, ia int[], ta timestamptz[], fa float8[], r int4range, tr tstzrange, ip inet, bi bit(3), m money, x xml, rc regclass,
	g int GENERATED ALWAYS AS (i2 * 2) STORED, o oid, q "char", pt point);
CREATE TRIGGER capture AFTER INSERT OR UPDATE ON kinds FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('data=new');
CREATE FUNCTION fill(kinds_id int) RETURNS void LANGUAGE sql AS $$
INSERT INTO kinds VALUES (kinds_id, true, -7, 9223372036854775807, 1.1, 'Infinity', 12345678901234567890.123450, 'tä"\x', 'v', 'c', 'n',
	'2024-02-29', '-infinity', '2024-01-01 00:00:00.5+00', '12:34:56.7', '12:34+05:30', '1 year 2 days 03:04', '\xdeadbeef',
	'0190a5c2-7d1e-7a3b-9c4d-5e6f70819203', '{"z": 1, "a": [null, "x"], "z": 2}', '[1, {"b": 1.0}]', 'so so', ROW(1, '2024-01-01 00:00+00'), 5,
	'td', '{1,NULL,-3}', '{2024-01-01 00:00+00}', '{0.1,NaN}', '[1,5)', '[2024-01-01 00:00+00,)', '10.0.0.1/8', B'101', 12.5, '<a/>', 'pg_class',
	DEFAULT, 4294967295, 'q', '(1,0.1)')
$$;
SELECT fill(1);
SET TIME ZONE 'America/Lima'; SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'sql_standard'; SET extra_float_digits = -5; SET bytea_output = 'escape'; SET quote_all_identifiers = on; SET search_path = public, pg_catalog;
SELECT fill(2);
SHOW TimeZone;
RESET ALL;
SELECT key, value FROM captured(), jsonb_each(data -> 'new') WHERE version = 1 AND stream = 'kinds-1';
SELECT count(DISTINCT (data -> 'new') - 'id') FROM event_store.events WHERE category = 'kinds';
-- every column that can be compared with what to_jsonb() would say, says the same
SET TIME ZONE 'UTC'; SET IntervalStyle = 'iso_8601';
SELECT key, value AS captured, to_jsonb(k) -> key AS to_jsonb
  FROM event_store.events e JOIN kinds k ON e.stream = 'kinds-' || k.id, jsonb_each(data -> 'new')
 WHERE k.id = 1 AND value IS DISTINCT FROM to_jsonb(k) -> key;
RESET ALL;
-- json that jsonb cannot hold
INSERT INTO kinds (id, j, f8, f4) VALUES (3, '{"a": "\u0000"}', 'NaN', '-Infinity');
SELECT stream, data -> 'new' -> 'j' AS j, data -> 'new' -> 'f8' AS f8, data -> 'new' -> 'f4' AS f4 FROM captured();

-- values out of line: changed, and left alone
CREATE TABLE big (id int PRIMARY KEY, n int, doc text, jd jsonb, by bytea);
ALTER TABLE big ALTER doc SET STORAGE EXTERNAL, ALTER by SET STORAGE EXTERNAL;
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON big FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('data=full');
INSERT INTO big SELECT 1, 1, string_agg(md5(i::text), ''), jsonb_object_agg(i, md5(i::text)), decode(string_agg(md5(i::text), ''), 'hex') FROM generate_series(1, 3000) i;
UPDATE big SET n = 2;
UPDATE big SET doc = doc || 'x';
UPDATE big SET doc = substr(doc, 1, length(doc) - 1) || 'x';	-- the same
DELETE FROM big;
SELECT version, type, md5(data -> 'old' ->> 'doc') = md5(data -> 'new' ->> 'doc') AS same,
	length(data -> 'old' ->> 'doc') AS old, length(data -> 'new' ->> 'doc') AS new,
	length(coalesce(data -> 'new', data -> 'old') ->> 'by') AS by, (SELECT count(*) FROM jsonb_object_keys(coalesce(data -> 'new', data -> 'old') -> 'jd')) AS keys FROM captured();
DROP TRIGGER capture ON big;
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON big FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('data=changed');
INSERT INTO big (id, n, doc) SELECT 2, 1, string_agg(md5(i::text), '') FROM generate_series(1, 3000) i;
UPDATE big SET n = 2;
SELECT version, type, length(data -> 'new' ->> 'doc') AS doc, data - 'new' AS rest, data #- '{new,doc}' -> 'new' AS new FROM captured();

-- columns come and go, under plans that were made before
CREATE TABLE alter_me (id int PRIMARY KEY, a int, b int);
CREATE TRIGGER capture AFTER INSERT OR UPDATE ON alter_me FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('data=full');
PREPARE add AS INSERT INTO alter_me VALUES ($1, $2);
PREPARE change AS UPDATE alter_me SET b = $2 WHERE id = $1;
EXECUTE add(1, 1);
ALTER TABLE alter_me ADD c text DEFAULT 'c', ADD d int;
EXECUTE change(1, 2);
ALTER TABLE alter_me DROP a;
EXECUTE change(1, 3);
ALTER TABLE alter_me ALTER b TYPE text USING 'b' || b, ADD e int DEFAULT 5;
DEALLOCATE change;
UPDATE alter_me SET d = 4;
ALTER TABLE alter_me RENAME d TO dd;
UPDATE alter_me SET dd = 5;
CREATE OR REPLACE TRIGGER capture AFTER INSERT OR UPDATE ON alter_me FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('data=changed');
UPDATE alter_me SET dd = 6;
SELECT data FROM captured();

-- partitions: category and key of the table above, rows that move, columns in another order
CREATE TABLE part (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE part_eu PARTITION OF part FOR VALUES IN ('eu');
CREATE TABLE part_us (gone int, v int, region text NOT NULL, id int NOT NULL, PRIMARY KEY (id, region));
ALTER TABLE part_us DROP gone;
ALTER TABLE part ATTACH PARTITION part_us FOR VALUES IN ('us');
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON part FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('metadata=table', 'key=id');
CREATE TABLE part_rest PARTITION OF part DEFAULT PARTITION BY HASH (id);
CREATE TABLE part_rest_0 PARTITION OF part_rest FOR VALUES WITH (MODULUS 1, REMAINDER 0);
INSERT INTO part VALUES (1, 'eu', 1), (2, 'us', 1), (3, 'xx', 1);
INSERT INTO part_rest_0 VALUES (4, 'yy', 1);
UPDATE part SET v = 2;
UPDATE part SET region = 'us' WHERE id = 1;
COPY part FROM STDIN;
5	us	1
\.
SELECT * FROM captured();
SELECT stream, string_agg(metadata ->> 'table', ' ' ORDER BY version) FROM event_store.events WHERE category = 'part' GROUP BY 1 ORDER BY 1;
SELECT trigger, category, key FROM event_store.check_capture('part_rest_0');
ALTER TABLE part RENAME TO parted;
UPDATE part_us SET v = 3 WHERE id = 2;
SELECT stream, type FROM captured();

-- children of inheritance, temporary tables, deferred triggers, cascades
CREATE TEMPORARY TABLE temp (id int PRIMARY KEY);
CREATE TRIGGER capture AFTER INSERT ON temp FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('category=temp');
INSERT INTO temp VALUES (1);
-- whatever the name of the session's schema is
CREATE TRIGGER capture_default AFTER UPDATE ON temp FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('data=full', 'unchanged=append', 'metadata=table');
UPDATE temp SET id = 1;
SELECT category, types, columns FROM event_store.check_capture('temp') WHERE trigger = 'capture_default';
SELECT stream, type, metadata FROM event_store.last_event('pg_temp.temp-1');
SELECT raises('SET TRANSACTION READ ONLY; INSERT INTO temp VALUES (2)');
CREATE TABLE child (id int PRIMARY KEY, customer int REFERENCES customer ON DELETE CASCADE ON UPDATE CASCADE);
CREATE CONSTRAINT TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON child DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
BEGIN;
INSERT INTO child VALUES (1, 10);
UPDATE customer SET id = 11 WHERE id = 10;
SELECT stream, type FROM captured();
COMMIT;
DELETE FROM customer WHERE id = 11;
SELECT stream, type, data FROM captured();

-- an inline projection over what is captured, and a capture of what it writes
CREATE TABLE totals (id text PRIMARY KEY, n int);
SELECT event_store.create_projection('totals', 'set',
	$$INSERT INTO totals AS t SELECT 'all', count(*) FROM new_events ON CONFLICT (id) DO UPDATE SET n = t.n + EXCLUDED.n$$,
	mode => 'inline', types => '{customer.inserted,customer.updated}') IS NULL AS created;
UPDATE totals SET n = 0;
CREATE TRIGGER capture AFTER INSERT OR UPDATE ON totals FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
INSERT INTO customer VALUES (20, 'Lea', 'Lodz');
UPDATE customer SET city = 'Lyon' WHERE id = 20;
SELECT stream, type, data FROM captured();
SELECT event_store.drop_projection('totals') IS NULL AS dropped;

-- arguments that make no sense: at the first firing, and when one looks
CREATE TABLE bad (id int PRIMARY KEY, a int, "B,c" int);
CREATE TABLE no_key (a int);
CREATE FUNCTION tries(arguments text, relation text DEFAULT 'bad') RETURNS text LANGUAGE plpgsql AS $$
DECLARE r text;
BEGIN
	EXECUTE format('CREATE TRIGGER capture AFTER INSERT ON %s FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes(%s)', relation, arguments);
	r := raises(format('SELECT FROM event_store.check_capture(%L)', relation));
	IF r <> raises(format('INSERT INTO %s VALUES (1)', relation)) THEN
		r := 'differs: ' || r;
	END IF;
	EXECUTE format('DROP TRIGGER capture ON %s', relation);
	EXECUTE format('DELETE FROM %s', relation);
	RETURN r;
END $$;
SELECT tries($$'category'$$);
SELECT tries($$'colour=red'$$);
SELECT tries($$'category=a', 'category=b'$$);
SELECT tries($$'category=a-b'$$);
SELECT tries($$'category=$a'$$);
SELECT tries($$'category='$$);
SELECT tries($$'key=x'$$);
SELECT tries($$'key=a,a'$$);
SELECT tries($$'key=a,'$$);
SELECT tries($$'key=A, "B,c"', 'columns= id '$$);
SELECT tries($$'exclude=id'$$);
SELECT tries($$'mask=id'$$);
SELECT tries($$'mask=nope'$$);
SELECT tries($$'columns=a', 'exclude=id'$$);
SELECT tries($$'data=all'$$);
SELECT tries($$'unchanged=keep'$$);
SELECT tries($$'metadata=table,ip'$$);
SELECT tries($$'types=a,b,c,d,e'$$);
SELECT tries($$'source='$$);
SELECT tries('', 'no_key');
SELECT tries($$'key=a'$$, 'no_key');
CREATE TRIGGER capture BEFORE INSERT ON bad FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
SELECT raises('INSERT INTO bad VALUES (1)');
DELETE FROM bad;
CREATE OR REPLACE TRIGGER capture AFTER INSERT ON bad FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes();
SELECT raises('INSERT INTO bad VALUES (1)');
DROP TRIGGER capture ON bad;
CREATE TRIGGER capture AFTER UPDATE ON bad REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes();
SELECT raises('UPDATE bad SET a = 1');
-- a table without a key can be truncated; errors say of which trigger they came
CREATE TRIGGER capture_truncate AFTER TRUNCATE ON no_key FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes();
TRUNCATE no_key;
SELECT stream, type FROM event_store.last_event('no_key');
UPDATE bad SET a = 1;
SELECT raises('SELECT event_store.capture_changes()');
SELECT raises('SELECT event_store.check_capture(NULL)');
SELECT raises($$SELECT * FROM event_store.check_capture('pg_class')$$);
