# No reader skips an event, whatever the writers do.
#
# Writers append with random pauses, roll back, roll back to savepoints, lose
# races, and leave transactions prepared for a while. Readers of many kinds go
# on from the last position they received. The oracle: at the end the list that
# each reader has collected is the table, in order, nothing twice and nothing
# missing.
#
# A test of this kind is worth something only if it catches a reader that does
# skip: two such, which read the view past the last position seen, run beside
# the others and are judged by the same comparison. One of them is led through
# an interleaving in which it must skip; what the other skips under load is
# reported.
#
# EVENT_STORE_TORTURE_SECONDS (default 12) is how long the writers write,
# EVENT_STORE_SEED what their decisions follow from.

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
my $seconds = $ENV{EVENT_STORE_TORTURE_SECONDS} // 12;
my $writers = 12;
my $dir = work_dir();

note "seed $seed (EVENT_STORE_SEED), $seconds s (EVENT_STORE_TORTURE_SECONDS)";

my $node = new_node('torture', conf => 'deadlock_timeout = 100ms');
create_store($node, 'postgres', 64);
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE seen (reader text, ordinal bigint, position bigint, event_id uuid);
CREATE TABLE unrelated (n int);
EOT

# ---------------------------------------------------------------------------
# Readers
# ---------------------------------------------------------------------------

my $columns = 'position, event_id';

