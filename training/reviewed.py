"""Images that people labelled with make review, as training data: the decisions, the images' bytes, and a manifest.

A line of the manifest is a JSON object: file, image (s3://bucket/key), version, s3_version_id (where the bucket keeps
versions), label, reviewer, reviewed_at, reason, selection_probability, weight (its inverse: an audited image stands for
so many accepted ones) and sha256.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from botocore.exceptions import BotoCoreError, ClientError

from data import show_progress
from folders import LEFT_BY_SYSTEMS, ClassNameError, DataError, list_images
from inference import preprocess
from pixels import UnsupportedImageError

COPIED = ("image", "version", "s3_version_id", "reviewer", "reviewed_at", "reason")  # from the table
NEEDED = ("image", "version", "label", "sha256")  # in a line of a manifest
WORKERS = 10
CHUNK = 100  # images in memory
# Two images are near-duplicates if their grey thumbnails correlate so much. Of 1,000 photographs of CIFAR-100, 600 of
# them changed in each way, this finds all that were resized smoothly, or saved again as a JPEG of quality 75; 99 % of
# those of quality 30; none that were cropped or mirrored. It takes 2 pairs for the same, and they are.
THUMBNAIL = (8, 8)
SAME = 0.99

Entry = dict[str, Any]  # a line of the manifest
LeftOut = tuple[str, str]  # why in general, and a line about the image
GONE, PRESENT, LIKE_HELD_OUT = "no longer in S3", "there already", "like a validation or test image"
CONTRADICTED, UNREADABLE = "with two labels", "unreadable"


class SameFolderError(DataError):
    """The output would replace the data to which it is added."""


class AwsError(DataError):
    """AWS refused a request, or there are no credentials."""


class StackNotFoundError(DataError):
    """There is no such stack, or it has no review table."""


class NoDecisionError(DataError):
    """No image of the stack has been labelled yet."""


class ManifestError(DataError):
    """A line of the manifest is not one of ours."""


class ImageGoneError(DataError):
    """Images of the manifest were deleted: its data cannot be made again."""


class ImageChangedError(DataError):
    """S3 returned other bytes than the manifest's."""


@contextmanager
def aws_errors(stack: str | None) -> Iterator[None]:
    """Raise botocore's errors as AwsError. stack: the given one, which is on AWS; None can be the local stack."""
    try:
        yield
    except ClientError as error:
        raise AwsError(str(error)) from None
    except BotoCoreError as error:
        local = "For the local stack: make up, then source .local/env"
        advice = "Check AWS's credentials and region: aws configure" if stack else local
        raise AwsError(f"{str(error).rstrip('.')}. {advice}") from None


def review_table(stack: str) -> str:
    """The name of a stack's review table. Raises StackNotFoundError, botocore's errors."""
    try:
        (described,) = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":
            raise
        raise StackNotFoundError(f"there is no stack {stack} in this account and region") from None
    outputs = {output["OutputKey"]: output["OutputValue"] for output in described.get("Outputs", [])}
    if "ReviewTableName" not in outputs:
        raise StackNotFoundError(f"the stack {stack} has no review table: update it with make deploy")
    return outputs["ReviewTableName"]


def decided(table: str) -> list[Entry]:
    """The images that people gave a label, sorted, without sha256 and file.

    Raises NoDecisionError, botocore's errors.
    """
    query = {
        "TableName": table,
        "IndexName": "ByStatus",
        "KeyConditionExpression": "#status = :reviewed",
        "ExpressionAttributeNames": {"#status": "status"},
        "ExpressionAttributeValues": {":reviewed": {"S": "reviewed"}},
    }
    pages = boto3.client("dynamodb").get_paginator("query").paginate(**query)
    items = [item for page in pages for item in page["Items"] if item["decision"]["S"] == "label"]
    if not items:
        raise NoDecisionError("no image has been given a label yet: make review")
    return sorted(map(entry_of, items), key=lambda entry: (entry["image"], entry["version"]))


