"""The server of make review: a page on 127.0.0.1, and the requests that the page makes.

All paths begin with a token, so other users of this machine cannot read the images, and no web page of another origin
can send a request: endpoint/origins.py. Reviews are in DynamoDB: a restarted server with the same token goes on.

GET   page.html, page.css, page.js
GET   image/ID    the image, from S3
POST  next        {session, held, skipped, label, reason, min_age} -> the next image, claimed for the session; counts
POST  claim       {session, ids} -> claims, or renews, these images
POST  release     {session, ids}
POST  decide      {session, id, revision, decision, label}
POST  undo        {session, id, revision} -> the image, claimed again

An ID is an image and its version. Errors are {"error": {"code", "message", "retry"}}; with retry, the same request can
succeed later. Every request can be repeated: it then changes nothing more.
"""

import base64
import binascii
import contextlib
import dataclasses
import hmac
import html
import json
import socket
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import uvicorn
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from endpoint.http_limits import LimitedConnection
from endpoint.origins import refusal
from review.backlog import Backlog, Filter, Key, key_of
from review.images import ImageError, open_image
from review.table import DECISIONS, AlreadyClaimedError, Review, ReviewError, ReviewNotFoundError

PAGE = Path(__file__).parent / "page"
FILES = {"page.css": "text/css", "page.js": "text/javascript"}
MAX_BODY_BYTES = 4_000_000  # 1,000 skipped images, whose keys can have 1,024 bytes
MAX_SESSION = 64
STOP_SECONDS = 3
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
EXTRA_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
THROTTLED = ("ProvisionedThroughputExceededException", "RequestLimitExceeded", "ThrottlingException", "SlowDown")
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "UnrecognizedClientException", "InvalidAccessKeyId")
CLOCK = ("InvalidSignatureException", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "RequestExpired")
CLOCK_SECONDS = 240  # AWS refuses requests whose time is more than five minutes off


class InvalidRequestError(Exception):
    """The request is not one that the page makes."""


class UnknownLabelError(Exception):
    """The label is none of the stack's."""


class RequestTooLargeError(Exception):
    """The body has more than MAX_BODY_BYTES."""


def id_of(review: Review) -> str:
    return base64.urlsafe_b64encode(json.dumps(key_of(review)).encode()).decode()


def parse_id(text: Any) -> Key:
    """Raises InvalidRequestError."""
    try:
        image, version = json.loads(base64.urlsafe_b64decode(text))
    except (binascii.Error, ValueError, TypeError):
        raise InvalidRequestError("an ID is no image and version") from None
    if not (isinstance(image, str) and isinstance(version, str) and image and version):
        raise InvalidRequestError("an ID is no image and version")
    return image, version


def field(body: dict[str, Any], name: str, kind: type | tuple[type, ...], optional: bool = False) -> Any:
    """A field of a request's body. Raises InvalidRequestError."""
    value = body.get(name)
    if value is None and optional:
        return None
    if not isinstance(value, kind) or isinstance(value, bool) or value == "":
        raise InvalidRequestError(f"{name} is missing, or of the wrong type")
    return value


def session_of(body: dict[str, Any]) -> str:
    session: str = field(body, "session", str)
    if len(session) > MAX_SESSION:
        raise InvalidRequestError(f"session has more than {MAX_SESSION} characters")
    return session


def keys_of(body: dict[str, Any], name: str) -> list[Key]:
    return [parse_id(each) for each in field(body, name, list)]


