"""Embed a corpus: `beit features RUN DATA OUT [--option value …]`, or `python -m pipelines.features …`.

A Ray Data job: the numbers of the files that are missing -> their centre views (CPU tasks) -> features, written by the actors that hold
the model.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from beit.checks import positive, share
from beit.config import ViewConfig, to_dict
from beit.errors import UserError
from beit.features import check_layers, middle_layer
from beit.probe_config import Pooling
from pipelines import cluster, storage
from pipelines.config import ResourceConfig
from pipelines.evaluate import Batch, pool
from pipelines.evaluate_classification import centre_batch, view_of
from pipelines.feature_files import MODEL_FOLDER, Description, FeatureFiles, Piece, check_folder
from pipelines.models import MODEL_FILES, find_model, keep_model, model_config, model_digest
from pipelines.placement import Placement, place
from pipelines.stream import read_patiently

if TYPE_CHECKING:
    from beit.checkpoints import SavedConfig
    from pipelines.sources import Manifest

PROGRESS_SECONDS = 10.0

IMAGES_AT_ONCE = 64
"""Images that a model is given at once, unless it is told otherwise."""

DEEP = 8
"""Blocks from which on a pretrained model's middle layers are taken to be better than its last."""

FILES_PER_ROUND = 2000
"""Ray keeps 46 kB on the driver for each block of a dataset, and starts the actors again for each round of so many files."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Features of every image of a data set, as Parquet files."""

    run: str
    """Run folder, of which its model/ (or else its newest checkpoint) is taken, or the folder of a checkpoint."""

    data: str
    """Folder, glob or bucket URI of Parquet shards, image files or tars."""

    out: str
    """Folder or bucket URI for the features. An unfinished one is gone on with."""

    layers: tuple[int, ...] = ()
    """Blocks whose output is kept, from 1; -1 is the last. None given: the last of a fine-tuned model and of one of fewer than 8 blocks; of
    another pretrained one a middle layer, because its last ones serve the prediction of tokens (the 9th of 12 and the 14th of 24 were best
    in the paper). `beit probe` tells which is best."""

    poolings: tuple[Pooling, ...] = ("mean",)
    """mean: mean of the patches. cls: the class token."""

    numbers: Literal["float16", "float32"] = "float16"
    """How features are written. They are computed in full precision, unless `resources.precision` is bf16."""

    centre: float | None = None
    """Share of the short side that is looked at. None: 0.875, and all of it from 384 px on and up to 128 px."""

    label: str | None = None
    """Column that is written as the label. None: label, labels, class, target or fine_label, if one is there."""

    split: str | None = None
    """Which shards to read where the folder holds several splits, such as val. None: all of them."""

    images_per_file: int = 512
    """About how many images a file has. Their views are held in memory together."""

    resources: ResourceConfig = field(default_factory=ResourceConfig)

    def __post_init__(self) -> None:
        positive(self, "--", "images_per_file", "centre")
        share(self, "--", "centre")
        if not self.poolings:
            raise UserError("--poolings is given without a name", "write --poolings mean, cls, or both")


@dataclass(frozen=True, kw_only=True)
class FeaturesResult:
    """What lies in the folder now."""

    out: str
    images: int
    """With features."""
    undecodable: int
    """Listed in undecodable.csv."""
    files: int
    written: int
    """Files that this call wrote; the others were there."""


def features(config: FeaturesConfig, *, debug: bool = False, say: Callable[[str], None] = print) -> FeaturesResult:
    """Write the features of every image of a data set; what an earlier call has written stays.

    Args:
        config: Which model, which images, which features.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.

    Raises:
        UserError: For mistakes in the options or the data, a folder that holds other features, and numbers too large for float16.
    """
    import ray.data  # noqa: F401 (sets up its loggers, which cluster.start then quietens)

    from pipelines.sources import open_source

    checkpoint = find_model(config.run)
    saved = model_config(checkpoint)
    layers = check_layers(config.layers or (default_layer(saved),), saved.model.depth)
    data, out = storage.absolute(config.data), storage.absolute(config.out)
    if not storage.is_remote(data) and (out + "/").startswith(data.rstrip("/") + "/"):
        raise UserError(f"out={config.out} lies in data={config.data}: the features would become part of it", "give a folder elsewhere")
    source = open_source(config.data, option="data", split=config.split, say=say)
    label = _label_column(source.manifest, config.label)
    say(f"data: {source.summary}{'' if label is None else f', labels from {label}'}")
    say(f"model: {saved.kind}, ViT {saved.model.dim}/{saved.model.depth}/{saved.model.heads}, {saved.model.image_size} px")
    say(f"features: layers {', '.join(map(str, layers))} of {saved.model.depth}, {' and '.join(config.poolings)}, {config.numbers}")
    with cluster.start(cpus=config.resources.cpus, debug=debug):
        nodes = cluster.nodes()
        placement = place(config.resources, nodes, tokenize=False)
        for line in (*cluster.local_paths(nodes, {"data": data, "out": out}), *placement.lines()):
            say(line)
        files, written = extract(
            source.manifest,
            _kept(checkpoint, out),
            out,
            layers=layers,
            poolings=config.poolings,
            numbers=config.numbers,
            centre=config.centre,
            label=label,
            images_per_file=config.images_per_file,
            placement=placement,
            images_at_once=config.resources.micro_batch_size or IMAGES_AT_ONCE,
            bf16=config.resources.precision == "bf16",
            say=say,
        )
    bad = len(files.undecodable())
    return FeaturesResult(out=out, images=source.manifest.total - bad, undecodable=bad, files=len(files.pieces), written=written)


