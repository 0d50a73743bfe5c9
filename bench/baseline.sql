-- The two baselines that the benchmark makes itself; psql runs this in the database of each.
--
-- The table has the columns of event_store.recorded_event and the category, names as text, as one would write it
-- without a store, and the indexes that a segment of event_store.event has. Where there is a choice it is made in
-- favour of the baseline: columns in the order that wastes no room for alignment, no value for occurred_at where
-- it says the same as recorded_at, the transaction's time, event ids from the client and in order of time (UUID
-- version 7).

CREATE TABLE event (
	position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	recorded_at timestamptz NOT NULL DEFAULT now(),
	occurred_at timestamptz,
	version int NOT NULL,
	schema_version int NOT NULL DEFAULT 1,
	event_id uuid NOT NULL,
	causation_id uuid,
	stream text NOT NULL,
	category text NOT NULL,
	type text NOT NULL,
	source text,
	correlation_id text,
	data jsonb NOT NULL,
	metadata jsonb NOT NULL
);

CREATE UNIQUE INDEX ON event (stream, version);
CREATE INDEX ON event (event_id);
CREATE INDEX ON event (category, type, position);
CREATE INDEX ON event (correlation_id, position) WHERE correlation_id IS NOT NULL;

-- The careful store in plpgsql: the stream's row is its lock and its version. Free space in the pages lets each
-- update stay in its page and leave the index alone.

CREATE TABLE stream (
	name text PRIMARY KEY,
	category text NOT NULL,
	version int NOT NULL
) WITH (fillfactor = 70);

CREATE FUNCTION append(stream text, type text, data jsonb, metadata jsonb, expected_version int, event_id uuid)
RETURNS int
LANGUAGE plpgsql
AS $$
DECLARE
	_version int;
	_category text;
BEGIN
	UPDATE stream AS s SET version = s.version + 1
	WHERE s.name = append.stream
	RETURNING s.version, s.category INTO _version, _category;

	IF NOT FOUND THEN
		INSERT INTO stream AS s (name, category, version)
		VALUES (append.stream, split_part(append.stream, '-', 1), 1)
		ON CONFLICT (name) DO UPDATE SET version = s.version + 1
		RETURNING s.version, s.category INTO _version, _category;
	END IF;

	IF append.expected_version <> _version - 1 THEN
		RAISE EXCEPTION 'wrong expected version'
			USING DETAIL = format('Expected version %s, actual version %s.', append.expected_version, _version - 1);
	END IF;

	INSERT INTO event (stream, category, version, type, event_id, data, metadata)
	VALUES (append.stream, _category, _version, append.type, append.event_id, append.data, append.metadata);
	RETURN _version;
END
$$;
