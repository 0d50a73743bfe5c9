/*
 * manage.c
 *		Creating, altering and dropping subscriptions; what becomes of dead
 *		letters; how far a subscription is behind.
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
PG_FUNCTION_INFO_V1(event_store_reset_breaker);
PG_FUNCTION_INFO_V1(event_store_replay_dead_letters);
PG_FUNCTION_INFO_V1(event_store_discard_dead_letters);
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

	owner_begin(&saved);
	result = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "could not execute a statement of subscriptions: %s",
			 SPI_result_code_string(result));
	count = SPI_processed;
	owner_end(&saved);
	wake_at_end();
	return count;
}

/* The number that a statement of a subscription's id and a position returns; NULL: 0. */
static int64
number(const char *sql, Oid *types, Datum *values)
{
	OwnerSwitch saved;
	bool		isnull;
	int64		result;

	owner_begin(&saved);
	if (SPI_execute_with_args(sql, 2, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not execute a statement of subscriptions");
	result = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (isnull)
		result = 0;
	owner_end(&saved);
	return result;
}

/* The names of a filter: an array of them, not empty unless that means something. */
void
manage_check_filter(FunctionCallInfo fcinfo, int n, const char *what, bool may_be_empty)
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
int64
manage_checked_position(int64 position)
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


/* ----------------------------------------------------------------
 * Policy
 * ----------------------------------------------------------------
 */

/* columns of event_store.subscription, in the order of the arguments of both functions */
static const Setting policy[] = {
	{"max_attempts", INT4OID, 1, 1000000},
	{"first_delay", INTERVALOID, 0, 366 * 86400.0},
	{"delay_factor", FLOAT8OID, 1, 1000},
	{"max_delay", INTERVALOID, 0, 366 * 86400.0},
	{"jitter", FLOAT8OID, 0, 1},
	{"breaker_failures", INT4OID, 0, 1000000},
	{"breaker_window", INTERVALOID, 0.001, 366 * 86400.0},
	{"breaker_timeout", INTERVALOID, 0, 366 * 86400.0},
	{"breaker_probes", INT4OID, 1, 10000},
};

/* Checks the arguments of a policy, from the first one on; NULL is all right. */
void
manage_check_policy(FunctionCallInfo fcinfo, int first)
{
	input_check_settings(fcinfo, first, policy, lengthof(policy));
}

static void
check_slots(int slots, bool competing)
{
	if (slots < 1 || slots > MAX_SLOTS)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("slots must be 1 to %d", MAX_SLOTS)));
	if (competing && slots != 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a competing subscription has no slots"),
				 errhint("Any number of consumers can poll it.")));
}

static Oid
argument_type(int n, Oid first_types[], int nfirst)
{
	return n < nfirst ? first_types[n] : policy[n - nfirst].type;
}

/* ----------------------------------------------------------------
 * Subscriptions
 * ----------------------------------------------------------------
 */

/* the arguments of create_subscription() before those of the policy */
enum
{
	CS_NAME,
	CS_CATEGORIES,
	CS_TYPES,
	CS_PATTERN,
	CS_START_AFTER,
	CS_MODE,
	CS_SLOTS,
	CS_START_TIME,
	CS_PRIORITY_KEY,
	CS_POLICY
};

