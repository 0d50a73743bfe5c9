/*
 * answer.c
 *		What relays say of the messages that they were given: sent, failed, or that
 *		they are still at it, or not any more.
 *
 * A message that is out is in a slot that the relay has under a lease, or in a row of
 * subscription_failure.  Slots are locked in ascending order, and waited for; what they
 * hold is read when they are locked.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/errors.h"
#include "notification/notification.h"
#include "outbox/outbox.h"

PG_FUNCTION_INFO_V1(event_store_outbox_ack);
PG_FUNCTION_INFO_V1(event_store_outbox_nack);
PG_FUNCTION_INFO_V1(event_store_outbox_heartbeat);
PG_FUNCTION_INFO_V1(event_store_outbox_release);

static Statement slots_of_failures = {
	"SELECT DISTINCT f.slot FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = 0 AND f.position = ANY ($1)",
	1, {INT8ARRAYOID}
};

/* Notes the slots of messages that have failed, or wait. */
static void
find_failures(const int64 *positions, int count, bool *slots)
{
	Datum		values[1];
	OwnerSwitch saved;

	if (count == 0 || !policy_has_failures())
		return;
	values[0] = values_int64_array(positions, count);
	owner_begin(&saved);
	(void) plans_execute(&slots_of_failures, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		slots[DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1,
										  &isnull))] = true;
	}
	owner_end(&saved);
}

/* The lease of a relay lasts from now on; not where it is longer already. */
static void
renew(SlotState *state, const Interval *lease)
{
	state->leased_until = Max(state->leased_until, ack_lease_end(lease));
}

static bool
has_it(const SlotState *state, const text *relay)
{
	return state->consumer != NULL && deliver_is_same(state->consumer, relay);
}

/*
 * Some of what was out is decided, and the positions of what is still open, which
 * ascend: the slot is free, or the relay goes on with the rest.
 */
static void
decide(SlotState *state, const EventList *open, const int64 *decided, int count)
{
	if (open->count == 0)
	{
		slot_pass(state, state->leased_to);
		return;
	}
	slot_decide(state, decided, count);
	while (state->ndecided > 0 && state->decided[0] < open->positions[0])
	{
		state->checkpoint = state->decided[0];
		state->decided++;
		state->ndecided--;
	}
	renew(state, &state->lease);
}

/* ----------------------------------------------------------------
 * Sent
 * ----------------------------------------------------------------
 */

/* Acknowledges what a relay has of a slot, which is locked; returns how much. */
static int64
settle_slot(QueueScan *scan, SlotState *state, const int64 *positions, int count)
{
	EventList	open = {0};
	EventList	rest = {0};
	int64	   *done;
	int			ndone = 0;

	deliver_list(scan, state, &open);
	done = palloc(sizeof(int64) * Max(open.count, 1));
	for (int i = 0; i < open.count; i++)
	{
		if (positions_contain(positions, count, open.positions[i]))
			done[ndone++] = open.positions[i];
		else
			events_add(&rest, open.positions[i], open.streams[i]);
	}
	if (ndone == 0)
		return 0;
	decide(state, &rest, done, ndone);
	slot_write(state, ndone);
	return ndone;
}

static bool
any_within(const int64 *positions, int count, int64 after, int64 to)
{
	for (int i = 0; i < count && positions[i] <= to; i++)
		if (positions[i] > after)
			return true;
	return false;
}

/* Acknowledges what has failed before, in slots that are locked; returns how much. */
static int64
settle_failed(SlotReader *reader, const int64 *positions, int count, Consumer *relay)
{
	Subscription outbox;
	int64		by_slot[OUTBOX_SLOTS + 1] = {0};
	int64		done;

	policy_read(&outbox);
	done = failure_settle(&outbox, positions, count, 0, relay);
	if (done == 0)
		return 0;
	keep_remove(positions, count, by_slot);
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
	{
		SlotState	state;

		if (by_slot[slot] == 0)
			continue;
		slot_read(reader, slot, &state);
		slot_write(&state, by_slot[slot]);
	}
	batch_renew(&outbox, relay);
	return done;
}

