/*
 * rebuild.c
 *		Building a projection anew beside the one that is in service.
 *
 * A rebuild is a second projection, the *twin*, of the same filter and kind, with
 * an id, a checkpoint and, for a fold, a table of states of its own; its row says
 * which projection it rebuilds.  It is asynchronous whatever that is, and is
 * refreshed like any other, by the worker or a call, so it can be paused, resumed
 * and dropped at any time, and each batch commits with its checkpoint.
 *
 * The tables that a handler of kind set or event writes are made anew in a schema
 * of the rebuild's own, like those in service, and that schema comes first in the
 * search_path of the twin: the handler has to name its tables without a schema.
 * They have the same columns in the same places, those that were dropped too,
 * since they are to be read from each other's files.
 *
 * When the twin has come as far as the projection in service, and did so in an
 * earlier transaction, the two change places, in the transaction of a refresh:
 *
 * 1. both are locked; if the one in service is inline, appenders are kept out, and
 *	  what they have appended last is applied to the twin;
 * 2. each table changes files with its counterpart, as CLUSTER does it, and so do
 *	  their indexes, and the sequences of identity columns: the table in service is
 *	  the same table, with its views, grants and triggers, and has the new contents;
 * 3. the twin gets the name, the mode and the search_path, and the one that was in
 *	  service becomes the twin, which is dropped, or kept, paused: it can catch up
 *	  and take its place again.
 *
 * By itself a refresh waits for these locks for an instant only, so that nobody has to
 * queue behind it for long; finish_rebuild() waits for them.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/catalog.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type_d.h"
#include "commands/tablecmds.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_utilcmd.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/names.h"
#include "common/plans.h"
#include "notification/notification.h"
#include "position/position.h"
#include "projection/projection.h"
#include "subscription/subscription.h"

PG_FUNCTION_INFO_V1(event_store_rebuild_projection);
PG_FUNCTION_INFO_V1(event_store_finish_rebuild);
PG_FUNCTION_INFO_V1(event_store_revert_rebuild);
PG_FUNCTION_INFO_V1(event_store_cancel_rebuild);

/* ----------------------------------------------------------------
 * Tables
 * ----------------------------------------------------------------
 */

static char *
rebuild_schema(int32 id)
{
	return psprintf("event_store_rebuild_%d", id);
}

/*
 * Foreign keys: a row of the one table would no longer have its counterpart in the
 * other, and the twin could not be dropped beside readers of the other.
 */
static const char *
foreign_key(Oid relid)
{
	Datum		values[1] = {ObjectIdGetDatum(relid)};
	Oid			types[1] = {OIDOID};
	const char *why = NULL;
	bool		isnull;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("SELECT c.conrelid = $1 FROM pg_catalog.pg_constraint AS c"
							  " WHERE c.contype = 'f' AND (c.conrelid = $1 OR c.confrelid = $1)",
							  1, types, values, NULL, true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read constraints");
	if (SPI_processed > 0)
		why = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)) ?
			"It has a foreign key." : "It is referenced by a foreign key.";
	SPI_finish();
	return why;
}

/* Indexes that cannot be compared with another one, or have not all rows. */
static const char *
odd_index(Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	const char *why = NULL;
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

		if (index->rd_index->indisexclusion)
			why = "It has an exclusion constraint.";
		else if (!index->rd_index->indisvalid)
			why = "It has an index that is not valid.";
		index_close(index, NoLock);
	}
	return why;
}

/*
 * A table of a read model: one that can change places with another one.  As the
 * projection's owner, who must own it.
 */
static Oid
find_table(const char *name)
{
	RangeVar   *range = makeRangeVarFromNameList(compat_name_list(name));
	Oid			relid = RangeVarGetRelid(range, AccessShareLock, false);
	Relation	rel = relation_open(relid, NoLock);
	const char *why = NULL;

	if (rel->rd_rel->relkind != RELKIND_RELATION)
		why = "It is not an ordinary table.";
	else if (rel->rd_rel->relispartition || rel->rd_rel->relhassubclass ||
			 has_superclass(relid))
		why = "It is part of an inheritance tree.";
	else if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		why = "It is a temporary table.";
	else if (get_rel_namespace(relid) == catalog_store()->schema)
		why = "It belongs to the event store.";
	else if (IsCatalogRelation(rel))
		why = "It is a system catalog.";
	else if ((why = odd_index(rel)) == NULL)
		why = foreign_key(relid);
	if (why != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("table \"%s\" cannot be rebuilt beside itself", name),
				 errdetail_internal("%s", why)));
	if (!compat_owns_relation(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, name);
	relation_close(rel, NoLock);
	return relid;
}

/*
 * The tables of a projection, checked, as names that hold whatever the
 * search_path is.
 */
Datum
rebuild_check_tables(const Projection *projection, Datum array)
{
	HandlerRights saved;
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	Datum	   *names;
	List	   *seen = NIL;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	names = palloc(sizeof(Datum) * Max(count, 1));
	apply_begin(projection, &saved);
	for (int i = 0; i < count; i++)
	{
		Oid			relid;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("tables must not contain NULL")));
		relid = find_table(TextDatumGetCString(elements[i]));
		if (list_member_oid(seen, relid))
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("table \"%s\" is named twice", TextDatumGetCString(elements[i]))));
		seen = lappend_oid(seen, relid);
		names[i] = PointerGetDatum(cstring_to_text(
			quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)),
									   get_rel_name(relid))));
	}
	apply_end(&saved);
	return PointerGetDatum(construct_array(names, count, TEXTOID, -1, false, TYPALIGN_INT));
}

/* It goes with the extension, and keeps nobody from dropping that. */
static void
go_with_extension(Oid class, Oid oid)
{
	ObjectAddress object;
	ObjectAddress table;

	ObjectAddressSet(object, class, oid);
	ObjectAddressSet(table, RelationRelationId, catalog_store()->projection);
	recordDependencyOn(&object, &table, DEPENDENCY_AUTO);
}

