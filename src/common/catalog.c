/*
 * catalog.c
 *		The extension's own relations, looked up by name once and then cached.
 *
 * The cache is dropped when PostgreSQL says that one of the relations has
 * changed (DROP EXTENSION, a change of owner, VACUUM FULL …).  What other
 * modules derive from it carries the generation it was made under, and is
 * void under another one.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "common/catalog.h"
#include "common/errors.h"

static Store store;
static bool store_valid = false;
static uint64 generation = 0;

static const char *const name_table_names[NAME_KINDS] = {
	"category", "event_type", "source"
};

/*
 * Not for event_store.event: a new segment invalidates its relcache entry, but
 * changes nothing that is cached here.
 */
static void
relcache_callback(Datum arg, Oid relid)
{
	if (!store_valid)
		return;
	if (relid == InvalidOid || relid == store.stream ||
		relid == store.counter || relid == store.events_view ||
		relid == store.segment_content || relid == store.settings)
		store_valid = false;
	for (int i = 0; i < NAME_KINDS && store_valid; i++)
		if (relid == store.names[i].table)
			store_valid = false;
}

static Oid
relation_or_error(const char *name)
{
	Oid			oid = get_relname_relid(name, store.schema);

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("relation \"event_store.%s\" is missing", name),
				 errhint("Create the extension anew, or restore it.")));
	return oid;
}

static Oid
type_or_error(const char *name)
{
	Oid			oid = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
									  CStringGetDatum(name),
									  ObjectIdGetDatum(store.schema));

	if (!OidIsValid(oid))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("type \"event_store.%s\" is missing", name),
				 errhint("Create the extension anew, or restore it.")));
	return oid;
}

/* The owner of the store: whoever owns event_store.event. */
Oid
catalog_owner(const Store *st)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(st->event));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", st->event);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

bool
catalog_store_exists(void)
{
	Oid			schema = get_namespace_oid("event_store", true);

	return OidIsValid(schema) &&
		OidIsValid(get_relname_relid("position_counter", schema));
}

const Store *
catalog_store(void)
{
	if (likely(store_valid))
		return &store;

	memset(&store, 0, sizeof(store));
	store.schema = get_namespace_oid("event_store", true);
	if (!OidIsValid(store.schema))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("schema \"event_store\" does not exist"),
				 errhint("Run CREATE EXTENSION event_store.")));
	store.event = relation_or_error("event");
	store.events_view = relation_or_error("events");
	store.stream = relation_or_error("stream");
	store.stream_id_index = relation_or_error("stream_pkey");
	store.stream_name_index = relation_or_error("stream_name_key");
	store.segment_content = relation_or_error("segment_content");
	store.content_category_index = relation_or_error("segment_content_category");
	store.content_type_index = relation_or_error("segment_content_type");
	store.content_pair_index = relation_or_error("segment_content_pair");
	store.counter = relation_or_error("position_counter");
	store.settings = relation_or_error("store");
	store.append_result = type_or_error("append_result");
	store.recorded_event = type_or_error("recorded_event");
	for (int i = 0; i < NAME_KINDS; i++)
	{
		const char *name = name_table_names[i];

		store.names[i].table = relation_or_error(name);
		store.names[i].id_index = relation_or_error(psprintf("%s_pkey", name));
		store.names[i].name_index =
			relation_or_error(psprintf("%s_name_key", name));
		store.names[i].id_sequence = relation_or_error(psprintf("%s_id", name));
	}
	store.generation = ++generation;
	store_valid = true;
	return &store;
}

static void
require_view_privilege(const Store *st, AclMode mode)
{
	AclResult	result = pg_class_aclcheck(st->events_view, GetUserId(), mode);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_VIEW, "event_store.events");
}

/* The functions write and read past the executor, so they check as it would. */
void
catalog_require_append(const Store *st)
{
	require_view_privilege(st, ACL_INSERT);
}

void
catalog_require_read(const Store *st)
{
	require_view_privilege(st, ACL_SELECT);
}

void
catalog_require_owner(const Store *st)
{
	if (!has_privs_of_role(GetUserId(), catalog_owner(st)))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, "event_store.event");
}

void
catalog_init(void)
{
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
}
