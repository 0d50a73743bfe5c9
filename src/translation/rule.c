/*
 * rule.c
 *		Rules as they are written, in JSON, and what is made of them: lists of
 *		places, and one query for all expressions of a rule.
 *
 * The query has a column for each expression, and gives a row if the rule's
 * condition holds:
 *
 *	 SELECT c1::text, to_jsonb(c2), … FROM (
 *		SELECT (expression) AS c1, (expression) AS c2, …
 *		FROM (SELECT ($1).*, $2 AS category) AS event
 *		WHERE (condition)) AS computed
 *
 * An expression is parsed by itself first, so that it can be nothing else.
 */
#include "postgres.h"

#include "catalog/pg_type_d.h"
#include "common/string.h"
#include "lib/stringinfo.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "optimizer/optimizer.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"
#include "utils/plancache.h"
#include "utils/uuid.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "stream/stream.h"
#include "translation/translation.h"

#define MAX_RULES	1000

static const struct
{
	const char *name;
	const char *type;			/* that an expression is cast to */
	bool		nullable;
}			field_names[RULE_NFIELDS] = {
	[RULE_TYPE] = {"type", "pg_catalog.text", false},
	[RULE_STREAM] = {"stream", "pg_catalog.text", false},
	[RULE_SOURCE] = {"source", "pg_catalog.text", true},
	[RULE_SCHEMA_VERSION] = {"schema_version", "pg_catalog.int4", false},
	[RULE_CORRELATION_ID] = {"correlation_id", "pg_catalog.text", true},
	[RULE_CAUSATION_ID] = {"causation_id", "pg_catalog.uuid", true}
};

/* the query of a rule, as it grows */
typedef struct RuleQuery
{
	StringInfoData outer;
	StringInfoData inner;
	char	   *condition;
	int			ncolumns;
} RuleQuery;

static void
invalid(const char *what, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("%s in a rule of a translation is not valid", what),
			 errdetail("%s", detail)));
}

static bool
key_is(const JsonbValue *key, const char *name)
{
	return key->val.string.len == strlen(name) &&
		memcmp(key->val.string.val, name, key->val.string.len) == 0;
}

static bool
is_object(const JsonbValue *value)
{
	return value->type == jbvBinary && JsonContainerIsObject(value->val.binary.data);
}

static bool
is_array(const JsonbValue *value)
{
	return value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data);
}

static JsonbIterator *
members(JsonbValue *container)
{
	JsonbIterator *it = JsonbIteratorInit(container->val.binary.data);
	JsonbValue	begin;

	(void) JsonbIteratorNext(&it, &begin, true);
	return it;
}

static text *
string_text(const JsonbValue *value)
{
	return cstring_to_text_with_len(value->val.string.val, value->val.string.len);
}

/* ----------------------------------------------------------------
 * Expressions
 * ----------------------------------------------------------------
 */

/* What the parser finds wrong stands in the expression, not in the caller's statement. */
static void
expression_error(void *arg)
{
	int			position = geterrposition();

	if (position <= 0)
		return;
	errposition(0);
	internalerrposition(position);
	internalerrquery(arg);
}

/* An expression as text, which has been found to be one. */
static char *
expression(const char *what, const JsonbValue *value)
{
	char	   *sql;
	List	   *parsed;
	SelectStmt *select;
	ResTarget  *target;
	ErrorContextCallback callback;

	if (value->type != jbvString)
		invalid(what, "An SQL expression must be a JSON string.");
	sql = pnstrdup(value->val.string.val, value->val.string.len);
	callback.callback = expression_error;
	callback.arg = sql;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	parsed = raw_parser(sql, RAW_PARSE_PLPGSQL_EXPR);
	error_context_stack = callback.previous;
	if (list_length(parsed) != 1 ||
		!IsA(linitial_node(RawStmt, parsed)->stmt, SelectStmt))
		invalid(what, "It is no SQL expression.");
	select = (SelectStmt *) linitial_node(RawStmt, parsed)->stmt;
	if (list_length(select->targetList) != 1 || select->distinctClause != NIL ||
		select->intoClause != NULL || select->fromClause != NIL || select->whereClause != NULL ||
		select->groupClause != NIL || select->havingClause != NULL || select->windowClause != NIL ||
		select->valuesLists != NIL || select->sortClause != NIL || select->limitOffset != NULL ||
		select->limitCount != NULL || select->lockingClause != NIL || select->withClause != NULL ||
		select->op != SETOP_NONE)
		invalid(what, "It is more, or less, than one SQL expression.");
	target = linitial_node(ResTarget, select->targetList);
	if (target->name != NULL || target->indirection != NIL)
		invalid(what, "An SQL expression has no name.");
	return sql;
}

