"""The values of a data set's categorical columns, each with its id; and raw values -> ids, as they were numbered."""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from dlrm_mlet.data.datasets import MultiValued
from dlrm_mlet.data.rows import Refuse
from dlrm_mlet.data.schema import LEFT_OUT, ColumnsError, Schema, check_served
from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl

LARGEST = float(np.finfo(np.float32).max)
LONGEST_NAME = 150


def numbers(values: pl.Series, transform: str, refuse: Refuse) -> np.ndarray:
    """(rows,) raw values -> (rows,) numbers, transformed (see datasets.Transform); a missing one is 0 before that."""
    return transformed(plain(values, refuse), transform)


def plain(values: pl.Series, refuse: Refuse) -> np.ndarray:
    """(rows,) raw values -> (rows,) numbers, a missing one 0."""
    found = values
    if values.dtype == pl.String:
        text = values.str.strip_chars().replace("", None)
        found = text.cast(pl.Float64, strict=False)
        refuse(text.is_not_null() & found.is_null(), "a number")
    refuse(~(found.abs() <= LARGEST).fill_null(True), "a number that float32 has")
    return found.fill_null(0.0).to_numpy()


def transformed(x: np.ndarray, transform: str) -> np.ndarray:
    """(rows,) numbers -> the same, transformed: see datasets.Transform."""
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


def buckets(values: pl.Series, count: int) -> np.ndarray:
    """(rows,) text -> (rows,) ids below `count`: CRC-32 of the text in UTF-8, modulo `count`; a missing one is ""."""
    texts = values.fill_null("")
    distinct = texts.unique()
    ids = np.fromiter((zlib.crc32(text.encode()) % count for text in distinct), np.int32, len(distinct))
    return texts.replace_strict(distinct, pl.Series(ids), return_dtype=pl.Int32).to_numpy()


@dataclass(frozen=True)
class Flat:
    """The values of a multi-valued column of a block, one after another, and where each belongs."""

    values: pl.Series
    row: np.ndarray
    place: np.ndarray
    """Among its row's."""
    height: int

    def matrix(self, ids: np.ndarray, width: int) -> np.ndarray:
        """(values,) ids -> (rows, width), LEFT_OUT where a row has fewer."""
        found = np.full((self.height, width), LEFT_OUT, np.int32)
        found[self.row, self.place] = ids
        return found

    def refuser(self, refuse: Refuse) -> Refuse:
        """For the rows, from what is found wrong among the values."""

        def refuse_values(wrong: pl.Series, expected: str) -> None:
            of_row = np.zeros(self.height, bool)
            of_row[self.row[wrong.fill_null(False).to_numpy()]] = True
            refuse(pl.Series(of_row), expected)

        return refuse_values


def flatten(values: pl.Series, many: MultiValued, nulls: Sequence[str], refuse: Refuse) -> Flat:
    """(rows,) text or lists of text -> their values; blank ones, nulls and `nulls` are none."""
    lists = values.str.split(many.separator) if values.dtype == pl.String else values
    value = pl.element()
    is_one = value.is_not_null() & (value.str.strip_chars() != "") & ~value.is_in(list(nulls))
    lists = lists.list.eval(value.filter(is_one))
    counts = lists.list.len().fill_null(0)
    if many.longer == "refuse":
        refuse(
            counts > many.max_values, f"at most max_values = {many.max_values} values, or longer = 'first' or 'last'"
        )
    lists = lists.list.tail(many.max_values) if many.longer == "last" else lists.list.head(many.max_values)
    kept = np.minimum(counts.to_numpy(), many.max_values).astype(np.int64)
    row = np.repeat(np.arange(len(kept)), kept)
    place = np.arange(len(row)) - np.repeat(np.cumsum(kept) - kept, kept)
    flat = lists.filter(pl.Series(kept > 0)).explode().alias(values.name).cast(pl.String)
    return Flat(flat, row, place, len(kept))


def file_name(column: str) -> str:
    """What a column's files are called, whatever its name: without a separator of paths, and not too long."""
    safe = quote(column, safe=" ")
    return (
        safe
        if len(safe) <= LONGEST_NAME
        else f"{safe[:LONGEST_NAME]}-{hashlib.sha256(column.encode()).hexdigest()[:12]}"
    )


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def vocabulary_file(directory: Path, column: str) -> Path:
    """Where the values of a categorical column lie."""
    return directory / f"{file_name(column)}.arrow"


def buckets_digest(count: int) -> str:
    """What stands for a vocabulary's SHA-256 where values are hashed."""
    return hashlib.sha256(f"crc32 modulo {count}".encode()).hexdigest()


