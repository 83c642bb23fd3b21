"""Prepare training data: OUTPUT/train/<label>/, OUTPUT/validation/<label>/ and OUTPUT/test/<label>/.

    python training/prepare.py digits
    python training/prepare.py cifar100 --classes bicycle motorcycle
    python training/prepare.py folder images --output .local/data/images
    python training/prepare.py reviewed --stack image-classification --add .local/data/images

`digits`: the 1,797 scans of handwritten digits, 8 x 8 pixels, that come with scikit-learn (from UCI's "Optical
Recognition of Handwritten Digits"). They are written dark on light, as on paper, so that a user's own image of a digit
looks similar. Nothing is downloaded.

`cifar100`: classes of CIFAR-100, 600 photographs of 32 x 32 pixels each, downloaded once from its authors' site (169
MB) into .local/cache and verified by sha256. An interrupted download is resumed. The authors' test images become the
test part.

`folder`: your own images, images/<label>/<image>, of any size and in any format that the endpoint reads. Files are
copied unchanged. Unreadable files and duplicates, which could end up in two parts at once, are skipped. If
more than one file in ten is unreadable, the command fails.

`reviewed`: the images of a stack that people labelled with make review, as training images. They are added to the data
of --add, a folder that this script wrote; its validation and test parts stay as they are, and copies and
near-duplicates of their images, and of those in --test, are left out. OUTPUT/left-out.txt lists what is left out, and
OUTPUT/manifest.jsonl says which version of which object each image is, who labelled it and when, and with what
probability it was chosen for review. --manifest makes the same data again. For the local stack: make up, source
.local/env.

--hold-out FRACTION writes a share of the reviewed images to OUTPUT/heldout/<label>/ rather than to the training images,
to compare models on. Every image that the stack classified has the same chance of being held out: FRACTION, or the
lowest AuditRate at which a reviewed image was drawn, if that is less. So at an AuditRate of 0.02, all audits are held
out, and 2% of the images below the threshold. A hash of its bytes draws an image, so it stays held out later.

The same seed gives the same bytes. An existing folder is replaced only after the new one is complete.
"""

import argparse
import hashlib
import io
import shutil
import signal
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # & in a script ignores it
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # during the imports below, Ctrl-C ends it without a traceback

import numpy as np
from PIL import Image

import cifar100
import reviewed
from data import ClassTooSmallError, Skipped, print_skipped, read, stratified_split
from folders import MANIFEST, AlreadySplitError, Classes, DataError, MissingFolderError, list_images

ROOT = Path(__file__).parents[1]
PARTS = ("train", "validation", "test")
PARTS_OF_OTHERS = {*PARTS, "training", "val", "valid", "testing", "eval"}  # the parts' usual names
HELD_OUT = (0.2, 0.2)  # validation, test
VALIDATION = 0.15  # of CIFAR-100's training images
STACK = "image-classification"
IMBALANCE = 3  # ratio of the largest class to the smallest that calls for a warning


