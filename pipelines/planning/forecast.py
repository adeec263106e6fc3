"""Forecast the speed of a pretraining from the cost of one image. Pure arithmetic: no clock, no Ray, no
model.

The cost of a stage is given in core-seconds or floating-point operations per image. Without GPUs, the stages
share the cores. On a cluster with GPUs, every stage has its own kind of machine, and the slowest stage sets
the speed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipelines.stream.rounds import MOST_SLOTS

Range = tuple[float, float]
"""The least and the most."""

STAGES = ("train", "tokens", "views", "head")
"""Stages whose nodes are counted and priced."""

STREAM_SHARE = 0.9
"""Share of a core's time that views and tokens get when the core does nothing else; Ray takes the rest. In
the stream's prototype, an ingest of two actors reached 0.91 of the rate of two bare processes."""

RUN_SHARE = 0.8
"""Share of a core's time that the stages get when the cores run everything, driver and control included; Ray
takes the rest. The value is fitted to runs (docs/log/speed.md)."""

COORDINATOR_BLOCKS: Mapping[int, float] = {1: 230.0, 2: 90.0}
"""Blocks per second that one stream's coordinator passes on a core of its own, by the number of the stream's
operators (2: with a tokenizer). The values are the lowest that were measured (docs/log/clusters.md)."""

UTILISATION: Range = (0.4, 0.6)
"""Share of a GPU's peak that the training of a ViT reaches: low for a plain step, high for a compiled one. An
assumption, not a measurement."""

AROUND_HOURS = 1 / 6
"""Hours for which nodes are paid in addition to the work: the minutes of their start, and the five idle
minutes before they are removed (clusters/). An assumption."""

