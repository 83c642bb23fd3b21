import base64
import contextlib
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inference
from inference import UnsupportedContentTypeError, UnsupportedImageError, preprocess
from tiny_model import write_tiny_model

WHITE = {"predictions": [{"label": "light", "probability": 1.0}, {"label": "dark", "probability": 0.0}]}
BLACK = {"predictions": [{"label": "dark", "probability": 1.0}, {"label": "light", "probability": 0.0}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return inference.model_fn(str(write_tiny_model(tmp_path_factory.mktemp("model"))))


def encode(image, image_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def plain_image(color="white", mode="RGB", size=(6, 4)):
    return Image.new(mode, size, color)


def invoke(body, content_type, model):
    """Call the functions in the order in which the hosts do. Returns (body, content type)."""
    return inference.output_fn(inference.predict_fn(inference.input_fn(body, content_type), model), "*/*")


def invoke_lines(lines, model):
    request = "".join(json.dumps(line) + "\n" for line in lines).encode()
    body, content_type = invoke(request, "application/jsonlines", model)
    assert content_type == "application/jsonlines"
    return [json.loads(line) for line in body.splitlines()]


def error(message):
    return {"error": {"code": "UnsupportedImageError", "message": message}}


def base64_of(data):
    return base64.b64encode(data).decode()


def png_header(width, height):
    """A PNG without pixels whose header declares this size."""
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(b""), b"IEND"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_the_model_is_in_sm_model_dir_if_the_hosts_folder_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SM_MODEL_DIR", str(write_tiny_model(tmp_path)))
    assert inference.model_fn(tmp_path / "nonexistent").labels


def test_the_most_probable_label_comes_first(model):
    assert invoke(encode(plain_image("white")), "image/png", model) == (json.dumps(WHITE), "application/json")
    assert invoke(encode(plain_image("black")), "image/png", model) == (json.dumps(BLACK), "application/json")


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read_by_its_content_type_and_by_detection(name, model):
    data = encode(plain_image("white"), name)
    for content_type in (f"image/{name.lower()}", "application/x-image", "application/octet-stream", None):
        assert json.loads(invoke(data, content_type, model)[0]) == WHITE


def test_a_content_type_can_have_parameters_and_capitals(model):
    assert json.loads(invoke(encode(plain_image("black")), "Image/PNG; charset=binary", model)[0]) == BLACK


@pytest.mark.parametrize(
    "content_type", ["image/jpg", "image/pjpeg", "IMAGE/X-PNG", "image/tif", "image/x-ms-bmp", "image/*"]
)
def test_other_names_of_a_content_type_are_accepted(content_type, model):
    assert json.loads(invoke(encode(plain_image("white")), content_type, model)[0]) == WHITE


@pytest.mark.parametrize("content_type", ["application/json", "text/csv", "image/svg+xml"])
def test_other_content_types_are_rejected_by_name(content_type):
    with pytest.raises(UnsupportedContentTypeError, match=content_type.replace("+", r"\+")):
        inference.input_fn(b"{}", content_type)


@pytest.mark.parametrize(
    "image, brightness",
    [
        (plain_image(255, "L"), 1),
        (plain_image(0, "L"), 0),
        (plain_image(1, "1"), 1),
        (plain_image((0, 0, 0, 0), "RGBA"), 1),
        (plain_image((0, 0, 0, 255), "RGBA"), 0),
        (plain_image((0, 0), "LA"), 1),
        (plain_image("white").convert("P"), 1),
        (Image.fromarray(np.full((4, 6), 65535, np.uint16)), 1),
        (Image.fromarray(np.full((4, 6), 0x80FF, np.uint16)), 128 / 255),
    ],
    ids=["white", "black", "one bit", "transparent", "opaque", "gray alpha", "palette", "16 bit white", "16 bit gray"],
)
def test_every_mode_becomes_rgb_with_transparency_as_white(image, brightness):
    pixels = preprocess(encode(image), (4, 6))
    np.testing.assert_allclose(pixels, np.full((3, 4, 6), brightness), atol=1e-6)


def test_a_transparent_palette_colour_becomes_white():
    image = plain_image("black").convert("P")
    pixels = preprocess(encode(image, transparency=image.getpixel((0, 0))), (4, 6))
    np.testing.assert_array_equal(pixels, np.ones((3, 4, 6)))


def test_cmyk_is_converted():
    pixels = preprocess(encode(plain_image((0, 255, 255, 0), "CMYK"), "JPEG", quality=100), (4, 6))
    np.testing.assert_allclose(pixels.mean((1, 2)), [1, 0, 0], atol=0.05)


def test_floating_point_pixels_are_rejected():
    with pytest.raises(UnsupportedImageError, match="floating point"):
        preprocess(encode(plain_image(0.5, "F"), "TIFF"), (4, 6))


def test_exif_orientation_is_applied():
    upright = plain_image("black", size=(6, 4))
    upright.paste("white", (0, 0, 6, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to display it upright
    turned = encode(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    np.testing.assert_array_equal(preprocess(turned, (4, 6)), preprocess(encode(upright), (4, 6)))


def pixels_of(image):
    """The pixels without JPEG's reduced-size decoding."""
    return preprocess(encode(image), (16, 24))


def test_a_large_jpeg_is_decoded_at_a_reduced_size_to_nearly_the_same_pixels_in_any_orientation():
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image = Image.open(io.BytesIO(encode(coarse.resize((800, 600), Image.Resampling.BICUBIC), "JPEG", quality=90)))
    image.load()
    upright = encode(image, "JPEG", quality=95)
    np.testing.assert_allclose(preprocess(upright, (16, 24)), pixels_of(image), atol=2 / 255)
    assert not np.array_equal(preprocess(upright, (16, 24)), pixels_of(Image.open(io.BytesIO(upright))))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    np.testing.assert_allclose(preprocess(turned, (16, 24)), pixels_of(image), atol=2 / 255)


def test_an_image_has_the_same_predictions_alone_and_in_a_batch(model):
    random = np.random.default_rng(0)
    images = [encode(Image.fromarray(random.integers(0, 256, (8, 9, 3), dtype=np.uint8)), "JPEG") for _ in range(40)]
    alone = [json.loads(invoke(image, "image/jpeg", model)[0]) for image in images]
    assert invoke_lines([base64_of(image) for image in images], model) == alone


def test_an_image_of_any_size_is_stretched_to_the_models_input_size():
    pixels = preprocess(encode(plain_image("white", size=(300, 17))), (4, 6))
    assert (pixels.shape, pixels.dtype, pixels.min()) == ((3, 4, 6), np.float32, 1)


@pytest.mark.parametrize("data", [b"", b"no image", encode(plain_image("white", size=(64, 64)), "JPEG")[:200]])
def test_bytes_that_are_not_a_complete_image_raise_an_error_with_a_reason(data, model):
    with pytest.raises(UnsupportedImageError, match=r"the (file|JPEG) .+: (upload|save) .+"):
        invoke(data, "image/png", model)


def test_a_decompression_bomb_is_rejected_before_it_is_decompressed():
    for side in (8_000, 60_000):  # above our limit, above Pillow's own
        with pytest.raises(UnsupportedImageError, match="pixels"):
            preprocess(png_header(side, side), (4, 6))


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_images_raise_only_unsupported_image_errors():
    random = np.random.default_rng(0)
    original = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for name in inference.FORMATS:
        whole = encode(original, name)
        for _ in range(100):
            damaged = bytearray(whole)
            for position in random.integers(0, len(damaged), 5):
                damaged[position] = random.integers(256)
            with contextlib.suppress(UnsupportedImageError):
                preprocess(bytes(damaged), (4, 6))


def test_json_lines_results_are_in_order_and_a_failed_line_does_not_affect_the_others(model):
    white, black = base64_of(encode(plain_image("white"))), base64_of(encode(plain_image("black")))
    lines = [{"image": white}, black, {"image": "no base64!"}, {"picture": white}, 7, base64_of(b"no image"), white]
    not_a_line = error('the line is neither {"image": "<base64>"} nor "<base64>"')
    not_an_image = error("the file is text: save it as JPEG, PNG, GIF, WebP, BMP or TIFF")
    assert invoke_lines(lines, model) == [WHITE, BLACK, not_a_line, not_a_line, not_a_line, not_an_image, WHITE]


def test_wrapped_base64_and_data_uris_are_read_as_lines(model):
    data = encode(plain_image("white"))
    wrapped = base64.encodebytes(data).decode()
    assert wrapped.count("\n") > 1
    uris = [f"data:image/png;base64,{base64_of(data)}", f"data:image/png;name=a.png;base64,{wrapped}"]
    lines = [wrapped, wrapped.replace("\n", "\r\n"), *uris, {"image": uris[0]}]
    assert invoke_lines(lines, model) == [WHITE] * len(lines)


@pytest.mark.parametrize("line", ["data:image/png,abc", "text,;base64,abc", "[" * 5000, "9" * 5000, '"\\ud800"'])
def test_a_line_that_is_no_image_is_an_error_of_its_own(line, model):
    body, _ = invoke(line.encode() + b"\n" + json.dumps(line).encode(), "application/jsonlines", model)
    assert [json.loads(result)["error"]["code"] for result in body.splitlines()] == ["UnsupportedImageError"] * 2


def test_no_line_is_lost_across_batches_with_blank_lines_and_no_trailing_newline(model):
    line = json.dumps(base64_of(encode(plain_image("black")))).encode()
    request = b"\n".join([line] * inference.BATCH_SIZE + [b"", b"{"] + [line] * 3)
    body, _ = invoke(request, "application/jsonlines", model)
    kinds = ["predictions" if "predictions" in json.loads(line) else "error" for line in body.splitlines()]
    assert kinds == ["predictions"] * inference.BATCH_SIZE + ["error"] * 2 + ["predictions"] * 3


def test_lines_above_the_requests_budget_of_work_fail_by_name_and_the_others_are_classified(model, monkeypatch):
    monkeypatch.setattr(inference, "MAX_WORK", 3 * 6 * 4)  # pixels
    results = invoke_lines([base64_of(encode(plain_image("white")))] * 5, model)
    assert results[:3] == [WHITE] * 3
    assert [result["error"]["code"] for result in results[3:]] == ["ImageTooLargeError"] * 2
    large = invoke_lines(
        [base64_of(encode(plain_image("white", size=(9, 9)))), base64_of(encode(plain_image()))], model
    )
    assert large[0]["error"]["message"].endswith("send fewer in one request") and large[1] == WHITE


def test_what_is_left_of_a_request_is_not_decoded_once_its_client_has_gone(model, monkeypatch):
    lines = inference.input_fn(f'"{base64_of(encode(plain_image()))}"\n'.encode() * 40, "application/jsonlines")
    decoded = []
    preprocess = inference.preprocess

    def preprocess_and_leave(image, size):
        decoded.append(image)
        lines.abandoned = True
        return preprocess(image, size)

    monkeypatch.setattr(inference, "preprocess", preprocess_and_leave)
    results = inference.predict_fn(lines, model)
    assert len(results) == 40
    assert len(decoded) <= inference.THREADS


def test_an_empty_json_lines_body_has_an_empty_response(model):
    assert invoke(b"", "application/jsonlines", model) == ("", "application/jsonlines")


def test_onnx_runtime_neither_reports_to_microsoft_nor_stores_an_id_for_it(tmp_path):
    model_dir, home = write_tiny_model(tmp_path / "model"), tmp_path / "home"
    home.mkdir()
    code = "import sys, inference; inference.model_fn(sys.argv[1])"
    environment = {"HOME": str(home), "PYTHONPATH": str(Path(inference.__file__).parent)}
    subprocess.run([sys.executable, "-c", code, model_dir], env=environment, check=True)
    assert list(home.iterdir()) == []
