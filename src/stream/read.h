/*
 * read.h
 *		Reading events: a request, and the reader that answers it row by row.
 */
#ifndef EVENT_STORE_READ_H
#define EVENT_STORE_READ_H

#include "executor/tuptable.h"
#include "fmgr.h"
#include "nodes/extensible.h"
#include "nodes/pathnodes.h"
#include "utils/expandedrecord.h"
#include "utils/uuid.h"

#include "common/values.h"
#include "position/position.h"

/* the functions that read events, in the order of read_functions[] */
typedef enum ReadKind
{
	READ_STREAM,
	READ_CATEGORY,
	READ_ALL,
	READ_SINCE,
	READ_EVENT_ID,
	READ_LAST,
	READ_TRACE,
	READ_POSITIONS,				/* those of a list: not an SQL function */
	READ_KINDS
} ReadKind;

#define READ_MAX_ARGS	6

/* what is asked for; texts and arrays stand in the reader's memory */
typedef struct ReadRequest
{
	ReadKind	kind;
	bool		backward;
	bool		positions_only; /* no other column is set */
	uint32		columns;		/* bits of those that are set, RE_…; 0: all */
	int64		max_count;		/* PG_INT64_MAX: all */

	/* by stream */
	text	   *stream;			/* NULL: none given */
	text	   *type;			/* NULL: any */
	int64		from_version;
	int64		until_version;
	bool		has_until_time;
	TimestampTz until_time;

	/* by position */
	int64		after_position;
	TimestampTz since;
	bool		by_category;
	NameList	categories;
	bool		by_type;
	NameList	types;
	int			npositions;		/* READ_POSITIONS: settled ones, ascending */
	const int64 *positions;

	/* by id */
	pg_uuid_t	event_id;
	text	   *correlation_id;
	bool		has_since;		/* since, and until then, recorded */
	bool		has_until;
	TimestampTz until;
} ReadRequest;

typedef struct Reader Reader;

/* what a reader has done, for EXPLAIN ANALYZE */
typedef struct ReadCounts
{
	int64		segments;
	int64		ranges;
	int64		filtered;
	int64		mark;			/* -1: the read is not bound by it */
} ReadCounts;

/*
 * A function that returns events.  A folder that is not known here adds its own,
 * with what hands out its rows.
 */
typedef struct ReadFunction
{
	const char *name;
	PGFunction	function;
	int			nargs;
	int			max_count;		/* -1: has none */
	int			backward;		/* -1: has none */
	bool		by_version;		/* rows come in order of version */

	/* NULL: a reader does it */
	void	   *(*open) (const Datum *values, const bool *nulls);
	bool		(*next) (void *rows, Datum *values, bool *nulls);
	void		(*close) (void *rows);
	ReadCounts	(*counts) (void *rows);
} ReadFunction;

extern const char *read_index_columns(const ReadRequest *request);
extern void read_request(ReadRequest *request, ReadKind kind, int nargs,
						 const Datum *values, const bool *nulls);
extern Reader *reader_open(const ReadRequest *request);
extern bool reader_next(Reader *reader, Datum *values, bool *nulls);
extern int64 reader_stream_id(const Reader *reader);
extern int64 reader_asked_stream(const Reader *reader);
extern void reader_restart(Reader *reader, int64 from_version);
extern void reader_want(Reader *reader, uint32 columns);
extern void reader_close(Reader *reader);
extern ReadCounts reader_counts(const Reader *reader);

/* scan.c */
extern void scan_add_function(const ReadFunction *function);
extern Datum scan_rows(FunctionCallInfo fcinfo);
extern ExpandedRecordHeader *scan_make_row(MemoryContext context);
extern Datum scan_row_value(ExpandedRecordHeader *row, Datum *values, bool *nulls);
extern CustomScan *scan_make_plan(RelOptInfo *rel, CustomPath *path, List *tlist,
								  List *clauses, const CustomScanMethods *methods);

#endif
