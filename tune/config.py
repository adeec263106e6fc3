"""Configuration of a sweep: a pretraining, and the fields that its trials vary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from beit.checks import Options, PositiveFloat, PositiveInt, above
from beit.errors import UserError
from beit.plain import override
from pipelines.config.pretrain import EvaluationConfig, PretrainConfig
from pipelines.presets.pretrain import PRESETS, pretrain_preset

EVALUATED_IMAGES = 256


@dataclass(frozen=True, kw_only=True)
class SweepConfig(PretrainConfig):
    """Many pretrainings that differ in a few fields. Options that do not belong to the sweep itself are the
    same for all trials.
    """

    free_on_resume = (*PretrainConfig.free_on_resume, "concurrent", "data_cpus")
    recorded_on_resume: ClassVar[tuple[str, ...]] = ()  # Finished trials would have other values.

    space: str = "mask-lr"
    """Which fields vary, and over which values: mask-lr, mask-lr-grid, a JSON file, or a Python file that
    defines SPACE with distributions of ray.tune."""

    trials: PositiveInt | None = None
    """Number of trials. None: 8, or one for every combination of a grid."""

    search: Literal["random", "optuna"] = "random"
    """How the parameters of the next trial are chosen. random: drawn from the space, grids in order. optuna:
    suggested from the results of earlier trials."""

    objective: Literal["loss", "accuracy", "knn"] = "loss"
    """Figure by which trials are compared. loss: on the fixed samples of `evaluation`, with the same masks
    for all trials. accuracy: on the same samples, with each trial's own kind of masks, as (accuracy -
    baseline) / (1 - baseline); the baseline always predicts the most frequent token. knn: top-1 of k-NN on
    the labelled images of `knn`, at `evaluation.points` pauses of the trial."""

    stop_early: bool = True
    """Stop the worse trials early, by asynchronous successive halving (ASHA, arXiv 1810.05934). Trials are
    compared at the points of `evaluation`."""

    grace_points: PositiveInt = 3
    """First point of `evaluation` at which a trial may be stopped."""

    halving: Annotated[float, above(1)] = 2.0
    """At each comparison, one of this many trials continues. Comparisons are at `grace_points` times the
    powers of this number."""

    concurrent: PositiveInt | None = None
    """Most trials that run at a time. None: as many as the cluster has room for."""

    data_cpus: PositiveFloat | None = None
    """Cores kept free for each trial's reading and views. None: those of one reading task."""

    token_epochs: PositiveInt | None = None
    """Number of epochs whose views are tokenised before the first trial; a longer trial repeats them. None:
    all epochs of a trial, 20 at most."""

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
        """The pretraining that the trials have in common, with the fields in `params` replaced; they are
        given by their dotted names.

        Raises:
            UserError: For a name that is no field, or a value that the field does not take.
        """
        config = pretraining_of(self)
        return override(config, params) if params else config


def pretraining_of(config: PretrainConfig) -> PretrainConfig:
    """The pretraining part of a configuration of several pretrainings."""
    return PretrainConfig(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(PretrainConfig)}
    )


def check_whole(config: PretrainConfig, what: str) -> None:
    """Refuse to stop runs early that are to be compared.

    Raises:
        UserError: If `stop_at` is given.
    """
    if config.stop_at is not None:
        raise UserError(
            f"--stop-at {config.stop_at}: {what} that stop early cannot be compared",
            "set --steps, for a shorter schedule",
        )


def quickstart() -> SweepConfig:
    """The quick start at an eighth of its length: tries out a sweep on two cores."""
    config = _of(pretrain_preset("quickstart"))
    return replace(
        config,
        epochs=2,
        data=replace(config.data, scenes=1000),
        # Smaller batches give more steps for the same arithmetic.
        optim=replace(config.optim, global_batch_size=32, warmup_steps=8),
    )


def sweep_preset(name: str) -> SweepConfig:
    """The sweep around a pretraining preset: a short one of its own for quickstart, and the preset itself for
    all others.

    Raises:
        UserError: If there is no preset of this name.
    """
    return quickstart() if name == "quickstart" else _of(pretrain_preset(name))


def _of(config: PretrainConfig) -> SweepConfig:
    return SweepConfig(**{**vars(config), "evaluation": EvaluationConfig(images=EVALUATED_IMAGES)})


SWEEPS: dict[str, Callable[[], PretrainConfig]] = {**PRESETS, "quickstart": quickstart}
