"""A broker of AMQP 0-9-1 for t/031_relay.pl that behaves as real ones seldom do.

    amqp_broker.py PORT HOW [FRAME_MAX]

It takes what is published, and forgets it. Prints a line for each message (its
routing key), and others for what it does. HOW it does so:

    mute      confirms nothing, but is there (heartbeats)
    blocked   says with the first message that it is blocked, reads nothing for five
              seconds, and then goes on
    stuck     says nothing, and reads nothing after the first message
    late      confirms what came back (routing key "nobody") with the third message
              after it, which is not confirmed, nor is any after it
    silent    accepts connections, and never says a word
"""
import select
import socket
import struct
import sys
import time

port, how = int(sys.argv[1]), sys.argv[2]
frame_max = int(sys.argv[3]) if len(sys.argv) > 3 else 131072


def say(text):
    print(text, flush=True)


def short(text):
    return bytes([len(text)]) + text


class Connection:
    def __init__(self, link):
        self.link = link
        self.data = b""
        self.heard = time.time()

    def frame(self):
        """The next one; None for a while without one."""
        while True:
            if len(self.data) >= 7:
                kind, channel, size = struct.unpack(">BHI", self.data[:7])
                if len(self.data) >= size + 8:
                    payload, self.data = self.data[7:7 + size], self.data[size + 8:]
                    return kind, channel, payload
            if not select.select([self.link], [], [], 1)[0]:
                self.link.sendall(struct.pack(">BHIB", 8, 0, 0, 206))
                return None
            more = self.link.recv(65536)
            if not more:
                raise EOFError
            self.data += more

    def send(self, kind, channel, payload):
        self.link.sendall(struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce")

    def method(self, channel, klass, number, arguments=b""):
        self.send(1, channel, struct.pack(">HH", klass, number) + arguments)

    def serve(self):
        if how == "silent":
            while self.link.recv(65536):
                pass
            return
        self.link.recv(8)
        self.method(0, 10, 10, b"\0\x09" + struct.pack(">I", 0) + struct.pack(">I", 5) + b"PLAIN"
                    + struct.pack(">I", 5) + b"en_US")
        tag, held, content, count = 0, [], None, 0
        while True:
            frame = self.frame()
            if frame is None:
                continue
            kind, channel, payload = frame
            if kind == 2:
                size, properties = struct.unpack(">Q", payload[4:12])[0], payload
            elif kind == 3:
                size -= len(payload)
            elif kind == 1:
                which = struct.unpack(">HH", payload[:4])
                if which == (10, 11):  # start-ok
                    self.method(0, 10, 30, struct.pack(">HIH", 0, frame_max, 10))
                elif which == (10, 40):  # open
                    self.method(0, 10, 41, b"\0")
                elif which == (20, 10):
                    self.method(channel, 20, 11, struct.pack(">I", 0))
                elif which == (40, 10):
                    self.method(channel, 40, 11)
                elif which == (85, 10):
                    self.method(channel, 85, 11)
                elif which == (60, 40):  # publish
                    at = 6 + 1 + payload[6]
                    exchange, key = payload[7:at], payload[at + 1:at + 1 + payload[at]]
                    content, size = key, None
            if content is None or kind == 1 or size != 0:
                continue
            # a message is there as a whole
            tag, key, content = tag + 1, content, None
            say(key.decode())
            if how == "stuck":
                say("reads no more")
                time.sleep(600)
            if how == "blocked" and tag == 1:
                self.method(0, 10, 60, short(b"low on memory"))
                time.sleep(5)
                self.method(0, 10, 61)
            if how == "late" and key == b"nobody":
                self.method(channel, 60, 50, struct.pack(">H", 312) + short(b"NO_ROUTE") + short(exchange) + short(key))
                self.send(2, channel, properties[:4] + struct.pack(">Q", 0) + properties[12:])
                held.append(tag)
                count = 0
            elif how == "late":
                count += 1
                if count == 3:
                    for late in held:
                        self.method(channel, 60, 80, struct.pack(">QB", late, 0))
                    held = []
            if how == "blocked" or how == "late" and key != b"nobody" and count < 3:
                self.method(channel, 60, 80, struct.pack(">QB", tag, 0))


server = socket.create_server(("127.0.0.1", port))
server.listen()
say("ready")
while True:
    link = server.accept()[0]
    if how == "stuck":
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        Connection(link).serve()
    except (EOFError, OSError) as error:
        say(f"lost: {error!r}")
