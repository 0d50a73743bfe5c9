/*
 * define.c
 *		What a trigger captures: its arguments, checked, and what follows from its
 *		table.
 *
 * This is found out once in a backend for each trigger, and again after
 * PostgreSQL has said that the table, or the one that a partition's trigger was
 * cloned from, has changed.  What was known before stays until the
 * transaction ends: a firing further up the stack may still be using it.
 *
 * A partition's trigger is a clone.  Category, key and rights are those of the
 * table that the trigger was made for, so a row has its stream wherever it
 * lies.  That table is not opened for it: who writes to a partition has no lock
 * on the tables above, and taking one here could meet DDL that comes from there.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "capture/capture.h"
#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/names.h"

typedef struct CacheEntry
{
	Oid			trigger;		/* hash key */
	Oid			relid;
	Oid			root;
	bool		valid;
	MemoryContext context;		/* of capture; NULL: none */
	Capture    *capture;
} CacheEntry;

static HTAB *cache = NULL;
static uint64 messages = 0;		/* from the relation cache, so far */

/* entries from which on those of triggers that are gone are looked for */
#define CACHE_SWEEP		1024

static const char *const op_names[CAPTURE_OPS] = {
	"inserted", "updated", "deleted", "truncated"
};

static const char *const metadata_names[CAPTURE_METAS] = {
	"table", "user", "session_user", "application", "transaction"
};

/* ----------------------------------------------------------------
 * Arguments
 * ----------------------------------------------------------------
 */

typedef enum Argument
{
	ARG_CATEGORY,
	ARG_KEY,
	ARG_TYPES,
	ARG_COLUMNS,
	ARG_EXCLUDE,
	ARG_MASK,
	ARG_DATA,
	ARG_UNCHANGED,
	ARG_METADATA,
	ARG_SOURCE,
	ARGUMENTS
} Argument;

static const char *const argument_names[ARGUMENTS] = {
	"category", "key", "types", "columns", "exclude", "mask", "data",
	"unchanged", "metadata", "source"
};

static char *
trimmed(const char *text, int len)
{
	while (len > 0 && *text == ' ')
		text++, len--;
	while (len > 0 && text[len - 1] == ' ')
		len--;
	return pnstrdup(text, len);
}

/* The arguments by their names; NULL where one is not given. */
static void
read_arguments(const Trigger *trigger, char **values)
{
	memset(values, 0, sizeof(char *) * ARGUMENTS);
	for (int i = 0; i < trigger->tgnargs; i++)
	{
		const char *given = trigger->tgargs[i];
		const char *equals = strchr(given, '=');
		char	   *name;
		int			n = 0;

		if (equals == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("argument \"%s\" is not of the form name=value", given)));
		name = trimmed(given, equals - given);
		while (n < ARGUMENTS && strcmp(name, argument_names[n]) != 0)
			n++;
		if (n == ARGUMENTS)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("unknown argument \"%s\"", name),
					 errhint("Known arguments: category, key, types, columns, exclude, mask, data, unchanged, metadata, source.")));
		if (values[n] != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("argument \"%s\" is given more than once", name)));
		values[n] = trimmed(equals + 1, strlen(equals + 1));
	}
	if (values[ARG_COLUMNS] != NULL && values[ARG_EXCLUDE] != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("arguments \"columns\" and \"exclude\" exclude each other")));
}

/* The number of a word among those that an argument can be. */
static int
choice(const char *argument, const char *value, const char *const *words, int nwords)
{
	StringInfoData list;

	for (int i = 0; i < nwords; i++)
		if (strcmp(value, words[i]) == 0)
			return i;
	initStringInfo(&list);
	for (int i = 0; i < nwords; i++)
		appendStringInfo(&list, "%s%s", i == 0 ? "" : ", ", words[i]);
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("\"%s\" is no value of the argument \"%s\"", value, argument),
			 errhint("Known values: %s.", list.data)));
}

/* A list of columns, written as identifiers are in SQL. */
static List *
column_names(Argument argument, const char *value)
{
	List	   *names;

	if (!SplitIdentifierString(pstrdup(value), ',', &names))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("argument \"%s\" is not a list of columns", argument_names[argument]),
				 errdetail("It is \"%s\".", value),
				 errhint("Write the names as in SQL, with commas between them.")));
	return names;
}

static AttrNumber
column_number(TupleDesc desc, Oid relid, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return i + 1;
	}
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("column \"%s\" of table \"%s\" does not exist", name, get_rel_name(relid))));
}

