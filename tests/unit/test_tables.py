"""How numbers are written, and tables as CSV and in Markdown."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest

from cgdpm_med.tables.csv_files import csv_text, write_csv
from cgdpm_med.tables.markdown import markdown_table
from cgdpm_med.tables.numbers import MISSING, format_interval, format_number


def test_numbers() -> None:
    assert format_number(0.91234) == "0.91"
    assert format_number(0.91234, 1, 100, "%") == "91.2 %"
    assert format_number(2.5, 0) == "2"  # halves to even, as Python rounds
    assert format_number(None, unit="ml") == format_number(math.nan, unit="ml") == MISSING
    assert format_interval(1.04, 2.0) == "1.0 to 2.0"
    assert format_interval(None, 2.0) == format_interval(1.0, None) == ""


def test_fields_of_a_csv_file(tmp_path: Path) -> None:
    rows = [{"name": 'a "b", c', "count": 3, "value": 0.1234567, "single": np.float32(0.5), "none": None}]
    write_csv(tmp_path / "t.csv", rows, number_format=".3f")
    content = (tmp_path / "t.csv").read_bytes()
    assert b"\r" not in content
    assert content.endswith(b"\n")
    (row,) = csv.DictReader(content.decode().splitlines())
    assert row == {"name": 'a "b", c', "count": "3", "value": "0.123", "single": "0.500", "none": ""}
    assert csv_text(["a"], []) == "a\n"


@pytest.mark.parametrize("text", ["=1+2", "@SUM(A1)", "+cmd", "-2+3", "\t=1", "\r=1", "-"])
def test_text_that_is_a_formula_is_marked_as_text(text: str) -> None:
    header, row = csv.reader(io.StringIO(csv_text([text, "n"], [[text, 1]]), newline=""))
    assert (header[0], row[0]) == ("'" + text.replace("\r", " "),) * 2


@pytest.mark.parametrize("value", ["-1.5", "+3", "-1e5", "-inf", -2.5, -3, "a=b", "patient-1", "1+1"])
def test_numbers_and_other_text_stay_as_they_are(value: object) -> None:
    _, (field,) = csv.reader(csv_text(["a"], [[value]], number_format=".1f").splitlines())
    assert field == str(value)


@pytest.mark.parametrize(("numbers", "alignment"), [(False, "| --- | --- |"), (True, "| --- | ---: |")])
def test_a_bar_in_a_cell_does_not_split_it(numbers: bool, alignment: str) -> None:
    table = markdown_table(["name", "n"], [["a|b", 1]], numbers=numbers)
    assert table.splitlines() == ["| name | n |", alignment, r"| a\|b | 1 |"]
