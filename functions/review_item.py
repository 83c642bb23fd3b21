"""The review table's item for an image that people look at, because its confidence is low or as an audit.

Its key is the image and its version, so each version of an object is reviewed once. review/table.py reads and decides
the items.

image, version     "s3://bucket/key", and S3's version ID, or the ETag in a bucket without versions
s3_bucket, s3_key, s3_version_id, execution_arn, trace_id
label, confidence, threshold    as CheckConfidence decided
predictions        the best MAX_PREDICTIONS, as JSON: DynamoDB's numbers end at 1e-130
endpoint           as JSON
reason             low_confidence, or audit: an accepted image that was drawn at random
selection_probability    the probability with which it was drawn; 1 for low_confidence
status, revision   pending, or reviewed; how often it was decided or undone
created_at         ISO 8601, UTC
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

MAX_PREDICTIONS = 100  # an item has at most 400 KB
SMALLEST = 1e-130  # of DynamoDB's positive numbers

Item = dict[str, dict[str, str]]  # in DynamoDB's JSON


def is_drawn(image: str, version: str, audit_rate: float) -> bool:
    """Whether an accepted image is audited. It depends on the image alone, so a retry decides the same."""
    digest = hashlib.sha256(f"{image}#{version}".encode()).digest()
    return int.from_bytes(digest[:8]) < audit_rate * 2**64


def inference_id(request: dict[str, Any]) -> str:
    """The InferenceId of an image in InvokeEndpoint, at most 64 characters: finds a reviewed image in captured data."""
    version = request.get("s3_version_id") or request.get("s3_etag", "")
    return hashlib.sha256(f"s3://{request['s3_bucket']}/{request['s3_key']}#{version}".encode()).hexdigest()


def item_for(result: dict[str, Any], audit_rate: float) -> Item:
    """The review of CheckConfidence's result; empty for an accepted image that is not audited."""
    image, version = f"s3://{result['s3_bucket']}/{result['s3_key']}", version_of(result)
    if result["accepted"] and not is_drawn(image, version, audit_rate):
        return {}
    confidence = result["confidence"]
    texts: dict[str, str] = {
        "image": image,
        "version": version,
        **{name: result[name] for name in ("s3_bucket", "s3_key", "s3_version_id", "label") if name in result},
        **{name: result[name] for name in ("execution_arn", "trace_id") if name in result},
        "predictions": json.dumps(result["predictions"][:MAX_PREDICTIONS]),
        "endpoint": json.dumps(result["endpoint"]),
        "reason": "audit" if result["accepted"] else "low_confidence",
        "status": "pending",
        "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    numbers: dict[str, float] = {
        "confidence": confidence if confidence >= SMALLEST else 0,
        "threshold": result["threshold"],
        "selection_probability": audit_rate if result["accepted"] else 1,
        "revision": 0,
    }
    return {
        **{name: {"S": value} for name, value in texts.items()},
        **{name: {"N": str(value)} for name, value in numbers.items()},
    }


def version_of(result: dict[str, Any]) -> str:
    """The version of the object that was classified."""
    return result.get("s3_version_id") or result["s3_etag"]
