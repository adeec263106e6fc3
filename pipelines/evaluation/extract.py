"""Compute missing features of images and write them as files: the Ray Data job behind `beit features` and
`beit probe`.

This is a job of `pipelines.parts.job`: tasks on CPUs make centre views, and actors that hold the model
compute the features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from beit.config import ViewConfig
from beit.cores import compute_with
from beit.errors import UserError
from beit.images.pixels import normalise
from beit.loading import load_model
from beit.plain import to_dict
from beit.probing.features import pooled_features
from beit.vit.backbone import backbone_of
from beit.vit.pooling import Pooling
from pipelines import storage
from pipelines.cluster.placement import Placement
from pipelines.evaluation.classification import centre_batch
from pipelines.evaluation.every_image import pool
from pipelines.evaluation.feature_files import Description, FeatureFiles
from pipelines.parts.job import PartWriter, Piece, write_missing
from pipelines.runs.models import MODEL_FILES, model_config, model_digest, view_of
from pipelines.sources import Manifest
from pipelines.sources.base import PATH_COLUMN, Columns, Kind
from pipelines.stream.graph import read_patiently

IMAGES_AT_ONCE = 64
"""Number of images that pass through the model at once, if nothing else is given."""


def default_centre(image_size: int) -> float | None:
    """Return the side of the centre square that features are computed from, as a share of the image's shorter
    side: 1 for small models, the authors' value for larger ones.
    """
    return 1.0 if image_size <= 128 else None


def extract(
    manifest: Manifest,
    checkpoint: str,
    out: str,
    *,
    layers: tuple[int, ...],
    poolings: tuple[Pooling, ...],
    numbers: Literal["float16", "float32"] = "float16",
    centre: float | None = None,
    label: str | None = "label",
    images_per_file: int = 512,
    placement: Placement,
    images_at_once: int = IMAGES_AT_ONCE,
    bf16: bool = False,
    say: Callable[[str], None],
) -> tuple[FeatureFiles, int]:
    """Compute the missing features of a manifest's images, on a connected Ray.

    Args:
        manifest: The images. A row group is read once; if it has more images than a file holds, once for each
            of its files.
        checkpoint: Folder or URI with the model.
        out: Folder or URI for the features.
        layers: Numbers of blocks from 1.
        poolings: How the tokens after a block become a feature.
        numbers: Number format of the written features.
        centre: Side of the centre square that the model sees, as a share of the shorter side. None: see
            `default_centre`.
        label: Column of the manifest that is written as the label. None: no label.
        images_per_file: Most images in a file.
        placement: The actors take the places that training workers have.
        images_at_once: Number of images that pass through the model at once.
        bf16: Whether the model computes in bfloat16.
        say: Takes progress lines.

    Returns:
        The complete features, and how many files this call wrote.

    Raises:
        UserError: If `out` holds anything else, or a feature is too large for float16.
    """
    saved = model_config(checkpoint)
    view = view_of(saved, checkpoint)
    description = Description(
        data=manifest.digest,
        images=manifest.total,
        model=model_digest(checkpoint),
        image_size=saved.model.image_size,
        view=to_dict(view),
        centre=centre or default_centre(saved.model.image_size),
        layers=list(layers),
        poolings=list(poolings),
        dim=saved.model.dim,
        numbers=numbers,
        bf16=bf16,
        label=label,
        label_kind=None if label is None else manifest.kind_of(label),
        class_names=None if label is None or (names := manifest.names_of(label)) is None else list(names),
        images_per_file=images_per_file,
    )
    files = FeatureFiles.create(out, description, manifest.rows)
    missing = files.missing()
    if missing:
        _extract_missing(files, missing, manifest, checkpoint, view, placement, images_at_once, say)
    files.finish()
    return files, len(missing)


def _extract_missing(
    files: FeatureFiles,
    missing: list[int],
    manifest: Manifest,
    checkpoint: str,
    view: ViewConfig,
    placement: Placement,
    images_at_once: int,
    say: Callable[[str], None],
) -> None:
    write_missing(
        missing,
        manifest,
        placement,
        pieces=lambda number: files.pieces[number],
        images=sum(map(files.images_of, missing)),
        views=functools.partial(views_of_pieces, description=files.description, view=view),
        writer=Embed,
        options={
            "files": files,
            "checkpoint": checkpoint,
            "view": view,
            "device": placement.device,
            "threads": placement.worker_threads,
            "images_at_once": images_at_once,
        },
        actors=functools.partial(pool, placement),
        words=("file", "img"),
        say=say,
        check=functools.partial(_check_finite, numbers=files.description.numbers),
    )


def _check_finite(written: dict[str, Any], *, numbers: str) -> None:
    """Refuse features that the file's numbers cannot hold.

    Raises:
        UserError: If there are such features; the message names the layer.
    """
    if not (layer := written["overflow"]):
        return
    if numbers == "float16" and not written["broken"]:
        raise UserError(
            f"layer {layer} has features above 65,504, which float16 cannot hold",
            "set --numbers float32, in a new folder",
        )
    raise UserError(
        f"layer {layer} has features that are not finite numbers",
        "probe an earlier checkpoint: this one is broken",
    )


def views_of_pieces(
    manifest: Manifest, pieces: Sequence[Piece], description: Description, view: ViewConfig
) -> Columns:
    """Make the centre views of the images of a file, with their keys and labels.

    Returns:
        "view" uint8 [n, S, S, 3], "status", "unit", "row", "path" (the image's name, or its place if it has
        none), and "label" if there are labels.
    """
    columns = tuple(
        name for name in (PATH_COLUMN, description.label) if name is not None and name in manifest.columns
    )
    found: list[Columns] = []
    for piece in pieces:
        unit, rows = manifest.unit(piece.unit), np.arange(piece.first, piece.last)
        read = read_patiently(unit.read, rows, ("image", *columns))
        names = read.get(PATH_COLUMN, np.full(len(rows), "", object))
        part = centre_batch(
            read["image"], view=view, image_size=description.image_size, share=description.centre
        )
        part |= {"unit": np.full(len(rows), piece.unit), "row": rows}
        part["path"] = np.array(
            [name or unit.describe(int(row)) for name, row in zip(names, rows, strict=True)], object
        )
        if description.label is not None:
            part["label"] = plain_labels(read[description.label], description.label_kind)
        found.append(part)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def plain_labels(values: NDArray[Any], kind: Kind | None) -> NDArray[Any]:
    """Return the values [n] of a label column as they are written. By kind, they are int64, float64 or text;
    a missing value is -1, NaN or "".
    """
    if kind == "whole" and values.dtype == object:  # Booleans with nulls.
        return np.array([-1 if value is None else int(value) for value in values.tolist()])
    if kind == "whole":  # Integers with nulls come as floats.
        return (
            np.where(np.isnan(values), -1, values).astype(np.int64)
            if values.dtype.kind == "f"
            else values.astype(np.int64)
        )
    if kind == "number":
        return np.array([np.nan if value is None else float(value) for value in values.tolist()])
    return np.array(["" if value is None else str(value) for value in values.tolist()], object)


class Embed(PartWriter):
    """Computes the features of a file's images and writes it."""

    def __init__(
        self,
        files: FeatureFiles,
        checkpoint: str,
        view: ViewConfig,
        *,
        device: str,
        threads: int,
        images_at_once: int,
    ) -> None:
        compute_with(threads, device=device)
        with storage.local_copy(checkpoint, MODEL_FILES) as folder:
            self._backbone = backbone_of(load_model(folder)).to(device)
        self._files, self._view, self._device, self._images_at_once = files, view, device, images_at_once

    def write(self, part: int, views: Columns) -> dict[str, Any]:
        """Write the features of a file's views.

        Returns:
            "overflow": the layer with values that are not finite in the written format, or 0; if it is not 0,
            nothing is written. "broken": whether some values are not finite in float32 either, so that no
            format could hold them.
        """
        found = self._features(views["view"][views["status"] == 0])
        overflow = next((layer for (layer, _), values in found.items() if not np.isfinite(values).all()), 0)
        if not overflow:
            self._files.write(part, views, found)
        broken = bool(overflow) and any(np.isnan(values).any() for values in found.values())
        return {"overflow": overflow, "broken": broken}

    def _features(self, views: NDArray[np.uint8]) -> dict[tuple[int, Pooling], NDArray[np.floating]]:
        about = self._files.description
        dtype = np.float16 if about.numbers == "float16" else np.float32
        columns = {
            (layer, pooling): np.empty((len(views), about.dim), dtype)
            for layer in about.layers
            for pooling in about.poolings
        }
        for start in range(0, len(views), self._images_at_once):
            part = slice(start, start + self._images_at_once)
            with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=about.bf16):
                pixels = normalise(torch.from_numpy(np.array(views[part])).to(self._device), self._view)
                found = pooled_features(self._backbone, pixels, about.layers, about.poolings)
            with np.errstate(over="ignore"):
                for key, values in found.items():
                    columns[key][part] = values.cpu().numpy()
        return columns
