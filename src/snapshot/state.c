/*
 * state.c
 *		state_at(): a stream folded up to a version or a moment.
 *
 * 1. the newest snapshot that can be used is found (saved_resume());
 * 2. the events behind it are folded, up to the bounds, one by one;
 * 3. where there is a policy for the fold, and many events had to be folded, the
 *	  state is saved, if the transaction may write and the caller may save.
 *
 * Snapshot and events are read by one snapshot of the database.  The state is
 * that of a version: the answer does not depend on which snapshots there are.
 *
 * A function is called as it is now, in a transaction with an old snapshot, too; so
 * what schema version its states have is looked up as of now, before the first call
 * and after the last.  If it is another one by then, the stream is folded once more.
 * Nothing is saved by a policy that is being changed, or has been since.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "snapshot/snapshot.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_state_at);

/* Folds a stream.  The name is checked; the result is in the caller's memory. */
void
state_fold(text *stream, Fold *fold, int32 schema_version,
		   const StateBounds *bounds, FoldedState *result)
{
	const TimestampTz *until_time = bounds->has_until_time ? &bounds->until_time : NULL;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "event_store state",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext scratch = AllocSetContextCreate(context, "event_store fold step",
												  ALLOCSET_DEFAULT_SIZES);
	ReadRequest request;
	Reader	   *reader;
	StateKey	key;
	SavedState	saved;
	FoldState  *state;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];

	memset(result, 0, sizeof(FoldedState));
	memset(&request, 0, sizeof(request));
	MemoryContextSwitchTo(context);
	request.kind = READ_STREAM;
	request.stream = stream;
	request.from_version = 1;
	request.until_version = Min(bounds->until_version, PG_INT32_MAX);
	request.max_count = PG_INT64_MAX;
	reader = reader_open(&request);

	key.stream_id = result->stream_id = reader_asked_stream(reader);
	key.fold = cstring_to_text(fold_name(fold));
	key.schema_version = schema_version;
	saved.isnull = true;
	saved.state = (Datum) 0;
	if (key.stream_id != 0 && request.until_version > 0 &&
		saved_resume(reader, &key, request.until_version, until_time,
					 GetActiveSnapshot(), &saved, values, nulls))
	{
		result->version = result->begun_at = saved.version;
		result->position = saved.position;
		result->recorded_at = DatumGetTimestampTz(values[RE_RECORDED_AT]);
	}
	else
		saved.isnull = true;

	state = fold_begin(fold, saved.state, saved.isnull, context);
	MemoryContextSwitchTo(scratch);
	for (;;)
	{
		if (!reader_next(reader, values, nulls) ||
			(until_time != NULL &&
			 DatumGetTimestampTz(values[RE_RECORDED_AT]) > *until_time))
		{
			result->at_end = true;
			break;
		}
		if (result->folded >= bounds->max_events)
			break;
		fold_step(state, values, nulls);
		result->version = DatumGetInt32(values[RE_VERSION]);
		result->position = DatumGetInt64(values[RE_POSITION]);
		result->recorded_at = DatumGetTimestampTz(values[RE_RECORDED_AT]);
		result->folded++;
		MemoryContextReset(scratch);
		CHECK_FOR_INTERRUPTS();
	}
	reader_close(reader);
	MemoryContextSwitchTo(caller);
	result->state = fold_result(state, &result->isnull);
	fold_end(state);
	MemoryContextDelete(context);
}

/* Saves what was folded; false if it is not among the newest `keep`. */
bool
state_save(Fold *fold, int32 schema_version, int keep, const FoldedState *state)
{
	StateKey	key;
	SavedState	saved;

	key.stream_id = state->stream_id;
	key.fold = cstring_to_text(fold_name(fold));
	key.schema_version = schema_version;
	if (!saved_is_wanted(&key, state->version, keep))
		return false;
	saved.version = state->version;
	saved.position = state->position;
	saved.recorded_at = state->recorded_at;
	saved.isnull = state->isnull;
	saved.state = state->state;
	return saved_write(&key, &saved, keep);
}

/* May this transaction write, and this user save? */
static bool
may_save(void)
{
	Oid			function;
	Oid			any[1] = {InvalidOid};	/* not looked at */

	if (XactReadOnly || RecoveryInProgress() || IsInParallelMode())
		return false;
	function = LookupFuncName(list_make2(makeString("event_store"), makeString("save_snapshot")),
							  -1, any, true);
	return OidIsValid(function) &&
		compat_function_aclcheck(function, GetUserId()) == ACLCHECK_OK;
}

/* Does a policy want what was folded? */
static bool
is_wanted(const SnapshotPolicy *policy, int32 schema_version, const FoldedState *state,
		  const text *stream)
{
	return schema_version == policy->schema_version && state->folded >= policy->every_events &&
		policy_has_stream(policy, stream);
}

Datum
event_store_state_at(PG_FUNCTION_ARGS)
{
	StateBounds bounds = {0};
	SnapshotPolicy policy = {0};
	SnapshotPolicy now = {0};
	bool		has_policy;
	bool		has_changed;
	int32		schema_version;
	FoldedState state;
	text	   *stream;
	text	   *name;
	Fold	   *fold;

	catalog_require_read(catalog_store());
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("stream must not be NULL")));
	stream = PG_GETARG_TEXT_PP(0);
	input_check_name("stream", VARDATA_ANY(stream), VARSIZE_ANY_EXHDR(stream));
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("fold must not be NULL")));
	bounds.until_version = PG_ARGISNULL(2) ? PG_INT32_MAX : PG_GETARG_INT64(2);
	if (bounds.until_version < 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("version must not be negative")));
	bounds.has_until_time = !PG_ARGISNULL(3);
	if (bounds.has_until_time)
		bounds.until_time = PG_GETARG_TIMESTAMPTZ(3);
	bounds.max_events = PG_INT64_MAX;
	fold = fold_open(PG_GETARG_TEXT_PP(1), CurrentMemoryContext);
	name = cstring_to_text(fold_name(fold));
	if (!PG_ARGISNULL(4))
		input_schema_version(PG_GETARG_INT32(4));

	has_policy = policy_find_latest(name, &policy);
	do
	{
		/* it may have been replaced together with its policy */
		if (has_policy)
		{
			fold_close(fold);
			fold = fold_open(name, CurrentMemoryContext);
		}
		schema_version = !PG_ARGISNULL(4) ? PG_GETARG_INT32(4) :
			has_policy ? policy.schema_version : 1;
		state_fold(stream, fold, schema_version, &bounds, &state);
		has_changed = false;
		if (PG_ARGISNULL(4) && state.begun_at > 0)
		{
			bool		had_policy = has_policy;

			has_policy = policy_find_latest(name, &now);
			has_changed = has_policy != had_policy ||
				(has_policy && !policy_is_same(&policy, &now));
			policy = now;
		}
	} while (has_changed);
	if (has_policy && is_wanted(&policy, schema_version, &state, stream) && may_save() &&
		policy_find_locked(name, &now) && policy_is_same(&policy, &now) &&
		is_wanted(&now, schema_version, &state, stream))
		(void) state_save(fold, schema_version, now.keep, &state);
	fold_close(fold);
	if (state.isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(state.state);
}
