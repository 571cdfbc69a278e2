"""Parquet files -> blocks of rows."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlrm_mlet.data.blocks import Block, RawError, check_columns, first_line
from dlrm_mlet.data.datasets import Format
from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl

PARQUET_ROWS = 1 << 18
"""Rows of a block."""


class ParquetReader:
    """Rows of a Parquet file; numbers stay numbers where they are asked for, all other values become text.

    A typed value is what it is: 5 of integers and 5.0 of floats, True and 1, are the same text.
    """

    def __init__(
        self, path: Path, columns: tuple[str, ...], numbers: tuple[str, ...], format: Format, lists: tuple[str, ...]
    ):
        self.path, self.columns, self.numbers, self.format = path, columns, numbers, format
        try:
            with path.open("rb") as file:  # a path could be taken for a pattern
                self.schema = pl.read_parquet_schema(file)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise RawError(f"{path}: not a Parquet file: {error}") from None
        self.names = list(self.schema)
        check_columns(path, self.names, columns)
        for name in columns:
            if name == "*" or (name.startswith("^") and name.endswith("$")):
                raise RawError(f"{path}: column {name!r} reads as a pattern; expected another name for it")
            kind = self.schema[name]
            is_list = isinstance(kind, pl.List | pl.Array)
            inner = kind.inner if is_list and name in lists else kind  # type: ignore[attr-defined]
            if inner.is_nested() or inner in (pl.Binary, pl.Object):
                hint = "; is it one of multi_valued?" if is_list else ""
                raise RawError(f"{path}: column {name!r} is of {kind}; expected single values{hint}")
        self.description: dict[str, str | int] = {"name": path.name, "bytes": path.stat().st_size}

    def blocks(self) -> Iterator[Block]:
        """See Reader."""
        row, lazy = 0, pl.scan_parquet(self.path, glob=False).select(self.columns)
        lazy = lazy.with_columns(self._read(name) for name in self.columns)
        try:
            rows = pl.scan_parquet(self.path, glob=False).select(pl.len()).collect().item()
            while (table := lazy.slice(row, PARQUET_ROWS).collect()).height:
                yield Block(table, row, (row + table.height) / rows)
                row += table.height
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise RawError(f"{self.where(row)}, or after it: damaged ({first_line(error)})") from None
        self.description["sha256"] = _sha256(self.path)

    def _read(self, name: str) -> pl.Expr:
        kind = self.schema[name]
        if isinstance(kind, pl.Array):
            return pl.col(name).arr.to_list().list.eval(self._values(pl.element(), name, kind.inner))
        if isinstance(kind, pl.List):
            return pl.col(name).list.eval(self._values(pl.element(), name, kind.inner))
        return self._values(pl.col(name), name, kind).alias(name)

    def _values(self, column: pl.Expr, name: str, kind: Any) -> pl.Expr:
        if kind == pl.Boolean:
            column, kind = column.cast(pl.Int8), pl.Int8()
        if kind.is_float():
            column = column.fill_nan(None)
        if name in self.numbers and kind.is_numeric():
            return column.cast(pl.Float64)
        if kind.is_float() or kind.is_decimal():
            number = column.cast(pl.Float64)
            whole = (number == number.floor()) & (number.abs() < 2**53)
            integer = number.cast(pl.Int64, strict=False).cast(pl.String)
            return pl.when(whole).then(integer).otherwise(column.cast(pl.String))
        text, nulls = column.cast(pl.String), self.format.null_values
        return pl.when(text.is_in(nulls)).then(None).otherwise(text) if nulls else text

    def where(self, row: int) -> str:
        """See Reader."""
        return f"{self.path}: row {row + 1}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
