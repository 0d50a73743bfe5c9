"""A consumer of RabbitMQ that stores what it gets, for t/032_store_to_store.pl.

    amqp_store.py PORT QUEUE BINDING CONNINFO SEED RUN N=POINT,...
    amqp_store.py PORT QUEUE BINDING CONNINFO SEED RUN drain

In one transaction it marks messages in the inbox, appends those that are new, CloudEvents, and notes of each in the
table "delivery" what the inbox and the append have said; it acknowledges them after the commit. How many a transaction
takes is chance, from SEED and RUN.

Before it acknowledges them it publishes copies of those that the hash of SEED and event id chooses, three in sixteen,
with the same message id: they come at the end of the queue. Whatever it dies of, each of these so has a copy.

The sequence "delivery_QUEUE" counts what is delivered, to whomever. Who draws the number N kills himself at POINT of his
work. With "drain" it stores what is left in the queue, when nobody else has any of it, and ends; otherwise it goes on
until it is killed.
"""
import collections
import hashlib
import os
import random
import signal
import sys
import threading

import pika
import psycopg2

from amqp import go_on, open_channel

EXCHANGE = "event_store"
MOST = 20  # messages of a transaction
# One consumer at a time gets messages; when it is gone, what it has not acknowledged comes first.
ARGUMENTS = {"x-single-active-consumer": True}

port = int(sys.argv[1])
queue, binding, conninfo, seed, run, plan = sys.argv[2:]
deaths = {} if plan == "drain" else dict(death.split("=") for death in plan.split(","))
chance = random.Random(f"{seed} {run}")
due = set()  # points where it is to die with the present messages


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def reach(here):
    if here in due:
        die()


def is_chosen(properties):
    event_id = properties.headers["event_id"]
    return hashlib.md5(f"{seed}:{event_id}".encode()).hexdigest()[0] in "012"


def store(database, messages):
    """The classic pattern, with several messages in a transaction."""
    with database.cursor() as cursor:
        for method, properties, body in messages:
            cursor.execute("SELECT nextval(%s)", (f'"delivery_{queue}"',))
            n, = cursor.fetchone()
            due.add(deaths.get(str(n)))
            cursor.execute("SELECT event_store.mark_processed('second store', %s)", (properties.message_id,))
            is_new, = cursor.fetchone()
            reach("marked")
            was_there = None
            if is_new:
                cursor.execute("SELECT duplicate FROM event_store.append_cloudevent(%s)", (body.decode(),))
                was_there, = cursor.fetchone()
            cursor.execute("INSERT INTO delivery (n, message_id, position, is_copy, redelivered, is_new, was_there)"
                           " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                           (n, properties.message_id, properties.headers["position"], "copy" in properties.headers,
                            method.redelivered, is_new, was_there))
    reach("appended")
    if "committing" in due:
        threading.Timer(chance.uniform(0, 0.002), die).start()
        database.commit()
        signal.pause()  # the commit was faster
    database.commit()
    reach("committed")


def handle(channel, database, messages):
    """Messages of the broker, in the order in which it has sent them."""
    due.clear()
    while True:
        try:
            store(database, messages)
            break
        except psycopg2.extensions.TransactionRollbackError as error:  # a deadlock
            print(f"once more: {error!r}", file=sys.stderr, flush=True)
            database.rollback()
    try:
        for method, properties, body in messages:
            if is_chosen(properties) and "copy" not in properties.headers:
                properties.headers["copy"] = "1"
                # waits for the confirmation
                channel.basic_publish(EXCHANGE, method.routing_key, body, properties, mandatory=True)
        reach("copied")
        channel.basic_ack(messages[-1][0].delivery_tag, multiple=True)
        reach("acknowledged")
    except (pika.exceptions.AMQPError, OSError):
        if due - {None}:  # the broker was killed before it came to that
            die()
        raise


def some(messages):
    """Takes some of what has arrived."""
    return [messages.popleft() for _ in range(min(len(messages), chance.randint(1, MOST)))]


def open_queue():
    channel = open_channel(port, queue, EXCHANGE, binding, ARGUMENTS)
    channel.confirm_delivery()
    return channel


def consume(database):
    channel = open_queue()
    arrived = collections.deque()
    channel.basic_qos(prefetch_count=100)
    channel.basic_consume(queue, lambda _, *message: arrived.append(message))
    print("ready", flush=True)
    while True:
        channel.connection.process_data_events(time_limit=None)
        while arrived:
            handle(channel, database, some(arrived))


def drain(database):
    channel = open_queue()
    # what others had is in the queue again when they are gone
    while channel.queue_declare(queue, passive=True).method.consumer_count > 0:
        channel.connection.sleep(0.02)
    while True:
        messages = collections.deque()
        while len(messages) < MOST and (message := channel.basic_get(queue))[0]:
            messages.append(message)
        if not messages:
            return
        while messages:
            handle(channel, database, some(messages))


database = psycopg2.connect(conninfo)
if plan == "drain":
    drain(database)
else:
    go_on(lambda: consume(database))
