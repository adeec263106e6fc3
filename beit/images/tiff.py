"""Read the stored values of TIFF files whose layout Pillow misreads or does not open, and refuse layouts
whose pixels nobody has checked.

TIFF is a family of layouts: values of 1 to 64 bits, whole, signed or floating, channels interleaved or one
plane after the other, in strips or tiles, with differences in place of values. Pillow reads the common ones.
Some it reads wrongly without an error: 16-bit planes, an alpha plane of its own, white as 0 in 16 bits. Those
are read here: the file's directory is rewritten so that it describes one wide grey image of 8 bits, which
Pillow reads well, and the bytes are put together to values afterwards.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, CHANNELS, ROWS_PER_STRIP, STRIP_BYTES = 273, 277, 278, 279
ORIENTATION, MOST_VALUE, PLANAR, PREDICTOR = 274, 281, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
EXTRA, FORMAT, MOST_SAMPLE = 338, 339, 341

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
"""Channels of each kind of colour, those of transparency and others not counted."""

UNSIGNED, SIGNED, FLOATING = 1, 2, 3
PREMULTIPLIED, ALPHA, COREL_ALPHA = 1, 2, 999

LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions that keep bytes as they are, so that the directory may describe them in another way: none,
LZW, deflate by both numbers, PackBits, LZMA, Zstandard."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the first image of a TIFF file is stored."""

    tags: ImageFileDirectory_v2
    width: int
    height: int
    channels: int
    bits: int
    """Bits of a value; 0 if channels differ."""
    format: int
    """UNSIGNED, SIGNED, FLOATING, or a number that stands for neither."""
    colour: int
    """The kind of colour: RGB, for example."""
    extra: tuple[int, ...]
    """What each channel after the colours is: 0 if the file does not say, ALPHA, PREMULTIPLIED."""
    planar: bool
    """Whether each channel is stored as a plane of its own."""
    tile: tuple[int, int] | None
    """Width and height of the tiles. None: strips."""

    @property
    def alpha(self) -> int | None:
        """Number of the channel of transparency, counted from 0."""
        for place, meaning in enumerate(self.extra):
            if meaning in (PREMULTIPLIED, ALPHA, COREL_ALPHA):
                return self.channels - len(self.extra) + place
        return None

    @property
    def orientation(self) -> int:
        """As in EXIF data: 1 for upright."""
        value = self.tags.get(ORIENTATION, 1)
        return value if value in range(1, 9) else 1

    @property
    def unnamed(self) -> int:
        """Number of channels that are neither colours nor transparency."""
        return len(self.extra) - (self.alpha is not None)

    @property
    def stated_bits(self) -> int:
        """Bits that the values use: fewer than they are stored in, if the largest possible value is said.

        Only a largest value of all ones states bits. Any other is what happens to occur in this image.
        """
        for tag in (MOST_SAMPLE, MOST_VALUE):
            value = self.tags.get(tag)
            most = max(value) if isinstance(value, tuple) and value else value
            if isinstance(most, int | float) and 255 < most < 2**self.bits:
                used = int(most).bit_length()
                if most == 2**used - 1:
                    return used
        return self.bits

    @property
    def plain(self) -> bool:
        """Whether Pillow reads this layout right: 8 bits or fewer, or contiguous 16 bits."""
        if self.format != UNSIGNED or self.colour not in COLOURS or self.unnamed:
            return False
        if self.planar and not (
            self.bits == 8 and not self.extra and self.colour in (BLACK_IS_ZERO, RGB, PALETTE, CMYK)
        ):
            return False
        if self.bits in (1, 2, 4):
            return self.channels == 1 and self.colour in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)
        if self.bits == 8:
            return True
        if self.bits == 12:
            return self.channels == 1 and self.colour == BLACK_IS_ZERO
        return self.bits == 16 and (
            (self.channels == 1 and self.colour == BLACK_IS_ZERO) or self.colour in (RGB, CMYK)
        )

    @property
    def readable(self) -> bool:
        """Whether `read_values` can read this layout."""
        return (
            self.tags.get(COMPRESSION, 1) in LOSSLESS
            and self.colour in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
            and PREMULTIPLIED not in self.extra
            and self.tags.get(266, 1) == 1
            and (
                (self.format in (UNSIGNED, SIGNED) and self.bits in (8, 16, 32))
                or (self.format == FLOATING and self.bits == 32)
            )
            and (self.tags.get(PREDICTOR, 1) in (1, 2) or self.format == FLOATING)
        )


def read_layout(encoded: bytes) -> Layout:
    """Read the directory of the first image.

    Raises:
        Exception: Of any kind, if the directory is damaged.
    """
    file = io.BytesIO(encoded)
    tags = ImageFileDirectory_v2(file.read(16 if encoded[2] == 43 or encoded[3] == 43 else 8))
    file.seek(tags.next)
    tags.load(file)
    compression, colour = tags.get(COMPRESSION, 1), tags.get(PHOTOMETRIC, WHITE_IS_ZERO)
    channels = int(tags.get(CHANNELS, 3 if compression == 6 else 1))
    if compression == 6:
        colour = YCBCR
    bits, formats = _all_of(tags.get(BITS, 1)), _all_of(tags.get(FORMAT, UNSIGNED))
    beyond = max(0, channels - COLOURS.get(colour, channels))
    said = _all_of(tags.get(EXTRA, ()))[:beyond]
    tile = None
    if TILE_OFFSETS in tags and STRIP_OFFSETS not in tags:
        tile = (int(tags[TILE_WIDTH]), int(tags[TILE_HEIGHT]))
    return Layout(
        tags=tags,
        width=int(tags[WIDTH]),
        height=int(tags[HEIGHT]),
        channels=channels,
        bits=bits[0] if len(set(bits[:channels])) == 1 else 0,
        format=formats[0] if len(set(formats[:channels])) == 1 else 0,
        colour=int(colour),
        extra=(*said, *[0] * (beyond - len(said))),
        planar=tags.get(PLANAR, 1) == 2,
        tile=tile,
    )


