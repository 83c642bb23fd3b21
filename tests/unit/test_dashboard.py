"""The dashboard as make dashboard draws it: which widgets, where, and that it can be drawn."""

from collections import Counter

import pytest

pytest.importorskip("matplotlib", reason="needs the notebook's packages: make dashboard")

from PIL import Image

from local.report import dashboard
from test_monitoring import dashboard as deployed

DIMENSIONS = {"service": "${AWS::StackName}"}


@pytest.fixture
def points():
    made = dashboard.Points()
    for minute in range(5):
        for number, label in enumerate(("cat", "dog")):
            made.add("ImageClassification", "LabelConfidence", {**DIMENSIONS, "label": label}, 60 * minute, number)
        made.add("ImageClassification", "Images", DIMENSIONS, 60 * minute, 1)
    return made


def test_widgets_that_only_aws_can_fill_are_named_and_the_others_move_together():
    body = deployed()
    widgets, omitted = dashboard.arranged(body["widgets"])
    titles = [widget["properties"]["title"] for widget in widgets if widget["type"] != "text"]
    assert {"Throttles", "Errors", "Images per label", "Executions", "Failures by name", "Batches"} <= set(titles)
    assert {"Waiting for review", "Failure queue", "Cold starts", "Requests", "Latest batches"} <= set(omitted)
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


def test_the_bars_of_the_labels_are_stacked_and_no_tick_repeats(points):
    (widget,) = (each["properties"] for each in deployed()["widgets"]
                 if each["properties"].get("title") == "Images per label")  # fmt: skip
    _, axes = dashboard.pyplot.subplots()
    span = (dashboard.datetime.fromtimestamp(-60, dashboard.UTC), dashboard.datetime.fromtimestamp(300, dashboard.UTC))
    dashboard.draw_lines(axes, widget, points, span)
    first, second = axes.containers
    assert [bar.get_y() for bar in second] == [bar.get_height() for bar in first] == [1] * 5
    axes.figure.canvas.draw()
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(ticks) == len(set(ticks)) > 2
    dashboard.pyplot.close()
