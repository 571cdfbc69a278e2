"""Any torch model -> the same model with its tables as MLET's, and back again collapsed."""

import copy
import fnmatch
import gc
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dlrm_mlet.tables.layers import MLETEmbedding, MLETEmbeddingBag, whole
from dlrm_mlet.tables.stacked import LowRankTables, MLETTables
from dlrm_mlet.tables.surgery import Sharing, become, holding, memory, named, obstacle, refuse_wrapped, torchrec

SHARDED = "torchrec.modules.", "torchrec.distributed."
"""Where the classes are whose tables TorchRec shards; its models are as anybody's."""
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

    TorchRec's EmbeddingBagCollection and EmbeddingCollection become MLET collections: shard the model afterwards.

    Make the optimizer afterwards: the parameters are new ones. A warning says where something still holds an old one.
    Raises ValueError, and changes nothing, where a pattern matches no table, where there is no table to convert, or
    where the model is wrapped already (DistributedDataParallel and its like).
    """
    refuse_wrapped(model, "convert first, and then the wrapper")
    dims = dict(inner_dim) if isinstance(inner_dim, Mapping) else {"*": inner_dim}
    for each in dims.values():
        whole(each)
    patterns = [only] if isinstance(only, str) else list(only)
    found = named(model, Table)
    ours = {table for each in named(model, trained()) for table in each.modules()}
    tables = {table: names for table, names in found.items() if table not in ours and not _is_ours(table)}
    if not tables:
        why = "all are converted or quantized already" if found else "it has no nn.Embedding and no nn.EmbeddingBag"
        if any(type(module).__module__.startswith("torchrec.distributed.") for module in model.modules()):
            why = "its tables are sharded already; expected convert first, and then DistributedModelParallel"
        raise ValueError(f"no table to convert in the model: {why}")
    check_patterns(tables, "only", patterns)
    check_patterns(tables, "inner_dim", dims)
    holders = _collections(model)
    left = _left(model, tables, dims, min_rows, patterns, holders)
    if from_pretrained:
        _leave_paddings_apart(tables, left)
    chosen = [table for table in tables if not left[table]]
    if not chosen:
        raise ValueError(f"no table to convert; {'; '.join(f'{tables[t][0]}: {why}' for t, why in left.items())}")
    made = _made(tables, [table for table in chosen if table not in holders], dims, from_pretrained)
    made |= _made_collections(tables, [table for table in chosen if table in holders], dims, holders, from_pretrained)
    before = [weakref.ref(table.weight) for table in chosen]
    for module, other in made.items():
        become(module, other)
    for table, names in tables.items():
        shape = f"{names[0]}: {table.num_embeddings:,} x {table.embedding_dim}"
        report(
            f"{shape} left: {left[table]}" if left[table] else f"{shape} now trained with inner_dim {_dim(dims, names)}"
        )
    _warn_of_holders(before, [table for table in chosen if table in holders])
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
    ours = torchrec()
    collections = named(model, ours.MLETCollection) if ours else {}
    found = named(model, TRAINED)
    if not found and not collections:
        raise ValueError("nothing to collapse: the model has no MLETEmbedding, MLETEmbeddingBag or MLETTables")
    for module, names in (found | collections).items():
        if why := _why_not_collapsed(module):
            raise ValueError(f"{names[0]}: {why}; expected what {type(module).__name__} is by itself")
    if inplace:
        _warn_of_stale(found)
    of_weight: dict[tuple[Any, ...], nn.Parameter] = {}
    made: dict[Any, Any] = {module: module.collapse() for module in collections}
    for module in found:
        plain = made[module] = module.collapse()
        plain.weight.requires_grad_(any(parameter.requires_grad for parameter in module.parameters()))
        if any(parameter.is_shared() for parameter in module.parameters() if parameter.device.type == "cpu"):
            plain.share_memory()
        held = (*module.parameters(), *module.buffers())  # a padding row that is kept too
        plain.weight = of_weight.setdefault(tuple(map(memory, held)), plain.weight)
    for module, plain in made.items():
        become(module, plain)
    for module, names in found.items():
        n, d = module.weight.shape
        report(f"{names[0]}: {n:,} x {d}")
    for collection, names in collections.items():
        for name, table in ours.tables_of(collection).items():
            report(f"{names[0]}.{name}: {table.num_embeddings:,} x {table.embedding_dim}")
    return model


def trained() -> tuple[type, ...]:
    """The classes of what is there to collapse; with TorchRec's collections, where it is loaded."""
    return TRAINED if (ours := torchrec()) is None else (*TRAINED, ours.MLETCollection)


def not_collapsed(model: nn.Module) -> str | None:
    """The name of a table that is still trained; low-rank factors are served as they are."""
    found = named(model, trained()).items()
    return next((names[0] for table, names in found if not isinstance(table, LowRankTables)), None)


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


