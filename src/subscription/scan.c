/*
 * scan.c
 *		The events that a subscription has still to see: those of its filter,
 *		behind a position, to the settled mark, that are not decided.
 */
#include "postgres.h"

#include "catalog/pg_collation_d.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "common/catalog.h"
#include "subscription/subscription.h"

struct SubscriptionScan
{
	const Subscription *subscription;
	Reader	   *reader;
	int64		left;
};

/* positions_only: the caller looks at no other column. */
SubscriptionScan *
subscription_scan_open(const Subscription *subscription, int64 after, int64 max_count,
					   bool positions_only)
{
	SubscriptionScan *scan = palloc0(sizeof(SubscriptionScan));
	ReadRequest request;

	memset(&request, 0, sizeof(request));
	request.kind = READ_ALL;
	request.after_position = after;
	request.max_count = PG_INT64_MAX;
	/* a pattern is compared with the stream's name */
	request.positions_only = positions_only && subscription->pattern == NULL;
	request.by_category = subscription->by_category;
	request.categories = subscription->categories;
	request.by_type = subscription->by_type;
	request.types = subscription->types;
	scan->subscription = subscription;
	scan->left = max_count;
	scan->reader = reader_open(&request);
	return scan;
}

/* The next event, as values that stay good until the next call. */
bool
subscription_scan_next(SubscriptionScan *scan, Datum *values, bool *nulls)
{
	const Subscription *subscription = scan->subscription;

	if (scan->left <= 0)
		return false;
	while (reader_next(scan->reader, values, nulls))
	{
		if (!state_is_decided(subscription, DatumGetInt64(values[RE_POSITION])) &&
			(subscription->pattern == NULL ||
			 DatumGetBool(DirectFunctionCall2Coll(textlike, C_COLLATION_OID,
												  values[RE_STREAM],
												  PointerGetDatum(subscription->pattern)))))
		{
			scan->left--;
			return true;
		}
		CHECK_FOR_INTERRUPTS();
	}
	return false;
}

/* The stream of the event that was returned last. */
int64
subscription_scan_stream(SubscriptionScan *scan)
{
	return reader_stream_id(scan->reader);
}

/* The mark that the scan is bound by. */
int64
subscription_scan_mark(SubscriptionScan *scan)
{
	return reader_counts(scan->reader).mark;
}

/* Ends the scan; returns that mark. */
int64
subscription_scan_close(SubscriptionScan *scan)
{
	int64		mark = subscription_scan_mark(scan);

	reader_close(scan->reader);
	pfree(scan);
	return mark;
}
