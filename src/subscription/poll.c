/*
 * poll.c
 *		Delivering events; and what becomes of them if their consumer dies.
 *
 * A poll locks what it delivers from (the cursor, slots, rows) to the end of the
 * caller's transaction and returns the next events; without a lease, of what is
 * dealt already or need not be, it writes nothing.  An acknowledgement in the same
 * transaction moves the checkpoint, so the consumer's own writes and the
 * checkpoint commit together, or not at all.  A rollback, a crash, or a commit
 * without acknowledgement leave the events where they were: they come again.
 *
 * Several polls in one transaction go on from each other (delivered.c).
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "nodes/plannodes.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "tcop/pquery.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/guc.h"
#include "notification/notification.h"
#include "position/position.h"
#include "subscription/subscription.h"

PG_FUNCTION_INFO_V1(event_store_poll);

/* columns of delivered_event behind those of recorded_event */
enum
{
	DE_ATTEMPT = RE_NATTS,
	DE_IS_REPLAY,
	DE_NATTS
};

/* a poll that waits looks by itself so many times less often than the worker */
#define LOOKS_LESS_OFTEN	5

/* positions that pass by unread before an empty poll moves the checkpoint */
#define WORTH_A_WRITE	1000

static int32 last_max_count = 1;	/* of the last poll */

static void
guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	catalog_require_read(catalog_store());
}

/* ----------------------------------------------------------------
 * Poll
 * ----------------------------------------------------------------
 */

/* times that a poll deals out before it comes back with what there is */
#define DEALS			4

/* events that a poll without a lease moves behind failed ones */
#define MAX_PARKED		1000

/* an event to deliver, and the number of the attempt */
typedef struct Delivery
{
	int64		position;
	int			attempt;
} Delivery;

/* what a poll asks for */
typedef struct Request
{
	text	   *name;
	int32		max_count;
	Consumer	consumer;
	bool		waits;
	ReturnSetInfo *result;
	int64		count;			/* delivered so far */
} Request;

static int
compare_deliveries(const void *a, const void *b)
{
	return state_compare_positions(&((const Delivery *) a)->position,
								   &((const Delivery *) b)->position);
}

/* Reads events by their positions, which ascend, and returns them. */
static void
put_events(Request *request, Subscription *subscription, const Delivery *events, int count)
{
	int64	   *positions = palloc(sizeof(int64) * Max(count, 1));
	ReadRequest read;
	Reader	   *reader;
	Datum		values[DE_NATTS];
	bool		nulls[DE_NATTS];
	int			i = 0;

	for (int k = 0; k < count; k++)
		positions[k] = events[k].position;
	memset(&read, 0, sizeof(read));
	read.kind = READ_POSITIONS;
	read.max_count = PG_INT64_MAX;
	read.npositions = count;
	read.positions = positions;
	reader = reader_open(&read);
	nulls[DE_ATTEMPT] = nulls[DE_IS_REPLAY] = false;
	while (reader_next(reader, values, nulls))
	{
		int64		position = DatumGetInt64(values[RE_POSITION]);

		while (events[i].position < position)
			i++;
		values[DE_ATTEMPT] = Int32GetDatum(events[i].attempt);
		values[DE_IS_REPLAY] = BoolGetDatum(replay_is(subscription, position));
		tuplestore_putvalues(request->result->setResult, request->result->setDesc, values, nulls);
	}
	reader_close(reader);
	request->count += count;
	pfree(positions);
}

/* What is due of that which has failed; returns whether nothing may come along. */
static bool
deliver_failed(Request *request, Subscription *subscription, const int *slots, int nslots)
{
	Consumer   *consumer = &request->consumer;
	Retry	   *retries;
	Delivery   *events;
	bool		alone;
	int			count;

	count = failure_take(subscription, slots, nslots, (int) (request->max_count - request->count),
						 consumer, &retries, &alone);
	if (count == 0)
		return alone;
	events = palloc(sizeof(Delivery) * count);
	for (int i = 0; i < count; i++)
	{
		events[i].position = retries[i].position;
		events[i].attempt = retries[i].attempt;
	}
	qsort(events, count, sizeof(Delivery), compare_deliveries);
	put_events(request, subscription, events, count);
	if (consumer->at_once)
	{
		int64	   *positions = palloc(sizeof(int64) * count);

		for (int i = 0; i < count; i++)
			positions[i] = events[i].position;
		breaker_succeeded(subscription,
						  failure_settle(subscription, positions, count, 0, consumer));
		/* their streams are not blocked any more, perhaps */
		failure_begin(subscription);
	}
	return alone;
}

