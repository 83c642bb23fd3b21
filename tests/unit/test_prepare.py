"""prepare.py cifar100 and folder. The archive is a small one of the same format, on a server of this machine's own."""

import hashlib
import http.server
import io
import pickle
import re
import shutil
import struct
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

import cifar100
import data
import prepare

LABELS = ["apple", "bicycle", "motorcycle"]
TARGETS = {"train": [1, 2, 0] * 10, "test": [2, 1, 0] * 2}


def python2_string(text):
    return b"T" + struct.pack("<i", len(text)) + text


def python2_array(array):
    """A uint8 array as numpy wrote it under Python 2."""
    shape = b"".join(b"J" + struct.pack("<i", side) for side in array.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01(" + shape + b"t"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + python2_string(array.tobytes())
        + b"tb"
    )


def python2_pickle(entries):
    """A dictionary {str: array, or list of numbers or strings} as Python 2 pickled it, which is how CIFAR-100 came."""
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


def pictures_of(part):
    random = np.random.default_rng(len(TARGETS[part]))
    return random.integers(0, 256, (len(TARGETS[part]), 3072), dtype=np.uint8)


ARCHIVE = archive_of(
    {
        "meta": python2_pickle({"fine_label_names": LABELS}),
        "test": python2_pickle({"data": pictures_of("test"), "fine_labels": TARGETS["test"]}),
        "train": python2_pickle({"data": pictures_of("train"), "fine_labels": TARGETS["train"]}),
    }
)
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


class Site(http.server.ThreadingHTTPServer):
    """Serves ARCHIVE; knows ranges or not; breaks off after so many bytes of each of the first answers."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/cifar-100-python.tar.gz"
        self.knows_ranges, self.breaks_after, self.ranges = True, [], []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if not self.path.endswith("cifar-100-python.tar.gz"):
            return self.send_error(404)
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.server.knows_ranges else 0
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


def test_classes_of_cifar100_become_folders_and_the_authors_test_pictures_the_test_part(site, tmp_path, capsys):
    prepare_cifar100(site, tmp_path, "--classes", "motorcycle", "bicycle")
    assert capsys.readouterr().out == f"{tmp_path / 'data'}: 16 train, 4 validation, 4 test\n"
    found = {}
    for path in sorted((tmp_path / "data" / "test").rglob("*.png")):
        found.setdefault(path.parent.name, []).append(np.asarray(Image.open(path)))
    truth = pictures_of("test").reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert sorted(found) == ["bicycle", "motorcycle"]
    np.testing.assert_array_equal(found["motorcycle"], truth[[0, 3]])
    np.testing.assert_array_equal(found["bicycle"], truth[[1, 4]])


def test_what_is_there_is_not_downloaded_again(site, tmp_path):
    prepare_cifar100(site, tmp_path)
    prepare_cifar100(site, tmp_path)
    assert site.ranges == [None]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cifar-100-python.tar.gz"]


def test_an_interrupted_download_goes_on_where_it_stopped(site, tmp_path):
    site.breaks_after = [10_000, 5_000]
    cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert site.ranges == [None, "bytes=10000-", "bytes=15000-"]
    assert (tmp_path / "file").read_bytes() == ARCHIVE


def test_a_later_command_goes_on_with_what_an_earlier_one_left(site, tmp_path):
    (tmp_path / "file.partial").write_bytes(ARCHIVE[:7_000])
    cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert site.ranges == ["bytes=7000-"]
    assert (tmp_path / "file").read_bytes() == ARCHIVE


def test_a_server_without_ranges_starts_again(site, tmp_path):
    site.knows_ranges = False
    (tmp_path / "file.partial").write_bytes(ARCHIVE[:7_000])
    cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert (tmp_path / "file").read_bytes() == ARCHIVE


@pytest.mark.parametrize("left", [b"other" * 100, ARCHIVE + b"more"])
def test_the_beginning_of_another_file_is_thrown_away(left, site, tmp_path):
    (tmp_path / "file.partial").write_bytes(left)
    cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert site.ranges[-1] is None
    assert (tmp_path / "file").read_bytes() == ARCHIVE


def test_a_file_with_another_checksum_is_refused_and_thrown_away(site, tmp_path):
    with pytest.raises(cifar100.ChecksumError, match=f"{SHA256}, not the published 0000"):
        cifar100.fetch(site.url, tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_always_breaks_is_given_up_and_says_what_to_do(site, tmp_path):
    site.breaks_after = [500] + [0] * 9
    with pytest.raises(
        cifar100.DownloadError, match=f"ended early.*run the command again.*put the file there as {tmp_path}"
    ):
        cifar100.fetch(site.url, tmp_path / "file", SHA256)
    assert (tmp_path / "file.partial").stat().st_size == 500


def test_without_a_network_the_error_says_where_to_put_the_file(tmp_path):
    with pytest.raises(cifar100.DownloadError, match=f"Without a network, put the file there as {tmp_path}"):
        cifar100.fetch("http://127.0.0.1:9/cifar-100-python.tar.gz", tmp_path / "file", SHA256)


def test_a_page_that_is_not_there_is_not_asked_for_again(site, tmp_path):
    with pytest.raises(cifar100.DownloadError, match="404"):
        cifar100.fetch(site.url.replace("cifar", "other"), tmp_path / "file", SHA256)


def test_a_class_that_is_not_one_of_the_hundred_is_named(site, tmp_path):
    with pytest.raises(
        data.UnknownClassError, match="bike: not one of CIFAR-100's classes: apple, bicycle, motorcycle"
    ):
        prepare_cifar100(site, tmp_path, "--classes", "bike")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


class Hostile:
    def __reduce__(self):
        return print, ("this must not run",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(archive_of(dict.fromkeys(("train", "test", "meta"), pickle.dumps([Hostile()], protocol=2))))
    with pytest.raises(cifar100.ArchiveError, match=r"it asks for \w+\.print, which pictures have no use for"):
        cifar100.read_archive(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no archive", ARCHIVE[:5_000], archive_of({"train": b"\x80\x02}."})])
def test_a_damaged_archive_is_named(content, tmp_path):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(content)
    with pytest.raises(cifar100.ArchiveError, match=r"archive\.tar\.gz cannot be read as CIFAR-100"):
        cifar100.read_archive(path)


def test_an_archive_with_a_label_too_high_is_refused(tmp_path):
    batch = python2_pickle({"data": pictures_of("train")[:1], "fine_labels": [3]})
    path = tmp_path / "archive.tar.gz"
    meta = python2_pickle({"fine_label_names": LABELS})
    path.write_bytes(archive_of({"train": batch, "test": batch, "meta": meta}))
    with pytest.raises(cifar100.ArchiveError, match="a label is none of the 3 classes"):
        cifar100.read_archive(path)


def write_pictures(folder, counts):
    """Pictures of many sizes and modes, all different; returns {name in the folder: bytes}."""
    random = np.random.default_rng(0)
    modes = [("RGB", "png"), ("L", "jpg"), ("RGBA", "webp"), ("P", "gif"), ("1", "bmp"), ("CMYK", "tiff")]
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            mode, ending = modes[number % len(modes)]
            pixels = random.integers(0, 256, (10 + number, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / label / f"{number}.{ending}")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in folder.rglob("*.*")}


def test_a_folder_of_any_pictures_is_copied_into_three_parts_that_share_none(tmp_path, capsys):
    originals = write_pictures(tmp_path / "pictures", {"cat": 20, "dog": 10})
    prepare.main(["folder", str(tmp_path / "pictures"), "--output", str(tmp_path / "out")])
    copied = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert {name.partition("/")[2]: content for name, content in copied.items()} == originals
    assert len(copied) == len(originals)
    assert capsys.readouterr().out == f"20 cat, 10 dog\n{tmp_path / 'out'}: 18 train, 6 validation, 6 test\n"


def test_unreadable_files_copies_and_uneven_classes_are_told(tmp_path, capsys):
    folder = tmp_path / "pictures"
    write_pictures(folder, {"cat": 20, "dog": 5})
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / "0 again.png").write_bytes((folder / "cat" / "0.png").read_bytes())
    (folder / "dog" / "cut.png").write_bytes((folder / "dog" / "0.png").read_bytes()[:200])
    prepare.main(["folder", str(folder), "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "2 of the files cannot be read and are left out:\n" in out
    assert f"  {folder}/cat/notes.txt: not a readable image" in out
    assert f"  {folder}/dog/cut.png: not a readable image" in out
    assert f"1 of the files are copies of others and are left out:\n  {folder}/cat/0.png: a copy of" in out
    assert "20 cat, 5 dog. The classes are uneven: the model will be worse at dog" in out
    assert not list((tmp_path / "out").rglob("notes.txt"))


def test_a_class_of_nothing_but_another_ones_pictures_is_refused(tmp_path, capsys):
    folder = tmp_path / "pictures"
    write_pictures(folder, {"cat": 5})
    shutil.copytree(folder / "cat", folder / "dog")
    with pytest.raises(data.ClassTooSmallError, match="class dog has no image that is not a copy of another class's"):
        prepare.main(["folder", str(folder), "--output", str(tmp_path / "out")])
    assert f"  {folder}/dog/0.png: a copy of {folder}/cat/0.png, which is of another class\n" in capsys.readouterr().out


def test_a_folder_with_too_many_unreadable_files_is_refused(tmp_path):
    write_pictures(tmp_path / "pictures", {"cat": 3, "dog": 3})
    (tmp_path / "pictures" / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(data.UnreadableImageError, match=r"notes\.txt: .* \(1 of 7 files cannot be read\)"):
        prepare.main(["folder", str(tmp_path / "pictures"), "--output", str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def test_a_folder_that_has_its_parts_already_is_not_split_again(tmp_path):
    write_pictures(tmp_path / "pictures", {"train": 3, "test": 3})
    with pytest.raises(prepare.PartsFolderError, match="has the parts already"):
        prepare.main(["folder", str(tmp_path / "pictures"), "--output", str(tmp_path / "out")])
