"""Check the places where runs are written and where metrics are logged."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from beit.errors import UserError
from pipelines import storage
from pipelines.runs import tracking
from pipelines.tools.doctor.finding import Finding, Level, first_line


def written(root: str) -> Iterator[Finding]:
    """Write a file to the folder of the runs, read it and delete it."""
    place = storage.join(storage.absolute(root), f".doctor-{uuid.uuid4().hex}")
    folder = Path(storage.absolute(root))
    made = (
        [] if storage.is_remote(root) else [path for path in (folder, *folder.parents) if not path.exists()]
    )
    try:
        storage.write_bytes(place, b"beit")
        same = storage.read_bytes(place) == b"beit"
        storage.delete_file(place)
        for path in made:
            path.rmdir()
    except UserError as error:
        yield Finding(Level.PROBLEM, f"runs in {root}: {error.cause}", error.remedy)
    except OSError as error:
        yield Finding(
            Level.PROBLEM,
            f"runs in {root} cannot be written: {first_line(error)}",
            "credentials? the region? another --root?",
        )
    else:
        if same:
            yield Finding(Level.FINE, f"runs in {storage.absolute(root)}: written, read and deleted")
        else:
            yield Finding(
                Level.PROBLEM, f"runs in {root}: what was read is not what was written", "use another --root"
            )


def mlflow(root: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check that MLflow can be used."""
    try:
        place = tracking.place_of(storage.join(storage.absolute(root), "run"), experiment="beit", params={})
    except OSError:
        return  # If the bucket cannot be reached, another check reports it.
    if place is None:
        yield Finding(
            Level.WARNING, tracking.NO_PLACE, "mlflow server, and export MLFLOW_TRACKING_URI=http://HOST:5000"
        )
    elif place.is_own_file:
        yield Finding(Level.FINE, f"MLflow: {place.uri}, for one machine")
    else:
        try:
            tracking.check(place)
        except UserError as error:
            yield Finding(Level.PROBLEM, error.cause, error.remedy)
        else:
            yield Finding(
                Level.FINE,
                f"MLflow: {urlsplit(place.uri).scheme}://{urlsplit(place.uri).hostname or ''} answers",
            )
