"""Choose the threshold that gives a required accuracy on the images it accepts, and show how certain it is.

    python training/threshold.py --accuracy 0.99 [--part validation] [--predictions .local/training/predictions.csv]

predictions.csv is written by train.py. The script finds the lowest threshold with at least that accuracy on the
validation or test images. A bootstrap (1,000 resamples of the same size, drawn with replacement) shows how much the
threshold depends on the sample. If no threshold gives the accuracy, the script says so and exits with status 1.

The temperature was also fitted on the validation images, so their figures are slightly optimistic; those of the test
images are not.
"""

import argparse
import csv
import os
import sys
from pathlib import Path

import numpy as np

from calibration import accepted, bootstrap_thresholds, lower_bound, lowest_threshold

ROOT = Path(__file__).parents[1]
MARGIN = 0.0001
QUANTILES = 0.05, 0.95  # of the bootstrap's thresholds


class PredictionsError(Exception):
    """There are no predictions to choose a threshold from; the message says how to get them."""


def read_predictions(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Confidences [N] and right [N] of the validation or test images. Raises PredictionsError."""
    if not path.is_file():
        raise PredictionsError(f"{path} is missing: train a model first")
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == part]
    if not rows:
        raise PredictionsError(f"{path} has no {part} images: train with a {part} folder")
    right = [row["label"] == row["truth"] for row in rows]
    return np.array([float(row["confidence"]) for row in rows]), np.array(right)


def just_below(confidences: np.ndarray, lowest: float) -> float:
    """A rounded threshold just below `lowest`, because the endpoint's probabilities can differ in their last digits.

    It is at most halfway to the next lower confidence, and has the fewest digits possible, at least four.
    """
    below = max(confidences[confidences < lowest], default=0)
    for digits in range(4, 17):
        rounded = round(max((below + lowest) / 2, lowest - MARGIN), digits)
        if below < rounded <= lowest:
            return rounded
    return lowest


def advise(confidences: np.ndarray, right: np.ndarray, accuracy: float) -> tuple[list[str], float | None]:
    """Describe the lowest threshold with this accuracy. Returns lines of text, and the threshold or None."""
    count = len(right)
    threshold = lowest_threshold(confidences, right, accuracy)
    samples = bootstrap_thresholds(confidences, right, accuracy)
    found = np.array([sample for sample in samples if sample is not None])
    missing = 1 - len(found) / len(samples)
    if threshold is None:
        problem = "the most confident predictions are wrong too often"
        return [f"No threshold gives an accuracy of {accuracy:.1%} on these {count:,} images: {problem}."], None
    threshold = just_below(confidences, threshold)
    figures = accepted(confidences, right, threshold)
    total = figures["accepted"]
    correct = round(figures["accuracy"] * total)
    low, high = np.quantile(found, QUANTILES)
    bound = lower_bound(correct, total)
    lines = [
        f"threshold {threshold}: accepts {figures['coverage']:.1%} of {count:,} images, "
        f"{correct:,} of {total:,} correct ({figures['accuracy']:.1%})",
        f"other samples of {count:,} images: a threshold between {low:.4f} and {high:.4f} in 9 of 10 cases"
        + (f"; no threshold in {missing:.0%}" if missing else ""),
        f"accuracy on new images: at least {bound:.1%} with 95% confidence"
        + ("" if bound >= accuracy else f"; too few images to guarantee {accuracy:.1%}"),
    ]
    return lines, threshold


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = Path(os.environ.get("SM_OUTPUT_DATA_DIR") or ROOT / ".local/training")
    parser.add_argument("--accuracy", type=float, default=0.99, help="of the accepted images, 0 to 1 [%(default)s]")
    parser.add_argument("--part", choices=["validation", "test"], default="validation", help="[%(default)s]")
    parser.add_argument("--predictions", type=Path, default=output / "predictions.csv")
    args = parser.parse_args(argv)
    if not 0 < args.accuracy <= 1:
        parser.error("--accuracy must be above 0 and at most 1, for example 0.99")
    lines, threshold = advise(*read_predictions(args.predictions, args.part), args.accuracy)
    print("\n".join(lines))
    return 0 if threshold is not None else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PredictionsError as error:
        sys.exit(f"{type(error).__name__}: {error}")
