/*
 * event_store_relay.c
 *		Takes messages from the outbox of a database, and sends them to a broker.
 *
 *	 outbox_release ── outbox_poll ── send ── confirmations ── outbox_ack, outbox_nack
 *						   ↑                                          │
 *						   └──────────────────────────────────────────┘
 *
 * A message is acknowledged after the broker has confirmed it, never before: whatever
 * dies, it is sent at least once, and each time with the same message_id.  Of a key
 * there is one message on its way at a time, so the broker has them in order, even if
 * it refuses one (with --pipeline-keys there are more).
 *
 * The connections are lost, and had again, one without the other.  While there is no
 * broker nothing is taken, so other relays can have it.  While messages are on
 * their way the outbox hears of the relay, so that it keeps them.
 *
 * One thread.  The database is waited for by poll(2), with a look at the broker each
 * second; signals end waits by a pipe.  What the libraries wait for, and cannot be
 * woken from, is ended by an alarm: nothing holds up the end of the relay for long.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#include "relay.h"

#define MAX_BATCH		10000
#define FIRST_DELAY		100		/* ms, to the next attempt to connect */
#define MAX_DELAY		30000
#define STOP_TIME		10000	/* ms that confirmations are waited for at the end */
#define END_TIME		4		/* seconds after that, the relay ends whatever it waits for */
#define MAX_BYTES		((size_t) 64 << 20) /* of a batch; the next is smaller */

Options options = {
	.dbname = "",
	.exchange = "event_store",
	.route = "{topic}",
	.metrics_interval = 10,
	.batch = 500,
	.lease = 30,
	.wait = 5,
	.timeout = 30,
	.declare = true,
	.mandatory = true
};

/* what has been done, for who watches */
static struct
{
	uint64_t	taken;
	uint64_t	taken_again;
	uint64_t	sent;
	uint64_t	confirmed;
	uint64_t	acknowledged;
	uint64_t	failed;
	uint64_t	batches;
	uint64_t	database_connects;
	uint64_t	broker_connects;
	uint64_t	broker_losses;
	double		database_seconds;	/* waits for something to come are not in it */
	double		broker_seconds;
	double		confirm_seconds;	/* of these, after all that can be was sent */
	double		idle_seconds;
	time_t		last_acknowledged;
}			counts;

static const Broker *broker;
static bool broker_up = false;
static PGconn *db = NULL;
static volatile sig_atomic_t stopping = 0;
static int	signal_pipe[2];

/* for signals: nothing of the outbox is ours; a socket that a library may hang on */
static volatile sig_atomic_t connecting = 0;
static volatile sig_atomic_t guarded_socket = -1;
static volatile sig_atomic_t last_call = 0;

static char blocked[200];		/* why the broker takes nothing for now; empty: it does */
static char refusal[200];		/* why it has closed the connection, or a channel */
static bool refused = false;	/* that was how the connection was lost last */
static double next_metrics;
static uint64_t shown = 0;		/* acknowledged when metrics were last written */

/* so many messages are taken at once: fewer after one was refused by disconnecting, or if they are large */
static int	limit;
static size_t taken_bytes;		/* what the last ones took */

/* ----------------------------------------------------------------
 * Small things
 * ----------------------------------------------------------------
 */

void
relay_log(const char *format,...)
{
	va_list		arguments;
	char	   *text;
	char		stamp[32];
	time_t		now = time(NULL);
	struct tm	utc;

	strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
	va_start(arguments, format);
	if (vasprintf(&text, format, arguments) < 0)
		text = NULL;
	va_end(arguments);
	/* messages of libpq end with one */
	while (text != NULL && text[0] != '\0' && text[strlen(text) - 1] == '\n')
		text[strlen(text) - 1] = '\0';
	fprintf(stderr, "%s event_store_relay[%d]: %s\n", stamp, (int) getpid(), text == NULL ? format : text);
	free(text);
}

void *
relay_alloc(size_t size)
{
	void	   *result = calloc(1, size > 0 ? size : 1);

	if (result == NULL)
	{
		relay_log("out of memory");
		exit(1);
	}
	return result;
}

static double
seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static void
stop(int signal)
{
	int			saved = errno;

	(void) signal;
	stopping = 1;
	(void) !write(signal_pipe[1], "x", 1);
	(void) alarm(connecting ? 1 : STOP_TIME / 1000 + END_TIME);
	errno = saved;
}

/* Something is waited for that does not end by itself. */
static void
out_of_time(int signal)
{
	static const char message[] = "event_store_relay: ended without waiting any longer\n";
	int			saved = errno;

	(void) signal;
	if (guarded_socket >= 0)
		(void) shutdown(guarded_socket, SHUT_RDWR);
	if (stopping)
	{
		/* who connects has nothing that could be given back */
		if (connecting)
			_exit(0);
		if (last_call)
		{
			(void) !write(STDERR_FILENO, message, sizeof(message) - 1);
			_exit(1);
		}
		last_call = 1;
		(void) alarm(END_TIME);
	}
	errno = saved;
}

/* While a socket is guarded, waits for it come to an end. */
void
guard_socket(int socket)
{
	guarded_socket = socket;
	(void) alarm(options.timeout);
}

void
unguard_socket(void)
{
	guarded_socket = -1;
	/* the alarm of stop() may have been ours */
	(void) alarm(stopping ? END_TIME : 0);
}

