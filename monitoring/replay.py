"""Replay another threshold or model against what was really classified, before it is deployed.

    past = replay.history(outcomes.executions_lines(..., fields=FIELDS), outcomes.batches_lines(...))
    replay.figures(past, replay.logged(past), policy, items)

A threshold needs no images: the log has labels and confidences. A model needs its answers to the stored images, to all
or to a random sample, whose counts are scaled up. `items` are the review table's, as dicts (monitoring/accuracy.py).

An image is a version of an object. If it was classified several times, the last time counts: the review table too has
one item for each version, and what it would do now is what is asked. Images that ended with an error are only counted.
"""

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from monitoring import accuracy, cost
from monitoring.accuracy import Item, exact_interval
from monitoring.outcomes import Line

DAYS = 30  # of a month
HOUR, DAY = 3600, 86_400  # seconds
STRATA = {True: "audit", False: "low_confidence"}  # whether an image was accepted -> why it is reviewed
MOVES = ("accepted_to_review", "review_to_accepted", "other_label")
OBJECT = ("s3_bucket", "s3_key", "s3_version_id", "s3_etag")
FIELDS = (*OBJECT, "outcome", "label", "confidence", "threshold", "endpoint", "error")  # that are needed of a line
GRID = 50  # thresholds of the curve
BATCH_SIZE = 300  # the template's default; the cost hardly depends on it


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """A version of an object, as it was classified last.

    version: S3's version ID, or the ETag in a bucket without versions; empty in lines that have neither.
    """

    s3_bucket: str
    s3_key: str
    version: str
    s3_version_id: str | None
    time: str
    label: str
    confidence: float
    threshold: float
    accepted: bool
    endpoint: str  # its name and variant
    in_batch: bool

    @property
    def image(self) -> str:
        return f"s3://{self.s3_bucket}/{self.s3_key}"


@dataclasses.dataclass(frozen=True)
class History:
    """What was classified. repeated: classifications that a later one of the same image replaces. errors: by name."""

    images: list[Image]
    repeated: int
    errors: Counter[str]

    @property
    def days(self) -> float:
        """The time between the first and the last image, at least one day."""
        times = [image.time for image in self.images]
        seconds = (datetime.fromisoformat(max(times)) - datetime.fromisoformat(min(times))).total_seconds()
        return max(1.0, seconds / DAY)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    label: str
    confidence: float


