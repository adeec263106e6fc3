"""SIGTERM to the driver of a run, as Slurm and Kubernetes send it, and Ctrl-C: a last checkpoint.

test_job_submit.py shows that the run is resumed from it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from beit.plain import override
from pipelines.presets.pretrain import quickstart
from pipelines.pretrain import pretrain
from pipelines.runs import checkpoints
from pipelines.stream.ledger import Ledger

# So long that a busy machine does not come to the end before it hears of the signal.
IMAGES, EPOCHS, BATCH = 96, 400, 16


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
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_of_the_last_step_taken(tmp_path, number):
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
        driver.send_signal(number)
        rest = driver.communicate(timeout=600)[0]
    finally:
        driver.kill()
    assert driver.returncode == 128 + number, rest
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert f"{name}: a last checkpoint, then the end" in rest
    checkpoint = Path(checkpoints.latest_checkpoint(str(tmp_path / "run")))
    step, ledger = (
        checkpoints.step_of(str(checkpoint)),
        Ledger.from_bytes((checkpoint / "ledger.npz").read_bytes()),
    )
    logged = [int(number.replace(",", "")) for number in re.findall(r"^step ([\d,]+)/", rest, re.MULTILINE)]
    assert EPOCHS * IMAGES // BATCH > step == max(logged) > 1, (
        "no periodic checkpoint was due: this is that of the last step taken"
    )
    assert f"stopped; step {step} is saved: resume it by --resume {tmp_path}/run" in rest
    assert ledger.settled == step * BATCH


@pytest.mark.slow
def test_a_slow_run_has_checkpoints_by_the_clock(tmp_path, ray_cluster):
    values = {
        "data.scenes": 64,
        "steps": 3,
        "optim.global_batch_size": 16,
        "optim.warmup_steps": 1,
        "evaluation.images": 0,
        "output.checkpoint_minutes": 1e-6,
        "output.keep_checkpoints": 9,
        "output.root": str(tmp_path),
        "output.name": "run",
        "output.mlflow": False,
    }
    pretrain(override(quickstart(), values))
    saved = sorted(path.parent.name for path in tmp_path.glob("run/attempt-1/*/progress.json"))
    assert saved == ["step-00000001", "step-00000002", "step-00000003"]
