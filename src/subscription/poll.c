/*
 * poll.c
 *		Delivering events, and taking note of what is done with them.
 *
 * A poll locks the subscription to the end of the caller's transaction and
 * returns the next events; it writes nothing.  An acknowledgement in the same
 * transaction moves the checkpoint, so the consumer's own writes and the
 * checkpoint commit together, or not at all.  A rollback, a crash, or a commit
 * without acknowledgement leave the events where they were: they come again.
 *
 * Several polls in one transaction go on from each other: how far they have come
 * is kept in the backend.  A rollback to a savepoint forgets it, and then what
 * is not acknowledged comes again.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "nodes/plannodes.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/guc.h"
#include "notification/notification.h"
#include "position/position.h"
#include "subscription/subscription.h"

PG_FUNCTION_INFO_V1(event_store_poll);
PG_FUNCTION_INFO_V1(event_store_ack);
PG_FUNCTION_INFO_V1(event_store_ack_up_to);

/* columns of delivered_event behind those of recorded_event */
enum
{
	DE_ATTEMPT = RE_NATTS,
	DE_IS_REPLAY,
	DE_NATTS
};

/* positions that pass by unread before an empty poll moves the checkpoint */
#define WORTH_A_WRITE	1000

/* how far the polls of this transaction have come */
typedef struct Delivered
{
	int32		subscription_id;
	int64		position;
} Delivered;

static List *delivered = NIL;	/* in TopTransactionContext */

static Delivered *
delivered_of(int32 subscription_id, bool make)
{
	ListCell   *cell;
	Delivered  *found;
	MemoryContext saved;

	foreach(cell, delivered)
	{
		found = lfirst(cell);
		if (found->subscription_id == subscription_id)
			return found;
	}
	if (!make)
		return NULL;
	saved = MemoryContextSwitchTo(TopTransactionContext);
	found = palloc0(sizeof(Delivered));
	found->subscription_id = subscription_id;
	delivered = lappend(delivered, found);
	MemoryContextSwitchTo(saved);
	return found;
}

/* The next poll begins at the checkpoint again. */
void
poll_forget(int32 subscription_id)
{
	Delivered  *found = delivered_of(subscription_id, false);

	if (found != NULL)
		found->position = 0;
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		delivered = NIL;
}

static void
subxact_callback(SubXactEvent event, SubTransactionId my_subid,
				 SubTransactionId parent_subid, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		delivered = NIL;
}

static void
guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	catalog_require_read(catalog_store());
}

/* ----------------------------------------------------------------
 * Poll
 * ----------------------------------------------------------------
 */

/* Delivers what is open; returns how much. */
static int64
deliver(ReturnSetInfo *result, text *name, int32 max_count, bool auto_ack)
{
	Subscription subscription;
	SubscriptionScan *scan;
	Delivered  *before;
	Datum		values[DE_NATTS];
	bool		nulls[DE_NATTS];
	int64		count = 0;
	int64		after;
	int64		last = 0;
	int64		mark;

	if (!state_read(name, STATE_TRY, &subscription))
		return 0;
	wake_at_end();
	if (subscription.paused)
		return 0;
	before = delivered_of(subscription.id, false);
	after = Max(subscription.checkpoint, before == NULL ? 0 : before->position);
	nulls[DE_ATTEMPT] = nulls[DE_IS_REPLAY] = false;
	values[DE_ATTEMPT] = Int32GetDatum(1);

	scan = subscription_scan_open(&subscription, after, max_count, false);
	while (subscription_scan_next(scan, values, nulls))
	{
		last = DatumGetInt64(values[RE_POSITION]);
		values[DE_IS_REPLAY] = BoolGetDatum(last <= subscription.replay_until);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		count++;
	}
	mark = subscription_scan_close(scan);

	if (count > 0 && auto_ack)
	{
		/* what was delivered before, and is open, stays so */
		if (after > subscription.checkpoint)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("events that an earlier poll of this transaction delivered are not acknowledged"),
					 errhint("Acknowledge them first, or let that poll do it too.")));
		subscription.checkpoint = last;
		while (subscription.ndecided > 0 && subscription.decided[0] < last)
		{
			subscription.decided++;
			subscription.ndecided--;
		}
		state_write(&subscription, count);
	}
	else if (count > 0)
		delivered_of(subscription.id, true)->position = last;
	else if (before == NULL && subscription.ndecided == 0 &&
			 mark - subscription.checkpoint >= WORTH_A_WRITE && !IsolationUsesXactSnapshot())
	{
		/* there was nothing of interest up to the mark: don't look there again */
		subscription.checkpoint = mark;
		state_write(&subscription, 0);
	}
	return count;
}

