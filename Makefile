# event_store: a complete event store inside PostgreSQL

EXTENSION = event_store
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" event_store.control)
MODULE_big = event_store
PGFILEDESC = "event_store - append-only event streams"

OBJS = \
	src/event_store.o \
	src/common/background.o \
	src/common/catalog.o \
	src/common/guc.o \
	src/common/ids.o \
	src/common/locks.o \
	src/common/names.o \
	src/common/plans.o \
	src/common/owner.o \
	src/common/values.o \
	src/common/rows.o \
	src/position/counter.o \
	src/position/settled.o \
	src/position/durable.o \
	src/position/segment.o \
	src/stream/input.o \
	src/stream/append.o \
	src/stream/bulk.o \
	src/stream/guard.o \
	src/stream/id_range.o \
	src/stream/read.o \
	src/stream/scan.o \
	src/stream/lookup.o \
	src/notification/notify.o \
	src/notification/relay.o \
	src/notification/wake.o \
	src/worker/task.o \
	src/worker/run.o \
	src/worker/launch.o \
	src/subscription/state.o \
	src/subscription/delivered.o \
	src/subscription/scan.o \
	src/subscription/batch.o \
	src/subscription/failure.o \
	src/subscription/replay.o \
	src/subscription/group.o \
	src/subscription/deal.o \
	src/subscription/breaker.o \
	src/subscription/ack.o \
	src/subscription/poll.o \
	src/subscription/manage.o \
	src/projection/merge_patch.o \
	src/projection/builtin_fold.o \
	src/projection/fold.o \
	src/projection/aggregate.o \
	src/projection/define.o \
	src/projection/batch_scan.o \
	src/projection/apply.o \
	src/projection/inline.o \
	src/projection/refresh.o \
	src/projection/rebuild.o \
	src/snapshot/save.o \
	src/snapshot/policy.o \
	src/snapshot/state.o \
	src/snapshot/load.o \
	src/snapshot/take.o \
	src/capture/value.o \
	src/capture/define.o \
	src/capture/capture.o \
	src/inbox/window.o \
	src/inbox/entry.o \
	src/inbox/once.o \
	src/inbox/rotate.o \
	src/cloudevent/attribute.o \
	src/cloudevent/make.o \
	src/cloudevent/append.o \
	src/translation/rule.o \
	src/translation/apply.o \
	src/translation/define.o \
	src/outbox/queue.o \
	src/outbox/slot.o \
	src/outbox/keep.o \
	src/outbox/policy.o \
	src/outbox/publish.o \
	src/outbox/deliver.o \
	src/outbox/answer.o \
	src/outbox/rotate.o \
	src/outbox/route.o \
	src/outbox/dead.o

# The install script, part by part in order of dependency: the table of
# contents of the architecture.
SQL_PARTS = \
	src/common/common.sql \
	src/position/position.sql \
	src/stream/stream.sql \
	src/notification/notification.sql \
	src/worker/worker.sql \
	src/subscription/subscription.sql \
	src/projection/fold.sql \
	src/projection/projection.sql \
	src/snapshot/snapshot.sql \
	src/capture/capture.sql \
	src/inbox/inbox.sql \
	src/cloudevent/cloudevent.sql \
	src/translation/translation.sql \
	src/outbox/outbox.sql

DATA_built = $(EXTENSION)--$(EXTVERSION).sql
DOCS = README.md
EXTRA_CLEAN = $(DATA_built) relay/*.o relay/event_store_relay results output_iso tmp_check regression.diffs regression.out

# common_install leaves what the others use
REGRESS = common_install common_caches stream_append stream_batch stream_append_only \
	stream_bulk stream_read stream_cost position_segments worker_task subscription_poll \
	subscription_failure subscription_lease subscription_edges subscription_replay \
	projection_fold projection_kinds projection_batch projection_hostile projection_failure \
	projection_inline projection_rebuild \
	snapshot_load snapshot_state snapshot_take \
	capture_row capture_set capture_rights \
	inbox_mark inbox_once inbox_window \
	cloudevent_append cloudevent_make translation_rules translation_define \
	outbox_queue outbox_failure outbox_route
REGRESS_OPTS = --inputdir=. --load-extension=plpgsql
ISOLATION = $(patsubst specs/%.spec,%,$(sort $(wildcard specs/*.spec)))
ISOLATION_OPTS = --inputdir=. --load-extension=event_store
TAP_TESTS = 1

PG_CONFIG ?= pg_config
PG_CPPFLAGS = -I$(srcdir)/src
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# One object depends on every header: the tree is small, a stale object costs
# more than a rebuild.
$(OBJS): $(wildcard src/*/*.h)

$(EXTENSION)--$(EXTVERSION).sql: $(SQL_PARTS)
	(printf '%s\n' '\echo Use "CREATE EXTENSION event_store" to load this file. \quit'; cat $^) > $@

# The relay is a program of its own (relay/README.md).  It is built for the brokers
# whose client libraries are there, and not at all without any.
PKG_CONFIG ?= pkg-config
RELAY_BROKERS := $(shell for lib in librabbitmq rdkafka; do $(PKG_CONFIG) --exists $$lib 2>/dev/null && echo $$lib; done)
RELAY_OBJS = relay/event_store_relay.o relay/headers.o
ifneq ($(filter librabbitmq,$(RELAY_BROKERS)),)
RELAY_OBJS += relay/rabbitmq.o
RELAY_DEFINES += -DWITH_RABBITMQ
endif
ifneq ($(filter rdkafka,$(RELAY_BROKERS)),)
RELAY_OBJS += relay/kafka.o
RELAY_DEFINES += -DWITH_KAFKA
endif

ifneq ($(and $(RELAY_BROKERS),$(wildcard $(shell $(PG_CONFIG) --includedir)/libpq-fe.h)),)
all: relay/event_store_relay

relay/%.o: relay/%.c relay/relay.h
	$(CC) $(CFLAGS) -D_GNU_SOURCE -DRELAY_VERSION='"$(EXTVERSION)"' $(RELAY_DEFINES) \
		-I$(shell $(PG_CONFIG) --includedir) $(shell $(PKG_CONFIG) --cflags $(RELAY_BROKERS)) -c -o $@ $<

relay/event_store_relay: $(RELAY_OBJS)
	$(CC) $(CFLAGS) -o $@ $(RELAY_OBJS) $(LDFLAGS) -L$(shell $(PG_CONFIG) --libdir) -lpq \
		$(shell $(PKG_CONFIG) --libs $(RELAY_BROKERS))

install: install-relay
install-relay: relay/event_store_relay
	$(MKDIR_P) '$(DESTDIR)$(bindir)'
	$(INSTALL_PROGRAM) relay/event_store_relay '$(DESTDIR)$(bindir)/event_store_relay'

uninstall: uninstall-relay
uninstall-relay:
	rm -f '$(DESTDIR)$(bindir)/event_store_relay'
.PHONY: install-relay uninstall-relay
endif
