/*
 * read.c
 *		Reading events.
 *
 * A reader goes through segments, in order of position or backward, and in
 * each merges a few ranges of one index by position.  Only the segments that
 * can hold what is asked for are opened: a stream's row names those of the
 * stream, segment_content those of categories and types, and the position
 * those of the rest.
 *
 * Reads by category or of the whole store go up to the settled mark:
 *
 * 1. the mark is looked up; 2. a fresh snapshot is taken, and used for the
 * whole read (src/position/README.md has the proof); then the numbers of the
 * names asked for are looked up, as of now; 3. under REPEATABLE READ or
 * SERIALIZABLE the read ends at the first event that the fresh snapshot sees
 * and the transaction's does not (going backward, it passes over them).
 *
 * On a standby the mark is the published one, and a read of the whole store
 * goes on beyond it for as long as positions follow each other without a gap.
 *
 * Reads of one stream, by id and by correlation use the snapshot of the
 * statement, and show what the transaction itself has appended.
 *
 * Before an event is handed out, its transaction's commit record is flushed,
 * if it is not (asynchronous commit): see position/durable.c.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "catalog/pg_type_d.h"
#include "funcapi.h"
#include "lib/binaryheap.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/errors.h"
#include "common/ids.h"
#include "common/names.h"
#include "common/rows.h"
#include "stream/read.h"
#include "stream/stream.h"

/*
 * Ranges that are merged in one segment, at most; beyond that the segment is
 * read by position and filtered.
 */
#define MAX_RANGES	256

/* the place of position in the index on (category_id, type_id, position) */
#define CATEGORY_INDEX_POSITION	3

/* a pair of category and type in a segment */
typedef struct Pair
{
	int32		category_id;
	int32		type_id;
} Pair;

/* numbers of names, sorted */
typedef struct IdList
{
	int			count;
	int32	   *ids;
} IdList;

/* an index range of the segment that is read */
typedef struct Range
{
	Probe		probe;
	int64		position;		/* of the entry found, if ranges are merged */
} Range;

/* names of types that a reader keeps; a log has few, in any order */
#define KEPT_TYPES	16

/* a name as text, in the reader's memory */
typedef struct NameBuffer
{
	int64		id;				/* 0: none */
	union
	{
		char		bytes[VARHDRSZ + MAX_NAME_BYTES];	/* a text */
		int64		aligned;
	}			name;
} NameBuffer;

struct Reader
{
	ReadRequest request;
	MemoryContext context;
	Snapshot	snapshot;
	Snapshot	own_snapshot;	/* of a REPEATABLE READ transaction, or NULL */
	bool		durable;		/* all that the snapshot shows is flushed */
	bool		done;
	int64		returned;
	ReadCounts	counts;

	/* bounds by position, both included */
	int64		low;
	int64		high;
	int64		dense_above;	/* beyond: only without a gap; -1 for none */
	int64		last_position;

	IdList		categories;
	IdList		types;

	/* the segments of a stream, or of the whole store, in order of position */
	bool		by_list;
	int			nlist;
	Segment    *list;
	int			list_next;
	int			next_position;	/* of the list of positions */
	int64		row_stream_id;	/* of the row handed out last */
	int64		stream_id;
	int32		type_id;		/* 0: any */
	int64		last_version;	/* seen, 0 for none */
	int64		id_mark;		/* for id_range_may_hold() */
	int64		made_position;	/* where the event is whose id it may be, or 0 */
	bool		by_made_id;		/* that is what is being looked at */
	int64		id_key;
	pg_uuid_t	made_id;		/* the id of the event handed out last */

	/* the segment that is read */
	bool		in_segment;
	Segment		segment;
	bool		filter;			/* by category and type, row by row */
	int			nranges;
	Range	   *ranges;
	binaryheap *heap;			/* of ranges, if there are several … */
	RowFetch	fetch;			/* … whose rows are fetched by this */
	Range	   *current;		/* whose row was handed out last */

	StreamNames stream_names;
	NameBuffer	stream_name;
	NameBuffer *type_names[KEPT_TYPES]; /* by the number's rest; NULL: none yet */
	NameBuffer	source_name;
};

/* ----------------------------------------------------------------
 * Requests
 * ----------------------------------------------------------------
 */

static int64
count_argument(const char *what, Datum value, bool isnull, int64 if_null)
{
	if (isnull)
		return if_null;
	if (DatumGetInt64(value) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must not be negative", what)));
	return DatumGetInt64(value);
}

static text *
name_argument(const char *what, Datum value, bool isnull)
{
	text	   *name;

	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("%s must not be NULL", what)));
	name = DatumGetTextPP(value);
	input_check_name(what, VARDATA_ANY(name), VARSIZE_ANY_EXHDR(name));
	return name;
}

static int
compare_ids(const void *a, const void *b)
{
	int32		x = *(const int32 *) a;
	int32		y = *(const int32 *) b;

	return x < y ? -1 : x > y ? 1 : 0;
}

static bool
contains_id(const IdList *list, int32 id)
{
	return bsearch(&id, list->ids, list->count, sizeof(int32), compare_ids) != NULL;
}

/* The names of an array, checked. */
static NameList
names_argument(const char *what, Datum value)
{
	NameList	list;
	Datum	   *elements;
	bool	   *nulls;

	deconstruct_array(DatumGetArrayTypeP(value), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &list.count);
	list.names = palloc(sizeof(text *) * Max(list.count, 1));
	for (int i = 0; i < list.count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("%s must not contain NULL", what)));
		list.names[i] = DatumGetTextPP(elements[i]);
	}
	return list;
}

