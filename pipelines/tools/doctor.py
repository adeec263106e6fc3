"""`beit doctor`: find what would stop a run on this machine or on the cluster, each with a remedy."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import stat
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

import torch
from packaging.requirements import Requirement

from beit.checks import CommandConfig
from beit.errors import UserError
from pipelines import storage
from pipelines.cluster import session
from pipelines.cluster.nodes import cluster_nodes
from pipelines.command_line.options import parse
from pipelines.runs import tracking

PACKAGE = "beit-pretraining"
SECONDS = 5.0
"""Patience with an address."""

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")

# Ray gives its object store 30 % of the memory, and puts it on the disk where /dev/shm is smaller.
STORE_SHARE = 0.3
# Ray writes nothing more to a disk that is fuller than this.
FULLEST = 0.95
LEAST_DISK = 10 * GIB
LEAST_FILES = 4096


class Level(Enum):
    """How bad a finding is; also the word before its line."""

    FINE = "ok"
    WARNING = "warn"
    PROBLEM = "FAIL"


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(CommandConfig):
    """What to look at besides this machine."""

    root: str = "runs"
    """Folder or bucket URI of the run folders: a file is written there, read and deleted."""


@dataclass(frozen=True)
class Finding:
    """One checked thing."""

    level: Level
    what: str
    remedy: str = ""

    def lines(self) -> list[str]:
        """Write the finding as text; the remedy on a line of its own."""
        return [f"{self.level.value:<6}{self.what}", *([f"      -> {self.remedy}"] if self.remedy else [])]


def examine(config: DoctorConfig, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check everything, one finding after the other; none of them raises."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        versions,
        machine,
        gpus,
        lambda: shared_memory(_memory()),
        lambda: disk(Path(environment.get("RAY_TMPDIR") or tempfile.gettempdir())),
        lambda: token(environment),
        lambda: ray_cluster(environment),
        lambda: job_server(environment),
        lambda: written(config.root),
        lambda: mlflow(config.root, environment),
    ]
    for check in checks:
        yield from check()


def exit_code(findings: list[Finding]) -> int:
    """Return 2 if there are problems, else 0: warnings stop nothing."""
    return 2 if any(finding.level == Level.PROBLEM for finding in findings) else 0


def versions() -> Iterator[Finding]:
    """Check Python and the installed packages against those that the package asks for."""
    try:
        metadata = importlib.metadata.metadata(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            Level.WARNING,
            f"{PACKAGE} is not installed: the versions are not checked",
            "pip install -c constraints.txt -e .",
        )
        return
    requirements = [
        Requirement(text) for text in metadata.get_all("Requires-Dist") or () if "extra ==" not in text
    ]
    found, wrong = [f"python {platform.python_version()}"], []
    for requirement in [Requirement(f"python{metadata['Requires-Python']}"), *requirements]:
        try:
            version = (
                platform.python_version()
                if requirement.name == "python"
                else importlib.metadata.version(requirement.name)
            )
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
        if requirement.name in ("torch", "ray", "mlflow"):
            found.append(f"{requirement.name} {version}")
    if wrong:
        yield Finding(
            Level.PROBLEM,
            "; ".join(wrong),
            "pip install -c constraints.txt -e . (the versions that were tested)",
        )
    else:
        yield Finding(Level.FINE, ", ".join(found))


def machine() -> Iterator[Finding]:
    """Check cores, memory, and other work on the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    what = f"{cores} cores, {_memory() / GIB:.0f} GiB of memory"
    load = os.getloadavg()[0]
    if load > cores:
        yield Finding(
            Level.WARNING,
            f"{what}; load {load:.1f}: other work holds the cores",
            "wait for it, or use fewer by --resources.cpus",
        )
    else:
        yield Finding(Level.FINE, what)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < LEAST_FILES:
        yield Finding(
            Level.WARNING,
            f"a process may open {files:,} files; Ray on many cores needs more",
            "ulimit -n 65536",
        )


