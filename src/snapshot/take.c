/*
 * take.c
 *		take_snapshots(): what the worker does by policy, and anybody else may.
 *
 * For each policy, unless somebody else is at it:
 *
 * 1. snapshots of other schema versions are removed, if the policy has changed;
 * 2. events are read from its checkpoint on, at most so many, to the settled mark;
 *	  streams that have every_events behind their newest snapshot are noted as
 *	  due at once, others, where the policy says a time, as due so long after the
 *	  first event that it does not have was recorded;
 * 3. streams that are due are folded, and saved, while the budget of events lasts.
 *
 * The checkpoint moves on with the notes, so a stream that is not folded this time
 * is the next.  A stream that is longer than the budget is saved where it ends,
 * and goes on from there.
 *
 * Each stream has a subtransaction of its own: an error is written down, and the
 * stream is tried again later, twice as much later each time.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/errors.h"
#include "common/plans.h"
#include "snapshot/snapshot.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_take_snapshots);

/* due streams that are looked up at once */
#define DUE_STREAMS		1000

/* what a stream costs beside its events, in events */
#define STREAM_COST		10

static Statement list_policies = {
	"SELECT p.fold FROM event_store.snapshot_policy AS p ORDER BY p.fold"
};

static Statement read_policy = {
	"SELECT p.schema_version, p.every_events, p.keep, extract(epoch FROM p.every)::float8,"
	" p.categories, g.checkpoint, g.sweep_after"
	" FROM event_store.snapshot_policy AS p"
	" JOIN event_store.snapshot_progress AS g ON g.fold = p.fold"
	" WHERE p.fold = $1",
	1, {TEXTOID}
};

static Statement note_streams = {
	"INSERT INTO event_store.snapshot_pending AS n (fold, stream_id, due_at)"
	" SELECT $1, u.stream_id, u.due_at FROM unnest($2, $3) AS u (stream_id, due_at)"
	" ON CONFLICT (fold, stream_id) DO UPDATE SET due_at = excluded.due_at"
	" WHERE excluded.due_at < n.due_at AND n.attempts = 0",
	3, {TEXTOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID}
};

static Statement set_checkpoint = {
	"UPDATE event_store.snapshot_progress AS g SET checkpoint = $2 WHERE g.fold = $1",
	2, {TEXTOID, INT8OID}
};

static Statement set_sweep = {
	"UPDATE event_store.snapshot_progress AS g SET sweep_after = $2 WHERE g.fold = $1",
	2, {TEXTOID, INT8OID}
};

static Statement list_due = {
	"SELECT s.name FROM event_store.snapshot_pending AS n"
	" JOIN event_store.stream AS s ON s.id = n.stream_id"
	" WHERE n.fold = $1 AND n.due_at <= $2 ORDER BY n.due_at, n.stream_id LIMIT $3",
	3, {TEXTOID, TIMESTAMPTZOID, INT8OID}
};

static Statement forget_stream = {
	"DELETE FROM event_store.snapshot_pending AS n WHERE n.fold = $1"
	" AND n.stream_id = (SELECT s.id FROM event_store.stream AS s WHERE s.name = $2)",
	2, {TEXTOID, TEXTOID}
};

static Statement delay_stream = {
	"UPDATE event_store.snapshot_pending AS n SET attempts = n.attempts + 1,"
	" due_at = pg_catalog.clock_timestamp() +"
	" least(interval '1 minute' * 2 ^ least(n.attempts, 12), interval '1 day')"
	" WHERE n.fold = $1"
	" AND n.stream_id = (SELECT s.id FROM event_store.stream AS s WHERE s.name = $2)",
	2, {TEXTOID, TEXTOID}
};

static Statement count_taken = {
	"UPDATE event_store.snapshot_progress AS g SET taken = g.taken + $2,"
	" taken_at = pg_catalog.clock_timestamp() WHERE g.fold = $1",
	2, {TEXTOID, INT8OID}
};

static Statement count_failure = {
	"UPDATE event_store.snapshot_progress AS g SET failures = g.failures + 1,"
	" last_failed_at = pg_catalog.clock_timestamp(), last_failed_stream = $2, last_error = $3"
	" WHERE g.fold = $1",
	3, {TEXTOID, TEXTOID, TEXTOID}
};

