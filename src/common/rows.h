/*
 * rows.h
 *		Rows of the extension's tables, past the executor: see rows.c.
 */
#ifndef EVENT_STORE_ROWS_H
#define EVENT_STORE_ROWS_H

#include "access/genam.h"
#include "access/skey.h"
#include "catalog/indexing.h"
#include "executor/tuptable.h"
#include "storage/buf.h"
#include "utils/rel.h"
#include "utils/snapshot.h"
#include "utils/uuid.h"

/* the indexes of a segment that the extension reads by */
typedef enum SegmentIndex
{
	INDEX_POSITION,				/* (position) */
	INDEX_STREAM,				/* (stream_id, version) */
	INDEX_EVENT_ID,				/* (event_id), where not null */
	INDEX_CATEGORY,				/* (category_id, type_id, position) */
	INDEX_CORRELATION,			/* (correlation_id, position), where not null */
	SEGMENT_INDEXES
} SegmentIndex;

/* an open scan of one range of one index */
typedef struct Probe
{
	Relation	heap;
	Relation	index;
	LOCKMODE	lock;
	IndexScanDesc scan;
	TupleTableSlot *slot;		/* the row found */
	Snapshot	snapshot;
	Buffer		visibility;		/* page of the visibility map, if one is pinned */
} Probe;

/* what fetches the rows of entries that several probes have found */
typedef struct RowFetch
{
	Probe		row;			/* heap, slot and snapshot only */
	struct IndexFetchTableData *state;
} RowFetch;

extern void probe_open(Probe *probe, Oid heap, const Oid *index, LOCKMODE lock,
					   Snapshot snapshot, ScanKey keys, int nkeys);
extern void probe_again(Probe *probe, ScanKey keys, int nkeys);
extern bool probe_next(Probe *probe, ScanDirection direction);
extern void probe_close(Probe *probe, bool keep_locks);
extern Datum probe_value(Probe *probe, int attno, bool *isnull);
extern int64 probe_int64(Probe *probe, int attno);
extern int32 probe_int32(Probe *probe, int attno);

extern void key_int64(ScanKey key, int attno, int strategy, int64 value);
extern void key_int32(ScanKey key, int attno, int strategy, int32 value);
extern void key_text(ScanKey key, int attno, int strategy, Datum value);
extern void key_text_hash(ScanKey key, int attno, Datum value);
extern void key_uuid(ScanKey key, int attno, Datum value);
extern bool rows_may_have_uuid(Relation heap, Relation index, const pg_uuid_t *value);

extern void probe_open_segment(Probe *probe, Oid segment, SegmentIndex which,
							   LOCKMODE lock, Snapshot snapshot,
							   ScanKey keys, int nkeys);
extern void probe_open_segment_entries(Probe *probe, Oid segment, SegmentIndex which,
									   LOCKMODE lock, Snapshot snapshot,
									   ScanKey keys, int nkeys);
extern bool probe_next_entry(Probe *probe, ScanDirection direction);
extern bool probe_next_shown_entry(Probe *probe, ScanDirection direction);
extern int64 probe_entry_int64(Probe *probe, int attno);
extern int32 probe_entry_int32(Probe *probe, int attno);
extern void fetch_open(RowFetch *fetch, Probe *any);
extern bool fetch_row(RowFetch *fetch, Probe *probe);
extern void fetch_close(RowFetch *fetch);
extern void rows_insert_events(Relation segment, HeapTuple *tuples, int ntuples);
extern CatalogIndexState rows_open_small(Oid relid, Relation *rel);
extern void rows_close_small(Relation rel, CatalogIndexState indexes);
extern void rows_insert_small(Oid relid, Datum *values, const bool *nulls);
extern void rows_init(void);

#endif
