/*
 * catalog.c
 *		The extension's own relations, looked up by name once and then cached.
 *
 * The cache is looked up anew when PostgreSQL says that one of the relations
 * has changed (DROP EXTENSION, a change of owner, VACUUM …).  What other
 * modules derive from it carries the generation it was made under, and is
 * void under another one.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/relation.h"
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

const Store *catalog_known = NULL;

static Store store;
static uint64 generation = 0;
static uint64 messages = 0;		/* from the relation cache, so far */

static const char *const name_table_names[NAME_KINDS] = {
	"category", "event_type", "source"
};

/*
 * Any message voids the store: looking it up anew is cheap, and most often
 * finds the same, which keeps the generation, and so the other caches.
 */
static void
relcache_callback(Datum arg, Oid relid)
{
	if (catalog_message_is_news(relid))
		messages++;
	if (catalog_known == NULL)
		return;
	if (relid == InvalidOid || relid == store.event || relid == store.stream ||
		relid == store.counter || relid == store.events_view ||
		relid == store.segment_content || relid == store.settings ||
		relid == store.snapshot || relid == store.snapshot_policy ||
		relid == store.subscriptions_view || relid == store.projections_view ||
		relid == store.inbox_window || relid == store.inbox_turn ||
		relid == store.append_result_rel || relid == store.recorded_event_rel)
		catalog_known = NULL;
	for (int i = 0; i < NAME_KINDS && catalog_known != NULL; i++)
		if (relid == store.names[i].table)
			catalog_known = NULL;
}

/* ----------------------------------------------------------------
 * Shapes: the columns that the C code relies on.  The owner of the store may
 * alter its tables; what does not fit is refused before it is read wrongly.
 * ----------------------------------------------------------------
 */

#define SHAPE_MAX	30

static const Oid shapes[][SHAPE_MAX] = {
	[SHAPE_EVENT] = {INT8OID, INT8OID, TIMESTAMPTZOID, INT4OID, INT4OID, INT4OID,
		JSONBOID, JSONBOID, UUIDOID, TEXTOID, UUIDOID, INT4OID, INT4OID, TIMESTAMPTZOID},
	[SHAPE_STREAM] = {INT8OID, INT4OID, TIMESTAMPTZOID, TEXTOID, INT8ARRAYOID},
	[SHAPE_CONTENT] = {INT4OID, INT4OID, INT8OID},
	[SHAPE_NAME] = {INT4OID, TEXTOID},
	[SHAPE_COUNTER] = {INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, LSNOID, INT8OID},
	[SHAPE_VIEW] = {INT8OID, TEXTOID, INT4OID, TEXTOID, INT4OID, UUIDOID, TIMESTAMPTZOID,
		TIMESTAMPTZOID, TEXTOID, TEXTOID, UUIDOID, JSONBOID, JSONBOID, TEXTOID},
	[SHAPE_APPEND_RESULT] = {TEXTOID, INT4OID, INT4OID, INT8OID, INT8OID, BOOLOID},
	[SHAPE_RECORDED_EVENT] = {INT8OID, TEXTOID, INT4OID, TEXTOID, INT4OID, UUIDOID,
		TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, TEXTOID, UUIDOID, JSONBOID, JSONBOID},
	[SHAPE_PROJECTION] = {INT4OID, INT8OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
		TEXTARRAYOID, TEXTARRAYOID, TEXTOID, OIDOID, INT8OID, TEXTOID, TEXTOID, BOOLOID, INT4OID,
		INT4OID, INTERVALOID, TEXTOID, INT4OID, INTERVALOID, FLOAT8OID, INTERVALOID, TEXTARRAYOID,
		INT4OID, BOOLOID, INT8OID, INT8OID, TIMESTAMPTZOID},
	[SHAPE_CHECKPOINT] = {INT4OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, FLOAT8OID, TIMESTAMPTZOID},
	[SHAPE_CURSOR] = {INT4OID, INT8OID, INT8OID, INT8ARRAYOID, INT8OID, INT8OID, INT8OID,
		TIMESTAMPTZOID, FLOAT8OID, INT4OID},
	[SHAPE_SNAPSHOT] = {INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		INT4OID, INT4OID, TEXTOID, JSONBOID},
	[SHAPE_SNAPSHOT_POLICY] = {TEXTOID, INT4OID, INT4OID, INT4OID, INTERVALOID,
		TEXTARRAYOID, TIMESTAMPTZOID},
	[SHAPE_INBOX_WINDOW] = {INT4OID, TEXTOID, INTERVALOID, INT8OID, INT4OID},
	[SHAPE_INBOX_TURN] = {INT4OID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID,
		BOOLOID, BOOLOID},
	[SHAPE_INBOX_PART] = {UUIDOID, UUIDOID, JSONBOID, BOOLOID},
	[SHAPE_OUTBOX] = {INT8OID, TIMESTAMPTZOID, INT4OID, UUIDOID, TEXTOID, TEXTOID, TEXTOID,
		JSONBOID, JSONBOID},
	[SHAPE_OUTBOX_DELAYED] = {INT8OID, TIMESTAMPTZOID, INT4OID, UUIDOID, TEXTOID, TEXTOID, TEXTOID,
		JSONBOID, JSONBOID, TIMESTAMPTZOID},
	[SHAPE_OUTBOX_SLOT] = {INT8OID, INT8OID, INT8OID, INT8OID, TIMESTAMPTZOID, FLOAT8OID,
		TIMESTAMPTZOID, TIMESTAMPTZOID, INTERVALOID, INT4OID, TEXTOID, INT8ARRAYOID},
};

