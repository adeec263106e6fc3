"""TIFF files of many layouts, written here by hand, give the values that were written, or are refused."""

import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from beit.config import ViewConfig
from beit.images.decode import Status, UndecodableImage, decode

HEIGHT, WIDTH = 37, 53
LAYOUTS = [
    {"order": order, "planar": planar, "compression": compression, "predictor": predictor, **pieces}
    for order, planar, pieces, (compression, predictor) in itertools.product(
        "<>", (1, 2), ({}, {"rows": 8}, {"tile": 16}), ((1, 1), (8, 1), (8, 2))
    )
]


def write(
    values: np.ndarray,
    photometric: int,
    *,
    order: str = "<",
    planar: int = 1,
    tile: int | None = None,
    rows: int = HEIGHT,
    compression: int = 1,
    predictor: int = 1,
    extra: tuple[int, ...] = (),
    more: dict[int, tuple[str, list]] | None = None,
) -> bytes:
    """A TIFF file of values [H, W, C], whose directory comes last."""
    height, width, channels = values.shape
    values = values.astype(values.dtype.newbyteorder(order))
    pieces = []
    for plane in [values] if planar == 1 else np.split(values, channels, axis=2):
        if tile is None:
            pieces += [plane[top : top + rows] for top in range(0, height, rows)]
            continue
        padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
        pieces += [
            padded[top : top + tile, left : left + tile]
            for top in range(0, height, tile)
            for left in range(0, width, tile)
        ]
    body, offsets, sizes = b"", [], []
    for piece in pieces:
        if predictor == 3:
            big = piece.astype(piece.dtype.newbyteorder(">"))
            apart = np.frombuffer(big.tobytes(), np.uint8).reshape(len(piece), -1, values.dtype.itemsize)
            piece = apart.swapaxes(1, 2).reshape(len(piece), -1, piece.shape[2])
        if predictor in (2, 3):
            before = np.concatenate([np.zeros_like(piece[:, :1]), piece[:, :-1]], axis=1)
            piece = (piece - before).astype(piece.dtype)
        data = zlib.compress(piece.tobytes()) if compression == 8 else piece.tobytes()
        offsets.append(8 + len(body))
        sizes.append(len(data))
        body += data + bytes(len(data) % 2)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * values.dtype.itemsize] * channels),
        259: ("H", [compression]),
        262: ("H", [photometric]),
        277: ("H", [channels]),
        284: ("H", [planar]),
        317: ("H", [predictor]),
        339: ("H", [kind] * channels),
        **({338: ("H", list(extra))} if extra else {}),
        **(
            {273: ("I", offsets), 278: ("I", [rows]), 279: ("I", sizes)}
            if tile is None
            else {322: ("I", [tile]), 323: ("I", [tile]), 324: ("I", offsets), 325: ("I", sizes)}
        ),
        **(more or {}),
    }
    start = 8 + len(body)
    directory, behind = struct.pack(f"{order}H", len(tags)), b""
    for tag in sorted(tags):
        letter, numbers = tags[tag]
        data = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        directory += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4, "f": 11}[letter], len(numbers))
        if len(data) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(behind)
            behind += data + bytes(len(data) % 2)
            data = struct.pack(f"{order}I", place)
        directory += data.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + body + directory + bytes(4) + behind


def random(channels: int, kind: type = np.uint8) -> np.ndarray:
    """Random values over the whole range."""
    info = np.iinfo(kind)
    rng = np.random.default_rng(channels)
    return rng.integers(info.min, info.max + 1, (HEIGHT, WIDTH, channels)).astype(kind)


def as_8_bits(values: np.ndarray, white: float = 65535) -> np.ndarray:
    """Scaled in floating point, half up."""
    return np.floor(values.astype(float) / white * 255 + 0.5).clip(0, 255).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., :1], 3, axis=2)