/*
 * What makes a table with the columns of another, in their places: one that was dropped
 * there is made, to be dropped.  What the columns hang on (defaults, CHECK) comes
 * afterwards.  $1 the table, $2 the name of the new one.
 */
static const char *const columns_like =
"SELECT pg_catalog.format('CREATE %sTABLE %s (%s)%s%s%s',"
"  CASE WHEN c.relpersistence = 'u' THEN 'UNLOGGED ' END, $2,"
"  (SELECT pg_catalog.string_agg(CASE WHEN a.attisdropped THEN pg_catalog.format('%I int', a.attname)"
"     ELSE pg_catalog.concat(pg_catalog.format('%I %s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)),"
"       CASE WHEN a.attcompression <> '' THEN CASE a.attcompression WHEN 'l' THEN ' COMPRESSION lz4' ELSE ' COMPRESSION pglz' END END,"
"       CASE WHEN a.attcollation <> 0 THEN (SELECT pg_catalog.format(' COLLATE %I.%I', n.nspname, o.collname)"
"         FROM pg_catalog.pg_collation AS o JOIN pg_catalog.pg_namespace AS n ON n.oid = o.collnamespace WHERE o.oid = a.attcollation) END,"
"       CASE WHEN a.attnotnull THEN ' NOT NULL' END,"
"       CASE WHEN a.attgenerated <> '' THEN (SELECT pg_catalog.format(' GENERATED ALWAYS AS (%s) %s', pg_catalog.pg_get_expr(d.adbin, d.adrelid),"
"         CASE a.attgenerated WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END)"
"         FROM pg_catalog.pg_attrdef AS d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum) END,"
"       CASE WHEN a.attidentity <> '' THEN (SELECT pg_catalog.format(' GENERATED %s AS IDENTITY (START WITH %s INCREMENT BY %s MINVALUE %s MAXVALUE %s CACHE %s%s)',"
"         CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END,"
"         s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' END)"
"         FROM pg_catalog.pg_depend AS x JOIN pg_catalog.pg_sequence AS s ON s.seqrelid = x.objid"
"         WHERE x.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND x.refclassid = x.classid"
"         AND x.refobjid = a.attrelid AND x.refobjsubid = a.attnum AND x.deptype = 'i') END) END,"
"     ', ' ORDER BY a.attnum)"
"   FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0),"
"  (SELECT ' USING ' || pg_catalog.quote_ident(m.amname) FROM pg_catalog.pg_am AS m WHERE m.oid = c.relam),"
"  ' WITH (' || pg_catalog.array_to_string(c.reloptions, ', ') || ')',"
"  (SELECT ' TABLESPACE ' || pg_catalog.quote_ident(t.spcname) FROM pg_catalog.pg_tablespace AS t WHERE t.oid = c.reltablespace)),"
" (SELECT pg_catalog.format('ALTER TABLE %s %s', $2, pg_catalog.string_agg(pg_catalog.format('DROP COLUMN %I', a.attname), ', '))"
"   FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attisdropped HAVING count(*) > 0),"
" (SELECT pg_catalog.format('ALTER TABLE %s %s', $2, pg_catalog.string_agg(pg_catalog.format('ALTER COLUMN %I SET STORAGE %s', a.attname,"
"     CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END), ', '))"
"   FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid"
"   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> t.typstorage HAVING count(*) > 0)"
" FROM pg_catalog.pg_class AS c WHERE c.oid = $1";

/*
 * How rows of a table are read: of a column that was dropped its length and
 * alignment, of one that was added with a default what rows from before it are
 * taken to have.
 */
static void
copy_layout(Oid from, Oid to)
{
	Relation	source = relation_open(from, NoLock);
	Relation	pg_attribute = table_open(AttributeRelationId, RowExclusiveLock);

	for (int i = 1; i <= RelationGetNumberOfAttributes(source); i++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(source), i - 1);
		HeapTuple	theirs;
		HeapTuple	own;
		Datum		values[Natts_pg_attribute];
		bool		nulls[Natts_pg_attribute] = {false};
		bool		replaces[Natts_pg_attribute] = {false};

		if (!column->attisdropped && !column->atthasmissing)
			continue;
		theirs = SearchSysCache2(ATTNUM, ObjectIdGetDatum(from), Int16GetDatum(i));
		own = SearchSysCacheCopy2(ATTNUM, ObjectIdGetDatum(to), Int16GetDatum(i));
		if (!HeapTupleIsValid(theirs) || !HeapTupleIsValid(own))
			elog(ERROR, "cache lookup failed for column %d of relation %u or %u", i, from, to);
		for (int n = 0; n < 5; n++)
		{
			static const AttrNumber columns[] = {
				Anum_pg_attribute_attlen, Anum_pg_attribute_attalign, Anum_pg_attribute_attbyval,
				Anum_pg_attribute_atthasmissing, Anum_pg_attribute_attmissingval
			};
			int			c = columns[n] - 1;

			values[c] = SysCacheGetAttr(ATTNUM, theirs, columns[n], &nulls[c]);
			replaces[c] = true;
		}
		own = heap_modify_tuple(own, RelationGetDescr(pg_attribute), values, nulls, replaces);
		CatalogTupleUpdate(pg_attribute, &own->t_self, own);
		heap_freetuple(own);
		ReleaseSysCache(theirs);
	}
	table_close(pg_attribute, RowExclusiveLock);
	relation_close(source, NoLock);
	CommandCounterIncrement();
}

/* Defaults, CHECK constraints and indexes, as LIKE makes them. */
static void
make_like(Oid relid, const char *schema, const char *name)
{
	RangeVar   *range = makeRangeVar(pstrdup(schema), pstrdup(name), -1);
	TableLikeClause *like = makeNode(TableLikeClause);
	List	   *statements;
	ListCell   *cell;

	like->relation = makeRangeVar(get_namespace_name(get_rel_namespace(relid)),
								  get_rel_name(relid), -1);
	like->relationOid = relid;
	like->options = CREATE_TABLE_LIKE_DEFAULTS | CREATE_TABLE_LIKE_CONSTRAINTS |
		CREATE_TABLE_LIKE_INDEXES;
	statements = expandTableLikeClause(range, like);
	foreach(cell, statements)
	{
		PlannedStmt *statement = makeNode(PlannedStmt);

		statement->commandType = CMD_UTILITY;
		statement->utilityStmt = lfirst(cell);
		statement->stmt_location = -1;
		ProcessUtility(statement, "event_store.rebuild_projection()", false,
					   PROCESS_UTILITY_SUBCOMMAND, NULL, NULL, None_Receiver, NULL);
		CommandCounterIncrement();
	}
}

