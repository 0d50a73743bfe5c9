/*
 * route.c
 *		Events that are published as they are appended.
 *
 * The hook of appends makes a message of each event and each route that wants it,
 * within the append.  It comes before that of inline projections, whose handlers may
 * append themselves: what follows from an event is published behind it.
 *
 * Where a route names a translation, messages are made of what that makes of the
 * event; nothing, if it passes over the event.
 *
 * A template is text with placeholders in braces; {{ stands for a brace.  In a
 * payload, each string is a template, and one that is a placeholder and nothing else
 * stands for the JSON value itself.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_collation_d.h"
#include "catalog/pg_type_d.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/names.h"
#include "outbox/outbox.h"
#include "stream/stream.h"
#include "translation/translation.h"

PG_FUNCTION_INFO_V1(event_store_route_to_outbox);
PG_FUNCTION_INFO_V1(event_store_drop_route);
PG_FUNCTION_INFO_V1(event_store_keep_routed_translation);

/* columns of event_store.outbox_route */
enum
{
	RT_NAME = 1,
	RT_CATEGORIES,
	RT_TYPES,
	RT_TOPIC,
	RT_KEY,
	RT_PAYLOAD,
	RT_TRANSLATION
};

typedef enum PieceKind
{
	PART_TEXT,
	PART_STREAM,
	PART_CATEGORY,
	PART_ID,
	PART_TYPE,
	PART_VERSION,
	PART_POSITION,
	PART_EVENT_ID,
	PART_CORRELATION_ID,
	PART_CAUSATION_ID,
	PART_SOURCE,
	PART_SCHEMA_VERSION,
	PART_OCCURRED_AT,
	PART_RECORDED_AT,
	PART_DATA,
	PART_METADATA
} PieceKind;

static const char *const part_names[] = {
	NULL, "stream", "category", "id", "type", "version", "position", "event_id",
	"correlation_id", "causation_id", "source", "schema_version", "occurred_at", "recorded_at",
	"data", "metadata"
};

/* a piece of a template */
typedef struct Piece
{
	PieceKind	kind;
	char	   *text;			/* the text, or the path in data or metadata, or NULL */
} Piece;

typedef struct Route
{
	char	   *name;
	bool		by_category;
	NameList	categories;
	bool		by_type;
	NameList	types;
	List	   *topic;			/* of Piece */
	List	   *key;			/* NIL: none */
	Jsonb	   *payload;		/* NULL: the event's data */
	text	   *translation;	/* NULL: none */
} Route;

/* the routes, if `known` */
static struct
{
	bool		known;
	Oid			relid;
	MemoryContext context;
	int			count;
	Route	   *list;
}			cache;

/* messages about the table of routes so far */
static uint64 messages = 0;

/* an event that is made a message of */
typedef struct Routed
{
	const Route *route;
	const AppendBatch *append;
	const EventInput *event;
	const StreamInput *stream;
	pg_uuid_t	event_id;
} Routed;

/* ----------------------------------------------------------------
 * Templates
 * ----------------------------------------------------------------
 */

static void
bad_template(const char *what, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("%s is not a template", what),
			 errdetail("%s", detail)));
}

static void
add_part(List **parts, PieceKind kind, char *text)
{
	Piece	   *part = palloc(sizeof(Piece));

	part->kind = kind;
	part->text = text;
	*parts = lappend(*parts, part);
}

static void
add_placeholder(List **parts, const char *what, char *name)
{
	char	   *dot = strchr(name, '.');

	if (dot != NULL)
		*dot = '\0';
	for (int i = PART_STREAM; i < lengthof(part_names); i++)
		if (strcmp(name, part_names[i]) == 0 &&
			(dot == NULL || (i >= PART_DATA && dot[1] != '\0')))
		{
			add_part(parts, (PieceKind) i, dot == NULL ? NULL : dot + 1);
			return;
		}
	bad_template(what, psprintf("There is no placeholder {%s%s%s}.", name, dot == NULL ? "" : ".",
								dot == NULL ? "" : dot + 1));
}

