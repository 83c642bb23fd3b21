"""make run: classify real images with the whole workflow on this machine.

Starts the local stack unless `make up` has, uploads images so that the upload trigger starts an execution for each,
prints the outcome of each image, writes .local/run.json and .local/report.html, and stops the stack if it started it.
"""

import base64
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from local.command import LOCAL, ROOT, StackError, console, lock, report_errors
from local.deployment import deployed
from local.emulator.processes import Stack, running
from local.executions import NOT_ACCEPTED, Outcome, Watch, error_message
from local.report import record, render
from training.folders import Classes, DataError, list_images

MODEL, DIGITS = LOCAL / "model", LOCAL / "data/digits"
PER_CLASS = 2  # test images of each class
AT_MOST_RANKED = 1000  # validation images, evenly chosen
BATCH_IMAGES, BATCH_BYTES = 256, 2_500_000  # of a request: base64 adds a third, and 4 MiB are allowed
AMBIGUOUS, WELL_BELOW = 4, 0.70  # at most 4 validation images with a confidence well below the threshold
NOT_AN_IMAGE = b"This is a text file. Its name says that it is an image.\n"
CONCURRENT = 4  # images: each cold start launches three functions, and a laptop has few cores
SECONDS_FOR_AN_IMAGE = 120
VERDICTS = {None: ("accepted", "green"), NOT_ACCEPTED: ("review", "yellow")}


def load_folders(model: Path) -> dict[str, Path]:
    """The folders that the model was trained on, by part, as far as they still have its labels. Raises StackError.

    A model that was trained elsewhere, such as on SageMaker, goes with the digits if it has their labels.
    """
    labels = json.loads((model / "metadata.json").read_text())["labels"]
    digits = {part: DIGITS / part for part in ("train", "validation", "test")}
    own = model / "data.json"
    paths = {part: Path(path) for part, path in json.loads(own.read_text()).items()} if own.exists() else digits
    folders = fitting(paths, labels) or fitting(digits, labels)
    if not folders:
        raise StackError(
            f"The model in {model.relative_to(ROOT)} knows {summary(labels)}, but {paths['train']} has no images of "
            "these classes, so make run has none to classify. make classify IMAGE=path classifies a single image; "
            "make train trains a model of the digits and keeps this one."
        )
    part = next(part for part in ("test", "validation", "train") if part in folders)
    trained = ", on which it was trained" if part == "train" else ""
    console.print(f"The model in {model.relative_to(ROOT)} knows {summary(labels)}.", markup=False)
    console.print(f"The images are from {folders[part]}{trained}.", markup=False)
    return folders


def fitting(paths: dict[str, Path], labels: list[str]) -> dict[str, Path]:
    """Those of the folders that have images of these classes only."""
    return {part: path for part, path in paths.items() if (found := images_in(path)) and found.keys() <= set(labels)}


def images_in(folder: Path) -> Classes:
    """The files of each class, as training finds them; none if the folder has no classes."""
    try:
        return list_images(folder, min_classes=1)
    except DataError:
        return {}


def key_of(part: str, label: str, path: Path) -> str:
    """The key under which an image is uploaded, with escapes for what is not UTF-8 in its file's name."""
    return f"{part}/{label}/{path.name}".encode(errors="backslashreplace").decode()


def summary(labels: list[str]) -> str:
    """The labels: all of up to ten, else the first ten and their number."""
    return ", ".join(labels[:10]) + (f" ... ({len(labels)} labels)" if len(labels) > 10 else "")


def test_images(folders: dict[str, Path]) -> dict[str, bytes]:
    """The first images of each class: of the test folder if there is one, which training has not seen."""
    found = images_in(folders.get("test") or folders.get("validation") or folders["train"])
    return {
        key_of("test", label, path): path.read_bytes() for label, paths in found.items() for path in paths[:PER_CLASS]
    }


def batches(paths: list[Path]) -> Iterator[list[Path]]:
    """The files in batches for requests of the endpoint; a file too large for any request is left out."""
    batch: list[Path] = []
    for path in (path for path in paths if path.stat().st_size <= BATCH_BYTES):
        if batch and (len(batch) == BATCH_IMAGES or sum(each.stat().st_size for each in [*batch, path]) > BATCH_BYTES):
            yield batch
            batch = []
        batch.append(path)
    if batch:
        yield batch