static bool match_tables(Relation first, Relation second, LOCKMODE mode, List **pairs);

/* A table like one in service. */
static void
make_table(Oid relid, const char *schema, const char *name)
{
	Relation	rels[2];
	List	   *pairs;
	Oid			types[2] = {OIDOID, TEXTOID};
	Datum		values[2];
	char	   *statements[3];
	Oid			made;

	values[0] = ObjectIdGetDatum(relid);
	values[1] = PointerGetDatum(cstring_to_text(quote_qualified_identifier(schema, name)));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(columns_like, 2, types, values, NULL, false, 0) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read the columns of a table");
	for (int i = 0; i < lengthof(statements); i++)
		statements[i] = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1);
	for (int i = 0; i < lengthof(statements); i++)
		if (statements[i] != NULL)
			plans_run_ddl("%s", statements[i]);
	made = get_relname_relid(name, get_namespace_oid(schema, false));
	copy_layout(relid, made);
	make_like(relid, schema, name);
	SPI_finish();
	rels[0] = relation_open(relid, NoLock);
	rels[1] = relation_open(made, NoLock);
	if (!match_tables(rels[0], rels[1], AccessShareLock, &pairs))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("table \"%s\" cannot be rebuilt beside itself", name),
				 errdetail("A table like it has other columns, constraints or indexes.")));
	relation_close(rels[0], NoLock);
	relation_close(rels[1], NoLock);
	go_with_extension(RelationRelationId, made);
}

/* Its own schema, and in it a table like each of those in service. */
static void
make_tables(const Projection *twin)
{
	char	   *schema = rebuild_schema(twin->id);
	OwnerSwitch owner;
	HandlerRights saved;
	List	   *names = NIL;

	owner_begin(&owner);
	plans_run_ddl("CREATE SCHEMA %s", schema);
	plans_run_ddl("GRANT USAGE, CREATE ON SCHEMA %s TO %s", schema, quote_identifier(twin->owner));
	owner_end(&owner);
	go_with_extension(NamespaceRelationId, get_namespace_oid(schema, false));

	apply_begin(twin, &saved);
	for (int i = 0; i < twin->tables.count; i++)
	{
		Oid			relid = find_table(text_to_cstring(twin->tables.names[i]));
		char	   *name = get_rel_name(relid);
		ListCell   *cell;

		foreach(cell, names)
			if (strcmp(lfirst(cell), name) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("two tables of projection \"%s\" have the name \"%s\"",
								twin->name, name)));
		names = lappend(names, name);
		make_table(relid, schema, name);
	}
	apply_end(&saved);
}

/* What is left of a twin: its schema. */
void
rebuild_drop_tables(const Projection *twin)
{
	OwnerSwitch owner;
	char	   *schema = rebuild_schema(twin->id);

	if (!OidIsValid(get_namespace_oid(schema, true)))
		return;
	/* the tables in it are of another owner; the schema is the store's */
	for (int i = 0; i < twin->tables.count; i++)
	{
		List	   *name = compat_name_list(text_to_cstring(twin->tables.names[i]));
		Oid			relid = get_relname_relid(strVal(llast(name)), get_namespace_oid(schema, false));
		ObjectAddress object;

		if (!OidIsValid(relid))
			continue;
		LockRelationOid(relid, AccessExclusiveLock);
		ObjectAddressSet(object, RelationRelationId, relid);
		performDeletion(&object, DROP_RESTRICT, 0);
	}
	owner_begin(&owner);
	plans_run_ddl("DROP SCHEMA %s", schema);
	owner_end(&owner);
}

/*
 * Two relations change their files, and with them what pg_class tells of the files;
 * tables also their TOAST tables, by the links to them: the pointers in rows name
 * the TOAST table by its oid.  After swap_relation_files() of PostgreSQL's
 * src/backend/commands/cluster.c.  Both are locked in AccessExclusiveLock.
 */
static void
swap_files(Oid a, Oid b)
{
	Relation	pg_class = table_open(RelationRelationId, RowExclusiveLock);
	HeapTuple	tuples[2];
	Form_pg_class forms[2];
	Oid			oids[2] = {a, b};
	CatalogIndexState indexes;

	for (int i = 0; i < 2; i++)
	{
		tuples[i] = SearchSysCacheCopy1(RELOID, ObjectIdGetDatum(oids[i]));
		if (!HeapTupleIsValid(tuples[i]))
			elog(ERROR, "cache lookup failed for relation %u", oids[i]);
		forms[i] = (Form_pg_class) GETSTRUCT(tuples[i]);
	}
	if (forms[0]->relam != forms[1]->relam || forms[0]->relpersistence != forms[1]->relpersistence)
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_FAILED),
				 errmsg("relation \"%s\" has been altered since the rebuild began",
						NameStr(forms[0]->relname)),
				 errhint("Cancel the rebuild, and begin it anew.")));

#define SWAP(field, type) \
	do { \
		type		kept = forms[0]->field; \
		forms[0]->field = forms[1]->field; \
		forms[1]->field = kept; \
	} while (0)

	SWAP(relfilenode, Oid);
	SWAP(reltablespace, Oid);
	SWAP(reltoastrelid, Oid);
	SWAP(relfrozenxid, TransactionId);
	SWAP(relminmxid, MultiXactId);
	SWAP(relpages, int32);
	SWAP(reltuples, float4);
	SWAP(relallvisible, int32);
	compat_with_all_frozen(SWAP);

