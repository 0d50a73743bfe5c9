/*
 * task.c
 *		The tasks of the worker, which anybody else may run as well.
 *
 * A task is an SQL command with an interval.  To run one, in a transaction:
 *
 * 1. choose the task that is due for longest;
 * 2. lock its row in worker_task_run, or pass it by if somebody else has it;
 * 3. run the command, in a subtransaction;
 * 4. write down how it went, and when it is due again.
 *
 * The lock on the row keeps two runners from running one task at once.  A
 * command that fails is counted, logged, and due again after its interval: it
 * does not keep the others from running.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/errors.h"
#include "common/names.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(event_store_run_tasks);
PG_FUNCTION_INFO_V1(event_store_set_task);
PG_FUNCTION_INFO_V1(event_store_drop_task);

static const char *const choose_sql =
"SELECT t.name, t.command FROM event_store.worker_tasks AS t"
" WHERE t.enabled AND (t.next_run_at IS NULL OR t.next_run_at <= pg_catalog.clock_timestamp())"
" ORDER BY t.next_run_at NULLS FIRST, t.name";

static const char *const make_row_sql =
"INSERT INTO event_store.worker_task_run (name) VALUES ($1) ON CONFLICT (name) DO NOTHING";

static const char *const lock_row_sql =
"SELECT FROM event_store.worker_task_run AS r"
" WHERE r.name = $1 AND (r.next_run_at IS NULL OR r.next_run_at <= pg_catalog.clock_timestamp())"
" FOR UPDATE SKIP LOCKED";

static const char *const note_sql =
"UPDATE event_store.worker_task_run AS r"
" SET last_started_at = $2, last_finished_at = pg_catalog.clock_timestamp(), runs = r.runs + 1,"
" failures = r.failures + ($3 IS NOT NULL)::int,"
" last_failed_at = CASE WHEN $3 IS NULL THEN r.last_failed_at ELSE pg_catalog.clock_timestamp() END,"
" last_error = coalesce($3, r.last_error),"
" next_run_at = pg_catalog.clock_timestamp() +"
" coalesce((SELECT t.run_every FROM event_store.worker_tasks AS t WHERE t.name = $1), '1 hour')"
" WHERE r.name = $1";

static const char *const next_sql =
"SELECT min(coalesce(t.next_run_at, '-infinity')) FROM event_store.worker_tasks AS t WHERE t.enabled";

static SPIPlanPtr choose_plan;
static SPIPlanPtr make_row_plan;
static SPIPlanPtr lock_row_plan;
static SPIPlanPtr note_plan;
static SPIPlanPtr next_plan;

static SPIPlanPtr
plan_once(SPIPlanPtr *plan, const char *sql, int nargs, Oid *types)
{
	if (*plan == NULL)
	{
		SPIPlanPtr	made = SPI_prepare(sql, nargs, types);

		if (made == NULL)
			elog(ERROR, "could not prepare \"%s\"", sql);
		SPI_keepplan(made);
		*plan = made;
	}
	return *plan;
}

static void
execute(SPIPlanPtr plan, Datum *values, const char *nulls)
{
	int			result = SPI_execute_plan(plan, values, nulls, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute a statement of the tasks: %s",
			 SPI_result_code_string(result));
}

/*
 * Runs a command in a subtransaction.  Returns the message of its error, in the
 * caller's context, or NULL.
 */
static char *
run_command(const char *name, const char *command)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	char	   *volatile message = NULL;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		int			result = SPI_execute(command, false, 0);

		if (result < 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("command of task \"%s\" cannot be executed: %s", name,
							SPI_result_code_string(result))));
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
		/* who cancels means the runner, not the task */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		message = psprintf("%s: %s", unpack_sql_state(error->sqlerrcode), error->message);
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("task \"%s\" failed: %s", name, error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0));
		FreeErrorData(error);
	}
	PG_END_TRY();
	return message;
}

