"""make trace KEY=key|ARN=arn [STACK=name]: what happened to one image, from its execution to the prediction log.

Prints the execution, its states with their times, log lines and traced calls, the outcome, and where to look further.
Without STACK it asks the local stack or, if that is not running, the record of the last make run.
"""

import argparse
import json
import time
from datetime import datetime, timedelta
from typing import Any

from botocore.client import BaseClient
from botocore.exceptions import ClientError
from rich.markup import escape
from rich.tree import Tree

from local.command import LOCAL, ROOT, StackError, console, report_errors
from local.emulator.processes import running
from local.executions import NOT_ACCEPTED, error_message, object_key, outcome
from local.report import record, render
from local.target import Target, target

DAYS_SEARCHED = 30  # the default retention of the logs
RUNNING_SEARCHED = 100  # executions that have no line in the prediction log yet
WIDTH = 240  # of the tree where the output is not a terminal; a terminal cuts longer lines
SHOWN = 160  # characters of a log line's fields
CONSOLES = {
    "aws": "console.aws.amazon.com",
    "aws-cn": "console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
}
# Fields of every log line, and those which the tree shows elsewhere.
OMITTED = {
    "level", "location", "message", "timestamp", "service", "cold_start", "function_name", "function_memory_size",
    "function_arn", "function_request_id", "correlation_id", "xray_trace_id", "trace_id", "execution_arn",
    "s3_bucket", "s3_key", "s3_version_id", "predictions",
}  # fmt: skip


def execution_of(stack: Target, key: str) -> str:
    """The ARN of the latest execution for an object's key; StackError if there is none."""
    if key.startswith("s3://"):
        key = key.removeprefix("s3://").partition("/")[2]
    lines = events(stack.client("logs"), stack.outputs["PredictionLogGroupName"], key)
    arns = [line["execution_arn"] for line in lines if line.get("s3_key") == key and "execution_arn" in line]
    if not arns:
        states = stack.client("stepfunctions")
        arguments = {"stateMachineArn": stack.outputs["ClassifyImageStateMachineArn"], "statusFilter": "RUNNING"}
        arns = [
            row["executionArn"]
            for row in states.list_executions(**arguments, maxResults=RUNNING_SEARCHED)["executions"]
            if object_key(states.describe_execution(executionArn=row["executionArn"])["input"]) == key
        ]
    if not arns:
        raise StackError(
            f"KEY={key}: no execution for this key in {stack.place} in the last {DAYS_SEARCHED} days. "
            f"Uploads start one only under {stack.outputs['UploadPrefix']}"
        )
    if others := set(arns) - {arns[-1]}:
        console.print(f"The latest of {len(others) + 1} executions for this key; ARN=arn shows another:")
        console.print(*(f"  {arn}" for arn in sorted(others)), sep="\n", markup=False, soft_wrap=True)
    return arns[-1]


def events(logs: BaseClient, group: str, term: str, since: datetime | None = None) -> list[dict[str, Any]]:
    """The structured lines of a log group that contain this term, oldest first."""
    since = since or datetime.now() - timedelta(days=DAYS_SEARCHED)
    pattern = '"' + term.replace('"', '\\"') + '"'
    query = {"logGroupName": group, "startTime": int(since.timestamp() * 1000), "filterPattern": pattern}
    pages = logs.get_paginator("filter_log_events").paginate(**query)
    found = [event for page in pages for event in page["events"] if event["message"].startswith("{")]
    return [json.loads(event["message"]) for event in sorted(found, key=lambda event: event["timestamp"])]


def log_groups(stack: Target) -> list[str]:
    """The log groups of the stack's functions."""
    pages = stack.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack.name)
    resources = [resource for page in pages for resource in page["StackResourceSummaries"]]
    groups = [row for row in resources if row["ResourceType"] == "AWS::Logs::LogGroup"]
    return [row["PhysicalResourceId"] for row in groups if "StateMachine" not in row["LogicalResourceId"]]


