/*
 * once.c
 *		What is done once: commands whose result is kept, and appends by an
 *		idempotency key.
 *
 * Who comes first writes the entry, does it, and adds the result to the entry,
 * all in his transaction.  Others wait for its end: then they find the result,
 * or, if it was rolled back, it is their turn.  The entry has a fingerprint of
 * what was asked for, so that a key cannot stand for two requests.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type_d.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

#include "common/compat.h"
#include "common/errors.h"
#include "inbox/inbox.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_once);
PG_FUNCTION_INFO_V1(event_store_begin_once);
PG_FUNCTION_INFO_V1(event_store_finish_once);
PG_FUNCTION_INFO_V1(event_store_append_once);
PG_FUNCTION_INFO_V1(event_store_append_events_once);

/* the consumer that keys of appends belong to, and whose window they have */
#define APPENDS	"$append"

/* something that is to be done once */
typedef struct Doing
{
	const char *consumer;
	int			consumer_len;
	EntryKey	key;
	const char *what;			/* kind and name of the key, for messages */
	text	   *name;
} Doing;

static void
set_doing(Doing *doing, EntryKind kind, const char *consumer, int consumer_len,
		  const char *what, text *name)
{
	doing->consumer = consumer;
	doing->consumer_len = consumer_len;
	doing->what = what;
	doing->name = name;
	entry_key(&doing->key, kind, consumer, consumer_len,
			  VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
}

/* Is it the first time?  If not, *found has the result. */
static bool
begin_doing(const Doing *doing, const pg_uuid_t *fingerprint, Entry *found)
{
	Inbox		inbox;
	bool		first;

	inbox_open(&inbox, doing->consumer, doing->consumer_len);
	first = entry_claim(&inbox, &doing->key, fingerprint, found);
	inbox_close(&inbox);
	if (first)
		return true;
	if (found->ours && !found->finished)
		ereport(ERROR,
				(errcode(ERRCODE_VE_NOT_BEGUN),
				 errmsg("what %s \"%s\" stands for is being done by this transaction",
						doing->what, text_to_cstring(doing->name))));
	if (!found->has_fingerprint ||
		memcmp(&found->fingerprint, fingerprint, sizeof(pg_uuid_t)) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_KEY_REUSED),
				 errmsg("%s \"%s\" was used for another request", doing->what,
						text_to_cstring(doing->name)),
				 errhint("Repeat the very same call, or take another key.")));
	return false;
}

static bool
finish_doing(const Doing *doing, Datum result, bool isnull)
{
	Inbox		inbox;
	bool		finished;

	inbox_open(&inbox, doing->consumer, doing->consumer_len);
	finished = entry_finish(&inbox, &doing->key, result, isnull);
	inbox_close(&inbox);
	return finished;
}

/* ----------------------------------------------------------------
 * Commands
 * ----------------------------------------------------------------
 */

static void
set_command(Doing *doing, FunctionCallInfo fcinfo)
{
	text	   *consumer = entry_consumer(fcinfo, 0);

	set_doing(doing, ENTRY_ONCE, VARDATA_ANY(consumer), VARSIZE_ANY_EXHDR(consumer),
			  "key", entry_id(fcinfo, 1, "key"));
}

/* SQL NULL differs from anything else. */
static void
fingerprint_request(pg_uuid_t *fingerprint, const text *command, const Jsonb *request)
{
	entry_digest(fingerprint, 3, command == NULL ? NULL : VARDATA_ANY(command),
				 command == NULL ? 0 : (int) VARSIZE_ANY_EXHDR(command),
				 request == NULL ? "n" : "v", 1,
				 request == NULL ? NULL : VARDATA(request),
				 request == NULL ? 0 : (int) VARSIZE(request) - VARHDRSZ);
}

/* A value of any type as jsonb, by to_jsonb(). */
static Datum
as_jsonb(Datum value, Oid type)
{
	FmgrInfo	function;
	Const	   *argument;
	int16		len;
	bool		byval;

	if (type == JSONBOID)
		return PointerGetDatum(PG_DETOAST_DATUM_COPY(value));
	get_typlenbyval(type, &len, &byval);
	argument = makeConst(type, -1, InvalidOid, len, value, false, byval);
	fmgr_info(F_TO_JSONB, &function);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID, list_make1(argument),
											 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL),
					   &function);
	return FunctionCall1(&function, value);
}

