/*
 * merge_patch.h
 *		JSON merge patch (RFC 7396) on a document in memory.
 */
#ifndef EVENT_STORE_MERGE_PATCH_H
#define EVENT_STORE_MERGE_PATCH_H

#include "utils/jsonb.h"

typedef struct MergeDocument MergeDocument;

/* a document that is not there yet, in a context of its own below this one */
extern MergeDocument *merge_begin(MemoryContext context);
extern void merge_end(MergeDocument *document);

/* takes the value as the document: nulls in its objects stay */
extern void merge_load(MergeDocument *document, const JsonbContainer *container, Size size);
extern void merge_apply(MergeDocument *document, const JsonbContainer *patch, Size size);

/* in the caller's context; NULL: there is no document */
extern Jsonb *merge_result(MergeDocument *document);
extern Size merge_memory(const MergeDocument *document);

#endif
