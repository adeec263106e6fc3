"""The checkpoints of a run: which are there, and whether they are what was written.

RUN/attempt-A/step-S holds the files of the objective, the optimizer and the ledger, and progress.json, which
lists all others with their sizes and SHA-256 digests (`sha256sum` checks them too) and has one of itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit.errors import UserError
from pipelines import storage

PROGRESS_FILE = "progress.json"

PASSED_OVER_FILE = "passed-over.txt"
"""Lies in a checkpoint that is damaged, or that a user went back beyond, and says which. No run begins with
such a checkpoint."""

ATTEMPT_NAME = re.compile(r"attempt-(\d+)")
CHECKPOINT_NAME = re.compile(r"step-(\d+)(-restart\d+)?")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress.json of a checkpoint."""

    step: int

    seconds: float
    """Seconds of training until then, without starts."""

    sizes: dict[str, int]
    """Bytes of every other file."""

    digests: dict[str, str]
    """SHA-256 of every other file, in hex. Checkpoints of older versions have none."""


def seal(folder: Path, *, step: int, seconds: float) -> None:
    """Write the progress.json of a checkpoint whose other files are all there."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    with ThreadPoolExecutor() as threads:  # OpenSSL lets other threads compute meanwhile.
        digests = list(threads.map(lambda path: file_digest(str(path)), paths))
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    content: dict[str, Any] = {"step": step, "seconds": seconds, "files": files}
    (folder / PROGRESS_FILE).write_text(json.dumps({**content, "sha256": _digest_of(content)}))


def read_progress(checkpoint: str) -> Progress:
    """Read the progress.json of a checkpoint.

    Raises:
        ValueError: If it is not what was written, in a few words.
    """
    try:
        content = json.loads(storage.read_text(storage.join(checkpoint, PROGRESS_FILE)))
        own = content.pop("sha256", None)
        files = content["files"]
        sizes = {name: entry if isinstance(entry, int) else entry["bytes"] for name, entry in files.items()}
        digests = {name: entry["sha256"] for name, entry in files.items() if not isinstance(entry, int)}
        step, seconds = int(content["step"]), float(content["seconds"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{PROGRESS_FILE} cannot be read") from error
    named = CHECKPOINT_NAME.fullmatch(storage.name(checkpoint))
    if own not in (None, _digest_of(content)) or (named and int(named[1]) != step):
        raise ValueError(f"{PROGRESS_FILE} is not what was written")
    return Progress(step=step, seconds=seconds, sizes=sizes, digests=digests)


def check_files(folder: str, progress: Progress) -> None:
    """Compare the files of a checkpoint with what was written.

    Args:
        folder: The checkpoint.
        progress: Its progress.json.

    Raises:
        ValueError: Naming a file that is not what was written.
    """
    names = sorted(progress.digests)
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda name: file_digest(storage.join(folder, name)), names)
        for name, digest in zip(names, found, strict=True):
            if digest != progress.digests[name]:
                raise ValueError(f"{name} is not what was written")


def latest_checkpoint(run: str) -> str | None:
    """Return the complete checkpoint with the most steps over all attempts; None if there is none."""
    return next(iter(_complete_checkpoints(run)), None)


def step_of(checkpoint: str) -> int:
    """Return the step of a complete checkpoint."""
    return read_progress(checkpoint).step


def forget_checkpoints(run: str, *, keep: int) -> None:
    """Delete all but the newest complete checkpoints; Ray Train does so within an attempt only."""
    for folder in _complete_checkpoints(run)[keep:]:
        storage.delete_folder(folder)


def set_damaged_aside(run: str, say: Callable[[str], None]) -> None:
    """Read every file of the newest checkpoint. Where one is not what was written, say so, mark the
    checkpoint as damaged, and look at the one before.

    Raises:
        UserError: If all are damaged.
    """
    damaged: list[str] = []
    for checkpoint in _checkpoints(run):
        marker = storage.join(checkpoint, PASSED_OVER_FILE)
        if storage.exists(marker):
            damaged.append(f"{checkpoint}: {storage.read_text(marker).strip()}")
        elif (fault := _fault(checkpoint)) is not None:
            storage.write_text(marker, f"{fault}\n")
            damaged.append(f"{checkpoint}: {fault}")
            say(f"warning: {damaged[-1]}; it is passed over")
        elif is_complete(checkpoint):
            return
        # Else its upload was broken off, as the run was killed meanwhile.
    if damaged:
        raise UserError(
            f"no checkpoint of {run} can be used; {damaged[0]}",
            f"bring back a copy of it (and delete its {PASSED_OVER_FILE}), or start a new run",
        )


def split_checkpoint(path: str) -> tuple[str, str | None]:
    """Split the path of a run's checkpoint into the run and the checkpoint; of another path, a run alone."""
    uri = storage.absolute(path)
    attempt = storage.parent(uri)
    if CHECKPOINT_NAME.fullmatch(storage.name(uri)) and ATTEMPT_NAME.fullmatch(storage.name(attempt)):
        return storage.parent(attempt), uri
    return path, None


