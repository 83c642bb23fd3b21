"""What the endpoint does with a request: bytes of images in, labels with probabilities out.

One file for four hosts: SageMaker's scikit-learn image, our own image, the local process and the tests. Training
imports `preprocess` from here, so that a picture becomes numbers in one place only. It needs onnxruntime, numpy and
Pillow.

    content type                                request                                  answer
    image/png, image/jpeg, any of IMAGE_TYPES   one image                                one JSON object
    application/x-image or octet-stream         one image, its format found by content   one JSON object
    application/jsonlines                       a line an image: {"image": "<base64>"}   a line a request line, in order
                                                or just "<base64>"

A JSON object is {"predictions": [{"label": "3", "probability": 0.98}, ...]}, most probable first. In jsonlines a line
that fails is {"error": {"code": "UnsupportedImageError", "message": ...}} and the others are answered all the same.
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

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by the import: its official builds report to Microsoft

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]
IMAGE_TYPES = {f"image/{name.lower()}" for name in FORMATS}
SNIFFED_TYPES = {"application/x-image", "application/octet-stream"}
JSON_LINES = "application/jsonlines"

MAX_PIXELS = 50_000_000  # a 48 megapixel photograph passes; a few kilobytes that unfold to gigabytes do not
BATCH_SIZE = 16  # lines that one thread decodes and classifies at once: a few parts to a request, for all cores
DRAFT = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves twice the model's: 2 to 5 times faster
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
threads = ThreadPoolExecutor(THREADS, "lines")  # they start with the first jsonlines request

# What Pillow's decoders raise on damaged or hostile bytes is not limited to OSError.
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
    """The request's content type is none of those above."""


class UnsupportedImageError(ValueError):
    """The bytes are no image that can be read, or one with too many pixels."""


@dataclass(frozen=True)
class Model:
    session: onnxruntime.InferenceSession
    labels: list[str]  # in the order of the model's output
    size: tuple[int, int]  # height, width


def model_fn(model_dir):
    """Load model.onnx and metadata.json from the folder `model_dir`.

    The model runs on the thread that asks it: cores are shared out by requests and by parts of a batch, among which
    nothing needs to wait.
    """
    folder = Path(model_dir)
    metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return Model(session, metadata["labels"], (metadata["input"]["height"], metadata["input"]["width"]))


def input_fn(body, content_type):
    """Take a request apart: the bytes of one image, or the list of lines of a jsonlines body.

    Raises UnsupportedContentTypeError.
    """
    media_type = (content_type or "application/octet-stream").split(";")[0].strip().lower()
    if media_type == JSON_LINES:
        return _lines(body)
    if media_type in IMAGE_TYPES | SNIFFED_TYPES:
        return bytes(body)
    known = ", ".join(sorted(IMAGE_TYPES | SNIFFED_TYPES | {JSON_LINES}))
    raise UnsupportedContentTypeError(f"content type {media_type!r} is not one of {known}")


def predict_fn(inputs, model):
    """Classify what input_fn returned: one result for one image, a list of results for a list of lines.

    Raises UnsupportedImageError for one image; a line's error is its result.
    """
    if isinstance(inputs, bytes):
        return classify([preprocess(inputs, model.size)], model)[0]
    batches = (inputs[start : start + BATCH_SIZE] for start in range(0, len(inputs), BATCH_SIZE))
    return [result for results in threads.map(_classify_lines, batches, repeat(model)) for result in results]


def output_fn(predictions, accept):
    """Write what predict_fn returned as (body, content type). The answer is JSON whatever `accept` asks for."""
    if isinstance(predictions, list):
        return "".join(json.dumps(result) + "\n" for result in predictions), JSON_LINES
    return json.dumps(predictions), "application/json"


def preprocess(data, size):
    """Turn the bytes of an image into the model's input.

    data: a PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF.
    size: (height, width). The whole picture is stretched to it; nothing is cut off.
    Returns float32 [3, height, width], RGB, 0 to 1. Raises UnsupportedImageError.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image)
            image.draft(None, (DRAFT * max(size), DRAFT * max(size)))  # concerns JPEG alone
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
    except UnsupportedImageError:
        raise
    except DECODE_ERRORS as error:
        raise UnsupportedImageError(f"not a readable image: {_reason(error)}") from error
    height, width = size
    pixels = np.asarray(rgb.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    return np.divide(pixels, np.float32(255), order="C")


def classify(images, model):
    """Run the model on a list of `preprocess` results. Returns one {"predictions": [...]} for each."""
    (probabilities,) = model.session.run(["probabilities"], {"pixels": np.array(images)})
    return [{"predictions": _ranked(row, model.labels)} for row in probabilities.tolist()]


def _ranked(probabilities, labels):
    ranked = sorted(zip(probabilities, labels, strict=True), key=lambda pair: -pair[0])
    return [{"label": label, "probability": probability} for probability, label in ranked]


def _lines(body):
    lines = bytes(body).split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def _classify_lines(lines, model):
    """Results of up to BATCH_SIZE lines, in their order."""
    results, images = [], []
    for line in lines:
        try:
            images.append(preprocess(_image_of(line), model.size))
            results.append(None)
        except UnsupportedImageError as error:
            results.append({"error": {"code": type(error).__name__, "message": str(error)}})
    classified = iter(classify(images, model) if images else [])
    return [result or next(classified) for result in results]


def _image_of(line):
    """The image's bytes in one line of JSON."""
    try:
        value = json.loads(line)
        return base64.b64decode(value["image"] if isinstance(value, dict) else value, validate=True)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnsupportedImageError('the line is neither {"image": "<base64>"} nor "<base64>"') from error


def _check_pixels(image):
    if image.width * image.height > MAX_PIXELS:
        raise UnsupportedImageError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")


def _to_rgb(image):
    """Any mode of Pillow's to RGB: transparency on white, 16 bits to the upper 8."""
    if image.mode == "F":
        raise UnsupportedImageError("images of floating point numbers have no agreed range of brightness")
    if image.mode.startswith("I"):  # convert() would clip at 255 instead
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy an RGB image too


def _reason(error):
    """Pillow's own words, but for the message that holds only the address of a buffer."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"none of {', '.join(FORMATS)}, or damaged"
    return str(error) or type(error).__name__
