"""What a model was made from: data, code, and the model before it. Part of metadata.json."""

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from folders import MANIFEST, list_images


def lineage(train: Path, validation: Path | None, test: Path | None, model_dir: Path) -> dict[str, Any]:
    """The lineage of a model that is about to be trained on these folders, and to replace the one in `model_dir`.

    Without a validation folder, the validation data is part of the training data. Raises DataError.
    """
    parts = {"train": train, "validation": validation, "test": test}
    manifest, before = train.parent / MANIFEST, model_dir / "model.onnx"
    return {
        "data": {part: data_sha256(folder) if folder else None for part, folder in parts.items()},
        "manifest_sha256": digest_of(manifest) if manifest.is_file() else None,
        "code": code(),
        "parent": digest_of(before) if before.is_file() else None,
    }


def data_sha256(folder: Path) -> str:
    """The hash of a folder's images. Raises DataError."""
    pairs = []
    for label, paths in list_images(folder, min_classes=1).items():
        for path in paths:
            try:
                pairs.append((digest_of(path), label))
            except OSError:  # which training skips too
                continue
    return fingerprint(pairs)


def fingerprint(images: Iterable[tuple[str, str]]) -> str:
    """The sha256 of images, given as (sha256, label): the same whatever their names and order.

    Of images with the same bytes, the first one counts.
    """
    first: dict[str, str] = {}
    for digest, label in images:
        first.setdefault(digest, label)
    return hashlib.sha256(
        "".join(sorted(f"{digest} {label}\n" for digest, label in first.items())).encode()
    ).hexdigest()


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code() -> dict[str, Any]:
    """The commit of this checkout, and whether its files differ from it; None where git or its folder is missing."""
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "modified": None if changes is None else bool(changes)}


def git(*arguments: str) -> str | None:
    """What git prints about this checkout; None if it fails, as in a SageMaker job."""
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
