/*
 * kafka_mock.c
 *		A mock cluster of Kafka and a consumer of it, for t/031_relay.pl.
 *
 * Prints the addresses of its brokers, and then a line for each message of the topic
 * that it is given: partition, key, message_id, type, header "h", and the payload, with
 * tabs between them.  A line "fail" on its input makes the next requests fail, "down" takes the
 * brokers away, and "up" brings them back; "done" is printed then.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#define BROKERS			3
#define PARTITIONS		4

static void
print_header(rd_kafka_headers_t *headers, const char *name)
{
	const void *value;
	size_t		size;

	if (headers != NULL && rd_kafka_header_get_last(headers, name, &value, &size) == 0)
		printf("\t%.*s", (int) size, (const char *) value);
	else
		printf("\t");
}

int
main(int argc, char **argv)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_mock_cluster_t *cluster;
	rd_kafka_topic_partition_list_t *topics;
	rd_kafka_t *consumer;
	char		error[256];

	if (argc != 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	rd_kafka_conf_set(conf, "test.mock.num.brokers", "3", error, sizeof(error));
	rd_kafka_conf_set(conf, "group.id", "test", error, sizeof(error));
	consumer = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof(error));
	if (consumer == NULL)
		return 1;
	cluster = rd_kafka_handle_mock_cluster(consumer);
	rd_kafka_mock_topic_create(cluster, argv[1], PARTITIONS, 3);
	printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));
	topics = rd_kafka_topic_partition_list_new(PARTITIONS);
	for (int i = 0; i < PARTITIONS; i++)
		rd_kafka_topic_partition_list_add(topics, argv[1], i)->offset = RD_KAFKA_OFFSET_BEGINNING;
	rd_kafka_assign(consumer, topics);
	rd_kafka_topic_partition_list_destroy(topics);
	for (;;)
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(consumer, 100);
		struct pollfd input = {0, POLLIN, 0};
		rd_kafka_headers_t *headers = NULL;

		if (poll(&input, 1, 0) == 1)
		{
			char		line[16];
			ssize_t		size = read(0, line, sizeof(line));

			if (size <= 0)
				return 0;
			if (strncmp(line, "fail", 4) == 0)
				/* of produce requests: some that are tried again */
				rd_kafka_mock_push_request_errors(cluster, 0, 3,
												  RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
												  RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
												  RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS);
			else
				for (int broker = 1; broker <= BROKERS; broker++)
					(void) (strncmp(line, "down", 4) == 0 ? rd_kafka_mock_broker_set_down(cluster, broker) :
							rd_kafka_mock_broker_set_up(cluster, broker));
			printf("done\n");
		}
		if (message == NULL)
			continue;
		if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			(void) rd_kafka_message_headers(message, &headers);
			printf("%d\t%.*s", (int) message->partition, (int) message->key_len, (const char *) message->key);
			print_header(headers, "message_id");
			print_header(headers, "type");
			print_header(headers, "h");
			printf("\t%.*s\n", (int) message->len, (const char *) message->payload);
		}
		rd_kafka_message_destroy(message);
	}
}