/* What is dealt to some slots. */
static void
deliver_dealt(Request *request, Subscription *subscription, const int *slots, int nslots)
{
	Consumer   *consumer = &request->consumer;
	EventList	parked;

	do
	{
		EventList	taken = {0};
		Delivery   *events;
		int			count = 0;
		int			first = 0;

		batch_take(subscription, slots, nslots, (int) (request->max_count - request->count),
				   consumer, &taken);
		memset(&parked, 0, sizeof(parked));
		events = palloc(sizeof(Delivery) * Max(taken.count, 1));
		for (int i = 0; i < taken.count; i++)
		{
			if (failure_blocks(subscription, taken.streams[i]))
				events_add(&parked, taken.positions[i], taken.streams[i]);
			else
			{
				events[count].position = taken.positions[i];
				events[count++].attempt = 1;
			}
		}
		if (parked.count > 0)
		{
			if (!consumer->at_once)
				batch_drop_parked(subscription, &parked, consumer);
			failure_park(subscription, &parked, NULL, PARKED_UNSEEN);
		}
		if (consumer->at_once)
			breaker_succeeded(subscription, count);
		/* of slots together, or by priority in ascending runs */
		if (!subscription->competing)
			qsort(events, count, sizeof(Delivery), compare_deliveries);
		for (int i = 1; i <= count; i++)
			if (i == count || events[i].position < events[i - 1].position)
			{
				put_events(request, subscription, events + first, i - first);
				first = i;
			}
	} while (parked.count > 0 && request->count < request->max_count);
}

/* What follows in the log, of a subscription that is dealt to nobody. */
static void
deliver_log(Request *request, Subscription *subscription)
{
	Consumer   *consumer = &request->consumer;
	bool		at_once = consumer->at_once || consumer->leases;
	int64		before = delivered_log(subscription->id);
	int64		after = Max(subscription->checkpoint, before);
	int64		last = 0;
	int64		mark;
	int64		count = 0;
	EventList	taken = {0};
	EventList	parked = {0};
	SubscriptionScan *scan;
	Datum		values[DE_NATTS];
	bool		nulls[DE_NATTS];

	nulls[DE_ATTEMPT] = nulls[DE_IS_REPLAY] = false;
	values[DE_ATTEMPT] = Int32GetDatum(1);
	scan = subscription_scan_open(subscription, after, PG_INT64_MAX, false);
	while (count < request->max_count - request->count &&
		   subscription_scan_next(scan, values, nulls))
	{
		int64		position = DatumGetInt64(values[RE_POSITION]);
		int64		stream = subscription_scan_stream(scan);

		if (failure_blocks(subscription, stream))
		{
			if (!at_once && parked.count >= MAX_PARKED)
				break;
			events_add(&parked, position, stream);
			last = position;
			continue;
		}
		last = position;
		values[DE_IS_REPLAY] = BoolGetDatum(replay_is(subscription, position));
		tuplestore_putvalues(request->result->setResult, request->result->setDesc, values, nulls);
		if (consumer->leases)
			events_add(&taken, position, stream);
		count++;
	}
	mark = subscription_scan_close(scan);
	request->count += count;

	if (at_once && last > 0)
	{
		batch_lease(subscription, &taken, consumer);
		failure_park(subscription, &parked, NULL, PARKED_UNSEEN);
		subscription->checkpoint = last;
		while (subscription->ndecided > 0 && subscription->decided[0] < last)
		{
			subscription->decided++;
			subscription->ndecided--;
		}
		state_write(subscription, count + parked.count);
		if (consumer->at_once)
			breaker_succeeded(subscription, count);
		return;
	}
	if (count > 0)
		delivered_note(subscription->id, DELIVERED_LOG, 0)->delivered_to = last;
	if (parked.count > 0)
	{
		(void) ack_decide(subscription, parked.positions, parked.count, 0, false);
		failure_park(subscription, &parked, NULL, PARKED_UNSEEN);
	}
	if (count > 0 && !subscription->has_failures)
		delivered_read(subscription, after, last, count);
	else if (count == 0 && before == 0 && subscription->ndecided == 0 && last == 0 &&
			 mark - subscription->checkpoint >= WORTH_A_WRITE && !IsolationUsesXactSnapshot())
	{
		/* there was nothing of interest up to the mark: don't look there again */
		subscription->checkpoint = mark;
		state_write(subscription, 0);
	}
}

