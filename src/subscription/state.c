/*
 * state.c
 *		The rows of subscriptions: what they are, and where they stand; and the
 *		locks of those who work with them.
 *
 * Where a subscription stands in the log is its cursor.  It is written anew with
 * each change, as a row of a higher version, and read from the end of the
 * index: an UPDATE would leave dead rows to be passed over by each reader for as
 * long as any old snapshot is about.  Who writes deletes earlier versions now
 * and then.
 *
 * Locks are heavyweight ones, held to the end of the transaction: the whole
 * subscription in ShareLock by those who work with it, in ExclusiveLock by those
 * who change it; its parts (the cursor, the members, the slots) in
 * ExclusiveLock.  They are taken before what they protect is read, so whoever
 * has waited for a change goes by it.
 *
 * Statements on the tables are run as the owner of the store (common/owner.c);
 * events are read as the caller.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/locks.h"
#include "common/names.h"
#include "common/plans.h"
#include "common/rows.h"
#include "notification/notification.h"
#include "stream/stream.h"
#include "subscription/subscription.h"

/* each so many versions of a cursor the earlier ones are deleted */
#define CLEAN_EVERY		64

static Statement find_id = {
	"SELECT s.id, s.mode = 'ordered' AND s.slots = 1"
	" FROM event_store.subscription AS s WHERE s.name = $1",
	1, {TEXTOID}
};

static Statement read_row = {
	"SELECT s.id, s.name, s.paused, s.mode = 'competing', s.slots, s.wanted_slots, s.priority_key,"
	" s.categories, s.types, s.stream_pattern,"
	" s.max_attempts, extract(epoch FROM s.first_delay)::float8, s.delay_factor,"
	" extract(epoch FROM s.max_delay)::float8, s.jitter, coalesce(s.breaker_failures, 0),"
	" extract(epoch FROM s.breaker_window)::float8,"
	" extract(epoch FROM s.breaker_timeout)::float8, s.breaker_probes, b.state, b.until,"
	" c.version, c.checkpoint, c.replay_until, c.oldest, c.taken, c.taken_at, c.rate, c.poll_size, c.decided,"
	" EXISTS (SELECT FROM event_store.subscription_batch AS x"
	" WHERE x.subscription_id = s.id AND x.first_position >= c.oldest),"
	" EXISTS (SELECT FROM event_store.subscription_batch AS x"
	" WHERE x.subscription_id = s.id AND x.first_position >= c.oldest"
	" AND x.consumer IS NOT NULL AND x.leased_until <= pg_catalog.clock_timestamp()),"
	" EXISTS (SELECT FROM event_store.subscription_failure AS x WHERE x.subscription_id = s.id),"
	" EXISTS (SELECT FROM event_store.subscription_consumer AS x WHERE x.subscription_id = s.id)"
	" FROM event_store.subscription AS s"
	" CROSS JOIN LATERAL (SELECT k.* FROM event_store.subscription_cursor AS k"
	" WHERE k.subscription_id = s.id ORDER BY k.version DESC LIMIT 1) AS c"
	" LEFT JOIN event_store.subscription_breaker AS b ON b.subscription_id = s.id"
	" WHERE s.name = $1",
	1, {TEXTOID}
};

static Statement newest_version = {
	"SELECT k.version FROM event_store.subscription_cursor AS k"
	" WHERE k.subscription_id = $1 ORDER BY k.version DESC LIMIT 1",
	1, {INT4OID}
};

static Statement clean = {
	"DELETE FROM event_store.subscription_cursor AS k"
	" WHERE k.subscription_id = $1 AND k.version < $2",
	2, {INT4OID, INT8OID}
};

static Statement note = {
	"INSERT INTO event_store.subscription_change (subscription_id, change, detail)"
	" VALUES ($1, $2, $3)",
	3, {INT4OID, TEXTOID, TEXTOID}
};

/* the subscription of the last call, which is most often that of the next */
static struct
{
	int32		id;				/* 0: none */
	bool		direct;
	int			len;
	char		name[MAX_NAME_BYTES];
}			last_subscription;

