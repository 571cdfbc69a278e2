"""Any torch model -> the same model with its tables as MLET's, and back again collapsed."""

import copy
import fnmatch
import gc
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dlrm_mlet.tables.layers import MLETEmbedding, MLETEmbeddingBag
from dlrm_mlet.tables.stacked import MLETTables
from dlrm_mlet.tables.surgery import Sharing, become, holding, memory, named, obstacle, refuse_wrapped

M = TypeVar("M", bound=nn.Module)
Table = nn.Embedding | nn.EmbeddingBag
InnerDim = int | Sequence[int]
NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TRAINED = (MLETEmbedding, MLETEmbeddingBag, MLETTables)
"""What is there to collapse; classes derived from them too."""


def convert(
    model: M,
    inner_dim: InnerDim | Mapping[str, InnerDim],
    *,
    min_rows: int = 1,
    only: str | Sequence[str] = "*",
    from_pretrained: bool = False,
    report: Callable[[str], object] = print,
) -> M:
    """Make MLET's of the tables of a model, wherever they are in it, with this `inner_dim`; returns the model.

    The tables are changed in place, so that whatever holds one goes on with it; names, devices, types, tied tables and
    hooks on modules stay as they are. Left are tables of fewer than `min_rows` rows, wider than `inner_dim`, or whose
    name none of the patterns `only` matches (as in a shell: "*" is anything); `inner_dim` may have its own for each
    pattern, the first that matches. The tables start as the paper's do; with `from_pretrained` at the tables that the
    model has, so that its outputs stay the same up to rounding (Theorem 2.1). `report` is called with a line for each
    table: what was changed, or what was left and why.

    Make the optimizer afterwards: the parameters are new ones. A warning says where something still holds an old one.
    Raises ValueError, and changes nothing, where a pattern matches no table, where there is no table to convert, or
    where the model is wrapped already (DistributedDataParallel and its like).
    """
    refuse_wrapped(model, "convert first, and then the wrapper")
    dims = dict(inner_dim) if isinstance(inner_dim, Mapping) else {"*": inner_dim}
    patterns = [only] if isinstance(only, str) else list(only)
    found = named(model, Table)
    tables = {table: names for table, names in found.items() if not _is_ours(table)}
    if not tables:
        why = "all are converted or quantized already" if found else "it has no nn.Embedding and no nn.EmbeddingBag"
        raise ValueError(f"no table to convert in the model: {why}")
    check_patterns(tables, "only", patterns)
    check_patterns(tables, "inner_dim", dims)
    left = _left(model, tables, dims, min_rows, patterns)
    if from_pretrained:
        _leave_paddings_apart(tables, left)
    chosen = [table for table in tables if not left[table]]
    if not chosen:
        raise ValueError(f"no table to convert; {'; '.join(f'{tables[t][0]}: {why}' for t, why in left.items())}")
    made = _made(tables, chosen, dims, from_pretrained)
    before = [weakref.ref(table.weight) for table in chosen]
    for table in chosen:
        become(table, made[table])
    for table, names in tables.items():
        shape = f"{names[0]}: {table.num_embeddings:,} x {table.embedding_dim}"
        report(
            f"{shape} left: {left[table]}" if left[table] else f"{shape} now trained with inner_dim {_dim(dims, names)}"
        )
    _warn_of_holders(before)
    return model


def collapse(model: M, *, inplace: bool = True, report: Callable[[str], object] = print) -> M:
    """Make of all MLET's tables of a model their product W, plain tables again: the same outputs up to rounding.

    In place, as `convert` does it; tied tables stay tied. With `inplace=False` the model goes on as it is, and what is
    returned is a collapsed copy, which shares all other parameters: for an average of the weights over the steps, which
    has to be one of W (an average of W1 times one of W2 is something else), or for a look at validation in between.
    `report` is called with a line for each. Warns where W2 was never stepped. Raises ValueError, and changes nothing,
    where there is nothing to collapse, where a table is more than its class (normalized, pruned, derived), or where the
    model is wrapped (DistributedDataParallel, AveragedModel and their like).
    """
    whole = "the model inside it, with inplace=False or when the wrapper is gone"
    refuse_wrapped(model, whole, around=inplace)
    # each step of an average takes a copy, for which a look at all that is alive would be long
    around = holding(model, lambda kind: issubclass(kind, AveragedModel)) if inplace else ()
    if any(isinstance(module, AveragedModel) for module in (*model.modules(), *around)):
        raise ValueError(
            "the model is in AveragedModel: the product of an averaged W1 and an averaged W2 isn't the average of W; "
            "expected an average of dlrm_mlet.collapse(model, inplace=False)"
        )
    if not inplace:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        model = copy.deepcopy(model, shared)
    found = named(model, TRAINED)
    if not found:
        raise ValueError("nothing to collapse: the model has no MLETEmbedding, MLETEmbeddingBag or MLETTables")
    for module, names in found.items():
        if why := _why_not_collapsed(module):
            raise ValueError(f"{names[0]}: {why}; expected what {type(module).__name__} is by itself")
    if inplace:
        _warn_of_stale(found)
    of_weight: dict[tuple[Any, ...], nn.Parameter] = {}
    made = {}
    for module in found:
        plain = made[module] = module.collapse()
        plain.weight.requires_grad_(any(parameter.requires_grad for parameter in module.parameters()))
        if any(parameter.is_shared() for parameter in module.parameters() if parameter.device.type == "cpu"):
            plain.share_memory()
        held = (*module.parameters(), *module.buffers())  # a padding row that is kept too
        plain.weight = of_weight.setdefault(tuple(map(memory, held)), plain.weight)
    for module in found:
        become(module, made[module])
    for module, names in found.items():
        n, d = module.weight.shape
        report(f"{names[0]}: {n:,} x {d}")
    return model