/* Sleeps, unless the relay is to stop. */
static void
nap(int milliseconds)
{
	struct pollfd fd = {signal_pipe[0], POLLIN, 0};

	if (!stopping)
		(void) poll(&fd, 1, milliseconds);
}

/* The delay before the next attempt; half of it is chance, so that relays part. */
static int
back_off(int *delay)
{
	int			result = *delay / 2 + (int) (drand48() * (*delay / 2));

	*delay = *delay * 2 > MAX_DELAY ? MAX_DELAY : *delay * 2;
	return result;
}

/*
 * What a broker says goes into the outbox, so it must be text: what is no UTF-8, or
 * was cut off, becomes a question mark.
 */
static void
make_text(char *text)
{
	for (unsigned char *at = (unsigned char *) text; *at != '\0';)
	{
		int			more = *at < 0x80 ? 0 : *at >= 0xC2 && *at < 0xE0 ? 1 : (*at & 0xF0) == 0xE0 ? 2 :
			*at >= 0xF0 && *at < 0xF5 ? 3 : -1;
		bool		good = more >= 0;

		for (int i = 1; good && i <= more; i++)
			good = (at[i] & 0xC0) == 0x80;
		if (good && more == 2)
			good = !(at[0] == 0xE0 && at[1] < 0xA0) && !(at[0] == 0xED && at[1] >= 0xA0);
		if (good && more == 3)
			good = !(at[0] == 0xF0 && at[1] < 0x90) && !(at[0] == 0xF4 && at[1] >= 0x90);
		if (!good)
			*at = '?';
		at += good ? more + 1 : 1;
	}
}

void
message_confirmed(Message *message)
{
	message->state = MESSAGE_CONFIRMED;
	counts.confirmed++;
}

void
message_failed(Message *message, const char *format,...)
{
	va_list		arguments;

	va_start(arguments, format);
	vsnprintf(message->error, sizeof(message->error), format, arguments);
	va_end(arguments);
	make_text(message->error);
	message->state = MESSAGE_FAILED;
}

/* The broker takes nothing for now, or (NULL) does so again. */
void
broker_blocked(const char *why)
{
	if (why != NULL)
		relay_log("%s takes no messages: %s", broker->name, why);
	else if (blocked[0] != '\0')
		relay_log("%s takes messages again", broker->name);
	snprintf(blocked, sizeof(blocked), "%s", why == NULL ? "" : why[0] == '\0' ? "?" : why);
}

/* It has closed something, and says why. */
void
broker_refused(const char *why)
{
	snprintf(refusal, sizeof(refusal), "%s", why);
}

/* Where a message goes: the template, with {topic}, {key} and {type} in it. */
char *
message_route(const Message *message)
{
	const char *key = message->key == NULL ? "" : message->key;
	char	   *result = relay_alloc(strlen(options.route) * (strlen(message->topic) + strlen(key) +
															  strlen(message->type) + 1) + 1);
	char	   *to = result;

	for (const char *at = options.route; *at != '\0';)
	{
		const char *value = NULL;
		int			skip = 0;

		if (strncmp(at, "{topic}", 7) == 0)
			value = message->topic, skip = 7;
		else if (strncmp(at, "{key}", 5) == 0)
			value = key, skip = 5;
		else if (strncmp(at, "{type}", 6) == 0)
			value = message->type, skip = 6;
		if (value == NULL)
			*to++ = *at++;
		else
		{
			to = stpcpy(to, value);
			at += skip;
		}
	}
	*to = '\0';
	return result;
}

/* ----------------------------------------------------------------
 * Metrics
 * ----------------------------------------------------------------
 */

static void
print_metric(FILE *file, const char *name, const char *kind, const char *help, double value)
{
	fprintf(file, "# HELP event_store_relay_%s %s\n# TYPE event_store_relay_%s %s\n"
			"event_store_relay_%s{relay=\"", name, help, name, kind, name);
	for (const char *at = options.relay; *at != '\0'; at++)
		if (*at == '\n')
			fputs("\\n", file);
		else
		{
			if (*at == '"' || *at == '\\')
				fputc('\\', file);
			fputc(*at, file);
		}
	fprintf(file, "\"} %.15g\n", value);
}