def _all_of(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, tuple) else (int(value),)


def read_values(encoded: bytes, layout: Layout, channels: Sequence[int]) -> NDArray[Any]:
    """Read some channels as they are stored.

    Args:
        encoded: The file's bytes.
        layout: Its layout, which is `readable`.
        channels: Numbers of the channels, from 0.

    Returns:
        [H, W, len(channels)] of uint8, int8, uint16, int16, uint32, int32 or float32.
    """
    if layout.planar and layout.channels > 1:
        return np.concatenate([_read_pixels(encoded, layout, 1, plane) for plane in channels], axis=2)
    return _read_pixels(encoded, layout, layout.channels, None)[..., list(channels)]


def _read_pixels(encoded: bytes, layout: Layout, channels: int, plane: int | None) -> NDArray[Any]:
    """Read all channels of the file, or one of its planes: [H, W, channels]."""
    old = layout.tags
    step = layout.width if layout.tile is None else layout.tile[0]
    # Tiles stick out beyond the right edge. They are read whole: a value can depend on those after it.
    across = -(-layout.width // step) * step
    pixel_bytes = channels * layout.bits // 8
    entries = {
        WIDTH: (across * pixel_bytes,),
        HEIGHT: (layout.height,),
        BITS: (8,),
        COMPRESSION: _all_of(old.get(COMPRESSION, 1)),
        PHOTOMETRIC: (BLACK_IS_ZERO,),
        CHANNELS: (1,),
    }
    if layout.tile is None:
        offsets, sizes = STRIP_OFFSETS, STRIP_BYTES
        entries[ROWS_PER_STRIP] = (min(layout.height, int(old.get(ROWS_PER_STRIP, layout.height))),)
    else:
        offsets, sizes = TILE_OFFSETS, TILE_BYTES
        entries[TILE_WIDTH], entries[TILE_HEIGHT] = (step * pixel_bytes,), (layout.tile[1],)
    for tag in (offsets, sizes):
        places = _all_of(old[tag])
        if plane is not None:
            each = len(places) // layout.channels
            places = places[plane * each : (plane + 1) * each]
        entries[tag] = places
    rewritten = _with_directory(encoded, entries, "<" if old.prefix == b"II" else ">")
    with Image.open(io.BytesIO(rewritten), formats=("TIFF",)) as image:
        stored = np.asarray(image)
    parts = [
        _undo(stored[:, left * pixel_bytes : (left + step) * pixel_bytes], layout, channels)
        for left in range(0, across, step)
    ]
    return np.concatenate(parts, axis=1)[:, : layout.width]


def _undo(stored: NDArray[np.uint8], layout: Layout, channels: int) -> NDArray[Any]:
    """Turn the bytes [H, …] of a column of strips or tiles into values [H, W, channels]."""
    predictor, size = layout.tags.get(PREDICTOR, 1), layout.bits // 8
    kind = {UNSIGNED: "u", SIGNED: "i", FLOATING: "f"}[layout.format]
    if predictor == 3:
        # The first bytes of all values, then their second bytes …; and of these the differences.
        rows = np.cumsum(stored.reshape(len(stored), -1, channels), axis=1, dtype=np.uint8)
        bytes_apart = rows.reshape(len(stored), size, -1).swapaxes(1, 2)
        values = np.ascontiguousarray(bytes_apart).view(f">{kind}{size}")
    else:
        order = "<" if layout.tags.prefix == b"II" else ">"
        values = np.ascontiguousarray(stored).view(f"{order}{kind}{size}")
    values = values.reshape(len(stored), -1, channels).astype(f"{kind}{size}")
    if predictor == 2:
        # Each value is stored as its difference from the pixel to the left.
        values = np.cumsum(values, axis=1, dtype=values.dtype)
    return values


def _with_directory(encoded: bytes, entries: dict[int, tuple[int, ...]], order: str) -> bytes:
    """The file with another directory, behind what it holds, of entries that are all 32-bit numbers."""
    start = len(encoded) + len(encoded) % 2
    far = start + 2 + 12 * len(entries) + 4
    directory, behind = struct.pack(f"{order}H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        directory += struct.pack(f"{order}HHI", tag, 4, len(values))
        if len(values) == 1:
            directory += struct.pack(f"{order}I", values[0])
        else:
            directory += struct.pack(f"{order}I", far + len(behind))
            behind += struct.pack(f"{order}{len(values)}I", *values)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + encoded[8:] + bytes(len(encoded) % 2) + directory + bytes(4) + behind
