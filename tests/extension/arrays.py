"""A source of one's own: images as arrays in .npz files, and a scheme for images that are drawn
when they are read.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from beit.errors import UserError
from pipelines import storage
from pipelines.sources import FileKind, Manifest, Source, Unit, register_files, register_scheme
from pipelines.sources.base import listing_digest


def encoded(pixels) -> bytes:
    """An array as a PNG: units give encoded images."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class ArrayUnit(Unit):
    """The images of one file."""

    uri: str

    def read(self, rows, columns: Sequence[str] = ("image",)):
        """Read some images of the file's array `images` uint8 [n, H, W, 3]."""
        images = np.load(io.BytesIO(storage.read_bytes(self.uri)))["images"]
        column = np.empty(len(rows), object)
        column[:] = [encoded(images[row]) for row in rows]
        return {"image": column}

    def describe(self, row: int) -> str:
        """Name file and row."""
        return f"{self.uri}, image {row}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayManifest(Manifest):
    """A unit for each file."""

    kind: ClassVar[str] = "arrays"

    uris: tuple[str, ...]

    def unit(self, index: int) -> ArrayUnit:
        """A file by its number."""
        return ArrayUnit(self.uris[index])


def open_arrays(listing, option):
    """Count the images of each file."""
    uris = tuple(listing.uri(entry.name) for entry in listing.entries)
    counts = [len(np.load(io.BytesIO(storage.read_bytes(uri)))["images"]) for uri in uris]
    if not all(counts):
        raise UserError(f"{option}: {uris[counts.index(0)]} holds no images", "delete the file")
    rows = np.array(counts, np.int32)
    manifest = ArrayManifest(
        rows=rows,
        digest=listing_digest("arrays", listing.entries, rows),
        columns=("image",),
        class_names=None,
        uris=uris,
    )
    return manifest, f"{rows.sum()} images in {len(rows)} files of arrays", ()


@dataclass(frozen=True, eq=False)
class NoiseUnit(Unit):
    """Sixteen images of noise."""

    number: int

    def read(self, rows, columns: Sequence[str] = ("image",)):
        """Draw the images of these rows."""
        column = np.empty(len(rows), object)
        column[:] = [
            encoded(np.random.default_rng([self.number, row]).integers(0, 256, (64, 64, 3), np.uint8))
            for row in rows
        ]
        return {"image": column}

    def describe(self, row: int) -> str:
        """Name unit and row."""
        return f"noise {self.number}, {row}"


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseManifest(Manifest):
    """Units of noise."""

    kind: ClassVar[str] = "noise"

    def unit(self, index: int) -> NoiseUnit:
        """A unit by its number."""
        return NoiseUnit(index)


def open_noise(path, option, split):
    """Open noise://UNITS."""
    units = path.partition("://")[2]
    if not units.isdigit() or not int(units):
        raise UserError(
            f"{option}={path} does not say how many units there are", "write noise://4, for example"
        )
    manifest = NoiseManifest(
        rows=np.full(int(units), 16, np.int32), digest=path, columns=("image",), class_names=None
    )
    return Source(uri=path, manifest=manifest, total_bytes=0, summary=f"{units} units of noise")


register_files(FileKind(name="array", endings=("npz",), open=open_arrays))
register_scheme("noise", open_noise)
