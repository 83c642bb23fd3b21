"""Coverage-guided fuzzing with atheris, for make fuzz: images, events, and endpoints' answers.

    PYTHONPATH=functions:endpoint:tests/unit python tests/fuzz/fuzz.py {image,event,answer} [--runs N] [--seed N]

The corpus in .local/fuzz starts from every case of tests/unit and grows by the inputs that reach new code, so another
run continues where the last one ended; --seed chooses other mutations. A run ends at the first input that raises an
unnamed error, that the two hosts treat differently, or that takes the process above 600 MB or 10 seconds. That input is
kept beside the corpus; give its path in place of --runs to repeat it.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import resource
import struct
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

os.environ |= {
    "AWS_DEFAULT_REGION": "us-east-1",
    "POWERTOOLS_SERVICE_NAME": "fuzz",
    "POWERTOOLS_TRACE_DISABLED": "true",
    "STATE_MACHINE_ARN": "arn:aws:states:us-east-1:000000000000:stateMachine:fuzz",
}

import numpy as np
from PIL import Image

MODULES = ["PIL", "batch_source", "contract", "inference", "pixels", "predictions", "record_outcome", "retrieve_image"]
with atheris.instrument_imports(include=MODULES):
    import batch_source
    import contract
    import inference
    import pixels
    import predictions
    import record_outcome
    import retrieve_image

import test_pixels  # noqa: E402
import test_predictions  # noqa: E402

ROOT = Path(__file__).parents[2]
SIZE = (16, 16)
TOLERANCE = 32 / 255  # of the brightness of a sixteenth of the image, between tiny images of noise and their JPEGs
LIMITS = {"rss_limit_mb": 600, "timeout": 10, "max_len": 100_000, "verbosity": 0}
outcomes: Counter[str] = Counter()


class WrongError(Exception):
    """An input that the two hosts treat differently."""


def images() -> Iterator[bytes]:
    """Small images of every mode and format, the hostile ones, and what is no image."""
    yield from dict(test_pixels.kinds(16)).values()
    yield from test_pixels.HEAVY.values()
    yield from filter(None, test_pixels.ODD_METADATA.values())
    yield from (data for data, _ in test_pixels.NO_IMAGES)
    yield test_pixels.gif_with_comment(1000)
    yield test_pixels.png(7000, 7000, 8, 6, content=bytes(1000))  # 200 MB, just below the limits
    yield test_pixels.run_length_bmp(3000, 3000)
    for image_format in ("PNG", "GIF", "JPEG", "TIFF", "WEBP"):  # some MB of memory, and a size to mutate
        options = {"lossless": True, "progressive": True, "compression": "tiff_lzw"}
        mode = {"GIF": "P", "JPEG": "RGB"}.get(image_format, "RGBA")
        yield test_pixels.encoded(Image.new(mode, (2000, 1500)), image_format, **options)


def check_image(data: bytes) -> str:
    """Both hosts read the image, or refuse it with the same words; large and small, it looks the same.

    A damaged JPEG can have frequencies that are cut to 0 and 255 at full size, but not where the endpoint decodes it at
    a reduced size. test_pixels.py compares the pixels of JPEGs.
    """
    answer, expected = outcome(lambda: retrieve_image.fit(data, "s3://b/k")), outcome(lambda: brightness(data))
    if answer != expected:
        raise WrongError(f"the function says {answer}; the endpoint {expected}")
    if answer == "read" and not data.startswith(b"\xff\xd8"):
        image, size = pixels.read(data, (retrieve_image.MAX_SIDE, retrieve_image.MAX_SIDE))
        shrunk, _ = retrieve_image.shrink(image, size)
        if (difference := np.abs(brightness(shrunk) - brightness(data)).max()) > TOLERANCE:
            raise WrongError(f"shrunk, it looks different: {difference * 255:.0f} of 255")
    return answer.partition(":")[0]


def outcome(host: Callable[[], Any]) -> str:
    try:
        host()
    except pixels.UnsupportedImageError as error:
        return f"{type(error).__name__}: {error}".replace("s3://b/k: ", "")
    return "read"


def brightness(image: bytes) -> np.ndarray:
    """The mean brightness of 4 x 4 parts of the model's input."""
    grey = np.tensordot([0.299, 0.587, 0.114], inference.preprocess(image, SIZE), 1)
    return grey.reshape(4, 4, 4, 4).mean(axis=(1, 3))


