"""Raw files, delimited text (also .gz or .zip) or Parquet -> tables of text of bounded size, each row checked."""

import bisect
import hashlib
from collections.abc import Iterator
from pathlib import Path

from dlrm_mlet.data.blocks import Block, RawError, Reader
from dlrm_mlet.data.datasets import Format
from dlrm_mlet.data.delimited import SEPARATORS, DelimitedReader, suffix_of
from dlrm_mlet.data.parquet import ParquetReader

PLAIN = Format()


def open_raw(
    path: Path,
    columns: tuple[str, ...],
    numbers: tuple[str, ...] = (),
    hexadecimal: tuple[str, ...] = (),
    format: Format = PLAIN,
    lists: tuple[str, ...] = (),
) -> Reader:
    """A reader of `columns` of the file, by its ending; of a directory, of all its files in the order of their names.

    Those of `numbers` and `hexadecimal` (8 lowercase digits) come parsed where they parse; those of `lists` may be
    lists where the file has such.

    Raises RawError where the file or a column is missing.
    """
    if path.is_dir():
        # as Spark and Hive write them: what begins with a dot or an underscore is no part
        files = sorted(file for file in path.iterdir() if file.name[0] not in "._")
        if not files or any(file.is_dir() for file in files):
            what = "is empty" if not files else "has directories"
            raise RawError(f"{path}: {what}; expected a directory of files, and of nothing else")
        return Parts(path, [open_raw(file, columns, numbers, hexadecimal, format, lists) for file in files])
    if not path.is_file():
        raise RawError(f"{path}: no such file; expected a raw file to read")
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return ParquetReader(path, columns, numbers, format, lists)
    if suffix in SEPARATORS or format.separator or (format.header and not suffix):
        return DelimitedReader(path, columns, numbers, hexadecimal, format)
    endings = ", ".join((".parquet", *SEPARATORS))
    raise RawError(f"{path}: unknown ending {suffix!r}; expected {endings}, the last three also with .gz or .zip")


class Parts:
    """Several files, one after another."""

    def __init__(self, path: Path, readers: list[Reader]):
        self.path, self.readers = path, readers
        self.names = readers[0].names
        self.description: dict[str, str | int] = {}
        self.heights: list[int] = []
        """Rows of each file, once it is read."""
        self._first_rows: list[int] = []

    def blocks(self) -> Iterator[Block]:
        """See Reader."""
        row, whole = 0, hashlib.sha256()
        for i, reader in enumerate(self.readers):
            self._first_rows.append(row)
            height = 0
            for block in reader.blocks():
                height = block.first_row + block.table.height
                yield Block(block.table, row + block.first_row, (i + block.read) / len(self.readers))
            row += height
            self.heights.append(height)
            whole.update(str(reader.description["sha256"]).encode())
        size = sum(int(reader.description["bytes"]) for reader in self.readers)
        self.description |= {"name": self.path.name, "bytes": size, "sha256": whole.hexdigest()}

    def where(self, row: int) -> str:
        """See Reader."""
        i = bisect.bisect_right(self._first_rows, row) - 1
        return self.readers[i].where(row - self._first_rows[i])
