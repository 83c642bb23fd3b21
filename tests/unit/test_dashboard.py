"""The dashboard as make dashboard draws it: which widgets, where, and that it can be drawn."""

from collections import Counter

import pytest

pytest.importorskip("matplotlib", reason="needs the notebook's packages: make dashboard")

from PIL import Image

from local.report import dashboard
from monitoring.dashboard import expanded
from test_monitoring import dashboard as deployed

DIMENSIONS = {"service": "${AWS::StackName}"}


@pytest.fixture
def points():
    made = dashboard.Points()
    for minute in range(5):
        for number, label in enumerate(("cat", "dog", "ant")):
            made.add("ImageClassification", "LabelConfidence", {**DIMENSIONS, "label": label}, 60 * minute, number)
        made.add("ImageClassification", "Images", DIMENSIONS, 60 * minute, 1)
    return made


def test_widgets_that_only_aws_can_fill_are_named_and_the_others_move_together():
    body = deployed()
    widgets, omitted = dashboard.arranged(body["widgets"])
    titles = [widget["properties"]["title"] for widget in widgets if widget["type"] != "text"]
    assert {
        "Throttles",
        "Errors",
        "Images per label",
        "Executions",
        "Failures by name",
        "Batches",
        "Waiting for review",
    } <= set(titles)
    assert {"Failure queue", "Cold starts", "Requests", "Latest batches"} <= set(omitted)
    assert Counter(titles + omitted) == Counter(
        widget["properties"]["title"] for widget in body["widgets"] if widget["type"] != "text"
    )
    cells = Counter(
        (x, y)
        for widget in widgets
        for x in range(widget["x"], widget["x"] + widget["width"])
        for y in range(widget["y"], widget["y"] + widget["height"])
    )
    assert max(cells.values()) == 1
    assert max(x for x, _ in cells) < dashboard.COLUMNS


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_drawn_with_and_without_data(points, tmp_path, dark):
    for data in (points, dashboard.Points()):
        dashboard.draw(deployed(), data, tmp_path / "dashboard.png", dark)
        with Image.open(tmp_path / "dashboard.png") as image:
            corner = image.convert("L").getpixel((2, 2))
        assert (corner < 50) == dark


def draw(title, points):
    """The axes of a widget of the stack's dashboard."""
    (widget,) = (each["properties"] for each in deployed()["widgets"] if each["properties"].get("title") == title)
    widget = widget | {"metrics": expanded(widget["metrics"])}
    _, axes = dashboard.pyplot.subplots()
    span = (dashboard.datetime.fromtimestamp(-60, dashboard.UTC), dashboard.datetime.fromtimestamp(300, dashboard.UTC))
    dashboard.draw_lines(axes, widget, points, span)
    axes.figure.canvas.draw()
    dashboard.pyplot.close()
    return axes


def test_the_bars_of_the_labels_are_stacked_in_order_and_no_tick_repeats(points):
    axes = draw("Images per label", points)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ant", "cat", "dog"]
    first, second, _ = axes.containers
    assert [bar.get_y() for bar in second] == [bar.get_height() for bar in first] == [1] * 5
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(ticks) == len(set(ticks)) > 2


def test_counts_have_whole_ticks_from_0(points):
    for name, value in (("Errors", 1), ("Throttles", 0)):
        points.add("AWS/Lambda", name, {"FunctionName": "${ClassifyBatchFunction}"}, 60, value)
    axes = draw("ClassifyBatch", points)
    low, high = axes.get_ylim()
    assert [tick for tick in axes.get_yticks() if low <= tick <= high] == [0, 1]


def test_both_axes_are_in_the_legend_start_at_0(points):
    for name, value in (("PendingReviews", 1), ("OldestPendingReviewAge", 812.5)):
        points.add("ImageClassification", name, {"service": "${AWS::StackName}"}, 60, value)
    axes = draw("Waiting for review", points)
    (_, right) = axes.figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "images",
        "age of the oldest (s) (right)",
    ]
    assert axes.get_ylim()[0] == right.get_ylim()[0] == 0


def test_the_accuracy_is_drawn_with_its_bound_and_the_alarms_limit(points):
    for name, value in (("AcceptedAccuracy", 0.98), ("AcceptedAccuracyLowerBound", 0.94)):
        points.add("ImageClassification", name, DIMENSIONS, 60, value)
    axes = draw("Accuracy of accepted images", points)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["estimate", "lower bound", "alarm"]
    assert axes.get_ylim() == (0, 1)
