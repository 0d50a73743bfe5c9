/*
 * event_store.c
 *		Module magic, and _PG_init as the table of contents.
 */
#include "postgres.h"

#include "fmgr.h"

#include "common/catalog.h"
#include "common/guc.h"
#include "common/names.h"
#include "inbox/inbox.h"
#include "notification/notification.h"
#include "outbox/outbox.h"
#include "position/position.h"
#include "projection/projection.h"
#include "snapshot/snapshot.h"
#include "stream/stream.h"
#include "subscription/subscription.h"
#include "translation/translation.h"
#include "worker/worker.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	guc_init();
	catalog_init();
	names_init();
	position_init();
	segment_init();
	stream_init();
	notify_init();
	launch_init();
	delivered_init();
	deal_init();
	/* before projections: see route.c */
	outbox_init();
	projection_init();
	snapshot_init();
	inbox_init();
	translation_init();
}
