/*
 * breaker.c
 *		The circuit breaker of a subscription.
 *
 * Closed, it counts failures within a window.  Too many open it: nothing is
 * delivered for a time.  Then it is half-open: a few events are delivered, and
 * when so many have succeeded it is closed again; the first that fails opens it
 * anew.
 *
 * Each failure is a row of its own, so that consumers of different slots do not
 * wait for each other; those of long ago are added up now and then.
 *
 * A consumer that falls silent has failed once, however much it had: what it got
 * before its silence was first noticed belongs to that, though it may be taken
 * back later, with other slots.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "common/pg_prng.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "subscription/subscription.h"

/* of so many failures one adds up those of long ago */
#define ADD_UP_EVERY	64

static Statement note_fault = {
	"INSERT INTO event_store.subscription_fault (subscription_id, at, failures, dead_letters, consumer)"
	" SELECT $1, pg_catalog.clock_timestamp(),"
	" CASE WHEN EXISTS (SELECT FROM event_store.subscription_fault AS f"
	" WHERE f.subscription_id = $1 AND f.at >= $5 AND f.consumer = $4) THEN 0 ELSE $2 END, $3, $4"
	" RETURNING failures",
	5, {INT4OID, INT8OID, INT8OID, TEXTOID, TIMESTAMPTZOID}
};

static Statement add_up = {
	"WITH gone AS (DELETE FROM event_store.subscription_fault AS f WHERE f.ctid IN"
	" (SELECT k.ctid FROM event_store.subscription_fault AS k WHERE k.subscription_id = $1"
	" AND k.at < pg_catalog.clock_timestamp() - greatest($2, interval '1 hour')"
	" FOR UPDATE SKIP LOCKED) RETURNING f.failures, f.dead_letters)"
	" INSERT INTO event_store.subscription_fault (subscription_id, at, failures, dead_letters)"
	" SELECT $1, '-infinity', sum(gone.failures), sum(gone.dead_letters) FROM gone"
	" HAVING count(*) > 0",
	2, {INT4OID, INTERVALOID}
};

/* failures of the window, and since it was last closed */
static Statement count_faults = {
	"SELECT coalesce(sum(f.failures), 0)::int8 FROM event_store.subscription_fault AS f"
	" WHERE f.subscription_id = $1 AND f.at > pg_catalog.clock_timestamp() - $2"
	" AND f.at > coalesce((SELECT b.until FROM event_store.subscription_breaker AS b"
	" WHERE b.subscription_id = $1 AND b.state = 'closed'), '-infinity')",
	2, {INT4OID, INTERVALOID}
};

/* from a state to another, unless somebody else is just at it */
static Statement change = {
	"UPDATE event_store.subscription_breaker AS b"
	" SET state = $3, until = pg_catalog.clock_timestamp() + $4, probes_left = $5"
	" WHERE b.subscription_id IN (SELECT k.subscription_id"
	" FROM event_store.subscription_breaker AS k"
	" WHERE k.subscription_id = $1 AND k.state = ANY ($2) FOR UPDATE SKIP LOCKED)",
	5, {INT4OID, TEXTARRAYOID, TEXTOID, INTERVALOID, INT4OID}
};

static Statement succeeded = {
	"UPDATE event_store.subscription_breaker AS b"
	" SET probes_left = greatest(b.probes_left - $2, 0)"
	" WHERE b.subscription_id IN (SELECT k.subscription_id FROM event_store.subscription_breaker AS k"
	" WHERE k.subscription_id = $1 AND k.state = 'half-open' FOR UPDATE SKIP LOCKED)"
	" RETURNING b.probes_left",
	2, {INT4OID, INT8OID}
};

static Datum
seconds(double value)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = (TimeOffset) (value * USECS_PER_SEC);
	return IntervalPGetDatum(interval);
}

static bool
change_state(Subscription *subscription, const char *from, const char *also_from, const char *to,
			 double lasts, int probes)
{
	Datum		states[2];
	Datum		values[5];
	OwnerSwitch saved;
	bool		changed;

	states[0] = values_text(from);
	states[1] = values_text(also_from);
	values[0] = Int32GetDatum(subscription->id);
	values[1] = PointerGetDatum(construct_array(states, 2, TEXTOID, -1, false, TYPALIGN_INT));
	values[2] = values_text(to);
	values[3] = seconds(lasts);
	values[4] = Int32GetDatum(probes);
	owner_begin(&saved);
	changed = plans_execute(&change, values, NULL) > 0;
	owner_end(&saved);
	if (changed)
		state_note(subscription, psprintf("breaker %s", strcmp(to, "open") == 0 ? "opened" : to), NULL);
	return changed;
}

