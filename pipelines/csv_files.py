"""Read and write tables as CSV files, locally and on buckets. The first line names the columns.

Spreadsheets compute a cell that begins with `=`, `+`, `-` or `@`: an image of that name could run a command
on the machine of whoever opens the table. Such cells get an apostrophe in front, which is taken away again
when they are read here.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipelines import storage

COMPUTED = "[=+\\-@\t\r\n＝＋－＠]"
TO_MARK = re.compile(f"'*{COMPUTED}")
MARKED = re.compile(f"'+{COMPUTED}")


def write_csv(uri: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table in one step: a reader sees the old table or the new one, never a part.

    In a file name that is not UTF-8, as `os.fsdecode` returns it, the invalid bytes are written as
    backslashes and numbers.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_inert(cell) for cell in columns)
    writer.writerows([_inert(cell) for cell in row] for row in rows)
    storage.write_bytes(uri, text.getvalue().encode(errors="backslashreplace"))


def read_csv(uri: str | Path) -> list[dict[str, str]]:
    """Read the rows of a table, each by column name. A file that does not exist has no rows."""
    if not storage.exists(uri):
        return []
    lines = csv.reader(io.StringIO(storage.read_text(uri), newline=""))
    columns = [_as_given(cell) for cell in next(lines, [])]
    return [dict(zip(columns, map(_as_given, line), strict=False)) for line in lines if line]


def _inert(cell: Any) -> Any:
    """Mark text that a spreadsheet would compute. Numbers stay as they are."""
    if not isinstance(cell, str | Path) or not TO_MARK.match(text := str(cell)) or _is_number(text):
        return cell
    return f"'{text}"


def _as_given(cell: str) -> str:
    return cell[1:] if MARKED.match(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
