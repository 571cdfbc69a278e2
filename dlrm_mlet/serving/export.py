"""A collapsed model -> an ONNX file, proved equal to it in ONNX Runtime.

B rows of a batch; F categorical features.
"""

import contextlib
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dlrm_mlet.data.columns import Columns
from dlrm_mlet.tables.convert import TRAINED
from dlrm_mlet.tables.quantize import quantize
from dlrm_mlet.training import evaluation, metrics
from dlrm_mlet.training.checkpoint import Served
from dlrm_mlet.training.metrics import Metrics

OPSET = 20
TOLERANCE = 1e-5
"""How far a probability may be from torch's."""
LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights from which on they lie in a file beside the model, since a protobuf message ends at 2 GiB."""


class ExportError(ValueError):
    """A model that can't be exported, or whose ONNX file doesn't give its outputs."""


class Probability(nn.Module):
    """What is served: dense (B, .) float32 and sparse (B, F) ids -> (B,) probabilities of a click."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """dense (B, .), sparse (B, F) -> (B,)."""
        return torch.sigmoid(self.model(dense, sparse))


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
    Runtime has given the model's outputs on `inputs` and on half of them. Raises ExportError where it didn't, where
    torch can't export the model so, or where MLET's tables aren't collapsed.
    """
    if path.suffix != ".onnx":
        raise ExportError(f"{path}: expected a name that ends in .onnx")
    model = getattr(model, "_orig_mod", model).eval()  # torch.compile's are around the model itself
    for name, module in model.named_modules():
        if type(module) in TRAINED:
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
        check(session, model, inputs)
        check(session, model, pytree.tree_map(lambda value: value[: max(1, len(value) // 2)], inputs))
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


def check(session: onnxruntime.InferenceSession, model: nn.Module, inputs: tuple[Any, ...]) -> float:
    """The largest difference between ONNX Runtime's outputs and the model's, as a share of those above 1.

    Raises ExportError above TOLERANCE.
    """
    with torch.no_grad():
        outputs = [output for output in pytree.tree_leaves(model(*inputs)) if isinstance(output, Tensor)]
    worst = 0.0
    for mine, theirs in zip(run(session, inputs), outputs, strict=True):
        expected = theirs.double().numpy()
        worst = max(worst, float((np.abs(mine - expected) / np.maximum(np.abs(expected), 1)).max(initial=0)))
    if not worst <= TOLERANCE:
        raise ExportError(f"ONNX Runtime differs from torch by {worst:.2g}; expected {TOLERANCE:g} at most")
    return worst


def open_session(path: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """The file, ready to run on the CPU. Raises ExportError where it can't be."""
    if not path.is_file():
        raise ExportError(f"{path}: no such file; expected an ONNX model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise ExportError(f"{path}: damaged, or no ONNX model ({str(error).strip()})") from None


def run(session: onnxruntime.InferenceSession, inputs: tuple[Any, ...]) -> list[np.ndarray]:
    """All outputs, for inputs that are nested as they were at the export; by name where dictionaries name them."""
    tensors = dict(zip(_names(inputs), pytree.tree_leaves(inputs), strict=True))
    nodes = [node.name for node in session.get_inputs()]
    if tensors.keys() != set(nodes):
        tensors = dict(zip(nodes, tensors.values(), strict=True))
    return [np.asarray(output) for output in session.run(None, {name: tensors[name].numpy() for name in nodes})]


@dataclass(frozen=True)
class Report:
    """What came of an export."""

    path: Path
    nbytes: int
    """Of the model and the weights beside it."""
    table_bytes: int
    worst: float
    """The largest difference between a probability in torch and in ONNX Runtime, on `rows` rows."""
    rows: int
    torch: Metrics
    """Of the float32 model in torch, on validation."""
    onnx: Metrics
    """Of the exported model in ONNX Runtime, on validation."""
    milliseconds: dict[int, float]
    """Rows of a batch -> median time in ONNX Runtime."""


def export_served(served: Served, data: Columns, path: Path, as_int8: bool = False) -> Report:
    """A run's model -> ONNX: inputs `dense` and `sparse`, output `probability`; checked on all validation rows.

    Raises CheckpointError where the columns aren't those that it was trained on, ExportError where ONNX Runtime
    differs from torch.
    """
    served.check(data)
    logits, labels = evaluation.scores(served.model, data.in_order("validation", evaluation.ROWS))
    before = metrics.measure(logits, labels)
    model = quantize(served.model, report=lambda line: None) if as_int8 else served.model
    whole = Probability(model)
    start, stop = data.range("validation")
    batch = data.rows(slice(start, min(start + evaluation.ROWS, stop)))
    metadata = {"dlrm_mlet.dataset": served.columns.dataset, "dlrm_mlet.columns": served.columns.fingerprint}
    export(whole, (batch.dense, batch.sparse), path, ["dense", "sparse"], ["probability"], metadata)
    session, worst = open_session(path), 0.0
    found = []
    for batch in data.in_order("validation", evaluation.ROWS):
        worst = max(worst, check(session, whole, (batch.dense, batch.sparse)))
        found.append(torch.from_numpy(run(session, (batch.dense, batch.sparse))[0]))
    after = metrics.measure(torch.cat(found).double().logit(eps=1e-12), labels)
    nbytes = sum(file.stat().st_size for file in (path, weights_file(path)) if file.exists())
    times = {rows: latency(session, data, rows) for rows in (1, min(4096, stop - start))}
    return Report(path, nbytes, model.tables.nbytes, worst, stop - start, before, after, times)


def latency(session: onnxruntime.InferenceSession, data: Columns, rows: int, turns: int = 50) -> float:
    """Median milliseconds that a batch of validation rows takes, so many at once."""
    start, stop = data.range("validation")
    batch = data.rows(slice(start, min(start + rows, stop)))
    times = []
    for _ in range(turns):
        begin = time.perf_counter()
        run(session, (batch.dense, batch.sparse))
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def _names(inputs: tuple[Any, ...]) -> list[str]:
    """The key of each tensor, where it is in a dictionary, else its place."""
    leaves = pytree.tree_flatten_with_path(inputs)[0]
    keys = [getattr(place[-1], "key", None) for place, _ in leaves]
    return [str(key) if isinstance(key, str) else f"input_{i}" for i, key in enumerate(keys)]
