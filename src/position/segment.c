/*
 * segment.c
 *		Segments: the partitions of event_store.event, by range of position.
 *
 * PostgreSQL's own partition descriptor is the only record of which segments
 * there are.  The parent has no indexes and no foreign keys: each segment is a
 * complete table with its own, which pg_dump takes and restores as it stands.
 *
 * Making one takes ShareUpdateExclusiveLock on the parent to the end of the
 * transaction that does it, and nobody else sees the segment before that. An
 * appender's transaction may take long, so segments are made
 *
 * 1. ahead of need: the draw that crosses 1/2, 3/4, 7/8 … of a segment finds
 *	  out whether two more stand ready, and if not starts a background worker
 *	  that makes them; nobody waits for it;
 * 2. at need, when a position has no segment after all: by such a worker, too,
 *	  and the appender waits until it is done;
 * 3. at need, when no worker can be had (no slot becomes free for some seconds,
 *	  or the store was made in this very transaction): in the appender's
 *	  transaction.  Appenders that need a segment of the same range then wait
 *	  for its end.
 *
 * Lock order: segment lock (LOCK_CLASS_SEGMENT), then event_store.event.  The
 * worker gives up on a lock after LOCK_TIMEOUT_MS, since who waits for it may
 * be the one who holds the lock, and the deadlock detector does not see that.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "common/background.h"
#include "common/compat.h"
#include "common/errors.h"
#include "common/guc.h"
#include "common/locks.h"
#include "common/plans.h"
#include "position/position.h"

PG_FUNCTION_INFO_V1(event_store_set_segment_size);
PG_FUNCTION_INFO_V1(event_store_prepare_segments);
PG_FUNCTION_INFO_V1(event_store_segments);
PGDLLEXPORT void event_store_segment_worker_main(Datum arg);

#define SEGMENTS_AHEAD		2
#define MAX_AHEAD			1000
#define LOCK_TIMEOUT_MS		"1000"
#define WORKER_TRIES		300		/* for a free slot, 10 ms apart */
#define WORKER_PATIENCE		(60 * USECS_PER_SEC)	/* no tries again for so long */
#define WORKER_RUNS			10		/* that got no lock, while others make segments */

/* what a worker is asked to do, in its bgw_extra */
typedef struct WorkerOrder
{
	Oid			database;
	int64		from;			/* make the segments of these positions … */
	int64		to;
	int32		ahead;			/* … and so many beyond */
} WorkerOrder;

/* the segments in order of position, from the partition descriptor */
static Segment *map = NULL;
static int	map_count = 0;
static bool map_valid = false;
static uint64 messages = 0;		/* about the map, so far */
static uint64 map_generation = 0;
static Oid	map_event = InvalidOid;
static MemoryContext map_context = NULL;

/* a segment size that was set in this transaction, which no worker sees */
static bool size_is_new = false;

/* ----------------------------------------------------------------
 * The map
 * ----------------------------------------------------------------
 */

static void
relcache_callback(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == map_event)
	{
		map_valid = false;
		if (catalog_message_is_news(relid))
			messages++;
	}
}

