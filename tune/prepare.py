"""Prepare a sweep: draw its trials, find its data, and check every trial with this data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from beit.errors import UserError
from beit.pretraining.targets import find_target
from pipelines import storage
from pipelines.config.data import check_has_data
from pipelines.config.pretrain import KnnWhileConfig, PretrainConfig
from pipelines.datasets import held_out_scenes, open_data
from pipelines.evaluation.knn import open_knn
from pipelines.sources import Source
from pipelines.training.pretraining import checked_cache, checked_tokenizer, with_absolute_paths
from pipelines.training.starts import keep_start
from tune.concurrency import Schedule, schedule
from tune.config import SweepConfig
from tune.goal import Goal, check_goal, evaluated
from tune.search import check_search
from tune.space import DEFAULT_TRIALS, Params, Space, absolute_space, draw, load_space
from tune.tokens import changing_views, shareable
from tune.trial import check_trial


@dataclass(frozen=True, kw_only=True)
class Design:
    """The trials that a sweep will run. Made without reading an image."""

    space: Space
    goal: Goal
    plan: list[Params] | None
    """The parameters of all trials. None: a search suggests them as it learns."""
    examples: list[Params]
    """Parameters to check before the sweep: those of the plan, or some that a search might suggest."""
    trials: int
    """The number of trials."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A sweep, ready to run: everything is checked, nothing is started."""

    config: SweepConfig
    """The configuration, with absolute paths."""
    preset: str
    design: Design
    source: Source


def make_design(config: SweepConfig) -> Design:
    """Draw the parameters of all trials, and check that the fields exist and take the values.

    Raises:
        UserError: If the space, the objective or the search is not possible, or a field does not take a
            value; the message names it.
    """
    space = load_space(config.space)
    goal = check_goal(config, space)
    check_search(config, space)
    learned = config.search != "random"
    examples = draw(space, DEFAULT_TRIALS if learned else config.trials, config.seed)
    for params in examples:
        config.pretraining(params)
    trials = (config.trials or DEFAULT_TRIALS) if learned else len(examples)
    return Design(
        space=space, goal=goal, plan=None if learned else examples, examples=examples, trials=trials
    )


def plan_concurrency(config: SweepConfig, space: Space, nodes: Sequence[Any]) -> Schedule:
    """Compute how many trials run at a time on the given machines."""
    any_tokens = find_target(config.target.kind).needs_tokenizer or "target.kind" in space
    tokenize = any_tokens and not (config.data.tokens or shareable(config.pretraining(), space))
    return schedule(
        config.resources, nodes, tokenize=tokenize, data_cpus=config.data_cpus, concurrent=config.concurrent
    )


def prepare(config: SweepConfig, design: Design, *, preset: str, say: Callable[[str], None]) -> Prepared:
    """Open the data, and check the parameters of the trials with it. If no data is given, the built-in scenes
    are rendered.

    Raises:
        UserError: As `sweep`.
    """
    config = with_absolute_paths(config)
    config = replace(
        config,
        space=absolute_space(config.space),
        output=replace(config.output, root=storage.absolute(config.output.root)),
    )
    config = keep_start(config, say=say)
    base = config.pretraining()
    check_has_data(config.data.train, config.model.image_size, works="beit sweep quickstart")
    source = open_data(config, image_size=config.model.image_size, say=say)
    if config.objective == "knn":
        config = replace(config, knn=_checked_knn(config, base, source.manifest.total, say=say))
    for params in design.examples:
        check_trial(base, params, source.manifest.total, objective=config.objective)
    if config.data.tokens is not None:
        _check_tokens(config.data.tokens, base, design.space, source)
    return Prepared(config=config, preset=preset, design=design, source=source)


def _check_tokens(path: str, base: PretrainConfig, space: Space, source: Source) -> None:
    """Refuse a token cache that is incomplete, or that was not made from the views of all trials."""
    if others := changing_views(space):
        raise UserError(
            f"data.tokens={path} holds the tokens of one kind of views, and the space changes {others[0]}",
            "leave out --data.tokens: each trial then tokenises for itself",
        )
    checked_cache(path, base, source.manifest, checked_tokenizer(base))


def _checked_knn(
    config: SweepConfig, base: PretrainConfig, images: int, *, say: Callable[[str], None]
) -> KnnWhileConfig:
    """Return the labelled images for k-NN; for the built-in data, these are held-out scenes."""
    knn = config.knn
    if knn.val is None:
        first, side = config.data.scenes, config.model.image_size
        knn = replace(
            knn,
            val=held_out_scenes(config.output.root, first=first, images=1000, image_size=side, say=say).uri,
        )
    steps = images // base.optim.global_batch_size
    open_knn(evaluated(replace(base, knn=knn), "knn", images), total_steps=steps, say=say)
    return knn
