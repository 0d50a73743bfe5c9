# Random sequences of calls, compared with a model.
#
# The model is one plain table and a few lines of plpgsql, slow and obvious.
# Each call goes to the store and to the model, in the same transaction, and
# must give the same result or the same SQLSTATE in both; savepoints and
# transactions that are rolled back take both back. Every few calls the
# contents are compared, and reads with random bounds.
#
# EVENT_STORE_SEED gives the sequence, EVENT_STORE_PROPERTY_CALLS its length.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;

use EventStoreTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{EVENT_STORE_SEED} // int time;
my $calls = $ENV{EVENT_STORE_PROPERTY_CALLS} // 1200;

srand($seed);
note "seed $seed (EVENT_STORE_SEED), $calls calls (EVENT_STORE_PROPERTY_CALLS)";

my $node = new_node('property');
create_store($node, 'postgres', 40);
$node->safe_psql('postgres', <<'EOT');
CREATE SCHEMA model;
CREATE TABLE model.event (
	stream text, version int, type text, data jsonb, metadata jsonb,
	schema_version int, event_id uuid, correlation_id text, source text,
	position bigint UNIQUE,
	PRIMARY KEY (stream, version), UNIQUE (stream, event_id));

-- What an event means with all defaults filled in; the id of one that has none
-- is the store's to choose, and stays NULL here until then.
CREATE FUNCTION model.event_of(event jsonb) RETURNS model.event
LANGUAGE plpgsql AS $$
DECLARE
	r model.event;
BEGIN
	IF jsonb_typeof(event) <> 'object'
		OR event - '{type,data,metadata,event_id,schema_version,correlation_id,source}'::text[] <> '{}'
		OR coalesce(jsonb_typeof(event->'type'), '') <> 'string'
		OR NOT event ? 'data'
		OR jsonb_typeof(coalesce(event->'metadata', '{}')) <> 'object'
		OR octet_length(event->>'type') NOT BETWEEN 1 AND 1024
		OR event->>'type' ~ '[\x01-\x1f\x7f]'
		OR (event->>'schema_version')::int < 1
	THEN
		RAISE 'invalid event' USING ERRCODE = 'VE002';
	END IF;
	r.type := event->>'type';
	r.data := event->'data';
	r.metadata := coalesce(event->'metadata', '{}');
	r.schema_version := coalesce((event->>'schema_version')::int, 1);
	r.event_id := (event->>'event_id')::uuid;
	r.correlation_id := event->>'correlation_id';
	r.source := event->>'source';
	RETURN r;
END $$;

CREATE FUNCTION model.version(wanted text) RETURNS int
LANGUAGE sql AS $$
	SELECT coalesce(max(version), 0) FROM model.event WHERE stream = wanted
$$;

-- Appends to the model; returns what the store should: first and last version,
-- and whether it is a duplicate.
CREATE FUNCTION model.append(target text, events jsonb, expected bigint) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	count int := jsonb_array_length(events);
	current int := model.version(target);
	known int := 0;
	first int;
	e jsonb;
	r model.event;
	old model.event;
	n int := 0;
