"""What an application in Python does, with psycopg 2: run by 017_psycopg.pl.

Arguments: connection strings of the server and of a transaction pooler in front of it. Prints a line for each check,
"ok - name" or "not ok - name", and fails where something unforeseen happens.
"""

import json
import select
import sys
import threading
import uuid

import psycopg2
from psycopg2.extras import Json, NamedTupleCursor, register_uuid

register_uuid()
DIRECT, POOLED = sys.argv[1:3]


def check(good, name):
    print(("" if good else "not ") + "ok - " + name, flush=True)


def connect(where, autocommit=True):
    connection = psycopg2.connect(where, cursor_factory=NamedTupleCursor)
    connection.autocommit = autocommit
    return connection


def call(connection, sql, *values):
    """Runs a statement and returns its rows."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall()


def heard(listener):
    """The next notification, as (channel, payload)."""
    while not listener.notifies:
        if not select.select([listener], [], [], 60)[0]:
            sys.exit("no notification came")
        listener.poll()
    note = listener.notifies.pop(0)
    return note.channel, json.loads(note.payload)


def in_background(work):
    """Starts work in a thread; the function that is returned waits for what it returns."""
    result = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()

    def wait():
        thread.join(60)
        return result[0] if result else None
    return wait


def wait_for_waiter(connection):
    """Until a poll waits in the server."""
    while not call(connection, "SELECT FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'Extension'"
                               " AND query LIKE '%%poll(%%' AND pid <> pg_backend_pid()"):
        pass


def main():
    listener, writer, pooled = connect(DIRECT), connect(DIRECT), connect(POOLED)

    # listening
    with listener.cursor() as cursor:
        cursor.execute('LISTEN "event_store.order"')
    awkward = {"text": "quote ' backslash \\ ü 𝄞", "list": [1, None, {"a": 1.5}], "empty": {}}
    event_id = uuid.uuid4()
    done = call(writer, "SELECT * FROM event_store.append(%s, %s, %s, event_id => %s, expected_version => %s)",
                "order-1", "placed", Json(awkward), event_id, 0)[0]
    check(heard(listener) == ("event_store.order", {"last_position": done.last_position, "category": "order", "count": 1}),
          "a listener hears of an append")
    read = call(writer, "SELECT * FROM event_store.read_stream(%s)", "order-1")[0]
    check((read.data, read.event_id, read.version) == (awkward, event_id, 1), "data and id come back as they were")
    try:
        call(writer, "SELECT event_store.append('order-1', 'placed', '{}', expected_version => 0)")
        check(False, "a lost race is an error with its own code")
    except psycopg2.Error as error:
        check(error.pgcode == "VE001", "a lost race is an error with its own code")

    # a consumer whose effect is in the database
    call(writer, "SELECT event_store.create_subscription('python', categories => %s)", ["order"])
    call(writer, "SELECT count(event_store.append('order-' || i %% 7, 'more', to_jsonb(i))) FROM generate_series(1, 500) i")
    consumer = connect(POOLED, autocommit=False)
    effect = []
    while True:
        batch = call(consumer, "SELECT * FROM event_store.poll('python', 50)")
        if not batch:
            break
        if len(effect) == 100:  # something goes wrong once
            consumer.rollback()
            batch = call(consumer, "SELECT * FROM event_store.poll('python', 50)")
        acked = call(consumer, "SELECT event_store.ack('python', %s)", [event.position for event in batch])[0][0]
        consumer.commit()
        check(acked == len(batch), "all of a batch were open") if acked != len(batch) else None
        effect += [event.position for event in batch]
    consumer.rollback()
    wanted = [row.position for row in call(writer, "SELECT position FROM event_store.read_category('order', 0, NULL)")]
    check(effect == wanted, "through a pooler a consumer gets each event once, in order")

    # a poll that waits
    for where, connection in (("directly", connect(DIRECT)), ("through a pooler", pooled)):
        answer = in_background(lambda: call(connection, "SELECT position, type FROM event_store.poll('python', 10, wait => '1 hour')"))
        wait_for_waiter(writer)
        position = call(writer, "SELECT * FROM event_store.append('order-1', 'awaited', '{}')")[0].last_position
        check(answer() == [(position, "awaited")], f"a poll that waits returns, {where}")
        check(call(writer, "SELECT event_store.ack_up_to('python', %s)", position)[0][0] == 1, f"and is acknowledged, {where}")


main()
