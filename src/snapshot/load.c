/*
 * load.c
 *		load_stream(): the newest snapshot and the events behind it, as rows that
 *		come one by one.
 *
 * Snapshot and events are read by one snapshot of the database, the statement's:
 * the version that the last row has is the one to expect when appending.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

#include "common/errors.h"
#include "snapshot/snapshot.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_load_stream);

/* the type that the row of a snapshot shows */
#define SNAPSHOT_TYPE	"$snapshot"

typedef struct Loader
{
	Reader	   *reader;
	bool		at_snapshot;	/* the next row is the snapshot's */
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
} Loader;

/* The row of a snapshot, in place of that of the event it was taken at. */
static void
show_snapshot(Loader *loader, const StateKey *key, const SavedState *saved)
{
	static const int unknown[] = {
		RE_EVENT_ID, RE_SOURCE, RE_CORRELATION_ID, RE_CAUSATION_ID, RE_METADATA
	};

	loader->at_snapshot = true;
	loader->values[RE_TYPE] = CStringGetTextDatum(SNAPSHOT_TYPE);
	loader->values[RE_SCHEMA_VERSION] = Int32GetDatum(key->schema_version);
	loader->values[RE_DATA] = saved->state;
	loader->nulls[RE_DATA] = saved->isnull;
	for (int i = 0; i < lengthof(unknown); i++)
	{
		loader->values[unknown[i]] = (Datum) 0;
		loader->nulls[unknown[i]] = true;
	}
}

static void *
load_open(const Datum *values, const bool *nulls)
{
	Loader	   *loader = palloc0(sizeof(Loader));
	ReadRequest request;
	StateKey	key;
	SavedState	saved;
	Datum		read_values[6] = {values[0], Int64GetDatum(1), (Datum) 0,
		BoolGetDatum(false), values[3], (Datum) 0};
	bool		read_nulls[6] = {nulls[0], false, true, false, nulls[3], true};

	read_request(&request, READ_STREAM, 6, read_values, read_nulls);
	key.fold = cstring_to_text("");
	if (!nulls[2])
	{
		key.fold = DatumGetTextPP(values[2]);
		input_check_name("fold", VARDATA_ANY(key.fold), VARSIZE_ANY_EXHDR(key.fold));
	}
	key.schema_version = 1;
	if (!nulls[1])
	{
		key.schema_version = DatumGetInt32(values[1]);
		input_schema_version(key.schema_version);
	}
	else if (!nulls[2])
	{
		SnapshotPolicy policy;

		if (policy_find(key.fold, &policy, GetActiveSnapshot()))
			key.schema_version = policy.schema_version;
	}

	loader->reader = reader_open(&request);
	key.stream_id = reader_asked_stream(loader->reader);
	if (key.stream_id != 0 &&
		saved_resume(loader->reader, &key, request.until_version, NULL,
					 GetActiveSnapshot(), &saved, loader->values, loader->nulls))
		show_snapshot(loader, &key, &saved);
	return loader;
}

static bool
load_next(void *rows, Datum *values, bool *nulls)
{
	Loader	   *loader = rows;

	if (!loader->at_snapshot)
		return reader_next(loader->reader, values, nulls);
	loader->at_snapshot = false;
	memcpy(values, loader->values, sizeof(loader->values));
	memcpy(nulls, loader->nulls, sizeof(loader->nulls));
	return true;
}

static void
load_close(void *rows)
{
	reader_close(((Loader *) rows)->reader);
}

static ReadCounts
load_counts(void *rows)
{
	return reader_counts(((Loader *) rows)->reader);
}

Datum
event_store_load_stream(PG_FUNCTION_ARGS)
{
	return scan_rows(fcinfo);
}

void
snapshot_init(void)
{
	static const ReadFunction load_stream = {
		.name = "load_stream",
		.function = event_store_load_stream,
		.nargs = 4,
		.max_count = -1,
		.backward = -1,
		.by_version = true,
		.open = load_open,
		.next = load_next,
		.close = load_close,
		.counts = load_counts,
	};

	scan_add_function(&load_stream);
}
