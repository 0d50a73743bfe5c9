/*
 * manage.c
 *		Creating, altering and dropping subscriptions.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "notification/notification.h"
#include "position/position.h"
#include "stream/stream.h"
#include "subscription/subscription.h"

PG_FUNCTION_INFO_V1(event_store_create_subscription);
PG_FUNCTION_INFO_V1(event_store_alter_subscription);
PG_FUNCTION_INFO_V1(event_store_drop_subscription);
PG_FUNCTION_INFO_V1(event_store_pause_subscription);
PG_FUNCTION_INFO_V1(event_store_resume_subscription);
PG_FUNCTION_INFO_V1(event_store_rewind_subscription);
PG_FUNCTION_INFO_V1(event_store_subscription_lag);

/* events that subscription_lag() counts, unless told otherwise */
#define LAG_EVENTS	10000

static void
guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	catalog_require_read(catalog_store());
}

/* Runs a statement as the owner; returns how many rows it touched. */
static uint64
run(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls)
{
	OwnerSwitch saved;
	uint64		count;
	int			result;

	state_begin(&saved);
	result = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "could not execute a statement of subscriptions: %s",
			 SPI_result_code_string(result));
	count = SPI_processed;
	state_end(&saved);
	wake_at_end();
	return count;
}

static void
require_found(bool found, text *name)
{
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_SUBSCRIPTION),
				 errmsg("subscription \"%s\" does not exist", text_to_cstring(name))));
}

/* The names of a filter: an array of them, not empty unless that means something. */
static void
check_filter(FunctionCallInfo fcinfo, int n, const char *what, bool may_be_empty)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (PG_ARGISNULL(n))
		return;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(n), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	if (count == 0 && !may_be_empty)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must not be empty", what),
				 errhint("NULL stands for all.")));
	for (int i = 0; i < count; i++)
	{
		text	   *name;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("%s must not contain NULL", what)));
		name = DatumGetTextPP(elements[i]);
		input_check_name(what, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	}
}

static void
check_pattern(FunctionCallInfo fcinfo, int n, bool may_be_empty)
{
	text	   *pattern;
	int			len;

	if (PG_ARGISNULL(n))
		return;
	pattern = PG_GETARG_TEXT_PP(n);
	len = VARSIZE_ANY_EXHDR(pattern);
	if (len == 0 && !may_be_empty)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("stream_pattern must not be empty"),
				 errhint("NULL stands for all streams.")));
	/* of LIKE only this can go wrong, and would at each poll */
	if (len > 0)
	{
		const char *p = VARDATA_ANY(pattern);
		int			escapes = 0;

		while (escapes < len && p[len - 1 - escapes] == '\\')
			escapes++;
		if (escapes % 2 == 1)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("stream_pattern must not end with an escape character")));
	}
}

/*
 * The position before the first event at or after a time.  As the caller, who
 * may read.
 */
static int64
position_before(TimestampTz since)
{
	ReadRequest request;
	Reader	   *reader;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	int64		position;

	memset(&request, 0, sizeof(request));
	request.kind = READ_SINCE;
	request.since = since;
	request.max_count = 1;
	reader = reader_open(&request);
	if (reader_next(reader, values, nulls))
		position = DatumGetInt64(values[RE_POSITION]) - 1;
	else
		position = reader_counts(reader).mark;
	reader_close(reader);
	return position;
}

/* A checkpoint is never set beyond the mark: what is there may not be skipped. */
static int64
checked_position(int64 position)
{
	int64		mark = settled_mark();

	if (position < 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("position must not be negative")));
	if (position > mark)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("position %lld lies beyond the settled mark", (long long) position),
				 errdetail("The mark is at %lld.", (long long) mark)));
	return position;
}

Datum
event_store_create_subscription(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"WITH made AS (INSERT INTO event_store.subscription AS s"
		" (name, categories, types, stream_pattern) VALUES ($1, $2, $3, $4)"
		" ON CONFLICT (name) DO NOTHING RETURNING s.id)"
		" INSERT INTO event_store.subscription_slot (subscription_id, checkpoint)"
		" SELECT made.id, $5 FROM made";
	Oid			types[5] = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, INT8OID};
	Datum		values[5];
	char		nulls[5];
	text	   *name;
	int64		start;

	guard("event_store.create_subscription()");
	name = state_name_argument(fcinfo, 0);
	check_filter(fcinfo, 1, "categories", false);
	check_filter(fcinfo, 2, "types", false);
	check_pattern(fcinfo, 3, false);
	if (!PG_ARGISNULL(5))
	{
		if (!PG_ARGISNULL(4) && PG_GETARG_INT64(4) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("start_after and start_time exclude each other")));
		start = position_before(PG_GETARG_TIMESTAMPTZ(5));
	}
	else
		start = PG_ARGISNULL(4) ? settled_mark() : checked_position(PG_GETARG_INT64(4));
	for (int i = 0; i < 4; i++)
	{
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_GETARG_DATUM(i);
	}
	values[4] = Int64GetDatum(start);
	nulls[4] = ' ';
	if (run(sql, 5, types, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_SUBSCRIPTION_EXISTS),
				 errmsg("subscription \"%s\" exists already", text_to_cstring(name))));
	PG_RETURN_INT64(start);
}