Datum
event_store_create_subscription(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"WITH made AS (INSERT INTO event_store.subscription AS s"
		" (name, categories, types, stream_pattern, mode, slots, priority_key, max_attempts,"
		" first_delay, delay_factor, max_delay, jitter, breaker_failures, breaker_window,"
		" breaker_timeout, breaker_probes)"
		" VALUES ($1, $2, $3, $4, $6, $7, $9, coalesce($10, 5), coalesce($11, '1 s'),"
		" coalesce($12, 2), coalesce($13, '5 min'), coalesce($14, 0.2), nullif($15, 0),"
		" coalesce($16, '1 min'), coalesce($17, '30 s'), coalesce($18, 1))"
		" ON CONFLICT (name) DO NOTHING RETURNING s.id),"
		" breaker AS (INSERT INTO event_store.subscription_breaker (subscription_id)"
		" SELECT made.id FROM made),"
		" noted AS (INSERT INTO event_store.subscription_change (subscription_id, change, detail)"
		" SELECT made.id, 'created', 'after position ' || $5 FROM made)"
		" INSERT INTO event_store.subscription_cursor"
		" (subscription_id, version, checkpoint, decided, replay_until, oldest, taken, taken_at, rate,"
		" poll_size)"
		" SELECT made.id, 1, $5, '{}', 0, 0, 0, pg_catalog.clock_timestamp(), 0, 0 FROM made";
	Oid			first_types[CS_POLICY] = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, INT8OID,
	TEXTOID, INT4OID, TIMESTAMPTZOID, TEXTOID};
	Oid			types[CS_POLICY + lengthof(policy)];
	Datum		values[CS_POLICY + lengthof(policy)];
	char		nulls[CS_POLICY + lengthof(policy)];
	text	   *name;
	int64		start;
	char	   *mode = "ordered";
	int			slots = PG_ARGISNULL(CS_SLOTS) ? 1 : PG_GETARG_INT32(CS_SLOTS);
	bool		competing;

	guard("event_store.create_subscription()");
	name = state_name_argument(fcinfo, CS_NAME);
	manage_check_filter(fcinfo, CS_CATEGORIES, "categories", false);
	manage_check_filter(fcinfo, CS_TYPES, "types", false);
	check_pattern(fcinfo, CS_PATTERN, false);
	if (!PG_ARGISNULL(CS_MODE))
		mode = text_to_cstring(PG_GETARG_TEXT_PP(CS_MODE));
	competing = strcmp(mode, "competing") == 0;
	if (!competing && strcmp(mode, "ordered") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("mode must be ordered or competing")));
	check_slots(slots, competing);
	if (!PG_ARGISNULL(CS_PRIORITY_KEY))
	{
		text	   *key = PG_GETARG_TEXT_PP(CS_PRIORITY_KEY);

		if (!competing)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("only a competing subscription has priorities")));
		input_check_name("priority_key", VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
	}
	manage_check_policy(fcinfo, CS_POLICY);
	if (!PG_ARGISNULL(CS_START_TIME))
	{
		if (!PG_ARGISNULL(CS_START_AFTER) && PG_GETARG_INT64(CS_START_AFTER) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("start_after and start_time exclude each other")));
		start = position_before(PG_GETARG_TIMESTAMPTZ(CS_START_TIME));
	}
	else
		start = PG_ARGISNULL(CS_START_AFTER) ? settled_mark() :
			manage_checked_position(PG_GETARG_INT64(CS_START_AFTER));
	for (int i = 0; i < CS_POLICY + lengthof(policy); i++)
	{
		types[i] = argument_type(i, first_types, CS_POLICY);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_GETARG_DATUM(i);
	}
	values[CS_START_AFTER] = Int64GetDatum(start);
	values[CS_MODE] = PointerGetDatum(cstring_to_text(mode));
	values[CS_SLOTS] = Int32GetDatum(slots);
	nulls[CS_START_AFTER] = nulls[CS_MODE] = nulls[CS_SLOTS] = ' ';
	if (run(sql, CS_POLICY + lengthof(policy), types, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_SUBSCRIPTION_EXISTS),
				 errmsg("subscription \"%s\" exists already", text_to_cstring(name))));
	PG_RETURN_INT64(start);
}

/* the arguments of alter_subscription() before those of the policy */
enum
{
	AS_NAME,
	AS_CATEGORIES,
	AS_TYPES,
	AS_PATTERN,
	AS_SLOTS,
	AS_POLICY
};

