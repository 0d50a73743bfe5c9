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

my ($pgbouncer) = grep { -x }
  map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin', '/usr/local/sbin';
my ($python) = grep { -x && system($_, '-c', 'import psycopg2.extras') == 0 } '/usr/bin/python3';

plan skip_all => 'pgbouncer is not installed' unless $pgbouncer;
plan skip_all => 'psycopg2 is not installed' unless $python;

my $dir = work_dir();
# nobody looks for himself, as good as
my $node = new_node('clients', conf => 'event_store.look_interval = 1h');
my $user = $node->safe_psql('postgres', 'SELECT current_user');
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $host = $node->host;

create_store($node, 'postgres', 64);
append_to_file("$dir/pgbouncer.ini", <<"EOT");
[databases]
postgres = host=$host port=@{[ $node->port ]} dbname=postgres user=$user
[pgbouncer]
pool_mode = transaction
listen_addr =
listen_port = $port
unix_socket_dir = $host
auth_type = any
logfile = $dir/pgbouncer.log
EOT
my $pooler = IPC::Run::start([ $pgbouncer, '-q', "$dir/pgbouncer.ini" ],
	'>', "$dir/pgbouncer.out", '2>&1');
my $pooled = "host=$host port=$port dbname=postgres user=$user";

ok( wait_until(sub { system('psql', '-XqAt', '-d', $pooled, '-o', '/dev/null', '-c', 'SELECT 1') == 0 }),
	'the pooler is up') or diag slurp_file("$dir/pgbouncer.log");

my ($out, $err) = ('', '');
my $fine = IPC::Run::run(
	[ $python, "$FindBin::RealBin/psycopg.py", $node->connstr('postgres') . " user=$user", $pooled ],
	'>', \$out, '2>', \$err);
foreach (split /\n/, $out)
{
	ok(!$1, $2) if /^(not )?ok - (.*)/;
}
ok($fine, 'the client ends well') or diag $err;

$pooler->signal('INT');
$pooler->finish;
$node->stop;
done_testing();
