/*
 * names.c
 *		Interned names: category, event type, source; and what else of the
 *		store's small tables a backend keeps.
 *
 * A name gets its number once:
 *
 * 1. look into the cache; 2. look into the table, for rows that are committed
 * or our own; 3. lock the name (LOCK_CLASS_NAME), look once more with a dirty
 * snapshot, and if somebody else's row is in flight, let go of the lock and
 * wait for his transaction; if there is none, insert the row; let go of the
 * lock.  The unique index on the name then stands for the lock, so that a
 * transaction with any number of new names needs no more than one lock.
 *
 * What the cache holds is committed, or pending: made by the transaction that
 * runs.  Pending entries go when it, or any subtransaction of it, aborts, and
 * when it is prepared (another session may roll it back); they stay with its
 * commit.  Names are never renamed or removed, so nothing else makes an entry
 * wrong but the end of the store itself (catalog.c's generation).
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/xact.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/locks.h"
#include "common/names.h"
#include "common/rows.h"

/* columns of the three tables */
#define NAME_ATT_ID		1
#define NAME_ATT_NAME	2

/* entries of one cache at which it is emptied and begun anew */
#define MAX_CACHED		131072

/* streams that a read looks up one by one, before it takes in their neighbours */
#define MISSES_ALONE	8

typedef struct NameKey
{
	uint64		hash;
	uint32		kind;
	uint32		len;
} NameKey;

typedef struct NameEntry
{
	NameKey		key;
	int32		id;
	bool		pending;
	char	   *name;			/* not terminated */
} NameEntry;

/*
 * Names by id: looked up for every event that is read, mostly of streams at
 * random, so by open addressing, which costs one miss of the processor's cache.
 * The key of a stream is its id, which is positive; those of other names are
 * negative.
 */
typedef struct IdEntry
{
	int64		key;
	text	   *name;
	uint32		status;			/* of simplehash */
} IdEntry;

#define NAME_ID_KEY(kind, id)	(-1 - ((int64) (id) * NAME_KINDS + (kind)))

/* the upper half of the product: the middle of it depends on all of the key */
static inline uint32
hash_id(int64 key)
{
	return (uint32) (((uint64) key * UINT64CONST(0x9E3779B97F4A7C15)) >> 32);
}

#define SH_PREFIX		idhash
#define SH_ELEMENT_TYPE	IdEntry
#define SH_KEY_TYPE		int64
#define SH_KEY			key
#define SH_HASH_KEY(tb, key)	hash_id(key)
#define SH_EQUAL(tb, a, b)		((a) == (b))
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

typedef struct ContentKey
{
	int32		category_id;
	int32		type_id;
} ContentKey;

/* the last segment that the pair was noted for */
typedef struct ContentEntry
{
	ContentKey	key;
	int64		segment;
	bool		pending;
} ContentEntry;

static MemoryContext names_context = NULL;
static HTAB *by_name = NULL;
static idhash_hash *by_id = NULL;
static HTAB *contents = NULL;
static uint64 cache_generation = 0;
static bool have_pending = false;

/* ----------------------------------------------------------------
 * The caches
 * ----------------------------------------------------------------
 */

