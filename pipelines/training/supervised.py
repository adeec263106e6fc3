"""What classification and segmentation have in common: a start, a validation set, and pauses in which the
model is judged.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import nn

from beit.config import AbsoluteMode, ViewConfig
from beit.errors import UserError
from beit.loading import load_model
from beit.objectives.optim import check_schedule
from beit.vit.checkpoints import read_config
from beit.vit.transfer import Transfer, finetuning_config, start_from_folder
from pipelines import storage
from pipelines.cluster.placement import Placement
from pipelines.config.supervised import SupervisedConfig
from pipelines.config.workers import check_batch
from pipelines.datasets import checked_data, open_data, open_val
from pipelines.evaluation.every_image import FOLDER
from pipelines.reports.attention import IMAGES, attention_picture
from pipelines.reports.page import Picture
from pipelines.reports.run import write_report
from pipelines.runs import evaluations, run_folder
from pipelines.runs.models import (
    MODEL_FILES,
    find_model,
    holds_model,
    keep_model,
    model_config,
    model_digest,
    model_step,
    view_of,
)
from pipelines.sources import Manifest
from pipelines.stream.fixed_samples import centre
from pipelines.stream.samples import SampleConfig, draw_unseen
from pipelines.training.recipe import warmup_line, warmup_warnings
from pipelines.training.run import run_job, write_report_of
from pipelines.training.training import Result, Training

Config = TypeVar("Config", bound=SupervisedConfig)
Evaluations = Sequence[dict[str, Any]]
Names = Sequence[str] | None

STARTS = "starts"
"""Folder, beside the runs, of the weights that fine-tunings begin with."""

SHOWN = [
    ("loss {:.3f}", "train/loss"),
    ("acc {:.1%}", "train/accuracy"),
    ("lr {:.2e}", "optim/lr"),
    ("grad {:.2f}", "optim/grad_norm"),
]
"""What a progress line has of the metrics."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training that was checked, and the set to judge it by."""

    training: Training
    val: Manifest | None
    classes: int
    transfer: Transfer | None
    """What was taken of the weights to begin with."""

    def summary(self, model: str) -> list[str]:
        """The run in a few lines, derived numbers with their arithmetic; `model` says what the backbone ends
        in.
        """
        training, data = self.training, self.training.source.manifest
        config = training.config
        assert isinstance(config, SupervisedConfig)
        part = "" if config.data.fraction == 1 else f" (data.fraction {config.data.fraction:g})"
        size, seen = config.model, training.total_steps * training.global_batch_size
        return [
            (
                f"model: ViT {size.dim}/{size.depth}/{size.heads}, {size.image_size} px, {size.position} "
                f"positions, {model}, "
            )
            + (f"from {config.start}" if config.start else "from scratch"),
            *(self.transfer.lines() if self.transfer else ()),
            f"data: {data.total:,} images, {self.classes:,} classes{part}",
            f"validation: {self.val.total:,} images"
            if self.val
            else "validation: none; give --data.val to have the model judged",
            (
                f"steps: {training.total_steps:,} x {training.global_batch_size:,} images = "
                f"{seen / data.total:.3g} epochs"
            ),
            warmup_line(config.optim, data.total),
        ]


def for_start(recipe: Config, start: str, *, image_size: int | None = None, pixels: bool = True) -> Config:
    """A recipe for the model of a run or checkpoint.

    Args:
        recipe: Stays but for the model, its drop path apart, and for the mean and std of the pixels.
        start: Run or checkpoint folder.
        image_size: Another one than the model's. None: the same.
        pixels: Take mean and std from the model; else they are the recipe's.
    """
    with storage.local_copy(find_model(start), MODEL_FILES) as folder:
        saved = read_config(folder)
    model = finetuning_config(saved.model, image_size=image_size, drop_path=recipe.model.drop_path)
    theirs = view_of(saved, start) if pixels else recipe.view
    view = replace(recipe.view, mean=theirs.mean, std=theirs.std)
    return replace(recipe, start=start, model=model, view=view)


def checked(config: Config, *, job: str, say: Callable[[str], None]) -> Config:
    """The configuration with absolute paths, after what can be checked without opening data.

    Raises:
        UserError: For what cannot be.
    """
    data = checked_data(config.data, image_size=config.model.image_size, job=job)
    check_batch(config.optim.global_batch_size, config.resources.worker_range)
    return replace(config, data=data, start=None if config.start is None else find_model(config.start))


