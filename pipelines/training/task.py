"""A task: all that one job has of its own. `training/frame.py` is the frame around it, the same for all jobs.

Pretraining, classification, segmentation and the training of a tokenizer are tasks. A task of your own is a
subclass in a file of your own; `pipelines.training.frame.run` trains it, with the stream, the ledger, the
checkpoints, the report and MLflow of all others:

    class Rotation(Task[RotationConfig, Training[RotationConfig]]):
        name = "rotation"
        config_type = RotationConfig
        presets = {"quickstart": quickstart}

        def prepare(self, config, *, preset, say): ...  # opens the data, returns a Training

    run(Rotation(), quickstart())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from beit.errors import UserError
from pipelines.command_line.options import JobCommand, parse_job
from pipelines.evaluation.judge import Judge
from pipelines.presets.find import find_preset
from pipelines.reports.run import Report
from pipelines.runs import checkpoints
from pipelines.runs.metrics import finite_metrics, read_metrics
from pipelines.runs.models import keep_model
from pipelines.sources.kinds import is_own
from pipelines.training.training import Config, Result, Training

Prepared = TypeVar("Prepared", bound=Training[Any])
"""The `Training` that a task prepares; a subclass where the task needs more than all others do."""


@dataclass(frozen=True, kw_only=True)
class Finished(Generic[Config, Prepared]):
    """A run that has trained, to be reported on."""

    config: Config
    preset: str

    run: str
    """Run folder."""

    training: Prepared | None
    """What was run. None where the report of an earlier run is written again."""

    def checkpoint(self) -> str:
        """Return its last checkpoint.

        Raises:
            UserError: If it has none: it is too young, or its checkpoints were deleted.
        """
        found = checkpoints.latest_checkpoint(self.run)
        if found is None:
            raise UserError(
                f"{self.run} has no complete checkpoint",
                "wait for its first one (output.checkpoint_steps), or --resume it",
            )
        return found

    def metrics(self) -> dict[str, float]:
        """Return the last row of its metrics; those that are not finite are left out."""
        rows = read_metrics(self.run)
        return finite_metrics(rows[-1]) if rows else {}


class Task(ABC, Generic[Config, Prepared]):
    """One job that trains."""

    name: ClassVar[str]
    """The job, as in `beit NAME` and in the config.json of its runs."""

    config_type: type[Config]
    """Its configuration."""

    presets: Mapping[str, Callable[[], Config]]
    """Complete configurations by name. The docstring's first line describes one in `--help`."""

    default_preset: ClassVar[str] = "quickstart"

    program: ClassVar[str | None] = None
    """What its command line begins with, such as "beit pretrain" or "python rotation.py". None: it is run
    from Python."""

    @abstractmethod
    def prepare(self, config: Config, *, preset: str, say: Callable[[str], None]) -> Prepared:
        """Check everything that can be checked without a cluster, and open the data.

        Raises:
            UserError: For every mistake in the configuration or the data that can be seen before training.
        """

    def summary(self, training: Prepared) -> list[str]:
        """Describe the run in a few lines before it starts, derived numbers with their arithmetic."""
        return []

    def make_judge(self, training: Prepared, say: Callable[[str], None]) -> Judge | None:
        """Return what judges the model while it trains. None: nothing does."""
        return None

    def conclusion(self, finished: Finished[Config, Prepared], result: Result) -> Iterable[str]:
        """Say in lines what the run has reached."""
        return ()

    def keep(self, finished: Finished[Config, Prepared], result: Result) -> Iterable[str]:
        """Write what the run leaves for others beside its checkpoints: the model. Returns lines
        that say so.
        """
        keep_model(result.checkpoint, finished.run)
        return (f"model: {finished.run}/model",)

    def report(self, finished: Finished[Config, Prepared]) -> Report:
        """Collect what the report of its runs shows; by default, what is the same for all jobs."""
        return Report()

    def program_for(self, config: Config) -> str | None:
        """Return the program that can resume a run; the report offers it. None: only a program of the user's
        can, which registers the source of the images.
        """
        return None if is_own(config.data.train) else self.program

    def explain(self, config: Config, preset: str) -> Iterable[str]:
        """Say what `--dry-run` adds to the configuration, in lines."""
        return ()

    def preset(self, name: str) -> Config:
        """Return the configuration of a preset.

        Raises:
            UserError: For a name that is none, with the nearest one.
        """
        return find_preset(self.presets, name, f"{self.name} has no preset {name}")

    def parse(self, arguments: list[str]) -> JobCommand | None:
        """Parse the command line of the job; None after `--dry-run`."""
        return parse_job(
            arguments,
            self.config_type,
            job=self.name,
            program=self.program or self.name,
            default=self.default_preset,
            presets=dict(self.presets),
            preset=self.preset,
            explain=self.explain,
        )
