# Subscriptions on a standby, and after its promotion.
#
# On a standby they can be looked at, and not worked with. Consumers of each
# kind work on the primary until it is stopped at once, in the middle of
# anything, with leases out, retries and dead letters. What they have
# acknowledged is on the standby, for commits wait for it. After its promotion
# none of that comes again, all else does, in order within each stream; what was
# out under a lease comes when the lease is over, and not before.
#
# EVENT_STORE_SEED is what the decisions follow from.

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
my $dir = work_dir();

note "seed $seed (EVENT_STORE_SEED)";
srand($seed);

my $primary = new_node('primary', allows_streaming => 1);
create_store($primary, 'postgres', 64);
$primary->backup('copy');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'copy', has_streaming => 1);
$standby->start;
$primary->append_conf('postgresql.conf', "synchronous_standby_names = '*'");
$primary->reload;
$primary->poll_query_until('postgres',
	q(SELECT sync_state = 'sync' FROM pg_stat_replication))
  or die 'the standby is not synchronous';

sub catch_up { return $primary->wait_for_catchup($standby, 'replay') }

# ---------------------------------------------------------------------------
# What a standby can do
# ---------------------------------------------------------------------------

# done: which acknowledgements counted, noted in the same transaction
$primary->safe_psql('postgres', <<'EOT');
CREATE TABLE done (n bigserial, subscription text, position bigint);
INSERT INTO event_store.events (stream, type, data)
SELECT 's-' || i % 7, 't', to_jsonb(i) FROM generate_series(1, 140) i;
SELECT event_store.create_subscription('direct', first_delay => '20 ms', max_attempts => 3);
SELECT event_store.create_subscription('leased', first_delay => '20 ms', max_attempts => 3);
SELECT event_store.create_subscription('group', slots => 4, first_delay => '20 ms', max_attempts => 3);
SELECT event_store.create_subscription('members', slots => 5, first_delay => '20 ms', max_attempts => 3);
SELECT event_store.create_subscription('work', mode => 'competing', first_delay => '20 ms', max_attempts => 3);
SELECT event_store.create_subscription('held', slots => 3, first_delay => '0', max_attempts => 3);
EOT

# One of each kind of rows: leases, retries, what waits, dead letters
$primary->safe_psql('postgres', <<'EOT');
CREATE FUNCTION note(_subscription text, _positions bigint[], _consumer text DEFAULT NULL) RETURNS bigint LANGUAGE sql AS $$
	WITH counted AS (INSERT INTO done (subscription, position)
		SELECT _subscription, p FROM (SELECT p FROM unnest(_positions) p ORDER BY p OFFSET 0) x
		WHERE event_store.ack(_subscription, ARRAY[p], _consumer) = 1 RETURNING position)
	SELECT count(*) FROM counted
$$;
SELECT count(*) FROM event_store.poll('held', 10, 'early', lease => '1 min');
SELECT count(*) FROM event_store.poll('held', 10, 'holder', lease => '1 min');
SELECT count(*) FROM event_store.poll('held', 20, 'early', lease => '1 min');
SELECT count(*) FROM event_store.poll('held', 20, 'holder', lease => '1 min');
DO $$ DECLARE _e record; _delay interval := '1 hour'; BEGIN
	-- one to try again and a dead letter, of two streams
	FOR _e IN SELECT DISTINCT ON (v.stream) b.consumer, v.position
		FROM event_store.subscription_batch b, unnest(b.positions, b.streams) v (position, stream)
		WHERE b.consumer = 'early' ORDER BY v.stream, v.position LIMIT 2
	LOOP
		PERFORM event_store.nack('held', _e.position, 'failed', _delay, _e.consumer);
		_delay := '0';
	END LOOP;
	PERFORM event_store.nack('held', _e.position, 'failed again', '0') FROM generate_series(1, 2);
END $$;
SELECT note('held', (SELECT array_agg(v) FROM event_store.subscription_batch b, unnest(b.positions) v
	WHERE b.consumer = 'early'), 'early');
