"""What a replay says: in the terminal, and as a page, .local/replay/report.html, one self-contained file."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from rich.markup import escape
from rich.table import Table

from local.command import EXAMPLES, console, examples
from local.report.evaluation import images, interval, share
from local.report.render import template
from monitoring.accuracy import MIN_REVIEWED, is_usable
from monitoring.replay import MOVES, Answer, Image
from training import charts

SHOWN = 24  # images of each move
TITLES = {
    "accepted_to_review": "Accepted → review",
    "review_to_accepted": "Review → accepted",
    "other_label": "Accepted with another label",
}
STRATA = {"audit": "accepted before", "low_confidence": "for review before"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image that changes hands. review: the review table's item. thumbnail: a data: URL."""

    move: str
    image: Image
    answer: Answer
    review: Mapping[str, Any] | None
    thumbnail: str | None

    @property
    def truth(self) -> str:
        """What a reviewer decided, in words; empty if nobody did."""
        if not self.review or not is_usable(self.review):
            return ""
        return self.review.get("reviewed_label") or "none of these"

    @property
    def is_wrong(self) -> bool:
        return bool(self.truth) and self.truth != self.answer.label


def title(made: dict[str, Any]) -> str:
    """What is replayed."""
    threshold = f"threshold {made['threshold']:g}" if made["threshold"] is not None else ""
    replayed = made["model"]
    model = f"model {replayed['path']} (model.onnx {replayed['model_sha256'][:12]})" if replayed else ""
    return " with ".join(filter(None, (model, threshold)))


def about(made: dict[str, Any]) -> str:
    since = f" since {made['since'][:16].replace('T', ' ')}" if made["since"] else ""
    return f"{images(made['images'])} of {made['stack']}{since}, {made['images'] / made['days']:,.0f} a day"


def number(made: dict[str, float]) -> str:
    """A count, with its interval if it was scaled up from a sample."""
    bounds = f" ({made['low']:,.0f} to {made['high']:,.0f})" if made["low"] < made["high"] else ""
    return f"{made['count']:,.0f}{bounds}"


def error(made: dict[str, Any]) -> str:
    """The expected error by decisions, with its interval."""
    if made["error"] is None:
        return "unknown"
    few = ", few" if made["reviewed"] < MIN_REVIEWED else ""
    return f"{share(made['error'])} ({interval((made['low'], made['high']))}{few})"


def rows(made: dict[str, Any]) -> list[list[str]]:
    """Name, before, after, change."""
    before, after = made["before"], made["after"]

    def row(name: str, values: list[float], digits: int = 1) -> list[str]:
        change = round(values[1] - values[0], digits) + 0.0  # -0.0 + 0.0 is 0.0
        return [name, *(f"{value:,.{digits}f}" for value in values), f"{change:+,.{digits}f}"]

    loads = [each["reviews_a_day"] for each in (before, after)]
    usd = [each["reviews_usd_a_month"] for each in (before, after)]
    total = [each + made["classification_usd_a_month"] for each in usd]
    doubts = [each["confidences_error"] for each in (before, after)]
    difference = after["accepted"]["count"] - before["accepted"]["count"]
    return [
        ["accepted", number(before["accepted"]), number(after["accepted"]), f"{difference:+,.0f}"],
        ["for review", number(before["review"]), number(after["review"]), f"{-difference + 0.0:+,.0f}"],
        row("reviews a day", [each["total"] for each in loads]),
        row("  below the threshold", [each["low_confidence"] for each in loads]),
        row("  audits", [each["audit"] for each in loads]),
        ["error of accepted images, by decisions", error(before["error"]), error(after["error"]), ""],
        [
            "error of accepted images, by confidences",
            *("" if doubt is None else share(doubt) for doubt in doubts),
            "" if None in doubts else f"{100 * (doubts[1] - doubts[0]):+.1f} points",
        ],
        row("people, hours a month", [each["hours_a_month"] for each in (before, after)]),
        row("AWS's bill for the reviews, USD a month", usd, digits=2),
        row("AWS's bill without the endpoint's hours, USD a month", total, digits=2),
    ]


