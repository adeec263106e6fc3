"""The first weights of a training that does not begin with random ones: they stay while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn

from beit.config import AbsoluteMode
from beit.vit.checkpoints import SavedConfig, read_config
from beit.vit.transfer import Transfer, finetuning_config, start_from_folder
from pipelines import storage
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.supervised import SupervisedConfig
from pipelines.runs.models import (
    find_model,
    holds_model,
    keep_model,
    model_config,
    model_digest,
    model_files,
    model_step,
    view_of,
)

Config = TypeVar("Config", bound=SupervisedConfig)
Starting = TypeVar("Starting", bound=SupervisedConfig | PretrainConfig)
"""A configuration with a `start`."""

STARTS = "starts"
"""Folder, beside the runs, with copies of the weights that trainings begin with."""


def for_start(recipe: Config, start: str, *, image_size: int | None = None, pixels: bool = True) -> Config:
    """Adapt a recipe to the model of a run or checkpoint.

    Args:
        recipe: All of it is kept but the model (whose drop path is kept) and the mean and std of the pixels.
        start: Run or checkpoint folder.
        image_size: For another image size. None: the model's.
        pixels: Take mean and std from the model. False: keep the recipe's.
    """
    with model_files(find_model(start)) as folder:
        saved = read_config(folder)
    model = finetuning_config(saved.model, image_size=image_size, drop_path=recipe.model.drop_path)
    theirs = view_of(saved, start) if pixels else recipe.view
    view = replace(recipe.view, mean=theirs.mean, std=theirs.std)
    return replace(recipe, start=start, model=model, view=view)


def compare_pixels(config: SupervisedConfig | PretrainConfig, *, say: Callable[[str], None]) -> None:
    """Warn if pixels are normalised with another mean or std than in the training of the first weights."""
    if config.start is None:
        return
    theirs = view_of(model_config(config.start), config.start)
    ours = (*config.view.mean, *config.view.std)
    if any(abs(one - other) > 1e-3 for one, other in zip(ours, (*theirs.mean, *theirs.std), strict=True)):
        options = " ".join(
            f"--view.{name} {' '.join(f'{value:g}' for value in getattr(theirs, name))}"
            for name in ("mean", "std")
        )
        say(
            "warning: the weights to begin with are used to pixels of another mean and std; unless that is "
            f"meant, give {options}"
        )


def keep_start(config: Starting, *, say: Callable[[str], None]) -> Starting:
    """Copy the first weights to a place where they stay, and return the configuration that names the copy.

    Workers read the first weights whenever they start, also after a pause or a failure. A training that is
    still running may delete or rewrite its own.
    """
    if config.start is None:
        return config
    step = model_step(config.start)
    if step is None or storage.name(storage.parent(storage.parent(config.start))) == STARTS:
        return config
    above = storage.parent(config.start)  # RUN/model, or RUN/attempt-1/step-00001000
    run = storage.name(storage.parent(above) if storage.name(above).startswith("attempt-") else above)
    place = storage.join(
        storage.absolute(config.output.root), STARTS, f"{run}-step-{step}-{model_digest(config.start)[:12]}"
    )
    kept = storage.join(place, "model")
    if not holds_model(kept):
        say(
            f"start: a copy of {config.start} goes into {place}: a training that goes on deletes or "
            "replaces its own"
        )
        keep_model(config.start, place)
    return replace(config, start=kept)


def take_weights(
    model: nn.Module,
    start: str | None,
    *,
    absolute: AbsoluteMode = "bicubic",
    drop: Callable[[SavedConfig], Mapping[str, str]] = lambda saved: {},
) -> Transfer | None:
    """Load the first weights into a model.

    Args:
        model: Changed in place.
        start: Folder of the weights. None: nothing is loaded.
        absolute: How absolute positions are resampled.
        drop: The config of the weights -> beginnings of the names of tensors that are not taken, with the
            reason.

    Returns:
        An account of the weights; None without a start.
    """
    if start is None:
        return None
    with model_files(start) as folder:
        return start_from_folder(model, folder, absolute=absolute, drop=drop(read_config(folder)))
