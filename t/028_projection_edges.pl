# Projections where PostgreSQL has edges: prepared transactions, a dump in the
# middle of a rebuild, a standby, another encoding, refreshers that deadlock,
# tables that are altered under load.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $dir = work_dir();
my $node = new_node('edges', allows_streaming => 1);
my $sql = sub { return $node->safe_psql('postgres', $_[0]); };

create_store($node, 'postgres', 64);
$sql->(<<'EOT');
CREATE TABLE total (gone int, k text PRIMARY KEY, n bigint, id int GENERATED ALWAYS AS IDENTITY, twice bigint GENERATED ALWAYS AS (2 * n) STORED);
ALTER TABLE total DROP gone;
CREATE VIEW is_right AS SELECT count(*) FILTER (WHERE t.n IS DISTINCT FROM e.n OR t.twice IS DISTINCT FROM 2 * e.n) = 0 AS is_right
	FROM total t FULL JOIN (SELECT stream, count(*) AS n FROM event_store.events GROUP BY 1) e ON e.stream = t.k;
CREATE TABLE seen (position bigint);
SELECT event_store.create_projection('total', 'set', $$INSERT INTO total AS t (k, n) SELECT stream, count(*) FROM new_events GROUP BY 1 ORDER BY 1
	ON CONFLICT (k) DO UPDATE SET n = t.n + excluded.n$$, tables => '{total}');
SELECT event_store.create_projection('fold', 'fold', 'count');
SELECT event_store.create_projection('inline', 'set', 'INSERT INTO seen SELECT position FROM new_events', 'inline');
SELECT count(event_store.append('a-' || i % 5, 't', '1')) FROM generate_series(1, 100) i;
SELECT event_store.refresh_projections();
EOT

# ---------------------------------------------------------------------------
# Prepared transactions
# ---------------------------------------------------------------------------

my $session = EventStoreTest::Session->new($node, 'postgres');

$session->run(q(SELECT event_store.append('a-1', 't', '1')));
$session->run('BEGIN');
$session->run(q(SELECT event_store.refresh_projection('total')));
$session->run("PREPARE TRANSACTION 'refresh'");
is($session->run(q(SELECT event_store.refresh_projection('total'))), undef, 'who is prepared has the projection');
$node->stop('immediate');
$node->start;
$session = EventStoreTest::Session->new($node, 'postgres');
is($session->run(q(SELECT event_store.refresh_projection('total'))), undef, 'after a crash, too');
$session->run("ROLLBACK PREPARED 'refresh'");
is($session->run(q(SELECT event_store.refresh_projection('total'))), 1, 'rolled back nothing was done');
$session->run(q(SELECT event_store.append('a-1', 't', '1')));
$session->run('BEGIN');
$session->run(q(SELECT event_store.refresh_projection('total')));
$session->run("PREPARE TRANSACTION 'refresh'");
$session->run("COMMIT PREPARED 'refresh'");
is($session->run(q(SELECT event_store.refresh_projection('total'))), 0, 'committed all was');
query_is($node, 'postgres', 'and once', 't', 'SELECT is_right FROM is_right');

# an inline one that is dropped in a prepared transaction is there until that commits
$session->run('BEGIN');
$session->run(q(SELECT event_store.drop_projection('inline')));
$session->run("PREPARE TRANSACTION 'drop'");
$session->run(q(SELECT event_store.append('a-1', 't', '1')));
$session->run("ROLLBACK PREPARED 'drop'");
$session->run(q(SELECT event_store.append('a-1', 't', '1')));
$session->run('BEGIN');
$session->run(q(SELECT event_store.append('a-2', 't', '1')));
$session->run("PREPARE TRANSACTION 'append'");
$session->run("COMMIT PREPARED 'append'");
query_is($node, 'postgres', 'inline: prepared or not, each event is applied once', '0|0', <<'EOT');
SELECT (SELECT count(*) FROM (SELECT position FROM event_store.events EXCEPT ALL SELECT position FROM seen) m),
	(SELECT count(*) FROM (SELECT position FROM seen EXCEPT ALL SELECT position FROM event_store.events) m)
EOT

