"""Replaying a threshold or a model: the computation, on cases worked out by hand and as properties."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import accuracy, cost, replay
from monitoring.replay import Answer, Policy

START = datetime(2026, 11, 16, tzinfo=UTC)


def line(number, confidence, label="7", threshold=0.75, hours=1, **more):
    """The line of an image that was classified `number` hours after START."""
    return {
        "outcome": "accepted" if confidence >= threshold else "review", "s3_bucket": "b", "s3_key": f"{number}",
        "s3_version_id": "v1", "label": label, "confidence": confidence, "threshold": threshold,
        "time": (START + timedelta(hours=number * hours)).isoformat(timespec="milliseconds"),
        "endpoint": {"name": "e", "variant": "AllTraffic"},
    } | more  # fmt: skip


def item(number, truth, reason="audit", label="7", probability=0.02, **more):
    """A review of an image; truth: None if nobody decided, "" for none of these."""
    decision = {"decision": "label" if truth else "none_of_these", "reviewed_label": truth or None}
    return {
        "image": f"s3://b/{number}", "version": "v1", "label": label, "reason": reason,
        "selection_probability": probability if reason == "audit" else 1,
        "created_at": (START + timedelta(hours=number)).isoformat(timespec="milliseconds"),
        **({"status": "pending"} if truth is None else {"status": "reviewed", **decision}),
    } | more  # fmt: skip


def policy(threshold=None, present=0.75, audit_rate=0.1, **more):
    return Policy(threshold, present, audit_rate, seconds=10, **more)


def past_of(*lines, batches=()):
    return replay.history(lines, batches)


FOUR = [line(0, 0.95), line(1, 0.8), line(2, 0.6), line(3, 0.3, hours=16)]  # the last one after two days


def test_a_higher_threshold_on_four_images():
    """0.8 goes to review: three reviews instead of two, and one audit in ten of what is accepted."""
    past = past_of(*FOUR)
    made = replay.figures(past, replay.logged(past), policy(0.9), [])
    assert {move: each["count"] for move, each in made["moves"].items()} == {
        "accepted_to_review": 1, "review_to_accepted": 0, "other_label": 0
    }  # fmt: skip
    assert (made["days"], made["before"]["accepted"]["count"], made["after"]["accepted"]["count"]) == (2, 2, 1)
    assert made["before"]["reviews_a_day"] == {"low_confidence": 1, "audit": 0.1, "total": 1.1}
    assert made["after"]["reviews_a_day"] == {"low_confidence": 1.5, "audit": 0.05, "total": 1.55}
    assert made["after"]["hours_a_month"] == pytest.approx(1.55 * 30 * 10 / 3600)
    assert made["before"]["confidences_error"] == pytest.approx((0.05 + 0.2) / 2)
    assert made["after"]["confidences_error"] == pytest.approx(0.05)
    assert made["after"]["error"]["error"] is None  # nobody decided


def test_a_lower_threshold_accepts_images_that_people_have_decided():
    """Of two images accepted before, one is audited and right; the third becomes accepted, and was wrong."""
    past = past_of(*FOUR)
    items = [item(0, "7"), item(2, "1", "low_confidence"), item(3, "7", "low_confidence")]
    made = replay.figures(past, replay.logged(past), policy(0.5), items)
    assert made["moves"]["review_to_accepted"]["count"] == 1
    error = made["after"]["error"]
    assert error["error"] == pytest.approx(1 / 3)  # the audit stands for two images
    assert (error["strata"]["audit"]["images"], error["strata"]["audit"]["wrong"]) == (2, 0)
    assert (error["strata"]["low_confidence"]["images"], error["strata"]["low_confidence"]["wrong"]) == (1, 1)
    assert error["low"] < 1 / 3 < error["high"]


def test_another_model_is_judged_by_its_own_labels():
    """It reads a 1 where people saw one, and accepts what was for review; the audit finds its 4 wrong."""
    past = past_of(*FOUR)
    items = [item(0, "7"), item(2, "1", "low_confidence")]
    answers = {0: Answer("4", 0.9), 1: Answer("7", 0.74), 2: Answer("1", 0.8), 3: Answer("7", 0.2)}
    made = replay.figures(past, answers, policy(), items)
    assert [each["count"] for each in made["moves"].values()] == [1, 1, 1]
    assert replay.changed(past, answers, None) == {
        "accepted_to_review": [1], "review_to_accepted": [2], "other_label": [0]
    }  # fmt: skip
    strata = made["after"]["error"]["strata"]
    assert (strata["audit"]["wrong"], strata["low_confidence"]["wrong"], made["after"]["error"]["error"]) == (1, 0, 0.5)


lines_of_a_threshold = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from("17"), st.sampled_from([None, "1", "7", ""])), min_size=1, max_size=40
)


@given(lines_of_a_threshold, st.floats(0.1, 1), st.booleans())
def test_replaying_the_deployed_threshold_changes_nothing(images, threshold, named):
    lines = [line(number, confidence, label, threshold) for number, (confidence, label, _) in enumerate(images)]
    items = [
        item(number, truth, "audit" if confidence >= threshold else "low_confidence", label)
        for number, (confidence, label, truth) in enumerate(images)
    ]
    past = past_of(*lines)
    made = replay.figures(past, replay.logged(past), policy(threshold if named else None, present=threshold), items)
    assert made["before"] == made["after"]
    assert all(each["count"] == 0 for each in made["moves"].values())
    (point,) = [each for each in made["curve"] if each["threshold"] == threshold]
    assert point["reviews_a_day"] == pytest.approx(made["before"]["reviews_a_day"])
    assert point["error"] == pytest.approx(made["before"]["error"]["error"])
    audited = accuracy.estimate(accuracy.complete(accuracy.audits(items)))  # as make accuracy counts
    if audited:
        assert made["before"]["error"]["error"] == pytest.approx(1 - audited.estimate)
        assert made["before"]["error"]["high"] == pytest.approx(1 - audited.low)


@given(lines_of_a_threshold, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_higher_threshold_never_accepts_more(images, one, other):
    past = past_of(*[line(number, confidence) for number, (confidence, *_) in enumerate(images)])
    low, high = sorted((one, other))
    made = [replay.figures(past, replay.logged(past), policy(each), [])["after"]["accepted"] for each in (low, high)]
    assert made[0]["count"] >= made[1]["count"]


def test_an_image_that_was_classified_twice_counts_as_the_last_time():
    again = line(0, 0.5, "1") | {"time": line(9, 0)["time"]}
    other_version = line(0, 0.9) | {"s3_version_id": "v2"}
    past = replay.history([again, other_version], [line(0, 0.9), line(1, 0.9)])  # whatever the order of the lines
    assert (len(past.images), past.repeated) == (3, 1)
    assert [image.label for image in past.images if (image.s3_key, image.version) == ("0", "v1")] == ["1"]


def test_errors_and_lines_without_a_version_are_counted():
    without = {name: value for name, value in line(0, 0.9).items() if name != "s3_version_id"}
    failed = {"outcome": "error", "s3_bucket": "b", "s3_key": "x", "error": "ImageNotFoundError", "time": "t"}
    past = past_of(without, without, without | {"s3_etag": "e"}, failed, failed)
    made = replay.figures(past, replay.logged(past), policy(0.9), [])
    assert (made["images"], made["without_version"], made["errors"]) == (3, 2, {"ImageNotFoundError": 2})


def test_images_count_up_to_the_oldest_pending_one_that_would_be_accepted():
    past = past_of(*[line(number, 0.7 if number == 5 else 0.9) for number in range(10)])
    items = [item(number, None if number in (5, 8) else "7", reason="low_confidence" if number == 5 else "audit")
             for number in range(10)]  # fmt: skip
    made = replay.figures(past, replay.logged(past), policy(0.75), items)
    assert made["after"]["error"]["reviewed"] == 7  # of 0 to 7; 5 stays for review
    lower = replay.figures(past, replay.logged(past), policy(0.6), items)["after"]["error"]
    assert (lower["error"], lower["strata"]["audit"]["reviewed"]) == (
        None,
        7,
    )  # one is accepted that nobody has decided


def test_a_review_that_an_earlier_classification_asked_for_is_left_out():
    past = past_of(line(0, 0.9))
    assert replay.indexed(past, [item(0, "7", "low_confidence"), item(1, "7")]) == {}
    assert list(replay.indexed(past, [item(0, "7")])) == [0]


def test_a_sample_is_scaled_up_with_intervals_that_hold():
    past = past_of(*[line(number, 0.8 if number % 4 else 0.95) for number in range(2000)])
    answers = replay.logged(past)
    inside = 0
    for seed in range(40):
        sample = replay.draw(range(2000), 200, seed)
        assert (len(sample), sample) == (200, replay.draw(range(2000), 200, seed))
        made = replay.figures(past, answers, policy(0.9, sample=sample), [])["moves"]["accepted_to_review"]
        inside += made["low"] <= 1500 <= made["high"]
        assert made["count"] == pytest.approx(1500, rel=0.15)
    assert inside >= 36
    assert replay.draw(range(5), 200, 0) == [0, 1, 2, 3, 4]


def test_decisions_outside_the_sample_count_in_the_error_only():
    past = past_of(*[line(number, 0.9) for number in range(10)])
    answers = {0: Answer("7", 0.9), 1: Answer("7", 0.9), 9: Answer("1", 0.9)}
    made = replay.figures(past, answers, policy(sample=[0, 1, 2]), [item(0, "7"), item(9, "7")])
    assert (made["sampled"], made["moves"]["other_label"]["count"], made["after"]["accepted"]["count"]) == (2, 0, 10)
    assert (made["after"]["error"]["error"], made["after"]["error"]["reviewed"]) == (pytest.approx(0.5), 2)
    assert made["after"]["error"]["strata"]["audit"]["images"] == 10


def test_the_bill_is_that_of_the_scale_document():
    million = {"low_confidence": 50_000, "audit": 19_000}
    assert sum(cost.cost(cost.reviews(million)).values()) == pytest.approx(3.89, abs=0.005)
    past = past_of(line(0, 0.9), batches=[line(1, 0.9), line(2, 0.9)])
    month = dataclasses.replace(past, images=past.images * 10_000)
    single, batch = (
        sum(cost.cost(cost.classification(run, count)).values())
        for run, count in ((cost.counted()["single"], 300_000), (cost.batches_of(300), 600_000))
    )
    assert replay.classification_usd(month) == pytest.approx(single + batch)


def test_a_sample_without_moves_changes_nothing():
    """Whatever share of the images it happens to draw that were accepted before."""
    past = past_of(*[line(number, 0.9 if number % 10 else 0.5) for number in range(500)])
    made = replay.figures(past, replay.logged(past), policy(sample=replay.draw(range(500), 50, 1)), [])
    assert made["before"]["accepted"]["count"] == made["after"]["accepted"]["count"] == 450
    assert made["after"]["accepted"]["low"] < 450 < made["after"]["accepted"]["high"] <= 500
    assert made["before"]["reviews_a_day"] == made["after"]["reviews_a_day"]