/* As text that Prometheus reads, into a file that is replaced as a whole. */
static void
write_metrics_file(void)
{
	char	   *temporary = relay_alloc(strlen(options.metrics_file) + 5);
	FILE	   *file;
	bool		failed;

	sprintf(temporary, "%s.tmp", options.metrics_file);
	file = fopen(temporary, "w");
	if (file == NULL)
		relay_log("could not write \"%s\": %s", temporary, strerror(errno));
	else
	{
		print_metric(file, "database_up", "gauge", "Whether there is a connection to the database.", db != NULL);
		print_metric(file, "broker_up", "gauge", "Whether there is a connection to the broker.", broker_up);
		print_metric(file, "broker_blocked", "gauge", "Whether the broker says that it takes no messages.", broker_up && blocked[0] != '\0');
		print_metric(file, "taken_total", "counter", "Messages taken from the outbox.", counts.taken);
		print_metric(file, "taken_again_total", "counter", "Of these, messages that had been taken before.", counts.taken_again);
		print_metric(file, "sent_total", "counter", "Messages sent to the broker.", counts.sent);
		print_metric(file, "confirmed_total", "counter", "Messages that the broker has confirmed.", counts.confirmed);
		print_metric(file, "acknowledged_total", "counter", "Messages acknowledged in the outbox.", counts.acknowledged);
		print_metric(file, "failed_total", "counter", "Messages that could not be sent.", counts.failed);
		print_metric(file, "batches_total", "counter", "Polls that gave messages.", counts.batches);
		print_metric(file, "database_connects_total", "counter", "Connections made to the database.", counts.database_connects);
		print_metric(file, "broker_connects_total", "counter", "Connections made to the broker.", counts.broker_connects);
		print_metric(file, "broker_losses_total", "counter", "Connections to the broker that were lost.", counts.broker_losses);
		print_metric(file, "database_seconds_total", "counter", "Time spent in the database, without waits for messages.", counts.database_seconds);
		print_metric(file, "broker_seconds_total", "counter", "Time spent with the broker.", counts.broker_seconds);
		print_metric(file, "confirm_seconds_total", "counter", "Of this, waits for confirmations.", counts.confirm_seconds);
		print_metric(file, "idle_seconds_total", "counter", "Time spent waiting for messages.", counts.idle_seconds);
		print_metric(file, "last_acknowledged_timestamp_seconds", "gauge", "When a message was last acknowledged.", counts.last_acknowledged);
		/* a file that is not whole takes no one's place */
		failed = fflush(file) != 0 || ferror(file);
		if (fclose(file) != 0 || failed || rename(temporary, options.metrics_file) != 0)
			relay_log("could not write \"%s\": %s", options.metrics_file, strerror(errno));
	}
	free(temporary);
}

static void
write_metrics(bool now)
{
	double		time = seconds();

	if (options.metrics_interval == 0 || (!now && time < next_metrics))
		return;
	next_metrics = time + options.metrics_interval;
	if (options.metrics_file != NULL)
		write_metrics_file();
	else if (counts.acknowledged + counts.failed != shown)
		relay_log("taken %llu, again %llu, sent %llu, confirmed %llu, acknowledged %llu, failed %llu; %.3f s in the database, %.3f s with the broker, %.3f s of these for confirmations",
				  (unsigned long long) counts.taken, (unsigned long long) counts.taken_again,
				  (unsigned long long) counts.sent, (unsigned long long) counts.confirmed,
				  (unsigned long long) counts.acknowledged, (unsigned long long) counts.failed,
				  counts.database_seconds, counts.broker_seconds, counts.confirm_seconds);
	shown = counts.acknowledged + counts.failed;
}

/* ----------------------------------------------------------------
 * The broker
 * ----------------------------------------------------------------
 */

/* Whatever was sent and is not confirmed may, or may not, have arrived. */
static void
lose_broker(BrokerResult result)
{
	if (result == BROKER_REFUSED)
		limit = 1;
	refused = result == BROKER_REFUSED;
	broker->disconnect();
	broker_up = false;
	blocked[0] = '\0';
	counts.broker_losses++;
}

/* Says that we are there, and hears whether the broker is. */
static void
look_at_broker(void)
{
	BrokerResult result;

	if (broker_up && (result = broker->wait(0)) != BROKER_OK)
		lose_broker(result);
}

/* ----------------------------------------------------------------
 * The database
 * ----------------------------------------------------------------
 */

static void
lose_database(const char *doing)
{
	relay_log("connection to the database lost while %s: %s", doing, PQerrorMessage(db));
	PQfinish(db);
	db = NULL;
}

/*
 * Runs a query; NULL: there is no connection any more, or it was cancelled because
 * the relay is to stop.  Errors of the server are logged, and cost the connection.
 */
static PGresult *
run(const char *doing, bool cancel, const char *sql, int nparams, const char *const *params)
{
	PGresult   *result = NULL;
	PGresult   *next;
	bool		cancelled = false;

	if (!PQsendQueryParams(db, sql, nparams, NULL, params, NULL, NULL, 0))
	{
		lose_database(doing);
		return NULL;
	}
	while (PQflush(db) == 1 || PQisBusy(db))
	{
		struct pollfd fds[2] = {
			{PQsocket(db), POLLIN, 0}, {signal_pipe[0], POLLIN, 0}
		};

		if (PQflush(db) == 1)
			fds[0].events |= POLLOUT;
		if (cancel && stopping && !cancelled)
		{
			PGcancel   *request = PQgetCancel(db);
			char		error[256];

			if (request != NULL)
				(void) PQcancel(request, error, sizeof(error));
			PQfreeCancel(request);
			cancelled = true;
		}
		/* once it has been seen, the signal does not end further waits */
		(void) poll(fds, stopping ? 1 : 2, 1000);
		if (!PQconsumeInput(db))
		{
			lose_database(doing);
			return NULL;
		}
		look_at_broker();
		write_metrics(false);
	}
	while ((next = PQgetResult(db)) != NULL)
	{
		PQclear(result);
		result = next;
	}
	if (result != NULL && PQresultStatus(result) != PGRES_TUPLES_OK &&
		PQresultStatus(result) != PGRES_COMMAND_OK)
	{
		if (!cancelled)
		{
			relay_log("error while %s: %s", doing, PQresultErrorMessage(result));
			PQfinish(db);
			db = NULL;
		}
		PQclear(result);
		return NULL;
	}
	if (result == NULL)
		lose_database(doing);
	return result;
}

