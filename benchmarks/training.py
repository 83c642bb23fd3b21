"""Accuracy and calibration on unseen images, and duration of the training, over several seeds.

    export PYTHONPATH=endpoint:training
    .venv/bin/python -m benchmarks.training DIR [--seeds 5] [--unseen 0.2]
    .venv/bin/python -m benchmarks.training DIR --minutes 1 3 6 15 --seeds 0-4 --points points.jsonl
    .venv/bin/python -m benchmarks.training --points points.jsonl --chart docs/training-budget.svg

DIR is a folder of class folders. For each seed, a fraction of every class is held out, and `training/train.py` gets the
rest as its only channel, with no option except the seed. Its model then classifies the held-out images through
`endpoint/inference.py`. They are not used in training: neither for the weights nor to choose the epoch or temperature.

With --minutes, train.py also gets each of these budgets. With --points, each result is a line of JSON in that file, and
what is in it already is not measured again, so that an interrupted measurement can go on.
"""

import argparse
import json
import math
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import calibration
import inference
from charts import ticks
from data import load, stratified_split
from folders import list_images

ROOT = Path(__file__).parents[1]
WIDTH, LEFT, RIGHT, HIGH = 480, 56, 456, 160  # pixels: the chart, the sides of a panel and its height
STYLE = (
    "svg{--page:#fff;--text:#24292f;--own:#2563eb;--grid:#d0d7de}"
    "@media(prefers-color-scheme:dark){svg{--page:#0d1117;--text:#e6edf3;--own:#6cb0ff;--grid:#30363d}}"
    "text{font:14px system-ui,sans-serif;fill:var(--text)}.title{font-weight:600}.page{fill:var(--page)}"
    "circle{fill:var(--own);opacity:.4}.own{fill:var(--own);stroke:var(--own);stroke-width:2;opacity:1}"
    "polyline.own{fill:none}.ring{fill:var(--page)}.grid{stroke:var(--grid)}.faint{opacity:.7}"
)


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


def train(work: Path, seed: int, minutes: float | None, options: str) -> tuple[float, float]:
    """Train on work/train. Returns wall-clock and CPU seconds."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SM_")} | {
        "SM_CHANNEL_TRAIN": str(work / "train"),
        "SM_MODEL_DIR": str(work / "model"),
        "SM_OUTPUT_DATA_DIR": str(work / "output"),
    }
    started, before = time.perf_counter(), cpu_seconds()
    command = [sys.executable, str(ROOT / "training/train.py"), "--seed", str(seed), *shlex.split(options)]
    command += ["--minutes", str(minutes)] if minutes else []
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started, cpu_seconds() - before


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def classify(work: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Classify work/unseen. Returns confidences [N], right [N] and the log loss."""
    model = inference.model_fn(work / "model")
    unseen = load(list_images(work / "unseen"), model.size, model.labels)
    responses = [inference.classify([pixels], model)[0]["predictions"] for pixels in unseen.images]
    named = [{each["label"]: each["probability"] for each in response} for response in responses]
    probabilities = np.array([[row[label] for label in unseen.labels] for row in named])
    confidences, right = calibration.confidence(probabilities, unseen.targets)
    return confidences, right, float(calibration.losses(probabilities, unseen.targets).mean())


def measure(folder: Path, unseen: float, seed: int, minutes: float | None, options: str) -> dict[str, Any]:
    """Train with one seed and one budget, None for none; the figures on the unseen images, and the time."""
    with tempfile.TemporaryDirectory() as work:
        hold_out(folder, unseen, seed, Path(work))
        seconds, cpu = train(Path(work), seed, minutes, options)
        confidences, right, log_loss = classify(Path(work))
        about = json.loads((Path(work) / "model/metadata.json").read_text())
    gate = calibration.accepted(confidences, right, 0.75)
    return {
        "folder": folder.name,
        "unseen_fraction": unseen,
        "minutes": minutes,
        "seed": seed,
        "options": options,
        "unseen": len(right),
        "accuracy": float(right.mean()),
        "log_loss": log_loss,
        "calibration_error": calibration.expected_calibration_error(confidences, right),
        "accepted": gate["coverage"],
        "accuracy_of_accepted": gate["accuracy"],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "parts": {name: about["hyperparameters"][name] for name in ("networks", "gradients", "blocks", "patches")},
        "epochs": about["epochs"],  # of all networks together
    }


def seeds_of(text: str) -> list[int]:
    """5 means 0 to 4; 3-4 means 3 and 4."""
    first, _, last = text.rpartition("-")
    return list(range(int(first), int(last) + 1) if first else range(int(last)))


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean and its standard error, 0 for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0


def groups_of(points: list[dict[str, Any]]) -> dict[tuple[float, str], list[dict[str, Any]]]:
    """The points of each budget in minutes, infinity for none, and further options; the shortest budget first."""
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for point in points:
        groups.setdefault((point["minutes"] or math.inf, point.get("options", "")), []).append(point)
    return dict(sorted(groups.items()))


def name_of(minutes: float, options: str) -> str:
    """As in the table and the chart: 3 min, default, --blocks 2."""
    budget = [] if math.isinf(minutes) else [f"{minutes:g} min"]
    return " ".join([*budget, *filter(None, [options])]) or "default"


