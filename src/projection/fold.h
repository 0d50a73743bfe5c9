/*
 * fold.h
 *		Folds: how events become a state, by code in C or by a user's function.
 *
 * After an error in one of these functions the fold and its states are good
 * for nothing but to be thrown away with their memory context.
 */
#ifndef EVENT_STORE_FOLD_H
#define EVENT_STORE_FOLD_H

#include "nodes/bitmapset.h"

/* how events become a state */
typedef struct Fold Fold;

/* one state that is being folded */
typedef struct FoldState FoldState;

/*
 * By the handler's text: a built-in fold, or a function f(jsonb,
 * event_store.recorded_event) that returns jsonb, by its name or with the
 * types of its arguments.  Names are resolved by the search_path as it is, for
 * the current user.
 */
extern Fold *fold_open(text *handler, MemoryContext context);
extern void fold_close(Fold *fold);

/* the handler's text that means the same whatever the search_path is */
extern const char *fold_name(Fold *fold);

/* the columns of recorded_event that fold_step() looks at, by RE_…; NULL: all */
extern Bitmapset *fold_columns(Fold *fold);

/* begins from a state (jsonb), or from none (NULL) */
extern FoldState *fold_begin(Fold *fold, Datum state, bool isnull, MemoryContext context);
extern void fold_end(FoldState *state);

/* one event: the columns of recorded_event by RE_…; what it needs it copies */
extern void fold_step(FoldState *state, const Datum *values, const bool *nulls);

/* the state as jsonb, in the caller's context; the fold may go on afterwards */
extern Datum fold_result(FoldState *state, bool *isnull);

/* bytes that the state takes, roughly */
extern Size fold_memory(FoldState *state);

#endif
