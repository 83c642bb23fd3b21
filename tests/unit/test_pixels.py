"""pixels.py: limits by header, errors in words, and the same pixels small and shrunk, for every kind of image."""

import base64
import io
import random
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, TiffImagePlugin

import pixels
import retrieve_image
from documents import ROOT
from inference import preprocess
from pixels import ImageTooLargeError, UnsupportedImageError

SIZE = (16, 16)
TOLERANCE = 8 / 255  # of the brightness of a pixel of the model's input, between an image and its shrunk JPEG
MEMORY = 600  # MB


def encoded(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def picture(side=512):
    """A light square with a dark digit-like shape, left of the middle, and noise, so that it does not compress."""
    image = Image.new("L", (side, side), 230)
    ImageDraw.Draw(image).rectangle((side // 8, side // 4, side // 2, side * 3 // 4), fill=40)
    noise = Image.frombytes("L", (side, side), random.Random(0).randbytes(side * side))
    return Image.blend(image, noise, 0.15)


def wide(scale, dtype, side):
    """The picture with values of more than 8 bits."""
    return (np.asarray(picture(side)).astype(np.float64) * scale).astype(dtype)


def tiff(values, bits, sample_format=1, order="<", photometric=1):
    """A grey TIFF of one strip, as other programs write it."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack(order + "HHLL", tag, 4, 1, value) for tag, value in tags)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8 + len(data))
    return head + data + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def deep_kinds(side):
    """TIFFs of 12, 16 and 32 bits, whose grey values all mean the same picture."""
    yield "unsigned 16", tiff(wide(257, np.uint16, side), 16)
    yield "unsigned 16, big-endian", tiff(wide(257, np.uint16, side), 16, order=">")
    yield "unsigned 16, white is zero", tiff(65535 - wide(257, np.uint16, side), 16, photometric=0)
    yield "signed 16", tiff(wide(128, np.int16, side), 16, 2)
    yield "signed 16, big-endian", tiff(wide(128, np.int16, side), 16, 2, ">")
    yield "unsigned 32", tiff(wide(257 * 65537, np.uint32, side), 32)
    yield "unsigned 32 of 16-bit values", tiff(wide(257, np.uint32, side), 32)
    yield "signed 32", tiff(wide(2**23, np.int32, side), 32, 2)
    yield "signed 32 of 16-bit values", tiff(wide(257, np.int32, side), 32, 2)
    yield "PNG", encoded(Image.fromarray(wide(257, np.uint16, side)), "PNG")


def kinds(side=512):
    """Images of every mode and format, by default above MAX_IMAGE_BYTES, all of the same picture."""
    yield from deep_kinds(side)
    grey = picture(side)
    colour = Image.merge("RGB", [grey] * 3)
    alpha = colour.copy()
    alpha.putalpha(255)
    yield "L PNG", encoded(grey, "PNG")
    yield "RGB PNG", encoded(colour, "PNG")
    yield "RGBA PNG", encoded(alpha, "PNG")
    yield "LA PNG", encoded(alpha.convert("LA"), "PNG")
    yield "P PNG", encoded(grey.convert("P"), "PNG")
    yield "RGB JPEG", encoded(colour, "JPEG", quality=97)
    yield "progressive JPEG", encoded(colour, "JPEG", quality=97, progressive=True)
    yield "CMYK JPEG", encoded(colour.convert("CMYK"), "JPEG", quality=97)
    yield "L JPEG", encoded(picture(2 * side), "JPEG", quality=97)
    yield "P GIF", encoded(grey.convert("P"), "GIF")
    yield "RGB WEBP", encoded(colour, "WEBP", lossless=True)
    yield "RGBA WEBP", encoded(alpha, "WEBP", lossless=True)
    yield "RGB BMP", encoded(colour, "BMP")
    yield "L BMP", encoded(grey, "BMP")
    for mode in ("L", "RGB", "RGBA", "CMYK", "LA", "P"):
        yield f"{mode} TIFF", encoded(alpha.convert(mode), "TIFF")
    yield "LZW TIFF", encoded(colour, "TIFF", compression="tiff_lzw")
    yield "JPEG TIFF", encoded(colour, "TIFF", compression="jpeg", quality=97)
    yield "YCbCr TIFF", encoded(colour.convert("YCbCr"), "TIFF")


KINDS = dict(kinds())
ONE_BIT = encoded(picture(2048).point(lambda value: 255 * (value > 128)).convert("1", dither=0), "PNG")


def png(width, height, depth=8, colours=0, chunks=(), content=b""):
    """A PNG of these chunks."""
    header = b"IHDR" + struct.pack(">II5B", width, height, depth, colours, 0, 0, 0)
    parts = [header, *chunks, b"IDAT" + zlib.compress(content), b"IEND"]
    written = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def after_soi(data, *segments):
    return data[:2] + b"".join(segments) + data[2:]


JPEG = encoded(Image.merge("RGB", [picture(64)] * 3), "JPEG")
PNG = encoded(picture(64), "PNG")


def many_scans(count, side=800):
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + (data[last:-2]) * count + data[-2:]


def run_length_bmp(width, height):
    header = struct.pack("<LllHHLLllLL", 40, width, height, 1, 8, 1, 4, 0, 0, 2, 0)
    return b"BM" + struct.pack("<LLL", 62 + 4, 0, 62) + header + bytes(8) + bytes([0, 2, 255, 255])


def webp(width, height):
    """A few bytes that declare a canvas."""
    canvas = struct.pack("<L", 0x10) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<L", 10) + canvas
    return b"RIFF" + struct.pack("<L", len(body)) + body


def gif_with_comment(size):
    data = encoded(Image.new("P", (8, 8)), "GIF")
    comment = b"\x21\xfe" + (b"\xff" + b"x" * 255) * (size // 256) + b"\0"
    start = 13 + (3 << (data[10] & 7) + 1)
    return data[:start] + comment + data[start:]


def tiled(side):
    """A TIFF that declares a tile of side x side pixels, compressed."""
    image = io.BytesIO()
    info = TiffImagePlugin.ImageFileDirectory_v2()
    Image.new("L", (64, 64)).save(image, "TIFF", compression="tiff_lzw", tiffinfo=info)
    data = image.getvalue()
    (start,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = [data[start + 2 + 12 * n : start + 14 + 12 * n] for n in range(count)]
    rename = {273: 324, 279: 325}
    parsed = []
    for entry in entries:
        tag = struct.unpack_from("<H", entry)[0]
        if tag != 278:
            parsed.append(struct.pack("<H", rename.get(tag, tag)) + entry[2:])
    parsed += [struct.pack("<HHLL", tag, 4, 1, side) for tag in (322, 323)]
    parsed.sort(key=lambda entry: struct.unpack_from("<H", entry)[0])
    directory = struct.pack("<H", len(parsed)) + b"".join(parsed) + bytes(4)
    return data[:4] + struct.pack("<L", len(data)) + data[8:] + directory


HEAVY = {  # all small, or quickly refused
    "7,000 scans": many_scans(7000),
    "101 scans": many_scans(101),
    "56 megapixels of one bit": png(7500, 7500, 1),
    "a row of 50 million run lengths": run_length_bmp(50_000_000, 1),
    "16 megapixels of run lengths": run_length_bmp(4000, 4000),
    "a canvas of 7000 x 7000": webp(7000, 7000),
    "1 x 63 million": png(1, 63_000_000, 8, 6),
    "a column above the longest side": png(1, 65_536),
    "half a million segments": after_soi(JPEG, segment(0xE1, b"Exif\0\0") * 500_000),
    "60,000 chunks": png(8, 8, chunks=[b"tEXt"] * 60_000),
    "a million GIF blocks": b"GIF89a\x08\0\x08\0\0\0\0\x21\xfe" + b"\x01x" * 10**6,
    "a tile of 4 gigabytes": tiled(65_520),
}


def test_the_functions_file_is_the_endpoints():
    assert (ROOT / "functions/pixels.py").resolve() == ROOT / "endpoint/pixels.py"
    assert (ROOT / "functions/pixels.py").read_bytes() == (ROOT / "endpoint/pixels.py").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_sends_pixels_that_the_endpoint_sees_as_the_originals(kind):
    data = KINDS[kind]
    result = retrieve_image.fit(data, "s3://b/k")
    assert len(data) < retrieve_image.MAX_IMAGE_BYTES or result["resized"]
    image, _ = pixels.read(data, (1024, 1024))
    shrunk, _ = retrieve_image.shrink(image, image.size)
    for sent in (base64.b64decode(result["data"]), shrunk):
        np.testing.assert_allclose(preprocess(sent, SIZE), preprocess(data, SIZE), atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_the_same_picture(kind):
    if kind != "L JPEG":
        np.testing.assert_allclose(
            preprocess(KINDS[kind], SIZE), preprocess(encoded(picture(), "PNG"), SIZE), atol=TOLERANCE
        )


def test_a_large_image_is_reduced_in_strips_to_the_pixels_of_the_whole(monkeypatch):
    image = Image.merge("RGBA", [picture(1000)] * 3 + [Image.linear_gradient("L").resize((1000, 1000))])
    whole, _ = pixels.read(encoded(image, "PNG"), (100, 50))
    monkeypatch.setattr(pixels, "WHOLE", 37_000)
    strips, size = pixels.read(encoded(image, "PNG"), (100, 50))
    assert (strips.size, size) == ((100, 50), (1000, 1000))
    np.testing.assert_allclose(np.asarray(strips), np.asarray(whole.reduce((10, 20))), atol=1)


def test_one_bit_of_many_pixels_is_read():
    np.testing.assert_allclose(preprocess(ONE_BIT, SIZE).max(), 1)


@pytest.mark.parametrize("kind", ["floating point", "L*a*b*"])
def test_what_has_no_standard_brightness_is_refused_by_both(kind):
    image = Image.new("F" if kind == "floating point" else "LAB", (300, 300))
    data = encoded(image, "TIFF")
    for convert in (lambda: retrieve_image.fit(data, "s3://b/k"), lambda: preprocess(data, SIZE)):
        with pytest.raises(UnsupportedImageError, match=kind.replace("*", r"\*")):
            convert()


@pytest.mark.parametrize("kind", HEAVY)
def test_work_and_memory_above_the_limits_are_refused_by_the_header(kind):
    for convert in (lambda: preprocess(HEAVY[kind], SIZE), lambda: retrieve_image.fit(HEAVY[kind], "s3://b/k")):
        started = time.process_time()
        with pytest.raises(ImageTooLargeError):
            convert()
        assert time.process_time() - started < 0.5


def exif(*entries, order="<"):
    """EXIF with these entries of its first directory."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)


TURNED = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
ODD_METADATA = {
    "EXIF whose resolution is text": after_soi(JPEG, segment(0xE1, exif(struct.pack("<HHLL", 0x011A, 2, 4, 0)))),
    "EXIF that is cut off": after_soi(JPEG, segment(0xE1, exif(TURNED)[:12])),
    "EXIF that points outside": after_soi(JPEG, segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "a segment that says it lists images": after_soi(JPEG, segment(0xE2, b"MPF\0II*\0\xff\xff\xff\x7f")),
    "1 MB of ICC profile": after_soi(JPEG, segment(0xE2, b"ICC_PROFILE\0\x01\x01" + b"x" * 65_000) * 16),
    "numeric XMP": after_soi(JPEG, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0 7")),
    "text that unfolds to 2 MB": PNG[:33]
    + png(1, 1, chunks=[b"zTXtk\0\0" + zlib.compress(bytes(2_000_000))])[33:-12].split(b"IDAT")[0][:-4]
    + PNG[33:],
    "a broken checksum of a text": PNG[:33] + struct.pack(">I", 2) + b"tEXtk\0" + bytes(4) + PNG[33:],
    "a comment of 33 MB": None,
}


@pytest.mark.parametrize("kind", ODD_METADATA)
def test_metadata_never_decides_over_pixels(kind):
    data = ODD_METADATA[kind]
    if data is None:
        data = gif_with_comment(33_000_000)
        assert preprocess(data, SIZE).shape == (3, *SIZE)
        return
    plain = JPEG if data.startswith(b"\xff\xd8") else PNG
    np.testing.assert_array_equal(preprocess(data, SIZE), preprocess(plain, SIZE))
    sent = retrieve_image.fit(data, "s3://b/k")
    assert sent["resized"] or base64.b64decode(sent["data"]) == data


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_whatever_the_format(image_format, orientation):
    picture = Image.new("RGB", (48, 32), "white")
    picture.paste("black", (0, 0, 12, 8))
    turn = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the inverse of what shows it upright
    tag = Image.Exif()
    tag[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if image_format == "JPEG" else {"lossless": True}
    options = {} if image_format in ("PNG", "TIFF") else options
    turned = picture if turn is None else picture.transpose(turn)
    image, size = pixels.read(encoded(turned, image_format, exif=tag, **options), (48, 32))
    assert size == (48, 32)
    np.testing.assert_allclose(np.asarray(image), np.asarray(picture), atol=30 if image_format == "JPEG" else 0)


NO_IMAGES = [
    (b"", "the file is empty: upload it again"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image"),
    (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "an AVIF image"),
    (b"\0\0\0\x18ftypmp42", "a video"),
    (b"%PDF-1.7", "a PDF document"),
    (b'<?xml version="1.0"?>\n<!-- x -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    (b"<!DOCTYPE html><html>", "an HTML page"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (base64.b64encode(PNG), "base64: decode it first"),
    (b"data:image/png;base64," + base64.b64encode(PNG), "a data URI: decode it first"),
    (b'{"image": ""}', "JSON"),
    (b"no image", "the file is text"),
    (bytes(3000), "nothing but zeros"),
    (b"\x01\x02\x03\xff\xfe", "in an unknown format"),
    (JPEG[:-2], "the JPEG ends too early"),
    (JPEG[:300], "the JPEG ends too early"),
    (PNG[:-30], "the PNG ends too early"),
    (encoded(picture(64), "WEBP")[:-30], "the WEBP ends too early"),
    (encoded(picture(64), "BMP")[:-30], "the BMP ends too early"),
    (png(1, 1, 8, 3, content=b"\0\0"), "palette colours, but no palette"),
]


@pytest.mark.parametrize(("data", "words"), NO_IMAGES)
def test_an_error_says_what_the_bytes_are_and_what_to_do(data, words):
    with pytest.raises(UnsupportedImageError) as caught:
        preprocess(data, SIZE)
    assert words in str(caught.value)
    assert ":" in str(caught.value)
    with pytest.raises(UnsupportedImageError, match=r"^s3://b/k: the ") as caught_by_function:
        retrieve_image.fit(data, "s3://b/k")
    assert str(caught_by_function.value).endswith(str(caught.value))


LARGEST = """
import resource, sys
sys.path[:0] = [{endpoint!r}, {functions!r}]
import inference, retrieve_image
data = open(sys.argv[1], "rb").read()
for convert in (lambda: inference.preprocess(data, (64, 64)), lambda: retrieve_image.fit(data, "s3://b/k")):
    try:
        convert()
        outcome = "read"
    except retrieve_image.UnsupportedImageError as error:
        outcome = type(error).__name__
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]  # of this process alone
print(outcome, int(peak) // 1024)
"""


def largest(kind):
    """An image at the limits, where the most memory is needed."""
    flat = Image.new("RGBA", (7071, 7071), (9, 9, 9, 128)) if "RGBA" in kind else Image.new("RGB", (7071, 7071))
    tag = Image.Exif()
    tag[0x0112] = 6
    match kind:
        case "RGBA PNG":
            return encoded(flat, "PNG", compress_level=1, exif=tag)
        case "16-bit PNG":
            return png(7071, 7071, 16, 0, content=bytes(7071 * (2 * 7071 + 1)))
        case "progressive JPEG":
            return encoded(flat, "JPEG", progressive=True, subsampling=0, exif=tag)
        case "narrow progressive JPEG":
            return encoded(Image.new("CMYK", (60_000, 500)), "JPEG", progressive=True)
        case "P PNG with transparency":
            return encoded(Image.new("P", (7071, 7071)), "PNG", transparency=0)
        case "WEBP":
            return encoded(Image.new("RGBA", (4200, 4200), (9, 9, 9, 128)), "WEBP", lossless=True, method=0)
        case "TIFF in one strip":
            return encoded(Image.new("RGB", (7071, 7071)), "TIFF", compression="tiff_lzw", strip_size=2**31 - 1)
        case "GIF":
            return encoded(Image.new("P", (7071, 7071)), "GIF")
        case "1 x 65535 PNG":
            return encoded(Image.new("RGBA", (1, 65_535)), "PNG")
        case "GIF with a comment":
            return gif_with_comment(32_000_000)


@pytest.mark.parametrize(
    "kind",
    [
        *("RGBA PNG", "16-bit PNG", "progressive JPEG", "narrow progressive JPEG", "P PNG with transparency", "WEBP"),
        *("TIFF in one strip", "GIF", "1 x 65535 PNG", "GIF with a comment"),
    ],
)
def test_no_image_needs_more_than_600_mb_on_either_host(kind, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(largest(kind))
    code = LARGEST.format(endpoint=str(ROOT / "endpoint"), functions=str(ROOT / "functions"))
    environment = {
        "AWS_DEFAULT_REGION": "us-east-1",
        "POWERTOOLS_SERVICE_NAME": "x",
        "POWERTOOLS_TRACE_DISABLED": "true",
    }
    result = subprocess.run([sys.executable, "-c", code, path], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    outcome, megabytes = result.stdout.split()
    assert outcome in ("read", "ImageTooLargeError")
    assert int(megabytes) < MEMORY, (kind, outcome, megabytes)


def test_too_little_memory_has_a_name(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.new("RGB", (6000, 6000)), "PNG"))
    code = LARGEST.format(endpoint=str(ROOT / "endpoint"), functions=str(ROOT / "functions")).replace(
        "data = open", "resource.setrlimit(resource.RLIMIT_DATA, (120_000_000, 120_000_000)); data = open"
    )
    environment = {
        "AWS_DEFAULT_REGION": "us-east-1",
        "POWERTOOLS_SERVICE_NAME": "x",
        "POWERTOOLS_TRACE_DISABLED": "true",
    }
    result = subprocess.run([sys.executable, "-c", code, path], env=environment, capture_output=True, text=True)
    assert result.stdout.split()[:1] == ["ImageTooLargeError"], result.stderr
