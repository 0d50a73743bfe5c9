/*
 * dead.c
 *		What becomes of dead letters, and of what is parked behind them.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "common/compat.h"
#include "common/errors.h"
#include "notification/notification.h"
#include "outbox/outbox.h"

PG_FUNCTION_INFO_V1(event_store_outbox_replay_dead_letters);
PG_FUNCTION_INFO_V1(event_store_outbox_discard_dead_letters);

#define THESE \
	" WHERE f.subscription_id = 0 AND f.dead AND ($1 IS NULL OR f.position = $1)" \
	" AND ($2 IS NULL OR EXISTS (SELECT FROM event_store.outbox_kept AS k" \
	" WHERE k.position = f.position AND k.aggregateid = $2)) RETURNING f.stream_id, f.position"

/* Settles those with an id (argument n), of a key (n + 1), or all. */
static int64
settle(FunctionCallInfo fcinfo, const char *sql, int n, const char *change, const char *reason)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[2] = {INT8OID, TEXTOID};
	Datum		values[2];
	char		nulls[2];
	Subscription outbox;
	OwnerSwitch saved;
	int64	   *streams;
	int64	   *positions;
	int64		by_slot[OUTBOX_SLOTS + 1] = {0};
	char	   *detail;
	int			count;

	if (!PG_ARGISNULL(n) && !PG_ARGISNULL(n + 1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("id and key exclude each other")));
	deliver_check_isolation("dead letters of the outbox cannot be settled in REPEATABLE READ or SERIALIZABLE");
	for (int i = 0; i < 2; i++)
	{
		values[i] = PG_GETARG_DATUM(n + i);
		nulls[i] = PG_ARGISNULL(n + i) ? 'n' : ' ';
	}
	for (int slot = 1; slot <= OUTBOX_SLOTS; slot++)
		(void) slot_lock(slot, true);
	policy_read(&outbox);
	owner_begin(&saved);
	if (SPI_execute_with_args(sql, 2, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not settle dead letters");
	count = (int) SPI_processed;
	streams = MemoryContextAlloc(context, sizeof(int64) * Max(count, 1));
	positions = MemoryContextAlloc(context, sizeof(int64) * Max(count, 1));
	for (int i = 0; i < count; i++)
	{
		bool		isnull;

		streams[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1,
												 &isnull));
		positions[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2,
												   &isnull));
	}
	owner_end(&saved);
	if (count == 0)
		return 0;
	failure_set_heads(&outbox, streams, count);
	keep_remove(positions, count, by_slot);
	detail = psprintf("%d", count);
	if (!PG_ARGISNULL(n))
		detail = psprintf("id %lld", (long long) PG_GETARG_INT64(n));
	else if (!PG_ARGISNULL(n + 1))
		detail = psprintf("%s of key %s", detail, text_to_cstring(PG_GETARG_TEXT_PP(n + 1)));
	if (reason != NULL)
		detail = psprintf("%s: %s", detail, reason);
	state_note(&outbox, change, detail);
	wake_at_end();
	return count;
}

Datum
event_store_outbox_replay_dead_letters(PG_FUNCTION_ARGS)
{
	deliver_guard("event_store.outbox_replay_dead_letters()");
	PG_RETURN_INT64(settle(fcinfo,
						   "UPDATE event_store.subscription_failure AS f SET dead = false,"
						   " attempts = 0, suspect = false, due = NULL, retry_at = NULL" THESE,
						   0, "replayed", NULL));
}

Datum
event_store_outbox_discard_dead_letters(PG_FUNCTION_ARGS)
{
	char	   *reason;

	deliver_guard("event_store.outbox_discard_dead_letters()");
	reason = PG_ARGISNULL(0) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(0));
	if (reason[strspn(reason, " \t\r\n")] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a reason must be given")));
	PG_RETURN_INT64(settle(fcinfo, "DELETE FROM event_store.subscription_failure AS f" THESE,
						   1, "discarded", reason));
}
