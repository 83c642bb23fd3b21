"""Step Functions: the Distributed Map of a JSONata state machine, and RedriveExecution.

https://docs.aws.amazon.com/step-functions/latest/dg/state-map-distributed.html
https://docs.aws.amazon.com/step-functions/latest/dg/redrive-map-run.html

Only what statemachine/classify_batch.asl.json uses: items from S3 (a prefix, CSV, JSON Lines, gzip, an inventory) in
batches, Express children, and a ResultWriter that writes the outputs of successful children as JSON Lines.
"""

import contextvars
import csv
import gzip
import io
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import botocore.session
from botocore.exceptions import ClientError
from ministack.core.responses import error_response_json, json_response, now_iso
from ministack.services import s3
from ministack.services import stepfunctions as service

from local.emulator.adapter import override
from local.emulator.adapter.stepfunctions import PAYLOAD_LIMIT, check_size

Json = dict[str, Any]

MAX_CHILDREN = 64  # at a time: each is a thread here
COUNTS = ["pending", "running", "succeeded", "failed", "timedOut", "aborted", "total", "resultsWritten"]
COUNTS += ["failuresNotRedrivable", "pendingRedrive"]
EXCEEDED = "States.ExceedToleratedFailureThreshold", "The specified tolerated failure threshold was exceeded"
# The fields of a child's execution in the files of failed and pending children, which are written in full
RECORDED = ["executionArn", "input", "mapRunArn", "name", "startDate", "stateMachineArn", "status", "stopDate"]
RECORDED += ["error", "cause"]
map_runs: dict[tuple[str, str], "MapRun"] = {}  # by execution ARN and state name, for a redrive


def compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@override(service, "_s3_object_text")
def object_text(_original: Callable[..., str], bucket: str, key: str) -> str:
    """Decompress objects whose name ends in .gz."""
    status, _headers, body = s3._get_object(bucket, key, {}, {})
    if status != 200:
        raise service._ExecutionError("States.ItemReaderFailed", f"s3://{bucket}/{key} cannot be read ({status})")
    return (gzip.decompress(body) if key.endswith(".gz") else body).decode()


@override(service, "_parse_reader_items")
def parse_items(original: Callable[..., list[Any]], text: str, config: Json) -> list[Any]:
    """Read the lists that the manifest of an S3 inventory names; every value is a string, and keys are URL-encoded.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
    """
    if config.get("InputType") != "MANIFEST":
        return original(text, config)
    manifest = json.loads(text)
    fields, bucket = manifest["fileSchema"].split(", "), manifest["destinationBucket"].split(":")[-1]
    lists = (service._s3_object_text(bucket, file["key"]) for file in manifest["files"])
    return [dict(zip(fields, row, strict=False)) for each in lists for row in csv.reader(io.StringIO(each))]


def batches(state: Json, raw_input: Any, ctx: Json) -> Iterator[tuple[Json, int]]:
    """The input of each child, with its number of items."""
    reader = service._apply_jsonata_template(state["ItemReader"], raw_input, ctx)
    batcher = service._apply_jsonata_template(state["ItemBatcher"], raw_input, ctx)
    common = {"BatchInput": batcher["BatchInput"]} if "BatchInput" in batcher else {}
    limit = batcher.get("MaxInputBytesPerBatch", PAYLOAD_LIMIT) - len(compact(common | {"Items": []}).encode())
    batch: list[Any] = []
    size = 0
    for item in service._read_map_items(reader, raw_input, ctx):
        item_size = len(compact(item).encode()) + 1
        if batch and (size + item_size > limit or len(batch) == batcher.get("MaxItemsPerBatch")):
            yield common | {"Items": batch}, len(batch)
            batch, size = [], 0
        batch.append(item)
        size += item_size
    if batch:
        yield common | {"Items": batch}, len(batch)


