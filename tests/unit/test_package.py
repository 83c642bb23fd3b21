import hashlib
import io
import json
import os
import re
import tarfile
import zipfile

import pytest

import package
from lineage import digest_of
from tiny_model import write_tiny_model


@pytest.fixture
def model_dir(tmp_path):
    return write_tiny_model(tmp_path / "model")


@pytest.fixture
def wheel(tmp_path):
    """A wheel like ONNX Runtime's, with a file that serving does not need."""
    path = tmp_path / "onnxruntime-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("onnxruntime/__init__.py", "served")
        archive.writestr("onnxruntime/tools/convert.py", "not served")
        archive.writestr("onnxruntime-1.0.dist-info/LICENSE", "terms")
    return path


def entries_of(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return [(entry.name, entry.mtime, entry.uid, entry.mode) for entry in opened]


def test_the_archive_contains_model_code_and_lib_sorted_and_without_times(model_dir, wheel):
    names = [
        "code/inference.py",
        "code/pixels.py",
        "lib/onnxruntime-1.0.dist-info/LICENSE",
        "lib/onnxruntime/__init__.py",
        "metadata.json",
        "model.onnx",
    ]
    archive = package.pack(package.collect(model_dir, [wheel]))
    assert entries_of(archive) == [(name, 0, 0, 0o644) for name in names]


def test_the_same_model_gives_the_same_key_and_a_different_model_a_different_one(model_dir, wheel):
    first = package.pack(package.collect(model_dir, [wheel]))
    again = package.pack(package.collect(model_dir, [wheel]))
    (model_dir / "metadata.json").write_text("{}")
    changed = package.pack(package.collect(model_dir, [wheel]))
    assert first == again
    assert package.key_of(first) == f"models/{hashlib.sha256(first).hexdigest()[:16]}/model.tar.gz"
    assert package.key_of(changed) != package.key_of(first)


def test_the_last_line_printed_is_the_path_of_the_archive(model_dir, tmp_path, capsys):
    package.main(["--model-dir", str(model_dir), "--output", str(tmp_path / "out"), "--lib", "none"])
    archive = package.pack(package.collect(model_dir, []))
    path = tmp_path / "out" / package.key_of(archive)
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    assert path.read_bytes() == archive
    assert path.with_name("metadata.json").read_bytes() == (model_dir / "metadata.json").read_bytes()
    names = ["code/inference.py", "code/pixels.py", "metadata.json", "model.onnx"]
    assert [name for name, *_ in entries_of(archive)] == names


def test_a_comparison_is_written_beside_the_archive(model_dir, tmp_path):
    comparison = tmp_path / "comparison.json"
    comparison.write_text(json.dumps({"challenger": {"model_sha256": digest_of(model_dir / "model.onnx")}}))
    path = package.build(model_dir, [], tmp_path / "out", comparison)
    assert [each.name for each in package.files_of(path)] == ["metadata.json", "comparison.json", "model.tar.gz"]
    assert path.with_name("comparison.json").read_bytes() == comparison.read_bytes()
    assert sorted(each.name for each in path.parent.iterdir()) == ["comparison.json", "metadata.json", "model.tar.gz"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        ("[]", "is no comparison.json of training/compare.py"),
        ('{"challenger": {}}', "is no comparison.json of training/compare.py"),
        (
            '{"challenger": {"model_sha256": "0123456789abcdef"}}',
            "another challenger, model.onnx 0123456789ab; this model.onnx is",
        ),
    ],
)
def test_a_comparison_of_another_model_is_refused(model_dir, tmp_path, content, sentence):
    comparison = tmp_path / "comparison.json"
    if content:
        comparison.write_text(content)
    command = ["--model-dir", str(model_dir), "--output", str(tmp_path / "out"), "--lib", "none"]
    with pytest.raises(package.PackageError, match=re.escape(sentence)):
        package.main([*command, "--comparison", str(comparison)])
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(package.PackageError, match=r"model\.onnx is missing: train a model first"):
        package.collect(tmp_path, [])


def test_a_cached_wheel_with_the_right_hash_needs_no_network(wheel, tmp_path):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert package.fetch_wheels(tmp_path, {wheel.name: digest}) == [wheel]


def test_without_a_network_the_error_says_what_to_do(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(package.PackageError, match=r"(?s)could not download onnxruntime==1\.0.*--lib none"):
        package.fetch_wheels(tmp_path, {wheel.name: "0" * 64})


@pytest.mark.parametrize(
    ("bucket", "environment", "sentence"),
    [
        ("nowhere", {"AWS_ACCESS_KEY_ID": ""}, "not uploaded to s3://nowhere: Unable to locate credentials"),
        ("Not a bucket", {}, "--bucket Not a bucket is not the name of a bucket"),
        ("nowhere", {"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found"),
        ("nowhere", {}, "Could not connect to the endpoint URL"),
    ],
)
def test_a_failed_upload_is_one_sentence(model_dir, tmp_path, monkeypatch, bucket, environment, sentence):
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # an earlier test's may have credentials
    offline = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_MAX_ATTEMPTS": "1", "AWS_CONFIG_FILE": "/dev/null"}
    for name, value in (offline | {"AWS_SHARED_CREDENTIALS_FILE": "/dev/null"} | environment).items():
        monkeypatch.setenv(name, value)
    if not os.environ["AWS_ACCESS_KEY_ID"]:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    command = ["--model-dir", str(model_dir), "--output", str(tmp_path), "--lib", "none", "--bucket", bucket]
    with pytest.raises(package.PackageError, match=re.escape(sentence)):
        package.main(command)


def test_the_wheels_match_the_images_python_and_platform():
    assert all("-cp312-cp312-" in name and name.endswith("manylinux_2_28_x86_64.whl") for name in package.WHEELS)


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused_without_being_unpacked():
    entry = tarfile.TarInfo("model.onnx")
    entry.size = package.MAX_UNPACKED + 1  # the content does not follow
    with (
        tarfile.open(fileobj=io.BytesIO(entry.tobuf() + bytes(1024))) as archive,
        pytest.raises(package.PackageError, match="s3://b/k unpacks to more than"),
    ):
        package.check_unpacked_size(archive, "s3://b/k")
    with tarfile.open(fileobj=io.BytesIO(package.pack({"model.onnx": bytes(1000)}))) as archive:
        package.check_unpacked_size(archive, "s3://b/k")
