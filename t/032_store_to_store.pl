# Real logs through the outbox, two relays and RabbitMQ into a second store, by the
# inbox: the second store equals the first.
#
# A route publishes events as CloudEvents when they are appended. Of each log a
# consumer (amqp_store.py) takes the messages from a queue: it marks them in the
# inbox and appends those that are new, in one transaction, and acknowledges them after
# that. Another one waits to take its place. Meanwhile relays are killed when they have
# messages, consumers kill themselves at each point of their work, the broker is killed
# once, and three messages in sixteen are published again by the consumers. Event ids would
# do to pass over the duplicates as well, so that is not what is asked for: each append has to be
# of a new event, and the inbox has to say no exactly as often as a message comes again.
#
# EVENT_STORE_LOG_EVENTS (default 4000, at least 300) is how many events of each log
# are taken, EVENT_STORE_SEED what the decisions follow from. Without the logs
# events are made up.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use RelayTest;
use List::Util qw(shuffle);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'the relay was not built: no client library of a broker is installed'
  unless relay_program();
my $missing = RelayTest::RabbitMQ::missing('psycopg2');
plan skip_all => $missing if defined $missing;

my $seed = $ENV{EVENT_STORE_SEED} // int time;
my $of_each = $ENV{EVENT_STORE_LOG_EVENTS} // 4000;
my $dir = work_dir();

note "seed $seed (EVENT_STORE_SEED), $of_each events of each log (EVENT_STORE_LOG_EVENTS)";
srand($seed);

# ---------------------------------------------------------------------------
# Two stores, a broker
# ---------------------------------------------------------------------------

my $node = new_node('stores');
create_store($node, "db$_", 2048) foreach 1, 2;
my ($first, $second) = map { EventStoreTest::Session->new($node, "db$_") } 1, 2;

my $broker = RelayTest::RabbitMQ->new;
$broker->start or die 'no broker: ' . slurp_file($broker->{log});

# The log, as it goes on in both categories.
my $lines = copy_lines("PROGRAM '(" . join('; ', map { "gzip -dc $_ | head -n $of_each" } real_logs()) . ")'");
$lines = <<"EOT" unless real_logs();
CREATE TEMPORARY TABLE line AS
SELECT n, jsonb_build_object('stream', category || '-' || n % 300, 'type', 'Step ' || n % 7, 'occurred_at', timestamptz '2020-01-01' + n * interval '7.000001 s',
	'data', jsonb_build_object('n', n), 'metadata', jsonb_build_object('user', n % 5, 'cost_centre', n)) AS line
FROM generate_series(1, $of_each) AS n, unnest(ARRAY['order', 'invoice']) AS category;
EOT
$node->safe_psql('db1', $lines . <<'EOT');
CREATE TABLE entry AS
SELECT row_number() OVER (ORDER BY (line->>'occurred_at')::timestamptz, n) AS n, line FROM line;
SELECT event_store.create_translation('cloudevent', '{"data": {"sql":
	"event_store.to_cloudevent(ROW(position, stream, version, type, schema_version, event_id, recorded_at, occurred_at, source, correlation_id, causation_id, data, metadata)::event_store.recorded_event)"}}');
SELECT event_store.route_to_outbox('log', topic => 'log.{category}', translation => 'cloudevent');
EOT
my $entries = $first->run('SELECT count(*) FROM entry');
my @categories = $first->run(q(SELECT DISTINCT split_part(line->>'stream', '-', 1) FROM entry));

# Appended so many at a time, when all before the last so many has come, with its
# copies. So between a message and its duplicates there are no more than a few times
# so many others, which the inbox must remember.
my $part = 1 + int $entries / 16;
my $window = 3 * $part;

$node->safe_psql('db2', <<"EOT");
SELECT event_store.set_dedup_window('second store', keep_count => $window);
@{[ map { qq(CREATE SEQUENCE "delivery_$_";) } @categories ]}
CREATE TABLE delivery (n bigint, message_id text, position bigint, is_copy boolean, redelivered boolean, is_new boolean, was_there boolean);
CREATE INDEX ON delivery (position);
EOT

# ---------------------------------------------------------------------------
# Relays, consumers, and what becomes of them
# ---------------------------------------------------------------------------

my @points = qw(marked appended committing committed copied acknowledged);

