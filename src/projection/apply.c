/*
 * apply.c
 *		A batch of events, and the handler that it is given to.
 *
 * A handler runs as the role that created the projection, with the search_path
 * that this had then, and with the restrictions of SECURITY_RESTRICTED_OPERATION,
 * whoever refreshes or appends.  What it SETs is undone.
 *
 * What is prepared of a handler (a plan, a function's look-up, an expression) is
 * kept in the backend by the projection's id, for one revision of its row, and
 * until any function, or a table that the plan is about, is altered or dropped:
 * that it cannot be prepared any more must not be put down to an event.
 *
 * - set: the events are put into a tuplestore, which the statements see as the
 *	 relation new_events (an ephemeral named relation, as the transition tables
 *	 of triggers); only the columns that they mention are filled.  A statement
 *	 that reads them once draws them from the log as it goes (batch_scan.c).
 * - event: the function is called for each.
 * - fold: a state in memory for each key of the batch, begun with what is stored;
 *	 all are written at its end by one statement.
 * - materialized view: refreshed, if there was any event.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation_d.h"
#include "catalog/pg_index.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type_d.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_func.h"
#include "parser/parsetree.h"
#include "parser/parser.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/queryenvironment.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"
#include "utils/varlena.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/plans.h"
#include "common/rows.h"
#include "projection/batch_scan.h"
#include "projection/fold.h"
#include "projection/projection.h"
#include "subscription/subscription.h"

/* looks at the memory that is used, in events */
#define LOOK_EVERY	256

/* where time counts, a batch of a set is to take no longer, in seconds, going by the one before */
#define BATCH_TIME	0.1
#define FIRST_BATCH	1000
#define LEAST_BATCH	100

/* keys that an append locks one by one; beyond that it locks all of them */
#define MAX_LOCKED_KEYS	32

/* what a handler needs, prepared */
typedef struct Handler
{
	int32		id;				/* of the projection; key of the hash table */
	int64		revision;
	uint64		generation;
	uint64		functions;		/* changes of functions, so far */
	Oid			owner;
	MemoryContext context;		/* NULL: nothing is prepared */
	SPIPlanPtr	plan;			/* set: the statements */
	bool		columns[RE_NATTS];	/* set: those that they mention */
	bool		read_once;		/* set: batch_is_read_once() */
	double		pace;			/* set: events a second, of the last batch; 0: not known */
	FmgrInfo	function;		/* event */
	Fold	   *fold;
	Expr	   *key;			/* fold: of new_events; NULL: the stream */
} Handler;

/* a handler that is running, and the event that it has */
typedef struct Running
{
	struct Running *outer;
	const Projection *projection;
	const Datum *values;		/* NULL: a batch */
} Running;

/* and what an error in it says */
typedef struct Run
{
	Running		running;
	ErrorContextCallback callback;
	HandlerRights rights;
} Run;

static HTAB *handlers = NULL;
static uint64 function_messages = 0;
static Running *running = NULL;
static ExecutorCheckPerms_hook_type previous_check = NULL;

static Statement read_state = {
	"SELECT s.state FROM event_store.projection_state AS s"
	" WHERE s.projection_id = $1 AND s.key = $2",
	2, {INT4OID, TEXTOID}
};

/* ----------------------------------------------------------------
 * Rights, and what is running
 * ----------------------------------------------------------------
 */

/*
 * The role that a handler runs as.  The row that names it belongs to the owner of the
 * store, who can write what he likes: so it must be one whose privileges he has
 * anyhow.  And a role that has got the name later is another one.
 */
static Oid
handler_role(const Projection *projection)
{
	Oid			role = get_role_oid(projection->owner, true);

	if (!OidIsValid(role) ||
		(projection->cluster_id == GetSystemIdentifier() && projection->owner_id != role))
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_FAILED),
				 errmsg("the owner of projection \"%s\", role \"%s\", does not exist any more",
						projection->name, projection->owner),
				 errhint("Drop the projection, and create it anew.")));
	if (!has_privs_of_role(catalog_owner(catalog_store()), role))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("projection \"%s\" cannot run as role \"%s\"",
						projection->name, projection->owner),
				 errdetail("The owner of the store does not have the privileges of that role.")));
	return role;
}