class MapRun:
    """The children of one Map state of one execution, over all redrives."""

    def __init__(self, state: Json, raw_input: Any, execution: Json, ctx: Json) -> None:
        self.state, self.raw_input, self.execution, self.ctx = state, raw_input, execution, ctx
        self.id = str(uuid.uuid4())
        self.label = f"{ctx['StateMachine']['Name']}/{state['Label']}"
        self.lock = threading.Lock()
        self.succeeded_files: list[Json] = []
        self.view: Json = {  # the response of DescribeMapRun
            "mapRunArn": self.arn("mapRun", self.id),
            "executionArn": execution["executionArn"],
            "status": "RUNNING",
            "startDate": now_iso(),
            "maxConcurrency": int(self.number("MaxConcurrency")),
            "toleratedFailurePercentage": self.number("ToleratedFailurePercentage"),
            "toleratedFailureCount": 0,
            "itemCounts": dict.fromkeys(COUNTS, 0),
            "executionCounts": dict.fromkeys(COUNTS, 0),
            "redriveCount": 0,
            "_stateMachineArn": self.arn("stateMachine"),
        }
        service._map_runs[self.view["mapRunArn"]] = self.view
        arn = {"mapRunArn": self.view["mapRunArn"]}
        service._add_event(execution, "MapRunStarted", {"mapRunStartedEventDetails": arn})
        self.children = [self.child(value, items) for value, items in batches(state, raw_input, ctx)]
        for child in self.children:
            self.count("total", child)
            self.count("pending", child)

    def arn(self, kind: str, *names: str) -> str:
        region, account = self.execution["stateMachineArn"].split(":")[3:5]
        return ":".join(("arn:aws:states", region, account, kind, self.label, *names))

    def number(self, field: str) -> float:
        return service._jsonata_state_field(self.state, field, "number", self.raw_input, self.ctx)

    def child(self, value: Json, items: int) -> Json:
        """The record of a child's execution; its name and ARN are those of all its attempts."""
        name = str(uuid.uuid4())
        return {
            "executionArn": self.arn("express", name, str(uuid.uuid4())),
            "stateMachineArn": self.view["_stateMachineArn"],
            "mapRunArn": self.view["mapRunArn"],
            "name": name,
            "status": "PENDING",
            "startDate": None,
            "stopDate": None,
            "input": compact(value),
            "output": None,
            "events": [],
            "mockAttempts": {},
            "items": items,
        }

    def count(self, name: str, child: Json, by: int = 1) -> None:
        self.view["itemCounts"][name] += child["items"] * by
        self.view["executionCounts"][name] += by

    def move(self, child: Json, status: str) -> None:
        with self.lock:
            self.count(child["status"].lower(), child, -1)
            self.count(status.lower(), child)
            child["status"] = status

    @property
    def is_stopped(self) -> bool:
        return self.execution["status"] != "RUNNING"

    @property
    def has_failed(self) -> bool:
        """Whether more items failed than are tolerated."""
        counts = self.view["itemCounts"]
        return counts["failed"] * 100 > self.view["toleratedFailurePercentage"] * counts["total"]

    def run(self) -> None:
        """Run every child that has not succeeded. After too many failures, no more of them start."""
        unfinished = [child for child in self.children if child["status"] != "SUCCEEDED"]
        with ThreadPoolExecutor(min(self.view["maxConcurrency"] or MAX_CHILDREN, MAX_CHILDREN)) as pool:
            contexts = [contextvars.copy_context() for _ in unfinished]
            wait(
                [pool.submit(each.run, self.run_child, child) for each, child in zip(contexts, unfinished, strict=True)]
            )
        if self.is_stopped:
            for child in self.children:
                if child["status"] == "PENDING":
                    self.move(child, "ABORTED")

    def run_child(self, child: Json) -> None:
        if self.has_failed or self.is_stopped:
            return
        child |= {"startDate": now_iso(), "stopDate": None, "events": []}
        service._executions[child["executionArn"]] = child
        self.move(child, "RUNNING")
        child_input = json.loads(child["input"])
        named = {"Id": child["executionArn"], "Name": child["name"], "StartTime": child["startDate"]}
        ctx = self.ctx | {"variables": {}, "Execution": self.ctx["Execution"] | named | {"Input": child_input}}
        processor = self.state["ItemProcessor"]
        try:
            output = service._run_sub_machine(processor["States"], processor["StartAt"], child_input, child, ctx)
            check_size(output)
            child["output"], status = compact(output), "SUCCEEDED"
        except service._ExecutionError as error:
            child["error"], child["cause"], status = error.error, error.cause, "FAILED"
        except Exception as error:  # otherwise the Map Run would wait for this child forever
            service.logger.exception("Child %s", child["executionArn"])
            child["error"], child["cause"], status = "States.Runtime", str(error), "FAILED"
        child["stopDate"] = now_iso()
        self.move(child, status)

    def redrive(self) -> None:
        """https://docs.aws.amazon.com/step-functions/latest/dg/redrive-map-run.html"""
        self.view |= {"status": "RUNNING", "redriveCount": self.view["redriveCount"] + 1}
        for child in self.children:
            if child["status"] in ("FAILED", "ABORTED"):
                child.pop("error", None), child.pop("cause", None)
                self.move(child, "PENDING")

    def write_results(self) -> Json:
        """Write the results of this attempt; return the state's result.

        https://docs.aws.amazon.com/step-functions/latest/dg/input-output-resultwriter.html
        """
        arguments = service._apply_jsonata_template(self.state["ResultWriter"]["Arguments"], self.raw_input, self.ctx)
        bucket = arguments["Bucket"]
        redrive = f"/Redrive-{self.view['redriveCount']}" if self.view["redriveCount"] else ""
        folder = f"{arguments['Prefix'].rstrip('/')}/{self.id}{redrive}"
        files: dict[str, list[Json]] = {"FAILED": [], "PENDING": [], "SUCCEEDED": self.succeeded_files}
        for status, named in files.items():
            children = [child for child in self.children if child["status"] == status and not child.get("written")]
            if not children:
                continue
            body = "".join(f"{line(child)}\n" for child in children)
            key = f"{folder}/{status}_0.jsonl"
            self.put(bucket, key, body)
            named.append({"Key": key, "Size": len(body.encode())})
            for child in children:
                child["written"] = status == "SUCCEEDED"
        self.view["itemCounts"]["resultsWritten"] = sum(child["items"] for child in self.children)
        self.view["executionCounts"]["resultsWritten"] = len(self.children)
        manifest = {"DestinationBucket": bucket, "MapRunArn": self.view["mapRunArn"], "ResultFiles": files}
        self.put(bucket, f"{folder}/manifest.json", compact(manifest))
        details = {"Bucket": bucket, "Key": f"{folder}/manifest.json"}
        return {"MapRunArn": self.view["mapRunArn"], "ResultWriterDetails": details}

    def put(self, bucket: str, key: str, body: str) -> None:
        region = self.execution["stateMachineArn"].split(":")[3]
        client = botocore.session.get_session().create_client("s3", region_name=region)
        try:
            client.put_object(Bucket=bucket, Key=key, Body=body.encode())
        except ClientError as error:
            raise service._ExecutionError("States.ResultWriterFailed", str(error)) from None


