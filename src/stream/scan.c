/*
 * scan.c
 *		The functions that read events, and the plan node that runs them.
 *
 * PostgreSQL would run a function in FROM to its end, into a tuplestore,
 * before the first row is seen.  The support function that each of ours names
 * is called while a query is planned, which loads this library in time for its
 * set_rel_pathlist hook; the hook replaces the scan of the function by a
 * custom scan, which hands out rows as they are read: who stops early does not
 * pay for the rest, and EXPLAIN tells what is read, and by which index.
 *
 * A reference to the whole row, as for an aggregate over events, is one more
 * column of the scan, behind those of the event.  Its value is an expanded
 * record around the columns, which only becomes a row where somebody wants the
 * bytes.
 *
 * Where a custom scan cannot do (WITH ORDINALITY, ROWS FROM, a call in a SELECT
 * list) the functions run as such, row by row.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_type_d.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/extensible.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/supportnodes.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/expandedrecord.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "common/compat.h"
#include "stream/read.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_read_support);
PG_FUNCTION_INFO_V1(event_store_read_stream);
PG_FUNCTION_INFO_V1(event_store_read_category);
PG_FUNCTION_INFO_V1(event_store_read_all);
PG_FUNCTION_INFO_V1(event_store_events_since);
PG_FUNCTION_INFO_V1(event_store_find_event);
PG_FUNCTION_INFO_V1(event_store_last_event);
PG_FUNCTION_INFO_V1(event_store_trace);

/* how many functions can be added to those of readers */
#define MAX_ADDED	4

/* by ReadKind; those behind READ_POSITIONS were added */
static ReadFunction read_functions[READ_POSITIONS + MAX_ADDED] = {
	[READ_STREAM] = {"read_stream", event_store_read_stream, 6, 2, 3, true},
	[READ_CATEGORY] = {"read_category", event_store_read_category, 5, 2, 4, false},
	[READ_ALL] = {"read_all", event_store_read_all, 5, 1, 4, false},
	[READ_SINCE] = {"events_since", event_store_events_since, 4, 1, -1, false},
	[READ_EVENT_ID] = {"find_event", event_store_find_event, 4, -1, -1, false},
	[READ_LAST] = {"last_event", event_store_last_event, 2, -1, -1, false},
	[READ_TRACE] = {"trace", event_store_trace, 4, 1, -1, false},
};
static int	nfunctions = READ_POSITIONS;

void
scan_add_function(const ReadFunction *function)
{
	Assert(nfunctions < READ_POSITIONS + MAX_ADDED);
	read_functions[nfunctions++] = *function;
}

/* ----------------------------------------------------------------
 * Rows
 * ----------------------------------------------------------------
 */

static void *
open_rows(int kind, const Datum *values, const bool *nulls)
{
	ReadRequest request;

	if (read_functions[kind].open != NULL)
		return read_functions[kind].open(values, nulls);
	read_request(&request, kind, read_functions[kind].nargs, values, nulls);
	return reader_open(&request);
}

static bool
next_row(int kind, void *rows, Datum *values, bool *nulls)
{
	if (read_functions[kind].next != NULL)
		return read_functions[kind].next(rows, values, nulls);
	return reader_next(rows, values, nulls);
}

static void
close_rows(int kind, void *rows)
{
	if (read_functions[kind].close != NULL)
		read_functions[kind].close(rows);
	else
		reader_close(rows);
}

static ReadCounts
row_counts(int kind, void *rows)
{
	if (read_functions[kind].counts != NULL)
		return read_functions[kind].counts(rows);
	return reader_counts(rows);
}

/* ----------------------------------------------------------------
 * As functions
 * ----------------------------------------------------------------
 */

/* the rows of a call that returns them one by one */
typedef struct CallRows
{
	int			kind;
	void	   *rows;
} CallRows;

static void
shutdown_rows(Datum arg)
{
	CallRows   *state = (CallRows *) DatumGetPointer(arg);

	close_rows(state->kind, state->rows);
}