/* Sets the columns' flags; each must be there, and stand in the list once. */
static bool *
column_flags(TupleDesc desc, Oid relid, Argument argument, const char *value)
{
	bool	   *flags = palloc0(sizeof(bool) * (desc->natts + 1));
	ListCell   *cell;

	if (value == NULL)
		return flags;
	foreach(cell, column_names(argument, value))
		flags[column_number(desc, relid, lfirst(cell))] = true;
	return flags;
}

/* ----------------------------------------------------------------
 * What follows from the table
 * ----------------------------------------------------------------
 */

/* The table that a trigger was made for, if it is a partition's clone. */
static Oid
trigger_root(Oid relid, const Trigger *trigger)
{
	Oid			oid = trigger->tgoid;
	Oid			root = relid;
	Relation	pg_trigger;

	if (!trigger->tgisclone)
		return relid;
	pg_trigger = table_open(TriggerRelationId, AccessShareLock);
	while (OidIsValid(oid))
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tuple;

		ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(oid));
		scan = systable_beginscan(pg_trigger, TriggerOidIndexId, true, NULL, 1, &key);
		tuple = systable_getnext(scan);
		oid = InvalidOid;
		if (HeapTupleIsValid(tuple))
		{
			root = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
			oid = ((Form_pg_trigger) GETSTRUCT(tuple))->tgparentid;
		}
		systable_endscan(scan);
	}
	table_close(pg_trigger, AccessShareLock);
	return root;
}

/* The columns of the primary key, or else of the replica identity, by name. */
static List *
key_of_table(Oid relid)
{
	Relation	pg_index = table_open(IndexRelationId, AccessShareLock);
	List	   *names = NIL;
	bool		primary = false;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_index_indrelid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(relid));
	scan = systable_beginscan(pg_index, IndexIndrelidIndexId, true, NULL, 1, &key);
	while (!primary && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);

		if (!index->indislive || !(index->indisprimary || index->indisreplident))
			continue;
		primary = index->indisprimary;
		names = NIL;
		for (int i = 0; i < index->indnkeyatts; i++)
			names = lappend(names, get_attname(relid, index->indkey.values[i], false));
	}
	systable_endscan(scan);
	table_close(pg_index, AccessShareLock);
	return names;
}

/*
 * The table's name as a category: with its schema, unless that is public.  That
 * of temporary tables is pg_temp in each session, whatever its name is.  What
 * would end the category, make it the system's, or could not stand in it, is
 * written as %XX, and so are % and the point within a name.
 */
static char *
category_of_table(Oid relid)
{
	Oid			schema = get_rel_namespace(relid);
	char	   *name = get_rel_name(relid);
	StringInfoData buf;

	initStringInfo(&buf);
	if (schema != PG_PUBLIC_NAMESPACE)
	{
		char	   *schema_name = get_namespace_name_or_temp(schema);

		value_encode_name(&buf, schema_name, strlen(schema_name), "-.$");
		appendStringInfoChar(&buf, '.');
	}
	value_encode_name(&buf, name, strlen(name), "-.$");
	return buf.data;
}

/* The order of keys in a jsonb object: by length first. */
static int
compare_columns(const void *a, const void *b)
{
	const CaptureColumn *x = a;
	const CaptureColumn *y = b;

	if (x->name_len != y->name_len)
		return x->name_len < y->name_len ? -1 : 1;
	return memcmp(x->name, y->name, x->name_len);
}

static void
fill_column(CaptureColumn *column, TupleDesc desc, AttrNumber attnum, MemoryContext context)
{
	Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);

	memset(column, 0, sizeof(CaptureColumn));
	column->attnum = attnum;
	column->name = MemoryContextStrdup(context, NameStr(att->attname));
	column->name_len = strlen(column->name);
	column->type = getBaseType(att->atttypid);
	column->typlen = att->attlen;
	column->typbyval = att->attbyval;
	value_column_init(column, context);
}

/* ----------------------------------------------------------------
 * A trigger as a whole
 * ----------------------------------------------------------------
 */

/* What the trigger must be, as it stands in the catalog. */
static void
check_trigger(const Trigger *trigger)
{
	int16		type = trigger->tgtype;

	if (!TRIGGER_FOR_AFTER(type))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("trigger \"%s\" does not capture changes after they are made", trigger->tgname),
				 errhint("Create it as an AFTER trigger.")));
	if (TRIGGER_FOR_ROW(type))
		return;
	if (((TRIGGER_FOR_INSERT(type) || TRIGGER_FOR_UPDATE(type)) && trigger->tgnewtable == NULL) ||
		((TRIGGER_FOR_DELETE(type) || TRIGGER_FOR_UPDATE(type)) && trigger->tgoldtable == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("trigger \"%s\" does not see the rows that it is to capture", trigger->tgname),
				 errhint("Create it FOR EACH ROW, or with REFERENCING: NEW TABLE for INSERT, OLD TABLE for DELETE, both for UPDATE.")));
}

