"""Which GPUs and cores a cluster's machines have: the node types of a file for `ray up`, or what Ray says of those that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beit.errors import UserError
from pipelines.forecast import DENSE_TFLOPS, Machines

KIND = "accelerator_type:"

GPU_OF_INSTANCE = {
    # Beginnings of the machine types' names -> kind of their GPUs, as the clouds list them.
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


def machines_of(path: str, *, gpu: str | None = None, token_gpu: str | None = None) -> Machines:
    """The machines of a file for `ray up`.

    Raises:
        UserError: If it is none, or its GPUs are of an unknown kind.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
        types = dict(content["available_node_types"])
        types.pop(content["head_node_type"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"--cluster {path} is no file for ray up ({error})", "clusters/ has some; or give the GPUs by --gpu") from error
    resources = {name: {"CPU": 0, "GPU": 0, **kind["resources"]} for name, kind in types.items()}
    with_gpu = [name for name in types if resources[name]["GPU"]]
    train = next(
        (name for name in types if "train" in resources[name]), max(with_gpu, key=lambda name: resources[name]["GPU"], default=None)
    )
    tokens = next((name for name in types if "tokens" in resources[name]), None)
    views = max((name for name in types if name not in with_gpu), key=lambda name: resources[name]["CPU"], default=None)
    if train is None:
        raise UserError(f"--cluster {path} has no node type with GPUs", "leave out --cluster to plan for machines like this one")
    return Machines(
        train_gpu=gpu or _gpu_of(path, train, types[train]),
        train_gpus=int(resources[train]["GPU"]),
        train_cores=float(resources[train]["CPU"]),
        token_gpu=(token_gpu or _gpu_of(path, tokens, types[tokens])) if tokens else None,
        token_gpus=int(resources[tokens]["GPU"]) if tokens else 1,
        view_cores=float(resources[views or train]["CPU"]),
    )


def machines_of_nodes(nodes: Sequence[Mapping[str, float]], *, gpu: str | None = None, token_gpu: str | None = None) -> Machines | None:
    """The machines that a Ray cluster has, by the resources of each; None if there is no GPU to train on.

    Raises:
        UserError: If its GPUs are of an unknown kind.
    """
    trainers = [node for node in nodes if node.get("train")] or list(nodes)
    train = max(trainers, key=lambda node: node.get("GPU", 0.0), default={})
    if not train.get("GPU"):
        return None
    tokens = max((node for node in nodes if node.get("tokens")), key=lambda node: node.get("GPU", 0.0), default=None)
    views = max((node.get("CPU", 0.0) for node in nodes if not node.get("GPU")), default=0.0)
    return Machines(
        train_gpu=gpu or _gpu_of_node(train),
        train_gpus=int(train["GPU"]),
        train_cores=train.get("CPU", 0.0),
        token_gpu=(token_gpu or _gpu_of_node(tokens)) if tokens and tokens.get("GPU") else None,
        token_gpus=int(tokens["GPU"]) if tokens and tokens.get("GPU") else 1,
        view_cores=views or train.get("CPU", 0.0),
    )


def _gpu_of_node(resources: Mapping[str, float]) -> str:
    """Ray names the kind of a machine's GPUs in a resource of its own, such as accelerator_type:A100."""
    named = [name.removeprefix(KIND) for name in resources if name.startswith(KIND)]
    known = [kind for name in named for kind in sorted(DENSE_TFLOPS, key=len, reverse=True) if name.startswith(kind)]
    if not known:
        raise UserError(
            f"the cluster's GPUs are {', '.join(named) or 'of no named kind'}: their rate is not known", "say their kind by --gpu"
        )
    return known[0]


def _gpu_of(path: str, name: str, kind: dict[str, Any]) -> str:
    node = kind["node_config"]
    machine = str(node.get("InstanceType") or node.get("machineType") or node.get("azure_arm_parameters", {}).get("vmSize"))
    found = [gpu for start, gpu in GPU_OF_INSTANCE.items() if machine.startswith(start)]
    if not found:
        raise UserError(f"--cluster {path}: which GPU {machine} ({name}) has is not known", "say it by --gpu and --token-gpu")
    return found[0]
