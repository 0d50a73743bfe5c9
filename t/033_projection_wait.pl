# wait_for_projection(): it comes back as soon as the projection has passed the
# position, or never can, and nobody notices it before.
#
# Nobody looks for himself here, as good as: what a wait is woken for it must be
# woken for.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('waiting', allows_streaming => 1, conf => 'event_store.look_interval = 1h');

create_store($node, 'postgres', 64);
$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION handle(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF e.type = 'bad' THEN
		RAISE 'bad';
	ELSIF e.type = 'wait' THEN
		PERFORM event_store.wait_for_projection('all', e.position, NULL);
	END IF;
END $$;
SELECT event_store.create_projection('all', 'event', 'handle', max_attempts => 1);
SELECT event_store.create_projection('some', 'fold', 'count', types => '{wanted}');
EOT

my $waiter = EventStoreTest::Session->new($node, 'postgres');
my $other = EventStoreTest::Session->new($node, 'postgres');
my $refresh = q(SELECT event_store.refresh_projection('all'));

sub append
{
	my ($type, $session, $stream) = @_;

	return ($session // $other)->run(sprintf q(SELECT last_position FROM event_store.append('%s', '%s', '1')), $stream // 'a-1', $type // 'any');
}

sub wait_for
{
	my ($position, $name, $timeout) = @_;

	return sprintf "SELECT event_store.wait_for_projection('%s', %s, %s)", $name // 'all', $position, $timeout // 'NULL';
}

foreach my $with ('without a worker', 'with a worker')
{
	my $p = append();

	if ($with eq 'with a worker')
	{
		$other->run(q(SELECT event_store.pause_projection('all')));
		$node->safe_psql('postgres', 'SELECT event_store.start_worker()');
	}
	ok($waiter->send_to_wait(wait_for($p)), "$with: it waits");
	is($waiter->holds, 'f|f', "$with: it holds neither a snapshot nor a transaction id");
	$other->run($with eq 'with a worker' ? q(SELECT event_store.resume_projection('all')) : $refresh);
	is(join(',', $waiter->result), 't', "$with: a refresh ends it");
	is(join(',', $waiter->run(wait_for($p))), 't', "$with: then it does not wait");
}
$node->safe_psql('postgres', 'SELECT event_store.stop_worker()');

# in other places; where the snapshot is wanted any more it stays
foreach my $case (
	[ 'FROM', 'f|f', sub { 'SELECT * FROM event_store.wait_for_projection(\'all\', ' . shift . ', NULL)' } ],
	[ 'in a function', 't|f', sub { 'SELECT waited(' . shift . ')' } ],
	[ 'beside a column', 't|f', sub { wait_for(shift) . ', (SELECT count(*) FROM event_store.events)' } ],
	[ 'in a block', 'f|f', sub { wait_for(shift) }, 'BEGIN' ],
	[ 'beside a cursor', 't|f', sub { wait_for(shift) }, 'BEGIN', 'DECLARE c CURSOR FOR SELECT * FROM event_store.events', 'FETCH c' ],
	[ 'in REPEATABLE READ', 't|f', sub { wait_for(shift) }, 'BEGIN ISOLATION LEVEL REPEATABLE READ', 'SELECT 1' ])
{
	my ($what, $held, $sql, @before) = @$case;

	$node->safe_psql('postgres', <<'EOT') if $what eq 'in a function';
CREATE FUNCTION waited(bigint) RETURNS boolean LANGUAGE sql STABLE AS $$SELECT event_store.wait_for_projection('all', $1, NULL)$$
EOT
	$waiter->run($_) foreach @before;
	my $p = append();
	ok($waiter->send_to_wait($sql->($p)), "$what: it waits");
	is($waiter->holds, $held, $held eq 'f|f' ? "$what: nothing is held" : "$what: the snapshot is kept");
	$other->run($refresh);
	like(join(',', $waiter->result), qr/^t/, "$what: a refresh ends it");
	$waiter->run('COMMIT') if @before;
}

# of what is not of its filter it only waits for the mark
my $p;
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	$waiter->run("BEGIN ISOLATION LEVEL $level");
	$waiter->run('SELECT count(*) FROM event_store.events');
	$p = append();
	is(join(',', $waiter->run(wait_for($p, 'some', q('10 s')))), 't', "$level: nothing of the filter is there");
	$other->run('BEGIN');
	append();
	$p = append(undef, EventStoreTest::Session->new($node, 'postgres'), 'b-1');
	ok($waiter->send_to_wait(wait_for($p, 'some')), "$level: it waits for what is in flight");
	$other->run('COMMIT');
	is(join(',', $waiter->result), 't', "$level: until that has ended");
	$p = append('wanted');
	is(join(',', $waiter->run(wait_for($p, 'some', q('20 ms')))), 'f', "$level: what is of the filter is waited for");
	$waiter->run('COMMIT');
	$other->run(q(SELECT event_store.refresh_projections()));
}

# what others do with the projection
$p = append('bad');
ok($waiter->send_to_wait(wait_for($p)), 'it waits for an event that will fail');
$node->psql('postgres', $refresh);
$waiter->result;
is($waiter->{sqlstate}, 'VE012', 'the projection has stopped');
$node->safe_psql('postgres', q(SELECT event_store.alter_projection('all', on_error => 'skip'); SELECT event_store.pause_projection('all'); SELECT event_store.resume_projection('all')));
ok($waiter->send_to_wait(wait_for($p)), 'it waits again');
$node->psql('postgres', $refresh);
is(join(',', $waiter->result), 't', 'what is passed over is passed');
$p = append();
$other->run(q(SELECT event_store.pause_projection('all')));
ok($waiter->send_to_wait(wait_for($p)), 'it waits while the projection is paused');
$other->run(q(SELECT event_store.resume_projection('all')));
$other->run($refresh);
is(join(',', $waiter->result), 't', 'until that goes on');
$p = append('wanted');
$other->run(q(SELECT event_store.create_projection('third', 'fold', 'count')));
$other->run(q(SELECT event_store.create_projection('changes', 'fold', 'count')));
ok($waiter->send_to_wait(wait_for($p, 'changes')), 'it waits');
$other->run(q(SELECT event_store.alter_projection('changes', mode => 'inline')));
is(join(',', $waiter->result), 't', 'one that becomes inline has passed all there is');
ok($waiter->send_to_wait(wait_for($p, 'third')), 'it waits');
$other->run(q(SELECT event_store.drop_projection('third')));
$waiter->result;
is($waiter->{sqlstate}, 'VE010', 'one that is dropped');

# a prepared transaction ends without a word
$node->safe_psql('postgres', 'ALTER SYSTEM SET event_store.look_interval = \'100ms\'; SELECT pg_reload_conf()');
$other->run('BEGIN');
$other->run(q(SELECT event_store.refresh_projection('some')));
$other->run(q(PREPARE TRANSACTION 'refreshed'));
is(join(',', $waiter->run(wait_for($p, 'some', q('300 ms')))), 'f', 'prepared, a refresh is not seen');
ok($waiter->send_to_wait(wait_for($p, 'some')), 'it waits');
$other->run(q(COMMIT PREPARED 'refreshed'));
is(join(',', $waiter->result), 't', 'committed it is');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET event_store.look_interval; SELECT pg_reload_conf()');

# a cancel, a time-out, and the end of the time
$p = append();
ok($waiter->send_to_wait(wait_for($p)), 'it waits');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($waiter->{backend})");
$waiter->result;
is($waiter->{sqlstate}, '57014', 'a cancel ends it');
$waiter->run('BEGIN');
$waiter->run('SAVEPOINT s');
$waiter->run(q(SET LOCAL statement_timeout = '500ms'));
$waiter->try(wait_for($p));
is($waiter->{sqlstate}, '57014', 'so does statement_timeout');
$waiter->run('ROLLBACK TO s');
query_is($node, 'postgres', 'nobody is registered as waiting any more', '0',
	q(SELECT count(*) FROM pg_locks WHERE locktype = 'userlock' AND objsubid = -6906));
$waiter->run('COMMIT');
is(join(',', $waiter->run(wait_for($p, 'all', "'$_'"))), 'f', "false after $_") foreach '20 ms', '0', '-1 hour', '-100 years';
is(sqlstate_of($node, 'postgres', wait_for($p, 'all', "'$_'")), 'VE002', "$_ is too long") foreach '200 years', '143165577 months';

# what the own transaction is in the way of would never come
sub refused
{
	my ($what, $position, @before) = @_;

	$waiter->run('BEGIN');
	my @result = map { $waiter->run($_) } @before;
	$position = $result[-1] unless defined $position;
	is(join(',', $waiter->run(wait_for($position, 'all', q('0')))), 'f', "$what: without waiting it is false");
	$waiter->try(wait_for($position));
	is($waiter->{sqlstate}, '25001', "$what: a wait is refused");
	$waiter->run('ROLLBACK');
	return;
}
refused('an event of its own', undef, q(SELECT last_position FROM event_store.append('a-1', 'any', '1')));
refused('one behind an event of its own', $p + 100, q(SELECT last_position FROM event_store.append('a-1', 'any', '1')));
refused('a savepoint that is rolled back', $p + 100, 'SAVEPOINT s', q(SELECT last_position FROM event_store.append('a-1', 'any', '1')), 'ROLLBACK TO s');
append(), append();
refused('a refresh of its own', $p + 2, q(SELECT event_store.refresh_projection('all', 1)));
refused('a change of its own', $p + 2, q(SELECT event_store.pause_projection('all')));
$waiter->run('BEGIN');
append('any', $waiter, 'b-1');
$waiter->send_to_wait(wait_for($p));
$other->run($refresh);
is(join(',', $waiter->result), 't', 'what is before an event of its own it can wait for');
$waiter->run('COMMIT');
append('wait');
$other->run(q(SELECT event_store.alter_projection('all', on_error => 'stop')));
$node->psql('postgres', $refresh);
query_is($node, 'postgres', 'a handler that waits for its own projection fails', 'stopped|25001', q(SELECT status, sql_state FROM event_store.projections WHERE name = 'all'));

# on a standby
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('waiting_standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->append_conf('postgresql.conf', q(event_store.look_interval = '100ms'));
$standby->start;
$p = append('wanted');
my $reader = EventStoreTest::Session->new($standby, 'postgres');
is(join(',', $reader->run(wait_for($p, 'some', q('200 ms')))), 'f', 'a standby: not yet');
ok($reader->send_to_wait(wait_for($p, 'some')), 'a standby: it waits');
# but while it looks, each 100 ms
ok($standby->poll_query_until('postgres', "SELECT backend_xmin IS NULL AND backend_xid IS NULL FROM pg_stat_activity WHERE pid = $reader->{backend}"),
	'a standby: it holds no snapshot');
$other->run(q(SELECT event_store.refresh_projection('some')));
is(join(',', $reader->result), 't', 'a standby: until the refresh is there');
$p = append();
$other->run('SELECT event_store.publish_settled_position()');
is(join(',', $reader->run(wait_for($p, 'some', q('10 s')))), 't', 'a standby: nothing of the filter is there');

$standby->stop;
$node->stop;
done_testing();
