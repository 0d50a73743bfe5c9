# The real logs as CloudEvents, into a second database, and from there on into a
# third, in batches of which some are delivered twice: all three are the same, and
# the CloudEvents of the third are those of the first.
#
# Without the logs events are made up.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @logs = real_logs();
my $dir = work_dir();
my $node = new_node('cloudevents');

create_store($node, "db$_", 8192) foreach 1 .. 3;

if (@logs)
{
	foreach my $log (@logs)
	{
		$node->safe_psql('db1', copy_lines("PROGRAM 'gzip -dc $log'") . <<'EOT');
INSERT INTO event_store.events (stream, type, occurred_at, data, metadata)
SELECT line->>'stream', line->>'type', (line->>'occurred_at')::timestamptz, line->'data', line->'metadata' FROM line ORDER BY n
EOT
	}
}
else
{
	$node->safe_psql('db1', <<'EOT');
INSERT INTO event_store.events (stream, type, occurred_at, data, metadata)
SELECT 'order-' || n % 500, 'Changed', timestamptz '2020-01-01' + n * interval '7.000001 s', jsonb_build_object('n', n), jsonb_build_object('user', n % 7, 'cost_centre', n)
FROM generate_series(1, 20000) n
EOT
}
my $count = $node->safe_psql('db1', 'SELECT count(*) FROM event_store.events');
note "$count events";

# One batch a line, as text, which is how it would go through a broker. Every
# seventh comes again with the next one.
sub send_all
{
	my ($from, $to) = @_;

	$node->safe_psql($from, <<"EOT");
COPY (
	WITH batch AS (
		SELECT n / 1000 AS number, jsonb_agg(event ORDER BY n) AS batch
		FROM (SELECT row_number() OVER (ORDER BY e.position) AS n, event_store.to_cloudevent(e) AS event
			FROM event_store.read_all(0, NULL) AS e) AS x
		GROUP BY 1)
	SELECT batch FROM (SELECT number, 0 AS again, batch FROM batch
		UNION ALL SELECT number + 1, 1, batch FROM batch WHERE number % 7 = 0) AS x ORDER BY number, again
) TO '$dir/$from' (FORMAT csv, QUOTE E'\\x01', DELIMITER E'\\x02')
EOT
	return $node->safe_psql($to, copy_lines("'$dir/$from'") . <<'EOT');
CREATE TEMPORARY TABLE result (duplicate boolean);
DO $$
DECLARE
	batch jsonb;
BEGIN
	FOR batch IN SELECT line FROM line ORDER BY n LOOP
		INSERT INTO result SELECT duplicate FROM event_store.append_cloudevents(batch);
	END LOOP;
END $$;
SELECT count(*) FILTER (WHERE NOT duplicate), count(*) FILTER (WHERE duplicate) > 0 FROM result
EOT
}

# what an event is, but for what its store gives it
my $sum = <<'EOT';
SELECT count(*), md5(string_agg(md5(ROW(stream, version, type, schema_version, event_id, occurred_at, source, correlation_id, causation_id, data, metadata)::text), '' ORDER BY position))
FROM event_store.events
EOT
my $first = $node->safe_psql('db1', $sum);

is(send_all('db1', 'db2'), "$count|t", 'all arrive, and the second time as duplicates');
is($node->safe_psql('db2', $sum), $first, 'the second database has the same events in the same order');
is(send_all('db2', 'db3'), "$count|t", 'and from there on');
is($node->safe_psql('db3', $sum), $first, 'the third, too');
my $made = 'SELECT md5(string_agg(md5(event_store.to_cloudevent(e)::text), NULL ORDER BY position)) FROM event_store.read_all(0, NULL) AS e';
is($node->safe_psql('db3', $made), $node->safe_psql('db1', $made), 'and makes the same CloudEvents');
store_is_sound($node, "db$_", "database $_") foreach 2, 3;

$node->stop;
done_testing();
