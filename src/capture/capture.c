/*
 * capture.c
 *		The trigger function that makes events of changes.
 *
 * On each firing it finds out what is to be captured (define.c), and whether
 * the table's owner may append; makes an event of each row (value.c); and
 * appends them as append() would, with any expected version.  A trigger for
 * each row appends its event at once, so what comes later in the statement can
 * read it.  A trigger for each statement goes through the transition tables and
 * appends by batches.
 *
 * Nobody else can be writing a row that this transaction has changed, so where
 * the key is unique and only the table's triggers write to its streams, nobody
 * waits here for anyone that he would not have waited for already.
 *
 * Pairs of rows.  For each row that an UPDATE changes PostgreSQL puts the old
 * one and the new one into the transition tables, in this order; so the n-th of
 * one belongs to the n-th of the other.  Only a row that moves to another
 * partition, and is there turned down by a trigger, leaves an old row without a
 * new one.  Then there are fewer new rows than old ones, and rows belong
 * together if they follow each other and have the same key.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

#include "capture/capture.h"
#include "common/compat.h"
#include "common/errors.h"

PG_FUNCTION_INFO_V1(event_store_capture_changes);
PG_FUNCTION_INFO_V1(event_store_check_capture);

#define BATCH_EVENTS	256
#define BATCH_BYTES		(16 * 1024 * 1024)
#define BATCH_HASH		1024	/* power of two, above BATCH_EVENTS */

/* Events that are appended together. */
typedef struct CaptureBatch
{
	const Capture *capture;
	Jsonb	   *metadata;
	AppendBatch append;
	int			max_events;
	int			max_streams;
	MemoryContext context;		/* of the events; NULL: of a single row's */
	int16	   *numbers;		/* of streams, by hash; NULL: none */
} CaptureBatch;

/* ----------------------------------------------------------------
 * Batches
 * ----------------------------------------------------------------
 */

/*
 * How many streams the next batch may have: so many that, with as many new ones
 * among them as in this batch, no more than MAX_HELD are new.  What is beyond
 * that costs a row that is written twice, and a position: see append.c.
 */
static int
next_max_streams(const AppendBatch *append)
{
	int			nnew = 0;

	for (int i = 0; i < append->nstreams; i++)
		if (append->streams[i].first_version == 1)
			nnew++;
	return nnew == 0 ? BATCH_EVENTS :
		Min(BATCH_EVENTS, MAX_HELD * append->nstreams / nnew);
}

static void
flush_batch(CaptureBatch *batch)
{
	if (batch->append.nevents == 0)
		return;
	append_write(&batch->append);
	if (batch->context != NULL)
		batch->max_streams = next_max_streams(&batch->append);
	batch->append.nevents = batch->append.nstreams = 0;
	if (batch->context == NULL)
		return;
	MemoryContextReset(batch->context);
	memset(batch->numbers, -1, sizeof(int16) * BATCH_HASH);
}

/* The number of a stream in the batch, which has room for one more. */
static int
stream_number(CaptureBatch *batch, const char *name, int len)
{
	AppendBatch *append = &batch->append;
	StreamInput *stream;
	int			place = 0;

	if (batch->numbers == NULL)
	{
		for (int i = 0; i < append->nstreams; i++)
			if (append->streams[i].len == len &&
				memcmp(append->streams[i].name, name, len) == 0)
				return i;
	}
	else
	{
		place = hash_bytes((const unsigned char *) name, len) & (BATCH_HASH - 1);
		for (int i; (i = batch->numbers[place]) >= 0; place = (place + 1) & (BATCH_HASH - 1))
			if (append->streams[i].len == len &&
				memcmp(append->streams[i].name, name, len) == 0)
				return i;
		batch->numbers[place] = append->nstreams;
	}
	stream = &append->streams[append->nstreams];
	memset(stream, 0, sizeof(StreamInput));
	stream->name = name;
	stream->len = len;
	stream->expected_version = ANY_VERSION;
	return append->nstreams++;
}

