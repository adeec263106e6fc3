"""Tasks that learn from labels or annotations: they may begin with pretrained weights, and are judged on a
validation set at pauses and at the end.
"""

from __future__ import annotations

import shlex
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beit.config import ModelConfig, ViewConfig
from beit.errors import UserError
from beit.loading import load_model
from beit.objectives.metric_chart import MetricChart
from beit.objectives.optim import check_schedule
from beit.vit.checkpoints import read_config
from beit.vit.model import VitModel
from beit.vit.transfer import Transfer
from pipelines import storage
from pipelines.cluster.placement import Placement
from pipelines.command_line.options import JobCommand, parse_supervised
from pipelines.config.supervised import SupervisedConfig
from pipelines.config.workers import check_batch
from pipelines.datasets import checked_data, open_data, open_val
from pipelines.evaluation.every_image import FOLDER
from pipelines.evaluation.judge import Judge
from pipelines.presets.find import find_preset
from pipelines.reports.attention import IMAGES, attention_picture
from pipelines.reports.page import KeyFigure, Picture, Section, Text
from pipelines.reports.run import Report
from pipelines.runs import evaluations
from pipelines.runs.models import find_model, model_digest, model_files, view_of
from pipelines.runs.run_folder import RunFolder
from pipelines.sources import Manifest
from pipelines.stream.fixed_samples import centre
from pipelines.stream.samples import SampleConfig, draw_unseen
from pipelines.training.recipe import warmup_line, warmup_warnings
from pipelines.training.starts import for_start
from pipelines.training.task import Finished, Task
from pipelines.training.training import Training

Config = TypeVar("Config", bound=SupervisedConfig)

CHARTS = (
    MetricChart(title="Loss (nats)", curves=(("train/loss", "loss"),)),
    MetricChart(title="Accuracy", curves=(("train/accuracy", "accuracy"),), percent=True, from_zero=True),
)

PROGRESS = [
    ("loss {:.3f}", "train/loss"),
    ("acc {:.1%}", "train/accuracy"),
    ("lr {:.2e}", "optim/lr"),
    ("grad {:.2f}", "optim/grad_norm"),
]
"""The items of the progress line."""


@dataclass(frozen=True, kw_only=True)
class SupervisedTraining(Training[Config]):
    """A training with the set to judge it by."""

    val: Manifest | None
    """The validation images. None: the model is not judged."""

    classes: int

    transfer: Transfer | None
    """What was taken from the weights that the model begins with."""


Prepared = TypeVar("Prepared", bound=SupervisedTraining[Any])


