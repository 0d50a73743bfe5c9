/*
 * apply.c
 *		An inner event becomes an outer one: the first rule that fits makes it.
 *
 * What a translation is made of, its plans too, is kept in the backend, as it was
 * last committed.  Whoever alters one sends a message of the relation cache for
 * the table, upon which all are forgotten, and read again when they are used.
 *
 * Expressions run as the owner of the store, who alone may write them, in a
 * restricted context, with a search_path and settings that don't depend on the
 * caller.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/names.h"
#include "common/plans.h"
#include "stream/stream.h"
#include "subscription/subscription.h"
#include "translation/translation.h"

PG_FUNCTION_INFO_V1(event_store_translate);

/* a translation as it is kept */
typedef struct Translation
{
	char		name[MAX_NAME_BYTES + 1];	/* the key */
	MemoryContext context;
	List	   *rules;
} Translation;

static HTAB *translations = NULL;
static Oid	table = InvalidOid;		/* that they stand in */
static bool stale = false;			/* something has changed */
static int	in_use = 0;				/* so they must not be forgotten now */

/* where an error happened */
typedef struct Place
{
	const char *name;
	int			rule;
	const Datum *values;
	const bool *nulls;
} Place;

/* ----------------------------------------------------------------
 * What is kept
 * ----------------------------------------------------------------
 */

static void
table_changed(Datum arg, Oid relid)
{
	if (OidIsValid(table) && (relid == table || !OidIsValid(relid)) &&
		catalog_message_is_news(relid))
		stale = true;
}

static void
let_go(Translation *translation)
{
	ListCell   *cell;

	foreach(cell, translation->rules)
	{
		Rule	   *rule = lfirst(cell);

		if (rule->plan != NULL)
			SPI_freeplan(rule->plan);
	}
	MemoryContextDelete(translation->context);
}

static void
forget_stale(void)
{
	HASH_SEQ_STATUS all;
	Translation *translation;

	if (!stale || in_use > 0)
		return;
	stale = false;
	if (translations == NULL)
		return;
	hash_seq_init(&all, translations);
	while ((translation = hash_seq_search(&all)) != NULL)
	{
		let_go(translation);
		(void) hash_search(translations, translation->name, HASH_REMOVE, NULL);
	}
}

/* What an expression may depend on is the same for all, where it is read and where it is run. */
static void
fix_settings(void)
{
	static const char *const settings[][2] = {
		{"standard_conforming_strings", "on"},
		{"backslash_quote", "safe_encoding"},
		{"quote_all_identifiers", "off"},
		{"default_text_search_config", "pg_catalog.simple"},
		{"lc_monetary", "C"},
		{"lc_numeric", "C"},
		{"lc_time", "C"},
		{"xmlbinary", "base64"},
		{"xmloption", "content"},
	};

	plans_settings("UTC");
	for (int i = 0; i < lengthof(settings); i++)
		plans_set(settings[i][0], settings[i][1]);
}

/* Reads rules into a context of their own; connected to SPI. */
static List *
compile(Jsonb *rules, MemoryContext context)
{
	MemoryContext saved = MemoryContextSwitchTo(context);
	List	   *result;

	/* literals become values here: '2024-01-01' depends on the time zone */
	fix_settings();
	result = rule_read_all(rules);

	MemoryContextSwitchTo(saved);
	return result;
}

/* Raises what is wrong with rules that are to be stored; connected to SPI, as the owner. */
void
translation_check(Jsonb *rules)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "event_store translation",
												  ALLOCSET_SMALL_SIZES);

	/* the plans go with the connection */
	(void) compile(rules, context);
	MemoryContextDelete(context);
}

/* The rules of a translation, as they were last committed, or by this transaction. */
static Jsonb *
read_rules(text *name)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1] = {PointerGetDatum(name)};
	bool		isnull;
	Jsonb	   *rules = NULL;

	/* not the transaction's snapshot: what is kept is kept beyond its end */
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute_with_args("SELECT t.rules FROM event_store.translation AS t WHERE t.name = $1",
							  1, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read event_store.translation");
	PopActiveSnapshot();
	if (SPI_processed > 0)
		rules = DatumGetJsonbP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
											 1, &isnull));
	return rules;
}