void
apply_begin(const Projection *projection, HandlerRights *saved)
{
	Oid			role = handler_role(projection);

	GetUserIdAndSecContext(&saved->user, &saved->context);
	SetUserIdAndSecContext(role, saved->context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	saved->guc_level = NewGUCNestLevel();
	/* what a handler computes shall not depend on who refreshes or appends */
	plans_set("search_path", projection->search_path);
	plans_settings(projection->time_zone);
	catalog_require_read(catalog_store());
}

void
apply_end(HandlerRights *saved)
{
	AtEOXact_GUC(false, saved->guc_level);
	SetUserIdAndSecContext(saved->user, saved->context);
}

static bool
is_among(const Running *r, int32 id)
{
	for (; r != NULL; r = r->outer)
		if (r->projection->id == id)
			return true;
	return false;
}

/* Is the handler of a projection running, here? */
bool
apply_is_running(int32 id)
{
	return is_among(running, id);
}

/* Is the handler that is running one of a rebuild? */
bool
apply_is_replaying(void)
{
	return running != NULL && running->projection->rebuilds != 0;
}

static void
error_context(void *arg)
{
	Running    *r = arg;

	if (r->values == NULL)
		errcontext("projection \"%s\"", r->projection->name);
	else
		errcontext("projection \"%s\", event at position %lld, stream \"%s\", version %d",
				   r->projection->name, (long long) DatumGetInt64(r->values[RE_POSITION]),
				   TextDatumGetCString(r->values[RE_STREAM]),
				   DatumGetInt32(r->values[RE_VERSION]));
}

/* From here to end_run() what happens is the handler's doing, with its rights. */
static void
begin_run(Run *run, const Projection *projection)
{
	check_stack_depth();
	run->running.outer = running;
	run->running.projection = projection;
	run->running.values = NULL;
	run->callback.callback = error_context;
	run->callback.arg = &run->running;
	run->callback.previous = error_context_stack;
	error_context_stack = &run->callback;
	apply_begin(projection, &run->rights);
	running = &run->running;
}

/*
 * Its end, after an error too.  The rights are restored then by the end of the
 * (sub)transaction, and the context of errors by who catches it.
 */
static void
end_run(Run *run)
{
	running = run->running.outer;
}

/* And after that if there was none; behind PG_END_TRY(), which sets the context itself. */
static void
leave_run(Run *run)
{
	apply_end(&run->rights);
	error_context_stack = run->callback.previous;
}

/* ----------------------------------------------------------------
 * Handlers
 * ----------------------------------------------------------------
 */

static TupleDesc
event_desc(void)
{
	return lookup_rowtype_tupdesc_copy(catalog_store()->recorded_event, -1);
}

static EphemeralNamedRelation
new_events(TupleDesc desc, double count, Tuplestorestate *events)
{
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));

	relation->md.name = NEW_EVENTS;
	relation->md.reliddesc = InvalidOid;
	relation->md.tupdesc = desc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = count;
	relation->reldata = events;
	return relation;
}

/* which columns of new_events queries mention */
typedef struct ColumnsContext
{
	List	   *queries;		/* the innermost first */
	bool	   *columns;
	bool		row;			/* the row as a value, too */
} ColumnsContext;

static bool
find_columns(Node *node, void *arg)
{
	ColumnsContext *context = arg;

	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		Query	   *query = (Query *) node;

		/* whatever it may look at */
		if (query->commandType == CMD_UTILITY)
			memset(context->columns, true, sizeof(bool) * RE_NATTS);
		context->queries = lcons(query, context->queries);
		(void) query_tree_walker(query, find_columns, context, 0);
		context->queries = list_delete_first(context->queries);
		return false;
	}
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;
		Query	   *query;
		RangeTblEntry *entry;

		if ((int) var->varlevelsup >= list_length(context->queries))
			return false;
		query = list_nth(context->queries, var->varlevelsup);
		if (var->varno < 1 || var->varno > list_length(query->rtable))
			return false;
		entry = rt_fetch(var->varno, query->rtable);
		if (entry->rtekind != RTE_NAMEDTUPLESTORE)
			return false;
		if (var->varattno >= 1 && var->varattno <= RE_NATTS)
			context->columns[var->varattno - 1] = true;
		else
		{
			memset(context->columns, true, sizeof(bool) * RE_NATTS);
			context->row = true;
		}
		return false;
	}
	return expression_tree_walker(node, find_columns, context);
}

static void
prepare_set(const Projection *projection, Handler *handler, MemoryContext context)
{
	MemoryContext saved = MemoryContextSwitchTo(context);
	TupleDesc	desc = event_desc();
	ColumnsContext columns = {NIL, handler->columns, false};
	SPIPlanPtr	plan;
	ListCell   *cell;

	MemoryContextSwitchTo(saved);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_register_relation(new_events(desc, projection->batch_events, NULL)) != SPI_OK_REL_REGISTER)
		elog(ERROR, "could not register " NEW_EVENTS);
	plan = SPI_prepare(projection->handler, 0, NULL);
	if (plan == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("the handler of projection \"%s\" cannot be prepared: %s",
						projection->name, SPI_result_code_string(SPI_result))));
	if (SPI_plan_get_plan_sources(plan) == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("the handler of projection \"%s\" has no statement", projection->name)));
	foreach(cell, SPI_plan_get_plan_sources(plan))
	{
		CachedPlanSource *source = lfirst(cell);
		ListCell   *query;
		ListCell   *relation;

		foreach(query, source->query_list)
		{
			if (lfirst_node(Query, query)->commandType == CMD_UTILITY)
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("the handler of a projection cannot run %s",
								GetCommandTagName(CreateCommandTag(lfirst_node(Query, query)->utilityStmt))),
						 errhint("Its statements are SELECT, INSERT, UPDATE, DELETE and MERGE.")));
			(void) find_columns(lfirst(query), &columns);
		}
		/* of the session that happens to refresh, or to append */
		foreach(relation, source->relationOids)
			if (get_rel_persistence(lfirst_oid(relation)) == RELPERSISTENCE_TEMP)
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("the handler of projection \"%s\" cannot use temporary table \"%s\"",
								projection->name, get_rel_name(lfirst_oid(relation)))));
	}
	if (list_length(SPI_plan_get_plan_sources(plan)) == 1)
	{
		CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));

		handler->read_once = !columns.row && list_length(source->query_list) == 1 &&
			batch_is_read_once(linitial_node(Query, source->query_list));
	}
	SPI_keepplan(plan);
	handler->plan = plan;
	SPI_finish();
}

