"""The review table: what is pending, who is looking at it, and what was decided.

    reviews = ReviewTable(boto3.client("dynamodb"), outputs["ReviewTableName"])
    for review in reviews.pending(): ...

functions/review_item.py documents an item as the workflow writes it. A reviewer adds to it

claimed_by, claim_expires_at    who is looking at the image, and until when (seconds since 1970)
decision           label, none_of_these or not_usable
reviewed_label     with the decision label
reviewer, reviewed_at    who decided, and when (ISO 8601, UTC)

Every write is conditional on the revision that the reviewer saw, so no decision is overwritten unseen. Times are
DynamoDB's, from the Date header of its responses: two reviewers' clocks can differ.
"""

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.client import BaseClient

INDEX = "ByStatus"
DECISIONS = ("label", "none_of_these", "not_usable")
CLAIM_SECONDS = 300


class ReviewError(Exception):
    """The decision was not written; the message says why."""


class ReviewNotFoundError(ReviewError):
    """The table has no such item."""


class AlreadyReviewedError(ReviewError):
    """Somebody has decided already, or undone a decision, since the item was read."""


class AlreadyClaimedError(ReviewError):
    """Somebody else is looking at the image."""


@dataclasses.dataclass(frozen=True)
class Review:
    """An item of the table. An attribute that it does not have is None."""

    image: str
    version: str
    s3_bucket: str
    s3_key: str
    label: str
    confidence: float
    threshold: float
    predictions: list[dict[str, Any]]
    reason: str
    selection_probability: float
    status: str
    revision: int
    created_at: str
    endpoint: dict[str, str] | None = None
    s3_version_id: str | None = None
    execution_arn: str | None = None
    trace_id: str | None = None
    claimed_by: str | None = None
    claim_expires_at: float | None = None
    decision: str | None = None
    reviewed_label: str | None = None
    reviewer: str | None = None
    reviewed_at: str | None = None

    @property
    def key(self) -> dict[str, dict[str, str]]:
        return {"image": {"S": self.image}, "version": {"S": self.version}}


def review_of(item: dict[str, Any]) -> Review:
    """An item in DynamoDB's JSON. Attributes that this version does not know are ignored."""
    known = {field.name for field in dataclasses.fields(Review)}
    values: dict[str, Any] = {
        name: float(Decimal(value["N"])) if "N" in value else value.get("S") for name, value in item.items()
    }
    values |= {name: json.loads(values[name]) for name in ("predictions", "endpoint") if values.get(name)}
    values["revision"] = int(values.get("revision") or 0)
    return Review(**{name: value for name, value in values.items() if name in known})


