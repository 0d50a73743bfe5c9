# Reading on a streaming standby, and its promotion.
#
# A standby has no locks that tell which positions are in flight. Where the
# positions after a reader's are dense it goes on; at a gap it trusts the mark
# that the primary publishes. It may see events late, but it skips none, not
# across the promotion either.

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

my $primary = new_node('primary', allows_streaming => 1);
create_store($primary, 'postgres', 64);
$primary->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'copy', has_streaming => 1);
$standby->start;

sub catch_up { return $primary->wait_for_catchup($standby, 'replay') }

sub append
{
	my ($stream, $count) = @_;

	return $primary->safe_psql('postgres', <<"EOT");
SELECT last_position FROM event_store.append_events('$stream', (SELECT jsonb_agg(
	jsonb_build_object('type', 'happened', 'data', n)) FROM generate_series(1, $count) n))
EOT
}

# What a reader on the standby that has read up to a position receives.
sub positions_after
{
	my ($position) = @_;

	return $standby->safe_psql('postgres', <<"EOT") =~ s/\n/,/gr;
SELECT position FROM event_store.read_all($position, NULL)
EOT
}

# ---------------------------------------------------------------------------
# What a standby can do
# ---------------------------------------------------------------------------

append('first-1', 10);
append('first-2', 10);
catch_up();

query_is($standby, 'postgres', 'dense positions are read at once', '20',
	'SELECT count(*) FROM event_store.read_all()');
$primary->safe_psql('postgres', 'SELECT event_store.publish_settled_position()');
catch_up();
query_is($standby, 'postgres', 'by category up to the published mark', '20',
	q(SELECT count(*) FROM event_store.read_category('first')));
query_is($standby, 'postgres', 'look-ups work', '10|10|10|2|10|20|20', <<'EOT');
SELECT (SELECT count(*) FROM event_store.read_stream('first-1')),
	event_store.stream_version('first-2'),
	(SELECT version FROM event_store.last_event('first-1')),
	(SELECT count(*) FROM event_store.streams()),
	(SELECT version FROM event_store.stream_info('first-2')),
	(SELECT count(*) FROM event_store.events),
	(SELECT count(*) FROM event_store.events_since('-infinity'))
EOT
query_is($standby, 'postgres', 'an id is found', '1', <<'EOT');
SELECT count(f) FROM event_store.last_event('first-1') l, event_store.find_event(l.event_id) f
EOT

# snapshots are used there, and none is saved
$primary->safe_psql('postgres', <<'EOT');
SELECT event_store.save_snapshot('first-1', 7, '"seven"'),
	event_store.save_snapshot('first-1', 6, '1006', fold => 'count'),
	event_store.set_snapshot_policy('count', every_events => 2);
EOT
catch_up();
query_is($standby, 'postgres', 'a stream is loaded from its snapshot', '4|$snapshot|"seven"', <<'EOT');
SELECT count(*), min(type), min(data::text) FILTER (WHERE type = '$snapshot') FROM event_store.load_stream('first-1')
EOT
query_is($standby, 'postgres', 'a state is folded from its snapshot', '1010|5|10|1', <<'EOT');
SELECT event_store.state_at('first-1', 'count'), event_store.state_at('first-1', 'count', 5),
	event_store.state_at('first-1', 'count', at => now(), schema_version => 2),
	(SELECT count(*) FROM event_store.snapshots WHERE fold = 'count')
EOT

foreach my $sql (
	q(SELECT event_store.save_snapshot('first-1', 1, '1')),
	q(SELECT event_store.drop_snapshots()),
	q(SELECT event_store.take_snapshots()),
	q(SELECT event_store.set_snapshot_policy('count')),
	q(SELECT event_store.drop_snapshot_policy('count')),
	q(SELECT event_store.append('first-1', 'no', '{}')),
	q(SELECT event_store.append_events('first-1', '[{"type": "no", "data": 1}]')),
	q(SELECT event_store.append_streams('[{"stream": "a", "events": [{"type": "no", "data": 1}]}]')),
	q(INSERT INTO event_store.events (stream, type, data) VALUES ('first-1', 'no', '1')),
	q(SELECT event_store.publish_settled_position()),
	q(SELECT event_store.prepare_segments()),
	q(SELECT event_store.set_segment_size(128)))
{
	is(sqlstate_of($standby, 'postgres', $sql), '25006', "refused: $sql");
}
my ($status, $out, $err) = $standby->psql('postgres',
	q(SELECT event_store.append('first-1', 'no', '{}')));