/* The function f(recorded_event) of a name. */
static Oid
find_function(const Projection *projection)
{
	Oid			types[1] = {catalog_store()->recorded_event};
	List	   *names;
	Oid			function;
	HeapTuple	tuple;
	Form_pg_proc form;
	bool		fits;
	AclResult	acl;

	names = compat_name_list(projection->handler);
	function = LookupFuncName(names, 1, types, true);
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s(event_store.recorded_event) does not exist", projection->handler),
				 errhint("The handler of a projection of kind event is the name of a function that takes one event.")));
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	fits = form->prokind == PROKIND_FUNCTION && !form->proretset &&
		form->proargtypes.values[0] == types[0];
	ReleaseSysCache(tuple);
	if (!fits)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s cannot handle events", projection->handler),
				 errhint("The handler must be a function of one event_store.recorded_event that returns no set.")));
	acl = compat_function_aclcheck(function, GetUserId());
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FUNCTION, projection->handler);
	return function;
}

/*
 * The key of a fold: an expression over the columns of an event, as it would
 * stand in SELECT … FROM new_events.  It is evaluated outside of a query, so it
 * can have nothing that wants one.
 */
static Expr *
prepare_key(const Projection *projection, MemoryContext context)
{
	char	   *sql = psprintf("SELECT (%s\n)::pg_catalog.text FROM " NEW_EVENTS, projection->key);
	QueryEnvironment *environment = create_queryEnv();
	MemoryContext saved;
	List	   *raw;
	List	   *queries;
	Query	   *query;
	Expr	   *key;

	register_ENR(environment, new_events(event_desc(), 1, NULL));
	raw = raw_parser(sql, RAW_PARSE_DEFAULT);
	if (list_length(raw) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("key of projection \"%s\" is not one expression", projection->name)));
	queries = pg_analyze_and_rewrite_fixedparams(linitial_node(RawStmt, raw), sql, NULL, 0, environment);
	query = linitial_node(Query, queries);
	if (list_length(queries) != 1 || query->commandType != CMD_SELECT ||
		list_length(query->rtable) != 1 || list_length(query->targetList) != 1 ||
		query->jointree->quals != NULL || query->setOperations != NULL ||
		query->groupClause != NIL || query->sortClause != NIL ||
		query->limitCount != NULL || query->limitOffset != NULL || query->rowMarks != NIL ||
		query->hasAggs || query->hasSubLinks || query->hasWindowFuncs || query->hasTargetSRFs)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("key of projection \"%s\" is not an expression over one event", projection->name),
				 errhint("Subqueries, aggregates, window functions and sets are not possible.")));
	if (contain_volatile_functions((Node *) query->targetList))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("key of projection \"%s\" has a volatile function", projection->name)));
	saved = MemoryContextSwitchTo(context);
	key = expression_planner(copyObject(linitial_node(TargetEntry, query->targetList)->expr));
	MemoryContextSwitchTo(saved);
	return key;
}

static void
check_matview(const Projection *projection)
{
	Oid			relid;
	RangeVar   *name;

	name = makeRangeVarFromNameList(compat_name_list(projection->handler));
	relid = RangeVarGetRelid(name, NoLock, false);
	if (get_rel_relkind(relid) != RELKIND_MATVIEW)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("\"%s\" is not a materialized view", projection->handler)));
}

static void
forget_handler(Handler *handler)
{
	if (handler->plan != NULL)
		SPI_freeplan(handler->plan);
	if (handler->context != NULL)
		MemoryContextDelete(handler->context);
	handler->plan = NULL;
	handler->fold = NULL;
	handler->key = NULL;
	handler->context = NULL;
}

/* The handler of a projection, prepared; as its owner. */
static Handler *
get_handler(const Projection *projection)
{
	uint64		generation = catalog_store()->generation;
	uint64		functions = function_messages;
	Handler    *handler;
	MemoryContext context;
	bool		for_call;
	bool		found;

	if (handlers == NULL)
	{
		HASHCTL		control;

		control.keysize = sizeof(int32);
		control.entrysize = sizeof(Handler);
		handlers = hash_create("event_store handlers", 16, &control, HASH_ELEM | HASH_BLOBS);
	}
	handler = hash_search(handlers, &projection->id, HASH_ENTER, &found);
	if (!found)
	{
		handler->plan = NULL;
		handler->context = NULL;
		handler->pace = 0;
	}
	if (found && handler->context != NULL && handler->revision == projection->revision &&
		handler->generation == generation && handler->functions == functions &&
		handler->owner == GetUserId() &&
		(handler->plan == NULL || SPI_plan_is_valid(handler->plan)))
	{
		/* a call that failed does not go on */
		if (handler->fold != NULL && !is_among(running->outer, projection->id))
			fold_ready(handler->fold);
		return handler;
	}
	for_call = running != NULL && is_among(running->outer, projection->id);
	if (for_call)
	{
		/* it is in use further out, as it was: prepared for this call only */
		handler = palloc0(sizeof(Handler));
		handler->id = projection->id;
	}
	else
		forget_handler(handler);
	/* it goes with the current context until it is complete */
	handler->fold = NULL;
	handler->key = NULL;
	handler->revision = -1;
	context = AllocSetContextCreate(CurrentMemoryContext, "event_store handler",
									ALLOCSET_SMALL_SIZES);
	memset(handler->columns, false, sizeof(handler->columns));
	handler->read_once = false;
	switch (projection->kind)
	{
		case PROJECTION_SET:
			prepare_set(projection, handler, context);
			break;
		case PROJECTION_EVENT:
			fmgr_info_cxt(find_function(projection), &handler->function, context);
			break;
		case PROJECTION_FOLD:
			{
				MemoryContext saved = MemoryContextSwitchTo(context);

				handler->fold = fold_open(cstring_to_text(projection->handler), context);
				MemoryContextSwitchTo(saved);
				if (projection->key != NULL)
					handler->key = prepare_key(projection, context);
				break;
			}
		case PROJECTION_MATVIEW:
			break;
	}
	if (!for_call)
		MemoryContextSetParent(context, TopMemoryContext);
	handler->context = context;
	handler->generation = generation;
	handler->functions = functions;
	handler->owner = GetUserId();
	handler->revision = projection->revision;
	return handler;
}

