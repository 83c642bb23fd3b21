"""PublishReviewMetrics: the review table and the predicted labels -> metrics on reviews, accuracy and drift.

Not a state: a schedule invokes it once an hour. A metric for which there is too little data is not published.

in   EventBridge's "Scheduled Event"; its detail has model_name, the name of the deployed model, metadata_url, the
     s3:// URL of its metadata.json, both empty if the stack has no model of its own, and min_accepted_accuracy, the
     limit of AccuracyAlarm
out  nothing: the metrics are log lines
"""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import get_session

import drift
import label_metric
from accuracy import accepted_accuracy

TABLE = os.environ["REVIEW_TABLE"]
INDEX = "ByAge"
MAX_PAGES = 300  # of a query, with 1 MB each, which is about a million reviews: more do not count
MIN_BOUNDED = 76  # audits for a lower bound, unless the estimate is low too: three may be wrong at a bound of 0.9
AUDITED_DAYS = 30  # audits of images that were classified in this time, by the deployed model
PREDICTED_DAYS = 7  # labels of this time: whole weeks, because weekends often differ
PERIOD = 300  # seconds: labels of an earlier model count for at most so long
MIN_PREDICTED = 100  # images; chance alone then explains an index of 0.16 for ten labels, and of 0.34 with half as many
NO_MODEL = {"AccessDeniedException", "ValidationException"}  # the model before, while the stack is updated
UNKNOWN = {"AccessDenied", "NoSuchBucket", "NoSuchKey"}  # without s3:ListBucket, a missing key is AccessDenied

AUDITS = {
    "FilterExpression": "reason = :audit",
    "ProjectionExpression": "#status, created_at, label, reason, selection_probability, decision, reviewed_label",
}

Item = dict[str, Any]

logger = Logger()
tracer = Tracer(auto_patch=False)
metrics = Metrics()
config = Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 5})
dynamodb = get_session().create_client("dynamodb", config=config)
cloudwatch = get_session().create_client("cloudwatch", config=config)
s3 = get_session().create_client("s3", config=config)
sagemaker = get_session().create_client("sagemaker", config=config)


def pages(condition: str, values: dict[str, str], **options: Any) -> Iterator[dict[str, Any]]:
    """The pages of a query of the index."""
    request = {
        "TableName": TABLE,
        "IndexName": INDEX,
        "KeyConditionExpression": condition,
        "ExpressionAttributeNames": {"#status": "status"},
        "ExpressionAttributeValues": {name: {"S": value} for name, value in values.items()},
        **options,
    }
    for _ in range(MAX_PAGES):
        page = dynamodb.query(**request)
        yield page
        if "LastEvaluatedKey" not in page:
            return
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def items_of(page: dict[str, Any]) -> list[Item]:
    """The items of a page as texts and numbers."""
    return [
        {name: float(value["N"]) if "N" in value else value["S"] for name, value in item.items()}
        for item in page["Items"]
    ]


def oldest_age(now: datetime) -> float:
    """How long the oldest image has waited for review, in seconds; 0 if none does."""
    page = next(pages("#status = :status", {":status": "pending"}, Limit=1))
    ages = [(now - datetime.fromisoformat(item["created_at"])).total_seconds() for item in items_of(page)]
    return max([0.0, *ages])


def pending() -> tuple[int, list[Item]]:
    """How many images wait for review, and those of them that are audits."""
    found = list(pages("#status = :status", {":status": "pending", ":audit": "audit"}, **AUDITS))
    return sum(page["ScannedCount"] for page in found), [item for page in found for item in items_of(page)]


def reviewed_audits(since: str) -> list[Item]:
    values = {":status": "reviewed", ":since": since, ":audit": "audit"}
    found = pages("#status = :status AND created_at >= :since", values, ScanIndexForward=False, **AUDITS)
    return [item for page in found for item in items_of(page)]


