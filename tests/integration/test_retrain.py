"""make retrain on the deployed stack: reviewed images -> a challenger beside the champion in the bucket."""

import io
import json
import tarfile

import pytest
from PIL import Image, ImageOps

from local.deployment import STACK_NAME
from local.retrain import retrain, sentences
from local.target import Target
from reviewing import Desk
from workflow import DIGITS

QUICK = ["--epochs", "3"]
FILES = ["comparison.json", "metadata.json", "model.tar.gz"]
FOLDERS = ["champion", "comparison", "data", "lock", "model", "package", "training"]


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


def test_reviewed_images_become_a_challenger_in_the_bucket(found, desk, workflow, tmp_path):
    for path in digits(15):
        review(desk, path)
    pending = desk.add("pending", 0.9)
    made = retrain(found, DIGITS, tmp_path, QUICK)
    desk.remove(*pending)

    data = tmp_path / "data"
    manifest = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    assert len(manifest) == 150 and {entry["reason"] for entry in manifest} == {"audit"}
    held_out = {path.relative_to(data).as_posix() for path in (data / "heldout").rglob("*.png")}
    assert held_out == {entry["file"] for entry in manifest if entry["file"].startswith("heldout/")}
    assert 20 < len(held_out) < 70
    assert all((data / entry["file"]).is_file() for entry in manifest)

    heldout, original = made.comparison["sets"]
    assert (heldout["requirement"], heldout["images"]) == ("better", len(held_out))
    assert (original["requirement"], original["folder"]) == ("not worse", str(data / "test"))
    assert heldout["verdict"] == "better" and heldout["champion"]["accuracy"] < 0.5
    assert made.holds == (original["verdict"] in ("better", "not worse"))

    assert made.url.startswith("s3://models/models/") and made.url != found.parameter("ModelDataUrl")
    folder = made.url.removeprefix("s3://models/").removesuffix("model.tar.gz")
    stored = {name: workflow.s3.get_object(Bucket="models", Key=folder + name)["Body"].read() for name in FILES}
    assert json.loads(stored["comparison.json"]) == made.comparison
    metadata = json.loads(stored["metadata.json"])
    assert (metadata["sha256"], metadata["hyperparameters"]["epochs"]) == (made.sha256, 3)
    assert metadata["lineage"]["parent"] == made.comparison["champion"]["model_sha256"]
    assert metadata["lineage"]["manifest_sha256"]
    with tarfile.open(fileobj=io.BytesIO(stored["model.tar.gz"])) as archive:
        assert json.load(archive.extractfile("metadata.json")) == metadata
    assert sentences(found, made)[-1].count(f"make promote MODEL={made.name}") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == FOLDERS
