"""Pretrain a BEiT: `beit pretrain [PRESET | CONFIG.json] [--option value …]`, or `python -m pipelines.pretrain …` with the same options."""

from __future__ import annotations

import functools
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from beit.config import override
from beit.errors import UserError
from pipelines import runs, storage
from pipelines.config import MOST_SCENE_PX, PretrainConfig

if TYPE_CHECKING:
    from beit.mim import MimObjective
    from beit.pictures import Reconstructions
    from beit.tokenizer.protocol import ImageTokenizer
    from pipelines.job import Result, Training
    from pipelines.sources import Manifest
    from pipelines.token_cache import TokenCache

JOB = "pretrain"

SHOWN = [
    ("loss {:.3f} (unigram {:.3f})", "train/loss train/unigram"),
    ("acc {:.1%} (majority {:.1%})", "train/accuracy train/majority"),
    ("lr {:.2e}", "optim/lr"),
    ("grad {:.2f}", "optim/grad_norm"),
]

MODEL_FILES = ("model.safetensors", "config.json")

REPORT_IMAGES = 8

# The entropy of fewer hidden tokens than this says little about the entropy of all.
BASELINE_PATCHES = 20_000


def pretrain(
    config: PretrainConfig, *, preset: str = "custom", resume: str | None = None, debug: bool = False, say: Callable[[str], None] = print
) -> Result:
    """Train a BEiT from image shards and write its run folder with checkpoints, metrics and report.

    Args:
        config: The whole run.
        preset: Name that the run folder starts with when `output.name` is not given.
        resume: Run folder to go on with; `config` must be its own but for resources and output.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.

    Raises:
        UserError: For every mistake in the configuration or the data that can be seen before training.
    """
    from pipelines.job import run_job, write_report_of

    if resume is None:
        runs.check_free(config)
    training = prepare(config, preset=preset, say=say)
    for line in summary(training):
        say(line)
    folder, result = run_job(training, resume=resume, debug=debug, say=say)
    for name in MODEL_FILES:
        storage.write_bytes(folder.path("model", name), storage.read_bytes(storage.join(result.checkpoint, name)))
    report = write_report_of(training, folder, lambda: write_run_report(training, folder.uri, result.checkpoint), say=say)
    _conclude(result, training, report, say)
    return result


def prepare(config: PretrainConfig, *, preset: str, say: Callable[[str], None]) -> Training:
    """Check everything that can be checked without a cluster, and open the data; renders the built-in scenes if no data is given."""
    config.mask.check(config.model.grid)
    if config.data.train is None and config.model.image_size > MOST_SCENE_PX:
        raise UserError(
            f"data.train is not given, and the built-in scenes are too small a data set for images of {config.model.image_size} px",
            "set --data.train to a folder or bucket of images; beit pretrain quickstart runs on the scenes",
        )
    from beit.optim import check_schedule
    from pipelines.job import Training, check_batch, open_data, with_absolute_data
    from pipelines.samples import SampleConfig

    check_batch(config.optim.global_batch_size, config.resources.workers)
    if config.tokenizer.path is not None:
        config = override(config, {"tokenizer.path": storage.absolute(config.tokenizer.path)})
    config = with_absolute_data(config)
    source = open_data(config, image_size=config.model.image_size, say=say)
    tokenizer = checked_tokenizer(config)
    cache = None if config.data.tokens is None else checked_cache(config.data.tokens, config, source.manifest, tokenizer)
    total_steps = config.total_steps(source.manifest.total, config.optim.global_batch_size)
    if config.steps is None:
        check_schedule(config.optim, total_steps)
    objective = functools.partial(_make_objective, config, tokenizer.vocab_size, total_steps, tokenizer.digest)
    return Training(
        job=JOB,
        config=config,
        preset=preset,
        source=source,
        samples=SampleConfig(
            seed=config.seed,
            view=config.view,
            patch_px=config.model.image_size,
            token_px=config.tokenizer.image_size,
            mask=config.mask,
            grid=config.model.grid,
            cache=cache,
        ),
        tokenizer=None if cache else config.tokenizer,
        make_objective=objective,
        global_batch_size=config.optim.global_batch_size,
        total_steps=total_steps,
        clip_norm=config.optim.clip_norm,
        inputs={"data.train": source.manifest.digest, "tokenizer": tokenizer.digest},
        shown=SHOWN,
    )


def checked_tokenizer(config: PretrainConfig) -> ImageTokenizer:
    """The run's tokenizer, on this machine's CPU.

    Raises:
        UserError: If its tokens do not lie on the model's patches.
    """
    from pipelines.stream import open_tokenizer

    tokenizer = open_tokenizer(config.tokenizer)
    grid = config.tokenizer.image_size / tokenizer.px_per_token
    if grid != config.model.grid:
        raise UserError(
            f"tokenizer.image_size={config.tokenizer.image_size} gives {grid:g} x {grid:g} visual tokens, but model.image_size="
            f"{config.model.image_size} gives {config.model.grid} x {config.model.grid} patches",
            f"set --tokenizer.image-size {config.model.grid * tokenizer.px_per_token}",
        )
    return tokenizer


def checked_cache(path: str, config: PretrainConfig, manifest: Manifest, tokenizer: ImageTokenizer) -> TokenCache:
    """The token cache that the run reads instead of tokenising.

    Raises:
        UserError: If it was made for other samples or by another tokenizer, or is not complete.
    """
    from pipelines.token_cache import TokenCache, view_fields

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
        )
    )
    if missing := cache.missing():
        raise UserError(
            f"data.tokens={path} lacks {len(missing):,} of {cache.epochs * cache.parts_of_epoch:,} parts",
            "run its beit tokenizer encode again: it computes what is missing",
        )
    return cache