/* A column more in the rule's query; its number, from 1 on. */
static int
add_column(RuleQuery *query, const char *what, const JsonbValue *value, const char *type)
{
	char	   *sql = expression(what, value);
	const char *comma = query->ncolumns++ > 0 ? ", " : "";

	/* a comment at the end of an expression ends with the line */
	appendStringInfo(&query->inner, "%s(%s\n) AS c%d", comma, sql, query->ncolumns);
	if (type != NULL)
		appendStringInfo(&query->outer, "%sCAST(c%d AS %s)", comma, query->ncolumns, type);
	else
		appendStringInfo(&query->outer, "%spg_catalog.to_jsonb(c%d)", comma, query->ncolumns);
	return query->ncolumns;
}

/* ----------------------------------------------------------------
 * Places
 * ----------------------------------------------------------------
 */

/* Names of fields with dots between them. */
static FieldPath *
dotted_path(const char *what, const char *written, int len)
{
	FieldPath	   *path = palloc(sizeof(FieldPath));
	int			begin = 0;

	path->count = 0;
	path->fields = palloc(sizeof(Datum) * (len + 1));
	for (int i = 0; i <= len; i++)
		if (i == len || written[i] == '.')
		{
			if (i == begin)
				invalid(what, "A path consists of names with dots between them.");
			path->fields[path->count++] =
				PointerGetDatum(cstring_to_text_with_len(written + begin, i - begin));
			begin = i + 1;
		}
	return path;
}

/* A path with dots, or an array of names that may be any. */
static FieldPath *
read_path(const char *what, JsonbValue *value)
{
	JsonbIterator *it;
	JsonbValue	name;
	FieldPath	   *path;

	if (value->type == jbvString)
		return dotted_path(what, value->val.string.val, value->val.string.len);
	if (!is_array(value) || JsonContainerSize(value->val.binary.data) == 0)
		invalid(what, "A path is a JSON string, or an array of names.");
	path = palloc(sizeof(FieldPath));
	path->count = 0;
	path->fields = palloc(sizeof(Datum) * JsonContainerSize(value->val.binary.data));
	it = members(value);
	while (JsonbIteratorNext(&it, &name, true) == WJB_ELEM)
	{
		if (name.type != jbvString)
			invalid(what, "A path is a JSON string, or an array of names.");
		path->fields[path->count++] = PointerGetDatum(string_text(&name));
	}
	return path;
}

static List *
read_paths(const char *what, JsonbValue *value)
{
	JsonbIterator *it;
	JsonbValue	path;
	List	   *result = NIL;

	if (!is_array(value))
		invalid(what, "It must be an array of paths.");
	it = members(value);
	while (JsonbIteratorNext(&it, &path, true) == WJB_ELEM)
		result = lappend(result, read_path(what, &path));
	return result;
}

/* An object: paths, and for each another path, a constant, or an expression. */
static void
read_placed(Part *part, RuleQuery *query, const char *what, const char *kind, JsonbValue *value)
{
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	member;

	if (!is_object(value))
		invalid(what, psprintf("\"%s\" must be an object.", kind));
	it = members(value);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		FieldPath	   *path = dotted_path(what, key.val.string.val, key.val.string.len);
		Placed	   *placed;

		(void) JsonbIteratorNext(&it, &member, true);
		if (strcmp(kind, "rename") == 0)
		{
			if (member.type != jbvString)
				invalid(what, "\"rename\" has a path for each path.");
			part->renamed = lappend(part->renamed, path);
			part->renamed = lappend(part->renamed,
									dotted_path(what, member.val.string.val, member.val.string.len));
			continue;
		}
		placed = palloc0(sizeof(Placed));
		placed->to = *path;
		if (strcmp(kind, "set") == 0)
			placed->constant = JsonbValueToJsonb(&member);
		else
			placed->column = add_column(query, what, &member, NULL);
		part->placed = lappend(part->placed, placed);
	}
}

static void
read_part(Part *part, RuleQuery *query, const char *what, JsonbValue *value)
{
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	member;

	if (is_array(value))
	{
		part->picks = true;
		part->picked = read_paths(what, value);
		return;
	}
	if (!is_object(value))
		invalid(what, "It must be an object, or an array of paths to pick.");
	it = members(value);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &member, true);
		if (key_is(&key, "sql"))
			part->column = add_column(query, what, &member, NULL);
		else if (key_is(&key, "pick"))
		{
			part->picks = true;
			part->picked = read_paths(what, &member);
		}
		else if (key_is(&key, "drop"))
			part->dropped = read_paths(what, &member);
		else if (key_is(&key, "rename") || key_is(&key, "set") || key_is(&key, "compute"))
			read_placed(part, query, what,
						pnstrdup(key.val.string.val, key.val.string.len), &member);
		else
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("unknown key \"%s\" in %s of a translation",
							pnstrdup(key.val.string.val, key.val.string.len), what),
					 errhint("Known keys: sql, pick, drop, rename, set, compute.")));
	}
}

