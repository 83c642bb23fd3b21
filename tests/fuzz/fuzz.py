"""Mutated images, events and endpoints' answers, for make fuzz: RUNS of each, by default 100,000 images.

    PYTHONPATH=functions:endpoint:tests/unit .venv/bin/python tests/fuzz/fuzz.py [--runs 100000] [--seed 0]

The corpus starts from every kind of image in tests/unit/test_pixels.py, small, and grows by inputs that fail with a new
message. Mutations are random bytes, copies, cuts and numbers. A run
ends at the first input that fails without a name, on one host only, or needs more than 600 MB; it is kept in
.local/fuzz.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

os.environ |= {
    "AWS_DEFAULT_REGION": "us-east-1",
    "POWERTOOLS_SERVICE_NAME": "fuzz",
    "POWERTOOLS_TRACE_DISABLED": "true",
}

import numpy as np
from PIL import Image

import contract
import pixels
import predictions
import retrieve_image
from inference import preprocess

FOUND = Path(__file__).parents[2] / ".local/fuzz"
SIZE = (16, 16)
TOLERANCE = 16 / 255
MEMORY = 600  # MB
NUMBERS = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x01", b"\x01\0\0\0", b"\xff\xda"]


class WrongError(Exception):
    """An input that the two hosts treat differently, or that needs too much memory."""


def images() -> list[bytes]:
    """Small images of every format, mode and kind of header."""
    corpus = []
    colour = Image.effect_noise((24, 18), 80)
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I", "F", "I;16", "YCbCr", "LAB"):
        for image_format in pixels.FORMATS:
            for options in ({}, {"progressive": True}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}):
                buffer = io.BytesIO()
                try:
                    Image.new(mode, (24, 18)).save(buffer, image_format, **options) if mode in (
                        "I;16",
                        "LAB",
                        "F",
                        "I",
                    ) else colour.convert(mode).save(buffer, image_format, **options)
                except (OSError, ValueError, KeyError):
                    continue
                corpus.append(buffer.getvalue())
    return corpus


def check_image(data: bytes) -> str:
    """The outcome, which must be the same on both hosts."""
    outcomes = []
    read: list[np.ndarray] = []
    for convert in (lambda: base64.b64decode(retrieve_image.fit(data, "s3://b/k")["data"]), lambda: data):
        try:
            read.append(preprocess(convert(), SIZE))
            outcomes.append("read")
        except pixels.UnsupportedImageError as error:
            outcomes.append(f"{type(error).__name__}: {error}".replace("s3://b/k: ", ""))
    if outcomes[0] != outcomes[1]:
        raise WrongError(f"the function says {outcomes[0]}; the endpoint {outcomes[1]}")
    if read and np.abs(read[0] - read[1]).max() > TOLERANCE:
        raise WrongError("the two hosts see different pixels")
    return outcomes[0]


def check_answer(body: bytes) -> str:
    try:
        predictions.check_predictions(predictions.parse_predictions(body, ["cat", "dog"]))
    except predictions.EndpointResponseError as error:
        return str(error)
    return "read"


def check_event(data: bytes) -> str:
    try:
        contract.validator(contract.RETRIEVE_IMAGE)(json.loads(data))
    except (contract.InvalidInputError, ValueError, RecursionError) as error:  # Step Functions' input is always JSON
        return type(error).__name__
    return "read"


ANSWERS = [b'{"predictions": [{"label": "cat", "probability": 0.9}]}', b"[0.1, 0.9]", b'[[{"label": "a", "score": 1}]]']
ANSWERS += [b'{"probabilities": [0.5, 0.5], "labels": ["a", "b"]}', b"[" * 5000, b"[1" + b"0" * 400 + b", 0]"]
EVENTS = [b'{"s3_bucket": "b", "s3_key": "k", "threshold": 0.5, "s3_version_id": "v"}', b'{"s3_bucket": 1}', b"[]"]


def mutated(data: bytes, dice: random.Random, corpus: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 8))):
        start = dice.randrange(len(changed) + 1)
        match dice.randrange(6):
            case 0 if changed:
                changed[start % len(changed)] = dice.randrange(256)
            case 1:
                changed[start : start + 4] = dice.choice(NUMBERS)
            case 2:
                del changed[start : start + dice.randrange(1, 64)]
            case 3:
                changed[start:start] = changed[start : start + dice.randrange(1, 256)] * dice.choice((1, 2, 64))
            case 4:
                other = dice.choice(corpus)
                at = dice.randrange(len(other) + 1)
                changed[start:start] = other[at : at + dice.randrange(1, 512)]
            case _ if changed:
                changed[start % len(changed)] ^= 1 << dice.randrange(8)
    return bytes(changed[:200_000])


def peak() -> int:
    """MB, of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


def checked(check: Callable[[bytes], str], data: bytes) -> str:
    """The outcome; the input is kept if it has none."""
    try:
        outcome = check(data)
        if (megabytes := peak()) > MEMORY:
            raise WrongError(f"{megabytes} MB")
        return outcome
    except BaseException:
        FOUND.mkdir(parents=True, exist_ok=True)
        path = FOUND / hashlib.sha256(data).hexdigest()[:16]
        path.write_bytes(data)
        print(f"kept in {path}", file=sys.stderr)
        raise


def fuzz(check: Callable[[bytes], str], corpus: list[bytes], runs: int, seed: int) -> None:
    dice = random.Random(seed)
    seen: dict[str, int] = {}
    for data in corpus[:]:
        checked(check, data)
    for _ in range(runs):
        data = mutated(dice.choice(corpus), dice, corpus)
        outcome = checked(check, data)
        kind = "".join(letter for letter in outcome if not letter.isdigit())
        if seen.setdefault(kind, 0) == 0:
            corpus.append(data)
        seen[kind] += 1
    print(f"{check.__name__}: {runs:,} runs, {len(seen)} kinds of outcomes, {seen.get('read', 0):,} read, {peak()} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    fuzz(check_answer, ANSWERS, options.runs, options.seed)
    fuzz(check_event, EVENTS, options.runs // 100, options.seed)
    fuzz(check_image, images(), options.runs, options.seed)


if __name__ == "__main__":
    main()
