"""Check the Ray cluster that commands join, and its job server."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from beit.errors import UserError
from pipelines.cluster import session
from pipelines.cluster.nodes import cluster_nodes
from pipelines.tools.doctor.finding import Finding, Level, first_line

SECONDS = 5.0
"""Seconds to wait for an address to answer."""


def token(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that Ray's token authentication is on, and that the token's file is private."""
    mode = environment.get("RAY_AUTH_MODE", "")
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if file.exists() and stat.S_IMODE(file.stat().st_mode) & 0o077:
        yield Finding(
            Level.WARNING,
            f"{file} can be read by others: who has the token may run code on the cluster",
            f"chmod 600 {file}",
        )
    cluster = environment.get("RAY_ADDRESS") or environment.get("RAY_API_SERVER_ADDRESS")
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
    elif cluster:
        yield Finding(
            Level.WARNING,
            (
                f"RAY_AUTH_MODE={mode or '(not set)'} for the cluster at {cluster}: who reaches it may run "
                "code there"
            ),
            "start the cluster with RAY_AUTH_MODE=token, and set it here too",
        )


def ray_cluster(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the cluster that commands join answers, and list its nodes."""
    address = environment.get("RAY_ADDRESS", "")
    if not address or address == "local":
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
    if address != "auto" and (trouble := _unreachable(address.removeprefix("ray://"))):
        yield Finding(
            Level.PROBLEM, f"RAY_ADDRESS={address}: {trouble}", "start the cluster, or unset RAY_ADDRESS"
        )
        return

    try:
        with session.start():
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
    headers = {}
    if environment.get("RAY_AUTH_MODE") == "token":
        file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        with contextlib.suppress(OSError):
            headers["Authorization"] = (
                f"Bearer {environment.get('RAY_AUTH_TOKEN') or file.read_text().strip()}"
            )
    here = importlib.metadata.version("ray")
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{address.rstrip('/')}/api/jobs/", headers=headers), timeout=SECONDS
        ):
            pass
        with urllib.request.urlopen(
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


def _unreachable(address: str) -> str:
    """Say why HOST:PORT cannot be reached; "" if it can."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return "it is no HOST:PORT"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS):
            return ""
    except OSError as error:
        return f"nobody answers ({first_line(error)})"
