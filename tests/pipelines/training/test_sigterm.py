"""SIGTERM to the driver of a run, as Slurm and Kubernetes send it: a last checkpoint. test_job_submit.py
shows how one goes on from it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.runs import run_folder
from pipelines.stream.ledger import Ledger

IMAGES, EPOCHS, BATCH = 96, 20, 16


def start(*options):
    command = [sys.executable, "-m", "pipelines.pretrain", *map(str, options)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def lines_until(process, beginning, limit=600):
    """The lines that it prints, to the first that begins so."""
    lines, deadline = [], time.monotonic() + limit
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith(beginning):
            return lines
        assert time.monotonic() < deadline, "\n".join(lines)
    raise AssertionError("it ended early:\n" + "\n".join(lines))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigterm_leaves_a_checkpoint_of_the_last_step_taken(tmp_path):
    options = [
        "--data.scenes",
        IMAGES,
        "--epochs",
        EPOCHS,
        "--optim.global-batch-size",
        BATCH,
        "--resources.cpus",
        2,
    ]
    output = [
        "--output.root",
        tmp_path,
        "--output.name",
        "run",
        "--output.checkpoint-steps",
        1_000_000,
        "--output.log-seconds",
        0.5,
    ]
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
    checkpoint = Path(run_folder.latest_checkpoint(str(tmp_path / "run")))
    step, ledger = (
        run_folder.step_of(str(checkpoint)),
        Ledger.from_bytes((checkpoint / "ledger.npz").read_bytes()),
    )
    logged = [int(number.replace(",", "")) for number in re.findall(r"^step ([\d,]+)/", rest, re.MULTILINE)]
    assert EPOCHS * IMAGES // BATCH > step == max(logged) > 1, (
        "no periodic checkpoint was due: this is that of the last step taken"
    )
    assert ledger.settled == step * BATCH
