# The relay, with a real RabbitMQ, and with librdkafka's mock of Kafka.
#
# Nothing that was published is lost, of each key the messages arrive in order (the
# first time that each does), and what arrives twice has the same message id, while
# relays are killed, the broker is killed, and connections to the database are cut.
#
# EVENT_STORE_CHAOS_SECONDS (default 12) is how long that goes on.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use RelayTest;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{EVENT_STORE_CHAOS_SECONDS} // 12;
my $dir = work_dir();
my $relay = relay_program();

plan skip_all => 'the relay was not built: no client library of a broker is installed'
  unless $relay;
my $version = relay_version();

my $node = new_node('relay', conf => "timezone = 'America/St_Johns'");
create_store($node, 'postgres');

sub run_once
{
	my ($broker, @options) = @_;
	my ($stdout, $stderr) = run_command(
		[ $relay, '-d', $node->connstr('postgres'), '-b', $broker, '-n', 'once', '--once', @options ]);

	note $stderr;
	return $stderr;
}

# Empties the outbox.
sub run_discarding
{
	sql(<<'EOT');
DO $$
DECLARE
	_count bigint;
BEGIN
	LOOP
		SELECT count(event_store.outbox_nack('once', p.id, 'discarded')) INTO _count FROM event_store.outbox_poll('once', 1000) AS p;
		EXIT WHEN _count = 0;
	END LOOP;
	PERFORM event_store.outbox_discard_dead_letters('test'), event_store.alter_outbox(max_attempts => 25);
END $$
EOT
}

sub sql { return $node->safe_psql('postgres', $_[0]) }
sub status { return sql('SELECT waiting, leased, retries, parked, dead_letters FROM event_store.outbox_status') }

# ---------------------------------------------------------------------------
# Without a broker
# ---------------------------------------------------------------------------

like($version, qr/^event_store_relay \d/, 'it knows its version');
command_fails([ $relay, '-b', 'http://x' ], 'another URL is refused');
command_fails([ $relay, '-b', 'amqp://x', '--batch', '0' ], 'a number out of bounds is refused');
foreach my $case (
	[ [ '-b', 'amqp://x', '-n', '' ], qr/--relay must not be empty/, 'an empty name' ],
	[ [ '-b', 'amqp://x', '-d', 'dbname=x password' ], qr/--dbname: missing/, 'connection parameters that are none' ],
	[ [ '-b', 'amqp://x', '--cacert', "$dir/nowhere" ], qr/could not read .*--cacert: No such/, 'authorities that are not there' ],
	[ [ '-b', 'amqp://x', '--cert', $relay ], qr/go together/, 'a certificate without its key' ],
	[ [ '-b', 'amqp://x:port/' ], $version =~ /RabbitMQ/ ? qr/no AMQP URL/ : qr/--broker/, 'an address that is none' ],
	[ [ '-b', 'amqp://x', '-e', 'x' x 256 ], $version =~ /RabbitMQ/ ? qr/exchange is longer/ : qr/--broker/, 'an exchange whose name is too long' ],
	[ [ '-b', 'kafka://x', '-X', 'nonsense=1' ], $version =~ /Kafka/ ? qr/No such configuration/ : qr/--broker/, 'a property that nobody knows' ],
	[ [ '-b', 'kafka://x', '-X', 'acks=0' ], $version =~ /Kafka/ ? qr/acks/ : qr/--broker/, 'properties that contradict each other' ],
	[ [ '-b', 'kafka://x', ('-X', 'linger.ms=1') x 65 ], qr/too many -X/, 'too many properties' ])
{
	my ($options, $like, $what) = @$case;
	my ($stdout, $stderr);

	IPC::Run::run([ $relay, @$options ], '>', \$stdout, '2>', \$stderr, IPC::Run::timeout(20));
	is($? >> 8, 2, "$what: refused at once");
	like($stderr, $like, 'with the reason');
}

# ---------------------------------------------------------------------------
# RabbitMQ
# ---------------------------------------------------------------------------