/* A projection is dropped. */
void
apply_forget(int32 id)
{
	Handler    *handler = handlers == NULL ? NULL : hash_search(handlers, &id, HASH_FIND, NULL);

	if (handler == NULL)
		return;
	forget_handler(handler);
	(void) hash_search(handlers, &id, HASH_REMOVE, NULL);
}

/* Is the handler of a projection one that can be run? */
void
apply_check(const Projection *projection)
{
	HandlerRights saved;
	Running		run = {running, projection, NULL};
	ErrorContextCallback callback;

	callback.callback = error_context;
	callback.arg = &run;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	apply_begin(projection, &saved);
	(void) get_handler(projection);
	if (projection->kind == PROJECTION_MATVIEW)
		check_matview(projection);
	apply_end(&saved);
	error_context_stack = callback.previous;
}

/* ----------------------------------------------------------------
 * Set
 * ----------------------------------------------------------------
 */

static void
apply_set(const Projection *projection, Handler *handler, EventSource *source,
		  int64 max_count, Applied *applied)
{
	TupleDesc	desc = event_desc();
	SPIExecuteOptions options = {0};
	Batch		batch = {.source = source, .columns = handler->columns,
	.max_size = projection->batch_size, .applied = applied};
	Tuplestorestate *events = NULL;
	TimestampTz start = GetCurrentTimestamp();
	int			result;

	/* its statements cannot be left in the middle */
	if (applied->until != 0)
		max_count = Min(max_count, handler->pace == 0 ? FIRST_BATCH :
						(int64) Max(handler->pace * BATCH_TIME, LEAST_BATCH));
	batch.max_count = max_count;
	if (source->want != NULL)
	{
		uint32		columns = UINT32_C(1) << RE_POSITION;

		for (int i = 0; i < RE_NATTS; i++)
			if (handler->columns[i])
				columns |= UINT32_C(1) << i;
		source->want(source, columns);
	}
	if (!handler->read_once)
	{
		/* a batch stays in memory, which its size bounds */
		Datum		values[RE_NATTS];
		bool		nulls[RE_NATTS];

		events = tuplestore_begin_heap(false, false,
									   Max(work_mem, projection->batch_size / 1024));
		while (batch_next(&batch, values, nulls))
			tuplestore_putvalues(events, desc, values, nulls);
	}
	else
		(void) batch_begin(&batch);
	if (applied->count > 0)
	{
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect failed");
		if (SPI_register_relation(new_events(desc, handler->read_once ? projection->batch_events :
											 applied->count, events)) != SPI_OK_REL_REGISTER)
			elog(ERROR, "could not register " NEW_EVENTS);
		options.dest = CreateDestReceiver(DestNone);
		result = batch_execute(handler->read_once ? &batch : NULL, handler->plan, &options);
		if (result < 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("the handler of projection \"%s\" cannot be executed: %s",
							projection->name, SPI_result_code_string(result))));
		SPI_finish();
		handler->pace = applied->count * (double) USECS_PER_SEC /
			Max(GetCurrentTimestamp() - start, 1);
	}
	if (events != NULL)
		tuplestore_end(events);
	else
		batch_finish(&batch);
}

/* ----------------------------------------------------------------
 * Event
 * ----------------------------------------------------------------
 */

static bool
time_is_up(const Applied *applied)
{
	return applied->until != 0 && applied->count > 0 && GetCurrentTimestamp() >= applied->until;
}

static void
apply_event(const Projection *projection, Handler *handler, EventSource *source,
			int64 max_count, Applied *applied)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "event_store event",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext saved = CurrentMemoryContext;
	ExpandedRecordHeader *row = scan_make_row(saved);
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];

	while (applied->count < max_count)
	{
		LOCAL_FCINFO(call, 1);

		if (time_is_up(applied))
			break;
		running->values = NULL;
		if (!source->next(source, values, nulls))
		{
			applied->ended = true;
			break;
		}
		running->values = values;
		applied->position = DatumGetInt64(values[RE_POSITION]);
		MemoryContextSwitchTo(context);
		InitFunctionCallInfoData(*call, &handler->function, 1, InvalidOid, NULL, NULL);
		call->args[0].value = scan_row_value(row, values, nulls);
		call->args[0].isnull = false;
		(void) FunctionCallInvoke(call);
		MemoryContextSwitchTo(saved);
		MemoryContextReset(context);
		applied->count++;
		CHECK_FOR_INTERRUPTS();
	}
	running->values = NULL;
	MemoryContextDelete(context);
	MemoryContextDelete(row->hdr.eoh_context);
}

