"""The comparison of two models as lines of text and as one self-contained page, in the training report's style."""

import html
import math
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

import calibration
import charts
import report  # before inference: it finds the folder endpoint
from captured import NAMES
from inference import preprocess

MAX_IMAGES = 24  # of each kind
MAX_LABELS = 40
MAX_CHANGES = 10  # of labels, as text; comparison.json has all
ROW = 46  # pixels: the height of a folder in the chart of differences
FIGURES = {
    "accuracy": "accuracy",
    "coverage": "accepted",
    "accepted_accuracy": "accuracy on these",
    "expected_calibration_error": "calibration error",
    "brier_score": "Brier score",
    "area_under_roc": "AUROC",
    "cpu_milliseconds": "CPU ms per image",
}
SHARES = {"accuracy", "coverage", "accepted_accuracy"}  # shown in percent
FATES = ["accepted, right", "accepted, wrong", "for review"]
KINDS = {"lost": "Lost: the champion is right", "gained": "Gained: the challenger is right", "other": "Both wrong"}
SKIPPED = {"unreadable": "unreadable", "duplicate": "duplicates", "training": "used for training"}

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Comparison of two models</title>
<style>$style
circle.b { fill: var(--b); stroke: none } .verdict { font-size: 1.15rem; font-weight: 600 }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem } details { margin: .3rem 0 }
.name { paint-order: stroke; stroke: var(--page); stroke-width: 4px } figcaption, h2, p, li { overflow-wrap: anywhere }
</style>
<h1>Comparison of two models</h1>
<p class="verdict">Verdict: $verdict</p>
<p>$summary</p>
<div class="scroll">$models</div>
$notes
$captured
<div class="charts">$differences</div>
$sets
</html>
""")

SET = Template("""<h2>$folder</h2>
<p>$sentences</p>
<div class="scroll">$figures</div>
<p>Intervals: 95%, bootstrap of the images. Calibration error and Brier score: lower is better.</p>
<div class="charts">$charts</div>
<h3>What happens to the images at the threshold $threshold</h3>
<p>Rows: with the champion. Columns: with the challenger.</p>
<div class="scroll">$moves</div>
<h3>Labels</h3>
<div class="scroll">$labels</div>
$changed
$skipped
""")


def write_report(path: Path, comparison: dict[str, Any], answers: list[list[Any]], side: int) -> None:
    """Write the page. comparison: as in comparison.json. answers: for each folder, the Answers of both models.

    side: pixels of the images shown.
    """
    sets = comparison["sets"]
    page = PAGE.substitute(
        style=report.STYLE,
        verdict=html.escape(verdict(comparison)),
        summary=f"Compared: {datetime.fromisoformat(comparison['created']):%Y-%m-%d %H:%M %Z}. Threshold "
        f"{comparison['threshold']:g}, margin {100 * comparison['margin']:g} points, seed {comparison['seed']}.",
        models=models_table(comparison),
        notes="".join(f"<p>{html.escape(note)}</p>" for note in notes(comparison)),
        captured=captured_section(comparison["captured"], side) if comparison["captured"] else "",
        differences=difference_chart(sets, comparison["margin"]) if sets else "",
        sets="".join(
            section(each, both, comparison["threshold"], side) for each, both in zip(sets, answers, strict=True)
        ),
    )
    path.write_text(page, encoding="utf-8", errors="backslashreplace")


def lines(comparison: dict[str, Any]) -> list[str]:
    """The comparison as text."""
    text = [f"{name}: {describe(comparison[name])}" for name in NAMES] + notes(comparison)
    if comparison["captured"]:
        text += ["", *captured_sentences(comparison["captured"])]
    for each in comparison["sets"]:
        text += ["", f"{each['folder']}: {each['images']:,} images"]
        rows = [["", *NAMES, "difference (95% interval)"], *figure_rows(each)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        text += [
            f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows
        ]
        text += sentences(each)
    return [*text, "", f"Verdict: {verdict(comparison)}"]


def verdict(comparison: dict[str, Any]) -> str:
    """The verdict, and the one on each folder that has a requirement."""
    required = [each for each in comparison["sets"] if each["requirement"]]
    if not required:
        return "undecided: no captured image has been reviewed"
    each_one = "; ".join(f"{each['folder']} {each['verdict']}, must be {each['requirement']}" for each in required)
    holds = "all requirements hold" if comparison["holds"] else "not all requirements hold"
    return f"{comparison['verdict']}, {holds} ({each_one})"


def describe(model: dict[str, Any]) -> str:
    files = [f"model.onnx {model['model_sha256'][:12]}, {model['model_bytes'] / 1e6:.2f} MB"]
    if "archive_sha256" in model:
        files.append(f"archive {model['archive_sha256'][:16]}, {model['archive_bytes'] / 1e6:.1f} MB")
    return f"{model['path']} ({len(model['labels'])} labels; {'; '.join(files)})"


def notes(comparison: dict[str, Any]) -> list[str]:
    """What weakens the comparison as a whole."""
    champion, challenger = (comparison[name] for name in NAMES)
    found = []
    if all(champion[key] == challenger[key] for key in ("model_sha256", "metadata_sha256")):
        found.append("Both are the same model.")
    if unknown := [name for name in NAMES if not comparison[name]["training_data_known"]]:
        models = " or ".join(f"the {name}" for name in unknown)
        found.append(
            f"Not checked whether {models} was trained on these images: no data.json, or its folders are gone."
        )
    for name in [name for name in NAMES if comparison[name].get("other_code")]:
        found.append(f"The {name}'s archive has another version of the inference code, which was not used here.")
    return found


def sentences(each: dict[str, Any]) -> list[str]:
    """What the tests say of a folder, and what weakens it."""
    margin = f"{100 * each['margin']:g} points"
    counts = f"gains {images(each['gained'])} and loses {each['lost']:,}"
    bound = f"the difference is above {floor_points(each['at_least'])} points with 95% confidence"
    text = {
        "better": f"better: {counts} (McNemar's test: p = {p(each['p_better'])}); {bound}",
        "not worse": f"not worse by more than {margin}: {counts}; {bound}",
        "worse": f"worse: {counts} (McNemar's test: p = {p(each['p_worse'])}); {bound}",
        "undecided": f"undecided: {counts}; {bound}",
    }
    found = [text[each["verdict"]]]
    if not each["holds"] and each["verdict"] != "worse":
        missing = "better" if each["requirement"] == "better" else f"not worse by more than {margin}"
        if each["images_needed"]:
            found.append(f"to show that it is {missing}: about {each['images_needed']:,} images like these")
        else:
            found.append(f"more images like these would hardly show that it is {missing}")
    for name in NAMES:
        if unknown := each[name]["unknown"]:
            labels = [f"{label} ({images(count)})" for label, count in unknown.items()]
            more = f" and {len(labels) - MAX_CHANGES:,} more labels" if len(labels) > MAX_CHANGES else ""
            found.append(f"the {name} does not know {', '.join(labels[:MAX_CHANGES])}{more}: wrong for it")
    clear = [row for row in each["labels"] if row["p"] <= 0.05]
    for row in clear[:MAX_CHANGES]:
        change = "gains" if row["gained"] > row["lost"] else "loses"
        found.append(f"label {row['label']}: clearly {change} ({row['gained']} gained, {row['lost']} lost)")
    if len(clear) > MAX_CHANGES:
        found.append(f"{len(clear) - MAX_CHANGES:,} more labels clearly gain or lose")
    return found


def captured_sentences(captured: dict[str, Any]) -> list[str]:
    """What differs between the captured answers."""
    count = captured["images"]
    (both, falls), (rises, neither) = captured["crossings"]
    found = [f"captured since {captured['since']} in {captured['place']}: {images(count)} answered by both models"]
    found += [
        f"{images(captured['only'][name])} answered by the {name} alone, or captured for it alone"
        for name in NAMES
        if captured["only"][name]
    ]
    if count:
        found.append(f"same label: {captured['agree']:,} ({captured['agree'] / count:.2%})")
        found += [f"  {old} -> {new}: {images(number)}" for old, new, number in captured["changes"][:MAX_CHANGES]]
        found.append(
            f"accepted by both {both:,}, by the champion alone {falls:,}, by the challenger alone {rises:,}, "
            f"for review with both {neither:,}"
        )
    for name in NAMES:
        each = captured[name]
        latency = "" if each["milliseconds"] is None else f", model latency {each['milliseconds']:.1f} ms on average"
        found.append(f"{name}: {each['requests']:,.0f} requests, {each['errors']:,.0f} errors{latency}")
    return found


def captured_section(captured: dict[str, Any], side: int) -> str:
    """All captured images, whether their label is known or not."""
    sentences = "<br>".join(html.escape(sentence) for sentence in captured_sentences(captured))
    fates = ["accepted", "for review"]
    rows = [[fate, *map(str, row)] for fate, row in zip(fates, captured["crossings"], strict=True)]
    shown = [row for row in captured["changed"] if row["file"]][:MAX_IMAGES]
    return (
        f"<h2>All captured images: {captured['images']:,}</h2><p>{sentences}</p>"
        f'<p>Rows: with the champion. Columns: with the challenger.</p><div class="scroll">'
        f"{report.table(['', *fates], rows)}</div><h3>Other labels</h3>"
        f"<p>{len(shown):,} of {images(len(captured['changed']))}, the challenger's most confident first.</p>"
        f'<div class="images">{figures(shown, side)}</div>'
    )


def images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def floor_points(difference: float) -> str:
    """Hundredths of a point, rounded down: a bound must not look higher than it is."""
    return f"{math.floor(10_000 * difference) / 100:+.2f}"


def figure_rows(each: dict[str, Any]) -> list[list[str]]:
    """Name, champion, challenger, difference with its interval."""
    rows = []
    for key, name in FIGURES.items():
        old, new = (each[model][key] for model in NAMES)
        shown = ["undefined" if value is None else number(key, value) for value in (old, new)]
        difference = "" if old is None or new is None else change(key, new - old)
        if limits := each["intervals"].get(key):
            low, high = (change(key, value).removesuffix(" points") for value in limits)
            difference += f" ({low} to {high})"
        rows.append([name, *shown, difference])
    return rows


def number(key: str, value: float) -> str:
    if key in SHARES:
        return f"{value:.2%}"
    return f"{value:.2f}" if key == "cpu_milliseconds" else f"{value:.4f}"


def change(key: str, value: float) -> str:
    if key in SHARES:
        return f"{signed(100 * value, 2)} points"
    return signed(value, 2 if key == "cpu_milliseconds" else 4)


def signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # -0.0 + 0.0 is 0.0


def models_table(comparison: dict[str, Any]) -> str:
    both = [comparison[name] for name in NAMES]
    rows = [
        ["model", *(each["path"] for each in both)],
        ["labels", *(f"{len(each['labels'])}" for each in both)],
        ["model.onnx, SHA-256", *(f"{each['model_sha256'][:12]}…" for each in both)],
        ["model.onnx, MB", *(f"{each['model_bytes'] / 1e6:.2f}" for each in both)],
    ]
    if any("archive_bytes" in each for each in both):
        sizes = [f"{each['archive_bytes'] / 1e6:.1f}" if "archive_bytes" in each else "" for each in both]
        hashes = [f"{each['archive_sha256'][:16]}…" if "archive_sha256" in each else "" for each in both]
        rows += [["archive, SHA-256", *hashes], ["archive, MB", *sizes]]
    return report.table(["", *NAMES], rows)


def section(each: dict[str, Any], answers: list[Any], threshold: float, side: int) -> str:
    moved = zip(FATES, each["moves"], strict=True)
    return SET.substitute(
        folder=f"{html.escape(each['folder'])}: {images(each['images'])}",
        sentences="<br>".join(html.escape(sentence) for sentence in sentences(each)),
        figures=report.table(["", *NAMES, "difference"], figure_rows(each)),
        charts=reliability_chart(answers) + coverage_chart(answers, threshold),
        threshold=f"{threshold:g}",
        moves=report.table(["", *FATES], [[fate, *map(str, row)] for fate, row in moved]),
        labels=labels_table(each["labels"]),
        changed=changed_images(each["changed"], side),
        skipped="".join(skipped_files(SKIPPED[why], files) for why, files in each["skipped"].items() if files),
    )


def labels_table(labels: list[dict[str, Any]]) -> str:
    """The labels that lost most first."""
    rows = sorted(labels, key=lambda row: (row["gained"] - row["lost"], -row["lost"]))
    head = ["label", "images", "champion right", "challenger right", "gained", "lost", "p"]
    cells = [
        [
            row["label"],
            f"{row['images']:,}",
            f"{row['champion'] / row['images']:.1%}",
            f"{row['challenger'] / row['images']:.1%}",
            f"{row['gained']:,}",
            f"{row['lost']:,}",
            p(row["p"]),
        ]
        for row in rows
    ]
    if len(cells) > MAX_LABELS:
        half = MAX_LABELS // 2
        left_out = len(cells) - MAX_LABELS
        cells = [*cells[:half], [f"({left_out} more in comparison.json)", *[""] * 6], *cells[-half:]]
    return f"<p>p: McNemar's two-sided test, adjusted for the number of labels.</p>{report.table(head, cells)}"


def changed_images(rows: list[dict[str, Any]], side: int) -> str:
    """The images that get another label, as pictures."""
    found = ""
    for kind, title in KINDS.items():
        of_kind = [row for row in rows if row["change"] == kind]
        if not of_kind:
            found += f"<h3>{title}{', differently' if kind == 'other' else ''}</h3><p>None.</p>"
            continue
        shown = of_kind[:MAX_IMAGES]
        count = f"{len(shown):,} of {images(len(of_kind))}, the challenger's most confident first."
        found += f"<h3>{title}{', differently' if kind == 'other' else ''}</h3><p>{count} True label: champion's "
        found += f'label → challenger\'s label.</p><div class="images">{figures(shown, side)}</div>'
    return found


def figures(rows: list[dict[str, Any]], side: int) -> str:
    """Images with both models' labels, and with the true one if it is known."""
    return "".join(
        f'<figure><img alt="" src="{report.data_url(preprocess(Path(row["file"]).read_bytes(), (side, side)))}">'
        f'<figcaption title="{html.escape(row["file"])}">'
        + (f"{html.escape(row['label'])}: " if "label" in row else "")
        + " → ".join(f"{html.escape(row[name]['label'])} ({row[name]['confidence']:.2f})" for name in NAMES)
        + "</figcaption></figure>"
        for row in rows
    )


