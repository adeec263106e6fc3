"""k-NN at the pauses of a pretraining: do the features of the model separate the classes?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from beit.errors import UserError
from beit.probing.features import check_layers, middle_layer
from beit.probing.probe import Labelled, probe_knn
from pipelines import storage
from pipelines.cluster.placement import Placement
from pipelines.config.pretrain import KnnWhileConfig, PretrainConfig
from pipelines.datasets import held_out_scenes, open_data
from pipelines.evaluation.extract import extract
from pipelines.evaluation.judge import Judge
from pipelines.runs.models import model_digest
from pipelines.runs.run_folder import RunFolder
from pipelines.sources import open_source
from pipelines.sources.base import ChosenColumns
from pipelines.sources.labels import LabelledManifest, class_count, label_source, take_at_most, unnamed

FOLDER = "knn"

SEED = 0
"""Seed that draws the subset of the images."""


@dataclass(frozen=True, kw_only=True)
class KnnJudge(Judge):
    """Judges a pretraining by k-NN on frozen features of two sets, which are opened before it starts."""

    config: KnnWhileConfig
    train: LabelledManifest
    val: LabelledManifest
    classes: int
    layers: tuple[int, ...]
    pauses: Sequence[int]

    folder = FOLDER

    def judge(self, folder: RunFolder, checkpoint: str, placement: Placement, step: int) -> dict[str, Any]:
        """Judge a checkpoint.

        Features are written below the run folder, read back one layer at a time, and deleted.

        Returns:
            "top1" and "top5" by layer, "train_images" and "val_images".
        """
        # Named by the weights: of a step that was taken again after an interruption they can be others.
        place = folder.path(f"{FOLDER}-features", f"step-{step:08d}-{model_digest(checkpoint)[:12]}")
        train, val = (
            extract(
                manifest,
                checkpoint,
                storage.join(place, name),
                layers=self.layers,
                poolings=("mean",),
                # Of some thousand images: no feature is too large for it, which would end the training.
                numbers="float32",
                placement=placement,
                say=lambda line: None,
            )[0]
            for name, manifest in (("train", self.train), ("val", self.val))
        )
        top1, top5, images = {}, {}, (0, 0)
        for layer in self.layers:  # In the driver: some thousand features of one layer at a time, on a CPU.
            known, asked = Labelled(*train.read(layer, "mean")), Labelled(*val.read(layer, "mean"))
            score = probe_knn(known, asked, self.classes, self.config)
            top1[str(layer)], top5[str(layer)] = score.top1, score.top5
            images = len(known.labels), len(asked.labels)
        storage.delete_folder(folder.path(f"{FOLDER}-features"))
        return {"top1": top1, "top5": top5, "train_images": images[0], "val_images": images[1]}

    def line(self, found: Mapping[str, Any]) -> str:
        """Put the accuracy of each layer into a line."""
        figures = ", ".join(f"{value:.2%} at layer {layer}" for layer, value in found["top1"].items())
        return f"k-NN at step {found['step']:,}: {figures}, on {found['val_images']:,} images"

    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Pick the accuracy of each layer."""
        return {f"knn/layer_{layer}": value for layer, value in found["top1"].items()}


def open_knn(config: PretrainConfig, *, total_steps: int, say: Callable[[str], None]) -> KnnJudge | None:
    """Open the labelled images; None where no k-NN is asked for.

    Args:
        config: With absolute paths.
        total_steps: Length of the run.
        say: Takes the lines for the user.

    Raises:
        UserError: Where there are no images, or no labels, or nothing to be judged by, or no such layer.
    """
    knn, side, depth = config.knn, config.model.image_size, config.model.depth
    if knn.every_steps is None:
        return None
    layers = check_layers(knn.layers or (middle_layer(depth), depth), depth, option="knn.layers")
    if knn.train is not None:
        source = open_source(
            knn.train,
            option="knn.train",
            split="train",
            columns=ChosenColumns(image=config.data.image),
            say=say,
        )
    else:
        source = open_data(config, image_size=side, say=say)
    option = "data.train" if knn.train is None else "knn.train"
    train = label_source(source, option=option, column=knn.label).manifest
    classes = class_count(train, None)
    if knn.val is not None:
        held_out = open_source(
            knn.val,
            option="knn.val",
            split="val",
            columns=ChosenColumns(image=config.data.image),
            say=say,
        )
    elif config.data.train is None and knn.train is None:
        held_out = held_out_scenes(
            config.output.root, first=config.data.scenes, images=1000, image_size=side, say=say
        )
    else:
        raise UserError(
            (
                f"knn.every_steps={knn.every_steps}, and knn.val is not given, so there is nothing to be "
                "judged by"
            ),
            "set --knn.val to labelled images, or leave out --knn.every-steps",
        )
    val = label_source(held_out, option="knn.val", column=knn.label, classes=classes, follows=train).manifest
    for line in unnamed(train, val, "knn.val"):
        say(line)
    say(
        f"k-NN: every {knn.every_steps:,} steps and at the end, layers {', '.join(map(str, layers))} of "
        f"{depth}"
    )
    return KnnJudge(
        pauses=range(knn.every_steps, total_steps, knn.every_steps),
        config=knn,
        train=_capped(train, option, knn, say),
        val=_capped(val, "knn.val", knn, say),
        classes=classes,
        layers=layers,
    )


def _capped(
    manifest: LabelledManifest, option: str, config: KnnWhileConfig, say: Callable[[str], None]
) -> LabelledManifest:
    """Take a subset, the same for every run, so that the figures of runs compare."""
    part = take_at_most(manifest, config.most_images, SEED)
    if part.total < manifest.total:
        say(
            f"k-NN: {part.total:,} of the {manifest.total:,} images of {option}; --knn.most-images takes more"
        )
    return part
