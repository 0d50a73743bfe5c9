/*
 * refresh.c
 *		Bringing asynchronous projections up to date, and waiting for that.
 *
 * Who refreshes a projection
 *
 * 1. locks it, without waiting: if another one has it, there is nothing to do;
 * 2. reads its row, and with it the checkpoint;
 * 3. reads a batch from the log behind the checkpoint, to the settled mark, and
 *	  applies it, in a subtransaction;
 * 4. writes the checkpoint, in the same transaction, so that both count or
 *	  neither: no event is applied twice, and none is passed over;
 * 5. goes on with 3.
 *
 * If a batch fails it is rolled back, and tried again in halves, until the one
 * event is found.  What is before it is applied.  That event is tried again after
 * a while, and when it has failed often enough the projection stops at it, or
 * passes it over (projection_failure keeps it).  Errors that are nobody's fault (a
 * deadlock, no memory) don't count for an event; the whole is tried again later.
 */
#include "postgres.h"

#include <math.h>

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/errors.h"
#include "common/guc.h"
#include "common/names.h"
#include "common/plans.h"
#include "notification/notification.h"
#include "position/position.h"
#include "projection/projection.h"
#include "subscription/subscription.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(event_store_refresh_projection);
PG_FUNCTION_INFO_V1(event_store_refresh_projections);
PG_FUNCTION_INFO_V1(event_store_catch_up_projection);
PG_FUNCTION_INFO_V1(event_store_wait_for_projection);
PG_FUNCTION_INFO_V1(event_store_projection_state);
PG_FUNCTION_INFO_V1(event_store_projection_as_of);
PG_FUNCTION_INFO_V1(event_store_projection_lag);
PG_FUNCTION_INFO_V1(event_store_is_replaying);

/* the worker refreshes for so long at a time, in microseconds */
#define WORK_TIME		100000

/* refresh_projection() was asked to tell of each batch */
static bool progress = false;

/* how long a refresh waits for who is in the way of a rebuild's change of places, in milliseconds */
#define PATIENCE		100

/* a rebuild at which nobody has worked for longer was left alone, in microseconds */
#define IDLE_TIME		(5 * USECS_PER_SEC)

/* positions that pass by unread before a refresh that finds nothing writes the checkpoint */
#define WORTH_A_WRITE	1000

/* the events of a projection's filter in the log */
typedef struct LogSource
{
	EventSource source;
	Reader	   *reader;
	const NameList *types;		/* to be looked at here; NULL: the reader does */
	int64		after;			/* none up to here */
	int64		last;			/* none beyond */
	bool		has_until;
	TimestampTz until;			/* recorded then or before */
	int64	   *dead;			/* none of these positions, which ascend */
	int			ndead;
} LogSource;

static bool
next_in_log(EventSource *source, Datum *values, bool *nulls)
{
	LogSource  *log = (LogSource *) source;

	while (reader_next(log->reader, values, nulls))
	{
		int64		position = DatumGetInt64(values[RE_POSITION]);
		text	   *type;

		if (position > log->last)
			return false;
		/* it never falls with position */
		if (log->has_until && DatumGetTimestampTz(values[RE_RECORDED_AT]) > log->until)
			return false;
		if (position <= log->after)
			continue;
		while (log->ndead > 0 && log->dead[0] < position)
		{
			log->dead++;
			log->ndead--;
		}
		if (log->ndead > 0 && log->dead[0] == position)
			continue;
		if (log->types == NULL)
			return true;
		type = DatumGetTextPP(values[RE_TYPE]);
		if (values_has_name(log->types, VARDATA_ANY(type), VARSIZE_ANY_EXHDR(type)))
			return true;
	}
	return false;
}

static void
want_of_log(EventSource *source, uint32 columns)
{
	LogSource  *log = (LogSource *) source;

	if (log->types == NULL)
		reader_want(log->reader, columns);
}

