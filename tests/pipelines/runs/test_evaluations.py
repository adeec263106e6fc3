from mlflow import MlflowClient

from pipelines.runs import evaluations, tracking


def test_what_is_judged_at_a_pause_stands_beside_the_trainings_own_metrics(tmp_path, mlflow_file):
    run = str(tmp_path / "run")
    mlflow_file(tmp_path / "mlflow.db")
    place = tracking.place_of(run, experiment="e", params={"seed": 1})
    tracking.begin(run, place, print)
    log = tracking.MlflowLog(run, place)
    log.log({"step": 5, "time": 1.0, "train/loss": 2.0})
    log.finish("FINISHED")
    warnings = []
    evaluations.tell_mlflow(run, place, 5, {"knn/layer_2": 0.25, "val/loss": float("nan")}, warnings.append)
    client = MlflowClient(place.uri)
    [found] = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert found.data.metrics == {"train/loss": 2.0, "knn/layer_2": 0.25}
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "knn/layer_2")] == [5]
    assert (found.info.status, warnings) == ("FINISHED", [])


def test_a_server_that_is_away_is_said_and_ends_nothing(tmp_path):
    run = str(tmp_path / "run")
    place = tracking.place_of(run, experiment="e", params={})
    warnings = []
    evaluations.tell_mlflow(run, place, 5, {"val/top1": 0.5}, warnings.append)
    assert "step 5" in warnings[0]
    evaluations.tell_mlflow(run, None, 5, {"val/top1": 0.5}, warnings.append)
    assert len(warnings) == 1


def test_evaluations_are_read_by_step_and_kind(tmp_path):
    for step in (20, 3):
        evaluations.save(str(tmp_path), "knn", step, {"top1": {"2": step / 100}})
    assert [one["step"] for one in evaluations.read(str(tmp_path), "knn")] == [3, 20]
    assert evaluations.read(str(tmp_path), "validation") == []
    assert evaluations.saved_at(str(tmp_path), "knn", 3) == {"step": 3, "top1": {"2": 0.03}}
    assert evaluations.saved_at(str(tmp_path), "knn", 4) is None
