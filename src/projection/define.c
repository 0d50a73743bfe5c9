/*
 * define.c
 *		What projections there are, and how far they have come: their rows, their
 *		locks; creating, altering and dropping them.
 *
 * The checkpoint of a projection is written anew with each batch, as a row of a
 * higher version, like the cursor of a subscription (subscription/state.c says
 * why).  Who refreshes, alters or drops a projection has its lock to the end of
 * the transaction, and reads its row afterwards.
 *
 * The tables belong to the owner of the store.  A handler is run as the role that
 * created the projection, with the search_path that this had then (apply.c).
 *
 * Appenders keep the list of inline projections in their backend.  A message for
 * the table of projections voids it; and since who makes a projection inline, or no
 * longer so, locks the table of streams against all appenders until it commits,
 * an append that comes after it goes by the new list.
 */
#include "postgres.h"

#include <math.h>

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type_d.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/locks.h"
#include "common/plans.h"
#include "common/rows.h"
#include "notification/notification.h"
#include "position/position.h"
#include "projection/projection.h"
#include "subscription/subscription.h"

PG_FUNCTION_INFO_V1(event_store_create_projection);
PG_FUNCTION_INFO_V1(event_store_alter_projection);
PG_FUNCTION_INFO_V1(event_store_drop_projection);
PG_FUNCTION_INFO_V1(event_store_pause_projection);
PG_FUNCTION_INFO_V1(event_store_resume_projection);

/* each so many versions of a checkpoint the earlier ones are deleted */
#define CLEAN_EVERY		64

#define PROJECTION_COLUMNS \
	"SELECT p.id, p.revision, p.name, p.kind, p.mode, p.handler, p.key, p.categories, p.types," \
	" p.owner, p.owner_id, p.cluster_id, p.search_path, p.time_zone, p.paused, p.batch_events, p.batch_size," \
	" extract(epoch FROM p.refresh_every)::float8, p.on_error = 'skip', p.max_attempts," \
	" extract(epoch FROM p.first_delay)::float8, p.delay_factor," \
	" extract(epoch FROM p.max_delay)::float8," \
	" p.tables, p.rebuilds, p.keep_old, p.since, p.start_after," \
	" c.version, c.position, c.applied, c.applied_at, c.rate, c.rate_since," \
	" e.stopped, e.position, e.attempts, e.next_attempt_at" \
	" FROM event_store.projection AS p" \
	" CROSS JOIN LATERAL (SELECT k.* FROM event_store.projection_checkpoint AS k" \
	" WHERE k.projection_id = p.id ORDER BY k.version DESC LIMIT 1) AS c" \
	" LEFT JOIN event_store.projection_error AS e ON e.projection_id = p.id"

static Statement read_by_name = {
	PROJECTION_COLUMNS " WHERE p.name = $1", 1, {TEXTOID}
};

static Statement read_by_id = {
	PROJECTION_COLUMNS " WHERE p.id = $1", 1, {INT4OID}
};

static Statement read_by_rebuilt = {
	PROJECTION_COLUMNS " WHERE p.rebuilds = $1", 1, {INT4OID}
};

static Statement read_inline = {
	PROJECTION_COLUMNS " WHERE p.mode = 'inline' ORDER BY p.id"
};

static Statement newest = {
	"SELECT k.version, p.revision FROM event_store.projection_checkpoint AS k"
	" JOIN event_store.projection AS p ON p.id = k.projection_id"
	" WHERE k.projection_id = $1 ORDER BY k.version DESC LIMIT 1",
	1, {INT4OID}
};

static Statement clean = {
	"DELETE FROM event_store.projection_checkpoint AS k"
	" WHERE k.projection_id = $1 AND k.version < $2",
	2, {INT4OID, INT8OID}
};

static Statement write_error = {
	"INSERT INTO event_store.projection_error AS e (projection_id, position, stopped, attempts,"
	" sql_state, message, detail, context, first_failed_at, failed_at, next_attempt_at)"
	" SELECT $1, $2, $3, 1, $4, $5, $6, $7, c.now, c.now, $8"
	" FROM (SELECT pg_catalog.clock_timestamp() AS now) AS c"
	" ON CONFLICT (projection_id) DO UPDATE SET position = excluded.position,"
	" stopped = excluded.stopped, attempts = CASE WHEN e.position = excluded.position THEN e.attempts + 1 ELSE 1 END,"
	" sql_state = excluded.sql_state, message = excluded.message, detail = excluded.detail,"
	" context = excluded.context, failed_at = excluded.failed_at,"
	" first_failed_at = CASE WHEN e.position = excluded.position THEN e.first_failed_at ELSE excluded.failed_at END,"
	" next_attempt_at = excluded.next_attempt_at",
	8, {INT4OID, INT8OID, BOOLOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID}
};

static Statement clear_error = {
	"DELETE FROM event_store.projection_error AS e WHERE e.projection_id = $1",
	1, {INT4OID}
};

static Statement read_dead = {
	"SELECT f.position FROM event_store.projection_failure AS f WHERE f.projection_id = $1"
	" ORDER BY f.position",
	1, {INT4OID}
};

static Statement write_dead = {
	"INSERT INTO event_store.projection_failure AS f (projection_id, position, attempts,"
	" sql_state, message, detail, context, failed_at)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, pg_catalog.clock_timestamp())"
	" ON CONFLICT (projection_id, position) DO UPDATE SET attempts = excluded.attempts,"
	" sql_state = excluded.sql_state, message = excluded.message, detail = excluded.detail,"
	" context = excluded.context, failed_at = excluded.failed_at",
	7, {INT4OID, INT8OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID}
};

/* tables of states whose projections are gone */
static Statement left_tables = {
	"SELECT substr(c.relname, length('projection_state_') + 1)::int"
	" FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid"
	" WHERE i.inhparent = 'event_store.projection_state'::pg_catalog.regclass"
	" AND c.relname ~ '^projection_state_[0-9]+$' AND NOT EXISTS"
	" (SELECT FROM event_store.projection AS p WHERE c.relname = 'projection_state_' || p.id)"
};

