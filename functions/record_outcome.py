"""RecordOutcome: an execution that has ended -> a line in the prediction log, and business metrics.

Not a state: EventBridge invokes it for every execution that ends, including those that a Catch would miss. It does so
at least once, so the outcome is claimed in a table before it is recorded.

in   EventBridge's event "Step Functions Execution Status Change"
out  the line: prediction_log.py; recorded is false if the outcome was recorded already
"""

import json
import os
import re
from typing import Any

from aws_lambda_powertools import Logger, Metrics, Tracer, single_metric
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.session import get_session

import prediction_log
from label_metric import MAX_LABELS, is_dimension

NOT_ACCEPTED = "THRESHOLD_CONFIDENCE_NOT_MET"
COMPLETE = 0.99  # a smaller sum means the list was truncated: the model has more labels
REDRIVE = re.compile(r"-redrive-(\d+)$")  # ends the name of an execution that make redrive started
CLAIM_SECONDS = 7 * 24 * 3600  # EventBridge and Lambda together deliver an event for at most 30 hours
OUTCOME_TABLE = os.environ["OUTCOME_TABLE"]

logger = Logger(xray_trace_id=None)  # it would be this invocation's, beside the execution's trace_id
tracer = Tracer(auto_patch=False)  # patching botocore would cost more time than the one call that it traces
metrics = Metrics()
dynamodb = get_session().create_client(
    "dynamodb", config=Config(connect_timeout=1, read_timeout=2, retries={"mode": "standard", "total_max_attempts": 3})
)


def parsed(text: str | None) -> Any:
    """The text parsed as JSON, or unchanged if it is not JSON or nested too deeply."""
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return text


def object_in(execution_input: Any) -> dict[str, Any]:
    """The object named in an execution's input, which is {s3_bucket, s3_key} or an upload's event."""
    match execution_input:
        case {"detail": {"bucket": {"name": bucket}, "object": {"key": key, **more}}}:
            return {"s3_bucket": bucket, "s3_key": key, "s3_version_id": more.get("version-id")}
        case {"s3_bucket": _, "s3_key": _}:
            return execution_input
    return {}


def result_of(detail: dict[str, Any]) -> dict[str, Any] | None:
    """CheckConfidence's output: the execution's output if the image was accepted, its cause if sent to review."""
    text = {"SUCCEEDED": detail.get("output"), "FAILED": detail.get("cause")}.get(detail["status"])
    result = parsed(text) if detail.get("error") in (None, NOT_ACCEPTED) else None
    return result if isinstance(result, dict) and "accepted" in result else None


def failure_of(detail: dict[str, Any]) -> dict[str, Any]:
    """The line for an image that could not be classified."""
    request = object_in(parsed(detail.get("input"))) | {"execution_arn": detail["executionArn"]}
    cause = parsed(detail.get("cause"))
    message = cause["errorMessage"] if isinstance(cause, dict) and "errorMessage" in cause else detail.get("cause")
    error = detail["status"] if detail["status"] == "ABORTED" else detail.get("error") or detail["status"]
    return prediction_log.failed(request, error, str(message or ""))


def redrives_of(detail: dict[str, Any]) -> int:
    """How often this execution, or the one that it repeats, was redriven before it ended this time."""
    restart = REDRIVE.search(detail["executionArn"])
    return (int(restart[1]) if restart else 0) + (detail.get("redriveCount") or 0)


def claim(outcome: str, request_id: str, expires: int) -> bool:
    """Whether this invocation is the one to record the outcome. Lambda's retries keep the ID of the request."""
    try:
        dynamodb.put_item(
            TableName=OUTCOME_TABLE,
            Item={"outcome": {"S": outcome}, "request_id": {"S": request_id}, "expires": {"N": str(expires)}},
            ConditionExpression="attribute_not_exists(outcome) OR request_id = :request_id",
            ExpressionAttributeValues={":request_id": {"S": request_id}},
        )
    except dynamodb.exceptions.ConditionalCheckFailedException:
        return False
    return True


def count(result: dict[str, Any] | None, line: dict[str, Any], is_redrive: bool) -> None:
    """Count the image once, by its last outcome: what a redrive decides no longer counts as failed."""
    if not is_redrive:
        metrics.add_metric("Images", MetricUnit.Count, 1)
    if result:
        count_decision(result)
    else:
        with single_metric("Errors", MetricUnit.Count, 1) as metric:
            metric.add_dimension("error", line["error"])
    if bool(result) == is_redrive:
        metrics.add_metric("Failed", MetricUnit.Count, -1 if is_redrive else 1)


def count_decision(result: dict[str, Any]) -> None:
    metrics.add_metric("Accepted", MetricUnit.Count, int(result["accepted"]))
    metrics.add_metric("ForReview", MetricUnit.Count, int(not result["accepted"]))
    metrics.add_metric("Confidence", MetricUnit.NoUnit, result["confidence"])
    predictions = result["predictions"]
    has_few_labels = len(predictions) <= MAX_LABELS and sum(each["probability"] for each in predictions) > COMPLETE
    if has_few_labels and is_dimension(result["label"]):
        with single_metric("LabelConfidence", MetricUnit.NoUnit, result["confidence"]) as metric:
            metric.add_dimension("label", result["label"])


@logger.inject_lambda_context(correlation_id_path="detail.executionArn")
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    detail = event["detail"]
    tracer.put_annotation("execution_arn", detail["executionArn"])
    redrives = redrives_of(detail)
    result = result_of(detail)
    line = prediction_log.decided(result) if result else failure_of(detail)
    line |= {"redrives": redrives} if redrives else {}
    outcome = f"{detail['executionArn']}#{detail.get('redriveCount') or 0}"
    expires = detail["stopDate"] // 1000 + CLAIM_SECONDS
    if not claim(outcome, context.aws_request_id, expires):
        logger.info("outcome already recorded")
        return line | {"recorded": False}
    count(result, line, is_redrive=redrives > 0)
    logger.info(prediction_log.MESSAGE, **line, milliseconds=detail["stopDate"] - detail["startDate"])
    return line | {"recorded": True}
