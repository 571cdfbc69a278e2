"""Ids of all features -> their vectors: single-layer tables, MLET tables, and collapse() from the second to the first.

B rows of a batch; F categorical features; n rows of one feature's table, N of all tables; K inner dimension (trained);
D embedding dimension (served).
"""

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROJECTION_STD = 0.25
"""Standard deviation of W2 at the start: the paper's N(0, 0.0625) names the variance (section 3)."""


NOWHERE = 1 << 30
"""An id that no table has."""


@dataclass(frozen=True)
class Bags:
    """How many ids a row has of each feature, where some are multi-valued, and how their vectors become one.

    So (B, F) ids are (B, sum of `slots`) with these: those of a feature beside each other, -1 where a row has fewer.
    """

    slots: tuple[int, ...]
    pooling: tuple[str, ...]
    """Of each feature "mean" or "sum", of zeros where a row has none; "" for a feature of one id."""

    def times(self, count: int) -> "Bags":
        """Those of so many models side by side."""
        return Bags(self.slots * count, self.pooling * count)

    def pool(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(slots, B, width), and (slots, B) which of them there are -> (F, B, width)."""
        found, first, single = [], 0, 0
        for slots, pooling in zip(self.slots, self.pooling, strict=True):
            if not pooling:
                first, single = first + 1, single + 1
                continue
            if single:
                found.append(vectors[first - single : first])
                single = 0
            mine = present[first : first + slots].to(vectors.dtype).unsqueeze(-1)
            total = (vectors[first : first + slots] * mine).sum(0, keepdim=True)
            found.append(total / mine.sum(0, keepdim=True).clamp(min=1) if pooling == "mean" else total)
            first += slots
        if single:
            found.append(vectors[first - single : first])
        return torch.cat(found)


class Tables(nn.Module):
    """The tables of all features, of any kind: forward turns (B, F) ids into (B, F, D) vectors.

    Where features are multi-valued, `bags` says so, and which ids are whose. Since the tables lie in one matrix, an id
    beyond its feature's table is a row of another one's. So forward checks them all; `lookup` doesn't, for the training
    step, whose columns were checked when they were loaded.
    """

    names: Sequence[str] | None = None
    """Of the features, where they are known."""

    def __init__(self, table_rows: Sequence[int], embedding_dim: int, bags: Bags | None = None):
        super().__init__()
        self.table_rows = tuple(table_rows)
        self.embedding_dim = embedding_dim
        self.bags = bags

    @property
    def slots(self) -> tuple[int, ...]:
        """Ids of a row of each feature."""
        return self.bags.slots if self.bags else (1,) * len(self.table_rows)

    def limits(self) -> tuple[Tensor, Tensor]:
        """(ids of a row,): the lowest id that each may be, and the one that it must be below."""
        pooling = self.bags.pooling if self.bags else ("",) * len(self.table_rows)
        each = [(-1 if how else 0, n) for how, n, slots in zip(pooling, self.table_rows, self.slots, strict=True)
                for _ in range(slots)]  # fmt: skip
        return torch.tensor([lowest for lowest, _ in each]), torch.tensor([n for _, n in each])

    def forward(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D). Raises ValueError for another shape, IndexError at an id outside of its table.

        In a graph that torch exports such an id is an error too, when the graph runs.
        """
        if ids.dim() != 2 or ids.shape[1] != sum(self.slots):
            each = "as many a feature as its bags say" if self.bags else "an id a feature"
            raise ValueError(f"ids of shape {tuple(ids.shape)}; expected (B, {sum(self.slots)}), {each}")
        return self.lookup(self.checked(ids))

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids, each of its table -> (B, F, D)."""
        raise NotImplementedError

    def checked(self, ids: Tensor) -> Tensor:
        """(B, F) ids, each of its table. Raises as `forward` does."""
        lowest, limits = (each.to(ids.device) for each in self.limits())
        outside = (ids < lowest) | (ids >= limits)
        if torch.compiler.is_compiling():
            return torch.where(outside, NOWHERE, ids)
        if outside.any():
            row, place = outside.nonzero()[0].tolist()
            f = [feature for feature, slots in enumerate(self.slots) for _ in range(slots)][place]
            name = self.names[f] if self.names else f"{f} of {len(self.table_rows)}"
            allowed = f"{lowest[place].item()} to {self.table_rows[f] - 1}"
            raise IndexError(f"feature {name}: id {ids[row, place].item()}; expected {allowed}")
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

    def __init__(self, table_rows: Sequence[int], weight: Tensor, embedding_dim: int, bags: Bags | None = None):
        super().__init__(table_rows, embedding_dim, bags)
        self.weight = nn.Parameter(weight)
        first_rows = [0, *accumulate(self.table_rows)][:-1]
        # (F, 1): the row of `weight` where each feature's table begins; for each id of a multi-valued one
        offsets = torch.tensor(first_rows, dtype=torch.int64)
        if bags is not None:
            offsets = offsets.repeat_interleave(torch.tensor(bags.slots))
        self.register_buffer("offsets", offsets.unsqueeze(1).to(weight.device), persistent=False)

    def rows(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (F, B, width): each feature's rows, together. Their gradient is sparse, and not coalesced."""
        if self.bags is None:
            return F.embedding(ids.t() + self.offsets, self.weight, sparse=True)
        places = ids.t()
        vectors = F.embedding(places.clamp(min=0) + self.offsets, self.weight, sparse=True)
        return self.bags.pool(vectors, places >= 0)


class SingleLayerTables(_Stacked):
    """W of n x d for each feature (paper, equation 1); `weight` (N, D) holds one below another."""

    def __init__(self, table_rows: Sequence[int], weight: Tensor, bags: Bags | None = None):
        super().__init__(table_rows, weight, weight.shape[1], bags)

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        return self.rows(ids).transpose(0, 1)


class MLETTables(_Stacked):
    """W1 · W2 for each feature (paper, equations 2 to 5): rows of W1, n x k, each times its feature's own W2, k x d.

    `weight` (N, K) holds the W1 one below another, `projections` the W2 as (F, K, D); with more than one projection
    the product goes on (N > 2 layers).
    """

    def __init__(
        self, table_rows: Sequence[int], weight: Tensor, projections: Sequence[Tensor], bags: Bags | None = None
    ):
        super().__init__(table_rows, weight, projections[-1].shape[2], bags)
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
        return SingleLayerTables(self.table_rows, collapsed, self.bags)


class LowRankTables(MLETTables):
    """Two factors that are served as they are."""


def make_tables(
    table_rows: Sequence[int],
    inner_dims: Sequence[int],
    embedding_dim: int,
    projection_std: float,
    generator: torch.Generator | None = None,
    scale: float = 1.0,
    bags: Bags | None = None,
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
    if projections:
        return MLETTables(table_rows, weight, projections, bags)
    return SingleLayerTables(table_rows, weight, bags)


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
