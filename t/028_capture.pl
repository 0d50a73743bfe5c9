# Change capture where more than one session, or more than one server, has a
# part in it: what was captured from tables that many write to at once tells
# what stands in them; triggers go through pg_dump; a subscriber of logical
# replication captures what is applied to it, if it is told to.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = work_dir();
my $node = new_node('capture', conf => "wal_level = logical\nmax_wal_senders = 5\nmax_replication_slots = 5\n");
create_store($node, 'postgres', 2000);

# ---------------------------------------------------------------------------
# Many writers
# ---------------------------------------------------------------------------

# Two tables, captured row by row and by whole statements, the one partitioned.
my $tables = <<'EOT';
CREATE TABLE by_row (id int, part int NOT NULL, v int, t text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
CREATE TABLE by_row_0 PARTITION OF by_row FOR VALUES IN (0);
CREATE TABLE by_row_1 PARTITION OF by_row FOR VALUES IN (1);
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON by_row
	FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes('data=full');
CREATE TABLE by_set (id int PRIMARY KEY, part int NOT NULL, v int, t text);
CREATE TRIGGER capture_insert AFTER INSERT ON by_set REFERENCING NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('data=full');
CREATE TRIGGER capture_update AFTER UPDATE ON by_set REFERENCING OLD TABLE AS o NEW TABLE AS n
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('data=full');
CREATE TRIGGER capture_delete AFTER DELETE ON by_set REFERENCING OLD TABLE AS o
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes('data=full');
EOT
$node->safe_psql('postgres', $tables);

append_to_file("$dir/write.sql", <<'EOT');
\set i random(1, 200)
\set r random(0, 9)
\set p random(0, 1)
BEGIN;
-- two who give one row a new key at once would be told so, capture or not
SELECT pg_advisory_xact_lock(:i);
INSERT INTO by_row VALUES (:i, :p, :r, repeat('x', :r)) ON CONFLICT (id, part) DO UPDATE SET v = by_row.v + 1;
UPDATE by_row SET part = 1 - part WHERE id = :i AND :r = 1 AND (SELECT count(*) FROM by_row WHERE id = :i) = 1;
DELETE FROM by_row WHERE id = :i AND part = :p AND :r = 2;
SAVEPOINT s;
UPDATE by_row SET v = v + 1 WHERE id BETWEEN :i AND :i + 1;
ROLLBACK TO s;
INSERT INTO by_set SELECT n, 0, :r, repeat('x', :r) FROM generate_series(:i, :i + 60) n ON CONFLICT (id) DO UPDATE SET v = by_set.v + 1;
UPDATE by_set SET id = id + 1000 WHERE id = :i AND :r = 3 AND NOT EXISTS (SELECT FROM by_set WHERE id = :i + 1000);
DELETE FROM by_set WHERE id BETWEEN :i AND :i + 5 AND :r = 4;
COMMIT;
EOT

# Rows are met in no order, so some writers deadlock, and are told so; who
# loses a race for a row that moved is told that, too. pgbench tries again.
$node->command_ok(
	[
		'pgbench', '-n', '-c', '6', '-j', '2', '-t', '150', '--max-tries=100',
		'-f', "$dir/write.sql", 'postgres'
	],
	'many write to tables whose changes are captured');
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM event_store.events'),
	'>', 5000, 'much was captured');
store_is_sound($node, 'postgres');

# Each event begins where the one before it ended.
sub tells_the_rows
{
	my ($on, $dbname, $what, %columns) = @_;

	query_is($on, $dbname, "$what: each old row is the new row of the event before it", '', <<'EOT');
SELECT stream, version FROM (
	SELECT stream, version, coalesce(data -> 'old', 'null') AS old,
		coalesce(lag(data -> 'new') OVER (PARTITION BY stream ORDER BY version), 'null') AS before
	FROM event_store.events WHERE category IN ('by_row', 'by_set')) e
WHERE old <> before LIMIT 5
EOT
	foreach my $table ('by_row', 'by_set')
	{
		my $key = $table eq 'by_row' ? "id || ',' || part" : 'id';

		query_is($on, $dbname, "$what: the last of $table are its rows", '', <<"EOT");
WITH last AS (
	SELECT DISTINCT ON (stream) stream, data -> 'new' AS row FROM event_store.events
	WHERE category = '$table' ORDER BY stream, version DESC)
SELECT coalesce(l.stream, '$table-' || $key), l.row, to_jsonb(r)
FROM (SELECT * FROM last WHERE row IS NOT NULL) l
FULL JOIN $table r ON l.stream = '$table-' || $key
WHERE l.row IS DISTINCT FROM to_jsonb(r) LIMIT 5
EOT
	}
}
tells_the_rows($node, 'postgres', 'many writers');

