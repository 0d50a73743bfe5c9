/*
 * lookup.c
 *		What there is to know about streams: version, information, listing.
 *
 * All by the statement's snapshot, so that a transaction sees its own appends.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/names.h"
#include "common/rows.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_stream_version);
PG_FUNCTION_INFO_V1(event_store_stream_info);
PG_FUNCTION_INFO_V1(event_store_streams);

/* columns of stream_info() and streams() */
enum
{
	SI_STREAM,
	SI_CATEGORY,
	SI_VERSION,
	SI_CREATED_AT,
	SI_FIRST_POSITION,
	SI_LAST_POSITION,
	SI_LAST_RECORDED_AT,
	SI_NATTS
};

/* an event at the end of a stream */
typedef struct Edge
{
	int32		version;
	int64		position;
	TimestampTz recorded_at;
} Edge;

/*
 * The first or last event of a stream in those of its segments.  The snapshot
 * may know none of the later ones: a stream's row is read as of now in
 * REPEATABLE READ.
 */
static bool
find_edge(int64 stream_id, const int64 *segments, int nsegments,
		  ScanDirection direction, Snapshot snapshot, Edge *edge)
{
	bool		forward = ScanDirectionIsForward(direction);
	bool		found = false;

	for (int pair = forward ? 0 : nsegments - 2;
		 !found && pair >= 0 && pair < nsegments;
		 pair += forward ? 2 : -2)
	{
		int			low = segment_index_for(segments[pair]);
		int			high = segment_index_for(segments[pair + 1]);

		high = Min(high, segment_count() - 1);
		for (int i = forward ? low : high; !found && i >= low && i <= high; i += forward ? 1 : -1)
		{
			ScanKeyData key;
			Probe		probe;
			bool		isnull;

			key_int64(&key, 1, BTEqualStrategyNumber, stream_id);
			probe_open_segment(&probe, segment_at(i).relid, INDEX_STREAM,
							   AccessShareLock, snapshot, &key, 1);
			found = probe_next(&probe, direction);
			if (found)
			{
				edge->version = probe_int32(&probe, EV_VERSION);
				edge->position = probe_int64(&probe, EV_POSITION);
				edge->recorded_at =
					DatumGetTimestampTz(probe_value(&probe, EV_RECORDED_AT, &isnull));
			}
			probe_close(&probe, false);
		}
	}
	return found;
}

static text *
stream_argument(FunctionCallInfo fcinfo, int n)
{
	text	   *name;

	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("stream must not be NULL")));
	name = PG_GETARG_TEXT_PP(n);
	input_check_name("stream", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	return name;
}

Datum
event_store_stream_version(PG_FUNCTION_ARGS)
{
	Snapshot	snapshot;
	text	   *name;
	StreamInput stream;
	Edge		edge = {0};

	catalog_require_read(catalog_store());
	name = stream_argument(fcinfo, 0);
	snapshot = RegisterSnapshot(GetActiveSnapshot());
	segment_refresh();
	if (append_find_stream(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name), snapshot, &stream))
		(void) find_edge(stream.id, stream.segments, stream.nsegments,
						 BackwardScanDirection, snapshot, &edge);
	UnregisterSnapshot(snapshot);
	PG_RETURN_INT64(edge.version);
}

/* A row of stream_info() or streams(), if the snapshot shows the stream. */
static bool
put_stream(ReturnSetInfo *result, text *name, int64 id, int32 category_id,
		   TimestampTz created_at, const int64 *segments, int nsegments,
		   Snapshot snapshot)
{
	Datum		values[SI_NATTS];
	bool		nulls[SI_NATTS] = {0};
	Edge		first;
	Edge		last;

	if (!find_edge(id, segments, nsegments, ForwardScanDirection, snapshot, &first) ||
		!find_edge(id, segments, nsegments, BackwardScanDirection, snapshot, &last))
		return false;
	values[SI_STREAM] = PointerGetDatum(name);
	values[SI_CATEGORY] = PointerGetDatum(names_text(NAME_CATEGORY, category_id));
	values[SI_VERSION] = Int32GetDatum(last.version);
	values[SI_CREATED_AT] = TimestampTzGetDatum(created_at);
	values[SI_FIRST_POSITION] = Int64GetDatum(first.position);
	values[SI_LAST_POSITION] = Int64GetDatum(last.position);
	values[SI_LAST_RECORDED_AT] = TimestampTzGetDatum(last.recorded_at);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	return true;
}

