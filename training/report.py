"""report.html: a training run on one self-contained page, in light and dark mode."""

import base64
import html
import io
import math
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

import calibration
from charts import BOTTOM, HEIGHT, MARGIN, WIDTH, across, chart, line, up
from data import Dataset

MAX_CLASSES = 20  # of a confusion matrix; with more, a list of the most common confusions replaces it
MAX_MISTAKES = 24
THRESHOLD = 0.75  # the default of template.yaml, which is not there on SageMaker

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #6b727c; --line: #d9dde2; --page: #fff; --mark: #fff3cd;
  --a: #1f6feb; --b: #c2410c }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --faint: #8b949e; --line: #30363d; --page: #0f1216;
    --mark: #3a3113; --a: #6cb0ff; --b: #ff9a5c }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem } p { margin: .3rem 0 }
.charts { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: 0 } figcaption { color: var(--faint); font-size: .85rem }
svg { max-width: 100%; height: auto } svg text { fill: var(--ink); font-size: 11px }
.grid { stroke: var(--line) } .a { stroke: var(--a); fill: none } .b { stroke: var(--b); fill: none }
.dash { stroke: var(--faint); stroke-dasharray: 4 4; fill: none } polyline, .dash { stroke-width: 1.8 }
circle.a, rect.a, text.a { fill: var(--a); stroke: none } text.b { fill: var(--b); stroke: none }
table { border-collapse: collapse; margin: .6rem 0 }
th, td { padding: .15rem .6rem; text-align: right; border: 1px solid var(--line) }
th { font-weight: 600 } .scroll { overflow-x: auto } .marked td { font-weight: 600; background: var(--mark) }
.second { stroke-dasharray: 6 3 }
@media (max-width: 40rem) { table { font-size: .68rem } th, td { padding: .1rem .14rem } }
.images { display: flex; flex-wrap: wrap; gap: .8rem } .images figure { width: 6.5rem }
.images img { width: 6.5rem; image-rendering: pixelated; border: 1px solid var(--line) }
"""
PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Training report</title>
<style>$style</style>
<h1>Training report</h1>
<p>$summary</p>
<div class="scroll">$figures</div>
<p>Brier score and AUROC compare confidence with correctness. AUROC is the probability that a right prediction is more
confident than a wrong one.</p>
<h2>Learning curve</h2>
<p>Epoch kept for each network: $kept.</p>
<div class="charts">$learning</div>
<h2>Confusion, $part images</h2>
<div class="scroll">$confusion</div>
<h2>Reliability and thresholds, $part images</h2>
<div class="charts">$reliability</div>
<div class="scroll">$thresholds</div>
<p>Highlighted: the stack's default threshold.</p>
<h2>Most confident mistakes, $part images</h2>
$mistakes
""")


def write_report(
    path: Path,
    metadata: dict[str, Any],
    history: list[dict[str, Any]],
    sets: dict[str, Dataset],
    probabilities: dict[str, np.ndarray],
    data: Path,
) -> None:
    """Write the page. metadata: as in metadata.json. history: one dict per epoch. sets: {part: Dataset}.

    probabilities: {part: [N, classes]} for validation and, if there is one, test. The page shows test if present.
    data: the folder of the training images.
    """
    part = "test" if "test" in probabilities else "validation"
    dataset, predicted = sets[part], probabilities[part]
    confidences, right = calibration.confidence(predicted, dataset.targets)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = PAGE.substitute(
        style=STYLE,
        summary=summary(metadata, data),
        figures=figures_table(metadata["figures"], metadata["images"]),
        kept=" and ".join(map(str, metadata["kept_epochs"])),
        learning=learning_charts(history, network_names(metadata)),
        part=part,
        confusion=confusion(dataset.labels, dataset.targets, predicted.argmax(1)),
        reliability=reliability_chart(confidences, right) + threshold_chart(confidences, right),
        thresholds=thresholds_table(metadata["figures"][part]["thresholds"]),
        mistakes=mistakes(dataset, predicted),
    )
    path.write_text(page, encoding="utf-8")