/* ----------------------------------------------------------------
 * Fields
 * ----------------------------------------------------------------
 */

static void
read_constant(Field *field, RuleField which, JsonbValue *value)
{
	EventInput	event = {0};
	StreamInput stream = {0};
	const char *name = field_names[which].name;

	if (which == RULE_SCHEMA_VERSION)
	{
		char	   *end = NULL;
		int			number = 0;

		errno = 0;
		if (value->type == jbvNumeric)
			number = strtoint(numeric_normalize(value->val.numeric), &end, 10);
		if (end == NULL || *end != '\0' || errno != 0)
			invalid(name, "It must be a whole number, or an object with the key sql.");
		input_schema_version(number);
		field->constant = Int32GetDatum(number);
		return;
	}
	if (value->type != jbvString)
		invalid(name, "It must be a string, or an object with the key sql.");
	if (which == RULE_CAUSATION_ID)
	{
		field->constant = DirectFunctionCall1(uuid_in,
											  CStringGetDatum(text_to_cstring(string_text(value))));
		return;
	}
	field->constant = PointerGetDatum(string_text(value));
	if (which == RULE_TYPE)
		input_type(&event, string_text(value));
	else if (which == RULE_STREAM)
		input_stream_name(&stream, string_text(value));
	else if (which == RULE_SOURCE)
		input_source(&event, string_text(value));
	else
		input_correlation_id(&event, string_text(value));
}

static void
read_field(Field *field, RuleQuery *query, RuleField which, JsonbValue *value)
{
	const char *name = field_names[which].name;
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	member;

	if (value->type == jbvNull)
	{
		if (!field_names[which].nullable)
			invalid(name, "It must not be null.");
		field->kind = FIELD_NULL;
	}
	else if (is_object(value))
	{
		it = members(value);
		if (JsonContainerSize(value->val.binary.data) != 1 ||
			JsonbIteratorNext(&it, &key, true) != WJB_KEY || !key_is(&key, "sql"))
			invalid(name, "An object must have the key sql, and no other.");
		(void) JsonbIteratorNext(&it, &member, true);
		field->kind = FIELD_COMPUTED;
		field->column = add_column(query, name, &member, field_names[which].type);
	}
	else
	{
		field->kind = FIELD_CONSTANT;
		read_constant(field, which, value);
	}
}

static List *
read_names(const char *what, JsonbValue *value)
{
	JsonbIterator *it;
	JsonbValue	name;
	List	   *result = NIL;

	if (!is_array(value) || JsonContainerSize(value->val.binary.data) == 0)
		invalid(what, "It must be an array of names.");
	it = members(value);
	while (JsonbIteratorNext(&it, &name, true) == WJB_ELEM)
	{
		if (name.type != jbvString)
			invalid(what, "It must be an array of names.");
		input_check_name(what, name.val.string.val, name.val.string.len);
		result = lappend(result, string_text(&name));
	}
	return result;
}

/* ----------------------------------------------------------------
 * Rules
 * ----------------------------------------------------------------
 */

/* Unless a rule says otherwise, the trace is all of metadata that goes out. */
static void
default_metadata(Part *part)
{
	part->picks = true;
	part->picked = list_make2(dotted_path("metadata", "traceparent", 11),
							  dotted_path("metadata", "tracestate", 10));
}

static bool
locks_rows(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (!IsA(node, Query))
		return expression_tree_walker(node, locks_rows, context);
	return ((Query *) node)->rowMarks != NIL ||
		query_tree_walker((Query *) node, locks_rows, context, 0);
}

/* What goes out depends on the event, and changes nothing. */
static void
check_changes_nothing(Query *query)
{
	if (contain_volatile_functions((Node *) query))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("an expression in a rule of a translation calls a volatile function"),
				 errhint("Declare the function STABLE or IMMUTABLE if it changes nothing.")));
	if (locks_rows((Node *) query, NULL))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("an expression in a rule of a translation locks rows")));
}

/*
 * One value comes of each expression, if and only if the condition holds.  With
 * an aggregate there would be a row in any case, with a set there may be none.
 */