def _dims(dims: Mapping[str, InnerDim], names: Sequence[str]) -> tuple[int, ...]:
    inner_dim = _dim(dims, names)
    return tuple(inner_dim) if isinstance(inner_dim, Sequence) else (inner_dim,)


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
    holders: Mapping[Any, "Holder"],
) -> dict[Any, str | None]:
    """For each table why it can't or shouldn't be converted; None where it should."""
    sharing = Sharing(model)
    left: dict[Any, str | None] = {}
    for table, names in tables.items():
        why = obstacle(table, (nn.Embedding, nn.EmbeddingBag), {"weight"})
        why = why or _why_left(table, names, dims, min_rows, patterns)
        elsewhere = [] if why else sharing.elsewhere(table, table.weight, tables)
        if not why and table in holders:
            why = holders[table].obstacle
        left[table] = why or (f"its weight is also that of {', '.join(elsewhere)}" if elsewhere else None)
    stays = {memory(table.weight): tables[table][0] for table, why in left.items() if why and hasattr(table, "weight")}
    for table, why in left.items():
        if not why and memory(table.weight) in stays:
            left[table] = f"it is tied to {stays[memory(table.weight)]}, which is left"
    _leave_collections(tables, left, dims, holders)
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


@dataclass(frozen=True)
class Holder:
    """One of TorchRec's collections, for each table in it."""

    collection: Any
    name: str
    """The table's in it."""
    obstacle: str | None
    """Why the collection can't be another one."""


def _collections(model: nn.Module) -> dict[Any, Holder]:
    """The tables that are in collections of TorchRec's: sharding takes their `weight` alone."""
    ours = torchrec()
    kinds = ours.COLLECTIONS if ours else ()
    names = named(model, nn.Module)
    found: dict[Any, Holder] = {}
    for module in model.modules():  # from outside in: what is around a collection decides
        if type(module) in kinds:
            why = obstacle(module, kinds, set(), module._modules)
            mine = {}
            for name, table in ours.tables_of(module).items():
                elsewhere = len(names[table]) > len(names[module])
                its = f"it is {' and '.join(names[table])}, not in its collection alone" if elsewhere else None
                mine[table] = Holder(module, name, why or its)
        elif not isinstance(module, trained()) and any(
            kind.__module__.startswith(SHARDED) for kind in type(module).__mro__
        ):
            why = f"it is in {type(module).__name__}, which would shard W1 and drop W2"
            mine = {table: Holder(module, "", why) for table in module.modules() if isinstance(table, Table)}
        else:
            continue
        found = mine | found
    return found


def _leave_collections(
    tables: Mapping[Any, Sequence[str]],
    left: dict[Any, str | None],
    dims: Mapping[str, InnerDim],
    holders: Mapping[Any, Holder],
) -> None:
    """Leave what a collection can't hold: tied tables, and in one of single vectors tables of several widths."""
    weights = Counter(memory(table.weight) for table in tables)
    for table, holder in holders.items():
        if table in left and not left[table] and not table.weight.is_meta and weights[memory(table.weight)] > 1:
            left[table] = f"it is tied to another table, which {type(holder.collection).__name__} can't have"
    for collection in {holder.collection for holder in holders.values() if not holder.obstacle}:
        mine = [table for table, holder in holders.items() if holder.collection is collection and table in left]
        widths = {None if left[table] else _dims(dims, tables[table])[0] for table in mine}
        if len(widths) > 1 and hasattr(collection, "embeddings"):
            why = "an EmbeddingCollection's tables have one width, and another one is left or has another inner_dim"
            left.update((table, why) for table in mine if not left[table])


def _made_collections(
    tables: Mapping[Any, Sequence[str]],
    chosen: Sequence[Any],
    dims: Mapping[str, InnerDim],
    holders: Mapping[Any, Holder],
    from_pretrained: bool,
) -> dict[Any, Any]:
    """What the collections of the chosen tables become."""
    made = {}
    for collection in dict.fromkeys(holders[table].collection for table in chosen):
        mine = [table for table in chosen if holders[table].collection is collection]
        made[collection] = torchrec().mlet_collection(
            collection, {holders[table].name: _dims(dims, tables[table]) for table in mine}
        )
        if from_pretrained:
            made[collection].start_at(collection)
    return made


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
    if (ours := torchrec()) and isinstance(module, ours.MLETCollection):
        return module.why_not_collapsed() or obstacle(module, ours.MLET, set(), ("collection", "projections"))
    stacked = isinstance(module, MLETTables)
    own, parts = ({"weight"}, ["offsets"]) if stacked else ({"inner_weight"}, ["padding"])
    if why := obstacle(module, TRAINED, own, [*parts, "projections"]):
        return why
    if type(module.projections) is not nn.ParameterList:
        return "its projections are parametrized"
    return None


def _warn_of_holders(before: Iterable[weakref.ref[Tensor]], gone: Iterable[nn.Module]) -> None:
    """Whoever has a table's old weight, an optimizer or a list of what is penalized, no longer reaches the table.

    But for the tables themselves of a collection that has become another one.
    """
    own = [table._parameters for table in gone]
    if all(weight() is None for weight in before):
        return
    gc.collect()
    alive = [weight for weight in (reference() for reference in before) if weight is not None]
    found = [
        holder for holder in gc.get_referrers(*alive)
        if holder is not alive and not any(holder is each for each in own)
    ]  # fmt: skip
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
