"""RecordReview: a decision on a review -> an event, and a line in the prediction log.

Not a state: DynamoDB's stream of the review table invokes it, so no decision goes unrecorded, whoever wrote it. Streams
deliver at least once: `revision` tells a repetition from a new decision.

in   DynamoDB's stream record of an item that was decided or undone; the event source mapping passes one at a time
"""

import json
from decimal import Decimal
from typing import Any

from aws_lambda_powertools import Logger, Tracer
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

MESSAGE = "review"  # identifies these lines among others of the log group
REVIEWED, UNDONE = "Image Reviewed", "Image Review Undone"
OBJECT = ("s3_bucket", "s3_key", "s3_version_id", "version")
CLASSIFIED = ("label", "confidence", "threshold", "reason", "selection_probability", "execution_arn")
DECIDED = ("decision", "reviewed_label", "reviewer", "reviewed_at", "revision")

logger = Logger()
tracer = Tracer(auto_patch=False)
events = get_session().create_client(
    "events", config=Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard"})
)


class DecisionNotPublishedError(Exception):
    """EventBridge did not accept the event: Lambda tries again for a day, before the decisions after it."""


def plain(item: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The item's texts and numbers, from DynamoDB's JSON."""
    return {name: float(Decimal(value["N"])) if "N" in value else value.get("S") for name, value in item.items()}


def detail_of(item: dict[str, Any]) -> dict[str, Any]:
    """What the line and the event say. After an undo there is no decision."""
    detail = {name: item[name] for name in OBJECT + CLASSIFIED + DECIDED if name in item}
    return detail | {"revision": int(item.get("revision", 0))}


def publish(detail_type: str, detail: dict[str, Any]) -> None:
    """Publish the event. Raises DecisionNotPublishedError."""
    entry = {"Source": "image-classification", "DetailType": detail_type, "Detail": json.dumps(detail)}
    try:
        response = events.put_events(Entries=[entry])
    except (ClientError, BotoCoreError) as error:
        raise DecisionNotPublishedError(str(error)) from None
    if response["FailedEntryCount"]:
        raise DecisionNotPublishedError(response["Entries"][0]["ErrorMessage"])


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> None:
    (record,) = event["Records"]
    item = plain(record["dynamodb"]["NewImage"])
    detail = detail_of(item)
    logger.set_correlation_id(item.get("execution_arn"))
    publish(REVIEWED if item["status"] == "reviewed" else UNDONE, detail)
    logger.info(MESSAGE, **detail)
