/*
 * catalog.h
 *		The extension's own relations: their oids, cached, and the numbers of
 *		their columns.
 */
#ifndef EVENT_STORE_CATALOG_H
#define EVENT_STORE_CATALOG_H

#include "postgres.h"

#include "access/tupdesc.h"
#include "utils/inval.h"

/*
 * Columns of event_store.event, and of its segments.  Those behind the payload
 * are mostly NULL: a row ends with the last one that is not.
 */
enum
{
	EV_POSITION = 1,
	EV_STREAM_ID,
	EV_RECORDED_AT,
	EV_VERSION,
	EV_CATEGORY_ID,
	EV_TYPE_ID,
	EV_DATA,
	EV_METADATA,
	EV_EVENT_ID,
	EV_CORRELATION_ID,
	EV_CAUSATION_ID,
	EV_SOURCE_ID,
	EV_SCHEMA_VERSION,
	EV_OCCURRED_AT,
	EV_NATTS = EV_OCCURRED_AT
};

/* columns of event_store.stream */
enum
{
	ST_ID = 1,
	ST_CATEGORY_ID,
	ST_CREATED_AT,
	ST_NAME,
	ST_SEGMENTS,
	ST_NATTS = ST_SEGMENTS
};

/* columns of event_store.projection, those that are read past the executor */
enum
{
	PR_MODE = 5,
	PR_PAUSED = 15
};

/* columns of event_store.snapshot */
enum
{
	SN_STREAM_ID = 1,
	SN_POSITION,
	SN_ID,
	SN_RECORDED_AT,
	SN_CREATED_AT,
	SN_VERSION,
	SN_SCHEMA_VERSION,
	SN_FOLD,
	SN_STATE,
	SN_NATTS = SN_STATE
};

/* columns of event_store.snapshot_policy */
enum
{
	SP_FOLD = 1,
	SP_SCHEMA_VERSION,
	SP_EVERY_EVENTS,
	SP_KEEP,
	SP_EVERY,
	SP_CATEGORIES,
	SP_CREATED_AT
};

/* columns of event_store.inbox_window */
enum
{
	IW_ID = 1,
	IW_CONSUMER,
	IW_KEEP_FOR,
	IW_KEEP_COUNT,
	IW_SHARED_TURN
};

/* columns of event_store.inbox_turn */
enum
{
	IT_WINDOW_ID = 1,
	IT_TURN,
	IT_OPENED_AT,
	IT_LAST_SEALED_AT,
	IT_OLDEST_SEALED_AT,
	IT_LAST_IS_EMPTY,
	IT_OLDEST_IS_EMPTY
};

/* columns of the parts of windows, event_store.inbox_<window>_<part> */
enum
{
	IE_KEY = 1,
	IE_FINGERPRINT,
	IE_RESULT,
	IE_FINISHED,
	IE_NATTS = IE_FINISHED
};

/* tables of messages of the outbox, and of the states of its slots: see outbox/ */
#define OUTBOX_TABLES		4
#define OUTBOX_SLOT_TABLES	2

/* columns of event_store.outbox_0 …, and of outbox_kept */
enum
{
	OM_POSITION = 1,
	OM_PUBLISHED_AT,
	OM_SLOT,
	OM_ID,
	OM_TOPIC,
	OM_KEY,
	OM_TYPE,
	OM_HEADERS,
	OM_PAYLOAD,
	OM_NATTS = OM_PAYLOAD,
	OM_DUE						/* of outbox_delayed */
};

/* columns of event_store.outbox_slot_0 … */
enum
{
	OS_VERSION = 1,
	OS_CHECKPOINT,
	OS_LEASED_TO,
	OS_ACKNOWLEDGED,
	OS_ACKNOWLEDGED_AT,
	OS_RATE,
	OS_LEASED_AT,
	OS_LEASED_UNTIL,
	OS_LEASE,
	OS_SLOT,
	OS_CONSUMER,
	OS_DECIDED,
	OS_NATTS = OS_DECIDED
};

/* columns of the composite type event_store.outbox_message */
enum
{
	OD_ID,
	OD_MESSAGE_ID,
	OD_TOPIC,
	OD_KEY,
	OD_TYPE,
	OD_PAYLOAD,
	OD_HEADERS,
	OD_PUBLISHED_AT,
	OD_ATTEMPT,
	OD_NATTS
};

/* columns of event_store.segment_content */
enum
{
	SC_CATEGORY_ID = 1,
	SC_TYPE_ID,
	SC_SEGMENT,
	SC_NATTS = SC_SEGMENT
};

/* columns of the composite type event_store.recorded_event */
enum
{
	RE_POSITION,
	RE_STREAM,
	RE_VERSION,
	RE_TYPE,
	RE_SCHEMA_VERSION,
	RE_EVENT_ID,
	RE_RECORDED_AT,
	RE_OCCURRED_AT,
	RE_SOURCE,
	RE_CORRELATION_ID,
	RE_CAUSATION_ID,
	RE_DATA,
	RE_METADATA,
	RE_NATTS
};