/* the inline projections, if `known` */
static struct
{
	bool		known;
	Oid			relid;			/* of the table that it is read from */
	MemoryContext context;
	int			count;
	Projection *list;
	bool		asynchronous;	/* there are others, too */
}			inline_cache;

/* messages about the table of projections so far */
static uint64 messages = 0;

/* ----------------------------------------------------------------
 * Rows
 * ----------------------------------------------------------------
 */

void
projection_guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	catalog_require_read(catalog_store());
}

text *
projection_name_argument(FunctionCallInfo fcinfo, int n)
{
	return input_name_argument(fcinfo, n, "name of a projection");
}

static ProjectionKind
kind_of(const char *name)
{
	return strcmp(name, "set") == 0 ? PROJECTION_SET :
		strcmp(name, "event") == 0 ? PROJECTION_EVENT :
		strcmp(name, "fold") == 0 ? PROJECTION_FOLD : PROJECTION_MATVIEW;
}

static ProjectionMode
mode_of(const char *name)
{
	return strcmp(name, "async") == 0 ? PROJECTION_ASYNC :
		strcmp(name, "inline") == 0 ? PROJECTION_INLINE : PROJECTION_LIVE;
}

/* A row of PROJECTION_COLUMNS, in the current context. */
static void
read_result(HeapTuple row, TupleDesc desc, Projection *projection)
{
	bool		isnull;
	Datum		value;
	int			n = 0;

#define NEXT (value = SPI_getbinval(row, desc, ++n, &isnull))
#define NEXT_TEXT (NEXT, isnull ? NULL : TextDatumGetCString(value))

	memset(projection, 0, sizeof(Projection));
	projection->id = DatumGetInt32(NEXT);
	projection->revision = DatumGetInt64(NEXT);
	projection->name = NEXT_TEXT;
	projection->kind = kind_of(NEXT_TEXT);
	projection->mode = mode_of(NEXT_TEXT);
	projection->handler = NEXT_TEXT;
	projection->key = NEXT_TEXT;
	NEXT;
	if ((projection->by_category = !isnull))
		projection->categories = values_name_list(value);
	NEXT;
	if ((projection->by_type = !isnull))
		projection->types = values_name_list(value);
	projection->owner = NEXT_TEXT;
	projection->owner_id = DatumGetObjectId(NEXT);
	projection->cluster_id = (uint64) DatumGetInt64(NEXT);
	projection->search_path = NEXT_TEXT;
	projection->time_zone = NEXT_TEXT;
	projection->paused = DatumGetBool(NEXT);
	projection->batch_events = DatumGetInt32(NEXT);
	projection->batch_size = (int64) DatumGetInt32(NEXT) * 1024;
	projection->refresh_every = DatumGetFloat8(NEXT);
	projection->skips = DatumGetBool(NEXT);
	projection->max_attempts = DatumGetInt32(NEXT);
	projection->first_delay = DatumGetFloat8(NEXT);
	projection->delay_factor = DatumGetFloat8(NEXT);
	projection->max_delay = DatumGetFloat8(NEXT);
	NEXT;
	if (!isnull)
		projection->tables = values_name_list(value);
	NEXT;
	projection->rebuilds = isnull ? 0 : DatumGetInt32(value);
	projection->keep_old = DatumGetBool(NEXT);
	NEXT;
	projection->since = isnull ? 0 : (uint64) DatumGetInt64(value);
	projection->start_after = DatumGetInt64(NEXT);
	projection->version = DatumGetInt64(NEXT);
	projection->position = DatumGetInt64(NEXT);
	projection->applied = DatumGetInt64(NEXT);
	projection->applied_at = DatumGetTimestampTz(NEXT);
	projection->rate = DatumGetFloat8(NEXT);
	projection->rate_since = DatumGetTimestampTz(NEXT);
	projection->limit = PG_INT64_MAX;
	NEXT;
	projection->failing = !isnull;
	projection->stopped = !isnull && DatumGetBool(value);
	NEXT;
	projection->failed_position = isnull ? 0 : DatumGetInt64(value);
	NEXT;
	projection->attempts = isnull ? 0 : DatumGetInt32(value);
	NEXT;
	projection->next_attempt_at = isnull ? 0 : DatumGetTimestampTz(value);

#undef NEXT
#undef NEXT_TEXT
}

static bool
read_one(Statement *statement, Datum key, Projection *projection)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[1] = {key};
	OwnerSwitch saved;
	bool		found;

	owner_begin(&saved);
	found = plans_execute(statement, values, NULL) > 0;
	if (found)
	{
		MemoryContext spi = MemoryContextSwitchTo(context);

		read_result(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, projection);
		MemoryContextSwitchTo(spi);
	}
	owner_end(&saved);
	return found;
}

static void
no_projection(text *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_NO_PROJECTION),
			 errmsg("projection \"%s\" does not exist", text_to_cstring(name))));
}

/* As of now, whatever the transaction's snapshot is. */
void
projection_read_latest(text *name, Projection *projection)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[1] = {PointerGetDatum(name)};
	MemoryContext spi;
	OwnerSwitch saved;

	owner_begin(&saved);
	if (plans_execute_as_of_now(&read_by_name, values) == 0)
		no_projection(name);
	spi = MemoryContextSwitchTo(context);
	read_result(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, projection);
	MemoryContextSwitchTo(spi);
	owner_end(&saved);
}

bool
projection_find(text *name, Projection *projection)
{
	return read_one(&read_by_name, PointerGetDatum(name), projection);
}

bool
projection_read_id(int32 id, Projection *projection)
{
	return read_one(&read_by_id, Int32GetDatum(id), projection);
}