/* The rules of the translation of that name; connected to SPI, as the owner of the store. */
static pg_noinline List *
open_translation(text *name)
{
	char	   *key = text_to_cstring(name);
	Translation *translation = NULL;
	MemoryContext context;
	Jsonb	   *rules;
	List	   *compiled;
	ListCell   *cell;
	bool		found;

	forget_stale();
	if (translations == NULL)
	{
		HASHCTL		control;

		control.keysize = MAX_NAME_BYTES + 1;
		control.entrysize = sizeof(Translation);
		translations = hash_create("event_store translations", 16, &control,
								   HASH_ELEM | HASH_STRINGS);
	}
	if (strlen(key) <= MAX_NAME_BYTES)
		translation = hash_search(translations, key, HASH_FIND, NULL);
	/* while one is in use, what is stale cannot go, and is not used again */
	if (translation != NULL && !stale)
		return translation->rules;

	table = get_relname_relid("translation", catalog_store()->schema);
	rules = read_rules(name);
	if (rules == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_TRANSLATION),
				 errmsg("there is no translation \"%s\"", key)));
	context = AllocSetContextCreate(CurrentMemoryContext, "event_store translation",
									ALLOCSET_SMALL_SIZES);
	compiled = compile(rules, context);
	/* changed meanwhile, or used by itself while it changes: for this call only */
	if (stale)
		return compiled;
	translation = hash_search(translations, key, HASH_ENTER, &found);
	Assert(!found);
	translation->context = context;
	translation->rules = compiled;
	MemoryContextSetParent(context, TopMemoryContext);
	foreach(cell, compiled)
	{
		Rule	   *rule = lfirst(cell);

		if (rule->plan != NULL)
			SPI_keepplan(rule->plan);
	}
	return compiled;
}

/* ----------------------------------------------------------------
 * JSON
 * ----------------------------------------------------------------
 */

static bool
is_object(Jsonb *jsonb)
{
	return JB_ROOT_IS_OBJECT(jsonb);
}

static Jsonb *
empty_object(void)
{
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* What stands at the first so many names of a path; NULL: nothing. */
static Jsonb *
get(Jsonb *object, const FieldPath *path, int count)
{
	bool		isnull;
	Datum		value;

	for (int i = 0; i < count; i++)
	{
		if (!is_object(object))
			return NULL;
		value = jsonb_get_element(object, &path->fields[i], 1, &isnull, false);
		if (isnull)
			return NULL;
		object = DatumGetJsonbP(value);
	}
	return object;
}

/* Puts a value at a path, with objects on the way, whatever stood there. */
static Jsonb *
put(Jsonb *object, const FieldPath *path, Jsonb *value)
{
	JsonbValue	element;

	for (int i = 1; i < path->count; i++)
	{
		Jsonb	   *parent = get(object, path, i);
		FieldPath		above = {i, path->fields};

		if (parent == NULL || !is_object(parent))
			object = put(object, &above, empty_object());
	}
	if (!JsonbExtractScalar(&value->root, &element))
	{
		element.type = jbvBinary;
		element.val.binary.data = &value->root;
		element.val.binary.len = VARSIZE(value) - VARHDRSZ;
	}
	return DatumGetJsonbP(jsonb_set_element(object, path->fields, path->count, &element));
}

/* Those of the paths that go by this name at their place number depth. */
static List *
paths_by(const List *paths, int depth, const JsonbValue *key)
{
	List	   *result = NIL;
	ListCell   *cell;

	foreach(cell, paths)
	{
		FieldPath  *path = lfirst(cell);
		text	   *name;

		if (path->count <= depth)
			continue;
		name = (text *) DatumGetPointer(path->fields[depth]);
		if (VARSIZE_ANY_EXHDR(name) == key->val.string.len &&
			memcmp(VARDATA_ANY(name), key->val.string.val, key->val.string.len) == 0)
			result = lappend(result, path);
	}
	return result;
}

static bool
one_ends_at(const List *paths, int depth)
{
	ListCell   *cell;

	foreach(cell, paths)
		if (((FieldPath *) lfirst(cell))->count == depth)
			return true;
	return false;
}

/* Does any of the paths, from its place number depth on, lead to something? */
static bool
leads_anywhere(JsonbValue *value, const List *paths, int depth)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	member;

	if (value->type != jbvBinary)
		return false;
	check_stack_depth();
	it = JsonbIteratorInit(value->val.binary.data);
	(void) JsonbIteratorNext(&it, &member, true);
	while ((token = JsonbIteratorNext(&it, &member, true)) == WJB_ELEM || token == WJB_KEY)
	{
		const List *deeper = paths;
		int			next = depth;

		if (token == WJB_KEY)
		{
			key = member;
			(void) JsonbIteratorNext(&it, &member, true);
			deeper = paths_by(paths, depth, &key);
			next = depth + 1;
			if (deeper == NIL)
				continue;
			if (one_ends_at(deeper, next))
				return true;
		}
		if (leads_anywhere(&member, deeper, next))
			return true;
	}
	return false;
}

