"""Sharded tables -> W of them, n x D, on disk and shard by shard: to be loaded anywhere, and served by TorchRec again.

No process ever holds W1 whole, or W: each writes the rows that it has.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlrm_mlet.distributed.shards import collapsed, collections, products, tables
from dlrm_mlet.extras import needs
from dlrm_mlet.files import replacing_directory
from dlrm_mlet.tables.collections import MLETCollection, tables_of
from dlrm_mlet.tables.stacked import SingleLayerTables
from dlrm_mlet.training.checkpoint import Served

with needs("torchrec"):
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, PoolingType
    from torchrec.distributed.embedding import ShardedEmbeddingCollection
    from torchrec.distributed.model_parallel import get_unwrapped_module

REST = "rest.pt"
"""In a collapsed model's directory: which file is whose table, and all that is no table."""
MULTIPLE = 4
"""TorchRec's fused tables want a width that is one of it."""


class CollapsedError(ValueError):
    """A directory that isn't a collapsed model, or isn't this one's: says what was expected."""


def save_collapsed(model: nn.Module, directory: Path | str) -> None:
    """Write a model after DistributedModelParallel with its MLET tables collapsed; all processes call this together.

    `directory` has to be one that all of them see. It holds a .npy file a table, n x D, and `rest.pt`; see
    `load_collapsed`. What was there before stays until all is written. Raises CollapsedError where something else is.
    """
    directory, plain = Path(directory), get_unwrapped_module(model)
    names: dict[tuple[str, str], int] = {}
    shapes = []
    for name, collection in collections(plain):
        matrices = products(collection)
        for table in tables(collection):
            matrix = matrices.get(table.name)
            names[name, table.name] = len(names)
            shapes.append((table.shape[0], table.shape[1] if matrix is None else matrix.shape[1]))
    with _together(lambda: replacing_directory(directory, _refuse_others)) as partial:
        if _rank() == 0:
            for number, shape in enumerate(shapes):
                np.lib.format.open_memmap(partial / f"{number}.npy", "w+", np.float32, shape)
        _barrier()
        for name, collection in collections(plain):
            for its, first, rows in collapsed(collection):
                number = names[name, its]
                path = partial / f"{number}.npy"
                whole = 4 * shapes[number][0] * rows.shape[1]
                write_at(path, path.stat().st_size - whole + 4 * first * rows.shape[1], rows)
        _barrier()
        if _rank() == 0:
            files = {_key(dict(collections(plain))[name], name, table): f"{number}.npy"
                     for (name, table), number in names.items()}  # fmt: skip
            inside = tuple(f"{name}." if name else "" for name, _ in collections(plain))
            rest = {key: value for key, value in plain.state_dict().items() if not key.startswith(inside)}
            torch.save({"tables": files, "rest": rest}, partial / REST)


def load_collapsed(model: nn.Module, directory: Path | str) -> None:
    """Give a plain model, as it was before `convert`, the values that `save_collapsed` wrote; one process is enough.

    Raises CollapsedError where the directory is none of those, or is of another model.
    """
    directory = Path(directory)
    try:
        saved = torch.load(directory / REST, weights_only=True)
    except FileNotFoundError:
        raise CollapsedError(f"{directory}: has no {REST}; expected what save_collapsed has written") from None
    mine = model.state_dict()
    if different := sorted(mine.keys() ^ (saved["tables"].keys() | saved["rest"].keys())):
        raise CollapsedError(f"{directory}: of another model: it differs in {', '.join(different[:3])}")
    with torch.no_grad():
        for key, name in saved["tables"].items():
            table = np.load(directory / name, mmap_mode="r")
            if table.shape != tuple(mine[key].shape):
                raise CollapsedError(
                    f"{directory}: {key} has the shape {table.shape}; expected {tuple(mine[key].shape)}"
                )
            for first in range(0, len(table), 1 << 20):
                part = slice(first, first + (1 << 20))
                mine[key][part].copy_(torch.from_numpy(np.array(table[part])))
    model.load_state_dict(saved["rest"], strict=False)


def serving_collection(served: Served, report: Callable[[str], object] = print) -> Any:
    """A finished run's tables as TorchRec's EmbeddingBagCollection of n x D, whose features are the data set's columns.

    For sharding and quantizing as TorchRec does it. Where D is no multiple of 4 its rows end in zeros up to the next
    one, which `report` is told. Raises CollapsedError where the run serves other tables than plain ones.
    """
    plain, schema = served.model.tables, served.columns
    if type(plain) is not SingleLayerTables:
        raise CollapsedError(f"{served.path}: serves {type(plain).__name__}; expected plain float32 tables")
    d = plain.embedding_dim
    width = -(-d // MULTIPLE) * MULTIPLE
    if width != d:
        report(f"embedding_dim = {d} is no multiple of {MULTIPLE}: rows of {width} numbers, the last {width - d} zeros")
    pooling = schema.pooling or ("",) * len(schema.categorical)
    configs = [
        EmbeddingBagConfig(name=f"table_{f}", num_embeddings=n, embedding_dim=width, feature_names=[name],
                           pooling=PoolingType.MEAN if how == "mean" else PoolingType.SUM)
        for f, (name, n, how) in enumerate(zip(schema.categorical, schema.table_rows, pooling, strict=True))
    ]  # fmt: skip
    collection = EmbeddingBagCollection(configs, device=plain.weight.device)
    with torch.no_grad():
        for table, rows in zip(tables_of(collection).values(), plain.weight.split(plain.table_rows), strict=True):
            table.weight.zero_()
            table.weight[:, :d] = rows
    return collection


def write_at(path: Path, place: int, rows: Tensor) -> None:
    """Numbers into a file that is there, from a byte on."""
    left = memoryview(rows.contiguous().numpy()).cast("B")  # type: ignore[arg-type]
    with path.open("r+b", buffering=0) as file:
        while left:
            written = os.pwrite(file.fileno(), left, place)
            left, place = left[written:], place + written


@contextlib.contextmanager
def _together(begin: Callable[[], contextlib.AbstractContextManager[Path]]) -> Iterator[Path]:
    """A context that the first process enters, and whose path all have; it ends once all are through."""
    with begin() if _rank() == 0 else contextlib.nullcontext(Path()) as path:
        told = [path]
        if dist.is_initialized():
            dist.broadcast_object_list(told, 0)
        yield told[0]
    _barrier()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _key(collection: nn.Module, name: str, table: str) -> str:
    """Of the table's weight in the state of the plain model."""
    held = collection.collection if isinstance(collection, MLETCollection) else collection
    single = isinstance(held, EmbeddingCollection | ShardedEmbeddingCollection)
    return ".".join(filter(None, [name, "embeddings" if single else "embedding_bags", table, "weight"]))


def _refuse_others(directory: Path) -> None:
    if not (directory / REST).is_file():
        raise CollapsedError(f"{directory}: holds something else; expected a new directory, or a collapsed model's")
