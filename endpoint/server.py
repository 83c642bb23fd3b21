"""The container that answers SageMaker: GET /ping, POST /invocations.

    python endpoint/server.py [serve] [--host 127.0.0.1]

SageMaker starts it with the argument `serve`, on all interfaces; without it, it listens on this machine only.

    SM_MODEL_DIR                  folder of model.onnx and metadata.json (/opt/ml/model)
    SAGEMAKER_SUBMIT_DIRECTORY    folder of the inference code (the model's code/, else the one beside this file)
    SAGEMAKER_PROGRAM             its file (inference.py)
    SAGEMAKER_BIND_TO_PORT        port (8080)
    DATA_CAPTURE_DIR              folder for requests and answers (data_capture.py); without it, none are kept

One process: a thread for each core decodes and classifies, while one more receives and sends. It listens once the model
has answered a first image, and every /ping asks it another: 200 if it is answered, else 503. SIGTERM lets it finish
what it has. A request leaves one line of JSON in the log.

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
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from data_capture import Capture

MAX_BODY_BYTES = 6_291_456  # what InvokeEndpoint takes
STOP_SECONDS = 25  # SageMaker kills 30 s after SIGTERM
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# In work and waiting. The last in line waits for 15 others of its core: some 20 ms of single images, a few seconds of
# the largest batches, and SageMaker gives a request 60 s. Their bodies are 100 MB a core at most.
MAX_REQUESTS = 16 * THREADS


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
    """A loaded model behind /ping and /invocations; `inference` is the module with input_fn, predict_fn, output_fn."""

    def __init__(self, inference, model, capture=None):
        self.inference, self.model, self.capture = inference, model, capture
        self.requests = 0  # in work and waiting; counted by the event loop's thread alone
        self.threads = ThreadPoolExecutor(THREADS, "requests")
        self.ping_thread = ThreadPoolExecutor(1, "ping")  # so that a ping waits for no request

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
            content, answer_type = await asyncio.get_running_loop().run_in_executor(
                self.threads, self.answer, body, content_type, headers.get("accept")
            )
        except self.inference.UnsupportedContentTypeError as error:
            return error_response(415, type(error).__name__, str(error))
        except self.inference.UnsupportedImageError as error:
            return error_response(400, type(error).__name__, str(error))
        if self.capture:
            inference_id = headers.get("x-amzn-sagemaker-inference-id")
            self.capture.add(content_type or "", body, answer_type, content, inference_id)
        return Response(content, headers={"content-type": answer_type})

    @contextlib.asynccontextmanager
    async def lifespan(self, app):
        self.check()
        yield
        if self.capture:
            self.capture.close()


def create_app(inference, model, capture=None):
    endpoint = Endpoint(inference, model, capture)
    routes = [Route("/ping", endpoint.ping), Route("/invocations", endpoint.invocations, methods=["POST"])]
    handlers = {HTTPException: http_error, Exception: internal_error}
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
            print(json.dumps(line), flush=True)

    return logged


async def http_error(request, error):
    return error_response(error.status_code, "HTTPError", error.detail)


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


def error_response(status, code, message):
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["serve"])
    parser.add_argument("--host")
    args = parser.parse_args()
    host = args.host or ("0.0.0.0" if args.command == "serve" else "127.0.0.1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # while it loads: as process 1 it would not hear it otherwise

    model_dir = Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model"))
    capture_dir = os.environ.get("DATA_CAPTURE_DIR")
    inference = load_inference(model_dir)
    uvicorn.run(
        create_app(inference, inference.model_fn(str(model_dir)), Capture(capture_dir) if capture_dir else None),
        host=host,
        port=int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")),
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


if __name__ == "__main__":
    main()