/* The parts of a template, in the current context. */
static List *
parse_template(const char *what, const char *template)
{
	List	   *parts = NIL;
	StringInfoData text;

	initStringInfo(&text);
	for (const char *p = template; *p != '\0'; p++)
	{
		if (*p == '{' && p[1] != '{')
		{
			const char *end = strchr(p, '}');

			if (end == NULL)
				bad_template(what, "A brace is not closed.");
			if (text.len > 0)
				add_part(&parts, PART_TEXT, pstrdup(text.data));
			resetStringInfo(&text);
			add_placeholder(&parts, what, pnstrdup(p + 1, end - p - 1));
			p = end;
			continue;
		}
		if (*p == '{' || (*p == '}' && p[1] == '}'))
			p++;
		appendStringInfoChar(&text, *p);
	}
	if (text.len > 0)
		add_part(&parts, PART_TEXT, pstrdup(text.data));
	return parts;
}

/* Refuses a template of a name that would be too long whatever is filled in. */
static void
check_template(const char *what, const List *parts)
{
	size_t		bytes = 0;
	ListCell   *cell;

	foreach(cell, parts)
	{
		const Piece *piece = lfirst(cell);

		if (piece->kind == PART_TEXT)
			bytes += strlen(piece->text);
	}
	if (bytes > MAX_NAME_BYTES)
		bad_template(what, psprintf("It makes names of more than %d bytes.", MAX_NAME_BYTES));
}

/* The value at a path in a JSON object; false: there is none, or it is null. */
static bool
find_value(Jsonb *jsonb, const char *path, JsonbValue *value)
{
	JsonbContainer *container = &jsonb->root;

	if (path == NULL)
	{
		if (JB_ROOT_IS_SCALAR(jsonb))
		{
			*value = *getIthJsonbValueFromContainer(container, 0);
			return value->type != jbvNull;
		}
		value->type = jbvBinary;
		value->val.binary.data = container;
		value->val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
		return true;
	}
	for (;;)
	{
		const char *dot = strchr(path, '.');
		int			len = dot == NULL ? strlen(path) : dot - path;
		JsonbValue *found = NULL;

		if (JsonContainerIsObject(container))
			found = getKeyJsonValueFromContainer(container, path, len, NULL);
		else if (JsonContainerIsArray(container) && !JsonContainerIsScalar(container) &&
				 len > 0 && len < 10 && strspn(path, "0123456789") == len)
			found = getIthJsonbValueFromContainer(container, atoi(path));
		if (found == NULL || found->type == jbvNull)
			return false;
		*value = *found;
		if (dot == NULL)
			return true;
		if (value->type != jbvBinary)
			return false;
		container = value->val.binary.data;
		path = dot + 1;
	}
}

/* A JSON value as text: a string without its quotes. */
static char *
value_text(JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		case jbvBinary:
			return JsonbToCString(NULL, value->val.binary.data, value->val.binary.len);
		default:
			return pstrdup("null");
	}
}

static char *
uuid_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(unconstify(pg_uuid_t *, id))));
}

/* In UTC: the time zone of who appends is nobody else's business. */
static char *
time_text(TimestampTz time)
{
	int			utc = 0;

	return JsonEncodeDateTime(palloc(MAXDATELEN + 3), TimestampTzGetDatum(time), TIMESTAMPTZOID,
							  &utc);
}

