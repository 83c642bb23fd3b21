"""The accuracy in production, from reviewers' decisions: what counts, its intervals, and that they hold."""

import ast
import sys
from collections import Counter

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from benchmarks.accuracy import SCENARIOS, Scenario, coverage
from documents import ROOT
from monitoring import accuracy


def item(number, right=True, reason="audit", probability=0.02, label="7", **changes):
    """An item that was reviewed, created at the minute `number`."""
    return {
        "created_at": f"2026-11-26T{number // 60:02}:{number % 60:02}:00.000+00:00",
        "reason": reason,
        "selection_probability": probability,
        "label": label,
        "status": "reviewed",
        "decision": "label",
        "reviewed_label": label if right else "other",
    } | changes


def pending(number, **changes):
    found = item(number, **changes) | {"status": "pending"}
    return {name: value for name, value in found.items() if name not in ("decision", "reviewed_label")}


def decided(right, wrong, **changes):
    return [item(number, number < right, **changes) for number in range(right + wrong)]


@pytest.mark.parametrize(("right", "count"), [(0, 30), (1, 30), (30, 30), (355, 358), (9_876, 10_000)])
def test_with_one_audit_rate_the_interval_is_the_exact_one(right, count):
    made = accuracy.accepted_accuracy(decided(right, count - right))
    two_sided = binomtest(right, count).proportion_ci(0.95, "exact")
    one_sided = binomtest(right, count, alternative="greater").proportion_ci(0.95, "exact")
    assert (made.low, made.high) == pytest.approx((two_sided.low, two_sided.high), abs=1e-9)
    assert made.lower_bound == pytest.approx(one_sided.low, abs=1e-9)
    assert (made.estimate, made.reviewed, made.right) == (pytest.approx(right / count), count, right)


@pytest.mark.parametrize("a", [0.3, 1, 7.5, 4e3, 2e6])
@pytest.mark.parametrize("b", [0.2, 1, 33.3, 5e5])
def test_the_beta_distributions_quantiles_are_right(a, b):
    quantiles = [0.025, 0.05, 0.5, 0.975]
    found = [accuracy.beta_quantile(quantile, a, b) for quantile in quantiles]
    assert found == pytest.approx(beta.ppf(quantiles, a, b), abs=1e-9)


def test_another_label_and_none_of_these_are_wrong_and_what_is_not_usable_does_not_count():
    items = [
        *decided(40, 5),
        *[item(50, decision="none_of_these", reviewed_label=None)] * 5,
        *[item(51, decision="not_usable", reviewed_label=None)] * 9,
    ]
    made = accuracy.accepted_accuracy(items)
    assert (made.reviewed, made.right, made.estimate) == (50, 40, pytest.approx(0.8))


def test_images_below_the_threshold_count_in_the_accuracy_of_all_only():
    items = [*decided(90, 10, probability=0.5), *decided(20, 80, reason="low_confidence", probability=1)]
    assert accuracy.accepted_accuracy(items).estimate == pytest.approx(0.9)
    overall = accuracy.overall_accuracy(items)  # 200 accepted images, of which 180 are right, and 100 others
    assert (overall.estimate, overall.reviewed, overall.right) == (pytest.approx(200 / 300), 200, 110)


def test_an_audit_stands_for_as_many_images_as_its_probability_says():
    items = [*decided(100, 0, probability=0.1), *decided(0, 100, probability=0.02)]  # of 1,000 and of 5,000 images
    assert accuracy.accepted_accuracy(items).estimate == pytest.approx(1 / 6)


def test_images_newer_than_the_oldest_pending_one_do_not_count():
    """Those reviewed so far are the least confident: the others are pending."""
    items = [*decided(35, 0), pending(35), *[item(number, right=False) for number in range(36, 60)]]
    assert accuracy.accepted_accuracy(items).reviewed == 35
    undone = [pending(10) if each["created_at"] == item(10)["created_at"] else each for each in items]
    assert accuracy.accepted_accuracy(undone) is None
    assert accuracy.accepted_accuracy(iter(items)).reviewed == 35
    low = pending(5, reason="low_confidence", probability=1)
    assert accuracy.accepted_accuracy([*items, low]).reviewed == 35
    assert accuracy.overall_accuracy([*items, low]) is None


