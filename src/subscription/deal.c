/*
 * deal.c
 *		Dealing for others: what consumers would otherwise do in transactions of
 *		their own, which may go on for long.
 *
 * Whoever deals has the cursor locked to the end of his transaction, and what he
 * has dealt is visible after it.  So a consumer that works in a transaction
 * should not have to:
 *
 * - deal_subscriptions(), a task of the worker, deals ahead, wherever less is
 *	 queued than a few polls want.  It never waits for a lock.
 * - a poll in a transaction block that finds nothing dealt asks the worker, if
 *	 there is one, and waits for it for a moment (wake.c).  Where that is not
 *	 possible, or takes too long, it deals itself.
 *
 * It is the same with another number of slots, for which the whole subscription
 * has to be locked.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "notification/notification.h"
#include "position/position.h"
#include "subscription/subscription.h"
#include "worker/worker.h"

PG_FUNCTION_INFO_V1(event_store_deal_subscriptions);

/*
 * Microseconds that a poll waits for the worker, looking now and then; if in vain, it
 * does not ask for so long.
 */
#define PATIENCE		(100 * INT64CONST(1000))
#define LOOK_EVERY		(10 * INT64CONST(1000))
#define DISTRUST		(1000 * INT64CONST(1000))

/* events that one call of deal_subscriptions() deals, more or less */
#define MAX_DEALT		50000

/* microseconds between looks at a log that has had nothing of interest */
#define FIRST_PAUSE		(1000 * INT64CONST(1000))
#define LAST_PAUSE		(60 * FIRST_PAUSE)

/*
 * Those that somebody has polled, that are behind the mark, and where less is
 * queued than two polls of each slot want; and those that want another number of
 * slots.
 */
static Statement candidates = {
	"SELECT s.id, s.name, c.version, c.poll_size, s.wanted_slots IS NOT NULL"
	" FROM event_store.subscription AS s"
	" CROSS JOIN LATERAL (SELECT k.* FROM event_store.subscription_cursor AS k"
	" WHERE k.subscription_id = s.id ORDER BY k.version DESC LIMIT 1) AS c"
	" WHERE NOT s.paused AND (s.wanted_slots IS NOT NULL"
	" OR ((s.slots > 1 OR s.mode = 'competing') AND c.poll_size > 0 AND c.checkpoint < $1"
	" AND (SELECT coalesce(sum(cardinality(q.positions)), 0) FROM"
	" (SELECT b.positions FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = s.id AND b.consumer IS NULL AND b.first_position >= c.oldest"
	" LIMIT $3) AS q) < least(greatest(2 * c.poll_size::int8 * s.slots, $2), $3)))"
	" ORDER BY s.wanted_slots IS NOT NULL, c.taken_at",
	3, {INT8OID, INT8OID, INT8OID}
};

/* who pauses it just now, say, is not waited for */
static Statement lock_row = {
	"SELECT FROM event_store.subscription AS s WHERE s.id = $1 FOR UPDATE SKIP LOCKED",
	1, {INT4OID}
};

static Statement name_of_id = {
	"SELECT s.name FROM event_store.subscription AS s WHERE s.id = $1",
	1, {INT4OID}
};

/* a subscription where there was nothing to deal, as the worker remembers it */
typedef struct Quiet
{
	int32		id;
	int64		version;		/* of the cursor */
	int64		pause;
	TimestampTz until;
} Quiet;

static HTAB *quiet = NULL;

/* the transaction that has dealt itself last, and of which subscription */
static FullTransactionId dealt_by;
static int32 dealt_id = 0;

/* until then the worker is not asked */
static TimestampTz distrust_until = 0;

/* ----------------------------------------------------------------
 * Dealing
 * ----------------------------------------------------------------
 */

/* Goes over to another number of slots, if one is wanted; false: not yet. */
static bool
reslot(Subscription *subscription)
{
	Datum		values[1] = {Int32GetDatum(subscription->id)};
	OwnerSwitch saved;
	bool		is_free;

	if (delivered_any(subscription->id) || !state_lock_whole(subscription))
		return false;
	state_read_again(subscription);
	if (subscription->wanted_slots == 0)
		return true;
	owner_begin(&saved);
	is_free = plans_execute(&lock_row, values, NULL) > 0;
	owner_end(&saved);
	if (is_free && group_reslot(subscription))
		return true;
	state_unlock_whole(subscription);
	return false;
}

