"""Any collapsed model -> an ONNX file, proved equal to it in ONNX Runtime."""

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule

from dlrm_mlet.extras import needs
from dlrm_mlet.serving.calls import Call, called, outputs_of, slow_paths, written
from dlrm_mlet.serving.checking import check, first_line, takes
from dlrm_mlet.serving.lookups import Lookups
from dlrm_mlet.serving.session import IDS, ExportError, start_session
from dlrm_mlet.tables.convert import not_collapsed

with needs("serving"):
    import onnx

OPSET = 20
LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights from which on they lie in a file beside the model, since a protobuf message ends at 2 GiB."""


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
    if name := not_collapsed(model):
        raise ExportError(f"{name}: isn't collapsed; expected dlrm_mlet.collapse(model) first")
    with _evaluating(model):
        call = Call(inner, tuple(inputs), keywords or {}, input_names, dynamic or {})
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
    call: Call,
    model: nn.Module,
    example: tuple[tuple[Any, ...], Mapping[str, Any]],
    path: Path,
    output_names: Sequence[str] | None,
    metadata: Mapping[str, str],
) -> None:
    """The model's file, once ONNX Runtime gives its outputs on the example and at other sizes."""
    count = len(outputs_of(called(model, *example)))
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
        with slow_paths():
            program = _program(call, output_names)
            _refuse_limits(program)
        program.model.metadata_props.update({IDS: "an id outside of its table is an error"} | dict(metadata))
        program.save(partial, external_data=beside)
        try:
            session = start_session(partial)
        except Exception as error:  # its exceptions have no common base but this
            raise ExportError(f"ONNX Runtime can't run what torch wrote of the model: {first_line(error)}") from error
        call.refuse_fixed(session)
        check(session, model, *example)
        for some in call.sizes():  # a model may treat some in another way
            if takes(model, *some):
                check(session, model, *some)
        if mine:
            weights_file(path).unlink()  # of an earlier export
        for file in sorted(partial.parent.iterdir(), reverse=True):  # the weights before the model
            os.replace(file, path.parent / file.name)


def _program(call: Call, output_names: Sequence[str] | None) -> torch.onnx.ONNXProgram:
    with needs("serving"):
        import onnxscript  # noqa: F401, PLC0415  which torch's exporter needs, and loading an .onnx file doesn't
    dims = {name: torch.export.Dim(name) for name in call.rows}
    shapes = tuple({place: dims[dim] for place, dim in call.dims[name].items()} for name in call.names)
    try:
        with _quiet(), Lookups():
            program = torch.onnx.export(
                call,
                tuple(map(written, call.tensors)),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                output_names=output_names,
                dynamic_shapes=(shapes,) if shapes else None,
            )
    except Exception as error:  # of torch's exporter, of the model under it, of passes over the graph: none in common
        raise ExportError(f"torch can't export the model for batches of any size: {first_line(error)}") from error
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