/* The same for a query that returns a number, if anything; whether it was run. */
static bool
run_only(const char *doing, const char *sql, int nparams, const char *const *params, int *number)
{
	double		begun = seconds();
	PGresult   *result = run(doing, false, sql, nparams, params);

	counts.database_seconds += seconds() - begun;
	if (result != NULL && number != NULL)
		*number = atoi(PQgetvalue(result, 0, 0));
	PQclear(result);
	return result != NULL;
}

/* What this relay has, if it was here before, and has not acknowledged. */
static bool
release(void)
{
	const char *params[] = {options.relay};

	return run_only("giving messages back", "SELECT event_store.outbox_release($1)", 1, params, NULL);
}

static bool
connect_database(void)
{
	/* what stands before dbname can be said otherwise there */
	static const char *const names[] = {
		"keepalives_idle", "keepalives_interval", "keepalives_count",
		"connect_timeout", "dbname", "fallback_application_name", "client_encoding", NULL
	};
	const char *const values[] = {
		"15", "5", "3", getenv("PGCONNECT_TIMEOUT") == NULL ? "10" : NULL,
		options.dbname, "event_store_relay", "UTF8", NULL
	};

	connecting = 1;
	db = PQconnectdbParams(names, values, 1);
	connecting = 0;
	if (PQstatus(db) != CONNECTION_OK)
	{
		relay_log("could not connect to the database: %s", PQerrorMessage(db));
		PQfinish(db);
		db = NULL;
		return false;
	}
	PQsetnonblocking(db, 1);
	if (!run_only("setting up the connection",
				  "SELECT set_config('datestyle', 'ISO', false), set_config('statement_timeout', '0', false),"
				  " set_config('default_transaction_isolation', 'read committed', false),"
				  " set_config('default_transaction_read_only', 'off', false)", 0, NULL, NULL) ||
		!release())
		return false;
	counts.database_connects++;
	if (options.verbose)
		relay_log("connected to the database \"%s\"", PQdb(db));
	return true;
}

/* Milliseconds since 1970 of a timestamp as the server writes it: in ISO style. */
static int64_t
read_time(const char *text)
{
	struct tm	tm = {0};
	double		second = 0;
	int			hours = 0;
	int			minutes = 0;
	int			end = 0;

	if (sscanf(text, "%d-%d-%d %d:%d:%lf%n", &tm.tm_year, &tm.tm_mon, &tm.tm_mday,
			   &tm.tm_hour, &tm.tm_min, &second, &end) != 6)
		return 0;
	(void) sscanf(text + end, "%*1[+-]%d:%d", &hours, &minutes);
	minutes += hours * 60;
	tm.tm_year -= 1900;
	tm.tm_mon--;
	return ((int64_t) timegm(&tm) + (text[end] == '-' ? minutes : -minutes) * 60) * 1000 +
		(int64_t) (second * 1000);
}

/* Some messages; NULL: none, or no connection.  They point into the result. */
static Message *
take(PGresult **result, int *count)
{
	char		batch[16];
	char		lease[16];
	char		wait[16];
	const char *params[] = {options.relay, batch, lease, wait};
	Message    *messages;
	bool		wait_now = false;

	*count = 0;
	snprintf(batch, sizeof(batch), "%d", limit);
	snprintf(lease, sizeof(lease), "%d s", options.lease);
	/* at first without waiting, so that it is known how long the database takes */
	for (;;)
	{
		double		begun = seconds();

		snprintf(wait, sizeof(wait), "%d s", wait_now ? options.wait : 0);
		*result = run("taking messages", true,
					  "SELECT id, message_id, topic, key, type, payload, headers, published_at, attempt"
					  " FROM event_store.outbox_poll($1, $2::int, $3::interval, nullif($4::interval, '0'))",
					  4, params);
		*(wait_now ? &counts.idle_seconds : &counts.database_seconds) += seconds() - begun;
		if (*result == NULL)
			return NULL;
		*count = PQntuples(*result);
		if (*count > 0)
			break;
		PQclear(*result);
		if (wait_now || options.once || options.wait == 0 || stopping || !broker_up)
		{
			/* nothing is there, and nothing waits for it in the poll */
			if (!wait_now && !options.once && options.wait == 0)
				nap(FIRST_DELAY);
			return NULL;
		}
		wait_now = true;
	}
	counts.batches++;
	counts.taken += *count;
	taken_bytes = 0;
	messages = relay_alloc(sizeof(Message) * *count);
	for (int i = 0; i < *count; i++)
	{
		Message    *message = &messages[i];

		message->id = PQgetvalue(*result, i, 0);
		message->message_id = PQgetvalue(*result, i, 1);
		message->topic = PQgetvalue(*result, i, 2);
		message->key = PQgetisnull(*result, i, 3) ? NULL : PQgetvalue(*result, i, 3);
		message->type = PQgetvalue(*result, i, 4);
		message->payload = PQgetvalue(*result, i, 5);
		message->payload_size = PQgetlength(*result, i, 5);
		taken_bytes += message->payload_size + PQgetlength(*result, i, 6);
		message->published_at = read_time(PQgetvalue(*result, i, 7));
		if (!headers_parse(message, PQgetvalue(*result, i, 6)))
			message_failed(message, "the headers are no JSON object");
		if (strcmp(PQgetvalue(*result, i, 8), "1") != 0)
			counts.taken_again++;
	}
	return messages;
}

