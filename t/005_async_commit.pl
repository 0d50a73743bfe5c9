# What was delivered stays, although commits are asynchronous.
#
# With synchronous_commit = off a crash takes back the last transactions. That
# must not happen to an event that a reader outside was given: its position
# could be drawn again for another event, which that reader would skip. So a
# read has the WAL flushed before it hands out events.
#
# The server here flushes WAL by itself as rarely as it can be told to, so that
# whoever does not ask for a flush is caught: the control reads the view by
# plain SQL, and loses what it was given.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $seed = $ENV{EVENT_STORE_SEED} // int time;
my $dir = work_dir();

note "seed $seed (EVENT_STORE_SEED)";

my $node = new_node('async', conf => <<'EOT');
synchronous_commit = off
wal_writer_delay = 10s
wal_writer_flush_after = 1GB
wal_buffers = 64MB
checkpoint_timeout = 1h
autovacuum = off
EOT
create_store($node, 'postgres', 64);
$node->safe_psql('postgres', 'CREATE TABLE seen (position bigint, event_id uuid)');

# An append whose commit is not flushed, and the end of its WAL. The WAL writer
# may come by at any time, if rarely: then once more.
my $serial = 0;

sub append_unflushed
{
	foreach (1 .. 20)
	{
		my $id = sprintf '00000000-0000-0000-0000-%012d', ++$serial;
		my ($committed, $flushed) = split /\|/, $node->safe_psql('postgres', <<"EOT");
SELECT event_store.append('async-1', 'happened', '{}', event_id => '$id',
	correlation_id => '$id') \\g /dev/null
SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()
EOT
		# what ends with a page ends behind the header of the next, which need not be flushed
		return ($id, $committed)
		  if lsn_value($flushed) < lsn_value($committed) && lsn_value($committed) % 8192 > 40;
	}
	die 'WAL is flushed at every commit: this test cannot test anything';
}

sub lsn_value
{
	my ($lsn) = @_;
	my ($high, $low) = split m{/}, $lsn;

	return hex($high) * 2**32 + hex($low);
}

# Whether WAL up to there is flushed once the query has run.
sub flushed_after
{
	my ($lsn, $sql) = @_;
	my $flushed =
	  $node->safe_psql('postgres',
		"$sql \\g /dev/null\nSELECT pg_current_wal_flush_lsn()");

	return lsn_value($flushed) >= lsn_value($lsn);
}

# ---------------------------------------------------------------------------
# Each function that hands out events
# ---------------------------------------------------------------------------

foreach my $call (
	'read_all(0, NULL)',
	'read_all(0, 1, backward => true)',
	q(read_category('async')),
	q(read_stream('async-1')),
	q(read_stream('async-1', backward => true, max_count => 1)),
	q(last_event('async-1')),
	q(find_event('ID')),
	q(find_event('ID', 'async-1')),
	q(trace('ID')),
	q(events_since('-infinity', NULL)))
{
	my ($id, $committed) = append_unflushed();
	my $sql = "SELECT * FROM event_store.$call" =~ s/ID/$id/r;

	ok(flushed_after($committed, $sql), "a flush comes before: $call");
}

# VACUUM may freeze an event before its commit is flushed. That it no longer
# shows whose it is does not make it durable.
{
	my $known = EventStoreTest::Session->new($node, 'postgres');
	my $frozen = 0;

	$known->run('SELECT count(*) FROM event_store.read_all()');
	foreach (1 .. 5)
	{
		my (undef, $committed) = append_unflushed();
		my $flushed = $node->safe_psql('postgres',
			"VACUUM (FREEZE) event_store.event;\nSELECT pg_current_wal_flush_lsn()");

		next if lsn_value($flushed) >= lsn_value($committed);
		$frozen = 1;
		$known->run('SELECT count(*) FROM event_store.read_all(0, NULL)');
		cmp_ok(lsn_value($known->run('SELECT pg_current_wal_flush_lsn()')),
			'>=', lsn_value($committed), 'a flush comes before a frozen event');
		last;
	}
	ok($frozen, 'an event was frozen before its commit was flushed');
}

# A read that hands out nothing has nothing to flush, nor has the view: where
# the effect is in the same database, none is wanted.
{
	my $kept = 0;
	foreach (1 .. 5)
	{
		my (undef, $committed) = append_unflushed();
		$kept++
		  unless flushed_after($committed,
			'SELECT max(position) FROM event_store.events');
	}
	cmp_ok($kept, '>', 0, 'the view does not flush: a flush is seen for what it is');
}

