/*
 * counter.c
 *		The counter that positions are drawn from.
 *
 * A sequence would let anybody with the right to it reset it or change its
 * cache, and hands out one value at a time.  So the counter is the one row of
 * event_store.position_counter, changed in place, outside of transactions, by
 * the protocol that sequences use (nextval_internal() in
 * src/backend/commands/sequence.c):
 *
 * - A draw locks the row's page exclusively, moves last_position on by the
 *	 whole batch, and is done: positions of one call are contiguous.
 *
 * - Only when last_position passes logged_position, or when the page's last
 *	 record is not ours, or is older than the latest checkpoint's redo pointer,
 *	 the page is written to the WAL, with last_position set RESERVE ahead; after
 *	 that the page in memory gets the exact value back.  So after a crash the
 *	 counter stands at or beyond every position that a flushed record can know
 *	 of: a transaction that used the position has its commit record behind this
 *	 one.
 *
 * - Somebody else's record of the page (a full image for a hint bit, a rewrite
 *	 by VACUUM FULL) has the exact value, and so undoes the reserve.  The row
 *	 keeps the LSN of our own last record: when the page has another one, the
 *	 next draw writes a record of its own before it is used.
 *
 * - The record is always a full image (some 150 bytes, the page has one row):
 *	 a delta against a page that was changed without WAL would be wrong.
 *
 * recorded_at is taken under the same lock and never goes back, so that it
 * rises with position: a search by time is a binary search by position.
 *
 * The page carries a settled mark as well, for readers on standbys: see
 * settled.c.
 *
 * Lock order: nothing is locked while the page's lock is held.
 */
#include "postgres.h"

#include "access/generic_xlog.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "common/errors.h"
#include "common/ids.h"
#include "position/position.h"

PG_FUNCTION_INFO_V1(event_store_advance_position_counter);
PG_FUNCTION_INFO_V1(event_store_last_position);
PG_FUNCTION_INFO_V1(event_store_made_event_id);
PG_FUNCTION_INFO_V1(event_store_publish_settled_position);

/* how many positions a record of the counter covers beyond those drawn */
#define RESERVE		128

/* how often a draw publishes the settled mark, at most */
#define PUBLISH_INTERVAL	USECS_PER_SEC

/* the row as it stands on the page: seven columns of eight bytes, none NULL */
typedef struct CounterRow
{
	int64		last_position;
	int64		logged_position;
	int64		settled_position;
	TimestampTz recorded_at;
	TimestampTz settled_at;
	XLogRecPtr	logged_lsn;
	int64		id_key;
} CounterRow;

/* keys are below that, so that a sum with a position keeps its order */
#define MAX_ID_KEY	(INT64CONST(1) << 61)

/* the opened counter */
typedef struct Counter
{
	Relation	rel;
	Buffer		buffer;
	CounterRow *row;			/* on the page */
} Counter;

/*
 * The row on the page: of several, which only a restore with disabled triggers
 * can bring about, the one that is furthest.
 */
static CounterRow *
find_row(Page page)
{
	OffsetNumber max = PageGetMaxOffsetNumber(page);
	CounterRow *found = NULL;

	for (OffsetNumber off = FirstOffsetNumber; off <= max; off++)
	{
		ItemId		id = PageGetItemId(page, off);

		if (ItemIdIsNormal(id) &&
			ItemIdGetLength(id) >= MAXALIGN(SizeofHeapTupleHeader) + sizeof(CounterRow))
		{
			HeapTupleHeader tuple = (HeapTupleHeader) PageGetItem(page, id);
			CounterRow *row = (CounterRow *) ((char *) tuple + tuple->t_hoff);

			if (found == NULL || row->last_position > found->last_position)
				found = row;
		}
	}
	if (found == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("event_store.position_counter has lost its row"),
				 errhint("Restore the store from a backup.")));
	return found;
}

