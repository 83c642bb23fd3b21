"""How often the intervals of monitoring/accuracy.py contain the accuracy that they estimate, by simulation.

    .venv/bin/python -m benchmarks.accuracy [--repeats 2000]

Images arrive over some days. Accepted ones are drawn for an audit; every evening reviewers decide as many as they
manage, the least confident first, as make review's page shows them. The truth is known here: the accuracy of all
images of the time that the estimate is for. For comparison, the naive estimate: the share of right ones among all
reviewed, unweighted, with a bootstrap.
"""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from monitoring import accuracy
from monitoring.accuracy import Estimate

THRESHOLD = 0.75
DAYS = 20
Items = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One entry of `rates` and of `errors` for each half of the days."""

    name: str
    images: int = 10_000
    rates: tuple[float, float] = (0.02, 0.02)  # AuditRate
    errors: tuple[float, float] = (1, 1)  # times 1 - confidence: the probability of being wrong
    reviewed: float | None = None  # in a day, as a share of its new items; None: all
    caught_up: int = 0  # the day on which reviewers decide all that is pending
    overall: bool = False  # estimate the accuracy of all images, not of accepted ones


SCENARIOS = [
    Scenario("all audits are decided"),
    Scenario("the same, hardly any mistakes", errors=(0.05, 0.05)),
    Scenario("`AuditRate` raised from 2 % to 10 %, as accuracy fell", rates=(0.02, 0.1), errors=(0.2, 2)),
    Scenario("`AuditRate` lowered from 10 % to 1 %, hardly any mistakes", rates=(0.1, 0.01), errors=(0.05, 0.05)),
    Scenario("four of five items are decided, and all on day 10", 40_000, reviewed=0.8, caught_up=10),
    Scenario("49 of 50 items are decided", 40_000, reviewed=0.98),
    Scenario("accuracy of all images", overall=True),
    Scenario("the same, `AuditRate` raised, 49 of 50 decided", 40_000, (0.02, 0.1), (0.2, 2), 0.98, overall=True),
]


def simulate(scenario: Scenario, random: np.random.Generator) -> tuple[Items, Callable[[Items], float]]:
    """The table's items, and a function that tells the true accuracy of what an estimate from them is for."""
    count = scenario.images
    half = (np.arange(count) * 2) // count
    confidence = random.beta(12, 1, count)
    right = random.random(count) >= (1 - confidence) * np.array(scenario.errors)[half]
    accepted = confidence >= THRESHOLD
    probability = np.where(accepted, np.array(scenario.rates)[half], 1)
    items: Items = [
        {
            "number": int(number),
            "created_at": f"{number:09}",
            "reason": "audit" if accepted[number] else "low_confidence",
            "confidence": confidence[number],
            "selection_probability": float(probability[number]),
            "label": "7",
            "status": "pending",
            "decision": None,
            "reviewed_label": None,
        }
        for number in np.flatnonzero(random.random(count) < probability)
    ]
    review(items, scenario, right)

    def truth(items: Items) -> float:
        """Of all images (or the accepted ones) that are as old as those that are estimated from."""
        until = accuracy.oldest_pending(items)
        old = np.arange(count) < (count if until is None else int(until))
        return float(right[old if scenario.overall else old & accepted].mean())

    return items, truth


def review(items: Items, scenario: Scenario, right: np.ndarray) -> None:
    """Decide on items day by day, the least confident of those pending first."""
    for day in range(1, DAYS + 1):
        arrived = [item for item in items if item["number"] < day * scenario.images / DAYS]
        waiting = sorted((item for item in arrived if item["status"] == "pending"), key=lambda item: item["confidence"])
        everything = scenario.reviewed is None or day == scenario.caught_up
        for item in waiting if everything else waiting[: round(scenario.reviewed * len(items) / DAYS)]:
            label = "7" if right[item["number"]] else "1"
            item.update(status="reviewed", decision="label", reviewed_label=label)


def naive(items: Items, scenario: Scenario, random: np.random.Generator) -> Estimate | None:
    """The share of right ones among those reviewed, and a bootstrap's quantiles."""
    chosen = [
        item for item in items if item["status"] == "reviewed" and (scenario.overall or item["reason"] == "audit")
    ]
    count, right = len(chosen), sum(map(accuracy.is_right, chosen))
    if not count:
        return None
    low, lower_bound, high = np.quantile(random.binomial(count, right / count, 1000) / count, [0.025, 0.05, 0.975])
    return Estimate(right / count, low, high, lower_bound, count, right)


def coverage(scenario: Scenario, repeats: int, seed: int = 0) -> dict[str, float]:
    """The shares of published estimates whose interval, and whose lower bound, hold; of ours and of the naive ones."""
    random = np.random.default_rng(seed)
    ours = accuracy.overall_accuracy if scenario.overall else accuracy.accepted_accuracy
    found: dict[str, list[tuple[bool, bool, float]]] = {"ours": [], "naive": []}
    for _ in range(repeats):
        items, truth = simulate(scenario, random)
        relevant = items if scenario.overall else list(accuracy.audits(items))
        for name, estimate, counted in (("ours", ours(items), relevant), ("naive", naive(items, scenario, random), [])):
            if estimate:
                true = truth(counted)
                interval, bound = estimate.low <= true <= estimate.high, estimate.lower_bound <= true
                found[name].append((interval, bound, estimate.high - estimate.low))
    shares = {name: np.mean(rows, axis=0) if rows else [np.nan] * 3 for name, rows in found.items()}
    return {
        "published": len(found["ours"]) / repeats,
        "interval": float(shares["ours"][0]),
        "lower_bound": float(shares["ours"][1]),
        "width": float(shares["ours"][2]),
        "naive_interval": float(shares["naive"][0]),
        "naive_lower_bound": float(shares["naive"][1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    print("| reviews | published | interval holds | mean width | lower bound holds | naive interval, bound |")
    print("|---|---|---|---|---|---|")
    for scenario in SCENARIOS:
        made = coverage(scenario, repeats)
        print(
            f"| {scenario.name} | {made['published']:.0%} | {made['interval']:.1%} | {100 * made['width']:.1f} points "
            f"| {made['lower_bound']:.1%} | {made['naive_interval']:.1%}, {made['naive_lower_bound']:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
