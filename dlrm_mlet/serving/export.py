"""Any collapsed model -> an ONNX file, proved equal to it in ONNX Runtime."""

import contextlib
import copy
import io
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.utils import _pytree as pytree

from dlrm_mlet.extras import needs
from dlrm_mlet.serving.lookups import Lookups
from dlrm_mlet.serving.session import IDS, ExportError, Session, start_session
from dlrm_mlet.tables.convert import trained
from dlrm_mlet.tables.quantize import Rows
from dlrm_mlet.tables.surgery import named

with needs("serving"):
    import onnx

OPSET = 20
TOLERANCE = 1e-5
"""How far an output may be from torch's, as a share of what is above 1; in half precision 4 units in the last place."""
LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights from which on they lie in a file beside the model, since a protobuf message ends at 2 GiB."""
BATCH = "batch"


def export(
    model: nn.Module,
    inputs: tuple[Any, ...],
    path: str | Path,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    keywords: Mapping[str, Any] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Path:
    """Write a model as ONNX (opset 20), every input's first dimension being a batch of any size.

    `inputs` and `keywords` are the arguments of a call, of at least two rows: tensors, or dictionaries and lists of
    them, whose tensors become the file's inputs in their order, under `input_names`, or else their dictionary's keys
    and keywords (a key that comes again gets a number). None, numbers and text among them are kept as they are. The
    outputs are the tensors of what the model returns, without None and numbers. `dynamic` says for an input, by its
    name, which dimensions are of any size: {"history": {0: "batch", 1: "length"}}, or {"items": {}} for one that is no
    batch. What is written is the model's evaluation mode, and the model stays in its own; one in bfloat16 is written in
    float32. Weights of over 2 GiB lie beside the file, in <path>.data. An id outside of its table is an error there, as
    it is in torch.

    The file appears when ONNX Runtime has given the model's outputs on `inputs`, and on more and less of each dimension
    of any size, one included, where the model itself has an answer. Raises ExportError where it didn't, where torch
    can't export the model so, or where MLET's tables aren't collapsed.
    """
    path = Path(path)
    if path.suffix != ".onnx" or path.is_dir():
        raise ExportError(f"{path}: expected the name of a file that ends in .onnx")
    if not isinstance(inputs, tuple | list):
        raise ExportError(f"inputs = a {type(inputs).__name__}: expected a tuple of a call's arguments")
    if any(not isinstance(text, str) for pair in (metadata or {}).items() for text in pair):
        raise ExportError("metadata: expected texts")
    inner = model._orig_mod if isinstance(model, OptimizedModule) else model  # torch.compile's are around the model
    if inner is not model and any(hooks for name, hooks in vars(model).items() if "hooks" in name):
        raise ExportError("the compiled model has hooks, which would be lost; expected them on the model inside")
    for names in named(model, trained()).values():
        raise ExportError(f"{names[0]}: isn't collapsed; expected dlrm_mlet.collapse(model) first")
    with _evaluating(model):
        call = _Call(inner, tuple(inputs), keywords or {}, input_names, dynamic or {})
        _write(call, model, (tuple(inputs), keywords or {}), path, output_names, metadata or {})
    return path


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A model in its evaluation mode, and each of its modules afterwards in the one that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _write(
    call: "_Call",
    model: nn.Module,
    example: tuple[tuple[Any, ...], Mapping[str, Any]],
    path: Path,
    output_names: Sequence[str] | None,
    metadata: Mapping[str, str],
) -> None:
    """The model's file, once ONNX Runtime gives its outputs on the example and at other sizes."""
    count = len(_outputs(_called(model, *example)))
    if output_names is not None and (isinstance(output_names, str) or len(set(output_names)) != count):
        raise ExportError(f"output_names = {output_names!r}: expected {count} names")
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    beside = weights > LARGEST_FILE
    mine = _is_of(weights_file(path), path)
    if beside and weights_file(path).exists() and not mine:
        raise ExportError(
            f"{weights_file(path)}: isn't of {path.name}; expected another name, or none of this one there"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.partial", dir=path.parent) as directory:
        partial = Path(directory) / path.name  # the same name, since the model names the file of its weights
        with _slow_paths():
            program = _program(call, output_names)
            _refuse_limits(program)
        program.model.metadata_props.update({IDS: "an id outside of its table is an error"} | dict(metadata))
        program.save(partial, external_data=beside)
        try:
            session = start_session(partial)
        except Exception as error:  # its exceptions have no common base but this
            raise ExportError(f"ONNX Runtime can't run what torch wrote of the model: {_line(error)}") from error
        call.refuse_fixed(session)
        check(session, model, *example)
        for some in call.sizes():  # a model may treat some in another way
            if _takes(model, *some):
                check(session, model, *some)
        if mine:
            weights_file(path).unlink()  # of an earlier export
        for file in sorted(partial.parent.iterdir(), reverse=True):  # the weights before the model
            os.replace(file, path.parent / file.name)


class _Call(nn.Module):
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
        found = _names(inputs, keywords)
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
        return _outputs(self.model(*inputs, **keywords))

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


def _program(call: _Call, output_names: Sequence[str] | None) -> torch.onnx.ONNXProgram:
    with needs("serving"):
        import onnxscript  # noqa: F401, PLC0415  which torch's exporter needs, and loading an .onnx file doesn't
    dims = {name: torch.export.Dim(name) for name in call.rows}
    shapes = tuple({place: dims[dim] for place, dim in call.dims[name].items()} for name in call.names)
    try:
        with _quiet(), Lookups():
            program = torch.onnx.export(
                call,
                tuple(map(_written, call.tensors)),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                output_names=output_names,
                dynamic_shapes=(shapes,) if shapes else None,
            )
    except Exception as error:  # of torch's exporter, of the model under it, of passes over the graph: none in common
        raise ExportError(f"torch can't export the model for batches of any size: {_line(error)}") from error
    assert program is not None
    _name_inputs(program.model.graph, call.names)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # where in whose source code each node comes from
    return program


def _refuse_limits(program: torch.onnx.ONNXProgram) -> None:
    """Raise ExportError where a size from some number on takes another way through the model: the file has one."""
    assert program.exported_program is not None
    for limits in program.exported_program.range_constraints.values():
        if limits.upper.is_finite and limits.upper < 2**31:
            raise ExportError(
                f"the model treats a dimension of more than {limits.upper} in another way, and the file would not; "
                "expected one way for all sizes"
            )


@contextlib.contextmanager
def _slow_paths() -> Iterator[None]:
    """Without what torch does in attention where no gradient is asked for, which gives padding other vectors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _name_inputs(graph: Any, names: Sequence[str]) -> None:
    """Give the graph's inputs their names, and others another where theirs is one of these."""
    values = [*graph.initializers.values(), *(output for node in graph.all_nodes() for output in node.outputs)]
    taken = {value.name for value in values} | set(names)
    for value in values:
        if value.name in names:
            value.name = next(name for i in range(len(taken)) if (name := f"{value.name}_{i}") not in taken)
            taken.add(value.name)
    for i, value in enumerate(graph.inputs):
        value.name = f"input:{i}"  # no name of another one on the way
    for value, name in zip(graph.inputs, names, strict=True):
        value.name = name


def _line(error: BaseException) -> str:
    """What an error says first; what comes of its cause is a page."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = re.sub(r"Load model from \S+ failed: ?", "", str(error))  # from a place that is gone
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _is_of(weights: Path, path: Path) -> bool:
    """Whether a file is that of the weights of the ONNX model beside it."""
    if not weights.is_file() or not path.is_file():
        return False
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # no ONNX model, of which protobuf has no one exception
        return False
    return any(entry.value == weights.name for tensor in model.graph.initializer for entry in tensor.external_data)


def weights_file(path: Path) -> Path:
    """Where the weights of a large model lie, beside it."""
    return path.with_name(path.name + ".data")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of packages that aren't needed, and of its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)


def check(
    session: Session, model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any] | None = None
) -> float:
    """The largest difference between ONNX Runtime's outputs and the model's, as a share of those above 1.

    Raises ExportError above TOLERANCE, where a shape is another one, and where one side has a number that isn't finite
    and the other doesn't have it.
    """
    outputs = _outputs(_called(model, inputs, keywords or {}))
    on = f"on {_shapes(inputs, keywords)}"
    try:
        found, worst = run(session, inputs, keywords), 0.0
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise ExportError(f"{on} ONNX Runtime can't run what torch wrote of the model: {_line(error)}") from error
    if len(found) != len(outputs):
        raise ExportError(f"{on} ONNX Runtime gives {len(found)} outputs; expected {len(outputs)}, as torch gives")
    for i, (mine, theirs) in enumerate(zip(found, outputs, strict=True)):
        expected, tolerance = theirs.detach().cpu().double().numpy(), _tolerance(model, theirs)
        if not theirs.is_floating_point():  # whole numbers and truth values are exact
            exact = theirs.detach().cpu().numpy()
            if mine.dtype != exact.dtype or not np.array_equal(mine, exact):
                raise ExportError(
                    f"{on} output {i} is {mine.dtype}, or has other numbers; expected torch's {exact.dtype}"
                )
            continue
        if mine.dtype.kind != "f":
            raise ExportError(f"{on} output {i} is {mine.dtype}; expected {theirs.dtype}, as in torch")
        if mine.shape != expected.shape:
            raise ExportError(f"{on} output {i} has shape {mine.shape}; expected {expected.shape}, as in torch")
        finite = np.isfinite(expected)
        if not np.array_equal(np.where(finite, 0, mine), np.where(finite, 0, expected), equal_nan=True):
            raise ExportError(f"{on} output {i} differs from torch's where that isn't finite")
        there = expected[finite]
        apart = np.abs(mine[finite].astype(np.float64) - there) / np.maximum(np.abs(there), 1)
        worst = max(worst, float(apart.max(initial=0))) if np.isfinite(apart).all() else np.inf
        if worst > tolerance:
            raise ExportError(f"{on} ONNX Runtime differs from torch by {worst:.2g}; expected {tolerance:g} at most")
    return worst


def _called(model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """What the model gives for copies, so that what it writes into them is nobody's."""
    inputs, keywords = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (inputs, dict(keywords))
    )
    with torch.no_grad(), _slow_paths():
        return model(*inputs, **keywords)


