/*
 * launch.c
 *		Starting and stopping the worker of a database.
 *
 * Three processes:
 *
 * - the worker (run.c), one in each database that has one, as the store's owner;
 * - the launcher, with shared_preload_libraries only: it sees to it that each
 *	 database of event_store.worker_databases has a worker.  It is connected to
 *	 none of them, so it hires a
 * - starter for each: a process that lives for a moment, connects to the
 *	 database, looks who owns the store, and registers the worker.
 *
 * Whose database is taken out of the setting is stopped; the launcher goes on
 * to ask for that until it is gone.
 *
 * The launcher looks every LOOK_INTERVAL whether each worker is there, by its
 * lock. Where a starter did not help (no such database, no store in it, no slot
 * for a process) it is tried again after FIRST_BACK_OFF, and then after twice as
 * long each time, up to MAX_BACK_OFF.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "common/background.h"
#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/guc.h"
#include "common/locks.h"
#include "notification/notification.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(event_store_start_worker);
PG_FUNCTION_INFO_V1(event_store_stop_worker);

#define RESTART_SECONDS		10
#define LOOK_INTERVAL		(5 * USECS_PER_SEC)
#define FIRST_BACK_OFF		(5 * USECS_PER_SEC)
#define MAX_BACK_OFF		(300 * USECS_PER_SEC)
#define DISMISS_INTERVAL	(100 * INT64CONST(1000))
#define LOOK_MS				10

/* ----------------------------------------------------------------
 * The worker
 * ----------------------------------------------------------------
 */

static void
wait_a_moment(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 LOOK_MS, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * Registers the worker of this database, and waits until it has begun.  An
 * error that keeps it from beginning shows as no worker being there after it.
 */
static void
register_worker(int restart_time)
{
	const Store *store = catalog_store();
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	WorkerOrder order;
	HeapTuple	role;
	bool		can_login;
	pid_t		pid;

	memset(&order, 0, sizeof(order));
	order.database = MyDatabaseId;
	order.owner = catalog_owner(store);
	role = SearchSysCache1(AUTHOID, ObjectIdGetDatum(order.owner));
	if (!HeapTupleIsValid(role))
		elog(ERROR, "cache lookup failed for role %u", order.owner);
	can_login = ((Form_pg_authid) GETSTRUCT(role))->rolcanlogin;
	ReleaseSysCache(role);
	if (!can_login)
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_WORKER),
				 errmsg("the worker works as role \"%s\", which may not log in",
						GetUserNameFromId(order.owner, false)),
				 errhint("ALTER ROLE … LOGIN, or give the store another owner.")));

	background_describe(&worker, "event_store_worker_main", "event_store worker");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_restart_time = restart_time;
	worker.bgw_notify_pid = MyProcPid;
	StaticAssertStmt(sizeof(order) <= BGW_EXTRALEN, "order too large");
	memcpy(worker.bgw_extra, &order, sizeof(order));
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_WORKER),
				 errmsg("no slot is free for a background worker"),
				 errhint("Raise max_worker_processes, and restart the server.")));
	if (WaitForBackgroundWorkerStartup(handle, &pid) != BGWH_STARTED)
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_WORKER),
				 errmsg("the worker could not be started"),
				 errhint("The server's log may say why.")));
	while (!wake_notifier_is_here())
	{
		if (GetBackgroundWorkerPid(handle, &pid) != BGWH_STARTED)
			ereport(ERROR,
					(errcode(ERRCODE_VE_NO_WORKER),
					 errmsg("the worker has ended at once"),
					 errhint("The server's log may say why.")));
		wait_a_moment();
	}
}

/*
 * Starts one if there is none.  One call after the other: of two workers that are
 * on their way one would take the place of the other as soon as that is stopped.
 */
static bool
start_one(int restart_time)
{
	LOCKTAG		tag;
	bool		is_new;

	locks_set_tag(&tag, LOCK_CLASS_NOTIFIER, 1);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	is_new = !wake_notifier_is_here();
	if (is_new)
		register_worker(restart_time);
	(void) LockRelease(&tag, ExclusiveLock, false);
	return is_new;
}

