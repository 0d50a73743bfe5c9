/*
 * window.c
 *		Windows: for how long an inbox remembers, and in which tables.
 *
 * A window is a row of inbox_window and three tables, its parts.  Window 0 is
 * shared by all consumers that have none of their own; a consumer gets one when
 * it is given another length.  What is known of windows is kept in the backend,
 * all of them, and read anew when PostgreSQL says that inbox_window has changed:
 * whoever changes it, or inbox_turn, sends a relation cache message for it.
 *
 * Lock order: class LOCK_CLASS_INBOX, key INBOX_LOCK_WINDOWS, that of window 0,
 * then the tables.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class_d.h"
#include "catalog/pg_type_d.h"
#include "commands/sequence.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/locks.h"
#include "common/names.h"
#include "common/plans.h"
#include "common/rows.h"
#include "inbox/inbox.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_set_dedup_window);
PG_FUNCTION_INFO_V1(event_store_drop_dedup_window);

#define MAX_COUNT	INT64CONST(1000000000000)

/* how long, or for how many entries, a window waits to be looked after at first */
#define FIRST_NOTICE	USECS_PER_MINUTE
#define FIRST_ENTRIES	1000

/* within so long one of those who use it will have noticed that it is due */
#define NOTICE_SPREAD	(USECS_PER_SEC / 10)

static Window *windows = NULL;	/* window 0, then the others in order of consumers */
static int	count = 0;
static bool valid = false;
static uint64 generation = 0;
static uint64 messages = 0;		/* about inbox_window, so far */
static uint64 store_generation = 0;
static Oid	window_relid = InvalidOid;
static MemoryContext context = NULL;

static Statement set_default = {
	"INSERT INTO event_store.inbox_window (id, consumer, keep_for, keep_count, shared_turn)"
	" VALUES (0, '', $1, $2, 0)"
	" ON CONFLICT (id) DO UPDATE SET keep_for = $1, keep_count = $2",
	2, {INTERVALOID, INT8OID}
};

static Statement drop_default = {
	"DELETE FROM event_store.inbox_window WHERE id = 0"
};

static Statement set_window = {
	"UPDATE event_store.inbox_window SET keep_for = $2, keep_count = $3 WHERE consumer = $1",
	3, {TEXTOID, INTERVALOID, INT8OID}
};

static Statement add_window = {
	"INSERT INTO event_store.inbox_window (id, consumer, keep_for, keep_count, shared_turn)"
	" VALUES ($4, $1, $2, $3, $5)",
	5, {TEXTOID, INTERVALOID, INT8OID, INT4OID, INT4OID}
};

static Statement drop_window = {
	"DELETE FROM event_store.inbox_window WHERE consumer = $1 AND id > 0 RETURNING id",
	1, {TEXTOID}
};

static Statement drop_turn = {
	"DELETE FROM event_store.inbox_turn WHERE window_id = $1",
	1, {INT4OID}
};

/* ----------------------------------------------------------------
 * What is known of them
 * ----------------------------------------------------------------
 */

static void
relcache_callback(Datum arg, Oid relid)
{
	/* nothing of what is kept is a cache's own, so it is void by news alone */
	if ((relid == InvalidOid || relid == window_relid) && catalog_message_is_news(relid))
	{
		valid = false;
		messages++;
	}
}

static int64
interval_usec(const Interval *interval)
{
	return ((int64) interval->month * DAYS_PER_MONTH + interval->day) * USECS_PER_DAY +
		interval->time;
}

/* How long, as a row says; neither is set where the default holds. */
static void
read_keep(Probe *probe, Window *window)
{
	bool		isnull;
	Datum		value = probe_value(probe, IW_KEEP_FOR, &isnull);

	window->keep_usec = isnull ? 0 : interval_usec(DatumGetIntervalP(value));
	value = probe_value(probe, IW_KEEP_COUNT, &isnull);
	window->keep_count = isnull ? 0 : DatumGetInt64(value);
}

static TimestampTz
read_time(Probe *probe, int attno)
{
	bool		isnull;
	Datum		value = probe_value(probe, attno, &isnull);

	return isnull ? DT_NOBEGIN : DatumGetTimestampTz(value);
}

static int
compare_windows(const void *a, const void *b)
{
	const Window *x = a;
	const Window *y = b;
	int			order;

	/* window 0 comes first */
	if (x->id == 0 || y->id == 0)
		return x->id == y->id ? 0 : x->id == 0 ? -1 : 1;
	order = memcmp(x->consumer, y->consumer, Min(x->consumer_len, y->consumer_len));
	return order != 0 ? order : x->consumer_len - y->consumer_len;
}