Datum
event_store_alter_subscription(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"UPDATE event_store.subscription AS s"
		" SET categories = CASE WHEN $2 IS NULL THEN s.categories WHEN $2 <> '{}' THEN $2 END,"
		" types = CASE WHEN $3 IS NULL THEN s.types WHEN $3 <> '{}' THEN $3 END,"
		" stream_pattern = CASE WHEN $4 IS NULL THEN s.stream_pattern WHEN $4 <> '' THEN $4 END,"
		" wanted_slots = CASE WHEN $5 IS NULL THEN s.wanted_slots ELSE nullif($5, s.slots) END,"
		" max_attempts = coalesce($6, s.max_attempts), first_delay = coalesce($7, s.first_delay),"
		" delay_factor = coalesce($8, s.delay_factor), max_delay = coalesce($9, s.max_delay),"
		" jitter = coalesce($10, s.jitter),"
		" breaker_failures = nullif(coalesce($11, s.breaker_failures), 0),"
		" breaker_window = coalesce($12, s.breaker_window),"
		" breaker_timeout = coalesce($13, s.breaker_timeout),"
		" breaker_probes = coalesce($14, s.breaker_probes)"
		" WHERE s.name = $1";
	static const char *const names[AS_POLICY] = {
		NULL, "categories", "types", "stream_pattern", "slots"
	};
	Oid			first_types[AS_POLICY] = {TEXTOID, TEXTARRAYOID, TEXTARRAYOID, TEXTOID, INT4OID};
	Oid			types[AS_POLICY + lengthof(policy)];
	Datum		values[AS_POLICY + lengthof(policy)];
	char		nulls[AS_POLICY + lengthof(policy)];
	Subscription subscription;
	StringInfoData detail;
	text	   *name;

	guard("event_store.alter_subscription()");
	name = state_name_argument(fcinfo, AS_NAME);
	manage_check_filter(fcinfo, AS_CATEGORIES, "categories", true);
	manage_check_filter(fcinfo, AS_TYPES, "types", true);
	check_pattern(fcinfo, AS_PATTERN, true);
	manage_check_policy(fcinfo, AS_POLICY);
	initStringInfo(&detail);
	for (int i = 0; i < AS_POLICY + lengthof(policy); i++)
	{
		types[i] = argument_type(i, first_types, AS_POLICY);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		values[i] = PG_GETARG_DATUM(i);
		if (i > AS_NAME && !PG_ARGISNULL(i))
			appendStringInfo(&detail, "%s%s", detail.len > 0 ? ", " : "",
							 i < AS_POLICY ? names[i] : policy[i - AS_POLICY].name);
	}
	/*
	 * Nobody is in the middle of a batch that the old filter chose; and the
	 * cursor is written, so that a transaction with an older snapshot cannot go
	 * on with it, and one that waits looks again.
	 */
	(void) state_read(name, STATE_ALONE, &subscription);
	if (!PG_ARGISNULL(AS_SLOTS))
		check_slots(PG_GETARG_INT32(AS_SLOTS), subscription.competing);
	state_write(&subscription, 0);
	(void) run(sql, AS_POLICY + lengthof(policy), types, values, nulls);
	state_note(&subscription, "altered", detail.data);
	if (!PG_ARGISNULL(AS_SLOTS))
	{
		state_read_again(&subscription);
		if (subscription.wanted_slots > 0)
			(void) group_reslot(&subscription);
	}
	delivered_forget(subscription.id);
	PG_RETURN_VOID();
}

