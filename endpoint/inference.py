"""The endpoint's inference code: image bytes in, labels with probabilities out.

One file for four hosts: SageMaker's scikit-learn image, our own image, the local process and the tests. Training
imports `preprocess` from here, so that it sees the same pixels as the endpoint; pixels.py decodes the images.
Requires onnxruntime, numpy and Pillow.

    content type                                request                                response
    image/png, image/jpeg, any of IMAGE_TYPES   one image                              one JSON object
    application/x-image or octet-stream         one image, its format detected         one JSON object
    application/jsonlines                       one image per line:                    one line per request line,
                                                {"image": "<base64>"} or "<base64>"    in the same order

A JSON object is {"predictions": [{"label": "3", "probability": 0.98}, ...]}, most probable first. In JSON Lines, a line
that fails becomes {"error": {"code": "UnsupportedImageError", "message": ...}} and does not affect the others. A
request has at most MAX_LINES lines; once its images exceed MAX_WORK, the rest fail with ImageTooLargeError.
"""

import base64
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read on import: the official builds report to Microsoft

import numpy as np
import onnxruntime
from PIL import Image

import pixels
from pixels import FORMATS, Header, ImageTooLargeError, UnsupportedImageError

IMAGE_TYPES = {f"image/{name.lower()}" for name in FORMATS}
OTHER_NAMES = {  # of the same types, as browsers, cameras and old programs send them
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/jfif": "image/jpeg",
    "image/x-png": "image/png",
    "image/apng": "image/png",
    "image/tif": "image/tiff",
    "image/x-tiff": "image/tiff",
    "image/x-bmp": "image/bmp",
    "image/x-ms-bmp": "image/bmp",
    "image/x-windows-bmp": "image/bmp",
    "image/*": "application/octet-stream",
    "binary/octet-stream": "application/octet-stream",
}
SNIFFED_TYPES = {"application/x-image", "application/octet-stream"}
JSON_LINES = "application/jsonlines"

MAX_LINES = 10_000  # 6 MB of the smallest images
MAX_WORK = 250_000_000  # pixels of a request's images, times their passes: a few seconds of a core
QUICK_WORK, QUICK_BYTES = 1_000_000, 262_144  # take about 10 ms
BATCH_SIZE = 16  # lines that one thread decodes and classifies together; small, so that a request uses all cores
DRAFT = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 size if that is at least twice the model's: 2 to 5 times faster
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
threads = ThreadPoolExecutor(THREADS, "lines")  # started by the first JSON Lines request


class UnsupportedContentTypeError(ValueError):
    """The request's content type is not in the table above."""


class Lines(list[bytes]):
    """The lines of a JSON Lines request. If `abandoned` is set while they are classified, the rest is not decoded."""

    abandoned = False


@dataclass(frozen=True)
class Model:
    session: onnxruntime.InferenceSession
    labels: list[str]  # in the order of the model's output
    size: tuple[int, int]  # height, width


def model_fn(model_dir: str | Path) -> Model:
    """Load model.onnx and metadata.json from the folder `model_dir`, or SM_MODEL_DIR if it has no model.

    The scikit-learn image passes the folder model/ of its base folder, which template.yaml moves to /tmp. The model
    runs on the calling thread only: concurrent requests and the batches of a request use the other cores, without
    waiting for each other.
    """
    folder = Path(model_dir)
    if not (folder / "metadata.json").exists():
        folder = Path(os.environ.get("SM_MODEL_DIR", model_dir))
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return Model(session, metadata["labels"], (metadata["input"]["height"], metadata["input"]["width"]))


def input_fn(body: bytes | bytearray, content_type: str | None) -> Header | Lines:
    """Parse a request into one image, whose header is checked, or the lines of a JSON Lines body.

    The image's format is detected; the content type can be another image's, or absent.
    Raises UnsupportedContentTypeError, UnsupportedImageError, ImageTooLargeError.
    """
    media_type = (content_type or "application/octet-stream").split(";")[0].strip().lower()
    media_type = OTHER_NAMES.get(media_type, media_type)
    if media_type == JSON_LINES:
        return _split_lines(body)
    if media_type in IMAGE_TYPES | SNIFFED_TYPES:
        return pixels.inspect(bytes(body))
    known = ", ".join(sorted(IMAGE_TYPES | SNIFFED_TYPES | {JSON_LINES}))
    raise UnsupportedContentTypeError(f"content type {media_type!r} is not one of {known}")


