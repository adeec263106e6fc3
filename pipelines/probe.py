"""Probe a model: `beit probe RUN --data.train … --data.val …`, or `python -m pipelines.probe …` with the same
options.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from beit.errors import UserError
from beit.probing.features import check_layers
from beit.vit.checkpoints import SavedConfig
from pipelines import storage
from pipelines.cluster import session
from pipelines.cluster.failures import resumable
from pipelines.cluster.nodes import cluster_nodes, local_path_warnings
from pipelines.cluster.placement import place
from pipelines.command_line.options import parse_job
from pipelines.command_line.run import run_program
from pipelines.config.probe import ProbeConfig
from pipelines.datasets import checked_data, open_labelled
from pipelines.evaluation.probe_layers import FEATURES_FOLDER, ProbeData, compute_features, judge_features
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
from pipelines.reports.run import Report, write_report
from pipelines.runs import lease, run_folder, tracking
from pipelines.runs.models import find_model, holds_model, model_config, model_digest, view_of
from pipelines.sources.labels import take_at_most

JOB = "probe"


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
        resume: Run folder to resume; `config` must be its own but for resources and output.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.

    Raises:
        UserError: For every mistake in the configuration or the data.
    """
    import ray.data  # noqa: F401 (sets up its loggers, which session.start then silences)

    if resume is None:
        run_folder.check_free(config)
    if config.start is None:
        raise UserError(
            "beit probe: RUN is missing", "write beit probe runs/NAME --data.train … --data.val …"
        )
    start = config.start if resume else find_model(config.start)
    config = replace(config, start=start)
    checkpoint = _checkpoint_of(start, resume)
    saved = model_config(checkpoint)
    view_of(saved, checkpoint)  # Refuses a model that does not say how it wants its pixels.
    layers = check_layers(config.layers or range(1, saved.model.depth + 1), saved.model.depth)
    config = replace(config, data=checked_data(config.data, image_size=saved.model.image_size, job=JOB))
    data = _open(config, image_size=saved.model.image_size, say=say)
    for line in _summary(config, saved, layers, data):
        say(line)
    inputs = {"data.train": data.train.digest, "data.val": data.val.digest, "start": model_digest(checkpoint)}
    with contextlib.ExitStack() as held:
        held.enter_context(session.start(cpus=config.resources.cpus, debug=debug))
        nodes = cluster_nodes()
        placement = place(config.resources, nodes, tokenize=False)
        run = (
            run_folder.reopen(resume, inputs=inputs)
            if resume
            else run_folder.create(config, job=JOB, preset=preset, inputs=inputs)
        )
        held.enter_context(lease.hold(run.uri, say))
        say(f"run folder: {run.uri}")
        for line in (
            *local_path_warnings(nodes, {"data.train": data.uri, "output.root": run.uri}),
            *placement.lines(),
        ):
            say(line)
        place_in_mlflow = tracking.place_of_job(run.uri, config, job=JOB, preset=preset)
        if place_in_mlflow is None and config.output.mlflow:
            say(tracking.NO_PLACE)
        elif place_in_mlflow is not None:
            tracking.begin(run.uri, place_in_mlflow, say)
        rows = read_table(run.uri)
        all_weights: tuple[Weights, ...] = ("trained", "random") if config.baseline else ("trained",)
        for weights in all_weights:
            wanted = {(layer, pooling) for layer in layers for pooling in config.poolings}
            missing = sorted(wanted - {(row.layer, row.pooling) for row in rows if row.weights == weights})
            if not missing:
                continue
            with resumable(
                f"while {weights} weights were probed",
                f"resume it by --resume {run.uri}",
                folder=run.uri,
                say=say,
            ):
                files = compute_features(
                    weights, checkpoint, saved, data, layers, config, placement, run, say
                )
                for row in judge_features(weights, files, missing, data.classes, config, placement):
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


def _open(config: ProbeConfig, *, image_size: int, say: Callable[[str], None]) -> ProbeData:
    """Open the labelled images, of those to learn from at most `config.most_images`."""
    labelled = open_labelled(config, image_size=image_size, classes=config.classes, seed=config.seed, say=say)
    if labelled.val is None:
        raise UserError(
            "data.val is not given, so there is nothing to be judged by", "set --data.val to labelled images"
        )
    train = take_at_most(labelled.train, config.most_images, config.seed)
    if train.total < labelled.train.total:
        say(
            f"warning: {train.total:,} of {labelled.train.total:,} training images are taken, the same share "
            "of every class; --most-images takes more"
        )
    return ProbeData(uri=labelled.source.uri, train=train, val=labelled.val, classes=labelled.classes)


def _summary(
    config: ProbeConfig, saved: SavedConfig, layers: Sequence[int], data: ProbeData
) -> Iterator[str]:
    model, images, judged = saved.model, data.train.total, data.val.total
    yield (
        f"model: {saved.kind}, ViT {model.dim}/{model.depth}/{model.heads}, {model.image_size} px, from "
        f"{config.start}"
    )
    yield f"data: {images:,} images of {data.classes:,} classes, judged by {judged:,}"
    features = len(layers) * len(config.poolings) * (1 + config.baseline)
    bytes_each = 2 if config.numbers == "float16" else 4
    disk = bytes_each * features * model.dim * (images + judged) / 2**20
    held = (bytes_each * model.dim * (images + judged) + 4 * images * (model.dim + 256)) / 2**20
    yield (
        f"features: {features} of {model.dim} {config.numbers} numbers an image: {disk:,.0f} MiB in the run "
        f"folder{'' if config.keep_features else ' until the end'}; a task holds one, with its neighbours' "
        f"similarities {held:,.0f} MiB"
    )


def _checkpoint_of(start: str, resume: str | None) -> str:
    """Return the model to probe. A resumed probe has a copy of its own: a running training deletes its
    older checkpoints.
    """
    kept = (
        None
        if resume is None
        else storage.join(storage.absolute(resume), FEATURES_FOLDER, "trained", "model")
    )
    return kept if kept is not None and holds_model(kept) else start


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
    report = Report(sections=probe_sections(read_table(run)), charts=(), commands=commands)
    return write_report(run, report, program=f"beit {JOB}", trains=False)


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
        program=f"beit {JOB}",
        default=JOB,
        presets={JOB: default},
        preset=functools.partial(config_for, start),
        positional="RUN",
        start=start,
        with_start=lambda config, name: replace(config, start=start),
    )
    if parsed is not None:
        probe(parsed.config, preset=parsed.preset, resume=parsed.resume, debug=debug)


if __name__ == "__main__":
    run_program(command)
