"""A call of any model as a function of tensors alone, as an ONNX file has it."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dlrm_mlet.serving.session import ExportError, Session
from dlrm_mlet.tables.quantize import Rows

BATCH = "batch"


class Call(nn.Module):
    """A model as a function of tensors alone: its other arguments stay what they are in the example."""

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        keywords: Mapping[str, Any],
        names: Sequence[str] | None,
        dynamic: Mapping[str, Mapping[int, str]],
    ):
        super().__init__()
        # ONNX Runtime computes nothing in bfloat16 on a CPU; float32 has all its numbers
        self.model = copy.deepcopy(model).float() if _in_bfloat16(model) else model
        self.leaves, self.spec = pytree.tree_flatten((inputs, dict(keywords)))
        found = names_of(inputs, keywords)
        self.names = list(names or found)
        # copies: the exporter takes the same tensor twice for one input
        self.tensors = [leaf.detach().clone() for leaf in self.leaves if isinstance(leaf, Tensor)]
        for leaf in self.leaves:
            if not isinstance(leaf, Tensor | bool | int | float | str | None):
                raise ExportError(
                    f"an input is a {type(leaf).__name__}; expected tensors, lists, dictionaries or numbers"
                )
        if len(self.names) != len(found) or len(set(self.names)) != len(found):
            raise ExportError(f"input_names = {self.names}: expected {len(found)} names, as {', '.join(found)}")
        if unknown := [name for name in dynamic if name not in self.names]:
            raise ExportError(f"dynamic: no input {unknown[0]}; expected one of {', '.join(self.names)}")
        for name, dims in dynamic.items():
            right = isinstance(dims, Mapping) and all(isinstance(place, int) for place in dims)
            if not right or not all(isinstance(dim, str) and dim.isidentifier() for dim in dims.values()):
                raise ExportError(f"dynamic: {name} = {dims!r}; expected as {{0: 'batch', 1: 'length'}}")
        default = {name: {0: BATCH} if tensor.dim() else {} for name, tensor in self.named()}
        self.dims: dict[str, Mapping[int, str]] = default | dict(dynamic)
        self.rows = self._rows()

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Each input with its name."""
        return zip(self.names, self.tensors, strict=True)

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors of the call in their order -> those of its result."""
        inputs, keywords = self.nested(tensors)
        return outputs_of(self.model(*inputs, **keywords))

    def nested(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Tensors in their order -> the arguments of a call of the model."""
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.spec)

    def _rows(self) -> dict[str, int]:
        """How many there are in the example of each dimension of any size."""
        sizes: dict[str, int] = {}
        for name, tensor in self.named():
            for place, dim in self.dims[name].items():
                if not -tensor.dim() <= place < tensor.dim():
                    raise ExportError(f"dynamic: input {name} has no dimension {place}; its shape is {[*tensor.shape]}")
                size = tensor.shape[place]
                if sizes.setdefault(dim, size) != size:
                    raise ExportError(
                        f"input {name} has {size} in dimension {place}, others {sizes[dim]} of {dim}; expected "
                        f"dynamic={{'{name}': {{}}}} for what is no {dim}"
                    )
                if size < 2:
                    raise ExportError(f"input {name} has {size} of {dim}; expected an example of at least 2")
        return sizes

    def sizes(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The example with more and with less of each dimension of any size, and with as much of all."""
        for dim, size in self.rows.items():
            for some in dict.fromkeys((2 * size + 1, size - 1, size // 2, 3, 2, 1)):
                yield self._sized({dim: some})
        if len(self.rows) > 1:
            yield self._sized(dict.fromkeys(self.rows, 3))

    def _sized(self, sizes: Mapping[str, int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found = []
        for name, tensor in self.named():
            for place, dim in self.dims[name].items():
                if dim in sizes:  # its own rows again where there aren't enough
                    rows = torch.arange(sizes[dim], device=tensor.device) % tensor.shape[place]
                    tensor = tensor.index_select(place, rows)  # noqa: PLW2901
            found.append(tensor)
        return self.nested(found)

    def refuse_fixed(self, session: Session) -> None:
        """Raise ExportError where a dimension that was to be of any size isn't."""
        shapes = {node.name: node.shape for node in session.get_inputs()}
        for name, tensor in self.named():
            for place, dim in self.dims[name].items():
                size = shapes[name][place % tensor.dim()] if name in shapes else dim
                if not isinstance(size, str):
                    raise ExportError(f"the model takes a {dim} of {size} alone; expected any number")


def called(model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """What the model gives for copies, so that what it writes into them is nobody's."""
    inputs, keywords = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (inputs, dict(keywords))
    )
    with torch.no_grad(), slow_paths():
        return model(*inputs, **keywords)


def outputs_of(result: Any) -> list[Tensor]:
    """The tensors of a result. Raises ExportError where it has something else that would be lost, or none."""
    leaves = pytree.tree_leaves(result)
    if others := [leaf for leaf in leaves if not isinstance(leaf, Tensor | bool | int | float | str | None)]:
        kind = type(others[0]).__name__
        raise ExportError(f"an output is a {kind}; expected tensors, and lists and dictionaries of them")
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not found:
        raise ExportError("the model gives no tensor; expected at least one output")
    return found


def names_of(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[str]:
    """The key of each tensor, where it is in a dictionary or a keyword, else its place; each once."""
    found: list[str] = []
    for place, leaf in pytree.tree_flatten_with_path((inputs, dict(keywords)))[0]:
        if isinstance(leaf, Tensor):
            key = getattr(place[-1], "key", None)
            name = key if isinstance(key, str) else f"input_{len(found)}"
            again = (f"{name}_{i}" for i in range(2, len(found) + 3))
            found.append(next(other for other in (name, *again) if other not in found))
    return found


def tensors_of(nested: Any) -> list[Tensor]:
    """All tensors of nested arguments, in their order."""
    return [leaf for leaf in pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


def written(tensor: Tensor) -> Tensor:
    """A tensor in the type that it has in the file."""
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _in_bfloat16(model: nn.Module) -> bool:
    kinds = [tensor.dtype for tensor in model.parameters()]
    kinds += [module.dtype for module in model.modules() if isinstance(module, Rows)]
    return torch.bfloat16 in kinds


@contextlib.contextmanager
def slow_paths() -> Iterator[None]:
    """Without what torch does in attention where no gradient is asked for, which gives padding other vectors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
