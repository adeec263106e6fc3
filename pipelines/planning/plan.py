"""`beit plan`: what a pretraining will take, here and on a cluster, from a few seconds of measuring. Starts
nothing that costs.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from beit.checks import positive
from beit.errors import UserError
from pipelines.config.data import MOST_SCENE_PX
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.workers import WorkerRange
from pipelines.planning.forecast import DENSE_TFLOPS, STAGES, UTILISATION, Machines, Range
from pipelines.planning.lines import (
    cluster_lines,
    here_lines,
    holder,
    measured_lines,
    on_cluster,
    on_this_kind,
    volume_lines,
)
from pipelines.planning.machines import machine_of_its_own, machines_of, machines_of_nodes
from pipelines.planning.rates import Rates, gpu_kind, measure
from pipelines.training import recipe

if TYPE_CHECKING:
    from pipelines.cluster.placement import Node
    from pipelines.sources import Source

# Scenes to measure on where `data.train` is not given.
SCENES = 200

# As in `beit.tokenizer.registry`, which imports torch.
PUBLISHED, RANDOM = "dalle", "random-dalle"


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PretrainConfig):
    """A pretraining to be planned, not run."""

    images: int | None = None
    """Images of an epoch, where `data.train` is only a sample of them, or not given. None: those of
    `data.train`, or the scenes."""

    cluster: str | None = None
    """File for `ray up`, such as clusters/aws.yaml, or of a RayCluster or RayJob: its node types are what the
    plan counts, and no more of them than it allows. None: this machine, or the connected cluster, or
    `gpu`."""

    gpu: str | None = None
    """Kind of the training GPUs, such as H100: plans as if the cluster's machines had these. None: those that
    they have."""

    token_gpu: str | None = None
    """Kind of the tokenizers' GPUs, where they have nodes of their own. None: that of the cluster's
    machines."""

    price: str | None = None
    """Dollars an hour of a node of each stage, such as train=10..33,tokens=0.3..0.8,views=0.3..0.7,head=0.2.
    None: no costs."""

    seconds: float = 9.0
    """Measure about so long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "--", "images", "seconds")
        for option, kind in (("gpu", self.gpu), ("token-gpu", self.token_gpu)):
            if kind is not None and kind not in DENSE_TFLOPS:
                raise UserError(
                    f"--{option} {kind}: its rate is not known", f"known are {', '.join(DENSE_TFLOPS)}"
                )
        parse_prices(self.price)


def config_of(config: PretrainConfig) -> PlanConfig:
    """A plan of a run."""
    return PlanConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(PretrainConfig)}
    )


def plan(config: PlanConfig, *, preset: str) -> Iterator[str]:
    """Measure, then say what the run takes, line by line.

    Raises:
        UserError: For every mistake in the configuration or the data, for machines of an unknown kind, and
            for more workers than the cluster may hold.
    """
    from pipelines.cluster import session
    from pipelines.datasets import with_absolute_data
    from pipelines.pretrain import check_config

    check_config(config)
    parse_prices(config.price)
    config = with_absolute_data(config)
    nodes = session.this_machine(config.resources.cpus)
    if nodes:
        machines = _machines(config)
        own = machines is None and nodes[0].gpus >= 1 and config.resources.device != "cpu"
        if own:
            machines = machine_of_its_own(nodes[0], gpu=gpu_kind())
        yield from _lines(config, _Place(nodes=nodes, machines=machines, call=_call, own=own), preset=preset)
        return
    with session.start():
        nodes, types = session.nodes(), session.node_types()
        machines = None
        if config.cluster is None and config.resources.device != "cpu":
            there = [node for node in nodes if node.there]
            machines = machines_of_nodes(
                session.resources(),
                types=types,
                there=there,
                gpu=config.gpu,
                token_gpu=config.token_gpu,
                head_cores=session.cores_here(),
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
    """Where the plan is made, and for what."""

    nodes: Sequence[Node]
    """The machines at hand."""
    machines: Machines | None
    """The GPU cluster that the plan is for. None: the cores of the machines at hand."""
    call: Callable[[Callable[[], Any]], Any]
    """Calls a function where the data is looked at and the stages are timed."""
    where: str = "here"
    one: str = "this machine"
    own: bool = False
    """Whether `machines` are this one."""


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _lines(config: PlanConfig, at: _Place, *, preset: str) -> Iterator[str]:
    from pipelines.cluster.placement import place
    from pipelines.config.workers import check_batch

    machines, prices = at.machines, parse_prices(config.price)
    tokenized = config.target.kind == "tokens" and config.data.tokens is None
    workers = (
        asked.fewest if (asked := config.resources.worker_range) else machines.train_gpus if machines else 1
    )
    if machines is None:
        try:
            # What runs on cores is planned for cores, though a GPU is at hand.
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
                f"resources.workers={asked} need a GPU each, but {holder(config)} may have {most:g} to "
                "train on "
                "(max_workers)"
            ),
            f"set --resources.workers {most:g}, or raise max_workers",
        )
    # The run refuses what does not divide too, once it knows its workers.
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
    # A worker's share of the batch, over which the optimizer's time is divided, depends on how many there
    # are.
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
    """The images to measure on; None: scenes, which are still to be rendered.

    Raises:
        UserError: If there are none, or if what images cost cannot be told from scenes.
    """
    from pipelines.sources import open_source

    if config.data.train is not None:
        return open_source(config.data.train, split="train")
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
    """Time the stages, on the machine that this is called on; on scenes without a source."""
    from pipelines.scenes.shards import write_scenes
    from pipelines.sources import open_source
    from pipelines.stream.samples import SampleConfig

    tokens = config.target.kind == "tokens"
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
    """The cluster that the plan is for; None for this machine."""
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


def parse_prices(text: str | None) -> dict[str, Range]:
    """'train=10..33,head=0.2' -> dollars an hour of a node, from and to.

    Raises:
        UserError: If it says something else.
    """
    prices: dict[str, Range] = {}
    for item in text.split(",") if text else ():
        stage, _, amount = item.strip().partition("=")
        low, _, high = amount.partition("..")
        try:
            prices[stage] = float(low), float(high or low)
        except ValueError:
            prices[stage] = (-1.0, -1.0)
        if stage not in STAGES:
            raise UserError(
                f"--price {text}: {stage} is no stage",
                f"write STAGE=FROM..TO or STAGE=DOLLARS, of {', '.join(STAGES)}",
            )
        if not 0 <= prices[stage][0] <= prices[stage][1] < float("inf"):
            raise UserError(
                f"--price {text}: {item.strip()} is no price",
                f"write {stage}=DOLLARS an hour, or {stage}=LEAST..MOST",
            )
    return prices
