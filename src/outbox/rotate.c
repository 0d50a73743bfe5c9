/*
 * rotate.c
 *		Tables that are emptied as a whole; and delayed messages that are due.
 *
 * Messages, and the states of slots, are only ever inserted.  When the table that is
 * written has grown, and the next one is empty, that one is written from then on.  A
 * table that is not written any more is truncated when nothing of it is needed: all its
 * messages are passed by the checkpoints of their slots; each slot has a state in
 * the other table.  So there is nothing to vacuum, however old the oldest snapshot.
 *
 * Whoever has taken or acknowledged messages sees to that when his transaction is
 * about to commit, and so does a task of the worker: the lock that nobody goes beside
 * is held for the time of the commit only.  It is only tried, as are all locks here;
 * what is not possible now is the next one's business.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "commands/sequence.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/locks.h"
#include "notification/notification.h"
#include "outbox/outbox.h"
#include "position/position.h"

PG_FUNCTION_INFO_V1(event_store_tend_outbox);

/* a table is left when it has more pages than that */
#define MESSAGE_PAGES	256
#define SLOT_PAGES		64

/* so many messages are acknowledged, or published, before a session looks at the tables */
#define WORTH_A_LOOK	500

/* delayed messages that are put into the queue at once */
#define MAX_DUE			1000

/* this transaction has moved something */
static bool wanted = false;

/*
 * The command that was the only one of this transaction so far, if it was a poll that
 * need not wait for the disk; and what synchronous_commit was before.
 */
static bool lazy = false;
static CommandId lazy_command;
static int	saved_synchronous_commit = -1;

/* the slot that was in the way of emptying a table last */
static int	in_the_way = 1;

static Statement take_due = {
	"WITH gone AS (DELETE FROM event_store.outbox_delayed AS d WHERE d.ctid = ANY (ARRAY"
	"(SELECT k.ctid FROM event_store.outbox_delayed AS k"
	" WHERE k.due <= pg_catalog.clock_timestamp() ORDER BY k.due, k.position LIMIT $1"
	" FOR UPDATE SKIP LOCKED))"
	" RETURNING d.due, d.position, d.id, d.aggregatetype, d.aggregateid, d.type, d.headers, d.payload)"
	" SELECT * FROM gone ORDER BY gone.due, gone.position",
	1, {INT8OID}
};

/* ----------------------------------------------------------------
 * Delayed messages
 * ----------------------------------------------------------------
 */

/*
 * When the next delayed message is due; 0: there is none.  Entries of those that are
 * gone may have to be passed over, for as long as an old snapshot is about.
 */
TimestampTz
rotate_next_due(void)
{
	const Store *store = catalog_outbox();
	ScanKeyData key;
	Probe		probe;
	bool		isnull;
	TimestampTz due = 0;

	ScanKeyInit(&key, 1, BTGreaterStrategyNumber, F_TIMESTAMPTZ_GT,
				TimestampTzGetDatum(DT_NOBEGIN));
	probe_open(&probe, store->outbox_delayed, &store->outbox_delayed_index, AccessShareLock,
			   SnapshotSelf, &key, 1);
	if (probe_next(&probe, ForwardScanDirection))
		due = DatumGetTimestampTz(probe_value(&probe, OM_DUE, &isnull));
	probe_close(&probe, false);
	return due;
}

/* Puts messages that are due into the queue; returns how many. */
int64
rotate_move_due(void)
{
	static TimestampTz next_look = 0;
	static TimestampTz last_look = 0;
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due;
	TimestampTz published_at;
	Datum		values[1] = {Int64GetDatum(MAX_DUE)};
	const Store *store = catalog_store();
	OwnerSwitch saved;
	LOCKTAG		tag;
	Message    *messages;
	int			n;

	/* a look that takes long is worth its price only now and then */
	if (now >= last_look && now < next_look)
		return 0;
	due = rotate_next_due();
	last_look = GetCurrentTimestamp();
	next_look = last_look + 10 * (last_look - now);
	if (due == 0 || due > last_look)
		return 0;
	/* one at a time, to his end: those of a key get positions in the order of their times */
	locks_set_tag(&tag, LOCK_CLASS_OUTBOX, store->outbox_delayed);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		next_look = 0;			/* he may be gone in a moment */
		return 0;
	}
	owner_begin(&saved);
	n = (int) plans_execute(&take_due, values, NULL);
	MemoryContextSwitchTo(context);
	messages = palloc0(sizeof(Message) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Datum		key;
		bool		isnull;

		messages[i].has_id = true;
		messages[i].id = *DatumGetUUIDP(SPI_getbinval(row, desc, 3, &isnull));
		messages[i].topic = DatumGetTextPCopy(SPI_getbinval(row, desc, 4, &isnull));
		key = SPI_getbinval(row, desc, 5, &isnull);
		messages[i].key = isnull ? NULL : DatumGetTextPCopy(key);
		messages[i].type = DatumGetTextPCopy(SPI_getbinval(row, desc, 6, &isnull));
		messages[i].headers = PointerGetDatum(PG_DETOAST_DATUM_COPY(SPI_getbinval(row, desc, 7, &isnull)));
		messages[i].payload = PointerGetDatum(PG_DETOAST_DATUM_COPY(SPI_getbinval(row, desc, 8, &isnull)));
	}
	owner_end(&saved);
	if (n == 0)
		return 0;
	messages[0].position = counter_draw(n, &published_at);
	for (int i = 0; i < n; i++)
	{
		messages[i].position = messages[0].position + i;
		messages[i].published_at = published_at;
	}
	queue_write(messages, n);
	plans_writes++;
	return n;
}