static void
filter_arguments(ReadRequest *request, Datum categories, bool no_categories,
				 Datum types, bool no_types)
{
	request->by_category = !no_categories;
	if (!no_categories)
		request->categories = names_argument("categories", categories);
	request->by_type = !no_types;
	if (!no_types)
		request->types = names_argument("types", types);
}

/*
 * The numbers of the names that have one, sorted, without duplicates.  To be
 * asked after the settled mark: a name that had none before it may have one now.
 */
static IdList
ids_of_names(NameKind kind, const NameList *list)
{
	IdList		ids;
	int			found = 0;

	ids.count = 0;
	ids.ids = palloc(sizeof(int32) * Max(list->count, 1));
	for (int i = 0; i < list->count; i++)
	{
		const char *name = VARDATA_ANY(list->names[i]);
		int			len = VARSIZE_ANY_EXHDR(list->names[i]);
		int32		id = len == 0 || len > MAX_NAME_BYTES ? 0 :
			names_find(kind, name, len);

		if (id != 0)
			ids.ids[found++] = id;
	}
	qsort(ids.ids, found, sizeof(int32), compare_ids);
	for (int i = 0; i < found; i++)
		if (i == 0 || ids.ids[i] != ids.ids[i - 1])
			ids.ids[ids.count++] = ids.ids[i];
	return ids;
}

static bool
flag_argument(Datum value, bool isnull)
{
	return !isnull && DatumGetBool(value);
}

static void
time_arguments(ReadRequest *request, const Datum *values, const bool *nulls)
{
	request->has_since = !nulls[0];
	if (!nulls[0])
		request->since = DatumGetTimestampTz(values[0]);
	request->has_until = !nulls[1];
	if (!nulls[1])
		request->until = DatumGetTimestampTz(values[1]);
}

/* Checks the arguments of a function that reads.  Allocates where it is called. */
void
read_request(ReadRequest *request, ReadKind kind, int nargs,
			 const Datum *values, const bool *nulls)
{
	memset(request, 0, sizeof(ReadRequest));
	request->kind = kind;
	request->max_count = PG_INT64_MAX;
	request->from_version = 1;
	request->until_version = PG_INT32_MAX;

	switch (kind)
	{
		case READ_STREAM:
			request->stream = name_argument("stream", values[0], nulls[0]);
			request->from_version = Max(count_argument("from_version", values[1], nulls[1], 1), 1);
			request->max_count = count_argument("max_count", values[2], nulls[2], PG_INT64_MAX);
			request->backward = flag_argument(values[3], nulls[3]);
			request->until_version =
				Min(count_argument("until_version", values[4], nulls[4], PG_INT32_MAX), PG_INT32_MAX);
			request->has_until_time = !nulls[5];
			if (!nulls[5])
				request->until_time = DatumGetTimestampTz(values[5]);
			break;
		case READ_CATEGORY:
			if (nulls[0])
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("category must not be NULL")));
			request->after_position = count_argument("after_position", values[1], nulls[1], 0);
			request->max_count = count_argument("max_count", values[2], nulls[2], PG_INT64_MAX);
			filter_arguments(request, (Datum) 0, true, values[3], nulls[3]);
			request->backward = flag_argument(values[4], nulls[4]);
			request->by_category = true;
			request->categories.count = 1;
			request->categories.names = palloc(sizeof(text *));
			request->categories.names[0] = DatumGetTextPP(values[0]);
			break;
		case READ_ALL:
			request->after_position = count_argument("after_position", values[0], nulls[0], 0);
			request->max_count = count_argument("max_count", values[1], nulls[1], PG_INT64_MAX);
			filter_arguments(request, values[2], nulls[2], values[3], nulls[3]);
			request->backward = flag_argument(values[4], nulls[4]);
			break;
		case READ_SINCE:
			if (nulls[0])
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("time must not be NULL")));
			request->since = DatumGetTimestampTz(values[0]);
			request->max_count = count_argument("max_count", values[1], nulls[1], PG_INT64_MAX);
			filter_arguments(request, values[2], nulls[2], values[3], nulls[3]);
			break;
		case READ_EVENT_ID:
			if (nulls[0])
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("event_id must not be NULL")));
			request->event_id = *DatumGetUUIDP(values[0]);
			if (!nulls[1])
				request->stream = name_argument("stream", values[1], false);
			time_arguments(request, values + 2, nulls + 2);
			request->backward = true;
			break;
		case READ_LAST:
			request->stream = name_argument("stream", values[0], nulls[0]);
			if (!nulls[1])
				request->type = name_argument("type", values[1], false);
			request->backward = true;
			request->max_count = 1;
			break;
		case READ_TRACE:
			if (nulls[0])
				ereport(ERROR,
						(errcode(ERRCODE_VE_INVALID_ARGUMENT),
						 errmsg("correlation_id must not be NULL")));
			request->correlation_id = DatumGetTextPP(values[0]);
			request->max_count = count_argument("max_count", values[1], nulls[1], PG_INT64_MAX);
			time_arguments(request, values + 2, nulls + 2);
			break;
		default:
			elog(ERROR, "unknown read %d", (int) kind);
	}
}

/* The columns of the index that a request goes by, for EXPLAIN. */
const char *
read_index_columns(const ReadRequest *request)
{
	switch (request->kind)
	{
		case READ_STREAM:
		case READ_LAST:
			return "stream_id, version";
		case READ_EVENT_ID:
			return "event_id";
		case READ_TRACE:
			return "correlation_id, position";
		default:
			return request->by_category || request->by_type ?
				"category_id, type_id, position" : "position";
	}
}

/* ----------------------------------------------------------------
 * Segments
 * ----------------------------------------------------------------
 */