/* ----------------------------------------------------------------
 * Fold
 * ----------------------------------------------------------------
 */

/* a key, and its state */
typedef struct KeyState
{
	text	   *key;
	uint32		hash;
	char		status;
	FoldState  *state;
	int32		version;		/* of the last event */
	int64		position;
} KeyState;

static bool
same_key(text *a, text *b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

#define SH_PREFIX keystates
#define SH_ELEMENT_TYPE KeyState
#define SH_KEY_TYPE text *
#define SH_KEY key
#define SH_HASH_KEY(table, k) \
	hash_bytes((const unsigned char *) VARDATA_ANY(k), VARSIZE_ANY_EXHDR(k))
#define SH_EQUAL(table, a, b) same_key(a, b)
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) (entry)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* evaluates the key of events */
typedef struct KeyReader
{
	EState	   *estate;			/* NULL: the key is the stream */
	ExprContext *context;
	ExprState  *expression;
	TupleTableSlot *slot;
} KeyReader;

static void
open_key(KeyReader *reader, Handler *handler)
{
	memset(reader, 0, sizeof(KeyReader));
	if (handler->key == NULL)
		return;
	reader->estate = CreateExecutorState();
	reader->context = GetPerTupleExprContext(reader->estate);
	reader->expression = ExecPrepareExpr(handler->key, reader->estate);
	reader->slot = MakeSingleTupleTableSlot(event_desc(), &TTSOpsVirtual);
	reader->context->ecxt_scantuple = reader->slot;
}

/* The key of an event, good until the next call; NULL: it has none. */
static text *
read_key(KeyReader *reader, Datum *values, bool *nulls)
{
	Datum		value;
	bool		isnull;

	if (reader->estate == NULL)
		return DatumGetTextPP(values[RE_STREAM]);
	ResetExprContext(reader->context);
	ExecClearTuple(reader->slot);
	memcpy(reader->slot->tts_values, values, sizeof(Datum) * RE_NATTS);
	memcpy(reader->slot->tts_isnull, nulls, sizeof(bool) * RE_NATTS);
	ExecStoreVirtualTuple(reader->slot);
	value = ExecEvalExprSwitchContext(reader->expression, reader->context, &isnull);
	return isnull ? NULL : DatumGetTextPP(value);
}

static void
close_key(KeyReader *reader)
{
	if (reader->estate == NULL)
		return;
	ExecDropSingleTupleTableSlot(reader->slot);
	FreeExecutorState(reader->estate);
}

/* reads the states that are stored */
typedef struct StateReader
{
	Probe		probe;
	int32		id;
	bool		opened;
	Oid			table;
	Oid			index;
	Snapshot	snapshot;
} StateReader;

static Datum
stored_state(StateReader *reader, text *key, bool *isnull)
{
	ScanKeyData keys[2];
	Datum		value = (Datum) 0;

	key_int32(&keys[0], 1, BTEqualStrategyNumber, reader->id);
	key_text(&keys[1], 2, BTEqualStrategyNumber, PointerGetDatum(key));
	if (reader->opened)
		probe_again(&reader->probe, keys, 2);
	else
		probe_open(&reader->probe, reader->table, &reader->index, AccessShareLock,
				   reader->snapshot, keys, 2);
	reader->opened = true;
	*isnull = true;
	if (probe_next(&reader->probe, ForwardScanDirection))
		value = probe_value(&reader->probe, 3, isnull);
	return value;
}

static int
compare_keys(const void *a, const void *b)
{
	const KeyState *x = *(KeyState *const *) a;
	const KeyState *y = *(KeyState *const *) b;
	int			xlen = VARSIZE_ANY_EXHDR(x->key);
	int			ylen = VARSIZE_ANY_EXHDR(y->key);
	int			order = memcmp(VARDATA_ANY(x->key), VARDATA_ANY(y->key), Min(xlen, ylen));

	return order != 0 ? order : xlen - ylen;
}

