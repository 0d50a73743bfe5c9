/*
 * run.c
 *		The worker of a database.
 *
 * It does four things, for as long as the store is there:
 *
 * - it is the notifier: woken by each end of a transaction that appended, or
 *	 worked with a subscription, it wakes who waits for events, and sends one notification for all that have
 *	 become settled since the last one, at most every PAUSE;
 * - it runs the tasks that are due (task.c), each in a transaction of its own;
 * - it does what others ask it for at once (wake.c): its errands;
 * - when events have come it does what other folders have to do then, in short
 *	 pieces, at most every EVENT_PAUSE.
 *
 * It works as the owner of the store, with no more rights than that role has,
 * and ends when the store gets another owner.
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

/* between two notes of how far they have come */
#define NOTE_PAUSE		(1000 * INT64CONST(1000))

/* between looks for what nobody wakes the worker for */
#define LOOK_INTERVAL	(guc_look_interval * INT64CONST(1000))

/* between looks for tasks that are due, if there is one all the time */
#define TASK_PAUSE		(100 * INT64CONST(1000))

/* between two pieces of work on new events */
#define EVENT_PAUSE		(10 * INT64CONST(1000))

static volatile sig_atomic_t stop_wanted = false;

/* who does what somebody asks for */
static WorkerErrand errand = NULL;

/* and who has to do something when events have come */
static WorkerEventWork event_work = {NULL, NULL};

/* is the end of the process the end of the worker? */
static bool for_good = true;

/* Ends the worker, whatever it is doing: as die() does. */
static void
handle_stop(SIGNAL_ARGS)
{
	int			save_errno = errno;

	stop_wanted = true;
	ProcDiePending = true;
	InterruptPending = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/*
 * The last thing before the process lets go of shared memory.  PostgreSQL
 * releases session locks of this kind with a transaction that is aborted, which
 * need not be there.  And after exit status 1 the postmaster would start the
 * worker again: not after a stop, and not if it never came to connect.
 */
static void
leave(int code, Datum arg)
{
	AbortOutOfAnyTransaction();
	LockReleaseAll(DEFAULT_LOCKMETHOD, true);
	if (code != 0 && (stop_wanted || for_good))
		proc_exit(0);
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

/* Does the store, as whose owner we are here, still have that owner? */
static bool
store_is_ours(void)
{
	return catalog_store_exists() &&
		catalog_owner(catalog_store()) == GetSessionUserId();
}

/*
 * Notifies of what has become settled; returns where to go on.  What came before
 * this worker is told at once, whatever there is.
 */
static int64
notify(int64 position, bool is_first, bool *more)
{
	int64		reached;

	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	wake_waiters();
	*more = false;
	if (guc_notify == NOTIFY_OFF)
		return settled_mark();
	PushActiveSnapshot(GetTransactionSnapshot());
	reached = relay_send(position, is_first ? RELAY_BACK : RELAY_PIECE, more);
	PopActiveSnapshot();
	return reached;
}

/* Sleeps until woken, or a time has come; in a transaction.  Has somebody woken it? */
static bool
wait_until(TimestampTz until)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		woken = MyLatch->is_set;

	if (until > now)
	{
		pgstat_report_activity(STATE_IDLE, NULL);
		woken = (WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						   (until - now) / 1000 + 1, PG_WAIT_EXTENSION) & WL_LATCH_SET) != 0;
	}
	ResetLatch(MyLatch);
	/* there is nothing to cancel */
	QueryCancelPending = false;
	CHECK_FOR_INTERRUPTS();
	return woken;
}

/*
 * Runs a task that is due; returns when to look for the next.  One at a time, so
 * that notifications don't wait for all of them.
 */
static TimestampTz
run_a_task(void)
{
	TimestampTz next = GetCurrentTimestamp() + LOOK_INTERVAL;
	bool		ran = false;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, "running tasks");
	PushActiveSnapshot(GetTransactionSnapshot());
	if (store_is_ours())
	{
		TimestampTz next_run;

		ran = task_run_next(GetCurrentTimestamp(), true, &next_run);
		/* tasks that are new, or were altered, are found at the next look */
		if (!ran)
			next = Max(Min(next, next_run), GetCurrentTimestamp() + TASK_PAUSE);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(false);
	return ran ? GetCurrentTimestamp() : next;
}

/* Other folders do what the worker is asked for: they say how. */
void
worker_set_errand(WorkerErrand does)
{
	errand = does;
}

void
worker_set_event_work(WorkerEventWork work)
{
	event_work = work;
}

/* An error of what was done for others is logged, and ends their transaction. */
static void
log_error(MemoryContext context)
{
	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(context);
	EmitErrorReport();
	AbortOutOfAnyTransaction();
	FlushErrorState();
	RESUME_INTERRUPTS();
}

static void
begin_for_others(const char *activity)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, activity);
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	PushActiveSnapshot(GetTransactionSnapshot());
}

