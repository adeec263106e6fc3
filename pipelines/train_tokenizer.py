"""Train a tokenizer: `beit tokenizer train [PRESET | CONFIG.json] [--option value …]`, or `python -m
pipelines.train_tokenizer …`.
"""

from __future__ import annotations

import copy
import functools
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.errors import UserError
from beit.plain import to_dict
from beit.tokenizer.codes import count_tokens, describe_codes
from beit.tokenizer.dvae import PX_PER_TOKEN, Dvae
from beit.tokenizer.figures import measure
from beit.tokenizer.frozen import DvaeTokenizer, save_tokenizer
from beit.tokenizer.objective import DvaeObjective
from beit.tokenizer.pictures import code_sheet, token_sheet
from pipelines import storage
from pipelines.command_line.options import parse_job
from pipelines.command_line.run import run
from pipelines.config.data import check_has_data
from pipelines.config.tokenizer import TrainTokenizerConfig
from pipelines.config.workers import check_batch
from pipelines.datasets import open_data, with_absolute_data
from pipelines.presets.tokenizer import PRESETS, tokenizer_preset
from pipelines.reports.page import Picture
from pipelines.reports.run import write_report
from pipelines.runs import run_folder
from pipelines.stream.samples import SampleConfig, draw_unseen
from pipelines.training.recipe import warmup_warnings
from pipelines.training.run import check_room, run_job, write_report_of
from pipelines.training.training import Result, Training

JOB = "tokenizer train"

# Tokens that the figures are measured on: 512 images of 64 px, 32 of 256 px. A full-size encoder takes
# seconds an image on a CPU.
FIGURES_TOKENS = 32_768

REPORT_IMAGES = 8
CODE_EXAMPLES = 6

SHOWN = [
    ("bound {:.3f}", "train/bound"),
    ("error {:.3f}", "train/error"),
    ("kl {:.2f}", "train/kl"),
    ("perplexity {:.0f}", "train/perplexity"),
    ("dead {:.0f}", "train/dead"),
    ("temperature {:.2f}", "train/temperature"),
    ("lr {:.1e}", "optim/lr"),
]


