"""Read the node types of a cluster from a file for `ray up`, from a RayCluster or RayJob of Kubernetes, or
from a plain list.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from beit.errors import UserError

REMEDY = "clusters/ has files for ray up and for Kubernetes; or name the GPUs by --gpu"

# KubeRay's own default of maxReplicas.
UNBOUNDED = 2**31 - 1

# Ray's own default of a file's max_workers, on AWS, GCP and Azure.
RAY_UP_MOST = 2


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """One type of node."""

    name: str
    resources: Mapping[str, float]
    """Amounts of each resource by name, tags included, as Ray counts them."""
    max_workers: int = 0
    """Most nodes of this type."""
    machine: str = ""
    """The cloud's name of the machine; "" for Kubernetes, whose files do not name it."""


@dataclass(frozen=True, kw_only=True)
class NodeTypes:
    """The types of nodes that a cluster may have in addition to its head."""

    kinds: tuple[NodeType, ...] = ()
    most: int = UNBOUNDED
    """Most nodes of all types together, without the head."""
    head: NodeType | None = None
    """The head's type. None: unknown."""

    def __bool__(self) -> bool:
        return bool(self.kinds)


def read_node_types(path: str) -> NodeTypes:
    """Read the node types of a file.

    Raises:
        UserError: If the file is neither for `ray up` nor a RayCluster or RayJob.
    """
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text()))
    except OSError as error:
        raise UserError(f"--cluster {path} cannot be read: {error.strerror}", REMEDY) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(
            f"--cluster {path} is no YAML{f' (line {mark.line + 1})' if mark else ''}", REMEDY
        ) from error
    for content in documents:
        if not isinstance(content, dict):
            continue
        try:
            if found := node_types_in(content):
                return found
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            missing = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"--cluster {path} does not describe its nodes as it should: {missing}", REMEDY
            ) from error
    raise UserError(f"--cluster {path} is neither a file for ray up nor a RayCluster or RayJob", REMEDY)


def node_types_in(content: Mapping[str, Any]) -> NodeTypes | None:
    """Find the node types in a parsed document; None if it is of no known kind.

    Raises:
        AttributeError, IndexError, KeyError, TypeError, ValueError: If the kind is known, but the contents
            are malformed.
    """
    if "available_node_types" in content:
        return _of_ray_up(content)
    if content.get("kind") == "RayCluster":
        return _of_kubernetes(content["spec"])
    if content.get("kind") == "RayJob":
        return _of_kubernetes(content["spec"]["rayClusterSpec"])
    return None


def node_types_of(kinds: Mapping[str, Any], *, most: int = UNBOUNDED) -> NodeTypes:
    """Build node types from a table: name -> resources and `max_workers`. A type without `max_workers` is
    limited only by the total, as in Ray.
    """
    return NodeTypes(
        kinds=tuple(
            NodeType(
                name=name,
                resources={resource: float(amount) for resource, amount in kind["resources"].items()},
                max_workers=min(most, int(kind.get("max_workers", most))),
                machine=_machine(kind.get("node_config") or {}),
            )
            for name, kind in kinds.items()
        ),
        most=most,
    )


def _of_ray_up(content: Mapping[str, Any]) -> NodeTypes:
    name = content["head_node_type"]
    found = node_types_of(content["available_node_types"], most=int(content.get("max_workers", RAY_UP_MOST)))
    return replace(
        found,
        kinds=tuple(kind for kind in found.kinds if kind.name != name),
        head=next(kind for kind in found.kinds if kind.name == name),
    )


def _machine(node: Mapping[str, Any]) -> str:
    return str(
        node.get("InstanceType")
        or node.get("machineType")
        or node.get("azure_arm_parameters", {}).get("vmSize")
        or ""
    )


def _of_kubernetes(spec: Mapping[str, Any]) -> NodeTypes:
    kinds = tuple(_groups(spec))
    head = {"CPU": float(_whole(_amounts(spec["headGroupSpec"]).get("cpu", 0)))}
    return NodeTypes(kinds=kinds, head=NodeType(name="head", resources=head))


def _amounts(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits of the first container of a group's pods."""
    asked = group["template"]["spec"]["containers"][0].get("resources", {})
    return {**asked.get("requests", {}), **asked.get("limits", {})}


def _groups(spec: Mapping[str, Any]) -> Iterator[NodeType]:
    """List the worker groups. KubeRay starts Ray with the limits of a pod's first container, unless
    `rayStartParams` differ.
    """
    for group in spec["workerGroupSpecs"]:
        amounts = _amounts(group)
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
    """Round a Kubernetes quantity, such as 16 or 1500m, up to a whole number, as KubeRay does."""
    text = str(quantity)
    return math.ceil(float(text.removesuffix("m")) / (1000 if text.endswith("m") else 1))
