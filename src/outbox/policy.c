/*
 * policy.c
 *		What becomes of failures, by the code of subscriptions: to that the outbox
 *		is one of many slots, with an id that no other has.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"

#include "common/compat.h"
#include "common/errors.h"
#include "notification/notification.h"
#include "outbox/outbox.h"

PG_FUNCTION_INFO_V1(event_store_alter_outbox);

static Statement read_policy = {
	"SELECT coalesce(p.paused, false), coalesce(p.max_attempts, 5),"
	" coalesce(extract(epoch FROM p.first_delay)::float8, 1), coalesce(p.delay_factor, 2),"
	" coalesce(extract(epoch FROM p.max_delay)::float8, 300), coalesce(p.jitter, 0.2),"
	" coalesce(p.breaker_failures, 0), coalesce(extract(epoch FROM p.breaker_window)::float8, 60),"
	" coalesce(extract(epoch FROM p.breaker_timeout)::float8, 30), coalesce(p.breaker_probes, 1),"
	" b.state, b.until"
	" FROM (VALUES (1)) AS one (id)"
	" LEFT JOIN event_store.outbox_policy AS p ON p.id = one.id"
	" LEFT JOIN event_store.subscription_breaker AS b ON b.subscription_id = 0",
	0, {0}
};

/* the policy, if `known`; without a circuit breaker there is nothing else to look up */
static struct
{
	bool		known;
	Oid			relid;
	Subscription outbox;
}			cache;

/* messages about the table of the policy so far */
static uint64 messages = 0;

static void
relcache_callback(Datum arg, Oid relid)
{
	if (relid != InvalidOid && relid != cache.relid)
		return;
	if (catalog_message_is_news(relid))
		messages++;
	cache.known = false;
}

/* What was changed in it is rolled back. */
static void
subtransaction_ended(SubXactEvent event, SubTransactionId id, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		cache.known = false;
}

/* The outbox, as failure.c and breaker.c want a subscription. */
void
policy_read(Subscription *outbox)
{
	OwnerSwitch saved;
	HeapTuple	row;
	TupleDesc	desc;
	Datum		value;
	bool		isnull;
	uint64		seen = messages;
	int			n = 0;

	if (cache.known && cache.relid == catalog_outbox()->outbox_policy &&
		cache.outbox.breaker_failures == 0)
	{
		*outbox = cache.outbox;
		outbox->has_failures = policy_has_failures();
		return;
	}

#define NEXT (value = SPI_getbinval(row, desc, ++n, &isnull))

	memset(outbox, 0, sizeof(Subscription));
	outbox->id = OUTBOX_ID;
	outbox->name = "outbox";
	outbox->slots = OUTBOX_SLOTS;
	outbox->leased_elsewhere = slot_leased_count;
	owner_begin(&saved);
	(void) plans_execute(&read_policy, NULL, NULL);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	outbox->paused = DatumGetBool(NEXT);
	outbox->max_attempts = DatumGetInt32(NEXT);
	outbox->first_delay = DatumGetFloat8(NEXT);
	outbox->delay_factor = DatumGetFloat8(NEXT);
	outbox->max_delay = DatumGetFloat8(NEXT);
	outbox->jitter = DatumGetFloat8(NEXT);
	outbox->breaker_failures = DatumGetInt32(NEXT);
	outbox->breaker_window = DatumGetFloat8(NEXT);
	outbox->breaker_timeout = DatumGetFloat8(NEXT);
	outbox->breaker_probes = DatumGetInt32(NEXT);
	NEXT;
	if (!isnull)
	{
		char	   *state = TextDatumGetCString(value);

		outbox->breaker = strcmp(state, "open") == 0 ? BREAKER_OPEN :
			strcmp(state, "half-open") == 0 ? BREAKER_HALF_OPEN : BREAKER_CLOSED;
	}
	NEXT;
	outbox->breaker_until = isnull ? 0 : DatumGetTimestampTz(value);
	owner_end(&saved);
	cache.outbox = *outbox;
	cache.relid = catalog_outbox()->outbox_policy;
	/* a message that came in meanwhile asks for one more round */
	cache.known = seen == messages;
	outbox->has_failures = policy_has_failures();

#undef NEXT
}

/* Has anything failed that is not decided, or waits behind such?  As of now. */
bool
policy_has_failures(void)
{
	const Store *store = catalog_consumers();
	ScanKeyData key;
	Probe		probe;
	bool		found;

	key_int32(&key, 1, BTEqualStrategyNumber, OUTBOX_ID);
	probe_open(&probe, store->subscription_failure, &store->subscription_failure_index,
			   AccessShareLock, SnapshotSelf, &key, 1);
	found = probe_next(&probe, ForwardScanDirection);
	probe_close(&probe, false);
	return found;
}

/* So many messages were acknowledged. */
void
policy_succeeded(int64 count)
{
	Subscription outbox;

	if (count == 0)
		return;
	policy_read(&outbox);
	breaker_succeeded(&outbox, count);
}

/* the arguments of alter_outbox() before those of the policy */
enum
{
	AO_PAUSED,
	AO_POLICY
};

Datum
event_store_alter_outbox(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"INSERT INTO event_store.outbox_policy AS p"
		" (paused, max_attempts, first_delay, delay_factor, max_delay, jitter, breaker_failures,"
		" breaker_window, breaker_timeout, breaker_probes)"
		" VALUES (coalesce($1, false), coalesce($2, 5), coalesce($3, '1 s'), coalesce($4, 2),"
		" coalesce($5, '5 min'), coalesce($6, 0.2), nullif($7, 0), coalesce($8, '1 min'),"
		" coalesce($9, '30 s'), coalesce($10, 1))"
		" ON CONFLICT (id) DO UPDATE SET paused = coalesce($1, p.paused),"
		" max_attempts = coalesce($2, p.max_attempts), first_delay = coalesce($3, p.first_delay),"
		" delay_factor = coalesce($4, p.delay_factor), max_delay = coalesce($5, p.max_delay),"
		" jitter = coalesce($6, p.jitter),"
		" breaker_failures = nullif(coalesce($7, p.breaker_failures), 0),"
		" breaker_window = coalesce($8, p.breaker_window),"
		" breaker_timeout = coalesce($9, p.breaker_timeout),"
		" breaker_probes = coalesce($10, p.breaker_probes)";
	Oid			types[10] = {BOOLOID, INT4OID, INTERVALOID, FLOAT8OID, INTERVALOID, FLOAT8OID,
	INT4OID, INTERVALOID, INTERVALOID, INT4OID};
	Datum		values[10];
	char		nulls[10];
	OwnerSwitch saved;

	deliver_guard("event_store.alter_outbox()");
	manage_check_policy(fcinfo, AO_POLICY);
	for (int i = 0; i < 10; i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	owner_begin(&saved);
	if (SPI_execute_with_args(sql, 10, types, values, nulls, false, 0) != SPI_OK_INSERT ||
		SPI_execute("INSERT INTO event_store.subscription_breaker (subscription_id) VALUES (0)"
					" ON CONFLICT DO NOTHING", false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write the policy of the outbox");
	owner_end(&saved);
	CacheInvalidateRelcacheByRelid(catalog_outbox()->outbox_policy);
	cache.known = false;
	wake_at_end();
	PG_RETURN_VOID();
}

void
policy_init(void)
{
	catalog_on_relcache(relcache_callback);
	RegisterSubXactCallback(subtransaction_ended, NULL);
}