/*
 * A container with only what the paths lead to, or with all but that.  They go
 * through arrays: what is behind one is meant of each of its elements.
 */
static JsonbValue *
filter(JsonbParseState **state, JsonbValue *value, const List *paths, int depth, bool picks)
{
	JsonbIterator *it = JsonbIteratorInit(value->val.binary.data);
	JsonbIteratorToken token;
	JsonbValue	member;
	bool		is_array = JsonContainerIsArray(value->val.binary.data);

	check_stack_depth();
	(void) JsonbIteratorNext(&it, &member, true);
	(void) pushJsonbValue(state, is_array ? WJB_BEGIN_ARRAY : WJB_BEGIN_OBJECT, NULL);
	while ((token = JsonbIteratorNext(&it, &member, true)) == WJB_ELEM || token == WJB_KEY)
	{
		const List *deeper = paths;
		int			next = depth;
		bool		whole = !picks;

		if (token == WJB_KEY)
		{
			JsonbValue	key = member;

			(void) JsonbIteratorNext(&it, &member, true);
			deeper = paths_by(paths, depth, &key);
			next = depth + 1;
			if (one_ends_at(deeper, next))
			{
				if (!picks)
					continue;
				whole = true;
			}
			else if (picks && !leads_anywhere(&member, deeper, next))
				continue;
			(void) pushJsonbValue(state, WJB_KEY, &key);
			token = WJB_VALUE;
			if (whole && (picks || deeper == NIL))
			{
				(void) pushJsonbValue(state, token, &member);
				continue;
			}
		}
		if (member.type == jbvBinary)
			(void) filter(state, &member, deeper, next, picks);
		else if (!picks)
			(void) pushJsonbValue(state, token, &member);
	}
	return pushJsonbValue(state, is_array ? WJB_END_ARRAY : WJB_END_OBJECT, NULL);
}

static Jsonb *
pick_or_drop(Jsonb *from, const List *paths, bool picks)
{
	JsonbParseState *state = NULL;
	JsonbValue	root;

	root.type = jbvBinary;
	root.val.binary.data = &from->root;
	root.val.binary.len = VARSIZE(from) - VARHDRSZ;
	if (JB_ROOT_IS_SCALAR(from) || !leads_anywhere(&root, paths, 0))
		return picks ? empty_object() : from;
	return JsonbValueToJsonb(filter(&state, &root, paths, 0, picks));
}

/* Takes away what stands at a path. */
static Jsonb *
drop(Jsonb *object, const FieldPath *path)
{
	ArrayType  *fields;

	if (get(object, path, path->count) == NULL)
		return object;
	fields = construct_array(path->fields, path->count, TEXTOID, -1, false, TYPALIGN_INT);
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_delete_path, JsonbPGetDatum(object),
											  PointerGetDatum(fields)));
}

