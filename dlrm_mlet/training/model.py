"""DLRM: dense columns and ids -> click logits, by bottom MLP, tables, dot interaction and top MLP.

        logit (B,)
          |
       top MLP
          |
    dot interaction ---- dense vector, passed along as well
     |            |
 bottom MLP     tables (single layer or MLET: DLRM doesn't know)
     |            |
 dense (B, .)   ids (B, F)

B rows of a batch; F categorical features; D embedding dimension.
"""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dlrm_mlet.config import ModelConfig
from dlrm_mlet.data.schema import Schema
from dlrm_mlet.tables.quantize import QuantizedTables, make_rows
from dlrm_mlet.tables.rivals import (
    SPLIT_ABOVE,
    HashedTables,
    MinCountTables,
    MixedDimensionTables,
    PrunedRows,
    QuotientRemainderTables,
    RobeTables,
    TensorTrainTables,
    truncated,
)
from dlrm_mlet.tables.stacked import Bags, SingleLayerTables, Tables, make_tables, start_at
from dlrm_mlet.toml import ConfigError


def mlp(widths: Sequence[int], generator: torch.Generator | None) -> nn.Sequential:
    """Linear layers of these widths, ReLU between; at the start weights have variance 2/(in+out), biases 1/out."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        with warnings.catch_warnings():  # of a data set without dense columns, whose bottom MLP has biases alone
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            linear = nn.Linear(fan_in, fan_out)
            nn.init.normal_(linear.weight, std=math.sqrt(2 / (fan_in + fan_out)), generator=generator)
        nn.init.normal_(linear.bias, std=math.sqrt(1 / fan_out), generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DotInteraction(nn.Module):
    """Dot products of all pairs of the F + 1 vectors, after the dense vector."""

    pairs: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.vectors = features + 1
        # here, not on the device of a context: meta has these in Python alone
        row, column = torch.tril_indices(features + 1, features + 1, offset=-1, device="cpu")
        # (F(F+1)/2,): the strict lower triangle's places in a flattened (F+1) x (F+1) matrix
        self.register_buffer("pairs", row * (features + 1) + column, persistent=False)

    def forward(self, dense: Tensor, embedded: Tensor) -> Tensor:
        """(B, D) and (B, F, D) -> (B, D + F(F+1)/2)."""
        # tables give a transposed view, which cat copies slowly
        vectors = torch.cat((dense.unsqueeze(1), embedded.contiguous()), dim=1)  # (B, F+1, D)
        products = torch.bmm(vectors, vectors.transpose(1, 2))  # (B, F+1, F+1)
        return torch.cat((dense, products.flatten(1).index_select(1, self.pairs)), dim=1)


class DLRM(nn.Module):
    """The deep learning recommendation model (Naumov et al., 2019) as the paper sets it up (section 3)."""

    def __init__(self, bottom_mlp: nn.Module, tables: Tables, top_mlp: nn.Module):
        super().__init__()
        self.bottom_mlp = bottom_mlp
        self.tables: Tables = tables
        self.interaction = DotInteraction(len(tables.table_rows)).to(next(bottom_mlp.parameters()).device)
        self.top_mlp = top_mlp

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """(B, dense columns) float and (B, F) integer -> (B,) logits. Raises IndexError at an id that no table has."""
        return self.logits(dense, self.tables(ids))

    def logits(self, dense: Tensor, embedded: Tensor) -> Tensor:
        """(B, dense columns) float and (B, F, D) of the tables -> (B,) logits."""
        return self.top_mlp(self.interaction(self.bottom_mlp(dense), embedded)).squeeze(1)

    def embed(self, ids: Tensor) -> Tensor:
        """(B, F) integer, which were checked before -> (B, F, D): what the interaction takes from the tables."""
        return self.tables.lookup(ids)

    def collapse(self) -> "DLRM":
        """The model with its MLET tables collapsed: the same MLPs (not copies), the same logits."""
        return self.with_tables(self.tables.collapse())

    def with_tables(self, tables: Tables) -> "DLRM":
        """The same MLPs (not copies) around other tables."""
        return DLRM(self.bottom_mlp, tables, self.top_mlp)


def build(
    config: ModelConfig,
    dense_width: int,
    table_rows: Sequence[int],
    generator: torch.Generator | None,
    bags: Bags | None = None,
    places: Tensor | None = None,
) -> DLRM:
    """A new DLRM for so many dense columns, and tables of n rows each, started from `generator`.

    `places` is of min-count tables: see `build_tables`. Raises ConfigError where tables of the config's kind can't have
    multi-valued features.
    """
    tables = build_tables(config, table_rows, generator, bags, places)
    return DLRM(*around(config, dense_width, tables, generator))


def around(
    config: ModelConfig, dense_width: int, tables: Tables, generator: torch.Generator | None
) -> tuple[nn.Module, Tables, nn.Module]:
    """Bottom MLP, tables and top MLP of a DLRM around these tables, started from `generator`."""
    d = config.embedding_dim
    bottom_mlp = mlp((dense_width, *config.bottom_mlp, d), generator)
    pairs = math.comb(len(tables.table_rows) + 1, 2)
    top_mlp = mlp((d + pairs, *config.top_mlp, 1), generator)
    return bottom_mlp.append(nn.ReLU()), tables, top_mlp


def bags_of(schema: Schema) -> Bags | None:
    """How many ids a row has of each categorical column, where some are multi-valued."""
    return Bags(schema.slots, schema.pooling) if any(schema.pooling) else None


def check_tables(config: ModelConfig, multi_valued: bool) -> None:
    """Raises ConfigError where tables of the config's kind can't have the multi-valued columns that there are."""
    if multi_valued and config.tables != "full":
        raise ConfigError(f'model.tables = "{config.tables}": has no multi-valued columns; expected "full"')


def build_tables(
    config: ModelConfig,
    table_rows: Sequence[int],
    generator: torch.Generator | None,
    bags: Bags | None = None,
    places: Tensor | None = None,
) -> Tables:
    """New tables of the kind that the config names.

    `places` (N,) says of min-count tables which row each value has, by training's counts; without, each has its own.
    """
    check_tables(config, bags is not None)
    d = config.embedding_dim
    match config.tables:
        case "quotient-remainder":
            return QuotientRemainderTables(table_rows, d, config.collisions, generator)
        case "mixed-dimension":
            return MixedDimensionTables(table_rows, d, config.temperature, generator)
        case "hashed":
            moduli = [math.ceil(n / config.collisions) if n > SPLIT_ABOVE else n for n in table_rows]
            return HashedTables(moduli, make_tables(moduli, (), d, config.projection_std, generator).weight.data)
        case "robe":
            size = math.ceil(sum(table_rows) * d / config.collisions)
            return RobeTables(table_rows, d, size, config.block_size, generator)
        case "tensor-train":
            return TensorTrainTables(table_rows, d, config.tensor_rank, generator)
        case "min-count":
            return MinCountTables(table_rows, d, places, generator)
    scale = config.initial_scale
    tables = make_tables(table_rows, config.inner_dims, d, config.projection_std, generator, scale, bags)
    if config.start_as is not None:
        other = make_tables(table_rows, config.start_as, d, config.projection_std, generator, scale).collapse()
        assert isinstance(other, SingleLayerTables)
        start_at(tables, other)
    return tables


def served(model: DLRM, config: ModelConfig) -> DLRM:
    """The model that is served: collapsed, and its tables made smaller as the config says."""
    collapsed = model.collapse()
    tables = collapsed.tables
    if not isinstance(tables, SingleLayerTables):
        return collapsed
    if config.served_rank is not None:
        return collapsed.with_tables(truncated(tables, config.served_rank))
    if config.served_density is not None:
        return collapsed.with_tables(QuantizedTables(tables, PrunedRows(tables.weight, config.served_density)))
    if config.served_as == "int8":
        return collapsed.with_tables(QuantizedTables(tables, make_rows(tables.weight, 8)))
    if config.served_as == "int4":
        return collapsed.with_tables(QuantizedTables(tables, make_rows(tables.weight, 4, offset=True)))
    return collapsed
