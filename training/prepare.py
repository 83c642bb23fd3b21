"""Make folders of class folders to train on: OUTPUT/train/<label>/, OUTPUT/validation/<label>/, OUTPUT/test/<label>/.

    python training/prepare.py digits
    python training/prepare.py cifar100 --classes bicycle motorcycle
    python training/prepare.py folder pictures --output .local/data/pictures

`digits`: the 1,797 scans of handwritten digits, 8 x 8 pixels, that come with scikit-learn (from UCI's "Optical
Recognition of Handwritten Digits"). Written dark on light, as on paper, so that a user's own picture of a digit looks
alike. Nothing is downloaded.

`cifar100`: classes of CIFAR-100, 600 photographs of 32 x 32 pixels each, fetched from its authors' site (169 MB, once,
into .local/cache, checked by its sha256; an interrupted download goes on where it stopped). The authors' test pictures
are the test part.

`folder`: your own pictures, pictures/<label>/<picture>, of any size and format that the endpoint reads; their bytes are
copied as they are. Says which files cannot be read and which are copies of others, which would be in two parts at once;
both are left out. More unreadable files than one in ten end it.

The same seed gives the same bytes. A folder that exists is replaced when the new one is complete, never half written.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import cifar100
from data import ClassTooSmallError, DataError, list_images, read, report, stratified_split

ROOT = Path(__file__).parents[1]
PARTS = ("train", "validation", "test")
HELD_OUT = (0.2, 0.2)  # validation, test
VALIDATION = 0.15  # of CIFAR-100's training pictures
IMBALANCE = 3  # times as many pictures of one class as of another


class PartsFolderError(DataError):
    """The folder holds parts, and not classes."""


def prepare_digits(folder, args):
    """Write the three parts into `folder`."""
    from sklearn.datasets import load_digits  # a second to import, and only this data set needs it

    digits = load_digits()
    scans = (255 - digits.images * 255 / 16).round().astype(np.uint8)  # 0 to 16, bright ink -> 0 to 255, dark ink
    indexes = stratified_split(digits.target, HELD_OUT, args.seed)
    for part, chosen in zip(PARTS, indexes, strict=True):
        for index in chosen:
            save_png(scans[index], folder / part / str(digits.target[index]) / f"{index:04d}.png")


def prepare_cifar100(folder, args):
    """Write the three parts into `folder`. Raises the errors of cifar100."""
    archive = cifar100.fetch(args.url, args.cache / Path(args.url).name, args.sha256)
    train, test, labels = cifar100.read_archive(archive)
    train, test = (cifar100.choose(part, labels, args.classes or labels) for part in (train, test))
    kept, held_out = stratified_split(train.targets, [VALIDATION], args.seed)
    chosen = {"train": (train, kept), "validation": (train, held_out), "test": (test, range(len(test.targets)))}
    for part, (pictures, indexes) in chosen.items():
        for index in indexes:
            label = (args.classes or labels)[pictures.targets[index]]
            save_png(pictures.pixels[index], folder / part / label / f"{index:05d}.png")


def prepare_folder(folder, args):
    """Copy the pictures that can be read into the three parts of `folder`. Raises DataError."""
    classes = list_images(args.folder)
    if set(classes) <= set(PARTS):
        raise PartsFolderError(f"{args.folder} has the parts already: give train.py each as a channel, or prepare one")
    pictures, unreadable = read(classes, (1, 1))
    classes, copies = without_copies({label: [path for path, _ in pairs] for label, pairs in pictures.items()})
    report("cannot be read and are left out", unreadable)
    report("are copies of others and are left out", copies)
    if empty := [label for label, paths in classes.items() if not paths]:
        raise ClassTooSmallError(f"class {empty[0]} has no image that is not a copy of another class's")
    print(imbalance({label: len(paths) for label, paths in classes.items()}))
    paths = [path for label in classes for path in classes[label]]
    names = np.array([label for label in classes for _ in classes[label]])
    for part, chosen in zip(PARTS, stratified_split(names, HELD_OUT, args.seed), strict=True):
        for index in chosen:
            target = folder / part / names[index] / paths[index].name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(paths[index], target)


def without_copies(classes):
    """Leave out all but the first of files with the same bytes. Returns {label: [path, ...]} and [(path, reason)]."""
    first, kept, copies = {}, {label: [] for label in classes}, []
    for label, paths in classes.items():
        for path in paths:
            original = first.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
            if original is path:
                kept[label].append(path)
            else:
                elsewhere = "" if label == original.parent.name else ", which is of another class"
                copies.append((path, f"a copy of {original}{elsewhere}"))
    return kept, copies


def imbalance(counts):
    """A line on pictures per class, and whether they are far from even."""
    line = ", ".join(f"{count:,} {label}" for label, count in sorted(counts.items(), key=lambda item: -item[1]))
    if max(counts.values()) > IMBALANCE * min(counts.values()):
        rarest = min(counts, key=counts.get)
        return f"{line}. The classes are uneven: the model will be worse at {rarest}, and accuracy will not show it"
    return line


def save_png(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def replace_folder(new, old):
    """Put the complete folder `new` where `old` may be. Exits rather than replace a folder of anything else."""
    if old.exists():
        if others := {path.name for path in old.iterdir()} - set(PARTS):
            sys.exit(f"{old} holds {sorted(others)[0]}, so it is no folder of this script's: choose another --output")
        old.rename(new.with_name("old"))
    new.rename(old)


def count(folder):
    return sum(path.is_file() for path in folder.rglob("*"))


def parse_options(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="dataset", required=True)
    digits = commands.add_parser("digits", help="scikit-learn's 8 x 8 scans; nothing to download")
    digits.set_defaults(prepare=prepare_digits)
    cifar = commands.add_parser("cifar100", help="classes of CIFAR-100, downloaded from its authors' site")
    cifar.add_argument("--classes", nargs="+", metavar="CLASS", help="bicycle motorcycle, for example; all 100 if none")
    cifar.add_argument("--url", default=cifar100.URL, help="a mirror of yours")
    cifar.add_argument("--sha256", default=cifar100.SHA256)
    cifar.add_argument("--cache", type=Path, default=ROOT / ".local/cache", help="folder of the downloaded file")
    cifar.set_defaults(prepare=prepare_cifar100)
    folder = commands.add_parser("folder", help="your own pictures in class folders")
    folder.add_argument("folder", type=Path, help="folder of class folders")
    folder.set_defaults(prepare=prepare_folder)
    for command, name in ((digits, "digits"), (cifar, "cifar100"), (folder, "folder")):
        command.add_argument("--output", type=Path, default=ROOT / ".local/data" / name)
        command.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_options(argv)
    output = args.output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        args.prepare(work / "new", args)
        counts = {part: count(work / "new" / part) for part in PARTS}
        replace_folder(work / "new", output)
    finally:
        shutil.rmtree(work)
    print(f"{args.output}: " + ", ".join(f"{number:,} {part}" for part, number in counts.items()))


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"{type(error).__name__}: {error}")
