"""MLflow: one of its runs for each run folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines import storage

ID_FILE = "mlflow.json"


@dataclass(frozen=True, kw_only=True)
class MlflowRun:
    """Where a run goes in MLflow, and what is known of it from the start."""

    uri: str
    experiment: str
    name: str
    artifacts: str | None = None
    """Where a new experiment keeps its files. None: as the server says."""
    params: Mapping[str, Any] = field(default_factory=dict)


def place_of(run: str, *, experiment: str, params: Mapping[str, Any]) -> MlflowRun | None:
    """The place of a run folder: the server that `MLFLOW_TRACKING_URI` names, else a SQLite file beside the runs.

    None for runs on a bucket without a server: SQLite needs a disk.
    """
    root, _, name = run.rpartition("/")
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return MlflowRun(uri=uri, experiment=experiment, name=name, params=params)
    if storage.is_remote(root):
        return None
    # Without a place of its own MLflow would put files into the folder that the command happens to be called from.
    return MlflowRun(
        uri=f"sqlite:///{root}/mlflow.db", experiment=experiment, name=name, artifacts=f"file://{root}/mlartifacts", params=params
    )


class MlflowLog:
    """Metrics over steps of one MLflow run; a resumed run folder goes on with its own.

    Args:
        run: Run folder; the MLflow run's id is kept there.
        place: Where it goes.
    """

    def __init__(self, run: str, place: MlflowRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(place.uri)
        file = storage.join(run, ID_FILE)
        if storage.exists(file):
            self._id = json.loads(storage.read_text(file))["run_id"]
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(place.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(place.experiment, artifact_location=place.artifacts)
        self._id = self._client.create_run(experiment, run_name=place.name, tags={"run_folder": run}).info.run_id
        self._client.log_batch(self._id, params=[Param(key, str(value)[:6000]) for key, value in place.params.items()])
        storage.write_text(file, json.dumps({"run_id": self._id}))

    def log(self, row: Mapping[str, Any]) -> None:
        """Enter a row of metrics; the step is the optimizer's."""
        from mlflow.entities import Metric

        stamp = int(row["time"] * 1000)
        values = {name: float(value) for name, value in row.items() if name not in ("step", "time")}
        metrics = [Metric(name, value, stamp, row["step"]) for name, value in values.items() if math.isfinite(value)]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self._id, status=status)


def attach(run: str, place: MlflowRun, names: list[str]) -> None:
    """Attach files of a run folder to its MLflow run."""
    import tempfile

    from mlflow import MlflowClient

    run_id = json.loads(storage.read_text(storage.join(run, ID_FILE)))["run_id"]
    client = MlflowClient(place.uri)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            local = Path(folder, name.rpartition("/")[2])
            local.write_bytes(storage.read_bytes(storage.join(run, *name.split("/"))))
            client.log_artifact(run_id, str(local), artifact_path=name.rpartition("/")[0] or None)
