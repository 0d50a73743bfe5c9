/*
 * errors.h
 *		The SQLSTATEs of the extension, class VE: one line here, one row in the
 *		table of the README.
 */
#ifndef EVENT_STORE_ERRORS_H
#define EVENT_STORE_ERRORS_H

#include "utils/elog.h"

/* the stream's version is not the expected one */
#define ERRCODE_VE_WRONG_EXPECTED_VERSION	MAKE_SQLSTATE('V', 'E', '0', '0', '1')
/* an event, or another argument of ours, is not valid */
#define ERRCODE_VE_INVALID_ARGUMENT			MAKE_SQLSTATE('V', 'E', '0', '0', '2')
/* an event id names another event of the stream already */
#define ERRCODE_VE_EVENT_ID_REUSED			MAKE_SQLSTATE('V', 'E', '0', '0', '3')
/* somebody tried to change or remove what was appended */
#define ERRCODE_VE_APPEND_ONLY				MAKE_SQLSTATE('V', 'E', '0', '0', '5')
/* the store's own tables are not as the extension made them */
#define ERRCODE_VE_STORE_DAMAGED			MAKE_SQLSTATE('V', 'E', '0', '0', '6')

/* the background worker cannot be started or stopped */
#define ERRCODE_VE_NO_WORKER				MAKE_SQLSTATE('V', 'E', '0', '0', '7')
/* there is no subscription of that name */
#define ERRCODE_VE_NO_SUBSCRIPTION			MAKE_SQLSTATE('V', 'E', '0', '0', '8')
/* there is one already */
#define ERRCODE_VE_SUBSCRIPTION_EXISTS		MAKE_SQLSTATE('V', 'E', '0', '0', '9')
/* a fold that adds numbers has met another value */
#define ERRCODE_VE_NOT_A_NUMBER				MAKE_SQLSTATE('V', 'E', '0', '1', '5')

/* there is no projection of that name */
#define ERRCODE_VE_NO_PROJECTION			MAKE_SQLSTATE('V', 'E', '0', '1', '0')
/* there is one already */
#define ERRCODE_VE_PROJECTION_EXISTS		MAKE_SQLSTATE('V', 'E', '0', '1', '1')
/* a projection cannot go on */
#define ERRCODE_VE_PROJECTION_FAILED		MAKE_SQLSTATE('V', 'E', '0', '1', '2')

/* an idempotency key stands for another request already */
#define ERRCODE_VE_KEY_REUSED				MAKE_SQLSTATE('V', 'E', '0', '2', '0')
/* what is to be done once is being done, or has not been begun */
#define ERRCODE_VE_NOT_BEGUN				MAKE_SQLSTATE('V', 'E', '0', '2', '1')
/* a message of the outbox cannot be written to the WAL: nobody could decode it */
#define ERRCODE_VE_NO_LOGICAL_WAL			MAKE_SQLSTATE('V', 'E', '0', '1', '6')

/* there is no route of that name */
#define ERRCODE_VE_NO_ROUTE					MAKE_SQLSTATE('V', 'E', '0', '1', '7')
/* there is one already */
#define ERRCODE_VE_ROUTE_EXISTS				MAKE_SQLSTATE('V', 'E', '0', '1', '8')
/* a route cannot make a message of an event */
#define ERRCODE_VE_ROUTE_FAILED				MAKE_SQLSTATE('V', 'E', '0', '1', '9')

/* there is no translation of that name */
#define ERRCODE_VE_NO_TRANSLATION			MAKE_SQLSTATE('V', 'E', '0', '2', '3')
/* there is one already */
#define ERRCODE_VE_TRANSLATION_EXISTS		MAKE_SQLSTATE('V', 'E', '0', '2', '4')

/* Was the server told to stop what it does?  Functions can raise the same codes. */
static inline bool
error_is_interrupt(const ErrorData *error)
{
	return ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_OPERATOR_INTERVENTION &&
		error->funcname != NULL && strcmp(error->funcname, "ProcessInterrupts") == 0;
}

#endif
