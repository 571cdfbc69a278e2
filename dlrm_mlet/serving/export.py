"""Any collapsed model -> an ONNX file, proved equal to it in ONNX Runtime."""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dlrm_mlet.extras import needs
from dlrm_mlet.tables.convert import TRAINED

with needs("serving"):
    import onnxruntime
    from onnxruntime import InferenceSession as Session

OPSET = 20
TOLERANCE = 1e-5
"""How far a probability may be from torch's."""
LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights from which on they lie in a file beside the model, since a protobuf message ends at 2 GiB."""


class ExportError(ValueError):
    """A model that can't be exported, or whose ONNX file doesn't give its outputs."""


def export(
    model: nn.Module,
    inputs: tuple[Any, ...],
    path: Path,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a model as ONNX (opset 20), every input's first dimension being a batch of any size.

    `inputs` are the arguments of a call, of at least two rows: tensors, or dictionaries and lists of them, whose
    tensors become inputs in their order, under the dictionary's keys where `input_names` aren't given. The model is
    put into its evaluation mode. Weights of over 2 GiB lie beside it, in <path>.data. The file appears when ONNX
    Runtime has given the model's outputs on `inputs`, on half of them and on one row. Raises ExportError where it
    didn't, where torch can't export the model so, or where MLET's tables aren't collapsed.
    """
    if path.suffix != ".onnx":
        raise ExportError(f"{path}: expected a name that ends in .onnx")
    model = getattr(model, "_orig_mod", model).eval()  # torch.compile's are around the model itself
    for name, module in model.named_modules():
        if isinstance(module, TRAINED):
            called = name or type(module).__name__
            raise ExportError(f"{called}: isn't collapsed; expected dlrm_mlet.collapse(model) first")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{path.name}.partial", dir=path.parent) as directory:
        partial = Path(directory) / path.name  # the same name, since the model names the file of its weights
        program = _program(model, inputs, input_names, output_names)
        program.model.metadata_props.update(metadata or {})
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        program.save(partial, external_data=weights > LARGEST_FILE)
        session = open_session(partial)
        for node in session.get_inputs():
            if not node.shape or not isinstance(node.shape[0], str):
                raise ExportError(f"the model takes batches of {node.shape[0]} rows alone; expected any number of them")
        rows = len(pytree.tree_leaves(inputs)[0])
        for count in dict.fromkeys((rows, max(1, rows // 2), 1)):  # a model may treat one row in another way
            check(session, model, pytree.tree_map(lambda value, count=count: value[:count], inputs))
        weights_file(path).unlink(missing_ok=True)  # of an earlier export
        for file in sorted(partial.parent.iterdir(), reverse=True):  # the weights before the model
            os.replace(file, path.parent / file.name)
    return path


def _program(
    model: nn.Module,
    inputs: tuple[Any, ...],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> torch.onnx.ONNXProgram:
    with needs("serving"):
        import onnxscript  # noqa: F401, PLC0415  which torch's exporter needs, and loading an .onnx file doesn't
    batch = torch.export.Dim("batch")
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (*inputs, {}),  # the empty one for keywords, or a dictionary at the end would be taken for them
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=input_names or _names(inputs),
                output_names=output_names,
                dynamic_shapes=pytree.tree_map(lambda value: {0: batch}, inputs),
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(
            f"torch can't export the model for batches of any size: {error.__cause__ or error}"
        ) from error
    assert program is not None
    return program


def weights_file(path: Path) -> Path:
    """Where the weights of a large model lie, beside it."""
    return path.with_name(path.name + ".data")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of packages that aren't needed, and of its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def check(session: Session, model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """The largest difference between ONNX Runtime's outputs and the model's, as a share of those above 1.

    Raises ExportError above TOLERANCE, where a shape is another one, and where one side has a number that isn't finite
    and the other doesn't have it.
    """
    with torch.no_grad():
        outputs = [output for output in pytree.tree_leaves(model(*inputs)) if isinstance(output, Tensor)]
    found, worst = run(session, inputs), 0.0
    batch = f"on a batch of {len(pytree.tree_leaves(inputs)[0])}"
    if len(found) != len(outputs):
        raise ExportError(f"{batch} ONNX Runtime gives {len(found)} outputs; expected {len(outputs)}, as torch gives")
    for i, (mine, theirs) in enumerate(zip(found, outputs, strict=True)):
        expected = theirs.double().numpy()
        if mine.shape != expected.shape:
            raise ExportError(f"{batch} output {i} has shape {mine.shape}; expected {expected.shape}, as in torch")
        finite = np.isfinite(expected)
        if not np.array_equal(np.where(finite, 0, mine), np.where(finite, 0, expected), equal_nan=True):
            raise ExportError(f"{batch} output {i} differs from torch's where that isn't finite")
        there = expected[finite]
        apart = np.abs(mine[finite] - there) / np.maximum(np.abs(there), 1)
        worst = max(worst, float(apart.max(initial=0))) if np.isfinite(apart).all() else np.inf
        if worst > TOLERANCE:
            raise ExportError(f"{batch} ONNX Runtime differs from torch by {worst:.2g}; expected {TOLERANCE:g} at most")
    return worst


def open_session(path: Path, threads: int | None = None) -> Session:
    """The file, ready to run on the CPU. Raises ExportError where it can't be."""
    if not path.is_file():
        raise ExportError(f"{path}: no such file; expected an ONNX model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        return Session(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise ExportError(f"{path}: damaged, or no ONNX model ({str(error).strip()})") from None


def run(session: Session, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    """All outputs, for inputs that are nested as they were at the export; by name where dictionaries name them."""
    tensors = dict(zip(_names(inputs), pytree.tree_leaves(inputs), strict=True))
    nodes = [node.name for node in session.get_inputs()]
    if tensors.keys() != set(nodes):
        tensors = dict(zip(nodes, tensors.values(), strict=True))
    return [np.asarray(output) for output in session.run(None, {name: tensors[name].numpy() for name in nodes})]


def _names(inputs: tuple[Any, ...]) -> list[str]:
    """The key of each tensor, where it is in a dictionary, else its place."""
    leaves = pytree.tree_flatten_with_path(inputs)[0]
    keys = [getattr(place[-1], "key", None) for place, _ in leaves]
    return [str(key) if isinstance(key, str) else f"input_{i}" for i, key in enumerate(keys)]
