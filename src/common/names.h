/*
 * names.h
 *		Interned names, and the names of streams by id.
 */
#ifndef EVENT_STORE_NAMES_H
#define EVENT_STORE_NAMES_H

#include "utils/snapshot.h"

#include "common/catalog.h"
#include "common/rows.h"

#define MAX_NAME_BYTES	1024

/*
 * Names of streams looked up one after the other, by one open scan; zeroed at
 * first, and ended by names_end_streams().
 */
typedef struct StreamNames
{
	Probe		probe;
	bool		open;
	int			misses;			/* of the cache */
} StreamNames;

extern int32 names_intern(NameKind kind, const char *name, int len);
extern int32 names_find(NameKind kind, const char *name, int len);
extern text *names_text(NameKind kind, int32 id);
extern text *names_stream(int64 stream_id, StreamNames *lookup, Snapshot snapshot);
extern void names_end_streams(StreamNames *lookup);
extern void names_note_content(int32 category_id, int32 type_id, int64 segment);
extern void names_init(void);

#endif
