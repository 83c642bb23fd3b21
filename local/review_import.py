"""make review-import: write the decisions in a file to the review table.

make review-import FORMAT=labelstudio FILE=export.json       Label Studio's export named JSON
make review-import FORMAT=csv FILE=reviews.csv REVIEWER=ada  filled in: decision and reviewed_label
make review-import FORMAT=folders FILE=images REVIEWER=ada   images moved into the folders of their labels
make review-import FORMAT=queue FILE=messages.jsonl          what make review-drain saved of an older version's queue

Only pending images are decided, so a repeated import changes nothing. What cannot be written is listed, and the import
fails: a label or an image that the stack does not know, an image that somebody decided differently.
REVIEWER is the name to record where the file has none.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.client import BaseClient
from botocore.exceptions import ClientError

from functions.review_item import Item, item_for
from local.command import StackError, UsageError, absolute, check_reviewer, console, one_of, report_errors
from local.progress import in_parallel
from local.review_export import WORKERS, known_labels, listed, missing, review_table, with_status
from local.target import Target, target
from review import exchange
from review.exchange import Decision, ExchangeError, Found, Rejected
from review.table import AlreadyClaimedError, AlreadyReviewedError, ReviewNotFoundError, ReviewTable, described

FORMATS = ("labelstudio", "csv", "folders", "queue")
Outcome = tuple[str, str]  # what was done with a decision or a message, and a line for the list of those
DECIDED, UNCHANGED = "decided", "unchanged"
DIFFERENT, CLAIMED = "Decided differently before, not overwritten", "Somebody is looking at it, try again"
UNKNOWN_IMAGE, UNKNOWN_LABEL = "Not in the review table", "Unknown labels"
OPTIONAL_TEXTS = ("s3_version_id", "s3_etag", "execution_arn", "trace_id", "sent_at")
UNUSABLE, GONE = "Rejected", "No longer in S3, not added"


class MessageError(Exception):
    """A line is not a message of the old review queue."""


# decisions


def decisions(found: Target, options: argparse.Namespace, table: ReviewTable, labels: list[str]) -> Iterator[Found]:
    path = Path(options.file)
    if options.format == "csv":
        return exchange.read_csv(path)
    if options.format == "labelstudio":
        return exchange.read_label_studio(path)
    items = {
        exchange.image_hash(review.image, review.version): (review.image, review.version)
        for review in with_status(table, "all")
    }
    return exchange.read_folders(path, labels, items)


def sort_out(rows: Iterable[Found], labels: list[str]) -> tuple[list[Decision], list[Outcome]]:
    """The decisions that can be written, one for each item, and what cannot be."""
    problems: list[Outcome] = []
    by_item: dict[tuple[str, str], list[Decision]] = defaultdict(list)
    unknown: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, Rejected):
            problems.append((UNUSABLE, f"{row.where}: {row.reason}"))
        elif row.label and row.label not in labels:
            unknown[row.label] += 1
        elif not row.can_be_stored:
            problems.append((UNUSABLE, f"{row.where}: it names no image and version, or its texts are not Unicode"))
        else:
            by_item[row.image, row.version].append(row)
    known = ", ".join(labels)
    problems += [
        (UNKNOWN_LABEL, f"{label!r} ({'once' if number == 1 else f'{number:,} times'}): known are {known}")
        for label, number in unknown.items()
    ]
    usable = []
    for (image, _), rows_of_item in by_item.items():
        if len({(row.decision, row.label) for row in rows_of_item}) == 1:
            usable.append(rows_of_item[0])
        else:
            said = ", ".join(f"{row.where}: {row.label or row.decision}" for row in rows_of_item)
            problems.append((UNUSABLE, f"{image} is decided in several ways ({said})"))
    return usable, problems


def writer(table: ReviewTable, fallback: str) -> Callable[[Decision], Outcome]:
    """A function that writes a decision, if its item is pending."""

    def write(row: Decision) -> Outcome:
        name = f"{row.where}: {row.image} (version {row.version})"
        try:
            review = table.get(row.image, row.version)
            if review.status == "pending":
                table.decide(review, row.reviewer or fallback, row.decision, row.label)
                return DECIDED, name
        except ReviewNotFoundError:
            return UNKNOWN_IMAGE, name
        except AlreadyClaimedError as error:
            return CLAIMED, f"{name}: {error}"
        except AlreadyReviewedError:
            review = table.get(row.image, row.version)
        if (review.decision, review.reviewed_label) == (row.decision, row.label):
            return UNCHANGED, name
        return DIFFERENT, f"{name}: {described(review)}; the file says {row.label or row.decision}"

    return write


def import_decisions(found: Target, options: argparse.Namespace) -> list[Outcome]:
    """Write the file's decisions. Raises ExchangeError, UsageError before the first is written."""
    table = review_table(found)
    labels = known_labels(found, table)
    usable, problems = sort_out(decisions(found, options, table, labels), labels)
    if not options.reviewer and (nameless := [row.where for row in usable if not row.reviewer]):
        raise UsageError(f"Who decided? FILE does not say ({nameless[0]}): add REVIEWER=name")
    write = writer(table, options.reviewer)
    return list(in_parallel("Importing decisions", write, usable, len(usable), WORKERS)) + problems


# the messages of the old review queue