BEGIN
	IF target = '' OR expected < 0 AND expected NOT IN (-2, -4) THEN
		RAISE 'invalid argument' USING ERRCODE = 'VE002';
	END IF;
	FOR e IN SELECT * FROM jsonb_array_elements(events) LOOP
		r := model.event_of(e);
	END LOOP;
	IF count > (SELECT count(DISTINCT coalesce(x->>'event_id', place::text))
			FROM jsonb_array_elements(events) WITH ORDINALITY o (x, place)) THEN
		RAISE 'an id stands twice in a batch' USING ERRCODE = 'VE002';
	END IF;

	-- a retry is one whatever version it expects
	SELECT count(*) INTO known FROM jsonb_array_elements(events) x
	JOIN model.event m ON m.stream = target AND m.event_id = (x->>'event_id')::uuid;
	IF known > 0 THEN
		IF known < count THEN
			RAISE 'only some ids are known' USING ERRCODE = 'VE003';
		END IF;
		FOR e IN SELECT * FROM jsonb_array_elements(events) LOOP
			r := model.event_of(e);
			SELECT * INTO old FROM model.event m
			WHERE m.stream = target AND m.event_id = r.event_id;
			first := coalesce(first, old.version);
			IF (old.type, old.schema_version, old.data, old.version)
				IS DISTINCT FROM (r.type, r.schema_version, r.data, first + n)
			THEN
				RAISE 'other content' USING ERRCODE = 'VE003';
			END IF;
			n := n + 1;
		END LOOP;
		RETURN format('%s|%s|t', first, first + count - 1);
	END IF;

	IF expected >= 0 AND expected <> current OR expected = -4 AND current = 0 THEN
		RAISE 'wrong version' USING ERRCODE = 'VE001';
	END IF;
	IF count = 0 THEN
		RETURN format('|%s|f', current);
	END IF;
	FOR e IN SELECT * FROM jsonb_array_elements(events) LOOP
		r := model.event_of(e);
		n := n + 1;
		r.stream := target;
		r.version := current + n;
		INSERT INTO model.event VALUES (r.*);
	END LOOP;
	RETURN format('%s|%s|f', current + 1, current + count);
END $$;

-- What a result of the store says that the model knows; notes the positions
-- and ids that the store has chosen, and checks those of a duplicate.
CREATE FUNCTION model.learn(result event_store.append_result) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	IF result.first_version IS NULL THEN
		IF result.first_position IS NOT NULL OR result.last_position IS NOT NULL THEN
			RAISE 'positions of nothing: %', result;
		END IF;
	ELSIF result.duplicate THEN
		IF (SELECT (min(position), max(position)) FROM model.event
				WHERE stream = result.stream
				AND version BETWEEN result.first_version AND result.last_version)
			<> (result.first_position, result.last_position) THEN
			RAISE 'other positions than the first time: %', result;
		END IF;
	ELSIF result.last_position - result.first_position
			<> result.last_version - result.first_version
		OR result.first_position <= (SELECT max(position) FROM model.event) THEN
		RAISE 'positions are not new, or not dense: %', result;
	ELSE
		UPDATE model.event m
		SET position = e.position, event_id = coalesce(m.event_id, e.event_id)
		FROM event_store.read_stream(result.stream, result.first_version) e
		WHERE m.stream = result.stream AND m.version = e.version
			AND e.position = result.first_position + e.version - result.first_version;
	END IF;
	RETURN format('%s|%s|%s', result.first_version, result.last_version, result.duplicate);
END $$;

-- The expected version that a word stands for.
CREATE FUNCTION model.expected(target text, word text) RETURNS bigint
LANGUAGE sql AS $$
	SELECT CASE word
		WHEN 'right' THEN model.version(target)
		WHEN 'behind' THEN greatest(model.version(target) - 1, 0)
		WHEN 'ahead' THEN model.version(target) + 1
		WHEN 'any' THEN event_store.any_version()
		WHEN 'exists' THEN event_store.stream_exists()
		WHEN 'none' THEN NULL
		ELSE word::bigint END
$$;

-- Calls store and model. Each of the two sees its own error only, and an error
-- of the store leaves nothing behind that the model would not see.
CREATE FUNCTION model.both(kind text, appends jsonb) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	a jsonb;
	e jsonb;
	expected bigint;
	results event_store.append_result[] := '{}';
	store text := '';
	model text := '';
	learned text := '';
	errors text[] := '{}';
	calls jsonb := '[]';
	r event_store.append_result;