static void
add_range(Reader *reader, SegmentIndex index, ScanKey keys, int nkeys, bool merged)
{
	Range	   *range = &reader->ranges[reader->nranges];

	(merged ? probe_open_segment_entries : probe_open_segment)
		(&range->probe, reader->segment.relid, index, AccessShareLock,
		 reader->snapshot, keys, nkeys);
	reader->nranges++;
	reader->counts.ranges++;
}

static void
begin_segment(Reader *reader, Segment segment, int nranges)
{
	reader->segment = segment;
	reader->in_segment = true;
	reader->filter = false;
	reader->nranges = 0;
	reader->current = NULL;
	reader->ranges = palloc(sizeof(Range) * nranges);
	reader->heap = NULL;
	reader->counts.segments++;
}

static void
end_segment(Reader *reader)
{
	if (reader->heap != NULL)
	{
		fetch_close(&reader->fetch);
		binaryheap_free(reader->heap);
	}
	for (int i = 0; i < reader->nranges; i++)
		probe_close(&reader->ranges[i].probe, false);
	pfree(reader->ranges);
	reader->heap = NULL;
	reader->ranges = NULL;
	reader->nranges = 0;
	reader->current = NULL;
	reader->in_segment = false;
}

/*
 * The bounds of the read, of column attno of an index, as far as they cut the
 * segment: each key is compared with every entry.
 */
static int
position_keys(const Reader *reader, int attno, ScanKey keys)
{
	int			n = 0;

	if (reader->low > reader->segment.first)
		key_int64(&keys[n++], attno, BTGreaterEqualStrategyNumber, reader->low);
	if (reader->high < reader->segment.end - 1)
		key_int64(&keys[n++], attno, BTLessEqualStrategyNumber, reader->high);
	return n;
}

/* The whole segment by position. */
static void
add_position_range(Reader *reader)
{
	ScanKeyData keys[2];
	int			nkeys = position_keys(reader, 1, keys);

	add_range(reader, INDEX_POSITION, keys, nkeys, false);
}

static ScanDirection
direction(const Reader *reader)
{
	return reader->request.backward ? BackwardScanDirection : ForwardScanDirection;
}

static int
compare_ranges(Datum a, Datum b, void *arg)
{
	const Range *x = (const Range *) DatumGetPointer(a);
	const Range *y = (const Range *) DatumGetPointer(b);
	int			order = x->position < y->position ? 1 : x->position > y->position ? -1 : 0;

	/* the heap gives its greatest first */
	return ((Reader *) arg)->request.backward ? -order : order;
}

/* The next entry of a range that is merged with others. */
static bool
advance_range(Reader *reader, Range *range)
{
	if (!probe_next_entry(&range->probe, direction(reader)))
		return false;
	range->position = probe_entry_int64(&range->probe, CATEGORY_INDEX_POSITION);
	return true;
}

static void
add_pair_ranges(Reader *reader, const Pair *pairs, int npairs)
{
	for (int i = 0; i < npairs; i++)
	{
		ScanKeyData keys[4];

		key_int32(&keys[0], 1, BTEqualStrategyNumber, pairs[i].category_id);
		key_int32(&keys[1], 2, BTEqualStrategyNumber, pairs[i].type_id);
		add_range(reader, INDEX_CATEGORY, keys,
				  2 + position_keys(reader, CATEGORY_INDEX_POSITION, &keys[2]), npairs > 1);
	}
	if (npairs == 1)
		return;
	reader->heap = binaryheap_allocate(npairs, compare_ranges, reader);
	for (int i = 0; i < npairs; i++)
	{
		Range	   *range = &reader->ranges[i];

		if (advance_range(reader, range))
			binaryheap_add_unordered(reader->heap, PointerGetDatum(range));
	}
	binaryheap_build(reader->heap);
	fetch_open(&reader->fetch, &reader->ranges[0].probe);
}

/* ----------------------------------------------------------------
 * Which segment has which categories and types
 * ----------------------------------------------------------------
 */

/*
 * The nearest segment from `from` on, in the reader's direction, that is noted
 * for a category (0: any), a type (0: any), or both.
 */
static bool
next_noted(Reader *reader, int32 category_id, int32 type_id, int64 from,
		   int64 *segment)
{
	const Store *store = catalog_store();
	ScanKeyData keys[3];
	Probe		probe;
	const Oid  *index;
	int			n = 0;
	bool		found;

	if (category_id != 0)
		key_int32(&keys[n++], 1, BTEqualStrategyNumber, category_id);
	if (type_id != 0)
	{
		key_int32(&keys[n], n + 1, BTEqualStrategyNumber, type_id);
		n++;
	}
	key_int64(&keys[n], n + 1, reader->request.backward ?
			  BTLessEqualStrategyNumber : BTGreaterEqualStrategyNumber, from);
	n++;
	index = category_id == 0 ? &store->content_type_index :
		type_id == 0 ? &store->content_category_index : &store->content_pair_index;
	probe_open(&probe, store->segment_content, index, AccessShareLock,
			   reader->snapshot, keys, n);
	found = probe_next(&probe, direction(reader));
	if (found)
		*segment = probe_int64(&probe, SC_SEGMENT);
	probe_close(&probe, false);
	return found;
}

