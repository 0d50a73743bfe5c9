/*
 * plans.c
 *		Statements of the extension's own, prepared once in a backend.
 *
 * They are run with a search_path of their own, whatever the caller's is, and
 * planned once for all parameters, by indexes: the tables are small or empty
 * when they are first seen, and what is right for them then would be wrong later.
 */
#include "postgres.h"

#include "jit/jit.h"
#include "lib/stringinfo.h"
#include "optimizer/cost.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "common/plans.h"

/* how many statements have written something */
uint64		plans_writes = 0;

/* Connects to SPI; what is returned is for plans_finish(). */
int
plans_connect(void)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	return guc_level;
}

/* A setting until plans_finish(), or the end of another level of settings. */
void
plans_set(const char *name, const char *value)
{
	const char *now = GetConfigOption(name, false, false);

	if (strcmp(now, value) != 0)
		(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
}

/* The same for all that SQL of others depends on, so that it is not the caller's. */
void
plans_settings(const char *time_zone)
{
	plans_set("TimeZone", time_zone);
	plans_set("DateStyle", "ISO, MDY");
	plans_set("IntervalStyle", "postgres");
	plans_set("extra_float_digits", "1");
	plans_set("bytea_output", "hex");
	plans_set("row_security", "on");
	plans_set("transform_null_equals", "off");
	plans_set("array_nulls", "on");
}

/* The settings are as they were before, whatever was set meanwhile. */
void
plans_finish(int guc_level)
{
	SPI_finish();
	AtEOXact_GUC(false, guc_level);
}

/* Runs a statement, connected to SPI; returns how many rows it gave or touched. */
uint64
plans_execute(Statement *statement, Datum *values, const char *nulls)
{
	bool		seqscan = enable_seqscan;
	bool		bitmapscan = enable_bitmapscan;
	bool		sort = enable_sort;
	bool		jit = jit_enabled;
	volatile int result = 0;

	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare_cursor(statement->sql, statement->nargs, statement->types,
											  CURSOR_OPT_GENERIC_PLAN);

		if (plan == NULL)
			elog(ERROR, "could not prepare \"%s\"", statement->sql);
		SPI_keepplan(plan);
		statement->plan = plan;
	}
	/*
	 * For the planner, if it is called; a setting by set_config_option() costs more.
	 * What must be done without an index all the same looks too dear then not to be
	 * compiled.
	 */
	enable_seqscan = enable_bitmapscan = enable_sort = jit_enabled = false;
	PG_TRY();
	{
		result = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		enable_seqscan = seqscan;
		enable_bitmapscan = bitmapscan;
		enable_sort = sort;
		jit_enabled = jit;
	}
	PG_END_TRY();
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement->sql,
			 SPI_result_code_string(result));
	if (result != SPI_OK_SELECT && SPI_processed > 0)
		plans_writes++;
	return SPI_processed;
}

/* Runs a query with a fresh snapshot, whatever the transaction's is. */
uint64
plans_execute_as_of_now(Statement *statement, Datum *values)
{
	/* prepares it, too */
	if (statement->plan == NULL)
		(void) plans_execute(statement, values, NULL);
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute_plan(statement->plan, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not execute \"%s\"", statement->sql);
	PopActiveSnapshot();
	return SPI_processed;
}

/* Runs a command that is not prepared, connected to SPI. */
void
plans_run_ddl(const char *format,...)
{
	StringInfoData sql;
	int			result;

	initStringInfo(&sql);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, format);
		needed = appendStringInfoVA(&sql, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&sql, needed);
	}
	result = SPI_execute(sql.data, false, 0);
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql.data, SPI_result_code_string(result));
	pfree(sql.data);
}
