import json
import math

import pytest

from pipelines.recorder import Recorder, duration, progress_line, read_metrics
from pipelines.tracking import MlflowRun, attach

SHOWN = [("loss {:.2f} (unigram {:.2f})", "train/loss train/unigram"), ("acc {:.1%}", "train/accuracy")]


def row(step, **values):
    return {"step": step, "images": 64 * step, "time": 1000.0 + step, "speed/images_per_second": 1234.5, "speed/data_wait": 0.031, **values}


@pytest.fixture
def recorder(tmp_path):
    return Recorder(str(tmp_path), 5000, SHOWN, None)


def test_a_progress_line_says_what_matters_in_a_fixed_order():
    metrics = {"train/loss": 8.414, "train/unigram": 8.72, "train/accuracy": 0.019, "data/quarantined": 3}
    line = progress_line(row(120, **metrics), total_steps=5000, seconds_left=7815, shown=SHOWN)
    assert line == "step 120/5,000 | loss 8.41 (unigram 8.72) | acc 1.9% | 1,234 img/s | data wait 3% | 3 bad images | eta 2h 10m"


def test_what_is_not_defined_is_left_out_of_the_line_and_null_in_the_file(recorder, tmp_path):
    recorder.log(row(1, **{"train/loss": math.nan, "train/unigram": 8.0, "train/accuracy": 0.5}), 10.0)
    assert recorder.lines()[0].startswith("step 1/5,000 | acc 50.0% |")
    assert recorder.lines() == []
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m"), (61, "1m 1s"), (3725, "1h 2m"), (252_000, "2d 22h"), (86_400, "1d")]
)
def test_durations_show_their_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_rows_behind_the_checkpoint_that_a_run_goes_on_from_are_dropped(recorder, tmp_path):
    for step in (10, 20, 30):
        recorder.log(row(step), 0.0)
    recorder.rewind(20)
    recorder.log(row(25), 0.0)
    assert [found["step"] for found in read_metrics(str(tmp_path))] == [10, 20, 25]


def test_mlflow_gets_parameters_and_metrics_over_steps_and_a_resumed_run_goes_on_with_its_own(tmp_path):
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    params = {"optim.peak_lr": 1e-3, "data.train": None}
    place = MlflowRun(uri=store, experiment="tests", name="mine", artifacts=f"file://{tmp_path}/artifacts", params=params)
    first = Recorder(str(tmp_path), 100, SHOWN, place)
    first.log(row(10, **{"train/loss": 3.0}), 0.0)
    first.finish("FAILED")
    second = Recorder(str(tmp_path), 100, SHOWN, place)
    second.log(row(20, **{"train/loss": 2.0, "train/accuracy": math.nan}), 0.0)
    second.finish("FINISHED")
    attach(str(tmp_path), place, ["metrics.jsonl"])

    client = MlflowClient(store)
    [run] = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["metrics.jsonl"]
    assert run.data.params == {"optim.peak_lr": "0.001", "data.train": "None"}
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")] == [(10, 3.0), (20, 2.0)]