static Datum
read_rows(FunctionCallInfo fcinfo, int kind)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	FuncCallContext *call;
	CallRows   *state;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];

	if (SRF_IS_FIRSTCALL())
	{
		Datum		arguments[READ_MAX_ARGS];
		bool		argument_nulls[READ_MAX_ARGS];
		MemoryContext saved;
		TupleDesc	desc;

		call = SRF_FIRSTCALL_INIT();
		saved = MemoryContextSwitchTo(call->multi_call_memory_ctx);
		for (int i = 0; i < read_functions[kind].nargs; i++)
		{
			argument_nulls[i] = PG_ARGISNULL(i);
			arguments[i] = PG_GETARG_DATUM(i);
			/* by reference, it must outlive this call */
			if (!argument_nulls[i])
			{
				int16		len;
				bool		byval;

				get_typlenbyval(get_fn_expr_argtype(fcinfo->flinfo, i), &len, &byval);
				arguments[i] = datumCopy(arguments[i], byval, len);
			}
		}
		desc = lookup_rowtype_tupdesc_copy(catalog_store()->recorded_event, -1);
		call->tuple_desc = BlessTupleDesc(desc);
		state = palloc(sizeof(CallRows));
		state->kind = kind;
		state->rows = open_rows(kind, arguments, argument_nulls);
		call->user_fctx = state;
		RegisterExprContextCallback(result->econtext, shutdown_rows,
									PointerGetDatum(state));
		MemoryContextSwitchTo(saved);
	}

	call = SRF_PERCALL_SETUP();
	state = call->user_fctx;
	if (next_row(kind, state->rows, values, nulls))
		SRF_RETURN_NEXT(call, HeapTupleGetDatum(heap_form_tuple(call->tuple_desc,
																values, nulls)));
	UnregisterExprContextCallback(result->econtext, shutdown_rows,
								  PointerGetDatum(state));
	close_rows(kind, state->rows);
	SRF_RETURN_DONE(call);
}

/* A call of a function that was added. */
Datum
scan_rows(FunctionCallInfo fcinfo)
{
	int			kind = READ_POSITIONS;

	while (kind < nfunctions && read_functions[kind].function != fcinfo->flinfo->fn_addr)
		kind++;
	if (kind == nfunctions)
		elog(ERROR, "function %u does not read events", fcinfo->flinfo->fn_oid);
	return read_rows(fcinfo, kind);
}

Datum
event_store_read_stream(PG_FUNCTION_ARGS)
{
	return read_rows(fcinfo, READ_STREAM);
}

Datum
event_store_read_category(PG_FUNCTION_ARGS)
{
	return read_rows(fcinfo, READ_CATEGORY);
}

Datum
event_store_read_all(PG_FUNCTION_ARGS)
{
	return read_rows(fcinfo, READ_ALL);
}

Datum
event_store_events_since(PG_FUNCTION_ARGS)
{
	return read_rows(fcinfo, READ_SINCE);
}

Datum
event_store_find_event(PG_FUNCTION_ARGS)
{
	return read_rows(fcinfo, READ_EVENT_ID);
}

Datum
event_store_last_event(PG_FUNCTION_ARGS)
{
	return read_rows(fcinfo, READ_LAST);
}

Datum
event_store_trace(PG_FUNCTION_ARGS)
{
	return read_rows(fcinfo, READ_TRACE);
}

/* ----------------------------------------------------------------
 * Planning
 * ----------------------------------------------------------------
 */

static set_rel_pathlist_hook_type previous_hook = NULL;

/* The read that a call stands for, or -1. */
static int
read_kind(FuncExpr *call)
{
	FmgrInfo	info;

	if (!OidIsValid(get_func_support(call->funcid)))
		return -1;
	fmgr_info(call->funcid, &info);
	for (int kind = 0; kind < nfunctions; kind++)
		if (info.fn_addr == read_functions[kind].function &&
			list_length(call->args) == read_functions[kind].nargs)
			return kind;
	return -1;
}

