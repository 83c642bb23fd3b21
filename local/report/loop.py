"""The hours of make loop as text, as figures and as one picture."""

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from monitoring.accuracy import exact_interval

if TYPE_CHECKING:
    from local.loop import Hour

STAGES = {
    "before": "the images that the model knows",
    "changed": "chalk on a blackboard",
    "promoted": "chalk, with the promoted model",
}
TITLE = "The images change, and the model follows"
WIDTH, LEFT, RIGHT = 480, 56, 468
CHART, PIXEL = 110, 3  # pixels: the height of a chart, the side of a scan's pixel
LEVELS = 8  # of grey
STYLE = """svg{--page:#fff;--text:#24292f;--line:#d0d7de;--a:#2563eb;--b:#c2410c;--band:#f3f4f6}
@media(prefers-color-scheme:dark){
svg{--page:#0d1117;--text:#e6edf3;--line:#30363d;--a:#6cb0ff;--b:#ff9a5c;--band:#161b22}}
text{font:13px system-ui,sans-serif;fill:var(--text);paint-order:stroke;stroke:var(--page);stroke-width:4px}
.t{font-weight:600}.e{text-anchor:end}.m{text-anchor:middle}.page{fill:var(--page)}.band{fill:var(--band)}
.grid{stroke:var(--line)}.change{stroke:var(--text);stroke-dasharray:2 3}.limit{stroke-dasharray:6 4}
.a{stroke:var(--a)}.b{stroke:var(--b)}.fa{fill:var(--a)}.fb{fill:var(--b)}polyline{fill:none;stroke-width:2}"""


def line(number: int, hour: "Hour") -> str:
    """An hour in a line."""
    on = ", ".join(hour.alarms) or "none"
    return (
        f"  hour {number:>2}: {len(hour.right)} images, {share(hour.right)} right, {share(hour.accepted)} accepted, "
        f"{hour.reviewed} reviewed; alarms: {on}"
    )


def share(flags: list[bool]) -> str:
    return f"{sum(flags) / len(flags):.0%}"


def figures(hours: Iterable["Hour"]) -> dict[str, Any]:
    """The accuracy of all images of these hours, and of those that were accepted, each with its 95 % interval."""
    pairs = [pair for hour in hours for pair in zip(hour.right, hour.accepted, strict=True)]
    accepted = [right for right, accepted in pairs if accepted]
    return {
        "images": len(pairs),
        "accuracy": proportion([right for right, _ in pairs]),
        "accepted": len(accepted) / len(pairs),
        "accepted_accuracy": proportion(accepted) if accepted else None,
    }


def proportion(flags: list[bool]) -> dict[str, Any]:
    low, high = exact_interval(sum(flags), len(flags))
    return {"right": sum(flags), "images": len(flags), "share": sum(flags) / len(flags), "low": low, "high": high}


def described(hours: list["Hour"], **more: Any) -> dict[str, Any]:
    """What loop.json says."""
    return {
        "stages": {stage: figures(hour for hour in hours if hour.stage == stage) for stage in STAGES},
        "hours": [
            {
                "stage": hour.stage,
                **figures([hour]),
                "confidence": hour.average("Confidence"),
                "reviewed": hour.reviewed,
                "alarms": hour.alarms,
            }
            for hour in hours
        ],
        **more,
    }


def sentences(made: dict[str, Any]) -> list[str]:
    lines = ["", "Accuracy of all images, with 95% intervals:"]
    for stage, name in STAGES.items():
        each = made["stages"][stage]
        accuracy = each["accuracy"]
        lines.append(
            f"  {stage:<9} {accuracy['share']:>4.0%} ({accuracy['low']:.0%} to {accuracy['high']:.0%}) of "
            f"{each['images']} images, {each['accepted']:.0%} accepted: {name}"
        )
    return lines


