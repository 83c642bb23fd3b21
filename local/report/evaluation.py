"""The figures of an evaluation and its page, .local/evaluation/report.html, one self-contained file."""

import dataclasses
import statistics
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from local.report import record
from local.report.render import template
from monitoring.accuracy import exact_interval
from training import calibration

MAX_CLASSES = 20  # of a confusion matrix; with more, a list of the most common confusions replaces it
MAX_MISTAKES, MAX_ERRORS = 60, 100


@dataclasses.dataclass
class Row:
    """An image: the name of its folder, and its predictions, best first, or the error's name and message."""

    path: Path
    label: str
    predictions: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    error: str | None = None
    cause: str | None = None

    @property
    def predicted(self) -> str | None:
        return self.predictions[0]["label"] if self.predictions else None

    @property
    def confidence(self) -> float | None:
        return self.predictions[0]["probability"] if self.predictions else None


@dataclasses.dataclass
class Figures:
    """Of the classified images, those whose folder is one of the model's labels are `known`, others are `strangers`."""

    labels: list[str]
    known: list[Row]
    strangers: list[Row]
    errors: list[Row]
    threshold: float
    right: int
    interval: tuple[float, float]
    accepted: dict[str, Any]  # calibration.accepted() of the known images, at the stack's threshold
    accepted_interval: tuple[float, float]
    thresholds: list[dict[str, Any]]  # at others, with `strangers`: the number of strangers accepted

    @property
    def mistakes(self) -> list[Row]:
        """The known images with a wrong prediction, the most confident first."""
        return most_confident_first([row for row in self.known if row.predicted != row.label])


def most_confident_first(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -(row.confidence or 0))


def figures(rows: list[Row], threshold: float) -> Figures:
    """The figures of these images. The model's labels are those that occur in its predictions."""
    labels = sorted({prediction["label"] for row in rows for prediction in row.predictions})
    classified = [row for row in rows if row.predictions]
    known = [row for row in classified if row.label in labels]
    strangers = most_confident_first([row for row in classified if row.label not in labels])
    confidences = np.array([row.confidence for row in known], dtype=float)
    right = np.array([row.predicted == row.label for row in known], dtype=bool)

    def at(limit: float) -> dict[str, Any]:
        none = {"threshold": limit, "coverage": 0.0, "accepted": 0, "accuracy": None}
        let_through = sum((row.confidence or 0) >= limit for row in strangers)
        return (calibration.accepted(confidences, right, limit) if known else none) | {"strangers": let_through}

    accepted = at(threshold)
    accepted_right = round((accepted["accuracy"] or 0) * accepted["accepted"])
    return Figures(
        labels=labels,
        known=known,
        strangers=strangers,
        errors=[row for row in rows if not row.predictions],
        threshold=threshold,
        right=int(right.sum()),
        interval=exact_interval(int(right.sum()), len(known)),
        accepted=accepted,
        accepted_interval=exact_interval(accepted_right, accepted["accepted"]),
        thresholds=[at(limit) for limit in sorted({*calibration.THRESHOLDS, threshold})],
    )


def share(value: float) -> str:
    return f"{100 * value:.1f}%"


def interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f}% to {100 * bounds[1]:.1f}%"


def images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def sentences(made: Figures) -> list[str]:
    """The result in a few lines, for the terminal."""
    found = []
    if count := len(made.known):
        found.append(
            f"accuracy {share(made.right / count)}: {made.right} of {count} right "
            f"(95% confidence: {interval(made.interval)})"
        )
        accepted = made.accepted
        found.append(
            f"threshold {made.threshold:g}: accepts {accepted['accepted']} of {count} ({share(accepted['coverage'])})"
        )
        if accepted["accepted"]:
            found[-1] += f", {share(accepted['accuracy'])} of them right ({interval(made.accepted_interval)})"
    if made.strangers:
        names = ", ".join(sorted({row.label for row in made.strangers}))
        found.append(
            f"{images(len(made.strangers))} of no class of the model ({names}): the threshold accepts "
            f"{made.accepted['strangers']}; not counted in the accuracy"
        )
    if made.errors:
        found.append(f"not classified: {images(len(made.errors))}")
    return found


def render(made: Figures, folder: Path, about: str) -> str:
    """The page. folder: that of the class folders. about: where the images come from and what classified them."""
    confused = Counter((row.label, str(row.predicted)) for row in made.known)
    classes = [class_figures(label, made.known) for label in sorted({row.label for row in made.known})]
    pairs = [(pair, count) for pair, count in confused.most_common() if pair[0] != pair[1]]
    return template("evaluation.html", share=share, interval=interval).render(
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        about=about,
        made=made,
        classes=classes,
        confused=confused,
        matrix=len(made.labels) <= MAX_CLASSES,
        pairs=pairs[:MAX_CLASSES],
        strangers=[picture(row, folder) for row in made.strangers[:MAX_MISTAKES]],
        strange=[stranger_figures(label, made) for label in sorted({row.label for row in made.strangers})],
        mistakes=[picture(row, folder) for row in made.mistakes[:MAX_MISTAKES]],
        errors=[picture(row, folder) for row in made.errors[:MAX_ERRORS]],
    )


def class_figures(label: str, known: list[Row]) -> dict[str, Any]:
    rows = [row for row in known if row.label == label]
    right = sum(row.predicted == label for row in rows)
    return {
        "label": label,
        "images": len(rows),
        "right": right,
        "interval": exact_interval(right, len(rows)),
    }


def stranger_figures(label: str, made: Figures) -> dict[str, Any]:
    rows = [row for row in made.strangers if row.label == label]
    return {
        "label": label,
        "images": len(rows),
        "accepted": sum((row.confidence or 0) >= made.threshold for row in rows),
        "median": statistics.median(row.confidence or 0 for row in rows),
        "predicted": Counter(row.predicted for row in rows).most_common(1)[0][0],
    }


def picture(row: Row, folder: Path) -> dict[str, Any]:
    """What the page shows of an image."""
    fields = {name: getattr(row, name) for name in ("label", "predicted", "confidence", "error", "cause")}
    return fields | {
        "name": row.path.relative_to(folder).as_posix(),
        "image": record.thumbnail(row.path.read_bytes()),
    }