def skipped_files(what: str, files: list[list[str]]) -> str:
    items = "".join(f"<li>{html.escape(path)}: {html.escape(reason)}</li>" for path, reason in files[:100])
    return f"<details><summary>Left out for both: {len(files):,} {what}</summary><ul>{items}</ul></details>"


def difference_chart(sets: list[dict[str, Any]], margin: float) -> str:
    """For each folder the difference of the accuracies, its bootstrap interval and its lower bound."""
    low = min(0.0, -margin, *(each["at_least"] for each in sets), *(limits(each)[0] for each in sets))
    high = max(0.0, margin, *(limits(each)[1] for each in sets))
    low, high = 100 * low - 0.3, 100 * high + 0.3
    bottom = charts.MARGIN + ROW * len(sets)
    grid = "".join(
        f'<path class="grid" d="M{charts.across(value, low, high):.1f} {charts.MARGIN}V{bottom}"/>'
        f'<text x="{charts.across(value, low, high):.1f}" y="{bottom + 15}" text-anchor="middle">{name}</text>'
        for value, name in [(value, f"{value:+g}" if value else "0") for value in charts.ticks(low, high)]
    )
    rows = ""
    for at, each in enumerate(sets):
        y = charts.MARGIN + ROW * at + 32
        left, right = (charts.across(100 * value, low, high) for value in limits(each))
        bound, middle = (charts.across(100 * each[key], low, high) for key in ("at_least", "difference"))
        name = each["folder"] if len(each["folder"]) <= 40 else "…" + each["folder"][-39:]
        rows += (
            f'<text class="name" x="{charts.LEFT}" y="{y - 14}">{html.escape(name)}: {each["verdict"]}</text>'
            f'<polyline class="a" points="{left:.1f},{y} {right:.1f},{y}"/>'
            f'<circle class="a" cx="{middle:.1f}" cy="{y}" r="4"/>'
            f'<path class="b" stroke-width="2" d="M{bound:.1f} {y - 7}V{y + 7}"/>'
        )
    zero, allowed = charts.across(0, low, high), charts.across(-100 * margin, low, high)
    marks = (
        f'<path style="stroke: var(--ink)" d="M{zero:.1f} {charts.MARGIN}V{bottom}"/>'
        f'<path class="dash" d="M{allowed:.1f} {charts.MARGIN}V{bottom}"/>'
        f'<text x="{(charts.LEFT + charts.WIDTH) / 2}" y="{bottom + 32}" text-anchor="middle">points of accuracy</text>'
    )
    return (
        f'<figure style="width: {charts.WIDTH}px; max-width: 100%">'
        f'<svg viewBox="0 0 {charts.WIDTH} {bottom + 38}" role="img">'
        f"{grid}{marks}{rows}</svg><figcaption>Challenger minus champion: dot and 95% bootstrap interval (blue); it is "
        "above the orange mark with 95% confidence (exact). Dashed: the margin.</figcaption></figure>"
    )


