"""Classify: `beit finetune [RUN] [PRESET | CONFIG.json] [--option value …]`, or `python -m pipelines.finetune …` with the same options."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from beit.config import ViewConfig, from_dict
from pipelines import evaluations, runs, storage
from pipelines.finetune_presets import FinetuneConfig, finetune_preset
from pipelines.models import MODEL_FILES, find_model, keep_model, model_digest

if TYPE_CHECKING:
    from beit.classifier import Classifier
    from beit.finetuning import ClassifyObjective
    from beit.transfer import Transfer
    from pipelines.evaluate import Evaluation
    from pipelines.job import Result, Training
    from pipelines.placement import Placement
    from pipelines.sources.labels import LabelledManifest

JOB = "finetune"

SHOWN = [
    ("loss {:.3f}", "train/loss"),
    ("acc {:.1%}", "train/accuracy"),
    ("lr {:.2e}", "optim/lr"),
    ("grad {:.2f}", "optim/grad_norm"),
]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A fine-tuning that was checked."""

    training: Training
    train: LabelledManifest
    val: LabelledManifest | None
    classes: int
    transfer: Transfer | None
    """What was taken of the weights to begin with."""


def finetune(
    config: FinetuneConfig, *, preset: str = "custom", resume: str | None = None, debug: bool = False, say: Callable[[str], None] = print
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

    from pipelines.job import run_job, write_report_of

    if resume is None:
        runs.check_free(config)
    prepared = prepare(config, preset=preset, say=say)
    for line in summary(prepared):
        say(line)
    at_pause = functools.partial(_evaluate, prepared, say)
    folder, result = run_job(
        prepared.training,
        resume=resume,
        debug=debug,
        say=say,
        pauses=_pauses(prepared),
        at_pause=None if prepared.val is None else at_pause,
    )
    keep_model(result.checkpoint, folder.uri)
    report = write_report_of(prepared.training, folder, lambda: write_run_report(folder.uri), say=say)
    say(f"model: {result.run}/model")
    say(f"report: {report}")
    return result


def config_for(start: str | None, name: str) -> FinetuneConfig:
    """A preset's recipe for the model of a run or checkpoint; without one the preset as it is."""
    recipe = finetune_preset(name)
    if start is None:
        return recipe
    from beit.checkpoints import read_config
    from beit.transfer import finetuning_config

    with storage.local_copy(find_model(start), MODEL_FILES) as folder:
        saved = read_config(folder)
    model = finetuning_config(saved.model, drop_path=recipe.model.drop_path)
    view = from_dict(ViewConfig, saved.extra["view"]) if "view" in saved.extra else recipe.view
    if name.endswith("-384"):
        model = replace(model, image_size=recipe.model.image_size)
    return replace(recipe, start=start, model=model, view=replace(recipe.view, mean=view.mean, std=view.std))


def prepare(config: FinetuneConfig, *, preset: str, say: Callable[[str], None]) -> Prepared:
    """Check everything that can be checked without a cluster, and open the data; renders the built-in scenes if no data is given."""
    from beit.optim import check_schedule
    from pipelines.job import Training, check_batch
    from pipelines.labelled import check_labelled, open_labelled
    from pipelines.samples import SampleConfig

    check_labelled(config.data, image_size=config.model.image_size)
    check_batch(config.optim.global_batch_size, config.resources.workers)
    config = replace(config, data=config.data.absolute())
    start = None if config.start is None else find_model(config.start)
    config = replace(config, start=start)
    labelled = open_labelled(config, image_size=config.model.image_size, classes=config.classes, seed=config.seed, say=say)
    train, val, classes, names = labelled.train, labelled.val, labelled.classes, labelled.class_names
    total_steps = config.total_steps(train.total, config.optim.global_batch_size)
    optim = config.optim
    if config.warmup_epochs is not None:
        optim = replace(optim, warmup_steps=round(min(1.0, config.warmup_epochs / config.epochs) * total_steps))
    if config.steps is None:
        check_schedule(optim, total_steps)
    make_objective = functools.partial(_make_objective, replace(config, optim=optim), classes, names, total_steps)
    training = Training(
        job=JOB,
        config=config,
        preset=preset,
        source=labelled.source,
        samples=SampleConfig(seed=config.seed, view=config.view, patch_px=config.model.image_size, augment=config.augment),
        tokenizer=None,
        make_objective=make_objective,
        global_batch_size=config.optim.global_batch_size,
        total_steps=total_steps,
        clip_norm=config.optim.clip_norm,
        inputs={
            "data.train": train.digest,
            "data.val": "" if val is None else val.digest,
            "start": "" if start is None else model_digest(start),
        },
        shown=SHOWN,
    )
    transfer = None if start is None else _build(config, classes, names)[1]
    return Prepared(training=training, train=train, val=val, classes=classes, transfer=transfer)


def _build(config: FinetuneConfig, classes: int, names: tuple[str, ...] | None) -> tuple[Classifier, Transfer | None]:
    """The classifier with its first weights, and what was taken of others."""
    import torch

    from beit.classifier import FINETUNING_HEAD_SCALE, Classifier
    from beit.transfer import start_from_folder

    model = Classifier(
        config.model,
        classes,
        pooling=config.pooling,
        class_names=names,
        head_scale=1.0 if config.start is None else FINETUNING_HEAD_SCALE,
        generator=torch.Generator().manual_seed(config.seed),
    )
    if config.start is None:
        return model, None
    with storage.local_copy(config.start, MODEL_FILES) as folder:
        return model, start_from_folder(model, folder)


def _make_objective(config: FinetuneConfig, classes: int, names: tuple[str, ...] | None, total_steps: int) -> ClassifyObjective:
    from beit.finetuning import ClassifyObjective

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


def _pauses(prepared: Prepared) -> list[int]:
    """Steps after which the model is judged, before the last."""
    config = prepared.training.config
    assert isinstance(config, FinetuneConfig)
    if config.evaluate_epochs is None or prepared.val is None:
        return []
    every = max(1, round(config.evaluate_epochs * prepared.train.total / config.optim.global_batch_size))
    return list(range(every, prepared.training.total_steps, every))


def _evaluate(
    prepared: Prepared, say: Callable[[str], None], folder: runs.RunFolder, placement: Placement, checkpoint: str
) -> dict[str, float]:
    """Judge a checkpoint, unless that was done before the run was interrupted; returns the figures."""
    from pipelines.evaluate import FOLDER, conclude, evaluate, save_evaluation

    config, val = prepared.training.config, prepared.val
    assert isinstance(config, FinetuneConfig)
    assert val is not None
    step = runs.step_of(checkpoint)
    if evaluations.saved_at(folder.uri, FOLDER, step) is None:
        columns = evaluate(val, checkpoint, placement, share=config.centre)
        evaluation = conclude(val, columns, step=step, classes=prepared.classes)
        save_evaluation(folder.uri, evaluation)
        say(evaluation_line(evaluation))
    found = evaluations.saved_at(folder.uri, FOLDER, step) or {}
    return {f"val/{name}": found[name] for name in ("top1", "top5", "loss")}


def evaluation_line(evaluation: Evaluation) -> str:
    """The result in a line."""
    found = evaluation.result
    bad = f", {len(evaluation.undecodable):,} more could not be decoded" if evaluation.undecodable else ""
    return (
        f"validation at step {evaluation.step:,}: top-1 {found.top1:.2%}, top-5 {found.top5:.2%}, loss {found.loss:.3f} "
        f"on {found.images:,} images{bad}"
    )


def summary(prepared: Prepared) -> list[str]:
    """The run in a few lines, derived numbers with their arithmetic."""
    training = prepared.training
    config = training.config
    assert isinstance(config, FinetuneConfig)
    model, images = config.model, training.total_steps * training.global_batch_size
    lines = [
        f"model: ViT {model.dim}/{model.depth}/{model.heads}, {model.image_size} px, {model.position} positions, {config.pooling} pooling, "
        + (f"from {config.start}" if config.start else "from scratch"),
        *(prepared.transfer.lines() if prepared.transfer else ()),
        f"data: {prepared.train.total:,} images of {prepared.classes:,} classes"
        + ("" if config.data.fraction == 1 else f" (data.fraction {config.data.fraction:g})"),
        f"validation: {prepared.val.total:,} images" if prepared.val else "validation: none; give --data.val to have the model judged",
        f"steps: {training.total_steps:,} x {training.global_batch_size:,} images = {images / prepared.train.total:.3g} epochs",
    ]
    return lines


def rebuild_report(run: str) -> str:
    """Write the report of a run again from its folder; returns its path."""
    runs.saved_config(run, FinetuneConfig, job=JOB)
    return write_run_report(storage.absolute(run))


def write_run_report(run: str) -> str:
    """The report with what the evaluations found; returns its path."""
    from beit.checkpoints import read_config
    from pipelines.evaluate import FOLDER
    from pipelines.report import write_report
    from pipelines.report_classification import classification_section

    with storage.local_copy(find_model(run), MODEL_FILES) as folder:
        names = read_config(folder).head.get("class_names")
    config, _ = runs.saved_config(run, FinetuneConfig, job=JOB)
    again = f"beit finetune {shlex.quote(run)}/config.json"
    commands = [("Twice as long", f"{again} " + (f"--steps {2 * config.steps}" if config.steps else f"--epochs {2 * config.epochs:g}"))]
    if config.start is not None:
        commands.append(("The same without pretraining", f"{again} --start None --layer-decay 1"))
    return write_report(run, sections=[classification_section(evaluations.read(run, FOLDER), names)], commands=commands)


if __name__ == "__main__":
    from pipelines.cli import main

    main(["finetune", *sys.argv[1:]])