/* The same, and objects on the way that are empty then. */
static Jsonb *
move_away(Jsonb *object, const FieldPath *path)
{
	object = drop(object, path);
	for (int i = path->count - 1; i > 0; i--)
	{
		Jsonb	   *parent = get(object, path, i);
		FieldPath		above = {i, path->fields};

		if (parent == NULL || !is_object(parent) || JB_ROOT_COUNT(parent) > 0)
			break;
		object = drop(object, &above);
	}
	return object;
}

static Jsonb *
apply_part(const Part *part, Jsonb *value, const Datum *columns, const bool *column_nulls)
{
	ListCell   *cell;
	List	   *moved = NIL;

	if (part->column > 0)
	{
		JsonbValue	null;

		null.type = jbvNull;
		value = column_nulls[part->column - 1] ? JsonbValueToJsonb(&null) :
			DatumGetJsonbP(columns[part->column - 1]);
	}
	if (part->picks)
		value = pick_or_drop(value, part->picked, true);
	if (part->dropped != NIL)
		value = pick_or_drop(value, part->dropped, false);
	if (part->placed != NIL && !is_object(value))
		value = empty_object();
	/* all at once, so that two can change places */
	for (int i = 0; i < list_length(part->renamed); i += 2)
	{
		FieldPath	   *path = list_nth(part->renamed, i);

		moved = lappend(moved, get(value, path, path->count));
	}
	for (int i = 0; i < list_length(part->renamed); i += 2)
		value = move_away(value, list_nth(part->renamed, i));
	for (int i = 0; i < list_length(part->renamed); i += 2)
		if (list_nth(moved, i / 2) != NULL)
			value = put(is_object(value) ? value : empty_object(),
						list_nth(part->renamed, i + 1), list_nth(moved, i / 2));
	foreach(cell, part->placed)
	{
		Placed	   *placed = lfirst(cell);

		if (placed->column == 0)
			value = put(value, &placed->to, placed->constant);
		else if (!column_nulls[placed->column - 1])
			value = put(value, &placed->to, DatumGetJsonbP(columns[placed->column - 1]));
	}
	return value;
}

/* ----------------------------------------------------------------
 * Events
 * ----------------------------------------------------------------
 */

static bool
is_among(const List *names, const char *name, int len)
{
	ListCell   *cell;

	foreach(cell, names)
	{
		text	   *one = lfirst(cell);

		if (VARSIZE_ANY_EXHDR(one) == len && memcmp(VARDATA_ANY(one), name, len) == 0)
			return true;
	}
	return names == NIL;
}

/* The values of a rule's expressions for an event; false: its condition does not hold. */
static bool
compute(const Rule *rule, const Datum *values, const bool *nulls, Datum category,
		Datum *columns, bool *column_nulls)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(catalog_store()->recorded_event, -1);
	Datum		arguments[2];
	bool		holds;
	int			result;

	arguments[0] = HeapTupleGetDatum(heap_form_tuple(desc, unconstify(Datum *, values),
													 unconstify(bool *, nulls)));
	arguments[1] = category;
	ReleaseTupleDesc(desc);
	result = SPI_execute_plan(rule->plan, arguments, NULL, true, 2);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not execute the expressions of a rule: %s",
			 SPI_result_code_string(result));
	if (SPI_processed > 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("an expression of a translation returns a set")));
	holds = SPI_processed == 1;
	for (int i = 0; holds && i < rule->ncolumns; i++)
		columns[i] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1,
								   &column_nulls[i]);
	return holds;
}