def answers() -> Iterator[bytes]:
    """Every format that is read, and what is none."""
    yield from (json.dumps(response).encode() for response in test_predictions.COMMON)
    yield from (*test_predictions.UNUSABLE, *test_predictions.HOSTILE)
    yield from (body for body, _ in test_predictions.ROUNDED)


def check_answer(data: bytes) -> str:
    """An endpoint's response is valid predictions, which any JSON can hold, or the endpoint's error."""
    try:
        parsed = predictions.parse_predictions(data, ["cat", "dog"])
    except predictions.EndpointResponseError as error:
        str(error).encode()
        return "EndpointResponseError"
    predictions.check_predictions(parsed)
    json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    return "read"


def events() -> Iterator[bytes]:
    """The functions' inputs, items of batches, JSON Lines for the endpoint, and what is no such thing."""
    for path in (ROOT / "events").glob("*.json"):
        event = json.loads(path.read_text())
        yield from (json.dumps(each).encode() for each in (event, *event.get("Items", [])))
    yield b'{"s3_bucket": "b", "s3_key": "k", "threshold": 0.5, "s3_version_id": "v"}'
    yield b'{"detail": {"bucket": {"name": "b"}, "object": {"key": "k", "version-id": "v"}}}'
    yield b'{"Bucket": "b", "Key": "a%2Bb+c", "VersionId": "v", "StorageClass": "GLACIER", "IsDeleteMarker": "false"}'
    line = b'{"image": "' + base64.b64encode(test_pixels.png(1, 1, content=b"\0\0")) + b'"}\n'
    yield from (
        line,
        line[10:-2],
        b'"data:image/png;base64,' + line[11:-2],
        b"[" * 5000,
        b"7",
        b'"text"',
        b"null",
        b"{",
    )


VALIDATORS = [
    contract.validator(schema) for name, schema in vars(contract).items() if name.isupper() and name[0] != "_"
]
BATCH = {"s3_bucket": "b", "execution_arn": "arn", "threshold": 0.5, "url_encoded": True}


def check_event(data: bytes) -> str:
    """An input is valid, or a named error, and the outcome of any execution can be recorded."""
    text = data.decode(errors="replace")
    ended = {"executionArn": "arn", "status": "FAILED", "error": "Error", "input": text, "cause": text}
    record_outcome.failure_of(ended)
    record_outcome.result_of(ended | {"error": record_outcome.NOT_ACCEPTED})
    with contextlib.suppress(pixels.UnsupportedImageError):
        for line in inference.input_fn(data, inference.JSON_LINES):
            with contextlib.suppress(pixels.UnsupportedImageError):
                inference._decode_line(line)
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):  # Lambda's runtime parses inputs
        return "not JSON"
    if batch_source.names_an_image(event):
        batch_source.archive_of(event)
        batch_source.request_for(event, BATCH)
    valid = 0
    for validated in VALIDATORS:
        try:
            validated(event)
            valid += 1
        except contract.InvalidInputError as error:
            str(error).encode()
    return f"valid for {valid} schemas"


PARSERS = {"image": (check_image, images), "event": (check_event, events), "answer": (check_answer, answers)}


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """atheris's mutation; a PNG also gets valid checksums, or Pillow would read none of its chunks."""
    changed = atheris.Mutate(data, max_size)
    return with_checksums(changed) if seed % 4 else changed


def with_checksums(data: bytes) -> bytes:
    fixed, position = bytearray(data), 8
    while data.startswith(b"\x89PNG") and position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return bytes(fixed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parser", choices=PARSERS)
    parser.add_argument("inputs", nargs="*", type=Path, help="files to check instead of fuzzing")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check, seeds = PARSERS[options.parser]
    warnings.simplefilter("ignore")
    for path in options.inputs:
        print(f"{path}: {check(path.read_bytes())}")
    if options.inputs:
        return
    found, corpus = ROOT / ".local/fuzz", ROOT / ".local/fuzz" / options.parser
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds():
        if len(data) <= LIMITS["max_len"]:
            (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    limits = LIMITS | {"runs": options.runs + len(list(corpus.iterdir())), "seed": options.seed + 1}
    flags = [f"-{name}={value}" for name, value in limits.items()]
    flags += [f"-artifact_prefix={found}/{options.parser}-", "-print_final_stats=1", str(corpus)]

    def check_one(data: bytes) -> None:
        outcomes[check(data)] += 1
        if outcomes.total() == limits["runs"]:  # libFuzzer ends the process
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(f"{options.parser}: {outcomes.total():,} inputs, at most {peak} MB: {dict(outcomes)}", flush=True)

    atheris.Setup([sys.argv[0], *flags], check_one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