# At which delivery of a category whoever has it dies, and where in his work: far enough
# from each other that no transaction has two.
my %deaths;
foreach my $category (@categories)
{
	my $step = $of_each / @points;
	my $k = 0;

	$deaths{$category} = join ',', map { int(1 + $step * $k++ + rand($step - 25)) . "=$_" } shuffle @points;
}
# Of each relay, how many messages are acknowledged when it dies.
my %ends = map { $_ => [ sort { $a <=> $b } map { int rand 0.9 * $entries } 1 .. 4 ] } qw(one two);
my $broker_end = int((0.2 + rand 0.6) * $entries);
my (%relays, %consumers);
my %killed = (relay => 0, consumer => 0, broker => 0);
my $runs = 0;

sub start_relay_named
{
	my ($name) = @_;

	$relays{$name} = start_relay($node, 'db1', $broker->{url}, '-n', $name, '-B', 20 + int rand 100);
	return;
}

sub consumer
{
	my ($category, $plan) = @_;

	return start_python('amqp_store.py', $broker->{port}, $category, "log.$category", $node->connstr('db2'), $seed, ++$runs, $plan);
}

# What happens at this moment.
sub happen
{
	foreach my $category (@categories)
	{
		foreach my $one (@{ $consumers{$category} })
		{
			next if is_running($one);
			my $status = end_program($one, 'KILL');
			die "a consumer has ended with $status: " . slurp_file($one->{log}) if $status != 9;
			$killed{consumer}++;
			$one = consumer($category, $deaths{$category});
		}
	}

	my ($acknowledged, $holders) = split /\|/, $first->run('SELECT coalesce(sum(acknowledged), 0), array_agg(DISTINCT relay) FROM event_store.outbox_slots');
	foreach my $name (keys %relays)
	{
		my $end = $ends{$name}[0];

		# when it has messages, unless it always was too fast
		next unless defined $end && $acknowledged >= $end && ($holders =~ /\b$name\b/ || $acknowledged >= $end + $part);
		shift @{ $ends{$name} };
		end_program($relays{$name}, 'KILL');
		$killed{relay}++;
		start_relay_named($name);
	}

	if (!$killed{broker} && $acknowledged >= $broker_end)
	{
		$broker->kill;
		$killed{broker}++;
		$broker->start or die 'the broker does not come back: ' . slurp_file($broker->{log});
	}
	return;
}

# Waits until messages of these positions have come, and copies of those that are
# chosen, while things happen. Returns whether they have.
sub wait_for
{
	my ($after, $upto) = @_;
	my $where = "position > $after AND position <= $upto";
	my $wanted = $first->run(<<"EOT");
SELECT count(*), count(*) FILTER (WHERE left(md5('$seed:' || event_id), 1) IN ('0', '1', '2')) FROM event_store.events WHERE $where
EOT

	return wait_until(
		sub {
			happen();
			return $wanted eq $second->run("SELECT count(DISTINCT position), count(DISTINCT position) FILTER (WHERE is_copy) FROM delivery WHERE $where");
		});
}

# Of each category there is one that works, and one that takes its place.
foreach my $category (@categories)
{
	$consumers{$category} = [ map { consumer($category, $deaths{$category}) } 1, 2 ];
}
ok( wait_until(
		sub {
			return !grep { !-s $_->{out} } map { @$_ } values %consumers;
		}),
	'consumers are ready');
start_relay_named($_) foreach qw(one two);

# ---------------------------------------------------------------------------
# The log goes through
# ---------------------------------------------------------------------------

my @upto = (0, 0);
my $arrive = 1;
for (my $n = 0; $arrive && $n < $entries; $n += $part)
{
	my $append = <<"EOT";
INSERT INTO event_store.events (stream, type, occurred_at, data, metadata)
SELECT line->>'stream', line->>'type', (line->>'occurred_at')::timestamptz, line->'data', line->'metadata' FROM entry WHERE n > $n AND n <= $n + $part ORDER BY n
EOT

	# what is taken back goes nowhere
	if (rand() < 0.25)
	{
		$first->run('BEGIN');
		$first->run($append);
		$first->run('ROLLBACK');
	}
	$first->run($append);
	push @upto, $first->run('SELECT max(position) FROM event_store.events');
	$arrive = wait_for(@upto[ -3, -2 ]);
	$second->run('SELECT event_store.rotate_inbox()');
}
ok($arrive && wait_for(@upto[ -2, -1 ]), 'all that was published arrives, and a copy of each that was chosen')
  or diag join "\n", map { "$_->{log}: " . slurp_file($_->{log}) } values %relays, map { @$_ } values %consumers;
