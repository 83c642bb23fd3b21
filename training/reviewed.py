"""Images that people labelled with make review, as training data: the decisions, the images' bytes, and a manifest.

A line of the manifest is a JSON object: file, image (s3://bucket/key), version, s3_version_id (where the bucket keeps
versions), label, reviewer, created_at, reviewed_at, reason, selection_probability, weight (its inverse: an audited
image stands for so many accepted ones) and sha256. The file is in train/, or in heldout/ if models are compared on it.
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

from data import EXAMPLES, show_progress
from folders import LEFT_BY_SYSTEMS, ClassNameError, DataError, list_images
from inference import preprocess
from pixels import UnsupportedImageError

TRAIN, HELD_OUT = "train", "heldout"  # folders of the images
LEFT_OUT = "left-out.txt"  # a line for each reviewed image that is in none of them
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}  # which keys and file names can have
COPIED = ("image", "version", "s3_version_id", "reviewer", "created_at", "reviewed_at", "reason")  # from the table
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
LIKE_REVIEWED, TOO_NEW = "like a held-out image", "to hold out later"


class SameFolderError(DataError):
    """The output would replace the data to which it is added."""


class AwsError(DataError):
    """AWS refused a request, or there are no credentials."""


class StackNotFoundError(DataError):
    """There is no such stack, or it has no review table."""


class NoDecisionError(DataError):
    """No image of the stack has been labelled yet."""


class NoAuditError(DataError):
    """No accepted image was reviewed: the others are not like all images."""


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
    items = [item for item in with_status(table, "reviewed") if item["decision"]["S"] == "label"]
    if not items:
        raise NoDecisionError("no image has been given a label yet: make review")
    return sorted(map(entry_of, items), key=lambda entry: (entry["image"], entry["version"]))


def oldest_pending(table: str) -> str:
    """When the oldest image was put up for review that is still pending; if there is none, later than any time.

    Raises botocore's errors.
    """
    return min((item["created_at"]["S"] for item in with_status(table, "pending")), default="\uffff")


def with_status(table: str, status: str) -> Iterator[dict[str, dict[str, str]]]:
    """The table's items in DynamoDB's JSON. Raises botocore's errors."""
    query = {
        "TableName": table,
        "IndexName": "ByStatus",
        "KeyConditionExpression": "#status = :status",
        "ExpressionAttributeNames": {"#status": "status"},
        "ExpressionAttributeValues": {":status": {"S": status}},
    }
    for page in boto3.client("dynamodb").get_paginator("query").paginate(**query):
        yield from page["Items"]


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


def file_of(entry: Entry, part: str = TRAIN) -> str:
    """Where the image is below OUTPUT. Its name does not depend on the key, which can be anything."""
    suffix = re.search(r"\.[A-Za-z0-9]{1,5}$", entry["image"])
    return f"{part}/{entry['label']}/{entry['sha256'][:16]}{suffix[0].lower() if suffix else ''}"


def part_of(entry: Entry) -> str:
    return HELD_OUT if str(entry.get("file")).startswith(f"{HELD_OUT}/") else TRAIN


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
            write(image, folder / file_of(entry, part_of(entry)))
    if gone:
        raise ImageGoneError(f"{len(gone):,} of {len(entries):,} images are gone, the first is {gone[0]}")
    return [entry | {"file": file_of(entry, part_of(entry))} for entry in entries]


def write_new(
    entries: list[Entry], folder: Path, trained: set[str], held_out: HeldOut, share: float = 0, pending: str = ""
) -> tuple[list[Entry], list[LeftOut]]:
    """Write the images below `folder`. Returns their manifest, and the other images.

    trained: the sha256 of the images that are training data already. share, pending: of `share_held_out` and
    `oldest_pending`, to hold out images. Raises botocore's errors.
    """
    kept: dict[str, Entry] = {}
    drawn: set[str] = set()
    contradicted: set[str] = set()
    left_out: list[LeftOut] = []
    for entry, image in fetched(entries):
        if isinstance(image, str):
            left_out.append((GONE, f"{name(entry)}: {image}"))
            continue
        sha256 = hashlib.sha256(image).hexdigest()
        if is_held_out(entry | {"sha256": sha256}, share):
            drawn.add(sha256)  # even if only one of several copies is
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
    if not share:
        return list(kept.values()), left_out
    manifest, more = hold_out(list(kept.values()), drawn, pending, folder)
    return manifest, left_out + more


