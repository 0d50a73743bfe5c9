# A poll that waits: it comes back as soon as there is something to deliver, and
# nobody notices it before.
#
# Nobody looks for himself here, as good as: what a poll is woken for it must be
# woken for.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('waiting', conf => 'event_store.look_interval = 1h');

create_store($node, 'postgres', 64);
$node->safe_psql('postgres', <<'EOT');
SELECT event_store.create_subscription('all');
SELECT event_store.create_subscription('some', types => '{wanted}');
EOT

my $waiter = EventStoreTest::Session->new($node, 'postgres');
my $other = EventStoreTest::Session->new($node, 'postgres');
my $append = q(SELECT event_store.append('a-1', 'any', '1'));
my $ack = q(SELECT event_store.ack_up_to('all', event_store.settled_position()));

my $poll = q(SELECT position, type FROM event_store.poll('all', wait => '1 hour'));

foreach my $with ('without a worker', 'with a worker')
{
	$node->safe_psql('postgres', 'SELECT event_store.start_worker()') if $with eq 'with a worker';
	my $last = $node->safe_psql('postgres', 'SELECT event_store.last_position()');

	ok($waiter->send_to_wait($poll), "$with: a poll waits");
	is($waiter->holds, 'f|f', "$with: it holds neither a snapshot nor a transaction id");
	$other->run($append);
	is(join(',', $waiter->result), $last + 1 . '|any', "$with: an append ends it");
	$other->run($ack);

	# an append behind one in flight can be delivered only when that has ended
	my $third = EventStoreTest::Session->new($node, 'postgres');
	$other->run('BEGIN');
	$other->run($append);
	$third->run(q(SELECT event_store.append('a-2', 'any', '1')));
	ok($waiter->send_to_wait($poll), "$with: it waits for what is not settled");
	$other->run('ROLLBACK');
	is(join(',', $waiter->result), $last + 3 . '|any', "$with: a rollback sets it free");
	$other->run($ack);

	# and what another consumer has can be delivered when that gives it back
	$other->run($append);
	$other->run('BEGIN');
	$other->run(q(SELECT count(*) FROM event_store.poll('all')));
	ok($waiter->send_to_wait($poll), "$with: it waits for what another consumer has");
	$other->run('ROLLBACK');
	is(scalar(my @rows = $waiter->result), 1, "$with: and gets it when that rolls back");
	$other->run($ack);
}
$node->safe_psql('postgres', 'SELECT event_store.stop_worker()');

# what it does not want does not end it
ok($waiter->send_to_wait(q(SELECT type FROM event_store.poll('some', wait => '1 hour'))), 'a poll with a filter waits');
$other->run($append);
$other->run(q(SELECT event_store.append('a-1', 'wanted', '1')));
is(join(',', $waiter->result), 'wanted', 'it returns what it wants');
$other->run(q(SELECT event_store.ack_up_to('some', event_store.settled_position())));
$other->run($ack);

# what others do with the subscription
$other->run($append);
$other->run('BEGIN');
$other->run(q(SELECT count(*) FROM event_store.poll('all')));
ok($waiter->send_to_wait($poll), 'it waits while another consumer has the events');
$other->run('ROLLBACK');
is(scalar(my @rows = $waiter->result), 1, 'and gets them when that rolls back');
$other->run($ack);
$other->run(q(SELECT event_store.pause_subscription('all')));
$other->run($append);
ok($waiter->send_to_wait($poll), 'it waits while the subscription is paused');
$other->run(q(SELECT event_store.resume_subscription('all')));
is(scalar(@rows = $waiter->result), 1, 'and goes on with it');
$other->run($ack);
ok($waiter->send_to_wait($poll), 'it waits at the end');
$other->run(q(SELECT event_store.rewind_subscription('all', 0)));
cmp_ok(scalar(@rows = $waiter->result), '>', 3, 'a rewind ends it');
$other->run($ack);
ok($waiter->send_to_wait($poll), 'it waits');
$other->run(q(SELECT event_store.drop_subscription('all')));
$waiter->result;
is($waiter->{sqlstate}, 'VE008', 'the subscription is dropped');
$other->run(q(SELECT event_store.create_subscription('all', start_after => NULL)));

# a cancel, a time-out, and the end of the time
ok($waiter->send_to_wait($poll), 'it waits');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($waiter->{backend})");
$waiter->result;
is($waiter->{sqlstate}, '57014', 'a cancel ends it');
$waiter->run(q(SET statement_timeout = '50ms'));
$waiter->try($poll);
is($waiter->{sqlstate}, '57014', 'so does statement_timeout');
$waiter->run('RESET statement_timeout');
is(scalar(@rows = $waiter->run(q(SELECT * FROM event_store.poll('all', wait => '20 ms')))),
	0, 'it returns nothing when its time is over');
is(scalar(@rows = $waiter->run(q(SELECT * FROM event_store.poll('all', wait => '-1 hour')))),
	0, 'which may be at once');
query_is($node, 'postgres', 'nobody is registered as waiting any more', '0',
	q(SELECT count(*) FROM pg_locks WHERE locktype = 'userlock' AND objsubid = -6906));

# where the statement reads other things, or the transaction has a snapshot to
# keep, it stays
foreach my $case (
	[ 'with another table', q(SELECT p.type FROM event_store.poll('all', wait => '1 hour') p, pg_class WHERE oid = 'pg_class'::regclass) ],
	[ 'with an aggregate', q(SELECT count(*) FROM event_store.poll('all', wait => '1 hour')) ],
	[ 'in a function', q(SELECT kept()) ],
	[ 'beside a cursor', $poll, 'BEGIN', 'DECLARE c CURSOR FOR SELECT * FROM event_store.events', 'FETCH c' ])
{
	my ($what, $sql, @before) = @$case;

	$node->safe_psql('postgres', <<'EOT') if $what eq 'in a function';
CREATE FUNCTION kept() RETURNS text LANGUAGE sql STABLE AS $$SELECT type FROM event_store.poll('all', wait => '1 hour')$$
EOT
	$waiter->run($_) foreach @before;
	ok($waiter->send_to_wait($sql), "$what: it waits");
	is($waiter->holds, 't|f', "$what: the snapshot is kept");
	$other->run($append);
	$waiter->result;
	is($waiter->{sqlstate}, '00000', "$what: an append ends it");
	$waiter->run('COMMIT') if @before;
	$other->run($ack);
}

# what comes after its snapshot a REPEATABLE READ transaction cannot wait for
$waiter->run('BEGIN ISOLATION LEVEL REPEATABLE READ');
$waiter->run('SELECT count(*) FROM event_store.events');
$other->run($append);
is(scalar(@rows = $waiter->run($poll)), 0, 'in REPEATABLE READ a poll does not wait');
$waiter->run('COMMIT');
is(scalar(@rows = $waiter->run($poll)), 1, 'afterwards it has what came meanwhile');
$other->run($ack);

# in a transaction, with the acknowledgement
ok($waiter->send_to_wait('BEGIN; ' . $poll), 'in a transaction it waits');
$other->run($append);
is(scalar(@rows = $waiter->result), 1, 'and returns');
$waiter->run($ack);
$waiter->run('COMMIT');
query_is($node, 'postgres', 'the checkpoint has moved', '0',
	q(SELECT open_events FROM event_store.subscription_lag('all')));

$node->stop;
done_testing();
