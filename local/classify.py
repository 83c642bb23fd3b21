"""make classify IMAGE=path [THRESHOLD=t]: classify an image of your own with the local stack's workflow."""

import argparse
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from local.command import StackError, UsageError, console, report_errors
from local.deployment import shared
from local.emulator.processes import Stack
from local.executions import error_message, finished

SECONDS_TO_CLASSIFY = 120


def classify(stack: Stack, outputs: dict[str, str], image: Path, threshold: float | None) -> None:
    """Upload the image outside the trigger's prefix, start an execution for it and print the result."""
    key = f"classify/{uuid.uuid4().hex[:8]}/{image.name}"
    stack.client("s3").upload_file(str(image), outputs["ImageBucketName"], key)
    request: dict[str, Any] = {"s3_bucket": outputs["ImageBucketName"], "s3_key": key}
    if threshold is not None:
        request["threshold"] = threshold
    states = stack.client("stepfunctions")
    machine = outputs["ClassifyImageStateMachineArn"]
    started = states.start_execution(stateMachineArn=machine, input=json.dumps(request))
    try:
        outcome = finished(states, started["executionArn"], time.monotonic() + SECONDS_TO_CLASSIFY)
    except TimeoutError as error:
        raise StackError(f"{error}: the endpoint may not respond. The workflow retries it for 25 minutes.") from None
    if not outcome.result:
        console.print(f"{outcome.error}: {error_message(outcome)}", markup=False, soft_wrap=True)
        sys.exit(1)
    result = outcome.result
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("label")
    table.add_column("probability", justify="right")
    for prediction in result["predictions"][:5]:
        table.add_row(escape(prediction["label"]), f"{prediction['probability']:.3f}")
    console.print(table)
    verdict = "accepted" if result["accepted"] else f"sent to review ({outcome.error})"
    decision = f"{result['label']}, confidence {result['confidence']:.3f}, threshold {result['threshold']}"
    console.print(f"\n{decision}: {verdict} in {outcome.seconds:.2f} s", markup=False)


def check(image: Path) -> None:
    """UsageError if this is no file that can be read and uploaded."""
    try:
        if not image.is_file():
            raise UsageError(f"{image} is not a file: make classify IMAGE=path/to/image.jpg")
        image.open("rb").close()
        image.name.encode()
    except OSError as error:
        raise UsageError(f"{image} cannot be read: {error.strerror}") from None
    except UnicodeEncodeError:
        raise UsageError(f"{image}: rename the file, its name is not valid UTF-8") from None


def parse_threshold(text: str) -> float | None:
    """The threshold, or None if the text is empty. Raises UsageError."""
    try:
        threshold = float(text) if text else None
    except ValueError:
        raise UsageError(f"THRESHOLD={text} is not a number: use one above 0 and at most 1") from None
    if threshold is not None and not 0 < threshold <= 1:
        raise UsageError(f"THRESHOLD={text} is out of range: use a number above 0 and at most 1")
    return threshold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--threshold", default="")
    options = parser.parse_args()
    with report_errors():
        if not options.image:
            raise UsageError("Which image? make classify IMAGE=path/to/image.jpg")
        check(image := Path(options.image))
        threshold = parse_threshold(options.threshold)
        with shared() as (stack, outputs):
            classify(stack, outputs, image, threshold)


if __name__ == "__main__":
    main()