def deployment_time(model: str) -> datetime | None:
    """When the model was deployed, promoted or returned to: each makes a new resource.

    Long ago if the stack has no model of its own; None if another one is just being deployed.
    """
    if not model:
        return datetime.min.replace(tzinfo=UTC)
    try:
        created: datetime = sagemaker.describe_model(ModelName=model)["CreationTime"]
    except ClientError as error:
        if error.response["Error"]["Code"] not in NO_MODEL:
            raise
        logger.info("the deployed model is unknown", model=model, reason=str(error)[:200])
        return None
    return created.astimezone(UTC)


def training_mix(url: str) -> dict[str, int]:
    """How many images of each label the model was trained on; empty if that is not known."""
    if not url:
        return {}
    bucket, _, key = url.removeprefix("s3://").partition("/")
    try:
        metadata = json.load(s3.get_object(Bucket=bucket, Key=key)["Body"])
    except ClientError as error:
        if error.response["Error"]["Code"] not in UNKNOWN:
            raise
        metadata = str(error)
    except ValueError as error:
        metadata = str(error)
    match metadata:
        case {"images": {"train": dict(counts)}}:
            return counts
    logger.info("training's mix is unknown", url=url, reason=str(metadata)[:200])
    return {}


def predicted_mix(labels: list[str], since: datetime, now: datetime) -> dict[str, int]:
    """How many images of each label were classified, from the metric LabelConfidence."""
    queries = [
        {
            "Id": f"label{number}",
            "MetricStat": {
                "Metric": {
                    "Namespace": os.environ["POWERTOOLS_METRICS_NAMESPACE"],
                    "MetricName": label_metric.NAME,
                    "Dimensions": [
                        {"Name": "service", "Value": os.environ["POWERTOOLS_SERVICE_NAME"]},
                        {"Name": "label", "Value": label},
                    ],
                },
                "Period": PERIOD,
                "Stat": "SampleCount",
            },
        }
        for number, label in enumerate(labels)
    ]
    response = cloudwatch.get_metric_data(MetricDataQueries=queries, StartTime=since, EndTime=now)
    counts = {result["Id"]: round(sum(result["Values"])) for result in response["MetricDataResults"]}
    return {label: counts[f"label{number}"] for number, label in enumerate(labels)}


def label_drift(url: str, since: datetime, now: datetime) -> tuple[float, float] | None:
    """The drift of the labels predicted since then, and what chance alone explains; None with too little data."""
    reference = training_mix(url)
    if not 1 < len(reference) <= label_metric.MAX_LABELS or not all(map(label_metric.is_dimension, reference)):
        return None
    predicted = predicted_mix(list(reference), since, now)
    images = sum(predicted.values())
    if images < MIN_PREDICTED:
        return None
    return sum(drift.contributions(reference, predicted).values()), drift.by_chance(reference, images)


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> None:
    now = datetime.now(UTC)
    age = oldest_age(now)
    count, waiting = pending()
    metrics.add_metric("PendingReviews", MetricUnit.Count, count)
    metrics.add_metric("OldestPendingReviewAge", MetricUnit.Seconds, age)
    detail = {"model_name": "", "min_accepted_accuracy": 0} | event["detail"]  # an earlier version's has only the URL
    deployed = deployment_time(detail["model_name"])
    if not deployed:
        return
    since = max(deployed, now - timedelta(days=AUDITED_DAYS)).isoformat(timespec="milliseconds")
    recent = [item for item in waiting if item["created_at"] >= since]
    if accuracy := accepted_accuracy(recent + reviewed_audits(since)):
        metrics.add_metric("AcceptedAccuracy", MetricUnit.NoUnit, accuracy.estimate)
        if accuracy.reviewed >= MIN_BOUNDED or accuracy.estimate < detail["min_accepted_accuracy"]:
            metrics.add_metric("AcceptedAccuracyLowerBound", MetricUnit.NoUnit, accuracy.lower_bound)
    week = now.replace(minute=0, second=0, microsecond=0) - timedelta(days=PREDICTED_DAYS)
    if found := label_drift(detail["metadata_url"], max(deployed, week), now):
        metrics.add_metric("LabelDrift", MetricUnit.NoUnit, found[0])
        metrics.add_metric("LabelDriftByChance", MetricUnit.NoUnit, found[1])
