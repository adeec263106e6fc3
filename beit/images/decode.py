"""Decode images of any common format to RGB pixels, or say why an image cannot be decoded."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from enum import IntEnum
from importlib.util import find_spec

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from beit.config import PixelConfig
from beit.images import deep, tiff

MAX_ENCODED_BYTES = 128 << 20
"""Of an image file or tar member no more is read. An image that is larger arrives cut off."""

JPEG = b"\xff\xd8\xff"
SIGNATURES = (JPEG, b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", *tiff.SIGNATURES)
"""First bytes of common image formats. A file that starts with one of them but cannot be opened is damaged;
any other is not an image."""

FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "WEBP", "TIFF", "JPEG2000"),
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),
    *("ICO", "TGA", "PCX", "SGI", "QOI", "PSD"),
)
"""Pillow's names of the formats that are read: those whose header tells how many pixels will be decoded."""

ICON = b"\0\0\1\0"
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
OTHER_FORMATS = (b"%!PS", b"%PDF", b"icns", b"\xc5\xd0\xd3\xc6", b"SIMPLE  =", b"DDS ")

ORIENTATION = 0x0112


class Status(IntEnum):
    """The outcome of decoding an image."""

    DECODED = 0
    EMPTY = 1
    NOT_AN_IMAGE = 2
    HTML = 3
    TRUNCATED = 4
    TOO_LARGE = 5
    UNSUPPORTED = 6
    CHANNELS = 7
    LAYOUT = 8
    HEIC = 9
    JPEG_XL = 10
    TOO_LONG = 11
    OTHER_FORMAT = 12

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
    Status.UNSUPPORTED: (
        "32-bit or signed pixels, whose range is not known: say which values are black and white by "
        "view.range=LO..HI"
    ),
    Status.CHANNELS: (
        "channels besides grey or colours that are not said to be transparency: choose by view.channels, "
        "such as view.channels=0,1,2"
    ),
    Status.LAYOUT: (
        "a TIFF whose layout is not read, such as CIELAB, 64-bit values or planes of an unusual kind: "
        "convert it"
    ),
    Status.HEIC: "a HEIC image, which is not read: convert it to JPEG or PNG",
    Status.JPEG_XL: "a JPEG XL image, which is not read: convert it to JPEG or PNG",
    Status.TOO_LONG: (
        f"longer than {MAX_ENCODED_BYTES >> 20} MiB, the most that is read of a file: compress it, or cut it "
        "into parts"
    ),
    Status.OTHER_FORMAT: "of a format that is not read, such as PDF, EPS or ICNS: convert it to JPEG or PNG",
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

    The image is rotated according to its EXIF orientation (if `view.exif_rotate`). Where EXIF data is damaged
    it stays as it is. Transparent pixels are blended with `view.background`. An animation gives its first
    frame. Values of more than 8 bits are scaled to 8 bits (see `view.range`). The size is checked from the
    header, before any pixel is decoded.

    Raises:
        UndecodableImage: With the reason.
    """
    if encoded.startswith(JPEG):
        pixels = _decode_plain_jpeg(encoded, view)
        if pixels is not None:
            return pixels
    try:
        return _decode_any(encoded, view)
    except UndecodableImage as problem:
        if problem.status is Status.TRUNCATED and len(encoded) == MAX_ENCODED_BYTES:
            raise UndecodableImage(Status.TOO_LONG) from None
        raise


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
        return bool(exif.get(ORIENTATION, 1) != 1)
    except Exception:  # The parser raises anything on damaged EXIF data; Pillow ignores such data, too.
        return False


def _decode_any(encoded: bytes, view: PixelConfig) -> NDArray[np.uint8]:
    try:
        if encoded.startswith(tiff.SIGNATURES):
            return _decode_tiff(encoded, view)
        if (canvas := _webp_canvas(encoded)) is not None:
            _check_size(canvas, view)
        if encoded.startswith(ICON):
            _check_icon(encoded, view)
        with open_image(encoded) as image:
            _check_size(image.size, view)
            if image.format == "JPEG2000":
                _check_size(_jpeg2000_size(encoded), view)
            if image.format == "PNG" and (found := deep.read_deep_png(encoded, view.limits())) is not None:
                transparent = found[0].shape[2] in (2, 4)
                pixels = _flatten(deep.scale_channels(*found, transparent=transparent), transparent, view)
                turned = orientation_of(image)[0]
            else:
                image.load()
                pixels, turned = _to_rgb(image, view.background), orientation_of(image)[0]
        return turn(pixels, turned) if view.exif_rotate else pixels
    except (UndecodableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UndecodableImage(_what_it_is(encoded)) from None
    # A damaged file can make a decoder raise almost anything: OSError, SyntaxError, struct.error, IndexError.
    except Exception:
        raise UndecodableImage(Status.TRUNCATED) from None


_pillow_limit = threading.Lock()


def open_image(encoded: bytes) -> Image.Image:
    """Read an image's header by Pillow, of the `FORMATS` that are read.

    Raises:
        Exception: Of any kind, if the file is damaged or of another format.
    """
    # Pillow has its own size limit while it reads the header. It is switched off: ours is checked before any
    # pixel is decoded.
    with _pillow_limit, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(encoded), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_size(size: tuple[int, int], view: PixelConfig) -> None:
    if size[0] * size[1] > view.max_pixels:
        raise UndecodableImage(Status.TOO_LARGE)


def orientation_of(image: Image.Image) -> tuple[int, bool]:
    """The EXIF orientation of a loaded image, 1 for upright; and whether its EXIF data cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(ORIENTATION, 1)
        return (value, False) if value in range(1, 9) else (1, value != 0)
    except Exception:  # The parser raises anything on damaged EXIF data.
        return 1, True


def turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn pixels [H, W, …] upright, by their EXIF orientation from 1 to 8."""
    if orientation == 1:
        return pixels
    if orientation in (2, 4):
        return np.ascontiguousarray(pixels[:, ::-1] if orientation == 2 else pixels[::-1])
    if orientation == 3:
        return np.ascontiguousarray(pixels[::-1, ::-1])
    across = pixels.swapaxes(0, 1)
    rows, columns = {5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[orientation]
    return np.ascontiguousarray(across[::rows, ::columns])


def _decode_tiff(encoded: bytes, view: PixelConfig) -> NDArray[np.uint8]:
    """Decode a TIFF file: by Pillow if it reads the layout right, else from the values as they are stored."""
    layout = tiff.read_layout(encoded)
    size = layout.width, layout.height
    _check_size(size, view)
    _check_size(layout.tile or size, view)
    chosen = view.chosen_channels() if layout.channels > 3 else None
    if chosen is None and layout.unnamed:
        raise UndecodableImage(Status.CHANNELS)
    if chosen is not None and max(chosen) >= layout.channels:
        raise UndecodableImage(Status.CHANNELS)
    limits = deep.tiff_limits(layout, view.limits())
    # Nothing has to be scaled by other values than Pillow scales by.
    whole = layout.bits <= 8 or limits == (0, 2**layout.bits - 1)
    if chosen is None and layout.plain and whole:
        pixels = _decode_plain_tiff(encoded, layout, view)
    elif not layout.readable:
        raise UndecodableImage(Status.LAYOUT)
    elif limits is None:
        raise UndecodableImage(Status.UNSUPPORTED)
    else:
        pixels = _decode_stored_tiff(encoded, layout, chosen, limits, view)
    return turn(pixels, layout.orientation) if view.exif_rotate else pixels


def _decode_stored_tiff(
    encoded: bytes, layout: tiff.Layout, chosen: tuple[int, ...] | None, limits: deep.Range, view: PixelConfig
) -> NDArray[np.uint8]:
    """Decode a TIFF file from the values as they are stored, not turned."""
    together = 1 if layout.planar else layout.channels
    # Room for four channels of 32 bits.
    _check_size((layout.width * together * layout.bits // 128, layout.height), view)
    alpha = None if chosen is not None else layout.alpha
    colours = tuple(range(layout.channels - len(layout.extra))) if chosen is None else chosen
    values = tiff.read_values(encoded, layout, (*colours, *(() if alpha is None else (alpha,))))
    whole = layout.format == tiff.UNSIGNED and limits == (0, 2**layout.bits - 1)
    if layout.bits == 8 and layout.format == tiff.UNSIGNED:
        scaled: NDArray[np.uint8] = values
    elif layout.bits == 16 and whole and layout.colour == tiff.RGB:
        scaled = (values >> 8).astype(np.uint8)  # As Pillow does where it reads such a layout.
    else:
        scaled = deep.scale_channels(values, limits, transparent=alpha is not None)
    if layout.colour == tiff.WHITE_IS_ZERO:
        scaled[..., : len(colours)] ^= 255
    return _flatten(scaled, alpha is not None, view)


def _decode_plain_tiff(encoded: bytes, layout: tiff.Layout, view: PixelConfig) -> NDArray[np.uint8]:
    """Decode a TIFF file by Pillow, not turned."""
    with open_image(encoded) as image:
        # Pillow turns TIFF files while it loads them, whatever we want, and fails there on damaged EXIF data.
        image.load_end = lambda: None  # type: ignore[attr-defined]
        image.load()
        loaded = image.copy() if layout.orientation > 4 else image  # A copy has the size of its pixels.
        palette = _palette_of_8_bits(layout) if layout.colour == tiff.PALETTE else None
        if palette is not None:
            loaded.putpalette(palette)
        return _to_rgb(loaded, view.background)


def _palette_of_8_bits(layout: tiff.Layout) -> bytes | None:
    """The palette of a file that stores its colours in 8 of the 16 bits, unlike what the format says."""
    palette = layout.tags.get(320, ())
    if not palette or max(palette) > 255:
        return None
    return np.array(palette, np.uint8).reshape(3, -1).T.tobytes()


def _webp_canvas(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP image; Pillow reserves memory for them as soon as it opens the file."""
    if encoded[:4] != b"RIFF" or encoded[8:12] != b"WEBP" or len(encoded) < 30:
        return None
    kind = encoded[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(encoded[24:27], "little"), 1 + int.from_bytes(encoded[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(encoded[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", encoded, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpeg2000_size(encoded: bytes) -> tuple[int, int]:
    """Width and height that the pixels of a JPEG 2000 file have, whatever the boxes around them say."""
    start = encoded.index(b"\xff\x4f\xff\x51")
    right, bottom, left, top = struct.unpack_from(">IIII", encoded, start + 8)
    return right - left, bottom - top


def _check_icon(encoded: bytes, view: PixelConfig) -> None:
    """Check the true size of the image in an icon file that will be decoded: one of the largest.

    An icon's directory has no room for more than 256 pixels a side. What an image holds is in its own header.
    Pillow decodes it as soon as it opens the file.
    """
    entries = [
        struct.unpack_from("<BBBBHHII", encoded, 6 + 16 * number)
        for number in range(struct.unpack_from("<H", encoded, 4)[0])
    ]
    areas = [(entry[0] or 256) * (entry[1] or 256) for entry in entries]
    for start in {entry[-1] for entry, area in zip(entries, areas, strict=True) if area == max(areas)}:
        if encoded.startswith(deep.PNG, start):
            with open_image(encoded[start:]) as inside:
                _check_size(inside.size, view)
        else:
            short = struct.unpack_from("<I", encoded, start)[0] == 12
            across, along = struct.unpack_from("<HH" if short else "<ii", encoded, start + 4)
            _check_size((abs(across), abs(along)), view)


def _what_it_is(encoded: bytes) -> Status:
    """Return why Pillow could not identify a file."""
    head = encoded[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not encoded:
        return Status.EMPTY
    if head.startswith((b"<!doctype html", b"<html")) or b"<html" in head:
        return Status.HTML
    if encoded[4:8] == b"ftyp" and encoded[8:12] in HEIC_BRANDS:
        return Status.HEIC
    if encoded.startswith(JPEG_XL):
        return Status.JPEG_XL
    if encoded.startswith(OTHER_FORMATS):
        return Status.OTHER_FORMAT
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


def _flatten(pixels: NDArray[np.uint8], transparent: bool, view: PixelConfig) -> NDArray[np.uint8]:
    """Convert pixels of 1 to 4 channels to RGB; the last channel is the transparency if there is one."""
    if not transparent:
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    return _to_rgb(Image.fromarray(pixels), view.background)


def _from_grey16(image: Image.Image) -> NDArray[np.uint8]:
    """Scale 16-bit grey to 8 bits.

    Pillow's own conversion clips everything above 255, so such images come out white.
    """
    tags = getattr(image, "tag_v2", {})  # In TIFF, images of 12-bit or 14-bit detectors say so.
    bits = int(tags.get(258, (16,))[0])
    grey = deep.scale(np.asarray(image).astype(np.uint16), (0, (1 << bits) - 1))
    return np.repeat(grey[..., None], 3, axis=2)
