"""make dashboard: draw the stack's CloudWatch dashboard from the local stack's data.

Writes .local/dashboard.png and, for dark pages, .local/dashboard-dark.png. On AWS, CloudWatch draws it. Here, its
definition is read from the stack and each widget drawn with one point a minute: the project's own metrics from the
functions' log lines, executions from Step Functions, Lambda's from the emulator's CloudWatch. Widgets that need
metrics or queries which only AWS has are left out, and named at the end.
"""

import argparse
import json
import math
import re
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import matplotlib
from botocore.client import BaseClient

from local.command import LOCAL, ROOT, StackError, console, lock, report_errors
from local.emulator.processes import running
from monitoring.dashboard import expanded
from monitoring.metrics import Metric, embedded_values, statistic

matplotlib.use("Agg")
from matplotlib import dates, pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

MINUTE = 60
UNIT = 0.5  # inches, of the dashboard's grid
SEARCH = re.compile(r"SEARCH\('\{(\w+),(\w+),service\} MetricName=\"(\w+)\".*', '(\w+)'\)")
COLUMNS = 24  # of the dashboard's grid
THOUSANDS = 10_000  # from here on, an axis has 10k instead of 10000, for which there is no room
ROOM = 1.3  # height of a chart, in its highest value: for the legend
COLLECTED = {  # None: every metric of the namespace
    "ImageClassification": None,
    "AWS/States": {
        "ExecutionsStarted", "ExecutionsSucceeded", "ExecutionsFailed", "ExecutionsAborted", "ExecutionTime",
    },
    "AWS/Lambda": {"Invocations", "Errors", "Duration", "Throttles"},
}  # fmt: skip
EXECUTION_METRICS = {"SUCCEEDED": "ExecutionsSucceeded", "FAILED": "ExecutionsFailed", "ABORTED": "ExecutionsAborted"}

Widget = dict[str, Any]


class Points:
    """Values by metric and minute: {(namespace, name, dimensions): {minute: [values]}}."""

    def __init__(self) -> None:
        self.values: dict[Metric, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, namespace: str, name: str, dimensions: dict[str, str], seconds: float, value: float) -> None:
        minute = int(seconds // MINUTE) * MINUTE
        self.values[namespace, name, frozenset(dimensions.items())][minute].append(value)


def collect_logged(points: Points, logs: BaseClient, groups: list[str]) -> None:
    """Collect the project's own metrics from log lines in the embedded metric format, as CloudWatch does."""
    for group in groups:
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group, filterPattern='"_aws"'):
            for event in page["events"]:
                for (namespace, name, dimensions), seconds, value in embedded_values(event["message"]):
                    points.add(namespace, name, dict(dimensions), seconds, value)


def collect_executions(points: Points, states: BaseClient, machine: str) -> None:
    """Collect the metrics that Step Functions emits on AWS."""
    dimensions = {"StateMachineArn": machine}
    for page in states.get_paginator("list_executions").paginate(stateMachineArn=machine):
        for row in page["executions"]:
            started = row["startDate"].timestamp()
            points.add("AWS/States", "ExecutionsStarted", dimensions, started, 1)
            if row["status"] in EXECUTION_METRICS:
                stopped = row["stopDate"].timestamp()
                points.add("AWS/States", EXECUTION_METRICS[row["status"]], dimensions, stopped, 1)
                points.add("AWS/States", "ExecutionTime", dimensions, stopped, 1000 * (stopped - started))


def collect_emulated(
    points: Points, cloudwatch: BaseClient, namespace: str, name: str, dimensions: list[tuple[str, str]]
) -> None:
    """Collect a metric from the emulator's CloudWatch, as the average of each minute."""
    now = datetime.now(UTC)
    response = cloudwatch.get_metric_statistics(
        Namespace=namespace, MetricName=name, Dimensions=[{"Name": key, "Value": value} for key, value in dimensions],
        StartTime=now - timedelta(hours=6), EndTime=now, Period=MINUTE, Statistics=["Average", "SampleCount"],
    )  # fmt: skip
    for point in response["Datapoints"]:
        for _ in range(int(point["SampleCount"])):
            points.add(namespace, name, dict(dimensions), point["Timestamp"].timestamp(), point["Average"])