static void
open_log(LogSource *log, const Projection *projection, int64 after, bool positions_only)
{
	ReadRequest request;

	memset(&request, 0, sizeof(request));
	request.kind = READ_ALL;
	request.after_position = after;
	request.max_count = PG_INT64_MAX;
	request.positions_only = positions_only;
	request.by_category = projection->by_category;
	request.categories = projection->categories;
	request.by_type = projection->by_type;
	request.types = projection->types;
	memset(log, 0, sizeof(LogSource));
	log->source.next = next_in_log;
	log->source.want = positions_only ? NULL : want_of_log;
	log->last = PG_INT64_MAX;
	log->reader = reader_open(&request);
}

/* ----------------------------------------------------------------
 * Batches
 * ----------------------------------------------------------------
 */

typedef enum Trouble
{
	TROUBLE_EVENT,				/* of an event, as far as one can tell */
	TROUBLE_PASSES,				/* worth another try, whatever the event */
	TROUBLE_CALLER				/* not ours to deal with */
} Trouble;

static Trouble
trouble_of(const Projection *projection, const ErrorData *error)
{
	switch (ERRCODE_TO_CATEGORY(error->sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
			return IsolationUsesXactSnapshot() ? TROUBLE_CALLER : TROUBLE_PASSES;
		case ERRCODE_OPERATOR_INTERVENTION:
			return error_is_interrupt(error) ? TROUBLE_CALLER : TROUBLE_EVENT;
		case ERRCODE_INSUFFICIENT_RESOURCES:
			return TROUBLE_PASSES;
		case ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION:
		case ERRCODE_INVALID_SCHEMA_NAME:
			/*
			 * Most often what the handler wants is not there, whatever the event: one
			 * after the other would be passed over.
			 */
			return projection->skips ? TROUBLE_PASSES : TROUBLE_EVENT;
		default:
			return error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
				error->sqlerrcode == ERRCODE_VE_PROJECTION_FAILED ? TROUBLE_PASSES : TROUBLE_EVENT;
	}
}

/*
 * Applies the next events, at most so many.  Returns NULL, or the error, in the
 * caller's context; then nothing has been done, and applied tells how far it came.
 */
static ErrorData *
try_batch(const Projection *projection, int64 max_count, Applied *applied, int64 *mark)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		LogSource	log;

		int64		writes = rebuild_writes_in_service(projection);

		open_log(&log, projection, projection->position, projection->kind == PROJECTION_MATVIEW);
		log.last = projection->limit;
		apply_batch(projection, &log.source, max_count, applied);
		*mark = Min(reader_counts(log.reader).mark, projection->limit);
		reader_close(log.reader);
		if (rebuild_writes_in_service(projection) != writes)
			ereport(ERROR,
					(errcode(ERRCODE_VE_PROJECTION_FAILED),
					 errmsg("the handler of \"%s\" has written to a table in service", projection->name),
					 errhint("Name the tables of a projection without a schema, so that a rebuild can have its own.")));
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (trouble_of(projection, error) == TROUBLE_CALLER)
			ReThrowError(error);
	}
	PG_END_TRY();
	return error;
}

/* When to try again after so many attempts. */
static TimestampTz
next_attempt(const Projection *projection, int attempts)
{
	double		delay = projection->first_delay *
		pow(projection->delay_factor, Min(attempts - 1, 1000));

	return GetCurrentTimestamp() +
		(int64) (Min(delay, projection->max_delay) * USECS_PER_SEC);
}

/* Something failed that is worth another try. */
static void
put_off(Projection *projection, ErrorData *error)
{
	int			attempts = projection->failing && projection->failed_position == 0 ?
		projection->attempts + 1 : 1;

	projection->next_attempt_at = next_attempt(projection, attempts);
	projection_write_error(projection, error, 0, false, projection->next_attempt_at);
	projection->failing = true;
	projection->failed_position = 0;
	projection->attempts = attempts;
	/* others pass by themselves */
	if (trouble_of(projection, error) == TROUBLE_EVENT ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION ||
		ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INVALID_SCHEMA_NAME ||
		error->sqlerrcode == ERRCODE_VE_PROJECTION_FAILED)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("projection \"%s\" failed: %s", projection->name, error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0));
}

