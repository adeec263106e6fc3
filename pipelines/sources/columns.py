"""Which columns of Parquet shards hold the images, their labels and their annotations: by their names and
types, or as the user says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from beit.errors import UserError
from pipelines.sources.base import LABEL_COLUMNS, PATH_COLUMN, ChosenColumns, flag_beside

# Names that image columns go by, the hub's first.
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content")

# Names that columns of encoded annotations go by beside an image column. Semantic segmentation on the hub has
# them in `label`, which then holds no labels.
ANNOTATION_COLUMNS = ("annotation", "mask", "segmentation_mask", "segmentation", "label", "labels")

Form = Literal["binary", "struct", "null", ""]
"""How a column holds encoded files: as bytes, or as struct<bytes, …>. null: it has no values. "": it holds
something else."""

# Lists of names in a file's metadata.
_NAMES = ("class_names", "annotation_names")


@dataclass(frozen=True, kw_only=True)
class Table:
    """What the schema of a file says."""

    forms: dict[str, Form]
    """Form of each column, in the order of the file."""
    types: dict[str, str]
    """Type of each column, for people."""
    kinds: dict[str, str]
    """What the values of each column are: whole, number, text, null, files or other."""
    pathed: list[str]
    """Columns of encoded files that have the files' names too."""
    inside: dict[str, str]
    """Paths of encoded files inside lists and structs, where they are not read -> the type of the column."""
    names: dict[str, Any]
    """Lists of names in the metadata, and "names_of_columns"."""


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Which columns hold what."""

    image: str
    unusual: bool
    """Whether it is another image column than would be found without the user."""
    annotation: str | None
    label: str | None
    conflicting: str | None
    """A label column that is none, since the files disagree about its type."""
    columns: tuple[str, ...]
    """What can be read: `Manifest.columns`."""
    class_names: tuple[str, ...] | None = None
    annotation_names: tuple[str, ...] | None = None
    names_of_columns: dict[str, tuple[str, ...]] = field(default_factory=dict)


def describe_schema(schema: pa.Schema) -> Table:
    """Look for columns of encoded files, and at the types of all others."""
    forms = {column.name: _form(column.type) for column in schema}
    return Table(
        forms=forms,
        types={column.name: str(column.type) for column in schema},
        kinds={
            column.name: "files" if forms[column.name] in ("binary", "struct") else _kind(column.type)
            for column in schema
        },
        pathed=[
            column.name
            for column in schema
            if forms[column.name] == "struct" and column.type.get_field_index("path") >= 0
        ],
        inside={path: str(column.type) for column in schema for path in _inside(column.name, column.type)},
        names=_all_names(schema),
    )


def choose_columns(
    tables: Sequence[Table], examples: Sequence[str], *, option: str, chosen: ChosenColumns
) -> Roles:
    """Choose the columns that hold images, labels and annotations.

    Args:
        tables: The schemas of the files; several if they differ.
        examples: A file of each schema.
        option: Name of the option that the files were given with, for messages.
        chosen: What the user names.

    Raises:
        UserError: If there is no column of images, or several and none of a known name, or a column that the
            user names is not there or holds something else.
    """
    first = tables[0]
    files = _columns_of_files(tables)
    usual = _usual_image(files)
    image = _chosen_files("image", chosen.image, tables, examples, option) or usual
    if image is None:
        raise _no_images(first, examples[0], files, option)
    for table, example in zip(tables, examples, strict=True):
        if table.forms.get(image, "") == "":
            raise UserError(
                f"{option}: {example} has its images in another column or form than {examples[0]}: its "
                f"column {image} is {table.types.get(image, 'missing')}",
                "give files of one layout, for example with a glob, or name a column that all have by "
                f"{flag_beside(option, 'image')}",
            )
    annotation = _chosen_files("annotation", chosen.annotation, tables, examples, option)
    if annotation is None and "annotation" not in first.forms:
        annotation = next((name for name in ANNOTATION_COLUMNS if name in files and name != image), None)
    elif annotation is None and "annotation" in files and image != "annotation":
        annotation = "annotation"
    shared = [name for name in first.forms if all(name in table.forms for table in tables)]
    pathed = all(image in table.pathed for table in tables)
    columns = ("image", *([PATH_COLUMN] if pathed else []), *_others(shared, image, annotation))
    candidates = [
        name for name in LABEL_COLUMNS if name in columns and _kinds(tables, name) - {"null", "files"}
    ]
    agreeing = [name for name in candidates if len(_kinds(tables, name, numbers=True) - {"null"}) == 1]
    if chosen.label is not None and chosen.label not in columns:
        raise UserError(
            f"{flag_beside(option, 'label')} {chosen.label} is no column of {option}: "
            f"{examples[0]} has {_listed(first)}",
            "name one of those that are there",
        )
    conflicting = next((name for name in candidates if name not in agreeing), None)
    usual_label = next(iter(agreeing), None)
    return Roles(
        image=image,
        unusual=image != usual,
        annotation=annotation,
        label=chosen.label or usual_label,
        conflicting=conflicting if usual_label is None and chosen.label is None else None,
        columns=columns,
        **_names(first.names, columns, usual_label, chosen.label or usual_label),
    )


def _others(shared: Sequence[str], image: str, annotation: str | None) -> Iterator[str]:
    """The other columns under the names that they are read by."""
    for name in shared:
        if name == annotation:
            yield "annotation"
        elif name not in (image, "image") and not (name == "annotation" and annotation is not None):
            yield name


def _columns_of_files(tables: Sequence[Table]) -> list[str]:
    """Columns that hold encoded files in some file, and nothing else in all others."""
    return [
        name
        for name in tables[0].forms
        if {table.forms.get(name, "null") for table in tables} & {"binary", "struct"}
    ]


def _usual_image(files: Sequence[str]) -> str | None:
    named = [name for name in IMAGE_COLUMNS if name in files]
    return named[0] if named else files[0] if len(files) == 1 else None


def _chosen_files(
    what: str, name: str | None, tables: Sequence[Table], examples: Sequence[str], option: str
) -> str | None:
    """Check that the column which the user names for images or annotations holds encoded files."""
    if name is None:
        return None
    for table, example in zip(tables, examples, strict=True):
        if table.forms.get(name, "") == "":
            there = f"is {table.types[name]}" if name in table.types else "is not there"
            raise UserError(
                f"{flag_beside(option, what)} {name}: that column of {example} {there}, not encoded files; "
                f"its columns: {_listed(table)}",
                "name a column of struct<bytes: binary, path: string> or of binary",
            )
    return name


def _no_images(table: Table, example: str, files: Sequence[str], option: str) -> UserError:
    if files:
        return UserError(
            f"{option}: {example} has {len(files)} columns of encoded images, {', '.join(files)}: which "
            "are the images?",
            f"name their column by {flag_beside(option, 'image')}",
        )
    if empty := [name for name in IMAGE_COLUMNS if table.forms.get(name) == "null"]:
        return UserError(
            f"{option}: no image of {example} has bytes: the column {empty[0]} is null in all rows",
            "write the shards again with the bytes of the images in them",
        )
    if table.inside:
        inside = ", ".join(f"{path} ({kind})" for path, kind in table.inside.items())
        return UserError(
            f"{option}: {example} has its images inside lists or structs, which are not read: {inside}",
            "write them into a column of their own, one image a row, as struct<bytes: binary, path: string> "
            "or as binary",
        )
    return UserError(
        f"{option}: {example} has no column of encoded images; its columns: {_listed(table)}",
        (
            "name the column `image`, as struct<bytes: binary, path: string> or as binary (or make "
            "shards with `beit data pack`)"
        ),
    )


def _listed(table: Table) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in table.types.items())


def _kinds(tables: Sequence[Table], name: str, *, numbers: bool = False) -> set[str]:
    """The kinds of a column's values in all files; with `numbers`, all numbers are of one kind."""
    kinds = {table.kinds.get(name, "null") for table in tables}
    return {"number" if numbers and kind == "whole" else kind for kind in kinds}


