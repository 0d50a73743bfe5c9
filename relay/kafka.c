/*
 * kafka.c
 *		Kafka, by an idempotent producer.
 *
 * The library connects by itself, tries again by itself, and reports of each message
 * what became of it.  It is idempotent: what it tries again is written once, and in
 * order.  A message whose time is over may have been written, so it is sent again
 * by another producer, with the same message_id.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <librdkafka/rdkafka.h>

#include "relay.h"

#define MAX_TOPIC		249		/* bytes of a topic's name */

static rd_kafka_t *producer = NULL;
static bool broken = false;

static void
delivered(rd_kafka_t *from, const rd_kafka_message_t *report, void *arg)
{
	Message    *message = report->_private;

	(void) from;
	(void) arg;
	switch (report->err)
	{
		case RD_KAFKA_RESP_ERR_NO_ERROR:
			message_confirmed(message);
			break;
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
		case RD_KAFKA_RESP_ERR_INVALID_MSG:
		case RD_KAFKA_RESP_ERR_INVALID_RECORD:
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP:
		case RD_KAFKA_RESP_ERR_POLICY_VIOLATION:
		case RD_KAFKA_RESP_ERR_UNSUPPORTED_FOR_MESSAGE_FORMAT:
			message_failed(message, "Kafka has refused the message: %s", rd_kafka_err2str(report->err));
			break;
		default:
			if (!broken)
				relay_log("Kafka did not take a message: %s", rd_kafka_err2str(report->err));
			broken = true;
	}
}

static void
failed(rd_kafka_t *from, int err, const char *reason, void *arg)
{
	(void) from;
	(void) arg;
	if (err == RD_KAFKA_RESP_ERR__FATAL)
		broken = true;
	/* of connections the library's log tells */
	if (err != RD_KAFKA_RESP_ERR__TRANSPORT)
		relay_log("Kafka: %s: %s", rd_kafka_err2name(err), reason);
}

/* The library's own lines, among ours. */
static void
logged(const rd_kafka_t *from, int level, const char *facility, const char *text)
{
	(void) from;
	(void) level;
	relay_log("librdkafka: %s: %s", facility, text);
}

static void
kafka_disconnect(void)
{
	if (producer == NULL)
		return;
	rd_kafka_purge(producer, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
	broken = true;				/* nothing more to be said of these */
	rd_kafka_flush(producer, 1000);
	rd_kafka_destroy(producer);
	producer = NULL;
}

static bool
set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char		error[256];

	if (rd_kafka_conf_set(conf, name, value, error, sizeof(error)) == RD_KAFKA_CONF_OK)
		return true;
	relay_log("Kafka: %s", error);
	return false;
}

/* A producer by the options; NULL: they are not good. */
static rd_kafka_t *
make_producer(void)
{
	const char *servers = options.broker + strlen("kafka://");
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *result;
	char		timeout[16];
	char		error[256];
	bool		good = true;

	rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	rd_kafka_conf_set_error_cb(conf, failed);
	rd_kafka_conf_set_log_cb(conf, logged);
	snprintf(timeout, sizeof(timeout), "%d", options.timeout * 1000);
	/* without servers: those of a mock cluster */
	if (servers[0] != '\0')
		good = set(conf, "bootstrap.servers", servers);
	/* keys go where producers in Java, and what joins their topics, put them */
	good = good && set(conf, "enable.idempotence", "true") &&
		set(conf, "client.id", options.relay) &&
		set(conf, "message.timeout.ms", timeout) &&
		set(conf, "partitioner", "murmur2_random") &&
		set(conf, "linger.ms", "1");
	if (options.ca_file != NULL)
		good = good && set(conf, "security.protocol", "ssl") &&
			set(conf, "ssl.ca.location", options.ca_file);
	if (options.insecure)
		good = good && set(conf, "enable.ssl.certificate.verification", "false");
	if (options.cert_file != NULL)
		good = good && set(conf, "ssl.certificate.location", options.cert_file) &&
			set(conf, "ssl.key.location", options.key_file);
	for (int i = 0; good && i < options.nproperties; i++)
	{
		char	   *name = strdup(options.properties[i]);
		char	   *value = name == NULL ? NULL : strchr(name, '=');

		if (value == NULL)
		{
			relay_log("-X wants name=value, not \"%s\"", options.properties[i]);
			good = false;
		}
		else
		{
			*value = '\0';
			good = set(conf, name, value + 1);
		}
		free(name);
	}
	result = good ? rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof(error)) : NULL;
	if (result == NULL)
	{
		if (good)
			relay_log("Kafka: %s", error);
		rd_kafka_conf_destroy(conf);
	}
	return result;
}

