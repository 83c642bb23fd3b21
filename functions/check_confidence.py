"""CheckConfidence: predictions -> the label, its confidence, and whether that reaches the threshold.

in   s3_bucket, s3_key, image, predictions, endpoint, threshold; optional s3_version_id
out  + label, confidence, accepted
"""

from typing import Any

from aws_lambda_powertools import Logger, Tracer
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract import CHECK_CONFIDENCE, validator
from predictions import check_predictions

logger = Logger()
tracer = Tracer(auto_patch=False)  # there is no client here to trace, and patching would import botocore
take = validator(CHECK_CONFIDENCE)


def decide(predictions: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """The best prediction held against the threshold; a confidence equal to the threshold is accepted."""
    best = predictions[0]
    return {
        "label": best["label"],
        "confidence": best["probability"],
        "threshold": threshold,
        "accepted": best["probability"] >= threshold,
    }


@logger.inject_lambda_context(correlation_id_path="execution_arn")
@tracer.capture_lambda_handler(capture_response=False)
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    request = take(event)
    check_predictions(request["predictions"])
    decision = decide(request["predictions"], request["threshold"])
    tracer.put_annotation("label", decision["label"])
    tracer.put_annotation("accepted", decision["accepted"])
    logger.info("confidence checked", s3_key=request["s3_key"], **decision)
    return {**request, **decision}
