# Projections: each event is applied once, whatever becomes of who refreshes.
#
# The oracle is what plain SQL computes from the log: refreshers beside
# appenders, a cancel and a crash in mid-batch, a dump; then the real logs, with
# the answers of another program (../shared/data, or where EVENT_STORE_DATA
# says; without them that part is skipped).
#
# EVENT_STORE_PROJECTION_SECONDS (default 5) is how long refreshers and
# appenders go on.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use IO::Uncompress::Gunzip qw($GunzipError);
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{EVENT_STORE_PROJECTION_SECONDS} // 5;
my $dir = work_dir();
my $node = new_node('projection', allows_streaming => 1);

create_store($node, 'postgres', 1024);
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE applied (projection text, position bigint);
CREATE TABLE total (stream text PRIMARY KEY, n bigint, sum numeric);
CREATE FUNCTION apply_event(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO applied VALUES ('event', e.position);
END $$;
CREATE FUNCTION chain(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS
$$SELECT to_jsonb(md5(coalesce(state #>> '{}', '') || e.version || e.data::text))$$;
SELECT event_store.create_projection('set', 'set', $$INSERT INTO applied SELECT 'set', position FROM new_events$$, batch_events => 50);
SELECT event_store.create_projection('event', 'event', 'apply_event', batch_events => 30);
SELECT event_store.create_projection('total', 'set', $$
	INSERT INTO total AS t SELECT stream, count(*), sum((data->>'n')::numeric) FROM new_events GROUP BY stream ORDER BY stream
	ON CONFLICT (stream) DO UPDATE SET n = t.n + excluded.n, sum = t.sum + excluded.sum$$);
SELECT event_store.create_projection('chain', 'fold', 'chain');
SELECT event_store.create_projection('chain inline', 'fold', 'chain', 'inline');
SELECT event_store.create_projection('key', 'fold', 'sum(n)', key => 'data->>''k''', batch_events => 70);
SELECT event_store.create_projection('key inline', 'fold', 'sum(n)', 'inline', key => 'data->>''k''');
EOT
my $async = 5;

# What contradicts the log, by projection.
my $oracle = <<'EOT';
SELECT p.name, 'applied' FROM (VALUES ('set'), ('event')) p (name)
WHERE EXISTS ((SELECT position FROM event_store.events EXCEPT ALL SELECT position FROM applied WHERE projection = p.name)
	UNION ALL (SELECT position FROM applied WHERE projection = p.name EXCEPT ALL SELECT position FROM event_store.events))
UNION ALL
SELECT 'total', stream FROM total t
FULL JOIN (SELECT stream, count(*) AS n, sum((data->>'n')::numeric) AS sum FROM event_store.events GROUP BY stream) e USING (stream)
WHERE (t.n, t.sum) IS DISTINCT FROM (e.n, e.sum)
UNION ALL
SELECT p.name, coalesce(s.key, r.key)
FROM (VALUES ('chain'), ('chain inline')) p (name)
CROSS JOIN LATERAL (SELECT * FROM event_store.projection_states WHERE projection = p.name) s
FULL JOIN (SELECT stream AS key, event_store.fold('chain', e ORDER BY version) AS state FROM event_store.events e GROUP BY stream) r ON r.key = s.key
WHERE s.state IS DISTINCT FROM r.state
UNION ALL
SELECT s.projection, coalesce(s.key, r.key)
FROM (SELECT * FROM event_store.projection_states WHERE projection ~ 'key') s
FULL JOIN (SELECT data->>'k' AS key, sum((data->>'n')::numeric) AS sum FROM event_store.events GROUP BY 1) r ON r.key = s.key
WHERE s.state::text IS DISTINCT FROM r.sum::text
UNION ALL
SELECT p.name, 'keys' FROM event_store.projections p
WHERE p.kind = 'fold' AND (SELECT count(*) FROM event_store.projection_states WHERE projection = p.name) <>
	(SELECT count(DISTINCT CASE WHEN p.key IS NULL THEN stream ELSE data->>'k' END) FROM event_store.events)
EOT

sub refresh_all
{
	my ($dbname) = @_;

	return $node->safe_psql($dbname, 'SELECT event_store.refresh_projections()');
}

sub is_right
{
	my ($when, $dbname) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	refresh_all($dbname // 'postgres');
	query_is($node, $dbname // 'postgres', "$when: all equals what the log says", '', $oracle);
	return query_is($node, $dbname // 'postgres', "$when: nothing is left, nothing has failed", '0|0',
		q(SELECT sum(open_events), count(*) FILTER (WHERE sql_state IS NOT NULL) FROM event_store.projections));
}

# ---------------------------------------------------------------------------
# Four refreshers beside three appenders
# ---------------------------------------------------------------------------

sub go_on
{
	my ($code) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');

	until (-e "$dir/stop")
	{
		$code->($session);
		die "$session->{sqlstate}: $session->{message}"
		  if $session->{sqlstate} !~ /^(00000|40001|40P01|57014)$/;
		$session->try('ROLLBACK') if $session->{sqlstate} ne '00000';
	}
	$session->quit;
	return;
}

my @names = ('set', 'event', 'total', 'chain', 'key');
my @workers = map {
	my $n = $_;
	start_worker(sub {
		srand($n);
		go_on(sub {
			my ($session) = @_;
			my $name = $names[ rand @names ];
			my $count = 1 + int rand 200;

			$session->try(rand() < 0.2 ? 'BEGIN ISOLATION LEVEL REPEATABLE READ' : 'BEGIN');
			$session->try(rand() < 0.3 ? 'SELECT event_store.refresh_projections()'
				: "SELECT event_store.refresh_projection('$name', $count)");
			usleep(rand 3_000);
			$session->try(rand() < 0.2 ? 'ROLLBACK' : 'COMMIT')
			  if $session->{sqlstate} eq '00000';
		});
	});
} 1 .. 4;
push @workers, map {
	my $n = $_;
	start_worker(sub {
		srand(100 + $n);
		go_on(sub {
			my ($session) = @_;
			my $stream = 'a-' . int rand 5;
			my $count = 1 + int rand 20;
			my $k = int rand 3;

			$session->try(rand() < 0.1 ? 'BEGIN ISOLATION LEVEL REPEATABLE READ' : 'BEGIN');
			$session->try("INSERT INTO event_store.events (stream, type, data)
				SELECT '$stream', 't', jsonb_build_object('n', i, 'k', 'k' || $k) FROM generate_series(1, $count) i");
			usleep(rand 3_000);
			$session->try(rand() < 0.1 ? 'ROLLBACK' : 'COMMIT')
			  if $session->{sqlstate} eq '00000';
			usleep(rand 5_000);
		});
	});
} 1 .. 3;
usleep(1_000_000 * $seconds);
append_to_file("$dir/stop", '');
is(wait_workers(@workers), 0, 'refreshers and appenders met no other error');
is_right('after refreshers at once');
note $node->safe_psql('postgres', 'SELECT count(*) FROM event_store.events');

# ---------------------------------------------------------------------------
# Waiting, cancels, crashes
# ---------------------------------------------------------------------------

my $waiter = EventStoreTest::Session->new($node, 'postgres');
my $position = $node->safe_psql('postgres', q(SELECT (event_store.append('a-1', 't', '{"n": 1, "k": "k0"}')).last_position));
$waiter->send("SELECT event_store.wait_for_projection('set', $position, '60 s')");
usleep(200_000);
my $start = time;
refresh_all('postgres');
is(($waiter->result)[0], 't', 'who waits for a projection goes on when it has passed');
ok(time - $start < 20, 'before its time is over');

# a handler that waits in the middle of its batch
$node->safe_psql('postgres', <<'EOT');
CREATE FUNCTION slow(p bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('regress.slow', true) = 'on' THEN PERFORM pg_sleep(60); END IF;
	RETURN p;
END $$;
SELECT event_store.alter_projection('set', handler => $$INSERT INTO applied SELECT 'set', CASE WHEN row_number() OVER () > 20 THEN slow(position) ELSE position END FROM new_events$$);
INSERT INTO event_store.events (stream, type, data) SELECT 'a-' || i % 5, 't', jsonb_build_object('n', i, 'k', 'k' || i % 3) FROM generate_series(1, 2000) i;
EOT

# Leaves a session in mid-batch, the earlier batches of its transaction done.
sub in_mid_batch
{
	my ($more) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');

	$session->run('BEGIN');
	$session->run($more) if $more;
	$session->run(q(SELECT event_store.refresh_projection('total', 100)));
	$session->run(q(SELECT event_store.refresh_projection('chain', 100)));
	$session->run(q(SELECT event_store.refresh_projection('set', 50)));
	$session->run(q(SET regress.slow = 'on'));
	$session->send(q(SELECT event_store.refresh_projection('set')));
	ok($node->poll_query_until('postgres', "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $session->{backend}"),
		'a refresh is in mid-batch');
	return $session;
}

my $before = $node->safe_psql('postgres', 'SELECT string_agg(name || checkpoint, \',\' ORDER BY name) FROM event_store.projections');
my $session = in_mid_batch();
query_is($node, 'postgres', 'another refresher waits for nothing, and does nothing', '',
	q(SELECT event_store.refresh_projection('set')));
$node->safe_psql('postgres', "SELECT pg_cancel_backend($session->{backend})");
$session->result;
is($session->{sqlstate}, '57014', 'it is cancelled');
$session->run('ROLLBACK');
query_is($node, 'postgres', 'nothing has been done', $before,
	'SELECT string_agg(name || checkpoint, \',\' ORDER BY name) FROM event_store.projections');
query_is($node, 'postgres', 'nor has it failed', '0', 'SELECT count(*) FROM event_store.projections WHERE sql_state IS NOT NULL');
$session->quit;

# a savepoint keeps what was done before
$session = in_mid_batch(q(SELECT event_store.refresh_projection('key', 100)));
$session->{buffer} = '';
$node->safe_psql('postgres', "SELECT pg_terminate_backend($session->{backend})");
$session->result;
is($session->{sqlstate}, 'lost', 'a refresher is ended') or note $session->{sqlstate};
query_is($node, 'postgres', 'nothing has been done', $before,
	'SELECT string_agg(name || checkpoint, \',\' ORDER BY name) FROM event_store.projections');

$session = in_mid_batch();
$node->stop('immediate');
$session->result;
$node->start;
query_is($node, 'postgres', 'after a crash: nothing has been done', $before,
	'SELECT string_agg(name || checkpoint, \',\' ORDER BY name) FROM event_store.projections');
is_right('after a cancel, the end of a backend, and a crash');

# ---------------------------------------------------------------------------
# Dump and restore
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', <<'EOT');
SET client_min_messages = error;
CREATE FUNCTION picky(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF e.position % 1000 = 7 THEN RAISE EXCEPTION 'picky' USING DETAIL = 'so it is'; END IF;
	RETURN coalesce(state, '0');
END $$;
SELECT event_store.create_projection('skips', 'fold', 'picky', key => '1', on_error => 'skip', max_attempts => 1);
SELECT event_store.create_projection('stopped', 'fold', 'picky', key => '1', max_attempts => 1);
SELECT event_store.create_projection('retries', 'fold', 'picky', key => '1', first_delay => '1 hour');
SELECT event_store.create_projection('paused', 'fold', 'count', categories => '{a}', types => '{t,"odd, \" type"}');
SELECT event_store.refresh_projection(name, CASE WHEN name = 'skips' THEN NULL ELSE 500 END) FROM event_store.projections WHERE name IN ('skips', 'stopped', 'retries', 'paused');
SELECT event_store.pause_projection('paused');
SELECT event_store.append('a-1', 't', '{"n": 5, "k": "k1"}') FROM generate_series(1, 10);
SELECT event_store.refresh_projection('key', 3);
EOT
my %state = (
	'the view' => <<'EOT',
SELECT name, kind, mode, handler, key, categories, types, status, checkpoint, positions_behind, open_events, applied, applied_at,
	failed_position, attempts, sql_state, message, detail, context, first_failed_at, failed_at, next_attempt_at, skipped, on_error, max_attempts, owner, created_at
FROM event_store.projections ORDER BY name
EOT
	'states' => 'SELECT * FROM event_store.projection_states ORDER BY projection, key',
	'skipped events' => 'SELECT * FROM event_store.projection_failures ORDER BY projection, position',
);
my %dumped = map { $_ => $node->safe_psql('postgres', $state{$_}) } keys %state;
ok($dumped{'skipped events'} && $dumped{states}, 'there are some of each');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/dump", 'postgres' ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', "$dir/dump" ], 'pg_restore');
query_is($node, 'restored', "$_: as before the dump", $dumped{$_}, $state{$_}) foreach sort keys %state;
$node->safe_psql('restored', <<'EOT');
SELECT event_store.drop_projection(name) FROM event_store.projections WHERE name IN ('skips', 'stopped', 'retries', 'paused');
SELECT event_store.append('a-2', 't', '{"n": 5, "k": "k1"}') FROM generate_series(1, 10);
EOT
is_right('restored', 'restored');
query_is($node, 'restored', 'a new one has a new id', '1',
	q(SELECT event_store.create_projection('new', 'fold', 'count') \g /dev/null
	SELECT event_store.refresh_projection('new') \g /dev/null
	SELECT count(*) FROM event_store.projection WHERE id = (SELECT max(id) FROM event_store.projection) AND name = 'new'));

# ---------------------------------------------------------------------------
# A standby
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', q(SELECT event_store.create_projection('live', 'fold', 'sum(n)', 'live')));
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
my $states = q(SELECT event_store.projection_state('key', 'k1'), event_store.projection_state('key inline', 'k1'), event_store.projection_state('live', 'a-1'));
query_is($standby, 'postgres', 'a standby: states can be read', $node->safe_psql('postgres', $states), $states);
query_is($standby, 'postgres', "a standby: $_ as on the primary", $node->safe_psql('postgres', $state{$_}), $state{$_})
  foreach 'states', 'skipped events';
query_is($standby, 'postgres', 'a standby: the view can be read', $node->safe_psql('postgres', 'SELECT count(*) FROM event_store.projections'),
	'SELECT count(*) FROM event_store.projections');
query_is($standby, 'postgres', 'a standby: what has passed is known', 't|f', <<'EOT');
SELECT event_store.wait_for_projection('set', 1), event_store.wait_for_projection('paused', 100000000, '100 ms')
EOT
is(sqlstate_of($standby, 'postgres', "SELECT event_store.$_"), '25006', "a standby: $_ is refused")
  foreach q(refresh_projection('set')), 'refresh_projections()', q(create_projection('n', 'fold', 'count')), q(pause_projection('set'));
$standby->stop;
$node->stop;

# ---------------------------------------------------------------------------
# The real logs
# ---------------------------------------------------------------------------

my $data = $ENV{EVENT_STORE_DATA} // "$FindBin::RealBin/../../shared/data";

SKIP:
{
	skip "no real logs in $data", 1 unless -e "$data/expected.json";

	my $expected = decode_json(slurp_file("$data/expected.json"));
	my $logs = new_node('logs');
	my $sql = sub { return $logs->safe_psql('postgres', $_[0]); };

	create_store($logs, 'postgres', 16384);
	foreach my $log (sort keys %$expected)
	{
		my $in = IO::Uncompress::Gunzip->new("$data/$expected->{$log}->{file}") or die $GunzipError;
		my $script = "$dir/$log.sql";

		open my $out, '>', $script or die $!;
		print $out "CREATE TABLE line_$log (n bigserial, line jsonb);\nCOPY line_$log (line) FROM STDIN;\n";
		while (my $line = <$in>)
		{
			$line =~ s/\\/\\\\/g;
			print $out $line;
		}
		print $out "\\.\n";
		close $out;
		command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $script, '-d', $logs->connstr('postgres') ], "$log: lines");
	}

	# Four questions, in one order of rows. Of each log: what a handler of each kind
	# keeps for it, and the query that gives the answer from that.
	$sql->(<<'EOT');
CREATE TABLE answer (projection text, question text, key text, n bigint, sum numeric DEFAULT 0, PRIMARY KEY (projection, question, key));
CREATE FUNCTION month(e timestamptz) RETURNS text LANGUAGE sql STABLE AS $$SELECT to_char(e AT TIME ZONE 'UTC', 'YYYY-MM')$$;
CREATE FUNCTION add(projection text, question text, key text, n bigint, amount numeric) RETURNS void LANGUAGE sql AS $$
	INSERT INTO answer AS a VALUES (projection, question, key, n, amount)
	ON CONFLICT ON CONSTRAINT answer_pkey DO UPDATE SET n = a.n + excluded.n, sum = a.sum + excluded.sum
$$;
CREATE TABLE last_type (projection text, at text, stream text, type text, PRIMARY KEY (projection, at, stream));
CREATE FUNCTION handle(projection text, e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	_amount numeric := coalesce(e.data->>'Amount', e.data->>'RequestedAmount')::numeric;
BEGIN
	IF e.type = 'Payment Handled' THEN PERFORM add(projection, 'paid', month(e.occurred_at), 1, _amount); END IF;
	IF e.type LIKE '%REJECTED%' THEN PERFORM add(projection, 'rejected', e.metadata->>'role', 1, 0); END IF;
	INSERT INTO last_type AS l SELECT projection, at, e.stream, e.type FROM unnest(ARRAY['now', 'then']) at WHERE at = 'now' OR e.occurred_at < '2018-01-01Z'
	ON CONFLICT ON CONSTRAINT last_type_pkey DO UPDATE SET type = excluded.type;
END $$;
CREATE FUNCTION event_async(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM handle('event async', e); END$$;
CREATE FUNCTION event_inline(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$BEGIN PERFORM handle('event inline', e); END$$;
CREATE FUNCTION paid_fold(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('n', coalesce((state->>'n')::int, 0) + 1, 'sum', coalesce((state->>'sum')::numeric, 0) + coalesce(e.data->>'Amount', e.data->>'RequestedAmount')::numeric)
$$;
CREATE FUNCTION type_fold(state jsonb, e event_store.recorded_event) RETURNS jsonb LANGUAGE sql AS $$SELECT to_jsonb(e.type)$$;
EOT

	foreach my $log (sort keys %$expected)
	{
		my $answers = $expected->{$log};
		my $category = $sql->("SELECT split_part(line->>'stream', '-', 1) FROM line_$log LIMIT 1");
		my $amount = $answers->{amount_field};
		my $types = '{' . join(',', map { qq("$_") } grep { /REJECTED/ } keys %{ $answers->{types} }) . '}';
		my $set = sub {
			my ($name) = @_;

			return <<"EOT";
INSERT INTO answer AS a SELECT '$name', 'paid', month(occurred_at), count(*), sum((data->>'$amount')::numeric) FROM new_events WHERE type = 'Payment Handled' GROUP BY 3
	ON CONFLICT ON CONSTRAINT answer_pkey DO UPDATE SET n = a.n + excluded.n, sum = a.sum + excluded.sum;
INSERT INTO answer AS a SELECT '$name', 'rejected', metadata->>'role', count(*) FROM new_events WHERE type LIKE '%REJECTED%' GROUP BY 3
	ON CONFLICT ON CONSTRAINT answer_pkey DO UPDATE SET n = a.n + excluded.n;
INSERT INTO last_type AS l SELECT DISTINCT ON (at, stream) '$name', at, stream, type FROM new_events, unnest(ARRAY['now', 'then']) at WHERE at = 'now' OR occurred_at < '2018-01-01Z' ORDER BY at, stream, version DESC
	ON CONFLICT ON CONSTRAINT last_type_pkey DO UPDATE SET type = excluded.type
EOT
		};

		$sql->('TRUNCATE answer, last_type');
		foreach my $mode ('async', 'inline')
		{
			$sql->("SELECT event_store.create_projection('set $mode', 'set', \$\$" . $set->("set $mode") . "\$\$, '$mode', categories => '{$category}', batch_events => 3000)");
			$sql->("SELECT event_store.create_projection('event $mode', 'event', 'event_$mode', '$mode', categories => '{$category}')");
		}
		foreach my $mode ('async', 'inline', 'live')
		{
			$sql->(<<"EOT");
SELECT event_store.create_projection('paid $mode', 'fold', 'paid_fold', '$mode', categories => '{$category}', types => '{"Payment Handled"}', key => 'month(occurred_at)'),
	event_store.create_projection('paid sum $mode', 'fold', 'sum($amount)', '$mode', categories => '{$category}', types => '{"Payment Handled"}', key => 'month(occurred_at)'),
	event_store.create_projection('handled $mode', 'fold', 'count', '$mode', categories => '{$category}', types => '{"Payment Handled"}'),
	event_store.create_projection('there then $mode', 'fold', 'count', '$mode', categories => '{$category}', key => 'CASE WHEN occurred_at < ''2018-01-01Z'' THEN ''all'' END'),
	event_store.create_projection('paid count $mode', 'fold', 'count', '$mode', categories => '{$category}', types => '{"Payment Handled"}', key => 'month(occurred_at)'),
	event_store.create_projection('rejected $mode', 'fold', 'count', '$mode', categories => '{$category}', types => '$types', key => 'metadata->>''role'''),
	event_store.create_projection('type $mode', 'fold', 'type_fold', '$mode', categories => '{$category}'),
	event_store.create_projection('then $mode', 'fold', 'type_fold', '$mode', categories => '{$category}', key => 'CASE WHEN occurred_at < ''2018-01-01Z'' THEN stream END')
EOT
		}
		$sql->(<<"EOT");
CREATE MATERIALIZED VIEW paid_view AS SELECT month(occurred_at) AS key, count(*) AS n, sum((data->>'$amount')::numeric) AS sum FROM event_store.events WHERE category = '$category' AND type = 'Payment Handled' GROUP BY 1;
CREATE UNIQUE INDEX ON paid_view (key);
CREATE MATERIALIZED VIEW rejected_view AS SELECT metadata->>'role' AS key, count(*) AS n FROM event_store.events WHERE category = '$category' AND type LIKE '%REJECTED%' GROUP BY 1;
CREATE MATERIALIZED VIEW type_view AS SELECT DISTINCT ON (at, stream) at, stream, type FROM event_store.events, unnest(ARRAY['now', 'then']) at WHERE category = '$category' AND (at = 'now' OR occurred_at < '2018-01-01Z') ORDER BY at, stream, version DESC;
SELECT event_store.create_projection(name, 'matview', name, categories => '{$category}') FROM unnest(ARRAY['paid_view', 'rejected_view', 'type_view']) name;
-- in some pieces, refreshed between them in others
INSERT INTO event_store.events (stream, type, occurred_at, data, metadata)
	SELECT line->>'stream', line->>'type', (line->>'occurred_at')::timestamptz, line->'data', line->'metadata' FROM line_$log WHERE n <= 20000 ORDER BY n;
SELECT event_store.refresh_projection(name, 7777) FROM event_store.projections WHERE mode = 'async';
INSERT INTO event_store.events (stream, type, occurred_at, data, metadata)
	SELECT line->>'stream', line->>'type', (line->>'occurred_at')::timestamptz, line->'data', line->'metadata' FROM line_$log WHERE n > 20000 ORDER BY n;
SELECT event_store.refresh_projections();
EOT
		query_is($logs, 'postgres', "$log: nothing is left, nothing has failed", '0|0',
			q(SELECT sum(open_events), count(*) FILTER (WHERE sql_state IS NOT NULL OR skipped > 0) FROM event_store.projections));

		my $wanted = sub {
			my ($hash) = @_;

			return join "\n", map { "$_|$hash->{$_}" } sort keys %$hash;
		};
		my $paid = $answers->{payments_handled_per_month};
		my $paid_sums = join "\n", map { "$_|$paid->{$_}->{count}|" . $paid->{$_}->{sum} =~ s/\.?0+\z//r } sort keys %$paid;
		my $last = $answers->{last_event_type_per_stream};
		my $paid_streams = $last->{'Payment Handled'};
		my $open = $answers->{streams} - $paid_streams;
		my $then = $answers->{latest_type_per_stream_before}->{'2018-01-01T00:00:00Z'}->{types};

		# where each keeps what
		my %kept = (
			'the materialized views' => {
				paid => 'SELECT key, n, sum FROM paid_view',
				rejected => 'SELECT key, n FROM rejected_view',
				now => q(SELECT type FROM type_view WHERE at = 'now'),
				then => q(SELECT type FROM type_view WHERE at = 'then') });
		foreach my $name (map { ("set $_", "event $_") } 'async', 'inline')
		{
			$kept{$name} = {
				paid => "SELECT key, n, sum FROM answer WHERE projection = '$name' AND question = 'paid'",
				rejected => "SELECT key, n FROM answer WHERE projection = '$name' AND question = 'rejected'",
				now => "SELECT type FROM last_type WHERE projection = '$name' AND at = 'now'",
				then => "SELECT type FROM last_type WHERE projection = '$name' AND at = 'then'" };
		}
		foreach my $mode ('async', 'inline')
		{
			my $states = sub { return "event_store.projection_states AS s WHERE s.projection = '$_[0] $mode'"; };

			$kept{"folds $mode"} = {
				paid => "SELECT key, (state->>'n')::int, (state->>'sum')::numeric FROM " . $states->('paid'),
				rejected => 'SELECT key, state::text FROM ' . $states->('rejected'),
				now => q(SELECT state #>> '{}' AS type FROM ) . $states->('type'),
				then => q(SELECT state #>> '{}' AS type FROM ) . $states->('then') };
			$kept{"built-in folds $mode"} = {
				paid => "SELECT s.key, c.state::int, s.state::text::numeric FROM event_store.projection_states AS c, " .
				  $states->('paid sum') . " AND c.projection = 'paid count $mode' AND c.key = s.key" };
		}
		$kept{'folds live'} = {
			paid => q(SELECT key, (state->>'n')::int, (state->>'sum')::numeric FROM (SELECT key, event_store.projection_state('paid live', key) AS state FROM paid_view) l),
			rejected => q(SELECT key, event_store.projection_state('rejected live', key)::text FROM rejected_view),
			# all states at once
			then => q(SELECT state #>> '{}' AS type FROM event_store.projection_as_of('then live', 'infinity')),
			now => q(SELECT event_store.projection_state('type live', stream) #>> '{}' AS type FROM type_view WHERE at = 'now') };
		$kept{'built-in folds live'} = {
			paid => q(SELECT key, event_store.projection_state('paid count live', key)::int, event_store.projection_state('paid sum live', key)::text::numeric FROM paid_view) };

		foreach my $who (sort keys %kept)
		{
			my %from = %{ $kept{$who} };

			is($sql->("SELECT key, n, trim_scale(sum) FROM ($from{paid}) p (key, n, sum) ORDER BY key COLLATE \"C\""),
				$paid_sums, "$log, $who: payments per month") if $from{paid};
			is($sql->("SELECT key, n FROM ($from{rejected}) r (key, n) ORDER BY key COLLATE \"C\""),
				$wanted->($answers->{rejections_per_role}), "$log, $who: rejections per role") if $from{rejected};
			if ($from{now})
			{
				is($sql->("SELECT type, count(*) FROM ($from{now}) l GROUP BY type ORDER BY type COLLATE \"C\""),
					$wanted->($last), "$log, $who: last types of streams");
				is($sql->("SELECT count(*) FROM ($from{now}) l WHERE type <> 'Payment Handled'"),
					$open, "$log, $who: open cases");
			}
			is($sql->("SELECT type, count(*) FROM ($from{then}) l GROUP BY type ORDER BY type COLLATE \"C\""),
				$wanted->($then), "$log, $who: as of 2018-01-01") if $from{then};
		}
		# built-in folds see data, not types: by the filter they have payments, of the state then how many events there had been
		my $there = $sql->("SELECT count(*) FROM line_$log WHERE (line->>'occurred_at')::timestamptz < '2018-01-01Z'");

		foreach my $mode ('async', 'inline', 'live')
		{
			my $states = $mode eq 'live' ? q(event_store.projection_as_of('handled live', 'infinity')) : "event_store.projection_states WHERE projection = 'handled $mode'";

			is($sql->("SELECT sum(state::int) FROM $states"), $answers->{types}->{'Payment Handled'}, "$log, built-in folds $mode: payments of all cases");
			is($sql->("SELECT event_store.projection_state('there then $mode', 'all')"), $there, "$log, built-in folds $mode: events before 2018-01-01");
		}
		is($sql->(q(SELECT event_store.projection_state('then live', stream) #>> '{}' = type FROM (SELECT * FROM type_view WHERE at = 'then' ORDER BY stream LIMIT 1) v)),
			't', "$log, folds live: a stream as of 2018-01-01");
		$sql->(q(SELECT event_store.drop_projection(name) FROM event_store.projections;
			DROP MATERIALIZED VIEW paid_view, rejected_view, type_view));
	}
	$logs->stop;
}

done_testing();
