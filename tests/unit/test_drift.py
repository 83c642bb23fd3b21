import math
import random

import pytest

from documents import ROOT
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


@pytest.mark.parametrize(("reference", "images"), [
    (dict.fromkeys("0123456789", 108), 300),
    (dict.fromkeys("0123456789", 108), 100_000),
    ({"a": 500, "b": 300, "c": 200}, 20_000),
    ({str(number): 50 for number in range(100)}, 20_000),
])  # fmt: skip
def test_with_many_images_the_index_by_chance_is_that_of_a_chi_square_test(reference, images):
    """The 95 % quantile, by Wilson and Hilferty's approximation (PNAS 17, 1931)."""
    freedom = len(reference) - 1
    quantile = freedom * (1 - 2 / (9 * freedom) + 1.645 * math.sqrt(2 / (9 * freedom))) ** 3
    assert by_chance(reference, images) == pytest.approx(quantile / images, rel=0.1)


@pytest.mark.parametrize(("reference", "images"), [
    (dict.fromkeys("0123456789", 108), 24),
    ({"a": 950, "b": 50}, 50),
    ({str(number): 50 for number in range(100)}, 24),
])  # fmt: skip
def test_with_few_images_one_sample_in_twenty_exceeds_it(reference, images):
    generator = random.Random(7)
    limit, above = by_chance(reference, images), 0
    for _ in range(1000):
        sample = generator.choices(list(reference), list(reference.values()), k=images)
        observed = {label: sample.count(label) for label in set(sample)}
        above += sum(contributions(reference, observed).values()) > limit
    assert 20 <= above <= 80


def test_the_functions_link_to_the_file():
    assert (ROOT / "functions/drift.py").resolve() == ROOT / "monitoring/drift.py"
