"""The container that answers SageMaker: GET /ping, POST /invocations.

    python endpoint/server.py [serve] [--host 127.0.0.1]

SageMaker starts it with the argument `serve`, on all interfaces; without it, it listens on this machine only.

    SM_MODEL_DIR                  folder of model.onnx and metadata.json (/opt/ml/model)
    SAGEMAKER_SUBMIT_DIRECTORY    folder of the inference code (the model's code/, else the one beside this file)
    SAGEMAKER_PROGRAM             its file (inference.py)
    SAGEMAKER_BIND_TO_PORT        port (8080)

It listens once the model has answered a first image, so /ping is never true of a model that does not work. SIGTERM lets
it finish what it has. Errors are {"error": {"code", "message"}}: 400 no readable image, 413 body too large, 415 unknown
content type, 500 anything else.
"""

import argparse
import importlib.util
import io
import os
import sys
from pathlib import Path

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

MAX_BODY_BYTES = 6_291_456  # what InvokeEndpoint takes
STOP_SECONDS = 25  # SageMaker kills 30 s after SIGTERM


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


def create_app(inference, model):
    """The application for a loaded model. `inference` is the module with input_fn, predict_fn and output_fn."""

    def answer(body, content_type, accept):
        predictions = inference.predict_fn(inference.input_fn(body, content_type), model)
        return inference.output_fn(predictions, accept)

    async def ping(request):
        return Response()

    async def invocations(request):
        body = await read_body(request)
        if body is None:
            return error_response(413, "PayloadTooLargeError", f"the body is larger than {MAX_BODY_BYTES:,} bytes")
        headers = request.headers
        try:
            content, content_type = await run_in_threadpool(
                answer, body, headers.get("content-type"), headers.get("accept")
            )
        except inference.UnsupportedContentTypeError as error:
            return error_response(415, type(error).__name__, str(error))
        except inference.UnsupportedImageError as error:
            return error_response(400, type(error).__name__, str(error))
        return Response(content, media_type=content_type)

    routes = [Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={HTTPException: http_error, Exception: internal_error})


async def http_error(request, error):
    return error_response(error.status_code, "HTTPError", error.detail)


async def internal_error(request, error):
    return error_response(500, "InternalError", f"{type(error).__name__}: {error}")


async def read_body(request):
    """The request's body, or None where it is too large; it is read to its end, so that the client hears the answer."""
    body = bytearray()
    too_large = False
    async for chunk in request.stream():
        too_large = too_large or len(body) + len(chunk) > MAX_BODY_BYTES
        if not too_large:
            body += chunk
    return None if too_large else bytes(body)


def error_response(status, code, message):
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def warm_up(inference, model):
    """Classify a blank image; raises what keeps the model from working."""
    blank = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(blank, "PNG")
    inference.predict_fn(inference.input_fn(blank.getvalue(), "image/png"), model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["serve"])
    parser.add_argument("--host")
    args = parser.parse_args()
    host = args.host or ("0.0.0.0" if args.command == "serve" else "127.0.0.1")

    model_dir = Path(os.environ.get("SM_MODEL_DIR", "/opt/ml/model"))
    inference = load_inference(model_dir)
    model = inference.model_fn(str(model_dir))
    warm_up(inference, model)
    uvicorn.run(
        create_app(inference, model),
        host=host,
        port=int(os.environ.get("SAGEMAKER_BIND_TO_PORT", "8080")),
        timeout_graceful_shutdown=STOP_SECONDS,
    )


if __name__ == "__main__":
    main()
