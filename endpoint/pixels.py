"""Bytes of an uploaded image -> upright RGB pixels, within limits. The only converter: RetrieveImage and the endpoint
both use it, so they accept the same images and see the same pixels. Requires Pillow.

functions/pixels.py is a symbolic link to this file, which SAM, make and git follow.

An image is first read as bytes, without decoding it: its format, size, number of scans and orientation. What exceeds a
limit is refused there, and what is not needed for the pixels (EXIF, ICC, XMP, text, comments) is left out, so that it
can neither fail nor cost anything. The limits bound the work to about two seconds of a core, and the memory of the
process to 600 MB.

Errors are UnsupportedImageError or ImageTooLargeError, with a message that says what the bytes are and what to do.
"""

import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
ACCEPTED = "JPEG, PNG, GIF, WebP, BMP or TIFF"

MAX_PIXELS = 50_000_000  # accepts a 48 megapixel photograph, but not a few kilobytes that decompress to gigabytes
MAX_SIDE = 65_535  # JPEG's own limit; a narrow image costs a pointer for each of its rows
MAX_MEMORY = 400_000_000  # bytes that decoding needs; with the file and the host's packages, less than 600 MB
MAX_WORK = 500_000_000  # pixels times scans
MAX_SCANS = 100  # progressive JPEGs have about 10
MAX_PARTS = 50_000  # segments, chunks, blocks or strips; 32 MB of PNG have 4,000 chunks of 8 KiB
MAX_SEGMENTS = 2_000  # of a JPEG before its pixels; 32 MB of metadata have 500
WHOLE = 4_000_000  # pixels; larger images are converted in strips of this size and reduced on the way

# The exceptions that Pillow raises for damaged or malicious files. They include subclasses: RecursionError and
# NotImplementedError of RuntimeError, UnicodeError of ValueError.
DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    NameError,
    BufferError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
