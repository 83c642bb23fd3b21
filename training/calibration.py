"""Calibration of probabilities, and what thresholds accept, from predictions for labelled images. numpy only.

logits and probabilities are [N, classes], targets int64 [N]; confidences (the highest probability of each image)
and right (whether that class is the true one) are [N].
"""

from typing import Any

import numpy as np

BINS = 15  # of equal width, as in most publications
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature by which to divide logits (Guo and others, 2017): it minimises the mean cross-entropy.

    The targets are smoothed as if one more prediction were wrong. Otherwise a model without mistakes on these N images
    would get a temperature of zero, and every confidence would be 1.
    """
    logits = np.asarray(logits, dtype=np.float64)
    count, classes = logits.shape
    smoothed = np.full(logits.shape, 1 / (count + 2) / (classes - 1))
    smoothed[np.arange(count), targets] = 1 - 1 / (count + 2)

    def loss(inverse: float) -> float:
        scaled = logits * inverse
        highest = scaled.max(1, keepdims=True)
        log_sum = np.log(np.exp(scaled - highest).sum(1, keepdims=True)) + highest
        return (smoothed * (log_sum - scaled)).sum(1).mean()

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE  # the loss is convex in the inverse: ternary search
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(2 / (low + high))


def losses(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The cross-entropy of each image, [N]."""
    return -np.log(probabilities[np.arange(len(targets)), targets].clip(1e-12))


def confidence(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences and right."""
    return probabilities.max(1), probabilities.argmax(1) == targets


def reliability(confidences: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Non-empty bins of confidence: [{"confidence", "accuracy", "count"}], the first two being means over the bin."""
    numbers = np.minimum((confidences * BINS).astype(int), BINS - 1)
    chosen = [numbers == number for number in np.unique(numbers)]
    return [
        {"confidence": float(confidences[bin].mean()), "accuracy": float(right[bin].mean()), "count": int(bin.sum())}
        for bin in chosen
    ]


def expected_calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Mean difference between accuracy and confidence over the bins, weighted by their counts.

    With few images, even a perfectly calibrated model has an error of a few hundredths, by chance.
    """
    bins = reliability(confidences, right)
    return sum(bin["count"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins) / len(right)


def area_under_roc(confidences: np.ndarray, right: np.ndarray) -> float | None:
    """AUROC of confidence against correctness: the probability that a right prediction has the higher confidence.

    That is, of a right and a wrong prediction; equal confidences count half. None if all are right, or none is.
    """
    rights, wrongs = int(right.sum()), int((~right).sum())
    if not rights or not wrongs:
        return None
    _, places, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[places]  # from 1; equal confidences share their mean rank
    return float((ranks[right].sum() - rights * (rights + 1) / 2) / (rights * wrongs))


def brier_score(confidences: np.ndarray, right: np.ndarray) -> float:
    """Mean squared difference between confidence and correctness, 1 or 0 (Brier, 1950): 0 is perfect."""
    return float(((confidences - right) ** 2).mean())


def accepted(confidences: np.ndarray, right: np.ndarray, threshold: float) -> dict[str, Any]:
    """Coverage (accepted fraction of all images), count and accuracy of the images that a threshold accepts.

    The accuracy is None if it accepts none.
    """
    chosen = confidences >= threshold
    count = int(chosen.sum())
    return {
        "threshold": threshold,
        "coverage": count / len(right),
        "accepted": count,
        "accuracy": float(right[chosen].mean()) if count else None,
    }


def summary(logits: np.ndarray, targets: np.ndarray, temperature: float) -> dict[str, Any]:
    """Accuracy, loss, calibration error before and after the temperature, and coverage and accuracy at THRESHOLDS.

    Also, after the temperature, AUROC and Brier score of confidence against correctness.
    """
    before, after = softmax(logits), softmax(logits / temperature)
    confidences, right = confidence(after, targets)
    return {
        "accuracy": float(right.mean()),
        "loss": float(losses(after, targets).mean()),
        "expected_calibration_error": {
            "before": expected_calibration_error(*confidence(before, targets)),
            "after": expected_calibration_error(confidences, right),
        },
        "area_under_roc": area_under_roc(confidences, right),
        "brier_score": brier_score(confidences, right),
        "thresholds": [accepted(confidences, right, each) for each in THRESHOLDS],
    }
