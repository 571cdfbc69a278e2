"""Raw files are read in blocks; each row has its header's fields, or the error names its line."""

import csv
import gzip
import io
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlrm_mlet.data import delimited
from dlrm_mlet.data.blocks import RawError
from dlrm_mlet.data.datasets import Format
from dlrm_mlet.data.raw import open_raw


def rows_of(path: Path, columns: tuple[str, ...]) -> list[tuple[str | None, ...]]:
    return [row for block in open_raw(path, columns).blocks() for row in block.table.rows()]


field = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6)


@settings(max_examples=75, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    table=st.integers(2, 4).flatmap(lambda width: st.lists(st.tuples(*[field] * width), min_size=1, max_size=12)),
    block_bytes=st.integers(1, 80),
    last_line_ends=st.booleans(),
)
def test_blocks_of_any_size_hold_what_the_csv_module_reads(tmp_path, monkeypatch, table, block_bytes, last_line_ends):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
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
        ("a,b\n1,2\n3\n4,5\n", "table.csv:3: 1 field, or an empty line; expected 2"),
        ("a,b\n1,2\n3,4,5\n", "table.csv:3: 3 fields; expected 2"),
        ("a,b\n1,2\n\n3,4\n", "table.csv:3: 1 field, or an empty line; expected 2"),
        ('a,b\n1,"2\n2"\n3\n', "table.csv:4: 1 field, or an empty line; expected 2"),
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
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 16)
    path = tmp_path / "table.tsv"
    path.write_text("a\tb\n" + "1\t2\n" * 50 + "3\n")
    with pytest.raises(RawError, match=r"table\.tsv:52: 1 field, or an empty line"):
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


GOOD = [("1", "ü"), ("2", "x y")]


def written(tmp_path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data", "format"),
    [
        ("bom.csv", "\ufeffa,b\n1,ü\n2,x y\n".encode(), Format()),
        ("semicolon.csv", "a;b\n1;ü\n2;x y\n".encode(), Format(separator=";")),
        ("pipe.txt", "a|b\n1|ü\n2|x y\n".encode(), Format(separator="|")),
        ("latin.csv", "a,b\n1,ü\n2,x y\n".encode("latin-1"), Format(encoding="latin-1")),
        ("excel.txt", "a\tb\r\n1\tü\r\n2\tx y\r\n".encode("utf-16"), Format(encoding="utf-16")),
        ("CAPITALS.CSV", "a,b\n1,ü\n2,x y\n".encode(), Format()),
        ("CAPITALS.TSV.GZ", gzip.compress("a\tb\n1\tü\n2\tx y\n".encode(), mtime=0), Format()),
        ("r.csv", '"","a","b"\n"1","1","ü"\n"2","2","x y"\n'.encode(), Format()),  # R's row names have no name
        ("twice.csv", "a,c,c,b\n1,x,y,ü\n2,,,x y\n".encode(), Format()),
        ("no-end.csv", "a,b\n1,ü\n2,x y".encode(), Format()),
        ("any.dat", "a;b\n1;ü\n2;x y\n".encode(), Format(separator=";")),
    ],
)
@pytest.mark.parametrize("block_bytes", [3, 1 << 20])
def test_files_as_tools_write_them_are_read(tmp_path, monkeypatch, name, data, format, block_bytes):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
    path = written(tmp_path, name, data)
    assert [row for block in open_raw(path, ("a", "b"), format=format).blocks() for row in block.table.rows()] == GOOD


@pytest.mark.parametrize(
    ("name", "data", "format", "message"),
    [
        ("s.csv", b"a;b\n1;2\n", Format(), r"s\.csv:1: no column 'a'.*; is separator = ';' meant\?"),
        (
            "l.csv",
            "a,b\n1,2\nü,3\n".encode("latin-1"),
            Format(),
            r"l\.csv:3: isn't UTF-8; expected encoding = 'latin-1'",
        ),
        ("u.csv", "a,b\n1,2\n".encode("utf-16"), Format(), r"is UTF-16, as Excel's Unicode text is"),
        ("w.csv", b"a,b\n1,\x81\n", Format(encoding="cp1252"), r"w\.csv: isn't cp1252"),
        ("q.csv", b'a,b\n1,2\n3,5" disk\n4,6\n', Format(), r"q\.csv:3: a quote within a field.*quoted = false"),
        ("b.csv", b'a,b\n1,"a \\"quoted\\" b"\n', Format(), r"b\.csv:2: a quote within a field"),
        ("e.csv", b'a,b\n1,"x" y\n', Format(), r"e\.csv:2: a quote within a field"),
        ("cr.csv", b"a,b\r1,2\r3,4\r", Format(), r"cr\.csv: its lines end in CR alone; expected LF or CR LF"),
    ],
)
@pytest.mark.parametrize("block_bytes", [3, 1 << 20])
def test_files_that_cannot_be_read_say_what_to_do(tmp_path, monkeypatch, name, data, format, message, block_bytes):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block_bytes)
    path = written(tmp_path, name, data)
    with pytest.raises(RawError, match=message):
        list(open_raw(path, ("a", "b"), format=format).blocks())


def test_quotes_are_characters_where_they_are_said_to_be(tmp_path):
    path = written(tmp_path, "q.tsv", b'a\tb\n1\t5" disk\n"2\tx"y"\n')
    blocks = open_raw(path, ("a", "b"), format=Format(quoted=False)).blocks()
    assert [row for block in blocks for row in block.table.rows()] == [("1", '5" disk'), ('"2', 'x"y"')]


