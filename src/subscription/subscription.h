/*
 * subscription.h
 *		Durable readers: see README.md beside this file.
 */
#ifndef EVENT_STORE_SUBSCRIPTION_H
#define EVENT_STORE_SUBSCRIPTION_H

#include "fmgr.h"

#include "stream/read.h"

/* positions behind an open event that can be decided before it */
#define MAX_DECIDED		10000

/* a subscription, and where it stands; texts and arrays in the caller's context */
typedef struct Subscription
{
	int32		id;
	char	   *name;
	bool		paused;
	bool		by_category;
	NameList	categories;
	bool		by_type;
	NameList	types;
	text	   *pattern;		/* LIKE pattern of streams, or NULL */

	int64		checkpoint;		/* all events up to here are decided */
	int64		replay_until;	/* deliveries up to here are replays */
	int			ndecided;		/* and these behind it, ascending */
	int64	   *decided;
} Subscription;

/* state.c: the rows of subscriptions */
typedef struct OwnerSwitch
{
	Oid			user;
	int			context;
	int			guc_level;
} OwnerSwitch;

/* how a subscription is read */
typedef enum StateLock
{
	STATE_LOOK,					/* without a lock */
	STATE_TRY,					/* locked, unless somebody else has it */
	STATE_LOCK,					/* locked */
	STATE_LOCKS
} StateLock;

extern void state_begin(OwnerSwitch *saved);
extern void state_end(OwnerSwitch *saved);
extern text *state_name_argument(FunctionCallInfo fcinfo, int n);
extern bool state_read(text *name, StateLock lock, Subscription *subscription);
extern void state_write(const Subscription *subscription, int64 acknowledged);
extern int	state_compare_positions(const void *a, const void *b);
extern bool state_is_decided(const Subscription *subscription, int64 position);

/* scan.c: the events of a subscription */
typedef struct SubscriptionScan SubscriptionScan;

extern SubscriptionScan *subscription_scan_open(const Subscription *subscription,
												int64 after, int64 max_count,
												bool positions_only);
extern bool subscription_scan_next(SubscriptionScan *scan, Datum *values, bool *nulls);
extern int64 subscription_scan_mark(SubscriptionScan *scan);
extern int64 subscription_scan_close(SubscriptionScan *scan);

/* manage.c has SQL functions only */

/* poll.c */
extern void poll_forget(int32 subscription_id);
extern void poll_init(void);

#endif