/* Writes all states of a batch, in order of their keys, as the owner of the store. */
static void
write_states(const Projection *projection, keystates_hash *states)
{
	static const char *const sql =
		"INSERT INTO event_store.%s AS s (projection_id, key, state, version, position)"
		" SELECT %d, n.key, n.state, n.version, n.position"
		" FROM unnest($1, $2, $3, $4) AS n (key, state, version, position)"
		" ON CONFLICT (projection_id, key) DO UPDATE SET state = excluded.state,"
		" version = excluded.version, position = excluded.position";
	Oid			types[4] = {TEXTARRAYOID, JSONBARRAYOID, INT4ARRAYOID, INT8ARRAYOID};
	int			count = states->members;
	KeyState  **sorted = palloc_extended(sizeof(KeyState *) * Max(count, 1), MCXT_ALLOC_HUGE);
	Datum	   *columns[4];
	bool	   *no_state = palloc(Max(count, 1));
	Datum		arrays[4];
	keystates_iterator iterator;
	KeyState   *entry;
	OwnerSwitch saved;
	int			lower = 1;
	int			n = 0;

	for (int i = 0; i < 4; i++)
		columns[i] = palloc_extended(sizeof(Datum) * Max(count, 1), MCXT_ALLOC_HUGE);
	keystates_start_iterate(states, &iterator);
	while ((entry = keystates_iterate(states, &iterator)) != NULL)
		if (entry->state != NULL)
			sorted[n++] = entry;
	count = n;
	if (count == 0)
		return;
	/* neighbours in the index one after the other; and one order for all */
	qsort(sorted, count, sizeof(KeyState *), compare_keys);
	for (int i = 0; i < count; i++)
	{
		columns[0][i] = PointerGetDatum(sorted[i]->key);
		columns[1][i] = fold_result(sorted[i]->state, &no_state[i]);
		columns[2][i] = Int32GetDatum(sorted[i]->version);
		columns[3][i] = Int64GetDatum(sorted[i]->position);
	}
	arrays[0] = PointerGetDatum(construct_array(columns[0], count, TEXTOID, -1, false, TYPALIGN_INT));
	arrays[1] = PointerGetDatum(construct_md_array(columns[1], no_state, 1, &count, &lower,
												   JSONBOID, -1, false, TYPALIGN_INT));
	arrays[2] = PointerGetDatum(construct_array(columns[2], count, INT4OID, 4, true, TYPALIGN_INT));
	arrays[3] = PointerGetDatum(construct_array(columns[3], count, INT8OID, 8, FLOAT8PASSBYVAL,
												TYPALIGN_DOUBLE));
	owner_begin(&saved);
	if (SPI_execute_with_args(psprintf(sql, projection_state_table(projection->id), projection->id),
							  4, types, arrays, NULL, false, 0) < 0)
		elog(ERROR, "could not write the states of a projection");
	owner_end(&saved);
}

/*
 * Events of an append, applied inline: their keys are locked first, all of them,
 * in one order; then what is stored is what holds.
 */
static void
lock_keys(const Projection *projection, KeyReader *reader, EventSource *source,
		  MemoryContext context)
{
	keystates_hash *keys = keystates_create(context, 16, NULL);
	keystates_iterator iterator;
	KeyState  **sorted;
	KeyState   *entry;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	int			n = 0;

	while (source->next(source, values, nulls))
	{
		text	   *key = read_key(reader, values, nulls);
		bool		found;

		if (key == NULL)
			continue;
		entry = keystates_insert(keys, key, &found);
		if (!found)
		{
			MemoryContext saved = MemoryContextSwitchTo(context);

			entry->key = DatumGetTextPCopy(PointerGetDatum(key));
			MemoryContextSwitchTo(saved);
		}
	}
	source->rewind(source);
	sorted = palloc(sizeof(KeyState *) * Max(keys->members, 1));
	keystates_start_iterate(keys, &iterator);
	while ((entry = keystates_iterate(keys, &iterator)) != NULL)
		sorted[n++] = entry;
	qsort(sorted, n, sizeof(KeyState *), compare_keys);
	projection_lock_keys(projection->id, n > MAX_LOCKED_KEYS);
	for (int i = 0; i < n && n <= MAX_LOCKED_KEYS; i++)
		projection_lock_key(projection->id, VARDATA_ANY(sorted[i]->key),
							VARSIZE_ANY_EXHDR(sorted[i]->key));
}

static void
apply_fold(const Projection *projection, Handler *handler, EventSource *source,
		   int64 max_count, Applied *applied)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "event_store states",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext saved = CurrentMemoryContext;
	keystates_hash *states = keystates_create(context, 1024, NULL);
	KeyReader	keys;
	StateReader stored = {0};
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];

	stored.id = projection->id;
	stored.table = get_relname_relid(projection_state_table(projection->id),
									 catalog_store()->schema);
	stored.index = get_relname_relid(psprintf("%s_pkey", projection_state_table(projection->id)),
									 catalog_store()->schema);
	if (!OidIsValid(stored.table) || !OidIsValid(stored.index))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("relation \"event_store.%s\" is missing", projection_state_table(projection->id)),
				 errhint("Drop the projection, and create it anew.")));
	open_key(&keys, handler);
	if (source->want != NULL && handler->key == NULL)
	{
		Bitmapset  *looked_at = fold_columns(handler->fold);
		uint32		columns = UINT32_C(1) << RE_POSITION | UINT32_C(1) << RE_STREAM |
			UINT32_C(1) << RE_VERSION;
		int			column = -1;

		while ((column = bms_next_member(looked_at, column)) >= 0)
			columns |= UINT32_C(1) << column;
		if (looked_at != NULL)
			source->want(source, columns);
	}
	if (source->rewind != NULL && handler->key != NULL)
		lock_keys(projection, &keys, source, context);
	PushActiveSnapshot(GetTransactionSnapshot());
	stored.snapshot = GetActiveSnapshot();
	while (applied->count < max_count)
	{
		text	   *key;
		KeyState   *entry;
		bool		found;

		if (applied->count % LOOK_EVERY == 0 &&
			MemoryContextMemAllocated(context, true) > projection->batch_size &&
			applied->count > 0)
			break;
		if (time_is_up(applied))
			break;
		running->values = NULL;
		if (!source->next(source, values, nulls))
		{
			applied->ended = true;
			break;
		}
		running->values = values;
		applied->position = DatumGetInt64(values[RE_POSITION]);
		key = read_key(&keys, values, nulls);
		if (key == NULL)
		{
			applied->count++;
			continue;
		}
		entry = keystates_insert(states, key, &found);
		if (!found)
		{
			Datum		state;
			bool		isnull;

			MemoryContextSwitchTo(context);
			entry->key = DatumGetTextPCopy(PointerGetDatum(key));
			MemoryContextSwitchTo(saved);
			entry->state = NULL;
			state = stored_state(&stored, entry->key, &isnull);
			entry->state = fold_begin(handler->fold, state, isnull, context);
		}
		fold_step(entry->state, values, nulls);
		entry->version = DatumGetInt32(values[RE_VERSION]);
		entry->position = DatumGetInt64(values[RE_POSITION]);
		applied->count++;
		CHECK_FOR_INTERRUPTS();
	}
	running->values = NULL;
	if (stored.opened)
		probe_close(&stored.probe, true);
	PopActiveSnapshot();
	write_states(projection, states);
	close_key(&keys);
	MemoryContextDelete(context);
}

