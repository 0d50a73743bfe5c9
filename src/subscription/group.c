/*
 * group.c
 *		Consumers that give their names, and the slots that they own.
 *
 * A consumer is alive as long as a transaction of its is open, which has a lock
 * on its name, and until it has not been heard of for its lease: each time it is
 * heard of, a row says until when, unless that is far off still.  The row is never
 * altered: a consumer that is in a long transaction in one session, and is heard
 * of in another, does not wait for itself.  The slots
 * are divided evenly among those alive, the odd ones going to who joined first.
 * Each writes its own row only, and takes free slots only when it has the lock
 * on the members, so no slot has two owners; who has more than its share gives
 * the rest up at its next poll.
 *
 * Owning a slot says who may go on with it, not that nobody else is at it:
 * that is for the slot's lock, and for the leases that are out in it.  A new
 * owner gets nothing of a slot until what the old one has is decided, or given
 * up.  So a rebalance needs nobody's consent, and never gives the next event of a
 * stream to one while another has the earlier.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "subscription/subscription.h"

/* a consumer, as it stands in its row */
typedef struct Member
{
	text	   *name;
	bool		alive;
	int			nslots;
	int		   *slots;
} Member;

/* a call renews the lease when a quarter of it is gone */
#define RENEW_AT	"0.75"

/* of a consumer that gives its name and no lease */
#define DEFAULT_LEASE	"interval '30 s'"

#define ALIVE_UNTIL(consumer) \
"(SELECT max(h.alive_until) FROM event_store.subscription_heartbeat AS h" \
" WHERE h.subscription_id = $1 AND h.consumer = " consumer ")"

static Statement find_member_row = {
	"SELECT c.lease, " ALIVE_UNTIL("c.consumer") " > pg_catalog.clock_timestamp(),"
	" coalesce(" ALIVE_UNTIL("c.consumer") " > pg_catalog.clock_timestamp()"
	" + coalesce($3, c.lease) * " RENEW_AT ", false)"
	" FROM event_store.subscription_consumer AS c"
	" WHERE c.subscription_id = $1 AND c.consumer = $2",
	3, {INT4OID, TEXTOID, INTERVALOID}
};

static Statement join = {
	"INSERT INTO event_store.subscription_consumer AS c (subscription_id, consumer, lease)"
	" VALUES ($1, $2, coalesce($3, " DEFAULT_LEASE "))"
	" ON CONFLICT (subscription_id, consumer) DO NOTHING",
	3, {INT4OID, TEXTOID, INTERVALOID}
};

/* with what is of no use any more */
static Statement beat = {
	"WITH gone AS (DELETE FROM event_store.subscription_heartbeat AS h WHERE h.ctid = ANY (ARRAY"
	"(SELECT k.ctid FROM event_store.subscription_heartbeat AS k"
	" WHERE k.subscription_id = $1 AND k.consumer = $2"
	" AND k.alive_until < pg_catalog.clock_timestamp() FOR UPDATE SKIP LOCKED)))"
	" INSERT INTO event_store.subscription_heartbeat (subscription_id, consumer, alive_until)"
	" SELECT $1, $2, pg_catalog.clock_timestamp()"
	" + coalesce($3, (SELECT c.lease FROM event_store.subscription_consumer AS c"
	" WHERE c.subscription_id = $1 AND c.consumer = $2), " DEFAULT_LEASE ")",
	3, {INT4OID, TEXTOID, INTERVALOID}
};

/* who is just being heard of in an open transaction has rows locked, which nobody waits for */
static Statement drop_silent = {
	"WITH gone AS (DELETE FROM event_store.subscription_consumer AS c"
	" WHERE c.subscription_id = $1 AND c.consumer IN"
	" (SELECT k.consumer FROM event_store.subscription_consumer AS k"
	" WHERE k.subscription_id = $1 AND k.consumer = ANY ($2)"
	" AND coalesce(" ALIVE_UNTIL("k.consumer") " <= pg_catalog.clock_timestamp(), true)"
	" FOR UPDATE SKIP LOCKED) RETURNING c.consumer),"
	" beats AS (DELETE FROM event_store.subscription_heartbeat AS b WHERE b.ctid = ANY (ARRAY"
	"(SELECT h.ctid FROM gone JOIN event_store.subscription_heartbeat AS h"
	" ON h.subscription_id = $1 AND h.consumer = gone.consumer FOR UPDATE OF h SKIP LOCKED)))"
	" INSERT INTO event_store.subscription_change (subscription_id, change, detail)"
	" SELECT $1, 'expired', gone.consumer FROM gone",
	2, {INT4OID, TEXTARRAYOID}
};