def entry_of(item: dict[str, dict[str, str]]) -> Entry:
    """A manifest's line from the table's item in DynamoDB's JSON."""
    entry: Entry = {name: item[name]["S"] for name in COPIED if name in item}
    probability = float(Decimal(item["selection_probability"]["N"]))
    label = item["reviewed_label"]["S"]
    return entry | {"label": label, "selection_probability": probability, "weight": 1 / probability}


def read_manifest(path: Path) -> list[Entry]:
    """Raises ManifestError."""
    entries = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                entry = json.loads(line)
                if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in NEEDED):
                    raise ManifestError(f"{path}: line {number} has no {', '.join(NEEDED)}")
                if not re.fullmatch("s3://[^/]+/.+", entry["image"], re.DOTALL):
                    raise ManifestError(f"{path}: line {number}: {entry['image']!r} is not s3://bucket/key")
                if not re.fullmatch("[0-9a-f]{64}", entry["sha256"]):
                    raise ManifestError(f"{path}: line {number}: {entry['sha256']!r} is not a sha256")
                entries.append(entry)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8
        raise ManifestError(f"{path}: {error}") from None
    return entries


def write_manifest(entries: Iterable[Entry], path: Path) -> None:
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")


def check_labels(entries: list[Entry]) -> None:
    """Raise ClassNameError for a label that cannot be the name of a folder, or that train.py would not find there."""
    for label in {entry["label"] for entry in entries}:
        hidden = label.startswith(".") or label.lower() in LEFT_BY_SYSTEMS
        if not label or hidden or re.search(r"[/\0\ud800-\udfff]", label) or len(label.encode()) > 255:
            raise ClassNameError(f"the label {label!r} cannot be the name of a folder of images")


def fetched(entries: list[Entry]) -> Iterator[tuple[Entry, bytes | str]]:
    """The bytes of each image's version, or why S3 does not have it, with progress.

    Raises botocore's errors.
    """
    s3 = boto3.client("s3")

    def fetch(entry: Entry) -> bytes | str:
        bucket, _, key = entry["image"].removeprefix("s3://").partition("/")
        version = entry.get("s3_version_id")
        wanted = {"VersionId": version} if version else {"IfMatch": f'"{entry["version"]}"'}
        try:
            return s3.get_object(Bucket=bucket, Key=key, **wanted)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "NoSuchVersion", "NoSuchBucket"):
                return "it was deleted"
            if error.response["Error"]["Code"] == "PreconditionFailed":
                return "another image has replaced it"
            raise

    with ThreadPoolExecutor(WORKERS) as pool:
        chunks = (entries[start : start + CHUNK] for start in range(0, len(entries), CHUNK))
        images = (pair for chunk in chunks for pair in zip(chunk, pool.map(fetch, chunk), strict=True))
        yield from show_progress(images, len(entries), "Reviewed images")


def thumbnail(image: bytes) -> np.ndarray:
    """The image in grey at THUMBNAIL's size, float32 [64], with mean 0 and length 1. Raises UnsupportedImageError.

    The product of two is the correlation of their images. An image of one colour becomes zeros, like no other.
    """
    grey = preprocess(image, THUMBNAIL).mean(0).ravel()
    grey -= grey.mean()
    return grey / max(float(np.linalg.norm(grey)), 1e-6)


