# A store goes through pg_dump and comes back whole: the same events, the same
# positions, the same versions; appends and cursors go on where they were.
#
# Everything is done by the database's owner, who is no superuser, as far as
# the server lets him; then once more by a superuser.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = work_dir();
my $node = new_node('dump');
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

$node->safe_psql('postgres', <<'EOT');
CREATE ROLE keeper LOGIN;
CREATE ROLE clerk LOGIN;
EOT

sub psql_as
{
	my ($role, $dbname, $sql) = @_;

	return $node->safe_psql($dbname, $sql, extra_params => [ '-U', $role ]);
}

# What a database has that initdb's templates have not, catalog by catalog.
my $leftovers = join ' UNION ALL ',
  map { "SELECT '$_', oid::text FROM pg_catalog.$_ WHERE oid >= 16384" }
  qw(pg_class pg_proc pg_type pg_namespace pg_constraint pg_trigger pg_rewrite
  pg_attrdef pg_operator pg_opclass pg_cast pg_event_trigger pg_policy
  pg_statistic_ext pg_publication pg_default_acl pg_extension pg_language);
$leftovers .= <<'EOT';
 UNION ALL SELECT 'pg_description', objoid::text FROM pg_catalog.pg_description
	WHERE objoid >= 16384
 UNION ALL SELECT 'pg_init_privs', objoid::text FROM pg_catalog.pg_init_privs
	WHERE objoid >= 16384
 UNION ALL SELECT 'pg_depend', d::text FROM pg_catalog.pg_depend d
	WHERE objid >= 16384
 UNION ALL SELECT 'pg_shdepend', d::text FROM pg_catalog.pg_shdepend d
	WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
EOT

# Fills a store with all that an event can carry, over many segments, with
# gaps, and gives a reader's position from the midst of it.
sub fill
{
	my ($role, $dbname) = @_;

	return psql_as($role, $dbname, <<'EOT');
SELECT event_store.set_segment_size(32) \g /dev/null
SELECT event_store.append_events('order-' || n % 7, (SELECT jsonb_agg(
	jsonb_build_object('type', 'line ' || k, 'data', jsonb_build_object('n', n, 'k', k)))
	FROM generate_series(1, 5) k)) FROM generate_series(1, 60) n \g /dev/null
BEGIN;
SELECT event_store.append_events('order-1', '[{"type": "lost", "data": 1}, {"type": "lost", "data": 2}]') \g /dev/null
ROLLBACK;
SELECT event_store.append('Straße-"1"''\', 'tab''s "type"', '{"a": "\\ \u00e4 \n", "b": [null, 1.50, 1e400]}',
	metadata => '{"who": "Zoë"}', expected_version => 0,
	event_id => '00000000-0000-0000-0000-000000000001',
	occurred_at => '2018-01-01 00:00:00.123456+02', correlation_id => 'c 1',
	causation_id => '00000000-0000-0000-0000-000000000002', schema_version => 7,
	source => 'a source') \g /dev/null
SELECT event_store.append('nodash', 'null', 'null'), event_store.append('nodash', 'big',
	to_jsonb(repeat('x', 100000))), event_store.append('$system-1', 'number', '1') \g /dev/null
INSERT INTO event_store.events (stream, type, data)
	SELECT 'bulk-' || n % 10, 'inserted', to_jsonb(n) FROM generate_series(1, 100) n;
SELECT event_store.save_snapshot('order-3', 20, '{"saved": "by hand"}'),
	event_store.save_snapshot('order-3', 10, '"2"', schema_version => 2) \g /dev/null
SELECT event_store.set_snapshot_policy('count', '{order,bulk}', every_events => 10, keep => 2, schema_version => 4) \g /dev/null
SELECT event_store.take_snapshots() \g /dev/null
SELECT max(position) FROM event_store.read_all(0, 200);
EOT
}

# All that a reader with this position has still to come.
sub rest_after
{
	my ($dbname, $position) = @_;

	return $node->safe_psql($dbname, <<"EOT");
SET timezone = 'UTC';
SELECT count(*), md5(string_agg(e::text, E'\\n' ORDER BY e.position))
FROM event_store.read_all($position, NULL) e
EOT
}

# Snapshots, policies, and what is loaded by them.
sub snapshots
{
	my ($dbname) = @_;

	# state_at() would save what takes long to fold
	return $node->safe_psql($dbname, <<'EOT');
SET timezone = 'UTC';
SET default_transaction_read_only = on;
SELECT * FROM event_store.snapshots ORDER BY stream, fold, schema_version, version;
SELECT fold, categories, every_events, every, keep, schema_version, checkpoint, taken, created_at FROM event_store.snapshot_policies;
SELECT l.* FROM event_store.streams() s, event_store.load_stream(s.stream) l ORDER BY l.position;
SELECT l.* FROM event_store.streams() s, event_store.load_stream(s.stream, fold => 'count') l ORDER BY l.position;
SELECT s.stream, event_store.state_at(s.stream, 'count', v) FROM event_store.streams() s, generate_series(0, 50, 7) v ORDER BY 1, v;
EOT
}

