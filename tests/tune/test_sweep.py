"""A small sweep with Ray Tune whose driver is killed, and which is then resumed. Mistakes are refused before
Ray starts.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from beit.errors import UserError
from beit.plain import override
from pipelines.cli import main
from pipelines.config.pretrain import PretrainConfig
from pipelines.runs import run_folder
from pipelines.runs.metrics import read_metrics
from tune.config import SweepConfig, sweep_preset
from tune.goal import GOALS
from tune.space import draw, load_space
from tune.state import read_trials
from tune.sweep import sweep

PROGRAM = Path(__file__).with_name("sweep_to_kill.py")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_whose_driver_is_killed_does_only_what_is_left_and_a_failed_trial_stops_no_other(
    tmp_path, monkeypatch
):
    # A store and a password that only the driver knows of: Ray's other processes have been there before.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///store.db")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-to-be-seen")
    # The first learns, the second and the last cannot: they are stopped at the first rung. The third will
    # fail.
    space = tmp_path / "space.json"
    space.write_text(json.dumps({"optim.peak_lr": [2e-3, 1e-5, 1e-3, 2e-5]}))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PROGRAM.parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(PROGRAM), str(tmp_path / "runs"), str(space)]
    killed = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert killed.returncode == -9, killed.stdout + killed.stderr
    folder = str(tmp_path / "runs" / "mine")
    assert [trial.status for trial in read_trials(folder, GOALS["loss"])] == ["finished", "running"]
    assert states(tmp_path) == {"mine": "RUNNING", "trial-000": "FINISHED", "trial-001": "RUNNING"}
    before = times(Path(folder, "trial-000"))
    tokens = json.loads(Path(folder, "tokens.json").read_text())
    computed = times(Path(tokens["path"]))
    assert (tokens["views"], tokens["computed"]) == (16 * 96, tokens["parts"])
    assert len([name for name in computed if name.startswith("extra/evaluation-")]) == 1
    assert max(computed.values()) < min(before.values()), (
        "there were tokens computed after the first trial began"
    )

    lines: list[str] = []

    def say(line):
        lines.append(line)
        if line.startswith("trial 2 ("):  # It will find a folder that is not its own.
            saved = {
                "job": "pretrain",
                "preset": "quickstart",
                "inputs": {"data.train": "others"},
                "config": {},
            }
            Path(folder, "trial-002", run_folder.CONFIG_FILE).write_text(json.dumps(saved))

    saved, preset = run_folder.saved_config(folder, SweepConfig, job="sweep")
    result = sweep(saved, preset=preset, resume=folder, say=say)
    assert "resumed: trials that have ended: #0; to resume: #1" in lines
    assert times(Path(folder, "trial-000")) == before, "a finished trial ran again"
    assert times(Path(tokens["path"])) == computed, "tokens were computed again"
    assert Path(folder, "trial-001", "attempt-2").exists()
    rows = read_metrics(f"{folder}/trial-001")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})

    first, second, third, last = result.trials
    assert (first.status, len(first.points)) == ("finished", 6)
    assert (second.status, 3 <= len(second.points) < 6) == ("stopped", True), "ASHA forgot the first trial"
    assert third.status == "failed"
    assert "what data.train names is not what the run began with" in third.error
    assert [line for line in lines if line.startswith("trial 2 failed: --resume")]
    assert (last.status, 3 <= len(last.points) < 6) == ("stopped", True)
    assert result.best == first
    for trial in (first, second, last):
        config, _ = run_folder.saved_config(f"{folder}/{trial.name}", PretrainConfig, job="pretrain")
        assert (config.data.tokens, config.optim.peak_lr) == (tokens["path"], trial.params["optim.peak_lr"])
        assert Path(folder, trial.name, "report", "index.html").exists()
    best, _ = run_folder.saved_config(f"{folder}/best/config.json", PretrainConfig, job="pretrain")
    assert (best.optim.peak_lr, best.data.tokens) == (2e-3, None)
    assert states(tmp_path) == {
        "mine": "FINISHED",
        "trial-000": "FINISHED",
        "trial-001": "KILLED",
        "trial-003": "KILLED",
    }
    shown = [
        file for file in Path(folder).rglob("*") if file.is_file() and b"not-to-be-seen" in file.read_bytes()
    ]
    assert not shown


def times(folder):
    """When each file of a folder was written, by its path."""
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()
    }


def states(tmp_path):
    """The states of all MLflow runs, which must be children of the sweep."""
    client = MlflowClient(f"sqlite:///{tmp_path}/store.db")
    experiment = client.get_experiment_by_name("beit")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = found["mine"].info.run_id
    assert all(run.data.tags["mlflow.parentRunId"] == parent for name, run in found.items() if name != "mine")
    return {name: run.info.status for name, run in found.items()}


def test_what_cannot_be_scheduled_is_refused_before_ray_starts_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.session.start", lambda **options: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = override(
        sweep_preset("quickstart"),
        {"output.root": str(tmp_path), "resources.cpus": 2, "resources.worker_cpus": 4.0},
    )
    with pytest.raises(UserError) as raised:
        sweep(config, preset="quickstart")
    assert raised.value.cause.startswith("1 worker x 4 CPU: there is room for 0 on 1 machine x 2 CPU")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_sweep_names_the_trials_that_it_would_run(capsys):
    main(["sweep", "--trials", "3", "--dry-run"])
    said = capsys.readouterr()
    assert json.loads(said.out)["trials"] == 3
    drawn = draw(load_space("mask-lr"), 3, json.loads(said.out)["seed"])
    assert [line for line in said.err.splitlines() if line.startswith("trial ")] == [
        f"trial {number}: mask.ratio={params['mask.ratio']:g} optim.peak_lr={params['optim.peak_lr']:g}"
        for number, params in enumerate(drawn)
    ]
    assert "steps: 62 x 32 images" in said.err
