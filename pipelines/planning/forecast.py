"""Forecast a pretraining from the cost of an image. Arithmetic only: no clock, no Ray, no model.

A stage's cost is in core-seconds or floating-point operations an image. On cores alone the stages share them;
on a cluster with GPUs every stage has machines of its own kind, and the slowest decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipelines.stream.rounds import MOST_SLOTS

Range = tuple[float, float]
"""Least and most."""

STAGES = ("train", "tokens", "views", "head")
"""That nodes are counted and paid for."""

STREAM_SHARE = 0.9
"""What Ray leaves to views and tokens of cores that do nothing else: an ingest of two actors reached 0.91 of
two bare processes' rate in the stream's prototype."""

RUN_SHARE = 0.8
"""What Ray leaves to the stages of cores that do all of a run, its driver and control included: fitted to
runs (docs/log/speed.md)."""

COORDINATOR_BLOCKS: Mapping[int, float] = {1: 230.0, 2: 90.0}
"""Blocks a second that pass one stream's coordinator on a core of its own, by the stream's operators (2: with
a tokenizer): the least measured (docs/log/clusters.md)."""

UTILISATION: Range = (0.4, 0.6)
"""Share of a GPU's peak that a ViT's training reaches, from a plain to a compiled step: an assumption, not a
measurement."""

AROUND_HOURS = 1 / 6
"""For which nodes are paid around the work: minutes to start, and the five idle ones after which they go
(clusters/). An assumption."""

DENSE_TFLOPS: Mapping[str, float] = {
    # Dense bf16 matrix arithmetic (fp16 where there is no bf16: T4, V100), of the makers' data sheets.
    "T4": 65,
    "V100": 125,
    "A10G": 70,
    "L4": 121,
    "L40S": 362,
    "A100": 312,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of an image: seconds on one core as measured, operations as counted."""

    view: float
    """Core-seconds to read, decode, crop and mask."""
    token: float
    """Core-seconds of the tokenizer. 0: tokens come from a cache, or are not predicted."""
    step: float
    """Core-seconds of its share of a training step."""
    token_flop: float
    """Operations of the tokenizer."""
    step_flop: float
    """Operations forward and backward."""
    moved: int
    """Bytes that pass the object store."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The GPU machines of a cluster, by stage, and its CPU machines."""

    train_gpu: str
    """Kind: a key of `DENSE_TFLOPS`, or the one that was measured."""
    train_gpus: int
    """GPUs of a training node."""
    train_cores: float
    """Cores of a training node. Those that the workers leave make views, if `views_beside`."""
    token_gpu: str | None
    """Kind of the tokenizers' own GPUs. None: they share the workers'."""
    token_gpus: int
    """GPUs of a tokenizer node."""
    view_cores: float
    """Cores of a CPU node."""
    most: Mapping[str, float] = field(default_factory=dict)
    """Limits: GPUs for "train" and "tokens", cores of CPU nodes for "views". A stage that is not named has
    none."""
    head_cores: float | None = None
    """Cores of the driver's node, on which all coordinators run. None: unknown."""
    most_nodes: float = math.inf
    """Most nodes of all stages together."""
    views_beside: bool = True
    """Whether training nodes may make views: not if other nodes are tagged for them."""
    worker_cpus: float = 1.0
    """Cores of a worker."""
    tokens: Literal["gpus", "spare gpus", "cores"] = "gpus"
    """Where tokenizers run: on GPUs as above, on GPUs that the workers leave, or on cores as views do."""
    supposed: tuple[str, ...] = ()
    """GPUs that the user named in place of the real ones, in words."""


@dataclass(frozen=True, kw_only=True)
class GpuRates:
    """Measured rates of one GPU."""

    kind: str
    train: float
    """Images trained on a second, with nothing else on the GPU."""
    tokens: float | None
    """Images tokenised a second, with nothing else on the GPU. None: nothing is tokenised."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The rate of a pretraining, and its limits."""

    rate: float
    """Images a second."""
    limits: dict[str, float]
    """Images a second that each resource would allow; the lowest is `rate`."""
    nodes: dict[str, int]
    """Nodes of each stage that the rate takes."""
    streams: int = 1
    """Streams that the workers are divided over."""
    wanted: int = 1
    """Coordinators, each with a core of the head, that would pass as much as everything else allows."""
    extrapolated: frozenset[str] = frozenset()
    """Kinds of GPUs whose speed is taken from data sheets."""

    @property
    def bottleneck(self) -> str:
        """The resource of which more would help."""
        return min(self.limits, key=lambda name: self.limits[name])


