/*
 * delivered.c
 *		What was delivered to this transaction, and is not decided by it.
 *
 * Further polls go on from there, and acknowledgements "up to" mean it.  It is
 * kept in the backend: how far the log of a subscription was read, how far a row
 * of subscription_batch, and which rows of subscription_failure.
 *
 * A subtransaction that aborts takes back what was delivered and decided in it,
 * so what there was when it began is kept until it ends.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "subscription/subscription.h"

/* the list as it was when a subtransaction began */
typedef struct Saved
{
	SubTransactionId id;
	int			count;
	Delivered  *items;
	struct Saved *outer;
} Saved;

/* all in TopMemoryContext */
static Delivered *items = NULL;
static int	count = 0;
static int	room = 0;
static Saved *saved = NULL;
static bool kept = false;

/*
 * What it is held to have tried if it dies: all that was ever delivered to it of
 * rows, decided or not, for its end makes that undone.
 */
static Given *given = NULL;
static int	ngiven = 0;
static int	given_room = 0;

/* The next item after one (NULL: the first) of a subscription and kind. */
Delivered *
delivered_next(Delivered *after, int32 subscription_id, DeliveredKind kind)
{
	for (int i = after == NULL ? 0 : (int) (after - items) + 1; i < count; i++)
		if (items[i].subscription_id == subscription_id && items[i].kind == kind)
			return &items[i];
	return NULL;
}

/* The item with a key: the row's first position, the failure's; 0: the log. */
Delivered *
delivered_find(int32 subscription_id, DeliveredKind kind, int64 position)
{
	Delivered  *item = NULL;

	while ((item = delivered_next(item, subscription_id, kind)) != NULL)
		if (item->position == position)
			return item;
	return NULL;
}

/* That item, made if it is not there.  Good until the next is made or removed. */
Delivered *
delivered_note(int32 subscription_id, DeliveredKind kind, int64 position)
{
	Delivered  *item = delivered_find(subscription_id, kind, position);

	if (item != NULL)
		return item;
	if (count == room)
	{
		room = Max(room * 2, 16);
		if (items == NULL)
			items = MemoryContextAlloc(TopMemoryContext, sizeof(Delivered) * room);
		else
			items = repalloc_huge(items, sizeof(Delivered) * room);
	}
	item = &items[count++];
	memset(item, 0, sizeof(Delivered));
	item->subscription_id = subscription_id;
	item->kind = kind;
	item->position = position;
	return item;
}

void
delivered_remove(Delivered *item)
{
	int			i = (int) (item - items);

	memmove(&items[i], &items[i + 1], sizeof(Delivered) * (count - i - 1));
	count--;
}

int
delivered_count(int32 subscription_id, DeliveredKind kind)
{
	Delivered  *item = NULL;
	int			n = 0;

	while ((item = delivered_next(item, subscription_id, kind)) != NULL)
		n++;
	return n;
}

/* Was anything of a subscription delivered to this transaction? */
bool
delivered_any(int32 subscription_id)
{
	for (int i = 0; i < count; i++)
		if (items[i].subscription_id == subscription_id)
			return true;
	return false;
}

/* How far its log was; 0: not at all. */
int64
delivered_log(int32 subscription_id)
{
	Delivered  *item = delivered_find(subscription_id, DELIVERED_LOG, 0);

	return item == NULL ? 0 : item->delivered_to;
}

/*
 * What the last poll has read of the log, from the checkpoint on.  As long as the
 * cursor has that version, these and no others are the open events up to there,
 * in another transaction, too: what is settled does not change.
 */
static struct
{
	int32		subscription_id;	/* 0: nothing is known */
	int64		version;
	int64		checkpoint;
	int64		to;
	int64		count;
}			last_read;

