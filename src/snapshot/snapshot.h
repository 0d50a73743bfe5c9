/*
 * snapshot.h
 *		Snapshots of streams: see README.md beside this file.
 *
 * A snapshot of PostgreSQL's is a Snapshot, as ever; ours is a SavedState.
 */
#ifndef EVENT_STORE_SNAPSHOT_H
#define EVENT_STORE_SNAPSHOT_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "utils/snapshot.h"

#include "projection/fold.h"
#include "stream/read.h"

/* snapshots of a stream that can be kept */
#define MAX_KEEP	10000

/* which snapshots belong together */
typedef struct StateKey
{
	int64		stream_id;
	text	   *fold;			/* of no bytes: saved by hand, without a name */
	int32		schema_version;
} StateKey;

/* a snapshot as it was found */
typedef struct SavedState
{
	int32		version;
	int64		position;		/* of the event of that version */
	TimestampTz recorded_at;	/* its */
	bool		isnull;
	Datum		state;			/* jsonb, in the caller's memory; perhaps toasted */
} SavedState;

/* how far a stream is folded */
typedef struct StateBounds
{
	int64		until_version;
	bool		has_until_time;
	TimestampTz until_time;
	int64		max_events;		/* that are folded */
} StateBounds;

/* what folding a stream came to */
typedef struct FoldedState
{
	int64		stream_id;		/* 0: there is no such stream */
	int32		version;		/* of the last event in it; 0: none */
	int64		position;
	TimestampTz recorded_at;
	int32		begun_at;		/* version of the snapshot it began with; 0: none */
	int64		folded;			/* events since then */
	bool		at_end;			/* no event is left within the bounds */
	bool		isnull;
	Datum		state;			/* jsonb, in the caller's memory */
} FoldedState;

/* a policy, as far as whoever folds one stream wants to know */
typedef struct SnapshotPolicy
{
	int32		schema_version;
	int32		every_events;
	int32		keep;
	TimestampTz created_at;		/* another one: it was dropped, and set anew */
	NameList	categories;		/* names NULL: all */
} SnapshotPolicy;

/* save.c */
extern bool saved_find(const StateKey *key, int64 until_version,
					   const TimestampTz *until_time, Snapshot snapshot,
					   SavedState *found);
extern bool saved_resume(Reader *reader, const StateKey *key, int64 until_version,
						 const TimestampTz *until_time, Snapshot snapshot,
						 SavedState *found, Datum *values, bool *nulls);
extern int32 saved_newest_version(const StateKey *key, Snapshot snapshot);
extern bool saved_is_wanted(const StateKey *key, int32 version, int keep);
extern bool saved_write(const StateKey *key, const SavedState *state, int keep);
extern int64 saved_remove(int64 stream_id, const text *fold, int32 schema_version);
extern int64 saved_sweep(const text *fold, int32 schema_version, int64 after_stream,
						 bool *finished);

/* policy.c */
extern bool policy_find(text *fold, SnapshotPolicy *policy, Snapshot snapshot);
extern bool policy_find_latest(text *fold, SnapshotPolicy *policy);
extern bool policy_find_locked(text *fold, SnapshotPolicy *policy);
extern bool policy_is_same(const SnapshotPolicy *one, const SnapshotPolicy *other);
extern bool policy_has_stream(const SnapshotPolicy *policy, const text *stream);
extern void policy_lock(const text *fold);
extern bool policy_try_lock(const text *fold);

/* state.c */
extern void state_fold(text *stream, Fold *fold, int32 schema_version,
					   const StateBounds *bounds, FoldedState *result);
extern bool state_save(Fold *fold, int32 schema_version, int keep,
					   const FoldedState *state);

/* load.c: how the rows of load_stream() come to be */
extern void snapshot_init(void);

#endif
