/*
 * settled.c
 *		The settled mark: the position up to which nothing can appear any more.
 *
 * Writer, once in each top-level transaction, before its first draw:
 *	 read the counter v; take the bound lock (v + 1) in ShareLock mode for the
 *	 top transaction's resource owner, so that no subtransaction's abort
 *	 releases it and PREPARE TRANSACTION keeps it; only then draw.
 *
 * Reader: read the counter C; list the bound locks; take a snapshot.  The mark
 *	 is min(C, lowest bound - 1), and holds for that snapshot and later ones.
 *
 * Bound locks conflict with nothing: nobody waits here.  The proof stands in
 * README.md.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/resowner.h"

#include "common/locks.h"
#include "position/position.h"

PG_FUNCTION_INFO_V1(event_store_settled_position);

/* the bound this top-level transaction holds, 0 for none */
static int64 own_bound = 0;

/*
 * Makes it known that this transaction is going to draw positions, all of them
 * above a value that the counter had before.
 */
void
settled_announce(int64 last_position)
{
	LOCKTAG		tag;
	ResourceOwner saved_owner;
	int64		bound = last_position + 1;

	Assert(own_bound == 0);
	locks_set_tag(&tag, LOCK_CLASS_BOUND, (uint64) bound);
	saved_owner = CurrentResourceOwner;
	PG_TRY();
	{
		CurrentResourceOwner = TopTransactionResourceOwner;
		(void) LockAcquire(&tag, ShareLock, false, false);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = saved_owner;
	}
	PG_END_TRY();
	own_bound = bound;
}

/* The lowest position this transaction may have drawn, 0 if it has none. */
int64
settled_own_bound(void)
{
	return own_bound;
}

/*
 * The settled mark as of now.  A snapshot taken after the call, and none taken
 * before it, shows every event up to there that there will ever be.
 *
 * A writer that takes its bound lock late, with a value that the counter had a
 * while ago, makes min(C, lowest bound - 1) fall below what it was. What was
 * settled once stays so: a backend never goes back behind a mark it has seen,
 * so that what it has delivered it can acknowledge.
 */
int64
settled_mark(void)
{
	static int64 highest = 0;
	static uint64 generation = 0;
	const Store *store = catalog_store();
	LockData   *locks;
	int64		mark;

	if (RecoveryInProgress())
		return counter_published_mark();
	/* another store begins anew */
	if (generation != store->generation)
	{
		highest = 0;
		generation = store->generation;
	}

	mark = counter_read();
	locks = GetLockStatusData();
	for (int i = 0; i < locks->nelements; i++)
	{
		LockInstanceData *lock = &locks->locks[i];
		LOCKTAG    *tag = &lock->locktag;

		if (tag->locktag_type == LOCKTAG_USERLOCK &&
			tag->locktag_field4 == LOCK_CLASS_BOUND &&
			tag->locktag_field1 == MyDatabaseId &&
			lock->holdMask != 0)
		{
			int64		bound = (int64) (((uint64) tag->locktag_field2 << 32) |
										 tag->locktag_field3);

			if (bound - 1 < mark)
				mark = bound - 1;
		}
	}
	pfree(locks->locks);
	pfree(locks);
	highest = Max(highest, mark);
	return highest;
}

/* The lock goes with the transaction: what remembers it goes, too. */
static void
forget_bound(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			own_bound = 0;
			break;
		default:
			break;
	}
}

/*
 * Who asks for the mark goes on with plain SQL, which is planned by what the
 * relation cache knows of the segments.  That can be outdated where a message
 * came in the middle of finding out: loading the map mends it (segment.c).
 */
Datum
event_store_settled_position(PG_FUNCTION_ARGS)
{
	int64		mark;

	catalog_require_sight(catalog_store());
	mark = settled_mark();
	segment_refresh();
	(void) segment_count();
	PG_RETURN_INT64(mark);
}

void
position_init(void)
{
	RegisterXactCallback(forget_bound, NULL);
}
