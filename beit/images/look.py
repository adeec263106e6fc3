"""Look at an encoded image beyond its pixels: format, range of its values, EXIF data, frames."""

from __future__ import annotations

from dataclasses import dataclass

from beit.config import PixelConfig
from beit.images import tiff
from beit.images.decode import Status, UndecodableImage, decode, open_image, orientation_of

FRAMED = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")
"""Formats whose files can hold several frames or pages. A second picture in a phone's JPEG is none."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What an image is like."""

    status: Status
    width: int = 0
    """As stored, before it is turned."""
    height: int = 0
    format: str = ""
    """Pillow's name, such as JPEG."""
    mode: str = ""
    """Pillow's name, such as RGB."""
    bits: int = 0
    """Bits in which a value is stored."""
    low: int = 0
    """Smallest value after decoding, of 0 to 255."""
    high: int = 0
    frames: bool = False
    """Whether the file holds more than one frame. The first is used."""
    turned: bool = False
    """Whether its EXIF orientation is not upright."""
    turned_across: bool = False
    """Whether width and height are exchanged by its EXIF orientation."""
    bad_exif: bool = False
    """Whether its EXIF orientation cannot be read."""


def look(encoded: bytes, view: PixelConfig) -> Look:
    """Decode an image and describe it."""
    try:
        pixels = decode(encoded, view)
    except UndecodableImage as problem:
        return Look(status=problem.status)
    low, high = int(pixels.min()), int(pixels.max())
    if encoded.startswith(tiff.SIGNATURES):
        layout = tiff.read_layout(encoded)
        return Look(
            status=Status.DECODED,
            width=layout.width,
            height=layout.height,
            format="TIFF",
            mode=_tiff_mode(encoded, layout),
            bits=layout.bits,
            low=low,
            high=high,
            frames=bool(layout.tags.next),
            turned=layout.orientation != 1,
            turned_across=layout.orientation > 4,
        )
    with open_image(encoded) as image:
        form = "JPEG" if image.format == "MPO" else image.format or ""
        orientation, bad = orientation_of(image)
        deep = image.mode.startswith("I;16") or (form == "PNG" and encoded[24:25] == b"\x10")
        return Look(
            status=Status.DECODED,
            width=image.width,
            height=image.height,
            format=form,
            mode=image.mode,
            bits=16 if deep or image.mode == "I" else 8,
            low=low,
            high=high,
            frames=form in FRAMED and bool(getattr(image, "is_animated", False)),
            turned=orientation != 1,
            turned_across=orientation > 4,
            bad_exif=bad,
        )


def _tiff_mode(encoded: bytes, layout: tiff.Layout) -> str:
    if layout.plain:
        with open_image(encoded) as image:
            return image.mode
    return f"{layout.channels} channels"
