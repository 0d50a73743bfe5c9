/*
 * subscription.h
 *		Durable readers: see README.md beside this file.
 */
#ifndef EVENT_STORE_SUBSCRIPTION_H
#define EVENT_STORE_SUBSCRIPTION_H

#include "fmgr.h"
#include "nodes/execnodes.h"
#include "utils/timestamp.h"

#include "common/owner.h"
#include "common/plans.h"
#include "common/values.h"
#include "stream/read.h"

/* positions decided behind an open event that are kept in a list */
#define MAX_DECIDED		10000

/* the slots of a subscription, at most */
#define MAX_SLOTS		1024

/* events of one slot that are dealt out as one row, at most */
#define MAX_BATCH		200

typedef enum BreakerState
{
	BREAKER_CLOSED,
	BREAKER_OPEN,
	BREAKER_HALF_OPEN
} BreakerState;

/* a subscription, and where it stands; texts and arrays in the caller's context */
typedef struct Subscription
{
	int32		id;
	char	   *name;
	bool		paused;
	bool		competing;
	int			slots;
	int			wanted_slots;	/* 0: none but these */
	text	   *priority_key;	/* or NULL */
	bool		by_category;
	NameList	categories;
	bool		by_type;
	NameList	types;
	text	   *pattern;		/* LIKE pattern of streams, or NULL */

	/* what becomes of failures; times in seconds */
	int			max_attempts;
	double		first_delay;
	double		delay_factor;
	double		max_delay;
	double		jitter;
	int			breaker_failures;	/* 0: no breaker */
	double		breaker_window;
	double		breaker_timeout;
	int			breaker_probes;
	BreakerState breaker;
	TimestampTz breaker_until;

	/* the cursor: where it stands in the log */
	int64		version;
	int64		checkpoint;		/* all events up to here are decided, or taken */
	int64		replay_until;	/* deliveries up to here are replays, but for some */
	int64		oldest;			/* rows of subscription_batch begin here or later */
	int64		taken;
	TimestampTz taken_at;
	double		rate;
	int			poll_size;		/* for which events were dealt last; 0: none were */
	int			ndecided;		/* and these behind it, ascending */
	int64	   *decided;

	/* whether there are rows of it in these tables */
	bool		has_batches;
	bool		has_over;		/* leases that are over */
	bool		has_failures;
	bool		has_consumers;

	/* replay.c: of the positions from one to another, these are no replays */
	int64		no_replay_from;
	int64		no_replay_to;
	int			nno_replay;
	int64	   *no_replay;
	/* what is out under leases, and has no row of subscription_batch; NULL: nothing is */
	int64		(*leased_elsewhere) (text *consumer, bool over);
} Subscription;

/* events: their positions, ascending, and the stream of each */
typedef struct EventList
{
	int			count;
	int			room;
	int64	   *positions;
	int64	   *streams;
} EventList;

/* who polls, acknowledges or refuses, and for how long it has what it gets */
typedef struct Consumer
{
	text	   *name;			/* NULL: nobody in particular */
	bool		leases;
	const Interval *lease;		/* NULL: none, or not known */
	TimestampTz until;
	bool		at_once;		/* what it gets is acknowledged as it is delivered */
} Consumer;

/* ----------------------------------------------------------------
 * state.c: the rows of subscriptions, and their locks
 * ----------------------------------------------------------------
 */
/* how a subscription is read */
typedef enum StateLock
{
	STATE_LOOK,					/* without a lock */
	STATE_TRY,					/* for work with it, unless somebody is in the way */
	STATE_LOCK,					/* for work with it */
	STATE_ALONE					/* with nobody working with it */
} StateLock;

/* parts of a subscription that can be locked; slots are LOCK_SLOT + 1 … */
#define LOCK_WHOLE		0
#define LOCK_CURSOR		1
#define LOCK_MEMBERS	2
#define LOCK_MARK		3
#define LOCK_SLOT		16
#define LOCK_NAME		0x80000000	/* with the hash of a consumer's name */

extern text *state_name_argument(FunctionCallInfo fcinfo, int n);
extern bool state_read(text *name, StateLock lock, Subscription *subscription);
extern void state_read_again(Subscription *subscription);
extern void state_unlock_whole(const Subscription *subscription);
extern bool state_lock_whole(const Subscription *subscription);
extern bool state_is_direct(const Subscription *subscription);
extern bool state_cursor_is_taken(const Subscription *subscription);
extern void state_give_back(const Subscription *subscription);
extern bool state_mark(int32 id);
extern void state_unmark(int32 id);
extern bool state_is_marked(int32 id, bool wait);
extern bool state_lock_part(const Subscription *subscription, int part, bool wait);
extern void state_share_part(const Subscription *subscription, int part);
extern void state_begin_try(void);
extern void state_end_try(bool keep);
extern void state_forget_tries(void);
extern void state_unlock_part(const Subscription *subscription, int part);
extern void state_write(Subscription *subscription, int64 taken);
extern void state_note(const Subscription *subscription, const char *change,
					   const char *detail);