/* A field that is not kept; where none may be, that is an error. */
static void
apply_field(const Field *field, RuleField which, Datum *values, bool *nulls,
			const Datum *columns, const bool *column_nulls)
{
	static const int field_of[RULE_NFIELDS] = {
		[RULE_TYPE] = RE_TYPE,
		[RULE_STREAM] = RE_STREAM,
		[RULE_SOURCE] = RE_SOURCE,
		[RULE_SCHEMA_VERSION] = RE_SCHEMA_VERSION,
		[RULE_CORRELATION_ID] = RE_CORRELATION_ID,
		[RULE_CAUSATION_ID] = RE_CAUSATION_ID
	};
	int			to = field_of[which];
	EventInput	event = {0};
	StreamInput stream = {0};

	if (field->kind == FIELD_KEPT)
		return;
	if (field->kind == FIELD_COMPUTED)
	{
		values[to] = columns[field->column - 1];
		nulls[to] = column_nulls[field->column - 1];
	}
	else
	{
		values[to] = field->constant;
		nulls[to] = field->kind == FIELD_NULL;
	}
	if (field->kind != FIELD_COMPUTED)
		return;
	switch (which)
	{
		case RULE_TYPE:
			input_type(&event, nulls[to] ? NULL : DatumGetTextPP(values[to]));
			break;
		case RULE_STREAM:
			input_stream_name(&stream, nulls[to] ? NULL : DatumGetTextPP(values[to]));
			break;
		case RULE_SOURCE:
			if (!nulls[to])
				input_source(&event, DatumGetTextPP(values[to]));
			break;
		case RULE_CORRELATION_ID:
			if (!nulls[to])
				input_correlation_id(&event, DatumGetTextPP(values[to]));
			break;
		case RULE_SCHEMA_VERSION:
			if (nulls[to])
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("schema_version must not be NULL")));
			input_schema_version(DatumGetInt32(values[to]));
			break;
		default:
			break;
	}
}

static bool
apply_rule(const Rule *rule, Datum *values, bool *nulls, const char *stream, int stream_len,
		   int category_len)
{
	Datum	   *columns = palloc(sizeof(Datum) * (rule->ncolumns + 1));
	bool	   *column_nulls = palloc(sizeof(bool) * (rule->ncolumns + 1));
	text	   *type = DatumGetTextPP(values[RE_TYPE]);

	if (!is_among(rule->types, VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type)) ||
		!is_among(rule->categories, stream, category_len))
		return false;
	if (rule->plan != NULL &&
		!compute(rule, values, nulls,
				 PointerGetDatum(cstring_to_text_with_len(stream, category_len)),
				 columns, column_nulls))
		return false;
	if (!nulls[RE_DATA] || rule->data.column > 0)
	{
		Jsonb	   *data = nulls[RE_DATA] ? empty_object() : DatumGetJsonbP(values[RE_DATA]);

		values[RE_DATA] = JsonbPGetDatum(apply_part(&rule->data, data, columns, column_nulls));
		nulls[RE_DATA] = false;
	}
	if (!nulls[RE_METADATA] || rule->metadata.column > 0)
	{
		Jsonb	   *metadata = nulls[RE_METADATA] ? empty_object() : DatumGetJsonbP(values[RE_METADATA]);

		metadata = apply_part(&rule->metadata, metadata, columns, column_nulls);
		input_metadata(metadata);
		values[RE_METADATA] = JsonbPGetDatum(metadata);
		nulls[RE_METADATA] = false;
	}
	for (int i = 0; i < RULE_NFIELDS; i++)
		apply_field(&rule->fields[i], i, values, nulls, columns, column_nulls);
	return true;
}

static void
translate_error_context(void *arg)
{
	Place	   *place = arg;
	char	   *stream = place->nulls[RE_STREAM] ? "" : TextDatumGetCString(place->values[RE_STREAM]);

	if (place->rule > 0)
		errcontext("translation \"%s\", rule %d, stream \"%s\", version %d", place->name,
				   place->rule, stream,
				   place->nulls[RE_VERSION] ? 0 : DatumGetInt32(place->values[RE_VERSION]));
	else
		errcontext("translation \"%s\"", place->name);
}

