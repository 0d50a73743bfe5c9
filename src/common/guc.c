/*
 * guc.c
 *		The parameters event_store.*: description, unit and bounds.
 */
#include "postgres.h"

#include <limits.h>

#include "nodes/pg_list.h"
#include "utils/guc.h"
#include "utils/varlena.h"

#include "common/guc.h"

int			guc_max_batch_events = 100000;
int			guc_max_batch_size = 256 * 1024;
bool		guc_segment_worker = true;
bool		guc_inbox_worker = true;
int			guc_notify = NOTIFY_AUTO;
char	   *guc_worker_databases = NULL;
int			guc_look_interval = 1000;
int			guc_outbox_mode = OUTBOX_TABLE;

static const struct config_enum_entry notify_modes[] = {
	{"auto", NOTIFY_AUTO, false},
	{"commit", NOTIFY_COMMIT, false},
	{"worker", NOTIFY_WORKER, false},
	{"off", NOTIFY_OFF, false},
	{NULL, 0, false}
};

static const struct config_enum_entry outbox_modes[] = {
	{"table", OUTBOX_TABLE, false},
	{"wal", OUTBOX_WAL, false},
	{NULL, 0, false}
};

/* A list of identifiers, as in search_path. */
static bool
check_worker_databases(char **value, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*value);
	List	   *names = NIL;
	bool		good = SplitIdentifierString(copy, ',', &names);

	if (!good)
		GUC_check_errdetail("List syntax is invalid.");
	list_free(names);
	pfree(copy);
	return good;
}

void
guc_init(void)
{
	DefineCustomIntVariable("event_store.max_batch_events",
							"Most events that one call of append_events() or append_streams() may append.",
							"INSERT and COPY into event_store.events are not bound by it: they write in batches of their own.",
							&guc_max_batch_events,
							100000, 1, 5000000,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("event_store.max_batch_size",
							"Largest JSON argument that append_events() and append_streams() accept.",
							NULL,
							&guc_max_batch_size,
							256 * 1024, 1, INT_MAX / 1024,
							PGC_USERSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomBoolVariable("event_store.segment_worker",
							 "Lets a short-lived background worker make segments.",
							 "Without it, or when no worker can be had, the appending transaction makes them itself, and others that need the same segment wait for it.",
							 &guc_segment_worker,
							 true,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("event_store.inbox_worker",
							 "Lets a short-lived background worker rotate the inbox.",
							 "It is started by who marks a message when a rotation is due. Without it the inbox is rotated by the task of the worker, and by whoever calls rotate_inbox().",
							 &guc_inbox_worker,
							 true,
							 PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("event_store.notify",
							 "Who sends the notifications of a transaction that has appended.",
							 "commit: the transaction itself, at its end, where PostgreSQL lets one transaction of the server notify at a time; worker: the background worker, for all commits of the last moment at once; auto: the worker if one runs, or else the transaction; off: nobody.",
							 &guc_notify,
							 NOTIFY_AUTO, notify_modes,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("event_store.worker_databases",
							   "Databases that have a background worker, separated by commas.",
							   "With shared_preload_libraries a launcher keeps one in each of them; elsewhere see start_worker().",
							   &guc_worker_databases,
							   "",
							   PGC_SIGHUP, GUC_LIST_INPUT,
							   check_worker_databases, NULL, NULL);
	DefineCustomIntVariable("event_store.look_interval",
							"How often the worker, and a poll that waits, look for what nobody wakes them for.",
							"The ends of prepared transactions, and whether its database or its store is to be dropped, for which PostgreSQL waits five seconds.",
							&guc_look_interval,
							1000, 100, 3600000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomEnumVariable("event_store.outbox_mode",
							 "Where messages of the outbox are written.",
							 "table: where relays take them from; wal: into the write-ahead log only, for logical decoding.",
							 &guc_outbox_mode,
							 OUTBOX_TABLE, outbox_modes,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("event_store");
}
