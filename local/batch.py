"""make batch: classify the images under a prefix or in a manifest with the state machine ClassifyBatch.

make batch                                      on the local stack: the scans of digits, uploaded first
make batch PREFIX=uploads/                      what is already in the stack's bucket: a backfill
make batch PREFIX=s3://my-archive/2025/ STACK=image-classification THRESHOLD=0.9 CONCURRENCY=50
make batch MANIFEST=list.csv                    a CSV or JSON Lines file here, or s3://bucket/key, or an inventory's
make batch EXECUTION=batch-20261126-020000      come back to a batch; REDRIVE=true repeats its failed part
"""

import argparse
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from local.classify import parse_threshold
from local.command import LOCAL, StackError, UsageError, console, report_errors
from local.target import Target, target
from monitoring import outcomes

DIGITS = LOCAL / "data/digits"
ARCHIVE = "archive/digits/"  # not under UploadPrefix, where each object would start an execution
SECONDS_BETWEEN_POLLS = 1  # DescribeMapRun allows one request per second
SECONDS_BETWEEN_LINES = 10  # of progress, where the output is no terminal
SHOWN = 5
MAX_CONCURRENCY = 10_000  # Step Functions' own


def split_url(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def source(found: Target, prefix: str, manifest: str) -> dict[str, str]:
    """The part of a batch's input that names its source."""
    bucket = found.outputs["ImageBucketName"]
    if prefix and manifest:
        raise UsageError("PREFIX and MANIFEST are two sources: name one")
    if manifest:
        if not manifest.startswith("s3://"):
            return upload_manifest(found, Path(manifest))
        bucket, key = split_url(manifest)
        return {"s3_bucket": bucket, "s3_key": key}
    if prefix.startswith("s3://"):
        bucket, prefix = split_url(prefix)
    elif not prefix:
        prefix = upload_digits(found)
    return {"s3_bucket": bucket, "s3_prefix": prefix}


def upload_manifest(found: Target, path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UsageError(f"MANIFEST={path} is neither a file nor an s3:// URL")
    bucket, key = found.outputs["ImageBucketName"], f"manifests/{path.name}"
    found.client("s3").upload_file(str(path), bucket, key)
    return {"s3_bucket": bucket, "s3_key": key}


def upload_digits(found: Target) -> str:
    """Upload the scans of digits to the local stack; returns their prefix."""
    if not found.local:
        raise UsageError("Name the images: PREFIX=archive/, PREFIX=s3://bucket/prefix/ or MANIFEST=list.csv")
    s3, bucket = found.client("s3"), found.outputs["ImageBucketName"]
    paths = sorted(DIGITS.glob("*/*/*.png"))

    def upload(path: Path) -> None:
        s3.put_object(Bucket=bucket, Key=f"{ARCHIVE}{path.relative_to(DIGITS)}", Body=path.read_bytes())

    with console.status(f"Uploading {len(paths):,} scans of digits ..."), ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, paths))
    console.print(f"Uploaded {len(paths):,} scans of digits under s3://{bucket}/{ARCHIVE}", soft_wrap=True)
    return ARCHIVE


def limits(threshold: str, concurrency: str) -> dict[str, float]:
    """The options of the input that are given. Raises UsageError."""
    given: dict[str, float] = {}
    if (value := parse_threshold(threshold)) is not None:
        given["threshold"] = value
    if concurrency:
        if not re.fullmatch("[0-9]{1,5}", concurrency) or not 1 <= int(concurrency) <= MAX_CONCURRENCY:
            raise UsageError(f"CONCURRENCY={concurrency} is not a number of batches, 1 to {MAX_CONCURRENCY:,}")
        given["max_concurrency"] = int(concurrency)
    return given


def start(found: Target, request: dict[str, Any]) -> str:
    """Start the execution; returns its ARN."""
    started = found.client("stepfunctions").start_execution(
        stateMachineArn=found.outputs["ClassifyBatchStateMachineArn"],
        name=f"batch-{datetime.now():%Y%m%d-%H%M%S}",
        input=json.dumps(request),
    )
    return started["executionArn"]


def arn_of(found: Target, execution: str) -> str:
    """The ARN of an execution, from its name or ARN."""
    if execution.startswith("arn:"):
        return execution
    return found.outputs["ClassifyBatchStateMachineArn"].replace(":stateMachine:", ":execution:") + f":{execution}"


def counts(states: Any, arn: str) -> dict[str, int]:
    """The numbers of images by status, of the execution's Map Run; empty before it has one."""
    runs = states.list_map_runs(executionArn=arn)["mapRuns"]
    return states.describe_map_run(mapRunArn=runs[0]["mapRunArn"])["itemCounts"] if runs else {}


