"""MLETEmbedding and MLETEmbeddingBag: torch.nn's Embedding and EmbeddingBag, trained as W1 · W2 and collapsed to W.

n num_embeddings; D embedding dimension (served); K inner dimension (trained, K >= D).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrm_mlet.tables.stacked import PROJECTION_STD, multiply, right_inverse


class _MLET(nn.Module):
    """A table W of n x D as a product (paper, equations 2 to 5): `weight` is W1, n x K, `projections` the others."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        inner_dim: int | Sequence[int],
        padding_idx: int | None,
        max_norm: float | None,
        scale_grad_by_freq: bool,
        sparse: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__()
        inner_dims = tuple(inner_dim) if isinstance(inner_dim, Sequence) else (int(inner_dim),)
        if not inner_dims or min(inner_dims) < embedding_dim:
            raise ValueError(
                f"inner_dim = {inner_dim}: expected at least embedding_dim = {embedding_dim}, below which the product "
                "can't reach every table (paper, Theorem 2.2)"
            )
        if max_norm is not None:
            raise ValueError(
                f"max_norm = {max_norm}: rescaling rows of W1 can't give rows of W1 W2 that norm; expected None"
            )
        if scale_grad_by_freq:
            raise ValueError(
                "scale_grad_by_freq: the gradient of W2 is a sum over all ids and has no frequency; expected False"
            )
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(f"padding_idx = {padding_idx}: expected a row of the table, of {num_embeddings}")
        self.num_embeddings, self.embedding_dim, self.inner_dims = num_embeddings, embedding_dim, inner_dims
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.sparse = sparse
        widths = (*inner_dims, embedding_dim)
        self.weight = nn.Parameter(torch.empty(num_embeddings, widths[0], device=device, dtype=dtype))
        self.projections = nn.ParameterList(
            nn.Parameter(torch.empty(wide, narrow, device=device, dtype=dtype)) for wide, narrow in pairwise(widths)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The paper's start: W1 uniform in ±1/sqrt(n), the others N(0, 0.25²); the row of `padding_idx` is 0."""
        nn.init.uniform_(self.weight, -1 / math.sqrt(self.num_embeddings), 1 / math.sqrt(self.num_embeddings))
        for projection in self.projections:
            nn.init.normal_(projection, std=PROJECTION_STD)
        if self.padding_idx is not None:
            self.weight[self.padding_idx] = 0

    @torch.no_grad()
    def start_at(self, table: Tensor) -> Self:
        """Change all layers so that the product is `table`, (n, D), up to rounding (paper, Theorem 2.1).

        Raises ValueError where the row of `padding_idx` isn't 0: nn.Embedding keeps it as it is, and here it would
        move with W2.
        """
        if self.padding_idx is not None and table[self.padding_idx].any():
            raise ValueError(f"row {self.padding_idx}, the padding, isn't 0: it would not stay as it is")
        # W2 stays random: with the theorem's own zeros for the columns beyond D, no gradient would ever reach these.
        # Its columns are orthogonal, of the length that they have in the mean at the paper's start: the inverse of a
        # Gaussian W2 loses digits where K is near D
        for projection in self.projections:
            start = torch.empty(projection.shape, dtype=torch.float64)
            nn.init.orthogonal_(start, gain=PROJECTION_STD * math.sqrt(len(projection)))
            projection.copy_(start)
        inverse = right_inverse(multiply(projection.double() for projection in self.projections))
        torch.mm(table, inverse.to(table), out=self.weight)
        return self

    def product(self) -> Tensor:
        """(K, D): all projections multiplied."""
        return multiply(self.projections)

    @torch.no_grad()
    def table(self) -> Tensor:
        """(n, D): W, the table that is served; whole also under autocast."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.weight @ self.product()

    def _project(self, vectors: Tensor) -> Tensor:
        """(..., K) -> (..., D), in the table's own type, as torch's lookup gives it also under autocast."""
        for projection in self.projections:
            vectors = vectors @ projection
        return vectors.to(self.weight.dtype)

    def extra_repr(self) -> str:
        """As torch shows its own."""
        dims = ", ".join(map(str, self.inner_dims))
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, inner_dim=({dims}){padding}"


class MLETEmbedding(_MLET):
    """A drop-in for torch.nn.Embedding: the same arguments and, collapsed, the same module; and `inner_dim`.

    `inner_dim` is K, or a list for more layers. Of W1 gradients can be `sparse`; those of W2 never are. What doesn't
    commute with a linear map, max_norm and scale_grad_by_freq, raises ValueError.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        inner_dim: int | Sequence[int],
    ):
        super().__init__(
            num_embeddings, embedding_dim, inner_dim, padding_idx, max_norm, scale_grad_by_freq, sparse, device, dtype
        )

    def forward(self, input: Tensor) -> Tensor:
        """(*) ids -> (*, D): r = q W1 W2 (paper, equation 5)."""
        return self._project(F.embedding(input, self.weight, self.padding_idx, sparse=self.sparse))

    def collapse(self) -> nn.Embedding:
        """W = W1 · W2 as a torch.nn.Embedding: the same vectors, n x D."""
        found = nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, sparse=self.sparse, _weight=self.table()
        )
        return found.train(self.training)


class MLETEmbeddingBag(_MLET):
    """A drop-in for torch.nn.EmbeddingBag: the same arguments and, collapsed, the same module; and `inner_dim`.

    A bag's sum or mean is taken of rows of W1, and multiplied by W2 once. A maximum doesn't commute with that: mode
    "max" raises ValueError, as max_norm and scale_grad_by_freq do.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        inner_dim: int | Sequence[int],
    ):
        if mode not in ("sum", "mean"):
            raise ValueError(
                f"mode = {mode!r}: the maximum doesn't commute with a linear map; expected 'sum' or 'mean'"
            )
        super().__init__(
            num_embeddings, embedding_dim, inner_dim, padding_idx, max_norm, scale_grad_by_freq, sparse, device, dtype
        )
        self.mode, self.include_last_offset = mode, include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """(B, N) ids, or (N,) ids and (B,) offsets -> (B, D), one vector a bag."""
        bags = F.embedding_bag(
            input,
            self.weight,
            offsets,
            mode=self.mode,
            sparse=self.sparse,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )
        return self._project(bags)

    def collapse(self) -> nn.EmbeddingBag:
        """W = W1 · W2 as a torch.nn.EmbeddingBag: the same vectors, n x D."""
        found = nn.EmbeddingBag(
            self.num_embeddings,
            self.embedding_dim,
            mode=self.mode,
            sparse=self.sparse,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            _weight=self.table(),
        )
        return found.train(self.training)

    def extra_repr(self) -> str:
        """As torch shows its own."""
        return f"{super().extra_repr()}, mode={self.mode}"
