"""A model and columns -> the scores of a whole split, and their metrics."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlrm_mlet.data.columns import Batch, Columns
from dlrm_mlet.training import metrics
from dlrm_mlet.training.model import DLRM

ROWS = 8192
"""Rows that are scored at once."""
THIRDS = ("rare", "middle", "frequent")


@torch.no_grad()
def scores(model: DLRM, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """The logits and labels of all rows, on the CPU; of weights see `weights_of`."""
    device = next(model.parameters()).device
    on_device = (batch.to(device) for batch in batches)
    scored = ((model.logits(batch.dense, model.embed(batch.sparse)), batch.label) for batch in on_device)
    logits, labels = zip(*scored, strict=True)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def weights_of(columns: Columns, split: str) -> Tensor | None:
    """(rows of the split,): by how much each counts, on the CPU; None where the data set has no weights."""
    return None if columns.weight is None else columns.weight[slice(*columns.range(split))].cpu()


def measure(model: DLRM, columns: Columns, split: str) -> metrics.Metrics | None:
    """The metrics of a whole split; None where a score isn't finite."""
    logits, labels = scores(model, columns.in_order(split, ROWS))
    return metrics.measure(logits, labels, weights_of(columns, split)) if logits.isfinite().all() else None


def by_frequency(model: DLRM, columns: Columns) -> list[dict[str, Any]]:
    """Validation of a model in thirds, see `in_thirds`."""
    return in_thirds(columns, *scores(model, columns.in_order("validation", ROWS)))


def in_thirds(columns: Columns, logits: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Validation in thirds by how often a row's rarest id occurs in training: `ids`, `rows`, `at_most` and metrics.

    Logits and labels are those of all validation rows in their order. Each third has as many rows, but for ties;
    `at_most` is the largest count in it. One with a single label is absent.
    """
    rarest = rarest_count(columns)
    edges = [rarest.sort().values[len(rarest) * i // 3 - 1].item() for i in (1, 2, 3)]
    third = torch.bucketize(rarest, torch.tensor(edges[:2]))
    weights = weights_of(columns, "validation")
    found: list[dict[str, Any]] = []
    for i, ids in enumerate(THIRDS):
        mine = third == i
        if len(labels[mine].unique()) > 1:  # else it has no AUC
            measured = metrics.measure(logits[mine], labels[mine], None if weights is None else weights[mine])
            found.append({"ids": ids, "rows": int(mine.sum()), "at_most": edges[i], **measured._asdict()})
    return found


def rarest_count(columns: Columns) -> Tensor:
    """(validation rows,): how often a row's rarest id occurs among the training rows; on the CPU."""
    validation = columns.sparse[slice(*columns.range("validation"))].cpu().split(columns.schema.slots, 1)
    counts = []
    for mine, count in zip(validation, columns.counts(), strict=True):
        counts.append(torch.where(mine < 0, columns.schema.rows["train"], count[mine.clamp(min=0)]).amin(dim=1))
    return torch.stack(counts).amin(dim=0)
