"""make replay: its options, sentences and page, and the process that runs a model."""

import base64
import io
import json
import re
import sys
from datetime import UTC, datetime

import boto3
import pytest
from botocore.stub import Stubber
from PIL import Image

import retrieve_image
from local import replay as command
from local.command import StackError
from local.report import replay as report
from local.report.replay import Picture
from local.target import Target
from monitoring import replay
from monitoring.replay import Answer
from test_replay_figures import FOUR, item, line, past_of, policy
from tiny_model import write_tiny_model

HOSTILE = "<script>alert(1)</script>"


def made_of(past, answers, asked, items=(), model=None):
    return replay.figures(past, answers, asked, list(items)) | {
        "model": model, "created": "2026-11-26T11:00:00+00:00", "stack": "the local stack", "since": None,
        "classification_usd_a_month": replay.classification_usd(past),
    }  # fmt: skip


@pytest.fixture
def threshold():
    past = past_of(*FOUR, {"outcome": "error", "error": "ImageNotFoundError"}, batches=[line(4, 0.85, HOSTILE)])
    return past, made_of(past, replay.logged(past), policy(0.9), [item(0, "7"), item(4, "1", label=HOSTILE)])


def test_the_figures_are_said_in_words(threshold):
    _, made = threshold
    assert report.title(made) == "threshold 0.9"
    assert report.moved(made) == "accepted → review: 2, review → accepted: 0, accepted with another label: 0"
    rows = {name.strip(): rest for name, *rest in report.rows(made)}
    assert rows["accepted"] == ["3", "1", "-2"] and rows["for review"] == ["2", "4", "+2"]
    assert rows["error of accepted images, by decisions"] == [
        "50.0% (1.3% to 98.7%, few)", "0.0% (0.0% to 97.5%, few)", ""
    ]  # fmt: skip
    text = " ".join(report.sentences(made))
    assert "Set aside: 1 image that ended with an error, ImageNotFoundError (1)." in text
    assert "1 image of batches" in text and "Accepted now, accepted before: 1 image; 0 of 1 decisions" in text
    assert "the log names the endpoint and its variant, not the model" in text
    assert "A review costs 10 seconds of a person's time" in text


def test_what_is_unknown_is_said():
    past = past_of(*FOUR)
    made = made_of(past, replay.logged(past), policy(0.5, audit_rate=0.0))
    text = " ".join(report.sentences(made))
    assert "Accepted now, for review before: 1 image; nobody has decided on any." in text
    assert "AuditRate is 0: no accepted image gets a decision" in text
    assert ["error of accepted images, by decisions", "unknown", "unknown", ""] in report.rows(made)
    assert "no decisions" in report.render(made, []) and json.dumps(made, allow_nan=False)


def test_a_model_says_what_it_could_not_answer():
    past = past_of(*FOUR, line(5, 0.9, threshold=0.6))
    about = {"path": "m", "model_sha256": "0" * 64, "unknown_labels": {"4": 2}, "other_code": True,
             "missing": {"deleted": [f"s3://b/{number}" for number in range(7)]}}  # fmt: skip
    made = made_of(past, {0: Answer("1", 0.9), 1: Answer("7", 0.9)}, policy(sample=[0, 1, 2, 3]), model=about)
    text = " ".join(report.sentences(made))
    assert report.title(made) == "model m (model.onnx 000000000000)"
    assert "The model answered 2 of 5 images, drawn at random" in text
    assert "Left out, deleted: 7 images, s3://b/0, s3://b/1, s3://b/2, s3://b/3, s3://b/4 and 2 more" in text
    assert "several thresholds: 0.75 (4), 0.6 (1). Each image keeps its own." in text
    assert "The model does not know the labels 4 (2)" in text and "another version of the inference code" in text


def test_what_can_be_many_is_shortened():
    past = past_of(*(line(number, 0.9, threshold=(number + 1) / 100) for number in range(8)))
    about = {"path": "m", "model_sha256": "0" * 64, "missing": {}, "unknown_labels": {f"l{n}": 1 for n in range(300)}}
    made = made_of(past, {0: Answer("1", 0.9)}, policy(sample=[0]), model=about)
    text = " ".join(report.sentences(made))
    assert "several thresholds: 0.01 (1), 0.02 (1), 0.03 (1), 0.04 (1), 0.05 (1) and 3 more." in text
    assert "does not know the labels l0 (1), l1 (1), l2 (1), l3 (1), l4 (1) and 295 more:" in text


