/*
 * wake.c
 *		Who wakes whom, without shared memory of our own.
 *
 * PostgreSQL's lock table is the registry: it is there without preloading, is
 * emptied by the end of a process however it ends, and by a crash of the server.
 *
 * N: who sends notifications for all others (the worker) holds the lock
 *	  LOCK_CLASS_NOTIFIER of the database, ExclusiveLock, for its session.
 * W: who waits for events holds LOCK_CLASS_WAITER, ShareLock, while it waits.
 *
 * GetLockConflicts() names the holders by virtual transaction; it passes over
 * processes outside of a transaction, so both wait inside of one, without a
 * snapshot and without a transaction id: such a transaction holds nothing back.
 * Waking a process is setting its latch, which costs next to nothing if it is
 * set: the latch is the flag that a commit raises.
 *
 * The end of a transaction that appended wakes the holder of N, if there is one,
 * which in turn wakes the holders of W; without it they are woken at once.  A backend
 * keeps in mind who holds N: a latch says whose it is, so that the end of that
 * process shows without a look into the lock table.
 *
 * Nothing depends on being woken: who waits looks for himself now and then.
 *
 * E: who asks the holder of N for something holds LOCK_CLASS_ERRAND, ShareLock,
 *	  with a key that says what, and with the key 0, while it waits for that.  A
 *	  look at the latter tells the holder of N whether there is anything.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "common/compat.h"
#include "common/locks.h"
#include "notification/notification.h"

/* how long a backend believes that there is no notifier */
#define ABSENT_FOR	(100 * INT64CONST(1000))

/* how often a notifier tries to take its place, and microseconds in between */
#define TRIES		10
#define TRY_EVERY	5000L

/* the notifier as last seen, and its process id */
static PGPROC *notifier = NULL;
static int	notifier_pid = 0;
static TimestampTz absent_since = 0;

/* wake_at_end() was called in this transaction */
static bool wanted = false;

/* Who holds N in a database: the process, and its id, which can be 0 any time. */
static PGPROC *
holder_of_n(Oid database, int *pid)
{
	LOCKTAG		tag;
	VirtualTransactionId *holders;
	int			count;

	locks_set_tag(&tag, LOCK_CLASS_NOTIFIER, 0);
	tag.locktag_field1 = database;
	holders = GetLockConflicts(&tag, ShareLock, &count);
	for (int i = 0; i < count; i++)
	{
		PGPROC	   *proc = compat_vxid_proc(holders[i]);

		if (proc == NULL)
			continue;
		*pid = proc->pid;
		if (*pid != 0 && proc->procLatch.owner_pid == *pid)
			return proc;
	}
	*pid = 0;
	return NULL;
}

static PGPROC *
find_notifier(void)
{
	TimestampTz now;

	if (likely(notifier != NULL && notifier->procLatch.owner_pid == notifier_pid))
		return notifier;
	now = GetCurrentTimestamp();
	if (notifier == NULL && now - absent_since < ABSENT_FOR && now >= absent_since)
		return NULL;

	notifier = holder_of_n(MyDatabaseId, &notifier_pid);
	absent_since = now;
	return notifier;
}

/* Does somebody send notifications for all others, as far as this backend knows? */
bool
wake_notifier_is_there(void)
{
	return find_notifier() != NULL;
}

/* The same as of now, to be relied on, and of any database. */
bool
wake_notifier_is_in(Oid database)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_NOTIFIER, 0);
	tag.locktag_field1 = database;
	if (LockAcquire(&tag, ShareLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, ShareLock, false);
	return false;
}

bool
wake_notifier_is_here(void)
{
	return wake_notifier_is_in(MyDatabaseId);
}

/*
 * The process that does, in any database; 0 if there is none, or while it is
 * between two transactions.
 */
int
wake_notifier_pid(Oid database)
{
	int			pid;

	(void) holder_of_n(database, &pid);
	return pid;
}

/*
 * Takes the notifier's place, for as long as the session lasts.  False: somebody
 * else has it.
 */
bool
wake_become_notifier(void)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_NOTIFIER, 0);
	for (int i = 0; i < TRIES; i++)
	{
		if (LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL)
			return true;
		/* wake_notifier_is_in() of another holds it for an instant */
		pg_usleep(TRY_EVERY);
	}
	return false;
}

static void
set_latches(VirtualTransactionId *holders, int count)
{
	for (int i = 0; i < count; i++)
	{
		PGPROC	   *proc = compat_vxid_proc(holders[i]);

		if (proc != NULL)
			SetLatch(&proc->procLatch);
	}
}