#undef SWAP

	indexes = CatalogOpenIndexes(pg_class);
	for (int i = 0; i < 2; i++)
		CatalogTupleUpdateWithInfo(pg_class, &tuples[i]->t_self, tuples[i], indexes);
	CatalogCloseIndexes(indexes);
	for (int i = 0; i < 2; i++)
		if (OidIsValid(forms[i]->reltoastrelid) &&
			deleteDependencyRecordsFor(RelationRelationId, forms[i]->reltoastrelid, false) != 1)
			elog(ERROR, "expected one dependency of a TOAST table");
	for (int i = 0; i < 2; i++)
		if (OidIsValid(forms[i]->reltoastrelid))
		{
			ObjectAddress base;
			ObjectAddress toast;

			ObjectAddressSet(base, RelationRelationId, oids[i]);
			ObjectAddressSet(toast, RelationRelationId, forms[i]->reltoastrelid);
			recordDependencyOn(&toast, &base, DEPENDENCY_INTERNAL);
		}
	heap_freetuple(tuples[0]);
	heap_freetuple(tuples[1]);
	table_close(pg_class, RowExclusiveLock);
	compat_close_smgr(a);
	compat_close_smgr(b);
}

static void
altered(Relation rel)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_PROJECTION_FAILED),
			 errmsg("table \"%s\" has been altered since the rebuild began",
					RelationGetRelationName(rel)),
			 errhint("Cancel the rebuild, and begin it anew.")));
}

/* Its files are those of an earlier transaction. */
static void
check_files(Relation rel)
{
	if (rel->rd_createSubid != InvalidSubTransactionId ||
		compat_new_file_subid(rel) != InvalidSubTransactionId)
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("relation \"%s\" cannot change places in the transaction that made or rewrote it",
						RelationGetRelationName(rel))));
	CheckTableNotInUse(rel, "change places of");
}

/*
 * An expression of a table, as text: the twin's can have been read anew, so that
 * nothing but its meaning is the same.
 */
static char *
expression_text(Relation rel, const char *expression)
{
	return deparse_expression(stringToNode(expression),
							  deparse_context_for(RelationGetRelationName(rel), RelationGetRelid(rel)),
							  false, false);
}

static const char *
generated_as(Relation rel, AttrNumber n)
{
	TupleConstr *constr = RelationGetDescr(rel)->constr;

	for (int i = 0; constr != NULL && i < constr->num_defval; i++)
		if (constr->defval[i].adnum == n)
			return expression_text(rel, constr->defval[i].adbin);
	return "";
}

/* Does what satisfies the CHECK constraints of y satisfy those of x? */
static bool
checks_hold(Relation x, Relation y)
{
	TupleConstr *p = RelationGetDescr(x)->constr;
	TupleConstr *q = RelationGetDescr(y)->constr;

	for (int i = 0; p != NULL && i < p->num_check; i++)
	{
		char	   *check = expression_text(x, p->check[i].ccbin);
		bool		found = false;

		for (int j = 0; q != NULL && j < q->num_check && !found; j++)
			found = strcmp(check, expression_text(y, q->check[j].ccbin)) == 0;
		if (!found)
			return false;
	}
	return true;
}

/* Can rows of one be read as those of the other, and do they satisfy what that demands? */
static bool
columns_fit(Relation x, Relation y)
{
	if (RelationGetNumberOfAttributes(x) != RelationGetNumberOfAttributes(y))
		return false;
	for (int i = 0; i < RelationGetNumberOfAttributes(x); i++)
	{
		Form_pg_attribute p = TupleDescAttr(RelationGetDescr(x), i);
		Form_pg_attribute q = TupleDescAttr(RelationGetDescr(y), i);

		if (p->attisdropped != q->attisdropped || p->attlen != q->attlen ||
			p->attalign != q->attalign || p->attbyval != q->attbyval ||
			p->atthasmissing != q->atthasmissing)
			return false;
		if (p->attisdropped)
			continue;
		if (p->atttypid != q->atttypid || p->atttypmod != q->atttypmod ||
			p->attcollation != q->attcollation || (p->attnotnull && !q->attnotnull) ||
			p->attidentity != q->attidentity || p->attgenerated != q->attgenerated ||
			strcmp(NameStr(p->attname), NameStr(q->attname)) != 0)
			return false;
		if (p->attgenerated != '\0' &&
			strcmp(generated_as(x, i + 1), generated_as(y, i + 1)) != 0)
			return false;
	}
	return checks_hold(x, y);
}

static bool
indexes_fit(Relation x, Relation y, AttrMap *map)
{
	return x->rd_index->indisvalid && y->rd_index->indisvalid &&
		x->rd_index->indisprimary == y->rd_index->indisprimary &&
		x->rd_index->indimmediate == y->rd_index->indimmediate &&
		memcmp(x->rd_indoption, y->rd_indoption,
			   sizeof(int16) * IndexRelationGetNumberOfKeyAttributes(x)) == 0 &&
		CompareIndexInfo(BuildIndexInfo(y), BuildIndexInfo(x), y->rd_indcollation,
						 x->rd_indcollation, y->rd_opfamily, x->rd_opfamily, map);
}

/*
 * Can a table change files with another one?  And with it, in pairs, its indexes and
 * the sequences of its identity columns, which are locked.
 */
static bool
match_tables(Relation first, Relation second, LOCKMODE mode, List **pairs)
{
	List	   *mine = RelationGetIndexList(first);
	List	   *others = RelationGetIndexList(second);
	ListCell   *cell;
	AttrMap    *map;

	*pairs = NIL;
	if (!columns_fit(first, second) || list_length(mine) != list_length(others))
		return false;
	map = make_attrmap(RelationGetNumberOfAttributes(first));
	for (int i = 0; i < map->maplen; i++)
		map->attnums[i] = i + 1;
	foreach(cell, mine)
	{
		Relation	index = index_open(lfirst_oid(cell), mode);
		Oid			found = InvalidOid;
		ListCell   *other;

		foreach(other, others)
		{
			Relation	candidate = index_open(lfirst_oid(other), mode);

			if (!OidIsValid(found) && indexes_fit(index, candidate, map))
				found = lfirst_oid(other);
			index_close(candidate, NoLock);
		}
		index_close(index, NoLock);
		if (!OidIsValid(found))
			return false;
		others = list_delete_oid(others, found);
		*pairs = lappend_oid(lappend_oid(*pairs, lfirst_oid(cell)), found);
	}
	for (int i = 0; i < map->maplen; i++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(first), i);
		Oid			own;
		Oid			other;

		if (column->attisdropped || column->attidentity == '\0')
			continue;
		own = compat_identity_sequence(first, i + 1);
		other = compat_identity_sequence(second, i + 1);
		LockRelationOid(own, mode);
		LockRelationOid(other, mode);
		*pairs = lappend_oid(lappend_oid(*pairs, own), other);
	}
	return true;
}

