"""A raw file, delimited text or Parquet -> tables of text of bounded size, each row checked for its fields."""

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
BLOCK_BYTES = 64 << 20
PARQUET_ROWS = 1 << 18


class RawError(ValueError):
    """Raw input that can't be read as the data set it is said to be: names the file, the line and what was expected."""


@dataclass(frozen=True)
class Block:
    """Some rows of a raw file: `table` with one text column (null: missing) for each field."""

    table: pl.DataFrame
    first_row: int
    """The place of the block's first row among the file's rows, from 0."""


class Reader(Protocol):
    """What the formats have in common: `blocks()` once, then `description` of what was read."""

    path: Path
    description: dict[str, str | int]

    def blocks(self) -> Iterator[Block]:
        """The file's rows in order. Raises RawError at the first row that isn't one."""

    def where(self, row: int) -> str:
        """How a person finds the row: file and line."""


def open_raw(path: Path, columns: tuple[str, ...]) -> Reader:
    """A reader of `columns` of the file, by its ending. Raises RawError where the file or a column is missing."""
    if not path.is_file():
        raise RawError(f"{path}: no such file; expected a raw file to read")
    if path.suffix == ".parquet":
        return ParquetReader(path, columns)
    if path.suffix in SEPARATORS:
        return DelimitedReader(path, columns, SEPARATORS[path.suffix])
    raise RawError(f"{path}: unknown ending {path.suffix!r}; expected .parquet, {', '.join(SEPARATORS)}")


class ParquetReader:
    """Rows of a Parquet file; values of all types become text."""

    def __init__(self, path: Path, columns: tuple[str, ...]):
        self.path, self.columns = path, columns
        try:
            self.schema = pl.read_parquet_schema(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise RawError(f"{path}: not a Parquet file: {error}") from None
        check_columns(path, list(self.schema), columns)
        self.description: dict[str, str | int] = {"name": path.name, "bytes": path.stat().st_size}

    def blocks(self) -> Iterator[Block]:
        """See Reader."""
        row, lazy = 0, pl.scan_parquet(self.path).select(self.columns)
        # a Boolean is 0 or 1 here, as in the delimited files
        lazy = lazy.with_columns(pl.selectors.boolean().cast(pl.Int8)).cast(pl.String)
        while (table := lazy.slice(row, PARQUET_ROWS).collect()).height:
            yield Block(table, row)
            row += table.height
        self.description["sha256"] = _sha256(self.path)

    def where(self, row: int) -> str:
        """See Reader."""
        return f"{self.path}: row {row + 1}"


class DelimitedReader:
    """Rows of a file of delimited text with a header: read once, in blocks, each row's fields counted.

    The count is ours because the parser takes a short row for one whose last values are missing.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], separator: str):
        self.path, self.columns, self.separator = path, columns, separator
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            self.header = next(csv.reader(file, delimiter=separator), [])
        if not self.header:
            raise RawError(f"{path}: empty file; expected a header that names the columns")
        check_columns(path, self.header, columns)
        self.description: dict[str, str | int] = {}

    def blocks(self) -> Iterator[Block]:
        """See Reader."""
        digest, size, row = hashlib.sha256(), 0, 0
        remainder = b""
        header_to_skip = True
        with self.path.open("rb") as file:
            while True:
                chunk = file.read(BLOCK_BYTES)
                digest.update(chunk)
                size += len(chunk)
                text = remainder + chunk
                if not text:
                    break
                if not chunk and not text.endswith(b"\n"):
                    text += b"\n"  # the last line may lack its end
                ends, fields = self._rows(text)
                if not ends.size:
                    if not chunk:
                        raise RawError(f"{self.where(row)}: a quote that opens here is never closed")
                    remainder = text
                    continue
                text, remainder = text[: ends[-1] + 1], text[ends[-1] + 1 :]
                if header_to_skip:
                    text, fields, header_to_skip = text[ends[0] + 1 :], fields[1:], False
                if fields.size:
                    yield Block(self._parse(text, fields, row), row)
                    row += fields.size
        self.description |= {"name": self.path.name, "bytes": size, "sha256": digest.hexdigest()}

    def _rows(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Where each whole row of the text ends, and its number of fields; a quoted separator separates nothing."""
        raw = np.frombuffer(text, np.uint8)
        is_end, is_separator = raw == ord("\n"), raw == ord(self.separator)
        if b'"' in text:
            outside = np.bitwise_xor.accumulate(raw == ord('"')) == 0
            is_end &= outside
            is_separator &= outside
        ends = np.flatnonzero(is_end)
        if not ends.size:
            return ends, ends
        starts = np.concatenate(([0], ends[:-1] + 1))
        return ends, np.add.reduceat(is_separator[: ends[-1]], starts, dtype=np.int64) + 1

    def _parse(self, text: bytes, fields: np.ndarray, first_row: int) -> pl.DataFrame:
        wrong = np.flatnonzero(fields != len(self.header))
        if wrong.size:
            row = int(wrong[0])
            raise RawError(f"{self.where(first_row + row)}: {fields[row]} fields; expected {len(self.header)}")
        try:
            table = pl.read_csv(
                text, has_header=False, new_columns=self.header, separator=self.separator, infer_schema=False
            )
        except pl.exceptions.PolarsError as error:
            raise RawError(f"{self.where(first_row)}, or one of the {fields.size - 1} rows after it: {error}") from None
        return table.select(self.columns)

    def where(self, row: int) -> str:
        """See Reader; counts lines as a text editor does, also where a quoted value holds line ends."""
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = csv.reader(file, delimiter=self.separator)
            for _ in range(row + 1):  # the header is a row too
                next(rows, None)
            return f"{self.path}:{rows.line_num + 1}"


def check_columns(path: Path, found: list[str], columns: tuple[str, ...]) -> None:
    """Raises RawError unless each of `columns` is found once."""
    for column in columns:
        if found.count(column) != 1:
            often = "no" if column not in found else "more than one"
            raise RawError(f"{path}:1: {often} column {column!r}; expected it once among {', '.join(found)}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
