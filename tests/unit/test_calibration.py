import csv

import numpy as np
import pytest

import calibration
import threshold


def overconfident(count, temperature, classes=3, seed=0):
    """Logits [N, classes] and targets [N], drawn so that the logits are right once divided by `temperature`."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes)) * 2
    chances = calibration.softmax(logits)
    targets = np.array([random.choice(classes, p=row) for row in chances])
    return logits * temperature, targets


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_the_temperature_that_was_put_in_is_found(temperature):
    logits, targets = overconfident(20_000, temperature)
    assert calibration.fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.04)


def test_the_temperature_brings_the_calibration_error_down_and_leaves_accuracy_alone():
    logits, targets = overconfident(5_000, 3)
    figures = calibration.trust(logits, targets, calibration.fit_temperature(logits, targets))
    errors = figures["expected_calibration_error"]
    assert errors["before"] > 0.1 > 0.03 > errors["after"]
    assert figures["accuracy"] == (logits.argmax(1) == targets).mean()


def test_a_model_without_a_mistake_in_few_pictures_is_not_made_certain():
    logits, targets = np.array([[2.0, 0.0], [0.0, 3.0]] * 5), np.array([0, 1] * 5)
    probabilities = calibration.softmax(logits / calibration.fit_temperature(logits, targets))
    assert 0.8 < probabilities.max(1).mean() < 0.98


def test_the_calibration_error_is_that_of_a_sum_by_hand():
    confidences = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, False, True, True])
    bins = [{"confidence": 0.55, "accuracy": 1, "count": 2}, {"confidence": 0.95, "accuracy": 0.5, "count": 2}]
    assert calibration.reliability(confidences, right) == [pytest.approx(each) for each in bins]
    assert calibration.expected_calibration_error(confidences, right) == pytest.approx((0.45 + 0.45) / 2)


def test_a_threshold_accepts_what_is_as_high_and_nothing_may_be():
    confidences, right = np.array([0.9, 0.75, 0.6, 0.5]), np.array([True, True, False, True])
    assert calibration.accepted(confidences, right, 0.6) == {
        "threshold": 0.6,
        "coverage": 0.75,
        "accepted": 3,
        "accuracy": 2 / 3,
    }
    assert calibration.accepted(confidences, right, 0.95) == {
        "threshold": 0.95,
        "coverage": 0,
        "accepted": 0,
        "accuracy": None,
    }


def test_the_lowest_threshold_with_an_accuracy_counts_equal_confidences_together():
    confidences = np.array([0.9, 0.8, 0.8, 0.7, 0.6])
    right = np.array([True, True, False, True, True])
    assert calibration.lowest_threshold(confidences, right, 1) == 0.9
    assert calibration.lowest_threshold(confidences, right, 0.75) == 0.6
    assert calibration.lowest_threshold(confidences[1:3], right[1:3], 0.9) is None


def test_the_lower_bound_knows_how_few_the_pictures_are():
    assert calibration.lower_bound(20, 20) == pytest.approx(20 / (20 + 1.645**2))
    assert calibration.lower_bound(990, 1000) == pytest.approx(0.9833, abs=1e-4)


def write_predictions(path, confidences, right):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "truth", "label", "confidence"])
        writer.writerows(
            ["test", "cat", "cat" if each else "dog", c] for c, each in zip(confidences, right, strict=True)
        )
    return ["--part", "test", "--predictions", str(path)]


def test_the_threshold_for_an_accuracy_is_told_with_its_uncertainty(tmp_path, capsys):
    random = np.random.default_rng(0)
    confidences = random.uniform(0.5, 1, 2_000)
    options = write_predictions(tmp_path / "p.csv", confidences, random.random(2_000) < confidences)
    assert threshold.main([*options, "--accuracy", "0.9"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert float(first.removeprefix("threshold ").partition(":")[0]) == pytest.approx(0.8, abs=0.05)
    assert "of 2,000 pictures" in first
    assert second.startswith("other pictures of the same kind: a threshold between 0.7")
    assert third.endswith("(95 % certain): too few to be sure of 90.0%")


@pytest.mark.parametrize(
    "confidences, lowest, told",
    [
        ([0.9, 0.8, 0.6], 0.8, 0.7999),
        ([0.99997, 0.99996], 0.99997, 0.999965),
        ([1.0, 0.5], 1.0, 0.9999),
        ([0.6], 0.6, 0.5999),
    ],
)
def test_the_threshold_that_is_told_accepts_what_was_sought_and_no_more(confidences, lowest, told):
    confidences = np.array(confidences)
    number = threshold.between(confidences, lowest)
    assert number == pytest.approx(told, abs=1e-6)
    assert ((confidences >= number) == (confidences >= lowest)).all()


def test_an_accuracy_that_no_threshold_gives_is_told(tmp_path, capsys):
    options = write_predictions(tmp_path / "p.csv", [0.99, 0.9, 0.8, 0.7], [False, True, True, True])
    assert threshold.main([*options, "--accuracy", "0.99"]) == 1
    assert capsys.readouterr().out.startswith("No threshold gives 99.0% on 4 pictures")


def test_predictions_that_are_not_there_are_named(tmp_path):
    with pytest.raises(threshold.PredictionsError, match="train a model first"):
        threshold.main(["--predictions", str(tmp_path / "none.csv")])
    options = write_predictions(tmp_path / "p.csv", [0.9], [True])
    with pytest.raises(threshold.PredictionsError, match="no answers to validation pictures"):
        threshold.main([*options, "--part", "validation"])
