/*
 * make.c
 *		to_cloudevent(): an event as a CloudEvent.
 *
 * In three steps.  What the event's fields say becomes attributes.  Metadata
 * whose keys and values can be extension attributes becomes such.  What is left
 * goes into one attribute of ours, as text.
 *
 * An event that came as a CloudEvent may have a shadow in its metadata, which
 * says where that CloudEvent was different from what is made of the fields.  It
 * is followed if all of it is what append.c would write for this very event;
 * otherwise it is metadata like any other.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "cloudevent/cloudevent.h"
#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"

PG_FUNCTION_INFO_V1(event_store_to_cloudevent);

/* keys of a shadow */
typedef enum Shadow
{
	SHADOW_ID,
	SHADOW_SUBJECT,
	SHADOW_TIME,
	SHADOW_DATACONTENTTYPE,
	SHADOW_DATASCHEMA,
	SHADOW_DATA,
	SHADOW_NKEYS
} Shadow;

static const Attribute shadowed[SHADOW_NKEYS] = {
	CE_ID, CE_SUBJECT, CE_TIME, CE_DATACONTENTTYPE, CE_DATASCHEMA, CE_DATA
};

/* what is being made */
typedef struct Making
{
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	text	   *home;
	const char *source;			/* as the attribute will have it */
	int			source_len;
	bool		has_shadow;
	bool		in_shadow[SHADOW_NKEYS];
	JsonbValue	shadow[SHADOW_NKEYS];
	bool		has_displaced;
	JsonbValue	displaced;		/* what the shadow stands in the place of */
	JsonbParseState *state;
	JsonbParseState *rest;		/* NULL until there is any */
} Making;

static void
put_key(JsonbParseState **state, const char *name, int len)
{
	JsonbValue	key;

	key.type = jbvString;
	key.val.string.val = unconstify(char *, name);
	key.val.string.len = len;
	(void) pushJsonbValue(state, WJB_KEY, &key);
}

static void
put(JsonbParseState **state, const char *name, JsonbValue *value)
{
	put_key(state, name, strlen(name));
	(void) pushJsonbValue(state, WJB_VALUE, value);
}

static void
put_string(JsonbParseState **state, const char *name, const char *text, int len)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, text);
	value.val.string.len = len;
	put(state, name, &value);
}

static void
put_text(JsonbParseState **state, const char *name, text *value)
{
	put_string(state, name, VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value));
}

static JsonbParseState **
rest_of(Making *making)
{
	if (making->rest == NULL)
		(void) pushJsonbValue(&making->rest, WJB_BEGIN_OBJECT, NULL);
	return &making->rest;
}

/* A field of the event as a value of an attribute that must have one. */
static text *
needed(Making *making, int field, const char *name)
{
	text	   *value;

	if (making->nulls[field])
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s of the event must not be NULL", name)));
	value = DatumGetTextPP(making->values[field]);
	if (VARSIZE_ANY_EXHDR(value) == 0 ||
		!attribute_string(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value)))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s of the event cannot stand in a CloudEvent", name),
				 errdetail("It is empty, or has a control character or a code point that is none of a character.")));
	return value;
}

/* A source that is no URI reference, as one: other bytes are percent-encoded. */
static char *
encode_source(const char *source, int len)
{
	StringInfoData encoded;

	initStringInfo(&encoded);
	for (int i = 0; i < len; i++)
	{
		unsigned char c = source[i];

		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
			strchr("-._~/", c) != NULL)
			appendStringInfoChar(&encoded, c);
		else
			appendStringInfo(&encoded, "%%%02X", c);
	}
	return encoded.data;
}

/* What the attribute source will have: the event's, made a URI reference, or the home. */
static void
find_source(Making *making)
{
	text	   *source = making->nulls[RE_SOURCE] ? making->home :
		DatumGetTextPP(making->values[RE_SOURCE]);

	making->source = VARDATA_ANY(source);
	making->source_len = VARSIZE_ANY_EXHDR(source);
	if (!attribute_uri_reference(making->source, making->source_len, false))
	{
		making->source = encode_source(making->source, making->source_len);
		making->source_len = strlen(making->source);
	}
}