def limits(each: dict[str, Any]) -> tuple[float, float]:
    """The bootstrap interval of the accuracies' difference; the difference itself if there is none."""
    low, high = each["intervals"]["accuracy"] or [each["difference"]] * 2
    return low, high


def reliability_chart(answers: list[Any]) -> str:
    dots = ""
    for style, name, each in zip("ab", NAMES, answers, strict=True):
        bins = calibration.reliability(each.confidences, each.right)
        most = max(bin["count"] for bin in bins)
        dots += "".join(
            f'<circle class="{style}" opacity=".75" cx="{charts.across(bin["confidence"], 0, 1):.1f}" '
            f'cy="{charts.up(bin["accuracy"], 0, 1):.1f}" r="{3 + 7 * math.sqrt(bin["count"] / most):.1f}">'
            f"<title>{name}: {images(bin['count'])}, confidence {bin['confidence']:.3f}, "
            f"accuracy {bin['accuracy']:.3f}</title></circle>"
            for bin in bins
        )
    return charts.chart(
        "Reliability: on the diagonal, confidence equals accuracy. Champion blue, challenger orange.",
        ("confidence", 0, 1),
        ("accuracy", 0, 1),
        charts.line("dash", [0, 1], [0, 1], (0, 1), (0, 1)) + dots,
    )