def ambiguous_images(stack: Stack, endpoint: str, folders: dict[str, Path]) -> dict[str, bytes]:
    """The validation images for which the endpoint is least confident."""
    if "validation" not in folders:
        return {}
    labels = {path: label for label, paths in images_in(folders["validation"]).items() for path in paths}
    paths = list(labels)
    runtime, confidences = stack.client("sagemaker-runtime"), {}
    for batch in batches(paths[:: len(paths) // AT_MOST_RANKED + 1]):
        body = "".join(json.dumps(base64.b64encode(path.read_bytes()).decode()) + "\n" for path in batch).encode()
        response = runtime.invoke_endpoint(EndpointName=endpoint, Body=body, ContentType="application/jsonlines")
        for path, line in zip(batch, response["Body"].read().splitlines(), strict=True):
            if predictions := json.loads(line).get("predictions"):  # none for an unreadable file
                confidences[path] = predictions[0]["probability"]
    lowest = sorted((confidence, path) for path, confidence in confidences.items())[:AMBIGUOUS]
    chosen = [path for confidence, path in lowest if confidence < WELL_BELOW]
    return {key_of("ambiguous", labels[path], path): path.read_bytes() for path in chosen}


def classify_all(stack: Stack, outputs: dict[str, str], run: str, images: dict[str, bytes]) -> list[Outcome]:
    """Upload the images (their keys begin with `run`), a few at a time, and wait for the executions they start."""
    s3 = stack.client("s3")
    watch = Watch(stack.client("stepfunctions"), outputs["ClassifyImageStateMachineArn"], run)
    waiting = list(images.items())
    started: dict[str, float] = {}
    outcomes: dict[str, Outcome] = {}
    columns = [TextColumn("Classifying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(waiting))
        while len(outcomes) < len(images):
            while waiting and len(started) - len(outcomes) < CONCURRENT:
                key, data = waiting.pop(0)
                started[key] = time.monotonic()
                s3.put_object(Bucket=outputs["ImageBucketName"], Key=key, Body=data)
            for outcome in watch.ended():
                outcomes[outcome.key] = outcome
                progress.advance(bar)
                if not console.is_terminal and len(outcomes) % 5 == 0:
                    console.print(f"classified {len(outcomes)} of {len(images)}")
            for key in started.keys() - outcomes.keys():
                if time.monotonic() - started[key] > SECONDS_FOR_AN_IMAGE:
                    outcomes[key] = Outcome(key, "FAILED", None, None, None, "ExecutionNotFinished", None)
            time.sleep(0.1)
    return [outcomes[key] for key in started]


def show(outcomes: list[Outcome]) -> None:
    """Print the table of outcomes."""
    prefix = os.path.commonpath([row.key for row in outcomes]) + "/"
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"Uploaded under {prefix}", title_justify="left")
    for name in ("key", "outcome", "label", "confidence", "time", "error"):
        number = name in ("confidence", "time")
        table.add_column(name, justify="right" if number else "left", no_wrap=name != "error", overflow="fold")
    for row in outcomes:
        verdict, colour = VERDICTS.get(row.error, ("failed", "red"))
        table.add_row(
            escape(row.key.removeprefix(prefix)),
            f"[{colour}]{verdict}[/]",
            escape(row.label or ""),
            "" if row.confidence is None else f"{row.confidence:.3f}",
            "" if row.seconds is None else f"{row.seconds:.2f} s",
            row.error or "",
        )
    console.print(table)


def summarise(outcomes: list[Outcome], is_kept: bool) -> None:
    """Print the totals; StackError if an image failed that should not have.

    is_kept: the local stack keeps running, and has the images that were sent to review.
    """
    accepted = [row for row in outcomes if row.error is None]
    review = [row for row in outcomes if row.error == NOT_ACCEPTED]
    failed = [row for row in outcomes if row not in accepted and row not in review]
    correct = sum(row.key.split("/")[-2] == row.label for row in accepted)
    console.print(f"\n{len(accepted)} accepted ({correct} correct), {len(review)} sent to review, {len(failed)} failed")
    for row in failed:
        console.print(f"  {row.error}: {error_message(row)}", markup=False, soft_wrap=True)
    console.print(f"Wrote {render.RECORD.relative_to(ROOT)} and {render.REPORT.relative_to(ROOT)}")
    if review:
        console.print(f"To review the {len(review)}: {'' if is_kept else 'make up, make run, '}make review")
    if unexpected := [row for row in failed if row.error != "UnsupportedImageError"]:
        raise StackError(f"{len(unexpected)} images failed for technical reasons: see the errors above")


def main() -> None:
    with report_errors(), lock():
        folders = load_folders(MODEL)
        with deployed(redeploy=True) as (stack, outputs):
            images = test_images(folders) | ambiguous_images(stack, outputs["EndpointName"], folders)
            images["not-an-image.png"] = NOT_AN_IMAGE
            since = datetime.now(UTC)
            run = f"{outputs['UploadPrefix']}{datetime.now():%Y%m%d-%H%M%S}/"
            images = {run + name: data for name, data in images.items()}
            outcomes = classify_all(stack, outputs, run, images)
            collected = record.collect(stack, outputs, outcomes, images, since)
        show(outcomes)
        render.write(collected)
        summarise(outcomes, is_kept=running(LOCAL / "stack") is not None)


if __name__ == "__main__":
    main()
