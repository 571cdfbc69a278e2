"""Other ways to small tables, to compare MLET with at equal served bytes: each as its authors' code defines it.

B rows of a batch; F categorical features; n rows of one feature's table; D embedding dimension.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrm_mlet.tables.spectrum import gram
from dlrm_mlet.tables.stacked import MLETTables, SingleLayerTables, Tables, make_tables

SPLIT_ABOVE = 200
"""Tables of at most so many rows stay whole, as in the public DLRM code."""


class HashedTables(SingleLayerTables):
    """The hashing trick (Weinberger et al., 2009): ids that are equal modulo ceil(n / collisions) share a row."""

    moduli: Tensor

    def __init__(self, moduli: Sequence[int], weight: Tensor):
        super().__init__(moduli, weight)
        self.register_buffer("moduli", torch.tensor(moduli), persistent=False)

    def checked(self, ids: Tensor) -> Tensor:
        """See Tables; every id of 0 and more has a row."""
        return super().checked(torch.where(ids < 0, ids, ids % self.moduli))

    def rows(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (F, B, D)."""
        return super().rows(ids % self.moduli)


class QuotientRemainderTables(Tables):
    """Compositional embeddings (Shi et al., 2019): row of id = Q[id // m] * R[id % m], element by element."""

    split: Tensor

    def __init__(
        self, table_rows: Sequence[int], embedding_dim: int, collisions: int, generator: torch.Generator | None
    ):
        super().__init__(table_rows, embedding_dim)
        self.collisions = collisions
        split = [f for f, n in enumerate(table_rows) if n > SPLIT_ABOVE]
        self.register_buffer("split", torch.tensor(split, dtype=torch.int64), persistent=False)
        remainders = [collisions if n > SPLIT_ABOVE else n for n in table_rows]
        quotients = [math.ceil(table_rows[f] / collisions) for f in split]
        self.remainders = make_tables(remainders, (), embedding_dim, 1.0, generator)
        self.quotients = make_tables(quotients, (), embedding_dim, 1.0, generator)
        # factors start positive, between 1/sqrt(n) and 1, so that no product starts near 0
        whole, parts = self.remainders.weight.data.split(remainders), self.quotients.weight.data.split(quotients)
        for f, quotient in zip(split, parts, strict=True):
            for table in (whole[f], quotient):
                table.uniform_(1 / math.sqrt(table_rows[f]), 1, generator=generator)

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        split = ids[:, self.split]
        ids = ids.index_copy(1, self.split, split % self.collisions)
        factors = self.quotients.lookup(split // self.collisions)
        ones = factors.new_ones(len(ids), len(self.table_rows), self.embedding_dim)
        return self.remainders.lookup(ids) * ones.index_copy(1, self.split, factors)


class MixedDimensionTables(Tables):
    """Mixed dimensions (Ginart et al., 2019): the more rows a table has, the narrower, and a projection to D each."""

    def __init__(
        self, table_rows: Sequence[int], embedding_dim: int, temperature: float, generator: torch.Generator | None
    ):
        super().__init__(table_rows, embedding_dim)
        self.widths = mixed_dimensions(table_rows, embedding_dim, temperature)
        self.tables, self.projections = nn.ParameterList(), nn.ModuleList()
        for n, width in zip(table_rows, self.widths, strict=True):
            self.tables.append(nn.Parameter(nn.init.xavier_uniform_(torch.empty(n, width), generator=generator)))
            projection = nn.Linear(width, embedding_dim, bias=False) if width < embedding_dim else nn.Identity()
            for weight in projection.parameters():
                nn.init.xavier_uniform_(weight, generator=generator)
            self.projections.append(projection)

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        features = zip(ids.t(), self.tables, self.projections, strict=True)
        return torch.stack([project(F.embedding(column, table, sparse=True)) for column, table, project in features], 1)


def mixed_dimensions(table_rows: Sequence[int], embedding_dim: int, temperature: float) -> list[int]:
    """The power rule: embedding_dim * (smallest n / n)^temperature, as the nearest power of 2 of its whole part."""
    smallest = min(table_rows)
    exact = [max(1, round(embedding_dim * (smallest / n) ** temperature)) for n in table_rows]
    return [min(embedding_dim, 2 ** round(math.log2(width))) for width in exact]


class LowRankTables(MLETTables):
    """Two factors that are served as they are."""


@torch.no_grad()
def truncated(tables: SingleLayerTables, rank: int) -> LowRankTables:
    """Each feature's table by its `rank` largest singular values: n x rank times rank x d, the nearest of that rank.

    It is served as two factors, so that its bytes count the projection. The right singular vectors are the
    eigenvectors of WᵀW, and the left factor is W times them, which needs no copy of a table.
    """
    left = tables.weight.new_zeros(len(tables.weight), rank)
    right = tables.weight.new_zeros(len(tables.table_rows), rank, tables.embedding_dim)
    for table, factor, matrix in zip(tables.weight.split(tables.table_rows), left.split(tables.table_rows), right):  # noqa: B905
        vectors = torch.linalg.eigh(gram(table)).eigenvectors.flip(1)[:, :rank].to(table.dtype)  # (D, rank)
        factor[:, : vectors.shape[1]] = table @ vectors
        matrix[: vectors.shape[1]] = vectors.T
    return LowRankTables(tables.table_rows, left, [right], tables.bags)
