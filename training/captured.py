"""The answers of two models to the same requests, as SageMaker captured them: what differs, without the truth.

local/shadow.py writes the file that `read` reads:

    place, since       where the answers are from, and the time of the first ones
    champion, challenger    {requests, errors, milliseconds}: of CloudWatch; milliseconds: mean, null without a request
    only               {champion, challenger}: images that one of the two answered alone
    answers            {sha256 of the image: {champion: [label, confidence], challenger: [...], file}}
                       file: a path of the image, relative to this file, or null
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("champion", "challenger")


@dataclass(frozen=True)
class Captured:
    """about: all but the answers. answers: by SHA-256, with absolute paths of files."""

    about: dict[str, Any]
    answers: dict[str, dict[str, Any]]


def read(path: Path) -> Captured:
    about = json.loads(path.read_text(encoding="utf-8"))
    answers = about.pop("answers")
    for each in answers.values():
        each["file"] = each["file"] and str(path.parent / each["file"])
    return Captured(about, answers)


def summary(captured: Captured, threshold: float) -> dict[str, Any]:
    """What differs.

    changes: [from, to, images], the most frequent first. crossings: images accepted and for review, by the champion
    (rows) and by the challenger (columns). changed: the images with another label, the challenger's most confident
    first.
    """
    changes: Counter[tuple[str, str]] = Counter()
    crossings = [[0, 0], [0, 0]]
    changed = []
    for each in captured.answers.values():
        (old, old_confidence), (new, new_confidence) = (each[name] for name in NAMES)
        crossings[old_confidence < threshold][new_confidence < threshold] += 1
        if old != new:
            changes[old, new] += 1
            answers = {name: {"label": each[name][0], "confidence": each[name][1]} for name in NAMES}
            changed.append({"file": each["file"], **answers})
    images = len(captured.answers)
    return {
        **captured.about,
        "images": images,
        "agree": images - len(changed),
        "changes": [[old, new, count] for (old, new), count in changes.most_common()],
        "crossings": crossings,
        "changed": sorted(changed, key=lambda row: -row["challenger"]["confidence"]),
    }
