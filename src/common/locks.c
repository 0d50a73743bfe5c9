/*
 * locks.c
 *		The tag of a lock of ours.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "common/locks.h"

void
locks_set_tag(LOCKTAG *tag, uint16 lock_class, uint64 key)
{
	tag->locktag_field1 = MyDatabaseId;
	tag->locktag_field2 = (uint32) (key >> 32);
	tag->locktag_field3 = (uint32) key;
	tag->locktag_field4 = lock_class;
	tag->locktag_type = LOCKTAG_USERLOCK;
	tag->locktag_lockmethodid = DEFAULT_LOCKMETHOD;
}
