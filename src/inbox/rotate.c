/*
 * rotate.c
 *		Forgetting what is beyond its window: whole parts at a time.
 *
 * A window has three parts: the current one, where entries are written, the last
 * one, which was the current one before, and the oldest.  What may be done with
 * a window, each step where it is due and possible:
 *
 * seal: write down that all transactions that have written into the last part
 *	  have ended, which shows by a lock on it that none of them would let pass; and
 *	  whether it is empty;
 * empty: TRUNCATE the oldest part, when it was sealed longer ago than the window
 *	  is long, and as many entries are in the others as it is to hold;
 * turn: the oldest part, if it is empty, becomes the current one, when the current
 *	  one has served for the length of the window.
 *
 * Locks: the window's (LOCK_CLASS_INBOX, its id), ShareLock on a part for an
 * instant, AccessExclusiveLock on one that is emptied and ShareLock on one that
 * becomes the current one, to the end of the transaction.  All are only tried: what cannot be had is left for next time.
 * Nothing is waited for and nothing counted while a part is locked, and parts
 * are emptied in short transactions only: by the worker, by a call that is a
 * transaction by itself, or else by a background process that is started for it.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/background.h"
#include "common/compat.h"
#include "common/guc.h"
#include "common/locks.h"
#include "common/plans.h"
#include "inbox/inbox.h"

PG_FUNCTION_INFO_V1(event_store_rotate_inbox);

#define MAX_PAUSE	(60 * USECS_PER_SEC)
#define MAX_ROUNDS	10
#define ROUND_MS	10
#define LOCK_TIMEOUT_MS	"1000"

/* what is to be done with a window */
typedef struct Rotation
{
	Window		window;			/* as it was found */
	bool		empty;
	bool		turn;
} Rotation;

static Statement make_turn = {
	"INSERT INTO event_store.inbox_turn (window_id, turn, opened_at)"
	" VALUES ($1, 0, pg_catalog.clock_timestamp()) ON CONFLICT (window_id) DO NOTHING",
	1, {INT4OID}
};

/* do the parts of a window go with the extension? */
static Statement owned = {
	"SELECT FROM pg_catalog.pg_depend AS d"
	" WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = $1"
	" AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = $2"
	" AND d.deptype = 'a'",
	2, {OIDOID, OIDOID}
};

static Statement seal = {
	"UPDATE event_store.inbox_turn SET"
	" last_sealed_at = CASE WHEN $2 THEN pg_catalog.clock_timestamp() ELSE last_sealed_at END,"
	" oldest_sealed_at = CASE WHEN $3 THEN pg_catalog.clock_timestamp() ELSE oldest_sealed_at END,"
	" last_is_empty = last_is_empty OR $4"
	" WHERE window_id = $1",
	4, {INT4OID, BOOLOID, BOOLOID, BOOLOID}
};

static Statement note_empty = {
	"UPDATE event_store.inbox_turn SET oldest_is_empty = true WHERE window_id = $1",
	1, {INT4OID}
};

static Statement turn = {
	"UPDATE event_store.inbox_turn SET turn = turn + 1, opened_at = pg_catalog.clock_timestamp(),"
	" oldest_sealed_at = last_sealed_at, last_sealed_at = NULL,"
	" oldest_is_empty = last_is_empty, last_is_empty = false"
	" WHERE window_id = $1",
	1, {INT4OID}
};

/* ----------------------------------------------------------------
 * The steps
 * ----------------------------------------------------------------
 */

