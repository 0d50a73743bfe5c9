# What a writer announces is never above what it draws.
#
# The bound lock of a transaction has to lie at or below each of its positions,
# or a reader passes it by. The counter's page shows a value that is ahead while
# a record of the counter is written, so writers of large batches, each of which
# writes such a record, run beside others that look at their own bound.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('bound', conf => "synchronous_commit = off\nfsync = off");

create_store($node, 'postgres', 1_000_000);
$node->safe_psql('postgres', <<'EOT');
CREATE TABLE looked (bound bigint, position bigint);
CREATE TABLE stop (n int);
EOT

# A block of 200 positions always needs a record.
my @batches = map {
	my $n = $_;
	start_worker(sub {
		EventStoreTest::Session->new($node, 'postgres')->run(<<"EOT");
DO \$\$
DECLARE
	_events jsonb := (SELECT jsonb_agg('{"type": "t", "data": 1}'::jsonb)
		FROM generate_series(1, 200));
BEGIN
	WHILE NOT EXISTS (SELECT FROM stop) LOOP
		PERFORM event_store.append_events('batch-$n', _events);
		COMMIT;
	END LOOP;
END \$\$
EOT
	});
} 1 .. 3;
my @singles = map {
	my $n = $_;
	start_worker(sub {
		EventStoreTest::Session->new($node, 'postgres')->run(<<"EOT");
DO \$\$
DECLARE
	_position bigint;
BEGIN
	FOR i IN 1 .. 4000 LOOP
		_position := (event_store.append('single-$n', 't', '1')).first_position;
		INSERT INTO looked
		SELECT classid::bigint << 32 | objid::bigint, _position
		FROM pg_locks
		WHERE pid = pg_backend_pid() AND locktype = 'userlock' AND objsubid = -6911;
		COMMIT;
	END LOOP;
END \$\$
EOT
	});
} 1 .. 4;

is(wait_workers(@singles), 0, 'writers of single events met no error');
$node->safe_psql('postgres', 'INSERT INTO stop VALUES (1)');
is(wait_workers(@batches), 0, 'writers of batches met no error');
query_is($node, 'postgres', 'each writer holds one bound', '16000',
	'SELECT count(*) FROM looked');
query_is($node, 'postgres', 'and none is above the position drawn', '',
	'SELECT bound, position FROM looked WHERE bound > position LIMIT 5');
store_is_sound($node, 'postgres', 'afterwards');

$node->stop;
done_testing();