static Statement list_members = {
	"SELECT c.consumer, coalesce(" ALIVE_UNTIL("c.consumer") " > pg_catalog.clock_timestamp(), false),"
	" c.slots"
	" FROM event_store.subscription_consumer AS c WHERE c.subscription_id = $1"
	" ORDER BY c.joined_at, c.consumer",
	1, {INT4OID}
};

static Statement set_slots = {
	"UPDATE event_store.subscription_consumer AS c SET slots = $3"
	" WHERE c.subscription_id = $1 AND c.consumer = $2",
	3, {INT4OID, TEXTOID, INT4ARRAYOID}
};

static Statement full_slots = {
	"SELECT s.slot, coalesce((SELECT sum(cardinality(q.positions)) FROM"
	" (SELECT b.positions FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.slot = s.slot AND b.priority = 0 AND b.consumer IS NULL"
	" AND b.first_position >= $3 LIMIT 8) AS q), 0)::int8"
	" + (SELECT count(*) FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = $1 AND f.due <= pg_catalog.clock_timestamp() AND f.slot = s.slot)"
	" + (SELECT count(*) FROM event_store.subscription_batch AS b"
	" WHERE b.subscription_id = $1 AND b.consumer IS NOT NULL"
	" AND b.leased_until <= pg_catalog.clock_timestamp() AND b.slot = s.slot"
	" AND b.first_position >= $3)"
	" FROM pg_catalog.unnest($2) AS s (slot)",
	3, {INT4OID, INT4ARRAYOID, INT8OID}
};

/* The part of a subscription that stands for the name of a consumer; for its joining (1). */
static int
name_part(const text *name, uint64 seed)
{
	uint32		hash = (uint32) DatumGetUInt64(hash_any_extended((const unsigned char *) VARDATA_ANY(name),
																 VARSIZE_ANY_EXHDR(name), seed));

	return (int) (hash | LOCK_NAME);
}

/*
 * The transaction is the consumer's: it is alive to its end.  Two names of one
 * hash only keep each other alive.
 */
void
group_be_here(const Subscription *subscription, const Consumer *consumer)
{
	if (consumer->name != NULL)
		state_share_part(subscription, name_part(consumer->name, 0));
}

/* Has another transaction said so of this consumer? */
static bool
is_here(const Subscription *subscription, const text *name)
{
	int			part = name_part(name, 0);

	if (!state_lock_part(subscription, part, false))
		return true;
	state_unlock_part(subscription, part);
	return false;
}

/* All who have a row, in the caller's context. */
static Member *
members(Subscription *subscription, MemoryContext context, int *count)
{
	Datum		values[1] = {Int32GetDatum(subscription->id)};
	MemoryContext saved;
	Member	   *list;

	*count = (int) plans_execute(&list_members, values, NULL);
	saved = MemoryContextSwitchTo(context);
	list = palloc0(sizeof(Member) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		ArrayType  *array;

		list[i].name = DatumGetTextPCopy(SPI_getbinval(row, desc, 1, &isnull));
		list[i].alive = DatumGetBool(SPI_getbinval(row, desc, 2, &isnull));
		array = DatumGetArrayTypePCopy(SPI_getbinval(row, desc, 3, &isnull));
		list[i].nslots = ARR_NDIM(array) == 1 ? ARR_DIMS(array)[0] : 0;
		list[i].slots = (int *) ARR_DATA_PTR(array);
	}
	MemoryContextSwitchTo(saved);
	for (int i = 0; i < *count; i++)
		list[i].alive |= is_here(subscription, list[i].name);
	return list;
}

/* Drops those of the members who are silent. */
static void
drop_dead(Subscription *subscription, const Member *list, int count, int me)
{
	Datum	   *names = palloc(sizeof(Datum) * Max(count, 1));
	int			n = 0;
	Datum		values[2];

	for (int i = 0; i < count; i++)
		if (!list[i].alive && i != me)
			names[n++] = PointerGetDatum(list[i].name);
	if (n == 0)
		return;
	values[0] = Int32GetDatum(subscription->id);
	values[1] = PointerGetDatum(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT));
	(void) plans_execute(&drop_silent, values, NULL);
}

