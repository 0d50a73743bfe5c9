/*
 * save.c
 *		The rows of snapshots: how they are found, written and removed.
 *
 * A row is written once and never altered.  The key ends with a number that is
 * drawn, so rows never conflict; of those with the same version the highest
 * number counts.  Who saves takes RowExclusiveLock on the table, inserts his row,
 * and removes what is surplus by then: rows that another transaction is removing
 * are passed over.  So who saves waits for nobody, whatever the isolation level.
 *
 * Surplus is found by a fresh snapshot of the database, which sees the new row
 * and all that others have committed.  Who saves at once with others does not see
 * theirs, so a few more than asked for may stay until the next one is saved.
 *
 * Rows are read and written past the executor.  Who may is decided by whoever
 * calls.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "commands/sequence.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/jsonb.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/rows.h"
#include "position/position.h"
#include "snapshot/snapshot.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_save_snapshot);
PG_FUNCTION_INFO_V1(event_store_drop_snapshots);

/* rows that one saved_sweep() looks at, or a few more */
#define SWEEP_ROWS	10000

static void
open_saved(Probe *probe, const StateKey *key, int64 until_version, Snapshot snapshot)
{
	const Store *store = catalog_snapshots();
	ScanKeyData keys[4];

	key_int64(&keys[0], 1, BTEqualStrategyNumber, key->stream_id);
	key_text(&keys[1], 2, BTEqualStrategyNumber, PointerGetDatum(key->fold));
	key_int32(&keys[2], 3, BTEqualStrategyNumber, key->schema_version);
	key_int32(&keys[3], 4, BTLessEqualStrategyNumber,
			  (int32) Min(until_version, PG_INT32_MAX));
	probe_open(probe, store->snapshot, &store->snapshot_index, AccessShareLock,
			   snapshot, keys, 4);
}

/* ----------------------------------------------------------------
 * Finding one
 * ----------------------------------------------------------------
 */

/* The newest snapshot up to a version, and of an event recorded up to a time. */
bool
saved_find(const StateKey *key, int64 until_version, const TimestampTz *until_time,
		   Snapshot snapshot, SavedState *found)
{
	Probe		probe;
	bool		exists = false;

	open_saved(&probe, key, until_version, snapshot);
	while (!exists && probe_next(&probe, BackwardScanDirection))
	{
		bool		isnull;
		Datum		state;

		found->recorded_at = DatumGetTimestampTz(probe_value(&probe, SN_RECORDED_AT, &isnull));
		if (until_time != NULL && found->recorded_at > *until_time)
			continue;
		found->version = probe_int32(&probe, SN_VERSION);
		found->position = probe_int64(&probe, SN_POSITION);
		state = probe_value(&probe, SN_STATE, &found->isnull);
		found->state = found->isnull ? (Datum) 0 : datumCopy(state, false, -1);
		exists = true;
	}
	probe_close(&probe, false);
	return exists;
}

/*
 * Finds the newest snapshot that can be used, and sets a reader of the stream to
 * the event behind the one that it was taken at; values are that one's.  False:
 * there is none, and the reader is set to the first event.
 *
 * It can be used if the reader shows an event of its version, at its position.
 */
bool
saved_resume(Reader *reader, const StateKey *key, int64 until_version,
			 const TimestampTz *until_time, Snapshot snapshot,
			 SavedState *found, Datum *values, bool *nulls)
{
	while (saved_find(key, until_version, until_time, snapshot, found))
	{
		reader_restart(reader, found->version);
		if (reader_next(reader, values, nulls) &&
			DatumGetInt32(values[RE_VERSION]) == found->version &&
			DatumGetInt64(values[RE_POSITION]) == found->position &&
			(until_time == NULL ||
			 DatumGetTimestampTz(values[RE_RECORDED_AT]) <= *until_time))
			return true;
		until_version = (int64) found->version - 1;
		CHECK_FOR_INTERRUPTS();
	}
	reader_restart(reader, 1);
	return false;
}

/* ----------------------------------------------------------------
 * Writing one
 * ----------------------------------------------------------------
 */

