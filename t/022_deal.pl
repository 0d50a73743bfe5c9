# Consumers in long transactions, beside the worker: it deals, and changes the
# number of slots, so that nobody waits for their commits.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $node = new_node('dealing');

create_store($node, 'postgres', 1000);
# nothing by the clock: what the worker is asked for is what is looked at
$node->safe_psql('postgres', <<'EOT');
SELECT event_store.set_task(name, '1 day') FROM event_store.builtin_tasks();
SELECT event_store.create_subscription('g', slots => 4, first_delay => '0');
SELECT event_store.create_subscription('w', mode => 'competing', priority_key => 'p');
SELECT event_store.start_worker();
EOT

my ($one, $two, $three) = map { EventStoreTest::Session->new($node, 'postgres') } 1 .. 3;

sub append
{
	$three->run(q(SELECT count(event_store.append('s-' || i % 16, 't', '1')) FROM generate_series(1, 64) i));
	return;
}

sub poll
{
	my ($session, $call) = @_;

	return scalar(my @rows = $session->run("SELECT position FROM event_store.poll($call)"));
}

# The worker is waited for for a tenth of a second only: on a busy machine that may be too
# little, and each poll deals for itself then. A few tries, each from the beginning.
sub try_it
{
	my ($code, @sessions) = @_;

	foreach (1 .. 10)
	{
		return 1 if $code->();
		$_->run('ROLLBACK') foreach @sessions;
		usleep(1_100_000);	# so long it is not asked again
	}
	return 0;
}

# ask the task once, so that it is not due in the middle
ok($node->poll_query_until('postgres', q(SELECT bool_and(runs > 0) FROM event_store.worker_tasks)),
	'each task has run');

# both join
poll($_->[0], "'g', 1, '$_->[1]'") foreach ([ $one, 'one' ], [ $two, 'two' ], [ $one, 'one' ], [ $two, 'two' ]);
append();
my ($first, $second);
ok(try_it(sub {
	$_->run('BEGIN') foreach ($one, $two);
	$first = poll($one, q('g', NULL, 'one'));
	$second = poll($two, q('g', NULL, 'two'));
	$first + $second == 64;
}, $one, $two), 'group: each has its own, none has committed');
cmp_ok($second, '>', 0, 'group: the second has some');
foreach my $round (1 .. 3)
{
	append();
	$two->run(q(SELECT event_store.ack_up_to('g', event_store.last_position(), 'two')));
	$two->run('COMMIT');
	$two->run('BEGIN');
	my $count = 0;
	ok(try_it(sub { ($count += poll($two, q('g', NULL, 'two'))) >= $second }), "group: what is appended then comes, too ($round)");
	is($count, $second, "group: and nothing else ($round)");
}
$_->run(sprintf q(SELECT event_store.ack_up_to('g', event_store.last_position(), '%s')), $_ == $one ? 'one' : 'two')
  foreach ($one, $two);
$_->run('COMMIT') foreach ($one, $two);
is(poll($one, q('g', NULL, 'one', auto_ack => true)), 3 * $first, 'group: the first has the rest of its own');

# the same without an order, and priorities, for which each poll looks into the log
ok(try_it(sub {
	$_->run('BEGIN') foreach ($one, $two);
	my $found = poll($one, q('w', 10));
	append();
	$found == 10 && poll($two, q('w', 10)) == 10;
}, $one, $two), 'competing: one, and another, which would have had to deal');
$_->run('ROLLBACK') foreach ($one, $two);

# a poll that finds nothing asks for nothing
my $started = time;
$one->run('BEGIN');
$one->run(q(SELECT event_store.ack('w', array_agg(position)) FROM event_store.events));
is(poll($one, q('w', 10)), 0, 'nothing is there') foreach (1 .. 5);
cmp_ok(time - $started, '<', 5, 'which is found at once');
$one->run('COMMIT');

# another number of slots
append();
cmp_ok(poll($one, q('g', 1, 'one', lease => '1 min')), '>', 0, 'slots: something is out');
$three->run(q(SELECT event_store.alter_subscription('g', slots => 8)));
is(poll($two, q('g', 1, 'two')), 0, 'slots: nothing is delivered while it is');
$one->run(q(SELECT event_store.ack_up_to('g', event_store.last_position(), 'one')));
ok(try_it(sub {
	$one->run('BEGIN');
	poll($one, q('g', 1, 'one')) > 0 && $three->run(q(SELECT slots FROM event_store.subscriptions WHERE name = 'g')) == 8;
}, $one), 'slots: then it goes on, and others see them before it commits');
$two->run('BEGIN');
poll($two, q('g', NULL, 'two'));
$one->run('ROLLBACK');
$two->run('ROLLBACK');
cmp_ok(poll($two, q('g', NULL, 'two', auto_ack => true)) + poll($one, q('g', NULL, 'one', auto_ack => true)),
	'>', 0, 'slots: all go on');

# a worker that is at something else is not waited for
$three->run(q(SELECT event_store.set_task('long', command => 'SELECT pg_sleep(20)')));
ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_stat_activity
	WHERE backend_type <> 'client backend' AND wait_event = 'PgSleep')), 'the worker is at a task');
append();
$started = time;
$one->run('BEGIN');
cmp_ok(poll($one, q('g', NULL, 'one')), '>', 0, 'a poll deals itself');
cmp_ok(time - $started, '<', 10, 'and does not wait for it');
$one->run('ROLLBACK');
$three->run(q(SELECT event_store.drop_task('long')));
$three->run(q(SELECT event_store.stop_worker()));

# nor one that is gone; and what it would do can be called
append();
$one->run('BEGIN');
cmp_ok(poll($one, q('g', NULL, 'one')), '>', 0, 'without a worker a poll deals itself');
$one->run('ROLLBACK');
$three->run(q(SELECT event_store.deal_subscriptions()));
$_->run('BEGIN') foreach ($one, $two);
cmp_ok(poll($one, q('g', NULL, 'one')), '>', 0, 'with somebody who deals ahead one has its own');
cmp_ok(poll($two, q('g', NULL, 'two')), '>', 0, 'and another, too');
$_->run('ROLLBACK') foreach ($one, $two);

# the task deals by itself what nobody has asked for
$three->run(q(SELECT event_store.ack('g', array_agg(position)) FROM event_store.events));
poll($one, q('g', NULL, 'one', auto_ack => true));
poll($two, q('g', NULL, 'two', auto_ack => true));
append();
$three->run(q(SELECT event_store.drop_task('deal to consumers')));
$three->run(q(SELECT event_store.start_worker()));
ok($node->poll_query_until('postgres', q(SELECT queued = 64 FROM event_store.subscriptions WHERE name = 'g')),
	'the task deals ahead');
is($node->safe_psql('postgres', q(SELECT sum(failures) FROM event_store.worker_tasks)), 0, 'no task has failed');
$_->quit foreach ($one, $two, $three);
store_is_sound($node, 'postgres', 'at the end');

$node->stop;
done_testing();
