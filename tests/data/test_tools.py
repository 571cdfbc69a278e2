"""The same rows as the tools of the world write them: the same columns, or an error that says what to do.

And what mutated bytes of such files may do: nothing but an error of ours. DLRM_MLET_FUZZ says how many are tried.
"""

import dataclasses
import gzip
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from dlrm_mlet.data.blocks import RawError
from dlrm_mlet.data.columns import load
from dlrm_mlet.data.datasets import Dataset
from dlrm_mlet.data.preprocess import preprocess
from dlrm_mlet.data.schema import ColumnsError
from dlrm_mlet.toml import ConfigError

MUTATIONS = int(os.environ.get("DLRM_MLET_FUZZ", "240"))
OWN = Dataset("own", "clicked", ("price",), ("user", "city"), split="ordered", integer=("user",))
ROWS = 60


def table() -> pd.DataFrame:
    rng = random.Random(0)
    cities = ["Köln", "São Paulo", "a, b", 'the "city"', "x|y", "Ōsaka", None]
    return pd.DataFrame(
        {
            "user": pd.array([rng.randrange(9) if rng.random() < 0.9 else None for _ in range(ROWS)], dtype="Int64"),
            "price": [round(rng.random() * 9, 3) if rng.random() < 0.9 else None for _ in range(ROWS)],
            "city": [rng.choice(cities) for _ in range(ROWS)],
            "clicked": [i % 2 for i in range(ROWS)],
        }
    )