def _kept(checkpoint: str, out: str) -> str:
    """The copy of the model beside its features: a running training deletes its older checkpoints."""
    check_folder(out)
    kept = storage.join(out, MODEL_FOLDER)
    if not storage.exists(kept):
        keep_model(checkpoint, out)
    elif model_digest(kept) != model_digest(checkpoint):
        raise UserError(
            f"out={out} holds features of other weights than {checkpoint} has", f"give another folder, or name {kept} as the run"
        )
    return kept


def default_layer(saved: SavedConfig) -> int:
    """The layer whose features are worth most, as far as can be known without a probe."""
    deep = saved.model.depth >= DEEP  # Of a ViT of 4 blocks, the last was best after pretraining too (docs/probing.md).
    return middle_layer(saved.model.depth) if saved.kind == "mim" and deep else saved.model.depth


def default_centre(image_size: int) -> float | None:
    """The share of the short side that features are computed of: small images are looked at whole, larger ones as the authors evaluate."""
    return 1.0 if image_size <= 128 else None


def _label_column(manifest: Manifest, asked: str | None) -> str | None:
    from pipelines.sources.labels import LABEL_COLUMNS

    if asked is not None and asked not in manifest.columns:
        there = ", ".join(name for name in manifest.columns if not name.startswith("image")) or "images only"
        raise UserError(f"--label {asked} is no column of the data", f"name one of those that are there: {there}")
    return asked or next((name for name in LABEL_COLUMNS if name in manifest.columns), None)


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
    """Compute what is missing of the features of a manifest's images, on a connected Ray.

    Args:
        manifest: The images; each is read once.
        checkpoint: Folder or URI with the model.
        out: Folder or URI.
        layers: Numbers of blocks from 1.
        poolings: Of the tokens behind them.
        numbers: How features are written.
        centre: Share of the short side that is looked at. None: see `default_centre`.
        label: Column of the manifest that is written too. None: none.
        images_per_file: At most so many images go into a file.
        placement: The actors take the places that training workers have.
        images_at_once: Images that the model is given at once.
        bf16: Whether the model computes in bfloat16.
        say: Takes progress lines.

    Returns:
        The complete features, and how many files this call wrote.

    Raises:
        UserError: If `out` holds anything else, or a feature is too large for float16.
    """
    saved = model_config(checkpoint)
    view = view_of(saved.extra)
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
        class_names=None if manifest.class_names is None else list(manifest.class_names),
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
    """Run the job, with a line every ten seconds."""
    from pipelines.recorder import duration

    left = sum(piece.images for number in missing for piece in files.pieces[number])
    done, start = 0, time.monotonic()
    last = start
    for count, result in enumerate(_run(files, missing, manifest, checkpoint, view, placement, images_at_once), 1):
        if layer := result["overflow"]:
            if files.description.numbers == "float16":
                raise UserError(
                    f"layer {layer} has features above 65,504, which float16 cannot hold", "set --numbers float32, in a new folder"
                )
            raise UserError(f"layer {layer} has features that are not finite numbers", "probe an earlier checkpoint: this one is broken")
        done += int(result["images"])
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS or count == len(missing):
            rate = done / (now - start)
            say(f"file {count:,}/{len(missing):,} | {rate:,.0f} img/s | eta {duration((left - done) / rate)}")
            last = now


