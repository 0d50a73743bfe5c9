/*
 * projection.h
 *		Read models that are kept up to date: see README.md beside this file.
 */
#ifndef EVENT_STORE_PROJECTION_H
#define EVENT_STORE_PROJECTION_H

#include "fmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "stream/read.h"
#include "stream/stream.h"

typedef enum ProjectionKind
{
	PROJECTION_SET,				/* SQL statements over a batch of events */
	PROJECTION_EVENT,			/* a function of one event */
	PROJECTION_FOLD,			/* a state by stream, or by key */
	PROJECTION_MATVIEW			/* a materialized view that is refreshed */
} ProjectionKind;

typedef enum ProjectionMode
{
	PROJECTION_ASYNC,			/* by refresh_projection(), which the worker calls */
	PROJECTION_INLINE,			/* in the transaction that appends */
	PROJECTION_LIVE				/* at each read */
} ProjectionMode;

/* a projection, and how far it is; texts and arrays in the caller's context */
typedef struct Projection
{
	int32		id;
	int64		revision;		/* another one: it has been altered */
	char	   *name;
	ProjectionKind kind;
	ProjectionMode mode;
	char	   *handler;
	char	   *key;			/* of a fold: an expression; NULL: the stream */
	bool		by_category;
	NameList	categories;
	bool		by_type;
	NameList	types;
	char	   *owner;
	Oid			owner_id;		/* in the cluster of that identifier */
	uint64		cluster_id;
	char	   *search_path;
	char	   *time_zone;
	bool		paused;
	NameList	tables;			/* that the handler writes */
	int32		rebuilds;		/* the projection that it is a rebuild of; 0: none */
	bool		keep_old;		/* which is kept, then */
	uint64		since;			/* a transaction: of a rebuild, when it had caught up; of what was in
								 * service before, when it was replaced; 0: neither */

	int64		start_after;	/* a position: it knows nothing of the events before */

	/* bounds of a batch */
	int			batch_events;
	int64		batch_size;		/* bytes */
	double		refresh_every;	/* of a materialized view: seconds */

	/* what becomes of an event that fails; times in seconds */
	bool		skips;			/* it is passed over in the end */
	int			max_attempts;
	double		first_delay;
	double		delay_factor;
	double		max_delay;

	/* the checkpoint */
	int64		version;
	int64		position;
	int64		applied;		/* events so far */
	TimestampTz applied_at;
	double		rate;
	TimestampTz rate_since;
	int64		limit;			/* it is refreshed no further */

	/* the event that failed last, if it is not over */
	bool		failing;
	bool		stopped;
	int64		failed_position;	/* 0: not known which */
	int			attempts;
	TimestampTz next_attempt_at;
} Projection;

/* where the events of a batch come from */
typedef struct EventSource EventSource;
struct EventSource
{
	/* the next one: columns of recorded_event, good until the next call */
	bool		(*next) (EventSource *source, Datum *values, bool *nulls);
	/* before the first: only these columns are looked at, bits of RE_…; NULL: no matter */
	void		(*want) (EventSource *source, uint32 columns);
	/* begins again with the batch; NULL: it cannot; those of an append can */
	void		(*rewind) (EventSource *source);
};

/* what has been applied */
typedef struct Applied
{
	TimestampTz until;			/* asked for: where events are handled one by one, no longer; 0: all */
	int64		count;
	int64		position;		/* of the last event */
	bool		ended;			/* there was no further one */
} Applied;

/* ----------------------------------------------------------------
 * define.c: the rows of projections
 * ----------------------------------------------------------------
 */
extern text *projection_name_argument(FunctionCallInfo fcinfo, int n);
extern void projection_guard(const char *what);
extern bool projection_find(text *name, Projection *projection);
extern void projection_read(text *name, Projection *projection);
extern void projection_read_latest(text *name, Projection *projection);
extern bool projection_read_id(int32 id, Projection *projection);
extern void projection_read_locked(text *name, Projection *projection);
extern bool projection_read_twin(int32 id, Projection *twin);
extern void projection_require_owner(const Projection *projection);
extern void projection_not_by_handler(const Projection *projection);
extern void projection_remove(Projection *projection);
extern void projection_make_state_table(int32 id);
extern void projection_drop_left_tables(void);
extern void projection_void_lists(void);
extern void projection_keep_appenders_out(void);
extern bool projection_lock(int32 id, bool wait);
extern void projection_unlock(int32 id);
extern bool projection_has_lock(int32 id);
extern void projection_lock_keys(int32 id, bool all);
extern void projection_lock_key(int32 id, const char *key, int len);
extern void projection_write_checkpoint(Projection *projection, const Applied *applied);
extern void projection_write_error(Projection *projection, const ErrorData *error,
								   int64 position, bool stopped, TimestampTz next_attempt_at);
extern void projection_clear_error(Projection *projection);
extern void projection_write_dead(Projection *projection, const ErrorData *error,
								  int64 position);
extern int64 *projection_read_dead(const Projection *projection, int *count);
extern Projection *projection_inline_list(int *count);
extern bool projection_any_asynchronous(void);
extern void projection_copy(Projection *copy, const Projection *projection);
extern void projection_check_snapshot(const Projection *projection);
extern char *projection_state_table(int32 id);

/* ----------------------------------------------------------------
 * apply.c: a batch of events and its handler
 * ----------------------------------------------------------------
 */
typedef struct HandlerRights
{
	Oid			user;
	int			context;
	int			guc_level;
} HandlerRights;

extern void apply_begin(const Projection *projection, HandlerRights *saved);
extern void apply_end(HandlerRights *saved);
extern void apply_check(const Projection *projection);
extern void apply_batch(const Projection *projection, EventSource *source,
						int64 max_count, Applied *applied);
extern bool apply_is_running(int32 id);
extern void apply_forget(int32 id);
extern bool apply_is_replaying(void);
extern Datum apply_live(const Projection *projection, EventSource *source, text *wanted,
						bool *isnull);
extern void apply_as_of(const Projection *projection, EventSource *source,
						Tuplestorestate *result, TupleDesc desc);
extern Datum apply_read_state(const Projection *projection, text *key, bool *isnull);
extern void apply_init(void);

extern void refresh_init(void);

/* rebuild.c */
extern Datum rebuild_check_tables(const Projection *projection, Datum array);
extern void rebuild_drop_tables(const Projection *twin);
extern int64 rebuild_writes_in_service(const Projection *twin);
extern int64 rebuild_limit(const Projection *projection);
extern bool rebuild_was_in_service(const Projection *twin);
extern bool rebuild_leads(const Projection *twin);
extern void rebuild_forget_lead(int32 id);
extern bool rebuild_is_due(Projection *twin);
extern bool rebuild_switch(Projection *twin);
extern bool rebuild_tidy(Projection *twin);

/* inline.c */
extern void inline_init(void);

/* all of the folder */
extern void projection_init(void);

/* refresh.c */
extern bool refresh_run(Projection *projection, int64 max_count, TimestampTz until,
						int64 *total);
extern void refresh_tidy(int32 id);

#endif
