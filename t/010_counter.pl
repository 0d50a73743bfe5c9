# The counter of positions after a crash, whatever else has written its page.
#
# Draws move the counter in place and write WAL only now and then, ahead of
# what they draw. Other things write an image of the same page to the WAL as it
# stands: hint bits where they are logged, VACUUM, a rewrite of the table, a
# copy of the database. After a crash such an image must not make the counter
# go back to it, behind draws that were made since: they would be made again.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# With wal_level = replica draws write records for standbys as well, with
# minimal copies are not logged: the two differ in what a crash finds.
sub crash_with
{
	my ($wal_level) = @_;

	my $node = new_node($wal_level, conf => <<"EOT");
wal_level = $wal_level
max_wal_senders = 0
wal_log_hints = on
allow_in_place_tablespaces = on
autovacuum = off
checkpoint_timeout = 1h
EOT

	$node->safe_psql('postgres', q(CREATE TABLESPACE elsewhere LOCATION ''));

	# What is done between a checkpoint and the draws that a crash must not take
	# back: its name, the database, and the command that is run in it.
	my @cases = (
		[ 'nothing', 'plain', '' ],
		[ 'a look at the row', 'looked', 'SELECT * FROM event_store.position_counter' ],
		[ 'VACUUM', 'vacuumed', 'VACUUM event_store.position_counter' ],
		[ 'VACUUM FREEZE', 'frozen', 'VACUUM (FREEZE) event_store.position_counter' ],
		[ 'VACUUM FULL', 'rewritten', 'VACUUM FULL event_store.position_counter' ],
		[ 'ANALYZE', 'analyzed', 'ANALYZE event_store.position_counter' ],
		[ 'SET TABLESPACE', 'moved', 'ALTER TABLE event_store.position_counter SET TABLESPACE elsewhere' ],
		[ 'a dump of it', 'dumped', 'COPY event_store.position_counter TO STDOUT' ],
		[ 'publication of the mark', 'published', 'SELECT event_store.publish_settled_position()' ]);

	foreach my $case (@cases)
	{
		my (undef, $dbname, $sql) = @$case;

		create_store($node, $dbname, 64);
		$node->safe_psql($dbname,
			q(SELECT event_store.append('a-1', 'before', '{}') FROM generate_series(1, 5)));
	}

	# Databases made of another, in both ways, while the server runs. The copy of
	# files is made first: it needs checkpoints, after which a draw would write a
	# record anyway.
	create_store($node, 'origin', 64);
	$node->safe_psql('origin',
		q(SELECT event_store.append('a-1', 'before', '{}') FROM generate_series(1, 5)));
	$node->safe_psql('postgres', 'CHECKPOINT');
	$node->safe_psql('postgres',
		'CREATE DATABASE copied_files TEMPLATE origin STRATEGY file_copy');
	my $redo = $node->safe_psql('postgres', 'SELECT redo_lsn FROM pg_control_checkpoint()');

	$node->safe_psql($_->[1], $_->[2]) foreach @cases;
	$node->safe_psql('postgres',
		'CREATE DATABASE copied_blocks TEMPLATE origin STRATEGY wal_log');
	push @cases,
	  [ 'being a template', 'origin', '' ],
	  [ 'CREATE DATABASE by files', 'copied_files', '' ],
	  [ 'CREATE DATABASE by blocks', 'copied_blocks', '' ];

	# fewer than a record of the counter covers
	my %last;
	foreach my $case (@cases)
	{
		my (undef, $dbname) = @$case;

		$last{$dbname} = $node->safe_psql($dbname, <<'EOT');
SELECT event_store.append('a-1', 'acknowledged', '{}') FROM generate_series(1, 10) \g /dev/null
SELECT last_position FROM event_store.append('a-2', 'acknowledged', '{}', expected_version => 0)
EOT
	}

	is( $node->safe_psql('postgres', 'SELECT redo_lsn FROM pg_control_checkpoint()'),
		$redo, "$wal_level: no checkpoint came in between");
	$node->stop('immediate');
	$node->start;

	foreach my $case (@cases)
	{
		my ($what, $dbname) = @$case;
		my $session = EventStoreTest::Session->new($node, $dbname);
		my ($next) = $session->try(
			q(SELECT first_position FROM event_store.append('a-1', 'after', '{}', expected_version => 15)));

		is($session->{sqlstate}, '00000', "$wal_level, after $what: an append succeeds")
		  or diag $session->{message};
		cmp_ok($next // 0, '>', $last{$dbname}, "$wal_level, after $what: at a new position");
		query_is($node, $dbname, "$wal_level, after $what: events are as they were", '5,11', <<'EOT');
SELECT string_agg(count::text, ',' ORDER BY type DESC)
FROM (SELECT type, count(*) FROM event_store.events WHERE type <> 'after' GROUP BY type) t
EOT
		query_is($node, $dbname, "$wal_level, after $what: positions are unique", '0',
			'SELECT count(*) - count(DISTINCT position) FROM event_store.events');
	}

	$node->stop;
	return;
}

crash_with($_) foreach 'minimal', 'replica';

done_testing();
