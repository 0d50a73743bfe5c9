/*
 * outbox.h
 *		Messages to be sent elsewhere: see README.md beside this file.
 */
#ifndef EVENT_STORE_OUTBOX_H
#define EVENT_STORE_OUTBOX_H

#include "executor/tuptable.h"
#include "fmgr.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "common/catalog.h"
#include "common/rows.h"
#include "subscription/subscription.h"

/* what the outbox is in the tables of subscriptions, whose ids begin with 1 */
#define OUTBOX_ID		0

/*
 * So many relays can be at work at a time.  Messages carry the number of their slot,
 * so it is for good.
 */
#define OUTBOX_SLOTS	16

/* a message that is to be written */
typedef struct Message
{
	int64		position;
	TimestampTz published_at;
	bool		has_id;
	pg_uuid_t	id;
	text	   *topic;
	text	   *key;			/* NULL: none */
	text	   *type;
	Datum		headers;
	Datum		payload;
} Message;

/* ----------------------------------------------------------------
 * queue.c: the tables of messages
 * ----------------------------------------------------------------
 */

/* messages of a slot, in order of position, of all tables */
typedef struct QueueScan
{
	Snapshot	snapshot;
	bool		durable;		/* all that the snapshot shows is flushed */
	Probe		probes[OUTBOX_TABLES];
	bool		open[OUTBOX_TABLES];
	bool		there[OUTBOX_TABLES];	/* its slot has the next row */
	int			last;			/* the one whose row was returned; -1: none */
} QueueScan;

extern int64 queue_stream(const text *key, int64 position);
extern int	queue_slot_of(int64 stream);
extern void queue_write(const Message *messages, int count);
extern void queue_open(QueueScan *scan, bool hand_out);
extern void queue_seek(QueueScan *scan, int slot, int64 after, int64 to);
extern TupleTableSlot *queue_next(QueueScan *scan);
extern void queue_close(QueueScan *scan);
extern int64 queue_row_position(TupleTableSlot *row);
extern int64 queue_row_stream(TupleTableSlot *row);
extern int64 queue_sequence(Oid sequence);

/* ----------------------------------------------------------------
 * slot.c: how far slots have come
 * ----------------------------------------------------------------
 */
typedef struct SlotState
{
	int			slot;
	int64		version;		/* 0: there is no row yet */
	bool		is_ours;		/* this transaction wrote it, and may take it back */
	int64		checkpoint;		/* all messages up to here are decided */
	int64		leased_to;		/* and those up to here are out, if there is a consumer */
	int64		acknowledged;
	TimestampTz acknowledged_at;
	double		rate;
	TimestampTz leased_at;
	TimestampTz leased_until;
	Interval	lease;
	text	   *consumer;		/* NULL: nobody has anything */
	int			ndecided;
	int64	   *decided;		/* behind the checkpoint, ascending */
} SlotState;

/* for reading some of them */
typedef struct SlotReader
{
	Probe		probes[OUTBOX_SLOT_TABLES];
	bool		open[OUTBOX_SLOT_TABLES];
} SlotReader;

extern bool slot_lock(int slot, bool wait);
extern void slot_unlock(int slot);
extern void slot_begin(SlotReader *reader);
extern void slot_read(SlotReader *reader, int slot, SlotState *state);
extern bool slot_is_in(SlotReader *reader, int table, int slot);
extern void slot_end(SlotReader *reader);
extern void slot_write(SlotState *state, int64 acknowledged);
extern bool slot_is_decided(const SlotState *state, int64 position);
extern bool slot_is_held(const SlotState *state);
extern void slot_decide(SlotState *state, const int64 *positions, int count);
extern void slot_pass(SlotState *state, int64 position);
extern int64 slot_leased_count(text *relay, bool over);

/* ----------------------------------------------------------------
 * policy.c: what becomes of failures
 * ----------------------------------------------------------------
 */
extern void policy_read(Subscription *outbox);
extern bool policy_has_failures(void);
extern void policy_succeeded(int64 count);
extern void policy_init(void);

/* ----------------------------------------------------------------
 * keep.c: messages that are set aside: those that have failed, and those behind them
 * ----------------------------------------------------------------
 */
extern void keep_add(int slot, const EventList *messages);
extern void keep_missing(const EventList *messages, EventList *missing);
extern void keep_remove(const int64 *positions, int count, int64 *by_slot);
extern void keep_put(const Retry *retries, int count, ReturnSetInfo *result);

/* ----------------------------------------------------------------
 * rotate.c: tables that are emptied, and delayed messages
 * ----------------------------------------------------------------
 */
extern TimestampTz rotate_next_due(void);
extern int64 rotate_move_due(void);
extern void rotate_written(int count);
extern void rotate_at_end(int64 acknowledged);
extern void rotate_commit_soon(void);

/* ----------------------------------------------------------------
 * publish.c
 * ----------------------------------------------------------------
 */
extern int64 publish_messages(Message *messages, int count);

/* ----------------------------------------------------------------
 * route.c
 * ----------------------------------------------------------------
 */
extern void route_init(void);

/* ----------------------------------------------------------------
 * deliver.c, answer.c: relays
 * ----------------------------------------------------------------
 */
extern text *deliver_relay_argument(FunctionCallInfo fcinfo, int n);
extern bool deliver_is_same(const text *a, const text *b);
extern void deliver_check_isolation(const char *message);
extern void deliver_guard(const char *what);
extern void deliver_list(QueueScan *scan, const SlotState *state, EventList *open);

/* all of the folder */
extern void outbox_init(void);

#endif
