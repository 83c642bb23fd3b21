"""Folders of class folders to arrays: DIR/<label>/<picture>.

A picture becomes numbers through the endpoint's own `preprocess`: the model is trained on what it sees in service.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

if not Path(__file__).with_name("inference.py").exists():  # SageMaker has it staged beside this file
    sys.path.append(str(Path(__file__).parents[1] / "endpoint"))
from inference import UnsupportedImageError, preprocess

SMALLEST_SIDE, LARGEST_SIDE = 16, 64


class DataError(Exception):
    """The data cannot be trained on; the message says which folder or file and why."""


class MissingFolderError(DataError):
    pass


class TooFewClassesError(DataError):
    pass


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

    def __len__(self):
        return len(self.targets)

    def subset(self, indexes):
        return Dataset(self.images[indexes], self.targets[indexes], self.labels)

    def counts(self):
        """Images per label."""
        counts = np.bincount(self.targets, minlength=len(self.labels))
        return {label: int(count) for label, count in zip(self.labels, counts, strict=True)}


def list_images(folder):
    """The pictures of a folder of class folders as {label: [path, ...]}, sorted; hidden files are passed over.

    Raises MissingFolderError, TooFewClassesError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFolderError(f"{folder} is not a folder")
    classes = {path.name: _visible(path) for path in _visible(folder) if path.is_dir()}
    filled = {label: paths for label, paths in classes.items() if paths}
    if len(filled) < 2:
        raise TooFewClassesError(f"{folder} needs two or more folders of images, one for each class; has {len(filled)}")
    return filled


def choose_size(classes):
    """A square (height, width) for these pictures: their median shorter side, in multiples of 8 from 16 to 64."""
    side = np.median([_shorter_side(path) for paths in classes.values() for path in paths])
    side = int(np.clip(8 * round(side / 8), SMALLEST_SIDE, LARGEST_SIDE))
    return side, side


def load(classes, size, labels=None):
    """Read the pictures of `list_images` at `size` (height, width).

    labels: the model's labels, where these pictures test a model that has them already; else the classes' own.
    Raises UnreadableImageError, UnknownClassError.
    """
    labels = labels or list(classes)
    unknown = sorted(set(classes) - set(labels))
    if unknown:
        raise UnknownClassError(f"{', '.join(unknown)}: not among the classes of the training data")
    paths = [path for label in classes for path in classes[label]]
    targets = [labels.index(label) for label in classes for _ in classes[label]]
    images = np.stack([_read(path, size) for path in paths])
    return Dataset(images, np.array(targets, dtype=np.int64), labels)


def stratified_split(targets, fractions, seed):
    """Divide indexes at random into len(fractions) + 1 sorted arrays, each with its share of every class.

    The first array holds what the fractions leave. Every part gets at least one of each class.
    Raises ClassTooSmallError.
    """
    random = np.random.default_rng(seed)
    parts = [[] for _ in range(len(fractions) + 1)]
    for target in np.unique(targets):
        indexes = random.permutation(np.flatnonzero(targets == target))
        if len(indexes) < len(parts):
            raise ClassTooSmallError(f"class {target} has {len(indexes)} of the {len(parts)} images a split needs")
        start = 0
        for part, fraction in zip(parts[1:], fractions, strict=True):
            count = max(1, round(fraction * len(indexes)))
            part.extend(indexes[start : start + count])
            start += count
        parts[0].extend(indexes[start:])
    return [np.sort(part) for part in parts]


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _shorter_side(path):
    try:
        with Image.open(path) as image:  # reads the header only
            return min(image.size)
    except (UnidentifiedImageError, OSError) as error:
        raise UnreadableImageError(f"{path}: not a readable image") from error


def _read(path, size):
    try:
        return preprocess(path.read_bytes(), size)
    except (UnsupportedImageError, OSError) as error:
        raise UnreadableImageError(f"{path}: {error}") from error
