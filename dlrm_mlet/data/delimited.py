"""Delimited text, also .gz or .zip -> blocks of rows, each row's fields counted."""

import codecs
import csv
import errno
import gzip
import hashlib
import io
import queue
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from dlrm_mlet.data.blocks import Block, RawError, check_columns, first_line
from dlrm_mlet.data.datasets import Format
from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
COMPRESSED = (".gz", ".zip")
BLOCK_BYTES = 16 << 20
LONGEST_ROW = 64 << 20
"""Bytes within which a row has an end, a quoted one too."""
T = TypeVar("T")


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
        format: Format,
    ):
        self.path, self.columns, self.separator = path, columns, separator_of(path, format)
        self.numbers, self.hexadecimal, self.format = numbers, hexadecimal, format
        self.has_header = not format.header
        self.quotes = self.has_header and format.quoted
        self.description: dict[str, str | int] = {}
        self._refuse_utf_16()
        self.names: list[str] = list(format.header) or self._read_header()
        check_columns(path, self.names, columns, self.separator)
        # a column nobody asked for may have any name, or none
        self.places = [self.names.index(name) for name in columns]

    def _read_header(self) -> list[str]:
        with self._text() as text:
            header: list[str] = next(self._csv(text), [])
        if not header:
            raise RawError(f"{self.path}: empty file; expected a header that names the columns")
        return header

    def _csv(self, text: io.TextIOWrapper) -> Any:
        return csv.reader(text, delimiter=self.separator, quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE)

    @contextmanager
    def _text(self) -> Iterator[io.TextIOWrapper]:
        encoding = "utf-8-sig" if self.format.encoding == "utf-8" else self.format.encoding
        with self.path.open("rb") as file, _decompressed(file, self.path) as text:
            try:
                yield io.TextIOWrapper(text, encoding, "replace", newline="")
            except UnicodeError as error:  # as of UTF-16 without its mark
                raise RawError(f"{self.path}: isn't {encoding}: {error}") from None

    def blocks(self) -> Iterator[Block]:
        """See Reader."""
        row, remainder, header_to_skip = 0, b"", self.has_header
        for chunk, read in ahead(self._chunks()):
            text = remainder + chunk
            if not chunk and text and not text.endswith(b"\n"):
                if not self.has_header:
                    raise RawError(f"{self.where(row)}: the last line has no end; the file may have been cut there")
                if b"\n" not in text and b"\r" in text:
                    raise RawError(f"{self.path}: its lines end in CR alone; expected LF or CR LF")
                text += b"\n"
            end = self._last_row_end(text)
            if not end and text and (not chunk or len(text) > LONGEST_ROW):
                self._refuse_stray_quote(text, row - header_to_skip)
                within = "" if not chunk else f" within {LONGEST_ROW >> 10:,} KiB"
                if b"\n" not in text:
                    raise RawError(
                        f"{self.where(row)}: a line that doesn't end{within}; expected LF or CR LF line ends"
                    )
                raise RawError(f"{self.where(row)}: a quote that opens here is never closed{within}")
            remainder = text[end:]
            if end:
                begin = self._first_row_end(text) if header_to_skip else 0
                table = self._parse(text[begin:end], row)
                header_to_skip = False
                if table.height:
                    yield Block(table, row, read)
                    row += table.height

    def _chunks(self) -> Iterator[tuple[bytes, float]]:
        """The file's bytes and how much of it is read with them; the last are none. Then describes the file."""
        digest, size = hashlib.sha256(), 0
        decode = None if self.format.encoding == "utf-8" else codecs.getincrementaldecoder(self.format.encoding)()
        with self.path.open("rb") as file, _decompressed(file, self.path) as text:
            while chunk := text.read(BLOCK_BYTES):
                digest.update(chunk)
                if not size:
                    chunk = chunk.removeprefix(codecs.BOM_UTF8)
                size += len(chunk)
                if decode is not None:
                    chunk = self._decoded(decode, chunk).encode()
                if chunk:
                    yield chunk, file.tell() / self.path.stat().st_size
        self.description |= {"name": self.path.name, "bytes": size, "sha256": digest.hexdigest()}
        yield b"", 1.0

    def _refuse_utf_16(self) -> None:
        with self.path.open("rb") as file, _decompressed(file, self.path) as text:
            chunk = text.read(2)
        if self.format.encoding == "utf-8" and chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise RawError(f'{self.path}: is UTF-16, as Excel\'s Unicode text is; expected encoding = "utf-16"')

    def _decoded(self, decoder: codecs.IncrementalDecoder, chunk: bytes) -> str:
        try:
            return decoder.decode(chunk)
        except UnicodeError as error:
            raise RawError(f"{self.path}: isn't {self.format.encoding}: {error}") from None

    def _quoted(self, text: bytes) -> bool:
        return self.quotes and b'"' in text

    def _last_row_end(self, text: bytes) -> int:
        """Bytes of the text that are whole rows."""
        if self._quoted(text):
            ends, _ = self._rows(text)
            return int(ends[-1]) + 1 if ends.size else 0
        return text.rfind(b"\n") + 1

    def _first_row_end(self, text: bytes) -> int:
        return int(self._rows(text)[0][0]) + 1 if self._quoted(text) else text.index(b"\n") + 1

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

    def _parse(self, text: bytes, first_row: int) -> pl.DataFrame:
        """Whole rows as a table. Raises RawError at the first one whose fields aren't the header's."""
        raw = np.frombuffer(text, np.uint8)
        rows, separators = np.count_nonzero(raw == ord("\n")), np.count_nonzero(raw == ord(self.separator))
        if self._quoted(text) or separators != rows * (len(self.names) - 1):
            self._check_fields(text, first_row)
        # else no row is short unless another is long, at which the parser fails
        kinds = [pl.Float64 if name in self.numbers else pl.String for name in self.names]
        try:
            return self._with_hexadecimal(self._read(text, kinds), text)
        except pl.exceptions.PolarsError:
            self._check_fields(text, first_row)
        try:
            return self._read(text, [pl.String] * len(self.names))  # a number that is none
        except pl.exceptions.PolarsError as error:
            if (row := _first_undecodable(text)) is not None:
                here = self.where(first_row + row)
                raise RawError(f"{here}: isn't UTF-8; expected encoding = 'latin-1', or that of the file") from None
            here = f"{self.where(first_row)}, or one of the {rows - 1} rows after it"
            raise RawError(f"{here}: {first_line(error)}") from None

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

    def _check_fields(self, text: bytes, first_row: int) -> None:
        self._refuse_stray_quote(text, first_row)
        _, fields = self._rows(text)
        wrong = np.flatnonzero(fields != len(self.names))
        if wrong.size:
            row = int(wrong[0])
            where = self.where(first_row + row)
            if fields[row] == 1:
                raise RawError(f"{where}: 1 field, or an empty line; expected {len(self.names)}")
            raise RawError(f"{where}: {fields[row]} fields; expected {len(self.names)}")

    def _refuse_stray_quote(self, text: bytes, first_row: int) -> None:
        """Raise RawError at a quote that neither opens nor closes a field, nor is one of two within one."""
        if not self._quoted(text):
            return
        raw = np.frombuffer(text, np.uint8)
        quotes = np.flatnonzero(raw == ord('"'))
        around = np.concatenate(([ord("\n")], raw, [ord("\n")]))  # before byte i lies the i-th, after it the i + 2nd
        beside = np.zeros(256, bool)
        beside[[ord(self.separator), ord("\n"), ord("\r"), ord('"')]] = True
        opens = np.arange(quotes.size) % 2 == 0
        stray = np.where(opens, ~beside[around[quotes]], ~beside[around[quotes + 2]])
        if stray.any():
            row = text.count(b"\n", 0, int(quotes[stray][0]))
            raise RawError(
                f"{self.where(first_row + row)}: a quote within a field; expected all of it in quotes and its own "
                "quotes doubled, or quoted = false where quotes are characters like others"
            )

    def _read(self, text: bytes, kinds: list[Any]) -> pl.DataFrame:
        if not text:
            return pl.DataFrame(schema=dict.fromkeys(self.columns, pl.String))
        table = pl.read_csv(
            text,
            has_header=False,
            schema={str(i): kind for i, kind in enumerate(kinds)},
            columns=self.places,
            separator=self.separator,
            quote_char='"' if self.quotes else None,
            null_values=list(self.format.null_values) or None,
        )
        named = zip(self.places, self.columns, strict=True)
        return table.select(pl.col(str(place)).alias(name) for place, name in named)

    def where(self, row: int) -> str:
        """See Reader; counts lines as a text editor does, also where a quoted value holds line ends."""
        if not self.has_header:
            return f"{self.path}:{row + 1}"
        with self._text() as text:
            rows = self._csv(text)
            for _ in range(row + 1):  # the header is a row too
                next(rows, None)
            return f"{self.path}:{rows.line_num + 1}"


