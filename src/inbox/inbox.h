/*
 * inbox.h
 *		What was processed already: see README.md beside this file.
 */
#ifndef EVENT_STORE_INBOX_H
#define EVENT_STORE_INBOX_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "utils/rel.h"
#include "utils/uuid.h"

#include "common/catalog.h"

#define INBOX_PARTS			3		/* tables of a window */
#define DEFAULT_KEEP_DAYS	7
#define MIN_ENTRY_BYTES		44		/* a mark on its page */
#define MAX_PAGE_ENTRIES	((BLCKSZ - 24) / MIN_ENTRY_BYTES)

/* keys of locks, class LOCK_CLASS_INBOX; an id's has the highest bit */
#define INBOX_LOCK_ID		(UINT64CONST(1) << 63)
#define INBOX_LOCK_WINDOWS	(UINT64CONST(1) << 62)	/* which windows there are */

/* a window, as it is known at the moment */
typedef struct Window
{
	int32		id;				/* 0: that of all consumers who have none of their own */
	int			consumer_len;
	char	   *consumer;
	int64		keep_usec;		/* 0: not by time */
	int64		keep_count;		/* 0: not by count */
	int32		shared_turn;	/* window 0's when it was made */
	bool		is_shared;		/* may have entries in window 0, too; window 0: may have some of another */
	Oid			parts[INBOX_PARTS];

	/* from inbox_turn */
	bool		has_turn;
	int32		turn;
	TimestampTz opened_at;
	TimestampTz last_sealed_at; /* DT_NOBEGIN: it is not sealed */
	TimestampTz oldest_sealed_at;
	bool		last_is_empty;	/* known to be, and nobody writes there */
	bool		oldest_is_empty;

	/* when whoever marks is to see to the rotation */
	TimestampTz due_at;
	int64		due_entries;
	TimestampTz next_notice;
	int64		notice_pause;
} Window;

/* the parts of a turn */
#define WINDOW_CURRENT(turn)	((int) ((uint32) (turn) % INBOX_PARTS))
#define WINDOW_OLDEST(turn)		((int) (((uint32) (turn) + 1) % INBOX_PARTS))
#define WINDOW_LAST(turn)		((int) (((uint32) (turn) + 2) % INBOX_PARTS))

/* what an entry is about: keys of one kind never meet those of another */
typedef enum EntryKind
{
	ENTRY_MARK = 'm',
	ENTRY_ONCE = 'o',
	ENTRY_APPEND = 'a'
} EntryKind;

typedef struct EntryKey
{
	pg_uuid_t	id;
	uint64		lock;
} EntryKey;

/* an entry that is there */
typedef struct Entry
{
	bool		ours;			/* written by this transaction */
	bool		finished;
	bool		has_fingerprint;
	pg_uuid_t	fingerprint;
	bool		isnull;
	Datum		result;			/* jsonb, in the caller's memory */
} Entry;

/* a consumer's entries, opened for writing */
typedef struct Inbox
{
	const char *consumer;
	int			consumer_len;
	uint64		generation;		/* of the windows */
	const Window *window;
	const Window *shared;		/* window 0, where it must be looked into as well; or NULL */
	Relation	part;			/* where entries are written */
	Relation	index;
	bool		wrote;
} Inbox;

/* window.c */
extern uint64 window_generation(void);
extern bool window_is_there(uint64 generation);
extern bool window_is_current(uint64 generation);
extern Window *window_find(const char *consumer, int len);
extern int	window_count(void);
extern Window *window_at(int index);
extern void window_void(void);
extern void window_own_parts(const Window *window);
extern void window_init(void);

/* entry.c */
extern text *entry_consumer(FunctionCallInfo fcinfo, int n);
extern text *entry_id(FunctionCallInfo fcinfo, int n, const char *what);
extern void entry_guard(const char *what);
extern void entry_digest(pg_uuid_t *digest, int count, ...);
extern void entry_key(EntryKey *key, EntryKind kind, const char *consumer, int consumer_len,
					  const char *id, int id_len);
extern void inbox_open(Inbox *inbox, const char *consumer, int len);
extern void inbox_close(Inbox *inbox);
extern bool entry_claim(Inbox *inbox, const EntryKey *key, const pg_uuid_t *fingerprint,
						Entry *found);
extern bool entry_finish(Inbox *inbox, const EntryKey *key, Datum result, bool isnull);
extern bool entry_remove(Inbox *inbox, const EntryKey *key);

/* rotate.c */
extern void rotate_notice(Window *window);
extern PGDLLEXPORT void event_store_inbox_worker_main(Datum arg);

/* all of the folder */
extern void inbox_init(void);

#endif
