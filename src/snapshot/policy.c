/*
 * policy.c
 *		Which folds have snapshots taken of themselves, and when.
 *
 * A policy is a row of snapshot_policy, which changes when somebody sets it; what
 * becomes of it stands in snapshot_progress, which changes whenever
 * take_snapshots() has done something.  All who have to do with a policy lock it
 * (LOCK_CLASS_SNAPSHOT, by hash of the fold) to the end of the transaction:
 *
 *	ExclusiveLock				who changes it; waits
 *	ShareUpdateExclusiveLock	take_snapshots(), for one at a time; does not wait
 *	RowShareLock				state_at(), when it saves; does not wait
 *
 * So who has changed it knows that nothing is saved any more by what it was before,
 * and that all that was shows.
 *
 * A policy belongs to the owner of the store: take_snapshots() calls its fold as
 * that.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "common/hashfn.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/errors.h"
#include "common/locks.h"
#include "common/plans.h"
#include "common/rows.h"
#include "snapshot/snapshot.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_set_snapshot_policy);
PG_FUNCTION_INFO_V1(event_store_drop_snapshot_policy);

static Statement set_policy = {
	"INSERT INTO event_store.snapshot_policy AS p"
	" (fold, categories, every_events, every, keep, schema_version) VALUES ($1, $2, $3, $4, $5, $6)"
	" ON CONFLICT (fold) DO UPDATE"
	" SET categories = $2, every_events = $3, every = $4, keep = $5, schema_version = $6",
	6, {TEXTOID, TEXTARRAYOID, INT4OID, INTERVALOID, INT4OID, INT4OID}
};

/* before the policy is set: what it has been until now */
static Statement set_progress = {
	"INSERT INTO event_store.snapshot_progress AS g (fold) VALUES ($1)"
	" ON CONFLICT (fold) DO UPDATE SET checkpoint = 0, sweep_after = 0"
	" WHERE EXISTS (SELECT FROM event_store.snapshot_policy AS p WHERE p.fold = $1"
	" AND (p.schema_version <> $3 OR p.categories IS DISTINCT FROM $2))",
	3, {TEXTOID, TEXTARRAYOID, INT4OID}
};

static Statement drop_policy = {
	"DELETE FROM event_store.snapshot_policy AS p WHERE p.fold = $1",
	1, {TEXTOID}
};

static Statement drop_progress = {
	"DELETE FROM event_store.snapshot_progress AS g WHERE g.fold = $1",
	1, {TEXTOID}
};

static Statement drop_pending = {
	"DELETE FROM event_store.snapshot_pending AS n WHERE n.fold = $1",
	1, {TEXTOID}
};

static void
set_lock_tag(LOCKTAG *tag, const text *fold)
{
	locks_set_tag(tag, LOCK_CLASS_SNAPSHOT,
				  DatumGetUInt64(hash_any_extended((const unsigned char *) VARDATA_ANY(fold),
												   VARSIZE_ANY_EXHDR(fold), 0)));
}

void
policy_lock(const text *fold)
{
	LOCKTAG		tag;

	set_lock_tag(&tag, fold);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

static bool
try_lock(const text *fold, LOCKMODE mode)
{
	LOCKTAG		tag;

	set_lock_tag(&tag, fold);
	return LockAcquire(&tag, mode, false, true) != LOCKACQUIRE_NOT_AVAIL;
}

/* For who takes snapshots by it. */
bool
policy_try_lock(const text *fold)
{
	if (!try_lock(fold, ShareUpdateExclusiveLock))
		return false;
	/* the function that goes with it may have been changed in the same transaction */
	AcceptInvalidationMessages();
	return true;
}

/* For who saves a single one: the policy as it is now. */
bool
policy_find_locked(text *fold, SnapshotPolicy *policy)
{
	return try_lock(fold, RowShareLock) && policy_find_latest(fold, policy);
}

/*
 * The policy of a fold as of now, whatever the transaction's snapshot: functions are
 * what they are now, too.  A function that is called from here on is at least as new.
 */
bool
policy_find_latest(text *fold, SnapshotPolicy *policy)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool		found = policy_find(fold, policy, snapshot);

	UnregisterSnapshot(snapshot);
	AcceptInvalidationMessages();
	return found;
}

/* The policy of a fold, as a snapshot sees it. */
bool
policy_find(text *fold, SnapshotPolicy *policy, Snapshot snapshot)
{
	const Store *store = catalog_snapshots();
	ScanKeyData key;
	Probe		probe;
	bool		found;

	key_text(&key, 1, BTEqualStrategyNumber, PointerGetDatum(fold));
	probe_open(&probe, store->snapshot_policy, &store->snapshot_policy_index,
			   AccessShareLock, snapshot, &key, 1);
	found = probe_next(&probe, ForwardScanDirection);
	if (found)
	{
		bool		isnull;
		Datum		categories;

		policy->schema_version = probe_int32(&probe, SP_SCHEMA_VERSION);
		policy->every_events = probe_int32(&probe, SP_EVERY_EVENTS);
		policy->keep = probe_int32(&probe, SP_KEEP);
		policy->created_at = DatumGetTimestampTz(probe_value(&probe, SP_CREATED_AT, &isnull));
		policy->categories.count = 0;
		policy->categories.names = NULL;
		categories = probe_value(&probe, SP_CATEGORIES, &isnull);
		if (!isnull)
			policy->categories = values_name_list(categories);
	}
	probe_close(&probe, false);
	return found;
}

