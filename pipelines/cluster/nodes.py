"""List the machines that Ray has, and those that an autoscaler may add."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from beit.errors import UserError
from pipelines import storage
from pipelines.cluster import joined
from pipelines.cluster.node_types import NodeTypes, node_types_in, node_types_of
from pipelines.cluster.placement import STAGES, Node

# Where `ray up` leaves the cluster's file on the head.
RAY_UP_FILE = "~/ray_bootstrap_config.yaml"

# Enough to plan with.
MOST_TO_COME = 1000

# If none of these files exists, there is no GPU, and torch need not be imported to count them.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

# The CPU limit of a container, on Linux.
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def cluster_nodes() -> list[Node]:
    """List the machines of the connected cluster, and those that its autoscaler may add."""
    there = [_node(amounts, there=True) for amounts in resources_of_nodes()]
    return there + nodes_to_come(types_of_cluster(), there)


def alive_nodes() -> list[dict[str, Any]]:
    """List the machines of the connected cluster as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def resources_of_nodes() -> list[dict[str, float]]:
    """List the amounts of each machine of the connected cluster, by name of the resource."""
    return [node["Resources"] for node in alive_nodes()]


def types_of_cluster() -> NodeTypes:
    """Read the node types of an autoscaling cluster; empty if they are not described anywhere.

    Ray's autoscaler does not report its node types. `ray up` leaves its file on the head, where a job's
    driver runs. Elsewhere the head's environment names them in `BEIT_NODE_TYPES`, as JSON or as the path of
    such a file.

    Raises:
        UserError: If `BEIT_NODE_TYPES` is neither.
    """
    given = os.environ.get("BEIT_NODE_TYPES", "")
    file = Path(given or RAY_UP_FILE).expanduser()
    if not given and (not joined.named() or not file.exists()):
        return NodeTypes()
    try:
        # JSON is YAML.
        content = yaml.safe_load(given if given.startswith("{") else file.read_text())
        return node_types_in(content) or node_types_of(content)
    except (OSError, yaml.YAMLError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"BEIT_NODE_TYPES={given or file} names no node types: {type(error).__name__}",
            (
                'write it as {"views": {"max_workers": 16, "resources": {"CPU": 16}}}, '
                "or as the path of a file for ray up"
            ),
        ) from error


def this_machine(cpus: int | None) -> list[Node]:
    """Describe this machine as the private Ray that would be started on it.

    Empty if `RAY_ADDRESS` names a cluster, or the process has joined one.
    """
    import ray

    if ray.is_initialized() or joined.named():
        return []
    gpus = 0
    if any(Path(device).exists() for device in GPU_DEVICES):
        import torch

        gpus = torch.cuda.device_count()
    return [Node(cpus=float(cpus or _usable_cores()), gpus=float(gpus))]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_here(limit: Path = CPU_LIMIT) -> float:
    """Count the cores of the driver's machine, up to its container's limit, whether or not Ray may use them.

    Args:
        limit: The file with the limit: microseconds of CPU time, and the period in microseconds in which they
            may be used.
    """
    usable = float(_usable_cores())
    with contextlib.suppress(OSError, ValueError):
        work, time = limit.read_text().split()
        usable = min(usable, float(work) / float(time))
    return usable


def nodes_to_come(types: NodeTypes, alive: Sequence[Node]) -> list[Node]:
    """List the machines that an autoscaler may still add.

    If the cluster's limit does not allow all of them: one of every type, then those with the most GPUs.

    Args:
        types: The cluster's node types.
        alive: The machines that have joined, the head included.
    """
    found: list[Node] = []
    for kind in types.kinds:
        node = _node(kind.resources, there=False)
        if node.cpus or node.gpus:
            # Types with equal machines, such as spot and on demand, replace each other: the cluster never has
            # all of both.
            known = found.count(node) + alive.count(replace(node, there=True))
            found += [node] * max(0, min(kind.max_workers, MOST_TO_COME) - known)
    room = max(0, types.most - max(0, len(alive) - 1))
    if len(found) <= room:
        return found
    rest = Counter(found)
    one_each = list(rest)
    rest.subtract(one_each)
    return [*one_each, *sorted(rest.elements(), key=lambda node: -node.gpus)][:room]


def _node(resources: Mapping[str, float], *, there: bool) -> Node:
    stages = frozenset(stage for stage in STAGES if resources.get(stage))
    return Node(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0), stages=stages, there=there)


def local_path_warnings(nodes: Sequence[Node], paths: Mapping[str, str]) -> list[str]:
    """Warn of local paths, by the option that gives them, if there are several machines: each would look on
    its own disk.
    """
    if len(nodes) < 2:
        return []
    return [
        (
            f"warning: {len(nodes)} machines, and {option} is the local path {path}: it must be the same "
            "folder on all of them"
        )
        for option, path in paths.items()
        if not storage.is_remote(path)
    ]
