/*
 * failure.c
 *		Events that have failed, and those that wait behind them.
 *
 * Where the handling of an event fails it moves into subscription_failure, and
 * the log or the batch that it came from is done with it.  There it is tried
 * again, when it is due, or stays as a dead letter.
 *
 * In an ordered subscription it blocks its stream: events of it that are met
 * later are moved behind it (parked), and earlier ones that were delivered and
 * not decided before it.  So of a stream that has any event here all that are
 * not decided, up to where its slot has come, are here, and their order is that
 * of position.  Only the first of a stream is ever due: when it is decided, the
 * next becomes so.  Where that one has not failed itself, those behind it that
 * have not either may be delivered along with it.
 *
 * A consumer that falls silent leaves us with suspects: any of the events that
 * it had may be what it died of.  Most often it is none of them, so they are
 * delivered together once more.  Those with which a consumer falls silent again
 * are delivered alone, one at a time: the innocent pass, and the one that kills is
 * found, and is a dead letter after as many attempts as any other.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type_d.h"
#include "common/pg_prng.h"
#include "lib/qunique.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "subscription/subscription.h"

/* streams that are blocked are known all, if there are no more than so many */
#define KNOWN_STREAMS	1000

typedef struct BlockedStream
{
	int64		stream;
	bool		blocked;
} BlockedStream;

/* streams of the subscription in hand, as far as they were looked up */
static HTAB *blocked = NULL;
static bool all_known;

static Statement blocked_streams = {
	"SELECT DISTINCT f.stream_id FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 LIMIT $2",
	2, {INT4OID, INT8OID}
};

static Statement is_blocked = {
	"SELECT FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.stream_id = $2 LIMIT 1",
	2, {INT4OID, INT8OID}
};

static Statement park = {
	"INSERT INTO event_store.subscription_failure AS f"
	" (subscription_id, position, stream_id, slot, consumer, leased_until, due, lease, delivered)"
	" SELECT $1, e.position, e.stream, e.slot, $5, $6, $6, $7, $8"
	" FROM unnest($2, $3, $4) AS e (position, stream, slot)",
	8, {INT4OID, INT8ARRAYOID, INT8ARRAYOID, INT4ARRAYOID, TEXTOID, TIMESTAMPTZOID, INTERVALOID,
	BOOLOID}
};

static Statement add = {
	"INSERT INTO event_store.subscription_failure AS f"
	" (subscription_id, position, stream_id, slot, attempts, dead, retry_at, due, error, failed_by,"
	" first_failed_at, failed_at)"
	" SELECT $1, $2, $3, $4, 1, $5, $6, $6, $7, $8, c.now, c.now"
	" FROM (SELECT pg_catalog.clock_timestamp() AS now) AS c",
	8, {INT4OID, INT8OID, INT8OID, INT4OID, BOOLOID, TIMESTAMPTZOID, TEXTOID, TEXTOID}
};

/* what has failed once more, if it is the consumer's */
static Statement find_for_nack = {
	"SELECT f.stream_id, f.attempts FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.position = $2 AND NOT f.dead"
	" AND CASE WHEN f.consumer IS NULL THEN f.due <= pg_catalog.clock_timestamp() OR $4"
	" ELSE f.consumer = $3 END FOR UPDATE",
	4, {INT4OID, INT8OID, TEXTOID, BOOLOID}
};

static Statement fail_again = {
	"UPDATE event_store.subscription_failure AS f SET attempts = $3, dead = $4, suspect = false, delivered = true,"
	" retry_at = $5, due = $5, error = $6, failed_by = coalesce(f.consumer, $7), consumer = NULL,"
	" leased_until = NULL, failed_at = pg_catalog.clock_timestamp(),"
	" first_failed_at = coalesce(f.first_failed_at, pg_catalog.clock_timestamp())"
	" WHERE f.subscription_id = $1 AND f.position = $2",
	7, {INT4OID, INT8OID, INT4OID, BOOLOID, TIMESTAMPTZOID, TEXTOID, TEXTOID}
};

/* what was delivered behind an event of its stream that has failed */
static Statement recall = {
	"UPDATE event_store.subscription_failure AS f SET consumer = NULL, leased_until = NULL, due = NULL"
	" WHERE f.subscription_id = $1 AND f.stream_id = $2 AND f.position > $3"
	" AND (f.consumer IS NOT NULL OR f.due IS NOT NULL)",
	3, {INT4OID, INT8OID, INT8OID}
};

