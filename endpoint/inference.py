"""The endpoint's inference code: image bytes in, labels with probabilities out.

One file for four hosts: SageMaker's scikit-learn image, our own image, the local process and the tests. Training
imports `preprocess` from here, so that it sees the same pixels as the endpoint. Requires onnxruntime, numpy and Pillow.

    content type                                request                                response
    image/png, image/jpeg, any of IMAGE_TYPES   one image                              one JSON object
    application/x-image or octet-stream         one image, its format detected         one JSON object
    application/jsonlines                       one image per line:                    one line per request line,
                                                {"image": "<base64>"} or "<base64>"    in the same order

A JSON object is {"predictions": [{"label": "3", "probability": 0.98}, ...]}, most probable first. In JSON Lines, a line
that fails becomes {"error": {"code": "UnsupportedImageError", "message": ...}} and does not affect the others.
"""

import base64
import io
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read on import: the official builds report to Microsoft

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
IMAGE_TYPES = {f"image/{name.lower()}" for name in FORMATS}
SNIFFED_TYPES = {"application/x-image", "application/octet-stream"}
JSON_LINES = "application/jsonlines"

MAX_PIXELS = 50_000_000  # accepts a 48 megapixel photograph, but not a few kilobytes that decompress to gigabytes
BATCH_SIZE = 16  # lines that one thread decodes and classifies together; small, so that a request uses all cores
DRAFT = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 size if that is at least twice the model's: 2 to 5 times faster
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
threads = ThreadPoolExecutor(THREADS, "lines")  # started by the first JSON Lines request

# On damaged or hostile bytes, Pillow's decoders raise more than OSError.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)


class UnsupportedContentTypeError(ValueError):
    """The request's content type is not in the table above."""


class UnsupportedImageError(ValueError):
    """The bytes are not a readable image, or the image has too many pixels."""


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


def input_fn(body: bytes | bytearray, content_type: str | None) -> bytes | list[bytes]:
    """Parse a request into the bytes of one image, or the lines of a JSON Lines body.

    Without a content type, the image's format is detected. Raises UnsupportedContentTypeError.
    """
    media_type = (content_type or "application/octet-stream").split(";")[0].strip().lower()
    if media_type == JSON_LINES:
        return _split_lines(body)
    if media_type in IMAGE_TYPES | SNIFFED_TYPES:
        return bytes(body)
    known = ", ".join(sorted(IMAGE_TYPES | SNIFFED_TYPES | {JSON_LINES}))
    raise UnsupportedContentTypeError(f"content type {media_type!r} is not one of {known}")


def predict_fn(inputs: bytes | list[bytes], model: Model) -> dict[str, Any] | list[dict[str, Any]]:
    """Classify the output of input_fn: one result for one image, a list of results for a list of lines.

    Raises UnsupportedImageError for a single image; a line that fails has the error as its result.
    """
    if isinstance(inputs, bytes):
        return classify([preprocess(inputs, model.size)], model)[0]
    batches = (inputs[start : start + BATCH_SIZE] for start in range(0, len(inputs), BATCH_SIZE))
    return [result for results in threads.map(_classify_lines, batches, repeat(model)) for result in results]


def output_fn(predictions: dict[str, Any] | list[dict[str, Any]], accept: str | None) -> tuple[str, str]:
    """Serialise the output of predict_fn as (body, content type). `accept` is ignored: the response is always JSON."""
    if isinstance(predictions, list):
        return "".join(json.dumps(result) + "\n" for result in predictions), JSON_LINES
    return json.dumps(predictions), "application/json"


def preprocess(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decode the bytes of an image into the model's input.

    data: a PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF.
    size: (height, width). The image is stretched to this size, not cropped.
    Returns float32 [3, height, width], RGB, 0 to 1. Raises UnsupportedImageError.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image)
            image.draft(None, (DRAFT * max(size), DRAFT * max(size)))  # affects only JPEG
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
    except UnsupportedImageError:
        raise
    except DECODE_ERRORS as error:
        raise UnsupportedImageError(f"not a readable image: {_reason(error)}") from error
    height, width = size
    pixels = np.asarray(rgb.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    return np.divide(pixels, np.float32(255), order="C")


def classify(images: list[np.ndarray], model: Model) -> list[dict[str, Any]]:
    """Run the model on a list of `preprocess` results. Returns one {"predictions": [...]} for each."""
    (probabilities,) = model.session.run(["probabilities"], {"pixels": np.array(images)})
    return [{"predictions": _ranked(row, model.labels)} for row in probabilities.tolist()]


def _ranked(probabilities: list[float], labels: list[str]) -> list[dict[str, Any]]:
    ranked = sorted(zip(probabilities, labels, strict=True), key=lambda pair: -pair[0])
    return [{"label": label, "probability": probability} for probability, label in ranked]


def _split_lines(body: bytes | bytearray) -> list[bytes]:
    lines = bytes(body).split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def _classify_lines(lines: list[bytes], model: Model) -> list[dict[str, Any]]:
    """The results of up to BATCH_SIZE lines, in order."""
    results: list[dict[str, Any] | None] = []
    images: list[np.ndarray] = []
    for line in lines:
        try:
            images.append(preprocess(_decode_line(line), model.size))
            results.append(None)
        except UnsupportedImageError as error:
            results.append({"error": {"code": type(error).__name__, "message": str(error)}})
    classified = iter(classify(images, model) if images else [])
    return [result or next(classified) for result in results]


def _decode_line(line: bytes) -> bytes:
    """The bytes of the image in one line of JSON."""
    try:
        value = json.loads(line)
        return base64.b64decode(value["image"] if isinstance(value, dict) else value, validate=True)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnsupportedImageError('the line is neither {"image": "<base64>"} nor "<base64>"') from error


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnsupportedImageError(f"{image.width} x {image.height} pixels exceed the limit of {MAX_PIXELS:,}")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB. Transparency becomes white; of 16 bits, the upper 8 are kept."""
    if image.mode == "F":
        raise UnsupportedImageError("floating point images have no standard brightness range")
    if image.mode.startswith("I"):  # convert() would clip at 255 instead
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy RGB too


def _reason(error: Exception) -> str:
    """Pillow's message, except for the one that contains only the address of a buffer."""
    if isinstance(error, UnidentifiedImageError):
        return f"damaged, or not one of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__