static void
read_windows(Snapshot snapshot, Window **list, int *n)
{
	const Store *store = catalog_inbox();
	int			room = 8;
	Probe		probe;

	*list = palloc0(sizeof(Window) * room);
	(*list)[0].keep_usec = DEFAULT_KEEP_DAYS * USECS_PER_DAY;
	*n = 1;
	probe_open(&probe, store->inbox_window, &store->inbox_window_index, AccessShareLock,
			   snapshot, NULL, 0);
	while (probe_next(&probe, ForwardScanDirection))
	{
		Window	   *window;
		text	   *consumer;
		bool		isnull;
		int32		id = probe_int32(&probe, IW_ID);

		if (id == 0)
		{
			read_keep(&probe, &(*list)[0]);
			continue;
		}
		if (*n == room)
			*list = repalloc(*list, sizeof(Window) * (room *= 2));
		window = &(*list)[(*n)++];
		memset(window, 0, sizeof(Window));
		window->id = id;
		consumer = DatumGetTextPP(probe_value(&probe, IW_CONSUMER, &isnull));
		window->consumer_len = VARSIZE_ANY_EXHDR(consumer);
		window->consumer = pnstrdup(VARDATA_ANY(consumer), window->consumer_len);
		read_keep(&probe, window);
		window->shared_turn = probe_int32(&probe, IW_SHARED_TURN);
	}
	probe_close(&probe, false);
}

static void
read_turn(Window *window, Snapshot snapshot)
{
	const Store *store = catalog_inbox();
	ScanKeyData key;
	Probe		probe;
	bool		isnull;

	window->last_sealed_at = window->oldest_sealed_at = DT_NOBEGIN;
	key_int32(&key, 1, BTEqualStrategyNumber, window->id);
	probe_open(&probe, store->inbox_turn, &store->inbox_turn_index, AccessShareLock,
			   snapshot, &key, 1);
	window->has_turn = probe_next(&probe, ForwardScanDirection);
	if (window->has_turn)
	{
		window->turn = probe_int32(&probe, IT_TURN);
		window->opened_at = read_time(&probe, IT_OPENED_AT);
		window->last_sealed_at = read_time(&probe, IT_LAST_SEALED_AT);
		window->oldest_sealed_at = read_time(&probe, IT_OLDEST_SEALED_AT);
		window->last_is_empty = DatumGetBool(probe_value(&probe, IT_LAST_IS_EMPTY, &isnull));
		window->oldest_is_empty = DatumGetBool(probe_value(&probe, IT_OLDEST_IS_EMPTY, &isnull));
	}
	probe_close(&probe, false);
}

/*
 * May there be something in window 0 that was marked for the consumer before he
 * had this one?  It is in the part that was the current one when this one was
 * made, or in one before: not after two turns, and when what is the oldest part
 * then has been emptied.
 */
static bool
is_shared(const Window *window, const Window *shared)
{
	uint32		turns = (uint32) shared->turn - (uint32) window->shared_turn;

	return turns < 2 || (turns == 2 && !shared->oldest_is_empty);
}

/*
 * When there will be something to do.  Backends that share a window don't
 * notice it all at the same time, but short sessions do, too, in the end.
 */
static void
set_due(Window *window)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due = DT_NOEND;

	window->due_entries = PG_INT64_MAX;
	if (!window->has_turn)
	{
		due = now + FIRST_NOTICE;
		window->due_entries = FIRST_ENTRIES;
	}
	else if (window->last_sealed_at == DT_NOBEGIN || window->oldest_sealed_at == DT_NOBEGIN)
		due = window->opened_at + USECS_PER_SEC;
	else if (!window->oldest_is_empty)
		due = Max(window->opened_at + USECS_PER_SEC,
				  window->keep_usec > 0 ? window->oldest_sealed_at + window->keep_usec : 0);
	else
	{
		if (window->keep_usec > 0)
			due = window->opened_at + window->keep_usec;
		if (window->keep_count > 0)
			window->due_entries = window->keep_count;
	}
	window->due_at = due;
	window->next_notice = now + pg_prng_uint64_range(&pg_global_prng_state, 0, NOTICE_SPREAD);
	window->notice_pause = USECS_PER_SEC;
}

