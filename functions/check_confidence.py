"""CheckConfidence: predictions -> the best label, its confidence, and whether it reaches the threshold.

in   s3_bucket, s3_key, s3_version_id or s3_etag, image, predictions, endpoint, threshold, audit_rate
out  + label, confidence, accepted, trace_id (the execution's trace in X-Ray), review_item (review_item.py; {} if none)
"""

import os
from typing import Any

from aws_lambda_powertools import Logger, Tracer
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract import CHECK_CONFIDENCE, InvalidInputError, validator
from predictions import check_predictions
from review_item import item_for

logger = Logger()
tracer = Tracer(auto_patch=False)  # there are no clients to trace, and patching would import botocore
validated = validator(CHECK_CONFIDENCE)


def check_version(request: dict[str, Any]) -> None:
    """Raise InvalidInputError if the request names no version of the image; RetrieveImage adds it."""
    if not request.keys() & {"s3_version_id", "s3_etag"}:
        raise InvalidInputError("The input is not valid: it must contain s3_version_id or s3_etag")


def decide(predictions: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Accept the best prediction if its probability is at least the threshold."""
    best = predictions[0]
    return {
        "label": best["label"],
        "confidence": best["probability"],
        "threshold": threshold,
        "accepted": best["probability"] >= threshold,
    }


def trace_id() -> dict[str, str]:
    """The trace of this invocation, which is its execution's: {"trace_id"}, or {} where nothing is traced."""
    root, _, value = os.environ.get("_X_AMZN_TRACE_ID", "").partition(";")[0].partition("=")
    return {"trace_id": value} if root == "Root" else {}


@logger.inject_lambda_context(correlation_id_path="execution_arn")
@tracer.capture_lambda_handler(capture_response=False)
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    request = validated(event)
    audit_rate = request.pop("audit_rate", None)  # missing if the execution began before the stack had a review table
    if audit_rate is not None:
        check_version(request)
    check_predictions(request["predictions"])
    decision = decide(request["predictions"], request["threshold"])
    tracer.put_annotation("label", decision["label"])
    tracer.put_annotation("accepted", decision["accepted"])
    logger.info("confidence checked", s3_key=request["s3_key"], **decision)
    result = {**request, **decision, **trace_id()}
    return result if audit_rate is None else {**result, "review_item": item_for(result, audit_rate)}
