-- who may capture; uses raises() of common_install
SET client_min_messages = warning;
DROP EXTENSION IF EXISTS event_store CASCADE;
CREATE EXTENSION event_store;
CREATE ROLE capture_owner;
CREATE ROLE capture_writer;
CREATE ROLE capture_stranger;
CREATE SCHEMA shop;
GRANT USAGE, CREATE ON SCHEMA shop TO capture_owner, capture_stranger;
GRANT USAGE ON SCHEMA shop TO capture_writer;
GRANT USAGE ON SCHEMA event_store TO capture_owner, capture_stranger;
RESET client_min_messages;

SET ROLE capture_owner;
CREATE TABLE shop.orders (id int PRIMARY KEY, v int);
GRANT SELECT, INSERT, UPDATE, DELETE ON shop.orders TO capture_writer;
-- to make the trigger wants EXECUTE
SELECT raises('CREATE TRIGGER capture AFTER INSERT OR UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes()');
RESET ROLE;
GRANT EXECUTE ON FUNCTION event_store.capture_changes TO capture_owner;
SET ROLE capture_owner;
CREATE TRIGGER capture AFTER INSERT OR UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('metadata=user');
SELECT owner, may_append FROM event_store.check_capture('shop.orders');
-- to fire, that the table's owner may append
SELECT raises('INSERT INTO shop.orders VALUES (1)');
RESET ROLE;
SELECT raises('INSERT INTO shop.orders VALUES (1)');
GRANT INSERT ON event_store.events TO capture_owner;
-- who writes to the table needs no right on the store, and has none
SET ROLE capture_writer;
INSERT INTO shop.orders VALUES (1);
UPDATE shop.orders SET v = 1;
SELECT raises($$SELECT event_store.append('x-1', 'X', '1')$$);
RESET ROLE;
SELECT stream, type, metadata FROM event_store.read_all();
-- taken away, and given again, within a session
SET ROLE capture_writer;
INSERT INTO shop.orders VALUES (2);
RESET ROLE;
REVOKE INSERT ON event_store.events FROM capture_owner;
SET ROLE capture_writer;
SELECT raises('INSERT INTO shop.orders VALUES (3)');
RESET ROLE;
GRANT INSERT ON event_store.events TO capture_stranger;
GRANT capture_stranger TO capture_owner;
SET ROLE capture_writer;
INSERT INTO shop.orders VALUES (3);
RESET ROLE;
REVOKE capture_stranger FROM capture_owner;
REVOKE INSERT ON event_store.events FROM capture_stranger;
SET ROLE capture_writer;
SELECT raises('INSERT INTO shop.orders VALUES (4)');
RESET ROLE;
-- the owner that counts is the present one
ALTER TABLE shop.orders OWNER TO current_user;
SET ROLE capture_writer;
INSERT INTO shop.orders VALUES (4);
RESET ROLE;
-- a table of somebody who may not append gets no trigger, and a trigger on another's table gains nothing
SET ROLE capture_stranger;
CREATE TABLE shop.mine (id int PRIMARY KEY);
SELECT raises($$CREATE TRIGGER capture AFTER INSERT ON shop.mine FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('category=shop.orders')$$);
RESET ROLE;
GRANT EXECUTE ON FUNCTION event_store.capture_changes TO capture_stranger;
SET ROLE capture_stranger;
CREATE TRIGGER capture AFTER INSERT ON shop.mine FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('category=shop.orders');
SELECT raises('INSERT INTO shop.mine VALUES (1)');
RESET ROLE;
-- not even when someone with all rights writes to it
SELECT raises('INSERT INTO shop.mine VALUES (1)');
SELECT count(*) FROM event_store.events;
-- a partition has the rights of the table that the trigger was made for, whoever owns it
GRANT INSERT ON event_store.events TO capture_owner;
SET ROLE capture_owner;
CREATE TABLE shop.parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE shop.parts_1 PARTITION OF shop.parts FOR VALUES FROM (1) TO (10);
CREATE TRIGGER capture AFTER INSERT ON shop.parts FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
RESET ROLE;
ALTER TABLE shop.parts_1 OWNER TO capture_stranger;
SET ROLE capture_stranger;
INSERT INTO shop.parts_1 VALUES (1);
RESET ROLE;
REVOKE INSERT ON event_store.events FROM capture_owner;
SET ROLE capture_stranger;
SELECT raises('INSERT INTO shop.parts_1 VALUES (2)');
SELECT owner, may_append FROM event_store.check_capture('shop.parts_1');
RESET ROLE;
-- a session that replicates fires no ordinary trigger
SET session_replication_role = replica;
INSERT INTO shop.orders VALUES (10);
RESET session_replication_role;
ALTER TABLE shop.orders ENABLE ALWAYS TRIGGER capture;
SET session_replication_role = replica;
INSERT INTO shop.orders VALUES (11);
RESET session_replication_role;
SELECT stream FROM event_store.read_all(backward => true, max_count => 2);
-- the extension does not go while it captures
SELECT raises('DROP EXTENSION event_store');

SET client_min_messages = warning;
DROP SCHEMA shop CASCADE;
DROP OWNED BY capture_owner, capture_writer, capture_stranger;
DROP ROLE capture_owner, capture_writer, capture_stranger;