/* ----------------------------------------------------------------
 * The shadow
 * ----------------------------------------------------------------
 */

static bool
text_is(const JsonbValue *value, const char *text)
{
	return value->type == jbvString && value->val.string.len == strlen(text) &&
		memcmp(value->val.string.val, text, value->val.string.len) == 0;
}

/* The value of a field of type jsonb, as JsonbExtractScalar() gives it. */
static bool
data_scalar(Making *making, JsonbValue *value)
{
	return !making->nulls[RE_DATA] &&
		JsonbExtractScalar(&DatumGetJsonbP(making->values[RE_DATA])->root, value);
}

static bool
field_is(Making *making, int field, const JsonbValue *value)
{
	text	   *content = making->nulls[field] ? NULL : DatumGetTextPP(making->values[field]);

	return content != NULL && VARSIZE_ANY_EXHDR(content) == value->val.string.len &&
		memcmp(VARDATA_ANY(content), value->val.string.val, value->val.string.len) == 0;
}

/* Would the id of the event have been made of this one? */
static bool
id_goes_with_event(Making *making, const JsonbValue *id)
{
	pg_uuid_t	event_id;

	if (attribute_uuid(id->val.string.val, id->val.string.len, &event_id))
		return false;
	if (making->nulls[RE_EVENT_ID])
		return true;
	attribute_id(&event_id, making->source, making->source_len,
				 id->val.string.val, id->val.string.len);
	return memcmp(&event_id, DatumGetUUIDP(making->values[RE_EVENT_ID]), sizeof(event_id)) == 0;
}

/* The same for the time; null: there was none, so the time is that of the append. */
static bool
time_goes_with_event(Making *making, const JsonbValue *value)
{
	TimestampTz occurred_at = DatumGetTimestampTz(making->values[RE_OCCURRED_AT]);
	TimestampTz time;
	char	   *canonical;

	if (value->type == jbvNull)
		return making->nulls[RE_OCCURRED_AT] ||
			(!making->nulls[RE_RECORDED_AT] &&
			 occurred_at == DatumGetTimestampTz(making->values[RE_RECORDED_AT]));
	if (making->nulls[RE_OCCURRED_AT] ||
		!attribute_parse_time(value->val.string.val, value->val.string.len, &time) ||
		time != occurred_at)
		return false;
	canonical = attribute_format_time(time);
	return canonical == NULL || !text_is(value, canonical);
}

/* Would append.c note this of a CloudEvent that has become this event? */
static bool
goes_with_event(Making *making, Shadow which, const JsonbValue *value)
{
	if (value->type == jbvNull ? which == SHADOW_ID || which == SHADOW_DATASCHEMA :
		attribute_problem(shadowed[which], value) != NULL)
		return false;
	switch (which)
	{
		case SHADOW_ID:
			return id_goes_with_event(making, value);
		case SHADOW_SUBJECT:
			return value->type == jbvNull || !field_is(making, RE_STREAM, value);
		case SHADOW_TIME:
			return time_goes_with_event(making, value);
		case SHADOW_DATACONTENTTYPE:
			return !text_is(value, "application/json");
		default:
			return true;
	}
}

