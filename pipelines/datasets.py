"""Open the images that a job was given, or the built-in scenes, for training and for validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from pipelines import storage
from pipelines.config.data import DataConfig, SupervisedDataConfig, check_has_data
from pipelines.config.jobs import HasData, JobConfig
from pipelines.scenes.shards import write_scenes
from pipelines.sources import Source, open_source
from pipelines.sources.base import ChosenColumns
from pipelines.sources.labels import LabelledManifest, class_count, label_source, take_fraction, unnamed

Config = TypeVar("Config", bound=JobConfig)
Data = TypeVar("Data", bound=SupervisedDataConfig)
AnyData = TypeVar("AnyData", bound=DataConfig)


def with_absolute_data(config: Config) -> Config:
    """Make the paths of the data absolute, so that the saved configuration is valid wherever the run is
    resumed from.
    """
    return replace(config, data=_absolute(config.data, "train", "list"))


def _absolute(data: AnyData, *names: str) -> AnyData:
    given = {name: getattr(data, name) for name in names}
    paths: dict[str, Any] = {name: storage.absolute(path) for name, path in given.items() if path is not None}
    return replace(data, **paths)


def chosen_columns(data: DataConfig) -> ChosenColumns:
    """Return the columns that the user names."""
    return ChosenColumns(image=data.image, label=data.label, annotation=data.annotation)


def open_train(train: str, data: DataConfig, *, say: Callable[[str], None] = lambda line: None) -> Source:
    """Open the training images at `data.train`, which is given as `train`."""
    return open_source(train, split="train", columns=chosen_columns(data), chosen=data.list, say=say)


def open_data(config: HasData, *, image_size: int, say: Callable[[str], None]) -> Source:
    """Open the images of a run: `data.train`, or the built-in scenes, which are rendered next to the runs
    when they are first used.
    """
    if config.data.train is not None:
        return open_train(config.data.train, config.data, say=say)
    images = config.data.scenes
    folder = storage.join(config.output.root, "scenes", f"{images}-images-{image_size}px")
    if not storage.exists(storage.join(folder, "complete")):
        say(f"data: rendering {images:,} scenes of {image_size} px into {folder}")
        write_scenes(folder, images=images, seed=0, image_size=image_size)
        storage.write_text(storage.join(folder, "complete"), "")
    return open_source(folder)


class HasLabelledData(HasData, Protocol):
    """The configuration of a job that learns from labels."""

    @property
    def data(self) -> SupervisedDataConfig: ...


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """The labelled images of a job: for training and for validation."""

    source: Source
    """Source of the training images; its manifest is `train`."""
    train: LabelledManifest
    val: LabelledManifest | None
    classes: int
    class_names: tuple[str, ...] | None
    """A name for each of the `classes`. None: the data has no names, or not that many."""


def checked_data(data: Data, *, image_size: int, job: str) -> Data:
    """Check the data's options before anything is opened, and make their paths absolute.

    Args:
        data: The options.
        image_size: Side of the images, in pixels.
        job: The command, for messages.

    Raises:
        UserError: If an option is wrong; the message names it.
    """
    check_has_data(
        data.train,
        image_size,
        works=f"beit {job} quickstart",
        wanted="--data.train to labelled images, and --data.val",
    )
    return _absolute(data, "train", "list", "val", "val_list")


def open_labelled(
    config: HasLabelledData, *, image_size: int, classes: int | None, seed: int, say: Callable[[str], None]
) -> LabelledData:
    """Open training and validation images; renders the built-in scenes if no data is given.

    Args:
        config: The job's configuration, with absolute paths.
        image_size: Side of the scenes.
        classes: K. None: as many as the data names, or its largest label + 1.
        seed: Seed of the choice of `data.fraction`.
        say: Takes the lines for the user.

    Raises:
        UserError: If there are no images or no labels, or if some labels are invalid.
    """
    source = label_source(open_data(config, image_size=image_size, say=say), classes=classes)
    count, names = class_count(source.manifest, classes), source.manifest.class_names
    if names is not None and len(names) != count:
        names = None
    train = take_fraction(source.manifest, config.data.fraction, seed)
    val: LabelledManifest | None = None
    if (found := open_val(config.data, config.output.root, image_size=image_size, say=say)) is not None:
        labelled = label_source(found, option="data.val", classes=count, follows=source.manifest).manifest
        for line in unnamed(source.manifest, labelled, "data.val"):
            say(line)
        val = labelled
    return LabelledData(
        source=replace(source, manifest=train), train=train, val=val, classes=count, class_names=names
    )


def open_val(
    data: SupervisedDataConfig, root: str, *, image_size: int, say: Callable[[str], None]
) -> Source | None:
    """Open the validation images; None if training images are given and no validation images."""
    if data.val is not None:
        return open_source(
            data.val,
            option="data.val",
            split="val",
            columns=chosen_columns(data),
            chosen=data.val_list,
            say=say,
        )
    if data.train is not None:
        return None
    return held_out_scenes(root, first=data.scenes, images=data.val_scenes, image_size=image_size, say=say)


def held_out_scenes(
    root: str, *, first: int, images: int, image_size: int, say: Callable[[str], None]
) -> Source:
    """Open the scenes that follow the first `first` ones, which are for training; they are rendered when they
    are first used.
    """
    folder = storage.join(root, "scenes", f"{images}-images-after-{first}-{image_size}px")
    if not storage.exists(storage.join(folder, "complete")):
        say(f"data: rendering {images:,} scenes of {image_size} px for validation into {folder}")
        write_scenes(folder, images=images, seed=0, image_size=image_size, first=first, split="val")
        storage.write_text(storage.join(folder, "complete"), "")
    return open_source(folder, option="data.val")
