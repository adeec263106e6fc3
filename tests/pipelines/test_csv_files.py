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


ATTACKS = [
    '=HYPERLINK("http://evil")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "＝1+1",
    "'=quoted already",
    "-1\n=2",
]


def test_names_that_a_spreadsheet_would_compute_are_inert_and_read_back_as_they_were(tmp_path: Path):
    write_csv(tmp_path / "table.csv", ["image", "=reason"], [[name, "x"] for name in ATTACKS])
    assert [row["image"] for row in read_csv(tmp_path / "table.csv")] == ATTACKS
    assert all(row["=reason"] == "x" for row in read_csv(tmp_path / "table.csv"))
    with (tmp_path / "table.csv").open(newline="") as file:
        for row in csv.reader(file):
            assert all(cell[0] not in "=+-@\t\r＝" for cell in row)


@pytest.mark.parametrize("text", ["'tis.jpg", "''", "a=b", "images/-1.jpg", "-0.5", "+3", "-1e-3"])
def test_other_names_and_numbers_are_written_as_they_are(tmp_path: Path, text: str):
    write_csv(tmp_path / "table.csv", ["image", "value"], [[text, -0.25]])
    with (tmp_path / "table.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == [text, "-0.25"]
    assert read_csv(tmp_path / "table.csv") == [{"image": text, "value": "-0.25"}]