/* What rebuilds a projection, or was replaced by it and kept. */
bool
projection_read_twin(int32 id, Projection *twin)
{
	return read_one(&read_by_rebuilt, Int32GetDatum(id), twin);
}

void
projection_read(text *name, Projection *projection)
{
	if (!projection_find(name, projection))
		no_projection(name);
}

/* ----------------------------------------------------------------
 * Locks
 * ----------------------------------------------------------------
 */

static void
set_tag(LOCKTAG *tag, int32 id, uint32 part)
{
	locks_set_tag(tag, LOCK_CLASS_PROJECTION, ((uint64) (uint32) id << 32) | part);
}

/* Locks a projection to the end of the transaction. */
bool
projection_lock(int32 id, bool wait)
{
	LOCKTAG		tag;

	set_tag(&tag, id, 0);
	return LockAcquire(&tag, ExclusiveLock, false, !wait) != LOCKACQUIRE_NOT_AVAIL;
}

/* Gives that back, if nothing has been done with it. */
void
projection_unlock(int32 id)
{
	LOCKTAG		tag;

	set_tag(&tag, id, 0);
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* Has this transaction locked it? */
bool
projection_has_lock(int32 id)
{
	LockData   *locks = GetLockStatusData();
	bool		found = false;
	LOCKTAG		tag;

	set_tag(&tag, id, 0);
	for (int i = 0; i < locks->nelements && !found; i++)
	{
		LockInstanceData *lock = &locks->locks[i];

		found = lock->pid == MyProcPid && (lock->holdMask & LOCKBIT_ON(ExclusiveLock)) != 0 &&
			memcmp(&lock->locktag, &tag, sizeof(LOCKTAG)) == 0;
	}
	pfree(locks->locks);
	pfree(locks);
	return found;
}

/*
 * Locks a key of an inline fold to the end of the transaction: of two that append
 * events for it the second goes on from what the first has left.
 */
void
projection_lock_key(int32 id, const char *key, int len)
{
	LOCKTAG		tag;

	set_tag(&tag, id, DatumGetUInt32(hash_any((const unsigned char *) key, len)) | 0x80000000);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/*
 * What goes before that: beside others who lock keys, or, for more keys than the
 * lock table has room for, alone, in place of it.
 */
void
projection_lock_keys(int32 id, bool all)
{
	LOCKTAG		tag;

	set_tag(&tag, id, 1);
	(void) LockAcquire(&tag, all ? ExclusiveLock : ShareLock, false, false);
}

/* Its own handler is running. */
void
projection_not_by_handler(const Projection *projection)
{
	if (apply_is_running(projection->id))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("projection \"%s\" cannot be changed by its own handler",
						projection->name)));
}

/*
 * Reads a projection by name, and locks it, waiting for who has it; what is read
 * is what holds with the lock.
 */
void
projection_read_locked(text *name, Projection *projection)
{
	for (;;)
	{
		int32		id;

		projection_read(name, projection);
		id = projection->id;
		projection_not_by_handler(projection);
		(void) projection_lock(id, true);
		projection_read(name, projection);
		if (projection->id == id)
			return;
		projection_unlock(id);
	}
}

/* ----------------------------------------------------------------
 * Checkpoints and errors
 * ----------------------------------------------------------------
 */

void
projection_write_checkpoint(Projection *projection, const Applied *applied)
{
	Datum		values[7];

	projection->version++;
	projection->position = Max(projection->position, applied->position);
	if (applied->count > 0)
	{
		TimestampTz now = GetCurrentTimestamp();

		projection->rate = values_rate(projection->rate, projection->applied_at, now, applied->count);
		projection->applied += applied->count;
		projection->applied_at = now;
	}
	values[0] = Int32GetDatum(projection->id);
	values[1] = Int64GetDatum(projection->version);
	values[2] = Int64GetDatum(projection->position);
	values[3] = Int64GetDatum(projection->applied);
	values[4] = TimestampTzGetDatum(projection->applied_at);
	values[5] = Float8GetDatum(projection->rate);
	values[6] = TimestampTzGetDatum(projection->rate_since);
	rows_insert_small(catalog_consumers()->projection_checkpoint, values, NULL);
	CommandCounterIncrement();
	/* somebody may wait for it */
	wake_at_end();
	if (projection->version % CLEAN_EVERY == 0)
	{
		OwnerSwitch saved;

		owner_begin(&saved);
		(void) plans_execute(&clean, values, NULL);
		owner_end(&saved);
	}
}

static void
run_statement(Statement *statement, Datum *values, const char *nulls)
{
	OwnerSwitch saved;

	owner_begin(&saved);
	(void) plans_execute(statement, values, nulls);
	owner_end(&saved);
}

static Datum
text_or_null(const char *value, char *is_null)
{
	*is_null = value == NULL ? 'n' : ' ';
	return value == NULL ? (Datum) 0 : PointerGetDatum(cstring_to_text(value));
}

/* Notes the error of an attempt; position 0: of no event in particular. */
void
projection_write_error(Projection *projection, const ErrorData *error, int64 position,
					   bool stopped, TimestampTz next_attempt_at)
{
	Datum		values[8];
	char		nulls[9] = "        ";

	values[0] = Int32GetDatum(projection->id);
	values[1] = Int64GetDatum(position);
	values[2] = BoolGetDatum(stopped);
	values[3] = text_or_null(unpack_sql_state(error->sqlerrcode), &nulls[3]);
	values[4] = text_or_null(error->message, &nulls[4]);
	values[5] = text_or_null(error->detail, &nulls[5]);
	values[6] = text_or_null(error->context, &nulls[6]);
	values[7] = TimestampTzGetDatum(next_attempt_at);
	if (stopped)
		nulls[7] = 'n';
	run_statement(&write_error, values, nulls);
	wake_at_end();
}

void
projection_clear_error(Projection *projection)
{
	Datum		values[1] = {Int32GetDatum(projection->id)};

	run_statement(&clear_error, values, NULL);
	projection->failing = projection->stopped = false;
	projection->attempts = 0;
	projection->failed_position = 0;
}

