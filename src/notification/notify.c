/*
 * notify.c
 *		What a transaction that has appended does for those who wait.
 *
 * Phases, for a top-level transaction:
 *
 * 1. each append notes its categories (a hook of the stream folder), if this
 *	  transaction is, or may be, to notify by itself;
 * 2. before the commit, those notes become notifications, unless there is a
 *	  notifier that does it: PostgreSQL sends them
 *	  with the commit, under a lock of the whole server that is held to its end;
 * 3. after its end, who waits is woken (wake.c): after a rollback as well, which
 *	  may have held the mark below what others have committed.
 *
 * A note carries the subtransaction that it was made in, so that a rollback to
 * a savepoint takes it back.  A prepared transaction does neither 2 nor 3: who
 * commits it later may be anybody.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "common/guc.h"
#include "notification/notification.h"
#include "stream/stream.h"

#define CHANNEL		"event_store"

typedef struct NoteKey
{
	int32		category_id;
	SubTransactionId subid;
} NoteKey;

/* events of a category, appended in one subtransaction */
typedef struct Note
{
	NoteKey		key;
	char	   *category;		/* its name, in the transaction's memory */
	int64		count;
	int64		last_position;
	bool		always;			/* whether there is a notifier or not */
} Note;

/*
 * What this transaction has appended, if it may have to notify by itself: most often
 * one note is all, and the others come into a table.
 */
static Note first_note;
static bool has_first = false;
static HTAB *notes = NULL;

/*
 * The payload: a hint, never the data.  category is NULL where there are
 * several.
 */
static void
send_notification(const char *channel, const char *category, int64 count,
				  int64 last_position)
{
	StringInfoData payload;

	initStringInfo(&payload);
	appendStringInfo(&payload, "{\"last_position\": %lld, \"category\": ",
					 (long long) last_position);
	if (category != NULL)
		escape_json(&payload, category);
	else
		appendStringInfoString(&payload, "null");
	appendStringInfo(&payload, ", \"count\": %lld}", (long long) count);
	Async_Notify(channel, payload.data);
	pfree(payload.data);
}

/*
 * The channel of a category.  A name that is too long is cut where LISTEN cuts
 * it as well.
 */
void
notify_category(const char *category, int64 count, int64 last_position)
{
	char	   *channel = psprintf(CHANNEL ".%s", category);
	int			len = strlen(channel);

	channel[pg_mbcliplen(channel, len, NAMEDATALEN - 1)] = '\0';
	send_notification(channel, category, count, last_position);
	pfree(channel);
}

/* The channel of the whole store; only_category is NULL where there are several. */
void
notify_store(const char *only_category, int64 count, int64 last_position)
{
	send_notification(CHANNEL, only_category, count, last_position);
}

/* ----------------------------------------------------------------
 * At commit
 * ----------------------------------------------------------------
 */

