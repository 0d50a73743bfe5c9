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
 *
 * When the twin has come as far as the projection in service, the two change
 * places, in the transaction of that refresh:
 *
 * 1. both are locked; if the one in service is inline, appenders are kept out, and
 *	  what they have appended last is applied to the twin;
 * 2. each table changes files with its counterpart, as CLUSTER does it, and so do
 *	  their indexes: the table in service is the same table, with its views,
 *	  grants and triggers, and has the new contents;
 * 3. the twin gets the name, the mode and the search_path, and the one that was in
 *	  service becomes the twin, which is dropped, or kept, paused: it can catch up
 *	  and take its place again.
 *
 * By itself a refresh only tries these locks, so that nobody has to queue behind
 * it; finish_rebuild() waits for them.
 */
#include "postgres.h"

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
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
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
	for (int i = 0; i < RelationGetDescr(rel)->natts && why == NULL; i++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(rel), i);

		if (column->attisdropped)
			why = "A column of it has been dropped.";
		else if (column->atthasmissing)
			why = "A column was added to it with a default; VACUUM FULL makes it like any other.";
		else if (column->attidentity != '\0')
			why = "It has an identity column.";
	}
	if (why == NULL)
	{
		Datum		values[1] = {ObjectIdGetDatum(relid)};
		Oid			types[1] = {OIDOID};

		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect failed");
		if (SPI_execute_with_args("SELECT FROM pg_catalog.pg_constraint AS c WHERE c.contype = 'f'"
								  " AND (c.conrelid = $1 OR c.confrelid = $1)",
								  1, types, values, NULL, true, 1) != SPI_OK_SELECT)
			elog(ERROR, "could not read constraints");
		if (SPI_processed > 0)
			why = "It has a foreign key, or is referenced by one.";
		SPI_finish();
	}
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

static void
run_ddl(const char *sql)
{
	int			result = SPI_execute(sql, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql, SPI_result_code_string(result));
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

/* Its own schema, and in it a table like each of those in service. */
static void
make_tables(const Projection *twin)
{
	char	   *schema = rebuild_schema(twin->id);
	OwnerSwitch owner;
	HandlerRights saved;
	List	   *names = NIL;

	state_begin(&owner);
	run_ddl(psprintf("CREATE SCHEMA %s", schema));
	run_ddl(psprintf("GRANT USAGE, CREATE ON SCHEMA %s TO %s", schema, quote_identifier(twin->owner)));
	state_end(&owner);
	go_with_extension(NamespaceRelationId, get_namespace_oid(schema, false));

	apply_begin(twin, &saved);
	for (int i = 0; i < twin->tables.count; i++)
	{
		char	   *table = text_to_cstring(twin->tables.names[i]);
		Oid			relid = find_table(table);
		char	   *name = get_rel_name(relid);
		ListCell   *cell;

		foreach(cell, names)
			if (strcmp(lfirst(cell), name) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("two tables of projection \"%s\" have the name \"%s\"",
								twin->name, name)));
		names = lappend(names, name);
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "SPI_connect failed");
		run_ddl(psprintf("CREATE %sTABLE %s.%s (LIKE %s INCLUDING ALL)",
						 get_rel_persistence(relid) == RELPERSISTENCE_UNLOGGED ? "UNLOGGED " : "",
						 schema, quote_identifier(name), table));
		SPI_finish();
		go_with_extension(RelationRelationId,
						  get_relname_relid(name, get_namespace_oid(schema, false)));
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
	state_begin(&owner);
	run_ddl(psprintf("DROP SCHEMA %s", schema));
	state_end(&owner);
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

/* A table and its indexes change files with those of another. */
static void
swap_table(Oid a, Oid b)
{
	Relation	first = relation_open(a, NoLock);
	Relation	second = relation_open(b, NoLock);
	TupleDesc	x = RelationGetDescr(first);
	TupleDesc	y = RelationGetDescr(second);
	List	   *mine = RelationGetIndexList(first);
	List	   *others = RelationGetIndexList(second);
	List	   *pairs = NIL;
	ListCell   *cell;
	AttrMap    *map;

	check_files(first);
	check_files(second);
	if (x->natts != y->natts || list_length(mine) != list_length(others))
		altered(first);
	for (int i = 0; i < x->natts; i++)
	{
		Form_pg_attribute p = TupleDescAttr(x, i);
		Form_pg_attribute q = TupleDescAttr(y, i);

		if (p->atttypid != q->atttypid || p->atttypmod != q->atttypmod ||
			p->attcollation != q->attcollation || p->attisdropped || q->attisdropped ||
			p->atthasmissing || q->atthasmissing || (p->attnotnull && !q->attnotnull) ||
			strcmp(NameStr(p->attname), NameStr(q->attname)) != 0)
			altered(first);
	}
	map = make_attrmap(x->natts);
	for (int i = 0; i < x->natts; i++)
		map->attnums[i] = i + 1;
	foreach(cell, mine)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessExclusiveLock);
		IndexInfo  *info = BuildIndexInfo(index);
		Oid			found = InvalidOid;
		ListCell   *other;

		check_files(index);
		foreach(other, others)
		{
			Relation	candidate = index_open(lfirst_oid(other), AccessExclusiveLock);
			IndexInfo  *theirs = BuildIndexInfo(candidate);

			if (!OidIsValid(found) && candidate->rd_index->indisvalid && index->rd_index->indisvalid &&
				candidate->rd_index->indisprimary == index->rd_index->indisprimary &&
				candidate->rd_index->indimmediate == index->rd_index->indimmediate &&
				memcmp(candidate->rd_indoption, index->rd_indoption,
					   sizeof(int16) * IndexRelationGetNumberOfKeyAttributes(index)) == 0 &&
				CompareIndexInfo(theirs, info, candidate->rd_indcollation, index->rd_indcollation,
								 candidate->rd_opfamily, index->rd_opfamily, map))
				found = lfirst_oid(other);
			index_close(candidate, NoLock);
		}
		index_close(index, NoLock);
		if (!OidIsValid(found))
			altered(first);
		others = list_delete_oid(others, found);
		pairs = lappend_oid(lappend_oid(pairs, lfirst_oid(cell)), found);
	}
	relation_close(first, NoLock);
	relation_close(second, NoLock);
	swap_files(a, b);
	for (int i = 0; i < list_length(pairs); i += 2)
		swap_files(list_nth_oid(pairs, i), list_nth_oid(pairs, i + 1));
	CommandCounterIncrement();
}