/* An element of an array as text, quoted. */
static char *
add_element(char *to, const char *element)
{
	*to++ = '"';
	for (; *element != '\0'; element++)
	{
		if (*element == '"' || *element == '\\')
			*to++ = '\\';
		*to++ = *element;
	}
	*to++ = '"';
	*to++ = ',';
	return to;
}

static void
end_array(char *from, char *to)
{
	/* in place of the last comma */
	strcpy(to > from + 1 ? to - 1 : to, "}");
}

/* Tells the outbox what has become of messages in one state; false: it could not be told. */
static bool
tell(const char *doing, const char *sql, MessageState state, Message *messages, int count,
	 uint64_t *counter)
{
	char	   *ids = relay_alloc(count * 26 + 3);
	char	   *errors = relay_alloc(count * (2 * sizeof(messages->error) + 3) + 3);
	char	   *to_ids = ids;
	char	   *to_errors = errors;
	const char *params[] = {options.relay, ids, errors};
	int			told = 0;
	int			taken_note_of = 0;
	bool		good = true;

	*to_ids++ = *to_errors++ = '{';
	for (int i = 0; i < count; i++)
		if (messages[i].state == state)
		{
			to_ids = add_element(to_ids, messages[i].id);
			if (state == MESSAGE_FAILED)
			{
				to_errors = add_element(to_errors, messages[i].error);
				/* one of many tells enough */
				if (told == 0 || options.verbose)
					relay_log("message %s of topic \"%s\" could not be sent: %s",
							  messages[i].message_id, messages[i].topic, messages[i].error);
			}
			told++;
		}
	end_array(ids, to_ids);
	end_array(errors, to_errors);
	if (told > 0)
		good = run_only(doing, sql, state == MESSAGE_FAILED ? 3 : 2, params, &taken_note_of);
	if (told > 0 && good)
	{
		*counter += taken_note_of;
		if (taken_note_of < told)
			relay_log("too late for %d of %d messages: they were not this relay's any more",
					  told - taken_note_of, told);
	}
	free(ids);
	free(errors);
	return good;
}

static bool
answer(Message *messages, int count)
{
	uint64_t	acknowledged = counts.acknowledged;
	int			open = 0;

	if (!tell("acknowledging messages", "SELECT event_store.outbox_ack($1, $2::bigint[])",
			  MESSAGE_CONFIRMED, messages, count, &counts.acknowledged))
		return false;
	if (counts.acknowledged > acknowledged)
		counts.last_acknowledged = time(NULL);
	if (!tell("refusing messages",
			  "SELECT count(event_store.outbox_nack($1, f.id, f.error))"
			  " FROM ROWS FROM (unnest($2::bigint[]), unnest($3::text[])) AS f(id, error)",
			  MESSAGE_FAILED, messages, count, &counts.failed))
		return false;
	/* the rest waits for another time */
	for (int i = 0; i < count; i++)
		open += messages[i].state != MESSAGE_CONFIRMED && messages[i].state != MESSAGE_FAILED;
	return open == 0 || release();
}

/* ----------------------------------------------------------------
 * A batch
 * ----------------------------------------------------------------
 */

static int
compare_keys(const void *a, const void *b)
{
	const Message *one = *(Message *const *) a;
	const Message *other = *(Message *const *) b;
	int			order = strcmp(one->key, other->key);

	/* those of one key stay in their order: they stand in one array */
	return order != 0 ? order : one < other ? -1 : one > other;
}

/* What is kept in mind while a batch is on its way. */
typedef struct Patience
{
	double		heard;			/* when the outbox last heard of us */
	double		progress;		/* when the broker last said something of a message */
	double		give_up;		/* if the relay is to stop; 0: it is not */
	uint64_t	answered;		/* messages of which something was said then */
	double		confirm_seconds;
} Patience;

/* Waits a little for the broker. */
static BrokerResult
wait_a_little(Patience *patience, Message *messages, int count)
{
	BrokerResult result = broker->wait(100);
	double		now = seconds();
	uint64_t	answered = 0;

	if (result != BROKER_OK)
		return result;
	write_metrics(false);
	for (int i = 0; i < count; i++)
		answered += messages[i].state == MESSAGE_CONFIRMED || messages[i].state == MESSAGE_FAILED;
	/* one that says that it is blocked is there, and what it was sent will be done */
	if (answered != patience->answered || blocked[0] != '\0')
	{
		patience->answered = answered;
		patience->progress = now;
	}
	if (stopping && patience->give_up == 0)
		patience->give_up = now + STOP_TIME / 1000.0;
	if (patience->give_up > 0 && now > patience->give_up)
		return BROKER_LOST;
	if (now - patience->progress > options.timeout)
	{
		relay_log("%s has confirmed nothing for %d seconds", broker->name, options.timeout);
		return BROKER_LOST;
	}
	/* the outbox is told that the messages are being worked on */
	if (now - patience->heard > options.lease / 3.0)
	{
		char		lease[16];
		const char *params[] = {options.relay, lease};

		snprintf(lease, sizeof(lease), "%d s", options.lease);
		patience->heard = now;
		/* without the outbox there is no use in waiting */
		if (!run_only("keeping messages",
					  "SELECT event_store.outbox_heartbeat($1, $2::interval)", 2, params, NULL))
			return BROKER_LOST;
		if (!broker_up)
			return BROKER_LOST;
	}
	return BROKER_OK;
}

