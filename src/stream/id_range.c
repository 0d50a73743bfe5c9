/*
 * id_range.c
 *		Which segments can hold an event id.
 *
 * Whether an id is there already must be asked of every segment that its
 * stream has events in; an id alone may be in any segment at all. Most ids are
 * UUIDs version 7, which rise with time, so a segment's ids lie between the
 * lowest and the highest of it, and those ranges hardly overlap. They are
 * looked up once in each backend for segments that are settled, in which
 * nothing changes any more, and then spare it the index.
 */
#include "postgres.h"

#include "access/tableam.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/ids.h"
#include "common/rows.h"
#include "stream/stream.h"

typedef struct IdRange
{
	Oid			relid;
	bool		empty;
	pg_uuid_t	lowest;
	pg_uuid_t	highest;
} IdRange;

static HTAB *ranges = NULL;

static void
relcache_callback(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS status;
	IdRange    *range;

	if (ranges == NULL)
		return;
	if (relid != InvalidOid)
	{
		(void) hash_search(ranges, &relid, HASH_REMOVE, NULL);
		return;
	}
	hash_seq_init(&status, ranges);
	while ((range = hash_seq_search(&status)) != NULL)
		(void) hash_search(ranges, &range->relid, HASH_REMOVE, NULL);
}

static bool
edge_id(Segment segment, ScanDirection edge, pg_uuid_t *id)
{
	Probe		probe;
	bool		found;
	bool		isnull;

	probe_open_segment(&probe, segment.relid, INDEX_EVENT_ID,
					   AccessShareLock, SnapshotSelf, NULL, 0);
	found = probe_next(&probe, edge);
	if (found)
		*id = *DatumGetUUIDP(probe_value(&probe, EV_EVENT_ID, &isnull));
	probe_close(&probe, false);
	return found;
}

/*
 * Can the segment hold an event with this id?  *mark is a settled mark, looked
 * up here when it is first needed; 0 before that.
 */
bool
id_range_may_hold(Segment segment, const pg_uuid_t *id, int64 *mark)
{
	IdRange    *range = hash_search(ranges, &segment.relid, HASH_FIND, NULL);

	if (range == NULL)
	{
		IdRange		found;

		if (*mark == 0)
			*mark = Max(settled_mark(), 1);
		if (segment.end - 1 > *mark)
			return true;
		found.empty = !edge_id(segment, ForwardScanDirection, &found.lowest) ||
			!edge_id(segment, BackwardScanDirection, &found.highest);
		range = hash_search(ranges, &segment.relid, HASH_ENTER, NULL);
		range->empty = found.empty;
		range->lowest = found.lowest;
		range->highest = found.highest;
	}
	return !range->empty &&
		memcmp(id, &range->lowest, UUID_LEN) >= 0 &&
		memcmp(id, &range->highest, UUID_LEN) <= 0;
}

/* Has the row no id of its own, and this one by computation? */
bool
id_is_made(Probe *probe, const pg_uuid_t *id)
{
	pg_uuid_t	made;
	bool		isnull;

	(void) probe_value(probe, EV_EVENT_ID, &isnull);
	if (!isnull)
		return false;
	ids_derive(&made, probe_int64(probe, EV_POSITION),
			   DatumGetTimestampTz(probe_value(probe, EV_RECORDED_AT, &isnull)),
			   counter_id_key());
	return memcmp(id, &made, UUID_LEN) == 0;
}

void
id_range_init(void)
{
	HASHCTL		control;

	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(IdRange);
	ranges = hash_create("event_store id ranges", 64, &control,
						 HASH_ELEM | HASH_BLOBS);
	catalog_on_relcache(relcache_callback);
}
