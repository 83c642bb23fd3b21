"""make replay THRESHOLD=t | MODEL=model [SINCE=30d IMAGES=n STACK=name]: what another threshold or model would change.

Against what was really classified: the prediction log and the batches' results. Nothing is deployed or written to AWS.

THRESHOLD=0.9           needs no images: the log has each image's label and confidence
MODEL=folder            or a model.tar.gz, its s3:// URL, or the start of its hash, as make models lists it. It
                        answers the stored images as they were classified: a random sample of IMAGES, if there are more
THRESHOLD= and MODEL=   both. With MODEL alone, each image keeps the threshold that it had

Prints how many images change hands, the load of reviews, the expected error of what is accepted, and what the reviews
cost. Writes .local/replay/report.html, with the images that change hands, and replay.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

from botocore.client import BaseClient

from endpoint import pixels
from functions.shrink import MAX_IMAGE_BYTES, MAX_SIDE, shrink
from local.accuracy import reviews_since, thumbnail
from local.classify import parse_threshold
from local.command import LOCAL, ROOT, StackError, UsageError, console, examples, report_errors, step
from local.progress import in_parallel
from local.registry import download, find, split
from local.report import replay as report
from local.results import start_of
from local.target import Target, target
from monitoring import outcomes, replay
from monitoring.accuracy import is_usable
from monitoring.replay import Answer, Answers, History, Image, Policy
from review.images import ImageAccessDeniedError, ImageDeletedError, ImageError, ImageReplacedError, get_version
from review.table import ReviewTable

IMAGES = 1000  # answered by a model, if there are more
READERS = 8  # images read from S3 at a time
SECONDS_PER_REVIEW = 10.0  # of a person's time
MISSING = {
    ImageDeletedError: "deleted",
    ImageReplacedError: "uploaded again",
    ImageAccessDeniedError: "not readable with these credentials",
}


class UnusableModelError(StackError):
    """The model cannot be loaded, or the process that runs it ended; the message says why."""


class Answerer:
    """A model in a process of training/answers.py, which loads it as compare.py does."""

    def __init__(self, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        self.process, self.errors, self.lock = process, errors, threading.Lock()
        self.about: dict[str, Any] = json.loads(self.read())

    def answer(self, path: Path) -> Answer | str:
        """The answer to an image, or why it has none. Threads take turns. Raises UnusableModelError."""
        assert self.process.stdin
        with self.lock:
            with suppress(BrokenPipeError):  # read() says why
                print(json.dumps(str(path)), file=self.process.stdin, flush=True)
            found = json.loads(self.read())
        return found["error"] if "error" in found else Answer(**found)

    def read(self) -> str:
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return line
        self.process.wait()
        self.errors.seek(0)
        reason = self.errors.read().strip().splitlines() or ["its process ended"]
        raise UnusableModelError(f"MODEL: {reason[-1]}")


@contextmanager
def answerer(model: Path) -> Iterator[Answerer]:
    command = [sys.executable, str(ROOT / "training/answers.py"), str(model)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=errors, text=True) as process,
    ):
        try:
            yield Answerer(process, errors)
        finally:
            process.kill()


@contextmanager
def local_model(stack: Target, model: str) -> Iterator[tuple[Path, str]]:
    """The model as a folder or file of this machine, and its name. Raises StackError."""
    if Path(model).exists():
        yield Path(model), model
        return
    s3, url = stack.client("s3"), model
    if re.fullmatch("(?i)[0-9a-f]{4,64}", model):
        try:
            bucket, prefix, _ = split(stack.parameter("ModelDataUrl"))
        except StackError as error:
            raise UsageError(f"MODEL={model} cannot be looked up: {error}; or give a folder or an s3:// URL") from None
        url = find(s3, bucket, prefix, model).url
    elif not model.startswith("s3://"):
        raise UsageError(f"MODEL={model} is no folder or file, no s3:// URL and no start of a hash (at least 4 digits)")
    with tempfile.TemporaryDirectory() as folder:
        yield download(s3, url, Path(folder) / "model.tar.gz"), url


def as_sent(data: bytes) -> bytes:
    """The bytes that RetrieveImage sends to the endpoint. Raises UnsupportedImageError."""
    if len(data) <= MAX_IMAGE_BYTES:
        return data
    return shrink(*pixels.read(data, (MAX_SIDE, MAX_SIDE)))[0]


def answers_of(
    model: Answerer, s3: BaseClient, past: History, numbers: list[int]
) -> tuple[dict[int, Answer], dict[str, list[str]]]:
    """The model's answers to these images, and by reason the images that have none."""
    found: dict[int, Answer] = {}
    missing: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def ask(number: int) -> Answer | str:
            image, path = past.images[number], Path(folder) / f"{number}"
            try:
                response = get_version(s3, image.s3_bucket, image.s3_key, image.s3_version_id, image.version)
                path.write_bytes(as_sent(response["Body"].read()))
                answer = model.answer(path)
                path.unlink()
                return answer if isinstance(answer, Answer) else "unreadable"
            except ImageError as error:
                return MISSING[type(error)]
            except pixels.UnsupportedImageError:
                return "unreadable"

        asked = in_parallel("Asking the model", ask, numbers, len(numbers), READERS)
        for number, answer in zip(numbers, asked, strict=True):
            if isinstance(answer, Answer):
                found[number] = answer
            else:
                missing.setdefault(answer, []).append(past.images[number].image)
    return found, missing


def check_labels(past: History, labels: list[str], model: str) -> dict[str, int]:
    """The labels of the log that the model does not know, with their images. Raises StackError if it knows none."""
    counts = Counter(image.label for image in past.images)
    unknown = {label: count for label, count in counts.most_common() if label not in labels}
    if len(unknown) == len(counts):
        raise StackError(
            f"MODEL={model} knows none of the labels in the log: it knows {examples(labels)}, the log has "
            f"{examples(list(counts))}"
        )
    return unknown


