"""Pretrain a BEiT: `beit pretrain [PRESET | CONFIG.json] [--option value …]`, or `python -m pipelines.pretrain …` with the same options."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from beit.errors import UserError
from pipelines import runs, storage
from pipelines.config import PretrainConfig

if TYPE_CHECKING:
    from beit.mim import MimObjective
    from beit.tokenizer.protocol import ImageTokenizer
    from pipelines.job import Result, Training

JOB = "pretrain"

SHOWN = [
    ("loss {:.3f} (unigram {:.3f})", "train/loss train/unigram"),
    ("acc {:.1%} (majority {:.1%})", "train/accuracy train/majority"),
    ("lr {:.2e}", "optim/lr"),
    ("grad {:.2f}", "optim/grad_norm"),
]

MODEL_FILES = ("model.safetensors", "config.json")


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
    from pipelines.job import run_job

    if resume is None:
        runs.check_free(config)
    training = prepare(config, preset=preset, say=say)
    for line in summary(training):
        say(line)
    folder, result = run_job(training, resume=resume, debug=debug, say=say)
    for name in MODEL_FILES:
        storage.write_bytes(folder.path("model", name), storage.read_bytes(storage.join(result.checkpoint, name)))
    report = write_run_report(training, folder)
    _conclude(result, report, say)
    return result


def prepare(config: PretrainConfig, *, preset: str, say: Callable[[str], None]) -> Training:
    """Check everything that can be checked without a cluster, and open the data; renders the built-in scenes if no data is given."""
    config.mask.check(config.model.grid)
    from pipelines.job import Training, check_batch, open_data
    from pipelines.stream import SampleConfig

    check_batch(config.optim.global_batch_size, config.resources.workers)
    source = open_data(config, image_size=config.model.image_size, say=say)
    tokenizer = open_tokenizer(config)
    total_steps = config.total_steps(source.manifest.total, config.optim.global_batch_size)
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
        ),
        tokenizer=config.tokenizer,
        make_objective=objective,
        global_batch_size=config.optim.global_batch_size,
        total_steps=total_steps,
        clip_norm=config.optim.clip_norm,
        shown=SHOWN,
    )


def open_tokenizer(config: PretrainConfig) -> ImageTokenizer:
    """The run's tokenizer, on this machine's CPU.

    Raises:
        UserError: If its tokens do not lie on the model's patches.
    """
    from beit.tokenizer.registry import load_tokenizer

    tokenizer = load_tokenizer(config.tokenizer.path or config.tokenizer.name)
    grid = config.tokenizer.image_size / tokenizer.px_per_token
    if grid != config.model.grid:
        raise UserError(
            f"tokenizer.image_size={config.tokenizer.image_size} gives {grid:g} x {grid:g} visual tokens, but model.image_size="
            f"{config.model.image_size} gives {config.model.grid} x {config.model.grid} patches",
            f"set --tokenizer.image-size {config.model.grid * tokenizer.px_per_token}",
        )
    return tokenizer


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
    share = optim.global_batch_size // config.resources.workers
    lines = [
        f"model: ViT {model.dim}/{model.depth}/{model.heads}, {model.image_size} px, {model.grid} x {model.grid} patches, "
        f"{model.position} positions",
        f"tokenizer: {config.tokenizer.path or config.tokenizer.name}, {config.tokenizer.image_size} px",
        f"data: {manifest.total:,} images in {len(manifest.rows):,} units ({manifest.kind})",
        f"mask: {config.mask.kind}, at most {config.mask.budget(model.grid)} of {model.patches} patches hidden",
        f"steps: {training.total_steps:,} x {optim.global_batch_size} images = {images:,} = {images / manifest.total:.1f} epochs; "
        f"a step: {config.resources.workers} workers x {share}",
    ]
    if optim.warmup_steps >= training.total_steps:
        lines.append(
            f"warning: the warmup of {optim.warmup_steps:,} steps is not shorter than the run: "
            f"the learning rate never reaches {optim.peak_lr:g}"
        )
    if config.tokenizer.path is None and config.tokenizer.name.startswith("random"):
        lines.append("warning: this tokenizer has random weights: good for measuring, its tokens carry no meaning")
    return lines


def write_run_report(training: Training, folder: runs.RunFolder) -> str | None:
    """The report of a finished training; None until there is one."""
    return None


def _conclude(result: Result, report: str | None, say: Callable[[str], None]) -> None:
    loss, unigram = result.metrics.get("train/loss"), result.metrics.get("train/unigram")
    if loss is not None and unigram is not None:
        say(f"final loss {loss:.3f}, unigram baseline {unigram:.3f}: {unigram - loss:+.3f} nats better than guessing by frequency")
    say(f"model: {result.run}/model")
    if report:
        say(f"report: {report}")


if __name__ == "__main__":
    from pipelines.cli import main

    main(["pretrain", *sys.argv[1:]])