static void
set_category(Capture *capture, const char *given)
{
	const char *category = given != NULL ? given : category_of_table(capture->root);

	input_check_name("category", category, strlen(category));
	if (given != NULL && strchr(given, '-') != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("category \"%s\" contains a dash", given),
				 errdetail("The category of a stream is what stands before the first dash of its name.")));
	if (given != NULL && given[0] == '$')
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("category \"%s\" is the system's", given)));
	capture->category = pstrdup(category);
	capture->category_len = strlen(category);
}

static void
set_types(Capture *capture, const char *given)
{
	int			n = 0;

	for (int op = 0; op < CAPTURE_OPS; op++)
		capture->types[op] = psprintf("%s.%s", capture->category, op_names[op]);
	while (given != NULL)
	{
		const char *comma = strchr(given, ',');
		char	   *type = trimmed(given, comma == NULL ? strlen(given) : comma - given);

		if (n == CAPTURE_OPS)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("argument \"types\" has too many names"),
					 errhint("It is a list of the types for INSERT, UPDATE, DELETE and TRUNCATE, in this order; an empty place leaves the default.")));
		if (type[0] != '\0')
			capture->types[n] = type;
		n++;
		given = comma == NULL ? NULL : comma + 1;
	}
	for (int op = 0; op < CAPTURE_OPS; op++)
		input_check_name("type", capture->types[op], strlen(capture->types[op]));
}

static void
set_metadata(Capture *capture, const char *given)
{
	while (given != NULL && given[0] != '\0')
	{
		const char *comma = strchr(given, ',');
		char	   *word = trimmed(given, comma == NULL ? strlen(given) : comma - given);

		capture->metadata |= 1 << choice("metadata", word, metadata_names, CAPTURE_METAS);
		given = comma == NULL ? NULL : comma + 1;
	}
	if ((capture->metadata & ~(1 << CAPTURE_META_TABLE)) == 0)
		capture->constant_metadata = value_metadata(capture);
}

static void
set_columns(Capture *capture, const Trigger *trigger, TupleDesc desc, char **given,
			MemoryContext context)
{
	bool	   *only = column_flags(desc, capture->relid, ARG_COLUMNS, given[ARG_COLUMNS]);
	bool	   *exclude = column_flags(desc, capture->relid, ARG_EXCLUDE, given[ARG_EXCLUDE]);
	bool	   *mask = column_flags(desc, capture->relid, ARG_MASK, given[ARG_MASK]);
	List	   *key_names = given[ARG_KEY] != NULL ?
		column_names(ARG_KEY, given[ARG_KEY]) : key_of_table(capture->root);
	bool	   *is_key = palloc0(sizeof(bool) * (desc->natts + 1));
	ListCell   *cell;

	/* TRUNCATE asks for no key */
	if (given[ARG_KEY] == NULL && key_names == NIL &&
		(trigger->tgtype & (TRIGGER_TYPE_INSERT | TRIGGER_TYPE_UPDATE | TRIGGER_TYPE_DELETE)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("table \"%s\" has no primary key", get_rel_name(capture->root)),
				 errdetail("It has no index as replica identity either."),
				 errhint("Name the columns that tell its rows apart: key=column,...")));
	capture->keys = palloc0(sizeof(CaptureColumn) * Max(list_length(key_names), 1));
	foreach(cell, key_names)
	{
		AttrNumber	attnum = column_number(desc, capture->relid, lfirst(cell));
		const char *name = lfirst(cell);

		if (is_key[attnum])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("column \"%s\" stands in the key more than once", name)));
		if (compat_is_virtual(TupleDescAttr(desc, attnum - 1)))
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("column \"%s\" is virtual, so it cannot be part of the key", name)));
		if (exclude[attnum] || mask[attnum])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("column \"%s\" is part of the key, so it cannot be hidden", name),
					 errdetail("Its value stands in the stream's name.")));
		is_key[attnum] = true;
		fill_column(&capture->keys[capture->nkeys++], desc, attnum, context);
	}

	capture->columns = palloc0(sizeof(CaptureColumn) * Max(desc->natts, 1));
	for (int attnum = 1; attnum <= desc->natts; attnum++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);
		CaptureColumn *column = &capture->columns[capture->ncolumns];

		if (att->attisdropped || compat_is_virtual(att) || exclude[attnum] ||
			(given[ARG_COLUMNS] != NULL && !only[attnum]))
			continue;
		fill_column(column, desc, attnum, context);
		column->masked = mask[attnum];
		column->is_key = is_key[attnum];
		capture->ncolumns++;
	}
	qsort(capture->columns, capture->ncolumns, sizeof(CaptureColumn), compare_columns);
}

