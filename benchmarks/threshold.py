"""How often a threshold that was chosen for an accuracy really has it: python -m benchmarks.threshold [SAMPLES]

Each model is a population of images with known confidences and known probabilities of being classified correctly, so
the accuracy of what a threshold accepts is known. Samples are drawn from it, and each way of choosing a threshold
sees a sample only. Printed: the share of samples in which the accuracy is the required one, or no threshold is chosen
(the guarantee: at least 95%), and the share in which one is chosen.
"""

import csv
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import binom

from training import threshold

ACCURACY = 0.99
SIZES = 400, 1_000, 2_000, 5_000  # images of a sample
POPULATION = 50_000
PRODUCTION, DEPLOYED, AUDIT_RATE = 20_000, 0.75, 0.05  # of the simulated reviews: images, threshold, audits
REVIEW_COLUMNS = ["s3_bucket", "s3_key", "version", "label", "confidence", "reason", "selection_probability"]
REVIEW_COLUMNS += ["decision", "reviewed_label"]
Population = tuple[np.ndarray, np.ndarray]  # confidences and probabilities of being right, [POPULATION] each
Choice = Callable[[np.ndarray, np.ndarray], float | None]  # from confidences and right


def calibrated(mean: float) -> Population:
    """Confidences that are true, around the logit `mean`."""
    confidences = 1 / (1 + np.exp(-np.random.default_rng(0).normal(mean, 2, POPULATION)))
    return confidences, confidences


def uninformative() -> Population:
    """Just under the required accuracy, whatever the confidence: each threshold that is chosen is a mistake."""
    confidences = np.random.default_rng(0).uniform(0.5, 1, POPULATION)
    return confidences, np.full(POPULATION, ACCURACY - 0.0001)


def not_monotone() -> Population:
    """The most confident 30% are not the best: 98.7% of them are right, 99.8% of the next 40%, 90% of the rest."""
    confidences = np.random.default_rng(0).uniform(0.5, 1, POPULATION)
    return confidences, np.select([confidences >= 0.85, confidences >= 0.65], [0.987, 0.998], 0.9)


POPULATIONS = {
    "calibrated, 98% right": calibrated(6),
    "calibrated, 90% right": calibrated(3.5),
    "98.99% right at every confidence": uninformative(),
    "the most confident are not the best": not_monotone(),
}


def in_sequence(confidences: np.ndarray, right: np.ndarray) -> float | None:
    """As training/threshold.py does."""
    index = threshold.guaranteed(threshold.bands(confidences, right), ACCURACY)
    return None if index < 0 else threshold.GRID[index]


def lowest_bound(confidences: np.ndarray, right: np.ndarray) -> float | None:
    """The lowest threshold whose own exact test passes, however many others fail."""
    correct, wrong = threshold.bands(confidences, right).cumsum(1)[:, :-1]
    passed = np.flatnonzero(binom.sf(correct - 1, correct + wrong, ACCURACY) <= threshold.LEVEL)
    return threshold.GRID[passed[-1]] if len(passed) else None


def lowest_accurate(confidences: np.ndarray, right: np.ndarray) -> float | None:
    """The lowest threshold with the accuracy on the sample: the procedure before."""
    order = np.argsort(-confidences)
    accurate = np.flatnonzero(np.cumsum(right[order]) >= ACCURACY * np.arange(1, len(right) + 1))
    return confidences[order][accurate[-1]] if len(accurate) else None


def from_reviews(confidences: np.ndarray, right: np.ndarray) -> float | None:
    """As training/threshold.py --reviews does: all images below DEPLOYED were reviewed, AUDIT_RATE of the others."""
    random = np.random.default_rng(int(confidences.sum() * 1e6))
    accepted = confidences >= DEPLOYED
    folder, rows = random.integers(2**62), []
    for number in np.flatnonzero(~accepted | (random.random(len(right)) < AUDIT_RATE)):
        reason = ("audit", AUDIT_RATE) if accepted[number] else ("low_confidence", 1)
        image = ("images", f"{folder}/{number}", "1")
        rows.append([*image, "cat", confidences[number], *reason, "label", "cat" if right[number] else "dog"])
    with tempfile.NamedTemporaryFile("w", newline="", suffix=".csv") as file:
        csv.writer(file).writerows([REVIEW_COLUMNS, *rows])
        file.flush()
        return in_sequence(*threshold.read_reviews(Path(file.name))[:2])


CHOICES = {"fixed sequence": in_sequence, "lowest bound": lowest_bound, "lowest accurate": lowest_accurate}


def simulate(population: Population, choose: Choice, images: int, samples: int, seed: int = 0) -> tuple[float, float]:
    """The share of samples without a wrong threshold, and the share with a threshold."""
    confidences, chances = population
    random = np.random.default_rng(seed)
    chosen = []
    for _ in range(samples):
        sample = random.integers(0, len(confidences), images)
        chosen.append(choose(confidences[sample], random.random(images) < chances[sample]))
    wrong = [each is not None and chances[confidences >= each].mean() < ACCURACY for each in chosen]
    return 1 - float(np.mean(wrong)), float(np.mean([each is not None for each in chosen]))


def main(samples: int) -> None:
    print("| model | images |", " | ".join(CHOICES), "|")
    print("|---" * (2 + len(CHOICES)) + "|")
    for name, population in POPULATIONS.items():
        for images in SIZES:
            shares = [simulate(population, choose, images, samples) for choose in CHOICES.values()]
            cells = (f"{right:.1%} ({found:.0%})" for right, found in shares)
            print(f"| {name} | {images:,} |", " | ".join(cells), "|", flush=True)
    right, found = simulate(POPULATIONS["calibrated, 98% right"], from_reviews, PRODUCTION, samples // 4)
    print(f"Reviews of {PRODUCTION:,} images, calibrated, 98% right: {right:.1%} ({found:.0%})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
