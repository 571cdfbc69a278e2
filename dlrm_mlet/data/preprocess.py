"""Raw rows -> columns on disk: numbers transformed, values numbered, rows laid out by split; in bounded memory."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlrm_mlet.data import complete_journey, flights
from dlrm_mlet.data import schema as schemas
from dlrm_mlet.data.blocks import Block, RawError
from dlrm_mlet.data.datasets import BUILT_IN, COMPLETE_JOURNEY, COMPLETE_JOURNEY_BY_TIME, FLIGHTS, Dataset
from dlrm_mlet.data.delimited import ahead
from dlrm_mlet.data.raw import Parts
from dlrm_mlet.data.rows import open_rows, with_columns
from dlrm_mlet.data.schema import SPLITS, ColumnsError, Schema
from dlrm_mlet.data.splits import deal
from dlrm_mlet.data.spool import (
    Categories,
    Hashed,
    Hexadecimals,
    Labels,
    Moments,
    Numbered,
    Numbering,
    Numbers,
    SplitNames,
    SpooledColumn,
    Texts,
    Weights,
    put,
)
from dlrm_mlet.data.vocabulary import LARGEST, Vocabulary, digest_of, load_all
from dlrm_mlet.extras import needs
from dlrm_mlet.files import alone, replacing_directory, write_json, writing

with needs("data"):
    import polars as pl
    from tqdm import tqdm

BUNDLED = {
    FLIGHTS.name: flights,
    COMPLETE_JOURNEY.name: complete_journey,
    COMPLETE_JOURNEY_BY_TIME.name: complete_journey,
}
"""Where the rows of the data sets come from that are installed with this package."""
COPY_ROWS = 1 << 14
COPY_BYTES = 4 << 20
"""Rows, or bytes where they are few, that are laid out at once."""
LOADER_ROWS = 100_000
MANY = 0.01
"""The share of a column's numbers below 0 from which on it is told of."""
OURS = ("dense.npy", "sparse.npy", "label.npy", "weight.npy", "schema.json", "vocabulary")
"""What a data set's directory may hold."""
ALIKE = (
    "dense", "categorical", "transform", "integer", "hexadecimal", "multi_valued", "hash_buckets", "times", "min_count",
)  # fmt: skip
"""Keys in which a data set is like the one that it extends."""


