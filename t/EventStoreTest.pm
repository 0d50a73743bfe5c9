# What the tests of this folder share: a node with a store in it, a transaction
# pooler in front of it, psql sessions that can be left waiting, worker
# processes, and the questions that every test asks of a store at its end.
package EventStoreTest;

use strict;
use warnings;

use Carp;
use Cwd 'abs_path';
use Exporter 'import';
use FindBin;
use IPC::Run ();
use POSIX ();
use Time::HiRes qw(usleep);

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  new_node create_store work_dir wait_until start_worker wait_workers
  find_program start_pooler stop_pooler run_client
  real_logs copy_lines
  checksum streams_checksum query_is store_is_sound sqlstate_of quote_literal json_string
);

# workers by process id: those that run, and the exit status of the others
my (%running, %status);

# poolers that run
my @poolers;

# A node that is initialized and started. The settings are lines of
# postgresql.conf.
sub new_node
{
	my ($name, %args) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(
		allows_streaming => $args{allows_streaming},
		extra => [ '--encoding=UTF8', '--locale=C' ]);
	$node->append_conf('postgresql.conf', <<"EOT");
max_connections = 60
max_prepared_transactions = 30
shared_buffers = 64MB
log_statement = none
log_min_messages = warning
jit = off
EOT
	$node->append_conf('postgresql.conf', $args{conf}) if $args{conf};
	$node->start;
	return $node;
}

# Makes the store, in a new database unless it is "postgres", with segments of
# so many positions.
sub create_store
{
	my ($node, $dbname, $segment_size) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $dbname")
	  if $dbname ne 'postgres';
	$node->safe_psql($dbname, 'CREATE EXTENSION event_store');
	$node->safe_psql($dbname,
		"SELECT event_store.set_segment_size($segment_size)")
	  if $segment_size;
	return;
}

# A directory of the test's own, by a name that the server understands, too.
sub work_dir { return abs_path(PostgreSQL::Test::Utils::tempdir) }

# Waits for a condition that isn't one of a database (poll_query_until is for
# those), as long as the workers that it depends on run. Returns whether it came
# true in time.
sub wait_until
{
	my ($condition, @workers) = @_;
	my $attempts = 50 * $PostgreSQL::Test::Utils::timeout_default;

	while ($attempts-- > 0)
	{
		return 1 if $condition->();
		return 0 if grep { defined reap($_, POSIX::WNOHANG) } @workers;
		usleep(20_000);
	}
	return 0;
}

# Runs the code in a process of its own. It must not use Test::More: what it
# found goes to a file, and its death into the exit status.
sub start_worker
{
	my ($code) = @_;

	STDOUT->flush;
	STDERR->flush;
	my $pid = fork;
	croak "could not fork: $!" unless defined $pid;
	if ($pid)
	{
		$running{$pid} = 1;
		return $pid;
	}

	my $ok = eval { $code->(); 1; };
	print STDERR "worker $$: $@" unless $ok;
	# without the END blocks, which would stop the servers
	POSIX::_exit($ok ? 0 : 1);
}

# The exit status of a worker, undef while it runs.
sub reap
{
	my ($pid, $flags) = @_;

	if ($running{$pid} && waitpid($pid, $flags) == $pid)
	{
		delete $running{$pid};
		$status{$pid} = $?;
	}
	return $status{$pid};
}

# Waits for workers, by their process ids, and returns how many failed.
sub wait_workers { return scalar grep { reap($_, 0) != 0 } @_ }

# A test that dies leaves no worker behind, which might go on for ever.
END
{
	local $?;
	kill 'KILL', keys %running;
	waitpid($_, 0) foreach keys %running;
}

# The path of a program, undef if it is not installed.
sub find_program
{
	my ($name) = @_;

	return (grep { -x } map { "$_/$name" } split(/:/, $ENV{PATH}),
		'/usr/sbin', '/usr/local/sbin')[0];
}

