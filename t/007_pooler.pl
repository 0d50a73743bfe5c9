# Through a transaction pooler: many clients share few connections of the
# server, so nothing may depend on what a session did before.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

plan skip_all => 'pgbouncer is not installed' unless find_program('pgbouncer');

my $seed = $ENV{EVENT_STORE_SEED} // int time;
my $dir = work_dir();
my $clients = 12;

note "seed $seed (EVENT_STORE_SEED)";

my $node = new_node('pooled');
create_store($node, 'postgres', 64);
$node->safe_psql('postgres', <<'EOT');
CREATE ROLE outsider LOGIN;
GRANT USAGE ON SCHEMA event_store TO outsider;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA event_store TO outsider;
CREATE TABLE acknowledged (client text, stream text, version int, position bigint);
EOT

# ---------------------------------------------------------------------------
# The pooler: three connections to the server for all clients
# ---------------------------------------------------------------------------

my $pooler = start_pooler($node, conf => <<'EOT');
default_pool_size = 3
min_pool_size = 3
max_client_conn = 100
EOT

sub new_session
{
	return EventStoreTest::Session->new($node, 'postgres',
		connstr => $pooler->{connstr}, no_wait => 1);
}

# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------

sub work
{
	my ($name) = @_;
	my $session = new_session();
	my ($own, $cursor) = (0, 0);
	my $metadata = qq(jsonb_build_object('backend', pg_backend_pid()));

	open my $log, '>', "$dir/$name.acknowledged" or die $!;
	foreach my $n (1 .. 120)
	{
		my $kind = rand;

		if ($kind < 0.4)
		{
			# the version is known to the client alone
			my $row = $session->run(
				"SELECT stream, first_version, first_position
				FROM event_store.append('pooled-$name', 'own', '$n', $metadata, $own)");
			$own++;
			print $log join("\t", $name, split /\|/, $row), "\n";
		}
		elsif ($kind < 0.6)
		{
			# two events in a transaction, with a pause in which others work
			$session->run('BEGIN');
			my @rows = $session->run(
				"SELECT stream, first_version, first_position
				FROM event_store.append('pooled-$name', 'own', '$n', $metadata, $own)");
			usleep(rand 3_000);
			push @rows, $session->run(
				"SELECT stream, first_version, first_position
				FROM event_store.append('pooled-$name', 'own', '$n', $metadata, $own + 1)");
			$session->run('COMMIT');
			$own += 2;
			print $log join("\t", $name, split /\|/), "\n" foreach @rows;
		}
		elsif ($kind < 0.7)
		{
			# an error, which leaves nothing behind for the next client
			$session->try(
				"SELECT event_store.append('pooled-$name', 'wrong', '{}', expected_version => 100000)");
			die "wanted VE001: $session->{message}" if $session->{sqlstate} ne 'VE001';
		}
		elsif ($kind < 0.8)
		{
			# first uses of names, rolled back
			$session->run('BEGIN');
			$session->run(
				"SELECT event_store.append('rolled$n$name-1', 'type $n $name', '{}', source => 's $n')");
			$session->run('ROLLBACK');
		}
		elsif ($kind < 0.9)
		{
			my $row = $session->run(
				"SELECT stream, first_version, first_position
				FROM event_store.append('pooled-shared', 'type $n', '{}', $metadata)");
			print $log join("\t", $name, split /\|/, $row), "\n";
		}
		else
		{
			my @rows = $session->run(
				"SELECT position FROM event_store.read_all($cursor, 20)");
			$cursor = $rows[-1] if @rows;
		}
	}
	close $log;
	return;
}

my @pids = map {
	my $n = $_;
	start_worker(sub { srand($seed + $n); work("client$n") });
} 1 .. $clients;
is(wait_workers(@pids), 0, 'clients met no error');
$node->safe_psql('postgres', "COPY acknowledged FROM '$_'")
  foreach glob "$dir/*.acknowledged";

query_is($node, 'postgres', 'events are those that were acknowledged', '0', <<'EOT');
SELECT count(*) FROM acknowledged a
FULL JOIN event_store.events e
	ON e.stream = a.stream AND e.version = a.version AND e.position = a.position
WHERE a.position IS NULL OR e.position IS NULL
EOT
query_is($node, 'postgres', 'few connections did the work of many', 't', <<"EOT");
SELECT count(DISTINCT metadata->>'backend') BETWEEN 1 AND 3
	AND count(DISTINCT stream) > $clients FROM event_store.events
EOT
query_is($node, 'postgres', 'names that were rolled back are not there', '0|0|0', <<'EOT');
SELECT (SELECT count(*) FROM event_store.category WHERE name LIKE 'rolled%'),
	(SELECT count(*) FROM event_store.event_type WHERE name LIKE 'type % client%'),
	(SELECT count(*) FROM event_store.stream WHERE name LIKE 'rolled%')
EOT
store_is_sound($node, 'postgres', 'through the pooler');

# A right that one client has is not remembered for the next.
{
	my $session = new_session();

	$session->run(q(SELECT event_store.append('pooled-shared', 'may', '{}')));
	foreach my $sql (
		q(SELECT event_store.append('pooled-shared', 'may not', '{}')),
		q(SELECT event_store.append_events('pooled-shared', '[{"type": "may not", "data": 1}]')),
		q(INSERT INTO event_store.events (stream, type, data) VALUES ('pooled-shared', 'may not', '1')),
		q(SELECT * FROM event_store.read_all()),
		q(SELECT * FROM event_store.read_stream('pooled-shared')),
		q(SELECT * FROM event_store.events))
	{
		$session->run('BEGIN');
		$session->run('SET LOCAL ROLE outsider');
		$session->try($sql);
		is($session->{sqlstate}, '42501', "refused to another role: $sql");
		$session->run('ROLLBACK');
	}
}

stop_pooler($pooler);
$node->stop;
done_testing();
