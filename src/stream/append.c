/*
 * append.c
 *		Appending events to streams.
 *
 * Phases of append_write(), for the events of one call, all or none:
 *
 * 1. lock the streams, in order of their lock keys, and find their rows;
 * 2. find out which events are there already, by id, and check the expected
 *	  versions;
 * 3. give numbers to names that have none;
 * 4. draw the positions (src/position), in one block;
 * 5. write the events (src/common/rows.c), then the streams' rows and notes.
 *
 * Positions are drawn under the stream's lock, so in a stream the order of
 * positions is the order of versions.
 *
 * The lock on a stream is held to the end of the transaction, in one of two
 * ways that exclude each other:
 *
 * H: a heavyweight lock on the hash of the stream's name.
 * R: the stream's row: inserted, updated, or locked by a transaction that has
 *	  not ended.
 *
 * Who wants a stream first takes H.  With it he looks at the row as it really
 * is (dirty snapshot).  If somebody else's running transaction has R, he lets
 * go of H, waits for that transaction's end, and begins again.  If nobody has,
 * the stream is his: by H, which he keeps; or, once he holds MAX_HELD locks of
 * that kind, by R: he locks the row, or inserts it if there is none, and lets
 * go of H.  Nobody acquires R without holding H, and who holds H looks for R:
 * so at no time two transactions own a stream.  A row that a transaction has
 * written itself is R as well, so H is not kept for new streams.
 *
 * So a transaction that appends to 100,000 streams holds a bounded number of
 * heavyweight locks, and one that appends to one stream writes no row lock.
 *
 * Expected versions are checked against the stream as it is after the lock was
 * obtained, in every isolation level: rows are looked up as of now
 * (SnapshotSelf), not by the transaction's snapshot.  The lock makes that
 * stable.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type_d.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/locks.h"
#include "common/names.h"
#include "common/rows.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_append);
PG_FUNCTION_INFO_V1(event_store_append_events);
PG_FUNCTION_INFO_V1(event_store_append_streams);

#define MAX_HOOKS	8

static int	held_locks = 0;
static AppendHook hooks[MAX_HOOKS];
static int	nhooks = 0;

/* ----------------------------------------------------------------
 * Phase 1: streams
 * ----------------------------------------------------------------
 */

/*
 * The segments of a stream, as its row has them; there is room for one more
 * pair.  NULL stands for the one segment that the stream's id, which is the
 * position of its first event, lies in: most streams never leave it.
 */
void
append_read_segments(Probe *probe, StreamInput *stream)
{
	bool		isnull;
	Datum		value = probe_value(probe, ST_SEGMENTS, &isnull);
	ArrayType  *array;
	int			count;

	if (isnull)
	{
		stream->segments = palloc(sizeof(int64) * 4);
		stream->segments[0] = stream->segments[1] = stream->id;
		stream->nsegments = 2;
		return;
	}
	array = DatumGetArrayTypeP(value);
	count = ARR_NDIM(array) == 1 ? ARR_DIMS(array)[0] : 0;
	if (ARR_HASNULL(array) || count % 2 != 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("the row of stream \"%s\" is damaged",
						pnstrdup(stream->name, stream->len))));
	stream->segments = palloc(sizeof(int64) * (count + 2));
	memcpy(stream->segments, ARR_DATA_PTR(array), sizeof(int64) * count);
	stream->nsegments = count;
}

/* Reads the columns of a stream's row into *stream. */
static void
read_stream_row(Probe *probe, StreamInput *stream)
{
	bool		isnull;

	stream->id = probe_int64(probe, ST_ID);
	stream->category_id = probe_int32(probe, ST_CATEGORY_ID);
	stream->created_at = DatumGetTimestampTz(probe_value(probe, ST_CREATED_AT, &isnull));
	stream->tid = probe->slot->tts_tid;
	append_read_segments(probe, stream);
}

static void
open_stream_probe(Probe *probe, const char *name, int len, LOCKMODE lock,
				  Snapshot snapshot, ScanKey key)
{
	const Store *store = catalog_store();

	key_text_hash(key, 1, PointerGetDatum(cstring_to_text_with_len(name, len)));
	probe_open(probe, store->stream, &store->stream_hash_index, lock,
			   snapshot, key, 1);
}

/*
 * The stream's row among those that the index gives for the hash of its name,
 * which others may have as well.
 */
static bool
next_stream_row(Probe *probe, const char *name, int len)
{
	while (probe_next(probe, ForwardScanDirection))
	{
		bool		isnull;
		text	   *found = DatumGetTextPP(probe_value(probe, ST_NAME, &isnull));

		if (!isnull && VARSIZE_ANY_EXHDR(found) == len &&
			memcmp(VARDATA_ANY(found), name, len) == 0)
			return true;
	}
	return false;
}

/*
 * Finds a stream's row by name, for readers.  In REPEATABLE READ and SERIALIZABLE
 * as of now: what the transaction has appended may be in a segment of the stream
 * that the row of its snapshot does not name.  More segments than the snapshot
 * needs do no harm.  The row as of now may move between the look into the index
 * and that at the row; but then it is not ours, so we have appended nothing, and
 * the snapshot's will do.
 */
bool
append_find_stream(const char *name, int len, Snapshot snapshot,
				   StreamInput *found)
{
	bool		exists;

	memset(found, 0, sizeof(StreamInput));
	found->name = name;
	found->len = len;
	for (bool now = IsolationUsesXactSnapshot();; now = false)
	{
		ScanKeyData key;
		Probe		probe;

		open_stream_probe(&probe, name, len, AccessShareLock,
						  now ? SnapshotSelf : snapshot, &key);
		exists = next_stream_row(&probe, name, len);
		if (exists)
			read_stream_row(&probe, found);
		probe_close(&probe, false);
		if (exists || !now)
			return exists;
	}
}

typedef enum RowOwner
{
	ROW_FREE,					/* no transaction that runs has the row */
	ROW_OURS,
	ROW_OTHERS					/* *xid has it */
} RowOwner;

/*
 * Does a lock or change of this kind make its transaction the stream's owner?
 * Weaker locks are those of foreign keys, and of readers by hand.
 */
static bool
is_owners_lock(MultiXactStatus status)
{
	return status != MultiXactStatusForKeyShare && status != MultiXactStatusForShare;
}