def read_history(stack: Target, since: datetime | None) -> History:
    """Raises StackError if nothing was classified."""
    logs, s3 = stack.client("logs"), stack.client("s3")
    with step("Reading what was classified"):
        single = outcomes.executions_lines(logs, stack.outputs["PredictionLogGroupName"], since, replay.FIELDS)
        batches = outcomes.batches_lines(s3, stack.outputs["ResultsBucketName"], since)
        past = replay.history(single, batches)
    if not past.images:
        failed = f"; {past.errors.total():,} ended with an error" if past.errors else ""
        when = f" since {since:%Y-%m-%d %H:%M}" if since else ""
        raise StackError(f"No image was classified in {stack.place}{when}{failed}: nothing can be replayed")
    return past


def replayed(
    stack: Target, past: History, items: list[dict[str, Any]], policy: Policy, options: argparse.Namespace
) -> tuple[dict[str, Any], Answers]:
    """What replay.json says, and the answers that were replayed."""
    if not options.model:
        answers = replay.logged(past)
        return replay.figures(past, answers, policy, items) | {"model": None}, answers
    readable = [number for number, image in enumerate(past.images) if image.version]
    sample = replay.draw(readable, options.images, options.seed)
    decided = [number for number, item in replay.indexed(past, items).items() if is_usable(item)]
    asked = sorted({*sample, *replay.draw(decided, options.images, options.seed)})
    with local_model(stack, options.model) as (path, name), answerer(path) as model:
        unknown = check_labels(past, model.about["labels"], options.model)
        found, missing = answers_of(model, stack.client("s3"), past, asked)
    if not found:
        reasons = ", ".join(f"{len(images):,} {why}" for why, images in missing.items())
        raise StackError(f"No stored image could be read to ask the model: {reasons or 'the log has no versions'}")
    policy = Policy(**vars(policy) | {"sample": sample})
    about = {**model.about, "path": name, "unknown_labels": unknown, "asked": len(asked), "missing": missing}
    return replay.figures(past, found, policy, items) | {"model": about, "seed": options.seed}, found


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threshold", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--since", default="", help="a duration (30m, 12h, 7d, 2w) or a date; all images without it")
    parser.add_argument("--images", default="", help=f"that the model answers, if there are more [{IMAGES}]")
    parser.add_argument("--seconds-per-review", default="", help=f"of a person's time [{SECONDS_PER_REVIEW:g}]")
    parser.add_argument("--seed", type=int, default=0, help="of the sample [%(default)s]")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; by default the local stack")
    parser.add_argument("--output", type=Path, default=LOCAL / "replay")
    return parser.parse_args(argv)


def positive(name: str, text: str, default: float) -> float:
    """Raises UsageError."""
    try:
        if (number := float(text or default)) > 0 and number < float("inf"):
            return number
    except ValueError:
        pass
    raise UsageError(f"{name}={text} is not a number above 0")


def check(options: argparse.Namespace) -> None:
    """Turn the options' texts into values. Raises UsageError."""
    if not options.threshold and not options.model:
        raise UsageError("What is to be replayed? make replay THRESHOLD=0.9, or MODEL=folder, s3:// URL or hash")
    options.threshold = parse_threshold(options.threshold)
    options.images = int(positive("IMAGES", options.images, IMAGES)) or 1
    options.seconds = positive("SECONDS_PER_REVIEW", options.seconds_per_review, SECONDS_PER_REVIEW)
    options.since = start_of(options.since)


def run(stack: Target, options: argparse.Namespace) -> tuple[dict[str, Any], list[report.Picture]]:
    """What replay.json says, and the images that change hands, with thumbnails. Raises StackError."""
    started = time.monotonic()
    if "ReviewTableName" not in stack.outputs:
        raise StackError(f"There is no review table in {stack.place}: deploy the current template first")
    past = read_history(stack, options.since)
    table = ReviewTable(stack.client("dynamodb"), stack.outputs["ReviewTableName"])
    items = [vars(review) for review in reviews_since(table, None)]
    present, rate = (float(stack.parameter(name)) for name in ("Threshold", "AuditRate"))
    policy = Policy(options.threshold, present, rate, options.seconds)
    made, answers = replayed(stack, past, items, policy, options)
    reviews, s3 = replay.indexed(past, items), stack.client("s3")
    shown = [
        report.Picture(
            move, past.images[number], answers[number], reviews.get(number), thumbnail_of(s3, past.images[number])
        )
        for move, numbers in replay.changed(past, answers, options.threshold).items()
        for number in numbers[: report.SHOWN]
    ]
    about = {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "stack": stack.place,
        "since": options.since.isoformat(timespec="seconds") if options.since else None,
    }
    bill = {"classification_usd_a_month": replay.classification_usd(past)}
    return about | made | bill | {"seconds": time.monotonic() - started}, shown


def thumbnail_of(s3: BaseClient, image: Image) -> str | None:
    return thumbnail(s3, image) if image.version else None


def main() -> None:
    options = parse_options()
    with report_errors():
        check(options)
        with target(options.stack, share=True) as stack:
            made, pictures = run(stack, options)
        options.output.mkdir(parents=True, exist_ok=True)
        page, data = options.output / "report.html", options.output / "replay.json"
        page.write_text(report.render(made, pictures), encoding="utf-8", errors="backslashreplace")
        data.write_text(json.dumps(made, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        report.show(made)
        console.print(f"Wrote {os.path.relpath(page)} and {os.path.relpath(data)}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