def coverage_chart(answers: list[Any], threshold: float) -> str:
    """The accuracy of the most confident images, against their share; a dot at the threshold."""
    curves, dots = [], []
    for each in answers:
        right = each.right[np.argsort(-each.confidences, kind="stable")]
        counts = np.unique(np.linspace(min(10, len(right)), len(right), 100).astype(int))
        curves.append((counts / len(right), (right.cumsum() / np.arange(1, len(right) + 1))[counts - 1]))
        accepted = calibration.accepted(each.confidences, each.right, threshold)
        dots.append((accepted["coverage"], accepted["accuracy"]))
    lowest = min([*(curve[1].min() for curve in curves), *(dot[1] for dot in dots if dot[1] is not None)])
    x, y = (0, 1), (min(math.floor(10 * lowest) / 10, 0.9), 1)
    drawn = "".join(charts.line(style, *curve, x, y) for style, curve in zip("ab", curves, strict=True))
    drawn += "".join(
        f'<circle class="{style}" cx="{charts.across(dot[0], *x):.1f}" cy="{charts.up(dot[1], *y):.1f}" r="4.5"/>'
        for style, dot in zip("ab", dots, strict=True)
        if dot[1] is not None
    )
    return charts.chart(
        "Accuracy of the most confident images against their share. Champion blue, challenger orange; dots: threshold.",
        ("share of the images accepted", *x),
        ("accuracy", *y),
        drawn,
    )
