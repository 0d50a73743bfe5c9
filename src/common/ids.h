/*
 * ids.h
 *		Event ids.
 */
#ifndef EVENT_STORE_IDS_H
#define EVENT_STORE_IDS_H

#include "datatype/timestamp.h"
#include "utils/uuid.h"

extern void ids_make(pg_uuid_t *id, TimestampTz at);

#endif
