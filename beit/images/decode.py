"""Decode images of any common format to RGB pixels, or say why an image cannot be decoded."""

from __future__ import annotations

import io
import threading
import warnings
from enum import IntEnum

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from beit.config import PixelConfig

JPEG = b"\xff\xd8\xff"
SIGNATURES = (JPEG, b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
"""First bytes of common image formats. A file that starts with one of them but cannot be opened is damaged;
any other is not an image."""


class Status(IntEnum):
    """The outcome of decoding an image."""

    DECODED = 0
    EMPTY = 1
    NOT_AN_IMAGE = 2
    HTML = 3
    TRUNCATED = 4
    TOO_LARGE = 5
    UNSUPPORTED = 6

    @property
    def reason(self) -> str:
        """The outcome as a short phrase."""
        return REASONS[self]


REASONS = {
    Status.DECODED: "decoded",
    Status.EMPTY: "empty file",
    Status.NOT_AN_IMAGE: "not an image, or of a format that Pillow cannot read",
    Status.HTML: "a web page saved under an image's name",
    Status.TRUNCATED: "cut short or damaged",
    Status.TOO_LARGE: "more pixels than view.max_pixels",
    Status.UNSUPPORTED: "32-bit pixels, whose range is not known",
}


class UndecodableImage(Exception):  # noqa: N818 - named after the image: it is not an error of the program
    """Raised for an image that cannot be decoded; `status` says why."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return self.status.reason


def decode(encoded: bytes, view: PixelConfig) -> NDArray[np.uint8]:
    """Decode an image as uint8 RGB [H, W, 3].

    The image is rotated according to its EXIF orientation (if `view.exif_rotate`). Transparent pixels are
    blended with `view.background`. An animation gives its first frame. 16-bit grey is scaled to 8 bits. The
    size is checked from the header, before any pixel is decoded.

    Raises:
        UndecodableImage: With the reason.
    """
    if encoded.startswith(JPEG):
        pixels = _decode_plain_jpeg(encoded, view)
        if pixels is not None:
            return pixels
    return _decode_any(encoded, view)


def _decode_plain_jpeg(encoded: bytes, view: PixelConfig) -> NDArray[np.uint8] | None:
    """Decode an upright, undamaged RGB or grey JPEG file quickly; return None for any other file."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if height * width > view.max_pixels:
            raise UndecodableImage(Status.TOO_LARGE)
        if colours in ("CMYK", "YCCK") or (view.exif_rotate and _is_turned(encoded)):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, colorspace="RGB")
        return pixels
    except ValueError:
        return None


def _is_turned(encoded: bytes) -> bool:
    start = encoded.find(b"Exif\0\0", 0, 1 << 16)
    if start < 0:
        return False
    exif = Image.Exif()
    try:
        exif.load(encoded[start : start + (1 << 16)])
        return bool(exif.get(0x0112, 1) != 1)
    except Exception:  # The parser raises anything on damaged EXIF data; Pillow ignores such data, too.
        return False


_pillow_limit = threading.Lock()


def _decode_any(encoded: bytes, view: PixelConfig) -> NDArray[np.uint8]:
    try:
        # Pillow has its own size limit while it reads the header. It is switched off: ours, below, is checked
        # before any pixel is decoded.
        with _pillow_limit, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image: Image.Image = Image.open(io.BytesIO(encoded))
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        if image.width * image.height > view.max_pixels:
            raise UndecodableImage(Status.TOO_LARGE)
        image.load()
        if view.exif_rotate:
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, view.background)
    except (UndecodableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UndecodableImage(_what_it_is(encoded)) from None
    # A damaged file can make a decoder raise almost anything: OSError, SyntaxError, struct.error, IndexError.
    except Exception:
        raise UndecodableImage(Status.TRUNCATED) from None


def _what_it_is(encoded: bytes) -> Status:
    """Return why Pillow could not identify a file."""
    head = encoded[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not encoded:
        return Status.EMPTY
    if head.startswith((b"<!doctype html", b"<html")) or b"<html" in head:
        return Status.HTML
    return Status.TRUNCATED if encoded.startswith(SIGNATURES) else Status.NOT_AN_IMAGE


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Convert an image of any Pillow mode to uint8 [H, W, 3]."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_grey16(image)
    if image.mode in ("I", "F"):
        raise UndecodableImage(Status.UNSUPPORTED)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, background)
        flat.paste(image, mask=image.getchannel("A"))
        image = flat
    return np.asarray(image.convert("RGB"))


def _from_grey16(image: Image.Image) -> NDArray[np.uint8]:
    """Scale 16-bit grey to 8 bits.

    Pillow's own conversion clips everything above 255, so such images come out white.
    """
    tags = getattr(image, "tag_v2", {})  # In TIFF, images of 12-bit or 14-bit detectors say so.
    bits = int(tags.get(258, (16,))[0])
    white = (1 << bits) - 1
    grey = (np.asarray(image).astype(np.uint32) * 510 + white) // (2 * white)
    return np.repeat(np.minimum(grey, 255).astype(np.uint8)[..., None], 3, axis=2)
