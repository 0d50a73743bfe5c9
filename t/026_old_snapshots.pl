# Reads by old snapshots, while streams, segments, names and notes go on.
#
# Writers append to hot streams and to new ones, with new types and categories,
# beside segments of 16 positions. In transactions of each isolation level, most
# of them with a snapshot that grows old, and with appends and savepoints of
# their own, every function that reads must answer as plain SQL on the view does
# in the same transaction:
#
# - reads of a stream, by id, by correlation, and what there is to know of
#   streams: exactly, in READ COMMITTED too, where one statement asks both;
# - reads to the mark, forward: a prefix of it, which ends where the mark was, or
#   at an event that the snapshot does not show but a fresh one does;
#   backward: all of it but for what lies above the mark;
# - cursors: as at the time of DECLARE, whatever happens before they are read.
#
# The view shows each event that the table has once, by whatever plan.
#
# EVENT_STORE_SEED gives the calls, EVENT_STORE_SNAPSHOT_SECONDS how long.

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
my $seconds = $ENV{EVENT_STORE_SNAPSHOT_SECONDS} // 20;

srand($seed);
note "seed $seed (EVENT_STORE_SEED), $seconds s (EVENT_STORE_SNAPSHOT_SECONDS)";

my $dir = work_dir();
my $node = new_node('snapshots');
create_store($node, 'postgres', 16);
$node->safe_psql('postgres', <<'EOT');
-- categories, types and sources too: the first use of one makes others wait for the end of the transaction
SELECT event_store.append_events(c || '-' || s, '[{"type": "t1", "data": 1, "source": "s0"}, {"type": "t2", "data": 2, "source": "s1"}, {"type": "t3", "data": 3, "source": "s2"}]')
FROM unnest('{a,b,c}'::text[]) c, generate_series(1, 3) s;
EOT

sub pick { return $_[ rand @_ ] }

sub hex_digits { return join '', map { sprintf '%x', rand 16 } 1 .. $_[0] }

# ids that rise, and ids that don't
sub some_id
{
	return rand() < 0.5
	  ? sprintf('%08x-%04x-7%s-8%s-%s', time / 65.536, rand 65536, hex_digits(3), hex_digits(3), hex_digits(12))
	  : join('-', hex_digits(8), hex_digits(4), '4' . hex_digits(3), '8' . hex_digits(3), hex_digits(12));
}

