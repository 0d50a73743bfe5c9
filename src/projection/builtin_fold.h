/*
 * builtin_fold.h
 *		What a fold is made of, and those in C.
 */
#ifndef EVENT_STORE_BUILTIN_FOLD_H
#define EVENT_STORE_BUILTIN_FOLD_H

#include "access/tupdesc.h"
#include "fmgr.h"
#include "utils/jsonb.h"

#include "common/compat.h"
#include "projection/fold.h"

typedef struct FoldMethod
{
	FoldState  *(*begin) (Fold *fold, const Jsonb *state, MemoryContext context);
	void		(*step) (FoldState *state, const Datum *values, const bool *nulls);
	Jsonb	   *(*result) (FoldState *state);	/* NULL: none */
	Size		(*memory) (FoldState *state);
	void		(*end) (FoldState *state);
} FoldMethod;

/* a place in a JSON value, as #> has it */
typedef struct FoldPath
{
	int			count;			/* 0: the value itself */
	char	  **fields;
	int		   *sizes;
} FoldPath;

struct Fold
{
	const FoldMethod *method;
	MemoryContext context;
	const char *name;

	/* built-in folds */
	FoldPath	path;
	bool		has_path;
	int			sign;			/* of min and max */

	/* functions */
	Oid			function;
	FmgrInfo	flinfo;
	TupleDesc	event_desc;
	MemoryContext call_context;
	bool		in_call;

	/* a short value, aligned */
	union
	{
		char		bytes[VARATT_SHORT_MAX + VARHDRSZ];
		int64		aligned;
	}			buffer;
};

struct FoldState
{
	Fold	   *fold;
	const FoldMethod *method;
};

/*
 * A jsonb value that can be looked into, for the time of a step: *to_free is
 * to be freed after it.
 */
extern const Jsonb *fold_payload(Fold *fold, Datum datum, void **to_free);

/* in PG_CATCH: the error again; one in a handler's text as an error of ours */
compat_noreturn extern void fold_refuse_text(MemoryContext context);

extern bool builtin_fold_open(Fold *fold, const char *handler);

/* can a value be wrong?  is data looked at? */
extern bool builtin_fold_checks(const Fold *fold);
extern bool builtin_fold_reads_data(const Fold *fold);

#endif
