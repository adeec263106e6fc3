"""Compute the resources of every stage before anything starts. Ray would wait for ever for resources that no
machine has.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from beit.errors import UserError
from pipelines.config.resources import ResourceConfig
from pipelines.config.workers import WorkerRange

EPSILON = 1e-6

STAGES = ("train", "tokens", "views")
"""Names of the stages. A custom resource with such a name is a tag: if any node of a cluster has it, the
stage runs only on the nodes that have it."""

TAG = 0.001
"""Amount of a tag that each process requests: so small that cores and GPUs alone limit the processes on a
node."""


ELASTIC_SHARE = 0.6
"""Share of a machine's cores that each worker of an elastic group gets on CPUs: more than half, so that there
is one worker on a machine."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """The resources of one machine, which has joined the cluster or may be added by an autoscaler."""

    cpus: float
    gpus: float
    stages: frozenset[str] = frozenset()
    """Stages whose tags the machine has."""
    there: bool = True


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The resources of every stage. Stages ask for different amounts, so that Ray never fuses them."""

    workers: int
    """Number of training workers; the fewest of an elastic group."""
    most_workers: int
    """The most workers of an elastic group; `workers` if the group is fixed."""
    worker_cpus: float
    worker_gpus: float
    worker_threads: int
    view_cpus: float
    tokenizers: tuple[int, int]
    """Fewest and most tokenizer actors of all streams; (0, 0) without a tokenizer."""
    tokenizer_cpus: float
    tokenizer_gpus: float
    tokenizer_threads: int
    tokenizer_device: str
    streams: int = 1
    """Number of streams, each with at least one reading task and one tokenizer."""
    tags: frozenset[str] = frozenset()
    """Stages that have nodes of their own."""

    @property
    def worker_range(self) -> WorkerRange:
        """The fewest and the most workers."""
        return WorkerRange(self.workers, self.most_workers)

    @property
    def of_stream(self) -> Placement:
        """The share of one stream."""
        fewest, most = self.tokenizers
        return replace(self, tokenizers=(fewest // self.streams, most // self.streams), streams=1)

    def tag(self, stage: str) -> dict[str, float]:
        """The custom resource that a process of a stage requests; empty if the stage has no nodes of its
        own.
        """
        return {stage: TAG} if stage in self.tags else {}

    @property
    def device(self) -> str:
        """The device that the workers train on."""
        return "cuda" if self.worker_gpus else "cpu"

    def lines(self) -> list[str]:
        """Describe the placement, a line for each stage."""
        count = f"{self.workers} to {self.most_workers}" if self.worker_range.elastic else self.workers
        lines = [f"workers: {count} x {_amount(self.worker_cpus, self.worker_gpus)}"]
        if self.tokenizers[1]:
            low, high = self.tokenizers
            lines.append(
                f"tokenizers: {low if low == high else f'{low} to {high}'} x "
                f"{_amount(self.tokenizer_cpus, self.tokenizer_gpus)}"
            )
        return [*lines, f"views: {self.view_cpus:g} CPU a task, on what is left"]


def place(config: ResourceConfig, nodes: Sequence[Node], *, tokenize: bool) -> Placement:
    """Divide a cluster among workers, tokenizers and reading tasks.

    Args:
        config: What the user asked for.
        nodes: The machines of the cluster.
        tokenize: Whether the stream has a tokenizer stage.

    Raises:
        UserError: If the requested resources do not fit; the message shows the arithmetic.
    """
    if sum(node.cpus for node in nodes) == 0:
        raise UserError(
            f"the Ray cluster has no cores to work with: {_machines(nodes) or 'no machine'}",
            (
                "wait until its machines have joined (`ray status` lists them), or start Ray with --num-cpus "
                "above 0"
            ),
        )
    placement = _plan(config, nodes, tokenize=tokenize)
    if lack := _lack(placement, nodes):
        raise UserError(
            lack, _remedy(replace(config, workers=str(placement.worker_range)), nodes, tokenize=tokenize)
        )
    return placement


def nodes_of(stage: str, nodes: Sequence[Node]) -> list[Node]:
    """List the machines that a stage may run on: those with its tag, or all machines if none has it."""
    return [node for node in nodes if stage in node.stages] or list(nodes)


def _plan(config: ResourceConfig, nodes: Sequence[Node], *, tokenize: bool) -> Placement:
    """Fill in the amounts that were not given, such that every machine keeps room for reading."""
    trainers, tokenizing = nodes_of("train", nodes), nodes_of("tokens", nodes)
    cpus, gpus = sum(node.cpus for node in nodes), sum(int(node.gpus) for node in trainers)
    if config.device == "cuda" and gpus == 0:
        raise UserError(
            "resources.device=cuda, but Ray sees no GPU",
            "start Ray where the GPUs are, or set --resources.device cpu",
        )
    on_gpu = config.device != "cpu" and gpus > 0
    asked = config.worker_range
    workers = asked or (WorkerRange(gpus, gpus) if on_gpu else WorkerRange(1, 1))
    if on_gpu and asked is None and not any(int(node.gpus) for node in trainers if node.there):
        raise UserError(
            f"no GPU has joined yet, and the cluster may grow to {gpus} for training: how many are wanted?",
            f"set --resources.workers {gpus}, or fewer: they are paid for while the run lasts",
        )
    streams = config.streams or 1
    if streams > workers.fewest:
        raise UserError(
            f"resources.streams={streams} cannot each have a worker of {workers.fewest}",
            f"set --resources.streams {workers.fewest}",
        )
    own = (
        sum(int(node.gpus) for node in tokenizing) if any("tokens" in node.stages for node in nodes) else None
    )
    worker_gpus, tokenizer_gpus, actors = _share_gpus(
        config, workers, gpus, own, on_gpu=on_gpu, tokenize=tokenize
    )
    hosts = [node for node in trainers if int(node.gpus) or not on_gpu]
    largest = max(node.cpus for node in hosts)
    if workers.elastic and not on_gpu:
        cpus = largest  # A group that shrinks may end on one machine.
    cpus /= streams  # Each has a tokenizer and a reading task of its own.
    small = cpus < 8  # Few cores: stages take shares of a core, so that all of them run at once.
    share = min(1.0 if on_gpu else largest / 2, sum(node.cpus for node in hosts) / 2 / workers.fewest)
    if workers.elastic and not on_gpu:
        # One worker per machine: otherwise the workers could fill the machines that are left, with no room
        # for their stream.
        share = ELASTIC_SHARE * largest
    worker_cpus = config.worker_cpus or _hundredths(share)
    view_cpus = config.view_cpus or (_hundredths(cpus / 8) if small else 1.0)
    roomiest = largest if own is None else max(node.cpus for node in tokenizing)
    tokenizer_cpus = config.tokenizer_cpus or _hundredths(
        min(1.0 if tokenizer_gpus else 2.0, roomiest / 2.5, cpus / 7 if small else 2.0)
    )
    if config.device == "auto" and gpus == 0 and workers.fewest > 4 and worker_cpus < 1:
        raise UserError(
            (
                f"Ray sees no GPU, and resources.workers={workers} would train on {worker_cpus:g} CPU each "
                f"({_machines(nodes)})"
            ),
            "start Ray where the GPUs are; to insist on CPUs set --resources.device cpu",
        )
    if tokenize and not tokenizer_gpus:
        view_cpus, tokenizer_cpus = _told_apart(config, view_cpus, tokenizer_cpus)
    return Placement(
        workers=workers.fewest,
        most_workers=workers.most,
        streams=streams,
        worker_cpus=worker_cpus,
        worker_gpus=worker_gpus,
        # With more threads than reserved cores, threads would wait for each other while the stream's
        # processes run.
        worker_threads=max(1, int(worker_cpus)),
        view_cpus=view_cpus,
        tokenizers=(streams, max(streams, actors)) if tokenize else (0, 0),
        tokenizer_cpus=tokenizer_cpus,
        tokenizer_gpus=tokenizer_gpus,
        tokenizer_threads=max(1, round(tokenizer_cpus)),
        tokenizer_device="cuda" if tokenizer_gpus else "cpu",
        tags=frozenset(stage for stage in STAGES if any(stage in node.stages for node in nodes)),
    )


def _told_apart(config: ResourceConfig, view_cpus: float, tokenizer_cpus: float) -> tuple[float, float]:
    """Make the amounts of two stages differ. Ray would fuse stages with equal amounts, and views would then
    run in as few processes as there are tokenizers.
    """
    if view_cpus != tokenizer_cpus:
        return view_cpus, tokenizer_cpus
    if config.tokenizer_cpus and config.view_cpus:
        raise UserError(
            (
                f"resources.tokenizer_cpus={tokenizer_cpus:g} equals resources.view_cpus: Ray would run both "
                "stages in one process"
            ),
            f"set --resources.tokenizer-cpus {0.9 * tokenizer_cpus:g}",
        )
    return (0.9 * view_cpus, tokenizer_cpus) if config.tokenizer_cpus else (view_cpus, 0.9 * tokenizer_cpus)


def _share_gpus(
    config: ResourceConfig, workers: WorkerRange, gpus: int, own: int | None, *, on_gpu: bool, tokenize: bool
) -> tuple[float, float, int]:
    """Return the GPUs of a worker, the GPUs of a tokenizer, and the most tokenizers. A worker has a GPU to
    itself, or shares it with tokenizers only.

    Args:
        config: What the user asked for.
        workers: Training workers.
        gpus: GPUs of the machines that workers may run on.
        own: GPUs of the machines that only tokenizers use. None: tokenizers run on the workers' machines.
        on_gpu: Whether workers train on GPUs.
        tokenize: Whether the stream has a tokenizer.
    """
    if on_gpu and workers.fewest > gpus:
        raise UserError(
            f"resources.workers={workers} need a GPU each, but Ray has {gpus}",
            f"set --resources.workers {gpus}",
        )
    most = min(workers.most, gpus) if on_gpu else workers.most
    if own is not None:
        share = config.tokenizer_gpus if config.tokenizer_gpus is not None else float(own > 0)
        if tokenize and share and own == 0:
            raise UserError(
                f"resources.tokenizer_gpus={share:g}, but the tokenizers' machines have no GPU",
                "set --resources.tokenizer-gpus 0",
            )
        return (
            float(on_gpu),
            share if tokenize else 0.0,
            config.tokenizers or (own * int(1 / share + EPSILON) if share else most),
        )
    spare = gpus - most if on_gpu else gpus
    default = (1.0 if spare >= (config.tokenizers or 1) else 0.25) if on_gpu else 0.0
    share = default if config.tokenizer_gpus is None else config.tokenizer_gpus
    if not tokenize or not share:
        return float(on_gpu), 0.0, config.tokenizers or most
    if gpus == 0:
        raise UserError(
            f"resources.tokenizer_gpus={share:g}, but Ray sees no GPU",
            "set --resources.tokenizer-gpus 0, or leave it out",
        )
    a_gpu = int(1 / share + EPSILON)
    actors = config.tokenizers or spare * a_gpu or most
    if not on_gpu or actors <= spare * a_gpu:
        return float(on_gpu), share, actors
    # Workers of half a GPU or less could meet on one; NCCL refuses that.
    if share >= 0.5:
        needed = config.tokenizers or 1
        left = gpus - -(-needed // a_gpu)
        raise UserError(
            (
                f"{most} worker{'s' * (most > 1)} x 1 GPU + {needed} tokenizer{'s' * (needed > 1)} x "
                f"{share:g} GPU, but Ray has {gpus}"
            ),
            "set --resources.tokenizer-gpus 0.25 to share the workers' GPUs"
            + (
                f", or --resources.workers {WorkerRange(min(workers.fewest, left), left)}" if left > 0 else ""
            ),
        )
    return 1.0 - share, share, actors


def _lack(p: Placement, nodes: Sequence[Node]) -> str:
    """Say what can never be scheduled; "" if workers, one tokenizer and one reading task fit at the same
    time.
    """
    left: list[Node] = []  # `gpus`: what the emptiest GPU of the machine has left
    cards: list[list[float]] = []  # what each of its GPUs has left
    placed = 0
    trainers = nodes_of("train", nodes)
    for node in sorted(
        nodes, key=lambda node: -node.cpus
    ):  # Ray packs the workers, onto the largest machines first.
        here = min(
            p.most_workers - placed,
            int(node.cpus / p.worker_cpus + EPSILON),
            int(node.gpus) if p.worker_gpus else p.most_workers,
        )
        here = here if node in trainers else 0
        placed += here
        taken = here if p.worker_gpus else 0
        cards.append([1.0 - p.worker_gpus] * taken + [1.0] * (int(node.gpus) - taken))
        left.append(replace(node, cpus=node.cpus - here * p.worker_cpus, gpus=max(cards[-1], default=0.0)))
    count = max(placed, p.workers)
    needs = f"{count} worker{'s' * (count > 1)} x {_amount(p.worker_cpus, p.worker_gpus)}"
    if placed < p.workers:
        return f"{needs}: there is room for {placed} on {_machines(nodes)}"
    tokenizer = ("tokens", "tokenizer", p.tokenizers[0], p.tokenizer_cpus, p.tokenizer_gpus)
    for stage, name, number, cpus, gpus in (
        tokenizer,
        ("views", "reading task", p.streams, p.view_cpus, 0.0),
    ):
        what = f"{number} {name}{'s' * (number > 1)} x {_amount(cpus, gpus)}"
        before = list(left)
        for _ in range(number):
            fitting = [
                node
                for node in nodes_of(stage, left)
                if node.cpus >= cpus - EPSILON and node.gpus >= gpus - EPSILON
            ]
            if not fitting:
                return (
                    f"{what} {'have' if number > 1 else 'has'} no room: {needs} leave "
                    f"{_machines(before)} of {_machines(nodes)}"
                )
            tightest = min(fitting, key=lambda node: node.cpus)
            spot = next(spot for spot, node in enumerate(left) if node is tightest)
            if gpus:
                cards[spot][cards[spot].index(tightest.gpus)] -= gpus
            left[spot] = replace(tightest, cpus=tightest.cpus - cpus, gpus=max(cards[spot], default=0.0))
        if number:
            needs += f" + {what}"
    return ""


def _remedy(config: ResourceConfig, nodes: Sequence[Node], *, tokenize: bool) -> str:
    """Find the smallest change with which everything fits: amounts back to their defaults, fewer workers,
    or both.
    """
    given = [name for name in ("worker_cpus", "tokenizer_cpus", "view_cpus") if getattr(config, name)]
    defaults: dict[str, Any] = dict.fromkeys(given)
    asked = config.worker_range or WorkerRange(1, 1)
    fewer = [
        {"workers": str(WorkerRange(n, asked.most if asked.elastic else n))}
        for n in range(asked.fewest - 1, 0, -1)
    ]
    for change in [
        *({name: None} for name in given),
        defaults,
        *fewer,
        *({**defaults, **workers} for workers in fewer),
    ]:
        with contextlib.suppress(UserError):
            placement = _plan(replace(config, **change), nodes, tokenize=tokenize)
            if not _lack(placement, nodes):
                values = {name: change[name] or f"{getattr(placement, name):g}" for name in change}
                return "set " + " ".join(
                    f"--resources.{name.replace('_', '-')} {value}" for name, value in values.items()
                )
    return "start machines with more cores"


def _hundredths(amount: float) -> float:
    return max(0.01, int(100 * amount + EPSILON) / 100)


def _amount(cpus: float, gpus: float) -> str:
    return f"{gpus:g} GPU + {cpus:g} CPU" if gpus else f"{cpus:g} CPU"


def _machines(nodes: Sequence[Node]) -> str:
    counts = Counter(_amount(round(node.cpus, 4), round(node.gpus, 4)) for node in nodes)
    return ", ".join(f"{count} machine{'s' * (count > 1)} x {amount}" for amount, count in counts.items())
