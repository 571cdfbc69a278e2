"""Any torch model -> the same model with its tables as MLET's, and back again collapsed."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from dlrm_mlet.tables.layers import MLETEmbedding, MLETEmbeddingBag
from dlrm_mlet.tables.stacked import MLETTables

M = TypeVar("M", bound=nn.Module)
Table = nn.Embedding | nn.EmbeddingBag
TRAINED = (MLETEmbedding, MLETEmbeddingBag, MLETTables)
"""What is there to collapse."""


def convert(
    model: M,
    inner_dim: int | Sequence[int],
    *,
    min_rows: int = 1,
    only: str | Sequence[str] = "*",
    from_pretrained: bool = False,
    report: Callable[[str], object] = print,
) -> M:
    """Replace the tables of a model, wherever they are in it, by MLET's with this `inner_dim`; returns the model.

    Names, devices, types and tied tables stay as they are. Tables of fewer than `min_rows` rows are left, and those
    whose name none of the patterns `only` matches (as in a shell: "*" is anything). The tables start as the paper's do;
    with `from_pretrained` at the tables that the model has, so that its outputs stay the same up to rounding (Theorem
    2.1). `report` is called with a line for each table: what was changed, or what was left and why.

    Make the optimizer afterwards: the parameters are new ones. Raises ValueError, and changes nothing, where inner_dim
    is below a table's embedding_dim, a pattern matches no table, or there is no table to convert.
    """
    patterns = [only] if isinstance(only, str) else list(only)
    tables = {name: module for name, module in model.named_modules() if isinstance(module, Table)}
    for pattern in patterns:
        if tables and not fnmatch.filter(tables, pattern):
            raise ValueError(f"only = {pattern!r}: matches no table; expected a pattern of {', '.join(tables)}")
    left = {name: _why_left(model, name, tables[name], min_rows, patterns, from_pretrained) for name in tables}
    stays = {table.weight: name for name, table in tables.items() if left[name]}
    for name, table in tables.items():
        if not left[name] and table.weight in stays:
            left[name] = f"it is tied to {stays[table.weight]}, which is left"
    chosen = {name: table for name, table in tables.items() if not left[name]}
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise ValueError(f"no table to convert; {reasons or 'the model has no nn.Embedding and no nn.EmbeddingBag'}")
    of_weight: dict[Any, MLETEmbedding | MLETEmbeddingBag] = {}
    made: dict[Table, MLETEmbedding | MLETEmbeddingBag] = {}
    for name, table in chosen.items():
        try:
            layer = made[table] = _layer(table, inner_dim)
            if (first := of_weight.setdefault(table.weight, layer)) is not layer:  # tied by their parameter
                layer.weight, layer.projections = first.weight, first.projections
            elif from_pretrained:
                layer.start_at(table.weight.detach())
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    for name, table in tables.items():
        shape = f"{name or type(table).__name__}: {table.num_embeddings:,} x {table.embedding_dim}"
        report(f"{shape} left: {left[name]}" if left[name] else f"{shape} now trained with inner_dim {inner_dim}")
    return replace(model, made)


def collapse(model: M, *, report: Callable[[str], object] = print) -> M:
    """Replace all tables of MLET's in a model by their product W, plain tables again: the same outputs up to rounding.

    Tied tables stay tied. `report` is called with a line for each. Raises ValueError where there is none.
    """
    found: dict[str, Any] = {name: module for name, module in model.named_modules() if type(module) in TRAINED}
    if not found:
        raise ValueError("nothing to collapse: the model has no MLETEmbedding, MLETEmbeddingBag or MLETTables")
    made: dict[nn.Module, nn.Module] = {}
    of_weight: dict[tuple[int, ...], nn.Parameter] = {}
    for name, module in found.items():
        plain: Any = module.collapse()
        made[module] = plain
        plain.weight.requires_grad_(module.weight.requires_grad)
        plain.weight = of_weight.setdefault(tuple(map(id, module.parameters())), plain.weight)
        n, d = plain.weight.shape
        report(f"{name or type(module).__name__}: {n:,} x {d}")
    return replace(model, made)


def _why_left(
    model: nn.Module, name: str, table: Table, min_rows: int, patterns: Sequence[str], from_pretrained: bool
) -> str | None:
    """Why a table can't or shouldn't be converted; None where it should."""
    plain = nn.EmbeddingBag if isinstance(table, nn.EmbeddingBag) else nn.Embedding
    holders = {
        holder or "the model"
        for holder, module in model.named_modules()
        if not isinstance(module, Table) and any(own is table.weight for own in module.parameters(recurse=False))
    }
    padding = table.padding_idx
    reasons = {
        f"no pattern of {', '.join(patterns)} matches": not any(fnmatch.fnmatch(name, p) for p in patterns),
        f"fewer than {min_rows:,} rows": table.num_embeddings < min_rows,
        f"its weight is also that of {', '.join(sorted(holders))}": bool(holders),
        "its weight is parametrized": parametrize.is_parametrized(table),
        f"{type(table).__name__} is a class of its own": type(table) is not plain,
        f"it is also in {_outside(model, table)}, which is no module": _outside(model, table) is not None,
        "it has hooks": bool(
            table._forward_hooks or table._forward_pre_hooks or table._backward_hooks or table.weight._backward_hooks
        ),
        "it is frozen": not table.weight.requires_grad,
        "max_norm doesn't commute with a linear map": table.max_norm is not None,
        "scale_grad_by_freq doesn't reach W2": table.scale_grad_by_freq,
        "a bag's maximum doesn't commute with a linear map": getattr(table, "mode", "") == "max",
        "its padding row isn't 0, and would move with W2": (
            from_pretrained and padding is not None and bool(table.weight[padding].any())
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _outside(model: nn.Module, table: Table) -> str | None:
    """The list, tuple or dictionary of a module in which a table is held too, where it can't be replaced."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            held = value.values() if isinstance(value, dict) else value
            public = not attribute.startswith("_")  # torch's own have an underscore
            if public and isinstance(value, list | tuple | dict) and any(item is table for item in held):
                return f"{name}.{attribute}".lstrip(".")
    return None


def _layer(table: Table, inner_dim: int | Sequence[int]) -> MLETEmbedding | MLETEmbeddingBag:
    """A new layer with a table's arguments."""
    arguments: dict[str, Any] = {
        "padding_idx": table.padding_idx,
        "sparse": table.sparse,
        "device": table.weight.device,
        "dtype": table.weight.dtype,
        "inner_dim": inner_dim,
    }
    if isinstance(table, nn.EmbeddingBag):
        arguments |= {"mode": table.mode, "include_last_offset": table.include_last_offset}
    made = MLETEmbeddingBag if isinstance(table, nn.EmbeddingBag) else MLETEmbedding
    return made(table.num_embeddings, table.embedding_dim, **arguments).train(table.training)


def replace(model: M, made: Mapping[Any, Any]) -> M:
    """The model with modules replaced wherever they are registered; the model itself may be one of them."""
    if model in made:
        return made[model]
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child in made:
                module._modules[name] = made[child]
    return model