/* Who has a row that several transactions or subtransactions have locked? */
static RowOwner
multixact_owner(HeapTupleHeader header, TransactionId *xid)
{
	MultiXactMember *members;
	RowOwner	owner = ROW_FREE;
	int			n;

	n = GetMultiXactIdMembers(HeapTupleHeaderGetRawXmax(header), &members,
							  HEAP_LOCKED_UPGRADED(header->t_infomask),
							  HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask));
	for (int i = 0; i < n; i++)
	{
		if (!is_owners_lock(members[i].status))
			continue;
		if (TransactionIdIsCurrentTransactionId(members[i].xid))
			owner = ROW_OURS;
		else if (TransactionIdIsInProgress(members[i].xid))
		{
			*xid = members[i].xid;
			owner = ROW_OTHERS;
			break;
		}
	}
	if (n > 0)
		pfree(members);
	return owner;
}

/* Who has the row that a dirty snapshot found? */
static RowOwner
row_owner(Probe *probe, TransactionId *xid)
{
	HeapTuple	tuple = ExecFetchSlotHeapTuple(probe->slot, false, NULL);
	HeapTupleHeader header = tuple->t_data;

	if (TransactionIdIsValid(probe->snapshot->xmin))
	{
		*xid = probe->snapshot->xmin;
		return ROW_OTHERS;
	}
	if (TransactionIdIsValid(probe->snapshot->xmax))
	{
		*xid = probe->snapshot->xmax;
		return ROW_OTHERS;
	}
	if (!HeapTupleHeaderXminFrozen(header) &&
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(header)))
		return ROW_OURS;
	if (header->t_infomask & HEAP_XMAX_INVALID)
		return ROW_FREE;
	if (header->t_infomask & HEAP_XMAX_IS_MULTI)
		return multixact_owner(header, xid);
	/* an updater that has not ended would stand in the snapshot's xmax */
	if (!HEAP_XMAX_IS_LOCKED_ONLY(header->t_infomask) ||
		HEAP_XMAX_IS_KEYSHR_LOCKED(header->t_infomask) ||
		HEAP_XMAX_IS_SHR_LOCKED(header->t_infomask))
		return ROW_FREE;
	*xid = HeapTupleHeaderGetRawXmax(header);
	if (!TransactionIdIsValid(*xid))
		return ROW_FREE;
	if (TransactionIdIsCurrentTransactionId(*xid))
		return ROW_OURS;
	return TransactionIdIsInProgress(*xid) ? ROW_OTHERS : ROW_FREE;
}

/*
 * Was the row found written by somebody since the snapshot of this transaction,
 * which is REPEATABLE READ or SERIALIZABLE?
 */
static bool
row_is_younger(Probe *probe)
{
	HeapTupleHeader header = ExecFetchSlotHeapTuple(probe->slot, false, NULL)->t_data;
	TransactionId xid = HeapTupleHeaderGetXmin(header);

	return IsolationUsesXactSnapshot() && TransactionIdIsNormal(xid) &&
		!TransactionIdIsCurrentTransactionId(xid) &&
		XidInMVCCSnapshot(xid, GetTransactionSnapshot());
}

/* Locks the row found; false: it changed meanwhile, look again. */
static bool
lock_row(Probe *probe)
{
	TM_FailureData failure;
	TM_Result	result;

	result = table_tuple_lock(probe->heap, &probe->slot->tts_tid, SnapshotSelf,
							  probe->slot, GetCurrentCommandId(true),
							  LockTupleNoKeyExclusive, LockWaitBlock, 0, &failure);
	return result == TM_Ok;
}

static void insert_stream_row(CatalogIndexState indexes, Relation rel,
							  StreamInput *stream);
static void intern_category(StreamInput *stream);

static void
release_stream(StreamInput *stream)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_STREAM, stream->lock_key);
	(void) LockRelease(&tag, ExclusiveLock, false);
	stream->holds_lock = false;
}

/*
 * Writes the row of a new stream now, with a position of its own for an id,
 * that no event will have.
 */
static void
make_stream_row(StreamInput *stream)
{
	Relation	rel;
	CatalogIndexState indexes = rows_open_small(catalog_store()->stream, &rel);

	intern_category(stream);
	stream->id = counter_draw(1, &stream->created_at);
	stream->segments = palloc(sizeof(int64) * 2);
	insert_stream_row(indexes, rel, stream);
	rows_close_small(rel, indexes);
	CommandCounterIncrement();
}

/*
 * The streams of a call are looked up by one scan, which ends before anything
 * is waited for or written: it has pages pinned.
 */
typedef struct StreamLookup
{
	Probe		probe;
	bool		open;
	SnapshotData dirty;
	int			made;			/* new streams whose lock is kept until their row is written */
} StreamLookup;

static void
look_for_stream(StreamLookup *lookup, StreamInput *stream, ScanKey key)
{
	if (!lookup->open)
	{
		InitDirtySnapshot(lookup->dirty);
		open_stream_probe(&lookup->probe, stream->name, stream->len,
						  RowExclusiveLock, &lookup->dirty, key);
		lookup->open = true;
		return;
	}
	key_text_hash(key, 1, PointerGetDatum(cstring_to_text_with_len(stream->name, stream->len)));
	probe_again(&lookup->probe, key, 1);
}

static void
end_lookup(StreamLookup *lookup)
{
	if (lookup->open)
		probe_close(&lookup->probe, true);
	lookup->open = false;
}

/*
 * Makes a stream the transaction's own, and reads its row, if there is one.
 */
