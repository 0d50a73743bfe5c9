/*
 * define.c
 *		Which translations there are.
 *
 * Rows of event_store.translation, which are the owner's of the store alone, since
 * their expressions have his rights.  Rules are compiled before they are stored.
 * Whoever changes a row tells all backends to forget what they have of the table.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"

#include "common/catalog.h"
#include "common/errors.h"
#include "common/plans.h"
#include "stream/stream.h"
#include "subscription/subscription.h"
#include "translation/translation.h"

PG_FUNCTION_INFO_V1(event_store_create_translation);
PG_FUNCTION_INFO_V1(event_store_alter_translation);
PG_FUNCTION_INFO_V1(event_store_drop_translation);

static Statement create = {
	"INSERT INTO event_store.translation (name, rules) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
	2, {TEXTOID, JSONBOID}
};

static Statement alter = {
	"UPDATE event_store.translation AS t SET rules = $2, altered_at = pg_catalog.now() WHERE t.name = $1",
	2, {TEXTOID, JSONBOID}
};

static Statement drop = {
	"DELETE FROM event_store.translation AS t WHERE t.name = $1",
	1, {TEXTOID}
};

/* Runs the statement for the arguments name and, of two, rules; whether it did anything. */
static bool
change(FunctionCallInfo fcinfo, const char *what, Statement *statement)
{
	Datum		values[2];
	OwnerSwitch saved;
	text	   *name;
	uint64		changed;

	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	catalog_require_owner(catalog_store());
	for (int i = 0; i < statement->nargs; i++)
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("%s must not be NULL", i == 0 ? "name" : "rules")));
	name = PG_GETARG_TEXT_PP(0);
	input_check_name("name", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	values[0] = PointerGetDatum(name);
	owner_begin(&saved);
	if (statement->nargs > 1)
	{
		values[1] = JsonbPGetDatum(PG_GETARG_JSONB_P(1));
		translation_check(DatumGetJsonbP(values[1]));
	}
	changed = plans_execute(statement, values, NULL);
	owner_end(&saved);
	if (changed > 0)
		CacheInvalidateRelcacheByRelid(get_relname_relid("translation", catalog_store()->schema));
	return changed > 0;
}

static void
no_such(FunctionCallInfo fcinfo)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_NO_TRANSLATION),
			 errmsg("there is no translation \"%s\"", text_to_cstring(PG_GETARG_TEXT_PP(0)))));
}

Datum
event_store_create_translation(PG_FUNCTION_ARGS)
{
	if (!change(fcinfo, "event_store.create_translation()", &create))
		ereport(ERROR,
				(errcode(ERRCODE_VE_TRANSLATION_EXISTS),
				 errmsg("there is a translation \"%s\" already",
						text_to_cstring(PG_GETARG_TEXT_PP(0)))));
	PG_RETURN_VOID();
}

Datum
event_store_alter_translation(PG_FUNCTION_ARGS)
{
	if (!change(fcinfo, "event_store.alter_translation()", &alter))
		no_such(fcinfo);
	PG_RETURN_VOID();
}

Datum
event_store_drop_translation(PG_FUNCTION_ARGS)
{
	if (!change(fcinfo, "event_store.drop_translation()", &drop))
		no_such(fcinfo);
	PG_RETURN_VOID();
}
