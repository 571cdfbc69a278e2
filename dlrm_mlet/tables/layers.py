"""MLETEmbedding and MLETEmbeddingBag: torch.nn's Embedding and EmbeddingBag, trained as W1 · W2 and collapsed to W.

n num_embeddings; D embedding dimension (served); K inner dimension (trained, K >= D).
"""

import contextlib
import gc
import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrm_mlet.tables.guarded import Guarded, guarded
from dlrm_mlet.tables.stacked import PROJECTION_STD, multiply, right_inverse


def whole(inner_dim: int | Sequence[int]) -> tuple[int, ...]:
    """K, or the widths of several layers, as a tuple. Raises ValueError where one is no whole number."""
    found = tuple(inner_dim) if isinstance(inner_dim, Sequence) else (inner_dim,)
    if any(isinstance(k, bool | str) or not hasattr(k, "__index__") for k in found):
        raise ValueError(f"inner_dim = {inner_dim!r}: expected a whole number, or a list of them")
    return tuple(map(int, found))


class _MLET(nn.Module):
    """A table W of n x D as a product (paper, equations 2 to 5): `inner_weight` is W1, n x K, `projections` the others.

    `weight` is W itself, for models that use it directly (scores over all items, tied decoders, penalties): right in
    value and gradient, and a whole product each time it is read.
    """

    padding: Tensor | None
    """(D,): the row of `padding_idx`, where it isn't 0; no training changes it."""
    _start: list[float]
    OWN = ("_start",)
    """What a collapsed table has no use for."""

    def _make(
        self,
        num_embeddings: int,
        embedding_dim: int,
        inner_dim: int | Sequence[int],
        padding_idx: int | None,
        max_norm: float | None,
        norm_type: float,
        scale_grad_by_freq: bool,
        sparse: bool,
        weight: Tensor | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        nn.Module.__init__(self)
        inner_dims = whole(inner_dim)
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
        if weight is not None:
            device, dtype = weight.device, weight.dtype
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, norm_type, False, sparse
        widths = (*inner_dims, embedding_dim)
        self.inner_weight = nn.Parameter(torch.empty(num_embeddings, widths[0], device=device, dtype=dtype))
        self.projections = nn.ParameterList(
            nn.Parameter(torch.empty(wide, narrow, device=device, dtype=dtype)) for wide, narrow in pairwise(widths)
        )
        self.register_buffer("padding", None)
        self.reset_parameters()
        if weight is not None:
            self.start_at(weight)

    @property
    def inner_dims(self) -> tuple[int, ...]:
        """K, and the widths of further layers."""
        return tuple(len(projection) for projection in self.projections)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The paper's start: W1 uniform in ±1/sqrt(n), the others N(0, 0.25²); the row of `padding_idx` is 0."""
        nn.init.uniform_(self.inner_weight, -1 / math.sqrt(self.num_embeddings), 1 / math.sqrt(self.num_embeddings))
        for projection in self.projections:
            nn.init.normal_(projection, std=PROJECTION_STD)
        if self.padding_idx is not None:
            self.inner_weight[self.padding_idx] = 0
        self.padding = None
        self._remember()

    @torch.no_grad()
    def start_at(self, table: Tensor) -> Self:
        """Change all layers so that the product is `table`, (n, D), up to rounding (paper, Theorem 2.1).

        A row of `padding_idx` that isn't 0 stays what it is, in `padding`, as in torch.nn.Embedding: W2 would move it.
        Raises ValueError where the table has another shape or a number that isn't finite.
        """
        # W2 stays random: with the theorem's own zeros for the columns beyond D, no gradient would ever reach these.
        # Its columns are orthogonal, of the length that they have in the mean at the paper's start: the inverse of a
        # Gaussian W2 loses digits where K is near D
        self._check(table)
        table = table.to(self.inner_weight)
        for projection in self.projections:
            start = torch.empty(projection.shape, dtype=torch.float64)
            nn.init.orthogonal_(start, gain=PROJECTION_STD * math.sqrt(len(projection)))
            projection.copy_(start)
        self._solve(table)
        if not self.inner_weight.is_meta and not self.inner_weight.isfinite().all():
            raise ValueError(f"the table has numbers up to {table.abs().max():g}, and W1 would be beyond {table.dtype}")
        self._remember()
        return self

    @property
    def weight(self) -> Tensor:
        """(n, D): W, with its gradient to all layers. What would write into it raises RuntimeError: assign a whole one.

        Assigned, W1 becomes the smallest one with that product (Theorem 2.1), and W2 stays, or starts anew where it has
        no good inverse. The optimizer keeps what it knows of W1, and a Parameter that is assigned gives its values.
        """
        how = f"assign all of it (table.weight = new), of {self.num_embeddings:,} x {self.embedding_dim}"
        lost = f"is a product, W1 · W2, and what is written into it is lost: {how}; a copy is .detach().clone()"
        return guarded(self._product(), lost)

    @weight.setter
    @torch.no_grad()
    def weight(self, table: Tensor) -> None:
        self._check(table)
        table = table.to(self.inner_weight)
        self._solve(table)
        if table.is_meta or not table.numel():
            return
        apart = (self._product() - table).abs().max()
        if not apart <= 64 * torch.finfo(table.dtype).eps * table.abs().max():  # also where it is no number
            self.start_at(table)

    def __setattr__(self, name: str, value: Any) -> None:
        """`weight` is no parameter, even where one is assigned, and the row of `padding_idx` was made for it."""
        if name == "padding_idx" and name in self.__dict__:
            raise AttributeError(f"padding_idx = {value}: can't be changed here; change it before convert")
        if name == "weight":
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"weight = a {kind}: expected a tensor of floating point numbers")
            if value.requires_grad and not isinstance(value, nn.Parameter | Guarded):
                raise ValueError("weight: the gradient of what is assigned would be lost; expected new.detach()")
            if isinstance(value, nn.Parameter) and _is_held(value):
                warnings.warn(
                    "weight: is a product and takes the values of this parameter, which something else has too: they "
                    "are not tied; tie them before convert",
                    stacklevel=2,
                )
            object.__setattr__(self, name, value.detach())
        else:
            super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """A padding row that is kept comes and goes with what is loaded."""
        if f"{prefix}inner_weight" in state_dict:  # else it says nothing of this table
            kept = state_dict.get(f"{prefix}padding")
            self.padding = None if kept is None else torch.empty_like(kept, device=self.inner_weight.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def product(self) -> Tensor:
        """(K, D): all projections multiplied."""
        return multiply(self.projections)

    @torch.no_grad()
    def table(self) -> Tensor:
        """(n, D): W, the table that is served; whole also under autocast."""
        return self._product()

    def projected(self) -> bool:
        """Whether W2 has changed since the layer was made: False where no optimizer has stepped it yet."""
        first = self.projections[0]
        return first.is_meta or torch.tensor(self._start, dtype=first.dtype).tolist() != first[0].tolist()

    def _remember(self) -> None:
        """A row of W2 as it starts; the numbers outlive moves and copies, as versions and addresses don't."""
        first = self.projections[0]
        self._start = [] if first.is_meta else first[0].tolist()

    def _check(self, table: Tensor) -> None:
        if table.shape != (self.num_embeddings, self.embedding_dim):
            expected = f"({self.num_embeddings}, {self.embedding_dim})"
            raise ValueError(f"a table of {tuple(table.shape)}; expected {expected}")
        if not table.is_meta and (wrong := ~table.isfinite().all(dim=1)).any():
            raise ValueError(f"row {int(wrong.nonzero()[0])} isn't finite; expected finite numbers")

    def _solve(self, table: Tensor) -> None:
        """W1 for this product; the padding's row apart, where it isn't 0."""
        inverse = right_inverse(multiply(projection.double() for projection in self.projections))
        self.inner_weight.copy_(table.to(self.inner_weight) @ inverse.to(self.inner_weight))
        self.padding = None
        if self.padding_idx is not None and not table.is_meta and table[self.padding_idx].any():
            self.padding = table[self.padding_idx].to(self.inner_weight, copy=True)
            self.inner_weight[self.padding_idx] = 0

    def _product(self) -> Tensor:
        device = self.inner_weight.device.type
        with torch.autocast(device, enabled=False) if device != "meta" else contextlib.nullcontext():
            whole = self.inner_weight @ self.product()
        if self.padding is None or self.padding_idx is None:
            return whole
        rows = torch.arange(self.num_embeddings, device=whole.device)
        return torch.where(torch.eq(rows, self.padding_idx).unsqueeze(1), self.padding, whole)

    def _project(self, vectors: Tensor) -> Tensor:
        """(..., K) -> (..., D), in the table's own type, as torch's lookup gives it also under autocast."""
        for projection in self.projections:
            vectors = vectors @ projection
        return vectors.to(self.inner_weight.dtype)

    def extra_repr(self) -> str:
        """As torch shows its own."""
        dims = ", ".join(map(str, self.inner_dims))
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}, inner_dim=({dims}){padding}"


