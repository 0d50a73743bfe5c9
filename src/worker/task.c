/*
 * task.c
 *		The tasks of the worker, which anybody else may run as well.
 *
 * A task is an SQL command with an interval.  To run one, in a transaction:
 *
 * 1. choose the task that is due for longest;
 * 2. lock it (LOCK_CLASS_TASK), or pass it by if somebody else has it, and look
 *	  whether it is still due;
 * 3. run the command, in a subtransaction;
 * 4. write down how it went, and when it is due again.
 *
 * The lock keeps two runners from running one task at once.  A
 * command that fails is counted, logged, and due again after its interval: it
 * does not keep the others from running.
 *
 * The worker runs the extension's own tasks each second or so, most often to find
 * that there is nothing to do.  It keeps such a run in mind instead of writing it
 * down (it is counted with the next one that is), so that a database where
 * nothing happens has no WAL written, and no transaction id drawn.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/errors.h"
#include "common/locks.h"
#include "common/names.h"
#include "common/plans.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(event_store_run_tasks);
PG_FUNCTION_INFO_V1(event_store_set_task);
PG_FUNCTION_INFO_V1(event_store_drop_task);

static Statement list_tasks = {
	"SELECT t.name, t.command, t.next_run_at, t.built_in, extract(epoch FROM t.run_every)::float8"
	" FROM event_store.worker_tasks AS t WHERE t.enabled ORDER BY t.next_run_at NULLS FIRST, t.name"
};

static Statement make_row = {
	"INSERT INTO event_store.worker_task_run (name) VALUES ($1) ON CONFLICT (name) DO NOTHING",
	1, {TEXTOID}
};

static Statement read_next = {
	"SELECT r.next_run_at FROM event_store.worker_task_run AS r WHERE r.name = $1",
	1, {TEXTOID}
};

/* if it was made due meanwhile, it is */
static Statement note_run = {
	"UPDATE event_store.worker_task_run AS r"
	" SET last_started_at = $2, last_finished_at = pg_catalog.clock_timestamp(), runs = r.runs + $4,"
	" failures = r.failures + ($3 IS NOT NULL)::int,"
	" last_failed_at = CASE WHEN $3 IS NULL THEN r.last_failed_at ELSE pg_catalog.clock_timestamp() END,"
	" last_error = coalesce($3, r.last_error),"
	" next_run_at = CASE WHEN r.next_run_at IS DISTINCT FROM $5 THEN r.next_run_at"
	" ELSE pg_catalog.clock_timestamp() +"
	" coalesce((SELECT t.run_every FROM event_store.worker_tasks AS t WHERE t.name = $1), '1 hour') END"
	" WHERE r.name = $1 RETURNING r.next_run_at",
	5, {TEXTOID, TIMESTAMPTZOID, TEXTOID, INT8OID, TIMESTAMPTZOID}
};

static Statement set_row = {
	"INSERT INTO event_store.worker_task AS t (name, run_every, command, enabled)"
	" SELECT $1, coalesce($2, b.run_every, '1 minute'), $3, coalesce($4, true)"
	" FROM (SELECT) AS one LEFT JOIN event_store.builtin_tasks() AS b ON b.name = $1"
	" WHERE coalesce($3, b.command,"
	" (SELECT o.command FROM event_store.worker_task AS o WHERE o.name = $1)) IS NOT NULL"
	" ON CONFLICT (name) DO UPDATE"
	" SET run_every = coalesce($2, t.run_every), command = coalesce($3, t.command),"
	" enabled = coalesce($4, t.enabled)",
	4, {TEXTOID, INTERVALOID, TEXTOID, BOOLOID}
};

static Statement make_due = {
	"UPDATE event_store.worker_task_run SET next_run_at = pg_catalog.clock_timestamp() WHERE name = $1",
	1, {TEXTOID}
};

static Statement drop_row = {
	"DELETE FROM event_store.worker_task WHERE name = $1",
	1, {TEXTOID}
};

static Statement drop_history = {
	"DELETE FROM event_store.worker_task_run WHERE name = $1",
	1, {TEXTOID}
};

/* a task, as it stands in its rows */
typedef struct Task
{
	char	   *name;
	char	   *command;
	TimestampTz next_run;		/* DT_NOBEGIN: it never ran */
	bool		built_in;
	int64		every;			/* microseconds */
} Task;

/* runs of a task that are not written down, as the worker remembers them */
typedef struct Unwritten
{
	char		name[MAX_NAME_BYTES + 1];
	TimestampTz written;		/* next_run_at of its row: with another one this is void */
	TimestampTz next_run;
	int64		runs;
} Unwritten;

static HTAB *unwritten = NULL;

