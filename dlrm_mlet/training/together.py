"""The models of S seeds -> one batched model, whose step has as many kernels as that of one.

B rows of a batch; F categorical features; D embedding dimension.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dlrm_mlet.config import Config
from dlrm_mlet.tables.stacked import MLETTables, SingleLayerTables
from dlrm_mlet.training.model import DLRM


def can_train_together(config: Config) -> bool:
    """Whether runs of this config can train together: with full tables, not with rivals'."""
    return config.model.tables == "full"


class StackedLinear(nn.Module):
    """S linear layers, each for its own rows: `weight` (S, out, in), `bias` (S, 1, out)."""

    def __init__(self, layers: Sequence[nn.Module], device: torch.device):
        super().__init__()
        self.weight = nn.Parameter(_stack(layers, "weight", device).unflatten(0, (len(layers), -1)))
        self.bias = nn.Parameter(_stack(layers, "bias", device).view(len(layers), 1, -1))

    def forward(self, rows: Tensor) -> Tensor:
        """(S, B, in) -> (S, B, out)."""
        return torch.baddbmm(self.bias, rows, self.weight.mT)


class Together(DLRM):
    """S models of one shape as one on a device: their parameters become views of its own.

    So a step of this one is a step of each, and each can be measured, collapsed and saved as if it were alone. The
    tables of all seeds are those of S · F features.
    """

    def __init__(self, models: Sequence[DLRM], device: torch.device):
        tables = [model.tables for model in models]
        super().__init__(
            _stack_mlps([model.bottom_mlp for model in models], device),
            _stack_tables([table for table in tables if isinstance(table, SingleLayerTables | MLETTables)], device),
            _stack_mlps([model.top_mlp for model in models], device),
        )
        for model in models:
            model.to(device)  # all but the parameters, which are there already
        self.interaction = models[0].interaction

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """(S, B, dense columns) float and (S, B, F) integer, which were checked before -> (S, B) logits."""
        return self.logits(dense, self.embed(ids))

    def logits(self, dense: Tensor, embedded: Tensor) -> Tensor:
        """(S, B, dense columns) float and (S, B, F, D) of the tables -> (S, B) logits."""
        interacted = self.interaction(self.bottom_mlp(dense).flatten(0, 1), embedded.flatten(0, 1))
        return self.top_mlp(interacted.unflatten(0, dense.shape[:2])).squeeze(2)

    def embed(self, ids: Tensor) -> Tensor:
        """(S, B, F) integer -> (S, B, F, D)."""
        seeds, features = len(ids), self.interaction.vectors - 1
        return self.tables.lookup(ids.transpose(0, 1).flatten(1)).unflatten(1, (seeds, features)).transpose(0, 1)


def _stack_mlps(mlps: Sequence[nn.Module], device: torch.device) -> nn.Sequential:
    layers = zip(*(mlp.children() for mlp in mlps), strict=True)
    return nn.Sequential(
        *(StackedLinear(same, device) if isinstance(same[0], nn.Linear) else same[0] for same in layers)
    )


def _stack_tables(
    tables: Sequence[SingleLayerTables | MLETTables], device: torch.device
) -> SingleLayerTables | MLETTables:
    table_rows, bags = tables[0].table_rows * len(tables), tables[0].bags
    bags = bags and bags.times(len(tables))
    weight = _stack(tables, "weight", device)
    projections = [table.projections for table in tables if isinstance(table, MLETTables)]
    if not projections:
        return SingleLayerTables(table_rows, weight, bags)
    stacked = [_stack(projections, str(i), device) for i in range(len(projections[0]))]
    return MLETTables(table_rows, weight, stacked, bags)


def _stack(modules: Sequence[nn.Module], name: str, device: torch.device) -> Tensor:
    """The modules' parameters of this name, one below another; each becomes a view of its part."""
    first = getattr(modules[0], name)
    stacked = first.new_empty(len(modules) * len(first), *first.shape[1:], device=device)
    for module, part in zip(modules, stacked.chunk(len(modules)), strict=True):
        setattr(module, name, nn.Parameter(part.copy_(getattr(module, name).detach())))
    return stacked
