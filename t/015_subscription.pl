# A transactional consumer applies each event once, whatever becomes of it.
#
# Consumers of one subscription write each event that they are given into a
# table, and acknowledge it, in one transaction. They roll back, forget to
# acknowledge, acknowledge in pieces, are killed, and the server is killed
# under them, while writers append. The oracle: at the end the table holds the
# log, each event once; and in the order in which they were applied, the events
# of the store come in order of position, where all was acknowledged in order.
#
# EVENT_STORE_CHAOS_SECONDS (default 8) is how long it goes on, EVENT_STORE_SEED
# what the decisions follow from.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed = $ENV{EVENT_STORE_SEED} // int time;
my $seconds = $ENV{EVENT_STORE_CHAOS_SECONDS} // 8;
my $dir = work_dir();

note "seed $seed (EVENT_STORE_SEED), $seconds s (EVENT_STORE_CHAOS_SECONDS)";
srand($seed);

my $node = new_node('chaos', conf => 'restart_after_crash = on');
create_store($node, 'postgres', 64);
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE effect (n bigserial, position bigint);
CREATE TABLE filtered (n bigserial, position bigint);
CREATE TABLE pieces (n bigserial, position bigint);
SELECT event_store.create_subscription('effect');
SELECT event_store.create_subscription('filtered', categories => '{left}', types => '{a}');
SELECT event_store.create_subscription('pieces', stream_pattern => '%-1');
EOT

# Until the file "stop" is there. Whatever goes wrong is the test's own doing,
# but for errors of our own.
sub go_on
{
	my ($code) = @_;

	until (-e "$dir/stop")
	{
		my $session = eval { EventStoreTest::Session->new($node, 'postgres') };

		unless ($session && !$session->{lost})
		{
			usleep(20_000);
			next;
		}
		until ($session->{lost} || -e "$dir/stop")
		{
			$code->($session);
			die "$session->{sqlstate}: $session->{message}"
			  if !$session->{lost} && $session->{sqlstate} =~ /^(XX|VE|23)/;
			$session->try('ROLLBACK') unless $session->{lost};
		}
	}
	return;
}

sub consume
{
	my ($session, $name) = @_;
	my $count = 1 + int rand 30;
	my $kind = rand;

	if ($name eq 'pieces' && $kind < 0.6)
	{
		# some of them only, in any order
		$session->try(<<"EOT");
WITH batch AS MATERIALIZED (SELECT position FROM event_store.poll('$name', $count)),
	chosen AS MATERIALIZED (SELECT position FROM batch WHERE random() < 0.5 ORDER BY random()),
	done AS (INSERT INTO $name (position) SELECT position FROM chosen)
SELECT event_store.ack('$name', coalesce(array_agg(position), '{}')) FROM chosen
EOT
		usleep(2_000);
		return;
	}
	$session->try('BEGIN');
	return if $session->{lost};
	my ($last) = $session->try(<<"EOT");
WITH batch AS MATERIALIZED (SELECT position FROM event_store.poll('$name', $count)),
	done AS (INSERT INTO $name (position) SELECT position FROM batch ORDER BY position)
SELECT max(position) FROM batch
EOT
	return if $session->{sqlstate} ne '00000';
	if (!$last)
	{
		$session->try('ROLLBACK');
		usleep(5_000);
		return;
	}
	if ($kind < 0.15)
	{
		$session->try('ROLLBACK');
		return;
	}
	usleep(rand 3_000);
	$session->try("SELECT event_store.ack_up_to('$name', $last)");
	$session->try('COMMIT') if $session->{sqlstate} eq '00000';
	return;
}

my @consumers = map {
	my ($name, $n) = @$_;
	start_worker(sub {
		srand($seed + $n);
		go_on(sub { consume($_[0], $name) });
	});
} ([ 'effect', 1 ], [ 'effect', 2 ], [ 'effect', 3 ], [ 'filtered', 4 ],
	[ 'filtered', 5 ], [ 'pieces', 6 ], [ 'pieces', 7 ]);
