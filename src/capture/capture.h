/*
 * capture.h
 *		Changes of people's own tables, as events.
 */
#ifndef EVENT_STORE_CAPTURE_H
#define EVENT_STORE_CAPTURE_H

#include "executor/tuptable.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"

#include "stream/stream.h"

/* what was done to a row, or to the table */
typedef enum CaptureOp
{
	CAPTURE_INSERT,
	CAPTURE_UPDATE,
	CAPTURE_DELETE,
	CAPTURE_TRUNCATE,
	CAPTURE_OPS
} CaptureOp;

/* argument data: what an event holds of a row that was updated */
typedef enum CaptureData
{
	CAPTURE_CHANGED,			/* of the old and the new row the columns that differ */
	CAPTURE_FULL,				/* all of both */
	CAPTURE_NEW					/* the new row */
} CaptureData;

/* argument metadata: a bit for each that is wanted */
typedef enum CaptureMetadata
{
	CAPTURE_META_TABLE,
	CAPTURE_META_USER,
	CAPTURE_META_SESSION_USER,
	CAPTURE_META_APPLICATION,
	CAPTURE_META_TRANSACTION,
	CAPTURE_METAS
} CaptureMetadata;

/* how a value becomes JSON */
typedef enum ValueKind
{
	VALUE_BOOL,
	VALUE_INT2,
	VALUE_INT4,
	VALUE_INT8,
	VALUE_FLOAT4,
	VALUE_FLOAT8,
	VALUE_NUMERIC,
	VALUE_TEXT,
	VALUE_DATETIME,
	VALUE_BYTEA,
	VALUE_JSON,
	VALUE_JSONB,
	VALUE_OUTPUT,				/* the type's output, which no setting changes */
	VALUE_OTHER					/* as to_jsonb(), with settings of our own */
} ValueKind;

typedef struct CaptureColumn
{
	AttrNumber	attnum;
	const char *name;
	int			name_len;
	Oid			type;			/* below domains */
	int16		typlen;
	bool		typbyval;
	bool		masked;
	bool		is_key;
	ValueKind	kind;
	bool		plain;			/* of VALUE_OTHER: no setting changes it */
	FmgrInfo	function;		/* of VALUE_OUTPUT and VALUE_OTHER */
} CaptureColumn;

/* what a trigger captures: its arguments, and what follows from the table */
typedef struct Capture
{
	Oid			relid;			/* the table or partition that it stands on */
	Oid			root;			/* the table that it was made for */
	Oid			owner;			/* of that */
	bool		for_rows;
	const char *category;
	int			category_len;
	const char *types[CAPTURE_OPS];
	const char *source;			/* NULL for none */
	CaptureData data;
	bool		keep_unchanged; /* an event for an UPDATE that changes nothing */
	uint32		metadata;		/* bits of CaptureMetadata */
	Jsonb	   *constant_metadata;	/* where it is the same for all events */
	int			nkeys;
	CaptureColumn *keys;		/* in the order of the key */
	int			ncolumns;
	CaptureColumn *columns;		/* in the order of keys of a jsonb object */
	const char *relation_name;	/* with its schema */
} Capture;

/* define.c */
extern Capture *define_capture(Relation rel, const Trigger *trigger);
extern bool define_may_append(const Capture *capture);

/* value.c */
extern void value_column_init(CaptureColumn *column, MemoryContext context);
extern void value_encode_name(StringInfo buf, const char *text, int len, const char *special);
extern const char *value_stream(const Capture *capture, TupleTableSlot *slot, int *len);
extern bool value_same(const CaptureColumn *column, TupleTableSlot *a, TupleTableSlot *b);
extern bool value_same_key(const Capture *capture, TupleTableSlot *old, TupleTableSlot *new);
extern Jsonb *value_data(const Capture *capture, CaptureOp op, TupleTableSlot *old,
						 TupleTableSlot *new, const char *moved, int moved_len);
extern Jsonb *value_metadata(const Capture *capture);

#endif
