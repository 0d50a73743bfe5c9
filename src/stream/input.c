/*
 * input.c
 *		What callers hand in: guards, and JSON batches.
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/guc.h"
#include "common/names.h"
#include "common/values.h"
#include "stream/stream.h"

/* where in a batch an error happened */
typedef struct BatchPlace
{
	int			append;			/* of append_streams(), from 1; 0 for none */
	int			event;			/* from 1; 0 for none */
} BatchPlace;

/* ----------------------------------------------------------------
 * Guards
 * ----------------------------------------------------------------
 */

static void
invalid_null(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("%s must not be NULL", what)));
}

/* How many bytes of a control character begin here: U+0080 to U+009F are some, too. */
static int
control_character(const char *at, int left)
{
	unsigned char c = (unsigned char) at[0];

	if (c < 0x20 || c == 0x7F)
		return 1;
	if (c == 0xC2 && left > 1 && (unsigned char) at[1] < 0xA0 &&
		GetDatabaseEncoding() == PG_UTF8)
		return 2;
	return 0;
}

/* A name has 1 to 1,024 bytes and no control characters. */
void
input_check_name(const char *what, const char *name, int len)
{
	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must not be empty", what)));
	if (len > MAX_NAME_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s is too long", what),
				 errdetail("It has %d bytes; at most %d are allowed.",
						   len, MAX_NAME_BYTES)));
	for (int i = 0; i < len; i++)
	{
		int			bytes = control_character(name + i, len - i);

		if (bytes > 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("%s must not contain control characters", what),
					 bytes == 1 ?
					 errdetail("Byte %d is 0x%02x.", i + 1, (unsigned char) name[i]) :
					 errdetail("Byte %d begins U+%04X.", i + 1, (unsigned char) name[i + 1])));
	}
}

/* An argument that is a name of something, checked. */
text *
input_name_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	text	   *name;

	if (PG_ARGISNULL(n))
		invalid_null(what);
	name = PG_GETARG_TEXT_PP(n);
	input_check_name(what, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	return name;
}

/* Checks arguments from the first one on; NULL is all right. */
void
input_check_settings(FunctionCallInfo fcinfo, int first, const Setting *settings, int count)
{
	for (int i = 0; i < count; i++)
	{
		const Setting *setting = &settings[i];
		double		value;

		if (PG_ARGISNULL(first + i))
			continue;
		value = setting->type == INT4OID ? PG_GETARG_INT32(first + i) :
			setting->type == FLOAT8OID ? PG_GETARG_FLOAT8(first + i) :
			values_seconds(PG_GETARG_INTERVAL_P(first + i));
		if (!(value >= setting->low && value <= setting->high))
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("%s is out of range", setting->name),
					 setting->type == INTERVALOID ?
					 errdetail("It can be %.15g to %.15g seconds.", setting->low, setting->high) :
					 errdetail("It can be %.15g to %.15g.", setting->low, setting->high)));
	}
}

/*
 * The category of a stream is what stands before the first dash of its name,
 * or the whole name where there is nothing before it.
 */
int
input_category_length(const char *stream, int len)
{
	const char *dash = memchr(stream, '-', len);

	return dash == NULL || dash == stream ? len : (int) (dash - stream);
}

void
input_stream_name(StreamInput *stream, text *name)
{
	if (name == NULL)
		invalid_null("stream");
	stream->name = VARDATA_ANY(name);
	stream->len = VARSIZE_ANY_EXHDR(name);
	input_check_name("stream", stream->name, stream->len);
}

void
input_type(EventInput *event, text *type)
{
	if (type == NULL)
		invalid_null("type");
	event->type = VARDATA_ANY(type);
	event->type_len = VARSIZE_ANY_EXHDR(type);
	input_check_name("type", event->type, event->type_len);
}

void
input_source(EventInput *event, text *source)
{
	event->source = VARDATA_ANY(source);
	event->source_len = VARSIZE_ANY_EXHDR(source);
	input_check_name("source", event->source, event->source_len);
}

