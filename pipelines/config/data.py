"""Configuration of a job's images, labels and annotations."""

from __future__ import annotations

from dataclasses import dataclass

from beit.checks import Options, PositiveInt, PositiveShare, Share
from beit.errors import UserError
from pipelines.schemes import StoragePath

# Larger models need more data than a few thousand rendered scenes.
MOST_SCENE_PX = 128


def check_has_data(
    train: str | None,
    image_size: int,
    *,
    works: str,
    wanted: str = "--data.train to a folder or bucket of images",
) -> None:
    """Refuse images that are too large for the built-in scenes when no other data is given.

    Args:
        train: `data.train`.
        image_size: Side of the images, in pixels.
        works: A command that runs on the scenes.
        wanted: What to set.

    Raises:
        UserError: If `train` is None and the images are larger than `MOST_SCENE_PX`.
    """
    if train is None and image_size > MOST_SCENE_PX:
        raise UserError(
            (
                "data.train is not given, and the built-in scenes are too small a data set for images of "
                f"{image_size} px"
            ),
            f"set {wanted}; {works} runs on the scenes",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images come from."""

    train: str | None = None
    """Training images: a folder, glob or bucket URI of Parquet shards, image files or tars. None: the
    built-in scenes, rendered when the run starts."""

    list: StoragePath | None = None
    """File that chooses images of a folder and may label them: a .txt with a path in each line, or a .csv
    with the columns path and label. Paths are relative to `train`. None: all images."""

    image: str | None = None
    """Parquet column with the images, or the end of their names in tars, such as jpg. None: found by name and
    type."""

    label: str | None = None
    """Parquet column with the labels. None: the first that exists of label, labels, class, target, fine_label
    and cls."""

    annotation: str | None = None
    """Parquet column with the annotations. None: annotation, or a column of masks such as mask or label."""

    scenes: PositiveInt = 4096
    """Number of scenes to render if `train` is not given."""

    max_bad: Share = 0.01
    """The run stops when more than this share of the samples cannot be used. During the first 1,000 samples
    the limit is this share of 1,000."""

    def check_together(self, option: Options) -> None:
        """Refuse a list of images that are not given."""
        if self.list is not None and self.train is None:
            raise UserError(
                f"{option('list')} is given without {option.name('train')}",
                f"set --{option.name('train')} to the folder of its images",
            )


@dataclass(frozen=True, kw_only=True)
class PretrainDataConfig(DataConfig):
    """Where the images and their visual tokens come from."""

    tokens: StoragePath | None = None
    """Folder of a token cache written by `beit tokenizer encode`; the run then needs no tokenizer. None:
    compute tokens while training."""


@dataclass(frozen=True, kw_only=True)
class SupervisedDataConfig(DataConfig):
    """Where the images and their labels or annotations come from."""

    val: str | None = None
    """Validation images, given like `train`. None: held-out scenes if `train` is not given either, otherwise
    no evaluation."""

    val_list: StoragePath | None = None
    """The same as `list` for the images in `val`."""

    val_scenes: PositiveInt = 1000
    """Number of scenes to render for validation if `train` is not given."""

    fraction: PositiveShare = 1.0
    """Share of the training images to use: the same images for the same seed, and the same share of every
    class if they are labelled."""

    def check_together(self, option: Options) -> None:
        """Refuse a list of validation images that are not given."""
        super().check_together(option)
        if self.val_list is not None and self.val is None:
            raise UserError(
                f"{option('val_list')} is given without {option.name('val')}",
                f"set --{option.name('val')} to the folder of its images",
            )
