/*
 * state.c
 *		The rows of subscriptions: what they are, and where they stand.
 *
 * Two tables: subscription says what is read, and changes seldom;
 * subscription_slot says how far it has come, one row for each slot, updated
 * with each acknowledgement.  Who works on a slot has its row locked to the end
 * of his transaction; that lock is the only one here.
 *
 * The tables belong to the owner of the store.  Who may call a function may do
 * what it does: statements on these tables are run as the owner, and nothing of
 * the caller's is run as such.  Events are read as the caller.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/plans.h"
#include "stream/stream.h"
#include "subscription/subscription.h"

/*
 * First the lock, and then, by a snapshot that is younger, what it protects: an
 * alteration that was waited for is seen.
 */
#define LOCK_SQL \
"SELECT FROM event_store.subscription_slot AS k WHERE k.subscription_id =" \
" (SELECT s.id FROM event_store.subscription AS s WHERE s.name = $1) FOR UPDATE"

static Statement lock_slot[STATE_LOCKS] = {
	[STATE_TRY] = {LOCK_SQL " SKIP LOCKED", 1, {TEXTOID}},
	[STATE_LOCK] = {LOCK_SQL, 1, {TEXTOID}},
};

static Statement read_both = {
	"SELECT s.id, s.name, s.paused, s.categories, s.types, s.stream_pattern,"
	" k.checkpoint, k.replay_until, k.decided"
	" FROM event_store.subscription AS s"
	" JOIN event_store.subscription_slot AS k ON k.subscription_id = s.id"
	" WHERE s.name = $1",
	1, {TEXTOID}
};

static Statement write_slot = {
	"UPDATE event_store.subscription_slot AS k"
	" SET checkpoint = $2, decided = $3, replay_until = $4, acknowledged = k.acknowledged + $5,"
	" acknowledged_at = CASE WHEN $5 > 0 THEN pg_catalog.clock_timestamp() ELSE k.acknowledged_at END"
	" WHERE k.subscription_id = $1",
	5, {INT4OID, INT8OID, INT8ARRAYOID, INT8OID, INT8OID}
};

static Statement look_for = {
	"SELECT FROM event_store.subscription AS s WHERE s.name = $1",
	1, {TEXTOID}
};

/* ----------------------------------------------------------------
 * Statements as the owner
 * ----------------------------------------------------------------
 */

void
state_begin(OwnerSwitch *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->context);
	SetUserIdAndSecContext(catalog_owner(catalog_store()),
						   saved->context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	saved->guc_level = plans_connect();
}

void
state_end(OwnerSwitch *saved)
{
	plans_finish(saved->guc_level);
	SetUserIdAndSecContext(saved->user, saved->context);
}

/* ----------------------------------------------------------------
 * Reading and writing
 * ----------------------------------------------------------------
 */

/* The name of a subscription, checked. */
text *
state_name_argument(FunctionCallInfo fcinfo, int n)
{
	text	   *name;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("name of a subscription must not be NULL")));
	name = PG_GETARG_TEXT_PP(n);
	input_check_name("name of a subscription", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	return name;
}

static NameList
name_list(Datum array)
{
	NameList	list;
	Datum	   *elements;
	bool	   *nulls;

	deconstruct_array(DatumGetArrayTypePCopy(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &list.count);
	list.names = palloc(sizeof(text *) * Max(list.count, 1));
	for (int i = 0; i < list.count; i++)
		list.names[i] = DatumGetTextPP(elements[i]);
	return list;
}

static void
read_row(Subscription *subscription, MemoryContext context)
{
	HeapTuple	row = SPI_tuptable->vals[0];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	MemoryContext saved = MemoryContextSwitchTo(context);
	bool		isnull;
	Datum		value;
	ArrayType  *decided;

	memset(subscription, 0, sizeof(Subscription));
	subscription->id = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
	subscription->name = text_to_cstring(DatumGetTextPP(SPI_getbinval(row, desc, 2, &isnull)));
	subscription->paused = DatumGetBool(SPI_getbinval(row, desc, 3, &isnull));
	value = SPI_getbinval(row, desc, 4, &isnull);
	if ((subscription->by_category = !isnull))
		subscription->categories = name_list(value);
	value = SPI_getbinval(row, desc, 5, &isnull);
	if ((subscription->by_type = !isnull))
		subscription->types = name_list(value);
	value = SPI_getbinval(row, desc, 6, &isnull);
	if (!isnull)
		subscription->pattern = DatumGetTextPCopy(value);
	subscription->checkpoint = DatumGetInt64(SPI_getbinval(row, desc, 7, &isnull));
	subscription->replay_until = DatumGetInt64(SPI_getbinval(row, desc, 8, &isnull));
	decided = DatumGetArrayTypePCopy(SPI_getbinval(row, desc, 9, &isnull));
	subscription->ndecided = ARR_NDIM(decided) == 1 ? ARR_DIMS(decided)[0] : 0;
	subscription->decided = (int64 *) ARR_DATA_PTR(decided);
	MemoryContextSwitchTo(saved);
}

/*
 * Reads a subscription, and locks it to the end of the transaction, if wanted;
 * false if it is locked by another.  What is read stands in the caller's context.
 */
bool
state_read(text *name, StateLock lock, Subscription *subscription)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[1] = {PointerGetDatum(name)};
	OwnerSwitch saved;
	bool		found = true;

	state_begin(&saved);
	if (lock != STATE_LOOK)
		found = plans_execute(&lock_slot[lock], values, NULL) > 0;
	if (found)
		found = plans_execute(&read_both, values, NULL) > 0;
	if (found)
		read_row(subscription, context);
	else if (lock != STATE_TRY || plans_execute(&look_for, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_SUBSCRIPTION),
				 errmsg("subscription \"%s\" does not exist", text_to_cstring(name))));
	state_end(&saved);
	return found;
}

/* Writes where a locked subscription stands. */
void
state_write(const Subscription *subscription, int64 acknowledged)
{
	Datum	   *elements = palloc(sizeof(Datum) * Max(subscription->ndecided, 1));
	Datum		values[5];
	OwnerSwitch saved;

	for (int i = 0; i < subscription->ndecided; i++)
		elements[i] = Int64GetDatum(subscription->decided[i]);
	values[0] = Int32GetDatum(subscription->id);
	values[1] = Int64GetDatum(subscription->checkpoint);
	values[2] = PointerGetDatum(construct_array(elements, subscription->ndecided, INT8OID,
												sizeof(int64), FLOAT8PASSBYVAL,
												TYPALIGN_DOUBLE));
	values[3] = Int64GetDatum(subscription->replay_until);
	values[4] = Int64GetDatum(acknowledged);
	state_begin(&saved);
	(void) plans_execute(&write_slot, values, NULL);
	state_end(&saved);
	pfree(elements);
}

int
state_compare_positions(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return x < y ? -1 : x > y ? 1 : 0;
}

bool
state_is_decided(const Subscription *subscription, int64 position)
{
	return position <= subscription->checkpoint ||
		bsearch(&position, subscription->decided, subscription->ndecided,
				sizeof(int64), state_compare_positions) != NULL;
}
