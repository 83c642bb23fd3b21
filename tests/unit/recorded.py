"""A record as made by local/report/record.py, with any number of executions."""

import json
from typing import Any

from documents import ROOT

DEFINITION = json.loads((ROOT / "statemachine/classify_image.asl.json").read_text())
LABELS = [str(digit) for digit in range(10)]
TO_CONFIDENCE = ["RetrieveImage", "ClassifyImage", "CheckConfidence", "IsAccepted"]
PATHS = {
    "accepted": [*TO_CONFIDENCE, "PublishImageClassified"],
    "review": [*TO_CONFIDENCE, "SendToReview", "PublishImageNeedsReview", "ThresholdConfidenceNotMet"],
    "error": ["RetrieveImage"],
}
ERRORS = {"accepted": None, "review": "THRESHOLD_CONFIDENCE_NOT_MET", "error": "UnsupportedImageError"}
TRAINING = {
    "labels": LABELS,
    "figures": {name: {"accuracy": 0.99, "loss": 0.05} for name in ("train", "validation", "test")},
    "images": {name: dict.fromkeys(LABELS, 100) for name in ("train", "validation", "test")},
    "sha256": "ae26c9c3bb81" * 5,
}
# 8 x 8 pixels
THUMBNAIL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAgMAAAC5YVYYAAAADFBMVEX///+rq6tbW1sWFhbplzM7AAAAIUlEQVR4"
    "2mNg+sD0/wQzwx0Grh0M+l+YX5oxMSkwMXwAAGWkB7herVZtAAAAAElFTkSuQmCC"
)


def record(count: int) -> dict[str, Any]:
    """Of every 25 executions, 20 are accepted, 4 are for review and one has failed."""
    return {
        "created": "2026-11-24T09:00:00+00:00",
        "emulated": True,
        "definition": DEFINITION,
        "training": TRAINING,
        "executions": [execution(number) for number in range(count)],
    }


def execution(number: int) -> dict[str, Any]:
    outcome = "error" if number % 25 == 24 else "review" if number % 25 >= 20 else "accepted"
    failed, label = outcome == "error", LABELS[number % 10]
    confidence = 0.4 + number % 7 / 20 if outcome == "review" else 0.76 + number % 23 / 100
    arn = f"arn:aws:states:us-east-1:000000000000:execution:ClassifyImage:{number:08d}-92c4daa4"
    started = 1795510800 + number / 4
    states = [
        {"name": name, "start": 0.15 + at / 10, "seconds": 0.1, "tries": 1, "error": None}
        for at, name in enumerate(PATHS[outcome])
    ]
    if failed:
        states[-1]["error"] = "UnsupportedImageError"
    predictions = [] if failed else [{"label": label, "probability": confidence}]
    predictions += [] if failed else [{"label": other, "probability": (1 - confidence) / 9} for other in LABELS[:4]]
    key = f"uploads/20261124-090000/test/{label}/{number:04d}.png"
    decision = {} if failed else {"label": label, "confidence": confidence, "threshold": 0.75}
    return {
        "key": key,
        "outcome": outcome,
        "label": None if failed else label,
        "confidence": None if failed else confidence,
        "threshold": None if failed else 0.75,
        "predictions": predictions,
        "error": {"accepted": None, "review": "THRESHOLD_CONFIDENCE_NOT_MET", "error": "UnsupportedImageError"}[
            outcome
        ],
        "cause": f"s3://images/{key} is not a readable image" if failed else "",
        "seconds": states[-1]["start"] + 0.1,
        "execution_arn": arn,
        "started": started,
        "truth": label,
        "thumbnail": None if failed else THUMBNAIL,
        "states": states,
        "traces": [
            trace(name, started + state["start"], number)
            for name, state in zip(PATHS[outcome][:3], states, strict=False)
        ],
        "log": {"message": "prediction", "outcome": outcome, "s3_key": key, "execution_arn": arn, **decision},
    }


def trace(function: str, start: float, number: int) -> dict[str, Any]:
    names = ("lambda_handler", f"{function.lower()}.step", "s3 GetObject")
    segments = [
        {"id": f"{at}", "parent_id": f"{at - 1}", "name": name, "start": start + at / 100, "seconds": 0.05 - at / 100}
        for at, name in enumerate(names)
    ]
    segments = [segment | {"error": False} for segment in segments]
    return {"trace_id": f"1-6b06434b-{number:024x}", "function": function, "segments": segments}