/* only the first of a stream is due … */
static Statement unset_due = {
	"UPDATE event_store.subscription_failure AS f SET due = NULL"
	" WHERE f.subscription_id = $1 AND f.stream_id = ANY ($2) AND f.due IS NOT NULL"
	" AND f.consumer IS NULL AND EXISTS (SELECT FROM event_store.subscription_failure AS e"
	" WHERE e.subscription_id = $1 AND e.stream_id = f.stream_id AND e.position < f.position)",
	2, {INT4OID, INT8ARRAYOID}
};

/*
 * … and that one is, if nobody has it and it is not dead.  The first ones are found
 * before the rest, so that no plan looks for them once for each row.
 */
static Statement set_due = {
	"WITH h AS MATERIALIZED"
	" (SELECT (SELECT e.position FROM event_store.subscription_failure AS e"
	" WHERE e.subscription_id = $1 AND e.stream_id = s.stream_id"
	" ORDER BY e.subscription_id, e.stream_id, e.position LIMIT 1) AS position"
	" FROM pg_catalog.unnest($2) AS s (stream_id))"
	" UPDATE event_store.subscription_failure AS f"
	" SET due = coalesce(f.retry_at, pg_catalog.clock_timestamp())"
	" FROM h WHERE f.subscription_id = $1 AND f.position = h.position AND f.due IS NULL AND NOT f.dead",
	2, {INT4OID, INT8ARRAYOID}
};

/* a suspect is delivered alone: max is max_attempts */
#define IS_ALONE(max) \
"(f.suspect AND (f.attempts >= 2 OR f.attempts + 1 >= " max "))"

static Statement take = {
	"SELECT f.position, f.stream_id, f.attempts, f.suspect, " IS_ALONE("$5")
	" FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.slot = ANY ($2) AND f.due <= pg_catalog.clock_timestamp()"
	" AND f.consumer IS NULL AND NOT f.dead AND f.position <> ALL ($3)"
	" ORDER BY 5 DESC, f.due, f.position LIMIT $4",
	5, {INT4OID, INT4ARRAYOID, INT8ARRAYOID, INT8OID, INT4OID}
};

static Statement lock_one = {
	"SELECT FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.position = $2 AND f.consumer IS NULL AND NOT f.dead"
	" AND f.due <= pg_catalog.clock_timestamp() FOR UPDATE SKIP LOCKED",
	2, {INT4OID, INT8OID}
};

static Statement has_suspect = {
	"SELECT FROM event_store.subscription_failure AS f WHERE f.subscription_id = $1"
	" AND f.due IS NOT NULL AND f.consumer = $2 AND " IS_ALONE("$3"),
	3, {INT4OID, TEXTOID, INT4OID}
};

/*
 * Those behind the first of a stream, and whether they must wait for it: what
 * has failed does, and a suspect behind one that is none.
 */
static Statement behind = {
	"SELECT f.position, f.attempts, f.consumer IS NOT NULL OR f.dead OR " IS_ALONE("$6")
	" OR (f.attempts > 0 AND NOT (f.suspect AND $5))"
	" FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.stream_id = $2 AND f.position > $3"
	" ORDER BY f.position LIMIT $4",
	6, {INT4OID, INT8OID, INT8OID, INT8OID, BOOLOID, INT4OID}
};

static Statement lease = {
	"UPDATE event_store.subscription_failure AS f SET consumer = $3, leased_until = $4, due = $4, delivered = true,"
	" lease = $5 WHERE f.subscription_id = $1 AND f.position = ANY ($2)",
	5, {INT4OID, INT8ARRAYOID, TEXTOID, TIMESTAMPTZOID, INTERVALOID}
};

/*
 * What nobody has under a lease: what was delivered to this transaction, or may
 * have been to another: what is due, and with it those behind it of its stream that
 * have not failed.
 */
static Statement settle = {
	"DELETE FROM event_store.subscription_failure AS f WHERE f.subscription_id = $1"
	" AND f.position = ANY ($2) AND NOT f.dead"
	" AND CASE WHEN f.consumer IS NULL"
	" THEN f.due <= pg_catalog.clock_timestamp() OR f.position = ANY ($4)"
	" OR (f.due IS NULL AND (f.attempts = 0 OR f.suspect) AND NOT EXISTS"
	" (SELECT FROM event_store.subscription_failure AS e WHERE e.subscription_id = $1"
	" AND e.stream_id = f.stream_id AND e.position < f.position"
	" AND NOT (e.position = ANY ($2) AND NOT e.dead AND e.consumer IS NULL"
	" AND (e.due IS NULL OR e.due <= pg_catalog.clock_timestamp()))))"
	" ELSE f.consumer = $3 END"
	" RETURNING f.stream_id, f.position",
	4, {INT4OID, INT8ARRAYOID, TEXTOID, INT8ARRAYOID}
};