class ReviewTable:
    """`client` is a boto3 client for DynamoDB."""

    def __init__(self, client: BaseClient, name: str) -> None:
        self.client, self.name = client, name
        self.time_ahead = 0.0  # of DynamoDB's clock, in seconds

    def pending(self) -> Iterator[Review]:
        """What waits for a decision, the least confident first."""
        return self.with_status("pending")

    def reviewed(self) -> Iterator[Review]:
        """What was decided, the least confident first."""
        return self.with_status("reviewed")

    def with_status(self, status: str) -> Iterator[Review]:
        pages = self.client.get_paginator("query").paginate(
            TableName=self.name,
            IndexName=INDEX,
            KeyConditionExpression="#status = :status",
            ExpressionAttributeNames={"#status": "status"},
            ExpressionAttributeValues={":status": {"S": status}},
        )
        for page in pages:
            self.read_clock(page)
            yield from map(review_of, page["Items"])

    def get(self, image: str, version: str) -> Review:
        """The item now. Raises ReviewNotFoundError."""
        key = {"image": {"S": image}, "version": {"S": version}}
        response = self.client.get_item(TableName=self.name, Key=key, ConsistentRead=True)
        self.read_clock(response)
        if "Item" not in response:
            raise ReviewNotFoundError(f"There is no review of {image} (version {version})")
        return review_of(response["Item"])

    def claim(self, review: Review, reviewer: str) -> Review:
        """Keep the image for this reviewer, for CLAIM_SECONDS. Raises AlreadyClaimed or AlreadyReviewedError."""
        return self.update(
            review,
            reviewer,
            "SET claimed_by = :reviewer, claim_expires_at = :expires",
            {":expires": {"N": str(round(self.now() + CLAIM_SECONDS))}},
        )

    def release(self, review: Review, reviewer: str) -> Review:
        """Give up the claim. Raises AlreadyClaimed or AlreadyReviewedError."""
        return self.update(review, reviewer, "REMOVE claimed_by, claim_expires_at", {})

    def decide(self, review: Review, reviewer: str, decision: str, label: str | None = None) -> Review:
        """Write a decision on the revision in `review`. The same call again changes nothing.

        Raises ReviewNotFoundError, AlreadyReviewedError or AlreadyClaimedError.
        """
        if decision not in DECISIONS or (decision == "label") != bool(label):
            raise ValueError(f"{decision} with the label {label}")
        change = (
            "SET #status = :reviewed, decision = :decision, reviewer = :reviewer, reviewed_at = :now, revision = :next"
        )
        values = {
            ":reviewed": {"S": "reviewed"},
            ":decision": {"S": decision},
            ":now": {"S": datetime.fromtimestamp(self.now(), UTC).isoformat(timespec="milliseconds")},
            ":next": {"N": str(review.revision + 1)},
        }
        if label:
            change += ", reviewed_label = :label"
            values[":label"] = {"S": label}
        change += " REMOVE claimed_by, claim_expires_at" + ("" if label else ", reviewed_label")
        try:
            return self.update(review, reviewer, change, values)
        except AlreadyReviewedError:
            now = self.get(review.image, review.version)
            if (now.revision, now.decision, now.reviewed_label, now.reviewer) == (
                review.revision + 1, decision, label, reviewer,
            ):  # fmt: skip
                return now  # a request that was repeated, because its response was lost
            raise

    def undo(self, review: Review, reviewer: str) -> Review:
        """Put the image back to where it was before the reviewer's own decision. The same call again changes nothing.

        Raises ReviewNotFoundError or AlreadyReviewedError.
        """
        response = self.write(
            review,
            "SET #status = :pending, revision = :next REMOVE decision, reviewed_label, reviewer, reviewed_at",
            "revision = :revision AND #status = :reviewed AND reviewer = :reviewer",
            {
                ":pending": {"S": "pending"},
                ":reviewed": {"S": "reviewed"},
                ":next": {"N": str(review.revision + 1)},
                ":revision": {"N": str(review.revision)},
                ":reviewer": {"S": reviewer},
            },
        )
        if response:
            return review_of(response["Attributes"])
        now = self.get(review.image, review.version)
        if (now.revision, now.status) == (review.revision + 1, "pending"):
            return now
        raise AlreadyReviewedError(f"{review.image} was decided again: {described(now)}")

    def update(self, review: Review, reviewer: str, change: str, values: dict[str, Any]) -> Review:
        """Change a pending item that nobody else has claimed, if it still is what `review` says."""
        response = self.write(
            review,
            change,
            "revision = :revision AND #status = :pending AND "
            "(attribute_not_exists(claimed_by) OR claimed_by = :reviewer OR claim_expires_at < :time)",
            values
            | {
                ":revision": {"N": str(review.revision)},
                ":pending": {"S": "pending"},
                ":reviewer": {"S": reviewer},
                ":time": {"N": str(round(self.now()))},
            },
        )
        if response:
            return review_of(response["Attributes"])
        now = self.get(review.image, review.version)
        if now.status == "pending" and now.revision == review.revision:
            raise AlreadyClaimedError(f"{now.claimed_by} is looking at {review.image}")
        raise AlreadyReviewedError(f"{review.image} was decided meanwhile: {described(now)}")

    def write(self, review: Review, change: str, condition: str, values: dict[str, Any]) -> dict[str, Any] | None:
        """The response, or None if the condition was not met."""
        try:
            response = self.client.update_item(
                TableName=self.name,
                Key=review.key,
                UpdateExpression=change,
                ConditionExpression=condition,
                ExpressionAttributeNames={"#status": "status"},
                ExpressionAttributeValues=values,
                ReturnValues="ALL_NEW",
            )
        except self.client.exceptions.ConditionalCheckFailedException:
            return None
        self.read_clock(response)
        return response

    def now(self) -> float:
        """DynamoDB's time, in seconds since 1970."""
        return datetime.now().timestamp() + self.time_ahead

    def read_clock(self, response: dict[str, Any]) -> None:
        if date := response["ResponseMetadata"]["HTTPHeaders"].get("date"):
            self.time_ahead = parsedate_to_datetime(date).timestamp() - datetime.now().timestamp()


def described(review: Review) -> str:
    """Who decided what, in words."""
    if review.status == "pending":
        return "it waits for a decision again"
    return f"{review.reviewer}: {review.reviewed_label or (review.decision or '').replace('_', ' ')}"