static void
check_one_row(Query *query)
{
	Query	   *inner = linitial_node(RangeTblEntry, query->rtable)->subquery;

	if (inner->hasAggs || inner->hasWindowFuncs)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("an expression in a rule of a translation has an aggregate or window function"),
				 errdetail("There is one event, and nothing to aggregate."),
				 errhint("Aggregate rows of a subquery: (SELECT ... FROM ...).")));
	if (inner->hasTargetSRFs)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("an expression in a rule of a translation returns a set"),
				 errhint("Make one value of it in a subquery: (SELECT ... FROM ...).")));
}

static void
check_plan(SPIPlanPtr plan)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));
	Query	   *query = linitial_node(Query, source->query_list);

	check_changes_nothing(query);
	check_one_row(query);
}

static void
prepare(Rule *rule, RuleQuery *query)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[2] = {catalog_store()->recorded_event, TEXTOID};
	StringInfoData sql;

	if (query->ncolumns == 0 && query->condition == NULL)
		return;
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s FROM (SELECT %s FROM (SELECT ($1).*, $2 AS category) AS event",
					 query->outer.data, query->inner.data);
	if (query->condition != NULL)
		appendStringInfo(&sql, " WHERE (%s\n)", query->condition);
	appendStringInfoString(&sql, ") AS computed");
	/* SPI comes back in its own context */
	rule->plan = SPI_prepare_cursor(sql.data, 2, types, CURSOR_OPT_GENERIC_PLAN);
	MemoryContextSwitchTo(context);
	if (rule->plan == NULL)
		elog(ERROR, "could not prepare \"%s\"", sql.data);
	rule->ncolumns = query->ncolumns;
	check_plan(rule->plan);
}

static Rule *
read_rule(JsonbValue *object)
{
	Rule	   *rule = palloc0(sizeof(Rule));
	RuleQuery	query = {0};
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;

	if (!is_object(object))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a rule of a translation must be a JSON object")));
	initStringInfo(&query.outer);
	initStringInfo(&query.inner);
	rule->fields[RULE_SCHEMA_VERSION].kind = FIELD_CONSTANT;
	rule->fields[RULE_SCHEMA_VERSION].constant = Int32GetDatum(1);
	default_metadata(&rule->metadata);
	it = members(object);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		int			field;

		(void) JsonbIteratorNext(&it, &value, true);
		for (field = 0; field < RULE_NFIELDS; field++)
			if (key_is(&key, field_names[field].name))
				break;
		if (field < RULE_NFIELDS)
			read_field(&rule->fields[field], &query, field, &value);
		else if (key_is(&key, "types"))
			rule->types = read_names("types", &value);
		else if (key_is(&key, "categories"))
			rule->categories = read_names("categories", &value);
		else if (key_is(&key, "where"))
			query.condition = expression("where", &value);
		else if (key_is(&key, "data"))
			read_part(&rule->data, &query, "data", &value);
		else if (key_is(&key, "metadata"))
		{
			memset(&rule->metadata, 0, sizeof(Part));
			read_part(&rule->metadata, &query, "metadata", &value);
		}
		else
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("unknown key \"%s\" in a rule of a translation",
							pnstrdup(key.val.string.val, key.val.string.len)),
					 errhint("Known keys: types, categories, where, type, stream, source, schema_version, correlation_id, causation_id, data, metadata.")));
	}
	prepare(rule, &query);
	return rule;
}

static void
rule_error_context(void *arg)
{
	errcontext("rule %d", *(int *) arg);
}

/*
 * The rules, an object or an array of them, in the current context; connected to
 * SPI, in which their plans are made.
 */
List *
rule_read_all(Jsonb *rules)
{
	ErrorContextCallback callback;
	JsonbIterator *it;
	JsonbValue	value;
	List	   *result = NIL;
	int			number = 1;

	if (JB_ROOT_IS_SCALAR(rules) || (JB_ROOT_IS_ARRAY(rules) && JB_ROOT_COUNT(rules) == 0))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("rules of a translation must be a JSON object, or an array of objects")));
	callback.callback = rule_error_context;
	callback.arg = &number;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (JB_ROOT_IS_OBJECT(rules))
	{
		value.type = jbvBinary;
		value.val.binary.data = &rules->root;
		value.val.binary.len = VARSIZE(rules) - VARHDRSZ;
		result = list_make1(read_rule(&value));
	}
	else
	{
		if (JB_ROOT_COUNT(rules) > MAX_RULES)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("a translation has too many rules"),
					 errdetail("There are %d; at most %d are allowed.",
							   (int) JB_ROOT_COUNT(rules), MAX_RULES)));
		it = JsonbIteratorInit(&rules->root);
		(void) JsonbIteratorNext(&it, &value, true);
		while (JsonbIteratorNext(&it, &value, true) == WJB_ELEM)
		{
			result = lappend(result, read_rule(&value));
			number++;
		}
	}
	error_context_stack = callback.previous;
	return result;
}