# Each has a way to get the events after a position; each call is a poll, a
# transaction of its own unless the reader says otherwise.
my %reader = (
	'read committed' => {
		poll => sub {
			my ($session, $after) = @_;
			return $session->run(
				"SELECT $columns FROM event_store.read_all($after, 100)");
		}
	},
	'few at a time' => {
		poll => sub {
			my ($session, $after) = @_;
			my $count = 1 + int rand 40;
			return $session->run(
				"SELECT $columns FROM event_store.read_all($after, $count)");
		}
	},
	'caller stops early' => {
		poll => sub {
			my ($session, $after) = @_;
			my $count = 1 + int rand 40;
			$session->run('BEGIN');
			$session->run("DECLARE c CURSOR FOR SELECT $columns
				FROM event_store.read_all($after, NULL)");
			my @rows = $session->run("FETCH $count FROM c");
			usleep(rand 20_000);
			push @rows, $session->run("FETCH $count FROM c");
			$session->run('COMMIT');
			return @rows;
		}
	},
	'repeatable read' => {
		poll => sub {
			my ($session, $after) = @_;
			$session->run('BEGIN ISOLATION LEVEL REPEATABLE READ');
			$session->run('SELECT 1');    # takes the snapshot
			usleep(rand 30_000);
			my @rows = $session->run(
				"SELECT $columns FROM event_store.read_all($after, 100)");
			$session->run('COMMIT');
			return @rows;
		}
	},
	'serializable' => {
		poll => sub {
			my ($session, $after) = @_;
			$session->run('BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY');
			$session->run('SELECT 1');
			usleep(rand 30_000);
			my @rows = $session->try(
				"SELECT $columns FROM event_store.read_all($after, 100)");
			if ($session->{sqlstate} eq '40001')
			{
				$session->run('ROLLBACK');
				return $session->run(
					"SELECT $columns FROM event_store.read_all($after, 100)");
			}
			die $session->{message} if $session->{sqlstate} ne '00000';
			$session->run('COMMIT');
			return @rows;
		}
	},
	'several polls, read committed' => {
		polls => [ 'BEGIN', 6 ],
		poll => sub {
			my ($session, $after) = @_;
			usleep(rand 10_000);
			return $session->run(
				"SELECT $columns FROM event_store.read_all($after, 50)");
		}
	},
	'several polls, repeatable read' => {
		polls => [ 'BEGIN ISOLATION LEVEL REPEATABLE READ', 6 ],
		poll => sub {
			my ($session, $after) = @_;
			usleep(rand 10_000);
			return $session->run(
				"SELECT $columns FROM event_store.read_all($after, 50)");
		}
	},
	'by category' => {
		category => 'left',
		poll => sub {
			my ($session, $after) = @_;
			return $session->run("SELECT $columns
				FROM event_store.read_category('left', $after, 100)");
		}
	},
	'by category, repeatable read' => {
		category => 'right',
		polls => [ 'BEGIN ISOLATION LEVEL REPEATABLE READ', 4 ],
		poll => sub {
			my ($session, $after) = @_;
			usleep(rand 10_000);
			return $session->run("SELECT $columns
				FROM event_store.read_category('right', $after, 20)");
		}
	},
	'by type' => {
		type => 'alone',
		poll => sub {
			my ($session, $after) = @_;
			return $session->run("SELECT $columns FROM event_store.read_all(
				$after, 100, types => ARRAY['alone', 'no such type'])");
		}
	},
	'plain SQL to the mark' => {
		# The mark is asked for by a statement of its own: the snapshot that
		# reads must not be older than it.
		poll => sub {
			my ($session, $after) = @_;
			my $mark = $session->run('SELECT event_store.settled_position()');
			usleep(rand 10_000);
			return $session->run("SELECT $columns FROM event_store.events
				WHERE position > $after AND position <= $mark ORDER BY position");
		}
	},
	'naive' => {
		skips => 1,
		poll => sub {
			my ($session, $after) = @_;
			return $session->run("SELECT $columns FROM event_store.events
				WHERE position > $after ORDER BY position LIMIT 100");
		}
	});

# Reads until the file "stop" was there before a look that finds nothing more.
sub read_on
{
	my ($name) = @_;
	my $this = $reader{$name};
	my $session = EventStoreTest::Session->new($node, 'postgres');
	my ($position, $ordinal) = (0, 0);
	my ($begin, $polls) = @{ $this->{polls} // [ undef, 1 ] };
	my $polls_left = 0;
	my $stop_seen = 0;

	open my $log, '>', "$dir/" . ($name =~ s/\W/_/gr) . '.seen' or die $!;
	while (1)
	{
		if ($polls_left <= 0)
		{
			$stop_seen = -e "$dir/stop";
			$session->run($begin) if $begin;
			$polls_left = $polls;
		}
		my @rows = $this->{poll}->($session, $position);

		$polls_left--;
		foreach (@rows)
		{
			my ($at, $id) = split /\|/;

			print $log join("\t", $name, ++$ordinal, $at, $id), "\n";
			$position = $at;
		}
		$session->run('COMMIT') if $begin && $polls_left <= 0;
		last if $stop_seen && !@rows;
		usleep(1_000 + rand 5_000) if !@rows;
	}
	close $log or die $!;
	return;
}

# ---------------------------------------------------------------------------
# Writers
# ---------------------------------------------------------------------------

sub some_stream { return ('left-', 'right-', 'alone')[ rand 3 ] . int rand 12 }

sub some_type { return rand() < 0.03 ? 'alone' : ('moved', 'turned')[ rand 2 ] }

# Appends until time is up; writes down how many events it was told are in.
# Whatever comes back from the server but success has to be one of the losses
# that concurrency brings.
sub write_on
{
	my ($name) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');
	my $other = EventStoreTest::Session->new($node, 'postgres');
	my $until = time + $seconds;
	my ($acknowledged, $losses, $prepared) = (0, 0, 0);

	my $metadata = qq('{"writer": "$name"}');
	my $append = sub {
		my ($expected) = @_;

		return sprintf
		  q(SELECT event_store.append('%s', '%s', '{}', %s, expected_version => %s)),
		  some_stream(), some_type(), $metadata, $expected // 'NULL';
	};
	my $batch = sub {
		my ($count) = @_;

		return sprintf
		  q(SELECT event_store.append_events('%s', (SELECT jsonb_agg(
			jsonb_build_object('type', '%s', 'data', n, 'metadata', %s::jsonb))
			FROM generate_series(1, %d) n))),
		  some_stream(), some_type(), $metadata, $count;
	};
	my $insert = sub {
		my ($count) = @_;

		return sprintf
		  q(INSERT INTO event_store.events (stream, type, data, metadata)
			SELECT '%s' || n %% 3, '%s', to_jsonb(n), %s FROM generate_series(1, %d) n),
		  some_stream(), some_type(), $metadata, $count;
	};
	# one of the above, and how many events it appends
	my $something = sub {
		my $count = 1 + int rand 20;
		my $kind = rand;

		return ($append->(), 1) if $kind < 0.6;
		return ($batch->($count), $count) if $kind < 0.85;
		return ($insert->($count), $count);
	};
	my $pause = sub { usleep(rand(rand() < 0.05 ? 300_000 : 10_000)) };

	# Runs commands up to the first that fails; counts the loss if so.
	my $all = sub {
		foreach my $sql (@_)
		{
			if (ref $sql)
			{
				$sql->();
				next;
			}
			$session->try($sql);
			next if $session->{sqlstate} eq '00000';
			my $sqlstate = $session->{sqlstate};

			die "$sqlstate: $session->{message}\nin: $sql"
			  unless $sqlstate =~ /^(VE001|40P01|40001)$/;
			$losses++;
			$session->try('ROLLBACK');
			return 0;
		}
		return 1;
	};

	while (time < $until)
	{
		my $kind = rand;
		my ($first, $first_count) = $something->();
		my ($second, $second_count) = $something->();

		if ($kind < 0.35)
		{
			$acknowledged += $first_count if $all->($first);
		}
		elsif ($kind < 0.45)
		{
			# a race that one of several may win
			my $stream = some_stream();
			my $version =
			  $session->run("SELECT event_store.stream_version('$stream')");

			$acknowledged++
			  if $all->(
				"SELECT event_store.append('$stream', 'raced', '{}', $metadata, $version)"
			  );
		}
		elsif ($kind < 0.5)
		{
			my %streams = map { some_stream() => 1 } 1 .. 4;
			my $appends = join ', ', map {
				qq({"stream": "$_", "events": [{"type": "together", "data": 1,
				"metadata": {"writer": "$name"}}]})
			} keys %streams;

			$acknowledged += keys %streams
			  if $all->("SELECT event_store.append_streams('[$appends]')");
		}
		elsif ($kind < 0.62)
		{
			my $level = ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')[ rand 3 ];

			$acknowledged += $first_count + $second_count
			  if $all->("BEGIN ISOLATION LEVEL $level",
				$first, $pause, $second, $pause, 'COMMIT');
		}
		elsif ($kind < 0.72)
		{
			$all->('BEGIN', $first, $pause, 'ROLLBACK');
		}
		elsif ($kind < 0.82)
		{
			# The first positions are drawn below a savepoint that is rolled
			# back: what announces the writer must outlive that.
			$acknowledged += $second_count
			  if $all->(
				'BEGIN', 'SAVEPOINT a', $first, 'ROLLBACK TO a', $pause,
				$second, $pause, 'COMMIT');
		}
		elsif ($kind < 0.9)
		{
			$acknowledged += $first_count
			  if $all->(
				'BEGIN', $first, 'SAVEPOINT a', 'SAVEPOINT b', $second,
				$pause, 'RELEASE b', 'ROLLBACK TO a', $pause, 'COMMIT');
		}
		else
		{
			my $id = "$name-" . ++$prepared;

			next unless $all->('BEGIN', $first, "PREPARE TRANSACTION '$id'");
			# ended by another session as often as by the one that made it
			my $ender = rand() < 0.5 ? $session : $other;
			$pause->();
			if (rand() < 0.6)
			{
				$ender->run("COMMIT PREPARED '$id'");
				$acknowledged += $first_count;
			}
			else
			{
				$ender->run("ROLLBACK PREPARED '$id'");
			}
		}
	}
	append_to_file("$dir/$name.acknowledged",
		join("\t", $name, $acknowledged, $losses) . "\n");
	return;
}

# ---------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------

# A writing transaction that has nothing to do with the store stays open all
# the time, with an old snapshot: it must not hold anybody back.
my $bystander = EventStoreTest::Session->new($node, 'postgres');
$bystander->run('BEGIN ISOLATION LEVEL REPEATABLE READ');
$bystander->run('INSERT INTO unrelated VALUES (1)');
$bystander->run('SELECT count(*) FROM event_store.events');

my $number = 0;
my %reader_pid = map {
	my $name = $_;
	my $n = ++$number;
	$name => start_worker(sub { srand($seed + $n); read_on($name) });
} sort keys %reader;
my @writer_pids = map {
	my $n = $_;
	start_worker(sub { srand($seed + 1000 + $n); write_on("writer$n") });
} 1 .. $writers;

is(wait_workers(@writer_pids), 0, 'writers met no error but lost races');
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'),
	'0', 'no prepared transaction is left');
append_to_file("$dir/stop", '');
foreach my $name (sort keys %reader)
{
	is(wait_workers($reader_pid{$name}), 0, "reader met no error: $name");
}
$bystander->run('COMMIT');

# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', "COPY seen FROM '$_'") foreach glob "$dir/*.seen";

# What is wrong with a reader's list: events of the table that it lacks, that
# it has more than once or that are not in the table, and steps that don't
# ascend.
sub faults
{
	my ($name, $after) = @_;
	my $this = $reader{$name};
	my $wanted =
	    $this->{category} ? "category = '$this->{category}'"
	  : $this->{type} ? "type = '$this->{type}'"
	  : 'true';

	$after //= 0;
	return $node->safe_psql('postgres', <<"EOT");
WITH wanted AS (SELECT position, event_id FROM event_store.events
		WHERE position > $after AND $wanted),
	had AS (SELECT position, event_id,
			lag(position) OVER (ORDER BY ordinal) AS earlier
		FROM seen WHERE reader = '$name')
SELECT (SELECT count(*) FROM (SELECT position, event_id FROM wanted
		EXCEPT SELECT position, event_id FROM had) d) AS missing,
	(SELECT count(*) FROM (SELECT position, event_id FROM had
		EXCEPT ALL SELECT position, event_id FROM wanted) d) AS too_many,
	(SELECT count(*) FROM had WHERE earlier >= position) AS not_ascending
EOT
}

foreach my $name (sort keys %reader)
{
	next if $reader{$name}->{skips};
	is(faults($name), '0|0|0',
		"list equals table (missing|too many|not ascending): $name");
}
note 'the naive reader under load (missing|too many|not ascending): ',
  faults('naive'), ' of ',
  $node->safe_psql('postgres', 'SELECT count(*) FROM event_store.events');

store_is_sound($node, 'postgres', 'after the torture');

# Nothing that was acknowledged is missing, nothing else is there.
$node->safe_psql('postgres',
	'CREATE TABLE acknowledged (writer text, events bigint, losses bigint)');
$node->safe_psql('postgres', "COPY acknowledged FROM '$_'")
  foreach glob "$dir/*.acknowledged";
query_is($node, 'postgres', 'events are those that were acknowledged', '', <<'EOT');
SELECT a.writer, a.events, count(e.position)
FROM acknowledged a LEFT JOIN event_store.events e ON e.metadata->>'writer' = a.writer
GROUP BY a.writer, a.events HAVING a.events <> count(e.position)
EOT
query_is($node, 'postgres', 'the settled mark has come to the end', 't', <<'EOT');
SELECT event_store.settled_position() = event_store.last_position()
EOT
note 'events, positions, segments, lost races: ', $node->safe_psql('postgres', <<'EOT');
SELECT (SELECT sum(events) FROM acknowledged), event_store.last_position(),
	(SELECT count(*) FROM event_store.segments()), (SELECT sum(losses) FROM acknowledged)
EOT

# ---------------------------------------------------------------------------
# The control: an interleaving in which a reader that doesn't ask for the mark
# has to skip, judged by the same comparison
# ---------------------------------------------------------------------------

{
	my $slow = EventStoreTest::Session->new($node, 'postgres');
	my $start = $node->safe_psql('postgres', 'SELECT event_store.last_position()');

	$node->safe_psql('postgres', 'TRUNCATE seen');
	my %at = (naive => $start, 'read committed' => $start);
	my %ordinal;
	my $look = sub {
		my $session = EventStoreTest::Session->new($node, 'postgres');

		foreach my $name (sort keys %at)
		{
			foreach ($reader{$name}->{poll}->($session, $at{$name}))
			{
				my ($position, $id) = split /\|/;

				$session->run(
					sprintf q(INSERT INTO seen VALUES ('%s', %d, %s, '%s')),
					$name, ++$ordinal{$name}, $position, $id);
				$at{$name} = $position;
			}
		}
	};

	$slow->run('BEGIN');
	$slow->run("SELECT event_store.append('slow-1', 'moved', '{}')");
	$node->safe_psql('postgres',
		"SELECT event_store.append('quick-1', 'moved', '{}')");
	$look->();
	$slow->run('COMMIT');
	$look->();

	is(faults('naive', $start), '1|0|0', 'the comparison catches a naive reader');
	is(faults('read committed', $start),
		'0|0|0', 'where one that reads to the mark is well');
}

$node->stop;
done_testing();