static void
lock_stream(StreamInput *stream, StreamLookup *lookup)
{
	LOCKTAG		tag;
	Probe	   *probe = &lookup->probe;

	locks_set_tag(&tag, LOCK_CLASS_STREAM, stream->lock_key);
	for (;;)
	{
		TransactionId xid = InvalidTransactionId;
		RowOwner	owner;
		LockAcquireResult acquired;
		ScanKeyData key;
		bool		exists;
		bool		again = false;

		acquired = LockAcquire(&tag, ExclusiveLock, false, lookup->open);
		if (acquired == LOCKACQUIRE_NOT_AVAIL)
		{
			end_lookup(lookup);
			acquired = LockAcquire(&tag, ExclusiveLock, false, false);
		}
		stream->holds_lock = true;
		look_for_stream(lookup, stream, &key);
		exists = next_stream_row(probe, stream->name, stream->len);
		if (!exists)
		{
			/*
			 * Who had the row by R may have moved it, and ended, after the
			 * index was read; with H held nobody else can, so look once more.
			 */
			probe_again(probe, &key, 1);
			exists = next_stream_row(probe, stream->name, stream->len);
		}
		owner = exists ? row_owner(probe, &xid) : ROW_FREE;
		if (exists && owner == ROW_FREE && held_locks >= MAX_HELD &&
			acquired != LOCKACQUIRE_ALREADY_HELD)
		{
			if (lock_row(probe))
				owner = ROW_OURS;
			else
				again = true;
		}
		if (exists && owner != ROW_OTHERS && !again)
		{
			read_stream_row(probe, stream);
			stream->row_is_younger = row_is_younger(probe);
		}

		if (owner == ROW_OTHERS || again)
		{
			end_lookup(lookup);
			release_stream(stream);
			if (owner == ROW_OTHERS)
				XactLockTableWait(xid, NULL, NULL, XLTW_None);
			continue;
		}
		if (acquired == LOCKACQUIRE_ALREADY_HELD || owner == ROW_OURS)
			release_stream(stream);
		else if (exists)
		{
			/* kept to the transaction's end */
			held_locks++;
			stream->holds_lock = false;
		}
		else if (stream->nevents == 0)
			release_stream(stream); /* nothing will be written */
		else if (lookup->made < MAX_HELD)
			lookup->made++;
		else
		{
			end_lookup(lookup);
			make_stream_row(stream);
			release_stream(stream);
		}
		break;
	}
}

static int
compare_lock_keys(const void *a, const void *b)
{
	const StreamInput *x = *(StreamInput *const *) a;
	const StreamInput *y = *(StreamInput *const *) b;

	return x->lock_key < y->lock_key ? -1 : x->lock_key > y->lock_key ? 1 : 0;
}

static void
lock_streams(AppendBatch *append)
{
	StreamInput **sorted;
	StreamLookup lookup;

	lookup.open = false;
	lookup.made = 0;
	for (int i = 0; i < append->nstreams; i++)
	{
		StreamInput *stream = &append->streams[i];

		stream->lock_key =
			DatumGetUInt64(hash_any_extended((const unsigned char *) stream->name,
											 stream->len, 0));
	}
	if (append->nstreams == 1)
	{
		lock_stream(&append->streams[0], &lookup);
		end_lookup(&lookup);
		return;
	}
	sorted = palloc(sizeof(StreamInput *) * append->nstreams);
	for (int i = 0; i < append->nstreams; i++)
		sorted[i] = &append->streams[i];
	qsort(sorted, append->nstreams, sizeof(StreamInput *), compare_lock_keys);
	for (int i = 0; i < append->nstreams; i++)
	{
		for (int j = i + 1; j < append->nstreams &&
			 sorted[j]->lock_key == sorted[i]->lock_key; j++)
			if (sorted[j]->len == sorted[i]->len &&
				memcmp(sorted[j]->name, sorted[i]->name, sorted[i]->len) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("stream \"%s\" stands in the batch more than once",
								pnstrdup(sorted[i]->name, sorted[i]->len))));
		lock_stream(sorted[i], &lookup);
	}
	end_lookup(&lookup);
	pfree(sorted);
}

/* the place of version in the index on (stream_id, version) */
#define STREAM_INDEX_VERSION	2

/* Versions of streams whose latest segment is the same are read by one scan. */
typedef struct VersionLookup
{
	Probe		probe;
	Oid			segment;		/* that it is open on, or InvalidOid */
	int			nkeys;
} VersionLookup;

static void
end_versions(VersionLookup *lookup)
{
	if (OidIsValid(lookup->segment))
		probe_close(&lookup->probe, true);
	lookup->segment = InvalidOid;
}

/*
 * The version of a stream that is there, from its latest segment.  Where one is
 * expected, entries below it need not be read: mostly it is the last.
 */
static void
read_version(StreamInput *stream, VersionLookup *lookup)
{
	Probe	   *probe = &lookup->probe;
	int64		latest;
	int			index;
	Segment		segment;
	ScanKeyData keys[2];
	int			nkeys = 1;
	bool		found;

	if (stream->id == 0 || stream->nsegments == 0)
		return;
	latest = stream->segments[stream->nsegments - 1];
	index = segment_index_for(latest);
	if (index >= segment_count() || (segment = segment_at(index)).first > latest)
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("the segment at position %lld of stream \"%s\" is missing",
						(long long) latest, pnstrdup(stream->name, stream->len))));
	key_int64(&keys[0], 1, BTEqualStrategyNumber, stream->id);
	if (stream->expected_version > 0 && stream->expected_version <= PG_INT32_MAX)
		key_int32(&keys[nkeys++], STREAM_INDEX_VERSION, BTGreaterEqualStrategyNumber,
				  (int32) stream->expected_version);
	if (lookup->segment == segment.relid && lookup->nkeys == nkeys)
		probe_again(probe, keys, nkeys);
	else
	{
		end_versions(lookup);
		probe_open_segment_entries(probe, segment.relid, INDEX_STREAM,
								   RowExclusiveLock, SnapshotSelf, keys, nkeys);
		lookup->segment = segment.relid;
		lookup->nkeys = nkeys;
	}
	found = probe_next_shown_entry(probe, BackwardScanDirection);
	if (!found && nkeys > 1)
	{
		key_int32(&keys[1], STREAM_INDEX_VERSION, BTGreaterEqualStrategyNumber, 1);
		probe_again(probe, keys, nkeys);
		found = probe_next_shown_entry(probe, BackwardScanDirection);
	}
	if (found)
		stream->version = probe_entry_int32(probe, STREAM_INDEX_VERSION);
	else
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("the events of stream \"%s\" are missing in segment \"%s\"",
						pnstrdup(stream->name, stream->len),
						RelationGetRelationName(probe->heap))));
}

/* ----------------------------------------------------------------
 * Phase 2: duplicates and expected versions
 * ----------------------------------------------------------------
 */

typedef struct IdInBatch
{
	int64		stream;
	pg_uuid_t	id;
} IdInBatch;

typedef struct IdInBatchEntry
{
	IdInBatch	key;
	int			event;
} IdInBatchEntry;

static void
id_reused(const StreamInput *stream, const pg_uuid_t *id, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_EVENT_ID_REUSED),
			 errmsg("event id %s is used in stream \"%s\" already",
					DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id))),
					pnstrdup(stream->name, stream->len)),
			 errdetail("%s", detail)));
}

