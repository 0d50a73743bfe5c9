/*
 * slot.c
 *		How far the slots of the outbox have come.
 *
 * A row for each change of a slot, with a version one higher; the last one counts.
 * They are only ever inserted, into one of two tables, which are emptied as a whole
 * (rotate.c).  A slot is locked, to the end of the transaction, before its state is
 * read to be written, so the versions of a slot come one after the other, and the
 * last of them is in the table that is written now, or, as long as it has none
 * there, in the other.
 *
 * Rows are read as of now, whatever the isolation level: the lock makes that
 * stable.
 */
#include "postgres.h"

#include <math.h>

#include "access/sysattr.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "common/compat.h"
#include "outbox/outbox.h"

/* seconds that a rate looks back */
#define RATE_WINDOW		60.0

/* ----------------------------------------------------------------
 * Locks
 * ----------------------------------------------------------------
 */

/* the locks of slots are those of subscriptions, as failure.c takes them */
static const Subscription outbox = {.id = OUTBOX_ID};

bool
slot_lock(int slot, bool wait)
{
	return state_lock_part(&outbox, LOCK_SLOT + slot, wait);
}

/* Gives it back, if nothing has been done with it. */
void
slot_unlock(int slot)
{
	state_unlock_part(&outbox, LOCK_SLOT + slot);
}

/* ----------------------------------------------------------------
 * Reading
 * ----------------------------------------------------------------
 */

void
slot_begin(SlotReader *reader)
{
	memset(reader, 0, sizeof(SlotReader));
}

/*
 * Versions that slots had when they were read last.  An index is read page by page, so
 * a lower bound saves most of the work; where nothing is found above it (it was rolled
 * back, or stands in the other table) it is looked for without.
 */
static struct
{
	uint64		generation;
	int64		version[OUTBOX_SLOTS + 1];
}			known;

static bool
find_last(Probe *probe, int slot, int64 from_version)
{
	ScanKeyData keys[2];

	key_int32(&keys[0], 1, BTEqualStrategyNumber, slot);
	key_int64(&keys[1], 2, BTGreaterEqualStrategyNumber, from_version);
	probe_again(probe, keys, 2);
	return probe_next(probe, BackwardScanDirection);
}

/* Reads the last row of a slot in one of the tables; false: there is none. */
static bool
read_last(SlotReader *reader, int n, int slot, SlotState *state)
{
	const Store *store = catalog_outbox();
	Probe	   *probe = &reader->probes[n];
	Datum		value;
	bool		isnull;

	if (known.generation != store->generation)
	{
		memset(&known, 0, sizeof(known));
		known.generation = store->generation;
	}
	if (!reader->open[n])
	{
		ScanKeyData keys[2];

		key_int32(&keys[0], 1, BTEqualStrategyNumber, slot);
		key_int64(&keys[1], 2, BTGreaterEqualStrategyNumber, 0);
		probe_open(probe, store->outbox_slot[n], &store->outbox_slot_index[n], AccessShareLock,
				   SnapshotSelf, keys, 2);
		reader->open[n] = true;
	}
	if (!find_last(probe, slot, known.version[slot]) &&
		(known.version[slot] == 0 || !find_last(probe, slot, 0)))
		return false;
	state->version = known.version[slot] = probe_int64(probe, OS_VERSION);
	value = slot_getsysattr(probe->slot, MinTransactionIdAttributeNumber, &isnull);
	state->is_ours = TransactionIdIsCurrentTransactionId(DatumGetTransactionId(value));
	state->checkpoint = probe_int64(probe, OS_CHECKPOINT);
	state->leased_to = probe_int64(probe, OS_LEASED_TO);
	state->acknowledged = probe_int64(probe, OS_ACKNOWLEDGED);
	state->acknowledged_at = DatumGetTimestampTz(probe_value(probe, OS_ACKNOWLEDGED_AT, &isnull));
	state->rate = DatumGetFloat8(probe_value(probe, OS_RATE, &isnull));
	value = probe_value(probe, OS_CONSUMER, &isnull);
	state->consumer = isnull ? NULL : DatumGetTextPCopy(value);
	if (!isnull)
	{
		state->leased_at = DatumGetTimestampTz(probe_value(probe, OS_LEASED_AT, &isnull));
		state->leased_until = DatumGetTimestampTz(probe_value(probe, OS_LEASED_UNTIL, &isnull));
		state->lease = *DatumGetIntervalP(probe_value(probe, OS_LEASE, &isnull));
	}
	value = probe_value(probe, OS_DECIDED, &isnull);
	if (!isnull)
		state->decided = values_read_int64(value, &state->ndecided);
	return true;
}

/* Reads the state of a slot, into the current context. */
void
slot_read(SlotReader *reader, int slot, SlotState *state)
{
	int			n = queue_sequence(catalog_outbox()->outbox_slot_current) % OUTBOX_SLOT_TABLES;

	memset(state, 0, sizeof(SlotState));
	state->slot = slot;
	if (!read_last(reader, n, slot, state))
		(void) read_last(reader, (n + 1) % OUTBOX_SLOT_TABLES, slot, state);
}