def check_patterns(tables: Mapping[Any, Sequence[str]], key: str, patterns: Iterable[str]) -> None:
    """Raise ValueError at the first pattern that matches no table."""
    for pattern in patterns:
        if not any(fnmatch.filter(names, pattern) for names in tables.values()):
            every = ", ".join(names[0] for names in tables.values())
            raise ValueError(f"{key} = {pattern!r}: matches no table; expected a pattern of {every}")


def matching(names: Iterable[str], patterns: Iterable[str]) -> str | None:
    """The first of the patterns that matches one of a table's names."""
    return next((pattern for pattern in patterns if fnmatch.filter(names, pattern)), None)


def _is_ours(table: nn.Module) -> bool:
    return type(table).__module__.startswith("dlrm_mlet.") or isinstance(table, TRAINED)


def _dim(dims: Mapping[str, InnerDim], names: Sequence[str]) -> InnerDim:
    pattern = matching(names, dims)
    assert pattern is not None
    return dims[pattern]


def _left(
    model: nn.Module,
    tables: Mapping[Any, Sequence[str]],
    dims: Mapping[str, InnerDim],
    min_rows: int,
    patterns: Sequence[str],
) -> dict[Any, str | None]:
    """For each table why it can't or shouldn't be converted; None where it should."""
    sharing, collections = Sharing(model), _in_collections(model)
    left = {}
    for table, names in tables.items():
        why = obstacle(table, (nn.Embedding, nn.EmbeddingBag), {"weight"})
        why = why or _why_left(table, names, dims, min_rows, patterns)
        elsewhere = [] if why else sharing.elsewhere(table, table.weight, tables)
        if not why and table in collections:
            why = f"it is in {collections[table]}, which would shard W1 and drop W2"
        left[table] = why or (f"its weight is also that of {', '.join(elsewhere)}" if elsewhere else None)
    stays = {memory(table.weight): tables[table][0] for table, why in left.items() if why and hasattr(table, "weight")}
    for table, why in left.items():
        if not why and memory(table.weight) in stays:
            left[table] = f"it is tied to {stays[memory(table.weight)]}, which is left"
    return left


def _leave_paddings_apart(tables: Mapping[Any, Sequence[str]], left: dict[Any, str | None]) -> None:
    """Leave tied tables of which one keeps a padding row that isn't 0 and another one trains it."""
    tied: dict[Any, list[Any]] = {}
    for table in tables:
        if not left[table]:
            tied.setdefault(memory(table.weight), []).append(table)
    for group in tied.values():
        padded = next((t for t in group if t.padding_idx is not None and _has_padding(t)), None)
        if padded is not None and any(table.padding_idx != padded.padding_idx for table in group):
            why = f"the padding row of {tables[padded][0]} isn't 0, and others that are tied to it train that row"
            left.update(dict.fromkeys(group, why))


def _has_padding(table: Any) -> bool:
    return not table.weight.is_meta and bool(table.weight[table.padding_idx].any())


