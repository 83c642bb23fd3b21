"""make dashboard: the stack's dashboard, drawn from what the local stack has collected, to .local/dashboard.png

On AWS CloudWatch draws it. Here its own definition is read from the stack, and each widget drawn a minute a point: our
metrics from the functions' log lines, executions from Step Functions, what is left from the emulator's CloudWatch. A
widget that stays empty shows what the emulator does not emit.
"""

import argparse
import json
import re
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import matplotlib
import numpy as np

from local.command import LOCAL, ROOT, StackError, console, lock, told
from local.emulator.processes import running

matplotlib.use("Agg")
from matplotlib import dates, pyplot

MINUTE = 60
INCH = 0.5  # a unit of the dashboard's grid
EXECUTION_METRICS = {"SUCCEEDED": "ExecutionsSucceeded", "FAILED": "ExecutionsFailed", "ABORTED": "ExecutionsAborted"}


class Points:
    """Values by metric and minute: {(namespace, name, dimensions): {minute: [values]}}."""

    def __init__(self):
        self.values = defaultdict(lambda: defaultdict(list))

    def add(self, namespace, name, dimensions, seconds, value):
        minute = int(seconds // MINUTE) * MINUTE
        self.values[namespace, name, frozenset(dimensions.items())][minute].append(value)


def collect_logged(points, logs, groups):
    """Our metrics: CloudWatch reads them from log lines in its embedded metric format, and so is done here."""
    for group in groups:
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group, filterPattern='"_aws"'):
            for event in page["events"]:
                if not event["message"].startswith('{"_aws"'):
                    continue
                line = json.loads(event["message"])
                for declared in line["_aws"]["CloudWatchMetrics"]:
                    dimensions = {name: line[name] for name in declared["Dimensions"][0]}
                    for metric in declared["Metrics"]:
                        for value in line[metric["Name"]]:
                            seconds = line["_aws"]["Timestamp"] / 1000
                            points.add(declared["Namespace"], metric["Name"], dimensions, seconds, value)


def collect_executions(points, states, machine):
    """What Step Functions would count."""
    dimensions = {"StateMachineArn": machine}
    for page in states.get_paginator("list_executions").paginate(stateMachineArn=machine):
        for row in page["executions"]:
            started = row["startDate"].timestamp()
            points.add("AWS/States", "ExecutionsStarted", dimensions, started, 1)
            if row["status"] in EXECUTION_METRICS:
                stopped = row["stopDate"].timestamp()
                points.add("AWS/States", EXECUTION_METRICS[row["status"]], dimensions, stopped, 1)
                points.add("AWS/States", "ExecutionTime", dimensions, stopped, 1000 * (stopped - started))


def collect_emulated(points, cloudwatch, namespace, name, dimensions):
    """What the emulator's CloudWatch has of a metric, as one value a minute."""
    now = datetime.now(UTC)
    answer = cloudwatch.get_metric_statistics(
        Namespace=namespace, MetricName=name, Dimensions=[{"Name": key, "Value": value} for key, value in dimensions],
        StartTime=now - timedelta(hours=6), EndTime=now, Period=MINUTE, Statistics=["Average", "SampleCount"],
    )  # fmt: skip
    for point in answer["Datapoints"]:
        for _ in range(int(point["SampleCount"])):
            points.add(namespace, name, dict(dimensions), point["Timestamp"].timestamp(), point["Average"])


def statistic(name, values):
    if name.startswith("p"):
        return np.percentile(values, float(name[1:]))
    return {"Sum": sum, "Average": np.mean, "Maximum": max, "SampleCount": len}[name](values)


def lines(points, widget):
    """The lines of a widget: (label, {minute: value}, whether on the right axis)."""
    for *metric, options in widget["metrics"]:
        if "expression" in options:
            namespace, dimension, name, stat = re.fullmatch(
                r"SEARCH\('\{(\w+),(\w+),service\} MetricName=\"(\w+)\".*', '(\w+)'\)", options["expression"]
            ).groups()
            for (other, found, dimensions), values in sorted(points.values.items(), key=str):
                if (other, found) == (namespace, name):
                    yield dict(dimensions)[dimension], reduced(values, stat), False
        else:
            namespace, name, *pairs = metric
            dimensions = frozenset(zip(pairs[::2], pairs[1::2], strict=True))
            values = points.values.get((namespace, name, dimensions), {})
            yield options["label"], reduced(values, options["stat"]), options.get("yAxis") == "right"


def reduced(values, stat):
    return {minute: statistic(stat, values[minute]) for minute in sorted(values)}


