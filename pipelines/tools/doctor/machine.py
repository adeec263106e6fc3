"""Check this machine: packages, memory, GPUs, shared memory, disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from packaging.requirements import Requirement

from beit.errors import UserError
from pipelines.cluster import scratch
from pipelines.cluster.nodes import cores_here
from pipelines.tools.doctor.finding import Finding, Level

PACKAGE = "beit-pretraining"
GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # nosec B108 # only its size is read

# Ray gives its object store 30 % of the memory, and puts it on the disk if /dev/shm is smaller than that.
STORE_SHARE = 0.3
# Ray stops writing to a disk that is fuller than this.
FULLEST = 0.95
LEAST_DISK = 10 * GIB
LEAST_FILES = 4096


def versions() -> Iterator[Finding]:
    """Check Python and the installed packages against the versions that this package requires."""
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
    cores = cores_here()
    what = f"{cores:g} cores, {usable_memory() / GIB:.0f} GiB of memory"
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
    """Check which GPUs PyTorch can use, and which it cannot."""
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
    """Check the space for Ray's object store."""
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
    """Check the disk space for Ray's logs and spilled objects."""
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


def temporary(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check where the Ray of a command puts its folder, the space there, and what killed commands left."""
    try:
        where = scratch.place(environment)
    except UserError as error:
        yield Finding(Level.PROBLEM, error.cause, error.remedy)
        return
    wanted = scratch.wanted(environment)
    if where != wanted:
        yield Finding(
            Level.WARNING,
            f"{wanted} cannot be written, or is longer than the {scratch.LONGEST_PLACE} characters that "
            f"leave room for Ray's sockets: Ray's files go to {where}",
            "to choose another place, set RAY_TMPDIR to a short path",
        )
    yield from disk(where)
    if left := scratch.abandoned(where):
        yield Finding(
            Level.WARNING,
            f"{len(left)} folder(s) of killed commands in {where}, {len(scratch.users(left))} process(es) in "
            f"them: {', '.join(path.name for path in left[:3])}{', …' if len(left) > 3 else ''}",
            "nothing: the next command that starts Ray removes them",
        )


def usable_memory() -> float:
    """Return the bytes of memory that processes of this machine or container may use."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, float(text)) if text.isdigit() else total