static Counter
open_counter(LOCKMODE relation_lock, int buffer_lock)
{
	Counter		counter;

	counter.rel = table_open(catalog_store()->counter, relation_lock);
	counter.buffer = ReadBuffer(counter.rel, 0);
	if (buffer_lock != BUFFER_LOCK_UNLOCK)
		LockBuffer(counter.buffer, buffer_lock);
	counter.row = find_row(BufferGetPage(counter.buffer));
	return counter;
}

static void
close_counter(Counter *counter, LOCKMODE relation_lock)
{
	UnlockReleaseBuffer(counter->buffer);
	table_close(counter->rel, relation_lock);
}

static CounterRow
read_row(void)
{
	Counter		counter = open_counter(AccessShareLock, BUFFER_LOCK_SHARE);
	CounterRow	row = *counter.row;

	close_counter(&counter, AccessShareLock);
	return row;
}

/* Writes *row to the page and to the WAL, covering RESERVE positions more. */
static void
log_row(Counter *counter, CounterRow *row)
{
	GenericXLogState *state = GenericXLogStart(counter->rel);
	Page		image = GenericXLogRegisterBuffer(state, counter->buffer,
												  GENERIC_XLOG_FULL_IMAGE);
	CounterRow *logged = (CounterRow *) (image + ((char *) counter->row -
												  (char *) BufferGetPage(counter->buffer)));

	row->logged_position = row->last_position + RESERVE;
	*logged = *row;
	logged->last_position = row->logged_position;
	row->logged_lsn = GenericXLogFinish(state);
	/* the page's lock is still ours: nobody saw the value of the image */
	*counter->row = *row;
}

/* The last position drawn. */
int64
counter_read(void)
{
	return read_row().last_position;
}

/* The settled mark that was published last. */
int64
counter_published_mark(void)
{
	return read_row().settled_position;
}

/*
 * The key that ids are computed with.  It never changes once there are events;
 * before that a restore can bring another.
 */
int64
counter_id_key(void)
{
	static uint64 generation = 0;
	static int64 key = 0;
	const Store *store = catalog_store();

	if (unlikely(generation != store->generation))
	{
		CounterRow	row = read_row();

		if (row.last_position == 0)
			return row.id_key;
		key = row.id_key;
		generation = store->generation;
	}
	return key;
}

Datum
event_store_made_event_id(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));

	ids_derive(id, PG_GETARG_INT64(0), PG_GETARG_TIMESTAMPTZ(1), counter_id_key());
	PG_RETURN_UUID_P(id);
}

/*
 * Draws count positions in one block; returns the first, and the time at which
 * they were drawn.  Announces the transaction before its first draw, with a
 * bound that is read before; it may be behind already, which is as good.
 */
int64
counter_draw(int64 count, TimestampTz *recorded_at)
{
	static TimestampTz published_at = DT_NOBEGIN;	/* as far as known here */
	Counter		counter;
	CounterRow	row;
	int64		first;
	int64		mark = 0;
	XLogRecPtr	page_lsn;
	TimestampTz now = GetCurrentTimestamp();

	Assert(count > 0);

	/*
	 * A look for the published mark takes other locks, so it comes before the
	 * page's: what is read here may be outdated, which only makes the mark
	 * lower, or its publication late by one draw.
	 */
	if (now - PUBLISH_INTERVAL >= published_at && XLogStandbyInfoActive())
	{
		published_at = read_row().settled_at;
		if (now - PUBLISH_INTERVAL >= published_at)
		{
			mark = settled_mark();
			published_at = now;
		}
	}

	counter = open_counter(RowExclusiveLock, BUFFER_LOCK_UNLOCK);
	if (settled_own_bound() == 0)
	{
		int64		last_position;

		/*
		 * Under the page's lock: while log_row() is at work the page shows a
		 * value that is ahead of what has been drawn.
		 */
		LockBuffer(counter.buffer, BUFFER_LOCK_SHARE);
		last_position = counter.row->last_position;
		LockBuffer(counter.buffer, BUFFER_LOCK_UNLOCK);
		settled_announce(last_position);
	}
	LockBuffer(counter.buffer, BUFFER_LOCK_EXCLUSIVE);
	row = *counter.row;
	page_lsn = PageGetLSN(BufferGetPage(counter.buffer));
	if (count > PG_INT64_MAX - RESERVE - row.last_position)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("positions are used up")));
	first = row.last_position + 1;
	row.last_position += count;
	row.recorded_at = Max(row.recorded_at, now);
	if (mark > row.settled_position)
		row.settled_position = mark;
	if (mark > 0)
		row.settled_at = now;

	if (row.last_position > row.logged_position || mark > 0 ||
		page_lsn != row.logged_lsn || page_lsn <= GetRedoRecPtr())
		log_row(&counter, &row);
	else
	{
		*counter.row = row;
		MarkBufferDirty(counter.buffer);
	}
	close_counter(&counter, RowExclusiveLock);

	*recorded_at = row.recorded_at;
	return first;
}