/*
 * Is anything open, behind a position that an earlier look has come to?  Locks
 * nothing, so that who waits for events has no transaction id.
 */
static bool
is_open(text *name, int64 *looked_to)
{
	Subscription subscription;
	SubscriptionScan *scan;
	Delivered  *before;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	int64		after;
	bool		found;

	(void) state_read(name, STATE_LOOK, &subscription);
	if (subscription.paused)
		return false;
	before = delivered_of(subscription.id, false);
	after = Max(subscription.checkpoint, before == NULL ? 0 : before->position);
	/* a rewind takes the look back, too */
	if (after > *looked_to || subscription.checkpoint < subscription.replay_until)
		*looked_to = after;
	scan = subscription_scan_open(&subscription, *looked_to, 1, true);
	found = subscription_scan_next(scan, values, nulls);
	*looked_to = found ? after : Max(*looked_to, subscription_scan_mark(scan));
	(void) subscription_scan_close(scan);
	return found;
}

/*
 * May the transaction be without a snapshot while it waits?  If this is the
 * client's own statement, not one of a function; if its snapshot is the only
 * one; and if nothing is read by it any more, since it is nothing but SELECT
 * columns FROM this function.
 */
static bool
needs_no_snapshot(ReturnSetInfo *result)
{
	EState	   *estate = result->econtext->ecxt_estate;
	PlannedStmt *statement = estate == NULL ? NULL : estate->es_plannedstmt;
	ListCell   *cell;

	if (statement == NULL ||
		ActivePortal == NULL || ActivePortal->name[0] != '\0' ||
		ActivePortal->queryDesc == NULL || ActivePortal->queryDesc->estate != estate ||
		statement->commandType != CMD_SELECT || statement->subplans != NIL ||
		statement->rowMarks != NIL || !IsA(statement->planTree, FunctionScan) ||
		statement->planTree->qual != NIL)
		return false;
	foreach(cell, statement->planTree->targetlist)
		if (!IsA(lfirst_node(TargetEntry, cell)->expr, Var))
			return false;
	InvalidateCatalogSnapshot();
	return ThereAreNoPriorRegisteredSnapshots();
}

/*
 * Waits until somebody wakes us, or a time has come; returns whether it was the
 * first.
 *
 * The transaction lets go of its xmin meanwhile, if nothing reads by an older
 * snapshot afterwards: the next snapshot sets it anew.
 */
static bool
wait_for_events(TimestampTz until, ReturnSetInfo *result)
{
	TimestampTz now = GetCurrentTimestamp();
	long		timeout;
	int			woken;

	if (needs_no_snapshot(result))
		MyProc->xmin = InvalidTransactionId;
	timeout = Min((until - now) / 1000 + 1, guc_look_interval);
	woken = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					  Max(timeout, 0), PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return (woken & WL_LATCH_SET) != 0;
}

/*
 * A poll that waits looks without a lock first, and takes the lock when there
 * is something to deliver.  It is registered as one who waits before it looks,
 * so nothing that is appended after the look fails to wake it.
 *
 * Where nobody has woken it, a look costs more than it is worth as long as the
 * mark stands still; what COMMIT PREPARED has done to the subscription shows at
 * every tenth time.
 */
Datum
event_store_poll(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	text	   *name;
	int32		max_count;
	bool		auto_ack;
	TimestampTz until;
	int64		looked_to = -1;
	int64		seen = -1;
	bool		woken = false;
	bool		blocked = false;	/* there is something, but others have it */

	guard("event_store.poll()");
	name = state_name_argument(fcinfo, 0);
	max_count = PG_ARGISNULL(1) ? PG_INT32_MAX : PG_GETARG_INT32(1);
	if (max_count < 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("max_count must be positive")));
	auto_ack = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	InitMaterializedSRF(fcinfo, 0);

	/* what comes after its snapshot, such a transaction will never see */
	if (PG_ARGISNULL(2) || IsolationUsesXactSnapshot())
	{
		(void) deliver(result, name, max_count, auto_ack);
		return (Datum) 0;
	}

	until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(GetCurrentTimestamp()),
													PG_GETARG_DATUM(2)));
	wake_begin_wait();
	for (int times = 0;; times++)
	{
		int64		mark = settled_mark();

		if (woken || blocked || mark != seen || times % 10 == 0)
		{
			seen = mark;
			blocked = is_open(name, &looked_to);
			if (blocked && deliver(result, name, max_count, auto_ack) > 0)
				break;
		}
		if (GetCurrentTimestamp() >= until)
			break;
		woken = wait_for_events(until, result);
	}
	wake_end_wait();
	return (Datum) 0;
}