/* What a placeholder stands for, as text; NULL: the event has no such thing. */
static char *
part_text(const Routed *routed, const Piece *part)
{
	const EventInput *event = routed->event;
	const StreamInput *stream = routed->stream;
	int			category = input_category_length(stream->name, stream->len);
	JsonbValue	value;

	switch (part->kind)
	{
		case PART_TEXT:
			return part->text;
		case PART_STREAM:
			return pnstrdup(stream->name, stream->len);
		case PART_CATEGORY:
			return pnstrdup(stream->name, category);
		case PART_ID:
			return category == stream->len ? NULL :
				pnstrdup(stream->name + category + 1, stream->len - category - 1);
		case PART_TYPE:
			return pnstrdup(event->type, event->type_len);
		case PART_VERSION:
			return psprintf("%d", event->version);
		case PART_POSITION:
			return psprintf("%lld", (long long) event->position);
		case PART_EVENT_ID:
			return uuid_text(&routed->event_id);
		case PART_CORRELATION_ID:
			return event->has_correlation_id ? TextDatumGetCString(event->correlation_id) : NULL;
		case PART_CAUSATION_ID:
			return event->has_causation_id ? uuid_text(&event->causation_id) : NULL;
		case PART_SOURCE:
			return event->source == NULL ? NULL : pnstrdup(event->source, event->source_len);
		case PART_SCHEMA_VERSION:
			return psprintf("%d", event->schema_version);
		case PART_OCCURRED_AT:
			return time_text(event->has_occurred_at ? event->occurred_at :
							 routed->append->recorded_at);
		case PART_RECORDED_AT:
			return time_text(routed->append->recorded_at);
		case PART_DATA:
		case PART_METADATA:
			return find_value(DatumGetJsonbP(part->kind == PART_DATA ? event->data : event->metadata),
							  part->text, &value) ? value_text(&value) : NULL;
	}
	return NULL;
}

/* A template filled in; NULL: the event lacks something that it names. */
static char *
fill(const Routed *routed, const List *parts)
{
	StringInfoData text;
	ListCell   *cell;

	initStringInfo(&text);
	foreach(cell, parts)
	{
		char	   *piece = part_text(routed, lfirst(cell));

		if (piece == NULL)
			return NULL;
		appendStringInfoString(&text, piece);
	}
	return text.data;
}

/* The same for a string of a payload: JSON values stay what they are. */
static void
fill_value(const Routed *routed, const JsonbValue *template, JsonbValue *value)
{
	List	   *parts = parse_template("payload", pnstrdup(template->val.string.val,
														  template->val.string.len));
	Piece	   *part = list_length(parts) == 1 ? linitial(parts) : NULL;
	char	   *text;

	if (part != NULL && part->kind >= PART_DATA)
	{
		if (!find_value(DatumGetJsonbP(part->kind == PART_DATA ? routed->event->data :
									   routed->event->metadata), part->text, value))
			value->type = jbvNull;
		return;
	}
	if (part != NULL && (part->kind == PART_VERSION || part->kind == PART_POSITION ||
						 part->kind == PART_SCHEMA_VERSION))
	{
		value->type = jbvNumeric;
		value->val.numeric = int64_to_numeric(part->kind == PART_VERSION ? routed->event->version :
											  part->kind == PART_POSITION ? routed->event->position :
											  routed->event->schema_version);
		return;
	}
	text = fill(routed, parts);
	if (text == NULL)
	{
		value->type = jbvNull;
		return;
	}
	value->type = jbvString;
	value->val.string.val = text;
	value->val.string.len = strlen(text);
}

/*
 * A payload by its template.  routed is NULL when that is only checked: then each
 * string is parsed.
 */
static Datum
fill_payload(const Routed *routed, Jsonb *template)
{
	JsonbIterator *iterator = JsonbIteratorInit(&template->root);
	JsonbParseState *state = NULL;
	JsonbValue *result = NULL;
	JsonbValue	value;
	JsonbIteratorToken token;

	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		bool		is_scalar = token == WJB_BEGIN_ARRAY && value.val.array.rawScalar;

		if ((token == WJB_VALUE || token == WJB_ELEM) && value.type == jbvString)
		{
			JsonbValue	filled;

			if (routed == NULL)
				(void) parse_template("payload", pnstrdup(value.val.string.val, value.val.string.len));
			else
			{
				fill_value(routed, &value, &filled);
				value = filled;
			}
		}
		if (is_scalar)
		{
			/* the payload is one string, or another scalar */
			token = JsonbIteratorNext(&iterator, &value, false);
			if (value.type != jbvString)
				return PointerGetDatum(template);
			if (routed == NULL)
				(void) parse_template("payload", pnstrdup(value.val.string.val, value.val.string.len));
			else
			{
				JsonbValue	filled;

				fill_value(routed, &value, &filled);
				return PointerGetDatum(JsonbValueToJsonb(&filled));
			}
			return PointerGetDatum(template);
		}
		result = pushJsonbValue(&state, token,
								token == WJB_KEY || token == WJB_VALUE || token == WJB_ELEM ?
								&value : NULL);
	}
	return PointerGetDatum(JsonbValueToJsonb(result));
}

