/*
 * load.c
 *	  The benchmark's load generator: some clients repeat one prepared statement
 *	  for some seconds; what came of it is printed as one line of JSON.
 *
 * It stands in for pgbench, which cannot send COPY data, binds no text but a
 * constant, knows nothing of what a call returned, and has gone before one could
 * ask what its backends cost.  Whatever is measured, the client does the same:
 * parameters and results as text, by libpq.  Where a step is one statement there
 * are as many threads as processors, each of which sends for its share of the
 * clients and takes what comes, as pgbench does; with one for each client, waking
 * them up costs as much as the statements.  In the other works each client has a
 * thread, and calls that block.
 *
 * A statement names its parameters the way pgbench does, ":stream"; variables[]
 * lists those there are.  Payloads are drawn from a pool made beforehand, so that
 * the client's share of a call stays small.
 *
 * Streams.  A stream is known by its number s: its name is the category
 * s % CATEGORIES, a dash, and s or, if so wanted, a UUID made of s.  A client that appends owns a share of the open
 * streams ("slots"), knows the version of each, and goes to one of them at
 * random.  A stream that has reached its length is closed, and one with a new
 * number takes its slot.  So the version that is expected is always exact, and
 * stays so from run to run by way of the state file.
 *
 * The sample.  "--work sample" writes the events that the stores are filled with
 * before anything is measured, in COPY's text format.  Both sides of the
 * benchmark must agree on what is in there, hence it is defined here, in
 * sample_layout().
 *
 * Time.  Counting starts after the warm-up.  At both ends of the counted time
 * the main thread takes the CPU time of all backends (the kernel's schedstat, in
 * nanoseconds) and the server's WAL position.
 *
 * Amount.  With "--until" it is events that bound a run, --seconds are the most
 * it takes: the clients stop for a moment when they have got --skip events among
 * them, and what counts is from there to the last of those wanted.
 */
#include <ctype.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#define POOL		1024		/* payloads to draw from */
#define CATEGORIES	8
#define VERBS		9
#define RARE		1000		/* one event in so many is of the rare type */
#define MAX_PARAMS	16
#define NAME_SIZE	64
#define UUID_SIZE	37
#define Min(a, b)	((a) < (b) ? (a) : (b))
#define RECENT		64			/* ids that a client may repeat */

static const char *const categories[CATEGORIES] = {
	"account", "booking", "claim", "customer",
	"invoice", "order", "payment", "shipment"
};

static const char *const verbs[VERBS] = {
	"Amended", "Approved", "Assigned", "Booked", "Changed",
	"Checked", "Confirmed", "Noted", "Rejected"
};

/* What a statement may name. */
typedef enum Variable
{
	STREAM,						/* the stream's name */
	CATEGORY,
	TYPE,
	VERSION,					/* that the event is going to have */
	EXPECTED,					/* version - 1 */
	EXPECTED0,					/* the same, where a stream's first event has version 0 */
	EVENT_ID,
	DATA,
	METADATA,
	EVENTS,						/* a batch as a JSON array */
	EVENTS_WITH_IDS,
	AFTER,						/* the last position seen */
	FROM,						/* after + 1 */
	CONSUMER,					/* the client's name */
	POSITIONS,					/* of the events that came last, as an array */
	LAST,						/* the last of these */
	VARIABLES
} Variable;

static const char *const variables[VARIABLES] = {
	"stream", "category", "type", "version", "expected", "expected0",
	"event_id", "data", "metadata", "events", "events_with_ids",
	"after", "from", "consumer", "positions", "last"
};

/* A statement, as the server gets it. */
typedef struct Call
{
	const char *name;
	char	   *sql;
	int			params_count;
	Variable	params[MAX_PARAMS];
} Call;

typedef struct Slot
{
	int64_t		stream;
	int64_t		version;
} Slot;

typedef struct Buffer
{
	char	   *text;
	size_t		length;
	size_t		size;
} Buffer;

typedef struct Client
{
	pthread_t	thread;
	int			number;
	PGconn	   *conn;
	uint64_t	random;

	/* the present call */
	char		stream[NAME_SIZE];
	char		type[NAME_SIZE];
	char		version[24];
	char		expected[24];
	char		expected0[24];
	char		event_id[UUID_SIZE];
	char		recent[RECENT][UUID_SIZE];	/* ids that came last */
	int64_t		ids;
	char		after_text[24];
	char		from_text[24];
	char		consumer[24];
	Buffer		batch;
	const char *values[VARIABLES];

	int			category;		/* of a reader: where it is */
	int64_t		after;

	Slot	   *slot;			/* of the present call */
	double		sent;			/* when it began */

	PGconn	   *listener;		/* who hears of what this client appends */
	double		since;			/* what is timed began then, 0: with the call */

	/* what has been done, in the time that counts and in all */
	int64_t		calls;
	int64_t		events;
	int64_t		all_events;
	uint32_t   *latencies;		/* of each call, in microseconds */
	size_t		latencies_size;
} Client;