static Statement settle_up_to = {
	"DELETE FROM event_store.subscription_failure AS f WHERE f.subscription_id = $1"
	" AND f.position <= $2 AND NOT f.dead"
	" AND CASE WHEN f.consumer IS NULL THEN f.position = ANY ($4)"
	" ELSE f.consumer = $3 AND $3 <> '' END"
	" RETURNING f.stream_id, f.position",
	4, {INT4OID, INT8OID, TEXTOID, INT8ARRAYOID}
};

static Statement slots_of_positions = {
	"SELECT DISTINCT f.slot FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND NOT f.dead"
	" AND CASE WHEN $2 IS NULL THEN f.position <= $3"
	" AND CASE WHEN f.consumer IS NULL THEN f.position = ANY ($5) ELSE f.consumer = $4 END"
	" ELSE f.position = ANY ($2) END ORDER BY 1",
	5, {INT4OID, INT8ARRAYOID, INT8OID, TEXTOID, INT8ARRAYOID}
};

static Statement next_due = {
	"SELECT least("
	"(SELECT min(f.due) FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.due > pg_catalog.clock_timestamp()),"
	" (SELECT min(b.leased_until) FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.first_position >= $2 AND b.consumer IS NOT NULL"
	" AND b.leased_until > pg_catalog.clock_timestamp())),"
	" EXISTS (SELECT FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.first_position >= $2"
	" AND (b.consumer IS NULL OR b.leased_until <= pg_catalog.clock_timestamp()))"
	" OR EXISTS (SELECT FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.due <= pg_catalog.clock_timestamp())",
	2, {INT4OID, INT8OID}
};

#define RECLAIM(locked) \
	"UPDATE event_store.subscription_failure AS f SET consumer = NULL, leased_until = NULL," \
	" suspect = f.suspect OR $3 IS NULL, delivered = true," \
	" attempts = CASE WHEN $3 IS NOT NULL THEN f.attempts" \
	" WHEN $7 AND " IS_ALONE("$4") " THEN f.attempts + 1" \
	" ELSE greatest(f.attempts, least(f.attempts + 1, $4 - 1)) END," \
	" dead = $3 IS NULL AND $7 AND " IS_ALONE("$4") " AND f.attempts + 1 >= $4," \
	" due = NULL, retry_at = NULL, failed_by = f.consumer," \
	" error = CASE WHEN $3 IS NULL THEN 'the consumer fell silent' ELSE f.error END," \
	" first_failed_at = CASE WHEN $3 IS NULL" \
	" THEN coalesce(f.first_failed_at, pg_catalog.clock_timestamp()) ELSE f.first_failed_at END," \
	" failed_at = CASE WHEN $3 IS NULL THEN pg_catalog.clock_timestamp() ELSE f.failed_at END" \
	" FROM (SELECT b.position, b.consumer, b.leased_until, b.leased_until - b.lease AS heard_at" \
	" FROM event_store.subscription_failure AS b" \
	" WHERE b.subscription_id = $1 AND b.slot = ANY ($2)" \
	" AND CASE WHEN $5 IS NOT NULL THEN b.position = ANY ($5) AND b.consumer IS NULL AND NOT b.dead" \
	" ELSE b.due IS NOT NULL AND b.consumer IS NOT NULL" \
	" AND CASE WHEN $6 THEN true WHEN $3 IS NULL THEN b.leased_until <= pg_catalog.clock_timestamp()" \
	" ELSE b.consumer = $3 END END" \
	" FOR UPDATE" locked ") AS o" \
	" WHERE f.subscription_id = $1 AND f.position = o.position" \
	" RETURNING f.stream_id, f.dead, o.consumer, o.leased_until, o.heard_at"

static Statement reclaim = {
	RECLAIM(" SKIP LOCKED"), 7, {INT4OID, INT4ARRAYOID, TEXTOID, INT4OID, INT8ARRAYOID, BOOLOID, BOOLOID}
};

static Statement reclaim_of_leaver = {
	RECLAIM(""), 7, {INT4OID, INT4ARRAYOID, TEXTOID, INT4OID, INT8ARRAYOID, BOOLOID, BOOLOID}
};

static Statement take_back = {
	"INSERT INTO event_store.subscription_failure AS f"
	" (subscription_id, position, stream_id, slot, attempts, dead, suspect, error, failed_by,"
	" first_failed_at, failed_at)"
	" SELECT $1, e.position, e.stream, e.slot, $5, $6, $7,"
	" CASE WHEN $7 THEN 'the consumer fell silent' END, $8,"
	" CASE WHEN $7 THEN pg_catalog.clock_timestamp() END,"
	" CASE WHEN $7 THEN pg_catalog.clock_timestamp() END"
	" FROM unnest($2, $3, $4) AS e (position, stream, slot)",
	8, {INT4OID, INT8ARRAYOID, INT8ARRAYOID, INT4ARRAYOID, INT4OID, BOOLOID, BOOLOID, TEXTOID}
};

