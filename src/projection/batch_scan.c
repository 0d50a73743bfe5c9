/*
 * batch_scan.c
 *		new_events as rows that are handed on while they are read.
 *
 * A statement sees a batch as the relation new_events.  As a rule that is a
 * tuplestore, since a statement may read it several times.  The plain case, an
 * INSERT … SELECT or SELECT with new_events alone in FROM, reads it once: then a
 * custom scan takes the place of the scan of the tuplestore, and draws the events
 * from where they come from, one by one.  Nothing is copied, and a batch takes no
 * memory, however large it is.
 *
 * Which case it is follows from the statement alone (batch_is_read_once()), so a
 * statement is planned for one of both, each time that it is planned.  What the
 * statement leaves unread (LIMIT) is read by batch_finish(): the batch goes to
 * its bounds.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/extensible.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "parser/parsetree.h"

#include "common/catalog.h"
#include "projection/batch_scan.h"
#include "stream/read.h"

/* the batch of the statement that is planned or executed now */
static Batch *current = NULL;

static set_rel_pathlist_hook_type previous_hook = NULL;

/* ----------------------------------------------------------------
 * The events
 * ----------------------------------------------------------------
 */

static Size
value_size(Datum value, bool isnull)
{
	return isnull ? 0 : VARSIZE_ANY(DatumGetPointer(value));
}

/* The next event of a batch; false: there is none, or a bound is reached. */
bool
batch_next(Batch *batch, Datum *values, bool *nulls)
{
	if (batch->applied->ended || batch->applied->count >= batch->max_count ||
		batch->size >= batch->max_size)
		return false;
	if (!batch->source->next(batch->source, values, nulls))
	{
		batch->applied->ended = true;
		return false;
	}
	batch->applied->position = DatumGetInt64(values[RE_POSITION]);
	for (int i = 0; i < RE_NATTS; i++)
		if (!batch->columns[i])
			nulls[i] = true;
	batch->size += 100 + value_size(values[RE_DATA], nulls[RE_DATA]) +
		value_size(values[RE_METADATA], nulls[RE_METADATA]);
	batch->applied->count++;
	return true;
}

/* Has the batch an event?  It is the first that the statement gets. */
bool
batch_begin(Batch *batch)
{
	batch->has_first = batch_next(batch, batch->first, batch->first_nulls);
	return batch->has_first;
}

/*
 * Runs the plan of statements: of one over a batch that has begun, or (NULL) of
 * some that have a tuplestore.
 */
int
batch_execute(Batch *batch, SPIPlanPtr plan, SPIExecuteOptions *options)
{
	Batch	   *outer = current;
	volatile int result = 0;

	current = batch;
	PG_TRY();
	{
		result = SPI_execute_plan_extended(plan, options);
	}
	PG_FINALLY();
	{
		current = outer;
	}
	PG_END_TRY();
	return result;
}

void
batch_finish(Batch *batch)
{
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];

	while (batch_next(batch, values, nulls))
		CHECK_FOR_INTERRUPTS();
}

/* ----------------------------------------------------------------
 * Planning
 * ----------------------------------------------------------------
 */

static bool
count_relations(Node *node, void *arg)
{
	if (node == NULL)
		return false;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, count_relations, arg, QTW_EXAMINE_RTES_BEFORE);
	if (IsA(node, RangeTblEntry))
	{
		if (((RangeTblEntry *) node)->rtekind == RTE_NAMEDTUPLESTORE)
			(*(int *) arg)++;
		return false;
	}
	return expression_tree_walker(node, count_relations, arg);
}

/*
 * Does a statement read new_events once, from the first to the last event?  No
 * plan scans anew what stands alone in FROM, as that of a query that is itself
 * alone in FROM.  Its columns must be all that is asked for: the row as a value
 * is left to the tuplestore.
 */
bool
batch_is_read_once(Query *query)
{
	int			relations = 0;

	if (query->commandType != CMD_SELECT && query->commandType != CMD_INSERT)
		return false;
	(void) count_relations((Node *) query, &relations);
	if (relations != 1)
		return false;
	for (;;)
	{
		RangeTblEntry *entry;
		Node	   *from;

		if (query->setOperations != NULL || query->hasSubLinks || query->rowMarks != NIL ||
			query->hasModifyingCTE || query->cteList != NIL ||
			list_length(query->jointree->fromlist) != 1)
			return false;
		from = linitial(query->jointree->fromlist);
		if (!IsA(from, RangeTblRef))
			return false;
		entry = rt_fetch(((RangeTblRef *) from)->rtindex, query->rtable);
		if (entry->rtekind == RTE_NAMEDTUPLESTORE)
			return true;
		if (entry->rtekind != RTE_SUBQUERY || entry->lateral)
			return false;
		query = entry->subquery;
	}
}

