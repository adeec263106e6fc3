"""Start or join Ray without its messages; run actors on the driver's machine, and functions where workers
train.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from beit.errors import TerminatedError, UserError
from pipelines.cluster import joined
from pipelines.cluster.nodes import alive_nodes
from pipelines.cluster.private import loopback, private_ray

# If no core is free by then, other work holds them all.
PATIENCE_SECONDS = 300.0

RETRIED = re.compile(r"retries remaining, so the task will be retried")

Found = TypeVar("Found")


@contextlib.contextmanager
def start(*, cpus: int | None = None, debug: bool = False) -> Iterator[None]:
    """Join the cluster that `RAY_ADDRESS` names (Ray sets it for submitted jobs), or start a private Ray for
    this process.

    A caller that has already called `ray.init` keeps its own Ray.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = joined.named()
    if not address:
        with start_private(num_cpus=cpus, debug=debug):
            yield
        return
    with contextlib.nullcontext() if debug else _without_retries():
        _join(address, debug=debug)
        try:
            with _sigterm_as_ctrl_c():
                yield
        finally:
            ray.shutdown()


def _join(address: str, *, debug: bool) -> None:
    import ray

    if joined.knock(address) == joined.Door.OPEN:
        print(joined.warning(address), file=sys.stderr)
    try:
        # A cluster that was called at this machine's loopback address may listen nowhere else.
        with loopback():
            ray.init(log_to_driver=debug, logging_level=logging.INFO if debug else logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise joined.unreachable(address, str(error).splitlines()[0]) from error
    except Exception as error:  # Ray raises its own, those of gRPC, and RuntimeError for another version.
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"RAY_ADDRESS={address} cannot be joined: {reason}",
            "it takes the same versions of Ray and Python, and the cluster's token",
        ) from error


@contextlib.contextmanager
def start_private(*, num_cpus: int | None, debug: bool = False) -> Iterator[None]:
    """Start a Ray that ends with this process, at SIGTERM too."""
    with (
        contextlib.nullcontext() if debug else _without_retries(),
        private_ray(num_cpus=num_cpus, debug=debug),
        _sigterm_as_ctrl_c(),
    ):
        yield


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """Leave out what Ray prints of tasks that it will do again, whatever its log level.

    A stream of data reads ahead. When a training has all its steps, the workers of the stream are ended in
    the middle of tasks that nobody waits for, and Ray announces to retry them.
    """
    import ray._private.worker

    module: Any = ray._private.worker
    shown = module.print_to_stdstream

    def show(batch: dict[str, Any], *args: Any, **options: Any) -> None:
        lines = [line for line in batch["lines"] if not RETRIED.search(line)]
        if lines or not batch["lines"]:
            shown({**batch, "lines": lines}, *args, **options)

    module.print_to_stdstream = show
    try:
        yield
    finally:
        module.print_to_stdstream = shown


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """End a job at SIGTERM (`ray job stop`, Slurm, Kubernetes) as at Ctrl-C, with its own clean-up. Ray
    would dump its stack and leave.

    A training has its own handler, which saves a last checkpoint. Only the main thread can set handlers.

    Raises:
        TerminatedError: When SIGTERM arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminated = False

    def end(*_: object) -> None:
        nonlocal terminated
        terminated = True
        if (
            signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        ):  # as a script's `… &` has it, and all that it starts
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    before, interrupt = signal.signal(signal.SIGTERM, end), signal.getsignal(signal.SIGINT)
    try:
        yield
    except KeyboardInterrupt as stop:
        if terminated:
            raise TerminatedError from stop
        raise
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        if terminated:
            signal.signal(signal.SIGINT, interrupt)


def start_beside_driver(kind: type[Any], *args: Any, **options: Any) -> Any:
    """Start a small actor on the driver's machine, for control or for writing files. It reserves no core.

    Its arguments are kept alive as long as the returned handle. Ray would drop them once the actor has
    started, and could not restart it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    actor: Any = ray.remote(kind)
    kept = [ray.put(argument) for argument in args]
    with without_stderr():  # Ray warns about arguments that it cannot know to be kept.
        handle = actor.options(num_cpus=0, scheduling_strategy=here, **options).remote(*kept)
    weakref.finalize(handle, kept.clear)
    return handle


def run_where_workers_train(function: Callable[[], Found], *, patience: float = PATIENCE_SECONDS) -> Found:
    """Call a function on one of the machines that workers train on. The cluster does not start a machine for
    it.

    The function gets one core, and one GPU if the machines have any.

    Args:
        function: What to call; it may take any time.
        patience: Seconds to wait for the core.

    Raises:
        UserError: If no machine with cores has joined, or none has a free core within `patience`.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in alive_nodes() if node["Resources"].get("CPU")]
    trainers = [node for node in alive if node["Resources"].get("train")] or alive
    if not trainers:
        raise UserError(
            "no machine of the cluster that could be measured is there",
            "start one, or unset RAY_ADDRESS to measure this machine",
        )
    node = max(trainers, key=lambda node: (node["Resources"].get("GPU", 0.0), node["Resources"]["CPU"]))
    amounts = {
        "num_cpus": min(1.0, node["Resources"]["CPU"]),
        "num_gpus": min(1.0, node["Resources"].get("GPU", 0.0)),
    }
    kind: Any = ray.remote(_Caller)
    caller = kind.options(
        **amounts, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    ).remote()
    try:
        # The wait of a task for a core could not be told from its work; an actor reports when it has its
        # core.
        if not ray.wait([caller.__ray_ready__.remote()], timeout=patience)[0]:
            raise UserError(
                f"the cluster had no core free for {patience:g} s", "wait until other work has ended"
            )
        return cast(Found, ray.get(caller.call.remote(function)))
    except ray.exceptions.RayTaskError as error:
        # The function's own exception is raised, without Ray's text around it.
        raise error.cause from None
    finally:
        ray.kill(caller)


class _Caller:
    """An actor that holds one core and calls the function."""

    def call(self, function: Callable[[], Found]) -> Found:
        return function()


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discard what this process writes to its standard error, compiled code included."""
    try:
        before = os.dup(2)
    except OSError:  # Standard error is closed, so nothing would be shown.
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
