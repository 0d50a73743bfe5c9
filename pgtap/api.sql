-- The API as a contract: what clients may rely on. A change here is a change
-- for them.  Run in any database where pgTAP can be had; it leaves nothing.

BEGIN;
SET LOCAL client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS pgtap;
CREATE EXTENSION IF NOT EXISTS event_store;
SET LOCAL search_path = public, pg_catalog;
SELECT no_plan();

-- ---------------------------------------------------------------------------
-- Functions
-- ---------------------------------------------------------------------------

-- privileged: not for PUBLIC, because it writes, or shows what the view events
-- does not
CREATE TEMPORARY TABLE api (
	name		text PRIMARY KEY,
	arguments	text,
	result		text,
	volatility	text,
	parallel	text,
	language	text,
	privileged	boolean
) ON COMMIT DROP;

INSERT INTO api VALUES
	('append',
	 'stream text, type text, data jsonb, metadata jsonb DEFAULT ''{}''::jsonb, expected_version bigint DEFAULT NULL::bigint, event_id uuid DEFAULT NULL::uuid, occurred_at timestamp with time zone DEFAULT NULL::timestamp with time zone, correlation_id text DEFAULT NULL::text, causation_id uuid DEFAULT NULL::uuid, schema_version integer DEFAULT 1, source text DEFAULT NULL::text',
	 'event_store.append_result', 'volatile', 'unsafe', 'c', true),
	('append_events',
	 'stream text, events jsonb, expected_version bigint DEFAULT NULL::bigint',
	 'event_store.append_result', 'volatile', 'unsafe', 'c', true),
	('append_streams',
	 'appends jsonb',
	 'SETOF event_store.append_result', 'volatile', 'unsafe', 'c', true),
	('any_version', '', 'bigint', 'immutable', 'safe', 'sql', false),
	('stream_exists', '', 'bigint', 'immutable', 'safe', 'sql', false),
	('read_stream',
	 'stream text, from_version bigint DEFAULT 1, max_count bigint DEFAULT NULL::bigint, backward boolean DEFAULT false, until_version bigint DEFAULT NULL::bigint, until_time timestamp with time zone DEFAULT NULL::timestamp with time zone',
	 'SETOF event_store.recorded_event', 'stable', 'restricted', 'c', false),
	('read_category',
	 'category text, after_position bigint DEFAULT 0, max_count bigint DEFAULT 1000, types text[] DEFAULT NULL::text[], backward boolean DEFAULT false',
	 'SETOF event_store.recorded_event', 'volatile', 'unsafe', 'c', false),
	('read_all',
	 'after_position bigint DEFAULT 0, max_count bigint DEFAULT 1000, categories text[] DEFAULT NULL::text[], types text[] DEFAULT NULL::text[], backward boolean DEFAULT false',
	 'SETOF event_store.recorded_event', 'volatile', 'unsafe', 'c', false),
	('events_since',
	 'since timestamp with time zone, max_count bigint DEFAULT 1000, categories text[] DEFAULT NULL::text[], types text[] DEFAULT NULL::text[]',
	 'SETOF event_store.recorded_event', 'volatile', 'unsafe', 'c', false),
	('find_event',
	 'event_id uuid, stream text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone',
	 'SETOF event_store.recorded_event', 'stable', 'restricted', 'c', false),
	('last_event',
	 'stream text, type text DEFAULT NULL::text',
	 'SETOF event_store.recorded_event', 'stable', 'restricted', 'c', false),
	('trace',
	 'correlation_id text, max_count bigint DEFAULT NULL::bigint, since timestamp with time zone DEFAULT NULL::timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone',
	 'SETOF event_store.recorded_event', 'stable', 'restricted', 'c', false),
	('notify_listeners', 'after_position bigint', 'bigint', 'volatile', 'unsafe', 'c', true),
	('builtin_tasks', 'OUT name text, OUT command text, OUT run_every interval', 'SETOF record', 'immutable', 'safe', 'sql', false),
	('set_task',
	 'name text, run_every interval DEFAULT NULL::interval, command text DEFAULT NULL::text, enabled boolean DEFAULT NULL::boolean',
	 'void', 'volatile', 'unsafe', 'c', true),
	('drop_task', 'name text', 'boolean', 'volatile', 'unsafe', 'c', true),
	('run_tasks', '', 'integer', 'volatile', 'unsafe', 'c', true),
	('start_worker', '', 'boolean', 'volatile', 'unsafe', 'c', true),
	('stop_worker', '', 'boolean', 'volatile', 'unsafe', 'c', true),
	('create_subscription',
	 'name text, categories text[] DEFAULT NULL::text[], types text[] DEFAULT NULL::text[], stream_pattern text DEFAULT NULL::text, start_after bigint DEFAULT 0, mode text DEFAULT ''ordered''::text, slots integer DEFAULT 1, start_time timestamp with time zone DEFAULT NULL::timestamp with time zone, priority_key text DEFAULT NULL::text, max_attempts integer DEFAULT 5, first_delay interval DEFAULT ''00:00:01''::interval, delay_factor double precision DEFAULT 2, max_delay interval DEFAULT ''00:05:00''::interval, jitter double precision DEFAULT 0.2, breaker_failures integer DEFAULT NULL::integer, breaker_window interval DEFAULT ''00:01:00''::interval, breaker_timeout interval DEFAULT ''00:00:30''::interval, breaker_probes integer DEFAULT 1',
	 'bigint', 'volatile', 'unsafe', 'c', true),
	('alter_subscription',
	 'name text, categories text[] DEFAULT NULL::text[], types text[] DEFAULT NULL::text[], stream_pattern text DEFAULT NULL::text, slots integer DEFAULT NULL::integer, max_attempts integer DEFAULT NULL::integer, first_delay interval DEFAULT NULL::interval, delay_factor double precision DEFAULT NULL::double precision, max_delay interval DEFAULT NULL::interval, jitter double precision DEFAULT NULL::double precision, breaker_failures integer DEFAULT NULL::integer, breaker_window interval DEFAULT NULL::interval, breaker_timeout interval DEFAULT NULL::interval, breaker_probes integer DEFAULT NULL::integer',
	 'void', 'volatile', 'unsafe', 'c', true),
	('drop_subscription', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('pause_subscription', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('resume_subscription', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('reset_breaker', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('rewind_subscription',
	 'name text, to_position bigint DEFAULT NULL::bigint, to_time timestamp with time zone DEFAULT NULL::timestamp with time zone',
	 'bigint', 'volatile', 'unsafe', 'c', true),
	('poll',
	 'subscription text, max_count integer DEFAULT 100, consumer text DEFAULT NULL::text, wait interval DEFAULT NULL::interval, lease interval DEFAULT NULL::interval, auto_ack boolean DEFAULT false',
	 'SETOF event_store.delivered_event', 'volatile', 'unsafe', 'c', true),
	('ack',
	 'subscription text, positions bigint[], consumer text DEFAULT NULL::text',
	 'bigint', 'volatile', 'unsafe', 'c', true),
	('ack_up_to',
	 'subscription text, "position" bigint, consumer text DEFAULT NULL::text',
	 'bigint', 'volatile', 'unsafe', 'c', true),
	('nack',
	 'subscription text, "position" bigint, error text, retry_after interval DEFAULT NULL::interval, consumer text DEFAULT NULL::text',
	 'text', 'volatile', 'unsafe', 'c', true),
	('heartbeat',
	 'subscription text, consumer text, lease interval DEFAULT ''00:00:30''::interval',
	 'boolean', 'volatile', 'unsafe', 'c', true),
	('leave', 'subscription text, consumer text', 'boolean', 'volatile', 'unsafe', 'c', true),
	('dead_letters',
	 'subscription text, max_count bigint DEFAULT 1000, OUT "position" bigint, OUT stream text, OUT version integer, OUT type text, OUT attempts integer, OUT error text, OUT consumer text, OUT first_failed_at timestamp with time zone, OUT failed_at timestamp with time zone, OUT parked bigint, OUT data jsonb, OUT metadata jsonb',
	 'SETOF record', 'stable', 'unsafe', 'sql', true),
	('deal_subscriptions', '', 'bigint', 'volatile', 'unsafe', 'c', true),
	('replay_dead_letters',
	 'subscription text, at_position bigint DEFAULT NULL::bigint, stream text DEFAULT NULL::text',
	 'bigint', 'volatile', 'unsafe', 'c', true),
	('discard_dead_letters',
	 'subscription text, reason text, at_position bigint DEFAULT NULL::bigint, stream text DEFAULT NULL::text',
	 'bigint', 'volatile', 'unsafe', 'c', true),
	('create_projection',
	 'name text, kind text, handler text, mode text DEFAULT ''async''::text, categories text[] DEFAULT NULL::text[], types text[] DEFAULT NULL::text[], key text DEFAULT NULL::text, start_after bigint DEFAULT 0, on_error text DEFAULT ''stop''::text, max_attempts integer DEFAULT 5, first_delay interval DEFAULT ''00:00:01''::interval, delay_factor double precision DEFAULT 2, max_delay interval DEFAULT ''00:05:00''::interval, batch_events integer DEFAULT 10000, batch_size integer DEFAULT 16384, refresh_every interval DEFAULT ''00:00:00''::interval, tables text[] DEFAULT NULL::text[]',
	 'bigint', 'volatile', 'unsafe', 'c', true),
	('alter_projection',
	 'name text, handler text DEFAULT NULL::text, mode text DEFAULT NULL::text, on_error text DEFAULT NULL::text, max_attempts integer DEFAULT NULL::integer, first_delay interval DEFAULT NULL::interval, delay_factor double precision DEFAULT NULL::double precision, max_delay interval DEFAULT NULL::interval, batch_events integer DEFAULT NULL::integer, batch_size integer DEFAULT NULL::integer, refresh_every interval DEFAULT NULL::interval, tables text[] DEFAULT NULL::text[]',
	 'void', 'volatile', 'unsafe', 'c', true),
	('drop_projection', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('pause_projection', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('resume_projection', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('refresh_projection', 'name text, max_count bigint DEFAULT NULL::bigint, progress boolean DEFAULT false', 'bigint', 'volatile', 'unsafe', 'c', true),
	('catch_up_projection', 'IN name text, IN progress boolean DEFAULT false', NULL, 'volatile', 'unsafe', 'c', true),
	('rebuild_projection',
	 'name text, handler text DEFAULT NULL::text, keep_old boolean DEFAULT false, start_after bigint DEFAULT 0',
	 'void', 'volatile', 'unsafe', 'c', true),
	('projection_as_of',
	 'name text, "time" timestamp with time zone, OUT key text, OUT state jsonb, OUT version integer, OUT "position" bigint',
	 'SETOF record', 'volatile', 'unsafe', 'c', true),
	('finish_rebuild', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('revert_rebuild', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('cancel_rebuild', 'name text', 'boolean', 'volatile', 'unsafe', 'c', true),
	('refresh_projections', 'max_time interval DEFAULT NULL::interval', 'boolean', 'volatile', 'unsafe', 'c', true),
	('wait_for_projection',
	 'name text, "position" bigint, timeout interval DEFAULT ''00:00:30''::interval',
	 'boolean', 'volatile', 'unsafe', 'c', false),
	('projection_state', 'name text, key text', 'jsonb', 'volatile', 'unsafe', 'c', true),
	('projection_lag',
	 'name text, max_count bigint DEFAULT 10000, OUT open_events bigint, OUT oldest_recorded_at timestamp with time zone',
	 'record', 'stable', 'unsafe', 'c', false),
	('is_replaying', '', 'boolean', 'stable', 'restricted', 'c', false),
	('apply_merge_patch', 'target jsonb, patch jsonb', 'jsonb', 'immutable', 'safe', 'c', false),
	('merge_patch', 'patch jsonb', 'jsonb', 'immutable', 'safe', 'internal', false),
	('fold', 'handler text, event event_store.recorded_event', 'jsonb', 'immutable', 'unsafe', 'internal', false),
	('as_recorded_event', 'event event_store.events', 'event_store.recorded_event', 'stable', 'safe', 'c', false),
	('subscription_lag',
	 'subscription text, max_count bigint DEFAULT 10000, OUT open_events bigint, OUT oldest_recorded_at timestamp with time zone',
	 'record', 'stable', 'unsafe', 'c', false),
	('save_snapshot',
	 'stream text, version bigint, state jsonb, schema_version integer DEFAULT 1, fold text DEFAULT NULL::text, keep integer DEFAULT 3',
	 'boolean', 'volatile', 'unsafe', 'c', true),
	('drop_snapshots',
	 'stream text DEFAULT NULL::text, fold text DEFAULT NULL::text, schema_version integer DEFAULT NULL::integer',
	 'bigint', 'volatile', 'unsafe', 'c', true),
	('load_stream',
	 'stream text, schema_version integer DEFAULT NULL::integer, fold text DEFAULT NULL::text, until_version bigint DEFAULT NULL::bigint',
	 'SETOF event_store.recorded_event', 'stable', 'restricted', 'c', true),
	('state_at',
	 'stream text, fold text, version bigint DEFAULT NULL::bigint, at timestamp with time zone DEFAULT NULL::timestamp with time zone, schema_version integer DEFAULT NULL::integer',
	 'jsonb', 'volatile', 'unsafe', 'c', true),
	('set_snapshot_policy',
	 'fold text, categories text[] DEFAULT NULL::text[], every_events integer DEFAULT 100, every interval DEFAULT NULL::interval, keep integer DEFAULT 3, schema_version integer DEFAULT 1',
	 'text', 'volatile', 'unsafe', 'c', true),
	('drop_snapshot_policy', 'fold text', 'boolean', 'volatile', 'unsafe', 'c', true),
	('take_snapshots', 'max_events bigint DEFAULT 10000', 'bigint', 'volatile', 'unsafe', 'c', true),
	('capture_changes', '', 'trigger', 'volatile', 'unsafe', 'c', true),
	('check_capture',
	 'relation regclass, OUT trigger text, OUT level text, OUT types text[], OUT category text, OUT key text[], OUT columns text[], OUT masked text[], OUT owner text, OUT may_append boolean',
	 'SETOF record', 'stable', 'restricted', 'c', false),
	('mark_processed', 'consumer text, message_id text', 'boolean', 'volatile', 'unsafe', 'c', true),
	('mark_processed_all', 'consumer text, message_ids text[]', 'text[]', 'volatile', 'unsafe', 'c', true),
	('forget_processed', 'consumer text, message_id text', 'boolean', 'volatile', 'unsafe', 'c', true),
	('once', 'consumer text, key text, command text, args jsonb DEFAULT NULL::jsonb', 'jsonb', 'volatile', 'unsafe', 'c', true),
	('begin_once', 'consumer text, key text, request jsonb DEFAULT NULL::jsonb, OUT is_first boolean, OUT result jsonb', 'record', 'volatile', 'unsafe', 'c', true),
	('finish_once', 'consumer text, key text, result jsonb', 'void', 'volatile', 'unsafe', 'c', true),
	('append_once',
	 'idempotency_key text, stream text, type text, data jsonb, metadata jsonb DEFAULT ''{}''::jsonb, expected_version bigint DEFAULT NULL::bigint, occurred_at timestamp with time zone DEFAULT NULL::timestamp with time zone, correlation_id text DEFAULT NULL::text, causation_id uuid DEFAULT NULL::uuid, schema_version integer DEFAULT 1, source text DEFAULT NULL::text',
	 'event_store.append_result', 'volatile', 'unsafe', 'c', true),
	('append_events_once',
	 'idempotency_key text, stream text, events jsonb, expected_version bigint DEFAULT NULL::bigint',
	 'event_store.append_result', 'volatile', 'unsafe', 'c', true),
	('set_dedup_window',
	 'consumer text, keep_for interval DEFAULT NULL::interval, keep_count bigint DEFAULT NULL::bigint',
	 'void', 'volatile', 'unsafe', 'c', true),
	('drop_dedup_window', 'consumer text', 'boolean', 'volatile', 'unsafe', 'c', true),
	('rotate_inbox', '', 'integer', 'volatile', 'unsafe', 'c', true),
	('publish',
	 'topic text, key text, payload jsonb, headers jsonb DEFAULT ''{}''::jsonb, message_id uuid DEFAULT NULL::uuid, deliver_after interval DEFAULT NULL::interval, type text DEFAULT NULL::text',
	 'bigint', 'volatile', 'unsafe', 'c', true),
	('outbox_poll',
	 'relay text, max_count integer DEFAULT 100, lease interval DEFAULT ''00:00:30''::interval, wait interval DEFAULT NULL::interval',
	 'SETOF event_store.outbox_message', 'volatile', 'unsafe', 'c', true),
	('outbox_ack', 'relay text, ids bigint[]', 'bigint', 'volatile', 'unsafe', 'c', true),
	('outbox_nack', 'relay text, id bigint, error text, retry_after interval DEFAULT NULL::interval', 'text', 'volatile', 'unsafe', 'c', true),
	('outbox_heartbeat', 'relay text, lease interval DEFAULT ''00:00:30''::interval', 'boolean', 'volatile', 'unsafe', 'c', true),
	('outbox_release', 'relay text', 'boolean', 'volatile', 'unsafe', 'c', true),
	('tend_outbox', '', 'bigint', 'volatile', 'unsafe', 'c', true),
	('alter_outbox',
	 'paused boolean DEFAULT NULL::boolean, max_attempts integer DEFAULT NULL::integer, first_delay interval DEFAULT NULL::interval, delay_factor double precision DEFAULT NULL::double precision, max_delay interval DEFAULT NULL::interval, jitter double precision DEFAULT NULL::double precision, breaker_failures integer DEFAULT NULL::integer, breaker_window interval DEFAULT NULL::interval, breaker_timeout interval DEFAULT NULL::interval, breaker_probes integer DEFAULT NULL::integer',
	 'void', 'volatile', 'unsafe', 'c', true),
	('outbox_replay_dead_letters', 'id bigint DEFAULT NULL::bigint, key text DEFAULT NULL::text', 'bigint', 'volatile', 'unsafe', 'c', true),
	('outbox_discard_dead_letters', 'reason text, id bigint DEFAULT NULL::bigint, key text DEFAULT NULL::text', 'bigint', 'volatile', 'unsafe', 'c', true),
	('route_to_outbox',
	 'name text, categories text[] DEFAULT NULL::text[], types text[] DEFAULT NULL::text[], topic text DEFAULT ''{category}''::text, key text DEFAULT ''{stream}''::text, payload jsonb DEFAULT NULL::jsonb, translation text DEFAULT NULL::text',
	 'void', 'volatile', 'unsafe', 'c', true),
	('drop_route', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('create_translation', 'name text, rules jsonb', 'void', 'volatile', 'unsafe', 'c', true),
	('alter_translation', 'name text, rules jsonb', 'void', 'volatile', 'unsafe', 'c', true),
	('drop_translation', 'name text', 'void', 'volatile', 'unsafe', 'c', true),
	('translate', 'name text, event event_store.recorded_event', 'SETOF event_store.recorded_event', 'stable', 'restricted', 'c', true),
	('to_cloudevent',
	 'event event_store.recorded_event, source text DEFAULT ''/event_store''::text, with_record boolean DEFAULT false',
	 'jsonb', 'immutable', 'safe', 'c', false),
	('append_cloudevent',
	 'event jsonb, stream text DEFAULT NULL::text, expected_version bigint DEFAULT NULL::bigint, source text DEFAULT ''/event_store''::text',
	 'event_store.append_result', 'volatile', 'unsafe', 'c', true),
	('append_cloudevents',
	 'events jsonb, stream text DEFAULT NULL::text, source text DEFAULT ''/event_store''::text',
	 'SETOF event_store.append_result', 'volatile', 'unsafe', 'c', true),
	('stream_version', 'stream text', 'bigint', 'stable', 'restricted', 'c', false),
	('stream_info',
	 'stream text, OUT stream text, OUT category text, OUT version integer, OUT created_at timestamp with time zone, OUT first_position bigint, OUT last_position bigint, OUT last_recorded_at timestamp with time zone',
	 'SETOF record', 'stable', 'restricted', 'c', false),
	('streams',
	 'category text DEFAULT NULL::text, after_stream text DEFAULT NULL::text, max_count bigint DEFAULT 1000, OUT stream text, OUT category text, OUT version integer, OUT created_at timestamp with time zone, OUT first_position bigint, OUT last_position bigint, OUT last_recorded_at timestamp with time zone',
	 'SETOF record', 'stable', 'restricted', 'c', false),
	('settled_position', '', 'bigint', 'volatile', 'restricted', 'c', false),
	('last_position', '', 'bigint', 'volatile', 'safe', 'c', false),
	('made_event_id', '"position" bigint, recorded_at timestamp with time zone', 'uuid', 'stable', 'safe', 'c', false),
	('publish_settled_position', '', 'bigint', 'volatile', 'unsafe', 'c', true),
	('set_segment_size', 'positions bigint', 'void', 'volatile', 'unsafe', 'c', true),
	('prepare_segments', 'ahead integer DEFAULT 2', 'integer', 'volatile', 'unsafe', 'c', true),
	('segments',
	 'OUT segment regclass, OUT first_position bigint, OUT last_position bigint',
	 'SETOF record', 'stable', 'restricted', 'c', false);

-- what the extension needs for itself: triggers and support functions
CREATE TEMPORARY TABLE internal (name text PRIMARY KEY) ON COMMIT DROP;
INSERT INTO internal VALUES
	('refuse_change'), ('advance_position_counter'), ('gather_event'),
	('write_gathered'), ('keep_routed_translation'), ('read_support'),
	('merge_patch_step'), ('merge_patch_result'), ('fold_step'), ('fold_result');

CREATE TEMPORARY VIEW function AS
SELECT p.oid, p.proname::text AS name, p.prosecdef, p.proconfig, p.proacl, p.proowner,
	pg_get_function_arguments(p.oid) AS arguments,
	pg_get_function_result(p.oid) AS result,
	CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END AS volatility,
	CASE p.proparallel WHEN 's' THEN 'safe' WHEN 'r' THEN 'restricted' ELSE 'unsafe' END AS parallel,
	l.lanname::text AS language
FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = 'event_store'::regnamespace;

SELECT set_eq('SELECT name FROM function',
	'SELECT name FROM api UNION ALL SELECT name FROM internal',
	'the schema has these functions and no others');
SELECT is_empty('SELECT name FROM function GROUP BY name HAVING count(*) > 1',
	'no function is overloaded, so that no call is ambiguous');
SELECT is_empty($$SELECT conname FROM pg_constraint WHERE connamespace = 'event_store'::regnamespace AND contype = 'f'$$,
	'no foreign keys: pg_restore -j loads the tables of an extension in any order');

SELECT is(f.arguments, a.arguments, format('arguments of %s()', a.name))
FROM api a LEFT JOIN function f USING (name) ORDER BY name;
SELECT is(f.result, a.result, format('result of %s()', a.name))
FROM api a LEFT JOIN function f USING (name) ORDER BY name;
SELECT is(f.volatility, a.volatility, format('volatility of %s()', a.name))
FROM api a LEFT JOIN function f USING (name) ORDER BY name;
SELECT is(f.parallel, a.parallel, format('parallel safety of %s()', a.name))
FROM api a LEFT JOIN function f USING (name) ORDER BY name;
SELECT is(f.language, a.language, format('language of %s()', a.name))
FROM api a LEFT JOIN function f USING (name) ORDER BY name;

-- A comment opens with the call that it is about, and names each parameter.
SELECT matches(obj_description(f.oid, 'pg_proc'), '^' || name || '\(',
	format('the comment on %s() opens with its signature', name))
FROM function f JOIN api USING (name) ORDER BY name;
SELECT is_empty($$
	SELECT f.name, parameter
	FROM function f JOIN api USING (name) JOIN pg_proc p ON p.oid = f.oid,
		unnest(p.proargnames) AS parameter
	WHERE position(parameter IN obj_description(f.oid, 'pg_proc')) = 0$$,
	'the comment on a function names all its parameters');

-- No name that is reserved, hides a type, or one of pg_catalog's functions with
-- the same arguments: a call works with the schema in the search_path too.
SELECT is_empty($$
	SELECT name FROM api WHERE to_regtype('pg_catalog.' || quote_ident(name)) IS NOT NULL
	UNION ALL
	SELECT name FROM api JOIN pg_get_keywords() ON word = name WHERE catcode <> 'U'$$,
	'no function is named like a type or a keyword');
SELECT is_empty($$
	SELECT f.name FROM function f JOIN pg_proc own ON own.oid = f.oid
	JOIN pg_proc p ON p.proname = f.name AND p.pronamespace = 'pg_catalog'::regnamespace
		AND p.proargtypes = own.proargtypes$$,
	'no function hides one of pg_catalog');

-- ---------------------------------------------------------------------------
-- Types, the view, tables
-- ---------------------------------------------------------------------------

-- names and types of the columns of a relation or composite type, in order
CREATE FUNCTION pg_temp.columns_of(relation text) RETURNS text
LANGUAGE sql AS $$
	SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
	FROM pg_attribute
	WHERE attrelid = relation::regclass AND attnum > 0 AND NOT attisdropped
$$;

SELECT is(pg_temp.columns_of('event_store.append_result'),
	'stream text, first_version integer, last_version integer, first_position bigint, last_position bigint, duplicate boolean',
	'append_result');
SELECT is(pg_temp.columns_of('event_store.recorded_event'),
	'position bigint, stream text, version integer, type text, schema_version integer, event_id uuid, recorded_at timestamp with time zone, occurred_at timestamp with time zone, source text, correlation_id text, causation_id uuid, data jsonb, metadata jsonb',
	'recorded_event');
SELECT is(pg_temp.columns_of('event_store.events'),
	pg_temp.columns_of('event_store.recorded_event') || ', category text',
	'the view has the columns of recorded_event, and category');
SELECT is(pg_temp.columns_of('event_store.delivered_event'),
	pg_temp.columns_of('event_store.recorded_event') || ', attempt integer, is_replay boolean',
	'delivered_event has the columns of recorded_event, and those of a delivery');
SELECT is(pg_temp.columns_of('event_store.subscriptions'),
	'name text, categories text[], types text[], stream_pattern text, mode text, slots integer, paused boolean, checkpoint bigint, positions_behind bigint, open_events bigint, lag interval, done_ahead integer, replaying boolean, acknowledged bigint, taken_at timestamp with time zone, rate double precision, queued bigint, leased bigint, oldest_leased_at timestamp with time zone, retries bigint, waiting bigint, dead_letters bigint, failures bigint, breaker text, breaker_until timestamp with time zone, consumers jsonb, created_at timestamp with time zone',
	'subscriptions');
SELECT is(pg_temp.columns_of('event_store.subscription_history'),
	'subscription text, at timestamp with time zone, change text, detail text, changed_by text',
	'subscription_history');
SELECT is(pg_temp.columns_of('event_store.snapshots'),
	'stream text, fold text, version integer, schema_version integer, position bigint, recorded_at timestamp with time zone, size integer, created_at timestamp with time zone',
	'snapshots');
SELECT is(pg_temp.columns_of('event_store.snapshot_policies'),
	'fold text, categories text[], every_events integer, every interval, keep integer, schema_version integer, checkpoint bigint, due bigint, taken bigint, taken_at timestamp with time zone, failures bigint, last_failed_at timestamp with time zone, last_failed_stream text, last_error text, created_at timestamp with time zone',
	'snapshot_policies');
SELECT is(pg_temp.columns_of('event_store.inbox_windows'),
	'consumer text, keep_for interval, keep_count bigint, size bigint, turn integer, opened_at timestamp with time zone, oldest_until timestamp with time zone',
	'inbox_windows');
SELECT is(pg_temp.columns_of('event_store.projections'),
	'name text, kind text, mode text, handler text, key text, categories text[], types text[], status text, checkpoint bigint, positions_behind bigint, open_events bigint, lag interval, applied bigint, applied_at timestamp with time zone, rate double precision, failed_position bigint, attempts integer, sql_state text, message text, detail text, context text, first_failed_at timestamp with time zone, failed_at timestamp with time zone, next_attempt_at timestamp with time zone, skipped bigint, on_error text, max_attempts integer, owner text, created_at timestamp with time zone',
	'projections');
SELECT is(pg_temp.columns_of('event_store.projection_rebuilds'),
	'projection text, phase text, done bigint, total bigint, events bigint, rate double precision, expected_end timestamp with time zone, message text, started_at timestamp with time zone',
	'projection_rebuilds');
SELECT is(pg_temp.columns_of('event_store.projection_failures'),
	'projection text, position bigint, stream text, version integer, type text, attempts integer, sql_state text, message text, detail text, context text, failed_at timestamp with time zone, data jsonb, metadata jsonb',
	'projection_failures');
SELECT is(pg_temp.columns_of('event_store.projection_states'),
	'projection text, key text, state jsonb, version integer, position bigint',
	'projection_states');

SELECT is(pg_temp.columns_of('event_store.outbox_message'),
	'id bigint, message_id uuid, topic text, key text, type text, payload jsonb, headers jsonb, published_at timestamp with time zone, attempt integer',
	'outbox_message');
SELECT is(pg_temp.columns_of('event_store.outbox_status'),
	'waiting bigint, leased bigint, delayed bigint, retries bigint, parked bigint, dead_letters bigint, age interval, acknowledged bigint, acknowledged_at timestamp with time zone, rate double precision, failures bigint, relays text[], paused boolean, breaker text, breaker_until timestamp with time zone, bytes bigint',
	'outbox_status');
SELECT is(pg_temp.columns_of('event_store.outbox_messages'),
	'id bigint, message_id uuid, topic text, key text, type text, state text, relay text, attempts integer, due timestamp with time zone, error text, published_at timestamp with time zone, payload jsonb, headers jsonb',
	'outbox_messages');
SELECT is(pg_temp.columns_of('event_store.outbox_dead_letters'),
	'id bigint, message_id uuid, topic text, key text, type text, attempts integer, error text, relay text, first_failed_at timestamp with time zone, failed_at timestamp with time zone, parked bigint, payload jsonb, headers jsonb',
	'outbox_dead_letters');
SELECT is(pg_temp.columns_of('event_store.outbox_routes'),
	'name text, categories text[], types text[], topic text, key text, payload jsonb, translation text, created_at timestamp with time zone',
	'outbox_routes');
SELECT is(pg_temp.columns_of('event_store.outbox_history'),
	'at timestamp with time zone, change text, detail text, changed_by text',
	'outbox_history');
-- what an outbox event router finds there by default
SELECT is_empty($$
	SELECT c.relname, w.name FROM pg_class AS c, (VALUES ('id', 'uuid'), ('aggregatetype', 'text'), ('aggregateid', 'text'), ('type', 'text'), ('payload', 'jsonb')) AS w (name, type)
	WHERE c.relnamespace = 'event_store'::regnamespace AND c.relname ~ '^outbox_[0-9]$'
	AND NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = w.name AND a.atttypid = w.type::regtype)$$,
	'tables of messages have the columns of an outbox');
-- DELETE fails on others where a publication for all tables publishes it
SELECT set_eq($$
	SELECT c.relname::text FROM pg_class AS c
	WHERE c.relnamespace = 'event_store'::regnamespace AND c.relkind = 'r' AND c.relreplident <> 'f' AND c.relname !~ '^(event|inbox)_[0-9]'
	AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)$$,
	ARRAY['outbox_0', 'outbox_1', 'outbox_2', 'outbox_3', 'outbox_slot_0', 'outbox_slot_1', 'position_counter',
		'segment_content'],
	'all but those that are never changed by rows have a replica identity');
SELECT is(pg_temp.columns_of('event_store.translations'),
	'name text, rule integer, types jsonb, categories jsonb, condition text, type text, definition jsonb, created_at timestamp with time zone, altered_at timestamp with time zone',
	'translations');

SELECT set_eq($$
	SELECT relname::text FROM pg_class c
	WHERE relnamespace = 'event_store'::regnamespace AND relkind IN ('r', 'p', 'v')
	AND NOT relispartition$$,
	ARRAY['event', 'stream', 'category', 'event_type', 'source', 'segment_content',
		'position_counter', 'store', 'events', 'worker_task', 'worker_task_run', 'worker_tasks', 'notification_told',
		'subscription', 'subscription_cursor', 'subscription_batch', 'subscription_failure',
		'subscription_consumer', 'subscription_no_replay', 'subscription_heartbeat', 'subscription_fault', 'subscription_breaker', 'subscription_change',
		'subscriptions', 'subscription_history',
		'snapshot', 'snapshot_policy', 'snapshot_progress', 'snapshot_pending', 'snapshots', 'snapshot_policies',
		'outbox_0', 'outbox_1', 'outbox_2', 'outbox_3', 'outbox_slot_0', 'outbox_slot_1', 'outbox_delayed', 'outbox_kept',
		'outbox_policy', 'outbox_route',
		'outbox_messages', 'outbox_dead_letters', 'outbox_status', 'outbox_slots', 'outbox_routes', 'outbox_history',
		'projection', 'projection_checkpoint', 'projection_error', 'projection_failure', 'projection_state',
		'inbox_window', 'inbox_turn', 'inbox_0_0', 'inbox_0_1', 'inbox_0_2', 'inbox_windows',
		'projections', 'projection_failures', 'projection_states', 'projection_rebuilds',
		'translation', 'translations'],
	'the schema has these tables and views and no others');

SELECT is_empty($$
	SELECT 'schema' WHERE obj_description('event_store'::regnamespace, 'pg_namespace') IS NULL
	UNION ALL SELECT name FROM function WHERE obj_description(oid, 'pg_proc') IS NULL
	UNION ALL SELECT relname FROM pg_class
		WHERE relnamespace = 'event_store'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')
		AND obj_description(oid, 'pg_class') IS NULL
	UNION ALL SELECT typname FROM pg_type t JOIN pg_class c ON c.oid = typrelid
		WHERE typnamespace = 'event_store'::regnamespace AND relkind = 'c'
		AND obj_description(t.oid, 'pg_type') IS NULL
	UNION ALL SELECT c.oid::regclass || '.' || attname
		FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
		WHERE relnamespace = 'event_store'::regnamespace AND relkind IN ('r', 'p', 'v', 'c')
		AND NOT relispartition AND attnum > 0 AND NOT attisdropped
		AND col_description(attrelid, attnum) IS NULL$$,
	'everything has a comment');

SELECT is((SELECT castcontext::text FROM pg_cast
		WHERE castsource = 'event_store.events'::regtype AND casttarget = 'event_store.recorded_event'::regtype), 'i',
	'a row of the view goes where a recorded_event is wanted');
SELECT set_eq($$SELECT proname::text FROM pg_proc WHERE pronamespace = 'event_store'::regnamespace AND prokind = 'a'$$,
	ARRAY['merge_patch', 'fold'], 'these are aggregates');

-- ---------------------------------------------------------------------------
-- Privileges
-- ---------------------------------------------------------------------------

SELECT is_empty($$
	SELECT name FROM function WHERE has_function_privilege('public', oid, 'EXECUTE')
	AND name IN (SELECT name FROM api WHERE privileged
		UNION ALL SELECT name FROM internal
			WHERE name NOT IN ('read_support', 'merge_patch_step', 'merge_patch_result', 'fold_step', 'fold_result'))$$,
	'PUBLIC may not execute what writes, or what has rights of its own');
SELECT is_empty($$
	SELECT name FROM function WHERE NOT has_function_privilege('public', oid, 'EXECUTE')
	AND name IN (SELECT name FROM api WHERE NOT privileged)$$,
	'PUBLIC may execute what reads: the right to read is that to the view');
SELECT is_empty($$
	SELECT c.oid::regclass, privilege_type
	FROM pg_class c, aclexplode(relacl)
	WHERE relnamespace = 'event_store'::regnamespace AND grantee = 0
	UNION ALL
	SELECT c.oid::regclass, privilege_type
	FROM pg_class c JOIN pg_attribute ON attrelid = c.oid, aclexplode(attacl)
	WHERE relnamespace = 'event_store'::regnamespace AND grantee = 0$$,
	'PUBLIC has no right to any table, view or sequence');
SELECT ok(NOT has_schema_privilege('public', 'event_store', 'USAGE')
	AND NOT has_schema_privilege('public', 'event_store', 'CREATE'),
	'PUBLIC has no right to the schema');
SELECT is_empty($$
	SELECT name FROM function WHERE prosecdef
	AND NOT EXISTS (SELECT FROM unnest(proconfig) AS setting
		WHERE setting LIKE 'search_path=%')$$,
	'a function with the rights of its owner has a fixed search_path');
SELECT is_empty($$
	SELECT c.relname, v.relname
	FROM pg_class v JOIN pg_rewrite r ON r.ev_class = v.oid
	JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
		AND d.refclassid = 'pg_class'::regclass
	JOIN pg_class c ON c.oid = d.refobjid
	WHERE v.relnamespace = 'event_store'::regnamespace AND v.relkind = 'v' AND v.relname <> 'events'
	AND c.relname IN ('event', 'stream', 'category', 'event_type', 'source', 'segment_content')
	AND (v.relname, c.relname) <> ('snapshots', 'stream')$$,
	'no other view shows what the tables of events hide, but for names of streams that have snapshots');

-- What the rights are worth.
CREATE ROLE event_store_contract_reader;
CREATE ROLE event_store_contract_writer;
CREATE ROLE event_store_contract_nobody;
GRANT USAGE ON SCHEMA event_store TO event_store_contract_reader,
	event_store_contract_writer, event_store_contract_nobody;
GRANT SELECT ON event_store.events TO event_store_contract_reader;
GRANT INSERT ON event_store.events TO event_store_contract_writer;
GRANT EXECUTE ON FUNCTION event_store.append, event_store.append_events, event_store.append_streams,
	event_store.append_cloudevent, event_store.append_cloudevents,
	event_store.poll TO event_store_contract_writer, event_store_contract_nobody;
SELECT lives_ok($$SELECT event_store.create_subscription('contract')$$, 'the owner makes a subscription');
SELECT lives_ok($$SELECT event_store.create_projection('contract', 'fold', 'count')$$, 'and a projection');
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC;

CREATE TEMPORARY TABLE call (name text, sql text) ON COMMIT DROP;
INSERT INTO call VALUES
	('append', $$SELECT * FROM event_store.append('contract-1', 'called', '{}')$$),
	('append_events', $$SELECT * FROM event_store.append_events('contract-1', '[{"type": "called", "data": 1}]')$$),
	('append_streams', $$SELECT * FROM event_store.append_streams('[{"stream": "contract-1", "events": [{"type": "called", "data": 1}]}]')$$),
	('append_cloudevent', $$SELECT event_store.append_cloudevent('{"specversion": "1.0", "type": "called", "source": "/", "id": "1", "subject": "contract-2"}')$$),
	('append_cloudevents', $$SELECT * FROM event_store.append_cloudevents('[{"specversion": "1.0", "type": "called", "source": "/", "id": "1", "subject": "contract-2"}]')$$),
	('INSERT', $$INSERT INTO event_store.events (stream, type, data) VALUES ('contract-1', 'called', '1')$$),
	('read_stream', $$SELECT * FROM event_store.read_stream('contract-1')$$),
	('read_category', $$SELECT * FROM event_store.read_category('contract')$$),
	('read_all', $$SELECT * FROM event_store.read_all()$$),
	('events_since', $$SELECT * FROM event_store.events_since('2000-01-01')$$),
	('find_event', $$SELECT * FROM event_store.find_event('00000000-0000-0000-0000-000000000001')$$),
	('last_event', $$SELECT * FROM event_store.last_event('contract-1')$$),
	('trace', $$SELECT * FROM event_store.trace('c')$$),
	('stream_version', $$SELECT event_store.stream_version('contract-1')$$),
	('stream_info', $$SELECT * FROM event_store.stream_info('contract-1')$$),
	('streams', $$SELECT * FROM event_store.streams()$$),
	('settled_position', $$SELECT event_store.settled_position()$$),
	('last_position', $$SELECT event_store.last_position()$$),
	('segments', $$SELECT * FROM event_store.segments()$$),
	('events', $$SELECT * FROM event_store.events$$),
	('publish_settled_position', $$SELECT event_store.publish_settled_position()$$),
	('set_segment_size', $$SELECT event_store.set_segment_size(100)$$),
	('prepare_segments', $$SELECT event_store.prepare_segments()$$),
	('subscriptions', $$SELECT * FROM event_store.subscriptions$$),
	('subscription_history', $$SELECT * FROM event_store.subscription_history$$),
	('create_subscription', $$SELECT event_store.create_subscription('contract too')$$),
	('poll', $$SELECT * FROM event_store.poll('contract')$$),
	('nack', $$SELECT event_store.nack('contract', 1, 'bad')$$),
	('dead_letters', $$SELECT * FROM event_store.dead_letters('contract')$$),
	('save_snapshot', $$SELECT event_store.save_snapshot('contract-1', 1, '1')$$),
	('load_stream', $$SELECT * FROM event_store.load_stream('contract-1')$$),
	('state_at', $$SELECT event_store.state_at('contract-1', 'count')$$),
	('set_snapshot_policy', $$SELECT event_store.set_snapshot_policy('count')$$),
	('take_snapshots', $$SELECT event_store.take_snapshots()$$),
	('drop_snapshots', $$SELECT event_store.drop_snapshots()$$),
	('snapshots', $$SELECT * FROM event_store.snapshots$$),
	('snapshot_policies', $$SELECT * FROM event_store.snapshot_policies$$),
	('mark_processed', $$SELECT event_store.mark_processed('contract', '1')$$),
	('mark_processed_all', $$SELECT event_store.mark_processed_all('contract', '{1}')$$),
	('forget_processed', $$SELECT event_store.forget_processed('contract', '1')$$),
	('once', $$SELECT event_store.once('contract', '1', 'SELECT 1')$$),
	('begin_once', $$SELECT event_store.begin_once('contract', '2')$$),
	('finish_once', $$SELECT event_store.finish_once('contract', '2', '1')$$),
	('append_once', $$SELECT event_store.append_once('contract', 'contract-1', 'called', '{}')$$),
	('append_events_once', $$SELECT event_store.append_events_once('contract', 'contract-1', '[{"type": "called", "data": 1}]')$$),
	('set_dedup_window', $$SELECT event_store.set_dedup_window('contract', '1 day')$$),
	('drop_dedup_window', $$SELECT event_store.drop_dedup_window('contract')$$),
	('rotate_inbox', $$SELECT event_store.rotate_inbox()$$),
	('inbox_windows', $$SELECT * FROM event_store.inbox_windows$$),
	('inbox_0_0', $$SELECT * FROM event_store.inbox_0_0$$),
	('projections', $$SELECT * FROM event_store.projections$$),
	('projection_failures', $$SELECT * FROM event_store.projection_failures$$),
	('projection_states', $$SELECT * FROM event_store.projection_states$$),
	('create_projection', $$SELECT event_store.create_projection('contract too', 'fold', 'count')$$),
	('refresh_projection', $$SELECT event_store.refresh_projection('contract')$$),
	('refresh_projections', $$SELECT event_store.refresh_projections()$$),
	('projection_state', $$SELECT event_store.projection_state('contract', 'contract-1')$$),
	('projection_lag', $$SELECT * FROM event_store.projection_lag('contract')$$),
	('wait_for_projection', $$SELECT event_store.wait_for_projection('contract', 1, '0')$$),
	('publish', $$SELECT event_store.publish('t', 'k', '1')$$),
	('outbox_poll', $$SELECT * FROM event_store.outbox_poll('r')$$),
	('outbox_status', $$SELECT * FROM event_store.outbox_status$$),
	('route_to_outbox', $$SELECT event_store.route_to_outbox('r')$$),
	('create_translation', $$SELECT event_store.create_translation('contract', '{}')$$),
	('alter_translation', $$SELECT event_store.alter_translation('contract', '{}')$$),
	('drop_translation', $$SELECT event_store.drop_translation('contract')$$),
	('translations', $$SELECT * FROM event_store.translations$$),
	('translate', $$SELECT * FROM event_store.translate('contract', NULL)$$),
	('tables', $$SELECT * FROM event_store.event$$),
	('counter', $$SELECT * FROM event_store.position_counter$$);

-- The SQLSTATE of a call by a role, '00000' where it succeeds.
CREATE FUNCTION pg_temp.outcome(role text, sql text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE 'SET LOCAL ROLE ' || role;
	EXECUTE sql;
	RESET ROLE;
	RETURN '00000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;

-- The writer comes first, so that there is something to be read.
SELECT is(pg_temp.outcome('event_store_contract_writer', sql),
	CASE WHEN name IN ('append', 'append_events', 'append_streams', 'append_cloudevent', 'append_cloudevents', 'INSERT') THEN '00000' ELSE '42501' END,
	'a writer calls ' || name)
FROM call ORDER BY name;
SELECT is(pg_temp.outcome('event_store_contract_reader', sql),
	CASE WHEN name ~ '^(append|INSERT|publish|outbox|route_|set_|prepare|tables|counter|subscription|create_|poll|nack|dead_|snapshot|projections|projection_(failures|states|state)$|refresh_|save_|load_|state_|take_|drop_|alter_|translat|mark_|forget_|once|begin_|finish_|rotate_|inbox_)' THEN '42501' ELSE '00000' END,
	'a reader calls ' || name)
FROM call ORDER BY name;
SELECT is(pg_temp.outcome('event_store_contract_nobody', sql), '42501',
	'who may do neither calls ' || name)
FROM call ORDER BY name;

-- ---------------------------------------------------------------------------
-- The extension
-- ---------------------------------------------------------------------------

SELECT is_empty($$
	SELECT c.oid::regclass FROM pg_class c
	JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
	JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'event_store'
	WHERE relkind IN ('r', 'p', 'S') AND c.oid <> ALL (coalesce(extconfig, '{}'))$$,
	'what holds data is dumped');
SELECT is_empty($$
	SELECT c.oid::regclass FROM pg_class c
	WHERE relispartition AND relnamespace = 'event_store'::regnamespace
	AND EXISTS (SELECT FROM pg_depend d
		WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')$$,
	'segments are no members of the extension, so that they are dumped as tables');
SELECT is_empty($$
	SELECT c.oid::regclass FROM pg_class c
	WHERE relnamespace = 'event_store'::regnamespace AND relkind IN ('r', 'p', 'v')
	AND relname NOT IN ('store', 'worker_task', 'worker_task_run', 'worker_tasks', 'notification_told',
		'subscription', 'subscription_cursor', 'subscription_batch', 'subscription_failure',
		'subscription_consumer', 'subscription_no_replay', 'subscription_heartbeat', 'subscription_fault', 'subscription_breaker', 'subscription_change',
		'subscriptions', 'subscription_history',
		'snapshot', 'snapshot_policy', 'snapshot_progress', 'snapshot_pending', 'snapshots', 'snapshot_policies',
		'outbox_0', 'outbox_1', 'outbox_2', 'outbox_3', 'outbox_slot_0', 'outbox_slot_1', 'outbox_delayed', 'outbox_kept',
		'outbox_policy', 'outbox_route',
		'outbox_messages', 'outbox_dead_letters', 'outbox_status', 'outbox_slots', 'outbox_routes', 'outbox_history',
		'projection', 'projection_checkpoint', 'projection_error', 'projection_failure', 'projection_state',
		'inbox_window', 'inbox_turn', 'inbox_0_0', 'inbox_0_1', 'inbox_0_2', 'inbox_windows',
		'projections', 'projection_failures', 'projection_states', 'projection_rebuilds',
		'translation', 'translations')
	AND NOT (relispartition AND relname ~ '^projection_state_')
	AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'refuse_change')$$,
	'all that holds events or their names refuses changes');
SELECT is_empty($$
	SELECT tgrelid::regclass FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
	WHERE relnamespace = 'event_store'::regnamespace AND relkind IN ('r', 'p')
	AND tgname = 'refuse_change' AND tgenabled <> 'A'$$,
	'in sessions that replicate, too');

SELECT * FROM finish();
ROLLBACK;
