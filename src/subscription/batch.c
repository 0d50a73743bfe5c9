/*
 * batch.c
 *		Events that are dealt out to slots, and events out under a lease.
 *
 * The events of a subscription with several slots, or of a competing one, are
 * dealt out before they are delivered: whoever finds nothing to deliver reads a
 * good deal of the log once, positions and streams only, and puts down which
 * event belongs to which slot, some hundred positions to a row.  Each consumer
 * reads the events of its own rows then, and pays for no other.  The cursor
 * moves past what is dealt: from then on these rows answer for it.
 *
 * A row without a consumer is queued; it is delivered to a transaction that has
 * its slot (ordered) or the row itself (competing) locked.  A row with a
 * consumer is out under a lease, which lasts until its time; acknowledging some of
 * what the consumer has renews it, and so does a heartbeat.  What is acknowledged is taken out of the row, and
 * the last one takes the row.
 *
 * What was delivered from queued rows to this transaction is kept in the
 * backend, for the next poll goes on from there (delivered.c).
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type_d.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "subscription/subscription.h"

/* events that are dealt at once: so many polls of each slot, in bounds */
#define DEAL_POLLS		4

/* rows of the queue of ordered slots have at least so many */
#define MIN_BATCH		20

/* a row, as read */
typedef struct Batch
{
	int			slot;
	int			priority;
	text	   *consumer;		/* under whose lease; NULL: queued */
	TimestampTz until;
	Interval   *lease;
	EventList	events;
} Batch;

static Statement insert = {
	"INSERT INTO event_store.subscription_batch (subscription_id, slot, priority, first_position,"
	" last_position, positions, streams, consumer, delivered_at, leased_until, lease)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8,"
	" CASE WHEN $11 THEN pg_catalog.clock_timestamp() END, $9, $10)",
	11, {INT4OID, INT4OID, INT4OID, INT8OID, INT8OID, INT8ARRAYOID, INT8ARRAYOID, TEXTOID,
	TIMESTAMPTZOID, INTERVALOID, BOOLOID}
};

#define BATCH_COLUMNS \
"b.first_position, b.slot, b.priority, b.consumer, b.leased_until, b.positions, b.streams, b.lease"

static Statement queued_in_order = {
	"SELECT q.* FROM pg_catalog.unnest($2) AS s (slot), LATERAL ("
	"SELECT " BATCH_COLUMNS " FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.slot = s.slot AND b.priority = 0 AND b.consumer IS NULL"
	" AND b.first_position >= $5 AND b.first_position <> ALL ($3)"
	" ORDER BY b.first_position LIMIT $4) AS q"
	" ORDER BY q.first_position LIMIT $4",
	5, {INT4OID, INT4ARRAYOID, INT8ARRAYOID, INT8OID, INT8OID}
};

static Statement queued_for_anyone = {
	"SELECT " BATCH_COLUMNS " FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.slot = 1 AND b.consumer IS NULL"
	" AND b.first_position >= $4 AND b.first_position <> ALL ($2)"
	" ORDER BY b.priority DESC, b.first_position LIMIT $3 FOR UPDATE SKIP LOCKED",
	4, {INT4OID, INT8ARRAYOID, INT8OID, INT8OID}
};

static Statement lease_rows = {
	"UPDATE event_store.subscription_batch AS b SET consumer = $3, leased_until = $4, lease = $5,"
	" delivered_at = pg_catalog.clock_timestamp()"
	" WHERE b.subscription_id = $1 AND b.first_position = ANY ($2)",
	5, {INT4OID, INT8ARRAYOID, TEXTOID, TIMESTAMPTZOID, INTERVALOID}
};

/* the first row of a competing subscription, if it is not too much */
#define FIRST_ROW \
" WHERE b.subscription_id = $1 AND b.first_position =" \
" (SELECT k.first_position FROM event_store.subscription_batch AS k" \
" WHERE k.subscription_id = $1 AND k.slot = 1 AND k.consumer IS NULL" \
" AND k.first_position >= $4 ORDER BY k.priority DESC, k.first_position LIMIT 1" \
" FOR UPDATE SKIP LOCKED)" \
" AND cardinality(b.positions) <= $5 RETURNING " BATCH_COLUMNS

static Statement lease_first = {
	"UPDATE event_store.subscription_batch AS b SET consumer = $2, leased_until = $3, lease = $6,"
	" delivered_at = pg_catalog.clock_timestamp()" FIRST_ROW,
	6, {INT4OID, TEXTOID, TIMESTAMPTZOID, INT8OID, INT4OID, INTERVALOID}
};

static Statement delete_first = {
	"DELETE FROM event_store.subscription_batch AS b" FIRST_ROW,
	5, {INT4OID, TEXTOID, TIMESTAMPTZOID, INT8OID, INT4OID}
};

static Statement shorten_row = {
	"UPDATE event_store.subscription_batch AS b SET first_position = $3, last_position = $4,"
	" positions = $5, streams = $6"
	" WHERE b.subscription_id = $1 AND b.first_position = $2",
	6, {INT4OID, INT8OID, INT8OID, INT8OID, INT8ARRAYOID, INT8ARRAYOID}
};

static Statement delete_rows = {
	"DELETE FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.first_position = ANY ($2)",
	2, {INT4OID, INT8ARRAYOID}
};

/* Rows of a consumer with nothing above a position. */
static Statement delete_whole = {
	"DELETE FROM event_store.subscription_batch AS b WHERE b.subscription_id = $1"
	" AND b.consumer IS NOT NULL AND b.consumer = $2"
	" AND b.first_position >= $4 AND b.last_position <= $3 RETURNING cardinality(b.positions)",
	4, {INT4OID, TEXTOID, INT8OID, INT8OID}
};

/* Those that a consumer (NULL: any) has, between two positions. */
static Statement leased_rows = {
	"SELECT " BATCH_COLUMNS " FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.consumer IS NOT NULL"
	" AND ($2 IS NULL OR b.consumer = $2) AND b.first_position <= $4 AND b.last_position >= $3"
	" AND b.first_position >= $5 ORDER BY b.first_position FOR UPDATE",
	5, {INT4OID, TEXTOID, INT8OID, INT8OID, INT8OID}
};

static Statement rows_by_key = {
	"SELECT " BATCH_COLUMNS " FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.first_position = ANY ($2) AND b.consumer IS NULL"
	" ORDER BY b.first_position FOR UPDATE",
	2, {INT4OID, INT8ARRAYOID}
};

