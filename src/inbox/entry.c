/*
 * entry.c
 *		Entries: rows that say that something was done already.
 *
 * To find out whether an id is new, and to write its entry if so, is one step
 * (entry_claim()), in any isolation level as of now:
 *
 * 1. open the current part of the consumer's window, RowExclusiveLock, and see
 *	  whether it still is the current one by what came in with the lock;
 * 2. lock the id (LOCK_CLASS_INBOX), and see whether the windows still are what
 *	  they were;
 * 3. look for an entry in all parts not known to be empty, by a dirty snapshot;
 * 4. there is none: write it into the current part;
 * 5. let go of the id: the entry stands for the lock from here on;
 * 6. another transaction has one in flight: wait for its end, and begin anew.
 *
 * Nothing is waited for while an id is locked, but DDL, and whoever empties a
 * part, which takes an instant.  The current part stays locked to the end of
 * the transaction if something was written: that keeps it from being emptied.
 *
 * Rows are written past the executor: privileges are those to the functions,
 * and what a part must not have is refused by open_part().
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am_d.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "executor/executor.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "port/pg_bswap.h"
#include "storage/lmgr.h"
#include "storage/predicate.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/locks.h"
#include "common/names.h"
#include "common/rows.h"
#include "inbox/inbox.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_mark_processed);
PG_FUNCTION_INFO_V1(event_store_mark_processed_all);
PG_FUNCTION_INFO_V1(event_store_forget_processed);

typedef enum EntryState
{
	ENTRY_NONE,
	ENTRY_THERE,
	ENTRY_IN_FLIGHT				/* of another transaction */
} EntryState;

/* ----------------------------------------------------------------
 * Arguments and keys
 * ----------------------------------------------------------------
 */

void
entry_guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
}

text *
entry_consumer(FunctionCallInfo fcinfo, int n)
{
	text	   *name;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("consumer must not be NULL")));
	name = PG_GETARG_TEXT_PP(n);
	input_check_name("consumer", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	return name;
}

/* Whatever others call their messages: only the length is bounded. */
static text *
check_id(text *id, const char *what)
{
	int			len = VARSIZE_ANY_EXHDR(id);

	if (len == 0 || len > MAX_NAME_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must have 1 to %d bytes", what, MAX_NAME_BYTES),
				 errdetail("It has %d.", len)));
	return id;
}

text *
entry_id(FunctionCallInfo fcinfo, int n, const char *what)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must not be NULL", what)));
	return check_id(PG_GETARG_TEXT_PP(n), what);
}

/*
 * The first 128 bits of the SHA-256 of some pieces, each given as a pointer and
 * an int, its length, which is hashed with it: no two lists of pieces are alike.
 * Numbers are in network order, as a dump may go to another machine.
 */
void
entry_digest(pg_uuid_t *digest, int count, ...)
{
	pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);
	uint8		full[PG_SHA256_DIGEST_LENGTH];
	bool		failed = context == NULL || pg_cryptohash_init(context) < 0;
	va_list		pieces;

	va_start(pieces, count);
	for (int i = 0; i < count && !failed; i++)
	{
		const void *data = va_arg(pieces, const void *);
		int32		len = va_arg(pieces, int);
		uint32		prefix = pg_hton32((uint32) len);

		failed = pg_cryptohash_update(context, (const uint8 *) &prefix, sizeof(prefix)) < 0 ||
			(len > 0 && pg_cryptohash_update(context, data, len) < 0);
	}
	va_end(pieces);
	if (failed || pg_cryptohash_final(context, full, sizeof(full)) < 0)
		elog(ERROR, "could not compute a SHA-256 hash");
	pg_cryptohash_free(context);
	memcpy(digest->data, full, UUID_LEN);
}

/* In UTF-8, too, a text is the same: a dump may go to a database that has that. */
static void
as_utf8(const char **value, int *len)
{
	const char *utf8;

	if (likely(GetDatabaseEncoding() == PG_UTF8) || GetDatabaseEncoding() == PG_SQL_ASCII)
		return;
	utf8 = pg_server_to_any(*value, *len, PG_UTF8);
	if (utf8 != *value)
	{
		*value = utf8;
		*len = strlen(utf8);
	}
}