# The end of WAL may be the end of a page, where the next record would begin
# behind the next page's header: who asks for a flush up to there asks for too
# much.
{
	$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION fill_page() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	page_header int := 24;
	record_overhead int := 54;
	place int;
BEGIN
	FOR i IN 1 .. 100 LOOP
		place := (pg_current_wal_insert_lsn() - '0/0') % 8192;
		IF place = page_header THEN
			RETURN true;
		END IF;
		-- a message whose record ends with the page, or to the next page first
		PERFORM pg_logical_emit_message(false, '', repeat('x',
			CASE WHEN 8192 - place > 500 THEN 8192 - place - record_overhead ELSE 1000 END));
	END LOOP;
	RETURN false;
END $$;
EOT
	my $known = EventStoreTest::Session->new($node, 'postgres');
	$known->run('SELECT count(*) FROM event_store.read_all()');
	foreach my $who ('a session that has read before', 'a new session')
	{
		append_unflushed();
		is($known->run('SELECT fill_page()'), 't', "WAL ends with a page, for $who");
		my $session =
		  $who eq 'a new session'
		  ? EventStoreTest::Session->new($node, 'postgres') : $known;
		$session->try(q(SELECT count(*) FROM event_store.read_stream('async-1')));
		is($session->{sqlstate}, '00000', "a read succeeds, by $who")
		  or diag $session->{message};
	}
}

# ---------------------------------------------------------------------------
# The control: plain SQL gives away what a crash takes back
# ---------------------------------------------------------------------------

{
	my $lost = 0;

	foreach (1 .. 5)
	{
		my ($id) = append_unflushed();
		my $shown = $node->safe_psql('postgres',
			"SELECT count(*) FROM event_store.events WHERE event_id = '$id'");

		die 'an event is not shown after its commit' if $shown ne '1';
		$node->stop('immediate');
		$node->start;
		$lost = $node->safe_psql('postgres',
			"SELECT count(*) = 0 FROM event_store.events WHERE event_id = '$id'") eq 't';
		last if $lost;
	}
	ok($lost, 'a crash takes back an event that plain SQL has shown');
	store_is_sound($node, 'postgres', 'after the control');
}

# ---------------------------------------------------------------------------
# The test: crashes under load, and readers that write down what they got
# ---------------------------------------------------------------------------

sub write_on
{
	my ($name) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');

	until ($session->{lost})
	{
		my $stream = "async-$name-" . int rand 4;

		$session->try("SELECT event_store.append('$stream', 'happened', '{}')");
		die "$session->{sqlstate}: $session->{message}"
		  if !$session->{lost} && $session->{sqlstate} ne '00000';
		usleep(rand 3_000);
	}
	return;
}

# Goes on from the last position that any round has given out, as a consumer
# with a durable cursor would.
sub read_on
{
	my ($file, $position) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');

	open my $log, '>>', $file or die "$file: $!";
	$log->autoflush(1);
	until ($session->{lost})
	{
		my @rows = $session->try(
			"SELECT position, event_id FROM event_store.read_all($position, 20)");

		last if $session->{lost};
		die "$session->{sqlstate}: $session->{message}"
		  if $session->{sqlstate} ne '00000';
		foreach (@rows)
		{
			($position) = /^(\d+)/;
			print $log s/\|/\t/r, "\n";
		}
		usleep(1_000);
	}
	return;
}

my $file = "$dir/seen";
my $cursor = 0;

append_to_file($file, '');
foreach my $round (1 .. 4)
{
	my $reader = start_worker(sub { read_on($file, $cursor) });
	my @writers = map {
		my $n = $_;
		start_worker(sub { srand($seed + 10 * $round + $n); write_on($n) });
	} 1 .. 4;
	my $size = -s $file;

	# some 150 events more
	ok(wait_until(sub { -s $file > $size + 6_000 }, $reader, @writers), "round $round: events are read");
	$node->stop('immediate');
	is(wait_workers($reader, @writers), 0, "round $round: no other error");
	$node->start;

	$node->safe_psql('postgres', "TRUNCATE seen; COPY seen FROM '$file'");
	query_is($node, 'postgres', "round $round: all that was given out is there", '', <<'EOT');
SELECT s.* FROM seen s LEFT JOIN event_store.events e USING (position, event_id)
WHERE e.position IS NULL
EOT
	query_is($node, 'postgres', "round $round: nothing was skipped", '', <<'EOT');
SELECT e.position FROM event_store.events e LEFT JOIN seen s USING (position)
WHERE s.position IS NULL AND e.position < (SELECT max(position) FROM seen)
EOT
	query_is($node, 'postgres', "round $round: nothing came twice", '0', <<'EOT');
SELECT count(*) - count(DISTINCT position) FROM seen
EOT
	store_is_sound($node, 'postgres', "round $round");
	$cursor = $node->safe_psql('postgres', 'SELECT max(position) FROM seen');
	my $next = $node->safe_psql('postgres',
		q(SELECT (event_store.append('async-9', 'happened', '{}')).first_position));
	cmp_ok($next, '>', $cursor, "round $round: positions go on above the reader's");
}

$node->stop;
done_testing();