static HTAB *
make_cache(const char *name, Size keysize, Size entrysize)
{
	HASHCTL		control;

	control.keysize = keysize;
	control.entrysize = entrysize;
	control.hcxt = names_context;
	return hash_create(name, 256, &control,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static void
drop_caches(void)
{
	by_name = contents = NULL;
	by_id = NULL;
	have_pending = false;
	MemoryContextReset(names_context);
}

static const Store *
prepare_caches(void)
{
	const Store *store = catalog_store();

	if (unlikely(cache_generation != store->generation || by_name == NULL))
	{
		drop_caches();
		by_name = make_cache("event_store names", sizeof(NameKey), sizeof(NameEntry));
		by_id = idhash_create(names_context, 256, NULL);
		contents = make_cache("event_store contents", sizeof(ContentKey),
							  sizeof(ContentEntry));
		cache_generation = store->generation;
	}
	return store;
}

/*
 * To be called where nothing points into the caches: keeps them from growing
 * without bound.  Pending entries may go as well, they are found in the table.
 */
static void
bound_caches(void)
{
	if (hash_get_num_entries(by_name) > MAX_CACHED ||
		by_id->members > MAX_CACHED ||
		hash_get_num_entries(contents) > MAX_CACHED)
	{
		drop_caches();
		(void) prepare_caches();
	}
}

static void
settle_pending(bool keep)
{
	HASH_SEQ_STATUS status;
	NameEntry  *name;
	ContentEntry *content;

	if (!have_pending)
		return;
	have_pending = false;
	hash_seq_init(&status, by_name);
	while ((name = hash_seq_search(&status)) != NULL)
	{
		if (!name->pending)
			continue;
		if (keep)
			name->pending = false;
		else
			(void) hash_search(by_name, &name->key, HASH_REMOVE, NULL);
	}
	hash_seq_init(&status, contents);
	while ((content = hash_seq_search(&status)) != NULL)
	{
		if (!content->pending)
			continue;
		if (keep)
			content->pending = false;
		else
			(void) hash_search(contents, &content->key, HASH_REMOVE, NULL);
	}
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT)
		settle_pending(true);
	else if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		settle_pending(false);
}

static void
subxact_callback(SubXactEvent event, SubTransactionId my_subid,
				 SubTransactionId parent_subid, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		settle_pending(false);
}

static NameKey
name_key(NameKind kind, const char *name, int len)
{
	NameKey		key;

	key.hash = DatumGetUInt64(hash_any_extended((const unsigned char *) name, len, kind));
	key.kind = kind;
	key.len = len;
	return key;
}

static void
remember_name(const NameKey *key, const char *name, int32 id, bool pending)
{
	NameEntry  *entry;
	bool		found;
	char	   *copy;

	/* two names of one hash: the one that came first keeps the place */
	if (hash_search(by_name, key, HASH_FIND, NULL) != NULL)
		return;
	copy = MemoryContextAlloc(names_context, Max(key->len, 1));
	memcpy(copy, name, key->len);
	entry = hash_search(by_name, key, HASH_ENTER, &found);
	entry->id = id;
	entry->pending = pending;
	entry->name = copy;
	if (pending)
		have_pending = true;
}

/* ----------------------------------------------------------------
 * Names to ids
 * ----------------------------------------------------------------
 */

/*
 * Looks a name up in its table.  With a dirty snapshot, *wait_for tells whose
 * transaction has the row in flight.  *own: the row is of this transaction.
 */
static bool
lookup_name(const NameTable *table, Datum name, Snapshot snapshot,
			int32 *id, bool *own, TransactionId *wait_for)
{
	ScanKeyData key;
	Probe		probe;
	bool		found;

	key_text(&key, 1, BTEqualStrategyNumber, name);
	probe_open(&probe, table->table, &table->name_index, AccessShareLock,
			   snapshot, &key, 1);
	found = probe_next(&probe, ForwardScanDirection);
	if (found)
	{
		HeapTuple	tuple = ExecFetchSlotHeapTuple(probe.slot, false, NULL);

		*id = probe_int32(&probe, NAME_ATT_ID);
		*own = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
		if (wait_for != NULL)
			*wait_for = snapshot->xmin;
	}
	probe_close(&probe, false);
	return found;
}

static bool
id_is_taken(const NameTable *table, int32 id)
{
	SnapshotData dirty;
	ScanKeyData key;
	Probe		probe;
	bool		found;

	InitDirtySnapshot(dirty);
	key_int32(&key, 1, BTEqualStrategyNumber, id);
	probe_open(&probe, table->table, &table->id_index, AccessShareLock,
			   &dirty, &key, 1);
	found = probe_next(&probe, ForwardScanDirection);
	probe_close(&probe, false);
	return found;
}

static int32
insert_name(const NameTable *table, Datum name)
{
	int64		id;
	Datum		values[2];

	/*
	 * A sequence can fall back in a crash, where its page was copied together
	 * with the database (CREATE DATABASE with STRATEGY wal_log) and no record
	 * of it was written since.
	 */
	do
		id = nextval_internal(table->id_sequence, false);
	while (id_is_taken(table, (int32) id));

	values[NAME_ATT_ID - 1] = Int32GetDatum((int32) id);
	values[NAME_ATT_NAME - 1] = name;
	rows_insert_small(table->table, values, NULL);
	CommandCounterIncrement();
	return (int32) id;
}

static int32
find_or_make(NameKind kind, const char *name, int len, bool make)
{
	const Store *store = prepare_caches();
	const NameTable *table = &store->names[kind];
	NameKey		key = name_key(kind, name, len);
	NameEntry  *entry = hash_search(by_name, &key, HASH_FIND, NULL);
	LOCKTAG		tag;
	Datum		datum;
	int32		id = 0;
	bool		own = false;

	if (likely(entry != NULL && memcmp(entry->name, name, len) == 0))
		return entry->id;

	bound_caches();
	datum = PointerGetDatum(cstring_to_text_with_len(name, len));
	if (lookup_name(table, datum, SnapshotSelf, &id, &own, NULL))
	{
		remember_name(&key, name, id, own);
		return id;
	}
	if (!make)
		return 0;

	locks_set_tag(&tag, LOCK_CLASS_NAME, key.hash);
	for (;;)
	{
		SnapshotData dirty;
		TransactionId wait_for = InvalidTransactionId;

		(void) LockAcquire(&tag, ExclusiveLock, false, false);
		InitDirtySnapshot(dirty);
		if (!lookup_name(table, datum, &dirty, &id, &own, &wait_for))
		{
			id = insert_name(table, datum);
			own = true;
		}
		(void) LockRelease(&tag, ExclusiveLock, false);
		if (!TransactionIdIsValid(wait_for))
			break;
		XactLockTableWait(wait_for, NULL, NULL, XLTW_None);
	}
	remember_name(&key, name, id, own);
	return id;
}

/* The number of a name, which it gets now if it has none. */
int32
names_intern(NameKind kind, const char *name, int len)
{
	return find_or_make(kind, name, len, true);
}

/* The number of a name, 0 if it has none. */
int32
names_find(NameKind kind, const char *name, int len)
{
	return find_or_make(kind, name, len, false);
}

/* ----------------------------------------------------------------
 * Ids to names
 * ----------------------------------------------------------------
 */

/* The cached name of an id, or NULL. */
static text *
cached_name(int64 key)
{
	IdEntry    *entry = idhash_lookup(by_id, key);

	return entry == NULL ? NULL : entry->name;
}

/* The name in the row that a probe for an id finds; remembered if committed. */
static text *
probed_name(int64 key, Probe *probe, int name_att)
{
	HeapTuple	tuple;
	Datum		value;
	bool		isnull;
	text	   *name;

	if (!probe_next(probe, ForwardScanDirection))
		return NULL;
	value = probe_value(probe, name_att, &isnull);
	tuple = ExecFetchSlotHeapTuple(probe->slot, false, NULL);

	/* what may yet be rolled back is not remembered */
	if (TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)))
		name = DatumGetTextPCopy(value);
	else
	{
		MemoryContext saved = MemoryContextSwitchTo(names_context);
		IdEntry    *entry;
		bool		found;

		name = DatumGetTextPCopy(value);
		entry = idhash_insert(by_id, key, &found);
		entry->name = name;
		MemoryContextSwitchTo(saved);
	}
	return name;
}

