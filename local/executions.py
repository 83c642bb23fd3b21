"""Executions of the state machine: wait for them and read their outcomes."""

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

from botocore.client import BaseClient

NOT_ACCEPTED = "THRESHOLD_CONFIDENCE_NOT_MET"


@dataclasses.dataclass
class Outcome:
    """How the execution for one image ended; label and confidence are None unless it was classified."""

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
    """The outcome of a finished execution, from the response of DescribeExecution."""
    error = execution.get("error")
    result = None
    if execution["status"] == "SUCCEEDED":
        result = json.loads(execution["output"])
    elif error == NOT_ACCEPTED:
        result = json.loads(execution["cause"])  # the Fail state's cause is the result
    return Outcome(
        key=object_key(execution["input"]),
        status="SUCCEEDED" if execution["status"] == "SUCCEEDED" else "FAILED",
        label=result and result["label"],
        confidence=result and result["confidence"],
        seconds=(execution["stopDate"] - execution["startDate"]).total_seconds(),
        error=error or (None if result else execution["status"]),
        execution_arn=execution["executionArn"],
        result=result,
        cause=execution.get("cause"),
    )


def object_key(execution_input: str) -> str:
    """The key in an execution's input, an upload event or {s3_bucket, s3_key}; empty if there is none.

    The local stack starts executions with any text as their input; only the function rejects it.
    """
    try:
        parsed = json.loads(execution_input)
    except (ValueError, RecursionError):
        return ""
    match parsed:
        case {"detail": {"object": {"key": str(key)}}} | {"s3_key": str(key)}:
            return key
    return ""


def error_message(outcome: Outcome) -> str:
    """The errorMessage of a Lambda error, or else the whole cause."""
    try:
        return json.loads(outcome.cause or "")["errorMessage"]
    except (TypeError, ValueError, KeyError):
        return outcome.cause or ""


def finished(states: BaseClient, arn: str, deadline: float, interval: float = 0.1) -> Outcome:
    """Wait until an execution has finished; TimeoutError after `deadline` (of time.monotonic())."""
    while (execution := states.describe_execution(executionArn=arn))["status"] == "RUNNING":
        if time.monotonic() > deadline:
            raise TimeoutError(f"{arn} is still running")
        time.sleep(interval)
    return outcome(execution)


class Watch:
    """Finds the executions that uploads started, by a prefix of the object's key."""

    def __init__(self, states: BaseClient, machine_arn: str, prefix: str) -> None:
        self.states, self.machine_arn, self.prefix = states, machine_arn, prefix
        self.known: set[str] = set()
        self.unfinished: list[str] = []

    def ended(self) -> Iterator[Outcome]:
        """The outcomes of the executions that have finished since the last call."""
        for page in self.states.get_paginator("list_executions").paginate(stateMachineArn=self.machine_arn):
            for execution in page["executions"]:
                if execution["executionArn"] not in self.known:
                    self.known.add(execution["executionArn"])
                    self.unfinished.append(execution["executionArn"])
        for arn in list(self.unfinished):
            execution = self.states.describe_execution(executionArn=arn)
            if not object_key(execution["input"]).startswith(self.prefix):
                self.unfinished.remove(arn)
            elif execution["status"] != "RUNNING":
                self.unfinished.remove(arn)
                yield outcome(execution)