/* Queued ones that have any of some positions. */
#define QUEUED_WITH_POSITIONS \
" FROM event_store.subscription_batch AS b WHERE b.subscription_id = $1 AND b.consumer IS NULL" \
" AND b.first_position <= $4 AND b.last_position >= $3 AND b.positions && $2" \
" AND b.first_position >= $5"

static Statement rows_by_positions = {
	"SELECT " BATCH_COLUMNS QUEUED_WITH_POSITIONS " ORDER BY b.first_position FOR UPDATE",
	5, {INT4OID, INT8ARRAYOID, INT8OID, INT8OID, INT8OID}
};

static Statement rows_left = {
	"SELECT " BATCH_COLUMNS QUEUED_WITH_POSITIONS
	" ORDER BY b.first_position FOR UPDATE SKIP LOCKED",
	5, {INT4OID, INT8ARRAYOID, INT8OID, INT8OID, INT8OID}
};

static Statement slots_of_queued = {
	"SELECT DISTINCT b.slot" QUEUED_WITH_POSITIONS " ORDER BY 1",
	5, {INT4OID, INT8ARRAYOID, INT8OID, INT8OID, INT8OID}
};

static Statement leased_of_stream = {
	"SELECT " BATCH_COLUMNS " FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.consumer IS NOT NULL AND b.slot = $2"
	" AND $3 = ANY (b.streams) AND b.first_position >= $4"
	" ORDER BY b.first_position FOR UPDATE",
	4, {INT4OID, INT4OID, INT8OID, INT8OID}
};

static Statement queued_of_stream = {
	"SELECT " BATCH_COLUMNS " FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.consumer IS NULL AND b.slot = $2 AND b.priority = 0"
	" AND b.first_position < $3 AND $4 = ANY (b.streams) AND b.first_position >= $5"
	" ORDER BY b.first_position FOR UPDATE",
	5, {INT4OID, INT4OID, INT8OID, INT8OID, INT8OID}
};

static Statement slots_by_position = {
	"SELECT b.slot FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.first_position <= $2 AND b.last_position >= $2"
	" AND b.first_position >= $4"
	" AND $2 = ANY (b.positions) AND (b.consumer IS NULL OR b.consumer = $3)"
	" UNION ALL SELECT f.slot FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.position = $2",
	4, {INT4OID, INT8OID, TEXTOID, INT8OID}
};

#define OVER_ROWS(locked) \
	"DELETE FROM event_store.subscription_batch AS d WHERE d.subscription_id = $1" \
	" AND d.first_position IN (SELECT b.first_position FROM event_store.subscription_batch AS b" \
	" WHERE b.subscription_id = $1 AND b.first_position >= $4 AND b.consumer IS NOT NULL" \
	" AND b.slot = ANY ($2) AND CASE WHEN $5 THEN true" \
	" WHEN $3 IS NOT NULL THEN b.consumer = $3" \
	" WHEN b.leased_until <= pg_catalog.clock_timestamp() THEN true" \
	" ELSE $6 AND EXISTS (SELECT FROM event_store.subscription_batch AS o" \
	" WHERE o.subscription_id = $1 AND o.first_position >= $4 AND o.consumer = b.consumer" \
	" AND o.slot = b.slot AND o.leased_until <= pg_catalog.clock_timestamp()) END" \
	" FOR UPDATE" locked ")" \
	" RETURNING d.positions, d.streams, d.consumer, d.leased_until, d.delivered_at"

static Statement over_rows = {
	OVER_ROWS(" SKIP LOCKED"), 6, {INT4OID, INT4ARRAYOID, TEXTOID, INT8OID, BOOLOID, BOOLOID}
};

/* what a consumer has who leaves is waited for */
static Statement rows_of_leaver = {
	OVER_ROWS(""), 6, {INT4OID, INT4ARRAYOID, TEXTOID, INT8OID, BOOLOID, BOOLOID}
};

/*
 * Where another consumer has something: under a lease, or ($4) under one that is
 * over, which nobody could take back.  Or this one, of the latter.
 */
static Statement slots_in_use = {
	"SELECT DISTINCT b.slot FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.first_position >= $3 AND b.consumer IS NOT NULL"
	" AND CASE WHEN b.leased_until > pg_catalog.clock_timestamp() THEN b.consumer IS DISTINCT FROM $2"
	" ELSE $4 END"
	" UNION SELECT b.slot FROM event_store.subscription_failure AS b"
	" WHERE b.subscription_id = $1 AND b.due IS NOT NULL AND b.consumer IS NOT NULL"
	" AND CASE WHEN b.leased_until > pg_catalog.clock_timestamp() THEN b.consumer IS DISTINCT FROM $2"
	" ELSE $4 END",
	4, {INT4OID, TEXTOID, INT8OID, BOOLOID}
};

static Statement slots_held = {
	"SELECT b.slot FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.first_position >= $3 AND b.consumer = $2"
	" UNION SELECT f.slot FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.consumer = $2 ORDER BY 1",
	3, {INT4OID, TEXTOID, INT8OID}
};

static Statement leased_count = {
	"SELECT coalesce((SELECT sum(cardinality(b.positions)) FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.first_position >= $3 AND b.consumer IS NOT NULL"
	" AND ($2 IS NULL OR b.consumer = $2)"
	" AND ($4 OR b.leased_until > pg_catalog.clock_timestamp())), 0)::int8"
	" + (SELECT count(*) FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.due IS NOT NULL AND f.consumer IS NOT NULL"
	" AND ($2 IS NULL OR f.consumer = $2)"
	" AND ($4 OR f.leased_until > pg_catalog.clock_timestamp()))",
	4, {INT4OID, TEXTOID, INT8OID, BOOLOID}
};

/* what is over stays so; what a transaction of the consumer's own is at is not waited for */
static Statement extend_batches = {
	"UPDATE event_store.subscription_batch AS b"
	" SET leased_until = greatest(b.leased_until, pg_catalog.clock_timestamp() + coalesce($4, b.lease))"
	" WHERE b.subscription_id = $1 AND b.first_position IN (SELECT k.first_position"
	" FROM event_store.subscription_batch AS k WHERE k.subscription_id = $1"
	" AND k.first_position >= $3 AND k.consumer IS NOT NULL AND k.consumer = $2"
	" AND k.leased_until > pg_catalog.clock_timestamp()"
	" AND ($4 IS NOT NULL OR k.leased_until < pg_catalog.clock_timestamp() + k.lease * 0.75)"
	" FOR UPDATE SKIP LOCKED)",
	4, {INT4OID, TEXTOID, INT8OID, INTERVALOID}
};

