/*
 * rows.c
 *		Rows of the extension's tables, past the executor.
 *
 * The one module that writes events to the table access method and to the
 * indexes directly.  The executor would have checked privileges (the callers
 * do: catalog_require_append()), NOT NULL and the partition's bounds (the rows
 * are built from checked input, for a segment found by position), and would
 * have fired triggers: a segment that has any for INSERT is refused, since
 * events must not depend on which way they came.  Foreign keys to an event
 * do no harm; generated columns, CHECK constraints and row security of a
 * segment are refused with the triggers.
 *
 * Indexes that people add to a segment are kept, of any kind, with
 * expressions and predicates; those of the extension are recognized by their
 * columns and take a shorter way.
 *
 * Locks: RowExclusiveLock on the segment and those of its indexes that get an
 * entry, to the end of the transaction.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relscan.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/visibilitymap.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/pg_am_d.h"
#include "catalog/pg_collation_d.h"
#include "catalog/pg_type_d.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "nodes/primnodes.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/rows.h"

/*
 * Rows of one multi-insert: bounds the memory of slots.  A thousand took longer
 * for each row, not less.
 */
#define CHUNK_ROWS	128

typedef struct IndexEntry
{
	Oid			oid;
	IndexInfo  *info;
	bool		plain;			/* columns only, no predicate but the one below */
	bool		not_null;		/* only rows with a value in its first column */
} IndexEntry;

/* what is known of a segment's indexes, by the segment's oid */
typedef struct SegmentEntry
{
	Oid			relid;
	bool		valid;
	int			nindexes;
	IndexEntry *indexes;
	Oid			by_role[SEGMENT_INDEXES];
	MemoryContext context;
} SegmentEntry;

static HTAB *segments = NULL;
static uint64 messages = 0;		/* from the relation cache, so far */

/* ----------------------------------------------------------------
 * Probes
 * ----------------------------------------------------------------
 */

static void
begin_probe(Probe *probe, Relation heap, Oid index, LOCKMODE lock,
			Snapshot snapshot, ScanKey keys, int nkeys, bool entries)
{
	probe->heap = heap;
	probe->index = index_open(index, lock);
	probe->lock = lock;
	probe->snapshot = snapshot;
	probe->slot = entries ? NULL : table_slot_create(probe->heap, NULL);
	probe->visibility = InvalidBuffer;
	probe->scan = compat_index_beginscan(probe->heap, probe->index, snapshot, nkeys);
	probe->scan->xs_want_itup = entries;
	index_rescan(probe->scan, keys, nkeys, NULL, 0);
}

/*
 * The index is named by where its oid stands, mostly in what catalog_store() gives:
 * REINDEX CONCURRENTLY may put another in its place, and drop this one, until the
 * table is locked.
 */
void
probe_open(Probe *probe, Oid heap, const Oid *index, LOCKMODE lock,
		   Snapshot snapshot, ScanKey keys, int nkeys)
{
	Relation	rel = table_open(heap, lock);

	(void) catalog_store();
	begin_probe(probe, rel, *index, lock, snapshot, keys, nkeys, false);
}

/* Another range of the same index. */
void
probe_again(Probe *probe, ScanKey keys, int nkeys)
{
	index_rescan(probe->scan, keys, nkeys, NULL, 0);
}

bool
probe_next(Probe *probe, ScanDirection direction)
{
	return index_getnext_slot(probe->scan, direction, probe->slot);
}

void
probe_close(Probe *probe, bool keep_locks)
{
	LOCKMODE	lock = keep_locks ? NoLock : probe->lock;

	index_endscan(probe->scan);
	if (probe->slot != NULL)
		ExecDropSingleTupleTableSlot(probe->slot);
	if (BufferIsValid(probe->visibility))
		ReleaseBuffer(probe->visibility);
	index_close(probe->index, lock);
	table_close(probe->heap, lock);
}

Datum
probe_value(Probe *probe, int attno, bool *isnull)
{
	return slot_getattr(probe->slot, attno, isnull);
}

int64
probe_int64(Probe *probe, int attno)
{
	bool		isnull;

	return DatumGetInt64(slot_getattr(probe->slot, attno, &isnull));
}

int32
probe_int32(Probe *probe, int attno)
{
	bool		isnull;

	return DatumGetInt32(slot_getattr(probe->slot, attno, &isnull));
}

