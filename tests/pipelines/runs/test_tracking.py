import os

import pytest

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
    environment()
    (tmp_path / "run").mkdir()
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
