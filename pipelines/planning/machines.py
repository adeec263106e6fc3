"""Find the GPUs and cores of a cluster's machines, and how many machines it may have, from its file or from
the connected Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from beit.errors import UserError
from pipelines.cluster.node_types import UNBOUNDED, NodeType, NodeTypes, read_node_types
from pipelines.cluster.nodes import nodes_to_come
from pipelines.cluster.placement import EPSILON, Node, nodes_of
from pipelines.config.resources import ResourceConfig
from pipelines.planning.forecast import DENSE_TFLOPS, Machines

KIND = "accelerator_type:"

GPU_OF_INSTANCE = {
    # Beginning of a machine type's name -> model of its GPUs, as the clouds list them.
    "g4dn.": "T4",
    "p3.": "V100",
    "g5.": "A10G",
    "g6.": "L4",
    "g6e.": "L40S",
    "p4d.": "A100",
    "p4de.": "A100",
    "p5.": "H100",
    "p5en.": "H200",
    "p6-b200.": "B200",
    "g2-": "L4",
    "a2-": "A100",
    "a3-highgpu": "H100",
    "a3-megagpu": "H100",
    "a3-ultragpu": "H200",
    "a4-": "B200",
    "Standard_NC4as_T4": "T4",
    "Standard_NC8as_T4": "T4",
    "Standard_NC16as_T4": "T4",
    "Standard_NC64as_T4": "T4",
    "Standard_NC24ads_A100": "A100",
    "Standard_NC48ads_A100": "A100",
    "Standard_NC96ads_A100": "A100",
    "Standard_ND96asr_v4": "A100",
    "Standard_ND96amsr_A100": "A100",
    "Standard_ND96isr_H100": "H100",
    "Standard_ND96isr_H200": "H200",
}


# Machine names that contain the number of cores, and the factor on that number: m7i.xlarge, m7i.4xlarge,
# n2-standard-4, Standard_D4s_v5.
SIZES = {
    r"[a-z0-9-]+\.()large": 2,
    r"[a-z0-9-]+\.(\d*)xlarge": 4,
    r"[a-z0-9]+-(?:standard|highcpu|highmem)-(\d+)": 1,
    r"Standard_[A-Z]+(\d+)[a-z]*(?:_.+)?": 1,
}


def cores_of(kind: NodeType) -> float | None:
    """Return the cores of a node, even of a head that offers none to Ray; None if neither the resources nor
    the machine's name tell.
    """
    if cores := kind.resources.get("CPU"):
        return cores
    named = (
        float(times * int(found[1] or 1))
        for size, times in SIZES.items()
        if (found := re.fullmatch(size, kind.machine))
    )
    return next(named, None)


def machines_of(path: str, *, gpu: str | None = None, token_gpu: str | None = None) -> Machines:
    """Read the machines of a cluster's file.

    Raises:
        UserError: If it is no such file, has no GPU to train on, or has GPUs of an unknown model.
    """
    types = read_node_types(path)
    kinds = [kind for kind in types.kinds if kind.max_workers]
    found = _machines(
        kinds, where=f"--cluster {path}", within=_within(types, []), gpu=gpu, token_gpu=token_gpu
    )
    if found is None:
        raise UserError(
            f"--cluster {path} may have no node with GPUs (max_workers)",
            "leave out --cluster to plan for machines like this one",
        )
    return replace(found, most_nodes=types.most, head_cores=cores_of(types.head) if types.head else None)


def machines_of_nodes(
    alive: Sequence[Mapping[str, float]],
    *,
    types: NodeTypes | None = None,
    there: Sequence[Node] = (),
    gpu: str | None = None,
    token_gpu: str | None = None,
    head_cores: float | None = None,
) -> Machines | None:
    """Return the machines that a Ray cluster has or may add; None if no machine has a GPU to train on.

    Args:
        alive: The resources of each machine that has joined.
        types: Node types of an autoscaling cluster (`cluster.node_types`). None: unknown.
        there: The machines that have joined, as a driver sees them.
        gpu: Model of the training GPUs, for clusters in which Ray does not name it.
        token_gpu: The same for GPUs that only tokenizers use.
        head_cores: Cores of the driver's node.

    Raises:
        UserError: If the model of its GPUs is unknown.
    """
    kinds = [
        NodeType(name=f"a node of {node.get('GPU', 0):g} GPU + {node.get('CPU', 0):g} CPU", resources=node)
        for node in alive
    ]
    within: list[Node] = []
    if types:
        kinds += [kind for kind in types.kinds if kind.max_workers]
        within = _within(types, there)
    found = _machines(kinds, where="the cluster", within=within, gpu=gpu, token_gpu=token_gpu)
    return found and replace(found, most_nodes=types.most if types else UNBOUNDED, head_cores=head_cores)


def _within(types: NodeTypes, there: Sequence[Node]) -> list[Node]:
    """Count the most machines that each stage may have, independently of the other stages."""
    return [*there, *nodes_to_come(replace(types, most=UNBOUNDED), there)]


def machine_of_its_own(node: Node, *, gpu: str) -> Machines:
    """Describe one machine with GPUs of one model, all for a private Ray."""
    return Machines(
        train_gpu=gpu,
        train_gpus=int(node.gpus),
        train_cores=node.cpus,
        token_gpu=None,
        token_gpus=1,
        view_cores=node.cpus,
        most=most_of([node]),
        head_cores=node.cpus,
    )


def with_tokenizers(machines: Machines, resources: ResourceConfig, *, workers: int) -> Machines:
    """Add the tokenizers, placed as a run of this many workers places them (`pipelines.cluster.placement`).

    If no machine is for tokens alone, tokenizers get the GPUs that the workers leave free; if there are none,
    they share the workers' GPUs. They run on cores if `resources.tokenizer_gpus` is 0.
    """
    if resources.tokenizer_gpus == 0:
        return replace(machines, token_gpu=None, tokens="cores")
    if machines.token_gpu is not None or "train" not in machines.most:
        return machines
    asked = resources.worker_range
    spare = int(machines.most["train"]) - max(workers, asked.most if asked else workers)
    actors = resources.tokenizers or 1
    a_gpu = int(1 / (resources.tokenizer_gpus or (1.0 if spare >= actors else 0.25)) + EPSILON)
    if spare < 1 or actors > spare * a_gpu:
        return machines
    gpus = -(-actors // a_gpu) if resources.tokenizers else spare
    return replace(
        machines, token_gpu=machines.train_gpu, tokens="spare gpus", most={**machines.most, "tokens": gpus}
    )


def most_of(nodes: Sequence[Node]) -> dict[str, float]:
    """Count what each stage may get when a driver places it: GPUs for training, GPUs for tokenizers only, and
    cores of machines without GPUs for views.
    """
    return {
        "train": sum(int(node.gpus) for node in nodes_of("train", nodes)),
        "tokens": sum(int(node.gpus) for node in nodes if "tokens" in node.stages),
        "views": sum(node.cpus for node in nodes_of("views", nodes) if not node.gpus),
    }


def _machines(
    types: Sequence[NodeType], *, where: str, within: Sequence[Node], gpu: str | None, token_gpu: str | None
) -> Machines | None:
    trainers = [kind for kind in types if kind.resources.get("train")] or list(types)
    train = max(trainers, key=_gpus, default=None)
    if train is None or not _gpus(train):
        return None
    tokens = max(
        (kind for kind in types if kind.resources.get("tokens") and _gpus(kind)), key=_gpus, default=None
    )
    apart = any(kind.resources.get("views") for kind in types)
    viewers = [kind for kind in types if not _gpus(kind) and (kind.resources.get("views") or not apart)]
    views = max((kind.resources.get("CPU", 0.0) for kind in viewers), default=0.0)
    kinds = {"--gpu": gpu or _gpu_of(train), "--token-gpu": token_gpu or _gpu_of(tokens) if tokens else None}
    unknown = {
        option: kind
        for option, kind in (("--gpu", train), ("--token-gpu", tokens))
        if kind and kinds[option] is None
    }
    if unknown:
        names = " and ".join(
            kind.name + (f" ({kind.machine})" if kind.machine else "") for kind in unknown.values()
        )
        raise UserError(
            f"{where}: the kind of the GPUs of {names} is not known",
            f"say it by {' and '.join(unknown)}, of {', '.join(DENSE_TFLOPS)}",
        )
    given = ((train, gpu), (tokens, token_gpu))
    supposed = (
        f"{kind.name}: {named} in place of {has}"
        for kind, named in given
        if kind and named and (has := _gpu_of(kind)) not in (None, named)
    )
    return Machines(
        supposed=tuple(supposed),
        train_gpu=str(kinds["--gpu"]),
        train_gpus=_gpus(train),
        train_cores=train.resources.get("CPU", 0.0),
        token_gpu=kinds["--token-gpu"],
        token_gpus=_gpus(tokens) if tokens else 1,
        view_cores=views or train.resources.get("CPU", 0.0),
        most=most_of(within) if within else {},
        views_beside=bool(train.resources.get("views")) or not apart,
    )


def _gpus(kind: NodeType) -> int:
    return int(kind.resources.get("GPU", 0))


def _gpu_of(kind: NodeType) -> str | None:
    """Find the model of the GPU from a resource such as accelerator_type:A100, or from the cloud's name of
    the machine.
    """
    named = [name.removeprefix(KIND) for name in kind.resources if name.startswith(KIND)]
    found = [
        gpu for name in named for gpu in sorted(DENSE_TFLOPS, key=len, reverse=True) if name.startswith(gpu)
    ]
    return next(
        iter(found + [gpu for start, gpu in GPU_OF_INSTANCE.items() if kind.machine.startswith(start)]), None
    )