/* The state of a key, as stored. */
Datum
apply_read_state(const Projection *projection, text *key, bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[2] = {Int32GetDatum(projection->id), PointerGetDatum(key)};
	Datum		state = (Datum) 0;
	OwnerSwitch saved;

	owner_begin(&saved);
	*isnull = true;
	if (plans_execute(&read_state, values, NULL) > 0)
	{
		state = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, isnull);
		if (!*isnull)
		{
			MemoryContext spi = MemoryContextSwitchTo(context);

			state = PointerGetDatum(DatumGetJsonbPCopy(state));
			MemoryContextSwitchTo(spi);
		}
	}
	owner_end(&saved);
	return state;
}

/* ----------------------------------------------------------------
 * Materialized view
 * ----------------------------------------------------------------
 */

/* Can it be refreshed while others read it?  As REFRESH … CONCURRENTLY demands. */
static bool
can_be_concurrent(Oid relid)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	bool		can = false;

	if (RelationIsPopulated(rel))
	{
		List	   *indexes = RelationGetIndexList(rel);
		ListCell   *cell;

		foreach(cell, indexes)
		{
			HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
			Form_pg_index index;
			bool		good;

			if (!HeapTupleIsValid(tuple))
				continue;
			index = (Form_pg_index) GETSTRUCT(tuple);
			good = index->indisunique && index->indimmediate && index->indisvalid &&
				heap_attisnull(tuple, Anum_pg_index_indpred, NULL);
			for (int i = 0; i < index->indnatts && good; i++)
				good = index->indkey.values[i] > 0;
			ReleaseSysCache(tuple);
			if (good)
				can = true;
		}
	}
	relation_close(rel, AccessShareLock);
	return can;
}

static void
apply_matview(const Projection *projection, EventSource *source, const HandlerRights *caller,
			  Applied *applied)
{
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	RangeVar   *name;
	Oid			relid;
	Oid			user;
	int			context;
	bool		concurrently;
	int			result;

	/* it shows all that is there, however many */
	while (source->next(source, values, nulls))
	{
		applied->position = DatumGetInt64(values[RE_POSITION]);
		applied->count++;
		CHECK_FOR_INTERRUPTS();
	}
	applied->ended = true;
	if (applied->count == 0)
		return;
	check_matview(projection);
	name = makeRangeVarFromNameList(compat_name_list(projection->handler));
	relid = RangeVarGetRelid(name, NoLock, false);

	/*
	 * REFRESH restricts the view's query itself.  CONCURRENTLY makes a temporary
	 * table besides, for which the command must not be restricted as a whole.
	 */
	concurrently = (caller->context & SECURITY_RESTRICTED_OPERATION) == 0 && can_be_concurrent(relid);
	GetUserIdAndSecContext(&user, &context);
	if (concurrently)
		SetUserIdAndSecContext(user, caller->context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	result = SPI_execute(psprintf("REFRESH MATERIALIZED VIEW %s%s",
								  concurrently ? "CONCURRENTLY " : "",
								  quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
															 get_rel_name(relid))), false, 0);
	if (result < 0)
		elog(ERROR, "could not refresh a materialized view: %s", SPI_result_code_string(result));
	SPI_finish();
	SetUserIdAndSecContext(user, context);
}

/* ----------------------------------------------------------------
 * All kinds
 * ----------------------------------------------------------------
 */

/*
 * Applies some events, at most so many, and no more than a batch has room for.
 * Everything is done in the current (sub)transaction, as the owner of the
 * projection; an error passes through.
 */
void
apply_batch(const Projection *projection, EventSource *source, int64 max_count, Applied *applied)
{
	Run			run;

	applied->count = applied->position = 0;
	applied->ended = false;
	begin_run(&run, projection);
	PG_TRY();
	{
		Handler    *handler = get_handler(projection);

		switch (projection->kind)
		{
			case PROJECTION_SET:
				apply_set(projection, handler, source, max_count, applied);
				break;
			case PROJECTION_EVENT:
				apply_event(projection, handler, source, max_count, applied);
				break;
			case PROJECTION_FOLD:
				apply_fold(projection, handler, source, max_count, applied);
				break;
			case PROJECTION_MATVIEW:
				apply_matview(projection, source, &run.rights, applied);
				break;
		}
	}
	PG_FINALLY();
	{
		end_run(&run);
	}
	PG_END_TRY();
	leave_run(&run);
	CommandCounterIncrement();
}

