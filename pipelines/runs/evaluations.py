"""Save and read the evaluations that a training makes at its pauses: one file per step in the run folder, and
figures in MLflow.

They are not rows of metrics.jsonl. When a worker is lost, those rows are rewound and measured again;
evaluations are not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.runs import tracking
from pipelines.runs.tracking import MlflowRun


def save(run: str, kind: str, step: int, values: Mapping[str, Any], *, variant: str = "") -> None:
    """Save an evaluation of a checkpoint.

    Args:
        run: Run folder.
        kind: Name of the subfolder for evaluations of this kind, such as validation.
        step: Step of the checkpoint.
        values: The results, as JSON types.
        variant: Distinguishes evaluations of the same step with other settings; "" for the usual one.
    """
    storage.write_text(_file(run, kind, step, variant), json.dumps({"step": step, **values}))


def read(run: str, kind: str) -> list[dict[str, Any]]:
    """All evaluations of a kind, ordered by step; at each step, the usual variant comes first."""
    folder = storage.join(run, kind)
    names = (
        [name for name in storage.list_folder(folder) if Path(name).suffix == ".json"]
        if storage.exists(folder)
        else []
    )
    found = [
        json.loads(storage.read_text(storage.join(folder, name)))
        for name in sorted(names, key=lambda name: (len(name), name))
    ]
    return sorted(found, key=lambda one: int(one["step"]))


def alike(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick the evaluations of one variant, so that they can be compared.

    Of the variants of the last step, the one with the most steps is picked; of several, the first.
    """
    variants = [json.dumps(one.get("test"), sort_keys=True) for one in found]
    pairs = list(zip(found, variants, strict=True))
    last = [variant for one, variant in pairs if one["step"] == found[-1]["step"]]
    return [one for one, variant in pairs if variant == max(last, key=variants.count)]


def saved_at(run: str, kind: str, step: int, *, variant: str = "") -> dict[str, Any] | None:
    """The evaluation of one step; None if there is none yet."""
    file = _file(run, kind, step, variant)
    return json.loads(storage.read_text(file)) if storage.exists(file) else None


def _file(run: str, kind: str, step: int, variant: str) -> str:
    return storage.join(run, kind, f"step-{step:08d}{variant}.json")


def tell_mlflow(
    run: str, place: MlflowRun | None, step: int, figures: Mapping[str, float], say: Callable[[str], None]
) -> None:
    """Log figures (`group/name`) of a step to the run's MLflow run, if it has one.

    The training continues if the server cannot be reached.
    """
    if place is None or not figures:
        return
    if not tracking.enter(run, place, {"step": step, "time": time.time(), **figures}):
        say(f"warning: MLflow cannot be reached; the evaluation at step {step:,} is in the run folder only")