my @writers = map {
	my $n = $_;
	start_worker(sub {
		srand($seed + 100 + $n);
		go_on(sub {
			my ($session) = @_;
			my $stream = ('left', 'right')[ rand 2 ] . '-' . int rand 3;
			my $count = 1 + int rand 5;

			$session->try('BEGIN');
			$session->try("INSERT INTO event_store.events (stream, type, data)
				SELECT '$stream', (ARRAY['a', 'b'])[1 + i % 2], '1' FROM generate_series(1, $count) i");
			usleep(rand 2_000);
			$session->try(rand() < 0.1 ? 'ROLLBACK' : 'COMMIT');
			usleep(rand 5_000);
		});
	});
} 1 .. 3;

# Backends are ended and killed; one time the server is.
my $until = time + $seconds;
my $crashed = 0;
while (time < $until)
{
	usleep(100_000 + rand 200_000);
	my $pid = eval { $node->safe_psql('postgres', <<'EOT') };
SELECT pid FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1
EOT
	next unless $pid;
	if (!$crashed && time > $until - $seconds / 2)
	{
		kill 'KILL', $pid;
		$crashed = 1;
	}
	else
	{
		kill 'TERM', $pid;
	}
}
append_to_file("$dir/stop", '');
ok($crashed, 'the server was killed');
is(wait_workers(@consumers, @writers), 0, 'consumers and writers met no error of ours');
$node->poll_query_until('postgres', 'SELECT true');

# what is left, when those who were ended last have gone
$node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()));
foreach my $name ('effect', 'filtered', 'pieces')
{
	$node->safe_psql('postgres', <<"EOT");
WITH batch AS MATERIALIZED (SELECT position FROM event_store.poll('$name', NULL)),
	done AS (INSERT INTO $name (position) SELECT position FROM batch ORDER BY position)
SELECT event_store.ack('$name', array_agg(position)) FROM batch HAVING count(*) > 0
EOT
}
my %wanted = (effect => 'true', filtered => q(category = 'left' AND type = 'a'), pieces => q(stream LIKE '%-1'));
foreach my $name (sort keys %wanted)
{
	query_is($node, 'postgres', "$name: each event once (missing|too many)", '0|0', <<"EOT");
SELECT (SELECT count(*) FROM (SELECT position FROM event_store.events WHERE $wanted{$name}
		EXCEPT ALL SELECT position FROM $name) d),
	(SELECT count(*) FROM (SELECT position FROM $name
		EXCEPT ALL SELECT position FROM event_store.events WHERE $wanted{$name}) d)
EOT
	query_is($node, 'postgres', "$name: nothing is open", '0',
		"SELECT open_events FROM event_store.subscription_lag('$name')");
}
query_is($node, 'postgres', 'events were applied in order', '0', <<'EOT');
SELECT count(*) FROM (SELECT position, lag(position) OVER (ORDER BY n) AS earlier FROM effect) e
WHERE earlier > position
EOT
note 'events, acknowledged: ', $node->safe_psql('postgres', <<'EOT');
SELECT (SELECT count(*) FROM event_store.events), string_agg(name || ' ' || acknowledged, ', ') FROM event_store.subscriptions
EOT

# Subscriptions go through a dump, with their checkpoints and what is done ahead
# of them, with what is out under a lease, what waits for another attempt, and
# dead letters.
$node->safe_psql('postgres', <<'EOT');
SELECT event_store.append('left-1', 'a', to_jsonb(i)) FROM generate_series(1, 10) i;
SELECT event_store.ack('filtered', (SELECT array_agg(position) FROM event_store.poll('filtered', NULL) WHERE data IN ('2', '3', '7')));
SELECT event_store.pause_subscription('pieces');
SELECT event_store.create_subscription('leased', start_after => NULL, slots => 4, first_delay => '1 hour', max_delay => '1 hour',
	jitter => 0, breaker_failures => 100);