/* competing: each is due by itself */
static Statement set_all_due = {
	"UPDATE event_store.subscription_failure AS f"
	" SET due = coalesce(f.retry_at, pg_catalog.clock_timestamp())"
	" WHERE f.subscription_id = $1 AND f.stream_id = ANY ($2) AND f.due IS NULL AND NOT f.dead",
	2, {INT4OID, INT8ARRAYOID}
};

/* ----------------------------------------------------------------
 * What was delivered to this transaction
 * ----------------------------------------------------------------
 */

static void
note_delivered(int32 subscription_id, int64 position, int64 stream)
{
	delivered_note(subscription_id, DELIVERED_FAILURE, position)->stream = stream;
}

static Datum
delivered_positions(int32 subscription_id)
{
	int64	   *positions = palloc(sizeof(int64) *
								   Max(delivered_count(subscription_id, DELIVERED_FAILURE), 1));
	Delivered  *item = NULL;
	int			n = 0;

	while ((item = delivered_next(item, subscription_id, DELIVERED_FAILURE)) != NULL)
		positions[n++] = item->position;
	return values_int64_array(positions, n);
}

static bool
was_delivered(int32 subscription_id, int64 position)
{
	return delivered_find(subscription_id, DELIVERED_FAILURE, position) != NULL;
}

/* An event counts as delivered no more, nor do those of its stream behind it. */
static void
recall_delivered(int32 subscription_id, int64 position, int64 stream, bool those_behind)
{
	Delivered  *item = NULL;
	Delivered  *before = NULL;

	while ((item = delivered_next(before, subscription_id, DELIVERED_FAILURE)) != NULL)
	{
		if (item->stream == stream &&
			(item->position == position || (those_behind && item->position > position)))
			delivered_remove(item); /* the next one stands there now */
		else
			before = item;
	}
}

/* ----------------------------------------------------------------
 * Which streams are blocked
 * ----------------------------------------------------------------
 */

/* Begins to work with a subscription: nothing is known of its streams. */
void
failure_begin(Subscription *subscription)
{
	HASHCTL		control;
	Datum		values[2];
	OwnerSwitch saved;
	uint64		n;

	blocked = NULL;
	all_known = true;
	/* where slots are locked one by one, that was read before they were */
	if (subscription->competing ||
		(state_is_direct(subscription) && !subscription->has_failures))
		return;
	control.keysize = sizeof(int64);
	control.entrysize = sizeof(BlockedStream);
	control.hcxt = CurrentMemoryContext;
	blocked = hash_create("event_store blocked streams", 64, &control,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(KNOWN_STREAMS + 1);
	owner_begin(&saved);
	n = plans_execute(&blocked_streams, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int64		stream = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
														 SPI_tuptable->tupdesc, 1, &isnull));
		BlockedStream *entry = hash_search(blocked, &stream, HASH_ENTER, NULL);

		entry->blocked = true;
	}
	owner_end(&saved);
	all_known = n <= KNOWN_STREAMS;
	subscription->has_failures = n > 0;
	if (n == 0)
		blocked = NULL;
}

bool
failure_blocks(Subscription *subscription, int64 stream)
{
	BlockedStream *entry;
	Datum		values[2];
	OwnerSwitch saved;
	bool		found;

	if (blocked == NULL)
		return false;
	entry = hash_search(blocked, &stream, all_known ? HASH_FIND : HASH_ENTER, &found);
	if (entry == NULL)
		return false;
	if (!found)
	{
		values[0] = Int32GetDatum(subscription->id);
		values[1] = Int64GetDatum(stream);
		owner_begin(&saved);
		entry->blocked = plans_execute(&is_blocked, values, NULL) > 0;
		owner_end(&saved);
	}
	return entry->blocked;
}

/* ----------------------------------------------------------------
 * Coming in
 * ----------------------------------------------------------------
 */

static Datum
slots_of(const Subscription *subscription, const EventList *events)
{
	int		   *slots = palloc(sizeof(int) * Max(events->count, 1));

	for (int i = 0; i < events->count; i++)
		slots[i] = state_slot_of(subscription, events->streams[i]);
	return values_int32_array(slots, events->count);
}