/*
 * The next event is the one that fails.  True: it is passed over, and others can
 * be applied.
 */
static bool
event_failed(Projection *projection, ErrorData *error, int64 position)
{
	int			attempts = projection->failing && projection->failed_position == position ?
		projection->attempts + 1 : 1;
	bool		last = attempts >= projection->max_attempts;

	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("projection \"%s\" failed at position %lld: %s", projection->name,
					(long long) position, error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0));
	if (last && projection->skips)
	{
		Applied		over = {.position = position};

		projection_write_dead(projection, error, position);
		projection_clear_error(projection);
		projection_write_checkpoint(projection, &over);
		return true;
	}
	projection_write_error(projection, error, position, last, next_attempt(projection, attempts));
	projection->failing = true;
	projection->stopped = last;
	projection->failed_position = position;
	projection->attempts = attempts;
	return false;
}

static void
batch_done(Projection *projection, Applied *applied)
{
	projection_write_checkpoint(projection, applied);
	/* it was the first of these, whatever it was */
	if (projection->failing)
		projection_clear_error(projection);
}

/*
 * A batch of so many events has failed: finds the one, and applies what is before
 * it.  True: it can go on.
 */
static bool
find_failed(Projection *projection, ErrorData *error, Applied *failed, int64 *total)
{
	/* where events are handled one by one, it is known which it was */
	int64		before = projection->kind == PROJECTION_SET ? failed->count / 2 : failed->count;
	int64		count = projection->kind == PROJECTION_SET ? failed->count : failed->count + 1;
	int64		position = failed->position;

	while (count > 1)
	{
		Applied		applied = {0};
		ErrorData  *next;
		int64		mark;

		before = Max(Min(before, count - 1), 1);
		next = try_batch(projection, before, &applied, &mark);
		if (next == NULL)
		{
			batch_done(projection, &applied);
			*total += applied.count;
			count -= applied.count;
		}
		else
		{
			error = next;
			if (trouble_of(projection, error) == TROUBLE_PASSES)
			{
				put_off(projection, error);
				return false;
			}
			count = before;
			position = applied.position;
		}
		before = count / 2;
		CHECK_FOR_INTERRUPTS();
	}
	if (count == 1)
	{
		Applied		applied = {0};
		ErrorData  *next;
		int64		mark;

		/* by itself it may pass */
		next = try_batch(projection, 1, &applied, &mark);
		if (next == NULL)
		{
			batch_done(projection, &applied);
			*total += applied.count;
			return true;
		}
		error = next;
		if (trouble_of(projection, error) == TROUBLE_PASSES)
		{
			put_off(projection, error);
			return false;
		}
		position = applied.position;
	}
	/* the handler does not even begin */
	if (position <= projection->position)
	{
		put_off(projection, error);
		return false;
	}
	return event_failed(projection, error, position);
}

/*
 * Applies what there is, at most so many events, until a time has come (0:
 * never).  The projection is locked, and asynchronous.  Returns whether there may
 * be more to do at once.
 */
