"""Plain tables -> rows of int8 with a half-precision scale each, as torch modules: n * (D + 2) bytes.

n rows of a table; D embedding dimension; B rows of a batch; F categorical features.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrm_mlet.tables.convert import TRAINED, replace
from dlrm_mlet.tables.stacked import SingleLayerTables, Tables

M = TypeVar("M", bound=nn.Module)
LARGEST = 127
AT_ONCE = 1 << 16
"""Rows that are quantized at once."""


class Int8Rows(nn.Module):
    """A table of which row i is `values`[i] * `scales`[i]: whole numbers from -127 to 127, and a float16."""

    values: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        values, scales = quantize_rows(weight.detach())
        self.register_buffer("values", values)  # (n, D)
        self.register_buffer("scales", scales)  # (n, 1)
        self.dtype = weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """(*) ids -> (*, D). Only the rows that are asked for are unpacked."""
        return F.embedding(ids, self.values).to(self.dtype) * F.embedding(ids, self.scales).to(self.dtype)


class Int8Embedding(Int8Rows):
    """A trained torch.nn.Embedding with its rows in int8."""

    def __init__(self, table: nn.Embedding):
        super().__init__(table.weight)


class Int8EmbeddingBag(Int8Rows):
    """A trained torch.nn.EmbeddingBag with its rows in int8."""

    def __init__(self, table: nn.EmbeddingBag):
        super().__init__(table.weight)
        self.mode, self.include_last_offset, self.padding_idx = table.mode, table.include_last_offset, table.padding_idx

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """(B, N) ids, or (N,) ids and (B,) offsets -> (B, D), one vector a bag."""
        rows = super().forward(input)  # (B, N, D) or (N, D)
        if input.dim() == 2:  # bags of one length, as plain sums, which ONNX takes for any B
            return self._of_one_length(rows, self._counts(input), per_sample_weights)
        rows = F.pad(rows, (0, 0, 0, 1))  # (N + 1, D): the last one stands for the padding
        places = torch.arange(len(input), device=input.device).masked_fill(~self._counts(input), len(input))
        return F.embedding_bag(
            places,
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=len(input),
        )

    def _counts(self, input: Tensor) -> Tensor:
        """Which ids are no padding."""
        return input != (-1 if self.padding_idx is None else self.padding_idx)

    def _of_one_length(self, rows: Tensor, counts: Tensor, weights: Tensor | None) -> Tensor:
        """(B, N, D) rows and (B, N) whether they count -> (B, D)."""
        if self.mode == "max":
            largest = rows.masked_fill(~counts.unsqueeze(2), -torch.inf).amax(dim=1)
            return largest.masked_fill(~counts.any(dim=1, keepdim=True), 0)
        factors = counts.to(rows.dtype) if weights is None else weights.masked_fill(~counts, 0)
        total = (rows * factors.unsqueeze(2)).sum(dim=1)
        return total / counts.sum(dim=1, keepdim=True).clamp_min(1) if self.mode == "mean" else total


class Int8Tables(Tables):
    """DLRM's tables with their rows in int8."""

    offsets: Tensor

    def __init__(self, tables: SingleLayerTables):
        super().__init__(tables.table_rows, tables.embedding_dim)
        self.register_buffer("offsets", tables.offsets, persistent=False)
        self.rows = Int8Rows(tables.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        return self.rows(ids + self.offsets.t())


def quantize(model: M, *, report: Callable[[str], object] = print) -> M:
    """Replace all plain tables of a model by int8 rows; returns the model, which can't be trained any more.

    `report` is called with a line for each. Raises ValueError where MLET's tables aren't collapsed yet, where there is
    no table, or where a row can't be scaled.
    """
    made: dict[Any, nn.Module] = {}
    of_weight: dict[Any, Any] = {}
    for name, module in model.named_modules():
        if type(module) in TRAINED:
            raise ValueError(
                f"{name or type(module).__name__}: isn't collapsed; expected dlrm_mlet.collapse(model) first"
            )
        # no subclass: what else it does would be lost
        kinds: dict[type, Callable[[Any], nn.Module]] = {
            nn.Embedding: Int8Embedding,
            nn.EmbeddingBag: Int8EmbeddingBag,
            SingleLayerTables: Int8Tables,
        }
        if kind := kinds.get(type(module)):
            try:
                small: Any = kind(module).train(module.training)
                made[module] = small
            except ValueError as error:
                raise ValueError(f"{name or type(module).__name__}: {error}") from None
            if (first := of_weight.setdefault(module.weight, small)) is not small:  # tied tables stay tied
                small.values, small.scales = first.values, first.scales
            after = sum(tensor.nbytes for tensor in small.state_dict().values())
            report(f"{name or type(module).__name__}: {module.weight.nbytes:,} bytes -> {after:,}")
        if isinstance(module, Int8Rows):
            raise ValueError(f"{name or type(module).__name__}: is of int8 rows already")
    if not made:
        raise ValueError("nothing to quantize: the model has no nn.Embedding, nn.EmbeddingBag or SingleLayerTables")
    return replace(model, made)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) -> (n, D) int8 and (n, 1) float16: the smallest scale of each row that cuts off no value.

    It needs little more memory than the result takes. Raises ValueError at the first row with a number that isn't
    finite, or too large for a float16 scale.
    """
    values = weight.new_empty(weight.shape, dtype=torch.int8)
    scales = weight.new_empty(len(weight), 1, dtype=torch.half)
    for first in range(0, len(weight), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        values[part], scales[part] = _quantize_rows(weight[part], first)
    return values, scales


def _quantize_rows(weight: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Some rows of a table, the first of which is row `first`."""
    largest = weight.abs().amax(dim=1, keepdim=True).double()  # (n, 1)
    exact = largest / LARGEST
    wrong = ~(exact <= torch.finfo(torch.half).max).flatten()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"row {first + row} has {largest[row].item()}; expected finite numbers below 8e6")
    # rounded up, by one unit in the last place where half precision rounds down; a row of nothing has a scale too
    half = exact.half()
    up = (half.view(torch.int16) + 1).view(torch.half)
    scales = torch.where((half.double() < exact) | (half == 0), up, half)
    exact_enough = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(exact_enough) / scales.to(exact_enough)).round().to(torch.int8), scales