/* Wakes all who wait for events in this database. */
void
wake_waiters(void)
{
	LOCKTAG		tag;
	VirtualTransactionId *holders;
	int			count;

	locks_set_tag(&tag, LOCK_CLASS_WAITER, 0);
	holders = GetLockConflicts(&tag, ExclusiveLock, &count);
	set_latches(holders, count);
}

/* The end of this transaction is of interest to those who wait. */
void
wake_at_end(void)
{
	wanted = true;
}

/*
 * Called for each resource owner, in three phases.  Ours is when those of the
 * transaction have released their locks: its outcome is visible by then, its
 * bound is gone, so who is woken finds the mark moved on, and the messages
 * about what it has made (a segment, say) are sent.
 */
static void
release_callback(ResourceReleasePhase phase, bool is_commit, bool is_top_level,
				 void *arg)
{
	PGPROC	   *proc;

	if (!wanted || phase != RESOURCE_RELEASE_LOCKS || !is_top_level ||
		CurrentResourceOwner != TopTransactionResourceOwner)
		return;
	wanted = false;
	proc = find_notifier();
	if (proc != NULL)
		SetLatch(&proc->procLatch);
	else
		wake_waiters();
}

void
wake_init(void)
{
	RegisterResourceReleaseCallback(release_callback, NULL);
}

/* Registers as one who waits: whatever commits from now on sets the latch. */
void
wake_begin_wait(void)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_WAITER, 0);
	(void) LockAcquire(&tag, ShareLock, false, false);
}

void
wake_end_wait(void)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_WAITER, 0);
	(void) LockRelease(&tag, ShareLock, false);
}

/* Asks the notifier for what a key stands for, which is not 0, until wake_end_ask(). */
void
wake_begin_ask(uint64 key)
{
	LOCKTAG		tag;
	PGPROC	   *proc = find_notifier();

	locks_set_tag(&tag, LOCK_CLASS_ERRAND, key);
	(void) LockAcquire(&tag, ShareLock, false, false);
	locks_set_tag(&tag, LOCK_CLASS_ERRAND, 0);
	(void) LockAcquire(&tag, ShareLock, false, false);
	if (proc != NULL)
		SetLatch(&proc->procLatch);
}

void
wake_end_ask(uint64 key)
{
	LOCKTAG		tag;

	locks_set_tag(&tag, LOCK_CLASS_ERRAND, 0);
	(void) LockRelease(&tag, ShareLock, false);
	locks_set_tag(&tag, LOCK_CLASS_ERRAND, key);
	(void) LockRelease(&tag, ShareLock, false);
}

/* What the notifier is asked for, each once. */
uint64 *
wake_asked(int *count)
{
	LOCKTAG		tag;
	LockData   *locks;
	uint64	   *keys;
	int			n;

	*count = 0;
	locks_set_tag(&tag, LOCK_CLASS_ERRAND, 0);
	(void) GetLockConflicts(&tag, ExclusiveLock, &n);
	if (n == 0)
		return NULL;
	locks = GetLockStatusData();
	keys = palloc(sizeof(uint64) * Max(locks->nelements, 1));
	for (int i = 0; i < locks->nelements; i++)
	{
		const LOCKTAG *held = &locks->locks[i].locktag;
		uint64		key = ((uint64) held->locktag_field2 << 32) | held->locktag_field3;
		bool		known = false;

		if (held->locktag_type != LOCKTAG_USERLOCK || held->locktag_field4 != LOCK_CLASS_ERRAND ||
			held->locktag_field1 != MyDatabaseId || key == 0)
			continue;
		for (int k = 0; k < *count && !known; k++)
			known = keys[k] == key;
		if (!known)
			keys[(*count)++] = key;
	}
	return keys;
}

/* It has been done. */
void
wake_askers(uint64 key)
{
	LOCKTAG		tag;
	VirtualTransactionId *holders;
	int			count;

	locks_set_tag(&tag, LOCK_CLASS_ERRAND, key);
	holders = GetLockConflicts(&tag, ExclusiveLock, &count);
	set_latches(holders, count);
}

/* Does anybody hold a lock in ExclusiveLock but this backend, and the notifier? */
bool
wake_is_held_by_others(const LOCKTAG *tag)
{
	PGPROC	   *proc = find_notifier();
	int			count;
	VirtualTransactionId *holders = GetLockConflicts(tag, ShareLock, &count);

	for (int i = 0; i < count; i++)
		if (proc == NULL || compat_vxid_proc(holders[i]) != proc)
			return true;
	return false;
}