bool
refresh_run(Projection *projection, int64 max_count, TimestampTz until, int64 *total)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "event_store refresh",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext saved = MemoryContextSwitchTo(context);
	bool		more = true;

	*total = 0;
	projection_check_snapshot(projection);

	/*
	 * The rate of a rebuild, by which its end is expected, is that of the times when it is
	 * worked at: others are taken out.
	 */
	if (projection->rebuilds != 0)
	{
		int64		idle = GetCurrentTimestamp() - projection->applied_at;

		if (projection->applied == 0 || idle > IDLE_TIME)
		{
			projection->applied_at += idle;
			projection->rate_since += idle;
		}
	}
	if (projection->paused || projection->stopped ||
		(projection->failing && projection->next_attempt_at > GetCurrentTimestamp()))
		more = false;
	/* at most once an interval */
	if (projection->kind == PROJECTION_MATVIEW && projection->applied > 0 &&
		GetCurrentTimestamp() < projection->applied_at +
		(int64) (projection->refresh_every * USECS_PER_SEC))
		more = false;
	while (more && *total < max_count && (until == 0 || GetCurrentTimestamp() < until))
	{
		int64		count = Min(max_count - *total, projection->batch_events);
		Applied		applied = {.until = until};
		int64		mark = 0;
		ErrorData  *error;

		/* the one that has failed is tried by itself */
		if (projection->failing && projection->failed_position != 0)
			count = 1;
		error = try_batch(projection, count, &applied, &mark);
		if (error == NULL)
		{
			*total += applied.count;
			/* nothing of its filter lies between the last event and the mark */
			if (applied.ended && !IsolationUsesXactSnapshot())
				applied.position = Max(applied.position, mark);
			/* a rebuild takes its place when it has come as far as the one in service */
			if (applied.count > 0 || applied.position - projection->position >= WORTH_A_WRITE ||
				(projection->rebuilds != 0 && applied.position > projection->position))
				batch_done(projection, &applied);
			more = !applied.ended;
		}
		else if (trouble_of(projection, error) == TROUBLE_PASSES)
		{
			put_off(projection, error);
			more = false;
		}
		else if (projection->kind == PROJECTION_MATVIEW && applied.position > projection->position)
			more = event_failed(projection, error, applied.position);
		else
			more = find_failed(projection, error, &applied, total);
		if (progress && error == NULL && applied.count > 0)
			ereport(NOTICE,
					(errmsg("projection \"%s\": %lld events applied, at position %lld of %lld",
							projection->name, (long long) projection->applied,
							(long long) projection->position, (long long) settled_mark())));
		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(saved);
	MemoryContextDelete(context);
	return more;
}

/* Locks a projection that is to be refreshed; false: another one has it. */
static bool
lock_to_refresh(text *name, Projection *projection)
{
	for (;;)
	{
		int32		id;

		projection_read(name, projection);
		id = projection->id;
		if (apply_is_running(id))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("projection \"%s\" cannot be refreshed by its own handler",
							projection->name)));
		if (!projection_lock(id, false))
			return false;
		if (projection_find(name, projection) && projection->id == id)
			return true;
		projection_unlock(id);
	}
}

/*
 * Does something with a rebuild for which others may be in the way: they are waited
 * for no longer than an instant, and if it cannot be done no lock is left behind.
 * Other errors are the rebuild's.
 */
static bool
attempt(Projection *twin, bool (*what) (Projection *twin))
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		int			level = NewGUCNestLevel();

		if (LockTimeout == 0 || LockTimeout > PATIENCE)
			(void) set_config_option("lock_timeout", psprintf("%d", PATIENCE), PGC_USERSET,
									 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
		done = what(twin);
		AtEOXact_GUC(false, level);
		if (done)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (trouble_of(twin, error) == TROUBLE_CALLER)
			ReThrowError(error);
	}
	PG_END_TRY();
	if (error != NULL && error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE &&
		error->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED &&
		error->sqlerrcode != ERRCODE_OBJECT_IN_USE &&
		error->sqlerrcode != ERRCODE_ACTIVE_SQL_TRANSACTION)
		put_off(twin, error);
	return done;
}

/* Has something gone wrong with it, and is not to be tried again yet? */
static bool
has_to_wait(const Projection *projection)
{
	return projection->stopped ||
		(projection->failing &&
		 (projection->failed_position != 0 || projection->next_attempt_at > GetCurrentTimestamp()));
}

/* Drops what was in service before a rebuild, and is locked, if that can be done now. */
void
refresh_tidy(int32 id)
{
	Projection	twin;

	if (projection_read_id(id, &twin) && !has_to_wait(&twin))
		(void) attempt(&twin, rebuild_tidy);
}

