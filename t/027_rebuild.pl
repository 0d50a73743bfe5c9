# Rebuilds beside the projections in service: under load, cancelled, crashed,
# paused; when their end is expected; what is dropped beside readers.
#
# The oracle of readers: what they see of a model is at any time what the events
# up to some position come to, and that position never falls; of an inline model,
# what the events that they see come to.
#
# EVENT_STORE_REBUILD_SECONDS (default 10) is how long readers and appenders go on.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{EVENT_STORE_REBUILD_SECONDS} // 10;
my $dir = work_dir();
my $node = new_node('rebuild', conf => "shared_preload_libraries = 'event_store'\nevent_store.worker_databases = 'postgres'\nautovacuum_naptime = 2s");

create_store($node, 'postgres', 1024);
$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION append_some(of text, count int) RETURNS void LANGUAGE sql AS $$
	INSERT INTO event_store.events (stream, type, data)
	SELECT of || '-' || i % 7, 't', '{"n": 1}' FROM generate_series(1, count) i
$$;
CREATE TABLE in_set (k text PRIMARY KEY, n bigint, s numeric, p bigint) WITH (fillfactor = 50);
-- rows that no update finds again, in a table of many sorts of columns
CREATE TABLE in_event (gone text, id bigint GENERATED ALWAYS AS IDENTITY, p bigint UNIQUE, gone2 int, twice bigint GENERATED ALWAYS AS (p * 2) STORED);
ALTER TABLE in_event DROP gone;
ALTER TABLE in_event DROP gone2;
CREATE TABLE in_inline (k text PRIMARY KEY, n bigint) WITH (fillfactor = 50);
CREATE FUNCTION one(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$BEGIN INSERT INTO in_event (p) VALUES (e.position); END$$;
SELECT event_store.create_projection('set', 'set', $$INSERT INTO in_set AS t SELECT stream, count(*), sum(position), max(position) FROM new_events GROUP BY stream ORDER BY stream
	ON CONFLICT (k) DO UPDATE SET n = t.n + excluded.n, s = t.s + excluded.s, p = excluded.p$$, tables => '{in_set}', batch_events => 100);
SELECT event_store.create_projection('event', 'event', 'one', tables => '{in_event}', categories => '{a,b}');
SELECT event_store.create_projection('fold', 'fold', 'sum(n)');
SELECT event_store.create_projection('inline', 'set', $$INSERT INTO in_inline AS t SELECT stream, count(*) FROM new_events GROUP BY stream ORDER BY stream
	ON CONFLICT (k) DO UPDATE SET n = t.n + excluded.n$$, 'inline', tables => '{in_inline}');
-- a position, and whether the model is what the events up to there come to
CREATE VIEW set_is AS
	SELECT m.p, (m.n, m.s) IS NOT DISTINCT FROM (e.n, e.s) AS is_right FROM (SELECT sum(n) AS n, sum(s) AS s, max(p) AS p FROM in_set) m,
		LATERAL (SELECT count(*) AS n, sum(position) AS s FROM event_store.events WHERE position <= m.p) e;
CREATE VIEW event_is AS
	SELECT m.p, (m.n, m.s, m.twice) IS NOT DISTINCT FROM (e.n, e.s, 2 * e.s) AS is_right FROM (SELECT count(*) AS n, sum(p) AS s, sum(twice) AS twice, max(p) AS p FROM in_event) m,
		LATERAL (SELECT count(*) AS n, sum(position) AS s FROM event_store.events WHERE position <= m.p AND category IN ('a', 'b')) e;
CREATE VIEW fold_is AS
	SELECT m.p, m.n IS NOT DISTINCT FROM e.n AS is_right FROM (SELECT sum(state::int) AS n, max(position) AS p FROM event_store.projection_states WHERE projection = 'fold') m,
		LATERAL (SELECT count(*) AS n FROM event_store.events WHERE position <= m.p) e;
CREATE VIEW inline_is AS
	SELECT (SELECT count(*) FROM event_store.events) AS p, (SELECT sum(n) FROM in_inline) IS NOT DISTINCT FROM (SELECT count(*) FROM event_store.events) AS is_right;
-- looks with the snapshot of the statement that calls it, which can be older than its locks
CREATE FUNCTION later(model text) RETURNS TABLE (p bigint, is_right boolean) STABLE LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_sleep(random() * 0.03);
	RETURN QUERY EXECUTE format('SELECT p, is_right FROM %I', model || '_is');
END $$;
SELECT append_some('a', 2000), append_some('b', 500), append_some('c', 500);
EOT
$node->poll_query_until('postgres', 'SELECT sum(open_events) = 0 FROM event_store.projections') or die;

# ---------------------------------------------------------------------------
# Under load
# ---------------------------------------------------------------------------

my %wrong;

# One who reads all models, in one way.
sub reader
{
	my ($n, $way) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');
	my %last = map { $_ => 0 } 'set', 'event', 'fold', 'inline';
	my $count = 0;

	srand($n);
	until (-e "$dir/stop")
	{
		my @models = $way eq 'latest' ? ('set', 'event', 'fold', 'inline') : ('set', 'event', 'fold');
		my $model = $models[ rand @models ];
		my @seen;

		if ($way eq 'repeatable')
		{
			$session->run('BEGIN ISOLATION LEVEL REPEATABLE READ');
			$session->run('SELECT count(*) FROM event_store.projections');
			usleep(rand 30_000);
			push @seen, $session->run("SELECT * FROM ${model}_is");
			usleep(rand 5_000);
			push @seen, $session->run("SELECT * FROM ${model}_is");
			$session->run('COMMIT');
			die "$way, $model: $seen[0], then $seen[1]" if $seen[0] ne $seen[1];
		}
		else
		{
			push @seen, $session->run($way eq 'stable' ? "SELECT * FROM later('$model')" : "SELECT * FROM ${model}_is");
		}
		my ($position, $right) = split /\|/, $seen[0];
		die "$way, $model: wrong at $position" if $right ne 't';
		die "$way, $model: from $last{$model} to $position" if $position < $last{$model};
		$last{$model} = $position;
		$count++;
	}
	$session->quit;
	append_to_file("$dir/reads", "$count\n");
	return;
}

my @workers = map {
	my $n = $_;
	start_worker(sub {
		my $session = EventStoreTest::Session->new($node, 'postgres');

		srand(50 + $n);
		until (-e "$dir/stop")
		{
			my $of = (qw(a b c))[ rand 3 ];

			$session->run('BEGIN');
			$session->run("SELECT append_some('$of', " . (1 + int rand 20) . ')');
			usleep(rand 2_000);
			$session->run(rand() < 0.1 ? 'ROLLBACK' : 'COMMIT');
			usleep(rand 30_000);
		}
		$session->quit;
	});
} 1 .. 3;
push @workers, map { my $n = $_; start_worker(sub { reader($n, (qw(latest repeatable stable))[ $n % 3 ]); }); } 1 .. 6;

my $main = EventStoreTest::Session->new($node, 'postgres');
my %done = map { $_ => 0 } 'set', 'event', 'fold', 'inline';
my $end = time + $seconds;
my $turn = 0;

srand(7);
while (time < $end || grep { !$_ } values %done)
{
	my $name = (sort keys %done)[ $turn++ % 4 ];
	my $files = "SELECT string_agg(relfilenode::text, ',' ORDER BY relname) FROM pg_class WHERE relname ~ '^in_' AND relnamespace = 'public'::regnamespace AND relkind = 'r'";
	my $before = $main->run("SELECT id FROM event_store.projection WHERE name = '$name'");
	my $keep = rand() < 0.3 ? 'true' : 'false';

	$main->run("SELECT event_store.rebuild_projection('$name', keep_old => $keep)");
	if (rand() < 0.2)
	{
		usleep(rand 50_000);
		$main->try("SELECT event_store.cancel_rebuild('$name')");
		next if $main->{sqlstate} eq '00000';
	}
	if (rand() < 0.3)
	{
		usleep(rand 50_000);
		# it may be over
		$main->try("SELECT event_store.pause_projection('$name (new)')");
		usleep(rand 100_000);
		$main->try("SELECT event_store.resume_projection('$name (new)')");
	}
	# by itself, or by force
	$main->try("SELECT event_store.finish_rebuild('$name')") if rand() < 0.3;
	my $ok = $node->poll_query_until('postgres', "SELECT id <> $before FROM event_store.projection WHERE name = '$name'");
	unless ($ok)
	{
		fail("$name takes its place");
		diag $node->safe_psql('postgres', 'SELECT * FROM event_store.projection_rebuilds; SELECT * FROM event_store.projections; SELECT * FROM pg_stat_activity');
		last;
	}
	$done{$name}++;
	if ($keep eq 'true')
	{
		usleep(rand 50_000);
		$main->run("SELECT event_store.revert_rebuild('$name')");
		$node->poll_query_until('postgres', "SELECT id = $before FROM event_store.projection WHERE name = '$name'") or last;
	}
}
append_to_file("$dir/stop", '');
is(wait_workers(@workers), 0, 'all readers saw models as they were at some position, which never fell');
note "changes of places: $_ $done{$_}" foreach sort keys %done;
note "reads: " . join ' ', split /\n/, slurp_file("$dir/reads");
ok($node->poll_query_until('postgres', 'SELECT sum(open_events) = 0 FROM event_store.projections WHERE name !~ $$\(old\)$$'), 'all is applied');
query_is($node, 'postgres', 'all equals what the log says', 't|t|t|t', 'SELECT s.is_right AND s.p = (SELECT max(position) FROM event_store.events), e.is_right, f.is_right, i.is_right FROM set_is s, event_is e, fold_is f, inline_is i');
query_is($node, 'postgres', 'identity has no gap but those of rollbacks', 't', 'SELECT max(id) >= count(*) AND min(id) = 1 FROM in_event');
$main->run("SELECT event_store.cancel_rebuild(name) FROM event_store.projections WHERE name !~ '\\('");
$main->run('SELECT event_store.refresh_projections()');
ok($node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_namespace WHERE nspname ~ '^event_store_rebuild')), 'nothing is left over');
ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_inherits WHERE inhparent = 'event_store.projection_state'::regclass)), 'nor are states');

