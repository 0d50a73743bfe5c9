/*
 * notification.h
 *		Waking those who wait for events: see README.md beside this file.
 */
#ifndef EVENT_STORE_NOTIFICATION_H
#define EVENT_STORE_NOTIFICATION_H

#include "datatype/timestamp.h"
#include "storage/lock.h"

/* notify.c: the appender's side */
extern void notify_category(const char *category, int64 count, int64 last_position);
extern void notify_store(const char *only_category, int64 count, int64 last_position);
extern void notify_init(void);

/* relay.c: notifications for what others have appended */
extern int64 relay_send(int64 after, int64 max_events, bool *more);
extern int64 relay_told(void);
extern void relay_note_told(int64 position);

/* events that relay_send() looks at in one piece, and positions that it goes back at most */
#define RELAY_PIECE		100000
#define RELAY_BACK		1000000

/* wake.c: who wakes whom */
extern bool wake_become_notifier(void);
extern void wake_init(void);
extern bool wake_notifier_is_there(void);
extern bool wake_notifier_is_here(void);
extern bool wake_notifier_is_in(Oid database);
extern int	wake_notifier_pid(Oid database);
extern void wake_at_end(void);
extern void wake_waiters(void);
extern void wake_begin_wait(void);
extern void wake_end_wait(void);
extern void wake_begin_ask(uint64 key);
extern void wake_end_ask(uint64 key);
extern uint64 *wake_asked(int *count);
extern void wake_askers(uint64 key);
extern bool wake_is_held_by_others(const LOCKTAG *tag);

#endif
