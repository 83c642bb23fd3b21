"""make review-drain FILE=messages.jsonl STACK=name: save the review queue of version 0.1 before the update deletes it.

Start it before `make deploy` and leave it running: it moves the messages of the review queue and of its dead-letter
queue to FILE, and ends when the update has deleted both, so that no message of the meantime is lost. A message is
deleted from the queue only after it is on the disk. Then `make review-import FORMAT=queue FILE=messages.jsonl
STACK=name` puts the images into the review table.
"""

import argparse
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from botocore.client import BaseClient

from local.command import StackError, UsageError, console, report_errors
from local.target import target

SECONDS_HIDDEN = 60  # of a message, until it is saved
SECONDS_TO_WAIT = 2  # for a message, in a queue that is empty


def queues(sqs: BaseClient, url: str) -> list[str]:
    """The review queue and its dead-letter queue."""
    policy = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"]).get("Attributes", {})
    if "RedrivePolicy" not in policy:
        return [url]
    name = json.loads(policy["RedrivePolicy"])["deadLetterTargetArn"].rpartition(":")[2]
    return [url, sqs.get_queue_url(QueueName=name)["QueueUrl"]]


def line_of(message: dict[str, Any]) -> str:
    """The message's body as a line of JSON, with the time at which it was sent. A body that is no JSON stays a text."""
    sent_at = datetime.fromtimestamp(int(message["Attributes"]["SentTimestamp"]) / 1000, UTC)
    try:
        body = json.loads(message["Body"])
    except ValueError:
        body = message["Body"]
    more = {"sent_at": sent_at.isoformat(timespec="milliseconds")}
    return json.dumps(body | more if isinstance(body, dict) else body)


def save(messages: list[dict[str, Any]], file: TextIO) -> None:
    """Append the messages to the file, and wait until they are on the disk."""
    file.writelines(f"{line_of(message)}\n" for message in messages)
    file.flush()
    os.fsync(file.fileno())


def drain(sqs: BaseClient, urls: list[str], file: TextIO) -> Iterator[int]:
    """Move messages to the file until the queues are deleted. Yields how many were moved, 0 if there were none."""
    query = {"MaxNumberOfMessages": 10, "VisibilityTimeout": SECONDS_HIDDEN, "WaitTimeSeconds": SECONDS_TO_WAIT}
    left = list(urls)
    while left:
        moved = 0
        for url in list(left):
            try:
                messages = sqs.receive_message(QueueUrl=url, AttributeNames=["SentTimestamp"], **query)
                if found := messages.get("Messages", []):
                    save(found, file)
                    handles = [
                        {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                        for number, message in enumerate(found)
                    ]
                    sqs.delete_message_batch(QueueUrl=url, Entries=handles)
                moved += len(found)
            except sqs.exceptions.QueueDoesNotExist:
                left.remove(url)
        if left:
            yield moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="", help="messages are appended to it")
    parser.add_argument("--stack", default="", help="name of a stack on AWS")
    options = parser.parse_args()
    with report_errors():
        if not options.file or not options.stack or not Path(options.file).absolute().parent.is_dir():
            raise UsageError("make review-drain FILE=messages.jsonl STACK=name, with FILE in a folder that exists")
        with target(options.stack) as found, Path(options.file).open("a", encoding="utf-8") as file:
            if "ReviewQueueUrl" not in found.outputs:
                raise StackError(f"{found.place} has no review queue: there is nothing to save")
            sqs, total, told = found.client("sqs"), 0, False
            for moved in drain(sqs, queues(sqs, found.outputs["ReviewQueueUrl"]), file):
                total += moved
                if not moved and not told:
                    told = True
                    console.print(
                        f"{total:,} messages saved in {options.file}; the queues are empty. Now update the stack with "
                        "make deploy in another terminal. This command ends when the update has deleted the queues.",
                        markup=False,
                        soft_wrap=True,
                    )
            console.print(f"{total:,} messages saved in {options.file}; the queues are deleted.", markup=False)


if __name__ == "__main__":
    main()
