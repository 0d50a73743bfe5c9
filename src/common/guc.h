/*
 * guc.h
 *		What an operator tunes.
 */
#ifndef EVENT_STORE_GUC_H
#define EVENT_STORE_GUC_H

/* event_store.notify: how a commit that appended wakes who listens */
typedef enum NotifyMode
{
	NOTIFY_AUTO,				/* by the worker if one runs, or else at commit */
	NOTIFY_COMMIT,
	NOTIFY_WORKER,
	NOTIFY_OFF
} NotifyMode;

/* event_store.outbox_mode: where messages are written */
typedef enum OutboxMode
{
	OUTBOX_TABLE,
	OUTBOX_WAL
} OutboxMode;

extern int	guc_max_batch_events;
extern int	guc_max_batch_size;		/* kB */
extern bool guc_segment_worker;
extern bool guc_inbox_worker;
extern int	guc_notify;
extern char *guc_worker_databases;
extern int	guc_look_interval;	/* ms */
extern int	guc_outbox_mode;

extern void guc_init(void);

#endif