def line(child: Json) -> str:
    """A child in a file of results: the output of a successful one, the execution of any other."""
    if child["status"] == "SUCCEEDED":
        return child["output"]
    recorded = {name[0].upper() + name[1:]: child[name] for name in RECORDED if child.get(name) is not None}
    return compact(recorded | {"InputDetails": {"Included": True}, "OutputDetails": {"Included": True}})


@override(service, "_run_distributed_map")
def distributed_map(
    _original: Any, state: Json, raw_input: Any, _effective: Any, _iterator: Any, execution: Json, ctx: Json
) -> tuple[Any, str | None]:
    key = execution["executionArn"], ctx["State"]["Name"]
    if execution.pop("redriven", False) and key in map_runs:
        map_runs[key].redrive()
    else:
        map_runs[key] = MapRun(state, raw_input, execution, ctx)
    run = map_runs[key]
    run.run()
    status = "ABORTED" if run.is_stopped else "FAILED" if run.has_failed else "SUCCEEDED"
    result = run.write_results()
    run.view |= {"status": status, "stopDate": now_iso()}  # last: from now on a redrive is possible
    if status == "ABORTED":
        raise SystemExit  # ends this thread only
    if status == "FAILED":
        error, cause = EXCEEDED
        details = {"mapRunFailedEventDetails": {"error": error, "cause": cause}}
        service._add_event(execution, "MapRunFailed", details)
        raise service._ExecutionError(error, cause)
    service._add_event(execution, "MapRunSucceeded")
    return result, service._next_or_end(state)


# Redrive: the execution continues in the state that failed or was stopped


def remember_state(original: Callable[..., Any], state: Json, raw_input: Any, execution: Json, ctx: Json) -> Any:
    if "mapRunArn" not in execution:  # not a child, which runs again from its start
        execution["last"] = ctx["State"]["Name"], raw_input, ctx
    return original(state, raw_input, execution, ctx)


override(service, "_execute_task")(remember_state)
override(service, "_execute_map")(remember_state)


def redrive(request: Json) -> Any:
    """https://docs.aws.amazon.com/step-functions/latest/apireference/API_RedriveExecution.html"""
    execution = service._executions.get(request["executionArn"])
    if not execution:
        return error_response_json("ExecutionDoesNotExist", f"Execution {request['executionArn']} not found", 400)
    runs = [run for (arn, _), run in map_runs.items() if arn == request["executionArn"]]
    is_stopping = any(run.view["status"] == "RUNNING" for run in runs)
    if execution["status"] not in ("FAILED", "ABORTED") or "last" not in execution or is_stopping:
        return error_response_json("ExecutionNotRedrivable", f"The execution is {execution['status']}", 400)
    execution |= {"status": "RUNNING", "redriven": True, "stopDate": None, "error": None, "cause": None, "output": None}
    service._add_event(execution, "ExecutionRedriven")
    service._emit_execution_status_event(execution)
    threading.Thread(target=contextvars.copy_context().run, args=(resume, execution), daemon=True).start()
    return json_response({"redriveDate": now_iso()})


def resume(execution: Json) -> None:
    name, raw_input, ctx = execution["last"]
    states = json.loads(service._state_machines[execution["stateMachineArn"]]["definition"])["States"]
    try:
        output = json.dumps(service._run_sub_machine(states, name, raw_input, execution, ctx))
    except service._ExecutionError as error:
        return service._fail_execution(execution, error.error, error.cause)
    if execution["status"] == "RUNNING":
        execution |= {"status": "SUCCEEDED", "output": output, "stopDate": now_iso()}
        service._add_event(execution, "ExecutionSucceeded", {"executionSucceededEventDetails": {"output": output}})
        service._emit_execution_status_event(execution)


@override(service, "handle_request")
async def handle_request(
    original: Callable[..., Any], method: str, path: str, headers: dict[str, str], body: bytes, query: Any
) -> Any:
    if headers.get("x-amz-target", "").endswith(".RedriveExecution"):
        return service._finalize_response(redrive(json.loads(body)))
    return await original(method, path, headers, body, query)
