"""Make folders of class folders to train on: DIR/train/<label>/, DIR/validation/<label>/, DIR/test/<label>/.

    python training/prepare.py digits [--output .local/data/digits] [--seed 0]

`digits`: the 1,797 scans of handwritten digits, 8 x 8 pixels, that come with scikit-learn (from UCI's "Optical
Recognition of Handwritten Digits"). Written dark on light, as on paper, so that a user's own picture of a digit looks
alike.

The same seed gives the same bytes. A folder that exists is replaced when the new one is complete, never half written.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from data import stratified_split

ROOT = Path(__file__).parents[1]
PARTS = ("train", "validation", "test")
HELD_OUT = (0.2, 0.2)  # validation, test


def prepare_digits(folder, seed):
    """Write the three parts into `folder`. Returns {part: number of images}."""
    from sklearn.datasets import load_digits  # a second to import, and only this data set needs it

    digits = load_digits()
    scans = (255 - digits.images * 255 / 16).round().astype(np.uint8)  # 0 to 16, bright ink -> 0 to 255, dark ink
    indexes = stratified_split(digits.target, HELD_OUT, seed)
    for part, chosen in zip(PARTS, indexes, strict=True):
        for index in chosen:
            save_png(scans[index], folder / part / str(digits.target[index]) / f"{index:04d}.png")
    return {part: len(chosen) for part, chosen in zip(PARTS, indexes, strict=True)}


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


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="dataset", required=True)
    digits = commands.add_parser("digits", help="scikit-learn's 8 x 8 scans; nothing to download")
    digits.add_argument("--output", type=Path, default=ROOT / ".local/data/digits")
    digits.add_argument("--seed", type=int, default=0)
    digits.set_defaults(prepare=prepare_digits)
    args = parser.parse_args(argv)

    output = args.output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        counts = args.prepare(work / "new", args.seed)
        replace_folder(work / "new", output)
    finally:
        shutil.rmtree(work)
    print(f"{args.output}: " + ", ".join(f"{count:,} {part}" for part, count in counts.items()))


if __name__ == "__main__":
    main()
