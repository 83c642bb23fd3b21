"""prepare.py cifar100 and folder. A local server provides a small archive in CIFAR-100's format."""

import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

import cifar100
import data
import folders
import prepare

LABELS = ["apple", "bicycle", "motorcycle"]
TARGETS = {"train": [1, 2, 0] * 10, "test": [2, 1, 0] * 2}


def python2_string(text):
    return b"T" + struct.pack("<i", len(text)) + text


def python2_array(array):
    """A uint8 array as pickled by numpy under Python 2."""
    shape = b"".join(b"J" + struct.pack("<i", side) for side in array.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01(" + shape + b"t"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + python2_string(array.tobytes())
        + b"tb"
    )


def python2_pickle(entries):
    """A dictionary {str: array, or list of numbers or strings} as pickled by Python 2, like CIFAR-100's."""
    items = b""
    for name, value in entries.items():
        items += python2_string(name.encode())
        if isinstance(value, np.ndarray):
            items += python2_array(value)
        else:
            each = [b"K" + bytes([v]) if isinstance(v, int) else python2_string(v.encode()) for v in value]
            items += b"](" + b"".join(each) + b"e"
    return b"\x80\x02}(" + items + b"u."


def archive_of(members):
    """cifar-100-python.tar.gz of {part: pickle}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def pixels_of(part):
    random = np.random.default_rng(len(TARGETS[part]))
    return random.integers(0, 256, (len(TARGETS[part]), 3072), dtype=np.uint8)


ARCHIVE = archive_of(
    {
        "meta": python2_pickle({"fine_label_names": LABELS}),
        "test": python2_pickle({"data": pixels_of("test"), "fine_labels": TARGETS["test"]}),
        "train": python2_pickle({"data": pixels_of("train"), "fine_labels": TARGETS["train"]}),
    }
)
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


class Site(http.server.ThreadingHTTPServer):
    """Serves ARCHIVE, with or without support for ranges; cuts off the first responses after `breaks_after` bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/cifar-100-python.tar.gz"
        self.supports_ranges, self.breaks_after, self.ranges = True, [], []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if not self.path.endswith("cifar-100-python.tar.gz"):
            return self.send_error(404)
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.supports_ranges else 0
        if start >= len(ARCHIVE):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(ARCHIVE) - 1}/{len(ARCHIVE)}")
        self.send_header("Content-Length", str(len(ARCHIVE) - start))
        self.end_headers()
        limit = self.server.breaks_after.pop(0) if self.server.breaks_after else len(ARCHIVE)
        self.wfile.write(ARCHIVE[start : start + limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    with Site() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def prepare_cifar100(site, folder, *options):
    options = ["--url", site.url, "--sha256", SHA256, "--cache", str(folder / "cache"), *options]
    prepare.main(["cifar100", *options, "--output", str(folder / "data")])


def test_classes_of_cifar100_become_folders_and_the_authors_test_images_the_test_part(site, tmp_path, capsys):
    prepare_cifar100(site, tmp_path, "--classes", "motorcycle", "bicycle")
    assert capsys.readouterr().out == f"{tmp_path / 'data'}: 16 train, 4 validation, 4 test\n"
    found = {}
    for path in sorted((tmp_path / "data" / "test").rglob("*.png")):
        found.setdefault(path.parent.name, []).append(np.asarray(Image.open(path)))
    truth = pixels_of("test").reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert sorted(found) == ["bicycle", "motorcycle"]
    np.testing.assert_array_equal(found["motorcycle"], truth[[0, 3]])
    np.testing.assert_array_equal(found["bicycle"], truth[[1, 4]])


def test_a_downloaded_file_is_not_downloaded_again(site, tmp_path):
    prepare_cifar100(site, tmp_path)
    prepare_cifar100(site, tmp_path)
    assert site.ranges == [None]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cifar-100-python.tar.gz"]


def test_an_interrupted_download_is_resumed(site, tmp_path):
    site.breaks_after = [10_000, 5_000]
    cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert site.ranges == [None, "bytes=10000-", "bytes=15000-"]
    assert (tmp_path / "file").read_bytes() == ARCHIVE


def test_a_partial_file_of_an_earlier_command_is_resumed(site, tmp_path):
    (tmp_path / "file.partial").write_bytes(ARCHIVE[:7_000])
    cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert site.ranges == ["bytes=7000-"]
    assert (tmp_path / "file").read_bytes() == ARCHIVE


def test_without_support_for_ranges_the_download_starts_over(site, tmp_path):
    site.supports_ranges = False
    (tmp_path / "file.partial").write_bytes(ARCHIVE[:7_000])
    cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == ARCHIVE


@pytest.mark.parametrize("left", [b"other" * 100, ARCHIVE + b"more"])
def test_a_partial_file_with_other_content_is_replaced(left, site, tmp_path):
    (tmp_path / "file.partial").write_bytes(left)
    cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert site.ranges[-1] is None
    assert (tmp_path / "file").read_bytes() == ARCHIVE


def test_a_file_with_another_checksum_is_rejected_and_deleted(site, tmp_path):
    with pytest.raises(cifar100.ChecksumError, match=f"{SHA256}, not the published 0000"):
        cifar100.fetch(site.url, tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_repeated_interruptions_end_the_download_with_advice(site, tmp_path):
    site.breaks_after = [500] + [0] * 9
    with pytest.raises(
        cifar100.DownloadError, match=f"ended early.*Run the command again.*save the file as {tmp_path}"
    ):
        cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert (tmp_path / "file.partial").stat().st_size == 500


def test_without_a_network_the_error_says_where_to_save_the_file(tmp_path):
    with pytest.raises(cifar100.DownloadError, match=f"Without a network, save the file as {tmp_path}"):
        cifar100.fetch("http://127.0.0.1:9/cifar-100-python.tar.gz", tmp_path / "file", SHA256)


def test_a_missing_page_is_not_requested_again(site, tmp_path):
    with pytest.raises(cifar100.DownloadError, match="404"):
        cifar100.fetch(site.url.replace("cifar", "other"), tmp_path / "file", SHA256)


def test_a_class_that_cifar100_does_not_have_is_named(site, tmp_path):
    with pytest.raises(
        data.UnknownClassError, match="bike: not one of CIFAR-100's classes: apple, bicycle, motorcycle"
    ):
        prepare_cifar100(site, tmp_path, "--classes", "bike")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


class Hostile:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_pickle_that_would_run_code_is_rejected(tmp_path, capsys):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(archive_of(dict.fromkeys(("train", "test", "meta"), pickle.dumps([Hostile()], protocol=2))))
    with pytest.raises(cifar100.ArchiveError, match=r"it contains \w+\.print, which no image needs"):
        cifar100.read_archive(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no archive", ARCHIVE[:5_000], archive_of({"train": b"\x80\x02}."})])
def test_the_error_for_a_damaged_archive_names_it(content, tmp_path):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(content)
    with pytest.raises(cifar100.ArchiveError, match=r"archive\.tar\.gz cannot be read as CIFAR-100"):
        cifar100.read_archive(path)


def test_an_archive_with_a_label_out_of_range_is_rejected(tmp_path):
    batch = python2_pickle({"data": pixels_of("train")[:1], "fine_labels": [3]})
    path = tmp_path / "archive.tar.gz"
    meta = python2_pickle({"fine_label_names": LABELS})
    path.write_bytes(archive_of({"train": batch, "test": batch, "meta": meta}))
    with pytest.raises(cifar100.ArchiveError, match="a label is not one of the 3 classes"):
        cifar100.read_archive(path)


def write_images(folder, counts):
    """Write different images of many sizes, modes and formats. Returns {path in the folder: bytes}."""
    random = np.random.default_rng(0)
    modes = [("RGB", "png"), ("L", "jpg"), ("RGBA", "webp"), ("P", "gif"), ("1", "bmp"), ("CMYK", "tiff")]
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            mode, ending = modes[number % len(modes)]
            pixels = random.integers(0, 256, (10 + number, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / label / f"{number}.{ending}")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in folder.rglob("*.*")}


def test_a_folder_of_images_is_copied_unchanged_into_three_disjoint_parts(tmp_path, capsys):
    originals = write_images(tmp_path / "images", {"cat": 20, "dog": 10})
    prepare.main(["folder", str(tmp_path / "images"), "--output", str(tmp_path / "out")])
    copied = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert {name.partition("/")[2]: content for name, content in copied.items()} == originals
    assert len(copied) == len(originals)
    assert capsys.readouterr().out == f"20 cat, 10 dog\n{tmp_path / 'out'}: 18 train, 6 validation, 6 test\n"


def test_unreadable_files_duplicates_and_imbalanced_classes_are_reported(tmp_path, capsys):
    folder = tmp_path / "images"
    write_images(folder, {"cat": 20, "dog": 5})
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / "0 again.png").write_bytes((folder / "cat" / "0.png").read_bytes())
    (folder / "dog" / "cut.png").write_bytes((folder / "dog" / "0.png").read_bytes()[:200])
    prepare.main(["folder", str(folder), "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "Skipped unreadable files: 2\n" in out
    assert f"  {folder}/cat/notes.txt: the file is text" in out
    assert f"  {folder}/dog/cut.png: the PNG ends too early" in out
    assert f"Skipped duplicate files: 1\n  {folder}/cat/0.png: same as" in out
    assert "20 cat, 5 dog. The classes are imbalanced: expect more mistakes on dog" in out
    assert not list((tmp_path / "out").rglob("notes.txt"))


def test_a_class_with_only_duplicates_of_another_class_is_rejected(tmp_path, capsys):
    folder = tmp_path / "images"
    write_images(folder, {"cat": 5})
    shutil.copytree(folder / "cat", folder / "dog")
    with pytest.raises(data.ClassTooSmallError, match="class dog has only duplicates of another class's images"):
        prepare.main(["folder", str(folder), "--output", str(tmp_path / "out")])
    assert f"  {folder}/dog/0.png: same as {folder}/cat/0.png, which is in another class\n" in capsys.readouterr().out


def test_a_folder_with_too_many_unreadable_files_is_rejected(tmp_path):
    write_images(tmp_path / "images", {"cat": 3, "dog": 3})
    (tmp_path / "images" / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(data.UnreadableImageError, match=r"notes\.txt: .* \(1 of 7 files are unreadable\)"):
        prepare.main(["folder", str(tmp_path / "images"), "--output", str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_folder_that_is_already_split_is_not_split_again(tmp_path):
    write_images(tmp_path / "images", {"train": 3, "test": 3})
    with pytest.raises(prepare.AlreadySplitError, match="is already split"):
        prepare.main(["folder", str(tmp_path / "images"), "--output", str(tmp_path / "out")])


def class_folders(folder, names, count=6):
    """Folders of distinct images."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((8, 8), 20 * number + index, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}-{index}.png")
    return folder


def prepared(folder, output):
    prepare.main(["folder", str(folder), "--output", str(output)])
    return sorted({path.name for path in (output / "train").iterdir()}), prepare.count(output)


def test_what_systems_leave_in_folders_is_no_class_and_no_image(tmp_path):
    folder = class_folders(tmp_path / "images", ["cat", "dog", "__MACOSX", "@eaDir"])
    for name in ("Thumbs.db", "desktop.ini", "cat/Thumbs.db", "dog/desktop.ini", "dog/Icon\r"):
        (folder / name).write_bytes(b"not an image")
    assert prepared(folder, tmp_path / "out") == (["cat", "dog"], 12)


def test_a_class_in_two_unicode_forms_is_one_class_and_loses_no_image(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    folder = class_folders(tmp_path / "images", [composed, decomposed, "tea"])
    for path in (folder / decomposed).iterdir():
        path.rename(path.with_name(path.name.replace("1-", "0-")))  # the names of the other folder's files
    assert prepared(folder, tmp_path / "out") == ([composed, "tea"], 18)


@pytest.mark.parametrize("parts", [("train", "val"), ("Training", "Testing"), ("train", "valid", "test")])
def test_a_folder_that_is_split_already_is_named(tmp_path, parts):
    folder = class_folders(tmp_path / "images", parts)
    with pytest.raises(prepare.AlreadySplitError, match="already split"):
        prepare.main(["folder", str(folder), "--output", str(tmp_path / "out")])


SCRIPT = [sys.executable, prepare.__file__]


def test_an_unreadable_folder_is_a_sentence(tmp_path):
    folder = class_folders(tmp_path / "images", ["cat", "dog"])
    (folder / "dog").chmod(0)
    for path in (tmp_path, *tmp_path.parents[:3]):  # pytest-of-USER, pytest-N, and the worker's own
        path.chmod(path.stat().st_mode | 0o055)
    nobody = {"initializer": os.setuid, "initargs": (65534,)} if os.geteuid() == 0 else {}  # root reads every folder
    with (
        multiprocessing.get_context("fork").Pool(1, **nobody) as pool,
        pytest.raises(folders.MissingFolderError, match="dog cannot be read: Permission denied"),
    ):
        pool.apply(folders.list_images, (folder,))


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_names_print_on_any_terminal(tmp_path, encoding):
    folder = class_folders(tmp_path / "images", ["caf\u00e9", "\U0001f600"])
    (folder / "caf\u00e9" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    command = [*SCRIPT, "folder", folder, "--output", tmp_path / "out"]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode(errors="replace")


def test_a_negative_seed_is_a_sentence(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["digits", "--seed", "-1"])
    assert "invalid seed value: '-1'" in capsys.readouterr().err
