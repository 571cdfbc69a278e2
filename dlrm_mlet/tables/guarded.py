"""A tensor that is computed at each reading -> one that reads as ever, and refuses what would be written into it."""

from typing import Any

import torch
from torch import Tensor

READ = {"__index__", "__int__", "__invert__"}
LOST = {"__setitem__", "__set__", "register_hook", "register_post_accumulate_grad_hook"}
SAME_MEMORY = {Tensor.data.__get__, Tensor.detach, torch.detach}  # type: ignore[attr-defined]  # properties of C


class _Guarded(Tensor):
    """A value of which nobody keeps the memory, so that a write into it would have no effect, and no error."""

    why: str

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args and isinstance(args[0], _Guarded) else None
        writes = _writes(function.__name__) or kwargs.get("inplace")
        lost = target if writes else kwargs.get("out")
        if isinstance(lost, _Guarded):
            # no TypeError: torch takes one of `+=` for "try it the other way round"
            raise RuntimeError(f"{function.__name__}: this table's weight {lost.why}")
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
            if target is None:
                return result
            if type(result) in (tuple, list):  # as of unbind
                return type(result)(_kept(part, target, function) for part in result)
            return _kept(result, target, function)


def guarded(tensor: Tensor, why: str) -> Tensor:
    """The tensor, of which any write raises RuntimeError with `why`; what is computed of it is an ordinary tensor.

    While torch compiles or exports it stays as it is.
    """
    return tensor if torch.compiler.is_compiling() else _guard(tensor, why)


def _guard(tensor: Tensor, why: str) -> Tensor:
    found = tensor.as_subclass(_Guarded)
    found.why = why
    return found


def _writes(name: str) -> bool:
    in_place = name.startswith("__i") and name.endswith("__") and name not in READ
    return in_place or name in LOST or (name.endswith("_") and not name.endswith("__"))


def _kept(result: Any, target: _Guarded, function: Any) -> Any:
    """What shares the memory of a guarded tensor is guarded too."""
    if not isinstance(result, Tensor) or isinstance(result, _Guarded):
        return result
    base = target if target._base is None else target._base
    return _guard(result, target.why) if function in SAME_MEMORY or result._base is base else result