static Statement extend_failures = {
	"UPDATE event_store.subscription_failure AS f"
	" SET (leased_until, due) = (SELECT t.until, t.until FROM (SELECT"
	" greatest(f.leased_until, pg_catalog.clock_timestamp() + coalesce($4, f.lease))) AS t (until))"
	" WHERE f.subscription_id = $1 AND f.position IN (SELECT k.position"
	" FROM event_store.subscription_failure AS k WHERE k.subscription_id = $1"
	" AND k.due IS NOT NULL AND k.consumer = $2 AND $3 IS NOT NULL"
	" AND k.leased_until > pg_catalog.clock_timestamp()"
	" AND ($4 IS NOT NULL OR k.leased_until < pg_catalog.clock_timestamp() + k.lease * 0.75)"
	" FOR UPDATE SKIP LOCKED)",
	4, {INT4OID, TEXTOID, INT8OID, INTERVALOID}
};

static Statement oldest_row = {
	"SELECT b.first_position FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.first_position >= $2 ORDER BY b.first_position LIMIT 1",
	2, {INT4OID, INT8OID}
};

/*
 * The same hash as state_slot_of().  What was seen and what was not come into rows
 * of their own, which don't overlap: n - m is another number for each run of one kind.
 */
static Statement deal_anew = {
	"WITH gone AS (DELETE FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.consumer IS NULL"
	" RETURNING b.positions, b.streams, b.delivered_at IS NOT NULL AS seen),"
	" one AS (SELECT e.position, e.stream, gone.seen,"
	" 1 + (pg_catalog.hashint8(e.stream) & 2147483647) % $2 AS slot"
	" FROM gone, unnest(gone.positions, gone.streams) AS e (position, stream)),"
	" numbered AS (SELECT one.*,"
	" pg_catalog.row_number() OVER (PARTITION BY one.slot ORDER BY one.position) - 1 AS n,"
	" pg_catalog.row_number() OVER (PARTITION BY one.slot, one.seen ORDER BY one.position) - 1 AS m"
	" FROM one)"
	" SELECT x.slot, pg_catalog.array_agg(x.position ORDER BY x.position),"
	" pg_catalog.array_agg(x.stream ORDER BY x.position), x.seen"
	" FROM numbered AS x GROUP BY x.slot, x.seen, x.n - x.m, x.n / $3",
	3, {INT4OID, INT4OID, INT8OID}
};

/* ----------------------------------------------------------------
 * What was delivered to this transaction
 * ----------------------------------------------------------------
 */

static Delivered *
find_delivered(int32 subscription_id, int64 first_position)
{
	return delivered_find(subscription_id, DELIVERED_BATCH, first_position);
}

static void
note_delivered(int32 subscription_id, const EventList *row, int64 delivered_to)
{
	Delivered  *d = delivered_note(subscription_id, DELIVERED_BATCH, row->positions[0]);

	d->delivered_to = delivered_to;
	d->last_position = row->positions[row->count - 1];
}

/* Keys of rows that were delivered: all, or those that have nothing left. */
static Datum
delivered_keys(int32 subscription_id, bool as_a_whole, int *count)
{
	int64	   *keys = palloc(sizeof(int64) *
							  Max(delivered_count(subscription_id, DELIVERED_BATCH), 1));
	Delivered  *d = NULL;
	int			n = 0;

	while ((d = delivered_next(d, subscription_id, DELIVERED_BATCH)) != NULL)
		if (!as_a_whole || d->delivered_to >= d->last_position)
			keys[n++] = d->position;
	*count = n;
	return values_int64_array(keys, n);
}

/* ----------------------------------------------------------------
 * Rows
 * ----------------------------------------------------------------
 */

/* seen: they have been delivered, or passed over. */
static void
insert_batch(const Subscription *subscription, int slot, int priority,
			 const EventList *events, int first, int count, const Consumer *consumer, bool seen)
{
	Datum		values[11];
	char		nulls[12] = "           ";

	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int32GetDatum(slot);
	values[2] = Int32GetDatum(priority);
	values[3] = Int64GetDatum(events->positions[first]);
	values[4] = Int64GetDatum(events->positions[first + count - 1]);
	values[5] = values_int64_array(events->positions + first, count);
	values[6] = values_int64_array(events->streams + first, count);
	if (consumer != NULL)
	{
		values[7] = state_consumer(consumer);
		values[8] = TimestampTzGetDatum(consumer->until);
		values[9] = IntervalPGetDatum(unconstify(Interval *, consumer->lease));
		nulls[9] = consumer->lease == NULL ? 'n' : ' ';
	}
	else
	{
		values[7] = values[8] = values[9] = (Datum) 0;
		nulls[7] = nulls[8] = nulls[9] = 'n';
	}
	values[10] = BoolGetDatum(seen);
	(void) plans_execute(&insert, values, nulls);
}

/* The rows that a statement of BATCH_COLUMNS has returned. */
static Batch *
read_batches(MemoryContext context, int *count)
{
	MemoryContext saved = MemoryContextSwitchTo(context);
	SPITupleTable *table = SPI_tuptable;
	Batch	   *batches;

	*count = (int) SPI_processed;
	batches = palloc0(sizeof(Batch) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		HeapTuple	row = table->vals[i];
		Datum		value;
		bool		isnull;
		int			n;

		batches[i].slot = DatumGetInt32(SPI_getbinval(row, table->tupdesc, 2, &isnull));
		batches[i].priority = DatumGetInt32(SPI_getbinval(row, table->tupdesc, 3, &isnull));
		value = SPI_getbinval(row, table->tupdesc, 4, &isnull);
		batches[i].consumer = isnull ? NULL : DatumGetTextPCopy(value);
		value = SPI_getbinval(row, table->tupdesc, 5, &isnull);
		batches[i].until = isnull ? 0 : DatumGetTimestampTz(value);
		batches[i].events.positions =
			values_read_int64(SPI_getbinval(row, table->tupdesc, 6, &isnull), &n);
		batches[i].events.streams =
			values_read_int64(SPI_getbinval(row, table->tupdesc, 7, &isnull), &n);
		batches[i].events.count = n;
		value = SPI_getbinval(row, table->tupdesc, 8, &isnull);
		if (!isnull)
		{
			batches[i].lease = palloc(sizeof(Interval));
			memcpy(batches[i].lease, DatumGetIntervalP(value), sizeof(Interval));
		}
	}
	MemoryContextSwitchTo(saved);
	return batches;
}