/* The state of a key of a live fold: folded from the events, now. */
Datum
apply_live(const Projection *projection, EventSource *source, text *wanted, bool *isnull)
{
	MemoryContext context = CurrentMemoryContext;
	volatile Datum state = (Datum) 0;
	Run			run;

	begin_run(&run, projection);
	PG_TRY();
	{
		Handler    *handler = get_handler(projection);
		FoldState  *fold = NULL;
		KeyReader	keys;
		Datum		values[RE_NATTS];
		bool		nulls[RE_NATTS];

		open_key(&keys, handler);
		while (source->next(source, values, nulls))
		{
			text	   *key = read_key(&keys, values, nulls);

			run.running.values = values;
			if (key != NULL && same_key(key, wanted))
			{
				if (fold == NULL)
					fold = fold_begin(handler->fold, (Datum) 0, true, context);
				fold_step(fold, values, nulls);
			}
			run.running.values = NULL;
			CHECK_FOR_INTERRUPTS();
		}
		close_key(&keys);
		*isnull = true;
		if (fold != NULL)
			state = fold_result(fold, isnull);
	}
	PG_FINALLY();
	{
		end_run(&run);
	}
	PG_END_TRY();
	leave_run(&run);
	return state;
}

/*
 * The states of all keys of a fold, folded from the events of a source, put into a
 * result: key, state, version and position of the last event.
 */
void
apply_as_of(const Projection *projection, EventSource *source, Tuplestorestate *result,
			TupleDesc desc)
{
	Run			run;

	begin_run(&run, projection);
	PG_TRY();
	{
		MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "event_store states",
													  ALLOCSET_DEFAULT_SIZES);
		Handler    *handler = get_handler(projection);
		keystates_hash *states = keystates_create(context, 1024, NULL);
		keystates_iterator iterator;
		KeyState   *entry;
		KeyReader	keys;
		Datum		values[RE_NATTS];
		bool		nulls[RE_NATTS];

		open_key(&keys, handler);
		for (;;)
		{
			text	   *key;
			bool		found;

			run.running.values = NULL;
			if (!source->next(source, values, nulls))
				break;
			run.running.values = values;
			CHECK_FOR_INTERRUPTS();
			key = read_key(&keys, values, nulls);
			if (key == NULL)
				continue;
			entry = keystates_insert(states, key, &found);
			if (!found)
			{
				MemoryContext caller = MemoryContextSwitchTo(context);

				entry->key = DatumGetTextPCopy(PointerGetDatum(key));
				MemoryContextSwitchTo(caller);
				entry->state = fold_begin(handler->fold, (Datum) 0, true, context);
			}
			fold_step(entry->state, values, nulls);
			entry->version = DatumGetInt32(values[RE_VERSION]);
			entry->position = DatumGetInt64(values[RE_POSITION]);
		}
		close_key(&keys);
		keystates_start_iterate(states, &iterator);
		while ((entry = keystates_iterate(states, &iterator)) != NULL)
		{
			Datum		row[4];
			bool		row_nulls[4] = {false};

			row[0] = PointerGetDatum(entry->key);
			row[1] = fold_result(entry->state, &row_nulls[1]);
			row[2] = Int32GetDatum(entry->version);
			row[3] = Int64GetDatum(entry->position);
			tuplestore_putvalues(result, desc, row, row_nulls);
		}
		MemoryContextDelete(context);
	}
	PG_FINALLY();
	{
		end_run(&run);
	}
	PG_END_TRY();
	leave_run(&run);
}

static void
function_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	function_messages++;
}

/*
 * A handler gets no temporary table: it would be one of the session that happens to
 * refresh, or to append, found because the table that was meant is missing, and
 * with triggers that would run with the rights of the handler's owner.
 */
static bool
refuse_temporary(COMPAT_CHECK_PERMS_PARAMETERS)
{
	Oid			schema;
	Oid			toast;

	if (running != NULL && running->projection->kind != PROJECTION_MATVIEW)
	{
		ListCell   *cell;

		GetTempNamespaceState(&schema, &toast);
		foreach(cell, tables)
		{
			RangeTblEntry *table = lfirst_node(RangeTblEntry, cell);

			if (OidIsValid(schema) && table->rtekind == RTE_RELATION &&
				get_rel_namespace(table->relid) == schema)
				ereport(ERROR,
						(errcode(ERRCODE_WRONG_OBJECT_TYPE),
						 errmsg("the handler of projection \"%s\" cannot use temporary table \"%s\"",
								running->projection->name, get_rel_name(table->relid))));
		}
	}
	return previous_check == NULL || previous_check(COMPAT_CHECK_PERMS_ARGUMENTS);
}

void
apply_init(void)
{
	batch_scan_init();
	previous_check = ExecutorCheckPerms_hook;
	ExecutorCheckPerms_hook = refuse_temporary;
	CacheRegisterSyscacheCallback(PROCOID, function_changed, (Datum) 0);
}
