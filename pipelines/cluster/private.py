"""Start a Ray for this process alone. It listens on this machine's loopback address only, asks for a token
of its own, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beit.errors import JobFailedError
from pipelines.cluster import scratch

# Ray gives its processes 30 s to start, too little for a machine that is busy.
STARTS = 3
STARTED_TOO_SLOWLY = "timed out during startup"

# Ray Data prints hundreds of lines per run; --debug lets them through.
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "ray._private")

LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = Path("/sys/class/net/lo")


@contextlib.contextmanager
def private_ray(*, num_cpus: int | None, debug: bool = False) -> Iterator[None]:
    """Start a Ray that ends with this process. It has its own folder, apart from any other Ray on this
    machine.

    The dashboard stays on (bound to this machine): without it Ray Train cannot query the state of placement
    groups.
    """
    with scratch.folder() as folder, _environment(_variables(folder)), loopback(), own_process_groups():
        try:
            _init(folder, num_cpus=num_cpus, debug=debug)
            if not debug:
                import ray.data

                for name in QUIET_LOGGERS:
                    logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            import ray

            ray.shutdown()


def _init(folder: Path, *, num_cpus: int | None, debug: bool) -> None:
    import ray

    for attempt in range(1, STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=True,
                dashboard_host=LOOPBACK,
                log_to_driver=debug,
                logging_level=logging.INFO if debug else logging.ERROR,
                configure_logging=True,
                _node_ip_address=LOOPBACK,
                # Ray opens its folder to all users, so it lies within one that is closed to them.
                _temp_dir=str(folder / f"{attempt}"),
            )
            return
        except Exception as error:  # Ray raises no narrower exception here.
            ray.shutdown()
            if STARTED_TOO_SLOWLY not in str(error):
                raise
            if attempt == STARTS:
                raise JobFailedError(
                    f"Ray did not start on this machine within 30 s, {STARTS} times over",
                    "wait until the machine has less to do, or join a Ray that runs already, by RAY_ADDRESS",
                ) from error


def _variables(folder: Path) -> dict[str, str | None]:
    """Return what Ray's processes must find in their environment (None: what they must not find)."""
    token = folder / "token"
    with open(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    usual = {
        "RAY_DEDUP_LOGS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's announcement of a changed default, once an actor
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }
    if LOOPBACK_INTERFACE.exists():
        # Workers of a training exchange gradients over the network's interface unless told otherwise.
        usual |= {"GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE.name}
    return {
        **{name: os.environ.get(name, value) for name, value in usual.items()},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": None,  # It would win over the file's.
        "RAY_AUTH_TOKEN_PATH": str(token),
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Change environment variables, and have Ray read its own again, now and at the end."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _read_again()


def _read_again() -> None:
    """Ray has read its variables when it was imported, and remembers the token that it found."""
    import ray

    compiled: Any = ray._raylet
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


@contextlib.contextmanager
def loopback() -> Iterator[None]:
    """Let Ray keep the loopback address, as it does by itself on macOS. On Linux it would put the network's
    address in its place, so that other machines could join.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def own_process_groups() -> Iterator[None]:
    """Start Ray's processes in process groups of their own. `timeout` and job managers send SIGTERM to the
    whole group: Ray would be gone before the last checkpoint is written.
    """
    from ray._private import services

    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, process_group=0)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = before  # type: ignore[misc]