SELECT event_store.publish_settled_position();
EOT
catch_up();

my $counters = <<'EOT';
SELECT name, mode, slots, checkpoint, positions_behind, open_events, done_ahead, acknowledged, queued, leased,
	oldest_leased_at, retries, waiting, dead_letters, failures, breaker, consumers
FROM event_store.subscriptions ORDER BY name
EOT
query_is($standby, 'postgres', 'the view subscriptions can be read',
	$primary->safe_psql('postgres', $counters), $counters);
query_is($standby, 'postgres', 'what is held has some of everything', 't|t|t|t', <<'EOT');
SELECT leased > 0, retries = 1, waiting > 0, dead_letters = 1 FROM event_store.subscriptions WHERE name = 'held'
EOT
foreach my $sql ('SELECT * FROM event_store.subscription_history ORDER BY at',
	q(SELECT * FROM event_store.dead_letters('held')),
	q(SELECT * FROM event_store.subscription_lag('held')))
{
	query_is($standby, 'postgres', "so can: $sql", $primary->safe_psql('postgres', $sql), $sql);
}
foreach my $call (q(poll('direct')), q(poll('group')), q(poll('work')),
	q(poll('leased', 1, 'c', lease => '1 s')), q(poll('direct', wait => '1 s')),
	q(ack('direct', '{1}')), q(ack_up_to('direct', 1)), q(nack('direct', 1, 'bad')),
	q(heartbeat('held', 'holder')), q(leave('held', 'holder')),
	q(replay_dead_letters('held')), q(discard_dead_letters('held', 'no use')),
	q(create_subscription('new')), q(alter_subscription('group', slots => 2)),
	q(pause_subscription('direct')), q(resume_subscription('direct')), q(reset_breaker('direct')),
	q(rewind_subscription('direct')), q(drop_subscription('direct')))
{
	is(sqlstate_of($standby, 'postgres', "SELECT event_store.$call"), '25006', "refused: $call");
}

# ---------------------------------------------------------------------------
# Work, to a sudden end
# ---------------------------------------------------------------------------

# Of the events that were delivered about such a part, of each stream the first
# ones.
sub some_of
{
	my ($rows, $part) = @_;
	my %stop;

	return grep {
		my ($position, $stream) = split /\|/;
		$stop{$stream} = 1 if rand() > $part;
		!$stop{$stream};
	} @$rows;
}

