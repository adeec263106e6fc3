"""Find the model or tokenizer that a path refers to: the folder itself, or one inside a run folder."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beit.config import ViewConfig
from beit.errors import UserError
from beit.plain import from_dict
from beit.vit.checkpoints import SavedConfig, read_config, save_model
from beit.vit.model import VitModel
from pipelines import schemes, storage
from pipelines.runs import checkpoints, run_folder

MODEL_FILES = ("model.safetensors", "config.json")
MODEL_JOBS = ("pretrain", "finetune", "segment")
"""Jobs whose run folders hold a model in the end."""

STEP_FILE = "step.json"
"""File next to a run's model with the step of its weights."""

TOKENIZER_FILE = "tokenizer.json"


def find_model(path: str) -> str:
    """Find the folder with the weights that a path refers to: the folder itself, a run's model, or the run's
    newest checkpoint if that is later.

    Raises:
        UserError: If there are no weights.
    """
    schemes.check_scheme(path)
    uri = storage.absolute(path)
    model, newest = (
        storage.join(uri, "model"),
        checkpoints.latest_checkpoint(uri) if storage.is_folder(uri) else None,
    )
    for folder in (
        uri,
        *((newest, model) if newest is not None and _was_resumed(model, newest) else (model, newest)),
    ):
        if folder is not None and holds_model(folder):
            return folder
    is_run = all(
        storage.exists(storage.join(uri, name))
        for name in (run_folder.CONFIG_FILE, run_folder.ENVIRONMENT_FILE)
    )
    if is_run and (job := run_folder.saved_run(path).job) in MODEL_JOBS:
        raise UserError(
            f"{path} has no checkpoint yet", f"continue it by beit {job} --resume {path}, or name another run"
        )
    raise UserError(
        (
            f"{path} holds no model: neither it nor its model/ nor a checkpoint in it has "
            f"{' and '.join(MODEL_FILES)}"
        ),
        "name the folder of a run, such as runs/NAME, or of a checkpoint",
    )


def model_step(folder: str) -> int | None:
    """Return the step of a run's weights; None for weights that are not a run's, such as imported ones."""
    for name in (checkpoints.PROGRESS_FILE, STEP_FILE):
        if storage.entry(file := storage.join(folder, name)) is not None:
            return int(json.loads(storage.read_text(file))["step"])
    return None


def _was_resumed(model: str, newest: str) -> bool:
    """Whether a finished run was resumed, and now has a checkpoint later than its model."""
    file = storage.join(model, STEP_FILE)
    return (
        storage.entry(file) is not None
        and checkpoints.step_of(newest) > json.loads(storage.read_text(file))["step"]
    )


def holds_model(folder: str) -> bool:
    """Whether a folder has all files of a model."""
    return all(storage.entry(storage.join(folder, name)) is not None for name in MODEL_FILES)


def find_tokenizer(path: str) -> str:
    """Find the folder of the tokenizer that a path refers to: inside the run that trained it, or the path
    itself.
    """
    schemes.check_scheme(path, option="tokenizer.path")
    inner = storage.join(storage.absolute(path), "tokenizer")
    return inner if storage.entry(storage.join(inner, TOKENIZER_FILE)) is not None else storage.absolute(path)


@contextmanager
def model_files(folder: str) -> Iterator[Path]:
    """Give the files of a run's model or of a checkpoint as a local folder, while the context lasts. The
    weights of a run are compared with what it wrote.

    Raises:
        UserError: If they are not what was written.
    """
    with storage.local_copy(folder, (*MODEL_FILES, checkpoints.PROGRESS_FILE, STEP_FILE)) as local:
        check_model(folder, str(local))
        yield local


def check_model(folder: str, local: str | None = None) -> None:
    """Compare a model with what its run wrote; nothing is known of models from elsewhere.

    Args:
        folder: A run's model folder, or a checkpoint.
        local: A copy of its files. None: the folder itself is read.

    Raises:
        UserError: If it is not what was written.
    """
    local = local or folder
    for name, digest in _digests_of_model(local).items():
        if checkpoints.file_digest(storage.join(local, name)) != digest:
            raise UserError(
                f"{folder}: {name} is not what was written",
                "take another checkpoint of its run, or bring back a copy of it",
            )


def _digests_of_model(folder: str) -> dict[str, str]:
    """SHA-256 of the files of a model, as its run wrote them down; none for models from elsewhere."""
    if storage.entry(storage.join(folder, checkpoints.PROGRESS_FILE)) is not None:
        known = checkpoints.read_progress(folder).digests
    elif storage.entry(file := storage.join(folder, STEP_FILE)) is not None:
        known = json.loads(storage.read_text(file)).get("sha256", {})
    else:
        known = {}
    return {name: known[name] for name in MODEL_FILES if name in known}


def keep_model(checkpoint: str, run: str) -> None:
    """Copy the weights of a checkpoint into the run's `model` folder, with their step and digests, for
    everything that comes next.

    Raises:
        UserError: If they are not what was written.
    """
    known, digests = _digests_of_model(checkpoint), {}
    for name in MODEL_FILES:
        content = storage.read_bytes(storage.join(checkpoint, name))
        digests[name] = hashlib.sha256(content).hexdigest()
        if digests[name] != known.get(name, digests[name]):
            raise UserError(
                f"{checkpoint}: {name} is not what was written",
                f"resume the run: --resume {run} takes the checkpoint before it",
            )
        storage.write_bytes(storage.join(run, "model", name), content)
    if (step := model_step(checkpoint)) is not None:
        content_of_step = json.dumps({"step": step, "sha256": digests})
        storage.write_text(storage.join(run, "model", STEP_FILE), content_of_step + "\n")


def keep_new_model(model: VitModel, run: str, *, extra: dict[str, Any]) -> str:
    """Write a model of this process into a run's `model` folder, with the "extra" of its config.json;
    returns the folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder), extra=extra)
        keep_model(folder, run)
    return storage.join(run, "model")


def model_config(checkpoint: str) -> SavedConfig:
    """Read the config.json of a checkpoint folder."""
    with storage.local_copy(checkpoint, MODEL_FILES[1:]) as folder:
        return read_config(folder)


def view_of(saved: SavedConfig, path: str) -> ViewConfig:
    """Return how a model's pixels are normalised, from "extra" in its config.json; `path` names the model in
    messages.

    Raises:
        UserError: If config.json does not say so: with another mean and std its results would be worse
            without notice.
    """
    recorded = saved.extra.get("view")
    if not isinstance(recorded, dict):
        raise UserError(
            f"{path}: its config.json does not say how pixels were normalised",
            (
                'add to its "extra": "view": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, '
                "or "
                "what the model was trained with"
            ),
        )
    return from_dict(ViewConfig, recorded, at="extra.view.")


def model_digest(checkpoint: str) -> str:
    """Return the digest of the weights of a checkpoint folder."""
    return hashlib.blake2b(
        storage.read_bytes(storage.join(checkpoint, MODEL_FILES[0])), digest_size=16
    ).hexdigest()
