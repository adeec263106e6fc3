"""The configuration of a pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field

from beit.checks import NotNegativeInt, PositiveInt
from beit.config import MaskConfig, ModelConfig, OptimConfig, TargetConfig, TokenizerConfig, ViewConfig
from beit.probing.config import KnnConfig
from pipelines.config.data import PretrainDataConfig
from pipelines.config.jobs import JobConfig


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The loss on fixed samples as the training goes on: the same images, views and masks in every run on the
    same data.

    They are centre squares without augmentation, which no step trains on, of images that are trained on.
    Unlike the training's own loss it can be compared between runs of different mask ratios, which have tasks
    of different difficulty.
    """

    images: NotNegativeInt = 0
    """How many images. 0: no evaluation."""

    points: PositiveInt = 10
    """How often, evenly over the run; the last time at its end."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    """The masks, whatever those of the training are."""

    def steps(self, total: int) -> tuple[int, ...]:
        """After which of `total` steps; fewer points where there are fewer steps."""
        return (
            tuple(sorted({max(1, round(total * point / self.points)) for point in range(1, self.points + 1)}))
            if self.images
            else ()
        )


@dataclass(frozen=True, kw_only=True)
class KnnWhileConfig(KnnConfig):
    """k-NN on frozen features while pretraining: how often, and on which labelled images."""

    every_steps: PositiveInt | None = None
    """Steps between evaluations. Training then pauses at a checkpoint and goes on from it. None: never."""

    train: str | None = None
    """Labelled images to look for neighbours in. None: `data.train`."""

    val: str | None = None
    """Labelled images to be judged by. None: held-out scenes if `data.train` is not given either."""

    label: str | None = None
    """Parquet column with the labels. None: label, labels, class, target or fine_label, whichever is
    there."""

    layers: tuple[int, ...] = ()
    """Blocks whose output is judged, the mean of its patches, from 1; -1 is the last. None given: a middle
    one and the last."""

    most_images: PositiveInt = 10_000
    """Of each of the two sets; of more, so many are taken, the same share of every class and always the same
    ones, and that is said."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(JobConfig):
    """Pretraining: predict the visual tokens of hidden patches."""

    model: ModelConfig = field(default_factory=ModelConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    knn: KnnWhileConfig = field(default_factory=KnnWhileConfig)
    data: PretrainDataConfig = field(default_factory=PretrainDataConfig)