def _outputs(result: Any) -> list[Tensor]:
    """The tensors of a result. Raises ExportError where it has something else that would be lost, or none."""
    leaves = pytree.tree_leaves(result)
    if others := [leaf for leaf in leaves if not isinstance(leaf, Tensor | bool | int | float | str | None)]:
        kind = type(others[0]).__name__
        raise ExportError(f"an output is a {kind}; expected tensors, and lists and dictionaries of them")
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not found:
        raise ExportError("the model gives no tensor; expected at least one output")
    return found


def _takes(model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Whether torch itself has an answer; models that squeeze a batch of one away have none for it."""
    try:
        _called(model, inputs, keywords)
    except Exception:  # whatever a model raises
        return False
    return True


def _tolerance(model: nn.Module, output: Tensor) -> float:
    """What rounding may do, in the least precise type in which the model computes."""
    kinds = {output.dtype, *(parameter.dtype for parameter in model.parameters())} & {torch.half, torch.bfloat16}
    return max([TOLERANCE, *(4 * torch.finfo(kind).eps for kind in kinds)])


def _shapes(inputs: tuple[Any, ...], keywords: Mapping[str, Any] | None) -> str:
    tensors = _tensors((inputs, dict(keywords or {})))
    return f"a batch of {len(tensors[0])}" if tensors and tensors[0].dim() else "the inputs"


def run(session: Session, inputs: tuple[Any, ...], keywords: Mapping[str, Any] | None = None) -> list[np.ndarray]:
    """All outputs, for inputs that are nested as they were at the export; by name where dictionaries name them."""
    tensors = dict(zip(_names(inputs, keywords or {}), _tensors((inputs, dict(keywords or {}))), strict=True))
    nodes = [node.name for node in session.get_inputs()]
    if tensors.keys() != set(nodes):
        tensors = dict(zip(nodes, tensors.values(), strict=True))
    return [
        np.asarray(output) for output in session.run(None, {name: _written(tensors[name]).numpy() for name in nodes})
    ]


def _in_bfloat16(model: nn.Module) -> bool:
    kinds = [tensor.dtype for tensor in model.parameters()]
    kinds += [module.dtype for module in model.modules() if isinstance(module, Rows)]
    return torch.bfloat16 in kinds


def _written(tensor: Tensor) -> Tensor:
    """A tensor in the type that it has in the file."""
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


def _names(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[str]:
    """The key of each tensor, where it is in a dictionary or a keyword, else its place; each once."""
    found: list[str] = []
    for place, leaf in pytree.tree_flatten_with_path((inputs, dict(keywords)))[0]:
        if isinstance(leaf, Tensor):
            key = getattr(place[-1], "key", None)
            name = key if isinstance(key, str) else f"input_{len(found)}"
            again = (f"{name}_{i}" for i in range(2, len(found) + 3))
            found.append(next(other for other in (name, *again) if other not in found))
    return found
