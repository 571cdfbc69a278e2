"""Raw rows -> columns on disk: numbers transformed, values numbered, rows laid out by split; in bounded memory."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from dlrm_mlet.data import complete_journey, flights
from dlrm_mlet.data.columns import SPLITS, Schema
from dlrm_mlet.data.datasets import COMPLETE_JOURNEY, COMPLETE_JOURNEY_BY_TIME, FLIGHTS, Dataset
from dlrm_mlet.data.raw import Block, RawError, ahead, open_raw
from dlrm_mlet.data.vocabulary import Categories, Hexadecimals, Labels, Numbers, SpooledColumn, Texts
from dlrm_mlet.extras import needs
from dlrm_mlet.files import replacing_directory, write_json

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


def preprocess(dataset: Dataset, out: Path, raw: Path | None = None, force: bool = False) -> Schema:
    """Write the data set's directory `out`, which appears whole or not at all, and return its schema.

    `raw` is a CSV, TSV or Parquet file, delimited text also as .gz or .zip, or a directory of such files; the bundled
    data sets need none. What was made of other rows is replaced only with `force`. It is read once, in blocks, each
    column going to a file of its own; then values are numbered, and rows are laid out as training, validation, test,
    each in the file's order. The values themselves are kept in vocabulary/<column>.arrow, the n-th one being that of
    id n.

    Raises RawError, which names the file and line, at the first row that doesn't fit the data set. Counts that differ
    from what is known of the whole data set are no error: the schema lists them as mismatches.
    """
    columns = (dataset.label, *dataset.dense, *dataset.categorical)
    source: dict[str, str | int]
    with replacing_directory(out) as directory:
        if raw is not None:
            reader = open_raw(raw, columns, dataset.dense, dataset.hexadecimal, dataset.format)
            source = reader.description  # complete once all blocks are read
            blocks, where = reader.blocks(), reader.where
        elif bundled := BUNDLED.get(dataset.name):
            table, version = bundled.raw_table()
            source = {"name": f"{bundled.PACKAGE} {version}"}
            blocks, where = (
                iter([Block(table.select(columns), 0, 1.0)]),
                lambda row: f"{bundled.PACKAGE}: row {row + 1}",
            )
        else:
            raise RawError(f"data set {dataset.name!r} isn't bundled; expected the path of its raw file (--raw)")
        label = Labels(dataset.label, directory, dataset.positive)
        dense = [Numbers(name, directory, dataset.transform.get(name, "log1p")) for name in dataset.dense]
        sparse: list[Categories] = [
            Hexadecimals(c, directory) if c in dataset.hexadecimal else Texts(c, directory, c in dataset.integer)
            for c in dataset.categorical
        ]
        rows = _spool(dataset, blocks, where, [label, *dense, *sparse])
        if rows < 10:
            raise RawError(f"{raw}: {rows} rows; expected at least 10, to split them")
        split_rows = split_sizes(dataset, rows)
        of_row = None
        if dataset.split == "random":
            of_row = np.repeat(np.arange(len(SPLITS), dtype=np.uint8), split_rows)
            np.random.default_rng(dataset.split_seed).shuffle(of_row)
        (directory / "vocabulary").mkdir()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            numbering = [pool.submit(column.number, rows, directory / "vocabulary") for column in sparse]
            others = [
                pool.submit(_assemble, directory / "dense.npy", dense, (rows, len(dense)), of_row, split_rows),
                pool.submit(_assemble, directory / "label.npy", [label], (rows,), of_row, split_rows),
            ]
            table_rows, digests = zip(*(future.result() for future in numbering), strict=True)
            _assemble(directory / "sparse.npy", sparse, (rows, len(sparse)), of_row, split_rows)
            for future in others:
                future.result()
        if not force:
            _refuse_others(out, dataset.name, source)
        schema = Schema(
            dataset=dataset.name,
            label=dataset.label,
            dense=dataset.dense,
            categorical=dataset.categorical,
            table_rows=table_rows,
            rows=dict(zip(SPLITS, split_rows, strict=True)),
            split=dataset.split,
            split_seed=dataset.split_seed,
            transform={column.name: column.transform for column in dense},
            source=source,
            vocabulary=hashlib.sha256("".join(digests).encode()).hexdigest(),
            mismatches=mismatches(dataset, rows, table_rows),
            null_values=dataset.null_values,
            integer=dataset.integer,
        )
        write_json(directory / "schema.json", schema.as_dict())
    return schema


def _refuse_others(out: Path, name: str, source: dict[str, str | int]) -> None:
    """Raise RawError where the directory has a data set of other rows, which nobody asked to be rid of."""
    try:
        held = json.loads((out / "schema.json").read_text(encoding="utf-8"))
        before = held["dataset"], held["source"].get("sha256", held["source"]["name"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # no data set, or none that is whole
    if before != (name, source.get("sha256", source["name"])):
        raise RawError(f"{out}: has {held['dataset']} of {held['source']['name']}; expected another --out, or --force")


def split_sizes(dataset: Dataset, rows: int) -> tuple[int, int, int]:
    """Rows of training, validation and test."""
    if dataset.split == "days":
        # seven near-equal days, the remainder going to the first ones; the last one is halved
        last_day = rows // 7
        return rows - last_day, last_day - last_day // 2, last_day // 2
    tenth = rows // 10
    return rows - 2 * tenth, tenth, tenth


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
            table = block.table.filter(_kept(block)) if dataset.lost_rows else block.table
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
    row_bytes = dtype.itemsize * len(columns)
    with ExitStack() as stack:
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
        for start in range(0, shape[0] if columns else 0, at_once):
            count = min(at_once, shape[0] - start)
            rows = np.empty((count, len(columns)), dtype)
            for i, column in enumerate(columns):
                rows[:, i] = np.fromfile(column.path, dtype, count, offset=start * dtype.itemsize)
            if split_of_row is None:
                rows.tofile(parts[0])
                continue
            for i, part in enumerate(parts):
                rows[split_of_row[start : start + count] == i].tofile(part)
    for column in columns:
        column.path.unlink()