/* How many rows a call will return, if its arguments tell. */
Datum
event_store_read_support(PG_FUNCTION_ARGS)
{
	Node	   *request = (Node *) PG_GETARG_POINTER(0);

	if (IsA(request, SupportRequestRows))
	{
		SupportRequestRows *rows = (SupportRequestRows *) request;

		if (is_funcclause(rows->node))
		{
			FuncExpr   *call = (FuncExpr *) rows->node;
			int			kind = read_kind(call);
			int			arg = kind < 0 ? -1 : read_functions[kind].max_count;

			if (arg >= 0)
			{
				Node	   *count = estimate_expression_value(rows->root,
															  list_nth(call->args, arg));

				if (IsA(count, Const) && !((Const *) count)->constisnull)
				{
					rows->rows = clamp_row_est((double)
											   DatumGetInt64(((Const *) count)->constvalue));
					PG_RETURN_POINTER(rows);
				}
			}
		}
	}
	PG_RETURN_POINTER(NULL);
}

static Plan *plan_scan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path,
					   List *tlist, List *clauses, List *custom_plans);

static const CustomPathMethods path_methods = {
	.CustomName = "Event Store Read",
	.PlanCustomPath = plan_scan,
};

/*
 * The order that rows come in, if the query has a use for it: it has if an
 * equivalence class of the column is there.
 */
static List *
scan_pathkeys(PlannerInfo *root, RelOptInfo *rel, FuncExpr *call, int kind)
{
	const ReadFunction *function = &read_functions[kind];
	bool		backward = kind == READ_LAST;
	bool		by_version = function->by_version;
	TypeCacheEntry *type;
	Var		   *var;

	/* equal ids come in no order */
	if (kind == READ_EVENT_ID)
		return NIL;

	if (function->backward >= 0)
	{
		Node	   *arg = list_nth(call->args, function->backward);

		if (!IsA(arg, Const))
			return NIL;
		backward = !((Const *) arg)->constisnull &&
			DatumGetBool(((Const *) arg)->constvalue);
	}
	type = lookup_type_cache(by_version ? INT4OID : INT8OID,
							 TYPECACHE_LT_OPR | TYPECACHE_GT_OPR);
	var = makeVar(rel->relid, (by_version ? RE_VERSION : RE_POSITION) + 1,
				  type->type_id, -1, InvalidOid, 0);
	return compat_build_expression_pathkey(root, (Expr *) var,
										   backward ? type->gt_opr : type->lt_opr,
										   rel->relids);
}

static void
add_scan_path(PlannerInfo *root, RelOptInfo *rel, Index rti, RangeTblEntry *rte)
{
	RangeTblFunction *function;
	CustomPath *path;
	FuncExpr   *call;
	int			kind;

	if (previous_hook != NULL)
		previous_hook(root, rel, rti, rte);

	if (rte->rtekind != RTE_FUNCTION || rel->reloptkind != RELOPT_BASEREL ||
		rte->funcordinality || list_length(rte->functions) != 1)
		return;
	function = linitial_node(RangeTblFunction, rte->functions);
	if (!IsA(function->funcexpr, FuncExpr) || function->funccolnames != NIL ||
		function->funccolcount != RE_NATTS)
		return;
	call = (FuncExpr *) function->funcexpr;
	kind = read_kind(call);
	if (kind < 0)
		return;

	path = makeNode(CustomPath);
	path->path.pathtype = T_CustomScan;
	path->path.parent = rel;
	path->path.pathtarget = rel->reltarget;
	path->path.param_info = get_baserel_parampathinfo(root, rel, rel->lateral_relids);
	path->path.rows = rel->rows;
	path->path.startup_cost = 4 * random_page_cost;
	path->path.total_cost = path->path.startup_cost +
		rel->tuples * (cpu_tuple_cost + cpu_index_tuple_cost + seq_page_cost / 8) +
		rel->baserestrictcost.per_tuple * rel->tuples;
	path->path.pathkeys = scan_pathkeys(root, rel, call, kind);
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->custom_private = list_make1_int(kind);
	path->methods = &path_methods;
	rel->pathlist = list_make1(path);
	rel->partial_pathlist = NIL;
}

