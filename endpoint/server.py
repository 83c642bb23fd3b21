"""The server in the SageMaker container: GET /ping, POST /invocations.

    python endpoint/server.py [serve] [--host 127.0.0.1]

With `serve`, which SageMaker passes, it listens on all interfaces; without it, on localhost only.

    SM_MODEL_DIR                     folder of model.onnx and metadata.json (/opt/ml/model)
    SAGEMAKER_SUBMIT_DIRECTORY       folder of the inference code (the model's code/, else this file's folder)
    SAGEMAKER_PROGRAM                file name of the inference code (inference.py)
    SAGEMAKER_BIND_TO_PORT           port (8080)
    SAGEMAKER_MODEL_SERVER_WORKERS   number of worker processes (one per core)
    DATA_CAPTURE_DIR                 folder for captured requests and responses (data_capture.py; no capture by default)

Each worker loads the model. It classifies images for which the inference code's is_quick(inputs) is true on its event
loop's thread, and everything else on a pool with one thread per core, so that a single batch can use all cores; if the
client leaves, what is queued is not started. With two or more workers, a supervisor
restarts one that dies; one whose model fails to load stops the server. A worker starts listening after classifying a
blank image, and classifies another on each /ping: 200 if that succeeds, otherwise 503. On SIGTERM, it finishes its
open requests and exits. Each request is logged as one line of JSON. http_limits.py limits headers and bodies.

Errors are {"error": {"code", "message"}}: 400 unreadable or too large an image, 403 a web page of another origin
(origins.py), 413 body too large, 415 unknown content type, 503 too many concurrent requests, 500 anything else.
"""

import argparse
import asyncio
import contextlib
import functools
import importlib.util
import io
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from data_capture import Capture
from http_limits import LimitedConnection
from origins import LOOPBACK, refusal

MAX_BODY_BYTES = 6_291_456  # InvokeEndpoint's limit
STOP_SECONDS = 25  # SageMaker sends SIGKILL 30 s after SIGTERM
HUNG_SECONDS = 30  # a worker without a heartbeat is replaced; on a busy machine the first heartbeat is slow
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Running plus queued requests, per worker. The last one waits for 15 others: about 20 ms if they are single images, a
# few seconds if they are the largest batches; SageMaker's timeout is 60 s.
MAX_REQUESTS = 16
MAX_HELD_BYTES = MAX_REQUESTS * MAX_BODY_BYTES  # of bodies that are being received, per worker: 100 MB


def load_inference(model_dir: Path) -> ModuleType:
    """Import the model's own inference code, by default the inference.py in this file's folder."""
    program = os.environ.get("SAGEMAKER_PROGRAM", "inference.py")
    submitted = Path(os.environ.get("SAGEMAKER_SUBMIT_DIRECTORY", model_dir / "code")) / program
    candidates = [submitted, model_dir / "code" / program, Path(__file__).with_name("inference.py")]
    path = next(path for path in candidates if path.is_file())
    spec = importlib.util.spec_from_file_location("endpoint_inference", path)
    if not spec or not spec.loader:
        raise ImportError(f"{path} is not a Python file")
    inference = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = inference
    sys.path.insert(0, str(path.parent))  # so that it can import modules from its own folder
    spec.loader.exec_module(inference)
    return inference


class OverloadedError(Exception):
    """Too many requests, or too many bytes of them, are being received."""


