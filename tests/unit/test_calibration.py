import csv

import numpy as np
import pytest

import calibration
import threshold


def overconfident(count, temperature, classes=3, seed=0):
    """Logits [N, classes] and targets [N]; divided by `temperature`, the logits are calibrated."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes)) * 2
    chances = calibration.softmax(logits)
    targets = np.array([random.choice(classes, p=row) for row in chances])
    return logits * temperature, targets


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_the_fitted_temperature_is_the_one_applied_to_the_logits(temperature):
    logits, targets = overconfident(20_000, temperature)
    assert calibration.fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.04)


def test_the_temperature_lowers_the_calibration_error_and_leaves_the_accuracy_unchanged():
    logits, targets = overconfident(5_000, 3)
    figures = calibration.summary(logits, targets, calibration.fit_temperature(logits, targets))
    errors = figures["expected_calibration_error"]
    assert errors["before"] > 0.1 > 0.03 > errors["after"]
    assert figures["accuracy"] == (logits.argmax(1) == targets).mean()


def test_a_model_without_mistakes_on_a_few_images_does_not_become_certain():
    logits, targets = np.array([[2.0, 0.0], [0.0, 3.0]] * 5), np.array([0, 1] * 5)
    probabilities = calibration.softmax(logits / calibration.fit_temperature(logits, targets))
    assert 0.8 < probabilities.max(1).mean() < 0.98


def test_the_calibration_error_equals_a_calculation_by_hand():
    confidences = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, False, True, True])
    bins = [{"confidence": 0.55, "accuracy": 1, "count": 2}, {"confidence": 0.95, "accuracy": 0.5, "count": 2}]
    assert calibration.reliability(confidences, right) == [pytest.approx(each) for each in bins]
    assert calibration.expected_calibration_error(confidences, right) == pytest.approx((0.45 + 0.45) / 2)


def test_a_threshold_accepts_equal_and_higher_confidences_or_none():
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


def test_the_lowest_threshold_accepts_equal_confidences_together():
    confidences = np.array([0.9, 0.8, 0.8, 0.7, 0.6])
    right = np.array([True, True, False, True, True])
    assert calibration.lowest_threshold(confidences, right, 1) == 0.9
    assert calibration.lowest_threshold(confidences, right, 0.75) == 0.6
    assert calibration.lowest_threshold(confidences[1:3], right[1:3], 0.9) is None


def test_the_lower_bound_depends_on_the_number_of_images():
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


def test_the_threshold_for_an_accuracy_is_printed_with_its_uncertainty(tmp_path, capsys):
    random = np.random.default_rng(0)
    confidences = random.uniform(0.5, 1, 2_000)
    options = write_predictions(tmp_path / "p.csv", confidences, random.random(2_000) < confidences)
    assert threshold.main([*options, "--accuracy", "0.9"]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert float(first.removeprefix("threshold ").partition(":")[0]) == pytest.approx(0.8, abs=0.05)
    assert "of 2,000 images" in first
    assert second.startswith("other samples of 2,000 images: a threshold between 0.7")
    assert third.endswith(" with 95% confidence; too few images to guarantee 90.0%")


@pytest.mark.parametrize(
    "confidences, lowest, expected",
    [
        ([0.9, 0.8, 0.6], 0.8, 0.7999),
        ([0.99997, 0.99996], 0.99997, 0.999965),
        ([1.0, 0.5], 1.0, 0.9999),
        ([0.6], 0.6, 0.5999),
    ],
)
def test_the_rounded_threshold_accepts_the_same_images(confidences, lowest, expected):
    confidences = np.array(confidences)
    number = threshold.just_below(confidences, lowest)
    assert number == pytest.approx(expected, abs=1e-6)
    assert ((confidences >= number) == (confidences >= lowest)).all()


def test_an_accuracy_that_no_threshold_gives_is_reported(tmp_path, capsys):
    options = write_predictions(tmp_path / "p.csv", [0.99, 0.9, 0.8, 0.7], [False, True, True, True])
    assert threshold.main([*options, "--accuracy", "0.99"]) == 1
    assert capsys.readouterr().out.startswith("No threshold gives an accuracy of 99.0% on these 4 images")


def test_missing_predictions_are_reported(tmp_path):
    with pytest.raises(threshold.PredictionsError, match="train a model first"):
        threshold.main(["--predictions", str(tmp_path / "none.csv")])
    options = write_predictions(tmp_path / "p.csv", [0.9], [True])
    with pytest.raises(threshold.PredictionsError, match="has no validation images"):
        threshold.main([*options, "--part", "validation"])