bool
catalog_has_shape(TupleDesc desc, CatalogShape shape)
{
	int			natts = 0;

	while (natts < SHAPE_MAX && OidIsValid(shapes[shape][natts]))
		natts++;
	if (desc->natts != natts)
		return false;
	for (int i = 0; i < natts; i++)
		if (TupleDescAttr(desc, i)->atttypid != shapes[shape][i] ||
			TupleDescAttr(desc, i)->attisdropped)
			return false;
	return true;
}

static void
check_shape(Oid relid, CatalogShape shape)
{
	Relation	rel = relation_open(relid, AccessShareLock);

	if (!catalog_has_shape(RelationGetDescr(rel), shape))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("the columns of \"event_store.%s\" are not as the extension made them",
						RelationGetRelationName(rel)),
				 errhint("Undo what was altered.")));
	relation_close(rel, AccessShareLock);
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

/* A relation of the extension's that is not among those of the store. */
Oid
catalog_relation(const char *name)
{
	(void) catalog_store();
	return relation_or_error(name);
}

static void
look_up_log(void)
{
	store.event = relation_or_error("event");
	store.events_view = relation_or_error("events");
	store.stream = relation_or_error("stream");
	store.stream_id_index = relation_or_error("stream_pkey");
	store.stream_name_index = relation_or_error("stream_name_key");
	store.stream_hash_index = relation_or_error("stream_name_hash");
	store.segment_content = relation_or_error("segment_content");
	store.content_category_index = relation_or_error("segment_content_category");
	store.content_type_index = relation_or_error("segment_content_type");
	store.content_pair_index = relation_or_error("segment_content_pair");
	store.counter = relation_or_error("position_counter");
	store.settings = relation_or_error("store");
	store.subscriptions_view = relation_or_error("subscriptions");
	store.projections_view = relation_or_error("projections");
	store.projection = relation_or_error("projection");
	store.outbox_route = relation_or_error("outbox_route");
	store.append_result = type_or_error("append_result");
	store.recorded_event = type_or_error("recorded_event");
	store.append_result_rel = relation_or_error("append_result");
	store.recorded_event_rel = relation_or_error("recorded_event");
	check_shape(store.event, SHAPE_EVENT);
	check_shape(store.events_view, SHAPE_VIEW);
	check_shape(store.stream, SHAPE_STREAM);
	check_shape(store.segment_content, SHAPE_CONTENT);
	check_shape(store.counter, SHAPE_COUNTER);
	check_shape(store.projection, SHAPE_PROJECTION);
	check_shape(store.append_result_rel, SHAPE_APPEND_RESULT);
	check_shape(store.recorded_event_rel, SHAPE_RECORDED_EVENT);
	for (int i = 0; i < NAME_KINDS; i++)
	{
		const char *name = name_table_names[i];

		store.names[i].table = relation_or_error(name);
		store.names[i].id_index = relation_or_error(psprintf("%s_pkey", name));
		store.names[i].name_index =
			relation_or_error(psprintf("%s_name_key", name));
		store.names[i].id_sequence = relation_or_error(psprintf("%s_id", name));
		check_shape(store.names[i].table, SHAPE_NAME);
	}
}

static void
look_up_consumers(void)
{
	store.subscription_cursor = relation_or_error("subscription_cursor");
	store.subscription_failure = relation_or_error("subscription_failure");
	store.subscription_failure_index = relation_or_error("subscription_failure_pkey");
	store.projection_checkpoint = relation_or_error("projection_checkpoint");
	check_shape(store.subscription_cursor, SHAPE_CURSOR);
	check_shape(store.projection_checkpoint, SHAPE_CHECKPOINT);
}

static void
look_up_snapshots(void)
{
	store.snapshot = relation_or_error("snapshot");
	store.snapshot_index = relation_or_error("snapshot_pkey");
	store.snapshot_id = relation_or_error("snapshot_id");
	store.snapshot_policy = relation_or_error("snapshot_policy");
	store.snapshot_policy_index = relation_or_error("snapshot_policy_pkey");
	check_shape(store.snapshot, SHAPE_SNAPSHOT);
	check_shape(store.snapshot_policy, SHAPE_SNAPSHOT_POLICY);
}

