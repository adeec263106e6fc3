"""A training that is checked and ready to run, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from beit.config import OptimConfig, TokenizerConfig
from beit.objectives.base import Objective
from pipelines.config.jobs import JobConfig
from pipelines.config.workers import WorkerRange
from pipelines.sources import Source
from pipelines.stream.samples import Batch, Samples

Config = TypeVar("Config", bound=JobConfig)

MICRO_BATCH = 128
"""Images that a worker puts through the model at once, unless `resources.micro_batch_size` says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Training(Generic[Config]):
    """A job, ready to be run: everything is checked, nothing is started."""

    job: str
    config: Config
    """With absolute paths: it is saved with the run, which may be resumed from another folder."""

    preset: str
    source: Source
    samples: Samples
    tokenizer: TokenizerConfig | None
    """What tokenises in the stream. None: nothing does."""

    make_objective: Callable[[], Objective]
    """Builds the model and its loss, in each worker."""

    optim: OptimConfig
    total_steps: int

    inputs: dict[str, str]
    """Digests of what the job reads, by the option that names it. A resumed run must find the same."""

    shown: list[tuple[str, str]]
    """The items of the progress line: (format, names of metrics)."""

    fixed: Batch | None = None
    """Samples that are never trained on. The objective is measured on them after the steps of
    `evaluate_at`."""

    evaluate_at: tuple[int, ...] = ()

    check_workers: Callable[[WorkerRange], None] = lambda workers: None
    """Refuses numbers of workers that do not suit the job."""

    @property
    def global_batch_size(self) -> int:
        """Images of a step, over all workers."""
        return self.optim.global_batch_size


@dataclass(frozen=True)
class Result:
    """What a job leaves behind."""

    run: str
    """Run folder."""

    step: int

    metrics: dict[str, Any]
    """The last row of metrics. Those of the training are means over the last twentieth of the steps."""

    checkpoint: str
    """The last checkpoint."""
