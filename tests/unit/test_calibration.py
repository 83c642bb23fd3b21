import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

import calibration


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


def test_auroc_and_brier_score_are_scikit_learns_with_equal_confidences_too():
    random = np.random.default_rng(0)
    for digits in (1, 2, 16):
        confidences = random.uniform(0.3, 1, 500).round(digits)
        right = random.random(500) < confidences
        assert calibration.area_under_roc(confidences, right) == pytest.approx(roc_auc_score(right, confidences))
        assert calibration.brier_score(confidences, right) == pytest.approx(brier_score_loss(right, confidences))


def test_equal_confidences_say_nothing_about_correctness():
    assert calibration.area_under_roc(np.array([0.9, 0.9, 0.9]), np.array([True, False, True])) == 0.5


@pytest.mark.parametrize("right", [True, False])
def test_auroc_is_undefined_if_all_predictions_are_right_or_all_are_wrong(right):
    assert calibration.area_under_roc(np.array([0.9, 0.8]), np.array([right, right])) is None


def test_the_summary_has_both_after_the_temperature():
    logits, targets = overconfident(2_000, 3)
    confidences, right = calibration.confidence(calibration.softmax(logits / 3), targets)
    figures = calibration.summary(logits, targets, 3)
    assert figures["area_under_roc"] == pytest.approx(roc_auc_score(right, confidences))
    assert figures["brier_score"] == pytest.approx(brier_score_loss(right, confidences))
    assert figures["brier_score"] < calibration.summary(logits, targets, 1)["brier_score"]
