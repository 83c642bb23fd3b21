"""prepare.py reviewed before it reads a stack: near-duplicates, labels and manifests."""

import io
import json
import re

import boto3
import numpy as np
import pytest
from PIL import Image

import folders
import prepare
import reviewed


def scene(seed):
    """A smooth image with shapes of its own, as a photograph has."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((160, 120), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def held_out(tmp_path):
    for seed in range(50):
        path = tmp_path / "test" / str(seed % 2) / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(scene(seed)))
    (tmp_path / "test/0/notes.txt").write_text("no image")
    return reviewed.HeldOut([tmp_path / "test"])


CHANGES = {
    "saved again as a JPEG": lambda image: encoded(image, "JPEG", quality=75),
    "saved again as WebP": lambda image: encoded(image, "WEBP", quality=50),
    "smaller": lambda image: encoded(image.resize((40, 30), Image.Resampling.LANCZOS)),
    "larger, as a JPEG": lambda image: encoded(image.resize((400, 300)), "JPEG"),
    "darker": lambda image: encoded(image.point(lambda value: value * 0.8)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_near_duplicate_of_a_held_out_image_is_found(held_out, tmp_path, change):
    changed = [held_out.like(CHANGES[change](scene(seed))) for seed in range(50)]
    assert changed == [f"like {tmp_path / 'test' / str(seed % 2) / f'{seed}.png'}" for seed in range(50)]


def test_the_same_bytes_are_found_even_if_they_have_one_colour(held_out, tmp_path):
    assert held_out.like(encoded(scene(1))) == f"same as {tmp_path / 'test/1/1.png'}"
    white = encoded(Image.new("RGB", (9, 9), "white"))
    assert held_out.like(white) == ""
    (tmp_path / "test/1/white.png").write_bytes(white)
    assert reviewed.HeldOut([tmp_path / "test"]).like(white) == f"same as {tmp_path / 'test/1/white.png'}"


def test_another_image_is_no_duplicate(held_out):
    assert {held_out.like(encoded(scene(seed))) for seed in range(50, 250)} == {""}
    assert reviewed.HeldOut([]).like(encoded(scene(0))) == ""


@pytest.mark.parametrize("label", ["../x", "a/b", "..", ".hidden", "", "a\0", "Thumbs.db", "\ud800", "x" * 256])
def test_a_label_that_is_no_folders_name_is_refused_by_name(label):
    with pytest.raises(folders.ClassNameError, match=r"the label .* cannot be the name of a folder"):
        reviewed.check_labels([{"label": "7"}, {"label": label}])


ENTRY = {"image": "s3://images/a/b.JPG", "version": "v", "label": "7", "sha256": "0123456789abcdef" * 4}


def test_a_files_name_does_not_depend_on_the_key():
    assert reviewed.file_of(ENTRY) == "train/7/0123456789abcdef.jpg"
    assert reviewed.file_of(ENTRY | {"image": "s3://images/a.b/../%2F"}) == "train/7/0123456789abcdef"


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    reviewed.write_manifest([ENTRY, ENTRY | {"label": "é", "weight": 50.0}], tmp_path / "m")
    assert reviewed.read_manifest(tmp_path / "m") == [ENTRY, ENTRY | {"label": "é", "weight": 50.0}]


@pytest.mark.parametrize(
    "line",
    [
        "", "[]", "{", "1", "[" * 100_000, '{"image": 1}', json.dumps(ENTRY | {"sha256": "../../../../etc"}),
        json.dumps(ENTRY | {"image": "http://x"}), json.dumps({"image": "s3://b/k"}),
    ],
)  # fmt: skip
def test_a_manifest_of_something_else_is_refused(tmp_path, line):
    (tmp_path / "m").write_text(f"{json.dumps(ENTRY)}\n{line}\n")
    with pytest.raises(reviewed.ManifestError):
        reviewed.read_manifest(tmp_path / "m")


def test_a_manifest_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "m").write_bytes(json.dumps(ENTRY).encode("utf-16"))
    with pytest.raises(reviewed.ManifestError):
        reviewed.read_manifest(tmp_path / "m")


def test_a_manifest_and_a_stack_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        prepare.parse_options(["reviewed", "--stack", "a", "--manifest", "m"])
    assert "not allowed with argument --stack" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "For the local stack: make up, then source .local/env"),
        (["--stack", "image-classification"], "Check AWS's credentials and region: aws configure"),
    ],
)
@pytest.mark.parametrize(
    ("unset", "problem"),
    [("AWS_ACCESS_KEY_ID", "Unable to locate credentials"), ("AWS_DEFAULT_REGION", "You must specify a region")],
)
def test_aws_that_is_not_configured_is_an_error_with_advice(monkeypatch, tmp_path, arguments, advice, unset, problem):
    monkeypatch.delenv(unset)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(reviewed.AwsError) as raised:
        prepare.main(["reviewed", *arguments, "--output", str(tmp_path / "new")])
    assert str(raised.value).startswith(problem) and str(raised.value).endswith(f". {advice}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["none", "classes"])
def test_data_to_add_that_prepare_did_not_write_is_refused_by_name(tmp_path, folder):
    (tmp_path / "classes/cat").mkdir(parents=True)
    with pytest.raises(folders.MissingFolderError, match=f"^--add {re.escape(str(tmp_path / folder))} is not a folder"):
        prepare.main(["reviewed", "--add", str(tmp_path / folder), "--output", str(tmp_path / "new")])
    assert [path.name for path in tmp_path.iterdir()] == ["classes"]


def test_data_is_not_added_to_itself(tmp_path):
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/manifest.jsonl").write_text("kept")
    with pytest.raises(reviewed.SameFolderError, match="choose another --output"):
        prepare.main(["reviewed", "--add", str(tmp_path / "data"), "--output", str(tmp_path / "data/../data")])
    assert (tmp_path / "data/manifest.jsonl").read_text() == "kept"


def test_an_earlier_output_is_replaced_and_another_folder_with_a_manifest_is_not(tmp_path):
    new, old = tmp_path / "work/new", tmp_path / "old"
    for folder in (new / "train", old / "train", old / "test"):
        folder.mkdir(parents=True)
    (old / "manifest.jsonl").touch()
    prepare.replace_folder(new, old)
    assert [path.name for path in old.iterdir()] == ["train"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.jsonl").touch()
    with pytest.raises(SystemExit, match=r"holds manifest\.jsonl, so this script did not write it"):
        prepare.replace_folder(new, tmp_path / "other")


def test_the_summary_counts_what_was_left_out_by_reason():
    left_out = [(reviewed.GONE, "a: it was deleted"), (reviewed.PRESENT, "b"), (reviewed.PRESENT, "c")]
    counts = "Left out: 3 (1 no longer in S3, 2 there already)\n  a: it was deleted\n  b\n  c"
    assert reviewed.summary([ENTRY], left_out) == f"Added: 1. {counts}"
    assert reviewed.summary([], left_out) == f"Added: 0. {counts}\nWarning: no image was added"
    assert reviewed.summary([ENTRY], []) == "Added: 1. Left out: 0"
