"""make accuracy's figures, sentences and page."""

import re
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.stub import Stubber

from local import accuracy as command
from local.report import accuracy
from review.table import Review, ReviewTable

HOSTILE = "<script>alert(1)</script>"
MONDAY = datetime(2026, 11, 16, tzinfo=UTC)


def review(number, decision="label", reviewed_label="7", reason="audit", label="7", confidence=0.9, **changes):
    """A review of an image that was created `number` days after a Monday."""
    fields = {
        "image": f"s3://bucket/{number}", "version": "1", "s3_bucket": "bucket", "s3_key": f"{number}", "label": label,
        "confidence": confidence, "threshold": 0.75, "predictions": [], "reason": reason,
        "selection_probability": 0.02 if reason == "audit" else 1, "status": "reviewed", "revision": 1,
        "created_at": (MONDAY + timedelta(days=number)).isoformat(timespec="milliseconds"), "decision": decision,
        "reviewed_label": reviewed_label, "reviewer": "maria",
    }  # fmt: skip
    return Review(**fields | changes)


def pending(number, **changes):
    return review(number, decision=None, reviewed_label=None, status="pending", **changes)


@pytest.fixture
def reviews():
    """38 right audits and two wrong ones in two weeks, one not usable, a pending one and a newer one."""
    return [
        *[review(number % 14) for number in range(38)],
        review(7, reviewed_label=HOSTILE, confidence=0.8),
        review(8, "none_of_these", None, confidence=0.95),
        review(9, "not_usable", None),
        pending(20),
        review(21),
        review(3, reason="low_confidence", label="1", confidence=0.5),
    ]


def test_the_figures_say_what_was_reviewed_and_what_is_missing(reviews):
    made = accuracy.figures(reviews)
    assert (made.accepted.right, made.accepted.reviewed, made.overall.reviewed) == (38, 40, 41)
    assert {week: each.reviewed for week, each in made.weeks.items()} == {"2026-11-16": 21, "2026-11-23": 19}
    assert [each.confidence for each in made.mistakes] == [0.95, 0.8]
    assert accuracy.sentences(made) == [
        "audits: 42 reviewed, of which 1 not usable; 1 pending",
        "low confidence: 1 reviewed, of which 0 not usable; 0 pending",
        "These images were classified from 2026-11-16 00:00 UTC to 2026-12-07 00:00 UTC, by whatever model was "
        "deployed then. To count one model, give SINCE= the time of its deployment (make models).",
        "At least 85.1% of accepted images are right, with 95% confidence (the one-sided bound).",
        "Of all images, each audit counts 1 / AuditRate times, so the accuracy is no plain share.",
        "Images count up to 2026-12-06 00:00 UTC, when the oldest pending audit was created; newer ones that are "
        "already decided (1) do not count yet. Reviewers see the least confident first: until all are decided, those "
        "reviewed are wrong more often than all.",
    ]


def test_too_little_data_is_said_in_words():
    assert accuracy.sentences(accuracy.figures([]))[2:] == [
        "No accepted image of this time was drawn for an audit: AuditRate is 0, or there were too few."
    ]
    few = accuracy.figures([review(number) for number in range(12)])
    assert accuracy.sentences(few)[3:] == ["Too few decisions on audits for an estimate: 12 of the 30 that it takes."]
    waiting = [*[review(number) for number in range(31)], pending(2, reason="low_confidence")]
    assert accuracy.sentences(accuracy.figures(waiting))[4:] == [
        "The accuracy of all images also takes decisions on those below the threshold."
    ]


def test_the_page_is_self_contained_and_escapes_labels(reviews):
    html = accuracy.render(accuracy.figures(reviews), HOSTILE, [None, "data:image/png;base64,x"])
    assert "<script" not in html and "http" not in html.replace("http-equiv", "")
    assert "95.0%<small>95% interval: 83.1% to 99.4%" in html
    assert (html.count('src="data:image/png;base64,'), html.count("no image")) == (1, 1)
    assert "maria: none of these" in html


@pytest.mark.parametrize("reviews", [[], [pending(1)], [review(1, "none_of_these", None)] * 70])
def test_a_page_of_no_decisions_or_of_nothing_but_mistakes_is_complete(reviews):
    html = accuracy.render(accuracy.figures(reviews), "about", [None] * len(reviews))
    assert "None" not in html.replace("None among", "")
    assert "nan" not in re.sub(r"<style>.*</style>", "", html, flags=re.DOTALL).lower()


def test_reviews_are_read_since_a_time_and_one_that_is_decided_meanwhile_once(reviews):
    class Table(ReviewTable):
        def with_status(self, status):
            yield from {"pending": [pending(30), pending(31), pending(1)], "reviewed": [review(31), review(2)]}[status]

    found = command.reviews_since(Table(None, "table"), MONDAY + timedelta(days=2))
    assert [(each.s3_key, each.status) for each in found] == [("30", "pending"), ("31", "reviewed"), ("2", "reviewed")]


@pytest.mark.parametrize(
    ("version", "expected"),
    [({"s3_version_id": "v1"}, {"VersionId": "v1"}), ({"version": '"etag"'}, {"IfMatch": '"etag"'})],
)
def test_an_image_is_shown_in_the_version_that_was_classified_or_not_at_all(version, expected):
    s3 = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(s3) as stub:
        stub.add_client_error(
            "get_object", "NoSuchVersion", expected_params={"Bucket": "bucket", "Key": "1", **expected}
        )
        assert command.thumbnail(s3, review(1, **version)) is None
        stub.assert_no_pending_responses()