/*
 * Runs a command as the caller, and returns its result in the caller's memory:
 * the value of the one row's one column, or the row as an object.
 */
static Datum
run_command(const char *command, Datum args, bool args_null, bool *isnull)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid			types[1] = {JSONBOID};
	Datum		values[1] = {args};
	char		nulls[1] = {args_null ? 'n' : ' '};
	Datum		result = (Datum) 0;
	int			code;

	*isnull = true;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	/* without a limit, which would hold for the statements before the last, too */
	code = SPI_execute_with_args(command, 1, types, values, nulls, false, 0);
	if (code < 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("command cannot be executed: %s", SPI_result_code_string(code))));
	if (SPI_tuptable != NULL && SPI_processed > 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("command returns more than one row"),
				 errhint("Aggregate them, by jsonb_agg() for instance.")));
	if (SPI_tuptable != NULL && SPI_processed == 1)
	{
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext spi;
		Datum		value;

		if (desc->natts == 1)
		{
			Oid			type = SPI_gettypeid(desc, 1);

			value = SPI_getbinval(SPI_tuptable->vals[0], desc, 1, isnull);
			/* a function that returns nothing has no result */
			if (type == VOIDOID)
				*isnull = true;
			if (!*isnull)
				value = as_jsonb(value, type);
		}
		else
		{
			*isnull = false;
			value = as_jsonb(heap_copy_tuple_as_datum(SPI_tuptable->vals[0], BlessTupleDesc(desc)),
							 RECORDOID);
		}
		spi = MemoryContextSwitchTo(caller);
		if (!*isnull)
			result = datumCopy(value, false, -1);
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return result;
}

Datum
event_store_once(PG_FUNCTION_ARGS)
{
	Doing		doing;
	Entry		found;
	pg_uuid_t	fingerprint;
	text	   *command;
	Jsonb	   *args = NULL;
	Datum		result;
	bool		isnull;

	entry_guard("event_store.once()");
	set_command(&doing, fcinfo);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("command must not be NULL")));
	command = PG_GETARG_TEXT_PP(2);
	if (!PG_ARGISNULL(3))
		args = PG_GETARG_JSONB_P(3);
	fingerprint_request(&fingerprint, command, args);
	if (!begin_doing(&doing, &fingerprint, &found))
	{
		if (found.isnull)
			PG_RETURN_NULL();
		PG_RETURN_DATUM(found.result);
	}
	result = run_command(text_to_cstring(command), PointerGetDatum(args), args == NULL, &isnull);
	if (!finish_doing(&doing, result, isnull))
		ereport(ERROR,
				(errcode(ERRCODE_VE_NOT_BEGUN),
				 errmsg("the command of key \"%s\" has removed its entry",
						text_to_cstring(doing.name))));
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}

Datum
event_store_begin_once(PG_FUNCTION_ARGS)
{
	Doing		doing;
	Entry		found;
	pg_uuid_t	fingerprint;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {false, true};
	bool		first;

	entry_guard("event_store.begin_once()");
	set_command(&doing, fcinfo);
	fingerprint_request(&fingerprint, NULL, PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2));
	first = begin_doing(&doing, &fingerprint, &found);
	values[0] = BoolGetDatum(first);
	if (!first)
	{
		values[1] = found.result;
		nulls[1] = found.isnull;
	}
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

Datum
event_store_finish_once(PG_FUNCTION_ARGS)
{
	Doing		doing;

	entry_guard("event_store.finish_once()");
	set_command(&doing, fcinfo);
	if (!finish_doing(&doing, PG_ARGISNULL(2) ? (Datum) 0 : PointerGetDatum(PG_GETARG_JSONB_P(2)),
					  PG_ARGISNULL(2)))
		ereport(ERROR,
				(errcode(ERRCODE_VE_NOT_BEGUN),
				 errmsg("key \"%s\" has not been begun by this transaction",
						text_to_cstring(doing.name)),
				 errhint("Call begin_once() first, and finish_once() only if it has said that this is the first time.")));
	PG_RETURN_VOID();
}

