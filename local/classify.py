"""make classify IMAGE=path [THRESHOLD=t]: classify an image of your own with the local stack's workflow."""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from local.command import StackError, console, lock, report_errors
from local.deployment import deployed
from local.emulator.processes import Stack
from local.executions import error_message, finished

SECONDS_TO_CLASSIFY = 120


def classify(stack: Stack, outputs: dict[str, str], image: Path, threshold: float | None) -> None:
    """Upload the image outside the trigger's prefix, start an execution for it and print the result."""
    key = f"classify/{image.name}"
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
        raise StackError(f"{outcome.error}: {error_message(outcome)}")
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
    """StackError if this is no file that can be read and uploaded."""
    try:
        if not image.is_file():
            raise StackError(f"{image if image.name else 'IMAGE'} is not a file: make classify IMAGE=path/to/image.jpg")
        image.open("rb").close()
        image.name.encode()
    except OSError as error:
        raise StackError(f"{image} cannot be read: {error.strerror}") from None
    except UnicodeEncodeError:
        raise StackError(f"{image}: rename the file, its name is not valid UTF-8") from None


def threshold_in(text: str) -> float | None:
    """The threshold of an execution; None if the text is empty. Raises StackError."""
    try:
        threshold = float(text) if text else None
    except ValueError:
        threshold = math.nan
    if threshold is not None and not 0 < threshold <= 1:  # as NaN
        raise StackError(f"THRESHOLD={text} is not a number above 0 and at most 1")
    return threshold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--threshold", default="")
    options = parser.parse_args()
    with report_errors(), lock():
        check(options.image)
        threshold = threshold_in(options.threshold)
        with deployed() as (stack, outputs):
            classify(stack, outputs, options.image, threshold)


if __name__ == "__main__":
    main()
