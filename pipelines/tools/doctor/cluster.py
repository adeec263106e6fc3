"""Check the Ray cluster that commands join, and its job server."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from beit.errors import UserError
from pipelines.cluster import joined, session
from pipelines.cluster.nodes import cluster_nodes
from pipelines.tools.doctor.finding import Finding, Level, first_line

SECONDS = 5.0
"""Seconds to wait for an address to answer."""


def token(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the token of the cluster is there, and that its file is private."""
    mode = environment.get("RAY_AUTH_MODE", "")
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        yield Finding(
            Level.WARNING,
            f"{file} can be read by others: who has the token may run code on the cluster",
            f"chmod 600 {file}",
        )
    if mode == "token" and not environment.get("RAY_AUTH_TOKEN") and not file.exists():
        yield Finding(
            Level.PROBLEM,
            f"RAY_AUTH_MODE=token, but there is no {file} and no RAY_AUTH_TOKEN",
            "take the cluster's token to this machine",
        )
    elif mode == "token":
        yield Finding(
            Level.FINE,
            f"token authentication, with {'RAY_AUTH_TOKEN' if environment.get('RAY_AUTH_TOKEN') else file}",
        )


def ray_cluster(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the cluster that commands join answers and asks for a token, and list its nodes."""
    address = joined.named(environment)
    if not address:
        yield Finding(
            Level.FINE, "RAY_ADDRESS is not set: every command starts a Ray of its own on this machine"
        )
        return
    if address.startswith("http"):
        yield Finding(
            Level.PROBLEM,
            f"RAY_ADDRESS={address} is for ray job submit only; beit commands join a cluster by HOST:PORT",
            f"export RAY_API_SERVER_ADDRESS={address} instead",
        )
        return
    try:
        door = joined.knock(address)
    except UserError as error:
        yield Finding(Level.PROBLEM, error.cause, error.remedy)
        return
    if door is joined.Door.OPEN:
        yield Finding(
            Level.PROBLEM,
            f"the Ray cluster at {address} asks for no token: who reaches it may run code there as you",
            "start the cluster with RAY_AUTH_MODE=token, and set it here too",
        )
    try:
        with contextlib.redirect_stderr(io.StringIO()), session.start():
            nodes = cluster_nodes()
            cpus, found = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
            yield Finding(
                Level.FINE,
                f"the Ray cluster at {address}: {len(nodes)} node(s), {cpus:g} CPUs, {found:g} GPUs",
            )
    except UserError as error:
        yield Finding(Level.PROBLEM, error.cause, error.remedy)


def job_server(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check the dashboard that `ray job submit` talks to."""
    address = environment.get("RAY_API_SERVER_ADDRESS", "")
    if not address:
        return
    if not address.startswith(("http://", "https://")):
        yield Finding(
            Level.PROBLEM,
            f"RAY_API_SERVER_ADDRESS={address} is no address of a dashboard",
            "write http://HOST:PORT",
        )
        return
    if _open(address):
        yield Finding(
            Level.PROBLEM,
            f"RAY_API_SERVER_ADDRESS={address} asks for no token: who reaches it may run code there as you",
            "start the cluster with RAY_AUTH_MODE=token, and set it here too",
        )
    headers = {}
    if environment.get("RAY_AUTH_MODE") == "token":
        file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        with contextlib.suppress(OSError):
            headers["Authorization"] = (
                f"Bearer {environment.get('RAY_AUTH_TOKEN') or file.read_text().strip()}"
            )
    here = importlib.metadata.version("ray")
    try:
        with urllib.request.urlopen(  # nosec B310 # the address begins with http, see above
            urllib.request.Request(f"{address.rstrip('/')}/api/jobs/", headers=headers), timeout=SECONDS
        ):
            pass
        with urllib.request.urlopen(  # nosec B310 # the address begins with http, see above
            urllib.request.Request(f"{address.rstrip('/')}/api/version", headers=headers), timeout=SECONDS
        ) as answer:
            there = json.loads(answer.read())["ray_version"]
    except urllib.error.HTTPError as error:
        refused = error.code in (401, 403)
        yield Finding(
            Level.PROBLEM,
            f"RAY_API_SERVER_ADDRESS={address} answers {error.code}"
            + (f": it wants {'another' if headers else 'a'} token" if refused else ""),
            "set RAY_AUTH_MODE=token and the cluster's token"
            if refused
            else "is this the dashboard of a Ray head?",
        )
    except (OSError, ValueError, KeyError) as error:
        yield Finding(
            Level.PROBLEM,
            f"RAY_API_SERVER_ADDRESS={address} does not answer: {first_line(error)}",
            (
                "start the head (clusters/local.sh start) or open the tunnel (ray dashboard, kubectl "
                "port-forward), or unset it"
            ),
        )
    else:
        if there != here:
            yield Finding(
                Level.PROBLEM,
                f"{address} has Ray {there}, and this machine {here}",
                f"pip install ray=={there}",
            )
        else:
            yield Finding(Level.FINE, f"ray job submit: {address}, Ray {there}")


def _open(address: str) -> bool:
    """Whether the dashboard lists its jobs for somebody without a token."""
    with (
        contextlib.suppress(OSError, ValueError),
        urllib.request.urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=SECONDS),  # nosec B310 # as above
    ):
        return True
    return False