/* ----------------------------------------------------------------
 * Values
 * ----------------------------------------------------------------
 */

/* The name of a subscription, checked. */
text *
state_name_argument(FunctionCallInfo fcinfo, int n)
{
	return input_name_argument(fcinfo, n, "name of a subscription");
}

/* The name of a consumer as rows have it; those without one share the empty one. */
Datum
state_consumer(const Consumer *consumer)
{
	return consumer->name != NULL ? PointerGetDatum(consumer->name) : values_text("");
}

int
state_compare_positions(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return x < y ? -1 : x > y ? 1 : 0;
}

bool
positions_contain(const int64 *positions, int count, int64 position)
{
	return bsearch(&position, positions, count, sizeof(int64), state_compare_positions) != NULL;
}

bool
state_is_decided(const Subscription *subscription, int64 position)
{
	return position <= subscription->checkpoint ||
		positions_contain(subscription->decided, subscription->ndecided, position);
}

void
events_add(EventList *list, int64 position, int64 stream)
{
	if (list->count == list->room)
	{
		list->room = Max(list->room * 2, 64);
		if (list->positions == NULL)
		{
			list->positions = palloc(sizeof(int64) * list->room);
			list->streams = palloc(sizeof(int64) * list->room);
		}
		else
		{
			list->positions = repalloc_huge(list->positions, sizeof(int64) * list->room);
			list->streams = repalloc_huge(list->streams, sizeof(int64) * list->room);
		}
	}
	list->positions[list->count] = position;
	list->streams[list->count++] = stream;
}

/* ----------------------------------------------------------------
 * Locks
 * ----------------------------------------------------------------
 */

/* taken since state_begin_try(); beyond that they are not given back */
#define MAX_TRIED	(MAX_SLOTS + 8)

typedef struct TriedLock
{
	LOCKTAG		tag;
	LOCKMODE	mode;
} TriedLock;

static TriedLock tried[MAX_TRIED];
static int	ntried = -1;		/* -1: nobody tries */

static bool
lock_part(int32 id, int part, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_SUBSCRIPTION, ((uint64) (uint32) id << 32) | (uint32) part);
	if (LockAcquire(&tag, mode, false, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	if (ntried >= 0 && ntried < MAX_TRIED)
	{
		tried[ntried].tag = tag;
		tried[ntried++].mode = mode;
	}
	return true;
}

static void
unlock_part(int32 id, int part, LOCKMODE mode)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_SUBSCRIPTION, ((uint64) (uint32) id << 32) | (uint32) part);
	(void) LockRelease(&tag, mode, false);
	for (int i = ntried - 1; i >= 0; i--)
		if (memcmp(&tried[i].tag, &tag, sizeof(LOCKTAG)) == 0 && tried[i].mode == mode)
		{
			tried[i] = tried[--ntried];
			break;
		}
}

/* From here on locks may be given back. */
void
state_begin_try(void)
{
	ntried = 0;
}

/* After an error. */
void
state_forget_tries(void)
{
	ntried = -1;
}

/*
 * They are kept, or given back: then nothing may have been written.  Those that
 * the transaction had before it has still.
 */
void
state_end_try(bool keep)
{
	if (!keep)
		for (int i = ntried - 1; i >= 0; i--)
			(void) LockRelease(&tried[i].tag, tried[i].mode, false);
	ntried = -1;
}

/* Locks a part of a subscription to the end of the transaction. */
bool
state_lock_part(const Subscription *subscription, int part, bool wait)
{
	return lock_part(subscription->id, part, ExclusiveLock, wait);
}

/*
 * A session that ends marks the subscriptions that it has to write something about,
 * before its transaction lets go of their locks.  An abort releases locks of the
 * session, too, but for those of the method of advisory locks; the mark is one of
 * these, with a key that pg_advisory_lock() cannot make.
 */
static void
set_mark_tag(LOCKTAG *tag, int32 id)
{
	locks_set_tag(tag, LOCK_CLASS_SUBSCRIPTION, ((uint64) (uint32) id << 32) | LOCK_MARK);
	tag->locktag_lockmethodid = USER_LOCKMETHOD;
}

