"""The response of any common endpoint -> [{"label", "probability"}], validated and sorted."""

import csv
import json
import math
from typing import Any

MAX_PREDICTIONS = 20  # a thousand classes must not fill the payload, or a Fail's Cause (32,768 characters)
MAX_LABEL_LENGTH = 256
ROUNDING = 1e-4  # a softmax in 16-bit or 8-bit arithmetic can exceed 1: up to here it counts as 1, or as 0


class EndpointResponseError(Exception):
    """The endpoint's response has no usable probabilities."""


def parse_predictions(body: bytes, labels: list[str]) -> list[dict[str, Any]]:
    """The MAX_PREDICTIONS best [{"label": str, "probability": 0..1}] of an endpoint's response, best first.

    Accepts our own {"predictions": [{"label", "probability"}]}, a bare list of probabilities (SageMaker's built-in
    algorithms), {"probabilities", "labels"} (JumpStart), [{"label", "score"}] (Hugging Face), also in one more list,
    and {"predictions": [[...]]} (TensorFlow Serving). `labels` are for bare probabilities, in the model's order.
    Raises EndpointResponseError for anything else.
    """
    try:
        response = json.loads(body)
    except (ValueError, RecursionError):  # also nested too deeply, or a number of more than 4,300 digits
        raise EndpointResponseError(f"The endpoint's response of {len(body):,} bytes is not JSON") from None
    match response:
        case {"predictions": [{"label": _, "probability": _}, *_] as rows}:
            pairs = [(row.get("label"), row.get("probability")) for row in _objects(rows)]
        case ([{"label": _, "score": _}, *_] as rows) | [[{"label": _, "score": _}, *_] as rows]:
            pairs = [(row.get("label"), row.get("score")) for row in _objects(rows)]
        case {"probabilities": [*probabilities], "labels": [*names]}:
            pairs = _named(probabilities, names)
        case {"predictions": [[*probabilities]]} | {"probabilities": [*probabilities]} | [[*probabilities]]:
            pairs = _named(probabilities, labels)
        case [_, *_] as probabilities:
            pairs = _named(probabilities, labels)
        case _:
            raise EndpointResponseError("The endpoint's response is in none of the five formats of predictions.py")
    predictions: list[dict[str, Any]] = [{"label": label, "probability": probability} for label, probability in pairs]
    if not predictions:
        raise EndpointResponseError("The endpoint's response has no probabilities")
    for prediction in predictions:
        _check(prediction)
        prediction["probability"] = min(max(prediction["probability"], 0.0), 1.0)
    return sorted(predictions, key=lambda prediction: -prediction["probability"])[:MAX_PREDICTIONS]


def split_labels(text: str) -> list[str]:
    """The labels in the stack's parameter Labels: separated by commas; one that has a comma is in double quotes."""
    (labels,) = csv.reader([text.replace("\n", " ").replace("\r", " ")], skipinitialspace=True)
    return [label.strip() for label in labels if label.strip()]


def check_predictions(predictions: list[Any]) -> None:
    """Raise EndpointResponseError if there are no predictions, or they are invalid or not sorted."""
    if not predictions:
        raise EndpointResponseError("There are no predictions")
    for prediction in _objects(predictions):
        _check(prediction)
    probabilities = [prediction["probability"] for prediction in predictions]
    if probabilities != sorted(probabilities, reverse=True):
        raise EndpointResponseError("The predictions are not sorted by probability")


def _objects(rows: list[Any]) -> list[dict[str, Any]]:
    if not all(isinstance(row, dict) for row in rows):
        raise EndpointResponseError("Not every prediction is an object")
    return rows


def _named(probabilities: list[Any], labels: list[Any]) -> list[tuple[Any, Any]]:
    if len(probabilities) != len(labels):
        raise EndpointResponseError(
            f"The endpoint returned {len(probabilities)} probabilities for {len(labels)} labels: "
            "set the stack's parameter Labels to the model's labels, in its order"
        )
    return list(zip(labels, probabilities, strict=True))


def _check(prediction: dict[str, Any]) -> None:
    label, probability = prediction.get("label"), prediction.get("probability")
    if not isinstance(label, str) or not 0 < len(label) <= MAX_LABEL_LENGTH or not label.strip():
        raise EndpointResponseError(f"A label is not a string of 1 to {MAX_LABEL_LENGTH} characters, or is blank")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in label):
        raise EndpointResponseError(f"The label {label!r} has half of a surrogate pair, which is not valid Unicode")
    if isinstance(probability, bool) or not isinstance(probability, int | float):
        raise EndpointResponseError(f"The probability of {label!r} is not a finite number")
    if isinstance(probability, float) and not math.isfinite(probability):
        raise EndpointResponseError(f"The probability of {label!r} is not a finite number")
    if isinstance(probability, int) and probability not in (0, 1):  # not quoted: it can have thousands of digits
        raise EndpointResponseError(f"The probability of {label!r} is not between 0 and 1")
    if not -ROUNDING <= probability <= 1 + ROUNDING:
        raise EndpointResponseError(f"The probability of {label!r} is {probability}, not between 0 and 1")
