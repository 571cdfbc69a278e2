"""Metrics of a whole split agree with scikit-learn, and with the textbook's pair count."""

import importlib
import sys

import pytest
import torch
from sklearn.metrics import log_loss

from dlrm_mlet.extras import MissingExtraError
from dlrm_mlet.training import metrics
from dlrm_mlet.training.metrics import measure


def test_metrics_are_scikit_learns_and_the_pair_count():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(400, generator=generator) < 0.3).float()
    logits = (labels + 2 * torch.randn(400, generator=generator)).round(decimals=1)  # with ties
    auc, loss = measure(logits, labels)
    positive, negative = logits[labels == 1][:, None], logits[labels == 0][None]
    pairs = (positive > negative).double() + 0.5 * (positive == negative).double()
    assert auc == pytest.approx(pairs.mean().item(), abs=1e-12)
    assert loss == pytest.approx(log_loss(labels.numpy(), logits.double().sigmoid().numpy()), abs=1e-12)


def test_a_confident_score_has_a_finite_loss():
    assert measure(torch.tensor([500.0, -500.0, 3.0]), torch.tensor([0.0, 1.0, 1.0])).log_loss == pytest.approx(
        1000.05 / 3, 1e-3
    )


def test_a_split_of_one_label_has_no_auc():
    with pytest.raises(ValueError, match=r"AUC needs both labels; all 3 rows have label \[1.0\]"):
        measure(torch.zeros(3), torch.ones(3))


def test_that_scikit_learn_is_missing_is_said_before_anything_is_trained(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"sklearn isn't installed; .*pip install 'dlrm-mlet\[training\]'"):
        importlib.reload(metrics)