def follow(stack: Target, arn: str) -> dict[str, Any]:
    """An execution in the form of record.py's, with the functions' log `lines`."""
    states = stack.client("stepfunctions")
    try:
        execution = states.describe_execution(executionArn=arn)
    except (states.exceptions.ExecutionDoesNotExist, states.exceptions.InvalidArn):
        raise StackError(f"{arn} is not an execution of {stack.place}; Step Functions keeps them for 90 days") from None
    pages = states.get_paginator("get_execution_history").paginate(executionArn=arn)
    history = [event for page in pages for event in page["events"]]
    started = history[0]["timestamp"]
    lines = []
    for group in log_groups(stack):
        logged = events(stack.client("logs"), group, arn, started)
        lines += [line for line in logged if arn in str(line) and record.STARTER not in line.get("function_name", "")]
    found: dict[str, Any] = {
        "key": object_key(execution["input"]),
        "execution_arn": arn,
        "started": started.timestamp(),
        "outcome": None,
        "states": record.visits(history),
        "lines": lines,
        "log": next((line for line in lines if line["message"] == "prediction"), None),
    }
    traced = [line["xray_trace_id"] for line in lines if "xray_trace_id" in line]
    header = dict(field.split("=", 1) for field in execution.get("traceHeader", "").split(";") if "=" in field)
    found |= {"trace_id": header.get("Root") or next(iter(traced), None), "segments": []}
    try:
        found["trace_id"] = found["trace_id"] or trace_of(stack, found["key"], started)
        found["segments"] = segments(stack, found["trace_id"], started) if found["trace_id"] else []
    except ClientError as error:  # X-Ray is not emulated, and not every user may read it
        console.print(f"No traced calls: {error}", markup=False, soft_wrap=True)
    if execution["status"] != "RUNNING":
        row = outcome(execution)
        ended = "accepted" if row.error is None else "review" if row.error == NOT_ACCEPTED else "error"
        found |= {name: getattr(row, name) for name in ("label", "confidence", "seconds", "error")}
        found |= {"outcome": ended, "cause": error_message(row), "threshold": (row.result or {}).get("threshold")}
    return found


def trace_of(stack: Target, key: str, since: datetime) -> str | None:
    """The trace of an execution that logged nothing, by the annotation that RetrieveImage makes first."""
    key_hash = record.key_hash(key)
    if stack.local:
        collected = record.segments(stack.local.directory / "xray.jsonl", since)
        owned = (each for each in collected if each.get("annotations", {}).get("s3_key_hash") == key_hash)
        return next((segment["trace_id"] for segment in owned), None)
    window = {"StartTime": since, "EndTime": since + timedelta(hours=2)}  # the state machine's TimeoutSeconds
    expression = f'annotation.s3_key_hash = "{key_hash}"'
    summaries = stack.client("xray").get_trace_summaries(**window, FilterExpression=expression)["TraceSummaries"]
    return next((summary["Id"] for summary in summaries), None)


def segments(stack: Target, trace_id: str, since: datetime) -> list[dict[str, Any]]:
    """The segments of a trace as record.plain_segment() has them, from X-Ray or from the local stack's daemon."""
    if stack.local:
        collected = record.segments(stack.local.directory / "xray.jsonl", since)
        return [record.plain_segment(segment) for segment in collected if segment["trace_id"] == trace_id]
    traces = stack.client("xray").batch_get_traces(TraceIds=[trace_id])["Traces"]
    documents = [json.loads(segment["Document"]) for trace in traces for segment in trace["Segments"]]
    found = []
    while documents:
        segment = documents.pop()
        documents += segment.get("subsegments", [])
        if "end_time" in segment:
            found.append(record.plain_segment(segment))
    return found


def recorded(key: str, arn: str) -> dict[str, Any]:
    """The execution from the record of the last make run; StackError if it is not there."""
    made = json.loads(render.RECORD.read_text(encoding="utf-8")) if render.RECORD.exists() else {"executions": []}
    name = key.removeprefix("s3://").partition("/")[2] if key.startswith("s3://") else key
    for execution in made["executions"]:
        if (
            arn == execution["execution_arn"]
            if arn
            else name in (execution["key"], render.short_name(execution["key"]))
        ):
            traces = [trace for trace in execution["traces"] if trace["function"] != "RecordOutcome"]
            flat = [segment for trace in traces for segment in trace["segments"]]
            trace_id = traces[0]["trace_id"] if traces else None
            return execution | {"lines": [execution["log"] or {}], "trace_id": trace_id, "segments": flat}
    raise StackError(
        f"{arn or key}: not in the last make run, and the local stack, which would know others, is not running"
    )