/* Is there a reference to the whole row? */
static bool
wants_row(RelOptInfo *rel)
{
	Bitmapset  *attributes = NULL;
	ListCell   *cell;

	pull_varattnos((Node *) rel->reltarget->exprs, rel->relid, &attributes);
	foreach(cell, rel->baserestrictinfo)
		pull_varattnos((Node *) lfirst_node(RestrictInfo, cell)->clause, rel->relid,
					   &attributes);
	return bms_is_member(0 - FirstLowInvalidHeapAttributeNumber, attributes);
}

static Node *create_scan_state(CustomScan *scan);

static const CustomScanMethods scan_methods = {
	.CustomName = "Event Store Read",
	.CreateCustomScanState = create_scan_state,
};

/*
 * A custom scan without a relation, whose scan tuple is an event, as columns of
 * recorded_event; its caller adds what else it has.
 */
CustomScan *
scan_make_plan(RelOptInfo *rel, CustomPath *path, List *tlist, List *clauses,
			   const CustomScanMethods *methods)
{
	CustomScan *scan = makeNode(CustomScan);
	TupleDesc	desc = lookup_rowtype_tupdesc(catalog_store()->recorded_event, -1);

	scan->scan.plan.targetlist = tlist;
	scan->scan.plan.qual = extract_actual_clauses(clauses, false);
	scan->scan.scanrelid = 0;
	scan->flags = path->flags;
	scan->custom_private = path->custom_private;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		Var		   *var = makeVar(rel->relid, i + 1, attribute->atttypid,
								  attribute->atttypmod, attribute->attcollation, 0);

		scan->custom_scan_tlist = lappend(scan->custom_scan_tlist,
										  makeTargetEntry((Expr *) var, i + 1,
														  pstrdup(NameStr(attribute->attname)),
														  false));
	}
	ReleaseTupleDesc(desc);
	scan->methods = methods;
	return scan;
}

/*
 * The scan tuple has the row as a value, too, if that is wanted.  The call is
 * carried as an expression, for its arguments, and so that the plan depends on
 * the function.
 */
static Plan *
plan_scan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path,
		  List *tlist, List *clauses, List *custom_plans)
{
	RangeTblEntry *rte = planner_rt_fetch(rel->relid, root);
	RangeTblFunction *function = linitial_node(RangeTblFunction, rte->functions);
	CustomScan *scan = scan_make_plan(rel, path, tlist, clauses, &scan_methods);

	scan->custom_exprs = list_make1(function->funcexpr);
	if (wants_row(rel))
		scan->custom_scan_tlist =
			lappend(scan->custom_scan_tlist,
					makeTargetEntry((Expr *) makeVar(rel->relid, InvalidAttrNumber,
													 exprType(function->funcexpr), -1,
													 InvalidOid, 0),
									RE_NATTS + 1, pstrdup("event"), false));
	return &scan->scan.plan;
}

/* ----------------------------------------------------------------
 * Execution
 * ----------------------------------------------------------------
 */

typedef struct ReadScanState
{
	CustomScanState css;
	int			kind;			/* of read_functions[] */
	Oid			function;
	List	   *arguments;		/* of ExprState */
	MemoryContext context;		/* of the arguments' values and the rows */
	void	   *rows;
	ReadCounts	counts;			/* of rows that are closed */
	ExpandedRecordHeader *row;	/* the row as a value; NULL: not wanted */
} ReadScanState;

static void begin_scan(CustomScanState *node, EState *estate, int eflags);
static TupleTableSlot *exec_scan(CustomScanState *node);
static void end_scan(CustomScanState *node);
static void rescan_scan(CustomScanState *node);
static void explain_scan(CustomScanState *node, List *ancestors, ExplainState *es);

static const CustomExecMethods exec_methods = {
	.CustomName = "Event Store Read",
	.BeginCustomScan = begin_scan,
	.ExecCustomScan = exec_scan,
	.EndCustomScan = end_scan,
	.ReScanCustomScan = rescan_scan,
	.ExplainCustomScan = explain_scan,
};