/* a policy that is worked on */
typedef struct Work
{
	MemoryContext context;
	text	   *fold_name;
	SnapshotPolicy policy;
	bool		has_every;
	double		every;			/* seconds */
	int64		checkpoint;
	int64		sweep_after;	/* -1: nothing to remove */
	MemoryContext fold_context;
	Fold	   *fold;			/* NULL: not open */
} Work;

/* a stream that has new events */
typedef struct Touched
{
	int64		stream_id;
	int32		first_version;	/* of those that were read */
	int32		version;		/* of the last */
	TimestampTz first_at;		/* when they were recorded */
	TimestampTz at;
} Touched;

static uint64
run(Statement *statement, Datum *values, const char *nulls)
{
	int			guc_level = plans_connect();
	uint64		count = plans_execute(statement, values, nulls);

	plans_finish(guc_level);
	return count;
}

/* The texts in the first column of what a statement gives. */
static text **
run_list(Statement *statement, Datum *values, int *count)
{
	MemoryContext context = CurrentMemoryContext;
	int			guc_level = plans_connect();
	text	  **list;

	*count = (int) plans_execute(statement, values, NULL);
	list = MemoryContextAlloc(context, sizeof(text *) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		bool		isnull;
		Datum		value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

		list[i] = DatumGetTextPP(SPI_datumTransfer(value, false, -1));
	}
	plans_finish(guc_level);
	return list;
}

/* Reads a policy whose lock is held. */
static bool
read_work(Work *work)
{
	Datum		values[1] = {PointerGetDatum(work->fold_name)};
	int			guc_level = plans_connect();
	bool		found = plans_execute(&read_policy, values, NULL) > 0;

	if (found)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext saved;
		bool		isnull;
		Datum		value;

		work->policy.schema_version = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
		work->policy.every_events = DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull));
		work->policy.keep = DatumGetInt32(SPI_getbinval(row, desc, 3, &isnull));
		value = SPI_getbinval(row, desc, 4, &isnull);
		work->has_every = !isnull;
		work->every = isnull ? 0 : DatumGetFloat8(value);
		value = SPI_getbinval(row, desc, 5, &isnull);
		saved = MemoryContextSwitchTo(work->context);
		if (!isnull)
			work->policy.categories = values_name_list(value);
		MemoryContextSwitchTo(saved);
		work->checkpoint = DatumGetInt64(SPI_getbinval(row, desc, 6, &isnull));
		value = SPI_getbinval(row, desc, 7, &isnull);
		work->sweep_after = isnull ? -1 : DatumGetInt64(value);
	}
	plans_finish(guc_level);
	return found;
}

/* ----------------------------------------------------------------
 * 1. Other schema versions
 * ----------------------------------------------------------------
 */

static void
sweep(Work *work)
{
	Datum		values[2];
	char		nulls[2] = {' ', ' '};
	bool		finished;

	if (work->sweep_after < 0)
		return;
	values[0] = PointerGetDatum(work->fold_name);
	values[1] = Int64GetDatum(saved_sweep(work->fold_name, work->policy.schema_version,
										  work->sweep_after, &finished));
	nulls[1] = finished ? 'n' : ' ';
	(void) run(&set_sweep, values, nulls);
}

/* ----------------------------------------------------------------
 * 2. What was appended
 * ----------------------------------------------------------------
 */

static HTAB *
read_touched(Work *work, int64 max_events, int64 *last_position)
{
	ReadRequest request;
	Reader	   *reader;
	HASHCTL		control;
	HTAB	   *touched;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];

	control.keysize = sizeof(int64);
	control.entrysize = sizeof(Touched);
	control.hcxt = CurrentMemoryContext;
	touched = hash_create("event_store touched streams", 256, &control,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	memset(&request, 0, sizeof(request));
	request.kind = READ_ALL;
	request.after_position = work->checkpoint;
	request.max_count = max_events;
	request.until_version = PG_INT32_MAX;
	request.by_category = work->policy.categories.names != NULL;
	request.categories = work->policy.categories;
	*last_position = work->checkpoint;
	reader = reader_open(&request);
	while (reader_next(reader, values, nulls))
	{
		int64		stream_id = reader_stream_id(reader);
		bool		known;
		Touched    *entry = hash_search(touched, &stream_id, HASH_ENTER, &known);

		entry->version = DatumGetInt32(values[RE_VERSION]);
		entry->at = DatumGetTimestampTz(values[RE_RECORDED_AT]);
		if (!known)
		{
			entry->first_version = entry->version;
			entry->first_at = entry->at;
		}
		*last_position = DatumGetInt64(values[RE_POSITION]);
		CHECK_FOR_INTERRUPTS();
	}
	reader_close(reader);
	return touched;
}

