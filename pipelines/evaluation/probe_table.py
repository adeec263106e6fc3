"""The table of a probe, with a row for each layer, pooling and set of weights: read, write and print it, and
log it to MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from beit.vit.pooling import POOLINGS, Pooling
from pipelines import storage
from pipelines.csv_files import read_csv, write_csv

TABLE_FILE = "probe.csv"

Weights = Literal["trained", "random"]


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """The accuracies of one feature."""

    weights: Weights
    """trained: the model's. random: newly drawn."""
    layer: int
    """Number of the block, from 1."""
    pooling: Pooling
    knn_top1: float
    knn_top5: float
    linear_top1: float
    linear_top5: float
    train_images: int
    val_images: int


def read_table(run: str) -> list[ProbeRow]:
    """Read the rows that a run has so far: trained weights first, then by layer and pooling."""
    kinds: dict[str, Callable[[str], Any]] = {
        "weights": str,
        "pooling": str,
        "layer": int,
        "train_images": int,
        "val_images": int,
    }
    return [
        ProbeRow(**{name: kinds.get(name, float)(value) for name, value in entry.items()})
        for entry in read_csv(storage.join(run, TABLE_FILE))
    ]


def write_table(run: str, rows: Sequence[ProbeRow]) -> None:
    """Write the table of a run, in the order of `read_table`."""
    ordered = sorted(rows, key=lambda row: (row.weights != "trained", row.layer, POOLINGS.index(row.pooling)))
    columns = [field.name for field in fields(ProbeRow)]
    write_csv(storage.join(run, TABLE_FILE), columns, [list(asdict(row).values()) for row in ordered])


def metrics(rows: Sequence[ProbeRow]) -> Iterator[dict[str, Any]]:
    """Return the table for MLflow: a curve over layers for each set of weights, pooling and metric; the step
    is the layer.
    """
    now = time.time()
    for row in rows:
        figures = {
            name: getattr(row, name) for name in ("knn_top1", "knn_top5", "linear_top1", "linear_top5")
        }
        yield {
            "step": row.layer,
            "time": now,
            **{f"{row.weights}_{row.pooling}/{name}": value for name, value in figures.items()},
        }


def row_line(row: ProbeRow) -> str:
    """Format a row as a line."""
    return (
        f"{row.weights} weights, layer {row.layer}, {row.pooling}: k-NN {row.knn_top1:.2%}, linear "
        f"{row.linear_top1:.2%}"
    )


def table_lines(rows: Sequence[ProbeRow]) -> Iterator[str]:
    """Format top-1 by layer for the terminal."""
    columns = list(dict.fromkeys((row.weights, row.pooling) for row in rows))
    by_place = {(row.weights, row.pooling, row.layer): row for row in rows}
    layers = sorted({row.layer for row in rows})
    yield "top-1   " + "".join(f"{f'{weights}, {pooling}':>22}" for weights, pooling in columns)
    yield "layer   " + "".join(f"{'k-NN':>12}{'linear':>10}" for _ in columns)
    for layer in layers:
        found = [by_place.get((*column, layer)) for column in columns]
        yield f"{layer:<8}" + "".join(
            " " * 22 if row is None else f"{row.knn_top1:>12.2%}{row.linear_top1:>10.2%}" for row in found
        )
