"""Clients of a server on this machine, in one thread: python benchmarks/load.py PORT CLIENTS SECONDS TYPE BODY...

Each client sends its next request as soon as it has the answer to the last, over one connection. Of requests answered
after a first WARM_UP it prints how many there were a second, and their latencies, as JSON. It fails at any answer but a
200.
"""

import contextlib
import json
import selectors
import socket
import sys
import time
from pathlib import Path

WARM_UP = 0.5  # seconds


class Client:
    def __init__(self, port, selector):
        self.port, self.selector = port, selector
        self.connect()

    def connect(self):
        self.socket, self.last = socket.create_connection(("127.0.0.1", self.port)), False
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.selector.register(self.socket, selectors.EVENT_READ, self)

    def start(self, request):
        if self.last:
            self.selector.unregister(self.socket)
            self.socket.close()
            self.connect()
        self.answer, self.length = bytearray(), None
        self.unsent, self.started = memoryview(request), time.perf_counter()
        self.send()

    def send(self):
        with contextlib.suppress(BlockingIOError):
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent else 0)
        if events != self.selector.get_key(self.socket).events:
            self.selector.modify(self.socket, events, self)

    def receive(self):
        """Seconds that the request took, once its answer is complete; None before."""
        data = self.socket.recv(1 << 18)
        self.answer += data
        if not data:
            sys.exit(f"the server hung up after {bytes(self.answer[:200])}")
        if self.length is None and (end := self.answer.find(b"\r\n\r\n")) >= 0:
            head = self.answer[:end].lower()
            if head.split(None, 2)[1] != b"200":
                sys.exit(f"the server answered {bytes(self.answer[:500])}")
            self.last = b"connection: close" in head  # nginx does so after 1,000 requests
            self.length = end + 4 + int(head.partition(b"content-length:")[2].split(None, 1)[0])
        if self.length is not None and len(self.answer) >= self.length:
            return time.perf_counter() - self.started
        return None


def request(content_type, body):
    head = f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def run(port, clients, seconds, requests):
    """How many were answered, the latencies in seconds of those after the warm-up, and the seconds since then."""
    selector, latencies, asked, answered = selectors.DefaultSelector(), [], 0, 0
    for _ in range(clients):
        Client(port, selector).start(requests[asked % len(requests)])
        asked += 1
    begin = time.perf_counter() + WARM_UP
    while time.perf_counter() < begin + seconds:
        for key, events in selector.select(1):
            if events & selectors.EVENT_WRITE:
                key.data.send()
            if events & selectors.EVENT_READ and (latency := key.data.receive()):
                answered += 1
                if time.perf_counter() >= begin:
                    latencies.append(latency)
                key.data.start(requests[asked % len(requests)])
                asked += 1
    return answered, latencies, time.perf_counter() - begin


def summary(answered, latencies, seconds):
    latencies = sorted(latencies)
    p50, p99 = (latencies[int(len(latencies) * part)] * 1000 for part in (0.5, 0.99))
    return {"per_second": len(latencies) / seconds, "p50": p50, "p99": p99, "answered": answered}


if __name__ == "__main__":
    port, clients, seconds, content_type, *paths = sys.argv[1:]
    requests = [request(content_type, Path(path).read_bytes()) for path in paths]
    print(json.dumps(summary(*run(int(port), int(clients), float(seconds), requests))))
