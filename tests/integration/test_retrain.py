"""make retrain on the deployed stack: reviewed images -> a challenger beside the champion in the bucket."""

import hashlib
import io
import json
import subprocess
import sys

import pytest
from PIL import Image, ImageOps

from local import registry
from local.command import ROOT, StackError
from local.deployment import STACK_NAME
from local.emulator.processes import clean_environment
from local.retrain import retrain, sentences
from local.target import Target
from reviewing import Desk
from workflow import DIGITS

QUICK = ["--epochs", "3"]


@pytest.fixture
def found(workflow):
    return Target(STACK_NAME, workflow.outputs, workflow.stack.client, workflow.stack)


@pytest.fixture
def desk(workflow):
    desk = Desk(workflow)
    yield desk
    desk.clear()


def inverted(path):
    """A scan of a digit, light on dark: the model in service has never seen one."""
    image = io.BytesIO()
    ImageOps.invert(Image.open(path).convert("L")).save(image, "PNG")
    return image.getvalue()


def review(desk, path, confidence=0.9):
    """Put an inverted digit up for review, with an AuditRate of 1, and decide for its label."""
    label = path.parent.name
    key = desk.add(f"{label}-{path.name}", confidence, data=inverted(path), accepted=confidence >= 0.75)
    return desk.table.decide(desk.table.get(*key), "maria", "label", label)


def digits(number, part="test"):
    """So many of each label."""
    return [path for label in range(10) for path in sorted((DIGITS / part / str(label)).iterdir())[:number]]


def test_reviewed_images_become_a_challenger_in_the_bucket(found, desk, workflow, tmp_path, capfd):
    for path in digits(15):
        review(desk, path)
    pending = desk.add("pending")
    made = retrain(found, DIGITS, tmp_path / "retrain", QUICK)
    desk.remove(*pending)
    printed = capfd.readouterr().out
    assert f"{tmp_path}/retrain/model: model.onnx, metadata.json" in printed
    assert f"{tmp_path}/retrain/." not in printed  # a temporary folder

    data = tmp_path / "retrain/data"
    manifest = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    assert len(manifest) == 150 and {entry["reason"] for entry in manifest} == {"audit"}
    held_out = {path.relative_to(data).as_posix() for path in (data / "heldout").rglob("*.png")}
    assert held_out == {entry["file"] for entry in manifest if entry["file"].startswith("heldout/")}
    assert 20 < len(held_out) < 70  # of 45 on average
    again = [sys.executable, "training/prepare.py", "reviewed", "--manifest", data / "manifest.jsonl"]
    variables = clean_environment() | workflow.stack.aws_variables
    subprocess.run([*again, "--output", tmp_path / "again"], cwd=ROOT, env=variables, check=True)
    assert {entry["file"]: (data / entry["file"]).read_bytes() for entry in manifest} == {
        path.relative_to(tmp_path / "again").as_posix(): path.read_bytes() for path in tmp_path.glob("again/*/*/*.png")
    }

    heldout, original = made.comparison["sets"]
    assert (heldout["requirement"], heldout["images"]) == ("better", len(held_out))
    assert (original["requirement"], original["folder"]) == ("not worse", str(data / "test"))
    assert heldout["verdict"] == "better" and heldout["champion"]["accuracy"] < 0.5
    assert made.holds == (original["verdict"] in ("better", "not worse"))

    bucket, prefix, name = registry.split(made.url)
    assert name != registry.split(registry.in_service(found))[2]
    (listed,) = [each for each in registry.list_models(workflow.s3, bucket, prefix) if each.url == made.url]
    assert listed.comparison == made.comparison and listed.sha256 == made.sha256
    assert listed.metadata["hyperparameters"]["epochs"] == 3
    lineage = listed.metadata["lineage"]
    assert lineage["parent"] == made.comparison["champion"]["model_sha256"]
    assert lineage["data"]["test"] == original["sha256"]
    assert lineage["manifest_sha256"] == hashlib.sha256((data / "manifest.jsonl").read_bytes()).hexdigest()
    assert f"make promote MODEL={name}" in sentences(found, made)[-1]


def test_too_few_reviews_are_refused_before_the_training(found, desk, tmp_path, capfd):
    def refused(message):
        with pytest.raises(StackError, match=message):
            retrain(found, DIGITS, tmp_path, QUICK)
        assert not (tmp_path / "model").exists()
        return capfd.readouterr().err

    assert "no image has been given a label yet: make review" in refused("prepare.py failed with status 1")
    one, *others = digits(1)
    review(desk, one, confidence=0.5)
    assert "no reviewed image is an audit" in refused("prepare.py failed with status 1")
    pending = desk.add("pending")
    for path in others:
        review(desk, path)
    refused(r"^[01] reviewed images are held out.*at least [45] more audits of other images must be reviewed")
    desk.remove(*pending)
    (tmp_path / "data/notes.txt").touch()
    assert "holds notes.txt, so this script did not write it" in refused("prepare.py failed with status 1")
