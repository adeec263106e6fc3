"""Decode an annotation to a class for every pixel, or say why it cannot be decoded."""

from __future__ import annotations

import dataclasses
import io
import struct
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.config import PixelConfig
from beit.images.decode import decode
from beit.segmentation.config import AnnotationConfig

PNG = b"\x89PNG\r\n\x1a\n"
IGNORED = -1
"""Label of pixels that are left out of loss and metrics. It cannot occur in a file, where ids start at 0."""

Labels = NDArray[np.int16]


class AnnotationStatus(IntEnum):
    """What is wrong with an annotation.

    No number occurs in `beit.images.decode.Status`, so one column can hold either.
    """

    EMPTY = 32
    NOT_A_PNG = 33
    TRUNCATED = 34
    COLOURED = 35
    SIZE_DIFFERS = 36
    OUT_OF_RANGE = 37
    NOT_TURNED = 38

    @property
    def reason(self) -> str:
        """The status as a short phrase."""
        return REASONS[self]


REASONS = {
    AnnotationStatus.EMPTY: "empty annotation",
    AnnotationStatus.NOT_A_PNG: "annotation is not a PNG",
    AnnotationStatus.TRUNCATED: "annotation is cut short or damaged",
    AnnotationStatus.COLOURED: "annotation has colours or transparency, not one class id a pixel",
    AnnotationStatus.SIZE_DIFFERS: "annotation and image differ in size",
    AnnotationStatus.OUT_OF_RANGE: "annotation has an id that is no class",
    AnnotationStatus.NOT_TURNED: (
        "annotation fits the image only as it is before its EXIF orientation is followed: set "
        "view.exif_rotate=False"
    ),
}


class BadAnnotation(Exception):  # noqa: N818 - named after the annotation: it is not an error of the program
    """Raised for an annotation that cannot be used; `status` says why, `detail` adds numbers."""

    def __init__(self, status: AnnotationStatus, detail: str = "") -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.status.reason}: {self.detail}" if self.detail else self.status.reason


def decode_annotated(
    image: bytes, annotation: bytes, view: PixelConfig, ids: AnnotationConfig
) -> tuple[NDArray[np.uint8], Labels]:
    """Decode an image and its annotation: uint8 [H, W, 3] and int16 [H, W].

    Raises:
        UndecodableImage: With the reason.
        BadAnnotation: With the reason.
    """
    pixels = decode(image, view)
    height, width = pixels.shape[:2]
    try:
        return pixels, decode_annotation(annotation, ids, height=height, width=width)
    except BadAnnotation as problem:
        turned = view.exif_rotate and problem.status is AnnotationStatus.SIZE_DIFFERS
        if turned and annotation[16:24] == struct.pack(">II", height, width):  # width and height, exchanged
            raw = decode(image, dataclasses.replace(view, exif_rotate=False))
            if raw.shape[:2] == (width, height):
                raise BadAnnotation(AnnotationStatus.NOT_TURNED) from None
        raise


def decode_annotation(encoded: bytes, config: AnnotationConfig, *, height: int, width: int) -> Labels:
    """Decode a PNG of class ids (a palette, or grey of up to 16 bits) to labels.

    Args:
        encoded: The file's bytes.
        config: What the ids mean.
        height: Height of its image in pixels, after the image was rotated according to its EXIF data.
        width: Width of its image.

    Returns:
        int16 [height, width]: classes from 0, or IGNORED.

    Raises:
        BadAnnotation: With the reason.
    """
    return _labels_of(read_ids(encoded, height=height, width=width), config)


def read_ids(encoded: bytes, *, height: int, width: int) -> NDArray[np.int32]:
    """Decode a PNG of class ids to the ids as they are stored: int32 [height, width].

    Raises:
        BadAnnotation: With the reason.
    """
    if not encoded:
        raise BadAnnotation(AnnotationStatus.EMPTY)
    if not encoded.startswith(PNG):
        raise BadAnnotation(AnnotationStatus.NOT_A_PNG)
    try:
        image = Image.open(io.BytesIO(encoded))
        # Sizes are compared before anything is decompressed, so no file can decompress to more than its
        # image.
        if image.size != (width, height):
            raise BadAnnotation(
                AnnotationStatus.SIZE_DIFFERS, f"{image.width} x {image.height}, the image {width} x {height}"
            )
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise BadAnnotation(AnnotationStatus.COLOURED, f"mode {image.mode}")
        ids = np.asarray(image).astype(np.int32)
    except (BadAnnotation, MemoryError):
        raise
    except Exception:  # A damaged file can make a decoder raise almost anything.
        raise BadAnnotation(AnnotationStatus.TRUNCATED) from None
    if image.mode == "L":
        ids //= _grey_step(encoded)
    return ids


def _grey_step(encoded: bytes) -> int:
    """Return the factor by which Pillow multiplies grey of 2 or 4 bits to scale it to 8 bits."""
    bits = encoded[24]  # In the header, which is always the first chunk.
    return 255 // ((1 << bits) - 1) if bits < 8 else 1


def _labels_of(ids: NDArray[np.int32], config: AnnotationConfig) -> Labels:
    if config.classes is None:
        raise ValueError("annotations cannot be decoded before the number of classes is known")
    if config.values is not None:
        return _labels_by_values(ids, config.values, config.ignore_index)
    first = 1 if config.reduce_zero_label else 0
    labels = ids - first
    ignored = labels < 0
    if config.ignore_index is not None:
        ignored |= ids == config.ignore_index
    wrong = (labels >= config.classes) & ~ignored
    if wrong.any():
        detail = (
            f"id {ids[wrong].max()} on {wrong.sum()} of {ids.size} pixels, the classes are {first} to "
            f"{config.classes - 1 + first}"
        )
        raise BadAnnotation(AnnotationStatus.OUT_OF_RANGE, detail)
    labels[ignored] = IGNORED
    return labels.astype(np.int16)


def _labels_by_values(ids: NDArray[np.int32], values: tuple[int, ...], ignored: int | None) -> Labels:
    """Read ids by a list of them in the order of the classes."""
    labels = np.full(max(int(ids.max(initial=0)), *values, ignored or 0) + 1, -2, np.int16)
    if ignored is not None:
        labels[ignored] = IGNORED
    labels[list(values)] = np.arange(len(values))
    found = labels[ids]
    wrong = found == -2
    if wrong.any():
        detail = f"id {ids[wrong].max()} on {wrong.sum()} of {ids.size} pixels, the classes have {values}"
        raise BadAnnotation(AnnotationStatus.OUT_OF_RANGE, detail)
    return found
