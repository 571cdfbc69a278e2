"""A data set's rows -> which of training, validation and test each is of."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from dlrm_mlet.data.blocks import RawError
from dlrm_mlet.data.datasets import Dataset
from dlrm_mlet.data.rows import moments
from dlrm_mlet.data.schema import SPLITS
from dlrm_mlet.data.spool import SpooledColumn
from dlrm_mlet.extras import needs

with needs("data"):
    import polars as pl


def deal(
    dataset: Dataset, rows: int, by: Sequence[SpooledColumn], heights: Sequence[int]
) -> tuple[np.ndarray | None, tuple[int, int, int]]:
    """Of each row which split it is of, None where they lie in this order already; and the rows of each split.

    `by` is the column, if any, that decides; `heights` the rows of each raw file.
    """
    if by:
        values = np.fromfile(by[0].path, by[0].dtype, rows)
        by[0].path.unlink()
        if dataset.split == "time":
            starts = _starts(dataset, values)
            of_row = ((values >= starts[0]).astype(np.uint8) + (values >= starts[1])).astype(np.uint8)
        else:
            of_row = values
        first, second, third = np.bincount(of_row, minlength=len(SPLITS)).tolist()
        return of_row, (first, second, third)
    if dataset.split == "files":
        first, second, third = heights
        return None, (first, second, third)
    sizes = split_sizes(dataset, rows)
    if dataset.split != "random":
        return None, sizes
    of_row = np.repeat(np.arange(len(SPLITS), dtype=np.uint8), sizes)
    np.random.default_rng(dataset.split_seed).shuffle(of_row)
    return of_row, sizes


def _starts(dataset: Dataset, seconds: np.ndarray) -> tuple[int, int]:
    """When validation and test begin, in seconds since 1970."""
    if dataset.split_at:

        def refuse(wrong: pl.Series, expected: str) -> None:
            if wrong.any():
                raise RawError(f"split_at = {list(dataset.split_at)}: expected {expected}")

        first, second = moments(pl.Series(dataset.split_at), refuse).dt.epoch("s").to_list()
        if first >= second:
            raise RawError(f"split_at = {list(dataset.split_at)}: expected the earlier one first")
        return first, second
    train, validation, _ = split_sizes(dataset, len(seconds))
    places = [train, train + validation]
    first, second = np.partition(seconds, places)[places].tolist()
    return first, second


def split_sizes(dataset: Dataset, rows: int) -> tuple[int, int, int]:
    """Rows of training, validation and test."""
    if dataset.split == "days":
        # seven near-equal days, the remainder going to the first ones; the last one is halved
        last_day = rows // 7
        return rows - last_day, last_day - last_day // 2, last_day // 2
    validation, test = (int(rows * Fraction(str(share))) for share in dataset.fractions[1:])
    return rows - validation - test, validation, test
