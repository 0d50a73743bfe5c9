# Maintenance beside writers: indexes made and rebuilt, tables vacuumed and
# rewritten, the store dumped. Events are written past the executor, so what
# the executor would have taken care of is looked at here: that each index has
# an entry for each event, the user's own indexes, too.

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
my $writers = 4;

note "seed $seed (EVENT_STORE_SEED)";

my $node = new_node('maintenance', conf => 'deadlock_timeout = 100ms');
create_store($node, 'postgres', 512);
my $amcheck = $node->safe_psql('postgres',
	q(SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'));
$node->safe_psql('postgres', 'CREATE EXTENSION amcheck') if $amcheck;
$node->safe_psql('postgres', <<'EOT');
SELECT event_store.append('m-0', 'happened', '{}', correlation_id => 'c', source => 's')
EOT

sub write_on
{
	my ($name) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');
	my $acknowledged = 0;

	until (-e "$dir/stop")
	{
		my $stream = 'm-' . int(1 + rand 200);
		my $count = rand() < 0.3 ? 1 + int rand 30 : 1;
		my $keep = rand() < 0.9;

		$session->run('BEGIN') unless $keep;
		$session->try(<<"EOT");
INSERT INTO event_store.events (stream, type, data, correlation_id)
SELECT '$stream', 'happened', jsonb_build_object('n', n, 'writer', '$name'),
	CASE WHEN n % 3 = 0 THEN 'c' || n END
FROM generate_series(1, $count) n
EOT
		# a rewrite of a table that the store needs may win over a writer
		die $session->{message} if $session->{sqlstate} !~ /^(00000|40P01)$/;
		$acknowledged += $count if $keep && $session->{sqlstate} eq '00000';
		$session->run('ROLLBACK') unless $keep;
		usleep(rand 4_000);
	}
	append_to_file("$dir/$name.acknowledged", "$acknowledged\n");
	return;
}

my @workers = map {
	my $n = $_;
	start_worker(sub { srand($seed + $n); write_on("writer$n") });
} 1 .. $writers;

# The segment that is written to, or the last one.
sub current_segment
{
	return $node->safe_psql('postgres', <<'EOT');
SELECT segment FROM event_store.segments()
ORDER BY event_store.last_position() + 1 BETWEEN first_position AND last_position DESC,
	first_position DESC
LIMIT 1
EOT
}

# The commands of one round, each on the segment that is current by then.
my @commands = (
	'REINDEX TABLE CONCURRENTLY SEGMENT',
	'CREATE INDEX CONCURRENTLY ON SEGMENT (occurred_at)',
	q(CREATE INDEX CONCURRENTLY ON SEGMENT ((data->>'writer')) WHERE version > 1),
	'VACUUM (FREEZE) SEGMENT',
	'ANALYZE SEGMENT',
	'VACUUM FULL SEGMENT',
	'CLUSTER SEGMENT USING SEGMENT_pkey',
	'REINDEX TABLE SEGMENT',
	'REINDEX TABLE CONCURRENTLY event_store.stream',
	'VACUUM FULL event_store.stream',
	'VACUUM FULL event_store.segment_content',
	'REINDEX TABLE CONCURRENTLY event_store.event_type',
	'VACUUM FULL event_store.position_counter',
	'VACUUM (FREEZE) event_store.position_counter',
	'ALTER TABLE SEGMENT SET (fillfactor = 90)',
	'SELECT event_store.prepare_segments(3)');

foreach my $command (@commands)
{
	my ($failures, $done) = (0, 0);

	# with indexes of the user's own there may be a deadlock with a writer
	while ($failures < 5 && !$done)
	{
		my $segment = current_segment();
		my $session = EventStoreTest::Session->new($node, 'postgres');

		$session->try($command =~ s/SEGMENT_pkey/$segment =~ s{.*\.}{}r . '_pkey'/er =~
			  s/SEGMENT/$segment/r);
		$done = $session->{sqlstate} eq '00000';
		$failures++ unless $done;
		diag $session->{message} unless $done || $session->{sqlstate} eq '40P01';
	}
	ok($done, "beside writers: $command");
}

# A dump of a store that is written to is one moment of it.
$node->safe_psql('postgres', 'CREATE DATABASE restored');
command_ok(
	[ 'pg_dump', '-Fc', '-f', "$dir/dump", '-d', $node->connstr('postgres') ],
	'a dump beside writers');

append_to_file("$dir/stop", '');
is(wait_workers(@workers), 0, 'writers met no error');
my $acknowledged = 1;
$acknowledged += slurp_file($_) foreach glob "$dir/*.acknowledged";
query_is($node, 'postgres', 'all that was acknowledged is there', $acknowledged,
	'SELECT count(*) FROM event_store.events');
store_is_sound($node, 'postgres', 'after maintenance');

# Every B-tree has every row, and nothing else. The hash index on streams' names
# is what stream_version() goes by, which agreed with the events above.
SKIP:
{
	skip 'amcheck is not installed', 1 unless $amcheck;
	my @damaged;

	foreach my $index (split /\n/, $node->safe_psql('postgres', <<'EOT'))
SELECT c.oid::regclass FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
WHERE relnamespace = 'event_store'::regnamespace AND relkind = 'i' AND indisvalid
	AND relam = (SELECT oid FROM pg_am WHERE amname = 'btree')
ORDER BY c.oid
EOT
	{
		my ($status, undef, $error) = $node->psql('postgres',
			"SELECT bt_index_check('$index', true)");

		push @damaged, "$index: $error" if $status != 0;
	}
	is(join("\n", @damaged), '', 'indexes are whole');
}
query_is($node, 'postgres', 'the indexes of the extension lack nothing', 't', <<'EOT');
SELECT bool_and(indexes >= 5) FROM (
	SELECT s.segment, count(i.indexrelid) AS indexes
	FROM event_store.segments() s LEFT JOIN pg_index i ON i.indrelid = s.segment AND indisvalid
	GROUP BY s.segment) t
EOT
my $by_writer = q(SELECT count(*) FROM event_store.event
	WHERE version > 1 AND data->>'writer' = 'writer1');
is( $node->safe_psql('postgres', "SET enable_seqscan = off; $by_writer"),
	$node->safe_psql('postgres',
		"SET enable_indexscan = off; SET enable_bitmapscan = off; $by_writer"),
	'an index of the user agrees with the events');

command_ok(
	[ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), "$dir/dump" ],
	'the dump is restored');
store_is_sound($node, 'restored', 'the restored dump');
query_is($node, 'restored', 'the restored dump is a beginning of the store', 't', <<'EOT');
SELECT max(position) <= event_store.last_position() AND count(*) > 0 FROM event_store.events
EOT
my $restored = $node->safe_psql('restored',
	'SELECT max(position) FROM event_store.events');
cmp_ok(
	$node->safe_psql('restored',
		q(SELECT (event_store.append('m-1', 'after', '{}')).first_position)),
	'>', $restored, 'and appends go on behind it');

$node->stop;
done_testing();