static void consumer_died(int code, Datum arg);

/* Delivers what is open; returns how much. */
static int64
deliver(Request *request)
{
	static bool registered = false;
	Consumer   *consumer = &request->consumer;
	Subscription subscription;

	if (!registered)
	{
		before_shmem_exit(consumer_died, (Datum) 0);
		registered = true;
	}

	if (!state_read(request->name, STATE_TRY, &subscription))
	{
		/* somebody is in the way; it is heard of all the same */
		if (consumer->name != NULL && !request->waits &&
			state_read(request->name, STATE_LOOK, &subscription))
		{
			group_be_here(&subscription, consumer);
			(void) group_renew(&subscription, consumer, true, consumer->lease, false);
		}
		return 0;
	}
	wake_at_end();
	if (!request->waits)
		group_be_here(&subscription, consumer);
	if (IsolationUsesXactSnapshot() && (consumer->leases || consumer->name != NULL))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("events cannot be leased, nor polled by a consumer with a name, in REPEATABLE READ or SERIALIZABLE"),
				 errhint("Use READ COMMITTED.")));
	if (consumer->leases && consumer->name == NULL && !subscription.competing)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a lease of an ordered subscription needs the name of a consumer")));
	(void) group_renew(&subscription, consumer, true, consumer->lease, request->waits);
	if (subscription.paused)
		return 0;
	if ((consumer->at_once || consumer->leases) &&
		(delivered_count(subscription.id, DELIVERED_BATCH) > 0 ||
		 delivered_count(subscription.id, DELIVERED_FAILURE) > 0 ||
		 delivered_log(subscription.id) > subscription.checkpoint))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("events that an earlier poll of this transaction delivered are not acknowledged"),
				 errhint("Acknowledge them first, or let that poll do it too.")));
	request->max_count = breaker_limit(&subscription, request->max_count);
	if (request->max_count == 0)
		return 0;
	if (subscription.wanted_slots > 0 && !deal_slots(&subscription))
		return 0;

	last_max_count = request->max_count;
	/* what is of greater priority than all that is dealt shall not wait behind it */
	if (subscription.priority_key != NULL)
		(void) deal_more(&subscription, request->max_count);
	for (int deals = 0;; deals++)
	{
		bool		direct = state_is_direct(&subscription);
		int		   *slots;
		int			nslots = group_slots(&subscription, consumer, request->max_count, &slots);

		if (nslots > 0)
		{
			List	   *silences = NIL;

			if (subscription.has_over)
				batch_reclaim(&subscription, slots, nslots, NULL, false, &silences);
			/* where slots are locked one by one, others may have failed since it was read */
			if (subscription.has_failures || (!direct && !subscription.competing))
				failure_reclaim(&subscription, slots, nslots, NULL, false, &silences);
			breaker_silences(&subscription, silences);
			if (!subscription.competing && (subscription.has_batches || subscription.has_failures))
				nslots = group_drop_used(&subscription, consumer, slots, nslots);
		}
		if (nslots > 0)
		{
			failure_begin(&subscription);
			if (subscription.has_failures && request->count == 0 &&
				deliver_failed(request, &subscription, slots, nslots))
				break;
			if (request->count < request->max_count && (subscription.has_batches || !direct))
				deliver_dealt(request, &subscription, slots, nslots);
			if (request->count < request->max_count && direct)
				deliver_log(request, &subscription);
		}
		/* who has no slot deals nothing out */
		if (direct || request->count >= request->max_count || deals >= DEALS ||
			(nslots == 0 && consumer->name != NULL) ||
			!deal_more(&subscription, request->max_count))
			break;
	}
	return request->count;
}

/* what a poll that waits has seen */
typedef struct Seen
{
	int64		mark;
	int64		version;		/* of the subscription */
	int64		looked_to;		/* nothing is open up to here */
	TimestampTz next;			/* then something happens by itself; 0: never */
} Seen;

/*
 * Is anything open, behind a position that an earlier look has come to?  Locks
 * nothing, so that who waits for events has no transaction id.
 */
