"""One raw column, block by block -> its file of numbers; a categorical one's values -> ids and a vocabulary."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch

from dlrm_mlet.data.columns import Columns, ColumnsError
from dlrm_mlet.data.raw import RawError
from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl

Where = Callable[[int], str]
Refuse = Callable[[pl.Series, str], None]
"""Called with the rows of a block that may be wrong, and what was expected; raises RawError at the first that is."""
ROW_BITS = 31
LARGEST = float(np.finfo(np.float32).max)
LONGEST_NAME = 150
PAIRS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "-1": 0, "-1.0": 0}
"""Texts, in small letters, that are labels by themselves."""


def refuser(values: pl.Series, first_row: int, where: Where) -> Refuse:
    """For a column's values in the block that begins at `first_row` of the file."""

    def refuse(wrong: pl.Series, expected: str) -> None:
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            raise RawError(f"{where(first_row + row)}: column {values.name!r} is {values[row]!r}; expected {expected}")

    return refuse


def numbers(values: pl.Series, transform: str, refuse: Refuse) -> np.ndarray:
    """(rows,) raw values -> (rows,) numbers, transformed (see datasets.Transform); a missing one is 0 before that."""
    found = values
    if values.dtype == pl.String:
        text = values.str.strip_chars().replace("", None)
        found = text.cast(pl.Float64, strict=False)
        refuse(text.is_not_null() & found.is_null(), "a number")
    refuse(~(found.abs() <= LARGEST).fill_null(True), "a number that float32 has")
    x = found.fill_null(0.0).to_numpy()
    match transform:
        case "identity":
            return x
        case "hour_of_day":
            x = x % 100
        case "unix_hour":
            x = x // 3600 % 24
    return np.log1p(np.maximum(x, 0.0), dtype=np.float32)


def integers(values: pl.Series, refuse: Refuse) -> pl.Series:
    """(rows,) raw values -> (rows,) text of whole numbers, one for each number however it is written: 5, 5.0, +05."""
    text = values.str.strip_chars().replace("", None).str.replace(r"\.0*$", "")
    found = text.str.replace(r"^\+", "").cast(pl.Int64, strict=False)
    refuse(text.is_not_null() & found.is_null(), "a whole number")
    return found.cast(pl.String)


def hexadecimal(values: pl.Series, refuse: Refuse) -> pl.Series:
    """(rows,) raw values -> (rows,) 32-bit unsigned numbers, a missing one null."""
    if values.dtype == pl.String:
        refuse(~values.fill_null("").str.contains("^([0-9a-f]{8})?$"), "8 hexadecimal digits, or nothing")
        values = values.replace("", None).str.to_integer(base=16, dtype=pl.UInt32)
    return values


def file_name(column: str) -> str:
    """What a column's files are called, whatever its name: without a separator of paths, and not too long."""
    safe = quote(column, safe=" ")
    return (
        safe
        if len(safe) <= LONGEST_NAME
        else f"{safe[:LONGEST_NAME]}-{hashlib.sha256(column.encode()).hexdigest()[:12]}"
    )


class SpooledColumn(ABC):
    """A column on its way from the raw file to its array: one number a row, in a file of its own."""

    dtype: np.dtype

    def __init__(self, name: str, directory: Path):
        self.name = name
        self.path = directory / f"{file_name(name)}.column"

    def append(self, table: pl.DataFrame, first_row: int, where: Where) -> None:
        """Add a block's rows. Raises RawError at the first one that isn't of the column's kind."""
        refuse = refuser(table[self.name], first_row, where)
        values = self.convert(table[self.name], refuse).astype(self.dtype, copy=False)
        with self.path.open("ab") as file:  # hundreds of columns are more files than a process may hold open
            values.tofile(file)

    @abstractmethod
    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """(rows,) raw values -> (rows,) numbers; calls `refuse` with the rows that are wrong and what was expected."""