/* By the first rule that fits; what comes of it is handed out of SPI's memory. */
static bool
apply_first(List *rules, Place *place, Datum *values, bool *nulls)
{
	static const int by_reference[] = {
		RE_TYPE, RE_STREAM, RE_SOURCE, RE_CORRELATION_ID, RE_DATA, RE_METADATA
	};
	text	   *stream = DatumGetTextPP(values[RE_STREAM]);
	bool		set = false;
	ListCell   *cell;

	foreach(cell, rules)
	{
		Rule	   *rule = lfirst(cell);

		place->rule++;
		if (rule->plan != NULL && !set)
		{
			fix_settings();
			set = true;
		}
		if (apply_rule(rule, values, nulls, VARDATA_ANY(stream), VARSIZE_ANY_EXHDR(stream),
					   input_category_length(VARDATA_ANY(stream), VARSIZE_ANY_EXHDR(stream))))
			break;
	}
	if (cell == NULL)
		return false;
	for (int i = 0; i < lengthof(by_reference); i++)
		if (!nulls[by_reference[i]])
			values[by_reference[i]] = SPI_datumTransfer(values[by_reference[i]], false, -1);
	if (!nulls[RE_CAUSATION_ID])
		values[RE_CAUSATION_ID] = SPI_datumTransfer(values[RE_CAUSATION_ID], false, UUID_LEN);
	return true;
}

/*
 * Makes of an event, given as the columns of recorded_event, what goes out by the
 * translation; false: nothing does.  The values stand in the current context.
 */
bool
translate_event(text *name, Datum *values, bool *nulls)
{
	Datum		inner_values[RE_NATTS];
	bool		inner_nulls[RE_NATTS];
	Place		place = {text_to_cstring(name), 0, inner_values, inner_nulls};
	ErrorContextCallback callback;
	OwnerSwitch saved;
	List	   *volatile rules;
	volatile bool pushed = false;
	volatile bool result = false;

	if (nulls[RE_TYPE] || nulls[RE_STREAM])
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("type and stream of the event must not be NULL")));
	check_stack_depth();
	memcpy(inner_values, values, sizeof(inner_values));
	memcpy(inner_nulls, nulls, sizeof(inner_nulls));
	callback.callback = translate_error_context;
	callback.arg = &place;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (!ActiveSnapshotSet())
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		pushed = true;
	}
	owner_begin(&saved);
	rules = open_translation(name);
	in_use++;
	PG_TRY();
	{
		result = apply_first(rules, &place, values, nulls);
	}
	PG_FINALLY();
	{
		in_use--;
	}
	PG_END_TRY();
	owner_end(&saved);
	if (pushed)
		PopActiveSnapshot();
	error_context_stack = callback.previous;
	return result;
}

/* translate(): the outer event, or no row. */
Datum
event_store_translate(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *set = (ReturnSetInfo *) fcinfo->resultinfo;
	HeapTupleHeader row;
	HeapTupleData tuple;
	TupleDesc	desc;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	Datum		result = (Datum) 0;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("name must not be NULL")));
	if (set == NULL || !IsA(set, ReturnSetInfo) || (set->allowedModes & SFRM_ValuePerCall) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	set->isDone = ExprEndResult;
	if (PG_ARGISNULL(1))
		PG_RETURN_NULL();
	row = PG_GETARG_HEAPTUPLEHEADER(1);
	desc = lookup_rowtype_tupdesc_copy(HeapTupleHeaderGetTypeId(row), HeapTupleHeaderGetTypMod(row));
	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = row;
	if (!catalog_has_shape(desc, SHAPE_RECORDED_EVENT))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("the type event_store.recorded_event is not as the extension made it")));
	heap_deform_tuple(&tuple, desc, values, nulls);
	if (!translate_event(PG_GETARG_TEXT_PP(0), values, nulls))
		PG_RETURN_NULL();
	set->isDone = ExprSingleResult;
	result = HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
	PG_RETURN_DATUM(result);
}

void
translation_init(void)
{
	catalog_on_relcache(table_changed);
}
