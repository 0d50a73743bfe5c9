# The background worker: what it notifies of, what it survives, and what it
# gets out of the way of.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The worker's process id, '' for none.
sub worker_pid
{
	my ($node, $dbname) = @_;

	return $node->safe_psql('postgres', <<"EOT");
SELECT pid FROM pg_stat_activity
WHERE backend_type = 'event_store worker' AND datname = '$dbname'
EOT
}

sub worker_is_there
{
	my ($node, $dbname, $there) = @_;

	return $node->poll_query_until('postgres', <<"EOT");
SELECT EXISTS (SELECT FROM pg_stat_activity
	WHERE backend_type = 'event_store worker' AND datname = '$dbname') = $there
EOT
}

# Waits until a session that listens has got a notification that matches.
sub hears
{
	my ($session, $pattern) = @_;
	my @heard;

	return wait_until(sub {
		push @heard, grep { /Asynchronous notification/ } $session->run('SELECT 1');
		return grep { /$pattern/ } @heard;
	});
}

# ---------------------------------------------------------------------------
# Started by a call
# ---------------------------------------------------------------------------

{
	my $node = new_node('called',
		conf => "event_store.notify = worker\nrestart_after_crash = on\n"
		  # as good as never: what the worker is woken for must not depend on it
		  . 'event_store.look_interval = 1h');

	create_store($node, 'store', 64);
	query_is($node, 'store', 'the worker starts', 't', 'SELECT event_store.start_worker()');
	query_is($node, 'store', 'once', 'f', 'SELECT event_store.start_worker()');
	# which the tasks would wake it for
	$node->safe_psql('store', q(SELECT event_store.set_task(name, '1 day') FROM event_store.builtin_tasks()));
	ok($node->poll_query_until('store', 'SELECT bool_and(runs > 0) FROM event_store.worker_tasks'),
		'it has run its tasks');

	my $listener = EventStoreTest::Session->new($node, 'store');
	my $one = EventStoreTest::Session->new($node, 'store');
	my $two = EventStoreTest::Session->new($node, 'store');

	$listener->run('LISTEN event_store');
	$listener->run('LISTEN "event_store.order"');
	$one->run(q(SELECT event_store.append('order-1', 't', '1')));
	ok(hears($listener, qr/"event_store.order".*"last_position": 1, "category": "order", "count": 1/),
		'it notifies of a commit');

	# Of what is committed behind a transaction that is not, only when that has
	# ended, whichever way.
	$one->run('BEGIN');
	$one->run(q(SELECT event_store.append('order-2', 't', '1')));
	$two->run(q(SELECT event_store.append('order-3', 't', '1')));
	query_is($node, 'store', 'a transaction in flight holds the mark', '1',
		'SELECT event_store.settled_position()');
	$one->run('ROLLBACK');
	ok(hears($listener, qr/"last_position": 3, .*"count": 1/),
		'it notifies of what a rollback has set free');

	$node->append_conf('postgresql.conf', 'event_store.look_interval = 1s');
	$node->reload;
	$one->run('BEGIN');
	$one->run(q(SELECT event_store.append('order-2', 't', '1')));
	$one->run(q(PREPARE TRANSACTION 'worker'));
	$two->run(q(COMMIT PREPARED 'worker'));
	ok(hears($listener, qr/"last_position": 4, .*"count": 1/),
		'it notifies of a prepared transaction');

	$two->run(q(INSERT INTO event_store.events (stream, type, data)
		SELECT 'bulk-' || i % 100, 't', '1' FROM generate_series(1, 1000) i));
	ok(hears($listener, qr/"event_store".*"last_position": 1004, "category": "bulk", "count": 1000/),
		'it notifies of many events at once');

	$two->run('SET event_store.notify = off');
	$node->append_conf('postgresql.conf', 'event_store.notify = off');
	$node->reload;
	$two->run(q(SELECT event_store.append('order-1', 't', '1')));
	$node->append_conf('postgresql.conf', 'event_store.notify = worker');
	$node->reload;

	# tasks
	$node->safe_psql('store', <<'EOT');
CREATE TABLE public.beat (n int);
SELECT event_store.set_task('bad', '100 ms', 'SELECT 1 / 0');
SELECT event_store.set_task('beat', '100 ms', 'INSERT INTO public.beat VALUES (1)');
EOT
	ok( $node->poll_query_until('store', q(SELECT count(*) >= 3 FROM beat)),
		'it runs tasks');
	ok( $node->poll_query_until('store',
			q(SELECT failures >= 2 AND failures = runs AND last_error LIKE '22012%' FROM event_store.worker_tasks WHERE name = 'bad')),
		'a task that fails is counted, and goes on failing');
	# which is idle in between
	my $free = '';
	wait_until(sub { ($free = $node->safe_psql('store', <<'EOT')) ne '' });
SELECT bool_and(backend_xmin IS NULL AND backend_xid IS NULL) FROM pg_stat_activity
WHERE backend_type = 'event_store worker' AND state = 'idle'
EOT
	is($free, 't', 'no snapshot and no transaction id is held by the worker');

	# a long task does not keep the worker from being stopped
	$node->safe_psql('store',
		q(SELECT event_store.set_task('long', '1 hour', 'SELECT pg_catalog.pg_sleep(1000)')));
	ok( $node->poll_query_until('store',
			q(SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'event_store worker' AND wait_event = 'PgSleep')),
		'the worker is in a long task');
	query_is($node, 'store', 'the worker can be stopped', 't', 'SELECT event_store.stop_worker()');
	query_is($node, 'store', 'which it then is', 'f', 'SELECT event_store.stop_worker()');
	is(worker_pid($node, 'store'), '', 'its process has ended');
	query_is($node, 'store', 'what was cut short is not counted', '0',
		q(SELECT runs FROM event_store.worker_tasks WHERE name = 'long'));
	$node->safe_psql('store', q(SELECT event_store.drop_task('long')));

	# nor does one that won't be cancelled
	$node->safe_psql('store', <<'EOT');
CREATE PROCEDURE public.stubborn() LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		BEGIN
			PERFORM pg_catalog.pg_sleep(1000);
		EXCEPTION WHEN query_canceled THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT event_store.set_task('stubborn', '1 hour', 'CALL public.stubborn()');
SELECT event_store.start_worker();
EOT
	ok( $node->poll_query_until('store',
			q(SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'event_store worker' AND wait_event = 'PgSleep')),
		'the worker is in a stubborn task');
	query_is($node, 'store', 'it can be stopped all the same', 't', 'SELECT event_store.stop_worker()');
	$node->safe_psql('store', q(SELECT event_store.drop_task('stubborn')));

	# what a task raises, or leaves to the commit, does not end the worker
	$node->safe_psql('store', <<'EOT');
CREATE TABLE public.once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
SELECT event_store.set_task('deferred', '1 hour', 'INSERT INTO public.once VALUES (1), (1)');
SELECT event_store.set_task('cancel', '1 hour', $$DO 'BEGIN RAISE SQLSTATE ''57014''; END'$$);
SELECT event_store.start_worker();
EOT
	ok( $node->poll_query_until('store',
			q(SELECT count(*) = 2 FROM event_store.worker_tasks WHERE name IN ('deferred', 'cancel') AND failures = 1)),
		'such tasks have failed');
	query_is($node, 'store', 'and the worker is there', 'f', 'SELECT event_store.start_worker()');

	# again and again, by several at once
	my @loops = map {
		start_worker(sub {
			my $session = EventStoreTest::Session->new($node, 'store');
			foreach (1 .. 8)
			{
				$session->try('SELECT event_store.start_worker()');
				die $session->{message} if $session->{sqlstate} !~ /^(00000|VE007)$/;
				$session->run('SELECT event_store.stop_worker()');
			}
		});
	} 1 .. 3;
	is(wait_workers(@loops), 0, 'it is started and stopped by several');
	query_is($node, 'store', 'it is stopped', 'f', 'SELECT event_store.stop_worker()');
	query_is($node, 'store', 'nothing of it is left', '0',
		q(SELECT count(*) FROM pg_locks WHERE locktype = 'userlock'));

	# with another owner of the store the worker is another
	$node->safe_psql('store', <<'EOT');
CREATE ROLE heir LOGIN;
SELECT event_store.start_worker();
ALTER TABLE event_store.event OWNER TO heir;
EOT
	ok(worker_is_there($node, 'store', 'false'), 'it ends when the store gets another owner');
	$node->safe_psql('store', 'ALTER TABLE event_store.event OWNER TO CURRENT_USER');

	# it comes back after a crash of the server, since it was not stopped
	$node->safe_psql('store', 'SELECT event_store.start_worker()');
	my $pid = worker_pid($node, 'store');
	$listener->quit;
	$one->quit;
	$two->quit;
	kill 'KILL', $pid;
	ok( wait_until(sub {
				# the server may not be back yet
				my $now = eval { worker_pid($node, 'store') } // '';
				return $now ne '' && $now ne $pid;
			}),
		'after a crash the worker comes back');
	$listener = EventStoreTest::Session->new($node, 'store');
	$listener->run('LISTEN event_store');
	$node->safe_psql('store', q(SELECT event_store.append('order-9', 't', '1')));
	ok(hears($listener, qr/"category": "order"/), 'and notifies');
	$listener->quit;

	# it gets out of the way
	$node->safe_psql('store', 'DROP EXTENSION event_store');
	ok(worker_is_there($node, 'store', 'false'), 'it ends with the extension');
	create_store($node, 'another', 64);
	$node->safe_psql('another', 'SELECT event_store.start_worker()');
	is($node->psql('postgres', 'DROP DATABASE another'), 0,
		'it ends for DROP DATABASE');
	create_store($node, 'template_store', 64);
	$node->safe_psql('template_store', 'SELECT event_store.start_worker()');
	is($node->psql('postgres', 'CREATE DATABASE copy TEMPLATE template_store'), 0,
		'and for a copy of the database');
	query_is($node, 'template_store', 'after which it can be started', 't', 'SELECT event_store.start_worker()');
	query_is($node, 'template_store', 'and stopped', 't', 'SELECT event_store.stop_worker()');

	# The mark is not seen to move before the rest of a transaction is: here each
	# makes segments of its own.
	create_store($node, 'makers', 16);
	$node->safe_psql('makers', <<'EOT');
ALTER DATABASE makers SET event_store.segment_worker = off;
CREATE TABLE stop (n int);
SELECT event_store.start_worker();
EOT
	my @makers = map {
		my $n = $_;
		start_worker(sub {
			my $session = EventStoreTest::Session->new($node, 'makers');

			$session->run(<<"EOT") until $session->run('SELECT 1 FROM stop');
DO \$\$ BEGIN
	FOR i IN 1 .. 200 LOOP
		PERFORM event_store.append('maker-$n', 't', '1');
		COMMIT;
	END LOOP;
END \$\$
EOT
		});
	} 1 .. 2;
	query_is($node, 'makers', 'all up to the mark is seen', '0', <<'EOT');
CREATE TABLE early (mark bigint);
DO $$
DECLARE
	_mark bigint;
	_count bigint;
BEGIN
	FOR i IN 1 .. 15000 LOOP
		_mark := event_store.settled_position();
		SELECT count(*) INTO _count FROM event_store.events WHERE position > _mark - 3 AND position <= _mark;
		IF _count < least(_mark, 3) THEN
			INSERT INTO early VALUES (_mark);
		END IF;
		COMMIT;
	END LOOP;
END $$;
SELECT count(*) || coalesce(' ' || left(string_agg(DISTINCT mark::text, ','), 200), '') FROM early
EOT
	$node->safe_psql('makers', 'INSERT INTO stop VALUES (1)');
	is(wait_workers(@makers), 0, 'the makers met no error');
	$node->stop;
}

