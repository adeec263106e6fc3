"""Segment: `beit segment [RUN] [PRESET | CONFIG.json] [--option value …]`, or `python -m pipelines.segment …`
with the same options.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from beit.errors import UserError
from beit.segmentation.heads.norms import synchronised
from beit.segmentation.model import Segmenter
from beit.segmentation.objective import SegmentObjective
from beit.vit.transfer import Transfer
from pipelines import storage
from pipelines.cluster.placement import Placement
from pipelines.command_line.options import parse_supervised
from pipelines.command_line.run import run
from pipelines.config.supervised import SegmentConfig
from pipelines.config.workers import WorkerRange
from pipelines.datasets import open_data, open_val
from pipelines.evaluation.segmentation import evaluate
from pipelines.presets.segment import PRESETS, recipe_for, segment_preset
from pipelines.reports.segmentation import segmentation_section
from pipelines.runs import run_folder
from pipelines.sources import Source
from pipelines.sources.annotations import annotated_classes, check_annotations, check_same_names
from pipelines.sources.pairs import with_annotations
from pipelines.sources.part import take_part
from pipelines.stream.segment_samples import SegmentSampleConfig, fault
from pipelines.training import supervised
from pipelines.training.run import check_room
from pipelines.training.supervised import Prepared
from pipelines.training.training import MICRO_BATCH, Result, Training

JOB = "segment"

LOOKED_AT = 8
"""Images that are looked at before anything starts: a wrong option spoils all of them."""

VOID = ("void", "unlabelled", "unlabeled", "ignore", "ignored", "unknown")
"""Names of classes that are most likely no class."""


def segment(
    config: SegmentConfig,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train a segmenter, judge it on the validation set, and write its run folder.

    Args:
        config: The whole run.
        preset: Name that the run folder starts with when `output.name` is not given.
        resume: Run folder to go on with; `config` must be its own but for resources, output and test. A
            finished run is judged again if `test` differs.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.

    Raises:
        UserError: For every mistake in the configuration or the data that can be seen before training.
    """
    import ray.data  # noqa: F401 (sets up its loggers, which cluster.start then quietens)

    if resume is None:
        run_folder.check_free(config)
    check_room(config)
    prepared = prepare(config, preset=preset, say=say)
    for line in summary(prepared):
        say(line)
    return supervised.run_judged(
        prepared,
        judge=functools.partial(_judge, prepared),
        way=config.test.name,
        figures=("mean_iou", "mean_accuracy", "overall_accuracy"),
        line=evaluation_line,
        write_report=rebuild_report,
        resume=resume,
        debug=debug,
        say=say,
    )


def config_for(start: str | None, name: str) -> SegmentConfig:
    """A preset's recipe for the model of a run or checkpoint; without one the preset as it is.

    The small recipes take the model's image size, and scale images in proportion; those of ADE20K have a size
    of their own. The released ones normalise pixels by ImageNet's mean and std whatever the model saw before,
    as the authors do.
    """
    recipe = segment_preset(name)
    if start is None:
        return recipe
    side = recipe.model.image_size
    config = supervised.for_start(
        replace(recipe, test=replace(recipe.test, stride=None)),
        start,
        image_size=side if name.startswith("ade20k") else None,
        pixels=_pixels_of_start(name),
    )
    view, times = config.view, config.model.image_size / side
    return replace(
        config,
        view=replace(
            view, short_side=round(times * view.short_side), long_side=round(times * view.long_side)
        ),
    )


def with_start(config: SegmentConfig, start: str, name: str) -> SegmentConfig:
    """The configuration of an earlier run, by the preset `name`, for another model to begin with, at the same
    image size.
    """
    return supervised.for_start(
        config, start, image_size=config.model.image_size, pixels=_pixels_of_start(name)
    )


def _pixels_of_start(name: str) -> bool:
    return not name.startswith("ade20k-upernet")


