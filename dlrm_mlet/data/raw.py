"""A raw file, delimited text (also .gz or .zip) or Parquet -> tables of text of bounded size, each row checked."""

import csv
import gzip
import hashlib
import io
import queue
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import numpy as np

from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
COMPRESSED = (".gz", ".zip")
BLOCK_BYTES = 16 << 20
PARQUET_ROWS = 1 << 18
T = TypeVar("T")


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
    description: dict[str, str | int]
    """name; bytes and sha256, of the text as it is when it isn't compressed."""

    def blocks(self) -> Iterator[Block]:
        """The file's rows in order. Raises RawError at the first row that isn't one."""

    def where(self, row: int) -> str:
        """How a person finds the row: file and line."""


def open_raw(
    path: Path,
    columns: tuple[str, ...],
    numbers: tuple[str, ...] = (),
    hexadecimal: tuple[str, ...] = (),
    header: tuple[str, ...] = (),
) -> Reader:
    """A reader of `columns` of the file, by its ending.

    Those of `numbers` and `hexadecimal` (8 lowercase digits) come parsed where they parse. `header` names the fields of
    text that has no header line.

    Raises RawError where the file or a column is missing.
    """
    if not path.is_file():
        raise RawError(f"{path}: no such file; expected a raw file to read")
    if path.suffix == ".parquet":
        return ParquetReader(path, columns, numbers)
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    if suffix in SEPARATORS or (header and not suffix):
        return DelimitedReader(path, columns, numbers, hexadecimal, SEPARATORS.get(suffix, "\t"), header)
    endings = ", ".join((".parquet", *SEPARATORS))
    raise RawError(f"{path}: unknown ending {suffix!r}; expected {endings}, the last three also with .gz or .zip")


def fields_of_first_line(path: Path) -> int:
    """How many fields the first line of delimited text has, by its ending or tabs."""
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    with path.open("rb") as file, _decompressed(file, path) as text:
        return text.readline().decode("utf-8", "replace").count(SEPARATORS.get(suffix, "\t")) + 1


