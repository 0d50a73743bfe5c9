# What was processed is marked once, whatever happens.
#
# Messages are numbers, and each is handed to several sessions at once, again and
# again, as a broker would that is never sure. A session marks it, by one of the
# ways there are, and adds a row to the table "effect" in the same transaction if
# it was new; transactions are rolled back, prepared, run under snapshots, and
# backends are killed, the server too, while the windows are rotated. The oracle:
# a message has one effect, or more only where it was handed out again later than
# the window remembers; and an effect has its mark. So it is, too, while windows
# are made, and their lengths changed.
#
# Then: dump and restore, a standby, and what a held transaction may do.
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

# The window of "narrow", in marks, and how far behind the newest a message is
# handed out again: there are rollbacks, so fewer marks than numbers, never more.
my $window = 400;

note "seed $seed (EVENT_STORE_SEED), $seconds s (EVENT_STORE_CHAOS_SECONDS)";
srand($seed);

my $node = new_node('chaos', allows_streaming => 1, conf => 'restart_after_crash = on');
create_store($node, 'postgres', 1000);
$node->safe_psql('postgres', <<"EOT");
CREATE TABLE effect (consumer text, message text, at timestamptz DEFAULT clock_timestamp());
CREATE SEQUENCE message;
SELECT event_store.set_dedup_window('narrow', keep_count => $window);
SELECT event_store.set_dedup_window('brief', '10 minutes');
SELECT event_store.set_dedup_window('ticking', '1 second');
EOT

# Until the file "stop" is there.
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
			# who marks several messages by several calls may deadlock
			die "$session->{sqlstate}: $session->{message}"
			  if !$session->{lost} && $session->{sqlstate} =~ /^(XX|VE|23|42|55)/
			  # that one was prepared by who is gone, and is ended by the test
			  && $session->{message} !~ /prepared transaction/;
			$session->try('ROLLBACK') unless $session->{lost};
		}
	}
	return;
}

my $prepared = 0;

