"""Scores of a whole split -> AUC and LogLoss."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from dlrm_mlet.extras import needs, there

with needs("training"):
    there("sklearn")


class Metrics(NamedTuple):
    """The paper's two measures (section 3)."""

    auc: float
    """Area under the ROC curve; ties count half."""
    log_loss: float
    """Binary cross-entropy, mean over the rows, in nats."""


def measure(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Metrics:
    """(rows,) logits, (rows,) labels of 0 and 1, and (rows,) weights -> the metrics of all rows together.

    The loss is summed in float64 from the logits, so that a confident score can't round to an infinite loss. Raises
    ValueError where the labels are all alike, which leaves AUC undefined.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415  # half of all imports, and few processes measure

    if len(labels.unique()) < 2:
        raise ValueError(f"AUC needs both labels; all {len(labels)} rows have label {labels[:1].tolist()}")
    weight = None if weights is None else weights.double() / weights.double().mean()
    log_loss = F.binary_cross_entropy_with_logits(logits.double(), labels.double(), weight).item()
    counts = None if weights is None else weights.numpy()
    return Metrics(auc=float(roc_auc_score(labels.numpy(), logits.numpy(), sample_weight=counts)), log_loss=log_loss)
