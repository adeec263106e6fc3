"""Tables as CSV files, on local paths and in buckets: the first line names the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage


def write_csv(uri: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table in one step: a reader sees the old one or the new, never a part.

    A file name that is no UTF-8, as `os.fsdecode` gives it, is written with its odd bytes as backslashes and
    numbers.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    storage.write_bytes(uri, text.getvalue().encode(errors="backslashreplace"))


def read_csv(uri: str | Path) -> list[dict[str, str]]:
    """Read the rows of a table by the names of its columns; none if there is no such file."""
    if not storage.exists(uri):
        return []
    return list(csv.DictReader(io.StringIO(storage.read_text(uri), newline="")))
