"""One raw column, block by block -> its file of numbers; a categorical one's values -> ids and a vocabulary."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dlrm_mlet.data.datasets import MultiValued
from dlrm_mlet.data.rows import Refuse, Where, moments, refuser
from dlrm_mlet.data.schema import LEFT_OUT, SPLITS
from dlrm_mlet.data.vocabulary import (
    Vocabulary,
    buckets,
    buckets_digest,
    digest_of,
    file_name,
    flatten,
    hexadecimal,
    integers,
    numbers,
    plain,
    transformed,
    vocabulary_file,
)
from dlrm_mlet.extras import needs
from dlrm_mlet.files import writing

with needs("data"):
    import polars as pl

AT_ONCE = 1 << 17
"""Rows of a column that are looked up at once."""
PAIRS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "-1": 0, "-1.0": 0}
"""Texts, in small letters, that are labels by themselves."""
NAMES = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2, "testing": 2}
"""What a column says of a row's split, in small letters."""


def put(file: BinaryIO, array: np.ndarray) -> None:
    """Write the numbers. (`tofile` keeps small ones for its end, where a full disk is no error to it.)"""
    file.write(np.ascontiguousarray(array).data)


class SpooledColumn(ABC):
    """A column on its way from the raw file to its array: one number a row, in a file of its own."""

    dtype: np.dtype
    width = 1
    """Numbers of a row."""
    ending = "column"
    """Of its file's name: a column can have two roles."""

    def __init__(self, name: str, directory: Path):
        self.name = name
        self.path = directory / f"{file_name(name)}.{self.ending}"

    def append(self, table: pl.DataFrame, first_row: int, where: Where) -> None:
        """Add a block's rows. Raises RawError at the first one that isn't of the column's kind."""
        refuse = refuser(table[self.name], first_row, where)
        values = self.convert(table[self.name], refuse).astype(self.dtype, copy=False)
        # hundreds of columns are more files than a process may hold open
        with writing(self.path), self.path.open("ab") as file:
            put(file, values)

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
            ones, zeros = values == "1", values == "0"
            if (ones | zeros).fill_null(False).all():
                labels = ones.cast(pl.UInt8)
                self._negative |= {"0"} if zeros.any() else set()
            else:
                labels = self._of_pairs(values)
        else:
            labels = (values.replace("", None) == self.positive).cast(pl.UInt8)
            self._negative |= set(values.filter(labels == 0).unique().to_list())
        wrong = labels.is_null()
        if len(self._negative) > 1:
            wrong = wrong | (labels == 0)
        if wrong.any():
            counts = values.alias("value").value_counts(sort=True).head(5).rows()
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
        self.below = 0
        """Numbers below 0 so far, which log1p takes as 0."""

    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See SpooledColumn."""
        x = plain(values, refuse)
        if self.transform == "log1p":
            self.below += int(np.count_nonzero(x < 0))
        return transformed(x, self.transform)


class Weights(SpooledColumn):
    """By how much a row counts: a number, 0 and more."""

    dtype = np.dtype(np.float32)

    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See SpooledColumn."""
        text = values.dtype == pl.String
        refuse(values.is_null() | (values.str.strip_chars() == "" if text else False), "a weight")
        found = numbers(values, "identity", refuse)
        refuse(pl.Series(found < 0), "a weight of 0 or more")
        return found


class Moments(SpooledColumn):
    """The times by which rows are split, as seconds since 1970."""

    dtype = np.dtype(np.int64)
    ending = "split"

    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See SpooledColumn."""
        refuse(values.is_null() | (values == ""), "a time, by which the row is split")
        return moments(values, refuse).dt.epoch("s").to_numpy()


class SplitNames(SpooledColumn):
    """The split that a column names for each row."""

    dtype = np.dtype(np.uint8)
    ending = "split"

    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See SpooledColumn."""
        found = values.str.strip_chars().str.to_lowercase().replace_strict(NAMES, default=None, return_dtype=pl.UInt8)
        refuse(found.is_null(), f"one of {', '.join(SPLITS)}")
        return found.to_numpy()


@dataclass(frozen=True)
class Numbering:
    """Which values of a column have ids of their own."""

    training: slice | np.ndarray
    """The rows of training, as a slice or a row of Booleans."""
    only: bool
    """Whether a value needs a row of training."""
    least: int
    """In how many rows of training it has to be; those of fewer share an id."""
    before: Vocabulary | None = None
    """The values that have ids already, whatever their number."""


@dataclass(frozen=True)
class Numbered:
    """What came of it."""

    table_rows: int
    digest: str
    """SHA-256 of the vocabulary's file."""
    fallback: int
    """The id of a value that has none; see Schema."""