extern int	state_compare_positions(const void *a, const void *b);
extern bool state_is_decided(const Subscription *subscription, int64 position);
extern int	state_slot_of(const Subscription *subscription, int64 stream_id);
extern Datum state_consumer(const Consumer *consumer);
extern void events_add(EventList *list, int64 position, int64 stream);
extern bool positions_contain(const int64 *positions, int count, int64 position);

/* ----------------------------------------------------------------
 * delivered.c: what was delivered to this transaction
 * ----------------------------------------------------------------
 */
typedef enum DeliveredKind
{
	DELIVERED_LOG,				/* events of the log, up to a position */
	DELIVERED_BATCH,			/* events of a row, up to a position */
	DELIVERED_FAILURE			/* an event that had failed */
} DeliveredKind;

typedef struct Delivered
{
	int32		subscription_id;
	DeliveredKind kind;
	int64		position;		/* the row's first, the failure's; 0: the log */
	int64		delivered_to;
	int64		last_position;	/* of the row */
	int64		stream;			/* of the failure */
	bool		alone;			/* the failure: nothing is delivered with it */
} Delivered;

/* an event that was delivered from a row, whatever has become of it since */
typedef struct Given
{
	int32		subscription_id;
	int64		position;
} Given;

/* events that are remembered so, at most */
#define MAX_GIVEN		10000

extern Delivered *delivered_next(Delivered *after, int32 subscription_id, DeliveredKind kind);
extern Delivered *delivered_find(int32 subscription_id, DeliveredKind kind, int64 position);
extern Delivered *delivered_note(int32 subscription_id, DeliveredKind kind, int64 position);
extern void delivered_remove(Delivered *item);
extern int	delivered_count(int32 subscription_id, DeliveredKind kind);
extern bool delivered_any(int32 subscription_id);
extern int64 delivered_log(int32 subscription_id);
extern void delivered_read(const Subscription *subscription, int64 after, int64 to, int64 count);
extern int64 delivered_read_count(const Subscription *subscription, int64 to);
extern List *delivered_subscriptions(void);
extern void delivered_forget(int32 subscription_id);
extern void delivered_give(int32 subscription_id, int64 position);
extern int	delivered_given(const Given **list);
extern void delivered_keep(void);
extern void delivered_init(void);

/* ----------------------------------------------------------------
 * scan.c: the events of a subscription in the log
 * ----------------------------------------------------------------
 */
typedef struct SubscriptionScan SubscriptionScan;

extern SubscriptionScan *subscription_scan_open(const Subscription *subscription,
												int64 after, int64 max_count,
												bool positions_only);
extern bool subscription_scan_next(SubscriptionScan *scan, Datum *values, bool *nulls);
extern int64 subscription_scan_stream(SubscriptionScan *scan);
extern int64 subscription_scan_mark(SubscriptionScan *scan);
extern int64 subscription_scan_close(SubscriptionScan *scan);

/* ----------------------------------------------------------------
 * batch.c: events that are dealt out to slots, or out under a lease
 * ----------------------------------------------------------------
 */

/* events that are dealt at once, at least and at most */
#define DEAL_MIN		1000
#define DEAL_MAX		10000

extern int64 batch_deal(Subscription *subscription, int max_count);
extern void batch_queue(Subscription *subscription, const EventList *events);
extern void batch_deal_anew(Subscription *subscription, int slots);
extern void batch_take(Subscription *subscription, const int *slots, int nslots,
					   int max_count, const Consumer *consumer, EventList *taken);
extern void batch_lease(Subscription *subscription, const EventList *events,
						const Consumer *consumer);
extern int64 batch_settle(Subscription *subscription, const int64 *positions, int count,
						  int64 up_to, const Consumer *consumer, bool done);
extern int	batch_slot_of(Subscription *subscription, int64 position,
						  const Consumer *consumer);
extern bool batch_remove(Subscription *subscription, int64 position,
						 const Consumer *consumer, int64 *stream);
extern void batch_park_stream(Subscription *subscription, int64 stream, int64 position);
extern void batch_drop_parked(Subscription *subscription, const EventList *events,
							  const Consumer *consumer);
extern int	batch_slots_in_use(Subscription *subscription, const Consumer *except,
							   bool over, int **slots);
extern int	batch_slots_held(Subscription *subscription, text *consumer, int **slots);
extern int64 batch_leased(Subscription *subscription, text *consumer, bool over);
extern void batch_extend(Subscription *subscription, const Consumer *consumer,
						 const Interval *lease);
extern void batch_renew(Subscription *subscription, const Consumer *consumer);
extern void batch_reclaim(Subscription *subscription, const int *slots, int nslots,
						  text *leaving, bool all, List **silences);
extern void batch_give_up(Subscription *subscription, const int64 *positions, int count,
						  EventList *events);

/* ----------------------------------------------------------------
 * failure.c: events that have failed, and those that wait behind them
 * ----------------------------------------------------------------
 */