/* A poll has delivered so many events behind a position, which are all up to another. */
void
delivered_read(const Subscription *subscription, int64 after, int64 to, int64 count)
{
	bool		goes_on = last_read.subscription_id == subscription->id &&
		last_read.version == subscription->version &&
		last_read.checkpoint == subscription->checkpoint && last_read.to == after;

	if (subscription->ndecided > 0 || (after > subscription->checkpoint && !goes_on))
	{
		last_read.subscription_id = 0;
		return;
	}
	last_read.count = after > subscription->checkpoint ? last_read.count + count : count;
	last_read.subscription_id = subscription->id;
	last_read.version = subscription->version;
	last_read.checkpoint = subscription->checkpoint;
	last_read.to = to;
}

/* How many events are open up to a position; 0: that is not known. */
int64
delivered_read_count(const Subscription *subscription, int64 to)
{
	return last_read.subscription_id == subscription->id &&
		last_read.version == subscription->version &&
		last_read.checkpoint == subscription->checkpoint &&
		last_read.to == to && subscription->ndecided == 0 ? last_read.count : 0;
}

/* The subscriptions that anything was delivered of. */
List *
delivered_subscriptions(void)
{
	List	   *ids = NIL;

	for (int i = 0; i < count; i++)
		ids = list_append_unique_int(ids, items[i].subscription_id);
	for (int i = 0; i < ngiven; i++)
		ids = list_append_unique_int(ids, given[i].subscription_id);
	return ids;
}

/* The next poll of a subscription begins with what is open. */
void
delivered_forget(int32 subscription_id)
{
	int			n = 0;

	for (int i = 0; i < count; i++)
		if (items[i].subscription_id != subscription_id)
			items[n++] = items[i];
	count = n;
}

void
delivered_give(int32 subscription_id, int64 position)
{
	if (ngiven == MAX_GIVEN)
		return;
	if (ngiven == given_room)
	{
		given_room = Max(given_room * 2, 64);
		if (given == NULL)
			given = MemoryContextAlloc(TopMemoryContext, sizeof(Given) * given_room);
		else
			given = repalloc(given, sizeof(Given) * given_room);
	}
	given[ngiven].subscription_id = subscription_id;
	given[ngiven++].position = position;
}

int
delivered_given(const Given **list)
{
	*list = given;
	return ngiven;
}

/* The end of the transaction does not make it forgotten: the session ends, too. */
void
delivered_keep(void)
{
	kept = true;
}

static void
drop_saved(void)
{
	Saved	   *outer = saved->outer;

	if (saved->items != NULL)
		pfree(saved->items);
	pfree(saved);
	saved = outer;
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (kept ||
		(event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE))
		return;
	state_forget_tries();
	/* its version may be given to another change now */
	if (event == XACT_EVENT_ABORT)
		last_read.subscription_id = 0;
	while (saved != NULL)
		drop_saved();
	if (items != NULL)
		pfree(items);
	items = NULL;
	count = room = 0;
	if (given != NULL)
		pfree(given);
	given = NULL;
	ngiven = given_room = 0;
}

static void
subxact_callback(SubXactEvent event, SubTransactionId my_subid,
				 SubTransactionId parent_subid, void *arg)
{
	if (kept)
		return;
	switch (event)
	{
		case SUBXACT_EVENT_START_SUB:
			/* where there was nothing, nothing is what an abort comes back to */
			if (count > 0)
			{
				Saved	   *now = MemoryContextAllocZero(TopMemoryContext, sizeof(Saved));

				now->items = MemoryContextAllocHuge(TopMemoryContext, sizeof(Delivered) * count);
				memcpy(now->items, items, sizeof(Delivered) * count);
				now->count = count;
				now->id = my_subid;
				now->outer = saved;
				saved = now;
			}
			break;
		case SUBXACT_EVENT_COMMIT_SUB:
			if (saved != NULL && saved->id == my_subid)
				drop_saved();
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			if (saved != NULL && saved->id == my_subid)
			{
				/* there is room: it never gets less */
				memcpy(items, saved->items, sizeof(Delivered) * saved->count);
				count = saved->count;
				drop_saved();
			}
			else
				count = 0;
			state_forget_tries();
			last_read.subscription_id = 0;
			break;
		default:
			break;
	}
}

void
delivered_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
