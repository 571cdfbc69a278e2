"""Raw rows -> columns on disk: numbers transformed, values numbered, rows laid out by split; in bounded memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
from tqdm import tqdm

from dlrm_mlet import flights
from dlrm_mlet.columns import SPLITS, Schema
from dlrm_mlet.datasets import FLIGHTS, Dataset
from dlrm_mlet.files import replacing_directory, write_json
from dlrm_mlet.raw import Block, RawError, open_raw

COPY_ROWS = 1 << 20
Where = Callable[[int], str]


def preprocess(dataset: Dataset, out: Path, raw: Path | None = None) -> Schema:
    """Write the data set's directory `out`, which appears whole or not at all, and return its schema.

    `raw` is a CSV, TSV or Parquet file; the embedded data set, flights, needs none. Rows are laid out as training,
    validation, test, each in the file's order; a value's id is its place among its column's values by first
    appearance, and the values themselves are kept in vocabulary/<column>.parquet.

    Raises RawError, which names the file and line, at the first row that doesn't fit the data set.
    """
    columns = (dataset.label, *dataset.dense, *dataset.categorical)
    source: dict[str, str | int]
    with replacing_directory(out) as directory:
        if raw is not None:
            reader = open_raw(raw, columns)
            source = reader.description  # complete once all blocks are read
            blocks, where = reader.blocks(), reader.where
        elif dataset.name == FLIGHTS.name:
            table, version = flights.raw_table()
            source = {"name": f"{flights.PACKAGE} {version}"}
            blocks, where = iter([Block(table.select(columns), 0)]), lambda row: f"{flights.PACKAGE}: flight {row + 1}"
        else:
            raise RawError(f"data set {dataset.name!r} isn't embedded; expected the path of its raw file (--raw)")
        vocabularies = [Vocabulary() for _ in dataset.categorical]
        rows = _spool(dataset, blocks, where, vocabularies, directory)
        if rows < 10:
            raise RawError(f"{raw}: {rows} rows; expected at least 10, to split them 80/10/10")
        split_rows, split_of_row = split(dataset, rows)
        dense_width, sparse_width = len(dataset.dense), len(dataset.categorical)
        for name, dtype, shape in (
            ("dense", np.float32, (rows, dense_width)),
            ("sparse", np.int32, (rows, sparse_width)),
            ("label", np.uint8, (rows,)),
        ):
            _lay_out(directory / name, np.dtype(dtype), shape, split_of_row, split_rows)
        (directory / "vocabulary").mkdir()
        for column, vocabulary in zip(dataset.categorical, vocabularies, strict=True):
            vocabulary.values().to_frame(column).write_parquet(directory / "vocabulary" / f"{column}.parquet")
        schema = Schema(
            dataset=dataset.name,
            label=dataset.label,
            dense=dataset.dense,
            categorical=dataset.categorical,
            table_rows=tuple(len(vocabulary) for vocabulary in vocabularies),
            rows=dict(zip(SPLITS, split_rows, strict=True)),
            split=dataset.split,
            split_seed=dataset.split_seed,
            transform={column: dataset.transform.get(column, "log1p") for column in dataset.dense},
            source=source,
        )
        _check_counts(dataset, schema)
        write_json(directory / "schema.json", schema.as_dict())
    return schema


class Vocabulary:
    """Text -> ids, numbered from 0 by first appearance; missing (null) and the empty string are the one value ''."""

    def __init__(self) -> None:
        self._dtype = pl.Categorical(pl.Categories.random())
        self._seen = pl.Series([], dtype=self._dtype)  # keeps the numbering alive between blocks
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def ids(self, values: pl.Series) -> np.ndarray:
        """(rows,) text -> (rows,) int32 ids; values not seen before get the next numbers."""
        coded = values.fill_null("").cast(self._dtype)
        self._seen = coded
        ids = coded.to_physical().to_numpy().astype(np.int32)
        self._rows = max(self._rows, int(ids.max(initial=-1)) + 1)
        return ids

    def values(self) -> pl.Series:
        """The value of each id, in order."""
        return self._dtype.categories.to_series()


def split(dataset: Dataset, rows: int) -> tuple[tuple[int, int, int], np.ndarray]:
    """Sizes of the three splits, a tenth (rounded down) each for validation and test, and each row's split: 0, 1, 2."""
    tenth = rows // 10
    sizes = (rows - 2 * tenth, tenth, tenth)
    of_row = np.repeat(np.arange(3, dtype=np.uint8), sizes)
    if dataset.split == "random":
        np.random.default_rng(dataset.split_seed).shuffle(of_row)
    return sizes, of_row