SELECT event_store.append('leased-' || (ARRAY['out', 'retry', 'dead'])[1 + i % 3], 'a', to_jsonb(i)) FROM generate_series(1, 9) i;
SELECT event_store.append('queued-' || i, 'a', to_jsonb(100 + i)) FROM generate_series(1, 2) i;
SELECT FROM event_store.poll('leased', NULL, consumer => 'one', lease => '2 hours');
SELECT event_store.nack('leased', position, 'slow', consumer => 'one')
FROM event_store.read_stream('leased-retry') WHERE version = 1;
SELECT event_store.alter_subscription('leased', max_attempts => 1);
SELECT event_store.nack('leased', position, 'broken', consumer => 'one')
FROM event_store.read_stream('leased-dead') WHERE version = 1;
SELECT event_store.ack('leased', array_agg(position), consumer => 'one')
FROM event_store.events WHERE stream LIKE 'queued-%';
-- dealt out, and not delivered
SELECT event_store.append('queued-' || i, 'a', to_jsonb(200 + i)) FROM generate_series(1, 20) i;
SELECT FROM event_store.poll('leased', 1, consumer => 'one', lease => '2 hours');
EOT
# all of it but what goes on with the clock; the consumers are there for two hours
my %state = (
	'the view' => <<'EOT',
SELECT name, categories, types, stream_pattern, mode, slots, paused, checkpoint, positions_behind, open_events, done_ahead,
	replaying, acknowledged, taken_at, queued, leased, oldest_leased_at, retries, waiting, dead_letters, failures, breaker,
	breaker_until, consumers, created_at
FROM event_store.subscriptions ORDER BY name
EOT
	'the tables' => <<'EOT',
SELECT row FROM (
	SELECT s::text AS row FROM event_store.subscription s
	UNION ALL SELECT s::text FROM event_store.subscription_cursor s
	UNION ALL SELECT s::text FROM event_store.subscription_batch s
	UNION ALL SELECT s::text FROM event_store.subscription_failure s
	UNION ALL SELECT s::text FROM event_store.subscription_consumer s
	UNION ALL SELECT s::text FROM event_store.subscription_fault s
	UNION ALL SELECT s::text FROM event_store.subscription_breaker s
	UNION ALL SELECT s::text FROM event_store.subscription_change s) s
ORDER BY row
EOT
	'the history' => 'SELECT * FROM event_store.subscription_history ORDER BY at, subscription',
	'dead letters' => q(SELECT * FROM event_store.dead_letters('leased')),
);
query_is($node, 'postgres', 'there is some of each: leased, retries, waiting, dead letters, queued', '4|1|4|1|19',
	q(SELECT leased, retries, waiting, dead_letters, queued FROM event_store.subscriptions WHERE name = 'leased'));
my %before = map { $_ => $node->safe_psql('postgres', $state{$_}) } keys %state;
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/dump", 'postgres' ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', "$dir/dump" ], 'pg_restore');
query_is($node, 'restored', "$_: as before the dump", $before{$_}, $state{$_}) foreach sort keys %state;

# and they go on
query_is($node, 'restored', 'what is done ahead is not delivered', '1,4,5,6,8,9,10',
	q(SELECT string_agg(data::text, ',') FROM event_store.poll('filtered')));
query_is($node, 'restored', 'the lease holds: nothing for another consumer', '0', <<'EOT');
SELECT count(*) FROM event_store.poll('leased', NULL, consumer => 'two', lease => '1 hour')
WHERE stream LIKE 'leased-%' OR position IN (SELECT unnest(positions) FROM event_store.subscription_batch WHERE consumer = 'one')
EOT
query_is($node, 'restored', 'nor may it acknowledge', '0', <<'EOT');
SELECT event_store.ack('leased', array_agg(position), consumer => 'two') FROM event_store.read_stream('leased-out')
EOT
query_is($node, 'restored', 'its owner may acknowledge all that it has', '4',
	q(SELECT event_store.ack_up_to('leased', event_store.last_position(), consumer => 'one')));
# an hour later
$node->safe_psql('restored', <<'EOT');
UPDATE event_store.subscription_failure SET due = due - interval '1 hour', retry_at = retry_at - interval '1 hour'
EOT
query_is($node, 'restored', 'the retry is the second attempt, alone of its stream', '1|2', <<'EOT');
SELECT version, attempt FROM unnest('{one,two}'::text[]) consumer, event_store.poll('leased', NULL, consumer)
WHERE stream LIKE 'leased-%'
EOT
query_is($node, 'restored', 'the dead letter is replayed', '1',
	q(SELECT event_store.replay_dead_letters('leased', stream => 'leased-dead')));
query_is($node, 'restored', 'and followed by what was parked behind it', 'leased-dead 1 1,leased-dead 2 1,leased-dead 3 1', <<'EOT');
SELECT string_agg(concat_ws(' ', stream, version, attempt), ',' ORDER BY position)
FROM unnest('{one,two}'::text[]) consumer, event_store.poll('leased', NULL, consumer) WHERE stream = 'leased-dead'
EOT
query_is($node, 'restored', 'a new one has a new id', '5',
	q(SELECT event_store.create_subscription('new') \g /dev/null
	SELECT count(DISTINCT id) FROM event_store.subscription));
is(sqlstate_of($node, 'restored', q(SELECT * FROM event_store.poll('none'))), 'VE008',
	'an unknown one is refused');

$node->stop;
done_testing();