static void
load_map(void)
{
	const Store *store = catalog_store();

	while (!map_valid || map_generation != store->generation)
	{
		Relation	event;
		PartitionDesc desc;
		Segment    *fresh;
		uint64		seen;
		int			count = 0;

		map_event = store->event;
		event = table_open(store->event, AccessShareLock);

		/*
		 * A descriptor that was being built when the message came may be kept
		 * by the relation cache, stale as it is: have it built anew.
		 */
		RelationCacheInvalidateEntry(store->event);
		seen = messages;
		desc = RelationGetPartitionDesc(event, true);
		fresh = MemoryContextAlloc(map_context,
								   sizeof(Segment) * Max(desc->nparts, 1));
		if (desc->nparts > 0)
		{
			PartitionBoundInfo bounds = desc->boundinfo;

			/* partition indexes[i] holds what is below bound i */
			for (int i = 1; i < bounds->ndatums; i++)
			{
				if (bounds->indexes[i] < 0)
					continue;
				if (bounds->kind[i - 1][0] != PARTITION_RANGE_DATUM_VALUE ||
					bounds->kind[i][0] != PARTITION_RANGE_DATUM_VALUE)
					continue;
				fresh[count].relid = desc->oids[bounds->indexes[i]];
				fresh[count].first = DatumGetInt64(bounds->datums[i - 1][0]);
				fresh[count].end = DatumGetInt64(bounds->datums[i][0]);
				count++;
			}
		}
		table_close(event, NoLock);

		/* nothing failed up to here: the new one takes the old one's place */
		if (map != NULL)
			pfree(map);
		map = fresh;
		map_count = count;
		map_generation = store->generation;
		/* a message that came in meanwhile asks for one more round */
		map_valid = seen == messages;
	}
}

/*
 * To be called once a snapshot is taken, or a lock obtained, by whose state the
 * map is going to be used.  Where all locks are held already, nothing else would
 * make PostgreSQL look for messages about new segments.
 *
 * That is enough: who makes a segment holds AccessExclusiveLock on it until his
 * messages are sent, so nobody's event is in it before that.
 */
void
segment_refresh(void)
{
	AcceptInvalidationMessages();
}

int
segment_count(void)
{
	load_map();
	return map_count;
}

/* By number; the caller has just asked for the count, or for the index. */
Segment
segment_at(int index)
{
	Assert(index >= 0 && index < map_count);
	return map[index];
}

/*
 * The number of the first segment that ends beyond a position: the one that
 * holds it, or else the next one; segment_count() if there is none.
 */
