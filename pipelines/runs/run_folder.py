"""The run folder, in which a run keeps its configuration, checkpoints, metrics and report."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import itertools
import json
import operator
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from beit.errors import UserError
from beit.plain import from_dict, to_dict
from pipelines import schemes, storage
from pipelines.config.jobs import FolderConfig, HasData
from pipelines.redaction import redact, refuse_secrets
from pipelines.runs.checkpoints import attempts, split_checkpoint

Config = TypeVar("Config", bound=HasData)

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"

LATEST = "latest"
"""Stands for the newest run."""

JOB_FOLDER = "working_dir_files"
"""Ray's name for the folder that holds what `ray job submit --working-dir` uploads."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, local or on a bucket; `attempt` counts how often the run was started."""

    uri: str
    attempt: int

    def path(self, *names: str) -> str:
        """Return the path of a file or folder of the run."""
        return storage.join(self.uri, *names)

    @property
    def attempt_name(self) -> str:
        """Folder with Ray Train's state and the checkpoints of this start."""
        return f"attempt-{self.attempt}"


def check_free(config: HasData) -> None:
    """Refuse a name that is in use, and a folder that Ray will delete.

    Raises:
        UserError: If a run of that name exists, or the folder would lie in the copy of the checkout that a
            submitted job works in.
    """
    if JOB_FOLDER in Path(storage.absolute(config.output.root)).parts:
        raise UserError(
            (
                f"output.root={config.output.root} lies in the job's own folder, which Ray deletes: the run "
                "would be lost"
            ),
            "set --output.root to a bucket, or to an absolute path on storage that all machines share",
        )
    if config.output.name is None:
        return
    uri = storage.join(storage.absolute(config.output.root), config.output.name)
    if storage.exists(storage.join(uri, CONFIG_FILE)):
        raise UserError(
            f"output.name={config.output.name}: there is a run of that name at {uri}",
            f"resume it by --resume {uri}, or choose another --output.name",
        )


def create(config: HasData, *, job: str, preset: str, inputs: Mapping[str, str] | None = None) -> RunFolder:
    """Make the folder of a new run and save its configuration and environment there.

    Args:
        config: The whole run.
        job: Name of the job.
        preset: First part of the folder's name, unless `output.name` is given.
        inputs: Digests of what the run reads, by the option that names it: a resumed run must find the same.

    Raises:
        UserError: If a run of that name exists.
    """
    check_free(config)
    saved = _saved(config, job=job, preset=preset, inputs=inputs)
    began = f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([began], (f"{began}-{number}" for number in itertools.count(2)))
    for name in [config.output.name] if config.output.name else names:
        uri = storage.join(storage.absolute(config.output.root), name)
        if storage.write_new(storage.join(uri, CONFIG_FILE), saved):
            break
    else:
        check_free(config)  # Another driver has made the run since.
    storage.write_text(storage.join(uri, ENVIRONMENT_FILE), redact(json.dumps(environment(), indent=2)))
    return RunFolder(uri, 1)


def save_config(
    uri: str, config: HasData, *, job: str, preset: str, inputs: Mapping[str, str] | None = None
) -> None:
    """Write the configuration of a run; the arguments are those of `create`."""
    storage.write_text(storage.join(uri, CONFIG_FILE), _saved(config, job=job, preset=preset, inputs=inputs))


def _saved(config: HasData, *, job: str, preset: str, inputs: Mapping[str, str] | None) -> str:
    """The text of a config.json."""
    saved = {"job": job, "preset": preset, "inputs": dict(inputs or {}), "config": to_dict(config)}
    refuse_secrets(str(value) for value in flatten(to_dict(config)).values())
    return json.dumps(saved, indent=2)


def reopen(uri: str, *, inputs: Mapping[str, str]) -> RunFolder:
    """Open the folder of a run to resume.

    Raises:
        UserError: If the data or the tokenizer have changed since the run began.
    """
    uri = storage.absolute(uri)
    before = saved_run(uri).inputs
    for option, digest in inputs.items():
        if before.get(option) != digest:
            raise UserError(
                (
                    f"--resume {uri}: what {option} names is not what the run began with (digest "
                    f"{before.get(option)}, now {digest})"
                ),
                "bring back the files as they were, or start a new run",
            )
    return RunFolder(uri, 1 + max(attempts(uri), default=0))