def lines(points: Points, widget: Widget) -> Iterator[tuple[str, dict[int, float], bool]]:
    """The lines of a widget: (label, {minute: value}, whether on the right axis)."""
    for *metric, options in widget["metrics"]:
        if match := SEARCH.fullmatch(options.get("expression", "")):
            namespace, dimension, name, stat = match.groups()
            labels = {
                dict(dimensions)[dimension]: values
                for (other, found, dimensions), values in points.values.items()
                if (other, found) == (namespace, name)
            }
            for label, values in sorted(labels.items()):
                yield label, reduced(values, stat), False
        else:
            namespace, name, *pairs = metric
            dimensions = frozenset(zip(pairs[::2], pairs[1::2], strict=True))
            values = points.values.get((namespace, name, dimensions), {})
            yield options["label"], reduced(values, options["stat"]), options.get("yAxis") == "right"


def reduced(values: dict[int, list[float]], stat: str) -> dict[int, float]:
    """The statistic of each minute, in chronological order."""
    return {minute: statistic(stat, values[minute]) for minute in sorted(values)}


def is_collected(widget: Widget) -> bool:
    """Whether at least one of a widget's metrics is collected here."""
    for namespace, *names in (metric for metric in widget["metrics"]):
        if isinstance(namespace, dict):
            match = SEARCH.fullmatch(namespace.get("expression", ""))
            namespace, names = (match[1], [match[3]]) if match else ("", [""])
        if namespace in COLLECTED and (COLLECTED[namespace] is None or names[0] in (COLLECTED[namespace] or ())):
            return True
    return False


def draw_numbers(axes: Axes, widget: Widget, points: Points) -> None:
    """Draw a widget of single values, each over the whole time."""
    axes.axis("off")
    metrics = widget["metrics"]
    for column, (namespace, name, key, value, options) in enumerate(metrics):
        minutes = points.values.get((namespace, name, frozenset({(key, value)})), {})
        values = [each for minute in minutes.values() for each in minute]
        text = f"{statistic(options['stat'], values):.3g}" if values else "--"
        axes.text((column + 0.5) / len(metrics), 0.55, text, ha="center", va="center", fontsize=17)
        axes.text((column + 0.5) / len(metrics), 0.1, options["label"], ha="center", va="center", fontsize=8)


def draw_lines(axes: Axes, widget: Widget, points: Points, span: tuple[datetime, datetime]) -> None:
    """Draw a widget of lines, or of stacked bars; without any value it says so."""
    sides, drawn = {False: axes}, defaultdict[bool, list[float]](list)
    below = defaultdict[int, float](float)
    for label, values, on_the_right in lines(points, widget):
        if not values:
            continue
        if on_the_right not in sides:
            sides[True] = axes.twinx()
            sides[True].tick_params(labelsize=7)
        times = [datetime.fromtimestamp(minute, UTC) for minute in values]
        if widget.get("stacked"):
            bottoms = [below[minute] for minute in values]
            axes.bar(times, list(values.values()), width=0.8 * MINUTE / 86400, bottom=bottoms, label=label)
            for minute, value in values.items():
                below[minute] += value
            drawn[False] += below.values()
        else:
            colour = f"C{sum(len(side.get_lines()) for side in sides.values())}"
            name = f"{label} (right)" if on_the_right else label
            sides[on_the_right].plot(times, list(values.values()), label=name, marker=".", linewidth=1, color=colour)
            drawn[on_the_right] += values.values()
    for line in widget.get("annotations", {}).get("horizontal", []):
        axes.axhline(line["value"], color="tab:red", linewidth=0.8, linestyle="--", label=line["label"])
    axes.set_xlim(*span)
    minutes = (span[1] - span[0]).total_seconds() / MINUTE
    locator = (
        dates.MinuteLocator(range(0, 60, max(1, math.ceil(minutes / 6)))) if minutes < 60 else dates.AutoDateLocator()
    )
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    limits = widget.get("yAxis", {}).get("left")
    for on_the_right, side in sides.items():
        counts = all(math.isclose(value, round(value)) for value in drawn[on_the_right])
        side.yaxis.set_major_locator(MaxNLocator(4, integer=counts and not limits))
        highest = max(drawn[on_the_right], default=0) or 1
        if highest >= THOUSANDS:
            side.yaxis.set_major_formatter(EngFormatter(sep=""))
        bounds = (limits["min"], limits["max"]) if limits and not on_the_right else (0, ROOM * highest)
        side.set_ylim(*bounds)
    if drawn[False] or drawn[True]:
        handles = [handle for side in sides.values() for handle in side.get_legend_handles_labels()[0]]
        columns = 2 if widget.get("stacked") else 1
        axes.legend(handles=handles, fontsize=6, loc="best", framealpha=0.6, ncols=columns)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none in this time", ha="center", va="center", fontsize=8, transform=axes.transAxes)


