"""A deployed workflow, on the emulated AWS or on AWS, as the tests use it."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from review.table import Review, ReviewTable
from review_item import is_drawn

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / ".local/data/digits"
SECONDS_TO_END = 60
AUDIT_RATE = 0.02  # the template's default
WAIT_SCALE = 0.05  # the real duration, on the local stack, of one second of the state machines' waits


@dataclass
class Execution:
    """An execution that has ended, with its history."""

    arn: str
    status: str
    input: dict[str, Any]
    output: dict[str, Any] | None
    error: str | None
    cause: str | None
    history: list[dict[str, Any]] = field(repr=False)

    @property
    def states(self) -> list[str]:
        entered = [event["stateEnteredEventDetails"] for event in self.history if "stateEnteredEventDetails" in event]
        return [details["name"] for details in entered]

    @property
    def task_errors(self) -> list[str]:
        return [event["taskFailedEventDetails"]["error"] for event in self.history if event["type"] == "TaskFailed"]

    @property
    def message(self) -> str:
        """The message of a function's error."""
        return json.loads(self.cause)["errorMessage"]


class Workflow:
    """A deployed stack: uploads, executions and queues."""

    def __init__(self, stack, outputs):
        self.visited: set[str] = set()
        self.requests: dict[str, dict[str, Any]] = {}  # the inputs of executions, each read once
        self.stack, self.outputs = stack, outputs
        self.s3, self.states, self.sqs = (stack.client(name) for name in ("s3", "stepfunctions", "sqs"))
        self.bucket = outputs["ImageBucketName"]
        self.machine = outputs["ClassifyImageStateMachineArn"]
        self.reviews = ReviewTable(stack.client("dynamodb"), outputs["ReviewTableName"])

    def upload(self, key: str, data: bytes) -> str:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)
        return key

    def upload_drawn(self, key: str, data: bytes, audited: bool) -> str:
        """Upload as a version that the stack's AuditRate sends to review if accepted, or as one that it does not."""
        while True:
            version = self.s3.put_object(Bucket=self.bucket, Key=key, Body=data).get("VersionId", "")
            if not version or is_drawn(f"s3://{self.bucket}/{key}", version, AUDIT_RATE) == audited:
                return key

    def review_of(self, execution: Execution) -> Review:
        """The item of the review table about an execution's image."""
        result = execution.output or json.loads(execution.cause or "")
        return self.reviews.get(f"s3://{result['s3_bucket']}/{result['s3_key']}", result["s3_version_id"])

    def execute(self, request: dict[str, Any]) -> Execution:
        """Start an execution and wait for its end."""
        started = self.states.start_execution(stateMachineArn=self.machine, input=json.dumps(request))
        return self.ended(started["executionArn"])

    def classify(self, key: str, data: bytes, audited: bool = False, **more: Any) -> Execution:
        """Upload outside the trigger's prefix, execute, and wait for the end."""
        return self.execute({"s3_bucket": self.bucket, "s3_key": self.upload_drawn(key, data, audited), **more})

    def ended(self, arn: str) -> Execution:
        described = wait_for(
            lambda: (row := self.states.describe_execution(executionArn=arn))["status"] != "RUNNING" and row
        )
        pages = self.states.get_paginator("get_execution_history").paginate(executionArn=arn)
        history = [event for page in pages for event in page["events"]]
        output = described.get("output") if described["status"] == "SUCCEEDED" else None
        execution = Execution(
            arn, described["status"], json.loads(described["input"]), output and json.loads(output),
            described.get("error"), described.get("cause"), history,
        )  # fmt: skip
        self.visited |= set(execution.states)
        return execution

    def started_by_upload(self, key: str, version: str | None = None) -> Execution:
        """The execution that the upload of this key (and version) started, after its end."""

        def find():
            for page in self.states.get_paginator("list_executions").paginate(stateMachineArn=self.machine):
                for arn in [row["executionArn"] for row in page["executions"]]:
                    if arn not in self.requests:
                        described = self.states.describe_execution(executionArn=arn)
                        self.requests[arn] = json.loads(described["input"])
                    request = self.requests[arn]
                    if request.get("s3_key") == key and version in (None, request.get("s3_version_id")):
                        return arn
            return None

        return self.ended(wait_for(find))

    def message_about(self, queue_url: str, text: str, seconds: float = 10) -> dict[str, Any] | None:
        """The message in a queue that contains this text; None if there is none within the time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            response = self.sqs.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10, VisibilityTimeout=0)
            for message in response.get("Messages", []):
                if text in message["Body"]:
                    return json.loads(message["Body"])
                # Deleted, so that it is not received again or moved to the dead-letter queue.
                self.sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
            time.sleep(0.1)
        return None


def wait_for(condition, seconds: float = SECONDS_TO_END):
    """Poll `condition()` until it is true, and return its value; fail when the time is up."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return value