def compare_pixels(config: SupervisedConfig, *, say: Callable[[str], None]) -> None:
    """Warn where pixels are normalised in another way than the weights to begin with are used to."""
    if config.start is None:
        return
    theirs = view_of(model_config(config.start), config.start)
    ours = (*config.view.mean, *config.view.std)
    if any(abs(one - other) > 1e-3 for one, other in zip(ours, (*theirs.mean, *theirs.std), strict=True)):
        options = " ".join(
            f"--view.{name} {' '.join(f'{value:g}' for value in getattr(theirs, name))}"
            for name in ("mean", "std")
        )
        say(
            "warning: the weights to begin with are used to pixels of another mean and std; unless that "
            "is "
            f"meant, give {options}"
        )


def keep_start(config: Config, *, say: Callable[[str], None]) -> Config:
    """The same with weights to begin with that stay: of those that a training may still delete or rewrite a
    copy beside the runs.

    Workers read them whenever they start, also after a pause or a failure.
    """
    if config.start is None:
        return config
    step = model_step(config.start)
    if step is None or storage.name(storage.parent(storage.parent(config.start))) == STARTS:
        return config
    above = storage.parent(config.start)  # RUN/model, or RUN/attempt-1/step-00001000
    run = storage.name(storage.parent(above) if storage.name(above).startswith("attempt-") else above)
    place = storage.join(
        storage.absolute(config.output.root), STARTS, f"{run}-step-{step}-{model_digest(config.start)[:12]}"
    )
    kept = storage.join(place, "model")
    if not holds_model(kept):
        say(
            f"start: a copy of {config.start} goes into {place}: a training that goes on deletes or "
            "replaces its own"
        )
        keep_model(config.start, place)
    return replace(config, start=kept)


def check_warmup(config: SupervisedConfig, total_steps: int, *, say: Callable[[str], None]) -> None:
    """Refuse a warmup that leaves nothing of a run of so many epochs; of a run whose steps were asked for one
    by one, say it.

    Raises:
        UserError: Naming a warmup that fits.
    """
    if config.steps is None:
        check_schedule(config.optim, total_steps)
    for line in warmup_warnings(config.optim, total_steps):
        say(line)


def inputs_of(config: SupervisedConfig, train: Manifest, val: Manifest | None) -> dict[str, str]:
    """Digests of what a run reads, by the option that names it."""
    start = "" if config.start is None else model_digest(config.start)
    return {"data.train": train.digest, "data.val": "" if val is None else val.digest, "start": start}


def take_weights(
    model: nn.Module, start: str | None, *, absolute: AbsoluteMode = "bicubic"
) -> Transfer | None:
    """Put the weights to begin with into a model; returns what was taken, None without a start."""
    if start is None:
        return None
    with storage.local_copy(start, MODEL_FILES) as folder:
        return start_from_folder(model, folder, absolute=absolute)


def run_judged(
    prepared: Prepared,
    *,
    judge: Callable[[str, str, Placement, int], dict[str, Any]],
    way: str = "",
    figures: Sequence[str],
    line: Callable[[dict[str, Any]], str],
    write_report: Callable[[str], str],
    resume: str | None,
    debug: bool,
    say: Callable[[str], None],
) -> Result:
    """Train with pauses in which every validation image is judged once, and write model and report.

    Args:
        prepared: What to run.
        judge: (run folder, checkpoint, placement, step) -> what `evaluations.save` writes.
        way: How it judges, as in `evaluations.save`. What was judged in that way before an interruption is
            not judged again.
        figures: Entries of an evaluation that become metrics of the run, as val/NAME.
        line: An evaluation in words.
        write_report: Run folder -> path of its report.
        resume: Run folder to go on with.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.
    """

    def at_pause(folder: run_folder.RunFolder, placement: Placement, checkpoint: str) -> dict[str, float]:
        step = run_folder.step_of(checkpoint)
        found = evaluations.saved_at(folder.uri, FOLDER, step, way=way)
        if found is None:
            found = judge(folder.uri, checkpoint, placement, step)
            evaluations.save(folder.uri, FOLDER, step, found, way=way)
            say(line(found))
        return {f"val/{name}": found[name] for name in figures}

    judged = prepared.val is not None
    folder, result = run_job(
        prepared.training,
        resume=resume,
        debug=debug,
        say=say,
        pauses=_pauses(prepared) if judged else (),
        at_pause=at_pause if judged else None,
    )
    keep_model(result.checkpoint, folder.uri)
    report = write_report_of(prepared.training, folder, lambda: write_report(folder.uri), say=say)
    say(f"model: {result.run}/model")
    say(f"report: {report}")
    return result