/* Reads the shadow, if all of it goes with the event. */
static bool
read_shadow(Making *making, JsonbValue *object)
{
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;
	JsonbValue	data;
	bool		scalar = data_scalar(making, &data);
	bool		base64 = false;
	bool		any = false;

	if (object->type != jbvBinary || !JsonContainerIsObject(object->val.binary.data))
		return false;
	it = JsonbIteratorInit(object->val.binary.data);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		int			attribute = attribute_find(key.val.string.val, key.val.string.len);
		int			i;

		(void) JsonbIteratorNext(&it, &value, true);
		if (text_is(&key, SHADOW_DISPLACED))
		{
			making->has_displaced = true;
			making->displaced = value;
			continue;
		}
		for (i = 0; i < SHADOW_NKEYS; i++)
			if (shadowed[i] == attribute)
				break;
		if (i == SHADOW_NKEYS)
			return false;
		if (i == SHADOW_DATA)
		{
			base64 = text_is(&value, "base64");
			if (base64 ?
				!scalar || attribute_problem(CE_DATA_BASE64, &data) != NULL :
				!text_is(&value, "none") || !scalar || data.type != jbvNull)
				return false;
		}
		else if (!goes_with_event(making, i, &value))
			return false;
		making->in_shadow[i] = any = true;
		making->shadow[i] = value;
	}
	/* what is no JSON is text */
	if (making->in_shadow[SHADOW_DATACONTENTTYPE] &&
		making->shadow[SHADOW_DATACONTENTTYPE].type == jbvString &&
		!attribute_json_content(making->shadow[SHADOW_DATACONTENTTYPE].val.string.val,
								making->shadow[SHADOW_DATACONTENTTYPE].val.string.len) &&
		!base64 && !making->in_shadow[SHADOW_DATA] &&
		(!scalar || data.type != jbvString))
		return false;
	return any;
}

static void
find_shadow(Making *making, Jsonb *metadata)
{
	JsonbValue	found;

	if (metadata == NULL ||
		getKeyJsonValueFromContainer(&metadata->root, SHADOW_KEY, strlen(SHADOW_KEY), &found) == NULL)
		return;
	making->has_shadow = read_shadow(making, &found);
	if (!making->has_shadow)
	{
		memset(making->in_shadow, 0, sizeof(making->in_shadow));
		making->has_displaced = false;
	}
}

/* Puts what the shadow has for an attribute; false if it has nothing. */
static bool
put_shadow(Making *making, Shadow which)
{
	if (!making->in_shadow[which])
		return false;
	if (making->shadow[which].type != jbvNull)
		put(&making->state, attribute_names[shadowed[which]], &making->shadow[which]);
	return true;
}

/* ----------------------------------------------------------------
 * Fields
 * ----------------------------------------------------------------
 */

static void
put_source(Making *making)
{
	text	   *source;

	put_string(&making->state, "source", making->source, making->source_len);
	if (making->nulls[RE_SOURCE])
		return;
	/* the home is read as no source, and what was encoded is not decoded */
	source = DatumGetTextPP(making->values[RE_SOURCE]);
	if (making->source_len != VARSIZE_ANY_EXHDR(source) ||
		memcmp(making->source, VARDATA_ANY(source), making->source_len) != 0 ||
		(making->source_len == VARSIZE_ANY_EXHDR(making->home) &&
		 memcmp(making->source, VARDATA_ANY(making->home), making->source_len) == 0))
		put_text(rest_of(making), "source", source);
}

static void
put_time(Making *making)
{
	char	   *time;

	if (put_shadow(making, SHADOW_TIME) || making->nulls[RE_OCCURRED_AT])
		return;
	time = attribute_format_time(DatumGetTimestampTz(making->values[RE_OCCURRED_AT]));
	if (time != NULL)
		put_string(&making->state, "time", time, strlen(time));
	else
	{
		/* years that RFC 3339 does not have */
		time = psprintf(INT64_FORMAT, DatumGetTimestampTz(making->values[RE_OCCURRED_AT]));
		put_string(rest_of(making), "occurred_at", time, strlen(time));
	}
}

static void
put_data(Making *making)
{
	JsonbValue	value;
	Jsonb	   *data;

	if (!put_shadow(making, SHADOW_DATACONTENTTYPE) && !making->nulls[RE_DATA])
		put_string(&making->state, "datacontenttype", "application/json", 16);
	(void) put_shadow(making, SHADOW_DATASCHEMA);
	if (making->nulls[RE_DATA] ||
		(making->in_shadow[SHADOW_DATA] && text_is(&making->shadow[SHADOW_DATA], "none")))
		return;
	data = DatumGetJsonbP(making->values[RE_DATA]);
	if (!JsonbExtractScalar(&data->root, &value))
	{
		value.type = jbvBinary;
		value.val.binary.data = &data->root;
		value.val.binary.len = VARSIZE(data) - VARHDRSZ;
	}
	put(&making->state, making->in_shadow[SHADOW_DATA] ? "data_base64" : "data", &value);
}