wait_until(sub { happen(); return !map { @$_ } values %ends; });
ok( $node->poll_query_until('db1', 'SELECT (waiting, leased, retries, parked, dead_letters) = (0, 0, 0, 0, 0) FROM event_store.outbox_status'),
	'the outbox is empty');
is(end_program($_, 'TERM'), 0, 'a relay stops') foreach values %relays;
foreach my $category (@categories)
{
	end_program($_, 'KILL') foreach @{ $consumers{$category} };
	my $last = consumer($category, 'drain');
	wait_until(sub { !is_running($last) });
	is(end_program($last, 'KILL'), 0, "$category: what is left in the queue") or diag slurp_file($last->{log});
}
is_deeply(\%killed, { relay => 8, consumer => @points * @categories, broker => 1 }, 'who was to be killed was');

# ---------------------------------------------------------------------------
# What has come
# ---------------------------------------------------------------------------

my $all = 'SELECT stream, version, type, schema_version, event_id, occurred_at, source, correlation_id, causation_id, data, metadata FROM event_store.events';
my $sum = <<"EOT";
SELECT count(*), md5(string_agg(sum, '' ORDER BY stream))
FROM (SELECT stream, md5(string_agg(e::text, '' ORDER BY version)) AS sum FROM ($all) AS e GROUP BY stream) AS s
EOT
is($first->run('SELECT count(*) FROM event_store.events'), $entries, 'the first store has the log');
is($node->safe_psql('db2', $sum), $node->safe_psql('db1', $sum), 'the second store equals the first, stream by stream');
$node->safe_psql('db1', "COPY ($all) TO '$dir/first'");
query_is($node, 'db2', 'event by event', '', <<"EOT");
CREATE TEMPORARY TABLE first AS $all LIMIT 0;
COPY first FROM '$dir/first';
(SELECT 'missing', f.* FROM (TABLE first EXCEPT ALL ($all)) AS f LIMIT 5) UNION ALL
(SELECT 'too many', s.* FROM (($all) EXCEPT ALL TABLE first) AS s LIMIT 5)
EOT
store_is_sound($node, 'db2', 'the second store');

my ($deliveries, $messages, $refused, $copies, $again) = split /\|/, $second->run(<<'EOT');
SELECT count(*), count(DISTINCT message_id), count(*) FILTER (WHERE NOT is_new), count(*) FILTER (WHERE is_copy),
	count(*) FILTER (WHERE redelivered AND NOT is_copy AND NOT is_new)
FROM delivery
EOT
note "$deliveries deliveries of $messages messages: $copies copies, $again delivered again by the broker, ",
  $deliveries - $messages - $copies - $again, ' sent again';
is($messages, $entries, 'each event was a message');
is($refused, $deliveries - $messages, 'the inbox says no as often as a message comes again');
query_is($node, 'db2', 'and not the first time', '', <<'EOT');
SELECT message_id, array_agg(is_new ORDER BY n) FROM delivery GROUP BY message_id
HAVING count(*) FILTER (WHERE is_new) <> 1 OR NOT (array_agg(is_new ORDER BY n))[1] OR count(DISTINCT position) <> 1
EOT
query_is($node, 'db2', 'no append was of an event that was there', '0', 'SELECT count(*) FROM delivery WHERE was_there OR was_there IS NULL AND is_new');
ok($copies >= 0.1 * $messages, 'at least a tenth comes as a copy as well');
ok($again > 0, 'the broker has delivered again what was stored and not acknowledged');
query_is($node, 'db2', 'and what was not stored', 't', 'SELECT count(*) > 0 FROM delivery WHERE redelivered AND NOT is_copy AND is_new');

# The inbox has forgotten what is beyond the window.
$node->poll_query_until('db2', 'SELECT event_store.rotate_inbox() = 0');
my ($id, $turn) = split /\|/, $node->safe_psql('db2', <<'EOT');
SELECT w.id, turn FROM event_store.inbox_windows JOIN event_store.inbox_window AS w USING (consumer) WHERE consumer = 'second store'
EOT
my $kept = $node->safe_psql('db2',
	'SELECT ' . join ' + ', map { "(SELECT count(*) FROM event_store.inbox_${id}_$_)" } 0 .. 2);
note "$kept entries, turn $turn, window $window";
ok($turn > 1 && $kept <= 3 * $window && $kept < $messages, 'the inbox is bounded by its window');

$node->stop;
done_testing();