def fields_of_first_line(path: Path, format: Format) -> int:
    """How many fields the first line of delimited text has."""
    with path.open("rb") as file, _decompressed(file, path) as text:
        return text.readline().decode(format.encoding, "replace").count(separator_of(path, format)) + 1


def separator_of(path: Path, format: Format) -> str:
    """The one that is said, else that of the file's ending."""
    return format.separator or SEPARATORS.get(suffix_of(path), "\t")


def suffix_of(path: Path) -> str:
    """The ending that says what the text is, in small letters; of `clicks.CSV.gz` it is .csv."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() if last in COMPRESSED else last


@contextmanager
def _decompressed(file: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    """The open file's text as bytes. A compressed stream that is damaged or cut raises RawError."""
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(file) as text:
                yield text  # type: ignore[misc]
        elif path.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                # a Mac adds files of its own
                names = [n for n in archive.namelist() if not n.endswith("/") and n.rpartition("/")[2][:1] != "."]
                names = [name for name in names if not name.startswith("__MACOSX/")]
                if len(names) != 1:
                    raise RawError(f"{path}: holds {len(names)} files; expected one")
                try:
                    opened = archive.open(names[0])
                except RuntimeError as error:  # it asks for a password
                    raise RawError(f"{path}: can't be unpacked: {error}; expected it without a password") from None
                with opened as text:
                    yield text  # type: ignore[misc]
        else:
            yield file
    except (EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, struct.error, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and error.errno != errno.EINVAL:
            raise  # no fault of the file's
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


def _first_undecodable(text: bytes) -> int | None:
    """The first line, from 0, that isn't UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return text.count(b"\n", 0, error.start)
    return None