Datum
event_store_start_worker(PG_FUNCTION_ARGS)
{
	const Store *store = catalog_store();
	Relation	event;
	bool		is_new;

	PreventCommandDuringRecovery("event_store.start_worker()");
	catalog_require_owner(store);
	event = table_open(store->event, AccessShareLock);
	is_new = event->rd_createSubid != InvalidSubTransactionId;
	table_close(event, AccessShareLock);
	if (is_new || IsBinaryUpgrade)
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_WORKER),
				 errmsg("the worker would not see the store"),
				 errhint("Commit the transaction that has made it first.")));
	PG_RETURN_BOOL(start_one(RESTART_SECONDS));
}

Datum
event_store_stop_worker(PG_FUNCTION_ARGS)
{
	int			pid = 0;
	bool		found = false;

	catalog_require_owner(catalog_store());
	for (;;)
	{
		int			now = wake_notifier_pid(MyDatabaseId);

		if (now == 0 && !wake_notifier_is_here())
			break;
		/* once for each process, should another take its place */
		if (now != 0 && now != pid)
		{
			if (kill(now, SIGTERM) != 0 && errno != ESRCH)
				ereport(ERROR,
						(errcode(ERRCODE_VE_NO_WORKER),
						 errmsg("could not send a signal to process %d: %m", now)));
			pid = now;
			found = true;
		}
		wait_a_moment();
	}
	/* whoever has seen it takes it for the notifier as long as the process is there */
	while (pid != 0 && kill(pid, 0) == 0)
		wait_a_moment();
	PG_RETURN_BOOL(found);
}

/* ----------------------------------------------------------------
 * The starter
 * ----------------------------------------------------------------
 */

void
event_store_starter_main(Datum arg)
{
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(MyBgworkerEntry->bgw_extra, NULL, 0);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!catalog_store_exists())
		ereport(FATAL,
				(errcode(ERRCODE_VE_NO_WORKER),
				 errmsg("database \"%s\" has no event store", MyBgworkerEntry->bgw_extra),
				 errhint("CREATE EXTENSION event_store there, or take the database out of event_store.worker_databases.")));
	(void) start_one(BGW_NEVER_RESTART);
	PopActiveSnapshot();
	CommitTransactionCommand();
	proc_exit(0);
}

/* ----------------------------------------------------------------
 * The launcher
 * ----------------------------------------------------------------
 */

/* a database that is to have a worker, or is to lose it */
typedef struct Place
{
	char	   *name;
	bool		leaves;
	TimestampTz next_try;
	int64		back_off;		/* 0: the last try went well */
} Place;

/*
 * Does a database have a worker?  *pid is its process id, or 0 while it is between
 * two transactions, or if there is none; -1: no such database.
 * The catalog is read from end to end: its indexes can be missing from the cache
 * of a process without database.
 */
static bool
has_worker(const char *database, int *pid)
{
	Oid			oid = InvalidOid;
	bool		found;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (strcmp(NameStr(form->datname), database) == 0)
			oid = form->oid;
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	/* within the transaction, whose memory it takes */
	found = OidIsValid(oid) && wake_notifier_is_in(oid);
	*pid = found ? wake_notifier_pid(oid) : OidIsValid(oid) ? 0 : -1;
	CommitTransactionCommand();
	return found;
}