class ParquetReader:
    """Rows of a Parquet file; numbers stay numbers where they are asked for, all other values become text."""

    def __init__(self, path: Path, columns: tuple[str, ...], numbers: tuple[str, ...]):
        self.path, self.columns, self.numbers = path, columns, numbers
        try:
            self.schema = pl.read_parquet_schema(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise RawError(f"{path}: not a Parquet file: {error}") from None
        check_columns(path, list(self.schema), columns)
        self.description: dict[str, str | int] = {"name": path.name, "bytes": path.stat().st_size}

    def blocks(self) -> Iterator[Block]:
        """See Reader."""
        row, lazy = 0, pl.scan_parquet(self.path).select(self.columns)
        rows = lazy.select(pl.len()).collect().item()
        # a Boolean is 0 or 1 here, as in the delimited files
        lazy = lazy.with_columns(pl.selectors.boolean().cast(pl.Int8))
        numeric = [name for name in self.numbers if self.schema[name].is_numeric() or self.schema[name] == pl.Boolean]
        lazy = lazy.with_columns(pl.col(numeric).cast(pl.Float64), pl.exclude(numeric).cast(pl.String))
        while (table := lazy.slice(row, PARQUET_ROWS).collect()).height:
            yield Block(table, row, (row + table.height) / rows)
            row += table.height
        self.description["sha256"] = _sha256(self.path)

    def where(self, row: int) -> str:
        """See Reader."""
        return f"{self.path}: row {row + 1}"


class DelimitedReader:
    """Rows of a file of delimited text: read once, in blocks, each row's fields counted.

    The count is ours because the parser takes a short row for one whose last values are missing. Text without a
    header line is a machine's: nothing is quoted in it, and its last line has an end, or the file was cut.
    """

    def __init__(
        self,
        path: Path,
        columns: tuple[str, ...],
        numbers: tuple[str, ...],
        hexadecimal: tuple[str, ...],
        separator: str,
        header: tuple[str, ...],
    ):
        self.path, self.columns, self.separator = path, columns, separator
        self.numbers, self.hexadecimal = numbers, hexadecimal
        self.has_header = not header
        self.description: dict[str, str | int] = {}
        self.header = list(header) or self._read_header()
        check_columns(path, self.header, columns)

    def _read_header(self) -> list[str]:
        with self._text() as text:
            header = next(csv.reader(text, delimiter=self.separator), [])
        if not header:
            raise RawError(f"{self.path}: empty file; expected a header that names the columns")
        return header

    @contextmanager
    def _text(self) -> Iterator[io.TextIOWrapper]:
        with self.path.open("rb") as file, _decompressed(file, self.path) as text:
            yield io.TextIOWrapper(text, "utf-8", "replace", newline="")

    def blocks(self) -> Iterator[Block]:
        """See Reader."""
        row, remainder, header_to_skip = 0, b"", self.has_header
        for chunk, read in ahead(self._chunks()):
            text = remainder + chunk
            if not chunk and text and not text.endswith(b"\n"):
                if not self.has_header:
                    raise RawError(f"{self.where(row)}: the last line has no end; the file may have been cut there")
                text += b"\n"
            end = self._last_row_end(text)
            if not end and text and not chunk:
                raise RawError(f"{self.where(row)}: a quote that opens here is never closed")
            remainder = text[end:]
            if end:
                table = self._parse(text[:end], header_to_skip, row)
                header_to_skip = False
                if table.height:
                    yield Block(table, row, read)
                    row += table.height

    def _chunks(self) -> Iterator[tuple[bytes, float]]:
        """The file's bytes and how much of it is read with them; the last are none. Then describes the file."""
        digest, size = hashlib.sha256(), 0
        with self.path.open("rb") as file, _decompressed(file, self.path) as text:
            while chunk := text.read(BLOCK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                yield chunk, file.tell() / self.path.stat().st_size
        self.description |= {"name": self.path.name, "bytes": size, "sha256": digest.hexdigest()}
        yield b"", 1.0

    def _quoted(self, text: bytes) -> bool:
        return self.has_header and b'"' in text

    def _last_row_end(self, text: bytes) -> int:
        """Bytes of the text that are whole rows."""
        if self._quoted(text):
            ends, _ = self._rows(text)
            return int(ends[-1]) + 1 if ends.size else 0
        return text.rfind(b"\n") + 1

    def _rows(self, text: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Where each whole row of the text ends, and its number of fields; a quoted separator separates nothing."""
        raw = np.frombuffer(text, np.uint8)
        is_end, is_separator = raw == ord("\n"), raw == ord(self.separator)
        if self._quoted(text):
            outside = np.bitwise_xor.accumulate(raw == ord('"')) == 0
            is_end &= outside
            is_separator &= outside
        ends = np.flatnonzero(is_end)
        return ends, np.diff(np.searchsorted(np.flatnonzero(is_separator), ends), prepend=0) + 1

    def _parse(self, text: bytes, skip_header: bool, first_row: int) -> pl.DataFrame:
        """Whole rows as a table. Raises RawError at the first one whose fields aren't the header's."""
        raw = np.frombuffer(text, np.uint8)
        rows, separators = np.count_nonzero(raw == ord("\n")), np.count_nonzero(raw == ord(self.separator))
        if self._quoted(text) or separators != rows * (len(self.header) - 1):
            self._check_fields(text, skip_header, first_row)
        # else no row is short unless another is long, at which the parser fails
        schema = {name: pl.Float64 if name in self.numbers else pl.String for name in self.header}
        try:
            return self._with_hexadecimal(self._read(text, skip_header, schema), text)
        except pl.exceptions.PolarsError:
            self._check_fields(text, skip_header, first_row)
        try:
            return self._read(text, skip_header, dict.fromkeys(self.header, pl.String))  # a number that is none
        except pl.exceptions.PolarsError as error:
            raise RawError(f"{self.where(first_row)}, or one of the {rows - 1} rows after it: {error}") from None

    def _with_hexadecimal(self, table: pl.DataFrame, text: bytes) -> pl.DataFrame:
        """The hexadecimal columns as numbers, but for those in which a value isn't of 8 lowercase digits."""
        # the parser takes capitals and a plus too: a look at the bytes is cheaper than one at each value
        if any(character in text for character in b"ABCDEF+"):
            return table
        columns = pl.col(self.hexadecimal)
        parsed = table.lazy().with_columns(columns.str.to_integer(base=16, dtype=pl.UInt32, strict=False)).collect()
        wrong = [
            name
            for name in self.hexadecimal
            if parsed[name].null_count() != table[name].null_count() or (table[name].str.len_bytes() != 8).any()
        ]
        return parsed.with_columns(table.select(wrong)) if wrong else parsed

    def _check_fields(self, text: bytes, skip_header: bool, first_row: int) -> None:
        _, fields = self._rows(text)
        wrong = np.flatnonzero(fields[int(skip_header) :] != len(self.header))
        if wrong.size:
            row = int(wrong[0])
            found = fields[int(skip_header) + row]
            raise RawError(f"{self.where(first_row + row)}: {found} fields; expected {len(self.header)}")

    def _read(self, text: bytes, skip_header: bool, schema: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
        return pl.read_csv(
            text,
            has_header=skip_header,
            schema=schema,
            columns=[self.header.index(name) for name in self.columns],
            separator=self.separator,
            quote_char='"' if self.has_header else None,
        ).select(self.columns)

    def where(self, row: int) -> str:
        """See Reader; counts lines as a text editor does, also where a quoted value holds line ends."""
        if not self.has_header:
            return f"{self.path}:{row + 1}"
        with self._text() as text:
            rows = csv.reader(text, delimiter=self.separator)
            for _ in range(row + 1):  # the header is a row too
                next(rows, None)
            return f"{self.path}:{rows.line_num + 1}"


@contextmanager
def _decompressed(file: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    """The open file's text as bytes. A compressed stream that is damaged or cut raises RawError."""
    try:
        if path.suffix == ".gz":
            with gzip.open(file) as text:
                yield text  # type: ignore[misc]
        elif path.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                if len(names) != 1:
                    raise RawError(f"{path}: holds {len(names)} files; expected one")
                with archive.open(names[0]) as text:
                    yield text  # type: ignore[misc]
        else:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise RawError(f"{path}: the compressed stream is cut or damaged: {error}") from None


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one being made in a thread while the last one is used."""
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def make() -> None:
        try:
            for item in items:
                made.put((item, None))
                if stopped.is_set():
                    return
            made.put((None, None))
        except BaseException as error:
            made.put((None, error))

    threading.Thread(target=make, daemon=True).start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()


def check_columns(path: Path, found: list[str], columns: tuple[str, ...]) -> None:
    """Raises RawError unless each of `columns` is found once."""
    for column in columns:
        if found.count(column) != 1:
            often = "no" if column not in found else "more than one"
            raise RawError(f"{path}:1: {often} column {column!r}; expected it once among {', '.join(found)}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
