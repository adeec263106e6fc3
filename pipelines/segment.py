"""Segment: `beit segment [RUN] [PRESET | CONFIG.json] [--option value …]`, or `python -m pipelines.segment`
with the same options.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from beit.config import ModelConfig
from beit.errors import UserError
from beit.segmentation.heads.norms import synchronised
from beit.segmentation.model import Segmenter
from beit.segmentation.objective import SegmentObjective
from beit.vit.transfer import Transfer
from pipelines import storage
from pipelines.cluster.placement import Placement
from pipelines.command_line.run import run_program
from pipelines.config.supervised import SegmentConfig
from pipelines.config.workers import WorkerRange
from pipelines.datasets import open_data, open_val
from pipelines.evaluation.segmentation import evaluate
from pipelines.presets.segment import PRESETS, recipe_for
from pipelines.reports.page import Section
from pipelines.reports.segmentation import segmentation_sections
from pipelines.runs.run_folder import RunFolder
from pipelines.sources.annotations import annotated_classes, check_annotations, check_same_names
from pipelines.sources.pairs import with_annotations
from pipelines.sources.part import take_part
from pipelines.stream.first_look import check_annotated, warn_about_values
from pipelines.stream.segment_samples import SegmentSampleConfig
from pipelines.training import frame, supervised
from pipelines.training.starts import compare_pixels, for_start, keep_start, take_weights
from pipelines.training.supervised import SupervisedTask, SupervisedTraining
from pipelines.training.training import MICRO_BATCH, Result

VOID = ("void", "unlabelled", "unlabeled", "ignore", "ignored", "unknown")
"""Names of classes that are most likely no class."""


@dataclass(frozen=True, kw_only=True)
class SegmentationTraining(SupervisedTraining[SegmentConfig]):
    """A training with the names of its classes."""

    class_names: tuple[str, ...] | None
    """K names. None: the data has none."""


class SegmentationTask(SupervisedTask[SegmentConfig, SegmentationTraining]):
    """Train a model that finds a class for every pixel, from a pretrained one or from scratch."""

    name = "segment"
    program = "beit segment"
    config_type = SegmentConfig
    presets = PRESETS
    model_type = Segmenter
    figures = ("mean_iou", "mean_accuracy", "overall_accuracy")

    def prepare(
        self, config: SegmentConfig, *, preset: str, say: Callable[[str], None]
    ) -> SegmentationTraining:
        """Open annotated images, render the built-in scenes if none are given, and look at the first few."""
        config = supervised.checked(config, job=self.name)
        if _pixels_of_start(preset):
            compare_pixels(config, say=say)
        annotations, val_annotations = (
            None if path is None else storage.absolute(path)
            for path in (config.data.annotations, config.data.val_annotations)
        )
        data = replace(config.data, annotations=annotations, val_annotations=val_annotations)
        config = replace(config, data=data)
        if config.resources.worker_range is not None:
            check_parts(config, config.resources.worker_range)
        source = open_data(config, image_size=config.model.image_size, say=say)
        source = with_annotations(source, annotations, option="data.annotations", say=say)
        check_annotations(source)
        ids, names = annotated_classes(source.manifest, config.annotation)
        config = replace(config, annotation=ids)
        for line in _void_lines(names):
            say(line)
        check_annotated(source, config.view, config.annotation, say)
        if config.data.train is not None:
            warn_about_values(source, config.view, say)
        source = replace(source, manifest=take_part(source.manifest, config.data.fraction, config.seed))
        val = open_val(config.data, config.output.root, image_size=config.model.image_size, say=say)
        if val is not None:
            val = with_annotations(val, val_annotations, option="data.val_annotations", say=say)
            check_annotations(val, option="data.val")
            check_same_names(names, val.manifest, ids)
            check_annotated(val, config.view, config.annotation, say, option="data.val")
        total_steps = config.total_steps(source.manifest.total, config.optim.global_batch_size)
        supervised.check_warmup(config, total_steps, say=say)
        config = keep_start(config, say=say)
        val_manifest = None if val is None else val.manifest
        return SegmentationTraining(
            job=self.name,
            config=config,
            preset=preset,
            source=source,
            samples=SegmentSampleConfig(
                seed=config.seed, view=config.view, ids=ids, patch_px=config.model.image_size
            ),
            tokenizer=None,
            make_objective=functools.partial(_make_objective, config, names, total_steps),
            optim=config.optim,
            total_steps=total_steps,
            inputs=supervised.inputs_of(config, source.manifest, val_manifest),
            shown=supervised.PROGRESS,
            check_workers=functools.partial(check_parts, config),
            val=val_manifest,
            classes=_classes(config),
            class_names=names,
            transfer=None if config.start is None else _build(config, names)[1],
        )

    def evaluate(
        self,
        training: SegmentationTraining,
        folder: RunFolder,
        checkpoint: str,
        placement: Placement,
        step: int,
    ) -> dict[str, Any]:
        """Count pixels by class and predicted class over all validation images."""
        if training.val is None:
            raise ValueError("there is no validation set to judge by")
        config = training.config
        return evaluate(
            training.val,
            checkpoint,
            placement,
            run=folder.uri,
            step=step,
            view=config.view,
            ids=config.annotation,
            test=config.test,
            names=training.class_names or tuple(str(number) for number in range(training.classes)),
        )

    def evaluation_line(self, found: Mapping[str, Any]) -> str:
        """Put the mean IoU and the accuracies into a line."""
        figures = (
            f"mIoU {found['mean_iou']:.2%}, mean accuracy {found['mean_accuracy']:.2%}, "
            f"overall accuracy {found['overall_accuracy']:.2%}"
        )
        return f"validation at step {found['step']:,}: {figures} {supervised.unusable_words(found)}"

    def sections(
        self, run: str, found: Sequence[dict[str, Any]], class_names: Sequence[str] | None
    ) -> list[Section]:
        """Validation curves, the figures of every class, and pictures."""
        return segmentation_sections(run, found, class_names)

    def head(self, config: SegmentConfig) -> str:
        """Name the head."""
        return f"{config.head} head"

    def variant(self, config: SegmentConfig) -> str:
        """Name how images are tested: windows, scales, mirrored or not."""
        return config.test.name

    def summary(self, training: SegmentationTraining) -> list[str]:
        """Add the sizes of views in training and in the test."""
        config = training.config
        crop, view, test = config.model.image_size, config.view, config.test
        low, high = (scale * view.short_side for scale in view.scale)
        mirrored = " and mirrored" * test.flip
        ratios = ", ".join(f"{ratio:g}" for ratio in test.ratios)
        scales = f", at {ratios} times that" if test.ratios != (1.0,) else ""
        return [
            *super().summary(training),
            f"views: crops of {crop} px of images {low:g} to {high:g} px high; judged at {view.short_side} px"
            f"{mirrored}{scales}, in windows of {crop} px, {test.stride_for(crop)} apart",
        ]

    def recipe_for(self, model: ModelConfig, kind: str) -> str:
        """Choose by the model's size."""
        return recipe_for(model, kind)

    def begin(
        self, config: SegmentConfig, start: str, preset: str, *, image_size: int | None = None
    ) -> SegmentConfig:
        """Take the model's sizes; a recipe's image size too, but for ADE20K's, which have their own.

        Scales of images grow in proportion. The released recipes of ADE20K normalise pixels by ImageNet's
        mean and std whatever the model saw before, as the authors do.
        """
        pixels = _pixels_of_start(preset)
        if image_size is not None:
            return for_start(config, start, image_size=image_size, pixels=pixels)
        side = config.model.image_size
        config = for_start(
            replace(config, test=replace(config.test, stride=None)),
            start,
            image_size=side if preset.startswith("ade20k") else None,
            pixels=pixels,
        )
        view, times = config.view, config.model.image_size / side
        short, long = round(times * view.short_side), round(times * view.long_side)
        return replace(config, view=replace(view, short_side=short, long_side=long))