def chart(points: list[dict[str, Any]]) -> str:
    """Accuracy and log loss against CPU seconds as SVG, in light and dark mode: a curve over the budgets.

    Training without a budget is a ring beside the curve. Bars are standard errors, dots are seeds. Training with
    further options is not shown.
    """
    groups = groups_of([point for point in points if not point.get("options")])
    times = {key: float(np.mean([point["cpu_seconds"] for point in group])) for key, group in groups.items()}
    low, high = math.log(min(times.values()) / 1.4), math.log(max(times.values()) * 1.3)

    def across(seconds: float) -> float:
        return LEFT + (RIGHT - LEFT) * (math.log(seconds) - low) / (high - low)

    parts, top = [], 0
    for figure, title in (("accuracy", "Accuracy on unseen images"), ("log_loss", "Log loss on unseen images")):
        top += 44
        parts.append(f'<text x="12" y="{top - 20}" class="title">{title}</text>')
        parts.append(panel(groups, figure, top, across))
        for (minutes, options), seconds in times.items():
            if math.isfinite(minutes):
                label = f'<text x="{across(seconds):.1f}" text-anchor="middle"'
                parts.append(f'{label} y="{top + HIGH + 20}">{name_of(minutes, options)}</text>')
                parts.append(f'{label} y="{top + HIGH + 38}" class="faint">{seconds:,.0f} s</text>')
        top += HIGH + 44
    height, caption = top + 24, "--minutes, and CPU seconds on average"
    parts.append(f'<text x="{RIGHT}" y="{height - 12}" text-anchor="end" class="faint">{caption}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height}" class="page"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def panel(
    groups: dict[tuple[float, str], list[dict[str, Any]]], figure: str, top: int, across: Callable[[float], float]
) -> str:
    """One figure of all groups, from `top` to `top` + HIGH."""
    values = [point[figure] for group in groups.values() for point in group]
    margin = 0.1 * (max(values) - min(values)) or 0.01
    low, high = min(values) - margin, max(values) + margin

    def up(value: float) -> float:
        return top + HIGH * (high - value) / (high - low)

    parts, curve = [], []
    for tick in ticks(low, high):
        parts.append(f'<path d="M{LEFT} {up(tick):.1f}H{RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{up(tick) + 5:.1f}" text-anchor="end">{tick:g}</text>')
    for (minutes, options), group in groups.items():
        x = across(float(np.mean([point["cpu_seconds"] for point in group])))
        mean, error = mean_and_error([point[figure] for point in group])
        name = name_of(minutes, options)
        for point in group:
            parts.append(f'<circle cx="{across(point["cpu_seconds"]):.1f}" cy="{up(point[figure]):.1f}" r="2"/>')
        parts.append(f'<path d="M{x:.1f} {up(mean - error):.1f}V{up(mean + error):.1f}" class="own"/>')
        shown = f"{name}: {mean:.3f}, standard error {error:.3f}, {len(group)} seeds"
        budget = math.isfinite(minutes)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{up(mean):.1f}" r="4" class="{"own" if budget else "own ring"}">'
            f"<title>{shown}</title></circle>"
        )
        if budget:
            curve.append(f"{x:.1f},{up(mean):.1f}")
        else:
            parts.append(f'<text x="{x:.1f}" y="{top - 4}" text-anchor="middle">{name}</text>')
    return f'<polyline points="{" ".join(curve)}" class="own"/>' + "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seeds", type=seeds_of, default="5", metavar="N|FIRST-LAST", help="[%(default)s: 0 to 4]")
    parser.add_argument("--unseen", type=float, default=0.2, help="held-out fraction of each class [%(default)s]")
    parser.add_argument("--minutes", type=float, nargs="*", default=[0], help="budgets; 0 for training without one [0]")
    parser.add_argument("--options", default="", help="further options of train.py, as one word")
    parser.add_argument("--points", type=Path, help="add the results to this file, and measure what it does not have")
    parser.add_argument("--chart", type=Path, help="draw all results in --points as SVG")
    args = parser.parse_args()
    if not (args.folder or (args.points and args.chart)):
        parser.error("the folder is missing; without one, --points and --chart are needed")

    points = []
    if args.points and args.points.exists():
        points = [json.loads(line) for line in args.points.read_text().splitlines()]
    wanted = [(minutes or None, seed) for seed in args.seeds for minutes in args.minutes] if args.folder else []
    print("| minutes | seed | unseen | accuracy | log loss | calibration error", end=" ")
    print("| at 0.75: accepted | accuracy | seconds | CPU seconds |\n" + "|---" * 10 + "|", flush=True)
    for minutes, seed in wanted:
        same = {"folder": args.folder.name, "unseen_fraction": args.unseen, "minutes": minutes, "seed": seed}
        same["options"] = args.options
        point = next((point for point in points if same.items() <= point.items()), None)
        if not point:
            point = measure(args.folder, args.unseen, seed, minutes, args.options)
            points.append(point)
            if args.points:
                with open(args.points, "a") as file:
                    file.write(json.dumps(point) + "\n")
        print(
            f"| {minutes or 'default'} | {seed} | {point['unseen']:,} | {point['accuracy']:.4f} | "
            f"{point['log_loss']:.4f} | {point['calibration_error']:.4f} | {point['accepted']:.3f} | "
            f"{point['accuracy_of_accepted'] or math.nan:.4f} | {point['seconds']:.0f} | {point['cpu_seconds']:.0f} |",
            flush=True,
        )
    print("\n| budget | seeds | accuracy (standard error) | log loss (standard error) | seconds | CPU seconds |")
    print("|---|---|---|---|---|---|")
    for key, group in groups_of(points).items():
        cells = [mean_and_error([point[figure] for point in group]) for figure in ("accuracy", "log_loss")]
        seconds, cpu = (np.mean([point[figure] for point in group]) for figure in ("seconds", "cpu_seconds"))
        shown = " | ".join(f"{mean:.4f} ({error:.4f})" for mean, error in cells)
        print(f"| {name_of(*key)} | {len(group)} | {shown} | {seconds:.0f} | {cpu:.0f} |")
    if args.chart:
        args.chart.write_text(chart(points))


if __name__ == "__main__":
    main()