def test_the_page_is_self_contained_and_escapes_labels(threshold):
    past, made = threshold
    reviews = replay.indexed(past, [item(4, "1", label=HOSTILE)])
    pictures = [
        Picture("accepted_to_review", past.images[number], Answer(past.images[number].label, 0.8), reviews.get(number),
                thumbnail) for number, thumbnail in ((1, None), (3, "data:image/png;base64,x"))
    ]  # fmt: skip
    html = report.render(made, pictures)
    assert "<script" not in html and "http" not in html.replace("http-equiv", "")
    assert (html.count('src="data:image/png;base64,'), html.count("no image")) == (1, 1)
    assert "reviewed: 1<" in html and "present 0.75" in html and "replayed 0.9" in html
    assert "nan" not in re.sub(r"<style>.*</style>", "", html, flags=re.DOTALL).lower()


@pytest.mark.parametrize("confidence", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("asked", [0.01, 0.75, 1.0, None])
def test_a_page_of_one_image_is_complete(confidence, asked):
    past = past_of(line(0, confidence))
    made = made_of(past, replay.logged(past), policy(asked))
    assert "nan" not in re.sub(r"<style>.*</style>", "", report.render(made, []), flags=re.DOTALL).lower()
    assert json.dumps(made, allow_nan=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "What is to be replayed? make replay THRESHOLD=0.9, or MODEL=folder, s3:// URL or hash"),
        (["--threshold", "1.5"], "THRESHOLD=1.5 is out of range: use a number above 0 and at most 1"),
        (["--threshold", "high"], "THRESHOLD=high is not a number: use one above 0 and at most 1"),
        (["--threshold", "0.9", "--since", "then"], "SINCE=then is neither a duration"),
        (["--model", "m", "--images", "0"], "IMAGES=0 is not a number above 0"),
        (["--model", "m", "--seconds-per-review", "nan"], "SECONDS_PER_REVIEW=nan is not a number above 0"),
    ],
)
def test_a_wrong_value_is_a_usage_error_before_a_stack_is_looked_for(options, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["replay", *options])
    monkeypatch.setattr(command, "target", None)
    with pytest.raises(SystemExit):
        command.main()
    assert sentence in capsys.readouterr().out


def test_a_model_answers_files_and_says_which_it_cannot_read(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    Image.new("RGB", (8, 8), (204, 204, 204)).save(tmp_path / "light.png")
    (tmp_path / "text.png").write_text("text")
    with command.answerer(model) as process:
        assert process.about["labels"] == ["dark", "light"]
        answer = process.answer(tmp_path / "light.png")
        assert (answer.label, answer.confidence) == ("light", pytest.approx(0.8))
        assert isinstance(process.answer(tmp_path / "text.png"), str)
        process.process.kill()
        with pytest.raises(StackError, match="MODEL: its process ended"):
            process.answer(tmp_path / "light.png")


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(StackError, match=r"MODEL: .* is no model: .*model\.onnx cannot be read"):
        command.answerer(tmp_path).__enter__()


def test_a_model_must_know_a_label_of_the_log():
    past = past_of(line(0, 0.9), line(1, 0.9, "1"))
    assert command.check_labels(past, ["1", "2"], "m") == {"7": 1}
    with pytest.raises(StackError, match="MODEL=m knows none of the labels in the log: it knows cat, the log has 7, 1"):
        command.check_labels(past, ["cat"], "m")


@pytest.mark.parametrize(
    ("url", "model", "sentence"),
    [
        (
            "s3://b/own.tar.gz",
            "abc0",
            "MODEL=abc0 cannot be looked up: s3://b/own.tar.gz is not the URL of a model in a",
        ),
        ("", "ABC0", "MODEL=ABC0 cannot be looked up: An empty ModelDataUrl is not the URL of a model in a registry"),
        ("", "abc", "MODEL=abc is no folder or file, no s3:// URL and no start of a hash"),
        ("", "s3://b", "s3://b cannot be downloaded: Parameter validation failed"),
    ],
)
def test_a_model_that_cannot_be_looked_up_is_said(url, model, sentence):
    keys = {"region_name": "us-east-1", "aws_access_key_id": "none", "aws_secret_access_key": "none"}
    clients = {name: boto3.client(name, **keys) for name in ("cloudformation", "s3")}
    stack = {"StackName": "s", "CreationTime": datetime.now(UTC), "StackStatus": "CREATE_COMPLETE"}
    stack |= {"Parameters": [{"ParameterKey": "ModelDataUrl", "ParameterValue": url}]}
    with Stubber(clients["cloudformation"]) as stubber, pytest.raises(StackError, match=sentence):
        stubber.add_response("describe_stacks", {"Stacks": [stack]})
        command.local_model(Target("s", {}, clients.__getitem__), model).__enter__()


def test_a_large_image_is_sent_as_the_workflow_sends_it():
    buffer = io.BytesIO()
    Image.effect_noise((600, 500), 90).convert("RGB").save(buffer, "PNG")
    data = buffer.getvalue()
    assert len(command.as_sent(data)) < len(data)
    assert command.as_sent(data) == base64.b64decode(retrieve_image.fit(data, "")["data"])
    assert command.as_sent(b"small") == b"small"
