/*
 * worker.h
 *		The background worker: see README.md beside this file.
 */
#ifndef EVENT_STORE_WORKER_H
#define EVENT_STORE_WORKER_H

#include "datatype/timestamp.h"

/* what a worker is told when it is registered, in its bgw_extra */
typedef struct WorkerOrder
{
	Oid			database;
	Oid			owner;			/* of the store: the role that it works as */
} WorkerOrder;

/* task.c */
extern bool task_run_next(TimestampTz due, bool in_worker, TimestampTz *next);

/* run.c */
typedef void (*WorkerErrand) (uint64 key);

extern void worker_set_errand(WorkerErrand does);

typedef struct WorkerEventWork
{
	bool		(*wanted) (void);	/* is there any?  Outside of a transaction, so by what is known */
	bool		(*run) (void);	/* a piece; returns whether there is more */
} WorkerEventWork;

extern void worker_set_event_work(WorkerEventWork work);
extern PGDLLEXPORT void event_store_worker_main(Datum arg);

/* launch.c */
extern PGDLLEXPORT void event_store_launcher_main(Datum arg);
extern PGDLLEXPORT void event_store_starter_main(Datum arg);
extern void launch_init(void);

#endif
