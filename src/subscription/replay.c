/*
 * replay.c
 *		Which deliveries are replays.
 *
 * A rewind makes replays of the deliveries up to replay_until: up to where the
 * subscription had come by then.  But for these, which stand in
 * subscription_no_replay:
 *
 * - what nobody had been given by then, of all that was dealt out, or waited
 *	 behind a failed event of its stream;
 * - what lies in front of the new checkpoint, is open, and was no replay before: a
 *	 rewind has nothing to do with it.
 *
 * These are found when a subscription is rewound, with all of it locked, and
 * looked up by whoever delivers something up to replay_until.  A poll delivers in
 * ascending order, mostly, so it reads one row of many positions after the other.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "subscription/subscription.h"

/* positions in a row of subscription_no_replay */
#define ROW_POSITIONS	"1000"

static Statement read_row = {
	"SELECT n.last_position, n.positions FROM event_store.subscription_no_replay AS n"
	" WHERE n.subscription_id = $1 AND n.last_position >= $2 ORDER BY n.last_position LIMIT 1",
	2, {INT4OID, INT8OID}
};

/* $2: the new checkpoint; $3: up to where it has come; $4: the old replay_until */
static Statement note_rewind = {
	"WITH open AS (SELECT p.position, b.delivered_at IS NOT NULL AS delivered"
	" FROM event_store.subscription_batch AS b, unnest(b.positions) AS p (position)"
	" WHERE b.subscription_id = $1"
	" UNION ALL SELECT f.position, f.delivered FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1),"
	" kept AS MATERIALIZED (SELECT o.position FROM open AS o WHERE NOT o.delivered OR o.position <= $2),"
	" gone AS (DELETE FROM event_store.subscription_no_replay AS n WHERE n.subscription_id = $1"
	" RETURNING n.positions),"
	" old AS (SELECT p.position FROM gone AS g, unnest(g.positions) AS p (position)),"
	" listed AS (SELECT o.position FROM old AS o LEFT JOIN kept AS k ON k.position = o.position"
	" WHERE o.position > $3 OR k.position IS NOT NULL"
	" UNION ALL SELECT k.position FROM kept AS k WHERE k.position > $4),"
	" numbered AS (SELECT l.position,"
	" (pg_catalog.row_number() OVER (ORDER BY l.position) - 1) / " ROW_POSITIONS " AS n FROM listed AS l)"
	" INSERT INTO event_store.subscription_no_replay (subscription_id, last_position, positions)"
	" SELECT $1, max(x.position), pg_catalog.array_agg(x.position ORDER BY x.position)"
	" FROM numbered AS x GROUP BY x.n",
	4, {INT4OID, INT8OID, INT8OID, INT8OID}
};

/* Is the delivery of an event a replay? */
bool
replay_is(Subscription *subscription, int64 position)
{
	if (position > subscription->replay_until)
		return false;
	if (position < subscription->no_replay_from || position > subscription->no_replay_to)
	{
		MemoryContext context = CurrentMemoryContext;
		Datum		values[2] = {Int32GetDatum(subscription->id), Int64GetDatum(position)};
		OwnerSwitch saved;

		subscription->no_replay_from = position;
		subscription->no_replay_to = PG_INT64_MAX;
		subscription->nno_replay = 0;
		owner_begin(&saved);
		if (plans_execute(&read_row, values, NULL) > 0)
		{
			HeapTuple	row = SPI_tuptable->vals[0];
			TupleDesc	desc = SPI_tuptable->tupdesc;
			MemoryContext spi = MemoryContextSwitchTo(context);
			bool		isnull;

			subscription->no_replay_to = DatumGetInt64(SPI_getbinval(row, desc, 1, &isnull));
			subscription->no_replay = values_read_int64(SPI_getbinval(row, desc, 2, &isnull),
														&subscription->nno_replay);
			MemoryContextSwitchTo(spi);
		}
		owner_end(&saved);
	}
	return subscription->nno_replay == 0 ||
		!positions_contain(subscription->no_replay, subscription->nno_replay, position);
}

/*
 * A subscription that has come up to a position (passed) is rewound to another, and
 * what is open of it stands still where it was.  The caller writes the cursor.
 */
void
replay_note_rewind(Subscription *subscription, int64 passed, int64 position)
{
	Datum		values[4];
	OwnerSwitch saved;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(position);
	values[2] = Int64GetDatum(passed);
	values[3] = Int64GetDatum(subscription->replay_until);
	owner_begin(&saved);
	(void) plans_execute(&note_rewind, values, NULL);
	owner_end(&saved);
	subscription->replay_until = Max(subscription->replay_until, passed);
}
