"""Reviews to export, and what comes back."""

from review.table import Review

LABELS = ["bicycle", "motorcycle", "../x", "=1+1", "_pending", "ca\u0301fe", 'a "b" <c> & d']


def review(key="uploads/a.jpg", label="bicycle", **more):
    predictions = [{"label": label, "probability": 0.5}, {"label": "motorcycle", "probability": 0.25}]
    item = {
        "image": f"s3://images/{key}",
        "version": "v1",
        "s3_bucket": "images",
        "s3_key": key,
        "s3_version_id": "v1",
        "label": label,
        "confidence": 0.5,
        "threshold": 0.75,
        "predictions": predictions,
        "endpoint": {"name": "endpoint", "variant": "model-1"},
        "reason": "low_confidence",
        "selection_probability": 1.0,
        "status": "reviewed" if "decision" in more else "pending",
        "revision": 0,
        "created_at": "2026-11-26T08:00:00.000+00:00",
    }
    return Review(**item | more)


def decided(label=None, decision="label", reviewer="ada", **more):
    return review(decision=decision, reviewed_label=label, reviewer=reviewer, **more)