/* ----------------------------------------------------------------
 * Which routes there are
 * ----------------------------------------------------------------
 */

static int
compare_routes(const void *a, const void *b)
{
	return strcmp(((const Route *) a)->name, ((const Route *) b)->name);
}

/* Reads the routes, as of now: an older snapshot may not show them. */
static void
read_routes(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	TableScanDesc scan = table_beginscan(rel, SnapshotSelf, 0, NULL);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	int			room = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext saved = MemoryContextSwitchTo(cache.context);
		Route	   *route;
		Datum		value;
		bool		isnull;

		if (cache.count == room)
		{
			room = Max(room * 2, 8);
			cache.list = cache.list == NULL ? palloc(sizeof(Route) * room) :
				repalloc(cache.list, sizeof(Route) * room);
		}
		route = &cache.list[cache.count++];
		memset(route, 0, sizeof(Route));
		route->name = TextDatumGetCString(slot_getattr(slot, RT_NAME, &isnull));
		value = slot_getattr(slot, RT_CATEGORIES, &isnull);
		if ((route->by_category = !isnull))
			route->categories = values_name_list(value);
		value = slot_getattr(slot, RT_TYPES, &isnull);
		if ((route->by_type = !isnull))
			route->types = values_name_list(value);
		route->topic = parse_template("topic",
									  TextDatumGetCString(slot_getattr(slot, RT_TOPIC, &isnull)));
		value = slot_getattr(slot, RT_KEY, &isnull);
		if (!isnull)
			route->key = parse_template("key", TextDatumGetCString(value));
		value = slot_getattr(slot, RT_PAYLOAD, &isnull);
		if (!isnull)
			route->payload = DatumGetJsonbPCopy(value);
		value = slot_getattr(slot, RT_TRANSLATION, &isnull);
		if (!isnull)
			route->translation = DatumGetTextPCopy(value);
		MemoryContextSwitchTo(saved);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	if (cache.count > 0)
		qsort(cache.list, cache.count, sizeof(Route), compare_routes);
}

/*
 * The list is good to the transaction's end: it may be built anew while an append
 * goes through it.
 */
static int
routes(Route **list)
{
	for (;;)
	{
		const Store *store = catalog_store();
		uint64		seen = messages;

		if (likely(cache.known && cache.relid == store->outbox_route))
			break;
		cache.known = false;
		if (cache.context != NULL)
			MemoryContextSetParent(cache.context, TopTransactionContext);
		cache.context = NULL;
		cache.context = AllocSetContextCreate(TopMemoryContext, "event_store routes",
											  ALLOCSET_SMALL_SIZES);
		cache.relid = store->outbox_route;
		cache.list = NULL;
		cache.count = 0;
		read_routes(store->outbox_route);

		/*
		 * Without news they are good for now, though the cache may have been emptied
		 * since: to look at the catalog once more may empty it, too.
		 */
		cache.known = seen == messages;
		if (cache.known)
			break;
	}
	*list = cache.list;
	return cache.count;
}

static void
relcache_callback(Datum arg, Oid relid)
{
	if (relid != InvalidOid && relid != cache.relid)
		return;
	if (catalog_message_is_news(relid))
		messages++;
	cache.known = false;
}

/* What this transaction has changed of the routes may be rolled back. */
static void
subtransaction_ended(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		cache.known = false;
}

/* ----------------------------------------------------------------
 * Within an append
 * ----------------------------------------------------------------
 */

static bool
is_wanted(const Route *route, const AppendBatch *append, const EventInput *event)
{
	const StreamInput *stream = &append->streams[event->stream];

	return !event->duplicate &&
		(!route->by_type || values_has_name(&route->types, event->type, event->type_len)) &&
		(!route->by_category ||
		 values_has_name(&route->categories, stream->name,
						input_category_length(stream->name, stream->len)));
}

