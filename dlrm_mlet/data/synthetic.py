"""A data set's name and a seed -> a raw file of its format and any size, with clicks planted by a low-rank rule.

What is made has the column layout, the missing values, power-law frequencies and, at the full number of rows, about
the published number of distinct values of the real file. It shows that a pipeline works at size; no figure of it says
anything about the real data.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from dlrm_mlet.data.datasets import AVAZU, CRITEO_KAGGLE
from dlrm_mlet.extras import needs
from dlrm_mlet.files import replacing
from dlrm_mlet.toml import ConfigError

with needs("data"):
    from tqdm import tqdm

CHUNK_ROWS = 1 << 17
EXPONENT = 0.9
"""Of the power law: the r-th most frequent value is drawn with a probability proportional to r^-EXPONENT."""
RANK = 4
"""Of the click rule: the click's logit is a sum of dot products of vectors of this length, one a value and column."""
CLUSTERS = 1024
"""Distinct vectors a column: values share them, so that rare values too can be learned of."""


@dataclass(frozen=True)
class Ids:
    """A categorical column: how many distinct values it has at the full number of rows, and how they are written."""

    distinct: int
    missing: float = 0.0
    hexadecimal: bool = True


@dataclass(frozen=True)
class Counts:
    """A dense column of whole numbers with a long tail, from `least` up."""

    scale: float
    missing: float = 0.0
    least: int = 0


Field = Ids | Counts | str
"""A column; "label", "row" (a unique number) and "hour" (YYMMDDHH, ascending over ten days) stand for themselves."""


@dataclass(frozen=True)
class Layout:
    """A raw format: its columns in order, its separator and header, and the click rate to come near to."""

    fields: tuple[Field, ...]
    separator: str
    header: str
    rows: int
    click_rate: float


def _criteo_kaggle() -> Layout:
    scales = (2, 30, 10, 6, 5000, 60, 10, 10, 80, 1, 3, 1, 6)
    dense = [
        Counts(scale, missing=0.45 if i in (0, 9) else 0.75 if i == 11 else 0.15, least=-2 if i == 1 else 0)
        for i, scale in enumerate(scales)
    ]
    # many values go with many missing ones in the real file, on the whole
    sparse = [
        Ids(n, missing=0.4 if n in (10, 18) else 0.08 if n > 2_000_000 else 0.0) for n in CRITEO_KAGGLE.table_rows or ()
    ]
    return Layout(("label", *dense, *sparse), "\t", "", CRITEO_KAGGLE.rows or 0, 0.256)


def _avazu() -> Layout:
    known = dict(zip(AVAZU.categorical, AVAZU_DISTINCT, strict=True))
    sparse = [Ids(n, hexadecimal=column in AVAZU.hexadecimal) for column, n in known.items()]
    header = ",".join(("id", "click", "hour", *AVAZU.categorical)) + "\n"
    return Layout(("row", "label", "hour", *sparse), ",", header, AVAZU.rows or 0, 0.17)


AVAZU_DISTINCT = (7, 7, 4697, 7671, 26, 8472, 553, 36, 2662435, 6668831, 8185, 5, 4, 2625, 8, 9, 435, 4, 68, 172, 60)
LAYOUTS: dict[str, Callable[[], Layout]] = {CRITEO_KAGGLE.name: _criteo_kaggle, AVAZU.name: _avazu}


def synthesize(name: str, rows: int, out: Path, seed: int = 0) -> None:
    """Write a raw file of `rows` rows in the format of criteo-kaggle or avazu; `out` appears when it is whole.

    The same name, rows and seed give the same bytes. Memory doesn't grow with the number of rows.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"data set {name!r}: can't be synthesized; expected one of {', '.join(LAYOUTS)}")
    if rows < 1:
        raise ConfigError(f"--rows {rows}: expected at least 1")
    layout = LAYOUTS[name]()
    rule = _Rule(layout, seed)
    starts = range(0, rows, CHUNK_ROWS)
    with replacing(out) as partial, partial.open("wb") as file:
        file.write(layout.header.encode())
        with tqdm(total=rows, desc=f"writing {out.name}", unit=" rows", unit_scale=True, disable=None) as bar:
            for text, count in _in_order(lambda start: rule.chunk(start, min(CHUNK_ROWS, rows - start), rows), starts):
                file.write(text)
                bar.update(count)


def _in_order(
    make: Callable[[int], tuple[bytes, int]], starts: range, workers: int = os.cpu_count() or 1
) -> Iterator[tuple[bytes, int]]:
    """make(start) for each start, in order, some of them ahead in threads."""
    with ThreadPoolExecutor(workers) as executor:
        ahead: deque[Future[tuple[bytes, int]]] = deque()
        for start in starts:
            ahead.append(executor.submit(make, start))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class _Rule:
    """The planted truth: each column's vocabulary, and the vectors of its values."""

    def __init__(self, layout: Layout, seed: int):
        self.layout, self.seed = layout, seed
        self.ids = [field for field in layout.fields if isinstance(field, Ids)]
        self.vocabulary = {n: vocabulary_size(n, layout.rows) for n in {field.distinct for field in self.ids}}
        rng = np.random.default_rng([seed, 0])
        # (F, CLUSTERS, RANK): of a size that makes the logit's standard deviation about 1.5
        size = (1.5 / np.sqrt(RANK * len(self.ids) * (len(self.ids) - 1) / 2)) ** 0.5
        self.vectors = rng.normal(0, size, (len(self.ids), CLUSTERS, RANK)).astype(np.float32)
        self.bias = float(np.log(layout.click_rate / (1 - layout.click_rate)) * 1.35)  # the logit's spread pulls to 1/2

    def chunk(self, start: int, count: int, rows: int) -> tuple[bytes, int]:
        """The text of rows start to start + count of a file of `rows` rows, and count."""
        rng = np.random.default_rng([self.seed, 1, start])
        columns: list[np.ndarray] = []
        total = np.zeros((count, RANK), np.float32)
        squares = np.zeros(count, np.float32)
        column = 0
        for field in self.layout.fields:
            if isinstance(field, Ids):
                ranks = draw_ranks(rng, self.vocabulary[field.distinct], count)
                vectors = self.vectors[column][_mix(ranks, 77) % CLUSTERS]
                total += vectors
                squares += np.einsum("ij,ij->i", vectors, vectors)
                written = (
                    _hexadecimal(_mix(ranks, column)) if field.hexadecimal else _decimal(ranks.astype(np.int64) + 1000)
                )
                columns.append(_blank(rng, written, field.missing))
                column += 1
            elif isinstance(field, Counts):
                numbers = (field.scale * (rng.standard_exponential(count, np.float32) ** 2)).astype(
                    np.int64
                ) + field.least
                columns.append(_blank(rng, _decimal(numbers), field.missing))
            elif field == "hour":
                columns.append(_decimal(hours(start, count, rows)))
            elif field == "row":
                columns.append(_decimal(np.arange(start, start + count, dtype=np.int64) + 10**18))
            else:
                columns.append(np.zeros((count, 1), np.uint8))  # the label, which the others decide
        logits = self.bias + (np.einsum("ij,ij->i", total, total) - squares) / 2  # the sum over pairs of columns
        clicks = rng.random(count, np.float32) < 1 / (1 + np.exp(-logits))
        columns[self.layout.fields.index("label")][:, 0] = ord("0") + clicks
        return _lines(columns, self.layout.separator), count