/*
 * Runs a command in a subtransaction.  Returns the message of its error, in the
 * caller's context, or NULL.
 *
 * What it has SET is undone, and what it has deferred comes to its end here:
 * neither is for the tasks after it, nor for the worker.
 */
static char *
run_command(const char *name, const char *command, bool in_worker)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile message = NULL;
	int			guc_level = NewGUCNestLevel();

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		int			result = SPI_execute(command, false, 0);

		if (result < 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("command of task \"%s\" cannot be executed: %s", name,
							SPI_result_code_string(result))));
		if (SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) < 0)
			elog(ERROR, "could not set constraints immediate");
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
		/* who cancels a call means the call; the worker has none */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED && !in_worker)
			ReThrowError(error);
		message = psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message);
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("task \"%s\" failed: %s", name, error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0));
		FreeErrorData(error);
	}
	PG_END_TRY();
	AtEOXact_GUC(false, guc_level);
	return message;
}

/* What is known of a task beyond its row, if that is as it was; NULL: nothing. */
static Unwritten *
find_unwritten(const char *name, TimestampTz written)
{
	Unwritten  *entry = unwritten == NULL ? NULL : hash_search(unwritten, name, HASH_FIND, NULL);

	return entry != NULL && entry->written == written ? entry : NULL;
}

static TimestampTz
next_run_of(const Task *task)
{
	const Unwritten *entry = find_unwritten(task->name, task->next_run);

	return entry == NULL ? task->next_run : entry->next_run;
}

/* The task has run, as it stands in its row, which was written last like this; or (more) again. */
static void
remember(const char *name, TimestampTz written, TimestampTz next_run, bool more)
{
	Unwritten  *entry;
	bool		found;

	if (unwritten == NULL)
	{
		HASHCTL		control;

		control.keysize = sizeof(entry->name);
		control.entrysize = sizeof(Unwritten);
		control.hcxt = TopMemoryContext;
		unwritten = hash_create("event_store tasks", 16, &control,
								HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	}
	entry = hash_search(unwritten, name, HASH_ENTER, &found);
	entry->runs = more && found ? entry->runs + 1 : 0;
	entry->written = written;
	entry->next_run = next_run;
}

static TimestampTz
time_or_never(Datum value, bool isnull)
{
	return isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
}

/*
 * Runs a task, if nobody else has it or has just run it.
 *
 * The worker writes nothing down where one of the extension's tasks has written
 * nothing itself; but for the first time, for all to see that it is there.
 */
static bool
run_task(const Task *task, TimestampTz due, bool in_worker)
{
	Datum		values[5];
	char		nulls[6] = "  n  ";
	char	   *message;
	LOCKTAG		tag;
	TimestampTz written;
	TimestampTz started;
	Unwritten  *entry;
	bool		isnull = true;
	Datum		value = (Datum) 0;

	/* to the end of the transaction; before the row, which may not be there yet */
	locks_set_tag(&tag, LOCK_CLASS_TASK,
				  DatumGetUInt64(hash_any_extended((const unsigned char *) task->name,
												   strlen(task->name), 0)));
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	values[0] = CStringGetTextDatum(task->name);
	if (task->next_run == DT_NOBEGIN)
		(void) plans_execute(&make_row, values, NULL);
	if (plans_execute(&read_next, values, NULL) == 0)
		return false;
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	written = time_or_never(value, isnull);
	entry = find_unwritten(task->name, written);
	if ((entry == NULL ? written : entry->next_run) > due)
		return false;

	started = GetCurrentTimestamp();
	message = run_command(task->name, task->command, in_worker);
	if (in_worker && task->built_in && entry != NULL && message == NULL &&
		!TransactionIdIsValid(GetTopTransactionIdIfAny()))
	{
		remember(task->name, written, GetCurrentTimestamp() + task->every, true);
		return true;
	}
	values[1] = TimestampTzGetDatum(started);
	values[2] = (Datum) 0;
	if (message != NULL)
	{
		values[2] = CStringGetTextDatum(message);
		nulls[2] = ' ';
	}
	/* the row may have been written by another meanwhile; they were runs all the same */
	if (in_worker && unwritten != NULL)
		entry = hash_search(unwritten, task->name, HASH_FIND, NULL);
	values[3] = Int64GetDatum(entry == NULL ? 1 : entry->runs + 1);
	values[4] = TimestampTzGetDatum(written);
	nulls[4] = written == DT_NOBEGIN ? 'n' : ' ';
	/* it may have dropped itself */
	if (plans_execute(&note_run, values, nulls) > 0 && in_worker)
	{
		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		written = time_or_never(value, isnull);
		remember(task->name, written, written, false);
	}
	return true;
}

/*
 * Runs the task that has been due for longest at a time, in the transaction that
 * there is.  False: none was, or others have them all.  next: when one will be.
 */
bool
task_run_next(TimestampTz due, bool in_worker, TimestampTz *next)
{
	int			guc_level = plans_connect();
	int			count = (int) plans_execute(&list_tasks, NULL, NULL);
	Task	   *tasks = palloc(sizeof(Task) * Max(count, 1));
	bool		done = false;

	*next = DT_NOEND;
	for (int i = 0; i < count; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Datum		value;
		bool		isnull;

		tasks[i].name = SPI_getvalue(row, desc, 1);
		tasks[i].command = SPI_getvalue(row, desc, 2);
		value = SPI_getbinval(row, desc, 3, &isnull);
		tasks[i].next_run = time_or_never(value, isnull);
		tasks[i].built_in = DatumGetBool(SPI_getbinval(row, desc, 4, &isnull));
		tasks[i].every = (int64) (DatumGetFloat8(SPI_getbinval(row, desc, 5, &isnull)) * USECS_PER_SEC);
	}
	while (!done)
	{
		Task	   *first = NULL;

		for (int i = 0; i < count; i++)
			if (tasks[i].name != NULL &&
				(first == NULL || next_run_of(&tasks[i]) < next_run_of(first)))
				first = &tasks[i];
		if (first == NULL || next_run_of(first) > due)
		{
			if (first != NULL)
				*next = Min(*next, next_run_of(first));
			break;
		}
		done = run_task(first, due, in_worker);
		/* somebody else has it, or has had it: it is looked at again soon */
		if (!done)
			*next = due;
		first->name = NULL;
	}
	plans_finish(guc_level);
	return done;
}

Datum
event_store_run_tasks(PG_FUNCTION_ARGS)
{
	const Store *store = catalog_store();
	TimestampTz now = GetCurrentTimestamp();
	Oid			owner = catalog_owner(store);
	Oid			saved_user;
	int			saved_context;
	int			count = 0;
	TimestampTz next;

	PreventCommandDuringRecovery("event_store.run_tasks()");
	PreventCommandIfReadOnly("event_store.run_tasks()");
	catalog_require_owner(store);

	/* tasks are the owner's, and get no rights of a caller who has more */
	GetUserIdAndSecContext(&saved_user, &saved_context);
	if (saved_user != owner)
		SetUserIdAndSecContext(owner, saved_context | SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION);
	/* what was due at the beginning: each once */
	while (task_run_next(now, false, &next))
	{
		count++;
		CHECK_FOR_INTERRUPTS();
	}
	SetUserIdAndSecContext(saved_user, saved_context);
	PG_RETURN_INT32(count);
}

/* ----------------------------------------------------------------
 * Which tasks there are
 * ----------------------------------------------------------------
 */

static text *
task_name_argument(FunctionCallInfo fcinfo, const char *what)
{
	text	   *name;

	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	catalog_require_owner(catalog_store());
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("name of a task must not be NULL")));
	name = PG_GETARG_TEXT_PP(0);
	if (VARSIZE_ANY_EXHDR(name) == 0 || VARSIZE_ANY_EXHDR(name) > MAX_NAME_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("name of a task must have 1 to %d bytes", MAX_NAME_BYTES)));
	return name;
}

