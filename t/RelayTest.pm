# What the tests of the relay share: programs that run beside the test and are
# killed, the relay itself, and a RabbitMQ of the test's own.
package RelayTest;

use strict;
use warnings;

use Exporter 'import';
use FindBin;
use IPC::Run ();

use EventStoreTest;
use PostgreSQL::Test::Utils;

our @EXPORT = qw(
  relay_program relay_version start_program end_program is_running start_relay
  have_python start_python
);

# Debian's, for which its packages of clients are
my $python = '/usr/bin/python3';

# programs that run, and brokers
my (@programs, @brokers);

# where they write; not known before the test runs
my $dir;
sub dir { return $dir //= work_dir() }

# The relay that was built here, or is installed; undef if there is none.
sub relay_program
{
	my $bindir = `@{[ $ENV{PG_CONFIG} // 'pg_config' ]} --bindir`;

	chomp $bindir;
	return (grep { -x } "$FindBin::RealBin/../relay/event_store_relay", "$bindir/event_store_relay")[0];
}

# What it says of itself, with the brokers that it knows.
sub relay_version
{
	my ($version) = run_command([ relay_program(), '--version' ]);

	return $version;
}

# Starts a program, with the redirections of IPC::Run. It is killed with the test.
sub start_program
{
	my ($command, @redirections) = @_;
	my $program = { harness => IPC::Run::start($command, @redirections) };

	push @programs, $program;
	return $program;
}

# Ends a program by a signal, unless it has ended. Returns its exit status.
sub end_program
{
	my ($program, $signal) = @_;

	$program->{harness}->signal($signal);
	return ended($program);
}

sub ended
{
	my ($program) = @_;

	eval { $program->{harness}->finish };
	@programs = grep { $_ != $program } @programs;
	return $program->{harness}->full_result(0);
}

sub is_running
{
	my ($program) = @_;

	return $program->{harness}->pumpable;
}

# A relay of a database; its messages go to a file of its own, "log".
my $started = 0;
sub start_relay
{
	my ($node, $dbname, $broker, @options) = @_;
	my $log = dir() . '/relay_' . ++$started . '.log';
	my $program = start_program(
		[ relay_program(), '-d', $node->connstr($dbname), '-b', $broker, '-i', '1', @options ],
		'>', "$log.out", '2>', $log);

	$program->{log} = $log;
	return $program;
}

sub have_python { return -x $python }

# One of the programs in Python that lie here; "out" and "log" are the files that
# it writes. It leaves no compiled code in the tree.
sub start_python
{
	my ($script, @arguments) = @_;
	my $path = dir() . '/python_' . ++$started;
	my $program = start_program(
		[ $python, '-B', "$FindBin::RealBin/$script", @arguments ], '>', "$path.out", '2>', "$path.log");

	@$program{ 'out', 'log' } = ("$path.out", "$path.log");
	return $program;
}

END
{
	local $?;
	$_->kill foreach @brokers;
	end_program($programs[-1], 'KILL') while @programs;
}

# A server under a name and ports of its own. Options: ports, a list of further
# ones that it is up with; conf, lines of rabbitmq.conf.
package RelayTest::RabbitMQ;

use strict;
use warnings;

use IO::Socket::INET;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;

my $server = '/usr/lib/rabbitmq/bin/rabbitmq-server';

# What is missing for tests with RabbitMQ and a client of it in Python, which
# needs other modules as well; undef: nothing.
sub missing
{
	my (@modules) = @_;

	return 'the relay was built without RabbitMQ' unless RelayTest::relay_version() =~ /RabbitMQ/;
	return "no RabbitMQ is installed: $server is not there" unless -x $server;
	foreach my $module ('pika', @modules)
	{
		return "no $module for Python is installed (python3-$module)"
		  if system("$python -c 'import $module' 2>/dev/null") != 0;
	}
	return;
}

sub new
{
	my ($class, %args) = @_;
	my %port = map { $_ => PostgreSQL::Test::Cluster::get_free_port() } qw(amqp dist epmd);
	my $home = RelayTest::dir() . '/rabbitmq';
	my $self = bless {
		port => $port{amqp},
		url => "amqp://guest:guest\@127.0.0.1:$port{amqp}/%2f",
		ports => [ $port{amqp}, @{ $args{ports} // [] } ],
		pid_file => "$home/pid",
		log => "$home.log",
		env => {
			HOME => $home,
			RABBITMQ_NODENAME => "event_store_$$\@localhost",
			RABBITMQ_NODE_IP_ADDRESS => '127.0.0.1',
			RABBITMQ_NODE_PORT => $port{amqp},
			RABBITMQ_DIST_PORT => $port{dist},
			RABBITMQ_MNESIA_BASE => "$home/mnesia",
			RABBITMQ_LOG_BASE => "$home/log",
			RABBITMQ_CONFIG_FILE => "$home/rabbitmq.conf",
			RABBITMQ_ENABLED_PLUGINS_FILE => "$home/plugins",
			RABBITMQ_CONF_ENV_FILE => "$home/env.conf",
			RABBITMQ_PID_FILE => "$home/pid",
			RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS => '+S 1:1',
			ERL_EPMD_PORT => $port{epmd},
			ERL_EPMD_ADDRESS => '127.0.0.1'
		}
	}, $class;

	mkdir $home;
	append_to_file("$home/plugins", "[].\n");
	append_to_file("$home/env.conf", '');
	append_to_file("$home/rabbitmq.conf", $args{conf} // '');
	push @brokers, $self;
	return $self;
}

# Returns whether it is up in time.
sub start
{
	my ($self) = @_;
	local %ENV = (%ENV, %{ $self->{env} });

	# a daemon of that name would stay behind
	$self->{epmd} //= RelayTest::start_program([ find_program('epmd') // '/usr/bin/epmd' ], '>', "$self->{log}.epmd", '2>&1');
	$self->{program} = RelayTest::start_program([$server], '>>', $self->{log}, '2>>', $self->{log});
	return wait_until(
		sub {
			return !grep { !IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $_) } @{ $self->{ports} };
		});
}

# The script has the virtual machine as its child.
sub kill
{
	my ($self) = @_;

	return unless $self->{program};
	CORE::kill('KILL', slurp_file($self->{pid_file}) + 0) if -e $self->{pid_file};
	RelayTest::ended(delete $self->{program});
	return;
}

1;