static bool
is_open(text *name, Seen *seen)
{
	Subscription subscription;
	SubscriptionScan *scan;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	int64		after;
	bool		found;

	(void) state_read(name, STATE_LOOK, &subscription);
	seen->next = 0;
	if (subscription.paused)
		return false;
	if (subscription.breaker_failures > 0 && subscription.breaker == BREAKER_OPEN &&
		subscription.breaker_until > GetCurrentTimestamp())
	{
		seen->next = subscription.breaker_until;
		return false;
	}
	if (subscription.wanted_slots > 0)
		return true;
	if (subscription.has_batches || subscription.has_failures)
	{
		bool		queued;

		seen->next = failure_next_due(&subscription, &queued);
		if (queued)
			return true;
	}
	after = Max(subscription.checkpoint, delivered_log(subscription.id));
	/* it was rewound, or reads something else, or has just gone on */
	if (subscription.version != seen->version)
		seen->looked_to = after;
	seen->version = subscription.version;
	scan = subscription_scan_open(&subscription, seen->looked_to, 1, true);
	found = subscription_scan_next(scan, values, nulls);
	if (!found)
		seen->looked_to = Max(seen->looked_to, subscription_scan_mark(scan));
	(void) subscription_scan_close(scan);
	return found;
}

/*
 * Is this the client's own statement, not one of a function, and nothing but SELECT
 * columns FROM this function?
 */
bool
poll_is_alone(ReturnSetInfo *result)
{
	EState	   *estate = result->econtext->ecxt_estate;
	PlannedStmt *statement = estate == NULL ? NULL : estate->es_plannedstmt;
	ListCell   *cell;

	if (statement == NULL ||
		ActivePortal == NULL || ActivePortal->name[0] != '\0' ||
		ActivePortal->queryDesc == NULL || ActivePortal->queryDesc->estate != estate ||
		statement->commandType != CMD_SELECT || statement->subplans != NIL ||
		statement->rowMarks != NIL || !IsA(statement->planTree, FunctionScan) ||
		statement->planTree->qual != NIL)
		return false;
	foreach(cell, statement->planTree->targetlist)
		if (!IsA(lfirst_node(TargetEntry, cell)->expr, Var))
			return false;
	return true;
}

/* The same of a function that returns a value: nothing but SELECT function(…). */
static bool
is_alone_as_value(const FmgrInfo *function)
{
	QueryDesc  *query = ActivePortal == NULL ? NULL : ActivePortal->queryDesc;
	Plan	   *plan;

	if (query == NULL || ActivePortal->name[0] != '\0' || query->operation != CMD_SELECT ||
		query->plannedstmt->subplans != NIL)
		return false;
	plan = query->plannedstmt->planTree;
	return IsA(plan, Result) && outerPlan(plan) == NULL && plan->qual == NIL &&
		castNode(Result, plan)->resconstantqual == NULL && list_length(plan->targetlist) == 1 &&
		(Node *) linitial_node(TargetEntry, plan->targetlist)->expr == function->fn_expr;
}

/* Is a transaction's snapshot the only one? */
static bool
has_no_other_snapshot(void)
{
	InvalidateCatalogSnapshot();
	return ThereAreNoPriorRegisteredSnapshots();
}

/*
 * Before a function waits: the transaction lets go of its xmin meanwhile, if nothing is
 * read by its snapshot any more.  The next snapshot sets it anew.
 */
void
poll_let_go(FunctionCallInfo fcinfo)
{
	bool		is_alone = fcinfo->resultinfo != NULL ?
		poll_is_alone(castNode(ReturnSetInfo, fcinfo->resultinfo)) :
		is_alone_as_value(fcinfo->flinfo);

	if (is_alone && !IsolationUsesXactSnapshot() && has_no_other_snapshot())
		MyProc->xmin = InvalidTransactionId;
}

/*
 * Waits until somebody wakes us, or a time has come; returns whether it was the
 * first.
 *
 * next: then something happens by itself; 0: never.
 *
 * The transaction lets go of its xmin meanwhile, if nothing reads by an older
 * snapshot afterwards: the next snapshot sets it anew.
 */