/* Has a slot a state in that table? */
bool
slot_is_in(SlotReader *reader, int table, int slot)
{
	SlotState	state;

	return read_last(reader, table, slot, &state);
}

void
slot_end(SlotReader *reader)
{
	for (int i = 0; i < OUTBOX_SLOT_TABLES; i++)
		if (reader->open[i])
			probe_close(&reader->probes[i], false);
	memset(reader, 0, sizeof(SlotReader));
}

/* ----------------------------------------------------------------
 * Changing
 * ----------------------------------------------------------------
 */

/*
 * Writes the state of a slot, which is locked; so many messages were acknowledged.
 * The lock was taken before it was read, and the sequence is read after, so no table
 * is written any more that another has left.
 */
void
slot_write(SlotState *state, int64 acknowledged)
{
	const Store *store = catalog_outbox();
	int			n = queue_sequence(store->outbox_slot_current) % OUTBOX_SLOT_TABLES;
	Datum		values[OS_NATTS] = {0};
	bool		nulls[OS_NATTS] = {0};

	state->version++;
	if (acknowledged > 0)
	{
		TimestampTz now = GetCurrentTimestamp();
		double		seconds = Max((double) (now - state->acknowledged_at) / USECS_PER_SEC, 0.0);

		state->rate = state->rate * exp(-seconds / RATE_WINDOW) + acknowledged / RATE_WINDOW;
		state->acknowledged += acknowledged;
		state->acknowledged_at = now;
	}
	values[OS_VERSION - 1] = Int64GetDatum(state->version);
	values[OS_CHECKPOINT - 1] = Int64GetDatum(state->checkpoint);
	values[OS_LEASED_TO - 1] = Int64GetDatum(state->leased_to);
	values[OS_ACKNOWLEDGED - 1] = Int64GetDatum(state->acknowledged);
	values[OS_ACKNOWLEDGED_AT - 1] = TimestampTzGetDatum(state->acknowledged_at);
	values[OS_RATE - 1] = Float8GetDatum(state->rate);
	values[OS_SLOT - 1] = Int32GetDatum(state->slot);
	values[OS_LEASED_AT - 1] = TimestampTzGetDatum(state->leased_at);
	values[OS_LEASED_UNTIL - 1] = TimestampTzGetDatum(state->leased_until);
	values[OS_LEASE - 1] = IntervalPGetDatum(&state->lease);
	values[OS_CONSUMER - 1] = PointerGetDatum(state->consumer);
	nulls[OS_LEASED_AT - 1] = nulls[OS_LEASED_UNTIL - 1] = nulls[OS_LEASE - 1] =
		nulls[OS_CONSUMER - 1] = state->consumer == NULL;
	nulls[OS_DECIDED - 1] = state->ndecided == 0;
	if (state->ndecided > 0)
		values[OS_DECIDED - 1] = values_int64_array(state->decided, state->ndecided);
	rows_insert_small(store->outbox_slot[n], values, nulls);
	plans_writes++;
}

bool
slot_is_decided(const SlotState *state, int64 position)
{
	return position <= state->checkpoint ||
		positions_contain(state->decided, state->ndecided, position);
}

/* Is something out, under a lease that is not over? */
bool
slot_is_held(const SlotState *state)
{
	return state->consumer != NULL && state->leased_until > GetCurrentTimestamp();
}

/* The checkpoint passes all up to a position, and nobody has anything any more. */
void
slot_pass(SlotState *state, int64 position)
{
	state->checkpoint = state->leased_to = position;
	state->consumer = NULL;
	while (state->ndecided > 0 && state->decided[0] <= position)
	{
		state->decided++;
		state->ndecided--;
	}
}

/* These messages, which ascend, and were open, are decided. */
void
slot_decide(SlotState *state, const int64 *positions, int count)
{
	int64	   *merged;
	int			n = 0;
	int			i = 0;
	int			k = 0;

	if (count == 0)
		return;
	merged = palloc(sizeof(int64) * (state->ndecided + count));
	while (i < state->ndecided || k < count)
		merged[n++] = k == count || (i < state->ndecided && state->decided[i] < positions[k]) ?
			state->decided[i++] : positions[k++];
	state->decided = merged;
	state->ndecided = n;
}

/*
 * How many messages are out under leases of slots, of a relay (NULL: all); over:
 * also under those that are over, and have not been taken back.
 */
int64
slot_leased_count(text *relay, bool over)
{
	SlotReader	reader;
	QueueScan	scan;
	int64		count = 0;

	slot_begin(&reader);
	queue_open(&scan, false);
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
	{
		SlotState	state;
		EventList	open = {0};

		slot_read(&reader, slot, &state);
		if (state.consumer == NULL || (!over && !slot_is_held(&state)) ||
			(relay != NULL && !deliver_is_same(state.consumer, relay)))
			continue;
		deliver_list(&scan, &state, &open);
		count += open.count;
	}
	queue_close(&scan);
	slot_end(&reader);
	return count;
}
