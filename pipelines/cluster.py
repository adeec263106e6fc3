"""Starting or joining Ray, quietly."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from beit.errors import JobFailedError, UserError
from pipelines import storage
from pipelines.placement import STAGES, Node

# Where `ray up` leaves the cluster's file on the head.
RAY_UP_FILE = "~/ray_bootstrap_config.yaml"

# Enough to plan with.
MOST_TO_COME = 1000

# Where none of these is, there is no GPU to ask torch for, and torch need not be imported.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

# Ray gives its processes 30 s to start, too little for a machine that is busy.
STARTS = 3
STARTED_TOO_SLOWLY = "timed out during startup"

# One line a run instead of hundreds; --debug brings them back.
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "ray._private")


@contextlib.contextmanager
def start(*, cpus: int | None = None, debug: bool = False) -> Iterator[None]:
    """Join the cluster that `RAY_ADDRESS` names (a submitted job has it), or start a private Ray for this process.

    A caller that has already called `ray.init` keeps its own Ray.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    if not debug:
        # Else Ray's core complains on the driver's terminal about the actors that Ray Data starts.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(log_to_driver=debug, logging_level=logging.INFO if debug else logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise UserError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} cannot be reached: {str(error).splitlines()[0]}",
                "unset RAY_ADDRESS to run on this machine alone, or start the cluster",
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Unix sockets have short names: a folder of our own right below the temporary one.
    folder = Path(tempfile.mkdtemp(prefix="beit-"))
    try:
        with start_private(num_cpus=cpus, folder=folder, debug=debug):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def start_private(*, num_cpus: int | None, folder: Path, debug: bool = False) -> Iterator[None]:
    """Start a Ray that ends with this process, with its own folder: it meets no other Ray of this machine.

    The dashboard stays on (bound to this machine): without it Ray Train cannot query the state of placement groups.
    """
    import ray

    quiet = {
        "RAY_DEDUP_LOGS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's announcement of a changed default, once an actor
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
        # Ray turns tokens on by itself for a private head; there is nobody else to keep out of a loopback socket of this process.
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
    }
    os.environ.update({name: value for name, value in quiet.items() if name not in os.environ})
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                log_to_driver=debug,
                logging_level=logging.INFO if debug else logging.ERROR,
                configure_logging=True,
                _temp_dir=str(folder if attempt == 1 else folder / f"{attempt}"),
            )
            break
        except Exception as error:  # Ray raises nothing narrower.
            ray.shutdown()
            if STARTED_TOO_SLOWLY not in str(error):
                raise
            if attempt == STARTS:
                raise JobFailedError(
                    f"Ray did not start on this machine within 30 s, {STARTS} times over",
                    "wait until the machine has less to do, or join a Ray that runs already, by RAY_ADDRESS",
                ) from error
    if not debug:
        import ray.data

        for name in QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def start_beside_driver(kind: type[Any], *args: Any, **options: Any) -> Any:
    """Start a small actor on the driver's machine: it controls, or writes files there, and takes no core from the work.

    Its arguments live as long as the handle that is returned: Ray forgets them once an actor has begun, and could not start it again.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    kept = [ray.put(argument) for argument in args]
    actor: Any = ray.remote(kind)
    handle = actor.options(num_cpus=0, scheduling_strategy=here, **options).remote(*kept)
    weakref.finalize(handle, kept.clear)
    return handle


def nodes() -> list[Node]:
    """The machines of the connected cluster, and those that its autoscaler may add."""
    import ray

    alive: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    there = [_node(node["Resources"], there=True) for node in alive]
    return there + to_come(node_types(), there)


def node_types() -> Mapping[str, Any]:
    """The node types of a cluster that grows, by name; none where nothing says so.

    Ray's autoscaler tells them to nobody. `ray up` leaves its file on the head, where a job's driver runs; elsewhere the head's environment
    says them in `BEIT_NODE_TYPES`, as JSON or as the path of such a file.

    Raises:
        UserError: If `BEIT_NODE_TYPES` is neither.
    """
    import yaml

    given = os.environ.get("BEIT_NODE_TYPES", "")
    file = Path(given or RAY_UP_FILE).expanduser()
    if not given and (not os.environ.get("RAY_ADDRESS") or not file.exists()):
        return {}
    try:
        # JSON is YAML.
        content = yaml.safe_load(given if given.startswith("{") else file.read_text())
        types: Mapping[str, Any] = content.get("available_node_types", content)
        return {name: {"resources": kind["resources"], "max_workers": int(kind.get("max_workers", 0))} for name, kind in types.items()}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"BEIT_NODE_TYPES={given or file} names no node types: {type(error).__name__}",
            'write it as {"views": {"max_workers": 16, "resources": {"CPU": 16}}}, or as the path of a file for ray up',
        ) from error


def this_machine(cpus: int | None) -> list[Node]:
    """What a private Ray would offer, without starting one. Empty where `RAY_ADDRESS` names a cluster, or the process has joined one."""
    import ray

    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        return []
    gpus = 0
    if any(Path(device).exists() for device in GPU_DEVICES):
        import torch

        gpus = torch.cuda.device_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [Node(cpus=float(cpus or usable), gpus=float(gpus))]


def to_come(types: Mapping[str, Any], alive: Sequence[Node]) -> list[Node]:
    """The machines that an autoscaler may still add.

    Args:
        types: {name: {"resources": …, "max_workers": …}}.
        alive: The machines that are there.
    """
    found: list[Node] = []
    for kind in types.values():
        node = _node(kind["resources"], there=False)
        if node.cpus or node.gpus:
            # Two types of equal machines, on spot and on demand, stand for one another: the cluster never has all of both.
            known = found.count(node) + alive.count(replace(node, there=True))
            found += [node] * max(0, min(kind["max_workers"], MOST_TO_COME) - known)
    return found


def _node(resources: Mapping[str, float], *, there: bool) -> Node:
    stages = frozenset(stage for stage in STAGES if resources.get(stage))
    return Node(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0), stages=stages, there=there)


def local_paths(nodes: Sequence[Node], paths: Mapping[str, str]) -> list[str]:
    """A warning for each path, by its option, that several machines would each look for on their own disk."""
    if len(nodes) < 2:
        return []
    return [
        f"warning: {len(nodes)} machines, and {option} is the local path {path}: it must be the same folder on all of them"
        for option, path in paths.items()
        if not storage.is_remote(path)
    ]