class Endpoint:
    """A model behind /ping and /invocations. `inference` is the module with input_fn, predict_fn and output_fn."""

    def __init__(self, inference: Any, model: Any) -> None:
        self.inference, self.model = inference, model
        self.capture: Capture | None = None
        self.requests = 0  # running and queued; only the event loop's thread counts them
        self.held_bytes = 0  # of bodies that are being received
        self.turn = asyncio.Lock()
        self.threads = ThreadPoolExecutor(CORES, "requests")
        self.ping_thread = ThreadPoolExecutor(1, "ping")  # so that a ping does not wait for a batch

    def load(self) -> None:
        """Load and check the model that the environment names. Errors of the inference code propagate."""
        model_dir = Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model"))
        self.inference = load_inference(model_dir)
        self.model = self.inference.model_fn(str(model_dir))
        self.check()
        if capture_dir := os.environ.get("DATA_CAPTURE_DIR"):
            self.capture = Capture(capture_dir)

    def check(self) -> None:
        """Classify a blank image. Errors of the inference code propagate."""
        blank = io.BytesIO()
        Image.new("RGB", (8, 8), "white").save(blank, "PNG")
        self.respond(blank.getvalue(), "image/png", "application/json")

    def respond(self, body: bytes, content_type: str | None, accept: str | None) -> tuple[bytes, str]:
        """The body and content type of the response to a request."""
        return self.classify(self.inference.input_fn(body, content_type), accept)

    def classify(self, inputs: Any, accept: str | None) -> tuple[bytes, str]:
        """The same, for the output of input_fn."""
        predictions = self.inference.predict_fn(inputs, self.model)
        content, response_type = self.inference.output_fn(predictions, accept)
        return content.encode() if isinstance(content, str) else content, response_type

    async def ping(self, request: Request) -> Response:
        await asyncio.get_running_loop().run_in_executor(self.ping_thread, self.check)
        return Response()

    async def invocations(self, request: Request) -> Response:
        try:
            body = await self.read_body(request)
        except OverloadedError as error:
            return error_response(503, type(error).__name__, str(error))
        if body is None:
            return error_response(413, "PayloadTooLargeError", f"the body is larger than {MAX_BODY_BYTES:,} bytes")
        if self.requests >= MAX_REQUESTS:
            return error_response(503, "OverloadedError", f"{MAX_REQUESTS} requests are already running or queued")
        self.requests += 1
        try:
            return await self.invoke(request, body)
        finally:
            self.requests -= 1

    async def read_body(self, request: Request) -> bytes | None:
        """The request's body, or None if it is too large. Reads it all, or the client would not see the response.

        Raises OverloadedError.
        """
        chunks: list[bytes] = []
        size = held = 0
        overloaded = False
        try:
            async for chunk in request.stream():
                size += len(chunk)
                overloaded = overloaded or self.held_bytes + len(chunk) > MAX_HELD_BYTES
                if overloaded or size > MAX_BODY_BYTES:
                    chunks.clear()
                    continue
                chunks.append(chunk)
                held += len(chunk)
                self.held_bytes += len(chunk)
        finally:
            self.held_bytes -= held
        if overloaded:
            raise OverloadedError(f"{MAX_HELD_BYTES:,} bytes of requests are already being received")
        return None if size > MAX_BODY_BYTES else b"".join(chunks)

    async def invoke(self, request: Request, body: bytes) -> Response:
        headers = request.headers
        content_type = headers.get("content-type")
        try:
            content, response_type = await self.schedule(request, body, content_type, headers.get("accept"))
        except self.inference.UnsupportedContentTypeError as error:
            return error_response(415, type(error).__name__, str(error))
        except self.inference.UnsupportedImageError as error:
            return error_response(400, type(error).__name__, str(error))
        if self.capture:
            inference_id = headers.get("x-amzn-sagemaker-inference-id")
            self.capture.add(content_type or "", body, response_type, content, inference_id)
        return Response(content, headers={"content-type": response_type})

    async def schedule(
        self, request: Request, body: bytes, content_type: str | None, accept: str | None
    ) -> tuple[bytes, str]:
        """Run `respond`: if it is quick on this thread, which saves a thread switch; otherwise on the pool."""
        if not hasattr(self.inference, "is_quick"):
            return await self.run_on_pool(request, None, self.respond, body, content_type, accept)
        inputs = self.inference.input_fn(body, content_type)
        if not self.inference.is_quick(inputs):
            return await self.run_on_pool(request, inputs, self.classify, inputs, accept)
        # Before each image, the event loop accepts the requests that have arrived. They are counted while they queue,
        # those above the limit are refused within one or two images, and a ping does not wait for the whole queue.
        async with self.turn:
            await asyncio.sleep(0)
            return self.classify(inputs, accept)

    async def run_on_pool(
        self, request: Request, inputs: Any, function: Callable[..., tuple[bytes, str]], *arguments: Any
    ) -> tuple[bytes, str]:
        """Run the function on the pool. Raises ClientDisconnect as soon as the client has left."""
        result = asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)
        gone = asyncio.ensure_future(client_left(request))
        first: list[asyncio.Future[Any]] = [result, gone]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if result.done():
            return result.result()
        result.cancel()  # if it has not begun
        with contextlib.suppress(AttributeError):  # only JSON Lines can be abandoned
            inputs.abandoned = True
        raise ClientDisconnect

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load the model before the worker listens. Until then, no request is open and SIGTERM exits immediately."""
        finish = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        try:
            self.load()
        except Exception:
            traceback.print_exc()
            time.sleep(0.2)  # for the thread that answers heartbeats: the supervisor waits HUNG_SECONDS for an answer
            os._exit(STARTUP_FAILURE)
        signal.signal(signal.SIGTERM, finish)
        yield
        if self.capture:
            self.capture.close()


def create_app(inference: Any = None, model: Any = None, any_host: bool = True) -> ASGIApp:
    """A worker's application. Its lifespan loads the model; tests pass one and do not run the lifespan.

    any_host: accept any Host header, as on SageMaker, and not only names of this machine.
    """
    endpoint = Endpoint(inference, model)
    routes = [Route("/ping", endpoint.ping), Route("/invocations", endpoint.invocations, methods=["POST"])]
    handlers: dict[Any, Any] = {HTTPException: http_error, ClientDisconnect: client_gone, Exception: internal_error}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=endpoint.lifespan)
    return access_log(same_origin(app, any_host))


def same_origin(app: ASGIApp, any_host: bool) -> ASGIApp:
    """Wrap an application to refuse the requests of web pages of another origin."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        reason = refusal(Headers(scope=scope), any_host) if scope["type"] == "http" else None
        await (error_response(403, "ForeignOriginError", reason) if reason else app)(scope, receive, send)

    return guard