BEGIN
	-- the versions that are expected are those before the call
	FOR a IN SELECT * FROM jsonb_array_elements(appends) LOOP
		expected := model.expected(a->>'stream', a->>'expected');
		calls := calls || jsonb_build_array((a - 'expected') || CASE
			WHEN expected IS NULL THEN '{}'
			ELSE jsonb_build_object('expected_version', expected) END);
	END LOOP;

	BEGIN
		IF kind = 'single' THEN
			a := calls->0;
			e := a->'events'->0;
			results := ARRAY[event_store.append(a->>'stream', e->>'type', e->'data',
				coalesce(e->'metadata', '{}'), (a->>'expected_version')::bigint,
				(e->>'event_id')::uuid, correlation_id => e->>'correlation_id',
				schema_version => coalesce((e->>'schema_version')::int, 1),
				source => e->>'source')];
		ELSIF kind = 'batch' THEN
			a := calls->0;
			results := ARRAY[event_store.append_events(a->>'stream', a->'events',
				(a->>'expected_version')::bigint)];
		ELSIF kind = 'streams' THEN
			results := ARRAY(SELECT s FROM event_store.append_streams(calls) s);
		ELSE
			INSERT INTO event_store.events (stream, type, data, metadata, event_id,
				correlation_id, schema_version, source)
			SELECT x->>'stream', ev->>'type', ev->'data', coalesce(ev->'metadata', '{}'),
				(ev->>'event_id')::uuid, ev->>'correlation_id',
				coalesce((ev->>'schema_version')::int, 1), ev->>'source'
			FROM jsonb_array_elements(calls) WITH ORDINALITY c (x, i),
				jsonb_array_elements(x->'events') WITH ORDINALITY d (ev, j)
			ORDER BY i, j;
		END IF;
	EXCEPTION WHEN OTHERS THEN
		store := SQLSTATE;
	END;

	-- Where several parts are wrong, the store may name any of them.
	BEGIN
		FOR a IN SELECT * FROM jsonb_array_elements(calls) LOOP
			IF kind = 'insert' THEN
				FOR e IN SELECT * FROM jsonb_array_elements(a->'events') LOOP
					BEGIN
						PERFORM model.append(a->>'stream', jsonb_build_array(e), NULL);
					EXCEPTION WHEN OTHERS THEN
						errors := errors || SQLSTATE;
					END;
				END LOOP;
			ELSE
				BEGIN
					model := model || model.append(a->>'stream', a->'events',
						(a->>'expected_version')::bigint) || ' ';
				EXCEPTION WHEN OTHERS THEN
					errors := errors || SQLSTATE;
				END;
			END IF;
		END LOOP;
		IF errors <> '{}' THEN
			RAISE 'take back what went well';
		END IF;
	EXCEPTION WHEN raise_exception THEN
		model := CASE WHEN store = ANY (errors) THEN store ELSE errors::text END;
	END;

	IF store = '' THEN
		FOREACH r IN ARRAY results LOOP
			learned := learned || model.learn(r) || ' ';
		END LOOP;
		store := learned;
		IF kind = 'insert' THEN
			UPDATE model.event m SET position = e.position, event_id = e.event_id
			FROM event_store.events e
			WHERE m.position IS NULL AND m.stream = e.stream AND m.version = e.version;
		END IF;
	END IF;
	IF store <> model THEN
		RAISE 'store: %, model: %', store, model;
	END IF;
	RETURN store;
END $$;

-- Where the contents differ.
CREATE FUNCTION model.difference() RETURNS SETOF text
LANGUAGE sql AS $$
	SELECT format('store: %s, model: %s', e, m)
	FROM (SELECT stream, version, type, data, metadata, schema_version, event_id,
			correlation_id, source, position FROM event_store.events) e
	FULL JOIN model.event m USING (stream, version)
	WHERE e::text IS DISTINCT FROM m::text
	UNION ALL
	SELECT format('version of %s: %s', stream, event_store.stream_version(stream))
	FROM (SELECT DISTINCT stream FROM model.event) s
	WHERE event_store.stream_version(stream) <> model.version(stream)
$$;
EOT

# ---------------------------------------------------------------------------
# Random arguments
# ---------------------------------------------------------------------------

my @history;    # events with ids that were sent, as they were sent
my $serial = 0;