def share_held_out(entries: list[Entry], fraction: float) -> float:
    """The share of all classified images, reviewed or not, to hold out: `fraction`, or less if fewer were audited.

    Raises NoAuditError.
    """
    if not any(entry["reason"] == "audit" for entry in entries):
        raise NoAuditError(
            "no reviewed image is an audit. The others are those of which the model was unsure, on which almost any "
            "other model looks better: none can be held out. Raise AuditRate, or review the audits (make review)"
        )
    return min([fraction, *(entry["selection_probability"] for entry in entries)])


def is_held_out(entry: Entry, share: float) -> bool:
    """Whether the image is among those held out: always the same, because its hash is the random number.

    The more likely an image was chosen for review, the less likely it is held out, so that every classified image has
    the same chance and the held-out ones are like all.
    """
    return int(entry["sha256"][:16], 16) / 2**64 < share / entry["selection_probability"]


def hold_out(manifest: list[Entry], drawn: set[str], pending: str, folder: Path) -> tuple[list[Entry], list[LeftOut]]:
    """Move the images `drawn`, given by their sha256, from the training images to the held-out ones.

    Left out are drawn images put up for review since `pending`, because the least confident images are reviewed first,
    and training images that are near-duplicates of a held-out one. Returns the new manifest and what was left out.
    """
    kept, left_out = [], []
    for entry in [each for each in manifest if each["sha256"] in drawn]:
        source = folder / entry["file"]
        if entry["created_at"] >= pending:
            source.unlink()
            left_out.append((TOO_NEW, f"{name(entry)}: an older image is still pending"))
            continue
        entry = entry | {"file": file_of(entry, HELD_OUT)}
        write(source.read_bytes(), folder / entry["file"])
        source.unlink()
        kept.append(entry)
    held_out = HeldOut([folder / HELD_OUT] if kept else [])
    for entry in [each for each in manifest if each["sha256"] not in drawn]:
        source = folder / entry["file"]
        if reason := held_out.like(source.read_bytes()):
            source.unlink()
            left_out.append((LIKE_REVIEWED, f"{name(entry)}: {reason.replace(f'{folder}/', '')}"))  # as in the manifest
        else:
            kept.append(entry)
    return sorted(kept, key=lambda entry: (entry["image"], entry["version"])), left_out


def write_left_out(left_out: list[LeftOut], path: Path) -> None:
    lines = "".join(f"{line.translate(CONTROLS)}\n" for _, line in left_out)
    path.write_text(lines, encoding="utf-8", errors="backslashreplace")  # not every file name is UTF-8


def summary(added: list[Entry], left_out: list[LeftOut], path: Path) -> str:
    """How many images were added and left out, by reason, with examples. path: of the whole list."""
    kinds = Counter(kind for kind, _ in left_out)
    by_reason = f" ({', '.join(f'{number:,} {kind}' for kind, number in kinds.items())})" if kinds else ""
    held_out = sum(part_of(entry) == HELD_OUT for entry in added)
    of_them = f", of which {held_out:,} are held out" if held_out else ""
    lines = [f"Added: {len(added):,}{of_them}. Left out: {len(left_out):,}{by_reason}"]
    for kind, number in kinds.items():
        lines += [f"  {line.translate(CONTROLS)}" for each, line in left_out if each == kind][:EXAMPLES]
        if number > EXAMPLES:
            lines.append(f"  and {number - EXAMPLES:,} more {kind}")
    lines += [f"Full list: {path}"] if left_out else []
    lines += [] if added else ["Warning: no image was added"]
    return "\n".join(lines)


def hashes(folder: Path) -> set[str]:
    """The sha256 of all files of a folder; empty if there is none."""
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
