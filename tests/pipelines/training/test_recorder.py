import json
import math
import signal
from dataclasses import replace

import pytest
from pyarrow import fs

from beit.errors import UserError
from pipelines import storage
from pipelines.runs import tracking
from pipelines.runs.metrics import read_metrics
from pipelines.runs.progress import duration, progress_line
from pipelines.runs.tracking import MlflowRun, attach, place_of
from pipelines.training import recorder as recorder_module
from pipelines.training.recorder import Recorder

SHOWN = [("loss {:.2f} (unigram {:.2f})", "train/loss train/unigram"), ("acc {:.1%}", "train/accuracy")]


def row(step, **values):
    return {
        "step": step,
        "images": 64 * step,
        "time": 1000.0 + step,
        "speed/images_per_second": 1234.5,
        "speed/data_wait": 0.031,
        **values,
    }


@pytest.fixture
def recorder(tmp_path):
    return Recorder(str(tmp_path), 5000, SHOWN, None)


@pytest.fixture
def bucket_run(tmp_path, monkeypatch):
    """A run folder on a bucket (a folder that stands in for one)."""
    monkeypatch.setattr(
        storage, "_file_system", lambda root: fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    )
    for name in ("metrics", "log"):
        (tmp_path / "bucket" / "run" / name).mkdir(parents=True)
    return "s3://bucket/run"


@pytest.fixture
def sqlite(tmp_path):
    return MlflowRun(
        uri=f"sqlite:///{tmp_path}/mlflow.db",
        experiment="tests",
        name="mine",
        artifacts=f"file://{tmp_path}/artifacts",
    )