sub pick { return $_[ rand @_ ] }

# Few names, so that calls meet, and now and then one that may be new.
sub some_stream
{
	return pick('a-1', 'a-2', 'a-3', 'b-1', 'b-2', 'plain', 'c-x-y') if rand() < 0.9;
	return 'new' . int(rand 40) . '-1';
}

sub some_type
{
	return pick('opened', 'moved', 'moved', 'closed') if rand() < 0.9;
	return 'new' . int rand 60;
}

sub some_data
{
	return pick('null', 'true', '0', '1.50', '"text"', '[]', '{"a": [1, {"b": null}]}',
		'"' . 'long ' x int(rand 800) . '"', qq({"n": @{[ int rand 1000 ]}}));
}

sub some_event
{
	my @keys = (qq("type": "@{[ some_type() ]}"),
		qq("data": @{[ some_data() ]}));

	push @keys, '"metadata": {"by": "someone"}' if rand() < 0.3;
	push @keys, '"schema_version": ' . int(1 + rand 3) if rand() < 0.2;
	push @keys, '"correlation_id": "c' . int(rand 9) . '"' if rand() < 0.3;
	push @keys, '"source": "' . pick('here', 'there', 'new' . int rand 60) . '"' if rand() < 0.3;
	push @keys,
	  sprintf '"event_id": "00000000-0000-0000-0000-%012d"', ++$serial
	  if rand() < 0.5;
	return '{' . join(', ', @keys) . '}';
}

sub some_invalid_event
{
	return pick(
		'{"type": "", "data": 1}', '{"data": 1}', '{"type": "t"}',
		'{"type": "t", "data": 1, "metadata": []}', '{"type": "t", "data": 1, "more": 1}',
		'{"type": "a\\nb", "data": 1}', '{"type": 7, "data": 1}',
		'{"type": "t", "data": 1, "schema_version": 0}', '7');
}

