"""The configuration of the jobs: the method's (from `beit.config`) with data, resources and output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from beit.checks import file_name, not_negative, positive, share
from beit.config import MaskConfig, ModelConfig, OptimConfig, PixelConfig, TargetConfig, TokenizerConfig, ViewConfig
from beit.errors import UserError
from beit.probe_config import KnnConfig
from pipelines.worker_range import WorkerRange

# Larger models want more than a few thousand rendered scenes.
MOST_SCENE_PX = 128


def check_has_data(train: str | None, image_size: int, *, works: str, wanted: str = "--data.train to a folder or bucket of images") -> None:
    """Refuse images of a size for which the built-in scenes are no data, where no other data is given.

    Args:
        train: `data.train`.
        image_size: Side of the images, in pixels.
        works: A command that runs on the scenes.
        wanted: What to set.

    Raises:
        UserError: If so.
    """
    if train is None and image_size > MOST_SCENE_PX:
        raise UserError(
            f"data.train is not given, and the built-in scenes are too small a data set for images of {image_size} px",
            f"set {wanted}; {works} runs on the scenes",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from."""

    train: str | None = None
    """Folder, glob or bucket URI of Parquet shards, image files or tars. None: the built-in scenes, rendered on the spot."""

    scenes: int = 4096
    """How many scenes to render when `train` is not given."""

    max_bad: float = 0.01
    """The run stops when more than this share of the samples cannot be used; of the first 1,000, as many as of 1,000."""

    def __post_init__(self) -> None:
        positive(self, "data.", "scenes")
        share(self, "data.", "max_bad")


@dataclass(frozen=True, kw_only=True)
class ResourceConfig:
    """Who does the work. Changing these changes the speed, not the samples nor the gradient."""

    workers: int | str | None = None
    """Training workers: one GPU each, or a share of the cores. A number, or a range such as 2..8: as many of these as there is room for,
    more when machines come and fewer when they are lost, with the same global batch. None: one for each GPU of the cluster, one where they
    train on CPUs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the workers train. auto: GPUs if the cluster has any."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the training step. auto: bf16 on a GPU, fp32 on a CPU."""

    micro_batch_size: int | None = None
    """Images that a worker puts through the model at once; gradients accumulate. None: 128, or its whole share of the global batch
    where that is less; 64 where features are only computed."""

    compile: bool = False
    """Compile the model with torch.compile (GPU)."""

    worker_cpus: float | None = None
    """Cores reserved for each worker. None: 1 beside a GPU, half of the machine divided among the workers without one."""

    view_cpus: float | None = None
    """Cores reserved for each reading task. None: 1, less on a machine of few cores."""

    tokenizers: int | None = None
    """Most tokenizer actors; fewer run where fewer keep up. None: one for each worker, or as many as spare GPUs hold."""

    tokenizer_cpus: float | None = None
    """Cores reserved for each tokenizer actor. None: 1 beside a GPU, 2 without one, less on a machine of few cores."""

    tokenizer_gpus: float | None = None
    """Share of a GPU for each tokenizer actor. None: a GPU of its own where the workers leave one, else a quarter of a worker's."""

    streams: int | None = None
    """Streams of samples that the workers are divided over, each with reading tasks and tokenizers of its own. All blocks of a stream pass
    one process, which bounds how many GPUs it feeds: `beit plan` says how many streams are needed. None: one."""

    in_order: bool = False
    """Deliver samples in the planned order, not as they are ready: a run with one worker then repeats itself to the last digit."""

    cpus: int | None = None
    """Cores that a locally started Ray may use. None: all."""

    max_failures: int = 3
    """Restarts of the worker group from the last checkpoint, without a new one in between, before the run gives up. Machines that a cloud
    announces to take back do not count."""

    def __post_init__(self) -> None:
        positive(
            self,
            "resources.",
            "micro_batch_size",
            "worker_cpus",
            "view_cpus",
            "tokenizers",
            "tokenizer_cpus",
            "streams",
            "cpus",
        )
        not_negative(self, "resources.", "max_failures")
        share(self, "resources.", "tokenizer_gpus")
        if self.workers is not None:
            WorkerRange.parse(self.workers)

    @property
    def worker_range(self) -> WorkerRange | None:
        """`workers` as two numbers; None where it is not given."""
        return None if self.workers is None else WorkerRange.parse(self.workers)


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where the run folder lies, and whether MLflow has the run."""

    root: str = "runs"
    """Folder or bucket URI of the run folders."""

    name: str | None = None
    """Name of the run folder. None: preset, date and time."""

    mlflow: bool = True
    """Log to MLflow: `MLFLOW_TRACKING_URI`, or `mlflow.db` in the folder of the runs."""

    experiment: str = "beit"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        file_name(self, "output.", "name")


@dataclass(frozen=True, kw_only=True)
class OutputConfig(FolderConfig):
    """Where the run folder lies and how often it is written."""

    checkpoint_steps: int = 1000
    """Steps between checkpoints; there is always one at the end."""

    keep_checkpoints: int = 2
    """Checkpoints to keep; older ones are deleted."""

    log_seconds: float = 10.0
    """Seconds between progress lines."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "output.", "checkpoint_steps", "keep_checkpoints")
        not_negative(self, "output.", "log_seconds")


