# A client that people use: psycopg 2, from Debian's python3-psycopg2, directly
# and through a transaction pooler. What it does stands in psycopg.py.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($python) = grep { -x && system($_, '-c', 'import psycopg2.extras') == 0 } '/usr/bin/python3';

plan skip_all => 'pgbouncer is not installed' unless find_program('pgbouncer');
plan skip_all => 'psycopg2 is not installed' unless $python;

# nobody looks for himself, as good as
my $node = new_node('clients', conf => 'event_store.look_interval = 1h');
my $user = $node->safe_psql('postgres', 'SELECT current_user');

create_store($node, 'postgres', 64);
# a client's statements go to one connection of the server after the other
my $pooler = start_pooler($node, conf => 'server_round_robin = 1');
run_client($python, "$FindBin::RealBin/psycopg.py",
	$node->connstr('postgres') . " user=$user", $pooler->{connstr});

stop_pooler($pooler);
$node->stop;
done_testing();
