"""What ONNX Runtime gives for a call beside what torch gives."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlrm_mlet.serving.calls import called, names_of, outputs_of, tensors_of, written
from dlrm_mlet.serving.session import ExportError, Session

TOLERANCE = 1e-5
"""How far an output may be from torch's, as a share of what is above 1; in half precision 4 units in the last place."""


def check(
    session: Session, model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any] | None = None
) -> float:
    """The largest difference between ONNX Runtime's outputs and the model's, as a share of those above 1.

    Raises ExportError above TOLERANCE, where a shape is another one, and where one side has a number that isn't finite
    and the other doesn't have it.
    """
    outputs = outputs_of(called(model, inputs, keywords or {}))
    on = f"on {_shapes(inputs, keywords)}"
    try:
        found, worst = run(session, inputs, keywords), 0.0
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise ExportError(f"{on} ONNX Runtime can't run what torch wrote of the model: {first_line(error)}") from error
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


def takes(model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    """Whether torch itself has an answer; models that squeeze a batch of one away have none for it."""
    try:
        called(model, inputs, keywords)
    except Exception:  # whatever a model raises
        return False
    return True


def run(session: Session, inputs: tuple[Any, ...], keywords: Mapping[str, Any] | None = None) -> list[np.ndarray]:
    """All outputs, for inputs that are nested as they were at the export; by name where dictionaries name them."""
    tensors = dict(zip(names_of(inputs, keywords or {}), tensors_of((inputs, dict(keywords or {}))), strict=True))
    nodes = [node.name for node in session.get_inputs()]
    if tensors.keys() != set(nodes):
        tensors = dict(zip(nodes, tensors.values(), strict=True))
    return [
        np.asarray(output) for output in session.run(None, {name: written(tensors[name]).numpy() for name in nodes})
    ]


def _tolerance(model: nn.Module, output: Tensor) -> float:
    """What rounding may do, in the least precise type in which the model computes."""
    kinds = {output.dtype, *(parameter.dtype for parameter in model.parameters())} & {torch.half, torch.bfloat16}
    return max([TOLERANCE, *(4 * torch.finfo(kind).eps for kind in kinds)])


def _shapes(inputs: tuple[Any, ...], keywords: Mapping[str, Any] | None) -> str:
    tensors = tensors_of((inputs, dict(keywords or {})))
    return f"a batch of {len(tensors[0])}" if tensors and tensors[0].dim() else "the inputs"


def first_line(error: BaseException) -> str:
    """What an error says first; what comes of its cause is a page."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = re.sub(r"Load model from \S+ failed: ?", "", str(error))  # from a place that is gone
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
