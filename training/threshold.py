"""The threshold that gives a wanted accuracy on what it accepts, and how sure that is.

    python training/threshold.py --accuracy 0.99 [--part validation] [--predictions .local/training/predictions.csv]

predictions.csv is written by train.py. Among the answers to the pictures of one part, the lowest confidence is
sought whose acceptances are right often enough; a bootstrap (1,000 times as many pictures, drawn from these with
replacement) says how much that depends on the pictures that happened to be there. Where no threshold gives the
accuracy, it says so and ends with status 1.

The temperature was fitted on validation pictures too, which flatters them a little; test pictures are neutral.
"""

import argparse
import csv
import os
import sys
from pathlib import Path

import numpy as np

from calibration import accepted, bootstrap_thresholds, lower_bound, lowest_threshold

ROOT = Path(__file__).parents[1]
LITTLE = 0.0001
CERTAIN = 0.05, 0.95  # of the bootstrap's thresholds


class PredictionsError(Exception):
    """There are no predictions to choose by; the message says how to make them."""


def read_predictions(path, part):
    """Confidences [N] and right [N] of a part. Raises PredictionsError."""
    if not path.is_file():
        raise PredictionsError(f"{path} is missing: train a model first")
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == part]
    if not rows:
        raise PredictionsError(f"{path} has no answers to {part} pictures: give train.py such a folder")
    return np.array([float(row["confidence"]) for row in rows]), np.array(
        [row["label"] == row["truth"] for row in rows]
    )


def between(confidences, lowest):
    """A number that accepts what `lowest` accepts: a little lower, since the endpoint's answers differ from these in
    their last digits, but at most halfway to the next confidence; with as few digits as that takes, and four at least.
    """
    below = max(confidences[confidences < lowest], default=0)
    for digits in range(4, 17):
        rounded = round(max((below + lowest) / 2, lowest - LITTLE), digits)
        if below < rounded <= lowest:
            return rounded
    return lowest


def advise(confidences, right, accuracy):
    """Lines about the lowest threshold with this accuracy, and the threshold, which is None where there is none."""
    count = len(right)
    threshold = lowest_threshold(confidences, right, accuracy)
    samples = bootstrap_thresholds(confidences, right, accuracy)
    found = np.array([sample for sample in samples if sample is not None])
    missed = 1 - len(found) / len(samples)
    if threshold is None:
        return [
            f"No threshold gives {accuracy:.1%} on {count:,} pictures: the surest answers are wrong too often."
        ], None
    threshold = between(confidences, threshold)
    figures = accepted(confidences, right, threshold)
    taken = figures["accepted"]
    correct = round(figures["accuracy"] * taken)
    low, high = np.quantile(found, CERTAIN)
    bound = lower_bound(correct, taken)
    lines = [
        f"threshold {threshold}: accepts {figures['coverage']:.1%} of {count:,} pictures, "
        f"{correct:,} of {taken:,} right ({figures['accuracy']:.1%})",
        f"other pictures of the same kind: a threshold between {low:.4f} and {high:.4f} in 9 of 10 cases"
        + (f"; none at all in {missed:.0%}" if missed else ""),
        f"with this many pictures, {figures['accuracy']:.1%} may be as little as {bound:.1%} (95 % certain)"
        + ("" if bound >= accuracy else f": too few to be sure of {accuracy:.1%}"),
    ]
    return lines, threshold


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = Path(os.environ.get("SM_OUTPUT_DATA_DIR") or ROOT / ".local/training")
    parser.add_argument("--accuracy", type=float, default=0.99, help="of what is accepted, 0 to 1")
    parser.add_argument("--part", choices=["validation", "test"], default="validation")
    parser.add_argument("--predictions", type=Path, default=output / "predictions.csv")
    args = parser.parse_args(argv)
    if not 0 < args.accuracy <= 1:
        parser.error("--accuracy is a part of 1, as 0.99")
    lines, threshold = advise(*read_predictions(args.predictions, args.part), args.accuracy)
    print("\n".join(lines))
    return 0 if threshold is not None else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PredictionsError as error:
        sys.exit(f"{type(error).__name__}: {error}")
