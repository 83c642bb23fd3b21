"""A source image -> a JPEG that is small enough for a state's payload. local/replay.py repeats this."""

import io

from PIL import Image

# A state's payload is limited to 256 KiB. A 144 KiB image is 192 KiB in base64, under 200 KiB with the longest key.
MAX_IMAGE_BYTES = 144 * 1024
MAX_SIDE = 1024  # of an image that is shrunk


def shrink(image: Image.Image, size: tuple[int, int]) -> tuple[bytes, tuple[int, int]]:
    """A JPEG of at most MAX_IMAGE_BYTES with the proportions of `size` (width, height), and its own size."""
    side = min(MAX_SIDE, max(size))
    while True:
        width, height = (max(1, round(each * side / max(size))) for each in size)
        smaller = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2)
        buffer = io.BytesIO()
        smaller.save(buffer, "JPEG", quality=90)
        if buffer.tell() <= MAX_IMAGE_BYTES:
            return buffer.getvalue(), (width, height)
        side = side * 3 // 4