static bool
same_json(Datum a, Datum b)
{
	return compareJsonbContainers(&DatumGetJsonbP(a)->root,
								  &DatumGetJsonbP(b)->root) == 0;
}

/*
 * An event of the stream with that id is there: its place goes to *event.  With
 * other content it is an error.
 */
static void
take_duplicate(const StreamInput *stream, EventInput *event, Probe *probe)
{
	Datum		schema_version;
	bool		isnull;

	if (probe_int32(probe, EV_TYPE_ID) !=
		names_find(NAME_EVENT_TYPE, event->type, event->type_len))
		id_reused(stream, &event->event_id, "That event has another type.");
	schema_version = probe_value(probe, EV_SCHEMA_VERSION, &isnull);
	if ((isnull ? 1 : DatumGetInt32(schema_version)) != event->schema_version)
		id_reused(stream, &event->event_id, "That event has another schema version.");
	if (!same_json(probe_value(probe, EV_DATA, &isnull), event->data))
		id_reused(stream, &event->event_id, "That event has other data.");
	event->version = probe_int32(probe, EV_VERSION);
	event->position = probe_int64(probe, EV_POSITION);
}

/* The id may be one that the store has computed: then it says where the event is. */
static bool
find_made_id(const StreamInput *stream, EventInput *event)
{
	int64		position = ids_position(&event->event_id, counter_id_key());
	int			index;
	ScanKeyData key;
	Probe		probe;
	bool		found;

	if (position < stream->id || stream->nsegments == 0)
		return false;
	index = segment_index_for(position);
	if (index >= segment_count() || segment_at(index).first > position)
		return false;
	key_int64(&key, 1, BTEqualStrategyNumber, position);
	probe_open_segment(&probe, segment_at(index).relid, INDEX_POSITION,
					   RowExclusiveLock, SnapshotSelf, &key, 1);
	found = probe_next(&probe, ForwardScanDirection) &&
		probe_int64(&probe, EV_STREAM_ID) == stream->id &&
		id_is_made(&probe, &event->event_id);
	if (found)
		take_duplicate(stream, event, &probe);
	probe_close(&probe, false);
	return found;
}

/*
 * Looks for an event of a stream by id, in the segments that the stream has,
 * latest first.
 */
static bool
find_duplicate(const StreamInput *stream, EventInput *event)
{
	int64		mark = 0;
	int			latest = -1;

	if (find_made_id(stream, event))
		return true;
	for (int pair = stream->nsegments - 2; pair >= 0; pair -= 2)
	{
		int			low = segment_index_for(stream->segments[pair]);
		int			index = segment_index_for(stream->segments[pair + 1]);

		for (; index >= low && index < segment_count(); index--)
		{
			Segment		segment = segment_at(index);
			ScanKeyData key;
			Probe		probe;
			bool		found = false;

			/* the segments that are being written are asked without further ado */
			if (latest < 0)
				latest = index;
			else if (index < latest - 1 &&
					 !id_range_may_hold(segment, &event->event_id, &mark))
				continue;
			key_uuid(&key, 1, UUIDPGetDatum(&event->event_id));
			probe_open_segment(&probe, segment.relid, INDEX_EVENT_ID,
							   RowExclusiveLock, SnapshotSelf, &key, 1);
			while (!found && probe_next(&probe, ForwardScanDirection))
				if (probe_int64(&probe, EV_STREAM_ID) == stream->id)
				{
					take_duplicate(stream, event, &probe);
					found = true;
				}
			/* the latest segment is about to be written, the others are not */
			probe_close(&probe, index == latest);
			if (found)
				return true;
		}
	}
	return false;
}

/* The same id twice in one call. */
static void
find_duplicates_in_batch(AppendBatch *append)
{
	HASHCTL		control;
	HTAB	   *seen;

	control.keysize = sizeof(IdInBatch);
	control.entrysize = sizeof(IdInBatchEntry);
	control.hcxt = CurrentMemoryContext;
	seen = hash_create("event ids of a batch", append->nevents, &control,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < append->nevents; i++)
	{
		EventInput *event = &append->events[i];
		StreamInput *stream = &append->streams[event->stream];
		IdInBatch	key;
		IdInBatchEntry *entry;
		bool		found;

		if (!event->has_event_id)
			continue;
		memset(&key, 0, sizeof(key));
		key.stream = event->stream;
		key.id = event->event_id;
		entry = hash_search(seen, &key, HASH_ENTER, &found);
		if (!found)
			entry->event = i;
		else if (!append->by_row)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("event id %s stands in the batch more than once",
							DatumGetCString(DirectFunctionCall1(uuid_out,
																UUIDPGetDatum(&event->event_id)))),
					 errdetail("Stream \"%s\", events %d and %d.",
							   pnstrdup(stream->name, stream->len),
							   entry->event + 1, i + 1)));
		else
		{
			EventInput *first = &append->events[entry->event];

			if (first->type_len != event->type_len ||
				memcmp(first->type, event->type, event->type_len) != 0 ||
				first->schema_version != event->schema_version ||
				!same_json(first->data, event->data))
				id_reused(stream, &event->event_id,
						  "An earlier row of this statement has it, with another type or payload.");
			event->duplicate = true;
		}
	}
	hash_destroy(seen);
}

/* What the events of one stream of a batch have come to, one after the other. */
typedef struct BatchState
{
	EventInput *first;
	EventInput *last;
	EventInput *known;			/* one that had been appended before */
	bool		all;			/* all of them had */
	bool		in_order;
} BatchState;

/*
 * A batch is a duplicate as a whole: every event of the stream has an id that
 * is there, one after the other.
 */
static void
judge_batch(AppendBatch *append)
{
	BatchState *states = palloc0(sizeof(BatchState) * append->nstreams);

	for (int i = 0; i < append->nevents; i++)
	{
		EventInput *event = &append->events[i];
		BatchState *state = &states[event->stream];

		if (state->first == NULL)
		{
			state->first = event;
			state->all = state->in_order = true;
		}
		if (!event->duplicate)
			state->all = false;
		else
		{
			state->known = event;
			if (state->last != NULL && state->last->duplicate &&
				event->version != state->last->version + 1)
				state->in_order = false;
		}
		state->last = event;
	}
	for (int i = 0; i < append->nstreams; i++)
	{
		StreamInput *stream = &append->streams[i];
		BatchState *state = &states[i];

		if (state->known == NULL)
			continue;
		if (!state->all)
			id_reused(stream, &state->known->event_id,
					  "Only some events of the batch had been appended before.");
		if (!state->in_order)
			id_reused(stream, &state->known->event_id,
					  "The events of the batch had been appended before, but not one after the other.");
		stream->duplicate = true;
		stream->first_version = state->first->version;
		stream->last_version = state->last->version;
		stream->first_position = state->first->position;
		stream->last_position = state->last->position;
	}
	pfree(states);
}

