"""Jobs submitted to a head of their own, with a token, by the script and the commands of
clusters/README.md.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipelines.runs import checkpoints
from pipelines.stream.ledger import Ledger
from tune.goal import GOALS
from tune.state import read_trials

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "clusters" / "local.sh"


def four_free_ports():
    """The first of four ports in a row, as the script takes them."""
    for first in range(20_000, 32_000, 4):
        with (
            socket.socket() as one,
            socket.socket() as two,
            socket.socket() as three,
            socket.socket() as four,
        ):
            try:
                for port, probe in enumerate((one, two, three, four), first):
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no four ports in a row are free")


@pytest.fixture(scope="module")
def head():
    """The environment in which `ray job submit` finds a head with four cores; it is slow to start where
    others hold the machine's.
    """
    folder = tempfile.mkdtemp(prefix="beit-head-")  # Unix sockets have short names.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    }
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "BEIT_RAY": folder,
        "BEIT_RAY_PORT": str(four_free_ports()),
    }
    try:
        for _ in range(3):
            start = ["bash", SCRIPT, "start", "--num-cpus", "4"]
            started = subprocess.run(start, env=environment, capture_output=True, text=True, check=False)
            if started.returncode == 0:
                break
        assert started.returncode == 0, started.stderr
        exports = subprocess.run(
            ["bash", SCRIPT, "env"], env=environment, capture_output=True, text=True, check=True
        ).stdout
        words = [word.partition("=") for word in exports.removeprefix("export ").split()]
        yield environment | {name: value for name, _, value in words}
    finally:
        subprocess.run(["bash", SCRIPT, "stop"], env=environment, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def ray_job(environment, *command):
    """`ray job …`; returns its exit code and what it prints."""
    done = subprocess.run(
        ["ray", "job", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def submit(environment, *command, options=()):
    """`ray job submit`; returns its exit code and what it prints."""
    return ray_job(
        environment, "submit", "--working-dir", ".", *options, "--", "python", "-m", *map(str, command)
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_of_two_trials_succeeds(head, tmp_path):
    data = ["--data.scenes", 96, "--steps", 6, "--optim.global-batch-size", 16, "--optim.warmup-steps", 2]
    judged = ["--trials", 2, "--evaluation.images", 16, "--evaluation.points", 3, "--no-stop-early"]
    code, text = submit(
        head, "tune.sweep", "quickstart", *data, *judged, "--output.root", tmp_path, "--output.name", "mine"
    )
    assert code == 0, text
    assert "succeeded" in text
    trials = read_trials(str(tmp_path / "mine"), GOALS["loss"])
    assert [trial.status for trial in trials] == ["finished", "finished"]
    for trial in trials:
        assert checkpoints.step_of(checkpoints.latest_checkpoint(str(tmp_path / "mine" / trial.name))) == 6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_pretraining_that_ray_job_stop_has_stopped_goes_on_from_its_last_checkpoint(head, tmp_path):
    images, epochs, batch = 96, 60, 16
    # No periodic checkpoint is due.
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
    data = [
        "--data.scenes",
        images,
        "--epochs",
        epochs,
        "--optim.global-batch-size",
        batch,
        "--evaluation.images",
        0,
    ]
    run, named = tmp_path / "run", ["--submission-id", "stopped"]
    code, text = submit(
        head,
        "pipelines.pretrain",
        "quickstart",
        *data,
        *output,
        "--output.no-mlflow",
        options=[*named, "--no-wait"],
    )
    assert code == 0, text
    deadline = time.monotonic() + 900
    while not (run / "metrics.jsonl").exists():
        assert time.monotonic() < deadline, ray_job(head, "logs", "stopped")[1]
        time.sleep(0.2)
    code, text = ray_job(head, "stop", "stopped")
    assert code == 0, text
    assert "Job 'stopped' was stopped" in ray_job(head, "status", "stopped")[1]
    step, ledger = saved(run)
    assert 0 < step < epochs * images // batch
    assert ledger.settled == step * batch

    code, text = submit(head, "pipelines.pretrain", "--resume", run)
    assert code == 0, text
    assert f"resumed: continuing from step {step:,}" in text
    # A ledger refuses a sample that is entered twice.
    last, ledger = saved(run)
    assert (last, ledger.settled, ledger.complete) == (epochs * images // batch, epochs * images, epochs)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_pretraining_that_waits_for_machines_is_stopped_at_once(head, tmp_path):
    grows = json.dumps(
        {"env_vars": {"BEIT_NODE_TYPES": json.dumps({"train": {"max_workers": 2, "resources": {"CPU": 8}}})}}
    )
    data = ["--data.scenes", 96, "--optim.warmup-steps", 0, "--evaluation.images", 0]
    waits = [*data, "--resources.workers", 8, "--output.root", tmp_path, "--output.name", "run"]
    options = ["--submission-id", "waits", "--no-wait", "--runtime-env-json", grows]
    code, text = submit(head, "pipelines.pretrain", "quickstart", *waits, options=options)
    assert code == 0, text
    deadline = time.monotonic() + 300
    while not (tmp_path / "run").exists():
        assert time.monotonic() < deadline, ray_job(head, "logs", "waits")[1]
        time.sleep(0.2)
    code, text = ray_job(head, "stop", "waits")
    assert code == 0, text
    log = ray_job(head, "logs", "waits")[1]
    assert "no workers are there" in log
    assert f"is saved: resume it by --resume {tmp_path}/run" in log
    assert checkpoints.latest_checkpoint(str(tmp_path / "run")) is None


def saved(run):
    """Step and ledger of a run's last checkpoint."""
    checkpoint = Path(checkpoints.latest_checkpoint(str(run)))
    return checkpoints.step_of(str(checkpoint)), Ledger.from_bytes((checkpoint / "ledger.npz").read_bytes())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_that_cannot_run_reports_failure_with_its_drivers_code_and_its_two_lines(head, tmp_path):
    code, text = submit(
        head, "pipelines.pretrain", "quickstart", "--data.train", "/nowhere", "--output.root", tmp_path
    )
    assert code == 1, text
    assert "error: data.train=/nowhere does not exist" in text
    assert "failed with exit code 2" in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_with_another_token_is_refused(head, tmp_path):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    code, text = submit(head | {"RAY_AUTH_TOKEN_PATH": str(token)}, "pipelines.pretrain", "quickstart")
    assert code != 0
    assert "403" in text or "uthenticat" in text, text
