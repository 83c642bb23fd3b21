"""make retrain: what it refuses, what it says of a verdict, and what a failed or interrupted training leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from class_folders import write_classes
from documents import ROOT
from local import retrain
from local.command import StackError, UsageError
from local.retrain import Retrained
from local.target import Target

AWS = Target("wild", {}, lambda service: None)
URL = "s3://models/team/models/0123456789abcdef/model.tar.gz"
PASSED = {"requirement": "better", "verdict": "better", "holds": True, "folder": "heldout", "images": 50}
UNDECIDED = PASSED | {"verdict": "undecided", "holds": False, "images_needed": 240}


def made(*sets):
    return Retrained("0" * 64, URL, {"holds": all(each["holds"] for each in sets), "verdict": "", "sets": list(sets)})


@pytest.fixture
def data(tmp_path):
    for part in retrain.PARTS:
        write_classes(tmp_path / "data" / part, {"dark": 4, "light": 4})
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path, data):
    """The working folder after an earlier run and make retrain's first steps."""
    for name in ("model", "champion"):
        (tmp_path / "work" / name).mkdir(parents=True)
        for file in retrain.MODEL_FILES:
            (tmp_path / "work" / name / file).write_text(f"{name}'s")
    (tmp_path / "work/data").symlink_to(data)
    return tmp_path / "work"


def left(folder):
    names = sorted(path.name for path in folder.iterdir())
    return names, {path.name: path.read_text() for path in (folder / "model").iterdir()}


UNCHANGED = dict.fromkeys(retrain.MODEL_FILES, "model's")


def test_the_data_is_that_of_the_trained_model(tmp_path, data):
    folders = {part: str(data / part) for part in retrain.PARTS}
    (tmp_path / "data.json").write_text(json.dumps(folders))
    assert retrain.default_data(tmp_path) == data
    for other in ({"train": folders["train"]}, folders | {"test": str(tmp_path / "test")}, folders | {"test": "x/t"}):
        (tmp_path / "data.json").write_text(json.dumps(other))
        with pytest.raises(StackError, match="not trained on train, validation and test of one folder: give DATA="):
            retrain.default_data(tmp_path)
    (tmp_path / "data.json").unlink()
    with pytest.raises(StackError, match=r"unknown what the model in .* was trained on: give DATA="):
        retrain.default_data(tmp_path)


def test_data_that_has_not_all_parts_or_would_be_replaced_is_refused(tmp_path, data):
    retrain.check_parts(data, tmp_path / "work")
    with pytest.raises(UsageError, match="is what make retrain wrote: give the original data"):
        retrain.check_parts(data, tmp_path)
    (data / "test").rename(data / "tests")
    with pytest.raises(UsageError, match="has no folder test"):
        retrain.check_parts(data, tmp_path / "work")


def test_data_of_another_model_is_refused_before_anything_is_trained(tmp_path, data):
    (tmp_path / "metadata.json").write_text(json.dumps({"labels": ["light", "dark"]}))
    retrain.check_labels(data, tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"labels": ["dark", *"abcdef"]}))
    with pytest.raises(
        UsageError, match=r"has no images of a, b, c, d, e and 1 more, which the model in service knows"
    ):
        retrain.check_labels(data, tmp_path)


def test_two_commands_do_not_use_one_folder(tmp_path):
    with retrain.locked(tmp_path / "new"), pytest.raises(StackError, match="Another make retrain is using"):
        retrain.locked(tmp_path / "new").__enter__()


def test_a_failed_training_leaves_the_model_of_before(folder, capfd):
    with pytest.raises(StackError, match=r"^training/train\.py failed with status 2: its message is above$"):
        retrain.train(folder / "champion", folder, ["--epochs", "0"])
    assert "--epochs must be at least 1" in capfd.readouterr().err
    assert left(folder) == (["champion", "data", "model"], UNCHANGED)


def test_a_model_comes_back_after_the_command_was_killed(folder):
    replacing = retrain.replaced(folder / "model")
    replacing.__enter__()
    (folder / "model/model.onnx").write_text("half")
    assert left(folder)[1] == {"model.onnx": "half"}
    with pytest.raises(StackError), retrain.replaced(folder / "model"):
        assert not list((folder / "model").iterdir())
        raise StackError
    assert left(folder) == (["champion", "data", "model"], UNCHANGED)
    with retrain.replaced(folder / "model"):
        (folder / "model/model.onnx").write_text("new")
    assert left(folder) == (["champion", "data", "model"], {"model.onnx": "new"})