/* Sees to it that the first of each of these streams is due, and no other. */
static void
set_heads(Subscription *subscription, const int64 *streams, int count, bool came_in)
{
	Datum		values[2];
	int64	   *distinct;

	if (count == 0)
		return;
	distinct = palloc(sizeof(int64) * count);
	memcpy(distinct, streams, sizeof(int64) * count);
	qsort(distinct, count, sizeof(int64), state_compare_positions);
	values[0] = Int32GetDatum(subscription->id);
	values[1] = values_int64_array(distinct, (int) qunique(distinct, count, sizeof(int64), state_compare_positions));
	if (subscription->competing)
	{
		(void) plans_execute(&set_all_due, values, NULL);
		return;
	}
	if (came_in)
		(void) plans_execute(&unset_due, values, NULL);
	(void) plans_execute(&set_due, values, NULL);
}

/*
 * Puts events behind others of their streams that have failed, or that will be
 * put there in this call.  holder: they are still out, under the lease of this
 * one.
 */
void
failure_park(Subscription *subscription, const EventList *events, const Consumer *holder,
			 ParkedEvent parked)
{
	Datum		values[8];
	char		nulls[9] = "        ";
	OwnerSwitch saved;

	if (events->count == 0)
		return;
	values[0] = Int32GetDatum(subscription->id);
	values[1] = values_int64_array(events->positions, events->count);
	values[2] = values_int64_array(events->streams, events->count);
	values[3] = slots_of(subscription, events);
	values[4] = values[5] = values[6] = (Datum) 0;
	nulls[4] = nulls[5] = nulls[6] = 'n';
	if (holder != NULL)
	{
		values[4] = state_consumer(holder);
		values[5] = TimestampTzGetDatum(holder->until);
		values[6] = IntervalPGetDatum(unconstify(Interval *, holder->lease));
		nulls[4] = nulls[5] = ' ';
		nulls[6] = holder->lease == NULL ? 'n' : ' ';
	}
	values[7] = BoolGetDatum(holder != NULL || parked != PARKED_UNSEEN);
	owner_begin(&saved);
	(void) plans_execute(&park, values, nulls);
	/* each stream has a first one, which is due, whatever has become of the others */
	if (!subscription->competing)
		set_heads(subscription, events->streams, events->count, true);
	owner_end(&saved);
	for (int i = 0; i < events->count && parked == PARKED_IN_HAND; i++)
		note_delivered(subscription->id, events->positions[i], events->streams[i]);
	subscription->has_failures = true;
}

/* When an event that has failed so often is tried again. */
static TimestampTz
retry_time(const Subscription *subscription, int attempts, const Interval *retry_after)
{
	TimestampTz now = GetCurrentTimestamp();
	double		delay;

	if (retry_after == NULL && subscription->first_delay == 0)
		return now;
	if (retry_after != NULL)
		return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(now),
													   IntervalPGetDatum(unconstify(Interval *, retry_after))));
	delay = subscription->first_delay * pow(subscription->delay_factor, attempts - 1);
	if (isnan(delay) || delay > Max(subscription->max_delay, subscription->first_delay))
		delay = Max(subscription->max_delay, subscription->first_delay);
	delay *= 1 + subscription->jitter * (2 * pg_prng_double(&pg_global_prng_state) - 1);
	return now + (int64) (delay * USECS_PER_SEC);
}

/* An event has failed for the first time; returns whether it is dead. */
bool
failure_add(Subscription *subscription, int64 position, int64 stream, const char *error,
			const Interval *retry_after, const Consumer *consumer)
{
	bool		dead = subscription->max_attempts <= 1;
	char		nulls[9] = "        ";
	Datum		values[8];
	OwnerSwitch saved;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(position);
	values[2] = Int64GetDatum(stream);
	values[3] = Int32GetDatum(state_slot_of(subscription, stream));
	values[4] = BoolGetDatum(dead);
	values[5] = TimestampTzGetDatum(retry_time(subscription, 1, retry_after));
	nulls[5] = dead ? 'n' : ' ';
	values[6] = values_text(error);
	values[7] = consumer->name == NULL ? (Datum) 0 : PointerGetDatum(consumer->name);
	nulls[7] = consumer->name == NULL ? 'n' : ' ';
	owner_begin(&saved);
	(void) plans_execute(&add, values, nulls);
	if (!subscription->competing)
		set_heads(subscription, &stream, 1, true);
	owner_end(&saved);
	subscription->has_failures = true;
	return dead;
}

