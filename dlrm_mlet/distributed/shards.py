"""A collection on several devices -> its shards: where they lie, filling them, and W of them piece by piece.

n rows of a table; K its width while it trains; D its width when it is served.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlrm_mlet.extras import needs
from dlrm_mlet.tables.collections import COLLECTIONS, MLETCollection

with needs("torchrec"):
    from torch.distributed._shard.sharded_tensor import ShardedTensor
    from torchrec.distributed.embedding_types import ShardedEmbeddingModule

AT_ONCE = 1 << 26
"""Bytes of W1 that are collapsed at once: beside its shards a process holds little more than this."""


@dataclass(frozen=True)
class Shard:
    """Some rows and columns of a table, on this process."""

    row: int
    column: int
    numbers: Tensor  # (rows, columns), the table's own memory

    def rows(self, first: int, last: int) -> Tensor:
        """Those of its rows that are between two of the table's."""
        return self.numbers[max(first - self.row, 0) : max(last - self.row, 0)]


@dataclass(frozen=True)
class Table:
    """One table of a collection, sharded or not."""

    name: str
    shape: tuple[int, int]
    shards: list[Shard]
    """Those of this process."""
    owner: int | None
    """The process of its first shard; None where each process has the whole table."""
    is_split: bool
    """Whether no process has whole rows."""


def is_sharded(module: nn.Module) -> bool:
    """Whether it is a collection after DistributedModelParallel."""
    return isinstance(module, ShardedEmbeddingModule)


def collections(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All collections of tables in a model, by name: MLET's, and plain ones, sharded or not."""
    inner = set()
    for name, module in model.named_modules():
        if isinstance(module, MLETCollection):
            inner.add(module.collection)
        if module not in inner and (isinstance(module, (*COLLECTIONS, MLETCollection)) or is_sharded(module)):
            yield name, module


def products(collection: nn.Module) -> dict[str, Tensor | None]:
    """(K, D) of each table; None, or none at all, where it has no projection."""
    return collection.products() if isinstance(collection, MLETCollection) else {}


def tables(collection: nn.Module) -> list[Table]:
    """The tables of a collection: of MLET's those that hold W1."""
    held = collection.collection if isinstance(collection, MLETCollection) else collection
    state = held.state_dict()
    suffix = ".weight"
    return [_table(key.removesuffix(suffix).partition(".")[2], weight)
            for key, weight in state.items() if key.endswith(suffix)]  # fmt: skip


def _table(name: str, weight: Any) -> Table:
    if not isinstance(weight, ShardedTensor):
        whole = weight.detach()
        return Table(name, tuple(whole.shape), [Shard(0, 0, whole)], None, False)
    mine = []
    for shard in weight.local_shards():
        row, column = shard.metadata.shard_offsets
        mine.append(Shard(row, column, shard.tensor.detach()))
    everywhere = weight.metadata().shards_metadata
    n, width = weight.size()
    placement = everywhere[0].placement
    assert placement is not None
    return Table(name, (n, width), mine, placement.rank(), any(shard.shard_sizes[1] < width for shard in everywhere))


@torch.no_grad()
def fill(table: Table, rows: Callable[[int, int], Tensor]) -> None:
    """Give the shards of a table the values of `rows(first, last)`, (last - first, K), asked for from first to last."""
    for first, last in pieces(table.shape):
        values = rows(first, last)
        for shard in table.shards:
            part = shard.rows(first, last)
            begin = max(shard.row - first, 0)
            part.copy_(values[begin : begin + len(part), shard.column : shard.column + part.shape[1]])


def load_tables(sharded: nn.Module, model: nn.Module) -> None:
    """Copy the tables and projections of a model to the same model after DistributedModelParallel, on each process.

    TorchRec leaves new tables where those of the model were, so that what `convert(from_pretrained=True)` found would
    be lost. Raises ValueError where the models have other collections.
    """
    mine, wanted = list(collections(sharded)), list(collections(model))
    if len(mine) != len(wanted):
        raise ValueError(f"{len(mine)} collections of tables; expected {len(wanted)}, as in the model to copy from")
    for (name, collection), (_, source) in zip(mine, wanted, strict=True):
        whole = {table.name: table.shards[0].numbers for table in tables(source)}
        for table in tables(collection):
            if table.name not in whole or tuple(whole[table.name].shape) != table.shape:
                raise ValueError(
                    f"{name}: table {table.name} of {table.shape}; expected one as in the model to copy from"
                )
            fill(table, lambda first, last, values=whole[table.name]: values[first:last])  # type: ignore[misc]
        if isinstance(collection, MLETCollection):
            assert isinstance(source, MLETCollection)
            collection.projections.load_state_dict(source.projections.state_dict())


def pieces(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Ranges of rows of a table that are worked on at once."""
    rows = max(AT_ONCE // (4 * shape[1]), 1)
    for first in range(0, shape[0], rows):
        yield first, min(first + rows, shape[0])


@torch.no_grad()
def collapsed(collection: nn.Module) -> Iterator[tuple[str, int, Tensor]]:
    """W of a collection's tables, on each process the part that is its own: table, first row, (rows, D) on the CPU.

    All processes have to go through it together: where a table's columns lie on several, W's rows are sums of what
    each has. Nowhere is W1, or W, held whole.
    """
    matrices = products(collection)
    rank = dist.get_rank() if dist.is_initialized() else 0
    for table in tables(collection):
        matrix = matrices.get(table.name)
        for first, last in pieces(table.shape):
            found = [(shard, part) for shard in table.shards if len(part := shard.rows(first, last))]
            if not table.is_split:
                for shard, part in found if table.owner is not None or rank == 0 else ():
                    yield table.name, max(first, shard.row), (part if matrix is None else part @ matrix).cpu()
                continue
            assert table.owner is not None
            whole = torch.eye(table.shape[1], device=_device()) if matrix is None else matrix
            total = torch.zeros(last - first, whole.shape[1], device=whole.device)
            for shard, part in found:
                total += part @ whole[shard.column : shard.column + part.shape[1]]
            dist.reduce(total, table.owner)
            if rank == table.owner:
                yield table.name, first, total.cpu()


def _device() -> torch.device:
    """Where the processes of the group exchange what they have."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
