/*
 * deliver.c
 *		Delivering messages to relays.
 *
 * A poll takes free slots, one after the other, until it has as many messages as it
 * wants:
 *
 * 1. lock the slot, unless another has it, and read its state;
 * 2. if a lease is over, take back what was out, as failed attempts; if one is not,
 *	  leave the slot alone;
 * 3. read what follows its checkpoint, up to the settled mark; what is behind a
 *	  message of its key that has failed is set aside;
 * 4. write down up to where it is the relay's.
 *
 * Now and then, and where it has found nothing, it takes back what silent relays had, of
 * all slots that it can lock, and before anything else what has failed and is due again.
 * A slot is the whole unit of exclusion: as long as anything of it is out, and not
 * decided, nothing else of it is delivered, to nobody.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/guc.h"
#include "notification/notification.h"
#include "outbox/outbox.h"
#include "position/position.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_outbox_poll);

/* messages that one poll sets aside behind failed ones, of a slot */
#define MAX_ASIDE	1000

/* what a poll asks for */
typedef struct Request
{
	int			max_count;
	Consumer	relay;
	ReturnSetInfo *result;
	int			count;			/* delivered so far */
} Request;

void
deliver_guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
}

/* The name of a relay, checked. */
text *
deliver_relay_argument(FunctionCallInfo fcinfo, int n)
{
	text	   *name;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("name of a relay must not be NULL")));
	name = PG_GETARG_TEXT_PP(n);
	input_check_name("name of a relay", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	deliver_check_isolation("a relay cannot work in REPEATABLE READ or SERIALIZABLE");
	return name;
}

/* What has failed is looked up by the snapshot of the transaction, which must be of now. */
void
deliver_check_isolation(const char *message)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s", message),
				 errhint("Use READ COMMITTED.")));
}

/* What is out of a slot, and not decided. */
void
deliver_list(QueueScan *scan, const SlotState *state, EventList *open)
{
	TupleTableSlot *row;

	if (state->leased_to <= state->checkpoint)
		return;
	queue_seek(scan, state->slot, state->checkpoint, state->leased_to);
	while ((row = queue_next(scan)) != NULL)
	{
		int64		position = queue_row_position(row);

		if (!slot_is_decided(state, position))
			events_add(open, position, queue_row_stream(row));
	}
}

/* ----------------------------------------------------------------
 * Leases that are over
 * ----------------------------------------------------------------
 */

/* what a relay had in a slot */
typedef struct Lost
{
	SlotState  *state;
	EventList	messages;
} Lost;

