/*
 * rabbitmq.c
 *		RabbitMQ, or another broker of AMQP 0-9-1 with publisher confirms.
 *
 * One connection with one channel, in confirm mode.  The broker numbers what is
 * published on it from 1 on, and confirms by number, several at once if it likes.
 * A message that no queue takes comes back before it is confirmed, with its
 * message_id.  If the broker closes the channel it does so because of something
 * that was published, or asked for.  Short of memory or disk it says that it is
 * blocked, and reads nothing more until that is over.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/ssl_socket.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#endif

#include "relay.h"

#define CHANNEL			1
#define HEARTBEAT		10
#define MAX_FRAME		131072
/* the authorities that Debian trusts */
#define SYSTEM_CERTIFICATES	"/etc/ssl/certs/ca-certificates.crt"
#define MAX_SHORT		255		/* bytes of a short string of the protocol */
#define MIN_BUFFER		16384	/* what a socket takes at once if it takes anything */

static amqp_connection_state_t connection = NULL;

/* what was sent and is not confirmed: by number, from first_tag on */
static Message **unconfirmed = NULL;
static uint64_t first_tag;
static int	nsent;
static int	room;

static bool blocked = false;	/* the broker says that it reads nothing */

static BrokerResult
lost(const char *doing, int status)
{
	relay_log("connection to RabbitMQ lost while %s: %s", doing, amqp_error_string2(status));
	return BROKER_LOST;
}

static bool
contains(amqp_bytes_t text, const char *part)
{
	return memmem(text.bytes, text.len, part, strlen(part)) != NULL;
}

/* The broker has closed something. */
static void
explain(const char *doing, const char *what, unsigned code, amqp_bytes_t text)
{
	char		why[200];

	snprintf(why, sizeof(why), "%u %.*s", code, (int) text.len, (char *) text.bytes);
	relay_log("RabbitMQ closed the %s while %s: %s", what, doing, why);
	broker_refused(why);
}

/* What the broker has said instead of what it was asked for. */
static BrokerResult
refused(const char *doing, amqp_rpc_reply_t reply)
{
	if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
		return lost(doing, reply.library_error);
	if (reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD)
	{
		amqp_channel_close_t *close = reply.reply.decoded;

		explain(doing, "channel", close->reply_code, close->reply_text);
		/* without the exchange, or the right to it, no message is to blame; without the right to its topic it is */
		return close->reply_code == 404 || (close->reply_code == 403 && !contains(close->reply_text, "topic '")) ?
			BROKER_LOST : BROKER_REFUSED;
	}
	if (reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD)
	{
		amqp_connection_close_t *close = reply.reply.decoded;

		explain(doing, "connection", close->reply_code, close->reply_text);
		/* 320: it is stopped; 5xx: because of what was sent */
		return close->reply_code >= 500 && close->reply_code != 541 ? BROKER_REFUSED : BROKER_LOST;
	}
	relay_log("RabbitMQ gave an answer while %s that nobody expects", doing);
	return BROKER_LOST;
}

static bool
done(const char *doing)
{
	amqp_rpc_reply_t reply = amqp_get_rpc_reply(connection);

	if (reply.reply_type == AMQP_RESPONSE_NORMAL)
		return true;
	(void) refused(doing, reply);
	return false;
}

static amqp_table_entry_t
string_header(const char *name, const char *value)
{
	amqp_table_entry_t entry;

	entry.key = amqp_cstring_bytes(name);
	entry.value.kind = AMQP_FIELD_KIND_UTF8;
	entry.value.value.bytes = amqp_cstring_bytes(value);
	return entry;
}

static void
rabbitmq_disconnect(void)
{
	if (connection == NULL)
		return;
	/* without a word: the broker may be gone */
	amqp_destroy_connection(connection);
	connection = NULL;
	nsent = 0;
	blocked = false;
}

/* Whether the options make sense. */
static bool
rabbitmq_check(void)
{
	struct amqp_connection_info info;
	char	   *url = strdup(options.broker);
	bool		good = url != NULL && amqp_parse_url(url, &info) == AMQP_STATUS_OK;

	free(url);
	if (!good)
		relay_log("the broker's address is no AMQP URL");
	else if (strlen(options.exchange) > MAX_SHORT)
	{
		relay_log("the name of the exchange is longer than %d bytes", MAX_SHORT);
		good = false;
	}
	return good;
}