static void
name_is_missing(int64 id, const char *table)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_STORE_DAMAGED),
			 errmsg("name of id %lld is missing in \"event_store.%s\"",
					(long long) id, table)));
}

/*
 * The name behind a number, as of now: an event of a REPEATABLE READ transaction
 * may have a name that is younger than its snapshot.  The text is the cache's:
 * copy it before anything else is asked of this module.
 */
text *
names_text(NameKind kind, int32 id)
{
	const Store *store = prepare_caches();
	int64		key = NAME_ID_KEY(kind, id);
	text	   *name = cached_name(key);
	ScanKeyData scankey;
	Probe		probe;

	if (likely(name != NULL))
		return name;
	key_int32(&scankey, 1, BTEqualStrategyNumber, id);
	probe_open(&probe, store->names[kind].table, &store->names[kind].id_index,
			   AccessShareLock, SnapshotSelf, &scankey, 1);
	name = probed_name(key, &probe, NAME_ATT_NAME);
	probe_close(&probe, false);
	if (name == NULL)
		name_is_missing(id, "category, event_type or source");
	return name;
}

/*
 * Remembers the names of all streams on the heap page of the row that a probe
 * has found: streams of one time lie together, and their events do, too.
 */
static void
remember_neighbours(Probe *probe)
{
	Buffer		buffer = ((BufferHeapTupleTableSlot *) probe->slot)->buffer;
	TupleDesc	desc = RelationGetDescr(probe->heap);
	HeapTupleData tuple;
	Page		page;
	OffsetNumber max;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buffer);
	max = PageGetMaxOffsetNumber(page);
	for (OffsetNumber off = FirstOffsetNumber; off <= max; off++)
	{
		ItemId		item = PageGetItemId(page, off);
		bool		isnull;
		bool		found;
		int64		id;

		if (!ItemIdIsNormal(item))
			continue;
		tuple.t_data = (HeapTupleHeader) PageGetItem(page, item);
		tuple.t_len = ItemIdGetLength(item);
		tuple.t_tableOid = RelationGetRelid(probe->heap);
		ItemPointerSet(&tuple.t_self, BufferGetBlockNumber(buffer), off);
		if (!HeapTupleSatisfiesVisibility(&tuple, probe->snapshot, buffer) ||
			TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple.t_data)))
			continue;
		id = DatumGetInt64(heap_getattr(&tuple, ST_ID, desc, &isnull));
		if (idhash_lookup(by_id, id) == NULL)
		{
			MemoryContext saved;
			Datum		name = heap_getattr(&tuple, ST_NAME, desc, &isnull);

			/* another table is not looked at under this page's lock */
			if (VARATT_IS_EXTERNAL(DatumGetPointer(name)))
				continue;
			saved = MemoryContextSwitchTo(names_context);
			name = PointerGetDatum(DatumGetTextPCopy(name));
			idhash_insert(by_id, id, &found)->name = DatumGetTextP(name);
			MemoryContextSwitchTo(saved);
		}
	}
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
}

