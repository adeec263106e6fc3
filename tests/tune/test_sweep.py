"""A whole sweep with Ray Tune, small; then what is left of one that was killed, gone on with."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from beit.config import override
from beit.errors import UserError
from pipelines import runs
from pipelines.cli import main
from pipelines.config import PretrainConfig
from pipelines.recorder import read_metrics
from tune.config import SweepConfig, sweep_preset
from tune.goal import GOALS
from tune.space import draw, load_space
from tune.state import STOP_FILE, TRIAL_FILE, read_trials
from tune.sweep import sweep


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_ends_with_a_winner_and_one_that_was_killed_does_only_what_is_left(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # The first learns, the second cannot: it is stopped at the first rung.
    space = tmp_path / "space.json"
    space.write_text(json.dumps({"optim.peak_lr": [2e-3, 1e-5]}))
    values = {
        "space": str(space),
        "steps": 24,
        "data.scenes": 96,
        "optim.global_batch_size": 16,
        "optim.warmup_steps": 2,
        "evaluation.images": 32,
        "evaluation.points": 6,
        "output.root": str(tmp_path / "runs"),
        "output.name": "mine",
    }
    config = override(sweep_preset("quickstart"), values)
    lines: list[str] = []
    result = sweep(config, preset="quickstart", say=lines.append)
    first, second = result.trials
    assert (first.status, len(first.points)) == ("finished", 6)
    assert (second.status, 3 <= len(second.points) < 6) == ("stopped", True)
    assert result.best == first

    assert [line for line in lines if "tokenised once" in line]
    tokens = json.loads(Path(result.sweep, "tokens.json").read_text())
    assert (tokens["views"], tokens["computed"]) == (4 * 96, tokens["parts"])
    for trial in result.trials:
        saved, _ = runs.saved_config(f"{result.sweep}/{trial.name}", PretrainConfig, job="pretrain")
        assert saved.data.tokens == tokens["path"]
        assert saved.optim.peak_lr == trial.params["optim.peak_lr"]
        assert Path(result.sweep, trial.name, "report", "index.html").exists()
    best, _ = runs.saved_config(f"{result.sweep}/best/config.json", PretrainConfig, job="pretrain")
    assert (best.optim.peak_lr, best.data.tokens) == (2e-3, None)
    assert states(tmp_path) == {"mine": "FINISHED", "trial-000": "FINISHED", "trial-001": "KILLED"}

    # What kill -9 leaves while the second trial runs.
    file = Path(result.sweep, "trial-001", TRIAL_FILE)
    file.write_text(file.read_text().replace('"stopped"', '"running"'))
    Path(result.sweep, "trial-001", STOP_FILE).unlink()
    before = Path(result.sweep, "trial-000", "metrics.jsonl").stat().st_mtime_ns
    saved, preset = runs.saved_config(result.sweep, SweepConfig, job="sweep")
    again = sweep(saved, preset=preset, resume=result.sweep, say=lines.append)
    assert "resumed: trials that have ended: 0; to go on with: 1" in lines
    assert Path(result.sweep, "trial-000", "metrics.jsonl").stat().st_mtime_ns == before, "a finished trial ran again"
    assert not Path(result.sweep, "trial-000", "attempt-2").exists()
    assert Path(result.sweep, "trial-001", "attempt-2").exists()
    rows = read_metrics(f"{result.sweep}/trial-001")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert read_trials(result.sweep, GOALS["loss"])[1].status == again.trials[1].status == "stopped", "ASHA forgot the first trial"
    assert states(tmp_path) == {"mine": "FINISHED", "trial-000": "FINISHED", "trial-001": "KILLED"}


def states(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("beit")
    return {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}


def test_what_cannot_be_scheduled_is_refused_before_ray_starts_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.cluster.start", lambda **options: pytest.fail("Ray was started"))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = override(sweep_preset("quickstart"), {"output.root": str(tmp_path), "resources.cpus": 2, "resources.worker_cpus": 4.0})
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