# What real servers seldom do: a broker made for it.
SKIP:
{
	skip 'the relay was built without RabbitMQ', 1 unless $version =~ /RabbitMQ/;
	skip 'no Python is installed', 1 unless have_python();
	my ($fake, $fake_port);
	my $start_fake = sub {
		$fake_port = PostgreSQL::Test::Cluster::get_free_port();
		$fake = start_python('amqp_broker.py', $fake_port, @_);
		return wait_until(sub { -s $fake->{out} });
	};
	my $end_fake = sub {
		end_program($fake, 'KILL');
		sql('SELECT event_store.alter_outbox(max_attempts => 1)');
		run_discarding();
		sql('SELECT event_store.alter_outbox(max_attempts => 1)');
	};
	my $url = sub { return "amqp://guest:secret\@127.0.0.1:$fake_port" };

	# There is no broker at all.
	$fake_port = PostgreSQL::Test::Cluster::get_free_port();
	sql(q{SELECT event_store.alter_outbox(max_attempts => 1)});
	my ($stdout, $stderr);
	IPC::Run::run([ $relay, '-d', $node->connstr('postgres'), '-b', $url->(), '--once' ], '>', \$stdout, '2>', \$stderr, IPC::Run::timeout(20));
	is($? >> 8, 1, 'with --once a relay without a broker ends, with 1');

	# It says that messages came back, and confirms them when they are long gone.
	$start_fake->('late');
	sql(q{SELECT count(event_store.publish('nobody', NULL, '1')) FROM generate_series(1, 500)});
	my $one = start_relay($node, 'postgres', $url->(), '-n', 'a"b', '-m', "$dir/metrics.fake");
	ok(wait_until(sub { status() eq '0|0|0|0|500' }), 'messages come back') or diag status();
	unlike(slurp_file("/proc/" . $one->{harness}->{KIDS}[0]{PID} . '/cmdline'), qr/secret/, 'the password is not in the list of processes')
	  if -d '/proc/self';
	sql(q{SELECT count(event_store.publish('order', NULL, '1')) FROM generate_series(1, 500)});
	ok(wait_until(sub { () = slurp_file($fake->{out}) =~ /^order$/mg >= 500 }), 'others are sent');
	usleep(300_000);
	is(status(), '0|500|0|0|500', 'what was confirmed is not taken for them');
	ok(wait_until(sub { -e "$dir/metrics.fake" && slurp_file("$dir/metrics.fake") =~ /^event_store_relay_failed_total\{relay="a\\"b"\} 500$/m }), 'metrics with a name that has a quotation mark');
	end_program($one, 'KILL');
	sql(q{SELECT event_store.outbox_release('a"b')});
	$end_fake->();

	# It confirms nothing: it is left, and that is no fault of the message.
	$start_fake->('mute');
	sql(q{SELECT event_store.publish('order', NULL, '1')});
	$one = start_relay($node, 'postgres', $url->(), '-n', 'mute', '-t', '1', '-B', '1');
	ok(wait_until(sub { slurp_file($one->{log}) =~ /(confirmed nothing for 1 seconds.*){2}/s }), 'a broker that confirms nothing is taken for lost');
	is(end_program($one, 'TERM'), 0, 'the relay stops');
	is(status(), '1|0|0|0|0', 'the message waits');
	$end_fake->();

	# It takes nothing for a while, and says so.
	$start_fake->('blocked');
	sql(q{SELECT count(event_store.publish('order', NULL, to_jsonb(repeat('x', 50000)))) FROM generate_series(1, 200)});
	$one = start_relay($node, 'postgres', $url->(), '-n', 'blocked', '-t', '3');
	ok(wait_until(sub { status() eq '0|0|0|0|0' }), 'a broker that was blocked gets its messages');
	is(scalar(() = slurp_file($fake->{out}) =~ /^order$/mg), 200, 'each once');
	like(slurp_file($one->{log}), qr/takes no messages: low on memory.*takes messages again/s, 'and the log says why it took so long');
	is(end_program($one, 'TERM'), 0, 'the relay stops');
	$end_fake->();

	# It reads no more, within a message.
	$start_fake->('stuck');
	sql(q{SELECT event_store.publish('order', NULL, '1'), event_store.publish('order', NULL, to_jsonb(repeat('x', 20000000)))});
	$one = start_relay($node, 'postgres', $url->(), '-n', 'stuck', '-t', '2');
	ok(wait_until(sub { slurp_file($one->{log}) =~ /could not publish/ }), 'a broker that reads no more is taken for lost');
	is(end_program($one, 'TERM'), 0, 'the relay stops');
	is(status(), '2|0|0|0|0', 'and gives back what it has');
	$end_fake->();

	# It says nothing, to begin with.
	$start_fake->('silent');
	sql(q{SELECT event_store.publish('order', NULL, '1')});
	$one = start_relay($node, 'postgres', $url->(), '-n', 'silent', '-v');
	wait_until(sub { slurp_file($one->{log}) =~ /connected to the database/ });
	usleep(300_000);
	is(end_program($one, 'TERM'), 0, 'a relay that connects to a broker that says nothing stops');
	$end_fake->();

	# Its frames are small.
	$start_fake->('blocked', 4096);
	sql(q{SELECT event_store.publish('order', NULL, '1', jsonb_build_object('h', repeat('x', 5000))), event_store.publish('order', NULL, to_jsonb(repeat('x', 50000)))});
	like(run_once($url->()), qr/headers are larger than a frame/, 'headers that are too large for a frame');
	is(status(), '0|0|0|0|1', 'make a dead letter, and the other message is sent');
	$end_fake->();
}

# A certificate by an authority of our own, for localhost.
sub make_certificates
{
	my $quiet = "2>>$dir/openssl.log";

	system("cd $dir && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=ca $quiet"
		  . " && openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost $quiet"
		  . " && printf 'subjectAltName=DNS:localhost\\n' > ext && openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt $quiet") == 0
	  or die 'no certificates: ' . slurp_file("$dir/openssl.log");
	return;
}

# What a consumer has written to its file.
sub received
{
	my ($file) = @_;

	# the last line may be half written
	return -e $file ? map { decode_json($_) } slurp_file($file) =~ /^(.*)\n/mg : ();
}

SKIP:
{
	my $missing = RelayTest::RabbitMQ::missing();
	skip $missing, 1 if defined $missing;

	make_certificates();
	my $tls_port = PostgreSQL::Test::Cluster::get_free_port();
	my $broker = RelayTest::RabbitMQ->new(ports => [$tls_port], conf => <<"EOT");
listeners.ssl.default = $tls_port
ssl_options.cacertfile = $dir/ca.crt
ssl_options.certfile = $dir/server.crt
ssl_options.keyfile = $dir/server.key
EOT
	if (!ok($broker->start, 'RabbitMQ is up'))
	{
		diag slurp_file($broker->{log});
		skip 'no broker', 1;
	}
	my $url = $broker->{url};
	my $consumer = start_python('amqp_consumer.py', $broker->{port}, 'all', "$dir/all", 'event_store', 'order.#');
	ok(wait_until(sub { -s $consumer->{out} }), 'the consumer is ready');

	# What a message looks like.
	sql(<<'EOT');
SELECT event_store.publish('order.placed', 'key ü', '{"n": 1.50, "text": "ü\"\n🌎"}', '{"a": "ü\"\\\n🌎", "n": 5, "object": {"x": [1, "}"]}, "none": null, "traceparent": "00-1"}',
	'11111111-2222-3333-4444-555555555555', type => 'Placed');
SELECT event_store.publish('order.none', NULL, 'null')
EOT
	run_once($url);
	ok(wait_until(sub { received("$dir/all") == 2 }), 'two messages arrive');
	# those without a key go first
	my ($second, $first) = received("$dir/all");
	is($first->{message_id}, '11111111-2222-3333-4444-555555555555', 'message_id');
	is($first->{routing_key}, 'order.placed', 'the routing key is the topic');
	is($first->{type}, 'Placed', 'type');
	is($first->{delivery_mode}, 2, 'persistent');
	is($first->{content_type}, 'application/json', 'content type');
	ok(abs($first->{timestamp} - time) < 300, 'timestamp');
	is_deeply($first->{body}, { n => 1.5, text => "\x{fc}\"\n\x{1f30e}" }, 'payload');
	is_deeply($first->{headers},
		{ a => "\x{fc}\"\\\n\x{1f30e}", n => '5', object => '{"x": [1, "}"]}', traceparent => '00-1', key => "key \x{fc}" }, 'headers');
	is($second->{headers}{key}, undef, 'no key');
	is(status(), '0|0|0|0|0', 'all are acknowledged');

	# TLS, and another routing key
	sql(q{SELECT event_store.publish('tls', 'k', '1')});
	unlike(run_once("amqps://guest:guest\@localhost:$tls_port/%2f", '--cacert', "$dir/ca.crt", '-r', 'order.{key}.{topic}'),
		qr/could not/, 'TLS');
	ok(wait_until(sub { received("$dir/all") == 3 }), 'a message arrives by TLS');
	is((received("$dir/all"))[2]{routing_key}, 'order.k.tls', 'the routing key by the template');
	sql(q{SELECT event_store.publish('order.insecure', 'k', '1')});
	my $strict = start_relay($node, 'postgres', "amqps://guest:guest\@localhost:$tls_port/%2f", '-n', 'tls');
	ok(wait_until(sub { slurp_file($strict->{log}) =~ /could not/ }), 'a certificate of an authority that nobody knows is refused');
	is(end_program($strict, 'TERM'), 0, 'and a relay without a broker stops');
	run_once("amqps://guest:guest\@127.0.0.1:$tls_port/%2f", '--insecure');
	ok(wait_until(sub { received("$dir/all") == 4 }), 'unless that is wanted');

	# A message that no queue takes is not lost.
	sql('SELECT event_store.alter_outbox(max_attempts => 1)');
	sql(q{SELECT event_store.publish('nobody', 'u', '1'), event_store.publish('order.after', 'u', '2'), event_store.publish('order.other', 'v', '3')});
	like(run_once($url), qr/NO_ROUTE/, 'a message that no queue takes comes back');
	is(status(), '0|0|0|1|1', 'it is a dead letter, and what is behind it waits');
	is(sql('SELECT topic, error FROM event_store.outbox_dead_letters'), 'nobody|RabbitMQ has returned the message: 312 NO_ROUTE', 'with the reason');
	sql(q{SELECT event_store.outbox_discard_dead_letters('test')});
	run_once($url);
	ok(wait_until(sub { received("$dir/all") == 6 }), 'the others arrive');
	# one that cannot be sent
	sql(q{SELECT event_store.publish(repeat('x', 300), NULL, '1')});
	like(run_once($url), qr/longer than 255 bytes/, 'a routing key that is too long is refused');
	sql(q{SELECT event_store.outbox_discard_dead_letters('test'), event_store.alter_outbox(max_attempts => 1000000, first_delay => '100 ms', max_delay => '1 s')});
	is(status(), '0|0|0|0|0', 'nothing is left');

	# An exchange that is not there is no message's fault.
	sql(q{SELECT event_store.publish('order.lost', 'l', '1')});
	my $lost = start_relay($node, 'postgres', $url, '-n', 'lost', '--no-declare', '-e', 'nowhere');
	ok(wait_until(sub { slurp_file($lost->{log}) =~ /404.*404/s }),
		'without the exchange it tries again');
	is(end_program($lost, 'TERM'), 0, 'until it is stopped');
	is(status(), '1|0|0|0|0', 'and the message waits');
	run_once($url);

	# A clean stop, and metrics.
	my $clean = start_relay($node, 'postgres', $url, '-n', 'clean', '-m', "$dir/metrics", '-w', '60');
	sql(q{SELECT event_store.publish('order.clean', 'c' || i, '1') FROM generate_series(1, 50) AS i});
	ok(wait_until(sub { -e "$dir/metrics" && slurp_file("$dir/metrics") =~ /^event_store_relay_acknowledged_total\{relay="clean"\} 50$/m }),
		'metrics say that all is acknowledged');
	like(slurp_file("$dir/metrics"), qr/^event_store_relay_broker_up\{relay="clean"\} 1$/m, 'and that the broker is there');
	is(end_program($clean, 'TERM'), 0, 'it stops with 0, although it waits for messages') or diag slurp_file($clean->{log});
	like(slurp_file("$dir/metrics"), qr/^event_store_relay_database_up\{relay="clean"\} 0$/m, 'and says so');

	# Chaos.
	ok(wait_until(sub { 50 == grep { $_->{routing_key} eq 'order.clean' } received("$dir/all") }), 'all has arrived');
	unlink "$dir/all";
	end_program($consumer, 'KILL');
	$consumer = start_python('amqp_consumer.py', $broker->{port}, 'all', "$dir/all");
	my %relays = map { $_ => start_relay($node, 'postgres', $url, '-n', $_, '-l', '5', '-w', '2', '-B', '50') } qw(one two);
	my $publisher = start_worker(
		sub {
			my $session = EventStoreTest::Session->new($node, 'postgres');
			my $n = 0;

			$session->run('CREATE TABLE published (message_id uuid, key text, n bigint)');
			until (-e "$dir/stop")
			{
				# some roll back
				$session->run('BEGIN');
				$session->run(<<"EOT");
WITH m AS MATERIALIZED (SELECT gen_random_uuid() AS id, 'k' || i % 20 AS key, $n + i AS n FROM generate_series(1, 10) AS i),
p AS MATERIALIZED (SELECT event_store.publish('order.chaos', key, jsonb_build_object('n', n, 'key', key), message_id => id) FROM m ORDER BY n)
INSERT INTO published SELECT id, key, n FROM m WHERE (SELECT count(*) FROM p) = 10
EOT
				$session->run($n % 70 == 0 ? 'ROLLBACK' : 'COMMIT');
				$n += 10;
				usleep(20_000);
			}
			$session->quit;
		});
	my $end = time + $seconds;
	my $round = 0;
	# at least all of it once
	while (time < $end || $round < 6)
	{
		usleep(700_000);
		my $what = $round++ % 4;
		if ($what == 0 || $what == 2)
		{
			my $name = $what == 0 ? 'one' : 'two';

			end_program($relays{$name}, 'KILL');
			$relays{$name} = start_relay($node, 'postgres', $url, '-n', $name, '-l', '5', '-w', '2', '-B', '50');
		}
		elsif ($what == 1)
		{
			$broker->kill;
			usleep(300_000);
			$broker->start or die 'the broker does not come back';
		}
		else
		{
			sql(q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'event_store_relay'});
		}
	}
	append_to_file("$dir/stop", '');
	is(wait_workers($publisher), 0, 'the publisher has published');
	my $count = sql('SELECT count(*) FROM published');
	ok($count > 100, "$count messages, in $round rounds");
	ok(wait_until(sub { status() eq '0|0|0|0|0' }), 'the outbox becomes empty') or diag status();
	my (%id_of, %seen, $late);
	wait_until(
		sub {
			%id_of = map { $_->{message_id} => 1 } received("$dir/all");
			return keys %id_of >= $count;
		});
	my @all = received("$dir/all");
	my %body;
	foreach my $message (@all)
	{
		my ($key, $n) = @{ $message->{body} }{qw(key n)};

		$body{"$key $n"}{ $message->{message_id} } = 1;
		next if $seen{ $message->{message_id} }++;
		$late = "$n after $seen{$key}, key $key" if defined $seen{$key} && $seen{$key} > $n;
		$seen{$key} = $n;
	}
	is(join(' ', sort keys %id_of), sql(q{SELECT string_agg(message_id::text, ' ' ORDER BY message_id::text COLLATE "C") FROM published}),
		'all that was published has arrived, and nothing else');
	is($late, undef, 'of each key in order');
	is(scalar(grep { keys %$_ > 1 } values %body), 0, 'a message has one id, however often it comes');
	note scalar(@all) - keys(%id_of), ' came more than once';
	is(end_program($_, 'TERM'), 0, 'a relay stops') foreach values %relays;
	is(status(), '0|0|0|0|0', 'and leaves nothing');

	# A real log as CloudEvents through the outbox, the relay and RabbitMQ into a
	# second store, with a relay killed on the way, and every tenth twice.
	my ($log) = grep { /request_for_payment/ } real_logs();
	skip 'no real logs', 1 unless $log;
	create_store($node, "db$_", 8192) foreach 1, 2;
	$node->safe_psql('db1', copy_lines("PROGRAM 'gzip -dc $log'") . <<'EOT');
INSERT INTO event_store.events (stream, type, occurred_at, data, metadata)
SELECT line->>'stream', line->>'type', (line->>'occurred_at')::timestamptz, line->'data', line->'metadata' FROM line ORDER BY n;
EOT
	$node->safe_psql('db1', <<'EOT');
SELECT count(event_store.publish('events.' || e.type, e.stream, event_store.to_cloudevent(e), message_id => e.event_id)) FROM event_store.read_all(0, NULL) AS e
EOT
	my $events = $node->safe_psql('db1', 'SELECT count(*) FROM event_store.events');
	$consumer = start_python('amqp_consumer.py', $broker->{port}, 'events', "$dir/events", 'event_store', 'events.#');
	ok(wait_until(sub { -s $consumer->{out} }), 'a second consumer is ready');
	my $one = start_relay($node, 'db1', $url, '-n', 'log', '-v');
	foreach my $part (1 .. 2)
	{
		my $wanted = $part * $events / 3;

		wait_until(sub { $node->safe_psql('db1', 'SELECT acknowledged FROM event_store.outbox_status') >= $wanted });
		end_program($one, 'KILL');
		$one = start_relay($node, 'db1', $url, '-n', 'log', '-v');
	}
	ok($node->poll_query_until('db1', 'SELECT acknowledged >= ' . $events . ' FROM event_store.outbox_status'), 'all is acknowledged');
	is(end_program($one, 'TERM'), 0, 'the relay stops');
	note slurp_file($one->{log}) =~ /(taken .*)/;
	# a broker that has confirmed them may still be delivering
	my $arrived = sub { return scalar @{ [ slurp_file("$dir/events") =~ /\n/g ] } };
	my $before = -1;
	while ($before != $arrived->()) { $before = $arrived->(); sleep 1; }
	ok($before >= $events, "$before messages arrive for $events events");
	my (@lines, $n);
	foreach my $line (split /\n/, slurp_file("$dir/events"))
	{
		push @lines, $line;
		push @lines, $lines[-5] if ++$n % 10 == 0;
	}
	append_to_file("$dir/events.twice", join("\n", @lines) . "\n");
	$node->safe_psql('db2', copy_lines("'$dir/events.twice'") . <<'EOT');
SELECT count(a) FROM (SELECT jsonb_agg(line->'body' ORDER BY n) AS batch FROM line GROUP BY n / 1000 ORDER BY n / 1000) AS b, event_store.append_cloudevents(batch) AS a
EOT
	my $sum = <<'EOT';
SELECT count(*), md5(string_agg(md5(ROW(stream, version, type, schema_version, event_id, occurred_at, source, data, metadata)::text), '' ORDER BY stream, version)) FROM event_store.events
EOT
	is($node->safe_psql('db2', $sum), $node->safe_psql('db1', $sum), 'the second store equals the first');
}

# ---------------------------------------------------------------------------
# Kafka
# ---------------------------------------------------------------------------

SKIP:
{
	skip 'the relay was built without Kafka', 1 unless $version =~ /Kafka/;
	my ($mock_in, $mock_out) = ('', '');
	my $flags = `pkg-config --cflags --libs rdkafka`;
	chomp $flags;
	skip 'the mock of Kafka could not be compiled', 1
	  if system("cc -o $dir/kafka_mock $FindBin::RealBin/kafka_mock.c $flags") != 0;
	my $program = start_program([ "$dir/kafka_mock", 'order' ], '<', \$mock_in, '>', \$mock_out, '2>', "$dir/mock.err");
	my $mock = $program->{harness};
	ok(wait_until(sub { $mock->pump_nb; $mock_out =~ /\n/ }), 'a mock of Kafka is up');
	my ($servers) = $mock_out =~ /^(.*)\n/;

	sql(q{SELECT event_store.publish('order', 'k' || i % 30, to_jsonb(i), '{"h": "ü"}', type => 'T') FROM generate_series(1, 600) AS i});
	my $tell_mock = sub {
		my $before = () = $mock_out =~ /^done$/mg;

		$mock_in .= "$_[0]\n";
		return wait_until(sub { $mock->pump_nb; (() = $mock_out =~ /^done$/mg) > $before });
	};
	# messages that have come, in order
	my $lines = sub {
		$mock->pump_nb;
		return grep { /\t/ } split /\n/, $mock_out;
	};
	ok($tell_mock->('fail'), 'of which some requests fail');
	unlike(run_once("kafka://$servers"), qr/could not be sent/, 'messages are sent to Kafka');
	is(status(), '0|0|0|0|0', 'all are acknowledged');
	ok(wait_until(sub { $lines->() >= 600 }), 'and arrive') or diag $mock_out =~ tr/\n//;
	my (%last, %ids, %partition, $wrong);
	foreach my $line ($lines->())
	{
		my ($partition, $key, $id, $type, $header, $payload) = split /\t/, $line;

		$wrong = $line if $type ne 'T' || $header ne 'ü' || $key ne 'k' . $payload % 30 || ($last{$key} // 0) >= $payload
		  || ($partition{$key} // $partition) != $partition;
		$last{$key} = $payload;
		$partition{$key} = $partition;
		$ids{$id} = 1;
	}
	is($wrong, undef, 'with key, type and headers, of each key in order, in one partition');
	is(scalar keys %ids, 600, 'and message ids');
	# as murmur2 of producers in Java has it
	is(join(' ', map { $partition{$_} } qw(k0 k1 k2 k3)), '1 1 1 0', 'which is where other producers put the key');

	# The brokers go, and come back.
	ok($tell_mock->('down'), 'the brokers are taken away');
	sql(q{SELECT event_store.publish('order', 'k' || i % 30, to_jsonb(i), '{"h": "ü"}', type => 'T') FROM generate_series(601, 900) AS i});
	my $patient = start_relay($node, 'postgres', "kafka://$servers", '-n', 'kafka', '-t', '3');
	ok(wait_until(sub { slurp_file($patient->{log}) =~ /could not connect to Kafka/ }), 'a relay without a broker says so');
	is(status(), '300|0|0|0|0', 'and takes nothing');
	ok($tell_mock->('up'), 'the brokers come back');
	ok(wait_until(sub { status() eq '0|0|0|0|0' }), 'and get the messages') or diag status();
	ok($tell_mock->('down'), 'they are taken away again');
	sql(q{SELECT event_store.publish('order', 'k' || i % 30, to_jsonb(i), '{"h": "ü"}', type => 'T') FROM generate_series(901, 1200) AS i});
	ok(wait_until(sub { slurp_file($patient->{log}) =~ /did not take a message|confirmed nothing/ }), 'while a relay is at work');
	ok($tell_mock->('up'), 'and come back');
	ok(wait_until(sub { status() eq '0|0|0|0|0' }), 'all is sent') or diag status();
	is(end_program($patient, 'TERM'), 0, 'the relay stops');
	ok(wait_until(sub { my %all = map { (split /\t/)[2] => 1 } $lines->(); keys %all == 1200 }), 'and has arrived');
	my (%seen, $late);
	%last = ();
	foreach my $line ($lines->())
	{
		my ($partition, $key, $id, $type, $header, $payload) = split /\t/, $line;

		next if $seen{$id}++;
		$late = $line if ($last{$key} // 0) >= $payload;
		$last{$key} = $payload;
	}
	is($late, undef, 'of each key in order, the first time');

	# What Kafka takes under no circumstances.
	sql(q{SELECT event_store.alter_outbox(max_attempts => 1), event_store.publish('no topic/at all', 'k', '1'), event_store.publish('order', 'k9', '1')});
	like(run_once("kafka://$servers"), qr/the topic is none for Kafka/, 'a name that is none for a topic is refused');
	is(status(), '0|0|0|0|1', 'and makes a dead letter');
	sql(q{SELECT event_store.outbox_discard_dead_letters('test')});
	sql(q{SELECT event_store.alter_outbox(max_attempts => 1), event_store.publish('order', NULL, to_jsonb(repeat('x', 2000000)))});
	like(run_once("kafka://$servers"), qr/could not be sent: .*too large/, 'a message that is too large is refused');
	is(status(), '0|0|0|0|1', 'and the message is a dead letter');
	end_program($program, 'KILL');
}

$node->stop;
done_testing();
