/*
 * ack.c
 *		What consumers say of the events that they were given: done, failed, or
 *		that they are still at it.
 *
 * An event that is not decided is in one of three places: in the log behind the
 * cursor, in a row of subscription_batch, or in one of subscription_failure.  A
 * call goes through them in that order backward.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "notification/notification.h"
#include "stream/stream.h"
#include "subscription/subscription.h"

PG_FUNCTION_INFO_V1(event_store_ack);
PG_FUNCTION_INFO_V1(event_store_ack_up_to);
PG_FUNCTION_INFO_V1(event_store_nack);
PG_FUNCTION_INFO_V1(event_store_heartbeat);
PG_FUNCTION_INFO_V1(event_store_leave);

/* a time that is given, at most */
#define MAX_SECONDS			(100 * 366 * 86400.0)

/* how often leave() looks for what the consumer has, at most */
#define LEAVE_ROUNDS		10

/* bytes of an error that are kept */
#define MAX_ERROR_BYTES		10000

static void
guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	catalog_require_read(catalog_store());
}

/* The positions of an array, ascending, each once. */
int64 *
ack_positions_argument(const char *what, Datum value, int *count)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	Datum	   *elements;
	bool	   *nulls;
	int64	   *positions;
	int			n = 0;

	deconstruct_array(array, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE,
					  &elements, &nulls, count);
	positions = palloc(sizeof(int64) * Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("%s must not contain NULL", what)));
		positions[i] = DatumGetInt64(elements[i]);
	}
	qsort(positions, *count, sizeof(int64), state_compare_positions);
	for (int i = 0; i < *count; i++)
		if (i == 0 || positions[i] != positions[i - 1])
			positions[n++] = positions[i];
	*count = n;
	return positions;
}

/* The name of a consumer, checked, or NULL. */
text *
ack_consumer_argument(FunctionCallInfo fcinfo, int n)
{
	text	   *name;

	if (PG_ARGISNULL(n))
		return NULL;
	name = PG_GETARG_TEXT_PP(n);
	input_check_name("name of a consumer", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	return name;
}

/* An error, as much of it as is kept. */
char *
ack_error_text(text *value)
{
	char	   *error = text_to_cstring(value);

	if (strlen(error) > MAX_ERROR_BYTES)
		error[pg_mbcliplen(error, strlen(error), MAX_ERROR_BYTES)] = '\0';
	return error;
}

/* So long from now. */
TimestampTz
ack_lease_end(const Interval *lease)
{
	return DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												   TimestampTzGetDatum(GetCurrentTimestamp()),
												   IntervalPGetDatum(unconstify(Interval *, lease))));
}

/* A length of time, of a hundred years at most. */
void
ack_check_interval(const char *what, const Interval *interval, AtLeast low)
{
	double		seconds = values_seconds(interval);

	if (low != AT_LEAST_ANY && (seconds < 0 || (seconds == 0 && low == AT_LEAST_MORE)))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 low == AT_LEAST_ZERO ? errmsg("%s must not be negative", what) :
				 errmsg("%s must be positive", what)));
	if (seconds > MAX_SECONDS)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must not be longer than 100 years", what)));
}

/*
 * Decides events in the log, of a subscription whose cursor is locked: those at
 * the given positions, or all up to one.  The open events from the checkpoint on
 * are read again, up to the last of them: the checkpoint moves to the last event
 * before the first that stays open; what is decided behind that is kept in a
 * list.  If that gets too long, what is open among them moves into rows of the
 * queue, and the checkpoint past it.  Returns how many were open, and are not any more.
 *
 * done: the consumer is done with them, so those of a blocked stream do not
 * count; otherwise they have been put elsewhere.
 */
