"""Folders for the Ray of one driver: below the first place whose path is short enough for sockets, closed to
other users, and removed at the end. What a killed driver left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from beit.errors import UserError

PREFIX = "beit-"
LOCK = "driver"
"""Name of a file that the driver holds locked as long as it lives."""

# Ray's sockets: FOLDER/1/session_2026-01-02_03-04-05_678901_PID/sockets/plasma_store
SOCKET = "/1/session_2026-01-02_03-04-05_678901_1234567/sockets/plasma_store"
LONGEST_SOCKET = 103
"""Bytes that the path of a Unix socket can have (on macOS; Linux allows four more)."""
LONGEST_PLACE = LONGEST_SOCKET - len(SOCKET) - len(f"/{PREFIX}12345678")

SHORT_PLACES = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # nosec B108 # `mkdtemp` makes what lies there


def wanted(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where temporary files of Ray are wanted."""
    return Path(environment.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()


def place(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where a driver's folder lies: where it is wanted, or if sockets there had paths that are too
    long, at the first short place that can be written.

    Raises:
        UserError: If there is no such place.
    """
    for folder in (wanted(environment), *SHORT_PLACES):
        if len(os.fsencode(folder)) <= LONGEST_PLACE and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise UserError(
        f"Ray's sockets need a folder whose path has at most {LONGEST_PLACE} characters, and "
        f"{wanted(environment)} has more or cannot be written",
        "set TMPDIR to a short path that can be written",
    )


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Create a folder that only this user can enter. First remove those of drivers that were killed."""
    where = place()
    for left in abandoned(where):
        remove(left)
    created = Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))
    try:
        with _held(created):
            yield created
    finally:
        shutil.rmtree(created, ignore_errors=True)


def abandoned(where: Path) -> list[Path]:
    """Return the folders of this user's drivers that have died: nobody holds their lock any more."""
    found = []
    for path in sorted(where.glob(f"{PREFIX}*/{LOCK}")):
        with contextlib.suppress(OSError), path.open() as lock:
            status = os.fstat(lock.fileno())
            # A file system of several machines may know only the locks of its own.
            if status.st_uid == os.getuid() and lock.read() == socket.gethostname() and _take(lock):
                found.append(path.parent)
    return found


def remove(left: Path) -> None:
    """End the processes that still use a dead driver's folder, and remove it."""
    with contextlib.suppress(OSError), (left / LOCK).open() as lock:
        if not _take(lock):
            return
        for process in users([left]):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(left, ignore_errors=True)


def users(folders: Sequence[Path]) -> list[int]:
    """Return the processes of this user that have a file of a folder open (on Linux)."""
    found, inside = [], tuple(f"{folder}/" for folder in folders)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == os.getuid() and any(
                os.readlink(file).startswith(inside) for file in (process / "fd").iterdir()
            ):
                found.append(int(process.name))
    return sorted(set(found) - {os.getpid()})


@contextlib.contextmanager
def _held(created: Path) -> Iterator[None]:
    """Hold the lock of a folder. It appears under its name when it is already locked."""
    new = created / f"{LOCK}.new"
    with new.open("w") as lock:
        lock.write(socket.gethostname())
        lock.flush()
        _take(lock)
        new.rename(created / LOCK)
        yield


def _take(lock: TextIO) -> bool:
    """Lock a file that nobody else has locked. The lock ends with the process, however that ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
