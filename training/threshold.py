"""Choose the lowest threshold that is guaranteed to have a required accuracy on the images it accepts.

    python training/threshold.py --accuracy 0.99 [--part test] [--predictions .local/training/predictions.csv]
    python training/threshold.py --accuracy 0.99 --reviews reviews.csv

The guarantee: the threshold is right in at least 99% of what it accepts, with 95% confidence. That is, if this were
repeated with other samples, at most one in 20 would lead to a threshold that is right in less. It holds for images
like these: drawn from the same source, independently of each other, and not used for training.

predictions.csv is written by train.py. Its test images are used, or its validation images if there are none; these
also chose the epoch and the temperature, which makes their guarantee slightly optimistic.

reviews.csv is written by `make review-export FORMAT=csv STATUS=all`: images that the deployed model classified and
people labelled. The guarantee then holds for what the stack really receives, for the deployed model only. Reviews are
never mixed with predictions.csv, which is about another model or other images.

The thresholds of GRID are tested from the strictest on, each at a level of 5% with the exact binomial test (Clopper
and Pearson, 1934), until one fails; the last one that passes is the result. The sequence is fixed, so the first wrong
threshold is the only one that can pass by mistake: no correction for the number of tests is needed (fixed-sequence
testing, as in Learn then Test, Angelopoulos and others, 2021). It starts at `first_count` accepted images, because
with fewer of them a test could not pass, or one mistake would fail it. That start depends on the confidences, which is
valid if images with a higher confidence are not wrong more often.

If no threshold can be guaranteed, the script says so, estimates how many images it takes, and exits with status 1.
"""

import argparse
import csv
import hashlib
import math
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import binom

ROOT = Path(__file__).parents[1]
LEVEL = 0.05  # of each test: 95% confidence
# Strictest first. Fixed in advance: a grid made of the sample's confidences would have to be paid for.
GRID = np.array(
    [round(1 - step * 10**-power, 6) for power in (6, 5, 4, 3) for step in (1, 2, 5)]
    + [n / 100 for n in range(99, 0, -1)]
)
STARTS = 2.996, 4.744, 6.296  # divided by 1 - accuracy: images with which a test passes with 0, 1 or 2 mistakes
ENOUGH = 0.8  # of 200 resamples have a threshold: the number of images is sufficient
MOST_IMAGES = 10_000  # divided by 1 - accuracy: the accuracy is then too close to the required one, or below
SLIGHTLY_OPTIMISTIC = "slightly optimistic: the validation images also chose the epoch and the temperature"
COLUMNS = {"s3_bucket", "s3_key", "version", "label", "confidence", "reason", "selection_probability"}
COLUMNS |= {"decision", "reviewed_label"}


class PredictionsError(Exception):
    """There are no predictions to choose a threshold from; the message says how to get them."""


class ReviewsError(Exception):
    """No threshold can be chosen from these reviews; the message says why."""