# Starts a pgbouncer in transaction mode in front of the node's database
# "postgres", which accepts all users as the caller. Its socket lies where the
# node's does. The settings are lines of pgbouncer.ini.
sub start_pooler
{
	my ($node, %args) = @_;
	my $dir = work_dir();
	my $host = $node->host;
	my $port = PostgreSQL::Test::Cluster::get_free_port();
	my $user = $node->safe_psql('postgres', 'SELECT current_user');
	my $conf = $args{conf} // '';

	# auth_type "any" takes the user's name from the database's line
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
$conf
EOT
	my $pooler = {
		host => $host,
		port => $port,
		connstr => "host=$host port=$port dbname=postgres user=$user",
		harness => IPC::Run::start(
			[ find_program('pgbouncer'), '-q', "$dir/pgbouncer.ini" ],
			'>', "$dir/pgbouncer.out", '2>&1'),
	};
	push @poolers, $pooler;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok( wait_until(
			sub {
				system('psql', '-XqAt', '-d', $pooler->{connstr},
					'-o', '/dev/null', '-c', 'SELECT 1') == 0;
			}),
		'the pooler is up')
	  or diag map { -e ? slurp_file($_) : () } "$dir/pgbouncer.out", "$dir/pgbouncer.log";
	return $pooler;
}

sub stop_pooler
{
	my ($pooler) = @_;

	@poolers = grep { $_ != $pooler } @poolers;
	$pooler->{harness}->signal('INT');
	$pooler->{harness}->finish;
	return;
}

END
{
	local $?;
	$_->{harness}->signal('KILL') foreach @poolers;
}

# Runs a program in another language that prints "ok - name" or "not ok - name"
# for each of its checks: these are the test's, and so is that it ends well, and
# that it has any.
sub run_client
{
	my (@command) = @_;
	my ($out, $err) = ('', '');
	my $ends_well = eval { IPC::Run::run(\@command, '>', \$out, '2>', \$err, IPC::Run::timeout(900)) };
	my @checks = grep { /^(not )?ok - / } split /\n/, $out;
	my $good = 1;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach (@checks)
	{
		my ($not, $name) = /^(not )?ok - (.*)/;
		ok(!$not, $name) or $good = 0;
	}
	ok($ends_well && @checks, 'the client ends well') or $good = 0;
	diag $err unless $good;
	return $good;
}

# The real logs, where they are: beside the checkout, in ../shared/data, or where
# EVENT_STORE_DATA says.
sub real_logs
{
	my $data = $ENV{EVENT_STORE_DATA} // "$FindBin::RealBin/../../shared/data";

	return -e "$data/expected.json" ? glob "$data/*.ndjson.gz" : ();
}

# Commands that make a temporary table "line", with a number n, of lines of JSON
# from somewhere that COPY knows: a column of CSV, with quotation marks that no JSON
# has.
sub copy_lines
{
	my ($from) = @_;

	return "CREATE TEMPORARY TABLE line (n bigserial, line jsonb);\n"
	  . "COPY line (line) FROM $from (FORMAT csv, QUOTE E'\\x01', DELIMITER E'\\x02');\n";
}

# The content of a store, all that a client can see of its events, in one line.
sub checksum
{
	my ($node, $dbname) = @_;

	return $node->safe_psql($dbname, <<'EOT');
SET timezone = 'UTC';
SELECT count(*), md5(string_agg(e::text, E'\n' ORDER BY position))
FROM event_store.events e;
EOT
}

# What the look-up functions say about all streams.
sub streams_checksum
{
	my ($node, $dbname) = @_;

	return $node->safe_psql($dbname, <<'EOT');
SET timezone = 'UTC';
SELECT count(*), md5(string_agg(i::text, E'\n' ORDER BY i.stream))
FROM event_store.streams(max_count => NULL) s,
	event_store.stream_info(s.stream) i;
EOT
}

# Runs a query and compares what it returns.
sub query_is
{
	my ($node, $dbname, $name, $expected, $sql) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($node->safe_psql($dbname, $sql), $expected, $name);
}

