"""Find the images in folders of class folders, DIR/<label>/<image>, as people and their systems leave them."""

import unicodedata
from pathlib import Path

Classes = dict[str, list[Path]]  # the files of each label

# Of Windows, macOS's archives, Synology, Linux; in lower case
LEFT_BY_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
LEFT_BY_SYSTEMS |= {"__macosx", "icon\r", "@eadir", "#recycle", "lost+found"}
MANIFEST = "manifest.jsonl"  # beside the folder train: the objects that prepare.py reviewed made it of
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval"}  # no names of classes


class DataError(Exception):
    """The data is unsuitable for training; the message names the folder or file and the reason."""


class MissingFolderError(DataError):
    pass


class TooFewClassesError(DataError):
    pass


class ClassNameError(DataError):
    pass


class AlreadySplitError(DataError):
    """The folder holds train, validation and test folders, not classes."""


def list_images(folder: Path, min_classes: int = 2) -> Classes:
    """List the files of each class folder, sorted, as {label: [path, ...]}. Hidden files and empty classes are skipped.

    Folders inside a class folder belong to its class.
    Raises MissingFolderError, TooFewClassesError, ClassNameError, AlreadySplitError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFolderError(f"{folder} is not a folder")
    classes: Classes = {}
    for path in [path for path in _visible(folder) if path.is_dir()]:  # macOS decomposes é, other systems do not
        classes.setdefault(unicodedata.normalize("NFC", path.name), []).extend(_visible(path))
    filled = {label: paths for label, paths in classes.items() if paths}
    if len(filled) < min_classes:
        needed = "at least two folders" if min_classes == 2 else "a folder"
        raise TooFewClassesError(f"{folder} needs {needed} of images, one for each class; has {len(filled)}")
    for label in filled:
        if label != label.encode(errors="replace").decode():  # bytes that are not UTF-8
            raise ClassNameError(f"{folder}: rename the folder {label!r}: a label must be valid UTF-8")
    if {label.lower() for label in filled} <= SPLITS and any(
        path.is_dir() for paths in filled.values() for path in paths
    ):
        raise AlreadySplitError(f"{folder} is split into {' and '.join(filled)}: pass these folders, not their parent")
    return {label: [file for path in paths for file in _files(path)] for label, paths in filled.items()}


def _visible(folder: Path) -> list[Path]:
    """The entries of a folder, but for hidden ones and what operating systems and network drives leave."""
    try:
        paths = sorted(folder.iterdir())
    except PermissionError as error:
        raise MissingFolderError(f"{folder} cannot be read: {error.strerror}") from None
    return [path for path in paths if not path.name.startswith(".") and path.name.lower() not in LEFT_BY_SYSTEMS]


def _files(path: Path) -> list[Path]:
    """The file itself, or the visible files of a folder and of the folders in it."""
    return [file for each in _visible(path) for file in _files(each)] if path.is_dir() else [path]