static bool
try_window(int32 id)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_INBOX, (uint64) id);
	return LockAcquire(&tag, ExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Have all ended that have written into a part which is not the current one?
 * Nobody begins to: see README.md.
 */
static bool
try_seal(Oid part)
{
	Relation	rel;
	bool		ours;

	if (!ConditionalLockRelationOid(part, ShareLock))
		return false;
	/* our own transaction, which does not stand in its own way, has not */
	rel = try_table_open(part, NoLock);
	ours = rel == NULL || CheckRelationLockedByMe(rel, RowExclusiveLock, false);
	if (rel != NULL)
		table_close(rel, NoLock);
	UnlockRelationOid(part, ShareLock);
	return !ours;
}

/* Pages of a part, and entries that they hold at most, by what is known. */
static bool
part_is_empty(Oid part)
{
	Relation	rel = try_table_open(part, AccessShareLock);
	bool		empty;

	if (rel == NULL)
		return false;
	empty = RelationGetNumberOfBlocks(rel) == 0;
	table_close(rel, AccessShareLock);
	return empty;
}

/*
 * Has a part so many entries, or two parts together?  Counted only where there
 * are enough pages for it; where VACUUM or ANALYZE has found how many rows a
 * page has, that is believed, to a tenth.
 */
static double
guess_entries(Oid part)
{
	Relation	rel = try_table_open(part, AccessShareLock);
	double		guess;

	if (rel == NULL)
		return 0;
	guess = (double) RelationGetNumberOfBlocks(rel) * MAX_PAGE_ENTRIES;
	if (rel->rd_rel->relpages > 0 && rel->rd_rel->reltuples >= 0)
		guess = Min(guess, RelationGetNumberOfBlocks(rel) * 1.1 *
					(rel->rd_rel->reltuples + 1) / rel->rd_rel->relpages);
	table_close(rel, AccessShareLock);
	return guess;
}

static int64
count_entries(const Window *window, int part)
{
	bool		isnull;

	if (SPI_execute(psprintf("SELECT pg_catalog.count(*) FROM event_store.inbox_%d_%d",
							 window->id, part), false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not count entries");
	return DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

static bool
has_entries(const Window *window, int64 wanted, int part, int other)
{
	double		guess = guess_entries(window->parts[part]);

	if (other >= 0)
		guess += guess_entries(window->parts[other]);
	if (guess < wanted)
		return false;
	wanted -= count_entries(window, part);
	if (other >= 0 && wanted > 0)
		wanted -= count_entries(window, other);
	return wanted <= 0;
}

static bool
oldest_is_beyond(const Window *window, TimestampTz now)
{
	if (window->keep_usec > 0 && window->oldest_sealed_at + window->keep_usec > now)
		return false;
	return window->keep_count == 0 ||
		has_entries(window, window->keep_count, WINDOW_LAST(window->turn),
					WINDOW_CURRENT(window->turn));
}

static bool
current_has_served(const Window *window, TimestampTz now)
{
	if (window->keep_usec > 0 && window->opened_at + window->keep_usec > now)
		return false;
	return window->keep_count == 0 ||
		has_entries(window, window->keep_count, WINDOW_CURRENT(window->turn), -1);
}

/* Seals what can be sealed, and finds out what else is to be done. */
static bool
plan_rotation(int32 id, Rotation *rotation)
{
	Window	   *window = &rotation->window;
	Datum		values[4] = {Int32GetDatum(id)};
	bool		found = false;
	bool		seal_last;
	bool		seal_oldest;
	TimestampTz now;

	memset(rotation, 0, sizeof(Rotation));
	for (int i = window_count() - 1; i >= 0 && !found; i--)
		if (window_at(i)->id == id)
		{
			*window = *window_at(i);
			found = true;
		}
	if (!found)
		return false;
	if (!window->has_turn)
	{
		(void) plans_execute(&make_turn, values, NULL);
		window_own_parts(window);
		window->opened_at = GetCurrentTimestamp();
		CacheInvalidateRelcacheByRelid(catalog_inbox()->inbox_window);
	}
	else if (window->id != 0)
	{
		/* not in a store that was restored */
		Datum		oids[2] = {ObjectIdGetDatum(window->parts[0]),
		ObjectIdGetDatum(catalog_inbox()->inbox_window)};

		if (plans_execute(&owned, oids, NULL) == 0)
			window_own_parts(window);
	}
	seal_last = window->last_sealed_at == DT_NOBEGIN &&
		try_seal(window->parts[WINDOW_LAST(window->turn)]);
	seal_oldest = window->oldest_sealed_at == DT_NOBEGIN &&
		try_seal(window->parts[WINDOW_OLDEST(window->turn)]);
	now = GetCurrentTimestamp();
	if (seal_last || seal_oldest)
	{
		values[1] = BoolGetDatum(seal_last);
		values[2] = BoolGetDatum(seal_oldest);
		/* what is sealed and empty stays so until it is the current part again */
		values[3] = BoolGetDatum(seal_last &&
								 part_is_empty(window->parts[WINDOW_LAST(window->turn)]));
		(void) plans_execute(&seal, values, NULL);
		CacheInvalidateRelcacheByRelid(catalog_inbox()->inbox_window);
		if (seal_last)
			window->last_sealed_at = now;
		if (seal_oldest)
			window->oldest_sealed_at = now;
	}
	if (window->oldest_sealed_at == DT_NOBEGIN)
		return true;
	if (!window->oldest_is_empty)
		rotation->empty = part_is_empty(window->parts[WINDOW_OLDEST(window->turn)]) ||
			oldest_is_beyond(window, now);
	/* an idle one goes on as long as it is not known to be without entries of others */
	rotation->turn = window->last_sealed_at != DT_NOBEGIN &&
		(window->is_shared ||
		 !part_is_empty(window->parts[WINDOW_CURRENT(window->turn)]) ||
		 !part_is_empty(window->parts[WINDOW_LAST(window->turn)])) &&
		current_has_served(window, now);
	return true;
}

/* Returns how many parts were emptied. */
static int
carry_out(Rotation *rotation)
{
	Window	   *window = &rotation->window;
	Oid			oldest = window->parts[WINDOW_OLDEST(window->turn)];
	Datum		value = Int32GetDatum(window->id);
	int			emptied = 0;

	if (rotation->empty && !part_is_empty(oldest) &&
		ConditionalLockRelationOid(oldest, AccessExclusiveLock))
	{
		if (SPI_execute(psprintf("TRUNCATE event_store.inbox_%d_%d", window->id,
								 WINDOW_OLDEST(window->turn)), false, 0) < 0)
			elog(ERROR, "could not empty a part of a window");
		emptied = 1;
	}
	if (rotation->empty && part_is_empty(oldest))
	{
		(void) plans_execute(&note_empty, &value, NULL);
		CacheInvalidateRelcacheByRelid(catalog_inbox()->inbox_window);
		window->oldest_is_empty = true;
	}

	/*
	 * Until others are told, to which the end of the transaction comes before its
	 * locks go, nobody writes into a part that they believe to be empty.
	 */
	rotation->turn = rotation->turn && window->oldest_is_empty &&
		ConditionalLockRelationOid(oldest, ShareLock);
	if (rotation->turn)
	{
		(void) plans_execute(&turn, &value, NULL);
		window_own_parts(window);
		CacheInvalidateRelcacheByRelid(catalog_inbox()->inbox_window);
	}
	return emptied;
}

/*
 * Does what is to be done with all windows, or with one, as the owner; and with
 * window 0, if others have to look into it as long as it does not go on.  *more,
 * if wanted: is there a part left that could not be sealed?
 */
static int
rotate(int32 only, bool all, bool *more)
{
	const Store *store = catalog_store();
	Rotation   *rotations;
	int32	   *ids;
	int			count;
	bool		shared;
	int			planned = 0;
	int			emptied = 0;
	Oid			saved_user;
	int			saved_context;
	int			guc_level;

	GetUserIdAndSecContext(&saved_user, &saved_context);
	SetUserIdAndSecContext(catalog_owner(store),
						   saved_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	guc_level = plans_connect();
	count = window_count();
	shared = window_at(0)->is_shared;
	ids = palloc(sizeof(int32) * count);
	rotations = palloc(sizeof(Rotation) * count);
	for (int i = 0; i < count; i++)
		ids[i] = window_at(i)->id;
	for (int i = 0; i < count; i++)
	{
		if (!(all || ids[i] == only || (shared && ids[i] == 0)) || !try_window(ids[i]))
			continue;
		/* what the one before has done is committed, and so is known */
		AcceptInvalidationMessages();
		if (plan_rotation(ids[i], &rotations[planned]))
			planned++;
		CHECK_FOR_INTERRUPTS();
	}
	for (int i = 0; i < planned; i++)
	{
		emptied += carry_out(&rotations[i]);
		if (more != NULL && (rotations[i].turn ||
							 rotations[i].window.last_sealed_at == DT_NOBEGIN ||
							 rotations[i].window.oldest_sealed_at == DT_NOBEGIN))
			*more = true;
	}
	plans_finish(guc_level);
	SetUserIdAndSecContext(saved_user, saved_context);
	return emptied;
}

/* ----------------------------------------------------------------
 * The background process: short-lived, for one window or all
 * ----------------------------------------------------------------
 */

typedef struct RotationOrder
{
	Oid			database;
	int32		window;
	bool		all;
} RotationOrder;

void
event_store_inbox_worker_main(Datum arg)
{
	RotationOrder order;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(order.database, InvalidOid, 0);
	(void) set_config_option("default_transaction_read_only", "off", PGC_SUSET,
							 PGC_S_OVERRIDE, GUC_ACTION_SET, true, 0, false);
	(void) set_config_option("default_transaction_isolation", "read committed", PGC_SUSET,
							 PGC_S_OVERRIDE, GUC_ACTION_SET, true, 0, false);
	/* of two that block each other, DROP EXTENSION say, this one gives way */
	(void) set_config_option("lock_timeout", LOCK_TIMEOUT_MS, PGC_SUSET,
							 PGC_S_OVERRIDE, GUC_ACTION_SET, true, 0, false);
	(void) set_config_option("deadlock_timeout", "20ms", PGC_SUSET,
							 PGC_S_OVERRIDE, GUC_ACTION_SET, true, 0, false);
	pgstat_report_activity(STATE_RUNNING, "rotating event_store's inbox");

	/*
	 * What a turn has left open is seen to at once, as far as possible: the
	 * transactions that were writing then have mostly ended soon.
	 */
	for (int rounds = 0; rounds < MAX_ROUNDS; rounds++)
	{
		bool		more = false;

		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		if (catalog_store_exists())
			(void) rotate(order.window, order.all, &more);
		PopActiveSnapshot();
		CommitTransactionCommand();
		if (!more)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ROUND_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pgstat_report_activity(STATE_IDLE, NULL);
	proc_exit(0);
}

static bool
start_process(int32 window, bool all)
{
	RotationOrder order = {0};

	if (!guc_inbox_worker)
		return false;
	order.database = MyDatabaseId;
	order.window = window;
	order.all = all;
	return background_start("event_store_inbox_worker_main", "event_store inbox worker",
							&order, sizeof(order), NULL);
}

/*
 * Somebody who writes entries has noticed that a window wants to be looked
 * after.  As long as that changes nothing it is tried less and less often.
 */
void
rotate_notice(Window *window)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now < window->next_notice && window->next_notice - now <= MAX_PAUSE)
		return;
	window->next_notice = now + window->notice_pause;
	window->notice_pause = Min(window->notice_pause * 2, MAX_PAUSE);
	(void) start_process(window->id, false);
}

Datum
event_store_rotate_inbox(PG_FUNCTION_ARGS)
{
	PreventCommandDuringRecovery("event_store.rotate_inbox()");
	PreventCommandIfReadOnly("event_store.rotate_inbox()");
	PreventCommandIfParallelMode("event_store.rotate_inbox()");

	/* an empty part stays locked to the end of the transaction: a short one only */
	if (MyBackendType != B_BG_WORKER && (IsTransactionBlock() || IsSubTransaction() ||
								IsolationUsesXactSnapshot()))
	{
		(void) start_process(0, true);
		PG_RETURN_NULL();
	}
	PG_RETURN_INT32(rotate(0, true, NULL));
}
