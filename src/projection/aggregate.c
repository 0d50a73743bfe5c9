/*
 * aggregate.c
 *		Folds as aggregates: merge_patch(data) and fold(handler, event); and the
 *		functions that go with them.
 *
 * A state lives in the aggregate's memory context, which ends it.  Final
 * functions leave it as it is, so the aggregates serve as window functions too.
 * Folds are opened once for each handler in a plan, and kept for as long as
 * that runs.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/expandedrecord.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "projection/builtin_fold.h"
#include "projection/merge_patch.h"

PG_FUNCTION_INFO_V1(event_store_merge_patch_step);
PG_FUNCTION_INFO_V1(event_store_merge_patch_result);
PG_FUNCTION_INFO_V1(event_store_apply_merge_patch);
PG_FUNCTION_INFO_V1(event_store_fold_step);
PG_FUNCTION_INFO_V1(event_store_fold_result);
PG_FUNCTION_INFO_V1(event_store_as_recorded_event);

static MemoryContext
aggregate_context(FunctionCallInfo fcinfo)
{
	MemoryContext context;

	if (!AggCheckCallContext(fcinfo, &context))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("this function is a part of an aggregate, and cannot be called")));
	return context;
}

/* ----------------------------------------------------------------
 * merge_patch(jsonb)
 * ----------------------------------------------------------------
 */
static void
apply_patch(MergeDocument *document, Datum datum)
{
	Jsonb	   *patch = DatumGetJsonbP(datum);

	merge_apply(document, &patch->root, VARSIZE(patch) - VARHDRSZ);
	if ((Pointer) patch != DatumGetPointer(datum))
		pfree(patch);
}

Datum
event_store_merge_patch_step(PG_FUNCTION_ARGS)
{
	MemoryContext context = aggregate_context(fcinfo);
	MergeDocument *document = PG_ARGISNULL(0) ? NULL :
		(MergeDocument *) PG_GETARG_POINTER(0);

	if (!PG_ARGISNULL(1))
	{
		if (document == NULL)
			document = merge_begin(context);
		apply_patch(document, PG_GETARG_DATUM(1));
	}
	if (document == NULL)
		PG_RETURN_NULL();
	PG_RETURN_POINTER(document);
}

Datum
event_store_merge_patch_result(PG_FUNCTION_ARGS)
{
	aggregate_context(fcinfo);
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(merge_result((MergeDocument *) PG_GETARG_POINTER(0)));
}

Datum
event_store_apply_merge_patch(PG_FUNCTION_ARGS)
{
	MergeDocument *document;
	Jsonb	   *result;

	if (PG_ARGISNULL(1))
	{
		if (PG_ARGISNULL(0))
			PG_RETURN_NULL();
		PG_RETURN_DATUM(PG_GETARG_DATUM(0));
	}
	document = merge_begin(CurrentMemoryContext);
	if (!PG_ARGISNULL(0))
	{
		Jsonb	   *target = PG_GETARG_JSONB_P(0);

		merge_load(document, &target->root, VARSIZE(target) - VARHDRSZ);
		PG_FREE_IF_COPY(target, 0);
	}
	apply_patch(document, PG_GETARG_DATUM(1));
	result = merge_result(document);
	merge_end(document);
	PG_RETURN_JSONB_P(result);
}

/* ----------------------------------------------------------------
 * fold(text, recorded_event)
 * ----------------------------------------------------------------
 */

/* a handler that the plan has met */
typedef struct PlanFold PlanFold;
struct PlanFold
{
	PlanFold   *next;
	text	   *handler;
	Fold	   *fold;
};

/* kept for the plan, in fn_extra */
typedef struct PlanFolds
{
	TupleDesc	event_desc;
	PlanFold   *first;
} PlanFolds;

/* the aggregate's state */
typedef struct FoldedGroup
{
	PlanFold   *handler;
	FoldState  *state;
} FoldedGroup;