def moved(made: dict[str, Any]) -> str:
    """How many images change hands, in words."""
    counts = made["moves"]
    parts = ("accepted → review", "review → accepted", "accepted with another label")
    return ", ".join(f"{name}: {number(counts[move])}" for name, move in zip(parts, MOVES, strict=True))


def counted(counts: Mapping[str, int]) -> str:
    return examples([f"{name} ({count:,})" for name, count in counts.items()])


def sentences(made: dict[str, Any]) -> list[str]:
    """Where the figures come from, and what they do not say."""
    found = [*sources(made), *truths(made)]
    found.append(
        f"A review costs {made['seconds_per_review']:g} seconds of a person's time (SECONDS_PER_REVIEW). AWS's bill is "
        "at list prices; docs/scale.md says what is counted. A time of less than a day counts as one day."
    )
    return found


def sources(made: dict[str, Any]) -> list[str]:
    found = []
    if made["sampled"]:
        found.append(
            f"The model answered {made['sampled']:,} of {images(made['images'])}, drawn at random; counts are scaled "
            "up, with 95% intervals."
        )
    if made["repeated"]:
        found.append(
            f"{made['repeated']:,} classifications were followed by a later one of the same image, which counts."
        )
    if made["errors"]:
        names = counted(made["errors"])
        found.append(f"Set aside: {images(sum(made['errors'].values()))} that ended with an error, {names}.")
    if made["in_batches"]:
        found.append(
            f"{images(made['in_batches'])} of batches: the load counts them as if all batches ran with REVIEW=true."
        )
    if len(made["thresholds"]) > 1:
        each = counted({f"{float(threshold):g}": count for threshold, count in made["thresholds"].items()})
        kept = "" if made["threshold"] is not None else " Each image keeps its own."
        found.append(f"The images were decided at several thresholds: {each}.{kept}")
    served = counted({name or "unknown": count for name, count in made["endpoints"].items()})
    found.append(
        f"Answered by {served}: the log names the endpoint and its variant, not the model. If the model was replaced "
        "in this time, give SINCE= the time of its deployment."
    )
    if made["model"]:
        found += of_the_model(made)
    return found


def of_the_model(made: dict[str, Any]) -> list[str]:
    found, model = [], made["model"]
    if made["without_version"]:
        found.append(f"{images(made['without_version'])} cannot be asked for: their lines name no version.")
    for why, names in model["missing"].items():
        all_of = " (replay.json has all)" if len(names) > EXAMPLES else ""
        found.append(f"Left out, {why}: {images(len(names))}, {examples(names)}{all_of}.")
    if model["unknown_labels"]:
        names = counted(model["unknown_labels"])
        found.append(f"The model does not know the labels {names}: an image of these gets another label.")
    if model.get("other_code"):
        found.append("The model's archive has another version of the inference code, which was not used here.")
    return found


def truths(made: dict[str, Any]) -> list[str]:
    """Which images have a truth."""
    found = []
    for reason, name in STRATA.items():
        stratum = made["after"]["error"]["strata"][reason]
        if not stratum["images"]:
            continue
        about = "about " if made["sampled"] else ""
        text = f"Accepted now, {name}: {about}{images(round(stratum['images']))}; "
        if stratum["reviewed"]:
            bounds = interval((stratum["low"], stratum["high"]))
            text += f"{stratum['wrong']:,} of {stratum['reviewed']:,} decisions find them wrong "
            found.append(f"{text}({share(stratum['error'])}, {bounds}).")
        else:
            found.append(f"{text}nobody has decided on any.")
    if not made["audit_rate"]:
        found.append("AuditRate is 0: no accepted image gets a decision, so their error stays unknown.")
    found.append(
        "Only reviewed images have a truth: those below the threshold, and of the accepted ones those drawn for an "
        "audit. Images count up to the oldest pending one. The model's own confidences need no decisions, but hold "
        "only for images like those on which it was calibrated."
    )
    return found