# What must hold in every store whatever was done to it: each query returns
# what contradicts it.
sub store_is_sound
{
	my ($node, $dbname, $when) = @_;
	my %contradiction = (
		'versions are dense' => <<'EOT',
SELECT stream, count(*), min(version), max(version) FROM event_store.events
GROUP BY stream
HAVING min(version) <> 1 OR max(version) <> count(*)
	OR count(DISTINCT version) <> count(*)
EOT
		'positions are unique' => <<'EOT',
SELECT position FROM event_store.events GROUP BY position HAVING count(*) > 1
EOT
		'event ids are unique in a stream' => <<'EOT',
SELECT stream, event_id FROM event_store.events
GROUP BY stream, event_id HAVING count(*) > 1
EOT
		'positions follow versions' => <<'EOT',
SELECT stream, version FROM (
	SELECT stream, version, position,
		lag(position) OVER (PARTITION BY stream ORDER BY version) AS earlier
	FROM event_store.events) e
WHERE earlier >= position
EOT
		'recorded_at follows positions' => <<'EOT',
SELECT position FROM (
	SELECT position, recorded_at,
		lag(recorded_at) OVER (ORDER BY position) AS earlier
	FROM event_store.events) e
WHERE earlier > recorded_at
EOT
		'a segment holds its own positions' => <<'EOT',
SELECT s.segment, e.position
FROM event_store.event e
JOIN event_store.segments() s ON s.segment = e.tableoid
WHERE e.position NOT BETWEEN s.first_position AND s.last_position
EOT
		'no position lies above the counter' => <<'EOT',
SELECT max(position) FROM event_store.events
HAVING max(position) > event_store.last_position()
EOT
		'stream_version() agrees with the events' => <<'EOT',
SELECT stream FROM event_store.events
GROUP BY stream
HAVING max(version) <> event_store.stream_version(stream)
EOT
		'read_stream() agrees with the events' => <<'EOT',
SELECT position, e, r FROM event_store.events e
FULL JOIN (SELECT r.* FROM event_store.streams(max_count => NULL) s,
	event_store.read_stream(s.stream) r) r USING (position)
WHERE (e.stream, e.version, e.type, e.event_id, e.data)
	IS DISTINCT FROM (r.stream, r.version, r.type, r.event_id, r.data)
EOT
		'streams() has every stream, and none without events' => <<'EOT',
SELECT coalesce(s.stream, e.stream)
FROM event_store.streams(max_count => NULL) s
FULL JOIN (SELECT DISTINCT stream FROM event_store.events) e USING (stream)
WHERE s.stream IS NULL OR e.stream IS NULL
EOT
	);
	my $sound = 1;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $what (sort keys %contradiction)
	{
		query_is($node, $dbname, "$when: $what", '', $contradiction{$what})
		  or $sound = 0;
	}
	return $sound;
}

# The SQLSTATE that a command ends with, '00000' where it succeeds.
sub sqlstate_of
{
	my ($node, $dbname, $sql, %args) = @_;
	my $session = EventStoreTest::Session->new($node, $dbname, %args);

	$session->try($sql);
	my $sqlstate = $session->{sqlstate};
	$session->quit;
	return $sqlstate;
}

sub quote_literal
{
	my ($text) = @_;

	$text =~ s/'/''/g;
	return "'$text'";
}

