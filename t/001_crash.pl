# A crash loses nothing that was acknowledged.
#
# Clients append without pause, each writing down what it was told, while the
# server is taken down: by the death of one backend, by an immediate stop, and
# by killing every process of it. Afterwards what they wrote down is compared
# with what is there. A reader keeps its position across all of it.
#
# A call counts as acknowledged once its result has arrived outside of a
# transaction block, or its COMMIT has. At the moment of the crash each client
# has one call under way at most, whose outcome it does not know.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $seed = $ENV{EVENT_STORE_SEED} // time;
my $clients = 6;
my $acks_wanted = 300;    # in a round, before the crash
my $dir = work_dir();

note "seed $seed (EVENT_STORE_SEED)";

my $node = new_node('crash', conf => 'restart_after_crash = on');
create_store($node, 'postgres', 64);
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE acknowledged (client text, call int, stream text,
	first_version bigint, last_version bigint,
	first_position bigint, last_position bigint);
CREATE TABLE seen (ordinal bigint, position bigint, event_id uuid);
-- The names are known before: who uses a new one may have to wait for another
-- who does, and the order of such waits is not what is tested here.
SELECT event_store.append(category || '-0', type, '{}')
FROM unnest('{crash,shared,prepared}'::text[]) category,
	unnest('{happened,taken back}'::text[]) type;
EOT

# What a client does until the server goes away. Each event carries the client,
# the number of the call and how many events belong to the same transaction, so
# that half a transaction would show.
sub append_until_lost
{
	my ($client, $file) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');
	my $call = 0;
	my %version;

	# Only the loss of the connection excuses a failure: nothing here can be in
	# another's way for good.
	my $must = sub {
		my @rows = $session->{lost} ? () : $session->try(@_);

		die "$session->{sqlstate}: $session->{message}"
		  if !$session->{lost} && $session->{sqlstate} ne '00000';
		return @rows;
	};

	open my $log, '>', $file or die "$file: $!";
	$log->autoflush(1);
	until ($session->{lost})
	{
		my $stream = "crash-$client-" . int(1 + rand 5);
		my $shared = 'shared-' . int(1 + rand 3);
		my $columns = q(stream, first_version, last_version, first_position,
			last_position);
		my $kind = rand;
		my @acks;

		$call++;
		my $append = sub {
			my ($to, $of, $expected) = @_;

			return qq(SELECT $columns FROM event_store.append('$to', 'happened',
				'{"padding": "@{['x' x rand 300]}"}',
				'{"client": "$client", "call": $call, "of": $of}',
				expected_version => $expected));
		};
		if ($kind < 0.35)
		{
			my $expected = $version{$stream} // 0;

			@acks = $must->($append->($stream, 1, $expected));
			$version{$stream} = $expected + 1 if @acks;
		}
		elsif ($kind < 0.55)
		{
			@acks = $must->($append->($shared, 1, 'NULL'));
		}
		elsif ($kind < 0.75)
		{
			my $of = 1 + int rand 12;

			@acks = $must->(
				qq(SELECT $columns FROM event_store.append_events('$shared',
				(SELECT jsonb_agg(jsonb_build_object('type', 'happened', 'data', n,
					'metadata', '{"client": "$client", "call": $call, "of": $of}'::jsonb))
				FROM generate_series(1, $of) n))));
		}
		elsif ($kind < 0.9)
		{
			my $expected = $version{$stream} // 0;

			$must->('BEGIN');
			push @acks, $must->($append->($stream, 2, $expected));
			$must->('SAVEPOINT s');
			$must->(
				"SELECT event_store.append('$shared', 'taken back', '{}')");
			$must->('ROLLBACK TO s');
			push @acks, $must->($append->($stream, 2, $expected + 1));
			$must->('COMMIT');
			@acks = () if $session->{lost};
			$version{$stream} = $expected + 2 if @acks;
		}
		else
		{
			$must->('BEGIN');
			$must->(
				"SELECT event_store.append('$shared', 'taken back', '{}')");
			$must->('ROLLBACK');
		}
		print $log join("\t", $client, $call, split /\|/), "\n" foreach @acks;
	}
	return;
}

