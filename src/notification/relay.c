/*
 * relay.c
 *		Notifications for what other transactions have appended.
 *
 * Between two positions up to the settled mark: the events are counted by
 * category, and a notification is sent for each, and one for the whole store.
 * That is all a notifier needs to know, so its only state is a position: where
 * it goes on from.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/names.h"
#include "common/rows.h"
#include "notification/notification.h"
#include "position/position.h"

PG_FUNCTION_INFO_V1(event_store_notify_listeners);

/* events that one call looks at, more or less */
#define MAX_EVENTS	100000

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
 * MAX_EVENTS; returns the position to go on from, and whether there is more at
 * once.
 */
int64
relay_send(int64 after, bool *more)
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
		 i < segment_count() && reached < mark && total < MAX_EVENTS; i++)
	{
		Segment		segment = segment_at(i);
		int64		low = Max(after + 1, segment.first);

		/* a piece at a time, so that a large segment is bound as well */
		while (low < segment.end && low <= mark && total < MAX_EVENTS)
		{
			int64		high = Min(Min(mark, segment.end - 1), low + MAX_EVENTS - 1);

			total += count_events(segment, low, high, snapshot, counts);
			reached = high;
			low = high + 1;
		}
	}
	if (total < MAX_EVENTS)
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
	PG_RETURN_INT64(relay_send(PG_GETARG_INT64(0), &more));
}
