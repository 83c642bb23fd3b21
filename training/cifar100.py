"""CIFAR-100 from its authors' site: the download, its checksum, and the arrays inside.

The archive is never unpacked to disk, and its pickles are read with numpy's arrays as the only objects allowed, so
that nothing in it can run code.
"""

import hashlib
import http.client
import pickle
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass

import numpy as np

from data import DataError, UnknownClassError

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
SIDE = 32
LARGEST_MEMBER = 500_000_000  # bytes; the training pictures are 155 MB
CHUNK = 1 << 16
# What damaged or hostile archives make their readers raise.
READ_ERRORS = (
    tarfile.TarError,
    zlib.error,
    pickle.UnpicklingError,
    OSError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    MemoryError,
)
ATTEMPTS = 4  # in a row that bring nothing
SECONDS_WITHOUT_DATA = 30
SECONDS_BETWEEN_LINES = 3


class DownloadError(DataError):
    """The file could not be downloaded; the message says what to do."""


class ChecksumError(DataError):
    """What was downloaded is not the file that was published."""


class ArchiveError(DataError):
    """The archive holds something else than CIFAR-100's pictures."""


@dataclass(frozen=True)
class Pictures:
    """pixels: uint8 [N, 32, 32, 3]. targets: int64 [N], indexes into the names of the classes."""

    pixels: np.ndarray
    targets: np.ndarray


def fetch(url, path, sha256):
    """Download `url` to `path` unless it is there already, and go on where an earlier download stopped.

    Raises DownloadError, ChecksumError.
    """
    if path.is_file() and digest(path) == sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    began_earlier = partial.exists()
    try:
        download(url, partial)
        if began_earlier and digest(partial) != sha256:  # the earlier part was of another file
            partial.unlink()
            download(url, partial)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. What came is kept: run the command again to go on from there. Without a network, put the file "
            f"there as {path} (its sha256 is {sha256})"
        ) from None
    if (found := digest(partial)) != sha256:
        partial.unlink()
        raise ChecksumError(f"{url} has the sha256 {found}, not the published {sha256}: it was thrown away")
    partial.replace(path)
    return path


def download(url, partial):
    """Append to the file `partial` what it lacks of `url`. Raises DownloadError."""
    failures, total = 0, None
    while total is None or partial.stat().st_size < total:
        before = _size(partial)
        try:
            total = _continue(url, partial)
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{url} cannot be downloaded: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
        failures = 0 if _size(partial) > before else failures + 1
        if failures == ATTEMPTS:
            raise DownloadError(f"{url} cannot be downloaded: {reason}")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_archive(path):
    """The archive's (train Pictures, test Pictures, names of the classes). Raises ArchiveError."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = {part: _member(archive, f"cifar-100-python/{part}") for part in ("train", "test", "meta")}
        labels = [str(label) for label in members["meta"]["fine_label_names"]]
        return _pictures(members["train"], len(labels)), _pictures(members["test"], len(labels)), labels
    except READ_ERRORS as error:
        raise ArchiveError(f"{path} cannot be read as CIFAR-100: {error}") from error


def choose(pictures, labels, classes):
    """The pictures of some classes, their targets now indexes into `classes`. Raises UnknownClassError."""
    if unknown := [label for label in classes if label not in labels]:
        raise UnknownClassError(f"{', '.join(unknown)}: not one of CIFAR-100's classes: {', '.join(labels)}")
    wanted = [labels.index(label) for label in classes]
    indexes = np.flatnonzero(np.isin(pictures.targets, wanted))
    targets = np.array([wanted.index(target) for target in pictures.targets[indexes]], dtype=np.int64)
    return Pictures(pictures.pixels[indexes], targets)


ARRAY_PARTS = {  # what the pickle of an array asks for
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Lists, dictionaries, strings, numbers and numpy's arrays; a pickle that asks for anything else is refused."""

    def find_class(self, module, name):
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which pictures have no use for")
        return ARRAY_PARTS[module, name]


def _continue(url, partial):
    """One request for what `partial` lacks. Returns the size of the whole."""
    have = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=SECONDS_WITHOUT_DATA)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return have  # all of it, says the server; the checksum knows better
        raise
    with response:
        left = int(response.headers.get("Content-Length") or 0)
        if response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            return _write(response, partial, "ab", have + left)
        return _write(response, partial, "wb", left)  # all of it, from a server that knows no ranges


def _write(response, partial, mode, total):
    printed = time.monotonic()
    with open(partial, mode) as file:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            if time.monotonic() - printed > SECONDS_BETWEEN_LINES:
                print(f"{partial.stem}: {file.tell() / 1e6:.0f} of {total / 1e6:.0f} MB", flush=True)
                printed = time.monotonic()
    return total


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _member(archive, name):
    member = archive.getmember(name)
    if not member.isfile() or member.size > LARGEST_MEMBER:
        raise ArchiveError(f"{name} is no file of a sensible size")
    return ArrayUnpickler(archive.extractfile(member), encoding="latin1").load()


def _pictures(batch, classes):
    pixels = np.asarray(batch["data"])
    targets = np.asarray(batch["fine_labels"], dtype=np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (len(targets), 3 * SIDE * SIDE):
        raise ArchiveError(f"{pixels.dtype} {pixels.shape} with {len(targets)} labels are no pictures of CIFAR-100")
    if not ((targets >= 0) & (targets < classes)).all():
        raise ArchiveError(f"a label is none of the {classes} classes")
    return Pictures(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), targets)
