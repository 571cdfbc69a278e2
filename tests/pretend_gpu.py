"""A device for tests where there is no GPU: it computes on the CPU, and refuses what a GPU would refuse.

Its tensors can't be mixed with the CPU's, and what would make the CPU wait for a GPU is counted.
"""

from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils import _python_dispatch, _pytree, backend_registration

NAME = "pretend"
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_coalesce"}
"""Operators whose result's value or size the CPU has to know."""


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


if not torch.cuda.is_available():  # torch knows one kind of accelerator at a time
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
INSTEAD = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
"""For tests that are of no use where there is a GPU."""


class _OnDevice(Tensor):
    """A tensor that says it is on the device; `memory` is the one on the CPU that it stands for."""

    memory: Tensor

    def __new__(cls, memory: Tensor) -> Self:
        strided = memory.layout == torch.strided
        strides = {"strides": memory.stride(), "storage_offset": memory.storage_offset()} if strided else {}
        tensor = Tensor._make_wrapper_subclass(
            cls, memory.size(), dtype=memory.dtype, layout=memory.layout, device=torch.device(NAME, 0), **strides
        )
        tensor.memory = memory
        return tensor

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function == Tensor.data.__set__:
            args[0].memory = args[1].memory
        with torch._C.DisableTorchFunctionSubclass():
            return args[0].cpu().tolist() if function == Tensor.tolist else function(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{operator} on {NAME} outside of `with PretendGPU()`")


class PretendGPU(_python_dispatch.TorchDispatchMode):
    """While it lasts, tensors can be on the device `NAME`."""

    waits = 0
    """How often the CPU would have had to wait for a GPU."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        name = operator._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        from_device = any(isinstance(tensor, _OnDevice) for tensor in tensors)
        to_device = from_device
        if name == "copy_":
            to_device = isinstance(args[0], _OnDevice)
        elif kwargs.get("device") is not None:
            to_device = torch.device(kwargs["device"]).type == NAME
            kwargs = {**kwargs, "device": torch.device("cpu")}
        # a tensor of one number may come from the CPU
        elif from_device and any(tensor.dim() for tensor in tensors if not isinstance(tensor, _OnDevice)):
            raise RuntimeError(f"{name}: expected all tensors to be on one device, found some on the CPU")
        masks = name == "index" and any(tensor.dtype == torch.bool for tensor in tensors[1:])
        copied = to_device and name in ("_to_copy", "copy_") and not all(isinstance(t, _OnDevice) for t in tensors)
        self.waits += copied or (from_device and (name in WAITING or masks or not to_device))
        in_memory = _pytree.tree_map_only(_OnDevice, lambda tensor: tensor.memory, (args, kwargs))
        result = operator(*in_memory[0], **in_memory[1])
        if operator._schema.is_mutable:  # what was changed is what was given
            return kwargs.get("out", args[0] if operator._schema.returns else None)
        return _pytree.tree_map_only(Tensor, _OnDevice, result) if to_device else result
