# Bulk: many streams in one transaction with the server's default settings, and
# the real logs.
#
# A lock for each of 100,000 streams would not fit into the lock table, so a
# transaction that touches many streams locks most of them in another way. The
# two ways must exclude each other.
#
# The logs and the answers about them lie beside the checkout, in
# ../shared/data, or where EVENT_STORE_DATA says; without them that part is
# skipped. The answers were computed by another program.

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

my $dir = work_dir();

# ---------------------------------------------------------------------------
# 100,000 streams in one transaction
# ---------------------------------------------------------------------------

# nothing but initdb's settings
my $node = PostgreSQL::Test::Cluster->new('defaults');
$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$node->append_conf('postgresql.conf', 'log_statement = none');
$node->start;
is($node->safe_psql('postgres', 'SHOW max_locks_per_transaction'),
	'64', 'the lock table has its default size');
create_store($node, 'postgres');

$node->safe_psql('postgres', <<'EOT');
SELECT event_store.append('bulk-99999', 'before', '{}'),
	event_store.append('aside-1', 'before', '{}')
EOT

my $bulk = EventStoreTest::Session->new($node, 'postgres');
$bulk->run('BEGIN');
$bulk->run(<<'EOT');
INSERT INTO event_store.events (stream, type, data)
SELECT 'bulk-' || n, 'loaded', to_jsonb(n) FROM generate_series(1, 100000) n
EOT
is($bulk->{sqlstate}, '00000', '100,000 streams in one statement');

# Others go on meanwhile, with old streams and with new ones ...
is( $node->safe_psql('postgres', <<'EOT'), '2|1', 'other streams are free');
SELECT (event_store.append('aside-1', 'meanwhile', '{}')).last_version,
	(event_store.append('aside-2', 'meanwhile', '{}')).last_version
EOT

