# A client that people use: node-postgres, directly and through a transaction
# pooler. What it does stands in node_postgres.js.
#
# It is Debian's (node-pg) where that is installed, else npm's: fetched into a
# directory that goes with the test.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($node_js) = grep { defined } map { find_program($_) } 'node', 'nodejs';

plan skip_all => 'pgbouncer is not installed' unless find_program('pgbouncer');
plan skip_all => 'Node.js is not installed' unless $node_js;

# The version of node-postgres that programs find, undef if there is none.
sub version_of_pg
{
	my ($out, $err) = ('', '');

	return undef unless IPC::Run::run(
		[ $node_js, '-p', q(require('pg'); require('pg/package.json').version) ],
		'>', \$out, '2>', \$err);
	chomp $out;
	return $out;
}

# What npm says where it can't reach the registry. Whatever else it says is a
# failure.
my $no_network = qr/\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|ENOTCACHED|ERR_SOCKET_TIMEOUT)\b/;

my $version = version_of_pg();
unless ($version)
{
	my $npm = find_program('npm');
	my $dir = PostgreSQL::Test::Utils::tempdir_short();
	my ($out, $err) = ('', '');

	plan skip_all => 'neither node-postgres (Debian: node-pg) nor npm is installed' unless $npm;
	my $fetched = IPC::Run::run(
		[
			$npm, 'install', '--prefix', $dir, '--cache', "$dir/cache",
			'--no-save', '--no-audit', '--no-fund', '--ignore-scripts',
			'--no-update-notifier', '--fetch-retries=1', '--fetch-retry-mintimeout=1000', '--fetch-timeout=60000', 'pg@8'
		],
		'<', \undef, '>', \$out, '2>', \$err);
	plan skip_all => "npm can't reach its registry: $1" if !$fetched && $err =~ $no_network;

	$ENV{NODE_PATH} = "$dir/node_modules";
	$version = version_of_pg();
	ok($fetched && $version, 'npm fetches node-postgres') or diag $err;
	unless ($version)
	{
		done_testing();
		exit;
	}
}
note "node-postgres $version";

# nobody looks for himself, as good as
my $node = new_node('clients', conf => 'event_store.look_interval = 1h');
my $user = $node->safe_psql('postgres', 'SELECT current_user');

create_store($node, 'postgres', 64);
# a client's statements go to one connection of the server after the other
my $pooler = start_pooler($node, conf => 'server_round_robin = 1');
run_client($node_js, "$FindBin::RealBin/node_postgres.js",
	$node->host, $user, $node->port, $pooler->{port});

stop_pooler($pooler);
$node->stop;
done_testing();
