"""What the configurations of all jobs have in common: run folder, length, seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from beit.checks import CommandConfig, FileName, NotNegativeFloat, NotNegativeInt, PositiveFloat, PositiveInt
from beit.errors import UserError
from pipelines.config.data import DataConfig
from pipelines.config.resources import ResourceConfig


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where the run folder lies, and whether MLflow has the run."""

    root: str = "runs"
    """Folder or bucket URI of the run folders."""

    name: FileName | None = None
    """Name of the run folder. None: preset, date and time."""

    mlflow: bool = True
    """Log to MLflow: `MLFLOW_TRACKING_URI`, or `mlflow.db` in the folder of the runs."""

    experiment: str = "beit"
    """MLflow experiment."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig(FolderConfig):
    """Where the run folder lies and how often it is written."""

    checkpoint_steps: PositiveInt = 1000
    """Steps between checkpoints; there is always one at the end."""

    checkpoint_minutes: PositiveFloat = 10.0
    """Minutes between checkpoints, where `checkpoint_steps` take longer."""

    keep_checkpoints: PositiveInt = 2
    """Checkpoints to keep; older ones are deleted."""

    log_seconds: NotNegativeFloat = 10.0
    """Seconds between progress lines."""


class HasData(Protocol):
    """The configuration of any job that reads images and writes a run folder."""

    free_on_resume: ClassVar[tuple[str, ...]]
    """Options, or their beginnings, that a resumed run may change."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def output(self) -> FolderConfig: ...


@dataclass(frozen=True, kw_only=True)
class JobConfig(CommandConfig):
    """What all jobs that train have in common."""

    free_on_resume: ClassVar[tuple[str, ...]] = ("resources.", "output.", "stop_at", "data.max_bad")
    """Who does the work, what is written, when to give up."""

    epochs: PositiveFloat = 1.0
    """Passes over the data, unless `steps` is given."""

    whole_steps: bool = False
    """Count an epoch as the steps that fit into it whole, as the authors' code does: 625 of 2,048 images for
    ImageNet-1k, not 625.6."""

    steps: PositiveInt | None = None
    """Optimizer steps. None: as many as `epochs` take."""

    stop_at: PositiveInt | None = None
    """Stop with a checkpoint after this step, though the schedule goes on: `--resume` continues. None:
    never."""

    seed: NotNegativeInt = 0
    """Every random choice comes from this number."""

    data: DataConfig = field(default_factory=DataConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def total_steps(self, rows: int, batch: int) -> int:
        """Optimizer steps of the whole run on data of `rows` rows; an epoch of less than one step counts as
        what it is.

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