def pandas_csv(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    rows.to_csv(path / "rows.csv", index=False)
    return path / "rows.csv", OWN


def pandas_csv_with_its_index_and_floats(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    rows.astype({"user": "float64"}).to_csv(path / "rows.csv")
    return path / "rows.csv", OWN


def pandas_parquet(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    rows.astype({"user": "float64"}).to_parquet(path / "rows.parquet")
    return path / "rows.parquet", OWN


def pandas_categories(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    rows.astype({"city": "category", "clicked": bool}).to_parquet(path / "rows.PARQUET", compression="gzip")
    return path / "rows.PARQUET", OWN


def polars_csv(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    pl.from_pandas(rows).write_csv(path / "rows.csv", quote_style="always")
    return path / "rows.csv", OWN


def polars_parts(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    (path / "parts").mkdir()
    for i in range(3):
        pl.from_pandas(rows[i * 20 : (i + 1) * 20]).write_parquet(path / "parts" / f"{i}.parquet")
    return path / "parts", OWN


def excel(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    rows.to_csv(path / "Rows.CSV", index=False, sep=";", encoding="utf-8-sig", lineterminator="\r\n")
    return path / "Rows.CSV", dataclasses.replace(OWN, separator=";")


def excel_unicode_text(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    rows.to_csv(path / "rows.txt", index=False, sep="\t", encoding="utf-16", lineterminator="\r\n")
    return path / "rows.txt", dataclasses.replace(OWN, encoding="utf-16")


def hive(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    rows.to_csv(path / "rows.tsv", index=False, header=False, sep="\t", na_rep="\\N", quoting=3, quotechar="\x01")
    return path / "rows.tsv", dataclasses.replace(OWN, columns=tuple(rows.columns), null_values=("\\N",))


def r(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    named = rows.assign(clicked=rows.clicked.map({0: "FALSE", 1: "TRUE"}))
    named.index = named.index + 1
    named.to_csv(path / "rows.csv", na_rep="NA", quoting=2, index_label="")
    return path / "rows.csv", dataclasses.replace(OWN, null_values=("NA",))


def spark(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    parts = path / "rows.csv"
    parts.mkdir()
    for i in range(3):
        text = rows[i * 20 : (i + 1) * 20].to_csv(index=False)
        (parts / f"part-0000{i}-c000.csv.gz").write_bytes(gzip.compress(text.encode()))
        (parts / f".part-0000{i}-c000.csv.gz.crc").write_bytes(b"crc\x00")
    (parts / "_SUCCESS").touch()
    return parts, OWN


def a_mac(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    with zipfile.ZipFile(path / "rows.csv.zip", "w") as archive:
        archive.writestr("rows.csv", rows.to_csv(index=False))
        archive.writestr("__MACOSX/._rows.csv", b"\x00\x05\x16\x07")
    return path / "rows.csv.zip", OWN


def latin_1(path: Path, rows: pd.DataFrame) -> tuple[Path, Dataset]:
    rows.replace({"city": {"Ōsaka": "Osaka"}}).to_csv(path / "rows.csv", index=False, sep="|", encoding="latin-1")
    return path / "rows.csv", dataclasses.replace(OWN, separator="|", encoding="latin-1")


TOOLS = [
    pandas_csv, pandas_csv_with_its_index_and_floats, pandas_parquet, pandas_categories, polars_csv, polars_parts,
    excel, excel_unicode_text, hive, r, spark, a_mac, latin_1,
]  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_every_tool_gives_the_same_columns(tmp_path, tool):
    source, dataset = tool(tmp_path, table())
    schema = preprocess(dataset, tmp_path / "out", source)
    columns = load(tmp_path / "out")
    rows = table()
    users = ["" if pd.isna(value) else str(value) for value in rows.user]
    cities = ["" if value is None or pd.isna(value) else value for value in rows.city]
    if tool is latin_1:
        cities = [city.replace("Ō", "O") for city in cities]
    np.testing.assert_allclose(columns.dense[:, 0], np.log1p(rows.price.fillna(0)), rtol=1e-6)
    assert columns.label.tolist() == rows.clicked.tolist()
    for f, (name, values) in enumerate((("user", users), ("city", cities))):
        known = pl.read_ipc(tmp_path / "out" / "vocabulary" / f"{name}.arrow")[name].to_list()
        assert [known[id] for id in columns.sparse[:, f]] == values
    assert schema.rows == {"train": 48, "validation": 6, "test": 6}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path, rows: rows.to_csv(path, index=False, sep=";"), "is separator = ';' meant"),
        (lambda path, rows: rows.to_csv(path, index=False, encoding="utf-16"), 'expected encoding = "utf-16"'),
        (lambda path, rows: rows.to_csv(path, encoding="cp1252", errors="replace"), "encoding = 'latin-1'"),
        (lambda path, rows: rows.to_csv(path, index=False, decimal=","), "expected a number"),
        (lambda path, rows: rows.to_csv(path, index=False, na_rep="NA"), "is 'NA'; expected a"),
        (lambda path, rows: rows.to_csv(path, index=False, header=False), "no column 'clicked'"),
        (lambda path, rows: rows.assign(clicked=2).to_csv(path, index=False), "around there: '2' 60 times"),
        (lambda path, rows: rows.to_csv(path, quoting=3, escapechar="\\"), "a quote within a field|fields; exp"),
        (lambda path, rows: rows.to_csv(path, index=False, lineterminator="\r"), "end in CR alone"),
        (lambda path, rows: path.write_bytes(b""), "empty file"),
        (lambda path, rows: path.mkdir(), "expected a directory of files"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_refused_with_what_to_do(tmp_path, write, message):
    write(tmp_path / "rows.csv", table())
    with pytest.raises(RawError, match=message):
        preprocess(OWN, tmp_path / "out", tmp_path / "rows.csv")
    assert not (tmp_path / "out").exists()


PIECES = [
    b'"', b",", b"\n", b"\r", b"\x00", b"\xff", b"\\", b"\t", b"|", b";", b"-", b"1e999", b"NaN", "ü".encode(),
    b"\xef\xbb\xbf",
]  # fmt: skip


def mutated(rng: random.Random, whole: bytes) -> bytes:
    """A few bytes changed, cut, doubled, or put in: those that mean something to a parser more often than others."""
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        piece = rng.choice([*PIECES, bytes([rng.randrange(256)])])
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = piece
            case 1:
                data[at:at] = piece
            case 2:
                del data[at : at + rng.randrange(1, 30)]
            case 3:
                data = data[:at]
            case _:
                data[at:at] = data[at : at + rng.randrange(1, 60)]
    return bytes(data)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_no_mutation_escapes(tmp_path, tool: Callable[[Path, pd.DataFrame], tuple[Path, Dataset]]):
    source, dataset = tool(tmp_path, table())
    richer = dataclasses.replace(dataset, split="random", min_count=2)
    files = sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]
    whole = {file: file.read_bytes() for file in files}
    rng, read = random.Random(tool.__name__), 0
    for i in range(MUTATIONS // len(TOOLS)):
        file = rng.choice(files)
        file.write_bytes(mutated(rng, whole[file]))
        try:
            preprocess(richer if i % 2 else dataset, tmp_path / "out", source, force=True)
            load(tmp_path / "out")
            read += 1
        except (RawError, ColumnsError, ConfigError) as error:
            assert str(source) in str(error) or str(tmp_path) in str(error), error
        file.write_bytes(whole[file])
    assert read < MUTATIONS // len(TOOLS) or "parquet" not in source.name
