"""Classify: `beit finetune [RUN] [PRESET | CONFIG.json] [--option value …]`, or `python -m pipelines.finetune …` with the same options."""

from __future__ import annotations

import functools
import hashlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from beit.config import ViewConfig, from_dict
from beit.errors import UserError
from pipelines import runs, storage
from pipelines.config import MOST_SCENE_PX
from pipelines.finetune_presets import FinetuneConfig, finetune_preset
from pipelines.models import MODEL_FILES, find_model, keep_model

if TYPE_CHECKING:
    from beit.classifier import Classifier
    from beit.finetuning import ClassifyObjective
    from beit.transfer import Transfer
    from pipelines.evaluate import Evaluation
    from pipelines.job import Result, Training
    from pipelines.placement import Placement
    from pipelines.sources import Source
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

    from pipelines.evaluate import read_evaluations
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
    if found := [one for one in read_evaluations(folder.uri) if one["step"] == result.step]:
        result = replace(result, metrics={**result.metrics, **{f"val/{name}": found[0][name] for name in ("top1", "top5", "loss")}})
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
    from pipelines.job import Training, check_batch, open_data, with_absolute_data
    from pipelines.samples import SampleConfig
    from pipelines.sources.labels import LabelledManifest, class_count, label_source, take_fraction

    if config.data.tokens is not None:
        raise UserError(f"data.tokens={config.data.tokens}: classification reads no tokens", "leave out --data.tokens")
    if config.data.train is None and config.model.image_size > MOST_SCENE_PX:
        raise UserError(
            f"data.train is not given, and the built-in scenes are too small a data set for images of {config.model.image_size} px",
            "set --data.train to labelled images, and --data.val; beit finetune quickstart runs on the scenes",
        )
    check_batch(config.optim.global_batch_size, config.resources.workers, config.resources.most_workers)
    config = with_absolute_data(config)
    if config.data.val is not None:
        config = replace(config, data=replace(config.data, val=storage.absolute(config.data.val)))
    start = None if config.start is None else find_model(config.start)
    config = replace(config, start=start)
    source = label_source(open_data(config, image_size=config.model.image_size, say=say), column=config.data.label, classes=config.classes)
    assert isinstance(source.manifest, LabelledManifest)
    classes, names = class_count(source.manifest, config.classes), source.manifest.class_names
    train = take_fraction(source.manifest, config.data.fraction, config.seed)
    val: LabelledManifest | None = None
    if (found := _open_val(config, say)) is not None:
        labelled = label_source(found, option="data.val", column=config.data.label, classes=classes, class_names=names).manifest
        assert isinstance(labelled, LabelledManifest)
        val = labelled
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
        source=replace(source, manifest=train),
        samples=SampleConfig(seed=config.seed, view=config.view, patch_px=config.model.image_size, augment=config.augment),
        tokenizer=None,
        make_objective=make_objective,
        global_batch_size=config.optim.global_batch_size,
        total_steps=total_steps,
        clip_norm=config.optim.clip_norm,
        inputs={"data.train": train.digest, "data.val": "" if val is None else val.digest, "start": _digest(start)},
        shown=SHOWN,
    )
    transfer = None if start is None else _build(config, classes, names)[1]
    return Prepared(training=training, train=train, val=val, classes=classes, transfer=transfer)


def _open_val(config: FinetuneConfig, say: Callable[[str], None]) -> Source | None:
    from pipelines.scenes import write_scenes
    from pipelines.sources import open_source

    if config.data.val is not None:
        return open_source(config.data.val, option="data.val", split="val")
    if config.data.train is not None:
        return None
    # Scenes behind those that are trained on, of the same seed: never the same ones.
    first, images, side = config.data.scenes, config.data.val_scenes, config.model.image_size
    folder = storage.join(config.output.root, "scenes", f"{images}-images-after-{first}-{side}px")
    if not storage.exists(storage.join(folder, "complete")):
        say(f"data: rendering {images:,} scenes of {side} px for validation into {folder}")
        write_scenes(folder, images=images, seed=0, image_size=side, first=first, split="val")
        storage.write_text(storage.join(folder, "complete"), "")
    return open_source(folder, option="data.val")


def _digest(start: str | None) -> str:
    if start is None:
        return ""
    return hashlib.blake2b(storage.read_bytes(storage.join(start, MODEL_FILES[0])), digest_size=16).hexdigest()


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


def _evaluate(prepared: Prepared, say: Callable[[str], None], folder: runs.RunFolder, placement: Placement, checkpoint: str) -> None:
    """Judge a checkpoint, unless that was done before the run was interrupted."""
    from pipelines.evaluate import conclude, evaluate, read_evaluations, save_evaluation

    config, val = prepared.training.config, prepared.val
    assert isinstance(config, FinetuneConfig)
    assert val is not None
    step = runs.step_of(checkpoint)
    if step in {one["step"] for one in read_evaluations(folder.uri)}:
        return
    columns = evaluate(val, checkpoint, placement, share=config.centre)
    evaluation = conclude(val, columns, step=step, classes=prepared.classes)
    save_evaluation(folder.uri, evaluation)
    say(evaluation_line(evaluation))


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
    from pipelines.evaluate import read_evaluations
    from pipelines.report import write_report
    from pipelines.report_classification import classification_section

    with storage.local_copy(find_model(run), MODEL_FILES) as folder:
        names = read_config(folder).head.get("class_names")
    config, _ = runs.saved_config(run, FinetuneConfig, job=JOB)
    again = f"beit finetune {shlex.quote(run)}/config.json"
    commands = [("Twice as long", f"{again} " + (f"--steps {2 * config.steps}" if config.steps else f"--epochs {2 * config.epochs:g}"))]
    if config.start is not None:
        commands.append(("The same without pretraining", f"{again} --start None --layer-decay 1"))
    return write_report(run, sections=[classification_section(read_evaluations(run), names)], commands=commands)


if __name__ == "__main__":
    from pipelines.cli import main

    main(["finetune", *sys.argv[1:]])
