/*
 * batch_scan.h
 *		The events of a batch, as the relation new_events.
 */
#ifndef EVENT_STORE_BATCH_SCAN_H
#define EVENT_STORE_BATCH_SCAN_H

#include "executor/spi.h"
#include "nodes/parsenodes.h"

#include "projection/projection.h"
#include "stream/stream.h"

#define NEW_EVENTS	"new_events"

typedef struct Batch
{
	EventSource *source;
	const bool *columns;		/* those that are looked at; the others are NULL */
	int64		max_count;
	int64		max_size;		/* in bytes, and an event beyond */
	Applied    *applied;

	/* the rest is batch_scan.c's; zero before it begins */
	int64		size;
	bool		scanned;
	bool		has_first;
	Datum		first[RE_NATTS];
	bool		first_nulls[RE_NATTS];
} Batch;

extern bool batch_is_read_once(Query *query);
extern bool batch_begin(Batch *batch);
extern bool batch_next(Batch *batch, Datum *values, bool *nulls);
extern int	batch_execute(Batch *batch, SPIPlanPtr plan, SPIExecuteOptions *options);
extern void batch_finish(Batch *batch);
extern void batch_scan_init(void);

#endif