/* An event is passed over for good. */
void
projection_write_dead(Projection *projection, const ErrorData *error, int64 position)
{
	Datum		values[7];
	char		nulls[8] = "       ";

	values[0] = Int32GetDatum(projection->id);
	values[1] = Int64GetDatum(position);
	values[2] = Int32GetDatum(projection->failed_position == position ?
							  projection->attempts + 1 : 1);
	values[3] = text_or_null(unpack_sql_state(error->sqlerrcode), &nulls[3]);
	values[4] = text_or_null(error->message, &nulls[4]);
	values[5] = text_or_null(error->detail, &nulls[5]);
	values[6] = text_or_null(error->context, &nulls[6]);
	run_statement(&write_dead, values, nulls);
}

/* The positions that a projection has passed over, in ascending order. */
int64 *
projection_read_dead(const Projection *projection, int *count)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[1] = {Int32GetDatum(projection->id)};
	OwnerSwitch saved;
	int64	   *positions;
	bool		isnull;

	owner_begin(&saved);
	*count = (int) plans_execute(&read_dead, values, NULL);
	positions = MemoryContextAllocHuge(context, sizeof(int64) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
		positions[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
												   1, &isnull));
	owner_end(&saved);
	return positions;
}

/*
 * Has the checkpoint gone on since the snapshot of a REPEATABLE READ transaction?
 * What was done then it would do again, beside the effects that it cannot see.
 * Nor may it go by what the projection was before it was altered.
 */
void
projection_check_snapshot(const Projection *projection)
{
	Datum		values[1] = {Int32GetDatum(projection->id)};
	OwnerSwitch saved;
	bool		isnull;
	bool		same;

	if (!IsolationUsesXactSnapshot())
		return;
	owner_begin(&saved);
	same = plans_execute_as_of_now(&newest, values) > 0 &&
		DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
									&isnull)) == projection->version &&
		DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2,
									&isnull)) == projection->revision;
	owner_end(&saved);
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("Projection \"%s\" has gone on since the snapshot of this transaction.",
						   projection->name)));
}

/* ----------------------------------------------------------------
 * Inline projections, as an appender knows them
 * ----------------------------------------------------------------
 */

/*
 * Which modes there are, as of now, without planning a query: most stores have no inline
 * projection, and each new session asks at its first append.
 */
static void
look_for_modes(Oid relid, bool *any_inline, bool *any_asynchronous)
{
	Relation	rel = table_open(relid, AccessShareLock);
	TableScanDesc scan = table_beginscan(rel, SnapshotSelf, 0, NULL);
	TupleTableSlot *slot = table_slot_create(rel, NULL);

	*any_inline = *any_asynchronous = false;
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		char	   *mode = TextDatumGetCString(slot_getattr(slot, PR_MODE, &isnull));

		if (strcmp(mode, "inline") == 0)
			*any_inline = true;
		else if (strcmp(mode, "async") == 0 &&
				 !DatumGetBool(slot_getattr(slot, PR_PAUSED, &isnull)))
			*any_asynchronous = true;
		pfree(mode);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	table_close(rel, AccessShareLock);
}