Datum
event_store_drop_subscription(PG_FUNCTION_ARGS)
{
	static const char *const tables[] = {
		"subscription_cursor", "subscription_no_replay", "subscription_batch", "subscription_failure",
		"subscription_consumer", "subscription_fault", "subscription_breaker",
		"subscription_change"
	};
	Subscription subscription;
	Oid			types[1] = {INT4OID};
	Datum		values[1];
	text	   *name;

	guard("event_store.drop_subscription()");
	name = state_name_argument(fcinfo, 0);
	(void) state_read(name, STATE_ALONE, &subscription);
	values[0] = Int32GetDatum(subscription.id);
	for (int i = 0; i < lengthof(tables); i++)
		(void) run(psprintf("DELETE FROM event_store.%s AS x WHERE x.subscription_id = $1", tables[i]),
				   1, types, values, NULL);
	/* who beats just now is not waited for */
	(void) run("DELETE FROM event_store.subscription_heartbeat AS h WHERE h.ctid = ANY (ARRAY"
			   "(SELECT k.ctid FROM event_store.subscription_heartbeat AS k"
			   " WHERE k.subscription_id = $1 FOR UPDATE SKIP LOCKED))", 1, types, values, NULL);
	(void) run("DELETE FROM event_store.subscription AS s WHERE s.id = $1", 1, types, values, NULL);
	delivered_forget(subscription.id);
	PG_RETURN_VOID();
}

static void
set_paused(FunctionCallInfo fcinfo, bool paused)
{
	Oid			types[2] = {INT4OID, BOOLOID};
	Datum		values[2];
	Subscription subscription;

	(void) state_read(state_name_argument(fcinfo, 0), STATE_LOOK, &subscription);
	values[0] = Int32GetDatum(subscription.id);
	values[1] = BoolGetDatum(paused);
	if (run("UPDATE event_store.subscription AS s SET paused = $2 WHERE s.id = $1 AND s.paused <> $2",
			2, types, values, NULL) > 0)
		state_note(&subscription, paused ? "paused" : "resumed", NULL);
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

Datum
event_store_reset_breaker(PG_FUNCTION_ARGS)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1];
	Subscription subscription;

	guard("event_store.reset_breaker()");
	(void) state_read(state_name_argument(fcinfo, 0), STATE_LOOK, &subscription);
	values[0] = Int32GetDatum(subscription.id);
	(void) run("UPDATE event_store.subscription_breaker AS b SET state = 'closed',"
			   " until = pg_catalog.clock_timestamp(), probes_left = 0 WHERE b.subscription_id = $1",
			   1, types, values, NULL);
	state_note(&subscription, "breaker reset", NULL);
	PG_RETURN_VOID();
}

/*
 * Back, or forth: what had been decided behind it is decided no more, and comes
 * again as a replay.  What is dealt out, leased or has failed behind it is so no
 * more, and comes again from the log.
 */
Datum
event_store_rewind_subscription(PG_FUNCTION_ARGS)
{
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		values[2];
	Subscription subscription;
	text	   *name;
	int64		position = 0;
	int64		passed;

	guard("event_store.rewind_subscription()");
	name = state_name_argument(fcinfo, 0);
	if (!PG_ARGISNULL(1) && !PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("to_position and to_time exclude each other")));
	if (!PG_ARGISNULL(1))
		position = manage_checked_position(PG_GETARG_INT64(1));
	else if (!PG_ARGISNULL(2))
		position = position_before(PG_GETARG_TIMESTAMPTZ(2));
	(void) state_read(name, STATE_ALONE, &subscription);
	values[0] = Int32GetDatum(subscription.id);
	values[1] = Int64GetDatum(position);
	passed = subscription.checkpoint;
	if (subscription.ndecided > 0)
		passed = Max(passed, subscription.decided[subscription.ndecided - 1]);
	replay_note_rewind(&subscription, passed, position);
	if (subscription.has_batches)
	{
		/* what is in front of the new checkpoint stays where it is */
		subscription.taken -=
			number("SELECT coalesce(sum(x.n), 0)::int8 FROM (SELECT"
				   " (SELECT count(*) FROM unnest(b.positions) AS p (p) WHERE p.p > $2) AS n"
				   " FROM event_store.subscription_batch AS b WHERE b.subscription_id = $1) AS x",
				   types, values);
		(void) run("DELETE FROM event_store.subscription_batch AS b"
				   " WHERE b.subscription_id = $1 AND b.first_position > $2", 2, types, values, NULL);
		(void) run("UPDATE event_store.subscription_batch AS b"
				   " SET (positions, streams, last_position) ="
				   " (SELECT pg_catalog.array_agg(e.p ORDER BY e.p), pg_catalog.array_agg(e.s ORDER BY e.p),"
				   " max(e.p) FROM unnest(b.positions, b.streams) AS e (p, s) WHERE e.p <= $2)"
				   " WHERE b.subscription_id = $1 AND b.last_position > $2", 2, types, values, NULL);
	}
	if (subscription.has_failures)
		subscription.taken -=
			run("DELETE FROM event_store.subscription_failure AS f"
				" WHERE f.subscription_id = $1 AND f.position > $2", 2, types, values, NULL);
	subscription.checkpoint = position;
	subscription.ndecided = 0;
	subscription.oldest = 0;
	state_write(&subscription, 0);
	state_note(&subscription, "rewound", psprintf("to position %lld", (long long) position));
	delivered_forget(subscription.id);
	wake_at_end();
	PG_RETURN_INT64(position);
}