@pytest.fixture
def unreachable(monkeypatch):
    """A server that refuses connections, with a password."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return MlflowRun(uri="http://me:secret@127.0.0.1:9/?token=secret", experiment="tests", name="mine")


def test_a_progress_line_says_what_matters_in_a_fixed_order():
    metrics = {"train/loss": 8.414, "train/unigram": 8.72, "train/accuracy": 0.019, "data/quarantined": 3}
    line = progress_line(row(120, **metrics), total_steps=5000, seconds_left=7815, shown=SHOWN)
    assert line == (
        "step 120/5,000 | loss 8.41 (unigram 8.72) | acc 1.9% | 1,234 img/s | data wait 3% | 3 bad "
        "samples | eta 2h 10m"
    )


def test_what_is_not_defined_is_left_out_of_the_line_and_null_in_the_file(recorder, tmp_path):
    recorder.log(row(1, **{"train/loss": math.nan, "train/unigram": 8.0, "train/accuracy": 0.5}), 10.0)
    assert recorder.lines()[0].startswith("step 1/5,000 | acc 50.0% |")
    assert recorder.lines() == []
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m"), (61, "1m 1s"), (3725, "1h 2m"), (252_000, "2d 22h"), (86_400, "1d")],
)
def test_durations_show_their_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_rows_behind_the_checkpoint_that_a_run_goes_on_from_are_dropped(recorder, tmp_path):
    for step in (10, 20, 30):
        recorder.log(row(step), 0.0)
    recorder.begin(20)
    recorder.log(row(25), 0.0)
    assert [found["step"] for found in read_metrics(str(tmp_path))] == [10, 20, 25]


def test_every_start_of_the_workers_has_its_number_and_it_is_known_when_they_hear_of_the_end(recorder):
    assert recorder.workers() == (False, False)
    assert [recorder.begin(0), recorder.begin(0), recorder.begin(20)] == [0, 1, 2]
    assert not recorder.stopping()
    recorder.stop()
    assert recorder.workers() == (True, False), "nobody has asked since"
    assert recorder.stopping()
    assert recorder.workers() == (True, True)


def test_a_line_that_was_being_written_when_its_writer_was_killed_is_none(recorder, tmp_path):
    for step in (10, 20):
        recorder.log(row(step), 0.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "train/lo')
    assert [found["step"] for found in read_metrics(str(tmp_path))] == [10, 20]
    recorder.begin(20)
    recorder.log(row(25), 0.0)
    assert [found["step"] for found in read_metrics(str(tmp_path))] == [10, 20, 25]


@pytest.mark.parametrize("written_at_once", [True, False])
def test_on_a_bucket_rows_of_lost_steps_are_gone_as_well(bucket_run, monkeypatch, written_at_once):
    monkeypatch.setattr(recorder_module, "PART_SECONDS", -1 if written_at_once else math.inf)
    recorder = Recorder(bucket_run, 5000, SHOWN, None)
    for step in (10, 20, 30, 40):
        recorder.log(row(step), 0.0)
    recorder.begin(20)
    for step in (25, 35):
        recorder.log(row(step), 0.0)
    recorder.finish("FAILED")
    again = Recorder(bucket_run, 5000, SHOWN, None)
    again.begin(30)
    again.log(row(33), 0.0)
    again.finish("FINISHED")
    assert read_metrics(bucket_run) == [row(step) for step in (10, 20, 25, 33)]


def test_on_a_bucket_the_log_is_the_parts_in_their_order(bucket_run, monkeypatch, tmp_path):
    recorder = Recorder(bucket_run, 5000, SHOWN, None)
    recorder.say("first")
    recorder.say("second")
    monkeypatch.setattr(recorder_module, "PART_SECONDS", -1)
    recorder.say("third")
    recorder.say("fourth")
    recorder.finish("FINISHED")
    parts = sorted((tmp_path / "bucket" / "run" / "log").glob("*.txt"))
    assert [[line.split()[-1] for line in part.read_text().splitlines()] for part in parts] == [
        ["first", "second", "third"],
        ["fourth"],
    ]


@pytest.mark.parametrize(
    "start",
    [lambda run, place: tracking.begin(run, place, print), lambda run, place: tracking.check(place)],
)
def test_a_tracking_server_that_is_not_there_is_named_without_its_password(tmp_path, unreachable, start):
    with pytest.raises(UserError, match=r"--output\.no-mlflow") as caught:
        start(str(tmp_path), unreachable)
    assert "http://***@127.0.0.1:9/?token=*** cannot be used: [Errno 111]" in caught.value.cause
    assert "MLFLOW_TRACKING_URI" in caught.value.remedy
    assert "secret" not in str(caught.value)


def test_a_tracking_uri_that_mlflow_does_not_understand_is_named(tmp_path):
    with pytest.raises(UserError, match="nonsense://host cannot be used"):
        tracking.check(MlflowRun(uri="nonsense://host", experiment="tests", name="mine"))


@pytest.mark.parametrize(("pause", "attempts"), [(math.inf, 1), (0, 3)])
def test_a_tracking_server_that_goes_away_is_told_once_and_costs_no_metrics(
    tmp_path, sqlite, monkeypatch, pause, attempts
):
    tried = []

    def lost(*args):
        tried.append(args)
        raise ConnectionResetError("connection reset")

    monkeypatch.setattr(recorder_module, "MLFLOW_PAUSE_SECONDS", pause)
    monkeypatch.setattr(tracking.MlflowLog, "__init__", lambda *args: None)
    recorder = Recorder(str(tmp_path), 100, SHOWN, sqlite)
    monkeypatch.setattr(tracking.MlflowLog, "log", lost)
    monkeypatch.setattr(tracking.MlflowLog, "finish", lost)
    for step in (1, 2, 3):
        recorder.log(row(step), 0.0)
    assert len(tried) == attempts
    recorder.finish("FINISHED")
    assert len(tried) == attempts + 1
    [told] = [line for line in recorder.lines() if "connection reset" in line]
    assert told.endswith("metrics go on in metrics.jsonl")
    assert [found["step"] for found in read_metrics(str(tmp_path))] == [1, 2, 3]


def test_files_are_not_attached_to_what_cannot_be_reached_or_was_never_logged(tmp_path, unreachable, sqlite):
    (tmp_path / "report.html").write_text("")
    assert not attach(str(tmp_path), sqlite, ["report.html"])
    (tmp_path / tracking.ID_FILE).write_text('{"run_id": "1"}')
    assert not attach(str(tmp_path), unreachable, ["report.html"])


def test_a_run_has_its_own_name_in_mlflow_wherever_it_is(bucket_run, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = place_of("/data/runs/first/", experiment="tests", params={})
    assert (local.name, local.uri) == ("first", "sqlite:////data/runs/mlflow.db")
    remote = f"{bucket_run}/first/?endpoint_override=http://host:9000"
    assert place_of(remote, experiment="tests", params={}) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    assert place_of(remote, experiment="tests", params={}).name == "first"


def test_mlflow_gets_parameters_and_metrics_over_steps_and_a_resumed_run_goes_on_with_its_own(
    tmp_path, sqlite, capfd
):
    from mlflow import MlflowClient

    place = replace(sqlite, params={"optim.peak_lr": 1e-3, "data.train": None})
    tracking.begin(str(tmp_path), place, print)
    first = Recorder(str(tmp_path), 100, SHOWN, place)
    first.log(row(10, **{"train/loss": 3.0}), 0.0)
    first.finish("FAILED")
    tracking.begin(str(tmp_path), place, print)
    second = Recorder(str(tmp_path), 100, SHOWN, place)
    second.log(row(20, **{"train/loss": 2.0, "train/accuracy": math.nan}), 0.0)
    second.finish("FINISHED")
    assert attach(str(tmp_path), place, ["metrics.jsonl"])
    assert "INFO" not in capfd.readouterr().err

    client = MlflowClient(place.uri)
    [run] = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert run.info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["metrics.jsonl"]
    assert run.data.params == {"optim.peak_lr": "0.001", "data.train": "None"}
    assert [
        (point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")
    ] == [(10, 3.0), (20, 2.0)]


def test_workers_learn_that_the_driver_has_to_end(recorder):
    assert not recorder.stopping()
    recorder.stop()
    assert recorder.stopping()


@pytest.mark.parametrize("torn", ['{"step": 2, "tr', '{"step": 2, "tr\n', "\n", "null\n", "\x00\x00\x00\n"])
def test_a_torn_line_loses_no_other(recorder, tmp_path, torn):
    recorder.log(row(1), 10.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    recorder.log(row(3), 10.0)
    assert [one["step"] for one in read_metrics(str(tmp_path))] == [1, 3]
    again = Recorder(str(tmp_path), 5000, SHOWN, None)
    again.begin(1)
    assert "warning: 1 torn line of metrics.jsonl left out" in again.lines()
    assert [one["step"] for one in read_metrics(str(tmp_path))] == [1]


def test_metrics_of_a_full_disk_are_written_when_there_is_room_again(recorder, tmp_path, monkeypatch):
    recorder.log(row(1), 10.0)
    with monkeypatch.context() as patch:
        patch.setattr(recorder_module, "_append", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        recorder.log(row(2), 10.0)
        recorder.log(row(3), 10.0)
    said = [line for line in recorder.lines() if "cannot be written" in line]
    assert len(said) == 2, "once for metrics.jsonl, once for train.log"
    recorder.log(row(4), 10.0)
    assert [one["step"] for one in read_metrics(str(tmp_path))] == [1, 2, 3, 4]


def test_what_a_disk_took_in_part_is_taken_back(tmp_path):
    resource = pytest.importorskip("resource")
    file = tmp_path / "metrics.jsonl"
    file.write_text("one\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            recorder_module._append(str(file), "x" * 2000 + "\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_text() == "one\n"