static void
read_inline_list(void)
{
	OwnerSwitch owner;
	MemoryContext saved;
	uint64		n;

	owner_begin(&owner);
	/* those that were made since the snapshot of a REPEATABLE READ transaction, too */
	n = plans_execute_as_of_now(&read_inline, NULL);
	saved = MemoryContextSwitchTo(inline_cache.context);
	inline_cache.list = palloc(sizeof(Projection) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
		read_result(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, &inline_cache.list[i]);
	inline_cache.count = (int) n;
	MemoryContextSwitchTo(saved);
	owner_end(&owner);
}

/* The list, which stays good until the next call. */
Projection *
projection_inline_list(int *count)
{
	for (;;)
	{
		const Store *store = catalog_store();
		uint64		seen = messages;
		bool		any_inline;

		if (likely(inline_cache.known && inline_cache.relid == store->projection))
			break;
		if (inline_cache.context == NULL)
			inline_cache.context = AllocSetContextCreate(TopMemoryContext,
														 "event_store inline projections",
														 ALLOCSET_SMALL_SIZES);
		MemoryContextReset(inline_cache.context);
		inline_cache.known = false;
		inline_cache.relid = store->projection;
		inline_cache.list = NULL;
		inline_cache.count = 0;
		look_for_modes(store->projection, &any_inline, &inline_cache.asynchronous);
		if (any_inline)
			read_inline_list();

		/*
		 * Without news it is good for now, though the cache may have been emptied
		 * since: to look at the catalog once more may empty it, too.
		 */
		inline_cache.known = seen == messages;
		if (inline_cache.known)
			break;
	}
	*count = inline_cache.count;
	return inline_cache.list;
}

/*
 * May there be asynchronous projections?  Once they have been looked for, as long as
 * no row changes, this is known; outside of a transaction it is only known so.
 */
bool
projection_any_asynchronous(void)
{
	return !inline_cache.known || inline_cache.asynchronous;
}

static NameList
copy_names(const NameList *list)
{
	NameList	copy = {list->count, palloc(sizeof(text *) * Max(list->count, 1))};

	for (int i = 0; i < list->count; i++)
		copy.names[i] = DatumGetTextPCopy(PointerGetDatum(list->names[i]));
	return copy;
}

/* A copy in the current context. */
void
projection_copy(Projection *copy, const Projection *projection)
{
	*copy = *projection;
	copy->name = pstrdup(projection->name);
	copy->handler = pstrdup(projection->handler);
	copy->key = projection->key == NULL ? NULL : pstrdup(projection->key);
	copy->owner = pstrdup(projection->owner);
	copy->search_path = pstrdup(projection->search_path);
	copy->time_zone = pstrdup(projection->time_zone);
	copy->categories = copy_names(&projection->categories);
	copy->types = copy_names(&projection->types);
	copy->tables = copy_names(&projection->tables);
}

static void
relcache_callback(Datum arg, Oid relid)
{
	if (relid != InvalidOid && relid != inline_cache.relid)
		return;
	if (catalog_message_is_news(relid))
		messages++;
	inline_cache.known = false;
}

/* Tells all backends that their lists are void. */
void
projection_void_lists(void)
{
	CacheInvalidateRelcacheByRelid(catalog_store()->projection);
	inline_cache.known = false;
}

/*
 * With appenders kept out, waits for the end of those who still hold a bound, so
 * that all positions drawn are settled: one that has let go of the table, because
 * it is ending or went back to a savepoint, holds the settled mark below what others
 * have committed.  By their locks, so that a deadlock is detected.
 */
static void
wait_until_settled(void)
{
	LockData   *locks = GetLockStatusData();

	for (int i = 0; i < locks->nelements; i++)
	{
		LOCKTAG		tag = locks->locks[i].locktag;

		if (tag.locktag_type != LOCKTAG_USERLOCK || tag.locktag_field4 != LOCK_CLASS_BOUND ||
			tag.locktag_field1 != MyDatabaseId)
			continue;
		(void) LockAcquire(&tag, ExclusiveLock, false, false);
		(void) LockRelease(&tag, ExclusiveLock, false);
	}
}

/*
 * Nobody appends until this transaction has ended, and who has appended has
 * ended: all is settled.  That this transaction has not appended itself is the caller's business.
 */
void
projection_keep_appenders_out(void)
{
	LockRelationOid(catalog_store()->stream, ShareRowExclusiveLock);
	wait_until_settled();
}

/* ----------------------------------------------------------------
 * The state of folds
 * ----------------------------------------------------------------
 */

/* The table of a projection's states, without its schema. */
char *
projection_state_table(int32 id)
{
	return psprintf("projection_state_%d", id);
}

/*
 * A partition of its own for the states of a projection.  By ATTACH, which lets
 * those go on who read the states of others.
 */
void
projection_make_state_table(int32 id)
{
	char	   *table = projection_state_table(id);
	OwnerSwitch saved;

	owner_begin(&saved);
	plans_run_ddl("CREATE TABLE event_store.%s (LIKE event_store.projection_state"
				  " INCLUDING STORAGE INCLUDING COMPRESSION,"
				  " CONSTRAINT %s_pkey PRIMARY KEY (projection_id, key),"
				  " CONSTRAINT %s_id CHECK (projection_id = %d)) WITH (fillfactor = 80)",
				  table, table, table, id);
	plans_run_ddl("ALTER TABLE event_store.projection_state ATTACH PARTITION event_store.%s"
				  " FOR VALUES IN (%d)", table, id);
	plans_run_ddl("ALTER TABLE event_store.%s DROP CONSTRAINT %s_id", table, table);
	owner_end(&saved);
}

/*
 * If nobody is in the way: who waited to drop a partition would have all wait behind
 * him who read the states of any fold.  A table that is left is dropped by one
 * who comes later: its projection's id is not used again.
 */
static void
drop_state_table(int32 id)
{
	Oid			schema = catalog_store()->schema;
	Oid			parent = get_relname_relid("projection_state", schema);
	Oid			table = get_relname_relid(projection_state_table(id), schema);
	OwnerSwitch saved;

	if (!OidIsValid(table) || !ConditionalLockRelationOid(parent, AccessExclusiveLock))
		return;
	if (!ConditionalLockRelationOid(table, AccessExclusiveLock))
	{
		UnlockRelationOid(parent, AccessExclusiveLock);
		return;
	}
	owner_begin(&saved);
	plans_run_ddl("DROP TABLE IF EXISTS event_store.%s", projection_state_table(id));
	owner_end(&saved);
}

/* Drops what was left so. */
void
projection_drop_left_tables(void)
{
	MemoryContext context = CurrentMemoryContext;
	OwnerSwitch saved;
	int32	   *ids;
	int			count;

	owner_begin(&saved);
	count = (int) plans_execute(&left_tables, NULL, NULL);
	ids = MemoryContextAlloc(context, sizeof(int32) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		bool		isnull;

		ids[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	owner_end(&saved);
	for (int i = 0; i < count; i++)
		drop_state_table(ids[i]);
}

/* ----------------------------------------------------------------
 * Arguments
 * ----------------------------------------------------------------
 */

/*
 * Columns that are bounds and policy, and what they can be, in the order of the
 * arguments of create_projection() and alter_projection().
 */
static const Setting settings[] = {
	{"max_attempts", INT4OID, 1, 1000000},
	{"first_delay", INTERVALOID, 0, 366 * 86400.0},
	{"delay_factor", FLOAT8OID, 1, 1000},
	{"max_delay", INTERVALOID, 0, 366 * 86400.0},
	{"batch_events", INT4OID, 1, 10000000},
	{"batch_size", INT4OID, 64, 1024 * 1024},
	{"refresh_every", INTERVALOID, 0, 366 * 86400.0},
};

/* One of some words. */
static char *
word_argument(FunctionCallInfo fcinfo, int n, const char *what, const char *words[], char *if_null)
{
	StringInfoData all;
	char	   *word = PG_ARGISNULL(n) ? if_null : text_to_cstring(PG_GETARG_TEXT_PP(n));

	initStringInfo(&all);
	for (int i = 0; words[i] != NULL; i++)
	{
		if (word != NULL && strcmp(word, words[i]) == 0)
			return word;
		appendStringInfo(&all, "%s%s", i == 0 ? "" : words[i + 1] == NULL ? " or " : ", ", words[i]);
	}
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("%s must be %s", what, all.data)));
	return NULL;
}

/*
 * The search_path that the handler is to have: the caller's, with temporary
 * tables at its end, where they can hide nothing.
 */
static char *
handler_search_path(void)
{
	char	   *names = pstrdup(namespace_search_path);
	StringInfoData path;
	List	   *list = NIL;
	ListCell   *cell;

	initStringInfo(&path);
	(void) SplitIdentifierString(names, ',', &list);
	foreach(cell, list)
		if (strcmp(lfirst(cell), "pg_temp") != 0)
			appendStringInfo(&path, "%s, ", quote_identifier(lfirst(cell)));
	appendStringInfoString(&path, "pg_temp");
	return path.data;
}

/* ----------------------------------------------------------------
 * Creating, altering and dropping
 * ----------------------------------------------------------------
 */

/* the arguments of create_projection() */
enum
{
	CP_NAME,
	CP_KIND,
	CP_HANDLER,
	CP_MODE,
	CP_CATEGORIES,
	CP_TYPES,
	CP_KEY,
	CP_START_AFTER,
	CP_ON_ERROR,
	CP_SETTINGS,
	CP_TABLES = CP_SETTINGS + lengthof(settings),
	CP_OWNER,
	CP_SEARCH_PATH,
	CP_OWNER_ID,
	CP_CLUSTER,
	CP_TIME_ZONE,
	CP_PARAMETERS
};

static const char *kinds[] = {"set", "event", "fold", "matview", NULL};
static const char *modes[] = {"async", "inline", "live", NULL};
static const char *on_errors[] = {"stop", "skip", NULL};

static void
refuse_mode(ProjectionKind kind, ProjectionMode mode)
{
	if (mode == PROJECTION_LIVE && kind != PROJECTION_FOLD)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("only a fold can be live"),
				 errhint("What others make is in tables of your own; a view computes at each read.")));
	if (mode == PROJECTION_INLINE && kind == PROJECTION_MATVIEW)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a materialized view cannot be refreshed inline")));
}