static void
add_event(CaptureBatch *batch, CaptureOp op, const char *stream, int len, Jsonb *data)
{
	const Capture *capture = batch->capture;
	AppendBatch *append = &batch->append;
	EventInput *event = &append->events[append->nevents++];

	memset(event, 0, sizeof(EventInput));
	event->stream = stream_number(batch, stream, len);
	append->streams[event->stream].nevents++;
	event->type = capture->types[op];
	event->type_len = strlen(event->type);
	event->source = capture->source;
	if (event->source != NULL)
		event->source_len = strlen(event->source);
	event->data = PointerGetDatum(data);
	event->metadata = PointerGetDatum(batch->metadata);
	event->schema_version = 1;
}

/* ----------------------------------------------------------------
 * Rows
 * ----------------------------------------------------------------
 */

/* The events of a row: one, two if its key has changed, or none. */
static void
add_row(CaptureBatch *batch, TupleTableSlot *old, TupleTableSlot *new)
{
	const Capture *capture = batch->capture;
	const char *old_stream = NULL;
	const char *new_stream = NULL;
	int			old_len = 0;
	int			new_len = 0;
	Jsonb	   *data;

	if (batch->append.nevents + 2 > batch->max_events ||
		batch->append.nstreams + 2 > batch->max_streams ||
		(batch->context != NULL &&
		 MemoryContextMemAllocated(batch->context, true) > BATCH_BYTES))
		flush_batch(batch);

	if (new != NULL)
		new_stream = value_stream(capture, new, &new_len);
	if (old != NULL && (new == NULL || !value_same_key(capture, old, new)))
	{
		old_stream = value_stream(capture, old, &old_len);
		if (old_len == new_len && memcmp(old_stream, new_stream, new_len) == 0)
			old_stream = NULL;
	}

	if (old != NULL && new != NULL && old_stream == NULL)
	{
		data = value_data(capture, CAPTURE_UPDATE, old, new, NULL, 0);
		if (data != NULL)
			add_event(batch, CAPTURE_UPDATE, new_stream, new_len, data);
		return;
	}
	if (old != NULL)
	{
		data = value_data(capture, CAPTURE_DELETE, old, NULL, new_stream, new_len);
		add_event(batch, CAPTURE_DELETE, old_stream, old_len, data);
	}
	if (new != NULL)
	{
		data = value_data(capture, CAPTURE_INSERT, NULL, new, old_stream, old_len);
		add_event(batch, CAPTURE_INSERT, new_stream, new_len, data);
	}
}

/* AFTER … FOR EACH ROW, and TRUNCATE: two events at the most. */
static void
capture_one(const Capture *capture, TriggerData *trigger, Jsonb *metadata)
{
	StreamInput streams[2];
	EventInput	events[2];
	CaptureBatch batch = {0};

	batch.capture = capture;
	batch.metadata = metadata;
	batch.append.streams = streams;
	batch.append.events = events;
	batch.max_events = batch.max_streams = 2;
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		add_event(&batch, CAPTURE_TRUNCATE, capture->category, capture->category_len,
				  value_data(capture, CAPTURE_TRUNCATE, NULL, NULL, NULL, 0));
	else
	{
		TupleTableSlot *first = trigger->tg_trigslot;
		TupleTableSlot *second = NULL;

		slot_getallattrs(first);
		if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		{
			second = trigger->tg_newslot;
			slot_getallattrs(second);
			add_row(&batch, first, second);
		}
		else if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
			add_row(&batch, NULL, first);
		else
			add_row(&batch, first, NULL);
	}
	flush_batch(&batch);
}

/* ----------------------------------------------------------------
 * Transition tables
 * ----------------------------------------------------------------
 */

typedef struct RowReader
{
	Tuplestorestate *store;		/* NULL: there is none */
	int			pointer;
	TupleTableSlot *slot;
} RowReader;

/* Other triggers may read the same table, each with a place of his own. */
static void
open_rows(RowReader *reader, Tuplestorestate *store, TupleDesc desc)
{
	reader->store = store;
	if (store == NULL)
		return;
	reader->pointer = tuplestore_alloc_read_pointer(store, EXEC_FLAG_REWIND);
	tuplestore_select_read_pointer(store, reader->pointer);
	tuplestore_rescan(store);
	reader->slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
}