/* the options */
static const char *conninfo = "";
static const char *work = NULL;
static const char *statement = NULL;
static const char *before = NULL;	/* executed by each client before it begins */
static const char *then = NULL;	/* take: acknowledges what the statement returned */
static const char *state_file = NULL;
static const char *verb = NULL; /* reads: the category's type with this verb */
static const char *hot = NULL;	/* appends: one category for all streams */
static int	clients = 1;
static int	threads;
static double seconds = 5;
static double warmup = 1;
static int64_t until = 0;		/* events, of all clients; 0: it is time that bounds a run */
static int64_t skip = 0;		/* the first so many don't count */
static int64_t sample_events = 1000000;
static int64_t slots_count = 1000;
static int64_t length = 10;
static int64_t first_stream = 0;
static int	batch_size = 100;
static int	read_length = 10;
static int	limit = 1000;
static int	repeats = 0;	/* mark: so many of 100 ids have come before */
static bool prefilled = false;
static bool random_ids = false;
static bool uuid_streams = false;

static Call call = {.name = "call"};
static Call then_call = {.name = "then"};

static Slot *slots;
static int64_t next_stream;
static char *pool_data[POOL];
static char *pool_metadata[POOL];

/* what a client does again and again */
typedef struct Work
{
	const char *name;
	/* either one statement: its values, and how many events it was about … */
	void		(*begin) (Client *client);
	int64_t		(*end) (Client *client);
	/* … or whatever it is */
	int64_t		(*step) (Client *client);
} Work;

static const Work *the_work;

static volatile bool counting = false;
static volatile bool stopping = false;

/* --until: events that all clients have got, and where they and the main thread meet */
static int64_t got = 0;
static pthread_barrier_t skipped;
static pthread_mutex_t got_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t got_all;

