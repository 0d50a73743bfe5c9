# Whatever happens at once, a state is what its events say.
#
# Events carry their version, so the sum up to version v is v(v+1)/2, and each
# answer can be judged by itself. Sessions append, save snapshots by hand, take
# them by policy, let state_at() take them, and drop them, in READ COMMITTED and
# REPEATABLE READ, roll back, are ended, and the server is killed under them;
# others load and fold. The oracle: every state and every load, then and at the end.
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
create_store($node, 'postgres', 256);
$node->safe_psql('postgres', <<'EOT');
SELECT event_store.set_snapshot_policy('sum(n)', every_events => 7, keep => 2);
SELECT event_store.append('s-' || i, 't', '{"n": 1}') FROM generate_series(0, 4) i;
-- what is wrong with the answers about a stream; NULL: nothing
CREATE FUNCTION wrong(_stream text) RETURNS text STABLE LANGUAGE sql AS $$
	WITH loaded AS MATERIALIZED (SELECT l.*, row_number() OVER (ORDER BY l.version) AS number
		FROM event_store.load_stream(_stream, fold => 'sum(n)') AS l),
	v AS MATERIALIZED (SELECT event_store.stream_version(_stream) AS version)
	SELECT nullif(concat_ws('; ',
		(SELECT format('state %s at version %s', state, version)
		   FROM v, event_store.state_at(_stream, 'sum(n)', version) AS state
		  WHERE state IS DISTINCT FROM to_jsonb(version * (version + 1) / 2)),
		(SELECT format('state %s at version %s', state, at)
		   FROM v, LATERAL (SELECT 1 + (random() * (version - 1))::bigint AS at) AS a, event_store.state_at(_stream, 'sum(n)', at) AS state
		  WHERE state IS DISTINCT FROM to_jsonb(at * (at + 1) / 2)),
		(SELECT 'loaded: ' || string_agg(format('%s %s %s', l.version, l.type, l.data), ', ' ORDER BY l.version)
		   FROM loaded AS l, v
		 HAVING min(l.version) + count(*) - 1 <> max(l.version) OR max(l.version) <> max(v.version)
			 OR bool_or(CASE WHEN l.type = '$snapshot' THEN l.number <> 1 OR l.data <> to_jsonb(l.version::bigint * (l.version + 1) / 2)
				ELSE l.data->>'n' <> l.version::text END)
			 OR (min(l.version) > 1 AND min(l.type) <> '$snapshot'))), '')
$$;
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
			  if !$session->{lost}
			  && $session->{sqlstate} =~ /^(XX|VE|23|40|42)/
			  && $session->{sqlstate} ne 'VE001'
			  # two that have saved or dropped, and drop, wait for each other
			  && $session->{message} !~ /deadlock detected.*deleting tuple .* in relation "snapshot"/s;
			$session->try('ROLLBACK') unless $session->{lost};
		}
	}
	return;
}

# Some statements in a transaction, which ends in one way or the other.
sub transaction
{
	my ($session, @statements) = @_;

	# who takes by policy goes on from where another has left off, and must see that
	$session->try(rand() < 0.5 || $statements[0] =~ /take_snapshots/ ? 'BEGIN' : 'BEGIN ISOLATION LEVEL REPEATABLE READ');
	foreach my $sql (@statements)
	{
		$session->try($sql) if $session->{sqlstate} eq '00000';
		usleep(rand 1_000);
	}
	$session->try(rand() < 0.2 ? 'ROLLBACK' : 'COMMIT') if $session->{sqlstate} eq '00000';
	return;
}

sub stream { return 's-' . int rand 5 }

sub append
{
	my ($session) = @_;
	my $stream = stream();
	my $count = 1 + int rand 5;

	$session->try('BEGIN');
	$session->try("SELECT event_store.append_events('$stream', (SELECT jsonb_agg(jsonb_build_object('type', 't', 'data', jsonb_build_object('n', v + i)) ORDER BY i) FROM generate_series(1, $count) i), v) FROM event_store.stream_version('$stream') v");
	$session->try("SELECT event_store.state_at('$stream', 'sum(n)')")
	  if $session->{sqlstate} eq '00000' && rand() < 0.2;
	$session->try(rand() < 0.2 ? 'ROLLBACK' : 'COMMIT') if $session->{sqlstate} eq '00000';
	usleep(rand 3_000);
	return;
}

