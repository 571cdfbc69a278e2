"""A model -> its parameters in two groups for an optimizer, so that tables have a learning rate of their own."""

import math
from typing import Any

from torch import nn

from dlrm_mlet.tables.stacked import Tables
from dlrm_mlet.tables.surgery import named, torchrec

TABLES = (nn.Embedding, nn.EmbeddingBag, Tables)
"""MLET's drop-ins are among them, by descent."""


def parameter_groups(
    model: nn.Module, *, learning_rate: float, table_learning_rate: float, **settings: Any
) -> list[dict[str, Any]]:
    """The parameters of a model as any of torch's optimizers takes them: its tables in one group, the rest in another.

    Tables are all nn.Embedding and nn.EmbeddingBag, and MLET's with their projections, converted or not; a weight that
    is another layer's too is a table's. Each parameter is there once, frozen ones aren't. `settings` are those of both
    groups. Why tables want a rate of their own: a loss is a mean over a batch of B rows, so that an id that occurs once
    moves its row by 1/B of its gradient, and an MLP by the mean of all. Raises ValueError where there is no table that
    is trained, and for a rate that is negative or no number: torch looks at none but an optimizer's own.
    """
    for name, rate in (("learning_rate", learning_rate), ("table_learning_rate", table_learning_rate)):
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(f"{name} = {rate}: expected a number from 0 up")
    if taken := {"params", "lr"} & set(settings):
        raise ValueError(
            f"{taken.pop()} = ...: is what the two rates are for; expected other settings of the optimizer"
        )
    kinds = TABLES if (ours := torchrec()) is None else (*TABLES, ours.MLETCollection)
    of_tables = {parameter: None for table in named(model, kinds) for parameter in table.parameters()}
    tables = [parameter for parameter in of_tables if parameter.requires_grad]
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in of_tables]
    if not tables:
        raise ValueError("the model has no nn.Embedding, nn.EmbeddingBag or table of MLET's that is trained")
    groups = [{"params": tables, "lr": table_learning_rate}, {"params": rest, "lr": learning_rate}]
    return [group | settings for group in groups if group["params"]]
