"""`beit plan`: forecast a pretraining on this machine and on a cluster, from a few seconds of measuring. It
starts no machine that costs money.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from beit.errors import UserError
from beit.pretraining.targets import find_target
from beit.tokenizer.registry import PUBLISHED, RANDOM
from pipelines.cluster import session
from pipelines.cluster.nodes import (
    cluster_nodes,
    cores_here,
    resources_of_nodes,
    this_machine,
    types_of_cluster,
)
from pipelines.cluster.placement import Node, place
from pipelines.command_line.options import parse
from pipelines.config.data import MOST_SCENE_PX
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.workers import WorkerRange, check_batch
from pipelines.datasets import open_train, with_absolute_data
from pipelines.planning.config import PlanConfig, config_of, parse_prices
from pipelines.planning.forecast import UTILISATION, Machines
from pipelines.planning.lines import (
    cluster_lines,
    cluster_name,
    here_lines,
    measured_lines,
    on_cluster,
    on_this_kind,
    volume_lines,
)
from pipelines.planning.machines import machine_of_its_own, machines_of, machines_of_nodes
from pipelines.planning.rates import Rates, gpu_kind, measure
from pipelines.presets.pretrain import PRESETS, pretrain_preset
from pipelines.runs import run_folder
from pipelines.scenes.shards import write_scenes
from pipelines.sources import Source, open_source
from pipelines.stream.samples import SampleConfig
from pipelines.training import recipe
from pipelines.training.pretraining import check_config

# Number of scenes to measure on if `data.train` is not given.
SCENES = 200


def plan(config: PlanConfig, *, preset: str) -> Iterator[str]:
    """Measure the stages, and yield the lines of the forecast.

    Raises:
        UserError: If the configuration or the data has a mistake, a machine's GPU is unknown, or there are
            more workers than the cluster may hold.
    """
    check_config(config)
    config = with_absolute_data(config)
    nodes = this_machine(config.resources.cpus)
    if nodes:
        machines = _machines(config)
        own = machines is None and nodes[0].gpus >= 1 and config.resources.device != "cpu"
        if own:
            machines = machine_of_its_own(nodes[0], gpu=gpu_kind())
        yield from _lines(config, _Place(nodes=nodes, machines=machines, call=_call, own=own), preset=preset)
        return
    with session.start():
        nodes, types = cluster_nodes(), types_of_cluster()
        machines = None
        if config.cluster is None and config.resources.device != "cpu":
            there = [node for node in nodes if node.there]
            machines = machines_of_nodes(
                resources_of_nodes(),
                types=types,
                there=there,
                gpu=config.gpu,
                token_gpu=config.token_gpu,
                head_cores=cores_here(),
            )
        place = _Place(
            nodes=nodes,
            machines=machines or _machines(config),
            call=session.run_where_workers_train,
            where="on a machine of the cluster",
            one="the cluster",
        )
        yield from _lines(config, place, preset=preset)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """The machines that a plan measures, and those that it is for."""

    nodes: Sequence[Node]
    """The machines that exist now."""
    machines: Machines | None
    """The GPU cluster that the plan is for. None: the cores of `nodes`."""
    call: Callable[[Callable[[], Any]], Any]
    """Calls a function on the machine that reads the data and times the stages."""
    where: str = "here"
    one: str = "this machine"
    own: bool = False
    """Whether `machines` are this machine."""


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _lines(config: PlanConfig, at: _Place, *, preset: str) -> Iterator[str]:
    machines, prices = at.machines, parse_prices(config.price)
    tokenized = find_target(config.target.kind).needs_tokenizer and config.data.tokens is None
    workers = (
        asked.fewest if (asked := config.resources.worker_range) else machines.train_gpus if machines else 1
    )
    if machines is None:
        try:
            # A plan for cores ignores GPUs that exist.
            placement = place(
                config.resources, [replace(node, gpus=0) for node in at.nodes], tokenize=tokenized
            )
        except UserError as error:
            if "no GPU" not in error.cause:
                raise
            raise UserError(
                error.cause,
                "name the GPUs that the plan is for: --cluster FILE, or --gpu KIND, such as --gpu H100",
            ) from error
    elif at.own:
        placement = place(config.resources, at.nodes, tokenize=tokenized)
        workers, machines = placement.workers, replace(machines, worker_cpus=placement.worker_cpus)
    elif workers > (most := machines.most.get("train", workers)):
        raise UserError(
            (
                f"resources.workers={asked} need a GPU each, but {cluster_name(config)} may have {most:g} to "
                "train on (max_workers)"
            ),
            f"set --resources.workers {most:g}, or raise max_workers",
        )
    # The run refuses such a batch too, once it knows its workers.
    check_batch(
        config.optim.global_batch_size,
        placement.worker_range if machines is None or at.own else asked or WorkerRange(workers, workers),
    )
    source: Source | None = at.call(functools.partial(find, config))
    images = config.images or (source.manifest.total if source else config.data.scenes)
    steps = config.total_steps(images, config.optim.global_batch_size)
    seen = steps * config.optim.global_batch_size
    yield _data_line(config, source)
    yield (
        f"steps: {steps:,} x {config.optim.global_batch_size:,} images = {seen:,} = {seen / images:.4g} "
        "epochs"
    )
    # The optimizer's time per image depends on a worker's share of the batch, and so on the number of
    # workers.
    timed = config if asked else replace(config, resources=replace(config.resources, workers=workers))
    if tokenized and config.tokenizer.path is None and config.tokenizer.name == PUBLISHED:
        timed = replace(timed, tokenizer=replace(config.tokenizer, name=RANDOM))
        yield (
            "tokenizer: DALL-E's weights do not come with the package; random ones of the same sizes are "
            "timed, which cost the same"
        )
    yield f"measuring {at.where} for about {config.seconds:g} s"
    rates: Rates = at.call(functools.partial(look, timed, source, config.seconds))
    yield from measured_lines(rates, at.where)
    if machines is None:
        cores = sum(node.cpus for node in at.nodes)
        yield from here_lines(config, rates.costs, placement, cores=cores, seen=seen, one=at.one)
        rate = on_this_kind(config, rates.costs, placement, cores=cores, machines=1).rate
    else:
        yield from cluster_lines(
            config, rates, machines, workers=workers, seen=seen, prices=prices, own=at.own
        )
        rate = on_cluster(config, rates, machines, workers, UTILISATION[1]).rate
    yield from volume_lines(
        config, rates, images=images, seen=seen, steps=steps, rate=rate, tokenized=tokenized, preset=preset
    )


def find(config: PlanConfig) -> Source | None:
    """Open the images to measure on. None: scenes that are not rendered yet.

    Raises:
        UserError: If there are no images, or if the cost of an image cannot be measured on scenes.
    """
    if config.data.train is not None:
        return open_train(config.data.train, config.data)
    if config.model.image_size > MOST_SCENE_PX and config.images is None:
        raise UserError(
            "data.train is not given: what an image costs depends on the images",
            (
                "set --data.train to those of the run, or to a sample, and their number by --images; or only "
                "--images, to measure on scenes"
            ),
        )
    return None


def _data_line(config: PlanConfig, source: Source | None) -> str:
    if config.images is None:
        if source is not None:
            return recipe.data_line(source.manifest)
        return f"data: {config.data.scenes:,} scenes, to be rendered (data.train is not given)"
    found = (
        recipe.data_line(source.manifest).removeprefix("data: ")
        if source
        else f"{SCENES} rendered scenes, which cost less than photographs"
    )
    return f"data: {config.images:,} images (--images), measured on {found}"


def look(config: PretrainConfig, source: Source | None, seconds: float) -> Rates:
    """Time the stages on the calling machine, on scenes if there is no source."""
    tokens = find_target(config.target.kind).needs_tokenizer
    samples = SampleConfig(
        seed=config.seed,
        view=config.view,
        patch_px=config.model.image_size,
        token_px=config.tokenizer.image_size if tokens else None,
        mask=config.mask,
        grid=config.model.grid,
    )
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            write_scenes(folder, images=SCENES, seed=0, image_size=config.model.image_size)
            source = open_source(folder)
        return measure(
            config, source, samples, tokenized=tokens and config.data.tokens is None, seconds=seconds
        )


def _machines(config: PlanConfig) -> Machines | None:
    """Return the cluster that the plan is for; None for this machine."""
    if config.cluster is None:
        if config.gpu is None:
            return None
        return Machines(
            train_gpu=config.gpu,
            train_gpus=8,
            train_cores=8.0,
            token_gpu=config.token_gpu,
            token_gpus=1,
            view_cores=16.0,
        )
    return machines_of(config.cluster, gpu=config.gpu, token_gpu=config.token_gpu)


def command(arguments: list[str], debug: bool) -> None:
    """`beit plan [PRESET | CONFIG.json] [--option value …]`."""
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "quickstart"
    if name.endswith(".json"):
        base, name = run_folder.saved_config(name, PretrainConfig, job="pretrain")
    else:
        base = pretrain_preset(name)
    config = parse(
        arguments,
        PlanConfig,
        command=f"plan [{' | '.join(PRESETS)}]",
        positional=(),
        default=config_of(base),
    )
    for line in plan(config, preset=name):
        print(line, flush=True)