void
key_int64(ScanKey key, int attno, int strategy, int64 value)
{
	RegProcedure function;

	switch (strategy)
	{
		case BTLessStrategyNumber:
			function = F_INT8LT;
			break;
		case BTLessEqualStrategyNumber:
			function = F_INT8LE;
			break;
		case BTGreaterEqualStrategyNumber:
			function = F_INT8GE;
			break;
		case BTGreaterStrategyNumber:
			function = F_INT8GT;
			break;
		default:
			function = F_INT8EQ;
			break;
	}
	ScanKeyInit(key, attno, strategy, function, Int64GetDatum(value));
}

void
key_int32(ScanKey key, int attno, int strategy, int32 value)
{
	RegProcedure function;

	switch (strategy)
	{
		case BTLessEqualStrategyNumber:
			function = F_INT4LE;
			break;
		case BTGreaterEqualStrategyNumber:
			function = F_INT4GE;
			break;
		default:
			function = F_INT4EQ;
			break;
	}
	ScanKeyInit(key, attno, strategy, function, Int32GetDatum(value));
}

/* The columns that texts are looked up by have collation "C". */
void
key_text(ScanKey key, int attno, int strategy, Datum value)
{
	RegProcedure function;

	switch (strategy)
	{
		case BTLessStrategyNumber:
			function = F_TEXT_LT;
			break;
		case BTGreaterEqualStrategyNumber:
			function = F_TEXT_GE;
			break;
		case BTGreaterStrategyNumber:
			function = F_TEXT_GT;
			break;
		default:
			function = F_TEXTEQ;
			break;
	}
	ScanKeyEntryInitialize(key, 0, attno, strategy, InvalidOid,
						   C_COLLATION_OID, function, value);
}

/* For an index of type hash. */
void
key_text_hash(ScanKey key, int attno, Datum value)
{
	ScanKeyEntryInitialize(key, 0, attno, HTEqualStrategyNumber, InvalidOid,
						   C_COLLATION_OID, F_TEXTEQ, value);
}

void
key_uuid(ScanKey key, int attno, Datum value)
{
	ScanKeyInit(key, attno, BTEqualStrategyNumber, F_UUID_EQ, value);
}

/*
 * May a unique B-tree on one column, a UUID, have an entry with this value?  If
 * so an index scan has to tell whether there is a row.  For who mostly finds
 * nothing, this is less than half of what the scan costs.
 */