static void
push_text(JsonbParseState **state, const char *key, const char *text)
{
	JsonbValue	value;

	if (text == NULL)
		return;
	value.type = jbvString;
	value.val.string.val = unconstify(char *, key);
	value.val.string.len = strlen(key);
	(void) pushJsonbValue(state, WJB_KEY, &value);
	value.val.string.val = unconstify(char *, text);
	value.val.string.len = strlen(text);
	(void) pushJsonbValue(state, WJB_VALUE, &value);
}

static void
push_number(JsonbParseState **state, const char *key, int64 number)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, key);
	value.val.string.len = strlen(key);
	(void) pushJsonbValue(state, WJB_KEY, &value);
	value.type = jbvNumeric;
	value.val.numeric = int64_to_numeric(number);
	(void) pushJsonbValue(state, WJB_VALUE, &value);
}

/* A string of the metadata, or NULL. */
static char *
metadata_text(const EventInput *event, const char *key)
{
	JsonbValue	value;

	if (!find_value(DatumGetJsonbP(event->metadata), key, &value) || value.type != jbvString)
		return NULL;
	return value_text(&value);
}

/* Where the event is to be found, and the context that it was appended in. */
static Datum
make_headers(const Routed *routed)
{
	const EventInput *event = routed->event;
	JsonbParseState *state = NULL;
	Piece		part = {0};

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int kind = PART_CORRELATION_ID; kind <= PART_SOURCE; kind++)
	{
		part.kind = (PieceKind) kind;
		push_text(&state, part_names[kind], part_text(routed, &part));
	}
	push_text(&state, "event_id", uuid_text(&routed->event_id));
	push_number(&state, "position", event->position);
	push_text(&state, "recorded_at", time_text(routed->append->recorded_at));
	push_number(&state, "schema_version", event->schema_version);
	push_text(&state, "stream", pnstrdup(routed->stream->name, routed->stream->len));
	push_text(&state, "traceparent", metadata_text(event, "traceparent"));
	push_text(&state, "tracestate", metadata_text(event, "tracestate"));
	push_number(&state, "version", event->version);
	return PointerGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
}

static void
check_name(const Routed *routed, const char *what, const char *name)
{
	if (name != NULL && name[0] != '\0' && strlen(name) <= MAX_NAME_BYTES)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_VE_ROUTE_FAILED),
			 errmsg("route \"%s\" cannot make a message of an event", routed->route->name),
			 name == NULL ?
			 errdetail("The %s names something that the event of type \"%s\" in stream \"%s\" lacks.",
					   what, pnstrdup(routed->event->type, routed->event->type_len),
					   pnstrdup(routed->stream->name, routed->stream->len)) :
			 errdetail("The %s of an event of type \"%s\" in stream \"%s\" is empty, or longer than %d bytes.",
					   what, pnstrdup(routed->event->type, routed->event->type_len),
					   pnstrdup(routed->stream->name, routed->stream->len), MAX_NAME_BYTES)));
}

static void
make_message(const Routed *routed, Message *message)
{
	const Route *route = routed->route;
	char	   *topic = fill(routed, route->topic);
	char	   *key = route->key == NIL ? NULL : fill(routed, route->key);

	memset(message, 0, sizeof(Message));
	check_name(routed, "topic", topic);
	message->topic = cstring_to_text(topic);
	if (key != NULL)
	{
		check_name(routed, "key", key);
		message->key = cstring_to_text(key);
	}
	message->type = cstring_to_text_with_len(routed->event->type, routed->event->type_len);
	message->payload = route->payload == NULL ? routed->event->data :
		fill_payload(routed, route->payload);
	message->headers = make_headers(routed);
}

/* What a translation has made of an event, in the place of the event. */
typedef struct Translated
{
	EventInput	event;
	StreamInput stream;
} Translated;