/* The next row, or NULL. */
static TupleTableSlot *
next_row(RowReader *reader)
{
	if (reader->store == NULL)
		return NULL;
	tuplestore_select_read_pointer(reader->store, reader->pointer);
	if (!tuplestore_gettupleslot(reader->store, true, false, reader->slot))
		return NULL;
	slot_getallattrs(reader->slot);
	return reader->slot;
}

static void
close_rows(RowReader *reader)
{
	if (reader->store != NULL)
		ExecDropSingleTupleTableSlot(reader->slot);
}

static bool
same_stream(const Capture *capture, TupleTableSlot *old, TupleTableSlot *new)
{
	const char *old_stream;
	const char *new_stream;
	int			old_len;
	int			new_len;

	if (value_same_key(capture, old, new))
		return true;
	old_stream = value_stream(capture, old, &old_len);
	new_stream = value_stream(capture, new, &new_len);
	return old_len == new_len && memcmp(old_stream, new_stream, new_len) == 0;
}

/* Adds all rows of the transition tables; see the head of the file. */
static void
add_rows(CaptureBatch *batch, TriggerData *trigger)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	bool		update = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event);
	RowReader	old_rows;
	RowReader	new_rows;
	TupleTableSlot *old;
	TupleTableSlot *new;
	bool		aligned;

	open_rows(&old_rows, trigger->tg_oldtable, desc);
	open_rows(&new_rows, trigger->tg_newtable, desc);
	aligned = !update || tuplestore_tuple_count(trigger->tg_oldtable) ==
		tuplestore_tuple_count(trigger->tg_newtable);
	new = next_row(&new_rows);
	while ((old = next_row(&old_rows)) != NULL)
	{
		MemoryContext saved = MemoryContextSwitchTo(batch->context);

		CHECK_FOR_INTERRUPTS();
		if (new != NULL && (aligned || same_stream(batch->capture, old, new)))
		{
			add_row(batch, old, new);
			MemoryContextSwitchTo(saved);
			new = next_row(&new_rows);
		}
		else
		{
			add_row(batch, old, NULL);
			MemoryContextSwitchTo(saved);
		}
	}
	for (; new != NULL; new = next_row(&new_rows))
	{
		MemoryContext saved = MemoryContextSwitchTo(batch->context);

		CHECK_FOR_INTERRUPTS();
		add_row(batch, NULL, new);
		MemoryContextSwitchTo(saved);
	}
	close_rows(&old_rows);
	close_rows(&new_rows);
}

static void
capture_all(const Capture *capture, TriggerData *trigger, Jsonb *metadata)
{
	CaptureBatch batch = {0};
	MemoryContext saved;

	batch.capture = capture;
	batch.metadata = metadata;
	batch.append.streams = palloc(sizeof(StreamInput) * BATCH_EVENTS);
	batch.append.events = palloc(sizeof(EventInput) * BATCH_EVENTS);
	batch.max_events = BATCH_EVENTS;
	batch.max_streams = MAX_HELD;
	batch.numbers = palloc(sizeof(int16) * BATCH_HASH);
	memset(batch.numbers, -1, sizeof(int16) * BATCH_HASH);
	/* blocks small enough that malloc() does not give them back at each batch's end */
	batch.context = AllocSetContextCreate(CurrentMemoryContext, "event_store captured rows",
										  ALLOCSET_DEFAULT_MINSIZE, ALLOCSET_DEFAULT_INITSIZE,
										  64 * 1024);
	add_rows(&batch, trigger);
	saved = MemoryContextSwitchTo(batch.context);
	flush_batch(&batch);
	MemoryContextSwitchTo(saved);
	MemoryContextDelete(batch.context);
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

static void
require_owners_right(const Capture *capture)
{
	if (define_may_append(capture))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("the owner of table \"%s\" may not append events", get_rel_name(capture->root)),
			 errdetail("Changes are captured with the rights of the table's owner, role \"%s\".",
					   GetUserNameFromId(capture->owner, false)),
			 errhint("Grant INSERT on event_store.events to that role, or drop the trigger.")));
}

/* which trigger an error came of: nothing in the statement tells */
typedef struct Place
{
	const char *trigger;
	const char *relation;
} Place;