/* Leaves in a row what is given; nothing: the row goes. */
static void
write_rest(const Subscription *subscription, const Batch *batch, const EventList *rest)
{
	Datum		values[6];

	values[0] = Int32GetDatum(subscription->id);
	if (rest->count == 0)
	{
		values[1] = values_int64_array(batch->events.positions, 1);
		(void) plans_execute(&delete_rows, values, NULL);
		return;
	}
	values[1] = Int64GetDatum(batch->events.positions[0]);
	values[2] = Int64GetDatum(rest->positions[0]);
	values[3] = Int64GetDatum(rest->positions[rest->count - 1]);
	values[4] = values_int64_array(rest->positions, rest->count);
	values[5] = values_int64_array(rest->streams, rest->count);
	(void) plans_execute(&shorten_row, values, NULL);
}

/* The row has another key now, or is gone. */
static void
move_delivered(int32 subscription_id, const Batch *batch, const EventList *rest)
{
	Delivered  *d = find_delivered(subscription_id, batch->events.positions[0]);

	if (d == NULL)
		return;
	if (rest->count == 0)
		delivered_remove(d);
	else
	{
		d->position = rest->positions[0];
		d->last_position = rest->positions[rest->count - 1];
	}
}

/* ----------------------------------------------------------------
 * Dealing
 * ----------------------------------------------------------------
 */

typedef struct Dealt
{
	int			priority;
	int64		position;
	int64		stream;
} Dealt;

static int
compare_dealt(const void *a, const void *b)
{
	const Dealt *x = a;
	const Dealt *y = b;

	if (x->priority != y->priority)
		return x->priority > y->priority ? -1 : 1;
	return x->position < y->position ? -1 : x->position > y->position ? 1 : 0;
}

/* The number at the key of the metadata, or 0. */
static int
priority_of(const Subscription *subscription, Datum metadata, bool isnull)
{
	JsonbValue	value;
	double		number;

	if (isnull ||
		getKeyJsonValueFromContainer(&DatumGetJsonbP(metadata)->root,
									 VARDATA_ANY(subscription->priority_key),
									 VARSIZE_ANY_EXHDR(subscription->priority_key),
									 &value) == NULL ||
		value.type != jbvNumeric)
		return 0;
	number = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
												NumericGetDatum(value.val.numeric)));
	if (isnan(number))
		return 0;
	return (int) rint(Max(Min(number, 1e9), -1e9));
}

/*
 * Finds out where the rows begin now, for the next write of the cursor, which is
 * locked.  Rows come in behind the cursor only, and those there are never get a
 * lower key, so none will ever begin before that.
 */
static void
note_oldest(Subscription *subscription)
{
	Datum		values[2];
	bool		isnull;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(subscription->oldest);
	if (plans_execute(&oldest_row, values, NULL) > 0)
		subscription->oldest = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
														   SPI_tuptable->tupdesc, 1, &isnull));
	else
		subscription->oldest = subscription->checkpoint + 1;
}

/*
 * Deals out what follows the cursor, for polls of so many events.  Returns how many
 * that are: none if there is nothing, or if another is just doing it.
 */
int64
batch_deal(Subscription *subscription, int max_count)
{
	int64		wanted = Min((int64) max_count * subscription->slots * DEAL_POLLS, DEAL_MAX);
	int			size = Min(max_count, MAX_BATCH);
	int64		count = 0;
	int64		last;
	int64		mark;
	SubscriptionScan *scan;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	OwnerSwitch saved;
	EventList  *lists = NULL;
	Dealt	   *dealt = NULL;

	if (!state_lock_part(subscription, LOCK_CURSOR, false))
		return 0;
	state_read_again(subscription);
	wanted = Max(wanted, DEAL_MIN);
	if (!subscription->competing)
	{
		size = Max(size, MIN_BATCH);
		lists = palloc0(sizeof(EventList) * (subscription->slots + 1));
	}
	else
		dealt = palloc(sizeof(Dealt) * wanted);

	last = subscription->checkpoint;
	scan = subscription_scan_open(subscription, subscription->checkpoint, wanted,
								  subscription->priority_key == NULL);
	while (subscription_scan_next(scan, values, nulls))
	{
		int64		stream = subscription_scan_stream(scan);

		last = DatumGetInt64(values[RE_POSITION]);
		if (subscription->competing)
		{
			dealt[count].priority = subscription->priority_key == NULL ? 0 :
				priority_of(subscription, values[RE_METADATA], nulls[RE_METADATA]);
			dealt[count].position = last;
			dealt[count].stream = stream;
		}
		else
			events_add(&lists[state_slot_of(subscription, stream)], last, stream);
		count++;
	}
	mark = subscription_scan_close(scan);
	if (count < wanted)
		last = Max(mark, last);	/* there was no more of interest up to the mark */
	if (count == 0 && last - subscription->checkpoint < DEAL_MAX)
	{
		state_unlock_part(subscription, LOCK_CURSOR);
		return 0;
	}

	owner_begin(&saved);
	note_oldest(subscription);
	if (subscription->competing)
	{
		EventList	events = {0};

		qsort(dealt, count, sizeof(Dealt), compare_dealt);
		for (int i = 0; i < count; i++)
		{
			events_add(&events, dealt[i].position, dealt[i].stream);
			if (events.count == size || i + 1 == count ||
				dealt[i + 1].priority != dealt[i].priority)
			{
				insert_batch(subscription, 1, dealt[i].priority, &events, 0, events.count, NULL,
							 false);
				events.count = 0;
			}
		}
	}
	else
		for (int slot = 1; slot <= subscription->slots; slot++)
			for (int i = 0; i < lists[slot].count; i += size)
				insert_batch(subscription, slot, 0, &lists[slot], i,
							 Min(size, lists[slot].count - i), NULL, false);
	owner_end(&saved);

	/* what was decided ahead of the cursor is passed */
	while (subscription->ndecided > 0 && subscription->decided[0] <= last)
	{
		subscription->decided++;
		subscription->ndecided--;
	}
	subscription->checkpoint = last;
	subscription->poll_size = Min(max_count, DEAL_MAX);
	state_write(subscription, count);
	subscription->has_batches = true;
	return count;
}

/*
 * Puts open events of the log into the queue of the one slot; the cursor, which is
 * locked, passes them in the caller's next write.  What was delivered of them
 * stays so.
 */