# A reader that goes on from its position whatever happens to the server, until
# it is told that nothing more will come.
sub read_across_crashes
{
	my ($file) = @_;
	my ($position, $ordinal) = (0, 0);
	my $session;

	open my $log, '>', $file or die "$file: $!";
	while (1)
	{
		my $last_look = -e "$dir/stop_reading";

		unless ($session && !$session->{lost})
		{
			$session = EventStoreTest::Session->new($node, 'postgres');
			usleep(50_000) if $session->{lost};
		}
		my @rows = $session->try("SELECT position, event_id
			FROM event_store.read_all($position, 50)");
		next if $session->{lost};
		die "$session->{sqlstate}: $session->{message}"
		  if $session->{sqlstate} ne '00000';
		foreach (@rows)
		{
			my ($at, $id) = split /\|/;

			print $log join("\t", ++$ordinal, $at, $id), "\n";
			$position = $at;
		}
		last if $last_look && !@rows;
		usleep(5_000) if !@rows;
	}
	close $log;
	return;
}

sub count_lines
{
	my $count = 0;

	foreach my $file (@_)
	{
		next unless -e $file;
		my $content = slurp_file($file);
		$count += ($content =~ tr/\n//);
	}
	return $count;
}

# Every process of the server, killed at once, like a machine that dies. The
# postmaster is stopped first, so that none is started meanwhile.
sub kill_everything
{
	my $postmaster = (split /\n/, slurp_file($node->data_dir . '/postmaster.pid'))[0];
	my @pids;

	kill 'STOP', $postmaster;
	foreach my $stat (glob '/proc/[0-9]*/stat')
	{
		open my $file, '<', $stat or next;    # it has gone
		my ($pid, $parent) = (<$file> // '') =~ /^(\d+) \(.*\) \S (\d+)/s;
		push @pids, $pid if $parent && $parent == $postmaster;
	}
	kill 'KILL', @pids;
	$node->kill9;
	wait_until(sub { !kill(0, @pids, $postmaster) }) or die 'processes survived';
	return;
}

my %crash = (
	'one backend killed' => sub {
		my $victim = $node->safe_psql('postgres', <<'EOT');
SELECT pid FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() LIMIT 1
EOT
		kill 'KILL', $victim;
	},
	'immediate stop' => sub { $node->stop('immediate') },
	'everything killed' => \&kill_everything);

my $reader = start_worker(sub { read_across_crashes("$dir/seen") });
my $holder;
my $held_position;

foreach
  my $how ('one backend killed', 'immediate stop', 'everything killed')
{
	my $round = $how =~ s/ .*//r;
	my @files = map { "$dir/$round-$_" } 1 .. $clients;
	my @workers;

	foreach my $n (1 .. $clients)
	{
		push @workers,
		  start_worker(
			sub {
				srand($seed + 100 * length($how) + $n);
				append_until_lost("$round-$n", $files[ $n - 1 ]);
			});
	}

	ok(wait_until(sub { count_lines(@files) >= $acks_wanted }, @workers),
		"$how: clients append");

	# In the midst of it two transactions are prepared that are to outlive the
	# crash of this round and the next.
	if ($how eq 'immediate stop')
	{
		foreach my $name ('kept', 'dropped')
		{
			$node->safe_psql('postgres', <<"EOT");
BEGIN;
SELECT event_store.append('prepared-$name', 'happened', '{}');
PREPARE TRANSACTION '$name';
EOT
		}
		my $so_far = count_lines(@files);
		wait_until(sub { count_lines(@files) >= $so_far + 100 }, @workers);
	}

	$crash{$how}->();
	is(wait_workers(@workers), 0, "$how: clients saw no other error");
	if ($how eq 'one backend killed')
	{
		$node->poll_query_until('postgres', 'SELECT true');
	}
	else
	{
		$node->start;
	}

	system_or_bail('sh', '-c', "cat $dir/$round-* > $dir/acks");
	$node->safe_psql('postgres', "COPY acknowledged FROM '$dir/acks'");

	query_is($node, 'postgres', "$how: nothing is missing", '', <<'EOT');
SELECT a.* FROM acknowledged a
CROSS JOIN generate_series(a.first_version, a.last_version) v
LEFT JOIN event_store.events e
	ON e.stream = a.stream AND e.version = v
	AND e.position = a.first_position + v - a.first_version
	AND e.metadata->>'client' = a.client AND (e.metadata->>'call')::int = a.call
WHERE e.position IS NULL
EOT
	query_is($node, 'postgres', "$how: no half transaction", '', <<'EOT');
SELECT metadata, count(*) FROM event_store.events WHERE type = 'happened'
GROUP BY metadata HAVING count(*) <> (metadata->>'of')::int
	AND metadata ? 'client'
EOT
	query_is($node, 'postgres', "$how: one call of each client at most has an unknown outcome", '', <<'EOT');
SELECT metadata->>'client' FROM event_store.events e
WHERE metadata ? 'client' AND NOT EXISTS (SELECT FROM acknowledged a
	WHERE a.client = e.metadata->>'client'
	AND a.call = (e.metadata->>'call')::int)
GROUP BY 1 HAVING count(DISTINCT metadata->>'call') > 1
EOT
	query_is($node, 'postgres', "$how: nothing that was rolled back is there", '0', <<'EOT');
SELECT count(*) FROM event_store.events WHERE type = 'taken back' AND stream NOT LIKE '%-0'
EOT
	store_is_sound($node, 'postgres', $how);

	# New positions lie above all that were given out, the prepared ones too.
	query_is($node, 'postgres', "$how: positions go on", 't', <<'EOT');
WITH before AS MATERIALIZED (
	SELECT greatest(max(position), (SELECT max(last_position) FROM acknowledged))
		AS position
	FROM event_store.events)
SELECT before.position < (event_store.append('after', 'happened', '{}')).first_position
FROM before
EOT
	my ($stream, $version) = split /\|/, $node->safe_psql('postgres', <<'EOT');
SELECT stream, max(last_version) FROM acknowledged WHERE stream LIKE 'crash-%'
GROUP BY stream ORDER BY stream LIMIT 1
EOT
	is( sqlstate_of($node, 'postgres', <<"EOT"), 'VE001', "$how: versions go on");
SELECT event_store.append('$stream', 'late', '{}', expected_version => $version - 1)
EOT

	if ($how ne 'one backend killed')
	{
		# the mark stands below the first prepared transaction
		query_is($node, 'postgres', "$how: prepared transactions hold the settled mark", 't', <<'EOT');
SELECT event_store.settled_position() < event_store.last_position()
	AND NOT EXISTS (SELECT FROM event_store.events
		WHERE position <= event_store.settled_position() AND stream = 'after'
		AND version > 1)
EOT
		is( sqlstate_of($node, 'postgres',
				q(SET lock_timeout = '50ms'; SELECT event_store.append('prepared-kept', 'other', '{}'))
			),
			'55P03',
			"$how: a prepared transaction holds its stream");
		$node->safe_psql('postgres', "ROLLBACK PREPARED 'dropped'")
		  if $how eq 'everything killed';
	}
}

# One prepared transaction is left of the two; the mark stands below it until
# it is committed, and then runs to the end at once.
query_is($node, 'postgres', 'the prepared transaction that is left holds the mark', 't', <<'EOT');
SELECT event_store.settled_position() < event_store.last_position()
EOT
my $mark = $node->safe_psql('postgres', 'SELECT event_store.settled_position()');
$node->safe_psql('postgres', "COMMIT PREPARED 'kept'");
query_is($node, 'postgres', 'its end sets the mark free', 't|t|t', <<"EOT");
SELECT event_store.settled_position() = event_store.last_position(),
	(SELECT position > $mark FROM event_store.last_event('prepared-kept')),
	event_store.stream_version('prepared-dropped') = 0
EOT

# The reader that was there all the time.
append_to_file("$dir/stop_reading", '');
is(wait_workers($reader), 0, 'the reader saw no error but lost connections');
$node->safe_psql('postgres', "COPY seen FROM '$dir/seen'");
query_is($node, 'postgres', 'the reader skipped nothing', '', <<'EOT');
SELECT e.position, e.stream FROM event_store.events e LEFT JOIN seen s USING (position)
WHERE s.event_id IS DISTINCT FROM e.event_id
EOT
query_is($node, 'postgres', 'the reader saw each event once, in order', 't', <<'EOT');
SELECT count(*) = count(DISTINCT position)
	AND count(*) = (SELECT count(*) FROM event_store.events)
	AND bool_and(earlier IS NULL OR earlier < position)
FROM (SELECT position, lag(position) OVER (ORDER BY ordinal) AS earlier FROM seen) s
EOT

cmp_ok(
	$node->safe_psql(
		'postgres', 'SELECT count(*) FROM event_store.segments()'),
	'>', 5,
	'many segments were filled');

$node->stop;
done_testing();