def _is_held(parameter: nn.Parameter) -> bool:
    """Whether a module, or another dictionary, has it; a variable of a script is none."""
    holders = [holder for holder in gc.get_referrers(parameter) if isinstance(holder, dict)]
    return any("__builtins__" not in holder for holder in holders)


class MLETEmbedding(_MLET, nn.Embedding):
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
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        inner_dim: int | Sequence[int],
    ):
        self._make(
            num_embeddings,
            embedding_dim,
            inner_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            device,
            dtype,
        )
        self.requires_grad_(not _freeze)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # with inner_dim
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        inner_dim: int | Sequence[int],
    ) -> Self:
        """torch's, and as there frozen unless `freeze` is False: a layer whose product is `embeddings`, (n, D)."""
        n, d = embeddings.shape
        return cls(
            n,
            d,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            embeddings,
            freeze,
            inner_dim=inner_dim,
        )

    def forward(self, input: Tensor) -> Tensor:
        """(*) ids -> (*, D): r = q W1 W2 (paper, equation 5)."""
        vectors = self._project(F.embedding(input, self.inner_weight, self.padding_idx, sparse=self.sparse))
        if self.padding is None or self.padding_idx is None:
            return vectors
        return torch.where(torch.eq(input, self.padding_idx).unsqueeze(-1), self.padding, vectors)

    def collapse(self) -> nn.Embedding:
        """W = W1 · W2 as a torch.nn.Embedding: the same vectors, n x D."""
        found = nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, sparse=self.sparse, _weight=self.table()
        )
        return found.train(self.training)


class MLETEmbeddingBag(_MLET, nn.EmbeddingBag):
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
        _weight: Tensor | None = None,
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
        self._make(
            num_embeddings,
            embedding_dim,
            inner_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            device,
            dtype,
        )
        self.mode, self.include_last_offset = mode, include_last_offset

    @classmethod
    def from_pretrained(  # type: ignore[override]  # with inner_dim
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        inner_dim: int | Sequence[int],
    ) -> Self:
        """torch's, and as there frozen unless `freeze` is False: a layer whose product is `embeddings`, (n, D)."""
        n, d = embeddings.shape
        made = cls(
            n,
            d,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            embeddings,
            include_last_offset,
            padding_idx,
            inner_dim=inner_dim,
        )
        return made.requires_grad_(not freeze)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """(B, N) ids, or (N,) ids and (B,) offsets -> (B, D), one vector a bag."""
        bags = F.embedding_bag(
            input,
            self.inner_weight,
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