bool
rows_may_have_uuid(Relation heap, Relation index, const pg_uuid_t *value)
{
	BTScanInsertData key;
	Buffer		buffer;
	Page		page;
	BTPageOpaque opaque;
	OffsetNumber low;
	OffsetNumber high;
	OffsetNumber last;
	bool		may;

	memset(&key, 0, offsetof(BTScanInsertData, scankeys));
	key.heapkeyspace = true;
	key.keysz = 1;
	ScanKeyEntryInitializeWithInfo(&key.scankeys[0], 0, 1, InvalidStrategy, InvalidOid,
								   InvalidOid, index_getprocinfo(index, 1, BTORDER_PROC),
								   UUIDPGetDatum(value));
	_bt_freestack(compat_bt_search(index, heap, &key, &buffer));
	if (!BufferIsValid(buffer))
		return false;
	page = BufferGetPage(buffer);
	opaque = BTPageGetOpaque(page);
	low = P_FIRSTDATAKEY(opaque);
	last = PageGetMaxOffsetNumber(page);
	high = last + 1;
	may = false;
	while (low < high)
	{
		OffsetNumber middle = low + (high - low) / 2;
		IndexTuple	entry = (IndexTuple) PageGetItem(page, PageGetItemId(page, middle));
		int			order = memcmp((char *) entry + IndexInfoFindDataOffset(entry->t_info),
								   value, UUID_LEN);

		if (order == 0)
		{
			may = true;
			break;
		}
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	/* it would be the next page's first */
	if (!may && low > last && !P_RIGHTMOST(opaque))
		may = true;
	_bt_relbuf(index, buffer);
	return may;
}

/* ----------------------------------------------------------------
 * What is known of a segment
 * ----------------------------------------------------------------
 */

static void
relcache_callback(Datum arg, Oid relid)
{
	SegmentEntry *entry;

	if (catalog_message_is_news(relid))
		messages++;
	if (segments == NULL)
		return;
	if (relid != InvalidOid)
	{
		entry = hash_search(segments, &relid, HASH_FIND, NULL);
		if (entry != NULL)
			entry->valid = false;
	}
	else
	{
		HASH_SEQ_STATUS status;

		hash_seq_init(&status, segments);
		while ((entry = hash_seq_search(&status)) != NULL)
			entry->valid = false;
	}
}

static bool
index_is_on(Form_pg_index form, int ncolumns, const int *columns)
{
	if (form->indnkeyatts != ncolumns)
		return false;
	for (int i = 0; i < ncolumns; i++)
		if (form->indkey.values[i] != columns[i])
			return false;
	return true;
}

/* Is the predicate "its first column is not null"? */
static bool
index_is_not_null(Relation index)
{
	List	   *predicate = RelationGetIndexPredicate(index);
	NullTest   *test;

	if (list_length(predicate) != 1 || !IsA(linitial(predicate), NullTest))
		return false;
	test = linitial_node(NullTest, predicate);
	return test->nulltesttype == IS_NOT_NULL && IsA(test->arg, Var) &&
		((Var *) test->arg)->varattno == index->rd_index->indkey.values[0];
}

static int
index_role(Relation index)
{
	static const struct
	{
		int			ncolumns;
		int			columns[3];
		bool		partial;
	}			roles[SEGMENT_INDEXES] = {
		{1, {EV_POSITION}, false},
		{2, {EV_STREAM_ID, EV_VERSION}, false},
		{1, {EV_EVENT_ID}, true},
		{3, {EV_CATEGORY_ID, EV_TYPE_ID, EV_POSITION}, false},
		{2, {EV_CORRELATION_ID, EV_POSITION}, true},
	};
	Form_pg_index form = index->rd_index;

	if (!form->indisvalid || index->rd_rel->relam != BTREE_AM_OID)
		return -1;
	for (int i = 0; i < SEGMENT_INDEXES; i++)
		if (index_is_on(form, roles[i].ncolumns, roles[i].columns) &&
			(roles[i].partial ? index_is_not_null(index) :
			 heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL)))
			return i;
	return -1;
}

static void
check_segment(Relation segment)
{
	TupleConstr *constr = RelationGetDescr(segment)->constr;
	TriggerDesc *triggers = segment->trigdesc;

	if (triggers != NULL &&
		(triggers->trig_insert_before_row || triggers->trig_insert_after_row ||
		 triggers->trig_insert_before_statement ||
		 triggers->trig_insert_after_statement ||
		 triggers->trig_insert_new_table))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("segment \"%s\" has a trigger for INSERT, which appends do not fire",
						RelationGetRelationName(segment)),
				 errhint("Drop the trigger.")));
	if (constr != NULL && (constr->num_check > 0 || constr->has_generated_stored))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("segment \"%s\" has a CHECK constraint or generated column, which appends do not compute",
						RelationGetRelationName(segment)),
				 errhint("Drop it.")));
	if (!catalog_has_shape(RelationGetDescr(segment), SHAPE_EVENT) ||
		segment->rd_rel->relam != HEAP_TABLE_AM_OID ||
		segment->rd_rel->relrowsecurity)
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("segment \"%s\" is not as the extension made it",
						RelationGetRelationName(segment))));
}

/* Reads the indexes of a segment into a new context, which it returns. */
static MemoryContext
read_indexes(Relation segment, SegmentEntry *entry)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "event_store segment",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext saved = MemoryContextSwitchTo(context);
	List	   *indexes = RelationGetIndexList(segment);
	ListCell   *cell;

	memset(entry->by_role, 0, sizeof(entry->by_role));
	entry->nindexes = 0;
	entry->indexes = palloc0(sizeof(IndexEntry) * Max(list_length(indexes), 1));
	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);
		int			role = index_role(index);

		if (index->rd_index->indisready)
		{
			IndexEntry *it = &entry->indexes[entry->nindexes++];

			it->oid = RelationGetRelid(index);
			it->info = BuildIndexInfo(index);
			it->not_null = role == INDEX_CORRELATION || role == INDEX_EVENT_ID;
			it->plain = it->info->ii_Expressions == NIL &&
				(it->info->ii_Predicate == NIL || it->not_null) &&
				it->info->ii_ExclusionOps == NULL &&
				index->rd_rel->relam == BTREE_AM_OID &&
				index->rd_index->indimmediate;
		}
		if (role >= 0)
			entry->by_role[role] = RelationGetRelid(index);
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	MemoryContextSwitchTo(saved);
	return context;
}