/*
 * What the transaction has appended itself would be applied neither by the
 * refresh that comes before (it is not settled) nor by the appends that come.
 */
static void
begin_inline(Projection *projection)
{
	int64		applied;

	catalog_require_owner(catalog_store());
	if (settled_own_bound() != 0)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("a projection cannot become inline in a transaction that has appended events")));
	/* nor would what was committed since the snapshot */
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("a projection cannot become inline in a REPEATABLE READ or SERIALIZABLE transaction")));
	projection_keep_appenders_out();
	/* what there is already */
	projection->mode = PROJECTION_ASYNC;
	(void) refresh_run(projection, PG_INT64_MAX, 0, &applied);
	projection->mode = PROJECTION_INLINE;
	if (settled_own_bound() != 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_FAILED),
				 errmsg("projection \"%s\" cannot become inline at once, because its handler appends events",
						projection->name),
				 errhint("Let it catch up asynchronously first.")));
	if (projection->failing)
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_FAILED),
				 errmsg("projection \"%s\" cannot become inline, because an event that is there already fails",
						projection->name),
				 errhint("Create it with mode async, and look at event_store.projections.")));
	projection_void_lists();
}

/* Notes the tables that the handler writes. */
static void
set_tables(Projection *projection, Datum tables)
{
	Oid			types[2] = {INT4OID, TEXTARRAYOID};
	Datum		values[2];
	OwnerSwitch saved;

	if (projection->kind != PROJECTION_SET && projection->kind != PROJECTION_EVENT)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("only a projection of kind set or event has tables of its own")));
	values[0] = Int32GetDatum(projection->id);
	values[1] = rebuild_check_tables(projection, tables);
	owner_begin(&saved);
	if (SPI_execute_with_args("UPDATE event_store.projection AS p SET tables = nullif($2, '{}')"
							  " WHERE p.id = $1", 2, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not note the tables of a projection");
	owner_end(&saved);
}

Datum
event_store_create_projection(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"WITH made AS (INSERT INTO event_store.projection AS p (name, kind, handler, mode, categories,"
		" types, key, on_error, max_attempts, first_delay, delay_factor, max_delay, batch_events,"
		" batch_size, refresh_every, start_after, owner, search_path, owner_id, cluster_id, time_zone)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $9, coalesce($10, 5), coalesce($11, '1 s'),"
		" coalesce($12, 2), coalesce($13, '5 min'), coalesce($14, 10000), coalesce($15, 16384),"
		" coalesce($16, '0'), $8, $18, $19, $20, $21, $22)"
		" ON CONFLICT (name) DO NOTHING RETURNING p.id)"
		" INSERT INTO event_store.projection_checkpoint"
		" (projection_id, version, position, applied, applied_at, rate, rate_since)"
		" SELECT made.id, 1, $8, 0, pg_catalog.clock_timestamp(), 0, pg_catalog.clock_timestamp() FROM made";
	Oid			types[CP_PARAMETERS] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID,
	TEXTARRAYOID, TEXTOID, INT8OID, TEXTOID};
	Datum		values[CP_PARAMETERS];
	char		nulls[CP_PARAMETERS];
	text	   *name;
	char	   *kind;
	char	   *mode;
	int64		start;
	Projection	projection;
	OwnerSwitch saved;
	uint64		count;

	projection_guard("event_store.create_projection()");
	name = projection_name_argument(fcinfo, CP_NAME);
	if (PG_ARGISNULL(CP_KIND) || PG_ARGISNULL(CP_HANDLER))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("kind and handler of a projection must not be NULL")));
	kind = word_argument(fcinfo, CP_KIND, "kind", kinds, NULL);
	mode = word_argument(fcinfo, CP_MODE, "mode", modes, "async");
	(void) word_argument(fcinfo, CP_ON_ERROR, "on_error", on_errors, "stop");
	refuse_mode(kind_of(kind), mode_of(mode));
	manage_check_filter(fcinfo, CP_CATEGORIES, "categories", false);
	manage_check_filter(fcinfo, CP_TYPES, "types", false);
	if (!PG_ARGISNULL(CP_KEY) && kind_of(kind) != PROJECTION_FOLD)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("only a fold has a key")));
	input_check_settings(fcinfo, CP_SETTINGS, settings, lengthof(settings));
	start = PG_ARGISNULL(CP_START_AFTER) ? settled_mark() :
		manage_checked_position(PG_GETARG_INT64(CP_START_AFTER));

	for (int i = 0; i < CP_OWNER; i++)
	{
		if (i >= CP_SETTINGS && i < CP_TABLES)
			types[i] = settings[i - CP_SETTINGS].type;
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_GETARG_DATUM(i);
	}
	types[CP_TABLES] = TEXTARRAYOID;
	types[CP_OWNER] = types[CP_SEARCH_PATH] = types[CP_TIME_ZONE] = TEXTOID;
	types[CP_OWNER_ID] = OIDOID;
	types[CP_CLUSTER] = INT8OID;
	values[CP_MODE] = PointerGetDatum(cstring_to_text(mode));
	values[CP_START_AFTER] = Int64GetDatum(start);
	if (PG_ARGISNULL(CP_ON_ERROR))
		values[CP_ON_ERROR] = PointerGetDatum(cstring_to_text("stop"));
	values[CP_OWNER] = PointerGetDatum(cstring_to_text(GetUserNameFromId(GetUserId(), false)));
	values[CP_SEARCH_PATH] = PointerGetDatum(cstring_to_text(handler_search_path()));
	nulls[CP_MODE] = nulls[CP_START_AFTER] = nulls[CP_ON_ERROR] = ' ';
	values[CP_OWNER_ID] = ObjectIdGetDatum(GetUserId());
	values[CP_CLUSTER] = Int64GetDatum((int64) GetSystemIdentifier());
	values[CP_TIME_ZONE] = PointerGetDatum(cstring_to_text(pg_get_timezone_name(session_timezone)));
	for (int i = CP_OWNER; i < CP_PARAMETERS; i++)
		nulls[i] = ' ';
	if (mode_of(mode) == PROJECTION_INLINE)
		catalog_require_owner(catalog_store());
	if (!has_privs_of_role(catalog_owner(catalog_store()), GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" cannot own a projection here", GetUserNameFromId(GetUserId(), false)),
				 errdetail("The owner of the store does not have its privileges, and could make the projection use them.")));

	owner_begin(&saved);
	if (SPI_execute_with_args(sql, CP_PARAMETERS, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not create a projection");
	count = SPI_processed;
	owner_end(&saved);
	if (count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_EXISTS),
				 errmsg("projection \"%s\" exists already", text_to_cstring(name))));

	projection_read_locked(name, &projection);
	apply_check(&projection);
	if (!PG_ARGISNULL(CP_TABLES))
		set_tables(&projection, PG_GETARG_DATUM(CP_TABLES));
	if (projection.kind == PROJECTION_FOLD && projection.mode != PROJECTION_LIVE)
		projection_make_state_table(projection.id);
	if (projection.mode == PROJECTION_INLINE)
		begin_inline(&projection);
	projection_void_lists();
	wake_at_end();
	PG_RETURN_INT64(projection.position);
}