/*
 * Deals for whoever comes, or changes the number of slots; waits for nobody.
 * Returns how many events it has dealt.
 */
static int64
deal_for_others(text *name, int poll_size)
{
	Subscription subscription;

	if (!state_read(name, STATE_TRY, &subscription))
		return 0;
	wake_at_end();
	if (subscription.paused ||
		(subscription.wanted_slots > 0 && !reslot(&subscription)) ||
		state_is_direct(&subscription))
		return 0;
	return batch_deal(&subscription, poll_size);
}

/* Has there been nothing to deal lately? */
static bool
is_quiet(int32 id, int64 version)
{
	Quiet	   *entry = quiet == NULL ? NULL : hash_search(quiet, &id, HASH_FIND, NULL);

	return entry != NULL && entry->version == version && GetCurrentTimestamp() < entry->until;
}

static void
note_quiet(int32 id, int64 version, bool is_so)
{
	Quiet	   *entry;
	bool		found;

	if (quiet == NULL)
	{
		HASHCTL		control;

		control.keysize = sizeof(int32);
		control.entrysize = sizeof(Quiet);
		control.hcxt = TopMemoryContext;
		quiet = hash_create("event_store quiet subscriptions", 64, &control,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	if (!is_so)
	{
		(void) hash_search(quiet, &id, HASH_REMOVE, NULL);
		return;
	}
	entry = hash_search(quiet, &id, HASH_ENTER, &found);
	entry->pause = found && entry->version == version ?
		Min(entry->pause * 2, LAST_PAUSE) : FIRST_PAUSE;
	entry->version = version;
	entry->until = GetCurrentTimestamp() + entry->pause;
}

Datum
event_store_deal_subscriptions(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[3];
	OwnerSwitch saved;
	SPITupleTable *table;
	uint64		n;
	int64		dealt = 0;
	text	  **names;
	int32	   *ids;
	int64	   *versions;
	int		   *sizes;
	bool	   *reslots;

	PreventCommandDuringRecovery("event_store.deal_subscriptions()");
	PreventCommandIfReadOnly("event_store.deal_subscriptions()");
	PreventCommandIfParallelMode("event_store.deal_subscriptions()");
	catalog_require_owner(catalog_store());
	values[0] = Int64GetDatum(settled_mark());
	values[1] = Int64GetDatum(DEAL_MIN);
	values[2] = Int64GetDatum(DEAL_MAX);
	owner_begin(&saved);
	n = plans_execute(&candidates, values, NULL);
	table = SPI_tuptable;
	MemoryContextSwitchTo(context);
	names = palloc(sizeof(text *) * Max(n, 1));
	ids = palloc(sizeof(int32) * Max(n, 1));
	versions = palloc(sizeof(int64) * Max(n, 1));
	sizes = palloc(sizeof(int) * Max(n, 1));
	reslots = palloc(sizeof(bool) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	row = table->vals[i];
		bool		isnull;

		ids[i] = DatumGetInt32(SPI_getbinval(row, table->tupdesc, 1, &isnull));
		names[i] = DatumGetTextPCopy(SPI_getbinval(row, table->tupdesc, 2, &isnull));
		versions[i] = DatumGetInt64(SPI_getbinval(row, table->tupdesc, 3, &isnull));
		sizes[i] = DatumGetInt32(SPI_getbinval(row, table->tupdesc, 4, &isnull));
		reslots[i] = DatumGetBool(SPI_getbinval(row, table->tupdesc, 5, &isnull));
	}
	owner_end(&saved);
	/* those that are to be locked as a whole come last: the transaction is at its end then */
	for (uint64 i = 0; i < n && dealt < MAX_DEALT; i++)
	{
		int64		count;

		CHECK_FOR_INTERRUPTS();
		if (!reslots[i] && is_quiet(ids[i], versions[i]))
			continue;
		count = deal_for_others(names[i], Max(sizes[i], 1));
		/* who calls it by himself means now */
		if (!reslots[i] && MyBgworkerEntry != NULL)
			note_quiet(ids[i], versions[i], count == 0);
		dealt += count;
	}
	PG_RETURN_INT64(dealt);
}

/* ----------------------------------------------------------------
 * Asking the worker
 * ----------------------------------------------------------------
 */

/* What is asked for: a subscription, and the size of a poll. */
static uint64
ask_key(int32 id, int poll_size)
{
	return ((uint64) (uint32) id << 32) | (uint32) poll_size;
}

/* The worker does what was asked for, in a transaction of its own. */
static void
do_errand(uint64 key)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[1] = {Int32GetDatum((int32) (key >> 32))};
	OwnerSwitch saved;
	text	   *name = NULL;
	bool		isnull;

	owner_begin(&saved);
	if (plans_execute(&name_of_id, values, NULL) > 0)
	{
		MemoryContextSwitchTo(context);
		name = DatumGetTextPCopy(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
											   &isnull));
	}
	owner_end(&saved);
	if (name != NULL)
		(void) deal_for_others(name, Max((int) (uint32) key, 1));
}

