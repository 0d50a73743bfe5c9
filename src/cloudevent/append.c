/*
 * append.c
 *		append_cloudevent() and append_cloudevents(): CloudEvents become events.
 *
 * 1. Its members are read and checked by the specification.
 * 2. The stream's name is found by the template.
 * 3. Attributes that an event has fields for go there.  Other extension attributes
 *    become metadata of the same name, to which our own attribute adds what it
 *    holds.  Where the CloudEvent is different from what to_cloudevent() would make
 *    of these fields, that is said in a shadow.
 * 4. The events are appended as append() would, those of a batch each by itself:
 *    what was delivered before is a duplicate, the others are not.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "port/pg_bitutils.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "cloudevent/cloudevent.h"
#include "common/compat.h"
#include "common/errors.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_append_cloudevent);
PG_FUNCTION_INFO_V1(event_store_append_cloudevents);

/* how CloudEvents are taken */
typedef struct Taking
{
	text	   *stream;			/* a template; NULL: subject, else source */
	text	   *home;			/* the source that stands for none */
} Taking;

typedef struct CloudEvent
{
	bool		has[CE_NATTRIBUTES];
	JsonbValue	values[CE_NATTRIBUTES];
	JsonbContainer *object;		/* all of it */
} CloudEvent;

#define TEXT(event, attribute)		((event)->values[attribute].val.string.val)
#define LENGTH(event, attribute)	((event)->values[attribute].val.string.len)

/* ----------------------------------------------------------------
 * Reading
 * ----------------------------------------------------------------
 */

static void
invalid_attribute(const char *name, int len, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("attribute \"%s\" of a CloudEvent is not valid", pnstrdup(name, len)),
			 errdetail("%s", problem)));
}

static bool
content_is_json(CloudEvent *event)
{
	return !event->has[CE_DATACONTENTTYPE] ||
		attribute_json_content(TEXT(event, CE_DATACONTENTTYPE), LENGTH(event, CE_DATACONTENTTYPE));
}

static void
read_members(CloudEvent *event, JsonbValue *object)
{
	static const Attribute wanted[] = {CE_SPECVERSION, CE_ID, CE_SOURCE, CE_TYPE};
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;

	if (object->type != jbvBinary || !JsonContainerIsObject(object->val.binary.data))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a CloudEvent must be a JSON object")));
	event->object = object->val.binary.data;
	it = JsonbIteratorInit(event->object);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		int			attribute = attribute_find(key.val.string.val, key.val.string.len);
		const char *problem;

		(void) JsonbIteratorNext(&it, &value, true);
		/* null is as good as nothing, but as data */
		if (value.type == jbvNull && attribute != CE_DATA)
			continue;
		if (attribute >= 0)
		{
			problem = attribute_problem(attribute, &value);
			event->has[attribute] = true;
			event->values[attribute] = value;
		}
		else
		{
			problem = attribute_name_problem(key.val.string.val, key.val.string.len);
			if (problem == NULL)
				problem = extension_problem(&value);
		}
		if (problem != NULL)
			invalid_attribute(key.val.string.val, key.val.string.len, problem);
	}
	for (int i = 0; i < lengthof(wanted); i++)
		if (!event->has[wanted[i]])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("a CloudEvent lacks the attribute \"%s\"",
							attribute_names[wanted[i]])));
	/* null is a value where data is JSON, and no data where it cannot be */
	if (event->has[CE_DATA] && event->values[CE_DATA].type == jbvNull &&
		(event->has[CE_DATA_BASE64] || !content_is_json(event)))
		event->has[CE_DATA] = false;
	if (event->has[CE_DATA] && event->has[CE_DATA_BASE64])
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a CloudEvent has either data or data_base64, not both")));
	if (event->has[CE_DATA] && event->values[CE_DATA].type != jbvString && !content_is_json(event))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("data of a CloudEvent is not valid"),
				 errdetail("It must be a JSON string where datacontenttype does not say that it is JSON.")));
}

/* The text of an attribute, as it can stand in a stream's name; NULL: there is none. */
static char *
attribute_text(CloudEvent *event, const char *name, int len)
{
	int			attribute = attribute_find(name, len);
	JsonbValue	value;

	if (attribute == CE_DATA || attribute == CE_DATA_BASE64 ||
		getKeyJsonValueFromContainer(event->object, name, len, &value) == NULL)
		return NULL;
	switch (value.type)
	{
		case jbvString:
			return pnstrdup(value.val.string.val, value.val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value.val.numeric)));
		case jbvBool:
			return value.val.boolean ? "true" : "false";
		default:
			return NULL;
	}
}

