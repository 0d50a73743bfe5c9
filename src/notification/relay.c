/*
 * relay.c
 *		Notifications for what other transactions have appended.
 *
 * Between two positions up to the settled mark: the events are counted by
 * category, and a notification is sent for each, and one for the whole store.
 * That is all a notifier needs to know, so its only state is a position: where
 * it goes on from.  The worker writes that down now and then
 * (event_store.notification_told), so that another one goes on from there.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type_d.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/guc.h"
#include "common/names.h"
#include "common/plans.h"
#include "common/rows.h"
#include "notification/notification.h"
#include "position/position.h"

PG_FUNCTION_INFO_V1(event_store_notify_listeners);

static Statement read_told = {
	"SELECT t.position FROM event_store.notification_told AS t"
};

static Statement write_told = {
	"INSERT INTO event_store.notification_told AS t (position) VALUES ($1)"
	" ON CONFLICT (id) DO UPDATE SET position = excluded.position",
	1, {INT8OID}
};

typedef struct CategoryCount
{
	int32		category_id;
	int64		count;
	int64		last_position;
} CategoryCount;

/* Counts the events of a segment with positions low to high. */
static int64
count_events(Segment segment, int64 low, int64 high, Snapshot snapshot, HTAB *counts)
{
	ScanKeyData keys[2];
	Probe		probe;
	int64		n = 0;

	key_int64(&keys[0], 1, BTGreaterEqualStrategyNumber, low);
	key_int64(&keys[1], 1, BTLessEqualStrategyNumber, high);
	probe_open_segment(&probe, segment.relid, INDEX_POSITION, AccessShareLock,
					   snapshot, keys, 2);
	while (probe_next(&probe, ForwardScanDirection))
	{
		int32		category_id = probe_int32(&probe, EV_CATEGORY_ID);
		bool		found;
		CategoryCount *count = hash_search(counts, &category_id, HASH_ENTER, &found);

		if (!found)
			count->count = 0;
		count->count++;
		count->last_position = probe_int64(&probe, EV_POSITION);
		n++;
		CHECK_FOR_INTERRUPTS();
	}
	probe_close(&probe, false);
	return n;
}

/*
 * Sends notifications for events after a position, up to the settled mark or
 * max_events, more or less; returns the position to go on from, and whether there
 * is more at once.
 */
int64
relay_send(int64 after, int64 max_events, bool *more)
{
	int64		mark = settled_mark();
	int64		total = 0;
	int64		last = 0;
	int64		reached = after;
	HASHCTL		control;
	HTAB	   *counts;
	HASH_SEQ_STATUS status;
	CategoryCount *count;
	const char *category = NULL;
	Snapshot	snapshot;

	*more = false;
	if (mark <= after)
		return after;
	/* first the mark, then the snapshot */
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	segment_refresh();
	control.keysize = sizeof(int32);
	control.entrysize = sizeof(CategoryCount);
	control.hcxt = CurrentMemoryContext;
	counts = hash_create("event_store categories", 16, &control,
						 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = segment_index_for(after + 1);
		 i < segment_count() && reached < mark && total < max_events; i++)
	{
		Segment		segment = segment_at(i);
		int64		low = Max(after + 1, segment.first);

		/* a piece at a time, so that a large segment is bound as well */
		while (low < segment.end && low <= mark && total < max_events)
		{
			int64		high = Min(Min(mark, segment.end - 1), low + RELAY_PIECE - 1);

			total += count_events(segment, low, high, snapshot, counts);
			reached = high;
			low = high + 1;
		}
	}
	if (total < max_events)
		reached = mark;
	*more = reached < mark;
	hash_seq_init(&status, counts);
	while ((count = hash_seq_search(&status)) != NULL)
	{
		category = text_to_cstring(names_text(NAME_CATEGORY, count->category_id));
		notify_category(category, count->count, count->last_position);
		last = Max(last, count->last_position);
	}
	if (total > 0)
		notify_store(hash_get_num_entries(counts) == 1 ? category : NULL, total, last);
	hash_destroy(counts);
	UnregisterSnapshot(snapshot);
	return reached;
}

/*
 * Where a notifier that begins goes on from: what came since the last one has not
 * been told, if it was left to a notifier.  Not further back than a new one can
 * read at once; and where there never was one, only if all is left to it.
 */
int64
relay_told(void)
{
	int64		mark = settled_mark();
	int64		told = guc_notify == NOTIFY_WORKER ? 0 : mark;
	int			guc_level = plans_connect();
	bool		isnull;

	if (plans_execute(&read_told, NULL, NULL) > 0)
		told = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	plans_finish(guc_level);
	return Min(Max(told, mark - RELAY_BACK), mark);
}

void
relay_note_told(int64 position)
{
	Datum		values[1] = {Int64GetDatum(position)};
	int			guc_level = plans_connect();

	(void) plans_execute(&write_told, values, NULL);
	plans_finish(guc_level);
}

Datum
event_store_notify_listeners(PG_FUNCTION_ARGS)
{
	bool		more;

	PreventCommandDuringRecovery("event_store.notify_listeners()");
	catalog_require_read(catalog_store());
	if (PG_ARGISNULL(0) || PG_GETARG_INT64(0) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("after_position must be a position, or 0")));
	PG_RETURN_INT64(relay_send(PG_GETARG_INT64(0), RELAY_PIECE, &more));
}
