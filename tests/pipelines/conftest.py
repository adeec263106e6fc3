"""Fixtures of the tests of jobs."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def run_beit() -> Iterator[Callable[..., str]]:
    """Run a command of `beit` in a process of its own, and return what it printed.

    With `until`, the process gets SIGKILL as soon as that is true, and must not have ended before.
    """
    # What a killed process leaves of Ray lies there. Not in pytest's own folder, whose path is too long for
    # Ray's sockets.
    folder = Path(tempfile.mkdtemp())
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }
    environment["TMPDIR"] = str(folder)
    printed = folder / "printed"

    def run(job: str, *arguments: object, until: Callable[[], bool] | None = None, limit: float = 600) -> str:
        command = [sys.executable, "-m", f"pipelines.{job}", *map(str, arguments)]
        deadline = time.monotonic() + limit
        with (
            printed.open("w") as out,
            subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT) as process,
        ):
            try:
                while process.poll() is None and not (until is not None and until()):
                    assert time.monotonic() < deadline, f"not within {limit} s: {printed.read_text()}"
                    time.sleep(0.01)
            finally:
                process.kill()
        assert process.returncode == (0 if until is None else -9), printed.read_text()
        return printed.read_text()

    yield run
    shutil.rmtree(folder, ignore_errors=True)