Datum
event_store_alter_subscription(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"UPDATE event_store.subscription AS s"
		" SET categories = CASE WHEN $2 IS NULL THEN s.categories WHEN $2 <> '{}' THEN $2 END,"
		" types = CASE WHEN $3 IS NULL THEN s.types WHEN $3 <> '{}' THEN $3 END,"
		" stream_pattern = CASE WHEN $4 IS NULL THEN s.stream_pattern WHEN $4 <> '' THEN $4 END"
		" WHERE s.name = $1";
	Oid			types[4] = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID};
	Datum		values[4];
	char		nulls[4];
	Subscription subscription;
	text	   *name;

	guard("event_store.alter_subscription()");
	name = state_name_argument(fcinfo, 0);
	check_filter(fcinfo, 1, "categories", true);
	check_filter(fcinfo, 2, "types", true);
	check_pattern(fcinfo, 3, true);
	for (int i = 0; i < 4; i++)
	{
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_GETARG_DATUM(i);
	}
	/*
	 * Nobody is in the middle of a batch that the old filter chose; and the row
	 * is written, so that a transaction with an older snapshot cannot have it.
	 */
	(void) state_read(name, STATE_LOCK, &subscription);
	state_write(&subscription, 0);
	require_found(run(sql, 4, types, values, nulls) > 0, name);
	PG_RETURN_VOID();
}

Datum
event_store_drop_subscription(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"WITH gone AS (DELETE FROM event_store.subscription AS s WHERE s.name = $1 RETURNING s.id)"
		" DELETE FROM event_store.subscription_slot AS k USING gone"
		" WHERE k.subscription_id = gone.id";
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	text	   *name;

	guard("event_store.drop_subscription()");
	name = state_name_argument(fcinfo, 0);
	values[0] = PointerGetDatum(name);
	require_found(run(sql, 1, types, values, NULL) > 0, name);
	PG_RETURN_VOID();
}

static void
set_paused(FunctionCallInfo fcinfo, bool paused)
{
	Oid			types[2] = {TEXTOID, BOOLOID};
	Datum		values[2];
	text	   *name = state_name_argument(fcinfo, 0);

	values[0] = PointerGetDatum(name);
	values[1] = BoolGetDatum(paused);
	require_found(run("UPDATE event_store.subscription SET paused = $2 WHERE name = $1",
					  2, types, values, NULL) > 0, name);
}

Datum
event_store_pause_subscription(PG_FUNCTION_ARGS)
{
	guard("event_store.pause_subscription()");
	set_paused(fcinfo, true);
	PG_RETURN_VOID();
}

Datum
event_store_resume_subscription(PG_FUNCTION_ARGS)
{
	guard("event_store.resume_subscription()");
	set_paused(fcinfo, false);
	PG_RETURN_VOID();
}

/*
 * Back, or forth: what had been decided before is decided no more, and comes
 * again as a replay.
 */
Datum
event_store_rewind_subscription(PG_FUNCTION_ARGS)
{
	Subscription subscription;
	text	   *name;
	int64		position = 0;

	guard("event_store.rewind_subscription()");
	name = state_name_argument(fcinfo, 0);
	if (!PG_ARGISNULL(1) && !PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("to_position and to_time exclude each other")));
	if (!PG_ARGISNULL(1))
		position = checked_position(PG_GETARG_INT64(1));
	else if (!PG_ARGISNULL(2))
		position = position_before(PG_GETARG_TIMESTAMPTZ(2));
	(void) state_read(name, STATE_LOCK, &subscription);
	subscription.replay_until = Max(subscription.replay_until, subscription.checkpoint);
	if (subscription.ndecided > 0)
		subscription.replay_until =
			Max(subscription.replay_until, subscription.decided[subscription.ndecided - 1]);
	subscription.checkpoint = position;
	subscription.ndecided = 0;
	state_write(&subscription, 0);
	poll_forget(subscription.id);
	wake_at_end();
	PG_RETURN_INT64(position);
}

/* How many events are open, counted up to a limit, and how old the first is. */
Datum
event_store_subscription_lag(PG_FUNCTION_ARGS)
{
	Subscription subscription;
	SubscriptionScan *scan;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	Datum		result[2] = {0};
	bool		result_nulls[2] = {false, true};
	TupleDesc	desc;
	text	   *name;
	int64		max_count = LAG_EVENTS;
	int64		count = 0;

	catalog_require_read(catalog_store());
	name = state_name_argument(fcinfo, 0);
	if (!PG_ARGISNULL(1))
		max_count = PG_GETARG_INT64(1);
	if (max_count < 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("max_count must be positive")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	(void) state_read(name, STATE_LOOK, &subscription);
	scan = subscription_scan_open(&subscription, subscription.checkpoint, max_count, false);
	while (subscription_scan_next(scan, values, nulls))
	{
		if (count++ == 0)
		{
			result[1] = values[RE_RECORDED_AT];
			result_nulls[1] = false;
		}
	}
	(void) subscription_scan_close(scan);
	result[0] = Int64GetDatum(count);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, result, result_nulls)));
}
