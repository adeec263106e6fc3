"""Configurations of classification and segmentation, and the options that they share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from beit.checks import NotNegativeFloat, Options, PositiveFloat, PositiveInt, PositiveShare
from beit.classification.config import AugmentConfig, MixConfig
from beit.config import AbsoluteMode, ModelConfig, OptimConfig, PixelConfig, ViewConfig
from beit.errors import UserError
from beit.segmentation.config import AnnotationConfig, Head, SegmentViewConfig, SlidingConfig
from beit.vit.pooling import Pooling
from pipelines.config.data import SupervisedDataConfig
from pipelines.config.jobs import JobConfig
from pipelines.schemes import StoragePath


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(JobConfig):
    """Options that classification and segmentation share: they train a pretrained or a new model, and
    evaluate it.
    """

    start: StoragePath | None = None
    """Run folder or checkpoint folder with the first weights. None: train from scratch."""

    layer_decay: PositiveShare = 0.65
    """Layer-wise decay: the learning rate of a layer is this multiple of the rate of the layer above it. 1:
    the same rate for all layers."""

    evaluate_epochs: PositiveFloat | None = None
    """Passes over the data between evaluations. Training stops at a checkpoint, and resumes from it
    afterwards. None: evaluate only at the end."""

    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    view: PixelConfig = field(default_factory=PixelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SupervisedConfig):
    """Classification: fine-tune a pretrained model, or train one from scratch."""

    classes: PositiveInt | None = None
    """Number of classes. None: as many as the data names, or its largest label + 1."""

    pooling: Pooling = "mean"
    """What the head reads. mean: the mean of the patch tokens. cls: the class token."""

    warmup_epochs: NotNegativeFloat | None = None
    """Length of the linear warmup in passes over the data, if `optim.warmup_steps` is None. If `steps` sets
    the length of the run, the warmup keeps its share of the run."""

    centre: PositiveShare | None = None
    """Side of the centre square that evaluation reads, as a share of the image's shorter side. None: 0.875,
    or 1 for models of 384 px and more."""

    view: ViewConfig = field(default_factory=lambda: ViewConfig(jitter=0.0))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)

    def check_together(self, option: Options) -> None:
        """Refuse a warmup that is given twice, or not at all."""
        super().check_together(option)
        epochs, steps = self.warmup_epochs, self.optim.warmup_steps
        if epochs is None and steps is None:
            raise UserError(
                "the warmup is given neither in epochs nor in steps", "set --optim.warmup-steps 0, or more"
            )
        if epochs is not None and steps is not None:
            raise UserError(
                (
                    f"--warmup-epochs {epochs:g} and --optim.warmup-steps {steps} both say how long the "
                    "warmup is"
                ),
                (
                    "add --warmup-epochs None to count it in steps, or --optim.warmup-steps None to count it "
                    "in epochs"
                ),
            )

    def with_warmup_counted(self, total_steps: int) -> FinetuneConfig:
        """The same configuration with the warmup in steps, for a run of `total_steps`.

        Raises:
            UserError: If the warmup takes all the epochs of the run.
        """
        if self.warmup_epochs is None:
            return self
        if self.steps is None and self.warmup_epochs >= self.epochs:
            raise UserError(
                (
                    f"--warmup-epochs {self.warmup_epochs:g} takes all of --epochs {self.epochs:g}: the "
                    "learning rate would never decay"
                ),
                f"set --warmup-epochs {self.epochs / 20:g}, or more epochs",
            )
        steps = round(min(1.0, self.warmup_epochs / self.epochs) * total_steps)
        return replace(self, warmup_epochs=None, optim=replace(self.optim, warmup_steps=steps))


@dataclass(frozen=True, kw_only=True)
class SegmentDataConfig(SupervisedDataConfig):
    """Where images and annotations come from."""

    annotations: str | None = None
    """Folder or glob of annotation PNGs, whose paths and names are those of the image files in `train`. None:
    the column `annotation` of Parquet files."""

    val_annotations: str | None = None
    """The same for the images in `val`."""

    def check_together(self, option: Options) -> None:
        """Refuse annotations of images that are not given."""
        super().check_together(option)
        for name, images in (("annotations", "train"), ("val_annotations", "val")):
            if getattr(self, name) is not None and getattr(self, images) is None:
                raise UserError(
                    f"{option(name)} is given without {option.name(images)}",
                    f"set --{option.name(images)} to the folder of its images",
                )


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(SupervisedConfig):
    """Segmentation: train a pretrained model with a new head, or one from scratch, to give every pixel a
    class.
    """

    free_on_resume = (*SupervisedConfig.free_on_resume, "test.")

    head: Head = "upernet"
    """The segmentation head. setr-pup: the paper's. upernet: the released code's."""

    channels: PositiveInt | None = None
    """Width of the head, in channels. None: the authors' value, which is the model's width for upernet and
    256 for setr-pup."""

    positions: AbsoluteMode = "bicubic"
    """How absolute position embeddings are resampled for another image size."""

    data: SegmentDataConfig = field(default_factory=SegmentDataConfig)
    annotation: AnnotationConfig = field(default_factory=AnnotationConfig)
    view: SegmentViewConfig = field(default_factory=SegmentViewConfig)
    test: SlidingConfig = field(default_factory=SlidingConfig)

    def check_together(self, option: Options) -> None:
        """Refuse windows that leave pixels out between them."""
        super().check_together(option)
        crop = self.model.image_size
        if self.test.stride_for(crop) > crop:
            raise UserError(
                f"{option('test.stride')} leaves pixels out between windows of {crop} px",
                f"set {option('test.stride', crop * 2 // 3)}",
            )