def segment(
    config: SegmentConfig,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train a segmenter, judge it on the validation set, and write its run folder.

    A finished run that is resumed with another `test` is judged again. The arguments are those of
    `pipelines.training.frame.run`.
    """
    return frame.run(SegmentationTask(), config, preset=preset, resume=resume, debug=debug, say=say)


def _pixels_of_start(preset: str) -> bool:
    """Whether pixels are normalised as the weights to begin with are used to."""
    return not preset.startswith("ade20k-upernet")


def _classes(config: SegmentConfig) -> int:
    """K, which `annotated_classes` has filled in."""
    if config.annotation.classes is None:
        raise ValueError("the number of classes is not known before the annotations are looked at")
    return config.annotation.classes


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
                f"parts of resources.micro_batch_size={at_once} not equally many, and BatchNorm counts over "
                "all workers' parts",
                f"set --resources.micro-batch-size {most}"
                + (f", or --resources.workers {workers.fewest}" if workers.elastic else ""),
            )
    if config.head != "upernet" or workers.fewest > 1 or (min(images, at_once) > 1 and images % at_once != 1):
        return
    fitting = next((size for size in range(max(2, at_once), images + 1) if images % size != 1), None)
    raise UserError(
        f"optim.global_batch_size={images} in parts of resources.micro_batch_size={at_once} leaves a part of "
        "one image, of which UPerNet's BatchNorm has no statistics",
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


def _build(config: SegmentConfig, names: tuple[str, ...] | None) -> tuple[Segmenter, Transfer | None]:
    """The segmenter with its first weights, and what was taken of others."""
    model = Segmenter(
        config.model,
        _classes(config),
        head=config.head,
        channels=config.channels,
        class_names=names,
        generator=torch.Generator().manual_seed(config.seed),
    )
    return model, take_weights(model, config.start, absolute=config.positions)


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


def command(arguments: list[str], debug: bool) -> None:
    """`beit segment [RUN] [PRESET | CONFIG.json] [--option value …]`."""
    frame.run_command(SegmentationTask(), arguments, debug)


def rebuild_report(run: str) -> str:
    """Write the report of a run again; returns its path."""
    return frame.rebuild_report(SegmentationTask(), run)


if __name__ == "__main__":
    run_program(command)
