"""RetrieveImage: an object in S3 -> a validated image in base64, small enough for a state's payload.

in   s3_bucket, s3_key; optional s3_version_id, threshold
out  + s3_version_id, or s3_etag in a bucket without versions; image: {content_type, width, height, source_bytes,
     resized, data}
"""

import base64
import hashlib
from typing import Any

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as S3ConnectionError
from botocore.session import get_session

import pixels
from contract import RETRIEVE_IMAGE, InvalidInputError, validator
from pixels import ImageTooLargeError, UnsupportedImageError
from shrink import MAX_IMAGE_BYTES, MAX_SIDE, shrink

MAX_SOURCE_BYTES = 32 * 1024 * 1024
# To check a JPEG, all of its data is read, but the pixels are computed at down to an eighth of its size: half the time.
CHECKED_SIDE = 64

logger = Logger()
tracer = Tracer()
metrics = Metrics()
s3 = get_session().create_client(
    "s3",
    # The pool is for ClassifyBatch, which reads many objects side by side.
    config=Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard"}, max_pool_connections=16),
)
validated = validator(RETRIEVE_IMAGE)


class ImageNotFoundError(Exception):
    """The bucket, object or version does not exist."""


class ImageAccessDeniedError(Exception):
    """The function's role cannot read or decrypt the object, or the object is archived."""


class ImageStoreUnavailableError(Exception):
    """S3 asked to slow down, failed internally or did not respond: worth a retry."""


S3_ERRORS = {
    **dict.fromkeys(("NoSuchKey", "NoSuchVersion", "NoSuchBucket", "MethodNotAllowed", "404"), ImageNotFoundError),
    **dict.fromkeys(
        ("AccessDenied", "AllAccessDisabled", "InvalidObjectState", "ExpiredToken", "403"), ImageAccessDeniedError
    ),
    **dict.fromkeys(("InvalidArgument", "InvalidBucketName", "KeyTooLongError", "InvalidRequest"), InvalidInputError),
    **dict.fromkeys(
        ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "ThrottlingException", "503", "500"),
        ImageStoreUnavailableError,
    ),
}


def s3_error(error: ClientError) -> type[Exception]:
    """The class above for an error of S3, or of KMS behind it; by HTTP status for a code that is not in S3_ERRORS."""
    code = error.response["Error"]["Code"]
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    if code in S3_ERRORS:
        return S3_ERRORS[code]
    if status == 429 or status >= 500 or "Throttl" in code:
        return ImageStoreUnavailableError
    if code.startswith("KMS") or status in (401, 403):
        return ImageAccessDeniedError
    return ImageNotFoundError if status == 404 else InvalidInputError


@tracer.capture_method(capture_response=False)
def fetch(s3_bucket: str, s3_key: str, s3_version_id: str | None = None) -> tuple[bytes, dict[str, str]]:
    """The object's bytes, and {"s3_version_id"}, or {"s3_etag"} if its bucket keeps no versions.

    S3's errors are raised as those above: the state machine matches errors by class name.
    """
    version = {"VersionId": s3_version_id} if s3_version_id else {}
    uri = f"s3://{s3_bucket}/{s3_key}" + (f" (version {s3_version_id})" if s3_version_id else "")
    try:
        response = s3.get_object(Bucket=s3_bucket, Key=s3_key, **version)
        if (size := response["ContentLength"]) > MAX_SOURCE_BYTES:
            raise ImageTooLargeError(f"{uri} has {size:,} bytes; the maximum is {MAX_SOURCE_BYTES:,}")
        return response["Body"].read(), version_in(response)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        raise s3_error(error)(f"{uri}: {error.response['Error'].get('Message') or code} ({code})") from None
    except (HTTPClientError, S3ConnectionError, IncompleteReadError) as error:
        raise ImageStoreUnavailableError(f"{uri}: {error}") from None
    except (BotoCoreError, UnicodeEncodeError) as error:  # a bucket's name, an ARN, or half of a surrogate pair
        raise InvalidInputError(f"{uri}: {error}") from None


def version_in(response: dict[str, Any]) -> dict[str, str]:
    """What identifies the object's version. "null" does not: it is whatever was written last without versioning."""
    version = response.get("VersionId", "null")
    return {"s3_etag": response["ETag"].strip('"')} if version == "null" else {"s3_version_id": version}


def with_version(request: dict[str, Any], version: dict[str, str]) -> dict[str, Any]:
    """The request for the version that was read, in place of the one that it names."""
    return {name: value for name, value in request.items() if name != "s3_version_id"} | version


def key_hash(s3_key: str) -> str:
    """A hash of the key for X-Ray filters, where the key itself would need escaping."""
    return hashlib.sha256(s3_key.encode()).hexdigest()[:16]


@tracer.capture_method(capture_response=False)
def fit(source: bytes, uri: str) -> dict[str, Any]:
    """The image, fully decoded as a check: unchanged, or as a smaller upright JPEG if it exceeds MAX_IMAGE_BYTES.

    Returns {content_type, width, height, source_bytes, resized, data}; width and height are those of `data`, in pixels,
    when upright. Raises ImageTooLargeError or UnsupportedImageError, naming `uri`.
    """
    resized = len(source) > MAX_IMAGE_BYTES
    try:
        header = pixels.inspect(source)
        image, size = pixels.read(header, (MAX_SIDE, MAX_SIDE) if resized else (CHECKED_SIDE, CHECKED_SIDE))
    except UnsupportedImageError as error:
        raise type(error)(f"{uri}: {error}") from error.__cause__
    data, size = shrink(image, size) if resized else (source, size)
    return {
        "content_type": "image/jpeg" if resized else f"image/{header.format.lower()}",
        "width": size[0],
        "height": size[1],
        "source_bytes": len(source),
        "resized": resized,
        "data": base64.b64encode(data).decode(),
    }


@logger.inject_lambda_context(correlation_id_path="execution_arn")
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    request = validated(event)
    tracer.put_annotation("s3_bucket", request["s3_bucket"])
    tracer.put_annotation("s3_key_hash", key_hash(request["s3_key"]))
    source, version = fetch(request["s3_bucket"], request["s3_key"], request.get("s3_version_id"))
    request = with_version(request, version)
    image = fit(source, f"s3://{request['s3_bucket']}/{request['s3_key']}")
    metrics.add_metric("ImageBytes", MetricUnit.Bytes, image["source_bytes"])
    logger.info("image retrieved", **request, image={key: value for key, value in image.items() if key != "data"})
    return {**request, "image": image}