bool
state_mark(int32 id)
{
	LOCKTAG		tag;

	set_mark_tag(&tag, id);
	return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

void
state_unmark(int32 id)
{
	LOCKTAG		tag;

	set_mark_tag(&tag, id);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

/* Has another session marked it?  wait: it has not, any more. */
bool
state_is_marked(int32 id, bool wait)
{
	LOCKTAG		tag;

	set_mark_tag(&tag, id);
	if (LockAcquire(&tag, ShareLock, false, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, ShareLock, false);
	return false;
}

/* The same beside others who do so, and without being given back. */
void
state_share_part(const Subscription *subscription, int part)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_SUBSCRIPTION,
				  ((uint64) (uint32) subscription->id << 32) | (uint32) part);
	(void) LockAcquire(&tag, ShareLock, false, false);
}

/* Gives back what was locked last, if nothing has been done with it. */
void
state_unlock_part(const Subscription *subscription, int part)
{
	unlock_part(subscription->id, part, ExclusiveLock);
}

/* Tries to be the only one who works with a subscription, besides working with it. */
bool
state_lock_whole(const Subscription *subscription)
{
	return lock_part(subscription->id, LOCK_WHOLE, ExclusiveLock, false);
}

void
state_unlock_whole(const Subscription *subscription)
{
	unlock_part(subscription->id, LOCK_WHOLE, ExclusiveLock);
}

/* Has another its cursor locked, but for the worker? */
bool
state_cursor_is_taken(const Subscription *subscription)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_SUBSCRIPTION,
				  ((uint64) (uint32) subscription->id << 32) | LOCK_CURSOR);
	return wake_is_held_by_others(&tag);
}

/* Gives back what state_read() has locked, if nothing has been done with it. */
void
state_give_back(const Subscription *subscription)
{
	if (state_is_direct(subscription))
		unlock_part(subscription->id, LOCK_CURSOR, ExclusiveLock);
	unlock_part(subscription->id, LOCK_WHOLE, ShareLock);
}

/*
 * Are its events taken from the log as they are delivered, by one at a time?
 * Otherwise they are dealt out to slots first.
 */
bool
state_is_direct(const Subscription *subscription)
{
	return !subscription->competing && subscription->slots == 1;
}

/* The slot of a stream, 1 …; the same as in SQL (batch.c, group.c). */
int
state_slot_of(const Subscription *subscription, int64 stream_id)
{
	uint32		hash;

	if (subscription->slots == 1)
		return 1;
	hash = DatumGetUInt32(DirectFunctionCall1(hashint8, Int64GetDatum(stream_id)));
	return 1 + (int) ((hash & PG_INT32_MAX) % subscription->slots);
}

/* ----------------------------------------------------------------
 * Reading and writing
 * ----------------------------------------------------------------
 */

