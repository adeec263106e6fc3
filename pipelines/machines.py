"""Which GPUs and cores the node types of a file for `ray up` have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from beit.errors import UserError
from pipelines.forecast import Machines

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


def _gpu_of(path: str, name: str, kind: dict[str, Any]) -> str:
    node = kind["node_config"]
    machine = str(node.get("InstanceType") or node.get("machineType") or node.get("azure_arm_parameters", {}).get("vmSize"))
    found = [gpu for start, gpu in GPU_OF_INSTANCE.items() if machine.startswith(start)]
    if not found:
        raise UserError(f"--cluster {path}: which GPU {machine} ({name}) has is not known", "say it by --gpu and --token-gpu")
    return found[0]