static void
note_touched(Work *work, int64 max_events)
{
	int64		last_position;
	HTAB	   *touched = read_touched(work, max_events, &last_position);
	HASH_SEQ_STATUS status;
	Touched    *entry;
	Snapshot	snapshot;
	StateKey	key;
	Datum	   *streams;
	Datum	   *times;
	Datum		values[3];
	TimestampTz now = GetCurrentTimestamp();
	int			count = 0;

	if (last_position == work->checkpoint)
		return;
	streams = palloc(sizeof(Datum) * hash_get_num_entries(touched));
	times = palloc(sizeof(Datum) * hash_get_num_entries(touched));
	key.fold = work->fold_name;
	key.schema_version = work->policy.schema_version;
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	hash_seq_init(&status, touched);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		int32		saved_version;
		int64		since;
		TimestampTz due_at = now;

		/* most streams are short, and are not looked up */
		if (!work->has_every && entry->version < work->policy.every_events)
			continue;
		key.stream_id = entry->stream_id;
		saved_version = saved_newest_version(&key, snapshot);
		since = (int64) entry->version - saved_version;
		if (since < 1 || (!work->has_every && since < work->policy.every_events))
			continue;
		/* for which the first waits that it does not have; not later than the last */
		if (since < work->policy.every_events)
			due_at = (saved_version < entry->first_version ? entry->first_at : entry->at) +
				(int64) (work->every * USECS_PER_SEC);
		streams[count] = Int64GetDatum(entry->stream_id);
		times[count++] = TimestampTzGetDatum(due_at);
		CHECK_FOR_INTERRUPTS();
	}
	UnregisterSnapshot(snapshot);
	values[0] = PointerGetDatum(work->fold_name);
	if (count > 0)
	{
		values[1] = PointerGetDatum(construct_array(streams, count, INT8OID, sizeof(int64),
													FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
		values[2] = PointerGetDatum(construct_array(times, count, TIMESTAMPTZOID,
													sizeof(TimestampTz), FLOAT8PASSBYVAL,
													TYPALIGN_DOUBLE));
		(void) run(&note_streams, values, NULL);
	}
	values[1] = Int64GetDatum(last_position);
	(void) run(&set_checkpoint, values, NULL);
	hash_destroy(touched);
}

/* ----------------------------------------------------------------
 * 3. What is due
 * ----------------------------------------------------------------
 */

static void
open_fold(Work *work)
{
	if (work->fold != NULL)
		return;
	work->fold_context = AllocSetContextCreate(work->context, "event_store fold",
											   ALLOCSET_DEFAULT_SIZES);
	work->fold = fold_open(work->fold_name, work->fold_context);
}

/* Takes the snapshot of a stream.  Returns what it cost, in events. */
static int64
take_one(Work *work, text *stream, int64 max_events, int64 *taken)
{
	StateBounds bounds = {.until_version = PG_INT32_MAX};
	FoldedState state;
	Datum		values[2];

	open_fold(work);
	bounds.max_events = max_events;
	state_fold(stream, work->fold, work->policy.schema_version, &bounds, &state);
	if (state.folded > 0 && state_save(work->fold, work->policy.schema_version,
									   work->policy.keep, &state))
		(*taken)++;
	if (state.at_end)
	{
		values[0] = PointerGetDatum(work->fold_name);
		values[1] = PointerGetDatum(stream);
		(void) run(&forget_stream, values, NULL);
	}
	return state.folded + STREAM_COST;
}

static void
note_failure(Work *work, text *stream, const ErrorData *error)
{
	Datum		values[3];

	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("snapshot of stream \"%s\" by fold \"%s\" failed: %s",
					text_to_cstring(stream), text_to_cstring(work->fold_name),
					error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0));
	values[0] = PointerGetDatum(work->fold_name);
	values[1] = PointerGetDatum(stream);
	values[2] = CStringGetTextDatum(psprintf("%s: %s", unpack_sql_state(error->sqlerrcode),
											 error->message));
	(void) run(&count_failure, values, NULL);
	(void) run(&delay_stream, values, NULL);
}

