"""A data set's directory -> its columns, memory-mapped, and seeded batches of them."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlrm_mlet.toml import build

SPLITS = ("train", "validation", "test")


class ColumnsError(ValueError):
    """A data set's directory that is missing, damaged or incomplete: names the file and what was expected."""


@dataclass(frozen=True)
class Schema:
    """What a data set's directory holds: schema.json."""

    dataset: str
    label: str
    dense: tuple[str, ...]
    categorical: tuple[str, ...]
    table_rows: tuple[int, ...]
    """n of each categorical column: the rows of its table."""
    rows: dict[str, int]
    """Rows of each split; they lie in this order."""
    split: str
    split_seed: int
    transform: dict[str, str]
    source: dict[str, str | int]
    """The raw file: its name, and its text's bytes and sha256."""
    vocabulary: str
    """SHA-256 of the values, in the order of their ids."""
    mismatches: tuple[str, ...]
    """What differs from the counts that are known of the whole data set."""
    null_values: tuple[str, ...] = ()
    integer: tuple[str, ...] = ()
    """These two as in the data set: what predict has to read in the same way."""

    def as_dict(self) -> dict[str, Any]:
        """As in schema.json."""
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits that differ where the columns could; the name of the raw file is nothing to them."""
        said = self.as_dict()
        if "sha256" in self.source:
            said["source"] = {key: value for key, value in self.source.items() if key != "name"}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


class Batch(NamedTuple):
    """B rows of a data set."""

    dense: Tensor  # (B, dense columns) float32
    sparse: Tensor  # (B, F) int32
    label: Tensor  # (B,) float32: 0 or 1

    def to(self, device: torch.device) -> "Batch":
        """The same rows on a device."""
        return Batch(self.dense.to(device), self.sparse.to(device), self.label.to(device))


@dataclass(frozen=True)
class Columns:
    """All rows of a data set, still on disk: dense (rows, dense columns), sparse (rows, F), label (rows,)."""

    schema: Schema
    dense: Tensor
    sparse: Tensor
    label: Tensor

    def arrays(self) -> tuple[Tensor, Tensor, Tensor]:
        """dense, sparse and label."""
        return self.dense, self.sparse, self.label

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(array.nbytes for array in self.arrays())

    def to(self, device: torch.device) -> "Columns":
        """The same columns, all of them resident on a device."""
        dense, sparse, label = (array.to(device) for array in self.arrays())
        return replace(self, dense=dense, sparse=sparse, label=label)

    def range(self, split: str) -> tuple[int, int]:
        """First row of a split, and the row after its last."""
        start = sum(self.schema.rows[name] for name in SPLITS[: SPLITS.index(split)])
        return start, start + self.schema.rows[split]

    def rows(self, chosen: Tensor | slice) -> Batch:
        """The rows at the given places, in memory."""
        return Batch(self.dense[chosen], self.sparse[chosen], self.label[chosen].float())

    def order(self, split: str, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        """(rows of the split,): their places in an order drawn from `generator`; with several, an axis before it."""
        start, stop = self.range(split)
        if isinstance(generator, torch.Generator):
            return torch.randperm(stop - start, generator=generator) + start
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.stack(list(pool.map(lambda each: self.order(split, each), generator)))

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """The rows at these places (..., rows), batch after batch."""
        for chosen in order.to(self.label.device).split(batch_size, dim=-1):
            yield self.rows(chosen)

    def shuffled(
        self, split: str, batch_size: int, generator: torch.Generator | Sequence[torch.Generator]
    ) -> Iterator[Batch]:
        """Every row of a split once, in an order drawn from `generator`, batch after batch.

        With several generators there are as many orders, and a batch has one more axis before the others.
        """
        return self.batches(self.order(split, generator), batch_size)

    def in_order(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Every row of a split once, in the order in which it lies on disk."""
        start, stop = self.range(split)
        for first in range(start, stop, batch_size):
            yield self.rows(slice(first, min(first + batch_size, stop)))


def load(directory: str | Path) -> Columns:
    """The columns that `dlrm-mlet preprocess` wrote. Raises ColumnsError where they are missing or damaged.

    Every id is one of its table's rows.
    """
    directory = Path(directory)
    path = directory / "schema.json"
    try:
        schema = build(Schema, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ColumnsError(f"{path}: no such file; expected a data set that `dlrm-mlet preprocess` wrote") from None
    except (ValueError, TypeError) as error:
        raise ColumnsError(f"{path}: not a data set's schema: {error}; preprocess it again") from None
    rows = sum(schema.rows.values())
    columns = Columns(
        schema,
        dense=_map(directory / "dense.npy", (rows, len(schema.dense)), np.float32),
        sparse=_map(directory / "sparse.npy", (rows, len(schema.categorical)), np.int32),
        label=_map(directory / "label.npy", (rows,), np.uint8),
    )
    _check_ids(columns, directory / "sparse.npy")
    return columns


def _check_ids(columns: Columns, path: Path) -> None:
    """Refuse an id that its table doesn't have, once, so that no step of a training needs to look."""
    limits = torch.tensor(columns.schema.table_rows, dtype=torch.int32)
    for part in columns.sparse.split(1 << 20):
        if len(part) and len(limits) and ((part.amin(dim=0) < 0) | (part.amax(dim=0) >= limits)).any():
            wrong = (columns.sparse < 0) | (columns.sparse >= limits)
            row, f = wrong.nonzero()[0].tolist()
            name, id = columns.schema.categorical[f], columns.sparse[row, f].item()
            raise ColumnsError(
                f"{path}: row {row} of {name} has id {id}; expected 0 to {limits[f].item() - 1}; "
                "preprocess the data set again"
            )


def _map(path: Path, shape: tuple[int, ...], dtype: type) -> Tensor:
    try:
        # copy-on-write, because torch wants memory that it may write to; nobody does
        array = np.load(path, mmap_mode="c" if np.prod(shape) else None)
    except FileNotFoundError:
        raise ColumnsError(f"{path}: no such file; preprocess the data set again") from None
    except (ValueError, EOFError) as error:
        raise ColumnsError(f"{path}: damaged ({error}); preprocess the data set again") from None
    if array.shape != shape or array.dtype != dtype:
        expected = f"{shape} of {np.dtype(dtype)}, as schema.json says"
        raise ColumnsError(f"{path}: {array.shape} of {array.dtype}; expected {expected}")
    return torch.from_numpy(array)