void
entry_key(EntryKey *key, EntryKind kind, const char *consumer, int consumer_len,
		  const char *id, int id_len)
{
	/* one piece for all of it, since each costs a call: the rest is the id */
	char		piece[1 + sizeof(uint16) + 2 * MAX_NAME_BYTES * MAX_CONVERSION_GROWTH];
	uint16		len;
	char	   *end = piece;

	as_utf8(&consumer, &consumer_len);
	as_utf8(&id, &id_len);
	len = pg_hton16((uint16) consumer_len);
	*end++ = kind;
	memcpy(end, &len, sizeof(len));
	end += sizeof(len);
	memcpy(end, consumer, consumer_len);
	end += consumer_len;
	memcpy(end, id, id_len);
	end += id_len;
	entry_digest(&key->id, 1, piece, (int) (end - piece));
	memcpy(&key->lock, key->id.data, sizeof(key->lock));
	key->lock |= INBOX_LOCK_ID;
}

/* ----------------------------------------------------------------
 * Parts
 * ----------------------------------------------------------------
 */

compat_noreturn static void
part_is_damaged(Relation part)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_STORE_DAMAGED),
			 errmsg("\"event_store.%s\" is not as the extension made it",
					RelationGetRelationName(part)),
			 errhint("Drop what was added: columns, indexes, triggers, constraints, row security.")));
}

static bool
index_is_on_key(Relation index)
{
	Form_pg_index form = index->rd_index;

	return index->rd_rel->relam == BTREE_AM_OID && form->indisunique && form->indimmediate &&
		form->indisvalid && form->indnkeyatts == 1 && form->indkey.values[0] == IE_KEY;
}

/* Opens a part and its index; false if it is not there any more. */
static bool
open_part(Oid relid, LOCKMODE lock, Relation *part, Relation *index)
{
	List	   *indexes;

	*part = try_table_open(relid, lock);
	if (*part == NULL)
		return false;
	indexes = RelationGetIndexList(*part);
	if (list_length(indexes) != 1 || (*part)->trigdesc != NULL ||
		(*part)->rd_rel->relrowsecurity || (*part)->rd_rel->relam != HEAP_TABLE_AM_OID ||
		!catalog_has_shape(RelationGetDescr(*part), SHAPE_INBOX_PART) ||
		(RelationGetDescr(*part)->constr != NULL &&
		 (RelationGetDescr(*part)->constr->num_check > 0 ||
		  RelationGetDescr(*part)->constr->has_generated_stored)))
		part_is_damaged(*part);
	*index = index_open(linitial_oid(indexes), lock);
	if (!index_is_on_key(*index))
		part_is_damaged(*part);
	list_free(indexes);
	return true;
}

static void
close_part(Relation part, Relation index, LOCKMODE lock)
{
	index_close(index, lock);
	table_close(part, lock);
}

/* ----------------------------------------------------------------
 * Looking
 * ----------------------------------------------------------------
 */

/* What a row that a dirty snapshot shows says. */
static EntryState
read_entry(Relation part, TupleTableSlot *slot, Snapshot dirty, TransactionId *xid,
		   Entry *found)
{
	HeapTuple	tuple = ExecFetchSlotHeapTuple(slot, false, NULL);
	bool		isnull;
	Datum		value;

	*xid = TransactionIdIsValid(dirty->xmin) ? dirty->xmin : dirty->xmax;
	if (TransactionIdIsValid(*xid))
		return ENTRY_IN_FLIGHT;
	found->ours = !HeapTupleHeaderXminFrozen(tuple->t_data) &&
		TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));

	/*
	 * As with any unique key: whoever goes by a snapshot may not act on what it
	 * does not show.
	 */
	if (!found->ours && IsolationUsesXactSnapshot() &&
		!table_tuple_satisfies_snapshot(part, slot, GetTransactionSnapshot()))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("The id was marked after this transaction's snapshot was taken."),
				 errhint("The transaction might succeed if retried.")));
	value = slot_getattr(slot, IE_FINGERPRINT, &isnull);
	found->has_fingerprint = !isnull;
	if (!isnull)
		found->fingerprint = *DatumGetUUIDP(value);
	value = slot_getattr(slot, IE_RESULT, &found->isnull);
	/* now, while what is stored apart from the row is sure to be there */
	found->result = found->isnull ? (Datum) 0 : PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	value = slot_getattr(slot, IE_FINISHED, &isnull);
	found->finished = !isnull && DatumGetBool(value);
	return ENTRY_THERE;
}

