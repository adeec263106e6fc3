"""Splits of a data set, such as train and val, by the names of folders and files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What splits are called -> train, val or test."""

_NAME = re.compile(rf"(?:partial-)?({'|'.join(SPLITS)})[-_]?\d*")
"""train, and as COCO (train2017) and the hub's own conversions (partial-train) have it."""


def split_of(name: str) -> str | None:
    """Return the split that a folder's name stands for: train, val or test."""
    found = _NAME.fullmatch(name.lower())
    return SPLITS[found[1]] if found else None


def split_depth(folders: Sequence[Sequence[str]]) -> int | None:
    """Return how many folders lie above those of the splits; None if there are no such folders.

    Folders are splits if two of them are called so at the same depth: a class of trains alone is none.

    Args:
        folders: Distinct folders, each as the names on its path.
    """
    for depth in range(max(map(len, folders), default=0)):
        names = {path[depth] for path in folders if len(path) > depth}
        if len({split_of(name) for name in names} - {None}) > 1:
            return depth
    return None


def splits_of(folders: Sequence[Sequence[str]]) -> list[str]:
    """Return what the splits among folders are called; nothing if there are none."""
    depth = split_depth(folders)
    if depth is None:
        return []
    return sorted({path[depth] for path in folders if len(path) > depth and split_of(path[depth])})


def by_split(names: Sequence[str]) -> tuple[list[str], bool]:
    """Return what each file's split is called: the name of its folder, or the first part of its own name as
    in train-00000-of-00002.parquet; "" where there are no splits. And whether it is a folder's name.
    """
    folders = {name.rpartition("/")[0]: name.split("/")[:-1] for name in names}
    if (depth := split_depth(list(folders.values()))) is not None:
        called = {folder: path[depth] if len(path) > depth else "" for folder, path in folders.items()}
        return [called[name.rpartition("/")[0]] for name in names], True
    first = []
    for name in names:
        first.append(re.split(r"[-_.]", name.rpartition("/")[2], maxsplit=1)[0].lower())
        if first[-1] not in SPLITS:
            return [""] * len(names), False
    return (first if len(set(first)) > 1 else [""] * len(names)), False


def wanted(split: str | None, called: Sequence[str]) -> set[str] | None:
    """Return which of the splits are meant: those of that very name, else those that stand for it, as
    validation for val. None: no split is asked for.
    """
    if split not in SPLITS:
        return None
    there = set(called)
    return {split} & there or {name for name in there if split_of(name) == SPLITS[split]}


def counted(called: Sequence[str]) -> str:
    """List the splits with their numbers of files, for messages."""
    return ", ".join(f"{name or 'beside them'} ({count:,})" for name, count in Counter(called).items())
