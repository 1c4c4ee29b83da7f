"""Encoded images, of any format that Pillow reads, decoded."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Pillow belongs to an extra and is imported where it is needed
    from PIL.Image import Image as Picture


class ImageError(ValueError):
    """Why an image cannot be used, said of it: "is a broken image (…)"."""


def decode(content: bytes) -> tuple["Picture", bool]:
    """The whole image, and whether it has more than 8 bits a channel, which Pillow may have cut to 8.

    Raises:
        ImageError: it cannot be decoded, or not to its end.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).partition(" <")[0]  # without the address of the buffer
        raise ImageError(f"is a broken image ({reason})") from None
    deep_png = image.format == "PNG" and content[24] > 8
    return image, deep_png or image.mode == "F" or image.mode.startswith("I")


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