/* Translates an event for its route; false: it is passed over. */
static bool
translate_routed(Routed *routed, int64 id_key, Translated *outer)
{
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	pg_uuid_t	made_id;
	EventInput *event = &outer->event;

	append_recorded_values(routed->append, routed->event, id_key, &made_id, values, nulls);
	if (!translate_event(routed->route->translation, values, nulls))
		return false;
	memset(outer, 0, sizeof(Translated));
	*event = *routed->event;
	outer->stream.name = VARDATA_ANY(DatumGetPointer(values[RE_STREAM]));
	outer->stream.len = VARSIZE_ANY_EXHDR(DatumGetPointer(values[RE_STREAM]));
	event->type = VARDATA_ANY(DatumGetPointer(values[RE_TYPE]));
	event->type_len = VARSIZE_ANY_EXHDR(DatumGetPointer(values[RE_TYPE]));
	event->source = nulls[RE_SOURCE] ? NULL : VARDATA_ANY(DatumGetPointer(values[RE_SOURCE]));
	event->source_len = nulls[RE_SOURCE] ? 0 : VARSIZE_ANY_EXHDR(DatumGetPointer(values[RE_SOURCE]));
	event->data = values[RE_DATA];
	event->metadata = values[RE_METADATA];
	event->schema_version = DatumGetInt32(values[RE_SCHEMA_VERSION]);
	event->has_correlation_id = !nulls[RE_CORRELATION_ID];
	event->correlation_id = values[RE_CORRELATION_ID];
	event->has_causation_id = !nulls[RE_CAUSATION_ID];
	if (event->has_causation_id)
		event->causation_id = *DatumGetUUIDP(values[RE_CAUSATION_ID]);
	routed->event = event;
	routed->stream = &outer->stream;
	return true;
}

/* messages of one append that are made, and written, at a time */
#define MAX_MADE	1000

static void
publish_append(const AppendBatch *append)
{
	Route	   *list;
	int			count = routes(&list);
	MemoryContext context;
	MemoryContext saved;
	Message    *made;
	int			n = 0;
	int64		id_key;

	if (likely(count == 0))
		return;
	context = AllocSetContextCreate(CurrentMemoryContext, "event_store routed events",
									ALLOCSET_DEFAULT_SIZES);
	made = palloc(sizeof(Message) * MAX_MADE);
	id_key = counter_id_key();
	saved = MemoryContextSwitchTo(context);
	for (int i = 0; i < append->nevents; i++)
		for (int k = 0; k < count; k++)
		{
			Routed		routed;
			Translated	outer;

			if (!is_wanted(&list[k], append, &append->events[i]))
				continue;
			routed.route = &list[k];
			routed.append = append;
			routed.event = &append->events[i];
			routed.stream = &append->streams[routed.event->stream];
			if (routed.event->has_event_id)
				routed.event_id = routed.event->event_id;
			else
				ids_derive(&routed.event_id, routed.event->position, append->recorded_at, id_key);
			if (routed.route->translation != NULL && !translate_routed(&routed, id_key, &outer))
				continue;
			make_message(&routed, &made[n++]);
			if (n == MAX_MADE)
			{
				(void) publish_messages(made, n);
				n = 0;
				MemoryContextReset(context);
			}
		}
	if (n > 0)
		(void) publish_messages(made, n);
	MemoryContextSwitchTo(saved);
	MemoryContextDelete(context);
	pfree(made);
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

static text *
route_name(FunctionCallInfo fcinfo)
{
	text	   *name;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("name of a route must not be NULL")));
	name = PG_GETARG_TEXT_PP(0);
	input_check_name("name of a route", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	return name;
}

static void
void_lists(void)
{
	CacheInvalidateRelcacheByRelid(catalog_store()->outbox_route);
	cache.known = false;
}