/* Publishes a settled mark for standbys; returns the highest published. */
int64
counter_publish(int64 mark)
{
	Counter		counter = open_counter(RowExclusiveLock, BUFFER_LOCK_EXCLUSIVE);
	CounterRow	row = *counter.row;

	if (mark > row.settled_position)
	{
		row.settled_position = mark;
		row.settled_at = GetCurrentTimestamp();
		log_row(&counter, &row);
	}
	close_counter(&counter, RowExclusiveLock);
	/* no commit record follows that would send it on its way */
	XLogFlush(row.logged_lsn);
	return row.settled_position;
}

/*
 * A restore inserts the row that pg_dump found.  The row of this store moves
 * ahead to it, never back, and takes over its key, if there are no events yet;
 * the inserted one is dropped.
 */
Datum
event_store_advance_position_counter(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Counter		counter;
	CounterRow	row;
	HeapTuple	tuple;
	TupleDesc	desc;
	bool		isnull[3];
	int64		last_position;
	TimestampTz recorded_at;
	int64		id_key;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ||
		RelationGetRelid(trigger->tg_relation) != catalog_store()->counter)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("event_store.advance_position_counter() is a trigger of event_store.position_counter only")));

	tuple = trigger->tg_trigtuple;
	desc = RelationGetDescr(trigger->tg_relation);
	last_position = DatumGetInt64(heap_getattr(tuple, 1, desc, &isnull[0]));
	recorded_at = DatumGetTimestampTz(heap_getattr(tuple, 4, desc, &isnull[1]));
	id_key = DatumGetInt64(heap_getattr(tuple, 7, desc, &isnull[2]));
	if (isnull[0] || isnull[1] || isnull[2] || last_position < 0 ||
		last_position > PG_INT64_MAX - RESERVE || id_key < 0 || id_key >= MAX_ID_KEY)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("invalid row for event_store.position_counter")));

	counter = open_counter(RowExclusiveLock, BUFFER_LOCK_EXCLUSIVE);
	row = *counter.row;
	if (row.last_position == 0)
		row.id_key = id_key;
	if (last_position > row.last_position)
		row.last_position = last_position;
	if (recorded_at > row.recorded_at && !TIMESTAMP_NOT_FINITE(recorded_at))
		row.recorded_at = recorded_at;
	log_row(&counter, &row);
	close_counter(&counter, RowExclusiveLock);
	PG_RETURN_POINTER(NULL);
}

Datum
event_store_last_position(PG_FUNCTION_ARGS)
{
	catalog_require_sight(catalog_store());
	PG_RETURN_INT64(counter_read());
}

Datum
event_store_publish_settled_position(PG_FUNCTION_ARGS)
{
	PreventCommandDuringRecovery("event_store.publish_settled_position()");
	PreventCommandIfReadOnly("event_store.publish_settled_position()");
	catalog_require_read(catalog_store());
	PG_RETURN_INT64(counter_publish(settled_mark()));
}
