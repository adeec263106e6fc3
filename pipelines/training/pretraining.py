"""Check a pretraining, and build its objective: used by the job, by sweeps and by `beit plan`."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TypeVar

from beit.errors import UserError
from beit.objectives.optim import check_schedule
from beit.plain import override
from beit.pretraining.masking import check_mask, find_mask
from beit.pretraining.model import Beit
from beit.pretraining.objective import MimObjective
from beit.pretraining.targets import Target, VisualTokens, find_target
from beit.tokenizer.protocol import ImageTokenizer
from beit.vit.checkpoints import SavedConfig
from beit.vit.transfer import Transfer
from pipelines import storage
from pipelines.config.data import MOST_SCENE_PX
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.workers import check_batch
from pipelines.datasets import open_train
from pipelines.presets.pretrain import meant_for
from pipelines.runs.models import find_model
from pipelines.scenes.shards import are_scenes
from pipelines.sources import Manifest
from pipelines.stream.graph import open_tokenizer, px_per_token
from pipelines.stream.token_cache import TokenCache, view_fields
from pipelines.training import recipe
from pipelines.training.starts import take_weights

Config = TypeVar("Config", bound=PretrainConfig)


def with_absolute_paths(config: Config) -> Config:
    """The same with absolute paths to what is read: the saved configuration holds wherever the run is resumed
    from.
    """
    paths = {
        "data.train": config.data.train,
        "data.tokens": config.data.tokens,
        "tokenizer.path": config.tokenizer.path,
        "start": None if config.start is None else find_model(config.start),
        "knn.train": config.knn.train,
        "knn.val": config.knn.val,
    }
    return override(
        config, {name: storage.absolute(path) for name, path in paths.items() if path is not None}
    )


def check_config(config: PretrainConfig) -> None:
    """What fields say to each other.

    Raises:
        UserError: Naming the first of them that does not go with another.
    """
    find_target(config.target.kind)
    check_mask(config.mask, config.model.grid)
    config.target.check(config.mask)
    find_mask(config.evaluation.mask.kind, option="evaluation.mask.kind")
    if config.evaluation.images:
        check_mask(config.evaluation.mask, config.model.grid, at="evaluation.mask.")
        config.target.check(config.evaluation.mask, at="evaluation.mask.")
    if config.data.tokens is not None and not find_target(config.target.kind).needs_tokenizer:
        raise UserError(
            (
                f"data.tokens={config.data.tokens} holds tokens, and target.kind={config.target.kind} "
                "predicts none"
            ),
            "leave out --data.tokens, or set --target.kind tokens",
        )
    check_batch(config.optim.global_batch_size, config.resources.worker_range)


def checked_length(config: PretrainConfig, images: int) -> int:
    """Optimizer steps of a run over so many images an epoch.

    Raises:
        UserError: If the warmup takes all of them. A number of steps that was asked for may be as small as it
            likes.
    """
    total_steps = config.total_steps(images, config.optim.global_batch_size)
    if config.steps is None:
        check_schedule(config.optim, total_steps)
    return total_steps


def check_grid(config: PretrainConfig, px_per_token: int) -> None:
    """One visual token for each patch.

    Raises:
        UserError: If the tokenizer's tokens do not lie on the model's patches.
    """
    grid = config.tokenizer.image_size / px_per_token
    if grid != config.model.grid:
        raise UserError(
            f"tokenizer.image_size={config.tokenizer.image_size} gives {grid:g} x {grid:g} visual tokens, "
            "but model.image_size="
            f"{config.model.image_size} gives {config.model.grid} x {config.model.grid} patches",
            f"set --tokenizer.image-size {config.model.grid * px_per_token}",
        )


def checked_tokenizer(config: PretrainConfig) -> ImageTokenizer:
    """The run's tokenizer, on this machine's CPU.

    Raises:
        UserError: If its tokens do not lie on the model's patches.
    """
    tokenizer = open_tokenizer(config.tokenizer)
    check_grid(config, tokenizer.px_per_token)
    return tokenizer


def checked_cache(
    path: str, config: PretrainConfig, manifest: Manifest, tokenizer: ImageTokenizer
) -> TokenCache:
    """The token cache that the run reads instead of tokenising.

    Raises:
        UserError: If it was made for other samples or by another tokenizer, or is not complete.
    """
    cache = TokenCache.open(path)
    # How many epochs there are, and in which precision they were computed, is for the cache to say.
    cache.check(
        replace(
            cache.description,
            data=manifest.digest,
            units=len(manifest.rows),
            seed=config.seed,
            view=view_fields(config.view),
            patch_px=config.model.image_size,
            token_px=config.tokenizer.image_size,
            tokenizer=tokenizer.digest,
            vocab_size=tokenizer.vocab_size,
        ),
        option="data.tokens",
    )
    if missing := cache.missing():
        raise UserError(
            f"data.tokens={path} lacks {len(missing):,} of {cache.parts:,} parts",
            "run its beit tokenizer encode again: it computes what is missing",
        )
    return cache


def make_objective(
    config: PretrainConfig, target: Target, total_steps: int, tokenizer_digest: str
) -> MimObjective:
    """The model and loss of a run. Every objective gathers the figures of its target for itself.

    Args:
        config: The run.
        target: From `make_target`. It was looked up by its name where the run was prepared: the workers'
            processes need not know the name.
        total_steps: Length of the schedule.
        tokenizer_digest: "" without a tokenizer.
    """
    objective = MimObjective(
        config.model,
        config.optim,
        config.view,
        target=copy.deepcopy(target),
        asked=config.target.positions,
        total_steps=total_steps,
        seed=config.seed,
        max_hidden=config.mask.budget(config.model.grid),
        extra={
            "tokenizer": {"name": config.tokenizer.path or config.tokenizer.name, "digest": tokenizer_digest}
        }
        if tokenizer_digest
        else {},
    )
    take_start(objective.model, config.start, tokenizer_digest)
    return objective


def take_start(model: Beit, start: str | None, tokenizer_digest: str) -> Transfer | None:
    """Load the first weights into the model of a run. The head is taken only where it predicts the same: the
    same target, and for tokens those of the same tokenizer.

    Args:
        model: Changed in place.
        start: Folder of the weights. None: nothing is loaded.
        tokenizer_digest: The run's; "" without a tokenizer.

    Returns:
        An account of the weights; None without a start.
    """

    def other_head(saved: SavedConfig) -> dict[str, str]:
        theirs = saved.head.get("target", VisualTokens.kind) if saved.kind == Beit.kind else model.target
        digest = saved.extra.get("tokenizer", {}).get("digest", "")
        if theirs != model.target:
            return {"lm_head.": f"predicts {theirs}, not {model.target}"}
        return {"lm_head.": "of another tokenizer, or of one unknown"} if digest != tokenizer_digest else {}

    return take_weights(model, start, drop=other_head)


def make_target(
    config: PretrainConfig, *, vocab_size: int = 0, tokenizer: ImageTokenizer | None = None
) -> Target:
    """The target of a run.

    Args:
        config: The run.
        vocab_size: Of its tokenizer; 0 where the target needs none.
        tokenizer: Paints tokens. It does not belong into a target that is sent to workers.

    Raises:
        UserError: Where the target does not suit the configuration.
    """
    setting = recipe.target_setting(config)
    return find_target(config.target.kind).from_setting(
        replace(setting, vocab_size=vocab_size, tokenizer=tokenizer)
    )


def explain(config: PretrainConfig, preset: str) -> list[str]:
    """The whole recipe in lines, with its arithmetic; read are the listing of `data.train` and the
    tokenizer's description.

    Raises:
        UserError: For what can be seen to be wrong without opening images or the tokenizer's weights.
    """
    check_config(config)
    if find_target(config.target.kind).needs_tokenizer:
        check_grid(config, px_per_token(config.tokenizer))
    if config.data.train is not None:
        manifest = open_train(config.data.train, config.data).manifest
        images, data, scenes = manifest.total, recipe.data_line(manifest), are_scenes(manifest)
    elif config.model.image_size <= MOST_SCENE_PX:
        images, data, scenes = (
            config.data.scenes,
            f"data: {config.data.scenes:,} scenes, to be rendered (data.train is not given)",
            True,
        )
    else:
        (images, name), scenes = meant_for(preset), False
        data = f"data: {images:,} images assumed, those of {name} (data.train is not given)"
    checked_length(config, images)
    return recipe.explain(config, preset=preset, data=data, images=images, scenes=scenes)