/* The places of the setting, of which what is known is kept, and those that it had. */
static List *
read_places(List *places, MemoryContext context)
{
	MemoryContext saved = MemoryContextSwitchTo(context);
	List	   *result = NIL;
	List	   *names = NIL;
	ListCell   *cell;
	char	   *copy = pstrdup(guc_worker_databases);

	if (!SplitIdentifierString(copy, ',', &names))
		names = NIL;
	foreach(cell, names)
	{
		const char *name = lfirst(cell);
		Place	   *place = NULL;
		ListCell   *known;

		foreach(known, places)
			if (strcmp(((Place *) lfirst(known))->name, name) == 0)
				place = lfirst(known);
		if (place == NULL)
		{
			place = palloc0(sizeof(Place));
			place->name = pstrdup(name);
		}
		else
			places = list_delete_ptr(places, place);
		place->leaves = false;
		place->next_try = 0;
		result = lappend(result, place);
	}
	foreach(cell, places)
	{
		Place	   *place = lfirst(cell);

		place->leaves = true;
		place->next_try = 0;
		result = lappend(result, place);
	}
	list_free(places);
	list_free(names);
	pfree(copy);
	MemoryContextSwitchTo(saved);
	return result;
}

/* Has a starter do its work in a database. */
static void
hire_starter(const char *database)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	pid_t		pid;

	background_describe(&worker, "event_store_starter_main", "event_store starter");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_extra, database, BGW_EXTRALEN);
	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
		return;
	if (WaitForBackgroundWorkerStartup(handle, &pid) == BGWH_STARTED)
		(void) WaitForBackgroundWorkerShutdown(handle);
	pfree(handle);
}

/* Sees to it that there is a worker. */
static void
look_after(Place *place)
{
	int			pid;
	bool		found = has_worker(place->name, &pid);

	if (!found && pid == 0)
	{
		hire_starter(place->name);
		found = has_worker(place->name, &pid);
	}
	if (found)
	{
		place->back_off = 0;
		place->next_try = GetCurrentTimestamp() + LOOK_INTERVAL;
		return;
	}
	place->back_off = place->back_off == 0 ? FIRST_BACK_OFF :
		Min(place->back_off * 2, MAX_BACK_OFF);
	place->next_try = GetCurrentTimestamp() + place->back_off;
	ereport(LOG,
			(errcode(ERRCODE_VE_NO_WORKER),
			 errmsg("database \"%s\" has no event_store worker yet", place->name),
			 errdetail("The next try is in %lld seconds.",
					   (long long) (place->back_off / USECS_PER_SEC))));
}

/* Sees to it that there is none.  Returns whether that is so. */
static bool
dismiss(Place *place)
{
	int			pid;

	if (!has_worker(place->name, &pid))
		return true;
	if (pid != 0)
		(void) kill(pid, SIGTERM);
	place->next_try = GetCurrentTimestamp() + DISMISS_INTERVAL;
	return false;
}

void
event_store_launcher_main(Datum arg)
{
	List	   *places = NIL;
	bool		read = false;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	/* the shared catalogs, and no database */
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	while (!ShutdownRequestPending)
	{
		TimestampTz next = GetCurrentTimestamp() + MAX_BACK_OFF;
		TimestampTz now;
		ListCell   *cell;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending || !read)
		{
			if (ConfigReloadPending)
			{
				ConfigReloadPending = false;
				ProcessConfigFile(PGC_SIGHUP);
			}
			places = read_places(places, TopMemoryContext);
			read = true;
		}
		foreach(cell, places)
		{
			Place	   *place = lfirst(cell);

			if (place->next_try <= GetCurrentTimestamp() && !ShutdownRequestPending)
			{
				if (!place->leaves)
					look_after(place);
				else if (dismiss(place))
				{
					places = foreach_delete_current(places, cell);
					pfree(place->name);
					pfree(place);
					continue;
				}
			}
			next = Min(next, place->next_try);
		}
		now = GetCurrentTimestamp();
		/* a starter that was waited for may have taken the signal's latch */
		if (next > now && !ShutdownRequestPending && !ConfigReloadPending)
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 (next - now) / 1000 + 1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
	/* if that was not the end of the server, the postmaster starts it again */
	proc_exit(1);
}

/* The launcher is there only where the library is preloaded. */
void
launch_init(void)
{
	BackgroundWorker worker;

	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	background_describe(&worker, "event_store_launcher_main", "event_store launcher");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_restart_time = RESTART_SECONDS;
	RegisterBackgroundWorker(&worker);
}