/* One that had failed before has failed again.  False if it is not there. */
bool
failure_again(Subscription *subscription, int64 position, const char *error,
			  const Interval *retry_after, const Consumer *consumer, bool *dead)
{
	char		nulls[8] = "       ";
	bool		found;
	Datum		values[7];
	OwnerSwitch saved;

	owner_begin(&saved);
	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(position);
	values[2] = state_consumer(consumer);
	values[3] = BoolGetDatum(was_delivered(subscription->id, position));
	found = plans_execute(&find_for_nack, values, NULL) > 0;
	if (found)
	{
		HeapTuple	row = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		int64		stream = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
		int			attempts = DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull)) + 1;

		*dead = attempts >= subscription->max_attempts;
		values[2] = Int32GetDatum(attempts);
		values[3] = BoolGetDatum(*dead);
		values[4] = TimestampTzGetDatum(retry_time(subscription, attempts, retry_after));
		nulls[4] = *dead ? 'n' : ' ';
		values[5] = values_text(error);
		values[6] = consumer->name == NULL ? (Datum) 0 : PointerGetDatum(consumer->name);
		nulls[6] = consumer->name == NULL ? 'n' : ' ';
		(void) plans_execute(&fail_again, values, nulls);
		recall_delivered(subscription->id, position, stream, !subscription->competing);
		if (!subscription->competing)
		{
			values[1] = Int64GetDatum(stream);
			values[2] = Int64GetDatum(position);
			(void) plans_execute(&recall, values, NULL);
			set_heads(subscription, &stream, 1, true);
		}
	}
	owner_end(&saved);
	return found;
}

/*
 * Takes back what a consumer had under a lease: it fell silent, or it leaves of
 * its own accord, which counts for nothing.  alone: it had nothing else.  Returns
 * how many of the events are dead letters now.
 */
int
failure_take_back(Subscription *subscription, const EventList *events, bool silent,
				  bool alone, text *consumer)
{
	bool		dead = silent && alone && subscription->max_attempts <= 1;
	Datum		values[8];
	OwnerSwitch saved;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = values_int64_array(events->positions, events->count);
	values[2] = values_int64_array(events->streams, events->count);
	values[3] = slots_of(subscription, events);
	values[4] = Int32GetDatum(!silent ? 0 : alone ? 1 : Min(1, subscription->max_attempts - 1));
	values[5] = BoolGetDatum(dead);
	values[6] = BoolGetDatum(silent);
	values[7] = PointerGetDatum(consumer);
	owner_begin(&saved);
	(void) plans_execute(&take_back, values, NULL);
	set_heads(subscription, events->streams, events->count, true);
	owner_end(&saved);
	subscription->has_failures = true;
	if (state_is_direct(subscription))
		state_write(subscription, 0);
	return dead ? events->count : 0;
}

/*
 * The same for what had failed before, and was out under a lease again; given_up:
 * or delivered to a transaction whose session ends in the middle of it.
 */
static int
reclaim_failed(Subscription *subscription, const int *slots, int nslots, text *leaving,
			   bool given_up, bool all, bool alone, List **silences)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[7];
	char		nulls[8] = "       ";
	OwnerSwitch saved;
	uint64		n;
	int64	   *streams;
	int			dead = 0;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = values_int32_array(slots, nslots);
	values[2] = PointerGetDatum(leaving);
	nulls[2] = leaving == NULL ? 'n' : ' ';
	values[3] = Int32GetDatum(subscription->max_attempts);
	values[4] = given_up ? delivered_positions(subscription->id) : (Datum) 0;
	nulls[4] = given_up ? ' ' : 'n';
	values[5] = BoolGetDatum(all);
	values[6] = BoolGetDatum(alone);
	owner_begin(&saved);
	n = plans_execute(leaving == NULL ? &reclaim : &reclaim_of_leaver, values, nulls);
	streams = MemoryContextAlloc(context, sizeof(int64) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext spi;
		text	   *consumer;
		TimestampTz until;
		Datum		heard_at;
		bool		is_dead;
		bool		isnull;

		streams[i] = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
		is_dead = DatumGetBool(SPI_getbinval(row, desc, 2, &isnull));
		dead += is_dead;
		if (leaving != NULL || given_up)
			continue;
		spi = MemoryContextSwitchTo(context);
		consumer = DatumGetTextPCopy(SPI_getbinval(row, desc, 3, &isnull));
		until = DatumGetTimestampTz(SPI_getbinval(row, desc, 4, &isnull));
		heard_at = SPI_getbinval(row, desc, 5, &isnull);
		breaker_add_silence(silences, consumer, until,
							isnull ? until : DatumGetTimestampTz(heard_at), is_dead ? 1 : 0);
		MemoryContextSwitchTo(spi);
	}
	set_heads(subscription, streams, (int) n, true);
	owner_end(&saved);
	if (n > 0 && state_is_direct(subscription))
		state_write(subscription, 0);
	return dead;
}

