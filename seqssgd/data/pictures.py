"""Encoded images, of any format that Pillow reads, decoded."""

import functools
import io
import logging
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Pillow belongs to an extra and is imported where it is needed
    from PIL.Image import Image as Picture


# Pixels that any file may have; decoders hold up to 20 bytes for each of them (JPEG 2000; lossless WebP 16, AVIF 10).
SMALL = 2**22
# How many a larger one may have for each of its bytes: more than PNG (8,200) and JPEG (64) make of one colour. Lossless
# WebP, JPEG 2000, AVIF and TIFF's group 4 make more of it, and then cannot be told from what is to fill the memory.
PER_BYTE = 10_000
_PNG = re.compile(rb"(?s)\x89PNG\r\n\x1a\n.{17}")
_DEEP_DXGI = {2, 6, 10, 11, 24, 26, 94, 95, 96}  # floats, 16 or 10 bits, and BC6H, by their numbers in DXGI_FORMAT


class ImageError(ValueError):
    """Why an image cannot be used, said of it: "is a broken image (…)"."""


def decode(content: bytes) -> tuple["Picture", bool]:
    """The whole image, and whether it has more than 8 bits a channel, which Pillow may have cut to 8.

    Raises:
        ImageError: it cannot be decoded, or not to its end.
    """
    pillow = _pillow()
    try:
        image = pillow.open(io.BytesIO(content))
        width, height = image.size
        if width * height > max(SMALL, PER_BYTE * len(content)):
            raise ImageError(
                f"says that it has {width:,} × {height:,} pixels in {len(content):,} bytes (if so, save it as PNG)"
            )
        image.load()
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # every format of Pillow raises its own, NotImplementedError and RuntimeError among them
        reason = (str(error) or type(error).__name__).partition(" <")[0]  # without the address of the buffer
        raise ImageError(f"is a broken image ({reason})") from None
    return image, image.mode == "F" or image.mode.startswith("I") or _bits(image, content) > 8


@functools.cache
def _pillow() -> Any:
    """Pillow, whose logger need not tell of errors: :func:`decode` raises them."""
    from PIL import Image

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # or else errors go to standard error
    return Image


def _bits(image: "Picture", content: bytes) -> int:
    """The bits of a channel in the file, of formats that Pillow cuts to 8 without a word."""
    format = image.format
    if format == "PNG":
        return content[24]
    if format in ("ICO", "CUR", "ICNS"):  # which may hold a PNG
        return max((content[found.start() + 24] for found in _PNG.finditer(content)), default=8)
    if format == "PPM":
        numbers = re.sub(rb"#[^\r\n]*", b"", content[2:1000]).split()
        return 8 if content[:2] in (b"P1", b"P4") or len(numbers) < 3 else _width(numbers[2])
    if format == "TIFF":
        tiff: Any = image
        return max(tiff.tag_v2.get(258, (8,)))
    if format == "JPEG2000":
        size = content.find(b"\xff\x4f\xff\x51")  # the codestream's beginning and its SIZ
        count = int.from_bytes(content[size + 40 : size + 42])
        return max((1 + (byte & 0x7F) for byte in content[size + 42 : size + 42 + 3 * count : 3]), default=8)
    if format == "SGI":
        return 8 * content[3]
    if format == "PSD":
        return int.from_bytes(content[22:24])
    if format == "AVIF":
        box = content.find(b"av1C")
        return 10 if box >= 0 and content[box + 6] & 0x40 else 8
    if format == "DDS" and content[84:88] == b"DX10":
        return 16 if int.from_bytes(content[128:132], "little") in _DEEP_DXGI else 8
    return 8


def _width(largest: bytes) -> int:
    return int(largest).bit_length() if largest.isdigit() else 8


def decode_rgb(content: bytes) -> "Picture":
    """The whole image in RGB: grey, palette and CMYK images are converted, transparency is dropped.

    Raises:
        ImageError: it cannot be decoded, or has more than 8 bits a channel, which a conversion would clip.
    """
    image, deep = decode(content)
    if deep:
        raise ImageError(f"has more than 8 bits a channel (mode {image.mode}); convert it")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
