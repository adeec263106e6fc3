"""The configuration of an ablation: the full method, the rows that change something in it, and one protocol
to judge them all by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from beit.checks import Options, PositiveFloat, PositiveInt, PositiveShare
from beit.errors import UserError
from beit.plain import override
from pipelines.config.pretrain import PretrainConfig
from pipelines.presets import finetune as finetune_presets
from pipelines.presets import segment as segment_presets
from pipelines.presets.pretrain import PRESETS, pretrain_preset
from tune.ablation.table4 import LONGER, PAPER_LONGER, ROWS, RowName, Task, changes_of
from tune.config import check_whole, pretraining_of


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """How every row is fine-tuned: a recipe, and what is different from it. What is not said here is the
    recipe's.
    """

    recipe: str = "quickstart"
    """A preset of the command that does it."""

    steps: PositiveInt | None = None
    """Optimizer steps. None: the recipe's length."""

    peak_lr: PositiveFloat | None = None
    """Learning rate at the end of the warmup. None: the recipe's."""

    train: str | None = None
    """Images to learn from. None: those of the pretraining."""

    val: str | None = None
    """Images to be judged by. None: held-out scenes, where the pretraining has scenes."""

    val_scenes: PositiveInt | None = None
    """How many of those. None: as many as the recipe says."""

    fraction: PositiveShare = 1.0
    """Share of the training images to use, the same ones for the same seed; of labelled ones the same share
    of every class."""


@dataclass(frozen=True, kw_only=True)
class ClassifyProtocol(ProtocolConfig):
    """Fine-tuning for classification, the same for every row: a recipe of `beit finetune`, and what is
    different from it.
    """


@dataclass(frozen=True, kw_only=True)
class SegmentProtocol(ProtocolConfig):
    """Fine-tuning for segmentation, the same for every row: a recipe of `beit segment`, and what is different
    from it.
    """

    annotations: str | None = None
    """Folder of PNGs with the paths and names of the image files to learn from. None: Parquet's column
    annotation."""

    val_annotations: str | None = None
    """The same for the images to be judged by."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig(PretrainConfig):
    """The paper's table 4. All that is not of the ablation itself is the full method's pretraining, which
    every row changes a little.
    """

    # There may be more rows and seeds.
    free_on_resume = (*PretrainConfig.free_on_resume, "concurrent", "data_cpus", "rows", "seeds")

    rows: tuple[RowName, ...] = tuple(ROWS)
    """Which rows, in this order."""

    seeds: PositiveInt = 2
    """Every row is done so many times, with the seeds from `seed` on: the same ones for all rows, for
    fine-tuning too."""

    longer: PositiveFloat = PAPER_LONGER
    """How many times as long the row with the longer schedule is pretrained."""

    tasks: tuple[Task, ...] = ("classify", "segment")
    """What every row is fine-tuned for."""

    classify: ClassifyProtocol = field(default_factory=ClassifyProtocol)
    segment: SegmentProtocol = field(default_factory=SegmentProtocol)

    token_epochs: PositiveInt = 20
    """Where no row goes through more epochs of views than this, their tokens are computed once for all rows
    of a seed. Beyond, every row tokenises as it trains: views that come again would be a disadvantage that
    rows without tokens do not have."""

    concurrent: PositiveInt | None = None
    """Rows at a time. None: as many as the cluster has room for."""

    data_cpus: PositiveFloat | None = None
    """Cores that each row shall find free for reading and views. None: those of one reading task."""

    def check_together(self, option: Options) -> None:
        """Refuse rows that could not be compared."""
        super().check_together(option)
        check_whole(self, "rows")
        for name, given in (("rows", self.rows), ("tasks", self.tasks)):
            if not given or len(set(given)) < len(given):
                raise UserError(
                    f"{option(name, ' '.join(given) or 'nothing')}: each is to be given once",
                    f"leave out {option.name(name)} for all",
                )
        if LONGER in self.rows and self.longer <= 1:
            raise UserError(
                f"{option('longer')} is not above 1",
                f"set {option('longer', f'{PAPER_LONGER:.3g}')} for the paper's",
            )
        if self.data.tokens is not None:
            raise UserError(
                f"{option('data.tokens')} holds the tokens of one seed, and there are {self.seeds} of them",
                "leave out --data.tokens: an ablation computes tokens once by itself",
            )
        for row in self.rows:
            self._check_differs(row)

    def _check_differs(self, name: RowName) -> None:
        base = pretraining_of(self)
        for option, value in changes_of(name, base, longer=self.longer).items():
            if override(base, {option: value}) == base:
                raise UserError(
                    f"{option}={value} is what the row {name} has for itself, and the full method has it too",
                    f"leave out --{option.replace('_', '-')}, or leave {name} out of --rows",
                )

    def pretraining(self, name: RowName, seed: int) -> PretrainConfig:
        """The pretraining of a row, with one of the seeds."""
        base = pretraining_of(self)
        return replace(override(base, changes_of(name, base, longer=self.longer)), seed=seed)

    @property
    def all_seeds(self) -> range:
        """The seeds of every row."""
        return range(self.seed, self.seed + self.seeds)


def quickstart() -> AblationConfig:
    """A very small ViT on the built-in scenes, two cores: short, to see that it runs."""
    config = _of(pretrain_preset("quickstart"))
    return replace(
        config,
        steps=300,
        # More steps for the same arithmetic.
        optim=replace(config.optim, global_batch_size=32, warmup_steps=20),
        # A thousand labels: the fewer there are, the more does it matter what was learned without any. Of
        # 1,000 images to be judged by, the standard error of a top-1 of 25 % would be 1.4 points, more than
        # between most rows.
        classify=ClassifyProtocol(recipe="quickstart", steps=100, fraction=0.25, val_scenes=4000),
        segment=SegmentProtocol(recipe="quickstart", steps=500),
    )


def ablation_preset(name: str) -> AblationConfig:
    """The ablation of a pretraining preset: a short one for the quick start, the preset as it is for all
    others; base-300 is the paper's.

    Raises:
        UserError: For a name that is none.
    """
    return quickstart() if name == "quickstart" else _of(pretrain_preset(name))


def _of(config: PretrainConfig) -> AblationConfig:
    return AblationConfig(
        **vars(config),
        classify=ClassifyProtocol(recipe=finetune_presets.recipe_for(config.model, "mim")),
        segment=SegmentProtocol(recipe=segment_presets.recipe_for(config.model, "mim")),
    )


ABLATIONS: dict[str, Callable[[], PretrainConfig]] = {**PRESETS, "quickstart": quickstart}