def read_predictions(path: Path, part: str | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Confidences [N] and right [N] of the validation or test images, and which they are. Raises PredictionsError."""
    if not path.is_file():
        raise PredictionsError(f"{path} is missing: train a model first")
    with open(path, newline="", encoding="utf-8") as file:
        everything = list(csv.DictReader(file))
    part = part or ("test" if any(row["part"] == "test" for row in everything) else "validation")
    rows = [row for row in everything if row["part"] == part]
    if not rows:
        raise PredictionsError(f"{path} has no {part} images: train with a {part} folder")
    right = [row["label"] == row["truth"] for row in rows]
    return np.array([float(row["confidence"]) for row in rows]), np.array(right), part


def read_reviews(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Confidences [N] and right [N] of a random sample of what the stack classified, and lines about the sample.

    Images below the deployed threshold were all reviewed, accepted ones with a small probability. Each is kept with
    the lowest probability divided by its own, so that all images of the stack had the same chance. An image without a
    decision counts as a mistake: leaving it out would favour what reviewers look at first. Raises ReviewsError.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if row.get("decision") != "not_usable"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReviewsError(f"{path} is not readable: {error}") from error
    if missing := COLUMNS.difference(reader.fieldnames or []):
        names = ", ".join(sorted(missing))
        raise ReviewsError(f"{path} has no column {names}: write it with make review-export FORMAT=csv")
    for row in rows:
        check_review(path, row)
    images = Counter((row["s3_bucket"], row["s3_key"], row["version"]) for row in rows)
    if repeated := [image for image, count in images.items() if count > 1]:
        raise ReviewsError(f"{path} lists s3://{repeated[0][0]}/{repeated[0][1]} more than once")
    reasons = {row["reason"] for row in rows}
    if "audit" not in reasons:
        raise ReviewsError(f"{path} has no audits, so it says nothing about accepted images: set AuditRate above 0")
    if "low_confidence" not in reasons:
        raise ReviewsError(f"{path} has audits only: export the images below the threshold too")

    lowest = min(float(row["selection_probability"]) for row in rows)
    kept = [row for row in rows if uniform(row) < lowest / float(row["selection_probability"])]
    right = [row["decision"] == "label" and row["label"] == row["reviewed_label"] for row in kept]
    lines = [f"{len(kept):,} of {len(rows):,} reviews kept, so that every image had the same chance ({lowest:g})"]
    if undecided := sum(not row["decision"] for row in kept):
        lines.append(f"{undecided:,} of them have no decision yet and count as mistakes")
    return np.array([float(row["confidence"]) for row in kept]), np.array(right, dtype=bool), lines


def check_review(path: Path, row: dict[str, str]) -> None:
    """Raises ReviewsError."""
    image = f"{path}: s3://{row['s3_bucket']}/{row['s3_key']}"
    if row["decision"] not in ("label", "none_of_these", ""):
        raise ReviewsError(f"{image} has the decision {row['decision']!r}")
    if row["reason"] not in ("audit", "low_confidence"):
        raise ReviewsError(f"{image} has the reason {row['reason']!r}")
    if row["decision"] == "label" and not row["reviewed_label"]:
        raise ReviewsError(f"{image} has the decision label without a reviewed_label")
    try:
        valid = 0 <= float(row["confidence"]) <= 1 and 0 < float(row["selection_probability"]) <= 1
    except (TypeError, ValueError):
        valid = False
    if not valid:
        numbers = f"{row['confidence']!r} and {row['selection_probability']!r}"
        raise ReviewsError(f"{image}: confidence and selection_probability are {numbers}, not between 0 and 1")


def uniform(row: dict[str, str]) -> float:
    """A number from 0 to 1 that depends on the image alone, and not on the hash by which it was drawn as an audit."""
    text = "\n".join(("threshold.py", row["s3_bucket"], row["s3_key"], row["version"]))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def bands(confidences: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Numbers of right and wrong images between thresholds, int64 [2, len(GRID) + 1]; the last is below them all."""
    band = np.searchsorted(-GRID, -confidences)
    return np.stack([np.bincount(band[chosen], minlength=len(GRID) + 1) for chosen in (right, ~right)])


def first_count(images: np.ndarray, accuracy: float) -> np.ndarray:
    """How many of `images` the first threshold must accept.

    A test passes with two mistakes among them; or, to leave half of a smaller sample to lower thresholds, with one or
    none.
    """
    starts = np.array(STARTS) / (1 - accuracy)
    return starts[np.maximum(np.searchsorted(starts, images / 2, "right") - 1, 0)]


def guaranteed(counts: np.ndarray, accuracy: float) -> np.ndarray:
    """The index in GRID of the lowest threshold with the guarantee, or -1.

    counts: samples of images in `bands`, [..., 2, len(GRID) + 1]; the result is [...].
    """
    correct, wrong = np.moveaxis(counts.cumsum(-1)[..., :-1], -2, 0)
    accepted = correct + wrong
    tested = accepted >= first_count(counts.sum((-2, -1)), accuracy)[..., np.newaxis]
    by_chance = binom.sf(correct - 1, accepted, accuracy)  # this many right, with an accuracy that is just too low
    passed = np.logical_and.accumulate(~tested | (by_chance <= LEVEL), -1)
    return np.where((passed & tested).any(-1), passed.sum(-1) - 1, -1)


def images_needed(counts: np.ndarray, accuracy: float) -> int | None:
    """About how many images it takes for a threshold with the guarantee, if all are like these (bootstrap).

    Optimistic if these have next to no mistakes. None if it would take more than MOST_IMAGES allows.
    """
    random, images = np.random.default_rng(0), int(counts.sum())
    while (images := images + images // 10 + 1) <= MOST_IMAGES / (1 - accuracy):
        samples = random.multinomial(images, counts.ravel() / counts.sum(), 200).reshape(200, *counts.shape)
        if (guaranteed(samples, accuracy) >= 0).mean() >= ENOUGH:
            unit = 10 ** max(len(str(images)) - 2, 0)
            return math.ceil(images / unit) * unit
    return None


def advise(confidences: np.ndarray, right: np.ndarray, accuracy: float, of: str) -> tuple[list[str], float | None]:
    """Lines of text, and the threshold or None. of: what the images are."""
    counts, images = bands(confidences, right), f"{len(right):,} {of}"
    guarantee = f"right in at least {100 * accuracy:g}% of what it accepts, with 95% confidence"
    index = guaranteed(counts, accuracy)
    if index >= 0:
        correct, wrong = counts[:, : index + 1].sum(1)
        accepted = correct + wrong
        share = f"{correct:,} of {accepted:,} correct ({correct / accepted:.1%})"
        found = f"threshold {GRID[index]:g}: accepts {accepted / len(right):.1%} of {images}, {share}"
        return [found, f"guarantee: {guarantee}"], GRID[index]
    if needed := images_needed(counts, accuracy):
        why = f"{images} are too few: it takes at least about {needed:,} like these ({needed - len(right):,} more)"
    else:
        why = f"{images}: more like these would hardly help, because the most confident predictions are wrong too often"
    return [f"no threshold has the guarantee: {guarantee}", why], None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = Path(os.environ.get("SM_OUTPUT_DATA_DIR") or ROOT / ".local/training")
    parser.add_argument("--accuracy", type=float, default=0.99, help="of the accepted images, 0 to 1 [%(default)s]")
    parser.add_argument("--part", choices=["validation", "test"], help="[test if there are test images]")
    parser.add_argument("--predictions", type=Path, help="[.local/training/predictions.csv]")
    parser.add_argument("--reviews", type=Path, help="use these reviews of the deployed model, not predictions.csv")
    args = parser.parse_args(argv)
    if not 0 < args.accuracy < 1:
        parser.error("--accuracy must be above 0 and below 1, for example 0.99: no number of images guarantees 1")
    if args.reviews and (args.predictions or args.part):
        parser.error("--reviews replaces predictions.csv: leave out --predictions and --part")
    if args.reviews:
        confidences, right, about = read_reviews(args.reviews)
        images = "reviewed images"
    else:
        predictions = args.predictions or output / "predictions.csv"
        confidences, right, part = read_predictions(predictions, args.part)
        about = [SLIGHTLY_OPTIMISTIC] if part == "validation" else []
        images = f"{part} images"
    lines, threshold = advise(confidences, right, args.accuracy, images)
    print("\n".join([*lines, *about]))
    return 0 if threshold is not None else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (PredictionsError, ReviewsError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
