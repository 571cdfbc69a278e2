"""The models of S seeds -> one batched model, whose step has as many kernels as that of one.

B rows of a batch; F categorical features; D embedding dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlrm_mlet.config import Config
from dlrm_mlet.embedding import MLETTables, SingleLayerTables
from dlrm_mlet.model import DLRM


def can_train_together(config: Config) -> bool:
    """Whether runs of this config can train together: full tables, and an optimizer that keeps nothing a seed."""
    return config.model.tables == "full" and config.training.optimizer == "sgd"


class StackedLinear(nn.Module):
    """S linear layers, each for its own rows: `weight` (S, out, in), `bias` (S, 1, out)."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.data for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.data for layer in layers]).unsqueeze(1))
        for layer, weight, bias in zip(layers, self.weight.data, self.bias.data, strict=True):
            layer.weight.data, layer.bias.data = weight, bias[0]

    def forward(self, rows: Tensor) -> Tensor:
        """(S, B, in) -> (S, B, out)."""
        return torch.baddbmm(self.bias, rows, self.weight.mT)


class Together(DLRM):
    """S models of one shape as one, which takes the place of their parameters: they become views of its own.

    So a step of this one is a step of each, and each can be measured, collapsed and saved as if it were alone. The
    tables of all seeds are those of S · F features.
    """

    def __init__(self, models: Sequence[DLRM]):
        tables = [model.tables for model in models]
        super().__init__(
            _stack_mlps([model.bottom_mlp for model in models]),
            _stack_tables([table for table in tables if isinstance(table, SingleLayerTables | MLETTables)]),
            _stack_mlps([model.top_mlp for model in models]),
        )
        self.interaction = models[0].interaction

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """(S, B, dense columns) float and (S, B, F) integer -> (S, B) logits."""
        seeds, rows, features = ids.shape
        embedded = self.tables(ids.transpose(0, 1).flatten(1)).unflatten(1, (seeds, features)).transpose(0, 1)
        interacted = self.interaction(self.bottom_mlp(dense).flatten(0, 1), embedded.flatten(0, 1))
        return self.top_mlp(interacted.unflatten(0, (seeds, rows))).squeeze(2)


def _stack_mlps(mlps: Sequence[nn.Module]) -> nn.Sequential:
    layers = zip(*(mlp.children() for mlp in mlps), strict=True)
    return nn.Sequential(*(StackedLinear(same) if isinstance(same[0], nn.Linear) else same[0] for same in layers))


def _stack_tables(tables: Sequence[SingleLayerTables | MLETTables]) -> SingleLayerTables | MLETTables:
    table_rows = tables[0].table_rows * len(tables)
    weight = _stack([table.weight for table in tables])
    if isinstance(tables[0], SingleLayerTables):
        return SingleLayerTables(table_rows, weight)
    each = [table.projections for table in tables if isinstance(table, MLETTables)]
    return MLETTables(table_rows, weight, [_stack(same) for same in zip(*each, strict=True)])


def _stack(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One below another; each becomes a view of its part, as soon as it is there."""
    stacked = parameters[0].new_empty(len(parameters) * len(parameters[0]), *parameters[0].shape[1:])
    for parameter, part in zip(parameters, stacked.chunk(len(parameters)), strict=True):
        parameter.data = part.copy_(parameter.data)
    return stacked
