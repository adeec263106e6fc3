"""Pretrain a BEiT: `beit pretrain [PRESET | CONFIG.json] [--option value …]`, or `python -m
pipelines.pretrain …` with the same options.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from beit.config import TargetKind
from beit.errors import UserError
from beit.loading import load_model
from beit.objectives.optim import check_schedule
from beit.plain import override
from beit.pretraining.model import Beit
from beit.pretraining.objective import MimObjective
from beit.pretraining.pictures import Reconstructions, reconstruct
from beit.pretraining.targets import MeanColour, Pixels, Target, VisualTokens
from beit.tokenizer.protocol import ImageTokenizer
from pipelines import storage
from pipelines.command_line.options import parse_job
from pipelines.command_line.run import run
from pipelines.config.data import MOST_SCENE_PX, check_has_data
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.workers import check_batch
from pipelines.datasets import open_data
from pipelines.evaluation.knn import FOLDER, open_knn, pauses
from pipelines.presets.pretrain import PRESETS, meant_for, pretrain_preset
from pipelines.reports.attention import attention_picture
from pipelines.reports.probe import knn_section
from pipelines.reports.reconstructions import reconstruction_picture
from pipelines.reports.run import write_report
from pipelines.runs import evaluations, run_folder
from pipelines.runs.models import MODEL_FILES, keep_model
from pipelines.scenes.shards import are_scenes
from pipelines.sources import Manifest, open_source
from pipelines.stream.fixed_samples import fixed_samples
from pipelines.stream.graph import open_tokenizer, px_per_token
from pipelines.stream.samples import SampleConfig, draw_unseen
from pipelines.stream.token_cache import TokenCache, view_fields
from pipelines.training import recipe
from pipelines.training.run import check_room, run_job, write_report_of
from pipelines.training.training import Result, Training
from pipelines.training.watch import Follow

JOB = "pretrain"

Config = TypeVar("Config", bound=PretrainConfig)

OF_CLASSES = [
    ("loss {:.3f} (unigram {:.3f})", "train/loss train/unigram"),
    ("acc {:.1%} (majority {:.1%})", "train/accuracy train/majority"),
]
OF_PIXELS = [
    ("loss {:.3f} (mean colour {:.3f})", "train/loss train/variance"),
    ("explained {:.1%}", "train/explained"),
]
OF_OPTIMIZER = [("lr {:.2e}", "optim/lr"), ("grad {:.2f}", "optim/grad_norm")]
OF_EVALUATION = [("fixed masks {:.3f}", "eval/loss")]

REPORT_IMAGES = 8

# The entropy of fewer hidden tokens than this says little about the entropy of all.
BASELINE_PATCHES = 20_000


def pretrain(
    config: PretrainConfig,
    *,
    preset: str = "custom",
    resume: str | None = None,
    debug: bool = False,
    say: Callable[[str], None] = print,
    follow: Follow | None = None,
) -> Result:
    """Train a BEiT from image shards and write its run folder with checkpoints, metrics and report.

    Args:
        config: The whole run.
        preset: Name that the run folder starts with when `output.name` is not given.
        resume: Run folder to go on with; `config` must be its own but for resources and output.
        debug: Let Ray's own messages through.
        say: Takes the lines for the user.
        follow: Takes the rows of metrics as they come, and may end the run before its last step; what it
            leaves is then as complete.

    Raises:
        UserError: For every mistake in the configuration or the data that can be seen before training.
    """
    if resume is None:
        run_folder.check_free(config)
    check_room(config)
    training = prepare(config, preset=preset, say=say)
    for line in summary(training):
        say(line)
    assert isinstance(training.config, PretrainConfig)
    knn = open_knn(training.config, say=say)
    folder, result = run_job(
        training,
        resume=resume,
        debug=debug,
        say=say,
        follow=follow,
        pauses=pauses(config.knn, training.total_steps),
        at_pause=None if knn is None else functools.partial(knn.evaluate, say),
    )
    keep_model(result.checkpoint, folder.uri)
    report = write_report_of(
        training, folder, lambda: write_run_report(training, folder.uri, result.checkpoint), say=say
    )
    _conclude(result, training, report, say)
    return result


def prepare(config: PretrainConfig, *, preset: str, say: Callable[[str], None]) -> Training:
    """Check everything that can be checked without a cluster, and open the data; renders the built-in scenes
    if no data is given.
    """
    check_config(config)
    check_has_data(config.data.train, config.model.image_size, works="beit pretrain quickstart")

    config = with_absolute_paths(config)
    source = open_data(config, image_size=config.model.image_size, say=say)
    tokenizer = checked_tokenizer(config) if config.target.kind == "tokens" else None
    cache = None
    if tokenizer is not None and config.data.tokens is not None:
        cache = checked_cache(config.data.tokens, config, source.manifest, tokenizer)
    total_steps = checked_length(config, source.manifest.total)
    vocab_size, digest = (0, "") if tokenizer is None else (tokenizer.vocab_size, tokenizer.digest)
    return Training(
        job=JOB,
        config=config,
        preset=preset,
        source=source,
        samples=SampleConfig(
            seed=config.seed,
            view=config.view,
            patch_px=config.model.image_size,
            token_px=None if tokenizer is None else config.tokenizer.image_size,
            mask=config.mask,
            grid=config.model.grid,
            cache=cache,
        ),
        tokenizer=None if tokenizer is None or cache else config.tokenizer,
        make_objective=functools.partial(make_objective, config, vocab_size, total_steps, digest),
        global_batch_size=config.optim.global_batch_size,
        total_steps=total_steps,
        clip_norm=config.optim.clip_norm,
        inputs={"data.train": source.manifest.digest, **({} if tokenizer is None else {"tokenizer": digest})},
        shown=[*(OF_PIXELS if config.target.kind == "pixels" else OF_CLASSES), *OF_OPTIMIZER, *OF_EVALUATION],
        fixed=fixed_samples(config, source.manifest, tokenizer, cache) if config.evaluation.images else None,
        evaluate_at=config.evaluation.steps(total_steps),
    )


def with_absolute_paths(config: Config) -> Config:
    """The same with absolute paths to what is read: the saved configuration holds wherever the run is resumed
    from.
    """
    paths = {
        "data.train": config.data.train,
        "data.tokens": config.data.tokens,
        "tokenizer.path": config.tokenizer.path,
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
    config.mask.check(config.model.grid)
    config.target.check(config.mask)
    if config.evaluation.images:
        config.evaluation.mask.check(config.model.grid)
        config.target.check(config.evaluation.mask)
    if config.data.tokens is not None and config.target.kind != "tokens":
        raise UserError(
            (
                f"data.tokens={config.data.tokens} holds tokens, and target.kind={config.target.kind} "
                "predicts "
                "none"
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


def explain(config: PretrainConfig, preset: str) -> list[str]:
    """The whole recipe in lines, with its arithmetic; read are the listing of `data.train` and the
    tokenizer's description.

    Raises:
        UserError: For what can be seen to be wrong without opening images or the tokenizer's weights.
    """
    check_config(config)
    if config.target.kind == "tokens":
        check_grid(config, px_per_token(config.tokenizer))
    if config.data.train is not None:
        manifest = open_source(config.data.train, split="train").manifest
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
        )
    )
    if missing := cache.missing():
        raise UserError(
            f"data.tokens={path} lacks {len(missing):,} of {cache.epochs * cache.parts_of_epoch:,} parts",
            "run its beit tokenizer encode again: it computes what is missing",
        )
    return cache


def make_objective(
    config: PretrainConfig, vocab_size: int, total_steps: int, tokenizer_digest: str
) -> MimObjective:
    """The model and loss of a run; `vocab_size` and digest are those of its tokenizer, 0 and ""
    without one.
    """
    return MimObjective(
        config.model,
        config.optim,
        config.view,
        target=_make_target(config, vocab_size),
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


def _make_target(config: PretrainConfig, vocab_size: int, tokenizer: ImageTokenizer | None = None) -> Target:

    kinds: dict[TargetKind, Callable[[], Target]] = {
        "tokens": lambda: VisualTokens(vocab_size, tokenizer),
        "pixels": lambda: Pixels(config.model.patch_size, config.view),
        "colour": lambda: MeanColour(config.model.patch_size),
    }
    return kinds[config.target.kind]()


def summary(training: Training) -> list[str]:
    """What is about to run, in the lines that a run opens with."""
    config, manifest = training.config, training.source.manifest
    assert isinstance(config, PretrainConfig)
    return recipe.summary(
        config,
        preset=training.preset,
        data=recipe.data_line(manifest),
        images=manifest.total,
        total_steps=training.total_steps,
        scenes=are_scenes(manifest),
        cache=training.samples.cache,
    )


def rebuild_report(run: str) -> str:
    """Write the report of a pretraining run again, from its folder and its data; returns its path."""
    config, preset = run_folder.saved_config(run, PretrainConfig, job=JOB)
    checkpoint = run_folder.latest_checkpoint(storage.absolute(run))
    if checkpoint is None:
        raise UserError(
            f"{run} has no complete checkpoint yet",
            "wait for its first one (output.checkpoint_steps), or --resume it",
        )
    config = replace(
        config, evaluation=replace(config.evaluation, images=0)
    )  # The report shows what was measured, and measures nothing.
    return write_run_report(
        prepare(config, preset=preset, say=lambda line: None), storage.absolute(run), checkpoint
    )


def write_run_report(training: Training, run: str, checkpoint: str) -> str:
    """The report with what the checkpoint's model fills in and attends to, on images of the run's own data;
    returns its path.
    """
    with storage.local_copy(checkpoint, MODEL_FILES) as folder:
        model = load_model(folder, Beit)
    config = training.config
    assert isinstance(config, PretrainConfig)
    shown = _reconstructions(training, model)
    return write_report(
        run,
        sections=[knn_section(evaluations.read(run, FOLDER))],
        pictures=[reconstruction_picture(shown), attention_picture(model, shown.images, config.view)],
        commands=_next_commands(training, run),
    )


def _reconstructions(training: Training, model: Beit) -> Reconstructions:
    """What the model makes of eight images, views and masks as the stream draws them."""
    config = training.config
    assert isinstance(config, PretrainConfig)
    assert isinstance(training.samples, SampleConfig)
    samples = draw_unseen(training.source.manifest, training.samples, REPORT_IMAGES)
    batch = {name: torch.from_numpy(column) for name, column in samples.items()}
    target = _make_target(config, 0)
    if config.target.kind == "tokens":
        tokenizer = checked_tokenizer(config)
        target = _make_target(config, tokenizer.vocab_size, tokenizer)
        batch["tokens"] = tokenizer.encode(batch.get("token_view", batch["patch_view"]).permute(0, 3, 1, 2))
    columns = ("patch_view", "mask", *target.columns)
    return reconstruct(
        model, target, {name: batch[name] for name in columns}, config.view, asked=config.target.positions
    )


def _next_commands(training: Training, run: str) -> list[tuple[str, str]]:
    config = training.config
    assert isinstance(config, PretrainConfig)
    yours = "--data.train FOLDER_OR_BUCKET"
    if config.data.train is None and config.target.kind != "tokens":
        return [
            (
                "The same on your own images",
                f"beit pretrain tiny64 {yours} --target.kind {config.target.kind}",
            )
        ]
    if config.data.train is None:
        tokenizer = (
            "A tokenizer for your own images",
            f"beit tokenizer train photo64 {yours} --output.name photo64",
        )
        return [
            tokenizer,
            ("The same on them", f"beit pretrain tiny64 {yours} --tokenizer.path runs/photo64"),
        ]
    twice = f"--steps {2 * config.steps}" if config.steps is not None else f"--epochs {2 * config.epochs:g}"
    return [("Twice as long", f"beit pretrain {shlex.quote(run)}/config.json {twice}")]


def _conclude(result: Result, training: Training, report: str, say: Callable[[str], None]) -> None:
    config, metrics = training.config, result.metrics
    assert isinstance(config, PretrainConfig)
    loss, unigram, variance = (metrics.get(f"train/{name}") for name in ("loss", "unigram", "variance"))
    everywhere = config.target.positions == "all"
    patches = config.model.patches if everywhere else config.mask.budget(config.model.grid)
    patches *= result.step * config.optim.global_batch_size
    if loss is not None and patches < BASELINE_PATCHES:
        say(
            f"final loss {loss:.3f}; {patches:,} {'' if everywhere else 'hidden '}patches are too few "
            "for a "
            "baseline"
        )
    elif loss is not None and unigram is not None:
        better = "better" if loss < unigram else "worse"
        say(
            f"final loss {loss:.3f}; unigram baseline {unigram:.3f}: {abs(unigram - loss):.3f} nats "
            f"{better} than guessing by frequency"
        )
    elif loss is not None and variance is not None:
        better = "below" if loss < variance else "above"
        say(
            f"final squared error {loss:.3f}; always the mean colour {variance:.3f}: "
            f"{abs(1 - loss / variance):.1%} {better} it"
        )
    say(f"model: {result.run}/model")
    say(f"report: {report}")
    for what, command in _next_commands(training, result.run):
        say(f"next, {what[0].lower()}{what[1:]}: {command}")


def command(arguments: list[str], debug: bool) -> None:
    """`beit pretrain [PRESET | CONFIG.json] [--option value …]`."""
    parsed = parse_job(
        arguments,
        PretrainConfig,
        job=JOB,
        default="quickstart",
        presets=PRESETS,
        preset=pretrain_preset,
        explain=explain,
    )
    if parsed is not None:
        pretrain(parsed.config, preset=parsed.preset, resume=parsed.resume, debug=debug)


if __name__ == "__main__":
    run(command)