/* Adds the pairs that a segment is noted for, of a category or of a type. */
static Pair *
add_noted_pairs(Reader *reader, int32 category_id, int32 type_id, int64 segment,
				Pair *pairs, int *npairs, int *room)
{
	const Store *store = catalog_store();
	ScanKeyData keys[2];
	Probe		probe;
	Pair		last = {0, 0};

	key_int32(&keys[0], 1, BTEqualStrategyNumber,
			  category_id != 0 ? category_id : type_id);
	key_int64(&keys[1], 2, BTEqualStrategyNumber, segment);
	probe_open(&probe, store->segment_content,
			   category_id != 0 ? &store->content_category_index : &store->content_type_index,
			   AccessShareLock, reader->snapshot, keys, 2);
	while (probe_next(&probe, ForwardScanDirection))
	{
		Pair		pair;

		pair.category_id = probe_int32(&probe, SC_CATEGORY_ID);
		pair.type_id = probe_int32(&probe, SC_TYPE_ID);
		/* a pair may be noted twice, side by side */
		if (pair.category_id == last.category_id && pair.type_id == last.type_id)
			continue;
		last = pair;
		if (*npairs == *room)
		{
			*room *= 2;
			pairs = repalloc(pairs, sizeof(Pair) * *room);
		}
		pairs[(*npairs)++] = pair;
	}
	probe_close(&probe, false);
	return pairs;
}

/*
 * The next segment, from the one that holds `from` on, that has any of the
 * categories and types asked for, and the pairs of them that it has.
 */
static bool
next_content(Reader *reader, int64 from, Segment *segment, Pair **pairs, int *npairs)
{
	ReadRequest *request = &reader->request;
	bool		backward = request->backward;
	int			ncategories = request->by_category ? reader->categories.count : 1;
	int			ntypes = request->by_type ? reader->types.count : 1;
	int			room = 64;

	for (;;)
	{
		int64		best = -1;
		int			index;

		for (int c = 0; c < ncategories; c++)
			for (int t = 0; t < ntypes; t++)
			{
				int64		noted;

				if (next_noted(reader,
							   request->by_category ? reader->categories.ids[c] : 0,
							   request->by_type ? reader->types.ids[t] : 0,
							   from, &noted) &&
					(best < 0 || (backward ? noted > best : noted < best)))
					best = noted;
			}
		if (best < 0)
			return false;

		index = segment_index_for(best);
		if (index >= segment_count() || segment_at(index).first != best)
		{
			/* noted, but gone: go on behind it */
			from = backward ? best - 1 : best + 1;
			continue;
		}
		*segment = segment_at(index);
		*npairs = 0;
		*pairs = palloc(sizeof(Pair) * room);
		for (int c = 0; c < ncategories; c++)
			for (int t = 0; t < ntypes; t++)
			{
				int32		category_id = request->by_category ? reader->categories.ids[c] : 0;
				int32		type_id = request->by_type ? reader->types.ids[t] : 0;
				int64		noted;

				if (category_id != 0 && type_id != 0)
				{
					if (!next_noted(reader, category_id, type_id, best, &noted) ||
						noted != best)
						continue;
					if (*npairs == room)
					{
						room *= 2;
						*pairs = repalloc(*pairs, sizeof(Pair) * room);
					}
					(*pairs)[*npairs].category_id = category_id;
					(*pairs)[(*npairs)++].type_id = type_id;
				}
				else
					*pairs = add_noted_pairs(reader, category_id, type_id, best,
											 *pairs, npairs, &room);
			}
		Assert(*npairs > 0);
		return true;
	}
}

/* ----------------------------------------------------------------
 * Reads by position
 * ----------------------------------------------------------------
 */

/* The number of the last segment that begins at or before a position, or -1. */
static int
segment_index_before(int64 position)
{
	int			index = segment_index_for(position);

	if (index < segment_count() && segment_at(index).first <= position)
		return index;
	return index - 1;
}

static bool
next_segment_by_position(Reader *reader)
{
	ReadRequest *request = &reader->request;
	bool		backward = request->backward;
	Segment		segment;
	Pair	   *pairs = NULL;
	int			npairs = 0;
	int			index;

	/* where the last segment, if any, has left off */
	if (backward)
	{
		if (reader->counts.segments > 0)
			reader->high = Min(reader->high, reader->segment.first - 1);
		index = segment_index_before(reader->high);
		if (index < 0)
			return false;
	}
	else
	{
		if (reader->counts.segments > 0)
			reader->low = Max(reader->low, reader->segment.end);
		index = segment_index_for(reader->low);
		if (index >= segment_count())
			return false;
	}
	if (reader->low > reader->high)
		return false;

	if (!request->by_category && !request->by_type)
		segment = segment_at(index);
	else if (!next_content(reader, segment_at(index).first, &segment, &pairs, &npairs))
		return false;
	if (segment.first > reader->high || segment.end <= reader->low)
		return false;

	if (npairs == 0 || npairs > MAX_RANGES)
	{
		begin_segment(reader, segment, 1);
		reader->filter = npairs > 0;
		add_position_range(reader);
	}
	else
	{
		begin_segment(reader, segment, npairs);
		add_pair_ranges(reader, pairs, npairs);
	}
	if (pairs != NULL)
		pfree(pairs);
	return true;
}

/*
 * The first row at a position or after it: when was it recorded?  Whoever may see
 * it: where nothing of a segment is visible, to look for what is could take long.
 */
static bool
recorded_at_or_after(int64 position, TimestampTz *recorded_at)
{
	for (int index = segment_index_for(position); index < segment_count(); index++)
	{
		Segment		segment = segment_at(index);
		ScanKeyData key;
		Probe		probe;
		bool		found;
		bool		isnull;

		key_int64(&key, 1, BTGreaterEqualStrategyNumber, position);
		probe_open_segment(&probe, segment.relid, INDEX_POSITION,
						   AccessShareLock, SnapshotAny, &key, 1);
		found = probe_next(&probe, ForwardScanDirection);
		if (found)
			*recorded_at = DatumGetTimestampTz(probe_value(&probe, EV_RECORDED_AT, &isnull));
		probe_close(&probe, false);
		if (found)
			return true;
	}
	return false;
}

