/*
 * publish.c
 *		Messages in the transaction that publishes them.
 *
 * A message is a row of the table that is just written, or a row of outbox_delayed, if
 * it is not to be sent before a time, or, where event_store.outbox_mode says so, a
 * message in the WAL for logical decoding, and no row at all.  All of them are
 * there if the transaction commits, and otherwise not.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/guc.h"
#include "common/ids.h"
#include "outbox/outbox.h"
#include "position/position.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_publish);

/* what decoders tell our messages in the WAL by */
#define WAL_PREFIX		"event_store.outbox"

/* ----------------------------------------------------------------
 * Into the WAL
 * ----------------------------------------------------------------
 */

static void
add_member(StringInfo json, const char *name, text *value)
{
	appendStringInfo(json, ", \"%s\": ", name);
	if (value == NULL)
		appendStringInfoString(json, "null");
	else
		escape_json(json, text_to_cstring(value));
}

static void
add_jsonb(StringInfo json, const char *name, Datum value)
{
	Jsonb	   *jsonb = DatumGetJsonbP(value);

	appendStringInfo(json, ", \"%s\": ", name);
	(void) JsonbToCString(json, &jsonb->root, VARSIZE(jsonb));
}

static void
write_to_wal(const Message *message)
{
	StringInfoData json;
	pg_uuid_t	id = message->id;

	if (!XLogLogicalInfoActive())
		ereport(ERROR,
				(errcode(ERRCODE_VE_NO_LOGICAL_WAL),
				 errmsg("messages of the outbox cannot be written to the WAL"),
				 errdetail("wal_level is not \"logical\", so nobody could decode them."),
				 errhint("Set wal_level to \"logical\", or event_store.outbox_mode to \"table\".")));
	if (!message->has_id)
		ids_derive(&id, message->position, message->published_at, counter_id_key());
	initStringInfo(&json);
	appendStringInfo(&json, "{\"id\": \"%s\"",
					 DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&id))));
	appendStringInfo(&json, ", \"position\": %lld", (long long) message->position);
	add_member(&json, "aggregatetype", message->topic);
	add_member(&json, "aggregateid", message->key);
	add_member(&json, "type", message->type);
	appendStringInfo(&json, ", \"published_at\": \"%s\"",
					 JsonEncodeDateTime(palloc(MAXDATELEN + 3), TimestampTzGetDatum(message->published_at),
										TIMESTAMPTZOID, NULL));
	add_jsonb(&json, "headers", message->headers);
	add_jsonb(&json, "payload", message->payload);
	appendStringInfoChar(&json, '}');
	(void) compat_log_logical_message(WAL_PREFIX, json.data, json.len);
	pfree(json.data);
}

/* ----------------------------------------------------------------
 * Publishing
 * ----------------------------------------------------------------
 */

/* Publishes messages, and draws their positions; returns the first. */
int64
publish_messages(Message *messages, int count)
{
	TimestampTz published_at;
	int64		first = counter_draw(count, &published_at);

	for (int i = 0; i < count; i++)
	{
		messages[i].position = first + i;
		messages[i].published_at = published_at;
	}
	if (guc_outbox_mode == OUTBOX_WAL)
		for (int i = 0; i < count; i++)
			write_to_wal(&messages[i]);
	else
		queue_write(messages, count);
	return first;
}

static text *
name_argument(FunctionCallInfo fcinfo, int n, const char *what)
{
	text	   *name;

	if (PG_ARGISNULL(n))
		return NULL;
	name = PG_GETARG_TEXT_PP(n);
	input_check_name(what, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	return name;
}

/* A message that is to be sent from a time on. */
static int64
publish_later(Message *message, const Interval *after)
{
	Datum		values[OM_DUE];
	bool		nulls[OM_DUE] = {0};
	pg_uuid_t	id = message->id;

	if (guc_outbox_mode == OUTBOX_WAL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("a message that is written to the WAL cannot be delayed"),
				 errhint("Set event_store.outbox_mode to \"table\".")));
	message->position = counter_draw(1, &message->published_at);
	if (!message->has_id)
		ids_derive(&id, message->position, message->published_at, counter_id_key());
	values[OM_POSITION - 1] = Int64GetDatum(message->position);
	values[OM_PUBLISHED_AT - 1] = TimestampTzGetDatum(message->published_at);
	values[OM_SLOT - 1] = Int32GetDatum(queue_slot_of(queue_stream(message->key,
																   message->position)));
	values[OM_ID - 1] = UUIDPGetDatum(&id);
	values[OM_TOPIC - 1] = PointerGetDatum(message->topic);
	values[OM_KEY - 1] = PointerGetDatum(message->key);
	nulls[OM_KEY - 1] = message->key == NULL;
	values[OM_TYPE - 1] = PointerGetDatum(message->type);
	values[OM_HEADERS - 1] = message->headers;
	values[OM_PAYLOAD - 1] = message->payload;
	values[OM_DUE - 1] = TimestampTzGetDatum(ack_lease_end(after));
	rows_insert_small(catalog_outbox()->outbox_delayed, values, nulls);
	CommandCounterIncrement();
	return message->position;
}

Datum
event_store_publish(PG_FUNCTION_ARGS)
{
	Message		message = {0};
	Jsonb	   *headers;

	deliver_guard("event_store.publish()");
	message.topic = name_argument(fcinfo, 0, "topic");
	if (message.topic == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("topic must not be NULL")));
	message.key = name_argument(fcinfo, 1, "key");
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("payload must not be NULL"),
				 errhint("JSON null is a value: 'null'.")));
	message.payload = PointerGetDatum(PG_GETARG_JSONB_P(2));
	if (PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("headers must not be NULL"),
				 errhint("Leave them out, or give '{}'.")));
	headers = PG_GETARG_JSONB_P(3);
	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("headers must be a JSON object")));
	message.headers = PointerGetDatum(headers);
	if (!PG_ARGISNULL(4))
	{
		message.has_id = true;
		message.id = *PG_GETARG_UUID_P(4);
	}
	message.type = name_argument(fcinfo, 6, "type");
	if (message.type == NULL)
		message.type = message.topic;
	if (!PG_ARGISNULL(5))
	{
		const Interval *after = PG_GETARG_INTERVAL_P(5);

		ack_check_interval("deliver_after", after, AT_LEAST_ZERO);
		if (after->time != 0 || after->day != 0 || after->month != 0)
			PG_RETURN_INT64(publish_later(&message, after));
	}
	PG_RETURN_INT64(publish_messages(&message, 1));
}
