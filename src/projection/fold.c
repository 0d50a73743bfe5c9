/*
 * fold.c
 *		Folds: how events become a state.
 *
 * A handler is a built-in fold (builtin_fold.c), or a function of the user's.
 * fold_open() resolves it, with all checks, for as long as the fold is open:
 * whoever keeps folds over transactions opens them anew, so that a function
 * that was dropped, replaced or taken away by REVOKE is noticed.
 *
 * A function is called as the executor would call it, in a context that is
 * reset after each call; its state is copied out of there.  One that is STRICT
 * cannot be called without a state, and is refused then: PostgreSQL would give
 * NULL for ever.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type_d.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "pgstat.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
#include "utils/varlena.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "projection/builtin_fold.h"

#define HANDLER_HINT \
	"A fold is merge_patch, count, sum(path), min(path), max(path) or last(path), or a function f(state jsonb, event event_store.recorded_event) that returns jsonb."

/* ----------------------------------------------------------------
 * Functions
 * ----------------------------------------------------------------
 */
typedef struct FunctionState
{
	FoldState	base;
	MemoryContext context;
	Jsonb	   *state;			/* NULL: none */
} FunctionState;

static FoldState *
function_begin(Fold *fold, const Jsonb *state, MemoryContext context)
{
	FunctionState *own = MemoryContextAllocZero(context, sizeof(FunctionState));

	own->context = context;
	if (state != NULL)
	{
		own->state = MemoryContextAlloc(context, VARSIZE(state));
		memcpy(own->state, state, VARSIZE(state));
	}
	return &own->base;
}

static void
function_step(FoldState *state, const Datum *values, const bool *nulls)
{
	FunctionState *own = (FunctionState *) state;
	Fold	   *fold = state->fold;
	FmgrInfo   *flinfo = &fold->flinfo;
	FmgrInfo	own_flinfo;
	bool		is_inner = fold->in_call;
	MemoryContext call_context = fold->call_context;
	MemoryContext caller;
	LOCAL_FCINFO(fcinfo, 2);
	PgStat_FunctionCallUsage usage;
	Datum		result;

	if (fold->flinfo.fn_strict && own->state == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("function %s is strict, and there is no state to call it with",
						fold->name),
				 errhint("Declare it CALLED ON NULL INPUT, and let it begin with coalesce(state, …).")));

	/* a function that comes back to this fold gets a call of its own */
	if (unlikely(is_inner))
	{
		call_context = AllocSetContextCreate(CurrentMemoryContext, "fold's inner call",
											 ALLOCSET_SMALL_SIZES);
		fmgr_info_cxt(fold->function, &own_flinfo, call_context);
		flinfo = &own_flinfo;
	}
	fold->in_call = true;
	caller = MemoryContextSwitchTo(call_context);

	InitFunctionCallInfoData(*fcinfo, flinfo, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = PointerGetDatum(own->state);
	fcinfo->args[0].isnull = own->state == NULL;
	fcinfo->args[1].value =
		HeapTupleGetDatum(heap_form_tuple(fold->event_desc, unconstify(Datum *, values),
										  unconstify(bool *, nulls)));
	fcinfo->args[1].isnull = false;
	pgstat_init_function_usage(fcinfo, &usage);
	result = FunctionCallInvoke(fcinfo);
	pgstat_end_function_usage(&usage, true);

	if (fcinfo->isnull)
	{
		if (own->state != NULL)
			pfree(own->state);
		own->state = NULL;
	}
	else if (DatumGetPointer(result) != (Pointer) own->state)
	{
		Jsonb	   *value = DatumGetJsonbP(result);
		Jsonb	   *copy = MemoryContextAlloc(own->context, VARSIZE(value));

		memcpy(copy, value, VARSIZE(value));
		if (own->state != NULL)
			pfree(own->state);
		own->state = copy;
	}

	MemoryContextSwitchTo(caller);
	if (unlikely(is_inner))
		MemoryContextDelete(call_context);
	else
	{
		MemoryContextReset(call_context);
		fold->in_call = false;
	}
}