def _run(
    files: FeatureFiles,
    missing: list[int],
    manifest: Manifest,
    checkpoint: str,
    view: ViewConfig,
    placement: Placement,
    images_at_once: int,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each file as it is written."""
    import pyarrow as pa
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    shared = ray.put(manifest)
    block_size, context.target_max_block_size = context.target_max_block_size, None  # A file is a block, however large.
    try:
        for start in range(0, len(missing), FILES_PER_ROUND):
            blocks = [pa.table({"file": [number]}) for number in missing[start : start + FILES_PER_ROUND]]
            views = ray.data.from_blocks(blocks).map_batches(
                functools.partial(_views_of_file, files=files, shared=shared, view=view),
                batch_size=1,
                num_cpus=placement.view_cpus,
            )
            written = views.map_batches(
                Embed,
                fn_constructor_args=(files, checkpoint, view),
                fn_constructor_kwargs={
                    "device": placement.device,
                    "threads": placement.worker_threads,
                    "images_at_once": images_at_once,
                },
                **pool(placement),
            )
            yield from written.iter_rows()
    finally:
        context.target_max_block_size = block_size


def _views_of_file(batch: Batch, *, files: FeatureFiles, shared: Any, view: ViewConfig) -> Batch:
    import ray
    import torch

    torch.set_num_threads(1)
    number = int(batch["file"][0])
    return {
        "file": np.full(files.images_of(number), number),
        **views_of_pieces(ray.get(shared), files.pieces[number], files.description, view),
    }


def views_of_pieces(manifest: Manifest, pieces: Sequence[Piece], description: Description, view: ViewConfig) -> Batch:
    """The images of a file, as the model will see them, with what is known about each.

    Returns:
        "view" uint8 [n, S, S, 3], "status", "unit", "row", "path" (its name, or where it lies if it has none), and "label" if there are.
    """
    from pipelines.sources.base import PATH_COLUMN

    columns = tuple(name for name in (PATH_COLUMN, description.label) if name is not None and name in manifest.columns)
    found: list[Batch] = []
    for piece in pieces:
        unit, rows = manifest.unit(piece.unit), np.arange(piece.first, piece.last)
        read = read_patiently(unit.read, rows, ("image", *columns))
        names = read.get(PATH_COLUMN, np.full(len(rows), "", object))
        part = centre_batch(read["image"], view=view, image_size=description.image_size, share=description.centre)
        part |= {"unit": np.full(len(rows), piece.unit), "row": rows}
        part["path"] = np.array([name or unit.describe(int(row)) for name, row in zip(names, rows, strict=True)], object)
        if description.label is not None:
            part["label"] = _plain_labels(read[description.label])
        found.append(part)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _plain_labels(values: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers, -1 where there is none; or text, empty where there is none."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind == "f" and (whole := np.isfinite(values) & (values == np.floor(values))).sum() == np.isfinite(values).sum():
        return np.where(whole, values, -1).astype(np.int64)
    return np.array(["" if value is None else str(value) for value in values.tolist()], object)


class Embed:
    """Computes the features of a file's images and writes it. The model is loaded once an actor."""

    def __init__(self, files: FeatureFiles, checkpoint: str, view: ViewConfig, *, device: str, threads: int, images_at_once: int) -> None:
        import torch

        from beit.attention import backbone_of
        from beit.checkpoints import load_model

        torch.set_num_threads(threads)
        with storage.local_copy(checkpoint, MODEL_FILES) as folder:
            self._backbone = backbone_of(load_model(folder)).to(device)
        self._files, self._view, self._device, self._images_at_once = files, view, device, images_at_once

    def __call__(self, batch: Batch) -> Batch:
        """What `views_of_pieces` made -> "file", "images" and "overflow", each [1]: the layer whose numbers are not finite, or 0."""
        number = int(batch["file"][0])
        if (batch["file"] != number).any() or len(batch["file"]) != self._files.images_of(number):
            raise RuntimeError(f"Ray has divided or joined blocks: {len(batch['file'])} images of file {number}")
        found = self._features(batch["view"][batch["status"] == 0])
        overflow = next((layer for (layer, _), values in found.items() if not np.isfinite(values).all()), 0)
        if not overflow:
            self._files.write(number, batch, found)
        return {"file": np.array([number]), "images": np.array([len(batch["file"])]), "overflow": np.array([overflow])}

    def _features(self, views: NDArray[np.uint8]) -> dict[tuple[int, Pooling], NDArray[np.floating]]:
        import torch

        from beit.features import pooled_features
        from beit.pixels import normalise

        about = self._files.description
        dtype = np.float16 if about.numbers == "float16" else np.float32
        columns = {(layer, pooling): np.empty((len(views), about.dim), dtype) for layer in about.layers for pooling in about.poolings}
        for start in range(0, len(views), self._images_at_once):
            part = slice(start, start + self._images_at_once)
            with torch.inference_mode(), torch.autocast(self._device, torch.bfloat16, enabled=about.bf16):
                pixels = normalise(torch.from_numpy(np.array(views[part])).to(self._device), self._view)
                found = pooled_features(self._backbone, pixels, about.layers, about.poolings)
            with np.errstate(over="ignore"):
                for key, values in found.items():
                    columns[key][part] = values.cpu().numpy()
        return columns


if __name__ == "__main__":
    from pipelines.cli import main

    main(["features", *sys.argv[1:]])