# a prepared reader of the table is in the way of a change of places; one that changes places is prepared
$session->run(q(SELECT event_store.refresh_projections()));
$session->run(q(SELECT event_store.rebuild_projection('total')));
$session->run('BEGIN');
$session->run('SELECT count(*) FROM total');
$session->run("PREPARE TRANSACTION 'read'");
$session->run(q(SELECT event_store.refresh_projection('total'))) foreach 1 .. 3;
query_is($node, 'postgres', 'a prepared reader is in the way', 'switching', 'SELECT phase FROM event_store.projection_rebuilds');
$session->run("COMMIT PREPARED 'read'");
$session->run('BEGIN');
$session->run(q(SELECT event_store.finish_rebuild('total')));
$session->run("PREPARE TRANSACTION 'finish'");
$session->run("ROLLBACK PREPARED 'finish'");
query_is($node, 'postgres', 'a change of places that is rolled back', 't|switching', 'SELECT is_right, phase FROM is_right, event_store.projection_rebuilds');
$session->run('BEGIN');
$session->run(q(SELECT event_store.finish_rebuild('total')));
$session->run("PREPARE TRANSACTION 'finish'");
$node->stop('immediate');
$node->start;
$sql->("COMMIT PREPARED 'finish'");
query_is($node, 'postgres', 'and one that is committed after a crash', 't|0', 'SELECT is_right, (SELECT count(*) FROM event_store.projection_rebuilds) FROM is_right');

# ---------------------------------------------------------------------------
# A dump in the middle of a rebuild; a standby
# ---------------------------------------------------------------------------

$sql->(<<'EOT');
SELECT event_store.rebuild_projection('total', keep_old => true);
SELECT event_store.refresh_projection('total', 30);
SELECT event_store.rebuild_projection('fold');
SELECT event_store.refresh_projection('fold', 30);
EOT
my $rebuilds = 'SELECT projection, phase, done, events FROM event_store.projection_rebuilds ORDER BY 1';
my $before = $sql->($rebuilds);
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dir/dump", 'postgres' ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', "$dir/dump" ], 'pg_restore');
query_is($node, 'restored', 'rebuilds are where they were', $before, $rebuilds);
foreach my $dbname ('restored', 'postgres')
{
	$node->safe_psql($dbname, q(SELECT event_store.append('a-3', 't', '1'); CALL event_store.catch_up_projection('total'); CALL event_store.catch_up_projection('fold')));
	query_is($node, $dbname, "$dbname: they take their places", 't|total', q(SELECT is_right, string_agg(projection, ',') FILTER (WHERE phase = 'kept' AND projection = 'total') FROM is_right, event_store.projection_rebuilds GROUP BY 1));
	$node->safe_psql($dbname, q(SELECT event_store.append('a-3', 't', '1'); SELECT event_store.revert_rebuild('total'); CALL event_store.catch_up_projection('total')));
	query_is($node, $dbname, "$dbname: and go back", 't', 'SELECT is_right FROM is_right');
	$node->safe_psql($dbname, q(SELECT event_store.cancel_rebuild('total'); SELECT event_store.refresh_projections()));
	query_is($node, $dbname, "$dbname: nothing is left over", '0', q(SELECT count(*) FROM pg_namespace WHERE nspname ~ '^event_store_rebuild'));
}

$node->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('edges_standby');
$standby->init_from_backup($node, 'backup', has_streaming => 1);
$standby->start;
my $change = $sql->(q(SELECT event_store.append('a-3', 't', '1'); SELECT event_store.rebuild_projection('total'); SELECT event_store.rebuild_projection('fold')));
$node->wait_for_catchup($standby);
query_is($standby, 'postgres', 'a standby: rebuilds can be watched', $sql->($rebuilds), $rebuilds);
is(sqlstate_of($standby, 'postgres', "SELECT event_store.$_('total')"), '25006', "a standby: $_ is refused")
  foreach 'rebuild_projection', 'finish_rebuild', 'revert_rebuild', 'cancel_rebuild';