static Jsonb *
function_result(FoldState *state)
{
	FunctionState *own = (FunctionState *) state;
	Jsonb	   *copy;

	if (own->state == NULL)
		return NULL;
	copy = palloc(VARSIZE(own->state));
	memcpy(copy, own->state, VARSIZE(own->state));
	return copy;
}

static Size
function_memory(FoldState *state)
{
	FunctionState *own = (FunctionState *) state;

	return sizeof(FunctionState) + (own->state == NULL ? 0 : VARSIZE(own->state));
}

static void
function_end(FoldState *state)
{
	FunctionState *own = (FunctionState *) state;

	if (own->state != NULL)
		pfree(own->state);
	pfree(own);
}

static const FoldMethod function_method = {
	function_begin, function_step, function_result, function_memory, function_end
};

static void
refuse_function(const char *handler, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("function \"%s\" cannot be a fold", handler),
			 errdetail_internal("%s", what),
			 errhint(HANDLER_HINT)));
}

void
fold_refuse_text(MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	if (ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_DATA_EXCEPTION ||
		error->sqlerrcode == ERRCODE_INVALID_NAME ||
		error->sqlerrcode == ERRCODE_SYNTAX_ERROR)
	{
		error->sqlerrcode = ERRCODE_VE_INVALID_ARGUMENT;
		if (error->hint == NULL)
			error->hint = pstrdup(_(HANDLER_HINT));
	}
	ReThrowError(error);
}

/* The function that a handler names, by the search_path as it is. */
static Oid
find_function(const char *handler, Oid event_type)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[2] = {JSONBOID, event_type};
	List	   *volatile name = NIL;
	volatile Oid function = InvalidOid;

	PG_TRY();
	{
		if (strchr(handler, '(') != NULL)
			function = DatumGetObjectId(DirectFunctionCall1(regprocedurein,
															CStringGetDatum(handler)));
		else
		{
			name = textToQualifiedNameList(cstring_to_text(handler));
			function = LookupFuncName(name, 2, types, true);
		}
	}
	PG_CATCH();
	{
		fold_refuse_text(context);
	}
	PG_END_TRY();
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s does not exist",
						func_signature_string(name, 2, NIL, types)),
				 errhint(HANDLER_HINT)));
	return function;
}

static void
open_function(Fold *fold, const char *handler)
{
	const Store *store = catalog_store();
	Oid			event_type = store->recorded_event;
	HeapTuple	tuple;
	Form_pg_proc form;
	AclResult	result;

	fold->function = find_function(handler, event_type);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(fold->function));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", fold->function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	if (form->prokind == PROKIND_AGGREGATE)
		refuse_function(handler, "It is an aggregate.");
	if (form->prokind == PROKIND_WINDOW)
		refuse_function(handler, "It is a window function.");
	if (form->prokind == PROKIND_PROCEDURE)
		refuse_function(handler, "It is a procedure.");
	if (form->proretset)
		refuse_function(handler, "It returns a set.");
	if (form->pronargs != 2 || form->proargtypes.values[0] != JSONBOID ||
		form->proargtypes.values[1] != event_type)
		refuse_function(handler, "Its arguments are of other types.");
	if (form->prorettype != JSONBOID)
		refuse_function(handler, psprintf("It returns %s.",
										  format_type_be(form->prorettype)));
	ReleaseSysCache(tuple);

	result = compat_function_aclcheck(fold->function, GetUserId());
	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_FUNCTION, get_func_name(fold->function));
	InvokeFunctionExecuteHook(fold->function);

	fold->method = &function_method;
	fold->name = quote_qualified_identifier(get_namespace_name(get_func_namespace(fold->function)),
											get_func_name(fold->function));
	fmgr_info_cxt(fold->function, &fold->flinfo, fold->context);
	fold->event_desc = lookup_rowtype_tupdesc_copy(event_type, -1);
	fold->call_context = AllocSetContextCreate(fold->context, "fold's call",
											   ALLOCSET_START_SMALL_SIZES);
}