class Reviewing:
    """The requests of the page. `s3` is a boto3 client; `place` names the stack."""

    def __init__(self, backlog: Backlog, s3: BaseClient, place: str) -> None:
        self.backlog, self.s3, self.place = backlog, s3, place

    def described(self, review: Review) -> dict[str, Any]:
        """An image for the page."""
        names = ("s3_bucket", "s3_key", "label", "confidence", "threshold", "predictions", "reason", "revision")
        shown = {name: getattr(review, name) for name in names}
        probability = review.selection_probability
        return shown | {"id": id_of(review), "age": self.backlog.age(review), "selection_probability": probability}

    def page(self) -> Response:
        text = (PAGE / "page.html").read_text()
        values = {"PLACE": self.place, "REVIEWER": self.backlog.reviewer, "TABLE": self.backlog.table.name}
        for name, value in values.items():
            text = text.replace("{{ " + name + " }}", html.escape(value))
        return HTMLResponse(text)

    def file(self, name: str) -> Response:
        return Response((PAGE / name).read_text(), media_type=FILES[name])

    def image(self, identifier: str) -> Response:
        content_type, chunks = open_image(self.s3, self.backlog.table.get(*parse_id(identifier)))
        return StreamingResponse(chunks, media_type=content_type)

    def next(self, body: dict[str, Any]) -> dict[str, Any]:
        wanted = Filter(
            field(body, "label", str, optional=True),
            field(body, "reason", str, optional=True),
            field(body, "min_age", (int, float), optional=True),
        )
        session = session_of(body)
        self.backlog.read_in_background()
        review = self.backlog.next(session, wanted, set(keys_of(body, "held")), keys_of(body, "skipped"))
        answer = {"image": review and self.described(review), "labels": self.backlog.labels}
        return answer | self.backlog.counts(session, wanted, set(keys_of(body, "uncounted")))

    def claim(self, body: dict[str, Any]) -> dict[str, Any]:
        session = session_of(body)
        claimed: list[dict[str, Any]] = []
        lost: list[dict[str, Any]] = []
        for key in keys_of(body, "ids"):
            try:
                claimed.append(self.described(self.backlog.claim(self.backlog.table.get(*key), session)))
            except ReviewError as error:
                lost.append({"id": body["ids"][len(claimed) + len(lost)], "error": described_error(error)})
        return {"claimed": claimed, "lost": lost}

    def release(self, body: dict[str, Any]) -> dict[str, Any]:
        session = session_of(body)
        for key in keys_of(body, "ids"):
            with contextlib.suppress(ReviewNotFoundError):
                self.backlog.release(self.backlog.table.get(*key), session)
        return {}

    def decide(self, body: dict[str, Any]) -> dict[str, Any]:
        decision, label = field(body, "decision", str), field(body, "label", str, optional=True)
        if decision not in DECISIONS or (decision == "label") != (label is not None):
            raise InvalidRequestError(f"decision is none of {', '.join(DECISIONS)}, or has no label, or one too many")
        review = self.reviewed(body)
        if label is not None and label not in self.backlog.labels:
            raise UnknownLabelError(f"{label} is none of the labels: {', '.join(self.backlog.labels[:20])}")
        decided = self.backlog.decide(review, session_of(body), decision, label)
        return {"revision": decided.revision}

    def undo(self, body: dict[str, Any]) -> dict[str, Any]:
        session = session_of(body)
        undone = self.backlog.undo(self.reviewed(body))
        return {"image": self.described(self.backlog.claim(undone, session))}

    def reviewed(self, body: dict[str, Any]) -> Review:
        """The item that a request is about, at the revision that the reviewer saw."""
        revision = field(body, "revision", int)
        return dataclasses.replace(self.backlog.table.get(*parse_id(body.get("id"))), revision=revision)


def described_error(error: Exception) -> dict[str, Any]:
    retry = isinstance(error, AlreadyClaimedError)  # until the other reviewer decides, or leaves
    answer = {"code": type(error).__name__, "message": str(error), "retry": retry}
    now = error.now if isinstance(error, ReviewError) else None
    if now:
        answer |= {name: getattr(now, name) for name in ("decision", "reviewed_label", "reviewer", "revision")}
    return answer


def failure(code: str, message: str, retry: bool = False) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "retry": retry}}


def response_to(error: Exception) -> Response:
    statuses = {ReviewNotFoundError: 404, ReviewError: 409, ImageError: 404, RequestTooLargeError: 413}
    status = next((status for kind, status in statuses.items() if isinstance(error, kind)), 400)
    return JSONResponse({"error": described_error(error)}, status)