Datum
event_store_set_task(PG_FUNCTION_ARGS)
{
	Datum		values[4];
	char		nulls[4];
	int			guc_level;
	text	   *name = task_name_argument(fcinfo, "event_store.set_task()");

	values[0] = PointerGetDatum(name);
	nulls[0] = ' ';
	for (int i = 1; i < 4; i++)
	{
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_GETARG_DATUM(i);
	}
	if (!PG_ARGISNULL(1))
	{
		Interval   *every = PG_GETARG_INTERVAL_P(1);

		if (every->month < 0 || every->day < 0 || every->time < 0 ||
			(every->month == 0 && every->day == 0 && every->time < USECS_PER_SEC / 10) ||
			every->month > 120 || every->day > 3660 || every->time > 87840 * USECS_PER_HOUR)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("run_every must be 100 ms to 10 years")));
	}
	guc_level = plans_connect();
	if (plans_execute(&set_row, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("task \"%s\" is new, and needs a command",
						text_to_cstring(name))));
	/* it is due anew by what it is now */
	(void) plans_execute(&make_due, values, nulls);
	plans_finish(guc_level);
	PG_RETURN_VOID();
}

Datum
event_store_drop_task(PG_FUNCTION_ARGS)
{
	Datum		values[1];
	int			guc_level;
	bool		found;

	values[0] = PointerGetDatum(task_name_argument(fcinfo, "event_store.drop_task()"));
	guc_level = plans_connect();
	found = plans_execute(&drop_row, values, NULL) > 0;
	(void) plans_execute(&drop_history, values, NULL);
	plans_finish(guc_level);
	PG_RETURN_BOOL(found);
}