/*
 * A rebuild that has caught up takes its place, if nobody is in the way.  Returns whether
 * another transaction has more to do at once: to let it take its place, or to drop what
 * it has replaced.
 */
static bool
take_place(Projection *twin)
{
	int32		served = twin->rebuilds;
	bool		noted = twin->since != 0;

	if (twin->paused || has_to_wait(twin))
		return false;
	if (!rebuild_is_due(twin))
		return !noted && twin->since != 0;
	if (!attempt(twin, rebuild_switch))
		return false;
	refresh_tidy(served);
	return true;
}

/*
 * Refreshes one that is locked, and what rebuilds it.  more: whether the next transaction
 * has anything to do, beside events.
 */
static int64
refresh_both(Projection *projection, int64 max_count, bool *more)
{
	int64		total = 0;
	int64		rebuilt = 0;
	Projection	twin;
	bool		leads = false;
	bool		found;

	*more = false;
	if (projection->rebuilds != 0)
	{
		if (!refresh_run(projection, max_count, 0, &total))
			*more = take_place(projection);
		return total;
	}
	found = projection_read_twin(projection->id, &twin) && !apply_is_running(twin.id) &&
		projection_lock(twin.id, false) && projection_read_id(twin.id, &twin);
	if (found && (leads = rebuild_leads(&twin)))
		(void) refresh_run(&twin, max_count, 0, &rebuilt);
	if (projection->mode == PROJECTION_ASYNC)
	{
		projection->limit = rebuild_limit(projection);
		(void) refresh_run(projection, max_count, 0, &total);
	}
	if (!found)
		return total;
	refresh_tidy(twin.id);
	if (!projection_read_id(twin.id, &twin) || twin.paused)
		return total + rebuilt;
	if (leads || (total < max_count && !refresh_run(&twin, max_count - total, 0, &rebuilt)))
		*more = take_place(&twin);
	return total + rebuilt;
}

Datum
event_store_refresh_projection(PG_FUNCTION_ARGS)
{
	Projection	projection;
	text	   *name;
	int64		max_count = PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1);
	volatile int64 total = 0;
	bool		more;

	projection_guard("event_store.refresh_projection()");
	name = projection_name_argument(fcinfo, 0);
	if (max_count < 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("max_count must be positive")));
	if (!lock_to_refresh(name, &projection))
		PG_RETURN_NULL();
	progress = !PG_ARGISNULL(2) && PG_GETARG_BOOL(2);
	PG_TRY();
	{
		total = refresh_both(&projection, max_count, &more);
	}
	PG_FINALLY();
	{
		progress = false;
	}
	PG_END_TRY();
	PG_RETURN_INT64(total);
}

/*
 * The same in transactions of its own, one for each batch: rows that are updated
 * again and again by one transaction leave versions that nobody can remove before
 * its end, and all have to pass them over.
 */
Datum
event_store_catch_up_projection(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	bool		tells = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	text	   *name;

	projection_guard("event_store.catch_up_projection()");
	name = projection_name_argument(fcinfo, 0);
	name = DatumGetTextPCopy(PointerGetDatum(name));
	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("event_store.catch_up_projection() must be called outside of a transaction block"),
				 errhint("refresh_projection() does its work in the caller's transaction.")));
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	for (bool more = true; more;)
	{
		Projection	projection;
		MemoryContext saved;
		int64		position;
		bool		rebuilds;

		EnsurePortalSnapshotExists();
		saved = MemoryContextSwitchTo(context);
		if (!lock_to_refresh(name, &projection))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("projection \"%s\" is being refreshed by another session",
							text_to_cstring(name))));
		position = projection.position;
		progress = tells;
		PG_TRY();
		{
			more = refresh_both(&projection, projection.batch_events, &rebuilds) > 0 ||
				projection.position > position || rebuilds;
		}
		PG_FINALLY();
		{
			progress = false;
		}
		PG_END_TRY();
		MemoryContextSwitchTo(saved);
		SPI_commit();
	}
	SPI_finish();
	PG_RETURN_VOID();
}

