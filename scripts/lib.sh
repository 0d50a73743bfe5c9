# Shared by the scripts beside this file, which source it. It expects
# `set -euo pipefail`.
#
# What the scripts promise: they install what is missing, they never touch an
# existing cluster, and what they start they stop and remove. Everything that
# a run makes lies in $WORK, a directory of its own under /tmp.

# shellcheck shell=bash

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK=			# what this run makes
CLUSTER=		# the data directory of its server, while that runs
NO_MAIN=		# a setting of postgresql-common, while packages are installed
NO_SERVICE=		# and one of Debian's, that no service is started

# No setting of the caller, PGHOST or PGTZ, may lead psql and its friends astray.
for name in "${!PG@}"; do
	[[ $name = PG_* ]] || unset "$name"
done
export LC_ALL=C.UTF-8

# shellcheck disable=SC2034 # some are for the scripts
if [ -t 1 ]; then
	BOLD=$'\e[1m' CYAN=$'\e[36m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
else
	BOLD="" CYAN="" YELLOW="" PLAIN=""
fi

step() { printf '%s== %s%s\n' "$BOLD" "$*" "$PLAIN"; }
die() {
	printf '%s: %s\n' "$(basename "$0")" "$*" >&2
	exit 1
}

is_root() { [ "$(id -u)" = 0 ]; }

# Runs a command as root.
as_root() {
	if is_root; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root or sudo: $*"
	fi
}

# The server refuses to run as root. This runs a command as a user whom it
# accepts, in $WORK, because that user may not enter the caller's directory.
as_server_user() {
	if is_root; then
		(cd "$WORK" && runuser -u postgres -- env HOME="$WORK" "$@")
	else
		(cd "$WORK" && "$@")
	fi
}

give_to_server_user() {
	if is_root && id postgres >/dev/null 2>&1; then chown -R postgres: "$1"; fi
}

# ---------------------------------------------------------------------------
# Packages
# ---------------------------------------------------------------------------

apt_get() {
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -q -y -o Dpkg::Use-Pty=0 "$@"
}