static void
put_ids(Making *making)
{
	if (!making->nulls[RE_CORRELATION_ID])
		put_text(&making->state, "correlationid",
				 needed(making, RE_CORRELATION_ID, "correlation_id"));
	if (!making->nulls[RE_CAUSATION_ID])
	{
		char	   *id = DatumGetCString(DirectFunctionCall1(uuid_out, making->values[RE_CAUSATION_ID]));

		put_string(&making->state, "causationid", id, strlen(id));
	}
	if (!making->nulls[RE_SCHEMA_VERSION] && DatumGetInt32(making->values[RE_SCHEMA_VERSION]) != 1)
	{
		JsonbValue	value;

		value.type = jbvNumeric;
		value.val.numeric = int64_to_numeric(DatumGetInt32(making->values[RE_SCHEMA_VERSION]));
		put(&making->state, "schemaversion", &value);
	}
}

/* ----------------------------------------------------------------
 * Metadata
 * ----------------------------------------------------------------
 */

/* Can a key of metadata be an extension attribute, and be read as the same again? */
static bool
can_be_extension(Making *making, const JsonbValue *key, const JsonbValue *value)
{
	const char *name = key->val.string.val;
	int			len = key->val.string.len;

#define KEY_IS(s)	(len == strlen(s) && memcmp(name, s, len) == 0)
	if (attribute_name_problem(name, len) != NULL || attribute_find(name, len) >= 0 ||
		extension_problem(value) != NULL || extension_is_field(name, len, value))
		return false;
	if (KEY_IS("correlationid"))
		return making->nulls[RE_CORRELATION_ID];
	if (KEY_IS("causationid"))
		return making->nulls[RE_CAUSATION_ID];
	if (KEY_IS("schemaversion"))
		return making->nulls[RE_SCHEMA_VERSION] ||
			DatumGetInt32(making->values[RE_SCHEMA_VERSION]) == 1;
	return true;
}

static void
put_metadata(Making *making, Jsonb *metadata)
{
	JsonbIterator *it = JsonbIteratorInit(&metadata->root);
	JsonbParseState *left = NULL;
	JsonbValue	key;
	JsonbValue	value;

	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		JsonbParseState **to = &making->state;

		(void) JsonbIteratorNext(&it, &value, true);
		if (making->has_shadow && text_is(&key, SHADOW_KEY))
		{
			if (!making->has_displaced)
				continue;
			value = making->displaced;
		}
		if (!can_be_extension(making, &key, &value))
		{
			if (left == NULL)
				(void) pushJsonbValue(&left, WJB_BEGIN_OBJECT, NULL);
			to = &left;
		}
		put_key(to, key.val.string.val, key.val.string.len);
		(void) pushJsonbValue(to, WJB_VALUE, &value);
	}
	if (left != NULL)
	{
		JsonbValue *object = pushJsonbValue(&left, WJB_END_OBJECT, NULL);
		Jsonb	   *jsonb = JsonbValueToJsonb(object);

		value.type = jbvBinary;
		value.val.binary.data = &jsonb->root;
		value.val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
		put(rest_of(making), "metadata", &value);
	}
}

/* The attributes of the extensions recordedtime and sequence, if there are none. */
static void
put_record(Making *making, Jsonb *metadata)
{
	JsonbValue	found;
	char	   *value;

#define METADATA_HAS(s)	(metadata != NULL && \
						 getKeyJsonValueFromContainer(&metadata->root, s, strlen(s), &found) != NULL)
	if (!METADATA_HAS("recordedtime") && !making->nulls[RE_RECORDED_AT] &&
		(value = attribute_format_time(DatumGetTimestampTz(making->values[RE_RECORDED_AT]))) != NULL)
		put_string(&making->state, "recordedtime", value, strlen(value));
	if (!METADATA_HAS("sequence") && !making->nulls[RE_VERSION])
	{
		value = psprintf("%010d", DatumGetInt32(making->values[RE_VERSION]));
		put_string(&making->state, "sequence", value, strlen(value));
	}
}