static bool
same_name(const text *a, const text *b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

/*
 * The consumer is heard of.  joins: it is one from now on, if it was not, with this
 * lease (NULL: that which it has, or the default).  only_join: nothing is written
 * but that.  Returns whether it was alive.
 */
bool
group_renew(Subscription *subscription, const Consumer *consumer, bool joins,
			const Interval *lease, bool only_join)
{
	char		nulls[4] = "   ";
	bool		is_member;
	bool		alive = false;
	bool		fresh = false;
	Datum		values[3];
	OwnerSwitch saved;

	if (consumer->name == NULL || (!joins && !subscription->has_consumers))
		return false;
	values[0] = Int32GetDatum(subscription->id);
	values[1] = PointerGetDatum(consumer->name);
	values[2] = IntervalPGetDatum(unconstify(Interval *, lease));
	nulls[2] = lease == NULL ? 'n' : ' ';
	owner_begin(&saved);
	is_member = plans_execute(&find_member_row, values, nulls) > 0;
	if (is_member)
	{
		bool		isnull;
		HeapTuple	row = SPI_tuptable->vals[0];

		alive = DatumGetBool(SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull)) && !isnull;
		fresh = DatumGetBool(SPI_getbinval(row, SPI_tuptable->tupdesc, 3, &isnull));
	}
	else if (joins && !state_lock_part(subscription, name_part(consumer->name, 1), false))
		fresh = true;			/* another transaction is just joining under that name */
	else if (joins)
	{
		(void) plans_execute(&join, values, lease == NULL ? "  n" : NULL);
		/* where nobody deals slots out, those silent are dropped when others come */
		(void) plans_execute(&beat, values, nulls);
		fresh = true;
		if (subscription->competing)
		{
			int			count;
			Member	   *list = members(subscription, CurrentMemoryContext, &count);

			drop_dead(subscription, list, count, -1);
		}
	}
	if (!fresh && !only_join && (joins || alive))
		(void) plans_execute(&beat, values, nulls);
	owner_end(&saved);
	subscription->has_consumers = true;
	return alive;
}

/* The same, and it is still at what it has under a lease. */
bool
group_heartbeat(Subscription *subscription, const Consumer *consumer, const Interval *lease)
{
	bool		alive = group_renew(subscription, consumer, false, lease, false);

	/* or one of its transactions is open */
	if (!alive && subscription->has_consumers && is_here(subscription, consumer->name))
	{
		(void) group_renew(subscription, consumer, true, lease, false);
		alive = true;
	}
	if (alive)
		batch_extend(subscription, consumer, lease);
	return alive;
}

/* Who is this one, and how many slots are its share?  -1: nobody. */
static int
find_member(const Subscription *subscription, const Member *list, int count,
			const text *name, int *share)
{
	int			alive = 0;
	int			rank = 0;
	int			found = -1;

	for (int i = 0; i < count; i++)
	{
		if (same_name(list[i].name, name))
		{
			found = i;
			rank = alive;
			alive++;
		}
		else if (list[i].alive)
			alive++;
	}
	*share = found < 0 ? 0 :
		subscription->slots / alive + (rank < subscription->slots % alive ? 1 : 0);
	return found;
}

/* Which slots have an owner?  Those silent lose theirs only when they are dropped. */
static bool *
owned_slots(const Subscription *subscription, const Member *list, int count, bool alive_only)
{
	bool	   *owned = palloc0(sizeof(bool) * (subscription->slots + 1));

	for (int i = 0; i < count; i++)
		if (list[i].alive || !alive_only)
			for (int k = 0; k < list[i].nslots; k++)
				if (list[i].slots[k] >= 1 && list[i].slots[k] <= subscription->slots)
					owned[list[i].slots[k]] = true;
	return owned;
}

/*
 * The slots of a consumer with a name, after it has taken its share, or given up
 * what is too much.  Connected to SPI.
 */
