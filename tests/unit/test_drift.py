import math

import pytest

from monitoring.drift import by_chance, contributions

TRAINING = {"bicycle": 500, "motorcycle": 500}


def test_equal_mixes_have_an_index_of_zero():
    assert contributions(TRAINING, {"bicycle": 50, "motorcycle": 50}) == {"bicycle": 0, "motorcycle": 0}


def test_the_index_is_the_sum_of_the_labels_contributions():
    by_label = contributions({"a": 5000, "b": 5000}, {"a": 8000, "b": 2000})
    assert sum(by_label.values()) == pytest.approx(0.3 * math.log(1.6) - 0.3 * math.log(0.4), rel=1e-3)


def test_a_label_missing_from_one_mix_gives_a_finite_index():
    by_label = contributions({"a": 100, "b": 100}, {"a": 100, "new": 100})
    assert set(by_label) == {"a", "b", "new"}
    assert all(math.isfinite(value) for value in by_label.values())


def test_fewer_images_differ_more_by_chance():
    few, many = by_chance(TRAINING, 20), by_chance(TRAINING, 2000)
    assert many < 0.01 < few
    assert few == by_chance(TRAINING, 20)