/* Is the event of a stream and version, as a snapshot sees it, at a position? */
static bool
event_is_at(int64 stream_id, int32 version, int64 position, Snapshot snapshot)
{
	int			index = segment_index_for(position);
	ScanKeyData key;
	Probe		probe;
	bool		found;

	if (index >= segment_count() || segment_at(index).first > position)
		return false;
	key_int64(&key, 1, BTEqualStrategyNumber, position);
	probe_open_segment(&probe, segment_at(index).relid, INDEX_POSITION,
					   AccessShareLock, snapshot, &key, 1);
	found = probe_next(&probe, ForwardScanDirection) &&
		probe_int64(&probe, EV_STREAM_ID) == stream_id &&
		probe_int32(&probe, EV_VERSION) == version;
	probe_close(&probe, false);
	return found;
}

/* The version of the newest snapshot that can be used; 0: there is none. */
int32
saved_newest_version(const StateKey *key, Snapshot snapshot)
{
	Probe		probe;
	int32		version = 0;

	open_saved(&probe, key, PG_INT32_MAX, snapshot);
	while (version == 0 && probe_next(&probe, BackwardScanDirection))
	{
		version = probe_int32(&probe, SN_VERSION);
		if (!event_is_at(key->stream_id, version, probe_int64(&probe, SN_POSITION), snapshot))
			version = 0;
	}
	probe_close(&probe, false);
	return version;
}

/* Would a version be among the newest `keep`, and is it not there yet? */
bool
saved_is_wanted(const StateKey *key, int32 version, int keep)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int32		last_version = 0;
	int			later = 0;
	Probe		probe;

	segment_refresh();
	open_saved(&probe, key, PG_INT32_MAX, snapshot);
	while (later < keep && probe_next(&probe, BackwardScanDirection))
	{
		int32		other = probe_int32(&probe, SN_VERSION);

		if (other < version)
			break;
		if (other == last_version ||
			!event_is_at(key->stream_id, other, probe_int64(&probe, SN_POSITION), snapshot))
			continue;
		last_version = other;
		later = other == version ? keep : later + 1;
	}
	probe_close(&probe, false);
	UnregisterSnapshot(snapshot);
	return later < keep;
}

/* Removes a row; false if another transaction is about to, or has. */
static bool
remove_row(Probe *probe, bool wait)
{
	TM_FailureData failure;

	return table_tuple_delete(probe->heap, &probe->slot->tts_tid,
							  GetCurrentCommandId(true), probe->snapshot,
							  InvalidSnapshot, wait, &failure, false) == TM_Ok;
}

/*
 * Removes what is surplus beside the newest `keep` versions; false if that goes
 * for a version that was just saved.
 *
 * A later version than that is only believed where its event is there: otherwise
 * a row that nobody can use would keep one that is good from being kept.
 */
static bool
remove_surplus(const StateKey *key, int32 saved_version, int keep)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int32		last_version = 0;
	int			kept = 0;
	bool		stays = true;
	Probe		probe;

	segment_refresh();
	open_saved(&probe, key, PG_INT32_MAX, snapshot);
	while (probe_next(&probe, BackwardScanDirection))
	{
		int32		version = probe_int32(&probe, SN_VERSION);

		if (version != last_version &&
			(version <= saved_version ||
			 event_is_at(key->stream_id, version, probe_int64(&probe, SN_POSITION), snapshot)))
		{
			last_version = version;
			if (++kept <= keep)
				continue;
			if (version == saved_version)
				stays = false;
		}
		(void) remove_row(&probe, false);
		CHECK_FOR_INTERRUPTS();
	}
	probe_close(&probe, false);
	UnregisterSnapshot(snapshot);
	return stays;
}

/*
 * Saves a state, and keeps the newest `keep` of its key; false if it is not among
 * these.
 */