Datum
event_store_outbox_ack(PG_FUNCTION_ARGS)
{
	Consumer	relay = {0};
	SlotReader	reader;
	QueueScan	scan;
	bool		wanted[OUTBOX_SLOTS + 1] = {0};
	bool		failed[OUTBOX_SLOTS + 1] = {0};
	bool		any_failed = false;
	int64	   *positions;
	int			count;
	int64		done = 0;

	deliver_guard("event_store.outbox_ack()");
	relay.name = deliver_relay_argument(fcinfo, 0);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("ids must not be NULL")));
	positions = ack_positions_argument("ids", PG_GETARG_DATUM(1), &count);
	wake_at_end();
	slot_begin(&reader);
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
	{
		SlotState	state;

		slot_read(&reader, slot, &state);
		wanted[slot] = has_it(&state, relay.name) &&
			any_within(positions, count, state.checkpoint, state.leased_to);
	}
	find_failures(positions, count, failed);
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
		if (wanted[slot] || failed[slot])
			(void) slot_lock(slot, true);
	queue_open(&scan, false);
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
	{
		SlotState	state;

		any_failed |= failed[slot];
		if (!wanted[slot])
			continue;
		slot_read(&reader, slot, &state);
		if (has_it(&state, relay.name))
			done += settle_slot(&scan, &state, positions, count);
	}
	queue_close(&scan);
	if (any_failed)
		done += settle_failed(&reader, positions, count, &relay);
	slot_end(&reader);
	rotate_at_end(done);
	policy_succeeded(done);
	PG_RETURN_INT64(done);
}

/* ----------------------------------------------------------------
 * Failed
 * ----------------------------------------------------------------
 */

/*
 * The slot of a message, locked, and its state; 0: it is none that has failed, nor
 * one that the relay has.
 */
static int
find_slot(int64 position, const text *relay, SlotState *state)
{
	bool		failed[OUTBOX_SLOTS + 1] = {0};
	SlotReader	reader;
	QueueScan	scan;
	int			found = 0;

	find_failures(&position, 1, failed);
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
		if (failed[slot])
			found = slot;
	slot_begin(&reader);
	queue_open(&scan, false);
	for (int slot = 1; slot <= OUTBOX_SLOTS && found == 0; slot++)
	{
		slot_read(&reader, slot, state);
		if (!has_it(state, relay) || position <= state->checkpoint || position > state->leased_to)
			continue;
		queue_seek(&scan, slot, position - 1, position);
		if (queue_next(&scan) != NULL)
			found = slot;
	}
	queue_close(&scan);
	if (found > 0)
	{
		(void) slot_lock(found, true);
		slot_read(&reader, found, state);
	}
	slot_end(&reader);
	return found;
}

/*
 * A message that is out of a slot has failed: what else of its key is out goes with
 * it, what comes before it still the relay's.  NULL: it is not open.
 */
static const char *
fail(Subscription *outbox, SlotState *state, int64 position, const char *error,
	 const Interval *retry_after, Consumer *relay, bool *dead)
{
	QueueScan	scan;
	EventList	open = {0};
	EventList	rest = {0};
	EventList	earlier = {0};
	EventList	later = {0};
	EventList	all = {0};
	EventList	itself = {0};
	int64		stream = 0;
	bool		is_blocked;

	queue_open(&scan, false);
	deliver_list(&scan, state, &open);
	queue_close(&scan);
	for (int i = 0; i < open.count; i++)
		if (open.positions[i] == position)
		{
			stream = open.streams[i];
			events_add(&itself, position, stream);
		}
	if (itself.count == 0)
		return NULL;
	for (int i = 0; i < open.count; i++)
	{
		int64		here = open.positions[i];

		if (open.streams[i] != stream)
			events_add(&rest, here, open.streams[i]);
		else
		{
			events_add(&all, here, stream);
			if (here != position)
				events_add(here < position ? &earlier : &later, here, stream);
		}
	}
	relay->until = state->leased_until;
	relay->lease = &state->lease;
	failure_begin(outbox);
	is_blocked = failure_blocks(outbox, stream);
	keep_add(state->slot, &all);
	failure_park(outbox, &earlier, relay, false);
	failure_park(outbox, &later, NULL, false);
	if (is_blocked)
		failure_park(outbox, &itself, NULL, false);
	else
		*dead = failure_add(outbox, position, stream, error, retry_after, relay);
	decide(state, &rest, all.positions, all.count);
	slot_write(state, 0);
	return is_blocked ? "retry" : *dead ? "dead" : "retry";
}

