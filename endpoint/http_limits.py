"""uvicorn's HTTP connection with the limits that it lacks: on the time and size of headers and bodies, and a stop that
loses no request.

SageMaker's front end sends complete requests. Whoever reaches the server directly may not.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS, HEADER_BYTES = 10, 65_536
BODY_SECONDS, BODY_BYTES = 30, 64_000_000  # ten times the largest body: chunks and trailers count too
LINGER_SECONDS = 0.5  # on SIGTERM, a connection without a request waits for one that is on its way


class LimitedConnection(HttpToolsProtocol):
    """Closes a connection whose headers or body exceed the limits: 431 for headers; nothing could be sent otherwise."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.reading_body = self.stopping = False
        self.received = 0  # bytes of the current message's headers or body
        self.deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.expect_within(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.deadline is None:  # another request on the same connection
            self.expect_within(HEADER_SECONDS)
        super().data_received(data)
        if self.received > (BODY_BYTES if self.reading_body else HEADER_BYTES) and not self.transport.is_closing():
            if not self.reading_body and (self.cycle is None or self.cycle.response_complete):
                self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
            self.transport.close()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.reading_body, self.received = True, 0
        self.expect_within(BODY_SECONDS)
        if self.stopping:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.reading_body, self.received = False, 0
        self.stop_waiting()

    def shutdown(self) -> None:
        self.stopping = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LINGER_SECONDS, self.close_if_idle)
        else:
            self.cycle.keep_alive = False

    def close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def expect_within(self, seconds: float) -> None:
        """Close the connection unless the headers, or then the body, are complete in time."""
        self.stop_waiting()
        self.deadline = self.loop.call_later(seconds, self.transport.close)

    def stop_waiting(self) -> None:
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None