class HeldOut:
    """The images of folders of classes with which a model is validated and tested: no copy may be trained on."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """Raises the errors of list_images. Unreadable files are ignored, as in training."""
        self.paths: list[Path] = []
        self.hashes: dict[bytes, Path] = {}
        rows = []
        for folder in folders:
            for path in [path for paths in list_images(folder, min_classes=1).values() for path in paths]:
                image = path.read_bytes()
                self.hashes[hashlib.sha256(image).digest()] = path
                try:
                    rows.append(thumbnail(image))
                except UnsupportedImageError:
                    continue
                self.paths.append(path)
        self.thumbnails = np.array(rows, dtype=np.float32).reshape(-1, THUMBNAIL[0] * THUMBNAIL[1])

    def like(self, image: bytes) -> str:
        """Which held-out image this is a copy or a near-duplicate of, in words; "" if none.

        Raises UnsupportedImageError.
        """
        row = thumbnail(image)
        if same := self.hashes.get(hashlib.sha256(image).digest()):
            return f"same as {same}"
        if not self.paths:
            return ""
        correlations = self.thumbnails @ row
        nearest = int(correlations.argmax())
        return f"like {self.paths[nearest]}" if correlations[nearest] >= SAME else ""


def file_of(entry: Entry) -> str:
    """Where the image is below OUTPUT. Its name does not depend on the key, which can be anything."""
    suffix = re.search(r"\.[A-Za-z0-9]{1,5}$", entry["image"])
    return f"train/{entry['label']}/{entry['sha256'][:16]}{suffix[0].lower() if suffix else ''}"


def write(image: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)


def name(entry: Entry) -> str:
    return f"{entry['image']} (version {entry['version']})"


def write_again(entries: list[Entry], folder: Path) -> list[Entry]:
    """Write a manifest's images below `folder`. Raises ImageGoneError, ImageChangedError, botocore's errors."""
    gone = []
    for entry, image in fetched(entries):
        if isinstance(image, str):
            gone.append(f"{name(entry)}: {image}")
        elif hashlib.sha256(image).hexdigest() != entry["sha256"]:
            raise ImageChangedError(f"{name(entry)} has other bytes than when the manifest was written")
        else:
            write(image, folder / file_of(entry))
    if gone:
        raise ImageGoneError(f"{len(gone):,} of {len(entries):,} images are gone, the first is {gone[0]}")
    return [entry | {"file": file_of(entry)} for entry in entries]


def write_new(
    entries: list[Entry], folder: Path, trained: set[str], held_out: HeldOut
) -> tuple[list[Entry], list[LeftOut]]:
    """Write the images to train on below `folder`. Returns their manifest, and the other images.

    trained: the sha256 of the images that are training data already. Raises botocore's errors.
    """
    kept: dict[str, Entry] = {}
    contradicted: set[str] = set()
    left_out: list[LeftOut] = []
    for entry, image in fetched(entries):
        if isinstance(image, str):
            left_out.append((GONE, f"{name(entry)}: {image}"))
            continue
        sha256 = hashlib.sha256(image).hexdigest()
        if first := kept.get(sha256):
            if entry["label"] == first["label"]:
                left_out.append((PRESENT, f"{name(entry)}: is there already, as {name(first)}"))
            else:
                two = f"labelled {entry['label']} and {first['label']}"
                left_out.append((CONTRADICTED, f"{name(entry)}: same as {name(first)}, {two}"))
                contradicted.add(sha256)
            continue
        try:
            kind, reason = PRESENT, "is in the training data already"
            if sha256 not in trained:
                kind, reason = LIKE_HELD_OUT, held_out.like(image)
        except UnsupportedImageError as error:
            kind, reason = UNREADABLE, str(error)
        if reason:
            left_out.append((kind, f"{name(entry)}: {reason}"))
            continue
        new = entry | {"sha256": sha256}
        kept[sha256] = {"file": file_of(new)} | new
        write(image, folder / kept[sha256]["file"])
    for sha256 in contradicted:
        entry = kept.pop(sha256)
        (folder / entry["file"]).unlink()
        left_out.append((CONTRADICTED, f"{name(entry)}: the same image has another label too"))
    return list(kept.values()), left_out


def summary(added: list[Entry], left_out: list[LeftOut]) -> str:
    """How many images were added and left out, by reason, and a line for each image that was left out."""
    kinds = Counter(kind for kind, _ in left_out)
    by_reason = f" ({', '.join(f'{number:,} {kind}' for kind, number in kinds.items())})" if kinds else ""
    lines = [f"Added: {len(added):,}. Left out: {len(left_out):,}{by_reason}", *(line for _, line in left_out)]
    warning = "" if added else "\nWarning: no image was added"
    return "\n  ".join(lines) + warning


def hashes(folder: Path) -> set[str]:
    """The sha256 of all files of a folder; empty if there is none."""
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