class Categories(SpooledColumn):
    """A categorical column; a missing value (null, or empty text) is a value of its own."""

    dtype = np.dtype(np.int32)

    nulls: tuple[str, ...] = ()
    """Texts that mean no value, in a multi-valued column."""

    def __init__(self, name: str, directory: Path, many: MultiValued | None = None):
        super().__init__(name, directory)
        self.many = many
        self.width = many.max_values if many else 1

    def convert(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See SpooledColumn."""
        if self.many is None:
            return self.encode(values, refuse)
        flat = flatten(values, self.many, self.nulls, refuse)
        return flat.matrix(self.encode(flat.values, flat.refuser(refuse)), self.width)

    @abstractmethod
    def encode(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """(rows,) raw values -> (rows,) numbers, from which `number` makes ids."""

    @abstractmethod
    def number(self, rows: int, directory: Path, rules: Numbering) -> Numbered:
        """Turn the file of the first `rows` rows into one of ids, and write the vocabulary to <directory>/<name>.arrow.

        The values that have an id are numbered from 0.
        """

    def _finish(
        self, ids: np.ndarray, values: pl.Series, directory: Path, rules: Numbering, is_there: bool = False
    ) -> Numbered:
        """(rows * width,) places in `values` -> the file of ids, by the rules, and the vocabulary.

        `is_there` says that the file has these places already.
        """
        kept = np.ones(len(values), bool)
        if rules.only or rules.least > 1:
            met = self._of_training(ids, rules)
            kept = _counts(self._once_a_row(met), len(values)) >= max(rules.least, 1)
            if rules.only and values.dtype == pl.String:  # by first appearance, too, among the rows of training
                met = met[met >= 0]
                first = np.full(len(values), len(met))
                first[met[::-1]] = np.arange(len(met))[::-1]
                order = np.argsort(first, kind="stable")
                place = np.empty(len(values), self.dtype)
                place[order] = np.arange(len(values), dtype=self.dtype)
                values, kept, is_there = values[order], kept[order], False
                ids = np.where(ids < 0, LEFT_OUT, place[ids])
        before = rules.before
        new = np.full(len(values), LEFT_OUT, np.int32)
        if before is not None:
            new = before.find(values).astype(np.int32)
        fresh = kept & (new < 0)
        start = 0 if before is None else len(before)
        new[fresh] = start + np.arange(np.count_nonzero(fresh), dtype=np.int32)
        known = values if fresh.all() else values.filter(pl.Series(fresh))
        known = known if before is None else pl.concat([before.values, known])
        shared = None if before is None else before.shared
        if rules.least > 1 and (new < 0).any() and shared is None:
            shared = len(known)
            known = pl.concat([known, pl.Series([None], dtype=pl.String)])
        if shared is not None or self.many is not None:
            fallback = LEFT_OUT if shared is None else shared
        else:
            missing = known.is_null() if known.dtype != pl.String else known == ""
            missing_id = int(missing.arg_max() or 0) if missing.any() else LEFT_OUT
            met = self._of_training(ids, rules)
            met = met if fresh.all() else new[met]
            if before is not None and (before.fallback == missing_id or not (met == missing_id).any()):
                fallback = before.fallback
            elif missing_id >= 0 and (met == missing_id).any():
                fallback = missing_id
            else:
                fallback = int(_counts(met[met >= 0], 1).argmax())
        if not fresh.all() or before is not None:
            new[new < 0] = fallback if shared is None else shared
            ids = np.where(ids < 0, LEFT_OUT, new[ids])
            is_there = False
        if not is_there:
            with writing(self.path), self.path.open("wb") as file:
                put(file, ids)
        path = vocabulary_file(directory, self.name)
        with writing(path):
            known.alias(self.name).to_frame().write_ipc(path)
        return Numbered(len(known), digest_of(path), fallback)

    def _of_training(self, ids: np.ndarray, rules: Numbering) -> np.ndarray:
        """(rows * width,) those of training; of a multi-valued column with what rows don't fill."""
        return ids.reshape(-1, self.width)[rules.training].ravel()

    def _once_a_row(self, ids: np.ndarray) -> np.ndarray:
        """Without what rows don't fill, and without a value's further times in a row."""
        if self.many is None:
            return ids
        ordered = np.sort(ids.reshape(-1, self.width), axis=1)
        again = np.zeros(ordered.shape, bool)
        again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        return ordered[(ordered >= 0) & ~again]


def _counts(ids: np.ndarray, least: int) -> np.ndarray:
    return np.bincount(ids, minlength=least) if len(ids) else np.zeros(least, np.int64)


class Texts(Categories):
    """Values of any kind, as text, numbered by first appearance; all of them are in memory (about 100 bytes each)."""

    def __init__(self, name: str, directory: Path, integer: bool = False, many: MultiValued | None = None):
        super().__init__(name, directory, many)
        self.integer = integer
        self._dtype = pl.Categorical(pl.Categories.random())
        self._seen = pl.Series([], dtype=self._dtype)  # keeps the numbering alive between blocks

    def encode(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See Categories; the numbers are ids already."""
        values = integers(values, refuse) if self.integer else values
        seen = values.fill_null("").cast(self._dtype)
        self._seen = seen if len(seen) else self._seen
        return seen.to_physical().to_numpy()

    def number(self, rows: int, directory: Path, rules: Numbering) -> Numbered:
        """See Categories."""
        ids = np.fromfile(self.path, self.dtype, rows * self.width)
        values = self._dtype.categories.to_series()[: int(ids.max(initial=-1)) + 1]
        return self._finish(ids, values, directory, rules, is_there=True)


class Hashed(Categories):
    """Values without end: the table has so many rows, and a value's is decided by its hash."""

    def __init__(self, name: str, directory: Path, count: int, integer: bool = False, many: MultiValued | None = None):
        super().__init__(name, directory, many)
        self.count, self.integer = count, integer

    def encode(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See Categories; the numbers are ids already."""
        return buckets(integers(values, refuse) if self.integer else values, self.count)

    def number(self, rows: int, directory: Path, rules: Numbering) -> Numbered:
        """See Categories; there is no vocabulary."""
        return Numbered(self.count, buckets_digest(self.count), LEFT_OUT if self.many else 0)


class Hexadecimals(Categories):
    """Values of 8 lowercase hexadecimal digits, numbered in ascending order, a missing one last.

    They are 32-bit numbers until all rows are read. Looking up these takes a fraction of the time and memory that
    looking up text does, and at millions of distinct values that decides.
    """

    def __init__(self, name: str, directory: Path):
        super().__init__(name, directory)
        self._missing: list[tuple[int, np.ndarray]] = []  # of each block: its rows, and a bit for each

    def encode(self, values: pl.Series, refuse: Refuse) -> np.ndarray:
        """See Categories; the numbers are the values."""
        values = hexadecimal(values, refuse)
        self._missing.append((len(values), np.packbits(values.is_null().to_numpy())))
        return values.fill_null(0).to_numpy().view(np.int32)

    def number(self, rows: int, directory: Path, rules: Numbering) -> Numbered:
        """See Categories."""
        missing = np.concatenate([np.unpackbits(bits, count=count) for count, bits in self._missing])[:rows].view(bool)
        self._missing.clear()
        found = np.fromfile(self.path, np.uint32, rows)
        there = found[~missing] if missing.any() else found
        known = np.sort(pl.Series(there).unique().to_numpy())
        ids = places(there, known)
        if missing.any():
            mine, ids = ids, np.full(rows, len(known), self.dtype)
            ids[~missing] = mine
        values = pl.Series(known)
        if missing.any():
            values = pl.concat([values, pl.Series([None], dtype=pl.UInt32)])
        if rules.least > 1:
            # a null is a missing value among numbers; among texts it stands for the rare ones
            texts = [f"{value:08x}" if value is not None else "" for value in values.to_list()]
            values = pl.Series(texts, dtype=pl.String)
        return self._finish(ids, values, directory, rules)


def places(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(rows,) 32-bit numbers, all of them in `known`, which are distinct -> (rows,) their places there.

    By hash tables without chains: of those that meet in one slot the last one has it, and the others go to the next
    table, with another multiplier. At millions of rows this takes half to a tenth of the time of a join, or of a sort.
    """
    shift = np.uint32(32 - min(max(len(known).bit_length() + 2, 8), 31))
    tables, left, multiplier = [], np.arange(len(known), dtype=np.int32), 2654435761
    while len(left):
        table = np.zeros(1 << (32 - int(shift)), np.int32)
        slots = known[left] * np.uint32(multiplier) >> shift
        table[slots] = left
        left = left[table[slots] != left]
        tables.append((np.uint32(multiplier), table))
        multiplier = multiplier * 0x9E3779B1 % (1 << 32) | 1
    found = np.empty(len(values), np.int32)
    for first in range(0, len(values), AT_ONCE):  # so few that what is made on the way stays in the cache
        mine, its, lost = values[first : first + AT_ONCE], found[first : first + AT_ONCE], None
        for factor, table in tables:
            place = table[mine * factor >> shift]
            if lost is None:
                its[:] = place
            else:
                its[lost] = place
            strange = np.flatnonzero(known[place] != mine)
            if not len(strange):
                break
            mine, lost = mine[strange], strange if lost is None else lost[strange]
    return found