/* Waits until the broker has said something of all that was sent. */
static BrokerResult
wait_for_all(Patience *patience, Message *messages, int count)
{
	BrokerResult result = BROKER_OK;
	double		begun = seconds();
	double		database = counts.database_seconds;

	patience->progress = begun;
	for (int first = 0; result == BROKER_OK;)
	{
		while (first < count && messages[first].state != MESSAGE_SENT)
			first++;
		if (first == count)
			break;
		result = wait_a_little(patience, messages, count);
	}
	patience->confirm_seconds += seconds() - begun - (counts.database_seconds - database);
	return result;
}

/* Sends one, once the broker takes it. */
static BrokerResult
send_one(Patience *patience, Message *message, Message *messages, int count)
{
	BrokerResult result = BROKER_OK;

	if (!broker->ready())
	{
		patience->progress = seconds();
		do
			result = wait_a_little(patience, messages, count);
		while (result == BROKER_OK && !broker->ready() && !stopping);
		if (result != BROKER_OK || stopping)
			return result;
	}
	result = broker->send(message);
	counts.sent += message->state == MESSAGE_SENT;
	return result;
}

/*
 * Sends all messages, in waves: in each the next one of every key, so that none is
 * on its way before the one in front of it has been confirmed.  Behind one that has
 * failed the rest of its key stays where it is.
 */
static void
send_all(Message *messages, int count)
{
	Message   **keyed = relay_alloc(sizeof(Message *) * count);
	int			nkeyed = 0;
	BrokerResult result = BROKER_OK;
	bool		more = true;
	double		begun = seconds();
	double		database = counts.database_seconds;
	Patience	patience = {.heard = begun};

	for (int i = 0; i < count; i++)
		if (messages[i].key != NULL)
			keyed[nkeyed++] = &messages[i];
	qsort(keyed, nkeyed, sizeof(Message *), compare_keys);

	for (int i = 0; i < count && result == BROKER_OK; i++)
		if ((messages[i].key == NULL || options.pipeline_keys) &&
			messages[i].state == MESSAGE_WAITING && !stopping)
			result = send_one(&patience, &messages[i], messages, count);
	while (more && result == BROKER_OK)
	{
		more = false;
		for (int i = 0; i < nkeyed && result == BROKER_OK;)
		{
			int			next = i;
			bool		held = false;

			/* of this key, the first that is not confirmed */
			while (next < nkeyed && strcmp(keyed[next]->key, keyed[i]->key) == 0)
			{
				Message    *message = keyed[next++];

				if (held || message->state == MESSAGE_CONFIRMED)
					continue;
				held = true;
				if (message->state == MESSAGE_WAITING && !stopping)
				{
					result = send_one(&patience, message, messages, count);
					more = true;
				}
			}
			i = next;
		}
		if (result == BROKER_OK)
			result = wait_for_all(&patience, messages, count);
	}
	/* what is not confirmed is not: whoever sends it next sends it again */
	if (result != BROKER_OK && broker_up)
		lose_broker(result);
	counts.broker_seconds += seconds() - begun - (counts.database_seconds - database);
	counts.confirm_seconds += patience.confirm_seconds;
	free(keyed);
	if (options.verbose && result == BROKER_OK)
		relay_log("sent %d messages", count);
}

/*
 * One that makes the broker disconnect has failed if it was alone; if there were
 * others, the next ones are taken one by one.
 */
static void
judge(Message *messages, int count)
{
	if (!broker_up && refused && count == 1 && messages[0].state == MESSAGE_SENT)
		message_failed(&messages[0], "the broker has closed the connection because of the message: %s", refusal);
	if (!broker_up)
		return;
	/* what is taken at once is held in memory */
	if (taken_bytes > MAX_BYTES && limit > 1)
		limit /= 2;
	else if (limit < options.batch && (taken_bytes * 2 <= MAX_BYTES || count < limit))
		limit = limit * 2 > options.batch ? options.batch : limit * 2;
}

/* ----------------------------------------------------------------
 * Everything
 * ----------------------------------------------------------------
 */

/* Until it is to stop, or, with --once, until nothing is left; false: that could not be done. */
static bool
work(void)
{
	int			database_delay = FIRST_DELAY;
	int			broker_delay = FIRST_DELAY;

	while (!stopping)
	{
		PGresult   *result;
		Message    *messages;
		int			count;

		write_metrics(false);
		if (db == NULL && !connect_database())
		{
			if (options.once)
				return false;
			nap(back_off(&database_delay));
			continue;
		}
		if (!broker_up)
		{
			connecting = 1;
			broker_up = broker->connect();
			connecting = 0;
			if (!broker_up)
			{
				if (options.once)
					return false;
				nap(back_off(&broker_delay));
				continue;
			}
			counts.broker_connects++;
			if (options.verbose)
				relay_log("connected to %s", broker->name);
		}
		messages = take(&result, &count);
		if (db != NULL)
			database_delay = FIRST_DELAY;
		else
			nap(back_off(&database_delay));
		if (messages == NULL)
		{
			if (options.once && db != NULL && broker_up)
				return true;
			continue;
		}
		if (broker_up)
		{
			send_all(messages, count);
			judge(messages, count);
			if (broker_up)
				broker_delay = FIRST_DELAY;
		}
		if (db != NULL)
			(void) answer(messages, count);
		for (int i = 0; i < count; i++)
			headers_free(&messages[i]);
		free(messages);
		PQclear(result);
		/* it may be there again at once, and go at once for the same reason */
		if (!broker_up)
			nap(back_off(&broker_delay));
	}
	return true;
}