def vocabulary_size(distinct: int, rows: int) -> int:
    """How many values a power law must reach over so that `rows` draws from it hold about `distinct` different ones."""
    low, high = distinct, 4 * rows
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        # values in groups of about the same rank; a value of probability p is drawn at all with 1 - exp(-rows p)
        edges = np.unique(np.geomspace(1, middle + 1, 2000))
        ranks, group = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
        weights = ranks**-EXPONENT
        seen = group @ -np.expm1(-rows * weights / (group @ weights))
        low, high = (middle, high) if seen < distinct else (low, middle)
    return low


def draw_ranks(rng: np.random.Generator, values: int, count: int) -> np.ndarray:
    """(count,) uint32 ranks from 0 to values - 1, by inversion of the power law's distribution."""
    top = (values + 1.0) ** (1 - EXPONENT)
    uniform = rng.random(count, np.float32).astype(np.float64) + rng.random(count, np.float32) * 2.0**-24
    ranks = (1 - uniform * (1 - top)) ** (1 / (1 - EXPONENT))
    return np.minimum(ranks.astype(np.int64) - 1, values - 1).astype(np.uint32)


def hours(start: int, count: int, rows: int) -> np.ndarray:
    """YYMMDDHH of some rows of `rows`, which go in equal steps through the ten days from 21 October 2014, 00h."""
    begin, all_hours = datetime(2014, 10, 21), 240
    names = [int((begin + timedelta(hours=hour)).strftime("%y%m%d%H")) for hour in range(all_hours)]
    return np.array(names)[(start + np.arange(count)) * all_hours // rows]


def _mix(ranks: np.ndarray, column: int) -> np.ndarray:
    """A bijection of 32-bit numbers, another one for each column, that scatters them."""
    mixed = ranks * np.uint32(2654435761) + np.uint32((column + 1) * 0xC2B2AE3D & 0xFFFFFFFF)
    mixed ^= mixed >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    return mixed


_HEX = np.array([list(f"{number:04x}".encode()) for number in range(1 << 16)], np.uint8)
_POWERS = 10 ** np.arange(18, -1, -1, dtype=np.int64)


def _hexadecimal(numbers: np.ndarray) -> np.ndarray:
    """(rows,) uint32 -> (rows, 8) characters."""
    return np.hstack((_HEX[numbers >> np.uint32(16)], _HEX[numbers & np.uint32(0xFFFF)]))


def _decimal(numbers: np.ndarray) -> np.ndarray:
    """(rows,) whole numbers -> (rows, width) characters, 0 where there is none."""
    width = len(str(np.abs(numbers).max()))
    digits = np.abs(numbers)[:, None] // _POWERS[-width:]
    text = (digits % 10 + ord("0")).astype(np.uint8)
    text[:, :-1][digits[:, :-1] == 0] = 0  # no leading zeros
    sign = np.where(numbers < 0, np.uint8(ord("-")), np.uint8(0))
    return np.hstack((sign[:, None], text)) if (numbers < 0).any() else text


def _blank(rng: np.random.Generator, text: np.ndarray, missing: float) -> np.ndarray:
    if missing:
        text[rng.random(len(text), np.float32) < missing] = 0
    return text


def _lines(columns: list[np.ndarray], separator: str) -> bytes:
    """Columns of characters -> the text of all rows; a 0 is no character."""
    width = sum(column.shape[1] + 1 for column in columns)
    text = np.full((len(columns[0]), width), ord(separator), np.uint8)
    place = 0
    for column in columns:
        text[:, place : place + column.shape[1]] = column
        place += column.shape[1] + 1
    text[:, -1] = ord("\n")
    return text[text != 0].tobytes()
