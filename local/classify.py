"""make classify IMAGE=path [THRESHOLD=t]: a picture of your own through the workflow of the local stack."""

import argparse
import json
import time
from pathlib import Path

from rich.table import Table

from local.command import StackError, console, lock, told
from local.deployment import deployed
from local.emulator.processes import Stack
from local.executions import explanation, finished

SECONDS_TO_CLASSIFY = 120


def classify(stack: Stack, outputs: dict[str, str], image: Path, threshold: float | None) -> None:
    """Upload the picture beside the upload prefix, where nothing is triggered, and start an execution for it."""
    key = f"classify/{image.name}"
    stack.client("s3").upload_file(str(image), outputs["ImageBucketName"], key)
    request = {"s3_bucket": outputs["ImageBucketName"], "s3_key": key}
    if threshold is not None:
        request["threshold"] = threshold
    states = stack.client("stepfunctions")
    machine = outputs["ClassifyImageStateMachineArn"]
    started = states.start_execution(stateMachineArn=machine, input=json.dumps(request))
    outcome = finished(states, started["executionArn"], time.monotonic() + SECONDS_TO_CLASSIFY)
    if not outcome.result:
        raise StackError(f"{outcome.error}: {explanation(outcome)}")
    result = outcome.result
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("label")
    table.add_column("probability", justify="right")
    for prediction in result["predictions"][:5]:
        table.add_row(prediction["label"], f"{prediction['probability']:.3f}")
    console.print(table)
    verdict = "accepted" if result["accepted"] else f"sent to review ({outcome.error})"
    decision = f"{result['label']}, confidence {result['confidence']:.3f}, threshold {result['threshold']}"
    console.print(f"\n{decision}: {verdict} in {outcome.seconds:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path)
    parser.add_argument("--threshold", default="")
    options = parser.parse_args()
    with told(), lock():
        if not options.image.is_file():
            raise StackError(f"{str(options.image) or 'IMAGE'} is not a file: make classify IMAGE=path/to/picture.jpg")
        try:
            threshold = float(options.threshold) if options.threshold else None
        except ValueError:
            raise StackError(f"THRESHOLD={options.threshold} is not a number: take one above 0 and up to 1") from None
        with deployed() as (stack, outputs):
            classify(stack, outputs, options.image, threshold)


if __name__ == "__main__":
    main()