def prepare(config: SegmentConfig, *, preset: str, say: Callable[[str], None]) -> Prepared:
    """Check everything that can be checked without a cluster, and open the data; renders the built-in scenes
    if no data is given.
    """
    config = supervised.checked(config, job=JOB, say=say)
    if _pixels_of_start(preset):
        supervised.compare_pixels(config, say=say)
    annotations, val_annotations = (
        None if path is None else storage.absolute(path)
        for path in (config.data.annotations, config.data.val_annotations)
    )
    config = replace(
        config, data=replace(config.data, annotations=annotations, val_annotations=val_annotations)
    )
    if config.resources.worker_range is not None:
        check_parts(config, config.resources.worker_range)
    source = open_data(config, image_size=config.model.image_size, say=say)
    source = with_annotations(source, annotations, option="data.annotations", say=say)
    check_annotations(source)
    ids, names = annotated_classes(source.manifest, config.annotation)
    config = replace(config, annotation=ids)
    assert ids.classes is not None
    for line in _void_lines(names):
        say(line)
    _look(source, config)
    source = replace(source, manifest=take_part(source.manifest, config.data.fraction, config.seed))
    val = open_val(config.data, config.output.root, image_size=config.model.image_size, say=say)
    if val is not None:
        val = with_annotations(val, val_annotations, option="data.val_annotations", say=say)
        check_annotations(val, option="data.val")
        check_same_names(names, val.manifest, ids)
        _look(val, config, option="data.val")
    total_steps = config.total_steps(source.manifest.total, config.optim.global_batch_size)
    supervised.check_warmup(config, total_steps, say=say)
    config = supervised.keep_start(config, say=say)
    training = Training(
        job=JOB,
        config=config,
        preset=preset,
        source=source,
        samples=SegmentSampleConfig(
            seed=config.seed, view=config.view, ids=ids, patch_px=config.model.image_size
        ),
        tokenizer=None,
        make_objective=functools.partial(_make_objective, config, names, total_steps),
        global_batch_size=config.optim.global_batch_size,
        total_steps=total_steps,
        clip_norm=config.optim.clip_norm,
        inputs=supervised.inputs_of(config, source.manifest, None if val is None else val.manifest),
        shown=supervised.SHOWN,
        check_workers=functools.partial(check_parts, config),
    )
    transfer = None if config.start is None else _build(config, names)[1]
    return Prepared(
        training=training, val=None if val is None else val.manifest, classes=ids.classes, transfer=transfer
    )


