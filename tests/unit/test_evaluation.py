"""The evaluation of a deployed model: its figures, its page and its input."""

import os
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from scipy.stats import binomtest

from local import evaluate
from local.command import StackError
from local.report import evaluation
from local.report.evaluation import Row
from local.target import Target
from monitoring.accuracy import exact_interval

HOSTILE = "<script>alert(1)</script>"


def row(path, label, predicted, confidence):
    others = {"cat", "dog", "fox"} - {predicted}
    rest = [{"label": other, "probability": (1 - confidence) / 2} for other in sorted(others)]
    return Row(path, label, [{"label": predicted, "probability": confidence}, *rest])


@pytest.fixture
def rows(tmp_path):
    image, text = tmp_path / "image.png", tmp_path / "text.png"
    Image.new("RGB", (8, 8)).save(image)
    text.write_text("text")
    return [
        *[row(image, "cat", "cat", 0.9)] * 8,
        row(image, "dog", "cat", 0.8),
        row(image, "dog", "dog", 0.6),
        row(image, "fox", "dog", 0.95),
        row(image, HOSTILE, "fox", 0.99),
        row(image, HOSTILE, "fox", 0.4),
        Row(text, "cat", error="UnsupportedImageError", cause="it is no image"),
    ]


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 10), (355, 358), (0, 20), (20, 20), (9_876, 10_000)])
def test_the_interval_is_the_exact_one(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, "exact")
    assert exact_interval(right, count) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_without_images_the_interval_says_nothing():
    assert exact_interval(0, 0) == (0, 1)


def test_strangers_and_errors_do_not_count_in_the_accuracy(rows):
    made = evaluation.figures(rows, 0.75)
    assert (len(made.known), made.right, len(made.strangers), len(made.errors)) == (11, 9, 2, 1)
    assert made.labels == ["cat", "dog", "fox"]
    assert made.accepted == {
        "threshold": 0.75, "accepted": 10, "coverage": 10 / 11, "accuracy": pytest.approx(0.8), "strangers": 1
    }  # fmt: skip
    assert [(row.label, row.confidence) for row in made.mistakes + made.strangers] == [
        ("fox", 0.95), ("dog", 0.8), (HOSTILE, 0.99), (HOSTILE, 0.4),
    ]  # fmt: skip


def test_the_sentences_name_every_count(rows):
    assert evaluation.sentences(evaluation.figures(rows, 0.75)) == [
        "accuracy 81.8%: 9 of 11 right (95% confidence: 48.2% to 97.7%)",
        "threshold 0.75: accepts 10 of 11 (90.9%), 80.0% of them right (44.4% to 97.5%)",
        f"2 images of no class of the model ({HOSTILE}): the threshold accepts 1; not counted in the accuracy",
        "not classified: 1 image",
    ]


def test_the_page_is_self_contained_and_escapes_names(rows, tmp_path):
    html = evaluation.render(evaluation.figures(rows, 0.75), tmp_path, HOSTILE)
    assert "<script" not in html and "http" not in html.replace("http-equiv", "")
    assert html.count('src="data:image/png;base64,') == 4
    assert "it is no image" in html and "0.75 <small>the stack's</small>" in html


@pytest.mark.parametrize("classes", [2, 25])
def test_a_page_of_nothing_but_mistakes_or_strangers_is_complete(tmp_path, classes):
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    wrong = [Row(image, f"{n}", [{"label": f"{n + 1}", "probability": 1.0}, {"label": f"{n}", "probability": 0.0}])
             for n in range(classes)]  # fmt: skip
    strangers = [Row(image, "stranger", each.predictions) for each in wrong]
    for rows in (wrong, strangers, [Row(image, "0", error="ImageTooLargeError", cause="too large")]):
        html = evaluation.render(evaluation.figures(rows, 0.75), tmp_path, "about")
        assert "None" not in html.replace("None.", "")


def test_images_are_found_in_the_folders_of_their_labels(tmp_path):
    for name in ("cat/a.png", "cat/more/b.png", "dog/c.jpg", ".cache/d.png", "dog/.DS_Store", "e.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [(f"{path.relative_to(tmp_path)}", label) for path, label in evaluate.labelled_images(tmp_path)]
    assert found == [("cat/a.png", "cat"), ("cat/more/b.png", "cat"), ("dog/c.jpg", "dog")]
    with pytest.raises(StackError, match="needs a folder of images, one for each class"):
        evaluate.labelled_images(tmp_path / "cat/more")
    with pytest.raises(StackError, match="is not a folder"):
        evaluate.labelled_images(Path("nowhere"))


def test_folders_are_read_as_training_reads_them(tmp_path):
    composed, decomposed = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    for name in (f"{decomposed}/a.png", f"{composed}/b.png", "café/Thumbs.db", "__MACOSX/x/c.png", "@eaDir/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = evaluate.labelled_images(tmp_path)
    assert [(path.name, label) for path, label in found] == [("a.png", composed), ("b.png", composed)]
    split = tmp_path / "split"
    for name in ("train/cat/a.png", "val/cat/b.png"):
        (split / name).parent.mkdir(parents=True)
        (split / name).touch()
    with pytest.raises(StackError, match="is split into train and val: pass these folders"):
        evaluate.labelled_images(split)


def test_a_file_name_that_is_not_utf_8_is_escaped_and_written(tmp_path):
    image = tmp_path / os.fsdecode(b"cat/\xff.png")
    image.parent.mkdir()
    image.write_bytes(b"")
    uploaded = []
    s3 = SimpleNamespace(upload_file=lambda path, bucket, key: uploaded.append(key))
    ended = {"status": "FAILED", "error": "E", "cause": "c", "input": "{}"}
    ended |= {"startDate": datetime.now(UTC), "stopDate": datetime.now(UTC), "executionArn": "arn"}
    states = SimpleNamespace(
        start_execution=lambda **_: {"executionArn": "arn"}, describe_execution=lambda executionArn: ended
    )
    outputs = {"ImageBucketName": "images", "ClassifyImageStateMachineArn": "arn"}
    stack = Target("stack", outputs, {"s3": s3, "stepfunctions": states}.get)
    row = Row(image, "cat", **evaluate.through_the_workflow(stack, tmp_path)(image))
    assert uploaded[0].endswith("/cat/\\udcff.png")
    evaluate.write_csv([row], tmp_path, tmp_path / "rows.csv")
    assert "cat/\\udcff.png,cat" in (tmp_path / "rows.csv").read_text()


def test_an_error_of_one_request_ends_the_evaluation(tmp_path):
    def refuse(path):
        raise StackError(f"{path.name} is refused")

    with pytest.raises(StackError, match="is refused"):
        evaluate.evaluate([(tmp_path / "image.png", "cat")], refuse, 2)
