"""Measure how many blocks per second the coordinator of one stream passes on. The stream is like a
training's, but its blocks cost almost nothing to make.

Part of `python -m pipelines.tools.benchmark coordinator`. The coordinator is a single process. If it shares
its cores with other processes, its CPU time per block tells what it could do with a core to itself, and the
clock tells what all of them did together.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

BLOCK_ROWS, ROW_BYTES = 64, 1024
BLOCKS_PER_TASK = 50


@dataclass(frozen=True, kw_only=True)
class CoordinatorResult:
    """One execution of a stream, start and end included."""

    consumers: int
    operators: int
    blocks: int
    seconds: float
    """Wall-clock seconds."""
    core_seconds: float
    """CPU time of the coordinator's process."""

    @property
    def of_a_core(self) -> float:
        """Blocks per second that a coordinator with a core to itself would pass."""
        return self.blocks / self.core_seconds

    def line(self) -> str:
        """The result as a line of text."""
        return (
            f"{self.operators} operator{'s' * (self.operators > 1)}, {self.consumers:>3} "
            f"worker{'s' * (self.consumers > 1)}: {self.blocks:,} blocks, {self.blocks / self.seconds:.0f} a "
            f"second by the clock; {1e3 * self.core_seconds / self.blocks:.1f} ms of the coordinator's core "
            f"each = {self.of_a_core:.0f} a second"
        )


def measure_coordinator(
    *, consumers: int, operators: int, blocks: int, rounds: int = 1
) -> list[CoordinatorResult]:
    """Pass blocks through the coordinator of a split stream on a connected Ray; the first execution only
    warms up.

    Args:
        consumers: Workers that the stream is split among.
        operators: 1: reading tasks alone. 2: reading tasks, followed by actors, like tokenizers.
        blocks: Blocks of each execution; rounded up to whole reading tasks.
        rounds: Number of executions to measure.
    """
    import ray
    import ray.data

    tasks = -(-blocks // BLOCKS_PER_TASK)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_ROWS * ROW_BYTES
    stream = ray.data.from_blocks([pa.table({"slot": [index]}) for index in range(tasks)])
    stream = stream.map_batches(
        functools.partial(_produce, blocks=BLOCKS_PER_TASK), batch_size=1, num_cpus=0.5
    )
    if operators == 2:
        stream = stream.map_batches(
            _Pass, compute=ray.data.ActorPoolStrategy(size=1), batch_size=None, num_cpus=0.4
        )
    before = _coordinators()
    splits = stream.streaming_split(consumers, equal=True)
    actor: Any = ray.remote(num_cpus=0)(_Consumer)
    workers = [actor.remote(split) for split in splits]

    def execute() -> None:
        rows = sum(ray.get([worker.consume.remote() for worker in workers]))
        # An equal split may leave a few rows.
        if not 0 <= tasks * BLOCKS_PER_TASK * BLOCK_ROWS - rows < consumers:
            raise RuntimeError(f"{rows:,} rows came of {tasks * BLOCKS_PER_TASK * BLOCK_ROWS:,}")

    execute()
    (pid,) = _coordinators() - before
    results = []
    for _ in range(rounds):
        started, spent = time.perf_counter(), _core_seconds(pid)
        execute()
        results.append(
            CoordinatorResult(
                consumers=consumers,
                operators=operators,
                blocks=tasks * BLOCKS_PER_TASK,
                seconds=time.perf_counter() - started,
                core_seconds=_core_seconds(pid) - spent,
            )
        )
    return results


class _Consumer:
    """A worker without a model."""

    def __init__(self, split: Any) -> None:
        self._split = split

    def consume(self) -> int:
        """Read all batches of an execution; returns the number of rows."""
        return sum(
            len(batch["slot"])
            for batch in self._split.iter_batches(
                batch_size=BLOCK_ROWS, batch_format="numpy", prefetch_batches=2
            )
        )


class _Pass:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def _produce(batch: dict[str, Any], *, blocks: int) -> Iterator[dict[str, Any]]:
    for _ in range(blocks):
        yield {
            "slot": np.repeat(batch["slot"], BLOCK_ROWS),
            "view": np.zeros((BLOCK_ROWS, ROW_BYTES), np.uint8),
        }


def _coordinators() -> set[int]:
    """List the processes of all live coordinators."""
    import ray
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address  # There may be other clusters on this machine.
    found = list_actors(address, filters=[("class_name", "=", "SplitCoordinator"), ("state", "=", "ALIVE")])
    return {actor.pid for actor in found if actor.pid is not None}


def _core_seconds(pid: int) -> float:
    """Return the CPU time of a process of this machine, with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