static void
usage(void)
{
	printf(
			"event_store_relay sends messages of the outbox of a database to a broker.\n\n"
			"Usage:\n  event_store_relay [OPTION]...\n\n"
			"  -d, --dbname=CONNINFO    database, as for psql (default: as the environment says)\n"
			"  -b, --broker=URL         amqp://user:password@host:port/vhost, amqps://..., or\n"
			"                           kafka://host:port,host:port (default: $EVENT_STORE_RELAY_BROKER)\n"
			"  -n, --relay=NAME         name of this relay, another one for each (default: the host's)\n"
			"  -e, --exchange=NAME      RabbitMQ: a topic exchange (default: event_store)\n"
			"  -r, --route=TEMPLATE     routing key, or topic of Kafka (default: {topic}; {key}, {type})\n"
			"  -B, --batch=N            messages taken at once, 1 to %d (default: %d)\n"
			"  -l, --lease=SECONDS      for so long they are this relay's (default: %d)\n"
			"  -w, --wait=SECONDS       a poll waits so long (default: %d)\n"
			"  -m, --metrics=FILE       write metrics to this file, for Prometheus (default: to stderr)\n"
			"  -i, --metrics-interval=SECONDS  how often; 0: never (default: %d)\n"
			"  -t, --timeout=SECONDS    a broker that confirms nothing for so long is taken for lost (default: %d)\n"
			"      --cacert=FILE        TLS: authorities that the broker's certificate is checked by\n"
			"                           (default: the system's)\n"
			"      --insecure           TLS: do not check it\n"
			"      --cert=FILE, --key=FILE  TLS: this relay's certificate, and its key\n"
			"      --no-declare         RabbitMQ: do not declare the exchange\n"
			"      --no-mandatory       RabbitMQ: messages that no queue takes are sent all the same\n"
			"      --pipeline-keys      several messages of one key at once: faster, but if the broker\n"
			"                           refuses one, those behind it may come before it\n"
			"  -X, --set=NAME=VALUE     Kafka: a property of librdkafka\n"
			"      --once               send what there is, and end\n"
			"  -v, --verbose            tell more\n"
			"  -?, --help, -V, --version\n",
			MAX_BATCH, options.batch, options.lease, options.wait, options.metrics_interval, options.timeout);
}

static void __attribute__((noreturn))
bad_option(const char *what)
{
	fprintf(stderr, "event_store_relay: %s\n", what);
	exit(2);
}

/* An argument, out of the sight of ps if there is a password in it. */
static const char *
keep_secret(char *argument, bool secret)
{
	char	   *result;

	if (!secret)
		return argument;
	result = relay_alloc(strlen(argument) + 1);
	strcpy(result, argument);
	memset(argument, '*', strlen(argument));
	return result;
}

static void
check_readable(const char *name, const char *file)
{
	if (file != NULL && access(file, R_OK) != 0)
	{
		fprintf(stderr, "event_store_relay: could not read the file \"%s\" of --%s: %s\n", file, name, strerror(errno));
		exit(2);
	}
}

static int
number(const char *name, const char *text, int low, int high)
{
	char	   *end;
	long		result;

	errno = 0;
	result = strtol(text, &end, 10);
	if (errno != 0 || *end != '\0' || end == text || result < low || result > high)
	{
		fprintf(stderr, "event_store_relay: --%s must be a number from %d to %d\n", name, low, high);
		exit(2);
	}
	return (int) result;
}

/* What no attempt to connect would make better. */
static void
check_dbname(void)
{
	PQconninfoOption *parsed;
	char	   *error = NULL;

	/* otherwise it is the name of a database */
	if (strchr(options.dbname, '=') == NULL && strstr(options.dbname, "://") == NULL)
		return;
	parsed = PQconninfoParse(options.dbname, &error);
	if (parsed == NULL)
	{
		fprintf(stderr, "event_store_relay: --dbname: %s", error == NULL ? "out of memory\n" : error);
		exit(2);
	}
	PQconninfoFree(parsed);
}

