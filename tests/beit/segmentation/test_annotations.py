"""Annotations: which ids arrive as which labels, and what is wrong with those that do not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from beit.checks import check
from beit.errors import UserError
from beit.images.decode import Status
from beit.segmentation.annotations import IGNORED, AnnotationStatus, BadAnnotation, decode_annotation
from beit.segmentation.config import AnnotationConfig

IDS = np.random.default_rng(0).integers(0, 11, (7, 9)).astype(np.uint8)
ELEVEN = AnnotationConfig(classes=11)


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def grey_of_few_bits(ids: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, written by hand: Pillow writes none."""
    spread = ((ids[..., None] >> np.arange(bits)[::-1]) & 1).reshape(len(ids), -1)
    lines = b"".join(b"\0" + np.packbits(line.astype(np.uint8)).tobytes() for line in spread)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def labels(encoded: bytes, config=ELEVEN, height=7, width=9) -> np.ndarray:
    return decode_annotation(encoded, config, height=height, width=width)


def problem(encoded: bytes, config=ELEVEN, **size) -> BadAnnotation:
    with pytest.raises(BadAnnotation) as caught:
        labels(encoded, config, **size)
    assert caught.value.status.reason in str(caught.value)
    return caught.value


def test_ids_arrive_from_grey_and_palette_of_any_depth():
    palette = Image.fromarray(IDS, "P")
    palette.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    for encoded in (png(Image.fromarray(IDS)), png(palette), png(Image.fromarray(IDS.astype(np.uint16)))):
        assert labels(encoded).dtype == np.int16
        np.testing.assert_array_equal(labels(encoded), IDS)
    for bits in (1, 2, 4):
        few = IDS % 2**bits
        np.testing.assert_array_equal(labels(grey_of_few_bits(few, bits), AnnotationConfig(classes=16)), few)
    many = np.full((7, 9), 846, np.uint16)
    assert (labels(png(Image.fromarray(many)), AnnotationConfig(classes=847, ignore_index=None)) == 846).all()


def test_ignored_ids_and_zero_labels():
    void = labels(png(Image.fromarray(IDS)), AnnotationConfig(classes=10, ignore_index=10))
    np.testing.assert_array_equal(void, np.where(IDS == 10, IGNORED, IDS.astype(int)))
    with_255 = IDS.copy()
    with_255[0] = 255
    reduced = labels(png(Image.fromarray(with_255)), AnnotationConfig(classes=10, reduce_zero_label=True))
    np.testing.assert_array_equal(
        reduced, np.where((with_255 == 0) | (with_255 == 255), IGNORED, IDS.astype(int) - 1)
    )


def test_a_bad_annotation_gets_its_reason():
    image = Image.fromarray(IDS)
    noise = png(Image.fromarray(np.random.default_rng(2).integers(0, 11, (60, 60)).astype(np.uint8)))
    assert problem(b"").status is AnnotationStatus.EMPTY
    assert problem(b"just words").status is AnnotationStatus.NOT_A_PNG
    assert problem(png(image, "BMP")).status is AnnotationStatus.NOT_A_PNG
    assert problem(noise[: len(noise) // 2], height=60, width=60).status is AnnotationStatus.TRUNCATED
    assert problem(noise[:20]).status is AnnotationStatus.TRUNCATED
    for mode in ("RGB", "RGBA", "LA"):
        assert problem(png(image.convert(mode))).status is AnnotationStatus.COLOURED
    assert str(problem(png(image), height=9, width=7)).endswith("9 x 7, the image 7 x 9")
    out = problem(png(image), AnnotationConfig(classes=10, ignore_index=None))
    assert out.status is AnnotationStatus.OUT_OF_RANGE
    assert f"id 10 on {(IDS == 10).sum()} of 63 pixels, the classes are 0 to 9" in out.detail
    assert not {int(status) for status in AnnotationStatus} & {int(status) for status in Status}


def test_values_name_the_ids_in_the_order_of_the_classes():
    mask = np.where(IDS > 5, 255, 0).astype(np.uint8)
    both = AnnotationConfig(classes=2, values=(0, 255))
    np.testing.assert_array_equal(labels(png(Image.fromarray(mask)), both), (IDS > 5).astype(int))
    flipped = AnnotationConfig(classes=2, values=(255, 0))
    np.testing.assert_array_equal(labels(png(Image.fromarray(mask)), flipped), (IDS <= 5).astype(int))
    mask[0] = 7
    other = problem(png(Image.fromarray(mask)), both)
    assert other.status is AnnotationStatus.OUT_OF_RANGE
    assert "id 7 on 9 of 63 pixels, the classes have (0, 255)" in other.detail
    void = labels(png(Image.fromarray(mask)), AnnotationConfig(classes=2, values=(0, 255), ignore_index=7))
    assert (void[0] == IGNORED).all()
    assert (void[1:] == (IDS[1:] > 5)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": (0, 0)}, "does not name every id once"),
        ({"values": (0, 255), "classes": 3}, "has 2 ids for"),
        ({"values": (0, 255), "reduce_zero_label": True}, "both say what the ids mean"),
    ],
)
def test_values_that_fit_no_classes_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        check(AnnotationConfig(**options))
