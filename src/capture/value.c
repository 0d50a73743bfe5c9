/*
 * value.c
 *		Rows as JSON, and their keys as names of streams.
 *
 * The same value has the same JSON and the same name in every session: no
 * setting has a say.  Where a type's output depends on one, either the code
 * here writes the value itself (times in UTC and as ISO 8601, floating point
 * numbers with all digits, bytea in hex), or the setting is ours meanwhile.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "common/shortest_dec.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/uuid.h"

#include "capture/capture.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/plans.h"

/* what stands in place of a masked value */
#define MASK	"***"

/* ----------------------------------------------------------------
 * Types
 * ----------------------------------------------------------------
 */

static ValueKind
kind_of_type(Oid type)
{
	switch (type)
	{
		case BOOLOID:
			return VALUE_BOOL;
		case INT2OID:
			return VALUE_INT2;
		case INT4OID:
			return VALUE_INT4;
		case INT8OID:
			return VALUE_INT8;
		case FLOAT4OID:
			return VALUE_FLOAT4;
		case FLOAT8OID:
			return VALUE_FLOAT8;
		case NUMERICOID:
			return VALUE_NUMERIC;
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
			return VALUE_TEXT;
		case DATEOID:
		case TIMEOID:
		case TIMETZOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return VALUE_DATETIME;
		case BYTEAOID:
			return VALUE_BYTEA;
		case JSONOID:
			return VALUE_JSON;
		case JSONBOID:
			return VALUE_JSONB;
		case UUIDOID:
		case NAMEOID:
		case CHAROID:
		case OIDOID:
		case TIDOID:
		case XIDOID:
		case XID8OID:
		case LSNOID:
		case BITOID:
		case VARBITOID:
		case INETOID:
		case CIDROID:
		case MACADDROID:
		case MACADDR8OID:
		case TSVECTOROID:
		case TSQUERYOID:
			return VALUE_OUTPUT;
		default:
			return type_is_enum(type) ? VALUE_OUTPUT : VALUE_OTHER;
	}
}

/* An array of what to_jsonb() writes the same under all settings. */
static bool
is_plain_array(Oid type)
{
	Oid			element = get_base_element_type(type);

	if (!OidIsValid(element))
		return false;
	switch (kind_of_type(getBaseType(element)))
	{
		case VALUE_BOOL:
		case VALUE_INT2:
		case VALUE_INT4:
		case VALUE_INT8:
		case VALUE_NUMERIC:
		case VALUE_TEXT:
		case VALUE_JSON:
		case VALUE_JSONB:
		case VALUE_OUTPUT:
			return true;
		default:
			return false;
	}
}

/* How the column's values become JSON; its type is known. */
void
value_column_init(CaptureColumn *column, MemoryContext context)
{
	column->kind = kind_of_type(column->type);
	if (column->kind == VALUE_OUTPUT)
	{
		Oid			function;
		bool		varlena;

		getTypeOutputInfo(column->type, &function, &varlena);
		fmgr_info_cxt(function, &column->function, context);
	}
	else if (column->kind == VALUE_OTHER)
	{
		MemoryContext saved = MemoryContextSwitchTo(context);
		Const	   *argument = makeNullConst(column->type, -1, InvalidOid);

		/* it takes a value of any type, and asks the call for which */
		fmgr_info_cxt(F_TO_JSONB, &column->function, context);
		fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(argument),
												 InvalidOid, InvalidOid,
												 COERCE_EXPLICIT_CALL),
						   &column->function);
		MemoryContextSwitchTo(saved);
		column->plain = is_plain_array(column->type);
	}
}

/* ----------------------------------------------------------------
 * Values
 * ----------------------------------------------------------------
 */

static void
set_string(JsonbValue *result, const char *string, int len)
{
	result->type = jbvString;
	result->val.string.val = unconstify(char *, string);
	result->val.string.len = len;
}

static void
set_cstring(JsonbValue *result, const char *string)
{
	set_string(result, string, strlen(string));
}

/* JSON has no NaN and no infinity: they are strings, as in to_jsonb(). */
static void
set_numeric(JsonbValue *result, Numeric value)
{
	if (numeric_is_nan(value) || numeric_is_inf(value))
		set_cstring(result, DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value))));
	else
	{
		result->type = jbvNumeric;
		result->val.numeric = value;
	}
}

/* The shortest digits that mean the same number, whatever extra_float_digits says. */
static void
set_float(JsonbValue *result, const char *digits)
{
	set_numeric(result, DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(digits),
															ObjectIdGetDatum(InvalidOid),
															Int32GetDatum(-1))));
}

