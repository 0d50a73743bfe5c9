/*
 * locks.h
 *		The extension's own classes of heavyweight locks.
 */
#ifndef EVENT_STORE_LOCKS_H
#define EVENT_STORE_LOCKS_H

#include "storage/lock.h"

/*
 * LOCKTAG_USERLOCK is PostgreSQL's tag type for locks of extensions; the class
 * stands in its 16-bit field, shown as objsubid in pg_locks, where the two
 * halves of the key are classid and objid.
 */
#define LOCK_CLASS_BOUND	0xE501	/* lower bound of positions in flight */
#define LOCK_CLASS_STREAM	0xE502	/* a stream, by hash of its name */
#define LOCK_CLASS_NAME		0xE503	/* an interned name, by hash */
#define LOCK_CLASS_SEGMENT	0xE504	/* making segments */
#define LOCK_CLASS_NOTIFIER	0xE505	/* who sends notifications for all others */
#define LOCK_CLASS_WAITER	0xE506	/* who waits for events */
#define LOCK_CLASS_TASK		0xE507	/* a task of the worker, by hash of its name */
#define LOCK_CLASS_SUBSCRIPTION	0xE508	/* a subscription, or a part of it */
#define LOCK_CLASS_ERRAND	0xE509	/* what somebody asks the worker for */
#define LOCK_CLASS_PROJECTION	0xE50A	/* a projection, or a key of an inline fold */
#define LOCK_CLASS_SNAPSHOT	0xE50B	/* a policy of snapshots, by hash of its fold */
#define LOCK_CLASS_INBOX	0xE50D	/* an id in an inbox, or a window */
#define LOCK_CLASS_OUTBOX	0xE50C	/* which table of the outbox is written; who moves delayed messages */

extern void locks_set_tag(LOCKTAG *tag, uint16 lock_class, uint64 key);

#endif