void
batch_queue(Subscription *subscription, const EventList *events)
{
	int64		delivered_to = delivered_log(subscription->id);
	OwnerSwitch saved;

	owner_begin(&saved);
	note_oldest(subscription);
	for (int i = 0; i < events->count; i += MAX_BATCH)
	{
		int			count = Min(MAX_BATCH, events->count - i);
		EventList	row = {0};

		insert_batch(subscription, 1, 0, events, i, count, NULL, true);
		row.count = count;
		row.positions = events->positions + i;
		while (count > 0 && row.positions[count - 1] > delivered_to)
			count--;
		if (count > 0)
			note_delivered(subscription->id, &row, row.positions[count - 1]);
	}
	owner_end(&saved);
	subscription->has_batches |= events->count > 0;
}

/*
 * Deals what is queued out to another number of slots.  Nobody else works with
 * the subscription, and nothing is out under a lease.
 */
void
batch_deal_anew(Subscription *subscription, int slots)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[3];
	OwnerSwitch saved;
	SPITupleTable *table;
	uint64		n;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int32GetDatum(slots);
	values[2] = Int64GetDatum(MAX_BATCH);
	owner_begin(&saved);
	n = plans_execute(&deal_anew, values, NULL);
	table = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext spi = MemoryContextSwitchTo(context);
		EventList	events = {0};
		bool		isnull;
		int			slot;

		slot = DatumGetInt32(SPI_getbinval(table->vals[i], table->tupdesc, 1, &isnull));
		events.positions = values_read_int64(SPI_getbinval(table->vals[i], table->tupdesc, 2, &isnull),
											 &events.count);
		events.streams = values_read_int64(SPI_getbinval(table->vals[i], table->tupdesc, 3, &isnull),
										   &events.count);
		insert_batch(subscription, slot, 0, &events, 0, events.count, NULL,
					 DatumGetBool(SPI_getbinval(table->vals[i], table->tupdesc, 4, &isnull)));
		MemoryContextSwitchTo(spi);
	}
	owner_end(&saved);
}

/* ----------------------------------------------------------------
 * Taking
 * ----------------------------------------------------------------
 */

/*
 * Adds up to max_count queued events of some slots, which are locked, to a list:
 * in order within each slot, or of priority.  With a lease they are the
 * consumer's from now on; at once, they are decided; otherwise they count as
 * delivered to this transaction.
 */
void
batch_take(Subscription *subscription, const int *slots, int nslots, int max_count,
		   const Consumer *consumer, EventList *taken)
{
	MemoryContext context = CurrentMemoryContext;
	int			got = 0;
	int			rows = subscription->competing ? 1 : 1 + max_count / MAX_BATCH;
	OwnerSwitch saved;

	owner_begin(&saved);
	/* most often a row is what a poll wants: the one before it has dealt it so */
	while (subscription->competing && (consumer->leases || consumer->at_once) && got < max_count &&
		   delivered_count(subscription->id, DELIVERED_BATCH) == 0)
	{
		Datum		values[6];
		MemoryContext spi;
		Batch	   *batch;
		int			n;

		values[0] = Int32GetDatum(subscription->id);
		values[1] = state_consumer(consumer);
		values[2] = TimestampTzGetDatum(consumer->until);
		values[3] = Int64GetDatum(subscription->oldest);
		values[4] = Int32GetDatum(max_count - got);
		values[5] = IntervalPGetDatum(unconstify(Interval *, consumer->lease));
		(void) plans_execute(consumer->leases ? &lease_first : &delete_first, values, NULL);
		batch = read_batches(context, &n);
		if (n == 0)
			break;
		spi = MemoryContextSwitchTo(context);
		for (int k = 0; k < batch->events.count; k++)
			events_add(taken, batch->events.positions[k], batch->events.streams[k]);
		got += batch->events.count;
		MemoryContextSwitchTo(spi);
	}
	while (got < max_count)
	{
		Datum		values[5];
		Batch	   *batches;
		int64	   *whole;
		int			nwhole = 0;
		int			nkeys;
		int			n;
		int			last_size = 1;

		values[0] = Int32GetDatum(subscription->id);
		if (subscription->competing)
		{
			values[1] = delivered_keys(subscription->id, true, &nkeys);
			values[2] = Int64GetDatum(rows);
			values[3] = Int64GetDatum(subscription->oldest);
			(void) plans_execute(&queued_for_anyone, values, NULL);
		}
		else
		{
			values[1] = values_int32_array(slots, nslots);
			values[2] = delivered_keys(subscription->id, true, &nkeys);
			values[3] = Int64GetDatum(rows);
			values[4] = Int64GetDatum(subscription->oldest);
			(void) plans_execute(&queued_in_order, values, NULL);
		}
		batches = read_batches(context, &n);
		if (n == 0)
			break;
		whole = palloc(sizeof(int64) * n);
		for (int i = 0; i < n && got < max_count; i++)
		{
			EventList  *events = &batches[i].events;
			Delivered  *d = find_delivered(subscription->id, events->positions[0]);
			MemoryContext spi = MemoryContextSwitchTo(context);
			int			first = 0;
			int			count;

			while (d != NULL && first < events->count && events->positions[first] <= d->delivered_to)
				first++;
			count = Min(events->count - first, max_count - got);
			if (count <= 0)
			{
				MemoryContextSwitchTo(spi);
				if (d != NULL)
					d->last_position = d->delivered_to;
				continue;
			}
			for (int k = first; k < first + count; k++)
				events_add(taken, events->positions[k], events->streams[k]);
			got += count;
			last_size = events->count;
			if (!consumer->leases && !consumer->at_once)
			{
				note_delivered(subscription->id, events, events->positions[first + count - 1]);
				for (int k = first; k < first + count; k++)
					delivered_give(subscription->id, events->positions[k]);
			}
			else if (first == 0 && count == events->count)
				whole[nwhole++] = events->positions[0];
			else
			{
				/* what is left stays in the row, under another key */
				EventList	rest = {0};

				for (int k = 0; k < events->count; k++)
					if (k < first || k >= first + count)
						events_add(&rest, events->positions[k], events->streams[k]);
				write_rest(subscription, &batches[i], &rest);
				move_delivered(subscription->id, &batches[i], &rest);
				if (consumer->leases)
					insert_batch(subscription, batches[i].slot, batches[i].priority, events,
								 first, count, consumer, true);
			}
			MemoryContextSwitchTo(spi);
		}
		if (nwhole > 0)
		{
			values[1] = values_int64_array(whole, nwhole);
			values[2] = state_consumer(consumer);
			values[3] = TimestampTzGetDatum(consumer->until);
			values[4] = IntervalPGetDatum(unconstify(Interval *, consumer->lease));
			(void) plans_execute(consumer->leases ? &lease_rows : &delete_rows, values, NULL);
		}
		/* rows may be small: others have dealt them for smaller polls */
		rows = Max(1, (max_count - got) / last_size);
		rows = Min(rows, 100);
	}
	owner_end(&saved);
}

