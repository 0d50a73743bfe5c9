"""What the consumers of RabbitMQ in this folder share."""
import sys
import time

import pika


def open_channel(port, queue, exchange=None, binding=None, arguments=None):
    """A channel of a connection of its own, with a durable queue, which is bound to the exchange if one is given."""
    connection = pika.BlockingConnection(
        pika.ConnectionParameters("127.0.0.1", port, heartbeat=10))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True, arguments=arguments)
    if exchange:
        channel.exchange_declare(exchange, "topic", durable=True)
        channel.queue_bind(queue, exchange, binding)
    return channel


def go_on(work):
    """Begins the work again whenever the broker has gone."""
    while True:
        try:
            work()
        except (pika.exceptions.AMQPError, OSError) as error:
            print(f"again: {error!r}", file=sys.stderr, flush=True)
            time.sleep(0.2)
