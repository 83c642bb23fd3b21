"""Time and memory of make replay: 100,000 lines of the log, and a model's answers to 1,000 images of the local S3.

    .venv/bin/python -m benchmarks.replay

The lines have the fields of real ones, 2 % of the accepted images an audit, and the others a review. The images are the
digits of training/prepare.py, repeated. Each part runs in a process of its own, whose peak memory is printed.
"""

import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from local.command import ROOT
from local.emulator.processes import start, stop
from local.replay import answerer, answers_of
from monitoring import outcomes, prediction_log, replay

LINES, IMAGES = 100_000, 1000
MODEL = ROOT / ".local/model"
DIGITS = ROOT / ".local/data/digits/test"


def texts() -> Iterator[str]:
    chance, begin = random.Random(0), datetime(2026, 11, 1, tzinfo=UTC)
    for number in range(LINES):
        confidence = chance.betavariate(8, 1)
        time_of = begin + timedelta(seconds=20 * number)
        labels = chance.sample("0123456789", 5)
        rest = [{"label": label, "probability": (1 - confidence) / 9} for label in labels[1:]]
        line = {
            "level": "INFO", "message": prediction_log.MESSAGE, "service": "RecordOutcome",
            "timestamp": time_of.strftime("%Y-%m-%d %H:%M:%S,000+0000"), "milliseconds": 900,
            "outcome": "accepted" if confidence >= 0.75 else "review", "s3_bucket": "images",
            "s3_key": f"uploads/{number}.jpg", "s3_version_id": f"{chance.getrandbits(128):032x}",
            "execution_arn": f"arn:aws:states:us-east-1:000000000000:execution:ClassifyImage:{number}",
            "label": labels[0], "confidence": confidence, "threshold": 0.75, "trace_id": f"1-{number:032x}",
            "predictions": [{"label": labels[0], "probability": confidence}, *rest],
            "endpoint": {"name": "endpoint", "variant": "AllTraffic"},
            "image": {"content_type": "image/jpeg", "width": 640, "height": 480, "source_bytes": 50_000,
                      "resized": False},
        }  # fmt: skip
        yield json.dumps(line)


class Logs:
    """CloudWatch Logs with these lines."""

    def get_paginator(self, _: str) -> "Logs":
        return self

    def paginate(self, **_: object) -> Iterator[dict[str, list[dict[str, str]]]]:
        for text in texts():
            yield {"events": [{"message": text}]}


def threshold() -> str:
    past = replay.history(outcomes.executions_lines(Logs(), "group", fields=replay.FIELDS), [])
    chance = random.Random(1)
    items = [
        {"image": image.image, "version": image.version, "label": image.label, "status": "reviewed",
         "decision": "label", "reviewed_label": image.label if chance.random() < image.confidence else "other",
         "reason": "audit" if image.accepted else "low_confidence", "created_at": image.time,
         "selection_probability": 0.02 if image.accepted else 1}
        for image in past.images if not image.accepted or chance.random() < 0.02
    ]  # fmt: skip
    policy = replay.Policy(threshold=0.9, present=0.75, audit_rate=0.02, seconds=10)
    made = replay.figures(past, replay.logged(past), policy, items)
    return f"{made['images']:,} lines, {len(items):,} reviews"


def model() -> str:
    with tempfile.TemporaryDirectory() as folder:
        stack = start(Path(folder))
        try:
            s3, files = stack.client("s3"), sorted(DIGITS.glob("*/*.png"))
            s3.create_bucket(Bucket="images")
            s3.put_bucket_versioning(Bucket="images", VersioningConfiguration={"Status": "Enabled"})
            images = []
            for number in range(IMAGES):
                data = files[number % len(files)].read_bytes()
                version = s3.put_object(Bucket="images", Key=f"{number}", Body=data)["VersionId"]
                line = {"s3_bucket": "images", "s3_key": f"{number}", "s3_version_id": version, "label": "0",
                        "confidence": 1.0, "threshold": 0.75, "outcome": "accepted", "time": ""}  # fmt: skip
                images.append(replay.image_of(line, in_batch=False))
            past = replay.History(images, 0, replay.Counter())
            started = time.monotonic()
            with answerer(MODEL) as process:
                found, missing = answers_of(process, s3, past, list(range(IMAGES)))
            return f"{len(found):,} answers, {len(missing)} missing, {time.monotonic() - started:.1f} s of it asking"
        finally:
            stop(stack)


def measured(part: Callable[[], str]) -> None:
    started = time.monotonic()
    done = part()
    seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{part.__name__}: {done}: {seconds:.1f} s, {cpu:.1f} s of CPU, peak {peak:.0f} MB", flush=True)


if __name__ == "__main__":
    for each in (threshold, model):
        process = multiprocessing.get_context("spawn").Process(target=measured, args=(each,))
        process.start()
        process.join()