int64
ack_decide(Subscription *subscription, const int64 *positions, int count, int64 up_to, bool done)
{
	int64		last = positions == NULL ? up_to : count == 0 ? 0 : positions[count - 1];
	int64	   *decided;
	int			ndecided = 0;
	int			next = 0;		/* of the list that there was */
	int64		checkpoint = subscription->checkpoint;
	bool		gap = false;
	int64		found = 0;
	int			room = subscription->ndecided + MAX_DECIDED;
	int			before = -1;	/* so many of the list lie before the last position */
	EventList	open = {0};		/* as does this */
	SubscriptionScan *scan;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];

	if (last <= subscription->checkpoint)
		return 0;
	if (done && positions == NULL && !subscription->has_failures &&
		(found = delivered_read_count(subscription, up_to)) > 0)
	{
		subscription->checkpoint = up_to;
		state_write(subscription, found);
		return found;
	}
	decided = palloc(sizeof(int64) * room);
	scan = subscription_scan_open(subscription, subscription->checkpoint, PG_INT64_MAX, true);
	while (subscription_scan_next(scan, values, nulls))
	{
		int64		position = DatumGetInt64(values[RE_POSITION]);

		/* those decided earlier lie between the open ones */
		for (; next < subscription->ndecided && subscription->decided[next] < position; next++)
		{
			if (gap)
				decided[ndecided++] = subscription->decided[next];
			else
				checkpoint = subscription->decided[next];
		}
		if (position > last)
		{
			/* an open event */
			gap = true;
			break;
		}
		if ((positions == NULL || positions_contain(positions, count, position)) &&
			!(done && failure_blocks(subscription, subscription_scan_stream(scan))))
		{
			found++;
			if (!gap)
				checkpoint = position;
			else
			{
				/* and what is left of the list that there was */
				if (ndecided + subscription->ndecided - next >= room)
				{
					room *= 2;
					decided = repalloc_huge(decided, sizeof(int64) * room);
				}
				decided[ndecided++] = position;
			}
		}
		else
		{
			gap = true;
			events_add(&open, position, subscription_scan_stream(scan));
		}
	}
	(void) subscription_scan_close(scan);
	while (next < subscription->ndecided && subscription->decided[next] <= last)
	{
		if (gap)
			decided[ndecided++] = subscription->decided[next];
		else
			checkpoint = subscription->decided[next];
		next++;
	}
	before = ndecided;
	for (; next < subscription->ndecided; next++)
	{
		if (gap)
			decided[ndecided++] = subscription->decided[next];
		else
			checkpoint = subscription->decided[next];
	}
	if (found > 0)
	{
		int64		taken = found;

		subscription->checkpoint = checkpoint;
		subscription->decided = decided;
		subscription->ndecided = ndecided;
		if (ndecided > MAX_DECIDED && before > 0)
		{
			/* all up to the last of them is in the log no more */
			while (open.count > 0 && open.positions[open.count - 1] > decided[before - 1])
				open.count--;
			batch_queue(subscription, &open);
			taken += open.count;
			subscription->checkpoint = decided[before - 1];
			subscription->decided += before;
			subscription->ndecided -= before;
		}
		state_write(subscription, taken);
	}
	return found;
}

/* ----------------------------------------------------------------
 * Done
 * ----------------------------------------------------------------
 */

static int64
acknowledge(FunctionCallInfo fcinfo, text *name, const int64 *positions, int count, int64 up_to)
{
	Subscription subscription;
	Consumer	consumer = {0};
	int64		failures = 0;
	int64		done = 0;

	consumer.name = ack_consumer_argument(fcinfo, 2);
	(void) state_read(name, STATE_LOCK, &subscription);
	wake_at_end();
	group_be_here(&subscription, &consumer);
	(void) group_renew(&subscription, &consumer, false, NULL, false);
	if (subscription.has_failures)
	{
		/* what is decided here makes another one due: not beside a poll of the slot */
		if (!subscription.competing && !state_is_direct(&subscription))
			failure_lock_slots(&subscription, positions, count, up_to, &consumer);
		failures = failure_settle(&subscription, positions, count, up_to, &consumer);
	}
	failure_begin(&subscription);
	if (subscription.has_batches && (positions == NULL || failures < count))
		done = batch_settle(&subscription, positions, count, up_to, &consumer, true);
	if (state_is_direct(&subscription))
	{
		int64		in_log = 0;
		int64		given = delivered_log(subscription.id);

		/*
		 * Who has a name means what it was given; and so does who has none,
		 * beside others who have.
		 */
		if (consumer.name == NULL &&
			(positions != NULL || !(subscription.has_consumers || subscription.has_batches)))
			given = PG_INT64_MAX;
		if (positions == NULL)
			in_log = ack_decide(&subscription, NULL, 0, Min(up_to, given), true);
		else
		{
			while (count > 0 && positions[count - 1] > given)
				count--;
			in_log = ack_decide(&subscription, positions, count, 0, true);
		}
		/* who has an older snapshot shall know that something has changed */
		if (in_log == 0 && failures > 0)
			state_write(&subscription, 0);
		done += in_log;
	}
	done += failures;
	if (done > 0)
		batch_renew(&subscription, &consumer);
	breaker_succeeded(&subscription, done);
	return done;
}