/* The stream's name: the template, with attributes for their names in braces. */
static text *
stream_name(CloudEvent *event, const Taking *taking)
{
	StringInfoData name;
	const char *template;
	int			len;

	if (taking->stream == NULL)
	{
		Attribute	attribute = event->has[CE_SUBJECT] ? CE_SUBJECT : CE_SOURCE;

		initStringInfo(&name);
		appendBinaryStringInfo(&name, TEXT(event, attribute), LENGTH(event, attribute));
	}
	else
	{
		template = VARDATA_ANY(taking->stream);
		len = VARSIZE_ANY_EXHDR(taking->stream);
		initStringInfo(&name);
		for (int i = 0; i < len; i++)
		{
			const char *end;
			char	   *value;

			if (template[i] != '{' && template[i] != '}')
			{
				appendStringInfoChar(&name, template[i]);
				continue;
			}
			if (i + 1 < len && template[i + 1] == template[i])
			{
				appendStringInfoChar(&name, template[i++]);
				continue;
			}
			end = template[i] == '{' ? memchr(template + i, '}', len - i) : NULL;
			if (end == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("stream has a brace without its fellow"),
						 errhint("The name of an attribute stands in braces, as in 'order-{subject}'; a brace itself is doubled.")));
			value = attribute_text(event, template + i + 1, end - template - i - 1);
			if (value == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("a CloudEvent lacks the attribute \"%s\", which the stream's name is made of",
								pnstrdup(template + i + 1, end - template - i - 1))));
			appendStringInfoString(&name, value);
			i = end - template;
		}
	}
	/* who sends events does not write into the system's streams */
	if (name.len > 0 && name.data[0] == '$' &&
		(taking->stream == NULL || VARSIZE_ANY_EXHDR(taking->stream) == 0 ||
		 VARDATA_ANY(taking->stream)[0] != '$'))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a CloudEvent must not name a stream of the system"),
				 errdetail("The stream would be \"%s\".", name.data)));
	return cstring_to_text_with_len(name.data, name.len);
}

/* ----------------------------------------------------------------
 * The event
 * ----------------------------------------------------------------
 */

static void
put(JsonbParseState **state, const char *name, int len, JsonbValue *value)
{
	JsonbValue	key;

	if (*state == NULL)
		(void) pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	key.type = jbvString;
	key.val.string.val = unconstify(char *, name);
	key.val.string.len = len;
	(void) pushJsonbValue(state, WJB_KEY, &key);
	(void) pushJsonbValue(state, WJB_VALUE, value);
}

/* Notes in the shadow what an attribute was; that it was not there, if value is NULL. */
static void
note(JsonbParseState **shadow, Attribute attribute, JsonbValue *value)
{
	JsonbValue	null;

	null.type = jbvNull;
	put(shadow, attribute_names[attribute], strlen(attribute_names[attribute]),
		value == NULL ? &null : value);
}

static void
note_text(JsonbParseState **shadow, Attribute attribute, const char *text)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, text);
	value.val.string.len = strlen(text);
	note(shadow, attribute, &value);
}

static bool
value_is(const JsonbValue *value, const char *text, int len)
{
	return value->val.string.len == len && memcmp(value->val.string.val, text, len) == 0;
}

static text *
value_text(const JsonbValue *value)
{
	return cstring_to_text_with_len(value->val.string.val, value->val.string.len);
}

static void
invalid_rest(void)
{
	invalid_attribute(REST_ATTRIBUTE, strlen(REST_ATTRIBUTE),
					  "It is not as to_cloudevent() makes it.");
}

/*
 * Our own attribute: metadata that could not be attributes, and fields.  What it
 * has in the shadow's place is given back apart.
 */