static Statement asynchronous = {
	"SELECT p.name FROM event_store.projection AS p"
	" LEFT JOIN event_store.projection_error AS e ON e.projection_id = p.id"
	" WHERE p.mode = 'async' AND NOT p.paused"
	" AND (e.projection_id IS NULL OR (NOT e.stopped AND e.next_attempt_at <= pg_catalog.clock_timestamp()))"
	" ORDER BY p.rebuilds IS NULL, p.id"
};

static Statement out_of_service = {
	"SELECT p.id FROM event_store.projection AS p"
	" WHERE p.rebuilds IS NOT NULL AND p.paused AND NOT p.keep_old AND p.since IS NOT NULL"
};

/* Drops what rebuilds have replaced, where that could not be done at once. */
static void
tidy_all(void)
{
	OwnerSwitch saved;
	int32	   *ids;
	int			count;
	MemoryContext context = CurrentMemoryContext;

	owner_begin(&saved);
	count = (int) plans_execute(&out_of_service, NULL, NULL);
	ids = MemoryContextAlloc(context, sizeof(int32) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		bool		isnull;

		ids[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	owner_end(&saved);
	for (int i = 0; i < count; i++)
	{
		Projection	twin;

		if (!apply_is_running(ids[i]) && projection_lock(ids[i], false) &&
			projection_read_id(ids[i], &twin))
			refresh_tidy(ids[i]);
	}
	projection_drop_left_tables();
}

/*
 * All that are asynchronous, one after the other, for so many microseconds in all
 * (0: until they are up to date).  Each is given its share of the time.  Returns whether
 * there is more to do.
 */
static bool
refresh_all(int64 time)
{
	MemoryContext context = CurrentMemoryContext;
	TimestampTz start = GetCurrentTimestamp();
	OwnerSwitch saved;
	text	  **names;
	int			count;
	bool		more = false;

	owner_begin(&saved);
	count = (int) plans_execute(&asynchronous, NULL, NULL);
	names = MemoryContextAlloc(context, sizeof(text *) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		MemoryContext spi = MemoryContextSwitchTo(context);
		bool		isnull;

		names[i] = DatumGetTextPCopy(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
												   1, &isnull));
		MemoryContextSwitchTo(spi);
	}
	owner_end(&saved);
	for (int i = 0; i < count; i++)
	{
		Projection	projection;
		int64		applied = 0;

		/* dropped meanwhile, or another one refreshes it */
		if (!projection_find(names[i], &projection) || apply_is_running(projection.id) ||
			!projection_lock(projection.id, false))
			continue;
		if (projection_read_id(projection.id, &projection) && projection.mode == PROJECTION_ASYNC)
		{
			bool		again;

			projection.limit = rebuild_limit(&projection);
			again = refresh_run(&projection, PG_INT64_MAX,
								time == 0 ? 0 : start + time * (i + 1) / count, &applied);
			if (!again && projection.rebuilds != 0)
				take_place(&projection);
			more |= again;
		}
		CHECK_FOR_INTERRUPTS();
	}
	tidy_all();
	return more;
}

Datum
event_store_refresh_projections(PG_FUNCTION_ARGS)
{
	int64		time = 0;

	projection_guard("event_store.refresh_projections()");
	if (!PG_ARGISNULL(0))
	{
		const Interval *limit = PG_GETARG_INTERVAL_P(0);

		ack_check_interval("max_time", limit, AT_LEAST_MORE);
		time = limit->time + (limit->day + INT64CONST(30) * limit->month) * USECS_PER_DAY;
	}
	PG_RETURN_BOOL(refresh_all(time));
}

/* What the worker does when events have come. */
static bool
work_on_events(void)
{
	int			count;

	/* from here on it is known whether there are any */
	(void) projection_inline_list(&count);
	if (!projection_any_asynchronous())
		return false;
	return refresh_all(WORK_TIME);
}

void
refresh_init(void)
{
	WorkerEventWork work = {projection_any_asynchronous, work_on_events};

	worker_set_event_work(work);
}

/* ----------------------------------------------------------------
 * Waiting
 * ----------------------------------------------------------------
 */

/* Has a projection passed a position, as of now? */
static bool
has_passed(text *name, int64 position, Projection *projection)
{
	LogSource	log;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	bool		passed;

	projection_read_latest(name, projection);
	if (projection->mode != PROJECTION_ASYNC || projection->position >= position)
		return true;
	if (projection->stopped)
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_FAILED),
				 errmsg("projection \"%s\" has stopped at position %lld", projection->name,
						(long long) projection->failed_position),
				 errhint("See event_store.projections for the error; resume_projection() lets it try again.")));
	/* of what lies between, nothing may be of its filter */
	if (settled_mark() < position)
		return false;
	/* for the reader: in REPEATABLE READ, too, it shows all up to the mark */
	PushActiveSnapshot(GetLatestSnapshot());
	open_log(&log, projection, projection->position, true);
	passed = !log.source.next(&log.source, values, nulls) ||
		DatumGetInt64(values[RE_POSITION]) > position;
	reader_close(log.reader);
	PopActiveSnapshot();
	return passed;
}