static void
read_options(int argc, char **argv)
{
	enum
	{
		CACERT = 256, CERT, KEY, INSECURE, NO_DECLARE, NO_MANDATORY, PIPELINE_KEYS, ONCE
	};
	static const struct option known[] = {
		{"dbname", required_argument, NULL, 'd'},
		{"broker", required_argument, NULL, 'b'},
		{"relay", required_argument, NULL, 'n'},
		{"exchange", required_argument, NULL, 'e'},
		{"route", required_argument, NULL, 'r'},
		{"batch", required_argument, NULL, 'B'},
		{"lease", required_argument, NULL, 'l'},
		{"wait", required_argument, NULL, 'w'},
		{"metrics", required_argument, NULL, 'm'},
		{"metrics-interval", required_argument, NULL, 'i'},
		{"timeout", required_argument, NULL, 't'},
		{"cacert", required_argument, NULL, CACERT},
		{"cert", required_argument, NULL, CERT},
		{"key", required_argument, NULL, KEY},
		{"insecure", no_argument, NULL, INSECURE},
		{"no-declare", no_argument, NULL, NO_DECLARE},
		{"no-mandatory", no_argument, NULL, NO_MANDATORY},
		{"pipeline-keys", no_argument, NULL, PIPELINE_KEYS},
		{"set", required_argument, NULL, 'X'},
		{"once", no_argument, NULL, ONCE},
		{"verbose", no_argument, NULL, 'v'},
		{"help", no_argument, NULL, '?'},
		{"version", no_argument, NULL, 'V'},
		{0}
	};
	static char host[256];
	int			option;

	options.broker = getenv("EVENT_STORE_RELAY_BROKER");
	/* the option -? is not known from one that is not known */
	if (argc == 2 && (strcmp(argv[1], "-?") == 0 || strcmp(argv[1], "--help") == 0))
	{
		usage();
		exit(0);
	}
	while ((option = getopt_long(argc, argv, "d:b:n:e:r:B:l:w:m:i:t:X:vV", known, NULL)) != -1)
		switch (option)
		{
			case 'd':
				options.dbname = keep_secret(optarg, strstr(optarg, "password") != NULL || strchr(optarg, '@') != NULL);
				break;
			case 'b':
				options.broker = keep_secret(optarg, strchr(optarg, '@') != NULL);
				break;
			case 'n':
				options.relay = optarg;
				break;
			case 'e':
				options.exchange = optarg;
				break;
			case 'r':
				options.route = optarg;
				break;
			case 'B':
				options.batch = number("batch", optarg, 1, MAX_BATCH);
				break;
			case 'l':
				options.lease = number("lease", optarg, 3, 86400);
				break;
			case 'w':
				options.wait = number("wait", optarg, 0, 3600);
				break;
			case 'm':
				options.metrics_file = optarg;
				break;
			case 'i':
				options.metrics_interval = number("metrics-interval", optarg, 0, 86400);
				break;
			case 't':
				options.timeout = number("timeout", optarg, 1, 86400);
				break;
			case CACERT:
				options.ca_file = optarg;
				break;
			case CERT:
				options.cert_file = optarg;
				break;
			case KEY:
				options.key_file = optarg;
				break;
			case INSECURE:
				options.insecure = true;
				break;
			case NO_DECLARE:
				options.declare = false;
				break;
			case NO_MANDATORY:
				options.mandatory = false;
				break;
			case PIPELINE_KEYS:
				options.pipeline_keys = true;
				break;
			case 'X':
				if (options.nproperties == (int) (sizeof(options.properties) / sizeof(char *)))
					bad_option("there are too many -X");
				options.properties[options.nproperties++] =
					keep_secret(optarg, strstr(optarg, "password") != NULL || strstr(optarg, "secret") != NULL);
				break;
			case ONCE:
				options.once = true;
				break;
			case 'v':
				options.verbose = true;
				break;
			case 'V':
				printf("event_store_relay %s, brokers:%s%s\n", RELAY_VERSION,
#ifdef WITH_RABBITMQ
					   " RabbitMQ",
#else
					   "",
#endif
#ifdef WITH_KAFKA
					   " Kafka"
#else
					   ""
#endif
					);
				exit(0);
			default:
				bad_option("see --help");
		}
	if (optind < argc)
		bad_option("there are no arguments but options: see --help");
	if (options.relay == NULL)
	{
		if (gethostname(host, sizeof(host) - 1) != 0)
			strcpy(host, "relay");
		options.relay = host;
	}
	if (options.relay[0] == '\0')
		bad_option("--relay must not be empty");
	if ((options.cert_file == NULL) != (options.key_file == NULL))
		bad_option("--cert and --key go together");
	check_readable("cacert", options.ca_file);
	check_readable("cert", options.cert_file);
	check_readable("key", options.key_file);
	check_dbname();
}

static void
choose_broker(void)
{
#ifdef WITH_RABBITMQ
	if (options.broker != NULL && (strncmp(options.broker, "amqp://", 7) == 0 ||
								   strncmp(options.broker, "amqps://", 8) == 0))
		broker = &rabbitmq;
#endif
#ifdef WITH_KAFKA
	if (options.broker != NULL && strncmp(options.broker, "kafka://", 8) == 0)
		broker = &kafka;
#endif
	if (broker == NULL)
		bad_option("--broker must be a URL of a broker that this program was built with (see --version)");
	if (!broker->check())
		exit(2);
}

int
main(int argc, char **argv)
{
	struct sigaction action = {0};
	bool		good;

	read_options(argc, argv);
	choose_broker();
	setvbuf(stderr, NULL, _IOLBF, 0);
	srand48(time(NULL) ^ getpid());
	if (pipe(signal_pipe) != 0 ||
		fcntl(signal_pipe[0], F_SETFL, O_NONBLOCK) != 0 ||
		fcntl(signal_pipe[1], F_SETFL, O_NONBLOCK) != 0)
	{
		relay_log("could not make a pipe: %s", strerror(errno));
		return 1;
	}
	action.sa_handler = stop;
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	action.sa_handler = out_of_time;
	sigaction(SIGALRM, &action, NULL);
	action.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &action, NULL);

	limit = options.batch;
	next_metrics = seconds() + options.metrics_interval;
	good = work();

	if (db != NULL)
	{
		/* a poll that was cancelled may have been about to give messages */
		(void) release();
		PQfinish(db);
		db = NULL;
	}
	if (broker_up)
		broker->disconnect();
	broker_up = false;
	write_metrics(true);
	if (options.verbose)
		relay_log("stopped");
	return good ? 0 : 1;
}
