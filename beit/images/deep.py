"""Scale values of more than 8 bits to 8 bits, without losing what they mean.

A camera of 12 bits stores its values in 16. Scaled by 16 bits they are all but black. So the range is taken
from the file where it says how many bits are used, or from `view.range`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.images.tiff import Layout

Range = tuple[float, float]

PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
"""Channels by the colour type of a PNG: grey, RGB, grey and alpha, RGB and alpha."""


def scale_channels(values: NDArray[Any], limits: Range, *, transparent: bool) -> NDArray[np.uint8]:
    """Scale values [H, W, C]; the last channel is the transparency if there is one, and begins at 0."""
    if not transparent:
        return scale(values, limits)
    return np.concatenate([scale(values[..., :-1], limits), scale(values[..., -1:], (0, limits[1]))], axis=2)


def scale(values: NDArray[Any], limits: Range) -> NDArray[np.uint8]:
    """Scale values so that the limits become 0 and 255; values outside are clipped, NaN becomes 0."""
    low, high = limits
    if values.dtype.kind in "iu" and low == int(low) and high == int(high):
        # Rounded in whole numbers, half up.
        low, white = int(low), int(high - low)
        small = values.dtype == np.uint16 and low >= 0 and high < 1 << 16
        wide = values.astype(np.uint32 if small else np.int64)
        return (((wide.clip(low, low + white) - low) * 510 + white) // (2 * white)).astype(np.uint8)
    shares = (values.astype(np.float64) - low) / (high - low)
    return np.floor(np.nan_to_num(shares, nan=0.0).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def tiff_limits(layout: Layout, chosen: Range | str) -> Range | None:
    """The stored values that become black and white; None if nobody says.

    Args:
        layout: The file's layout.
        chosen: "auto", "full", or the limits.
    """
    if not isinstance(chosen, str):
        return chosen
    if layout.bits > 16 or layout.format != 1:
        return None
    return 0, 2 ** (layout.stated_bits if chosen == "auto" else layout.bits) - 1


def read_deep_png(encoded: bytes, chosen: Range | str) -> tuple[NDArray[np.uint16], Range] | None:
    """The values of a 16-bit PNG with the limits to scale them by; None if it is no such PNG, or its values
    fill the 16 bits as the format wants.

    A PNG that states 12 significant bits has its values scaled up to 16 bits: they are right as they are.
    Some programs state 12 bits and leave the values as they were. That shows: in a scaled value below 4096
    the last 4 bits are 0.

    Args:
        encoded: The file's bytes.
        chosen: "auto", "full", or the limits.
    """
    if encoded[:8] != PNG or encoded[24:25] != b"\x10" or chosen == "full":
        return None
    if not isinstance(chosen, str):
        return _read_png(encoded), chosen
    bits = significant_bits(encoded)
    if not 8 < bits < 16:
        return None
    values = _read_png(encoded)
    colours = values[..., : values.shape[2] - 1 if encoded[25] in (4, 6) else None]
    if colours.max(initial=0) < 1 << bits and (colours & ((1 << (16 - bits)) - 1)).any():
        return values, (0, (1 << bits) - 1)
    return None


def significant_bits(encoded: bytes) -> int:
    """The bits that the sBIT chunk of a PNG states, of its colours; 16 if there is none."""
    for name, content in _chunks(encoded):
        if name == b"sBIT" and content:
            return max(content[: 3 if encoded[25] in (2, 6) else 1])
    return 16


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of the chunks of a PNG before its pixels."""
    place = 8
    while place + 8 <= len(encoded):
        size, name = struct.unpack_from(">I4s", encoded, place)
        if name == b"IDAT":
            return
        yield name, encoded[place + 8 : place + 8 + size]
        place += 12 + size


def _read_png(encoded: bytes) -> NDArray[np.uint16]:
    """All 16 bits of a PNG, [H, W, C].

    Pillow keeps 8 bits of colours. It takes the higher byte of each value if it is told that the first byte
    is the higher one, and the lower byte if it is told the contrary.
    """
    channels = PNG_CHANNELS[encoded[25]]
    if channels == 1:
        return _as_array(encoded, None, None)[..., None].astype(np.uint16)
    if channels == 2:
        # Grey and alpha have four bytes together, as red, green, blue and alpha of 8 bits have.
        both = _as_array(encoded, "RGBA", "RGBA").astype(np.uint16)
        return both[..., ::2] << np.uint16(8) | both[..., 1::2]
    mode = "RGB" if channels == 3 else "RGBA"
    high = _as_array(encoded, mode, f"{mode};16B").astype(np.uint16)
    low = _as_array(encoded, mode, f"{mode};16L").astype(np.uint16)
    return high << np.uint16(8) | low


def _as_array(encoded: bytes, mode: str | None, raw_mode: str | None) -> NDArray[Any]:
    with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        if mode is not None:
            image._mode = mode
            image.info.pop("transparency", None)
            image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        image.load()
        return np.asarray(image)
