"""make report: render .local/run.json, the record of the last run, as .local/report.html, one self-contained file.

record.py documents the record; page/ has the template, the styles and the script. All data of a run (keys, labels,
causes) is untrusted text: the template escapes it, and the page's Content Security Policy allows only its own script.
"""

import base64
import collections
import hashlib
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from local.command import LOCAL, ROOT, StackError, console, report_errors
from local.report import diagram
from monitoring import drift

PAGE = Path(__file__).parent / "page"
RECORD, REPORT = LOCAL / "run.json", LOCAL / "report.html"
OUTCOMES = {"accepted": "accepted", "review": "for review", "error": "failed"}
BINS = 20
LABELS_SHOWN = 30
CARDS_SHOWN = 12  # of each outcome; the others can be unfolded
PREDICTIONS_SHOWN, PREDICTIONS_IN_DETAIL = 3, 10
PSI_SMALL, PSI_LARGE = 0.1, 0.25  # the conventional limits, see monitoring/drift.py
WORD_BREAKS = r"(?<=[a-z])(?=[A-Z])|(?<=[/_:])(?=[^/_:\s])|(?<=\.)(?=[^./\s]+[./_])"  # as in page.js


def template(name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """A template of page/, which escapes all that it is given and fails on a name that it is not given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": breakable} | filters
    environment.globals["style"] = Markup((PAGE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(name)


def render(record: dict[str, Any]) -> str:
    """The HTML page for a record."""
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    emulated = record["emulated"]
    executions = [view(index, execution, emulated) for index, execution in enumerate(record["executions"])]
    pauses = [row["states"][0]["start"] for row in executions if emulated and row["states"]]
    return template("page.html", seconds=seconds, share=share).render(
        created=record["created"],
        emulated=emulated,
        pause=statistics.median(pauses) if pauses else None,
        warnings=label_warnings(record["training"], executions),
        cards_shown=CARDS_SHOWN,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        outcomes=OUTCOMES,
        executions=executions,
        details=[details(execution) for execution in executions],
        by_outcome=by_outcome(executions),
        summary=summary(executions),
        model=model(record["training"]),
        machine=machine(record["definition"], executions),
        dots=dots(executions),
        histogram=histogram(executions),
        threshold=threshold(executions),
        mix=mix(record["training"], executions),
        errors=errors(executions),
        predictions_shown=PREDICTIONS_SHOWN,
    )


def breakable(name: str) -> Markup:
    """The escaped name with <wbr> where it can wrap: in CamelCase, after / _ and :, and after inner dots."""
    return Markup("<wbr>").join(re.split(WORD_BREAKS, name))


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else ""


def view(index: int, execution: dict[str, Any], emulated: bool = True) -> dict[str, Any]:
    """An execution with its display name, whether its label is right, and the rows of its waterfall."""
    truth, label = execution["truth"], execution["label"]
    return execution | {
        "index": index,
        "name": short_name(execution["key"]),
        "right": None if truth is None or label is None else truth == label,
        "rows": waterfall(execution, emulated),
    }


def short_name(key: str) -> str:
    """The key without the upload prefix and the run's folder."""
    parts = key.split("/", 2)
    return parts[-1] if len(parts) == 3 and all(parts) else key


def waterfall(execution: dict[str, Any], emulated: bool = True) -> list[list[Any]]:
    """Rows [depth, kind, name, start, seconds, error] for the execution, its states and their trace segments.

    The emulator waits for a fixed time before the first state.
    """
    if not execution["states"]:
        return []
    rows = [[0, "execution", "Execution", 0.0, execution["seconds"], execution["error"]]]
    if emulated and (pause := execution["states"][0]["start"]):
        rows.append([1, "pause", "the emulator's pause", 0.0, pause, None])
    traces = list(execution["traces"])
    for state in execution["states"]:
        tries = f" ({state['tries']} tries)" if state["tries"] > 1 else ""
        rows.append([1, "state", state["name"] + tries, state["start"], state["seconds"], state["error"]])
        invoked = [trace for trace in traces if invoked_by(trace, state, execution["started"])]
        for trace in sorted(invoked, key=start_of):
            traces.remove(trace)
            rows += segment_rows(trace, 2, execution["started"])
    for trace in sorted(traces, key=start_of):  # of RecordOutcome, after the execution
        rows += segment_rows(trace, 1, execution["started"])
    return [[*row[:3], *(value and round(value, 4) for value in row[3:5]), row[5]] for row in rows]


def start_of(trace: dict[str, Any]) -> float:
    return min((segment["start"] for segment in trace["segments"]), default=0)


def invoked_by(trace: dict[str, Any], state: dict[str, Any], started: float) -> bool:
    """Whether the state invoked the traced function: they have the same name and the trace starts during the state."""
    begin = started + state["start"]
    return trace["function"] == state["name"] and begin <= start_of(trace) <= begin + (state["seconds"] or 0)


def segment_rows(trace: dict[str, Any], depth: int, started: float) -> list[list[Any]]:
    """The segments of a trace, each under its parent."""
    known = {segment["id"] for segment in trace["segments"]}
    children = collections.defaultdict(list)
    for segment in sorted(trace["segments"], key=lambda segment: segment["start"]):
        children[segment["parent_id"] if segment["parent_id"] in known else None].append(segment)
    rows: list[list[Any]] = []

    def add(parent: str | None, depth: int) -> None:
        for segment in children.pop(parent, []):
            name = f"{trace['function']} function" if parent is None else segment["name"]
            kind = "function" if parent is None else "call"
            error = "error" if segment["error"] else None
            rows.append([depth, kind, name, segment["start"] - started, segment["seconds"], error])
            add(segment["id"], depth + 1)

    add(None, depth)
    return rows


def details(execution: dict[str, Any]) -> dict[str, Any]:
    """What the script shows when the execution is selected."""
    names = ("key", "name", "outcome", "label", "truth", "confidence", "threshold", "error", "cause")
    path = [[state["name"], state["seconds"], state["error"]] for state in execution["states"]]
    predictions = execution["predictions"][:PREDICTIONS_IN_DETAIL]
    return {name: execution[name] for name in (*names, "execution_arn", "rows", "log")} | {
        "predictions": predictions,
        "path": path,
        "traces": traces(execution),
        "duration": seconds(execution["seconds"]),
    }


def traces(execution: dict[str, Any]) -> list[list[str]]:
    """The IDs of the traces, [whose, ID]: the functions of the states share the execution's."""
    found = {trace["trace_id"]: trace["function"] for trace in execution["traces"]}
    return [
        [" of RecordOutcome" if function == "RecordOutcome" else "", trace_id] for trace_id, function in found.items()
    ]


def label_warnings(training: dict[str, Any] | None, executions: list[dict[str, Any]]) -> list[str]:
    """Why no label of this run can be right or wrong: other folders, or another model."""
    predicted = {row["label"] for row in executions if row["label"] is not None}
    if not training or not predicted:
        return []
    labels = training["labels"]
    shown = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
    if not predicted & set(labels):
        names = ", ".join(sorted(predicted)[:10])
        return [f"The predicted labels ({names}) are none of the trained model's ({shown}): another model is deployed."]
    if all(row["truth"] is None for row in executions):
        return [f"No image is in a folder named after one of the model's labels ({shown}), so no label can be checked."]
    return []


def by_outcome(executions: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The executions of each outcome, nearest to their threshold first, those without a confidence last."""

    def distance(execution: dict[str, Any]) -> float:
        confidence, threshold = execution["confidence"], execution["threshold"]
        return abs(confidence - threshold) if confidence is not None and threshold is not None else 2

    found: dict[str, list[dict[str, Any]]] = {outcome: [] for outcome in OUTCOMES}
    for execution in sorted(executions, key=distance):
        found[execution["outcome"]].append(execution)
    return found


def summary(executions: list[dict[str, Any]]) -> dict[str, Any]:
    """The counts of outcomes and of right labels, and the median and slowest time in seconds."""
    counts = collections.Counter(execution["outcome"] for execution in executions)
    known = [execution for execution in executions if execution["right"] is not None]
    accepted = [execution for execution in known if execution["outcome"] == "accepted"]
    review = [execution for execution in known if execution["outcome"] == "review"]
    times = [execution["seconds"] for execution in executions if execution["seconds"] is not None]
    return {
        "images": len(executions),
        **{outcome: counts[outcome] for outcome in OUTCOMES},
        "classified": counts["accepted"] + counts["review"],
        "accepted_known": len(accepted),
        "accepted_right": sum(execution["right"] for execution in accepted),
        "review_known": len(review),
        "review_right": sum(execution["right"] for execution in review),
        "median": statistics.median(times) if times else None,
        "slowest": max(times, default=None),
        "logged": sum(execution["log"] is not None for execution in executions),
        "traced": sum(bool(execution["traces"]) for execution in executions),
    }


def model(training: dict[str, Any] | None) -> dict[str, Any] | None:
    """The facts about the model that the summary shows."""
    if not training:
        return None
    accuracy = {name: figures["accuracy"] for name, figures in training["figures"].items() if name != "train"}
    images = {name: sum(counts.values()) for name, counts in training["images"].items()}
    return {
        "labels": len(training["labels"]),
        "sha256": training["sha256"][:12],
        "accuracy": accuracy,
        "images": images,
    }


def machine(definition: dict[str, Any], executions: list[dict[str, Any]]) -> dict[str, Any]:
    """The diagram of the state machine, the figures of each state and how often each transition was taken."""
    visits = collections.defaultdict(list)
    transitions: collections.Counter[tuple[str, str]] = collections.Counter()
    for execution in executions:
        for state in execution["states"]:
            visits[state["name"]].append(state)
        names = [state["name"] for state in execution["states"]]
        transitions.update(itertools.pairwise(names))
    figures = []
    for name in definition["States"]:
        times = [state["seconds"] for state in visits[name] if state["seconds"] is not None]
        figures.append(
            {
                "name": name,
                "executions": len(visits[name]),
                "median": statistics.median(times) if times else None,
                "slowest": max(times, default=None),
                "errors": sum(state["error"] is not None for state in visits[name]),
                "retried": sum(state["tries"] > 1 for state in visits[name]),
            }
        )
    return {"diagram": diagram.layout(definition), "figures": figures, "transitions": transitions}


def threshold(executions: list[dict[str, Any]]) -> float | None:
    """The most frequent threshold."""
    counts = collections.Counter(row["threshold"] for row in executions if row["threshold"] is not None)
    return counts.most_common(1)[0][0] if counts else None


def dots(executions: list[dict[str, Any]]) -> dict[str, Any]:
    """The dots of the two confidence charts (over time, and sorted), x and y from 0 to 1; y is None for failures."""
    timed = [row for row in executions if row["started"] is not None]
    begin = min((row["started"] for row in timed), default=0)
    span = max((row["started"] for row in timed), default=0) - begin
    over_time = [dot(row, (row["started"] - begin) / (span or 1)) for row in timed]
    ranked = sorted((row for row in executions if row["confidence"] is not None), key=lambda row: -row["confidence"])
    by_rank = [dot(row, (rank + 0.5) / len(ranked)) for rank, row in enumerate(ranked)]
    return {"over_time": over_time, "by_rank": by_rank, "span": span, "ranked": len(ranked)}


def dot(execution: dict[str, Any], x: float) -> dict[str, Any]:
    fields = {name: execution[name] for name in ("index", "name", "outcome", "right", "label")}
    return fields | {"x": round(x, 4), "y": execution["confidence"]}


def histogram(executions: list[dict[str, Any]]) -> dict[str, Any]:
    """The number of confidences in each bin from 0 to 1, by outcome."""
    bins = [dict.fromkeys(OUTCOMES, 0) for _ in range(BINS)]
    for execution in executions:
        if execution["confidence"] is not None:
            bins[min(int(execution["confidence"] * BINS), BINS - 1)][execution["outcome"]] += 1
    return {"bins": bins, "highest": max(sum(counts.values()) for counts in bins)}


def mix(training: dict[str, Any] | None, executions: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The mix of predicted labels beside that of the training data, with the population stability index."""
    predicted = collections.Counter(row["label"] for row in executions if row["label"] is not None)
    if not training or not predicted:
        return None
    reference, images = training["images"]["train"], predicted.total()
    contributions = drift.contributions(reference, predicted)
    index, chance = sum(contributions.values()), drift.by_chance(reference, images)
    labels = [
        {
            "label": label,
            "training": reference.get(label, 0) / sum(reference.values()),
            "predicted": predicted[label] / images,
            "count": predicted[label],
            "contribution": contribution,
        }
        for label, contribution in contributions.items()
    ]
    if len(labels) > LABELS_SHOWN:
        labels = sorted(labels, key=lambda row: -row["contribution"])[:LABELS_SHOWN]
    return {
        "labels": labels,
        "hidden": len(contributions) - len(labels),
        "images": images,
        "index": index,
        "chance": chance,
        "largest": max(max(row["training"], row["predicted"]) for row in labels),
        "verdict": verdict(index, chance),
    }


def verdict(index: float, chance: float) -> str:
    """The index in words."""
    if index <= chance:
        if chance > PSI_LARGE:
            return "Chance alone explains it: with so few images, the index is inconclusive."
        return "Chance alone explains it."
    if index < PSI_SMALL:
        return "More than chance, but a negligible change."
    if index < PSI_LARGE:
        return "More than chance: a moderate change."
    return "More than chance: a large change. The mix of these images differs from the training data's."


def errors(executions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The technical failures, grouped by error and by the state that failed."""
    groups = collections.defaultdict(list)
    for execution in executions:
        if execution["outcome"] == "error":
            state = execution["states"][-1]["name"] if execution["states"] else ""
            groups[execution["error"], state].append(execution)
    found = [{"error": error, "state": state, "executions": rows} for (error, state), rows in groups.items()]
    return sorted(found, key=lambda group: -len(group["executions"]))


def write(record: dict[str, Any]) -> None:
    """Write the record and its page to .local."""
    RECORD.write_text(json.dumps(record) + "\n", encoding="utf-8")
    REPORT.write_text(render(record), encoding="utf-8")


def main() -> None:
    with report_errors():
        try:
            record = json.loads(RECORD.read_text(encoding="utf-8"))
        except OSError:
            raise StackError("There is no run to report on: run make run first.") from None
        REPORT.write_text(render(record), encoding="utf-8")
        console.print(REPORT.relative_to(ROOT), soft_wrap=True)
        has_desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if has_desktop and sys.stdout.isatty() and (opener := shutil.which("xdg-open")):
            streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            subprocess.Popen([opener, str(REPORT)], start_new_session=True, **streams)


if __name__ == "__main__":
    main()
