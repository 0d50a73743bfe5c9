/*
 * queue.c
 *		The tables of messages.
 *
 * Messages are only ever inserted, into one of a few tables, event_store.outbox_0
 * and on, which are emptied as a whole (rotate.c).  Which one is written says a
 * sequence.  Nothing depends on that: readers look into all of them, and merge
 * what they find by position.  Positions are drawn from the counter of events, so
 * the settled mark is that of messages, too.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "catalog/indexing.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "outbox/outbox.h"
#include "position/position.h"

/*
 * What stands for a key where order is kept: its hash.  Two keys of one hash keep
 * each other in order, which does no harm.  A message without a key stands for
 * itself.
 */
int64
queue_stream(const text *key, int64 position)
{
	if (key == NULL)
		return position;
	return (int64) DatumGetUInt64(hash_any_extended((const unsigned char *) VARDATA_ANY(key),
													VARSIZE_ANY_EXHDR(key), 0));
}

/* The slot of a stream, 1 …; the same as state_slot_of(). */
int
queue_slot_of(int64 stream)
{
	uint32		hash = DatumGetUInt32(DirectFunctionCall1(hashint8, Int64GetDatum(stream)));

	return 1 + (int) ((hash & PG_INT32_MAX) % OUTBOX_SLOTS);
}

/*
 * The value of one of our sequences, as it stands on its page: whatever the
 * caller may read.
 */
int64
queue_sequence(Oid sequence)
{
	Relation	rel = relation_open(sequence, AccessShareLock);
	Buffer		buffer = ReadBuffer(rel, 0);
	Page		page;
	ItemId		item;
	HeapTupleHeader tuple;
	int64		value;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	item = PageGetItemId(page, FirstOffsetNumber);
	tuple = (HeapTupleHeader) PageGetItem(page, item);
	value = ((FormData_pg_sequence_data *) ((char *) tuple + tuple->t_hoff))->last_value;
	UnlockReleaseBuffer(buffer);
	relation_close(rel, AccessShareLock);
	return value;
}

/* ----------------------------------------------------------------
 * Writing
 * ----------------------------------------------------------------
 */

/* Writes messages, whose positions have been drawn. */
void
queue_write(const Message *messages, int count)
{
	const Store *store = catalog_outbox();
	Oid			table = store->outbox[queue_sequence(store->outbox_current) % OUTBOX_TABLES];
	Relation	rel;
	CatalogIndexState indexes = rows_open_small(table, &rel);
	int64		key = counter_id_key();

	for (int i = 0; i < count; i++)
	{
		const Message *message = &messages[i];
		Datum		values[OM_NATTS];
		bool		nulls[OM_NATTS] = {0};
		pg_uuid_t	id = message->id;
		HeapTuple	tuple;

		if (!message->has_id)
			ids_derive(&id, message->position, message->published_at, key);
		values[OM_POSITION - 1] = Int64GetDatum(message->position);
		values[OM_PUBLISHED_AT - 1] = TimestampTzGetDatum(message->published_at);
		values[OM_SLOT - 1] = Int32GetDatum(queue_slot_of(queue_stream(message->key,
																	   message->position)));
		values[OM_ID - 1] = UUIDPGetDatum(&id);
		values[OM_TOPIC - 1] = PointerGetDatum(message->topic);
		values[OM_KEY - 1] = PointerGetDatum(message->key);
		nulls[OM_KEY - 1] = message->key == NULL;
		values[OM_TYPE - 1] = PointerGetDatum(message->type);
		values[OM_HEADERS - 1] = message->headers;
		values[OM_PAYLOAD - 1] = message->payload;
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		CatalogTupleInsertWithInfo(rel, tuple, indexes);
		heap_freetuple(tuple);
	}
	rows_close_small(rel, indexes);
	CommandCounterIncrement();
	rotate_written(count);
}

/* ----------------------------------------------------------------
 * Reading
 * ----------------------------------------------------------------
 */

/*
 * Begins to read, by a snapshot of now.  hand_out: what is read is made durable
 * first.
 */
void
queue_open(QueueScan *scan, bool hand_out)
{
	memset(scan, 0, sizeof(QueueScan));
	scan->snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan->durable = !hand_out || durable_begin(scan->snapshot);
	scan->last = -1;
}

/* Goes to the messages of a slot behind a position, up to another. */
void
queue_seek(QueueScan *scan, int slot, int64 after, int64 to)
{
	const Store *store = catalog_outbox();
	ScanKeyData keys[3];

	key_int32(&keys[0], 1, BTEqualStrategyNumber, slot);
	key_int64(&keys[1], 2, BTGreaterStrategyNumber, after);
	key_int64(&keys[2], 2, BTLessEqualStrategyNumber, to);
	for (int i = 0; i < OUTBOX_TABLES; i++)
	{
		if (scan->open[i])
			probe_again(&scan->probes[i], keys, 3);
		else
			probe_open(&scan->probes[i], store->outbox[i], &store->outbox_index[i],
					   AccessShareLock, scan->snapshot, keys, 3);
		scan->open[i] = true;
		scan->there[i] = probe_next(&scan->probes[i], ForwardScanDirection);
	}
	scan->last = -1;
}

int64
queue_row_position(TupleTableSlot *row)
{
	bool		isnull;

	return DatumGetInt64(slot_getattr(row, OM_POSITION, &isnull));
}

int64
queue_row_stream(TupleTableSlot *row)
{
	bool		isnull;
	Datum		key = slot_getattr(row, OM_KEY, &isnull);

	return queue_stream(isnull ? NULL : DatumGetTextPP(key), queue_row_position(row));
}

/* The next message, in a slot that is good until the next call, or NULL. */
TupleTableSlot *
queue_next(QueueScan *scan)
{
	int			first = -1;

	if (scan->last >= 0)
		scan->there[scan->last] = probe_next(&scan->probes[scan->last], ForwardScanDirection);
	for (int i = 0; i < OUTBOX_TABLES; i++)
		if (scan->there[i] &&
			(first < 0 || queue_row_position(scan->probes[i].slot) <
			 queue_row_position(scan->probes[first].slot)))
			first = i;
	scan->last = first;
	if (first < 0)
		return NULL;
	if (!scan->durable)
		scan->durable = durable_row(scan->probes[first].slot, scan->snapshot);
	return scan->probes[first].slot;
}

/* Lets go of the tables, too: who empties one shall not find it in use. */
void
queue_close(QueueScan *scan)
{
	for (int i = 0; i < OUTBOX_TABLES; i++)
		if (scan->open[i])
			probe_close(&scan->probes[i], false);
	UnregisterSnapshot(scan->snapshot);
}
