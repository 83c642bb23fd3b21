"""Servers of the local stack that refuse what web pages of another origin send (endpoint/origins.py)."""

from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from endpoint.origins import refusal

Application = Callable[[Any, Any, Any], Awaitable[None]]


def guarded(application: Application) -> Application:
    """An ASGI application that refuses the requests of foreign web pages."""

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        reason = refusal(headers) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": reason.encode()})

    return guard


class Guarded(BaseHTTPRequestHandler):
    """A request handler that refuses the requests of foreign web pages."""

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if reason := refusal(self.headers):
            self.send_error(403, reason)
            return False
        return True