static Plan *plan_scan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path,
					   List *tlist, List *clauses, List *custom_plans);

static const CustomPathMethods path_methods = {
	.CustomName = "Event Store Batch",
	.PlanCustomPath = plan_scan,
};

static void
add_scan_path(PlannerInfo *root, RelOptInfo *rel, Index rti, RangeTblEntry *rte)
{
	CustomPath *path;

	if (previous_hook != NULL)
		previous_hook(root, rel, rti, rte);

	/* a trigger that runs meanwhile may have a new_events, too: of a table */
	if (current == NULL || rte->rtekind != RTE_NAMEDTUPLESTORE || OidIsValid(rte->relid) ||
		strcmp(rte->enrname, NEW_EVENTS) != 0)
		return;
	path = makeNode(CustomPath);
	path->path.pathtype = T_CustomScan;
	path->path.parent = rel;
	path->path.pathtarget = rel->reltarget;
	path->path.rows = rel->rows;
	path->path.total_cost = rel->baserestrictcost.startup +
		(cpu_tuple_cost + rel->baserestrictcost.per_tuple) * rel->tuples;
	path->flags = CUSTOMPATH_SUPPORT_PROJECTION;
	path->methods = &path_methods;
	rel->pathlist = list_make1(path);
	rel->partial_pathlist = NIL;
}

static Node *create_scan_state(CustomScan *scan);

static const CustomScanMethods scan_methods = {
	.CustomName = "Event Store Batch",
	.CreateCustomScanState = create_scan_state,
};

static Plan *
plan_scan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path,
		  List *tlist, List *clauses, List *custom_plans)
{
	return &scan_make_plan(rel, path, tlist, clauses, &scan_methods)->scan.plan;
}

/* ----------------------------------------------------------------
 * Execution
 * ----------------------------------------------------------------
 */

typedef struct BatchScanState
{
	CustomScanState css;
	Batch	   *batch;
} BatchScanState;

static void begin_scan(CustomScanState *node, EState *estate, int eflags);
static TupleTableSlot *exec_scan(CustomScanState *node);
static void end_scan(CustomScanState *node);
static void rescan_scan(CustomScanState *node);

static const CustomExecMethods exec_methods = {
	.CustomName = "Event Store Batch",
	.BeginCustomScan = begin_scan,
	.ExecCustomScan = exec_scan,
	.EndCustomScan = end_scan,
	.ReScanCustomScan = rescan_scan,
};

static Node *
create_scan_state(CustomScan *scan)
{
	BatchScanState *state = (BatchScanState *) newNode(sizeof(BatchScanState),
													   T_CustomScanState);

	state->css.methods = &exec_methods;
	return (Node *) state;
}

static void
begin_scan(CustomScanState *node, EState *estate, int eflags)
{
	BatchScanState *state = (BatchScanState *) node;

	/* a rule that came meanwhile has made two statements of one */
	if (current == NULL || current->scanned)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("the statement of a handler has changed while it ran")));
	state->batch = current;
	state->batch->scanned = true;
}

static TupleTableSlot *
next_event(ScanState *node)
{
	Batch	   *batch = ((BatchScanState *) node)->batch;
	TupleTableSlot *slot = node->ss_ScanTupleSlot;

	ExecClearTuple(slot);
	if (batch->has_first)
	{
		memcpy(slot->tts_values, batch->first, sizeof(batch->first));
		memcpy(slot->tts_isnull, batch->first_nulls, sizeof(batch->first_nulls));
		batch->has_first = false;
	}
	else if (!batch_next(batch, slot->tts_values, slot->tts_isnull))
		return slot;
	return ExecStoreVirtualTuple(slot);
}

static bool
recheck_event(ScanState *node, TupleTableSlot *slot)
{
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
}

static void
rescan_scan(CustomScanState *node)
{
	elog(ERROR, "a batch of events cannot be read again");
}

void
batch_scan_init(void)
{
	RegisterCustomScanMethods(&scan_methods);
	previous_hook = set_rel_pathlist_hook;
	set_rel_pathlist_hook = add_scan_path;
}
