"""make redrive [STACK=name]: start again what the failure queue holds, on the local stack or on AWS.

- An execution that failed, timed out or was stopped is started again with the same input, under its name and
  "-redrive-1", "-redrive-2" ... A new execution uses the current definition, which AWS's RedriveExecution does not.
- An upload that started no execution is passed to StartExecution.
- An outcome that was not recorded is passed to RecordOutcome's state machine, which records it once.
- The hourly metrics that were not published are published now.
- A batch is left, with the command that redrives it: `make batch` repeats only its failed part, and shows its progress.

A message is deleted only after this succeeded. Each name is derived from the message, so a command that is
interrupted and repeated starts nothing twice. What fails again returns to the queue as a new message.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from botocore.client import BaseClient
from botocore.exceptions import ClientError

from local.command import LOCAL, StackError, console, lock, report_errors
from local.deployment import OUTPUTS
from local.emulator.processes import running
from local.target import target

SECONDS_HIDDEN = 300  # of a message, if the command is interrupted while it works on it
MAX_NAME = 80  # characters of an execution's name


class RedriveError(Exception):
    """This message could not be redriven and stays in the queue."""


def messages(sqs: BaseClient, queue_url: str) -> Iterator[dict[str, Any]]:
    """The visible messages of a queue, each once."""
    query = {"QueueUrl": queue_url, "MaxNumberOfMessages": 10, "VisibilityTimeout": SECONDS_HIDDEN}
    while received := sqs.receive_message(**query, MessageAttributeNames=["All"]).get("Messages"):
        yield from received


def next_name(arn: str) -> str:
    """The name under which an execution is started again."""
    name, _, number = re.fullmatch(r"(.*?)(-redrive-(\d+))?", arn.rpartition(":")[2]).groups()  # type: ignore[union-attr]
    suffix = f"-redrive-{int(number or 0) + 1}"
    return name[: MAX_NAME - len(suffix)] + suffix


class Redrive:
    """Redrives the messages of one stack's failure queue. `client` makes boto3 clients."""

    def __init__(self, client: Callable[[str], BaseClient], outputs: dict[str, str]) -> None:
        self.states, self.functions, self.sqs = (client(name) for name in ("stepfunctions", "lambda", "sqs"))
        self.outputs = outputs
        self.started: set[str] = set()  # by this command: what returns to the queue meanwhile is left there

    def run(self) -> tuple[Counter[str], list[str]]:
        """How many messages of each kind were redriven, and why others stay in the queue."""
        done: Counter[str] = Counter()
        left: dict[str, str] = {}
        queue = self.outputs["FailureQueueUrl"]
        for message in messages(self.sqs, queue):
            try:
                done[self.redrive(message)] += 1
            except (RedriveError, ClientError) as error:
                left[message["ReceiptHandle"]] = str(error)
                continue
            self.sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        for handle in left:  # only now, or they would be received again
            self.sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=0)
        return done, list(left.values())

    def redrive(self, message: dict[str, Any]) -> str:
        try:
            body = json.loads(message["Body"])
            if "DDBStreamBatchInfo" in body:
                raise RedriveError("decisions not published within a day: the review table has them")
            event = body.get("requestPayload", body)  # an event that a function rejected, in the emulator's envelope
            source, detail = event["source"], event["detail"]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise RedriveError(f"message {message['MessageId']} is no event") from None
        if source == "aws.s3":
            self.invoke("StartExecution", event, detail["object"]["key"])
            return "uploads"
        if source == "aws.events":
            self.invoke("PublishReviewMetrics", event, "the schedule's event")
            return "metrics"
        if source == "aws.states" and detail["stateMachineArn"] == self.outputs["ClassifyImageStateMachineArn"]:
            # RecordOutcome's state machine adds not_recorded; EventBridge adds attributes, if it could not start it.
            if "not_recorded" in event or message.get("MessageAttributes"):
                self.record(event)
                return "outcomes"
            self.restart(detail)
            return "executions"
        if source == "aws.states" and detail["stateMachineArn"] == self.outputs["ClassifyBatchStateMachineArn"]:
            name = detail["executionArn"].rpartition(":")[2]
            raise RedriveError(f"a batch: make batch EXECUTION={name} REDRIVE=true, then delete its message")
        raise RedriveError(f"message {message['MessageId']} is of another source: {source}")

    def restart(self, detail: dict[str, Any]) -> None:
        arn = detail["executionArn"]
        if arn.rpartition(":")[2] in self.started:
            raise RedriveError(f"failed again: {detail.get('error') or detail['status']}")
        request = detail.get("input") or self.states.describe_execution(executionArn=arn)["input"]
        name = next_name(arn)
        self.started.add(name)
        try:
            self.states.start_execution(stateMachineArn=detail["stateMachineArn"], name=name, input=request)
        except self.states.exceptions.ExecutionAlreadyExists:
            return  # by an interrupted command, or for a second event of the same failure
        console.print(f"started {name} ({detail.get('error') or detail['status']})", markup=False)

    def record(self, event: dict[str, Any]) -> None:
        """The state machine's claims make this happen once, even if the command is interrupted and repeated."""
        failed = event.get("not_recorded", {})
        if failed.get("claimed_by") in self.started:
            raise RedriveError(f"not recorded again: {failed['error']}")
        machine = self.outputs["RecordOutcomeStateMachineArn"]
        self.started.add(self.states.start_execution(stateMachineArn=machine, input=json.dumps(event))["executionArn"])
        console.print(f"passed {event['detail']['executionArn']} to RecordOutcome", markup=False)

    def invoke(self, function: str, event: dict[str, Any], subject: str) -> None:
        name = self.outputs[f"{function}FunctionName"]
        response = self.functions.invoke(FunctionName=name, Qualifier="live", Payload=json.dumps(event))
        if "FunctionError" in response:
            raise RedriveError(f"{function}: {json.load(response['Payload']).get('errorMessage')}")
        console.print(f"passed {subject} to {function}", markup=False)


def local_stack() -> Redrive:
    stack = running(LOCAL / "stack")
    if not stack or not OUTPUTS.exists():
        raise StackError("The local stack is not running. For a stack on AWS: make redrive STACK=name")
    return Redrive(stack.client, json.loads(OUTPUTS.read_text()))


def report(done: Counter[str], left: list[str]) -> None:
    """Print what was redriven; StackError if messages are left."""
    for reason, number in Counter(left).items():
        console.print(f"left in the queue: {number} x {reason}", markup=False)
    counts = [f"{number} {kind}" for kind, number in done.items()]
    console.print(f"Redriven: {', '.join(counts)}." if done else "Nothing was redriven.")
    if left:
        raise StackError(f"{len(left)} messages could not be redriven and are still in the failure queue.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", default="", help="name of a stack on AWS; otherwise the local stack")
    options = parser.parse_args()
    with report_errors():
        if options.stack:
            with target(options.stack) as found:
                return report(*Redrive(found.client, found.outputs).run())
        with lock():  # a stack that target() would start has an empty queue
            report(*local_stack().run())


if __name__ == "__main__":
    main()
