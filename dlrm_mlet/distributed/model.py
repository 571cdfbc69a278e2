"""A config and a data set's columns -> DLRM whose tables are a collection of TorchRec's, to be sharded, and its start.

B rows of a batch; F categorical features; K the tables' width while they train; D embedding dimension.
"""

import math

import torch
from torch import Tensor, nn

from dlrm_mlet.config import ModelConfig
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.distributed.shards import Table, fill, tables
from dlrm_mlet.extras import needs
from dlrm_mlet.tables.collections import MLETCollection, mlet_collection
from dlrm_mlet.tables.stacked import Tables
from dlrm_mlet.training.model import DLRM, around, bags_of

with needs("torchrec"):
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType
    from torchrec.distributed.types import LazyAwaitable

MULTIPLE = 4
"""TorchRec's fused tables want a width that is one of it: rows end in zeros up to there, which get no gradient."""


class CollectionTables(Tables):
    """The tables of all features as one collection: forward turns (B, F) ids into (B, F, D) vectors as any tables."""

    def __init__(self, config: ModelConfig, schema: Schema):
        super().__init__(schema.table_rows, config.embedding_dim, bags_of(schema))
        self.features = list(schema.categorical)
        pooling = self.bags.pooling if self.bags else [""] * len(self.features)
        width = self.embedding_dim if config.inner_dims else padded(self.embedding_dim)
        configs = [
            EmbeddingBagConfig(
                name=f"table_{f}", feature_names=[name], num_embeddings=n, embedding_dim=width,
                pooling=PoolingType.MEAN if how == "mean" else PoolingType.SUM,
            )
            for f, (name, n, how) in enumerate(zip(self.features, schema.table_rows, pooling, strict=True))
        ]  # fmt: skip
        plain = EmbeddingBagCollection(configs, device=torch.device("meta"))
        widths = [padded(config.inner_dims[0]), *config.inner_dims[1:]] if config.inner_dims else None
        self.collection: nn.Module = (
            mlet_collection(plain, {each.name: widths for each in configs}) if widths else plain
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids, each of its table -> (B, F, D)."""
        found = self.collection(self.keyed(ids))
        vectors = (found.wait() if isinstance(found, LazyAwaitable) else found).to_dict()
        # by name: a sharded collection's order is another one
        return torch.stack([vectors[name] for name in self.features], 1)[..., : self.embedding_dim]

    def keyed(self, ids: Tensor) -> KeyedJaggedTensor:
        """(B, F) ids -> the same as TorchRec takes them; of multi-valued features those that a row has."""
        if self.bags is None:
            lengths = torch.ones(ids.numel(), dtype=torch.int32, device=ids.device)
            return KeyedJaggedTensor(self.features, ids.t().flatten(), lengths=lengths)
        parts = [part.flatten() for part in ids.split(self.slots, 1)]
        counts = [(part >= 0).sum(1, dtype=torch.int32) for part in ids.split(self.slots, 1)]
        return KeyedJaggedTensor(
            self.features, torch.cat([part[part >= 0] for part in parts]), lengths=torch.cat(counts)
        )


class ShardedDLRM(DLRM):
    """DLRM around tables that are sharded; ids were checked when the columns were loaded."""

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """(B, dense columns) float and (B, F) integer -> (B,) logits."""
        return self.logits(dense, self.embed(ids))


def padded(width: int) -> int:
    """The next width that fused tables can have."""
    return -(-width // MULTIPLE) * MULTIPLE


def build(config: ModelConfig, schema: Schema) -> ShardedDLRM:
    """A DLRM whose tables are on the meta device: they are made when they are sharded, and started by `start`."""
    return ShardedDLRM(*around(config, len(schema.dense), CollectionTables(config, schema), None))


@torch.no_grad()
def start(model: DLRM, config: ModelConfig, schema: Schema, generator: torch.Generator) -> None:
    """Give a sharded model the weights that `training.model.build` draws from the same generator, piece by piece.

    Each process draws all numbers and keeps its own, so that a seed means the same weights on any number of them.
    """
    assert isinstance(model.tables, CollectionTables)
    collection = model.tables.collection
    widths = (*config.inner_dims, config.embedding_dim)
    for table, n in zip(in_order(collection), schema.table_rows, strict=True):
        bound = config.initial_scale / math.sqrt(n)

        def rows(first: int, last: int, bound: float = bound, wide: int = table.shape[1]) -> Tensor:
            drawn = torch.empty(last - first, widths[0]).uniform_(-bound, bound, generator=generator)
            return nn.functional.pad(drawn, (0, wide - widths[0]))

        fill(table, rows)
    if isinstance(collection, MLETCollection):
        for i in range(len(config.inner_dims)):
            shape = (len(schema.table_rows), *widths[i : i + 2])
            drawn = torch.empty(shape).normal_(0, config.projection_std, generator=generator)
            for projection, matrix in zip(collection.projections.values(), drawn, strict=True):
                parameter = getattr(projection, str(i))
                parameter.zero_()
                parameter[: len(matrix)] = matrix
    fresh = around(config, len(schema.dense), model.tables, generator)
    model.bottom_mlp.load_state_dict(fresh[0].state_dict())
    model.top_mlp.load_state_dict(fresh[2].state_dict())


def in_order(collection: nn.Module) -> list[Table]:
    """The tables of the collection of a CollectionTables, in the order of the features."""
    return sorted(tables(collection), key=lambda table: int(table.name.removeprefix("table_")))
