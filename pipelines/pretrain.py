"""Pretrain a BEiT: `beit pretrain [PRESET | CONFIG.json] [--option value …]`, or `python -m
pipelines.pretrain` with the same options.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from beit.loading import load_model
from beit.pretraining.masking import MASKS
from beit.pretraining.model import Beit
from beit.pretraining.objective import TARGETS_FILE
from beit.pretraining.pictures import Reconstructions, reconstruct
from beit.pretraining.targets import TARGETS, find_target
from beit.vit.transfer import Transfer
from pipelines import storage
from pipelines.command_line.run import run_program
from pipelines.config.data import check_has_data
from pipelines.config.pretrain import PretrainConfig
from pipelines.datasets import open_data
from pipelines.evaluation.judge import Judge
from pipelines.evaluation.knn import FOLDER, open_knn
from pipelines.presets.pretrain import PRESETS
from pipelines.reports.attention import attention_picture
from pipelines.reports.pretraining import pretraining_report
from pipelines.reports.probe import knn_sections
from pipelines.reports.reconstructions import reconstruction_picture
from pipelines.reports.run import Report
from pipelines.runs import checkpoints, evaluations
from pipelines.runs.metrics import finite_metrics, read_metrics
from pipelines.runs.models import find_model, model_digest, model_files
from pipelines.scenes.shards import are_scenes
from pipelines.stream.first_look import warn_about_values
from pipelines.stream.fixed_samples import fixed_samples
from pipelines.stream.samples import SampleConfig, draw_unseen
from pipelines.training import frame, recipe
from pipelines.training.pretraining import (
    check_config,
    checked_cache,
    checked_length,
    checked_tokenizer,
    explain,
    make_objective,
    make_target,
    take_start,
    with_absolute_paths,
)
from pipelines.training.starts import compare_pixels, keep_start
from pipelines.training.task import Finished, Task
from pipelines.training.training import Result, Training
from pipelines.training.watch import Follow

OF_OPTIMIZER = [("lr {:.2e}", "optim/lr"), ("grad {:.2f}", "optim/grad_norm")]
OF_EVALUATION = [("fixed masks {:.3f}", "eval/loss")]

REPORT_IMAGES = 8

# The entropy of fewer hidden tokens than this says little about the entropy of all.
BASELINE_PATCHES = 20_000


@dataclass(frozen=True, kw_only=True)
class PretrainTraining(Training[PretrainConfig]):
    """A training whose views and masks the report draws again."""

    samples: SampleConfig

    transfer: Transfer | None
    """What was taken from the weights that the model begins with."""


class PretrainTask(Task[PretrainConfig, PretrainTraining]):
    """Predict what is behind hidden patches."""

    name = "pretrain"
    program = "beit pretrain"
    config_type = PretrainConfig
    presets = PRESETS

    def prepare(self, config: PretrainConfig, *, preset: str, say: Callable[[str], None]) -> PretrainTraining:
        """Open images and tokenizer; render the built-in scenes if no images are given."""
        check_config(config)
        check_has_data(config.data.train, config.model.image_size, works="beit pretrain quickstart")

        config = with_absolute_paths(config)
        # The tokenizer first: scenes may have to be rendered, and would be in vain.
        tokenizes = find_target(config.target.kind).needs_tokenizer
        tokenizer = checked_tokenizer(config) if tokenizes else None
        source = open_data(config, image_size=config.model.image_size, say=say)
        if config.data.train is not None:
            warn_about_values(source, config.view, say)
        cache = None
        if tokenizer is not None and config.data.tokens is not None:
            cache = checked_cache(config.data.tokens, config, source.manifest, tokenizer)
        total_steps = checked_length(config, source.manifest.total)
        vocab_size, digest = (0, "") if tokenizer is None else (tokenizer.vocab_size, tokenizer.digest)
        target = make_target(config, vocab_size=vocab_size)
        compare_pixels(config, say=say)
        first = Beit(config.model, target.outputs, target=target.kind)
        transfer = take_start(first, config.start, digest)
        config = keep_start(config, say=say)
        return PretrainTraining(
            job=self.name,
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
            make_objective=functools.partial(make_objective, config, target, total_steps, digest),
            optim=config.optim,
            total_steps=total_steps,
            inputs={
                "data.train": source.manifest.digest,
                **({} if tokenizer is None else {"tokenizer": digest}),
                **({} if config.start is None else {"start": model_digest(config.start)}),
            },
            shown=[*target.progress, *OF_OPTIMIZER, *OF_EVALUATION],
            fixed=fixed_samples(config, source.manifest, tokenizer, cache)
            if config.evaluation.images
            else None,
            evaluate_at=config.evaluation.steps(total_steps),
            transfer=transfer,
        )

    def summary(self, training: PretrainTraining) -> list[str]:
        """Describe the recipe with its arithmetic, and warn of what is probably not meant."""
        config, manifest = training.config, training.source.manifest
        start = training.transfer
        return [
            *([] if start is None else [f"start: from {config.start}", *start.lines()]),
            *recipe.summary(
                config,
                preset=training.preset,
                data=recipe.data_line(manifest),
                images=manifest.total,
                total_steps=training.total_steps,
                scenes=are_scenes(manifest),
                cache=training.samples.cache,
            ),
        ]

    def make_judge(self, training: PretrainTraining, say: Callable[[str], None]) -> Judge | None:
        """Measure k-NN on frozen features, where `knn.every_steps` asks for it."""
        return open_knn(training.config, total_steps=training.total_steps, say=say)

    def conclusion(
        self, finished: Finished[PretrainConfig, PretrainTraining], result: Result
    ) -> Iterable[str]:
        """Set the final loss against its baseline."""
        return _conclusion(finished.config, result)

    def report(self, finished: Finished[PretrainConfig, PretrainTraining]) -> Report:
        """Show what the model fills in and attends to, on images of the run's own data."""
        training = finished.training
        if training is None:  # The report shows what was measured, and measures nothing.
            config = replace(finished.config, evaluation=replace(finished.config.evaluation, images=0))
            training = self.prepare(config, preset=finished.preset, say=lambda line: None)
        config, run = training.config, finished.run
        with model_files(find_model(run)) as folder:
            model = load_model(folder, Beit)
        shown = _reconstructions(training, model)
        return replace(
            pretraining_report(config, read_metrics(run), _class_counts(run)),
            sections=knn_sections(evaluations.read(run, FOLDER)),
            pictures=[reconstruction_picture(shown), attention_picture(model, shown.images, config.view)],
            commands=[] if self.program_for(config) is None else _next_commands(config, run),
        )

    def program_for(self, config: PretrainConfig) -> str | None:
        """`beit pretrain`, unless a program of the user's has registered what the run is made of."""
        masks = {config.mask.kind, config.evaluation.mask.kind}
        if config.target.kind in TARGETS.own or masks & MASKS.own.keys():
            return None
        return super().program_for(config)

    def explain(self, config: PretrainConfig, preset: str) -> list[str]:
        """Describe the whole recipe in lines, with its arithmetic."""
        return explain(config, preset)


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

    The arguments are those of `pipelines.training.frame.run`.
    """
    return frame.run(
        PretrainTask(), config, preset=preset, resume=resume, debug=debug, say=say, follow=follow
    )


def _reconstructions(training: PretrainTraining, model: Beit) -> Reconstructions:
    """Let the model fill in eight images, with views and masks as the stream draws them."""
    config = training.config
    samples = draw_unseen(training.source.manifest, training.samples, REPORT_IMAGES)
    batch = {name: torch.from_numpy(column) for name, column in samples.items()}
    if find_target(config.target.kind).needs_tokenizer:
        tokenizer = checked_tokenizer(config)
        target = make_target(config, vocab_size=tokenizer.vocab_size, tokenizer=tokenizer)
        batch["tokens"] = tokenizer.encode(batch.get("token_view", batch["patch_view"]).permute(0, 3, 1, 2))
    else:
        target = make_target(config)
    columns = ("patch_view", "mask", *target.columns)
    return reconstruct(
        model, target, {name: batch[name] for name in columns}, config.view, asked=config.target.positions
    )


def _class_counts(run: str) -> list[int] | None:
    """Read how often each class was asked for from the newest checkpoint, if the target has classes."""
    checkpoint = checkpoints.latest_checkpoint(run)
    file = None if checkpoint is None else storage.join(checkpoint, TARGETS_FILE)
    if file is None or not storage.exists(file):
        return None
    counts: list[int] | None = json.loads(storage.read_text(file)).get("counts")
    return counts


def _next_commands(config: PretrainConfig, run: str) -> list[tuple[str, str]]:
    yours = "--data.train FOLDER_OR_BUCKET"
    if config.data.train is None and not find_target(config.target.kind).needs_tokenizer:
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
    return [("Twice as long", f"beit pretrain {shlex.quote(run + '/config.json')} {twice}")]


def _conclusion(config: PretrainConfig, result: Result) -> list[str]:
    """Set the final loss beside its baseline, in lines."""
    metrics = finite_metrics(result.metrics)
    everywhere = config.target.positions == "all"
    patches = config.model.patches if everywhere else config.mask.budget(config.model.grid)
    patches *= result.step * config.optim.global_batch_size
    if "train/loss" in metrics and patches < BASELINE_PATCHES:
        return [
            f"final loss {metrics['train/loss']:.3f}; {patches:,} {'' if everywhere else 'hidden '}patches "
            "are too few for a baseline"
        ]
    line = find_target(config.target.kind).conclusion(metrics)
    return [] if line is None else [line]


def command(arguments: list[str], debug: bool) -> None:
    """`beit pretrain [PRESET | CONFIG.json] [--option value …]`."""
    frame.run_command(PretrainTask(), arguments, debug)


def rebuild_report(run: str) -> str:
    """Write the report of a run again; returns its path."""
    return frame.rebuild_report(PretrainTask(), run)


if __name__ == "__main__":
    run_program(command)
