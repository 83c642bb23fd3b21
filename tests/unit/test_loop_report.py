"""The figures and the picture of make loop."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from local.loop import Hour, Images, chalk
from local.report import loop as report

SVG = "{http://www.w3.org/2000/svg}"
ALARM = "AcceptanceRateAlarm"


def hour(stage, right, alarms=()):
    metric = ("ImageClassification", "Confidence", frozenset())
    return Hour(
        stage, [True] * right + [False] * (10 - right), [True] * 5 + [False] * 5, {metric: [0.5, 0.7]}, 5, alarms
    )


@pytest.fixture
def made():
    hours = [hour("before", 10), hour("changed", 2), hour("changed", 1, [ALARM]), hour("promoted", 9)]
    scan = [[0.0, 255.0], [128.0, 64.0]]
    samples = {stage: [scan, scan] for stage in report.STAGES}
    return report.described(hours, samples=samples, limits={"Accepted": 0.5, "Confidence": 0.6}, verdict="better")


def test_the_figures_of_a_stage_are_those_of_all_its_images(made):
    changed = made["stages"]["changed"]
    assert (changed["images"], changed["accuracy"]["right"], changed["accepted"]) == (20, 3, 0.5)
    assert changed["accuracy"]["low"] < 0.15 < changed["accuracy"]["high"]
    assert changed["accepted_accuracy"]["right"] == 3
    assert made["hours"][0]["confidence"] == pytest.approx(0.6)
    assert made["verdict"] == "better"
    assert "  changed    15% (3% to 38%) of 20 images, 50% accepted: chalk on a blackboard" in report.sentences(made)


def test_the_picture_shows_each_stage_and_when_the_alarms_are_on(made):
    picture = ElementTree.fromstring(report.draw(made))
    texts = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
    assert {*report.STAGES, ALARM, "1", "4"} <= set(texts)
    boxes = [box.get("class") for box in picture.iter(f"{SVG}rect")][1:]
    assert boxes == ["band", "band", "fb", "band"]
    changes = [path for path in picture.iter(f"{SVG}path") if path.get("class") == "change"]
    assert len(changes) == 2
    for element in picture.iter():
        for name, largest in (("x", 480), ("x2", 480), ("cx", 480), ("y", 700), ("y2", 700), ("cy", 700)):
            assert 0 <= float(element.get(name, 0)) <= largest


def test_an_hour_is_a_line():
    text = report.line(3, hour("changed", 2, [ALARM, "ConfidenceAlarm"]))
    assert text == (
        "  hour  3: 10 images, 20% right, 50% accepted, 5 reviewed; alarms: AcceptanceRateAlarm, ConfidenceAlarm"
    )


def test_no_scan_is_used_twice_and_only_changed_ones_are_light_on_dark(tmp_path):
    images = Images(tmp_path / "data")
    trained = {path.name for path in (tmp_path / "data").rglob("*.png")}
    ink = images.next(20, tmp_path / "ink", is_changed=False)
    changed = images.next(20, tmp_path / "chalk", is_changed=True)
    names = [path.name for path in (*ink, *changed)]
    assert len({*names, *trained}) == len(names) + len(trained) == 20 + 20 + 600 + 120 + 500
    assert chalk(np.full((8, 8), 255.0), np.random.default_rng(0)).mean() < 20
