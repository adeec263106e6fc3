"""Fixtures of the tests of jobs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest


@pytest.fixture
def beit() -> Callable[..., str]:
    """Run a command of `beit` in a process of its own, and return what it printed.

    With `until`, the process gets SIGKILL as soon as that is true, and must not have ended before.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}

    def run(job: str, *arguments: object, until: Callable[[], bool] | None = None, limit: float = 600) -> str:
        command = [sys.executable, "-m", f"pipelines.{job}", *map(str, arguments)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = time.monotonic() + limit
        try:
            while until is not None and process.poll() is None and not until():
                assert time.monotonic() < deadline, f"not within {limit} s"
                time.sleep(0.01)
            if until is not None:
                process.kill()
            printed = process.communicate(timeout=limit)[0]
        finally:
            process.kill()
        assert process.returncode == (0 if until is None else -9), printed
        return printed

    return run