/*
 * Notes how far listeners were told: with no other lock in hand, so as not to be in
 * a circle with who drops the extension.
 */
static void
note_told(int64 position)
{
	begin_for_others("noting what listeners were told");
	if (store_is_ours())
		relay_note_told(position);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * A piece of the work on new events, in a transaction of its own.  Its effects and
 * how far it has come are lost together in a crash, so that need not wait for the
 * disk.  Returns whether there is more of it.
 */
static bool
run_event_work(void)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool more = false;

	PG_TRY();
	{
		begin_for_others("working on new events");
		if (store_is_ours())
			more = event_work.run();
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		log_error(context);
	}
	PG_END_TRY();
	pgstat_report_stat(false);
	return more;
}

/*
 * Does what it is asked for, in a transaction of its own.  Who asks waits for a
 * moment, and then does it himself, so an error is logged, and nothing else.
 */
static void
run_errand(uint64 key)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		/* who asked is told that it is there */
		begin_for_others("dealing with what was asked for");
		if (store_is_ours())
			errand(key);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		log_error(context);
	}
	PG_END_TRY();
	StartTransactionCommand();
	wake_askers(key);
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

/*
 * The loop.  Looks of its own are needed for what ends without waking anybody:
 * prepared transactions, and backends that were killed.
 */
static void
work(int64 notified)
{
	int64		noted = notified;	/* so far, for another worker to go on from */
	TimestampTz noted_at = 0;
	TimestampTz notified_at = 0;
	TimestampTz next_look = 0;
	TimestampTz next_task = 0;
	TimestampTz next_work = 0;
	bool		more = false;
	bool		is_first = true;
	bool		events = true;	/* have come since the last work on them */

	for (;;)
	{
		TimestampTz now;
		bool		woken;
		uint64	   *asked = NULL;
		int			nasked = 0;

		StartTransactionCommand();
		now = Min(next_look, next_task);
		if (events && event_work.wanted != NULL && event_work.wanted())
			now = Min(now, next_work);
		woken = wait_until(more ? 0 : now);
		events |= woken;
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			next_look = next_task = 0;
		}
		now = GetCurrentTimestamp();
		if (now >= next_look)
		{
			if (database_is_wanted() || !store_is_ours())
				return;
			next_look = now + LOOK_INTERVAL;
		}
		if (woken || counter_read() > notified)
		{
			if (now - notified_at < PAUSE && now >= notified_at)
				pg_usleep(PAUSE - (now - notified_at));
			if (counter_read() > notified)
			{
				SetCurrentStatementStartTimestamp();
				pgstat_report_activity(STATE_RUNNING, "sending notifications");
				notified = notify(notified, is_first, &more);
				is_first = false;
			}
			else
				/* who has woken it let go of what others wait for, perhaps */
				wake_waiters();
			notified_at = GetCurrentTimestamp();
		}
		if (woken && errand != NULL)
		{
			MemoryContext saved = MemoryContextSwitchTo(TopMemoryContext);

			asked = wake_asked(&nasked);
			MemoryContextSwitchTo(saved);
		}
		CommitTransactionCommand();
		if (notified != noted && (now - noted_at >= NOTE_PAUSE || now < noted_at))
		{
			note_told(notified);
			noted = notified;
			noted_at = now;
		}
		for (int i = 0; i < nasked; i++)
			run_errand(asked[i]);
		if (asked != NULL)
			pfree(asked);
		now = GetCurrentTimestamp();
		if (events && next_work <= now && event_work.wanted != NULL && event_work.wanted())
		{
			events = run_event_work();
			/* half of the time is for the rest */
			next_work = GetCurrentTimestamp();
			next_work += Max(next_work - now, EVENT_PAUSE);
		}
		if (next_task <= GetCurrentTimestamp())
			next_task = run_a_task();
	}
}

void
event_store_worker_main(Datum arg)
{
	WorkerOrder order;
	int64		mark = 0;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	pqsignal(SIGTERM, handle_stop);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	before_shmem_exit(leave, (Datum) 0);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(order.database, order.owner, 0);

	/* whatever the role or the database has set */
	set_guc("search_path", "pg_catalog, pg_temp");
	set_guc("default_transaction_isolation", "read committed");
	set_guc("default_transaction_read_only", "off");
	set_guc("default_transaction_deferrable", "off");
	set_guc("statement_timeout", "0");
	set_guc("lock_timeout", "0");
	if (compat_has_transaction_timeout)
		set_guc("transaction_timeout", "0");
	set_guc("row_security", "on");

	/* what is appended from now on is our business, and what was left to one before */
	StartTransactionCommand();
	if (!store_is_ours())
		proc_exit(0);
	PushActiveSnapshot(GetTransactionSnapshot());
	mark = relay_told();
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (!wake_become_notifier())
		proc_exit(0);

	/* an error from here on is followed by another try */
	for_good = false;
	work(mark);
	proc_exit(0);
}
