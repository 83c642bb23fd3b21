"""The accuracy in production and its page, .local/accuracy/report.html, one self-contained file."""

import dataclasses
from collections import Counter
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from local.report.evaluation import interval, share
from local.report.render import template
from monitoring import accuracy
from monitoring.accuracy import MIN_REVIEWED, Estimate
from review.table import Review

MAX_MISTAKES = 60
REASONS = {"audit": "audits", "low_confidence": "low confidence"}


@dataclasses.dataclass
class Figures:
    """counts: by reason, of pending, reviewed and not_usable. newer: usable audits after the oldest pending one."""

    accepted: Estimate | None
    overall: Estimate | None
    labels: dict[str, Estimate]
    weeks: dict[str, Estimate]
    counts: dict[str, Counter[str]]
    period: tuple[str, str] | None  # when the first and the last image were classified; None without any
    until: str | None  # when the oldest pending audit was created
    usable: int
    newer: int
    mistakes: list[Review]  # accepted all the same, the most confident first


def figures(reviews: list[Review]) -> Figures:
    items = [vars(review) for review in reviews]
    audits = list(accuracy.audits(items))
    complete = sorted(accuracy.complete(audits), key=lambda item: item["created_at"])
    usable = sum(map(accuracy.is_usable, complete))
    wrong = [review for review, item in zip(reviews, items, strict=True)
             if review.reason == "audit" and accuracy.is_usable(item) and not accuracy.is_right(item)]  # fmt: skip
    times = [review.created_at for review in reviews]
    weeks = {
        week: accuracy.estimate(group) for week, group in groupby(complete, lambda item: week_of(item["created_at"]))
    }
    return Figures(
        accepted=accuracy.accepted_accuracy(items),
        overall=accuracy.overall_accuracy(items),
        labels=accuracy.accuracy_by_label(items),
        weeks={week: made for week, made in weeks.items() if made},
        counts={reason: counts(reviews, reason) for reason in REASONS},
        period=(min(times), max(times)) if times else None,
        until=accuracy.oldest_pending(audits),
        usable=usable,
        newer=sum(map(accuracy.is_usable, audits)) - usable,
        mistakes=sorted(wrong, key=lambda review: -review.confidence),
    )


def counts(reviews: list[Review], reason: str) -> Counter[str]:
    found = [review for review in reviews if review.reason == reason]
    return Counter(review.status for review in found) + Counter(
        "not_usable" for review in found if review.decision == "not_usable"
    )


def week_of(created_at: str) -> str:
    """The Monday of the week, as a date."""
    day = datetime.fromisoformat(created_at).date()
    return f"{day - timedelta(days=day.weekday())}"


def minute(time: str) -> str:
    """The time to the minute, in UTC."""
    return time[:16].replace("T", " ") + " UTC"


def sentences(made: Figures) -> list[str]:
    """What was reviewed, what is not counted, and what is missing."""
    found = [
        f"{name}: {made.counts[reason]['reviewed']:,} reviewed, of which {made.counts[reason]['not_usable']:,} not "
        f"usable; {made.counts[reason]['pending']:,} pending"
        for reason, name in REASONS.items()
    ]
    if made.period:
        first, last = map(minute, made.period)
        found.append(
            f"These images were classified from {first} to {last}, by whatever model was deployed then. To count one "
            "model, give SINCE= the time of its deployment (make models)."
        )
    if made.accepted:
        bound = share(made.accepted.lower_bound)
        found.append(f"At least {bound} of accepted images are right, with 95% confidence (the one-sided bound).")
    elif not made.counts["audit"]:
        found.append("No accepted image of this time was drawn for an audit: AuditRate is 0, or there were too few.")
    else:
        found.append(f"Too few decisions on audits for an estimate: {made.usable} of the {MIN_REVIEWED} that it takes.")
    if made.overall:
        found.append("Of all images, each audit counts 1 / AuditRate times, so the accuracy is no plain share.")
    if made.accepted and not made.overall:
        found.append("The accuracy of all images also takes decisions on those below the threshold.")
    if made.until:
        found.append(
            f"Images count up to {minute(made.until)}, when the oldest pending audit was created; newer ones that "
            f"are already decided ({made.newer:,}) do not count yet. Reviewers see the least confident first: until "
            "all are decided, those reviewed are wrong more often than all."
        )
    return found


def reviewed_label(review: Review) -> str:
    """What a reviewer decided that the image is, in words."""
    return review.reviewed_label or "none of these"


def render(made: Figures, about: str, thumbnails: list[str | None]) -> str:
    """The page. about: the stack and the time. thumbnails: data: URLs of the first MAX_MISTAKES mistakes."""
    estimates = [each for each in (made.accepted, made.overall, *made.labels.values(), *made.weeks.values()) if each]
    start = min((int(each.low * 10) / 10 for each in estimates), default=0)
    return template("accuracy.html", share=share, interval=interval).render(
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        about=about,
        made=made,
        few=MIN_REVIEWED,
        sentences=sentences(made),
        reasons=REASONS,
        start=start,
        mistakes=[picture(*each) for each in zip(made.mistakes, thumbnails, strict=False)],
    )


def picture(review: Review, thumbnail: str | None) -> dict[str, Any]:
    """What the page shows of an image."""
    return {
        "label": review.label,
        "confidence": review.confidence,
        "reviewed": reviewed_label(review),
        "reviewer": review.reviewer or "",
        "name": review.s3_key,
        "image": thumbnail,
    }
