/*
 * stream.h
 *		Appending to streams and reading them.
 */
#ifndef EVENT_STORE_STREAM_H
#define EVENT_STORE_STREAM_H

#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "common/catalog.h"
#include "common/rows.h"
#include "position/position.h"

#define ANY_VERSION		(-2)
#define STREAM_EXISTS	(-4)

/*
 * Heavyweight locks on streams that one transaction keeps, and one call takes:
 * half of what the lock table is made for per transaction by default.
 */
#define MAX_HELD		32

/* a stream of an append */
typedef struct StreamInput
{
	const char *name;
	int			len;
	int64		expected_version;
	int			nevents;		/* in this append */

	/* what the append found and did */
	uint64		lock_key;
	bool		holds_lock;		/* taken by this call, and to be let go of */
	int64		id;				/* 0: does not exist yet */
	int32		category_id;
	int32		version;		/* before the append, and then after it */
	bool		duplicate;
	bool		note_segments;	/* the row wants a new value of segments */
	int64	   *segments;		/* pairs, see event_store.stream.segments */
	int			nsegments;
	ItemPointerData tid;		/* of its row */
	bool		row_is_younger; /* than the snapshot of a REPEATABLE READ transaction */
	int32		first_version;
	int32		last_version;
	int64		first_position;
	int64		last_position;
	TimestampTz created_at;
} StreamInput;

/* an event of an append */
typedef struct EventInput
{
	int			stream;			/* number of its stream */
	const char *type;
	int			type_len;
	const char *source;			/* NULL for none */
	int			source_len;
	Datum		data;			/* jsonb */
	Datum		metadata;		/* jsonb */
	Datum		correlation_id; /* text, if has_correlation */
	pg_uuid_t	event_id;
	pg_uuid_t	causation_id;
	TimestampTz occurred_at;
	int32		schema_version;
	bool		has_event_id;
	bool		has_causation_id;
	bool		has_occurred_at;
	bool		has_correlation_id;
	int32		wanted_version; /* by a row of the view, 0 for none */

	/* what the append found and did */
	bool		duplicate;
	int32		type_id;
	int32		source_id;
	int32		version;
	int64		position;
} EventInput;

/* an append: some events, in order, to some streams */
typedef struct AppendBatch
{
	int			nstreams;
	StreamInput *streams;
	int			nevents;
	EventInput *events;

	/*
	 * Rows of INSERT and COPY stand for a call of append() each, so each may
	 * be a duplicate by itself; the events of a batch are all or none.
	 */
	bool		by_row;

	TimestampTz recorded_at;	/* found */
} AppendBatch;

/*
 * What must happen inside an append and is not the append's own business
 * registers itself here.  A hook is called once for each append that wrote
 * something, after its rows, in the appender's transaction, which sees them;
 * an error aborts the append.
 */
typedef void (*AppendHook) (const AppendBatch *append);

/* input.c */
extern void input_check_name(const char *what, const char *name, int len);
extern text *input_name_argument(FunctionCallInfo fcinfo, int n, const char *what);

/* an argument that is a number or a length of time, and what it can be */
typedef struct Setting
{
	const char *name;
	Oid			type;			/* int4, float8 or interval */
	double		low;
	double		high;			/* of an interval: seconds */
} Setting;

extern void input_check_settings(FunctionCallInfo fcinfo, int first,
								 const Setting *settings, int count);
extern int	input_category_length(const char *stream, int len);
extern void input_stream_name(StreamInput *stream, text *name);
extern void input_type(EventInput *event, text *type);
extern void input_source(EventInput *event, text *source);
extern void input_correlation_id(EventInput *event, text *value);
extern void input_metadata(Jsonb *metadata);
extern void input_schema_version(int32 schema_version);
extern void input_occurred_at(TimestampTz occurred_at);
extern int64 input_expected_version(int64 expected);
extern void input_batch_size(Jsonb *batch);
extern void input_batch_events(int64 nevents);
extern void input_batch_of_stream(AppendBatch *append, text *stream, Jsonb *events,
								  int64 expected_version);
extern void input_batch_of_streams(AppendBatch *append, Jsonb *appends);

/* append.c */
extern void append_write(AppendBatch *append);
extern void append_add_hook(AppendHook hook);
extern void append_read_segments(Probe *probe, StreamInput *stream);
extern bool append_find_stream(const char *name, int len, Snapshot snapshot,
							   StreamInput *found);
extern void append_guard(const char *what);
extern int64 append_expected_version(FunctionCallInfo fcinfo, int n);
extern void append_read_arguments(FunctionCallInfo fcinfo, int n, bool has_event_id,
								  StreamInput *stream, EventInput *event);
extern void append_recorded_values(const AppendBatch *append, const EventInput *event,
								   int64 id_key, pg_uuid_t *made_id, Datum *values, bool *nulls);
extern void append_result_values(const StreamInput *stream, Datum *values, bool *nulls);
extern Datum append_result_datum(const StreamInput *stream);

/* id_range.c */
extern bool id_range_may_hold(Segment segment, const pg_uuid_t *id, int64 *mark);
extern bool id_is_made(Probe *probe, const pg_uuid_t *id);
extern void id_range_init(void);

/* guard.c */
extern PGDLLEXPORT Datum event_store_refuse_change(PG_FUNCTION_ARGS);

/* bulk.c */
extern void bulk_init(void);

/* scan.c */
extern void scan_init(void);

/* all of the folder */
extern void stream_init(void);

#endif