def _spool(
    dataset: Dataset, blocks: Iterator[Block], where: Where, vocabularies: list[Vocabulary], directory: Path
) -> int:
    """Convert each block and append it to <name>.spool files in file order; returns the number of rows."""
    rows = 0
    with ExitStack() as stack:
        dense, sparse, label = (
            stack.enter_context((directory / f"{name}.spool").open("wb")) for name in ("dense", "sparse", "label")
        )
        bar = stack.enter_context(tqdm(desc=f"reading {dataset.name}", unit=" rows", unit_scale=True, disable=None))
        for block in blocks:
            table, height = block.table, block.table.height
            _labels(table[dataset.label], block, where).tofile(label)
            numbers = np.empty((height, len(dataset.dense)), np.float32)
            for i, column in enumerate(dataset.dense):
                numbers[:, i] = _dense(table[column], dataset.transform.get(column, "log1p"), block, where)
            numbers.tofile(dense)
            ids = np.empty((height, len(vocabularies)), np.int32)
            for i, (column, vocabulary) in enumerate(zip(dataset.categorical, vocabularies, strict=True)):
                ids[:, i] = vocabulary.ids(table[column])
            ids.tofile(sparse)
            rows += height
            bar.update(height)
    return rows


def _labels(values: pl.Series, block: Block, where: Where) -> np.ndarray:
    labels = values.replace_strict({"0": 0, "1": 1}, default=None, return_dtype=pl.UInt8)
    _refuse(values, labels.is_null(), "0 or 1", block, where)
    return labels.to_numpy()


def _dense(values: pl.Series, transform: str, block: Block, where: Where) -> np.ndarray:
    numbers = values.str.strip_chars().replace("", None).cast(pl.Float64, strict=False)
    present = values.is_not_null() & (values.str.strip_chars() != "")
    _refuse(values, present & (numbers.is_null() | ~numbers.is_finite().fill_null(True)), "a number", block, where)
    filled = numbers.fill_null(0.0).to_numpy()
    return np.log1p(np.maximum(filled, 0.0)) if transform == "log1p" else filled


def _refuse(values: pl.Series, wrong: pl.Series, expected: str, block: Block, where: Where) -> None:
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise RawError(
            f"{where(block.first_row + row)}: column {values.name!r} is {values[row]!r}; expected {expected}"
        )


def _lay_out(
    path: Path, dtype: np.dtype, shape: tuple[int, ...], split_of_row: np.ndarray, split_rows: tuple[int, int, int]
) -> None:
    """Copy <path>.spool, in file order, to <path>.npy: each split's rows together, their order kept."""
    spool = path.with_suffix(".spool")
    target = np.lib.format.open_memmap(path.with_suffix(".npy"), mode="w+", dtype=dtype, shape=shape)
    if target.size:
        source = np.memmap(spool, dtype=dtype, mode="r", shape=shape)
        cursors = np.concatenate(([0], np.cumsum(split_rows)[:-1]))
        for start in range(0, shape[0], COPY_ROWS):
            of_row = split_of_row[start : start + COPY_ROWS]
            for i in range(len(SPLITS)):
                part = source[start : start + COPY_ROWS][of_row == i]
                target[cursors[i] : cursors[i] + len(part)] = part
                cursors[i] += len(part)
    target.flush()
    spool.unlink()


def _check_counts(dataset: Dataset, schema: Schema) -> None:
    """A whole data set has the counts that are known of it. Fewer rows are a part of it, and have fewer values."""
    rows = sum(schema.rows.values())
    if dataset.rows is None or rows < dataset.rows:
        return
    if rows > dataset.rows:
        raise RawError(f"{dataset.name}: {rows:,} rows; expected at most {dataset.rows:,}")
    for column, found, expected in zip(dataset.categorical, schema.table_rows, dataset.table_rows or (), strict=False):
        if found != expected:
            raise RawError(f"{dataset.name}: column {column!r} has {found:,} distinct values; expected {expected:,}")