# ---------------------------------------------------------------------------
# What is dropped beside readers
# ---------------------------------------------------------------------------

my $reader = EventStoreTest::Session->new($node, 'postgres');

$main->run(q(SELECT event_store.create_projection('dropped', 'fold', 'count')));
$main->run(q(SELECT event_store.refresh_projection('dropped')));
$reader->run('BEGIN');
$reader->run('SELECT count(*) FROM event_store.projection_states');
$main->run(q(SET lock_timeout = '5 s'));
$main->run(q(SELECT event_store.drop_projection('dropped')));
query_is($node, 'postgres', 'a fold is dropped beside a reader, who keeps nobody else waiting', '0', q(SELECT count(*) FROM event_store.projection_states WHERE projection = 'dropped'));
query_is($node, 'postgres', 'its table stays meanwhile', '2', q(SELECT count(*) FROM pg_inherits WHERE inhparent = 'event_store.projection_state'::regclass));
# a rebuild takes its place all the same
my $id = $main->run(q(SELECT id FROM event_store.projection WHERE name = 'fold'));
$main->run(q(SELECT event_store.rebuild_projection('fold')));
ok($node->poll_query_until('postgres', "SELECT id <> $id FROM event_store.projection WHERE name = 'fold'"), 'and so does the rebuild of a fold');
$reader->run('COMMIT');
$main->run('SELECT event_store.refresh_projections()');
ok($node->poll_query_until('postgres', q(SELECT count(*) = 1 FROM pg_inherits WHERE inhparent = 'event_store.projection_state'::regclass)), 'and goes when he has gone');

