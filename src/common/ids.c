/*
 * ids.c
 *		Event ids: UUID version 7, RFC 9562.
 *
 * 48 bits of Unix time in milliseconds, 12 bits of the millisecond's fraction
 * (method 3 of section 6.2), then a counter of 18 bits that orders the ids
 * which one backend makes within one tick, and 44 random bits.  New ids so
 * land at the right edge of the index on them, in the order of their events.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/timestamp.h"

#include "common/ids.h"

void
ids_make(pg_uuid_t *id, TimestampTz at)
{
	static TimestampTz last_at = 0;
	static uint32 counter = 0;
	uint64		unix_us;
	uint64		ms;
	uint64		high;
	uint64		low;

	if (at == last_at)
		counter = (counter + 1) & 0x3FFFF;
	else
	{
		last_at = at;
		counter = 0;
	}
	unix_us = (uint64) (at + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
						(int64) USECS_PER_DAY);
	ms = unix_us / 1000;
	high = (ms << 16) | (UINT64CONST(7) << 12) | ((unix_us % 1000) * 4096 / 1000);
	low = (UINT64CONST(2) << 62) | ((uint64) counter << 44) |
		(pg_prng_uint64(&pg_global_prng_state) & UINT64CONST(0xFFFFFFFFFFF));
	for (int i = 0; i < 8; i++)
	{
		id->data[i] = (unsigned char) (high >> (56 - 8 * i));
		id->data[8 + i] = (unsigned char) (low >> (56 - 8 * i));
	}
}