Answers = Mapping[int, Answer]  # by the image's index in History.images


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is replayed, and the stack that it would be deployed to.

    threshold: of all images; without one, each keeps its own. sample: the indexes of the images that were drawn at
    random for the counts, None for all. seconds: of a person's time for a review.
    """

    threshold: float | None
    present: float  # the stack's threshold
    audit_rate: float
    seconds: float
    sample: Sequence[int] | None = None


@dataclasses.dataclass(frozen=True)
class Error:
    """The expected share of wrong images among the accepted ones, by reviewers' decisions, with its 95 % interval.

    error, low, high: None where the images of a stratum have no decision. strata: by STRATA, of the images that are
    accepted: `images`, and of those reviewed: `reviewed`, `wrong`, and their error, low and high.
    """

    error: float | None
    low: float | None
    high: float | None
    reviewed: int
    strata: dict[str, dict[str, Any]]


def history(executions: Iterable[Line], batches: Iterable[Line]) -> History:
    """The last classification of each image, in the order of time, from lines of monitoring/outcomes.py."""
    found: dict[Any, Image] = {}
    errors: Counter[str] = Counter()
    classified = 0
    for in_batch, lines in ((False, executions), (True, batches)):
        for line in lines:
            if line["outcome"] == "error":
                errors[line.get("error") or "unknown"] += 1
                continue
            classified += 1
            image = image_of(line, in_batch)
            key = (image.s3_bucket, image.s3_key, image.version) if image.version else classified
            if key not in found or found[key].time <= image.time:
                found[key] = image
    images = sorted(found.values(), key=lambda image: (image.time, image.s3_key))
    return History(images, classified - len(images), errors)


def image_of(line: Line, in_batch: bool) -> Image:
    endpoint = line.get("endpoint") or {}
    return Image(
        s3_bucket=line["s3_bucket"],
        s3_key=line["s3_key"],
        version=line.get("s3_version_id") or line.get("s3_etag") or "",
        s3_version_id=line.get("s3_version_id"),
        time=line["time"],
        label=line["label"],
        confidence=line["confidence"],
        threshold=line["threshold"],
        accepted=line["outcome"] == "accepted",
        endpoint="/".join(filter(None, (endpoint.get("name"), endpoint.get("variant")))),
        in_batch=in_batch,
    )


def logged(past: History) -> dict[int, Answer]:
    """The answers that were given: with these, only the threshold changes."""
    return {number: Answer(image.label, image.confidence) for number, image in enumerate(past.images)}


def draw(numbers: Sequence[int], count: int, seed: int) -> list[int]:
    """At most `count` of the numbers, at random without replacement, in their order."""
    return sorted(random.Random(seed).sample(numbers, count)) if len(numbers) > count else list(numbers)


def indexed(past: History, items: Iterable[Item]) -> dict[int, Item]:
    """The reviews by the image's index: of the images that were last decided as the review says.

    A review that an earlier classification asked for is left out, since it was selected in another way.
    """
    by_key = {(item["image"], item["version"]): item for item in items}
    found = ((number, image, by_key.get((image.image, image.version))) for number, image in enumerate(past.images))
    return {number: item for number, image, item in found if item and item["reason"] == STRATA[image.accepted]}


def is_accepted(image: Image, answer: Answer, threshold: float | None) -> bool:
    """As CheckConfidence decides."""
    return answer.confidence >= (image.threshold if threshold is None else threshold)


def move_of(image: Image, answer: Answer, threshold: float | None) -> str | None:
    """Which of MOVES the image makes, if any."""
    accepted = is_accepted(image, answer, threshold)
    if accepted and not image.accepted:
        return "review_to_accepted"
    if image.accepted and not accepted:
        return "accepted_to_review"
    return "other_label" if accepted and answer.label != image.label else None


def changed(past: History, answers: Answers, threshold: float | None) -> dict[str, list[int]]:
    """The images that make each move: the least confident that become accepted first, else the most confident."""
    found: dict[str, list[int]] = {move: [] for move in MOVES}
    for number, answer in answers.items():
        if move := move_of(past.images[number], answer, threshold):
            found[move].append(number)
    for move, numbers in found.items():
        sign = 1 if move == "review_to_accepted" else -1
        numbers.sort(key=lambda number: sign * answers[number].confidence)
    return found


def figures(past: History, answers: Answers, policy: Policy, items: Iterable[Item]) -> dict[str, Any]:
    """What replay.json says of the images. answers: to the images of the sample, and to others with a decision."""
    reviews = indexed(past, items)
    before = logged(past)
    sample = [number for number in (before if policy.sample is None else policy.sample) if number in answers]
    drawn = None if policy.sample is None or len(sample) == len(past.images) else len(sample)
    counts = Counter(move_of(past.images[number], answers[number], policy.threshold) for number in sample)
    moves = {move: scaled(counts[move], len(sample), len(past.images)) for move in MOVES}
    unmoved = {move: scaled(0, 1, 1) for move in MOVES}
    return {
        "images": len(past.images),
        "days": past.days,
        "repeated": past.repeated,
        "errors": dict(past.errors.most_common()),
        "thresholds": dict(Counter(image.threshold for image in past.images).most_common()),
        "endpoints": dict(Counter(image.endpoint for image in past.images).most_common()),
        "without_version": sum(not image.version for image in past.images),
        "in_batches": sum(image.in_batch for image in past.images),
        "threshold": policy.threshold,
        "present_threshold": policy.present,
        "audit_rate": policy.audit_rate,
        "seconds_per_review": policy.seconds,
        "sampled": drawn,
        "moves": moves,
        "before": side(past, before, range(len(past.images)), None, unmoved, policy, reviews),
        "after": side(past, answers, sample, policy.threshold, moves, policy, reviews),
        "curve": list(curve(past, answers, sample, policy, reviews)),
    }


def scaled(count: int, of: int, total: int) -> dict[str, float]:
    """The count in a sample `of` images, as a count of `total`, with its 95 % interval; exact if all were counted."""
    if of == total or not of:
        return {"count": count, "low": count, "high": count}
    low, high = exact_interval(count, of)
    return {"count": count / of * total, "low": max(count, low * total), "high": high * total}


def side(
    past: History,
    answers: Answers,
    sample: Sequence[int],
    threshold: float | None,
    moves: Mapping[str, Mapping[str, float]],
    policy: Policy,
    reviews: Mapping[int, Item],
) -> dict[str, Any]:
    """One side of the comparison: what is accepted, the load of reviews, the expected error and the cost.

    What is accepted is what was accepted before, known of all images, and the moves: a sample adds no other noise.
    """
    total, before = len(past.images), sum(image.accepted for image in past.images)
    lost, won = moves["accepted_to_review"], moves["review_to_accepted"]
    accepted = {
        "count": before - lost["count"] + won["count"],
        "low": max(0, before - lost["high"] + won["low"]),
        "high": min(total, before - lost["low"] + won["high"]),
    }
    review = {"count": total - accepted["count"], "low": total - accepted["high"], "high": total - accepted["low"]}
    strata = {True: before - lost["count"], False: won["count"]}
    numbers = [number for number in sample if is_accepted(past.images[number], answers[number], threshold)]
    doubts = [1 - answers[number].confidence for number in numbers]
    return {
        "accepted": accepted,
        "review": review,
        **load(accepted["count"], total, past.days, policy),
        "error": dataclasses.asdict(error(past, answers, threshold, strata, reviews)),
        "confidences_error": float(np.mean(doubts)) if doubts else None,
    }


def load(accepted: float, total: int, days: float, policy: Policy) -> dict[str, Any]:
    """Reviews a day by reason, and a month's hours of people and AWS's bill for the reviews."""
    per_day = {"low_confidence": (total - accepted) / days, "audit": policy.audit_rate * accepted / days}
    month = {reason: DAYS * images for reason, images in per_day.items()}
    return {
        "reviews_a_day": per_day | {"total": sum(per_day.values())},
        "hours_a_month": sum(month.values()) * policy.seconds / HOUR,
        "reviews_usd_a_month": sum(cost.cost(cost.reviews(month)).values()),
    }


def classification_usd(past: History) -> float:
    """A month's bill for classifying this many images, without reviews and without the endpoint's time."""
    in_batches = sum(image.in_batch for image in past.images)
    month = DAYS / past.days
    runs = ((cost.counted()["single"], len(past.images) - in_batches), (cost.batches_of(BATCH_SIZE), in_batches))
    return sum(sum(cost.cost(cost.classification(run, images * month)).values()) for run, images in runs if images)


def error(
    past: History,
    answers: Answers,
    threshold: float | None,
    counts: Mapping[bool, float],
    reviews: Mapping[int, Item],
) -> Error:
    """The expected error of what is accepted, from the decisions. counts: accepted images by what they were before.

    Two strata: images that were accepted have decisions if they were audited, the others if their review is done. In
    each, the images count up to the oldest pending one that would be accepted (monitoring/accuracy.py says why). A
    decision weighs 1 / selection_probability, times a factor for its stratum, so that the weights of a stratum add up
    to its number of accepted images.
    """
    decisions = decided(past, answers, threshold, reviews)
    weighted: list[dict[str, Any]] = []
    strata: dict[str, dict[str, Any]] = {}
    for was_accepted, reason in STRATA.items():
        images, of_reason = counts[was_accepted], decisions[reason]
        strata[reason] = {"images": images, **wrong(accuracy.estimate(of_reason))}
        weight = sum(1 / item["selection_probability"] for item in of_reason)
        if images:
            weighted += [
                item | {"selection_probability": item["selection_probability"] * weight / images} for item in of_reason
            ]
    missing = not any(counts.values()) or any(counts[was] and not decisions[reason] for was, reason in STRATA.items())
    total = wrong(None if missing else accuracy.estimate(weighted))
    return Error(total["error"], total["low"], total["high"], len(weighted), strata)


def decided(
    past: History, answers: Answers, threshold: float | None, reviews: Mapping[int, Item]
) -> dict[str, list[dict[str, Any]]]:
    """By reason, the usable decisions on images that would be accepted, with the label that they would have."""
    relevant: dict[str, list[dict[str, Any]]] = {reason: [] for reason in STRATA.values()}
    for number, item in reviews.items():
        answer = answers.get(number)
        if answer and is_accepted(past.images[number], answer, threshold):
            relevant[item["reason"]].append({**item, "label": answer.label})
        elif not answer and item["status"] == "pending":  # perhaps it would be accepted
            relevant[item["reason"]].append(dict(item))
    return {
        reason: [dict(item) for item in accuracy.complete(items) if accuracy.is_usable(item)]
        for reason, items in relevant.items()
    }


def wrong(made: accuracy.Estimate | None) -> dict[str, Any]:
    if not made:
        return {"error": None, "low": None, "high": None, "reviewed": 0, "wrong": 0}
    bounds = {"error": 1 - made.estimate, "low": 1 - made.high, "high": 1 - made.low}
    return {**bounds, "reviewed": made.reviewed, "wrong": made.reviewed - made.right}


def curve(
    past: History, answers: Answers, sample: Sequence[int], policy: Policy, reviews: Mapping[int, Item]
) -> Iterator[dict[str, Any]]:
    """What the answers would give at other thresholds."""
    marks = {policy.present, policy.threshold or policy.present}
    low, total, scale = min(0.5, *marks), len(past.images), len(past.images) / max(len(sample), 1)
    confidences = np.sort([answers[number].confidence for number in sample])
    strata = {
        was: np.sort([answers[number].confidence for number in sample if past.images[number].accepted == was])
        for was in STRATA
    }
    doubts = np.append(np.cumsum((1 - confidences)[::-1])[::-1], 0)
    for threshold in sorted({*(round(each, 4) for each in np.linspace(low, 0.99, GRID).tolist()), *marks}):
        counts = {was: scale * (len(of) - int(np.searchsorted(of, threshold))) for was, of in strata.items()}
        accepted, first = sum(counts.values()), int(np.searchsorted(confidences, threshold))
        made = error(past, answers, threshold, counts, reviews)
        yield {
            "threshold": threshold,
            "reviews_a_day": load(accepted, total, past.days, policy)["reviews_a_day"],
            "confidences_error": float(doubts[first] / (len(sample) - first)) if accepted else None,
            **{name: getattr(made, name) for name in ("error", "low", "high", "reviewed")},
        }