/* ----------------------------------------------------------------
 * Folds
 * ----------------------------------------------------------------
 */
Fold *
fold_open(text *handler, MemoryContext context)
{
	MemoryContext own = AllocSetContextCreate(context, "fold", ALLOCSET_SMALL_SIZES);
	MemoryContext caller = MemoryContextSwitchTo(own);
	Fold	   *fold = palloc0(sizeof(Fold));
	char	   *name = text_to_cstring(handler);

	fold->context = own;
	if (strspn(name, " \t\r\n\f\v") == strlen(name))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("the handler of a fold is empty"),
				 errhint(HANDLER_HINT)));
	if (!builtin_fold_open(fold, name))
		open_function(fold, name);
	MemoryContextSwitchTo(caller);
	return fold;
}

void
fold_close(Fold *fold)
{
	MemoryContextDelete(fold->context);
}

const char *
fold_name(Fold *fold)
{
	return fold->name;
}

Bitmapset *
fold_columns(Fold *fold)
{
	Bitmapset  *columns;

	if (fold->method == &function_method)
		return NULL;

	/* the stream's name is for errors, and dear: only where a value can be one */
	columns = bms_make_singleton(RE_POSITION);
	columns = bms_add_member(columns, RE_VERSION);
	if (builtin_fold_checks(fold))
		columns = bms_add_member(columns, RE_STREAM);
	if (builtin_fold_reads_data(fold))
		columns = bms_add_member(columns, RE_DATA);
	return columns;
}

FoldState *
fold_begin(Fold *fold, Datum state, bool isnull, MemoryContext context)
{
	FoldState  *begun;

	if (isnull)
		begun = fold->method->begin(fold, NULL, context);
	else
	{
		void	   *to_free;
		const Jsonb *from = fold_payload(fold, state, &to_free);

		begun = fold->method->begin(fold, from, context);
		if (to_free != NULL)
			pfree(to_free);
	}
	begun->fold = fold;
	begun->method = fold->method;
	return begun;
}

/* the event that is folded, for messages */
typedef struct FoldedEvent
{
	Fold	   *fold;
	const Datum *values;
	const bool *nulls;
} FoldedEvent;

static void
describe_event(void *arg)
{
	FoldedEvent *event = arg;
	bool		has_version = !event->nulls[RE_VERSION];
	bool		has_position = !event->nulls[RE_POSITION];

	if (event->nulls[RE_STREAM])
		errcontext("fold \"%s\" of the event at position %lld", event->fold->name,
				   has_position ? (long long) DatumGetInt64(event->values[RE_POSITION]) : 0);
	else
		errcontext("fold \"%s\" of event %d of stream \"%s\" at position %lld",
				   event->fold->name,
				   has_version ? DatumGetInt32(event->values[RE_VERSION]) : 0,
				   TextDatumGetCString(event->values[RE_STREAM]),
				   has_position ? (long long) DatumGetInt64(event->values[RE_POSITION]) : 0);
}

void
fold_step(FoldState *state, const Datum *values, const bool *nulls)
{
	FoldedEvent event = {state->fold, values, nulls};
	ErrorContextCallback callback;

	callback.callback = describe_event;
	callback.arg = &event;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	state->method->step(state, values, nulls);
	error_context_stack = callback.previous;
}

Datum
fold_result(FoldState *state, bool *isnull)
{
	Jsonb	   *result = state->method->result(state);

	*isnull = result == NULL;
	return PointerGetDatum(result);
}

Size
fold_memory(FoldState *state)
{
	return state->method->memory(state);
}

void
fold_end(FoldState *state)
{
	state->method->end(state);
}