static bool
kafka_check(void)
{
	rd_kafka_t *tried = make_producer();

	if (tried != NULL)
		rd_kafka_destroy(tried);
	return tried != NULL;
}

static bool
kafka_connect(void)
{
	const struct rd_kafka_metadata *metadata;
	rd_kafka_resp_err_t err;

	broken = false;
	producer = make_producer();
	if (producer == NULL)
		return false;
	/* so that messages stay in the outbox while nobody is there */
	err = rd_kafka_metadata(producer, 0, NULL, &metadata, 10000);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		relay_log("could not connect to Kafka: %s", rd_kafka_err2str(err));
		kafka_disconnect();
		return false;
	}
	rd_kafka_metadata_destroy(metadata);
	return true;
}

static bool
kafka_ready(void)
{
	return true;
}

/* What Kafka calls a topic; a broker refuses other names, but only in the end. */
static bool
is_topic(const char *name)
{
	size_t		size = strlen(name);

	return size > 0 && size <= MAX_TOPIC && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == size;
}

static BrokerResult
kafka_send(Message *message)
{
	char	   *topic = message_route(message);
	rd_kafka_headers_t *headers;
	size_t		key_size = message->key == NULL ? 0 : strlen(message->key);
	rd_kafka_resp_err_t err;

	if (!is_topic(topic))
	{
		message_failed(message, "the topic is none for Kafka: that has 1 to %d of the characters a-z, A-Z, 0-9, \".\", \"_\", \"-\"", MAX_TOPIC);
		free(topic);
		return BROKER_OK;
	}
	headers = rd_kafka_headers_new(message->nheaders + 2);
	rd_kafka_header_add(headers, "message_id", -1, message->message_id, -1);
	rd_kafka_header_add(headers, "type", -1, message->type, -1);
	for (int i = 0; i < message->nheaders; i++)
		rd_kafka_header_add(headers, message->headers[i].name, -1, message->headers[i].value, -1);
	message->state = MESSAGE_SENT;
	for (;;)
	{
		err = rd_kafka_producev(producer,
								RD_KAFKA_V_TOPIC(topic),
								RD_KAFKA_V_KEY(message->key, key_size),
								RD_KAFKA_V_VALUE((void *) message->payload, message->payload_size),
								RD_KAFKA_V_TIMESTAMP(message->published_at),
								RD_KAFKA_V_HEADERS(headers),
								RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
								RD_KAFKA_V_OPAQUE(message),
								RD_KAFKA_V_END);
		if (err != RD_KAFKA_RESP_ERR__QUEUE_FULL || broken)
			break;
		rd_kafka_poll(producer, 100);
	}
	free(topic);
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		return BROKER_OK;
	rd_kafka_headers_destroy(headers);
	message->state = MESSAGE_WAITING;
	if (broken || err == RD_KAFKA_RESP_ERR__FATAL || err == RD_KAFKA_RESP_ERR__QUEUE_FULL)
		return BROKER_LOST;
	message_failed(message, "Kafka has refused the message: %s", rd_kafka_err2str(err));
	return BROKER_OK;
}

static BrokerResult
kafka_wait(int milliseconds)
{
	if (rd_kafka_poll(producer, milliseconds) > 0)
		while (rd_kafka_poll(producer, 0) > 0)
			;
	return broken ? BROKER_LOST : BROKER_OK;
}

const Broker kafka = {
	.name = "Kafka",
	.check = kafka_check,
	.connect = kafka_connect,
	.ready = kafka_ready,
	.send = kafka_send,
	.wait = kafka_wait,
	.disconnect = kafka_disconnect
};