/* ----------------------------------------------------------------
 * Tables
 * ----------------------------------------------------------------
 */

/*
 * How many pages a table has, with those of its large values; -1: somebody is emptying
 * it, say.
 */
static int64
pages_of(Oid table)
{
	Relation	rel;
	Oid			toast;
	int64		pages;

	if (!ConditionalLockRelationOid(table, AccessShareLock))
		return -1;
	rel = relation_open(table, NoLock);
	pages = RelationGetNumberOfBlocks(rel);
	toast = rel->rd_rel->reltoastrelid;
	if (OidIsValid(toast) && pages > 0 && ConditionalLockRelationOid(toast, AccessShareLock))
	{
		Relation	values = relation_open(toast, NoLock);

		pages += RelationGetNumberOfBlocks(values);
		relation_close(values, AccessShareLock);
	}
	relation_close(rel, AccessShareLock);
	return pages;
}

/*
 * Locks a table against all others, to the end of the transaction, if nobody is in the
 * way: this session neither.  So is that of its large values, which somebody may have
 * without this one: VACUUM does, and TRUNCATE would wait for him.
 */
static bool
lock_alone(Oid table)
{
	Relation	rel;
	Oid			toast;
	bool		in_use;

	if (!ConditionalLockRelationOid(table, AccessExclusiveLock))
		return false;
	rel = relation_open(table, NoLock);
	in_use = rel->rd_refcnt > 1;
	toast = rel->rd_rel->reltoastrelid;
	relation_close(rel, NoLock);
	if (!in_use && (!OidIsValid(toast) || ConditionalLockRelationOid(toast, AccessExclusiveLock)))
		return true;
	UnlockRelationOid(table, AccessExclusiveLock);
	return false;
}

static void
unlock_alone(Oid table)
{
	Relation	rel = relation_open(table, NoLock);
	Oid			toast = rel->rd_rel->reltoastrelid;

	relation_close(rel, NoLock);
	if (OidIsValid(toast))
		UnlockRelationOid(toast, AccessExclusiveLock);
	UnlockRelationOid(table, AccessExclusiveLock);
}

/* Another table is written from now on, if nobody else has seen to that. */
static void
advance(Oid sequence, int64 value, int64 next)
{
	OwnerSwitch saved;
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_OUTBOX, sequence);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return;
	if (queue_sequence(sequence) == value)
	{
		owner_begin(&saved);
		(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence),
								   Int64GetDatum(next));
		owner_end(&saved);
	}
}