__attribute__((noreturn, format(printf, 1, 2)))
static void
die(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	fputs("load: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	exit(1);
}

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void
sleep_for(double duration)
{
	struct timespec ts = {(time_t) duration, (long) ((duration - (time_t) duration) * 1e9)};

	nanosleep(&ts, NULL);
}

/* splitmix64: the hash of a number, or the next of a series */
static uint64_t
hash(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static uint64_t
draw(uint64_t *state)
{
	*state += UINT64_C(0x9e3779b97f4a7c15);
	return hash(*state);
}

static void
put(Buffer *buffer, const char *text)
{
	size_t		n = strlen(text);

	if (buffer->length + n + 1 > buffer->size)
	{
		buffer->size = 2 * (buffer->size + n + 1);
		buffer->text = realloc(buffer->text, buffer->size);
	}
	memcpy(buffer->text + buffer->length, text, n + 1);
	buffer->length += n;
}

/* ---- Streams and events ---- */

static void
stream_name(char *name, int64_t stream)
{
	const char *category = hot ? hot : categories[stream % CATEGORIES];

	if (uuid_streams)
	{
		uint64_t	high = hash((uint64_t) stream);
		uint64_t	low = hash(high);

		snprintf(name, NAME_SIZE, "%s-%08x-%04x-4%03x-8%03x-%012llx", category,
				 (unsigned) (high >> 32), (unsigned) (high >> 16 & 0xffff),
				 (unsigned) (high & 0xfff), (unsigned) (low >> 48 & 0xfff),
				 (unsigned long long) (low & UINT64_C(0xffffffffffff)));
	}
	else
		snprintf(name, NAME_SIZE, "%s-%lld", category, (long long) stream);
}

static void
type_name(char *name, int category, const char *what)
{
	snprintf(name, NAME_SIZE, "%s%s", categories[category], what);
	name[0] = (char) toupper((unsigned char) name[0]);
}

static void
event_type(char *name, int64_t stream, int64_t version)
{
	uint64_t	h = hash((uint64_t) stream * 1000003 + (uint64_t) version);

	type_name(name, (int) (stream % CATEGORIES),
			  version == 1 ? "Opened" : h % RARE == 0 ? "Disputed" : verbs[h / RARE % VERBS]);
}

/*
 * Version 7 has the milliseconds in front and lands on an index's right edge;
 * version 4 is random all over.
 */
static void
event_id(char *id, uint64_t *random)
{
	static const char digits[] = "0123456789abcdef";
	uint64_t	high = draw(random);
	uint64_t	low = draw(random);
	int			place = 0;

	if (!random_ids)
	{
		struct timespec ts;

		clock_gettime(CLOCK_REALTIME, &ts);
		high = (high & 0xffff) |
			((uint64_t) ts.tv_sec * 1000 + (uint64_t) ts.tv_nsec / 1000000) << 16;
	}
	high = (high & ~UINT64_C(0xf000)) | (random_ids ? 0x4000 : 0x7000);
	low = (low & ~(UINT64_C(3) << 62)) | UINT64_C(1) << 63;

	for (int i = 0; i < 32; i++)
	{
		if (i == 8 || i == 12 || i == 16 || i == 20)
			id[place++] = '-';
		id[place++] = digits[(i < 16 ? high >> (60 - 4 * i) :
							  low >> (124 - 4 * i)) & 15];
	}
	id[place] = '\0';
}

#define DRAW(n) ((int) (draw(&random) % (n)))

static void
make_pool(void)
{
	static const char *const cities[] = {
		"Lisbon", "Antwerp", "Uppsala", "Trieste", "Gdansk"
	};
	static const char *const names[] = {
		"Amalia Ferreira", "Jonas Lindqvist", "Ruth Okafor", "Piotr Zielinski"
	};
	uint64_t	random = 7;

	for (int i = 0; i < POOL; i++)
	{
		char		text[512];
		int			lines = i % 5;
		int			n;

		n = snprintf(text, sizeof(text),
					 "{\"amount\": %d.%02d, \"currency\": \"EUR\", \"reference\": \"REF-2024-%07d\", "
					 "\"customer\": {\"id\": %d, \"name\": \"%s\", \"city\": \"%s\"}, "
					 "\"due\": \"2024-%02d-%02d\", \"express\": %s, \"lines\": [",
					 DRAW(9000) + 1000, DRAW(100), DRAW(10000000),
					 DRAW(900000) + 100000, names[DRAW(4)], cities[DRAW(5)],
					 DRAW(12) + 1, DRAW(28) + 1, DRAW(2) ? "true" : "false");
		for (int line = 0; line < lines; line++)
			n += snprintf(text + n, sizeof(text) - n, "%s{\"sku\": \"A-%05d\", \"qty\": %d}",
						  line ? ", " : "", DRAW(100000), DRAW(9) + 1);
		snprintf(text + n, sizeof(text) - n, "]}");
		pool_data[i] = strdup(text);
		snprintf(text, sizeof(text),
				 "{\"user\": \"u-%06d\", \"ip\": \"10.%d.%d.%d\", "
				 "\"agent\": \"web/4\", \"trace\": \"%08x\"}",
				 DRAW(1000000), DRAW(256), DRAW(256), DRAW(256), DRAW(1 << 30));
		pool_metadata[i] = strdup(text);
	}
}

/* ---- The sample ---- */

typedef struct Kind
{
	int			length;			/* of each stream; 0 = open streams, of 1 to 9 */
	int64_t		first;			/* the first one's number */
	int64_t		count;
} Kind;

typedef struct Place
{
	double		at;				/* when the event comes, between 0 and 1 */
	int64_t		stream;
	int			version;
} Place;

/*
 * Half of the events belong to open streams, which the appends go on with; the
 * other half to streams of 10, 100 and 1,000, which are read.  At one million
 * that makes 100,000 open streams, and 20,000, 1,500 and 150 of the others.
 */
static void
sample_layout(Kind kinds[4])
{
	static const int lengths[4] = {0, 10, 100, 1000};
	static const double shares[4] = {0.1, 0.02, 0.0015, 0.00015};
	int64_t		first = 0;

	for (int i = 0; i < 4; i++)
	{
		kinds[i].length = lengths[i];
		kinds[i].first = first;
		kinds[i].count = (int64_t) (shares[i] * sample_events + 0.5);
		first += kinds[i].count;
	}
}

static int
open_version(int64_t stream)
{
	return 1 + (int) (stream % 9);
}

static int
compare_places(const void *a, const void *b)
{
	const Place *x = a;
	const Place *y = b;

	return x->at < y->at ? -1 : x->at > y->at ? 1 : x->version - y->version;
}

/*
 * Each stream begins somewhere in the log and spreads over a fifth of it, as
 * streams do where many things happen at once.
 */
static void
write_sample(void)
{
	Kind		kinds[4];
	Place	   *places;
	size_t		size = 0;
	size_t		count = 0;
	uint64_t	random = 11;

	sample_layout(kinds);
	for (int k = 0; k < 4; k++)
		size += (size_t) (kinds[k].count * (kinds[k].length ? kinds[k].length : 9));
	places = malloc(size * sizeof(Place));
	for (int k = 0; k < 4; k++)
		for (int64_t s = kinds[k].first; s < kinds[k].first + kinds[k].count; s++)
		{
			int			n = kinds[k].length ? kinds[k].length : open_version(s);
			double		start = (double) (hash((uint64_t) s) >> 11) / (UINT64_C(1) << 53) * 0.8;

			for (int v = 1; v <= n; v++)
				places[count++] = (Place) {start + 0.2 * v / n, s, v};
		}
	qsort(places, count, sizeof(Place), compare_places);

	for (size_t i = 0; i < count; i++)
	{
		char		name[NAME_SIZE];
		char		type[NAME_SIZE];
		char		id[UUID_SIZE];
		uint64_t	payload = draw(&random) % POOL;

		stream_name(name, places[i].stream);
		event_type(type, places[i].stream, places[i].version);
		event_id(id, &random);
		printf("%zu\t%lld\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", i + 1, (long long) places[i].stream,
			   name, categories[places[i].stream % CATEGORIES], type, places[i].version,
			   id, pool_data[payload], pool_metadata[payload]);
	}
}

/* ---- The works: a step is one call, and tells how many events it wrote or read ---- */

static void
collect_values(Client *client, const Call *what, const char **values)
{
	for (int i = 0; i < what->params_count; i++)
		values[i] = client->values[what->params[i]];
}

static void
check_result(const PGresult *result)
{
	if (PQresultStatus(result) != PGRES_TUPLES_OK &&
		PQresultStatus(result) != PGRES_COMMAND_OK)
		die("%s", PQresultErrorMessage(result));
}

static PGresult *
execute_call(Client *client, const Call *what)
{
	const char *values[MAX_PARAMS];
	PGresult   *result;

	collect_values(client, what, values);
	result = PQexecPrepared(client->conn, what->name, what->params_count, values, NULL, NULL, 0);
	check_result(result);
	return result;
}

static PGresult *
execute(Client *client)
{
	return execute_call(client, &call);
}

/* Chooses one of the client's own slots. */
static Slot *
choose_slot(Client *client)
{
	uint64_t	own = (uint64_t) ((slots_count - client->number + clients - 1) / clients);
	Slot	   *slot = &slots[client->number + (int64_t) (draw(&client->random) % own) * clients];

	stream_name(client->stream, slot->stream);
	client->values[CATEGORY] = hot ? hot : categories[slot->stream % CATEGORIES];
	return slot;
}

static void
set_version(Client *client, int64_t version)
{
	snprintf(client->version, sizeof(client->version), "%lld", (long long) version);
	snprintf(client->expected, sizeof(client->expected), "%lld", (long long) (version - 1));
	snprintf(client->expected0, sizeof(client->expected0), "%lld", (long long) (version - 2));
}

static void
advance_slot(Slot *slot, int64_t count)
{
	slot->version += count;
	if (slot->version >= length)
		*slot = (Slot) {__atomic_fetch_add(&next_stream, 1, __ATOMIC_RELAXED), 0};
}

static void
choose_payload(Client *client)
{
	uint64_t	payload = draw(&client->random) % POOL;

	client->values[DATA] = pool_data[payload];
	client->values[METADATA] = pool_metadata[payload];
}

static void
begin_append(Client *client)
{
	Slot	   *slot = client->slot = choose_slot(client);

	set_version(client, slot->version + 1);
	event_type(client->type, slot->stream, slot->version + 1);
	event_id(client->event_id, &client->random);
	choose_payload(client);
}

static int64_t
end_append(Client *client)
{
	advance_slot(client->slot, 1);
	return 1;
}

/* Any version, a few streams that all clients share. */
static void
begin_append_hot(Client *client)
{
	int64_t		stream = first_stream + (int64_t) (draw(&client->random) % (uint64_t) slots_count);

	stream_name(client->stream, stream);
	client->values[CATEGORY] = hot ? hot : categories[stream % CATEGORIES];
	event_type(client->type, stream, 2 + (int64_t) (draw(&client->random) % 1000));
	event_id(client->event_id, &client->random);
	choose_payload(client);
}

static int64_t
end_one(Client *client)
{
	(void) client;
	return 1;
}

static int64_t
step_batch(Client *client)
{
	Slot	   *slot = choose_slot(client);
	Buffer	   *batch = &client->batch;
	bool		with_ids = false;

	for (int i = 0; i < call.params_count; i++)
		with_ids |= call.params[i] == EVENTS_WITH_IDS;

	batch->length = 0;
	for (int i = 0; i < batch_size; i++)
	{
		event_type(client->type, slot->stream, slot->version + 1 + i);
		choose_payload(client);
		put(batch, i ? ",{\"type\":\"" : "[{\"type\":\"");
		put(batch, client->type);
		if (with_ids)
		{
			event_id(client->event_id, &client->random);
			put(batch, "\",\"event_id\":\"");
			put(batch, client->event_id);
		}
		put(batch, "\",\"data\":");
		put(batch, client->values[DATA]);
		put(batch, ",\"metadata\":");
		put(batch, client->values[METADATA]);
		put(batch, "}");
	}
	put(batch, "]");
	client->values[EVENTS] = client->values[EVENTS_WITH_IDS] = batch->text;
	set_version(client, slot->version + 1);
	PQclear(execute(client));
	advance_slot(slot, batch_size);
	return batch_size;
}

/* The same rows by COPY; the statement is the COPY command. */
static int64_t
step_copy(Client *client)
{
	Slot	   *slot = choose_slot(client);
	Buffer	   *batch = &client->batch;
	PGresult   *result;

	batch->length = 0;
	for (int i = 0; i < batch_size; i++)
	{
		set_version(client, slot->version + 1 + i);
		event_type(client->type, slot->stream, slot->version + 1 + i);
		event_id(client->event_id, &client->random);
		choose_payload(client);
		put(batch, client->stream);
		put(batch, "\t");
		put(batch, client->values[CATEGORY]);
		put(batch, "\t");
		put(batch, client->type);
		put(batch, "\t");
		put(batch, client->version);
		put(batch, "\t");
		put(batch, client->event_id);
		put(batch, "\t");
		put(batch, client->values[DATA]);
		put(batch, "\t");
		put(batch, client->values[METADATA]);
		put(batch, "\n");
	}
	result = PQexec(client->conn, call.sql);
	if (PQresultStatus(result) != PGRES_COPY_IN)
		die("%s", PQresultErrorMessage(result));
	PQclear(result);
	if (PQputCopyData(client->conn, batch->text, (int) batch->length) != 1 ||
		PQputCopyEnd(client->conn, NULL) != 1)
		die("%s", PQerrorMessage(client->conn));
	while ((result = PQgetResult(client->conn)) != NULL)
	{
		if (PQresultStatus(result) != PGRES_COMMAND_OK)
			die("%s", PQresultErrorMessage(result));
		PQclear(result);
	}
	advance_slot(slot, batch_size);
	return batch_size;
}

/* An id: a new one, or one of those that this client has had lately. */
static void
begin_mark(Client *client)
{
	if (client->ids >= RECENT && draw(&client->random) % 100 < (uint64_t) repeats)
		memcpy(client->event_id, client->recent[draw(&client->random) % RECENT], UUID_SIZE);
	else
	{
		event_id(client->event_id, &client->random);
		memcpy(client->recent[client->ids++ % RECENT], client->event_id, UUID_SIZE);
	}
}

/* A whole stream of the wanted length. */
static int64_t
step_read(Client *client)
{
	static Kind kinds[4];
	int			k = read_length == 10 ? 1 : read_length == 100 ? 2 : 3;
	PGresult   *result;
	int			rows;

	if (kinds[k].count == 0)
		sample_layout(kinds);
	stream_name(client->stream,
				kinds[k].first + (int64_t) (draw(&client->random) % (uint64_t) kinds[k].count));
	result = execute(client);
	rows = PQntuples(result);
	if (rows != read_length)
		die("stream %s has %d events, not %d", client->stream, rows, read_length);
	PQclear(result);
	return rows;
}

/* The next events after those seen; at the end, the next category from its beginning. */
static int64_t
step_follow(Client *client)
{
	PGresult   *result;
	int			rows;
	int			column;

	snprintf(client->after_text, sizeof(client->after_text), "%lld", (long long) client->after);
	snprintf(client->from_text, sizeof(client->from_text), "%lld", (long long) client->after + 1);
	client->values[CATEGORY] = categories[client->category];
	type_name(client->type, client->category, verb ? verb : "");

	result = execute(client);
	rows = PQntuples(result);
	column = PQfnumber(result, "global_position");
	if (column < 0)
		column = PQfnumber(result, "position");
	if (column < 0)
		die("the statement returns no position");
	if (rows == limit)
		client->after = atoll(PQgetvalue(result, rows - 1, column));
	else
	{
		client->after = 0;
		client->category = (client->category + 1) % CATEGORIES;
	}
	PQclear(result);
	return rows;
}

/* A statement over one category after the other, which returns how many events it was over. */
static int64_t
step_query(Client *client)
{
	PGresult   *result;
	int64_t		events;

	client->values[CATEGORY] = categories[client->category];
	client->category = (client->category + 1) % CATEGORIES;
	result = execute(client);
	if (PQntuples(result) != 1)
		die("the statement returns %d rows, not one", PQntuples(result));
	events = atoll(PQgetvalue(result, 0, 0));
	PQclear(result);
	return events;
}

/* The next events of the subscription "bench", and their acknowledgement; at its end, from the beginning. */
static int64_t
step_consume(Client *client)
{
	PGresult   *result = execute(client);
	int			rows = PQntuples(result);
	const char *last = rows > 0 ? PQgetvalue(result, rows - 1, 0) : NULL;
	PGresult   *done;

	done = last == NULL ?
		PQexec(client->conn, "SELECT event_store.rewind_subscription('bench')") :
		PQexecParams(client->conn, "SELECT event_store.ack_up_to('bench', $1)", 1, NULL, &last, NULL, NULL, 0);
	if (PQresultStatus(done) != PGRES_TUPLES_OK)
		die("%s", PQresultErrorMessage(done));
	PQclear(done);
	PQclear(result);
	return rows;
}

/*
 * The next events of a queue, and the statement that says that they are done,
 * which must find as many.
 */
static int64_t
step_take(Client *client)
{
	Buffer	   *positions = &client->batch;
	PGresult   *result = execute(client);
	PGresult   *done;
	int			rows = PQntuples(result);
	int			column = PQfnumber(result, "position");

	if (rows > 0 && then != NULL)
	{
		if (column < 0)
			die("the statement returns no position");
		positions->length = 0;
		for (int i = 0; i < rows; i++)
		{
			put(positions, i ? "," : "{");
			put(positions, PQgetvalue(result, i, column));
		}
		put(positions, "}");
		client->values[POSITIONS] = positions->text;
		client->values[LAST] = PQgetvalue(result, rows - 1, column);
		done = execute_call(client, &then_call);
		if (atoi(PQgetvalue(done, 0, 0)) != rows)
			die("%d events were delivered, and %s could be acknowledged", rows, PQgetvalue(done, 0, 0));
		PQclear(done);
	}
	PQclear(result);
	return rows;
}

/*
 * An event, and then the notification of it, on another connection: what is
 * timed is from the end of the append to there.
 */
static int64_t
step_hear(Client *client)
{
	PGresult   *result;
	int64_t		position;

	snprintf(client->stream, sizeof(client->stream), "order-hear-%d", client->number);
	event_type(client->type, client->number, 1);
	choose_payload(client);
	result = execute(client);
	position = atoll(PQgetvalue(result, 0, 0));
	PQclear(result);
	client->since = now();
	for (;;)
	{
		PGnotify   *notification;
		struct pollfd input = {PQsocket(client->listener), POLLIN, 0};

		if (PQconsumeInput(client->listener) == 0)
			die("%s", PQerrorMessage(client->listener));
		while ((notification = PQnotifies(client->listener)) != NULL)
		{
			const char *last = strstr(notification->extra, "\"last_position\": ");
			bool		heard = last != NULL && atoll(last + 17) >= position;

			PQfreemem(notification);
			if (heard)
				return 1;
		}
		if (poll(&input, 1, 10000) == 0)
			die("no notification of position %lld came", (long long) position);
	}
}

/* ---- Clients ---- */

/* Turns ":name" into "$n" and notes which variable that is. */
static void
parse_statement(const char *text, Call *into)
{
	Buffer		buffer = {0};

	for (const char *p = text; *p;)
	{
		char		piece[16] = {*p, '\0'};
		size_t		n = 0;
		int			v;
		int			i;

		if (*p == ':' && islower((unsigned char) p[1]) && (p == text || p[-1] != ':'))
		{
			for (n = 1; isalnum((unsigned char) p[n]) || p[n] == '_'; n++);
			for (v = 0; v < VARIABLES; v++)
				if (strlen(variables[v]) == n - 1 && strncmp(variables[v], p + 1, n - 1) == 0)
					break;
			if (v == VARIABLES)
				die("no such variable: %.*s", (int) n, p);
			for (i = 0; i < into->params_count && into->params[i] != (Variable) v; i++);
			if (i == MAX_PARAMS)
				die("too many variables");
			if (i == into->params_count)
				into->params[into->params_count++] = (Variable) v;
			snprintf(piece, sizeof(piece), "$%d", i + 1);
		}
		put(&buffer, piece);
		p += n ? n : 1;
	}
	into->sql = buffer.text;
}

static PGconn *
open_connection(void)
{
	PGconn	   *conn = PQconnectdb(conninfo);

	if (PQstatus(conn) != CONNECTION_OK)
		die("%s", PQerrorMessage(conn));
	return conn;
}

static void
prepare_call(Client *client, const Call *what)
{
	PGresult   *result = PQprepare(client->conn, what->name, what->sql, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die("%s", PQresultErrorMessage(result));
	PQclear(result);
}

static void
prepare_client(Client *client, int number)
{
	client->number = number;
	client->random = hash((uint64_t) number + (uint64_t) time(NULL) * 1000);
	client->category = number % CATEGORIES;
	client->conn = open_connection();
	client->values[STREAM] = client->stream;
	client->values[TYPE] = client->type;
	client->values[VERSION] = client->version;
	client->values[EXPECTED] = client->expected;
	client->values[EXPECTED0] = client->expected0;
	client->values[EVENT_ID] = client->event_id;
	client->values[AFTER] = client->after_text;
	client->values[FROM] = client->from_text;
	snprintf(client->consumer, sizeof(client->consumer), "consumer %d", number + 1);
	client->values[CONSUMER] = client->consumer;

	if (the_work->step == step_hear)
	{
		client->listener = open_connection();
		PQclear(PQexec(client->listener, "LISTEN event_store"));
	}
	if (the_work->step != step_copy)
		prepare_call(client, &call);
	if (then != NULL)
		prepare_call(client, &then_call);
	if (before != NULL)
	{
		PGresult   *result = PQexec(client->conn, before);

		if (PQresultStatus(result) != PGRES_TUPLES_OK)
			die("%s", PQresultErrorMessage(result));
		PQclear(result);
	}
}

/* Adds what a client has got to what all have. */
static void
add_to_got(int64_t events)
{
	if (__atomic_add_fetch(&got, events, __ATOMIC_SEQ_CST) >= until)
	{
		pthread_mutex_lock(&got_lock);
		stopping = true;
		pthread_cond_signal(&got_all);
		pthread_mutex_unlock(&got_lock);
	}
}

/* Waits until the clients have got all, or for so long. */
static void
wait_for_all(double most)
{
	struct timespec end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += (time_t) most;
	end.tv_nsec += (long) ((most - (time_t) most) * 1e9);
	if (end.tv_nsec >= 1000000000)
	{
		end.tv_sec++;
		end.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&got_lock);
	while (!stopping && pthread_cond_timedwait(&got_all, &got_lock, &end) == 0);
	pthread_mutex_unlock(&got_lock);
}

/* Counts a call that has ended, if it is one of those that count. */
static void
count_call(Client *client, int64_t events, double start)
{
	client->all_events += events;
	if (!counting)
		return;
	if ((size_t) client->calls == client->latencies_size)
	{
		client->latencies_size = client->latencies_size ? 2 * client->latencies_size : 4096;
		client->latencies = realloc(client->latencies, client->latencies_size * sizeof(uint32_t));
	}
	client->latencies[client->calls++] = (uint32_t) ((now() - start) * 1e6);
	client->events += events;
}

static void
send_call(Client *client)
{
	const char *values[MAX_PARAMS];

	client->sent = now();
	the_work->begin(client);
	collect_values(client, &call, values);
	if (PQsendQueryPrepared(client->conn, call.name, call.params_count, values, NULL, NULL, 0) != 1)
		die("%s", PQerrorMessage(client->conn));
}

static void
take_result(Client *client)
{
	PGresult   *result;

	while ((result = PQgetResult(client->conn)) != NULL)
	{
		check_result(result);
		PQclear(result);
	}
	count_call(client, the_work->end(client), client->sent);
}

/* What a thread does that has every threads-th client, from its first one on. */
static void *
run_share(void *arg)
{
	Client	   *first = arg;
	int			count = (clients - first->number + threads - 1) / threads;
	struct pollfd *inputs = calloc((size_t) count, sizeof(struct pollfd));

	for (int i = 0; i < count; i++)
	{
		inputs[i] = (struct pollfd) {PQsocket(first[i * threads].conn), POLLIN, 0};
		send_call(&first[i * threads]);
	}
	while (!stopping)
	{
		(void) poll(inputs, (nfds_t) count, 100);
		for (int i = 0; i < count; i++)
		{
			Client	   *client = &first[i * threads];

			if (inputs[i].revents == 0)
				continue;
			if (PQconsumeInput(client->conn) == 0)
				die("%s", PQerrorMessage(client->conn));
			if (PQisBusy(client->conn))
				continue;
			take_result(client);
			send_call(client);
		}
	}
	for (int i = 0; i < count; i++)
		take_result(&first[i * threads]);
	free(inputs);
	return NULL;
}

static void *
run_client(void *arg)
{
	Client	   *client = arg;
	bool		skipping = until > 0;

	while (!stopping)
	{
		double		start;
		int64_t		events;

		if (skipping && __atomic_load_n(&got, __ATOMIC_SEQ_CST) >= skip)
		{
			/* all are here; the main thread takes the time; all go on */
			pthread_barrier_wait(&skipped);
			pthread_barrier_wait(&skipped);
			skipping = false;
		}
		start = now();
		events = the_work->step(client);
		if (client->since > start)
			start = client->since;
		count_call(client, events, start);
		if (until > 0 && counting)
			add_to_got(events);
		else if (until > 0)
			__atomic_add_fetch(&got, events, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

/* ---- What is measured ---- */

/* CPU time of all backends so far, in microseconds */
static double
backend_cpu(Client *all)
{
	double		sum = 0;

	for (int i = 0; i < clients; i++)
	{
		char		path[64];
		FILE	   *file;
		unsigned long long ns;

		snprintf(path, sizeof(path), "/proc/%d/schedstat", PQbackendPID(all[i].conn));
		file = fopen(path, "r");
		if (file == NULL || fscanf(file, "%llu", &ns) != 1)
			die("cannot read %s", path);
		fclose(file);
		sum += ns / 1e3;
	}
	return sum;
}

static double
wal_position(PGconn *conn)
{
	PGresult   *result = PQexec(conn, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn");
	double		position;

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		die("%s", PQresultErrorMessage(result));
	position = atof(PQgetvalue(result, 0, 0));
	PQclear(result);
	return position;
}

static int
compare_latencies(const void *a, const void *b)
{
	uint32_t	x = *(const uint32_t *) a;
	uint32_t	y = *(const uint32_t *) b;

	return x < y ? -1 : x > y;
}

/* Where the streams stand: from the state file, from the sample, or all of them new. */
static void
load_slots(void)
{
	FILE	   *file = state_file ? fopen(state_file, "rb") : NULL;

	slots = calloc((size_t) slots_count, sizeof(Slot));
	next_stream = first_stream;
	if (file != NULL)
	{
		if (fread(&next_stream, sizeof(next_stream), 1, file) != 1 ||
			fread(slots, sizeof(Slot), (size_t) slots_count, file) != (size_t) slots_count)
			die("cannot read %s", state_file);
		fclose(file);
		return;
	}
	for (int64_t i = 0; i < slots_count; i++)
		slots[i] = prefilled ? (Slot) {i, open_version(i)} : (Slot) {next_stream++, 0};
}

static void
save_slots(void)
{
	FILE	   *file = state_file ? fopen(state_file, "wb") : NULL;

	if (state_file == NULL)
		return;
	if (file == NULL ||
		fwrite(&next_stream, sizeof(next_stream), 1, file) != 1 ||
		fwrite(slots, sizeof(Slot), (size_t) slots_count, file) !=
		(size_t) slots_count ||
		fclose(file) != 0)
		die("cannot write %s", state_file);
}

static void
measure(void)
{
	Client	   *all = calloc((size_t) clients, sizeof(Client));
	PGconn	   *control = open_connection();
	double		cpu;
	double		wal;
	double		time_taken;
	int64_t		calls = 0;
	int64_t		events = 0;
	int64_t		all_events = 0;
	uint32_t   *latencies;

	load_slots();
	for (int i = 0; i < clients; i++)
		prepare_client(&all[i], i);
	if (until > 0)
	{
		pthread_condattr_t attr;

		pthread_barrier_init(&skipped, NULL, (unsigned) clients + 1);
		pthread_condattr_init(&attr);
		pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
		pthread_cond_init(&got_all, &attr);
	}
	threads = the_work->step != NULL ? clients : Min(clients, (int) sysconf(_SC_NPROCESSORS_ONLN));
	for (int i = 0; i < threads; i++)
		pthread_create(&all[i].thread, NULL, the_work->step != NULL ? run_client : run_share, &all[i]);

	if (until > 0)
		pthread_barrier_wait(&skipped);
	else
		sleep_for(warmup);
	wal = wal_position(control);
	cpu = backend_cpu(all);
	time_taken = now();
	counting = true;
	if (until > 0)
	{
		pthread_barrier_wait(&skipped);
		wait_for_all(seconds);
	}
	else
		sleep_for(seconds);
	counting = false;
	time_taken = now() - time_taken;
	cpu = backend_cpu(all) - cpu;
	wal = wal_position(control) - wal;
	stopping = true;
	for (int i = 0; i < threads; i++)
		pthread_join(all[i].thread, NULL);
	save_slots();

	for (int i = 0; i < clients; i++)
	{
		calls += all[i].calls;
		events += all[i].events;
		all_events += all[i].all_events;
	}
	if (calls == 0)
		die("not one call ended in %.1f seconds", seconds);
	latencies = malloc((size_t) calls * sizeof(uint32_t));
	calls = 0;
	for (int i = 0; i < clients; i++)
	{
		memcpy(latencies + calls, all[i].latencies, (size_t) all[i].calls * sizeof(uint32_t));
		calls += all[i].calls;
		PQfinish(all[i].conn);
	}
	qsort(latencies, (size_t) calls, sizeof(uint32_t), compare_latencies);

	printf("{\"events\": %lld, \"all_events\": %lld, \"calls\": %lld, \"seconds\": %.4f, "
		   "\"events_per_s\": %.1f, \"calls_per_s\": %.1f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, "
		   "\"cpu_us\": %.3f, \"wal_bytes\": %.1f}\n",
		   (long long) events, (long long) all_events, (long long) calls, time_taken,
		   events / time_taken, calls / time_taken,
		   latencies[calls / 2] / 1e3, latencies[calls * 99 / 100] / 1e3,
		   events ? cpu / events : 0, events ? wal / events : 0);
	PQfinish(control);
}

int
main(int argc, char **argv)
{
	static const Work works[] = {
		{"append", begin_append, end_append, NULL},
		{"append-hot", begin_append_hot, end_one, NULL},
		{"mark", begin_mark, end_one, NULL},
		{"batch", NULL, NULL, step_batch},
		{"copy", NULL, NULL, step_copy},
		{"read", NULL, NULL, step_read},
		{"follow", NULL, NULL, step_follow},
		{"query", NULL, NULL, step_query},
		{"consume", NULL, NULL, step_consume},
		{"take", NULL, NULL, step_take},
		{"hear", NULL, NULL, step_hear}
	};
	static const struct option options[] = {
		{"work", required_argument, NULL, 'w'},
		{"conninfo", required_argument, NULL, 'd'},
		{"statement", required_argument, NULL, 'q'},
		{"clients", required_argument, NULL, 'c'},
		{"seconds", required_argument, NULL, 's'},
		{"warmup", required_argument, NULL, 'u'},
		{"sample-events", required_argument, NULL, 'n'},
		{"slots", required_argument, NULL, 'o'},
		{"length", required_argument, NULL, 'l'},
		{"first-stream", required_argument, NULL, 'f'},
		{"state", required_argument, NULL, 'S'},
		{"prefilled", no_argument, NULL, 'p'},
		{"random-ids", no_argument, NULL, 'r'},
		{"uuid-streams", no_argument, NULL, 'i'},
		{"read-length", required_argument, NULL, 'R'},
		{"verb", required_argument, NULL, 'v'},
		{"category", required_argument, NULL, 'h'},
		{"before", required_argument, NULL, 'b'},
		{"then", required_argument, NULL, 't'},
		{"until", required_argument, NULL, 'U'},
		{"skip", required_argument, NULL, 'k'},
		{"repeats", required_argument, NULL, 'e'},
		{NULL, 0, NULL, 0}
	};
	int			option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (option)
		{
			case 'w': work = optarg; break;
			case 'd': conninfo = optarg; break;
			case 'q': statement = optarg; break;
			case 'c': clients = atoi(optarg); break;
			case 's': seconds = atof(optarg); break;
			case 'u': warmup = atof(optarg); break;
			case 'n': sample_events = atoll(optarg); break;
			case 'o': slots_count = atoll(optarg); break;
			case 'l': length = atoll(optarg); break;
			case 'f': first_stream = atoll(optarg); break;
			case 'S': state_file = optarg; break;
			case 'p': prefilled = true; break;
			case 'r': random_ids = true; break;
			case 'i': uuid_streams = true; break;
			case 'R': read_length = atoi(optarg); break;
			case 'v': verb = optarg; break;
			case 'h': hot = optarg; break;
			case 'b': before = optarg; break;
			case 't': then = optarg; break;
			case 'U': until = atoll(optarg); break;
			case 'k': skip = atoll(optarg); break;
			case 'e': repeats = atoi(optarg); break;
			default: return 2;
		}
	}
	if (work == NULL)
		die("--work is missing");

	make_pool();
	if (strcmp(work, "sample") == 0)
	{
		write_sample();
		return 0;
	}
	for (size_t i = 0; i < sizeof(works) / sizeof(works[0]) && the_work == NULL; i++)
		if (strcmp(work, works[i].name) == 0)
			the_work = &works[i];
	if (the_work == NULL)
		die("no such work: %s", work);
	if (statement == NULL)
		die("--statement is missing");
	parse_statement(statement, &call);
	if (then != NULL)
		parse_statement(then, &then_call);
	measure();
	return 0;
}