static Node *
create_scan_state(CustomScan *scan)
{
	ReadScanState *state = (ReadScanState *) newNode(sizeof(ReadScanState),
													 T_CustomScanState);

	state->css.methods = &exec_methods;
	state->kind = linitial_int(scan->custom_private);
	state->counts.mark = -1;
	return (Node *) state;
}

static void
begin_scan(CustomScanState *node, EState *estate, int eflags)
{
	ReadScanState *state = (ReadScanState *) node;
	CustomScan *scan = (CustomScan *) node->ss.ps.plan;
	FuncExpr   *call = linitial_node(FuncExpr, scan->custom_exprs);
	AclResult	acl;

	state->function = call->funcid;
	acl = compat_function_aclcheck(call->funcid, GetUserId());
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FUNCTION, get_func_name(call->funcid));
	InvokeFunctionExecuteHook(call->funcid);
	state->arguments = ExecInitExprList(call->args, &node->ss.ps);
	if (list_length(scan->custom_scan_tlist) > RE_NATTS)
		state->row = scan_make_row(estate->es_query_cxt);
	state->context = AllocSetContextCreate(estate->es_query_cxt,
										   "event_store scan",
										   ALLOCSET_DEFAULT_SIZES);
}

static void
open_scan(ReadScanState *state)
{
	ExprContext *econtext = state->css.ss.ps.ps_ExprContext;
	Datum		values[READ_MAX_ARGS];
	bool		nulls[READ_MAX_ARGS];
	MemoryContext saved;
	ListCell   *cell;
	int			n = 0;

	MemoryContextReset(state->context);
	saved = MemoryContextSwitchTo(state->context);
	foreach(cell, state->arguments)
	{
		ExprState  *argument = lfirst(cell);

		values[n] = ExecEvalExpr(argument, econtext, &nulls[n]);
		n++;
	}
	state->rows = open_rows(state->kind, values, nulls);
	MemoryContextSwitchTo(saved);
}

static void
close_scan(ReadScanState *state)
{
	ReadCounts	counts;

	if (state->rows == NULL)
		return;
	counts = row_counts(state->kind, state->rows);
	state->counts.segments += counts.segments;
	state->counts.ranges += counts.ranges;
	state->counts.filtered += counts.filtered;
	state->counts.mark = counts.mark;
	close_rows(state->kind, state->rows);
	state->rows = NULL;
}

/*
 * The row as a value, good for as long as its columns are: whoever keeps it
 * copies it, and a copy is flat.  A record with values out of line would have
 * to fetch them into memory of its own, so such a row is made at once, in the
 * current context.
 */
Datum
scan_row_value(ExpandedRecordHeader *row, Datum *values, bool *nulls)
{
	static const int may_be_external[] = {RE_DATA, RE_METADATA, RE_CORRELATION_ID, RE_STREAM,
	RE_TYPE, RE_SOURCE};

	for (int i = 0; i < lengthof(may_be_external); i++)
		if (!nulls[may_be_external[i]] &&
			VARATT_IS_EXTERNAL(DatumGetPointer(values[may_be_external[i]])))
			return HeapTupleGetDatum(heap_form_tuple(row->er_tupdesc, values, nulls));
	row->dvalues = values;
	row->dnulls = nulls;
	row->flags = (row->flags & ER_FLAGS_NON_DATA) | ER_FLAG_DVALUES_VALID;
	row->flat_size = 0;
	return ExpandedRecordGetRODatum(row);
}

/* What scan_row_value() makes such values of. */
ExpandedRecordHeader *
scan_make_row(MemoryContext context)
{
	ExpandedRecordHeader *row = make_expanded_record_from_typeid(catalog_store()->recorded_event,
																 -1, context);

	if (row->nfields != RE_NATTS)
		elog(ERROR, "recorded_event has %d columns", row->nfields);
	return row;
}

/* The column of a slot that is the row itself, if there is one. */
static void
put_row(ReadScanState *state, TupleTableSlot *slot)
{
	MemoryContext saved;

	if (state->row == NULL)
		return;
	saved = MemoryContextSwitchTo(state->css.ss.ps.ps_ExprContext->ecxt_per_tuple_memory);
	slot->tts_values[RE_NATTS] = scan_row_value(state->row, slot->tts_values, slot->tts_isnull);
	slot->tts_isnull[RE_NATTS] = false;
	MemoryContextSwitchTo(saved);
}

