"""The record of a run, .local/run.json: everything that the report shows, collected while the local stack is running.

created, emulated, threshold, definition (the state machine's, as deployed), training (the model's metadata.json)
executions: a list, in upload order, of objects with
    key, outcome, label, confidence, threshold, predictions, error, cause, seconds, execution_arn, started
    truth         the name of the image's folder if it is one of the model's labels, else null
    thumbnail     a data: URL; null if the file is not an image
    states        [{name, start, seconds, tries, error}]: start in seconds since the execution's start
    traces        [{trace_id, function, segments: [{id, parent_id, name, start, seconds, error}]}]
    log           the execution's line in the prediction log
"""

import base64
import hashlib
import io
import json
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.client import BaseClient

from endpoint import pixels
from local.command import LOCAL
from local.emulator.processes import Stack
from local.executions import NOT_ACCEPTED, Outcome, error_message
from monitoring import prediction_log

THUMBNAIL = 96  # maximum width and height in pixels
STARTER = "StartExecution"  # it runs before the execution, with a trace of its own
SECONDS_FOR_THE_LOG = 1  # EventBridge invokes RecordOutcome shortly after an execution ends


def collect(
    stack: Stack, outputs: dict[str, str], outcomes: list[Outcome], images: dict[str, bytes], since: datetime
) -> dict[str, Any]:
    """The record of these outcomes; `images` are the uploaded bytes by key, `since` is the time of the first upload."""
    states, logs = stack.client("stepfunctions"), stack.client("logs")
    machine = states.describe_state_machine(stateMachineArn=outputs["ClassifyImageStateMachineArn"])
    training = json.loads((LOCAL / "model/metadata.json").read_text(encoding="utf-8"))
    log = logged_predictions(logs, outputs, {row.execution_arn for row in outcomes if row.execution_arn}, since)
    traces = traces_of(segments(stack.directory / "xray.jsonl", since), owners_of_traces(logs, outcomes, since))
    executions = []
    for row in outcomes:
        pages = states.get_paginator("get_execution_history").paginate(executionArn=row.execution_arn or "")
        history = [event for page in pages for event in page["events"]] if row.execution_arn else []
        folder = Path(row.key).parent.name
        result = row.result or {}
        started = history[0]["timestamp"].timestamp() if history else None
        states_visited = visits(history)
        executions.append(
            {
                "key": row.key,
                "outcome": "accepted" if row.error is None else "review" if row.error == NOT_ACCEPTED else "error",
                **{name: getattr(row, name) for name in ("label", "confidence", "seconds", "error", "execution_arn")},
                "threshold": result.get("threshold"),
                "predictions": result.get("predictions", []),
                "cause": error_message(row) if row.error != NOT_ACCEPTED else "",
                "truth": folder if folder in training["labels"] else None,
                "thumbnail": thumbnail(images[row.key]),
                "started": started,
                "states": states_visited,
                "traces": by_function(traces.get(row.execution_arn or "", []), states_visited, started),
                "log": log.get(row.execution_arn or ""),
            }
        )
    return {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "emulated": True,
        "definition": json.loads(machine["definition"]),
        "training": training,
        "executions": executions,
    }


