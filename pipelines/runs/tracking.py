"""Log to MLflow: each run folder has one MLflow run."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shlex
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from beit.errors import UserError
from beit.plain import to_dict
from pipelines import storage
from pipelines.config.jobs import HasData
from pipelines.redaction import redact
from pipelines.runs.run_folder import flatten

ID_FILE = "mlflow.json"

NO_PLACE = "mlflow: off, because SQLite needs a disk and the runs are on a bucket; set MLFLOW_TRACKING_URI"
"""Tells the user why `place_of` returns None."""

NOT_USED = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID")
"""Settings of MLflow that name a run or an experiment, and that users may expect to be followed."""

SETTINGS = "MLFLOW_"
"""Prefix of MLflow's environment variables: server, user and password, certificates."""

# By default MLflow waits 8 times 120 s for a server that does not answer.
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


@dataclass(frozen=True, kw_only=True)
class MlflowRun:
    """Where a run is logged in MLflow, and what is known of it at its start."""

    uri: str
    experiment: str
    name: str
    artifacts: str | None = None
    """Where a new experiment keeps its files. None: the server decides."""
    params: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    """Id of the parent MLflow run, such as the sweep of a trial."""
    settings: Mapping[str, str] = field(default_factory=lambda: settings(), repr=False)
    """MLflow's settings in the process that chose the place; the process that logs may lack them."""

    @property
    def is_own_file(self) -> bool:
        """Whether the run is logged to the SQLite file next to the runs."""
        return self.artifacts is not None


def settings() -> dict[str, str]:
    """Collect MLflow's environment variables, passwords included. They are passed between processes, but
    never written or printed.

    On a cluster, other processes have the environment of their machine, not the driver's. An SQLite file
    named relative to the folder of this process is the same file for the others.
    """
    found = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    if uri := found.get("MLFLOW_TRACKING_URI"):
        found["MLFLOW_TRACKING_URI"] = _absolute(uri)
    return found


def adopt(settings: Mapping[str, str]) -> None:
    """Replace MLflow's environment variables by those of another process."""
    for name in [name for name in os.environ if name.startswith(SETTINGS) and name not in settings]:
        del os.environ[name]
    os.environ.update(settings)


def _absolute(uri: str) -> str:
    file = uri.removeprefix("sqlite:///")
    return uri if file == uri or file.startswith((":memory:", "/")) else f"sqlite:///{Path(file).absolute()}"


def place_of(run: str, *, experiment: str, params: Mapping[str, Any]) -> MlflowRun | None:
    """Return where a run folder is logged: to the server that `MLFLOW_TRACKING_URI` names, or to a SQLite
    file next to the runs.

    A run folder inside that of another run becomes its child, in the same store. None for runs on a bucket
    without a server, because SQLite needs a disk (`NO_PLACE` says so).
    """
    root, name = storage.parent(run), storage.name(run)
    uri = settings().get("MLFLOW_TRACKING_URI")
    if not uri and storage.is_remote(root):
        return None
    if (parent := _known_id(root)) is not None and (
        place := place_of(root, experiment=experiment, params={})
    ) is not None:
        return replace(place, name=name, params=params, parent=parent)
    if uri:
        return MlflowRun(uri=uri, experiment=experiment, name=name, params=params)
    # Otherwise MLflow would put files into the current folder.
    return MlflowRun(
        uri=f"sqlite:///{_quoted(root)}/mlflow.db",
        experiment=experiment,
        name=name,
        artifacts=f"file://{_quoted(root)}/mlartifacts",
        params=params,
    )


def place_of_job(run: str, config: HasData, *, job: str, preset: str) -> MlflowRun | None:
    """Return where a job's run is logged, with its configuration as parameters; None if it is not logged."""
    if not config.output.mlflow:
        return None
    params = flatten({"job": job, "preset": preset, **to_dict(config)})
    return place_of(run, experiment=config.output.experiment, params=params)


def check(place: MlflowRun) -> None:
    """Check that MLflow answers.

    Raises:
        UserError: If MLflow cannot be used.
    """
    with _told_to_the_user(place.uri):
        _client(place.uri).get_experiment_by_name(place.experiment)