def draw(made: dict[str, Any]) -> str:
    """The picture: sample images, accuracy, what the metrics show, and the alarms, over the hours."""
    hours = made["hours"]
    step = (RIGHT - LEFT) / len(hours)
    centres = [LEFT + (number + 0.5) * step for number in range(len(hours))]
    parts, top = [f'<text x="12" y="24" class="t">{TITLE}</text>'], 38
    for stage in STAGES:
        here = [centre for centre, hour in zip(centres, hours, strict=True) if hour["stage"] == stage]
        middle = (here[0] + here[-1]) / 2
        parts += scans(made["samples"][stage], middle, top)
        parts.append(f'<text x="{middle:.0f}" y="{top + 42}" class="m">{stage}</text>')
    y = top + 72
    accuracies = [hour["accuracy"] for hour in hours]
    parts += chart(
        "Accuracy of all images, by the true labels", centres, y, [("a", [each["share"] for each in accuracies])]
    )
    parts += [
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{height(y, each["low"])}" y2="{height(y, each["high"])}" class="a"/>'
        for x, each in zip(centres, accuracies, strict=True)
    ]
    y += CHART + 44
    series = [("a", [hour["accepted"] for hour in hours]), ("b", [hour["confidence"] for hour in hours])]
    title = '<tspan class="fa">Accepted</tspan> and <tspan class="fb">mean confidence</tspan>, with the alarms\' limits'
    parts += chart(title, centres, y, series)
    for colour, limit in zip("ab", (made["limits"]["Accepted"], made["limits"]["Confidence"]), strict=True):
        line = f'y1="{height(y, limit)}" y2="{height(y, limit)}"'
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" {line} class="{colour} limit"/>')
    y += CHART + 44
    parts.append(f'<text x="12" y="{y}" class="t">Alarms that are on</text>')
    for name in dict.fromkeys(name for hour in hours for name in hour["alarms"]):
        y += 34
        parts.append(f'<text x="12" y="{y - 14}">{name}</text>')
        for centre, hour in zip(centres, hours, strict=True):
            box = f'x="{centre - step / 2 + 1:.1f}" y="{y - 9}" width="{step - 2:.1f}" height="10"'
            parts.append(f'<rect {box} class="{"fb" if name in hour["alarms"] else "band"}"/>')
    bottom = y + 6
    parts += [
        f'<text x="{centre:.0f}" y="{bottom + 18}" class="m">{number}</text>'
        for number, centre in enumerate(centres, 1)
    ]
    parts.append(f'<text x="12" y="{bottom + 40}">hours of compressed time, {hours[0]["images"]} images each</text>')
    stages = [hour["stage"] for hour in hours]
    changes = [
        f'<path d="M{LEFT + number * step:.1f} {top}V{bottom}" class="change"/>'
        for number, (before, stage) in enumerate(pairwise(stages), 1)
        if before != stage
    ]
    size = f'width="{WIDTH}" height="{bottom + 54}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {bottom + 54}" role="img">'
        f'<title>{TITLE}</title><style>{STYLE}</style><rect {size} class="page"/>\n'
        + "\n".join(changes + parts)
        + "\n</svg>\n"
    )


def height(top: int, value: float) -> str:
    """The place of a value from 0 to 1 in a chart whose title is at `top`."""
    return f"{top + 12 + CHART * (1 - value):.1f}"


def chart(title: str, centres: list[float], top: int, series: list[tuple[str, list[float]]]) -> list[str]:
    """A chart from 0 to 100 %, with a line for each series (colour, values)."""
    parts = [f'<text x="12" y="{top}" class="t">{title}</text>']
    for value in (0, 0.5, 1):
        parts.append(f'<text x="{LEFT - 6}" y="{float(height(top, value)) + 4}" class="e">{value:.0%}</text>')
        parts.append(
            f'<line x1="{LEFT}" x2="{RIGHT}" y1="{height(top, value)}" y2="{height(top, value)}" class="grid"/>'
        )
    for colour, values in series:
        points = [(f"{x:.1f}", height(top, value)) for x, value in zip(centres, values, strict=True)]
        parts.append(f'<polyline points="{" ".join(map(",".join, points))}" class="{colour}"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" class="f{colour}"/>' for x, y in points]
    return parts


def scans(samples: list[list[list[float]]], middle: float, top: int) -> list[str]:
    """Scans side by side around `middle`, in LEVELS greys: a path for each level."""
    paths: dict[int, str] = {}
    width = PIXEL * sum(len(scan[0]) + 1 for scan in samples)
    left = middle - width / 2
    for scan in samples:
        for row, values in enumerate(scan):
            for column, value in enumerate(values):
                grey = round(value / 255 * (LEVELS - 1)) * 255 // (LEVELS - 1)
                paths[grey] = (
                    paths.get(grey, "") + f"M{left + PIXEL * column:.0f} {top + PIXEL * row}h{PIXEL}v{PIXEL}h-{PIXEL}"
                )
        left += PIXEL * (len(scan[0]) + 1)
    return [f'<path fill="rgb({grey},{grey},{grey})" d="{path}"/>' for grey, path in sorted(paths.items())]
