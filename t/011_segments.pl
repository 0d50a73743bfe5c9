# No append fails because a segment is missing.
#
# Segments are small here and writers many, so that everybody always needs the
# next one. Each transaction appends to several streams in one order, so that
# no two of them can be in each other's way for good: an error is the store's
# own doing. All of it with workers in plenty, with hardly any, with none, and
# where one transaction that is slow to end has made the segments.

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
my $writers = 8;

note "seed $seed (EVENT_STORE_SEED)";

# Appends to streams in rising order, tells how many events are in.
sub write_on
{
	my ($node, $dbname, $name, $transactions) = @_;
	my $session = EventStoreTest::Session->new($node, $dbname);
	my $acknowledged = 0;

	foreach (1 .. $transactions)
	{
		my $in_block = rand() < 0.6;
		my $rolled_back = $in_block && rand() < 0.2;
		my $events = 0;
		my $stream = 1;

		$session->run('BEGIN') if $in_block;
		do
		{
			my $count = rand() < 0.1 ? 40 : 1 + int rand 5;

			$stream += int rand 3;
			$session->run(<<"EOT");
SELECT event_store.append_events('s-$stream', (SELECT jsonb_agg(
	jsonb_build_object('type', 'happened', 'data', n, 'metadata', '{"writer": "$name"}'::jsonb))
	FROM generate_series(1, $count) n))
EOT
			$events += $count;
			$stream++;
		} while ($in_block && $stream <= 8);
		$session->run($rolled_back ? 'ROLLBACK' : 'COMMIT') if $in_block;
		$acknowledged += $events unless $rolled_back;
	}
	append_to_file("$dir/$dbname.$name", "$acknowledged\n");
	return;
}

sub load_and_check
{
	my ($node, $dbname, $how) = @_;

	# names are known before, so that nobody waits for somebody's first use
	$node->safe_psql($dbname,
		q(SELECT event_store.append('s-0', 'happened', '{}', '{"writer": "nobody"}')));
	my @workers = map {
		my $n = $_;
		start_worker(
			sub {
				srand($seed + $n);
				write_on($node, $dbname, "writer$n", 12);
			});
	} 1 .. $writers;
	is(wait_workers(@workers), 0, "$how: no append failed");
	my $acknowledged = 0;
	$acknowledged += slurp_file($_) foreach glob "$dir/$dbname.*";
	query_is($node, $dbname, "$how: all that was acknowledged is there", $acknowledged,
		q(SELECT count(*) FROM event_store.events WHERE metadata->>'writer' LIKE 'writer%'));
	query_is($node, $dbname, "$how: segments don't overlap", '0', <<'EOT');
SELECT count(*) FROM event_store.segments() a JOIN event_store.segments() b
ON a.first_position < b.first_position AND a.last_position >= b.first_position
EOT
	store_is_sound($node, $dbname, $how);
	return;
}

my $node = new_node('segments');

# The size that a transaction sets holds for the segments that it needs itself.
$node->safe_psql('postgres', 'CREATE DATABASE sized');
query_is($node, 'sized', 'a size that was set just now holds', 'event_store.event_1|1|32', <<'EOT');
CREATE EXTENSION event_store;
BEGIN;
SELECT event_store.set_segment_size(32) \g /dev/null
SELECT event_store.append('s-1', 'happened', '{}') \g /dev/null
COMMIT;
SELECT * FROM event_store.segments() ORDER BY first_position LIMIT 1;
EOT

create_store($node, 'plenty', 16);
load_and_check($node, 'plenty', 'workers in plenty');

create_store($node, 'prepared', 16);
$node->safe_psql('prepared', 'SELECT event_store.prepare_segments(60)');
load_and_check($node, 'prepared', 'segments prepared');

# A transaction that has made segments itself, and is slow to end, holds up
# those who need one: they wait, and go on when it has ended.
create_store($node, 'slow', 16);
$node->safe_psql('slow', q(SELECT event_store.append('s-0', 'happened', '{}')));
{
	my $slow = EventStoreTest::Session->new($node, 'slow');
	my $other = EventStoreTest::Session->new($node, 'slow');

	$slow->run('SET event_store.segment_worker = off');
	$slow->run('BEGIN');
	$slow->run("INSERT INTO event_store.events (stream, type, data)
		SELECT 's-1', 'happened', to_jsonb(n) FROM generate_series(1, 100) n");
	$other->run('BEGIN');
	$other->run('SAVEPOINT a');
	$other->send("INSERT INTO event_store.events (stream, type, data)
		SELECT 's-2', 'happened', to_jsonb(n) FROM generate_series(1, 1000) n");
	ok($other->waits, 'a slow maker of segments is waited for');
	# ... who may go on appending meanwhile
	$slow->run("INSERT INTO event_store.events (stream, type, data)
		SELECT 's-3', 'happened', to_jsonb(n) FROM generate_series(1, 100) n");
	$slow->run('COMMIT');
	$other->result;
	is($other->{sqlstate}, '00000', 'who waited goes on');
	$other->run('COMMIT');
	query_is($node, 'slow', 'all is there', '1201', 'SELECT count(*) FROM event_store.events');
	store_is_sound($node, 'slow', 'after a slow maker');
}

# One slot for all of them. (The other is the logical replication launcher's.)
$node->append_conf('postgresql.conf', 'max_worker_processes = 2');
$node->restart;
create_store($node, 'few', 16);
load_and_check($node, 'few', 'hardly any workers');

$node->stop;
done_testing();
