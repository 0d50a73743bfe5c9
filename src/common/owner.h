/*
 * owner.h
 *		Work as the owner of the store.
 */
#ifndef EVENT_STORE_OWNER_H
#define EVENT_STORE_OWNER_H

#include "postgres.h"

typedef struct OwnerSwitch
{
	Oid			user;
	int			context;
	int			guc_level;
} OwnerSwitch;

extern void owner_become(OwnerSwitch *saved);
extern void owner_return(OwnerSwitch *saved);
extern void owner_begin(OwnerSwitch *saved);
extern void owner_end(OwnerSwitch *saved);

#endif