void
failure_reclaim(Subscription *subscription, const int *slots, int nslots, text *leaving, bool all,
				List **silences)
{
	(void) reclaim_failed(subscription, slots, nslots, leaving, false, all, true, silences);
}

/*
 * What was delivered to this transaction, and not decided, whose session ends; others:
 * it had so many other events.  Returns how many there are; so many are dead now.
 */
int
failure_give_up(Subscription *subscription, int others, int *dead)
{
	int		   *slots = palloc(sizeof(int) * subscription->slots);
	int			nslots = 0;
	int			count = delivered_count(subscription->id, DELIVERED_FAILURE);

	*dead = 0;
	if (count == 0)
		return 0;
	for (int slot = 1; slot <= subscription->slots; slot++)
		if (subscription->competing || state_is_direct(subscription) ||
			state_lock_part(subscription, LOCK_SLOT + slot, false))
			slots[nslots++] = slot;
	*dead = reclaim_failed(subscription, slots, nslots, NULL, true, false, count + others == 1,
						   NULL);
	return count;
}

/* ----------------------------------------------------------------
 * Going out
 * ----------------------------------------------------------------
 */

/*
 * Takes what is due in some slots, which are locked: the retries are in the
 * caller's context, ascending.  alone: there is one, and nothing may be delivered
 * with it.
 */
int
failure_take(Subscription *subscription, const int *slots, int nslots, int max_count,
			 const Consumer *consumer, Retry **retries, bool *alone)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[6];
	OwnerSwitch saved;
	SPITupleTable *table;
	int			found;
	int			count = 0;
	int			room = Min(max_count, 10000);
	int64	   *positions;
	int64	   *streams = palloc(sizeof(int64) * room);
	bool		no_suspects = false;

	*alone = false;
	*retries = palloc(sizeof(Retry) * room);
	values[0] = Int32GetDatum(subscription->id);
	values[1] = values_int32_array(slots, nslots);
	values[2] = delivered_positions(subscription->id);
	values[3] = Int64GetDatum(room);
	values[4] = Int32GetDatum(subscription->max_attempts);
	owner_begin(&saved);
	/* nor does a transaction that has one */
	for (Delivered *item = NULL;
		 (item = delivered_next(item, subscription->id, DELIVERED_FAILURE)) != NULL;)
		*alone |= item->alone;
	if (!*alone && (consumer->name != NULL || consumer->leases))
	{
		Datum		keys[3];

		/* who has a suspect in hand gets nothing else with it */
		keys[0] = Int32GetDatum(subscription->id);
		keys[1] = state_consumer(consumer);
		keys[2] = Int32GetDatum(subscription->max_attempts);
		if (plans_execute(&has_suspect, keys, NULL) > 0)
		{
			/* those without a name are many, so they only get no other suspect */
			if (consumer->name != NULL)
				*alone = true;
			else
				no_suspects = true;
		}
	}
	found = *alone ? 0 : (int) plans_execute(&take, values, NULL);
	table = SPI_tuptable;
	for (int i = 0; i < found && count < room; i++)
	{
		HeapTuple	row = table->vals[i];
		bool		isnull;
		int64		position = DatumGetInt64(SPI_getbinval(row, table->tupdesc, 1, &isnull));
		int64		stream = DatumGetInt64(SPI_getbinval(row, table->tupdesc, 2, &isnull));
		int			attempts = DatumGetInt32(SPI_getbinval(row, table->tupdesc, 3, &isnull));
		bool		suspect = DatumGetBool(SPI_getbinval(row, table->tupdesc, 4, &isnull));
		bool		by_itself = DatumGetBool(SPI_getbinval(row, table->tupdesc, 5, &isnull));

		if (by_itself && no_suspects)
			continue;
		/* and who has anything else in hand is to be rid of that first */
		if (by_itself &&
			(delivered_any(subscription->id) ||
			 (consumer->name != NULL && batch_leased(subscription, consumer->name, true) > 0)))
		{
			*alone = true;
			break;
		}
		/* without an order others may have taken it just now */
		if (subscription->competing)
		{
			values[1] = Int64GetDatum(position);
			if (plans_execute(&lock_one, values, NULL) == 0)
				continue;
		}
		(*retries)[count].position = position;
		streams[count] = stream;
		(*retries)[count++].attempt = attempts + 1;
		if (by_itself)
		{
			*alone = true;
			break;
		}
		if ((attempts > 0 && !suspect) || subscription->competing || count == room)
			continue;
		values[1] = Int64GetDatum(stream);
		values[2] = Int64GetDatum(position);
		values[3] = Int64GetDatum(room - count);
		values[4] = BoolGetDatum(suspect);
		values[5] = Int32GetDatum(subscription->max_attempts);
		(void) plans_execute(&behind, values, NULL);
		for (uint64 k = 0; k < SPI_processed; k++)
		{
			row = SPI_tuptable->vals[k];
			if (DatumGetBool(SPI_getbinval(row, SPI_tuptable->tupdesc, 3, &isnull)))
				break;
			streams[count] = stream;
			(*retries)[count].position =
				DatumGetInt64(SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &isnull));
			(*retries)[count++].attempt =
				DatumGetInt32(SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull)) + 1;
		}
	}
	if (count > 0 && consumer->leases)
	{
		positions = palloc(sizeof(int64) * count);
		for (int i = 0; i < count; i++)
			positions[i] = (*retries)[i].position;
		values[0] = Int32GetDatum(subscription->id);
		values[1] = values_int64_array(positions, count);
		values[2] = state_consumer(consumer);
		values[3] = TimestampTzGetDatum(consumer->until);
		values[4] = IntervalPGetDatum(unconstify(Interval *, consumer->lease));
		(void) plans_execute(&lease, values, NULL);
	}
	owner_end(&saved);
	MemoryContextSwitchTo(context);
	if (!consumer->leases)
		for (int i = 0; i < count; i++)
		{
			note_delivered(subscription->id, (*retries)[i].position, streams[i]);
			delivered_find(subscription->id, DELIVERED_FAILURE,
						   (*retries)[i].position)->alone = *alone;
		}
	return count;
}