sub save
{
	my ($session) = @_;
	my @statements = map {
		my $stream = stream();
		my $keep = 1 + int rand 3;

		rand() < 0.03 ? 'SELECT event_store.drop_snapshots()'
		  : rand() < 0.2 ? "SELECT event_store.state_at('$stream', 'sum(n)')"
		  : "SELECT event_store.save_snapshot('$stream', v, to_jsonb(v * (v + 1) / 2), fold => 'sum(n)', keep => $keep)
			   FROM (SELECT greatest(event_store.stream_version('$stream') - (random() * 20)::bigint, 1) AS v) AS x";
	} 1 .. 1 + int rand 4;

	transaction($session, @statements);
	return;
}

sub look
{
	my ($session) = @_;
	my $stream = stream();
	my ($wrong) = $session->try("SELECT wrong('$stream')");

	die $wrong if $session->{sqlstate} eq '00000' && defined $wrong && $wrong ne '';
	return;
}

my @workers = map {
	my ($code, $n) = @$_;
	start_worker(sub {
		srand($seed + $n);
		go_on($code);
	});
} ([ \&append, 1 ], [ \&append, 2 ], [ \&save, 3 ], [ \&save, 4 ], [ \&save, 5 ],
	[ \&look, 6 ], [ \&look, 7 ],
	[ sub { transaction($_[0], 'SELECT event_store.take_snapshots(' . (1 + int rand 50) . ')'); usleep(20_000) }, 8 ],
	[ sub { transaction($_[0], 'SELECT event_store.take_snapshots(100)'); usleep(20_000) }, 9 ]);

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
is(wait_workers(@workers), 0, 'nobody met an error of ours, nor a wrong answer');
$node->poll_query_until('postgres', 'SELECT true');

query_is($node, 'postgres', 'all answers are right', '', 'SELECT wrong(stream) FROM event_store.streams() WHERE wrong(stream) IS NOT NULL');
query_is($node, 'postgres', 'in all versions', '', <<'EOT');
SELECT s.stream, v, state FROM event_store.streams() s, generate_series(1, s.version) v, event_store.state_at(s.stream, 'sum(n)', v) state
WHERE state <> to_jsonb(v::bigint * (v + 1) / 2)
EOT
query_is($node, 'postgres', 'all snapshots are right', '', <<'EOT');
SELECT stream_id, version, state FROM event_store.snapshot WHERE state <> to_jsonb(version::bigint * (version + 1) / 2)
EOT
query_is($node, 'postgres', 'the policy met no error', '0', 'SELECT failures FROM event_store.snapshot_policies');
# what is due is taken in the end
$node->safe_psql('postgres', 'SELECT event_store.take_snapshots(NULL)');
query_is($node, 'postgres', 'nothing is due', '0|', <<'EOT');
SELECT due, (SELECT string_agg(stream, ' ') FROM event_store.streams() s
	WHERE version - coalesce((SELECT max(n.version) FROM event_store.snapshots n WHERE n.stream = s.stream), 0) >= 7)
FROM event_store.snapshot_policies
EOT
query_is($node, 'postgres', 'after another save there are as many as are kept', "5\n10|2", <<'EOT');
WITH appended AS MATERIALIZED (SELECT stream, (event_store.append(stream, 't', jsonb_build_object('n', version + 1))).last_version AS version FROM event_store.streams())
SELECT count(*) FROM appended;
SELECT event_store.save_snapshot(stream, version, to_jsonb(version::bigint * (version + 1) / 2), fold => 'sum(n)', keep => 2) FROM event_store.streams() \g /dev/null
SELECT count(*), max(n) FROM (SELECT count(*) AS n FROM event_store.snapshot GROUP BY stream_id) c, LATERAL generate_series(1, n)
EOT
store_is_sound($node, 'postgres', 'in the end');
note 'versions, snapshots drawn: ', $node->safe_psql('postgres', <<'EOT');
SELECT string_agg(version::text, ' '), (SELECT last_value FROM event_store.snapshot_id) FROM event_store.streams()
EOT

$node->stop;
done_testing();
