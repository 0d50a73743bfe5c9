/*
 * run.c
 *		The worker of a database.
 *
 * It does two things, for as long as the store is there:
 *
 * - it is the notifier: woken by each end of a transaction that appended, it
 *	 wakes who waits for events, and sends one notification for all that have
 *	 become settled since the last one, at most every PAUSE;
 * - it runs the tasks that are due (task.c), each in a transaction of its own.
 *
 * It works as the owner of the store, with no more rights than that role has.
 *
 * While it waits it is in a transaction, without snapshot and id (wake.c says
 * why).  It ends, for good: at SIGTERM; when another notifier is there; when the
 * store is gone; and when somebody waits to drop, rename or copy the database,
 * which PostgreSQL lets him do only when nobody is in it.  An error ends it as
 * well; then the postmaster starts it anew, or the launcher does.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database_d.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/guc.h"
#include "notification/notification.h"
#include "position/position.h"
#include "worker/worker.h"

/* between two notifications */
#define PAUSE			INT64CONST(1000)

/* between looks for what nobody wakes the worker for */
#define LOOK_INTERVAL	(guc_look_interval * INT64CONST(1000))

/* between looks for tasks that are due, if there is one all the time */
#define TASK_PAUSE		(100 * INT64CONST(1000))

/* after a cancelled statement is a stop what was wanted? */
static volatile sig_atomic_t stop_wanted = false;

/* Ends the worker, and for that purpose what it is doing. */
static void
handle_stop(SIGNAL_ARGS)
{
	int			save_errno = errno;

	stop_wanted = true;
	QueryCancelPending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

static void
set_guc(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_OVERRIDE,
							 GUC_ACTION_SET, true, 0, false);
}

/* Does somebody wait for the database to be left by all? */
static bool
database_is_wanted(void)
{
	LOCKTAG		tag;
	int			count;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	(void) GetLockConflicts(&tag, RowExclusiveLock, &count);
	return count > 0;
}

/* Notifies of what has become settled; returns where to go on. */
static int64
notify(int64 position)
{
	int64		reached;

	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	wake_waiters();
	if (guc_notify == NOTIFY_OFF)
		return settled_mark();
	PushActiveSnapshot(GetTransactionSnapshot());
	reached = relay_send(position);
	PopActiveSnapshot();
	return reached;
}

/* Sleeps until woken, or a time has come; in a transaction. */
static void
wait_until(TimestampTz until)
{
	TimestampTz now = GetCurrentTimestamp();

	if (until > now)
	{
		pgstat_report_activity(STATE_IDLE, NULL);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 (until - now) / 1000 + 1, PG_WAIT_EXTENSION);
	}
	ResetLatch(MyLatch);
	if (stop_wanted)
		return;
	CHECK_FOR_INTERRUPTS();
}

/*
 * The loop.  Looks of its own are needed for what ends without waking anybody:
 * prepared transactions, and backends that were killed.
 */
static void
work(void)
{
	int64		notified = -1;	/* up to this position */
	TimestampTz notified_at = 0;
	TimestampTz next_look = 0;
	TimestampTz next_task = 0;

	while (!stop_wanted)
	{
		TimestampTz until = Min(next_look, next_task);
		TimestampTz now;

		StartTransactionCommand();
		wait_until(until);
		if (stop_wanted)
		{
			AbortCurrentTransaction();
			break;
		}
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			next_look = next_task = 0;
		}
		now = GetCurrentTimestamp();
		if (now >= next_look)
		{
			if (database_is_wanted() || !catalog_store_exists())
			{
				CommitTransactionCommand();
				return;
			}
			next_look = now + LOOK_INTERVAL;
		}
		if (notified < 0)
			notified = settled_mark();
		else if (counter_read() > notified)
		{
			if (now - notified_at < PAUSE && now >= notified_at)
				pg_usleep(PAUSE - (now - notified_at));
			SetCurrentStatementStartTimestamp();
			pgstat_report_activity(STATE_RUNNING, "sending notifications");
			notified = notify(notified);
			notified_at = GetCurrentTimestamp();
		}
		CommitTransactionCommand();

		while (!stop_wanted && next_task <= GetCurrentTimestamp())
		{
			bool		ran;

			SetCurrentStatementStartTimestamp();
			StartTransactionCommand();
			PushActiveSnapshot(GetTransactionSnapshot());
			pgstat_report_activity(STATE_RUNNING, "running tasks");
			ran = catalog_store_exists() && task_run_next();
			PopActiveSnapshot();
			CommitTransactionCommand();
			if (!ran)
			{
				StartTransactionCommand();
				PushActiveSnapshot(GetTransactionSnapshot());
				/* tasks that are new, or were altered, are found at the next look */
				next_task = GetCurrentTimestamp() + LOOK_INTERVAL;
				if (catalog_store_exists())
					next_task = Max(Min(next_task, task_next_run()),
									GetCurrentTimestamp() + TASK_PAUSE);
				PopActiveSnapshot();
				CommitTransactionCommand();
			}
			pgstat_report_stat(false);
		}
	}
}

void
event_store_worker_main(Datum arg)
{
	WorkerOrder order;
	sigjmp_buf	local_jump;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	pqsignal(SIGTERM, handle_stop);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(order.database, order.owner, 0);

	/* whatever the role or the database has set */
	set_guc("search_path", "pg_catalog, pg_temp");
	set_guc("default_transaction_isolation", "read committed");
	set_guc("default_transaction_read_only", "off");
	set_guc("default_transaction_deferrable", "off");
	set_guc("statement_timeout", "0");
	set_guc("lock_timeout", "0");
	set_guc("row_security", "on");

	if (!wake_become_notifier())
		proc_exit(0);

	/* a statement that was cancelled by a stop ends the worker, not the server's log */
	if (sigsetjmp(local_jump, 1) == 0)
	{
		PG_exception_stack = &local_jump;
		work();
		proc_exit(0);
	}
	PG_exception_stack = NULL;
	error_context_stack = NULL;
	HOLD_INTERRUPTS();
	if (!stop_wanted)
		EmitErrorReport();
	AbortOutOfAnyTransaction();
	proc_exit(stop_wanted ? 0 : 1);
}