class SupervisedTask(Task[Config, Prepared]):
    """Classification, segmentation, or another task with a head on the backbone."""

    model_type: type[VitModel]
    """The model that a checkpoint of the task holds."""

    figures: ClassVar[tuple[str, ...]]
    """Entries of an evaluation that become metrics of the run, as val/NAME."""

    @abstractmethod
    def evaluate(
        self, training: Prepared, folder: RunFolder, checkpoint: str, placement: Placement, step: int
    ) -> dict[str, Any]:
        """Judge a checkpoint on every validation image once; returns JSON types with "images" and
        "unusable".
        """

    @abstractmethod
    def evaluation_line(self, found: Mapping[str, Any]) -> str:
        """Put an evaluation into a line."""

    @abstractmethod
    def sections(
        self, run: str, found: Sequence[dict[str, Any]], class_names: Sequence[str] | None
    ) -> list[Section]:
        """Show the evaluations of a run in its report.

        Args:
            run: Run folder.
            found: Evaluations by step, as `evaluate` returned them.
            class_names: K names, if the checkpoint has them.
        """

    @abstractmethod
    def head(self, config: Config) -> str:
        """Name what the backbone ends in, for the summary."""

    def variant(self, config: Config) -> str:
        """Tell two ways of judging the same step apart; "" is the usual one."""
        return ""

    # -- the model to begin with -----------------------------------------------------------------------------

    @abstractmethod
    def recipe_for(self, model: ModelConfig, kind: str) -> str:
        """Choose the preset whose recipe suits a model; `kind` is its checkpoint's."""

    def begin(self, config: Config, start: str, preset: str, *, image_size: int | None = None) -> Config:
        """Adapt a configuration to the model that it begins with.

        Args:
            config: A preset's, or that of an earlier run.
            start: Run or checkpoint folder.
            preset: The recipe's name.
            image_size: Another one than the model's. None: the model's.
        """
        return for_start(config, start, image_size=image_size)

    def config_for(self, start: str | None, name: str) -> Config:
        """Return a preset's recipe, for the model of a run or checkpoint if one is given.

        Raises:
            UserError: For a name that is none.
        """
        recipe = self.preset(name)
        return recipe if start is None else self.begin(recipe, start, name)

    def preset(self, name: str) -> Config:
        """Return a preset's recipe, for a model from scratch."""
        return find_preset(
            self.presets, name, f"{name} is neither a run folder, nor a checkpoint folder, nor a preset"
        )

    def parse(self, arguments: list[str]) -> JobCommand | None:
        """Parse [RUN] [PRESET] and the options."""
        return parse_supervised(
            arguments,
            self.config_type,
            job=self.name,
            program=self.program or self.name,
            default=self.default_preset,
            presets=dict(self.presets),
            config_for=self.config_for,
            with_start=lambda config, start, name: self.begin(
                config, start, name, image_size=config.model.image_size
            ),
            recipe_for=self.recipe_for,
            explain=self.explain,
        )

    # -- the frame's questions -------------------------------------------------------------------------------

    def summary(self, training: Prepared) -> list[str]:
        """Model, weights, data, steps and warmup, derived numbers with their arithmetic."""
        config: Config = training.config
        data, size = training.source.manifest, config.model
        part = "" if config.data.fraction == 1 else f" (data.fraction {config.data.fraction:g})"
        seen = training.total_steps * training.global_batch_size
        start = f"from {config.start}" if config.start else "from scratch"
        return [
            f"model: ViT {size.dim}/{size.depth}/{size.heads}, {size.image_size} px, {size.position} "
            f"positions, {self.head(config)}, {start}",
            *(training.transfer.lines() if training.transfer else ()),
            f"data: {data.total:,} images, {training.classes:,} classes{part}",
            f"validation: {training.val.total:,} images"
            if training.val
            else "validation: none; give --data.val to have the model judged",
            f"steps: {training.total_steps:,} x {training.global_batch_size:,} images = "
            f"{seen / data.total:.3g} epochs",
            warmup_line(config.optim, data.total),
        ]

    def make_judge(self, training: Prepared, say: Callable[[str], None]) -> Judge | None:
        """Judge on the validation set, if there is one."""
        return None if training.val is None else _OnValidation(self, training)

    def report(self, finished: Finished[Config, Prepared]) -> Report:
        """Show the evaluations, and what the model attends to."""
        config, run = finished.config, finished.run
        with model_files(find_model(run)) as folder:
            saved, model = read_config(folder), load_model(folder, self.model_type)
        view = view_of(saved, run)
        pictures, notes = _attention(model, config, view, root=storage.parent(run))
        found = evaluations.read(run, FOLDER)
        return Report(
            key_figures=_key_figures(finished.metrics()),
            charts=CHARTS,
            sections=[*self.sections(run, found, saved.head.get("class_names")), *notes],
            pictures=pictures,
            commands=self._next_commands(config, run),
        )

    def _next_commands(self, config: Config, run: str) -> list[tuple[str, str]]:
        program = self.program_for(config)
        if program is None:
            return []
        again = f"{program} {shlex.quote(run + '/config.json')}"
        longer = f"--steps {2 * config.steps}" if config.steps else f"--epochs {2 * config.epochs:g}"
        commands = [("Twice as long", f"{again} {longer}")]
        if config.start is not None:
            what = "The same without pretraining (try several --optim.peak-lr)"
            commands.append((what, f"{again} --start None --layer-decay 1"))
        return commands


