"""How far probabilities can be trusted, and which threshold to choose. Plain numpy, on the answers to known pictures.

logits and probabilities are [N, classes], targets int64 [N]; confidences (the highest probability of each picture)
and right (whether that class is the true one) are [N].
"""

import numpy as np

BINS = 15  # of equal width, as most publications have it
COLDEST, HOTTEST = 0.05, 20.0
THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99]


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def fit_temperature(logits, targets):
    """The temperature by which to divide logits (Guo and others, 2017): the lowest mean cross-entropy.

    One imagined mistake is added to the N answers, spread over them: where a model makes no mistake in N pictures, its
    best temperature would otherwise be zero, and its confidence 1.
    """
    logits = np.asarray(logits, dtype=np.float64)
    count, classes = logits.shape
    wanted = np.full(logits.shape, 1 / (count + 2) / (classes - 1))
    wanted[np.arange(count), targets] = 1 - 1 / (count + 2)

    def loss(inverse):
        scaled = logits * inverse
        highest = scaled.max(1, keepdims=True)
        log_sum = np.log(np.exp(scaled - highest).sum(1, keepdims=True)) + highest
        return (wanted * (log_sum - scaled)).sum(1).mean()

    low, high = 1 / HOTTEST, 1 / COLDEST  # the loss is convex in the inverse: narrow it down from both sides
    for _ in range(100):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(2 / (low + high))


def losses(probabilities, targets):
    """The cross-entropy of each picture, [N]."""
    return -np.log(probabilities[np.arange(len(targets)), targets].clip(1e-12))


def confidence(probabilities, targets):
    """Returns confidences and right."""
    return probabilities.max(1), probabilities.argmax(1) == targets


def reliability(confidences, right):
    """Bins of confidence that are not empty: [{"confidence", "accuracy", "count"}], both the bin's means."""
    numbers = np.minimum((confidences * BINS).astype(int), BINS - 1)
    chosen = [numbers == number for number in np.unique(numbers)]
    return [
        {"confidence": float(confidences[bin].mean()), "accuracy": float(right[bin].mean()), "count": int(bin.sum())}
        for bin in chosen
    ]


def expected_calibration_error(confidences, right):
    """Mean distance of a bin's accuracy from its confidence, weighted by its pictures. Some of it is chance: with few
    pictures even a perfect model has an error of some hundredths."""
    bins = reliability(confidences, right)
    return sum(bin["count"] * abs(bin["accuracy"] - bin["confidence"]) for bin in bins) / len(right)


def accepted(confidences, right, threshold):
    """What a threshold accepts: the part of all pictures, their number, and the part of them that is right."""
    chosen = confidences >= threshold
    count = int(chosen.sum())
    return {
        "threshold": threshold,
        "coverage": count / len(right),
        "accepted": count,
        "accuracy": float(right[chosen].mean()) if count else None,
    }


def trust(logits, targets, temperature):
    """Accuracy and calibration of a part, before and after the temperature, and what thresholds make of it."""
    before, after = softmax(logits), softmax(logits / temperature)
    confidences, right = confidence(after, targets)
    return {
        "accuracy": float(right.mean()),
        "loss": float(losses(after, targets).mean()),
        "expected_calibration_error": {
            "before": expected_calibration_error(*confidence(before, targets)),
            "after": expected_calibration_error(confidences, right),
        },
        "thresholds": [accepted(confidences, right, each) for each in THRESHOLDS],
    }


def lowest_threshold(confidences, right, accuracy):
    """The lowest confidence whose acceptances are right in `accuracy` of cases; None where there is none."""
    order = np.argsort(-confidences, kind="stable")
    ranked = confidences[order]
    accuracies = np.cumsum(right[order]) / np.arange(1, len(right) + 1)
    last_of_equals = np.append(ranked[1:] != ranked[:-1], True)
    reached = np.flatnonzero((accuracies >= accuracy) & last_of_equals)
    return float(ranked[reached[-1]]) if len(reached) else None


def bootstrap_thresholds(confidences, right, accuracy, repeats=1000, seed=0):
    """`lowest_threshold` of `repeats` samples of N pictures, drawn with replacement; None where a sample has none."""
    random = np.random.default_rng(seed)
    samples = (random.integers(0, len(right), len(right)) for _ in range(repeats))
    return [lowest_threshold(confidences[sample], right[sample], accuracy) for sample in samples]


def lower_bound(right, count, z=1.645):
    """The accuracy that `right` of `count` speaks for with 95 % certainty: Wilson's bound, one-sided."""
    part = right / count
    middle = part + z * z / (2 * count)
    return (middle - z * np.sqrt(part * (1 - part) / count + z * z / (4 * count * count))) / (1 + z * z / count)
