"""prepare.py reviewed before it reads a stack: near-duplicates, labels and manifests."""

import hashlib
import io
import json
import re
from pathlib import Path

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
    counts = "Left out: 3 (1 no longer in S3, 2 there already)\n  a: it was deleted\n  b\n  c\nFull list: x"
    assert reviewed.summary([ENTRY], left_out, Path("x")) == f"Added: 1. {counts}"
    assert reviewed.summary([], left_out, Path("x")) == f"Added: 0. {counts}\nWarning: no image was added"
    assert reviewed.summary([ENTRY], [], Path("x")) == "Added: 1. Left out: 0"


def test_the_summary_has_at_most_five_examples_of_each_reason():
    left_out = [(kind, f"{kind} {number}") for number in range(300) for kind in (reviewed.GONE, reviewed.PRESENT)]
    lines = reviewed.summary([ENTRY], left_out, Path("out/left-out.txt")).splitlines()
    assert lines[0] == "Added: 1. Left out: 600 (300 no longer in S3, 300 there already)"
    assert lines[5:8] == ["  no longer in S3 4", "  and 295 more no longer in S3", "  there already 0"]
    assert lines[-1] == "Full list: out/left-out.txt" and len(lines) == 14


def test_an_image_that_was_left_out_has_one_line_whatever_its_name_is(tmp_path):
    left_out = [(reviewed.GONE, "a\nb\r\x85.png: it was deleted"), (reviewed.PRESENT, "é: like caf\udce9.png")]
    reviewed.write_left_out(left_out, tmp_path / "list")
    listed = (tmp_path / "list").read_text(encoding="utf-8")
    assert listed == "a\\x0ab\\x0d\\x85.png: it was deleted\né: like caf\\udce9.png\n"
    assert "\n  a\\x0ab\\x0d\\x85.png: it was deleted\n" in reviewed.summary([], left_out, tmp_path / "list")


def entry(number, probability, created_at="2026-11-26T08:00:00.000+00:00", label="7"):
    """A reviewed image, which was chosen with this probability."""
    reason = "low_confidence" if probability == 1 else "audit"
    about = {"image": f"s3://images/{number:06}.png", "version": "v", "label": label, "reason": reason}
    return about | {"selection_probability": probability, "created_at": created_at}


def drawn(entries, share):
    """Of images whose bytes are their numbers."""
    hashed = [each | {"sha256": hashlib.sha256(each["image"].encode()).hexdigest()} for each in entries]
    return {each["image"] for each in hashed if reviewed.is_held_out(each, share)}


def test_every_classified_image_has_the_same_chance_of_being_held_out():
    """Of 100,000 images, 30 % are below the threshold and all reviewed; of the others, one in 20 was audited."""
    unsure, audits = [entry(n, 1) for n in range(30_000)], [entry(n, 0.05) for n in range(30_000, 33_500)]
    share = reviewed.share_held_out(unsure + audits, 0.3)
    assert share == 0.05
    assert drawn(audits, share) == {each["image"] for each in audits}
    assert len(drawn(unsure, share)) == pytest.approx(0.05 * 30_000, abs=150)


def test_the_share_held_out_is_at_most_the_given_fraction_and_an_image_stays_held_out():
    reviews = [entry(n, 0.5) for n in range(10_000)]
    share = reviewed.share_held_out(reviews, 0.3)
    assert share == 0.3 and len(drawn(reviews, share)) == pytest.approx(0.6 * 10_000, abs=200)
    assert drawn(reviews[:5_000], share) <= drawn(reviews, share)
    assert drawn(reviews, 0.1) <= drawn(reviews, share)  # a lower AuditRate since then


def test_without_an_audit_no_image_is_held_out():
    with pytest.raises(reviewed.NoAuditError, match="Raise AuditRate, or review the audits"):
        reviewed.share_held_out([entry(n, 1) for n in range(100)], 0.3)


@pytest.fixture
def written(tmp_path):
    """A function that writes images as training images, and returns their manifest."""

    def write(images):
        manifest = []
        for number, (image, created_at) in enumerate(images):
            made = entry(number, 0.5, created_at) | {"sha256": hashlib.sha256(image).hexdigest()}
            manifest.append({"file": reviewed.file_of(made)} | made)
            reviewed.write(image, tmp_path / manifest[-1]["file"])
        return manifest

    return write


def test_images_are_held_out_and_neither_they_nor_their_likes_are_trained_on(written, tmp_path):
    images = [encoded(scene(0)), encoded(scene(1)), CHANGES["saved again as a JPEG"](scene(0)), encoded(scene(2))]
    manifest = written([*((image, "2026-01") for image in images), (encoded(scene(3)), "2026-03")])
    chosen = {manifest[0]["sha256"], manifest[4]["sha256"]}
    kept, left_out = reviewed.hold_out(manifest, chosen, "2026-02", tmp_path)
    assert [(each["image"][-5:], each["file"].split("/")[0]) for each in kept] == [
        ("0.png", "heldout"), ("1.png", "train"), ("3.png", "train"),
    ]  # fmt: skip
    assert [kind for kind, _ in left_out] == [reviewed.TOO_NEW, reviewed.LIKE_REVIEWED]
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {each["file"] for each in kept}
    assert left_out[1][1].endswith(f": like {kept[0]['file']}")
    assert reviewed.summary(kept, left_out, tmp_path).startswith("Added: 3, of which 1 are held out. Left out: 2")


def test_the_manifest_names_the_part_and_nothing_else_of_its_file():
    image = ENTRY | {"file": "heldout/../../etc/passwd"}
    assert reviewed.file_of(image, reviewed.part_of(image)) == "heldout/7/0123456789abcdef.jpg"
    assert reviewed.part_of(ENTRY) == reviewed.part_of(ENTRY | {"file": "validation/7/x"}) == "train"


@pytest.mark.parametrize("fraction", ["0", "1", "-0.1", "x", "nan"])
def test_a_fraction_to_hold_out_is_between_0_and_1(fraction, capsys):
    with pytest.raises(SystemExit):
        prepare.parse_options(["reviewed", "--hold-out", fraction])
    assert "--hold-out: invalid fraction value" in capsys.readouterr().err


def test_a_manifest_is_not_held_out_again(capsys):
    with pytest.raises(SystemExit):
        prepare.parse_options(["reviewed", "--manifest", "m", "--hold-out", "0.3"])
    assert "--manifest says which images are held out" in capsys.readouterr().err
