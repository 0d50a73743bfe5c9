/*
 * keep.c
 *		Messages that are set aside: those that have failed, and those that wait
 *		behind them.
 *
 * A message that has a row in subscription_failure has its copy here: the table
 * that it came from does not wait for it.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "common/compat.h"
#include "outbox/outbox.h"

#define COLUMNS \
"position, published_at, slot, id, aggregatetype, aggregateid, type, headers, payload"

static Statement add = {
	"INSERT INTO event_store.outbox_kept (" COLUMNS ")"
	" SELECT m.* FROM pg_catalog.unnest($2) AS p (position), LATERAL"
	" (SELECT " COLUMNS " FROM event_store.outbox_0 AS a WHERE a.slot = $1 AND a.position = p.position"
	" UNION ALL SELECT " COLUMNS " FROM event_store.outbox_1 AS a"
	" WHERE a.slot = $1 AND a.position = p.position"
	" UNION ALL SELECT " COLUMNS " FROM event_store.outbox_2 AS a"
	" WHERE a.slot = $1 AND a.position = p.position"
	" UNION ALL SELECT " COLUMNS " FROM event_store.outbox_3 AS a"
	" WHERE a.slot = $1 AND a.position = p.position) AS m",
	2, {INT4OID, INT8ARRAYOID}
};

static Statement find_kept = {
	"SELECT k.position FROM event_store.outbox_kept AS k WHERE k.position = ANY ($1) ORDER BY k.position",
	1, {INT8ARRAYOID}
};

/* those that have not failed, nor wait, any more */
static Statement remove_decided = {
	"DELETE FROM event_store.outbox_kept AS k WHERE k.position = ANY ($1)"
	" AND NOT EXISTS (SELECT FROM event_store.subscription_failure AS f"
	" WHERE f.subscription_id = 0 AND f.position = k.position) RETURNING k.slot",
	1, {INT8ARRAYOID}
};

static Statement read_some = {
	"SELECT k.position, k.id, k.aggregatetype, k.aggregateid, k.type, k.payload, k.headers,"
	" k.published_at FROM event_store.outbox_kept AS k WHERE k.position = ANY ($1)"
	" ORDER BY k.position",
	1, {INT8ARRAYOID}
};

/* Copies messages of a slot. */
void
keep_add(int slot, const EventList *messages)
{
	Datum		values[2];
	OwnerSwitch saved;

	if (messages->count == 0)
		return;
	values[0] = Int32GetDatum(slot);
	values[1] = values_int64_array(messages->positions, messages->count);
	owner_begin(&saved);
	if (plans_execute(&add, values, NULL) != messages->count)
		elog(ERROR, "a message of the outbox is missing");
	owner_end(&saved);
}

/*
 * Those of some messages that have no copy.  All have none, but in a store that was
 * restored from a dump whose snapshot was older than the emptying of a table of slots:
 * there slots have forgotten how far they had come.
 */
void
keep_missing(const EventList *messages, EventList *missing)
{
	Datum		values[1];
	OwnerSwitch saved;
	int64	   *kept;
	int			nkept;

	if (messages->count == 0)
		return;
	kept = palloc(sizeof(int64) * messages->count);
	values[0] = values_int64_array(messages->positions, messages->count);
	owner_begin(&saved);
	nkept = (int) plans_execute(&find_kept, values, NULL);
	for (int i = 0; i < nkept; i++)
	{
		bool		isnull;

		kept[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1,
											  &isnull));
	}
	owner_end(&saved);
	for (int i = 0; i < messages->count; i++)
		if (!positions_contain(kept, nkept, messages->positions[i]))
			events_add(missing, messages->positions[i], messages->streams[i]);
}

/* Removes those of some messages that are decided; counts them by slot. */
void
keep_remove(const int64 *positions, int count, int64 *by_slot)
{
	Datum		values[1] = {values_int64_array(positions, count)};
	OwnerSwitch saved;

	owner_begin(&saved);
	(void) plans_execute(&remove_decided, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		by_slot[DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1,
											&isnull))]++;
	}
	owner_end(&saved);
}

/* Returns messages that are tried again; they ascend. */
void
keep_put(const Retry *retries, int count, ReturnSetInfo *result)
{
	MemoryContext context = CurrentMemoryContext;
	int64	   *positions = palloc(sizeof(int64) * Max(count, 1));
	Datum		values[1];
	OwnerSwitch saved;

	for (int i = 0; i < count; i++)
		positions[i] = retries[i].position;
	values[0] = values_int64_array(positions, count);
	owner_begin(&saved);
	if (plans_execute(&read_some, values, NULL) != count)
		elog(ERROR, "a message of the outbox is missing");
	for (int i = 0; i < count; i++)
	{
		HeapTuple	row = SPI_tuptable->vals[i];
		Datum		out[OD_NATTS];
		bool		nulls[OD_NATTS] = {0};
		MemoryContext spi;

		for (int k = 0; k < OD_ATTEMPT; k++)
			out[k] = SPI_getbinval(row, SPI_tuptable->tupdesc, k + 1, &nulls[k]);
		out[OD_ATTEMPT] = Int32GetDatum(retries[i].attempt);
		spi = MemoryContextSwitchTo(context);
		tuplestore_putvalues(result->setResult, result->setDesc, out, nulls);
		MemoryContextSwitchTo(spi);
	}
	owner_end(&saved);
}