static void
load_windows(void)
{
	while (!valid || store_generation != catalog_inbox()->generation)
	{
		const Store *store = catalog_inbox();
		uint64		seen = messages;
		uint64		seen_store = store->generation;
		MemoryContext fresh = AllocSetContextCreate(CurrentMemoryContext,
													"event_store windows",
													ALLOCSET_SMALL_SIZES);
		MemoryContext saved = MemoryContextSwitchTo(fresh);
		Window	   *list;
		int			n;
		Snapshot	snapshot;

		window_relid = store->inbox_window;
		snapshot = RegisterSnapshot(GetLatestSnapshot());
		read_windows(snapshot, &list, &n);
		for (int i = 0; i < n; i++)
		{
			read_turn(&list[i], snapshot);
			if (list[i].keep_usec == 0 && list[i].keep_count == 0)
			{
				list[i].keep_usec = list[0].keep_usec;
				list[i].keep_count = list[0].keep_count;
			}
			list[i].is_shared = i > 0 && is_shared(&list[i], &list[0]);
			list[0].is_shared |= list[i].is_shared;
			for (int part = 0; part < INBOX_PARTS; part++)
				list[i].parts[part] =
					catalog_relation(psprintf("inbox_%d_%d", list[i].id, part));
			set_due(&list[i]);
		}
		UnregisterSnapshot(snapshot);
		MemoryContextSwitchTo(saved);
		qsort(list, n, sizeof(Window), compare_windows);

		/* nothing failed up to here: the new ones take the old ones' place */
		if (context != NULL)
			MemoryContextDelete(context);
		MemoryContextSetParent(fresh, CacheMemoryContext);
		context = fresh;
		windows = list;
		count = n;
		store_generation = seen_store;
		generation++;
		/* a message that came in meanwhile asks for one more round */
		valid = seen == messages;
	}
}

/* Under which number what is known now is known; it is looked up if need be. */
uint64
window_generation(void)
{
	load_windows();
	return generation;
}

/* The same, but nothing is looked up: are windows that were found still where they were? */
bool
window_is_there(uint64 seen)
{
	return seen == generation;
}

/* Is what was found under that number still all that is known? */
bool
window_is_current(uint64 seen)
{
	return valid && seen == generation && store_generation == catalog_store()->generation;
}

/* Have it looked up anew. */
void
window_void(void)
{
	valid = false;
}

int
window_count(void)
{
	load_windows();
	return count;
}

/* By number; the caller has just asked for the count. */
Window *
window_at(int index)
{
	Assert(index >= 0 && index < count);
	return &windows[index];
}

/* The window of a consumer: good until the next call that looks one up. */
Window *
window_find(const char *consumer, int len)
{
	Window		wanted;
	Window	   *found = NULL;

	load_windows();
	if (count > 1)
	{
		wanted.id = -1;
		wanted.consumer = unconstify(char *, consumer);
		wanted.consumer_len = len;
		found = bsearch(&wanted, windows + 1, count - 1, sizeof(Window), compare_windows);
	}
	return found != NULL ? found : &windows[0];
}

/* ----------------------------------------------------------------
 * As functions
 * ----------------------------------------------------------------
 */

static void
guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	catalog_require_owner(catalog_store());
}

static void
check_keep_for(const Interval *keep_for)
{
	int64		usec = 0;

	if (keep_for->month >= 0 && keep_for->day >= 0 && keep_for->time >= 0 &&
		keep_for->month <= 120 && keep_for->day <= 3660 &&
		keep_for->time <= 87840 * USECS_PER_HOUR)
		usec = interval_usec(keep_for);
	if (usec < USECS_PER_SEC)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("keep_for must be 1 s to 10 years")));
}

/*
 * Has the parts of a window go with the extension.  They are no members of it, so
 * that they are dumped as tables; a restore, and pg_upgrade, know nothing of what
 * they depend on, so this is said again from time to time.
 */
void
window_own_parts(const Window *window)
{
	ObjectAddress owner;
	ObjectAddress part;

	if (window->id == 0)
		return;
	ObjectAddressSet(owner, RelationRelationId, catalog_inbox()->inbox_window);
	for (int i = 0; i < INBOX_PARTS; i++)
	{
		ObjectAddressSet(part, RelationRelationId, window->parts[i]);
		(void) deleteDependencyRecordsForSpecific(RelationRelationId, part.objectId,
												  DEPENDENCY_AUTO, RelationRelationId,
												  owner.objectId);
		recordDependencyOn(&part, &owner, DEPENDENCY_AUTO);
	}
	CommandCounterIncrement();
}