def _key_figures(metrics: Mapping[str, float]) -> list[KeyFigure]:
    """Loss and accuracy of the training views."""
    figures = []
    if (loss := metrics.get("train/loss")) is not None:
        figures.append(KeyFigure("loss", f"{loss:.3f}", "nats"))
    if (accuracy := metrics.get("train/accuracy")) is not None:
        figures.append(KeyFigure("accuracy", f"{accuracy:.1%}", "in training"))
    return figures


class _OnValidation(Judge):
    """Judges a supervised task's model on every validation image once."""

    folder = FOLDER

    def __init__(self, task: SupervisedTask[Any, Any], training: SupervisedTraining[Any]) -> None:
        self._task, self._training = task, training
        self.variant = task.variant(training.config)
        self.pauses = _pauses(training)

    def judge(self, folder: RunFolder, checkpoint: str, placement: Placement, step: int) -> dict[str, Any]:
        return self._task.evaluate(self._training, folder, checkpoint, placement, step)

    def line(self, found: Mapping[str, Any]) -> str:
        return self._task.evaluation_line(found)

    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        return {f"val/{name}": found[name] for name in self._task.figures}


def _pauses(training: SupervisedTraining[Any]) -> list[int]:
    """Steps after which the model is judged, before the last."""
    config = training.config
    if config.evaluate_epochs is None:
        return []
    images = config.evaluate_epochs * training.source.manifest.total
    every = max(1, round(images / config.optim.global_batch_size))
    return list(range(every, training.total_steps, every))


def checked(config: Config, *, job: str) -> Config:
    """Check a configuration as far as that goes without data, and return it with absolute paths.

    Raises:
        UserError: For the first mistake.
    """
    data = checked_data(config.data, image_size=config.model.image_size, job=job)
    check_batch(config.optim.global_batch_size, config.resources.worker_range)
    return replace(config, data=data, start=None if config.start is None else find_model(config.start))


def check_warmup(config: SupervisedConfig, total_steps: int, *, say: Callable[[str], None]) -> None:
    """Refuse a warmup as long as the run. Where `steps` sets the length, only warn.

    Raises:
        UserError: Naming a warmup that fits.
    """
    if config.steps is None:
        check_schedule(config.optim, total_steps)
    for line in warmup_warnings(config.optim, total_steps):
        say(line)


def inputs_of(config: SupervisedConfig, train: Manifest, val: Manifest | None) -> dict[str, str]:
    """Digests of the data and first weights that a run reads, by the option that names them."""
    start = "" if config.start is None else model_digest(config.start)
    return {"data.train": train.digest, "data.val": "" if val is None else val.digest, "start": start}


def unusable_words(found: Mapping[str, Any]) -> str:
    """The end of a line about an evaluation: how many images it is about."""
    bad = f", {len(found['unusable']):,} more could not be used" if found["unusable"] else ""
    return f"on {found['images']:,} images{bad}"


def _attention(
    model: VitModel, config: SupervisedConfig, view: ViewConfig, *, root: str
) -> tuple[list[Picture], list[Section]]:
    """The picture of what a model attends to, or a note where it cannot be drawn: no run is lost over it."""
    try:
        images = _some_images(config, view, root=root)
        why = "" if len(images) else "none of the images that were looked at can be decoded"
    except (UserError, OSError, pa.ArrowException) as error:
        images, why = None, str(error).partition("\n")[0]
    if images is None or why:
        return [], [Section("", [Text(f"Warning: no picture of what patches attend to: {why}")])]
    return [attention_picture(model, images, view)], []


def _some_images(config: SupervisedConfig, view: ViewConfig, *, root: str) -> NDArray[np.uint8]:
    """Centre squares of some validation images, or of training images where there are none."""
    size = config.model.image_size
    # Rendered scenes lie beside the run; the root that the run was given may have been relative to another
    # folder.
    config = replace(config, output=replace(config.output, root=root))
    val = open_val(config.data, root, image_size=size, say=lambda line: None)
    source = open_data(config, image_size=size, say=lambda line: None) if val is None else val
    samples = SampleConfig(seed=0, view=centre(view), patch_px=size)
    return draw_unseen(source.manifest, samples, IMAGES)["patch_view"]