/* Empties a table that is locked against all others. */
static void
empty_table(const char *table, int n)
{
	OwnerSwitch saved;

	owner_begin(&saved);
	if (SPI_execute(psprintf("TRUNCATE event_store.%s_%d", table, n), false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not empty a table of the outbox");
	owner_end(&saved);
}

/* Has every slot passed all its messages of a table? */
static bool
is_drained(int n)
{
	const Store *store = catalog_outbox();
	SlotReader	reader;
	Probe		probe;
	bool		drained = true;

	slot_begin(&reader);
	for (int i = 0; i < OUTBOX_SLOTS && drained; i++)
	{
		int			slot = 1 + (in_the_way - 1 + i) % OUTBOX_SLOTS;
		SlotState	state;
		ScanKeyData keys[2];

		slot_read(&reader, slot, &state);
		key_int32(&keys[0], 1, BTEqualStrategyNumber, slot);
		key_int64(&keys[1], 2, BTGreaterStrategyNumber, state.checkpoint);
		if (i == 0)
			probe_open(&probe, store->outbox[n], &store->outbox_index[n], AccessShareLock,
					   SnapshotSelf, keys, 2);
		else
			probe_again(&probe, keys, 2);
		if (probe_next(&probe, ForwardScanDirection))
		{
			drained = false;
			in_the_way = slot;
		}
	}
	probe_close(&probe, false);
	slot_end(&reader);
	return drained;
}

/*
 * The table that is written is left when it has grown to a good part of all of them, for
 * the next one that is empty: so none is ever much larger than the backlog was, and those
 * of a large backlog are emptied one after the other.  One that something is left in for
 * long is passed over.
 */
static void
leave_if_grown(void)
{
	const Store *store = catalog_outbox();
	int64		value = queue_sequence(store->outbox_current);
	int			current = value % OUTBOX_TABLES;
	int64		pages = pages_of(store->outbox[current]);
	int64		all = pages;
	int			steps = 0;

	if (pages <= MESSAGE_PAGES)
		return;
	for (int i = OUTBOX_TABLES - 1; i > 0; i--)
	{
		int64		others = pages_of(store->outbox[(current + i) % OUTBOX_TABLES]);

		if (others == 0)
			steps = i;
		all += Max(others, 0);
	}
	if (steps > 0 && pages >= all / 2)
		advance(store->outbox_current, value, value + steps);
}

/* So many messages were written. */
void
rotate_written(int count)
{
	static int	written = 0;

	written += count;
	if (written >= WORTH_A_LOOK)
	{
		written = 0;
		leave_if_grown();
	}
}

/*
 * Whoever inserts into a table has it locked to the end of his transaction, so what is
 * in it, when nobody goes beside us, is settled.
 */
static void
rotate_messages(void)
{
	const Store *store = catalog_outbox();
	int			current = queue_sequence(store->outbox_current) % OUTBOX_TABLES;

	for (int i = 1; i < OUTBOX_TABLES; i++)
	{
		int			n = (current + i) % OUTBOX_TABLES;

		if (pages_of(store->outbox[n]) <= 0 || !is_drained(n) ||
			!lock_alone(store->outbox[n]))
			continue;
		if (queue_sequence(store->outbox_current) % OUTBOX_TABLES == n || !is_drained(n))
			unlock_alone(store->outbox[n]);
		else
			empty_table("outbox", n);
	}
	leave_if_grown();
}

/*
 * Sees to it that each slot has its state in the table that is written; false: some
 * have not.
 */
static bool
is_evacuated(int current)
{
	SlotReader	reader;
	bool		all = true;

	slot_begin(&reader);
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
	{
		SlotState	state;

		if (slot_is_in(&reader, current, slot))
			continue;
		/* who has it writes it there himself, or another time we do */
		if (!slot_lock(slot, false))
		{
			all = false;
			continue;
		}
		slot_read(&reader, slot, &state);
		if (state.version > 0)
			slot_write(&state, 0);
	}
	slot_end(&reader);
	return all;
}

static void
rotate_slots(void)
{
	const Store *store = catalog_outbox();
	int64		value = queue_sequence(store->outbox_slot_current);
	int			current = value % OUTBOX_SLOT_TABLES;
	int			other = (current + 1) % OUTBOX_SLOT_TABLES;
	int64		pages = pages_of(store->outbox_slot[other]);

	if (pages > 0)
	{
		if (is_evacuated(current) &&
			queue_sequence(store->outbox_slot_current) == value &&
			lock_alone(store->outbox_slot[other]))
			empty_table("outbox_slot", other);
	}
	else if (pages == 0 && pages_of(store->outbox_slot[current]) > SLOT_PAGES)
		advance(store->outbox_slot_current, value, value + 1);
}

/* ----------------------------------------------------------------
 * When
 * ----------------------------------------------------------------
 */

/*
 * So many messages were acknowledged: now and then, the tables are seen to when such a
 * transaction is about to commit.
 */
void
rotate_at_end(int64 acknowledged)
{
	static int64 sum = 0;

	if (acknowledged >= WORTH_A_LOOK - sum)
	{
		wanted = true;
		sum = 0;
	}
	else
		sum += acknowledged;
}

/*
 * This transaction need not wait until its commit is on disk: it has only lent out
 * messages.  A crash that takes that back takes back all that it has done, and ends
 * the relays' sessions: they are delivered again.  Not if something else comes
 * behind it in the same transaction (a pipeline): that has a higher command id.
 */
void
rotate_commit_soon(void)
{
	lazy = true;
	lazy_command = GetCurrentCommandId(false);
}

static void
restore_synchronous_commit(void)
{
	if (saved_synchronous_commit >= 0)
		synchronous_commit = saved_synchronous_commit;
	saved_synchronous_commit = -1;
	lazy = false;
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (lazy && synchronous_commit > SYNCHRONOUS_COMMIT_OFF &&
				GetCurrentCommandId(false) <= lazy_command + 1)
			{
				saved_synchronous_commit = synchronous_commit;
				synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
			}
			if (!wanted)
				break;
			wanted = false;
			if (!catalog_store_exists())
				break;
			PushActiveSnapshot(GetTransactionSnapshot());
			rotate_slots();
			rotate_messages();
			PopActiveSnapshot();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			wanted = false;
			restore_synchronous_commit();
			break;
		default:
			break;
	}
}

Datum
event_store_tend_outbox(PG_FUNCTION_ARGS)
{
	int64		moved;

	deliver_guard("event_store.tend_outbox()");
	catalog_require_owner(catalog_store());
	moved = rotate_move_due();
	rotate_at_end(WORTH_A_LOOK);
	PG_RETURN_INT64(moved);
}

void
outbox_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	policy_init();
	route_init();
}