static void
error_context(void *arg)
{
	Place	   *place = arg;

	errcontext("trigger \"%s\" of table \"%s\"", place->trigger, place->relation);
}

static void
push_context(ErrorContextCallback *callback, Place *place, Relation rel)
{
	place->relation = RelationGetRelationName(rel);
	callback->callback = error_context;
	callback->arg = place;
	callback->previous = error_context_stack;
	error_context_stack = callback;
}

Datum
event_store_capture_changes(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const Capture *capture;
	Jsonb	   *metadata;
	Place		place;
	ErrorContextCallback callback;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("event_store.capture_changes() is a trigger function")));
	place.trigger = trigger->tg_trigger->tgname;
	push_context(&callback, &place, trigger->tg_relation);
	capture = define_capture(trigger->tg_relation, trigger->tg_trigger);
	PreventCommandIfReadOnly("event_store.capture_changes()");
	PreventCommandIfParallelMode("event_store.capture_changes()");
	require_owners_right(capture);
	metadata = capture->constant_metadata != NULL ?
		capture->constant_metadata : value_metadata(capture);
	if (capture->for_rows || TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		capture_one(capture, trigger, metadata);
	else
		capture_all(capture, trigger, metadata);
	error_context_stack = callback.previous;
	return PointerGetDatum(NULL);
}

static Datum
text_array(const char **elements, int count)
{
	Datum	   *datums = palloc(sizeof(Datum) * Max(count, 1));

	for (int i = 0; i < count; i++)
		datums[i] = CStringGetTextDatum(elements[i]);
	return PointerGetDatum(construct_array(datums, count, TEXTOID, -1, false, TYPALIGN_INT));
}

static void
put_capture(ReturnSetInfo *result, const Trigger *trigger, const Capture *capture)
{
	const char **names = palloc(sizeof(char *) * (capture->ncolumns + capture->nkeys + CAPTURE_OPS));
	Datum		values[9];
	bool		nulls[9] = {0};
	int			n;

	values[0] = CStringGetTextDatum(trigger->tgname);
	values[1] = CStringGetTextDatum(capture->for_rows ? "row" : "statement");
	n = 0;
	if (TRIGGER_FOR_INSERT(trigger->tgtype))
		names[n++] = capture->types[CAPTURE_INSERT];
	if (TRIGGER_FOR_UPDATE(trigger->tgtype))
		names[n++] = capture->types[CAPTURE_UPDATE];
	if (TRIGGER_FOR_DELETE(trigger->tgtype))
		names[n++] = capture->types[CAPTURE_DELETE];
	if (TRIGGER_FOR_TRUNCATE(trigger->tgtype))
		names[n++] = capture->types[CAPTURE_TRUNCATE];
	values[2] = text_array(names, n);
	values[3] = CStringGetTextDatum(capture->category);
	for (n = 0; n < capture->nkeys; n++)
		names[n] = capture->keys[n].name;
	values[4] = text_array(names, n);
	for (n = 0; n < capture->ncolumns; n++)
		names[n] = capture->columns[n].name;
	values[5] = text_array(names, n);
	n = 0;
	for (int i = 0; i < capture->ncolumns; i++)
		if (capture->columns[i].masked)
			names[n++] = capture->columns[i].name;
	values[6] = text_array(names, n);
	values[7] = CStringGetTextDatum(GetUserNameFromId(capture->owner, false));
	values[8] = BoolGetDatum(define_may_append(capture));
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

Datum
event_store_check_capture(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			function;
	Relation	rel;
	TriggerDesc *triggers;
	Place		place;
	ErrorContextCallback callback;
	List	   *name = list_make2(makeString("event_store"), makeString("capture_changes"));

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("relation must not be NULL")));
	InitMaterializedSRF(fcinfo, 0);
	function = LookupFuncName(name, 0, NULL, false);
	rel = table_open(PG_GETARG_OID(0), AccessShareLock);
	triggers = rel->trigdesc;
	push_context(&callback, &place, rel);
	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		place.trigger = trigger->tgname;
		if (trigger->tgfoid == function)
			put_capture(result, trigger, define_capture(rel, trigger));
	}
	error_context_stack = callback.previous;
	table_close(rel, AccessShareLock);
	return (Datum) 0;
}