def check_parts(config: SegmentConfig, workers: WorkerRange) -> None:
    """Refuse parts of a batch that BatchNorm cannot do with.

    UPerNet pools maps to one value each, which have no statistics where a single image goes through it. Of
    several workers the statistics are those of all of them, so each may have a single image, but all must go
    through their shares in equally many parts.

    Raises:
        UserError: With the arithmetic and sizes that go.
    """
    images, at_once = config.optim.global_batch_size, config.resources.micro_batch_size or MICRO_BATCH
    for count in range(max(2, workers.fewest), workers.most + 1):
        fewest, most = images // count, -(-images // count)
        if -(-fewest // at_once) != -(-most // at_once):
            raise UserError(
                f"of optim.global_batch_size={images} {count} workers have {fewest} or {most} images, in "
                "parts of "
                f"resources.micro_batch_size={at_once} not equally many, and BatchNorm counts over all "
                "workers' parts",
                f"set --resources.micro-batch-size {most}"
                + (f", or --resources.workers {workers.fewest}" if workers.elastic else ""),
            )
    if config.head != "upernet" or workers.fewest > 1 or (min(images, at_once) > 1 and images % at_once != 1):
        return
    fitting = next((size for size in range(max(2, at_once), images + 1) if images % size != 1), None)
    raise UserError(
        f"optim.global_batch_size={images} in parts of resources.micro_batch_size={at_once} leaves a part "
        "of one image, of which UPerNet's "
        "BatchNorm has no statistics",
        (
            "set --optim.global-batch-size 2"
            if fitting is None
            else f"set --resources.micro-batch-size {fitting}"
        )
        + ", or --head setr-pup",
    )


def _void_lines(names: tuple[str, ...] | None) -> list[str]:
    """A warning for each class whose name says that it is none."""
    return [
        (
            f"warning: class {number} is called {name}, and is learned and counted like any other; "
            "--annotation.ignore-index leaves an id out"
        )
        for number, name in enumerate(names or ())
        if name.lower() in VOID
    ]


def _look(source: Source, config: SegmentConfig, option: str = "data.train") -> None:
    """Refuse data of which the first images are all unusable: a wrong option, most likely."""
    unit = source.unit(0)
    found = unit.read(np.arange(min(LOOKED_AT, int(source.manifest.rows[0]))), ("image", "annotation"))
    if not isinstance(found["annotation"][0], bytes):
        raise UserError(
            (
                f"{option}={source.uri}: the column annotation holds "
                f"{type(found['annotation'][0]).__name__}, "
                "not the bytes of files"
            ),
            "give a column annotation of PNG files, as struct<bytes, path> or binary",
        )
    faults = [
        fault(*pair, view=config.view, ids=config.annotation)
        for pair in zip(found["image"], found["annotation"], strict=True)
    ]
    if all(faults):
        raise UserError(
            (
                f"{option}={source.uri}: none of the first {len(faults)} images can be used; "
                f"{unit.describe(0)}: {faults[0]}"
            ),
            (
                "set --annotation.classes, --annotation.ignore-index and --annotation.reduce-zero-label as "
                "the "
                "files are, or mend the files"
            ),
        )


def _build(config: SegmentConfig, names: tuple[str, ...] | None) -> tuple[Segmenter, Transfer | None]:
    """The segmenter with its first weights, and what was taken of others."""
    assert config.annotation.classes is not None
    model = Segmenter(
        config.model,
        config.annotation.classes,
        head=config.head,
        channels=config.channels,
        class_names=names,
        generator=torch.Generator().manual_seed(config.seed),
    )
    return model, supervised.take_weights(model, config.start, absolute=config.positions)


def _make_objective(
    config: SegmentConfig, names: tuple[str, ...] | None, total_steps: int
) -> SegmentObjective:

    return SegmentObjective(
        synchronised(_build(config, names)[0]),
        config.optim,
        config.view.pixels(),
        layer_decay=config.layer_decay,
        total_steps=total_steps,
        seed=config.seed,
        extra={"start": config.start},
    )


def _names(prepared: Prepared) -> tuple[str, ...]:
    """K class names; numbers where the data has none."""
    config = prepared.training.config
    assert isinstance(config, SegmentConfig)
    names = annotated_classes(prepared.training.source.manifest, config.annotation)[1]
    return names or tuple(str(number) for number in range(prepared.classes))


def _judge(prepared: Prepared, run: str, checkpoint: str, placement: Placement, step: int) -> dict[str, Any]:

    config = prepared.training.config
    assert isinstance(config, SegmentConfig)
    assert prepared.val is not None
    return evaluate(
        prepared.val,
        checkpoint,
        placement,
        run=run,
        step=step,
        view=config.view,
        ids=config.annotation,
        test=config.test,
        names=_names(prepared),
    )


def evaluation_line(found: dict[str, Any]) -> str:
    """The result in a line."""
    figures = (
        f"mIoU {found['mean_iou']:.2%}, mean accuracy {found['mean_accuracy']:.2%}, overall accuracy "
        f"{found['overall_accuracy']:.2%}"
    )
    return f"validation at step {found['step']:,}: {figures} {supervised.unusable_words(found)}"


def summary(prepared: Prepared) -> list[str]:
    """The run in a few lines, derived numbers with their arithmetic."""
    config = prepared.training.config
    assert isinstance(config, SegmentConfig)
    crop, view, test = config.model.image_size, config.view, config.test
    ways = " and mirrored" * test.flip + (
        f", at {', '.join(f'{ratio:g}' for ratio in test.ratios)} times that" if test.ratios != (1.0,) else ""
    )
    return [
        *prepared.summary(f"{config.head} head"),
        f"views: crops of {crop} px of images {view.scale[0] * view.short_side:g} to "
        f"{view.scale[1] * view.short_side:g} px high; judged "
        f"at {view.short_side} px{ways}, in windows of {crop} px, {test.stride_for(crop)} apart",
    ]


def rebuild_report(run: str) -> str:
    """Write the report of a run, also again, from its folder; returns its path."""
    return supervised.write_run_report(run, SegmentConfig, JOB, segmentation_section)


def command(arguments: list[str], debug: bool) -> None:
    """`beit segment [RUN] [PRESET | CONFIG.json] [--option value …]`."""
    parsed = parse_supervised(
        arguments,
        SegmentConfig,
        job=JOB,
        presets=PRESETS,
        config_for=config_for,
        with_start=with_start,
        recipe_for=recipe_for,
    )
    if parsed is not None:
        segment(parsed.config, preset=parsed.preset, resume=parsed.resume, debug=debug)


if __name__ == "__main__":
    run(command)