@pytest.mark.parametrize("items", [[], [pending(1)], decided(29, 0), [item(1, decision="not_usable")] * 40])
def test_with_too_little_data_there_is_no_estimate(items):
    assert accuracy.accepted_accuracy(items) is None
    assert accuracy.overall_accuracy(items) is None
    many = decided(50, 50, reason="low_confidence", probability=1)
    assert accuracy.overall_accuracy([*items, *many]) is None


def test_the_smallest_number_is_where_a_bound_of_nine_in_ten_is_possible():
    assert accuracy.accepted_accuracy(decided(accuracy.MIN_REVIEWED, 0)).lower_bound > 0.9
    assert accuracy.estimate(decided(accuracy.MIN_REVIEWED - 2, 0)).lower_bound < 0.9


def test_each_label_has_its_own_accuracy_however_few_were_reviewed():
    items = [*decided(9, 1, label="1"), *decided(3, 0, label="7"), *decided(5, 5, label="7", reason="low_confidence")]
    made = accuracy.accuracy_by_label([*items, item(1, label="8", decision="not_usable")])
    assert {label: (each.right, each.reviewed) for label, each in made.items()} == {"1": (9, 10), "7": (3, 3)}
    assert made["7"].low == pytest.approx(0.025 ** (1 / 3))


def test_without_mistakes_an_interval_with_several_weights_is_no_narrower_than_its_rarest_audits_allow():
    """A bootstrap, or a variance from the weighted sample, would give 100 % to 100 %."""
    items = [*decided(1000, 0, probability=1), *decided(10, 0, probability=0.01)]  # each of 1,000 images
    made = accuracy.accepted_accuracy(items)
    assert (made.estimate, made.high) == (1, 1)
    exact = 0.5 + 0.5 * 0.025 ** (1 / 10)  # if the first thousand are known to be right
    assert made.low == pytest.approx(exact, abs=0.02) and made.low < exact


STRATA = [
    [(2500, 0.02, 0.95), (2500, 0.1, 0.99)],
    [(2500, 0.02, 1.0), (2500, 0.1, 0.8)],
    [(1000, 1.0, 1.0), (1000, 0.05, 0.9)],
    [(10_000, 0.005, 0.99), (1000, 0.05, 0.9), (1000, 1.0, 0.6)],
]


@pytest.mark.parametrize("strata", STRATA)
def test_an_interval_of_several_audit_rates_holds(strata):
    """strata: numbers of images, their audit rate and their accuracy."""
    random = np.random.default_rng(0)
    truth = sum(count * right for count, _, right in strata) / sum(count for count, _, _ in strata)
    held = []
    for _ in range(500):
        counts = Counter()
        for count, rate, right in strata:
            drawn = random.binomial(count, rate)
            correct = int(random.binomial(drawn, right))
            counts += Counter({(1 / rate, True): correct, (1 / rate, False): int(drawn) - correct})
        low, lower_bound = accuracy.bound(counts, 0.025, extra=False), accuracy.bound(counts, 0.05, extra=False)
        held.append((low <= truth <= accuracy.bound(counts, 0.975, extra=True), lower_bound <= truth))
    assert np.mean(held, axis=0).min() >= 0.94  # 95 %, and chance


# What the estimator is there to avoid: the share of right ones of all that are reviewed, with a bootstrap.
NAIVE_HOLDS = {"all audits are decided", "49 of 50 items are decided"}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_interval_and_the_bound_hold_however_much_is_reviewed_and_the_naive_ones_do_not(scenario):
    made = coverage(scenario, repeats=60)
    assert made["published"] > 0.5
    assert made["interval"] >= 0.9 and made["lower_bound"] >= 0.9  # of 60: 95 %, and chance
    assert (made["naive_interval"] >= 0.9) == (scenario.name in NAIVE_HOLDS)


def test_reviewers_who_never_catch_up_get_no_estimate_rather_than_a_wrong_one():
    assert coverage(Scenario("half", images=20_000, reviewed=0.7), repeats=20)["published"] == 0


def test_the_function_has_the_estimator_and_needs_no_package_for_it():
    assert (ROOT / "functions/accuracy.py").resolve() == ROOT / "monitoring/accuracy.py"
    tree = ast.parse((ROOT / "monitoring/accuracy.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