def opaque(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[..., -1] = np.iinfo(values.dtype).max
    return values


def status_of(encoded: bytes, view: ViewConfig | None = None) -> Status:
    with pytest.raises(UndecodableImage) as problem:
        decode(encoded, view or ViewConfig())
    return problem.value.status


PALETTE = np.random.default_rng(9).integers(0, 256, (256, 3))
ALPHA, UNSAID = 2, 0

CASES = {
    "grey": (random(1), 1, {}, grey(random(1))),
    "white is zero": (random(1), 0, {}, grey(255 - random(1))),
    "grey, 16 bits": (random(1, np.uint16), 1, {}, grey(as_8_bits(random(1, np.uint16)))),
    "white is zero, 16 bits": (random(1, np.uint16), 0, {}, grey(255 - as_8_bits(random(1, np.uint16)))),
    "RGB": (random(3), 2, {}, random(3)),
    "RGB, 16 bits": (random(3, np.uint16), 2, {}, (random(3, np.uint16) >> 8).astype(np.uint8)),
    "RGB and alpha": (opaque(random(4)), 2, {"extra": (ALPHA,)}, random(4)[..., :3]),
    "grey and alpha": (opaque(random(2)), 1, {"extra": (ALPHA,)}, grey(random(2))),
    "grey and alpha, 16 bits": (
        opaque(random(2, np.uint16)),
        1,
        {"extra": (ALPHA,)},
        grey(as_8_bits(random(2, np.uint16))),
    ),
    "CMYK": (random(4), 5, {}, np.asarray(Image.fromarray(random(4), "CMYK").convert("RGB"))),
    "palette": (
        random(1),
        3,
        {"more": {320: ("H", (PALETTE.T * 257).ravel().tolist())}},
        PALETTE[random(1)[..., 0]],
    ),
    "palette of 8 bits": (
        random(1),
        3,
        {"more": {320: ("H", PALETTE.T.ravel().tolist())}},
        PALETTE[random(1)[..., 0]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_strips_tiles_planes_and_differences_give_the_values_written(name: str):
    values, photometric, options, expected = CASES[name]
    for layout in LAYOUTS:
        decoded = decode(write(values, photometric, **layout, **options), ViewConfig())
        np.testing.assert_array_equal(decoded, expected, err_msg=f"{name} {layout}")


def test_transparency_of_any_layout_shows_the_background():
    values = random(4)
    shares = values[..., 3:] / 255
    expected = values[..., :3] * shares + np.array((10, 20, 30)) * (1 - shares)
    for layout in LAYOUTS:
        decoded = decode(write(values, 2, extra=(ALPHA,), **layout), ViewConfig(background=(10, 20, 30)))
        assert np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize(
    ("channels", "photometric", "extra"),
    [(4, 2, (UNSAID,)), (4, 2, ()), (5, 1, (UNSAID,) * 4), (8, 2, (UNSAID,) * 5), (13, 1, (UNSAID,) * 12)],
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_channels_that_are_no_colours_are_refused_unless_three_are_chosen(channels, photometric, extra, kind):
    values = random(channels, kind)
    shown = values if kind is np.uint8 else as_8_bits(values)
    for layout in LAYOUTS:
        encoded = write(values, photometric, extra=extra, **layout)
        assert status_of(encoded) is Status.CHANNELS
        chosen = decode(encoded, ViewConfig(channels="3,0,1", range="0..65535"))
        np.testing.assert_allclose(chosen.astype(int), shown[..., [3, 0, 1]], atol=int(photometric == 2))
        one = decode(encoded, ViewConfig(channels="3", range="0..65535"))
        np.testing.assert_allclose(one.astype(int), grey(shown[..., 3:4]), atol=int(photometric == 2))
    assert status_of(encoded, ViewConfig(channels=f"0,1,{channels}")) is Status.CHANNELS
    assert "view.channels=0,1,2" in Status.CHANNELS.reason


def test_channels_are_chosen_only_where_there_are_more_than_three():
    view = ViewConfig(channels="2,1,0")
    np.testing.assert_array_equal(decode(write(random(3), 2), view), random(3))
    np.testing.assert_array_equal(decode(write(random(1), 1), view), grey(random(1)))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint32, np.int32, np.float32])
def test_values_of_unknown_range_are_refused_unless_the_range_is_given(kind):
    if kind is np.float32:
        values = np.random.default_rng(0).normal(0, 40, (HEIGHT, WIDTH, 3)).astype(kind)
    else:
        values = random(3, kind) // (np.iinfo(kind).max // 100)
    expected = as_8_bits(values - (-50.0 if np.dtype(kind).kind != "u" else 0.0), 90)
    limits = "-50..40" if np.dtype(kind).kind != "u" else "0..90"
    for layout in LAYOUTS:
        if kind is np.float32 and layout["predictor"] == 2:
            layout = {**layout, "predictor": 3}
        encoded = write(values, 2, **layout)
        assert status_of(encoded) is Status.UNSUPPORTED
        decoded = decode(encoded, ViewConfig(range=limits))
        assert np.abs(decoded.astype(int) - expected).max() <= int(kind is np.float32)


def test_layouts_that_nobody_has_checked_are_refused_by_name():
    assert status_of(write(random(3), 8)) is Status.LAYOUT  # CIELAB
    assert status_of(write(np.zeros((HEIGHT, WIDTH, 1)), 1)) in (Status.LAYOUT, Status.UNSUPPORTED)
    assert status_of(write(random(3, np.uint16), 8)) is Status.LAYOUT
    half = write(np.zeros((HEIGHT, WIDTH, 1), np.float16), 1)
    assert status_of(half, ViewConfig(range="0..1")) is Status.LAYOUT


def test_a_largest_value_that_states_12_bits_is_taken_for_white():
    values = random(1, np.uint16) >> 4
    for channels, photometric in ((1, 1), (3, 2)):
        values = random(channels, np.uint16) >> 4
        shown = as_8_bits(values, 4095)
        expected = grey(shown) if channels == 1 else shown
        for layout in LAYOUTS:
            stated = {281: ("H", [4095] * channels)}
            encoded = write(values, photometric, more=stated, **layout)
            np.testing.assert_array_equal(decode(encoded, ViewConfig()), expected)
            assert decode(encoded, ViewConfig(range="full")).max() <= 16
            # A maximum that is not all ones is what occurs in this image: its neighbours have another.
            encoded = write(values, photometric, more={281: ("H", [4001] * channels)}, **layout)
            assert decode(encoded, ViewConfig()).max() <= 16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("planar", [1, 2])
def test_orientation_is_followed_unless_told_otherwise(orientation: int, planar: int):
    values = random(3, np.uint16)
    encoded = write(values, 2, planar=planar, more={274: ("H", [orientation])})
    raw = (values >> 8).astype(np.uint8)
    method = [
        None,
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    ][orientation]
    turned = raw if method is None else np.asarray(Image.fromarray(raw).transpose(method))
    np.testing.assert_array_equal(decode(encoded, ViewConfig()), turned)
    np.testing.assert_array_equal(decode(encoded, ViewConfig(exif_rotate=False)), raw)


def test_a_tile_larger_than_the_limit_is_refused_before_it_is_allocated():
    encoded = write(random(1), 1, tile=16, compression=8, more={322: ("I", [1 << 16]), 323: ("I", [1 << 16])})
    assert status_of(encoded) is Status.TOO_LARGE
    many = write(random(17), 1, extra=(0,) * 16)
    assert status_of(many, ViewConfig(channels="0", max_pixels=HEIGHT * WIDTH)) is Status.TOO_LARGE