def summary(metadata: dict[str, Any], data: Path) -> str:
    size = f"{metadata['input']['width']} x {metadata['input']['height']}"
    return (
        f"{len(metadata['labels'])} classes, images of {size} pixels, {metadata['seconds']:.0f} seconds, "
        f"seed {metadata['seed']}, temperature {metadata['temperature']:.2f}<br>"
        f"Data: {html.escape(str(data))}. Trained: {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}. "
        f"Model: SHA-256 {metadata['sha256'][:12]}…"
    )


def figures_table(figures: dict[str, Any], images: dict[str, Any]) -> str:
    """One column for each part of the data, so that the table fits on a phone."""
    errors = [figure["expected_calibration_error"] for figure in figures.values()]
    areas = [figure["area_under_roc"] for figure in figures.values()]
    rows = [
        ["images", *(f"{sum(images[part].values()):,}" for part in figures)],
        ["accuracy", *(f"{figure['accuracy']:.4f}" for figure in figures.values())],
        ["loss", *(f"{figure['loss']:.4f}" for figure in figures.values())],
        ["calibration error before scaling", *(f"{error['before']:.4f}" for error in errors)],
        ["calibration error", *(f"{error['after']:.4f}" for error in errors)],
        ["Brier score", *(f"{figure['brier_score']:.4f}" for figure in figures.values())],
        ["AUROC", *("undefined" if area is None else f"{area:.4f}" for area in areas)],
    ]
    return table(["", *figures], rows)


def thresholds_table(lines: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"{line['threshold']:.2f}",
            f"{line['coverage']:.1%}",
            f"{line['accepted']:,}",
            "" if line["accuracy"] is None else f"{line['accuracy']:.1%}",
        ]
        for line in lines
    ]
    head = ["threshold", "accepts", "images", "accuracy on these"]
    return table(head, rows, marked=[line["threshold"] for line in lines].index(THRESHOLD))


def network_names(metadata: dict[str, Any]) -> list[str]:
    """What each network sees."""
    options = metadata["hyperparameters"]
    if metadata["pretrained"]:
        return [f"network {number}: {metadata['pretrained']}" for number in range(1, options["networks"] + 1)]
    seen = ["pixels"] * (options["networks"] - options["gradients"]) + ["gradients"] * options["gradients"]
    return [f"network {number}: {what}" for number, what in enumerate(seen, 1)]


def legend(names: list[str], y: float) -> str:
    """The names of the networks with the style of their lines, below y at the right; nothing for only one."""
    return "".join(
        f'<path class="dash" style="stroke-dasharray: {"none" if number == 0 else "6 3"}" '
        f'd="M{WIDTH - 180} {y + 16 * number:g}h24"/>'
        f'<text x="{WIDTH - 150}" y="{y + 4 + 16 * number:g}">{html.escape(name)}</text>'
        for number, name in enumerate(names if len(names) > 1 else [])
    )