/* The segment is open and locked. */
static SegmentEntry *
segment_entry(Relation segment)
{
	Oid			relid = RelationGetRelid(segment);
	SegmentEntry *entry = hash_search(segments, &relid, HASH_FIND, NULL);

	while (unlikely(entry == NULL || !entry->valid))
	{
		SegmentEntry fresh;
		uint64		seen = messages;
		bool		found;

		check_segment(segment);
		fresh.context = read_indexes(segment, &fresh);

		/* nothing failed up to here: the new one takes the old one's place */
		entry = hash_search(segments, &relid, HASH_ENTER, &found);

		/*
		 * The old one goes with the transaction: who is about to write index
		 * entries by it may have come here by way of a function in an index.
		 */
		if (found && entry->context != NULL)
			MemoryContextSetParent(entry->context, TopTransactionContext);
		MemoryContextSetParent(fresh.context, CacheMemoryContext);
		entry->context = fresh.context;
		entry->nindexes = fresh.nindexes;
		entry->indexes = fresh.indexes;
		memcpy(entry->by_role, fresh.by_role, sizeof(entry->by_role));
		/* a message that came in meanwhile asks for one more round */
		entry->valid = seen == messages;
	}
	return entry;
}

/*
 * First the segment is locked, which takes in what is new about it, and then
 * its index looked up.
 */
static void
open_segment_probe(Probe *probe, Oid segment, SegmentIndex which, LOCKMODE lock,
				   Snapshot snapshot, ScanKey keys, int nkeys, bool entries)
{
	Relation	heap = table_open(segment, lock);
	Oid			index = segment_entry(heap)->by_role[which];

	if (!OidIsValid(index))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("segment \"%s\" lacks an index of the extension",
						RelationGetRelationName(heap)),
				 errhint("Compare its indexes with those of another segment, and create the one that is missing.")));
	begin_probe(probe, heap, index, lock, snapshot, keys, nkeys, entries);
}

/* Opens a range of one of the extension's indexes on a segment. */
void
probe_open_segment(Probe *probe, Oid segment, SegmentIndex which, LOCKMODE lock,
				   Snapshot snapshot, ScanKey keys, int nkeys)
{
	open_segment_probe(probe, segment, which, lock, snapshot, keys, nkeys, false);
}

/*
 * The same for the entries of the index alone: each has a row, but whether the
 * snapshot shows it, only the row can tell (fetch_row()).  For probe_next_entry().
 */
void
probe_open_segment_entries(Probe *probe, Oid segment, SegmentIndex which,
						   LOCKMODE lock, Snapshot snapshot,
						   ScanKey keys, int nkeys)
{
	open_segment_probe(probe, segment, which, lock, snapshot, keys, nkeys, true);
}

bool
probe_next_entry(Probe *probe, ScanDirection direction)
{
	return index_getnext_tid(probe->scan, direction) != NULL;
}

/*
 * The next entry whose row the snapshot shows.  The row itself is not looked at
 * where its page is known to be visible to all, as it is after a VACUUM: what
 * nodeIndexonlyscan.c says about that holds here.
 */
bool
probe_next_shown_entry(Probe *probe, ScanDirection direction)
{
	ItemPointer tid;

	while ((tid = index_getnext_tid(probe->scan, direction)) != NULL)
	{
		if (VM_ALL_VISIBLE(probe->heap, ItemPointerGetBlockNumber(tid),
						   &probe->visibility))
			return true;
		if (probe->slot == NULL)
			probe->slot = table_slot_create(probe->heap, NULL);
		if (index_fetch_heap(probe->scan, probe->slot))
			return true;
	}
	return false;
}

/* A column of the entry found, by its place in the index. */
int64
probe_entry_int64(Probe *probe, int attno)
{
	bool		isnull;

	return DatumGetInt64(index_getattr(probe->scan->xs_itup, attno,
									   probe->scan->xs_itupdesc, &isnull));
}

int32
probe_entry_int32(Probe *probe, int attno)
{
	bool		isnull;

	return DatumGetInt32(index_getattr(probe->scan->xs_itup, attno,
									   probe->scan->xs_itupdesc, &isnull));
}

