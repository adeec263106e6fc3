"""Compute features of every image of a data set: `beit features RUN DATA OUT [--option value …]`, or `python
-m pipelines.features …`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from beit.checks import CommandConfig, Options, PositiveInt, PositiveShare
from beit.errors import UserError
from beit.probing.features import check_layers, middle_layer
from beit.vit.checkpoints import SavedConfig
from beit.vit.pooling import Pooling, check_poolings
from pipelines import storage
from pipelines.cluster import session
from pipelines.cluster.failures import resumable
from pipelines.cluster.nodes import cluster_nodes, local_path_warnings
from pipelines.cluster.placement import place
from pipelines.command_line.options import parse
from pipelines.command_line.run import run_program
from pipelines.config.resources import ResourceConfig
from pipelines.evaluation.extract import IMAGES_AT_ONCE, extract
from pipelines.evaluation.feature_files import MODEL_FOLDER, FeatureFiles
from pipelines.runs.models import find_model, holds_model, keep_model, model_config, model_digest, view_of
from pipelines.schemes import StoragePath
from pipelines.sources import Manifest, open_source
from pipelines.sources.base import ChosenColumns

DEEP = 8
"""Number of blocks from which on a middle layer of a pretrained model is assumed to have better features than
its last."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(CommandConfig):
    """Compute features of every image of a data set, and write them as Parquet files."""

    run: StoragePath
    """Run folder or checkpoint folder with the model. Of a run, its model/ is taken, or its newest checkpoint
    if that is later."""

    data: str
    """Images: a folder, glob or bucket URI of Parquet shards, image files or tars."""

    out: StoragePath
    """Folder or bucket URI for the features. An unfinished one is completed."""

    layers: tuple[int, ...] = ()
    """Blocks whose output is kept, counted from 1; -1 is the last. Not given: the last block of a fine-tuned
    model and of models with fewer than 8 blocks; otherwise a middle one, because the last blocks of a
    pretrained model specialise in predicting tokens (the 9th of 12 and the 14th of 24 were best in the
    paper). `beit probe` tells which block is best."""

    poolings: tuple[Pooling, ...] = ("mean",)
    """How a block's output becomes a feature. mean: the mean of the patch tokens. cls: the class token."""

    numbers: Literal["float16", "float32"] = "float16"
    """Number format of the written features. They are computed in float32, unless `resources.precision` is
    bf16."""

    centre: PositiveShare | None = None
    """Side of the centre square that the model sees, as a share of the image's shorter side. None: 0.875; 1
    for models of 384 px and more, and of 128 px and less."""

    list: StoragePath | None = None
    """File that chooses images of a folder and may label them: a .txt with a path in each line, or a .csv
    with the columns path and label. Paths are relative to `data`. None: all images."""

    image: str | None = None
    """Parquet column with the images, or the end of their names in tars, such as jpg. None: found by name and
    type."""

    label: str | None = None
    """Column that is written as the label. None: the first that exists of label, labels, class, target,
    fine_label and cls."""

    split: str | None = None
    """Split to read, such as val, if the folder holds several. None: all splits."""

    images_per_file: PositiveInt = 512
    """Approximate number of images in a file. Their views are held in memory together."""

    resources: ResourceConfig = field(default_factory=ResourceConfig)

    def check_together(self, option: Options) -> None:
        """Refuse an empty list of poolings."""
        check_poolings(self.poolings)


@dataclass(frozen=True, kw_only=True)
class FeaturesResult:
    """The features in the folder."""

    out: str
    images: int
    """Images with features."""
    undecodable: int
    """Images listed in undecodable.csv."""
    files: int
    written: int
    """Files that this call wrote; the others existed before."""


def features(
    config: FeaturesConfig, *, debug: bool = False, say: Callable[[str], None] = print
) -> FeaturesResult:
    """Write the features of every image of a data set. Files that an earlier call wrote are kept.

    Args:
        config: The model, the images, and which features to compute.
        debug: Show Ray's own messages.
        say: Takes the lines for the user.

    Raises:
        UserError: If the options or the data have mistakes, the folder holds other features, or numbers are
            too large for float16.
    """
    import ray.data  # noqa: F401 (sets up its loggers, which session.start then silences)

    checkpoint = find_model(config.run)
    saved = model_config(checkpoint)
    view_of(saved, config.run)  # Refuses a model that does not say how its pixels were normalised.
    layers = check_layers(config.layers or (default_layer(saved),), saved.model.depth)
    data, out = storage.absolute(config.data), storage.absolute(config.out)
    if storage.lies_in(out, data):
        raise UserError(
            f"out={config.out} lies in data={config.data}: the features would become part of it",
            "give a folder elsewhere",
        )
    FeatureFiles.check_folder(out)
    source = open_source(
        config.data,
        option="data",
        split=config.split,
        columns=ChosenColumns(image=config.image),
        chosen=config.list,
        say=say,
    )
    label = _label_column(source.manifest, config.label)
    say(f"data: {source.summary}{'' if label is None else f', labels from {label}'}")
    say(
        f"model: {saved.kind}, ViT {saved.model.dim}/{saved.model.depth}/{saved.model.heads}, "
        f"{saved.model.image_size} px"
    )
    say(
        f"features: layers {', '.join(map(str, layers))} of {saved.model.depth}, "
        f"{' and '.join(config.poolings)}, {config.numbers}"
    )
    with session.start(cpus=config.resources.cpus, debug=debug):
        nodes = cluster_nodes()
        placement = place(config.resources, nodes, tokenize=False)
        for line in (*local_path_warnings(nodes, {"data": data, "out": out}), *placement.lines()):
            say(line)
        remedy = "give the same command again: finished files are kept"
        with resumable("while features were computed", remedy, folder=None, say=say):
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
    return FeaturesResult(
        out=out, images=source.manifest.total - bad, undecodable=bad, files=files.parts, written=written
    )


def _kept(checkpoint: str, out: str) -> str:
    """Copy the model next to its features, because a running training deletes its older checkpoints."""
    kept = storage.join(out, MODEL_FOLDER)
    if not holds_model(kept):
        keep_model(checkpoint, out)
    elif model_digest(kept) != model_digest(checkpoint):
        raise UserError(
            f"out={out} holds features of other weights than {checkpoint} has",
            f"give another folder, or name {kept} as the run",
        )
    return kept


def default_layer(saved: SavedConfig) -> int:
    """Return the layer that probably has the best features; only a probe can tell."""
    deep = (
        saved.model.depth >= DEEP
    )  # Of a ViT of 4 blocks, the last was best after pretraining too (docs/log/probing.md).
    return middle_layer(saved.model.depth) if saved.kind == "mim" and deep else saved.model.depth


def _label_column(manifest: Manifest, asked: str | None) -> str | None:
    if asked is not None and asked not in manifest.columns:
        there = ", ".join(name for name in manifest.columns if not name.startswith("image")) or "images only"
        raise UserError(
            f"--label {asked} is no column of the data", f"name one of those that are there: {there}"
        )
    return asked or manifest.label_column


def command(arguments: list[str], debug: bool) -> None:
    """`beit features RUN DATA OUT [--option value …]`."""
    config = parse(
        arguments, FeaturesConfig, command="features RUN DATA OUT", positional=("run", "data", "out")
    )
    result = features(config, debug=debug)
    bad = (
        f"; {result.undecodable:,} could not be decoded: {result.out}/undecodable.csv"
        if result.undecodable
        else ""
    )
    print(f"{result.images:,} images in {result.files:,} files ({result.written:,} written now){bad}")
    print(f"features: {result.out}")


if __name__ == "__main__":
    run_program(command)
