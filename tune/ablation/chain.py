"""A chain: one row of an ablation with one seed. It consists of a pretraining and the fine-tunings that start
from it. Its state is kept in the run folders of these jobs.

<ablation>/config.json                       the ablation's configuration
<ablation>/<row>-seed<n>-pretrain/job.json   how the job ended, next to the files of a run folder
<ablation>/<row>-seed<n>-classify/ …
<ablation>/<row>-seed<n>-segment/ …
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pipelines import storage
from pipelines.evaluation.every_image import FOLDER
from pipelines.runs import evaluations
from tune.ablation.table4 import RowName, Task

JOB_FILE = "job.json"

JobName = Literal["pretrain", "classify", "segment"]
PRETRAIN: JobName = "pretrain"

FIGURES: dict[Task, str] = {"classify": "top1", "segment": "mean_iou"}
"""The metric of an evaluation by which rows are compared in a task."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One row with one seed."""

    row: RowName
    seed: int
    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        """First part of the names of its folders."""
        return f"{self.row}-seed{self.seed}"

    @property
    def jobs(self) -> tuple[JobName, ...]:
        """The jobs in order: the fine-tunings start from the weights of the pretraining."""
        return (PRETRAIN, *self.tasks)

    def job_name(self, job: JobName) -> str:
        """The name of a job's folder."""
        return f"{self.name}-{job}"


@dataclass(frozen=True, kw_only=True)
class JobState:
    """The state of a job. "waiting": not started yet. "running": started, even if its process has been killed
    since.
    """

    status: Literal["waiting", "running", "finished", "failed"] = "waiting"
    error: str = ""
    """Why a failed job failed, in a line."""


def chains_of(rows: Sequence[RowName], seeds: Sequence[int], tasks: Sequence[Task]) -> list[Chain]:
    """All chains of an ablation: every row with the first seed, then with the next."""
    return [Chain(row=row, seed=seed, tasks=tuple(tasks)) for seed in seeds for row in rows]


def write_state(folder: str, chain: Chain, job: JobName, state: JobState) -> None:
    """Write the state of a job into its own folder."""
    storage.write_text(
        storage.join(folder, chain.job_name(job), JOB_FILE), json.dumps(asdict(state), indent=1) + "\n"
    )


def read_state(folder: str, chain: Chain, job: JobName) -> JobState:
    """Read the state of a job."""
    file = storage.join(folder, chain.job_name(job), JOB_FILE)
    return JobState(**json.loads(storage.read_text(file))) if storage.exists(file) else JobState()


def left_to_do(folder: str, chain: Chain) -> list[JobName]:
    """List the jobs of a chain that are not finished, failed ones included."""
    return [job for job in chain.jobs if read_state(folder, chain, job).status != "finished"]


def value_of(folder: str, chain: Chain, task: Task) -> float | None:
    """Return the result of a chain in a task, in per cent; None if the task is not finished."""
    if read_state(folder, chain, task).status != "finished":
        return None
    found = evaluations.read(storage.join(folder, chain.job_name(task)), FOLDER)
    last = [one for one in found if one["step"] == found[-1]["step"]]
    return 100 * float(last[0][FIGURES[task]])  # The first one is the usual variant of the evaluation.


def is_settled(folder: str, chain: Chain) -> bool:
    """Whether nothing more can be done for a chain: no job was interrupted, and jobs wait only for a
    pretraining that failed.
    """
    states = [read_state(folder, chain, job).status for job in chain.jobs]
    return "running" not in states and ("waiting" not in states or states[0] == "failed")