/* Runs a task, if nobody else has it or has just run it. */
static bool
run_task(const char *name, const char *command)
{
	Oid			types[3] = {TEXTOID, TIMESTAMPTZOID, TEXTOID};
	Datum		values[3];
	char		nulls[3] = {' ', ' ', 'n'};
	char	   *message;

	values[0] = CStringGetTextDatum(name);
	execute(plan_once(&make_row_plan, make_row_sql, 1, types), values, nulls);
	execute(plan_once(&lock_row_plan, lock_row_sql, 1, types), values, nulls);
	if (SPI_processed == 0)
		return false;
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	message = run_command(name, command);
	values[2] = (Datum) 0;
	if (message != NULL)
	{
		values[2] = CStringGetTextDatum(message);
		nulls[2] = ' ';
	}
	execute(plan_once(&note_plan, note_sql, 3, types), values, nulls);
	return true;
}

/*
 * Runs the task that is due for longest, in the transaction that there is.
 * False: none is due, or others have them all.
 */
bool
task_run_next(void)
{
	bool		done = false;
	SPITupleTable *table;
	uint64		count;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	execute(plan_once(&choose_plan, choose_sql, 0, NULL), NULL, NULL);
	table = SPI_tuptable;
	count = SPI_processed;
	for (uint64 i = 0; i < count && !done; i++)
		done = run_task(SPI_getvalue(table->vals[i], table->tupdesc, 1),
						SPI_getvalue(table->vals[i], table->tupdesc, 2));
	SPI_finish();
	return done;
}

/* When the next task is due. */
TimestampTz
task_next_run(void)
{
	TimestampTz next = DT_NOEND;
	bool		isnull;
	Datum		value;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	execute(plan_once(&next_plan, next_sql, 0, NULL), NULL, NULL);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (!isnull)
		next = DatumGetTimestampTz(value);
	SPI_finish();
	return next;
}

Datum
event_store_run_tasks(PG_FUNCTION_ARGS)
{
	int			count = 0;

	PreventCommandDuringRecovery("event_store.run_tasks()");
	PreventCommandIfReadOnly("event_store.run_tasks()");
	catalog_require_owner(catalog_store());
	while (task_run_next())
	{
		count++;
		CHECK_FOR_INTERRUPTS();
	}
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
	static const char *const sql =
		"INSERT INTO event_store.worker_task AS t (name, run_every, command, enabled)"
		" SELECT $1, coalesce($2, b.run_every, '1 minute'), $3, coalesce($4, true)"
		" FROM (SELECT) AS one LEFT JOIN event_store.builtin_tasks() AS b ON b.name = $1"
		" WHERE coalesce($3, b.command,"
		" (SELECT o.command FROM event_store.worker_task AS o WHERE o.name = $1)) IS NOT NULL"
		" ON CONFLICT (name) DO UPDATE"
		" SET run_every = coalesce($2, t.run_every), command = coalesce($3, t.command),"
		" enabled = coalesce($4, t.enabled)";
	Oid			types[4] = {TEXTOID, INTERVALOID, TEXTOID, BOOLOID};
	Datum		values[4];
	char		nulls[4];
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

		if (every->month < 0 || every->day < 0 ||
			(every->month == 0 && every->day == 0 && every->time < USECS_PER_SEC / 10) ||
			every->time < 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("run_every must be 100 ms or more")));
	}
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(sql, 4, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not write event_store.worker_task");
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("task \"%s\" is new, and needs a command",
						text_to_cstring(name))));
	/* it is due anew by what it is now */
	if (SPI_execute_with_args("UPDATE event_store.worker_task_run SET next_run_at = NULL WHERE name = $1",
							  1, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not write event_store.worker_task_run");
	SPI_finish();
	PG_RETURN_VOID();
}

Datum
event_store_drop_task(PG_FUNCTION_ARGS)
{
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	bool		found;

	values[0] = PointerGetDatum(task_name_argument(fcinfo, "event_store.drop_task()"));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("DELETE FROM event_store.worker_task WHERE name = $1",
							  1, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not write event_store.worker_task");
	found = SPI_processed > 0;
	if (SPI_execute_with_args("DELETE FROM event_store.worker_task_run WHERE name = $1",
							  1, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not write event_store.worker_task_run");
	SPI_finish();
	PG_RETURN_BOOL(found);
}