/*
 * Who waits for what his own transaction keeps from happening would wait for ever:
 * for the mark to pass events that it has appended, or for a refresh of what it has
 * locked.
 */
static void
refuse_own(const Projection *projection, int64 position)
{
	int64		bound = settled_own_bound();
	const char *why;

	if (bound != 0 && position >= bound && settled_mark() < position)
		why = "The transaction has appended events itself.";
	else if (projection_has_lock(projection->id))
		why = "The transaction refreshes the projection itself, or changes it.";
	else
		return;
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("projection \"%s\" cannot pass position %lld before the end of this transaction",
					projection->name, (long long) position),
			 errdetail_internal("%s", why),
			 errhint("Wait in the next transaction.")));
}

Datum
event_store_wait_for_projection(PG_FUNCTION_ARGS)
{
	text	   *name;
	int64		position;
	TimestampTz until = DT_NOEND;
	bool		passed;
	bool		waits = false;

	catalog_require_read(catalog_store());
	name = projection_name_argument(fcinfo, 0);
	if (PG_ARGISNULL(1) || PG_GETARG_INT64(1) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("position must not be NULL or negative")));
	position = PG_GETARG_INT64(1);
	if (!PG_ARGISNULL(2))
	{
		ack_check_interval("timeout", PG_GETARG_INTERVAL_P(2), AT_LEAST_ANY);
		until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														TimestampTzGetDatum(GetCurrentTimestamp()),
														IntervalPGetDatum(PG_GETARG_INTERVAL_P(2))));
	}
	wake_begin_wait();
	for (;;)
	{
		Projection	projection;
		TimestampTz now;
		int64		timeout;

		PushActiveSnapshot(GetLatestSnapshot());
		passed = has_passed(name, position, &projection);
		PopActiveSnapshot();
		now = GetCurrentTimestamp();
		if (passed || now >= until)
			break;
		if (!waits)
			refuse_own(&projection, position);
		waits = true;
		timeout = guc_look_interval;
		if (until != DT_NOEND)
			timeout = Min(timeout, (until - now) / 1000 + 1);
		poll_let_go(fcinfo);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (long) timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	wake_end_wait();
	PG_RETURN_BOOL(passed);
}

/* ----------------------------------------------------------------
 * States, and how far behind
 * ----------------------------------------------------------------
 */