# ---------------------------------------------------------------------------
# While it is away, and while there is nothing to do
# ---------------------------------------------------------------------------

{
	my $node = new_node('away', conf => 'event_store.notify = worker');

	create_store($node, 'store', 64);

	my $listener = EventStoreTest::Session->new($node, 'store');
	my $one = EventStoreTest::Session->new($node, 'store');
	my $two = EventStoreTest::Session->new($node, 'store');
	my $append = q(SELECT event_store.append('order-1', 't', '1'));

	# All that a listener has been told, at the time when it hears of a last one.
	my $last = sub {
		my ($mark) = @_;
		my @heard;

		$one->run(qq(SET event_store.notify = commit; SELECT event_store.append('$mark-1', 't', '1')));
		$one->run('SET event_store.notify = worker');
		wait_until(sub {
			push @heard, grep { /"event_store"/ } $listener->run('SELECT 1');
			return grep { /"category": "$mark"/ } @heard;
		});
		return join ' ', map { /last_position": (\d+), .*"count": (\d+)/ ? "$1/$2" : () }
		  grep { !/"category": "$mark"/ } @heard;
	};

	$listener->run('LISTEN event_store');
	$one->run($append) foreach (1 .. 200);
	is($last->('first'), '', 'what is meant for the worker waits for it');
	$one->run('SELECT event_store.start_worker()');
	ok(hears($listener, qr/"last_position": 201, .*"count": 201/),
		'the first worker tells it, as one notification');
	ok($node->poll_query_until('store', q(SELECT position = 201 FROM event_store.notification_told)),
		'it notes how far it has told');
	$one->run('SELECT event_store.stop_worker()');
	$one->run($append) foreach (1 .. 10);
	is($last->('second'), '', 'when it has gone nobody tells');
	$one->run('SELECT event_store.start_worker()');
	ok(hears($listener, qr/"last_position": 212, .*"count": 11/), 'but the next one does, once');
	ok($node->poll_query_until('store', q(SELECT position = 212 FROM event_store.notification_told)),
		'and notes it');
	$one->run('SELECT event_store.stop_worker()');
	$one->run('SELECT event_store.start_worker()');
	is($last->('third'), '', 'what was told is not told again by another');

	# auto: whoever commits tells, from the moment when there is no worker
	$two->run('SET event_store.notify = auto');
	$two->run($append);
	ok(hears($listener, qr/"last_position": 214/), 'auto: the worker tells');
	$two->run('BEGIN');
	$two->run($append);
	$one->run('SELECT event_store.stop_worker()');
	$two->run('COMMIT');
	ok(hears($listener, qr/"last_position": 215, "category": "order", "count": 1/),
		'auto: without it the commit does, whoever was there at the append');
	$two->run($append);
	ok(hears($listener, qr/"last_position": 216, "category": "order", "count": 1/), 'and the next one');

	# Nothing to do: nothing is written. All that tasks look at is there.
	$node->safe_psql('store', <<'EOT');
SELECT event_store.create_subscription('direct');
SELECT event_store.create_subscription('group', slots => 4);
SELECT event_store.create_subscription('work', mode => 'competing');
SELECT count(*) FROM event_store.poll('group', auto_ack => true, max_count => NULL);
SELECT count(*) FROM event_store.poll('work', auto_ack => true, max_count => NULL);
SELECT event_store.create_projection('p', 'fold', 'merge_patch');
SELECT event_store.set_snapshot_policy('merge_patch', every_events => 10);
SELECT event_store.start_worker();
EOT
	my $wal = 'SELECT pg_current_wal_insert_lsn(), pg_snapshot_xmax(pg_current_snapshot())';
	my $quiet = 0;
	foreach (1 .. $PostgreSQL::Test::Utils::timeout_default / 4 + 1)
	{
		my $before = $node->safe_psql('postgres', $wal);
		sleep 4;
		last if $quiet = $before eq $node->safe_psql('postgres', $wal);
	}
	ok($quiet, 'nothing to do: no WAL and no transaction id in four seconds');
	query_is($node, 'store', 'the tasks have run', 't',
		'SELECT bool_and(runs > 0) AND sum(failures) = 0 FROM event_store.worker_tasks');
	my $runs = $node->safe_psql('store', q(SELECT runs FROM event_store.worker_tasks WHERE name = 'refresh projections'));
	$node->safe_psql('store', q(SELECT event_store.set_task('refresh projections', '200 ms')));
	ok($node->poll_query_until('store',
			qq(SELECT runs > $runs + 2 FROM event_store.worker_tasks WHERE name = 'refresh projections')),
		'a task that was altered is due at once, and the runs that were not written are counted');
	query_is($node, 'store', 'the worker is stopped', 't', 'SELECT event_store.stop_worker()');
	$node->stop;
}

# ---------------------------------------------------------------------------
# Preloaded
# ---------------------------------------------------------------------------

{
	my $primary = new_node('preloaded', allows_streaming => 1);

	create_store($primary, 'one', 64);
	$primary->safe_psql('postgres', q(CREATE DATABASE "Two"));
	$primary->append_conf('postgresql.conf', <<'EOT');
shared_preload_libraries = 'event_store'
event_store.worker_databases = 'one, "Two", three'
EOT
	$primary->restart;
	ok(worker_is_there($primary, 'one', 'true'), 'the launcher starts a worker');
	ok(wait_until(sub { slurp_file($primary->logfile) =~ /database "three" has no event_store worker yet/ }),
		'it says which database has none');

	my $pid = worker_pid($primary, 'one');
	$primary->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	ok( $primary->poll_query_until('postgres', <<"EOT"),
SELECT count(*) = 1 FROM pg_stat_activity
WHERE backend_type = 'event_store worker' AND datname = 'one' AND pid <> $pid
EOT
		'a worker that has gone is replaced');

	$primary->safe_psql('Two', 'CREATE EXTENSION event_store');
	ok(worker_is_there($primary, 'Two', 'true'), 'a store that comes later gets one');

	# a standby has none before it is promoted
	my $backup = 'base';
	$primary->backup($backup);
	my $standby = PostgreSQL::Test::Cluster->new('promoted');
	$standby->init_from_backup($primary, $backup, has_streaming => 1);
	$standby->start;
	is(sqlstate_of($standby, 'one', 'SELECT event_store.start_worker()'), '25006',
		'no worker is started on a standby');
	is(worker_pid($standby, 'one'), '', 'there is none');
	$standby->promote;
	ok(worker_is_there($standby, 'one', 'true'), 'the promotion brings it');
	$standby->stop;

	$primary->append_conf('postgresql.conf', "event_store.worker_databases = 'one'");
	$primary->reload;
	ok(worker_is_there($primary, 'Two', 'false'),
		'a database that is taken out of the setting loses its worker');
	ok(worker_pid($primary, 'one') ne '', 'the others keep theirs');
	$primary->stop('fast');
	unlike(slurp_file($primary->logfile), qr/PANIC|terminated by signal|cannot read/,
		'nothing broke');
}

done_testing();
