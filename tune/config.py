"""The configuration of a sweep: a pretraining, and what is varied about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from beit.checks import Options, PositiveFloat, PositiveInt, above
from beit.errors import UserError
from beit.plain import override
from pipelines.config.pretrain import EvaluationConfig, PretrainConfig
from pipelines.presets.pretrain import PRESETS, pretrain_preset

EVALUATED_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class SweepConfig(PretrainConfig):
    """Many pretrainings that differ in a few fields. All that is not of the sweep itself is what its trials
    have in common.
    """

    free_on_resume = (*PretrainConfig.free_on_resume, "concurrent", "data_cpus")

    space: str = "mask-lr"
    """What is varied: mask-lr, mask-lr-grid, a JSON file, or a Python file with a SPACE of ray.tune
    distributions."""

    trials: PositiveInt | None = None
    """How many trials. None: 8, or every combination of a grid."""

    search: Literal["random", "optuna"] = "random"
    """Where the next trial is tried. random: drawn from the space, grids in order. optuna: by what was
    learned from the earlier ones."""

    objective: Literal["loss", "accuracy", "knn"] = "loss"
    """What makes a trial good. loss: on the fixed samples of `evaluation`, with masks that are the same for
    all trials. accuracy: there with the trial's own kind of masks, as the share of what always saying the
    commonest token gets wrong. knn: top-1 of k-NN among the labelled images of `knn`, at `evaluation.points`
    pauses of the trial."""

    stop_early: bool = True
    """Stop the worse trials early, by asynchronous successive halving (ASHA, arXiv 1810.05934). Points are
    those of `evaluation`."""

    grace_points: PositiveInt = 3
    """No trial is stopped before its point of this number."""

    halving: Annotated[float, above(1)] = 2.0
    """Of the trials that come to a rung one in so many goes on; rungs lie at `grace_points` times its
    powers."""

    concurrent: PositiveInt | None = None
    """Trials at a time. None: as many as the cluster has room for."""

    data_cpus: PositiveFloat | None = None
    """Cores that each trial shall find free for reading and views. None: those of one reading task."""

    token_epochs: PositiveInt | None = None
    """Epochs of views that are tokenised before the first trial; a longer trial goes through them again.
    None: all of a trial, at most 20."""

    def check_together(self, option: Options) -> None:
        """Refuse trials that could not be compared."""
        super().check_together(option)
        check_whole(self, "trials")
        if self.evaluation.images == 0 and self.objective != "knn":
            raise UserError(
                "evaluation.images=0, but trials are compared by what they reach on fixed samples",
                f"set --evaluation.images {EVALUATED_IMAGES}",
            )
        if self.stop_early and self.grace_points > self.evaluation.points:
            raise UserError(
                (
                    f"--grace-points {self.grace_points} is more than "
                    f"evaluation.points={self.evaluation.points}: no trial could be stopped"
                ),
                f"set --grace-points {self.evaluation.points // 2 or 1}, or --no-stop-early",
            )

    def pretraining(self, params: Mapping[str, Any] | None = None) -> PretrainConfig:
        """The pretraining that the trials have in common, with fields replaced by their dotted names.

        Raises:
            UserError: For a name that is no field, or a value that the field does not take.
        """
        config = pretraining_of(self)
        return override(config, params) if params else config


def pretraining_of(config: PretrainConfig) -> PretrainConfig:
    """What a configuration of several pretrainings has of one, and nothing else."""
    return PretrainConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(PretrainConfig)}
    )


def check_whole(config: PretrainConfig, what: str) -> None:
    """Refuse to break off what is to be compared.

    Raises:
        UserError: If `stop_at` is given.
    """
    if config.stop_at is not None:
        raise UserError(
            f"--stop-at {config.stop_at}: {what} that are broken off cannot be compared",
            "set --steps, for a shorter schedule",
        )


def quickstart() -> SweepConfig:
    """The quick start at an eighth of its length, made to try a sweep out on two cores."""
    config = _of(pretrain_preset("quickstart"))
    return replace(
        config,
        epochs=2,
        data=replace(config.data, scenes=1000),
        # More steps for the same arithmetic.
        optim=replace(config.optim, global_batch_size=32, warmup_steps=8),
    )


def sweep_preset(name: str) -> SweepConfig:
    """The sweep around a pretraining preset: its own short one for the quick start, the preset as it is for
    all others.

    Raises:
        UserError: For a name that is none.
    """
    return quickstart() if name == "quickstart" else _of(pretrain_preset(name))


def _of(config: PretrainConfig) -> SweepConfig:
    return SweepConfig(**{**vars(config), "evaluation": EvaluationConfig(images=EVALUATED_IMAGES)})


SWEEPS: dict[str, Callable[[], PretrainConfig]] = {**PRESETS, "quickstart": quickstart}
