"""A model -> its tables, whether they may be changed, and changing them where they are.

A table is changed in place, its class and its insides, and never replaced: whoever holds it, a list, a feature's own
object, a bound method, goes on with the changed one.
"""

import gc
import importlib
import sys
from collections.abc import Callable, Collection, Container, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

TAKEN = {"weight", "inner_weight", "projections", "padding", "rows"}
"""Names that a changed table has for itself."""
WRAPPERS = {
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "FSDPModule",
    "DistributedModelParallel",
    "DeepSpeedEngine",
}
"""Classes, by their names, that keep the parameters of the model inside them in ways of their own."""


def become(module: nn.Module, other: nn.Module) -> None:
    """Make `module` what `other` is, wherever it is held; it keeps its hooks, and what others have set on it."""
    replaced = getattr(type(module), "OWN", ())
    mine = {name: value for name, value in vars(module).items() if name not in replaced}
    hooks = {name: value for name, value in mine.items() if "hook" in name}
    module.__dict__ = mine | vars(other) | hooks
    module.__class__ = type(other)


def named(model: nn.Module, kinds: Any) -> dict[Any, list[str]]:
    """The modules of these classes, derived ones too, each with all the names that it has in the model."""
    found: dict[Any, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kinds):
            found.setdefault(module, []).append(name or type(module).__name__)
    return found


def torchrec() -> Any:
    """The module dlrm_mlet.tables.collections; None where TorchRec isn't loaded, so that no model can have its own."""
    loaded = "torchrec.modules.embedding_modules" in sys.modules
    return importlib.import_module("dlrm_mlet.tables.collections") if loaded else None


def memory(tensor: Tensor) -> tuple[Any, ...]:
    """Equal where two tensors are the same numbers in the same memory, though they may be two parameters."""
    if tensor.layout != torch.strided:
        return (id(tensor),)
    return *_range(tensor), tensor.shape, tensor.stride()


class Sharing:
    """Who else has memory of a table's weight: another layer, another table, or a view that a module keeps."""

    def __init__(self, model: nn.Module):
        self._users: dict[int, list[tuple[str, nn.Module, Tensor]]] = {}
        for name, module in model.named_modules():
            for tensor in _tensors_of(module):
                self._users.setdefault(_storage(tensor), []).append((name or "the model", module, tensor))

    def elsewhere(self, table: nn.Module, weight: Tensor, tables: Container[nn.Module]) -> list[str]:
        """The modules that have some of it, but for those of `tables` that are tied: it is all of their weight."""
        mine, (begin, end) = memory(weight), _range(weight)
        found = set()
        for name, module, tensor in self._users.get(_storage(weight), []):
            own = module is table and tensor is weight
            tied = module in tables and memory(tensor) == mine and module is not table
            first, last = _range(tensor)
            if not own and not tied and first < end and begin < last:
                found.add(name)
        return sorted(found)


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes, one by one or in a list or dictionary."""
    yield from (t for t in (*module._parameters.values(), *module._buffers.values()) if _has_memory(t))
    for name, value in vars(module).items():
        if not name.startswith("_"):
            held = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
            # parameters are named when the old ones are still held, which tells a stale list from a tie
            yield from (t for t in held if _has_memory(t) and not isinstance(t, nn.Parameter))


def _has_memory(tensor: Any) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and not nn.parameter.is_lazy(tensor)


def _storage(tensor: Tensor) -> int:
    """The address of its storage, or the storage itself where it has none."""
    if tensor.layout != torch.strided:
        return id(tensor)
    storage = tensor.untyped_storage()
    try:
        return storage.data_ptr() or storage._cdata
    except RuntimeError:  # of tensors that only stand for others
        return storage._cdata


def _range(tensor: Tensor) -> tuple[int, int]:
    """The bytes that it spans, from its storage's address on."""
    if tensor.layout != torch.strided:
        return id(tensor), id(tensor) + 1
    begin = _storage(tensor) + tensor.storage_offset() * tensor.element_size()
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(begin), int(begin + (reach + 1) * tensor.element_size())


def obstacle(
    module: nn.Module, kinds: tuple[type, ...], parameters: set[str], parts: Collection[str] = ()
) -> str | None:
    """Why a table isn't just what its class says, so that changing it would lose something; None where it is.

    `parameters` are those that its class has, `parts` its buffers and modules.
    """
    called = type(module).__name__
    tensors = [tensor for tensor in module.parameters() if tensor is not None]
    if "parametrizations" in module._modules:
        return f"its {', '.join(module.parametrizations)} is parametrized"  # type: ignore[arg-type]
    if type(module) not in kinds:
        return f"{called} is a class of its own"
    if "forward" in vars(module) or "__call__" in vars(module):
        return "its forward is another one than its class has"
    if set(module._parameters) != parameters:
        return f"its parameters are {', '.join(sorted(module._parameters))}, not {', '.join(sorted(parameters))}"
    if others := sorted({*module._buffers, *module._modules} - set(parts)):
        return f"it has {', '.join(others)} of its own"
    if taken := sorted(TAKEN & set(vars(module))):
        return f"it has an attribute {taken[0]}, whose name is needed"
    if any(_is_distributed(tensor) for tensor in tensors):
        return "its weight is a DTensor"
    if any(tensor._backward_hooks or tensor._post_accumulate_grad_hooks for tensor in tensors):
        return "its weight has hooks"
    if any(hooks for name, hooks in vars(module).items() if "state_dict" in name and "hooks" in name):
        return "it has state_dict hooks"
    return None


def _is_distributed(tensor: Tensor) -> bool:
    return any(kind.__name__ == "DTensor" for kind in (*type(tensor).__mro__, *type(tensor.data).__mro__))


def refuse_wrapped(model: nn.Module, expected: str, around: bool = True) -> None:
    """Raise ValueError where something keeps the model's parameters in ways of its own, within it or around it."""
    outside = _around(model) if around else ()
    wrapped = next((module for module in (*model.modules(), *outside) if _wraps(type(module))), None)
    if wrapped is not None:
        name = type(wrapped).__name__
        raise ValueError(f"the model is in {name}, which keeps the parameters that it had; expected {expected}")


def _wraps(kind: type) -> bool:
    return any(base.__name__ in WRAPPERS for base in kind.__mro__)


def _around(model: nn.Module) -> Iterator[nn.Module]:
    """In a process of several the wrappers around it, which it doesn't know."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        yield from holding(model, _wraps)


def holding(model: nn.Module, kind: Callable[[type], bool]) -> Iterator[nn.Module]:
    """The modules of some classes that are alive and have the model among their own: a look at all that is alive."""
    for other in gc.get_objects():
        if issubclass(type(other), nn.Module) and kind(type(other)) and any(part is model for part in other.modules()):
            yield other