/* Puts events straight from the log under a lease, of the one slot. */
void
batch_lease(Subscription *subscription, const EventList *events, const Consumer *consumer)
{
	OwnerSwitch saved;

	owner_begin(&saved);
	note_oldest(subscription);
	for (int i = 0; i < events->count; i += MAX_BATCH)
		insert_batch(subscription, 1, 0, events, i, Min(MAX_BATCH, events->count - i), consumer,
					 true);
	owner_end(&saved);
	subscription->has_batches = true;
}

/* ----------------------------------------------------------------
 * Settling
 * ----------------------------------------------------------------
 */

/*
 * Takes the given positions, or all up to one, out of rows; returns how many.
 * done: those that wait behind a failed one of their stream do not count.
 */
static int64
settle_rows(Subscription *subscription, MemoryContext context, const int64 *positions,
			int count, int64 up_to, bool done)
{
	int			n;
	Batch	   *batches = read_batches(context, &n);
	MemoryContext spi = MemoryContextSwitchTo(context);
	int64	   *whole = palloc(sizeof(int64) * Max(n, 1));
	int			nwhole = 0;
	int64		found = 0;

	for (int i = 0; i < n; i++)
	{
		EventList  *events = &batches[i].events;
		bool		leased = batches[i].consumer != NULL;
		Delivered  *d = leased ? NULL : find_delivered(subscription->id, events->positions[0]);
		EventList	rest = {0};

		for (int k = 0; k < events->count; k++)
		{
			bool		hit = positions != NULL ?
				positions_contain(positions, count, events->positions[k]) :
				events->positions[k] <= up_to &&
				(leased || (d != NULL && events->positions[k] <= d->delivered_to));

			if (!hit || (done && failure_blocks(subscription, events->streams[k])))
				events_add(&rest, events->positions[k], events->streams[k]);
		}
		if (rest.count == events->count)
			continue;
		found += events->count - rest.count;
		if (rest.count == 0)
			whole[nwhole++] = events->positions[0];
		else
			write_rest(subscription, &batches[i], &rest);
		if (!leased)
			move_delivered(subscription->id, &batches[i], &rest);
	}
	if (nwhole > 0)
	{
		Datum		values[2];

		values[0] = Int32GetDatum(subscription->id);
		values[1] = values_int64_array(whole, nwhole);
		(void) plans_execute(&delete_rows, values, NULL);
	}
	MemoryContextSwitchTo(spi);
	return found;
}

/* Locks the slots of queued events, so that nobody else has them delivered. */
static void
lock_queued(Subscription *subscription, Datum *values)
{
	int		   *slots;
	int			n;

	n = (int) plans_execute(&slots_of_queued, values, NULL);
	slots = palloc(sizeof(int) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		slots[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
											   1, &isnull));
	}
	for (int i = 0; i < n; i++)
		(void) state_lock_part(subscription, LOCK_SLOT + slots[i], true);
}

/*
 * Events are done, or (done is false) they were put elsewhere: those at the
 * given positions, or those up to one that were delivered.  Returns how many
 * there were.
 */
int64
batch_settle(Subscription *subscription, const int64 *positions, int count, int64 up_to,
			 const Consumer *consumer, bool done)
{
	MemoryContext context = CurrentMemoryContext;
	int64		low = positions == NULL ? 0 : count == 0 ? 1 : positions[0];
	int64		high = positions == NULL ? up_to : count == 0 ? 0 : positions[count - 1];
	int64		found = 0;
	int			nkeys;
	Datum		values[5];
	OwnerSwitch saved;

	if (low > high)
		return 0;
	owner_begin(&saved);
	values[0] = Int32GetDatum(subscription->id);
	values[4] = Int64GetDatum(subscription->oldest);
	/* most often it is all that a consumer has in its rows */
	if (done && positions == NULL && consumer->name != NULL && !subscription->has_failures)
	{
		values[1] = state_consumer(consumer);
		values[2] = Int64GetDatum(high);
		values[3] = Int64GetDatum(subscription->oldest);
		(void) plans_execute(&delete_whole, values, NULL);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool		isnull;

			found += DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
												 1, &isnull));
		}
	}
	values[1] = delivered_keys(subscription->id, false, &nkeys);
	if (nkeys > 0 && (positions == NULL || found < count))
	{
		(void) plans_execute(&rows_by_key, values, NULL);
		found += settle_rows(subscription, context, positions, count, up_to, done);
	}
	/* without a name they are nobody's in particular: then "up to" would mean others', too */
	if (positions == NULL ? consumer->name != NULL : found < count)
	{
		values[1] = state_consumer(consumer);
		values[2] = Int64GetDatum(low);
		values[3] = Int64GetDatum(high);
		(void) plans_execute(&leased_rows, values, NULL);
		found += settle_rows(subscription, context, positions, count, up_to, done);
	}
	/*
	 * What is queued is open, though it was not delivered to this transaction; but
	 * who has a name means what it was given.
	 */
	if (positions != NULL && consumer->name == NULL && found < count)
	{
		values[1] = values_int64_array(positions, count);
		values[2] = Int64GetDatum(low);
		values[3] = Int64GetDatum(high);
		if (!subscription->competing && !state_is_direct(subscription))
			lock_queued(subscription, values);
		(void) plans_execute(&rows_by_positions, values, NULL);
		found += settle_rows(subscription, context, positions, count, up_to, done);
	}
	owner_end(&saved);
	return found;
}

/* The slot of an event that is dealt, leased or has failed; 0: it is none of that. */
int
batch_slot_of(Subscription *subscription, int64 position, const Consumer *consumer)
{
	Datum		values[4];
	OwnerSwitch saved;
	bool		isnull;
	int			slot = 0;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(position);
	values[2] = state_consumer(consumer);
	values[3] = Int64GetDatum(subscription->oldest);
	owner_begin(&saved);
	if (plans_execute(&slots_by_position, values, NULL) > 0)
		slot = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
										   &isnull));
	owner_end(&saved);
	return slot;
}

/* Was an event of a row delivered to this transaction? */
static bool
in_hand(int32 subscription_id, int64 position)
{
	Delivered  *d = NULL;

	while ((d = delivered_next(d, subscription_id, DELIVERED_BATCH)) != NULL)
		if (d->position <= position && position <= d->delivered_to)
			return true;
	return false;
}

