"""Probe a model: `beit probe RUN --data.train … --data.val …`, or `python -m pipelines.probe …` with the same
options.

Features of both sets are written by the Ray Data job of `pipelines.evaluation.extract`; then a Ray task for
each layer and pooling reads its own features and judges them, so that no process ever holds more than one of
them.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from beit.checks import CommandConfig, NotNegativeInt, Options, PositiveInt, PositiveShare
from beit.errors import UserError
from beit.pretraining.model import Beit
from beit.probing.config import KnnConfig, LinearConfig
from beit.probing.features import check_layers
from beit.probing.probe import Labelled, probe_knn, probe_linear
from beit.vit.checkpoints import SavedConfig
from beit.vit.pooling import POOLINGS, Pooling, check_poolings
from pipelines import storage
from pipelines.cluster import session
from pipelines.cluster.failures import resumable
from pipelines.cluster.nodes import cluster_nodes, local_path_warnings
from pipelines.cluster.placement import Placement, place
from pipelines.command_line.options import parse_job
from pipelines.command_line.run import run
from pipelines.config.jobs import FolderConfig
from pipelines.config.resources import ResourceConfig
from pipelines.config.supervised import ClassifyDataConfig
from pipelines.datasets import LabelledData, checked_data, open_labelled
from pipelines.evaluation.extract import IMAGES_AT_ONCE, extract
from pipelines.evaluation.feature_files import FeatureFiles
from pipelines.evaluation.probe_table import (
    TABLE_FILE,
    ProbeRow,
    Weights,
    metrics,
    read_table,
    row_line,
    table_lines,
    write_table,
)
from pipelines.reports.page import REPORT_FILE
from pipelines.reports.probe import probe_sections
from pipelines.reports.run import write_report
from pipelines.runs import run_folder, tracking
from pipelines.runs.models import (
    find_model,
    holds_model,
    keep_model,
    keep_new_model,
    model_config,
    model_digest,
    view_of,
)
from pipelines.sources.labels import take_at_most

JOB = "probe"
FEATURES_FOLDER = "features"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(CommandConfig):
    """What frozen features of a model know about labels, layer by layer: k-NN and a linear classifier."""

    free_on_resume: ClassVar[tuple[str, ...]] = ("resources.", "output.", "keep_features")

    start: str | None = None
    """Run folder, of which its model/ (or a later checkpoint) is taken, or the folder of a checkpoint."""

    data: ClassifyDataConfig = field(default_factory=ClassifyDataConfig)

    classes: PositiveInt | None = None
    """How many there are. None: as many as the data names, or its largest label + 1."""

    layers: tuple[int, ...] = ()
    """Blocks whose output is probed, from 1; -1 is the last. None given: all."""

    poolings: tuple[Pooling, ...] = POOLINGS
    """mean: mean of the patches. cls: the class token."""

    baseline: bool = True
    """Probe the same architecture with random weights too: what the data tell without any training."""

    most_images: PositiveInt = 50_000
    """Training images, of `data.fraction`: of more, so many are taken, the same share of every class, and
    that is said."""

    centre: PositiveShare | None = None
    """Share of the short side that is looked at. None: 0.875, and all of it from 384 px on and up to 128
    px."""

    numbers: Literal["float16", "float32"] = "float16"
    """How features are written. float32: for models whose features float16 cannot hold."""

    keep_features: bool = False
    """Keep the features in the run folder. Otherwise they are deleted when everything is judged."""

    seed: NotNegativeInt = 0
    """Draws the part of the images, the random weights and the order of the linear classifier's training."""

    knn: KnnConfig = field(default_factory=KnnConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    output: FolderConfig = field(default_factory=FolderConfig)

    def check_together(self, option: Options) -> None:
        """Refuse no pooling at all."""
        check_poolings(self.poolings)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The table and report of a finished probe."""

    run: str
    """Run folder."""
    rows: list[ProbeRow]
    report: str


def probe(
    config: ProbeConfig,
    *,
    preset: str = JOB,
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> ProbeResult:
    """Judge the features of every layer, and write a run folder with the table and a report.

    Args:
        config: The whole job.
        preset: Name that the run folder starts with when `output.name` is not given.
        resume: Run folder to go on with; `config` must be its own but for resources and output.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.

    Raises:
        UserError: For every mistake in the configuration or the data.
    """
    import ray.data  # noqa: F401 (sets up its loggers, which cluster.start then quietens)

    if resume is None:
        run_folder.check_free(config)
    if config.start is None:
        raise UserError(
            "beit probe: RUN is missing", "write beit probe runs/NAME --data.train … --data.val …"
        )
    if resume is None:
        config = replace(config, start=find_model(config.start))
    checkpoint = _checkpoint_of(config, resume)
    saved = model_config(checkpoint)
    view_of(saved, checkpoint)  # Refuses a model that does not say how it wants its pixels.
    layers = check_layers(config.layers or range(1, saved.model.depth + 1), saved.model.depth)
    data = checked_data(config.data, image_size=saved.model.image_size, job="probe")
    config = replace(config, data=data)
    labelled = open_labelled(
        config, image_size=saved.model.image_size, classes=config.classes, seed=config.seed, say=say
    )
    if labelled.val is None:
        raise UserError(
            "data.val is not given, so there is nothing to be judged by", "set --data.val to labelled images"
        )
    labelled = _capped(labelled, config, say)
    val = labelled.val
    assert val is not None
    for line in _summary(config, saved, layers, labelled):
        say(line)
    inputs = {"data.train": labelled.train.digest, "data.val": val.digest, "start": model_digest(checkpoint)}
    with session.start(cpus=config.resources.cpus, debug=debug):
        nodes = cluster_nodes()
        placement = place(config.resources, nodes, tokenize=False)
        run = (
            run_folder.reopen(resume, inputs=inputs)
            if resume
            else run_folder.create(config, job=JOB, preset=preset, inputs=inputs)
        )
        say(f"run folder: {run.uri}")
        for line in (
            *local_path_warnings(nodes, {"data.train": labelled.source.uri, "output.root": run.uri}),
            *placement.lines(),
        ):
            say(line)
        place_in_mlflow = tracking.place_of_job(run.uri, config, job=JOB, preset=preset)
        if place_in_mlflow is None and config.output.mlflow:
            say(tracking.NO_PLACE)
        elif place_in_mlflow is not None and not place_in_mlflow.is_own_file:
            tracking.check(run.uri, place_in_mlflow)
        rows = read_table(run.uri)
        all_weights: tuple[Weights, ...] = ("trained", "random") if config.baseline else ("trained",)
        for weights in all_weights:
            wanted = {(layer, pooling) for layer in layers for pooling in config.poolings}
            missing = sorted(wanted - {(row.layer, row.pooling) for row in rows if row.weights == weights})
            if not missing:
                continue
            with resumable(
                f"while {weights} weights were probed",
                f"go on by --resume {run.uri}",
                folder=run.uri,
                say=say,
            ):
                files = _features(weights, checkpoint, saved, labelled, layers, config, placement, run, say)
                for row in _judge(weights, files, missing, labelled.classes, config, placement):
                    rows.append(row)
                    write_table(run.uri, rows)
                    say(row_line(row))
    if not config.keep_features and storage.exists(run.path(FEATURES_FOLDER)):
        storage.delete_folder(run.path(FEATURES_FOLDER))
    rows = read_table(run.uri)
    for line in table_lines(rows):
        say(line)
    report = write_run_report(run.uri)
    if place_in_mlflow is not None and not tracking.record(
        run.uri, place_in_mlflow, metrics(rows), [REPORT_FILE, TABLE_FILE]
    ):
        say("warning: MLflow cannot be reached; table and report are in the run folder only")
    say(f"table: {run.path(TABLE_FILE)}")
    say(f"report: {report}")
    return ProbeResult(run=run.uri, rows=rows, report=report)


def _capped(labelled: LabelledData, config: ProbeConfig, say: Callable[[str], None]) -> LabelledData:
    total = labelled.train.total
    train = take_at_most(labelled.train, config.most_images, config.seed)
    if train.total == total:
        return labelled
    say(
        f"warning: {train.total:,} of {total:,} training images are taken, the same share of every class; "
        "--most-images takes more"
    )
    return replace(labelled, train=train, source=replace(labelled.source, manifest=train))


def _summary(
    config: ProbeConfig, saved: SavedConfig, layers: Sequence[int], labelled: LabelledData
) -> Iterator[str]:
    assert labelled.val is not None
    model, images = saved.model, labelled.train.total
    yield (
        f"model: {saved.kind}, ViT {model.dim}/{model.depth}/{model.heads}, {model.image_size} px, from "
        f"{config.start}"
    )
    yield f"data: {images:,} images of {labelled.classes:,} classes, judged by {labelled.val.total:,}"
    features = len(layers) * len(config.poolings) * (1 + config.baseline)
    bytes_each = 2 if config.numbers == "float16" else 4
    disk = bytes_each * features * model.dim * (images + labelled.val.total) / 2**20
    held = (bytes_each * model.dim * (images + labelled.val.total) + 4 * images * (model.dim + 256)) / 2**20
    yield (
        f"features: {features} of {model.dim} {config.numbers} numbers an image: {disk:,.0f} MiB in the run "
        f"folder{'' if config.keep_features else ' until the end'}; a task holds one, with its neighbours' "
        f"similarities {held:,.0f} MiB"
    )


def _checkpoint_of(config: ProbeConfig, resume: str | None) -> str:
    """Return the model to probe. A resumed probe has a copy of its own: a running training deletes its
    older checkpoints.
    """
    assert config.start is not None
    kept = (
        None
        if resume is None
        else storage.join(storage.absolute(resume), FEATURES_FOLDER, "trained", "model")
    )
    return kept if kept is not None and holds_model(kept) else config.start


def _kept_model(weights: Weights, checkpoint: str, saved: SavedConfig, seed: int, folder: str) -> str:
    """Copy the model for the time of the probe, or make one with random weights."""
    kept = storage.join(folder, "model")
    if not holds_model(kept) and weights == "random":
        return keep_new_model(Beit(saved.model, 1, seed=seed), folder, extra={"view": saved.extra["view"]})
    if not holds_model(kept):
        keep_model(checkpoint, folder)
    return kept


def _features(
    weights: Weights,
    checkpoint: str,
    saved: SavedConfig,
    labelled: LabelledData,
    layers: tuple[int, ...],
    config: ProbeConfig,
    placement: Placement,
    run: run_folder.RunFolder,
    say: Callable[[str], None],
) -> tuple[FeatureFiles, FeatureFiles]:
    """Compute the features of both sets, unless they are there."""
    found = []
    kept = _kept_model(weights, checkpoint, saved, config.seed, run.path(FEATURES_FOLDER, weights))
    assert labelled.val is not None
    for name, manifest in (("train", labelled.train), ("val", labelled.val)):
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
                f"{len(bad):,} {name} images could not be decoded and count nowhere, the first: "
                f"{': '.join(bad[0])}"
            )
        found.append(files)
    return found[0], found[1]


def _judge(
    weights: Weights,
    files: tuple[FeatureFiles, FeatureFiles],
    wanted: Sequence[tuple[int, Pooling]],
    classes: int,
    config: ProbeConfig,
    placement: Placement,
) -> Iterator[ProbeRow]:
    """Judge the features in Ray tasks, in the places of training workers; yields rows as they are ready."""
    import ray

    remote: Any = ray.remote
    judge = remote(judge_feature).options(
        num_cpus=placement.worker_cpus, num_gpus=placement.worker_gpus, resources=placement.tag("train")
    )
    options = {"classes": classes, "knn": config.knn, "linear": config.linear, "seed": config.seed}
    options |= {"device": placement.device, "threads": placement.worker_threads}
    pending = {judge.remote(*files, layer, pooling, **options): (layer, pooling) for layer, pooling in wanted}
    while pending:
        [ready], _ = ray.wait(list(pending), num_returns=1)
        layer, pooling = pending.pop(ready)
        yield ProbeRow(weights=weights, layer=layer, pooling=pooling, **ray.get(ready))


def judge_feature(
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
    """Judge one feature; returns the figures of a `ProbeRow`."""
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


def rebuild_report(run: str) -> str:
    """Write the report of a probe again from its folder; returns its path."""
    run_folder.saved_config(run, ProbeConfig, job=JOB)
    return write_run_report(storage.absolute(run))


def write_run_report(run: str) -> str:
    """Write the report with the table and its curves; returns its path."""
    config, _ = run_folder.saved_config(run, ProbeConfig, job=JOB)
    commands = [
        (
            "What counts: fine-tuning",
            f"beit finetune {shlex.quote(str(config.start))}" + _data_options(config),
        )
    ]
    return write_report(run, sections=probe_sections(read_table(run)), commands=commands)


def _data_options(config: ProbeConfig) -> str:
    given = {"train": config.data.train, "val": config.data.val}
    return "".join(f" --data.{name} {shlex.quote(path)}" for name, path in given.items() if path is not None)


def default() -> ProbeConfig:
    """Every layer, both poolings, k-NN of 20 neighbours and the paper's linear probe, beside random
    weights.
    """
    return ProbeConfig()


def config_for(start: str | None, name: str) -> ProbeConfig:
    """Return the one preset, for a run or checkpoint.

    Raises:
        UserError: For another name: nothing but RUN is given without an option.
    """
    if name != JOB:
        raise UserError(
            f"beit probe: {name} belongs to no option", "images are given by --data.train and --data.val"
        )
    return replace(default(), start=start)


def command(arguments: list[str], debug: bool) -> None:
    """`beit probe RUN [--option value …]`."""
    names_run = arguments and not arguments[0].startswith("-") and not arguments[0].endswith(".json")
    start = arguments.pop(0) if names_run else None
    parsed = parse_job(
        arguments,
        ProbeConfig,
        job=JOB,
        default=JOB,
        presets={JOB: default},
        preset=functools.partial(config_for, start),
        usage="probe RUN",
        start=start,
        with_start=lambda config, name: replace(config, start=start),
    )
    if parsed is not None:
        probe(parsed.config, preset=parsed.preset, resume=parsed.resume, debug=debug)


if __name__ == "__main__":
    run(command)
