"""The container that answers SageMaker: GET /ping, POST /invocations.

    python endpoint/server.py [serve] [--host 127.0.0.1]

SageMaker starts it with the argument `serve`, on all interfaces; without it, it listens on this machine only.

    SM_MODEL_DIR                     folder of model.onnx and metadata.json (/opt/ml/model)
    SAGEMAKER_SUBMIT_DIRECTORY       folder of the inference code (the model's code/, else the one beside this file)
    SAGEMAKER_PROGRAM                its file (inference.py)
    SAGEMAKER_BIND_TO_PORT           port (8080)
    SAGEMAKER_MODEL_SERVER_WORKERS   worker processes (one for each core)
    DATA_CAPTURE_DIR                 folder for requests and answers (data_capture.py); without it, none are kept

Each worker has the model and answers single images on the thread of its event loop; JSON Lines and large images go to a
thread for each core, so that one batch alone keeps all cores busy. Above two or more there is one more process, which
starts another worker for one that dies; a worker whose model does not work ends the server. A worker listens once its
model has answered a first image, and every /ping asks it another: 200 if it is answered, else 503. SIGTERM lets it
finish what it has. A request leaves one line of JSON in the log.

Errors are {"error": {"code", "message"}}: 400 no readable image, 413 body too large, 415 unknown content type, 503 too
many requests at a time, 500 anything else.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import io
import json
import os
import signal
import socket
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from data_capture import Capture

MAX_BODY_BYTES = 6_291_456  # what InvokeEndpoint takes
INLINE_BYTES = 262_144  # a ping waits for it: some ms for a photograph, about a second for the most hostile image
STOP_SECONDS = 25  # SageMaker kills 30 s after SIGTERM
HUNG_SECONDS = 30  # a worker that gives no sign of life is replaced; on a busy machine the first one takes a while
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# In work and waiting, in each worker. The last in line waits for 15 others: some 20 ms of single images, a few seconds
# of the largest batches, and SageMaker gives a request 60 s. Their bodies are 100 MB a worker at most.
MAX_REQUESTS = 16


def load_inference(model_dir):
    """Import the inference code that comes with the model or, where there is none, the one beside this file."""
    program = os.environ.get("SAGEMAKER_PROGRAM", "inference.py")
    submitted = Path(os.environ.get("SAGEMAKER_SUBMIT_DIRECTORY", model_dir / "code")) / program
    candidates = [submitted, model_dir / "code" / program, Path(__file__).with_name("inference.py")]
    path = next(path for path in candidates if path.is_file())
    spec = importlib.util.spec_from_file_location("endpoint_inference", path)
    inference = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = inference
    sys.path.insert(0, str(path.parent))  # so that it may import what lies beside it
    spec.loader.exec_module(inference)
    return inference


class Endpoint:
    """A model behind /ping and /invocations; `inference` is the module with input_fn, predict_fn, output_fn."""

    def __init__(self, inference, model):
        self.inference, self.model, self.capture = inference, model, None
        self.requests = 0  # in work and waiting; counted by the event loop's thread alone
        self.turn = asyncio.Lock()
        self.threads = ThreadPoolExecutor(CORES, "requests")
        self.ping_thread = ThreadPoolExecutor(1, "ping")  # so that a ping waits for no batch

    def load(self):
        """Load what the environment names; raises what keeps the model from working."""
        model_dir = Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model"))
        self.inference = load_inference(model_dir)
        self.model = self.inference.model_fn(str(model_dir))
        self.check()
        if capture_dir := os.environ.get("DATA_CAPTURE_DIR"):
            self.capture = Capture(capture_dir)

    def check(self):
        """Classify a blank image; raises what keeps the model from working."""
        blank = io.BytesIO()
        Image.new("RGB", (8, 8), "white").save(blank, "PNG")
        self.answer(blank.getvalue(), "image/png", "application/json")

    def answer(self, body, content_type, accept):
        """Body and content type of the answer to a request."""
        predictions = self.inference.predict_fn(self.inference.input_fn(body, content_type), self.model)
        content, answer_type = self.inference.output_fn(predictions, accept)
        return content.encode() if isinstance(content, str) else content, answer_type

    async def ping(self, request):
        await asyncio.get_running_loop().run_in_executor(self.ping_thread, self.check)
        return Response()

    async def invocations(self, request):
        if self.requests >= MAX_REQUESTS:
            await read_body(request, 0)
            return error_response(503, "OverloadedError", f"{MAX_REQUESTS} requests are in work or waiting")
        self.requests += 1
        try:
            return await self.invoke(request)
        finally:
            self.requests -= 1

    async def invoke(self, request):
        body = await read_body(request, MAX_BODY_BYTES)
        if body is None:
            return error_response(413, "PayloadTooLargeError", f"the body is larger than {MAX_BODY_BYTES:,} bytes")
        headers = request.headers
        content_type = headers.get("content-type")
        try:
            content, answer_type = await self.scheduled(body, content_type, headers.get("accept"))
        except self.inference.UnsupportedContentTypeError as error:
            return error_response(415, type(error).__name__, str(error))
        except self.inference.UnsupportedImageError as error:
            return error_response(400, type(error).__name__, str(error))
        if self.capture:
            inference_id = headers.get("x-amzn-sagemaker-inference-id")
            self.capture.add(content_type or "", body, answer_type, content, inference_id)
        return Response(content, headers={"content-type": answer_type})

    async def scheduled(self, body, content_type, accept):
        """What `answer` returns: a small image's on this thread, which saves the way to another; else from a thread."""
        if len(body) > INLINE_BYTES or is_json_lines(content_type):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.threads, self.answer, body, content_type, accept)
        # One image a turn, and before it the event loop takes in what has arrived: so requests are counted while others
        # wait, the one too many is refused after an image or two, and a ping does not wait for all that were there.
        async with self.turn:
            await asyncio.sleep(0)
            return self.answer(body, content_type, accept)

    @contextlib.asynccontextmanager
    async def lifespan(self, app):
        """Load before the worker listens. Until then SIGTERM has nothing to wait for."""
        finish = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        try:
            self.load()
        except Exception:
            traceback.print_exc()
            os._exit(STARTUP_FAILURE)  # at once: of one that takes its time, signs of life are awaited for HUNG_SECONDS
        signal.signal(signal.SIGTERM, finish)
        yield
        if self.capture:
            self.capture.close()