def on_cores(
    costs: Costs,
    *,
    cores: float,
    workers: int,
    worker_threads: int,
    tokenizers: int,
    tokenizer_threads: int,
    block_rows: int,
    streams: int = 1,
    head_cores: float | None = None,
) -> Forecast:
    """Forecast machines without GPUs: the stages share the cores, and none uses more than its own threads
    or than streams pass.
    """
    limits = {"all cores": RUN_SHARE * cores / (costs.view + costs.token + costs.step)}
    limits["training"] = min(cores, workers * worker_threads) / costs.step
    if costs.token:
        limits["tokens"] = min(cores, tokenizers * tokenizer_threads) / costs.token
    limits |= _stream_limits(costs, streams, block_rows, head_cores)
    return Forecast(rate=min(limits.values()), limits=limits, nodes={}, streams=streams)


def on_gpus(
    costs: Costs,
    machines: Machines,
    *,
    workers: int,
    utilisation: float,
    block_rows: int,
    streams: int | None = None,
    measured: GpuRates | None = None,
) -> Forecast:
    """Forecast a GPU cluster. Views and tokens grow until training, the streams, or the cluster is the
    limit.

    Args:
        costs: Of an image; what runs on cores in core-seconds, everything else in operations.
        machines: Kinds of nodes.
        workers: Training workers, a GPU each.
        utilisation: Share of a GPU's peak.
        block_rows: Images of a block.
        streams: That the workers are divided over. None: as many as it takes, at most one a worker.
        measured: What GPUs of its kind are counted with, in place of their peak.
    """
    at_hand, train_rate, token_rate = (
        (measured.kind, measured.train, measured.tokens) if measured else (None, None, None)
    )
    extrapolated: set[str] = set()

    def seconds(kind: str, flop: float, rate: float | None) -> float:
        """Of one GPU, for an image."""
        if kind == at_hand and rate is not None:
            return 1 / rate
        extrapolated.add(kind)
        return flop / (DENSE_TFLOPS[kind] * utilisation * 1e12)

    tokenized, on_cores = costs.token_flop > 0, machines.tokens == "cores"
    busy = seconds(machines.train_gpu, costs.step_flop, train_rate)
    if tokenized and machines.token_gpu is None and not on_cores:
        busy += seconds(machines.train_gpu, costs.token_flop, token_rate)
    fed_by_cores, on_core = (
        ("views and tokens", costs.view + costs.token) if on_cores else ("views", costs.view)
    )
    train_nodes = -(-workers // machines.train_gpus)
    beside = (
        0.0
        if not machines.views_beside
        else max(0.0, train_nodes * machines.train_cores - workers * machines.worker_cpus)
    )
    limits = {"training": workers / busy}
    own = 0.0  # Images a second of one of the tokenizers' own GPUs.
    if tokenized and machines.token_gpu is not None and not on_cores:
        own = 1 / seconds(machines.token_gpu, costs.token_flop, token_rate)
        if "tokens" in machines.most:
            limits[f"tokens, at most on {machines.most['tokens']:g} x {machines.token_gpu}"] = (
                machines.most["tokens"] * own
            )
    if "views" in machines.most:
        cores = beside + machines.most["views"]
        limits[f"{fed_by_cores}, at most on {cores:g} cores"] = STREAM_SHARE * cores / on_core
    if machines.most_nodes < math.inf:
        left = max(0.0, machines.most_nodes - train_nodes)
        a_node = own * machines.token_gpus if machines.tokens == "gpus" else 0.0
        limits[f"all nodes, at most {machines.most_nodes:g}"] = _divided(
            left, a_node, beside * STREAM_SHARE / on_core, machines.view_cores * STREAM_SHARE / on_core
        )
    fed = min(limits.values())
    passed, read = _stream_limits(costs, 1, block_rows, None).values()
    wanted = max(1, _ceil(fed / passed))
    # More streams than the head has cores pass no more blocks: they only have more reading tasks.
    passing = wanted if machines.head_cores is None else min(wanted, max(1, int(machines.head_cores)))
    streams = streams or min(workers, max(passing, _ceil(min(fed, passing * passed) / read)))
    limits |= _stream_limits(costs, streams, block_rows, machines.head_cores)
    rate = min(limits.values())
    nodes = {"train": train_nodes}
    if own and machines.tokens == "spare gpus":
        nodes["train"] = -(-(workers + _ceil(rate / own)) // machines.train_gpus)
    elif own:
        nodes["tokens"] = _ceil(rate / own / machines.token_gpus)
    nodes["views"] = _ceil((rate * on_core / STREAM_SHARE - beside) / machines.view_cores)
    return Forecast(
        rate=rate,
        limits=limits,
        nodes=nodes,
        streams=streams,
        wanted=wanted,
        extrapolated=frozenset(extrapolated),
    )


def _divided(nodes: float, tokens: float, beside: float, views: float) -> float:
    """Return images a second of these nodes, at their best division between tokens and views.

    Args:
        nodes: That there may be of both.
        tokens: Images a second of a node for tokens; 0: there are none.
        beside: Views a second that are made elsewhere.
        views: Views a second of a node for views.
    """
    if not tokens:
        return beside + nodes * views
    even = math.floor((beside + nodes * views) / (tokens + views))
    return max(
        min(number * tokens, beside + (nodes - number) * views)
        for number in (min(even, nodes), min(even + 1, nodes))
    )


def _stream_limits(costs: Costs, streams: int, block_rows: int, head_cores: float | None) -> dict[str, float]:
    """Return images a second that these streams pass: by blocks, each coordinator with at most one core of
    the head, and by their reading tasks, each with one core.
    """
    at_once, tasks = min(streams, head_cores or streams), streams * MOST_SLOTS
    coordinators = f"{streams} coordinator{'s' * (streams > 1)}" + (
        f" on {head_cores:g} cores of the head" if at_once < streams else ""
    )
    blocks = COORDINATOR_BLOCKS[2 if costs.token_flop else 1]
    return {coordinators: at_once * blocks * block_rows, f"{tasks} reading tasks": tasks / costs.view}


def money(forecast: Forecast, prices: Mapping[str, Range], *, hours: float) -> Range | None:
    """Return the price of nodes and head over these hours; None if the price of one is unknown.

    `AROUND_HOURS` are paid on top.
    """
    counts = {**forecast.nodes, "head": 1}
    wanted = {name: count for name, count in counts.items() if count}
    if any(name not in prices for name in wanted):
        return None
    low, high = (
        sum(count * prices[name][end] for name, count in wanted.items()) * (hours + AROUND_HOURS)
        for end in (0, 1)
    )
    return low, high


def moved_bytes(*, patch_px: int, token_px: int | None, patches: int, tokenized: bool) -> int:
    """Return the bytes of a sample in the object store: once from views to workers, twice with a tokenizer
    between.

    Args:
        patch_px: Side of the patch view, uint8.
        token_px: Side of the token view where it is another one.
        patches: Each has a bit of mask in a byte and, where tokens are predicted, an int16.
        tokenized: Whether the stream has a tokenizer.
    """
    keys = 3 * 8 + 1
    final = 3 * patch_px**2 + patches + 2 * patches + keys
    if not tokenized:
        return final
    return (
        final
        + 3 * patch_px**2
        + (3 * token_px**2 if token_px is not None and token_px != patch_px else 0)
        + patches
        + keys
    )


def checkpoint_bytes(parameters: int) -> int:
    """Return the size of weights and the optimizer's two moments, float32."""
    return 3 * 4 * parameters


def cache_bytes(*, images: int, patches: int, epochs: int) -> int:
    """Return the size of the tokens of these epochs, int16, before compression."""
    return 2 * patches * images * epochs


def _ceil(amount: float) -> int:
    return max(0, math.ceil(amount - 1e-9))  # As many nodes as there may be, not one more by rounding.