def record_changes(uri: str, config: HasData, *, step: int) -> list[str]:
    """Enter the changed options of a resumed run that its config.json keeps a history of.

    Args:
        uri: The run.
        config: As it goes on.
        step: From which step.

    Returns:
        A line for each.
    """
    file = storage.join(uri, CONFIG_FILE)
    saved = json.loads(storage.read_text(file))
    before, after = flatten(saved["config"]), flatten(to_dict(config))
    changed = {
        name: [before[name], after[name]]
        for name in config.recorded_on_resume
        if name in before and before[name] != after[name]
    }
    if not changed:
        return []
    for name, (_, value) in changed.items():
        *groups, last = name.split(".")
        functools.reduce(operator.getitem, groups, saved["config"])[last] = value
    entry = {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changed": changed}
    saved["history"] = [*saved.get("history", []), entry]
    storage.write_text(file, json.dumps(saved, indent=2))
    return [
        f"{name} was {old} and is {new} from step {step:,}; {CONFIG_FILE} keeps both"
        for name, (old, new) in changed.items()
    ]


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """The contents of a run's config.json."""

    job: str
    preset: str
    inputs: dict[str, str]
    """Digests of the data that the run reads, by the option that names it."""
    config: dict[str, Any]
    """The configuration as `to_dict` returned it."""


def saved_run(path: str) -> SavedRun:
    """Read the configuration that a run was started with, of any job.

    Args:
        path: A run folder, a checkpoint in one, or the config.json of one.

    Raises:
        UserError: If there is no run at this path.
    """
    schemes.check_scheme(path)
    uri = storage.absolute(split_checkpoint(path)[0])
    file = uri if uri.endswith(".json") else storage.join(uri, CONFIG_FILE)
    if not storage.exists(file):
        raise UserError(f"{path} is no run: there is no {file}", _suggest_run(uri))
    try:
        saved = json.loads(storage.read_text(file))
        found = SavedRun(
            job=saved["job"],
            preset=saved["preset"],
            inputs=dict(saved["inputs"]),
            config=dict(saved["config"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{file} is no run's configuration: {why}",
            "give the folder of a run, not of a checkpoint or model in it",
        ) from error
    return found


def saved_config(path: str, kind: type[Config], *, job: str) -> tuple[Config, str]:
    """Read the configuration that a run was started with, and the name of its preset.

    Args:
        path: A run folder, a checkpoint in one, or the config.json of one.
        kind: Type of the job's configuration.
        job: The job that the run must belong to.

    Raises:
        UserError: If there is no run of this job.
    """
    saved = saved_run(path)
    if saved.job != job:
        raise UserError(f"{path} belongs to the job {saved.job}, not to {job}", f"use beit {saved.job}")
    return from_dict(kind, saved.config), saved.preset


def check_same(saved: HasData, asked: HasData) -> None:
    """Refuse to resume with options that would change the result.

    Raises:
        UserError: If there are any; the message names each with both values.
    """
    before, after = flatten(to_dict(saved)), flatten(to_dict(asked))
    free_names = (*asked.free_on_resume, *asked.recorded_on_resume)
    free = {name for name in before if name.startswith(free_names)} - {"resources.precision"}
    changed = [name for name in before if before[name] != after[name] and name not in free]
    if changed:
        differences = ", ".join(f"{name} was {before[name]} and is now {after[name]}" for name in changed)
        raise UserError(
            f"--resume: the run cannot continue with other settings: {differences}",
            "leave these out, or start a new run",
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"peak_lr": 1}} -> {"optim.peak_lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return flat


def environment() -> dict[str, Any]:
    """Collect software versions and the machine, to be saved with a run. Environment variables are left out:
    they may hold secrets.
    """
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "ray", "pyarrow", "numpy", "pillow", "mlflow", "simplejpeg")
    }
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "versions": versions,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "commit": _commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _commit() -> str | None:
    """The commit of the checkout that the code runs from; None for a copy without history."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def find_run(given: str, *, job: str) -> str:
    """Return the path of the run that a user means.

    Args:
        given: A path; "latest" for the newest run of the job in the usual folder; or the name of a run there.
        job: The run's.

    Raises:
        UserError: If there is no latest run.
    """
    root = FolderConfig().root
    if given == LATEST and not storage.exists(given):
        found = []
        for name in storage.list_folder(root):
            file = storage.entry(storage.join(root, name, CONFIG_FILE))
            if file is not None and saved_run(storage.join(root, name)).job == job:
                found.append((file.changed_ns, storage.join(root, name)))
        if not found:
            raise UserError(
                f"--resume {LATEST}: there is no run of {job} in {root}/", "give the folder of a run"
            )
        return max(found)[1]
    named = storage.join(root, given)
    usual = (
        "/" not in given and not storage.exists(given) and storage.exists(storage.join(named, CONFIG_FILE))
    )
    return named if usual else given


def _suggest_run(uri: str) -> str:
    parent, _, name = uri.rpartition("/")
    names = storage.list_folder(parent) if parent and storage.exists(parent) else []
    close = difflib.get_close_matches(name, names, n=1)
    return (
        f"perhaps you meant {parent}/{close[0]}"
        if close
        else "give the folder of a run, such as runs/quickstart-20260101-120000"
    )