/*
 * Takes an event out, which has failed: of what was delivered to this transaction,
 * of what the consumer has under a lease, or of what is queued, in a slot that is
 * locked.  False if it is not there.
 */
bool
batch_remove(Subscription *subscription, int64 position, const Consumer *consumer,
			 int64 *stream)
{
	MemoryContext context = CurrentMemoryContext;
	bool		found = false;
	Datum		values[5];
	OwnerSwitch saved;

	values[0] = Int32GetDatum(subscription->id);
	values[2] = values[3] = Int64GetDatum(position);
	values[4] = Int64GetDatum(subscription->oldest);
	owner_begin(&saved);
	for (int round = 0; round < 2 && !found; round++)
	{
		Batch	   *batches;
		MemoryContext spi;
		int			n;

		/* who has a name means what it was given */
		if (round == 1 && consumer->name != NULL && !in_hand(subscription->id, position))
			break;
		values[1] = round == 0 ? state_consumer(consumer) : values_int64_array(&position, 1);
		(void) plans_execute(round == 0 ? &leased_rows : &rows_by_positions, values, NULL);
		batches = read_batches(context, &n);
		spi = MemoryContextSwitchTo(context);
		for (int i = 0; i < n && !found; i++)
		{
			EventList  *events = &batches[i].events;
			EventList	rest = {0};

			for (int k = 0; k < events->count; k++)
			{
				if (events->positions[k] != position)
				{
					events_add(&rest, events->positions[k], events->streams[k]);
					continue;
				}
				found = true;
				*stream = events->streams[k];
			}
			if (found)
			{
				write_rest(subscription, &batches[i], &rest);
				if (batches[i].consumer == NULL)
					move_delivered(subscription->id, &batches[i], &rest);
			}
		}
		MemoryContextSwitchTo(spi);
	}
	owner_end(&saved);
	return found;
}

/*
 * Takes out what was delivered of a stream of which an event has failed, and puts
 * it where that is: earlier events, which may still be decided by who has them,
 * and later ones, which must wait.  Of an ordered subscription, whose slot, or
 * cursor, is locked.
 */
void
batch_park_stream(Subscription *subscription, int64 stream, int64 position)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[5];
	OwnerSwitch saved;

	values[0] = Int32GetDatum(subscription->id);
	values[4] = Int64GetDatum(subscription->oldest);
	owner_begin(&saved);
	for (int round = 0; round < 3; round++)
	{
		Batch	   *batches;
		MemoryContext spi;
		int			n;

		if (round == 2)
		{
			/* queued, in front of it: it must not be retried before they are done */
			values[1] = Int32GetDatum(state_slot_of(subscription, stream));
			values[2] = Int64GetDatum(position);
			values[3] = Int64GetDatum(stream);
			(void) plans_execute(&queued_of_stream, values, NULL);
		}
		else if (round == 0)
		{
			values[1] = delivered_keys(subscription->id, false, &n);
			if (n == 0)
				continue;
			(void) plans_execute(&rows_by_key, values, NULL);
		}
		else
		{
			values[1] = Int32GetDatum(state_slot_of(subscription, stream));
			values[2] = Int64GetDatum(stream);
			values[3] = Int64GetDatum(subscription->oldest);
			(void) plans_execute(&leased_of_stream, values, NULL);
		}
		batches = read_batches(context, &n);
		spi = MemoryContextSwitchTo(context);
		for (int i = 0; i < n; i++)
		{
			EventList  *events = &batches[i].events;
			Delivered  *d = batches[i].consumer != NULL ? NULL :
				find_delivered(subscription->id, events->positions[0]);
			int64		delivered_to = d == NULL ? 0 : d->delivered_to;
			EventList	rest = {0};
			EventList	earlier = {0};
			EventList	in_hand = {0};
			EventList	later = {0};
			EventList	later_seen = {0};
			Consumer	holder = {0};

			for (int k = 0; k < events->count; k++)
			{
				int64		here = events->positions[k];

				events_add(events->streams[k] != stream ? &rest :
						   here <= position ? (here <= delivered_to ? &in_hand : &earlier) :
						   batches[i].consumer != NULL || here <= delivered_to ? &later_seen : &later,
						   here, events->streams[k]);
			}
			if (rest.count == events->count)
				continue;
			write_rest(subscription, &batches[i], &rest);
			if (batches[i].consumer == NULL)
				move_delivered(subscription->id, &batches[i], &rest);
			holder.name = batches[i].consumer;
			holder.until = batches[i].until;
			holder.lease = batches[i].lease;
			failure_park(subscription, &earlier, holder.name == NULL ? NULL : &holder,
						 PARKED_UNSEEN);
			failure_park(subscription, &in_hand, NULL, PARKED_IN_HAND);
			failure_park(subscription, &later_seen, NULL, PARKED_SEEN);
			failure_park(subscription, &later, NULL, PARKED_UNSEEN);
		}
		MemoryContextSwitchTo(spi);
	}
	owner_end(&saved);
}

/* Takes events out, which wait from now on behind one that has failed. */
void
batch_drop_parked(Subscription *subscription, const EventList *events, const Consumer *consumer)
{
	int64	   *positions = palloc(sizeof(int64) * Max(events->count, 1));

	memcpy(positions, events->positions, sizeof(int64) * events->count);
	qsort(positions, events->count, sizeof(int64), state_compare_positions);
	(void) batch_settle(subscription, positions, events->count, 0, consumer, false);
	pfree(positions);
}

/* ----------------------------------------------------------------
 * Leases
 * ----------------------------------------------------------------
 */

/* The slots that a statement has returned, in the caller's context. */
static int
read_slots(MemoryContext context, int **slots)
{
	int			count = (int) SPI_processed;

	*slots = MemoryContextAlloc(context, sizeof(int) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		bool		isnull;

		(*slots)[i] = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
												  1, &isnull));
	}
	return count;
}

/*
 * The slots where something is out with another consumer; over: and where a lease
 * is over.
 */
int
batch_slots_in_use(Subscription *subscription, const Consumer *except, bool over, int **slots)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[4];
	OwnerSwitch saved;
	int			count;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = except->name == NULL ? (Datum) 0 : PointerGetDatum(except->name);
	values[2] = Int64GetDatum(subscription->oldest);
	values[3] = BoolGetDatum(over);
	owner_begin(&saved);
	(void) plans_execute(&slots_in_use, values, except->name == NULL ? " n  " : NULL);
	count = read_slots(context, slots);
	owner_end(&saved);
	return count;
}