/* How many events a poll may deliver. */
int
breaker_limit(Subscription *subscription, int max_count)
{
	int64		room;

	if (subscription->breaker_failures == 0 || subscription->breaker == BREAKER_CLOSED)
		return max_count;
	if (subscription->breaker == BREAKER_OPEN)
	{
		if (GetCurrentTimestamp() < subscription->breaker_until ||
			!change_state(subscription, "open", "open", "half-open", 0, subscription->breaker_probes))
			return 0;
		subscription->breaker = BREAKER_HALF_OPEN;
	}
	/*
	 * No more of them than that are out at a time.  Those under leases that are over
	 * don't count: they would never be taken back if nothing were delivered.
	 */
	room = subscription->breaker_probes - batch_leased(subscription, NULL, false);
	return (int) Max(Min(room, max_count), 0);
}

/*
 * An attempt has failed, and with it so many events for good.  silent: by the
 * silence of this consumer, which had been heard of then.
 */
static void
note_failure(Subscription *subscription, int dead, text *silent, TimestampTz heard_at)
{
	Datum		values[5];
	OwnerSwitch saved;
	bool		isnull;
	bool		too_many;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(1);
	values[2] = Int64GetDatum(dead);
	values[3] = PointerGetDatum(silent);
	values[4] = TimestampTzGetDatum(heard_at);
	owner_begin(&saved);
	(void) plans_execute(&note_fault, values, silent == NULL ? "   nn" : NULL);
	if (DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)) == 0)
	{
		owner_end(&saved);
		return;
	}
	values[1] = seconds(subscription->breaker_window);
	if (pg_prng_uint32(&pg_global_prng_state) % ADD_UP_EVERY == 0)
		(void) plans_execute(&add_up, values, NULL);
	too_many = subscription->breaker_failures > 0 && subscription->breaker == BREAKER_HALF_OPEN;
	if (subscription->breaker_failures > 0 && subscription->breaker == BREAKER_CLOSED)
	{
		(void) plans_execute(&count_faults, values, NULL);
		too_many = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
											   &isnull)) >= subscription->breaker_failures;
	}
	owner_end(&saved);
	if (too_many && change_state(subscription, "closed", "half-open", "open",
								 subscription->breaker_timeout, 0))
		subscription->breaker = BREAKER_OPEN;
}

/* The handling of an event has failed; dead: for good. */
void
breaker_failed(Subscription *subscription, bool dead)
{
	note_failure(subscription, dead ? 1 : 0, NULL, 0);
}

/*
 * Something was taken back from a consumer that is silent, in this call: it adds to
 * the list of these.  Those without a name are told apart by the end of the lease,
 * which is that of one poll.
 */
void
breaker_add_silence(List **silences, text *consumer, TimestampTz until, TimestampTz heard_at,
					int dead)
{
	ListCell   *cell;
	Silence    *silence;

	foreach(cell, *silences)
	{
		silence = lfirst(cell);
		if (VARSIZE_ANY_EXHDR(silence->consumer) == VARSIZE_ANY_EXHDR(consumer) &&
			memcmp(VARDATA_ANY(silence->consumer), VARDATA_ANY(consumer),
				   VARSIZE_ANY_EXHDR(consumer)) == 0 &&
			(VARSIZE_ANY_EXHDR(consumer) > 0 || silence->until == until))
		{
			silence->heard_at = Min(silence->heard_at, heard_at);
			silence->dead += dead;
			return;
		}
	}
	silence = palloc(sizeof(Silence));
	silence->consumer = consumer;
	silence->until = until;
	silence->heard_at = heard_at;
	silence->dead = dead;
	*silences = lappend(*silences, silence);
}

/* That was all of them: each counts as one failure. */
void
breaker_silences(Subscription *subscription, List *silences)
{
	ListCell   *cell;

	foreach(cell, silences)
	{
		Silence    *silence = lfirst(cell);

		note_failure(subscription, silence->dead,
					 VARSIZE_ANY_EXHDR(silence->consumer) > 0 ? silence->consumer : NULL,
					 silence->heard_at);
	}
}

/* So many events were acknowledged. */
void
breaker_succeeded(Subscription *subscription, int64 count)
{
	Datum		values[2];
	OwnerSwitch saved;
	bool		isnull;
	bool		enough;

	if (count == 0 || subscription->breaker_failures == 0 ||
		subscription->breaker != BREAKER_HALF_OPEN)
		return;
	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(count);
	owner_begin(&saved);
	enough = plans_execute(&succeeded, values, NULL) > 0 &&
		DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)) == 0;
	owner_end(&saved);
	if (enough && change_state(subscription, "half-open", "half-open", "closed", 0, 0))
		subscription->breaker = BREAKER_CLOSED;
}