def draw_numbers(axes, widget, points):
    """A widget of single values: each over the whole time."""
    axes.axis("off")
    metrics = widget["metrics"]
    for column, (namespace, name, key, value, options) in enumerate(metrics):
        minutes = points.values.get((namespace, name, frozenset({(key, value)})), {})
        values = [each for minute in minutes.values() for each in minute]
        text = f"{statistic(options['stat'], values):.3g}" if values else "--"
        axes.text((column + 0.5) / len(metrics), 0.55, text, ha="center", va="center", fontsize=17)
        axes.text((column + 0.5) / len(metrics), 0.1, options["label"], ha="center", va="center", fontsize=7)


def draw_lines(axes, widget, points, span):
    right = None
    drawn = False
    for label, values, on_the_right in lines(points, widget):
        if not values:
            continue
        if on_the_right and right is None:
            right = axes.twinx()
            right.tick_params(labelsize=6)
        drawn = True
        times = [datetime.fromtimestamp(minute, UTC) for minute in values]
        (right if on_the_right else axes).plot(times, list(values.values()), label=label, marker=".", linewidth=1)
    for line in widget.get("annotations", {}).get("horizontal", []):
        axes.axhline(line["value"], color="tab:red", linewidth=0.8, linestyle="--", label=line["label"])
    axes.set_xlim(*span)
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    limits = widget.get("yAxis", {}).get("left")
    axes.set_ylim(**{"bottom": limits["min"], "top": limits["max"]} if limits else {"bottom": 0})
    if drawn:
        axes.legend(fontsize=5, loc="best", framealpha=0.6)
    else:
        axes.text(0.5, 0.5, "not emitted here", ha="center", va="center", fontsize=7, transform=axes.transAxes)


def draw(body, points, path):
    """The dashboard as a picture, its widgets where the definition puts them."""
    widgets = body["widgets"]
    height = max(widget["y"] + widget["height"] for widget in widgets)
    figure = pyplot.figure(figsize=(24 * INCH, height * INCH * 0.72), dpi=80)
    minutes = [minute for values in points.values.values() for minute in values] or [time.time()]
    span = [datetime.fromtimestamp(edge, UTC) for edge in (min(minutes) - MINUTE, max(minutes) + MINUTE)]
    for widget in widgets:
        x, y, wide, high = (widget[name] for name in ("x", "y", "width", "height"))
        if widget["type"] == "text":
            words = widget["properties"]["markdown"].lstrip("# ")
            figure.text(0.01, 1 - (y + 0.7) / height, words, fontsize=11, weight="bold")
            continue
        box = [(x + 0.9) / 24, 1 - (y + high - 0.9) / height, (wide - 1.4) / 24, (high - 1.9) / height]
        axes = figure.add_axes(box)
        axes.set_title(widget["properties"]["title"], fontsize=8, loc="left")
        if widget["type"] == "log":
            axes.axis("off")
            axes.text(0.5, 0.5, "a query of Logs Insights", ha="center", va="center", fontsize=7)
        elif widget["properties"]["view"] == "singleValue":
            draw_numbers(axes, widget["properties"], points)
        else:
            draw_lines(axes, widget["properties"], points, span)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=LOCAL / "dashboard.png")
    output = parser.parse_args().output
    with told(), lock():
        stack = running(LOCAL / "stack")
        if not stack:
            raise StackError("The local stack is not up: make up, then make run, which gives it something to show.")
        outputs = json.loads((LOCAL / "outputs.json").read_text())
        cloudwatch, logs = stack.client("cloudwatch"), stack.client("logs")
        body = json.loads(cloudwatch.get_dashboard(DashboardName=outputs["DashboardName"])["DashboardBody"])
        points = Points()
        pages = logs.get_paginator("describe_log_groups").paginate()
        groups = [group["logGroupName"] for page in pages for group in page["logGroups"]]
        collect_logged(points, logs, groups)
        collect_executions(points, stack.client("stepfunctions"), outputs["ClassifyImageStateMachineArn"])
        rows = [row for widget in body["widgets"] for row in widget["properties"].get("metrics", []) if len(row) > 1]
        for namespace, name, *pairs, _options in rows:
            if namespace not in ("ImageClassification", "AWS/States"):
                dimensions = list(zip(pairs[::2], pairs[1::2], strict=True))
                collect_emulated(points, cloudwatch, namespace, name, dimensions)
        draw(body, points, output)
        console.print(f"{output.relative_to(ROOT) if output.is_relative_to(ROOT) else output}")


if __name__ == "__main__":
    main()
