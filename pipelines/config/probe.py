"""Configuration of a probe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from beit.checks import CommandConfig, NotNegativeInt, Options, PositiveInt, PositiveShare
from beit.probing.config import KnnConfig, LinearConfig
from beit.vit.pooling import POOLINGS, Pooling, check_poolings
from pipelines.config.data import SupervisedDataConfig
from pipelines.config.jobs import FolderConfig
from pipelines.config.resources import ResourceConfig


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(CommandConfig):
    """Evaluate a model's frozen features on labels, layer by layer, with k-NN and a linear classifier."""

    free_on_resume: ClassVar[tuple[str, ...]] = ("resources.", "output.", "keep_features")
    recorded_on_resume: ClassVar[tuple[str, ...]] = ()

    start: str | None = None
    """Run folder whose model is probed, or checkpoint folder."""

    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)

    classes: PositiveInt | None = None
    """Number of classes. None: as many as the data names, or its largest label + 1."""

    layers: tuple[int, ...] = ()
    """Blocks whose output is probed, counted from 1; -1 is the last. Not given: all blocks."""

    poolings: tuple[Pooling, ...] = POOLINGS
    """How a block's output becomes a feature. mean: the mean of the patch tokens. cls: the class token."""

    baseline: bool = True
    """Probe the same architecture with random weights too, as a baseline without any training."""

    most_images: PositiveInt = 50_000
    """Most training images to use. Of a larger set, this many are drawn, the same share of every class, and
    the run says so."""

    centre: PositiveShare | None = None
    """Side of the centre square that the model sees, as a share of the image's shorter side. None: 0.875 for
    models between 128 and 384 px, otherwise 1."""

    numbers: Literal["float16", "float32"] = "float16"
    """Number format of the features. float32 is for models whose features are too large for float16."""

    keep_features: bool = False
    """Keep the features in the run folder. False: they are deleted at the end."""

    seed: NotNegativeInt = 0
    """Seed of the choice of images, the random weights, and the order in which the linear classifier is
    trained."""

    knn: KnnConfig = field(default_factory=KnnConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    output: FolderConfig = field(default_factory=FolderConfig)

    def check_together(self, option: Options) -> None:
        """Refuse an empty list of poolings."""
        check_poolings(self.poolings)