class Labels(SpooledColumn):
    """0 or 1: as they are, as true and false, as -1 and 1, or by the one value that is said to be positive."""

    dtype = np.dtype(np.uint8)

    def __init__(self, name: str, directory: Path, positive: str | None = None):
        super().__init__(name, directory)
        self.positive = positive
        self._negative: set[str] = set()

    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See SpooledColumn."""
        if self.positive is None:
            labels = values.replace_strict({"0": 0, "1": 1}, default=None, return_dtype=pl.UInt8)
            if not labels.has_nulls():
                self._negative |= {"0"} if (labels == 0).any() else set()
            else:
                labels = self._of_pairs(values)
        else:
            labels = (values.replace("", None) == self.positive).cast(pl.UInt8)
            self._negative |= set(values.filter(labels == 0).unique().to_list())
        wrong = labels.is_null()
        if len(self._negative) > 1:
            wrong = wrong | (labels == 0)
        if wrong.any():
            counts = values.value_counts(sort=True).head(5).rows()
            found = ", ".join(f"{value!r} {count:,} times" for value, count in counts)
            refuse(wrong, f"{self._expected()}; around there: {found}")
        return labels.to_numpy()

    def _of_pairs(self, values: pl.Series) -> pl.Series:
        text = values.str.to_lowercase()
        labels = text.replace_strict(PAIRS, default=None, return_dtype=pl.UInt8)
        self._negative |= {"-1" if value.startswith("-") else "0" for value in text.filter(labels == 0).unique()}
        return labels

    def _expected(self) -> str:
        if self.positive is None:
            return (
                "0 or 1 (also 0.0 and 1.0, true and false, -1 and 1), or a key `positive` that names one of two values"
            )
        others = ", ".join(sorted(map(repr, self._negative)))
        return f"{self.positive!r} or one other value, and these are others: {others}"


class Numbers(SpooledColumn):
    """A dense column and its transform (see datasets.Transform); a missing number is 0 before the transform."""

    dtype = np.dtype(np.float32)

    def __init__(self, name: str, directory: Path, transform: str):
        super().__init__(name, directory)
        self.transform = transform

    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See SpooledColumn."""
        return numbers(values, self.transform, refuse)


class Categories(SpooledColumn):
    """A categorical column; a missing value (null, or empty text) is a value of its own."""

    dtype = np.dtype(np.int32)

    @abstractmethod
    def number(self, rows: int, directory: Path) -> tuple[int, str]:
        """Turn the file of the first `rows` rows into one of ids, and write the vocabulary to <directory>/<name>.arrow.

        Returns the number of distinct values, which are numbered from 0, and the vocabulary's SHA-256.
        """

    def _write(self, vocabulary: pl.Series, directory: Path) -> tuple[int, str]:
        path = vocabulary_file(directory, self.name)
        vocabulary.to_frame(self.name).write_ipc(path)
        return len(vocabulary), digest_of(path)


