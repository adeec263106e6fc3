"""Train a tokenizer: `beit tokenizer train [PRESET | CONFIG.json] [--option value …]`, or
`python -m pipelines.train_tokenizer` with the same options.
"""

from __future__ import annotations

import copy
import functools
import shlex
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beit.objectives.metric_chart import MetricChart
from beit.plain import to_dict
from beit.pretraining.targets import VisualTokens
from beit.tokenizer.codes import count_tokens, describe_codes
from beit.tokenizer.config import PX_PER_TOKEN
from beit.tokenizer.dvae import Dvae
from beit.tokenizer.figures import measure
from beit.tokenizer.frozen import DvaeTokenizer, save_tokenizer
from beit.tokenizer.objective import DvaeObjective
from beit.tokenizer.pictures import code_sheet, token_sheet
from pipelines import storage
from pipelines.command_line.run import run_program
from pipelines.config.data import check_has_data
from pipelines.config.tokenizer import TrainTokenizerConfig
from pipelines.config.workers import check_batch
from pipelines.datasets import open_data, with_absolute_data
from pipelines.presets.tokenizer import PRESETS
from pipelines.reports.page import Picture
from pipelines.reports.pretraining import class_sections
from pipelines.reports.run import Report
from pipelines.stream.first_look import warn_about_values
from pipelines.stream.samples import SampleConfig, draw_unseen
from pipelines.training import frame
from pipelines.training.recipe import warmup_warnings
from pipelines.training.task import Finished, Task
from pipelines.training.training import Result, Training

# Tokens that the figures are measured on: 512 images of 64 px, 32 of 256 px. A full-size encoder takes
# seconds an image on a CPU.
FIGURES_TOKENS = 32_768

REPORT_IMAGES = 8
CODE_EXAMPLES = 6

PROGRESS = [
    ("bound {:.3f}", "train/bound"),
    ("error {:.3f}", "train/error"),
    ("kl {:.2f}", "train/kl"),
    ("perplexity {:.0f}", "train/perplexity"),
    ("dead {:.0f}", "train/dead"),
    ("temperature {:.2f}", "train/temperature"),
    ("lr {:.1e}", "optim/lr"),
]

