"""What an application in Python does, with psycopg 2: run by 017_psycopg.pl.

Arguments: connection strings of the server and of a transaction pooler in front of it. Prints a line for each check,
"ok - name" or "not ok - name", and fails where something unforeseen happens.
"""

import json
import select
import sys
import threading
import time
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
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()

    def wait():
        thread.join(60)
        return result[0] if result else None
    return wait


def wait_for_waiter(connection):
    """Until a poll waits in the server."""
    until = time.monotonic() + 60
    while not call(connection, "SELECT FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'Extension'"
                               " AND query LIKE '%%poll(%%' AND pid <> pg_backend_pid()"):
        if time.monotonic() > until:
            sys.exit("no poll waits")


def leased(writer, connection, how):
    """Events under a lease: no transaction is open while they are handled."""
    name = "leased " + how

    def poll(consumer, wait=None):
        return call(connection, "SELECT position, data, attempt FROM event_store.poll(%s, 10, consumer => %s, wait => %s,"
                                " lease => '1 hour')", name, consumer, wait)

    def ack(consumer, positions):
        return call(connection, "SELECT event_store.ack(%s, %s, consumer => %s)", name, positions, consumer)[0][0]

    def nack(consumer, position, error):
        return call(connection, "SELECT event_store.nack(%s, %s, %s, consumer => %s)", name, position, error, consumer)[0][0]

    def state():
        return call(writer, "SELECT leased, retries, waiting, dead_letters, open_events FROM event_store.subscriptions"
                            " WHERE name = %s", name)[0]

    call(connection, "SELECT event_store.create_subscription(%s, stream_pattern => 'job %%', start_after => NULL,"
                     " max_attempts => 2, first_delay => '10 ms', jitter => 0)", name)
    positions = [call(writer, "SELECT last_position FROM event_store.append(%s, 'done', %s)", f"job {how}-{n % 2}", Json(n))[0][0]
                 for n in range(1, 7)]  # 1 3 5 and 2 4 6
    check(poll("one") == [(position, n, 1) for n, position in enumerate(positions, 1)],
          f"a named consumer gets events under a lease, {how}")
    check((poll("two"), ack("two", positions), nack("two", positions[0], "not mine")) == ([], 0, None),
          f"another one can neither get nor decide them, {how}")
    check(nack("one", positions[0], "python: bad weather") == "retry", f"a failure is tried again, {how}")
    check(ack("one", positions[1:]) == 3, f"what follows in its stream waits, the others are done, {how}")
    check(state() == (0, 1, 2, 0, 3), f"and the view says so, {how}")
    check(poll("one", "1 hour") == [(positions[0], 1, 2)], f"it comes again, alone, after its delay, {how}")
    check(nack("one", positions[0], "python: worse") == "dead", f"the second failure is the last, {how}")
    check([letter[:-2] for letter in call(connection, "SELECT position, stream, attempts, error, consumer, parked, data,"
                                          " first_failed_at, failed_at FROM event_store.dead_letters(%s)", name)]
          == [(positions[0], f"job {how}-1", 2, "python: worse", "one", 2, 1)], f"it is a dead letter, {how}")
    check((poll("one"), state()) == ([], (0, 0, 2, 1, 3)), f"which parks its stream, {how}")
    check(call(connection, 'SELECT event_store.replay_dead_letters(%s, at_position => %s)', name, positions[0])[0][0] == 1,
          f"it is replayed, {how}")
    again = poll("one")
    check([event[1:] for event in again] == [(1, 1), (3, 1), (5, 1)], f"and followed by what was behind it, {how}")
    check((ack("one", [event.position for event in again]), state()) == (3, (0, 0, 0, 0, 0)), f"in the end all is done, {how}")


def spread(pooled):
    """Makes the pooler open a second connection to the server, so that this client's statements don't all go to one."""
    other, backend = connect(POOLED, autocommit=False), "SELECT pg_backend_pid()"
    call(other, backend)
    call(pooled, backend)
    other.commit()
    check(call(pooled, backend) != call(pooled, backend), "the pooler changes the connection under a client")


def main():
    listener, writer, pooled = connect(DIRECT), connect(DIRECT), connect(POOLED)
    spread(pooled)

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
        leased(writer, connection, where)


main()