/* ----------------------------------------------------------------
 * Rows of several probes of one segment
 *
 * The probes' entries, merged by position, come in the order of the heap, more
 * or less: with one fetch for all of them the page stays pinned from row to row.
 * ----------------------------------------------------------------
 */

void
fetch_open(RowFetch *fetch, Probe *any)
{
	fetch->row.heap = any->heap;
	fetch->row.snapshot = any->snapshot;
	fetch->row.slot = table_slot_create(any->heap, NULL);
	fetch->state = table_index_fetch_begin(any->heap);
}

/* The row of the entry that a probe has found, if the snapshot shows it. */
bool
fetch_row(RowFetch *fetch, Probe *probe)
{
	ItemPointerData tid = probe->scan->xs_heaptid;
	bool		again = false;
	bool		all_dead = false;

	pgstat_count_heap_fetch(probe->index);
	return table_index_fetch_tuple(fetch->state, &tid, fetch->row.snapshot,
								   fetch->row.slot, &again, &all_dead);
}

void
fetch_close(RowFetch *fetch)
{
	ExecDropSingleTupleTableSlot(fetch->row.slot);
	table_index_fetch_end(fetch->state);
}

/* ----------------------------------------------------------------
 * Writing events
 * ----------------------------------------------------------------
 */

/*
 * Any other index than the extension's own: the executor's way, with all it
 * can do.
 */
static void
insert_other_index_entries(Relation segment, TupleTableSlot **slots, int nslots,
						   Oid index_oid)
{
	EState	   *estate = CreateExecutorState();
	ExprContext *econtext = GetPerTupleExprContext(estate);
	Relation	index = index_open(index_oid, RowExclusiveLock);
	IndexInfo  *info = BuildIndexInfo(index);
	ExprState  *predicate = ExecPrepareQual(info->ii_Predicate, estate);

	if (info->ii_ExclusionOps != NULL || !index->rd_index->indimmediate)
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("index \"%s\" is deferrable or an exclusion constraint, which segments do not support",
						RelationGetRelationName(index)),
				 errhint("Drop it.")));
	for (int i = 0; i < nslots; i++)
	{
		Datum		values[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];

		ResetPerTupleExprContext(estate);
		econtext->ecxt_scantuple = slots[i];
		if (info->ii_Predicate != NIL && !ExecQual(predicate, econtext))
			continue;
		FormIndexDatum(info, slots[i], estate, values, nulls);
		(void) index_insert(index, values, nulls, &slots[i]->tts_tid, segment,
							index->rd_index->indisunique ?
							UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
							false, info);
	}
	compat_index_insert_cleanup(index, info);
	index_close(index, NoLock);
	FreeExecutorState(estate);
}

/*
 * The versions and positions that these indexes hold are unique by the locks
 * under which they were chosen; the indexes check it once more.
 */
static void
insert_index_entries(Relation segment, IndexEntry *it,
					 TupleTableSlot **slots, int nslots)
{
	Relation	index;
	IndexUniqueCheck unique;
	int			first = 0;

	if (it->not_null)
	{
		/* mostly there is nothing to do, so the index is not even opened */
		while (first < nslots &&
			   slot_attisnull(slots[first], it->info->ii_IndexAttrNumbers[0]))
			first++;
		if (first == nslots)
			return;
	}
	index = index_open(it->oid, RowExclusiveLock);
	unique = index->rd_index->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO;
	for (int i = first; i < nslots; i++)
	{
		TupleTableSlot *slot = slots[i];
		Datum		values[INDEX_MAX_KEYS];
		bool		nulls[INDEX_MAX_KEYS];

		for (int k = 0; k < it->info->ii_NumIndexAttrs; k++)
			values[k] = slot_getattr(slot, it->info->ii_IndexAttrNumbers[k],
									 &nulls[k]);
		if (it->not_null && nulls[0])
			continue;
		(void) index_insert(index, values, nulls, &slot->tts_tid, segment,
							unique, false, it->info);
	}
	index_close(index, NoLock);
}

/*
 * Inserts the rows of events into a segment, which is open and locked.  The
 * tuples stand in the caller's memory; what is allocated here is left to the
 * caller's context.
 */
