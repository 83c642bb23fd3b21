"""RetrieveImage: an object in S3 -> a checked image in base64 that fits into the payload of a state.

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

# A state's payload is at most 256 KiB. 144 KiB of image are 192 KiB of base64; with the longest key, below 200 KiB.
MAX_IMAGE_BYTES = 144 * 1024
MAX_SOURCE_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 64_000_000
MAX_SIDE = 1024
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
DECODER_ERRORS = (OSError, SyntaxError, ValueError, IndexError, OverflowError, EOFError, struct.error, zlib.error)

logger = Logger()
tracer = Tracer()
metrics = Metrics()
s3 = boto3.client("s3", config=Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard"}))
take = validator(RETRIEVE_IMAGE)


class ImageNotFoundError(Exception):
    """There is no such bucket, object or version."""


class ImageAccessDeniedError(Exception):
    """The function's role may not read the object."""


class ImageStoreUnavailableError(Exception):
    """S3 asks to slow down or does not answer: worth another try."""


class UnsupportedImageError(Exception):
    """The object is no image of a format in FORMATS, or a broken one."""


class ImageTooLargeError(Exception):
    """The object has more bytes or pixels than the function takes."""


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
    """The object's bytes. Every error that S3 names becomes one that the state machine can react to."""
    version = {"VersionId": s3_version_id} if s3_version_id else {}
    uri = f"s3://{s3_bucket}/{s3_key}" + (f" (version {s3_version_id})" if s3_version_id else "")
    try:
        response = s3.get_object(Bucket=s3_bucket, Key=s3_key, **version)
        if (size := response["ContentLength"]) > MAX_SOURCE_BYTES:
            raise ImageTooLargeError(f"{uri} has {size:,} bytes; at most {MAX_SOURCE_BYTES:,} are taken")
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
    """What finds a key's traces: an annotation with nothing in it that a filter of X-Ray would have to quote."""
    return hashlib.sha256(s3_key.encode()).hexdigest()[:16]


@tracer.capture_method(capture_response=False)
def fit(source: bytes, uri: str) -> dict[str, Any]:
    """The image as it is, checked by decoding it whole; as a smaller upright JPEG if it has over MAX_IMAGE_BYTES.

    Returns {content_type, width, height, source_bytes, resized, data}; its size in pixels is that of `data`, upright.
    """
    try:
        image = Image.open(io.BytesIO(source), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageTooLargeError(f"{uri} is {width} x {height} pixels; at most {MAX_PIXELS:,} are taken")
        resized = len(source) > MAX_IMAGE_BYTES
        if resized:
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # lets the JPEG decoder skip detail that is thrown away below
        ImageOps.exif_transpose(image, in_place=True)
        image.load()  # decodes: a truncated file fails here
        data, upright = shrink(image) if resized else (source, image)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{uri}: {error}") from None
    except DECODER_ERRORS as error:
        reason = "it is empty" if not source else str(error).partition("<_io.")[0].strip() or type(error).__name__
        raise UnsupportedImageError(f"{uri} is not a readable {', '.join(FORMATS)} image: {reason}") from None
    is_jpeg = resized or image.format == "MPO"  # Pillow's name for a JPEG of a phone with a second picture behind it
    return {
        "content_type": "image/jpeg" if is_jpeg else Image.MIME[image.format],
        "width": upright.width,
        "height": upright.height,
        "source_bytes": len(source),
        "resized": resized,
        "data": base64.b64encode(data).decode(),
    }


def shrink(image: Image.Image) -> tuple[bytes, Image.Image]:
    """JPEG of at most MAX_IMAGE_BYTES, and its image: no side over MAX_SIDE, transparent parts white."""
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 257).convert("L")  # convert() alone would clip at 255
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        image.thumbnail((MAX_SIDE, MAX_SIDE))  # first: each copy of the whole would be four bytes a pixel
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
    request = take(event)
    tracer.put_annotation("s3_bucket", request["s3_bucket"])
    tracer.put_annotation("s3_key_hash", key_hash(request["s3_key"]))
    source = fetch(request["s3_bucket"], request["s3_key"], request.get("s3_version_id"))
    image = fit(source, f"s3://{request['s3_bucket']}/{request['s3_key']}")
    metrics.add_metric("ImageBytes", MetricUnit.Bytes, image["source_bytes"])
    logger.info("image retrieved", **request, image={key: value for key, value in image.items() if key != "data"})
    return {**request, "image": image}