Datum
event_store_stream_info(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Snapshot	snapshot;
	text	   *name;
	StreamInput stream;

	catalog_require_read(catalog_store());
	name = stream_argument(fcinfo, 0);
	InitMaterializedSRF(fcinfo, 0);
	snapshot = RegisterSnapshot(GetActiveSnapshot());
	segment_refresh();
	if (append_find_stream(VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name), snapshot, &stream))
		(void) put_stream(result, name, stream.id, stream.category_id, stream.created_at,
						  stream.segments, stream.nsegments, snapshot);
	UnregisterSnapshot(snapshot);
	return (Datum) 0;
}

/*
 * Streams in byte order of their names.  Those of a category are the stream of
 * just that name, and those that begin with it and a dash: one range of the
 * index on names each.  What has such a name but another category ("-x-1" is
 * not of the category "-x") is passed over.
 */
Datum
event_store_streams(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	const Store *store = catalog_store();
	Snapshot	snapshot;
	text	   *category = PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0);
	text	   *after = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);
	int64		left = PG_ARGISNULL(2) ? PG_INT64_MAX : PG_GETARG_INT64(2);
	int			nranges = category == NULL ? 1 : 2;
	int32		category_id = 0;

	catalog_require_read(store);
	if (left < 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("max_count must not be negative")));
	InitMaterializedSRF(fcinfo, 0);
	if (category != NULL)
	{
		int			len = VARSIZE_ANY_EXHDR(category);

		category_id = len == 0 || len > MAX_NAME_BYTES ? 0 :
			names_find(NAME_CATEGORY, VARDATA_ANY(category), len);
		if (category_id == 0)
			return (Datum) 0;
	}
	snapshot = RegisterSnapshot(GetActiveSnapshot());
	segment_refresh();
	for (int range = 0; range < nranges; range++)
	{
		ScanKeyData keys[3];
		int			nkeys = 0;
		Probe		probe;

		if (after != NULL)
			key_text(&keys[nkeys++], 1, BTGreaterStrategyNumber, PointerGetDatum(after));
		if (category != NULL && range == 0)
			key_text(&keys[nkeys++], 1, BTEqualStrategyNumber, PointerGetDatum(category));
		else if (category != NULL)
		{
			/* from "category-" up to, but without, "category." */
			char	   *name = text_to_cstring(category);

			key_text(&keys[nkeys++], 1, BTGreaterEqualStrategyNumber,
					 CStringGetTextDatum(psprintf("%s-", name)));
			key_text(&keys[nkeys++], 1, BTLessStrategyNumber,
					 CStringGetTextDatum(psprintf("%s.", name)));
		}
		probe_open(&probe, store->stream, &store->stream_name_index, AccessShareLock,
				   snapshot, keys, nkeys);
		while (left > 0 && probe_next(&probe, ForwardScanDirection))
		{
			bool		isnull;
			text	   *name = DatumGetTextPP(probe_value(&probe, ST_NAME, &isnull));
			StreamInput stream = {0};

			if (category != NULL && probe_int32(&probe, ST_CATEGORY_ID) != category_id)
				continue;
			stream.name = VARDATA_ANY(name);
			stream.len = VARSIZE_ANY_EXHDR(name);
			/* the segments as of now, where the snapshot's need not be all */
			if (IsolationUsesXactSnapshot())
				(void) append_find_stream(stream.name, stream.len, snapshot, &stream);
			else
			{
				stream.id = probe_int64(&probe, ST_ID);
				append_read_segments(&probe, &stream);
			}
			if (put_stream(result, name, stream.id,
						   probe_int32(&probe, ST_CATEGORY_ID),
						   DatumGetTimestampTz(probe_value(&probe, ST_CREATED_AT, &isnull)),
						   stream.segments, stream.nsegments, snapshot))
				left--;
			CHECK_FOR_INTERRUPTS();
		}
		probe_close(&probe, false);
	}
	UnregisterSnapshot(snapshot);
	return (Datum) 0;
}