static void
read_rest(EventInput *input, JsonbValue *value, JsonbParseState **metadata,
		  JsonbValue *displaced)
{
	Jsonb	   *volatile rest = NULL;
	MemoryContext context = CurrentMemoryContext;
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	field;

	if (value->type != jbvString)
		invalid_rest();
	PG_TRY();
	{
		rest = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
												  CStringGetDatum(text_to_cstring(value_text(value)))));
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
			ReThrowError(error);
		FlushErrorState();
		invalid_rest();
	}
	PG_END_TRY();
	if (!JB_ROOT_IS_OBJECT(rest))
		invalid_rest();
	it = JsonbIteratorInit(&rest->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &field, true);
		if (value_is(&key, "metadata", 8) && field.type == jbvBinary &&
			JsonContainerIsObject(field.val.binary.data))
		{
			JsonbIterator *fields = JsonbIteratorInit(field.val.binary.data);
			JsonbValue	name;
			JsonbValue	content;

			(void) JsonbIteratorNext(&fields, &name, true);
			while (JsonbIteratorNext(&fields, &name, true) == WJB_KEY)
			{
				(void) JsonbIteratorNext(&fields, &content, true);
				if (value_is(&name, SHADOW_KEY, strlen(SHADOW_KEY)))
					*displaced = content;
				else
					put(metadata, name.val.string.val, name.val.string.len, &content);
			}
		}
		else if (value_is(&key, "source", 6) && field.type == jbvString)
			input_source(input, value_text(&field));
		else if (value_is(&key, "occurred_at", 11) && field.type == jbvString)
		{
			char	   *number = text_to_cstring(value_text(&field));
			char	   *end;

			/* microseconds, as PostgreSQL counts them */
			errno = 0;
			input->occurred_at = strtoll(number, &end, 10);
			if (errno != 0 || end == number || *end != '\0' ||
				!IS_VALID_TIMESTAMP(input->occurred_at))
				invalid_rest();
			input->has_occurred_at = true;
		}
		else
			invalid_rest();
	}
}

static void
take_id(EventInput *input, CloudEvent *event, JsonbParseState **shadow)
{
	input->has_event_id = true;
	if (attribute_uuid(TEXT(event, CE_ID), LENGTH(event, CE_ID), &input->event_id))
		return;
	attribute_id(&input->event_id, TEXT(event, CE_SOURCE), LENGTH(event, CE_SOURCE),
				 TEXT(event, CE_ID), LENGTH(event, CE_ID));
	note(shadow, CE_ID, &event->values[CE_ID]);
}

static void
take_time(EventInput *input, CloudEvent *event, JsonbParseState **shadow)
{
	char	   *time;

	if (!event->has[CE_TIME])
	{
		if (!input->has_occurred_at)
			note(shadow, CE_TIME, NULL);
		return;
	}
	(void) attribute_parse_time(TEXT(event, CE_TIME), LENGTH(event, CE_TIME), &input->occurred_at);
	input->has_occurred_at = true;
	/* an offset, and digits beyond microseconds, are kept as they were written */
	time = attribute_format_time(input->occurred_at);
	if (time == NULL || !value_is(&event->values[CE_TIME], time, strlen(time)))
		note(shadow, CE_TIME, &event->values[CE_TIME]);
}

static void
take_data(EventInput *input, CloudEvent *event, JsonbParseState **shadow)
{
	JsonbValue	null;

	if (!event->has[CE_DATACONTENTTYPE])
		note(shadow, CE_DATACONTENTTYPE, NULL);
	else if (!value_is(&event->values[CE_DATACONTENTTYPE], "application/json", 16))
		note(shadow, CE_DATACONTENTTYPE, &event->values[CE_DATACONTENTTYPE]);
	if (event->has[CE_DATASCHEMA])
		note(shadow, CE_DATASCHEMA, &event->values[CE_DATASCHEMA]);
	if (event->has[CE_DATA])
		input->data = PointerGetDatum(JsonbValueToJsonb(&event->values[CE_DATA]));
	else if (event->has[CE_DATA_BASE64])
	{
		input->data = PointerGetDatum(JsonbValueToJsonb(&event->values[CE_DATA_BASE64]));
		note_text(shadow, CE_DATA, "base64");
	}
	else
	{
		null.type = jbvNull;
		input->data = PointerGetDatum(JsonbValueToJsonb(&null));
		note_text(shadow, CE_DATA, "none");
	}
}

