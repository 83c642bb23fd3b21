"""RetrieveImage: an object in S3 -> a validated image in base64, small enough for a state's payload.

in   s3_bucket, s3_key; optional s3_version_id, threshold
out  + image: {content_type, width, height, source_bytes, resized, data}
"""

import base64
import hashlib
import io
import struct
import zlib
from typing import Any

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError, ParamValidationError
from botocore.exceptions import ConnectionError as S3ConnectionError
from PIL import Image, ImageOps

from contract import RETRIEVE_IMAGE, InvalidInputError, validator

# A state's payload is limited to 256 KiB. A 144 KiB image is 192 KiB in base64, under 200 KiB with the longest key.
MAX_IMAGE_BYTES = 144 * 1024
MAX_SOURCE_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 64_000_000
MAX_SIDE = 1024
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
DECODER_ERRORS = (OSError, SyntaxError, ValueError, IndexError, OverflowError, EOFError, struct.error, zlib.error)

logger = Logger()
tracer = Tracer()
metrics = Metrics()
s3 = boto3.client(
    "s3",
    # The pool is for ClassifyBatch, which reads many objects side by side.
    config=Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard"}, max_pool_connections=16),
)
validated = validator(RETRIEVE_IMAGE)


class ImageNotFoundError(Exception):
    """The bucket, object or version does not exist."""


class ImageAccessDeniedError(Exception):
    """The function's role cannot read the object, or the object is archived."""


class ImageStoreUnavailableError(Exception):
    """S3 asked to slow down, failed internally or did not respond: worth a retry."""


class UnsupportedImageError(Exception):
    """The object is damaged, or not an image in one of FORMATS."""


class ImageTooLargeError(Exception):
    """The object exceeds MAX_SOURCE_BYTES or MAX_PIXELS."""


S3_ERRORS = {
    **dict.fromkeys(("NoSuchKey", "NoSuchVersion", "NoSuchBucket", "MethodNotAllowed", "404"), ImageNotFoundError),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "InvalidObjectState", "403"), ImageAccessDeniedError),
    **dict.fromkeys(("InvalidArgument", "InvalidBucketName", "KeyTooLongError", "InvalidRequest"), InvalidInputError),
    **dict.fromkeys(
        ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "ThrottlingException", "503", "500"),
        ImageStoreUnavailableError,
    ),
}


@tracer.capture_method(capture_response=False)
def fetch(s3_bucket: str, s3_key: str, s3_version_id: str | None = None) -> bytes:
    """The object's bytes. S3's errors are raised as those above: the state machine matches errors by class name."""
    version = {"VersionId": s3_version_id} if s3_version_id else {}
    uri = f"s3://{s3_bucket}/{s3_key}" + (f" (version {s3_version_id})" if s3_version_id else "")
    try:
        response = s3.get_object(Bucket=s3_bucket, Key=s3_key, **version)
        if (size := response["ContentLength"]) > MAX_SOURCE_BYTES:
            raise ImageTooLargeError(f"{uri} has {size:,} bytes; the maximum is {MAX_SOURCE_BYTES:,}")
        return response["Body"].read()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code not in S3_ERRORS:
            raise
        raise S3_ERRORS[code](f"{uri}: {error.response['Error'].get('Message') or code} ({code})") from None
    except ParamValidationError as error:
        raise InvalidInputError(f"{uri}: {error}") from None
    except (HTTPClientError, S3ConnectionError, IncompleteReadError) as error:
        raise ImageStoreUnavailableError(f"{uri}: {error}") from None


def key_hash(s3_key: str) -> str:
    """A hash of the key for X-Ray filters, where the key itself would need escaping."""
    return hashlib.sha256(s3_key.encode()).hexdigest()[:16]


@tracer.capture_method(capture_response=False)
def fit(source: bytes, uri: str) -> dict[str, Any]:
    """The image, fully decoded as a check: unchanged, or as a smaller upright JPEG if it exceeds MAX_IMAGE_BYTES.

    Returns {content_type, width, height, source_bytes, resized, data}; width and height are those of `data`, in pixels,
    when upright. Raises ImageTooLargeError or UnsupportedImageError, naming `uri`.
    """
    try:
        image = Image.open(io.BytesIO(source), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageTooLargeError(f"{uri} has {width} x {height} pixels; the maximum is {MAX_PIXELS:,}")
        resized = len(source) > MAX_IMAGE_BYTES
        if resized:
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # lets the JPEG decoder skip detail that shrink() would discard
        ImageOps.exif_transpose(image, in_place=True)
        image.load()  # decodes: a truncated file fails here
        data, upright = shrink(image) if resized else (source, image)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{uri}: {error}") from None
    except DECODER_ERRORS as error:
        reason = "it is empty" if not source else str(error).partition("<_io.")[0].strip() or type(error).__name__
        raise UnsupportedImageError(f"{uri} is not a readable {', '.join(FORMATS)} image: {reason}") from None
    is_jpeg = resized or image.format == "MPO"  # Pillow's name for a phone's JPEG with a second image appended
    return {
        "content_type": "image/jpeg" if is_jpeg else Image.MIME[str(image.format)],
        "width": upright.width,
        "height": upright.height,
        "source_bytes": len(source),
        "resized": resized,
        "data": base64.b64encode(data).decode(),
    }


def shrink(image: Image.Image) -> tuple[bytes, Image.Image]:
    """A JPEG of at most MAX_IMAGE_BYTES, and its image: sides of at most MAX_SIDE, transparency made white."""
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 257).convert("L")  # convert() alone would clip at 255
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        image.thumbnail((MAX_SIDE, MAX_SIDE))  # first: each full-size copy would need four bytes per pixel
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    side = MAX_SIDE
    while True:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        if buffer.tell() <= MAX_IMAGE_BYTES:
            return buffer.getvalue(), image
        side = side * 3 // 4


@logger.inject_lambda_context(correlation_id_path="execution_arn")
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    request = validated(event)
    tracer.put_annotation("s3_bucket", request["s3_bucket"])
    tracer.put_annotation("s3_key_hash", key_hash(request["s3_key"]))
    source = fetch(request["s3_bucket"], request["s3_key"], request.get("s3_version_id"))
    image = fit(source, f"s3://{request['s3_bucket']}/{request['s3_key']}")
    metrics.add_metric("ImageBytes", MetricUnit.Bytes, image["source_bytes"])
    logger.info("image retrieved", **request, image={key: value for key, value in image.items() if key != "data"})
    return {**request, "image": image}
