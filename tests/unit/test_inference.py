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


def picture(color="white", mode="RGB", size=(6, 4)):
    return Image.new(mode, size, color)


def ask(body, content_type, model):
    """Through all four functions, as the hosts call them. Returns (answer, content type)."""
    return inference.output_fn(inference.predict_fn(inference.input_fn(body, content_type), model), "*/*")


def ask_lines(lines, model):
    request = "".join(json.dumps(line) + "\n" for line in lines).encode()
    body, content_type = ask(request, "application/jsonlines", model)
    assert content_type == "application/jsonlines"
    return [json.loads(line) for line in body.splitlines()]


def error(message):
    return {"error": {"code": "UnsupportedImageError", "message": message}}


def in_base64(data):
    return base64.b64encode(data).decode()


def png_of_size(width, height):
    """The header of a PNG that claims a size."""
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(b""), b"IEND"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_the_most_probable_label_comes_first(model):
    assert ask(encode(picture("white")), "image/png", model) == (json.dumps(WHITE), "application/json")
    assert ask(encode(picture("black")), "image/png", model) == (json.dumps(BLACK), "application/json")


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_format_is_read_under_its_own_type_and_sniffed(name, model):
    data = encode(picture("white"), name)
    for content_type in (f"image/{name.lower()}", "application/x-image", "application/octet-stream", None):
        assert json.loads(ask(data, content_type, model)[0]) == WHITE


def test_a_content_type_may_have_parameters_and_capitals(model):
    assert json.loads(ask(encode(picture("black")), "Image/PNG; charset=binary", model)[0]) == BLACK


@pytest.mark.parametrize("content_type", ["application/json", "text/csv", "image/svg+xml"])
def test_other_content_types_are_refused_by_name(content_type):
    with pytest.raises(UnsupportedContentTypeError, match=content_type.replace("+", r"\+")):
        inference.input_fn(b"{}", content_type)


@pytest.mark.parametrize(
    "image, brightness",
    [
        (picture(255, "L"), 1),
        (picture(0, "L"), 0),
        (picture(1, "1"), 1),
        (picture((0, 0, 0, 0), "RGBA"), 1),
        (picture((0, 0, 0, 255), "RGBA"), 0),
        (picture((0, 0), "LA"), 1),
        (picture("white").convert("P"), 1),
        (Image.fromarray(np.full((4, 6), 65535, np.uint16)), 1),
        (Image.fromarray(np.full((4, 6), 0x80FF, np.uint16)), 128 / 255),
    ],
    ids=["white", "black", "one bit", "transparent", "opaque", "gray alpha", "palette", "16 bit white", "16 bit gray"],
)
def test_every_mode_becomes_rgb_with_transparency_on_white(image, brightness):
    pixels = preprocess(encode(image), (4, 6))
    np.testing.assert_allclose(pixels, np.full((3, 4, 6), brightness), atol=1e-6)


def test_a_transparent_color_of_a_palette_is_white():
    image = picture("black").convert("P")
    pixels = preprocess(encode(image, transparency=image.getpixel((0, 0))), (4, 6))
    np.testing.assert_array_equal(pixels, np.ones((3, 4, 6)))


def test_cmyk_is_converted():
    pixels = preprocess(encode(picture((0, 255, 255, 0), "CMYK"), "JPEG", quality=100), (4, 6))
    np.testing.assert_allclose(pixels.mean((1, 2)), [1, 0, 0], atol=0.05)


def test_floating_point_pixels_are_refused():
    with pytest.raises(UnsupportedImageError, match="floating point"):
        preprocess(encode(picture(0.5, "F"), "TIFF"), (4, 6))


def test_exif_orientation_is_respected():
    upright = picture("black", size=(6, 4))
    upright.paste("white", (0, 0, 6, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    turned = encode(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    np.testing.assert_array_equal(preprocess(turned, (4, 6)), preprocess(encode(upright), (4, 6)))


def pixels_of(image):
    """Without the shortcuts that a JPEG allows."""
    return preprocess(encode(image), (16, 24))


def test_a_large_jpeg_is_decoded_small_with_next_to_the_same_pixels_however_it_is_turned():
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


def test_an_image_has_the_same_answer_alone_and_among_others(model):
    random = np.random.default_rng(0)
    images = [encode(Image.fromarray(random.integers(0, 256, (8, 9, 3), dtype=np.uint8)), "JPEG") for _ in range(40)]
    alone = [json.loads(ask(image, "image/jpeg", model)[0]) for image in images]
    assert ask_lines([in_base64(image) for image in images], model) == alone


def test_any_size_is_stretched_to_the_models():
    pixels = preprocess(encode(picture("white", size=(300, 17))), (4, 6))
    assert (pixels.shape, pixels.dtype, pixels.min()) == ((3, 4, 6), np.float32, 1)


@pytest.mark.parametrize("data", [b"", b"no image", encode(picture("white", size=(64, 64)), "JPEG")[:200]])
def test_bytes_that_are_no_whole_image_are_an_error_with_a_reason(data, model):
    with pytest.raises(UnsupportedImageError, match=r"not a readable image: .+"):
        ask(data, "image/png", model)


def test_a_decompression_bomb_is_refused_before_it_is_unfolded():
    for side in (8_000, 60_000):  # above our limit, above Pillow's own
        with pytest.raises(UnsupportedImageError, match="pixels"):
            preprocess(png_of_size(side, side), (4, 6))


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_images_raise_nothing_else():
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


def test_json_lines_are_answered_in_order_and_failures_hurt_no_other(model):
    white, black = in_base64(encode(picture("white"))), in_base64(encode(picture("black")))
    lines = [{"image": white}, black, {"image": "no base64"}, {"picture": white}, 7, in_base64(b"no image"), white]
    not_a_line = error('the line is neither {"image": "<base64>"} nor "<base64>"')
    not_an_image = error("not a readable image: none of PNG, JPEG, WEBP, GIF, BMP, TIFF, or damaged")
    assert ask_lines(lines, model) == [WHITE, BLACK, not_a_line, not_a_line, not_a_line, not_an_image, WHITE]


def test_no_line_is_lost_over_many_batches_with_blank_lines_and_no_newline_at_the_end(model):
    line = json.dumps(in_base64(encode(picture("black")))).encode()
    body, _ = ask(b"\n".join([line] * inference.BATCH_SIZE + [b"", b"{"] + [line] * 3), "application/jsonlines", model)
    kinds = ["predictions" if "predictions" in json.loads(answer) else "error" for answer in body.splitlines()]
    assert kinds == ["predictions"] * inference.BATCH_SIZE + ["error"] * 2 + ["predictions"] * 3


def test_an_empty_json_lines_body_has_an_empty_answer(model):
    assert ask(b"", "application/jsonlines", model) == ("", "application/jsonlines")


def test_onnx_runtime_neither_reports_to_microsoft_nor_leaves_an_id_for_it(tmp_path):
    model_dir, home = write_tiny_model(tmp_path / "model"), tmp_path / "home"
    home.mkdir()
    code = "import sys, inference; inference.model_fn(sys.argv[1])"
    environment = {"HOME": str(home), "PYTHONPATH": str(Path(inference.__file__).parent)}
    subprocess.run([sys.executable, "-c", code, model_dir], env=environment, check=True)
    assert list(home.iterdir()) == []