static inline bool
same_text(const text *a, const text *b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

static PlanFolds *
plan_folds(FunctionCallInfo fcinfo)
{
	PlanFolds  *folds = fcinfo->flinfo->fn_extra;

	if (folds == NULL)
	{
		MemoryContext context = fcinfo->flinfo->fn_mcxt;
		MemoryContext caller = MemoryContextSwitchTo(context);

		folds = palloc0(sizeof(PlanFolds));
		folds->event_desc = lookup_rowtype_tupdesc_copy(catalog_store()->recorded_event, -1);
		MemoryContextSwitchTo(caller);
		fcinfo->flinfo->fn_extra = folds;
	}
	return folds;
}

static PlanFold *
plan_fold(FunctionCallInfo fcinfo, PlanFolds *folds, text *handler)
{
	MemoryContext context = fcinfo->flinfo->fn_mcxt;
	PlanFold   *fold;
	text	   *copy;

	for (fold = folds->first; fold != NULL; fold = fold->next)
		if (same_text(fold->handler, handler))
			return fold;
	copy = MemoryContextAlloc(context, VARSIZE_ANY(handler));
	memcpy(copy, handler, VARSIZE_ANY(handler));
	fold = MemoryContextAlloc(context, sizeof(PlanFold));
	fold->handler = copy;
	fold->fold = fold_open(handler, context);
	fold->next = folds->first;
	folds->first = fold;
	return fold;
}

static void
step_event(PlanFolds *folds, FoldState *state, Datum event)
{
	HeapTupleData tuple;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];

	/* from a plan node of ours, or plpgsql: the columns are there */
	if (VARATT_IS_EXTERNAL_EXPANDED(DatumGetPointer(event)))
	{
		ExpandedRecordHeader *record = (ExpandedRecordHeader *) DatumGetEOHP(event);

		deconstruct_expanded_record(record);
		if (record->nfields == RE_NATTS)
		{
			fold_step(state, record->dvalues, record->dnulls);
			return;
		}
	}
	tuple.t_data = DatumGetHeapTupleHeader(event);
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	heap_deform_tuple(&tuple, folds->event_desc, values, nulls);
	fold_step(state, values, nulls);
}

Datum
event_store_fold_step(PG_FUNCTION_ARGS)
{
	MemoryContext context = aggregate_context(fcinfo);
	FoldedGroup *group = PG_ARGISNULL(0) ? NULL : (FoldedGroup *) PG_GETARG_POINTER(0);
	PlanFolds  *folds = plan_folds(fcinfo);
	text	   *handler;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("the handler of a fold is NULL")));
	handler = PG_GETARG_TEXT_PP(1);
	if (group == NULL)
	{
		group = MemoryContextAlloc(context, sizeof(FoldedGroup));
		group->handler = plan_fold(fcinfo, folds, handler);
		group->state = fold_begin(group->handler->fold, (Datum) 0, true, context);
	}
	else if (!same_text(group->handler->handler, handler))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("the handler of a fold changes within a group"),
				 errdetail("It was \"%s\", and is \"%s\" now.",
						   text_to_cstring(group->handler->handler),
						   text_to_cstring(handler)),
				 errhint("Add the handler to GROUP BY.")));
	if (PG_ARGISNULL(2))
		PG_RETURN_POINTER(group);

	step_event(folds, group->state, PG_GETARG_DATUM(2));
	PG_RETURN_POINTER(group);
}

Datum
event_store_fold_result(PG_FUNCTION_ARGS)
{
	bool		isnull;
	Datum		result;

	aggregate_context(fcinfo);
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	result = fold_result(((FoldedGroup *) PG_GETARG_POINTER(0))->state, &isnull);
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}

/* ----------------------------------------------------------------
 * A row of the view as a recorded_event
 * ----------------------------------------------------------------
 */
typedef struct EventCast
{
	TupleDesc	from;
	TupleDesc	to;
} EventCast;

Datum
event_store_as_recorded_event(PG_FUNCTION_ARGS)
{
	EventCast  *cast = fcinfo->flinfo->fn_extra;
	HeapTupleHeader row;
	HeapTupleData tuple;
	Datum		values[RE_NATTS + 1];
	bool		nulls[RE_NATTS + 1];

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	row = PG_GETARG_HEAPTUPLEHEADER(0);
	if (cast == NULL)
	{
		const Store *store = catalog_store();
		MemoryContext caller = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		cast = palloc(sizeof(EventCast));
		cast->from = lookup_rowtype_tupdesc_copy(get_rel_type_id(store->events_view), -1);
		cast->to = lookup_rowtype_tupdesc_copy(store->recorded_event, -1);
		MemoryContextSwitchTo(caller);
		fcinfo->flinfo->fn_extra = cast;
	}
	tuple.t_len = HeapTupleHeaderGetDatumLength(row);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = row;

	/* the view has all columns of recorded_event first */
	heap_deform_tuple(&tuple, cast->from, values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(cast->to, values, nulls)));
}