/* The same in a subtransaction. */
static int64
try_one(Work *work, text *stream, int64 max_events, int64 *taken)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile int64 cost = STREAM_COST;
	int			guc_level = NewGUCNestLevel();

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		/* sees what was appended up to the settled mark, and is done before the note goes */
		PushActiveSnapshot(GetTransactionSnapshot());
		cost = take_one(work, stream, max_events, taken);
		PopActiveSnapshot();
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (error_is_interrupt(error))
			ReThrowError(error);
		/* what a function remembers between calls may have been lost half-way */
		if (work->fold_context != NULL)
			MemoryContextDelete(work->fold_context);
		work->fold_context = NULL;
		work->fold = NULL;
		note_failure(work, stream, error);
		FreeErrorData(error);
	}
	PG_END_TRY();
	/* whatever the function has SET */
	AtEOXact_GUC(false, guc_level);
	return cost;
}

static int64
take_due(Work *work, int64 max_events)
{
	MemoryContext scratch = AllocSetContextCreate(work->context, "event_store take",
												  ALLOCSET_DEFAULT_SIZES);
	TimestampTz now = GetCurrentTimestamp();
	int64		budget = max_events;
	int64		taken = 0;
	Datum		values[3];
	int			count;

	do
	{
		text	  **due;

		values[0] = PointerGetDatum(work->fold_name);
		values[1] = TimestampTzGetDatum(now);
		values[2] = Int64GetDatum(DUE_STREAMS);
		due = run_list(&list_due, values, &count);
		for (int i = 0; i < count && budget > 0; i++)
		{
			MemoryContext saved = MemoryContextSwitchTo(scratch);

			budget -= try_one(work, due[i], budget, &taken);
			MemoryContextSwitchTo(saved);
			MemoryContextReset(scratch);
			CHECK_FOR_INTERRUPTS();
		}
	} while (count > 0 && budget > 0);
	if (taken > 0)
	{
		values[1] = Int64GetDatum(taken);
		(void) run(&count_taken, values, NULL);
	}
	MemoryContextDelete(scratch);
	return taken;
}

Datum
event_store_take_snapshots(PG_FUNCTION_ARGS)
{
	int64		max_events;
	int64		taken = 0;
	int			guc_level;
	int			count;
	text	  **folds;

	PreventCommandDuringRecovery("event_store.take_snapshots()");
	PreventCommandIfReadOnly("event_store.take_snapshots()");
	PreventCommandIfParallelMode("event_store.take_snapshots()");
	catalog_require_owner(catalog_store());
	max_events = PG_ARGISNULL(0) ? PG_INT64_MAX : PG_GETARG_INT64(0);
	if (max_events < 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("max_events must be positive")));

	/* folds are called as the worker does, whoever calls this */
	guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	folds = run_list(&list_policies, NULL, &count);
	for (int i = 0; i < count; i++)
	{
		Work		work = {0};
		MemoryContext saved;

		work.context = AllocSetContextCreate(CurrentMemoryContext, "event_store snapshots",
											 ALLOCSET_DEFAULT_SIZES);
		saved = MemoryContextSwitchTo(work.context);
		work.fold_name = folds[i];
		if (policy_try_lock(work.fold_name) && read_work(&work))
		{
			sweep(&work);
			note_touched(&work, max_events);
			taken += take_due(&work, max_events);
		}
		MemoryContextSwitchTo(saved);
		MemoryContextDelete(work.context);
	}
	AtEOXact_GUC(false, guc_level);
	PG_RETURN_INT64(taken);
}
