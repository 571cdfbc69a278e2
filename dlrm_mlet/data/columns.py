"""A data set's directory -> its columns, memory-mapped, and seeded batches of them."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dlrm_mlet.data import schema as schemas
from dlrm_mlet.data.schema import LEFT_OUT, SPLITS, ColumnsError, Schema
from dlrm_mlet.files import recover


class Batch(NamedTuple):
    """B rows of a data set."""

    dense: Tensor  # (B, dense columns) float32
    sparse: Tensor  # (B, F) int32; of a multi-valued column as many as it may have values, -1 where it has fewer
    label: Tensor  # (B,) float32: 0 or 1
    weight: Tensor | None = None  # (B,) float32, where the data set has weights

    def to(self, device: torch.device) -> "Batch":
        """The same rows on a device."""
        return Batch(*(None if array is None else array.to(device) for array in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Columns:
    """All rows of a data set, still on disk: as in a `Batch`, label and weight (rows,)."""

    schema: Schema
    dense: Tensor
    sparse: Tensor
    label: Tensor
    weight: Tensor | None = None

    def arrays(self) -> dict[str, Tensor]:
        """dense, sparse, label, and weight where there is one."""
        found = {"dense": self.dense, "sparse": self.sparse, "label": self.label}
        return found if self.weight is None else found | {"weight": self.weight}

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(array.nbytes for array in self.arrays().values())

    def to(self, device: torch.device) -> "Columns":
        """The same columns, all of them resident on a device."""
        return self.of({name: array.to(device) for name, array in self.arrays().items()})

    def of(self, arrays: dict[str, Tensor]) -> "Columns":
        """The same data set's rows in other memory."""
        return Columns(self.schema, **arrays)

    def range(self, split: str) -> tuple[int, int]:
        """First row of a split, and the row after its last."""
        start = sum(self.schema.rows[name] for name in SPLITS[: SPLITS.index(split)])
        return start, start + self.schema.rows[split]

    def counts(self) -> list[Tensor]:
        """(n,) of each categorical column, on the CPU: how often each of its values occurs among the training rows."""
        columns = self.sparse[slice(*self.range("train"))].split(self.schema.slots, 1)
        pairs = zip(columns, self.schema.table_rows, strict=True)
        return [torch.bincount(column[column >= 0], minlength=n).cpu() for column, n in pairs]

    def lacks_a_label(self, split: str) -> str | None:
        """Why the split has no AUC, where all its labels are alike; else None."""
        labels = self.label[slice(*self.range(split))].unique().tolist()
        return None if len(labels) > 1 else f"all {self.schema.rows[split]:,} rows of {split} have label {labels[0]}"

    def rows(self, chosen: Tensor | slice) -> Batch:
        """The rows at the given places, in memory."""
        weight = None if self.weight is None else self.weight[chosen]
        return Batch(self.dense[chosen], self.sparse[chosen], self.label[chosen].float(), weight)

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
    recover(directory)
    return check(directory, schemas.load(directory / "schema.json"))


def check(directory: Path, schema: Schema) -> Columns:
    """The columns of the directory, which is left as it is. Raises as `load` does."""
    rows = sum(schema.rows.values())
    columns = Columns(
        schema,
        dense=_map(directory / "dense.npy", (rows, len(schema.dense)), np.float32),
        sparse=_map(directory / "sparse.npy", (rows, sum(schema.slots)), np.int32),
        label=_map(directory / "label.npy", (rows,), np.uint8),
        weight=_map(directory / "weight.npy", (rows,), np.float32) if schema.weight else None,
    )
    _check_ids(columns, directory / "sparse.npy")
    _check_numbers(columns, directory)
    return columns


def _check_numbers(columns: Columns, directory: Path) -> None:
    """Refuse labels that are none, and numbers that aren't finite."""
    for name, array in columns.arrays().items():
        for first in range(0, len(array) if name != "sparse" else 0, 1 << 20):
            part = array[first : first + (1 << 20)]
            most = part.abs().max() if part.numel() else torch.zeros(())  # NaN where there is one
            if not most.isfinite() or (name == "label" and most > 1):
                expected = "0 and 1" if name == "label" else "finite numbers"
                raise ColumnsError(
                    f"{directory / name}.npy: has {most.item()} in rows {first} to {first + len(part) - 1}; expected "
                    f"{expected}; preprocess the data set again"
                )


def _check_ids(columns: Columns, path: Path) -> None:
    """Refuse an id that its table doesn't have, once, so that no step of a training needs to look."""
    schema = columns.schema
    slots = torch.tensor(schema.slots)
    limits = torch.tensor(schema.table_rows, dtype=torch.int32).repeat_interleave(slots)
    lowest = torch.tensor([LEFT_OUT if kind else 0 for kind in schema.pooling], dtype=torch.int32)
    lowest = lowest.repeat_interleave(slots)
    for part in columns.sparse.split(1 << 20):
        if len(part) and len(limits) and ((part.amin(dim=0) < lowest) | (part.amax(dim=0) >= limits)).any():
            wrong = (columns.sparse < lowest) | (columns.sparse >= limits)
            row, place = wrong.nonzero()[0].tolist()
            f = int(torch.arange(len(slots)).repeat_interleave(slots)[place])
            name, id = schema.categorical[f], columns.sparse[row, place].item()
            raise ColumnsError(
                f"{path}: row {row} of {name} has id {id}; expected {lowest[place]} to {limits[place].item() - 1}; "
                "preprocess the data set again"
            )


def _map(path: Path, shape: tuple[int, ...], dtype: type) -> Tensor:
    try:
        # copy-on-write, because torch wants memory that it may write to; nobody does
        array = np.load(path, mmap_mode="c" if np.prod(shape) else None)
    except FileNotFoundError:
        raise ColumnsError(f"{path}: no such file; preprocess the data set again") from None
    except Exception as error:  # a header is read as Python, and can fail in every way that this can
        raise ColumnsError(f"{path}: damaged ({error}); preprocess the data set again") from None
    if array.shape != shape or array.dtype != dtype:
        expected = f"{shape} of {np.dtype(dtype)}, as schema.json says"
        raise ColumnsError(f"{path}: {array.shape} of {array.dtype}; expected {expected}")
    return torch.from_numpy(array)