# A JSON string, of text without control characters.
sub json_string
{
	my ($text) = @_;

	$text =~ s/(["\\])/\\$1/g;
	return qq("$text");
}

# A psql process that takes one command at a time. Unlike background_psql it can
# be left with a command that waits for a lock, gives the SQLSTATE of each
# command, and can be used in a process that was forked.
package EventStoreTest::Session;

use strict;
use warnings;

use Carp;
use Errno;
use IPC::Open3;
use Time::HiRes qw(time);

my $instances = 0;

# Options: user, connstr (instead of the node's), app (application_name).
sub new
{
	my ($class, $node, $dbname, %args) = @_;
	my $connstr = $args{connstr} // $node->connstr($dbname);

	$connstr .= " user=$args{user}" if defined $args{user};
	$connstr .= ' application_name=' . ($args{app} // 's' . ++$instances);
	my $pid = open3(my $in, my $out, undef,
		'psql', '-X', '-A', '-t', '-q', '-F', '|', '-d', $connstr);
	my $self = bless {
		in => $in,
		out => $out,
		pid => $pid,
		count => 0,
		buffer => '',
		sqlstate => '00000',
		message => '',
		lost => 0,
		node => $node,
	}, $class;

	$in->autoflush(1);
	$self->{backend} = ($self->try('SELECT pg_catalog.pg_backend_pid()'))[0]
	  unless $args{no_wait};
	return $self;
}

# Sends one command and does not wait for its end.
sub send
{
	my ($self, $sql) = @_;
	my $number = ++$self->{count};

	local $SIG{PIPE} = 'IGNORE';
	$sql =~ s/[\s;]+\z//;
	return if print { $self->{in} } "$sql;\n\\echo END $number :SQLSTATE\n";
	# its psql has been killed
	@$self{ 'lost', 'sqlstate', 'message' } = (1, 'lost', '');
	return;
}

# Waits for the end of the command that was sent, returns its rows. Sets
# sqlstate, to 'lost' where the connection is.
sub result
{
	my ($self) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;
	my $end = qr/^END $self->{count} (\w*)\n/m;

	until ($self->{buffer} =~ $end)
	{
		my $ready = '';

		vec($ready, fileno($self->{out}), 1) = 1;
		my $found = select($ready, undef, undef, $deadline - time);
		next if $found < 0 && $!{EINTR};
		if ($found <= 0)
		{
			# it would go on to wait for what it is asked to end
			kill 'KILL', $self->{pid};
			$self->{lost} = 1;
			croak "timed out waiting for a command: $self->{buffer}";
		}
		unless (sysread $self->{out}, $self->{buffer}, 65536,
			length $self->{buffer})
		{
			$self->{lost} = 1;
			$self->{sqlstate} = 'lost';
			$self->{message} = $self->{buffer};
			return;
		}
	}
	$self->{buffer} =~ s/\A(.*?)$end//s;
	my $answer = $1;
	# psql has no SQLSTATE for the loss of a connection, unless the server could
	# still say why it ends it (57P01 … 57P03)
	$self->{lost} = 1 if $2 eq '' || $2 =~ /\A57P0[123]\z/;
	$self->{sqlstate} = $2 || 'lost';

	my (@rows, @messages);
	foreach my $line (split /\n/, $answer)
	{
		if (@messages && $self->{sqlstate} ne '00000'
			|| $line =~
			/^(ERROR|FATAL|WARNING|NOTICE|DETAIL|HINT|CONTEXT|LINE \d+): /)
		{
			push @messages, $line;
		}
		else
		{
			push @rows, $line;
		}
	}
	$self->{message} = join "\n", @messages;
	return @rows;
}

# Runs a command, returns its rows; sqlstate tells how it went.
sub try
{
	my ($self, $sql) = @_;

	$self->send($sql);
	return if $self->{lost};
	return $self->result;
}

# Runs a command that has to succeed, returns its rows, in scalar context the
# first of them.
sub run
{
	my ($self, $sql) = @_;
	my @rows = $self->try($sql);

	croak "$self->{sqlstate}: $self->{message}\nin: $sql"
	  if $self->{sqlstate} ne '00000';
	return wantarray ? @rows : $rows[0];
}

# Waits until the session's command waits for a lock. Returns whether it does.
sub waits
{
	my ($self) = @_;

	return $self->{node}->poll_query_until('postgres', <<"EOT");
SELECT wait_event_type = 'Lock' FROM pg_stat_activity
WHERE pid = $self->{backend}
EOT
}

# Sends a command and waits until it waits for events, or what comes of them. Returns
# whether it does.
sub send_to_wait
{
	my ($self, $sql) = @_;

	$self->send($sql);
	return $self->{node}->poll_query_until('postgres', <<"EOT");
SELECT wait_event_type = 'Extension' AND state = 'active' FROM pg_stat_activity
WHERE pid = $self->{backend}
EOT
}

# What others see of the session: whether it has an xmin, and a transaction id.
sub holds
{
	my ($self) = @_;

	return $self->{node}->safe_psql('postgres', <<"EOT");
SELECT backend_xmin IS NOT NULL, backend_xid IS NOT NULL FROM pg_stat_activity
WHERE pid = $self->{backend}
EOT
}

sub quit
{
	my ($self) = @_;

	return unless $self->{pid};
	local $SIG{PIPE} = 'IGNORE';
	# not by closing the pipe alone: a worker may have inherited it
	print { $self->{in} } "\\q\n";
	close $self->{in};
	waitpid $self->{pid}, 0;
	close $self->{out};
	$self->{pid} = 0;
	return;
}

sub DESTROY
{
	my ($self) = @_;

	local ($?, $!);
	$self->quit if $self->{pid};
	return;
}

1;