def is_quick(inputs: Header | Lines) -> bool:
    """Whether predict_fn takes a few milliseconds at most: server.py then runs it on its event loop's thread."""
    return isinstance(inputs, Header) and inputs.work <= QUICK_WORK and len(inputs.data) <= QUICK_BYTES


def predict_fn(inputs: Header | Lines, model: Model) -> dict[str, Any] | list[dict[str, Any]]:
    """Classify the output of input_fn: one result for one image, a list of results for a list of lines.

    Raises UnsupportedImageError for a single image; a line that fails has the error as its result.
    """
    if isinstance(inputs, Header):
        return classify([preprocess(inputs, model.size)], model)[0]
    budget = Budget(inputs)
    batches = (inputs[start : start + BATCH_SIZE] for start in range(0, len(inputs), BATCH_SIZE))
    classified = threads.map(_classify_lines, batches, repeat(model), repeat(budget))
    return [result for results in classified for result in results]


def output_fn(predictions: dict[str, Any] | list[dict[str, Any]], accept: str | None) -> tuple[str, str]:
    """Serialise the output of predict_fn as (body, content type). `accept` is ignored: the response is always JSON."""
    if isinstance(predictions, list):
        return "".join(json.dumps(result) + "\n" for result in predictions), JSON_LINES
    return json.dumps(predictions), "application/json"


def preprocess(image: bytes | Header, size: tuple[int, int]) -> np.ndarray:
    """Decode an image into the model's input.

    image: the bytes of a PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF, or what pixels.inspect returned for them.
    size: (height, width). The image is stretched to this size, not cropped.
    Returns float32 [3, height, width], RGB, 0 to 1. Raises UnsupportedImageError.
    """
    height, width = size
    rgb, _ = pixels.read(image, (DRAFT * width, DRAFT * height))
    array = np.asarray(rgb.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    return np.divide(array, np.float32(255), order="C")


def classify(images: list[np.ndarray], model: Model) -> list[dict[str, Any]]:
    """Run the model on a list of `preprocess` results. Returns one {"predictions": [...]} for each."""
    (probabilities,) = model.session.run(["probabilities"], {"pixels": np.array(images)})
    return [{"predictions": _ranked(row, model.labels)} for row in probabilities.tolist()]


def _ranked(probabilities: list[float], labels: list[str]) -> list[dict[str, Any]]:
    ranked = sorted(zip(probabilities, labels, strict=True), key=lambda pair: -pair[0])
    return [{"label": label, "probability": probability} for probability, label in ranked]


class Budget:
    """The work left to a request, shared by the threads that decode its lines."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.left = lines, float(MAX_WORK)

    def spend(self, work: float) -> None:
        """Raises ImageTooLargeError if there is not enough left, or nobody waits for the response."""
        if work > self.left or self.lines.abandoned:
            raise ImageTooLargeError(
                f"the images of this request exceed {MAX_WORK:,} pixels together: send fewer in one request"
            )
        self.left -= work  # two threads at once may lose one subtraction, which does not matter here


def _split_lines(body: bytes | bytearray) -> Lines:
    """Raises ImageTooLargeError."""
    lines = bytes(body).split(b"\n", MAX_LINES + 1)
    if lines[-1] == b"":
        lines.pop()
    if len(lines) > MAX_LINES:
        raise ImageTooLargeError(f"the request has more than {MAX_LINES:,} lines: send several requests")
    return Lines(lines)


def _classify_lines(lines: list[bytes], model: Model, budget: Budget) -> list[dict[str, Any]]:
    """The results of up to BATCH_SIZE lines, in order."""
    results: list[dict[str, Any] | None] = []
    images: list[np.ndarray] = []
    for line in lines:
        try:
            image = pixels.inspect(_decode_line(line))
            budget.spend(image.work)
            images.append(preprocess(image, model.size))
            results.append(None)
        except UnsupportedImageError as error:
            results.append({"error": {"code": type(error).__name__, "message": str(error)}})
    classified = iter(classify(images, model) if images else [])
    return [result or next(classified) for result in results]


def _decode_line(line: bytes) -> bytes:
    """The bytes of the image in one line of JSON. Its base64 can be wrapped, or the content of a data: URI."""
    try:
        value = json.loads(line)
        text = value["image"] if isinstance(value, dict) else value
        head, comma, content = text.partition(",")
        if comma and head.startswith("data:") and head.endswith(";base64"):
            text = content
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise UnsupportedImageError('the line is neither {"image": "<base64>"} nor "<base64>"') from error
