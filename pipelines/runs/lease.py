"""One driver a run: the living driver holds a lease in the run folder, driver.json, and renews it.

A driver that died does not keep the lease. On the same machine its process is gone; of a driver on another
machine, the file no longer changes. No clocks are compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from beit.errors import UserError
from pipelines import storage

LEASE_FILE = "driver.json"

RENEW_SECONDS = 10.0

PATIENCE_SECONDS = 35.0
"""How long a lease must not change until its driver on another machine is taken for dead."""

SETTLE_SECONDS = 0.5
"""Of several drivers that take over a lease at once, only the last one finds itself in it after this long."""


@contextlib.contextmanager
def hold(run: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lease of a run.

    Args:
        run: Run folder, which exists.
        say: Takes the lines for the user.

    Raises:
        UserError: If a living driver holds it.
    """
    file, own = storage.join(run, LEASE_FILE), _own()
    _acquire(run, file, own, say)
    ended = threading.Event()
    renewing = threading.Thread(
        target=_renew, args=(file, own, ended, say, threading.current_thread()), daemon=True
    )
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(OSError):
            if _id(_read(file)) == own["id"]:
                storage.delete_file(file)


def _acquire(run: str, file: str, own: dict[str, Any], say: Callable[[str], None]) -> None:
    found = _read(file)
    if found is None:
        if storage.write_new(file, json.dumps(own)):
            return
        time.sleep(SETTLE_SECONDS)  # Another driver was first, and may still be writing.
        found = _read(file)
    if found is not None and _lives(found, file, say):
        raise UserError(
            f"{run} has a driver already: process {found.get('pid')} on {found.get('host')}, since "
            f"{found.get('since')}",
            "wait until it ends, or stop it (kill -INT leaves a last checkpoint)",
        )
    storage.write_text(file, json.dumps(own))
    time.sleep(SETTLE_SECONDS)
    now = _read(file)
    if _id(now) != own["id"]:
        raise UserError(
            f"{run} was taken over by another driver at the same time: process {(now or {}).get('pid')} on "
            f"{(now or {}).get('host')}",
            "start one driver for a run",
        )


def _lives(found: dict[str, Any], file: str, say: Callable[[str], None]) -> bool:
    """Whether the driver that holds a lease is alive."""
    if found.get("place") == _place():
        return found.get("born") is not None and _born(int(found["pid"])) == found["born"]
    say(f"waiting {PATIENCE_SECONDS:.0f} s to see whether the run's driver on {found.get('host')} is alive")
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, PATIENCE_SECONDS / 10))
        now = _read(file)
        if now is None:
            return False
        if now != found:
            return True
    return False


def _renew(
    file: str,
    own: dict[str, Any],
    ended: threading.Event,
    say: Callable[[str], None],
    holder: threading.Thread,
) -> None:
    """Renew the lease until `ended`; where another driver has taken it over, interrupt this one."""
    renewals = 0
    while not ended.wait(RENEW_SECONDS):
        # Storage that does not answer for a while is no reason to end.
        with contextlib.suppress(OSError, UserError):
            found = _read(file)
            if found is not None and _id(found) != own["id"]:
                other = f"process {found.get('pid')} on {found.get('host')}"
                say(f"this driver was taken for dead: {other} has taken over the run; it ends")
                if holder is threading.main_thread() and holder.ident is not None:
                    # A shell lets its background jobs ignore Ctrl-C.
                    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
                    for _ in range(2):  # The first would write a last checkpoint.
                        signal.pthread_kill(holder.ident, signal.SIGTERM if ignored else signal.SIGINT)
                return
            renewals += 1
            storage.write_text(file, json.dumps({**own, "renewals": renewals}))


def _own() -> dict[str, Any]:
    return {
        "id": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "place": _place(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "renewals": 0,
    }


def _read(file: str) -> dict[str, Any] | None:
    """Read a lease; None if there is none, or it is torn."""
    try:
        content = json.loads(storage.read_text(file))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _id(lease: dict[str, Any] | None) -> object:
    return None if lease is None else lease.get("id")


def _place() -> str:
    """Name where process numbers mean the same: a machine since its start, or a container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return ":".join(parts)


def _born(pid: int) -> str | None:
    """When a process began, the same as long as it lives; None if there is none. Numbers are used again."""
    try:
        if Path(
            "/proc/self/stat"
        ).exists():  # Clock ticks since the machine started; the name may have spaces.
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
