/*
 * bulk.c
 *		INSERT and COPY into the view event_store.events.
 *
 * A row trigger gathers the rows, and appends them by batches: whenever
 * GATHER_ROWS or GATHER_BYTES are reached, and what is left in a trigger after
 * the statement.  A batch is cut where it would come to more than BATCH_STREAMS
 * streams, so that each new stream keeps its lock until its row is written
 * (see append.c), or to more than BATCH_ROWS rows.
 *
 * The rows stand for calls of append() in their order.  Where one statement
 * runs inside another, whichever ends first writes what both have gathered by
 * then; but each subtransaction has a buffer of its own, because rows written
 * in a subtransaction go when it is rolled back, and those of the statement
 * around it must not.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/errors.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_gather_event);
PG_FUNCTION_INFO_V1(event_store_write_gathered);

#define GATHER_ROWS		5000
#define GATHER_BYTES	(16 * 1024 * 1024)
#define BATCH_ROWS		1000
#define BATCH_STREAMS	MAX_HELD

/* columns of the view */
enum
{
	VIEW_POSITION = 1,
	VIEW_STREAM,
	VIEW_VERSION,
	VIEW_TYPE,
	VIEW_SCHEMA_VERSION,
	VIEW_EVENT_ID,
	VIEW_RECORDED_AT,
	VIEW_OCCURRED_AT,
	VIEW_SOURCE,
	VIEW_CORRELATION_ID,
	VIEW_CAUSATION_ID,
	VIEW_DATA,
	VIEW_METADATA,
	VIEW_CATEGORY,
	VIEW_NATTS = VIEW_CATEGORY
};

typedef struct GatheredRow
{
	EventInput	event;
	const char *stream;
	int			stream_len;
} GatheredRow;

typedef struct Gathered
{
	MemoryContext context;
	SubTransactionId subid;
	GatheredRow *rows;
	int			nrows;
	struct Gathered *outer;		/* of a subtransaction around this one */
} Gathered;

/* the innermost buffer, or NULL; all live in TopTransactionContext */
static Gathered *gathered = NULL;

/* ----------------------------------------------------------------
 * Writing
 * ----------------------------------------------------------------
 */

/* The number of a row's stream in the batch, or -1 if it is not there. */
static int
stream_number(const AppendBatch *append, const GatheredRow *row)
{
	for (int i = append->nstreams - 1; i >= 0; i--)
		if (append->streams[i].len == row->stream_len &&
			memcmp(append->streams[i].name, row->stream, row->stream_len) == 0)
			return i;
	return -1;
}

static void
write_batch(AppendBatch *append, MemoryContext batch_context)
{
	MemoryContext saved;

	if (append->nevents == 0)
		return;
	saved = MemoryContextSwitchTo(batch_context);
	append_write(append);
	MemoryContextSwitchTo(saved);
	MemoryContextReset(batch_context);
	append->nstreams = append->nevents = 0;
}

static void
write_gathered(void)
{
	Gathered   *mine = gathered;
	MemoryContext batch_context;
	MemoryContext saved;
	AppendBatch		append = {0};

	/*
	 * Subtransactions have rising numbers: a lower one is around this one, and
	 * its rows wait for it to go on.
	 */
	if (mine == NULL || mine->subid < GetCurrentSubTransactionId())
		return;
	/* what is gathered from here on is another buffer's */
	gathered = mine->outer;

	saved = MemoryContextSwitchTo(mine->context);
	batch_context = AllocSetContextCreate(mine->context, "event_store batch",
										  ALLOCSET_DEFAULT_SIZES);
	append.by_row = true;
	append.streams = palloc(sizeof(StreamInput) * BATCH_STREAMS);
	append.events = palloc(sizeof(EventInput) * BATCH_ROWS);
	for (int i = 0; i < mine->nrows; i++)
	{
		GatheredRow *row = &mine->rows[i];
		int			number = stream_number(&append, row);

		if (append.nevents == BATCH_ROWS ||
			(number < 0 && append.nstreams == BATCH_STREAMS))
		{
			write_batch(&append, batch_context);
			number = -1;
		}
		if (number < 0)
		{
			StreamInput *stream;

			number = append.nstreams++;
			stream = &append.streams[number];
			memset(stream, 0, sizeof(StreamInput));
			stream->name = row->stream;
			stream->len = row->stream_len;
			stream->expected_version = ANY_VERSION;
		}
		row->event.stream = number;
		append.streams[number].nevents++;
		append.events[append.nevents++] = row->event;
	}
	write_batch(&append, batch_context);
	MemoryContextSwitchTo(saved);
	MemoryContextDelete(mine->context);
}

/* ----------------------------------------------------------------
 * Gathering
 * ----------------------------------------------------------------
 */

static Gathered *
buffer(void)
{
	SubTransactionId subid = GetCurrentSubTransactionId();

	if (gathered == NULL || gathered->subid < subid)
	{
		Gathered   *made;
		MemoryContext context = AllocSetContextCreate(TopTransactionContext,
													  "event_store gathered rows",
													  ALLOCSET_DEFAULT_SIZES);

		made = MemoryContextAllocZero(context, sizeof(Gathered));
		made->context = context;
		made->subid = subid;
		made->rows = MemoryContextAlloc(context, sizeof(GatheredRow) * GATHER_ROWS);
		made->outer = gathered;
		gathered = made;
	}
	return gathered;
}

static void
given_but_ours(const char *column)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("%s is the store's to give", column),
			 errhint("Leave the column out.")));
}

