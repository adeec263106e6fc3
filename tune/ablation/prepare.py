"""Prepare an ablation: find its data, and check every row and both protocols with this data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from beit.errors import UserError
from beit.pretraining.targets import find_target
from pipelines import storage
from pipelines.config.data import SupervisedDataConfig, check_has_data
from pipelines.datasets import open_data, open_val
from pipelines.finetune import ClassificationTask
from pipelines.segment import SegmentationTask
from pipelines.sources import Source
from pipelines.stream.graph import px_per_token
from pipelines.training.pretraining import check_config, check_grid, checked_length, with_absolute_paths
from pipelines.training.supervised import SupervisedTask, SupervisedTraining
from tune.ablation.chain import JobName
from tune.ablation.chain_run import with_protocol
from tune.ablation.config import AblationConfig, ProtocolConfig
from tune.ablation.table4 import RowName, Task

Protocol = TypeVar("Protocol", bound=ProtocolConfig)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An ablation, ready to run: everything is checked, nothing is started."""

    config: AblationConfig
    """The configuration, with absolute paths and with the data of all jobs."""
    preset: str
    source: Source
    """Images of the pretraining."""
    steps: dict[JobName, int]
    """Steps of the fine-tunings."""
    inputs: dict[str, str]
    """Digests of the data, by the option that names it."""

    @property
    def token_epochs(self) -> int:
        """Epochs of views whose tokens are computed once for all rows of a seed. 0: every row tokenises as
        it trains.
        """
        longest = max(
            (self._epochs(row) for row in self.config.rows if self._predicts_tokens(row)), default=0.0
        )
        return math.ceil(longest) if longest <= self.config.token_epochs else 0

    @property
    def tokenises(self) -> bool:
        """Whether rows tokenise while they train."""
        return not self.token_epochs and any(map(self._predicts_tokens, self.config.rows))

    def _predicts_tokens(self, row: RowName) -> bool:
        return find_target(self.config.pretraining(row, 0).target.kind).needs_tokenizer

    def _epochs(self, row: RowName) -> float:
        config, images = self.config.pretraining(row, 0), self.source.manifest.total
        return (
            config.total_steps(images, config.optim.global_batch_size)
            * config.optim.global_batch_size
            / images
        )


def prepare(config: AblationConfig, *, preset: str, say: Callable[[str], None]) -> Prepared:
    """Open the data of all jobs, and check every row and both protocols with it. If no data is given, the
    built-in scenes are rendered.

    Raises:
        UserError: As `ablate`.
    """
    config = with_absolute_paths(config)
    config = replace(config, output=replace(config.output, root=storage.absolute(config.output.root)))
    _check_data(config)
    recipes = {task: _recipe(config, task) for task in config.tasks}
    if any(find_target(config.pretraining(row, 0).target.kind).needs_tokenizer for row in config.rows):
        check_grid(config, px_per_token(config.tokenizer))
    source = open_data(config, image_size=config.model.image_size, say=say)
    for row in config.rows:
        _check_row(config, row, source.manifest.total)
    scenes, config = config.data.train is None, replace(config, data=replace(config.data, train=source.uri))
    steps: dict[JobName, int] = {}
    inputs = {"data.train": source.manifest.digest}
    for task, recipe in recipes.items():
        protocol = _found(getattr(config, task), config, recipe.data, scenes=scenes, say=say)
        config = (
            replace(config, classify=protocol) if task == "classify" else replace(config, segment=protocol)
        )
        found = _check_task(config, task, recipe)
        steps[task] = found.total_steps
        val = "" if found.val is None else found.val.digest
        inputs |= {f"{task}.train": found.source.manifest.digest, f"{task}.val": val}
    return Prepared(config=config, preset=preset, source=source, steps=steps, inputs=inputs)


def _recipe(config: AblationConfig, task: Task) -> Any:
    """Return the preset of a task, and check the protocol's learning rate against it."""
    protocol: ProtocolConfig = getattr(config, task)
    recipe = _task(task).preset(protocol.recipe)
    if protocol.peak_lr is not None and protocol.peak_lr < recipe.optim.min_lr:
        raise UserError(
            f"{task}.peak_lr={protocol.peak_lr} is below {recipe.optim.min_lr:g}, to which the learning rate "
            f"falls in the recipe {protocol.recipe}",
            f"set --{task}.peak-lr {recipe.optim.peak_lr:g}, or leave it out",
        )
    return recipe


def _task(name: Task) -> SupervisedTask[Any, Any]:
    return ClassificationTask() if name == "classify" else SegmentationTask()


def _check_task(config: AblationConfig, task: Task, recipe: Any) -> SupervisedTraining[Any]:
    """Check the data, labels and length of a task, with a model from scratch of the recipe's size."""
    protocol: ProtocolConfig = getattr(config, task)
    try:
        checked = replace(
            with_protocol(recipe, protocol, config.data),
            resources=config.resources,
            output=config.output,
            seed=config.seed,
        )
        found: SupervisedTraining[Any] = _task(task).prepare(
            checked, preset=protocol.recipe, say=lambda line: None
        )
    except UserError as error:
        raise UserError(f"{task}: {error.cause}", error.remedy.replace("--data.", f"--{task}.")) from error
    return found


def _check_data(config: AblationConfig) -> None:
    """Refuse a task without training or validation images."""
    check_has_data(config.data.train, config.model.image_size, works="beit ablate quickstart")
    for task in config.tasks:
        protocol = getattr(config, task)
        if protocol.val is None and (protocol.train or config.data.train):
            raise UserError(
                f"{task}.val is not given, and rows are compared by what they reach there",
                f"set --{task}.val to images to be judged by, or leave {task} out of --tasks",
            )
        if (
            task == "segment"
            and config.data.train
            and protocol.train is None
            and protocol.annotations is None
        ):
            raise UserError(
                "segment.train is not given, and images of pretraining have no annotations",
                "set --segment.train to annotated images, or leave segment out of --tasks",
            )


def _check_row(config: AblationConfig, row: RowName, images: int) -> None:
    pretraining = config.pretraining(row, config.seed)
    try:
        check_config(pretraining)
        checked_length(pretraining, images)
    except UserError as error:
        raise UserError(f"the row {row}: {error.cause}", error.remedy) from error


def _found(
    protocol: Protocol,
    config: AblationConfig,
    data: SupervisedDataConfig,
    *,
    scenes: bool,
    say: Callable[[str], None],
) -> Protocol:
    """Return a protocol with absolute paths: to its own images, or to those of the pretraining, or to
    held-out scenes.
    """
    given = {
        name: getattr(protocol, name, None) for name in ("train", "val", "annotations", "val_annotations")
    }
    paths: dict[str, Any] = {name: storage.absolute(path) for name, path in given.items() if path is not None}
    protocol = replace(protocol, **paths)
    val = protocol.val
    if val is None and scenes:
        count = protocol.val_scenes or data.val_scenes
        held_out = replace(data, train=None, val=None, scenes=config.data.scenes, val_scenes=count)
        source = open_val(held_out, config.output.root, image_size=config.model.image_size, say=say)
        val = None if source is None else source.uri
    return replace(protocol, train=protocol.train or config.data.train, val=val)