def test_a_new_model_stays_if_the_deletion_of_the_one_before_is_interrupted(folder, monkeypatch):
    def interrupt(path, **_):
        (path / "metadata.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), retrain.replaced(folder / "model"):
        (folder / "model/model.onnx").write_text("new")
        patched.setattr(shutil, "rmtree", interrupt)
    for _ in range(2):
        with pytest.raises(StackError), retrain.replaced(folder / "model"):
            raise StackError
        assert left(folder) == (["champion", "data", "model"], {"model.onnx": "new"})


def test_a_new_model_stays_if_the_deletion_of_the_one_before_fails(folder, monkeypatch):
    with monkeypatch.context() as patched, retrain.replaced(folder / "model"):
        (folder / "model/model.onnx").write_text("new")
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(StackError), retrain.replaced(folder / "model"):
        raise StackError
    assert left(folder) == (["champion", "data", "model"], {"model.onnx": "new"})


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_ends_and_leaves_the_model_of_before(folder, sent):
    code = "import signal, sys; from pathlib import Path; from local import retrain; from local.command import *; "
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); folder = Path(sys.argv[1])\n"
    code += "with report_errors(): retrain.train(folder / 'champion', folder, ['--epochs', '100000'])"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        for line in process.stdout:
            if line.startswith("Reading"):
                break
        training = children(process.pid)
        os.killpg(process.pid, sent)  # as a terminal does
        printed = process.stdout.read()
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
    lines = [line for line in printed.splitlines() if line and not line.startswith("Training on ")]
    ending = ["Ending; Ctrl-C again kills it"] if sent == signal.SIGINT else []
    assert lines == [*ending, "Interrupted: the model folder is unchanged."]
    assert training and not any(Path(f"/proc/{pid}").exists() for pid in training)
    assert left(folder) == (["champion", "data", "model", "training"], UNCHANGED)


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_challenger_that_passes_is_promoted_with_the_last_line():
    *_, promote = retrain.sentences(AWS, made(PASSED))
    assert promote == "make promote MODEL=0123456789abcdef STACK=wild"


@pytest.mark.parametrize(
    ("one", "help_"),
    [
        (UNDECIDED, "About 190 more held-out images"),
        (UNDECIDED | {"requirement": "not worse"}, "About 190 more test images"),
        (UNDECIDED | {"images_needed": None}, "More images like these would not help"),
        (UNDECIDED | {"verdict": "worse", "images_needed": None}, "Look at the images that it loses"),
    ],
)
def test_a_challenger_that_does_not_pass_says_why_and_what_helps(one, help_):
    why, helps, last = retrain.sentences(AWS, made(PASSED | {"folder": "test"}, one))
    assert why == f"Not promoted: heldout: {one['verdict']}, must be {one['requirement']}."
    assert helps.startswith(help_)
    assert last.endswith('make promote MODEL=0123456789abcdef STACK=wild OVERRIDE="reason"')


def command(*arguments):
    environment = os.environ | {"AWS_EC2_METADATA_DISABLED": "true"}
    return subprocess.run(
        [sys.executable, "-m", "local.retrain", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--remote", "1"], "REMOTE=1 needs STACK"),
        (["--remote", "1", "--stack", "wild", "--bucket", "b"], "REMOTE=1 needs ROLE"),
        (["--arguments", "--epochs '3"], "ARGS=--epochs '3: No closing quotation"),
    ],
)
def test_wrong_variables_are_refused_in_a_sentence(arguments, problem):
    done = command(*arguments)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (1, f"UsageError: {problem}", "")


def test_options_of_the_training_are_checked_before_anything_is_prepared():
    retrain.check_options(["--epochs", "3", "--flip=0.5", "--pretrained", "weights.pth"])
    for arguments, message in (
        (["--epoch", "3"], "ARGS: train.py has no option --epoch, but --train, "),
        (["--epochs", "abc"], "ARGS: --epochs abc is not a number"),
        (["--epochs", "3", "--width"], "ARGS: --width needs a value"),
    ):
        with pytest.raises(UsageError, match=message):
            retrain.check_options(arguments)