is_installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Installs those of the packages that are missing.
ensure_packages() {
	local package log status=0
	local missing=()

	for package; do
		is_installed "$package" || missing+=("$package")
	done
	[ ${#missing[@]} -gt 0 ] || return 0

	step "Installing ${missing[*]}"
	log=$(mktemp)
	# Without an index, or with an old one, apt can't find them.
	apt_get update >"$log" 2>&1 || cat "$log" >&2
	[[ " ${missing[*]} " =~ \ postgresql-[0-9]+\  ]] && no_default_cluster
	no_services
	apt_get install --no-install-recommends "${missing[@]}" 2>&1 | tee "$log" |
		awk '/^(Get:|Unpacking|Setting up)/ && n++ % 10 == 0 { printf "."; fflush() }
			END { print "" }' || status=$?
	default_cluster_again
	services_again
	[ "$status" = 0 ] || cat "$log" >&2
	rm -f "$log"
	[ "$status" = 0 ] || die "could not install ${missing[*]}"
}

# A server package makes and starts a cluster "main" when it is installed. The
# scripts have no use for it, so they tell postgresql-common not to, for as
# long as they install.
no_default_cluster() {
	NO_MAIN=/etc/postgresql-common/createcluster.d/event_store.conf
	as_root mkdir -p "${NO_MAIN%/*}"
	echo 'create_main_cluster = false' | as_root tee "$NO_MAIN" >/dev/null
}

default_cluster_again() {
	[ -z "$NO_MAIN" ] || as_root rm -f "$NO_MAIN"
	NO_MAIN=
}

# A pooler or a broker is started when it is installed; the tests start their own.
no_services() {
	[ ! -e /usr/sbin/policy-rc.d ] || return 0
	NO_SERVICE=/usr/sbin/policy-rc.d
	printf '#!/bin/sh\nexit 101\n' | as_root tee "$NO_SERVICE" >/dev/null
	as_root chmod +x "$NO_SERVICE"
}

services_again() {
	[ -z "$NO_SERVICE" ] || as_root rm -f "$NO_SERVICE"
	NO_SERVICE=
}

# ---------------------------------------------------------------------------
# PostgreSQL
# ---------------------------------------------------------------------------

# The major version to work with: $PG_MAJOR, else the newest server that is
# installed, else the one that the distribution offers.
find_pg_major() {
	local major=${PG_MAJOR:-}

	[ -n "$major" ] || major=$(find /usr/lib/postgresql -maxdepth 3 \
		-path '*/bin/postgres' 2>/dev/null | cut -d/ -f5 | sort -n | tail -n 1)
	[ -n "$major" ] || major=$(offered_pg_major)
	if [ -z "$major" ]; then
		apt_get update >/dev/null
		major=$(offered_pg_major)
	fi
	[ -n "$major" ] || die "no PostgreSQL server is installed, and apt offers none"
	echo "$major"
}

offered_pg_major() {
	apt-cache depends postgresql 2>/dev/null |
		sed -n 's/^ *Depends: postgresql-\([0-9][0-9]*\)$/\1/p' | head -n 1
}

# A server that the caller has chosen is there, with what belongs to it.
build_packages() {
	echo gcc make
	[ -n "$PG_CHOSEN" ] || echo "postgresql-$1" "postgresql-server-dev-$1"
}

test_packages() {
	build_packages "$1"
	[ -n "$PG_CHOSEN" ] || echo "postgresql-$1-pgtap"
	echo libtap-parser-sourcehandler-pgtap-perl libipc-run-perl perl pgbouncer \
		python3-psycopg2
	# Debian's node-postgres, which needs no npm (that is hundreds of packages).
	# It can't be had where Node.js is not Debian's; that brings an npm along,
	# from which the test gets it then.
	if is_installed npm || ! command -v npm >/dev/null; then
		echo nodejs node-pg
	fi
}

# For the relay: client libraries of brokers, a broker, and a client of it.
relay_packages() {
	echo pkg-config librabbitmq-dev librdkafka-dev rabbitmq-server python3-pika openssl
}

PG_CHOSEN=		# set if the caller's PG_CONFIG chose the server

# Sets PG_MAJOR, PG_BIN and PG_CONFIG: the server that $PG_CONFIG belongs to,
# wherever it comes from, else a packaged one.
choose_postgres() {
	if [ -n "${PG_CONFIG:-}" ]; then
		PG_CHOSEN=$(command -v "$PG_CONFIG") || die "not a program: $PG_CONFIG"
		PG_CONFIG=$(realpath -s "$PG_CHOSEN")
		PG_BIN=$("$PG_CONFIG" --bindir)
		PG_MAJOR=$("$PG_CONFIG" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
		if is_root && ! id postgres >/dev/null 2>&1; then
			die "a server does not run as root: make a user postgres, or run this as another"
		fi
	else
		PG_MAJOR=$(find_pg_major)
		PG_BIN=/usr/lib/postgresql/$PG_MAJOR/bin
		PG_CONFIG=$PG_BIN/pg_config
	fi
}

# ---------------------------------------------------------------------------
# A directory, a build and a cluster, all to be thrown away
# ---------------------------------------------------------------------------

# Makes $WORK, which goes at the end together with what runs in it.
make_work() {
	WORK=$(mktemp -d "/tmp/event_store.XXXXXX")
	give_to_server_user "$WORK"
}

clean_up() {
	local status=$?

	trap - EXIT
	set +e
	kill_jobs
	stop_cluster
	default_cluster_again
	services_again
	[ -z "$WORK" ] || rm -rf "$WORK"
	exit "$status"
}

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

kill_jobs() {
	local running

	running=$(jobs -p)
	# shellcheck disable=SC2086 # a list of process ids
	[ -z "$running" ] || kill $running 2>/dev/null
}

# Copies the tree to $1, without what an earlier build left in it: a checkout
# that is read-only or belongs to someone else can be built, too, and one
# version's objects never get into another's build. The real logs, where they
# lie beside the checkout, are put beside the copy.
copy_tree() {
	mkdir -p "$1"
	tar -C "$TOP" -cf - --exclude=./.git --exclude='*.o' --exclude='*.so' \
		--exclude='*.bc' --exclude='./event_store--*.sql' --exclude=./results \
		--exclude=./output_iso --exclude=./tmp_check \
		--exclude=./relay/event_store_relay . | tar -C "$1" -xf - --no-same-owner
	if [ -d "$TOP/../shared/data" ] && [ ! -e "$1/../shared" ]; then
		mkdir -p "$1/../shared"
		cp -r "$TOP/../shared/data" "$1/../shared/"
		chmod -R u+w,a+rX "$1/../shared"
	fi
	chmod -R u+w,a+rX "$1"
	give_to_server_user "$1"
}

# Builds the tree in directory $1; the rest goes to make. Bitcode for the JIT
# compiler is left out: nothing here needs it, and it doubles the time.
build() {
	local dir=$1
	shift
	as_server_user make -s -j "$(nproc)" -C "$dir" PG_CONFIG="$PG_CONFIG" with_llvm=no "$@"
}

# Installs what build made in directory $1.
install_built() {
	as_root make -s -C "$1" PG_CONFIG="$PG_CONFIG" with_llvm=no install >/dev/null
}

# Starts a private cluster: its socket lies in $WORK and no port is opened, so
# that it can't get in anyone's way. It need not survive a crash of the machine,
# hence no fsync.
start_cluster() {
	local setting

	as_server_user "$PG_BIN/initdb" -D "$WORK/data" -U postgres -A trust \
		--no-sync -E UTF8 --locale=C.UTF-8 >"$WORK/initdb.log" 2>&1 || {
		cat "$WORK/initdb.log" >&2
		die "initdb failed"
	}
	for setting in "listen_addresses=''" "unix_socket_directories='$WORK'" \
		fsync=off max_prepared_transactions=64 "timezone='UTC'"; do
		echo "$setting"
	done | as_server_user tee -a "$WORK/data/postgresql.conf" >/dev/null
	CLUSTER=$WORK/data
	as_server_user "$PG_BIN/pg_ctl" -D "$WORK/data" -l "$WORK/server.log" -s -w \
		start || {
		cat "$WORK/server.log" >&2
		die "the server did not start"
	}
	export PGHOST=$WORK PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
}

stop_cluster() {
	[ -n "$CLUSTER" ] || return 0
	as_server_user "$PG_BIN/pg_ctl" -D "$CLUSTER" -s -m immediate stop
	CLUSTER=
}

# ---------------------------------------------------------------------------
# Adding up
# ---------------------------------------------------------------------------

PASSED=0
FAILED=0

# Runs a command and adds its lines "N passed, N failed", or "name: N passed, N
# failed", to PASSED and FAILED. Shows its output, with [$1] before each line
# unless that is empty. A command that fails without a failure is one. What it
# says of its failures is kept in $WORK/failures.
run_counted() {
	local name=$1 log=$WORK/counted.log status=0 passed failed
	shift

	"$@" </dev/null 2>&1 | tee "$log" | sed -u "${name:+s/^/[$name] /}" || status=$?
	read -r passed failed < <(awk '
		/^([a-z]+: )?[0-9]+ passed, [0-9]+ failed$/ {
			passed += $(NF - 3); failed += $(NF - 1)
		}
		END { print passed + 0, failed + 0 }' "$log")
	sed -n "/== What failed/,/passed, [0-9]* failed\$/${name:+s/^/[$name] /}p" "$log" >>"$WORK/failures"
	if [ "$status" != 0 ] && [ "$failed" = 0 ]; then failed=1; fi
	PASSED=$((PASSED + passed)) FAILED=$((FAILED + failed))
}
