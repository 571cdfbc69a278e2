"""Lookups of torch's -> the same in operators that ONNX has an answer of torch's in, for each id and any batch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dlrm_mlet.tables.quantize import bags_of_one_length


class Lookups(TorchFunctionMode):
    """While it lasts, lookups are written so that ONNX has an answer of torch's for each id and any batch.

    An id below 0 would be a row from the end there; it is made one that is an error, as in torch. Bags would be loops.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.embedding:
            return _embedding(*args, **kwargs)
        if function is F.embedding_bag:
            input, weight, *rest = args
            if input.dim() == 2:
                return _embedding_bag(*args, **kwargs)
            return function(_above(input, weight.shape[0]), weight, *rest, **kwargs)
        if function in (torch.embedding, torch.index_select, Tensor.index_select) and len(args) > 1:
            weight, *places, ids = args
            return function(weight, *places, _above(ids, weight.shape[places[0] if places else 0]), **kwargs)
        if function in (torch.gather, Tensor.gather) and len(args) == 3:
            return function(args[0], args[1], _above(args[2], args[0].shape[args[1]]), **kwargs)
        if function in (torch.squeeze, Tensor.squeeze):
            # torch leaves a dimension that isn't 1, and its exporter writes a Squeeze that fails
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if isinstance(dim, int) and isinstance(args[0].shape[dim], int) and args[0].shape[dim] != 1:
                return args[0]
        return function(*args, **kwargs)


def _above(ids: Tensor, rows: int) -> Tensor:
    """Ids below 0 as one that no table of so many rows has."""
    return torch.where(ids < 0, rows, ids)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    *_: Any,
    **__: Any,
) -> Tensor:
    found = torch.embedding(weight, _above(input, weight.shape[0]))
    if max_norm is None:
        return found
    norm = torch.linalg.vector_norm(found, norm_type, dim=-1, keepdim=True)
    return torch.where(norm > max_norm, found * (max_norm / (norm + 1e-7)), found)  # as torch does it in the table


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    rows = _embedding(input, weight, None, max_norm, norm_type)
    padding_idx = padding_idx if padding_idx is None else padding_idx % weight.shape[0]
    return bags_of_one_length(rows, input, mode, padding_idx, per_sample_weights)