/* Extension attributes: fields, or metadata. */
static void
take_extensions(EventInput *input, CloudEvent *event, JsonbParseState **metadata,
				JsonbValue *displaced)
{
	JsonbIterator *it = JsonbIteratorInit(event->object);
	JsonbValue	key;
	JsonbValue	value;

	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &value, true);
		if (value.type == jbvNull ||
			attribute_find(key.val.string.val, key.val.string.len) >= 0)
			continue;
		if (!extension_is_field(key.val.string.val, key.val.string.len, &value))
			put(metadata, key.val.string.val, key.val.string.len, &value);
		else if (value_is(&key, "correlationid", 13))
			input_correlation_id(input, value_text(&value));
		else if (value_is(&key, "causationid", 11))
			input->has_causation_id = attribute_uuid(value.val.string.val, value.val.string.len,
													 &input->causation_id);
		else if (value_is(&key, "schemaversion", 13))
			input->schema_version =
				DatumGetInt32(DirectFunctionCall1(numeric_int4, NumericGetDatum(value.val.numeric)));
		else
			read_rest(input, &value, metadata, displaced);
	}
}

/* A CloudEvent becomes an event; returns the name of its stream. */
static text *
take_event(EventInput *input, JsonbValue *object, const Taking *taking)
{
	CloudEvent	event = {0};
	JsonbParseState *metadata = NULL;
	JsonbParseState *shadow = NULL;
	JsonbValue	displaced = {.type = jbvObject};	/* there is none */
	text	   *stream;

	read_members(&event, object);
	stream = stream_name(&event, taking);
	input->schema_version = 1;
	input_type(input, value_text(&event.values[CE_TYPE]));
	if (!value_is(&event.values[CE_SOURCE], VARDATA_ANY(taking->home),
				  VARSIZE_ANY_EXHDR(taking->home)))
		input_source(input, value_text(&event.values[CE_SOURCE]));
	take_extensions(input, &event, &metadata, &displaced);
	take_id(input, &event, &shadow);
	if (!event.has[CE_SUBJECT])
		note(&shadow, CE_SUBJECT, NULL);
	else if (!value_is(&event.values[CE_SUBJECT], VARDATA_ANY(stream), VARSIZE_ANY_EXHDR(stream)))
		note(&shadow, CE_SUBJECT, &event.values[CE_SUBJECT]);
	take_time(input, &event, &shadow);
	take_data(input, &event, &shadow);

	if (shadow != NULL)
	{
		Jsonb	   *jsonb;
		JsonbValue	value;

		if (displaced.type != jbvObject)
			put(&shadow, SHADOW_DISPLACED, strlen(SHADOW_DISPLACED), &displaced);
		jsonb = JsonbValueToJsonb(pushJsonbValue(&shadow, WJB_END_OBJECT, NULL));
		value.type = jbvBinary;
		value.val.binary.data = &jsonb->root;
		value.val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
		put(&metadata, SHADOW_KEY, strlen(SHADOW_KEY), &value);
	}
	else if (displaced.type != jbvObject)
		put(&metadata, SHADOW_KEY, strlen(SHADOW_KEY), &displaced);
	if (metadata == NULL)
		(void) pushJsonbValue(&metadata, WJB_BEGIN_OBJECT, NULL);
	input->metadata =
		PointerGetDatum(JsonbValueToJsonb(pushJsonbValue(&metadata, WJB_END_OBJECT, NULL)));
	return stream;
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

static void
read_arguments(FunctionCallInfo fcinfo, Taking *taking, int source)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must not be NULL", source == 2 ? "events" : "event")));
	taking->stream = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);
	if (PG_ARGISNULL(source))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("source must not be NULL")));
	taking->home = PG_GETARG_TEXT_PP(source);
}

Datum
event_store_append_cloudevent(PG_FUNCTION_ARGS)
{
	AppendBatch append = {0};
	StreamInput stream = {0};
	EventInput	event = {0};
	Taking		taking;
	Jsonb	   *object;
	JsonbValue	value;

	append_guard("event_store.append_cloudevent()");
	read_arguments(fcinfo, &taking, 3);
	object = PG_GETARG_JSONB_P(0);
	input_batch_size(object);
	value.type = jbvBinary;
	value.val.binary.data = &object->root;
	value.val.binary.len = VARSIZE(object) - VARHDRSZ;

	append.nstreams = append.nevents = 1;
	append.streams = &stream;
	append.events = &event;
	input_stream_name(&stream, take_event(&event, &value, &taking));
	stream.nevents = 1;
	stream.expected_version =
		input_expected_version(PG_ARGISNULL(2) ? ANY_VERSION : PG_GETARG_INT64(2));
	append_write(&append);
	PG_RETURN_DATUM(append_result_datum(&stream));
}