void
input_correlation_id(EventInput *event, text *value)
{
	input_check_name("correlation_id", VARDATA_ANY(value),
					 VARSIZE_ANY_EXHDR(value));
	event->correlation_id = PointerGetDatum(value);
	event->has_correlation_id = true;
}

void
input_metadata(Jsonb *metadata)
{
	if (!JB_ROOT_IS_OBJECT(metadata))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("metadata must be a JSON object")));
}

void
input_schema_version(int32 schema_version)
{
	if (schema_version < 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("schema_version %d is not positive", schema_version)));
}

void
input_occurred_at(TimestampTz occurred_at)
{
	if (TIMESTAMP_NOT_FINITE(occurred_at))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("occurred_at must be finite")));
}

int64
input_expected_version(int64 expected)
{
	if (expected > PG_INT32_MAX ||
		(expected < 0 && expected != ANY_VERSION && expected != STREAM_EXISTS))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("expected version %lld makes no sense", (long long) expected),
				 errdetail("It is a version from 0 (the stream must not exist) to %d, event_store.any_version() or event_store.stream_exists().",
						   PG_INT32_MAX)));
	return expected;
}

/* ----------------------------------------------------------------
 * JSON batches
 * ----------------------------------------------------------------
 */

static void
batch_error_context(void *arg)
{
	BatchPlace *place = arg;

	if (place->append > 0 && place->event > 0)
		errcontext("event %d of append %d of the batch", place->event, place->append);
	else if (place->append > 0)
		errcontext("append %d of the batch", place->append);
	else if (place->event > 0)
		errcontext("event %d of the batch", place->event);
}

void
input_batch_size(Jsonb *batch)
{
	if (VARSIZE(batch) / 1024 > guc_max_batch_size)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("batch is too large"),
				 errdetail("It has %u kB; event_store.max_batch_size is %d kB.",
						   (unsigned) (VARSIZE(batch) / 1024), guc_max_batch_size),
				 errhint("Append in several calls of one transaction, or by INSERT or COPY into event_store.events.")));
}

void
input_batch_events(int64 nevents)
{
	if (nevents > guc_max_batch_events)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("batch has too many events"),
				 errdetail("It has %lld; event_store.max_batch_events is %d.",
						   (long long) nevents, guc_max_batch_events),
				 errhint("Append in several calls of one transaction, or by INSERT or COPY into event_store.events.")));
}

static bool
key_is(const JsonbValue *key, const char *name)
{
	return key->val.string.len == (int) strlen(name) &&
		memcmp(key->val.string.val, name, key->val.string.len) == 0;
}

static text *
string_value(const char *what, const JsonbValue *value)
{
	if (value->type == jbvNull)
		invalid_null(what);
	if (value->type != jbvString)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must be a JSON string", what)));
	return cstring_to_text_with_len(value->val.string.val, value->val.string.len);
}

static char *
string_cstring(const char *what, const JsonbValue *value)
{
	return text_to_cstring(string_value(what, value));
}

static int64
integer_value(const char *what, const JsonbValue *value, int64 low, int64 high)
{
	Numeric		number;
	int64		result;

	if (value->type != jbvNumeric)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must be a JSON number", what)));
	number = value->val.numeric;
	if (!DatumGetBool(DirectFunctionCall2(numeric_eq,
										  NumericGetDatum(number),
										  DirectFunctionCall2(numeric_trunc,
															  NumericGetDatum(number),
															  Int32GetDatum(0)))) ||
		DatumGetBool(DirectFunctionCall2(numeric_lt, NumericGetDatum(number),
										 DirectFunctionCall1(int8_numeric, Int64GetDatum(low)))) ||
		DatumGetBool(DirectFunctionCall2(numeric_gt, NumericGetDatum(number),
										 DirectFunctionCall1(int8_numeric, Int64GetDatum(high)))))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must be a whole number from %lld to %lld", what,
						(long long) low, (long long) high)));
	result = DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(number)));
	return result;
}