def gpus() -> Iterator[Finding]:
    """Check the GPUs that PyTorch can use, and those that it cannot."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Finding(
            Level.FINE,
            f"{len(names)} GPU(s): {', '.join(sorted(set(names)))}{'' if bf16 else ', without bfloat16'}",
        )
    elif shutil.which("nvidia-smi"):
        why = (
            "PyTorch is built without CUDA"
            if torch.version.cuda is None
            else f"PyTorch's CUDA {torch.version.cuda} cannot use it"
        )
        yield Finding(
            Level.PROBLEM,
            f"there is an NVIDIA driver, but {why}",
            "install PyTorch for this driver: nvidia-smi shows its CUDA",
        )
    else:
        yield Finding(Level.FINE, "no GPU: training on CPUs")


def shared_memory(memory: float, path: Path = SHARED_MEMORY) -> Iterator[Finding]:
    """Check the room for Ray's object store."""
    if not path.exists():
        yield Finding(Level.FINE, f"no {path}: Ray's object store lies elsewhere on this system")
        return
    free = shutil.disk_usage(path).free
    needed = STORE_SHARE * memory
    if free < needed:
        yield Finding(
            Level.WARNING,
            (
                f"{path} has {free / GIB:.1f} GiB free; Ray's object store wants {needed / GIB:.1f} GiB, and "
                "the disk is many times slower"
            ),
            f"in Docker --shm-size {needed / GIB:.0f}g, on Kubernetes an emptyDir of medium Memory",
        )
    else:
        yield Finding(Level.FINE, f"{path}: {free / GIB:.0f} GiB free for Ray's object store")


def disk(path: Path) -> Iterator[Finding]:
    """Check the room for Ray's logs and spilled objects."""
    usage = shutil.disk_usage(path)
    full = 1 - usage.free / usage.total
    what = f"{path}: {usage.free / GIB:.0f} GiB free, {full:.0%} full"
    if full > FULLEST:
        yield Finding(
            Level.PROBLEM,
            f"{what}; Ray refuses to spill above {FULLEST:.0%}",
            "make room, or point RAY_TMPDIR and TMPDIR elsewhere",
        )
    elif usage.free < LEAST_DISK:
        yield Finding(
            Level.WARNING,
            f"{what}; Ray spills and logs there",
            "make room, or point RAY_TMPDIR and TMPDIR elsewhere",
        )
    else:
        yield Finding(Level.FINE, what)


def token(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that Ray's token authentication is on, and its file private."""
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
            f"RAY_API_SERVER_ADDRESS={address} does not answer: {_first_line(error)}",
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


def written(root: str) -> Iterator[Finding]:
    """Write a file where runs go, read it, delete it."""
    place = storage.join(storage.absolute(root), f".doctor-{uuid.uuid4().hex}")
    folder = Path(storage.absolute(root))
    made = (
        [] if storage.is_remote(root) else [path for path in (folder, *folder.parents) if not path.exists()]
    )
    try:
        storage.write_bytes(place, b"beit")
        same = storage.read_bytes(place) == b"beit"
        storage.delete_file(place)
        for path in made:
            path.rmdir()
    except UserError as error:
        yield Finding(Level.PROBLEM, f"runs in {root}: {error.cause}", error.remedy)
    except OSError as error:
        yield Finding(
            Level.PROBLEM,
            f"runs in {root} cannot be written: {_first_line(error)}",
            "credentials? the region? another --root?",
        )
    else:
        if same:
            yield Finding(Level.FINE, f"runs in {storage.absolute(root)}: written, read and deleted")
        else:
            yield Finding(
                Level.PROBLEM, f"runs in {root}: what was read is not what was written", "use another --root"
            )


def mlflow(root: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check the place of the metrics."""
    try:
        place = tracking.place_of(storage.join(storage.absolute(root), "run"), experiment="beit", params={})
    except OSError:
        return  # The bucket cannot be reached: that has a finding of its own.
    if place is None:
        yield Finding(
            Level.WARNING, tracking.NO_PLACE, "mlflow server, and export MLFLOW_TRACKING_URI=http://HOST:5000"
        )
    elif place.is_own_file:
        yield Finding(Level.FINE, f"MLflow: {place.uri}, for one machine")
    else:
        try:
            tracking.check(storage.join(storage.absolute(root), "run"), place)
        except UserError as error:
            yield Finding(Level.PROBLEM, error.cause, error.remedy)
        else:
            yield Finding(
                Level.FINE,
                f"MLflow: {urlsplit(place.uri).scheme}://{urlsplit(place.uri).hostname or ''} answers",
            )


def _unreachable(address: str) -> str:
    """Say why HOST:PORT cannot be reached; "" if it can."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return "it is no HOST:PORT"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS):
            return ""
    except OSError as error:
        return f"nobody answers ({_first_line(error)})"


def _memory() -> float:
    """Return the bytes that processes of this machine or container may use."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, float(text)) if text.isdigit() else total


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def command(arguments: list[str], debug: bool) -> None:
    """`beit doctor`."""
    findings = []
    for finding in examine(parse(arguments, DoctorConfig, command="doctor", positional=())):
        findings.append(finding)
        print("\n".join(finding.lines()), flush=True)
    if code := exit_code(findings):
        sys.exit(code)