/* A table changes files with another one, and with it what goes with it. */
static void
swap_table(Oid a, Oid b)
{
	Relation	first = relation_open(a, NoLock);
	Relation	second = relation_open(b, NoLock);
	List	   *pairs;
	ListCell   *cell;

	check_files(first);
	check_files(second);
	if (!match_tables(first, second, AccessExclusiveLock, &pairs))
		altered(first);
	foreach(cell, pairs)
	{
		Relation	rel = relation_open(lfirst_oid(cell), NoLock);

		check_files(rel);
		relation_close(rel, NoLock);
	}
	relation_close(first, NoLock);
	relation_close(second, NoLock);
	swap_files(a, b);
	for (int i = 0; i < list_length(pairs); i += 2)
		swap_files(list_nth_oid(pairs, i), list_nth_oid(pairs, i + 1));
	CommandCounterIncrement();
}

/* Locks the tables of both, in pairs. */
static List *
lock_tables(const Projection *twin)
{
	HandlerRights saved;
	Oid			schema = get_namespace_oid(rebuild_schema(twin->id), false);
	List	   *pairs = NIL;

	apply_begin(twin, &saved);
	for (int i = 0; i < twin->tables.count; i++)
	{
		Oid			relid = find_table(text_to_cstring(twin->tables.names[i]));
		Oid			other = get_relname_relid(get_rel_name(relid), schema);

		if (!OidIsValid(other))
			ereport(ERROR,
					(errcode(ERRCODE_VE_PROJECTION_FAILED),
					 errmsg("a table of the rebuild \"%s\" is missing", twin->name),
					 errhint("Cancel the rebuild, and begin it anew.")));
		LockRelationOid(relid, AccessExclusiveLock);
		LockRelationOid(other, AccessExclusiveLock);
		pairs = lappend_oid(lappend_oid(pairs, relid), other);
	}
	apply_end(&saved);
	return pairs;
}

/*
 * Rows that this transaction has written to the tables in service of a rebuild, so
 * far: the handler of a rebuild must not.
 */
