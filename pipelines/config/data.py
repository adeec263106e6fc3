"""Where the images come from."""

from __future__ import annotations

from dataclasses import dataclass

from beit.checks import PositiveInt, PositiveShare, Share
from beit.errors import UserError

# Larger models want more than a few thousand rendered scenes.
MOST_SCENE_PX = 128


def check_has_data(
    train: str | None,
    image_size: int,
    *,
    works: str,
    wanted: str = "--data.train to a folder or bucket of images",
) -> None:
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
    """Folder, glob or bucket URI of Parquet shards, image files or tars. None: the built-in scenes, rendered
    on the spot."""

    scenes: PositiveInt = 4096
    """How many scenes to render when `train` is not given."""

    max_bad: Share = 0.01
    """The run stops when more than this share of the samples cannot be used; of the first 1,000, as many as
    of 1,000."""


@dataclass(frozen=True, kw_only=True)
class PretrainDataConfig(DataConfig):
    """Where the images and their visual tokens come from."""

    tokens: str | None = None
    """Folder of a token cache written by `beit tokenizer encode`; the stream then has no tokenizer. None:
    tokenise while training."""


@dataclass(frozen=True, kw_only=True)
class SupervisedDataConfig(DataConfig):
    """Where the images and what there is to say about them come from."""

    val: str | None = None
    """Images to be judged by, found like `train`. None: held-out scenes if `train` is not given either, else
    no evaluation."""

    val_scenes: PositiveInt = 1000
    """How many scenes to render for validation when `train` is not given."""

    fraction: PositiveShare = 1.0
    """Share of the training images to use, the same ones for the same seed; of labelled ones the same share
    of every class."""
