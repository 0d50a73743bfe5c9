/*
 * owner.c
 *		Work as the owner of the store.
 *
 * The tables of subscriptions and projections belong to the owner.  Who may call a
 * function may do what it does: its statements on these tables are run as the
 * owner, and nothing of the caller's is run as such.  An error switches back by
 * itself: the end of the (sub)transaction does.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "common/catalog.h"
#include "common/owner.h"
#include "common/plans.h"

void
owner_become(OwnerSwitch *saved)
{
	GetUserIdAndSecContext(&saved->user, &saved->context);
	SetUserIdAndSecContext(catalog_owner(catalog_store()),
						   saved->context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
}

void
owner_return(OwnerSwitch *saved)
{
	SetUserIdAndSecContext(saved->user, saved->context);
}

/* The same, connected to SPI for statements of ours (plans.c). */
void
owner_begin(OwnerSwitch *saved)
{
	owner_become(saved);
	saved->guc_level = plans_connect();
}

void
owner_end(OwnerSwitch *saved)
{
	plans_finish(saved->guc_level);
	owner_return(saved);
}