# A list of events: new ones, or a retry of earlier ones, exact or not.
sub some_events
{
	my ($stream, $count) = @_;
	my @events;

	if (rand() < 0.25 && @history)
	{
		my ($there, @earlier) = @{ pick(@history) };

		$stream = $there if rand() < 0.9;
		@events = @earlier;
		my $how = rand;
		if ($how < 0.6)
		{
			# as it was
		}
		elsif ($how < 0.7)
		{
			my $n = rand @events;
			$events[$n] =~ s/"data": .*?(?=[,}])/"data": "changed"/ unless $events[$n] =~ /[\[{].*[\[{]/;
		}
		elsif ($how < 0.75)
		{
			s/"type": "\w+"/"type": "changed"/ foreach @events;
		}
		elsif ($how < 0.8)
		{
			push @events, some_event();
		}
		elsif ($how < 0.85)
		{
			@events = reverse @events;
		}
		elsif ($how < 0.9)
		{
			@events = @events[ 0 .. rand @events ];
		}
		elsif ($how < 0.95)
		{
			my (undef, @other) = @{ pick(@history) };
			push @events, @other;
		}
		else
		{
			@events = ($events[0], $events[-1]);
		}
	}
	else
	{
		@events = map { some_event() } 1 .. $count;
		$events[ rand @events ] = some_invalid_event() if rand() < 0.06 && @events;
	}
	my @ids = grep { /event_id/ } @events;
	push @history, [ $stream, @ids ] if @ids && @ids == @events;
	shift @history if @history > 60;
	return ($stream, @events);
}

sub some_append
{
	my ($stream, $count) = @_;
	my @events;

	($stream, @events) = some_events($stream, $count);
	my $expected =
	  pick('right', 'right', 'right', 'none', 'none', 'any', 'behind', 'ahead', 'exists', 0, -1, -3, -5);
	return ($stream, qq({"stream": "$stream", "expected": "$expected", "events": [)
		  . join(', ', @events) . ']}', scalar @events);
}

sub some_call
{
	my $kind = pick('single', 'single', 'batch', 'batch', 'streams', 'insert');
	my @appends;
	my %used;

	if ($kind eq 'single')
	{
		my ($stream, $append, $count) = some_append(some_stream(), 1);

		# what is a batch, or can't be said by the arguments of append()
		$kind = 'batch'
		  if $count != 1 || $append !~ /"data"/ || $append =~ /"more"|"type": 7|"events": \[7/;
		@appends = ($append);
	}
	elsif ($kind eq 'batch')
	{
		my $stream = rand() < 0.02 ? '' : some_stream();
		(undef, $appends[0]) = some_append($stream, pick(0, 1, 2, 5, 12, 30));
	}
	else
	{
		foreach (1 .. 1 + rand 4)
		{
			my ($stream, $append) =
			  some_append(some_stream(), $kind eq 'insert' ? pick(1, 2, 20) : pick(0, 1, 3, 10));

			next if $kind eq 'streams' && $used{$stream}++;
			# a row has a column for each key, and nothing else
			next if $kind eq 'insert'
			  && $append =~ /"more"|\[7|, 7[,\]]|"type": 7/;
			push @appends, $append;
		}
	}
	return ($kind, join ', ', @appends);
}

# A read with random bounds, and the same asked of the model: both give
# positions in order.
sub some_read
{
	my $order = pick('false', 'true');
	my $direction = $order eq 'true' ? 'DESC' : 'ASC';
	my $limit = pick('NULL', 0, 1, 3, 50);
	my $after = pick(0, 0, 1, 17, 40, 1_000_000);
	my $types = pick('NULL::text[]', q('{moved}'::text[]), q('{opened,closed}'::text[]),
		q('{nothing}'::text[]), q('{}'::text[]), qq('{@{[ some_type() ]},new1}'::text[]));
	my $kind = pick('stream', 'category', 'all', 'last', 'trace', 'streams');
	my $bound = $order eq 'false' ? "position > $after"
	  : $after ? "position < $after" : 'true';
	my $typed = $types =~ /NULL/ ? 'true' : "type = ANY ($types)";

	if ($kind eq 'stream')
	{
		my $stream = some_stream();
		my ($from, $until) = (pick(1, 1, 2, 10, 1000), pick('NULL', 0, 1, 5, 20));

		return (
			"read_stream('$stream', $from, $limit, $order, $until)",
			"WHERE stream = '$stream' AND version >= $from
			AND version <= coalesce($until, 2147483647) ORDER BY version $direction LIMIT $limit");
	}
	elsif ($kind eq 'category')
	{
		my $category = pick('a', 'b', 'c', 'plain', 'none');

		return (
			"read_category('$category', $after, $limit, $types, $order)",
			"WHERE split_part(stream, '-', 1) = '$category' AND $bound AND $typed
			ORDER BY position $direction LIMIT $limit");
	}
	elsif ($kind eq 'all')
	{
		my $categories = pick('NULL::text[]', q('{a}'::text[]), q('{b,c,none}'::text[]),
			q('{new1,new2,new3,plain}'::text[]));
		my $category = $categories =~ /NULL/ ? 'true'
		  : "split_part(stream, '-', 1) = ANY ($categories)";

		return (
			"read_all($after, $limit, $categories, $types, $order)",
			"WHERE $category AND $bound AND $typed ORDER BY position $direction LIMIT $limit");
	}
	elsif ($kind eq 'last')
	{
		my ($stream, $type) = (some_stream(), pick('NULL', q('moved'), q('nothing')));

		return ("last_event('$stream', $type)",
			"WHERE stream = '$stream' AND ($type IS NULL OR type = $type)
			ORDER BY version DESC LIMIT 1");
	}
	elsif ($kind eq 'trace')
	{
		my $id = 'c' . int rand 9;

		return ("trace('$id', $limit)",
			"WHERE correlation_id = '$id' ORDER BY position LIMIT $limit");
	}
	else
	{
		my ($category, $name) =
		  (pick('NULL', q('a'), q('none')), pick('NULL', q('a-2'), q('b')));

		return (
			"streams($category, $name, $limit)",
			"NATURAL JOIN (SELECT stream, max(version) AS version FROM model.event GROUP BY stream) l
			WHERE ($category IS NULL OR split_part(stream, '-', 1) = $category)
			AND ($name IS NULL OR stream > $name COLLATE \"C\")
			ORDER BY stream COLLATE \"C\" LIMIT $limit",
			'last_position');
	}
}

# ---------------------------------------------------------------------------
# The sequence
# ---------------------------------------------------------------------------

my $session = EventStoreTest::Session->new($node, 'postgres');
my (%outcome, @mismatches, @savepoints);
my ($in_transaction, $compared, $reads) = (0, 0, 0);

foreach my $number (1 .. $calls)
{
	my $what = rand;

	if ($what < 0.12)
	{
		if ($in_transaction)
		{
			$session->run(rand() < 0.6 ? 'COMMIT' : 'ROLLBACK');
			$in_transaction = 0;
			@savepoints = ();
		}
		else
		{
			$session->run('BEGIN');
			$in_transaction = 1;
		}
	}
	elsif ($what < 0.24 && $in_transaction)
	{
		if (@savepoints && rand() < 0.6)
		{
			my $n = int rand @savepoints;
			my $release = rand() < 0.4;

			$session->run(($release ? 'RELEASE ' : 'ROLLBACK TO ') . $savepoints[$n]);
			splice @savepoints, $release ? $n : $n + 1;
		}
		else
		{
			push @savepoints, "s$number";
			$session->run("SAVEPOINT s$number");
		}
	}
	elsif ($what < 0.36)
	{
		my ($call, $query, $key) = some_read();
		my $is_settled_read = $call =~ /read_(all|category)/;

		# own appends are not settled: such reads are compared outside
		next if $is_settled_read && $in_transaction;
		$key //= 'position';
		my $of_store = join ',', $session->run("SELECT $key FROM event_store.$call");
		my $of_model = join ',', $session->run("SELECT position FROM model.event $query");
		$reads++;
		push @mismatches, "call $number: $call\nstore: $of_store\nmodel: $of_model"
		  if $of_store ne $of_model;
	}
	else
	{
		my ($kind, $appends) = some_call();
		my $sql = "SELECT model.both('$kind', " . quote_literal("[$appends]") . ')';
		my ($result) = $session->try($sql);

		if ($session->{sqlstate} ne '00000')
		{
			push @mismatches, "call $number: $session->{message}\nin: $sql";
			$session->run('ROLLBACK') if $in_transaction;
			$in_transaction = 0;
			@savepoints = ();
		}
		else
		{
			$result = '' unless defined $result;
			$outcome{ $result =~ /^(VE...)/ ? $1 : $result =~ /t / ? 'duplicate' : 'appended' }++;
		}
	}
	if ($number % 40 == 0)
	{
		my @differences = $session->run('SELECT * FROM model.difference()');

		$compared++;
		push @mismatches, "after call $number: @differences" if @differences;
	}
	last if @mismatches >= 5;
}
$session->run('COMMIT') if $in_transaction;

is(scalar @mismatches, 0, "store and model agree, seed $seed")
  or diag join "\n\n", map { substr $_, 0, 3000 } @mismatches;
note "compared contents $compared times, reads $reads times";
foreach my $needed (qw(appended duplicate VE001 VE002 VE003))
{
	cmp_ok($outcome{$needed} // 0, '>', 0, "the sequence had: $needed");
	note "$needed: ", $outcome{$needed} // 0;
}
query_is($node, 'postgres', 'contents agree at the end', '',
	'SELECT * FROM model.difference()');
query_is($node, 'postgres', 'several segments were filled', 't',
	'SELECT count(*) > 5 FROM event_store.segments()');
store_is_sound($node, 'postgres', 'at the end');

$session->quit;
$node->stop;
done_testing();
