import html.parser
import re
from pathlib import Path

import numpy as np
import pytest

import calibration
import charts
import report
from data import Dataset
from documents import ROOT


def write(path, labels, targets, probabilities):
    images = np.random.default_rng(0).random((len(targets), 3, 8, 8), dtype=np.float32)
    dataset = Dataset(images, np.array(targets), labels)
    figures = calibration.summary(np.log(np.array(probabilities)), dataset.targets, 1)
    metadata = {
        "labels": labels,
        "sha256": "ae26c9c3bb81" * 5,
        "pretrained": None,
        "hyperparameters": {"networks": 2, "gradients": 1},
        "input": {"height": 8, "width": 8},
        "temperature": 1.25,
        "figures": {"validation": figures},
        "images": {"validation": dataset.counts()},
        "kept_epochs": [1],
        "epochs": 2,
        "seconds": 3,
        "seed": 0,
    }
    history = [
        {
            "network": network,
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "validation_loss": epoch,
            "validation_accuracy": 0.5,
        }
        for network in (1, 2)
        for epoch in (1, 2)
    ]
    report.write_report(
        path,
        metadata,
        history,
        {"validation": dataset},
        {"validation": np.array(probabilities)},
        Path("<photographs>/train"),
    )
    return path.read_text(encoding="utf-8")


class Tags(html.parser.HTMLParser):
    """Counts the tags and checks that each is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.count = [], {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("meta", "img", "html", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_a_self_contained_page_with_charts_matrix_and_mistakes(tmp_path):
    page = write(tmp_path / "out/report.html", ["cat", "<dog>"], [0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    tags = Tags(page)
    assert tags.open == []
    assert (tags.count["svg"], tags.count["img"], tags.count["table"]) == (4, 1, 3)
    assert "&lt;dog&gt;, classified as cat (0.80)" in page
    assert "<dog>" not in page
    assert re.search(r"Data: &lt;photographs&gt;/train. Trained: 20.* Model: SHA-256 ae26c9c3bb81…", page)
    assert page.count("network 1: pixels") == page.count("network 2: gradients") == 2
    assert "<tr class=marked><td>0.75</td>" in page
    assert "prefers-color-scheme: dark" in page
    assert re.findall(r"https?://|<script|<link|nan", page) == []


def test_models_without_mistakes_and_with_many_classes_have_reports(tmp_path):
    right = np.full((30, 30), 0.001) + np.eye(30) * 0.97
    labels = [f"class {number}" for number in range(30)]
    page = write(tmp_path / "right.html", labels, list(range(30)), right)
    assert "<p>None.</p>" in page
    page = write(tmp_path / "wrong.html", labels, list(range(30)), np.roll(right, 1, axis=1))
    assert "<td>class 28</td><td>class 29</td><td>1</td>" in page


@pytest.mark.parametrize("low, high, ticks", [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 22, [0, 5, 10, 15, 20])])
def test_the_ticks_of_an_axis_are_round_numbers(low, high, ticks):
    assert charts.ticks(low, high) == ticks


def test_the_marked_threshold_is_the_templates_default():
    template = (ROOT / "template.yaml").read_text()
    assert float(re.search(r"Threshold:\n +Type: .*\n +Default: \"?([\d.]+)", template)[1]) == report.THRESHOLD


def test_the_networks_are_named_after_what_they_see():
    metadata = {"pretrained": None, "hyperparameters": {"networks": 2, "gradients": 0}}
    assert report.network_names(metadata) == ["network 1: pixels", "network 2: pixels"]
    pretrained = {"pretrained": "resnet18.pth", "hyperparameters": {"networks": 1, "gradients": 0}}
    assert report.network_names(pretrained) == ["network 1: resnet18.pth"]
