"""Accuracy, calibration and time of training on pictures that it has not seen, over several seeds.

    .venv/bin/python -m benchmarks.training DIR [--seeds 5] [--unseen 0.2]

DIR is a folder of class folders. For each seed, a part of every class is put aside, `training/train.py` gets the rest
as its only channel and no option but the seed, and the model it leaves is asked for what was put aside through
`endpoint/inference.py`. What is put aside plays no part in the training, in no choice of epoch and in no temperature.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from endpoint import inference
from training import calibration
from training.data import list_images, load, stratified_split

ROOT = Path(__file__).parents[1]


def put_aside(folder, part, seed, work):
    """Copy a folder of class folders to work/train and, `part` of each class, to work/unseen."""
    classes = list_images(folder)
    paths = [path for each in classes.values() for path in each]
    names = np.array([label for label, each in classes.items() for _ in each])
    for name, chosen in zip(("train", "unseen"), stratified_split(names, [part], seed), strict=True):
        for index in chosen:
            target = work / name / names[index] / paths[index].name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(paths[index], target)


def train(work, seed):
    """Returns the seconds on the clock and of the processors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SM_")} | {
        "SM_CHANNEL_TRAIN": str(work / "train"),
        "SM_MODEL_DIR": str(work / "model"),
        "SM_OUTPUT_DATA_DIR": str(work / "output"),
    }
    started, before = time.perf_counter(), processor_seconds()
    command = [sys.executable, ROOT / "training/train.py", "--seed", str(seed)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started, processor_seconds() - before


def processor_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ask(work):
    """Confidences and right, of the pictures that were put aside."""
    model = inference.model_fn(work / "model")
    unseen = load(list_images(work / "unseen"), model.size, model.labels)
    answers = [inference.classify([pixels], model)[0]["predictions"][0] for pixels in unseen.images]
    right = [answer["label"] == unseen.labels[target] for answer, target in zip(answers, unseen.targets, strict=True)]
    return np.array([answer["probability"] for answer in answers]), np.array(right)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--unseen", type=float, default=0.2, help="part of each class")
    args = parser.parse_args()

    print(
        "| seed | unseen | accuracy | calibration error | at 0.75: accepted | right of these | seconds | CPU seconds |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    accuracies = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            put_aside(args.folder, args.unseen, seed, Path(folder))
            seconds, processor = train(Path(folder), seed)
            confidences, right = ask(Path(folder))
        accuracies.append(right.mean())
        error = calibration.expected_calibration_error(confidences, right)
        gate = calibration.accepted(confidences, right, 0.75)
        print(
            f"| {seed} | {len(right):,} | {right.mean():.4f} | {error:.4f} | {gate['coverage']:.3f} | "
            f"{gate['accuracy'] or float('nan'):.4f} | {seconds:.0f} | {processor:.0f} |",
            flush=True,
        )
    print(f"\nmean {np.mean(accuracies):.4f}, lowest {min(accuracies):.4f}, highest {max(accuracies):.4f}", end="")
    print(f", standard deviation {np.std(accuracies, ddof=1):.4f}" if len(accuracies) > 1 else "")


if __name__ == "__main__":
    main()
