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
	relay_log("Kafka: %s: %s", rd_kafka_err2name(err), reason);
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

static bool
kafka_connect(void)
{
	const char *servers = options.broker + strlen("kafka://");
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	const struct rd_kafka_metadata *metadata;
	rd_kafka_resp_err_t err;
	char		error[256];
	bool		good = true;

	rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	rd_kafka_conf_set_error_cb(conf, failed);
	/* without servers: those of a mock cluster */
	if (servers[0] != '\0')
		good = set(conf, "bootstrap.servers", servers);
	good = good && set(conf, "enable.idempotence", "true") &&
		set(conf, "client.id", options.relay) &&
		set(conf, "message.timeout.ms", "30000") &&
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
	if (!good)
	{
		rd_kafka_conf_destroy(conf);
		return false;
	}
	broken = false;
	producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof(error));
	if (producer == NULL)
	{
		relay_log("Kafka: %s", error);
		rd_kafka_conf_destroy(conf);
		return false;
	}
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

static BrokerResult
kafka_send(Message *message)
{
	char	   *topic = message_route(message);
	rd_kafka_headers_t *headers = rd_kafka_headers_new(message->nheaders + 2);
	size_t		key_size = message->key == NULL ? 0 : strlen(message->key);
	rd_kafka_resp_err_t err;

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
	.connect = kafka_connect,
	.send = kafka_send,
	.wait = kafka_wait,
	.disconnect = kafka_disconnect
};
