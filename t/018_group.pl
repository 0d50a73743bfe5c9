# Groups, leases and competing consumers under fire.
#
# Five subscriptions of one store at once, each with consumers that work as a
# client would, and fail as clients do: they are ended, or killed with -9, in the
# middle of anything, fall silent and come back, leave, roll back, prepare and are
# committed or rolled back later, by others, and refuse events. Meanwhile writers
# append, the worker deals, and comes and goes, the number of slots changes,
# subscriptions are paused, circuit breakers open, dead letters are replayed, and
# the server is killed once.
#
#   leased	a group of consumers with names and leases that work outside the
#			transaction: each effect is a transaction of its own
#   group	a group of nameless consumers, poll, effect and acknowledgement in
#			one transaction
#	again	the same, and it is rewound now and then
#   work	competing consumers with leases, some without
#   poison	one slot, and one event that nobody survives
#
# The oracles: every event has its effect in the end; in the group exactly once,
# and in order of position within each stream; under leases the first effects
# of a stream's events come in their order, and so do the acknowledgements that
# counted, of which each event has one; where it was rewound, one for each time
# that it was open, in an order that follows from those of the others and the
# rewinds. A consumer in whose transaction an
# acknowledgement counts for less or more than it was given has met an error.
#
# EVENT_STORE_CHAOS_SECONDS (default 8) is how long it goes on, EVENT_STORE_SEED
# what the decisions follow from.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use List::Util qw(max);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seed = $ENV{EVENT_STORE_SEED} // int time;
my $seconds = $ENV{EVENT_STORE_CHAOS_SECONDS} // 8;
my $dir = work_dir();

note "seed $seed (EVENT_STORE_SEED), $seconds s (EVENT_STORE_CHAOS_SECONDS)";
srand($seed);

my @all = ('again', 'group', 'leased', 'poison', 'work');
my $node = new_node('chaos', conf => 'restart_after_crash = on');
create_store($node, 'postgres', 64);
$node->safe_psql('postgres', <<'EOT');
SELECT event_store.start_worker();
CREATE TABLE effect (n bigserial, subscription text, position bigint, stream text,
	attempt int, consumer text, is_replay boolean, at timestamptz DEFAULT clock_timestamp());
CREATE TABLE acked (n bigserial, subscription text, position bigint, consumer text);
SELECT event_store.create_subscription('leased', slots => 5, first_delay => '10 ms', max_attempts => 6,
	breaker_failures => 3, breaker_window => '1 s', breaker_timeout => '50 ms', breaker_probes => 3);
SELECT event_store.create_subscription('group', slots => 4, first_delay => '10 ms', max_attempts => 4,
	breaker_failures => 5, breaker_window => '500 ms', breaker_timeout => '30 ms');
SELECT event_store.create_subscription('again', slots => 3, first_delay => '10 ms', max_attempts => 4);
SELECT event_store.create_subscription('work', mode => 'competing', priority_key => 'priority',
	first_delay => '10 ms', max_attempts => 6,
	breaker_failures => 3, breaker_window => '1 s', breaker_timeout => '50 ms', breaker_probes => 2);
SELECT event_store.create_subscription('poison', first_delay => '10 ms', max_attempts => 6);
INSERT INTO event_store.events (stream, type, data)
SELECT 's-' || i % 3, CASE WHEN i = 22 THEN 'poison' ELSE 'a' END, to_jsonb(i)
FROM generate_series(1, 30) i;
EOT

# ---------------------------------------------------------------------------
# Clients
# ---------------------------------------------------------------------------

# What a command of a client may end with: anything that was done to it from
# outside, but no error of ours, no broken constraint, and no deadlock.
sub check
{
	my ($session) = @_;

	die "$session->{sqlstate}: $session->{message}\n"
	  if $session->{sqlstate} =~ /^(XX|VE|23|40P01)/;
	return $session->{sqlstate} eq '00000';
}

# Runs a command; undef if it failed, otherwise an array of its rows.
sub do_sql
{
	my ($session, $sql) = @_;

	return undef if $session->{lost};
	my @rows = $session->try($sql);
	return check($session) ? \@rows : undef;
}

sub stopped { return -e "$dir/stop" }

# Ends the transaction: commits it, or prepares it, and others decide what becomes of
# it (settle()). Returns the command that it was, if it succeeded.
my $prepared = 0;