def go_back_to(checkpoint: str, say: Callable[[str], None]) -> None:
    """Make a checkpoint the newest of its run: later ones are kept, and passed over.

    Raises:
        UserError: If it is not complete, or not what was written.
    """
    run, _ = split_checkpoint(checkpoint)
    if (fault := _fault(checkpoint)) is not None or not is_complete(checkpoint):
        raise UserError(
            f"--resume {checkpoint}: {fault or 'it is no complete checkpoint'}",
            f"name another checkpoint of {run}, or the run itself for its newest",
        )
    step = step_of(checkpoint)
    later = [other for other in _complete_checkpoints(run) if other != checkpoint and step_of(other) >= step]
    for other in later:
        storage.write_text(
            storage.join(other, PASSED_OVER_FILE), f"the run was resumed from {checkpoint}, step {step:,}\n"
        )
        say(f"{other} is passed over; it is kept until you delete it")


def is_complete(checkpoint: str) -> bool:
    """Whether every file that the checkpoint's progress file lists is there in its full size, and it is not
    to be passed over.
    """
    sizes = {entry.name: entry.size for entry in storage.list_files(checkpoint)}
    if PROGRESS_FILE not in sizes or PASSED_OVER_FILE in sizes:
        return False
    try:
        wanted = read_progress(checkpoint).sizes
    except ValueError:
        return False
    return all(sizes.get(name) == size for name, size in wanted.items())


def attempts(run: str) -> list[int]:
    """List the numbers of the starts of a run."""
    names = (ATTEMPT_NAME.fullmatch(name) for name in storage.list_folder(run))
    return [int(name[1]) for name in names if name]


def _fault(checkpoint: str) -> str | None:
    """Say what is wrong with a checkpoint whose progress.json was written; None if nothing is."""
    sizes = {entry.name: entry.size for entry in storage.list_files(checkpoint)}
    if PROGRESS_FILE not in sizes:
        return None
    try:
        progress = read_progress(checkpoint)
        for name, size in progress.sizes.items():
            if sizes.get(name) != size:
                there = "is missing" if name not in sizes else f"has {sizes[name]:,} of {size:,} bytes"
                raise ValueError(f"{name} {there}")
        check_files(checkpoint, progress)
    except ValueError as error:
        return str(error)
    return None


def _complete_checkpoints(run: str) -> list[str]:
    """List the complete checkpoints, newest first."""
    return [folder for folder in _checkpoints(run) if is_complete(folder)]


def _checkpoints(run: str) -> list[str]:
    """List the folders of all checkpoints, newest first."""
    found: list[tuple[int, int, str]] = []
    for attempt in attempts(run):
        folder = storage.join(run, f"attempt-{attempt}")
        names = (CHECKPOINT_NAME.fullmatch(name) for name in storage.list_folder(folder))
        found += [(int(name[1]), attempt, storage.join(folder, name[0])) for name in names if name]
    return [folder for *_, folder in sorted(found, reverse=True)]


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file, in hex."""
    with storage.open_input(path) as file:
        return _sha256(file)


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while part := file.read(8 << 20):
        digest.update(part)
    return digest.hexdigest()


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
