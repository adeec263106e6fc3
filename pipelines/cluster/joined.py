"""Ask a cluster whether it is there, and whether it asks for a token, before Ray tries to join it: Ray waits
many minutes for one that is gone.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from enum import Enum

from beit.errors import UserError

CONNECT_SECONDS = 5.0
"""Seconds within which a cluster's port takes a connection: that needs no free core."""
ANSWER_SECONDS = 30.0
"""Seconds that a cluster with much to do may take to answer."""

QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
CLIENT_QUESTION = "/ray.rpc.RayletDriver/ClusterInfo"
CLIENT = "ray://"
CLIENT_PORT = 10001


class Door(Enum):
    """What a cluster says to somebody without a token."""

    OPEN = "it asks for no token"
    LOCKED = "it asks for a token"
    UNKNOWN = "the connection is encrypted"


def named(environment: Mapping[str, str] = os.environ) -> str:
    """Return the address of the cluster that commands join; "" if each starts a Ray of its own."""
    address = environment.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address


def knock(address: str) -> Door:
    """Call at a cluster without a token.

    Args:
        address: HOST:PORT, ray://HOST:PORT, or auto for the cluster that runs on this machine.

    Raises:
        UserError: If there is no cluster.
    """
    where = _found(address)
    host, port = _split(where.removeprefix(CLIENT), address, CLIENT_PORT if CLIENT in where else None)
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            pass
    except OSError as error:
        raise unreachable(address, f"nobody answers ({error.strerror or error})") from error
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return Door.UNKNOWN
    return _ask(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", address, client=CLIENT in where)


def warning(address: str) -> str:
    """Return the line that warns of a cluster without tokens."""
    return (
        f"warning: the Ray cluster at {address} asks for no token: who reaches it may run code there as you; "
        "start it with RAY_AUTH_MODE=token"
    )


def _found(address: str) -> str:
    if address != "auto":
        return address
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError) as error:
        raise unreachable(address, "no Ray runs on this machine") from error


def _split(where: str, address: str, usual_port: int | None) -> tuple[str, int]:
    host, colon, port = where.partition("/")[0].rpartition(":")
    if not colon and usual_port is not None:
        host, port = port, str(usual_port)
    if not host or not port.isdigit():
        raise unreachable(address, "it is no HOST:PORT")
    return host.strip("[]"), int(port)


def _ask(target: str, address: str, *, client: bool) -> Door:
    import grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            # Both take a message without content, which is no bytes at all.
            channel.unary_unary(CLIENT_QUESTION if client else QUESTION)(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.UNAUTHENTICATED:
                return Door.LOCKED
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise unreachable(address, "it takes the connection, and gives no answer") from error
            if code == grpc.StatusCode.UNIMPLEMENTED:
                raise unreachable(address, "what answers there is no Ray cluster") from error
    return Door.OPEN


def unreachable(address: str, why: str) -> UserError:
    """Return the error for a cluster that is not there."""
    return UserError(
        f"RAY_ADDRESS={address} cannot be reached: {why}",
        "unset RAY_ADDRESS to run on this machine alone, or start the cluster",
    )