def by_network(history: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    numbers = sorted({line["network"] for line in history})
    return [[line for line in history if line["network"] == number] for number in numbers]


def learning_charts(history: list[dict[str, Any]], names: list[str]) -> str:
    highest = max(max(line["train_loss"], line["validation_loss"]) for line in history)
    lowest = min(math.floor(10 * min(line["validation_accuracy"] for line in history)) / 10, 0.9)
    x, y, z = (0, max(line["epoch"] for line in history)), (0, highest), (lowest, 1)

    def draw(style: str, name: str, y: tuple[float, float]) -> str:
        networks = by_network(history)
        return "".join(
            line(
                f"{style} second" if number else style,
                [each["epoch"] for each in lines],
                [each[name] for each in lines],
                x,
                y,
            )
            for number, lines in enumerate(networks)
        )

    return chart(
        "Loss: training (blue, with augmentation and label smoothing) and validation (orange)",
        ("epoch", *x),
        ("loss", *y),
        draw("a", "train_loss", y) + draw("b", "validation_loss", y) + legend(names, MARGIN + 14),
    ) + chart(
        "Validation accuracy",
        ("epoch", *x),
        ("accuracy", *z),
        draw("b", "validation_accuracy", z) + legend(names, HEIGHT - BOTTOM - 16 * len(names)),
    )


def reliability_chart(confidences: np.ndarray, right: np.ndarray) -> str:
    bins = calibration.reliability(confidences, right)
    most = max(bin["count"] for bin in bins)
    dots = "".join(
        f'<circle class="a" cx="{across(bin["confidence"], 0, 1):.1f}" cy="{up(bin["accuracy"], 0, 1):.1f}" '
        f'r="{3 + 9 * math.sqrt(bin["count"] / most):.1f}"><title>{bin["count"]} images: confidence '
        f"{bin['confidence']:.3f}, accuracy {bin['accuracy']:.3f}</title></circle>"
        for bin in bins
    )
    return chart(
        "Reliability: on the diagonal, confidence equals accuracy; larger dots stand for more images",
        ("confidence", 0, 1),
        ("accuracy", 0, 1),
        line("dash", [0, 1], [0, 1], (0, 1), (0, 1)) + dots,
    )


def threshold_chart(confidences: np.ndarray, right: np.ndarray) -> str:
    thresholds = np.linspace(0.5, 0.99, 50)
    rows = [calibration.accepted(confidences, right, each) for each in thresholds]
    with_images = [row for row in rows if row["accepted"]]
    lowest = min([row["coverage"] for row in rows] + [row["accuracy"] for row in with_images])
    x, y = (0.5, 1), (min(math.floor(10 * lowest) / 10, 0.9), 1)
    return chart(
        "Thresholds: share accepted (blue) and accuracy of the accepted images (orange); dashed: the stack's default",
        ("threshold", *x),
        ("", *y),
        line("dash", [THRESHOLD, THRESHOLD], list(y), x, y)
        + f'<text x="{across(THRESHOLD, *x) + 5:.1f}" y="{HEIGHT - BOTTOM - 6}">{THRESHOLD}</text>'
        + line("a", thresholds, [row["coverage"] for row in rows], x, y)
        + line("b", [row["threshold"] for row in with_images], [row["accuracy"] for row in with_images], x, y),
    )


def confusion(labels: list[str], truth: np.ndarray, predicted: np.ndarray) -> str:
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    np.add.at(counts, (truth, predicted), 1)
    if len(labels) > MAX_CLASSES:
        pairs = [(count, *place) for place, count in np.ndenumerate(counts) if count and place[0] != place[1]]
        commonest = sorted(pairs, reverse=True)[:MAX_CLASSES]
        return table(["true label", "predicted", "images"], [[labels[a], labels[b], str(n)] for n, a, b in commonest])
    head = "".join(f"<th>{html.escape(label)}</th>" for label in labels)
    rows = "".join(
        f"<tr><th>{html.escape(label)}</th>"
        + "".join(f"<td{_shade(count, row.sum(), here == place)}>{count or ''}</td>" for place, count in enumerate(row))
        + "</tr>"
        for here, (label, row) in enumerate(zip(labels, counts, strict=True))
    )
    return f"<p>Rows: true labels. Columns: predicted labels.</p><table><tr><th></th>{head}</tr>{rows}</table>"


def mistakes(dataset: Dataset, probabilities: np.ndarray) -> str:
    """The images of the wrong predictions with the highest confidence."""
    confidences, right = calibration.confidence(probabilities, dataset.targets)
    wrong = np.flatnonzero(~right)
    if not len(wrong):
        return "<p>None.</p>"
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")][:MAX_MISTAKES]
    figures = "".join(
        f'<figure><img alt="" src="{data_url(dataset.images[index])}"><figcaption>'
        f"{html.escape(dataset.labels[dataset.targets[index]])}, classified as "
        f"{html.escape(dataset.labels[probabilities[index].argmax()])} ({confidences[index]:.2f})</figcaption></figure>"
        for index in worst
    )
    return f'<p>{len(worst)} of {len(wrong)}, the most confident first.</p><div class="images">{figures}</div>'


def data_url(pixels: np.ndarray) -> str:
    """An image [3, height, width], 0 to 1, as the data URL of a PNG."""
    file = io.BytesIO()
    Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def table(head: list[str], rows: list[list[str]], marked: int = -1) -> str:
    """A table; marked: the number of a row to highlight."""
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr{' class=marked' if at == marked else ''}>{cells}</tr>" for at, cells in enumerate(lines))
    return f"<table><tr>{names}</tr>{body}</table>"


def _shade(count: int, total: int, correct: bool) -> str:
    if not count:
        return ""
    colour = "var(--a)" if correct else "var(--b)"
    return f' style="background: color-mix(in srgb, {colour} {10 + 50 * count / total:.0f}%, transparent)"'
