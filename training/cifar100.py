"""Download CIFAR-100 from its authors' site, verify its checksum and read its arrays.

The archive is never unpacked to disk. Its pickles may create no objects except numpy arrays, so that they cannot run
code.
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
from pathlib import Path
from typing import Any

import numpy as np

from data import UnknownClassError
from folders import DataError

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
SIDE = 32
MAX_MEMBER = 500_000_000  # bytes; the training images are 155 MB
CHUNK = 1 << 16  # bytes
# Raised by the readers of tar, gzip and pickle for damaged or hostile archives.
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
ATTEMPTS = 4  # consecutive requests without any data
SECONDS_WITHOUT_DATA = 30
SECONDS_BETWEEN_LINES = 3


class DownloadError(DataError):
    """The download failed; the message says what to do."""


class ChecksumError(DataError):
    """The downloaded file is not the published one."""


class ArchiveError(DataError):
    """The archive does not hold CIFAR-100's images."""


@dataclass(frozen=True)
class Images:
    """pixels: uint8 [N, 32, 32, 3]. targets: int64 [N], indexes into the class names."""

    pixels: np.ndarray
    targets: np.ndarray


def fetch(url: str, path: Path, sha256: str) -> Path:
    """Download `url` to `path` unless it is already there. An interrupted download is resumed.

    Raises DownloadError, ChecksumError.
    """
    if path.is_file() and digest(path) == sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    resumed = partial.exists()
    try:
        download(url, partial)
        if resumed and digest(partial) != sha256:  # the existing part came from a different file
            partial.unlink()
            download(url, partial)
    except DownloadError as error:
        raise DownloadError(
            f"{error}. Run the command again to resume the download. Without a network, save the file as {path} "
            f"(its sha256 is {sha256})"
        ) from None
    if (found := digest(partial)) != sha256:
        partial.unlink()
        raise ChecksumError(f"{url} has the sha256 {found}, not the published {sha256}: the file was deleted")
    partial.replace(path)
    return path


def download(url: str, partial: Path) -> None:
    """Append the missing bytes of `url` to the file `partial`. Raises DownloadError."""
    failures, total = 0, None
    while total is None or partial.stat().st_size < total:
        before = _size(partial)
        try:
            total = _resume(url, partial)
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{url} cannot be downloaded: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
        failures = 0 if _size(partial) > before else failures + 1
        if failures == ATTEMPTS:
            raise DownloadError(f"{url} cannot be downloaded: {reason}")


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_archive(path: Path) -> tuple[Images, Images, list[str]]:
    """Read the training images, the test images and the class names. Raises ArchiveError."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = {part: _member(archive, f"cifar-100-python/{part}") for part in ("train", "test", "meta")}
        labels = [str(label) for label in members["meta"]["fine_label_names"]]
        return _images(members["train"], len(labels)), _images(members["test"], len(labels)), labels
    except READ_ERRORS as error:
        raise ArchiveError(f"{path} cannot be read as CIFAR-100: {error}") from error


def choose(images: Images, labels: list[str], classes: list[str]) -> Images:
    """Select the images of the given classes; the new targets are indexes into `classes`. Raises UnknownClassError."""
    if unknown := [label for label in classes if label not in labels]:
        raise UnknownClassError(f"{', '.join(unknown)}: not one of CIFAR-100's classes: {', '.join(labels)}")
    wanted = [labels.index(label) for label in classes]
    indexes = np.flatnonzero(np.isin(images.targets, wanted))
    targets = np.array([wanted.index(target) for target in images.targets[indexes]], dtype=np.int64)
    return Images(images.pixels[indexes], targets)


ALLOWED: dict[tuple[str, str], Any] = {  # the globals in the pickle of an array
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Loads lists, dictionaries, strings, numbers and numpy arrays; rejects pickles with any other object."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which no image needs")
        return ALLOWED[module, name]


def _resume(url: str, partial: Path) -> int:
    """Request the missing bytes of `partial` once. Returns the size of the whole file."""
    have = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=SECONDS_WITHOUT_DATA)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return have  # according to the server the file is complete; the checksum decides
        raise
    with response:
        left = int(response.headers.get("Content-Length") or 0)
        if response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            return _write(response, partial, "ab", have + left)
        return _write(response, partial, "wb", left)  # the server does not support ranges and sends the whole file


def _write(response: http.client.HTTPResponse, partial: Path, mode: str, total: int) -> int:
    printed = time.monotonic()
    with open(partial, mode) as file:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            if time.monotonic() - printed > SECONDS_BETWEEN_LINES:
                print(f"{partial.stem}: {file.tell() / 1e6:.0f} of {total / 1e6:.0f} MB", flush=True)
                printed = time.monotonic()
    return total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _member(archive: tarfile.TarFile, name: str) -> dict[str, Any]:
    member = archive.getmember(name)
    content = archive.extractfile(member) if member.isfile() else None
    if content is None or member.size > MAX_MEMBER:
        raise ArchiveError(f"{name} is not a file of at most {MAX_MEMBER:,} bytes")
    return ArrayUnpickler(content, encoding="latin1").load()


def _images(batch: dict[str, Any], classes: int) -> Images:
    pixels = np.asarray(batch["data"])
    targets = np.asarray(batch["fine_labels"], dtype=np.int64)
    if pixels.dtype != np.uint8 or pixels.shape != (len(targets), 3 * SIDE * SIDE):
        raise ArchiveError(f"{pixels.dtype} {pixels.shape} with {len(targets)} labels are not CIFAR-100's images")
    if not ((targets >= 0) & (targets < classes)).all():
        raise ArchiveError(f"a label is not one of the {classes} classes")
    return Images(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), targets)
