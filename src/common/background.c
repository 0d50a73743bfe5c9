/*
 * background.c
 *		Background processes of the extension.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "common/background.h"

/* What all of them have in common: they run once, on a server that writes. */
void
background_describe(BackgroundWorker *worker, const char *function, const char *name)
{
	memset(worker, 0, sizeof(BackgroundWorker));
	worker->bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker->bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker->bgw_library_name, "event_store", BGW_MAXLEN);
	strlcpy(worker->bgw_function_name, function, BGW_MAXLEN);
	strlcpy(worker->bgw_name, name, BGW_MAXLEN);
	strlcpy(worker->bgw_type, name, BGW_MAXLEN);
}

/*
 * Starts one that connects to a database, and gets an order in its bgw_extra.
 * False if no slot is free.  handle NULL: the caller does not want to wait for it.
 */
bool
background_start(const char *function, const char *name, const void *order, Size size,
				 BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;

	if (!IsUnderPostmaster || max_worker_processes == 0)
		return false;
	Assert(size <= BGW_EXTRALEN);
	background_describe(&worker, function, name);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_notify_pid = handle != NULL ? MyProcPid : 0;
	memcpy(worker.bgw_extra, order, size);
	return RegisterDynamicBackgroundWorker(&worker, handle);
}