CHARTS = (
    MetricChart(title="Token perplexity", curves=(("train/perplexity", "perplexity"),), from_zero=True),
    MetricChart(
        title="Tokens that no position took", curves=(("train/dead", "unused tokens"),), from_zero=True
    ),
    MetricChart(
        title="Reconstruction error (mean absolute, of 1)",
        curves=(("train/error", "error with relaxed tokens"),),
        from_zero=True,
    ),
    MetricChart(
        title="Bound and divergence from uniform tokens (nats)",
        curves=(("train/bound", "bound"),),
        baselines=(("train/kl", "divergence"),),
    ),
    MetricChart(
        title="Entropy of the mean token distribution (nats)", curves=(("train/marginal", "entropy"),)
    ),
    MetricChart(title="Weight of the divergence", curves=(("train/kl_weight", "weight"),), from_zero=True),
    MetricChart(
        title="Temperature of the relaxed tokens",
        curves=(("train/temperature", "temperature"),),
        from_zero=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining(Training[TrainTokenizerConfig]):
    """A training whose objective and views the report looks at again."""

    samples: SampleConfig
    make_objective: Callable[[], DvaeObjective]


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


class TokenizerTask(Task[TrainTokenizerConfig, TokenizerTraining]):
    """Train a discrete VAE; the tokenizer is in `RUN/tokenizer`."""

    name = "tokenizer train"
    program = "beit tokenizer train"
    config_type = TrainTokenizerConfig
    presets = PRESETS
    default_preset = "scenes64"

    def __init__(self) -> None:
        # A full-size encoder takes seconds an image: what a checkpoint has learned is looked at once.
        self._looked: dict[str, Trained] = {}

    def prepare(
        self, config: TrainTokenizerConfig, *, preset: str, say: Callable[[str], None]
    ) -> TokenizerTraining:
        """Open the images; render the built-in scenes if none are given."""
        check_has_data(config.data.train, config.image_size, works="beit tokenizer train scenes64")
        check_batch(config.optim.global_batch_size, config.resources.worker_range)
        config = with_absolute_data(config)
        source = open_data(config, image_size=config.image_size, say=say)
        if config.data.train is not None:
            warn_about_values(source, config.view, say)
        total_steps = config.total_steps(source.manifest.total, config.optim.global_batch_size)
        for line in warmup_warnings(config.optim, total_steps):
            say(line)
        return TokenizerTraining(
            job=self.name,
            config=config,
            preset=preset,
            source=source,
            samples=SampleConfig(seed=config.seed, view=config.view, patch_px=config.image_size),
            tokenizer=None,
            make_objective=functools.partial(
                DvaeObjective,
                config.dvae,
                config.train,
                config.optim,
                total_steps=total_steps,
                seed=config.seed,
            ),
            optim=config.optim,
            total_steps=total_steps,
            inputs={"data.train": source.manifest.digest},
            shown=PROGRESS,
        )

    def summary(self, training: TokenizerTraining) -> list[str]:
        """Sizes of the tokenizer, data and steps."""
        config, manifest = training.config, training.source.manifest
        dvae = config.dvae
        return [
            f"tokenizer: {dvae.vocab_size:,} tokens, width {dvae.encoder_width}/{dvae.decoder_width}, "
            f"{config.image_size} px",
            f"data: {manifest.total:,} images in {len(manifest.rows):,} units ({manifest.kind})",
            f"steps: {training.total_steps:,} x {training.global_batch_size} images",
        ]

    def conclusion(
        self, finished: Finished[TrainTokenizerConfig, TokenizerTraining], result: Result
    ) -> Iterable[str]:
        """Measure the tokenizer on views that no step has seen."""
        trained = self._look(self._training(finished), result.checkpoint)
        figures = trained.figures
        yield (
            f"on {len(trained.images)} views that no step has seen: error {figures['error']:.3f}, "
            f"perplexity {figures['perplexity']:,.0f} of {finished.config.dvae.vocab_size:,}, "
            f"{figures['dead']:,.0f} tokens unused"
        )

    def keep(
        self, finished: Finished[TrainTokenizerConfig, TokenizerTraining], result: Result
    ) -> Iterable[str]:
        """Write the tokenizer's folder."""
        training = self._training(finished)
        folder = storage.join(finished.run, "tokenizer")
        write_tokenizer(training, result, self._look(training, result.checkpoint), folder)
        return (f"tokenizer: {folder}",)

    def report(self, finished: Finished[TrainTokenizerConfig, TokenizerTraining]) -> Report:
        """Originals and reconstructions, how often each token occurs, and what single tokens look like."""
        training = self._training(finished)
        return _report(training, finished.run, self._look(training, finished.checkpoint()))

    def _training(self, finished: Finished[TrainTokenizerConfig, TokenizerTraining]) -> TokenizerTraining:
        if finished.training is not None:
            return finished.training
        return self.prepare(finished.config, preset=finished.preset, say=lambda line: None)

    def _look(self, training: TokenizerTraining, checkpoint: str) -> Trained:
        if checkpoint not in self._looked:
            self._looked = {checkpoint: look(training, checkpoint)}
        return self._looked[checkpoint]


def train_tokenizer(
    config: TrainTokenizerConfig,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train a discrete VAE from image shards and write its run folder; the tokenizer is in `<run>/tokenizer`.

    The arguments are those of `pipelines.training.frame.run`.
    """
    return frame.run(TokenizerTask(), config, preset=preset, resume=resume, debug=debug, say=say)


def look(training: TokenizerTraining, checkpoint: str) -> Trained:
    """Freeze a checkpoint into a tokenizer, and measure it on the run's own images in views that no epoch
    has.
    """
    objective = training.make_objective()
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


def write_tokenizer(training: TokenizerTraining, result: Result, trained: Trained, folder: str) -> None:
    """Write the tokenizer's folder: weights, sizes, how it was trained and what its tokens reach."""
    config = training.config
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


def _report(training: TokenizerTraining, run: str, trained: Trained) -> Report:
    tokenizer, figures = trained.tokenizer, trained.figures
    shown = slice(0, REPORT_IMAGES)
    originals = trained.images[shown].permute(0, 2, 3, 1).numpy()
    decoded = tokenizer.decode(trained.tokens[shown]).permute(0, 2, 3, 1).numpy()
    side = originals.shape[1] // tokenizer.px_per_token
    grids = trained.tokens[shown].reshape(-1, side, side).numpy()
    names = [""] * len(originals)
    codes = describe_codes(tokenizer, trained.images, trained.tokens, examples=CODE_EXAMPLES)
    return Report(
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
                        f"absolute error is {figures['error']:.3f} of 1; {figures['stable']:.0%} of the "
                        "tokens stay when pixels change by at most 2 of 255.",
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
                            "even distances."
                        ),
                    ),
                ],
            ),
        ],
        key_figures=(),
        charts=CHARTS,
        checks=class_sections(
            count_tokens(trained.tokens, tokenizer.vocab_size).tolist(),
            VisualTokens,
            where=f"in {len(trained.images)} views that no step has seen",
        ),
        commands=_next_commands(training, run),
    )


def _next_commands(training: TokenizerTraining, run: str) -> list[tuple[str, str]]:
    config = training.config
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
    frame.run_command(TokenizerTask(), arguments, debug)


def rebuild_report(run: str) -> str:
    """Write the report of a run again; returns its path."""
    return frame.rebuild_report(TokenizerTask(), run)


if __name__ == "__main__":
    run_program(command)
