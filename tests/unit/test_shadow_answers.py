"""Captured answers of two variants: how they are read, joined, labelled and summed up."""

import base64
import hashlib
import json
from types import SimpleNamespace

import pytest

import captured
import compare
from data_capture import capture_event
from local import shadow
from package import collect as files_of
from package import pack
from review_item import inference_id
from test_data_capture import NOON
from tiny_model import write_tiny_model

JSON, LINES = "application/json", "application/jsonlines"


def predictions(label, probability):
    return json.dumps({"predictions": [{"label": label, "probability": probability}]}).encode()


def event(image, label, probability, name=None):
    return capture_event(NOON, "image/png", image, JSON, predictions(label, probability), name, [JSON])


def digest(image):
    return hashlib.sha256(image).hexdigest()


def review(key, label, version="1", decision="label"):
    return SimpleNamespace(
        s3_bucket="images", s3_key=key, version=version, reviewed_label=label if decision == "label" else None
    )


def test_single_images_and_the_lines_of_batches_are_read():
    lines = b"".join(b'{"image": "%s"}\n' % base64.b64encode(image) for image in (b"one", b"two", b"bad"))
    response = predictions("a", 0.7) + b"\n" + predictions("b", 0.9) + b'\n{"error": "no image"}\n'
    batch = capture_event(NOON, LINES, lines, LINES, response, None, [JSON])
    assert batch["captureData"]["endpointInput"]["encoding"] == "BASE64"
    found = shadow.collect([event(b"three", "c", 0.8, "mine"), batch], [])
    assert found.answers == {digest(b"one"): ("a", 0.7), digest(b"two"): ("b", 0.9), digest(b"three"): ("c", 0.8)}
    assert found.inference_ids == {"mine": digest(b"three")}


def test_an_image_has_its_reviewed_label_by_its_inference_id_unless_reviewers_differ():
    names = {key: inference_id({"s3_bucket": "images", "s3_key": key, "s3_version_id": "1"}) for key in "abcd"}
    digests = {names["a"]: "A", names["b"]: "B", names["c"]: "B", names["d"]: "D"}
    reviews = [review("a", "cat"), review("b", "cat"), review("c", "dog"), review("x", "cat"), review("a", "dog", "2")]
    reviews.append(review("d", None, decision="not_usable"))
    assert shadow.reviewed_labels(SimpleNamespace(reviewed=lambda: reviews), digests) == {"A": "cat"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What make shadow writes about six images, of which two have a label, and one was answered by one model alone."""
    champion = [event(b"%d" % n, "dark", 0.9, f"{n}") for n in range(6)]
    challenger = [event(b"%d" % n, "light" if n < 3 else "dark", 0.6 if n % 2 else 0.8) for n in range(5)]
    found = {"champion": shadow.collect(champion, []), "challenger": shadow.collect(challenger, [])}
    labels = {digest(b"0"): "light", digest(b"3"): "dark"}
    metrics = {"requests": 6.0, "errors": 0.0, "milliseconds": 1.5}
    about = {"place": "the local stack", "since": "2026-01-31T12:00:00+00:00"}
    about |= {"champion": metrics, "challenger": {"requests": 5.0, "errors": 1.0, "milliseconds": None}}
    files = shadow.write(tmp_path, about, found, labels)
    assert sorted(str(path.relative_to(tmp_path)) for path in files.values()) == sorted(
        [f"images/light/{digest(b'0')}", f"images/dark/{digest(b'3')}"]
        + [f"changed/{digest(image)}" for image in (b"1", b"2")]
    )
    shadow.write_images(champion, files)
    return tmp_path


def test_the_summary_counts_agreement_changes_and_crossings_of_the_threshold(folder):
    made = captured.summary(captured.read(folder / "captured.json"), 0.75)
    assert (made["images"], made["agree"], made["changes"]) == (5, 2, [["dark", "light", 3]])
    assert made["crossings"] == [[3, 2], [0, 0]]
    assert made["only"] == {"champion": 1, "challenger": 0}
    assert [row["challenger"]["confidence"] for row in made["changed"]] == [0.8, 0.8, 0.6]


@pytest.mark.parametrize("reviewed", [True, False])
def test_captured_answers_are_compared_like_the_models_own(folder, reviewed, capsys, monkeypatch):
    archives = []
    for name in ("champion", "challenger"):
        archives.append(folder / f"{name}.tar.gz")
        archives[-1].write_bytes(pack(files_of(write_tiny_model(folder / name), [])))
    monkeypatch.setattr("comparison_report.preprocess", lambda data, size: [[[0]]])
    monkeypatch.setattr("report.data_url", lambda image: "data:")  # the bytes above are no images
    data = ["--data", str(folder / "images")] if reviewed else []
    captured_answers = ["--captured", str(folder / "captured.json"), "--output", str(folder), "--threshold", "1.0"]
    status = compare.main([*map(str, archives), *data, *captured_answers])
    assert status == compare.UNDECIDED
    comparison = json.loads((folder / "comparison.json").read_text())
    out = capsys.readouterr().out
    assert comparison["captured"]["agree"] == 2
    assert "1 image answered by the champion alone" in out and "dark -> light: 3 images" in out
    assert "challenger: 5 requests, 1 errors\n" in out
    page = (folder / "report.html").read_text()
    assert "All captured images: 5" in page
    if reviewed:
        (each,) = comparison["sets"]
        assert (each["gained"], each["lost"], each["images"]) == (1, 0, 2)
        assert each["champion"]["cpu_milliseconds"] is None
        assert "CPU ms per image" in out
    else:
        assert comparison["sets"] == []
        assert "Verdict: undecided: no captured image has been reviewed" in out
