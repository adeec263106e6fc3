"""Tables as CSV files, against what the standard module reads."""

import csv
import os
from pathlib import Path

import pytest

from pipelines.csv_files import read_csv, write_csv

ROWS = [["a, b.jpg", 'he said "no"'], ["line\none.jpg", "é€😀"], ["", "empty name"]]


def test_what_is_written_is_read_again_with_commas_quotes_and_line_ends(tmp_path: Path):
    write_csv(tmp_path / "deep" / "table.csv", ["image", "reason"], ROWS)
    expected = [dict(zip(("image", "reason"), row, strict=True)) for row in ROWS]
    assert read_csv(tmp_path / "deep" / "table.csv") == expected
    with (tmp_path / "deep" / "table.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == expected


def test_numbers_keep_all_their_digits_and_none_is_an_empty_field(tmp_path: Path):
    write_csv(tmp_path / "table.csv", ["value", "seed"], [(0.1 + 0.2, None)])
    assert (tmp_path / "table.csv").read_bytes() == b"value,seed\r\n0.30000000000000004,\r\n"


def test_a_table_without_rows_or_without_a_file_has_no_rows(tmp_path: Path):
    write_csv(tmp_path / "table.csv", ["image", "reason"], [])
    assert read_csv(tmp_path / "table.csv") == read_csv(tmp_path / "none.csv") == []


@pytest.mark.parametrize("raw", [b"caf\xe9.jpg", b"\xff.jpg"])
def test_a_file_name_that_is_no_utf_8_is_written_in_ascii(tmp_path: Path, raw: bytes):
    write_csv(tmp_path / "table.csv", ["image"], [[os.fsdecode(raw)]])
    [row] = read_csv(tmp_path / "table.csv")
    assert row["image"].isascii()
    assert row["image"].endswith(".jpg")