def _form(kind: pa.DataType) -> Form:
    if pa.types.is_null(kind):
        return "null"
    if is_binary(kind):
        return "binary"
    if (
        pa.types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and is_binary(kind.field("bytes").type)
    ):
        return "struct"
    return ""


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are bytes, each in its place, viewed, or stored only once."""
    if pa.types.is_dictionary(kind):
        return is_binary(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _inside(path: str, kind: pa.DataType) -> Iterator[str]:
    """The paths of encoded files inside a column of lists or structs."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if _form(kind.value_type) in ("binary", "struct"):
            yield f"{path}[]"
        else:
            yield from _inside(f"{path}[]", kind.value_type)
    elif pa.types.is_struct(kind) and not _form(kind):
        for child in kind:
            if _form(child.type) in ("binary", "struct"):
                yield f"{path}.{child.name}"
            else:
                yield from _inside(f"{path}.{child.name}", child.type)


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_null(kind):
        return "null"
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return "whole"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    return "other"


def _all_names(schema: pa.Schema) -> dict[str, Any]:
    """Read the lists of names in a file's metadata: ours, and those that the Hugging Face library writes."""
    metadata: dict[bytes, bytes] = schema.metadata or {}
    given = {
        name: [str(value) for value in json.loads(metadata[name.encode()])]
        for name in _NAMES
        if name.encode() in metadata
    }
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    named = {name: feature.get("names") for name, feature in features.items() if isinstance(feature, dict)}
    return {
        **given,
        "names_of_columns": {name: names for name, names in named.items() if isinstance(names, list)},
    }


def _names(
    found: Mapping[str, Any], columns: Sequence[str], usual: str | None, label: str | None
) -> dict[str, Any]:
    """Return the names of labels, and of ids in annotations.

    The `class_names` of the metadata belong to the label column that is found without the user. With
    annotations and no labels, they are those of the ids.
    """
    of_columns, of_all = found["names_of_columns"], found.get("class_names")
    of_ids = found.get("annotation_names", of_all if "annotation" in columns and label is None else None)
    of_labels = (of_all if label == (usual or label) else None) or of_columns.get(label)
    return {
        "class_names": None if of_labels is None else tuple(of_labels),
        "annotation_names": None if of_ids is None else tuple(of_ids),
        "names_of_columns": {name: tuple(names) for name, names in of_columns.items()},
    }