/* Says who we are, and that we understand when the broker says that it is blocked. */
static amqp_rpc_reply_t
log_in(const struct amqp_connection_info *info)
{
	amqp_table_entry_t capability = {.key = amqp_cstring_bytes("connection.blocked")};
	amqp_table_entry_t properties[2];
	amqp_table_t table = {2, properties};

	capability.value.kind = AMQP_FIELD_KIND_BOOLEAN;
	capability.value.value.boolean = true;
	properties[0].key = amqp_cstring_bytes("capabilities");
	properties[0].value.kind = AMQP_FIELD_KIND_TABLE;
	properties[0].value.value.table = (amqp_table_t) {1, &capability};
	properties[1] = string_header("connection_name", options.relay);
	return amqp_login_with_properties(connection, info->vhost, 0, MAX_FRAME, HEARTBEAT, &table,
									  AMQP_SASL_METHOD_PLAIN, info->user, info->password);
}

static amqp_socket_t *
open_socket(bool tls)
{
	const char *ca_file = options.ca_file != NULL ? options.ca_file : SYSTEM_CERTIFICATES;
	amqp_socket_t *socket;

	if (!tls)
		return amqp_tcp_socket_new(connection);
	socket = amqp_ssl_socket_new(connection);
	if (socket == NULL)
		return NULL;
	amqp_ssl_socket_set_verify_peer(socket, !options.insecure);
	amqp_ssl_socket_set_verify_hostname(socket, !options.insecure);
	if (!options.insecure && amqp_ssl_socket_set_cacert(socket, ca_file) != AMQP_STATUS_OK)
	{
		relay_log("could not read the certificates in \"%s\"", ca_file);
		return NULL;
	}
	if (options.cert_file != NULL &&
		amqp_ssl_socket_set_key(socket, options.cert_file, options.key_file) != AMQP_STATUS_OK)
	{
		relay_log("could not read the certificate \"%s\" or its key", options.cert_file);
		return NULL;
	}
	return socket;
}

static bool
rabbitmq_connect(void)
{
	struct amqp_connection_info info;
	struct timeval timeout = {.tv_sec = 10};
	char	   *url = strdup(options.broker);
	amqp_socket_t *socket;
	amqp_rpc_reply_t reply;
	int			status;
	bool		connected = false;

	/* what is parsed points into the URL */
	if (url == NULL || amqp_parse_url(url, &info) != AMQP_STATUS_OK)
	{
		relay_log("the broker's address is no AMQP URL");
		free(url);
		return false;
	}
	connection = amqp_new_connection();
	socket = connection == NULL ? NULL : open_socket(info.ssl);
	if (socket == NULL)
		relay_log("could not make a socket for RabbitMQ");
	else if ((status = amqp_socket_open_noblock(socket, info.host, info.port, &timeout)) != AMQP_STATUS_OK)
		relay_log("could not connect to RabbitMQ at %s port %d: %s", info.host, info.port,
				  amqp_error_string2(status));
	else
	{
		(void) amqp_set_handshake_timeout(connection, &timeout);
		(void) amqp_set_rpc_timeout(connection, &timeout);
		reply = log_in(&info);
		if (reply.reply_type != AMQP_RESPONSE_NORMAL)
			(void) refused("logging in", reply);
		else
		{
			amqp_channel_open(connection, CHANNEL);
			connected = done("opening a channel");
		}
	}
	free(url);
	/* the default exchange is always there */
	if (connected && options.declare && options.exchange[0] != '\0')
	{
		amqp_exchange_declare(connection, CHANNEL, amqp_cstring_bytes(options.exchange),
							  amqp_cstring_bytes("topic"), false, true, false, false,
							  amqp_empty_table);
		connected = done("declaring the exchange");
	}
	if (connected)
	{
		amqp_confirm_select(connection, CHANNEL);
		connected = done("asking for confirmations");
	}
	first_tag = 1;
	nsent = 0;
	if (!connected)
		rabbitmq_disconnect();
	return connected;
}

