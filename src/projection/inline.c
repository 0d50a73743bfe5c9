/*
 * inline.c
 *		Inline projections: applied in the transaction that appends.
 *
 * The hook of appends gives each inline projection the events of its filter, as
 * they have just been written.  An error aborts the append, and its context names
 * the projection.
 *
 * A handler may append itself.  What it appends is applied when all projections have
 * had what came before, still within the first append: applied at once it
 * would come to the others, and to the rest of the handler's own batch, before
 * earlier events of the same stream.
 *
 * Events of a stream come in their order, since an appender has the stream locked to
 * the end of its transaction.  The events of different streams come in the order
 * of the appends, not in that of positions.
 */
#include "postgres.h"

#include "access/xact.h"
#include "nodes/pg_list.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/errors.h"
#include "common/ids.h"
#include "position/position.h"
#include "projection/projection.h"
#include "subscription/subscription.h"

/* appends of handlers that follow from each other */
#define MAX_GENERATIONS	32

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

/* an append of a handler */
typedef struct Queued
{
	AppendBatch *append;		/* NULL: it was rolled back */
	SubTransactionId subtransaction;	/* that it was made in */
	int			generation;		/* 1: its handler had what was appended first */
} Queued;

/* while an append is applied: those that its handlers have made */
static struct
{
	bool		working;
	int			generation;		/* of what is being applied */
	List	   *entries;
	MemoryContext context;
}			queue;

static bool
is_wanted(const Projection *projection, const AppendBatch *append, const EventInput *event)
{
	const StreamInput *stream = &append->streams[event->stream];

	return !event->duplicate &&
		(!projection->by_type || values_has_name(&projection->types, event->type, event->type_len)) &&
		(!projection->by_category ||
		 values_has_name(&projection->categories, stream->name,
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
		MemoryContext saved;

		if (!is_wanted(own->projection, append, event))
			continue;
		saved = MemoryContextSwitchTo(own->context);
		append_recorded_values(append, event, own->id_key, &own->made_id, values, nulls);
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

/* Applies an append to all that want it. */
static void
apply_to_all(const AppendBatch *append)
{
	int			count;
	Projection *list = projection_inline_list(&count);
	Projection *wanted = palloc(sizeof(Projection) * Max(count, 1));
	int			n = 0;

	/* the list may be built anew while a handler runs */
	for (int i = 0; i < count; i++)
		if (any_wanted(&list[i], append))
			projection_copy(&wanted[n++], &list[i]);
	for (int i = 0; i < n; i++)
		apply_one(&wanted[i], append);
	pfree(wanted);
}

/* A copy of an append, as far as projections read it. */
static AppendBatch *
copy_append(const AppendBatch *append)
{
	AppendBatch *copy = palloc0(sizeof(AppendBatch));

	copy->recorded_at = append->recorded_at;
	copy->nstreams = append->nstreams;
	copy->streams = palloc0(sizeof(StreamInput) * Max(append->nstreams, 1));
	for (int i = 0; i < append->nstreams; i++)
	{
		copy->streams[i].len = append->streams[i].len;
		copy->streams[i].name = pnstrdup(append->streams[i].name, append->streams[i].len);
	}
	copy->nevents = append->nevents;
	copy->events = palloc(sizeof(EventInput) * Max(append->nevents, 1));
	memcpy(copy->events, append->events, sizeof(EventInput) * append->nevents);
	for (int i = 0; i < append->nevents; i++)
	{
		EventInput *event = &copy->events[i];

		event->type = pnstrdup(event->type, event->type_len);
		if (event->source != NULL)
			event->source = pnstrdup(event->source, event->source_len);
		event->data = datumCopy(event->data, false, -1);
		event->metadata = datumCopy(event->metadata, false, -1);
		if (event->has_correlation_id)
			event->correlation_id = datumCopy(event->correlation_id, false, -1);
	}
	return copy;
}

/* Puts an append of a handler behind those that are waiting already. */
static void
put_in_queue(const AppendBatch *append)
{
	MemoryContext saved;
	Queued	   *entry;

	if (queue.generation >= MAX_GENERATIONS)
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_FAILED),
				 errmsg("handlers of inline projections append events for each other without an end"),
				 errdetail("The limit is %d.", MAX_GENERATIONS)));
	saved = MemoryContextSwitchTo(queue.context);
	entry = palloc(sizeof(Queued));
	entry->append = copy_append(append);
	entry->subtransaction = GetCurrentSubTransactionId();
	entry->generation = queue.generation + 1;
	queue.entries = lappend(queue.entries, entry);
	MemoryContextSwitchTo(saved);
}

/* What a handler has taken back is not applied. */
static void
subtransaction_ended(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg)
{
	ListCell   *cell;

	if (event != SUBXACT_EVENT_ABORT_SUB || !queue.working)
		return;
	foreach(cell, queue.entries)
	{
		Queued	   *entry = lfirst(cell);

		/* of it, or of one within it, which is younger and may have ended */
		if (entry->subtransaction >= id)
			entry->append = NULL;
	}
}

static bool
is_wanted_by_any(const AppendBatch *append)
{
	int			count;
	Projection *list = projection_inline_list(&count);

	for (int i = 0; i < count; i++)
		if (any_wanted(&list[i], append))
			return true;
	return false;
}

static void
apply_inline(const AppendBatch *append)
{
	if (likely(!is_wanted_by_any(append)))
		return;
	if (queue.working)
	{
		put_in_queue(append);
		return;
	}
	queue.working = true;
	queue.generation = 0;
	queue.entries = NIL;
	queue.context = AllocSetContextCreate(CurrentMemoryContext, "event_store appends of handlers",
										  ALLOCSET_SMALL_SIZES);
	PG_TRY();
	{
		apply_to_all(append);
		/* it grows meanwhile */
		for (int i = 0; i < list_length(queue.entries); i++)
		{
			Queued	   *entry = list_nth(queue.entries, i);

			if (entry->append == NULL)
				continue;
			queue.generation = entry->generation;
			apply_to_all(entry->append);
		}
	}
	PG_FINALLY();
	{
		queue.working = false;
		queue.entries = NIL;
	}
	PG_END_TRY();
	MemoryContextDelete(queue.context);
}

void
inline_init(void)
{
	append_add_hook(apply_inline);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}