static TupleTableSlot *
next_event(ScanState *node)
{
	ReadScanState *state = (ReadScanState *) node;
	TupleTableSlot *slot = node->ss_ScanTupleSlot;

	if (state->rows == NULL)
		open_scan(state);
	ExecClearTuple(slot);
	if (!next_row(state->kind, state->rows, slot->tts_values, slot->tts_isnull))
		return slot;
	put_row(state, slot);
	return ExecStoreVirtualTuple(slot);
}

/*
 * READ COMMITTED joins a row anew that somebody has updated since the snapshot
 * (EvalPlanQual). The event that it was joined with is handed out once more, from
 * the row mark that carries it: to read again would give others, or, from a
 * subscription, none. In a subquery there is none, and it is read.
 */
static bool
recheck_event(ScanState *node, TupleTableSlot *slot)
{
	ReadScanState *state = (ReadScanState *) node;
	CustomScan *scan = (CustomScan *) node->ps.plan;
	EPQState   *epq = node->ps.state->es_epq_active;
	int			rti = bms_singleton_member(scan->custom_relids);

	if (epq->relsubs_rowmark[rti - 1] == NULL)
	{
		(void) next_event(node);	/* into the slot */
		return !TupIsNull(slot);
	}
	if (epq->relsubs_done[rti - 1])
		return false;
	epq->relsubs_done[rti - 1] = true;
	if (!EvalPlanQualFetchRowMark(epq, rti, slot))
		return false;
	put_row(state, slot);
	return true;
}

static TupleTableSlot *
exec_scan(CustomScanState *node)
{
	return ExecScan(&node->ss, next_event, recheck_event);
}

static void
end_scan(CustomScanState *node)
{
	close_scan((ReadScanState *) node);
}

static void
rescan_scan(CustomScanState *node)
{
	close_scan((ReadScanState *) node);
	ExecScanReScan(&node->ss);
}

static void
explain_scan(CustomScanState *node, List *ancestors, ExplainState *es)
{
	ReadScanState *state = (ReadScanState *) node;
	ReadRequest request = {0};
	ReadCounts	counts = state->counts;
	CustomScan *scan = (CustomScan *) node->ss.ps.plan;
	FuncExpr   *call = linitial_node(FuncExpr, scan->custom_exprs);

	/* which index it is depends on which filters are given */
	request.kind = state->kind < READ_POSITIONS ? state->kind : READ_STREAM;
	if (state->kind == READ_CATEGORY)
		request.by_category = true;
	else if (state->kind == READ_ALL || state->kind == READ_SINCE)
		for (int i = 2; i <= 3; i++)
		{
			Node	   *arg = list_nth(call->args, i);

			if (!IsA(arg, Const) || !((Const *) arg)->constisnull)
				request.by_category = true;
		}
	ExplainPropertyText("Function", read_functions[state->kind].name, es);
	ExplainPropertyText("Segment Index", read_index_columns(&request), es);
	if (!es->analyze)
		return;
	if (state->rows != NULL)
	{
		ReadCounts	open = row_counts(state->kind, state->rows);

		counts.segments += open.segments;
		counts.ranges += open.ranges;
		counts.filtered += open.filtered;
		counts.mark = open.mark;
	}
	ExplainPropertyInteger("Segments Read", NULL, counts.segments, es);
	ExplainPropertyInteger("Index Ranges", NULL, counts.ranges, es);
	if (counts.filtered > 0)
		ExplainPropertyInteger("Events Filtered", NULL, counts.filtered, es);
	if (counts.mark >= 0)
		ExplainPropertyInteger("Settled Mark", NULL, counts.mark, es);
}

void
scan_init(void)
{
	RegisterCustomScanMethods(&scan_methods);
	previous_hook = set_rel_pathlist_hook;
	set_rel_pathlist_hook = add_scan_path;
}