int64
rebuild_writes_in_service(const Projection *twin)
{
	Oid			types[1] = {TEXTARRAYOID};
	Datum		values[1];
	Datum	   *names;
	OwnerSwitch saved;
	bool		isnull;
	int64		writes;

	if (twin->rebuilds == 0 || twin->tables.count == 0)
		return 0;
	names = palloc(sizeof(Datum) * twin->tables.count);
	for (int i = 0; i < twin->tables.count; i++)
		names[i] = PointerGetDatum(twin->tables.names[i]);
	values[0] = PointerGetDatum(construct_array(names, twin->tables.count, TEXTOID, -1, false,
												TYPALIGN_INT));
	owner_begin(&saved);
	if (SPI_execute_with_args("SELECT coalesce(sum(pg_catalog.pg_stat_get_xact_tuples_inserted(t.oid)"
							  " + pg_catalog.pg_stat_get_xact_tuples_updated(t.oid)"
							  " + pg_catalog.pg_stat_get_xact_tuples_deleted(t.oid)), 0)::int8"
							  " FROM (SELECT pg_catalog.to_regclass(n) AS oid FROM unnest($1) AS n (n)) AS t",
							  1, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read what has been written");
	writes = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	owner_end(&saved);
	return writes;
}

/* ----------------------------------------------------------------
 * Changing places
 * ----------------------------------------------------------------
 *
 * What changes places is not under the control of snapshots: one that is older than
 * the twin's events would show its tables half built, and one that is older than
 * the change would show the states of what is dropped then as gone.  So the change waits
 * until no other transaction has a snapshot from before the twin had caught up, and
 * what is not kept is dropped when none has one from before the change.  Since when
 * that is stands in the row (`since`, a transaction id).
 *
 * Any snapshot that there is at the change shows the twin's tables as they were when it
 * was taken, without what the changing transaction has written to them.  That must
 * not be less than what the same snapshot shows of the one in service.  So from
 * `since` on the twin goes first: the one in service is refreshed no further than
 * the twin has come (rebuild_limit()), and where that is given up `since` is void.
 * Without it the transaction that makes the change must not have moved the twin.
 */

/* Has nobody in this database a snapshot from before a transaction? */
static bool
snapshots_have_passed(uint64 since, bool wait)
{
	uint64		next = U64FromFullTransactionId(ReadNextFullTransactionId());
	VirtualTransactionId *holders;
	int			count;

	/* a number from another cluster, or so old that nobody can have one */
	if (since >= next || next - since > PG_INT32_MAX)
		return true;
	holders = GetCurrentVirtualXIDs((TransactionId) since, true, false,
									PROC_IS_AUTOVACUUM | PROC_IN_VACUUM, &count);
	for (int i = 0; i < count; i++)
	{
		if (!wait)
			return false;
		(void) VirtualXactLock(holders[i], true);
	}
	return true;
}

static uint64
this_transaction(void)
{
	return U64FromFullTransactionId(GetTopFullTransactionId());
}

static void
note_since(int32 id, uint64 since)
{
	Oid			types[2] = {INT4OID, INT8OID};
	Datum		values[2] = {Int32GetDatum(id), Int64GetDatum((int64) since)};
	OwnerSwitch saved;

	owner_begin(&saved);
	if (SPI_execute_with_args("UPDATE event_store.projection AS p SET since = nullif($2, 0) WHERE p.id = $1",
							  2, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not note since when a projection is out of service");
	owner_end(&saved);
}

/* Was a twin in service before a rebuild? */
bool
rebuild_was_in_service(const Projection *twin)
{
	int			len = strlen(twin->name);

	return twin->rebuilds != 0 && len > 6 && strcmp(twin->name + len - 6, " (old)") == 0;
}

/*
 * Drops what was in service before a rebuild and is not kept, if nobody can see it.
 * States are seen by snapshots that are taken until the change of places commits.
 */
bool
rebuild_tidy(Projection *twin)
{
	if (!rebuild_was_in_service(twin) || twin->keep_old ||
		(twin->kind == PROJECTION_FOLD && twin->since == this_transaction()) ||
		!snapshots_have_passed(twin->since, false))
		return false;
	projection_remove(twin);
	return true;
}

/* Has this transaction moved the checkpoint of a projection? */
static bool
has_just_moved(const Projection *projection)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1] = {Int32GetDatum(projection->id)};
	OwnerSwitch saved;
	bool		isnull;
	bool		moved;

	owner_begin(&saved);
	if (SPI_execute_with_args("SELECT k.xmin FROM event_store.projection_checkpoint AS k"
							  " WHERE k.projection_id = $1 ORDER BY k.version DESC LIMIT 1",
							  1, types, values, NULL, false, 0) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read a checkpoint");
	moved = TransactionIdIsCurrentTransactionId(
		DatumGetTransactionId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)));
	owner_end(&saved);
	return moved;
}

/* Do all snapshots from after `since` show no less of the twin than of the one in service? */
static bool
shows_enough(const Projection *twin)
{
	return twin->tables.count == 0 ||
		(twin->since != 0 && twin->since != this_transaction()) || !has_just_moved(twin);
}

/*
 * How far a projection in service may be refreshed: no further than a rebuild that
 * has caught up with it, as long as that goes on.
 */
int64
rebuild_limit(const Projection *projection)
{
	Projection	twin;

	if (projection->rebuilds != 0 || !projection_read_twin(projection->id, &twin) ||
		twin.since == 0 || twin.tables.count == 0 || rebuild_was_in_service(&twin))
		return PG_INT64_MAX;
	if (twin.paused || twin.failing)
	{
		note_since(twin.id, 0);
		return PG_INT64_MAX;
	}
	return Max(twin.position, projection->position);
}

/* Does a twin go before the one in service? */
bool
rebuild_leads(const Projection *twin)
{
	return twin->since != 0 && twin->tables.count > 0 && !twin->paused && !twin->failing;
}

/* A projection in service goes on by itself: what rebuilds it has to catch up anew. */
void
rebuild_forget_lead(int32 id)
{
	Projection	twin;

	if (projection_read_twin(id, &twin) && !rebuild_was_in_service(&twin))
		note_since(twin.id, 0);
}

/*
 * May the twin, which is locked and up to date, change places with the one in
 * service?  If it has to wait for others it is noted since when.
 */
bool
rebuild_is_due(Projection *twin)
{
	Projection	served;

	/* in an old snapshot nobody knows */
	if (IsolationUsesXactSnapshot())
		return false;
	if (!projection_read_id(twin->rebuilds, &served))
		elog(ERROR, "projection %d does not exist", twin->rebuilds);
	if (served.mode != PROJECTION_INLINE && twin->position < served.position)
		return false;
	if (shows_enough(twin) &&
		snapshots_have_passed(twin->since != 0 ? twin->since : this_transaction(), false))
		return true;
	if (twin->since == 0)
	{
		twin->since = this_transaction();
		note_since(twin->id, twin->since);
	}
	return false;
}

static void
run(const char *sql, int nargs, Oid *types, Datum *values)
{
	OwnerSwitch saved;

	owner_begin(&saved);
	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not execute a statement of projections");
	owner_end(&saved);
}

/* Its names are to be had, and its tables nobody else's. */
static void
require_alone(const Projection *projection)
{
	Oid			types[3] = {INT4OID, TEXTOID, TEXTARRAYOID};
	Datum		values[3];
	char		nulls[4] = "   ";
	Datum	   *names = palloc(sizeof(Datum) * Max(projection->tables.count, 1));
	OwnerSwitch saved;
	char	   *other = NULL;
	bool		by_name = false;
	bool		isnull;

	for (int i = 0; i < projection->tables.count; i++)
		names[i] = PointerGetDatum(projection->tables.names[i]);
	values[0] = Int32GetDatum(projection->id);
	values[1] = PointerGetDatum(cstring_to_text(projection->name));
	values[2] = PointerGetDatum(construct_array(names, projection->tables.count, TEXTOID, -1, false,
												TYPALIGN_INT));
	owner_begin(&saved);
	if (SPI_execute_with_args("SELECT p.name, p.name IN ($2 || ' (new)', $2 || ' (old)')"
							  " FROM event_store.projection AS p WHERE p.id <> $1"
							  " AND p.rebuilds IS DISTINCT FROM $1"
							  " AND (p.name IN ($2 || ' (new)', $2 || ' (old)') OR p.tables && $3)"
							  " ORDER BY 2 DESC, 1", 3, types, values, nulls, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read projections");
	if (SPI_processed > 0)
	{
		other = text_to_cstring(DatumGetTextPP(SPI_getbinval(SPI_tuptable->vals[0],
															 SPI_tuptable->tupdesc, 1, &isnull)));
		by_name = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
		if (by_name)
			ereport(ERROR,
					(errcode(ERRCODE_VE_PROJECTION_EXISTS),
					 errmsg("projection \"%s\" exists already", other),
					 errdetail("A rebuild of \"%s\" would have that name.", projection->name)));
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("projection \"%s\" writes a table of projection \"%s\", too", other,
						projection->name),
				 errdetail("A rebuild of the one would not have what the other has written.")));
	}
	owner_end(&saved);
}

/*
 * The twin, which is locked, and the projection in service change places, waiting for
 * whoever is in the way.  False: it has not come as far.
 */
bool
rebuild_switch(Projection *twin)
{
	Projection	served;
	Projection	now;
	Applied		done = {0};
	List	   *pairs = NIL;
	int64		applied;
	Oid			types[3] = {INT4OID, INT4OID, TEXTOID};
	Datum		values[3];

	(void) projection_lock(twin->rebuilds, true);
	if (!projection_read_id(twin->rebuilds, &served) || !projection_read_id(twin->id, &now))
		elog(ERROR, "projection %d does not exist", twin->rebuilds);
	if ((served.mode != PROJECTION_INLINE && twin->position < served.position) ||
		now.since != twin->since)
		return false;
	/* what reaches beyond the model is done by the one in service, for each event */
	if (served.mode == PROJECTION_ASYNC && !served.paused && !served.failing &&
		served.position < twin->position)
	{
		served.limit = twin->position;
		(void) refresh_run(&served, PG_INT64_MAX, 0, &applied);
		if (served.failing)
			return false;
	}
	if (served.mode == PROJECTION_INLINE)
	{
		if (settled_own_bound() != 0)
			return false;
		projection_keep_appenders_out();
		(void) refresh_run(twin, PG_INT64_MAX, 0, &applied);
		if (twin->failing || twin->paused || settled_own_bound() != 0)
			return false;
		/* it has applied them all, and goes on from here if it is gone back to */
		done.position = settled_mark();
		projection_write_checkpoint(&served, &done);
	}
	if (twin->failing)
		projection_clear_error(twin);
	if (twin->tables.count > 0)
	{
		require_alone(&served);
		pairs = lock_tables(twin);
		for (int i = 0; i < list_length(pairs); i += 2)
			swap_table(list_nth_oid(pairs, i), list_nth_oid(pairs, i + 1));
	}
	values[0] = Int32GetDatum(served.id);
	values[1] = Int32GetDatum(twin->id);
	values[2] = PointerGetDatum(cstring_to_text(served.name));
	run("UPDATE event_store.projection AS p SET name = p.name || ' (old)', rebuilds = $2, paused = true,"
		" mode = 'async', revision = pg_catalog.nextval('event_store.projection_revision'), search_path = (SELECT t.search_path"
		" FROM event_store.projection AS t WHERE t.id = $2)"
		" WHERE p.id = $1", 3, types, values);
	values[2] = PointerGetDatum(cstring_to_text(served.search_path));
	run("UPDATE event_store.projection AS p SET rebuilds = NULL, paused = false, mode = $3,"
		" revision = pg_catalog.nextval('event_store.projection_revision') WHERE p.id = $2", 3, types,
		(Datum[]) {values[0], values[1], PointerGetDatum(cstring_to_text(
			served.mode == PROJECTION_INLINE ? "inline" : "async"))});
	run("UPDATE event_store.projection AS p SET name = left(p.name, -length(' (new)')),"
		" search_path = $3 WHERE p.id = $2", 3, types, values);
	/* the schema goes with the tables that are out of service */
	if (pairs != NIL)
	{
		OwnerSwitch saved;

		owner_begin(&saved);
		plans_run_ddl("ALTER SCHEMA %s RENAME TO %s", rebuild_schema(twin->id),
					  rebuild_schema(served.id));
		owner_end(&saved);
		values[2] = PointerGetDatum(cstring_to_text(
			psprintf("%s, %s", rebuild_schema(served.id), served.search_path)));
		run("UPDATE event_store.projection AS p SET search_path = $3 WHERE p.id = $1",
			3, types, values);
	}
	projection_void_lists();
	note_since(served.id, this_transaction());
	run("UPDATE event_store.projection AS p SET keep_old = $2, since = CASE WHEN p.id = $1 THEN p.since END"
		" WHERE p.id = $1 OR p.id = $3", 3, (Oid[]) {INT4OID, BOOLOID, INT4OID},
		(Datum[]) {Int32GetDatum(served.id), BoolGetDatum(twin->keep_old), Int32GetDatum(twin->id)});
	return true;
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

/* The projection of a name, which must not be a twin, locked; and its twin, if it has one. */
static bool
read_both(FunctionCallInfo fcinfo, Projection *projection, Projection *twin)
{
	projection_read_locked(projection_name_argument(fcinfo, 0), projection);
	projection_require_owner(projection);
	if (projection->rebuilds != 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("\"%s\" is part of a rebuild", projection->name),
				 errhint("Give the name of the projection in service.")));
	if (!projection_read_twin(projection->id, twin))
		return false;
	projection_not_by_handler(twin);
	(void) projection_lock(twin->id, true);
	return projection_read_id(twin->id, twin);
}

Datum
event_store_rebuild_projection(PG_FUNCTION_ARGS)
{
	static const char *const sql =
		"WITH made AS (INSERT INTO event_store.projection AS p (name, kind, handler, mode, categories,"
		" types, key, on_error, max_attempts, first_delay, delay_factor, max_delay, batch_events,"
		" batch_size, refresh_every, owner, owner_id, cluster_id, time_zone, search_path, tables,"
		" rebuilds, keep_old, start_after)"
		" SELECT o.name || ' (new)', o.kind, coalesce($2, o.handler), 'async', o.categories, o.types, o.key,"
		" o.on_error, o.max_attempts, o.first_delay, o.delay_factor, o.max_delay, o.batch_events,"
		" o.batch_size, o.refresh_every, o.owner, o.owner_id, o.cluster_id, o.time_zone, o.search_path, o.tables,"
		" o.id, $3, $4"
		" FROM event_store.projection AS o WHERE o.id = $1 RETURNING p.id)"
		" INSERT INTO event_store.projection_checkpoint"
		" (projection_id, version, position, applied, applied_at, rate, rate_since)"
		" SELECT made.id, 1, $4, 0, pg_catalog.clock_timestamp(), 0, pg_catalog.clock_timestamp() FROM made";
	Oid			types[4] = {INT4OID, TEXTOID, BOOLOID, INT8OID};
	Datum		values[4];
	char		nulls[5] = "    ";
	Projection	projection;
	Projection	twin;
	OwnerSwitch saved;

	projection_guard("event_store.rebuild_projection()");
	if (read_both(fcinfo, &projection, &twin))
	{
		if (!rebuild_was_in_service(&twin))
			ereport(ERROR,
					(errcode(ERRCODE_VE_PROJECTION_EXISTS),
					 errmsg("projection \"%s\" is being rebuilt", projection.name),
					 errhint("cancel_rebuild() ends that.")));
		/* one that had been in service, and was kept */
		projection_remove(&twin);
	}
	if (projection.mode == PROJECTION_LIVE || projection.kind == PROJECTION_MATVIEW)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("projection \"%s\" has nothing that could be rebuilt", projection.name)));
	if (projection.kind != PROJECTION_FOLD && projection.tables.count == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("the tables of projection \"%s\" are not known", projection.name),
				 errhint("Name those that its handler writes by alter_projection(tables => ...).")));
	require_alone(&projection);
	if (strlen(projection.name) > MAX_NAME_BYTES - 6)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("the name of projection \"%s\" is too long for a rebuild", projection.name)));
	if (!PG_ARGISNULL(1) && get_role_oid(projection.owner, true) != GetUserId())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only role \"%s\" can give projection \"%s\" another handler",
						projection.owner, projection.name)));
	values[0] = Int32GetDatum(projection.id);
	values[1] = PG_GETARG_DATUM(1);
	nulls[1] = PG_ARGISNULL(1) ? 'n' : ' ';
	values[2] = BoolGetDatum(!PG_ARGISNULL(2) && PG_GETARG_BOOL(2));
	values[3] = Int64GetDatum(PG_ARGISNULL(3) ? 0 : manage_checked_position(PG_GETARG_INT64(3)));
	owner_begin(&saved);
	if (SPI_execute_with_args(sql, 4, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not begin a rebuild");
	owner_end(&saved);
	if (!projection_read_twin(projection.id, &twin))
		elog(ERROR, "could not read a rebuild");
	(void) projection_lock(twin.id, true);
	if (twin.kind == PROJECTION_FOLD)
		projection_make_state_table(twin.id);
	else
	{
		Oid			path_types[2] = {INT4OID, TEXTOID};
		Datum		path[2] = {Int32GetDatum(twin.id)};

		make_tables(&twin);
		path[1] = PointerGetDatum(cstring_to_text(psprintf("%s, %s", rebuild_schema(twin.id),
														   projection.search_path)));
		run("UPDATE event_store.projection AS p SET search_path = $2 WHERE p.id = $1",
			2, path_types, path);
		(void) projection_read_id(twin.id, &twin);
	}
	apply_check(&twin);
	projection_void_lists();
	wake_at_end();
	PG_RETURN_VOID();
}

static void
not_caught_up(const Projection *projection)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_PROJECTION_FAILED),
			 errmsg("the rebuild of projection \"%s\" has not caught up yet", projection->name),
			 errdetail("Who has a snapshot from before the end of this transaction would see it half built."),
			 errhint("Let it catch up by refresh_projection() or catch_up_projection() first.")));
}

