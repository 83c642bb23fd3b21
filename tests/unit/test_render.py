"""The page of a run: its content, valid HTML, self-contained, and no script but its own."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from documents import ROOT
from local.report import render
from recorded import record

VOID = {"meta", "link", "img", "input", "br", "hr", "wbr"}
SVG_EMPTY = {"line", "circle", "path", "rect"}  # written as <line/> in the template
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}&amp;"


class Page(HTMLParser):
    """The elements of a page with their attributes; AssertionError for unclosed and wrongly nested ones."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        assert tag in SVG_EMPTY

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def html():
    return render.render(record(25))


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def with_one(**changes):
    """A record of one execution with these changes."""
    made = record(1)
    made["executions"][0] |= changes
    return made


def test_every_execution_has_a_card_a_row_and_details():
    html = render.render(record(1000))
    page = Page(html)
    links = [f"#execution-{number}" for number in range(1000)]
    assert {link["href"] for link in page.of("a") if "card" in link.get("class", "")} == set(links)
    assert [f"#{row['id']}" for row in page.of("tr") if "id" in row] == links
    details = json.loads(re.search(r'id="details">(.*?)</script>', html, re.DOTALL)[1])
    assert [row["key"] for row in details] == [row["key"] for row in record(1000)["executions"]]


def test_ids_are_unique_and_every_reference_has_a_target(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {link["href"].removeprefix("#") for link in page.of("a")}
    labels = {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert (links | labels) - set(ids) == set()


def test_the_page_loads_nothing_from_elsewhere(html, page):
    assert all(image["src"].startswith("data:image/") for image in page.of("img"))
    assert [link["href"] for link in page.of("link")] == ["data:,"]
    assert all(link["href"].startswith("#") for link in page.of("a"))
    assert [attributes for attributes in page.of("script") if "src" in attributes] == []
    assert re.findall(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|eval\(", html) == []
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")


@pytest.mark.parametrize("field", ["key", "label", "cause", "error", "truth", "execution_arn"])
def test_hostile_text_stays_text(field):
    changes = {field: HOSTILE} | ({"outcome": "error"} if field in ("cause", "error") else {})
    made = with_one(**{name: f"uploads/run/{text}" if name == "key" else text for name, text in changes.items()})
    made["executions"][0]["log"][field] = HOSTILE
    page = Page(render.render(made))
    assert len(page.of("script")) == 2
    assert [image for image in page.of("img") if not image["src"].startswith("data:")] == []
    assert [name for _, attributes in page.elements for name in attributes if name.startswith("on")] == []
    if field != "execution_arn":  # only the script shows it
        assert HOSTILE in "".join(page.text) + "".join(str(attributes) for _, attributes in page.elements)


def test_hostile_names_of_states_and_labels_stay_text():
    made = with_one(predictions=[{"label": HOSTILE, "probability": 0.9}])
    made["definition"] = {"StartAt": HOSTILE, "States": {HOSTILE: {"Type": "Succeed"}}}
    made["training"] = made["training"] | {"images": made["training"]["images"] | {"train": {HOSTILE: 10}}}
    page = Page(render.render(made))
    assert len(page.of("script")) == 2
    assert [name for _, attributes in page.elements for name in attributes if name.startswith("on")] == []


def test_the_page_is_accessible_to_screen_readers(page):
    assert all(cell.get("scope") in ("col", "row") for cell in page.of("th"))
    assert all("alt" in image for image in page.of("img"))
    assert all(svg.get("role") == "img" and svg["aria-label"] for svg in page.of("svg"))
    assert all(link["aria-label"] for link in page.of("a") if "card" in link.get("class", ""))
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert {"header", "nav", "main"} <= {tag for tag, _ in page.elements}
    assert page.of("html") == [{"lang": "en"}]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("UnsupportedImageError", ["Unsupported", "Image", "Error"]),
        ("THRESHOLD_CONFIDENCE_NOT_MET", ["THRESHOLD_", "CONFIDENCE_", "NOT_", "MET"]),
        (
            "s3://images/20261124-090000/a.b/seven.png",
            ["s3://", "images/", "20261124-090000/", "a.", "b/", "seven.png"],
        ),
        ("runtime.sagemaker InvokeEndpoint", ["runtime.sagemaker Invoke", "Endpoint"]),
        ("</b>aB", ["&lt;/", "b&gt;a", "B"]),
        ("photograph", ["photograph"]),
    ],
)
def test_a_name_is_escaped_and_can_wrap_only_between_its_words(name, lines):
    assert render.breakable(name).split("<wbr>") == lines


def test_no_style_breaks_words_where_another_break_is_possible():
    css = (ROOT / "local/report/page/page.css").read_text()
    assert re.findall(r"overflow-wrap: anywhere|word-break|hyphens: auto", css) == []


def luminance(colour):
    if len(colour) == 4:
        colour = "#" + "".join(digit * 2 for digit in colour[1:])
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
@pytest.mark.parametrize("name", ["text", "quiet", "accepted", "review", "error", "link"])
def test_text_has_the_contrast_of_wcag_aa(scheme, name):
    css = (ROOT / "local/report/page/page.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#\w+)", re.findall(r":root \{[^}]*--page[^}]*\}", css)[scheme]))
    for ground in ("page", "surface"):
        light, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_summary_counts_each_outcome_and_the_correct_labels():
    made = record(25)
    made["executions"][0]["truth"] = "9"
    made["executions"][1]["truth"] = None
    made["executions"][24]["truth"] = None
    executions = [render.view(number, row) for number, row in enumerate(made["executions"])]
    summary = render.summary(executions)
    assert summary == {
        "images": 25,
        "accepted": 20,
        "review": 4,
        "error": 1,
        "classified": 24,
        "accepted_known": 19,
        "accepted_right": 18,
        "review_known": 4,
        "review_right": 4,
        "median": pytest.approx(0.65),
        "slowest": pytest.approx(0.85),
        "logged": 25,
        "traced": 25,
    }


def test_rejects_are_in_every_chart_and_failures_in_the_time_chart():
    executions = [render.view(number, row) for number, row in enumerate(record(25)["executions"])]
    dots, histogram = render.dots(executions), render.histogram(executions)
    assert [dot["outcome"] for dot in dots["over_time"]].count("review") == 4
    assert [dot["outcome"] for dot in dots["by_rank"]].count("review") == 4
    assert [dot["y"] for dot in dots["over_time"] if dot["outcome"] == "error"] == [None]
    assert sum(counts["review"] for counts in histogram["bins"]) == 4
    assert sum(counts["accepted"] for counts in histogram["bins"]) == 20


def test_a_waterfall_has_the_segments_of_each_try_under_their_state():
    states = [
        {"name": "RetrieveImage", "start": 0.2, "seconds": 1.0, "tries": 2, "error": None},
        {"name": "ClassifyImage", "start": 1.2, "seconds": 0.5, "tries": 1, "error": "EndpointResponseError"},
    ]

    def trace(function, start, *segments):
        return {
            "trace_id": "1-1",
            "function": function,
            "segments": [
                {"id": id, "parent_id": parent, "name": name, "start": 100 + start + at, "seconds": 0.1, "error": error}
                for at, (id, parent, name, error) in enumerate(segments)
            ],
        }

    second = trace("RetrieveImage", 0.9, ("c", "unknown", "lambda_handler", False))
    handler = trace("RetrieveImage", 0.3, ("a", "unknown", "lambda_handler", True), ("b", "a", "s3 GetObject", True))
    recorded = trace("RecordOutcome", 1.8, ("d", "unknown", "lambda_handler", False))
    execution = record(1)["executions"][0] | {
        "started": 100,
        "seconds": 1.7,
        "error": "EndpointResponseError",
        "states": states,
        "traces": [recorded, second, handler],
    }
    assert render.waterfall(execution) == [
        [0, "execution", "Execution", 0.0, 1.7, "EndpointResponseError"],
        [1, "pause", "the emulator's pause", 0.0, 0.2, None],
        [1, "state", "RetrieveImage (2 tries)", 0.2, 1.0, None],
        [2, "function", "RetrieveImage function", 0.3, 0.1, "error"],
        [3, "call", "s3 GetObject", 1.3, 0.1, "error"],
        [2, "function", "RetrieveImage function", 0.9, 0.1, None],
        [1, "state", "ClassifyImage", 1.2, 0.5, "EndpointResponseError"],
        [1, "function", "RecordOutcome function", 1.8, 0.1, None],
    ]


def test_cards_beyond_the_first_can_be_unfolded_and_none_is_cut():
    html = render.render(record(50))
    assert "Show 28 more" in html  # of 40 accepted
    assert "more</summary>" not in render.render(record(12))
    css = (ROOT / "local/report/page/page.css").read_text()
    assert not re.search(r"\.cards \{[^}]*(max-height|overflow)", css)


def test_an_execution_has_its_trace_and_that_of_record_outcome_named_once():
    execution = record(1)["executions"][0]
    own = {"trace_id": "1-2", "function": "RecordOutcome", "segments": []}
    found = render.traces(execution | {"traces": [*execution["traces"], own]})
    assert found == [["", execution["traces"][0]["trace_id"]], [" of RecordOutcome", "1-2"]]


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({}, []),
        ({"truth": None}, ["No image is in a folder named after one of the model's labels (0, 1, 2,"]),
        ({"label": "cat", "truth": None}, ["The predicted labels (cat) are none of the trained model's (0, 1, 2,"]),
        ({"label": None, "truth": None}, []),
    ],
)
def test_labels_that_cannot_be_checked_are_pointed_out(changes, warnings):
    made = record(20)
    for execution in made["executions"]:
        execution |= changes
    html = " ".join(Page(render.render(made)).text)
    found = render.label_warnings(made["training"], made["executions"])
    assert [warning[: len(start)] for warning, start in zip(found, warnings, strict=True)] == warnings
    assert all(warning in html for warning in found)