/* The note of a key; one that is new has no category yet. */
static Note *
find_note(const NoteKey *key)
{
	Note	   *note;
	bool		found;

	if (!has_first && notes == NULL)
	{
		memset(&first_note, 0, sizeof(Note));
		first_note.key = *key;
		has_first = true;
	}
	if (has_first && memcmp(&first_note.key, key, sizeof(NoteKey)) == 0)
		return &first_note;
	if (notes == NULL)
	{
		HASHCTL		control;

		control.keysize = sizeof(NoteKey);
		control.entrysize = sizeof(Note);
		control.hcxt = TopTransactionContext;
		notes = hash_create("event_store notes", 16, &control,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	note = hash_search(notes, key, HASH_ENTER, &found);
	if (!found)
	{
		memset(note, 0, sizeof(Note));
		note->key = *key;
	}
	return note;
}

static void
note_events(const StreamInput *stream, int64 count, int64 last_position)
{
	NoteKey		key;
	Note	   *note;

	memset(&key, 0, sizeof(key));
	key.category_id = stream->category_id;
	key.subid = GetCurrentSubTransactionId();
	note = find_note(&key);
	if (note->category == NULL)
		note->category = MemoryContextStrdup(TopTransactionContext,
											 pnstrdup(stream->name,
													  input_category_length(stream->name,
																			stream->len)));
	note->count += count;
	note->last_position = Max(note->last_position, last_position);
	note->always |= guc_notify == NOTIFY_COMMIT;
}

static void
note_append(const AppendBatch *append)
{
	const StreamInput *stream = NULL;
	int64		count = 0;
	int64		last_position = 0;

	/* the notifier may have gone by the commit */
	if (guc_notify != NOTIFY_COMMIT && guc_notify != NOTIFY_AUTO)
		return;
	for (int i = 0; i < append->nevents; i++)
	{
		const EventInput *event = &append->events[i];

		if (event->duplicate)
			continue;
		if (stream != &append->streams[event->stream])
		{
			if (stream != NULL)
				note_events(stream, count, last_position);
			stream = &append->streams[event->stream];
			count = 0;
		}
		count++;
		last_position = event->position;
	}
	if (stream != NULL)
		note_events(stream, count, last_position);
}

static int
compare_notes(const void *a, const void *b)
{
	const Note *x = *(Note *const *) a;
	const Note *y = *(Note *const *) b;

	if (x->key.category_id != y->key.category_id)
		return x->key.category_id < y->key.category_id ? -1 : 1;
	return x->key.subid < y->key.subid ? -1 : x->key.subid > y->key.subid ? 1 : 0;
}

/*
 * One notification for each category, and one for the whole store, of what the
 * notifier does not tell.
 */
static void
send_notes(void)
{
	bool		all = !wake_notifier_is_there();
	int			n = has_first + (notes == NULL ? 0 : hash_get_num_entries(notes));
	Note	  **sorted = palloc(sizeof(Note *) * Max(n, 1));
	HASH_SEQ_STATUS status;
	Note	   *note;
	int64		count = 0;
	int64		last_position = 0;
	int			ncategories = 0;
	int			i = 0;

	if (has_first && (all || first_note.always))
		sorted[i++] = &first_note;
	if (notes != NULL)
	{
		hash_seq_init(&status, notes);
		while ((note = hash_seq_search(&status)) != NULL)
			if (all || note->always)
				sorted[i++] = note;
	}
	n = i;
	qsort(sorted, n, sizeof(Note *), compare_notes);
	for (i = 0; i < n;)
	{
		int32		category_id = sorted[i]->key.category_id;
		const char *category = sorted[i]->category;
		int64		of_category = 0;
		int64		last = 0;

		for (; i < n && sorted[i]->key.category_id == category_id; i++)
		{
			of_category += sorted[i]->count;
			last = Max(last, sorted[i]->last_position);
		}
		notify_category(category, of_category, last);
		count += of_category;
		last_position = Max(last_position, last);
		ncategories++;
	}
	if (ncategories > 0)
		notify_store(ncategories == 1 ? sorted[0]->category : NULL,
					 count, last_position);
	pfree(sorted);
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (has_first || notes != NULL)
				send_notes();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
			if (settled_own_bound() != 0)
				wake_at_end();
			notes = NULL;
			has_first = false;
			break;
		case XACT_EVENT_PREPARE:
			notes = NULL;
			has_first = false;
			break;
		default:
			break;
	}
}

/* Subtransactions that began within one, or in it, have a higher number. */
static void
subxact_callback(SubXactEvent event, SubTransactionId my_subid,
				 SubTransactionId parent_subid, void *arg)
{
	HASH_SEQ_STATUS status;
	Note	   *note;

	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	if (has_first && first_note.key.subid >= my_subid)
		has_first = false;
	if (notes == NULL)
		return;
	hash_seq_init(&status, notes);
	while ((note = hash_seq_search(&status)) != NULL)
		if (note->key.subid >= my_subid)
			(void) hash_search(notes, &note->key, HASH_REMOVE, NULL);
}

/*
 * Callbacks are called in the reverse order of their registration, so ours
 * comes before the one by which position/ forgets the bound lock.
 */
void
notify_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	wake_init();
	append_add_hook(note_append);
}