def _pauses(prepared: Prepared) -> list[int]:
    """Steps after which the model is judged, before the last."""
    config = prepared.training.config
    assert isinstance(config, SupervisedConfig)
    if config.evaluate_epochs is None:
        return []
    every = max(
        1,
        round(
            config.evaluate_epochs * prepared.training.source.manifest.total / config.optim.global_batch_size
        ),
    )
    return list(range(every, prepared.training.total_steps, every))


def unusable_words(found: dict[str, Any]) -> str:
    """What a line about an evaluation ends with: the images that it is about."""
    bad = f", {len(found['unusable']):,} more could not be used" if found["unusable"] else ""
    return f"on {found['images']:,} images{bad}"


def write_run_report(
    run: str, kind: type[SupervisedConfig], job: str, section: Callable[[str, Evaluations, Names], str]
) -> str:
    """The report of a run of this job with what the evaluations found, and what its model attends to; returns
    its path.

    Args:
        run: Run folder.
        kind: The job's configuration.
        job: The job that the run must belong to.
        section: (run folder, evaluations, class names) -> HTML about them.

    Raises:
        UserError: If there is no run of this job, or it has no model yet.
    """
    config, _ = run_folder.saved_config(run, kind, job=job)
    uri = storage.absolute(run)
    with storage.local_copy(find_model(uri), MODEL_FILES) as folder:
        saved, model = read_config(folder), load_model(folder)
    view = view_of(saved, run)
    pictures, note = _attention(model, config, view, root=storage.parent(uri))
    return write_report(
        uri,
        sections=[section(uri, evaluations.read(uri, FOLDER), saved.head.get("class_names")), note],
        pictures=pictures,
        commands=next_commands(config, job, uri),
    )


def _attention(
    model: nn.Module, config: SupervisedConfig, view: ViewConfig, *, root: str
) -> tuple[list[Picture], str]:
    """What a model attends to in some of its images, and a note instead where they cannot be shown: no run is
    lost over a picture.
    """
    try:
        images = _some_images(config, view, root=root)
        why = "" if len(images) else "none of the images that were looked at can be decoded"
    except (UserError, OSError, pa.ArrowException) as error:
        images, why = None, str(error).partition("\n")[0]
    if images is None or why:
        return [], f"<p>Warning: no picture of what patches attend to: {html.escape(why)}</p>"
    return [attention_picture(model, images, view)], ""


def _some_images(config: SupervisedConfig, view: ViewConfig, *, root: str) -> NDArray[np.uint8]:
    """Centre squares of some images that the run is judged by, or else trained on; rendered scenes lie in
    `root`, beside the run.
    """
    size = config.model.image_size
    config = replace(
        config, output=replace(config.output, root=root)
    )  # What the run was given may have been relative to another place.
    val = open_val(config.data, root, image_size=size, say=lambda line: None)
    source = open_data(config, image_size=size, say=lambda line: None) if val is None else val
    return draw_unseen(source.manifest, SampleConfig(seed=0, view=centre(view), patch_px=size), IMAGES)[
        "patch_view"
    ]


def next_commands(config: SupervisedConfig, job: str, run: str) -> list[tuple[str, str]]:
    """(what for, command) pairs to go on with."""
    again = f"beit {job} {shlex.quote(run)}/config.json"
    commands = [
        (
            "Twice as long",
            f"{again} "
            + (f"--steps {2 * config.steps}" if config.steps else f"--epochs {2 * config.epochs:g}"),
        )
    ]
    if config.start is not None:
        commands.append(
            (
                "The same without pretraining, whose best optim.peak_lr is another: try several",
                f"{again} --start None --layer-decay 1",
            )
        )
    return commands
