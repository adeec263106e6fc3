"""A task: all that one job has of its own. The frame around it, the same for all jobs, is `training/run.py`.

Pretraining, classification, segmentation and the training of a tokenizer are tasks. A task of your own is a
subclass in a file of your own; `pipelines.training.run.run` trains it, with the stream, the ledger, the
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pipelines.cluster.placement import Placement
from pipelines.command_line.options import JobCommand, parse_job
from pipelines.presets.find import find_preset
from pipelines.reports.page import Picture, Section
from pipelines.runs.models import keep_model
from pipelines.runs.run_folder import RunFolder
from pipelines.training.training import Config, Result, Training

Ready = TypeVar("Ready", bound=Training[Any])
"""The `Training` that a task prepares; a subclass where the task needs more than all others do."""


@dataclass(frozen=True, kw_only=True)
class Finished(Generic[Config, Ready]):
    """A run that has a checkpoint, to be reported on."""

    config: Config
    preset: str

    run: str
    """Run folder."""

    checkpoint: str
    """Its last checkpoint."""

    training: Ready | None
    """What was run. None where the report of an earlier run is written again."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a task adds to the report of its run."""

    sections: Sequence[Section] = ()
    """Sections of its own, shown first."""

    pictures: Sequence[Picture] = ()
    """What the model makes of images, shown before the curves."""

    class_counts: Sequence[int] | None = None
    """How often each visual token occurred. None: how often training asked for it."""

    counted: str | None = None
    """Where `class_counts` were counted, in words."""

    commands: Sequence[tuple[str, str]] = ()
    """(what for, command) pairs: what to do next."""


class Judge(ABC):
    """Judges the models of a training at its pauses and at its end, when the whole cluster is free."""

    folder: str
    """Folder in the run folder that keeps the evaluations."""

    variant: str = ""
    """Tells two ways of judging the same step apart. What was judged in this one is not judged again."""

    pauses: Sequence[int] = ()
    """Steps after which training pauses at a checkpoint, before the last."""

    @abstractmethod
    def judge(self, folder: RunFolder, checkpoint: str, placement: Placement, step: int) -> dict[str, Any]:
        """Judge a checkpoint; returns JSON types."""

    @abstractmethod
    def line(self, found: Mapping[str, Any]) -> str:
        """Put what `judge` returned into a line."""

    @abstractmethod
    def figures(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Pick the figures that become metrics of the run, by `group/name`."""


class Task(ABC, Generic[Config, Ready]):
    """One job that trains."""

    name: ClassVar[str]
    """The job, as in `beit NAME` and in the config.json of its runs."""

    config_type: type[Config]
    """Its configuration."""

    presets: Mapping[str, Callable[[], Config]]
    """Complete configurations by name. The docstring's first line describes one in `--help`."""

    default_preset: ClassVar[str] = "quickstart"

    @abstractmethod
    def prepare(self, config: Config, *, preset: str, say: Callable[[str], None]) -> Ready:
        """Check everything that can be checked without a cluster, and open the data.

        Raises:
            UserError: For every mistake in the configuration or the data that can be seen before training.
        """

    def summary(self, training: Ready) -> list[str]:
        """Describe the run in a few lines before it starts, derived numbers with their arithmetic."""
        return []

    def judge(self, training: Ready, say: Callable[[str], None]) -> Judge | None:
        """Return what judges the model while it trains. None: nothing does."""
        return None

    def conclusion(self, finished: Finished[Config, Ready], result: Result) -> Iterable[str]:
        """Say in lines what the run has reached."""
        return ()

    def keep(self, finished: Finished[Config, Ready], result: Result) -> Iterable[str]:
        """Write what the run leaves for others beside its checkpoints: the model. Returns lines
        that say so.
        """
        keep_model(result.checkpoint, finished.run)
        return (f"model: {finished.run}/model",)

    def report(self, finished: Finished[Config, Ready]) -> Report:
        """Collect what the report shows beside what those of all jobs show."""
        return Report()

    def explain(self, config: Config, preset: str) -> Iterable[str]:
        """Say what `--dry-run` adds to the configuration, in lines."""
        return ()

    def preset(self, name: str) -> Config:
        """Return the configuration of a preset.

        Raises:
            UserError: For a name that is none, with the nearest one.
        """
        return find_preset(self.presets, name, f"there is no preset {name}")

    def parse(self, arguments: list[str]) -> JobCommand | None:
        """Parse the command line of the job; None after `--dry-run`."""
        return parse_job(
            arguments,
            self.config_type,
            job=self.name,
            default=self.default_preset,
            presets=dict(self.presets),
            preset=self.preset,
            explain=self.explain,
        )