int
segment_index_for(int64 position)
{
	int			low = 0;
	int			high;

	load_map();
	high = map_count;
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (map[middle].end <= position)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool
find_segment(int64 position, Segment *segment)
{
	int			index = segment_index_for(position);

	if (index >= map_count || map[index].first > position)
		return false;
	*segment = map[index];
	return true;
}

/* ----------------------------------------------------------------
 * Making segments
 * ----------------------------------------------------------------
 */

static int64
coming_segment_size(void)
{
	int64		size = DEFAULT_SEGMENT_SIZE;
	bool		isnull;

	if (SPI_execute("SELECT segment_size FROM event_store.store", true, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read event_store.store");
	if (SPI_processed == 1)
		size = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
										   SPI_tuptable->tupdesc, 1, &isnull));
	return size;
}

/*
 * One segment, for positions first <= p < end.  ATTACH PARTITION lets others go
 * on, but PostgreSQL refuses it to a session that has a query open on the
 * parent; CREATE TABLE … PARTITION OF is possible then, and waits for those
 * who use the parent.
 */
static void
make_segment(int64 first, int64 end, bool in_use)
{
	long long	n = (long long) first;

	if (in_use)
		plans_run_ddl("CREATE TABLE event_store.event_%lld PARTITION OF event_store.event"
					  " FOR VALUES FROM (%lld) TO (%lld)", n, n, (long long) end);
	else
		plans_run_ddl("CREATE TABLE event_store.event_%lld"
					  " (LIKE event_store.event INCLUDING STORAGE INCLUDING COMPRESSION)", n);
	plans_run_ddl("ALTER TABLE event_store.event_%lld"
				  " ADD CONSTRAINT event_%lld_pkey PRIMARY KEY (position)", n, n);
	plans_run_ddl("CREATE UNIQUE INDEX event_%lld_stream ON event_store.event_%lld"
				  " (stream_id, version)", n, n);
	plans_run_ddl("CREATE INDEX event_%lld_event_id ON event_store.event_%lld"
				  " (event_id) WHERE event_id IS NOT NULL", n, n);
	plans_run_ddl("CREATE INDEX event_%lld_category ON event_store.event_%lld"
				  " (category_id, type_id, position)", n, n);
	plans_run_ddl("CREATE INDEX event_%lld_correlation ON event_store.event_%lld"
				  " (correlation_id, position) WHERE correlation_id IS NOT NULL", n, n);
	plans_run_ddl("CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE"
				  " ON event_store.event_%lld FOR EACH STATEMENT"
				  " EXECUTE FUNCTION event_store.refuse_change()", n);
	plans_run_ddl("ALTER TABLE event_store.event_%lld"
				  " ENABLE ALWAYS TRIGGER refuse_change", n);
	plans_run_ddl("COMMENT ON TABLE event_store.event_%lld IS"
				  " 'a segment: the events with positions from %lld to %lld'",
				  n, n, (long long) (end - 1));
	if (!in_use)
		plans_run_ddl("ALTER TABLE event_store.event ATTACH PARTITION event_store.event_%lld"
					  " FOR VALUES FROM (%lld) TO (%lld)", n, n, (long long) end);
}

/* Has this session a query open on event_store.event? */
static bool
event_in_use(Oid event_oid)
{
	Relation	event = table_open(event_oid, NoLock);
	bool		in_use = event->rd_refcnt > 1;

	table_close(event, NoLock);
	return in_use;
}

/*
 * Makes what is missing for positions from..to, and then so many segments
 * beyond them that `ahead` follow.  Everything is done as the store's owner,
 * with a search_path that nobody can plant anything in.  Returns how many
 * were made.
 */
static int
make_segments(int64 from, int64 to, int ahead)
{
	const Store *store = catalog_store();
	LOCKTAG		tag;
	Oid			saved_user;
	int			saved_context;
	int			guc_level;
	int			made = 0;

	locks_set_tag(&tag, LOCK_CLASS_SEGMENT, 0);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	LockRelationOid(store->event, ShareUpdateExclusiveLock);

	GetUserIdAndSecContext(&saved_user, &saved_context);
	SetUserIdAndSecContext(catalog_owner(store),
						   saved_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("client_min_messages", "warning",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("default_table_access_method", "heap",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("default_tablespace", "",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	for (;;)
	{
		int64		position = from;
		int64		size;
		int64		first;
		int			index;

		/* the first position that wants a segment and has none */
		index = segment_index_for(position);
		while (index < map_count && map[index].first <= position && position <= to)
			position = map[index++].end;
		if (position > to && map_count - index >= ahead)
			break;
		if (position > to && map_count > 0)
			position = map[map_count - 1].end;

		/*
		 * It follows on the segment before it. Where the counter has jumped
		 * (after a crash, or a restore), whole segments stay out.
		 */
		size = coming_segment_size();
		index = segment_index_for(position);
		first = index > 0 ? map[index - 1].end : 1;
		first += (position - first) / size * size;
		if (first > PG_INT64_MAX - size)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("positions are used up")));
		make_segment(first,
					 index < map_count ? Min(first + size, map[index].first) : first + size,
					 event_in_use(store->event));
		CommandCounterIncrement();
		made++;
		CHECK_FOR_INTERRUPTS();
	}

	SPI_finish();
	AtEOXact_GUC(true, guc_level);
	SetUserIdAndSecContext(saved_user, saved_context);

	/* both, or else the next one would take them in the other order */
	if (made == 0)
	{
		UnlockRelationOid(store->event, ShareUpdateExclusiveLock);
		LockRelease(&tag, ExclusiveLock, false);
	}
	return made;
}

/* ----------------------------------------------------------------
 * The worker: a short-lived background process that makes segments in a
 * transaction of its own
 * ----------------------------------------------------------------
 */

void
event_store_segment_worker_main(Datum arg)
{
	WorkerOrder order;

	memcpy(&order, MyBgworkerEntry->bgw_extra, sizeof(order));
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(order.database, InvalidOid, 0);
	(void) set_config_option("lock_timeout", LOCK_TIMEOUT_MS,
							 PGC_SUSET, PGC_S_OVERRIDE,
							 GUC_ACTION_SET, true, 0, false);
	/* of two that block each other, DROP EXTENSION say, the worker gives way */
	(void) set_config_option("deadlock_timeout", "20ms",
							 PGC_SUSET, PGC_S_OVERRIDE,
							 GUC_ACTION_SET, true, 0, false);
	(void) set_config_option("default_transaction_read_only", "off",
							 PGC_SUSET, PGC_S_OVERRIDE,
							 GUC_ACTION_SET, true, 0, false);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, "making segments of event_store.event");
	if (catalog_store_exists())
		(void) make_segments(order.from, order.to, order.ahead);
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_activity(STATE_IDLE, NULL);
	proc_exit(0);
}

static bool
start_worker(int64 from, int64 to, int ahead, BackgroundWorkerHandle **handle)
{
	WorkerOrder order;

	if (!guc_segment_worker)
		return false;
	memset(&order, 0, sizeof(order));
	order.database = MyDatabaseId;
	order.from = from;
	order.to = to;
	order.ahead = ahead;
	StaticAssertStmt(sizeof(order) <= BGW_EXTRALEN, "order too large");
	return background_start("event_store_segment_worker_main", "event_store segment worker",
							&order, sizeof(order), handle);
}

/*
 * Has a worker make the segments, and waits for it.  False where it makes no
 * sense to try: a lock that the worker needs is ours, or it could not see the
 * store.
 */
static bool
make_by_worker(int64 from, int64 to, int ahead)
{
	static TimestampTz gave_up_at = 0;
	BackgroundWorkerHandle *handle;
	Relation	event = table_open(catalog_store()->event, AccessShareLock);
	int			known = segment_count();
	bool		possible;

	possible = event->rd_createSubid == InvalidSubTransactionId && !size_is_new &&
		!CheckRelationLockedByMe(event, ShareUpdateExclusiveLock, true) &&
		guc_segment_worker && IsUnderPostmaster && max_worker_processes > 0;
	table_close(event, NoLock);
	if (!possible)
		return false;

	/*
	 * Where all slots are taken it may be by workers of this kind, and anyhow
	 * is worth some patience: a segment made by the transaction itself makes
	 * others wait for its end, and could be their deadlock.  As long as workers of
	 * this kind make segments there is hope.
	 */
	for (int tries = 0; !start_worker(from, to, ahead, &handle); tries++)
	{
		Segment		segment;
		TimestampTz now = GetCurrentTimestamp();

		if (tries == WORKER_TRIES)
			gave_up_at = now;
		if (now - gave_up_at < WORKER_PATIENCE && now >= gave_up_at)
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 10, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		segment_refresh();
		if (find_segment(from, &segment) && find_segment(to, &segment))
			return true;
		if (segment_count() != known)
		{
			known = segment_count();
			tries = 0;
		}
	}
	(void) WaitForBackgroundWorkerShutdown(handle);
	segment_refresh();
	return true;
}

/*
 * The segment of a position that is about to be written; the caller will need
 * positions up to needed_to.
 */
Segment
segment_for_append(int64 position, int64 needed_to)
{
	Segment		segment;

	if (likely(find_segment(position, &segment)))
		return segment;
	segment_refresh();
	if (find_segment(position, &segment))
		return segment;

	/* a worker gives up if it gets no lock for too long, since others make segments */
	for (int runs = 0, known = -1; runs < WORKER_RUNS && known != segment_count(); runs++)
	{
		known = segment_count();
		if (!make_by_worker(position, needed_to, SEGMENTS_AHEAD))
			break;
		if (find_segment(position, &segment))
			return segment;
	}

	(void) make_segments(position, needed_to, 0);
	if (!find_segment(position, &segment))
		ereport(ERROR,
				(errcode(ERRCODE_VE_STORE_DAMAGED),
				 errmsg("could not make the segment of position %lld",
						(long long) position)));
	return segment;
}

/*
 * A draw of positions first..last notices when it crosses 1/2, 3/4, 7/8 … of
 * the segment that it ends in, and asks for more ahead.  One draw crosses each
 * point, so there is no stampede; the later points make up for a worker that
 * could not be had, or got no lock, at the earlier ones.
 */
void
segment_notice(int64 first, int64 last)
{
	static int64 asked_for = 0;
	static TimestampTz asked_at = 0;
	int			index = segment_index_for(last);
	int64		left;
	int64		point;

	if (index >= map_count || map_count - index - 1 >= SEGMENTS_AHEAD || size_is_new)
		return;
	left = (map[index].end - map[index].first) / 2;
	point = map[index].first + left;
	while (left > 0 && point <= last)
	{
		if (point >= first)
		{
			TimestampTz now = GetCurrentTimestamp();

			/* a fast writer crosses the next point while a worker is at work */
			if (asked_for == map[index].first && now - asked_at < USECS_PER_SEC / 2 &&
				now >= asked_at)
				return;
			if (start_worker(last, last, SEGMENTS_AHEAD, NULL))
			{
				asked_for = map[index].first;
				asked_at = now;
			}
			return;
		}
		left /= 2;
		point += left;
	}
}

/* ----------------------------------------------------------------
 * SQL functions
 * ----------------------------------------------------------------
 */

Datum
event_store_set_segment_size(PG_FUNCTION_ARGS)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1];
	int64		size;

	PreventCommandIfReadOnly("event_store.set_segment_size()");
	catalog_require_owner(catalog_store());
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("segment size must not be NULL")));
	size = PG_GETARG_INT64(0);
	if (size < MIN_SEGMENT_SIZE || size > MAX_SEGMENT_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("segment size %lld is out of bounds", (long long) size),
				 errdetail("A segment holds %lld to %lld positions.",
						   (long long) MIN_SEGMENT_SIZE,
						   (long long) MAX_SEGMENT_SIZE)));
	values[0] = Int64GetDatum(size);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args("INSERT INTO event_store.store AS s (segment_size) VALUES ($1)"
							  " ON CONFLICT (id) DO UPDATE SET segment_size = EXCLUDED.segment_size",
							  1, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not write event_store.store");
	SPI_finish();
	size_is_new = true;
	PG_RETURN_VOID();
}

