"""Configuration of pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field

from beit.checks import NotNegativeInt, Options, PositiveInt
from beit.config import MaskConfig, ModelConfig, OptimConfig, TargetConfig, TokenizerConfig, ViewConfig
from beit.probing.config import KnnConfig
from pipelines.config.data import PretrainDataConfig
from pipelines.config.jobs import JobConfig
from pipelines.schemes import StoragePath, check_scheme


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Loss on fixed samples during training: the same images, views and masks in all runs on the same data.

    The samples are centre squares of training images, without augmentation; no step trains on these views.
    Unlike the training loss, this loss can be compared between runs with different mask ratios, whose tasks
    differ in difficulty.
    """

    images: NotNegativeInt = 0
    """Number of images. 0: no evaluation."""

    points: PositiveInt = 10
    """Number of evaluations, evenly spaced over the run; the last one is at its end."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    """How the masks of the evaluation are drawn. They do not depend on the masks of the training."""

    def steps(self, total: int) -> tuple[int, ...]:
        """The steps, of `total`, after which the model is evaluated: fewer than `points` if there are fewer
        steps.
        """
        return (
            tuple(sorted({max(1, round(total * point / self.points)) for point in range(1, self.points + 1)}))
            if self.images
            else ()
        )


@dataclass(frozen=True, kw_only=True)
class KnnWhileConfig(KnnConfig):
    """k-NN on frozen features during pretraining: how often, and on which labelled images."""

    every_steps: PositiveInt | None = None
    """Steps between k-NN evaluations. Training stops at a checkpoint, and resumes from it afterwards. None:
    no k-NN."""

    train: str | None = None
    """Labelled images among which neighbours are searched. None: `data.train`."""

    val: str | None = None
    """Labelled images to classify. None: held-out scenes, if `data.train` is not given either."""

    label: str | None = None
    """Parquet column with the labels. None: as `data.label` says."""

    layers: tuple[int, ...] = ()
    """Blocks whose features are evaluated, counted from 1; -1 is the last. A feature is the mean over a
    block's patches. Not given: a middle block and the last."""

    most_images: PositiveInt = 10_000
    """Most images to use of each of the two sets. Of a larger set, the same share of every class is taken,
    always the same images, and the run says so."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(JobConfig):
    """Pretraining: predict the visual tokens of hidden patches."""

    start: StoragePath | None = None
    """Folder of a run, a checkpoint or imported weights to take the first weights from. None: they are drawn
    from the seed."""

    model: ModelConfig = field(default_factory=ModelConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    knn: KnnWhileConfig = field(default_factory=KnnWhileConfig)
    data: PretrainDataConfig = field(default_factory=PretrainDataConfig)

    def check_together(self, option: Options) -> None:
        """Refuse a tokenizer at a place that is no storage."""
        super().check_together(option)
        if self.tokenizer.path is not None:
            check_scheme(self.tokenizer.path, option=option.name("tokenizer.path"))
