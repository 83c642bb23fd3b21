"""A deployed stack's batches, and the invariants of every batch: one line per image, and a summary that counts them."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from workflow import wait_for

SECONDS_TO_END = 900  # a ceiling only: ten thousand images take that long on a busy core


@dataclass
class Batch:
    """A batch's execution that has ended, and the lines of its results."""

    arn: str
    status: str
    output: dict[str, Any]
    error: str | None
    cause: str | None
    lines: list[dict[str, Any]]

    @property
    def keys(self) -> list[str]:
        return sorted(line["s3_key"] for line in self.lines)

    @property
    def errors(self) -> dict[str, str]:
        """The error of each image that has one, by its key."""
        return {line["s3_key"]: line["error"] for line in self.lines if "error" in line}


class Batches:
    """Starts batches, and reads their results."""

    def __init__(self, stack, outputs):
        self.stack, self.outputs = stack, outputs
        self.s3, self.states = stack.client("s3"), stack.client("stepfunctions")
        self.bucket, self.results = outputs["ImageBucketName"], outputs["ResultsBucketName"]

    def upload(self, prefix: str, images: dict[str, bytes]) -> list[str]:
        for name, data in images.items():
            self.s3.put_object(Bucket=self.bucket, Key=f"{prefix}{name}", Body=data)
        return sorted(f"{prefix}{name}" for name in images)

    def start(self, **request: Any) -> str:
        machine = self.outputs["ClassifyBatchStateMachineArn"]
        text = json.dumps({"s3_bucket": self.bucket, **request})
        return self.states.start_execution(stateMachineArn=machine, input=text)["executionArn"]

    def run(self, **request: Any) -> Batch:
        return self.ended(self.start(**request))

    def redrive(self, arn: str) -> Batch:
        self.states.redrive_execution(executionArn=arn)
        return self.ended(arn)

    def ended(self, arn: str) -> Batch:
        execution = wait_for(
            lambda: (row := self.states.describe_execution(executionArn=arn))["status"] != "RUNNING" and row,
            SECONDS_TO_END,
        )
        succeeded = execution["status"] == "SUCCEEDED"
        output = json.loads(execution["output"]) if succeeded else {}
        batch = Batch(
            arn, execution["status"], output, execution.get("error"), execution.get("cause"), self.lines_of(arn)
        )
        if succeeded:
            check(batch)
        return batch

    def lines_of(self, arn: str) -> list[dict[str, Any]]:
        prefix = f"results/execution={arn.rpartition(':')[2]}/"
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.results, Prefix=prefix)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        texts = [self.s3.get_object(Bucket=self.results, Key=key)["Body"].read().decode() for key in keys]
        return [json.loads(line) for text in texts for line in text.splitlines()]

    def map_run(self, arn: str) -> dict[str, Any]:
        """The execution's Map Run; empty before it has begun."""
        runs = self.states.list_map_runs(executionArn=arn)["mapRuns"]
        return self.states.describe_map_run(mapRunArn=runs[0]["mapRunArn"]) if runs else {}


def check(batch: Batch) -> None:
    """The summary's counts equal the lines."""
    outcomes = Counter(line["outcome"] for line in batch.lines)
    summary = batch.output
    assert summary["images"] == len(batch.lines) == summary["items"] - summary["skipped"]
    assert {name: summary[name] for name in ("accepted", "review", "error")} == {
        name: outcomes[name] for name in ("accepted", "review", "error")
    }
    assert summary["errors"] == dict(Counter(line["error"] for line in batch.lines if "error" in line))
    assert {line["execution_arn"] for line in batch.lines} <= {batch.arn}