/* The row's columns, checked, copied to the buffer's memory. */
static void
gather(HeapTuple tuple, TupleDesc desc)
{
	Gathered   *buf = buffer();
	GatheredRow *row = &buf->rows[buf->nrows];
	EventInput *event = &row->event;
	StreamInput stream;
	Datum		values[VIEW_NATTS];
	bool		nulls[VIEW_NATTS];
	MemoryContext saved = MemoryContextSwitchTo(buf->context);

#define VALUE(column)	values[(column) - 1]
#define GIVEN(column)	(!nulls[(column) - 1])

	heap_deform_tuple(tuple, desc, values, nulls);
	memset(row, 0, sizeof(GatheredRow));
	if (GIVEN(VIEW_POSITION))
		given_but_ours("position");
	if (GIVEN(VIEW_RECORDED_AT))
		given_but_ours("recorded_at");
	input_stream_name(&stream, GIVEN(VIEW_STREAM) ?
					  DatumGetTextPCopy(VALUE(VIEW_STREAM)) : NULL);
	row->stream = stream.name;
	row->stream_len = stream.len;
	input_type(event, GIVEN(VIEW_TYPE) ? DatumGetTextPCopy(VALUE(VIEW_TYPE)) : NULL);
	if (!GIVEN(VIEW_DATA))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("data must not be NULL"),
				 errhint("JSON null is a value: 'null'.")));
	event->data = PointerGetDatum(DatumGetJsonbPCopy(VALUE(VIEW_DATA)));
	if (GIVEN(VIEW_METADATA))
		event->metadata = PointerGetDatum(DatumGetJsonbPCopy(VALUE(VIEW_METADATA)));
	else
		event->metadata = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	input_metadata(DatumGetJsonbP(event->metadata));
	if (GIVEN(VIEW_VERSION))
	{
		event->wanted_version = DatumGetInt32(VALUE(VIEW_VERSION));
		if (event->wanted_version < 1)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("version %d is not positive", event->wanted_version)));
	}
	event->schema_version = GIVEN(VIEW_SCHEMA_VERSION) ?
		DatumGetInt32(VALUE(VIEW_SCHEMA_VERSION)) : 1;
	input_schema_version(event->schema_version);
	if (GIVEN(VIEW_EVENT_ID))
	{
		event->event_id = *DatumGetUUIDP(VALUE(VIEW_EVENT_ID));
		event->has_event_id = true;
	}
	if (GIVEN(VIEW_OCCURRED_AT))
	{
		event->occurred_at = DatumGetTimestampTz(VALUE(VIEW_OCCURRED_AT));
		input_occurred_at(event->occurred_at);
		event->has_occurred_at = true;
	}
	if (GIVEN(VIEW_SOURCE))
		input_source(event, DatumGetTextPCopy(VALUE(VIEW_SOURCE)));
	if (GIVEN(VIEW_CORRELATION_ID))
		input_correlation_id(event, DatumGetTextPCopy(VALUE(VIEW_CORRELATION_ID)));
	if (GIVEN(VIEW_CAUSATION_ID))
	{
		event->causation_id = *DatumGetUUIDP(VALUE(VIEW_CAUSATION_ID));
		event->has_causation_id = true;
	}
	if (GIVEN(VIEW_CATEGORY))
	{
		text	   *category = DatumGetTextPP(VALUE(VIEW_CATEGORY));
		int			len = VARSIZE_ANY_EXHDR(category);
		int			own_len = input_category_length(row->stream, row->stream_len);

		if (len != own_len || memcmp(VARDATA_ANY(category), row->stream, len) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("category \"%s\" does not follow from stream \"%s\"",
							text_to_cstring(category),
							pnstrdup(row->stream, row->stream_len)),
					 errhint("Leave the column out.")));
	}
	buf->nrows++;
	MemoryContextSwitchTo(saved);

#undef VALUE
#undef GIVEN
}

Datum
event_store_gather_event(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_INSTEAD(trigger->tg_event) ||
		RelationGetRelid(trigger->tg_relation) != catalog_store()->events_view)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("event_store.gather_event() is a trigger of the view event_store.events only")));
	if (!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		return event_store_refuse_change(fcinfo);
	if (!catalog_has_shape(RelationGetDescr(trigger->tg_relation), SHAPE_VIEW))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("the columns of \"event_store.events\" are not as the extension made them")));

	gather(trigger->tg_trigtuple, RelationGetDescr(trigger->tg_relation));
	if (gathered->nrows == GATHER_ROWS ||
		MemoryContextMemAllocated(gathered->context, false) > GATHER_BYTES)
		write_gathered();
	return PointerGetDatum(trigger->tg_trigtuple);
}

Datum
event_store_write_gathered(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("event_store.write_gathered() is a trigger of the view event_store.events only")));
	write_gathered();
	return PointerGetDatum(NULL);
}

/* ----------------------------------------------------------------
 * What is rolled back is not written
 * ----------------------------------------------------------------
 */

static void
xact_callback(XactEvent event, void *arg)
{
	/* the trigger after each statement has written all; nothing may be lost */
	if ((event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PRE_PREPARE) &&
		gathered != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("rows inserted into event_store.events have not been appended"),
				 errhint("Enable the trigger \"write_gathered\" of the view.")));
	/* the memory goes with the transaction's */
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		gathered = NULL;
}

static void
subxact_callback(SubXactEvent event, SubTransactionId my_subid,
				 SubTransactionId parent_subid, void *arg)
{
	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	/* higher numbers are of subtransactions inside of this one */
	while (gathered != NULL && gathered->subid >= my_subid)
	{
		Gathered   *gone = gathered;

		gathered = gone->outer;
		MemoryContextDelete(gone->context);
	}
}

void
bulk_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
