"""Raw files are read in blocks; each row has its header's fields, or the error names its line."""

import csv
import io
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlrm_mlet.data import raw
from dlrm_mlet.data.raw import RawError, open_raw


def rows_of(path: Path, columns: tuple[str, ...]) -> list[tuple[str | None, ...]]:
    return [row for block in open_raw(path, columns).blocks() for row in block.table.rows()]


field = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    table=st.integers(2, 4).flatmap(lambda width: st.lists(st.tuples(*[field] * width), min_size=1, max_size=12)),
    block_bytes=st.integers(1, 80),
    last_line_ends=st.booleans(),
)
def test_blocks_of_any_size_hold_what_the_csv_module_reads(tmp_path, monkeypatch, table, block_bytes, last_line_ends):
    monkeypatch.setattr(raw, "BLOCK_BYTES", block_bytes)
    columns = tuple(f"c{i}" for i in range(len(table[0])))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *table])
    path = tmp_path / "table.csv"
    path.write_text(text.getvalue() if last_line_ends else text.getvalue().removesuffix("\n"), newline="")
    expected = [tuple(value or None for value in row) for row in table]
    assert rows_of(path, columns) == expected
    assert rows_of(path, columns[::-1]) == [row[::-1] for row in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n4,5\n", "table.csv:3: 1 fields; expected 2"),
        ("a,b\n1,2\n3,4,5\n", "table.csv:3: 3 fields; expected 2"),
        ("a,b\n1,2\n\n3,4\n", "table.csv:3: 1 fields; expected 2"),
        ('a,b\n1,"2\n2"\n3\n', "table.csv:4: 1 fields; expected 2"),
        ('a,b\n1,2\n3,"4\n', "table.csv:3: a quote that opens here is never closed"),
        ("a,b", None),
        ("a\n1\n", "table.csv:1: no column 'b'; expected it once among a"),
        ("a,b,b\n1,2,3\n", "table.csv:1: more than one column 'b'"),
        ("", "table.csv: empty file; expected a header"),
    ],
)
def test_a_malformed_file_is_refused_by_line(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    if message is None:
        assert rows_of(path, ("a", "b")) == []
        return
    with pytest.raises(RawError) as error:
        rows_of(path, ("a", "b"))
    assert message in str(error.value)


def test_the_line_is_right_in_a_later_block(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "BLOCK_BYTES", 16)
    path = tmp_path / "table.tsv"
    path.write_text("a\tb\n" + "1\t2\n" * 50 + "3\n")
    with pytest.raises(RawError, match=r"table\.tsv:52: 1 fields"):
        rows_of(path, ("a", "b"))


def test_windows_line_ends_are_no_part_of_a_value(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b'a,b\r\n1,2\r\n3,"4"\r\n5,\r\n')
    assert rows_of(path, ("a", "b")) == [("1", "2"), ("3", "4"), ("5", None)]


def test_values_of_a_parquet_file_become_text(tmp_path):
    path = tmp_path / "table.parquet"
    pl.DataFrame({"a": [1, None, 3], "b": [True, False, None], "c": ["x", "", None]}).write_parquet(path)
    assert rows_of(path, ("c", "a", "b")) == [("x", "1", "1"), ("", None, "0"), (None, "3", None)]


@pytest.mark.parametrize("name", ["missing.csv", "table.xlsx", "text.parquet"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    if "missing" not in name:
        (tmp_path / name).write_text("no table")
    with pytest.raises(RawError, match=name):
        open_raw(tmp_path / name, ("a",))