/* columns of the composite type event_store.append_result */
enum
{
	AR_STREAM,
	AR_FIRST_VERSION,
	AR_LAST_VERSION,
	AR_FIRST_POSITION,
	AR_LAST_POSITION,
	AR_DUPLICATE,
	AR_NATTS
};

/* the interned names: a table (id, name) each */
typedef enum NameKind
{
	NAME_CATEGORY,
	NAME_EVENT_TYPE,
	NAME_SOURCE,
	NAME_KINDS
} NameKind;

typedef struct NameTable
{
	Oid			table;
	Oid			id_index;
	Oid			name_index;
	Oid			id_sequence;
} NameTable;

/*
 * The log's are there always, and what each append asks for; the others are for who has
 * called the function that the line above them names.
 */
typedef struct Store
{
	Oid			schema;
	Oid			event;
	Oid			events_view;
	Oid			stream;
	Oid			stream_id_index;
	Oid			stream_name_index;	/* in order of names */
	Oid			stream_hash_index;	/* to find one */
	Oid			segment_content;
	Oid			content_category_index;
	Oid			content_type_index;
	Oid			content_pair_index;
	Oid			counter;
	Oid			settings;
	Oid			subscriptions_view;
	Oid			projections_view;
	Oid			projection;
	Oid			outbox_route;
	Oid			append_result;	/* the type */
	Oid			recorded_event; /* the type */
	Oid			append_result_rel;	/* and what has its columns */
	Oid			recorded_event_rel;
	NameTable	names[NAME_KINDS];
	/* catalog_consumers() */
	Oid			subscription_cursor;
	Oid			subscription_failure;
	Oid			subscription_failure_index;
	Oid			projection_checkpoint;
	/* catalog_snapshots() */
	Oid			snapshot;
	Oid			snapshot_index;
	Oid			snapshot_id;	/* the sequence */
	Oid			snapshot_policy;
	Oid			snapshot_policy_index;
	/* catalog_inbox() */
	Oid			inbox_window;
	Oid			inbox_window_index;
	Oid			inbox_turn;
	Oid			inbox_turn_index;
	/* catalog_outbox() */
	Oid			outbox[OUTBOX_TABLES];
	Oid			outbox_index[OUTBOX_TABLES];
	Oid			outbox_current; /* the sequences that say which is written */
	Oid			outbox_slot[OUTBOX_SLOT_TABLES];
	Oid			outbox_slot_index[OUTBOX_SLOT_TABLES];
	Oid			outbox_slot_current;
	Oid			outbox_delayed;
	Oid			outbox_delayed_index;
	Oid			outbox_policy;
	uint64		generation;		/* another value: everything cached is void */
} Store;

/* the relations whose columns the C code relies on */
typedef enum CatalogShape
{
	SHAPE_EVENT,
	SHAPE_STREAM,
	SHAPE_CONTENT,
	SHAPE_NAME,
	SHAPE_COUNTER,
	SHAPE_VIEW,
	SHAPE_APPEND_RESULT,
	SHAPE_RECORDED_EVENT,
	SHAPE_CURSOR,
	SHAPE_PROJECTION,
	SHAPE_CHECKPOINT,
	SHAPE_SNAPSHOT,
	SHAPE_SNAPSHOT_POLICY,
	SHAPE_INBOX_WINDOW,
	SHAPE_INBOX_TURN,
	SHAPE_INBOX_PART,
	SHAPE_OUTBOX,
	SHAPE_OUTBOX_SLOT,
	SHAPE_OUTBOX_DELAYED
} CatalogShape;

/*
 * Does a message of the relation cache say that something has changed?  A server
 * with assertions can be told to empty all caches whenever it looks for messages
 * (debug_discard_caches), although nothing has: who reads anew until no message
 * comes in meanwhile would do so for ever.
 */
static inline bool
catalog_message_is_news(Oid relid)
{
#ifdef DISCARD_CACHES_ENABLED
	return OidIsValid(relid) || debug_discard_caches == 0;
#else
	return true;
#endif
}

extern bool catalog_has_shape(TupleDesc desc, CatalogShape shape);
extern Oid	catalog_relation(const char *name);

/* the store as it was looked up; NULL: it has to be looked up anew */
extern const Store *catalog_known;
extern const Store *catalog_look_up(void);

/* Asked several times for each event, so what is known costs no call. */
static inline const Store *
catalog_store(void)
{
	return likely(catalog_known != NULL) ? catalog_known : catalog_look_up();
}

extern const Store *catalog_consumers(void);
extern const Store *catalog_snapshots(void);
extern const Store *catalog_inbox(void);
extern const Store *catalog_outbox(void);
extern bool catalog_store_exists(void);
extern Oid	catalog_owner(const Store *store);
extern void catalog_require_append(const Store *store);
extern void catalog_require_read(const Store *store);
extern void catalog_require_sight(const Store *store);
extern void catalog_require_owner(const Store *store);
extern void catalog_on_relcache(RelcacheCallbackFunction listener);
extern void catalog_init(void);

#endif
