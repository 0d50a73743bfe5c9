"""A consumer of RabbitMQ for t/031_relay.pl.

    amqp_consumer.py PORT QUEUE FILE [EXCHANGE BINDING]

Writes what it gets from a durable queue into a file, a JSON object a line, and
acknowledges it; the queue is bound to the exchange if one is given. It goes on
until it is killed, and connects again whenever the broker has gone.
"""
import json
import sys

from amqp import go_on, open_channel

port, queue, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
bound = sys.argv[4:]


def got(channel, method, properties, body):
    line = {
        "message_id": properties.message_id,
        "routing_key": method.routing_key,
        "redelivered": method.redelivered,
        "type": properties.type,
        "content_type": properties.content_type,
        "delivery_mode": properties.delivery_mode,
        "timestamp": properties.timestamp,
        "headers": properties.headers,
        "body": json.loads(body),
    }
    out.write(json.dumps(line, sort_keys=True) + "\n")
    out.flush()
    channel.basic_ack(method.delivery_tag)


def consume():
    channel = open_channel(port, queue, *bound)
    channel.basic_qos(prefetch_count=1000)
    channel.basic_consume(queue, got)
    print("ready", flush=True)
    channel.start_consuming()


out = open(path, "a")
go_on(consume)
