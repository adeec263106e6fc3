"""Describe this machine and its software versions in one line, to head a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path


def machine_line(*packages: str) -> str:
    """Return processor and versions. A measurement cannot be compared without them."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{os.cpu_count()} x {_processor()} | python {platform.python_version()}, {versions}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