/* Is it the same name? */
bool
deliver_is_same(const text *a, const text *b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

/*
 * Takes back what was out of some slots, which are locked: any of it may be what the
 * relay died of, so it goes the way of what has failed.
 */
static void
take_back(Subscription *outbox, Lost *lost, int count, List **silences)
{
	for (int i = 0; i < count; i++)
	{
		SlotState  *state = lost[i].state;
		text	   *relay = state->consumer;
		int			others = 0;
		int			dead = 0;

		for (int k = 0; k < count; k++)
			if (k != i && deliver_is_same(lost[k].state->consumer, relay))
				others += lost[k].messages.count;
		if (lost[i].messages.count > 0)
		{
			keep_add(state->slot, &lost[i].messages);
			dead = failure_take_back(outbox, &lost[i].messages, true,
									 others + lost[i].messages.count == 1, relay);
		}
		breaker_add_silence(silences, relay, state->leased_until, state->leased_at, dead);
	}
	for (int i = 0; i < count; i++)
	{
		slot_pass(lost[i].state, lost[i].state->leased_to);
		slot_write(lost[i].state, 0);
	}
}

/* ----------------------------------------------------------------
 * What there is to deliver
 * ----------------------------------------------------------------
 */

static int
compare_retries(const void *a, const void *b)
{
	return state_compare_positions(&((const Retry *) a)->position, &((const Retry *) b)->position);
}

/* What is due of that which has failed; returns whether nothing may come along. */
static bool
deliver_failed(Request *request, Subscription *outbox, const int *slots, int nslots)
{
	Retry	   *retries;
	bool		alone;
	int			count = failure_take(outbox, slots, nslots,
									 request->max_count, &request->relay, &retries, &alone);

	if (count > 0)
	{
		qsort(retries, count, sizeof(Retry), compare_retries);
		keep_put(retries, count, request->result);
		request->count += count;
	}
	return alone;
}

static void
put_message(Request *request, TupleTableSlot *row)
{
	static const int columns[OD_ATTEMPT] = {
		OM_POSITION, OM_ID, OM_TOPIC, OM_KEY, OM_TYPE, OM_PAYLOAD, OM_HEADERS, OM_PUBLISHED_AT
	};
	Datum		values[OD_NATTS];
	bool		nulls[OD_NATTS];

	for (int i = 0; i < OD_ATTEMPT; i++)
		values[i] = slot_getattr(row, columns[i], &nulls[i]);
	values[OD_ATTEMPT] = Int32GetDatum(1);
	nulls[OD_ATTEMPT] = false;
	tuplestore_putvalues(request->result->setResult, request->result->setDesc, values, nulls);
}

/* a slot in which there was nothing, as this backend remembers it */
typedef struct Empty
{
	int64		version;		/* of the slot */
	int64		mark;			/* up to which there was nothing */
} Empty;

static Empty empty[OUTBOX_SLOTS + 1];
static uint64 empty_generation = 0;

/* The position up to which nothing is open in a slot. */
static int64
passed(const SlotState *state)
{
	return empty[state->slot].version == state->version ?
		Max(state->checkpoint, empty[state->slot].mark) : state->checkpoint;
}

/* Delivers what follows in a slot, which is locked and free; false: there is nothing. */
static bool
deliver_slot(Request *request, Subscription *outbox, QueueScan *scan, SlotState *state, int64 mark)
{
	Consumer   *relay = &request->relay;
	EventList	aside = {0};
	TupleTableSlot *row;
	int64		last = state->checkpoint;
	int			count = 0;

	queue_seek(scan, state->slot, passed(state), mark);
	while (request->count + count < request->max_count && aside.count < MAX_ASIDE &&
		   (row = queue_next(scan)) != NULL)
	{
		int64		position = queue_row_position(row);

		if (!slot_is_decided(state, position))
		{
			int64		stream;

			if (outbox->has_failures &&
				failure_blocks(outbox, stream = queue_row_stream(row)))
				events_add(&aside, position, stream);
			else
			{
				put_message(request, row);
				count++;
			}
		}
		last = position;
	}
	if (last == state->checkpoint)
		return false;
	if (aside.count > 0)
	{
		EventList	missing = {0};

		keep_missing(&aside, &missing);
		keep_add(state->slot, &missing);
		failure_park(outbox, &missing, NULL, false);
	}
	if (count == 0)
		slot_pass(state, last);
	else
	{
		slot_decide(state, aside.positions, aside.count);
		state->leased_to = last;
		state->consumer = relay->name;
		state->leased_at = GetCurrentTimestamp();
		state->leased_until = relay->until;
		state->lease = *relay->lease;
	}
	slot_write(state, 0);
	request->count += count;
	return true;
}

/* microseconds between looks for relays that have fallen silent, where there is enough else */
#define SILENCE_INTERVAL	(50 * INT64CONST(1000))

/*
 * Takes back what is out under leases that are over, and delivers what has failed and
 * is due, of all slots that can be had, which are covered then: it is known what of them
 * waits behind failed ones.  Returns whether nothing may come along.
 */
static bool
deliver_rest(Request *request, Subscription *outbox, SlotReader *reader, QueueScan *scan,
			 bool *covered)
{
	SlotState  *states = palloc(sizeof(SlotState) * OUTBOX_SLOTS);
	int			slots[OUTBOX_SLOTS];
	int			nslots = 0;
	Lost		lost[OUTBOX_SLOTS];
	int			nlost = 0;
	List	   *silences = NIL;

	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
	{
		SlotState  *state = &states[slot - 1];

		slot_read(reader, slot, state);
		if (!outbox->has_failures && (state->consumer == NULL || slot_is_held(state)))
			continue;
		if (!slot_lock(slot, false))
			continue;
		slots[nslots++] = slot;
		slot_read(reader, slot, state);
		if (state->consumer != NULL && !slot_is_held(state))
		{
			lost[nlost].state = state;
			memset(&lost[nlost].messages, 0, sizeof(EventList));
			deliver_list(scan, state, &lost[nlost].messages);
			nlost++;
		}
	}
	if (nlost == 0 && !outbox->has_failures)
		return false;
	take_back(outbox, lost, nlost, &silences);
	failure_reclaim(outbox, slots, nslots, NULL, false, &silences);
	breaker_silences(outbox, silences);
	for (int i = 0; i < nslots; i++)
		covered[slots[i]] = true;
	failure_begin(outbox);
	if (!outbox->has_failures || request->count > 0)
		return false;
	return deliver_failed(request, outbox, slots, nslots);
}

/*
 * Takes free slots, and delivers what is in them: first that which is furthest behind,
 * so what is oldest never waits for long, and the tables are drained evenly.  Where
 * nothing is, nothing will ever be, up to the mark, while the slot's version stays.
 */
static void
deliver_slots(Request *request, Subscription *outbox, SlotReader *reader, QueueScan *scan,
			  int64 mark, const bool *covered)
{
	SlotState	states[OUTBOX_SLOTS];
	int			nstates = 0;

	if (empty_generation != catalog_store()->generation)
	{
		memset(empty, 0, sizeof(empty));
		empty_generation = catalog_store()->generation;
	}
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
	{
		SlotState	state;
		int			i = nstates;

		slot_read(reader, slot, &state);
		if (state.consumer != NULL || passed(&state) >= mark)
			continue;
		for (; i > 0 && passed(&states[i - 1]) > passed(&state); i--)
			states[i] = states[i - 1];
		states[i] = state;
		nstates++;
	}
	for (int i = 0; i < nstates && request->count < request->max_count; i++)
	{
		int			slot = states[i].slot;
		SlotState  *state = &states[i];

		if (!slot_lock(slot, false))
			continue;
		slot_read(reader, slot, state);
		if (state->consumer == NULL)
		{
			/* what has failed in it has before we had the lock */
			if (!covered[slot] && policy_has_failures())
			{
				outbox->has_failures = true;
				failure_begin(outbox);
			}
			if (deliver_slot(request, outbox, scan, state, mark))
				continue;
			/* a version that is rolled back comes again, and is another one then */
			if (!state->is_ours)
			{
				empty[slot].version = state->version;
				empty[slot].mark = mark;
			}
		}
		slot_unlock(slot);
	}
}

static void
deliver(Request *request)
{
	static TimestampTz last_look = 0;
	Subscription outbox;
	SlotReader	reader;
	QueueScan	scan;
	int64		mark;
	uint64		writes = plans_writes;
	TimestampTz now;
	bool		looked = false;
	bool		covered[OUTBOX_SLOTS + 1] = {0};
	bool		alone = false;

	policy_read(&outbox);
	if (outbox.paused)
		return;
	request->max_count = breaker_limit(&outbox, request->max_count);
	if (request->max_count == 0)
		return;
	(void) rotate_move_due();
	mark = settled_mark();
	queue_open(&scan, true);
	slot_begin(&reader);
	now = GetCurrentTimestamp();
	if (outbox.has_failures || now < last_look || now - last_look >= SILENCE_INTERVAL)
	{
		alone = deliver_rest(request, &outbox, &reader, &scan, covered);
		last_look = now;
		looked = true;
	}
	if (!alone)
		deliver_slots(request, &outbox, &reader, &scan, mark, covered);
	/* there may be something after all */
	if (request->count == 0 && !looked)
		(void) deliver_rest(request, &outbox, &reader, &scan, covered);
	slot_end(&reader);
	queue_close(&scan);
	if (plans_writes != writes)
		wake_at_end();
	/* who only takes, and gives back, writes states of slots, too */
	rotate_at_end(request->count == 0 ? PG_INT64_MAX : 10);
}

static void
note_change(TimestampTz at, TimestampTz now, TimestampTz *next, bool *overdue)
{
	if (at == 0)
		return;
	if (at <= now)
		*overdue = true;
	else if (*next == 0 || at < *next)
		*next = at;
}

/*
 * When something will happen by itself; 0: never.  overdue: something should have
 * happened by now; who has looked, and not got it, looks again in a while, for who
 * is in the way may go without a word.
 */
static TimestampTz
next_change(bool *overdue)
{
	Subscription outbox;
	SlotReader	reader;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = 0;

	*overdue = false;
	note_change(rotate_next_due(), now, &next, overdue);
	slot_begin(&reader);
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
	{
		SlotState	state;

		slot_read(&reader, slot, &state);
		if (state.consumer != NULL)
			note_change(state.leased_until, now, &next, overdue);
	}
	slot_end(&reader);
	if (policy_has_failures())
	{
		bool		queued;

		policy_read(&outbox);
		note_change(failure_next_due(&outbox, &queued), now, &next, overdue);
		*overdue |= queued;
		if (outbox.breaker_failures > 0 && outbox.breaker == BREAKER_OPEN)
			note_change(outbox.breaker_until, now, &next, overdue);
	}
	if (*overdue && (next == 0 || next - now > guc_look_interval * INT64CONST(1000)))
		next = now + guc_look_interval * INT64CONST(1000);
	return next;
}

/*
 * Waits until there is something: as a poll of a subscription does (poll.c).  Who has
 * written something, and has got nothing, comes back at once.
 */
static void
deliver_or_wait(Request *request, TimestampTz until)
{
	int64		mark = -1;
	bool		woken = true;
	int			max_count = request->max_count;

	wake_begin_wait();
	for (int times = 0;; times++)
	{
		int64		mark_now = settled_mark();
		bool		overdue;
		TimestampTz next = next_change(&overdue);

		if (woken || mark_now != mark || times % 10 == 0 || overdue)
		{
			uint64		writes = plans_writes;
			bool		keep;

			mark = mark_now;
			request->max_count = max_count;
			request->relay.until = ack_lease_end(request->relay.lease);
			state_begin_try();
			deliver(request);
			keep = request->count > 0 || plans_writes != writes;
			state_end_try(keep);
			if (keep)
				break;
			next = next_change(&overdue);
		}
		if (GetCurrentTimestamp() >= until)
			break;
		woken = poll_wait(until, next, request->result);
	}
	wake_end_wait();
}

Datum
event_store_outbox_poll(PG_FUNCTION_ARGS)
{
	Request		request = {0};
	bool		is_first;

	deliver_guard("event_store.outbox_poll()");
	request.result = (ReturnSetInfo *) fcinfo->resultinfo;
	request.relay.name = deliver_relay_argument(fcinfo, 0);
	request.max_count = PG_ARGISNULL(1) ? PG_INT32_MAX : PG_GETARG_INT32(1);
	if (request.max_count < 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("max_count must be positive")));
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("lease must not be NULL")));
	request.relay.lease = PG_GETARG_INTERVAL_P(2);
	ack_check_interval("lease", request.relay.lease, AT_LEAST_MORE);
	request.relay.leases = true;
	request.relay.until = ack_lease_end(request.relay.lease);
	InitMaterializedSRF(fcinfo, 0);
	is_first = GetCurrentCommandId(false) == FirstCommandId;
	if (PG_ARGISNULL(3))
		deliver(&request);
	else
	{
		ack_check_interval("wait", PG_GETARG_INTERVAL_P(3), AT_LEAST_ANY);
		deliver_or_wait(&request, ack_lease_end(PG_GETARG_INTERVAL_P(3)));
	}
	if (is_first && !IsTransactionBlock() && poll_is_alone(request.result))
		rotate_commit_soon();
	return (Datum) 0;
}