def test_technical_failures_are_grouped_by_error_and_state():
    executions = [render.view(number, row) for number, row in enumerate(record(50)["executions"])]
    executions[24]["states"] = []
    groups = [(group["error"], group["state"], len(group["executions"])) for group in render.errors(executions)]
    assert groups == [("UnsupportedImageError", "", 1), ("UnsupportedImageError", "RetrieveImage", 1)]


@pytest.mark.parametrize(
    ("index", "chance", "phrase"),
    [
        (0.3, 0.5, "with so few images"),
        (0.05, 0.06, "Chance alone explains it."),
        (0.05, 0.01, "negligible"),
        (0.2, 0.1, "moderate"),
        (0.6, 0.5, "large"),
    ],
)
def test_the_verdict_compares_the_index_with_chance(index, chance, phrase):
    assert phrase in render.verdict(index, chance)


NOTHING = {
    "label": None,
    "confidence": None,
    "threshold": None,
    "predictions": [],
    "seconds": None,
    "execution_arn": None,
    "started": None,
    "truth": None,
    "thumbnail": None,
    "states": [],
    "traces": [],
    "log": None,
}


@pytest.mark.parametrize(
    "made",
    [
        record(0),
        with_one(**NOTHING, outcome="error", error="ExecutionNotFinished", cause=""),
        with_one(**NOTHING, outcome="error", error=None, cause=None),
        with_one(states=[], traces=[], log=None),
        with_one(states=[], seconds=None),
        record(25) | {"training": None},
        record(25) | {"emulated": False},
        record(25) | {"definition": {"StartAt": "Done", "States": {"Done": {"Type": "Succeed"}}}},
    ],
    ids=["no image", "not finished", "no error", "no trace", "no history", "no model", "on AWS", "another machine"],
)
def test_missing_data_is_omitted(made):
    page = Page(render.render(made))
    assert len(page.of("section")) == 8
    assert "None" not in " ".join(page.text).replace("None.", "")


def test_without_a_run_the_command_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(render, "RECORD", tmp_path / "run.json")
    with pytest.raises(SystemExit) as left:
        render.main()
    assert left.value.code == 1
    assert "run make run first" in capsys.readouterr().out
