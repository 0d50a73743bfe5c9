/*
 * inline.c
 *		Inline projections: applied in the transaction that appends.
 *
 * The hook of appends gives each inline projection the events of its filter, as
 * they have just been written.  An error aborts the append, and its context names
 * the projection.  A handler may append itself; then the hook is called for that,
 * before it goes on.
 *
 * Events of a stream come in their order, since an appender has the stream locked to
 * the end of its transaction.  The events of different streams come in the order
 * of the appends, not in that of positions.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/errors.h"
#include "common/ids.h"
#include "position/position.h"
#include "projection/projection.h"

/* appends of handlers inside of each other */
#define MAX_DEPTH	32

/* the events of an append that a projection wants */
typedef struct AppendSource
{
	EventSource source;
	const AppendBatch *append;
	const Projection *projection;
	int			first;			/* of the batch */
	int			next;
	MemoryContext context;		/* of the event handed out last */
	int64		id_key;
	pg_uuid_t	made_id;
} AppendSource;

static int	depth = 0;

static bool
is_among(const NameList *list, const char *name, int len)
{
	for (int i = 0; i < list->count; i++)
		if (VARSIZE_ANY_EXHDR(list->names[i]) == len &&
			memcmp(VARDATA_ANY(list->names[i]), name, len) == 0)
			return true;
	return false;
}

static bool
is_wanted(const Projection *projection, const AppendBatch *append, const EventInput *event)
{
	const StreamInput *stream = &append->streams[event->stream];

	return !event->duplicate &&
		(!projection->by_type || is_among(&projection->types, event->type, event->type_len)) &&
		(!projection->by_category ||
		 is_among(&projection->categories, stream->name,
				  input_category_length(stream->name, stream->len)));
}

static bool
next_appended(EventSource *source, Datum *values, bool *nulls)
{
	AppendSource *own = (AppendSource *) source;
	const AppendBatch *append = own->append;

	MemoryContextReset(own->context);
	while (own->next < append->nevents)
	{
		EventInput *event = &append->events[own->next++];
		const StreamInput *stream = &append->streams[event->stream];
		MemoryContext saved;

		if (!is_wanted(own->projection, append, event))
			continue;
		saved = MemoryContextSwitchTo(own->context);
		memset(nulls, false, sizeof(bool) * RE_NATTS);
		values[RE_POSITION] = Int64GetDatum(event->position);
		values[RE_STREAM] = PointerGetDatum(cstring_to_text_with_len(stream->name, stream->len));
		values[RE_VERSION] = Int32GetDatum(event->version);
		values[RE_TYPE] = PointerGetDatum(cstring_to_text_with_len(event->type, event->type_len));
		values[RE_SCHEMA_VERSION] = Int32GetDatum(event->schema_version);
		if (event->has_event_id)
			own->made_id = event->event_id;
		else
			ids_derive(&own->made_id, event->position, append->recorded_at, own->id_key);
		values[RE_EVENT_ID] = UUIDPGetDatum(&own->made_id);
		values[RE_RECORDED_AT] = TimestampTzGetDatum(append->recorded_at);
		values[RE_OCCURRED_AT] = TimestampTzGetDatum(event->has_occurred_at ? event->occurred_at :
													 append->recorded_at);
		nulls[RE_SOURCE] = event->source == NULL;
		if (event->source != NULL)
			values[RE_SOURCE] = PointerGetDatum(cstring_to_text_with_len(event->source,
																		 event->source_len));
		nulls[RE_CORRELATION_ID] = !event->has_correlation_id;
		values[RE_CORRELATION_ID] = event->correlation_id;
		nulls[RE_CAUSATION_ID] = !event->has_causation_id;
		values[RE_CAUSATION_ID] = UUIDPGetDatum(&event->causation_id);
		values[RE_DATA] = event->data;
		values[RE_METADATA] = event->metadata;
		MemoryContextSwitchTo(saved);
		return true;
	}
	return false;
}

static void
rewind_appended(EventSource *source)
{
	AppendSource *own = (AppendSource *) source;

	own->next = own->first;
}

static bool
any_wanted(const Projection *projection, const AppendBatch *append)
{
	for (int i = 0; i < append->nevents; i++)
		if (is_wanted(projection, append, &append->events[i]))
			return true;
	return false;
}

static void
apply_one(const Projection *projection, const AppendBatch *append)
{
	AppendSource own = {{0}};
	Applied		applied = {0};

	own.source.next = next_appended;
	own.source.rewind = rewind_appended;
	own.append = append;
	own.projection = projection;
	own.id_key = counter_id_key();
	own.context = AllocSetContextCreate(CurrentMemoryContext, "event_store appended event",
										ALLOCSET_SMALL_SIZES);
	do
	{
		own.first = own.next;
		apply_batch(projection, &own.source, PG_INT64_MAX, &applied);
	} while (!applied.ended);
	MemoryContextDelete(own.context);
}

/*
 * The list of inline projections may be built anew while a handler runs, so what is
 * worked on is a copy.
 */
static void
apply_inline(const AppendBatch *append)
{
	int			count;
	Projection *list = projection_inline_list(&count);
	Projection *wanted;
	int			n = 0;

	if (likely(count == 0))
		return;
	wanted = palloc(sizeof(Projection) * count);
	for (int i = 0; i < count; i++)
		if (any_wanted(&list[i], append))
			projection_copy(&wanted[n++], &list[i]);
	if (depth >= MAX_DEPTH && n > 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_FAILED),
				 errmsg("handlers of inline projections append events inside of each other without an end"),
				 errdetail("The limit is %d.", MAX_DEPTH)));
	depth++;
	PG_TRY();
	{
		for (int i = 0; i < n; i++)
			apply_one(&wanted[i], append);
	}
	PG_FINALLY();
	{
		depth--;
	}
	PG_END_TRY();
	pfree(wanted);
}

void
inline_init(void)
{
	append_add_hook(apply_inline);
}