UPRIGHT = {  # EXIF's orientation, and what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnsupportedImageError(ValueError):
    """The bytes are damaged, or not an image in one of FORMATS."""


class ImageTooLargeError(UnsupportedImageError):
    """The image exceeds a limit on pixels, memory or work."""


class Header(NamedTuple):
    """What an image's bytes say before they are decoded."""

    format: str
    size: tuple[int, int]  # width, height, as stored
    data: bytes  # without metadata
    orientation: int = 1
    bytes_per_pixel: float = 4  # that decoding needs
    scans: float = 1  # passes over all pixels; more for a slow decoder

    @property
    def work(self) -> float:
        return self.size[0] * self.size[1] * self.scans


def read(image: bytes | Header, at_least: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
    """Decode an image, or what `inspect` returned for it, to upright RGB. Returns it and its full (width, height).

    The first frame of several. Transparency becomes white; of more than 8 bits, the upper 8 are kept. A JPEG, and an
    image of more than WHOLE pixels, is reduced on the way, but not below `at_least` (width, height).
    Raises UnsupportedImageError, ImageTooLargeError.
    """
    header = image if isinstance(image, Header) else inspect(image)
    turned = header.orientation in (5, 6, 7, 8)
    try:
        stored = PLUGINS[header.format](BytesIO(header.data))
        check(header._replace(size=stored.size))
        width, height = stored.size
        stored.draft(None, (max(at_least), max(at_least)))  # affects only JPEG
        stored.load()
        rgb = _to_rgb(stored, at_least[::-1] if turned else at_least)
    except UnsupportedImageError:
        raise
    except DECODER_ERRORS as error:
        raise _named(error, header) from error
    if header.orientation in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[header.orientation])
    return rgb, (height, width) if turned else (width, height)


def inspect(data: bytes) -> Header:
    """Read the header of an image. Raises UnsupportedImageError, ImageTooLargeError."""
    found = next((found for start, found in HEADERS.items() if data.startswith(start)), None)
    if found is None:
        raise UnsupportedImageError(describe(data))
    name, read_header = found
    try:
        header = read_header(data)
    except UnsupportedImageError:
        raise
    except (IndexError, ValueError, OverflowError, struct.error):
        raise UnsupportedImageError(_too_short(name)) from None
    check(header)
    return header


def check(header: Header) -> None:
    """Raise ImageTooLargeError if the image exceeds a limit."""
    width, height = header.size
    pixels = width * height
    if pixels > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limit = f"{MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side"
        raise ImageTooLargeError(f"the image has {width} x {height} pixels, the limit is {limit}: reduce its size")
    if header.scans > MAX_SCANS or pixels * header.scans > MAX_WORK:
        raise ImageTooLargeError(
            f"the {header.format} has {width} x {height} pixels in {header.scans:,.0f} passes, which takes too long "
            "to decode: save it again as a baseline JPEG or a PNG"
        )
    if pixels * header.bytes_per_pixel > MAX_MEMORY:
        megabytes = pixels * header.bytes_per_pixel / 1e6
        raise ImageTooLargeError(
            f"the {header.format} has {width} x {height} pixels, which need {megabytes:,.0f} MB to decode: "
            "reduce its size, or save it as a baseline JPEG"
        )


def _to_rgb(image: Image.Image, at_least: tuple[int, int]) -> Image.Image:
    """Convert any mode to RGB, in strips if the image is large: a second full copy might not fit into the memory."""
    width, height = image.size
    convert = _converter(image)
    if width * height <= WHOLE:
        return convert(image)
    across, down = (max(1, side // least) for side, least in zip(image.size, at_least, strict=True))
    reduced = Image.new("RGB", (-(-width // across), -(-height // down)))
    rows = max(1, WHOLE // (width * down)) * down
    for top in range(0, height, rows):
        strip = convert(image.crop((0, top, width, min(top + rows, height))))
        reduced.paste(strip.reduce((across, down)), (0, top // down))
    return reduced


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """The function that converts this image, or strips of it, to RGB. Raises UnsupportedImageError."""
    if image.mode in ("F", "LAB"):
        kind = "floating point numbers" if image.mode == "F" else "L*a*b* colours"
        raise UnsupportedImageError(f"the image has {kind}, which have no standard brightness: save it with 8 bits")
    if image.mode.startswith("I"):
        scale, inverted = _range(image)

        def upper_bits(part: Image.Image) -> Image.Image:
            wide = part.convert("I")
            if scale == UNSIGNED_32:  # Pillow's numbers are signed, and little-endian on all of our hosts
                grey = Image.frombytes("L", part.size, wide.tobytes()[3::4])
            else:
                grey = wide.point(lambda value: value * scale + 0).convert("L")
            return (grey.point(lambda value: 255 - value) if inverted else grey).convert("RGB")

        return upper_bits
    if image.has_transparency_data:
        return _on_white
    return lambda part: part if part.mode == "RGB" else part.convert("RGB")  # convert() would copy RGB too


UNSIGNED_32 = 0.5**24


def _range(image: Image.Image) -> tuple[float, bool]:
    """What scales grey values of more than 8 bits to 0 to 255, and whether white is 0.

    A TIFF says how many bits it has and whether they are signed; negative values become black. 32-bit values that never
    exceed 16 bits are 16-bit ones: many programs save them so. A 16-bit PNG is unsigned.
    """
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))[0]
    signed = tags.get(339, (1,))[0] == 2
    if bits == 32:
        lowest, highest = (int(each) for each in image.getextrema() if not isinstance(each, tuple))
        if highest < 65_536 and (signed or lowest >= 0):
            bits, signed = 16, False
    return 0.5 ** (bits - 8 - signed), tags.get(262) == 0


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 if there is none or it cannot be read."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "4xL", exif)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * min(count, 500), 12):
            tag, value = struct.unpack_from(order + "H6xH", exif, entry)
            if tag == 0x0112:
                return value if value in UPRIGHT else 1
    except struct.error:
        pass
    return 1


def _jpeg(data: bytes) -> Header:
    """Walk over the segments before the first scan. APP0 and APP14 concern the colours; the other APPs are metadata."""
    kept, size, orientation, components, sampled, position = [b"\xff\xd8"], (0, 0), 1, 0, 0.0, 2
    dropped = buffered = False
    for _ in range(MAX_SEGMENTS):
        position = data.index(b"\xff", position) if data[position] != 0xFF else position
        marker = data[position + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # has no content, or is filling
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:
            break
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        if (0xE1 <= marker <= 0xEF and marker != 0xEE) or marker == 0xFE:
            dropped = True
            if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0" and orientation == 1:
                orientation = _orientation(data[position + 10 : end])
        else:
            kept.append(data[position:end])
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                height, width, components = struct.unpack_from(">HHB", data, position + 5)
                size, buffered = (width, height), marker in (0xC2, 0xC6, 0xCA, 0xCE)
                factors = [(each >> 4) * (each & 15) for each in data[position + 11 : end : 3]]
                sampled = sum(factors) / max([1, *factors])  # samples per pixel, after chroma subsampling
        position = end
    else:
        raise ImageTooLargeError(f"the JPEG has more than {MAX_SEGMENTS:,} segments of metadata: remove them")
    # Several scans: the decoder keeps all coefficients, of two bytes each, until the last one.
    buffered = buffered or data[position + 4] < components
    scans = data.count(b"\xff\xda", position) if buffered else 1
    plain = b"".join([*kept, data[position:]]) if dropped else data
    result = 1 if min(size) > 2048 else 4  # bytes per pixel: draft() reduces what is large in both directions
    return Header("JPEG", size, plain, orientation, result + (2 * sampled if buffered else 0), scans)


def _png(data: bytes) -> Header:
    """Walk over the chunks. Ancillary ones, whose names begin with a lower-case letter, are left out, except tRNS."""
    width, height, colours = struct.unpack_from(">LLxB", data, 16)
    kept, dropped, palette, position, orientation = [data[:8]], False, colours != 3, 8, 1
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            break
        (length,) = struct.unpack_from(">L", data, position)
        name = data[position + 4 : position + 8]
        end = position + 12 + length
        if name[0] & 0x20 and name != b"tRNS":
            dropped = True
            if name == b"eXIf":
                orientation = _orientation(data[position + 8 : end - 4])
        else:
            kept.append(data[position:end])
            palette = palette or name == b"PLTE"
        position = end
        if name == b"IEND":
            break
    else:
        raise ImageTooLargeError(f"the PNG has more than {MAX_PARTS:,} chunks: save it again")
    if not palette:
        raise UnsupportedImageError("the PNG has palette colours, but no palette: export it again")
    return Header("PNG", (width, height), b"".join(kept) if dropped else data, orientation)


def _gif(data: bytes) -> Header:
    """Walk over the extensions before the first frame, of which only the last Graphic Control Extension concerns it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    first = position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control, blocks, limit = b"", 0, 4 * MAX_PARTS
    while data[position] != 0x2C:
        if data[position] == 0x3B:
            raise UnsupportedImageError("the GIF has no frame: export it again")
        start = position
        position += 2 if data[position] == 0x21 else 1
        if position == start + 1:
            blocks += 1
        else:
            while (length := data[position]) and blocks <= limit:
                position += 1 + length
                blocks += 1
            position += 1
            blocks += 1
            control = data[start:position] if data[start + 1] == 0xF9 else control
        if blocks > limit:
            raise ImageTooLargeError(f"the GIF has more than {limit:,} blocks before its image: remove them")
    left, top, across, down = struct.unpack_from("<4H", data, position + 1)
    size = (max(width, left + across), max(height, top + down))
    plain = data if position == first + len(control) else data[:first] + control + data[position:]
    return Header("GIF", size, plain)


def _bmp(data: bytes) -> Header:
    if data[14] == 12:  # the header of OS/2
        return Header("BMP", struct.unpack_from("<HH", data, 18), data)
    width, height, compression = struct.unpack_from("<Ll4xL", data, 18)
    # Pillow decodes run lengths in Python.
    return Header("BMP", (width, abs(height)), data, scans=50 if compression in (1, 2) else 1)


def _webp(data: bytes) -> Header:
    """Walk over the chunks. EXIF, ICCP and XMP are left out."""
    if data[8:12] != b"WEBP":
        raise UnsupportedImageError(describe(data))
    kept, orientation, size, position = [b"WEBP"], 1, (0, 0), 12
    end = 8 + struct.unpack_from("<L", data, 4)[0]
    if end > len(data):
        raise UnsupportedImageError(_too_short("WEBP"))
    for _ in range(MAX_PARTS):
        if position + 8 > end:
            break
        name, length = struct.unpack_from("<4sL", data, position)
        content, after = position + 8, position + 8 + length + length % 2
        if name == b"EXIF":
            orientation = _orientation(data[content : content + length].removeprefix(b"Exif\0\0"))
        elif name not in (b"ICCP", b"XMP "):
            kept.append(data[position:after])
        if name == b"VP8X":
            across, down = data[content + 4 : content + 7], data[content + 7 : content + 10]
            size = (1 + int.from_bytes(across, "little"), 1 + int.from_bytes(down, "little"))
        elif name == b"VP8 " and size == (0, 0):
            across, down = struct.unpack_from("<HH", data, content + 6)
            size = (across & 0x3FFF, down & 0x3FFF)
        elif name == b"VP8L" and size == (0, 0):
            (bits,) = struct.unpack_from("<L", data, content + 1)
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        position = after
    else:
        raise ImageTooLargeError(f"the WEBP has more than {MAX_PARTS:,} chunks: save it again")
    body = b"".join(kept)
    # libwebp keeps two canvases and a frame beside the result.
    return Header("WEBP", size, b"RIFF" + struct.pack("<L", len(body)) + body, orientation, bytes_per_pixel=22)


# The tags that describe the pixels; 273 and 324 are the offsets of strips and tiles.
TIFF_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339),
    *(347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
}
TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946}  # the others' decoders allocate as much as a file says
TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def _tiff(data: bytes) -> Header:
    """Read the first directory, and append one that has only TIFF_TAGS, which replaces it."""
    order = "<" if data[:1] == b"I" else ">"
    big = 43 in data[2:4]
    offset, number, width = ("Q", "Q", 20) if big else ("L", "H", 12)
    (start,) = struct.unpack_from(order + offset, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + number, data, start)
    start += 8 if big else 2
    parts = 1
    kept: dict[int, bytes] = {}
    values: dict[int, int] = {}
    for position in range(start, start + width * min(count, MAX_PARTS), width):
        tag, kind, items = struct.unpack_from(f"{order}HH{offset}", data, position)
        if tag in TIFF_TAGS:
            kept[tag] = data[position : position + width]
        if tag in TIFF_TAGS or tag == 0x0112:
            values[tag] = _tiff_value(data, order, position + width - (8 if big else 4), kind, items, 8 if big else 4)
        if tag in (273, 324):
            parts = items
    if parts > MAX_PARTS:
        raise ImageTooLargeError(f"the TIFF has {parts:,} strips or tiles, the limit is {MAX_PARTS:,}: save it again")
    if (compression := values.get(259, 1)) not in TIFF_COMPRESSIONS:
        raise UnsupportedImageError(f"the TIFF has compression {compression}: save it with LZW, Deflate or JPEG")
    columns, rows = values.get(256, 0), values.get(257, 0)
    part = values.get(322, columns) * min(values.get(323, rows), values.get(278, rows) if 322 not in values else 2**32)
    samples = values.get(277, 1)
    is_jpeg = compression in (6, 7)
    # A strip or tile is decoded as a whole, with its coefficients if it is a JPEG.
    part_bytes = part * samples * (max(1, values.get(258, 1) / 8) + 2 * is_jpeg)
    data += bytes(len(data) % 2)  # a directory begins at an even offset
    directory = struct.pack(order + number, len(kept)) + b"".join(kept[tag] for tag in sorted(kept))
    head = data[:8] + struct.pack(order + "Q", len(data)) if big else data[:4] + struct.pack(order + "L", len(data))
    plain = head + data[len(head) :] + directory + bytes(8 if big else 4)
    scans = max(1, data.count(b"\xff\xda") / max(1, parts)) if is_jpeg else 1
    per_pixel = 4 + part_bytes / max(1, columns * rows)
    return Header("TIFF", (columns, rows), plain, values.get(0x0112, 1), per_pixel, scans)


def _tiff_value(data: bytes, order: str, position: int, kind: int, items: int, room: int) -> int:
    """The first value of a tag, which lies in the directory itself if the tag's values fit into `room`; else 0."""
    code = {1: "B", 3: "H", 4: "L", 16: "Q"}.get(kind)
    if code is None:
        return 0
    if items * TIFF_TYPES[kind] > room:
        (position,) = struct.unpack_from(order + ("Q" if room == 8 else "L"), data, position)
    return struct.unpack_from(order + code, data, position)[0]


HEADERS: dict[bytes, tuple[str, Callable[[bytes], Header]]] = {
    b"\xff\xd8\xff": ("JPEG", _jpeg),
    b"\x89PNG\r\n\x1a\n": ("PNG", _png),
    b"GIF8": ("GIF", _gif),
    b"RIFF": ("WEBP", _webp),
    b"BM": ("BMP", _bmp),
    b"II*\0": ("TIFF", _tiff),
    b"MM\0*": ("TIFF", _tiff),
    b"II+\0": ("TIFF", _tiff),
    b"MM\0+": ("TIFF", _tiff),
}
# Opened without Image.open, which would look for a second image in a JPEG, and its size, in the metadata.
PLUGINS: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}

# What other files begin with.
OTHERS = {
    rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)": "a HEIC image, as phones save them",
    rb"....ftypavi[fs]": "an AVIF image",
    rb"....ftyp": "a video",
    rb"%PDF": "a PDF document",
    rb"PK\x03\x04": "a ZIP archive or an office document",
    rb"\x1f\x8b": "a gzip archive",
    rb"8BPS": "a Photoshop document",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "a JPEG XL image",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "a JPEG 2000 image",
    rb"\0\0[\x01\x02]\0": "a Windows icon or cursor",
    rb"RIFF....(AVI |WAVE)": "a video or a sound",
    rb"\x1a\x45\xdf\xa3": "a video",
    rb"ID3|OggS|fLaC": "a sound",
    rb"SIMPLE  =": "a FITS image",
    rb"P[1-6]\s": "a Netpbm image",
    rb"(?:\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg": "an SVG drawing",
    rb"(?:\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)": "an HTML page: fetch the image itself",
    rb"(?:\xef\xbb\xbf)?\s*<\?xml": "an XML document, perhaps an error message: fetch the image",
    rb"\s*data:": "a data URI: decode it first",
    rb"\s*(/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|Qk[0-3])[\w+/=\s]*$": "base64: decode it first",
    rb"\s*[{\[]": "JSON",
    rb"version https://git-lfs": "a Git LFS pointer: fetch the file itself",
    rb"\0+$": "nothing but zeros, as after an interrupted copy: upload it again",
}


def describe(data: bytes) -> str:
    """What bytes that are in none of FORMATS are, and what to do."""
    if not data:
        return "the file is empty: upload it again"
    start = data[:1024]
    for pattern, kind in OTHERS.items():
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return f"the file is {kind}" + ("" if ":" in kind else f": save it as {ACCEPTED}")
    is_text = not re.search(rb"[\0-\x08\x0e-\x1f\x7f-\xff]", start)
    kind = "text" if is_text else "damaged from its first bytes on, or in an unknown format"
    return f"the file is {kind}: save it as {ACCEPTED}"


def _too_short(name: str) -> str:
    return f"the {name} ends too early, as after an interrupted copy: upload the whole file"


def _named(error: Exception, header: Header) -> UnsupportedImageError:
    """An error of Pillow as one of ours."""
    if isinstance(error, MemoryError | Image.DecompressionBombError | Image.DecompressionBombWarning):
        return ImageTooLargeError(f"the {header.format} needs more memory than there is: reduce its size")
    text = str(error).lower()
    if isinstance(error, EOFError) or "truncated" in text or "unexpected end" in text:
        return UnsupportedImageError(_too_short(header.format))
    return UnsupportedImageError(f"the {header.format} is damaged, its pixels cannot be decoded: export it again")
