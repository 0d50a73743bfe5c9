/*
 * plans.h
 *		Statements of the extension's own, prepared once in a backend.
 */
#ifndef EVENT_STORE_PLANS_H
#define EVENT_STORE_PLANS_H

#include "executor/spi.h"

/* a statement, and its plan once it has one */
typedef struct Statement
{
	const char *sql;
	int			nargs;
	Oid			types[16];
	SPIPlanPtr	plan;
} Statement;

extern uint64 plans_writes;

extern int	plans_connect(void);
extern void plans_set(const char *name, const char *value);
extern void plans_settings(const char *time_zone);
extern void plans_finish(int guc_level);
extern uint64 plans_execute(Statement *statement, Datum *values, const char *nulls);
extern uint64 plans_execute_as_of_now(Statement *statement, Datum *values);
extern void plans_run_ddl(const char *format,...) pg_attribute_printf(1, 2);

#endif