/* The slots where a consumer has something under a lease, ascending. */
int
batch_slots_held(Subscription *subscription, text *consumer, int **slots)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[3];
	OwnerSwitch saved;
	int			count;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = PointerGetDatum(consumer);
	values[2] = Int64GetDatum(subscription->oldest);
	owner_begin(&saved);
	(void) plans_execute(&slots_held, values, NULL);
	count = read_slots(context, slots);
	owner_end(&saved);
	return count;
}

/*
 * How many events are out under leases, of a consumer (NULL: all); over: also under
 * those that are over, and have not been taken back.
 */
int64
batch_leased(Subscription *subscription, text *consumer, bool over)
{
	Datum		values[4];
	OwnerSwitch saved;
	bool		isnull;
	int64		count;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = PointerGetDatum(consumer);
	values[2] = Int64GetDatum(subscription->oldest);
	values[3] = BoolGetDatum(over);
	owner_begin(&saved);
	(void) plans_execute(&leased_count, values, consumer == NULL ? " n  " : NULL);
	count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	owner_end(&saved);
	if (subscription->leased_elsewhere != NULL)
		count += subscription->leased_elsewhere(consumer, over);
	return count;
}

/* A consumer has decided something: it is at the rest of what it has. */
void
batch_renew(Subscription *subscription, const Consumer *consumer)
{
	Datum		values[4];
	OwnerSwitch saved;

	if (consumer->name == NULL || !(subscription->has_batches || subscription->has_failures))
		return;
	values[0] = Int32GetDatum(subscription->id);
	values[1] = state_consumer(consumer);
	values[2] = Int64GetDatum(subscription->oldest);
	values[3] = (Datum) 0;
	owner_begin(&saved);
	if (subscription->has_batches)
		(void) plans_execute(&extend_batches, values, "   n");
	if (subscription->has_failures)
		(void) plans_execute(&extend_failures, values, "   n");
	owner_end(&saved);
}

/* A consumer is at what it has: its leases last until then. */
void
batch_extend(Subscription *subscription, const Consumer *consumer, const Interval *lease)
{
	Datum		values[4];
	OwnerSwitch saved;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = state_consumer(consumer);
	values[2] = Int64GetDatum(subscription->oldest);
	values[3] = IntervalPGetDatum(unconstify(Interval *, lease));
	owner_begin(&saved);
	(void) plans_execute(&extend_batches, values, NULL);
	(void) plans_execute(&extend_failures, values, NULL);
	owner_end(&saved);
}

/*
 * Takes back what is out under leases that are over, in slots that are locked;
 * or what a consumer has who leaves; or (all) all.  Adds to the list whose silence
 * that is.
 */
void
batch_reclaim(Subscription *subscription, const int *slots, int nslots, text *leaving, bool all,
			  List **silences)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[6];
	OwnerSwitch saved;
	int			count;
	EventList  *lists;
	text	  **consumers;
	TimestampTz *until;
	TimestampTz *since;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = values_int32_array(slots, nslots);
	values[2] = PointerGetDatum(leaving);
	values[3] = Int64GetDatum(subscription->oldest);
	owner_begin(&saved);
	values[4] = BoolGetDatum(all);
	/* what it has in order behind that is taken back with it */
	values[5] = BoolGetDatum(!subscription->competing);
	count = (int) plans_execute(leaving == NULL ? &over_rows : &rows_of_leaver, values,
								leaving == NULL ? "  n   " : NULL);
	lists = MemoryContextAllocZero(context, sizeof(EventList) * Max(count, 1));
	consumers = MemoryContextAllocZero(context, sizeof(text *) * Max(count, 1));
	until = MemoryContextAlloc(context, sizeof(TimestampTz) * Max(count, 1));
	since = MemoryContextAlloc(context, sizeof(TimestampTz) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext spi = MemoryContextSwitchTo(context);
		bool		isnull;

		lists[i].positions = values_read_int64(SPI_getbinval(row, desc, 1, &isnull), &lists[i].count);
		lists[i].streams = values_read_int64(SPI_getbinval(row, desc, 2, &isnull), &lists[i].count);
		consumers[i] = DatumGetTextPCopy(SPI_getbinval(row, desc, 3, &isnull));
		until[i] = DatumGetTimestampTz(SPI_getbinval(row, desc, 4, &isnull));
		since[i] = DatumGetTimestampTz(SPI_getbinval(row, desc, 5, &isnull));
		MemoryContextSwitchTo(spi);
	}
	owner_end(&saved);
	for (int i = 0; i < count; i++)
	{
		int			events = 0;
		int			dead;

		for (int k = 0; k < count; k++)
			if (VARSIZE_ANY_EXHDR(consumers[k]) == VARSIZE_ANY_EXHDR(consumers[i]) &&
				memcmp(VARDATA_ANY(consumers[k]), VARDATA_ANY(consumers[i]),
					   VARSIZE_ANY_EXHDR(consumers[i])) == 0)
				events += lists[k].count;
		dead = failure_take_back(subscription, &lists[i], leaving == NULL, events == 1, consumers[i]);
		if (leaving == NULL)
			breaker_add_silence(silences, consumers[i], until[i], since[i], dead);
	}
}

/*
 * The session ends in the middle of a transaction: takes out of queued rows what was
 * delivered to it, as far as nobody else has it by now.
 */
void
batch_give_up(Subscription *subscription, const int64 *positions, int count, EventList *events)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[5];
	OwnerSwitch saved;
	Batch	   *batches;
	int			n;

	owner_begin(&saved);
	values[0] = Int32GetDatum(subscription->id);
	values[1] = values_int64_array(positions, count);
	values[2] = Int64GetDatum(positions[0]);
	values[3] = Int64GetDatum(positions[count - 1]);
	values[4] = Int64GetDatum(subscription->oldest);
	(void) plans_execute(&rows_left, values, NULL);
	batches = read_batches(context, &n);
	MemoryContextSwitchTo(context);
	for (int i = 0; i < n; i++)
	{
		EventList  *row = &batches[i].events;
		EventList	rest = {0};

		if (!subscription->competing && !state_is_direct(subscription) &&
			!state_lock_part(subscription, LOCK_SLOT + batches[i].slot, false))
			continue;
		for (int k = 0; k < row->count; k++)
			events_add(positions_contain(positions, count, row->positions[k]) ? events : &rest,
					   row->positions[k], row->streams[k]);
		write_rest(subscription, &batches[i], &rest);
	}
	owner_end(&saved);
}