static Oid
relation_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* Made in the current memory context, which is the one given. */
static Capture *
make_capture(Relation rel, const Trigger *trigger, MemoryContext context)
{
	static const char *const data_words[] = {"changed", "full", "new"};
	static const char *const unchanged_words[] = {"skip", "append"};
	Capture    *capture = palloc0(sizeof(Capture));
	char	   *given[ARGUMENTS];

	check_trigger(trigger);
	read_arguments(trigger, given);
	capture->relid = RelationGetRelid(rel);
	capture->root = trigger_root(capture->relid, trigger);
	capture->owner = relation_owner(capture->root);
	capture->for_rows = TRIGGER_FOR_ROW(trigger->tgtype);
	capture->relation_name =
		quote_qualified_identifier(get_namespace_name_or_temp(RelationGetNamespace(rel)),
								   RelationGetRelationName(rel));
	set_category(capture, given[ARG_CATEGORY]);
	set_types(capture, given[ARG_TYPES]);
	if (given[ARG_DATA] != NULL)
		capture->data = choice("data", given[ARG_DATA], data_words, lengthof(data_words));
	if (given[ARG_UNCHANGED] != NULL)
		capture->keep_unchanged = choice("unchanged", given[ARG_UNCHANGED], unchanged_words,
										 lengthof(unchanged_words)) == 1;
	if (given[ARG_SOURCE] != NULL)
	{
		input_check_name("source", given[ARG_SOURCE], strlen(given[ARG_SOURCE]));
		capture->source = given[ARG_SOURCE];
	}
	set_columns(capture, trigger, RelationGetDescr(rel), given, context);
	set_metadata(capture, given[ARG_METADATA]);
	return capture;
}

static void
relcache_callback(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	CacheEntry *entry;

	messages++;
	hash_seq_init(&status, cache);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (!OidIsValid(relid) || entry->relid == relid || entry->root == relid)
			entry->valid = false;
}

/* A schema's name is part of categories. */
static void
namespace_callback(Datum arg, int cacheid, uint32 hashvalue)
{
	relcache_callback(arg, InvalidOid);
}

static void
make_cache(void)
{
	HASHCTL		control;

	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(CacheEntry);
	control.hcxt = CacheMemoryContext;
	cache = hash_create("event_store captures", 32, &control,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	catalog_on_relcache(relcache_callback);
	CacheRegisterSyscacheCallback(NAMESPACEOID, namespace_callback, (Datum) 0);
}

/* A firing further up the stack may be using it. */
static void
forget(CacheEntry *entry)
{
	if (entry->context != NULL)
		MemoryContextSetParent(entry->context, TopTransactionContext);
	entry->context = NULL;
	entry->capture = NULL;
}

/* Nobody tells which triggers are gone. */
static void
sweep(void)
{
	HASH_SEQ_STATUS status;
	CacheEntry *entry;

	hash_seq_init(&status, cache);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (!entry->valid)
		{
			forget(entry);
			(void) hash_search(cache, &entry->trigger, HASH_REMOVE, NULL);
		}
}

/*
 * What a trigger captures.  The result stays as it is until the transaction's
 * end, whatever happens to the table.
 */
Capture *
define_capture(Relation rel, const Trigger *trigger)
{
	CacheEntry *entry;
	bool		found;
	MemoryContext context;
	MemoryContext saved;
	Capture    *capture;
	uint64		seen = messages;
	Oid			oid = trigger->tgoid;

	if (unlikely(cache == NULL))
		make_cache();
	entry = hash_search(cache, &oid, HASH_FIND, NULL);
	if (likely(entry != NULL && entry->valid))
		return entry->capture;

	context = AllocSetContextCreate(CurrentMemoryContext, "event_store capture",
									ALLOCSET_SMALL_SIZES);
	saved = MemoryContextSwitchTo(context);
	capture = make_capture(rel, trigger, context);
	MemoryContextSwitchTo(saved);

	if (hash_get_num_entries(cache) >= CACHE_SWEEP)
		sweep();
	entry = hash_search(cache, &oid, HASH_ENTER, &found);
	if (found)
		forget(entry);
	entry->relid = capture->relid;
	entry->root = capture->root;
	entry->capture = capture;
	entry->context = context;
	/* a message that came in meanwhile asks for one more round, next time */
	entry->valid = seen == messages;
	MemoryContextSetParent(context, CacheMemoryContext);
	return capture;
}

/*
 * The rights to append are the table's owner's, as the rights of a foreign
 * key's checks are.  INSERT into the view is what append() asks of its caller.
 */
bool
define_may_append(const Capture *capture)
{
	return pg_class_aclcheck(catalog_store()->events_view, capture->owner,
							 ACL_INSERT) == ACLCHECK_OK;
}