/* Whether the socket takes something, as far as that can be known. */
static bool
rabbitmq_ready(void)
{
	struct pollfd fd = {amqp_get_sockfd(connection), POLLOUT, 0};

	return !blocked && poll(&fd, 1, 0) != 0;
}

static BrokerResult rabbitmq_wait(int milliseconds);

static BrokerResult
rabbitmq_send(Message *message)
{
	amqp_basic_properties_t properties = {0};
	amqp_table_entry_t *headers;
	amqp_bytes_t payload;
	char	   *route = message_route(message);
	/* what else goes into the frame of the headers, with room to spare */
	size_t		headers_size = strlen(message->type) + strlen(message->message_id) + 200 +
		(message->key == NULL ? 0 : strlen(message->key));
	int			nheaders = 0;
	int			status;

	for (int i = 0; i < message->nheaders; i++)
	{
		headers_size += strlen(message->headers[i].name) + strlen(message->headers[i].value) + 6;
		if (strlen(message->headers[i].name) > MAX_SHORT)
			message_failed(message, "the name of a header is longer than %d bytes", MAX_SHORT);
	}
	if (strlen(route) > MAX_SHORT)
		message_failed(message, "the routing key is longer than %d bytes", MAX_SHORT);
	/* all of them go into one frame */
	else if (headers_size > (size_t) amqp_get_frame_max(connection))
		message_failed(message, "the headers are larger than a frame");
	if (message->state == MESSAGE_FAILED)
	{
		free(route);
		return BROKER_OK;
	}

	headers = relay_alloc(sizeof(amqp_table_entry_t) * (message->nheaders + 2));
	/* a table has each name once */
	for (int i = 0; i < message->nheaders; i++)
		if (message->key == NULL || strcmp(message->headers[i].name, "key") != 0)
			headers[nheaders++] = string_header(message->headers[i].name, message->headers[i].value);
	if (message->key != NULL)
		headers[nheaders++] = string_header("key", message->key);
	properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
		AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_HEADERS_FLAG;
	properties.content_type = amqp_cstring_bytes("application/json");
	properties.delivery_mode = AMQP_DELIVERY_PERSISTENT;
	properties.message_id = amqp_cstring_bytes(message->message_id);
	properties.timestamp = message->published_at / 1000;
	if (strlen(message->type) <= MAX_SHORT)
	{
		properties._flags |= AMQP_BASIC_TYPE_FLAG;
		properties.type = amqp_cstring_bytes(message->type);
	}
	else
		headers[nheaders++] = string_header("type", message->type);
	properties.headers.num_entries = nheaders;
	properties.headers.entries = headers;
	payload.bytes = (void *) message->payload;
	payload.len = message->payload_size;

	if (nsent == room)
	{
		room = room * 2 + 64;
		unconfirmed = realloc(unconfirmed, sizeof(Message *) * room);
		if (unconfirmed == NULL)
			abort();
	}
	/* from now on it may arrive */
	unconfirmed[nsent++] = message;
	message->state = MESSAGE_SENT;
	/* the library waits without end for a broker that does not read what is large */
	if (headers_size + payload.len > MIN_BUFFER)
		guard_socket(amqp_get_sockfd(connection));
	status = amqp_basic_publish(connection, CHANNEL, amqp_cstring_bytes(options.exchange),
								amqp_cstring_bytes(route), options.mandatory, false,
								&properties, payload);
	if (headers_size + payload.len > MIN_BUFFER)
		unguard_socket();
	free(headers);
	free(route);
	if (status != AMQP_STATUS_OK)
	{
		relay_log("could not publish: %s", amqp_error_string2(status));
		/* it may have said why */
		return rabbitmq_wait(0) == BROKER_REFUSED ? BROKER_REFUSED : BROKER_LOST;
	}
	return BROKER_OK;
}

static void
confirm_one(uint64_t tag, bool accepted)
{
	Message    *message;

	if (tag < first_tag || tag >= first_tag + nsent)
		return;
	message = unconfirmed[tag - first_tag];
	if (message == NULL)
		return;
	unconfirmed[tag - first_tag] = NULL;
	if (accepted)
		message_confirmed(message);
	else
		message_failed(message, "RabbitMQ has refused the message");
}

