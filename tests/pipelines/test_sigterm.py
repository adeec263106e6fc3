"""SIGTERM to the driver of a run, as `ray job stop`, Slurm and Kubernetes send it: a last checkpoint, and the run goes on from there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import runs
from pipelines.ledger import Ledger

BATCH = 16


def start(*options):
    command = [sys.executable, "-m", "pipelines.pretrain", *map(str, options)]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines_until(process, beginning, limit=600):
    """The lines that it prints, to the first that begins so."""
    lines, deadline = [], time.monotonic() + limit
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith(beginning):
            return lines
        assert time.monotonic() < deadline, "\n".join(lines)
    raise AssertionError("it ended early:\n" + "\n".join(lines))


def saved(run):
    checkpoint = Path(runs.latest_checkpoint(str(run)))
    return json.loads((checkpoint / "progress.json").read_text())["step"], Ledger.from_bytes((checkpoint / "ledger.npz").read_bytes())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigterm_leaves_a_checkpoint_of_the_current_step_and_the_run_goes_on_from_there(tmp_path):
    options = ["--data.scenes", 96, "--epochs", 1000, "--optim.global-batch-size", BATCH, "--resources.cpus", 2]
    output = ["--output.root", tmp_path, "--output.name", "run", "--output.checkpoint-steps", 1_000_000, "--output.log-seconds", 0.5]
    driver = start("quickstart", *options, *output, "--output.no-mlflow", "--evaluation.images", 0)
    try:
        lines_until(driver, "step 1/")
        lines_until(driver, "step ")
        driver.send_signal(signal.SIGTERM)
        rest = driver.communicate(timeout=600)[0]
    finally:
        driver.kill()
    assert driver.returncode == 128 + signal.SIGTERM, rest
    assert "SIGTERM: a last checkpoint, then the end" in rest
    assert f"stopped; go on by --resume {tmp_path}/run" in rest
    step, ledger = saved(tmp_path / "run")
    logged = [int(number.replace(",", "")) for number in re.findall(r"^step ([\d,]+)/", rest, re.MULTILINE)]
    assert step == max(logged) > 1, "no periodic checkpoint was due: this is that of the last step taken"
    assert ledger.settled == step * BATCH

    stop_at = step + 2 * 96 // BATCH  # two epochs more
    resumed = start("--resume", tmp_path / "run", "--stop-at", stop_at)
    try:
        rest = resumed.communicate(timeout=900)[0]
    finally:
        resumed.kill()
    assert resumed.returncode == 0, rest
    assert f"resumed: going on from step {step:,}" in rest
    # A ledger refuses a sample that is entered twice.
    found, ledger = saved(tmp_path / "run")
    assert (found, ledger.settled, ledger.complete) == (stop_at, stop_at * BATCH, stop_at * BATCH // 96)
