/*
 * ids.c
 *		Ids of events that were appended without one: UUID version 7, RFC 9562.
 *
 * They are not stored but computed, from recorded_at, position and the store's
 * key, a random number that never changes:
 *
 *	 48 bits	Unix time in milliseconds
 *	 12 bits	the millisecond's fraction (method 3 of section 6.2)
 *	 62 bits	position + key
 *
 * So they rise with position, no two events of a store share one, and those of
 * two stores are as unlikely to meet as random ones are, while an id leads to
 * its event without an index.  An event keeps its position and recorded_at for
 * ever, through dump and restore too, which take the key along: so it keeps its
 * id.
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "utils/timestamp.h"

#include "common/ids.h"

#define LOW_BITS	((UINT64CONST(1) << 62) - 1)

void
ids_derive(pg_uuid_t *id, int64 position, TimestampTz recorded_at, int64 key)
{
	uint64		unix_us = (uint64) (recorded_at + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
									(int64) USECS_PER_DAY);
	uint64		high = ((unix_us / 1000) << 16) | (UINT64CONST(7) << 12) |
		((unix_us % 1000) * 4096 / 1000);
	uint64		low = (UINT64CONST(2) << 62) |
		(((uint64) position + (uint64) key) & LOW_BITS);

	high = pg_hton64(high);
	low = pg_hton64(low);
	memcpy(id->data, &high, sizeof(high));
	memcpy(id->data + sizeof(high), &low, sizeof(low));
}

/*
 * The position of the event whose id this is, if it was computed with that key;
 * 0 if it cannot have been.  The event there may be another, or none.
 */
int64
ids_position(const pg_uuid_t *id, int64 key)
{
	uint64		low = 0;

	if ((id->data[6] & 0xF0) != 0x70 || (id->data[8] & 0xC0) != 0x80)
		return 0;
	for (int i = 8; i < UUID_LEN; i++)
		low = (low << 8) | id->data[i];
	return (int64) (((low & LOW_BITS) - (uint64) key) & LOW_BITS);
}