# Works until the server is gone. What was acknowledged, and the commit of which
# has returned, stands in a file.
sub work
{
	my ($n, $subscription, $leases) = @_;
	my $session = EventStoreTest::Session->new($primary, 'postgres');
	my $try = sub {
		my ($sql) = @_;

		return undef if $session->{lost};
		my @rows = $session->try($sql);
		die "$session->{sqlstate}: $session->{message}\n"
		  if $session->{sqlstate} =~ /^(XX|VE|23|40P01)/;
		return $session->{sqlstate} eq '00000' ? \@rows : undef;
	};
	my $life = 0;
	my $name = $leases ? "'c$n-$life'" : 'NULL';

	open my $log, '>>', "$dir/acked.$n" or die "acked.$n: $!";
	$log->autoflush(1);
	until ($session->{lost})
	{
		my $count = 1 + int rand 10;
		my $lease = $leases ? ", $name, lease => '" . (200 + int rand 800) . " ms'" : '';

		$try->('BEGIN') or next unless $leases;
		my $rows = $try->("SELECT position, stream FROM event_store.poll('$subscription', $count$lease)") or next;
		my @chosen = some_of($rows, 0.9);
		my %is_chosen = map { $_ => 1 } @chosen;

		usleep(rand 5_000);
		$try->('BEGIN') or next if $leases;
		if (@$rows > @chosen && rand() < 0.5)
		{
			# the first that is left has failed
			my ($position) = (grep { !$is_chosen{$_} } @$rows)[0] =~ /^(\d+)/;

			$try->("SELECT event_store.nack('$subscription', $position, 'failed', consumer => $name)") or next;
		}
		my @positions = map { /^(\d+)/ } @chosen;
		my $counted = [];
		if (@positions)
		{
			my $list = join ',', @positions;
			my $counts = $try->("SELECT note('$subscription', '{$list}', $name)") or next;

			die "$counts->[0] of (@positions), which this transaction has, counted\n"
			  if !$leases && $counts->[0] != @positions;
			$counted = $try->("SELECT position FROM done WHERE xmin = pg_current_xact_id()::xid") or next;
		}
		if (rand() < 0.1)
		{
			$try->('ROLLBACK');
			@chosen = ();
		}
		else
		{
			$try->('COMMIT') or next;
			print $log "$subscription|$_\n" foreach @$counted;
		}
		# what it has not done it gives back, or it goes, and comes as another
		if ($leases && @chosen < @$rows)
		{
			if (rand() < 0.8)
			{
				$try->("SELECT event_store.leave('$subscription', $name)");
			}
			else
			{
				$name = "'c$n-" . ++$life . q(');
			}
		}
		usleep(rand 10_000);
	}
	close $log;
	return;
}

sub append
{
	my ($n) = @_;
	my $session = EventStoreTest::Session->new($primary, 'postgres');

	until ($session->{lost})
	{
		my $stream = 's-' . int rand 7;
		my $count = 1 + int rand 3;

		$session->try('BEGIN');
		$session->try("INSERT INTO event_store.events (stream, type, data)
			SELECT '$stream', 't', to_jsonb(i) FROM generate_series(1, $count) i") unless $session->{lost};
		last if $session->{lost};
		$session->try(rand() < 0.1 ? 'ROLLBACK' : 'COMMIT');
		usleep(rand 30_000);
	}
	return;
}

my @kinds = ([ 'direct', 0 ], [ 'direct', 0 ], [ 'leased', 1 ], [ 'leased', 1 ],
	[ 'group', 0 ], [ 'group', 0 ], [ 'group', 0 ], [ 'members', 1 ], [ 'members', 1 ],
	[ 'members', 1 ], [ 'work', 1 ], [ 'work', 1 ], [ 'work', 0 ]);
my $n = 0;
my @workers = map {
	my ($subscription, $leases) = @$_;
	my $number = ++$n;
	start_worker(sub { srand($seed + $number); work($number, $subscription, $leases) });
} @kinds;
push @workers, map {
	my $number = 100 + $_;
	start_worker(sub { srand($seed + $number); append($number) });
} 1 .. 2;

# until each has done something, and for some time more; then with a lease
# that has some time to go
ok( $primary->poll_query_until('postgres', <<'EOT'), 'all subscriptions are worked on');
SELECT count(*) = 6 FROM (SELECT FROM done GROUP BY subscription HAVING count(*) >= 20) x
EOT
usleep(500_000 + rand 1_000_000);
$primary->safe_psql('postgres', <<'EOT');
SELECT event_store.leave('held', 'early');
SELECT count(*) FROM event_store.poll('held', 10, 'holder', lease => '4 s');
UPDATE event_store.subscription_heartbeat SET alive_until = now() + '4 s' WHERE consumer = 'holder';
UPDATE event_store.subscription_batch SET leased_until = now() + '4 s' WHERE consumer = 'holder';
EOT
$primary->stop('immediate');
is(wait_workers(@workers), 0, 'consumers and writers met no error');
$standby->promote;

# ---------------------------------------------------------------------------
# What comes
# ---------------------------------------------------------------------------

query_is($standby, 'postgres', 'commits no longer wait for a standby', '', 'SHOW synchronous_standby_names');
my @confirmed = map { split /\n/, slurp_file($_) } glob "$dir/acked.*";
append_to_file("$dir/confirmed", join '', map { s/\|/\t/r . "\n" } @confirmed);
chmod 0644, "$dir/confirmed";
$standby->safe_psql('postgres', <<"EOT");
CREATE TABLE confirmed (subscription text, position bigint);
COPY confirmed FROM '$dir/confirmed';
CREATE TABLE before AS SELECT * FROM done;
CREATE TABLE dead_before AS SELECT s.name AS subscription, f.position, f.attempts FROM event_store.subscription_failure f
	JOIN event_store.subscription s ON s.id = f.subscription_id WHERE f.dead;
CREATE TABLE delivered (n bigserial, subscription text, position bigint, stream text, attempt int,
	at timestamptz DEFAULT clock_timestamp());
-- which leases are out, and until when
CREATE TABLE leases AS SELECT s.name AS subscription, p AS position,
	b.leased_until AS until
FROM event_store.subscription_batch b JOIN event_store.subscription s ON s.id = b.subscription_id,
	unnest(b.positions) p WHERE b.consumer IS NOT NULL
UNION ALL SELECT s.name, b.position, b.leased_until
FROM event_store.subscription_failure b JOIN event_store.subscription s ON s.id = b.subscription_id
WHERE b.consumer IS NOT NULL;
EOT
note 'subscription|acknowledged|leased|retries|waiting|dead letters: ',
  $standby->safe_psql('postgres', <<'EOT') =~ s/\n/; /gr;
SELECT name, acknowledged, leased, retries, waiting, dead_letters FROM event_store.subscriptions ORDER BY name
EOT
cmp_ok(scalar @confirmed, '>', 100, 'many acknowledgements were confirmed');
query_is($standby, 'postgres', 'all that was confirmed is there', '0', <<'EOT');
SELECT count(*) FROM (SELECT subscription, position FROM confirmed EXCEPT ALL SELECT subscription, position FROM done) d
EOT
query_is($standby, 'postgres', 'counters agree with what was done', '', <<'EOT');
SELECT name, acknowledged, (SELECT count(*) FROM done WHERE subscription = name) FROM event_store.subscriptions
WHERE acknowledged <> (SELECT count(*) FROM done WHERE subscription = name)
	OR acknowledged + open_events <> (SELECT count(*) FROM event_store.events)
EOT
query_is($standby, 'postgres', 'the leases of one who held them are out', 't',
	q(SELECT count(*) > 0 FROM leases WHERE subscription = 'held'));

# appends go on, for each subscription
$standby->safe_psql('postgres', <<'EOT');
INSERT INTO event_store.events (stream, type, data)
SELECT 's-' || i % 7, 't', to_jsonb(i) FROM generate_series(1, 70) i;
EOT

# A healthy consumer, until all is done but dead letters and what is parked
# behind them.
sub drain
{
	my ($name) = @_;
	my $session = EventStoreTest::Session->new($standby, 'postgres');
	my $ended = time + $PostgreSQL::Test::Utils::timeout_default;
	my $leases = grep { $_->[0] eq $name && $_->[1] } @kinds;
	my $consumer = $leases || $name eq 'held' ? q('heir') : 'NULL';
	my $open;

	while (1)
	{
		my $how = $consumer eq 'NULL' ? '' : ", lease => '1 min'";

		$open = $session->run(<<"EOT");
SELECT l.open_events - (SELECT count(*) FROM event_store.subscription_failure f
	WHERE f.subscription_id = s.id AND (f.dead OR s.mode = 'ordered' AND EXISTS
		(SELECT FROM event_store.subscription_failure d
		WHERE d.subscription_id = s.id AND d.stream_id = f.stream_id AND d.dead AND d.position < f.position)))
	- (SELECT count(*) FROM event_store.subscription_failure f
	WHERE f.subscription_id = s.id AND s.name = 'held' AND NOT f.dead AND EXISTS
		(SELECT FROM event_store.subscription_failure d
		WHERE d.subscription_id = s.id AND d.stream_id = f.stream_id AND d.due > now() + '10 min' AND d.position <= f.position))
FROM event_store.subscription s, event_store.subscription_lag(s.name) l WHERE s.name = '$name'
EOT
		last if $open == 0 || time > $ended;
		$session->run('BEGIN');
		$session->run(<<"EOT");
INSERT INTO delivered (subscription, position, stream, attempt)
SELECT '$name', position, stream, attempt
FROM event_store.poll('$name', 30, $consumer, wait => '100 ms'$how)
EOT
		my $positions = $session->run(<<"EOT");
SELECT array_agg(position) FROM delivered WHERE subscription = '$name' AND xmin = pg_current_xact_id()::xid
EOT
		if ($positions)
		{
			my $had = 1 + $positions =~ tr/,//;
			my $counted = $session->run("SELECT note('$name', '$positions', $consumer)");

			die "$name: $counted of $had counted: $positions\n" if $counted != $had;
		}
		$session->run('COMMIT');
	}
	return $open;
}

my @all = ('held', 'direct', 'leased', 'group', 'members', 'work');

foreach my $name (@all)
{
	is(drain($name), 0, "$name: all is done but what is dead");
}
query_is($standby, 'postgres', 'nothing that was acknowledged comes again', '0', <<'EOT');
SELECT count(*) FROM delivered d JOIN before b USING (subscription, position)
EOT
query_is($standby, 'postgres', 'nothing comes twice', '0',
	'SELECT count(*) - count(DISTINCT (subscription, position)) FROM delivered');
query_is($standby, 'postgres', 'what was out under a lease comes when that is over', '0', <<'EOT');
SELECT count(*) FROM delivered d JOIN leases l USING (subscription, position) WHERE d.at < l.until
EOT
query_is($standby, 'postgres', 'as a further attempt', '0', <<'EOT');
SELECT count(*) FROM delivered d JOIN leases l USING (subscription, position) WHERE d.attempt < 2
EOT
query_is($standby, 'postgres', 'what was held has come, but for what is behind a failed one', 't', <<'EOT');
SELECT count(*) > 0 FROM delivered d JOIN leases l USING (subscription, position) WHERE subscription = 'held'
EOT
query_is($standby, 'postgres', 'dead letters are as they were', '0|0', <<'EOT');
SELECT count(*) FILTER (WHERE d.position IS NULL), count(*) FILTER (WHERE d.attempts <> b.attempts)
FROM dead_before b LEFT JOIN LATERAL event_store.dead_letters(b.subscription) d ON d.position = b.position
EOT

# dead letters and what is to be tried in an hour
foreach my $name (@all)
{
	$standby->safe_psql('postgres', <<"EOT");
SELECT event_store.replay_dead_letters('$name');
UPDATE event_store.subscription_failure SET due = now(), retry_at = now() WHERE due > now();
EOT
	is(drain($name), 0, "$name: all is done");
}
query_is($standby, 'postgres', 'each event was done once', '0|0', <<'EOT');
SELECT (SELECT count(*) FROM (SELECT s.name, e.position FROM event_store.subscription s, event_store.events e
		EXCEPT ALL SELECT subscription, position FROM done) d),
	(SELECT count(*) FROM (SELECT subscription, position FROM done
		EXCEPT ALL SELECT s.name, e.position FROM event_store.subscription s, event_store.events e) d)
EOT
query_is($standby, 'postgres', 'in order within each stream', '', <<'EOT');
SELECT subscription, stream, earlier, position FROM (
	SELECT d.subscription, e.stream, d.position, lag(d.position) OVER (PARTITION BY d.subscription, e.stream ORDER BY d.n) AS earlier
	FROM done d JOIN event_store.events e USING (position) WHERE d.subscription <> 'work') x
WHERE earlier > position LIMIT 5
EOT
query_is($standby, 'postgres', 'nothing is open, dealt out, leased, or has failed', '0|0|0', <<'EOT');
SELECT sum(open_events), (SELECT count(*) FROM event_store.subscription_batch),
	(SELECT count(*) FROM event_store.subscription_failure) FROM event_store.subscriptions
EOT
query_is($standby, 'postgres', 'a new one has a new id', '7',
	q(SELECT event_store.create_subscription('new') \g /dev/null
	SELECT count(DISTINCT id) FROM event_store.subscription));
store_is_sound($standby, 'postgres', 'after the promotion');

$standby->stop;
done_testing();
