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
use Time::HiRes qw(time);

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

# ask the task once, so that it is not due in the middle
ok($node->poll_query_until('postgres', q(SELECT bool_and(runs > 0) FROM event_store.worker_tasks)),
	'each task has run');

# both join
poll($_->[0], "'g', 1, '$_->[1]'") foreach ([ $one, 'one' ], [ $two, 'two' ], [ $one, 'one' ], [ $two, 'two' ]);
append();
$_->run('BEGIN') foreach ($one, $two);
my $first = poll($one, q('g', NULL, 'one'));
my $second = poll($two, q('g', NULL, 'two'));
is($first + $second, 64, 'group: each has its own, none has committed');
cmp_ok($second, '>', 0, 'group: the second has some');
foreach my $round (1 .. 3)
{
	append();
	$two->run(q(SELECT event_store.ack_up_to('g', event_store.last_position(), 'two')));
	$two->run('COMMIT');
	$two->run('BEGIN');
	is(poll($two, q('g', NULL, 'two')), $second, "group: what is appended then, too ($round)");
}
$_->run(sprintf q(SELECT event_store.ack_up_to('g', event_store.last_position(), '%s')), $_ == $one ? 'one' : 'two')
  foreach ($one, $two);
$_->run('COMMIT') foreach ($one, $two);
is(poll($one, q('g', NULL, 'one', auto_ack => true)), 3 * $first, 'group: the first has the rest of its own');

# the same without an order, and priorities, for which each poll looks into the log
$_->run('BEGIN') foreach ($one, $two);
is(poll($one, q('w', 10)), 10, 'competing: one');
append();
is(poll($two, q('w', 10)), 10, 'competing: another, which would have had to deal');
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
$one->run('BEGIN');
cmp_ok(poll($one, q('g', 1, 'one')), '>', 0, 'slots: then it goes on');
is($three->run(q(SELECT slots FROM event_store.subscriptions WHERE name = 'g')), 8,
	'slots: and others see them before it commits');
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
