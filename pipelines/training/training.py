"""A training that is checked and ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from beit.config import TokenizerConfig
from beit.objectives.base import Objective
from pipelines.cluster.placement import Placement
from pipelines.config.jobs import JobConfig
from pipelines.config.workers import WorkerRange
from pipelines.runs import run_folder
from pipelines.sources import Source
from pipelines.stream.samples import Batch, Samples

# Ray keeps about 1 kB a block and operator until an execution ends, so a round has at most so many blocks, of
# 2 operators each.
BLOCKS_PER_ROUND = 50_000

# Images that a worker puts through the model at once, unless it is told otherwise.
MICRO_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Training:
    """A job, ready to be run: everything is checked, nothing is started."""

    job: str
    config: JobConfig
    preset: str
    source: Source
    samples: Samples
    tokenizer: TokenizerConfig | None
    make_objective: Callable[[], Objective]
    global_batch_size: int
    total_steps: int
    clip_norm: float | None
    inputs: dict[str, str]
    """Digests of what the job reads, by the option that names it."""
    shown: list[tuple[str, str]]
    """What the progress line shows: (format, names of metrics)."""
    fixed: Batch | None = None
    """Samples that are never trained on; the objective is measured on them after the steps of
    `evaluate_at`."""
    evaluate_at: tuple[int, ...] = ()
    check_workers: Callable[[WorkerRange], None] = lambda workers: None
    """Refuses numbers of workers that the job cannot do with."""
    ends_at: int | None = None
    """Of a part of a run, up to a pause: the step that the run ends at. None: that of `config`."""
    after_pause: bool = False
    """Of a part of a run: whether it goes on from a pause."""


@dataclass(frozen=True)
class Result:
    """What a job leaves behind."""

    run: str
    """Run folder."""
    step: int
    metrics: dict[str, Any]
    """The last row of metrics; those of the training are means over the last twentieth of the steps."""
    checkpoint: str
    """The last checkpoint."""


AtPause = Callable[[run_folder.RunFolder, Placement, str], Mapping[str, float]]
"""Judges a checkpoint (run folder, placement, checkpoint) and returns figures by `group/name`."""