static void
find_duplicates(AppendBatch *append)
{
	int			with_id = 0;

	for (int i = 0; i < append->nevents; i++)
		if (append->events[i].has_event_id)
			with_id++;
	if (with_id == 0)
		return;
	if (with_id > 1)
		find_duplicates_in_batch(append);
	for (int i = 0; i < append->nevents; i++)
	{
		EventInput *event = &append->events[i];

		if (event->has_event_id && !event->duplicate)
			event->duplicate =
				find_duplicate(&append->streams[event->stream], event);
	}
	if (!append->by_row)
		judge_batch(append);
}

static void
wrong_version(const StreamInput *stream, int64 expected, int32 actual)
{
	const char *name = pnstrdup(stream->name, stream->len);

	if (expected == STREAM_EXISTS)
		ereport(ERROR,
				(errcode(ERRCODE_VE_WRONG_EXPECTED_VERSION),
				 errmsg("wrong expected version of stream \"%s\"", name),
				 errdetail("Expected an existing stream, actual version %d.", actual)));
	ereport(ERROR,
			(errcode(ERRCODE_VE_WRONG_EXPECTED_VERSION),
			 errmsg("wrong expected version of stream \"%s\"", name),
			 errdetail("Expected version %lld, actual version %d.",
					   (long long) expected, actual),
			 errhint("Read the stream again, decide anew, and append with the version found.")));
}

static void
check_expected_version(const StreamInput *stream)
{
	int64		expected = stream->expected_version;

	if (stream->duplicate || expected == ANY_VERSION)
		return;
	if (expected == STREAM_EXISTS)
	{
		if (stream->version == 0)
			wrong_version(stream, expected, stream->version);
	}
	else if (expected != stream->version)
		wrong_version(stream, expected, stream->version);
}

/* ----------------------------------------------------------------
 * Phases 3 to 5
 * ----------------------------------------------------------------
 */

static void
intern_category(StreamInput *stream)
{
	stream->category_id =
		names_intern(NAME_CATEGORY, stream->name,
					 input_category_length(stream->name, stream->len));
}

/* A descriptor of the first columns of an event. */
static TupleDesc
event_descriptor(int natts)
{
	static TupleDesc descriptors[EV_NATTS + 1];
	static uint64 generation = 0;
	const Store *store = catalog_store();

	if (unlikely(generation != store->generation))
	{
		for (int i = 0; i <= EV_NATTS; i++)
			if (descriptors[i] != NULL)
			{
				FreeTupleDesc(descriptors[i]);
				descriptors[i] = NULL;
			}
		generation = store->generation;
	}
	if (unlikely(descriptors[natts] == NULL))
	{
		Relation	event = table_open(store->event, AccessShareLock);
		MemoryContext saved = MemoryContextSwitchTo(TopMemoryContext);
		TupleDesc	desc = CreateTemplateTupleDesc(natts);

		for (int i = 1; i <= natts; i++)
			TupleDescCopyEntry(desc, i, RelationGetDescr(event), i);
		descriptors[natts] = desc;
		MemoryContextSwitchTo(saved);
		table_close(event, AccessShareLock);
	}
	return descriptors[natts];
}

/*
 * The row of an event, up to its last column that has a value: what a tuple
 * does not have is NULL, as in rows older than an ALTER TABLE ADD COLUMN.
 */
static HeapTuple
form_event(const StreamInput *stream, const EventInput *event, TimestampTz recorded_at)
{
	Datum		values[EV_NATTS];
	bool		nulls[EV_NATTS] = {0};
	int			natts = EV_NATTS;

	values[EV_POSITION - 1] = Int64GetDatum(event->position);
	values[EV_STREAM_ID - 1] = Int64GetDatum(stream->id);
	values[EV_RECORDED_AT - 1] = TimestampTzGetDatum(recorded_at);
	values[EV_VERSION - 1] = Int32GetDatum(event->version);
	values[EV_CATEGORY_ID - 1] = Int32GetDatum(stream->category_id);
	values[EV_TYPE_ID - 1] = Int32GetDatum(event->type_id);
	values[EV_SCHEMA_VERSION - 1] = Int32GetDatum(event->schema_version);
	nulls[EV_SCHEMA_VERSION - 1] = event->schema_version == 1;
	values[EV_EVENT_ID - 1] = UUIDPGetDatum(&event->event_id);
	nulls[EV_EVENT_ID - 1] = !event->has_event_id;
	values[EV_OCCURRED_AT - 1] = TimestampTzGetDatum(event->occurred_at);
	nulls[EV_OCCURRED_AT - 1] = !event->has_occurred_at;
	values[EV_SOURCE_ID - 1] = Int32GetDatum(event->source_id);
	nulls[EV_SOURCE_ID - 1] = event->source == NULL;
	values[EV_CAUSATION_ID - 1] = UUIDPGetDatum(&event->causation_id);
	nulls[EV_CAUSATION_ID - 1] = !event->has_causation_id;
	values[EV_CORRELATION_ID - 1] = event->correlation_id;
	nulls[EV_CORRELATION_ID - 1] = !event->has_correlation_id;
	values[EV_DATA - 1] = event->data;
	values[EV_METADATA - 1] = event->metadata;
	while (nulls[natts - 1])
		natts--;
	return heap_form_tuple(event_descriptor(natts), values, nulls);
}

/* Adds a segment to those that a stream's row names, by a position in each. */
static void
note_segment(StreamInput *stream, Segment segment)
{
	int			n = stream->nsegments;
	int			index;
	int64		noted;

	if (n > 0 && stream->segments[n - 1] >= segment.first)
		return;
	stream->note_segments = true;
	index = segment_index_for(segment.first);
	if (n > 0 && index > 0 &&
		segment_at(index - 1).first <= stream->segments[n - 1])
	{
		stream->segments[n - 1] = segment.first;
		return;
	}
	if (n == 0)
		stream->segments = palloc(sizeof(int64) * 2);
	else
		stream->segments = repalloc(stream->segments, sizeof(int64) * (n + 2));
	noted = n == 0 && stream->id >= segment.first && stream->id < segment.end ?
		stream->id : segment.first;
	stream->segments[n] = stream->segments[n + 1] = noted;
	stream->nsegments = n + 2;
}

