"""Format what `beit plan` prints from the measurements and forecasts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from beit.errors import UserError
from pipelines.cluster.nodes import cores_here
from pipelines.cluster.placement import Placement
from pipelines.planning import forecast
from pipelines.planning.config import PlanConfig
from pipelines.planning.forecast import DENSE_TFLOPS, STAGES, UTILISATION, Costs, Forecast, Machines, Range
from pipelines.planning.machines import with_tokenizers
from pipelines.planning.rates import Rates
from pipelines.runs.progress import duration
from pipelines.stream.graph import block_rows
from pipelines.stream.rounds import MOST_SLOTS

MULTIPLES = (1, 2, 4, 8)
CACHED_EPOCHS = (1, 10, 50)


def cluster_name(config: PlanConfig) -> str:
    """Name the cluster that has the GPUs."""
    return config.cluster or "the cluster"


def measured_lines(rates: Rates, where: str) -> Iterator[str]:
    """Format the cost of an image on a core, and on the GPU of this machine."""
    costs = rates.costs
    yield f"measured {where}: {rates.machine}"
    if rates.load > rates.cores:
        yield (
            f"warning: load {rates.load:.0f} on {rates.cores} cores: other work uses them, and the times "
            "below are those of an idle machine"
        )
    stages = {"views": costs.view, "tokens": costs.token, "training": costs.step}
    shown = {name: seconds for name, seconds in stages.items() if seconds}
    yield "images/s on one core: " + ", ".join(
        f"{name} {1 / seconds:,.3g}" for name, seconds in shown.items()
    )
    yield (
        f"an image: {' + '.join(f'{1e3 * seconds:.3g}' for seconds in shown.values())} = "
        f"{1e3 * sum(shown.values()):.3g} ms of a core; training {costs.step_flop / 1e9:.4g} GFLOP"
        + (f", tokens {costs.token_flop / 1e9:.4g} GFLOP" if costs.token_flop else "")
    )
    if rates.gpu:
        tokens = f", or tokenises {rates.gpu.tokens:,.0f}" if rates.gpu.tokens else ""
        yield f"one {rates.gpu.kind}: trains on {rates.gpu.train:,.0f} images/s{tokens}"


def on_this_kind(
    config: PlanConfig, costs: Costs, placement: Placement, *, cores: float, machines: int
) -> Forecast:
    """Forecast several machines like this one, each with the same workers and tokenizers."""
    workers = machines * placement.workers
    return forecast.on_cores(
        costs,
        cores=machines * cores,
        workers=workers,
        block_rows=block_rows(max(1, config.optim.global_batch_size // workers)),
        streams=placement.streams,
        head_cores=cores_here(),
        worker_threads=placement.worker_threads,
        tokenizers=machines * placement.tokenizers[1],
        tokenizer_threads=placement.tokenizer_threads,
    )


def here_lines(
    config: PlanConfig, costs: Costs, placement: Placement, *, cores: float, seen: int, one: str
) -> Iterator[str]:
    """Format the time on this machine, and on several like it, without GPUs."""
    for machines in MULTIPLES:
        found = on_this_kind(config, costs, placement, cores=cores, machines=machines)
        times = one if machines == 1 else f"{machines} of them"
        workers = machines * placement.workers
        if left_out := _undivided(config, workers):
            yield f"{times} ({workers} workers): {left_out}"
            continue
        yield (
            f"{times} ({workers} workers, {machines * cores:g} cores): {_speed(found.rate, seen)}; "
            f"limited by {found.bottleneck}"
        )
    total = costs.view + costs.token + costs.step
    yield (
        f"of a core's time: views {costs.view / total:.0%}, tokens {costs.token / total:.0%}, training "
        f"{costs.step / total:.0%}; assumed: Ray leaves {forecast.RUN_SHARE:.0%} of the cores to them"
    )


def on_cluster(
    config: PlanConfig, rates: Rates, machines: Machines, workers: int, utilisation: float
) -> Forecast:
    """Forecast a number of workers on GPUs.

    Raises:
        UserError: If a stage has nothing to run on.
    """
    found = forecast.on_gpus(
        rates.costs,
        with_tokenizers(machines, config.resources, workers=workers),
        workers=workers,
        utilisation=utilisation,
        block_rows=block_rows(config.optim.global_batch_size // workers),
        streams=config.resources.streams,
        measured=rates.gpu,
    )
    if not found.rate:
        raise UserError(
            f"the cluster has nothing for one of the stages: {found.bottleneck}",
            "give it nodes for that, such as CPU nodes for views",
        )
    return found


def cluster_lines(
    config: PlanConfig,
    rates: Rates,
    machines: Machines,
    *,
    workers: int,
    seen: int,
    prices: dict[str, Range],
    own: bool,
) -> Iterator[str]:
    """Format time, limits, nodes and costs on GPUs, for growing numbers of workers."""
    if machines.supposed:
        yield f"warning: the plan assumes other GPUs than the machines have: {', '.join(machines.supposed)}"
    first = on_cluster(config, rates, machines, workers, UTILISATION[1])
    if first.extrapolated:
        known = ", ".join(f"{kind} {DENSE_TFLOPS[kind]:g}" for kind in sorted(first.extrapolated))
        yield (
            f"extrapolated, not measured: TFLOP/s of the data sheets ({known}) x {UTILISATION[0]:.0%} to "
            f"{UTILISATION[1]:.0%}; views from the cores that were measured"
        )
    if machines.head_cores is not None and not own:
        yield f"head: {machines.head_cores:g} cores, for the coordinators of at most as many streams"
    if (
        rates.gpu
        and rates.costs.token_flop
        and with_tokenizers(machines, config.resources, workers=workers).token_gpu is None
    ):
        yield (
            "on a GPU that workers and tokenizers share, the measured times of both are added; together "
            "they were not measured"
        )
    for multiple in MULTIPLES:
        count = multiple * workers
        if left_out := _undivided(config, count):
            yield f"{count:,} x {machines.train_gpu}: {left_out}"
            continue
        if count > (most := machines.most.get("train", count)):
            holds = (
                f"this machine has {most:g}"
                if own
                else f"{cluster_name(config)} may have {most:g} (max_workers)"
            )
            yield f"{count:,} x {machines.train_gpu}: {holds}"
            break
        if -(-count // machines.train_gpus) >= machines.most_nodes and count > workers:
            yield (
                f"{count:,} x {machines.train_gpu}: {cluster_name(config)} may have {machines.most_nodes:g} "
                "nodes in all (max_workers)"
            )
            break
        slow, fast = (on_cluster(config, rates, machines, count, utilisation) for utilisation in UTILISATION)
        nodes = ", ".join(f"{number} {stage}" for stage, number in fast.nodes.items() if number)
        line = (
            f"{count:,} x {machines.train_gpu}: {_span(f'{slow.rate:,.0f}', f'{fast.rate:,.0f}')} images/s, "
            f"{_span(duration(seen / fast.rate), duration(seen / slow.rate))}; limited by {fast.bottleneck}"
            + ("" if own else f"; nodes: {nodes}")
        )
        costs = [forecast.money(found, prices, hours=seen / found.rate / 3600) for found in (fast, slow)]
        if costs[0] is not None and costs[1] is not None:
            line += f"; {costs[0][0]:,.0f} to {costs[1][1]:,.0f} dollars"
        yield line
        if fast.streams > 1 and config.resources.streams is None:
            rows = block_rows(config.optim.global_batch_size // count)
            passes = forecast.COORDINATOR_BLOCKS[2 if rates.costs.token_flop else 1]
            yield (
                f"  with --resources.streams {fast.streams}: its {fast.rate / rows:,.0f} blocks of {rows} "
                f"images a second from {fast.rate * rates.costs.view:,.0f} cores are more than one stream "
                f"passes, {passes:g} from {MOST_SLOTS}; each stream's coordinator takes a core of the head"
            )
        if machines.head_cores is not None and fast.wanted > machines.head_cores:
            yield (
                f"  {fast.wanted} coordinators would pass all that the rest allows, each on a core of the "
                f"head, which has {machines.head_cores:g}: give it more cores, or the workers larger batches"
            )
    if config.price is None:
        if not own:
            yield "costs: give --price train=FROM..TO,tokens=…,views=…,head=… (dollars an hour of a node)"
    else:
        if missing := [stage for stage in STAGES if stage not in prices]:
            yield f"costs need the prices of all nodes that are used; not given: {', '.join(missing)}"
        yield (
            f"costs include {60 * forecast.AROUND_HOURS:g} minutes of all nodes in addition to the run, for "
            "their start and for idle time before they are removed"
        )


def volume_lines(
    config: PlanConfig,
    rates: Rates,
    *,
    images: int,
    seen: int,
    steps: int,
    rate: float,
    tokenized: bool,
    preset: str,
) -> Iterator[str]:
    """Format how many bytes pass through the object store, and how many are stored."""
    costs, output = rates.costs, config.output
    a_second = f"{_bytes(costs.moved)} a sample x {rate:,.0f} images/s = {_bytes(costs.moved * rate)}/s"
    yield f"object store: {a_second}; {_bytes(costs.moved * seen)} in all"
    size = forecast.checkpoint_bytes(rates.parameters)
    step_seconds = config.optim.global_batch_size / rate
    between = min(output.checkpoint_steps * step_seconds, 60 * output.checkpoint_minutes)
    written = max(-(-steps // output.checkpoint_steps), math.ceil(steps * step_seconds / between - 1e-9))
    yield (
        f"checkpoints: {_bytes(size)} each ({rates.parameters / 1e6:.4g} M parameters and two moments), "
        f"{written:,} of them, one every "
        f"{duration(between)}; "
        f"{output.keep_checkpoints} are kept, {_bytes(written * size)} are written"
    )
    if not tokenized:
        return
    sizes = ", ".join(
        (
            f"{epochs} epochs "
            f"{_bytes(forecast.cache_bytes(images=images, patches=config.model.patches, epochs=epochs))}"
        )
        for epochs in CACHED_EPOCHS
        if epochs <= max(1, seen // images)
    )
    flop = costs.token_flop / (costs.token_flop + costs.step_flop)
    core = costs.token / (costs.view + costs.token + costs.step)
    yield (
        f"token cache (beit tokenizer encode {preset} … --epochs K, then --data.tokens): at most {sizes}; "
        f"each later epoch saves the tokenizer, {flop:.0%} of the operations on GPUs, {core:.0%} of the "
        "time on cores"
    )


def _undivided(config: PlanConfig, workers: int) -> str:
    """Say why a run with this many workers would be refused; "" if it would not be."""
    batch, asked = config.optim.global_batch_size, config.resources.worker_range
    if workers > batch or (batch % workers and not (asked and asked.elastic)):
        return f"optim.global_batch_size={batch} does not divide among {workers} workers"
    return ""


def _span(low: str, high: str) -> str:
    """Format a range; one value if both ends are the same because nothing is extrapolated."""
    return low if low == high else f"{low} to {high}"


def _speed(rate: float, seen: int) -> str:
    return f"{rate:,.3g} images/s, {duration(seen / rate)}"


def _bytes(amount: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            return f"{amount:.3g} {unit}"
        amount /= 1000
    raise AssertionError