like($err, qr/ERROR:  cannot execute .*append.* during recovery/,
	'the refusal says why');

# ---------------------------------------------------------------------------
# Gaps
# ---------------------------------------------------------------------------

# A writer that has drawn its positions and is still at work, and one that
# drew later and is done.
my $start = append('gap-0', 1);
my $slow = EventStoreTest::Session->new($primary, 'postgres');
$slow->run('BEGIN');
my $early = $slow->run(
	"SELECT first_position FROM event_store.append('gap-1', 'slow', '{}')");
my $late = append('gap-2', 1);

cmp_ok($early, '<', $late, 'positions are drawn in order of the calls');
catch_up();
is(positions_after($start), '', 'an event behind one in flight is not given out');
cmp_ok(
	$primary->safe_psql(
		'postgres', 'SELECT event_store.publish_settled_position()'),
	'<', $early, 'the primary publishes no more than is settled');
catch_up();
is(positions_after($start), '', 'nor is it after that');
$slow->run('COMMIT');
catch_up();
is(positions_after($start), "$early,$late", 'both come once the first is in');

# The same with a transaction that is rolled back: the gap stays.
$slow->run('BEGIN');
$early = $slow->run(
	"SELECT first_position FROM event_store.append('gap-1', 'slow', '{}')");
$late = append('gap-2', 1);
$slow->run('ROLLBACK');
is( $primary->safe_psql(
		'postgres', 'SELECT event_store.publish_settled_position()'),
	$late,
	'the primary publishes the mark');
catch_up();
is(positions_after($early - 1), $late, 'the published mark leads over the gap');
query_is($standby, 'postgres', 'the standby knows the mark', 't',
	"SELECT event_store.settled_position() >= $late");

# ... and with one that is prepared.
$slow->run('BEGIN');
$early = $slow->run(
	"SELECT first_position FROM event_store.append('gap-3', 'prepared', '{}')");
$slow->run("PREPARE TRANSACTION 'slow'");
my $behind = append('gap-2', 1);
$primary->safe_psql('postgres', 'SELECT event_store.publish_settled_position()');
catch_up();
is(positions_after($late), '', 'a prepared transaction holds the standby, too');
$primary->safe_psql('postgres', "COMMIT PREPARED 'slow'");
catch_up();
is(positions_after($late), "$early,$behind", 'until it ends');

# Appends publish by themselves, without anybody calling the function.
$slow->run('BEGIN');
$slow->run("SELECT event_store.append('gap-1', 'slow', '{}')");
$late = append('gap-2', 1);
$slow->run('ROLLBACK');
ok( wait_until(
		sub {
			append('beat-1', 1);
			return $standby->safe_psql('postgres',
				"SELECT event_store.settled_position() >= $late") eq 't';
		}),
	'further appends publish the mark');
catch_up();
like(positions_after($late - 1), qr/^$late,/, 'so that the standby goes on');

# ---------------------------------------------------------------------------
# Under load
# ---------------------------------------------------------------------------

sub write_some
{
	my ($name) = @_;
	my $session = EventStoreTest::Session->new($primary, 'postgres');

	foreach (1 .. 150)
	{
		my $stream = "load-$name-" . int rand 3;
		my $count = 1 + int rand 5;

		$session->run('BEGIN');
		$session->run(
			"SELECT event_store.append_events('$stream', (SELECT jsonb_agg(
			jsonb_build_object('type', 'happened', 'data', n))
			FROM generate_series(1, $count) n))");
		usleep(rand 8_000);
		$session->run(rand() < 0.3 ? 'ROLLBACK' : 'COMMIT');
	}
	return;
}