static void
set_jsonb(JsonbValue *result, Jsonb *value)
{
	if (JB_ROOT_IS_SCALAR(value))
		(void) JsonbExtractScalar(&value->root, result);
	else
	{
		result->type = jbvBinary;
		result->val.binary.data = &value->root;
		result->val.binary.len = VARSIZE(value) - VARHDRSZ;
	}
}

static void
set_bytea(JsonbValue *result, Datum value)
{
	bytea	   *bytes = DatumGetByteaPP(value);
	int			len = VARSIZE_ANY_EXHDR(bytes);
	char	   *string = palloc_extended((Size) len * 2 + 3, MCXT_ALLOC_HUGE);

	string[0] = '\\';
	string[1] = 'x';
	hex_encode(VARDATA_ANY(bytes), len, string + 2);
	if ((Size) len * 2 + 2 > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a value of type bytea is too long for JSON"),
				 errdetail("It has %d bytes.", len),
				 errhint("Leave the column out with the argument exclude.")));
	set_string(result, string, len * 2 + 2);
}

/* jsonb has no character 0, which json can write: such a value stays a text. */
static void
set_json(JsonbValue *result, Datum value)
{
	char	   *string = TextDatumGetCString(value);

	if (strstr(string, "\\u0000") != NULL)
		set_cstring(result, string);
	else
		set_jsonb(result, DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(string))));
}

/* As to_jsonb() has it, with settings that are the same in every session. */
static void
set_other(JsonbValue *result, const CaptureColumn *column, Datum value)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog"},
		{"TimeZone", "UTC"},
		{"DateStyle", "ISO, YMD"},
		{"IntervalStyle", "iso_8601"},
		{"extra_float_digits", "1"},
		{"bytea_output", "hex"},
		{"lc_monetary", "C"},
		{"quote_all_identifiers", "off"},
	};
	FmgrInfo   *function = unconstify(FmgrInfo *, &column->function);
	int			level;

	if (column->plain)
	{
		set_jsonb(result, DatumGetJsonbP(FunctionCall1(function, value)));
		return;
	}
	level = NewGUCNestLevel();
	for (int i = 0; i < lengthof(settings); i++)
		plans_set(settings[i][0], settings[i][1]);
	set_jsonb(result, DatumGetJsonbP(FunctionCall1(function, value)));
	AtEOXact_GUC(true, level);
}

static void
set_value(JsonbValue *result, const CaptureColumn *column, Datum value)
{
	char		buf[MAXDATELEN + 1];

	switch (column->kind)
	{
		case VALUE_BOOL:
			result->type = jbvBool;
			result->val.boolean = DatumGetBool(value);
			break;
		case VALUE_INT2:
			set_numeric(result, int64_to_numeric(DatumGetInt16(value)));
			break;
		case VALUE_INT4:
			set_numeric(result, int64_to_numeric(DatumGetInt32(value)));
			break;
		case VALUE_INT8:
			set_numeric(result, int64_to_numeric(DatumGetInt64(value)));
			break;
		case VALUE_FLOAT4:
			float_to_shortest_decimal_buf(DatumGetFloat4(value), buf);
			set_float(result, buf);
			break;
		case VALUE_FLOAT8:
			double_to_shortest_decimal_buf(DatumGetFloat8(value), buf);
			set_float(result, buf);
			break;
		case VALUE_NUMERIC:
			set_numeric(result, DatumGetNumeric(value));
			break;
		case VALUE_TEXT:
			{
				text	   *string = DatumGetTextPP(value);

				set_string(result, VARDATA_ANY(string), VARSIZE_ANY_EXHDR(string));
				break;
			}
		case VALUE_DATETIME:
			{
				int			utc = 0;

				JsonEncodeDateTime(buf, value, column->type,
								   column->type == TIMESTAMPTZOID ? &utc : NULL);
				set_cstring(result, pstrdup(buf));
				break;
			}
		case VALUE_BYTEA:
			set_bytea(result, value);
			break;
		case VALUE_JSON:
			set_json(result, value);
			break;
		case VALUE_JSONB:
			set_jsonb(result, DatumGetJsonbP(value));
			break;
		case VALUE_OUTPUT:
			set_cstring(result, OutputFunctionCall(unconstify(FmgrInfo *, &column->function), value));
			break;
		case VALUE_OTHER:
			set_other(result, column, value);
			break;
	}
}

/*
 * Do two rows have the same in a column?  What counts is the value's image, not
 * what its type calls equal: 1.0 and 1.00 differ, and so do their JSONs.
 */
