"""Compute and evaluate the features of a probe. One Ray Data job writes the features of both sets. A Ray task
for each layer and pooling then reads and evaluates its own, so that no process holds more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from beit.pretraining.model import Beit
from beit.probing.config import KnnConfig, LinearConfig
from beit.probing.probe import Labelled, probe_knn, probe_linear
from beit.vit.checkpoints import SavedConfig
from beit.vit.pooling import Pooling
from pipelines import storage
from pipelines.cluster.placement import Placement
from pipelines.config.probe import ProbeConfig
from pipelines.evaluation.extract import IMAGES_AT_ONCE, extract
from pipelines.evaluation.feature_files import FeatureFiles
from pipelines.evaluation.probe_table import ProbeRow, Weights
from pipelines.runs.models import holds_model, keep_model, keep_new_model
from pipelines.runs.run_folder import RunFolder
from pipelines.sources.labels import LabelledManifest

FEATURES_FOLDER = "features"
"""Subfolder of the run folder with the features."""


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """The labelled images of a probe."""

    uri: str
    """Path of the training images."""
    train: LabelledManifest
    val: LabelledManifest
    classes: int


def compute_features(
    weights: Weights,
    checkpoint: str,
    saved: SavedConfig,
    data: ProbeData,
    layers: tuple[int, ...],
    config: ProbeConfig,
    placement: Placement,
    run: RunFolder,
    say: Callable[[str], None],
) -> tuple[FeatureFiles, FeatureFiles]:
    """Compute the features of both sets, unless they exist already.

    Args:
        weights: Whether to use the checkpoint's weights or random ones.
        checkpoint: Folder of the model.
        saved: Its configuration.
        data: Both sets.
        layers: Blocks, from 1.
        config: The probe's.
        placement: The resources of the Ray Data job.
        run: The run folder, which keeps the features.
        say: Takes the lines for the user.

    Returns:
        Those of the training images and of the validation images.
    """
    found = []
    kept = _kept_model(weights, checkpoint, saved, config.seed, run.path(FEATURES_FOLDER, weights))
    for name, manifest in (("train", data.train), ("val", data.val)):
        say(f"features of {weights} weights, {name}: {manifest.total:,} images")
        files, _ = extract(
            manifest,
            kept,
            run.path(FEATURES_FOLDER, weights, name),
            layers=layers,
            poolings=config.poolings,
            numbers=config.numbers,
            centre=config.centre,
            placement=placement,
            images_at_once=config.resources.micro_batch_size or IMAGES_AT_ONCE,
            bf16=config.resources.precision == "bf16",
            say=say,
        )
        if bad := files.undecodable():
            say(
                f"{len(bad):,} {name} images could not be decoded and do not count, the first: "
                f"{': '.join(bad[0])}"
            )
        found.append(files)
    return found[0], found[1]


def judge_features(
    weights: Weights,
    files: tuple[FeatureFiles, FeatureFiles],
    wanted: Sequence[tuple[int, Pooling]],
    classes: int,
    config: ProbeConfig,
    placement: Placement,
) -> Iterator[ProbeRow]:
    """Evaluate the features in Ray tasks, each with the resources of a training worker; yields rows as they
    are ready.

    Args:
        weights: Whether these are the features of trained or of random weights.
        files: Those of the training images and of the validation images.
        wanted: (layer, pooling) pairs.
        classes: Number of classes.
        config: The probe's.
        placement: The resources of the tasks.
    """
    import ray

    remote: Any = ray.remote
    judge = remote(_judge_feature).options(
        num_cpus=placement.worker_cpus, num_gpus=placement.worker_gpus, resources=placement.tag("train")
    )
    options = {"classes": classes, "knn": config.knn, "linear": config.linear, "seed": config.seed}
    options |= {"device": placement.device, "threads": placement.worker_threads}
    pending = {judge.remote(*files, layer, pooling, **options): (layer, pooling) for layer, pooling in wanted}
    while pending:
        [ready], _ = ray.wait(list(pending), num_returns=1)
        layer, pooling = pending.pop(ready)
        yield ProbeRow(weights=weights, layer=layer, pooling=pooling, **ray.get(ready))


def _judge_feature(
    train: FeatureFiles,
    val: FeatureFiles,
    layer: int,
    pooling: Pooling,
    *,
    classes: int,
    knn: KnnConfig,
    linear: LinearConfig,
    seed: int,
    device: str,
    threads: int,
) -> dict[str, float]:
    """Evaluate one feature; returns the accuracies of a `ProbeRow`."""
    torch.set_num_threads(threads)
    known, asked = Labelled(*train.read(layer, pooling)), Labelled(*val.read(layer, pooling))
    knn_score = probe_knn(known, asked, classes, knn, device=device)
    linear_score = probe_linear(known, asked, classes, linear, seed=seed, device=device)
    return {
        "knn_top1": knn_score.top1,
        "knn_top5": knn_score.top5,
        "linear_top1": linear_score.top1,
        "linear_top5": linear_score.top5,
        "train_images": len(known.labels),
        "val_images": len(asked.labels),
    }


def _kept_model(weights: Weights, checkpoint: str, saved: SavedConfig, seed: int, folder: str) -> str:
    """Copy the model for the duration of the probe, or make one with random weights."""
    kept = storage.join(folder, "model")
    if not holds_model(kept) and weights == "random":
        return keep_new_model(Beit(saved.model, 1, seed=seed), folder, extra={"view": saved.extra["view"]})
    if not holds_model(kept):
        keep_model(checkpoint, folder)
    return kept
