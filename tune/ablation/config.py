"""Configuration of an ablation: the full method, the rows that change it, and the protocols that evaluate
every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

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
    """How every row is fine-tuned: a recipe, and the options that replace its own. Options that are left out
    are the recipe's.
    """

    recipe: str = "quickstart"
    """A preset of the fine-tuning command."""

    steps: PositiveInt | None = None
    """Optimizer steps. None: the recipe's length."""

    peak_lr: PositiveFloat | None = None
    """Learning rate at the end of the warmup. None: the recipe's."""

    train: str | None = None
    """Training images. None: those of the pretraining."""

    val: str | None = None
    """Validation images. None: held-out scenes, if the pretraining uses scenes."""

    val_scenes: PositiveInt | None = None
    """Number of scenes to render for validation. None: the recipe's."""

    fraction: PositiveShare = 1.0
    """Share of the training images to use: the same images for the same seed, and the same share of every
    class if they are labelled."""


@dataclass(frozen=True, kw_only=True)
class ClassifyProtocol(ProtocolConfig):
    """Fine-tuning for classification, the same for every row: a recipe of `beit finetune`, and what replaces
    its options.
    """


@dataclass(frozen=True, kw_only=True)
class SegmentProtocol(ProtocolConfig):
    """Fine-tuning for segmentation, the same for every row: a recipe of `beit segment`, and what replaces its
    options.
    """

    annotations: str | None = None
    """Folder of annotation PNGs, whose paths and names are those of the training images. None: the annotation
    column of Parquet files."""

    val_annotations: str | None = None
    """The same for the validation images."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig(PretrainConfig):
    """The paper's table 4. Options that do not belong to the ablation itself are those of the full method's
    pretraining, which every row changes in one respect.
    """

    # There may be more rows and seeds.
    free_on_resume = (*PretrainConfig.free_on_resume, "concurrent", "data_cpus", "rows", "seeds")
    recorded_on_resume: ClassVar[tuple[str, ...]] = ()  # Finished rows would have other values.

    rows: tuple[RowName, ...] = tuple(ROWS)
    """Rows of the table, in the order in which they are run."""

    seeds: PositiveInt = 2
    """Number of seeds per row: `seed` and the numbers after it. All rows, and their fine-tunings, use the
    same seeds."""

    longer: PositiveFloat = PAPER_LONGER
    """Factor on the length of the pretraining, for the row with the longer schedule."""

    tasks: tuple[Task, ...] = ("classify", "segment")
    """Tasks that every row is fine-tuned for."""

    classify: ClassifyProtocol = field(default_factory=ClassifyProtocol)
    segment: SegmentProtocol = field(default_factory=SegmentProtocol)

    token_epochs: PositiveInt = 20
    """If every row goes through at most this many epochs of views, their tokens are computed once per seed,
    for all rows. Otherwise every row tokenises while it trains: repeated views would be a disadvantage that
    rows without tokens do not have."""

    concurrent: PositiveInt | None = None
    """Most rows that run at a time. None: as many as the cluster has room for."""

    data_cpus: PositiveFloat | None = None
    """Cores kept free for each row's reading and views. None: those of one reading task."""

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
        """The pretraining configuration of a row with one of the seeds."""
        base = pretraining_of(self)
        return replace(override(base, changes_of(name, base, longer=self.longer)), seed=seed)

    @property
    def all_seeds(self) -> range:
        """The seeds of every row."""
        return range(self.seed, self.seed + self.seeds)


def quickstart() -> AblationConfig:
    """A short run that shows that everything works: a very small ViT on the built-in scenes, two cores."""
    config = _of(pretrain_preset("quickstart"))
    return replace(
        config,
        steps=300,
        # Smaller batches give more steps for the same arithmetic.
        optim=replace(config.optim, global_batch_size=32, warmup_steps=20),
        # A thousand labels: the fewer there are, the more the pretraining matters. With 1,000 validation
        # images, the standard error of a top-1 of 25 % would be 1.4 points, more than the difference between
        # most rows.
        classify=ClassifyProtocol(recipe="quickstart", steps=100, fraction=0.25, val_scenes=4000),
        segment=SegmentProtocol(recipe="quickstart", steps=500),
    )


def ablation_preset(name: str) -> AblationConfig:
    """The ablation of a pretraining preset: a short one for quickstart, and the preset itself for all others;
    base-300 is the paper's.

    Raises:
        UserError: If there is no preset of this name.
    """
    return quickstart() if name == "quickstart" else _of(pretrain_preset(name))


def _of(config: PretrainConfig) -> AblationConfig:
    return AblationConfig(
        **vars(config),
        classify=ClassifyProtocol(recipe=finetune_presets.recipe_for(config.model, "mim")),
        segment=SegmentProtocol(recipe=segment_presets.recipe_for(config.model, "mim")),
    )


ABLATIONS: dict[str, Callable[[], PretrainConfig]] = {**PRESETS, "quickstart": quickstart}