/* Applies what is left, and changes places, waiting for whoever is in the way. */
Datum
event_store_finish_rebuild(PG_FUNCTION_ARGS)
{
	Projection	projection;
	Projection	twin;
	int64		applied;

	projection_guard("event_store.finish_rebuild()");
	if (!read_both(fcinfo, &projection, &twin) || rebuild_was_in_service(&twin))
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_PROJECTION),
				 errmsg("projection \"%s\" is not being rebuilt", projection.name)));
	/* before much is done in vain */
	if (twin.tables.count > 0 && twin.since == 0 && !twin.paused && !twin.failing &&
		twin.position < projection.position)
		not_caught_up(&projection);
	/* whatever kept it from that, it is tried now */
	if (twin.failing && twin.failed_position == 0)
		projection_clear_error(&twin);
	(void) refresh_run(&twin, PG_INT64_MAX, 0, &applied);
	if (!twin.paused && !twin.failing)
	{
		if (!shows_enough(&twin))
			not_caught_up(&projection);
		(void) snapshots_have_passed(twin.since != 0 ? twin.since : this_transaction(), true);
	}
	if (twin.paused || twin.failing || !rebuild_switch(&twin))
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_FAILED),
				 errmsg("the rebuild of projection \"%s\" cannot be finished", projection.name),
				 errdetail("It is paused, or has failed, or this transaction has appended events."),
				 errhint("See event_store.projections for \"%s\".", twin.name)));
	refresh_tidy(projection.id);
	wake_at_end();
	PG_RETURN_VOID();
}

