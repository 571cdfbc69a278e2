"""Other ways to small tables, to compare MLET with at equal served bytes: each as its authors' code defines it.

B rows of a batch; F categorical features; n rows of one feature's table; D embedding dimension.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrm_mlet.tables.quantize import Rows
from dlrm_mlet.tables.spectrum import gram
from dlrm_mlet.tables.stacked import LowRankTables, SingleLayerTables, Tables, make_tables

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


class RobeTables(Tables):
    """ROBE-Z (Desai et al., 2022): all tables' numbers in one array M, in blocks of Z that lie at hashed places.

    Number j of row x of table e is M[(h + j % Z) % size], with h = (a e + b x + c (j // Z) + d) % PRIME % size and
    a to d drawn once: blocks overlap, and the array goes round. The paper's sign, which is optional there, is left out.
    """

    PRIME = 2**31 - 1
    factors: Tensor
    blocks: Tensor
    within: Tensor

    def __init__(
        self,
        table_rows: Sequence[int],
        embedding_dim: int,
        size: int,
        block_size: int,
        generator: torch.Generator | None,
    ):
        super().__init__(table_rows, embedding_dim)
        bound = 1 / math.sqrt(max(table_rows))
        self.array = nn.Parameter(torch.empty(size, 1).uniform_(-bound, bound, generator=generator))
        self.register_buffer("factors", torch.randint(1, self.PRIME, (4,), generator=generator))
        columns = torch.arange(embedding_dim)
        self.register_buffer("blocks", columns // block_size, persistent=False)
        self.register_buffer("within", columns % block_size, persistent=False)

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        return F.embedding(self.places(ids), self.array, sparse=True).squeeze(-1)

    def places(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D): where in the array each number lies."""
        a, b, c, d = self.factors
        of_rows = a * torch.arange(ids.shape[1], device=ids.device) + b * ids.long() + d  # (B, F), below 2^63
        hashed = (of_rows.unsqueeze(-1) + c * self.blocks) % self.PRIME % len(self.array)  # (B, F, D)
        return (hashed + self.within) % len(self.array)


class TensorTrainTables(Tables):
    """TT-Rec (Yin et al., 2021): a large table as three cores, from which a row is multiplied; small ones stay whole.

    An id is three digits, of which each chooses a slice of its core: q1 x R, R x q2 R and R x q3, with q1 q2 q3 = D and
    R the rank. At the start a number of the product has the variance of the uniform one in ±1/sqrt(n), from normal
    cores; the authors draw again those that are near 0. `cores` hold all large tables' slices, one below another.
    """

    cores: Any  # three tables, in an nn.ModuleList
    split: Tensor
    order: Tensor
    radix: Tensor

    def __init__(self, table_rows: Sequence[int], embedding_dim: int, rank: int, generator: torch.Generator | None):
        super().__init__(table_rows, embedding_dim)
        large = [f for f, n in enumerate(table_rows) if n > SPLIT_ABOVE]
        small = [f for f, n in enumerate(table_rows) if n <= SPLIT_ABOVE]
        digits = [three_digits(table_rows[f]) for f in large]
        self.shapes = core_shapes(embedding_dim, rank)
        self.cores = nn.ModuleList()
        for i, (high, wide) in enumerate(self.shapes):
            core = make_tables([each[i] for each in digits], (), high * wide, 1.0, generator)
            for f, part in zip(large, core.weight.data.split(core.table_rows), strict=True):
                part.normal_(0, (3 * table_rows[f] * rank**2) ** (-1 / 6), generator=generator)
            self.cores.append(core)
        self.whole = make_tables([table_rows[f] for f in small], (), embedding_dim, 1.0, generator)
        self.register_buffer("split", torch.tensor(large + small), persistent=False)
        self.register_buffer("order", self.split.argsort(), persistent=False)
        self.register_buffer("radix", torch.tensor(digits, dtype=torch.int64).view(-1, 3), persistent=False)

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        large, small = ids[:, self.split].tensor_split([len(self.radix)], dim=1)
        _, second, third = self.radix.unbind(1)  # (large tables,) each
        chosen = (large // (second * third), large // third % second, large % third)
        parts = (core.lookup(digit) for core, digit in zip(self.cores, chosen, strict=True))
        first, middle, last = (part.unflatten(2, shape) for part, shape in zip(parts, self.shapes, strict=True))
        pairs = (first @ middle).flatten(2).unflatten(2, (-1, last.shape[2]))  # (B, large, q1 q2, R)
        return torch.cat(((pairs @ last).flatten(2), self.whole.lookup(small)), dim=1)[:, self.order]


def three_digits(n: int) -> tuple[int, int, int]:
    """Bases of three digits that number n rows, as equal as can be."""
    side = next(side for side in range(round(n ** (1 / 3)), n + 1) if side**3 >= n)
    return side, side, math.ceil(n / side**2)


def core_shapes(embedding_dim: int, rank: int) -> tuple[tuple[int, int], ...]:
    """Of a slice of each core, as a matrix: the three factors of D are as equal as can be."""
    divisors = [q for q in range(1, embedding_dim + 1) if embedding_dim % q == 0]
    pairs = [(a, b) for a in divisors for b in divisors if embedding_dim % (a * b) == 0]
    q1, q2 = min(pairs, key=lambda pair: sum(pair) + embedding_dim // math.prod(pair))
    return (q1, rank), (rank, q2 * rank), (rank, embedding_dim // (q1 * q2))


class MinCountTables(Tables):
    """Values that are rare in training share a row, the last of their table, as where a dictionary leaves them out."""

    places: Tensor
    first: Tensor

    def __init__(
        self, table_rows: Sequence[int], embedding_dim: int, places: Tensor | None, generator: torch.Generator | None
    ):
        """`places` (N,): the row of each value in its own table, see `without_rare`; None gives each its own."""
        super().__init__(table_rows, embedding_dim)
        first = torch.tensor([0, *table_rows[:-1]]).cumsum(0)
        if places is None:
            rows, places = list(table_rows), torch.cat([torch.arange(n) for n in table_rows])
        else:
            rows = [int(each.max()) + 1 for each in places.split(self.table_rows)]
        self.kept = make_tables(rows, (), embedding_dim, 1.0, generator)
        self.register_buffer("places", places.int())
        self.register_buffer("first", first, persistent=False)

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        return self.kept.lookup(self.places[ids + self.first])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows alone: `places` stands for the dictionary, which has no entry for a rare value."""
        return self.kept.nbytes


def without_rare(counts: Sequence[Tensor], min_count: int) -> Tensor:
    """(n,) counts of each table's values in training -> (N,) the row of each in its own table, the rare ones' last."""
    kept = [count >= min_count for count in counts]
    return torch.cat([torch.where(each, each.cumsum(0) - 1, each.sum()) for each in kept])


class PrunedRows(Rows):
    """The share of a table's numbers with the largest magnitude, the others being 0; by rows, as CSR has them.

    Magnitude pruning (Han et al., 2015) at its plainest: once, after training, one threshold for all tables, and no
    training afterwards. `codes` (kept,) are the numbers, `columns` (kept,) where in its row each lies, in one byte up
    to D = 256, and `starts` (n + 1,) where each row's begin, in four.
    """

    columns: Tensor
    starts: Tensor

    def __init__(self, weight: Tensor, density: float):
        super().__init__(weight.shape, weight.dtype)
        flat, (n, width) = weight.detach().flatten(), weight.shape
        kept = flat.abs().topk(max(1, round(density * flat.numel())), sorted=False).indices.sort().values
        starts = kept.new_zeros(n + 1).index_add_(0, kept // width + 1, torch.ones_like(kept)).cumsum(0)
        self.register_buffer("codes", flat[kept])
        self.register_buffer("columns", (kept % width).to(_smallest(width - 1)))
        self.register_buffer("starts", starts.to(_smallest(max(len(kept), 256))))

    def forward(self, ids: Tensor) -> Tensor:
        """See Rows."""
        begin, end = self.starts[ids].unsqueeze(-1), self.starts[ids.long() + 1].unsqueeze(-1)
        places = begin + torch.arange(self.shape[1], device=ids.device)  # (*, D)
        is_own, places = places < end, places.clamp(max=len(self.codes) - 1)
        found = torch.where(is_own, self.codes[places], 0)
        return torch.zeros_like(found).scatter_add(-1, self.columns[places].long(), found).to(self.dtype)


def _smallest(largest: int) -> torch.dtype:
    """Of whole numbers that go so far."""
    return next(kind for kind in (torch.uint8, torch.int32, torch.int64) if largest <= torch.iinfo(kind).max)


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