/* ----------------------------------------------------------------
 * Dead letters
 * ----------------------------------------------------------------
 */

/*
 * Replays or discards: with the whole subscription locked, so that no poll of it
 * goes on meanwhile.
 */
static int64
settle_dead_letters(FunctionCallInfo fcinfo, const char *sql, int position_at, const char *change,
					const char *reason)
{
	Oid			types[3] = {INT4OID, INT8OID, TEXTOID};
	Datum		values[3];
	char		nulls[4] = "   ";
	Subscription subscription;
	OwnerSwitch saved;
	int64	   *streams;
	uint64		count;
	char	   *detail;
	MemoryContext context = CurrentMemoryContext;

	if (!PG_ARGISNULL(position_at) && !PG_ARGISNULL(position_at + 1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("at_position and stream exclude each other")));
	(void) state_read(state_name_argument(fcinfo, 0), STATE_ALONE, &subscription);
	values[0] = Int32GetDatum(subscription.id);
	for (int i = 0; i < 2; i++)
	{
		values[1 + i] = PG_GETARG_DATUM(position_at + i);
		nulls[1 + i] = PG_ARGISNULL(position_at + i) ? 'n' : ' ';
	}
	owner_begin(&saved);
	if (SPI_execute_with_args(sql, 3, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not settle dead letters");
	count = SPI_processed;
	streams = MemoryContextAlloc(context, sizeof(int64) * Max(count, 1));
	for (uint64 i = 0; i < count; i++)
	{
		bool		isnull;

		streams[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc,
												 1, &isnull));
	}
	owner_end(&saved);
	if (count == 0)
		return 0;
	failure_set_heads(&subscription, streams, (int) count);
	if (state_is_direct(&subscription))
		state_write(&subscription, 0);
	detail = psprintf("%llu", (unsigned long long) count);
	if (!PG_ARGISNULL(position_at))
		detail = psprintf("position %lld", (long long) PG_GETARG_INT64(position_at));
	else if (!PG_ARGISNULL(position_at + 1))
		detail = psprintf("%s of stream %s", detail,
						  text_to_cstring(PG_GETARG_TEXT_PP(position_at + 1)));
	if (reason != NULL)
		detail = psprintf("%s: %s", detail, reason);
	state_note(&subscription, change, detail);
	wake_at_end();
	return (int64) count;
}

#define THESE_DEAD_LETTERS " WHERE f.subscription_id = $1 AND f.dead AND ($2 IS NULL OR f.position = $2)" " AND ($3 IS NULL OR f.stream_id = (SELECT s.id FROM event_store.stream AS s WHERE s.name = $3))" " RETURNING f.stream_id"

Datum
event_store_replay_dead_letters(PG_FUNCTION_ARGS)
{
	guard("event_store.replay_dead_letters()");
	PG_RETURN_INT64(settle_dead_letters(fcinfo,
										"UPDATE event_store.subscription_failure AS f SET dead = false,"
										" attempts = 0, suspect = false, due = NULL, retry_at = NULL"
										THESE_DEAD_LETTERS,
										1, "replayed", NULL));
}

Datum
event_store_discard_dead_letters(PG_FUNCTION_ARGS)
{
	char	   *reason;

	guard("event_store.discard_dead_letters()");
	reason = PG_ARGISNULL(1) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (reason[strspn(reason, " \t\r\n")] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a reason must be given")));
	PG_RETURN_INT64(settle_dead_letters(fcinfo,
										"DELETE FROM event_store.subscription_failure AS f"
										THESE_DEAD_LETTERS,
										2, "discarded", reason));
}

/* ----------------------------------------------------------------
 * Lag
 * ----------------------------------------------------------------
 */

/* When an event was recorded. */
static TimestampTz
recorded_at(int64 position)
{
	ReadRequest request;
	Reader	   *reader;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	TimestampTz at = DT_NOEND;

	memset(&request, 0, sizeof(request));
	request.kind = READ_POSITIONS;
	request.max_count = 1;
	request.npositions = 1;
	request.positions = &position;
	reader = reader_open(&request);
	if (reader_next(reader, values, nulls))
		at = DatumGetTimestampTz(values[RE_RECORDED_AT]);
	reader_close(reader);
	return at;
}

/*
 * How many events are open, counted up to a limit, and how old the first is:
 * those that are dealt, leased or have failed, and those in the log.
 *
 * Events are read as the owner here: nothing of them is shown but their number, and
 * when the first was recorded, to who may see the subscription; and nothing of
 * anybody's is run on them (the filter is names, and a pattern for LIKE).
 */
Datum
event_store_subscription_lag(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"SELECT coalesce(sum(x.n), 0)::int8, min(x.first) FROM"
		" (SELECT cardinality(b.positions) AS n, b.first_position AS first"
		" FROM event_store.subscription_batch AS b"
		" WHERE b.subscription_id = $1 AND b.first_position >= $2"
		" UNION ALL SELECT 1, f.position FROM event_store.subscription_failure AS f"
		" WHERE f.subscription_id = $1) AS x";
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		arguments[2];
	Subscription subscription;
	SubscriptionScan *scan;
	OwnerSwitch saved;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	Datum		result[2] = {0};
	bool		result_nulls[2] = {false, true};
	bool		isnull;
	TupleDesc	desc;
	text	   *name;
	int64		max_count = LAG_EVENTS;
	int64		count = 0;
	int64		first = 0;
	TimestampTz oldest = DT_NOEND;
	OwnerSwitch owner;

	catalog_require_sight(catalog_store());
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
	owner_become(&owner);
	if (subscription.has_batches || subscription.has_failures)
	{
		arguments[0] = Int32GetDatum(subscription.id);
		arguments[1] = Int64GetDatum(subscription.oldest);
		owner_begin(&saved);
		if (SPI_execute_with_args(sql, 2, types, arguments, NULL, false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not count the events of a subscription");
		count = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		first = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
		if (isnull)
			first = 0;
		owner_end(&saved);
		if (first > 0)
			oldest = recorded_at(first);
	}
	/* nothing in the log is older than what is behind the cursor, but for what is ahead */
	scan = subscription_scan_open(&subscription, subscription.checkpoint,
								  Max(max_count - count, 1), false);
	for (bool is_first = true; subscription_scan_next(scan, values, nulls); is_first = false)
	{
		if (is_first)
			oldest = Min(oldest, DatumGetTimestampTz(values[RE_RECORDED_AT]));
		count++;
	}
	(void) subscription_scan_close(scan);
	owner_return(&owner);
	result[0] = Int64GetDatum(Min(count, max_count));
	result[1] = TimestampTzGetDatum(oldest);
	result_nulls[1] = oldest == DT_NOEND;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, result, result_nulls)));
}
