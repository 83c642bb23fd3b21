"""make evaluate DIR=folder/of/classes [ENDPOINT=1] [STACK=name]: how good the deployed model is on labelled images.

DIR has one folder per class, named after its label. Each image goes through the whole workflow, as an execution of its
own, or with ENDPOINT=1 to the endpoint alone. Prints the accuracy and what the stack's threshold accepts, and writes
.local/evaluation/report.html (confusion, thresholds, the worst mistakes) and results.csv, one line per image.
"""

import argparse
import csv
import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from local.command import LOCAL, StackError, console, report_errors
from local.executions import Outcome, error_message, finished
from local.progress import in_parallel
from local.report import evaluation
from local.report.evaluation import Row
from local.target import Target, target
from training.folders import DataError, list_images

# At once. A laptop has few cores; on AWS, Step Functions answers 15 DescribeExecution calls a second.
CONCURRENT_LOCALLY, CONCURRENT = 4, 10
SECONDS_BETWEEN_POLLS = 1.0  # on AWS
SECONDS_FOR_AN_IMAGE = 600  # throttled executions wait and retry

Classify = Callable[[Path], dict[str, Any]]


def labelled_images(folder: Path) -> list[tuple[Path, str]]:
    """The images in the folders of `folder`, with their folder's name as label: those that training would find."""
    try:
        classes = list_images(folder, min_classes=1)
    except DataError as error:
        raise StackError(f"DIR: {error}. make evaluate DIR=folder/with/one/folder/per/class") from None
    return [(path, label) for label, paths in classes.items() for path in paths]


def through_the_workflow(stack: Target, folder: Path) -> Classify:
    """A function that uploads an image outside the trigger's prefix and waits for its execution."""
    s3, states = stack.client("s3"), stack.client("stepfunctions")
    bucket, machine = stack.outputs["ImageBucketName"], stack.outputs["ClassifyImageStateMachineArn"]
    prefix = f"evaluation/{datetime.now():%Y%m%d-%H%M%S}/"
    interval = 0.1 if stack.local else SECONDS_BETWEEN_POLLS
    console.print(
        f"The images stay under s3://{bucket}/{prefix}. Their executions count in the metrics and the prediction log, "
        "and those below the threshold are put up for review; ENDPOINT=1 does none of this.",
        markup=False,
    )

    def classify(path: Path) -> dict[str, Any]:
        name = path.relative_to(folder).as_posix().encode(errors="backslashreplace").decode()  # not all are UTF-8
        key = prefix + name
        s3.upload_file(str(path), bucket, key)
        request = {"s3_bucket": bucket, "s3_key": key}
        arn = states.start_execution(stateMachineArn=machine, input=json.dumps(request))["executionArn"]
        try:
            ended = finished(states, arn, time.monotonic() + SECONDS_FOR_AN_IMAGE, interval)
        except TimeoutError:
            ended = Outcome(key, "FAILED", None, None, None, "ExecutionNotFinished", arn)
        if ended.result:
            return {"predictions": ended.result["predictions"]}
        return {"error": ended.error, "cause": error_message(ended)}

    return classify


def by_the_endpoint(stack: Target) -> Classify:
    """A function that sends an image to the endpoint; its response must be in the format of endpoint/inference.py."""
    if "EndpointName" not in stack.outputs:
        raise StackError(f"There is no endpoint in {stack.place}: deploy it with another EndpointType")
    runtime = stack.client("sagemaker-runtime")
    request = {"EndpointName": stack.outputs["EndpointName"], "ContentType": "application/octet-stream"}

    def classify(path: Path) -> dict[str, Any]:
        try:
            response = runtime.invoke_endpoint(**request, Body=path.read_bytes())
        except ClientError as error:
            if error.response["Error"]["Code"] != "ModelError":
                raise
            return {"error": "ModelError", "cause": model_error(error)}
        body = json.loads(response["Body"].read())
        if not isinstance(body, dict) or not isinstance(body.get("predictions"), list):
            raise StackError("The endpoint's response is in another format than this project's: leave ENDPOINT out")
        return body

    return classify


def model_error(error: ClientError) -> str:
    """The message in a container's response, if it is in the format of endpoint/server.py; else all of it."""
    original = error.response.get("OriginalMessage") or str(error)
    try:
        return json.loads(original)["error"]["message"]
    except (ValueError, TypeError, KeyError):
        return original


def evaluate(images: list[tuple[Path, str]], classify: Classify, workers: int) -> list[Row]:
    """Classify the images, a few at a time, with progress and the time left."""

    def row(image: tuple[Path, str]) -> Row:
        path, label = image
        return Row(path, label, **classify(path))

    return list(in_parallel("Classifying", row, images, len(images), workers))


def write_csv(rows: list[Row], folder: Path, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "predicted", "confidence", "error", "cause"])
        for row in rows:
            name = row.path.relative_to(folder).as_posix()
            writer.writerow([name, row.label, row.predicted, row.confidence, row.error, row.cause])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="one folder per class, named after its label")
    parser.add_argument("--endpoint", default="", help="1: without the workflow")
    parser.add_argument("--stack", default="", help="a stack on AWS")
    parser.add_argument("--output", type=Path, default=LOCAL / "evaluation")
    options = parser.parse_args()
    with report_errors():
        images = labelled_images(options.folder)
        with target(options.stack) as stack:
            way = "the endpoint" if options.endpoint else "the workflow"
            console.print(
                f"{len(images)} images in {len({label for _, label in images})} folders, through {way} of {stack.place}"
            )
            classify = by_the_endpoint(stack) if options.endpoint else through_the_workflow(stack, options.folder)
            threshold = float(stack.parameter("Threshold"))
            rows = evaluate(images, classify, CONCURRENT_LOCALLY if stack.local else CONCURRENT)
        made = evaluation.figures(rows, threshold)
        options.output.mkdir(parents=True, exist_ok=True)
        page, table = options.output / "report.html", options.output / "results.csv"
        about = f"{options.folder}, through {way} of {stack.place}"
        html = evaluation.render(made, options.folder, about)
        page.write_text(html, encoding="utf-8", errors="backslashreplace")
        write_csv(rows, options.folder, table)
        for sentence in ["", *evaluation.sentences(made)]:
            console.print(sentence, markup=False, soft_wrap=True)
        for row in made.errors:
            name = row.path.relative_to(options.folder)
            console.print(f"  {name}: {row.error}: {row.cause}", markup=False, soft_wrap=True)
        console.print(f"Wrote {os.path.relpath(page)} and {os.path.relpath(table)}", markup=False, soft_wrap=True)
        if not made.known:
            raise StackError("No image of a class that the model knows was classified: nothing could be evaluated")


if __name__ == "__main__":
    main()