/* A live fold of a stream reads that stream; by another key, all of its filter. */
static Datum
live_state(const Projection *projection, text *key, bool *isnull)
{
	LogSource	log;
	Datum		state;

	if (projection->key == NULL)
	{
		ReadRequest request;

		*isnull = true;
		if (VARSIZE_ANY_EXHDR(key) == 0 || VARSIZE_ANY_EXHDR(key) > MAX_NAME_BYTES ||
			(projection->by_category &&
			 !values_has_name(&projection->categories, VARDATA_ANY(key),
							  input_category_length(VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key)))))
			return (Datum) 0;
		memset(&request, 0, sizeof(request));
		request.kind = READ_STREAM;
		request.stream = key;
		request.from_version = 1;
		request.until_version = PG_INT32_MAX;
		request.max_count = PG_INT64_MAX;
		memset(&log, 0, sizeof(log));
		log.source.next = next_in_log;
		log.after = projection->start_after;
		log.last = PG_INT64_MAX;
		log.types = projection->by_type ? &projection->types : NULL;
		log.reader = reader_open(&request);
	}
	else
		open_log(&log, projection, projection->start_after, false);
	state = apply_live(projection, &log.source, key, isnull);
	reader_close(log.reader);
	return state;
}

Datum
event_store_projection_state(PG_FUNCTION_ARGS)
{
	Projection	projection;
	text	   *key;
	Datum		state;
	bool		isnull;

	catalog_require_read(catalog_store());
	projection_read(projection_name_argument(fcinfo, 0), &projection);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("key must not be NULL")));
	key = PG_GETARG_TEXT_PP(1);
	if (projection.kind != PROJECTION_FOLD)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("projection \"%s\" has no states", projection.name),
				 errhint("Only folds have. What others make is in tables of your own.")));
	state = projection.mode == PROJECTION_LIVE ? live_state(&projection, key, &isnull) :
		apply_read_state(&projection, key, &isnull);
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(state);
}

/* All states of a fold as of a time, folded from the first event that it knows of. */
Datum
event_store_projection_as_of(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Projection	projection;
	LogSource	log;

	catalog_require_read(catalog_store());
	projection_read(projection_name_argument(fcinfo, 0), &projection);
	if (projection.kind != PROJECTION_FOLD)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("projection \"%s\" has no states", projection.name),
				 errhint("Only folds have. What others make is in tables of your own.")));
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("time must not be NULL")));
	InitMaterializedSRF(fcinfo, 0);
	open_log(&log, &projection, projection.start_after, false);
	log.dead = projection_read_dead(&projection, &log.ndead);
	log.has_until = true;
	log.until = PG_GETARG_TIMESTAMPTZ(1);
	apply_as_of(&projection, &log.source, result->setResult, result->setDesc);
	reader_close(log.reader);
	return (Datum) 0;
}

Datum
event_store_projection_lag(PG_FUNCTION_ARGS)
{
	int64		max_count = PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1);
	Projection	projection;
	TupleDesc	desc;
	Datum		result[2];
	bool		no_result[2] = {false, true};
	int64		count = 0;
	OwnerSwitch owner;

	catalog_require_sight(catalog_store());
	projection_read(projection_name_argument(fcinfo, 0), &projection);
	if (max_count < 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("max_count must be positive")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (projection.mode == PROJECTION_ASYNC)
	{
		LogSource	log;
		Datum		values[RE_NATTS];
		bool		nulls[RE_NATTS];

		/* the caller sees of the events how many there are, and needs no right to read them */
		owner_become(&owner);
		open_log(&log, &projection, projection.position, false);
		while (count < max_count && log.source.next(&log.source, values, nulls))
		{
			if (count++ == 0)
			{
				result[1] = values[RE_RECORDED_AT];
				no_result[1] = false;
			}
			CHECK_FOR_INTERRUPTS();
		}
		reader_close(log.reader);
		owner_return(&owner);
	}
	result[0] = Int64GetDatum(count);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), result, no_result)));
}

/* Only while a projection is rebuilt anything is. */
Datum
event_store_is_replaying(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(apply_is_replaying());
}