/* One event of a batch. */
static void
read_event(EventInput *event, JsonbValue *object)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;
	bool		has_type = false;
	bool		has_data = false;
	bool		has_metadata = false;

	if (object->type != jbvBinary ||
		!JsonContainerIsObject(object->val.binary.data))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("an event must be a JSON object")));

	event->schema_version = 1;
	it = JsonbIteratorInit(object->val.binary.data);
	(void) JsonbIteratorNext(&it, &key, true);
	while ((token = JsonbIteratorNext(&it, &key, true)) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &value, true);
		if (key_is(&key, "type"))
		{
			input_type(event, string_value("type", &value));
			has_type = true;
		}
		else if (key_is(&key, "data"))
		{
			event->data = PointerGetDatum(JsonbValueToJsonb(&value));
			has_data = true;
		}
		else if (key_is(&key, "metadata"))
		{
			Jsonb	   *metadata = JsonbValueToJsonb(&value);

			input_metadata(metadata);
			event->metadata = PointerGetDatum(metadata);
			has_metadata = true;
		}
		else if (key_is(&key, "schema_version"))
			event->schema_version = integer_value("schema_version", &value,
												  1, PG_INT32_MAX);
		/* the other keys may be null, as the arguments of append() may be NULL */
		else if (key_is(&key, "event_id"))
		{
			if (value.type == jbvNull)
				continue;
			event->event_id = *DatumGetUUIDP(DirectFunctionCall1(uuid_in,
																 CStringGetDatum(string_cstring("event_id", &value))));
			event->has_event_id = true;
		}
		else if (key_is(&key, "causation_id"))
		{
			if (value.type == jbvNull)
				continue;
			event->causation_id = *DatumGetUUIDP(DirectFunctionCall1(uuid_in,
																	 CStringGetDatum(string_cstring("causation_id", &value))));
			event->has_causation_id = true;
		}
		else if (key_is(&key, "occurred_at"))
		{
			if (value.type == jbvNull)
				continue;
			event->occurred_at =
				DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in,
														CStringGetDatum(string_cstring("occurred_at", &value)),
														ObjectIdGetDatum(InvalidOid),
														Int32GetDatum(-1)));
			input_occurred_at(event->occurred_at);
			event->has_occurred_at = true;
		}
		else if (key_is(&key, "correlation_id"))
		{
			if (value.type == jbvNull)
				continue;
			input_correlation_id(event, string_value("correlation_id", &value));
		}
		else if (key_is(&key, "source"))
		{
			if (value.type == jbvNull)
				continue;
			input_source(event, string_value("source", &value));
		}
		else
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("unknown key \"%s\" in an event",
							pnstrdup(key.val.string.val, key.val.string.len)),
					 errhint("Known keys: type, data, metadata, event_id, occurred_at, correlation_id, causation_id, schema_version, source.")));
	}
	Assert(token == WJB_END_OBJECT);
	(void) token;

	if (!has_type)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("an event lacks the key \"type\"")));
	if (!has_data)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("an event lacks the key \"data\"")));
	if (!has_metadata)
	{
		static Jsonb *empty = NULL;

		if (empty == NULL)
		{
			MemoryContext saved = MemoryContextSwitchTo(TopMemoryContext);

			empty = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													   CStringGetDatum("{}")));
			MemoryContextSwitchTo(saved);
		}
		event->metadata = PointerGetDatum(empty);
	}
}

/* The events of one stream, added to the append. */
static void
read_events(AppendBatch *append, int stream, JsonbContainer *array, BatchPlace *place)
{
	JsonbIterator *it = JsonbIteratorInit(array);
	JsonbValue	value;

	(void) JsonbIteratorNext(&it, &value, true);
	while (JsonbIteratorNext(&it, &value, true) == WJB_ELEM)
	{
		EventInput *event = &append->events[append->nevents++];

		place->event++;
		event->stream = stream;
		read_event(event, &value);
	}
	append->streams[stream].nevents = place->event;
	place->event = 0;
}