DENSE_TFLOPS: Mapping[str, float] = {
    # TFLOP/s of dense bf16 matrix products (fp16 for T4 and V100, which lack bf16), from the makers' data
    # sheets.
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
    """Cost of one image: measured seconds on one core, and counted operations."""

    view: float
    """Core-seconds to read, decode, crop and mask an image."""
    token: float
    """Core-seconds of the tokenizer. 0: tokens come from a cache, or the target needs none."""
    step: float
    """Core-seconds of an image's share of a training step."""
    token_flop: float
    """Floating-point operations of the tokenizer."""
    step_flop: float
    """Floating-point operations of the training step, forward and backward."""
    moved: int
    """Bytes that pass through the object store."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The machines of a cluster by stage: those with GPUs, and those without."""

    train_gpu: str
    """Model of the training GPUs: a key of `DENSE_TFLOPS`, or of the GPU that was measured."""
    train_gpus: int
    """GPUs of a training node."""
    train_cores: float
    """Cores of a training node. Cores that the workers leave free make views, if `views_beside`."""
    token_gpu: str | None
    """Model of the GPUs that only tokenizers use. None: tokenizers share the workers' GPUs."""
    token_gpus: int
    """GPUs of a tokenizer node."""
    view_cores: float
    """Cores of a CPU node."""
    most: Mapping[str, float] = field(default_factory=dict)
    """Limits of the cluster: GPUs for "train" and "tokens", cores of CPU nodes for "views". A stage that is
    not listed has no limit."""
    head_cores: float | None = None
    """Cores of the driver's node, on which all coordinators run. None: unknown."""
    most_nodes: float = math.inf
    """Most nodes of all stages together."""
    views_beside: bool = True
    """Whether training nodes may make views: False if other nodes are tagged for them."""
    worker_cpus: float = 1.0
    """Cores of a worker."""
    tokens: Literal["gpus", "spare gpus", "cores"] = "gpus"
    """Where tokenizers run: on GPUs as described above, on GPUs that the workers leave free, or on cores like
    the views."""
    supposed: tuple[str, ...] = ()
    """GPUs that the user named in place of the real ones, in words."""


@dataclass(frozen=True, kw_only=True)
class GpuRates:
    """Measured rates of one GPU."""

    kind: str
    train: float
    """Images per second in training, with nothing else on the GPU."""
    tokens: float | None
    """Images per second of the tokenizer, with nothing else on the GPU. None: nothing is tokenised."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The speed of a pretraining, and what limits it."""

    rate: float
    """Images per second."""
    limits: dict[str, float]
    """Images per second that each resource would allow; the lowest is `rate`."""
    nodes: dict[str, int]
    """Number of nodes of each stage that the rate needs."""
    streams: int = 1
    """Number of streams that the workers are divided among."""
    wanted: int = 1
    """Number of coordinators, each with a core of the head, that would pass as many blocks as everything else
    allows."""
    extrapolated: frozenset[str] = frozenset()
    """Models of GPUs whose speed is taken from data sheets."""

    @property
    def bottleneck(self) -> str:
        """The resource that limits the rate."""
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
    """Forecast machines without GPUs: the stages share the cores, and no stage is faster than its own threads
    or the streams allow.
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
    """Forecast a GPU cluster. Nodes for views and tokens are added until training, the streams or the cluster
    is the limit.

    Args:
        costs: Cost of one image: in core-seconds for what runs on cores, in operations for everything else.
        machines: Kinds of nodes.
        workers: Training workers, a GPU each.
        utilisation: Share of a GPU's peak.
        block_rows: Images of a block.
        streams: Number of streams that the workers are divided among. None: as many as are needed, at most
            one per worker.
        measured: Measured rates of a GPU, which replace the peak for GPUs of the same model.
    """
    at_hand, train_rate, token_rate = (
        (measured.kind, measured.train, measured.tokens) if measured else (None, None, None)
    )
    extrapolated: set[str] = set()

    def seconds(kind: str, flop: float, rate: float | None) -> float:
        """Seconds per image on one GPU."""
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
    own = 0.0  # Images per second of one GPU that only tokenizers use.
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
    # More streams than cores of the head do not pass more blocks; they only add reading tasks.
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
    """Return the images per second of these nodes when they are divided best between tokens and views.

    Args:
        nodes: Most nodes for both together.
        tokens: Images per second of a node for tokens. 0: there are no tokens to compute.
        beside: Views per second that are made on other nodes.
        views: Views per second of a node for views.
    """
    if not tokens:
        return beside + nodes * views
    even = math.floor((beside + nodes * views) / (tokens + views))
    return max(
        min(number * tokens, beside + (nodes - number) * views)
        for number in (min(even, nodes), min(even + 1, nodes))
    )


def _stream_limits(costs: Costs, streams: int, block_rows: int, head_cores: float | None) -> dict[str, float]:
    """Return the images per second that these streams pass. They are limited by blocks (each coordinator uses
    at most one core of the head) and by reading tasks (each uses one core).
    """
    at_once, tasks = min(streams, head_cores or streams), streams * MOST_SLOTS
    coordinators = f"{streams} coordinator{'s' * (streams > 1)}" + (
        f" on {head_cores:g} cores of the head" if at_once < streams else ""
    )
    blocks = COORDINATOR_BLOCKS[2 if costs.token_flop else 1]
    return {coordinators: at_once * blocks * block_rows, f"{tasks} reading tasks": tasks / costs.view}


def money(forecast: Forecast, prices: Mapping[str, Range], *, hours: float) -> Range | None:
    """Return the price of all nodes and the head over these hours; None if one of the prices is unknown.

    `AROUND_HOURS` are added.
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
    """Return the bytes of a sample in the object store. It passes once from views to workers, and twice with
    a tokenizer in between.

    Args:
        patch_px: Side of the patch view, uint8.
        token_px: Side of the token view, if there is a separate one.
        patches: Number of patches. Each has a byte of mask and, if tokens are predicted, an int16.
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
    """Return the bytes of weights and the optimizer's two moments, float32."""
    return 3 * 4 * parameters


def cache_bytes(*, images: int, patches: int, epochs: int) -> int:
    """Return the bytes of the tokens of these epochs, int16, before compression."""
    return 2 * patches * images * epochs


def _ceil(amount: float) -> int:
    return max(0, math.ceil(amount - 1e-9))  # No more nodes than allowed: rounding must not add one.