static void
batch_error_context(void *arg)
{
	errcontext("CloudEvent %d of the batch", *(int *) arg);
}

/*
 * The number of the stream of that name in the batch.  slots is a hash table of
 * numbers from 1 on, 0 for none, at least twice as large as there are events.
 */
static int
find_stream(AppendBatch *append, int *slots, uint32 mask, text *name)
{
	uint32		at = hash_bytes((unsigned char *) VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	StreamInput *stream;

	for (;; at++)
	{
		int			number = slots[at & mask];

		if (number == 0)
			break;
		stream = &append->streams[number - 1];
		if (stream->len == VARSIZE_ANY_EXHDR(name) &&
			memcmp(stream->name, VARDATA_ANY(name), stream->len) == 0)
			return number - 1;
	}
	stream = &append->streams[append->nstreams++];
	input_stream_name(stream, name);
	stream->expected_version = ANY_VERSION;
	slots[at & mask] = append->nstreams;
	return append->nstreams - 1;
}

/* The first event of the batch with this one's id and stream; slots as above. */
static EventInput *
first_of(AppendBatch *append, int *slots, uint32 mask, EventInput *event)
{
	uint32		at = hash_bytes(event->event_id.data, UUID_LEN) + (uint32) event->stream;

	for (;; at++)
	{
		int			number = slots[at & mask];
		EventInput *other;

		if (number == 0)
			break;
		other = &append->events[number - 1];
		if (other->stream == event->stream &&
			memcmp(&other->event_id, &event->event_id, UUID_LEN) == 0)
			return other;
	}
	slots[at & mask] = event - append->events + 1;
	return event;
}

Datum
event_store_append_cloudevents(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	AppendBatch append = {0};
	Taking		taking;
	Jsonb	   *events;
	JsonbIterator *it;
	JsonbValue	value;
	ErrorContextCallback callback;
	int		   *slots;
	uint32		nslots;

	append_guard("event_store.append_cloudevents()");
	InitMaterializedSRF(fcinfo, 0);
	read_arguments(fcinfo, &taking, 2);
	events = PG_GETARG_JSONB_P(0);
	if (!JB_ROOT_IS_ARRAY(events) || JB_ROOT_IS_SCALAR(events))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("events must be a JSON array")));
	input_batch_size(events);
	input_batch_events(JB_ROOT_COUNT(events));
	if (JB_ROOT_COUNT(events) == 0)
		return (Datum) 0;

	append.by_row = true;
	append.streams = palloc0(sizeof(StreamInput) * JB_ROOT_COUNT(events));
	append.events = palloc0(sizeof(EventInput) * JB_ROOT_COUNT(events));
	nslots = pg_nextpower2_32(JB_ROOT_COUNT(events) * 2);
	slots = palloc0(sizeof(int) * nslots);
	callback.callback = batch_error_context;
	callback.arg = &append.nevents;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	it = JsonbIteratorInit(&events->root);
	(void) JsonbIteratorNext(&it, &value, true);
	while (JsonbIteratorNext(&it, &value, true) == WJB_ELEM)
	{
		EventInput *event = &append.events[append.nevents++];

		event->stream = find_stream(&append, slots, nslots - 1,
									take_event(event, &value, &taking));
		append.streams[event->stream].nevents++;
	}
	error_context_stack = callback.previous;

	append_write(&append);
	/* a repetition within the batch has no version of its own */
	memset(slots, 0, sizeof(int) * nslots);
	for (int i = 0; i < append.nevents; i++)
	{
		EventInput *event = &append.events[i];
		EventInput *first = first_of(&append, slots, nslots - 1, event);
		StreamInput row = append.streams[event->stream];
		Datum		values[AR_NATTS];
		bool		nulls[AR_NATTS];

		row.duplicate = event->duplicate;
		row.nevents = 1;
		row.first_version = row.last_version = first->version;
		row.first_position = row.last_position = first->position;
		append_result_values(&row, values, nulls);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}