# readers that are never all away: the change of places waits for them for an instant, again and again
{
	my $stop = "$dir/stop readers";
	my @readers = map { start_worker(sub {
		my $session = EventStoreTest::Session->new($node, 'postgres');

		$session->run('SELECT count(*), pg_sleep(0.02) FROM in_set') until -e $stop;
		$session->quit;
	}) } 1 .. 6;
	my $oid = $main->run(q(SELECT id FROM event_store.projection WHERE name = 'set'));

	$main->run(q(SELECT event_store.rebuild_projection('set')));
	ok($node->poll_query_until('postgres', "SELECT id <> $oid FROM event_store.projection WHERE name = 'set'"), 'a table that is always read changes places');
	append_to_file($stop, '');
	is(wait_workers(@readers), 0, 'and its readers go on');
}

# ---------------------------------------------------------------------------
# When the end is expected; a cancel, a crash in mid-batch, a pause
# ---------------------------------------------------------------------------

# one event after the other, each so long that the whole takes half a minute
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE slow (p bigint PRIMARY KEY);
CREATE FUNCTION slow(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO slow VALUES (e.position);
	IF event_store.is_replaying() THEN PERFORM pg_sleep(current_setting('slow.seconds', true)::float8); END IF;
END $$;
SELECT append_some('slow', 1000);
SELECT event_store.create_projection('slow', 'event', 'slow', categories => '{slow}', tables => '{slow}', batch_events => 100);
SELECT event_store.refresh_projection('slow');
EOT
$node->append_conf('postgresql.conf', 'slow.seconds = 0.025');
$node->reload;
$node->poll_query_until('postgres', 'SELECT sum(open_events) = 0 FROM event_store.projections') or die;
my $started = time;
$main->run(q(SELECT event_store.rebuild_projection('slow')));

# In how many seconds it is expected to end, and what is done.
sub expected
{
	return split /\|/, $node->safe_psql('postgres', 'SELECT extract(epoch FROM expected_end - clock_timestamp()), events, rate FROM event_store.projection_rebuilds');
}

# after a while, a pause, a crash
my @guesses;
sub guess
{
	my ($when) = @_;
	my ($in, $events, $rate) = expected();

	push @guesses, [ $when, time + $in, $in, $events ];
	note "$when: $events events done, $rate a second, $in seconds left";
	return;
}
usleep(6_000_000);
guess('at work');
$main->run(q(SELECT event_store.pause_projection('slow (new)')));
my $paused = time;
my ($in, $kept) = expected();
is($in // '', '', 'while it is paused no end is expected');
usleep(7_000_000);
is((expected())[1], $kept, 'nor is anything done');
$main->run(q(SELECT event_store.resume_projection('slow (new)')));
my $pause = time - $paused;
$guesses[0][1] += $pause;
usleep(3_000_000);
guess('after a pause');
# in mid-batch: in this session, while the worker is kept away
query_is($node, 'postgres', 'readers see the old model', '1000', 'SELECT count(*) FROM slow');
$node->stop('immediate');
my $down = time;
usleep(5_500_000);
$node->start;
$down = time - $down;
$_->[1] += $down foreach @guesses;
ok((expected())[1] > 0, 'after a crash it goes on where it was');
query_is($node, 'postgres', 'and readers see the old model', '1000', 'SELECT count(*) FROM slow');
usleep(2_000_000);
guess('after a crash');
foreach (1 .. 3)
{
	last if $node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM event_store.projection_rebuilds');
}
my $ended = time;
ok($ended - $started > 20, 'it took more than 20 seconds');
foreach my $guess (@guesses)
{
	my ($when, $then, $in) = @$guess;

	ok(abs($then - $ended) < 2 + 0.3 * $in, "$when: the end was expected when it came")
	  or diag "in $in seconds, it came " . ($ended - $then) . ' later';
}
query_is($node, 'postgres', 'each event once', 't|1000', q(SELECT bool_and(p = position), count(*) FROM slow FULL JOIN (SELECT position FROM event_store.events WHERE category = 'slow') e ON p = position));

# a cancel in mid-batch: what was committed stays done
# the launcher would start another
$node->append_conf('postgresql.conf', "event_store.worker_databases = ''");
$node->reload;
ok($node->poll_query_until('postgres', q(SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'event_store worker'))), 'the worker has gone');
$main = EventStoreTest::Session->new($node, 'postgres');
$main->run(q(SELECT event_store.rebuild_projection('slow')));
$main->run(q(SET slow.seconds = 0));
$main->run(q(SELECT event_store.refresh_projection('slow', 300)));
$main->run(q(SET slow.seconds = 0.01));
$main->send(q(CALL event_store.catch_up_projection('slow')));
ok($node->poll_query_until('postgres', 'SELECT events >= 500 FROM event_store.projection_rebuilds'), 'a rebuild is in mid-batch');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($main->{backend})");
$main->result;
is($main->{sqlstate}, '57014', 'it is cancelled');
query_is($node, 'postgres', 'what was committed stays', 't|f|running', q(SELECT events BETWEEN 500 AND 900, events % 100 <> 0, status FROM event_store.projection_rebuilds, event_store.projections WHERE name = 'slow (new)'));
query_is($node, 'postgres', 'and readers see the old model', '1000', 'SELECT count(*) FROM slow');
$main->run(q(SET slow.seconds = 0));
# autovacuum may be in the way
wait_until(sub {
	$main->run(q(CALL event_store.catch_up_projection('slow')));
	return $main->run('SELECT count(*) FROM event_store.projection_rebuilds') == 0;
}) or diag join("\n", map { $node->safe_psql('postgres', "SELECT to_jsonb(x) FROM $_ AS x") }
	  qw(event_store.projection_rebuilds event_store.projections event_store.projection pg_stat_activity));
query_is($node, 'postgres', 'then it goes on, each event once', 't|1000|0', q(SELECT bool_and(p = position), count(*), (SELECT count(*) FROM event_store.projection_rebuilds) FROM slow FULL JOIN (SELECT position FROM event_store.events WHERE category = 'slow') e ON p = position));
$main->quit;
$node->stop;

done_testing();
