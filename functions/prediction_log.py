"""A line of the prediction log: the outcome of one image.

outcome       accepted, review (the confidence is below the threshold) or error
s3_bucket, s3_key, s3_version_id (s3_etag in a bucket without versions), execution_arn
trace_id      the execution's trace in X-Ray: accepted and review
label, confidence, threshold, predictions (the best MAX_PREDICTIONS), endpoint, image    accepted and review
error, cause                                                                            error: its name and message
redrives      how often the execution was redriven before; omitted if never
"""

from typing import Any

MESSAGE = "prediction"  # identifies these lines among others of the log group
MAX_PREDICTIONS = 5
MAX_CAUSE = 1000  # characters
OBJECT = ("s3_bucket", "s3_key", "s3_version_id", "execution_arn", "s3_etag")
DECISION = ("trace_id", "label", "confidence", "threshold", "endpoint", "image")


def decided(result: dict[str, Any]) -> dict[str, Any]:
    """The line for a classified image, from CheckConfidence's output."""
    return {
        "outcome": "accepted" if result["accepted"] else "review",
        **{key: result[key] for key in OBJECT + DECISION if key in result},
        "predictions": result["predictions"][:MAX_PREDICTIONS],
    }


def failed(request: dict[str, Any], error: str, cause: str) -> dict[str, Any]:
    """The line for an image that could not be classified: the requested object, the error's name and its message."""
    identified = {key: encodable(request[key]) for key in OBJECT if isinstance(request.get(key), str)}
    return {"outcome": "error", **identified, "error": error, "cause": encodable(cause[:MAX_CAUSE])}


def encodable(text: str) -> str:
    """The text with half surrogate pairs escaped: JSON can hold them, but UTF-8 and the readers of results cannot."""
    return text.encode("utf-8", "backslashreplace").decode()