bool
poll_wait(TimestampTz until, TimestampTz next, ReturnSetInfo *result)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		timeout;
	int			woken;

	if (poll_is_alone(result) && has_no_other_snapshot())
		MyProc->xmin = InvalidTransactionId;
	if (next != 0)
		until = Min(until, next);
	timeout = Min((until - now) / 1000 + 1, (int64) guc_look_interval * LOOKS_LESS_OFTEN);
	woken = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					  (long) Max(timeout, 0), PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return (woken & WL_LATCH_SET) != 0;
}

/*
 * A poll that waits looks without a lock first, and takes locks when there is
 * something to deliver; if it cannot have it, it gives them back before it
 * waits.  It is registered as one who waits before it looks, so nothing that is
 * appended after the look fails to wake it.
 *
 * Where it has written something and got nothing (it joined the group, moved
 * events behind failed ones, dealt out to others) it comes back at once: what it
 * wrote must not wait for a commit with it.  That it is heard of it writes at its
 * end.
 *
 * Where nobody has woken it, a look costs more than it is worth as long as the
 * mark stands still; what COMMIT PREPARED has done to the subscription shows at
 * every tenth time.
 */
Datum
event_store_poll(PG_FUNCTION_ARGS)
{
	Request		request = {0};
	Seen		seen = {.mark = -1, .version = -1, .looked_to = -1};
	TimestampTz until;
	bool		woken = false;
	bool		blocked = false;	/* there is something, but others have it */

	guard("event_store.poll()");
	request.result = (ReturnSetInfo *) fcinfo->resultinfo;
	request.name = state_name_argument(fcinfo, 0);
	request.max_count = PG_ARGISNULL(1) ? PG_INT32_MAX : PG_GETARG_INT32(1);
	if (request.max_count < 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("max_count must be positive")));
	request.consumer.name = ack_consumer_argument(fcinfo, 2);
	request.consumer.at_once = !PG_ARGISNULL(5) && PG_GETARG_BOOL(5);
	if (!PG_ARGISNULL(4))
	{
		request.consumer.lease = PG_GETARG_INTERVAL_P(4);
		ack_check_interval("lease", request.consumer.lease, AT_LEAST_MORE);
		if (request.consumer.at_once)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("lease and auto_ack exclude each other")));
		request.consumer.leases = true;
		request.consumer.until = ack_lease_end(request.consumer.lease);
	}
	InitMaterializedSRF(fcinfo, 0);

	/* what comes after its snapshot, such a transaction will never see */
	if (PG_ARGISNULL(3) || IsolationUsesXactSnapshot())
	{
		(void) deliver(&request);
		return (Datum) 0;
	}

	ack_check_interval("wait", PG_GETARG_INTERVAL_P(3), AT_LEAST_ANY);
	until = ack_lease_end(PG_GETARG_INTERVAL_P(3));
	request.waits = true;
	if (request.consumer.name != NULL)
	{
		/* as long as it waits it is alive */
		Subscription subscription;

		(void) state_read(request.name, STATE_LOOK, &subscription);
		group_be_here(&subscription, &request.consumer);
	}
	wake_begin_wait();
	for (int times = 0;; times++)
	{
		int64		mark = settled_mark();
		int32		max_count = request.max_count;

		if (woken || blocked || mark != seen.mark || times % 10 == 0 || seen.next != 0)
		{
			seen.mark = mark;
			blocked = is_open(request.name, &seen);
			/* a consumer with a name is heard of at least */
			if (blocked || (times == 0 && request.consumer.name != NULL))
			{
				uint64		writes = plans_writes;
				bool		keep;

				if (request.consumer.lease != NULL)
					request.consumer.until = ack_lease_end(request.consumer.lease);
				state_begin_try();
				(void) deliver(&request);
				keep = request.count > 0 || plans_writes != writes;
				state_end_try(keep);
				if (keep)
					break;
			}
		}
		if (GetCurrentTimestamp() >= until)
			break;
		request.max_count = max_count;
		woken = poll_wait(until, seen.next, request.result);
	}
	wake_end_wait();
	if (request.consumer.name != NULL)
	{
		Subscription subscription;

		(void) state_read(request.name, STATE_LOOK, &subscription);
		(void) group_renew(&subscription, &request.consumer, true, request.consumer.lease, false);
	}
	return (Datum) 0;
}

/* ----------------------------------------------------------------
 * A consumer that dies
 * ----------------------------------------------------------------
 */