# What must hold in a database that the store was restored into.
sub check_restored
{
	my ($role, $from, $to, $position, $how) = @_;

	is(checksum($node, $to), checksum($node, $from), "$how: same events");
	is(streams_checksum($node, $to),
		streams_checksum($node, $from),
		"$how: same streams");
	is(rest_after($to, $position),
		rest_after($from, $position),
		"$how: a reader goes on from its position");
	is( $node->safe_psql($to, 'SELECT * FROM event_store.segments()'),
		$node->safe_psql($from, 'SELECT * FROM event_store.segments()'),
		"$how: same segments");
	my $snapshots = snapshots($to);
	is($snapshots, snapshots($from), "$how: same snapshots, policies and states");
	like($snapshots, qr/\$snapshot\|4\|/, "$how: snapshots are used");
	query_is($node, $to, "$how: numbers of snapshots go on", 't', <<'EOT');
SELECT max(id) < nextval('event_store.snapshot_id') FROM event_store.snapshot
EOT
	query_is($node, $to, "$how: the mark stands at the last event or beyond", 't', <<'EOT');
SELECT event_store.settled_position() >= max(position) FROM event_store.events
EOT
	store_is_sound($node, $to, $how);

	# retries of what was appended before the dump
	is( psql_as($role, $to, <<'EOT'), 't|1|1|t', "$how: a retry finds the first result");
SELECT duplicate, first_version, last_version, first_position =
	(SELECT position FROM event_store.find_event('00000000-0000-0000-0000-000000000001'))
FROM event_store.append('Straße-"1"''\', 'tab''s "type"', '{"a": "\\ \u00e4 \n", "b": [null, 1.50, 1e400]}',
	metadata => '{"who": "Zoë"}', expected_version => 0, schema_version => 7,
	event_id => '00000000-0000-0000-0000-000000000001')
EOT
	is( sqlstate_of($node, $to, <<'EOT', user => $role), 'VE003', "$how: the id stays taken");
SELECT event_store.append('Straße-"1"''\', 'other', '{}',
	event_id => '00000000-0000-0000-0000-000000000001')
EOT
	is( sqlstate_of($node, $to, <<'EOT', user => $role), 'VE001', "$how: versions are known");
SELECT event_store.append('order-3', 'late', '{}', expected_version => 3)
EOT

	# appends go on, over several boundaries of segments
	is( psql_as($role, $to, <<'EOT'), 't|t', "$how: appends go on");
WITH before AS MATERIALIZED (SELECT event_store.stream_version('order-3') AS version,
	max(position) AS position FROM event_store.events)
SELECT appended.first_version = before.version + 1,
	appended.first_position > before.position
FROM before, event_store.append('order-3', 'next', '{}',
	expected_version => before.version) appended
EOT
	my $there = $node->safe_psql($to, 'SELECT max(position) FROM event_store.events');
	psql_as($role, $to, <<'EOT');
SELECT event_store.append('order-' || n % 9, 'after', '{}') FROM generate_series(1, 150) n
EOT
	query_is($node, $to, "$how: the reader receives what is new", '150', <<"EOT");
SELECT count(*) FROM event_store.read_all($there, NULL)
EOT
	store_is_sound($node, $to, "$how, then appended");
	foreach my $sql (
		'UPDATE event_store.event_1 SET version = 1',
		'DELETE FROM event_store.event WHERE position = 1',
		'TRUNCATE event_store.event_33',
		'DELETE FROM event_store.events',
		'TRUNCATE event_store.stream')
	{
		is(sqlstate_of($node, $to, $sql, user => $superuser),
			'VE005', "$how: refused: $sql");
	}
	return;
}

# ---------------------------------------------------------------------------
# A database whose owner is no superuser
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE origin OWNER keeper');
$node->safe_psql('postgres', "CREATE DATABASE $_ OWNER keeper")
  foreach qw(plain custom parallel schema_only untouched);
psql_as('keeper', 'origin', 'CREATE EXTENSION event_store');
my $position = fill('keeper', 'origin');
psql_as('keeper', 'origin', <<'EOT');
GRANT USAGE ON SCHEMA event_store TO clerk;
GRANT SELECT, INSERT ON event_store.events TO clerk;
GRANT EXECUTE ON FUNCTION event_store.append(text, text, jsonb, jsonb, bigint,
	uuid, timestamptz, text, uuid, int, text) TO clerk;
EOT
query_is($node, 'origin', 'the store has several segments', 't',
	'SELECT count(*) > 5 FROM event_store.segments()');