def message_in(line: str) -> dict[str, Any]:
    """CheckConfidence's result. Raises MessageError."""
    try:
        message = json.loads(line)
        json.dumps(message, ensure_ascii=False).encode()  # half of a surrogate pair is not Unicode
        predictions = message["predictions"]
        for name in ("s3_bucket", "s3_key", "label", *({*OPTIONAL_TEXTS} & {*message})):
            if not isinstance(message[name], str) or not message[name]:
                raise MessageError(f"{name} is not a text")
        for number in (message["confidence"], message["threshold"], *[row["probability"] for row in predictions]):
            if type(number) not in (int, float) or not 0 <= number <= 1:
                raise MessageError(f"{number!r} is not a number from 0 to 1")
        if not predictions or not all(isinstance(row["label"], str) for row in predictions):
            raise MessageError("the predictions have no labels")
        if "sent_at" in message:
            datetime.fromisoformat(message["sent_at"]).astimezone()
    except KeyError as error:
        raise MessageError(f"there is no {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise MessageError(f"it is not a message of the review queue: {error}") from None
    return message


def version_now(s3: BaseClient, message: dict[str, Any]) -> dict[str, str]:
    """The version of the object, for messages without one. Raises ClientError, MessageError if it was replaced."""
    found = s3.head_object(Bucket=message["s3_bucket"], Key=message["s3_key"])
    if "sent_at" in message and found["LastModified"] > datetime.fromisoformat(message["sent_at"]).astimezone():
        raise MessageError("another image has replaced it")
    if found.get("VersionId", "null") != "null":
        return {"s3_version_id": found["VersionId"]}
    return {"s3_etag": found["ETag"].strip('"')}


def item_of(message: dict[str, Any], s3: BaseClient) -> Item:
    if message.get("s3_version_id") in (None, "", "null") and not message.get("s3_etag"):
        message = {name: value for name, value in message.items() if name != "s3_version_id"} | version_now(s3, message)
    item = item_for({"endpoint": {}, **message, "accepted": False}, audit_rate=0)
    return item | ({"created_at": {"S": message["sent_at"]}} if "sent_at" in message else {})


def adder(found: Target, table: ReviewTable) -> Callable[[tuple[int, str]], Outcome]:
    """A function that adds a message's item to the table, if it is not there."""
    s3 = found.client("s3")

    def add(numbered: tuple[int, str]) -> Outcome:
        number, line = numbered
        try:
            message = message_in(line)
        except MessageError as error:
            return UNUSABLE, f"line {number}: {error}"
        name = f"line {number}: s3://{message['s3_bucket']}/{message['s3_key']}"
        try:
            item = item_of(message, s3)
        except MessageError as error:
            return GONE, f"{name}: {error}"
        except ClientError as error:
            return GONE, f"{name}: {missing(error)}"
        try:
            table.client.put_item(TableName=table.name, Item=item, ConditionExpression="attribute_not_exists(image)")
        except table.client.exceptions.ConditionalCheckFailedException:
            return UNCHANGED, name
        return "added", name

    return add


def import_queue(found: Target, options: argparse.Namespace) -> list[Outcome]:
    """Add the messages' items; never replace one."""
    try:
        with Path(options.file).open(encoding="utf-8-sig") as file:
            total = sum(1 for _ in file)
            file.seek(0)
            add = adder(found, review_table(found))
            lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            return list(in_parallel("Adding reviews", add, lines, total, WORKERS))
    except UnicodeDecodeError:
        raise ExchangeError(f"{options.file} is not UTF-8") from None


def report(outcomes: list[Outcome], file: str) -> None:
    """Print what was done. Raises StackError if anything in the file was not written."""
    counts = Counter(kind for kind, _ in outcomes)
    good = [kind for kind in (DECIDED, "added", UNCHANGED) if counts[kind]]
    console.print(
        f"{file}: {', '.join(f'{counts[kind]:,} {kind}' for kind in good) or 'nothing changed'}", markup=False
    )
    bad = [kind for kind in counts if kind not in (DECIDED, "added", UNCHANGED)]
    for kind in bad:
        listed(kind, [line for each, line in outcomes if each == kind])
    if bad:
        rest = "; the rest was, and another import does not repeat it" if counts[DECIDED] or counts["added"] else ""
        raise StackError(f"What is listed was not written{rest}.")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="", help=", ".join(FORMATS))
    parser.add_argument("--file", default="", help="the file, or the folder, to read")
    parser.add_argument("--reviewer", default="", help="who decided, where the file does not say it")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; by default the local stack")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Make FILE absolute. Raises UsageError."""
    one_of("FORMAT", options.format, FORMATS)
    options.file = absolute("FILE", options.file)
    path = Path(options.file)
    if not (path.is_dir() if options.format == "folders" else path.is_file()):
        raise UsageError(f"FILE={path} is not a {'folder' if options.format == 'folders' else 'file'}")
    check_reviewer(options.reviewer)


def main() -> None:
    options = parse()
    with report_errors():
        check_options(options)
        with target(options.stack, share=True) as found:
            try:
                outcomes = (import_queue if options.format == "queue" else import_decisions)(found, options)
            except ExchangeError as error:
                raise StackError(str(error)) from None
            report(outcomes, options.file)


if __name__ == "__main__":
    main()