class Vocabulary:
    """The values of a categorical column of a data set, each with its id."""

    def __init__(self, path: Path, fallback: int, integer: bool = False):
        """`path` is vocabulary/<column>.arrow; `fallback` the id of an unknown value."""
        self.values = pl.read_ipc(path).to_series()
        self.integer, self.fallback = integer, fallback
        self.is_hexadecimal = self.values.dtype != pl.String
        self.shared = None
        """The id that rare values share."""
        known = pl.DataFrame({"value": self.values, "id": np.arange(len(self.values), dtype=np.int32)})
        if not self.is_hexadecimal and self.values.has_nulls():
            self.shared = int(self.values.is_null().arg_max() or 0)
            known = known.filter(pl.col("value").is_not_null())
        self._known = known

    def __len__(self) -> int:
        return len(self.values)

    def find(self, values: pl.Series) -> np.ndarray:
        """(rows,) values, of the vocabulary's kind -> (rows,) ids, -1 where it has none."""
        rows = values.alias("value").to_frame()
        found = rows.join(self._known, on="value", how="left", maintain_order="left", nulls_equal=True)["id"]
        return found.fill_null(-1).to_numpy()

    def ids(self, values: pl.Series, refuse: Refuse) -> tuple[np.ndarray, pl.Series]:
        """(rows,) raw values -> (rows,) ids, `fallback` for those that it doesn't have, and which these are."""
        texts = integers(values, refuse) if self.integer else values
        found = self.find(hexadecimal(texts, refuse) if self.is_hexadecimal else texts.fill_null(""))
        strange = found < 0
        return np.where(strange, np.int32(self.fallback), found), values.filter(pl.Series(strange))

    def would_mend(self, strangers: pl.Series) -> bool:
        """Whether most of these values are known ones, written as another whole number is: 5.0 for 5."""
        if self.integer or self.is_hexadecimal or not len(strangers):
            return False
        known = _as_integers(self.values.drop_nulls())
        return bool(_as_integers(strangers).is_in(known.drop_nulls().implode()).fill_null(False).mean() > 0.5)  # type: ignore[operator]


def _as_integers(values: pl.Series) -> pl.Series:
    return integers(values, lambda wrong, expected: None)


class Column:
    """A categorical column of a data set: how a block's raw values become its ids."""

    def __init__(
        self,
        ids: Callable[[pl.Series, Refuse], tuple[np.ndarray, pl.Series]],
        many: MultiValued | None,
        nulls: Sequence[str],
    ):
        self._ids, self._many, self._nulls = ids, many, nulls

    def ids(self, values: pl.Series, refuse: Refuse) -> tuple[np.ndarray, pl.Series]:
        """(rows,) raw values -> (rows, places) ids, and the values that have none of their own."""
        if self._many is None:
            found, strangers = self._ids(values, refuse)
            return found[:, None], strangers
        flat = flatten(values, self._many, self._nulls, refuse)
        found, strangers = self._ids(flat.values, flat.refuser(refuse))
        return flat.matrix(found, self._many.max_values), strangers


def load_all(directory: Path, schema: Schema) -> dict[str, Vocabulary | None]:
    """The vocabulary of each categorical column, proved to be the one of the schema; None where values are hashed.

    Raises ColumnsError where it is missing or another one.
    """
    check_served(schema, directory.parent / "schema.json")
    dataset = schema.as_dataset()
    files = {n: vocabulary_file(directory, n) for n in schema.categorical if n not in dataset.hash_buckets}
    if missing := [file for file in files.values() if not file.is_file()]:
        raise ColumnsError(f"{missing[0]}: no such file; expected the data set's vocabulary: preprocess it again")
    digests = [
        digest_of(files[name]) if name in files else buckets_digest(dataset.hash_buckets[name])
        for name in schema.categorical
    ]
    if hashlib.sha256("".join(digests).encode()).hexdigest() != schema.vocabulary:
        raise ColumnsError(f"{directory}: isn't the vocabulary of schema.json; preprocess the data set again")
    fallback = dict(zip(schema.categorical, schema.fallback, strict=True))
    return {
        name: Vocabulary(files[name], fallback[name], name in schema.integer) if name in files else None
        for name in schema.categorical
    }


def load_columns(directory: Path, schema: Schema) -> tuple[dict[str, Column], dict[str, Vocabulary | None]]:
    """Each categorical column's way from raw values to ids, and its vocabulary. Raises as `load_all` does."""
    dataset, vocabularies = schema.as_dataset(), load_all(directory, schema)
    found = {}
    for name, vocabulary in vocabularies.items():
        ids = vocabulary.ids if vocabulary else _hashed(dataset.hash_buckets[name], name in schema.integer)
        found[name] = Column(ids, dataset.multi_valued.get(name), dataset.null_values)
    return found, vocabularies


def _hashed(count: int, integer: bool) -> Callable[[pl.Series, Refuse], tuple[np.ndarray, pl.Series]]:
    def ids(values: pl.Series, refuse: Refuse) -> tuple[np.ndarray, pl.Series]:
        return buckets(integers(values, refuse) if integer else values, count), values.clear()

    return ids