static void
forget_size(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT ||
		event == XACT_EVENT_PREPARE)
		size_is_new = false;
}

Datum
event_store_prepare_segments(PG_FUNCTION_ARGS)
{
	int			ahead;
	int64		next;

	PreventCommandDuringRecovery("event_store.prepare_segments()");
	PreventCommandIfReadOnly("event_store.prepare_segments()");
	catalog_require_append(catalog_store());
	if (PG_ARGISNULL(0) || PG_GETARG_INT32(0) < 0 || PG_GETARG_INT32(0) > MAX_AHEAD)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("number of segments to make ahead must be 0 to %d", MAX_AHEAD)));
	ahead = PG_GETARG_INT32(0);
	next = counter_read() + 1;
	PG_RETURN_INT32(make_segments(next, next, ahead));
}

Datum
event_store_segments(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	int			count;

	catalog_require_read(catalog_store());
	InitMaterializedSRF(fcinfo, 0);
	count = segment_count();
	for (int i = 0; i < count; i++)
	{
		Datum		values[3];
		bool		nulls[3] = {false, false, false};
		Segment		segment = map[i];

		values[0] = ObjectIdGetDatum(segment.relid);
		values[1] = Int64GetDatum(segment.first);
		values[2] = Int64GetDatum(segment.end - 1);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

void
segment_init(void)
{
	map_context = AllocSetContextCreate(CacheMemoryContext,
										"event_store segments",
										ALLOCSET_SMALL_SIZES);
	catalog_on_relcache(relcache_callback);
	RegisterXactCallback(forget_size, NULL);
}
