-- ---------------------------------------------------------------------------
-- cloudevent: CloudEvents 1.0 in the JSON event format
-- ---------------------------------------------------------------------------

CREATE FUNCTION event_store.to_cloudevent(
	event event_store.recorded_event,
	source text DEFAULT '/event_store',
	with_record boolean DEFAULT false
) RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'event_store_to_cloudevent';
COMMENT ON FUNCTION event_store.to_cloudevent(event_store.recorded_event, text, boolean) IS
'to_cloudevent(event, source = ''/event_store'', with_record = false) -> jsonb: the event as a CloudEvent 1.0 in the JSON event format: id event_id, type, source (an event without one: the source given here, a URI reference), subject stream, time occurred_at, data, and as extension attributes correlationid, causationid, schemaversion (if it is not 1) and each key of metadata whose name and value can be one, traceparent and tracestate among them. What else there is goes into the attribute eventstore, as text; append_cloudevent() makes the same event of it again. An event that came by append_cloudevent() becomes the CloudEvent that it was. with_record: recordedtime (recorded_at) and sequence (version, ten digits), too, unless metadata has them. NULL for NULL. Raises VE002 for an invalid source, and for a type, stream or correlation id with characters that a CloudEvent must not have.';

CREATE FUNCTION event_store.append_cloudevent(
	event jsonb,
	stream text DEFAULT NULL,
	expected_version bigint DEFAULT NULL,
	source text DEFAULT '/event_store'
) RETURNS event_store.append_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'event_store_append_cloudevent';
REVOKE ALL ON FUNCTION event_store.append_cloudevent(jsonb, text, bigint, text) FROM PUBLIC;
ALTER FUNCTION event_store.append_cloudevent(jsonb, text, bigint, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.append_cloudevent(jsonb, text, bigint, text) IS
'append_cloudevent(event, stream = NULL, expected_version = NULL, source = ''/event_store'') -> append_result: appends a CloudEvent 1.0 in the JSON event format. stream: the name of the stream, where names of attributes in braces stand for their values (''order-{subject}''; a brace itself is doubled); NULL: subject, or source if there is no subject. An id that is a UUID, as PostgreSQL writes it, becomes event_id; of another a UUID of version 5 is made, in the namespace of URLs, of source, a blank and id: so what is delivered again is a duplicate. source: a CloudEvent with this one becomes an event without a source. correlationid, causationid (a UUID) and schemaversion become fields, other extension attributes keys of metadata; what else to_cloudevent() needs to make the same CloudEvent again stands in metadata under $cloudevent. data_base64, and data that is no JSON, become a JSON string; no data becomes null. Raises VE002 for what is no CloudEvent 1.0 or names no stream, or one that begins with $; VE001, VE003, 25006 as append() does.';

CREATE FUNCTION event_store.append_cloudevents(
	events jsonb,
	stream text DEFAULT NULL,
	source text DEFAULT '/event_store'
) RETURNS SETOF event_store.append_result
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'event_store_append_cloudevents';
REVOKE ALL ON FUNCTION event_store.append_cloudevents(jsonb, text, text) FROM PUBLIC;
ALTER FUNCTION event_store.append_cloudevents(jsonb, text, text) OWNER TO @extowner@;
COMMENT ON FUNCTION event_store.append_cloudevents(jsonb, text, text) IS
'append_cloudevents(events, stream = NULL, source = ''/event_store'') -> setof append_result: appends a batch of CloudEvents in the JSON batch format, an array, each as append_cloudevent() does, all or nothing. Each may be a duplicate by itself. Returns a row for each, in the order given. At most event_store.max_batch_events and event_store.max_batch_size a call. Raises VE002, VE003, 25006 as append_cloudevent() does.';
