"""Refuse what a web page of another origin sends to a server of the local stack, where it could run code as the user.

The emulator checks no signature and allows every origin, so any site that a developer visits could create a function
in it. AWS's tools send none of these headers; browsers always do, and pages cannot change them:
https://www.w3.org/TR/fetch-metadata/
"""

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

Application = Callable[[Any, Any, Any], Awaitable[None]]


def refusal(headers: Mapping[str, str] | Message) -> str | None:
    """Why the request is refused, or None. The names of `headers` are in lower case, or matched without case."""
    host, origin, site = (headers.get(name) for name in ("host", "origin", "sec-fetch-site"))
    if not is_local(host):
        return f"This server is local and has no name {host}."  # DNS rebinding makes a foreign page same-origin
    if site not in (None, "none", "same-origin") or (origin is not None and urlsplit(origin).netloc != host):
        return f"Requests from web pages of another origin ({origin or site}) are refused."
    return None


def is_local(host: str | None) -> bool:
    """Whether a Host header is an IP address or a name of this machine, as in bucket.localhost:4566."""
    name = urlsplit(f"//{host or 'localhost'}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith((".localhost", ".amazonaws.com"))
    return True


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