# A command that has to succeed without a word of complaint.
sub quiet_ok
{
	my ($name, @command) = @_;
	my ($out, $err);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	ok(IPC::Run::run(\@command, '>', \$out, '2>', \$err), $name);
	return is($err, '', "$name: no complaint");
}

quiet_ok('pg_dump, plain', 'pg_dump', '-U', 'keeper', '-f', "$dir/plain.sql", 'origin');
quiet_ok('pg_dump, custom', 'pg_dump', '-U', 'keeper', '-Fc', '-f', "$dir/custom", 'origin');
quiet_ok('pg_dump, directory', 'pg_dump', '-U', 'keeper', '-Fd', '-j', '2',
	'-f', "$dir/directory", 'origin');
quiet_ok('pg_dump, schema only', 'pg_dump', '-U', 'keeper', '--schema-only',
	'-f', "$dir/schema.sql", 'origin');

quiet_ok('psql restores', 'psql', '-X', '-q', '-o', "$dir/psql.out", '-U', 'keeper',
	'-v', 'ON_ERROR_STOP=1', '-f', "$dir/plain.sql", 'plain');
check_restored('keeper', 'origin', 'plain', $position, 'plain');

quiet_ok('pg_restore restores', 'pg_restore', '-U', 'keeper', '--exit-on-error',
	'-d', 'custom', "$dir/custom");
check_restored('keeper', 'origin', 'custom', $position, 'custom');

quiet_ok('parallel pg_restore restores', 'pg_restore', '-U', 'keeper', '--exit-on-error',
	'-j', '2', '-d', 'parallel', "$dir/directory");
check_restored('keeper', 'origin', 'parallel', $position, 'parallel');

# privileges come along
foreach my $dbname ('origin', 'plain', 'custom')
{
	is( sqlstate_of($node, $dbname,
			q(SELECT event_store.append('clerk-1', 'may', '{}')),
			user => 'clerk'),
		'00000',
		"$dbname: the clerk may append");
	is( sqlstate_of($node, $dbname,
			q(SELECT event_store.append_events('clerk-1', '[{"type": "may", "data": 1}]')),
			user => 'clerk'),
		'42501',
		"$dbname: the clerk may not do what was not granted");
}

# ---------------------------------------------------------------------------
# The schema alone
# ---------------------------------------------------------------------------

quiet_ok('psql restores the schema', 'psql', '-X', '-q', '-o', "$dir/psql.out", '-U', 'keeper',
	'-v', 'ON_ERROR_STOP=1', '-f', "$dir/schema.sql", 'schema_only');
query_is($node, 'schema_only', 'schema only: no events', '0|0', <<'EOT');
SELECT (SELECT count(*) FROM event_store.events), (SELECT count(*) FROM event_store.streams())
EOT
is( psql_as('keeper', 'schema_only', <<'EOT'), '1|1', 'schema only: appends begin');
SELECT first_version, last_version FROM event_store.append('order-3', 'first', '{}', expected_version => 0)
EOT
psql_as('keeper', 'schema_only', <<'EOT');
SELECT event_store.append('order-' || n % 9, 'after', '{}') FROM generate_series(1, 150) n
EOT
query_is($node, 'schema_only', 'schema only: reads', '151',
	'SELECT count(*) FROM event_store.read_all(0, NULL)');
store_is_sound($node, 'schema_only', 'schema only');

# ---------------------------------------------------------------------------
# The same by a superuser, and a dump of the dump
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE again');
quiet_ok('pg_dump of a restored store', 'pg_dump', '-Fc', '-f', "$dir/again", 'plain');
quiet_ok('pg_restore of it', 'pg_restore', '--exit-on-error', '-d', 'again', "$dir/again");
check_restored($superuser, 'plain', 'again', $position, 'again');

# ---------------------------------------------------------------------------
# DROP EXTENSION leaves nothing
# ---------------------------------------------------------------------------

my $nothing = $node->safe_psql('untouched', $leftovers);

foreach my $dbname ('origin', 'plain', 'parallel', 'schema_only')
{
	psql_as('keeper', $dbname, 'DROP EXTENSION event_store');
	# the segments of "plain" were tables of the dump, not made by the store
	is($node->safe_psql($dbname, $leftovers), $nothing, "$dbname: nothing is left");
}

# ... so that it can be made anew, in the same session, too.
is( psql_as('keeper', 'origin', <<'EOT'), "1\n1", 'dropped and made anew');
CREATE EXTENSION event_store;
SELECT last_position FROM event_store.append('order-3', 'first', '{}');
DROP EXTENSION event_store;
CREATE EXTENSION event_store;
SELECT last_position FROM event_store.append('order-3', 'first', '{}');
EOT

$node->stop;
done_testing();
