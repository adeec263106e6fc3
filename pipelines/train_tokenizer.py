"""Train a tokenizer: `beit tokenizer train [PRESET | CONFIG.json] [--option value …]`, or `python -m pipelines.train_tokenizer …`."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit.checks import positive
from beit.config import OptimConfig, ViewConfig, to_dict
from beit.errors import UserError
from beit.tokenizer.dvae import PX_PER_TOKEN, DvaeConfig
from beit.tokenizer.objective import DvaeObjective, DvaeTrainConfig
from pipelines import runs, storage
from pipelines.config import DataConfig, JobConfig

if TYPE_CHECKING:
    from pipelines.job import Result, Training

JOB = "tokenizer train"

FIGURES_IMAGES = 512

SHOWN = [
    ("bound {:.3f}", "train/bound"),
    ("error {:.3f}", "train/error"),
    ("kl {:.2f}", "train/kl"),
    ("perplexity {:.0f}", "train/perplexity"),
    ("temperature {:.2f}", "train/temperature"),
    ("lr {:.1e}", "optim/lr"),
]


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(JobConfig):
    """Training a tokenizer: a discrete VAE in the structure of DALL-E's."""

    image_size: int = 64
    """Side of the square views, in pixels."""

    dvae: DvaeConfig = field(default_factory=DvaeConfig)
    train: DvaeTrainConfig = field(default_factory=DvaeTrainConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    half: bool = False
    """Write the tokenizer's weights as float16, for a smaller file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "--", "image_size")
        if self.image_size % PX_PER_TOKEN:
            raise UserError(
                f"--image-size {self.image_size} is not a multiple of the {PX_PER_TOKEN} px that a token stands for",
                f"set --image-size {max(1, round(self.image_size / PX_PER_TOKEN)) * PX_PER_TOKEN}",
            )


def scenes64() -> TrainTokenizerConfig:
    """The tokenizer that ships with the package: 512 tokens, trained on the built-in scenes at 64 px."""
    return TrainTokenizerConfig(
        steps=3000,
        data=DataConfig(scenes=12_000),
        dvae=DvaeConfig(vocab_size=512, encoder_width=32, decoder_width=16, blocks=1, bottleneck=64),
        train=DvaeTrainConfig(kl_share=0.5),
        view=ViewConfig(min_area=0.4, jitter=0.0),
        optim=OptimConfig(global_batch_size=16, peak_lr=6e-3, min_lr=6e-5, warmup_steps=50, weight_decay=1e-4, clip_norm=1.0),
        half=True,
    )


PRESETS: dict[str, Callable[[], TrainTokenizerConfig]] = {"scenes64": scenes64}


def preset(name: str) -> TrainTokenizerConfig:
    """The configuration of a preset.

    Raises:
        UserError: For a name that is none.
    """
    if name not in PRESETS:
        raise UserError(f"there is no tokenizer preset {name}", f"presets: {', '.join(PRESETS)}, or the config.json of a run")
    return PRESETS[name]()


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
    from pipelines.job import run_job, write_report_of
    from pipelines.report import write_report

    if resume is None:
        runs.check_free(config)
    training = prepare(config, preset=preset, say=say)
    dvae, manifest = config.dvae, training.source.manifest
    say(f"tokenizer: {dvae.vocab_size:,} tokens, width {dvae.encoder_width}/{dvae.decoder_width}, {config.image_size} px")
    say(f"data: {manifest.total:,} images in {len(manifest.rows):,} units ({manifest.kind})")
    say(f"steps: {training.total_steps:,} x {training.global_batch_size} images")
    folder, result = run_job(training, resume=resume, debug=debug, say=say)
    write_tokenizer(training, result, folder.path("tokenizer"))
    say(f"tokenizer: {folder.path('tokenizer')}")
    say(f"report: {write_report_of(training, folder, lambda: write_report(folder.uri), say=say)}")
    say(f"next: beit pretrain tiny64 --tokenizer.path {folder.path('tokenizer')} --data.train {config.data.train or training.source.uri}")
    return result


def prepare(config: TrainTokenizerConfig, *, preset: str, say: Callable[[str], None]) -> Training:
    """Check everything that can be checked without a cluster, and open the data."""
    from pipelines.job import Training, check_batch, open_data, with_absolute_data
    from pipelines.samples import SampleConfig

    if config.data.tokens is not None:
        raise UserError(f"data.tokens={config.data.tokens}: training a tokenizer reads no tokens", "leave out --data.tokens")
    check_batch(config.optim.global_batch_size, config.resources.workers)
    config = with_absolute_data(config)
    source = open_data(config, image_size=config.image_size, say=say)
    total_steps = config.total_steps(source.manifest.total, config.optim.global_batch_size)
    return Training(
        job=JOB,
        config=config,
        preset=preset,
        source=source,
        samples=SampleConfig(seed=config.seed, view=config.view, patch_px=config.image_size),
        tokenizer=None,
        make_objective=functools.partial(DvaeObjective, config.dvae, config.train, config.optim, total_steps=total_steps, seed=config.seed),
        global_batch_size=config.optim.global_batch_size,
        total_steps=total_steps,
        clip_norm=config.optim.clip_norm,
        inputs={"data.train": source.manifest.digest},
        shown=SHOWN,
    )


def write_tokenizer(training: Training, result: Result, folder: str) -> None:
    """Freeze a checkpoint into a tokenizer folder: weights, sizes, how it was trained and what its tokens reach.

    The figures are measured on the most probable tokens, which pretraining sees, of views that no epoch has.
    """
    import torch

    from beit.tokenizer.figures import measure
    from beit.tokenizer.frozen import DvaeTokenizer, save_tokenizer
    from pipelines.samples import draw_unseen

    config = training.config
    assert isinstance(config, TrainTokenizerConfig)
    objective = training.make_objective()
    assert isinstance(objective, DvaeObjective)
    with tempfile.TemporaryDirectory() as name:
        local = Path(name)
        for entry in storage.list_files(result.checkpoint):
            (local / entry.name).write_bytes(storage.read_bytes(storage.join(result.checkpoint, entry.name)))
        objective.load(local)
        described = {field: value for field, value in to_dict(config).items() if field in ("dvae", "train", "view", "optim", "seed")}
        provenance: dict[str, Any] = {
            "command": f"beit tokenizer train {training.preset}",
            "data": {"images": training.source.manifest.total, "digest": training.source.manifest.digest},
            "steps": result.step,
            **described,
        }
        views = draw_unseen(training.source.manifest, training.samples, FIGURES_IMAGES)["patch_view"]
        tokenizer = DvaeTokenizer(objective.trained.encoder, objective.trained.decoder, device="cpu")
        figures = {"images": len(views), **measure(tokenizer, torch.from_numpy(views).permute(0, 3, 1, 2))}
        save_tokenizer(
            local / "out", objective.trained, image_size=config.image_size, training=provenance, figures=figures, half=config.half
        )
        for path in (local / "out").iterdir():
            storage.write_bytes(storage.join(folder, path.name), path.read_bytes())


if __name__ == "__main__":
    from pipelines.cli import main

    main(["tokenizer", "train", *sys.argv[1:]])
