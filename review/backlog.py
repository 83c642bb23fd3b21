"""What is pending, as one `make review` sees it: read from the table now and then, and which image comes next.

The least confident images come first. Every AUDIT_EVERY-th is an audit, the oldest first: monitoring/accuracy.py counts
images up to the oldest pending audit, because audits that came by confidence would bias its estimate.
"""

import contextlib
import dataclasses
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from review.table import AlreadyClaimedError, Review, ReviewError, ReviewTable

AUDIT_EVERY = 5
REFRESH_SECONDS = 30  # at least; reading takes at most a twentieth of the time
MIN_SECONDS = 2  # between two reads when there is no next image
BEHIND_SECONDS = 5  # that the index can be behind the table

Key = tuple[str, str]  # image, version


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which images a reviewer wants: a predicted label, a reason, a minimum age in seconds. None: all of them."""

    label: str | None = None
    reason: str | None = None
    min_age: float | None = None


def key_of(review: Review) -> Key:
    return review.image, review.version


def natural(text: str) -> list[Any]:
    """A sort key that puts class-9 before class-10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


class Backlog:
    """The pending images and their claims. `labels` are the stack's; empty: all labels that were predicted."""

    def __init__(self, table: ReviewTable, reviewer: str, labels: list[str]) -> None:
        self.table, self.reviewer = table, reviewer
        self.fixed_labels = labels
        self.found_labels: set[str] = set()  # only grows, so that no label loses its key on the page
        self.reviews: dict[Key, Review] = {}
        self.order: list[Key] = []
        self.revisions: dict[Key, int] = {}  # of what this process has written: the index can be behind
        self.noted_at: dict[Key, float] = {}
        self.claims: dict[Key, tuple[Review, str]] = {}  # and the session that has it
        self.lock = threading.Lock()
        self.reading = threading.Lock()
        self.read_at = -float("inf")
        self.read_seconds = 0.0

    @property
    def labels(self) -> list[str]:
        """The labels that a reviewer can choose."""
        return self.fixed_labels or sorted(self.found_labels, key=natural)

    def read(self) -> None:
        """Read all that is pending."""
        with self.reading:
            started = time.monotonic()
            found: dict[Key, Review] = {}
            for review in self.table.pending():
                self.found_labels.update(prediction["label"] for prediction in review.predictions)
                found[key_of(review)] = dataclasses.replace(review, predictions=[], endpoint=None)
            with self.lock:
                known = self.reviews.items()
                newer = {key: each for key, each in known if self.is_newer(each, found.get(key), started)}
                found = {key: each for key, each in found.items() if each.revision >= self.revisions.get(key, 0)}
                self.reviews = found | newer
                self.order = interleaved(sorted(self.reviews.values(), key=lambda each: each.confidence))
            self.read_at = time.monotonic()
            self.read_seconds = self.read_at - started

    def is_newer(self, known: Review, found: Review | None, started: float) -> bool:
        """Whether a pending image that is known, after an undo for example, is newer than what the index had of it."""
        if found:
            return known.revision > found.revision
        return self.noted_at.get(key_of(known), -float("inf")) > started - BEHIND_SECONDS

    def read_if_old(self, seconds: float) -> bool:
        """Read again if the last time is longer ago, unless another thread is reading."""
        if self.reading.locked() or time.monotonic() - self.read_at < max(seconds, 20 * self.read_seconds):
            return False
        self.read()
        return True

    def read_in_background(self) -> None:
        """Read again if it is time. Errors are left to the requests, which meet them too."""

        def read() -> None:
            with contextlib.suppress(ClientError, BotoCoreError):
                self.read_if_old(REFRESH_SECONDS)

        threading.Thread(target=read, daemon=True).start()

    def next(self, session: str, wanted: Filter, held: Collection[Key], skipped: list[Key]) -> Review | None:
        """Claim the next image for the session, which has those in `held`; `skipped` come last, in their order."""
        review = self.claim_first(session, wanted, held, skipped)
        if review is None and self.read_if_old(MIN_SECONDS):
            review = self.claim_first(session, wanted, held, skipped)
        return review

    def claim_first(self, session: str, wanted: Filter, held: Collection[Key], skipped: list[Key]) -> Review | None:
        with self.lock:
            candidates = [self.reviews[key] for key in self.order if key in self.reviews]
            last = {key: place for place, key in enumerate(skipped)}
            back = sorted((each for each in candidates if key_of(each) in last), key=lambda each: last[key_of(each)])
        for review in itertools.chain((each for each in candidates if key_of(each) not in last), back):
            if key_of(review) in held or not self.matches(review, wanted) or self.is_taken(review, session):
                continue
            try:
                return self.claim(review, session)
            except ReviewError as error:
                self.note(review, error.now)
        return None

    def claim(self, review: Review, session: str) -> Review:
        """Claim the image, or renew the claim. Raises a ReviewError."""
        claimed = self.table.claim(review, self.reviewer, session)
        self.note(review, claimed)
        with self.lock:
            if self.revisions[key_of(review)] == claimed.revision:  # otherwise it was decided meanwhile
                self.claims[key_of(review)] = claimed, session
        return claimed

    def release(self, review: Review, session: str) -> None:
        """Give up a claim. If it is not the session's any more, nothing changes."""
        with self.lock:
            self.claims.pop(key_of(review), None)
        try:
            self.note(review, self.table.release(review, self.reviewer, session))
        except ReviewError as error:
            self.note(review, error.now)

    def decide(self, review: Review, session: str, decision: str, label: str | None) -> Review:
        """Write a decision. Raises a ReviewError."""
        try:
            return self.note(review, self.table.decide(review, self.reviewer, decision, label, session))
        except AlreadyClaimedError:
            raise
        except ReviewError as error:
            self.note(review, error.now)
            raise

    def undo(self, review: Review) -> Review:
        """Put a decision back. Raises a ReviewError."""
        return self.note(review, self.table.undo(review, self.reviewer))

    def note(self, review: Review, now: Review | None) -> Review:
        """Remember what the table says about an image now; None: it is gone. Returns it.

        Threads can note what they wrote in another order than they wrote it: an older revision is ignored.
        """
        key = key_of(review)
        with self.lock:
            if now and now.revision < self.revisions.get(key, 0):
                return now
            if now and now.status == "pending":
                self.reviews[key] = dataclasses.replace(now, predictions=[], endpoint=None)
            else:
                self.reviews.pop(key, None)
                self.claims.pop(key, None)
            if now:
                self.revisions[key] = now.revision
                self.noted_at[key] = time.monotonic()
                self.found_labels.update(prediction["label"] for prediction in now.predictions)
        return now or review

    def matches(self, review: Review, wanted: Filter) -> bool:
        return (
            wanted.label in (None, review.label)
            and wanted.reason in (None, review.reason)
            and (wanted.min_age is None or self.age(review) >= wanted.min_age)
        )

    def is_taken(self, review: Review, session: str) -> bool:
        """Whether another session was looking at the image when it was last read."""
        return review.claim_session not in (None, session) and (review.claim_expires_at or 0) >= self.table.now()

    def age(self, review: Review) -> float:
        """Seconds that the image has been waiting, by DynamoDB's clock."""
        return max(0.0, self.table.now() - datetime.fromisoformat(review.created_at).timestamp())

    def counts(self, session: str, wanted: Filter, uncounted: Collection[Key] = ()) -> dict[str, Any]:
        """How many images are left, how many of them others are looking at, and how many each filter would show.

        `uncounted`: those that the page is deciding or undoing, which it counts itself.
        """
        with self.lock:
            reviews = [review for key, review in self.reviews.items() if key not in uncounted]
        left = [review for review in reviews if self.matches(review, wanted)]
        return {
            "left": len(left),
            "taken": sum(self.is_taken(review, session) for review in left),
            "by_label": dict(
                sorted(Counter(each.label for each in reviews).items(), key=lambda each: natural(each[0]))
            ),
            "by_reason": dict(Counter(each.reason for each in reviews)),
        }

    def release_all(self) -> int:
        """Give up all claims of this process, and return how many."""
        with self.lock:
            claims = list(self.claims.values())
        for review, session in claims:
            self.release(review, session)
        return len(claims)


def interleaved(reviews: list[Review]) -> list[Key]:
    """Their keys in the order in which they come: by confidence, and every AUDIT_EVERY-th an audit."""
    by_confidence = [key_of(review) for review in reviews if review.reason != "audit"]
    audits = sorted((review for review in reviews if review.reason == "audit"), key=lambda each: each.created_at)
    return list(mixed(iter(by_confidence), map(key_of, audits)))


def mixed(most: Iterator[Key], every_nth: Iterator[Key]) -> Iterator[Key]:
    while block := list(itertools.islice(most, AUDIT_EVERY - 1)):
        yield from block
        yield from itertools.islice(every_nth, 1)
    yield from every_nth
