"""Read folders of class folders, DIR/<label>/<image>, into arrays.

Images are decoded and resized by the endpoint's own `preprocess`, so that training and inference see the same pixels.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

if not Path(__file__).with_name("inference.py").exists():  # in a SageMaker job it is in this folder
    sys.path.append(str(Path(__file__).parents[1] / "endpoint"))
from folders import Classes, DataError
from inference import preprocess
from pixels import UnsupportedImageError, inspect

Skipped = list[tuple[Path, str]]  # files with the reason
Result = TypeVar("Result")

MIN_SIDE, MAX_SIDE = 16, 64  # pixels
MAX_UNREADABLE = 0.1  # fraction of the files; with more, it is probably the wrong folder
SMALL_SIDE = 32  # pixels; smaller images need only a smaller network and a shorter training
SECONDS_BETWEEN_LINES = 2.0  # of progress
EXAMPLES = 5  # of files that are left out for one reason
COLOUR = 0.02  # mean distance of the channels from grey; above it, an image counts as coloured


class UnknownClassError(DataError):
    pass


class UnreadableImageError(DataError):
    pass


class ClassTooSmallError(DataError):
    pass


@dataclass(frozen=True)
class Dataset:
    """images: float32 [N, 3, height, width], 0 to 1. targets: int64 [N], indexes into labels."""

    images: np.ndarray
    targets: np.ndarray
    labels: list[str]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def small(self) -> bool:
        return max(self.images.shape[2:]) < SMALL_SIDE

    def subset(self, indexes: np.ndarray) -> "Dataset":
        return Dataset(self.images[indexes], self.targets[indexes], self.labels)

    def counts(self) -> dict[str, int]:
        """Images per label."""
        counts = np.bincount(self.targets, minlength=len(self.labels))
        return {label: int(count) for label, count in zip(self.labels, counts, strict=True)}


def read(classes: Classes, size: tuple[int, int]) -> tuple[dict[str, list[tuple[Path, np.ndarray]]], Skipped]:
    """Read the files of `list_images`. Returns {label: [(path, pixels), ...]} and the unreadable [(path, reason), ...].

    pixels: the output of `preprocess` at `size` (height, width).
    Raises UnreadableImageError if more than one file in ten is unreadable, ClassTooSmallError if a whole class is.
    """
    images: dict[str, list[tuple[Path, np.ndarray]]] = {label: [] for label in classes}
    unreadable = []
    for label, paths in classes.items():
        for path in paths:
            try:
                images[label].append((path, preprocess(path.read_bytes(), size)))
            except (UnsupportedImageError, OSError) as error:
                unreadable.append((path, str(error)))
    count = sum(map(len, classes.values()))
    if len(unreadable) > MAX_UNREADABLE * count:
        path, reason = unreadable[0]
        raise UnreadableImageError(f"{path}: {reason} ({len(unreadable):,} of {count:,} files are unreadable)")
    if empty := [label for label in classes if not images[label]]:
        raise ClassTooSmallError(f"class {empty[0]} has no readable image")
    return images, unreadable


def print_skipped(kind: str, files: Skipped, listed_in: str = "") -> None:
    """Say how many files were skipped, with examples; nothing if there are none. listed_in: the file that has all."""
    if files:
        print(f"Skipped {kind} files: {len(files):,}")
        for path, reason in files[:EXAMPLES]:
            print(f"  {path}: {reason}")
        if len(files) > EXAMPLES:
            print(f"  and {len(files) - EXAMPLES:,} more{listed_in and f' (all are in {listed_in})'}")


def show_progress(
    results: Iterable[Result], total: int, title: str, unit: str = "images", step: int = 1
) -> Iterator[Result]:
    """Pass the results on; while it takes longer than two seconds, print how many are done and the time left.

    step: units in one result.
    """
    started = shown = time.monotonic()
    for number, result in enumerate(results, 1):
        yield result
        done = number * step
        now = time.monotonic()
        if done < total and now - shown >= SECONDS_BETWEEN_LINES:
            left = (now - started) / done * (total - done)
            print(f"{title}: {done:,} of {total:,} {unit}, about {left:.0f} s left", flush=True)
            shown = now


def choose_size(classes: Classes) -> tuple[int, int]:
    """A square (height, width): the median shorter side of the images, rounded to a multiple of 8 from 16 to 64."""
    sides = [_shorter_side(path) for paths in classes.values() for path in paths]
    median = np.median([side for side in sides if side] or [MIN_SIDE])
    side = int(np.clip(8 * round(median / 8), MIN_SIDE, MAX_SIDE))
    return side, side


def load(classes: Classes, size: tuple[int, int], labels: list[str] | None = None) -> Dataset:
    """Read the files of `list_images` at `size` (height, width). Unreadable files are counted and skipped.

    labels: for validation and test data, the labels of the training data; by default the classes' own.
    Raises UnknownClassError, UnreadableImageError, ClassTooSmallError.
    """
    labels = labels or list(classes)
    if unknown := sorted(set(classes) - set(labels)):
        raise UnknownClassError(f"{', '.join(unknown)}: not among the classes of the training data")
    images, unreadable = read(classes, size)
    print_skipped("unreadable", unreadable)
    pixels = np.stack([each for pairs in images.values() for _, each in pairs])
    targets = [labels.index(label) for label, pairs in images.items() for _ in pairs]
    return Dataset(pixels, np.array(targets, dtype=np.int64), labels)


def are_photographs(dataset: Dataset) -> bool:
    """Whether most images have colour, as photographs do; scans, X-rays and ink drawings have none."""
    grey = dataset.images.mean(1, keepdims=True)
    return bool(np.median(np.abs(dataset.images - grey).mean((1, 2, 3))) > COLOUR)


def stratified_split(targets: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Split indexes at random into len(fractions) + 1 sorted arrays, with the same mix of classes in each.

    The first array holds what the fractions leave over. Every array gets at least one index of each class.
    Raises ClassTooSmallError.
    """
    random = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    for target in np.unique(targets):
        indexes = random.permutation(np.flatnonzero(targets == target))
        if len(indexes) < len(parts):
            raise ClassTooSmallError(f"class {target} has {len(indexes)} images, a split needs at least {len(parts)}")
        start = 0
        for number, (part, fraction) in enumerate(zip(parts[1:], fractions, strict=True), 1):
            count = max(1, round(fraction * len(indexes)))
            count = min(count, len(indexes) - start - (len(parts) - number))  # leaves one for each remaining part
            part.extend(indexes[start : start + count])
            start += count
        parts[0].extend(indexes[start:])
    return [np.sort(part) for part in parts]


def _shorter_side(path: Path) -> int:
    """The shorter side in pixels; 0 if the file is not an image."""
    try:
        return min(inspect(path.read_bytes()).size)
    except (UnsupportedImageError, OSError):
        return 0