static void
read_result(Subscription *subscription, MemoryContext context)
{
	HeapTuple	row = SPI_tuptable->vals[0];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	MemoryContext saved = MemoryContextSwitchTo(context);
	bool		isnull;
	Datum		value;
	int			n = 0;

#define NEXT (value = SPI_getbinval(row, desc, ++n, &isnull))

	memset(subscription, 0, sizeof(Subscription));
	subscription->id = DatumGetInt32(NEXT);
	NEXT;
	subscription->name = text_to_cstring(DatumGetTextPP(value));
	subscription->paused = DatumGetBool(NEXT);
	subscription->competing = DatumGetBool(NEXT);
	subscription->slots = DatumGetInt32(NEXT);
	NEXT;
	subscription->wanted_slots = isnull ? 0 : DatumGetInt32(value);
	NEXT;
	subscription->priority_key = isnull ? NULL : DatumGetTextPCopy(value);
	NEXT;
	if ((subscription->by_category = !isnull))
		subscription->categories = values_name_list(value);
	NEXT;
	if ((subscription->by_type = !isnull))
		subscription->types = values_name_list(value);
	NEXT;
	subscription->pattern = isnull ? NULL : DatumGetTextPCopy(value);
	subscription->max_attempts = DatumGetInt32(NEXT);
	subscription->first_delay = DatumGetFloat8(NEXT);
	subscription->delay_factor = DatumGetFloat8(NEXT);
	subscription->max_delay = DatumGetFloat8(NEXT);
	subscription->jitter = DatumGetFloat8(NEXT);
	subscription->breaker_failures = DatumGetInt32(NEXT);
	subscription->breaker_window = DatumGetFloat8(NEXT);
	subscription->breaker_timeout = DatumGetFloat8(NEXT);
	subscription->breaker_probes = DatumGetInt32(NEXT);
	NEXT;
	if (!isnull)
	{
		char	   *state = TextDatumGetCString(value);

		subscription->breaker = strcmp(state, "open") == 0 ? BREAKER_OPEN :
			strcmp(state, "half-open") == 0 ? BREAKER_HALF_OPEN : BREAKER_CLOSED;
	}
	NEXT;
	subscription->breaker_until = isnull ? 0 : DatumGetTimestampTz(value);
	subscription->version = DatumGetInt64(NEXT);
	subscription->checkpoint = DatumGetInt64(NEXT);
	subscription->replay_until = DatumGetInt64(NEXT);
	subscription->oldest = DatumGetInt64(NEXT);
	subscription->taken = DatumGetInt64(NEXT);
	subscription->taken_at = DatumGetTimestampTz(NEXT);
	subscription->rate = DatumGetFloat8(NEXT);
	subscription->poll_size = DatumGetInt32(NEXT);
	NEXT;
	subscription->decided = values_read_int64(value, &subscription->ndecided);
	subscription->has_batches = DatumGetBool(NEXT);
	subscription->has_over = DatumGetBool(NEXT);
	subscription->has_failures = DatumGetBool(NEXT);
	subscription->has_consumers = DatumGetBool(NEXT);
	MemoryContextSwitchTo(saved);

#undef NEXT
}

static void
no_subscription(text *name)
{
	last_subscription.id = 0;
	ereport(ERROR,
			(errcode(ERRCODE_VE_NO_SUBSCRIPTION),
			 errmsg("subscription \"%s\" does not exist", text_to_cstring(name))));
}

/* Its id, which the locks are by, and whether it was direct. */
static void
find_subscription(text *name)
{
	int			len = VARSIZE_ANY_EXHDR(name);
	Datum		values[1] = {PointerGetDatum(name)};
	bool		isnull;

	if (last_subscription.id != 0 && last_subscription.len == len &&
		memcmp(last_subscription.name, VARDATA_ANY(name), len) == 0)
		return;
	if (plans_execute(&find_id, values, NULL) == 0)
		no_subscription(name);
	last_subscription.id =
		DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	last_subscription.direct =
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	last_subscription.len = len;
	memcpy(last_subscription.name, VARDATA_ANY(name), len);
}

/*
 * A transaction whose snapshot is older than the last change of the cursor would
 * work beside the effects of who changed it.  The same for what it cannot see
 * at all: the work of others in other slots.
 */
static void
check_snapshot(Subscription *subscription)
{
	Datum		values[1] = {Int32GetDatum(subscription->id)};
	bool		isnull;
	int64		newest;

	if (!state_is_direct(subscription))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a competing subscription, or one with several slots, cannot be worked on in REPEATABLE READ or SERIALIZABLE"),
				 errhint("Use READ COMMITTED.")));
	newest = plans_execute_as_of_now(&newest_version, values) == 0 ? -1 :
		DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (newest != subscription->version)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent update"),
				 errdetail("Subscription \"%s\" has gone on since the snapshot of this transaction.",
						   subscription->name)));
}

/*
 * Reads a subscription, and locks it to the end of the transaction, if wanted:
 * with the cursor, if it is direct.  False if somebody is in the way.  What is
 * read stands in the caller's context.
 */