/*
 * Are the snapshots of the one worth as much by the other?  Who drops a policy, and
 * with it its snapshots, may set one with the same schema version anew.
 */
bool
policy_is_same(const SnapshotPolicy *one, const SnapshotPolicy *other)
{
	return one->schema_version == other->schema_version && one->created_at == other->created_at;
}

bool
policy_has_stream(const SnapshotPolicy *policy, const text *stream)
{
	int			len = input_category_length(VARDATA_ANY(stream), VARSIZE_ANY_EXHDR(stream));

	if (policy->categories.names == NULL)
		return true;
	for (int i = 0; i < policy->categories.count; i++)
		if (VARSIZE_ANY_EXHDR(policy->categories.names[i]) == len &&
			memcmp(VARDATA_ANY(policy->categories.names[i]), VARDATA_ANY(stream), len) == 0)
			return true;
	return false;
}

/* ----------------------------------------------------------------
 * As functions
 * ----------------------------------------------------------------
 */

static void
guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
	catalog_require_owner(catalog_store());
}

static void
invalid(const char *message)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg_internal("%s", message)));
}

static void
check_categories(Datum array)
{
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	if (count == 0)
		invalid("categories must not be empty");
	for (int i = 0; i < count; i++)
	{
		text	   *name;

		if (nulls[i])
			invalid("categories must not contain NULL");
		name = DatumGetTextPP(elements[i]);
		input_check_name("category", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	}
}

static bool
interval_is_valid(const Interval *every)
{
	if (every->month < 0 || every->day < 0 || every->time < 0)
		return false;
	if (every->month == 0 && every->day == 0 && every->time < USECS_PER_SEC)
		return false;
	return every->month <= 120 && every->day <= 3660 && every->time <= 87840 * USECS_PER_HOUR;
}

Datum
event_store_set_snapshot_policy(PG_FUNCTION_ARGS)
{
	Datum		values[6];
	char		nulls[6] = {' ', ' ', ' ', ' ', ' ', ' '};
	Datum		progress[3];
	char		progress_nulls[3] = {' ', ' ', ' '};
	int			guc_level;
	text	   *name;
	Fold	   *fold;

	guard("event_store.set_snapshot_policy()");
	if (PG_ARGISNULL(0))
		invalid("fold must not be NULL");
	if (!PG_ARGISNULL(1))
		check_categories(PG_GETARG_DATUM(1));
	if (PG_ARGISNULL(2) && PG_ARGISNULL(3))
		invalid("every_events and every must not both be NULL");
	if (!PG_ARGISNULL(2) && PG_GETARG_INT32(2) < 1)
		invalid("every_events must be positive");
	if (!PG_ARGISNULL(3) && !interval_is_valid(PG_GETARG_INTERVAL_P(3)))
		invalid("every must be 1 s to 10 years");
	if (PG_ARGISNULL(4))
		invalid("keep must not be NULL");
	if (PG_GETARG_INT32(4) < 1 || PG_GETARG_INT32(4) > MAX_KEEP)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("keep must be 1 to %d", MAX_KEEP)));
	if (PG_ARGISNULL(5))
		invalid("schema_version must not be NULL");
	input_schema_version(PG_GETARG_INT32(5));

	/* by what the caller means by the name; from here on it has one meaning only */
	fold = fold_open(PG_GETARG_TEXT_PP(0), CurrentMemoryContext);
	name = cstring_to_text(fold_name(fold));
	fold_close(fold);
	input_check_name("fold", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));

	values[0] = PointerGetDatum(name);
	values[1] = PG_GETARG_DATUM(1);
	nulls[1] = PG_ARGISNULL(1) ? 'n' : ' ';
	values[2] = PG_ARGISNULL(2) ? Int32GetDatum(PG_INT32_MAX) : PG_GETARG_DATUM(2);
	values[3] = PG_GETARG_DATUM(3);
	nulls[3] = PG_ARGISNULL(3) ? 'n' : ' ';
	values[4] = PG_GETARG_DATUM(4);
	values[5] = PG_GETARG_DATUM(5);
	progress[0] = values[0];
	progress[1] = values[1];
	progress_nulls[1] = nulls[1];
	progress[2] = values[5];
	policy_lock(name);
	guc_level = plans_connect();
	/* another policy begins anew, with what was there before it */
	if (plans_execute(&set_progress, progress, progress_nulls) > 0)
		(void) plans_execute(&drop_pending, values, NULL);
	(void) plans_execute(&set_policy, values, nulls);
	plans_finish(guc_level);
	PG_RETURN_TEXT_P(name);
}

Datum
event_store_drop_snapshot_policy(PG_FUNCTION_ARGS)
{
	Datum		values[1];
	int			guc_level;
	bool		found;

	guard("event_store.drop_snapshot_policy()");
	if (PG_ARGISNULL(0))
		invalid("fold must not be NULL");
	values[0] = PG_GETARG_DATUM(0);
	policy_lock(PG_GETARG_TEXT_PP(0));
	guc_level = plans_connect();
	found = plans_execute(&drop_policy, values, NULL) > 0;
	(void) plans_execute(&drop_progress, values, NULL);
	(void) plans_execute(&drop_pending, values, NULL);
	plans_finish(guc_level);
	/* nothing says any more which schema version is the present one */
	if (found)
		(void) saved_remove(0, PG_GETARG_TEXT_PP(0), 0);
	PG_RETURN_BOOL(found);
}
