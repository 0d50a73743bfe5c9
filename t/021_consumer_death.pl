# A consumer that dies of an event in the middle of its transaction: nothing of that
# transaction stays, but the attempt does, so the event ends as a dead letter.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('death');

create_store($node, 'postgres', 64);
$node->safe_psql('postgres', <<'EOT');
SELECT event_store.append('a-' || i % 3, CASE i WHEN 8 THEN 'poison' ELSE 'good' END, to_jsonb(i)) FROM generate_series(1, 20) i;
SELECT event_store.create_subscription('direct', max_attempts => 4);
SELECT event_store.create_subscription('group', max_attempts => 4, slots => 3);
SELECT event_store.create_subscription('competing', max_attempts => 4, mode => 'competing');
CREATE TABLE effect (n bigserial, subscription text, position bigint, stream text);
EOT

# One session: works in transactions until there is nothing; at the poison it is
# gone. Returns whether it has survived.
sub consume
{
	my ($subscription) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');

	while (1)
	{
		$session->run('BEGIN');
		my @events = $session->run(<<"EOT");
WITH batch AS MATERIALIZED (SELECT * FROM event_store.poll('$subscription', 6)),
	done AS (INSERT INTO effect (subscription, position, stream) SELECT '$subscription', position, stream FROM batch)
SELECT position, type FROM batch ORDER BY position
EOT
		if (!@events)
		{
			$session->run('COMMIT');
			return 1;
		}
		if (grep { /poison/ } @events)
		{
			$session->quit;
			$node->poll_query_until('postgres',
				"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $session->{backend}");
			return 0;
		}
		my $positions = join(',', map { (split /\|/)[0] } @events);
		$session->run("SELECT event_store.ack('$subscription', ARRAY[$positions])");
		$session->run('COMMIT');
	}
}

foreach my $subscription ('direct', 'group', 'competing')
{
	my $deaths = 0;

	$deaths++ until consume($subscription) || $deaths > 10;
	is($deaths, 4, "$subscription: it died four times");
	query_is($node, 'postgres', "$subscription: of one event", '8|4|' . ($subscription eq 'competing' ? 0 : 4),
		"SELECT position, attempts, parked FROM event_store.dead_letters('$subscription')");
	query_is($node, 'postgres', "$subscription: the others had their effect, once", '0|t', <<"EOT");
SELECT count(*) - count(DISTINCT position),
	count(*) = 20 - (SELECT open_events FROM event_store.subscriptions WHERE name = '$subscription')
FROM effect WHERE subscription = '$subscription'
EOT
	next if $subscription eq 'competing';
	query_is($node, 'postgres', "$subscription: in order", '0', <<"EOT");
SELECT count(*) FROM (SELECT position, lag(position) OVER (PARTITION BY stream ORDER BY n) AS earlier
	FROM effect WHERE subscription = '$subscription') e WHERE earlier > position
EOT
}

# One that dies after it has acknowledged some, and while another waits for it.
foreach my $case ([ 'direct-2', 1 ], [ 'group-2', 2 ])
{
	my ($name, $slots) = @$case;
	# of a group all, so that there is something to wait for
	my $max = $slots > 1 ? 100 : 6;

	$node->safe_psql('postgres', "SELECT event_store.create_subscription('$name', slots => $slots, max_attempts => 3)");
	foreach my $death (1 .. 2)
	{
		my $session = EventStoreTest::Session->new($node, 'postgres');
		my $other = EventStoreTest::Session->new($node, 'postgres');

		$session->run('BEGIN');
		my @positions = map { (split /\|/)[0] }
		  $session->run("SELECT position FROM event_store.poll('$name', $max) ORDER BY position");
		my $count = @positions;
		$session->run("SELECT event_store.ack('$name', ARRAY[$positions[0]])");
		$other->send_to_wait("SELECT count(*) FROM event_store.poll('$name', 6, wait => '1 hour')");
		$session->quit;
		$other->result;
		# what had failed before and was done in that transaction was not it
		my $tried = $count - ($death - 1);
		query_is($node, 'postgres', "$name, death $death: all that was delivered has been tried", "$count|$tried", <<"EOT");
SELECT count(*), count(*) FILTER (WHERE attempts = $death)
FROM event_store.subscription_failure f JOIN event_store.subscription s ON s.id = f.subscription_id
WHERE s.name = '$name' AND attempts > 0
EOT
		$other->quit;
	}
	# from now on each comes alone; what is done is not what it dies of
	my $session = EventStoreTest::Session->new($node, 'postgres');
	$session->run('BEGIN');
	my @alone;
	foreach my $n (1 .. 3)
	{
		my @positions = $session->run("SELECT position FROM event_store.poll('$name', 6)");
		push @alone, @positions;
		is(scalar @positions, 1, "$name: one comes alone");
		$session->run("SELECT event_store.ack('$name', ARRAY[$positions[0]])") if $n < 3;
	}
	is(scalar(my @none = $session->run("SELECT position FROM event_store.poll('$name', 6)")), 0,
		"$name: and nothing with it");
	$session->quit;
	# its backend may still be about to note it
	$node->poll_query_until('postgres', "SELECT count(*) > 0 FROM event_store.dead_letters('$name')");
	query_is($node, 'postgres', "$name: only the last one is dead", $alone[2],
		"SELECT string_agg(position::text, ',') FROM event_store.dead_letters('$name')");
}

# who ends well, or is ended by an administrator, has not died of an event
$node->safe_psql('postgres', q(SELECT event_store.create_subscription('calm')));
my $session = EventStoreTest::Session->new($node, 'postgres');
$session->run('BEGIN');
$session->run(q(SELECT position FROM event_store.poll('calm', 3)));
$session->run('ROLLBACK');
$session->quit;
$session = EventStoreTest::Session->new($node, 'postgres');
$session->run('BEGIN');
$session->run(q(SELECT position FROM event_store.poll('calm', 3)));
$node->safe_psql('postgres', "SELECT pg_terminate_backend($session->{backend}, 60000)");
$node->stop('fast');
$node->start;
query_is($node, 'postgres', 'nothing has failed', '0|0', <<'EOT');
SELECT retries, failures FROM event_store.subscriptions WHERE name = 'calm'
EOT

$node->stop;
done_testing();
