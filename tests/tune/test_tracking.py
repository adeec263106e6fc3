from mlflow import MlflowClient

from pipelines.runs.tracking import begin, place_of
from pipelines.training.recorder import Recorder
from tune.config import sweep_preset
from tune.goal import GOALS
from tune.state import Trial
from tune.tracking import SweepLog


def test_trials_are_children_of_their_sweep_and_none_is_left_running(tmp_path, monkeypatch, mlflow_file):
    mlflow_file(tmp_path / "runs" / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sweep = tmp_path / "runs" / "mine"
    sweep.mkdir(parents=True)
    log = SweepLog(str(sweep), sweep_preset("quickstart"), job="sweep", preset="quickstart", say=print)
    statuses = ["finished", "stopped", "failed", "running"]
    for number, status in enumerate(statuses):
        trial = Trial(number=number, params={}, status=status)
        folder = sweep / trial.name
        folder.mkdir()
        place = place_of(str(folder), experiment="beit", params={"mask.ratio": 0.1 * number})
        begin(str(folder), place, print)
        recorder = Recorder(str(folder), 10, [], place)
        recorder.log(
            {
                "step": 1,
                "time": 1.0,
                "eval/loss": 5.0,
                "speed/images_per_second": 1.0,
                "speed/data_wait": 0.0,
            },
            1.0,
        )
        if status == "finished":
            recorder.finish("FINISHED")  # The others were killed, with whoever would have ended their runs.
        log.end_trial(trial)
    log.best(GOALS["loss"], [Trial(number=0, params={}, status="finished", points=((1, 1, 5.0),))])
    log.finish("FINISHED")

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("beit")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "mine": "FINISHED",
        "trial-000": "FINISHED",
        "trial-001": "KILLED",
        "trial-002": "FAILED",
        "trial-003": "KILLED",
    }
    parent = runs.pop("mine")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert parent.data.metrics["sweep/best_objective"] == 5.0
    assert not (sweep / "mlflow.db").exists()