bool
saved_write(const StateKey *key, const SavedState *state, int keep)
{
	const Store *store = catalog_snapshots();
	Datum		values[SN_NATTS];
	bool		nulls[SN_NATTS] = {0};
	bool		stays;

	LockRelationOid(store->snapshot, RowExclusiveLock);
	values[SN_STREAM_ID - 1] = Int64GetDatum(key->stream_id);
	values[SN_POSITION - 1] = Int64GetDatum(state->position);
	values[SN_ID - 1] = Int64GetDatum(nextval_internal(store->snapshot_id, false));
	values[SN_RECORDED_AT - 1] = TimestampTzGetDatum(state->recorded_at);
	values[SN_CREATED_AT - 1] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[SN_VERSION - 1] = Int32GetDatum(state->version);
	values[SN_SCHEMA_VERSION - 1] = Int32GetDatum(key->schema_version);
	values[SN_FOLD - 1] = PointerGetDatum(key->fold);
	values[SN_STATE - 1] = state->state;
	nulls[SN_STATE - 1] = state->isnull;
	rows_insert_small(store->snapshot, values, nulls);
	CommandCounterIncrement();
	stays = remove_surplus(key, state->version, keep);
	CommandCounterIncrement();
	return stays;
}

/*
 * Removes all snapshots of a stream (0: of all), fold (NULL: of all) and schema
 * version (0: of all); returns how many.
 */
int64
saved_remove(int64 stream_id, const text *fold, int32 schema_version)
{
	const Store *store = catalog_snapshots();
	Snapshot	snapshot;
	int64		count = 0;
	ScanKeyData key;
	Probe		probe;

	LockRelationOid(store->snapshot, RowExclusiveLock);
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	key_int64(&key, 1, BTEqualStrategyNumber, stream_id);
	probe_open(&probe, store->snapshot, &store->snapshot_index, AccessShareLock,
			   snapshot, &key, stream_id != 0 ? 1 : 0);
	while (probe_next(&probe, ForwardScanDirection))
	{
		bool		isnull;
		text	   *of = DatumGetTextPP(probe_value(&probe, SN_FOLD, &isnull));

		CHECK_FOR_INTERRUPTS();
		if (fold != NULL &&
			(VARSIZE_ANY_EXHDR(of) != VARSIZE_ANY_EXHDR(fold) ||
			 memcmp(VARDATA_ANY(of), VARDATA_ANY(fold), VARSIZE_ANY_EXHDR(fold)) != 0))
			continue;
		if (schema_version != 0 && probe_int32(&probe, SN_SCHEMA_VERSION) != schema_version)
			continue;
		if (remove_row(&probe, true))
			count++;
	}
	probe_close(&probe, false);
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();
	return count;
}

/*
 * Removes the snapshots of a fold that have another schema version, in streams
 * after one, as many as are found in a bounded time.  Returns the stream to go on
 * after.
 */
int64
saved_sweep(const text *fold, int32 schema_version, int64 after_stream, bool *finished)
{
	const Store *store = catalog_snapshots();
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	int64		last_stream = after_stream;
	int			rows = 0;
	ScanKeyData key;
	Probe		probe;

	LockRelationOid(store->snapshot, RowExclusiveLock);
	key_int64(&key, 1, BTGreaterStrategyNumber, after_stream);
	probe_open(&probe, store->snapshot, &store->snapshot_index, AccessShareLock,
			   snapshot, &key, 1);
	*finished = true;
	while (probe_next(&probe, ForwardScanDirection))
	{
		int64		stream_id = probe_int64(&probe, SN_STREAM_ID);
		bool		isnull;
		text	   *of = DatumGetTextPP(probe_value(&probe, SN_FOLD, &isnull));

		/* a stream is looked at as a whole */
		if (rows++ >= SWEEP_ROWS && stream_id != last_stream)
		{
			*finished = false;
			break;
		}
		last_stream = stream_id;
		if (probe_int32(&probe, SN_SCHEMA_VERSION) != schema_version &&
			VARSIZE_ANY_EXHDR(of) == VARSIZE_ANY_EXHDR(fold) &&
			memcmp(VARDATA_ANY(of), VARDATA_ANY(fold), VARSIZE_ANY_EXHDR(fold)) == 0)
			(void) remove_row(&probe, false);
		CHECK_FOR_INTERRUPTS();
	}
	probe_close(&probe, false);
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();
	return last_stream;
}

/* ----------------------------------------------------------------
 * As functions
 * ----------------------------------------------------------------
 */