def begin(run: str, place: MlflowRun, say: Callable[[str], None]) -> None:
    """Begin the MLflow run of a run folder, or find the one that it has. Where that was deleted, a new one is
    begun.

    The driver calls it before anything is logged: Ray hides the exception of an actor that cannot start.

    Args:
        run: Run folder; the MLflow run's id is kept there.
        place: Where the run is logged.
        say: Takes the lines for the user.

    Raises:
        UserError: If MLflow cannot be used.
    """
    for name in NOT_USED:
        if os.environ.get(name):
            say(
                f"warning: {name} is not used: each run folder has an MLflow run of its own, in the "
                f"experiment {place.experiment} (--output.experiment)"
            )
    with _told_to_the_user(place.uri), _alone(place):
        client = _client(place.uri)
        known = _known_id(run)
        if known is not None:
            if _is_there(client, known):
                return
            say(f"warning: the MLflow run {known} was deleted; a new one is begun")
        _begin(client, run, place)


def _begin(client: Any, run: str, place: MlflowRun) -> None:
    from mlflow.entities import Param

    found = client.get_experiment_by_name(place.experiment)
    if found is not None and found.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow experiment {place.experiment} was deleted",
            f"MLFLOW_TRACKING_URI={shlex.quote(redact(place.uri))} mlflow experiments restore "
            f"--experiment-id {found.experiment_id}, or name another by --output.experiment",
        )
    experiment = (
        found.experiment_id
        if found
        else client.create_experiment(place.experiment, artifact_location=place.artifacts)
    )
    tags = {"run_folder": redact(run), **({"mlflow.parentRunId": place.parent} if place.parent else {})}
    new = str(client.create_run(experiment, run_name=place.name, tags=tags).info.run_id)
    client.log_batch(
        new, params=[Param(key, redact(str(value))[:6000]) for key, value in place.params.items()]
    )
    storage.write_text(storage.join(run, ID_FILE), json.dumps({"run_id": new}))


def _is_there(client: Any, run_id: str) -> bool:
    """Whether MLflow knows a run that was not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


@contextmanager
def _alone(place: MlflowRun) -> Iterator[None]:
    """Lock the SQLite file beside the runs: of two processes that make its tables at once, one would fail."""
    if not place.is_own_file:
        yield
        return
    root = Path(_unquoted(place.uri.removeprefix("sqlite:///"))).parent
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".mlflow.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def trouble(uri: str, error: Exception) -> str:
    """Describe a failure of MLflow in one line, without the URI's credentials."""
    root: BaseException = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    # Below the long messages of MLflow and urllib3 for a lost connection there is a short one of the system.
    first = str(root if isinstance(root, OSError) else error).strip().split("\n")[0]
    reason = textwrap.shorten(redact(first), 200, placeholder=" …")
    return f"MLflow at {redact(uri)} cannot be used: {reason or type(error).__name__}"


class MlflowLog:
    """Logs the metrics of one run to MLflow, by step. A resumed run continues its MLflow run.

    Args:
        run: Run folder, whose MLflow run was begun by `begin`.
        place: Where the run is logged.

    Raises:
        UserError: If MLflow cannot be used. `log` and `finish` raise what MLflow raises.
    """

    def __init__(self, run: str, place: MlflowRun) -> None:
        adopt(place.settings)
        with _told_to_the_user(place.uri):
            self._client = _client(place.uri)
            self._id = _known_id(run)
            if self._id is None:
                raise ValueError(f"the MLflow run of {run} was not begun")
            self._client.update_run(self._id, status="RUNNING")

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row of metrics at the optimizer's step."""
        self._client.log_batch(self._id, metrics=_metrics(row))

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self._id, status=status)


def end_orphan(run: str, place: MlflowRun, status: str) -> None:
    """End the MLflow run of a run folder whose own processes could not end it. A run that has ended keeps its
    state.

    A tracking server that cannot be reached is ignored: this is called after other failures.
    """
    run_id = _known_id(run)
    with suppress(Exception):
        client = _client(place.uri)
        if run_id is not None and client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status=status)


