/*
 * task.c
 *		The tasks of the worker, which anybody else may run as well.
 *
 * A task is an SQL command with an interval.  To run one, in a transaction:
 *
 * 1. choose the task that is due for longest;
 * 2. lock it (LOCK_CLASS_TASK), and its row in worker_task_run, or pass it by if
 *	  somebody else has it;
 * 3. run the command, in a subtransaction;
 * 4. write down how it went, and when it is due again.
 *
 * The locks keep two runners from running one task at once.  A
 * command that fails is counted, logged, and due again after its interval: it
 * does not keep the others from running.
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

static Statement choose = {
	"SELECT t.name, t.command FROM event_store.worker_tasks AS t"
	" WHERE t.enabled AND (t.next_run_at IS NULL OR t.next_run_at <= $1)"
	" ORDER BY t.next_run_at NULLS FIRST, t.name",
	1, {TIMESTAMPTZOID}
};

static Statement make_row = {
	"INSERT INTO event_store.worker_task_run (name) VALUES ($1) ON CONFLICT (name) DO NOTHING",
	1, {TEXTOID}
};

static Statement lock_row = {
	"SELECT FROM event_store.worker_task_run AS r"
	" WHERE r.name = $1 AND (r.next_run_at IS NULL OR r.next_run_at <= $2)"
	" FOR UPDATE SKIP LOCKED",
	2, {TEXTOID, TIMESTAMPTZOID}
};

static Statement note_run = {
	"UPDATE event_store.worker_task_run AS r"
	" SET last_started_at = $2, last_finished_at = pg_catalog.clock_timestamp(), runs = r.runs + 1,"
	" failures = r.failures + ($3 IS NOT NULL)::int,"
	" last_failed_at = CASE WHEN $3 IS NULL THEN r.last_failed_at ELSE pg_catalog.clock_timestamp() END,"
	" last_error = coalesce($3, r.last_error),"
	" next_run_at = pg_catalog.clock_timestamp() +"
	" coalesce((SELECT t.run_every FROM event_store.worker_tasks AS t WHERE t.name = $1), '1 hour')"
	" WHERE r.name = $1",
	3, {TEXTOID, TIMESTAMPTZOID, TEXTOID}
};

static Statement next_run = {
	"SELECT min(coalesce(t.next_run_at, '-infinity')) FROM event_store.worker_tasks AS t WHERE t.enabled"
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
	"UPDATE event_store.worker_task_run SET next_run_at = NULL WHERE name = $1",
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

/* Runs a task, if nobody else has it or has just run it. */
static bool
run_task(const char *name, const char *command, TimestampTz due, bool in_worker)
{
	Datum		values[3];
	char		nulls[3] = {' ', ' ', 'n'};
	char	   *message;
	LOCKTAG		tag;

	/* to the end of the transaction; before the row, which may not be there yet */
	locks_set_tag(&tag, LOCK_CLASS_TASK,
				  DatumGetUInt64(hash_any_extended((const unsigned char *) name, strlen(name), 0)));
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	values[0] = CStringGetTextDatum(name);
	values[1] = TimestampTzGetDatum(due);
	(void) plans_execute(&make_row, values, nulls);
	if (plans_execute(&lock_row, values, nulls) == 0)
		return false;
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	message = run_command(name, command, in_worker);
	values[2] = (Datum) 0;
	if (message != NULL)
	{
		values[2] = CStringGetTextDatum(message);
		nulls[2] = ' ';
	}
	(void) plans_execute(&note_run, values, nulls);
	return true;
}

/*
 * Runs the task that has been due for longest at a time, in the transaction that
 * there is.  False: none was, or others have them all.
 */
bool
task_run_next(TimestampTz due, bool in_worker)
{
	Datum		values[1] = {TimestampTzGetDatum(due)};
	bool		done = false;
	int			guc_level;
	SPITupleTable *table;
	uint64		count;

	guc_level = plans_connect();
	count = plans_execute(&choose, values, NULL);
	table = SPI_tuptable;
	for (uint64 i = 0; i < count && !done; i++)
		done = run_task(SPI_getvalue(table->vals[i], table->tupdesc, 1),
						SPI_getvalue(table->vals[i], table->tupdesc, 2),
						due, in_worker);
	plans_finish(guc_level);
	return done;
}

/* When the next task is due. */
TimestampTz
task_next_run(void)
{
	TimestampTz next = DT_NOEND;
	int			guc_level;
	bool		isnull;
	Datum		value;

	guc_level = plans_connect();
	(void) plans_execute(&next_run, NULL, NULL);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (!isnull)
		next = DatumGetTimestampTz(value);
	plans_finish(guc_level);
	return next;
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

	PreventCommandDuringRecovery("event_store.run_tasks()");
	PreventCommandIfReadOnly("event_store.run_tasks()");
	catalog_require_owner(store);

	/* tasks are the owner's, and get no rights of a caller who has more */
	GetUserIdAndSecContext(&saved_user, &saved_context);
	if (saved_user != owner)
		SetUserIdAndSecContext(owner, saved_context | SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION);
	/* what was due at the beginning: each once */
	while (task_run_next(now, false))
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