def _make_objective(config: PretrainConfig, vocab_size: int, total_steps: int, tokenizer_digest: str) -> MimObjective:
    from beit.mim import MimObjective

    return MimObjective(
        config.model,
        config.optim,
        config.view,
        vocab_size=vocab_size,
        total_steps=total_steps,
        seed=config.seed,
        max_hidden=config.mask.budget(config.model.grid),
        extra={"tokenizer": {"name": config.tokenizer.path or config.tokenizer.name, "digest": tokenizer_digest}},
    )


def summary(training: Training) -> list[str]:
    """The run in a few lines, derived numbers with their arithmetic."""
    config = training.config
    assert isinstance(config, PretrainConfig)
    model, optim, manifest = config.model, config.optim, training.source.manifest
    images = training.total_steps * optim.global_batch_size
    lines = [
        f"model: ViT {model.dim}/{model.depth}/{model.heads}, {model.image_size} px, {model.grid} x {model.grid} patches, "
        f"{model.position} positions",
        f"tokenizer: {config.tokenizer.path or config.tokenizer.name}, {config.tokenizer.image_size} px",
        f"data: {manifest.total:,} images in {len(manifest.rows):,} units ({manifest.kind})",
        f"mask: {config.mask.kind}, at most {config.mask.budget(model.grid)} of {model.patches} patches hidden",
        f"steps: {training.total_steps:,} x {optim.global_batch_size:,} images = {images:,} = {images / manifest.total:.3g} epochs",
    ]
    if cache := training.samples.cache:
        lines.insert(2, f"tokens: read from {cache.path}, {cache.epochs} epochs of views, computed in {cache.description.precision}")
        if images > cache.epochs * manifest.total:
            lines.append(f"views: the sets of {cache.epochs} epochs repeat; masks still change in every epoch")
    if optim.warmup_steps >= training.total_steps:
        lines.append(
            f"warning: the warmup of {optim.warmup_steps:,} steps is not shorter than the run: "
            f"the learning rate never reaches {optim.peak_lr:g}"
        )
    if config.tokenizer.path is None and config.tokenizer.name.startswith("random"):
        lines.append("warning: this tokenizer has random weights: good for measuring, its tokens carry no meaning")
    return lines


def rebuild_report(run: str) -> str:
    """Write the report of a pretraining run again, from its folder and its data; returns its path."""
    config, preset = runs.saved_config(run, PretrainConfig, job=JOB)
    checkpoint = runs.latest_checkpoint(storage.absolute(run))
    if checkpoint is None:
        raise UserError(f"{run} has no complete checkpoint yet", "wait for its first one (output.checkpoint_steps), or --resume it")
    return write_run_report(prepare(config, preset=preset, say=lambda line: None), storage.absolute(run), checkpoint)


def write_run_report(training: Training, run: str, checkpoint: str) -> str:
    """The report with what the checkpoint's model fills in, on images of the run's own data; returns its path."""
    from pipelines.report import reconstruction_picture, write_report

    return write_report(
        run, pictures=[reconstruction_picture(_reconstructions(training, checkpoint))], commands=_next_commands(training, run)
    )


def _reconstructions(training: Training, checkpoint: str) -> Reconstructions:
    """What the model makes of eight images, views and masks as the stream draws them."""
    import torch

    from beit.checkpoints import load_model
    from beit.mim import Beit
    from beit.pictures import reconstruct
    from pipelines.samples import draw_unseen

    config = training.config
    assert isinstance(config, PretrainConfig)
    samples = draw_unseen(training.source.manifest, training.samples, REPORT_IMAGES)
    batch = {name: torch.from_numpy(column) for name, column in samples.items()}
    tokenizer = checked_tokenizer(config)
    tokens = tokenizer.encode(batch.get("token_view", batch["patch_view"]).permute(0, 3, 1, 2))
    with tempfile.TemporaryDirectory() as folder:
        for name in MODEL_FILES:
            Path(folder, name).write_bytes(storage.read_bytes(storage.join(checkpoint, name)))
        model = load_model(Path(folder), Beit)
    return reconstruct(model, tokenizer, batch["patch_view"], tokens, batch["mask"], config.view)


def _next_commands(training: Training, run: str) -> list[tuple[str, str]]:
    config = training.config
    if config.data.train is None:
        return [("The same on your own images", "beit pretrain tiny64 --data.train FOLDER_OR_BUCKET")]
    twice = f"--steps {2 * config.steps}" if config.steps is not None else f"--epochs {2 * config.epochs:g}"
    return [("Twice as long", f"beit pretrain {shlex.quote(run)}/config.json {twice}")]


def _conclude(result: Result, training: Training, report: str, say: Callable[[str], None]) -> None:
    loss, unigram = result.metrics.get("train/loss"), result.metrics.get("train/unigram")
    config = training.config
    assert isinstance(config, PretrainConfig)
    patches = result.step * config.optim.global_batch_size * config.mask.budget(config.model.grid)
    if loss is not None and unigram is not None and patches < BASELINE_PATCHES:
        say(f"final loss {loss:.3f}; {patches:,} hidden patches are too few for a baseline")
    elif loss is not None and unigram is not None:
        better = "better" if loss < unigram else "worse"
        say(f"final loss {loss:.3f}; unigram baseline {unigram:.3f}: {abs(unigram - loss):.3f} nats {better} than guessing by frequency")
    say(f"model: {result.run}/model")
    say(f"report: {report}")
    for what, command in _next_commands(training, result.run):
        say(f"next, {what[0].lower()}{what[1:]}: {command}")


if __name__ == "__main__":
    from pipelines.cli import main

    main(["pretrain", *sys.argv[1:]])
