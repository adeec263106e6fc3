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
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

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