def train_tokenizer(
    config: TrainTokenizerConfig,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train a discrete VAE from image shards and write its run folder; the tokenizer is in `<run>/tokenizer`.

    Args:
        config: The whole run.
        preset: Name that the run folder starts with when `output.name` is not given.
        resume: Run folder to go on with; `config` must be its own but for resources and output.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.

    Raises:
        UserError: For every mistake in the configuration or the data that can be seen before training.
    """
    if resume is None:
        run_folder.check_free(config)
    check_room(config)
    training = prepare(config, preset=preset, say=say)
    dvae, manifest = config.dvae, training.source.manifest
    say(
        f"tokenizer: {dvae.vocab_size:,} tokens, width {dvae.encoder_width}/{dvae.decoder_width}, "
        f"{config.image_size} px"
    )
    say(f"data: {manifest.total:,} images in {len(manifest.rows):,} units ({manifest.kind})")
    say(f"steps: {training.total_steps:,} x {training.global_batch_size} images")
    folder, result = run_job(training, resume=resume, debug=debug, say=say)
    trained = look(training, result.checkpoint)
    write_tokenizer(training, result, trained, folder.path("tokenizer"))
    figures = trained.figures
    say(
        f"on {len(trained.images)} views that no step has seen: error {figures['error']:.3f}, "
        f"perplexity {figures['perplexity']:,.0f} of {dvae.vocab_size:,}, {figures['dead']:,.0f} tokens "
        "unused"
    )
    say(f"tokenizer: {folder.path('tokenizer')}")
    say(
        "report: "
        f"{write_report_of(training, folder, lambda: write_run_report(training, folder.uri, trained), say=say)}"  # noqa: E501
    )
    for what, command in _next_commands(training, folder.uri):
        say(f"next, {what[0].lower()}{what[1:]}: {command}")
    return result


def prepare(config: TrainTokenizerConfig, *, preset: str, say: Callable[[str], None]) -> Training:
    """Check everything that can be checked without a cluster, and open the data."""
    check_has_data(config.data.train, config.image_size, works="beit tokenizer train scenes64")
    check_batch(config.optim.global_batch_size, config.resources.worker_range)
    config = with_absolute_data(config)
    source = open_data(config, image_size=config.image_size, say=say)
    total_steps = config.total_steps(source.manifest.total, config.optim.global_batch_size)
    for line in warmup_warnings(config.optim, total_steps):
        say(line)
    return Training(
        job=JOB,
        config=config,
        preset=preset,
        source=source,
        samples=SampleConfig(seed=config.seed, view=config.view, patch_px=config.image_size),
        tokenizer=None,
        make_objective=functools.partial(
            DvaeObjective, config.dvae, config.train, config.optim, total_steps=total_steps, seed=config.seed
        ),
        global_batch_size=config.optim.global_batch_size,
        total_steps=total_steps,
        clip_norm=config.optim.clip_norm,
        inputs={"data.train": source.manifest.digest},
        shown=SHOWN,
    )


@dataclass(frozen=True)
class Trained:
    """A checkpoint's tokenizer and what it makes of views that no epoch has."""

    dvae: Dvae
    tokenizer: DvaeTokenizer
    images: Tensor
    """uint8 [B, 3, h, w]"""
    tokens: Tensor
    """int64 [B, N], the most probable ones: those that pretraining sees."""
    figures: dict[str, float]


def look(training: Training, checkpoint: str) -> Trained:
    """Freeze a checkpoint into a tokenizer, and measure it on the run's own images in views that no epoch
    has.
    """
    objective = training.make_objective()
    assert isinstance(objective, DvaeObjective)
    assert isinstance(training.samples, SampleConfig)
    with tempfile.TemporaryDirectory() as name:
        for entry in storage.list_files(checkpoint):
            Path(name, entry.name).write_bytes(storage.read_bytes(storage.join(checkpoint, entry.name)))
        objective.load(Path(name))
    frozen = copy.deepcopy(objective.trained)
    tokenizer = DvaeTokenizer(frozen.encoder, frozen.decoder, device="cpu")
    count = max(REPORT_IMAGES, FIGURES_TOKENS // (training.samples.patch_px // PX_PER_TOKEN) ** 2)
    views = draw_unseen(training.source.manifest, training.samples, count)["patch_view"]
    images = torch.from_numpy(views).permute(0, 3, 1, 2)
    return Trained(objective.trained, tokenizer, images, tokenizer.encode(images), measure(tokenizer, images))


def write_tokenizer(training: Training, result: Result, trained: Trained, folder: str) -> None:
    """Write the tokenizer's folder: weights, sizes, how it was trained and what its tokens reach."""
    config = training.config
    assert isinstance(config, TrainTokenizerConfig)
    described = {
        field: value
        for field, value in to_dict(config).items()
        if field in ("dvae", "train", "view", "optim", "seed")
    }
    provenance: dict[str, Any] = {
        "command": f"beit tokenizer train {training.preset}",
        "data": {"images": training.source.manifest.total, "digest": training.source.manifest.digest},
        "steps": result.step,
        **described,
    }
    figures = {"images": len(trained.images), **trained.figures}
    with tempfile.TemporaryDirectory() as name:
        save_tokenizer(
            Path(name),
            trained.dvae,
            image_size=config.image_size,
            training=provenance,
            figures=figures,
            half=config.half,
        )
        for path in Path(name).iterdir():
            storage.write_bytes(storage.join(folder, path.name), path.read_bytes())


def rebuild_report(run: str) -> str:
    """Write the report of a tokenizer's run again, from its folder and its data; returns its path."""
    config, preset = run_folder.saved_config(run, TrainTokenizerConfig, job=JOB)
    run = storage.absolute(run)
    checkpoint = run_folder.latest_checkpoint(run)
    if checkpoint is None:
        raise UserError(
            f"{run} has no complete checkpoint yet",
            "wait for its first one (output.checkpoint_steps), or --resume it",
        )
    training = prepare(config, preset=preset, say=lambda line: None)
    return write_run_report(training, run, look(training, checkpoint))


def write_run_report(training: Training, run: str, trained: Trained) -> str:
    """The report with originals and reconstructions, how often each token occurs and what single tokens look
    like; returns its path.
    """
    tokenizer, figures = trained.tokenizer, trained.figures
    shown = slice(0, REPORT_IMAGES)
    originals = trained.images[shown].permute(0, 2, 3, 1).numpy()
    decoded = tokenizer.decode(trained.tokens[shown]).permute(0, 2, 3, 1).numpy()
    side = originals.shape[1] // tokenizer.px_per_token
    grids = trained.tokens[shown].reshape(-1, side, side).numpy()
    names = [""] * len(originals)
    codes = describe_codes(tokenizer, trained.images, trained.tokens, examples=CODE_EXAMPLES)
    return write_report(
        run,
        pictures=[
            Picture(
                title="Originals and reconstructions",
                image=token_sheet(list(originals), list(grids), list(decoded), names, side=160),
                legend=[
                    ("image", "A view that no step has seen."),
                    ("tokens", f"{grids[0].size} of them, a colour each: all that is left of the image."),
                    (
                        "decoded",
                        f"What the decoder paints from them. Over {len(trained.images)} such views the mean "
                        "absolute error is "
                        f"{figures['error']:.3f} of 1; {figures['stable']:.0%} of the tokens stay when "
                        "pixels change by at most 2 of 255.",
                    ),
                ],
            ),
            Picture(
                title="What single tokens look like",
                image=code_sheet(codes, examples=CODE_EXAMPLES),
                legend=[
                    ("large square", "What the decoder paints in the middle of a field of this token alone."),
                    (
                        "small squares",
                        "Parts of images that got it. The more they are alike, the more the token says.",
                    ),
                    (
                        "number: share",
                        (
                            "The token, and its share of all tokens. From the commonest to the rarest, at "
                            "even "
                            "distances."
                        ),
                    ),
                ],
            ),
        ],
        class_counts=count_tokens(trained.tokens, tokenizer.vocab_size).tolist(),
        counted=f"in {len(trained.images)} views that no step has seen",
        commands=_next_commands(training, run),
    )


def _next_commands(training: Training, run: str) -> list[tuple[str, str]]:
    config = training.config
    assert isinstance(config, TrainTokenizerConfig)
    tokenizer, data = shlex.quote(storage.join(run, "tokenizer")), shlex.quote(training.source.uri)
    # The size of the token view follows from the model's patches, whatever the tokenizer was trained on.
    preset, size = ("tiny64", 64) if config.image_size == 64 else ("base", 112)
    command = (
        f"beit pretrain {preset} --data.train {data} --tokenizer.path {tokenizer} "
        f"--tokenizer.image-size {size}"
    )
    return [("Pretrain on these tokens", command)]


def command(arguments: list[str], debug: bool) -> None:
    """`beit tokenizer train [PRESET | CONFIG.json] [--option value …]`."""
    parsed = parse_job(
        arguments,
        TrainTokenizerConfig,
        job=JOB,
        default="scenes64",
        presets=PRESETS,
        preset=tokenizer_preset,
    )
    if parsed is not None:
        train_tokenizer(parsed.config, preset=parsed.preset, resume=parsed.resume, debug=debug)


if __name__ == "__main__":
    run(command)