def link(run: str, place: MlflowRun) -> str | None:
    """Return where the MLflow run of a folder can be seen: an address on a server, or a command that shows
    the file. None if there is no MLflow run.
    """
    if (run_id := _known_id(run)) is None:
        return None
    if not place.uri.startswith("http"):
        return f"mlflow ui --backend-store-uri {redact(place.uri)}"
    try:
        experiment = _client(place.uri).get_run(run_id).info.experiment_id
    except Exception:  # As in `attach`.
        return redact(place.uri)
    return f"{redact(place.uri).rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def attach(run: str, place: MlflowRun, names: list[str]) -> bool:
    """Attach files of a run folder to its MLflow run.

    Returns:
        Whether MLflow has them; it has not if it cannot be used, or never knew the run, or keeps the run's
        files where the runs were before they were moved.
    """
    if (run_id := _known_id(run)) is None:
        return False
    if _is_elsewhere(run_id, place):
        return False
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            local = Path(folder, name)
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(storage.read_bytes(storage.join(run, *name.split("/"))))
        try:
            client = _client(place.uri)
            for name in names:
                client.log_artifact(
                    run_id, str(Path(folder, name)), artifact_path=name.rpartition("/")[0] or None
                )
        except (
            Exception
        ):  # MLflow raises its own, those of requests and SQLAlchemy, and ImportError for missing drivers.
            return False
    return True


def _is_elsewhere(run_id: str, place: MlflowRun) -> bool:
    """Whether the runs were moved, with the SQLite file: MLflow would make the folder anew in which it kept
    their files.
    """
    if place.artifacts is None:
        return False
    with suppress(Exception):  # As in `attach`.
        return not _client(place.uri).get_run(run_id).info.artifact_uri.startswith(f"{place.artifacts}/")
    return True


def record(run: str, place: MlflowRun, rows: Iterable[Mapping[str, Any]], names: list[str]) -> bool:
    """Log a finished run: rows of metrics, and files of its folder.

    Returns:
        Whether MLflow has all of it.
    """
    try:
        begin(run, place, lambda line: None)
        log = MlflowLog(run, place)
        for row in rows:
            log.log(row)
        attached = attach(run, place, names)
        log.finish("FINISHED")
    except Exception:  # As in `attach`.
        return False
    return attached


def enter(run: str, place: MlflowRun, row: Mapping[str, Any]) -> bool:
    """Log a row of metrics to the MLflow run of a run folder to which no process is logging.

    Returns:
        Whether MLflow has it; it has not if it cannot be used, or never knew the run.
    """
    if (run_id := _known_id(run)) is None:
        return False
    try:
        _client(place.uri).log_batch(run_id, metrics=_metrics(row))
    except Exception:  # As in `attach`.
        return False
    return True


def _metrics(row: Mapping[str, Any]) -> list[Any]:
    """Return MLflow's metrics of a row, without values that are not finite."""
    from mlflow.entities import Metric

    values = {name: float(value) for name, value in row.items() if name not in ("step", "time")}
    return [
        Metric(name, value, int(row["time"] * 1000), row["step"])
        for name, value in values.items()
        if math.isfinite(value)
    ]


def _known_id(run: str) -> str | None:
    """Return MLflow's id of a run folder; None if it has none yet."""
    file = storage.join(run, ID_FILE)
    return str(json.loads(storage.read_text(file))["run_id"]) if storage.exists(file) else None


def _client(uri: str) -> Any:
    """Return MLflow's client, with a shorter timeout and without its messages about databases."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(uri)


@contextmanager
def _told_to_the_user(uri: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # None: the original error may show a password.
        raise UserError(trouble(uri, error), _remedy(uri, error)) from None


def _remedy(uri: str, error: Exception) -> str:
    if "out-of-date database schema" in str(error):
        return f"copy the database, then: mlflow db upgrade {shlex.quote(redact(uri))}"
    return "correct MLFLOW_TRACKING_URI, or switch MLflow off with --output.no-mlflow"


def _quoted(path: str) -> str:
    """Quote what a URI would take for something else; MLflow takes it back."""
    for character, code in (("%", "%25"), ("?", "%3F"), ("#", "%23")):
        path = path.replace(character, code)
    return path


def _unquoted(path: str) -> str:
    for character, code in (("?", "%3F"), ("#", "%23"), ("%", "%25")):
        path = path.replace(code, character)
    return path
