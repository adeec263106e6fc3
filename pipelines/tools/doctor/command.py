"""`beit doctor`: find what would stop a run on this machine or on the cluster, and name a remedy for each
problem.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from beit.checks import CommandConfig
from pipelines.command_line.options import parse
from pipelines.schemes import StoragePath
from pipelines.tools.doctor.cluster import job_server, ray_cluster, token
from pipelines.tools.doctor.finding import Finding, Level
from pipelines.tools.doctor.machine import gpus, machine, shared_memory, temporary, usable_memory, versions
from pipelines.tools.doctor.places import mlflow, written


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(CommandConfig):
    """Find what would stop a run on this machine or on the cluster."""

    root: StoragePath = "runs"
    """Folder or bucket URI of the run folders. To test it, a file is written there, read and deleted."""


def examine(config: DoctorConfig, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Run all checks, and yield their findings. No check raises an exception."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        versions,
        machine,
        gpus,
        lambda: shared_memory(usable_memory()),
        lambda: temporary(environment),
        lambda: token(environment),
        lambda: ray_cluster(environment),
        lambda: job_server(environment),
        lambda: written(config.root),
        lambda: mlflow(config.root, environment),
    ]
    for check in checks:
        yield from check()


def exit_code(findings: list[Finding]) -> int:
    """Return 2 if there are problems, otherwise 0: warnings do not count."""
    return 2 if any(finding.level == Level.PROBLEM for finding in findings) else 0


def command(arguments: list[str], debug: bool) -> None:
    """`beit doctor`."""
    findings = []
    for finding in examine(parse(arguments, DoctorConfig, command="doctor", positional=())):
        findings.append(finding)
        print("\n".join(finding.lines()), flush=True)
    if code := exit_code(findings):
        sys.exit(code)
