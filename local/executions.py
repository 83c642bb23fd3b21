"""Executions of the state machine: what became of an image, as the commands show it."""

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

NOT_ACCEPTED = "THRESHOLD_CONFIDENCE_NOT_MET"


@dataclasses.dataclass
class Outcome:
    """One image's way through the workflow; label and confidence are there when the endpoint gave them."""

    key: str
    status: str
    label: str | None
    confidence: float | None
    seconds: float | None
    error: str | None
    execution_arn: str | None
    result: dict[str, Any] | None = None
    cause: str | None = None


def outcome(execution: dict[str, Any]) -> Outcome:
    """The outcome of an execution that has ended, from DescribeExecution's answer."""
    error, cause = execution.get("error"), execution.get("cause")
    result = None
    if execution["status"] == "SUCCEEDED":
        result = json.loads(execution["output"])
    elif error == NOT_ACCEPTED:
        result = json.loads(cause)  # the Fail state's cause is the result
    return Outcome(
        key=object_key(json.loads(execution["input"])),
        status="SUCCEEDED" if execution["status"] == "SUCCEEDED" else "FAILED",
        label=result and result["label"],
        confidence=result and result["confidence"],
        seconds=(execution["stopDate"] - execution["startDate"]).total_seconds(),
        error=error or (None if result else execution["status"]),
        execution_arn=execution["executionArn"],
        result=result,
        cause=cause,
    )


def object_key(execution_input: Any) -> str | None:
    """The key in an execution's input, be it the upload's event or {s3_bucket, s3_key}."""
    match execution_input:
        case {"detail": {"object": {"key": key}}} | {"s3_key": key}:
            return key
    return None


def explanation(outcome: Outcome) -> str:
    """The error's own words."""
    try:
        return json.loads(outcome.cause)["errorMessage"]
    except (TypeError, ValueError, KeyError):
        return outcome.cause or ""


def finished(states, arn: str, deadline: float) -> Outcome:
    """Wait for an execution to end."""
    while (execution := states.describe_execution(executionArn=arn))["status"] == "RUNNING":
        if time.monotonic() > deadline:
            raise TimeoutError(f"{arn} is still running")
        time.sleep(0.1)
    return outcome(execution)


class Watch:
    """The executions that uploads started, found by the object's key."""

    def __init__(self, states, machine_arn: str, prefix: str):
        self.states, self.machine_arn, self.prefix = states, machine_arn, prefix
        self.known: set[str] = set()
        self.unfinished: list[str] = []

    def ended(self) -> Iterator[Outcome]:
        """The outcomes of executions for keys under the prefix that have ended since the last call."""
        for page in self.states.get_paginator("list_executions").paginate(stateMachineArn=self.machine_arn):
            for execution in page["executions"]:
                if execution["executionArn"] not in self.known:
                    self.known.add(execution["executionArn"])
                    self.unfinished.append(execution["executionArn"])
        for arn in list(self.unfinished):
            execution = self.states.describe_execution(executionArn=arn)
            if not (object_key(json.loads(execution["input"])) or "").startswith(self.prefix):
                self.unfinished.remove(arn)
            elif execution["status"] != "RUNNING":
                self.unfinished.remove(arn)
                yield outcome(execution)