def speed_of(done: int, left: int, seconds: float) -> str:
    """The mean speed, and how long the rest takes at it: batches end in steps, so the latest speed says little."""
    speed = f"{done / max(seconds, 1):,.0f} images/s"
    return f"{speed}, {timedelta(seconds=round(left * seconds / done))} left" if done else speed


def watch(found: Target, arn: str) -> dict[str, Any]:
    """Show the progress until the execution has ended; returns the response of DescribeExecution."""
    states = found.client("stepfunctions")
    columns = [TextColumn("Classifying"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}")]
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        bar = progress.add_task("", total=None, speed="")
        started = printed = time.monotonic()
        first = None
        while True:
            execution = states.describe_execution(executionArn=arn)
            items = counts(states, arn)
            done, total = items.get("succeeded", 0) + items.get("failed", 0), items.get("total", 0)
            first = done if first is None else first  # of an execution that was running before
            speed = speed_of(done - first, total - done, time.monotonic() - started)
            progress.update(bar, completed=done, total=total or None, speed=speed)
            if execution["status"] != "RUNNING":
                return execution
            if not console.is_terminal and time.monotonic() - printed > SECONDS_BETWEEN_LINES:
                printed = time.monotonic()
                console.print(f"classified {done:,} of {total:,}, {speed}")
            time.sleep(SECONDS_BETWEEN_POLLS)


def again(found: Target, arn: str) -> str:
    """The variables with which make finds this execution again."""
    return f"EXECUTION={arn.rpartition(':')[2]}" + ("" if found.local else f" STACK={found.name}")


def interrupted(found: Target, arn: str) -> None:
    """Ask whether to stop the execution or leave it, and print how to come back."""
    answer = console.input("\nStop the execution? y stops it, Enter leaves it running: ") if sys.stdin.isatty() else ""
    if answer.strip().lower().startswith("y"):
        found.client("stepfunctions").stop_execution(executionArn=arn, cause="stopped at the keyboard")
        console.print(f"Stopped. To continue where it stopped: make batch {again(found, arn)} REDRIVE=true")
    else:
        console.print(f"It continues. To come back to it: make batch {again(found, arn)}")
        if found.local:
            console.print("(If make up did not start the local stack, it ends now: make up keeps it running.)")


def show(found: Target, summary: dict[str, Any]) -> None:
    """Print the summary and a few lines of the results."""
    for name, value in summary.items():
        text = (
            json.dumps(value) if isinstance(value, dict | list) else f"{value:,}" if type(value) is int else str(value)
        )
        console.print(f"{name:19} {text}", markup=False, soft_wrap=True)
    name = summary["execution_arn"].rpartition(":")[2]
    rows = outcomes.from_batches(found.client("s3"), found.outputs["ResultsBucketName"], execution=name)
    for row in islice(rows, SHOWN):
        outcome = row["error"] or f"{row['label']}, confidence {row['confidence']:.3f}"
        console.print(f"  {row['s3_key']}: {row['outcome']}, {outcome}", markup=False, soft_wrap=True)
    seconds = summary["seconds"]
    console.print(
        f"\n{summary['images']:,} images in {seconds} s, {summary['images'] / max(seconds, 0.1):,.0f} a second"
    )
    console.print(
        f"All outcomes: make results {again(found, summary['execution_arn'])} OUTPUT=results.csv", soft_wrap=True
    )


def finish(found: Target, execution: dict[str, Any]) -> None:
    if execution["status"] == "SUCCEEDED":
        return show(found, json.loads(execution["output"]))
    arn, error = execution["executionArn"], f"{execution.get('error')}: {execution.get('cause')}"
    raise StackError(
        f"The batch {arn.rpartition(':')[2]} {execution['status']}: {error}\n"
        f"To repeat its failed part: make batch {again(found, arn)} REDRIVE=true"
    )


def run(found: Target, options: argparse.Namespace, given: dict[str, float]) -> None:
    if options.execution:
        arn = arn_of(found, options.execution)
        if options.redrive:
            found.client("stepfunctions").redrive_execution(executionArn=arn)
    else:
        request: dict[str, Any] = source(found, options.prefix, options.manifest) | given
        if options.review:
            request["review"] = True
        arn = start(found, request)
    console.print(f"Execution {arn.rpartition(':')[2]} on {found.place}")
    try:
        finish(found, watch(found, arn))
    except KeyboardInterrupt:
        interrupted(found, arn)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--manifest", default="")
    parser.add_argument("--threshold", default="")
    parser.add_argument("--concurrency", default="")
    parser.add_argument("--review", default="", help="any text: put low confidence and audits into the review table")
    parser.add_argument("--execution", default="", help="name or ARN of an execution to come back to")
    parser.add_argument("--redrive", default="", help="any text: repeat its failed part")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; by default the local stack")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with report_errors():
        given = limits(options.threshold, options.concurrency)
        with target(options.stack) as found:
            run(found, options, given)


if __name__ == "__main__":
    main()