# ... but not with those of the transaction: the first, the last, one that had
# been there, in each way of appending.
my %waiting = (
	'append() to the first' => q(SELECT event_store.append('bulk-1', 'after', '{}')),
	'append() to the last' => q(SELECT event_store.append('bulk-100000', 'after', '{}')),
	'append() to an old one' => q(SELECT event_store.append('bulk-99999', 'after', '{}')),
	'append_streams()' => q(SELECT event_store.append_streams('[
		{"stream": "aside-3", "events": [{"type": "after", "data": 1}]},
		{"stream": "bulk-5000", "events": [{"type": "after", "data": 1}]}]')),
	'INSERT' => q(INSERT INTO event_store.events (stream, type, data)
		VALUES ('bulk-70000', 'after', '1')),
	'INSERT of many' => q(INSERT INTO event_store.events (stream, type, data)
		SELECT 'bulk-' || n, 'after', '1' FROM generate_series(80001, 81000) n));
my %session;
foreach my $how (sort keys %waiting)
{
	$session{$how} = EventStoreTest::Session->new($node, 'postgres');
	$session{$how}->send($waiting{$how});
	ok($session{$how}->waits, "waits: $how");
}
$bulk->run('COMMIT');
foreach my $how (sort keys %waiting)
{
	$session{$how}->result;
	is($session{$how}->{sqlstate}, '00000', "goes on: $how");
}
query_is($node, 'postgres', 'in the right order', 't|loaded,after|before,loaded,after', <<'EOT');
SELECT bool_and(version = 2),
	(SELECT string_agg(type, ',' ORDER BY version) FROM event_store.read_stream('bulk-80500')),
	(SELECT string_agg(type, ',' ORDER BY version) FROM event_store.read_stream('bulk-99999'))
FROM event_store.events
WHERE type = 'after' AND stream IN ('bulk-1', 'bulk-5000', 'bulk-70000', 'bulk-80001', 'bulk-100000')
EOT
query_is($node, 'postgres', 'all streams are there', '100000|100000', <<'EOT');
SELECT count(*), count(DISTINCT stream) FROM event_store.events WHERE type = 'loaded'
EOT

# The same the other way round: somebody holds one of the last, and the bulk
# load waits for him.
my $holder = EventStoreTest::Session->new($node, 'postgres');
$holder->run('BEGIN');
$holder->run(q(SELECT event_store.append('bulk-60000', 'held', '{}')));
$bulk->send(<<'EOT');
INSERT INTO event_store.events (stream, type, data)
SELECT 'bulk-' || n, 'reloaded', to_jsonb(n) FROM generate_series(50000, 61000) n
EOT
ok($bulk->waits, 'the bulk load waits for a holder');
$holder->run('COMMIT');
$bulk->result;
is($bulk->{sqlstate}, '00000', 'and goes on');
query_is($node, 'postgres', 'after him', 'loaded,held,reloaded', <<'EOT');
SELECT string_agg(type, ',' ORDER BY version) FROM event_store.read_stream('bulk-60000')
EOT

# 100,000 calls in one transaction, one for each stream.
$bulk->run('BEGIN');
$bulk->run(<<'EOT');
SELECT count(event_store.append('single-' || n, 'happened', '{}')) FROM generate_series(1, 100000) n
EOT
is($bulk->{sqlstate}, '00000', '100,000 calls in one transaction');
$bulk->run('ROLLBACK');
query_is($node, 'postgres', 'rolled back as a whole', '0',
	q(SELECT event_store.stream_version('single-77777')));
# Many streams in one call of append_streams(), some of them with nothing to
# append: those are not made.
query_is($node, 'postgres', 'streams without events in a batch', '2000|1000|0', <<'EOT');
CREATE TEMPORARY TABLE result AS SELECT * FROM event_store.append_streams(
	(SELECT jsonb_agg(jsonb_build_object('stream', 'batch-' || n, 'events',
		CASE WHEN n % 2 = 0 THEN '[]' ELSE '[{"type": "happened", "data": 1}]'::jsonb END))
	FROM generate_series(1, 2000) n));
SELECT count(*), count(first_version),
	(SELECT count(*) FROM event_store.stream s
	WHERE NOT EXISTS (SELECT FROM event_store.event e WHERE e.stream_id = s.id))
FROM result
EOT
query_is($node, 'postgres', 'no lock is left', '0',
	q(SELECT count(*) FROM pg_locks WHERE locktype IN ('userlock', 'tuple')));
query_is($node, 'postgres', 'versions are dense', '', <<'EOT');
SELECT stream FROM event_store.events GROUP BY stream
HAVING min(version) <> 1 OR max(version) <> count(*) OR count(DISTINCT version) <> count(*)
EOT
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

	create_store($logs, 'postgres', 8192);

	# All in one transaction, through COPY: each line of the log is a row.
	my $script = "$dir/load.sql";
	my %category;
	open my $out, '>', $script or die $!;
	print $out "BEGIN;\n";
	foreach my $log (sort keys %$expected)
	{
		my $in = IO::Uncompress::Gunzip->new("$data/$expected->{$log}->{file}")
		  or die $GunzipError;

		print $out
		  "CREATE TEMPORARY TABLE line_$log (n bigserial, line jsonb);\n",
		  "COPY line_$log (line) FROM STDIN;\n";
		while (my $line = <$in>)
		{
			($category{$log}) = $line =~ /^\{"stream": ?"(\w+)-/ or die $line
			  unless $category{$log};
			$line =~ s/\\/\\\\/g;
			print $out $line;
		}
		print $out "\\.\n";
		print $out <<"EOT";
COPY (SELECT line->>'stream', line->>'type', line->>'occurred_at',
	line->'data', line->'metadata' FROM line_$log ORDER BY n) TO '$dir/$log.copy';
COPY event_store.events (stream, type, occurred_at, data, metadata)
	FROM '$dir/$log.copy';
EOT
	}
	print $out "COMMIT;\n";
	close $out;
	command_ok(
		[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $script,
			'-d', $logs->connstr('postgres') ],
		'both logs load through COPY in one transaction');
	$logs->safe_psql('postgres', 'ANALYZE');

	# The answers, as two columns of text in one order, from a relation that
	# has the events of a category.
	my $answer = sub {
		my ($sql) = @_;

		return $logs->safe_psql('postgres', $sql);
	};
	my $wanted = sub {
		my ($hash) = @_;

		return join "\n", map { "$_|$hash->{$_}" } sort keys %$hash;
	};

	foreach my $log (sort keys %$expected)
	{
		my $answers = $expected->{$log};
		my $category = $category{$log};
		my %source = (
			'read_category()' => "event_store.read_category('$category', 0, NULL)",
			'read_all()' => "event_store.read_all(0, NULL, ARRAY['$category'])",
			'read_stream()' =>
			  "(SELECT r.* FROM event_store.streams('$category', NULL, NULL) s,
				event_store.read_stream(s.stream) r) AS all_streams",
			'the view' => "(SELECT * FROM event_store.events WHERE category = '$category') AS e");

		foreach my $how (sort keys %source)
		{
			my $from = $source{$how};

			is( $answer->("SELECT count(*), count(DISTINCT stream) FROM $from"),
				"$answers->{events}|$answers->{streams}",
				"$log, $how: events and streams");
			is( $answer->(
					qq(SELECT type, count(*) FROM $from GROUP BY type ORDER BY type COLLATE "C")),
				$wanted->($answers->{types}),
				"$log, $how: events per type");
			is( $answer->(
					qq(SELECT length, count(*) FROM (SELECT count(*) AS length FROM $from GROUP BY stream) l
					GROUP BY length ORDER BY length::text COLLATE "C")),
				$wanted->($answers->{stream_length_histogram}),
				"$log, $how: lengths of streams");
			is( $answer->(
					qq(SELECT type, count(*) FROM (SELECT DISTINCT ON (stream) type FROM $from
					ORDER BY stream, version DESC) l GROUP BY type ORDER BY type COLLATE "C")),
				$wanted->($answers->{last_event_type_per_stream}),
				"$log, $how: last types of streams");
			is( $answer->(
					qq(SELECT stream FROM $from GROUP BY stream ORDER BY count(*) DESC, stream LIMIT 1)),
				$answers->{longest_stream},
				"$log, $how: the longest stream");
		}

		# the state before a moment, without that moment
		my $before = $answers->{latest_type_per_stream_before};
		foreach my $moment (sort keys %$before)
		{
			my %last = (
				'the view' => "SELECT DISTINCT ON (stream) type FROM event_store.events
					WHERE category = '$category' AND occurred_at < '$moment'
					ORDER BY stream, version DESC",
				'read_stream()' => "SELECT r.type
					FROM event_store.streams('$category', NULL, NULL) s,
						event_store.read_stream(s.stream, backward => true, max_count => 1,
							until_time => timestamptz '$moment' - interval '1 microsecond') r");

			foreach my $how (sort keys %last)
			{
				is( $answer->("SELECT count(*) FROM ($last{$how}) l"),
					$before->{$moment}->{streams},
					"$log, $how: streams before $moment");
				is( $answer->(
						qq(SELECT type, count(*) FROM ($last{$how}) l
						GROUP BY type ORDER BY type COLLATE "C")),
					$wanted->($before->{$moment}->{types}),
					"$log, $how: last types before $moment");
			}
		}

		# amounts are exact
		my $amount = $answers->{amount_field};
		my $paid = $answers->{payments_handled_per_month};
		is( $answer->(
				qq(SELECT to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM') AS month,
					count(*), trim_scale(sum((data->>'$amount')::numeric))
				FROM event_store.read_category('$category', 0, NULL, ARRAY['Payment Handled'])
				GROUP BY month ORDER BY month)),
			join("\n",
				map { "$_|$paid->{$_}->{count}|" . $paid->{$_}->{sum} =~ s/\.?0+\z//r }
				  sort keys %$paid),
			"$log: payments per month");
		is( $answer->(
				qq(SELECT metadata->>'role' AS role, count(*) FROM event_store.events
				WHERE category = '$category' AND type LIKE '%REJECTED%'
				GROUP BY role ORDER BY role)),
			$wanted->($answers->{rejections_per_role}),
			"$log: rejections per role");
	}
	store_is_sound($logs, 'postgres', 'the logs');
	query_is($logs, 'postgres', 'over several segments', 't',
		'SELECT count(*) > 8 FROM event_store.segments()');
	$logs->stop;
}

done_testing();
