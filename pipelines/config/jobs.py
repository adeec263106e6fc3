"""What the configurations of all jobs have in common: run folder, length, seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from beit.checks import CommandConfig, FileName, NotNegativeFloat, NotNegativeInt, PositiveFloat, PositiveInt
from beit.errors import UserError
from pipelines.config.data import DataConfig
from pipelines.config.resources import ResourceConfig
from pipelines.schemes import StoragePath


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where the run folder lies, and whether the run is logged to MLflow."""

    root: StoragePath = "runs"
    """Folder or bucket URI in which run folders are created."""

    name: FileName | None = None
    """Name of the run folder. None: the preset with date and time."""

    mlflow: bool = True
    """Log to MLflow: at `MLFLOW_TRACKING_URI` if that is set, otherwise in `mlflow.db` in `root`."""

    experiment: str = "beit"
    """Name of the MLflow experiment."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig(FolderConfig):
    """Where the run folder lies, and how often checkpoints and progress lines are written."""

    checkpoint_steps: PositiveInt = 1000
    """Most steps between checkpoints; there is always one at the end."""

    checkpoint_minutes: PositiveFloat = 10.0
    """Most minutes between checkpoints, for runs in which `checkpoint_steps` take longer."""

    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep; older ones are deleted."""

    log_seconds: NotNegativeFloat = 10.0
    """Seconds between progress lines."""


class HasData(Protocol):
    """The configuration of any job that reads images and writes a run folder."""

    free_on_resume: ClassVar[tuple[str, ...]]
    """Options that a resumed run may change; a name that ends in a dot stands for all options below it."""

    recorded_on_resume: ClassVar[tuple[str, ...]]
    """Options that a resumed run may change too, although they change its result: its config.json keeps a
    history of them."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def output(self) -> FolderConfig: ...


@dataclass(frozen=True, kw_only=True)
class JobConfig(CommandConfig):
    """Options that all training jobs share."""

    free_on_resume: ClassVar[tuple[str, ...]] = ("resources.", "output.", "stop_at", "data.max_bad")
    """Resources, output, and when to stop."""

    recorded_on_resume: ClassVar[tuple[str, ...]] = (
        "optim.peak_lr",
        "optim.min_lr",
        "optim.clip_norm",
        "optim.max_skipped",
    )
    """What mends a run that diverges."""

    epochs: PositiveFloat = 1.0
    """Passes over the training data. Ignored if `steps` is given."""

    whole_steps: bool = False
    """Count only whole steps in an epoch, as the authors' code does: 625 steps of 2,048 images for
    ImageNet-1k, not 625.6."""

    steps: PositiveInt | None = None
    """Length of the run in optimizer steps. None: as long as `epochs` says."""

    stop_at: PositiveInt | None = None
    """Write a checkpoint and stop after this step, before the schedule ends; `--resume` continues. None: run
    to the end."""

    seed: NotNegativeInt = 0
    """Seed of every random choice."""

    data: DataConfig = field(default_factory=DataConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def total_steps(self, rows: int, batch: int) -> int:
        """Optimizer steps of the whole run on data of `rows` rows. With `whole_steps`, an epoch shorter than
        one step still counts with the images that it has.

        Raises:
            UserError: If there are fewer images than one step takes.
        """
        epoch = rows // batch * batch if self.whole_steps and rows >= batch else rows
        steps = self.steps if self.steps is not None else int(self.epochs * epoch / batch + 1e-9)
        if steps < 1:
            raise UserError(
                (
                    f"--epochs {self.epochs:g} of {rows:,} images is less than one step of "
                    f"optim.global_batch_size={batch:,}"
                ),
                f"set --optim.global-batch-size {max(1, rows // 8)}, or more epochs",
            )
        return steps
