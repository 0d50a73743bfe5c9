/*
 * ids.h
 *		Event ids.
 */
#ifndef EVENT_STORE_IDS_H
#define EVENT_STORE_IDS_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

extern void ids_derive(pg_uuid_t *id, int64 position, TimestampTz recorded_at,
					   int64 key);
extern int64 ids_position(const pg_uuid_t *id, int64 key);

#endif
