"""The accuracy of what was classified in production, from the decisions of reviewers.

    items = [vars(review) for review in chain(table.reviewed(), table.pending())]  # of review/table.py
    accuracy.accepted_accuracy(items), accuracy.overall_accuracy(items), accuracy.accuracy_by_label(items)

Items are dicts with the review table's attributes (functions/review_item.py), pending ones too. An image is right if a
reviewer decided for the predicted label, and wrong if for another one or for none of these; what is not usable does not
count. A weight of 1 / selection_probability makes audits stand for all accepted images.

Only the standard library: functions/accuracy.py is a link to this file.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

# With fewer, a bound below 0.9 would mean too little data, even if all were right: 0.05 ** (1 / 30) = 0.905.
MIN_REVIEWED = 30

Item = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An accuracy from 0 to 1, the bounds of its two-sided 95 % interval, and its one-sided 95 % lower bound."""

    estimate: float
    low: float
    high: float
    lower_bound: float
    reviewed: int  # usable images
    right: int


def complete(items: Iterable[Item]) -> Iterator[Item]:
    """The items that were created before the oldest pending one, so all of their time.

    Reviewers begin with the least confident images. While others wait, those reviewed are wrong more often than all.
    """
    items = list(items)
    until = oldest_pending(items)
    return (item for item in items if until is None or item["created_at"] < until)


def oldest_pending(items: Iterable[Item]) -> str | None:
    """When the oldest pending item was created (ISO 8601, UTC); None if nothing is pending."""
    return min((item["created_at"] for item in items if item["status"] == "pending"), default=None)


def accepted_accuracy(items: Iterable[Item]) -> Estimate | None:
    """The accuracy of accepted images, from the audits; None with fewer than MIN_REVIEWED."""
    return enough(estimate(complete(audits(items))))


def overall_accuracy(items: Iterable[Item]) -> Estimate | None:
    """The accuracy of the best label of all images, accepted or not; None with fewer than MIN_REVIEWED audits."""
    items = list(complete(items))
    return estimate(items) if enough(estimate(audits(items))) else None


def accuracy_by_label(items: Iterable[Item]) -> dict[str, Estimate]:
    """The accuracy of accepted images by predicted label, however few were reviewed."""
    found = list(complete(audits(items)))
    labels = sorted({item["label"] for item in found})
    estimates = {label: estimate(item for item in found if item["label"] == label) for label in labels}
    return {label: made for label, made in estimates.items() if made}


def audits(items: Iterable[Item]) -> Iterator[Item]:
    return (item for item in items if item["reason"] == "audit")


def is_usable(item: Item) -> bool:
    """Whether a reviewer could tell if the prediction is right."""
    return item["status"] == "reviewed" and item["decision"] != "not_usable"


def is_right(item: Item) -> bool:
    return item["decision"] == "label" and item["reviewed_label"] == item["label"]


def enough(made: Estimate | None) -> Estimate | None:
    return made if made and made.reviewed >= MIN_REVIEWED else None


def estimate(items: Iterable[Item]) -> Estimate | None:
    """The weighted share of right images, of those that are reviewed and usable; None without any."""
    counts = Counter((1 / item["selection_probability"], is_right(item)) for item in items if is_usable(item))
    if not counts:
        return None
    weight = sum(weight * count for (weight, _), count in counts.items())
    return Estimate(
        estimate=sum(weight * count for (weight, right), count in counts.items() if right) / weight,
        low=bound(counts, 0.025, extra=False),
        high=bound(counts, 0.975, extra=True),
        lower_bound=bound(counts, 0.05, extra=False),
        reviewed=counts.total(),
        right=sum(count for (_, right), count in counts.items() if right),
    )


def bound(counts: Counter[tuple[float, bool]], quantile: float, extra: bool) -> float:
    """A bound of the accuracy, from the number of images by weight and by whether they are right.

    The quantile of the beta distribution with the mean and the effective size of the sample and one more image, of the
    largest weight: `extra`, wrong (False) for a lower bound and right (True) for an upper one. With equal weights this
    is the exact interval of Clopper and Pearson (1934). The effective size is that of Korn and Graubard (Survey
    Methodology 24, 1998), from the variance of the weighted mean. The additional image is that of Fay and Feuer
    (Statistics in Medicine 16, 1997): without it, a sample with no mistakes would have no variance.
    """
    counts = counts + Counter({(max(weight for weight, _ in counts), extra): 1})
    total = sum(weight * count for (weight, _), count in counts.items())
    mean = sum(weight * count for (weight, right), count in counts.items() if right) / total
    if mean in (0, 1):
        return mean
    variance = sum(count * (weight / total * (right - mean)) ** 2 for (weight, right), count in counts.items())
    size = mean * (1 - mean) / variance
    return beta_quantile(quantile, mean * size, (1 - mean) * size)


def exact_interval(right: int, count: int) -> tuple[float, float]:
    """The two-sided 95 % interval of an accuracy, `right` of `count` images (Clopper and Pearson, 1934)."""
    low = beta_quantile(0.025, right, count - right + 1) if right else 0.0
    return low, beta_quantile(0.975, right + 1, count - right) if right < count else 1.0


def beta_quantile(quantile: float, a: float, b: float) -> float:
    """The x at which the cumulative distribution function of Beta(a, b) is `quantile`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_cdf(middle, a, b) < quantile else (low, middle)
    return (low + high) / 2


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by Lentz's continued fraction (Numerical Recipes, section 6.4)."""
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast below
        return 1 - beta_cdf(1 - x, b, a)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for n in range(1, 10_000):
        for term in (
            n * (b - n) * x / ((a + 2 * n - 1) * (a + 2 * n)),
            -(a + n) * (a + b + n) * x / ((a + 2 * n) * (a + 2 * n + 1)),
        ):
            c, d = 1 + term / c, 1 / (1 + term * d)
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(logarithm) * fraction / a