static int
own_slots(Subscription *subscription, const Consumer *consumer, MemoryContext context,
		  int **slots)
{
	int			count;
	int			share;
	int			nmine;
	Member	   *list = members(subscription, context, &count);
	int			me = find_member(subscription, list, count, consumer->name, &share);
	bool		silent = false;
	Datum		values[3];

	if (me < 0)
		return 0;
	for (int i = 0; i < count; i++)
		silent |= i != me && !list[i].alive;
	if ((list[me].nslots != share || silent) &&
		state_lock_part(subscription, LOCK_MEMBERS, false))
	{
		bool	   *owned;

		values[0] = Int32GetDatum(subscription->id);
		list = members(subscription, context, &count);
		me = find_member(subscription, list, count, consumer->name, &share);
		drop_dead(subscription, list, count, me);
		list = members(subscription, context, &count);
		me = find_member(subscription, list, count, consumer->name, &share);
		if (me < 0)
			return 0;
		owned = owned_slots(subscription, list, count, false);
		*slots = MemoryContextAlloc(context, sizeof(int) * (subscription->slots + 1));
		nmine = Min(list[me].nslots, share);
		memcpy(*slots, list[me].slots, sizeof(int) * nmine);
		for (int slot = 1; slot <= subscription->slots && nmine < share; slot++)
			if (!owned[slot])
				(*slots)[nmine++] = slot;
		if (nmine != list[me].nslots)
		{
			values[1] = PointerGetDatum(consumer->name);
			values[2] = values_int32_array(*slots, nmine);
			(void) plans_execute(&set_slots, values, NULL);
		}
		else
			state_unlock_part(subscription, LOCK_MEMBERS);
		return nmine;
	}
	*slots = list[me].slots;
	return Min(list[me].nslots, share);
}

/*
 * The slots that a poll may deliver from, locked to the end of the transaction.
 * Who gives no name gets slots that nobody owns, no more of them than it needs.
 */
int
group_slots(Subscription *subscription, const Consumer *consumer, int max_count, int **slots)
{
	MemoryContext context = CurrentMemoryContext;
	bool		direct = state_is_direct(subscription);
	int		   *wanted;
	int			nwanted = 0;
	int			n = 0;
	OwnerSwitch saved;

	*slots = wanted = palloc(sizeof(int) * (subscription->slots + 1));
	if (subscription->competing)
	{
		wanted[0] = 1;
		return 1;
	}
	if (direct && !subscription->has_consumers && !subscription->has_batches &&
		!subscription->has_failures)
	{
		wanted[0] = 1;
		return 1;
	}

	owner_begin(&saved);
	if (consumer->name != NULL)
	{
		nwanted = own_slots(subscription, consumer, context, slots);
		wanted = *slots;
	}
	else
	{
		int			count;
		Member	   *list = members(subscription, context, &count);
		bool	   *owned = owned_slots(subscription, list, count, true);
		int			start = (int) (pg_prng_uint32(&pg_global_prng_state) % subscription->slots);

		for (int i = 0; i < subscription->slots; i++)
		{
			int			slot = 1 + (start + i) % subscription->slots;

			if (!owned[slot])
				wanted[nwanted++] = slot;
		}
		if (!direct && nwanted > 0)
		{
			Datum		values[3];
			int64		sum = 0;
			int			full = 0;

			values[0] = Int32GetDatum(subscription->id);
			values[1] = values_int32_array(wanted, nwanted);
			values[2] = Int64GetDatum(subscription->oldest);
			(void) plans_execute(&full_slots, values, NULL);
			for (uint64 i = 0; i < SPI_processed && sum < max_count; i++)
			{
				bool		isnull;
				int64		events = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i],
																 SPI_tuptable->tupdesc, 2, &isnull));
				int			slot = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i],
															   SPI_tuptable->tupdesc, 1, &isnull));

				if (events > 0 && state_lock_part(subscription, LOCK_SLOT + slot, false))
				{
					wanted[full++] = slot;
					sum += events;
				}
			}
			nwanted = full;
		}
	}
	owner_end(&saved);

	/* those of a name are locked here; the cursor's lock is that of the only slot */
	for (int i = 0; i < nwanted; i++)
		if (direct || consumer->name == NULL ||
			state_lock_part(subscription, LOCK_SLOT + wanted[i], false))
			wanted[n++] = wanted[i];

	/* a session that has just let go of them may have to write something first */
	if (n > 0 && !direct && state_is_marked(subscription->id, false))
		return 0;
	return n;
}

