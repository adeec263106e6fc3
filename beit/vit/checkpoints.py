"""Checkpoint folders: `model.safetensors` holds the weights, `config.json` what it takes to build the model.
`config.json` has four parts: "kind" (mim, classifier, segmenter or backbone), "model" (the backbone's
`ModelConfig`), "head" (the other arguments of that kind of model), and "extra" (how the weights were trained,
for those who use them).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from beit.config import ModelConfig
from beit.errors import UserError
from beit.plain import from_dict, to_dict
from beit.vit.backbone import backbone_of
from beit.vit.model import VitModel

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Fields that change how a model is trained, but not what its weights mean.
TRAINING_ONLY = ("drop_path", "layer_scale")


@dataclass(frozen=True, kw_only=True)
class SavedConfig:
    """The contents of a checkpoint's `config.json`."""

    kind: str
    """mim, classifier, segmenter, or backbone (no head; other models are started from it)."""
    model: ModelConfig
    head: dict[str, Any]
    """The model's `head_config`."""
    extra: dict[str, Any]
    """What else was passed to `save_model`: the view's config, the tokenizer's name and digest."""


def save_model(model: VitModel, folder: Path, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a model as a checkpoint folder.

    Each file gets its name only when it is complete, `config.json` last. So a folder that has a `config.json`
    is complete.

    Args:
        model: Its weights are written in their own precision.
        folder: Created if it does not exist.
        extra: JSON types to keep in `config.json`.
    """
    grid = backbone_of(model).grid
    if grid != (model.config.grid, model.config.grid):
        raise ValueError(
            f"positions are for {grid[0]} x {grid[1]} patches, and a config.json can only say square "
            "grids: save the first model"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    part = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    try:
        save_file(tensors, part, metadata={"format": "pt"})
        part.replace(folder / WEIGHTS_FILE)
    finally:
        part.unlink(missing_ok=True)
    config = {
        "kind": model.kind,
        "model": to_dict(model.config),
        "head": model.head_config,
        "extra": dict(extra or {}),
    }
    write_json(folder / CONFIG_FILE, config)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON to a temporary file, then rename it: a reader never sees half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(values, indent=2) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_config(folder: Path) -> SavedConfig:
    """Read a checkpoint folder's `config.json`.

    Raises:
        UserError: If the folder is no checkpoint; the message says what is missing or wrong.
    """
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise not_a_checkpoint(folder, f"it has no {CONFIG_FILE}") from None
    except ValueError as error:
        raise not_a_checkpoint(folder, f"its {CONFIG_FILE} is not JSON ({error})") from None
    parts = {"kind": str, "model": dict, "head": dict, "extra": dict}
    if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != parts:
        raise not_a_checkpoint(folder, f"its {CONFIG_FILE} describes something else")
    return SavedConfig(**{**values, "model": from_dict(ModelConfig, values["model"], at="model.")})


def load_weights(model: VitModel, folder: Path) -> None:
    """Read a checkpoint's weights into a model of the same kind and config.

    Nothing is changed if they do not fit.

    Raises:
        UserError: If the folder is no checkpoint, its weights are damaged, or the saved model is a different
            one; the message names what differs.
    """
    saved = read_config(folder)
    ours = {"kind": model.kind, **to_dict(model.config), **model.head_config}
    theirs = {"kind": saved.kind, **to_dict(saved.model), **saved.head}
    differing = [
        name
        for name in {**ours, **theirs}
        if name not in TRAINING_ONLY and ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise UserError(
            f"{folder} holds another model: "
            + ", ".join(
                f"{name} is {theirs.get(name)} there and {ours.get(name)} here" for name in differing
            ),
            "use the config that it was trained with",
        )
    fill(model, folder)


def fill(model: VitModel, folder: Path) -> None:
    """Copy a checkpoint's tensors into a model, after checking that names and shapes are the same."""
    tensors = read_tensors(folder)
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is not part of the model" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(
            f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {'; '.join(problems[:3])}{more}",
            "restore both files from the same checkpoint",
        )
    model.load_state_dict(tensors, strict=True)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return a checkpoint's weights by name, on the CPU.

    Raises:
        UserError: If there are none, or if they are damaged.
    """
    path = folder / WEIGHTS_FILE
    try:
        return load_file(path)
    except FileNotFoundError:
        raise not_a_checkpoint(folder, f"it has no {WEIGHTS_FILE}") from None
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged or cut short ({error})",
            "use another checkpoint of the run, or copy this one again",
        ) from None


def is_checkpoint(folder: Path) -> bool:
    """Return whether `save_model` wrote a folder, by its `config.json`."""
    try:
        read_config(folder)
    except (UserError, OSError):
        return False
    return True


def not_a_checkpoint(folder: Path, why: str) -> UserError:
    return UserError(
        f"{folder} is not a checkpoint: {why}", f"name a folder that holds {WEIGHTS_FILE} and {CONFIG_FILE}"
    )