class Texts(Categories):
    """Values of any kind, as text, numbered by first appearance; all of them are in memory (about 100 bytes each)."""

    def __init__(self, name: str, directory: Path, integer: bool = False):
        super().__init__(name, directory)
        self.integer = integer
        self._dtype = pl.Categorical(pl.Categories.random())
        self._seen = pl.Series([], dtype=self._dtype)  # keeps the numbering alive between blocks

    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See SpooledColumn; the numbers are ids already."""
        values = integers(values, refuse) if self.integer else values
        self._seen = values.fill_null("").cast(self._dtype)
        return self._seen.to_physical().to_numpy()

    def number(self, rows: int, directory: Path) -> tuple[int, str]:
        """See Categories."""
        ids = np.fromfile(self.path, self.dtype, rows)
        return self._write(self._dtype.categories.to_series()[: int(ids.max()) + 1], directory)


class Hexadecimals(Categories):
    """Values of 8 lowercase hexadecimal digits, numbered in ascending order, a missing one last.

    They are 32-bit numbers until all rows are read. Sorting these takes a fraction of the time and memory that
    looking up text does, and at millions of distinct values that decides.
    """

    def __init__(self, name: str, directory: Path):
        super().__init__(name, directory)
        self._missing: list[tuple[int, np.ndarray]] = []  # of each block: its rows, and a bit for each

    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See SpooledColumn; the numbers are the values."""
        values = hexadecimal(values, refuse)
        self._missing.append((len(values), np.packbits(values.is_null().to_numpy())))
        return values.fill_null(0).to_numpy().view(np.int32)

    def number(self, rows: int, directory: Path) -> tuple[int, str]:
        """See Categories."""
        missing = np.concatenate([np.unpackbits(bits, count=count) for count, bits in self._missing])[:rows].view(bool)
        self._missing.clear()
        # each value with its row below it, so that one plain sort, the fastest there is, brings equal values together
        keys = np.fromfile(self.path, np.uint32, rows).astype(np.uint64)
        keys[missing] = 1 << 32
        keys <<= np.uint64(ROW_BITS)
        keys |= np.arange(rows, dtype=np.uint64)
        keys.sort()
        row = (keys & np.uint64((1 << ROW_BITS) - 1)).astype(np.int64)
        keys >>= np.uint64(ROW_BITS)
        first = np.ones(rows, bool)
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        ids = np.empty(rows, self.dtype)
        ids[row] = np.cumsum(first, dtype=self.dtype) - self.dtype.type(1)
        ids.tofile(self.path)
        values = pl.Series(keys[first])
        return self._write(values.replace(1 << 32, None).cast(pl.UInt32), directory)


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def vocabulary_file(directory: Path, column: str) -> Path:
    """Where the values of a categorical column lie."""
    return directory / f"{file_name(column)}.arrow"


def load_all(directory: Path, columns: Columns) -> dict[str, "Vocabulary"]:
    """The vocabulary of each categorical column, proved to be the one that the columns were numbered by.

    Raises ColumnsError where it is missing or another one.
    """
    schema, found = columns.schema, {}
    start, stop = columns.range("train")
    files = [vocabulary_file(directory, name) for name in schema.categorical]
    if missing := [file for file in files if not file.is_file()]:
        raise ColumnsError(f"{missing[0]}: no such file; expected the data set's vocabulary: preprocess it again")
    if hashlib.sha256("".join(map(digest_of, files)).encode()).hexdigest() != schema.vocabulary:
        raise ColumnsError(f"{directory}: isn't the vocabulary of schema.json; preprocess the data set again")
    for f, (name, file) in enumerate(zip(schema.categorical, files, strict=True)):
        most_frequent = int(torch.bincount(columns.sparse[start:stop, f]).argmax())
        found[name] = Vocabulary(file, most_frequent, name in schema.integer)
    return found


class Vocabulary:
    """The values of a categorical column of a data set, each with its id."""

    def __init__(self, path: Path, fallback: int, integer: bool = False):
        """`path` is vocabulary/<column>.arrow; `fallback` the id of an unknown value where none is known as missing."""
        values = pl.read_ipc(path).to_series()
        self.integer = integer
        self.is_hexadecimal = values.dtype != pl.String
        missing = values.is_null() if self.is_hexadecimal else values == ""
        self.unknown = int(missing.arg_max() or 0) if missing.any() else fallback
        self._known = pl.DataFrame({"value": values, "id": np.arange(len(values), dtype=np.int32)})

    def ids(self, values: pl.Series, refuse: Refuse) -> tuple[np.ndarray, int]:
        """(rows,) raw values -> (rows,) ids, and how many of them the data set doesn't have: `unknown` for these."""
        values = integers(values, refuse) if self.integer else values
        values = hexadecimal(values, refuse) if self.is_hexadecimal else values.fill_null("")
        rows = values.alias("value").to_frame()
        found = rows.join(self._known, on="value", how="left", maintain_order="left", nulls_equal=True)["id"]
        return found.fill_null(self.unknown).to_numpy(), found.null_count()