/*
 * The lowest position at or after which all events were recorded at a time or
 * later.  recorded_at never decreases with position, so it is found by halving.
 */
static int64
position_since(Reader *reader, TimestampTz since)
{
	int64		low = 1;
	int64		high = reader->high + 1;

	while (low < high)
	{
		int64		middle = low + (high - low) / 2;
		TimestampTz recorded_at;

		if (recorded_at_or_after(middle, &recorded_at) && recorded_at < since)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* ----------------------------------------------------------------
 * Reads through a list of segments
 * ----------------------------------------------------------------
 */

static void
list_segments(Reader *reader, const StreamInput *stream)
{
	int			room = 16;

	reader->by_list = true;
	reader->list = palloc(sizeof(Segment) * room);
	for (int pair = 0; pair < (stream == NULL ? 2 : stream->nsegments); pair += 2)
	{
		int			low = stream == NULL ? 0 : segment_index_for(stream->segments[pair]);
		int64		last = stream == NULL ? PG_INT64_MAX : stream->segments[pair + 1];

		for (int i = low; i < segment_count() && segment_at(i).first <= last; i++)
		{
			if (reader->nlist == room)
			{
				room *= 2;
				reader->list = repalloc(reader->list, sizeof(Segment) * room);
			}
			reader->list[reader->nlist++] = segment_at(i);
		}
		if (stream == NULL)
			break;
	}
}

/*
 * How many segments of the list begin with an event of before a time, or of it if
 * that is included?  What is still to be appended to empty ones at the end may be.
 */
static int
segments_before(Reader *reader, TimestampTz time, bool included)
{
	int			low = 0;
	int			high = reader->nlist;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;
		TimestampTz recorded_at;

		if (!recorded_at_or_after(reader->list[middle].first, &recorded_at) ? included :
			recorded_at < time || (included && recorded_at == time))
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/*
 * Leaves out segments that are beyond the bounds in time of a read by an id:
 * recorded_at never decreases with position.
 */
static void
bound_by_time(Reader *reader)
{
	ReadRequest *request = &reader->request;

	if (request->has_until)
		reader->nlist = segments_before(reader, request->until, true);
	if (request->has_since)
	{
		/* the last one that begins before may go on after it */
		int			skipped = Max(segments_before(reader, request->since, false) - 1, 0);

		reader->nlist -= skipped;
		memmove(reader->list, reader->list + skipped, sizeof(Segment) * reader->nlist);
	}
}

static bool
is_within_time(const ReadRequest *request, Probe *probe)
{
	bool		isnull;
	TimestampTz recorded_at;

	if (likely(!request->has_since && !request->has_until))
		return true;
	recorded_at = DatumGetTimestampTz(probe_value(probe, EV_RECORDED_AT, &isnull));
	return (!request->has_since || recorded_at >= request->since) &&
		(!request->has_until || recorded_at <= request->until);
}

/* The lowest or highest version of a stream in a segment. */
static int64
edge_version(Reader *reader, Segment segment, ScanDirection edge)
{
	ScanKeyData key;
	Probe		probe;
	int64		version = 0;

	key_int64(&key, 1, BTEqualStrategyNumber, reader->stream_id);
	probe_open_segment(&probe, segment.relid, INDEX_STREAM,
					   AccessShareLock, reader->snapshot, &key, 1);
	if (probe_next(&probe, edge))
		version = probe_int32(&probe, EV_VERSION);
	probe_close(&probe, false);
	return version;
}

/*
 * Where in a stream's segments to begin: versions rise with position, so by
 * halving.  A segment where the snapshot shows no event of the stream counts as
 * one behind what is looked for: those that an old snapshot does not show are
 * the last ones, and to begin early only costs.
 */
static void
find_first_segment(Reader *reader)
{
	ReadRequest *request = &reader->request;
	int			low = 0;
	int			high = reader->nlist;

	if (!request->backward && request->from_version > 1 && reader->nlist > 1)
	{
		high--;
		while (low < high)
		{
			int			middle = (low + high) / 2;
			int64		last = edge_version(reader, reader->list[middle],
											BackwardScanDirection);

			if (last > 0 && last < request->from_version)
				low = middle + 1;
			else
				high = middle;
		}
		reader->list_next = low;
	}
	else if (request->backward && request->until_version < PG_INT32_MAX &&
			 reader->nlist > 1)
	{
		high--;
		while (low < high)
		{
			int			middle = (low + high + 1) / 2;

			if (edge_version(reader, reader->list[middle], ForwardScanDirection) >
				request->until_version)
				high = middle - 1;
			else
				low = middle;
		}
		reader->list_next = low;
	}
	else
		reader->list_next = request->backward ? reader->nlist - 1 : 0;
}

static bool
next_segment_by_list(Reader *reader)
{
	ReadRequest *request = &reader->request;
	bool		of_stream = request->kind == READ_STREAM || request->kind == READ_LAST;
	ScanKeyData keys[3];
	int			nkeys = 0;

	/* an id that the store has computed says where its event is */
	reader->by_made_id = false;
	if (reader->made_position > 0)
	{
		int64		position = reader->made_position;
		int			index = segment_index_for(position);

		reader->made_position = 0;
		if (index < segment_count() && segment_at(index).first <= position)
		{
			begin_segment(reader, segment_at(index), 1);
			key_int64(&keys[0], 1, BTEqualStrategyNumber, position);
			add_range(reader, INDEX_POSITION, keys, 1, false);
			reader->by_made_id = true;
			return true;
		}
	}

	if (reader->list_next < 0 || reader->list_next >= reader->nlist)
		return false;
	/* versions have no holes: the next segment begins with the next one */
	if (of_stream && reader->last_version > 0 &&
		(request->backward ? reader->last_version <= request->from_version :
		 reader->last_version >= request->until_version))
		return false;

	/* without the stream an id may be anywhere */
	while (request->kind == READ_EVENT_ID && reader->stream_id == 0 &&
		   !id_range_may_hold(reader->list[reader->list_next],
							  &request->event_id, &reader->id_mark))
		if (--reader->list_next < 0)
			return false;

	begin_segment(reader, reader->list[reader->list_next], 1);
	reader->list_next += request->backward ? -1 : 1;
	switch (request->kind)
	{
		case READ_EVENT_ID:
			key_uuid(&keys[0], 1, UUIDPGetDatum(&request->event_id));
			add_range(reader, INDEX_EVENT_ID, keys, 1, false);
			break;
		case READ_TRACE:
			key_text(&keys[0], 1, BTEqualStrategyNumber,
					 PointerGetDatum(request->correlation_id));
			add_range(reader, INDEX_CORRELATION, keys, 1, false);
			break;
		default:
			/* each key is compared with every entry: none that all versions satisfy */
			key_int64(&keys[nkeys++], 1, BTEqualStrategyNumber, reader->stream_id);
			if (request->from_version > 1)
				key_int32(&keys[nkeys++], 2, BTGreaterEqualStrategyNumber,
						  (int32) Min(request->from_version, PG_INT32_MAX));
			if (request->until_version < PG_INT32_MAX)
				key_int32(&keys[nkeys++], 2, BTLessEqualStrategyNumber,
						  (int32) request->until_version);
			add_range(reader, INDEX_STREAM, keys, nkeys, false);
			break;
	}
	return true;
}

/*
 * The next segment that has positions of a list.  The index goes through them
 * by itself, in their order.
 */
static bool
next_segment_by_positions(Reader *reader)
{
	ReadRequest *request = &reader->request;

	while (reader->next_position < request->npositions)
	{
		int			first = reader->next_position;
		int			index = segment_index_for(request->positions[first]);
		int			count = 0;
		Segment		segment;
		ScanKeyData key;
		Datum	   *elements;

		if (index >= segment_count())
			return false;
		segment = segment_at(index);
		if (segment.first > request->positions[first])
		{
			reader->next_position++;
			continue;
		}
		while (first + count < request->npositions &&
			   request->positions[first + count] < segment.end)
			count++;
		reader->next_position = first + count;
		begin_segment(reader, segment, 1);
		elements = palloc(sizeof(Datum) * count);
		for (int i = 0; i < count; i++)
			elements[i] = Int64GetDatum(request->positions[first + i]);
		ScanKeyEntryInitialize(&key, SK_SEARCHARRAY, 1, BTEqualStrategyNumber, InvalidOid,
							   InvalidOid, F_INT8EQ,
							   PointerGetDatum(construct_array(elements, count, INT8OID,
															   sizeof(int64), FLOAT8PASSBYVAL,
															   TYPALIGN_DOUBLE)));
		add_range(reader, INDEX_POSITION, &key, 1, false);
		pfree(elements);
		return true;
	}
	return false;
}

/* ----------------------------------------------------------------
 * The reader
 * ----------------------------------------------------------------
 */

/* Begins a read.  The reader lives in a context of its own, below this one. */
Reader *
reader_open(const ReadRequest *request)
{
	MemoryContext context;
	MemoryContext saved;
	Reader	   *reader;

	catalog_require_read(catalog_store());
	context = AllocSetContextCreate(CurrentMemoryContext, "event_store reader",
									ALLOCSET_DEFAULT_SIZES);
	saved = MemoryContextSwitchTo(context);
	reader = palloc0(sizeof(Reader));
	reader->context = context;
	reader->request = *request;
	reader->counts.mark = -1;
	reader->dense_above = -1;
	reader->id_key = counter_id_key();
	if (request->kind == READ_EVENT_ID)
		reader->made_position = ids_position(&request->event_id, reader->id_key);

	switch (request->kind)
	{
		case READ_CATEGORY:
		case READ_ALL:
		case READ_SINCE:
			{
				bool		whole = !request->by_category && !request->by_type;

				/* first the mark, then the snapshot */
				reader->counts.mark = settled_mark();
				reader->snapshot = RegisterSnapshot(GetLatestSnapshot());
				segment_refresh();
				if (request->by_category)
					reader->categories = ids_of_names(NAME_CATEGORY, &request->categories);
				if (request->by_type)
					reader->types = ids_of_names(NAME_EVENT_TYPE, &request->types);
				if (IsolationUsesXactSnapshot())
					reader->own_snapshot = RegisterSnapshot(GetActiveSnapshot());
				reader->high = reader->counts.mark;
				if (RecoveryInProgress() && whole && !request->backward)
				{
					reader->dense_above = reader->counts.mark;
					reader->high = PG_INT64_MAX - 1;
				}
				if (request->backward)
				{
					reader->low = 1;
					if (request->after_position > 0)
						reader->high = Min(reader->high, request->after_position - 1);
				}
				else if (request->kind == READ_SINCE)
					reader->low = position_since(reader, request->since);
				else if (request->after_position == PG_INT64_MAX)
					reader->done = true;
				else
					reader->low = request->after_position + 1;
				reader->last_position = reader->low - 1;
			}
			break;

		case READ_POSITIONS:
			reader->snapshot = RegisterSnapshot(GetLatestSnapshot());
			segment_refresh();
			break;

		default:
			reader->snapshot = RegisterSnapshot(GetActiveSnapshot());
			segment_refresh();
			if (request->stream != NULL)
			{
				StreamInput stream;

				if (append_find_stream(VARDATA_ANY(request->stream),
									   VARSIZE_ANY_EXHDR(request->stream),
									   reader->snapshot, &stream))
				{
					reader->stream_id = stream.id;
					list_segments(reader, &stream);
				}
				else
					reader->done = true;
			}
			else
				list_segments(reader, NULL);
			if (request->type != NULL)
			{
				reader->type_id = names_find(NAME_EVENT_TYPE,
											 VARDATA_ANY(request->type),
											 VARSIZE_ANY_EXHDR(request->type));
				if (reader->type_id == 0)
					reader->done = true;
			}
			if (request->from_version > request->until_version)
				reader->done = true;
			if (!reader->done)
				bound_by_time(reader);
			if (!reader->done)
				find_first_segment(reader);
			break;
	}
	reader->durable = durable_begin(reader->snapshot);
	MemoryContextSwitchTo(saved);
	return reader;
}

/* The next row of the current segment, merged from its ranges; NULL: no more. */
static Probe *
next_in_segment(Reader *reader)
{
	if (reader->heap == NULL)
	{
		Probe	   *probe = &reader->ranges[0].probe;

		return probe_next(probe, direction(reader)) ? probe : NULL;
	}

	for (;;)
	{
		Range	   *range = reader->current;

		/* now that its row is done with, the range that gave it moves on */
		if (range != NULL)
		{
			if (advance_range(reader, range))
				binaryheap_replace_first(reader->heap, PointerGetDatum(range));
			else
				(void) binaryheap_remove_first(reader->heap);
		}
		if (binaryheap_empty(reader->heap))
			return NULL;
		range = reader->current =
			(Range *) DatumGetPointer(binaryheap_first(reader->heap));
		if (fetch_row(&reader->fetch, &range->probe))
			return &reader->fetch.row;
		CHECK_FOR_INTERRUPTS();
	}
}

/* Is the row one that was asked for?  Sets done where nothing can follow. */
static bool
accept(Reader *reader, Probe *probe)
{
	ReadRequest *request = &reader->request;
	bool		isnull;

	if (request->kind == READ_STREAM || request->kind == READ_LAST)
	{
		/* all columns at once where every row is handed out */
		if (reader->type_id == 0 && !request->has_until_time)
			slot_getallattrs(probe->slot);
		reader->last_version = probe_int32(probe, EV_VERSION);
		if (reader->type_id != 0 && probe_int32(probe, EV_TYPE_ID) != reader->type_id)
			return false;
		if (request->has_until_time)
		{
			TimestampTz at = DatumGetTimestampTz(probe_value(probe, EV_OCCURRED_AT, &isnull));

			if (isnull)
				at = DatumGetTimestampTz(probe_value(probe, EV_RECORDED_AT, &isnull));
			if (at > request->until_time)
				return false;
		}
		return true;
	}
	if (request->kind == READ_EVENT_ID)
		return (reader->stream_id == 0 ||
				probe_int64(probe, EV_STREAM_ID) == reader->stream_id) &&
			(!reader->by_made_id || id_is_made(probe, &request->event_id)) &&
			is_within_time(request, probe);
	if (request->kind == READ_TRACE)
		return is_within_time(request, probe);
	if (request->kind == READ_POSITIONS)
		return true;

	if (reader->dense_above >= 0)
	{
		int64		position = probe_int64(probe, EV_POSITION);

		if (position > Max(reader->last_position, reader->dense_above) + 1)
		{
			reader->done = true;
			return false;
		}
		reader->last_position = position;
	}
	if (reader->own_snapshot != NULL &&
		!table_tuple_satisfies_snapshot(probe->heap, probe->slot, reader->own_snapshot))
	{
		if (!request->backward)
			reader->done = true;
		return false;
	}
	if (reader->filter)
	{
		if (request->by_category &&
			!contains_id(&reader->categories, probe_int32(probe, EV_CATEGORY_ID)))
			return false;
		if (request->by_type &&
			!contains_id(&reader->types, probe_int32(probe, EV_TYPE_ID)))
			return false;
	}
	return true;
}

static Datum
buffered_name(NameBuffer *buffer, int64 id, const text *name)
{
	Size		size = VARSIZE_ANY(name);

	if (unlikely(size > sizeof(buffer->name)))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("name of id %lld is too long", (long long) id)));
	memcpy(&buffer->name, name, size);
	buffer->id = id;
	return PointerGetDatum(&buffer->name);
}

static Datum
type_name(Reader *reader, int32 type_id)
{
	NameBuffer **kept = &reader->type_names[(uint32) type_id % KEPT_TYPES];

	if (unlikely(*kept == NULL))
	{
		*kept = palloc(sizeof(NameBuffer));
		(*kept)->id = 0;
	}
	if (likely((*kept)->id == type_id))
		return PointerGetDatum(&(*kept)->name);
	return buffered_name(*kept, type_id, names_text(NAME_EVENT_TYPE, type_id));
}

/* The columns of event_store.recorded_event; good until the next call. */
static void
event_values(Reader *reader, Probe *probe, Datum *values, bool *nulls)
{
	TupleTableSlot *slot = probe->slot;
	Datum	   *event;
	bool	   *event_nulls;
	uint32		columns = reader->request.columns == 0 ? PG_UINT32_MAX : reader->request.columns;
	int64		stream_id;
	int32		type_id;

#define WANTED(column) ((columns & (UINT32_C(1) << (column))) != 0)

	slot_getallattrs(slot);
	event = slot->tts_values;
	event_nulls = slot->tts_isnull;

#define COPY(to, from) \
	do { values[to] = event[(from) - 1]; nulls[to] = event_nulls[(from) - 1]; } while (0)

	stream_id = reader->row_stream_id = DatumGetInt64(event[EV_STREAM_ID - 1]);
	type_id = DatumGetInt32(event[EV_TYPE_ID - 1]);
	nulls[RE_STREAM] = !WANTED(RE_STREAM);
	if (WANTED(RE_STREAM))
		values[RE_STREAM] = reader->stream_name.id == stream_id ?
			PointerGetDatum(&reader->stream_name.name) :
			buffered_name(&reader->stream_name, stream_id,
						  names_stream(stream_id, &reader->stream_names, reader->snapshot));
	nulls[RE_TYPE] = !WANTED(RE_TYPE);
	if (WANTED(RE_TYPE))
		values[RE_TYPE] = type_name(reader, type_id);
	nulls[RE_SOURCE] = event_nulls[EV_SOURCE_ID - 1] || !WANTED(RE_SOURCE);
	if (!nulls[RE_SOURCE])
	{
		int32		source_id = DatumGetInt32(event[EV_SOURCE_ID - 1]);

		values[RE_SOURCE] = reader->source_name.id == source_id ?
			PointerGetDatum(&reader->source_name.name) :
			buffered_name(&reader->source_name, source_id,
						  names_text(NAME_SOURCE, source_id));
	}
	else
		values[RE_SOURCE] = (Datum) 0;
	COPY(RE_POSITION, EV_POSITION);
	COPY(RE_VERSION, EV_VERSION);
	COPY(RE_SCHEMA_VERSION, EV_SCHEMA_VERSION);
	if (nulls[RE_SCHEMA_VERSION])
	{
		values[RE_SCHEMA_VERSION] = Int32GetDatum(1);
		nulls[RE_SCHEMA_VERSION] = false;
	}
	COPY(RE_EVENT_ID, EV_EVENT_ID);
	COPY(RE_RECORDED_AT, EV_RECORDED_AT);
	if (nulls[RE_EVENT_ID] && WANTED(RE_EVENT_ID))
	{
		ids_derive(&reader->made_id, DatumGetInt64(values[RE_POSITION]),
				   DatumGetTimestampTz(values[RE_RECORDED_AT]), reader->id_key);
		values[RE_EVENT_ID] = UUIDPGetDatum(&reader->made_id);
		nulls[RE_EVENT_ID] = false;
	}
	COPY(RE_OCCURRED_AT, EV_OCCURRED_AT);
	if (nulls[RE_OCCURRED_AT])
		COPY(RE_OCCURRED_AT, EV_RECORDED_AT);
	COPY(RE_CORRELATION_ID, EV_CORRELATION_ID);
	COPY(RE_CAUSATION_ID, EV_CAUSATION_ID);
	COPY(RE_DATA, EV_DATA);
	COPY(RE_METADATA, EV_METADATA);

#undef WANTED
#undef COPY
}

/* The next event, as values that stay good until the next call. */
bool
reader_next(Reader *reader, Datum *values, bool *nulls)
{
	MemoryContext saved = MemoryContextSwitchTo(reader->context);
	Probe	   *row = NULL;

	while (!reader->done)
	{
		if (reader->returned >= reader->request.max_count)
			reader->done = true;
		else if (!reader->in_segment)
		{
			CHECK_FOR_INTERRUPTS();
			if (!(reader->request.kind == READ_POSITIONS ? next_segment_by_positions(reader) :
				  reader->by_list ? next_segment_by_list(reader) :
				  next_segment_by_position(reader)))
				reader->done = true;
		}
		else if ((row = next_in_segment(reader)) == NULL)
			end_segment(reader);
		else
		{
			if (accept(reader, row))
				break;
			row = NULL;
			reader->counts.filtered++;
			CHECK_FOR_INTERRUPTS();
		}
	}
	if (row != NULL && !reader->done)
	{
		if (!reader->durable)
			reader->durable = durable_row(row->slot, reader->snapshot);
		if (reader->request.positions_only)
		{
			reader->row_stream_id = probe_int64(row, EV_STREAM_ID);
			values[RE_POSITION] = Int64GetDatum(probe_int64(row, EV_POSITION));
			nulls[RE_POSITION] = false;
		}
		else
			event_values(reader, row, values, nulls);
		reader->returned++;
	}
	MemoryContextSwitchTo(saved);
	return row != NULL && !reader->done;
}

/* Before the first event: only these columns are looked at; others may be NULL. */
void
reader_want(Reader *reader, uint32 columns)
{
	reader->request.columns = columns;
}

/* The stream of the event that was returned last. */
int64
reader_stream_id(const Reader *reader)
{
	return reader->row_stream_id;
}

/* The stream whose events were asked for; 0: there is none of that name. */
int64
reader_asked_stream(const Reader *reader)
{
	return reader->stream_id;
}

/* Reads a stream anew, by the same snapshot, forward from a version. */
void
reader_restart(Reader *reader, int64 from_version)
{
	MemoryContext saved = MemoryContextSwitchTo(reader->context);

	if (reader->in_segment)
		end_segment(reader);
	reader->request.from_version = from_version;
	reader->last_version = 0;
	reader->returned = 0;
	reader->done = reader->stream_id == 0 ||
		from_version > reader->request.until_version;
	if (!reader->done)
		find_first_segment(reader);
	MemoryContextSwitchTo(saved);
}

void
reader_close(Reader *reader)
{
	if (reader->in_segment)
		end_segment(reader);
	names_end_streams(&reader->stream_names);
	if (reader->own_snapshot != NULL)
		UnregisterSnapshot(reader->own_snapshot);
	UnregisterSnapshot(reader->snapshot);
	MemoryContextDelete(reader->context);
}

ReadCounts
reader_counts(const Reader *reader)
{
	return reader->counts;
}
