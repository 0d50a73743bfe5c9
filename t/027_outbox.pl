# The outbox under fire, through dump and restore, and in the WAL.
#
# Writers publish with keys that are theirs, number what they publish, and note it in the
# same transaction, which they commit, roll back, in part or as a whole, or prepare; what
# is appended is published by a route. Relays take messages under short leases,
# note each that they have sent in a transaction of its own, and acknowledge it after that.
# They are ended in the middle of anything, fall silent and wake up again, refuse
# messages, give back what they have. Dead letters are replayed, and the server is killed
# once.
#
# The oracles: what was committed is sent, and nothing else; what is sent twice is so
# under the same message id; the first time that messages of a key are sent is in
# their order; of each message one acknowledgement has counted.
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

my $node = new_node('outbox', conf => "restart_after_crash = on\nwal_level = logical\nmax_replication_slots = 5\nmax_wal_senders = 5");
create_store($node, 'postgres', 1000);
$node->safe_psql('postgres', <<'EOT');
SELECT event_store.start_worker();
SELECT event_store.alter_outbox(first_delay => '20 ms', max_attempts => 3);
SELECT event_store.route_to_outbox('all', topic => '{category}', payload => '{"k": "{stream}", "n": "{data.n}"}');
CREATE TABLE published (key text, n int, PRIMARY KEY (key, n));
CREATE TABLE sent (i bigserial, message_id uuid, key text, n int, relay text, at timestamptz DEFAULT clock_timestamp());
EOT

# What a command may end with: anything that was done to its session from outside, but
# no error of ours, and no broken constraint.
sub do_sql
{
	my ($session, $sql) = @_;

	return undef if $session->{lost};
	my @rows = $session->try($sql);
	die "$session->{sqlstate}: $session->{message}\nin: $sql\n"
	  if $session->{sqlstate} =~ /^(XX|VE|23|40)/;
	return $session->{sqlstate} eq '00000' ? \@rows : undef;
}

sub stopped { return -e "$dir/stop" }

# Until the test is stopped: the code is called with a session that is connected.
sub go_on
{
	my ($code, $stopped) = @_;

	$stopped //= \&stopped;
	until ($stopped->())
	{
		my $session = eval { EventStoreTest::Session->new($node, 'postgres') };

		unless ($session && !$session->{lost} && $session->{backend})
		{
			usleep(20_000);
			next;
		}
		$code->($session) until $session->{lost} || $stopped->();
		$session->quit;
	}
	return;
}

my $prepared = 0;

