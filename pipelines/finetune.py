"""Classify: `beit finetune [RUN] [PRESET | CONFIG.json] [--option value …]`, or `python -m
pipelines.finetune` with the same options.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from beit.classification.model import FINETUNING_HEAD_SCALE, Classifier
from beit.classification.objective import ClassifyObjective
from beit.config import ModelConfig
from beit.vit.transfer import Transfer
from pipelines.cluster.placement import Placement
from pipelines.command_line.run import run_program
from pipelines.config.supervised import FinetuneConfig
from pipelines.datasets import open_labelled
from pipelines.evaluation.classification import evaluate, majority_share
from pipelines.presets.finetune import PRESETS, recipe_for
from pipelines.reports.classification import classification_sections
from pipelines.reports.page import Section
from pipelines.runs.models import find_model, model_config
from pipelines.runs.run_folder import RunFolder
from pipelines.sources.labels import LabelledManifest
from pipelines.stream.first_look import warn_about_values
from pipelines.stream.samples import SampleConfig
from pipelines.training import frame, supervised
from pipelines.training.starts import compare_pixels, keep_start, take_weights
from pipelines.training.supervised import SupervisedTask, SupervisedTraining
from pipelines.training.training import Result


@dataclass(frozen=True, kw_only=True)
class ClassificationTraining(SupervisedTraining[FinetuneConfig]):
    """A training whose validation images have labels."""

    val: LabelledManifest | None


class ClassificationTask(SupervisedTask[FinetuneConfig, ClassificationTraining]):
    """Fine-tune a pretrained model for classification, or train one from scratch."""

    name = "finetune"
    program = "beit finetune"
    config_type = FinetuneConfig
    presets = PRESETS
    model_type = Classifier
    figures = ("top1", "top5", "loss")

    def prepare(
        self, config: FinetuneConfig, *, preset: str, say: Callable[[str], None]
    ) -> ClassificationTraining:
        """Open labelled images, render the built-in scenes if none are given, and build the model once."""
        config = supervised.checked(config, job=self.name)
        compare_pixels(config, say=say)
        labelled = open_labelled(
            config, image_size=config.model.image_size, classes=config.classes, seed=config.seed, say=say
        )
        if config.data.train is not None:
            warn_about_values(labelled.source, config.view, say)
        train, val, classes, names = labelled.train, labelled.val, labelled.classes, labelled.class_names
        if val is not None and (line := _unjudged(val, classes, names)):
            say(line)
        total_steps = config.total_steps(train.total, config.optim.global_batch_size)
        config = config.with_warmup_counted(total_steps)
        supervised.check_warmup(config, total_steps, say=say)
        config = keep_start(config, say=say)
        return ClassificationTraining(
            job=self.name,
            config=config,
            preset=preset,
            source=labelled.source,
            samples=SampleConfig(
                seed=config.seed, view=config.view, patch_px=config.model.image_size, augment=config.augment
            ),
            tokenizer=None,
            make_objective=functools.partial(_make_objective, config, classes, names, total_steps),
            optim=config.optim,
            total_steps=total_steps,
            inputs=supervised.inputs_of(config, train, val),
            shown=supervised.PROGRESS,
            val=val,
            classes=classes,
            transfer=None if config.start is None else _build(config, classes, names)[1],
        )

    def evaluate(
        self,
        training: ClassificationTraining,
        folder: RunFolder,
        checkpoint: str,
        placement: Placement,
        step: int,
    ) -> dict[str, Any]:
        """Count right answers and confusions over all validation images."""
        if training.val is None:
            raise ValueError("there is no validation set to judge by")
        share, classes = training.config.centre, training.classes
        return evaluate(training.val, checkpoint, placement, share=share, step=step, classes=classes)

    def evaluation_line(self, found: Mapping[str, Any]) -> str:
        """Put accuracies and loss beside the majority-class baseline."""
        top5 = f"top-5 {found['top5']:.2%}, " if found["classes"] > 5 else ""
        baseline = f"commonest class {majority_share(found):.2%}"
        figures = f"top-1 {found['top1']:.2%} ({baseline}), {top5}loss {found['loss']:.3f}"
        return f"validation at step {found['step']:,}: {figures} {supervised.unusable_words(found)}"

    def sections(
        self, run: str, found: Sequence[dict[str, Any]], class_names: Sequence[str] | None
    ) -> list[Section]:
        """Validation curves, accuracies and the confusion matrix."""
        return classification_sections(found, class_names)

    def head(self, config: FinetuneConfig) -> str:
        """Name the pooling before the head."""
        return f"{config.pooling} pooling"

    def recipe_for(self, model: ModelConfig, kind: str) -> str:
        """Choose by the model's size; a classifier was fine-tuned already."""
        return recipe_for(model, kind)

    def begin(
        self, config: FinetuneConfig, start: str, preset: str, *, image_size: int | None = None
    ) -> FinetuneConfig:
        """Take the model's sizes; a classifier keeps the pooling that its head was trained with."""
        if image_size is None and preset.endswith("-384"):
            image_size = config.model.image_size
        config = super().begin(config, start, preset, image_size=image_size)
        saved = model_config(find_model(start))
        return replace(config, pooling=saved.head["pooling"]) if saved.kind == "classifier" else config


def finetune(
    config: FinetuneConfig,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train a classifier, judge it on the validation set, and write its run folder.

    The arguments are those of `pipelines.training.frame.run`.
    """
    return frame.run(ClassificationTask(), config, preset=preset, resume=resume, debug=debug, say=say)


def _unjudged(val: LabelledManifest, classes: int, names: tuple[str, ...] | None) -> str | None:
    """Warn of classes without a validation image."""
    missing = sorted(set(range(classes)) - set(val.labels.tolist()))
    if not missing:
        return None
    shown = ", ".join(names[number] if names else str(number) for number in missing[:3])
    return (
        f"warning: {len(missing):,} of {classes:,} classes have no validation image: "
        f"{shown}{', …' * (len(missing) > 3)}"
    )


def _build(
    config: FinetuneConfig, classes: int, names: tuple[str, ...] | None
) -> tuple[Classifier, Transfer | None]:
    """Build the classifier with its first weights; returns also the account of weights taken from the
    start.
    """
    model = Classifier(
        config.model,
        classes,
        pooling=config.pooling,
        class_names=names,
        head_scale=1.0 if config.start is None else FINETUNING_HEAD_SCALE,
        generator=torch.Generator().manual_seed(config.seed),
    )
    return model, take_weights(model, config.start)


def _make_objective(
    config: FinetuneConfig, classes: int, names: tuple[str, ...] | None, total_steps: int
) -> ClassifyObjective:
    return ClassifyObjective(
        _build(config, classes, names)[0],
        config.optim,
        config.view,
        config.mix,
        layer_decay=config.layer_decay,
        total_steps=total_steps,
        seed=config.seed,
        extra={"start": config.start},
    )


def command(arguments: list[str], debug: bool) -> None:
    """`beit finetune [RUN] [PRESET | CONFIG.json] [--option value …]`."""
    frame.run_command(ClassificationTask(), arguments, debug)


def rebuild_report(run: str) -> str:
    """Write the report of a run again; returns its path."""
    return frame.rebuild_report(ClassificationTask(), run)


if __name__ == "__main__":
    run_program(command)
