"""A tensor that is computed at each reading -> one that reads as ever, and refuses what would be written into it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

READ = {"__index__", "__int__", "__invert__"}
LOST = {"__setitem__", "__set__", "__dlpack__", "register_hook", "register_post_accumulate_grad_hook"}
SAME_MEMORY = {Tensor.data.__get__, Tensor.detach, torch.detach}  # type: ignore[attr-defined]  # properties of C
TARGETS = ("tensor", "input", "self")
"""Keywords by which a function is given what it writes into."""


class Guarded(Tensor):
    """A value of which nobody keeps the memory, so that a write into it would have no effect, and no error."""

    why: str

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else next((kwargs[name] for name in TARGETS if name in kwargs), None)
        written = [first] if _writes(function.__name__) or kwargs.get("inplace") else [kwargs.get("out")]
        for lost in pytree.tree_leaves(written):
            if isinstance(lost, Guarded):
                # no TypeError: torch takes one of `+=` for "try it the other way round"
                raise RuntimeError(f"{function.__name__}: this table's weight {lost.why}")
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
            if not isinstance(first, Guarded):
                return result
            if isinstance(result, np.ndarray):
                result.flags.writeable = False
            if type(result) in (tuple, list):  # as of unbind
                return type(result)(_kept(part, first, function) for part in result)
            return _kept(result, first, function)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return _plain(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).__reduce_ex__(protocol)


def _plain(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().clone().as_subclass(Tensor)


def guarded(tensor: Tensor, why: str) -> Tensor:
    """The tensor, of which any write raises RuntimeError with `why`; what is computed of it is an ordinary tensor.

    While torch compiles or exports it stays as it is.
    """
    return tensor if torch.compiler.is_compiling() else _guard(tensor, why)


def _guard(tensor: Tensor, why: str) -> Tensor:
    found = tensor.as_subclass(Guarded)
    found.why = why
    return found


def _writes(name: str) -> bool:
    in_place = name.startswith("__i") and name.endswith("__") and name not in READ
    return in_place or name in LOST or (name.endswith("_") and not name.endswith("__"))


def _kept(result: Any, target: Guarded, function: Any) -> Any:
    """What shares the memory of a guarded tensor is guarded too."""
    if not isinstance(result, Tensor) or isinstance(result, Guarded):
        return result
    base = target if target._base is None else target._base
    return _guard(result, target.why) if function in SAME_MEMORY or result._base is base else result