static void
confirm(uint64_t tag, bool multiple, bool accepted)
{
	bool		all = true;

	if (multiple)
		for (uint64_t earlier = first_tag; earlier < tag; earlier++)
			confirm_one(earlier, accepted);
	confirm_one(tag, accepted);
	for (int i = 0; i < nsent && all; i++)
		all = unconfirmed[i] == NULL;
	if (all)
	{
		first_tag += nsent;
		nsent = 0;
	}
}

/* A message that no queue has taken. */
static BrokerResult
take_back(const amqp_basic_return_t *reason)
{
	amqp_message_t returned;
	amqp_rpc_reply_t reply;
	int			code = reason->reply_code;
	char		text[128];

	snprintf(text, sizeof(text), "%.*s", (int) reason->reply_text.len,
			 (char *) reason->reply_text.bytes);
	reply = amqp_read_message(connection, CHANNEL, &returned, 0);
	if (reply.reply_type != AMQP_RESPONSE_NORMAL)
		return refused("reading a message that came back", reply);
	for (int i = 0; i < nsent; i++)
		if (unconfirmed[i] != NULL &&
			strlen(unconfirmed[i]->message_id) == returned.properties.message_id.len &&
			memcmp(unconfirmed[i]->message_id, returned.properties.message_id.bytes,
				   returned.properties.message_id.len) == 0)
		{
			message_failed(unconfirmed[i], "RabbitMQ has returned the message: %d %s", code, text);
			/* its confirmation may come when the message is not there any more */
			unconfirmed[i] = NULL;
		}
	amqp_destroy_message(&returned);
	return BROKER_OK;
}

static BrokerResult
rabbitmq_wait(int milliseconds)
{
	struct timeval timeout = {milliseconds / 1000, (milliseconds % 1000) * 1000};

	/* the first frame is waited for, what else there is comes along */
	for (;;)
	{
		amqp_frame_t frame;
		BrokerResult result = BROKER_OK;
		int			status;

		amqp_maybe_release_buffers(connection);
		status = amqp_simple_wait_frame_noblock(connection, &frame, &timeout);
		if (status == AMQP_STATUS_TIMEOUT)
			return BROKER_OK;
		if (status != AMQP_STATUS_OK)
			return lost("waiting for confirmations", status);
		timeout.tv_sec = timeout.tv_usec = 0;
		if (frame.frame_type != AMQP_FRAME_METHOD)
			continue;
		switch (frame.payload.method.id)
		{
			case AMQP_BASIC_ACK_METHOD:
				{
					amqp_basic_ack_t *ack = frame.payload.method.decoded;

					confirm(ack->delivery_tag, ack->multiple, true);
				}
				break;
			case AMQP_BASIC_NACK_METHOD:
				{
					amqp_basic_nack_t *nack = frame.payload.method.decoded;

					confirm(nack->delivery_tag, nack->multiple, false);
				}
				break;
			case AMQP_BASIC_RETURN_METHOD:
				result = take_back(frame.payload.method.decoded);
				break;
			case AMQP_CONNECTION_BLOCKED_METHOD:
				{
					amqp_connection_blocked_t *why = frame.payload.method.decoded;
					char		text[128];

					snprintf(text, sizeof(text), "%.*s", (int) why->reason.len, (char *) why->reason.bytes);
					broker_blocked(text);
					blocked = true;
				}
				break;
			case AMQP_CONNECTION_UNBLOCKED_METHOD:
				broker_blocked(NULL);
				blocked = false;
				break;
			case AMQP_CHANNEL_CLOSE_METHOD:
			case AMQP_CONNECTION_CLOSE_METHOD:
				{
					amqp_rpc_reply_t reply = {0};

					reply.reply_type = AMQP_RESPONSE_SERVER_EXCEPTION;
					reply.reply = frame.payload.method;
					return refused("it was published to", reply);
				}
		}
		if (result != BROKER_OK)
			return result;
	}
}

const Broker rabbitmq = {
	.name = "RabbitMQ",
	.check = rabbitmq_check,
	.connect = rabbitmq_connect,
	.ready = rabbitmq_ready,
	.send = rabbitmq_send,
	.wait = rabbitmq_wait,
	.disconnect = rabbitmq_disconnect
};
