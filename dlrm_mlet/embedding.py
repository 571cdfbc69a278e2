"""Ids of all features -> their vectors: single-layer tables, MLET tables, and collapse() from the second to the first.

B rows of a batch; F categorical features; n rows of one feature's table, N of all tables; K inner dimension (trained);
D embedding dimension (served).
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Tables(nn.Module):
    """What both kinds share: the tables of all features in one matrix, from which a batch is gathered at once."""

    offsets: Tensor

    def __init__(self, table_rows: Sequence[int], weight: Tensor):
        super().__init__()
        self.table_rows = tuple(table_rows)
        self.weight = nn.Parameter(weight)
        first_rows = [0, *accumulate(self.table_rows)][:-1]
        # (F, 1): the row of `weight` where each feature's table begins
        self.register_buffer("offsets", torch.tensor(first_rows).unsqueeze(1), persistent=False)

    def rows(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (F, B, width): each feature's rows, together. Their gradient is sparse, and not coalesced."""
        return F.embedding(ids.t() + self.offsets, self.weight, sparse=True)


class SingleLayerTables(_Tables):
    """W of n x d for each feature (paper, equation 1); `weight` (N, D) holds one below another."""

    def __init__(self, table_rows: Sequence[int], weight: Tensor):
        super().__init__(table_rows, weight)
        self.embedding_dim = weight.shape[1]

    def forward(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        return self.rows(ids).transpose(0, 1)

    def collapse(self) -> "SingleLayerTables":
        """Itself: there is one layer."""
        return self


class MLETTables(_Tables):
    """W1 · W2 for each feature (paper, equations 2 to 5): rows of W1, n x k, each times its feature's own W2, k x d.

    `weight` (N, K) holds the W1 one below another, `projections` the W2 as (F, K, D); with more than one projection
    the product goes on (N > 2 layers).
    """

    def __init__(self, table_rows: Sequence[int], weight: Tensor, projections: Sequence[Tensor]):
        super().__init__(table_rows, weight)
        self.projections = nn.ParameterList(projections)
        self.embedding_dim = projections[-1].shape[2]

    def forward(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D): r = q W1 W2 (paper, equation 5)."""
        vectors = self.rows(ids)  # (F, B, K)
        for projection in self.projections:
            vectors = torch.bmm(vectors, projection)  # (F, B, D)
        return vectors.transpose(0, 1)

    @torch.no_grad()
    def collapse(self) -> SingleLayerTables:
        """The single-layer tables W = W1 · W2, n x d: what is served."""
        product, *others = self.projections  # (F, K, D)
        for projection in others:
            product = torch.bmm(product, projection)
        collapsed = self.weight.new_empty(len(self.weight), self.embedding_dim)
        wide, narrow = self.weight.split(self.table_rows), collapsed.split(self.table_rows)
        for table, matrix, out in zip(wide, product, narrow, strict=True):
            torch.mm(table, matrix, out=out)
        return SingleLayerTables(self.table_rows, collapsed)


Tables = SingleLayerTables | MLETTables


def make_tables(
    table_rows: Sequence[int],
    inner_dims: Sequence[int],
    embedding_dim: int,
    projection_std: float,
    generator: torch.Generator | None = None,
) -> Tables:
    """New tables: single-layer ones without inner dimensions, else MLET's, with one projection for each.

    The gathered table is uniform in ±1/sqrt(n) at the start, the projections are N(0, projection_std²).
    """
    widths = (*inner_dims, embedding_dim)
    weight = torch.empty(sum(table_rows), widths[0])
    for table, n in zip(weight.split(list(table_rows)), table_rows, strict=True):
        table.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=generator)
    projections = [
        torch.empty(len(table_rows), wide, narrow).normal_(0, projection_std, generator=generator)
        for wide, narrow in pairwise(widths)
    ]
    return MLETTables(table_rows, weight, projections) if projections else SingleLayerTables(table_rows, weight)