/*
 * Events are done: those at the given positions, or those up to one that were
 * delivered.  Returns how many there were.
 */
int64
failure_settle(Subscription *subscription, const int64 *positions, int count, int64 up_to,
			   const Consumer *consumer)
{
	Datum		values[4];
	OwnerSwitch saved;
	int64	   *streams;
	uint64		n;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = positions == NULL ? Int64GetDatum(up_to) : values_int64_array(positions, count);
	values[2] = state_consumer(consumer);
	values[3] = delivered_positions(subscription->id);
	owner_begin(&saved);
	n = plans_execute(positions == NULL ? &settle_up_to : &settle, values, NULL);
	streams = palloc(sizeof(int64) * Max(n, 1));
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;

		streams[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
												 1, &isnull));
	}
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Delivered  *item;

		/* what is done is no reason to die of any more */
		item = delivered_find(subscription->id, DELIVERED_FAILURE,
							  DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
														  SPI_tuptable->tupdesc, 2, &isnull)));
		if (item != NULL)
			delivered_remove(item);
	}
	if (!subscription->competing)
		set_heads(subscription, streams, (int) n, false);
	owner_end(&saved);
	return (int64) n;
}

/* Locks the slots of what failure_settle() may take away. */
void
failure_lock_slots(Subscription *subscription, const int64 *positions, int count, int64 up_to,
				   const Consumer *consumer)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[5];
	OwnerSwitch saved;
	int		   *slots;
	int			n;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = positions == NULL ? (Datum) 0 : values_int64_array(positions, count);
	values[2] = Int64GetDatum(up_to);
	values[3] = state_consumer(consumer);
	values[4] = delivered_positions(subscription->id);
	owner_begin(&saved);
	n = (int) plans_execute(&slots_of_positions, values, positions == NULL ? " n   " : NULL);
	slots = MemoryContextAlloc(context, sizeof(int) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		slots[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
											   1, &isnull));
	}
	owner_end(&saved);
	for (int i = 0; i < n; i++)
		(void) state_lock_part(subscription, LOCK_SLOT + slots[i], true);
	pfree(slots);
}

/*
 * When something will happen by itself: an event will be due, or a lease ends; 0:
 * never.  And is anything there now, for whomever?
 */
TimestampTz
failure_next_due(Subscription *subscription, bool *queued)
{
	Datum		values[2] = {Int32GetDatum(subscription->id), Int64GetDatum(subscription->oldest)};
	OwnerSwitch saved;
	bool		isnull;
	Datum		due;

	owner_begin(&saved);
	(void) plans_execute(&next_due, values, NULL);
	*queued = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	due = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	if (isnull)
		due = TimestampTzGetDatum(0);
	owner_end(&saved);
	return DatumGetTimestampTz(due);
}

/* The first of each of these streams is due, now that something is gone or back. */
void
failure_set_heads(Subscription *subscription, const int64 *streams, int count)
{
	OwnerSwitch saved;

	owner_begin(&saved);
	set_heads(subscription, streams, count, true);
	owner_end(&saved);
}