bool
state_read(text *name, StateLock lock, Subscription *subscription)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[1] = {PointerGetDatum(name)};
	bool		wait = lock != STATE_TRY;
	bool		got = true;
	OwnerSwitch saved;

	owner_begin(&saved);
	if (lock == STATE_LOOK)
	{
		if (plans_execute(&read_row, values, NULL) == 0)
			no_subscription(name);
		read_result(subscription, context);
		owner_end(&saved);
		return true;
	}

	for (;;)
	{
		LOCKMODE	mode = lock == STATE_ALONE ? ExclusiveLock : ShareLock;
		int32		id;
		bool		with_cursor;

		find_subscription(name);
		id = last_subscription.id;
		with_cursor = last_subscription.direct && lock != STATE_ALONE;
		if (!lock_part(id, LOCK_WHOLE, mode, wait))
		{
			got = false;
			break;
		}
		/* who is about to write something about it goes first */
		if (state_is_marked(id, false))
		{
			unlock_part(id, LOCK_WHOLE, mode);
			if (!wait)
			{
				got = false;
				break;
			}
			(void) state_is_marked(id, true);
			continue;
		}
		if (with_cursor && !lock_part(id, LOCK_CURSOR, ExclusiveLock, wait))
		{
			unlock_part(id, LOCK_WHOLE, mode);
			got = false;
			break;
		}
		if (plans_execute(&read_row, values, NULL) > 0)
		{
			read_result(subscription, context);
			last_subscription.direct = state_is_direct(subscription);
			if (subscription->id == id &&
				(with_cursor == last_subscription.direct || lock == STATE_ALONE))
				break;
		}
		/* it is another one now, or there is none, or it has changed */
		if (with_cursor)
			unlock_part(id, LOCK_CURSOR, ExclusiveLock);
		unlock_part(id, LOCK_WHOLE, mode);
		if (SPI_processed == 0 || subscription->id != id)
			last_subscription.id = 0;
	}
	if (got && IsolationUsesXactSnapshot())
		check_snapshot(subscription);
	owner_end(&saved);
	return got;
}

/*
 * Reads again a subscription that is worked with, when one more part of it has
 * been locked.
 */
void
state_read_again(Subscription *subscription)
{
	MemoryContext context = CurrentMemoryContext;
	text	   *name = cstring_to_text(subscription->name);
	Datum		values[1] = {PointerGetDatum(name)};
	OwnerSwitch saved;

	owner_begin(&saved);
	if (plans_execute(&read_row, values, NULL) == 0)
		no_subscription(name);
	read_result(subscription, context);
	owner_end(&saved);
}

/*
 * Writes where a subscription stands, whose cursor is locked, after it has
 * passed some events.
 */
void
state_write(Subscription *subscription, int64 taken)
{
	Datum		values[10];

	subscription->version++;
	if (taken > 0)
	{
		TimestampTz now = GetCurrentTimestamp();

		subscription->rate = values_rate(subscription->rate, subscription->taken_at, now, taken);
		subscription->taken += taken;
		subscription->taken_at = now;
	}
	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(subscription->version);
	values[2] = Int64GetDatum(subscription->checkpoint);
	values[3] = values_int64_array(subscription->decided, subscription->ndecided);
	values[4] = Int64GetDatum(subscription->replay_until);
	values[5] = Int64GetDatum(subscription->oldest);
	values[6] = Int64GetDatum(subscription->taken);
	values[7] = TimestampTzGetDatum(subscription->taken_at);
	values[8] = Float8GetDatum(subscription->rate);
	values[9] = Int32GetDatum(subscription->poll_size);
	rows_insert_small(catalog_consumers()->subscription_cursor, values, NULL);
	plans_writes++;
	CommandCounterIncrement();
	if (subscription->version % CLEAN_EVERY == 0)
	{
		OwnerSwitch saved;

		owner_begin(&saved);
		(void) plans_execute(&clean, values, NULL);
		owner_end(&saved);
	}
}

/* Notes in the history of a subscription what was done to it. */
void
state_note(const Subscription *subscription, const char *change, const char *detail)
{
	Datum		values[3];
	OwnerSwitch saved;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = values_text(change);
	values[2] = detail == NULL ? (Datum) 0 : values_text(detail);
	owner_begin(&saved);
	(void) plans_execute(&note, values, detail == NULL ? "  n" : NULL);
	owner_end(&saved);
}