sub read_on
{
	my ($file, $isolation, $function) = @_;
	my $session = EventStoreTest::Session->new($standby, 'postgres');
	my $position = 0;

	open my $log, '>', $file or die "$file: $!";
	while (1)
	{
		my $stop_seen = -e "$dir/stop";

		$session->run("BEGIN ISOLATION LEVEL $isolation");
		$session->run('SELECT 1');
		usleep(rand 5_000);
		my @rows = $session->run(
			"SELECT position, event_id FROM event_store.$function$position, 40)");
		$session->run('COMMIT');
		foreach (@rows)
		{
			($position) = /^(\d+)/;
			print $log s/\|/\t/r, "\n";
		}
		last if $stop_seen && !@rows;
	}
	close $log;
	return;
}

my %reader = (
	read_committed => [ 'READ COMMITTED', 'read_all(' ],
	repeatable_read => [ 'REPEATABLE READ', 'read_all(' ],
	category => [ 'READ COMMITTED', q[read_category('load', ] ]);
my @readers = map {
	my $name = $_;
	start_worker(
		sub { srand($seed); read_on("$dir/$name", @{ $reader{$name} }) });
} sort keys %reader;
my @writers = map {
	my $n = $_;
	start_worker(sub { srand($seed + $n); write_some($n) });
} 1 .. 6;

is(wait_workers(@writers), 0, 'writers met no error');
is( $primary->safe_psql('postgres', 'SELECT event_store.publish_settled_position()'),
	$primary->safe_psql('postgres', 'SELECT event_store.last_position()'),
	'with nothing in flight the mark is at the end');
catch_up();
append_to_file("$dir/stop", '');
is(wait_workers(@readers), 0, 'readers met no error');
foreach my $name (sort keys %reader)
{
	my $where = $name eq 'category' ? q(WHERE category = 'load') : '';

	my @wanted = split /\n/, $primary->safe_psql('postgres',
		"SELECT position, event_id FROM event_store.events $where ORDER BY position");
	my @had = map { s/\t/|/r } split /\n/, slurp_file("$dir/$name");
	my ($n) = grep { ($wanted[$_] // '') ne ($had[$_] // '') }
	  0 .. ($#wanted > $#had ? $#wanted : $#had);

	ok(!defined $n, "the standby's reader has all events, in order: $name")
	  or diag scalar @wanted, ' wanted, ', scalar @had, ' had, first difference: ',
	  $wanted[$n] // 'end', ' and ', $had[$n] // 'end';
}
is(checksum($standby, 'postgres'),
	checksum($primary, 'postgres'), 'the standby has the same events');
store_is_sound($standby, 'postgres', 'on the standby');

# ---------------------------------------------------------------------------
# Promotion
# ---------------------------------------------------------------------------

$slow->run('BEGIN');
$slow->run("SELECT event_store.append('orphan-1', 'prepared', '{}')");
$slow->run("PREPARE TRANSACTION 'orphan'");
my $lost = EventStoreTest::Session->new($primary, 'postgres');
$lost->run('BEGIN');
$lost->run("SELECT event_store.append('lost-1', 'never committed', '{}')");
my $last = append('gap-2', 1);
my $cursor = $standby->safe_psql('postgres',
	'SELECT max(position) FROM event_store.read_all(0, NULL)');
catch_up();

$primary->stop('immediate');
$standby->promote;

my $new = $standby->safe_psql('postgres', <<'EOT');
SELECT first_position FROM event_store.append('gap-2', 'promoted', '{}',
	expected_version => event_store.stream_version('gap-2'))
EOT
cmp_ok($new, '>', $last, 'positions go on above all that were given out');
is(positions_after($cursor), '',
	'a prepared transaction holds the mark after the promotion');
$standby->safe_psql('postgres', "COMMIT PREPARED 'orphan'");
query_is($standby, 'postgres', 'its end sets it free', 'prepared,happened,promoted', <<"EOT");
SELECT string_agg(type, ',' ORDER BY position) FROM event_store.read_all($cursor)
EOT
query_is($standby, 'postgres', 'what was not committed is not there', '0',
	q(SELECT event_store.stream_version('lost-1')));
$standby->safe_psql('postgres', <<'EOT');
SELECT event_store.append('after-' || n % 3, 'more', '{}') FROM generate_series(1, 200) n
EOT
query_is($standby, 'postgres', 'appends go on over segments', '200', <<'EOT');
SELECT count(*) FROM event_store.read_category('after')
EOT
store_is_sound($standby, 'postgres', 'after the promotion');

$standby->stop;
done_testing();