/* ----------------------------------------------------------------
 * Appends
 * ----------------------------------------------------------------
 */

/*
 * What an append must have in common with the first one: what a duplicate by
 * event id must, and the stream.
 */
static void
fingerprint_append(pg_uuid_t *fingerprint, const AppendBatch *append)
{
	pg_uuid_t  *events = palloc(sizeof(pg_uuid_t) * Max(append->nevents, 1));

	for (int i = 0; i < append->nevents; i++)
	{
		const EventInput *event = &append->events[i];
		const Jsonb *data = DatumGetJsonbP(event->data);
		uint32		schema_version = pg_hton32((uint32) event->schema_version);

		entry_digest(&events[i], 3, event->type, event->type_len,
					 &schema_version, (int) sizeof(schema_version),
					 VARDATA(data), (int) VARSIZE(data) - VARHDRSZ);
	}
	entry_digest(fingerprint, 2, append->streams[0].name, append->streams[0].len,
				 events, (int) sizeof(pg_uuid_t) * append->nevents);
	pfree(events);
}

static int64
result_number(Jsonb *result, int n)
{
	JsonbValue *value = getIthJsonbValueFromContainer(&result->root, n);

	if (value == NULL || value->type != jbvNumeric)
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("the result kept for an append is damaged")));
	return DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(value->val.numeric)));
}

/*
 * Appends a batch to one stream, unless its key says that it was appended; the
 * results stand in it after the call.
 */
static Datum
append_by_key(text *key, AppendBatch *append)
{
	StreamInput *stream = &append->streams[0];
	Doing		doing;
	Entry		found;
	pg_uuid_t	fingerprint;

	set_doing(&doing, ENTRY_APPEND, APPENDS, strlen(APPENDS), "idempotency key", key);
	fingerprint_append(&fingerprint, append);
	if (begin_doing(&doing, &fingerprint, &found))
	{
		Datum		result;

		append_write(append);
		result = DirectFunctionCall1(jsonb_in,
									 CStringGetDatum(psprintf("[%lld, %lld, %lld, %lld]",
															  (long long) stream->first_version,
															  (long long) stream->last_version,
															  (long long) stream->first_position,
															  (long long) stream->last_position)));
		(void) finish_doing(&doing, result, false);
	}
	else
	{
		Jsonb	   *result;

		if (found.isnull)
			ereport(ERROR,
					(errcode(ERRCODE_VE_STORE_DAMAGED),
					 errmsg("no result is kept for an append")));
		result = DatumGetJsonbP(found.result);
		stream->first_version = (int32) result_number(result, 0);
		stream->last_version = (int32) result_number(result, 1);
		stream->first_position = result_number(result, 2);
		stream->last_position = result_number(result, 3);
		stream->duplicate = true;
	}
	return append_result_datum(stream);
}

static void
check_not_empty(const AppendBatch *append)
{
	if (append->nevents == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("events must not be empty")));
}

Datum
event_store_append_once(PG_FUNCTION_ARGS)
{
	AppendBatch append = {0};
	StreamInput stream = {0};
	EventInput	event = {0};
	text	   *key;

	append_guard("event_store.append_once()");
	key = entry_id(fcinfo, 0, "idempotency_key");
	append.nstreams = append.nevents = 1;
	append.streams = &stream;
	append.events = &event;
	append_read_arguments(fcinfo, 1, false, &stream, &event);
	PG_RETURN_DATUM(append_by_key(key, &append));
}

Datum
event_store_append_events_once(PG_FUNCTION_ARGS)
{
	AppendBatch append = {0};
	text	   *key;

	append_guard("event_store.append_events_once()");
	key = entry_id(fcinfo, 0, "idempotency_key");
	input_batch_of_stream(&append, PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1),
						  PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2),
						  append_expected_version(fcinfo, 3));
	check_not_empty(&append);
	PG_RETURN_DATUM(append_by_key(key, &append));
}
