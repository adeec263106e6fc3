"""What a cluster's file says of its nodes: a file for `ray up`, or a RayCluster or RayJob of Kubernetes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.errors import UserError

REMEDY = "clusters/ has files for ray up and for Kubernetes; or name the GPUs by --gpu"

# KubeRay's own default of maxReplicas.
UNBOUNDED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """One kind of node, without the head's."""

    name: str
    resources: Mapping[str, float]
    """As Ray counts them, tags among them."""
    max_workers: int = 0
    """Most nodes of it."""
    machine: str = ""
    """The cloud's name of the machine; "" in files of Kubernetes, which do not say it."""


def read_node_types(path: str) -> list[NodeType]:
    """The node types of a file.

    Raises:
        UserError: If it is of neither kind.
    """
    import yaml

    try:
        documents = list(yaml.safe_load_all(Path(path).read_text()))
    except OSError as error:
        raise UserError(f"--cluster {path} cannot be read: {error.strerror}", REMEDY) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"--cluster {path} is no YAML{f' (line {mark.line + 1})' if mark else ''}", REMEDY) from error
    for content in documents:
        if not isinstance(content, dict):
            continue
        try:
            if "available_node_types" in content:
                return list(_of_ray_up(content))
            if content.get("kind") == "RayCluster":
                return list(_of_kubernetes(content["spec"]))
            if content.get("kind") == "RayJob":
                return list(_of_kubernetes(content["spec"]["rayClusterSpec"]))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            missing = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"--cluster {path} does not describe its nodes as it should: {missing}", REMEDY) from error
    raise UserError(f"--cluster {path} is neither a file for ray up nor a RayCluster or RayJob", REMEDY)


def _of_ray_up(content: Mapping[str, Any]) -> Iterator[NodeType]:
    for name, kind in content["available_node_types"].items():
        if name != content["head_node_type"]:
            node = kind["node_config"]
            machine = node.get("InstanceType") or node.get("machineType") or node.get("azure_arm_parameters", {}).get("vmSize")
            yield NodeType(
                name=name,
                resources={resource: float(amount) for resource, amount in kind["resources"].items()},
                max_workers=int(kind.get("max_workers", 0)),  # As `cluster.node_types` has it.
                machine=str(machine),
            )


def _of_kubernetes(spec: Mapping[str, Any]) -> Iterator[NodeType]:
    """KubeRay starts Ray with the limits of a pod's first container, unless `rayStartParams` say otherwise."""
    import yaml

    for group in spec["workerGroupSpecs"]:
        asked = group["template"]["spec"]["containers"][0].get("resources", {})
        amounts = {**asked.get("requests", {}), **asked.get("limits", {})}
        start = group.get("rayStartParams") or {}
        gpus = sum(_whole(amount) for name, amount in amounts.items() if name.endswith("/gpu"))
        # The text passes a shell: "{\"train\": 1}".
        tags = yaml.safe_load(" ".join(shlex.split(start.get("resources", "{}"))))
        yield NodeType(
            name=group["groupName"],
            resources={
                "CPU": float(start.get("num-cpus", _whole(amounts.get("cpu", 0)))),
                "GPU": float(start.get("num-gpus", gpus)),
                **{name: float(amount) for name, amount in tags.items()},
            },
            max_workers=int(group.get("maxReplicas", UNBOUNDED)) * int(group.get("numOfHosts", 1)),
        )


def _whole(quantity: str | float) -> int:
    """A quantity of Kubernetes, such as 16 or 1500m, rounded up as KubeRay does."""
    text = str(quantity)
    return math.ceil(float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1))