/*
 * Should the worker be asked?  In a transaction block, which may go on for long,
 * if it is there, and has answered so far.
 */
static bool
can_ask(void)
{
	TimestampTz now;

	if (!IsTransactionBlock() || !wake_notifier_is_there())
		return false;
	now = GetCurrentTimestamp();
	return now >= distrust_until || distrust_until - now > DISTRUST;
}

/* Has it been done? */
typedef bool (*Done) (Subscription *subscription);

static bool
has_gone_on(Subscription *subscription)
{
	int64		version = subscription->version;

	state_read_again(subscription);
	return subscription->version != version;
}

static bool
has_its_slots(Subscription *subscription)
{
	state_read_again(subscription);
	return subscription->wanted_slots == 0;
}

/* Asks the worker for something, and waits for it, if it doesn't take too long. */
static bool
ask(Subscription *subscription, int poll_size, Done done)
{
	uint64		key = ask_key(subscription->id, poll_size);
	TimestampTz until = GetCurrentTimestamp() + PATIENCE;
	bool		is_done = false;

	wake_begin_ask(key);
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();

		if (now >= until)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(until - now, LOOK_EVERY) / 1000 + 1, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if ((is_done = done(subscription)))
			break;
	}
	wake_end_ask(key);
	if (!is_done)
		distrust_until = GetCurrentTimestamp() + DISTRUST;
	return is_done;
}

/*
 * A poll has found too little dealt: more is, by the worker, by another or by itself.
 * False if there is nothing, or if another is just dealing.
 */
bool
deal_more(Subscription *subscription, int max_count)
{
	FullTransactionId mine = GetTopFullTransactionIdIfAny();
	int64		version = subscription->version;
	bool		dealt;

	if (can_ask() && !state_cursor_is_taken(subscription) &&
		!(dealt_id == subscription->id && FullTransactionIdIsValid(mine) &&
		  FullTransactionIdEquals(mine, dealt_by)))
	{
		SubscriptionScan *scan;
		Datum		values[RE_NATTS];
		bool		nulls[RE_NATTS];
		bool		found;
		int64		mark;

		state_read_again(subscription);
		version = subscription->version;
		scan = subscription_scan_open(subscription, subscription->checkpoint, 1, true);
		found = subscription_scan_next(scan, values, nulls);
		mark = subscription_scan_close(scan);
		if (!found && mark - subscription->checkpoint < DEAL_MAX)
			return false;
		if (ask(subscription, Min(max_count, DEAL_MAX), has_gone_on))
			return found;
	}
	dealt = batch_deal(subscription, max_count) > 0;
	if (dealt)
	{
		dealt_by = GetTopFullTransactionId();
		dealt_id = subscription->id;
	}
	/* or somebody else has, just before: the worker that was waited for, say */
	return dealt || subscription->version != version;
}

/*
 * A poll has found that another number of slots is wanted, and has done nothing
 * with the subscription yet.  False: it cannot go on.
 */
bool
deal_slots(Subscription *subscription)
{
	Consumer	nobody = {0};
	int		   *in_use;

	if (can_ask() && !delivered_any(subscription->id) &&
		batch_slots_in_use(subscription, &nobody, false, &in_use) == 0)
	{
		text	   *name = cstring_to_text(subscription->name);

		/* the worker needs all of it for itself */
		state_give_back(subscription);
		(void) ask(subscription, 1, has_its_slots);
		if (!state_read(name, STATE_TRY, subscription))
			return false;
		if (subscription->wanted_slots == 0)
			return true;
	}
	return reslot(subscription);
}

void
deal_init(void)
{
	worker_set_errand(do_errand);
}
