"""The review table on the emulated DynamoDB: claims, decisions and undo, by several reviewers at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from review.table import AlreadyClaimedError, AlreadyReviewedError, ReviewNotFoundError
from reviewing import Desk


@pytest.fixture
def desk(workflow):
    desk = Desk(workflow)
    yield desk
    desk.clear()


def in_the_past(desk, review):
    """Let the image's claim expire."""
    desk.dynamodb.update_item(
        TableName=desk.table.name, Key=review.key, UpdateExpression="SET claim_expires_at = :past",
        ExpressionAttributeValues={":past": {"N": str(round(desk.table.now()) - 2)}},
    )  # fmt: skip


def test_of_many_claims_at_once_one_succeeds(desk):
    review = desk.table.get(*desk.add("0.png"))

    def claim(number):
        try:
            return desk.table.claim(review, "mary", f"tab {number}").claim_session
        except AlreadyClaimedError:
            return None

    with ThreadPoolExecutor(8) as pool:
        claimed = [session for session in pool.map(claim, range(24)) if session]
    assert [desk.table.get(review.image, review.version).claim_session] == claimed


def test_of_many_decisions_at_once_one_is_written(desk):
    review = desk.table.get(*desk.add("0.png"))

    def decide(number):
        try:
            return desk.table.decide(review, f"reviewer {number}", "label", str(number)).reviewed_label
        except AlreadyReviewedError:
            return None

    with ThreadPoolExecutor(8) as pool:
        written = [label for label in pool.map(decide, range(10)) if label]
    now = desk.table.get(review.image, review.version)
    assert ([now.reviewed_label], now.revision) == (written, 1)


def test_the_same_decision_again_changes_nothing_and_another_is_refused(desk):
    review = desk.table.get(*desk.add("0.png"))
    first = desk.table.decide(review, "mary", "label", "7")
    assert desk.table.decide(review, "mary", "label", "7") == first
    for reviewer, decision, label in [("mary", "label", "3"), ("bob", "label", "7"), ("mary", "not_usable", None)]:
        with pytest.raises(AlreadyReviewedError, match="decided meanwhile: mary: 7") as refused:
            desk.table.decide(review, reviewer, decision, label)
        assert refused.value.now == first


def test_only_the_reviewer_can_undo_and_only_this_decision(desk):
    decided = desk.table.decide(desk.table.get(*desk.add("0.png")), "mary", "label", "7")
    with pytest.raises(AlreadyReviewedError, match="mary: 7"):
        desk.table.undo(decided, "bob")
    undone = desk.table.undo(decided, "mary")
    assert (undone.status, undone.revision, undone.decision, undone.reviewer) == ("pending", 2, None, None)
    assert desk.table.undo(decided, "mary") == undone
    again = desk.table.decide(undone, "mary", "none_of_these")
    with pytest.raises(AlreadyReviewedError, match="mary: none of these"):
        desk.table.undo(decided, "mary")
    assert (again.revision, again.reviewed_label) == (3, None)


def test_a_claim_is_a_sessions_and_ends_by_release_decision_or_expiry(desk):
    review = desk.table.get(*desk.add("0.png"))
    desk.table.claim(review, "mary", "first tab")
    for reviewer in ("mary", "bob"):
        with pytest.raises(AlreadyClaimedError, match="mary is looking at"):
            desk.table.claim(review, reviewer, "second tab")
        with pytest.raises(AlreadyClaimedError):
            desk.table.decide(review, reviewer, "not_usable", session="second tab")
    desk.table.claim(review, "mary", "first tab")  # renewed
    desk.table.release(review, "mary", "first tab")
    claimed = desk.table.claim(review, "bob", "second tab")
    assert 290 < claimed.claim_expires_at - desk.table.now() <= 301
    in_the_past(desk, review)
    assert desk.table.claim(review, "mary", "first tab").claimed_by == "mary"
    decided = desk.table.decide(review, "mary", "label", "7", "first tab")
    assert (decided.claimed_by, decided.claim_session, decided.claim_expires_at) == (None, None, None)


def test_a_decision_without_a_session_respects_other_reviewers_claims(desk):
    review = desk.table.get(*desk.add("0.png"))
    desk.table.claim(review, "mary", "a tab")
    with pytest.raises(AlreadyClaimedError):
        desk.table.decide(review, "bob", "label", "7")
    assert desk.table.decide(review, "mary", "label", "7").status == "reviewed"


def test_what_was_deleted_is_not_found_and_not_made_again(desk):
    review = desk.table.get(*desk.add("0.png"))
    desk.remove(review.image, review.version)
    for change in (
        lambda: desk.table.get(review.image, review.version),
        lambda: desk.table.claim(review, "mary", "a tab"),
        lambda: desk.table.decide(review, "mary", "label", "7"),
        lambda: desk.table.undo(review, "mary"),
    ):
        with pytest.raises(ReviewNotFoundError, match=r"There is no review of s3://.*/review/0.png"):
            change()


def test_times_are_dynamodbs_when_this_clock_is_wrong(desk):
    desk.table.time_ahead = 0.0
    list(desk.table.pending())
    assert abs(desk.table.time_ahead) < 5  # the emulator's clock is this machine's
    desk.table.time_ahead = 3600.0
    claimed = desk.table.claim(desk.table.get(*desk.add("0.png")), "mary", "a tab")  # get() corrects it
    assert abs(claimed.claim_expires_at - desk.table.now() - 300) < 2
