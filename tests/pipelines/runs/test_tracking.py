import os
import sqlite3
import subprocess
import sys

import pytest

from beit.errors import UserError
from pipelines.runs import tracking
from pipelines.runs.tracking import place_of
from pipelines.training.recorder import Recorder


@pytest.fixture
def environment(monkeypatch):
    """MLflow's variables of a driver, and those of a process elsewhere."""
    for name in [name for name in os.environ if name.startswith(tracking.SETTINGS)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.update(
        {
            "MLFLOW_TRACKING_URI": "http://host",
            "MLFLOW_TRACKING_USERNAME": "me",
            "MLFLOW_TRACKING_PASSWORD": "secret",
        }
    )
    elsewhere = {name: value for name, value in os.environ.items() if not name.startswith(tracking.SETTINGS)}
    return lambda: monkeypatch.setattr(os, "environ", {**elsewhere, "MLFLOW_TRACKING_TOKEN": "another"})


def test_what_goes_to_another_process_has_the_drivers_server_and_password_and_none_of_its_own(environment):
    handed = tracking.settings()
    environment()
    tracking.adopt(handed)
    assert tracking.settings() == handed
    assert (handed["MLFLOW_TRACKING_URI"], handed["MLFLOW_TRACKING_PASSWORD"]) == ("http://host", "secret")


def test_a_recorder_elsewhere_has_the_password_that_no_line_shows(environment, tmp_path, mlflow_file):
    mlflow_file(tmp_path / "mlflow.db")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    place = place_of(str(tmp_path / "run"), experiment="beit", params={})
    assert "secret" not in repr(place)
    (tmp_path / "run").mkdir()
    tracking.begin(str(tmp_path / "run"), place, print)
    environment()
    Recorder(str(tmp_path / "run"), 10, [], place).finish("FINISHED")
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
    assert "MLFLOW_TRACKING_TOKEN" not in os.environ


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:////disk/mlflow.db", "sqlite:////disk/mlflow.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("https://host/path", "https://host/path"),
    ],
)
def test_a_file_beside_the_driver_is_the_same_for_a_process_in_another_folder(
    environment, tmp_path, monkeypatch, given, means
):
    monkeypatch.chdir(tmp_path)
    os.environ["MLFLOW_TRACKING_URI"] = given
    assert tracking.settings()["MLFLOW_TRACKING_URI"] == means.format(here=tmp_path)


@pytest.fixture
def begun(tmp_path, monkeypatch, mlflow_file):
    """Begin the MLflow run of tmp_path/runs/run in the file beside the runs; returns a function that does so
    again, and MLflow's client.
    """
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs" / "run").mkdir(parents=True)
    mlflow_file(tmp_path / "runs" / "mlflow.db")
    run, lines = str(tmp_path / "runs" / "run"), []

    def begin(experiment="beit"):
        tracking.begin(run, place_of(run, experiment=experiment, params={}), lines.append)
        return tracking._known_id(run)

    begin()
    return begin, MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db"), lines


def test_a_resumed_run_keeps_its_mlflow_run_and_has_a_new_one_where_that_was_deleted(begun):
    begin, client, lines = begun
    first = begin()
    assert begin() == first
    assert lines == []
    client.delete_run(first)
    assert begin() != first
    assert lines == [f"warning: the MLflow run {first} was deleted; a new one is begun"]


def test_a_deleted_experiment_is_named_with_the_command_that_brings_it_back(begun):
    begin, client, _ = begun
    client.delete_run(begin())
    client.delete_experiment(client.get_experiment_by_name("beit").experiment_id)
    with pytest.raises(UserError, match="the MLflow experiment beit was deleted") as refused:
        begin()
    assert "mlflow experiments restore --experiment-id 1" in refused.value.remedy
    assert begin("another")


def test_a_database_of_an_older_mlflow_is_named_with_the_command_that_upgrades_it(
    tmp_path, monkeypatch, mlflow_file
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow_file(tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    run = str(tmp_path / "run")
    with pytest.raises(UserError) as refused:
        tracking.begin(run, place_of(run, experiment="beit", params={}), print)
    assert refused.value.remedy.endswith(f"mlflow db upgrade sqlite:///{tmp_path}/mlflow.db")


def test_settings_that_are_not_used_are_named(begun, monkeypatch):
    begin, _, lines = begun
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    begin()
    assert lines[0].startswith("warning: MLFLOW_RUN_ID is not used")


@pytest.mark.parametrize("name", ["a#b", "a%20b", "a?b", "a b", "größe"])
def test_runs_lie_in_folders_of_any_name(tmp_path, monkeypatch, mlflow_file, name):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / name / "run"
    run.mkdir(parents=True)
    mlflow_file(tmp_path / name / "mlflow.db")
    (run / "report.html").write_text("all went well")
    place = place_of(str(run), experiment="beit", params={})
    tracking.begin(str(run), place, print)
    assert tracking.attach(str(run), place, ["report.html"])
    [kept] = (tmp_path / name / "mlartifacts").rglob("report.html")
    assert kept.read_text() == "all went well"


@pytest.mark.usefixtures("begun")
def test_runs_that_were_moved_write_nothing_where_they_were(tmp_path):
    (tmp_path / "runs").rename(tmp_path / "moved")
    run = str(tmp_path / "moved" / "run")
    place = place_of(run, experiment="beit", params={})
    tracking.begin(run, place, print)
    (tmp_path / "moved" / "run" / "report.html").write_text("")
    assert not tracking.attach(run, place, ["report.html"])
    assert not (tmp_path / "runs").exists()


def test_runs_that_begin_at_once_below_a_new_root_all_have_an_mlflow_run(tmp_path):
    code = (
        "import sys; from pipelines.runs import tracking\n"
        "run = sys.argv[1]\n"
        "tracking.begin(run, tracking.place_of(run, experiment='beit', params={}), print)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    started = []
    for number in range(3):
        run = tmp_path / "runs" / f"run{number}"
        run.mkdir(parents=True)
        command = [sys.executable, "-c", code, str(run)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE))
    assert [process.communicate()[1][-300:] for process in started if process.wait()] == []
    assert len(list((tmp_path / "runs").glob("run*/mlflow.json"))) == 3
