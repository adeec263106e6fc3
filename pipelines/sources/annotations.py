"""Annotations of images. An annotation is a PNG with a class id for every pixel."""

from __future__ import annotations

from dataclasses import replace

from beit.errors import UserError
from beit.segmentation.config import AnnotationConfig
from pipelines.sources.base import Manifest, Source

ANNOTATION_COLUMN = "annotation"


def check_annotations(source: Source, *, option: str = "data.train") -> None:
    """Refuse images without annotations.

    Raises:
        UserError: Naming what there is.
    """
    if ANNOTATION_COLUMN in source.manifest.columns:
        return
    beside = "data.annotations" if option == "data.train" else "data.val-annotations"
    there = (
        ", ".join(name for name in source.manifest.columns if not name.startswith("image")) or "images only"
    )
    raise UserError(
        f"{option}={source.uri} has no annotations, it is {source.manifest.kind} with {there}",
        (
            "give Parquet shards with a column annotation beside image, or image files and the folder of "
            f"their annotations by --{beside}"
        ),
    )


def annotated_classes(
    manifest: Manifest, config: AnnotationConfig
) -> tuple[AnnotationConfig, tuple[str, ...] | None]:
    """Complete the number of classes and their names from the data, where the config leaves them open.

    Data name the ids from 0. An id at the end that is to be ignored (CamVid's void) is no class; with
    `reduce_zero_label` id 0 is none.

    Raises:
        UserError: If nobody says how many.
    """
    names = manifest.annotation_names
    if (
        names is not None
        and config.reduce_zero_label
        and len(names) - 1 == (config.classes or len(names) - 1)
    ):
        names = names[1:]
    elif names is not None and config.ignore_index == len(names) - 1:
        names = names[:-1]
    if config.classes is None and config.values is not None:
        config = replace(config, classes=len(config.values))
    if config.classes is None:
        if names is None:
            raise UserError(
                "annotation.classes is not given, and the data do not name their classes",
                "set --annotation.classes to their number, those that are ignored not counted",
            )
        config = replace(config, classes=len(names))
    return config, names if names is not None and len(names) == config.classes else None


def check_same_names(train: tuple[str, ...] | None, val: Manifest, config: AnnotationConfig) -> None:
    """Refuse a validation set whose ids stand for other classes than the training data's, where both name
    them.

    Args:
        train: The names of the training data's classes, as `annotated_classes` gives them.
        val: The validation set.
        config: What ids stand for, with the number of classes.

    Raises:
        UserError: With the first difference.
    """
    if train is None or val.annotation_names is None:
        return
    names = annotated_classes(val, config)[1]
    if names is None:
        raise UserError(
            f"data.val names {len(val.annotation_names)} ids, which do not come to the {len(train)} classes "
            "of data.train: its ids stand for other classes",
            "write the annotations of both by one list of names",
        )
    for number, (ours, theirs) in enumerate(zip(train, names, strict=True)):
        if ours != theirs:
            raise UserError(
                (
                    f"data.val calls class {number} of {len(names)} {theirs}, data.train {ours}: its ids "
                    "stand for other classes"
                ),
                "write the annotations of both by one list of names",
            )
