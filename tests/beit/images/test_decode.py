"""Decoding of all kinds of files that people keep in their folders; every file is made here."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from beit.config import ViewConfig
from beit.images.decode import Status, UndecodableImage, decode


def file(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(width=24, height=16) -> Image.Image:
    """Left half red, right half blue; the top row of blocks green."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    pixels[:, width // 2 :] = (0, 0, 255)
    pixels[: height // 2] = (0, 255, 0)
    return Image.fromarray(pixels)


def status_of(encoded: bytes, view: ViewConfig | None = None) -> Status:
    with pytest.raises(UndecodableImage) as problem:
        decode(encoded, view or ViewConfig())
    assert problem.value.status.reason in str(problem.value)
    return problem.value.status


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return file(Image.fromarray(noise), "JPEG")


def test_what_is_not_a_whole_image_gets_its_reason(jpeg):
    png = file(colours(200, 200), "PNG")
    assert status_of(b"") is Status.EMPTY
    assert status_of(b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>404</body></html>") is Status.HTML
    assert status_of(b"just words") is Status.NOT_AN_IMAGE
    assert status_of(jpeg[: len(jpeg) // 2]) is Status.TRUNCATED
    assert status_of(jpeg[:20]) is Status.TRUNCATED
    assert status_of(png[: len(png) // 2]) is Status.TRUNCATED
    assert status_of(png[:40] + b"\0\0" + png[42:]) is Status.TRUNCATED


def test_any_damage_is_decoded_or_refused_but_never_another_error(jpeg):
    rng = np.random.default_rng(0)
    for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG"):
        whole = bytearray(jpeg if kind == "JPEG" else file(colours(), kind))
        for _ in range(60):
            damaged = whole.copy()
            for place in rng.integers(0, len(whole), 3):
                damaged[place] = rng.integers(256)
            with contextlib.suppress(UndecodableImage):
                assert (
                    decode(bytes(damaged[: rng.integers(1, len(whole) + 1)]), ViewConfig()).dtype == np.uint8
                )


def test_size_is_read_before_anything_is_decoded():
    # A header that promises 400 megapixels and nothing behind it: decoding would say that the file is cut
    # short.
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    assert status_of(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")) is Status.TOO_LARGE
    small = ViewConfig(max_pixels=24 * 16 - 1)
    for kind in ("JPEG", "PNG"):
        assert status_of(file(colours(), kind), small) is Status.TOO_LARGE
        assert decode(file(colours(), kind), ViewConfig(max_pixels=24 * 16)).shape == (16, 24, 3)


def test_pillows_own_limit_does_not_count_and_is_left_in_place(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(file(colours(), "PNG"), ViewConfig()).shape == (16, 24, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_orientation_6_is_turned_clockwise_unless_told_otherwise(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = file(
        colours(), kind, exif=exif, **({"subsampling": 0, "quality": 100} if kind == "JPEG" else {})
    )
    expected = np.asarray(colours().rotate(-90, expand=True)).astype(int)
    assert np.abs(decode(encoded, ViewConfig()) - expected).max() <= 8
    assert decode(encoded, ViewConfig(exif_rotate=False)).shape == (16, 24, 3)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {})])
def test_grey_of_16_bits_is_scaled(kind, options):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = decode(file(Image.fromarray(ramp), kind, **options), ViewConfig())
    assert (decoded[..., 0].ravel() == np.arange(256)).all()
    assert (decoded == decoded[..., :1]).all()


def test_grey_of_12_bits_is_scaled_by_12_bits():
    ramp = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    tags = [(256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, 384)]
    nibbles = "".join(f"{value:03x}" for value in ramp.ravel())
    directory = (
        struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        + bytes(4)
    )
    encoded = b"II*\0" + struct.pack("<I", 8 + 384) + bytes.fromhex(nibbles) + directory
    assert (decode(encoded, ViewConfig())[..., 0].ravel() == np.arange(256)).all()


def test_pixels_of_unknown_range_are_refused_not_guessed():
    assert status_of(file(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF")) is Status.UNSUPPORTED
    portable_grey_map = b"P5 2 1 65535\n" + struct.pack(">HH", 0, 0x8080)  # Pillow keeps 16 bits in 32 here
    assert decode(portable_grey_map, ViewConfig())[..., 0].tolist() == [[0, 128]]


def test_palettes_and_animations_give_the_colours_of_the_first_frame():
    palette = colours().quantize(4)
    assert (decode(file(palette, "PNG"), ViewConfig()) == np.asarray(colours())).all()
    frames = file(
        palette, "GIF", save_all=True, append_images=[Image.new("RGB", (24, 16), (255, 255, 0)).quantize(4)]
    )
    assert (decode(frames, ViewConfig()) == np.asarray(colours())).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_show_the_background(mode):
    view = ViewConfig(background=(10, 20, 30))
    black = Image.new("RGB", (8, 8), (0, 0, 0))
    if mode in ("RGBA", "LA"):
        image = black.convert(mode)
        image.putalpha(
            Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 4, axis=1).repeat(8, axis=0))
        )
        encoded = file(image, "PNG")
    else:
        pixels = np.zeros((8, 8, 3), dtype=np.uint8)
        pixels[:, :4] = 255
        image = Image.fromarray(pixels)
        if mode == "P":
            image = image.quantize(2)
        encoded = file(
            image, "PNG", transparency=(255, 255, 255) if mode == "RGB" else image.getpixel((0, 0))
        )
    decoded = decode(encoded, view)
    assert (decoded[:, :4] == (10, 20, 30)).all()
    assert (decoded[:, 4:] == 0).all()


def test_cmyk_grey_and_wrong_names_are_read_like_any_other(jpeg):
    cmyk = decode(file(colours().convert("CMYK"), "JPEG", quality=100, subsampling=0), ViewConfig()).astype(
        int
    )
    assert np.abs(cmyk - np.asarray(colours())).mean() < 4
    grey = decode(file(colours().convert("L"), "JPEG"), ViewConfig())
    assert grey.shape == (16, 24, 3)
    assert (grey == grey[..., :1]).all()
    # The name is never asked: a PNG is a PNG under any. The fast JPEG decoder agrees with Pillow's.
    assert (decode(file(colours(), "PNG"), ViewConfig()) == np.asarray(colours())).all()
    assert (
        np.abs(decode(jpeg, ViewConfig()).astype(int) - np.asarray(Image.open(io.BytesIO(jpeg)))).mean() < 0.5
    )


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def deep_png(values: np.ndarray, significant: int | None = None) -> bytes:
    """A PNG of 16 bits, of values [H, W, C], with the bits that it states."""
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    stated = b"" if significant is None else chunk(b"sBIT", bytes([significant] * channels))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + stated
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def scaled(values: np.ndarray, white: float) -> np.ndarray:
    return np.floor(values / white * 255 + 0.5).clip(0, 255)


CAMERA = np.random.default_rng(5).integers(0, 4096, (16, 24, 4)).astype(np.uint16)
"""Values of a camera of 12 bits."""


@pytest.mark.parametrize("channels", [1, 3])
def test_a_range_brings_out_12_bits_that_are_stored_in_16(channels: int):
    values = CAMERA[..., :channels]
    dark = decode(deep_png(values), ViewConfig())
    assert dark.max() <= 16
    bright = decode(deep_png(values), ViewConfig(range="0..4095"))
    np.testing.assert_array_equal(bright, np.broadcast_to(scaled(values, 4095), bright.shape))
    middle = decode(deep_png(values), ViewConfig(range="1000..2000"))
    np.testing.assert_array_equal(middle, np.broadcast_to(scaled(values - 1000.0, 1000), middle.shape))


@pytest.mark.parametrize("channels", [2, 4])
def test_a_range_leaves_opaque_pixels_opaque(channels: int):
    for opaque in (4095, 65535):
        values = CAMERA[..., :channels].copy()
        values[..., -1] = opaque
        bright = decode(deep_png(values), ViewConfig(range="0..4095"))
        np.testing.assert_array_equal(bright, np.broadcast_to(scaled(values[..., :-1], 4095), bright.shape))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_that_states_12_bits_is_scaled_by_them_only_if_its_values_are_not(channels: int):
    values = CAMERA[..., :channels]
    as_they_were = decode(deep_png(values, 12), ViewConfig())
    np.testing.assert_array_equal(as_they_were, np.broadcast_to(scaled(values, 4095), as_they_were.shape))
    assert decode(deep_png(values, 12), ViewConfig(range="full")).max() <= 16
    # As the format wants it: scaled up to 16 bits. A dark image of such values stays dark.
    for shown in (values, values >> 5):
        proper = (shown << 4 | shown >> 8).astype(np.uint16)
        decoded = decode(deep_png(proper, 12), ViewConfig())
        assert np.abs(decoded - scaled(shown, 4095)).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_without_a_statement_16_bits_are_what_they_were(channels: int):
    values = np.random.default_rng(6).integers(0, 65536, (16, 24, channels)).astype(np.uint16)
    encoded = deep_png(values)
    auto, full = (decode(encoded, ViewConfig(range=name)) for name in ("auto", "full"))
    np.testing.assert_array_equal(auto, full)
    if channels == 3:
        np.testing.assert_array_equal(auto, values >> 8)


def test_a_range_leaves_images_of_8_bits_as_they_are(jpeg):
    for encoded in (jpeg, file(colours(), "PNG"), file(colours(), "TIFF"), file(colours(), "WEBP")):
        np.testing.assert_array_equal(
            decode(encoded, ViewConfig()), decode(encoded, ViewConfig(range="0..4095"))
        )


def icon(inside: bytes, side: int = 16) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, side, side, 0, 0, 1, 32, len(inside), 22) + inside


def test_the_true_size_of_an_icon_is_checked_not_that_of_its_directory():
    good = file(colours(16, 16), "PNG")
    np.testing.assert_array_equal(decode(icon(good), ViewConfig()), np.asarray(colours(16, 16)))
    assert (
        status_of(icon(file(colours(200, 200), "PNG")), ViewConfig(max_pixels=200 * 199)) is Status.TOO_LARGE
    )
    bitmap = struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0)
    assert status_of(icon(bitmap)) is Status.TOO_LARGE
    # Its header says 400 megapixels, and 48 kB would unpack to them.
    giant = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )
    assert status_of(icon(giant)) is Status.TOO_LARGE


def test_the_canvas_of_a_webp_is_checked_before_memory_is_reserved_for_it():
    whole = bytearray(file(colours(), "WEBP", lossless=True))
    assert whole[12:16] == b"VP8L"
    whole[21:25] = (16383 | 16383 << 14).to_bytes(4, "little")
    assert status_of(bytes(whole)) is Status.TOO_LARGE
    extended = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xff" * 6
    assert status_of(extended) is Status.TOO_LARGE


def test_the_size_of_a_jpeg_2000_is_that_of_its_pixels():
    whole = file(colours(), "JPEG2000")
    assert decode(whole, ViewConfig()).shape == (16, 24, 3)
    place = whole.index(b"\xff\x4f\xff\x51") + 8
    larger = whole[:place] + struct.pack(">II", 60_000, 60_000) + whole[place + 8 :]
    assert status_of(larger) is Status.TOO_LARGE


def test_formats_that_are_not_read_are_named():
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    assert status_of(heic) is Status.HEIC
    assert status_of(b"\xff\x0a" + bytes(200)) is Status.JPEG_XL
    assert status_of(b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200)) is Status.JPEG_XL
    for head in (b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"icns\0\0\0\0"):
        assert status_of(head + bytes(200)) is Status.OTHER_FORMAT


def test_a_file_that_was_not_read_to_its_end_is_too_long_not_damaged(monkeypatch):
    whole = file(colours(), "BMP")
    monkeypatch.setattr("beit.images.decode.MAX_ENCODED_BYTES", len(whole) - 100)
    assert status_of(whole[:-100]) is Status.TOO_LONG
    assert "128 MiB" in Status.TOO_LONG.reason
    assert status_of(whole[:-101]) is Status.TRUNCATED
    assert decode(whole, ViewConfig()).shape == (16, 24, 3)


def directory(*entries: tuple[int, int, int, int], behind: bytes = b"") -> bytes:
    """EXIF data: entries of tag, type, count and value."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4) + behind


TURNED = (0x0112, 3, 1, 6)


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (directory(TURNED), True),
        (b"Exif\0\0" + directory(TURNED), True),  # the header twice
        (directory(TURNED, (0x011A, 5, 1, 38), behind=bytes(8)), True),  # a rational 0/0
        (directory(TURNED, (0x8769, 4, 1, 60000)), True),  # a directory behind the end
        (directory(TURNED, (0x011A, 2, 1, 65), (0x8769, 7, 4, 65)), True),  # wrong types
        (directory((0x0112, 2, 2, 0x36)), False),  # the text "6"
        (directory((0x0112, 3, 1, 9)), False),
        (directory((0x0112, 3, 1, 0)), False),
        (b"nonsense", False),
        (b"", False),
    ],
)
def test_damaged_exif_data_costs_no_pixels(jpeg, exif: bytes, turned: bool):
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    decoded = decode(jpeg[:2] + segment + jpeg[2:], ViewConfig())
    assert decoded.shape == ((96, 64, 3) if turned else (64, 96, 3))
    plain = decode(jpeg, ViewConfig()).astype(int)
    assert np.abs(decoded - (np.rot90(plain, -1) if turned else plain)).mean() < 0.5


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"nonsense that is no TIFF", b"b'Exif\\x00\\x00II*'"])
def test_damaged_exif_data_costs_no_pixels_of_other_formats(kind: str, exif: bytes):
    encoded = file(colours(), kind, exif=b"Exif\0\0" + exif, **({"lossless": True} if kind == "WEBP" else {}))
    if kind == "PNG":  # Pillow writes its chunk behind the header, without "Exif".
        head = encoded[:33] + chunk(b"eXIf", exif)
        encoded = head + file(colours(), kind)[33:]
    np.testing.assert_array_equal(decode(encoded, ViewConfig()), np.asarray(colours()))
