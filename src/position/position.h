/*
 * position.h
 *		Global order: the counter, the settled mark, segments.  The invariants
 *		and their proof stand in README.md beside this file.
 */
#ifndef EVENT_STORE_POSITION_H
#define EVENT_STORE_POSITION_H

#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "utils/snapshot.h"

#include "common/catalog.h"

#define DEFAULT_SEGMENT_SIZE	INT64CONST(1000000)
#define MIN_SEGMENT_SIZE		INT64CONST(16)
#define MAX_SEGMENT_SIZE		INT64CONST(1000000000000)

/* counter.c */
extern int64 counter_id_key(void);
extern int64 counter_read(void);
extern int64 counter_draw(int64 count, TimestampTz *recorded_at);
extern int64 counter_published_mark(void);
extern int64 counter_publish(int64 mark);

/* settled.c */
extern void settled_announce(int64 last_position);
extern int64 settled_mark(void);
extern int64 settled_own_bound(void);
extern void position_init(void);

/* durable.c */
extern bool durable_begin(Snapshot snapshot);
extern bool durable_row(TupleTableSlot *slot, Snapshot snapshot);

/* segment.c */
typedef struct Segment
{
	Oid			relid;
	int64		first;			/* first position */
	int64		end;			/* first position after it */
} Segment;

extern void segment_refresh(void);
extern int	segment_count(void);
extern Segment segment_at(int index);
extern int	segment_index_for(int64 position);
extern Segment segment_for_append(int64 position, int64 needed_to);
extern void segment_notice(int64 first, int64 last);
extern void segment_init(void);

#endif