Datum
event_store_ack(PG_FUNCTION_ARGS)
{
	int64	   *positions;
	int			count;
	text	   *name;

	guard("event_store.ack()");
	name = state_name_argument(fcinfo, 0);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("positions must not be NULL")));
	positions = ack_positions_argument("positions", PG_GETARG_DATUM(1), &count);
	PG_RETURN_INT64(acknowledge(fcinfo, name, positions, count, 0));
}

Datum
event_store_ack_up_to(PG_FUNCTION_ARGS)
{
	text	   *name;

	guard("event_store.ack_up_to()");
	name = state_name_argument(fcinfo, 0);
	if (PG_ARGISNULL(1) || PG_GETARG_INT64(1) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("position must be a position, or 0")));
	PG_RETURN_INT64(acknowledge(fcinfo, name, NULL, 0, PG_GETARG_INT64(1)));
}

/* ----------------------------------------------------------------
 * Failed
 * ----------------------------------------------------------------
 */

/*
 * Takes an event that has failed out of the log, with the earlier ones of its
 * stream that are open.  False if it is not open; blocked: it has to wait behind
 * one of its stream that has failed before it.
 */
static bool
take_from_log(Subscription *subscription, int64 position, int64 *stream, EventList *earlier,
			  bool *is_blocked)
{
	EventList	open = {0};
	SubscriptionScan *scan;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	bool		found = false;
	int64	   *taken;

	if (state_is_decided(subscription, position))
		return false;
	scan = subscription_scan_open(subscription, subscription->checkpoint, PG_INT64_MAX, true);
	while (!found && subscription_scan_next(scan, values, nulls))
	{
		int64		here = DatumGetInt64(values[RE_POSITION]);

		if (here > position)
			break;
		found = here == position;
		if (found)
			*stream = subscription_scan_stream(scan);
		else
			events_add(&open, here, subscription_scan_stream(scan));
	}
	(void) subscription_scan_close(scan);
	if (!found)
		return false;
	for (int i = 0; i < open.count; i++)
		if (open.streams[i] == *stream)
			events_add(earlier, open.positions[i], *stream);
	*is_blocked = failure_blocks(subscription, *stream);
	taken = palloc(sizeof(int64) * (earlier->count + 1));
	for (int i = 0; i < earlier->count; i++)
		taken[i] = earlier->positions[i];
	taken[earlier->count] = position;
	(void) ack_decide(subscription, taken, earlier->count + 1, 0, false);
	return true;
}

static text *
nack(Subscription *subscription, int64 position, const char *error,
	 const Interval *retry_after, Consumer *consumer)
{
	bool		direct = state_is_direct(subscription);
	EventList	earlier = {0};
	bool		is_blocked = false;
	bool		dead = false;
	int64		stream;

	if (subscription->has_failures &&
		failure_again(subscription, position, error, retry_after, consumer, &dead))
	{
		if (direct)
			state_write(subscription, 0);
	}
	else
	{
		failure_begin(subscription);
		if (subscription->has_batches && batch_remove(subscription, position, consumer, &stream))
			is_blocked = failure_blocks(subscription, stream);
		else if (!direct ||
				 (consumer->name != NULL && delivered_log(subscription->id) < position) ||
				 !take_from_log(subscription, position, &stream, &earlier, &is_blocked))
			return NULL;

		/* whoever has what comes before it may still decide that, not what comes behind */
		if (!subscription->competing)
		{
			if (subscription->has_batches)
				batch_park_stream(subscription, stream, position);
			failure_park(subscription, &earlier, NULL,
						 delivered_log(subscription->id) >= position ? PARKED_IN_HAND : PARKED_SEEN);
		}
		if (is_blocked)
		{
			EventList	itself = {0};

			events_add(&itself, position, stream);
			failure_park(subscription, &itself, NULL, PARKED_SEEN);
			return cstring_to_text("retry");
		}
		dead = failure_add(subscription, position, stream, error, retry_after, consumer);
		if (direct)
			state_write(subscription, 0);
	}
	breaker_failed(subscription, dead);
	return cstring_to_text(dead ? "dead" : "retry");
}

