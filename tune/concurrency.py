"""Compute how many trials run at a time, before anything starts, from the resources of a trial and of the
cluster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from beit.errors import UserError
from pipelines.cluster.placement import EPSILON, STAGES, Node, Placement, nodes_of, place
from pipelines.config.resources import ResourceConfig

Piece = tuple[str, float, float]
"""A process's stage, and the CPUs and GPUs that it needs on one of the machines that the stage may run on."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many trials run at a time, and the resources of each."""

    placement: Placement
    concurrent: int
    line: str
    """The arithmetic, for the user."""


def schedule(
    config: ResourceConfig,
    nodes: Sequence[Node],
    *,
    tokenize: bool,
    data_cpus: float | None = None,
    concurrent: int | None = None,
    what: str = "trial",
) -> Schedule:
    """Fit as many trials as the cluster has room for.

    A trial has one worker unless `resources.workers` says otherwise: side by side, trials use a cluster
    better than each alone.

    Args:
        config: Resources of one trial.
        nodes: The machines of the cluster, and those that an autoscaler may add.
        tokenize: Whether each trial has a tokenizer.
        data_cpus: Cores kept free for each trial's reading. None: those of one reading task.
        concurrent: Number of trials that the user wants at a time. None: all that fit.
        what: What a trial is called.

    Raises:
        UserError: If no trial fits, or fewer than the user wants (the message shows the arithmetic), or if
            the number of workers is a range.
    """
    if config.worker_range is not None and config.worker_range.elastic:
        raise UserError(
            f"resources.workers={config.workers}: trials side by side keep their number of workers",
            f"set --resources.workers {config.worker_range.fewest}",
        )
    one = replace(config, workers=config.workers or 1)
    placement = place(one, nodes, tokenize=tokenize)
    reading = max(data_cpus or 0.0, placement.streams * placement.view_cpus)
    pieces: list[Piece] = [("train", placement.worker_cpus, placement.worker_gpus)] * placement.workers
    if tokenize:
        pieces += [("tokens", placement.tokenizer_cpus, placement.tokenizer_gpus)] * placement.streams
    # Reading tasks are small and fit anywhere, so only their sum matters.
    pieces += [("views", placement.view_cpus, 0.0)] * max(
        1, math.ceil(reading / placement.view_cpus - EPSILON)
    )
    fitting = count(pieces, nodes)
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    needs = [
        (
            f"{placement.workers} worker{'s' * (placement.workers > 1)} x "
            f"{_amount(placement.worker_cpus, placement.worker_gpus)}"
        )
    ]
    if tokenize:
        tokenizers = f"{placement.streams} tokenizer{'s' * (placement.streams > 1)}"
        needs.append(f"{tokenizers} x {_amount(placement.tokenizer_cpus, placement.tokenizer_gpus)}")
    needs.append(f"{reading:g} CPU to read")
    total_cpus, total_gpus = sum(cpu for _, cpu, _ in pieces), sum(gpu for _, _, gpu in pieces)
    shares = [f"{cpus:g} CPU / {total_cpus:g} = {cpus / total_cpus:.2f}"] if total_cpus else []
    shares += [f"{gpus:g} GPU / {total_gpus:g} = {gpus / total_gpus:.2f}"] if total_gpus else []
    arithmetic = f"a {what} needs {' + '.join(needs)}; {', '.join(shares)}"
    wanted = concurrent or max(1, fitting)
    if fitting < wanted:
        raise UserError(
            (
                f"there is room for {fitting} {what}{'s' * (fitting != 1)} at a time, and {wanted} "
                f"{'was' if wanted == 1 else 'were'} wanted: "
            )
            + arithmetic,
            f"set --concurrent {fitting}"
            if fitting
            else "set less for --data-cpus and --resources.worker-cpus, or start more machines",
        )
    room = f"room for {fitting}" + (f", {wanted} wanted" if wanted != fitting else "")
    return Schedule(placement=placement, concurrent=wanted, line=f"{arithmetic}: {room}; {wanted} at a time")


def count(pieces: Sequence[Piece], nodes: Sequence[Node]) -> int:
    """Count the trials that fit side by side, with each piece of a trial on one machine."""
    left = [[node.cpus, node.gpus] for node in nodes]
    open_to = {
        stage: [left[place] for place, node in enumerate(nodes) if node in nodes_of(stage, nodes)]
        for stage in STAGES
    }
    trials = 0
    while pieces:
        for stage, cpus, gpus in pieces:
            fitting = [
                node for node in open_to[stage] if node[0] >= cpus - EPSILON and node[1] >= gpus - EPSILON
            ]
            if not fitting:
                return trials
            # Pieces without a GPU go to machines without GPUs, if possible, and to the one with the least
            # room left.
            tightest = min(fitting, key=lambda node: (node[1] if not gpus else 0.0, node[0]))
            tightest[0] -= cpus
            tightest[1] -= gpus
        trials += 1
    return trials


def _amount(cpus: float, gpus: float) -> str:
    return f"{gpus:g} GPU + {cpus:g} CPU" if gpus else f"{cpus:g} CPU"
