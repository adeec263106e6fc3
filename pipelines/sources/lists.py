"""A list that chooses the images of a folder, and may label them: a text file with a path in each line, or a
CSV file with the columns path and, if there are labels, label.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from beit.errors import UserError
from pipelines import storage
from pipelines.sources.folder import FolderManifest
from pipelines.sources.listing import Listing

NO_LABEL = -1


@dataclass(frozen=True)
class ImageList:
    """The lines of a list."""

    named: str
    """The option and the file, for messages."""
    names: list[str]
    """Paths of the images, relative to the folder."""
    labels: list[str] | None
    """Their labels; "" for none. None: the list has no labels."""

    def choose(self, listing: Listing, uri: str) -> Listing:
        """Keep the files that are on the list.

        Raises:
            UserError: If some are not there, or are there twice on the list.
        """
        names = [name.removeprefix(f"{listing.root}/") for name in self.names]
        entries = {entry.name: entry for entry in listing.entries}
        if missing := [name for name in names if name not in entries]:
            raise UserError(
                f"{self.named}: {len(missing):,} of {len(names):,} paths are no files of {uri}, the first is "
                f"{missing[0]}",
                f"paths are relative to {listing.root}" + _example(missing[0], listing),
            )
        [(name, count)] = Counter(names).most_common(1)
        if count > 1:
            raise UserError(f"{self.named}: {name} is there {count} times", "list each image once")
        return replace(listing, entries=[entries[name] for name in sorted(names)], passed_over={})

    def label(self, manifest: FolderManifest) -> FolderManifest:
        """Give each image its label on the list: a number, or the place of its name in alphabetical order."""
        if self.labels is None:
            return manifest
        whole = all(re.fullmatch(r"\d+", label) for label in self.labels if label)
        classes = None if whole else tuple(sorted({label for label in self.labels if label}))
        numbers = {name: number for number, name in enumerate(classes or ())}
        label_of = {
            name.removeprefix(f"{manifest.root}/"): int(label) if whole else numbers[label]
            for name, label in zip(self.names, self.labels, strict=True)
            if label
        }
        labels = np.array(
            [label_of.get(os.fsdecode(name), NO_LABEL) for name in manifest.names.to_pylist()], np.int32
        )
        state = hashlib.blake2b(f"{manifest.digest}\0{classes}\0".encode(), digest_size=16)
        state.update(labels.astype("<i4").tobytes())
        return replace(
            manifest,
            digest=state.hexdigest(),
            columns=tuple(dict.fromkeys((*manifest.columns, "label"))),
            class_names=classes,
            labels=labels,
        )


def read_list(path: str, *, option: str) -> ImageList:
    """Read a list.

    Args:
        path: A .csv file with a first line that names its columns; any other file has a path in each line.
        option: Name of the option that the file was given with, for messages.

    Raises:
        UserError: If it cannot be read, names no images, or has no column path.
    """
    named = f"{option}={path}"
    try:
        text = storage.read_bytes(path).decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error}", "give a .txt or .csv file of paths") from error
    labels: list[str] | None = None
    if path.lower().endswith(".csv"):
        rows = csv.DictReader(io.StringIO(text))
        columns = [column.strip() for column in rows.fieldnames or ()]
        rows.fieldnames = columns
        if "path" not in columns:
            raise UserError(
                f"{named} has no column path; its first line is {', '.join(columns) or 'empty'}",
                "begin it with a line path, or path,label",
            )
        found = [row for row in rows if (row["path"] or "").strip()]
        names = [row["path"].strip() for row in found]
        if "label" in columns:
            labels = [(row["label"] or "").strip() for row in found]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError(f"{named} names no images", "give a .txt or .csv file of paths")
    return ImageList(named, [name.removeprefix("./") for name in names], labels)


def _example(missing: str, listing: Listing) -> str:
    """Name a file there that has the same last name, or any."""
    last = missing.rpartition("/")[2]
    alike = (entry.name for entry in listing.entries if entry.name.rpartition("/")[2] == last)
    example = next(alike, listing.entries[0].name if listing.entries else None)
    return "" if example is None else f", such as {example}"