static Datum
segments_datum(const StreamInput *stream, bool *isnull)
{
	Datum	   *elements;

	*isnull = stream->nsegments == 2 && stream->segments[0] == stream->id &&
		stream->segments[1] == stream->id;
	if (*isnull)
		return (Datum) 0;
	elements = palloc(sizeof(Datum) * Max(stream->nsegments, 1));
	for (int i = 0; i < stream->nsegments; i++)
		elements[i] = Int64GetDatum(stream->segments[i]);
	return PointerGetDatum(construct_array(elements, stream->nsegments, INT8OID,
										   sizeof(int64), FLOAT8PASSBYVAL,
										   TYPALIGN_DOUBLE));
}

static void
insert_stream_row(CatalogIndexState indexes, Relation rel, StreamInput *stream)
{
	Datum		values[ST_NATTS];
	bool		nulls[ST_NATTS] = {0};
	HeapTuple	tuple;

	values[ST_ID - 1] = Int64GetDatum(stream->id);
	values[ST_CATEGORY_ID - 1] = Int32GetDatum(stream->category_id);
	values[ST_CREATED_AT - 1] = TimestampTzGetDatum(stream->created_at);
	values[ST_NAME - 1] = PointerGetDatum(cstring_to_text_with_len(stream->name, stream->len));
	values[ST_SEGMENTS - 1] = segments_datum(stream, &nulls[ST_SEGMENTS - 1]);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsertWithInfo(rel, tuple, indexes);
	stream->tid = tuple->t_self;
}

static void
update_stream_row(CatalogIndexState indexes, Relation rel, StreamInput *stream)
{
	Datum		values[ST_NATTS];
	bool		nulls[ST_NATTS] = {0};
	HeapTuple	tuple;

	values[ST_ID - 1] = Int64GetDatum(stream->id);
	values[ST_CATEGORY_ID - 1] = Int32GetDatum(stream->category_id);
	values[ST_CREATED_AT - 1] = TimestampTzGetDatum(stream->created_at);
	values[ST_NAME - 1] = PointerGetDatum(cstring_to_text_with_len(stream->name, stream->len));
	values[ST_SEGMENTS - 1] = segments_datum(stream, &nulls[ST_SEGMENTS - 1]);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	tuple->t_self = stream->tid;
	CatalogTupleUpdateWithInfo(rel, &stream->tid, tuple, indexes);
}

/*
 * The stream's row was written by others since the snapshot of this REPEATABLE
 * READ transaction.  If that shows none of the stream, the row is written once
 * more, so that the transaction sees the stream that it has appended to.  If it
 * shows an old one, a new one would stand beside it, and plain SQL give each
 * event twice: as for any UPDATE of such a row, that is an error.
 */
static void
reconcile_younger_row(StreamInput *stream)
{
	ScanKeyData key;
	Probe		probe;
	bool		shown;

	open_stream_probe(&probe, stream->name, stream->len, AccessShareLock,
					  GetTransactionSnapshot(), &key);
	shown = next_stream_row(&probe, stream->name, stream->len);
	probe_close(&probe, false);
	if (!shown)
		stream->note_segments = true;
	else if (stream->note_segments)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("Stream \"%s\" has reached another segment since the transaction's snapshot, and would now reach one more.",
						   pnstrdup(stream->name, stream->len)),
				 errhint("Retry the transaction.")));
}

/* Rows of new streams, and new notes of old ones. */
static void
write_stream_rows(AppendBatch *append)
{
	Relation	rel = NULL;
	CatalogIndexState indexes = NULL;

	for (int i = 0; i < append->nstreams; i++)
	{
		StreamInput *stream = &append->streams[i];

		if (stream->row_is_younger && stream->first_version > 0)
			reconcile_younger_row(stream);
		if (!stream->note_segments)
			continue;
		if (rel == NULL)
			indexes = rows_open_small(catalog_store()->stream, &rel);
		if (ItemPointerIsValid(&stream->tid))
			update_stream_row(indexes, rel, stream);
		else
			insert_stream_row(indexes, rel, stream);
	}
	if (rel != NULL)
		rows_close_small(rel, indexes);
}

/*
 * The locks of new streams: their rows stand for them now, and where nothing
 * was written there is nothing to protect.
 */
static void
release_streams(AppendBatch *append)
{
	for (int i = 0; i < append->nstreams; i++)
		if (append->streams[i].holds_lock)
			release_stream(&append->streams[i]);
}

typedef struct NewName
{
	NameKind	kind;
	const char *name;
	int			len;
} NewName;

static int
compare_new_names(const void *a, const void *b)
{
	const NewName *x = a;
	const NewName *y = b;
	int			order;

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	order = memcmp(x->name, y->name, Min(x->len, y->len));
	return order != 0 ? order : x->len - y->len;
}

static void
add_new_name(NewName **names, int *count, int *room, NameKind kind,
			 const char *name, int len)
{
	NewName    *added;

	if (*count > 0)
	{
		added = &(*names)[*count - 1];
		if (added->kind == kind && added->len == len &&
			memcmp(added->name, name, len) == 0)
			return;
	}
	if (names_find(kind, name, len) != 0)
		return;
	if (*count == *room)
	{
		*room = Max(*room * 2, 16);
		*names = *names == NULL ? palloc(sizeof(NewName) * *room) :
			repalloc(*names, sizeof(NewName) * *room);
	}
	added = &(*names)[(*count)++];
	added->kind = kind;
	added->name = name;
	added->len = len;
}

/* Is the event's type the same as that of the event before, as one can tell at a glance? */
static inline bool
same_type(const AppendBatch *append, int i)
{
	return i > 0 && append->events[i].type == append->events[i - 1].type &&
		append->events[i].type_len == append->events[i - 1].type_len &&
		!append->events[i - 1].duplicate;
}

/*
 * Names that have no number yet get one, in one order in all calls: a name that
 * another transaction is about to make is waited for.
 */