class HasData(Protocol):
    """The configuration of any job that reads images and writes a run folder."""

    free_on_resume: ClassVar[tuple[str, ...]]
    """Options, or their beginnings, that a resumed run may change."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def output(self) -> FolderConfig: ...


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The loss on fixed samples as the training goes on: the same images, views and masks in every run on the same data.

    They are centre squares without augmentation, which no step trains on, of images that are trained on. Unlike the training's own loss
    it can be compared between runs of different mask ratios, which have tasks of different difficulty.
    """

    images: int = 0
    """How many images. 0: no evaluation."""

    points: int = 10
    """How often, evenly over the run; the last time at its end."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    """The masks, whatever those of the training are."""

    def __post_init__(self) -> None:
        not_negative(self, "evaluation.", "images")
        positive(self, "evaluation.", "points")

    def steps(self, total: int) -> tuple[int, ...]:
        """After which of `total` steps; fewer points where there are fewer steps."""
        return tuple(sorted({max(1, round(total * point / self.points)) for point in range(1, self.points + 1)})) if self.images else ()


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What all jobs that train have in common."""

    free_on_resume: ClassVar[tuple[str, ...]] = ("resources.", "output.", "stop_at", "data.max_bad")
    """Who does the work, what is written, when to give up."""

    epochs: float = 1.0
    """Passes over the data, unless `steps` is given."""

    whole_steps: bool = False
    """Count an epoch as the steps that fit into it whole, as the authors' code does: 625 of 2,048 images for ImageNet-1k, not 625.6."""

    steps: int | None = None
    """Optimizer steps. None: as many as `epochs` take."""

    stop_at: int | None = None
    """Stop with a checkpoint after this step, though the schedule goes on: `--resume` continues. None: never."""

    seed: int = 0
    """Every random choice comes from this number."""

    data: DataConfig = field(default_factory=DataConfig)
    resources: ResourceConfig = field(default_factory=ResourceConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        positive(self, "--", "steps", "epochs", "stop_at")
        not_negative(self, "--", "seed")

    def total_steps(self, rows: int, batch: int) -> int:
        """Optimizer steps of the whole run on data of `rows` rows; an epoch of less than one step counts as what it is.

        Raises:
            UserError: If there are fewer images than one step takes.
        """
        epoch = rows // batch * batch if self.whole_steps and rows >= batch else rows
        steps = self.steps if self.steps is not None else int(self.epochs * epoch / batch + 1e-9)
        if steps < 1:
            raise UserError(
                f"--epochs {self.epochs:g} of {rows:,} images is less than one step of optim.global_batch_size={batch:,}",
                f"set --optim.global-batch-size {max(1, rows // 8)}, or more epochs",
            )
        return steps


@dataclass(frozen=True, kw_only=True)
class KnnWhileConfig(KnnConfig):
    """k-NN on frozen features while pretraining: how often, and on which labelled images."""

    every_steps: int | None = None
    """Steps between evaluations. Training then pauses at a checkpoint and goes on from it. None: never."""

    train: str | None = None
    """Labelled images to look for neighbours in. None: `data.train`."""

    val: str | None = None
    """Labelled images to be judged by. None: held-out scenes if `data.train` is not given either."""

    label: str | None = None
    """Parquet column with the labels. None: label, labels, class, target or fine_label, whichever is there."""

    layers: tuple[int, ...] = ()
    """Blocks whose output is judged, the mean of its patches, from 1; -1 is the last. None given: a middle one and the last."""

    most_images: int = 10_000
    """Of each of the two sets; of more, so many are taken, the same share of every class and always the same ones, and that is said."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "knn.", "every_steps", "most_images")


@dataclass(frozen=True, kw_only=True)
class PretrainDataConfig(DataConfig):
    """Where the images and their visual tokens come from."""

    tokens: str | None = None
    """Folder of a token cache written by `beit tokenizer encode`; the stream then has no tokenizer. None: tokenise while training."""


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


@dataclass(frozen=True, kw_only=True)
class SupervisedDataConfig(DataConfig):
    """Where the images and what there is to say about them come from."""

    val: str | None = None
    """Images to be judged by, found like `train`. None: held-out scenes if `train` is not given either, else no evaluation."""

    val_scenes: int = 1000
    """How many scenes to render for validation when `train` is not given."""

    fraction: float = 1.0
    """Share of the training images to use, the same ones for the same seed; of labelled ones the same share of every class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "data.", "val_scenes", "fraction")
        share(self, "data.", "fraction")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(JobConfig):
    """What classification and segmentation have in common: a model that begins with pretrained weights or with none, and is judged."""

    start: str | None = None
    """Run folder or checkpoint folder to begin with. None: from scratch."""

    layer_decay: float = 0.65
    """Factor on the learning rate from each layer to the one below. 1: the same everywhere."""

    evaluate_epochs: float | None = None
    """Passes over the data between evaluations. Training then pauses at a checkpoint and goes on from it. None: only at the end."""

    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    view: PixelConfig = field(default_factory=PixelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "--", "layer_decay", "evaluate_epochs")
        share(self, "--", "layer_decay")