Datum
event_store_outbox_nack(PG_FUNCTION_ARGS)
{
	Subscription outbox;
	Consumer	relay = {0};
	SlotState	state;
	int64		position;
	char	   *error;
	const Interval *retry_after;
	const char *result = NULL;
	bool		dead = false;

	deliver_guard("event_store.outbox_nack()");
	relay.name = deliver_relay_argument(fcinfo, 0);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("id must not be NULL")));
	position = PG_GETARG_INT64(1);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("error must not be NULL")));
	error = ack_error_text(PG_GETARG_TEXT_PP(2));
	retry_after = PG_ARGISNULL(3) ? NULL : PG_GETARG_INTERVAL_P(3);
	if (retry_after != NULL)
		ack_check_interval("retry_after", retry_after, AT_LEAST_ZERO);
	if (find_slot(position, relay.name, &state) == 0)
		PG_RETURN_NULL();
	wake_at_end();
	policy_read(&outbox);
	if (outbox.has_failures &&
		failure_again(&outbox, position, error, retry_after, &relay, &dead))
		result = dead ? "dead" : "retry";
	else if (has_it(&state, relay.name))
		result = fail(&outbox, &state, position, error, retry_after, &relay, &dead);
	if (result == NULL)
		PG_RETURN_NULL();
	breaker_failed(&outbox, dead);
	batch_renew(&outbox, &relay);
	PG_RETURN_TEXT_P(cstring_to_text(result));
}

/* ----------------------------------------------------------------
 * Still at it, or not
 * ----------------------------------------------------------------
 */

/* What a relay has of slots: it has it longer, or gives it back.  Returns how many slots. */
static int
change_leases(text *relay, const Interval *lease)
{
	SlotReader	reader;
	int			changed = 0;

	slot_begin(&reader);
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
	{
		SlotState	state;

		slot_read(&reader, slot, &state);
		if (!has_it(&state, relay) || (lease != NULL && !slot_is_held(&state)))
			continue;
		(void) slot_lock(slot, true);
		slot_read(&reader, slot, &state);
		if (!has_it(&state, relay) || (lease != NULL && !slot_is_held(&state)))
			continue;
		if (lease != NULL)
			renew(&state, lease);
		else
			slot_pass(&state, state.checkpoint);
		slot_write(&state, 0);
		changed++;
	}
	slot_end(&reader);
	return changed;
}

Datum
event_store_outbox_heartbeat(PG_FUNCTION_ARGS)
{
	Subscription outbox;
	Consumer	relay = {0};
	const Interval *lease;
	bool		changed;

	deliver_guard("event_store.outbox_heartbeat()");
	relay.name = deliver_relay_argument(fcinfo, 0);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("lease must not be NULL")));
	lease = PG_GETARG_INTERVAL_P(1);
	ack_check_interval("lease", lease, AT_LEAST_MORE);
	changed = change_leases(relay.name, lease) > 0;
	policy_read(&outbox);
	if (outbox.has_failures)
	{
		batch_extend(&outbox, &relay, lease);
		changed |= batch_leased(&outbox, relay.name, false) > 0;
	}
	PG_RETURN_BOOL(changed);
}

Datum
event_store_outbox_release(PG_FUNCTION_ARGS)
{
	Subscription outbox;
	text	   *relay;
	int			slots[OUTBOX_SLOTS];
	bool		changed;

	deliver_guard("event_store.outbox_release()");
	relay = deliver_relay_argument(fcinfo, 0);
	wake_at_end();
	policy_read(&outbox);
	if (outbox.has_failures)
		for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
		{
			(void) slot_lock(slot, true);
			slots[slot - 1] = slot;
		}
	changed = change_leases(relay, NULL) > 0;
	if (outbox.has_failures && batch_leased(&outbox, relay, true) > 0)
	{
		failure_reclaim(&outbox, slots, OUTBOX_SLOTS, relay, false, NULL);
		changed = true;
	}
	PG_RETURN_BOOL(changed);
}
