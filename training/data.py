"""Folders of class folders to arrays: DIR/<label>/<picture>.

A picture becomes numbers through the endpoint's own `preprocess`: the model is trained on what it sees in service.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

if not Path(__file__).with_name("inference.py").exists():  # SageMaker has it staged beside this file
    sys.path.append(str(Path(__file__).parents[1] / "endpoint"))
from inference import DECODE_ERRORS, UnsupportedImageError, preprocess

SMALLEST_SIDE, LARGEST_SIDE = 16, 64
UNREADABLE = 0.1  # part of the files above which the folder is taken for a mistake
SMALL_SIDE = 32  # pixels; smaller pictures make do with a smaller network and a shorter training
COLOUR = 0.02  # mean distance of a pixel's channels from grey above which a picture counts as coloured


class DataError(Exception):
    """The data cannot be trained on; the message says which folder or file and why."""


class MissingFolderError(DataError):
    pass


class TooFewClassesError(DataError):
    pass


class UnknownClassError(DataError):
    pass


class ClassNameError(DataError):
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

    @property
    def small(self):
        return max(self.images.shape[2:]) < SMALL_SIDE

    def subset(self, indexes):
        return Dataset(self.images[indexes], self.targets[indexes], self.labels)

    def counts(self):
        """Images per label."""
        counts = np.bincount(self.targets, minlength=len(self.labels))
        return {label: int(count) for label, count in zip(self.labels, counts, strict=True)}


def list_images(folder, fewest=2):
    """The pictures of a folder of `fewest` or more class folders as {label: [path, ...]}, sorted; hidden files are
    passed over.

    Raises MissingFolderError, TooFewClassesError, ClassNameError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFolderError(f"{folder} is not a folder")
    classes = {path.name: _visible(path) for path in _visible(folder) if path.is_dir()}
    filled = {label: paths for label, paths in classes.items() if paths}
    if len(filled) < fewest:
        needed = "two or more folders" if fewest == 2 else "a folder"
        raise TooFewClassesError(f"{folder} needs {needed} of images, one for each class; has {len(filled)}")
    for label in filled:
        if label != label.encode(errors="replace").decode():  # bytes that are no UTF-8
            raise ClassNameError(f"{folder}: rename the folder {label!r}, which is no text and can't be a label")
    return filled


def read(classes, size):
    """The pictures of `list_images` as ({label: [(path, pixels), ...]}, [(path, reason it cannot be read), ...]).

    pixels: what `preprocess` makes of the file at `size` (height, width).
    Raises UnreadableImageError when more than one file in ten is no image, ClassTooSmallError when a class has none.
    """
    pictures, unreadable = {label: [] for label in classes}, []
    for label, paths in classes.items():
        for path in paths:
            try:
                pictures[label].append((path, preprocess(path.read_bytes(), size)))
            except (UnsupportedImageError, OSError) as error:
                unreadable.append((path, str(error)))
    count = sum(map(len, classes.values()))
    if len(unreadable) > UNREADABLE * count:
        path, reason = unreadable[0]
        raise UnreadableImageError(f"{path}: {reason} ({len(unreadable):,} of {count:,} files cannot be read)")
    if empty := [label for label in classes if not pictures[label]]:
        raise ClassTooSmallError(f"class {empty[0]} has no image that can be read")
    return pictures, unreadable


def report(what, files):
    """Say which files, of [(path, reason)]."""
    if files:
        print(f"{len(files):,} of the files {what}:")
        for path, reason in files:
            print(f"  {path}: {reason}")


def choose_size(classes):
    """A square (height, width) for these pictures: their median shorter side, in multiples of 8 from 16 to 64."""
    sides = [_shorter_side(path) for paths in classes.values() for path in paths]
    side = np.median([side for side in sides if side] or [SMALLEST_SIDE])
    side = int(np.clip(8 * round(side / 8), SMALLEST_SIDE, LARGEST_SIDE))
    return side, side


def load(classes, size, labels=None):
    """Read the pictures of `list_images` at `size` (height, width); those that cannot be read are listed and left out.

    labels: the model's labels, where these pictures test a model that has them already; else the classes' own.
    Raises UnknownClassError, UnreadableImageError, ClassTooSmallError.
    """
    labels = labels or list(classes)
    if unknown := sorted(set(classes) - set(labels)):
        raise UnknownClassError(f"{', '.join(unknown)}: not among the classes of the training data")
    pictures, unreadable = read(classes, size)
    report("cannot be read and are left out", unreadable)
    images = [pixels for pairs in pictures.values() for _, pixels in pairs]
    targets = [labels.index(label) for label, pairs in pictures.items() for _ in pairs]
    return Dataset(np.stack(images), np.array(targets, dtype=np.int64), labels)


def are_photographs(dataset):
    """Whether most pictures have colour, as photographs do; scans, X-rays and drawings in ink have none."""
    grey = dataset.images.mean(1, keepdims=True)
    return bool(np.median(np.abs(dataset.images - grey).mean((1, 2, 3))) > COLOUR)


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
        for number, (part, fraction) in enumerate(zip(parts[1:], fractions, strict=True), 1):
            count = max(1, round(fraction * len(indexes)))
            count = min(count, len(indexes) - start - (len(parts) - number))  # one is left for each other part
            part.extend(indexes[start : start + count])
            start += count
        parts[0].extend(indexes[start:])
    return [np.sort(part) for part in parts]


def _visible(folder):
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _shorter_side(path):
    """0 for what is no image."""
    try:
        with Image.open(path) as image:  # reads the header only
            return min(image.size)
    except DECODE_ERRORS:
        return 0