static void
make_new_names(AppendBatch *append)
{
	NewName    *names = NULL;
	int			count = 0;
	int			room = 0;

	for (int i = 0; i < append->nstreams; i++)
	{
		StreamInput *stream = &append->streams[i];

		if (stream->id == 0 && stream->nevents > 0)
			add_new_name(&names, &count, &room, NAME_CATEGORY, stream->name,
						 input_category_length(stream->name, stream->len));
	}
	for (int i = 0; i < append->nevents; i++)
	{
		EventInput *event = &append->events[i];

		if (event->duplicate)
			continue;
		if (!same_type(append, i))
			add_new_name(&names, &count, &room, NAME_EVENT_TYPE, event->type, event->type_len);
		if (event->source != NULL)
			add_new_name(&names, &count, &room, NAME_SOURCE, event->source, event->source_len);
	}
	if (count == 0)
		return;
	qsort(names, count, sizeof(NewName), compare_new_names);
	for (int i = 0; i < count; i++)
		(void) names_intern(names[i].kind, names[i].name, names[i].len);
	pfree(names);
}

static void
number_names(AppendBatch *append)
{
	if (append->nevents > 1)
		make_new_names(append);
	for (int i = 0; i < append->nstreams; i++)
	{
		StreamInput *stream = &append->streams[i];

		if (stream->id == 0 && stream->nevents > 0)
			intern_category(stream);
	}
	for (int i = 0; i < append->nevents; i++)
	{
		EventInput *event = &append->events[i];

		if (event->duplicate)
			continue;
		event->type_id = same_type(append, i) ? append->events[i - 1].type_id :
			names_intern(NAME_EVENT_TYPE, event->type, event->type_len);
		if (event->source != NULL)
			event->source_id = names_intern(NAME_SOURCE, event->source, event->source_len);
	}
}

/* Versions, positions and ids for what is new. */
static void
number_events(AppendBatch *append, int64 position, TimestampTz recorded_at)
{
	for (int i = 0; i < append->nevents; i++)
	{
		EventInput *event = &append->events[i];
		StreamInput *stream = &append->streams[event->stream];

		if (event->duplicate)
			continue;
		if (stream->version == PG_INT32_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("stream \"%s\" is full",
							pnstrdup(stream->name, stream->len)),
					 errdetail("A stream holds %d events.", PG_INT32_MAX)));
		event->version = ++stream->version;
		if (event->wanted_version != 0 && event->wanted_version != event->version)
			wrong_version(stream, (int64) event->wanted_version - 1,
						  event->version - 1);
		event->position = position++;
		if (stream->first_version == 0)
		{
			stream->first_version = event->version;
			stream->first_position = event->position;
		}
		stream->last_version = event->version;
		stream->last_position = event->position;
		if (stream->id == 0)
			stream->id = event->position;
		if (event->version == 1)
			stream->created_at = recorded_at;
	}
}

static void
write_events(AppendBatch *append, int nnew, int64 last_position, TimestampTz recorded_at)
{
	HeapTuple  *tuples = palloc(sizeof(HeapTuple) * nnew);
	int			ntuples = 0;
	Segment		segment = {InvalidOid, 0, 0};
	Relation	rel = NULL;
	int64		noted_pair = 0;

	for (int i = 0; i < append->nevents; i++)
	{
		EventInput *event = &append->events[i];
		StreamInput *stream = &append->streams[event->stream];
		int64		pair;

		if (event->duplicate)
			continue;
		if (event->position >= segment.end)
		{
			if (ntuples > 0)
				rows_insert_events(rel, tuples, ntuples);
			ntuples = 0;
			if (rel != NULL)
				table_close(rel, NoLock);
			segment = segment_for_append(event->position, last_position);
			rel = table_open(segment.relid, RowExclusiveLock);
			noted_pair = 0;
		}
		note_segment(stream, segment);
		pair = ((int64) stream->category_id << 32) | (uint32) event->type_id;
		if (pair != noted_pair)
		{
			names_note_content(stream->category_id, event->type_id, segment.first);
			noted_pair = pair;
		}
		tuples[ntuples++] = form_event(stream, event, recorded_at);
	}
	rows_insert_events(rel, tuples, ntuples);
	table_close(rel, NoLock);
	pfree(tuples);
}

/*
 * Appends.  The input has passed the guards; the results stand in it after the
 * call.  What is allocated is left to the caller's memory context.
 */
void
append_write(AppendBatch *append)
{
	int			nnew = 0;
	int64		first;
	TimestampTz recorded_at;
	VersionLookup versions;

	lock_streams(append);
	segment_refresh();
	versions.segment = InvalidOid;
	for (int i = 0; i < append->nstreams; i++)
		read_version(&append->streams[i], &versions);
	end_versions(&versions);
	find_duplicates(append);
	for (int i = 0; i < append->nstreams; i++)
		check_expected_version(&append->streams[i]);
	for (int i = 0; i < append->nevents; i++)
		if (!append->events[i].duplicate)
			nnew++;
	if (nnew == 0)
	{
		release_streams(append);
		return;
	}

	number_names(append);
	first = counter_draw(nnew, &recorded_at);
	append->recorded_at = recorded_at;
	number_events(append, first, recorded_at);
	write_events(append, nnew, first + nnew - 1, recorded_at);
	write_stream_rows(append);
	release_streams(append);
	segment_notice(first, first + nnew - 1);
	CommandCounterIncrement();
	for (int i = 0; i < nhooks; i++)
		hooks[i] (append);
}

/* To be called when the library is loaded; hooks are called in that order. */
void
append_add_hook(AppendHook hook)
{
	if (nhooks == MAX_HOOKS)
		elog(ERROR, "too many hooks of appends");
	hooks[nhooks++] = hook;
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

/* What every function that appends checks first. */
void
append_guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	catalog_require_append(catalog_store());
}

void
append_result_values(const StreamInput *stream, Datum *values, bool *nulls)
{
	bool		nothing = stream->nevents == 0;

	memset(nulls, 0, sizeof(bool) * AR_NATTS);
	values[AR_STREAM] = PointerGetDatum(cstring_to_text_with_len(stream->name, stream->len));
	values[AR_FIRST_VERSION] = Int32GetDatum(stream->first_version);
	values[AR_LAST_VERSION] = Int32GetDatum(nothing ? stream->version : stream->last_version);
	values[AR_FIRST_POSITION] = Int64GetDatum(stream->first_position);
	values[AR_LAST_POSITION] = Int64GetDatum(stream->last_position);
	values[AR_DUPLICATE] = BoolGetDatum(stream->duplicate);
	nulls[AR_FIRST_VERSION] = nulls[AR_FIRST_POSITION] = nulls[AR_LAST_POSITION] = nothing;
}