bool
value_same(const CaptureColumn *column, TupleTableSlot *a, TupleTableSlot *b)
{
	int			i = column->attnum - 1;
	Datum		x = a->tts_values[i];
	Datum		y = b->tts_values[i];

	if (a->tts_isnull[i] || b->tts_isnull[i])
		return a->tts_isnull[i] && b->tts_isnull[i];
	if (column->typbyval && x == y)
		return true;
	/* what an UPDATE does not touch keeps its place out of line: no need to fetch it */
	if (column->typlen == -1 &&
		VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(x)) &&
		VARATT_IS_EXTERNAL_ONDISK(DatumGetPointer(y)) &&
		memcmp(DatumGetPointer(x), DatumGetPointer(y), TOAST_POINTER_SIZE) == 0)
		return true;
	return datum_image_eq(x, y, column->typbyval, column->typlen);
}

/* ----------------------------------------------------------------
 * Keys
 * ----------------------------------------------------------------
 */

/*
 * Adds text to a name.  Control characters, %, and what is special here are
 * written as %XX; a $ counts as special in the first place only.
 */
void
value_encode_name(StringInfo buf, const char *text, int len, const char *special)
{
	for (int i = 0; i < len; i++)
	{
		unsigned char c = text[i];

		if (c < 0x20 || c == 0x7F || c == '%' ||
			(strchr(special, c) != NULL && (c != '$' || buf->len == 0)))
			appendStringInfo(buf, "%%%02X", c);
		else
			appendStringInfoChar(buf, c);
	}
}

static void
encode_key(StringInfo buf, const CaptureColumn *column, Datum value)
{
	JsonbValue	json;
	bool		any = column->kind == VALUE_JSON || column->kind == VALUE_JSONB;

	set_value(&json, column, value);
	/* 1 and "1" are two values of these types, and stay so */
	switch (any ? jbvBinary : json.type)
	{
		case jbvString:
			value_encode_name(buf, json.val.string.val, json.val.string.len, ",");
			break;
		case jbvNumeric:
			/* 1.0 and 1.00 are one key */
			appendStringInfoString(buf, numeric_normalize(json.val.numeric));
			break;
		case jbvBool:
			appendStringInfoString(buf, json.val.boolean ? "true" : "false");
			break;
		default:
			{
				Jsonb	   *jsonb = JsonbValueToJsonb(&json);
				char	   *string = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));

				value_encode_name(buf, string, strlen(string), ",");
			}
	}
}

/*
 * The stream of a row: category-key, where the key's values stand with commas
 * between them; NULL is %00, which no value can be.
 */
const char *
value_stream(const Capture *capture, TupleTableSlot *slot, int *len)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendBinaryStringInfo(&buf, capture->category, capture->category_len);
	for (int i = 0; i < capture->nkeys; i++)
	{
		const CaptureColumn *column = &capture->keys[i];
		Datum		value = slot->tts_values[column->attnum - 1];

		appendStringInfoChar(&buf, i == 0 ? '-' : ',');
		if (slot->tts_isnull[column->attnum - 1])
			appendStringInfoString(&buf, "%00");
		else if (column->kind == VALUE_INT4 || column->kind == VALUE_INT8)
		{
			char		digits[MAXINT8LEN + 1];
			int			n = column->kind == VALUE_INT4 ?
				pg_ltoa(DatumGetInt32(value), digits) : pg_lltoa(DatumGetInt64(value), digits);

			appendBinaryStringInfo(&buf, digits, n);
		}
		else
			encode_key(&buf, column, value);
	}
	*len = buf.len;
	input_check_name("the name of a captured row's stream", buf.data, buf.len);
	return buf.data;
}

bool
value_same_key(const Capture *capture, TupleTableSlot *old, TupleTableSlot *new)
{
	for (int i = 0; i < capture->nkeys; i++)
		if (!value_same(&capture->keys[i], old, new))
			return false;
	return true;
}

/* ----------------------------------------------------------------
 * Rows
 * ----------------------------------------------------------------
 */

static void
push_key(JsonbParseState **state, const char *key, int len)
{
	JsonbValue	value;

	set_string(&value, key, len);
	(void) pushJsonbValue(state, WJB_KEY, &value);
}

static void
push_string(JsonbParseState **state, const char *key, const char *string, int len)
{
	JsonbValue	value;

	push_key(state, key, strlen(key));
	set_string(&value, string, len);
	(void) pushJsonbValue(state, WJB_VALUE, &value);
}

/*
 * Objects are put together by hand here, not by pushJsonbValue(): their keys are
 * in order, so there is nothing to sort, and nothing to copy.
 */
static void
set_object(JsonbValue *object, JsonbPair *pairs, int npairs)
{
	object->type = jbvObject;
	object->val.object.nPairs = npairs;
	object->val.object.pairs = pairs;
}

static JsonbValue *
set_key(JsonbPair *pair, const char *key, int len)
{
	set_string(&pair->key, key, len);
	return &pair->value;
}

