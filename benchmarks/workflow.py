"""make bench: where an execution spends its time, and a handler's overhead over bare boto3. Results: README.md here.

Runs on the local stack: the ratios describe the code; the milliseconds are those of the emulator and this machine, not
of AWS. BASELINE=FOLDER make bench also measures an older build: a copy of .local/sam/build/CheckConfidenceFunction.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from local.command import LOCAL, ROOT, lock, report_errors
from local.deployment import deployed
from local.emulator.processes import Stack, clean_environment
from local.executions import finished

EXECUTIONS = 40
PROCESSES, CALLS = 9, 60
STATES = ("retrieve_image", "classify_image", "check_confidence")
BUILT = LOCAL / "sam/build/CheckConfidenceFunction"  # of all functions: tools/share.py
BARE = ROOT / "benchmarks/bare"


def milliseconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() * 1000


def split(history: list[dict[str, Any]], endpoint_ms: float) -> dict[str, float]:
    """Milliseconds of an execution by place: the three functions without the endpoint, the endpoint, the engine."""
    total = milliseconds(history[0]["timestamp"], history[-1]["timestamp"])
    functions, scheduled = 0.0, None
    for event in history:
        if event["type"] == "TaskScheduled":
            is_lambda = "lambda" in event["taskScheduledEventDetails"]["resource"]
            scheduled = event["timestamp"] if is_lambda else None
        elif event["type"] == "TaskSucceeded" and scheduled:
            functions += milliseconds(scheduled, event["timestamp"])
    return {"lambda": functions - endpoint_ms, "endpoint": endpoint_ms, "engine": total - functions, "total": total}


def executions(stack: Stack, outputs: dict[str, str], request: dict[str, str]) -> dict[str, float]:
    """Medians over sequential warm executions."""
    states, logs = stack.client("stepfunctions"), stack.client("logs")
    arns = []
    for _ in range(EXECUTIONS + 3):  # the first ones are cold starts
        response = states.start_execution(
            stateMachineArn=outputs["ClassifyImageStateMachineArn"], input=json.dumps(request)
        )
        arns.append(finished(states, response["executionArn"], time.monotonic() + 60).execution_arn)
    group = stack.client("lambda").get_function(FunctionName=outputs["ClassifyImageFunctionName"])["Configuration"]
    pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group["LoggingConfig"]["LogGroup"])
    lines = [
        json.loads(event["message"]) for page in pages for event in page["events"] if "endpoint_ms" in event["message"]
    ]
    endpoint_ms = statistics.median(line["endpoint_ms"] for line in lines[-EXECUTIONS:])
    splits = [split(states.get_execution_history(executionArn=arn)["events"], endpoint_ms) for arn in arns[3:]]
    return {name: statistics.median(row[name] for row in splits) for name in splits[0]}


def handlers(stack: Stack, outputs: dict[str, str], events: dict[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    """(function, figure, {package: median}); the packages are measured alternately, each in a new process."""
    name = outputs["RecordOutcomeFunctionName"]  # its variables are those of all functions
    recording = stack.client("lambda").get_function_configuration(FunctionName=name)
    environment = clean_environment() | stack.aws_variables | recording["Environment"]["Variables"] | {
        "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{stack.ports['xray']}",
        "AWS_XRAY_CONTEXT_MISSING": "IGNORE_ERROR",
        "LAMBDA_TASK_ROOT": str(BUILT),
        "_X_AMZN_TRACE_ID": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
    }  # fmt: skip
    packages = {"ours": BUILT, "bare": BARE}
    if baseline := os.environ.get("BASELINE"):
        packages["baseline"] = Path(baseline).resolve()

    def measure(folder: Path, function: str) -> dict[str, float]:
        command: list[str | Path] = [LOCAL / "venvs/lambda/bin/python", "benchmarks/handler.py", folder, function]
        command += [json.dumps(events[function]), str(CALLS)]
        result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr)
        return json.loads(result.stdout)

    rows = []
    for function in events:
        measured: dict[str, list[dict[str, float]]] = {
            name: [] for name, folder in packages.items() if (folder / f"{function}.py").exists()
        }
        for _ in range(PROCESSES):
            for name, figures in measured.items():
                figures.append(measure(packages[name], function))
        for figure in ("import", "first", "cold", "warm"):
            medians = {name: statistics.median(each[figure] for each in figures) for name, figures in measured.items()}
            rows.append((function, figure, medians))
    return rows


def main() -> None:
    with report_errors(), lock(), deployed(redeploy=True) as (stack, outputs):
        key = "benchmark/seven.png"
        data = sorted((LOCAL / "data/digits/test/7").iterdir())[0].read_bytes()
        stack.client("s3").put_object(Bucket=outputs["ImageBucketName"], Key=key, Body=data)
        request = {"s3_bucket": outputs["ImageBucketName"], "s3_key": key}
        events = {name: json.loads((ROOT / f"events/{name}.json").read_text()) for name in (*STATES, "record_outcome")}
        print(f"{platform.machine()}, Python {platform.python_version()}, medians\n")
        print(f"one warm execution, ms: median of {EXECUTIONS}")
        for name, value in executions(stack, outputs, request).items():
            print(f"  {name:9} {value:8.1f}")
        print(
            f"\nhandlers, ms: {PROCESSES} processes each, alternating; warm is the median of {CALLS} calls; (ours / it)"
        )
        for function, figure, medians in handlers(stack, outputs, events | {"retrieve_image": request}):
            figures = [f"{name} {value:7.2f} ({medians['ours'] / value:4.2f})" for name, value in medians.items()]
            print(f"  {function:17} {figure:7}", *figures)


if __name__ == "__main__":
    main()