Datum
append_result_datum(const StreamInput *stream)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(catalog_store()->append_result, -1);
	Datum		values[AR_NATTS];
	bool		nulls[AR_NATTS];
	Datum		result;

	append_result_values(stream, values, nulls);
	result = HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
	ReleaseTupleDesc(desc);
	return result;
}

int64
append_expected_version(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? ANY_VERSION : PG_GETARG_INT64(n);
}

/*
 * The arguments of a function that appends one event, from number n on: stream,
 * type, data, metadata, expected_version, event_id if it has one, occurred_at,
 * correlation_id, causation_id, schema_version, source.
 */
void
append_read_arguments(FunctionCallInfo fcinfo, int n, bool has_event_id,
					  StreamInput *stream, EventInput *event)
{
	Jsonb	   *metadata;

	input_stream_name(stream, PG_ARGISNULL(n) ? NULL : PG_GETARG_TEXT_PP(n));
	stream->nevents = 1;
	n++;
	input_type(event, PG_ARGISNULL(n) ? NULL : PG_GETARG_TEXT_PP(n));
	n++;
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("data must not be NULL"),
				 errhint("JSON null is a value: 'null'.")));
	event->data = PointerGetDatum(PG_GETARG_JSONB_P(n));
	n++;
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("metadata must not be NULL"),
				 errhint("Leave it out, or give '{}'.")));
	metadata = PG_GETARG_JSONB_P(n);
	input_metadata(metadata);
	event->metadata = PointerGetDatum(metadata);
	n++;
	stream->expected_version = input_expected_version(append_expected_version(fcinfo, n));
	n++;
	if (has_event_id)
	{
		if (!PG_ARGISNULL(n))
		{
			event->event_id = *PG_GETARG_UUID_P(n);
			event->has_event_id = true;
		}
		n++;
	}
	if (!PG_ARGISNULL(n))
	{
		event->occurred_at = PG_GETARG_TIMESTAMPTZ(n);
		input_occurred_at(event->occurred_at);
		event->has_occurred_at = true;
	}
	n++;
	if (!PG_ARGISNULL(n))
		input_correlation_id(event, PG_GETARG_TEXT_PP(n));
	n++;
	if (!PG_ARGISNULL(n))
	{
		event->causation_id = *PG_GETARG_UUID_P(n);
		event->has_causation_id = true;
	}
	n++;
	event->schema_version = PG_ARGISNULL(n) ? 1 : PG_GETARG_INT32(n);
	input_schema_version(event->schema_version);
	n++;
	if (!PG_ARGISNULL(n))
		input_source(event, PG_GETARG_TEXT_PP(n));
}

Datum
event_store_append(PG_FUNCTION_ARGS)
{
	AppendBatch append = {0};
	StreamInput stream = {0};
	EventInput	event = {0};

	append_guard("event_store.append()");
	append.nstreams = append.nevents = 1;
	append.streams = &stream;
	append.events = &event;
	append_read_arguments(fcinfo, 0, true, &stream, &event);
	append_write(&append);
	PG_RETURN_DATUM(append_result_datum(&stream));
}

Datum
event_store_append_events(PG_FUNCTION_ARGS)
{
	AppendBatch		append = {0};

	append_guard("event_store.append_events()");
	input_batch_of_stream(&append,
						  PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0),
						  PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1),
						  append_expected_version(fcinfo, 2));
	append_write(&append);
	PG_RETURN_DATUM(append_result_datum(&append.streams[0]));
}

Datum
event_store_append_streams(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	AppendBatch		append = {0};

	append_guard("event_store.append_streams()");
	InitMaterializedSRF(fcinfo, 0);
	input_batch_of_streams(&append, PG_ARGISNULL(0) ? NULL : PG_GETARG_JSONB_P(0));
	append_write(&append);
	for (int i = 0; i < append.nstreams; i++)
	{
		Datum		values[AR_NATTS];
		bool		nulls[AR_NATTS];

		append_result_values(&append.streams[i], values, nulls);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* ----------------------------------------------------------------
 * The folder's set-up
 * ----------------------------------------------------------------
 */

static void
forget_locks(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		held_locks = 0;
}

void
stream_init(void)
{
	rows_init();
	RegisterXactCallback(forget_locks, NULL);
	id_range_init();
	bulk_init();
	scan_init();
}

/*
 * The columns of recorded_event of an event that a hook is shown; what has to be
 * made is in the current memory context, the id at *made_id.
 */
void
append_recorded_values(const AppendBatch *append, const EventInput *event, int64 id_key,
					   pg_uuid_t *made_id, Datum *values, bool *nulls)
{
	const StreamInput *stream = &append->streams[event->stream];

	memset(nulls, false, sizeof(bool) * RE_NATTS);
	values[RE_POSITION] = Int64GetDatum(event->position);
	values[RE_STREAM] = PointerGetDatum(cstring_to_text_with_len(stream->name, stream->len));
	values[RE_VERSION] = Int32GetDatum(event->version);
	values[RE_TYPE] = PointerGetDatum(cstring_to_text_with_len(event->type, event->type_len));
	values[RE_SCHEMA_VERSION] = Int32GetDatum(event->schema_version);
	if (event->has_event_id)
		*made_id = event->event_id;
	else
		ids_derive(made_id, event->position, append->recorded_at, id_key);
	values[RE_EVENT_ID] = UUIDPGetDatum(made_id);
	values[RE_RECORDED_AT] = TimestampTzGetDatum(append->recorded_at);
	values[RE_OCCURRED_AT] = TimestampTzGetDatum(event->has_occurred_at ? event->occurred_at :
												 append->recorded_at);
	nulls[RE_SOURCE] = event->source == NULL;
	if (event->source != NULL)
		values[RE_SOURCE] = PointerGetDatum(cstring_to_text_with_len(event->source,
																	 event->source_len));
	nulls[RE_CORRELATION_ID] = !event->has_correlation_id;
	values[RE_CORRELATION_ID] = event->correlation_id;
	nulls[RE_CAUSATION_ID] = !event->has_causation_id;
	values[RE_CAUSATION_ID] = UUIDPGetDatum(unconstify(pg_uuid_t *, &event->causation_id));
	values[RE_DATA] = event->data;
	values[RE_METADATA] = event->metadata;
}