/* A value that is JSON already, as a part of an object. */
static void
unpack(JsonbValue *value)
{
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	(void) pushJsonbValue(&state, WJB_ELEM, value);
	*value = pushJsonbValue(&state, WJB_END_ARRAY, NULL)->val.array.elems[0];
}

/* A column of a row, as it is to be shown. */
static void
column_value(JsonbValue *result, const CaptureColumn *column, TupleTableSlot *slot)
{
	int			i = column->attnum - 1;

	if (slot->tts_isnull[i])
		result->type = jbvNull;
	else if (column->masked)
		set_cstring(result, MASK);
	else
		set_value(result, column, slot->tts_values[i]);
	if (result->type == jbvBinary)
		unpack(result);
}

/*
 * The data of an event: {"op", "old", "new"}.  moved is the stream that a row
 * whose key was changed went to, or came from.  NULL: an update that changed
 * nothing that is captured, and is not wanted.
 */
Jsonb *
value_data(const Capture *capture, CaptureOp op, TupleTableSlot *old,
		   TupleTableSlot *new, const char *moved, int moved_len)
{
	static const char *const ops[] = {"insert", "update", "delete", "truncate"};
	JsonbValue	object;
	JsonbPair	members[4];
	int			nmembers = 0;
	JsonbPair  *old_pairs = NULL;
	JsonbPair  *new_pairs = NULL;
	int			npairs = 0;
	bool		changed = false;

	if (old != NULL && !(op == CAPTURE_UPDATE && capture->data == CAPTURE_NEW))
		old_pairs = palloc(sizeof(JsonbPair) * Max(capture->ncolumns, 1));
	if (new != NULL)
		new_pairs = palloc(sizeof(JsonbPair) * Max(capture->ncolumns, 1));
	for (int i = 0; i < capture->ncolumns; i++)
	{
		const CaptureColumn *column = &capture->columns[i];
		JsonbValue *old_value;
		bool		same = false;

		if (op == CAPTURE_UPDATE)
		{
			same = value_same(column, old, new);
			changed |= !same;
			if (same && capture->data == CAPTURE_CHANGED)
				continue;
		}
		else if (op == CAPTURE_DELETE && capture->data == CAPTURE_NEW && !column->is_key)
			continue;
		if (new_pairs != NULL)
			column_value(set_key(&new_pairs[npairs], column->name, column->name_len),
						 column, new);
		if (old_pairs != NULL)
		{
			old_value = set_key(&old_pairs[npairs], column->name, column->name_len);
			if (same)
				*old_value = new_pairs[npairs].value;
			else
				column_value(old_value, column, old);
		}
		npairs++;
	}
	if (op == CAPTURE_UPDATE && !changed && !capture->keep_unchanged)
		return NULL;

	/* in the order of keys of a jsonb object */
	set_cstring(set_key(&members[nmembers++], "op", 2), ops[op]);
	if (new_pairs != NULL)
		set_object(set_key(&members[nmembers++], "new", 3), new_pairs, npairs);
	if (old_pairs != NULL)
		set_object(set_key(&members[nmembers++], "old", 3), old_pairs, npairs);
	if (moved != NULL && op == CAPTURE_DELETE)
		set_string(set_key(&members[nmembers++], "moved_to", 8), moved, moved_len);
	else if (moved != NULL)
		set_string(set_key(&members[nmembers++], "moved_from", 10), moved, moved_len);
	set_object(&object, members, nmembers);
	return JsonbValueToJsonb(&object);
}

/* What an event's metadata say of the statement. */
Jsonb *
value_metadata(const Capture *capture)
{
	JsonbParseState *state = NULL;
	uint32		wanted = capture->metadata;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < CAPTURE_METAS; i++)
	{
		const char *key = NULL;
		const char *value = NULL;

		if ((wanted & (1 << i)) == 0)
			continue;
		switch ((CaptureMetadata) i)
		{
			case CAPTURE_META_TABLE:
				key = "table";
				value = capture->relation_name;
				break;
			case CAPTURE_META_USER:
				key = "user";
				value = GetUserNameFromId(GetUserId(), false);
				break;
			case CAPTURE_META_SESSION_USER:
				key = "session_user";
				value = GetUserNameFromId(GetSessionUserId(), false);
				break;
			case CAPTURE_META_APPLICATION:
				key = "application";
				value = application_name == NULL ? "" : application_name;
				break;
			case CAPTURE_META_TRANSACTION:
				key = "transaction";
				value = psprintf(UINT64_FORMAT, U64FromFullTransactionId(GetTopFullTransactionId()));
				break;
			case CAPTURE_METAS:
				break;
		}
		push_string(&state, key, value, strlen(value));
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}