# ---------------------------------------------------------------------------
# Dump and restore
# ---------------------------------------------------------------------------

# with it go translations, expressions that call a function of the database's, and routes by them
$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION public.doubled(jsonb) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT 2 * $1::int $$;
SELECT event_store.create_translation('a', '{"categories": ["none"], "type": "x"}');
SELECT event_store.create_translation('outer', '{"categories": ["shown"], "type": "Shown", "data": {"pick": ["lines.n"], "compute": {"v": "public.doubled(data->''v'')"}}}');
SELECT event_store.route_to_outbox('shown', topic => 'topic-{type}', translation => 'outer');
EOT
my $before = checksum($node, 'postgres');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/dump", 'postgres' ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '-d', 'restored', '-j', '2', "$dir/dump" ], 'pg_restore');
is(checksum($node, 'restored'), $before, 'a restore captures nothing, and loses nothing');
my @triggers = ('by_row|capture|row', map { "by_set|capture_$_|statement" } qw(delete insert update));
query_is($node, 'restored', 'the triggers are there', join("\n", @triggers), <<'EOT');
SELECT r, trigger, level FROM unnest('{by_row,by_set}'::regclass[]) r, event_store.check_capture(r) ORDER BY 1, 2
EOT
$node->safe_psql('restored', 'UPDATE by_row SET v = v + 1; UPDATE by_set SET v = v + 1; DELETE FROM by_set WHERE id % 2 = 0');
tells_the_rows($node, 'restored', 'restored');
$node->safe_psql('restored',
	q{SELECT FROM event_store.append('shown-1', 'Inner', '{"v": 21, "lines": [{"n": 1, "cost": 2}], "secret": true}')});
query_is($node, 'restored', 'translations and their routes are restored', 'topic-Shown|{"v": 42, "lines": [{"n": 1}]}', <<'EOT');
SELECT topic, payload FROM event_store.outbox_poll('relay', 10)
EOT

# ---------------------------------------------------------------------------
# Logical replication: the subscriber's triggers
# ---------------------------------------------------------------------------

my $subscriber = new_node('subscriber');
create_store($subscriber, 'postgres', 2000);
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE ordinary (id int PRIMARY KEY, v int);
CREATE TABLE always (id int PRIMARY KEY, v int);
INSERT INTO always VALUES (1, 0);
CREATE PUBLICATION p FOR TABLE ordinary, always;
EOT
$subscriber->safe_psql('postgres', <<'EOT');
CREATE TABLE ordinary (id int PRIMARY KEY, v int);
CREATE TABLE always (id int PRIMARY KEY, v int);
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON ordinary
	FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
CREATE TRIGGER capture AFTER INSERT OR UPDATE OR DELETE ON always
	FOR EACH ROW EXECUTE FUNCTION event_store.capture_changes();
CREATE TRIGGER capture_truncate AFTER TRUNCATE ON always
	FOR EACH STATEMENT EXECUTE FUNCTION event_store.capture_changes();
ALTER TABLE always ENABLE ALWAYS TRIGGER capture;
ALTER TABLE always ENABLE REPLICA TRIGGER capture_truncate;
EOT
my $connstr = $node->connstr . ' dbname=postgres';
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION s CONNECTION '$connstr' PUBLICATION p");
$subscriber->wait_for_subscription_sync($node, 's');
$node->safe_psql('postgres', <<'EOT');
INSERT INTO ordinary VALUES (1, 1);
INSERT INTO always VALUES (2, 2), (3, 3);
UPDATE always SET v = v + 10;
DELETE FROM always WHERE id = 2;
TRUNCATE always;
EOT
$node->wait_for_catchup('s');
my @captured = (
	(map { "always-$_|always.inserted" } 1 .. 3),
	(map { "always-$_|always.updated" } 1 .. 3),
	'always-2|always.deleted', 'always|always.truncated');
query_is($subscriber, 'postgres', 'what is applied is captured by triggers that are to fire then',
	join("\n", @captured), <<'EOT');
SELECT stream, type FROM event_store.read_all()
EOT
$subscriber->stop;
$node->stop;

done_testing();
