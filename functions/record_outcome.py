"""RecordOutcome: the end of an execution -> a line of the prediction log, and the metrics of the business.

It is no state: EventBridge tells it of every execution that ends, of those too that a Catch would not see.

in   EventBridge's "Step Functions Execution Status Change", as it comes
out  the line: prediction_log.py
"""

import json
from typing import Any

from aws_lambda_powertools import Logger, Metrics, Tracer, single_metric
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

import prediction_log

NOT_ACCEPTED = "THRESHOLD_CONFIDENCE_NOT_MET"
MAX_LABELS = 10  # a metric for each label, and its price, only where the model has at most so many
ALL = 0.99  # of the probability: predictions with less are the best of a model that has more labels

logger = Logger()
tracer = Tracer(auto_patch=False)  # there is no client here to trace, and patching would import botocore
metrics = Metrics()


def parsed(text: str | None) -> Any:
    """What a JSON text says; the text itself where it is none."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def asked_for(execution_input: Any) -> dict[str, Any]:
    """The object in an execution's input, be it {s3_bucket, s3_key} or the event of an upload."""
    match execution_input:
        case {"detail": {"bucket": {"name": bucket}, "object": {"key": key}}}:
            return {"s3_bucket": bucket, "s3_key": key}
        case {"s3_bucket": bucket, "s3_key": key}:
            return {"s3_bucket": bucket, "s3_key": key}
    return {}


def result_of(detail: dict[str, Any]) -> dict[str, Any] | None:
    """CheckConfidence's output, which is the output of an accepted image and the cause of one for review."""
    held = {"SUCCEEDED": detail.get("output"), "FAILED": detail.get("cause")}.get(detail["status"])
    result = parsed(held) if detail.get("error") in (None, NOT_ACCEPTED) else None
    return result if isinstance(result, dict) and "accepted" in result else None


def failure_of(detail: dict[str, Any]) -> dict[str, Any]:
    """The line of an image that could not be classified."""
    request = asked_for(parsed(detail.get("input"))) | {"execution_arn": detail["executionArn"]}
    cause = parsed(detail.get("cause"))
    words = cause["errorMessage"] if isinstance(cause, dict) and "errorMessage" in cause else detail.get("cause")
    error = detail["status"] if detail["status"] == "ABORTED" else detail.get("error") or detail["status"]
    return prediction_log.failed(request, error, str(words or ""))


def count_decision(result: dict[str, Any]) -> None:
    metrics.add_metric("Accepted", MetricUnit.Count, int(result["accepted"]))
    metrics.add_metric("ForReview", MetricUnit.Count, int(not result["accepted"]))
    metrics.add_metric("Confidence", MetricUnit.NoUnit, result["confidence"])
    predictions = result["predictions"]
    has_few_labels = len(predictions) <= MAX_LABELS and sum(each["probability"] for each in predictions) > ALL
    if has_few_labels and result["label"].isascii():  # as CloudWatch wants it of a dimension
        with single_metric("LabelConfidence", MetricUnit.NoUnit, result["confidence"]) as metric:
            metric.add_dimension("label", result["label"])


def count_failure(error: str) -> None:
    metrics.add_metric("Failed", MetricUnit.Count, 1)
    with single_metric("Errors", MetricUnit.Count, 1) as metric:
        metric.add_dimension("error", error)


@logger.inject_lambda_context(correlation_id_path="detail.executionArn")
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    detail = event["detail"]
    metrics.add_metric("Images", MetricUnit.Count, 1)
    if result := result_of(detail):
        count_decision(result)
        line = prediction_log.decided(result)
    else:
        line = failure_of(detail)
        count_failure(line["error"])
    milliseconds = detail["stopDate"] - detail["startDate"]
    logger.info(prediction_log.MESSAGE, **line, milliseconds=milliseconds)
    return line
