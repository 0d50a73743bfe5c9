/*
 * translation.h
 *		Inner events as outer ones.
 */
#ifndef EVENT_STORE_TRANSLATION_H
#define EVENT_STORE_TRANSLATION_H

#include "executor/spi.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

/* a place in a JSON object */
typedef struct FieldPath
{
	int			count;
	Datum	   *fields;			/* text */
} FieldPath;

/* what is put at a place: a constant, or what an expression comes to */
typedef struct Placed
{
	FieldPath		to;
	Jsonb	   *constant;
	int			column;			/* of the rule's query, from 1; 0: the constant */
} Placed;

/* a part of an event that is JSON: data, or metadata */
typedef struct Part
{
	int			column;			/* the whole is what this one comes to; 0: the event's */
	bool		picks;
	List	   *picked;			/* of FieldPath */
	List	   *dropped;		/* of FieldPath */
	List	   *renamed;		/* of FieldPath, from and to in turn */
	List	   *placed;			/* of Placed */
} Part;

typedef enum FieldKind
{
	FIELD_KEPT,
	FIELD_NULL,
	FIELD_CONSTANT,
	FIELD_COMPUTED
} FieldKind;

/* another field of an event */
typedef struct Field
{
	FieldKind	kind;
	Datum		constant;
	int			column;
} Field;

/* in the order of FIELD_NAMES of rule.c */
typedef enum RuleField
{
	RULE_TYPE,
	RULE_STREAM,
	RULE_SOURCE,
	RULE_SCHEMA_VERSION,
	RULE_CORRELATION_ID,
	RULE_CAUSATION_ID,
	RULE_NFIELDS
} RuleField;

typedef struct Rule
{
	List	   *types;			/* of text; NIL: all */
	List	   *categories;
	Field		fields[RULE_NFIELDS];
	Part		data;
	Part		metadata;
	SPIPlanPtr	plan;			/* of its expressions; NULL: it has none */
	int			ncolumns;
} Rule;

/* rule.c */
extern List *rule_read_all(Jsonb *rules);

/* apply.c */
extern bool translate_event(text *name, Datum *values, bool *nulls);
extern void translation_check(Jsonb *rules);
extern void translation_init(void);

#endif
