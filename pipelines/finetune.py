"""Classify: `beit finetune [RUN] [PRESET | CONFIG.json] [--option value …]`, or `python -m pipelines.finetune
…` with the same options.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from beit.classification.model import FINETUNING_HEAD_SCALE, Classifier
from beit.classification.objective import ClassifyObjective
from beit.vit.transfer import Transfer
from pipelines.cluster.placement import Placement
from pipelines.command_line.options import parse_supervised
from pipelines.command_line.run import run
from pipelines.config.supervised import FinetuneConfig
from pipelines.datasets import open_labelled
from pipelines.evaluation.classification import commonest, evaluate
from pipelines.presets.finetune import PRESETS, finetune_preset, recipe_for
from pipelines.reports.classification import classification_section
from pipelines.runs import run_folder
from pipelines.runs.models import find_model, model_config
from pipelines.sources.labels import LabelledManifest
from pipelines.stream.samples import SampleConfig
from pipelines.training import supervised
from pipelines.training.run import check_room
from pipelines.training.supervised import Prepared
from pipelines.training.training import Result, Training

JOB = "finetune"


def finetune(
    config: FinetuneConfig,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train a classifier, judge it on the validation set, and write its run folder.

    Args:
        config: The whole run.
        preset: Name that the run folder starts with when `output.name` is not given.
        resume: Run folder to go on with; `config` must be its own but for resources and output.
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
        figures=("top1", "top5", "loss"),
        line=evaluation_line,
        write_report=rebuild_report,
        resume=resume,
        debug=debug,
        say=say,
    )


def config_for(start: str | None, name: str) -> FinetuneConfig:
    """A preset's recipe for the model of a run or checkpoint; without one the preset as it is.

    A classifier goes on with the pooling that its head knows, whatever the recipe's.
    """
    recipe = finetune_preset(name)
    if start is None:
        return recipe
    return _begun(recipe, start, image_size=recipe.model.image_size if name.endswith("-384") else None)


def with_start(config: FinetuneConfig, start: str, name: str) -> FinetuneConfig:
    """The configuration of an earlier run, by the preset `name`, for another model to begin with, at the same
    image size.
    """
    return _begun(config, start, image_size=config.model.image_size)


def _begun(recipe: FinetuneConfig, start: str, *, image_size: int | None) -> FinetuneConfig:

    config = supervised.for_start(recipe, start, image_size=image_size)
    saved = model_config(find_model(start))
    return replace(config, pooling=saved.head["pooling"]) if saved.kind == "classifier" else config


def prepare(config: FinetuneConfig, *, preset: str, say: Callable[[str], None]) -> Prepared:
    """Check everything that can be checked without a cluster, and open the data; renders the built-in scenes
    if no data is given.
    """
    config = supervised.checked(config, job=JOB, say=say)
    supervised.compare_pixels(config, say=say)
    labelled = open_labelled(
        config, image_size=config.model.image_size, classes=config.classes, seed=config.seed, say=say
    )
    train, val, classes, names = labelled.train, labelled.val, labelled.classes, labelled.class_names
    if val is not None and (line := _unjudged(val, classes, names)):
        say(line)
    total_steps = config.total_steps(train.total, config.optim.global_batch_size)
    config = config.with_warmup_counted(total_steps)
    supervised.check_warmup(config, total_steps, say=say)
    config = supervised.keep_start(config, say=say)
    training = Training(
        job=JOB,
        config=config,
        preset=preset,
        source=labelled.source,
        samples=SampleConfig(
            seed=config.seed, view=config.view, patch_px=config.model.image_size, augment=config.augment
        ),
        tokenizer=None,
        make_objective=functools.partial(_make_objective, config, classes, names, total_steps),
        global_batch_size=config.optim.global_batch_size,
        total_steps=total_steps,
        clip_norm=config.optim.clip_norm,
        inputs=supervised.inputs_of(config, train, val),
        shown=supervised.SHOWN,
    )
    transfer = None if config.start is None else _build(config, classes, names)[1]
    return Prepared(training=training, val=val, classes=classes, transfer=transfer)


def _unjudged(val: LabelledManifest, classes: int, names: tuple[str, ...] | None) -> str | None:
    """A warning where classes have no image to be judged by."""
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
    """The classifier with its first weights, and what was taken of others."""
    model = Classifier(
        config.model,
        classes,
        pooling=config.pooling,
        class_names=names,
        head_scale=1.0 if config.start is None else FINETUNING_HEAD_SCALE,
        generator=torch.Generator().manual_seed(config.seed),
    )
    return model, supervised.take_weights(model, config.start)


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


def _judge(prepared: Prepared, run: str, checkpoint: str, placement: Placement, step: int) -> dict[str, Any]:

    config = prepared.training.config
    assert isinstance(config, FinetuneConfig)
    assert prepared.val is not None
    return evaluate(
        prepared.val, checkpoint, placement, share=config.centre, step=step, classes=prepared.classes
    )


def evaluation_line(found: dict[str, Any]) -> str:
    """The result in a line."""
    top5 = f"top-5 {found['top5']:.2%}, " if found["classes"] > 5 else ""
    figures = (
        f"top-1 {found['top1']:.2%} (commonest class {commonest(found):.2%}), {top5}loss {found['loss']:.3f}"
    )
    return f"validation at step {found['step']:,}: {figures} {supervised.unusable_words(found)}"


def summary(prepared: Prepared) -> list[str]:
    """The run in a few lines, derived numbers with their arithmetic."""
    config = prepared.training.config
    assert isinstance(config, FinetuneConfig)
    return prepared.summary(f"{config.pooling} pooling")


def rebuild_report(run: str) -> str:
    """Write the report of a run, also again, from its folder; returns its path."""
    return supervised.write_run_report(
        run, FinetuneConfig, JOB, lambda _, found, names: classification_section(found, names)
    )


def command(arguments: list[str], debug: bool) -> None:
    """`beit finetune [RUN] [PRESET | CONFIG.json] [--option value …]`."""
    parsed = parse_supervised(
        arguments,
        FinetuneConfig,
        job=JOB,
        presets=PRESETS,
        config_for=config_for,
        with_start=with_start,
        recipe_for=recipe_for,
    )
    if parsed is not None:
        finetune(parsed.config, preset=parsed.preset, resume=parsed.resume, debug=debug)


if __name__ == "__main__":
    run(command)