/*
 * The rest, as the text of a JSON object in which what the type String does not
 * allow is escaped.  Such characters can stand there within strings only.
 */
static void
put_rest(Making *making)
{
	Jsonb	   *object = JsonbValueToJsonb(pushJsonbValue(&making->rest, WJB_END_OBJECT, NULL));
	const char *json = JsonbToCString(NULL, &object->root, VARSIZE(object));
	StringInfoData text;

	initStringInfo(&text);
	while (*json != '\0')
	{
		int			len = pg_mblen(json);

		if (attribute_string(json, len))
			appendBinaryStringInfo(&text, json, len);
		else
		{
			pg_wchar	point = len == 1 ? (unsigned char) *json :
				utf8_to_unicode((const unsigned char *) json);

			if (point > 0xFFFF)
				appendStringInfo(&text, "\\u%04x\\u%04x", 0xD800 + ((point - 0x10000) >> 10),
								 0xDC00 + ((point - 0x10000) & 0x3FF));
			else
				appendStringInfo(&text, "\\u%04x", point);
		}
		json += len;
	}
	put_string(&making->state, REST_ATTRIBUTE, text.data, text.len);
}

Datum
event_store_to_cloudevent(PG_FUNCTION_ARGS)
{
	Making		making = {0};
	HeapTupleHeader row;
	HeapTupleData tuple;
	TupleDesc	desc;
	Jsonb	   *metadata = NULL;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must not be NULL", PG_ARGISNULL(1) ? "source" : "with_record")));
	making.home = PG_GETARG_TEXT_PP(1);
	if (!attribute_uri_reference(VARDATA_ANY(making.home), VARSIZE_ANY_EXHDR(making.home), false))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("source is not a URI reference"),
				 errdetail("It must be one by RFC 3986.")));

	row = PG_GETARG_HEAPTUPLEHEADER(0);
	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(row), HeapTupleHeaderGetTypMod(row));
	if (!catalog_has_shape(desc, SHAPE_RECORDED_EVENT))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("the type event_store.recorded_event is not as the extension made it")));
	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = row;
	heap_deform_tuple(&tuple, desc, making.values, making.nulls);
	ReleaseTupleDesc(desc);

	if (!making.nulls[RE_METADATA])
	{
		metadata = DatumGetJsonbP(making.values[RE_METADATA]);
		if (!JB_ROOT_IS_OBJECT(metadata))
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("metadata must be a JSON object")));
	}
	find_source(&making);
	find_shadow(&making, metadata);

	(void) pushJsonbValue(&making.state, WJB_BEGIN_OBJECT, NULL);
	put_string(&making.state, "specversion", "1.0", 3);
	if (!put_shadow(&making, SHADOW_ID))
	{
		char	   *id;

		if (making.nulls[RE_EVENT_ID])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("event_id of the event must not be NULL")));
		id = DatumGetCString(DirectFunctionCall1(uuid_out, making.values[RE_EVENT_ID]));
		put_string(&making.state, "id", id, strlen(id));
	}
	put_text(&making.state, "type", needed(&making, RE_TYPE, "type"));
	put_source(&making);
	if (!put_shadow(&making, SHADOW_SUBJECT))
		put_text(&making.state, "subject", needed(&making, RE_STREAM, "stream"));
	put_time(&making);
	put_ids(&making);
	put_data(&making);
	if (metadata != NULL)
		put_metadata(&making, metadata);
	if (PG_GETARG_BOOL(2))
		put_record(&making, metadata);
	if (making.rest != NULL)
		put_rest(&making);
	PG_RETURN_JSONB_P(JsonbValueToJsonb(pushJsonbValue(&making.state, WJB_END_OBJECT, NULL)));
}
