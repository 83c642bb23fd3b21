import base64
import contextlib
import io
import json
import random

import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber
from PIL import Image

import pixels
import retrieve_image
from contract import InvalidInputError
from retrieve_image import (
    ImageAccessDeniedError,
    ImageNotFoundError,
    ImageStoreUnavailableError,
    ImageTooLargeError,
    UnsupportedImageError,
    fit,
)

URI = "s3://images/uploads/seven.png"


@pytest.fixture
def s3():
    with Stubber(retrieve_image.s3) as stubber:
        yield stubber


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(width, height, mode="RGB"):
    """An image that does not compress."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), random.Random(0).randbytes(width * height * channels))


def decoded(result):
    return Image.open(io.BytesIO(base64.b64decode(result["data"])))


def serve(s3, data, **expected):
    body = StreamingBody(io.BytesIO(data), len(data))
    response = {"Body": body, "ContentLength": len(data), "ETag": '"abc"', "VersionId": "v1"}
    s3.add_response("get_object", response, {"Bucket": "images", **expected})


def test_a_small_image_passes_byte_for_byte(s3, event, context):
    data = encoded(Image.new("RGB", (3, 2), "red"))
    serve(s3, data, Key="uploads/seven.png")
    assert retrieve_image.lambda_handler(event("retrieve_image"), context) == {
        "s3_bucket": "images",
        "s3_key": "uploads/seven.png",
        "s3_version_id": "v1",
        "image": {
            "content_type": "image/png",
            "width": 3,
            "height": 2,
            "source_bytes": len(data),
            "resized": False,
            "data": base64.b64encode(data).decode(),
        },
    }


def test_threshold_and_version_are_passed_on_and_other_keys_are_dropped(s3, context):
    serve(s3, encoded(Image.new("L", (1, 1))), Key="a", VersionId="v1")
    request = {"s3_bucket": "images", "s3_key": "a", "s3_version_id": "v1", "threshold": 0.5}
    output = retrieve_image.lambda_handler(request | {"image_data": "x" * 300_000}, context)
    assert set(output) == {"s3_bucket", "s3_key", "s3_version_id", "threshold", "image"}


@pytest.mark.parametrize("version", [{}, {"VersionId": "null"}])
def test_without_versions_the_etag_tells_which_object_was_read(s3, event, context, version):
    data = encoded(Image.new("L", (1, 1)))
    body = StreamingBody(io.BytesIO(data), len(data))
    s3.add_response("get_object", {"Body": body, "ContentLength": len(data), "ETag": '"abc"', **version})
    request = event("retrieve_image") | {"s3_version_id": "null"}
    output = retrieve_image.lambda_handler(request, context)
    assert output["s3_etag"] == "abc"
    assert "s3_version_id" not in output


@pytest.mark.parametrize("key", ["two words.png", "a+b.png", "50%25.png", "größe/猫.png", "a&b=c?.png"])
def test_unusual_keys_reach_s3_unchanged(s3, context, key):
    serve(s3, encoded(Image.new("L", (1, 1))), Key=key)
    assert retrieve_image.lambda_handler({"s3_bucket": "images", "s3_key": key}, context)["s3_key"] == key


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({}, "must contain"),
        ({"s3_bucket": "images"}, "s3_key"),
        ({"s3_bucket": "images", "s3_key": ""}, "s3_key"),
        ({"s3_bucket": "images", "s3_key": 7}, "s3_key"),
        ({"s3_bucket": "images", "s3_key": "\ud800"}, "s3_key"),
        ({"s3_bucket": "images", "s3_key": "a", "s3_version_id": "\udfff"}, "s3_version_id"),
        ({"s3_bucket": "images", "s3_key": "a", "threshold": 0}, "threshold"),
        ({"s3_bucket": "images", "s3_key": "a", "threshold": 1.01}, "threshold"),
        ({"s3_bucket": "images", "s3_key": "a", "threshold": "0.5"}, "threshold"),
        ({"s3_bucket": "images", "s3_key": "a", "threshold": True}, "threshold"),
        (["images", "a"], "object"),
        (None, "object"),
    ],
)
def test_invalid_input_fails_with_the_name_of_its_field(context, request_, problem):
    with pytest.raises(InvalidInputError, match=problem):
        retrieve_image.lambda_handler(request_, context)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("NoSuchKey", ImageNotFoundError),
        ("NoSuchBucket", ImageNotFoundError),
        ("NoSuchVersion", ImageNotFoundError),
        ("AccessDenied", ImageAccessDeniedError),
        ("InvalidArgument", InvalidInputError),
        ("SlowDown", ImageStoreUnavailableError),
        ("InternalError", ImageStoreUnavailableError),
        ("KMS.DisabledException", ImageAccessDeniedError),
        ("KMS.NotFoundException", ImageAccessDeniedError),
        ("ExpiredToken", ImageAccessDeniedError),
        ("NoSomethingNew", InvalidInputError),
    ],
)
def test_errors_of_s3_are_raised_by_name_with_the_object(s3, context, event, code, error):
    s3.add_client_error("get_object", code, "message of S3")
    with pytest.raises(error, match=f"{URI}: message of S3") as caught:
        retrieve_image.lambda_handler(event("retrieve_image"), context)
    assert type(caught.value) is error


def test_an_invalid_bucket_name_is_invalid_input(context):
    with pytest.raises(InvalidInputError, match="s3://no such bucket/a"):
        retrieve_image.lambda_handler({"s3_bucket": "no such bucket", "s3_key": "a"}, context)


def test_an_object_with_too_many_bytes_is_not_read(s3, event, context):
    body = StreamingBody(io.BytesIO(b""), 0)
    s3.add_response("get_object", {"Body": body, "ContentLength": 10**9})
    with pytest.raises(ImageTooLargeError, match="1,000,000,000 bytes"):
        retrieve_image.lambda_handler(event("retrieve_image"), context)


def test_an_image_with_too_many_pixels_is_not_decoded():
    data = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(ImageTooLargeError, match=URI):
        fit(data, URI)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(noise(64, 64))[:2000],
        encoded(noise(64, 64), "JPEG")[:800],
    ],
    ids=["empty", "text", "svg", "truncated png", "truncated jpeg"],
)
def test_an_object_that_is_not_a_complete_image_is_unsupported(data):
    with pytest.raises(UnsupportedImageError, match=URI):
        fit(data, URI)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns about the damage
def test_damaged_images_of_any_format_raise_no_other_error_than_ours():
    dice = random.Random(1)
    for image_format in pixels.FORMATS:
        whole = encoded(noise(24, 24), image_format)
        for _ in range(150):
            damaged = bytearray(whole)
            for _ in range(dice.randint(1, 12)):
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
            with contextlib.suppress(UnsupportedImageError, ImageTooLargeError):
                fit(bytes(damaged[: dice.randint(1, len(damaged))]), URI)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_checked_at_an_eighth_of_its_size_as_strictly_as_at_its_own(progressive):
    image = noise(80, 64).resize((640, 512))
    dice, whole = random.Random(2), encoded(image, "JPEG", quality=60, progressive=progressive)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(dice.choice((0, 1, 3, 50))):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        data = bytes(damaged[: dice.choice((len(damaged), dice.randrange(len(damaged))))])
        verdicts = [verdict(lambda data=data: fit(data, "it")["width"]), verdict(lambda data=data: width_of(data))]
        assert verdicts[0] == verdicts[1]
        refused += verdicts[0] != 640
    assert 10 < refused < 50
    image, _ = pixels.read(whole, (retrieve_image.CHECKED_SIDE,) * 2)
    assert image.size == (80, 64)


def width_of(data):
    return pixels.read(data, (retrieve_image.MAX_SIDE,) * 2)[1][0]


def verdict(check):
    try:
        return check()
    except UnsupportedImageError as error:
        return str(error).removeprefix("it: ")


@pytest.mark.parametrize(
    ("image", "image_format"),
    [
        (noise(1600, 1200), "PNG"),
        (noise(4000, 3000), "JPEG"),
        (noise(900, 900, "RGBA"), "PNG"),
        (noise(900, 900, "L").convert("P"), "PNG"),
        (noise(700, 700, "CMYK"), "JPEG"),
        (noise(3000, 90), "BMP"),
    ],
)
def test_a_large_image_is_shrunk_below_the_payload_limit(s3, context, event, image, image_format):
    data = encoded(image, image_format)
    assert len(data) > retrieve_image.MAX_IMAGE_BYTES
    serve(s3, data, Key="uploads/seven.png")
    output = retrieve_image.lambda_handler(event("retrieve_image"), context)
    shrunk = decoded(output["image"])
    assert len(json.dumps(output).encode()) < 200 * 1024
    assert (output["image"]["resized"], output["image"]["content_type"]) == (True, "image/jpeg")
    assert (output["image"]["width"], output["image"]["height"]) == shrunk.size
    assert shrunk.width / shrunk.height == pytest.approx(image.width / image.height, rel=0.05)


def test_the_longest_key_and_largest_image_stay_below_200_kib(s3, context):
    data = encoded(noise(216, 227), "BMP")  # 147,150 bytes: just below the limit
    assert 0.99 < len(data) / retrieve_image.MAX_IMAGE_BYTES <= 1
    key = "é" * 512
    serve(s3, data, Key=key)
    output = retrieve_image.lambda_handler({"s3_bucket": "images", "s3_key": key, "threshold": 0.5}, context)
    assert not output["image"]["resized"]
    assert len(json.dumps(output).encode()) < 200 * 1024


def test_orientation_is_kept_in_a_small_image_and_applied_to_a_shrunk_one():
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed rotated by 90 degrees
    small, large = (encoded(noise(*size), "JPEG", exif=exif) for size in [(64, 32), (1600, 800)])
    kept, turned = fit(small, URI), fit(large, URI)
    assert base64.b64decode(kept["data"]) == small
    assert (kept["width"], kept["height"]) == (32, 64)
    assert (turned["width"], turned["height"]) == decoded(turned).size
    assert turned["height"] == 2 * turned["width"]
    assert 0x0112 not in decoded(turned).getexif()


def test_transparent_parts_of_a_shrunk_image_become_white():
    image = noise(800, 800, "RGBA")
    image.putalpha(0)
    assert decoded(fit(encoded(image), URI)).getpixel((10, 10)) == (255, 255, 255)


def test_a_phones_jpeg_with_a_second_image_is_a_jpeg():
    buffer = io.BytesIO()
    first, second = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (8, 8))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(buffer.getvalue())).format == "MPO"
    assert fit(buffer.getvalue(), URI)["content_type"] == "image/jpeg"


def test_sixteen_bit_images_are_scaled_not_clipped():
    values = random.Random(0).choices(range(0x7000, 0x9000), k=160_000)
    grey = Image.frombytes("I;16", (400, 400), b"".join(value.to_bytes(2, "little") for value in values))
    shrunk = decoded(fit(encoded(grey), URI))
    assert shrunk.convert("L").getpixel((50, 50)) == pytest.approx(0x80, abs=20)


def test_no_image_bytes_in_the_log(s3, event, context, log):
    data = encoded(noise(20, 20))
    serve(s3, data, Key="uploads/seven.png")
    written = log(retrieve_image)
    retrieve_image.lambda_handler(event("retrieve_image"), context)
    assert "image retrieved" in written.getvalue()
    assert base64.b64encode(data).decode()[:60] not in written.getvalue()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, ImageAccessDeniedError),
        (404, ImageNotFoundError),
        (429, ImageStoreUnavailableError),
        (400, InvalidInputError),
    ],
)
def test_unknown_errors_of_s3_are_named_by_their_status(s3, context, event, status, error):
    s3.add_client_error("get_object", "New", "message of S3", http_status_code=status)
    with pytest.raises(error, match=f"{URI}: message of S3"):
        retrieve_image.lambda_handler(event("retrieve_image"), context)


@pytest.mark.parametrize(
    "bucket",
    [
        "arn:aws:sns:us-east-1:123456789012:accesspoint/images",
        "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap",  # multi-region: botocore needs its CRT for them
        "arn:aws:s3:::images",
    ],
)
def test_an_access_point_that_cannot_be_used_is_named(context, bucket):
    with pytest.raises(InvalidInputError, match=f"s3://{bucket}/a"):
        retrieve_image.lambda_handler({"s3_bucket": bucket, "s3_key": "a"}, context)