void
rows_insert_events(Relation segment, HeapTuple *tuples, int ntuples)
{
	SegmentEntry *entry = segment_entry(segment);
	CommandId	cid = GetCurrentCommandId(true);
	int			nslots = Min(ntuples, CHUNK_ROWS);
	TupleTableSlot **slots = palloc(sizeof(TupleTableSlot *) * nslots);
	int			nindexes = entry->nindexes;
	IndexEntry *indexes = entry->indexes;

	for (int i = 0; i < nslots; i++)
		slots[i] = MakeSingleTupleTableSlot(RelationGetDescr(segment),
											&TTSOpsHeapTuple);
	for (int done = 0; done < ntuples; done += nslots)
	{
		int			n = Min(nslots, ntuples - done);

		for (int i = 0; i < n; i++)
			ExecForceStoreHeapTuple(tuples[done + i], slots[i], false);
		if (n == 1)
			table_tuple_insert(segment, slots[0], cid, 0, NULL);
		else
			table_multi_insert(segment, slots, n, cid, 0, NULL);
		for (int k = 0; k < nindexes; k++)
		{
			if (likely(indexes[k].plain))
				insert_index_entries(segment, &indexes[k], slots, n);
			else
				insert_other_index_entries(segment, slots, n, indexes[k].oid);
		}
		CHECK_FOR_INTERRUPTS();
	}
	for (int i = 0; i < nslots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
}

/* ----------------------------------------------------------------
 * Writing rows of the small tables
 * ----------------------------------------------------------------
 */

/*
 * Opens one of the extension's small tables for rows_insert() and
 * rows_update().  They are written by PostgreSQL's routines for catalogs, which
 * know neither expressions nor predicates of indexes, nor triggers or checks.
 */
CatalogIndexState
rows_open_small(Oid relid, Relation *rel)
{
	CatalogIndexState indexes;
	TriggerDesc *triggers;
	TupleConstr *constr;

	*rel = table_open(relid, RowExclusiveLock);
	indexes = CatalogOpenIndexes(*rel);
	for (int i = 0; i < indexes->ri_NumIndices; i++)
	{
		IndexInfo  *info = indexes->ri_IndexRelationInfo[i];

		if (info->ii_Expressions != NIL || info->ii_Predicate != NIL ||
			info->ii_ExclusionOps != NULL ||
			!indexes->ri_IndexRelationDescs[i]->rd_index->indimmediate)
			ereport(ERROR,
					(errcode(ERRCODE_VE_STORE_DAMAGED),
					 errmsg("index \"%s\" has an expression, a predicate or a constraint that \"event_store.%s\" does not support",
							RelationGetRelationName(indexes->ri_IndexRelationDescs[i]),
							RelationGetRelationName(*rel)),
					 errhint("Drop the index.")));
	}
	triggers = (*rel)->trigdesc;
	constr = RelationGetDescr(*rel)->constr;
	if ((triggers != NULL &&
		 (triggers->trig_insert_before_row || triggers->trig_insert_after_row ||
		  triggers->trig_insert_before_statement ||
		  triggers->trig_insert_after_statement)) ||
		(constr != NULL && (constr->num_check > 0 || constr->has_generated_stored)) ||
		(*rel)->rd_rel->relrowsecurity)
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("\"event_store.%s\" has a trigger for INSERT, a CHECK constraint, a generated column or row security, which appends do not obey",
						RelationGetRelationName(*rel)),
				 errhint("Drop it.")));
	return indexes;
}

void
rows_close_small(Relation rel, CatalogIndexState indexes)
{
	CatalogCloseIndexes(indexes);
	table_close(rel, NoLock);
}

/* One row. */
void
rows_insert_small(Oid relid, Datum *values, const bool *nulls)
{
	Relation	rel;
	CatalogIndexState indexes = rows_open_small(relid, &rel);
	bool	   *none = palloc0(sizeof(bool) * RelationGetDescr(rel)->natts);
	HeapTuple	tuple = heap_form_tuple(RelationGetDescr(rel), values,
										nulls == NULL ? none : unconstify(bool *, nulls));

	CatalogTupleInsertWithInfo(rel, tuple, indexes);
	heap_freetuple(tuple);
	pfree(none);
	rows_close_small(rel, indexes);
}

void
rows_init(void)
{
	HASHCTL		control;

	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(SegmentEntry);
	segments = hash_create("event_store segments", 64, &control,
						   HASH_ELEM | HASH_BLOBS);
	catalog_on_relcache(relcache_callback);
}
