/*
 * durable.c
 *		What is handed out is flushed: a crash cannot take it back.
 *
 * Before a row is handed out its transaction's commit record is flushed, if it is
 * not (asynchronous commit).  That is one look at the commit log for rows of
 * transactions younger than `durable_horizon`, and none for others.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"

#include "common/compat.h"
#include "position/position.h"

/* transactions between the durable horizon and a snapshot, at most */
#define MAX_HORIZON_AGE	1000000

/* transactions before it are flushed, as far as this backend has found out */
static TransactionId durable_horizon = InvalidTransactionId;
static TransactionId next_horizon = InvalidTransactionId;
static XLogRecPtr next_horizon_lsn = InvalidXLogRecPtr;

/*
 * The end of the WAL that has been written to its buffers.  At the beginning of
 * a page PostgreSQL points behind the page's header, which is not there before
 * the next record is: a flush up to that would fail.
 */
static XLogRecPtr
wal_end(void)
{
	XLogRecPtr	end = GetXLogInsertRecPtr();

	if (XLogSegmentOffset(end, wal_segment_size) == SizeOfXLogLongPHD)
		return end - SizeOfXLogLongPHD;
	if (end % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		return end - SizeOfXLogShortPHD;
	return end;
}

/*
 * Finds out which transactions are known to be flushed; returns whether all are
 * that the snapshot shows.
 */
bool
durable_begin(Snapshot snapshot)
{
	XLogRecPtr	now;

	/* what was replayed here had been flushed here */
	if (RecoveryInProgress())
		return true;
	now = wal_end();
	/*
	 * A backend that was idle for long begins anew: the commit log may not go
	 * back to its horizon any more.
	 */
	if (!TransactionIdIsValid(durable_horizon) ||
		(uint32) (snapshot->xmin - durable_horizon) > MAX_HORIZON_AGE)
	{
		XLogFlush(now);
		durable_horizon = snapshot->xmin;
		next_horizon = InvalidTransactionId;
		return true;
	}
	if (TransactionIdIsValid(next_horizon) && !XLogNeedsFlush(next_horizon_lsn))
	{
		durable_horizon = next_horizon;
		next_horizon = InvalidTransactionId;
	}
	if (!TransactionIdIsValid(next_horizon))
	{
		/* whoever ended before the snapshot wrote his record before now */
		next_horizon = snapshot->xmin;
		next_horizon_lsn = now;
	}
	return false;
}

/* Flushes what has made a row, if it is not; returns whether that was all there is. */
bool
durable_row(TupleTableSlot *slot, Snapshot snapshot)
{
	static TransactionId last_xid = InvalidTransactionId;
	HeapTuple	tuple = ExecFetchSlotHeapTuple(slot, false, NULL);
	TransactionId xid;
	bool		all = false;

	/*
	 * VACUUM may have frozen what is not flushed yet, and leaves the xid. That of
	 * long ago may look as if it were of the future.
	 */
	xid = HeapTupleHeaderGetRawXmin(tuple->t_data);
	if (xid == last_xid || !TransactionIdIsNormal(xid) ||
		!TransactionIdPrecedes(xid, snapshot->xmax))
		return false;
	if (TransactionIdPrecedes(xid, durable_horizon) ||
		TransactionIdIsCurrentTransactionId(xid))
		return false;
	if (XLogNeedsFlush(TransactionIdGetCommitLSN(xid)))
	{
		XLogFlush(wal_end());
		all = true;
	}
	last_xid = xid;
	return all;
}