def prepare_digits(folder: Path, args: argparse.Namespace) -> None:
    """Write the three parts into `folder`."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

    digits = load_digits()
    scans = (255 - digits.images * 255 / 16).round().astype(np.uint8)  # 0 to 16, bright ink -> 0 to 255, dark ink
    indexes = stratified_split(digits.target, HELD_OUT, args.seed)
    for part, chosen in zip(PARTS, indexes, strict=True):
        for index in chosen:
            save_png(scans[index], folder / part / str(digits.target[index]) / f"{index:04d}.png")


def prepare_cifar100(folder: Path, args: argparse.Namespace) -> None:
    """Write the three parts into `folder`. Raises the errors of cifar100."""
    archive = cifar100.fetch(args.url, args.cache / Path(args.url).name, args.sha256)
    train, test, labels = cifar100.read_archive(archive)
    train, test = (cifar100.choose(part, labels, args.classes or labels) for part in (train, test))
    kept, held_out = stratified_split(train.targets, [VALIDATION], args.seed)
    chosen = {"train": (train, kept), "validation": (train, held_out), "test": (test, np.arange(len(test.targets)))}
    for part, (images, indexes) in chosen.items():
        for index in indexes:
            label = (args.classes or labels)[images.targets[index]]
            save_png(images.pixels[index], folder / part / label / f"{index:05d}.png")


def prepare_folder(folder: Path, args: argparse.Namespace) -> None:
    """Copy the readable images into the three parts of `folder`. Raises DataError."""
    classes = list_images(args.folder)
    if {label.lower() for label in classes} <= PARTS_OF_OTHERS:
        raise AlreadySplitError(f"{args.folder} is already split: pass its folders to train.py, or prepare one of them")
    images, unreadable = read(classes, (1, 1))
    classes, duplicates = drop_duplicates({label: [path for path, _ in pairs] for label, pairs in images.items()})
    print_skipped("unreadable", unreadable)
    print_skipped("duplicate", duplicates)
    if empty := [label for label, paths in classes.items() if not paths]:
        raise ClassTooSmallError(f"class {empty[0]} has only duplicates of another class's images")
    print(imbalance({label: len(paths) for label, paths in classes.items()}))
    paths = [path for label in classes for path in classes[label]]
    names = np.array([label for label in classes for _ in classes[label]])
    for part, chosen in zip(PARTS, stratified_split(names, HELD_OUT, args.seed), strict=True):
        for index in chosen:
            target = folder / part / names[index] / paths[index].name
            if target.exists():  # a class in two folders, whose names differ only in their Unicode form
                target = target.with_stem(f"{target.stem}-{index}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(paths[index], target)


def prepare_reviewed(folder: Path, args: argparse.Namespace) -> None:
    """Write the labelled images of a stack, or of a manifest, and the data of --add.

    Raises MissingFolderError, the errors of reviewed.
    """
    if args.add and args.add.resolve() == args.output.resolve():  # whose manifest would be lost
        raise reviewed.SameFolderError(f"--add and --output are both {args.output}: choose another --output")
    if args.add and not (args.add / "train").is_dir():
        raise MissingFolderError(f"--add {args.add} is not a folder that this script wrote: it has no folder train")
    with reviewed.aws_errors(args.stack):
        write_reviewed(folder, args)


def write_reviewed(folder: Path, args: argparse.Namespace) -> None:
    for part in PARTS if args.add else ():
        if (args.add / part).is_dir():
            shutil.copytree(args.add / part, folder / part)
    if args.manifest:
        entries = reviewed.read_manifest(args.manifest)
        reviewed.check_labels(entries)
        manifest = reviewed.write_again(entries, folder)
    else:
        table = reviewed.review_table(args.stack or STACK)
        pending = reviewed.oldest_pending(table)  # first: what is decided meanwhile is then left out
        entries = reviewed.decided(table)
        reviewed.check_labels(entries)
        parts = [args.add / part for part in PARTS[1:] if args.add and (args.add / part).is_dir()]
        held_out = reviewed.HeldOut([*parts, *args.test])
        share = reviewed.share_held_out(entries, args.hold_out) if args.hold_out else 0
        trained = reviewed.hashes(folder / "train")
        manifest, left_out = reviewed.write_new(entries, folder, trained, held_out, share, pending)
        reviewed.write_left_out(left_out, folder / reviewed.LEFT_OUT)
        print(reviewed.summary(manifest, left_out, args.output / reviewed.LEFT_OUT))
    (folder / "train").mkdir(parents=True, exist_ok=True)
    reviewed.write_manifest(manifest, folder / MANIFEST)


def drop_duplicates(classes: Classes) -> tuple[Classes, Skipped]:
    """Keep the first of several files with the same bytes. Returns the kept files and the others with the reason."""
    first: dict[bytes, tuple[str, Path]] = {}
    kept: Classes = {label: [] for label in classes}
    duplicates = []
    for label, paths in classes.items():
        for path in paths:
            original_label, original = first.setdefault(hashlib.sha256(path.read_bytes()).digest(), (label, path))
            if original is path:
                kept[label].append(path)
            else:
                elsewhere = "" if label == original_label else ", which is in another class"
                duplicates.append((path, f"same as {original}{elsewhere}"))
    return kept, duplicates


def imbalance(counts: dict[str, int]) -> str:
    """A line with the number of images per class, and a warning if the numbers are far from equal."""
    line = ", ".join(f"{count:,} {label}" for label, count in sorted(counts.items(), key=lambda item: -item[1]))
    if max(counts.values()) > IMBALANCE * min(counts.values()):
        rarest = min(counts, key=lambda label: counts[label])
        return f"{line}. The classes are imbalanced: expect more mistakes on {rarest}, which the accuracy will not show"
    return line


def save_png(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def replace_folder(new: Path, old: Path) -> None:
    """Move the complete folder `new` to `old`. Exits if `old` holds anything that this script did not write."""
    if old.exists():
        own = {*PARTS, *([MANIFEST, reviewed.HELD_OUT, reviewed.LEFT_OUT] if (old / "train").is_dir() else [])}
        if others := {path.name for path in old.iterdir()} - own:
            sys.exit(f"{old} holds {sorted(others)[0]}, so this script did not write it: choose another --output")
        old.rename(new.with_name("old"))
    new.rename(old)


def count(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def seed(text: str) -> int:
    """An integer that numpy accepts as a seed."""
    if (number := int(text)) < 0:
        raise ValueError(text)
    return number


def fraction(text: str) -> float:
    """A number above 0 and below 1."""
    if not 0 < (number := float(text)) < 1:
        raise ValueError(text)
    return number


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="dataset", required=True)
    digits = commands.add_parser("digits", help="scikit-learn's 8 x 8 scans; nothing to download")
    digits.set_defaults(prepare=prepare_digits)
    cifar = commands.add_parser("cifar100", help="classes of CIFAR-100, downloaded from its authors' site")
    cifar.add_argument("--classes", nargs="+", metavar="CLASS", help="for example bicycle motorcycle [all 100]")
    cifar.add_argument("--url", default=cifar100.URL, help="of a mirror")
    cifar.add_argument("--sha256", default=cifar100.SHA256)
    cifar.add_argument("--cache", type=Path, default=ROOT / ".local/cache", help="folder for the downloaded file")
    cifar.set_defaults(prepare=prepare_cifar100)
    folder = commands.add_parser("folder", help="your own images in class folders")
    folder.add_argument("folder", type=Path, help="folder of class folders")
    folder.set_defaults(prepare=prepare_folder)
    review = commands.add_parser("reviewed", help="the images of a stack that people labelled")
    source = review.add_mutually_exclusive_group()
    source.add_argument("--stack", help=f"name of a deployed stack [{STACK}]")
    source.add_argument("--manifest", type=Path, help="manifest.jsonl of an earlier run, to make its data again")
    review.add_argument("--add", type=Path, help="a folder that this script wrote, to which the images are added")
    review.add_argument("--test", type=Path, nargs="+", default=[], help="class folders of further test images")
    review.add_argument("--hold-out", type=fraction, metavar="FRACTION", help="hold out reviewed images, such as 0.3")
    review.add_argument("--output", type=Path, default=ROOT / ".local/data/reviewed")
    review.set_defaults(prepare=prepare_reviewed)
    for command, name in ((digits, "digits"), (cifar, "cifar100"), (folder, "folder")):
        command.add_argument("--output", type=Path, default=ROOT / ".local/data" / name)
        command.add_argument("--seed", type=seed, default=0)
    args = parser.parse_args(argv)
    if args.dataset == "reviewed" and args.manifest and args.hold_out:
        parser.error("--manifest says which images are held out: omit --hold-out")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_options(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal and file name is UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    output = args.output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        args.prepare(work / "new", args)
        counts = {part: count(work / "new" / part) for part in PARTS}
        if held_out := count(work / "new" / reviewed.HELD_OUT):
            counts["held out"] = held_out
        replace_folder(work / "new", output)
    finally:
        shutil.rmtree(work)
    print(f"{args.output}: " + ", ".join(f"{number:,} {part}" for part, number in counts.items()))


if __name__ == "__main__":
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except DataError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:  # no permission, no space
        sys.exit(f"{error.filename or 'OUTPUT'}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: run the command again to continue.")