sub end_transaction
{
	my ($session) = @_;
	my $end = !stopped() && rand() < 0.05 ? "PREPARE TRANSACTION 'p-$$-" . ++$prepared . q(') : 'COMMIT';

	return do_sql($session, $end) ? $end =~ s/ .*//sr : undef;
}

# Commits, or rolls back, what has been prepared.
sub settle
{
	my ($session, $chance) = @_;
	my $gids = do_sql($session, 'SELECT gid FROM pg_prepared_xacts') or return;

	foreach (@$gids)
	{
		my $end = rand() < 0.7 ? 'COMMIT' : 'ROLLBACK';

		do_sql($session, "$end PREPARED '$_'") if rand() < $chance;
	}
	return;
}

# Until the test is stopped. The code is called again and again, with a session
# that is connected; what it remembers is in its closure.
sub go_on
{
	my ($code) = @_;

	until (stopped())
	{
		my $session = eval { EventStoreTest::Session->new($node, 'postgres') };

		unless ($session && !$session->{lost} && $session->{backend})
		{
			usleep(20_000);
			next;
		}
		# who kills clients goes by this
		$session->try("SET application_name = 'client $session->{pid}'");
		until ($session->{lost} || stopped())
		{
			$code->($session);
			$session->try('ROLLBACK')
			  if !$session->{lost} && $session->{sqlstate} ne '00000';
		}
	}
	return;
}

# ---------------------------------------------------------------------------
# A consumer with a name and a lease
# ---------------------------------------------------------------------------

package Consumer;

use List::Util qw(max);
use Time::HiRes qw(usleep);

# Options: name, and chances of what it may do: nack, silent, leave. poison: it
# falls silent over those events. careful: it polls with nothing in hand, so what
# is delivered alone is alone. It has in hand what it was given, in the order
# in which it was given it, and has not acknowledged, nor given back.
sub new
{
	my ($class, $subscription, %args) = @_;
	my $self = bless {
		subscription => $subscription,
		base => $args{name},
		life => 0,
		hand => [],
		lease => 300 + int rand 700,
		unsure => 0,
		%args,
	}, $class;

	$self->rename;
	return $self;
}

sub rename
{
	my ($self) = @_;

	$self->{name} = $self->{base} . '-' . ++$self->{life};
	$self->{hand} = [];
	$self->{unsure} = 0;
	return;
}

sub chance { return rand() < ($_[0]{ $_[1] } // 0) }

# What was delivered is kept; of a stream it is what there is of it now, even if
# some of it was in hand before, and was taken away meanwhile.
sub receive
{
	my ($self, $rows) = @_;
	my %first;

	foreach (@$rows)
	{
		my ($position, $stream, $attempt, $type) = split /\|/;

		if (!$self->{competing} && !exists $first{$stream})
		{
			$first{$stream} = $position;
			@{ $self->{hand} } = grep {
				$_->{stream} ne $stream || $_->{position} < $position
			} @{ $self->{hand} };
		}
		die "events of a stream were delivered out of order: $position after $first{$stream}\n"
		  if !$self->{competing} && $position < $first{$stream};
		$first{$stream} = $position;
		@{ $self->{hand} } = grep { $_->{position} != $position } @{ $self->{hand} }
		  if $self->{competing};
		push @{ $self->{hand} },
		  { position => $position, stream => $stream, attempt => $attempt, type => $type };
	}
	return;
}

sub poll
{
	my ($self, $session, $count) = @_;
	my $wait = rand() < 0.5 ? ", wait => '20 ms'" : '';

	# until it has the answer it cannot know what it has
	$self->{unsure} = 1;
	my $rows = main::do_sql($session, <<"EOT");
SELECT position, stream, attempt, type FROM event_store.poll('$self->{subscription}', $count,
	'$self->{name}', lease => '$self->{lease} ms'$wait)
EOT
	return unless $rows;
	$self->{unsure} = 0;
	$self->receive($rows);
	return scalar @$rows;
}

# The first event in hand that is not done.
sub next_event { return (grep { !$_->{done} } @{ $_[0]{hand} })[0] }

# It gives the event back, and what follows it in its stream is not to be done.
sub nack
{
	my ($self, $session, $event) = @_;
	my $after = rand() < 0.5 ? 'NULL' : sprintf q('%d ms'), rand 50;

	$self->{unsure} = 1;
	my $rows = main::do_sql($session, <<"EOT");
SELECT event_store.nack('$self->{subscription}', $event->{position}, 'failed', $after, '$self->{name}')
EOT
	return unless $rows;
	$self->{unsure} = 0;
	@{ $self->{hand} } = grep {
		$self->{competing} ? $_ != $event :
		  $_->{stream} ne $event->{stream} || $_->{position} < $event->{position}
	} @{ $self->{hand} };
	return;
}

sub work
{
	my ($self, $session, $event) = @_;

	main::do_sql($session, <<"EOT") or return;
INSERT INTO effect (subscription, position, stream, attempt, consumer)
VALUES ('$self->{subscription}', $event->{position}, '$event->{stream}', $event->{attempt}, '$self->{name}')
EOT
	$event->{done} = 1;
	return 1;
}

# Acknowledges: up to a position, or some of what is done, of each stream the
# first ones. Which acknowledgements counted is noted in the same transaction.
sub ack
{
	my ($self, $session) = @_;
	my @done = grep { $_->{done} } @{ $self->{hand} };
	my (@chosen, $counted);

	return unless @done;
	main::do_sql($session, 'BEGIN') or return;
	$self->heartbeat($session) if rand() < 0.1;
	if (rand() < 0.4)
	{
		my ($open) = sort { $a <=> $b } map { $_->{position} } grep { !$_->{done} } @{ $self->{hand} };

		@chosen = grep { !defined $open || $_->{position} < $open } @done;
		if (@chosen)
		{
			my $last = max map { $_->{position} } @chosen;
			my $rows = main::do_sql($session, <<"EOT") or return;
SELECT event_store.ack_up_to('$self->{subscription}', $last, '$self->{name}')
EOT
			die "ack_up_to() $last: $rows->[0] of " . @chosen . " that $self->{name} had\n"
			  if $rows->[0] > @chosen;
			if ($rows->[0] == @chosen)
			{
				my $positions = join ',', map { $_->{position} } @chosen;

				main::do_sql($session, <<"EOT") or return;
INSERT INTO acked (subscription, position, consumer)
SELECT '$self->{subscription}', p, '$self->{name}' FROM unnest('{$positions}'::bigint[]) p ORDER BY p
EOT
				$counted = 1;
			}
			else
			{
				# some were taken away; one by one it shows which
				main::do_sql($session, 'ROLLBACK') or return;
				main::do_sql($session, 'BEGIN') or return;
			}
		}
	}
	if (!$counted)
	{
		my (%seen, %stop);

		@chosen = sort { $a->{position} <=> $b->{position} } @done;
		if (rand() < 0.5)
		{
			@chosen = grep {
				$stop{ $_->{stream} } = 1 if rand() < 0.3;
				!$stop{ $_->{stream} }
			} @chosen;
		}
		if (@chosen)
		{
			my $positions = join ',', map { $_->{position} } @chosen;

			main::do_sql($session, <<"EOT") or return;
INSERT INTO acked (subscription, position, consumer)
SELECT '$self->{subscription}', p, '$self->{name}'
FROM (SELECT p FROM unnest('{$positions}'::bigint[]) p ORDER BY p OFFSET 0) x
WHERE event_store.ack('$self->{subscription}', ARRAY[p], '$self->{name}') = 1
EOT
		}
	}
	usleep(rand 30_000) if rand() < 0.1;
	my $end = main::end_transaction($session) or return;

	# it cannot know what it has, as long as that is not decided
	$self->{unsure} = 1 if $end eq 'PREPARE';
	my %is_acked = map { $_->{position} => 1 } @chosen;
	@{ $self->{hand} } = grep { !$is_acked{ $_->{position} } } @{ $self->{hand} };
	return 1;
}

sub heartbeat
{
	my ($self, $session) = @_;

	main::do_sql($session, <<"EOT");
SELECT event_store.heartbeat('$self->{subscription}', '$self->{name}', '$self->{lease} ms')
EOT
	return;
}

sub leave
{
	my ($self, $session) = @_;

	$self->{unsure} = 1;
	main::do_sql($session, "SELECT event_store.leave('$self->{subscription}', '$self->{name}')")
	  or return;
	$self->{unsure} = 0;
	$self->{hand} = [];
	$self->rename if rand() < 0.5;
	return 1;
}

# One thing that it does.
sub step
{
	my ($self, $session) = @_;

	# it does not know what it has: gives it back, or goes, and comes as another
	if ($self->{unsure})
	{
		if (rand() < 0.7) { $self->leave($session) or return; }
		else { $self->rename; }
	}
	if ($self->chance('silent'))
	{
		usleep(1000 * $self->{lease} * (0.5 + rand 2));
		# with what it had in mind, or as another
		$self->rename if rand() < 0.5;
		return;
	}
	return $self->leave($session) if $self->chance('leave');
	$self->heartbeat($session) if rand() < 0.01;

	my $event = $self->next_event;
	my $choice = rand;

	if ($self->{careful} && !$event && @{ $self->{hand} })
	{
		$self->ack($session);
		return;
	}
	if (!$event || !$self->{careful} && ($choice < 0.1 && @{ $self->{hand} } < 40))
	{
		$self->poll($session, 1 + int rand($self->{count} // 15));
		return;
	}
	if ($choice < 0.3)
	{
		$self->ack($session);
		return;
	}
	if ($self->{poison} && $event->{type} eq 'poison')
	{
		# it dies of it
		$self->rename;
		return;
	}
	if ($self->chance('nack'))
	{
		$self->nack($session, $event);
		return;
	}
	$self->work($session, $event);
	return;
}

package main;

# ---------------------------------------------------------------------------
# A nameless consumer that works in one transaction
# ---------------------------------------------------------------------------

sub consume_in_transaction
{
	my ($session, $subscription) = @_;
	my $competing = $subscription eq 'work';
	my (@batch, %blocked, @done);
	my $whole = rand() < 0.3;

	do_sql($session, 'BEGIN') or return;
	foreach (0 .. (rand() < 0.2))
	{
		my $count = $whole ? 'NULL' : 1 + int rand 20;
		my $rows = do_sql($session, <<"EOT") or return;
SELECT position, stream, attempt, is_replay FROM event_store.poll('$subscription', $count)
EOT
		push @batch, @$rows;
	}
	if (!@batch)
	{
		do_sql($session, 'ROLLBACK');
		usleep(10_000);
		return;
	}
	my $fails = rand() < 0.3 ? 0.1 : 0;
	my $acks = rand() < 0.3 ? 0.9 : 1;
	foreach (@batch)
	{
		my ($position, $stream, $attempt, $is_replay) = split /\|/;

		next if $blocked{$stream};
		if (rand() < $fails)
		{
			my $kind = rand;

			do_sql($session, 'SAVEPOINT a') or return;
			if ($kind < 0.5)
			{
				# what the handler did is undone, and the event refused
				do_sql($session, <<"EOT") or return;
INSERT INTO effect (subscription, position, stream) VALUES ('$subscription', $position, 'undone')
EOT
				do_sql($session, 'ROLLBACK TO a') or return;
			}
			my $rows = do_sql($session, <<"EOT") or return;
SELECT event_store.nack('$subscription', $position, 'failed', '5 ms')
EOT
			die "nack() of $position, which this transaction has: '$rows->[0]'\n"
			  unless $rows->[0] =~ /^(retry|dead)$/;
			if ($kind > 0.75)
			{
				# it wasn't so bad
				do_sql($session, 'ROLLBACK TO a') or return;
			}
			else
			{
				$blocked{$stream} = 1 unless $competing;
				next;
			}
		}
		if (rand() >= $acks)
		{
			$blocked{$stream} = 1 unless $competing;
			next;
		}
		do_sql($session, <<"EOT") or return;
INSERT INTO effect (subscription, position, stream, attempt, is_replay)
VALUES ('$subscription', $position, '$stream', $attempt, '$is_replay')
EOT
		push @done, $position;
	}
	if (rand() < 0.1)
	{
		do_sql($session, 'ROLLBACK');
		return;
	}
	if (@done)
	{
		# what was delivered as a whole, and none of it failed, can be
		# acknowledged as a whole, in whatever mode the group is
		my $up_to = $whole && @done == @batch && !$competing;
		my $rows = do_sql($session, $up_to
			? "SELECT event_store.ack_up_to('$subscription', " . max(@done) . ')'
			: "SELECT event_store.ack('$subscription', '{" . join(',', @done) . "}')") or return;

		die(($up_to ? 'ack_up_to' : 'ack') . "() of events that this transaction has: $rows->[0] of "
			  . @done . " (@done; delivered @batch)\n")
		  if $rows->[0] != @done;
		do_sql($session, <<"EOT") or return;
INSERT INTO acked (subscription, position) SELECT '$subscription', unnest('{@{[join ',', @done]}}'::bigint[])
EOT
	}
	end_transaction($session);
	return;
}

# ---------------------------------------------------------------------------
# Chaos
# ---------------------------------------------------------------------------

my $workers = 0;

sub worker
{
	my ($code) = @_;
	my $n = ++$workers;

	return start_worker(sub {
		srand($seed + 1000 * $n);
		go_on($code->($n));
	});
}

sub consumer
{
	my ($subscription, %args) = @_;

	return worker(sub {
		my ($n) = @_;
		my $consumer = Consumer->new($subscription, name => "c$n", %args);

		return sub { $consumer->step($_[0]) };
	});
}

sub nameless
{
	my ($subscription) = @_;

	return worker(sub { return sub { consume_in_transaction($_[0], $subscription) } });
}

# Nobody works with the subscription meanwhile, so what was acknowledged before and
# after shows by the numbers.
my $rewind = <<'EOT';
WITH back AS MATERIALIZED (SELECT event_store.rewind_subscription('again', floor(random() * checkpoint)::bigint) AS position
	FROM event_store.subscriptions WHERE name = 'again')
INSERT INTO acked (subscription, position, consumer) SELECT 'again', position, 'rewind' FROM back
EOT

my @workers = (
	(map { consumer('leased', nack => 0.02, silent => 0.005, leave => 0.005) } 1 .. 4),
	(map { nameless('group') } 1 .. 3),
	(map { nameless('again') } 1 .. 2),
	(map { consumer('work', competing => 1, nack => 0.02, silent => 0.005, leave => 0.005) } 1 .. 3),
	nameless('work'),
	(map { consumer('poison', poison => 1, careful => 1, count => 6) } 1 .. 2));

push @workers, map {
	worker(sub {
		return sub {
			my ($session) = @_;
			my $stream = 's-' . int rand 6;
			my $count = 1 + int rand 5;
			my $priority = int rand 3;

			do_sql($session, 'BEGIN') or return;
			do_sql($session, <<"EOT") or return;
INSERT INTO event_store.events (stream, type, data, metadata)
SELECT '$stream', 'a', to_jsonb(i), '{"priority": $priority}' FROM generate_series(1, $count) i
EOT
			usleep(rand 5_000);
			do_sql($session, rand() < 0.1 ? 'ROLLBACK' : 'COMMIT');
			usleep(rand 50_000);
		};
	})
} 1 .. 2;

push @workers, worker(sub {
	return sub {
		my ($session) = @_;
		my $name = ('leased', 'group', 'again')[ int rand 3 ];
		my $choice = rand;

		usleep(50_000 + rand 300_000);
		if ($choice < 0.4)
		{
			my $slots = 1 + int rand 8;

			do_sql($session, "SELECT event_store.alter_subscription('$name', slots => $slots)") or return;
		}
		elsif ($choice < 0.6)
		{
			do_sql($session, "SELECT event_store.replay_dead_letters('$name')") or return;
		}
		elsif ($choice < 0.75)
		{
			do_sql($session, $rewind) or return;
		}
		elsif ($choice < 0.85)
		{
			$name = $all[ int rand @all ];
			do_sql($session, "SELECT event_store.pause_subscription('$name')") or return;
			usleep(rand 200_000);
			do_sql($session, "SELECT event_store.resume_subscription('$name')") or return;
		}
		elsif ($choice < 0.95)
		{
			do_sql($session, 'SELECT event_store.deal_subscriptions()') or return;
		}
		else
		{
			# there may be one, or none to be had just now
			$session->try('SELECT event_store.start_worker()');
			die "$session->{sqlstate}: $session->{message}\n" if $session->{sqlstate} =~ /^(XX|23|40P01)/;
		}
		# as one that was ended after it had paused it
		do_sql($session, "SELECT event_store.resume_subscription('$_')") or return foreach @all;
		do_sql($session, 'SELECT * FROM event_store.subscriptions');
	};
});

# The others may wait for what is prepared, so this one is the last to end.
my $settler = start_worker(sub {
	srand($seed);
	until (-e "$dir/settled")
	{
		my $session = eval { EventStoreTest::Session->new($node, 'postgres') };

		until (!$session || $session->{lost} || !$session->{backend} || -e "$dir/settled")
		{
			settle($session, 0.3);
			usleep(rand 100_000);
		}
		usleep(20_000);
	}
});

# Backends are ended, and clients killed; one time a backend is, and the server with it.
my $until = time + $seconds;
my $crashed = 0;
while (time < $until)
{
	usleep(100_000 + rand 200_000);
	my $found = eval { $node->safe_psql('postgres', <<'EOT') };
SELECT pid, substring(application_name FROM '^client (\d+)$') FROM pg_stat_activity
WHERE backend_type IN ('client backend', 'event_store worker') AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1
EOT
	next unless $found;
	my ($pid, $client) = split /\|/, $found;
	if (!$crashed && time > $until - $seconds / 2)
	{
		kill 'KILL', $pid;
		$crashed = 1;
	}
	elsif ($client && rand() < 0.5)
	{
		kill 'KILL', $client;
	}
	else
	{
		kill 'TERM', $pid;
	}
}
append_to_file("$dir/stop", '');
ok($crashed, 'the server was killed');
is(wait_workers(@workers), 0, 'consumers, writers and who alters met no error');
append_to_file("$dir/settled", '');
is(wait_workers($settler), 0, 'nor did who commits what is prepared');
$node->poll_query_until('postgres', 'SELECT true');
{
	my $session = EventStoreTest::Session->new($node, 'postgres');

	settle($session, 1);
	$session->run($rewind);
	$session->run("SELECT event_store.resume_subscription('$_')") foreach @all;
	$session->quit;
}
note 'changes: ', $node->safe_psql('postgres', <<'EOT');
SELECT string_agg(subscription || ' ' || change || ' ' || n, ', ' ORDER BY subscription, change)
FROM (SELECT subscription, change, count(*) AS n FROM event_store.subscription_history GROUP BY 1, 2) h
EOT

# ---------------------------------------------------------------------------
# The rest
# ---------------------------------------------------------------------------

# Healthy consumers do what is left, until only dead letters are open, and what
# is parked behind them. What those have who are gone comes when their leases
# end.
my %drain = (
	leased => Consumer->new('leased', name => 'last', lease => 5_000, count => 50),
	work => Consumer->new('work', name => 'last', lease => 5_000, count => 50, competing => 1),
	poison => Consumer->new('poison', name => 'last', lease => 300, count => 5, poison => 1));

sub open_events
{
	my ($session, $name) = @_;

	return $session->run(<<"EOT");
SELECT l.open_events - (SELECT count(*) FROM event_store.subscription_failure f
	WHERE f.subscription_id = s.id AND (f.dead OR s.mode = 'ordered' AND EXISTS
		(SELECT FROM event_store.subscription_failure d
		WHERE d.subscription_id = s.id AND d.stream_id = f.stream_id AND d.dead AND d.position < f.position)))
FROM event_store.subscription s, event_store.subscription_lag(s.name) l WHERE s.name = '$name'
EOT
}

sub drain
{
	my ($name) = @_;
	my $session = EventStoreTest::Session->new($node, 'postgres');
	my $consumer = $drain{$name};
	my $ended = time + $PostgreSQL::Test::Utils::timeout_default;
	my $open;

	while (($open = open_events($session, $name)) > 0 && time < $ended)
	{
		if (!$consumer)
		{
			# a poll that waits, so as not to wait for nothing
			$session->run(<<"EOT");
WITH batch AS MATERIALIZED (SELECT position, stream, attempt, is_replay FROM event_store.poll('$name', NULL, wait => '100 ms')),
	done AS (INSERT INTO effect (subscription, position, stream, attempt, is_replay) SELECT '$name', position, stream, attempt, is_replay FROM batch ORDER BY position),
	noted AS (INSERT INTO acked (subscription, position) SELECT '$name', position FROM batch)
SELECT event_store.ack('$name', array_agg(position)) FROM batch HAVING count(*) > 0
EOT
			next;
		}
		$consumer->poll($session, $consumer->{count});
		while (my $event = $consumer->next_event)
		{
			if ($consumer->{poison} && $event->{type} eq 'poison')
			{
				$consumer->rename;
				last;
			}
			$consumer->work($session, $event);
		}
		$consumer->ack($session) while grep { $_->{done} } @{ $consumer->{hand} };
	}
	$session->run("SELECT event_store.leave('$name', '$consumer->{name}')") if $consumer;
	return $open;
}

foreach my $name (@all)
{
	is(drain($name), 0, "$name: all is done but what is dead");
}
note 'name|events|acknowledged|dead letters|waiting|failures: ', $node->safe_psql('postgres', <<'EOT');
SELECT name, (SELECT count(*) FROM event_store.events), acknowledged, dead_letters, waiting, failures
FROM event_store.subscriptions ORDER BY name
EOT

sub counters_add_up
{
	my ($when) = @_;

	foreach my $name (@all)
	{
		query_is($node, 'postgres', "$name: $when: counters add up", 't|0|0|t|t', <<"EOT");
SELECT name = 'again' OR acknowledged + open_events = (SELECT count(*) FROM event_store.events), queued, leased,
	open_events = retries + waiting + dead_letters,
	acknowledged = (SELECT count(*) FROM acked WHERE subscription = name AND consumer IS DISTINCT FROM 'rewind')
FROM event_store.subscriptions WHERE name = '$name'
EOT
	}
	query_is($node, 'postgres', "$when: nothing is dealt out or leased", '0',
		'SELECT count(*) FROM event_store.subscription_batch');
	return;
}

counters_add_up('with dead letters');
query_is($node, 'postgres', 'poison: it is the only dead letter, and its stream is parked', 'poison|t', <<'EOT');
SELECT string_agg(d.type, ','), sum(d.parked) =
	(SELECT count(*) FROM event_store.events e JOIN event_store.events p ON p.type = 'poison'
	WHERE e.stream = p.stream AND e.position > p.position)
FROM event_store.dead_letters('poison') d
EOT
query_is($node, 'postgres', 'poison: nothing of it, nor behind it, had an effect', '0', <<'EOT');
SELECT count(*) FROM effect f JOIN event_store.events p ON p.type = 'poison' AND p.stream = f.stream
WHERE f.subscription = 'poison' AND f.position >= p.position
EOT

# dead letters are replayed, and those behind them follow
delete $drain{poison}{poison};
foreach my $name (@all)
{
	my $dead = $node->safe_psql('postgres', "SELECT count(*) FROM event_store.dead_letters('$name')");

	query_is($node, 'postgres', "$name: dead letters are replayed", $dead,
		"SELECT event_store.replay_dead_letters('$name')");
	is(drain($name), 0, "$name: all is done");
}
counters_add_up('at the end');
query_is($node, 'postgres', 'nothing has failed that is not done', '0',
	'SELECT count(*) FROM event_store.subscription_failure');

# ---------------------------------------------------------------------------
# Effects
# ---------------------------------------------------------------------------

# Goes through acknowledgements and rewinds one by one: those of a stream are always
# its first events, as many as are done; a rewind leaves those up to a position. Each
# event is acknowledged once, in order; in the end all are. Returns what is wrong.
sub acknowledged_in_order
{
	my ($name) = @_;
	my (%events, %place, %done);

	foreach (split /\n/, $node->safe_psql('postgres', 'SELECT position, stream FROM event_store.events ORDER BY 1'))
	{
		my ($position, $stream) = split /\|/;

		push @{ $events{$stream} }, $position;
		$place{$position} = [ $stream, scalar @{ $events{$stream} } ];
		$done{$stream} = 0;
	}
	foreach (split /\n/, $node->safe_psql('postgres',
			"SELECT position, coalesce(consumer, '') FROM acked WHERE subscription = '$name' ORDER BY n"))
	{
		my ($position, $consumer) = split /\|/;

		if ($consumer eq 'rewind')
		{
			foreach my $stream (keys %done)
			{
				$done{$stream}-- while $done{$stream} > 0 && $events{$stream}[ $done{$stream} - 1 ] > $position;
			}
			next;
		}
		my ($stream, $n) = @{ $place{$position} };

		return "position $position, event $n of $stream, after $done{$stream}" if $n != $done{$stream} + 1;
		$done{$stream} = $n;
	}
	my @left = grep { $done{$_} != @{ $events{$_} } } sort keys %done;

	return @left ? "not all of @left" : '';
}

foreach my $name (@all)
{
	query_is($node, 'postgres', "$name: each event has an effect, and no other has", '0|0', <<"EOT");
SELECT (SELECT count(*) FROM (SELECT position FROM event_store.events
		EXCEPT SELECT position FROM effect WHERE subscription = '$name') d),
	(SELECT count(*) FROM (SELECT position FROM effect WHERE subscription = '$name'
		EXCEPT SELECT position FROM event_store.events) d)
EOT
	query_is($node, 'postgres', "$name: each event was acknowledged once", '0|0', <<"EOT") if $name ne 'again';
SELECT (SELECT count(*) FROM (SELECT position FROM event_store.events
		EXCEPT ALL SELECT position FROM acked WHERE subscription = '$name') d),
	(SELECT count(*) FROM (SELECT position FROM acked WHERE subscription = '$name'
		EXCEPT ALL SELECT position FROM event_store.events) d)
EOT
	next if $name eq 'work';
	query_is($node, 'postgres', "$name: first effects come in order within each stream", '', <<"EOT");
SELECT stream, earlier, position FROM (
	SELECT stream, position, lag(position) OVER (PARTITION BY stream ORDER BY n) AS earlier
	FROM (SELECT stream, position, min(n) AS n FROM effect WHERE subscription = '$name' GROUP BY 1, 2) f) e
WHERE earlier > position LIMIT 5
EOT
	is(acknowledged_in_order($name), '', "$name: acknowledgements come in order within each stream");
}
query_is($node, 'postgres', 'again: as many effects as acknowledgements', '', <<'EOT');
SELECT position, count(f), count(a) FROM
	(SELECT position, row_number() OVER (PARTITION BY position) AS i, true AS f FROM effect WHERE subscription = 'again') f
	FULL JOIN (SELECT position, row_number() OVER (PARTITION BY position) AS i, true AS a FROM acked
		WHERE subscription = 'again' AND consumer IS DISTINCT FROM 'rewind') a USING (position, i)
WHERE f IS NULL OR a IS NULL GROUP BY position
EOT
query_is($node, 'postgres', 'again: what had its effect before is a replay, and says so', '', <<'EOT');
SELECT position, i FROM
	(SELECT position, is_replay, row_number() OVER (PARTITION BY position ORDER BY n) AS i FROM effect WHERE subscription = 'again') f
WHERE i > 1 AND NOT is_replay LIMIT 5
EOT
query_is($node, 'postgres', 'nothing else is', '0',
	q(SELECT count(*) FROM effect WHERE subscription <> 'again' AND is_replay));
query_is($node, 'postgres', 'group: each effect once', '0',
	q(SELECT count(*) - count(DISTINCT position) FROM effect WHERE subscription = 'group'));
store_is_sound($node, 'postgres', 'at the end');

# ---------------------------------------------------------------------------
# What chaos seldom meets
# ---------------------------------------------------------------------------

# A subscription of some streams in two slots, and the positions of its events.
sub make
{
	my ($name, $streams, $count) = @_;

	$node->safe_psql('postgres', <<"EOT");
SELECT event_store.create_subscription('$name', stream_pattern => '$name-%', slots => 2, first_delay => '0', jitter => 0)
EOT
	return more($name, $streams, $count);
}

sub more
{
	my ($name, $streams, $count) = @_;

	return split /\n/, $node->safe_psql('postgres', <<"EOT");
INSERT INTO event_store.events (stream, type, data)
SELECT '$name-' || i % $streams, 'a', to_jsonb(i) FROM generate_series(1, $count) i;
SELECT position FROM event_store.events WHERE stream LIKE '$name-%' ORDER BY position;
EOT
}

sub positions
{
	my ($session, $call) = @_;

	return join ',', $session->run("SELECT position FROM event_store.poll($call)");
}

sub until_leases_end
{
	my ($name) = @_;

	return $node->poll_query_until('postgres', <<"EOT");
SELECT NOT EXISTS (SELECT FROM event_store.subscription s
	JOIN event_store.subscription_batch b ON b.subscription_id = s.id AND b.consumer IS NOT NULL
	WHERE s.name = '$name' AND b.leased_until > clock_timestamp())
AND NOT EXISTS (SELECT FROM event_store.subscription s
	JOIN event_store.subscription_heartbeat h ON h.subscription_id = s.id
	WHERE s.name = '$name' AND h.alive_until > clock_timestamp())
EOT
}

my ($one, $two) = map { EventStoreTest::Session->new($node, 'postgres') } 1 .. 2;
$_->run(q(SET lock_timeout = '60 s')) foreach ($one, $two);

# A lease is over, and its consumer is just acknowledging the first of two.
my @p = make('late', 1, 4);
is(positions($one, q('late', 2, 'a', lease => '50 ms')), "$p[0],$p[1]", 'late: two are out');
until_leases_end('late');
$one->run('BEGIN');
$one->run("SELECT event_store.ack('late', '{$p[0]}', 'a')");
is(positions($two, q('late', 4, 'b', lease => '1 min')), '', 'late: what follows them waits');
$one->run('ROLLBACK');
like(positions($two, q('late', 4, 'b', lease => '1 min')), qr/^$p[0]\b/, 'late: the first comes first');

# One that was silent for longer than its lease comes back, and knows nothing.
@p = make('back', 1, 4);
positions($one, q('back', 2, 'a', lease => '50 ms'));
until_leases_end('back');
like(positions($one, q('back', 4, 'a', lease => '1 min')), qr/^$p[0]\b/,
	'back: who comes back is given what it had');

# With one slot, some events were dealt out before, and those behind them were not.
@p = make('mixed', 1, 4);
positions($one, q('mixed', 1));
$one->run(q(SELECT event_store.alter_subscription('mixed', slots => 1)));
@p = more('mixed', 1, 2);
$one->run('BEGIN');
is(positions($one, q('mixed', NULL)), join(',', @p), 'mixed: all are delivered');
is($one->run("SELECT event_store.nack('mixed', $p[4], 'failed')"), 'retry', 'mixed: one has failed');
$one->run('COMMIT');
like(positions($one, q('mixed', NULL)), qr/^$p[0]\b/, 'mixed: those before it come before it');
is(positions($one, q('mixed', NULL)) =~ s/,.*//r, $p[0], 'mixed: again so');

# An event fails after a rollback to a savepoint, in a group.
@p = make('point', 1, 3);
$one->run('BEGIN');
is(positions($one, q('point', NULL)), join(',', @p), 'point: all are delivered');
$one->run('SAVEPOINT a');
$one->run('ROLLBACK TO a');
is($one->run("SELECT event_store.nack('point', $p[0], 'failed')"), 'retry', 'point: the first has failed');
is($one->run("SELECT event_store.ack('point', '{$p[1],$p[2]}')"), '0', 'point: those behind it wait');
$one->run('COMMIT');

# Two work on two slots, with a failure in each.
@p = make('apart', 24, 48);
$one->run('BEGIN');
positions($one, q('apart', NULL));
$one->run("SELECT event_store.nack('apart', min(position), 'failed', '1 hour') FROM
	(SELECT b.slot, min(b.first_position) AS position FROM event_store.subscription_batch b
	JOIN event_store.subscription s ON s.id = b.subscription_id WHERE s.name = 'apart' GROUP BY 1) x GROUP BY slot");
$one->run('COMMIT');
my @delivered = map {
	$_->run('BEGIN');
	positions($_, q('apart', 1));
} ($one, $two);
isnt($delivered[0], '', 'apart: one has a slot');
isnt($delivered[1], '', 'apart: another has the other');
$one->try("SELECT event_store.ack_up_to('apart', $p[-1])");
is($one->{sqlstate}, '00000', 'apart: one acknowledges without the other');
$two->try("SELECT event_store.ack_up_to('apart', $p[-1])");
is($two->{sqlstate}, '00000', 'apart: so does the other');
$_->run('ROLLBACK') foreach ($one, $two);

# Another number of slots comes into force beside a transaction with a heartbeat.
@p = make('beat', 1, 4);
positions($one, q('beat', 1, 'a', lease => '1 min'));
$one->run(q(SELECT event_store.alter_subscription('beat', slots => 3)));
$one->run("SELECT event_store.ack('beat', '{$p[0]}', 'a')");
$one->run('BEGIN');
$one->run(q(SELECT event_store.heartbeat('beat', 'a', '1 hour')));
$two->try(q(SELECT position FROM event_store.poll('beat', 4, 'b', lease => '1 min')));
is($two->{sqlstate}, '00000', 'beat: a poll waits for nobody');
$one->run('COMMIT');

# One leaves while another acknowledges, in the midst of what the first one has.
@p = make('gone', 1, 4);
positions($two, q('gone', 4, 'a', lease => '1 min'));
$two->run("SELECT event_store.ack('gone', '{$p[0],$p[3]}', 'a')");
$one->run('BEGIN');
$one->run("SELECT event_store.ack('gone', '{$p[0],$p[3]}')");
$two->send(q(SELECT event_store.leave('gone', 'a')));
# it waits for the other, or needs not
$node->poll_query_until('postgres', <<"EOT");
SELECT query LIKE '%leave%' AND (state = 'idle' OR wait_event_type = 'Lock')
FROM pg_stat_activity WHERE pid = $two->{backend}
EOT
$one->run('COMMIT');
$two->result;
is(positions($two, q('gone', 4, 'b', lease => '1 min')), "$p[1],$p[2]", 'gone: it has left all that it had');

# The same while it acknowledges itself, in another session.
@p = make('going', 1, 4);
positions($two, q('going', 4, 'a', lease => '1 min'));
$one->run('BEGIN');
$one->run("SELECT event_store.ack('going', '{$p[0]}', 'a')");
$two->send(q(SELECT event_store.leave('going', 'a')));
ok($two->waits, 'going: it waits for what it has acknowledged');
$one->run('COMMIT');
$two->result;
is(positions($two, q('going', 4, 'b', lease => '1 min')), "$p[1],$p[2],$p[3]", 'going: it has left the rest');
$_->quit foreach ($one, $two);

$node->stop;
done_testing();