/* Locks the tables of both; false: somebody is in the way, and shall not be waited for. */
static bool
lock_tables(const Projection *twin, bool wait, List **pairs)
{
	HandlerRights saved;
	Oid			schema = get_namespace_oid(rebuild_schema(twin->id), false);
	bool		got = true;

	*pairs = NIL;
	apply_begin(twin, &saved);
	for (int i = 0; i < twin->tables.count && got; i++)
	{
		Oid			relid = find_table(text_to_cstring(twin->tables.names[i]));
		Oid			other = get_relname_relid(get_rel_name(relid), schema);

		if (!OidIsValid(other))
			ereport(ERROR,
					(errcode(ERRCODE_VE_PROJECTION_FAILED),
					 errmsg("a table of the rebuild \"%s\" is missing", twin->name),
					 errhint("Cancel the rebuild, and begin it anew.")));
		if (wait)
		{
			LockRelationOid(relid, AccessExclusiveLock);
			LockRelationOid(other, AccessExclusiveLock);
		}
		else
			got = ConditionalLockRelationOid(relid, AccessExclusiveLock) &&
				ConditionalLockRelationOid(other, AccessExclusiveLock);
		*pairs = lappend_oid(lappend_oid(*pairs, relid), other);
	}
	apply_end(&saved);
	return got;
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
	state_begin(&saved);
	if (SPI_execute_with_args("SELECT coalesce(sum(pg_catalog.pg_stat_get_xact_tuples_inserted(t.oid)"
							  " + pg_catalog.pg_stat_get_xact_tuples_updated(t.oid)"
							  " + pg_catalog.pg_stat_get_xact_tuples_deleted(t.oid)), 0)::int8"
							  " FROM (SELECT pg_catalog.to_regclass(n) AS oid FROM unnest($1) AS n (n)) AS t",
							  1, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read what has been written");
	writes = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	state_end(&saved);
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

	state_begin(&saved);
	if (SPI_execute_with_args("UPDATE event_store.projection AS p SET since = $2 WHERE p.id = $1",
							  2, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not note since when a projection is out of service");
	state_end(&saved);
}

/* Was a twin in service before a rebuild? */
static bool
was_in_service(const Projection *twin)
{
	int			len = strlen(twin->name);

	return len > 6 && strcmp(twin->name + len - 6, " (old)") == 0;
}

/* Drops what was in service before a rebuild and is not kept, if nobody can see it. */
void
rebuild_tidy(Projection *twin)
{
	if (was_in_service(twin) && !twin->keep_old &&
		snapshots_have_passed(twin->since, false))
		projection_remove(twin);
}

static void
run(const char *sql, int nargs, Oid *types, Datum *values)
{
	OwnerSwitch saved;

	state_begin(&saved);
	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not execute a statement of projections");
	state_end(&saved);
}

/*
 * The twin, which is locked, and the projection in service change places, if the
 * twin has come as far.  False: it has not, or somebody is in the way.
 */
bool
rebuild_switch(Projection *twin, bool wait)
{
	Projection	served;
	List	   *pairs = NIL;
	int64		applied;
	Oid			types[3] = {INT4OID, INT4OID, TEXTOID};
	Datum		values[3];

	if (!projection_lock(twin->rebuilds, wait))
		return false;
	if (!projection_read_id(twin->rebuilds, &served))
		elog(ERROR, "projection %d does not exist", twin->rebuilds);
	if (served.mode != PROJECTION_INLINE && twin->position < served.position)
	{
		projection_unlock(served.id);
		return false;
	}
	if (!snapshots_have_passed(twin->since != 0 ? twin->since : this_transaction(), wait))
	{
		if (twin->since == 0)
			note_since(twin->id, this_transaction());
		projection_unlock(served.id);
		return false;
	}
	if (served.mode == PROJECTION_INLINE)
	{
		if (settled_own_bound() != 0)
			return false;
		if (!projection_keep_appenders_out(wait))
		{
			projection_unlock(served.id);
			return false;
		}
		(void) refresh_run(twin, PG_INT64_MAX, 0, &applied);
		if (twin->failing || twin->paused)
			return false;
	}
	if (twin->tables.count > 0)
	{
		if (!lock_tables(twin, wait, &pairs))
			return false;
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

		state_begin(&saved);
		run_ddl(psprintf("ALTER SCHEMA %s RENAME TO %s", rebuild_schema(twin->id),
						 rebuild_schema(served.id)));
		state_end(&saved);
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
	if (!projection_read_id(served.id, &served))
		elog(ERROR, "projection %d does not exist", served.id);
	rebuild_tidy(&served);
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
		" rebuilds, keep_old)"
		" SELECT o.name || ' (new)', o.kind, coalesce($2, o.handler), 'async', o.categories, o.types, o.key,"
		" o.on_error, o.max_attempts, o.first_delay, o.delay_factor, o.max_delay, o.batch_events,"
		" o.batch_size, o.refresh_every, o.owner, o.owner_id, o.cluster_id, o.time_zone, o.search_path, o.tables,"
		" o.id, $3"
		" FROM event_store.projection AS o WHERE o.id = $1 RETURNING p.id)"
		" INSERT INTO event_store.projection_checkpoint"
		" (projection_id, version, position, applied, applied_at, rate)"
		" SELECT made.id, 1, $4, 0, pg_catalog.clock_timestamp(), 0 FROM made";
	Oid			types[4] = {INT4OID, TEXTOID, BOOLOID, INT8OID};
	Datum		values[4];
	char		nulls[5] = "    ";
	Projection	projection;
	Projection	twin;
	OwnerSwitch saved;

	projection_guard("event_store.rebuild_projection()");
	if (read_both(fcinfo, &projection, &twin))
	{
		if (!was_in_service(&twin))
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
	state_begin(&saved);
	if (SPI_execute_with_args(sql, 4, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not begin a rebuild");
	state_end(&saved);
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

/* Applies what is left, and changes places, waiting for whoever is in the way. */
Datum
event_store_finish_rebuild(PG_FUNCTION_ARGS)
{
	Projection	projection;
	Projection	twin;
	int64		applied;

	projection_guard("event_store.finish_rebuild()");
	if (!read_both(fcinfo, &projection, &twin))
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_PROJECTION),
				 errmsg("projection \"%s\" is not being rebuilt", projection.name)));
	(void) refresh_run(&twin, PG_INT64_MAX, 0, &applied);
	if (twin.paused || twin.failing || !rebuild_switch(&twin, true))
		ereport(ERROR,
				(errcode(ERRCODE_VE_PROJECTION_FAILED),
				 errmsg("the rebuild of projection \"%s\" cannot be finished", projection.name),
				 errdetail("It is paused, or has failed, or this transaction has appended events."),
				 errhint("See event_store.projections for \"%s\".", twin.name)));
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
	if (!read_both(fcinfo, &projection, &twin) || !was_in_service(&twin) ||
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