static void
look_up_inbox(void)
{
	store.inbox_window = relation_or_error("inbox_window");
	store.inbox_window_index = relation_or_error("inbox_window_pkey");
	store.inbox_turn = relation_or_error("inbox_turn");
	store.inbox_turn_index = relation_or_error("inbox_turn_pkey");
	check_shape(store.inbox_window, SHAPE_INBOX_WINDOW);
	check_shape(store.inbox_turn, SHAPE_INBOX_TURN);
}

static void
look_up_outbox(void)
{
	for (int i = 0; i < OUTBOX_TABLES; i++)
	{
		store.outbox[i] = relation_or_error(psprintf("outbox_%d", i));
		store.outbox_index[i] = relation_or_error(psprintf("outbox_%d_slot_position", i));
		check_shape(store.outbox[i], SHAPE_OUTBOX);
	}
	for (int i = 0; i < OUTBOX_SLOT_TABLES; i++)
	{
		store.outbox_slot[i] = relation_or_error(psprintf("outbox_slot_%d", i));
		store.outbox_slot_index[i] = relation_or_error(psprintf("outbox_slot_%d_version", i));
		check_shape(store.outbox_slot[i], SHAPE_OUTBOX_SLOT);
	}
	store.outbox_current = relation_or_error("outbox_current");
	store.outbox_slot_current = relation_or_error("outbox_slot_current");
	store.outbox_delayed = relation_or_error("outbox_delayed");
	store.outbox_delayed_index = relation_or_error("outbox_delayed_due");
	store.outbox_policy = relation_or_error("outbox_policy");
	check_shape(store.outbox_delayed, SHAPE_OUTBOX_DELAYED);
}

/*
 * What lies beside the log is looked up when it is first asked for: a session that
 * is made for one append shall not pay for it.
 */
typedef enum StorePart
{
	PART_CONSUMERS,
	PART_SNAPSHOTS,
	PART_INBOX,
	PART_OUTBOX,
	PARTS
} StorePart;

static void (*const look_up_part[PARTS]) (void) = {
	look_up_consumers, look_up_snapshots, look_up_inbox, look_up_outbox
};

static bool part_wanted[PARTS];

static void
look_up_store(void)
{
	memset(&store, 0, sizeof(store));
	store.schema = get_namespace_oid("event_store", true);
	if (!OidIsValid(store.schema))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("schema \"event_store\" does not exist"),
				 errhint("Run CREATE EXTENSION event_store.")));
	look_up_log();
	for (int i = 0; i < PARTS; i++)
		if (part_wanted[i])
			look_up_part[i] ();
}

/* What catalog_store() does where the store is not known. */
const Store *
catalog_look_up(void)
{
	while (catalog_known == NULL)
	{
		Store		before = store;
		uint64		seen = messages;

		look_up_store();
		store.generation = before.generation;
		if (memcmp(&store, &before, sizeof(Store)) != 0)
			store.generation = ++generation;
		/* a message that came in meanwhile asks for one more round */
		if (seen == messages)
			catalog_known = &store;
	}
	return catalog_known;
}

/* The generation stays: nothing was derived from a part before it was looked up. */
static const Store *
with_part(StorePart part)
{
	(void) catalog_store();
	if (unlikely(!part_wanted[part]))
	{
		look_up_part[part] ();
		part_wanted[part] = true;
	}
	return catalog_store();
}

const Store *
catalog_consumers(void)
{
	return with_part(PART_CONSUMERS);
}

const Store *
catalog_snapshots(void)
{
	return with_part(PART_SNAPSHOTS);
}

const Store *
catalog_inbox(void)
{
	return with_part(PART_INBOX);
}

const Store *
catalog_outbox(void)
{
	return with_part(PART_OUTBOX);
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

/*
 * Who sees how far the store, its subscriptions and projections have come needs no
 * right to read events for that: who may read one of the views
 * event_store.subscriptions and projections, or events.
 */
void
catalog_require_sight(const Store *st)
{
	if (pg_class_aclcheck(st->subscriptions_view, GetUserId(), ACL_SELECT) != ACLCHECK_OK &&
		pg_class_aclcheck(st->projections_view, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		catalog_require_read(st);
}

void
catalog_require_owner(const Store *st)
{
	if (!has_privs_of_role(GetUserId(), catalog_owner(st)))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, "event_store.event");
}

/*
 * Messages about relations.  A backend has room for ten who want to hear of them,
 * and other extensions want to, too: the extension registers once, for all of its
 * folders.
 */
#define MAX_LISTENERS	16

static RelcacheCallbackFunction listeners[MAX_LISTENERS];
static int	nlisteners = 0;

static void
tell_listeners(Datum arg, Oid relid)
{
	for (int i = 0; i < nlisteners; i++)
		listeners[i] (arg, relid);
}

void
catalog_on_relcache(RelcacheCallbackFunction listener)
{
	if (nlisteners == MAX_LISTENERS)
		elog(ERROR, "too many listeners to the relation cache");
	listeners[nlisteners++] = listener;
}

void
catalog_init(void)
{
	catalog_on_relcache(relcache_callback);
	CacheRegisterRelcacheCallback(tell_listeners, (Datum) 0);
}