/*
 * Of slots that are locked, and where leases that are over have been taken back:
 * leaves out those where something is out with others, or could not be taken back,
 * since its holder is just at it.  Returns how many are left.
 */
int
group_drop_used(Subscription *subscription, const Consumer *consumer, int *slots, int nslots)
{
	int		   *in_use;
	int			nin_use;
	int			left = 0;

	if (nslots == 0)
		return 0;
	nin_use = batch_slots_in_use(subscription, consumer, true, &in_use);
	for (int i = 0; i < nslots; i++)
	{
		bool		used = false;

		for (int k = 0; k < nin_use; k++)
			used |= in_use[k] == slots[i];
		if (!used)
			slots[left++] = slots[i];
	}
	return left;
}

static Statement delete_member = {
	"WITH beats AS (DELETE FROM event_store.subscription_heartbeat AS h WHERE h.ctid = ANY (ARRAY"
	"(SELECT k.ctid FROM event_store.subscription_heartbeat AS k"
	" WHERE k.subscription_id = $1 AND k.consumer = $2 FOR UPDATE SKIP LOCKED)))"
	" DELETE FROM event_store.subscription_consumer AS c"
	" WHERE c.subscription_id = $1 AND c.consumer = $2",
	2, {INT4OID, TEXTOID}
};

/* A consumer goes; returns whether it was there. */
bool
group_leave(Subscription *subscription, text *consumer)
{
	Datum		values[2];
	OwnerSwitch saved;
	bool		found;

	values[0] = Int32GetDatum(subscription->id);
	values[1] = PointerGetDatum(consumer);
	owner_begin(&saved);
	found = plans_execute(&delete_member, values, NULL) > 0;
	owner_end(&saved);
	return found;
}

/* ----------------------------------------------------------------
 * Another number of slots
 * ----------------------------------------------------------------
 */

static Statement reslot[] = {
	{"UPDATE event_store.subscription_failure AS f"
		" SET slot = 1 + (pg_catalog.hashint8(f.stream_id) & 2147483647) % $2"
	" WHERE f.subscription_id = $1", 2, {INT4OID, INT4OID}},
	{"UPDATE event_store.subscription_consumer AS c SET slots = '{}'"
	" WHERE c.subscription_id = $1 AND $2 > 0", 2, {INT4OID, INT4OID}},
	{"UPDATE event_store.subscription AS s SET slots = $2, wanted_slots = NULL"
	" WHERE s.id = $1", 2, {INT4OID, INT4OID}},
};

/*
 * Goes over to the wanted number of slots, if nothing is out under a lease: a
 * stream may change its slot, and what is out of it would be in the way of the
 * new one.  Nobody else works with the subscription.
 */
bool
group_reslot(Subscription *subscription)
{
	Consumer	nobody = {0};
	int		   *slots = palloc(sizeof(int) * subscription->slots);
	int		   *in_use;
	List	   *silences = NIL;
	Datum		values[2];
	OwnerSwitch saved;
	char	   *detail;

	/* what was delivered to this transaction is known by rows that would go */
	if (delivered_any(subscription->id) ||
		batch_slots_in_use(subscription, &nobody, false, &in_use) > 0)
		return false;
	for (int i = 0; i < subscription->slots; i++)
		slots[i] = i + 1;
	batch_reclaim(subscription, slots, subscription->slots, NULL, true, &silences);
	failure_reclaim(subscription, slots, subscription->slots, NULL, true, &silences);
	breaker_silences(subscription, silences);
	/* a heartbeat may just have one of them locked: another time, then */
	if (batch_leased(subscription, NULL, true) > 0)
		return true;
	batch_deal_anew(subscription, subscription->wanted_slots);
	detail = psprintf("%d to %d", subscription->slots, subscription->wanted_slots);
	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int32GetDatum(subscription->wanted_slots);
	owner_begin(&saved);
	for (int i = 0; i < lengthof(reslot); i++)
		(void) plans_execute(&reslot[i], values, NULL);
	owner_end(&saved);
	state_note(subscription, "slots", detail);
	state_read_again(subscription);
	return true;
}