/* Looks into one part, which is open. */
static EntryState
look_into(Relation part, Relation index, const EntryKey *key, TransactionId *xid,
		  Entry *found, ItemPointer tid)
{
	TupleTableSlot *slot = NULL;
	EntryState	state = ENTRY_NONE;
	SnapshotData dirty;
	ScanKeyData scan_key;
	IndexScanDesc scan;
	ItemPointer next;

	if (likely(!rows_may_have_uuid(part, index, &key->id)))
		return ENTRY_NONE;
	InitDirtySnapshot(dirty);
	key_uuid(&scan_key, 1, UUIDPGetDatum(&key->id));
	scan = compat_index_beginscan(part, index, &dirty, 1);
	index_rescan(scan, &scan_key, 1, NULL, 0);
	while (state == ENTRY_NONE && (next = index_getnext_tid(scan, ForwardScanDirection)) != NULL)
	{
		if (slot == NULL)
			slot = table_slot_create(part, NULL);
		if (!index_fetch_heap(scan, slot))
			continue;
		state = read_entry(part, slot, &dirty, xid, found);
		if (tid != NULL)
			*tid = slot->tts_tid;
	}
	index_endscan(scan);
	if (slot != NULL)
		ExecDropSingleTupleTableSlot(slot);
	return state;
}

/*
 * Looks for an entry in all parts that may have it, which those that are known to
 * be empty may not.  *where, if wanted, is the part that has it.
 */
static EntryState
look(Inbox *inbox, const EntryKey *key, TransactionId *xid, Entry *found,
	 Oid *where, ItemPointer tid)
{
	const Window *windows[2] = {inbox->window, inbox->shared};
	EntryState	state;

	if (where != NULL)
		*where = RelationGetRelid(inbox->part);
	state = look_into(inbox->part, inbox->index, key, xid, found, tid);
	for (int i = 0; i < 2 && windows[i] != NULL; i++)
		for (int n = 0; n < INBOX_PARTS && state == ENTRY_NONE; n++)
		{
			Oid			relid = windows[i]->parts[n];
			Relation	part;
			Relation	index;

			if (relid == RelationGetRelid(inbox->part) ||
				(windows[i]->last_is_empty && n == WINDOW_LAST(windows[i]->turn)) ||
				(windows[i]->oldest_is_empty && n == WINDOW_OLDEST(windows[i]->turn)))
				continue;
			/* of a window that is dropped meanwhile nothing is left */
			if (!open_part(relid, AccessShareLock, &part, &index))
				continue;
			if (where != NULL)
				*where = relid;
			state = look_into(part, index, key, xid, found, tid);
			close_part(part, index, AccessShareLock);
		}
	return state;
}

/* ----------------------------------------------------------------
 * A consumer's entries, for writing
 * ----------------------------------------------------------------
 */

static void
open_windows(Inbox *inbox)
{
	for (;;)
	{
		Window	   *window;

		CHECK_FOR_INTERRUPTS();
		/* to find the second may be to look all up anew */
		do
		{
			inbox->generation = window_generation();
			inbox->window = window = window_find(inbox->consumer, inbox->consumer_len);
			inbox->shared = NULL;
			if (window_is_there(inbox->generation) && window->id != 0 && window->is_shared)
				inbox->shared = window_find(NULL, 0);
		} while (!window_is_there(inbox->generation));
		inbox->part = NULL;
		if (open_part(window->parts[WINDOW_CURRENT(window->turn)], RowExclusiveLock,
					  &inbox->part, &inbox->index))
		{
			/*
			 * Nobody else knows of a window that this transaction has made: what
			 * it marks goes where the others would look.
			 */
			if (window->id != 0 && inbox->part->rd_createSubid != InvalidSubTransactionId)
			{
				const Window *shared = window_find(NULL, 0);

				close_part(inbox->part, inbox->index, RowExclusiveLock);
				inbox->shared = window;
				inbox->window = shared;
				if (!open_part(shared->parts[WINDOW_CURRENT(shared->turn)], RowExclusiveLock,
							   &inbox->part, &inbox->index))
					inbox->part = NULL;
			}
			/* the lock has brought news along, if there were any */
			if (inbox->part != NULL && window_is_current(inbox->generation))
				break;
			if (inbox->part != NULL)
				close_part(inbox->part, inbox->index, RowExclusiveLock);
		}
		else
			window_void();
	}
}

void
inbox_open(Inbox *inbox, const char *consumer, int len)
{
	inbox->consumer = consumer;
	inbox->consumer_len = len;
	inbox->wrote = false;
	open_windows(inbox);
}

/* The part stays locked where something was written, to the transaction's end. */
void
inbox_close(Inbox *inbox)
{
	close_part(inbox->part, inbox->index, inbox->wrote ? NoLock : RowExclusiveLock);
}

static void
set_tag(LOCKTAG *tag, const EntryKey *key)
{
	locks_set_tag(tag, LOCK_CLASS_INBOX, key->lock);
}