/*
 * The name of a stream; likewise.  Streams' rows are updated, so they are looked
 * up by the caller's snapshot first, and as of now (twice, since a row may move
 * between the look into the index and that at the row) only if it has none.
 */
text *
names_stream(int64 stream_id, StreamNames *lookup, Snapshot snapshot)
{
	const Store *store = prepare_caches();
	text	   *name = cached_name(stream_id);
	ScanKeyData scankey;

	if (likely(name != NULL))
		return name;
	bound_caches();
	key_int64(&scankey, 1, BTEqualStrategyNumber, stream_id);
	if (lookup->open)
		probe_again(&lookup->probe, &scankey, 1);
	else
	{
		probe_open(&lookup->probe, store->stream, &store->stream_id_index,
				   AccessShareLock, snapshot, &scankey, 1);
		lookup->open = true;
	}
	name = probed_name(stream_id, &lookup->probe, ST_NAME);
	if (name != NULL && ++lookup->misses > MISSES_ALONE)
		remember_neighbours(&lookup->probe);
	for (int i = 0; name == NULL && i < 2; i++)
	{
		Probe		probe;

		probe_open(&probe, store->stream, &store->stream_id_index,
				   AccessShareLock, SnapshotSelf, &scankey, 1);
		name = probed_name(stream_id, &probe, ST_NAME);
		probe_close(&probe, false);
	}
	if (name == NULL)
		name_is_missing(stream_id, "stream");
	return name;
}

void
names_end_streams(StreamNames *lookup)
{
	if (lookup->open)
		probe_close(&lookup->probe, false);
	lookup->open = false;
}

/* ----------------------------------------------------------------
 * What a segment contains
 * ----------------------------------------------------------------
 */

/*
 * Notes that a segment has events of a category and type, unless a note stands
 * there that is committed or our own.  Two writers may note the same at once,
 * without waiting for each other: a reader takes both notes for one.
 */
void
names_note_content(int32 category_id, int32 type_id, int64 segment)
{
	const Store *store = prepare_caches();
	ContentKey	key;
	ContentEntry *entry;
	bool		found;
	bool		noted = false;
	bool		own = false;
	ScanKeyData keys[3];
	Probe		probe;

	key.category_id = category_id;
	key.type_id = type_id;
	entry = hash_search(contents, &key, HASH_FIND, NULL);
	if (likely(entry != NULL && entry->segment == segment))
		return;

	key_int32(&keys[0], 1, BTEqualStrategyNumber, category_id);
	key_int64(&keys[1], 2, BTEqualStrategyNumber, segment);
	key_int32(&keys[2], 3, BTEqualStrategyNumber, type_id);
	probe_open(&probe, store->segment_content, &store->content_category_index,
			   AccessShareLock, SnapshotSelf, keys, 3);
	while (probe_next(&probe, ForwardScanDirection))
	{
		HeapTuple	tuple = ExecFetchSlotHeapTuple(probe.slot, false, NULL);

		noted = true;
		own = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
		if (!own)
			break;
	}
	probe_close(&probe, false);

	if (!noted)
	{
		Datum		values[SC_NATTS];

		values[SC_CATEGORY_ID - 1] = Int32GetDatum(category_id);
		values[SC_TYPE_ID - 1] = Int32GetDatum(type_id);
		values[SC_SEGMENT - 1] = Int64GetDatum(segment);
		rows_insert_small(store->segment_content, values, NULL);
		own = true;
	}

	if (hash_get_num_entries(contents) > MAX_CACHED)
		bound_caches();
	entry = hash_search(contents, &key, HASH_ENTER, &found);
	entry->segment = segment;
	entry->pending = own;
	if (own)
		have_pending = true;
}

void
names_init(void)
{
	names_context = AllocSetContextCreate(CacheMemoryContext,
										  "event_store names",
										  ALLOCSET_DEFAULT_SIZES);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
