"""Refuse what a web page of another origin sends to a server on this machine, where it could run code as the user.

The local stack checks no signature, and its emulator allows every origin, so any site that a developer visits could
create a function in it. AWS's tools send none of these headers; browsers always do, and pages cannot change them:
https://www.w3.org/TR/fetch-metadata/
"""

import ipaddress
from collections.abc import Mapping
from email.message import Message
from urllib.parse import SplitResult, urlsplit

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def refusal(headers: Mapping[str, str] | Message, any_host: bool = False) -> str | None:
    """Why the request is refused, or None. The names of `headers` are in lower case, or matched without case.

    any_host: the server is known by other names than this machine's, as in a container on SageMaker.
    """
    host, origin, site = (headers.get(name) for name in ("host", "origin", "sec-fetch-site"))
    if not any_host and not is_local(host):
        return f"This server is local and has no name {host}."  # DNS rebinding makes a foreign page same-origin
    if site not in (None, "none", "same-origin") or (origin is not None and _parsed(origin).netloc != host):
        return f"Requests from web pages of another origin ({origin or site}) are refused."
    return None


def is_local(host: str | None) -> bool:
    """Whether a Host header is an IP address or a name of this machine, as in bucket.localhost:4566."""
    name = _parsed(f"//{host or 'localhost'}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith((".localhost", ".amazonaws.com"))
    return True


def _parsed(url: str) -> SplitResult:
    """The URL's parts, all of them empty if it cannot be parsed."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