/* The tables of a window, as window 0 has them. */
static void
make_parts(int32 id, const char *consumer)
{
	Window		window;

	for (int part = 0; part < INBOX_PARTS; part++)
	{
		plans_run_ddl("CREATE TABLE event_store.inbox_%d_%d (LIKE event_store.inbox_0_0"
						 " INCLUDING INDEXES INCLUDING STORAGE INCLUDING COMPRESSION INCLUDING COMMENTS)",
						 id, part);
		plans_run_ddl("COMMENT ON TABLE event_store.inbox_%d_%d IS %s", id, part,
						 quote_literal_cstr(psprintf("a part of the window of consumer %s: see inbox_window",
													 consumer)));
		window.parts[part] = catalog_relation(psprintf("inbox_%d_%d", id, part));
	}
	window.id = id;
	window_own_parts(&window);
}

static void
drop_parts(int32 id)
{
	for (int part = 0; part < INBOX_PARTS; part++)
		plans_run_ddl("DROP TABLE event_store.inbox_%d_%d", id, part);
}

static void
lock_windows(void)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_INBOX, INBOX_LOCK_WINDOWS);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

/*
 * The turn of window 0, which has no other until this transaction has ended: who
 * knows of another one then knows of what this one has made, too.
 */
static int32
hold_turn(void)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_INBOX, 0);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	AcceptInvalidationMessages();
	return window_find(NULL, 0)->turn;
}

Datum
event_store_set_dedup_window(PG_FUNCTION_ARGS)
{
	const Store *store;
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};
	int			guc_level;

	guard("event_store.set_dedup_window()");
	store = catalog_inbox();
	if (!PG_ARGISNULL(1))
		check_keep_for(PG_GETARG_INTERVAL_P(1));
	if (!PG_ARGISNULL(2) && (PG_GETARG_INT64(2) < 1 || PG_GETARG_INT64(2) > MAX_COUNT))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("keep_count must be 1 to %lld", (long long) MAX_COUNT)));
	lock_windows();
	values[0] = (Datum) 0;
	for (int i = 1; i <= 2; i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	guc_level = plans_connect();
	if (PG_ARGISNULL(0))
	{
		if (PG_ARGISNULL(1) && PG_ARGISNULL(2))
			(void) plans_execute(&drop_default, NULL, NULL);
		else
			(void) plans_execute(&set_default, values + 1, nulls + 1);
	}
	else
	{
		values[0] = PointerGetDatum(entry_consumer(fcinfo, 0));
		if (plans_execute(&set_window, values, nulls) == 0)
		{
			int32		id = (int32) nextval_internal(catalog_relation("inbox_window_id"), false);
			Oid			saved_user;
			int			saved_context;

			values[3] = Int32GetDatum(id);
			values[4] = Int32GetDatum(hold_turn());
			(void) plans_execute(&add_window, values, nulls);
			GetUserIdAndSecContext(&saved_user, &saved_context);
			SetUserIdAndSecContext(catalog_owner(store),
								   saved_context | SECURITY_LOCAL_USERID_CHANGE |
								   SECURITY_RESTRICTED_OPERATION);
			(void) set_config_option("default_table_access_method", "heap", PGC_USERSET,
									 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
			(void) set_config_option("default_tablespace", "", PGC_USERSET,
									 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
			make_parts(id, text_to_cstring(DatumGetTextPP(values[0])));
			SetUserIdAndSecContext(saved_user, saved_context);
		}
	}
	plans_finish(guc_level);
	CacheInvalidateRelcacheByRelid(store->inbox_window);
	CommandCounterIncrement();
	PG_RETURN_VOID();
}

Datum
event_store_drop_dedup_window(PG_FUNCTION_ARGS)
{
	const Store *store;
	Datum		values[1];
	int			guc_level;
	bool		found;

	guard("event_store.drop_dedup_window()");
	store = catalog_inbox();
	values[0] = PointerGetDatum(entry_consumer(fcinfo, 0));
	lock_windows();
	guc_level = plans_connect();
	found = plans_execute(&drop_window, values, NULL) > 0;
	if (found)
	{
		bool		isnull;
		Datum		id = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
		Oid			saved_user;
		int			saved_context;

		(void) plans_execute(&drop_turn, &id, NULL);
		GetUserIdAndSecContext(&saved_user, &saved_context);
		SetUserIdAndSecContext(catalog_owner(store),
							   saved_context | SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION);
		drop_parts(DatumGetInt32(id));
		SetUserIdAndSecContext(saved_user, saved_context);
	}
	plans_finish(guc_level);
	CacheInvalidateRelcacheByRelid(store->inbox_window);
	CommandCounterIncrement();
	PG_RETURN_BOOL(found);
}

void
window_init(void)
{
	catalog_on_relcache(relcache_callback);
}