def arranged(widgets: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The widgets that can be drawn here, moved together below their section's title, and the titles of the others."""
    kept: list[dict[str, Any]] = []
    omitted, x, y, row = [], 0, 0, 0
    title = None
    for widget in widgets:
        if widget["type"] == "text":
            title = widget
            continue
        if widget["type"] == "log" or not is_collected(widget["properties"]):
            omitted.append(widget["properties"]["title"])
            continue
        if title or x + widget["width"] > COLUMNS:
            x, y, row = 0, y + row, 0
        if title:
            kept.append(title | {"x": 0, "y": y})
            y, title = y + title["height"], None
        kept.append(widget | {"x": x, "y": y})
        x, row = x + widget["width"], max(row, widget["height"])
    return kept, omitted


def draw(body: dict[str, Any], points: Points, path: Path, dark: bool = False) -> None:
    """Draw the dashboard in its grid, without the widgets that only AWS can fill."""
    widgets, omitted = arranged(body["widgets"])
    height = max((widget["y"] + widget["height"] for widget in widgets), default=0) + 2
    minutes = [minute for values in points.values.values() for minute in values] or [int(time.time())]
    first, last = (datetime.fromtimestamp(edge, UTC) for edge in (min(minutes) - MINUTE, max(minutes) + MINUTE))
    with pyplot.style.context("dark_background" if dark else "default"):
        figure = pyplot.figure(figsize=(COLUMNS * UNIT, height * UNIT * 0.72), dpi=100)
        for widget in widgets:
            x, y, wide, high = (widget[name] for name in ("x", "y", "width", "height"))
            if widget["type"] == "text":
                title = widget["properties"]["markdown"].lstrip("# ")
                figure.text(0.01, 1 - (y + 0.7) / height, title, fontsize=12, weight="bold")
                continue
            box = [(x + 0.9) / COLUMNS, 1 - (y + high - 0.9) / height, (wide - 1.4) / COLUMNS, (high - 1.9) / height]
            axes = figure.add_axes(box)
            axes.set_title(widget["properties"]["title"], fontsize=9, loc="left")
            if widget["properties"]["view"] == "singleValue":
                draw_numbers(axes, widget["properties"], points)
            else:
                draw_lines(axes, widget["properties"], points, (first, last))
        if omitted:
            text = textwrap.fill(f"Only on AWS: {'; '.join(omitted)}", 160)
            figure.text(0.01, 0.5 / height, text, fontsize=8, va="bottom")
        figure.savefig(path)
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=LOCAL / "dashboard.png")
    output = parser.parse_args().output
    with report_errors(), lock():
        stack = running(LOCAL / "stack")
        if not stack:
            raise StackError("The local stack is not running: run make up, then make run, which gives it data to show.")
        outputs = json.loads((LOCAL / "outputs.json").read_text())
        cloudwatch, logs = stack.client("cloudwatch"), stack.client("logs")
        body = json.loads(cloudwatch.get_dashboard(DashboardName=outputs["DashboardName"])["DashboardBody"])
        points = Points()
        pages = logs.get_paginator("describe_log_groups").paginate()
        groups = [group["logGroupName"] for page in pages for group in page["logGroups"]]
        collect_logged(points, logs, groups)
        for machine in ("ClassifyImageStateMachineArn", "ClassifyBatchStateMachineArn"):
            collect_executions(points, stack.client("stepfunctions"), outputs[machine])
        for widget in body["widgets"]:
            widget["properties"]["metrics"] = expanded(widget["properties"].get("metrics", []))
        rows = [row for widget in body["widgets"] for row in widget["properties"]["metrics"] if len(row) > 1]
        for namespace, name, *pairs, _options in rows:
            if namespace not in ("ImageClassification", "AWS/States"):
                dimensions = list(zip(pairs[::2], pairs[1::2], strict=True))
                collect_emulated(points, cloudwatch, namespace, name, dimensions)
        for path, dark in ((output, False), (output.with_stem(f"{output.stem}-dark"), True)):
            draw(body, points, path, dark)
            console.print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


if __name__ == "__main__":
    main()