/* What was in service, and was kept, catches up to take its place again. */
Datum
event_store_revert_rebuild(PG_FUNCTION_ARGS)
{
	Oid			types[1] = {INT4OID};
	Datum		values[1];
	Projection	projection;
	Projection	twin;

	projection_guard("event_store.revert_rebuild()");
	if (!read_both(fcinfo, &projection, &twin) || !rebuild_was_in_service(&twin) ||
		!twin.keep_old)
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_PROJECTION),
				 errmsg("nothing is kept that projection \"%s\" could go back to", projection.name)));
	values[0] = Int32GetDatum(twin.id);
	run("UPDATE event_store.projection AS p SET name = left(p.name, -length(' (old)')) || ' (new)',"
		" paused = false, since = NULL WHERE p.id = $1 AND p.name LIKE '% (old)'", 1, types, values);
	projection_void_lists();
	wake_at_end();
	PG_RETURN_VOID();
}

Datum
event_store_cancel_rebuild(PG_FUNCTION_ARGS)
{
	Projection	projection;
	Projection	twin;

	projection_guard("event_store.cancel_rebuild()");
	if (!read_both(fcinfo, &projection, &twin))
		PG_RETURN_BOOL(false);
	projection_remove(&twin);
	wake_at_end();
	PG_RETURN_BOOL(true);
}