typedef struct Retry
{
	int64		position;
	int			attempt;
} Retry;

extern void failure_begin(Subscription *subscription);
extern bool failure_blocks(Subscription *subscription, int64 stream);
/* what has become so far of an event that is put behind another */
typedef enum ParkedEvent
{
	PARKED_UNSEEN,				/* nobody has been given it */
	PARKED_SEEN,
	PARKED_IN_HAND				/* this transaction has been given it */
} ParkedEvent;

extern void failure_park(Subscription *subscription, const EventList *events,
						 const Consumer *holder, ParkedEvent parked);
extern bool failure_add(Subscription *subscription, int64 position, int64 stream,
						const char *error, const Interval *retry_after,
						const Consumer *consumer);
extern bool failure_again(Subscription *subscription, int64 position, const char *error,
						  const Interval *retry_after, const Consumer *consumer,
						  bool *dead);
extern int	failure_take_back(Subscription *subscription, const EventList *events,
							  bool silent, bool alone, text *consumer);
extern void failure_reclaim(Subscription *subscription, const int *slots, int nslots,
							text *leaving, bool all, List **silences);
extern int	failure_take(Subscription *subscription, const int *slots, int nslots,
						 int max_count, const Consumer *consumer, Retry **retries,
						 bool *alone);
extern int64 failure_settle(Subscription *subscription, const int64 *positions, int count,
							int64 up_to, const Consumer *consumer);
extern void failure_lock_slots(Subscription *subscription, const int64 *positions,
							   int count, int64 up_to, const Consumer *consumer);
extern TimestampTz failure_next_due(Subscription *subscription, bool *queued);
extern void failure_set_heads(Subscription *subscription, const int64 *streams, int count);
extern int	failure_give_up(Subscription *subscription, int others, int *dead);

/* ----------------------------------------------------------------
 * replay.c: which deliveries are replays
 * ----------------------------------------------------------------
 */
extern bool replay_is(Subscription *subscription, int64 position);
extern void replay_note_rewind(Subscription *subscription, int64 passed, int64 position);

/* ----------------------------------------------------------------
 * group.c: consumers and the slots that they own
 * ----------------------------------------------------------------
 */
extern bool group_renew(Subscription *subscription, const Consumer *consumer,
						bool joins, const Interval *lease, bool only_join);
extern void group_be_here(const Subscription *subscription, const Consumer *consumer);
extern bool group_heartbeat(Subscription *subscription, const Consumer *consumer,
							const Interval *lease);
extern int	group_slots(Subscription *subscription, const Consumer *consumer,
						int max_count, int **slots);
extern int	group_drop_used(Subscription *subscription, const Consumer *consumer,
							int *slots, int nslots);
extern bool group_leave(Subscription *subscription, text *consumer);
extern bool group_reslot(Subscription *subscription);

/* ----------------------------------------------------------------
 * deal.c: dealing for others
 * ----------------------------------------------------------------
 */
extern bool deal_more(Subscription *subscription, int max_count);
extern bool deal_slots(Subscription *subscription);
extern void deal_init(void);

/* ----------------------------------------------------------------
 * breaker.c: when too much fails
 * ----------------------------------------------------------------
 */

/* a consumer from which something was taken back */
typedef struct Silence
{
	text	   *consumer;		/* empty: one without a name */
	TimestampTz until;			/* the end of its lease */
	TimestampTz heard_at;
	int			dead;			/* events that are dead letters by it */
} Silence;

extern int	breaker_limit(Subscription *subscription, int max_count);
extern void breaker_failed(Subscription *subscription, bool dead);
extern void breaker_add_silence(List **silences, text *consumer, TimestampTz until,
								TimestampTz heard_at, int dead);
extern void breaker_silences(Subscription *subscription, List *silences);
extern void breaker_succeeded(Subscription *subscription, int64 count);

/* ack.c */
extern text *ack_consumer_argument(FunctionCallInfo fcinfo, int n);
typedef enum AtLeast
{
	AT_LEAST_ANY,				/* negative stands for zero */
	AT_LEAST_ZERO,
	AT_LEAST_MORE
} AtLeast;

extern int64 *ack_positions_argument(const char *what, Datum value, int *count);
extern char *ack_error_text(text *value);
extern TimestampTz ack_lease_end(const Interval *lease);
extern void ack_check_interval(const char *what, const Interval *interval, AtLeast low);
extern int64 ack_decide(Subscription *subscription, const int64 *positions, int count,
						int64 up_to, bool done);

/* manage.c */
extern void manage_check_filter(FunctionCallInfo fcinfo, int n, const char *what,
								bool may_be_empty);
extern void manage_check_policy(FunctionCallInfo fcinfo, int first);
extern int64 manage_checked_position(int64 position);

/* poll.c */
extern bool poll_is_alone(ReturnSetInfo *result);
extern void poll_let_go(FunctionCallInfo fcinfo);
extern bool poll_wait(TimestampTz until, TimestampTz next, ReturnSetInfo *result);

#endif