static Statement name_of_id = {
	"SELECT s.name FROM event_store.subscription AS s WHERE s.id = $1",
	1, {INT4OID}
};

/* What was delivered of one subscription has been tried once more. */
static void
give_up(int32 id)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[1] = {Int32GetDatum(id)};
	Subscription subscription;
	EventList	events = {0};
	OwnerSwitch saved;
	text	   *name = NULL;
	bool		isnull;
	int64		up_to = delivered_log(id);
	const Given *given;
	int			ngiven = delivered_given(&given);
	int64	   *positions = palloc(sizeof(int64) * Max(ngiven, 1));
	int			count = 0;
	int			failures;
	int			dead;
	List	   *silences = NIL;

	owner_begin(&saved);
	if (plans_execute(&name_of_id, values, NULL) > 0)
	{
		MemoryContextSwitchTo(context);
		name = DatumGetTextPCopy(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
											   &isnull));
	}
	owner_end(&saved);
	if (name == NULL || !state_read(name, STATE_LOCK, &subscription) || subscription.id != id)
		return;
	wake_at_end();
	for (int i = 0; i < ngiven; i++)
		if (given[i].subscription_id == id)
			positions[count++] = given[i].position;
	if (count > 0)
	{
		qsort(positions, count, sizeof(int64), state_compare_positions);
		batch_give_up(&subscription, positions, count, &events);
		/* it may have dealt some of them itself, in the transaction that is no more */
		if (events.count < count && !state_is_direct(&subscription) &&
			positions[count - 1] > subscription.checkpoint &&
			batch_deal(&subscription, last_max_count) > 0)
			batch_give_up(&subscription, positions, count, &events);
	}
	if (state_is_direct(&subscription) && up_to > subscription.checkpoint)
	{
		SubscriptionScan *scan = subscription_scan_open(&subscription, subscription.checkpoint,
														MAX_GIVEN, true);
		Datum		row[RE_NATTS];
		bool		nulls[RE_NATTS];
		int			first = events.count;

		failure_begin(&subscription);
		while (subscription_scan_next(scan, row, nulls))
		{
			int64		position = DatumGetInt64(row[RE_POSITION]);

			if (position > up_to)
				break;
			if (!failure_blocks(&subscription, subscription_scan_stream(scan)))
				events_add(&events, position, subscription_scan_stream(scan));
		}
		(void) subscription_scan_close(scan);
		(void) ack_decide(&subscription, events.positions + first, events.count - first, 0, false);
	}
	failures = failure_give_up(&subscription, events.count, &dead);
	if (events.count > 0)
		dead += failure_take_back(&subscription, &events, true, events.count + failures == 1,
								  cstring_to_text(""));
	if (events.count + failures > 0)
	{
		breaker_add_silence(&silences, cstring_to_text(""), 0, 0, dead);
		breaker_silences(&subscription, silences);
	}
}

/*
 * A session that ends in the middle of a transaction that has polled: its
 * consumer has died, as likely as not of an event that it was given.  The
 * transaction can leave nothing behind, so another one notes the attempt.  Not if
 * the session was ended from here (an administrator, a shutdown).
 */
static void
consumer_died(int code, Datum arg)
{
	List	   *ids;
	List	   *marked = NIL;
	ListCell   *cell;
	MemoryContext saved;

	if ((code != 0 && !ClientConnectionLost) || !IsTransactionState() || RecoveryInProgress())
		return;
	/* whatever context the session has come here in may go with its transaction */
	saved = MemoryContextSwitchTo(TopMemoryContext);
	ids = delivered_subscriptions();
	/* nobody gets between the end of the transaction and the note */
	foreach(cell, ids)
		if (state_mark(lfirst_int(cell)))
			marked = lappend_int(marked, lfirst_int(cell));
	MemoryContextSwitchTo(saved);
	if (ids == NIL)
		return;
	delivered_keep();
	AbortOutOfAnyTransaction();
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	/* whatever the session's defaults are */
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	PushActiveSnapshot(GetTransactionSnapshot());
	if (catalog_store_exists())
	{
		OwnerSwitch saved_user;

		/* whoever polled had the right to read them */
		owner_become(&saved_user);
		foreach(cell, ids)
			give_up(lfirst_int(cell));
		owner_return(&saved_user);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	foreach(cell, marked)
		state_unmark(lfirst_int(cell));
	wake_waiters();
}
