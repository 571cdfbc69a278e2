"""Ids of all features -> their vectors: single-layer tables, MLET tables, and collapse() from the second to the first.

B rows of a batch; F categorical features; n rows of one feature's table, N of all tables; K inner dimension (trained);
D embedding dimension (served).
"""

import functools
import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROJECTION_STD = 0.25
"""Standard deviation of W2 at the start: the paper's N(0, 0.0625) names the variance (section 3)."""


NOWHERE = 1 << 30
"""An id that no table has."""


class Tables(nn.Module):
    """The tables of all features, of any kind: forward turns (B, F) ids into (B, F, D) vectors.

    Since they lie in one matrix, an id beyond its feature's table is a row of another one's. So forward checks them
    all; `lookup` doesn't, for the training step, whose columns were checked when they were loaded.
    """

    names: Sequence[str] | None = None
    """Of the features, where they are known."""

    def __init__(self, table_rows: Sequence[int], embedding_dim: int):
        super().__init__()
        self.table_rows = tuple(table_rows)
        self.embedding_dim = embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D). Raises ValueError for another shape, IndexError at an id outside of its table.

        In a graph that torch exports such an id is an error too, when the graph runs.
        """
        features = len(self.table_rows)
        if ids.dim() != 2 or ids.shape[1] != features:
            raise ValueError(f"ids of shape {tuple(ids.shape)}; expected (B, {features}), an id a feature")
        return self.lookup(self.checked(ids))

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids, each of its table -> (B, F, D)."""
        raise NotImplementedError

    def checked(self, ids: Tensor) -> Tensor:
        """(B, F) ids, each of its table. Raises as `forward` does."""
        limits = torch.tensor(self.table_rows).to(ids.device)
        outside = (ids < 0) | (ids >= limits)
        if torch.compiler.is_compiling():
            return torch.where(outside, NOWHERE, ids)
        if outside.any():
            row, f = outside.nonzero()[0].tolist()
            name = self.names[f] if self.names else f"{f} of {len(self.table_rows)}"
            raise IndexError(f"feature {name}: id {ids[row, f].item()}; expected 0 to {self.table_rows[f] - 1}")
        return ids

    def collapse(self) -> "Tables":
        """What is served: the tables themselves, where there is nothing to collapse."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of all that a checkpoint of the tables holds."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())


class _Stacked(Tables):
    """The tables of all features in one matrix, one below another, from which a batch is gathered at once."""

    offsets: Tensor

    def __init__(self, table_rows: Sequence[int], weight: Tensor, embedding_dim: int):
        super().__init__(table_rows, embedding_dim)
        self.weight = nn.Parameter(weight)
        first_rows = [0, *accumulate(self.table_rows)][:-1]
        # (F, 1): the row of `weight` where each feature's table begins
        offsets = torch.tensor(first_rows, dtype=torch.int64).unsqueeze(1)
        self.register_buffer("offsets", offsets.to(weight.device), persistent=False)

    def rows(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (F, B, width): each feature's rows, together. Their gradient is sparse, and not coalesced."""
        return F.embedding(ids.t() + self.offsets, self.weight, sparse=True)


class SingleLayerTables(_Stacked):
    """W of n x d for each feature (paper, equation 1); `weight` (N, D) holds one below another."""

    def __init__(self, table_rows: Sequence[int], weight: Tensor):
        super().__init__(table_rows, weight, embedding_dim=weight.shape[1])

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        return self.rows(ids).transpose(0, 1)


class MLETTables(_Stacked):
    """W1 · W2 for each feature (paper, equations 2 to 5): rows of W1, n x k, each times its feature's own W2, k x d.

    `weight` (N, K) holds the W1 one below another, `projections` the W2 as (F, K, D); with more than one projection
    the product goes on (N > 2 layers).
    """

    def __init__(self, table_rows: Sequence[int], weight: Tensor, projections: Sequence[Tensor]):
        super().__init__(table_rows, weight, embedding_dim=projections[-1].shape[2])
        self.projections = nn.ParameterList(projections)

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D): r = q W1 W2 (paper, equation 5)."""
        vectors = self.rows(ids)  # (F, B, K)
        for projection in self.projections:
            vectors = torch.bmm(vectors, projection)  # (F, B, D)
        return vectors.transpose(0, 1)

    def product(self) -> Tensor:
        """(F, K, D): all projections multiplied."""
        return multiply(self.projections)

    @torch.no_grad()
    def collapse(self) -> SingleLayerTables:
        """The single-layer tables W = W1 · W2, n x d: what is served."""
        product = self.product()
        collapsed = self.weight.new_empty(len(self.weight), self.embedding_dim)
        wide, narrow = self.weight.split(self.table_rows), collapsed.split(self.table_rows)
        for table, matrix, out in zip(wide, product, narrow, strict=True):
            torch.mm(table, matrix, out=out)
        return SingleLayerTables(self.table_rows, collapsed)


def make_tables(
    table_rows: Sequence[int],
    inner_dims: Sequence[int],
    embedding_dim: int,
    projection_std: float,
    generator: torch.Generator | None = None,
    scale: float = 1.0,
) -> SingleLayerTables | MLETTables:
    """New tables: single-layer ones without inner dimensions, else MLET's, with one projection for each.

    The gathered table is uniform in ±scale/sqrt(n) at the start, the projections are N(0, projection_std²).
    """
    widths = (*inner_dims, embedding_dim)
    weight = torch.empty(sum(table_rows), widths[0])
    for table, n in zip(weight.split(list(table_rows)), table_rows, strict=True):
        table.uniform_(-scale / math.sqrt(n), scale / math.sqrt(n), generator=generator)
    projections = [
        torch.empty(len(table_rows), wide, narrow).normal_(0, projection_std, generator=generator)
        for wide, narrow in pairwise(widths)
    ]
    return MLETTables(table_rows, weight, projections) if projections else SingleLayerTables(table_rows, weight)


@torch.no_grad()
def start_at(tables: SingleLayerTables | MLETTables, wanted: SingleLayerTables) -> None:
    """Change the gathered table so that the product is `wanted`; the projections stay as they are (Theorem 2.1)."""
    if isinstance(tables, SingleLayerTables):
        tables.weight.copy_(wanted.weight)
        return
    inverse = right_inverse(tables.product())  # (F, D, K)
    parts = zip(tables.weight.split(tables.table_rows), wanted.weight.split(wanted.table_rows), inverse, strict=True)
    for table, goal, matrix in parts:
        torch.mm(goal, matrix, out=table)


def multiply(projections: Iterable[Tensor]) -> Tensor:
    """(..., K, .), ..., (..., ., D) -> (..., K, D): their product, from the left."""
    return functools.reduce(torch.matmul, projections)


def right_inverse(product: Tensor) -> Tensor:
    """(..., K, D) of full rank, K >= D -> (..., D, K): W times it is the smallest W1 with W1 · product = W.

    With the QR decomposition product = Q R it is R⁻¹ · Qᵀ (paper, Theorem 2.1).
    """
    q, r = torch.linalg.qr(product.double())  # (..., K, D), (..., D, D)
    return torch.linalg.solve_triangular(r, q.mT, upper=True).to(product.dtype)
