"""Read and write tables as CSV files, locally and on buckets. The first line names the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage


def write_csv(uri: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table in one step: a reader sees the old table or the new one, never a part.

    In a file name that is not UTF-8, as `os.fsdecode` returns it, the invalid bytes are written as
    backslashes and numbers.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    storage.write_bytes(uri, text.getvalue().encode(errors="backslashreplace"))


def read_csv(uri: str | Path) -> list[dict[str, str]]:
    """Read the rows of a table, each by column name. A file that does not exist has no rows."""
    if not storage.exists(uri):
        return []
    return list(csv.DictReader(io.StringIO(storage.read_text(uri), newline="")))