Datum
event_store_nack(PG_FUNCTION_ARGS)
{
	Subscription subscription;
	Consumer	consumer = {0};
	text	   *name;
	text	   *result;
	int64		position;
	char	   *error;
	const Interval *retry_after;

	guard("event_store.nack()");
	name = state_name_argument(fcinfo, 0);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("position must not be NULL")));
	position = PG_GETARG_INT64(1);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("error must not be NULL")));
	error = ack_error_text(PG_GETARG_TEXT_PP(2));
	retry_after = PG_ARGISNULL(3) ? NULL : PG_GETARG_INTERVAL_P(3);
	if (retry_after != NULL)
		ack_check_interval("retry_after", retry_after, AT_LEAST_ZERO);
	consumer.name = ack_consumer_argument(fcinfo, 4);
	(void) state_read(name, STATE_LOCK, &subscription);
	wake_at_end();
	group_be_here(&subscription, &consumer);
	(void) group_renew(&subscription, &consumer, false, NULL, false);
	if (!subscription.competing && !state_is_direct(&subscription))
	{
		int			slot = batch_slot_of(&subscription, position, &consumer);

		if (slot == 0)
			PG_RETURN_NULL();
		(void) state_lock_part(&subscription, LOCK_SLOT + slot, true);
		state_read_again(&subscription);
	}
	result = nack(&subscription, position, error, retry_after, &consumer);
	if (result != NULL)
		batch_renew(&subscription, &consumer);
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(result);
}

/* ----------------------------------------------------------------
 * Still at it, or not
 * ----------------------------------------------------------------
 */

static text *
required_consumer(FunctionCallInfo fcinfo, int n)
{
	text	   *name = ack_consumer_argument(fcinfo, n);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("name of a consumer must not be NULL")));
	return name;
}

Datum
event_store_heartbeat(PG_FUNCTION_ARGS)
{
	Subscription subscription;
	Consumer	consumer = {0};
	text	   *name;

	guard("event_store.heartbeat()");
	name = state_name_argument(fcinfo, 0);
	consumer.name = required_consumer(fcinfo, 1);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("lease must not be NULL")));
	ack_check_interval("lease", PG_GETARG_INTERVAL_P(2), AT_LEAST_MORE);
	(void) state_read(name, STATE_LOOK, &subscription);
	PG_RETURN_BOOL(group_heartbeat(&subscription, &consumer, PG_GETARG_INTERVAL_P(2)));
}

Datum
event_store_leave(PG_FUNCTION_ARGS)
{
	Subscription subscription;
	text	   *name;
	text	   *consumer;
	int		   *slots;
	int			count;
	bool		was_there;

	guard("event_store.leave()");
	name = state_name_argument(fcinfo, 0);
	consumer = required_consumer(fcinfo, 1);
	(void) state_read(name, STATE_LOCK, &subscription);
	wake_at_end();
	/*
	 * In slots that stand still: what it had goes back in front of what follows.
	 * Where it has waited for an acknowledgement, the rest of that row has another
	 * key, which shows to the next round.
	 */
	for (int round = 0; round < LEAVE_ROUNDS &&
		 (count = batch_slots_held(&subscription, consumer, &slots)) > 0; round++)
	{
		if (!subscription.competing && !state_is_direct(&subscription))
			for (int i = 0; i < count; i++)
				(void) state_lock_part(&subscription, LOCK_SLOT + slots[i], true);
		batch_reclaim(&subscription, slots, count, consumer, false, NULL);
		failure_reclaim(&subscription, slots, count, consumer, false, NULL);
	}
	was_there = group_leave(&subscription, consumer);
	if (was_there)
		state_note(&subscription, "left", text_to_cstring(consumer));
	PG_RETURN_BOOL(was_there);
}