Datum
event_store_route_to_outbox(PG_FUNCTION_ARGS)
{
	Oid			types[7] = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, TEXTOID, JSONBOID, TEXTOID};
	Datum		values[7];
	char		nulls[7];
	OwnerSwitch saved;
	text	   *name;
	uint64		made;

	deliver_guard("event_store.route_to_outbox()");
	name = route_name(fcinfo);
	manage_check_filter(fcinfo, 1, "categories", false);
	manage_check_filter(fcinfo, 2, "types", false);
	if (PG_ARGISNULL(3) || VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(3)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("topic must not be empty")));
	check_template("topic", parse_template("topic", text_to_cstring(PG_GETARG_TEXT_PP(3))));
	if (!PG_ARGISNULL(4))
	{
		if (VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(4)) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("key must not be empty"),
					 errhint("NULL stands for none.")));
		check_template("key", parse_template("key", text_to_cstring(PG_GETARG_TEXT_PP(4))));
	}
	if (!PG_ARGISNULL(5))
		(void) fill_payload(NULL, PG_GETARG_JSONB_P(5));
	for (int i = 0; i < lengthof(values); i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	owner_begin(&saved);
	if (!PG_ARGISNULL(6))
	{
		if (SPI_execute_with_args("SELECT FROM event_store.translation AS t WHERE t.name = $1 FOR KEY SHARE",
								  1, &types[6], &values[6], NULL, false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not look for a translation");
		if (SPI_processed == 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_NO_TRANSLATION),
					 errmsg("translation \"%s\" does not exist",
							text_to_cstring(PG_GETARG_TEXT_PP(6)))));
	}
	if (SPI_execute_with_args("INSERT INTO event_store.outbox_route"
							  " (name, categories, types, topic, key, payload, translation)"
							  " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
							  7, types, values, nulls, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write a route");
	made = SPI_processed;
	owner_end(&saved);
	if (made == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_ROUTE_EXISTS),
				 errmsg("route \"%s\" exists already", text_to_cstring(name))));
	void_lists();
	PG_RETURN_VOID();
}

Datum
event_store_drop_route(PG_FUNCTION_ARGS)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	OwnerSwitch saved;
	text	   *name;
	uint64		gone;

	deliver_guard("event_store.drop_route()");
	name = route_name(fcinfo);
	values[0] = PointerGetDatum(name);
	owner_begin(&saved);
	if (SPI_execute_with_args("DELETE FROM event_store.outbox_route AS r WHERE r.name = $1",
							  1, types, values, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not delete a route");
	gone = SPI_processed;
	owner_end(&saved);
	if (gone == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_ROUTE),
				 errmsg("route \"%s\" does not exist", text_to_cstring(name))));
	void_lists();
	PG_RETURN_VOID();
}

/* The name of a route with this translation, NULL if there is none: as of now. */
static char *
route_with(Datum translation)
{
	Relation	rel = table_open(catalog_store()->outbox_route, AccessShareLock);
	TableScanDesc scan = table_beginscan(rel, SnapshotSelf, 0, NULL);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	char	   *name = NULL;

	while (name == NULL && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, RT_TRANSLATION, &isnull);

		if (!isnull && DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID,
															value, translation)))
			name = TextDatumGetCString(slot_getattr(slot, RT_NAME, &isnull));
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	return name;
}

/*
 * Trigger: a translation stays while a route has it.  Who makes a route locks its
 * translation, so one of the two waits for the other, and sees it then.
 *
 * Not a foreign key: pg_restore with several jobs does not know of those between the
 * tables of an extension (pg_dump leaves what the data of a table depends on out of the
 * archive), and loads both at once.
 */
Datum
event_store_keep_routed_translation(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Datum		translation;
	bool		isnull;
	char	   *route;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ||
		RelationGetRelid(trigger->tg_relation) !=
		get_relname_relid("translation", catalog_store()->schema))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("event_store.keep_routed_translation() is a trigger of event_store.translation only")));

	translation = heap_getattr(trigger->tg_trigtuple, 1,
							   RelationGetDescr(trigger->tg_relation), &isnull);
	route = route_with(translation);
	if (route != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FOREIGN_KEY_VIOLATION),
				 errmsg("route \"%s\" has translation \"%s\"", route,
						TextDatumGetCString(translation)),
				 errhint("Drop the route first.")));
	return PointerGetDatum(NULL);
}

void
route_init(void)
{
	append_add_hook(publish_append);
	catalog_on_relcache(relcache_callback);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}
