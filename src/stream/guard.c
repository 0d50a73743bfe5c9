/*
 * guard.c
 *		What was appended stays: UPDATE, DELETE and TRUNCATE are refused.
 *
 * The trigger stands, for each statement and ENABLE ALWAYS, on the events'
 * table and each segment, on the view, and on the tables that give events
 * their meaning.  For each statement, so that one that would touch no row is
 * refused as well and an INSERT pays nothing; on each segment, because a
 * statement fires those of the table that it names.
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/rel.h"

#include "common/errors.h"
#include "stream/stream.h"

PG_FUNCTION_INFO_V1(event_store_refuse_change);

Datum
event_store_refuse_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const char *what;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("event_store.refuse_change() was not called as a trigger")));
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		what = "UPDATE";
	else if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		what = "DELETE";
	else if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
		what = "TRUNCATE";
	else
		what = "INSERT";
	ereport(ERROR,
			(errcode(ERRCODE_VE_APPEND_ONLY),
			 errmsg("%s of \"%s\" is refused: events are append-only", what,
					RelationGetRelationName(trigger->tg_relation)),
			 errhint("Append an event that corrects or revokes the earlier one.")));
	PG_RETURN_NULL();			/* not reached */
}