def create_app(inference=None, model=None):
    """The application of a worker, whose lifespan loads the model; tests pass one, and leave the lifespan out."""
    endpoint = Endpoint(inference, model)
    routes = [Route("/ping", endpoint.ping), Route("/invocations", endpoint.invocations, methods=["POST"])]
    handlers = {HTTPException: http_error, ClientDisconnect: client_gone, Exception: internal_error}
    return access_log(Starlette(routes=routes, exception_handlers=handlers, lifespan=endpoint.lifespan))


def access_log(app):
    """Wrap an application so that each request leaves a line: sizes and time, nothing of what was sent."""

    async def logged(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        started = time.perf_counter()
        line = {"method": scope["method"], "path": scope["path"], "status": None, "received": 0, "sent": 0}

        async def receive_counted():
            message = await receive()
            line["received"] += len(message.get("body", b""))
            return message

        async def send_counted(message):
            if message["type"] == "http.response.start":
                line["status"] = message["status"]
            line["sent"] += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, receive_counted, send_counted)
        finally:
            line["ms"] = round((time.perf_counter() - started) * 1000, 1)
            sys.stdout.write(f"{json.dumps(line)}\n")  # in one piece: other workers write there too
            sys.stdout.flush()

    return logged


async def http_error(request, error):
    return error_response(error.status_code, "HTTPError", error.detail)


async def client_gone(request, error):
    return Response(status_code=499)  # for the log alone


async def internal_error(request, error):
    status = 503 if request.url.path == "/ping" else 500
    return error_response(status, "InternalError", f"{type(error).__name__}: {error}")


async def read_body(request, limit):
    """The request's body, or None where it is over the limit; read to its end, so that the client hears the answer."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        else:
            chunks.clear()
    return None if size > limit else b"".join(chunks)


def is_json_lines(content_type):
    return (content_type or "").split(";")[0].strip().lower() == "application/jsonlines"


def error_response(status, code, message):
    return JSONResponse({"error": {"code": code, "message": message}}, status)


class SocketOfItsOwn:
    """What a worker is given to listen on: a socket when it is unpickled there, on the port that all workers share.

    The kernel then shares out connections among the workers that listen. On one socket for all, the worker that wakes
    up first takes nearly all of them. What a dead worker listened on is closed with it.
    """

    def __init__(self, host, port):
        self.host, self.port = host, port

    def __reduce__(self):
        return bind, (self.host, self.port)


def bind(host, port):
    """A bound socket, which does not listen yet."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, port))
    return bound


def serve(workers, host, port):
    """Serve until SIGTERM; exits with STARTUP_FAILURE where a worker could not load its model."""
    options = {"host": host, "port": port, "access_log": False, "timeout_graceful_shutdown": STOP_SECONDS}
    if workers == 1:
        return uvicorn.run(create_app, factory=True, **options)
    options |= {"workers": workers, "timeout_worker_healthcheck": HUNG_SECONDS}
    config = uvicorn.Config(create_app, factory=True, **options)
    config.bind_socket().close()  # ends the process where the port is taken
    supervisor = Multiprocess(config, [SocketOfItsOwn(host, port)])
    supervisor.run()
    if any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes):
        sys.exit(STARTUP_FAILURE)


def number_of_workers():
    """Raises ValueError."""
    text = os.environ.get("SAGEMAKER_MODEL_SERVER_WORKERS") or str(CORES)
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"SAGEMAKER_MODEL_SERVER_WORKERS is {text!r}, and no number of processes from 1")
    return int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["serve"])
    parser.add_argument("--host")
    args = parser.parse_args()
    host = args.host or ("0.0.0.0" if args.command == "serve" else "127.0.0.1")
    try:
        workers = number_of_workers()
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # as process 1 it would not hear it otherwise
    serve(workers, host, int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")))


if __name__ == "__main__":
    main()