static void
guard(const char *what)
{
	PreventCommandDuringRecovery(what);
	PreventCommandIfReadOnly(what);
	PreventCommandIfParallelMode(what);
}

static void
invalid_null(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("%s must not be NULL", what)));
}

static text *
stream_argument(FunctionCallInfo fcinfo, int n)
{
	text	   *name;

	if (PG_ARGISNULL(n))
		invalid_null("stream");
	name = PG_GETARG_TEXT_PP(n);
	input_check_name("stream", VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	return name;
}

Datum
event_store_save_snapshot(PG_FUNCTION_ARGS)
{
	int64		version;
	int			keep;
	text	   *stream;
	StateKey	key;
	SavedState	state;
	ReadRequest request;
	Reader	   *reader;
	Datum		values[RE_NATTS];
	bool		nulls[RE_NATTS];
	bool		found;

	guard("event_store.save_snapshot()");
	stream = stream_argument(fcinfo, 0);
	if (PG_ARGISNULL(1))
		invalid_null("version");
	version = PG_GETARG_INT64(1);
	if (PG_ARGISNULL(2))
		invalid_null("state");
	state.state = PG_GETARG_DATUM(2);
	state.isnull = false;
	if (PG_ARGISNULL(3))
		invalid_null("schema_version");
	key.schema_version = PG_GETARG_INT32(3);
	input_schema_version(key.schema_version);
	key.fold = cstring_to_text("");
	if (!PG_ARGISNULL(4))
	{
		key.fold = PG_GETARG_TEXT_PP(4);
		input_check_name("fold", VARDATA_ANY(key.fold), VARSIZE_ANY_EXHDR(key.fold));
	}
	if (PG_ARGISNULL(5))
		invalid_null("keep");
	keep = PG_GETARG_INT32(5);
	if (keep < 1 || keep > MAX_KEEP)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("keep must be 1 to %d", MAX_KEEP)));
	if (version < 1)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("version %lld is not positive", (long long) version)));

	memset(&request, 0, sizeof(request));
	request.kind = READ_STREAM;
	request.stream = stream;
	request.from_version = version;
	request.until_version = Min(version, PG_INT32_MAX);
	request.max_count = 1;
	reader = reader_open(&request);
	key.stream_id = reader_asked_stream(reader);
	found = reader_next(reader, values, nulls);
	if (found)
	{
		state.version = DatumGetInt32(values[RE_VERSION]);
		state.position = DatumGetInt64(values[RE_POSITION]);
		state.recorded_at = DatumGetTimestampTz(values[RE_RECORDED_AT]);
	}
	reader_close(reader);
	if (key.stream_id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("stream \"%s\" does not exist", text_to_cstring(stream))));
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("stream \"%s\" has no version %lld", text_to_cstring(stream),
						(long long) version),
				 errhint("A snapshot holds the state after an event that is there, and that this transaction sees.")));
	PG_RETURN_BOOL(saved_write(&key, &state, keep));
}

Datum
event_store_drop_snapshots(PG_FUNCTION_ARGS)
{
	text	   *fold = NULL;
	int64		stream_id = 0;
	int32		schema_version = 0;

	guard("event_store.drop_snapshots()");
	if (!PG_ARGISNULL(1))
	{
		fold = PG_GETARG_TEXT_PP(1);
		/* the empty name stands for those that have none */
		if (VARSIZE_ANY_EXHDR(fold) > 0)
			input_check_name("fold", VARDATA_ANY(fold), VARSIZE_ANY_EXHDR(fold));
	}
	if (!PG_ARGISNULL(2))
	{
		schema_version = PG_GETARG_INT32(2);
		input_schema_version(schema_version);
	}
	if (!PG_ARGISNULL(0))
	{
		text	   *stream = stream_argument(fcinfo, 0);
		StreamInput found;

		if (!append_find_stream(VARDATA_ANY(stream), VARSIZE_ANY_EXHDR(stream),
								GetActiveSnapshot(), &found))
			PG_RETURN_INT64(0);
		stream_id = found.id;
	}
	PG_RETURN_INT64(saved_remove(stream_id, fold, schema_version));
}
