"""report.html: one page that shows a training, on its own, without a network, on light and on dark screens."""

import base64
import html
import io
import math
from string import Template

import numpy as np
from PIL import Image

import calibration

WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 420, 260, 56, 38, 12  # of a chart, and of what surrounds its plane
MOST_CLASSES = 20  # of a confusion matrix; beyond them, the commonest confusions are listed
WORST = 24  # mistakes shown

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Training report</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #6b727c; --line: #d9dde2; --page: #fff;
  --a: #1f6feb; --b: #c2410c }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --faint: #8b949e; --line: #30363d; --page: #0f1216; --a: #6cb0ff; --b: #ff9a5c }
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
th { font-weight: 600 } .scroll { overflow-x: auto }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem } .pictures figure { width: 6.5rem }
.pictures img { width: 6.5rem; image-rendering: pixelated; border: 1px solid var(--line) }
</style>
<h1>Training report</h1>
<p>$summary</p>
<div class="scroll">$figures</div>
<h2>Learning curve</h2>
<p>Kept of each network: epoch $kept.</p>
<div class="charts">$learning</div>
<h2>Confusion, $part pictures</h2>
<div class="scroll">$confusion</div>
<h2>Reliability and thresholds, $part pictures</h2>
<div class="charts">$trust</div>
<div class="scroll">$thresholds</div>
<h2>The worst mistakes, $part pictures</h2>
$mistakes
""")


def write_report(path, metadata, history, sets, probabilities):
    """metadata: as in metadata.json. history: a dict an epoch. sets: {part: Dataset}.

    probabilities: {part: [N, classes]} of validation and, where there is one, test, which is then shown in its place.
    """
    part = "test" if "test" in probabilities else "validation"
    dataset, answers = sets[part], probabilities[part]
    confidences, right = calibration.confidence(answers, dataset.targets)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = PAGE.substitute(
        summary=summary(metadata),
        figures=figures_table(metadata["figures"], metadata["images"]),
        kept=" and ".join(map(str, metadata["kept_epochs"])),
        learning=learning_charts(history),
        part=part,
        confusion=confusion(dataset.labels, dataset.targets, answers.argmax(1)),
        trust=reliability_chart(confidences, right) + threshold_chart(confidences, right),
        thresholds=thresholds_table(metadata["figures"][part]["thresholds"]),
        mistakes=mistakes(dataset, answers),
    )
    path.write_text(page, encoding="utf-8")


def summary(metadata):
    size = f"{metadata['input']['width']} x {metadata['input']['height']}"
    return (
        f"{len(metadata['labels'])} classes, pictures of {size} pixels, {metadata['seconds']:.0f} seconds, "
        f"seed {metadata['seed']}, temperature {metadata['temperature']:.2f}"
    )


def figures_table(figures, images):
    rows = [
        [
            part,
            f"{sum(images[part].values()):,}",
            f"{figure['accuracy']:.4f}",
            f"{figure['loss']:.4f}",
            *(f"{figure['expected_calibration_error'][when]:.4f}" for when in ("before", "after")),
        ]
        for part, figure in figures.items()
    ]
    return table(["", "pictures", "accuracy", "loss", "calibration error before", "and after temperature"], rows)


def thresholds_table(lines):
    rows = [
        [
            f"{line['threshold']:.2f}",
            f"{line['coverage']:.1%}",
            f"{line['accepted']:,}",
            "" if line["accuracy"] is None else f"{line['accuracy']:.1%}",
        ]
        for line in lines
    ]
    return table(["threshold", "accepts", "pictures", "right of these"], rows)


def by_network(history):
    numbers = sorted({line["network"] for line in history})
    return [[line for line in history if line["network"] == number] for number in numbers]


def learning_charts(history):
    highest = max(max(line["train_loss"], line["validation_loss"]) for line in history)
    lowest = min(math.floor(10 * min(line["validation_accuracy"] for line in history)) / 10, 0.9)
    x, y, z = (0, max(line["epoch"] for line in history)), (0, highest), (lowest, 1)

    def draw(style, name, y):
        networks = by_network(history)
        return "".join(
            line(style, [each["epoch"] for each in lines], [each[name] for each in lines], x, y) for lines in networks
        )

    return chart(
        "Loss: blue in training (with augmentation and label smoothing), orange in validation",
        ("epoch", *x),
        ("loss", *y),
        draw("a", "train_loss", y) + draw("b", "validation_loss", y),
    ) + chart("Accuracy in validation", ("epoch", *x), ("accuracy", *z), draw("b", "validation_accuracy", z))


def reliability_chart(confidences, right):
    bins = calibration.reliability(confidences, right)
    most = max(bin["count"] for bin in bins)
    dots = "".join(
        f'<circle class="a" cx="{across(bin["confidence"], 0, 1):.1f}" cy="{up(bin["accuracy"], 0, 1):.1f}" '
        f'r="{3 + 9 * math.sqrt(bin["count"] / most):.1f}"><title>{bin["count"]} pictures: confidence '
        f"{bin['confidence']:.3f}, accuracy {bin['accuracy']:.3f}</title></circle>"
        for bin in bins
    )
    return chart(
        "Reliability: on the diagonal, confidence is what it says; the larger a dot, the more pictures",
        ("confidence", 0, 1),
        ("accuracy", 0, 1),
        line("dash", [0, 1], [0, 1], (0, 1), (0, 1)) + dots,
    )


def threshold_chart(confidences, right):
    thresholds = np.linspace(0.5, 0.99, 50)
    rows = [calibration.accepted(confidences, right, each) for each in thresholds]
    some = [row for row in rows if row["accepted"]]
    lowest = min([row["coverage"] for row in rows] + [row["accuracy"] for row in some])
    x, y = (0.5, 1), (min(math.floor(10 * lowest) / 10, 0.9), 1)
    return chart(
        "Thresholds: blue, the part that is accepted; orange, the part of it that is right",
        ("threshold", *x),
        ("", *y),
        line("a", thresholds, [row["coverage"] for row in rows], x, y)
        + line("b", [row["threshold"] for row in some], [row["accuracy"] for row in some], x, y),
    )


def confusion(labels, truth, answered):
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    np.add.at(counts, (truth, answered), 1)
    if len(labels) > MOST_CLASSES:
        pairs = [(count, *place) for place, count in np.ndenumerate(counts) if count and place[0] != place[1]]
        commonest = sorted(pairs, reverse=True)[:MOST_CLASSES]
        return table(["truth", "answer", "pictures"], [[labels[a], labels[b], str(n)] for n, a, b in commonest])
    head = "".join(f"<th>{html.escape(label)}</th>" for label in labels)
    rows = "".join(
        f"<tr><th>{html.escape(label)}</th>"
        + "".join(f"<td{_shade(count, row.sum(), here == place)}>{count or ''}</td>" for place, count in enumerate(row))
        + "</tr>"
        for here, (label, row) in enumerate(zip(labels, counts, strict=True))
    )
    return f"<p>Rows are the truth, columns the answers.</p><table><tr><th></th>{head}</tr>{rows}</table>"


def mistakes(dataset, probabilities):
    """The wrong answers that the model was surest of, as pictures."""
    confidences, right = calibration.confidence(probabilities, dataset.targets)
    wrong = np.flatnonzero(~right)
    if not len(wrong):
        return "<p>None.</p>"
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")][:WORST]
    figures = "".join(
        f'<figure><img alt="" src="{data_url(dataset.images[index])}"><figcaption>'
        f"{html.escape(dataset.labels[dataset.targets[index]])}, taken for "
        f"{html.escape(dataset.labels[probabilities[index].argmax()])} ({confidences[index]:.2f})</figcaption></figure>"
        for index in worst
    )
    return f'<p>{len(worst)} of {len(wrong)}, the surest first.</p><div class="pictures">{figures}</div>'


def data_url(pixels):
    """A picture [3, height, width], 0 to 1, as the address of a PNG."""
    file = io.BytesIO()
    Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def table(head, rows):
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def chart(caption, x, y, inside):
    """A figure with axes x and y, each (name, lowest, highest), around what is drawn inside."""
    (x_name, x_low, x_high), (y_name, y_low, y_high) = x, y
    rows = "".join(
        f'<path class="grid" d="M{LEFT} {up(value, y_low, y_high):.1f}H{WIDTH - MARGIN}"/>'
        f'<text x="{LEFT - 5}" y="{up(value, y_low, y_high) + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in ticks(y_low, y_high)
    )
    columns = "".join(
        f'<path class="grid" d="M{across(value, x_low, x_high):.1f} {MARGIN}V{HEIGHT - BOTTOM}"/>'
        f'<text x="{across(value, x_low, x_high):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>'
        for value in ticks(x_low, x_high)
    )
    names = (
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{x_name}</text>'
        f'<text transform="translate(11 {(HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{y_name}</text>'
    )
    return (
        f'<figure style="width: {WIDTH}px; max-width: 100%"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"{rows}{columns}{names}{inside}</svg><figcaption>{caption}</figcaption></figure>"
    )


def line(style, xs, ys, x_range, y_range):
    points = " ".join(f"{across(x, *x_range):.1f},{up(y, *y_range):.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<polyline class="{style}" points="{points}"/>'


def ticks(low, high):
    """Four to ten round numbers between low and high."""
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(step for step in (5 * power, 2 * power, power) if (high - low) / step >= 4)
    return [
        round(number * step, 10) for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def across(value, low, high):
    return LEFT + (WIDTH - MARGIN - LEFT) * (value - low) / (high - low)


def up(value, low, high):
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - MARGIN) * (value - low) / (high - low)


def _shade(count, total, correct):
    if not count:
        return ""
    colour = "var(--a)" if correct else "var(--b)"
    return f' style="background: color-mix(in srgb, {colour} {10 + 50 * count / total:.0f}%, transparent)"'