# Some messages that are new, or are handed out once more, in one transaction.
sub receive
{
	my ($session) = @_;
	# "changing" and those of a hundred messages each are given windows meanwhile
	my $consumer = (qw(narrow brief shared ticking changing fresh))[ int rand 6 ];
	my $behind = $consumer =~ /narrow|changing/ ? 60 : $consumer eq 'ticking' ? 3000 : 400;
	my $name = $consumer eq 'fresh' ? "'fresh ' || m::bigint / 100" : "'$consumer'";

	$session->try(rand() < 0.8 ? 'BEGIN' : 'BEGIN ISOLATION LEVEL REPEATABLE READ');
	foreach (1 .. 1 + int rand 3)
	{
		my $message = rand() < 0.4 ? q(nextval('message')) : "greatest((SELECT last_value FROM message) - (random() * $behind)::bigint, 1)";

		last unless $session->{sqlstate} eq '00000';
		if (rand() < 0.5)
		{
			$session->try("INSERT INTO effect SELECT '$consumer', m FROM (SELECT ($message)::text AS m OFFSET 0) AS x WHERE event_store.mark_processed($name, m)");
		}
		elsif ($consumer ne 'fresh' && rand() < 0.6)
		{
			$session->try("INSERT INTO effect SELECT '$consumer', new FROM (SELECT ($message) AS m OFFSET 0) AS x,
				unnest(event_store.mark_processed_all('$consumer', ARRAY[m::text, greatest(m - 1, 1)::text, greatest(m - 7, 1)::text])) AS new");
		}
		else
		{
			$session->try("SAVEPOINT s");
			$session->try("SELECT event_store.once($name, m, format('INSERT INTO effect VALUES (%L, %L)', '$consumer once', m)) FROM (SELECT ($message)::text AS m OFFSET 0) AS x");
			$session->try("ROLLBACK TO s") if $session->{sqlstate} eq '00000' && rand() < 0.2;
		}
		usleep(rand 2_000);
	}
	return if $session->{sqlstate} ne '00000';
	my $end = rand;
	if ($end < 0.08)
	{
		my $name = "p$$-" . ++$prepared;

		$session->try("PREPARE TRANSACTION '$name'");
		usleep(rand 5_000);
		$session->try((rand() < 0.7 ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$name'") if $session->{sqlstate} eq '00000';
	}
	else
	{
		$session->try($end < 0.25 ? 'ROLLBACK' : 'COMMIT');
	}
	return;
}

# Appends by a key, each for some sessions at once.
sub append
{
	my ($session) = @_;

	$session->try("SELECT (event_store.append_once('key ' || n, 'a-' || n % 5, 't', to_jsonb(n))).duplicate FROM (SELECT greatest((SELECT last_value FROM message) / 20, 1) AS n OFFSET 0) AS x");
	usleep(rand 5_000);
	return;
}

sub rotate
{
	my ($session) = @_;

	$session->try('SELECT event_store.rotate_inbox()');
	usleep(rand 20_000);
	return;
}

# Windows are made for those who mark just now, and have other lengths.
sub change
{
	my ($session) = @_;
	my $length = ("'10 minutes'", 'keep_count => ' . (300 + int rand 200), "'1 second', 400", "'10 minutes', 10")[ int rand 4 ];

	$session->try('BEGIN') if rand() < 0.5;
	$session->try("SELECT event_store.set_dedup_window('changing', $length)") if rand() < 0.5;
	$session->try("SELECT event_store.set_dedup_window('fresh ' || (SELECT last_value FROM message) / 100 - (random() * 3)::int, keep_count => 100000)");
	usleep(rand 30_000);
	$session->try(rand() < 0.6 ? 'COMMIT' : 'ROLLBACK');
	usleep(rand 100_000);
	return;
}

my @workers = map {
	my ($code, $n) = @$_;
	start_worker(sub {
		srand($seed + $n);
		go_on($code);
	});
} ((map { [ \&receive, $_ ] } 1 .. 7), [ \&append, 8 ], [ \&append, 9 ], [ \&rotate, 10 ], [ \&change, 11 ]);

# Rolls back what was prepared so long ago that nobody ends it any more.
sub end_prepared
{
	my ($age) = @_;

	foreach my $gid (split /\n/, $node->safe_psql('postgres', sprintf(q(SELECT gid FROM pg_prepared_xacts WHERE prepared <= now() - interval '%s'), $age // '0')))
	{
		$node->psql('postgres', "ROLLBACK PREPARED '$gid'");
	}
	return;
}

# Backends are ended and killed; one time the server is.
my $until = time + $seconds;
my $crashed = 0;
while (time < $until)
{
	usleep(100_000 + rand 200_000);
	my $pid = eval { $node->safe_psql('postgres', <<'EOT') };
SELECT pid FROM pg_stat_activity
WHERE backend_type IN ('client backend', 'event_store inbox worker') AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1
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
	eval { end_prepared('1 second') };
}
append_to_file("$dir/stop", '');
ok($crashed, 'the server was killed');
# some may wait for what nobody ends any more
my $ender = start_worker(sub {
	until (-e "$dir/ended")
	{
		eval { end_prepared() };
		usleep(100_000);
	}
});
is(wait_workers(@workers), 0, 'nobody met an error of ours');
append_to_file("$dir/ended", '');
wait_workers($ender);
$node->poll_query_until('postgres', 'SELECT true');
end_prepared();

query_is($node, 'postgres', 'no message had its effect twice', '', <<'EOT');
SELECT consumer, message, count(*) FROM effect WHERE consumer !~ '^ticking' GROUP BY consumer, message HAVING count(*) > 1
EOT
query_is($node, 'postgres', 'or only when it was forgotten', '', <<'EOT');
SELECT consumer, message, at, before FROM (SELECT *, lag(at) OVER (PARTITION BY consumer, message ORDER BY at) AS before FROM effect WHERE consumer ~ '^ticking') AS e
WHERE at < before + interval '1 second'
EOT
query_is($node, 'postgres', 'messages had effects', 't', 'SELECT count(*) > 100 AND count(DISTINCT consumer) = 12 FROM effect');
query_is($node, 'postgres', 'windows were made meanwhile', 't', q(SELECT count(*) > 1 FROM event_store.inbox_windows WHERE consumer ~ '^fresh'));
query_is($node, 'postgres', 'an effect has its mark, where the window is long enough', '0', <<'EOT');
SELECT count(*) FROM effect WHERE consumer IN ('brief', 'shared') AND event_store.mark_processed(consumer, message)
EOT
query_is($node, 'postgres', 'and where it was made meanwhile', '0', <<'EOT');
SELECT count(*) FROM effect WHERE consumer = 'fresh' AND event_store.mark_processed('fresh ' || message::bigint / 100, message)
EOT
query_is($node, 'postgres', 'no key was appended twice', '', <<'EOT');
SELECT data, count(*) FROM event_store.events GROUP BY data HAVING count(*) > 1
EOT
query_is($node, 'postgres', 'the latest are still known by a narrow window', '0', <<'EOT');
SELECT count(*) FROM (SELECT message FROM effect WHERE consumer = 'narrow' ORDER BY at DESC LIMIT 60) AS e
WHERE event_store.mark_processed('narrow', message)
EOT
my $turns = $node->safe_psql('postgres', q(SELECT turn FROM event_store.inbox_windows WHERE consumer = 'narrow'));
note "effects, forgotten, turns of the narrow window: ", $node->safe_psql('postgres', q(SELECT count(*) || ', ' || count(*) FILTER (WHERE consumer ~ '^ticking') - count(DISTINCT (consumer, message)) FILTER (WHERE consumer ~ '^ticking') FROM effect)), ", $turns";
store_is_sound($node, 'postgres', 'in the end');

# A backup takes all along, and the restored store goes on.
$node->safe_psql('postgres', <<'EOT');
SELECT event_store.set_dedup_window('restored', '1 hour');
SELECT event_store.set_dedup_window(NULL, '3 days');
SELECT event_store.mark_processed(c, 'before') FROM unnest(ARRAY['shared', 'restored', 'narrow']) AS c;
SELECT event_store.once('restored', 'k', 'SELECT 42');
SELECT event_store.append_once('restored', 'r-1', 't', '1');
EOT
$node->safe_psql('postgres', 'CREATE DATABASE restored');
my $dump = "$dir/dump";
command_ok([ 'pg_dump', '-Fc', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), $dump ], 'pg_restore');
query_is($node, 'restored', 'what was processed is known in the restored store', "0\n42\nt", <<'EOT');
SELECT count(*) FROM unnest(ARRAY['shared', 'restored', 'narrow']) AS c WHERE event_store.mark_processed(c, 'before');
SELECT event_store.once('restored', 'k', 'SELECT 42');
SELECT (event_store.append_once('restored', 'r-1', 't', '1')).duplicate;
EOT
query_is($node, 'restored', 'and so are the windows', '|3 days|
brief|00:10:00|
narrow||400
restored|01:00:00|
ticking|00:00:01|', <<'EOT');
SELECT coalesce(consumer, ''), keep_for, keep_count FROM event_store.inbox_windows WHERE consumer IS NULL OR consumer !~ '^(fresh|changing)' ORDER BY 1
EOT
query_is($node, 'restored', 'which go on, by numbers of their own', 'f|f|t', <<'EOT');
SELECT event_store.set_dedup_window('new', keep_count => 4) \g /dev/null
DO $$ BEGIN FOR i IN 1..20 LOOP
	PERFORM event_store.mark_processed('new', i::text), event_store.mark_processed('narrow', 'n' || i); COMMIT;
	PERFORM event_store.rotate_inbox(); COMMIT;
END LOOP; END $$;
SELECT event_store.mark_processed('new', '20'), event_store.mark_processed('narrow', 'before'), event_store.mark_processed('new', '1');
EOT
# in another encoding, too
$node->safe_psql('postgres', "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
$node->safe_psql('postgres', "CREATE DATABASE unicode ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0");
my $mark = q(SELECT event_store.mark_processed(U&'caf\00e9', U&'na\00efve'), event_store.mark_processed('cafe', 'naive'));
$node->safe_psql('latin', "CREATE EXTENSION event_store; $mark");
command_ok([ 'pg_dump', '-Fc', '-f', "$dump.latin", '-d', $node->connstr('latin') ], 'pg_dump from LATIN1');
command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('unicode'), "$dump.latin" ], 'pg_restore into UTF8');
query_is($node, 'unicode', 'what was processed is known there, too', 'f|f', $mark);
$node->safe_psql('restored', 'DROP EXTENSION event_store');
query_is($node, 'restored', 'they are dropped with the extension', '0', q(SELECT count(*) FROM pg_class WHERE relname ~ '^inbox_'));

# On a standby nothing is marked, and after the promotion all is known.
$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
$node->safe_psql('postgres', q(SELECT event_store.mark_processed('shared', 'on the primary')));
$node->wait_for_catchup($standby);
foreach my $call ("mark_processed('shared', 'x')", "mark_processed_all('shared', '{x}')", "once('shared', 'x', 'SELECT 1')", "begin_once('shared', 'x')",
	"append_once('x', 'a-1', 't', '1')", 'rotate_inbox()', "set_dedup_window('x', '1 day')")
{
	is(sqlstate_of($standby, 'postgres', "SELECT event_store.$call"), '25006', "$call is refused on a standby");
}
$node->stop('immediate');
$standby->promote;
query_is($standby, 'postgres', 'after a promotion', 'f|f|t', <<'EOT');
SELECT event_store.mark_processed('shared', 'on the primary'), event_store.mark_processed('restored', 'before'), event_store.mark_processed('shared', 'x')
EOT

# Rotation by who marks: nobody calls it, and the tables stay small, beside a snapshot that is held.
my $held = EventStoreTest::Session->new($standby, 'postgres');
$held->try('BEGIN ISOLATION LEVEL REPEATABLE READ');
$held->try('SELECT count(*) FROM effect');
$standby->safe_psql('postgres', q(SELECT event_store.set_dedup_window('busy', keep_count => 2000)));
my $marker = EventStoreTest::Session->new($standby, 'postgres');
my $marked = 0;
ok(wait_until(sub {
	$marker->run(q(SELECT count(event_store.mark_processed('busy', gen_random_uuid()::text)) FROM generate_series(1, 1000)));
	$marked += 1000;
	scalar $marker->run(q(SELECT count(*) FROM event_store.inbox_windows WHERE consumer = 'busy' AND turn > 3));
}), 'whoever marks has the window rotated');
my $kept = 0;
foreach my $part ($standby->safe_psql('postgres', q(SELECT format('event_store.inbox_%s_%s', id, part) FROM event_store.inbox_window, generate_series(0, 2) AS part WHERE consumer = 'busy')) =~ /\S+/g)
{
	$kept += $standby->safe_psql('postgres', "SELECT count(*) FROM $part");
}
cmp_ok($kept, '>=', 2000, 'it keeps what it is to keep');
cmp_ok($kept, '<', $marked, "and not all of the $marked");
$held->try('COMMIT');
$standby->stop;
done_testing();