# An event as JSON.
sub some_event
{
	my ($type) = @_;
	my $event = qq({"type": "$type", "data": @{[ int rand 100 ]});

	$event .= qq(, "event_id": "@{[ some_id() ]}") if rand() < 0.4;
	$event .= qq(, "correlation_id": "c@{[ int rand 8 ]}") if rand() < 0.5;
	$event .= qq(, "source": "s@{[ int rand 3 ]}") if rand() < 0.3;
	$event .= sprintf ', "occurred_at": "2020-01-01 00:%02d"', rand 60 if rand() < 0.3;
	return "$event}";
}

sub append_call
{
	my ($stream, @types) = @_;
	my $count = pick(1, 1, 1, 2, 5, 20);

	return "SELECT last_version FROM event_store.append_events('$stream', '["
	  . join(', ', map { some_event(pick(@types)) } 1 .. $count) . "]')";
}

# ---------------------------------------------------------------------------
# Writers
# ---------------------------------------------------------------------------

sub writer
{
	my ($n) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');
	my $made = 0;

	srand($seed + $n);
	until (-e "$dir/stop")
	{
		my $fresh = "w${n}x" . int($made / 4);
		my $stream = pick(map({ 'a-' . $_ } 1 .. 3), 'b-1', 'c-2', 'a-new' . $made, 'b-' . $fresh, "$fresh-1", $fresh);

		$made++;
		$session->run('BEGIN');
		$session->try(append_call($stream, qw(t1 t2 t3), pick('t1', "u$fresh")))
		  foreach 1 .. pick(1, 1, 2);
		die "$session->{sqlstate}: $session->{message}"
		  unless $session->{sqlstate} =~ /^(00000|40P01|25P02)$/;
		usleep(pick(0, 0, rand 300_000));
		$session->try(rand() < 0.15 ? 'ROLLBACK' : 'COMMIT');
		# ever more slowly: hundreds of segments are nothing that is tested here
		usleep(rand(80_000) * (1 + $session->run('SELECT event_store.last_position()') / 400));
	}
	$session->quit;
	return;
}

my @writers = map { my $n = $_; start_worker(sub { writer($n) }) } 1 .. 3;

# ---------------------------------------------------------------------------
# Questions: a call, and plain SQL that gives the same list
# ---------------------------------------------------------------------------

my $fresh = EventStoreTest::Session->new($node, 'postgres');
my $slow = EventStoreTest::Session->new($node, 'postgres');
my $session = EventStoreTest::Session->new($node, 'postgres');

# Events of the view, by the snapshot of the transaction, and by fresh ones.
my @columns = qw(stream category type position event_id occurred_at recorded_at);
my @known;

sub look_around
{
	my ($by) = @_;

	@known = () if @known > 500;
	foreach ($by->run("SELECT concat_ws('|', @{[ join ', ', @columns ]}) FROM event_store.events ORDER BY random() LIMIT 100"))
	{
		my %event;

		@event{@columns} = split /\|/;
		push @known, \%event;
	}
	return;
}

sub some_value { return pick(@known)->{ $_[0] } }

# a stream that goes on for several segments after the snapshot
my $long = 'none-1';

sub some_stream
{
	return pick($long, $long, 'a-1', 'a-2', 'a-3', 'b-1', 'none-1', some_value('stream'), some_value('stream'));
}

sub some_type { return pick('t1', 't2', 'none', some_value('type')) }

sub exact_question
{
	my ($kind) = @_;

	$kind //= pick(qw(stream stream stream stream last find trace version info streams state load));
	my $limit = pick('NULL', 'NULL', 0, 1, 3, 20);
	my $stream = some_stream();

	if ($kind eq 'stream')
	{
		my ($from, $until) = (pick(1, 2, 2, 3, 5, 10 + int rand 40), pick('NULL', 'NULL', 1, 2, 5, 10 + int rand 40));
		my ($backward, $direction) = @{ pick([ 'false', 'ASC' ], [ 'true', 'DESC' ]) };
		my $at = pick('NULL', 'NULL', "'2020-01-01 00:30'", "'" . some_value('occurred_at') . "'");

		return (
			"SELECT position FROM event_store.read_stream('$stream', $from, $limit, $backward, $until, $at)",
			"SELECT position FROM event_store.events WHERE stream = '$stream' AND version >= $from
			AND version <= coalesce($until, 2147483647) AND ($at IS NULL OR occurred_at <= $at)
			ORDER BY version $direction LIMIT $limit");
	}
	if ($kind eq 'last')
	{
		my $type = pick('NULL', "'@{[ some_type() ]}'");

		return ("SELECT position FROM event_store.last_event('$stream', $type)",
			"SELECT position FROM event_store.events WHERE stream = '$stream' AND ($type IS NULL OR type = $type)
			ORDER BY version DESC LIMIT 1");
	}
	if ($kind eq 'find')
	{
		my $id = some_value('event_id');
		my $of = pick('NULL', "'$stream'");

		return ("SELECT position FROM event_store.find_event('$id', $of) ORDER BY 1",
			"SELECT position FROM event_store.events WHERE event_id = '$id' AND ($of IS NULL OR stream = $of) ORDER BY 1");
	}
	if ($kind eq 'trace')
	{
		my $id = 'c' . int rand 9;

		return ("SELECT position FROM event_store.trace('$id', $limit)",
			"SELECT position FROM event_store.events WHERE correlation_id = '$id' ORDER BY position LIMIT $limit");
	}
	if ($kind eq 'version')
	{
		return ("SELECT event_store.stream_version('$stream')",
			"SELECT coalesce(max(version), 0) FROM event_store.events WHERE stream = '$stream'");
	}
	if ($kind eq 'state')
	{
		my $version = pick('NULL', 1, 5, 20);

		return ("SELECT event_store.state_at('$stream', 'count', version => $version)",
			"SELECT to_jsonb(count(*)) FROM event_store.events WHERE stream = '$stream'
			AND version <= coalesce($version, 2147483647)");
	}
	if ($kind eq 'load')
	{
		my $after = 1 + int rand 20;
		my $saved = $session->run("SELECT EXISTS (SELECT FROM event_store.read_stream('$stream', $after, 1, until_version => $after))");

		$session->run("SELECT event_store.save_snapshot('$stream', $after, '{}')") if $saved eq 't';
		return ("SELECT version FROM event_store.load_stream('$stream')",
			"SELECT version FROM event_store.events WHERE stream = '$stream'
			AND version >= (SELECT coalesce(max(version), 1) FROM event_store.snapshots WHERE stream = '$stream' AND fold IS NULL AND schema_version = 1
				AND version <= (SELECT max(version) FROM event_store.events WHERE stream = '$stream'))
			ORDER BY version");
	}
	my ($category, $after) = (pick('NULL', q('a'), q('b'), "'@{[ some_value('category') ]}'"), pick('NULL', q('a-2'), q('b')));
	my $columns = 'row(stream, category, version, first_position, last_position, last_recorded_at)';
	my $streams = "SELECT $columns FROM (
		SELECT stream, category, max(version) AS version, min(position) AS first_position, max(position) AS last_position, max(recorded_at) AS last_recorded_at
		FROM event_store.events GROUP BY stream, category) s";

	return ("SELECT $columns FROM event_store.stream_info('$stream')", "$streams WHERE stream = '$stream'")
	  if $kind eq 'info';
	return ("SELECT $columns FROM event_store.streams($category, $after, $limit)",
		"$streams WHERE ($category IS NULL OR category = $category)
		AND ($after IS NULL OR stream > $after COLLATE \"C\") ORDER BY stream COLLATE \"C\" LIMIT $limit");
}

# A read to the mark: the call, the condition of plain SQL, whether it goes
# backward, and its limit.
sub settled_question
{
	my $kind = pick(qw(category all since));
	my $limit = pick('NULL', 'NULL', 1, 3, 20);
	my $after = pick(0, 0, 1, 17, some_value('position'));
	my $backward = $kind ne 'since' && rand() < 0.4;
	my $way = $backward ? 'true' : 'false';
	my $bound = !$backward ? "position > $after" : $after ? "position < $after" : 'true';
	my $types = pick('NULL::text[]', "'{t1}'::text[]", "'{t1,t3}'::text[]", "'{@{[ some_type() ]}}'::text[]");
	my $categories = pick('NULL::text[]', "'{a,c}'::text[]", "'{@{[ some_value('category') ]}}'::text[]");
	my $filter = "($types IS NULL OR type = ANY ($types))";
	my $of = "($categories IS NULL OR category = ANY ($categories))";

	if ($kind eq 'category')
	{
		my $category = pick('a', 'b', some_value('category'));

		return ("read_category('$category', $after, $limit, $types, $way)",
			"category = '$category' AND $bound AND $filter", $backward, $limit);
	}
	return ("read_all($after, $limit, $categories, $types, $way)",
		"$of AND $bound AND $filter", $backward, $limit)
	  if $kind eq 'all';

	my $time = pick('-infinity', some_value('recorded_at'));
	return ("events_since('$time', $limit, $categories, $types)",
		"recorded_at >= '$time' AND $of AND $filter", 0, $limit);
}

my (@mismatches, %asked, %outcome);

sub mismatch { push @mismatches, join "\n", @_ }

sub ask_exactly
{
	my ($repeatable, @kind) = @_;
	my ($call, $sql) = exact_question(@kind);
	my ($of_store, $of_sql);

	# in READ COMMITTED a plan may be older than the statement's snapshot, and
	# lack a segment that was made in between
	for my $try (1 .. ($repeatable ? 1 : 3))
	{
		($of_store, $of_sql) = split /\|/, scalar $session->run(
		"SELECT replace(array_to_string(ARRAY($call)::text[], ','), '|', '/'), replace(array_to_string(ARRAY($sql)::text[], ','), '|', '/')"), -1;
		last if $of_store eq $of_sql;
	}

	$asked{ $call =~ /event_store\.(\w+)/ ? $1 : '' }++;
	mismatch($call, difference($of_store, $of_sql)) if $of_store ne $of_sql;
	return;
}

# Two lists without the beginning and the end that they share.
sub difference
{
	my ($a, $b) = @_;

	while ($a =~ /^(\(.*?\)|\d+),/ && substr($b, 0, length $&) eq $&)
	{
		$a = substr $a, length $&;
		$b = substr $b, length $&;
	}
	while ($a =~ /,(\([^()]*\)|\d+)$/ && length $b >= length $& && substr($b, -length $&) eq $&)
	{
		substr $a, -length($&), length($&), '';
		substr $b, -length($&), length($&), '';
	}
	return ("function: $a", "SQL:      $b");
}

sub ask_settled
{
	my ($call, $condition, $backward, $limit) = @_ ? @_ : settled_question();
	my $mark = $session->run('SELECT event_store.settled_position()');
	my @read = $session->run("SELECT position FROM event_store.$call");
	my @shown = $session->run("SELECT position FROM event_store.events WHERE $condition ORDER BY position " . ($backward ? 'DESC' : 'ASC'));
	my @expected = @shown;

	$asked{ $call =~ /^(\w+)/ ? $1 . ($backward ? ' backward' : '') : '' }++;
	if ($backward)
	{
		# what lies above the mark, which may have moved on since
		shift @expected while @expected && $expected[0] > $mark && (!@read || $expected[0] != $read[0]);
	}
	splice @expected, $limit if $limit ne 'NULL' && @expected > $limit;
	if (!$backward && @read < @expected && $expected[@read] <= $mark)
	{
		# the end is an event that the snapshot does not show
		my $next = $expected[@read];
		my $last = @read ? $read[-1] : 0;
		my ($hidden) = $fresh->run("SELECT min(position) FROM event_store.events
			WHERE $condition AND position > $last AND position < $next");

		mismatch("$call ends before $next, mark $mark, for no reason") if $hidden eq '';
		$outcome{'ended at a hidden event'}++;
	}
	splice @expected, scalar @read if !$backward && @read < @expected;
	mismatch($call, "mark $mark", "function: @read", "SQL:      @expected") if "@read" ne "@expected";
	return;
}

# Each event of the table once in the view, whatever the plan.
sub ask_view
{
	my @off = grep { rand() < 0.5 } qw(enable_hashjoin enable_mergejoin enable_nestloop enable_indexscan enable_seqscan);

	$session->run('SAVEPOINT plan');
	$session->run("SET LOCAL $_ = off") foreach @off;
	my ($in_table, $rows, $positions, $by_name) = split /\|/, scalar $session->run(<<'EOT');
SELECT (SELECT count(*) FROM event_store.event), count(*), count(DISTINCT position),
	(SELECT count(*) FROM event_store.events WHERE stream LIKE '%-%') + (SELECT count(*) FROM event_store.events WHERE stream NOT LIKE '%-%')
FROM event_store.events
EOT
	$session->run('ROLLBACK TO plan');
	$asked{view}++;
	mismatch("the view shows $rows rows, by name $by_name, $positions positions of $in_table, without @off")
	  if $in_table != $rows || $rows != $positions || $rows != $by_name;
	return;
}

my $cursors = 0;

# Returns what to do with the cursor later: it must give what was there.
sub declare_cursor
{
	my ($call, $sql) = exact_question();
	my $name = 'c' . ++$cursors;
	my @expected = $session->run($sql);
	my @got;

	$session->run("DECLARE $name CURSOR FOR $call");
	@got = $session->run("FETCH @{[ 1 + int rand 3 ]} FROM $name") if rand() < 0.5;
	$asked{cursor}++;
	return sub {
		push @got, $session->run("FETCH ALL FROM $name");
		mismatch("cursor for $call", "function: @got", "SQL:      @expected") if "@got" ne "@expected";
	};
}

# An append of the transaction itself, to a stream that its snapshot shows or
# not. Of names that are younger than the snapshot the view knows nothing.
sub append_ourselves
{
	my ($repeatable) = @_;
	my ($stream) = map { $_->{stream} } pick(grep { $_->{category} =~ /^[abc]$/ } @known);

	$stream = pick('a-1', 'a-2', $stream, $stream, "a-mine$cursors", "mine$cursors-1");
	$session->run('SAVEPOINT append');
	$session->try(append_call($stream, qw(t1 t2 t3), "mine$cursors"));
	$outcome{ $session->{sqlstate} }++;
	if ($session->{sqlstate} ne '00000')
	{
		mismatch($session->{message}) unless $session->{sqlstate} =~ /^(40001|40P01)$/;
		$session->run('ROLLBACK TO append');
		return;
	}
	$session->run(rand() < 0.2 ? 'ROLLBACK TO append' : 'RELEASE append');
	ask_view() if $repeatable;
	ask_exactly($repeatable, 'streams');
	return;
}

# Others append to a stream that the snapshot shows, for several segments.
sub lengthen
{
	($long) = map { $_->{stream} } pick(@known);
	$fresh->run("SELECT last_version FROM event_store.append_events('$long', (
		SELECT jsonb_agg(jsonb_build_object('type', 't2', 'data', n)) FROM generate_series(1, 50) n))");
	ask_exactly(1, 'stream') foreach 1 .. 3;
	ask_exactly(1, pick('last', 'version', 'info', 'load', 'state'));
	return;
}

my $until = time + $seconds;
my $transactions = 0;
my $lengthened = 0;

while (time < $until && @mismatches < 5)
{
	my $level = pick('READ COMMITTED', 'REPEATABLE READ', 'REPEATABLE READ', 'SERIALIZABLE');
	my $repeatable = $level ne 'READ COMMITTED';
	my @cursors;

	# in flight at the time of the snapshot, behind it something that is not
	my $in_flight = $transactions++ % 3 == 0;
	if ($in_flight)
	{
		# a segment that it made itself would be nobody else's before it has ended
		$fresh->run('SELECT event_store.prepare_segments()');
		$slow->run('BEGIN');
		$slow->run(append_call('a-slow', 't1'));
		$fresh->run(append_call('a-quick', 't1', 't2'));
	}
	$session->run("BEGIN ISOLATION LEVEL $level");
	look_around($session);
	$slow->run('COMMIT') if $in_flight;
	ask_settled('read_all(0, NULL)', 'true', 0, 'NULL') if $in_flight && $repeatable;
	my $count = 3 + int rand 15;
	lengthen() if $repeatable && rand() < 0.4 && $lengthened++ < 15;
	foreach (1 .. $count)
	{
		my $what = rand;

		if ($what < 0.15) { append_ourselves($repeatable) }
		elsif ($what < 0.55) { ask_exactly($repeatable) }
		elsif ($what < 0.57) { look_around($fresh) }
		elsif (!$repeatable) { usleep(5_000) }
		elsif ($what < 0.6) { usleep(rand 60_000) }
		elsif ($what < 0.8) { ask_settled() }
		elsif ($what < 0.88) { ask_view() }
		else { push @cursors, declare_cursor() }
	}
	$_->() foreach @cursors;
	$session->try(rand() < 0.3 ? 'ROLLBACK' : 'COMMIT');
	mismatch($session->{message}) if $session->{sqlstate} !~ /^(00000|40001)$/;
}
append_to_file("$dir/stop", '');
is(wait_workers(@writers), 0, 'the writers ended well');

is(scalar @mismatches, 0, "functions and plain SQL agree, seed $seed")
  or diag join "\n\n", map { substr $_, 0, 3000 } @mismatches;
note "$transactions transactions; ", join ', ', map { "$_ $asked{$_}" } sort keys %asked;
note 'outcomes: ', join ', ', map { "$_ $outcome{$_}" } sort keys %outcome;
cmp_ok($outcome{'00000'} // 0, '>', 0, 'the readers appended, too');
cmp_ok($outcome{'ended at a hidden event'} // 0, '>', 0, 'reads ended at events that the snapshot did not show');
query_is($node, 'postgres', 'many segments were filled', 't', 'SELECT count(*) > 20 FROM event_store.segments()');
store_is_sound($node, 'postgres', 'at the end');

$session->quit;
$_->quit foreach $fresh, $slow;
$node->stop;
done_testing();
