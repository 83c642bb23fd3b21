"""The image of a review as a browser can show it: streamed from S3, never written to a file."""

import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from botocore.client import BaseClient
from botocore.exceptions import ClientError

from endpoint import pixels
from review.table import Review

MAX_BYTES = 32 * 1024 * 1024  # as for RetrieveImage
CHUNK_BYTES = 256 * 1024
SHOWN = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp", "BMP": "image/bmp"}
SIDE = 1600  # of an image that is converted, if it is much larger
converting = threading.Lock()  # one at a time: a conversion can need 400 MB


class ImageError(Exception):
    """The image cannot be shown; the message says why."""


class ImageDeletedError(ImageError):
    """The object, or this version of it, does not exist any more."""


class ImageReplacedError(ImageError):
    """In a bucket without versions, the object was uploaded again since it was classified."""


class ImageAccessDeniedError(ImageError):
    """S3 refused: the object's bucket or its key is not covered by ReviewerPolicy."""


class ImageUnreadableError(ImageError):
    """The bytes are no image that can be shown."""


NAMED = {
    "NoSuchKey": ImageDeletedError,
    "NoSuchVersion": ImageDeletedError,
    "NoSuchBucket": ImageDeletedError,
    "404": ImageDeletedError,
    "MethodNotAllowed": ImageDeletedError,  # the version is a delete marker
    "PreconditionFailed": ImageReplacedError,
    "412": ImageReplacedError,
    "AccessDenied": ImageAccessDeniedError,
    "403": ImageAccessDeniedError,
}
MESSAGES = {
    ImageDeletedError: "was deleted from S3, so nobody can review it: choose not usable",
    ImageReplacedError: "was uploaded again since it was classified, so nobody can see what the model saw: "
    "choose not usable; the new upload is classified and reviewed on its own",
    ImageAccessDeniedError: "cannot be read with your credentials: attach the stack's ReviewerPolicy to them, or skip",
}


def open_image(s3: BaseClient, review: Review) -> tuple[str, Iterator[bytes]]:
    """The content type and the bytes of the version that was classified. Raises ImageError; other errors of S3."""
    response = get_version(s3, review.s3_bucket, review.s3_key, review.s3_version_id, review.version)
    if response["ContentLength"] > MAX_BYTES:
        response["Body"].close()
        raise ImageUnreadableError(f"{review.image} has {response['ContentLength']:,} bytes: too many to show")
    chunks = response["Body"].iter_chunks(CHUNK_BYTES)
    first = next(chunks, b"")
    kind = next((name for start, (name, _) in pixels.HEADERS.items() if first.startswith(start)), None)
    if kind in SHOWN:
        return SHOWN[kind], joined(first, chunks)
    return "image/png", iter([converted(review, first + b"".join(chunks))])


def get_version(s3: BaseClient, bucket: str, key: str, version_id: str | None, etag: str) -> dict[str, Any]:
    """GetObject's response for this version, or this ETag in a bucket without versions.

    Raises ImageError; other errors of S3.
    """
    bare = etag.strip('"')
    exactly = {"VersionId": version_id} if version_id else {"IfMatch": f'"{bare}"'}
    try:
        return s3.get_object(Bucket=bucket, Key=key, **exactly)
    except ClientError as error:
        named = NAMED.get(error.response["Error"]["Code"])
        if named is None:
            raise
        raise named(f"s3://{bucket}/{key} {MESSAGES[named]}") from None


def joined(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def converted(review: Review, data: bytes) -> bytes:
    """The image as PNG, for a format that browsers do not show. Raises ImageUnreadableError."""
    try:
        with converting:
            image, _ = pixels.read(data, (SIDE, SIDE))
            png = BytesIO()
            image.save(png, "PNG", compress_level=1)
    except pixels.UnsupportedImageError as error:
        raise ImageUnreadableError(f"{review.image} cannot be shown: {error}") from None
    return png.getvalue()