def _why_left(
    table: Any, names: Sequence[str], dims: Mapping[str, InnerDim], min_rows: int, patterns: Sequence[str]
) -> str | None:
    """What of a table itself, or of what was asked for, leaves it as it is."""
    if matching(names, patterns) is None or matching(names, dims) is None:
        return f"no pattern of {', '.join(patterns if matching(names, patterns) is None else dims)} matches"
    inner_dim = _dim(dims, names)
    shape = (table.num_embeddings, table.embedding_dim)
    narrow = min(inner_dim if isinstance(inner_dim, Sequence) else [inner_dim], default=0) < table.embedding_dim
    reasons = {
        f"fewer than {min_rows:,} rows": table.num_embeddings < min_rows,
        f"inner_dim = {inner_dim}: expected at least embedding_dim = {table.embedding_dim}": narrow,
        f"its weight is {tuple(table.weight.shape)}, and it says {shape}": tuple(table.weight.shape) != shape,
        "it is frozen": not table.weight.requires_grad,
        f"its numbers are {table.weight.dtype}": table.weight.dtype not in NUMBERS,
        "max_norm doesn't commute with a linear map": table.max_norm is not None,
        "scale_grad_by_freq doesn't reach W2": table.scale_grad_by_freq,
        "a bag's maximum doesn't commute with a linear map": getattr(table, "mode", "") == "max",
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _in_collections(model: nn.Module) -> dict[nn.Module, str]:
    """TorchRec's tables, each with the class that holds it: sharding takes their `weight` alone."""
    return {
        table: type(module).__name__
        for module in model.modules()
        if any(kind.__module__.startswith("torchrec.") for kind in type(module).__mro__)
        for table in module.modules()
    }


def _made(
    tables: Mapping[Any, Sequence[str]],
    chosen: Sequence[Any],
    dims: Mapping[str, InnerDim],
    from_pretrained: bool,
) -> dict[Any, MLETEmbedding | MLETEmbeddingBag]:
    """What the chosen tables become; those that are tied share their parameters."""
    of_weight: dict[Any, MLETEmbedding | MLETEmbeddingBag] = {}
    made: dict[Any, MLETEmbedding | MLETEmbeddingBag] = {}
    for table in chosen:
        try:
            layer = made[table] = _layer(table, _dim(dims, tables[table]))
            if (first := of_weight.setdefault(memory(table.weight), layer)) is not layer:
                layer.inner_weight, layer.projections = first.inner_weight, first.projections
                layer.padding, layer._start = first.padding, first._start
            elif from_pretrained:
                layer.start_at(table.weight.detach())
        except ValueError as error:
            raise ValueError(f"{tables[table][0]}: {error}") from None
    return made


def _layer(table: Table, inner_dim: InnerDim) -> MLETEmbedding | MLETEmbeddingBag:
    """A new layer with a table's arguments."""
    arguments: dict[str, Any] = {
        "padding_idx": table.padding_idx,
        "norm_type": table.norm_type,
        "sparse": table.sparse,
        "device": table.weight.device,
        "dtype": table.weight.dtype,
        "inner_dim": inner_dim,
    }
    if isinstance(table, nn.EmbeddingBag):
        arguments |= {"mode": table.mode, "include_last_offset": table.include_last_offset}
    kind = MLETEmbeddingBag if isinstance(table, nn.EmbeddingBag) else MLETEmbedding
    made = kind(table.num_embeddings, table.embedding_dim, **arguments).train(table.training)
    shared = table.weight.device.type == "cpu" and table.weight.is_shared()
    return made.share_memory() if shared else made


def _why_not_collapsed(module: nn.Module) -> str | None:
    stacked = isinstance(module, MLETTables)
    own, parts = ({"weight"}, ["offsets"]) if stacked else ({"inner_weight"}, ["padding"])
    if why := obstacle(module, TRAINED, own, [*parts, "projections"]):
        return why
    if type(module.projections) is not nn.ParameterList:
        return "its projections are parametrized"
    return None


def _warn_of_holders(before: Iterable[weakref.ref[Tensor]]) -> None:
    """Whoever has a table's old weight, an optimizer or a list of what is penalized, no longer reaches the table."""
    if all(weight() is None for weight in before):
        return
    gc.collect()
    alive = [weight for weight in (reference() for reference in before) if weight is not None]
    found = [holder for holder in gc.get_referrers(*alive) if holder is not alive]
    # to name one is a look at all that is alive
    holders = {name for holder in found[:4] if (name := _described(holder))}
    if holders and len(found) > 4:
        holders.add("others")
    if holders:
        warnings.warn(
            f"the old weights of {len(alive)} tables are still in {', '.join(sorted(holders))}, and no longer the "
            "tables'; make what holds them again, an optimizer or a list of weights to penalize, after convert",
            stacklevel=3,
        )


def _described(holder: object, depth: int = 3) -> str | None:
    """What it is that holds a weight: by the name that leads to it, where one does; None where it is of no account."""
    # frames come and go, and what an exporter keeps is a copy of a moment
    if isinstance(holder, dict) and "__name__" in holder and "__builtins__" in holder:
        return None  # a variable of a script
    if isinstance(holder, types.FrameType) or type(holder).__module__.startswith(("torch.onnx.", "onnx_ir.")):
        return None
    if isinstance(holder, dict | list | tuple | set):
        above = gc.get_referrers(holder)
        for one in above:
            if isinstance(one, dict) and one is not globals():
                if one.get("params") is holder:
                    return "an optimizer's parameter groups"
                if name := next((key for key, value in one.items() if value is holder and isinstance(key, str)), None):
                    return f"{name!r}"
        for one in above if depth else ():
            if type(one) in (list, tuple) and (name := _described(one, depth - 1)) and name.startswith("'"):
                return name
    return f"a {type(holder).__name__}"


def _warn_of_stale(found: Mapping[Any, Sequence[str]]) -> None:
    """Tables whose training went wrong unseen."""
    drop_ins = {m: names[0] for m, names in found.items() if isinstance(m, MLETEmbedding | MLETEmbeddingBag)}
    still = [name for m, name in drop_ins.items() if m.projections[0].requires_grad and not m.projected()]
    if still:
        warnings.warn(
            f"W2 of {', '.join(still)} is what it was at the start: it was never trained; expected an optimizer that "
            "was made after convert, and rows of these tables among those trained on",
            stacklevel=3,
        )