sub writer
{
	my ($w) = @_;
	my %n;

	srand($seed * 100 + $w);
	go_on(sub {
		my ($session) = @_;

		do_sql($session, 'BEGIN');
		foreach my $part (1 .. 1 + int rand 3)
		{
			do_sql($session, 'SAVEPOINT s');
			foreach (1 .. 1 + int rand 4)
			{
				my $kind = rand;
				my $key = $kind < 0.1 ? "none-$w" : $kind < 0.2 ? "late-$w" : $kind < 0.4 ? "order-$w" : "k-$w-" . int rand 5;
				my $n = ++$n{$key};

				do_sql($session, "INSERT INTO published VALUES ('$key', $n)");
				do_sql($session,
					$key =~ /^order/ ? "SELECT event_store.append('$key', 't', '{\"n\": $n}')"
					: "SELECT event_store.publish('topic', " . ($key =~ /^none/ ? 'NULL' : "'$key'") .
					  ", '{\"k\": \"$key\", \"n\": $n}'" .
					  ($key =~ /^late/ ? ", deliver_after => '@{[ int rand 300 ]} ms'" : '') . ')');
			}
			do_sql($session, rand() < 0.2 ? 'ROLLBACK TO s' : 'RELEASE s');
		}
		usleep(rand(20_000)) if rand() < 0.1;
		my $end = rand;

		do_sql($session, $end < 0.1 ? 'ROLLBACK'
			: $end < 0.15 && !stopped() ? "PREPARE TRANSACTION 'w-$$-" . ++$prepared . q(') : 'COMMIT');
		usleep(rand(5_000));
	});
	return;
}

sub settler
{
	srand($seed * 100 + 50);
	go_on(sub {
		my ($session) = @_;
		my $gids = do_sql($session, 'SELECT gid FROM pg_prepared_xacts');

		do_sql($session, (rand() < 0.7 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$_'") foreach @{ $gids // [] };
		do_sql($session, 'SELECT event_store.outbox_replay_dead_letters()');
		usleep(100_000);
	}, sub { -e "$dir/all done" });
	return;
}

# Sends what a poll gives, and says so; may stop in the middle of it.
sub relay_once
{
	my ($session, $name, %args) = @_;
	my $rows = do_sql($session, "SELECT id, message_id, payload->>'k', payload->>'n' FROM event_store.outbox_poll('$name', "
		  . (1 + int rand 40) . ", '200 ms'" . ($args{wait} ? ", '50 ms'" : '') . ')') or return 0;
	my @done;

	if ($args{chaos} && @$rows && rand() < 0.05)
	{
		# it falls silent, and wakes up
		usleep(300_000);
	}
	foreach (@$rows)
	{
		my ($id, $message_id, $key, $n) = split /\|/;

		if ($args{chaos} && rand() < 0.02)
		{
			# what has been sent before it is acknowledged with it, or never
			do_sql($session, "SELECT event_store.outbox_nack('$name', $id, 'refused')");
			# what comes behind it of its key is not the relay's any more
			$rows = [ grep { (split /\|/)[2] ne $key } @$rows ];
			last;
		}
		return 1 if $args{chaos} && rand() < 0.005;
		do_sql($session, "INSERT INTO sent (message_id, key, n, relay) VALUES ('$message_id', '$key', $n, '$name')") or return 0;
		push @done, $id;
		if ($args{chaos} && rand() < 0.05)
		{
			do_sql($session, "SELECT event_store.outbox_ack('$name', '{" . join(',', @done) . "}')");
			@done = ();
		}
	}
	do_sql($session, "SELECT event_store.outbox_ack('$name', '{" . join(',', @done) . "}')") if @done;
	return scalar @$rows;
}

sub relay
{
	my ($r) = @_;
	my $generation = 0;

	srand($seed * 100 + 60 + $r);
	go_on(sub {
		my ($session) = @_;

		relay_once($session, "r$r-$generation", chaos => 1, wait => rand() < 0.5) or usleep(10_000);
		# it starts anew, under its old name, or another
		$generation++ if rand() < 0.02;
		do_sql($session, "SELECT event_store.outbox_release('r$r-$generation')") if rand() < 0.02;
		do_sql($session, "SELECT event_store.outbox_heartbeat('r$r-$generation', '200 ms')") if rand() < 0.02;
	});
	return;
}

sub killer
{
	srand($seed * 100 + 90);
	go_on(sub {
		my ($session) = @_;

		do_sql($session, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
			  . " WHERE backend_type = 'client backend' AND application_name ~ '^s[0-9]+\$' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1");
		usleep(150_000);
	});
	return;
}

my @workers = ((map { my $w = $_; start_worker(sub { writer($w) }) } 1 .. 3),
	(map { my $r = $_; start_worker(sub { relay($r) }) } 1 .. 4),
	start_worker(\&killer));
my $settler = start_worker(\&settler);

usleep(1_000_000 * $seconds / 2);
{
	my $victim = $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");

	kill 'KILL', $victim;
	usleep(200_000);
	$node->poll_query_until('postgres', 'SELECT true');
}
usleep(1_000_000 * $seconds / 2);
append_to_file("$dir/stop", '');
my $failed = wait_workers(@workers);
append_to_file("$dir/all done", '');
is($failed + wait_workers($settler), 0, 'nobody met an error that he should not');

# ---------------------------------------------------------------------------
# What became of it
# ---------------------------------------------------------------------------

my $session = EventStoreTest::Session->new($node, 'postgres');

$session->run("COMMIT PREPARED '$_'") foreach $session->run('SELECT gid FROM pg_prepared_xacts');
for (1 .. 2000)
{
	$session->run('SELECT event_store.outbox_replay_dead_letters()');
	last if !relay_once($session, 'last')
	  && $session->run('SELECT waiting + leased + delayed + retries + parked + dead_letters FROM event_store.outbox_status') == 0;
	usleep(2_000);
}
is($session->run('SELECT count(*) FROM event_store.outbox_messages'), 0, 'the outbox is empty');
is($session->run('SELECT count(*) FROM event_store.outbox_kept'), 0, 'nothing is set aside');
note $session->run(q(SELECT count(*) || ' messages, ' || (SELECT count(*) FROM sent) || ' times sent' FROM published));
note $session->run(q(SELECT 'failures ' || failures || ', bytes ' || bytes FROM event_store.outbox_status));
cmp_ok($session->run('SELECT count(*) FROM published'), '>', 100, 'there was something to send');
is(join(' ', $session->run('SELECT key, n FROM published EXCEPT SELECT key, n FROM sent')), '', 'what was committed is sent');
is(join(' ', $session->run('SELECT key, n FROM sent EXCEPT SELECT key, n FROM published')), '', 'nothing else is');
is(join(' ', $session->run('SELECT key, n FROM sent GROUP BY 1, 2 HAVING count(DISTINCT message_id) > 1')), '',
	'what is sent again has the same message id');
is(join(' ', $session->run('SELECT message_id FROM sent GROUP BY 1 HAVING count(DISTINCT (key, n)) > 1')), '',
	'which no other has');
is( join(' ', $session->run(<<'EOT')),
SELECT key, n, i FROM (
	SELECT key, n, i, max(n) OVER (PARTITION BY key ORDER BY i ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
	FROM (SELECT key, n, min(i) AS i FROM sent WHERE key !~ '^(none|late)' GROUP BY 1, 2) AS first) AS x
WHERE before > n
EOT
	'', 'of a key the first times are in order');
is($session->run('SELECT acknowledged - (SELECT count(*) FROM published) FROM event_store.outbox_status'),
	0, 'of each message one acknowledgement has counted');
$session->quit;

# ---------------------------------------------------------------------------
# Dump and restore
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE DATABASE source');
$node->safe_psql('postgres', 'CREATE DATABASE target');
$node->safe_psql('source', <<'EOT');
CREATE EXTENSION event_store;
SELECT event_store.alter_outbox(max_attempts => 1, paused => false);
SELECT event_store.route_to_outbox('r', topic => 't');
SELECT event_store.append('a-1', 'x', '1');
SELECT event_store.publish('t', 'k', to_jsonb(i)) FROM generate_series(1, 100) AS i;
SELECT event_store.publish('t', 'dead', to_jsonb(i)) FROM generate_series(1, 3) AS i;
SELECT event_store.publish('t', 'late', '1', deliver_after => '1 hour');
SELECT event_store.outbox_ack('a', array_agg(id)) FROM event_store.outbox_poll('a', 20);
SELECT event_store.outbox_nack('b', min(id) FILTER (WHERE key = 'dead'), 'no') FROM event_store.outbox_poll('b', 200);
SELECT event_store.outbox_release('b');
EOT
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';

$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('source') ], 'pg_dump');
$node->command_ok([ 'pg_restore', '-d', $node->connstr('target'), $dump ], 'pg_restore');
my $content = <<'EOT';
SELECT md5(string_agg(m::text, ' ' ORDER BY id)) FROM (SELECT id, message_id, topic, key, state, attempts, payload, headers
	FROM event_store.outbox_messages) AS m
EOT
is($node->safe_psql('target', $content), $node->safe_psql('source', $content), 'what waits is as it was');
query_is($node, 'target', 'routes are there', 'r|t', 'SELECT name, topic FROM event_store.outbox_routes');
query_is($node, 'target', 'one is dead', '1|2', 'SELECT dead_letters, parked FROM event_store.outbox_status');
query_is($node, 'target', 'it goes on where it was', '1', <<'EOT');
SELECT count(DISTINCT n) FROM (SELECT (payload #>> '{}')::int - row_number() OVER (ORDER BY id) AS n
	FROM event_store.outbox_poll('c', NULL) WHERE key = 'k') AS x
EOT
query_is($node, 'target', 'positions go on', 't', <<'EOT');
SELECT event_store.publish('t', 'k', '1') > (SELECT max(id) FROM event_store.outbox_messages)
EOT

# ---------------------------------------------------------------------------
# Logical decoding
# ---------------------------------------------------------------------------

SKIP:
{
	skip 'test_decoding is not installed', 8
	  unless $node->safe_psql('postgres', "SELECT count(*) FROM pg_settings WHERE name = 'wal_level' AND setting = 'logical'")
	  && -e $node->config_data('--pkglibdir') . '/test_decoding.so';

	$node->safe_psql('postgres', 'CREATE DATABASE decoded');
	$node->safe_psql('decoded', 'CREATE EXTENSION event_store');
	$node->command_ok([ 'pg_recvlogical', '-d', $node->connstr('decoded'), '-S', 'outbox', '-P', 'test_decoding', '--create-slot' ],
		'a slot');
	$node->safe_psql('decoded', <<'EOT');
SELECT event_store.route_to_outbox('r', topic => 'routed');
SELECT event_store.publish('table', 'k', '{"x": 1}', '{"h": 1}', '00000000-0000-0000-0000-000000000001');
SET event_store.outbox_mode = wal;
SELECT event_store.publish('wal', 'k"', '{"x": 2}', '{"h": "a"}', '00000000-0000-0000-0000-000000000002');
BEGIN;
SELECT event_store.publish('lost', 'k', '3');
ROLLBACK;
BEGIN;
SELECT event_store.publish('kept', NULL, '4');
SAVEPOINT s;
SELECT event_store.publish('lost', 'k', '5');
ROLLBACK TO s;
COMMIT;
SELECT event_store.append('a-1', 'Happened', '{"n": 6}');
EOT
	query_is($node, 'decoded', 'what is in the WAL is in no table', '1', 'SELECT count(*) FROM event_store.outbox_messages');
	my $end = $node->safe_psql('decoded', 'SELECT pg_current_wal_lsn()');
	my $out = $node->pg_recvlogical_upto('decoded', 'outbox', $end, $PostgreSQL::Test::Utils::timeout_default,
		'include-xids' => '0');
	my @messages = $out =~ /^message: transactional: 1 prefix: event_store\.outbox, sz: \d+ content:(.*)$/mg;

	like($out, qr/^table event_store\.outbox_0: INSERT: .*id\[uuid\]:'0{8}-0{4}-0{4}-0{4}-0{11}1' aggregatetype\[text\]:'table' aggregateid\[text\]:'k' type\[text\]:'table' .*payload\[jsonb\]:'\{"x": 1\}'$/m,
		'a table that an outbox event router reads');
	is(scalar @messages, 3, 'messages of transactions that have committed');
	is($node->safe_psql('decoded', "SELECT string_agg(concat_ws(' ', m->>'id', m->>'aggregatetype', m->>'aggregateid', m->>'type', m->>'payload', m->>'headers'), '; ') FROM (VALUES "
			. join(', ', map { '(' . quote_literal($_) . '::jsonb)' } $messages[0], $messages[1]) . ") AS x (m) WHERE m->>'aggregatetype' = 'wal'"),
		'00000000-0000-0000-0000-000000000002 wal k" wal {"x": 2} {"h": "a"}', 'each is a JSON object');
	like($messages[2], qr/"aggregatetype": "routed", "aggregateid": "a-1", "type": "Happened".*"payload": \{"n": 6\}\}$/,
		'routes write them, too');

	# what replication and Debezium read by default: pgoutput, and a publication for all tables
	$node->safe_psql('decoded', <<'EOT');
CREATE PUBLICATION everything FOR ALL TABLES;
SELECT pg_create_logical_replication_slot('everything', 'pgoutput');
SELECT event_store.drop_route('r');
SELECT event_store.publish('late', 'k', '1', deliver_after => '1 ms');
SELECT event_store.publish('large', 'k', to_jsonb(repeat('x', 2000) || string_agg(md5(i::text), ''))) FROM generate_series(1, 1000) AS i;
SELECT pg_sleep(0.05);
SELECT event_store.tend_outbox();
SELECT count(event_store.publish('t', 'k' || i, to_jsonb(repeat('x', 1000)))) FROM generate_series(1, 2500) AS i;
SELECT event_store.tend_outbox();
SELECT event_store.alter_outbox(max_attempts => 1);
SELECT event_store.outbox_nack('r', min(id), 'no') FROM event_store.outbox_poll('r', NULL);
SELECT event_store.outbox_discard_dead_letters('no');
SELECT event_store.outbox_ack('r', array_agg(id)) FROM event_store.outbox_messages;
SET event_store.outbox_mode = wal;
SELECT event_store.publish('wal', 'k', '"in the WAL"');
EOT
	query_is($node, 'decoded', 'rows are moved, removed, and tables emptied, where all is published', '0|0',
		'SELECT waiting + leased + delayed + retries + parked + dead_letters, pg_relation_size(\'event_store.outbox_0\') FROM event_store.outbox_status');
	query_is($node, 'decoded', 'pgoutput shows each as an INSERT, large ones whole, and that tables are emptied', '2502|t|1|t', <<'EOT');
WITH changes AS (SELECT chr(get_byte(data, 0)) AS kind, data FROM pg_logical_slot_get_binary_changes('everything', NULL, NULL,
	'proto_version', '1', 'publication_names', 'everything', 'messages', 'true')),
relations AS (SELECT substr(data, 2, 4) AS id FROM changes WHERE kind = 'R' AND position('outbox_0'::bytea IN data) > 0 OR kind = 'R' AND position('outbox_1'::bytea IN data) > 0)
SELECT count(*) FILTER (WHERE kind = 'I' AND substr(data, 2, 4) IN (SELECT id FROM relations)),
	bool_or(kind = 'I' AND length(data) > 34000),
	count(*) FILTER (WHERE kind = 'M' AND position('event_store.outbox'::bytea IN data) > 0 AND position('in the WAL'::bytea IN data) > 0),
	bool_or(kind = 'T')
FROM changes
EOT
}

$node->append_conf('postgresql.conf', "wal_level = replica\nmax_wal_senders = 0");
$node->safe_psql('postgres', "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
$node->restart;
is(sqlstate_of($node, 'postgres', "SET event_store.outbox_mode = wal; SELECT event_store.publish('t', 'k', '1')"),
	'VE016', 'what nobody could decode is refused');
$node->stop;
done_testing();