/* the arguments of alter_projection() */
enum
{
	AP_NAME,
	AP_HANDLER,
	AP_MODE,
	AP_ON_ERROR,
	AP_SETTINGS,
	AP_TABLES = AP_SETTINGS + lengthof(settings),
	AP_SEARCH_PATH = AP_TABLES,	/* in the statement */
	AP_ID,
	AP_PARAMETERS
};

/*
 * Who alters a projection must be its owner, or owner of the store, for the handler
 * keeps the owner's rights.
 */
void
projection_require_owner(const Projection *projection)
{
	Oid			owner = get_role_oid(projection->owner, true);

	if (OidIsValid(owner) && has_privs_of_role(GetUserId(), owner))
		return;
	catalog_require_owner(catalog_store());
}

Datum
event_store_alter_projection(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"UPDATE event_store.projection AS p SET revision = pg_catalog.nextval('event_store.projection_revision'),"
		" handler = coalesce($2, p.handler), mode = coalesce($3, p.mode),"
		" paused = p.paused AND coalesce($3, p.mode) = 'async',"
		" on_error = coalesce($4, p.on_error), max_attempts = coalesce($5, p.max_attempts),"
		" first_delay = coalesce($6, p.first_delay), delay_factor = coalesce($7, p.delay_factor),"
		" max_delay = coalesce($8, p.max_delay), batch_events = coalesce($9, p.batch_events),"
		" batch_size = coalesce($10, p.batch_size), refresh_every = coalesce($11, p.refresh_every),"
		" search_path = CASE WHEN $2 IS NULL THEN p.search_path ELSE $12 END"
		" WHERE p.id = $13";
	Oid			types[AP_PARAMETERS] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[AP_PARAMETERS];
	char		nulls[AP_PARAMETERS];
	text	   *name;
	Projection	projection;
	ProjectionMode before;
	OwnerSwitch saved;

	projection_guard("event_store.alter_projection()");
	name = projection_name_argument(fcinfo, AP_NAME);
	if (!PG_ARGISNULL(AP_MODE))
		(void) word_argument(fcinfo, AP_MODE, "mode", modes, NULL);
	if (!PG_ARGISNULL(AP_ON_ERROR))
		(void) word_argument(fcinfo, AP_ON_ERROR, "on_error", on_errors, NULL);
	input_check_settings(fcinfo, AP_SETTINGS, settings, lengthof(settings));
	projection_read_locked(name, &projection);
	projection_require_owner(&projection);
	/* the handler is the owner's, and has the owner's rights: nobody else's words */
	if (!PG_ARGISNULL(AP_HANDLER) &&
		get_role_oid(projection.owner, true) != GetUserId())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only role \"%s\" can give projection \"%s\" another handler",
						projection.owner, projection.name),
				 errhint("It runs with the rights of that role. Drop the projection, and create it anew.")));
	if (projection.rebuilds != 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("\"%s\" is part of a rebuild", projection.name)));
	before = projection.mode;
	for (int i = 0; i < AP_SEARCH_PATH; i++)
	{
		if (i >= AP_SETTINGS)
			types[i] = settings[i - AP_SETTINGS].type;
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_GETARG_DATUM(i);
	}
	types[AP_SEARCH_PATH] = TEXTOID;
	values[AP_SEARCH_PATH] = PointerGetDatum(cstring_to_text(handler_search_path()));
	types[AP_ID] = INT4OID;
	values[AP_ID] = Int32GetDatum(projection.id);
	nulls[AP_SEARCH_PATH] = nulls[AP_ID] = ' ';
	if (!PG_ARGISNULL(AP_MODE))
	{
		ProjectionMode mode = mode_of(text_to_cstring(PG_GETARG_TEXT_PP(AP_MODE)));

		refuse_mode(projection.kind, mode);
		if ((mode == PROJECTION_LIVE) != (before == PROJECTION_LIVE))
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("a projection cannot become live, nor cease to be"),
					 errhint("Drop it, and create it anew.")));
	}
	owner_begin(&saved);
	if (SPI_execute_with_args(sql, AP_PARAMETERS, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not alter a projection");
	owner_end(&saved);
	projection_read(name, &projection);
	if (!PG_ARGISNULL(AP_HANDLER))
		apply_check(&projection);
	if (!PG_ARGISNULL(AP_TABLES))
		set_tables(&projection, PG_GETARG_DATUM(AP_TABLES));
	if (projection.mode != before)
		rebuild_forget_lead(projection.id);
	if (projection.mode == PROJECTION_INLINE && before != PROJECTION_INLINE)
		begin_inline(&projection);
	else if (before == PROJECTION_INLINE)
	{
		catalog_require_owner(catalog_store());
		if (projection.mode != PROJECTION_INLINE)
		{
			/* all that has been appended has been applied; what will be is not yet */
			Applied		applied = {0};

			if (settled_own_bound() != 0)
				ereport(ERROR,
						(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
						 errmsg("a projection cannot cease to be inline in a transaction that has appended events")));
			projection_keep_appenders_out();
			applied.position = settled_mark();
			projection_write_checkpoint(&projection, &applied);
		}
		projection_void_lists();
	}
	wake_at_end();
	PG_RETURN_VOID();
}

/* Removes a projection, which is locked. */
void
projection_remove(Projection *projection)
{
	static const char *const tables[] = {
		"projection_checkpoint", "projection_error", "projection_failure"
	};
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(projection->id)};
	OwnerSwitch saved;

	owner_begin(&saved);
	for (int i = 0; i < lengthof(tables); i++)
		if (SPI_execute_with_args(psprintf("DELETE FROM event_store.%s AS x WHERE x.projection_id = $1",
										   tables[i]), 1, types, values, NULL, false, 0) < 0)
			elog(ERROR, "could not drop a projection");
	if (SPI_execute_with_args("DELETE FROM event_store.projection AS p WHERE p.id = $1",
							  1, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not drop a projection");
	owner_end(&saved);
	if (projection->kind == PROJECTION_FOLD && projection->mode != PROJECTION_LIVE)
	{
		/* no append that goes by the old list is in the middle */
		if (projection->mode == PROJECTION_INLINE)
			projection_keep_appenders_out();
		drop_state_table(projection->id);
	}
	if (projection->rebuilds != 0)
		rebuild_drop_tables(projection);
	apply_forget(projection->id);
	projection_void_lists();
	wake_at_end();
}

Datum
event_store_drop_projection(PG_FUNCTION_ARGS)
{
	Projection	projection;
	Projection	twin;

	projection_guard("event_store.drop_projection()");
	projection_read_locked(projection_name_argument(fcinfo, 0), &projection);
	projection_require_owner(&projection);
	if (projection_read_twin(projection.id, &twin))
	{
		projection_not_by_handler(&twin);
		(void) projection_lock(twin.id, true);
		projection_remove(&twin);
	}
	projection_remove(&projection);
	projection_drop_left_tables();
	PG_RETURN_VOID();
}

static void
set_paused(FunctionCallInfo fcinfo, bool paused)
{
	Oid			types[2] = {INT4OID, BOOLOID};
	Datum		values[2];
	Projection	projection;
	OwnerSwitch saved;

	projection_read_locked(projection_name_argument(fcinfo, 0), &projection);
	projection_require_owner(&projection);
	if (projection.mode != PROJECTION_ASYNC)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("only an asynchronous projection can be paused or resumed")));
	if (rebuild_was_in_service(&projection))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("projection \"%s\" was in service before a rebuild, and stands still", projection.name),
				 errhint("revert_rebuild() goes back to it, if it is kept.")));
	values[0] = Int32GetDatum(projection.id);
	values[1] = BoolGetDatum(paused);
	owner_begin(&saved);
	if (SPI_execute_with_args("UPDATE event_store.projection AS p SET paused = $2,"
							  " revision = pg_catalog.nextval('event_store.projection_revision') WHERE p.id = $1 AND p.paused <> $2", 2, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not pause a projection");
	owner_end(&saved);
	if (!paused && projection.failing)
		projection_clear_error(&projection);
	projection_void_lists();
	wake_at_end();
}

Datum
event_store_pause_projection(PG_FUNCTION_ARGS)
{
	projection_guard("event_store.pause_projection()");
	set_paused(fcinfo, true);
	PG_RETURN_VOID();
}

Datum
event_store_resume_projection(PG_FUNCTION_ARGS)
{
	projection_guard("event_store.resume_projection()");
	set_paused(fcinfo, false);
	PG_RETURN_VOID();
}

void
projection_init(void)
{
	catalog_on_relcache(relcache_callback);
	apply_init();
	inline_init();
	refresh_init();
}