void
input_batch_of_stream(AppendBatch *append, text *stream, Jsonb *events,
					  int64 expected_version)
{
	BatchPlace	place = {0, 0};
	ErrorContextCallback callback;

	append->nstreams = 1;
	append->streams = palloc0(sizeof(StreamInput));
	input_stream_name(&append->streams[0], stream);
	append->streams[0].expected_version = input_expected_version(expected_version);
	if (events == NULL)
		invalid_null("events");
	if (!JB_ROOT_IS_ARRAY(events) || JB_ROOT_IS_SCALAR(events))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("events must be a JSON array")));
	input_batch_size(events);
	input_batch_events(JB_ROOT_COUNT(events));

	callback.callback = batch_error_context;
	callback.arg = &place;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	append->events = palloc0(sizeof(EventInput) * Max(JB_ROOT_COUNT(events), 1));
	read_events(append, 0, &events->root, &place);
	error_context_stack = callback.previous;
}

void
input_batch_of_streams(AppendBatch *append, Jsonb *appends)
{
	BatchPlace	place = {0, 0};
	ErrorContextCallback callback;
	JsonbIterator *it;
	JsonbValue	value;
	JsonbContainer **arrays;
	int64		nevents = 0;

	if (appends == NULL)
		invalid_null("appends");
	if (!JB_ROOT_IS_ARRAY(appends) || JB_ROOT_IS_SCALAR(appends))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("appends must be a JSON array")));
	input_batch_size(appends);
	input_batch_events(JB_ROOT_COUNT(appends));

	callback.callback = batch_error_context;
	callback.arg = &place;
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	append->streams = palloc0(sizeof(StreamInput) * Max(JB_ROOT_COUNT(appends), 1));
	arrays = palloc0(sizeof(JsonbContainer *) * Max(JB_ROOT_COUNT(appends), 1));
	it = JsonbIteratorInit(&appends->root);
	(void) JsonbIteratorNext(&it, &value, true);
	while (JsonbIteratorNext(&it, &value, true) == WJB_ELEM)
	{
		StreamInput *stream = &append->streams[append->nstreams];
		JsonbIterator *fields;
		JsonbValue	key;
		JsonbValue	field;

		place.append++;
		if (value.type != jbvBinary ||
			!JsonContainerIsObject(value.val.binary.data))
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("an append must be a JSON object")));
		stream->expected_version = ANY_VERSION;
		fields = JsonbIteratorInit(value.val.binary.data);
		(void) JsonbIteratorNext(&fields, &key, true);
		while (JsonbIteratorNext(&fields, &key, true) == WJB_KEY)
		{
			(void) JsonbIteratorNext(&fields, &field, true);
			if (key_is(&key, "stream"))
				input_stream_name(stream, string_value("stream", &field));
			else if (key_is(&key, "expected_version"))
			{
				if (field.type != jbvNull)
					stream->expected_version =
						input_expected_version(integer_value("expected_version", &field,
															 STREAM_EXISTS, PG_INT32_MAX));
			}
			else if (key_is(&key, "events"))
			{
				if (field.type != jbvBinary ||
					!JsonContainerIsArray(field.val.binary.data))
					ereport(ERROR,
							(errcode(ERRCODE_VE_INVALID_ARGUMENT),
							 errmsg("events must be a JSON array")));
				arrays[append->nstreams] = field.val.binary.data;
				nevents += JsonContainerSize(field.val.binary.data);
			}
			else
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("unknown key \"%s\" in an append",
								pnstrdup(key.val.string.val, key.val.string.len)),
						 errhint("Known keys: stream, expected_version, events.")));
		}
		if (stream->name == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("an append lacks the key \"stream\"")));
		if (arrays[append->nstreams] == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("an append lacks the key \"events\"")));
		append->nstreams++;
	}

	input_batch_events(nevents);
	append->events = palloc0(sizeof(EventInput) * Max(nevents, 1));
	for (int i = 0; i < append->nstreams; i++)
	{
		place.append = i + 1;
		read_events(append, i, arrays[i], &place);
	}
	error_context_stack = callback.previous;
}