def refused_by_aws(error: ClientError | BotoCoreError) -> Response:
    """AWS did not do what was asked; the same request can succeed later. The message says what to do meanwhile."""
    response = error.response if isinstance(error, ClientError) else {}
    code = response.get("Error", {}).get("Code", "")
    name, message = "AwsError", f"AWS did not accept the request: {error}"
    if code in THROTTLED:
        name, message = "ThrottledError", "AWS throttles the table or the bucket. There is nothing to do: it is retried"
    elif code in CLOCK and (seconds := seconds_off(response)) is not None and abs(seconds) > CLOCK_SECONDS:
        name = "WrongClockError"
        message = f"The clock of this machine is {abs(seconds) / 60:.0f} minutes {'ahead' if seconds > 0 else 'behind'}"
        message += ", so AWS refuses its requests. Set the clock: it is retried"
    elif code in EXPIRED or type(error).__name__ in ("NoCredentialsError", "UnauthorizedSSOTokenError"):
        name, message = "CredentialsExpiredError", "Your AWS credentials have expired. Sign in again, then start"
        message += " make review again: this page then goes on"
    elif "AccessDenied" in code:
        name, message = "AccessDeniedError", f"Attach the stack's ReviewerPolicy to your credentials. {error}"
    elif isinstance(error, BotoCoreError):
        name, message = "AwsUnreachableError", f"AWS does not respond. It is retried. {error}"
    return JSONResponse(failure(name, message, retry=True), 503)


def seconds_off(response: dict[str, Any]) -> float | None:
    """How far this machine's clock is ahead of AWS's, from the Date header of a response."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return datetime.now().timestamp() - parsedate_to_datetime(date).timestamp() if date else None


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object in a request. Raises InvalidRequestError, RequestTooLargeError."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise RequestTooLargeError(f"The body has more than {MAX_BODY_BYTES:,} bytes")
        chunks.append(chunk)
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise InvalidRequestError("the content type is not application/json")
    try:
        body = json.loads(b"".join(chunks))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InvalidRequestError("the body is no JSON object")
    return body


def create_app(reviewing: Reviewing, token: str) -> ASGIApp:
    """The application; `token` is the first part of every path."""

    def answers(function: Callable[[dict[str, Any]], dict[str, Any]]) -> Route:
        async def endpoint(request: Request) -> Response:
            return JSONResponse(await run_in_threadpool(function, await body_of(request)))

        return Route(f"/{token}/{function.__name__}", endpoint, methods=["POST"])

    async def page(request: Request) -> Response:
        return reviewing.page()

    async def file(request: Request) -> Response:
        return reviewing.file(request.url.path.rpartition("/")[2])

    async def image(request: Request) -> Response:
        return await run_in_threadpool(reviewing.image, request.path_params["id"])

    async def handle(request: Request, error: Exception) -> Response:
        return refused_by_aws(error) if isinstance(error, ClientError | BotoCoreError) else response_to(error)

    async def http_error(request: Request, error: HTTPException) -> Response:
        return JSONResponse(
            {"error": {"code": "HTTPError", "message": error.detail, "retry": False}}, error.status_code
        )

    routes = [
        Route(f"/{token}/", page),
        *(Route(f"/{token}/{name}", file) for name in FILES),
        Route(f"/{token}/image/{{id}}", image),
        *map(answers, (reviewing.next, reviewing.claim, reviewing.release, reviewing.decide, reviewing.undo)),
    ]
    known = (ReviewError, ImageError, InvalidRequestError, UnknownLabelError, RequestTooLargeError)
    handlers: dict[Any, Any] = dict.fromkeys((*known, ClientError, BotoCoreError), handle)
    app = Starlette(routes=routes, exception_handlers=handlers | {HTTPException: http_error})
    return guarded(app, token)


def guarded(app: ASGIApp, token: str) -> ASGIApp:
    """Refuse requests of other origins and without the token, and add HEADERS to every response."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *EXTRA_HEADERS]
            await send(message)

        request = Request(scope)
        answer: ASGIApp = app
        if reason := refusal(request.headers):
            answer = JSONResponse(failure("ForeignOriginError", reason), 403)
        elif not hmac.compare_digest(scope["path"].split("/")[1].encode(), token.encode()):
            reason = "This page is of an earlier make review: open the URL that it prints now."
            answer = JSONResponse(failure("WrongTokenError", reason, retry=True), 403)
        await answer(scope, receive, send_with_headers)

    return guard


def bind(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; port 0 is any free one. Raises OSError."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    bound.listen(128)
    return bound


def serve(app: ASGIApp, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM, which are raised again at the end."""
    create_server(app).run(sockets=[bound])


def create_server(app: ASGIApp) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=LimitedConnection,
        log_level="warning",
        access_log=False,  # of which the token would be part
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return uvicorn.Server(config)