def test_a_quote_that_never_closes_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 100)
    monkeypatch.setattr(delimited, "LONGEST_ROW", 1 << 16)
    path = written(tmp_path, "q.csv", b'a,b\n1,2\n3,"' + b"x\n" * (1 << 17))
    with pytest.raises(RawError, match=r"q\.csv:3: a quote that opens here is never closed within 64 KiB"):
        list(open_raw(path, ("a", "b")).blocks())


def test_a_line_that_never_ends_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(delimited, "LONGEST_ROW", 1 << 16)
    path = written(tmp_path, "l.csv", b"a,b\n1,2\n3," + b"x" * (1 << 17))
    with pytest.raises(RawError, match=r"l\.csv:3: a line that doesn't end within 64 KiB; expected LF or CR LF"):
        list(open_raw(path, ("a", "b")).blocks())


def test_what_means_missing_is_missing(tmp_path):
    path = written(tmp_path, "m.csv", b"a,b,c\nNA,NaN,1\n\\N,,NaN\nx,nan,NA\n")
    format = Format(null_values=("NA", "\\N", "NaN", "nan"))
    (block,) = open_raw(path, ("a", "b", "c"), ("c",), format=format).blocks()
    assert block.table.rows() == [(None, None, 1.0), (None, None, None), ("x", None, None)]
    frame = pl.DataFrame({"a": ["NA", "x"], "b": [float("nan"), 2.0], "c": [None, 3]})
    frame.write_parquet(tmp_path / "m.parquet")
    (block,) = open_raw(tmp_path / "m.parquet", ("a", "b", "c"), ("c",), format=format).blocks()
    assert block.table.rows() == [(None, None, None), ("x", "2", 3.0)]


def test_a_macs_zip_holds_one_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.CSV.Zip", "w") as archive:
        archive.writestr("t.csv", "a,b\n1,ü\n2,x y\n")
        archive.writestr("__MACOSX/._t.csv", b"\x00\x05")
        archive.writestr(".DS_Store", b"\x00")
    assert rows_of(tmp_path / "t.CSV.Zip", ("a", "b")) == GOOD


def test_a_zip_with_a_password_is_refused(tmp_path):
    path = tmp_path / "t.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t.csv", "a,b\n1,2\n")
    data = bytearray(path.read_bytes())
    for flags in (6, data.index(b"PK\x01\x02") + 8):  # of the file, and of its entry in the directory
        data[flags] |= 1
    path.write_bytes(data)
    with pytest.raises(RawError, match=r"t\.csv\.zip: can't be unpacked: .*; expected it without a password"):
        open_raw(path, ("a", "b"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_directory_of_parts_is_one_file(tmp_path, kind):
    parts = tmp_path / "clicks[2024]"
    parts.mkdir()
    for i in range(3):
        frame = pl.DataFrame({"a": [f"{i}", f"{i}"], "b": ["x", "y"]})
        write = frame.write_csv if kind == "csv" else frame.write_parquet
        write(parts / f"part-0000{i}.{kind}")
    (parts / "_SUCCESS").touch()
    (parts / ".part-00000.crc").touch()
    reader = open_raw(parts, ("a", "b"))
    found = [row for block in reader.blocks() for row in block.table.rows()]
    assert found == [(f"{i}", value) for i in range(3) for value in "xy"]
    assert reader.where(3) == reader.readers[1].where(1)
    assert set(reader.description) == {"name", "bytes", "sha256"}
    (parts / "day=1").mkdir()
    with pytest.raises(RawError, match="has directories; expected a directory of files, and of nothing else"):
        open_raw(parts, ("a", "b"))


def test_typed_values_of_parquet_are_what_they_are(tmp_path):
    columns = {
        "int": pl.Series([5, 0, None]),
        "float": pl.Series([5.0, -0.0, 1.5]),
        "bool": pl.Series([True, False, None]),
        "one": pl.Series([1, 0, None], dtype=pl.Int8),
        "decimal": pl.Series(["5.00", "0.00", "1.50"]).cast(pl.Decimal(10, 2)),
        "category": pl.Series(["5", "0", None], dtype=pl.Categorical),
        "date": pl.Series(["2024-01-02", "2024-01-03", None]).str.to_date(),
        "big": pl.Series([2**62 + 1, 2**53 + 1, 1]),
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "t.parquet")
    (block,) = open_raw(tmp_path / "t.parquet", tuple(columns)).blocks()
    table = block.table
    assert table["int"].to_list() == ["5", "0", None]
    assert table["float"].to_list() == ["5", "0", "1.5"]
    assert table["bool"].to_list() == table["one"].to_list() == ["1", "0", None]
    assert table["decimal"].to_list()[:2] == ["5", "0"]
    assert table["category"].to_list() == ["5", "0", None]
    assert table["date"].to_list() == ["2024-01-02", "2024-01-03", None]
    assert table["big"].to_list() == [str(2**62 + 1), str(2**53 + 1), "1"]


def test_a_damaged_or_nested_parquet_file_is_named(tmp_path):
    frame = pl.DataFrame({"a": ["x"] * 5000, "tags": [["a", "b"]] * 5000})
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(RawError, match=r"t\.parquet: column 'tags' is of List\(String\); expected single values"):
        open_raw(tmp_path / "t.parquet", ("a", "tags"))
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[10:40] = b"\xff" * 30
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(RawError, match=r"t\.parquet: row 1, or after it: damaged"):
        list(open_raw(tmp_path / "t.parquet", ("a",)).blocks())


@pytest.mark.parametrize("name", ["*", "^a.*$"])
def test_a_column_of_parquet_that_reads_as_a_pattern_is_refused(tmp_path, name):
    pl.DataFrame({"a": [1], name: [2]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(RawError, match=r"t\.parquet: column '.*' reads as a pattern; expected another name"):
        open_raw(tmp_path / "t.parquet", ("a", name))
