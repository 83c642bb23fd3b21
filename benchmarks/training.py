"""Accuracy and calibration on unseen images, and duration of the training, over several seeds.

    PYTHONPATH=endpoint:training .venv/bin/python -m benchmarks.training DIR [--seeds 5] [--unseen 0.2]

DIR is a folder of class folders. For each seed, a fraction of every class is held out, and `training/train.py` gets the
rest as its only channel, with no option except the seed. Its model then classifies the held-out images through
`endpoint/inference.py`. They are not used in training: neither for the weights nor to choose the epoch or temperature.
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

import calibration
import inference
from data import load, stratified_split
from folders import list_images

ROOT = Path(__file__).parents[1]


def hold_out(folder: Path, fraction: float, seed: int, work: Path) -> None:
    """Split a folder of class folders: copy `fraction` of each class to work/unseen and the rest to work/train."""
    classes = list_images(folder)
    paths = [path for each in classes.values() for path in each]
    names = np.array([label for label, each in classes.items() for _ in each])
    for name, chosen in zip(("train", "unseen"), stratified_split(names, [fraction], seed), strict=True):
        for index in chosen:
            target = work / name / names[index] / paths[index].name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(paths[index], target)


def train(work: Path, seed: int) -> tuple[float, float]:
    """Train on work/train. Returns wall-clock and CPU seconds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SM_")} | {
        "SM_CHANNEL_TRAIN": str(work / "train"),
        "SM_MODEL_DIR": str(work / "model"),
        "SM_OUTPUT_DATA_DIR": str(work / "output"),
    }
    started, before = time.perf_counter(), cpu_seconds()
    command = [sys.executable, str(ROOT / "training/train.py"), "--seed", str(seed)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started, cpu_seconds() - before


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def classify(work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Classify work/unseen. Returns confidences [N] and right [N]."""
    model = inference.model_fn(work / "model")
    unseen = load(list_images(work / "unseen"), model.size, model.labels)
    best = [inference.classify([pixels], model)[0]["predictions"][0] for pixels in unseen.images]
    right = [each["label"] == unseen.labels[target] for each, target in zip(best, unseen.targets, strict=True)]
    return np.array([each["probability"] for each in best]), np.array(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--unseen", type=float, default=0.2, help="held-out fraction of each class [%(default)s]")
    args = parser.parse_args()

    print("| seed | unseen | accuracy | calibration error | at 0.75: accepted | accuracy | seconds | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    accuracies = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            hold_out(args.folder, args.unseen, seed, Path(folder))
            seconds, cpu = train(Path(folder), seed)
            confidences, right = classify(Path(folder))
        accuracies.append(right.mean())
        error = calibration.expected_calibration_error(confidences, right)
        gate = calibration.accepted(confidences, right, 0.75)
        print(
            f"| {seed} | {len(right):,} | {right.mean():.4f} | {error:.4f} | {gate['coverage']:.3f} | "
            f"{gate['accuracy'] or float('nan'):.4f} | {seconds:.0f} | {cpu:.0f} |",
            flush=True,
        )
    print(f"\nmean {np.mean(accuracies):.4f}, lowest {min(accuracies):.4f}, highest {max(accuracies):.4f}", end="")
    print(f", standard deviation {np.std(accuracies, ddof=1):.4f}" if len(accuracies) > 1 else "")


if __name__ == "__main__":
    main()
