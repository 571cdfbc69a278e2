"""What readers of raw files have in common: blocks of rows as text, and the error that says where a file is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl


class RawError(ValueError):
    """Raw input that can't be read as the data set it is said to be: names the file, the line and what was expected."""


@dataclass(frozen=True)
class Block:
    """Some rows of a raw file: a column of text for each field (null: missing).

    Where all of a block's values parse, a column that was asked for as numbers is of floats instead, and one that was
    asked for as hexadecimal is of 32-bit unsigned numbers.
    """

    table: pl.DataFrame
    first_row: int
    """The place of the block's first row among the file's rows, from 0."""
    read: float
    """How much of the file is read with this block, from 0 to 1."""


class Reader(Protocol):
    """What the formats have in common: `blocks()` once, then `description` of what was read."""

    path: Path
    names: list[str]
    """Of all columns that the file has, or the first one of a directory."""
    description: dict[str, str | int]
    """name; bytes and sha256, of the text as it is when it isn't compressed."""

    def blocks(self) -> Iterator[Block]:
        """The file's rows in order. Raises RawError at the first row that isn't one."""

    def where(self, row: int) -> str:
        """How a person finds the row: file and line."""


def check_columns(path: Path, found: list[str], columns: tuple[str, ...], separator: str = "") -> None:
    """Raises RawError unless each of `columns` is found once."""
    for column in columns:
        if found.count(column) != 1:
            often = "no" if column not in found else "more than one"
            other = next((s for s in ",;\t|" if len(found) == 1 and s in found[0] and s != separator), None)
            hint = "" if other is None else f"; is separator = {other!r} meant?"
            raise RawError(f"{path}:1: {often} column {column!r}; expected it once among {', '.join(found)}{hint}")


def first_line(error: BaseException) -> str:
    """What polars says of an error before it goes into details."""
    return str(error).partition("\n")[0]
