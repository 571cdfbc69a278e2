"""Plain tables -> rows of 8, 4 or 16 bits a number, as torch modules that are served and can't be trained.

n rows of a table; D embedding dimension; B rows of a batch; F categorical features; N ids of a bag.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrm_mlet.tables.convert import NUMBERS, check_patterns, matching, not_collapsed
from dlrm_mlet.tables.guarded import guarded
from dlrm_mlet.tables.stacked import SingleLayerTables, Tables
from dlrm_mlet.tables.surgery import Sharing, become, memory, named, obstacle, refuse_wrapped

M = TypeVar("M", bound=nn.Module)
AT_ONCE = 1 << 16
"""Rows that are quantized at once."""


class Rows(nn.Module):
    """A table in few bits. Moves and casts of the model change the type that it gives, never the bits that it holds."""

    codes: Tensor
    scales: Tensor
    offsets: Tensor | None

    def __init__(self, shape: Sequence[int], dtype: torch.dtype):
        super().__init__()
        self.shape = torch.Size(shape)  # (n, D)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """(*) ids -> (*, D). Only the rows that are asked for are unpacked."""
        raise NotImplementedError

    def table(self) -> Tensor:
        """(n, D): all rows, unpacked."""
        return self(torch.arange(self.shape[0], device=self.codes.device))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Refuse what only looks alike: of rows of one number, 4 and 8 bits have one shape."""
        for name, held in self._buffers.items():
            given = state_dict.get(prefix + name)
            if held is not None and given is not None and given.dtype != held.dtype:
                arguments[-1].append(f"{prefix}{name} is of {given.dtype}; expected {held.dtype}: rows of other bits")
                return
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rows":
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, held in before.items():
            after = self._buffers[name]
            if held is not None and after is not None and after.dtype != held.dtype:
                self._buffers[name] = held.to(after.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype
        return self


class ScaledRows(Rows):
    """Whole numbers with a scale a row, and an offset where there is one; both bfloat16, whose range is float32's."""

    bits: int

    def __init__(self, weight: Tensor, offset: bool, prepare: Callable[[Tensor], Tensor]):
        super().__init__(weight.shape, weight.dtype)
        codes, scales, offsets = quantize_rows(weight.detach(), self.bits, offset, prepare)
        self.register_buffer("codes", self._packed(codes))
        self.register_buffer("scales", scales)  # (n, 1)
        self.register_buffer("offsets", offsets)  # (n, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """See Rows."""
        exact = torch.promote_types(self.dtype, torch.float32)
        found = self._unpacked(F.embedding(ids, self.codes).to(exact)) * F.embedding(ids, self.scales).to(exact)
        if self.offsets is not None:
            found = found + F.embedding(ids, self.offsets).to(exact)
        return found.to(self.dtype)

    def _packed(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def _unpacked(self, codes: Tensor) -> Tensor:
        raise NotImplementedError


class Int8Rows(ScaledRows):
    """`codes` (n, D) int8: row i is codes[i] · scales[i], plus offsets[i]. n · (D + 2) bytes, or n · (D + 4)."""

    bits = 8

    def _packed(self, codes: Tensor) -> Tensor:
        return codes

    def _unpacked(self, codes: Tensor) -> Tensor:
        return codes


class Int4Rows(ScaledRows):
    """`codes` (n, D/2) uint8: two numbers in each, the first one in its low half. n · (D/2 + 2) bytes, or + 4."""

    bits = 4

    def _packed(self, codes: Tensor) -> Tensor:
        halves = (F.pad(codes, (0, codes.shape[1] % 2)) + 8).to(torch.uint8)
        return halves[:, 0::2] | halves[:, 1::2] << 4

    def _unpacked(self, codes: Tensor) -> Tensor:
        high = (codes / 16).floor()  # exact, and the same in ONNX, whose shifts torch writes wrongly
        both = torch.stack((codes - 16 * high, high), dim=-1).flatten(-2)  # (*, D), or one more where D is odd
        return both[..., : self.shape[1]] - 8


class HalfRows(Rows):
    """`codes` (n, D) float16: 2 · n · D bytes."""

    def __init__(self, weight: Tensor, prepare: Callable[[Tensor], Tensor]):
        super().__init__(weight.shape, weight.dtype)
        self.register_buffer("codes", torch.empty_like(weight, dtype=torch.half, requires_grad=False))
        for first in range(0, len(weight), AT_ONCE):
            part = prepare(weight.detach()[first : first + AT_ONCE])
            _refuse(part, part.abs().amax(dim=1) <= torch.finfo(torch.half).max, first, "below 65,520")
            self.codes[first : first + AT_ONCE] = part

    def forward(self, ids: Tensor) -> Tensor:
        """See Rows."""
        return F.embedding(ids, self.codes).to(self.dtype)


def make_rows(
    weight: Tensor, bits: int, offset: bool = False, prepare: Callable[[Tensor], Tensor] = lambda rows: rows
) -> Rows:
    """(n, D) -> its rows in 8, 4 or 16 bits a number; `prepare` is what is done to some rows before."""
    match bits:
        case 8:
            return Int8Rows(weight, offset, prepare)
        case 4:
            return Int4Rows(weight, offset, prepare)
        case 16:
            return HalfRows(weight, prepare)
    raise ValueError(f"bits = {bits}: expected 8, 4 or 16")


class _Quantized(nn.Module):
    """What a table of torch's has in common with it in few bits: all it says of itself, and `weight`, unpacked."""

    rows: Rows
    max_norm: float | None
    padding_idx: int | None

    def _take(self, table: Any, rows: Rows) -> None:
        nn.Module.__init__(self)
        for name in table.__constants__:  # num_embeddings, embedding_dim and so on
            setattr(self, name, getattr(table, name))
        self.max_norm = None  # the rows have it already
        self.padding_idx = None if self.padding_idx is None else self.padding_idx % rows.shape[0]
        self.rows = rows
        self.train(table.training)

    @property
    def weight(self) -> Tensor:
        """(n, D): all rows, unpacked. What would write into it raises RuntimeError."""
        return guarded(self.rows.table(), "is unpacked from few bits, and what is written into it is lost")

    @weight.setter
    def weight(self, _: Tensor) -> None:
        raise AttributeError("weight: is packed in few bits; expected a change of the table before quantize")

    def extra_repr(self) -> str:
        """As torch shows its own."""
        return f"{self.rows.shape[0]}, {self.rows.shape[1]}"


class QuantizedEmbedding(_Quantized, nn.Embedding):
    """A trained torch.nn.Embedding in few bits."""

    def __init__(self, table: nn.Embedding, rows: Rows):
        self._take(table, rows)

    def forward(self, input: Tensor) -> Tensor:
        """(*) ids -> (*, D)."""
        return self.rows(input)


class QuantizedEmbeddingBag(_Quantized, nn.EmbeddingBag):
    """A trained torch.nn.EmbeddingBag in few bits."""

    def __init__(self, table: nn.EmbeddingBag, rows: Rows):
        self._take(table, rows)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """(B, N) ids, or (N,) ids and (B,) offsets -> (B, D), one vector a bag. Raises what torch's raises."""
        self._check(input, offsets, per_sample_weights)
        rows = self.rows(input)  # (B, N, D) or (N, D)
        if input.dim() == 2:  # bags of one length, as plain sums, which ONNX takes for any B
            return bags_of_one_length(rows, input, self.mode, self.padding_idx, per_sample_weights)
        assert offsets is not None
        if not offsets.numel():
            return rows.new_zeros(0, self.rows.shape[1])
        # each row by its place; the last one, of zeros, stands for the padding
        places, padding = torch.arange(input.shape[0], device=input.device), None
        if self.padding_idx is not None:
            rows, padding = F.pad(rows, (0, 0, 0, 1)), input.shape[0]  # (N + 1, D)
            places = places.masked_fill(input == self.padding_idx, padding)
        return F.embedding_bag(
            places,
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )

    def _check(self, input: Tensor, offsets: Tensor | None, weights: Tensor | None) -> None:
        if input.dim() == 2 and offsets is not None:
            raise ValueError("offsets: expected none with an input of 2 dimensions, whose bags are its rows")
        if input.dim() == 1 and (offsets is None or offsets.dim() != 1):
            raise ValueError("offsets: expected (B,) with an input of 1 dimension")
        if input.dim() not in (1, 2) or not all(input.shape[1:]):
            raise ValueError(f"an input of {tuple(input.shape)}; expected ids in 1 or 2 dimensions")
        if weights is None:
            return
        if self.mode != "sum":
            raise NotImplementedError(f"per_sample_weights with mode {self.mode!r}; expected mode 'sum'")
        if weights.shape != input.shape or weights.dtype != self.rows.dtype:
            raise ValueError(
                f"per_sample_weights of {tuple(weights.shape)} {weights.dtype}; expected {tuple(input.shape)} "
                f"{self.rows.dtype}, as the input and the rows"
            )

    def extra_repr(self) -> str:
        """As torch shows its own."""
        return f"{super().extra_repr()}, mode={self.mode}"


def bags_of_one_length(
    rows: Tensor, input: Tensor, mode: str, padding_idx: int | None, weights: Tensor | None
) -> Tensor:
    """(B, N, D) rows of (B, N) ids -> (B, D): what an EmbeddingBag makes of them, in sums of one graph."""
    if padding_idx is None:
        if mode == "max":
            return rows.amax(dim=1)
        total = rows.sum(dim=1) if weights is None else (rows * weights.unsqueeze(2)).sum(dim=1)
        return total / input.shape[1] if mode == "mean" else total
    counts = input != padding_idx  # (B, N)
    if mode == "max":
        largest = rows.masked_fill(~counts.unsqueeze(2), -torch.inf).amax(dim=1)
        return largest.masked_fill(~counts.any(dim=1, keepdim=True), 0)
    factors = counts.to(rows.dtype) if weights is None else weights.masked_fill(~counts, 0)
    total = (rows * factors.unsqueeze(2)).sum(dim=1)
    return total / counts.sum(dim=1, keepdim=True).clamp_min(1) if mode == "mean" else total


class QuantizedTables(Tables):
    """DLRM's tables in few bits."""

    offsets: Tensor

    def __init__(self, tables: SingleLayerTables, rows: Rows):
        super().__init__(tables.table_rows, tables.embedding_dim, tables.bags)
        self.register_buffer("offsets", tables.offsets, persistent=False)
        self.rows = rows
        self.train(tables.training)

    def lookup(self, ids: Tensor) -> Tensor:
        """(B, F) ids -> (B, F, D)."""
        if self.bags is None:
            return self.rows(ids + self.offsets.t())
        vectors = self.rows(ids.clamp(min=0) + self.offsets.t())  # (B, slots, D)
        return self.bags.pool(vectors.transpose(0, 1), ids.t() >= 0).transpose(0, 1)


MADE: dict[type, Callable[[Any, Rows], nn.Module]] = {
    nn.Embedding: QuantizedEmbedding,
    nn.EmbeddingBag: QuantizedEmbeddingBag,
    SingleLayerTables: QuantizedTables,
}


def quantize(
    model: M,
    bits: int | Mapping[str, int] = 8,
    *,
    offset: bool = False,
    min_rows: int = 1,
    only: str | Sequence[str] = "*",
    report: Callable[[str], object] = print,
) -> M:
    """Pack all plain tables of a model into 8, 4 or 16 `bits` a number; returns the model, for serving alone.

    Whole numbers of 8 and 4 bits have a scale a row, with `offset` an offset too; 16 is float16. `bits` may have its
    own for each pattern of names, the first that matches. The tables are changed in place, as `convert` does it; left
    are those of fewer than `min_rows` rows, whose name none of the patterns `only` matches, or of which something else
    needs the numbers. `report` is called with a line for each: its bytes, or why it was left. A `max_norm` is applied
    once, to all rows. Raises ValueError, and changes nothing, where MLET's tables aren't collapsed yet, where there is
    no table to quantize, or where a row can't be scaled.
    """
    refuse_wrapped(model, "a copy of the model inside it")
    if name := not_collapsed(model):
        raise ValueError(f"{name}: isn't collapsed; expected dlrm_mlet.collapse(model) first")
    each = dict(bits) if isinstance(bits, Mapping) else {"*": bits}
    patterns = [only] if isinstance(only, str) else list(only)
    found = named(model, tuple(MADE))
    tables = {table: names for table, names in found.items() if not isinstance(table, _Quantized)}
    if not tables:
        already = found or named(model, Rows)
        why = "all is quantized" if already else "it has no nn.Embedding, nn.EmbeddingBag or SingleLayerTables"
        raise ValueError(f"nothing to quantize in the model: {why}")
    check_patterns(tables, "only", patterns)
    check_patterns(tables, "bits", each)
    left = _left(model, tables, [list(each), patterns], min_rows)
    rows: dict[Any, Rows] = {}
    made: dict[Any, Rows] = {}
    for table, names in tables.items():
        if not left[table]:
            pattern = matching(names, each)
            assert pattern is not None
            norm = getattr(table, "max_norm", None), getattr(table, "norm_type", None)
            key = (memory(table.weight), each[pattern], norm)
            try:
                made[table] = rows[key] = rows.get(key) or make_rows(table.weight, each[pattern], offset, _norm(table))
            except ValueError as error:
                raise ValueError(f"{names[0]}: {error}") from None
    if not made:
        raise ValueError(f"nothing to quantize; {'; '.join(f'{tables[t][0]}: {why}' for t, why in left.items())}")
    before = {table: table.weight.nbytes for table in made}
    for table, packed in made.items():
        become(table, MADE[type(table)](table, packed))
    counted: set[Rows] = set()
    for table, names in tables.items():
        if left[table]:
            report(f"{names[0]} left: {left[table]}")
        elif made[table] in counted:
            report(f"{names[0]}: tied, and counted already")
        else:
            counted.add(made[table])
            report(f"{names[0]}: {before[table]:,} bytes -> {sum(held.nbytes for held in made[table].buffers()):,}")
    return model


def _left(
    model: nn.Module, tables: Mapping[Any, Sequence[str]], patterns: Sequence[Sequence[str]], min_rows: int
) -> dict[Any, str | None]:
    """For each table why it isn't to be quantized; None where it is."""
    sharing, left = Sharing(model), {}
    for table, names in tables.items():
        unmatched = next((p for p in patterns if matching(names, p) is None), None)
        why = obstacle(table, tuple(MADE), {"weight"}, ["offsets"] if isinstance(table, SingleLayerTables) else [])
        if not why and unmatched is not None:
            why = f"no pattern of {', '.join(unmatched)} matches"
        if not why and len(table.weight) < min_rows:
            why = f"fewer than {min_rows:,} rows"
        if not why and (table.weight.dtype not in NUMBERS or not table.weight.numel()):
            why = f"its numbers are {table.weight.dtype}" if table.weight.numel() else "it has no numbers"
        left[table] = why
    others = {other for other, why in left.items() if not why}
    for table in tables:
        if not left[table] and (elsewhere := sharing.elsewhere(table, table.weight, others)):
            left[table] = f"its weight is also that of {', '.join(elsewhere)}, and would stay"
    return left


def _norm(table: Any) -> Callable[[Tensor], Tensor]:
    """What a lookup with max_norm makes of rows."""
    norm = getattr(table, "max_norm", None)
    return lambda rows: rows if norm is None else torch.renorm(rows, table.norm_type, 0, norm)


def quantize_rows(
    weight: Tensor, bits: int, offset: bool = False, prepare: Callable[[Tensor], Tensor] = lambda rows: rows
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(n, D) -> (n, D) int8, (n, 1) bfloat16 scales, and (n, 1) bfloat16 offsets or None: no number is cut off.

    Without an offset the numbers go from -127 to 127, or -7 to 7; with one from -128 to 127, or -8 to 7. It needs
    little more memory than the result takes. Raises ValueError at the first row with a number that isn't finite.
    """
    codes = torch.empty_like(weight, dtype=torch.int8, requires_grad=False)
    scales = weight.new_empty(len(weight), 1, dtype=torch.bfloat16)
    offsets = torch.empty_like(scales) if offset else None
    at_once = max(len(weight), 1) if weight.is_meta else AT_ONCE
    for first in range(0, len(weight), at_once):
        part = slice(first, first + at_once)
        rows = prepare(weight[part])
        _refuse(rows, rows.float().isfinite().all(dim=1), first, "")
        codes[part], scales[part], low = _quantize_rows(rows, bits, offset)
        if offsets is not None:
            offsets[part] = low
    return codes, scales, offsets


def _quantize_rows(rows: Tensor, bits: int, offset: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Some rows of a table, whole numbers around the offset, which is 0 or the middle of the row.

    Scale and offset are rounded before the numbers are, so that their own rounding costs nothing but range.
    """
    largest, exact = 2 ** (bits - 1) - 1, torch.promote_types(rows.dtype, torch.float32)
    low, high = rows.amin(dim=1, keepdim=True).double(), rows.amax(dim=1, keepdim=True).double()  # (n, 1)
    smallest = -largest - offset
    zero = torch.zeros_like(low).bfloat16()
    if offset:
        zero = ((low * largest - high * smallest) / (largest - smallest)).bfloat16()
    unit = _up(torch.maximum((low - zero.double()) / smallest, (high - zero.double()) / largest).float())
    codes = ((rows.to(exact) - zero.to(exact)) / unit.to(exact)).round()
    return codes.clamp(smallest, largest).to(torch.int8), unit.bfloat16(), zero


def _up(scales: Tensor) -> Tensor:
    """float32 of 0 and more -> the next number that bfloat16 has, and is no denormal."""
    whole = scales.clamp_min(torch.finfo(torch.float32).tiny).view(torch.int32)
    return ((whole + 0xFFFF) & -0x10000).view(torch.float32)


def _refuse(rows: Tensor, good: Tensor, first: int, more: str) -> None:
    """Raise ValueError at the first row that isn't good."""
    if not rows.is_meta and not good.all():
        row = int((~good).nonzero()[0])
        largest = rows[row].abs().max().item()
        raise ValueError(f"row {first + row} has {largest}; expected finite numbers {more}".rstrip())