def preprocess(
    dataset: Dataset,
    out: Path,
    raw: Path | Sequence[Path] | None = None,
    force: bool = False,
    extend: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Schema:
    """Write the data set's directory `out`, which appears whole or not at all, and return its schema.

    `raw` is a CSV, TSV or Parquet file, delimited text also as .gz or .zip, or a directory of such files, or several
    of these, one after another (three where the data set is split by files); the bundled data sets need none. What was
    made of other rows is replaced only with `force`. It is read once, in blocks, each column going to a file of its
    own; then values are numbered, and rows are laid out as training, validation, test, each in the file's order. The
    values themselves are kept in vocabulary/<column>.arrow, the n-th one being that of id n; a null among texts is
    where rare ones have their id. With `extend`, the directory of the same data set's earlier rows, values have the
    ids that they have there, and new ones come after them.

    Raises RawError, which names the file and line, at the first row that doesn't fit the data set, or where a split
    would be empty. Counts that differ from what is known of the whole data set are no error: the schema lists them as
    mismatches. `report` is told of what is no error, and perhaps not meant, in a data set of one's own: numbers below 0
    that become 0.
    """
    paths = [raw] if isinstance(raw, Path) else list(raw or [])
    if dataset.split == "files" and len(paths) != len(SPLITS):
        raise RawError(f"{len(paths)} raw files; expected three, of training, validation and test: split = 'files'")
    named = ", ".join(map(str, paths))
    before = _before(dataset, extend)
    with alone(out, "data set"), replacing_directory(out, _check_ours) as directory:
        opened = _open(dataset, paths)
        columns = _columns(dataset, directory)
        rows = _spool(dataset, opened.blocks, opened.where, columns.all)
        if rows < 10:
            raise RawError(f"{named}: {rows} rows; expected at least 10, to split them")
        for column in columns.dense if dataset.name not in BUILT_IN else ():
            if column.below > MANY * rows:
                report(f"{column.name}: {column.below:,} of {rows:,} numbers are below 0, which log1p takes as 0; see "
                       f"[transform] {column.name} = \"identity\"")  # fmt: skip
        if not force:
            _refuse_others(out, dataset.name, opened.source)
        of_row, split_rows = deal(dataset, rows, columns.splitting, opened.heights)
        if empty := [name for name, count in zip(SPLITS, split_rows, strict=True) if not count]:
            raise RawError(f"{named}: no row is of {empty[0]}; expected some of each split: split = {dataset.split!r}")
        numbered = _lay_out(dataset, columns, directory, of_row, split_rows, before)
        if columns.weight:
            _divide_by_mean(directory / "weight.npy", split_rows, named)
        for name, found in zip(dataset.categorical, numbered, strict=True):
            if not found.table_rows:
                raise RawError(f"{named}: column {name!r} has no value at all in training; expected some to embed")
        arrays = sorted(directory.glob("*.npy"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = {array.name: digest for array, digest in zip(arrays, pool.map(digest_of, arrays), strict=True)}
        schema = Schema(
            dataset=dataset.name,
            label=dataset.label,
            dense=dataset.dense,
            categorical=dataset.categorical,
            table_rows=tuple(found.table_rows for found in numbered),
            rows=dict(zip(SPLITS, split_rows, strict=True)),
            split=dataset.split,
            split_seed=dataset.split_seed,
            transform={column.name: column.transform for column in columns.dense},
            source=opened.source,
            vocabulary=hashlib.sha256("".join(found.digest for found in numbered).encode()).hexdigest(),
            mismatches=mismatches(dataset, rows, [found.table_rows for found in numbered]),
            null_values=dataset.null_values,
            integer=dataset.integer,
            described=dataset.described(),
            fallback=tuple(found.fallback for found in numbered),
            extends=() if extend is None else _line_of(extend),
            files=files,
        )
        write_json(directory / "schema.json", schema.as_dict())
    return schema


class _Opened(NamedTuple):
    """Raw rows that are about to be read."""

    blocks: Iterator[Block]
    where: Callable[[int], str]
    """Where a row is, for an error."""
    source: dict[str, str | int]
    """What they are, as the schema has it: complete once all blocks are read."""
    heights: list[int]
    """The rows of each of several files, once they are read."""


def _open(dataset: Dataset, paths: Sequence[Path]) -> _Opened:
    if paths:
        reader = open_rows(dataset, paths, dataset.hexadecimal, dataset.format)
        heights = reader.heights if isinstance(reader, Parts) else []
        return _Opened(reader.blocks(), reader.where, reader.description, heights)
    if bundled := BUNDLED.get(dataset.name):
        table, version = bundled.raw_table()
        blocks = iter([Block(table.select(dataset.raw_columns()), 0, 1.0)])
        source: dict[str, str | int] = {"name": f"{bundled.PACKAGE} {version}"}
        return _Opened(blocks, lambda row: f"{bundled.PACKAGE}: row {row + 1}", source, [])
    raise RawError(f"data set {dataset.name!r} isn't bundled; expected the path of its raw file (--raw)")


@dataclass(frozen=True)
class _Columns:
    """A data set's columns, each with a file of its own until they are laid out."""

    label: Labels
    dense: list[Numbers]
    weight: list[Weights]
    sparse: list[Categories]
    splitting: list[SpooledColumn]
    """What says which split a row is of."""

    @property
    def all(self) -> list[SpooledColumn]:
        return [self.label, *self.dense, *self.weight, *self.sparse, *self.splitting]


def _columns(dataset: Dataset, directory: Path) -> _Columns:
    splitting: list[SpooledColumn] = []
    if dataset.split_by is not None:
        splitting = [{"time": Moments, "column": SplitNames}[dataset.split](dataset.split_by, directory)]
    return _Columns(
        Labels(dataset.label, directory, dataset.positive),
        [Numbers(name, directory, dataset.transform_of(name)) for name in dataset.dense],
        [Weights(dataset.weight, directory)] if dataset.weight else [],
        [_category(dataset, name, directory) for name in dataset.categorical],
        splitting,
    )


def _lay_out(
    dataset: Dataset,
    columns: _Columns,
    directory: Path,
    of_row: np.ndarray | None,
    split_rows: tuple[int, int, int],
    before: Mapping[str, Vocabulary | None],
) -> list[Numbered]:
    """Number the values and write the arrays, each split's rows together; what came of each column's values."""
    rows = sum(split_rows)
    training: slice | np.ndarray = slice(0, split_rows[0]) if of_row is None else of_row == 0
    kinds: list[tuple[str, Sequence[SpooledColumn], tuple[int, ...]]] = [
        ("dense", columns.dense, (rows, len(columns.dense))),
        ("label", [columns.label], (rows,)),
        *([("weight", columns.weight, (rows,))] if columns.weight else []),
    ]
    vocabulary = directory / "vocabulary"
    vocabulary.mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        numbering = [
            pool.submit(column.number, rows, vocabulary, Numbering(
                training, dataset.numbers_training_alone, dataset.least_count(column.name), before.get(column.name)
            ))
            for column in columns.sparse
        ]  # fmt: skip
        others = [
            pool.submit(_assemble, directory / f"{name}.npy", its, shape, of_row, split_rows)
            for name, its, shape in kinds
        ]
        numbered = [future.result() for future in numbering]
        shape = (rows, sum(column.width for column in columns.sparse))
        _assemble(directory / "sparse.npy", columns.sparse, shape, of_row, split_rows)
        for future in others:
            future.result()
    return numbered


def _category(dataset: Dataset, name: str, directory: Path) -> Categories:
    many, integer = dataset.multi_valued.get(name), name in dataset.integer
    found: Categories
    if name in dataset.hash_buckets:
        found = Hashed(name, directory, dataset.hash_buckets[name], integer, many)
    elif name in dataset.hexadecimal:
        found = Hexadecimals(name, directory)
    else:
        found = Texts(name, directory, integer, many)
    found.nulls = dataset.null_values
    return found


def _before(dataset: Dataset, extend: Path | None) -> dict[str, Vocabulary | None]:
    """The vocabularies of the data set that is extended. Raises ColumnsError where it is another one."""
    if extend is None:
        return {}
    schema = schemas.load(extend / "schema.json")
    found = load_all(extend / "vocabulary", schema)
    there = schema.as_dataset()
    for key in ALIKE:
        if getattr(there, key) != getattr(dataset, key):
            raise ColumnsError(
                f"{extend}: its {key} is {getattr(there, key)!r}, and this data set's {getattr(dataset, key)!r}; "
                "expected the same columns, to go on with their ids"
            )
    return found


def _line_of(extend: Path) -> tuple[str, ...]:
    schema = schemas.load(extend / "schema.json")
    return (schema.fingerprint, *schema.extends)


def _divide_by_mean(path: Path, split_rows: Sequence[int], named: str) -> None:
    """Weights with a mean of 1 over training, so that a learning rate means what it does without them."""
    weights = np.load(path, mmap_mode="r+")
    for name, mine in zip(SPLITS, np.split(weights, np.cumsum(split_rows)[:-1]), strict=True):
        if not mine.max() > 0:
            raise RawError(f"{named}: all weights of {name} are 0; expected some above")
    mean = float(weights[: split_rows[0]].mean(dtype=np.float64))
    if not float(weights.max()) / mean < LARGEST:
        raise RawError(f"{named}: a weight is {weights.max():g}, and their mean {mean:g}; expected less of a spread")
    weights /= np.float32(mean)
    weights.flush()


def lone_labels(directory: Path, schema: Schema) -> list[str]:
    """The splits of which all labels are alike, in words."""
    labels, first, found = np.load(directory / "label.npy", mmap_mode="r"), 0, []
    for split, count in schema.rows.items():
        mine = labels[first : first + count]
        if mine.min() == mine.max():
            found.append(f"all {count:,} rows of {split} have label {mine[0]}")
        first += count
    return found


def _check_ours(directory: Path) -> None:
    """Raise RawError where the directory has anything but a data set in it."""
    found = [path for path in directory.rglob("*") if not path.name.startswith(".")]
    known = {directory / name for name in OURS}
    strangers = [p for p in found if p not in known and (p.parent.name, p.suffix) != ("vocabulary", ".arrow")]
    if strangers:
        raise RawError(f"{min(strangers)}: is no part of a data set; expected another --out")
    try:
        schemas.load(directory / "schema.json")
    except ColumnsError as error:
        raise RawError(f"{directory}: has files, and no whole data set ({error}); expected another --out") from None


def _refuse_others(out: Path, name: str, source: dict[str, str | int]) -> None:
    """Raise RawError where the directory has a data set of other rows, which nobody asked to be rid of."""
    try:
        held = json.loads((out / "schema.json").read_text(encoding="utf-8"))
        before = held["dataset"], held["source"].get("sha256", held["source"]["name"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # no data set, or none that is whole
    if before != (name, source.get("sha256", source["name"])):
        raise RawError(f"{out}: has {held['dataset']} of {held['source']['name']}; expected another --out, or --force")


def mismatches(dataset: Dataset, rows: int, table_rows: Sequence[int]) -> tuple[str, ...]:
    """What differs from the counts that are known of the whole data set; fewer rows are a part of it, and no claim."""
    if dataset.rows is None or rows < dataset.rows:
        return ()
    found = [f"{rows:,} rows; expected {dataset.rows:,}"] if rows != dataset.rows else []
    for column, n, expected in zip(dataset.categorical, table_rows, dataset.table_rows or (), strict=False):
        if n != expected:
            found.append(f"column {column!r} has {n:,} distinct values; expected {expected:,}")
    return tuple(found)


def _spool(
    dataset: Dataset, blocks: Iterator[Block], where: Callable[[int], str], columns: Sequence[SpooledColumn]
) -> int:
    """Append each block to its columns' files; returns the number of rows."""
    rows = 0
    with ExitStack() as stack:
        shown = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        bar = stack.enter_context(tqdm(total=1.0, desc=f"reading {dataset.name}", bar_format=shown, disable=None))
        begin = time.perf_counter()
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        for block in ahead(blocks):
            table = with_columns(dataset, block, where)
            table = table.filter(_kept(block)) if dataset.lost_rows else table
            # the error of the first column that has one, by the row's place in the whole file
            list(
                pool.map(lambda column, block=block, table=table: column.append(table, block.first_row, where), columns)
            )
            rows += table.height
            bar.set_postfix_str(f"{rows:,} rows, {rows / (time.perf_counter() - begin):,.0f} rows/s", refresh=False)
            bar.update(block.read - bar.n)
    return rows - rows % LOADER_ROWS if dataset.lost_rows else rows


def _kept(block: Block) -> pl.Series:
    """Which rows the published Avazu loader kept; the tail that it lost is cut off at the end."""
    row = pl.Series(np.arange(block.first_row, block.first_row + block.table.height))
    return (row > 0) & ((row - 1) % (LOADER_ROWS + 1) < LOADER_ROWS)


def _assemble(
    path: Path,
    columns: Sequence[SpooledColumn],
    shape: tuple[int, ...],
    split_of_row: np.ndarray | None,
    split_rows: tuple[int, int, int],
) -> None:
    """Columns' files, in file order -> one .npy of `shape`, each split's rows together; the columns' files go.

    `split_of_row` is None where the file's order is the splits' order already.
    """
    dtype = columns[0].dtype if columns else np.dtype(np.float32)
    width = sum(column.width for column in columns)
    row_bytes = dtype.itemsize * width
    with writing(path), ExitStack() as stack:
        whole = stack.enter_context(path.open("wb"))
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(whole, header)
        begin = whole.tell()
        whole.truncate(begin + shape[0] * row_bytes)
        firsts = np.concatenate(([0], np.cumsum(split_rows)[:-1]))
        parts = [stack.enter_context(path.open("r+b")) for _ in firsts]
        for part, first in zip(parts, firsts, strict=True):
            part.seek(begin + int(first) * row_bytes)
        at_once = max(COPY_ROWS, COPY_BYTES // max(row_bytes, 1))

        def gathered() -> Iterator[tuple[int, np.ndarray]]:
            for start in range(0, shape[0] if columns else 0, at_once):
                count = min(at_once, shape[0] - start)
                rows = np.empty((count, width), dtype)
                place = 0
                for column in columns:
                    numbers, offset = count * column.width, start * column.width * dtype.itemsize
                    found = np.fromfile(column.path, dtype, numbers, offset=offset)
                    rows[:, place : place + column.width] = found.reshape(count, column.width)
                    place += column.width
                yield start, rows

        for start, rows in ahead(gathered()):
            if split_of_row is None:
                put(parts[0], rows)
                continue
            for i, part in enumerate(parts):
                put(part, rows[split_of_row[start : start + len(rows)] == i])
    for column in columns:
        column.path.unlink()