def visits(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The states that an execution visited, from its history."""
    found: list[dict[str, Any]] = []
    for event in history:
        at = (event["timestamp"] - history[0]["timestamp"]).total_seconds()
        if "stateEnteredEventDetails" in event:
            name = event["stateEnteredEventDetails"]["name"]
            found.append({"name": name, "start": at, "seconds": None, "tries": 0, "error": None})
        elif event["type"] == "TaskScheduled":
            found[-1]["tries"] += 1
        elif event["type"] == "TaskFailed":
            found[-1]["error"] = event["taskFailedEventDetails"].get("error")
        elif "stateExitedEventDetails" in event:
            found[-1] |= {"seconds": at - found[-1]["start"], "error": None}
    if found and found[-1]["seconds"] is None:  # the state that failed has no exit event
        found[-1]["seconds"] = at - found[-1]["start"]
    return found


def logged_predictions(
    logs: BaseClient, outputs: dict[str, str], arns: set[str], since: datetime
) -> dict[str, dict[str, Any]]:
    """The prediction log's line for each execution, by ARN; waits up to SECONDS_FOR_THE_LOG for missing ones."""
    deadline = time.monotonic() + SECONDS_FOR_THE_LOG
    while True:
        lines = prediction_log.from_log_group(logs, outputs["PredictionLogGroupName"], since)
        found = {line["execution_arn"]: line for line in lines if line.get("execution_arn") in arns}
        if len(found) == len(arns) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def owners_of_traces(logs: BaseClient, outcomes: list[Outcome], since: datetime) -> dict[str, str]:
    """The ARNs of executions by trace ID, `s3_key_hash` and themselves.

    The states of an execution share a trace, which its functions' log lines name; if it failed before one was logged,
    the `s3_key_hash` annotation tells whose it is. RecordOutcome has a trace of its own, annotated with the ARN.
    """
    arns = [(row.key, row.execution_arn) for row in outcomes if row.execution_arn]
    owners = {key_hash(key): arn for key, arn in arns} | {arn: arn for _, arn in arns}
    for line in function_log(logs, since):
        if "correlation_id" in line and "xray_trace_id" in line and STARTER not in line.get("function_name", ""):
            owners[line["xray_trace_id"]] = line["correlation_id"]
    return owners


def key_hash(key: str) -> str:
    """The annotation `s3_key_hash` of a key, as functions/retrieve_image.py makes it."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def function_log(logs: BaseClient, since: datetime) -> Iterator[dict[str, Any]]:
    """The structured lines that the functions logged, from every log group."""
    groups = [group for page in logs.get_paginator("describe_log_groups").paginate() for group in page["logGroups"]]
    for group in groups:
        query = {"logGroupName": group["logGroupName"], "startTime": int(since.timestamp() * 1000)}
        for page in logs.get_paginator("filter_log_events").paginate(**query):
            for event in page["events"]:
                if event["message"].startswith('{"level"'):
                    yield json.loads(event["message"])


def traces_of(segments: Iterable[dict[str, Any]], owners: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The segments of each traced invocation, {trace_id, recorder, segments}, by their execution's ARN.

    recorder: whether the function was RecordOutcome.
    """
    traces: dict[str, list[dict[str, Any]]] = {}
    for segment in segments:
        traces.setdefault(segment["trace_id"], []).append(segment)
    found: dict[str, list[dict[str, Any]]] = {}
    for trace_id, trace in traces.items():
        annotations = [segment.get("annotations", {}) for segment in trace]
        arns = [each["execution_arn"] for each in annotations if "execution_arn" in each]
        hashes = [each["s3_key_hash"] for each in annotations if "s3_key_hash" in each]
        owner = next((owners[name] for name in (*arns, trace_id, *hashes) if name in owners), None)
        for invocation in invocations(trace) if owner else []:
            plain = [plain_segment(segment) for segment in invocation]
            traced = {"trace_id": trace_id, "recorder": bool(arns), "segments": plain}
            found.setdefault(str(owner), []).append(traced)
    return found


def invocations(trace: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """A trace's segments, by invocation: Lambda's own segment, which is not collected, is the parent of the others."""
    parents = {segment["id"]: segment.get("parent_id") for segment in trace}
    found: dict[str | None, list[dict[str, Any]]] = {}
    for segment in trace:
        root = segment.get("parent_id")
        while root in parents:
            root = parents[root]
        found.setdefault(root, []).append(segment)
    return list(found.values())


def by_function(
    traces: list[dict[str, Any]], states: list[dict[str, Any]], started: float | None
) -> list[dict[str, Any]]:
    """The traced invocations as {trace_id, function, segments}: a state's function is invoked while the state runs."""
    found = []
    for trace in traces:
        at = min(segment["start"] for segment in trace["segments"]) - (started or 0)
        entered = [state["name"] for state in states if state["start"] <= at]
        function = "RecordOutcome" if trace["recorder"] else entered[-1] if entered else ""
        found.append({"trace_id": trace["trace_id"], "function": function, "segments": trace["segments"]})
    return found


def segments(path: Path, since: datetime) -> Iterator[dict[str, Any]]:
    """The complete X-Ray segments that xray_daemon.py has collected since `since`."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            segment = json.loads(text)
        except ValueError:
            continue
        if segment.get("start_time", 0) >= since.timestamp() and "end_time" in segment:
            yield segment


def plain_segment(segment: dict[str, Any]) -> dict[str, Any]:
    """The fields of an X-Ray segment that the report shows."""
    operation = segment.get("aws", {}).get("operation", "")
    return {
        "id": segment["id"],
        "parent_id": segment.get("parent_id"),
        "name": f"{segment['name'].removeprefix('## ')} {operation}".strip(),
        "start": segment["start_time"],
        "seconds": segment["end_time"] - segment["start_time"],
        "error": bool(segment.get("fault") or segment.get("error")),
    }


def thumbnail(data: bytes) -> str | None:
    """A small PNG of the image as a data: URL; None if it cannot be decoded."""
    try:
        image, _ = pixels.read(data, (THUMBNAIL, THUMBNAIL))
    except pixels.UnsupportedImageError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.quantize(64).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