/* ----------------------------------------------------------------
 * Acknowledgement
 * ----------------------------------------------------------------
 */

/* The positions of an array, ascending. */
static int64 *
positions_argument(Datum value, int *count)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	Datum	   *elements;
	bool	   *nulls;
	int64	   *positions;

	deconstruct_array(array, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE,
					  &elements, &nulls, count);
	positions = palloc(sizeof(int64) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("positions must not contain NULL")));
		positions[i] = DatumGetInt64(elements[i]);
	}
	qsort(positions, *count, sizeof(int64), state_compare_positions);
	return positions;
}

/*
 * Decides events of a locked subscription: those at the given positions, or
 * all up to one.  The open events from the checkpoint on are read again, up to
 * the last of them: the checkpoint moves to the last event before the first
 * that stays open; what is decided behind that is kept in a list.  Returns how
 * many were open, and are not any more.
 */
static int64
decide(Subscription *subscription, const int64 *positions, int count, int64 up_to)
{
	int64		last = positions == NULL ? up_to : count == 0 ? 0 : positions[count - 1];
	int64	   *decided = palloc(sizeof(int64) * (subscription->ndecided + Max(count, 1)));
	int			ndecided = 0;
	int			next = 0;		/* of the list that there was */
	int64		checkpoint = subscription->checkpoint;
	bool		gap = false;
	int64		done = 0;
	SubscriptionScan *scan;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];

	if (last <= subscription->checkpoint)
		return 0;
	scan = subscription_scan_open(subscription, subscription->checkpoint, PG_INT64_MAX, true);
	while (subscription_scan_next(scan, values, nulls))
	{
		int64		position = DatumGetInt64(values[RE_POSITION]);

		/* those decided earlier lie between the open ones */
		for (; next < subscription->ndecided && subscription->decided[next] < position; next++)
		{
			if (gap)
				decided[ndecided++] = subscription->decided[next];
			else
				checkpoint = subscription->decided[next];
		}
		if (position > last)
		{
			/* an open event */
			gap = true;
			break;
		}
		if (positions == NULL ||
			bsearch(&position, positions, count, sizeof(int64), state_compare_positions) != NULL)
		{
			done++;
			if (!gap)
				checkpoint = position;
			else if (ndecided < MAX_DECIDED)
				decided[ndecided++] = position;
			else
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("too many events are acknowledged behind one that is open"),
						 errdetail("There can be %d; the open one has position %lld or the next after it.",
								   MAX_DECIDED, (long long) checkpoint),
						 errhint("Acknowledge events in their order, or that one first.")));
		}
		else
			gap = true;
	}
	(void) subscription_scan_close(scan);
	for (; next < subscription->ndecided; next++)
	{
		if (gap)
			decided[ndecided++] = subscription->decided[next];
		else
			checkpoint = subscription->decided[next];
	}
	if (done > 0)
	{
		subscription->checkpoint = checkpoint;
		subscription->decided = decided;
		subscription->ndecided = ndecided;
		state_write(subscription, done);
	}
	return done;
}

Datum
event_store_ack(PG_FUNCTION_ARGS)
{
	Subscription subscription;
	int64	   *positions;
	int			count;
	text	   *name;

	guard("event_store.ack()");
	name = state_name_argument(fcinfo, 0);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("positions must not be NULL")));
	positions = positions_argument(PG_GETARG_DATUM(1), &count);
	(void) state_read(name, STATE_LOCK, &subscription);
	wake_at_end();
	PG_RETURN_INT64(decide(&subscription, positions, count, 0));
}

Datum
event_store_ack_up_to(PG_FUNCTION_ARGS)
{
	Subscription subscription;
	text	   *name;
	int64		position;

	guard("event_store.ack_up_to()");
	name = state_name_argument(fcinfo, 0);
	if (PG_ARGISNULL(1) || PG_GETARG_INT64(1) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("position must be a position, or 0")));
	position = PG_GETARG_INT64(1);
	(void) state_read(name, STATE_LOCK, &subscription);
	wake_at_end();
	PG_RETURN_INT64(decide(&subscription, NULL, 0, position));
}

void
poll_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
