"""Look at some images before a run starts, and say what would go wrong in silence: values in a small part of
their range, frames and orientations that are passed over, annotations of which only one class is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from beit.config import PixelConfig
from beit.errors import UserError
from beit.images.decode import Status, UndecodableImage
from beit.images.look import Look, look
from beit.segmentation.annotations import IGNORED, BadAnnotation, decode_annotated
from beit.segmentation.config import AnnotationConfig
from pipelines import seeds
from pipelines.sources import Manifest, Source

LOOKED_AT = 64
UNITS = 4
SMALL_SHARE = 0.1
"""Share of the range below which images are probably scaled by the wrong one."""

MANY = 0.01
"""Share of the pixels from which on ignored ones are no matter of edges."""


def warn_about_values(source: Source, view: PixelConfig, say: Callable[[str], None]) -> None:
    """Say what a sample of the images shows about their values, frames and EXIF data."""
    try:
        images = _draw(source.manifest, ("image",))["image"]
    except OSError:  # What cannot be read is the business of the stream.
        return
    for line in value_warnings([look(encoded, view) for encoded in images]):
        say(f"warning: {line}")


def value_warnings(looks: Sequence[Look]) -> list[str]:
    """What images have in common that a user should know."""
    good = [seen for seen in looks if seen.status is Status.DECODED]
    lines = []
    for (form, bits), count in Counter((seen.format, seen.bits) for seen in good).items():
        alike = [seen for seen in good if (seen.format, seen.bits) == (form, bits)]
        low, high = min(seen.low for seen in alike), max(seen.high for seen in alike)
        if count > 1 and high - low < SMALL_SHARE * 255:
            remedy = "look at the contact sheet of beit data check"
            if bits > 8:
                remedy = (
                    "set view.range=LO..HI to the values that are black and white, such as 0..4095 for a "
                    "camera of 12 bits"
                )
            lines.append(
                f"{count:,} {form} images of {bits} bits use {(high - low) / 255:.1%} of the range, from "
                f"{low} to {high} of 255: {remedy}"
            )
    framed, damaged = sum(seen.frames for seen in good), sum(seen.bad_exif for seen in good)
    if framed:
        lines.append(f"{framed:,} of {len(good):,} images have more than one frame: the first is used")
    if damaged:
        lines.append(f"{damaged:,} of {len(good):,} images have damaged EXIF data: they are not turned by it")
    return lines


def check_annotated(
    source: Source,
    view: PixelConfig,
    ids: AnnotationConfig,
    say: Callable[[str], None],
    *,
    option: str = "data.train",
) -> None:
    """Refuse annotated images that cannot teach anything: all unusable, or all of one class.

    Raises:
        UserError: With what was seen in a sample.
    """
    found = _draw(source.manifest, ("image", "annotation"))
    if not all(isinstance(annotation, bytes) for annotation in found["annotation"]):
        raise UserError(
            (
                f"{option}={source.uri}: the column annotation holds "
                f"{type(found['annotation'][0]).__name__}, not the bytes of files"
            ),
            "give a column annotation of PNG files, as struct<bytes, path> or binary",
        )
    pixels, turned, faults = Counter[int](), 0, []
    for image, annotation in zip(found["image"], found["annotation"], strict=True):
        try:
            labels = decode_annotated(image, annotation, view, ids)[1]
        except (UndecodableImage, BadAnnotation) as problem:
            faults.append(f"image: {problem}" if isinstance(problem, UndecodableImage) else str(problem))
            continue
        pixels.update(dict(enumerate(np.bincount((labels - IGNORED).ravel()).tolist(), IGNORED)))
        turned += view.exif_rotate and look(image, view).turned
    if len(faults) == len(found["image"]):
        raise UserError(
            f"{option}={source.uri}: none of the {len(faults)} images looked at can be used; "
            f"{found['where'][0]}: {faults[0]}",
            _remedy(faults[0]),
        )
    usable = len(found["image"]) - len(faults)
    seen = sorted(label for label, count in pixels.items() if count and label != IGNORED)
    ignored = pixels[IGNORED] / max(1, pixels.total())
    if len(seen) < 2 and (ids.classes or 0) != 1 and ignored >= MANY:
        raise UserError(
            f"{option}={source.uri}: {usable} annotations have pixels of a single class, and "
            f"{ignored:.0%} of the pixels have the id that is ignored",
            "for masks of 0 and 255 set --annotation.values 0 255; otherwise set --annotation.ignore-index "
            "as the files are",
        )
    missing = [label for label in range(ids.classes or 0) if label not in seen]
    if missing and ignored >= SMALL_SHARE and usable >= 10 * (ids.classes or 0):
        say(
            f"warning: {option}: no pixel of class {', '.join(map(str, missing))} in {usable} images, while "
            f"{ignored:.0%} of the pixels are ignored: see --annotation.values"
        )
    if turned:
        say(
            f"warning: {option}: {turned} of {usable} images are turned by their EXIF orientation, their "
            "annotations are not: if these were drawn on the pixels as stored, set --view.exif-rotate False"
        )


def _remedy(fault: str) -> str:
    if "view." in fault:
        return "set the option that is named, or mend the files"
    return (
        "set --annotation.classes, --annotation.ignore-index and --annotation.reduce-zero-label as the files "
        "are, or mend the files"
    )


def _draw(manifest: Manifest, columns: Sequence[str]) -> dict[str, NDArray[np.object_]]:
    """Read a few rows of a few units, at random but always the same; "where" names them."""
    rng = seeds.generator(0, seeds.REPORT, 0, 0, 2)
    units = rng.permutation(len(manifest.rows))[:UNITS].tolist()
    each = -(-LOOKED_AT // len(units))
    parts = []
    for unit in units:
        rows = np.sort(rng.permutation(int(manifest.rows[unit]))[:each])
        part = manifest.unit(unit)
        where = np.array([part.describe(int(row)) for row in rows], object)
        parts.append({**part.read(rows, tuple(columns)), "where": where})
    columns = (*columns, "where")
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}