/* Locks an id, and sees to it that all is known that others have done with it. */
static void
lock_id(Inbox *inbox, const EntryKey *key)
{
	LOCKTAG		tag;

	set_tag(&tag, key);
	for (;;)
	{
		(void) LockAcquire(&tag, ExclusiveLock, false, false);
		AcceptInvalidationMessages();
		if (likely(window_is_current(inbox->generation)))
			return;
		(void) LockRelease(&tag, ExclusiveLock, false);
		inbox_close(inbox);
		open_windows(inbox);
	}
}

static void
unlock_id(const EntryKey *key)
{
	LOCKTAG		tag;

	set_tag(&tag, key);
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* Locks an id, looks for its entry, and waits while another transaction has it. */
static EntryState
lock_and_look(Inbox *inbox, const EntryKey *key, Entry *found, Oid *where, ItemPointer tid)
{
	for (;;)
	{
		TransactionId xid = InvalidTransactionId;
		EntryState	state;

		lock_id(inbox, key);
		state = look(inbox, key, &xid, found, where, tid);
		if (likely(state != ENTRY_IN_FLIGHT))
			return state;
		unlock_id(key);
		XactLockTableWait(xid, NULL, NULL, XLTW_None);
	}
}

static void
write_entry(Inbox *inbox, const EntryKey *key, const pg_uuid_t *fingerprint)
{
	/* PostgreSQL's B-trees don't look at it */
	static IndexInfo info = {.type = T_IndexInfo};
	Datum		values[IE_NATTS];
	bool		nulls[IE_NATTS];
	HeapTuple	tuple;

	memset(nulls, fingerprint == NULL, sizeof(nulls));
	nulls[IE_KEY - 1] = false;
	nulls[IE_RESULT - 1] = true;
	values[IE_KEY - 1] = UUIDPGetDatum(&key->id);
	values[IE_FINGERPRINT - 1] = UUIDPGetDatum(fingerprint);
	values[IE_FINISHED - 1] = BoolGetDatum(false);
	tuple = heap_form_tuple(RelationGetDescr(inbox->part), values, nulls);
	heap_insert(inbox->part, tuple, GetCurrentCommandId(true), 0, NULL);
	/* by the lock it is unique; the index checks it once more */
	(void) index_insert(inbox->index, values, nulls, &tuple->t_self, inbox->part,
						UNIQUE_CHECK_YES, false, &info);
	inbox->wrote = true;

	/* does the window want somebody to look after it? */
	if (unlikely(GetCurrentTimestamp() >= inbox->window->due_at) ||
		unlikely((int64) ItemPointerGetBlockNumber(&tuple->t_self) * MAX_PAGE_ENTRIES +
				 ItemPointerGetOffsetNumber(&tuple->t_self) >= inbox->window->due_entries))
		rotate_notice(unconstify(Window *, inbox->window));
	heap_freetuple(tuple);
}

/*
 * Is an id new?  Then its entry is written.  If not, *found says what is there.
 */
bool
entry_claim(Inbox *inbox, const EntryKey *key, const pg_uuid_t *fingerprint, Entry *found)
{
	EntryState	state = lock_and_look(inbox, key, found, NULL, NULL);

	if (state == ENTRY_NONE)
		write_entry(inbox, key, fingerprint);
	unlock_id(key);
	return state == ENTRY_NONE;
}

/*
 * Gives the entry that this transaction has written its result.  False: there is
 * none, or it has one.
 */
bool
entry_finish(Inbox *inbox, const EntryKey *key, Datum result, bool isnull)
{
	Entry		found;
	ItemPointerData tid;
	Oid			where;
	bool		open;

	open = lock_and_look(inbox, key, &found, &where, &tid) == ENTRY_THERE &&
		found.ours && !found.finished;
	if (open)
	{
		Relation	part;
		CatalogIndexState indexes = rows_open_small(where, &part);
		Datum		values[IE_NATTS];
		bool		nulls[IE_NATTS] = {0};
		HeapTuple	tuple;

		values[IE_KEY - 1] = UUIDPGetDatum(&key->id);
		values[IE_FINGERPRINT - 1] = UUIDPGetDatum(&found.fingerprint);
		nulls[IE_FINGERPRINT - 1] = !found.has_fingerprint;
		values[IE_RESULT - 1] = result;
		nulls[IE_RESULT - 1] = isnull;
		values[IE_FINISHED - 1] = BoolGetDatum(true);
		/* the row may be of this very command */
		CommandCounterIncrement();
		tuple = heap_form_tuple(RelationGetDescr(part), values, nulls);
		CatalogTupleUpdateWithInfo(part, &tid, tuple, indexes);
		rows_close_small(part, indexes);
		CommandCounterIncrement();
	}
	unlock_id(key);
	return open;
}

/* Removes an entry; whether there was one. */
bool
entry_remove(Inbox *inbox, const EntryKey *key)
{
	Entry		found;
	ItemPointerData tid;
	Oid			where;
	bool		there = lock_and_look(inbox, key, &found, &where, &tid) == ENTRY_THERE;

	if (there)
	{
		Relation	part = table_open(where, RowExclusiveLock);

		CommandCounterIncrement();
		simple_heap_delete(part, &tid);
		table_close(part, NoLock);
		CommandCounterIncrement();
	}
	unlock_id(key);
	return there;
}

/* ----------------------------------------------------------------
 * As functions: marks
 * ----------------------------------------------------------------
 */

Datum
event_store_mark_processed(PG_FUNCTION_ARGS)
{
	Inbox		inbox;
	EntryKey	key;
	Entry		found;
	text	   *consumer;
	text	   *id;
	bool		is_new;

	entry_guard("event_store.mark_processed()");
	consumer = entry_consumer(fcinfo, 0);
	id = entry_id(fcinfo, 1, "message_id");
	entry_key(&key, ENTRY_MARK, VARDATA_ANY(consumer), VARSIZE_ANY_EXHDR(consumer),
			  VARDATA_ANY(id), VARSIZE_ANY_EXHDR(id));
	inbox_open(&inbox, VARDATA_ANY(consumer), VARSIZE_ANY_EXHDR(consumer));
	is_new = entry_claim(&inbox, &key, NULL, &found);
	inbox_close(&inbox);
	PG_RETURN_BOOL(is_new);
}

typedef struct Mark
{
	EntryKey	key;
	int			number;			/* in the array */
	bool		is_new;
} Mark;

static int
compare_marks(const void *a, const void *b)
{
	const Mark *x = a;
	const Mark *y = b;
	int			order = memcmp(&x->key.id, &y->key.id, sizeof(pg_uuid_t));

	return order != 0 ? order : x->number < y->number ? -1 : 1;
}

/*
 * In order of the keys: two calls that share ids meet in the same order, and
 * entries of one call lie beside each other in the index.
 */
Datum
event_store_mark_processed_all(PG_FUNCTION_ARGS)
{
	Inbox		inbox;
	text	   *consumer;
	Datum	   *ids;
	bool	   *nulls;
	int			count;
	int			fresh = 0;
	Mark	   *marks;
	bool	   *is_new;

	entry_guard("event_store.mark_processed_all()");
	consumer = entry_consumer(fcinfo, 0);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("message_ids must not be NULL")));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT,
					  &ids, &nulls, &count);
	marks = palloc(sizeof(Mark) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		text	   *id;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("message_ids must not contain NULL")));
		id = check_id(DatumGetTextPP(ids[i]), "message_id");
		entry_key(&marks[i].key, ENTRY_MARK, VARDATA_ANY(consumer), VARSIZE_ANY_EXHDR(consumer),
				  VARDATA_ANY(id), VARSIZE_ANY_EXHDR(id));
		marks[i].number = i;
	}
	qsort(marks, count, sizeof(Mark), compare_marks);
	is_new = palloc0(sizeof(bool) * Max(count, 1));
	inbox_open(&inbox, VARDATA_ANY(consumer), VARSIZE_ANY_EXHDR(consumer));
	for (int i = 0; i < count; i++)
	{
		Entry		found;

		CHECK_FOR_INTERRUPTS();
		is_new[marks[i].number] = entry_claim(&inbox, &marks[i].key, NULL, &found);
	}
	inbox_close(&inbox);
	for (int i = 0; i < count; i++)
		if (is_new[i])
			ids[fresh++] = ids[i];
	PG_RETURN_ARRAYTYPE_P(construct_array(ids, fresh, TEXTOID, -1, false, TYPALIGN_INT));
}

Datum
event_store_forget_processed(PG_FUNCTION_ARGS)
{
	Inbox		inbox;
	EntryKey	key;
	text	   *consumer;
	text	   *id;
	bool		found;

	entry_guard("event_store.forget_processed()");
	consumer = entry_consumer(fcinfo, 0);
	id = entry_id(fcinfo, 1, "message_id");
	entry_key(&key, ENTRY_MARK, VARDATA_ANY(consumer), VARSIZE_ANY_EXHDR(consumer),
			  VARDATA_ANY(id), VARSIZE_ANY_EXHDR(id));
	inbox_open(&inbox, VARDATA_ANY(consumer), VARSIZE_ANY_EXHDR(consumer));
	found = entry_remove(&inbox, &key);
	inbox_close(&inbox);
	PG_RETURN_BOOL(found);
}

void
inbox_init(void)
{
	window_init();
}