def show(made: dict[str, Any]) -> None:
    """Print the figures and what they mean."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="right" if name else "left")
    for cells in rows(made):
        table.add_row(*map(escape, cells))
    console.print(f"{title(made)}: {about(made)}", markup=False, soft_wrap=True)
    console.print(moved(made), markup=False, soft_wrap=True)
    console.print()
    console.print(table)
    console.print()
    for sentence in sentences(made):
        console.print(sentence, markup=False, soft_wrap=True)


def render(made: dict[str, Any], pictures: list[Picture]) -> str:
    """The page."""
    return template("replay.html", share=share, interval=interval, error=error).render(
        created=made["created"],
        what=title(made),
        about=about(made),
        made=made,
        rows=rows(made),
        sentences=sentences(made),
        few=MIN_REVIEWED,
        strata=STRATA,
        moves=[(TITLES[move], made["moves"][move], [each for each in pictures if each.move == move]) for move in MOVES],
        charts=Markup(load_chart(made) + error_chart(made)),  # with no text of users
    )


def load_chart(made: dict[str, Any]) -> str:
    curve = made["curve"]
    xs, ys = [each["threshold"] for each in curve], [each["reviews_a_day"]["total"] for each in curve]
    before = made["before"]["reviews_a_day"]["total"]
    x, y = (min(xs), 1.0), (0.0, max(*ys, before, 1e-9) * 1.05)
    inside = charts.line("a", xs, ys, x, y) + marks(made, x, y)
    inside += dot(made["present_threshold"], before, x, y)
    return charts.chart("Reviews a day. The dot: as it was.", ("threshold", *x), ("reviews a day", *y), inside)


def error_chart(made: dict[str, Any]) -> str:
    curve = made["curve"]
    known = [each for each in curve if each["error"] is not None]
    lines = [each["error"] for each in known] + [each["confidences_error"] or 0 for each in curve]
    top = 100 * min(1.0, 1.05 * max(*lines, *(min(each["high"], 2 * max(lines)) for each in known), 0.001))
    x, y = (min(each["threshold"] for each in curve), 1.0), (0.0, top)
    inside = ""
    for has_truth, group in itertools.groupby(curve, lambda each: each["error"] is not None):
        if has_truth:
            inside += decisions(list(group), x, y)
    expected = [each for each in curve if each["confidences_error"] is not None]
    doubts = [100 * each["confidences_error"] for each in expected]
    inside += charts.line("b", [each["threshold"] for each in expected], doubts, x, y) + marks(made, x, y)
    by = "by decisions with its 95% interval (blue), and " if known else "no decisions; "
    caption = f"Error of accepted images, percent: {by}by the model's confidences (orange)."
    return charts.chart(caption, ("threshold", *x), ("percent", *y), inside)


def decisions(points: list[dict[str, Any]], x: tuple[float, float], y: tuple[float, float]) -> str:
    """The line of the error by decisions, and the band of its interval."""
    edge = [(each["threshold"], each["high"]) for each in points] + [
        (each["threshold"], each["low"]) for each in points[::-1]
    ]
    corners = " ".join(f"{charts.across(at, *x):.1f},{charts.up(min(100 * value, y[1]), *y):.1f}" for at, value in edge)
    middle = [100 * each["error"] for each in points]
    line = charts.line("a", [each["threshold"] for each in points], middle, x, y)
    return f'<polygon class="band" points="{corners}"/>{line}'


def marks(made: dict[str, Any], x: tuple[float, float], y: tuple[float, float]) -> str:
    """The present threshold, dashed, and the replayed one."""
    drawn = ""
    lines = [("dash", "present", made["present_threshold"], 14)]
    if made["threshold"] not in (None, made["present_threshold"]):
        lines.append(("asked", "replayed", made["threshold"], 28))
    for style, name, threshold, below in lines:
        across, right = charts.across(threshold, *x), threshold > sum(x) / 2
        drawn += (
            f'<path class="{style}" d="M{across:.1f} {charts.MARGIN}V{charts.HEIGHT - charts.BOTTOM}"/>'
            f'<text class="name" x="{across - 5 if right else across + 5:.1f}" y="{charts.MARGIN + below}" '
            f'text-anchor="{"end" if right else "start"}">{name} {threshold:g}</text>'
        )
    return drawn


def dot(at: float, value: float, x: tuple[float, float], y: tuple[float, float]) -> str:
    return f'<circle class="b" cx="{charts.across(at, *x):.1f}" cy="{charts.up(value, *y):.1f}" r="4.5"/>'