def access_log(app: ASGIApp) -> ASGIApp:
    """Wrap an application to log one line per request: sizes and time, but no content."""

    async def logged(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        started = time.perf_counter()
        line = {"method": scope["method"], "path": scope["path"], "status": None, "received": 0, "sent": 0}

        async def receive_counted() -> Message:
            message = await receive()
            line["received"] += len(message.get("body", b""))
            return message

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                line["status"] = message["status"]
            line["sent"] += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, receive_counted, send_counted)
        finally:
            line["ms"] = round((time.perf_counter() - started) * 1000, 1)
            sys.stdout.write(f"{json.dumps(line)}\n")  # in one write: other workers share the stream
            sys.stdout.flush()

    return logged


async def http_error(request: Request, error: HTTPException) -> Response:
    return error_response(error.status_code, "HTTPError", error.detail)


async def client_gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # only for the log


async def internal_error(request: Request, error: Exception) -> Response:
    status = 503 if request.url.path == "/ping" else 500
    return error_response(status, "InternalError", f"{type(error).__name__}: {error}")


async def client_left(request: Request) -> None:
    """Return when the client has closed the connection. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def error_response(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


class SocketPerWorker:
    """Unpickles in each worker as a new socket, bound to the port that all workers share.

    The kernel then distributes connections across the workers. With one shared socket, the worker that wakes up first
    accepts nearly all of them. When a worker dies, its socket is closed with it.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def __reduce__(self) -> tuple[Any, ...]:
        return bind, (self.host, self.port)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return bound


def serve(workers: int, host: str, port: int) -> None:
    """Serve until SIGTERM. Exits with STARTUP_FAILURE if a worker cannot load its model."""
    options: dict[str, Any] = {"host": host, "port": port, "access_log": False, "http": LimitedConnection}
    options["timeout_graceful_shutdown"] = STOP_SECONDS
    app = functools.partial(create_app, any_host=host not in LOOPBACK)
    if workers == 1:
        return uvicorn.run(app, factory=True, **options)
    options |= {"workers": workers, "timeout_worker_healthcheck": HUNG_SECONDS}
    config = uvicorn.Config(app, factory=True, **options)
    config.bind_socket().close()  # exits if the port is in use
    supervisor = Multiprocess(config, [SocketPerWorker(host, port)])  # type: ignore[list-item]  # unpickled as a socket
    supervisor.run()
    if any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes):
        sys.exit(STARTUP_FAILURE)


def number_of_workers() -> int:
    """SAGEMAKER_MODEL_SERVER_WORKERS, by default the number of cores. Raises ValueError."""
    text = os.environ.get("SAGEMAKER_MODEL_SERVER_WORKERS") or str(CORES)
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"SAGEMAKER_MODEL_SERVER_WORKERS is {text!r}, but must be a positive integer")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["serve"])
    parser.add_argument("--host")
    args = parser.parse_args()
    host = args.host or ("0.0.0.0" if args.command == "serve" else "127.0.0.1")
    try:
        workers = number_of_workers()
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # process 1 ignores SIGTERM by default
    serve(workers, host, int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")))


if __name__ == "__main__":
    main()