def tree(execution: dict[str, Any]) -> Tree:
    """The image's way as a tree for the terminal."""
    root = Tree(f"[bold]{escape(execution['key'])}[/]", guide_style="dim")
    started = datetime.fromtimestamp(execution["started"]).astimezone()
    way = root.add(f"execution, started {started:%Y-%m-%d %H:%M:%S %Z}, {took(execution.get('seconds'))}")
    for state in execution["states"]:
        tries = f", {state['tries']} tries" if state["tries"] > 1 else ""
        error = f" [red]{escape(state['error'])}[/]" if state["error"] else ""
        node = way.add(f"[bold]{escape(state['name'])}[/] {took(state['seconds'])}{tries}{error}")
        begin = execution["started"] + state["start"]
        end = begin + (state["seconds"] or 0)
        for segment in sorted(execution["segments"], key=lambda segment: segment["start"]):
            if begin <= segment["start"] < end and segment["name"] != state["name"]:
                failed = " [red]failed[/]" if segment["error"] else ""
                node.add(f"[dim]traced[/] {escape(segment['name'])} {took(segment['seconds'])}{failed}")
        for line in execution["lines"]:
            if line.get("message") and state["name"] in line.get("function_name", ""):
                node.add(log_line(line))
    end_ = root.add(verdict(execution))
    if execution["log"]:
        end_.add(log_line(execution["log"]))
    elif execution["outcome"]:
        end_.add("not in the prediction log (yet): RecordOutcome runs shortly after an execution ends")
    return root


def log_line(line: dict[str, Any]) -> str:
    fields = {name: value for name, value in line.items() if name not in OMITTED}
    text = json.dumps(fields, ensure_ascii=False)
    cold = " (cold start)" if line.get("cold_start") else ""
    return f"[dim]logged[/] {escape(line['message'])}{cold} [dim]{escape(text[:SHOWN] + '…' * (len(text) > SHOWN))}[/]"


def verdict(execution: dict[str, Any]) -> str:
    match execution["outcome"]:
        case None:
            return f"still running, for {took(time.time() - execution['started'])}"
        case "error":
            return f"[red]failed[/]: {escape(execution['error'] or '')}: {escape(execution['cause'] or '')}"
    decision = f"{escape(execution['label'])}, confidence {execution['confidence']:.3f}"
    colour, words = {"accepted": ("green", "accepted"), "review": ("yellow", "sent to review")}[execution["outcome"]]
    return f"[{colour}]{words}[/]: {decision}, threshold {execution['threshold']}"


def took(seconds: float | None) -> str:
    return render.seconds(seconds) or "not finished"


def links(arn: str, trace_id: str | None, local: bool) -> list[str]:
    """Where to look further: AWS's console, or the page of the last run if it has this execution."""
    found = [f"execution  {arn}"] + ([f"trace      {trace_id}"] if trace_id else [])
    if local:
        made = json.loads(render.RECORD.read_text(encoding="utf-8")) if render.RECORD.exists() else {"executions": []}
        arns = [execution["execution_arn"] for execution in made["executions"]]
        page = f"{render.REPORT.relative_to(ROOT)}#execution-{arns.index(arn)}" if arn in arns else ""
        return found + ([f"page       {page}"] if page else [])
    _, partition, _, region, *_ = arn.split(":")
    console_url = f"https://{region}.{CONSOLES.get(partition, CONSOLES['aws'])}"
    found.append(f"console    {console_url}/states/home?region={region}#/v2/executions/details/{arn}")
    if trace_id:
        found.append(f"           {console_url}/cloudwatch/home?region={region}#xray:traces/{trace_id}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", default="", help="an object's key in the image bucket")
    parser.add_argument("--arn", default="", help="an execution's ARN")
    parser.add_argument("--stack", default="", help="a stack on AWS")
    options = parser.parse_args()
    with report_errors():
        if bool(options.key) == bool(options.arn):
            raise StackError("Give one of KEY=uploads/image.png and ARN=arn:aws:states:...:execution:...")
        if not options.stack and not running(LOCAL / "stack"):
            execution = recorded(options.key, options.arn)
        else:
            with target(options.stack) as stack:
                execution = follow(stack, options.arn or execution_of(stack, options.key))
        console.print(tree(execution), width=None if console.is_terminal else WIDTH)
        further = links(execution["execution_arn"], execution["trace_id"], local=not options.stack)
        console.print("", *further, sep="\n", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