$sql->(q(CALL event_store.catch_up_projection('total'); CALL event_store.catch_up_projection('fold')));
$node->wait_for_catchup($standby);
query_is($standby, 'postgres', 'a standby: the new model is there', 't', 'SELECT is_right FROM is_right');
query_is($standby, 'postgres', 'a standby: by its indexes, too', '1', q(SET enable_seqscan = off; SELECT count(*) FROM total WHERE k = 'a-3'));
$standby->promote;
$standby->safe_psql('postgres', q(SELECT event_store.append('a-4', 't', '1'); CALL event_store.catch_up_projection('total')));
query_is($standby, 'postgres', 'promoted it goes on', 't', 'SELECT is_right FROM is_right');
query_is($standby, 'postgres', 'identity too', 't', q(INSERT INTO total (k, n) VALUES ('later', 1) RETURNING id > 5));
$standby->stop;

# ---------------------------------------------------------------------------
# Another encoding
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
$node->safe_psql('latin', 'CREATE EXTENSION event_store');
query_is($node, 'latin', 'names and keys in another encoding', "l\x{c3}\x{a4}uft=1", <<"EOT");
SET client_encoding = 'UTF8';
SELECT event_store.create_projection('gr\x{c3}\x{b6}\x{c3}\x{9f}e', 'fold', 'count', categories => '{\x{c3}\x{a4}}', types => '{l\x{c3}\x{a4}uft}', key => 'type || CASE WHEN stream = ''\x{c3}\x{a4}-\x{c3}\x{b6}'' THEN '''' END') \\g /dev/null
SELECT event_store.append('\x{c3}\x{a4}-\x{c3}\x{b6}', 'l\x{c3}\x{a4}uft', '"\x{c3}\x{a9}"') \\g /dev/null
SELECT event_store.refresh_projections() \\g /dev/null
SELECT key || '=' || state FROM event_store.projection_states
EOT

# ---------------------------------------------------------------------------
# Two projections that write one table in crossed order, beside one who alters it
# ---------------------------------------------------------------------------

$sql->(<<'EOT');
SELECT event_store.drop_projection(name) FROM event_store.projections;
CREATE TABLE met (k text, whose text, n bigint, PRIMARY KEY (k));
INSERT INTO met SELECT 'a-' || i, '', 0 FROM generate_series(0, 4) i;
CREATE FUNCTION up(e event_store.recorded_event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	UPDATE met SET n = n + 1 WHERE k = e.stream;
	PERFORM pg_sleep(0.002);
END $$;
SELECT event_store.create_projection('first', 'event', 'up', categories => '{a}', batch_events => 20, first_delay => '10 ms', delay_factor => 1, max_attempts => 1);
SELECT event_store.create_projection('second', 'event', 'up', categories => '{a}', batch_events => 20, first_delay => '10 ms', delay_factor => 1, max_attempts => 1, start_after => 2);
ALTER SYSTEM SET deadlock_timeout = '20 ms';
SELECT pg_reload_conf();
EOT
my $want = $sql->(q(SELECT count(*) + count(*) FILTER (WHERE position > 2) FROM event_store.events WHERE category = 'a'));
my $deadline = time + 60;
my @refreshers = map {
	my $name = $_;
	start_worker(sub {
		my $own = EventStoreTest::Session->new($node, 'postgres');

		until (-e "$dir/stop" || time > $deadline)
		{
			$own->try("SELECT event_store.refresh_projection('$name', 20)");
			die "$own->{sqlstate}: $own->{message}" if $own->{sqlstate} ne '00000';
			usleep(5_000);
		}
		$own->quit;
	});
} 'first', 'second', 'first', 'second';
my $n = 0;
until ($sql->('SELECT sum(open_events) = 0 FROM event_store.projections') eq 't' || time > $deadline)
{
	$n++;
	$sql->("SET deadlock_timeout = '10 s'; ALTER TABLE met ADD COLUMN more_$n int DEFAULT $n");
	$sql->("SET deadlock_timeout = '10 s'; ALTER TABLE met DROP COLUMN more_$n, ALTER n TYPE " . ($n % 2 ? 'numeric' : 'bigint'));
	usleep(100_000);
}
append_to_file("$dir/stop", '');
is(wait_workers(@refreshers), 0, 'refreshers meet no error');
query_is($node, 'postgres', 'deadlocks and changes of the table count for no event', "$want|0", q(SELECT sum(n), (SELECT count(*) FROM event_store.projections WHERE status <> 'running') FROM met));
note "altered $n times";
$node->stop;

done_testing();
