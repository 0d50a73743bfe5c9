# pg_upgrade takes a store along: from the same version into a new cluster
# always, and from each older version that is installed with the extension.
#
# Older versions are looked for beside this one, where the directory of the
# programs is named after the version; EVENT_STORE_OLD_INSTALL names another
# (the directory that has bin/).

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use Cwd qw(abs_path getcwd);
use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $probe = PostgreSQL::Test::Cluster->new('probe');
my $bindir = $probe->config_data('--bindir');
my ($this_major) = $probe->pg_version =~ /^(\d+)/;

# What each upgrade starts from: a name, and the installation, undef for this.
my @origins = ([ "$this_major", undef ]);

if (my ($top) = $bindir =~ m{^(.*)/\Q$this_major\E/bin/?$})
{
	foreach my $other (glob "$top/*/bin/pg_ctl")
	{
		my ($major) = $other =~ m{/(\d+)/bin/pg_ctl$} or next;
		my $install = $other =~ s{/bin/pg_ctl$}{}r;

		push @origins, [ $major, $install ]
		  if $major >= 15 && $major < $this_major && has_extension($install);
	}
}
push @origins, [ 'other', $ENV{EVENT_STORE_OLD_INSTALL} ]
  if $ENV{EVENT_STORE_OLD_INSTALL};

sub has_extension
{
	my ($install) = @_;
	my $sharedir = `'$install/bin/pg_config' --sharedir`;

	chomp $sharedir;
	return $? == 0 && -e "$sharedir/extension/event_store.control";
}

sub start_node
{
	my ($name, $install) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name,
		$install ? (install_path => $install) : ());
	my @extra = ('--encoding=UTF8', '--locale=C');

	# both clusters must agree, and older ones have none by default
	push @extra, '--no-data-checksums' if $node->pg_version =~ /^(\d+)/ && $1 >= 18;
	$node->init(extra => \@extra);
	$node->start;
	return $node;
}

foreach my $origin (@origins)
{
	my ($from, $install) = @$origin;
	my $old = start_node("from_$from", $install);
	my $new = start_node("after_$from", undef);

	create_store($old, 'postgres', 32);
	$old->safe_psql('postgres', <<'EOT');
CREATE ROLE clerk LOGIN;
GRANT USAGE ON SCHEMA event_store TO clerk;
GRANT SELECT ON event_store.events TO clerk;
SELECT event_store.append_events('order-' || n % 7, (SELECT jsonb_agg(
	jsonb_build_object('type', 'line ' || k, 'data', jsonb_build_object('n', n)))
	FROM generate_series(1, 5) k)) FROM generate_series(1, 60) n;
BEGIN;
SELECT event_store.append('order-1', 'rolled back', '{}') FROM generate_series(1, 40);
ROLLBACK;
SELECT event_store.append('order-1', 'last', '{}',
	event_id => '00000000-0000-0000-0000-000000000001', source => 'a source');
SELECT event_store.set_dedup_window('own', keep_count => 2);
SELECT event_store.mark_processed('own', 'm'), event_store.mark_processed('shared', 'm'), event_store.once('own', 'k', 'SELECT 42');
-- a second store, where the ids of tables differ
CREATE DATABASE other;
\c other
CREATE TABLE something (n int);
CREATE EXTENSION event_store;
SELECT event_store.append('other-1', 'happened', '{}');
EOT
	# none is on its way any more
	$old->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'event_store segment worker'));
	my $events = checksum($old, 'postgres');
	my $streams = streams_checksum($old, 'postgres');
	my $segments = $old->safe_psql('postgres', 'SELECT * FROM event_store.segments()');
	my $cursor = $old->safe_psql('postgres',
		'SELECT max(position) FROM event_store.read_all(0, 150)');
	my $last = $old->safe_psql('postgres', 'SELECT event_store.last_position()');

	$old->stop;
	$new->stop;
	# it leaves a script in the current directory
	my $here = getcwd;
	my ($old_data, $new_data) = map { abs_path($_->data_dir) } $old, $new;
	chdir work_dir() or die $!;
	command_ok(
		[
			'pg_upgrade', '--no-sync',
			'-d', $old_data, '-D', $new_data,
			'-b', $old->config_data('--bindir'), '-B', $new->config_data('--bindir'),
			'-s', $new->host, '-p', $old->port, '-P', $new->port
		],
		"pg_upgrade from $from to $this_major");
	chdir $here or die $!;
	$new->start;

	is(checksum($new, 'postgres'), $events, "from $from: same events");
	is(streams_checksum($new, 'postgres'), $streams, "from $from: same streams");
	is($new->safe_psql('postgres', 'SELECT * FROM event_store.segments()'),
		$segments, "from $from: same segments");
	query_is($new, 'postgres', "from $from: the counter is at least where it was", 't', <<"EOT");
SELECT event_store.last_position() >= $last AND event_store.settled_position() >= $last
EOT
	query_is($new, 'postgres', "from $from: a reader goes on", 't', <<"EOT");
SELECT count(*) = (SELECT count(*) FROM event_store.events WHERE position > $cursor)
FROM event_store.read_all($cursor, NULL)
EOT
	query_is($new, 'postgres', "from $from: a retry finds the first result", 't', <<'EOT');
SELECT duplicate FROM event_store.append('order-1', 'last', '{}',
	event_id => '00000000-0000-0000-0000-000000000001')
EOT
	is( sqlstate_of($new, 'postgres',
			q(SELECT event_store.append('order-1', 'late', '{}', expected_version => 3))),
		'VE001',
		"from $from: versions are known");
	query_is($new, 'postgres', "from $from: positions go on", 't', <<"EOT");
SELECT first_position > $last FROM event_store.append('order-1', 'next', '{}',
	expected_version => event_store.stream_version('order-1'))
EOT
	$new->safe_psql('postgres', <<'EOT');
SELECT event_store.append('order-' || n % 9, 'after', '{}') FROM generate_series(1, 150) n
EOT
	query_is($new, 'postgres', "from $from: and are read", '151', <<"EOT");
SELECT count(*) FROM event_store.read_all($last, NULL)
EOT
	is( sqlstate_of($new, 'postgres', 'SELECT * FROM event_store.read_all()',
			user => 'clerk'),
		'00000',
		"from $from: privileges came along");
	is(sqlstate_of($new, 'postgres', 'DELETE FROM event_store.event_1'),
		'VE005', "from $from: events stay append-only");
	store_is_sound($new, 'postgres', "from $from");
	query_is($new, 'other', "from $from: the other store is well", '2', <<'EOT');
SELECT last_version FROM event_store.append('other-1', 'happened', '{}', expected_version => 1)
EOT
	query_is($new, 'postgres', "from $from: what was processed is known", 'f|f|42|t', <<'EOT');
SELECT event_store.mark_processed('own', 'm'), event_store.mark_processed('shared', 'm'), event_store.once('own', 'k', 'SELECT 42'), event_store.mark_processed('own', 'n')
EOT
	query_is($new, 'postgres', "from $from: and forgotten in time", 't', <<'EOT');
DO $$ BEGIN FOR i IN 1..12 LOOP
	PERFORM event_store.mark_processed('own', i::text); COMMIT;
	PERFORM event_store.rotate_inbox(); COMMIT;
END LOOP; END $$;
SELECT event_store.mark_processed('own', 'm');
EOT
	$new->safe_psql('postgres', 'DROP EXTENSION event_store');
	query_is($new, 'postgres', "from $from: nothing is left after a drop", '0', <<'EOT');
SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('event_store')
EOT
	$new->stop;
	$old->clean_node;
	$new->clean_node;
}

done_testing();
