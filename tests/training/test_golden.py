"""A short run by each optimizer gives the validation curve in tests/golden, which a change of the code mustn't move.

Where the arithmetic is changed on purpose, `DLRM_MLET_GOLDEN=write pytest tests/training/test_golden.py` writes the
curves anew, and the commit says why they moved.
"""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from dlrm_mlet.training.run import train

GOLDEN = Path(__file__).parents[1] / "golden"
OPTIMIZERS = {
    "sgd": {"learning_rate": 0.05},
    "sgd-linear": {"learning_rate": 0.8, "schedule": "linear", "warm_up": 0.1},
    "adagrad": {"learning_rate": 0.05, "optimizer": "adagrad"},
    "adam": {"learning_rate": 0.01, "optimizer": "adam"},
    "lazy-adam": {"learning_rate": 0.01, "optimizer": "lazy-adam"},
}
CLOSE = 2e-5
"""Processors differ in the last bits of a sum; 76 steps don't make more of it than this."""


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("inner_dim", [None, 16])
def test_the_curve_is_where_it_was(clicks, small_mlet, tmp_path, name, inner_dim):
    config = dataclasses.replace(
        small_mlet,
        model=dataclasses.replace(small_mlet.model, inner_dim=inner_dim),
        training=dataclasses.replace(small_mlet.training, epochs=2, **OPTIMIZERS[name]),
    )
    found = train(config, clicks, 0, tmp_path / "run")
    curve = [*found.curve, {"step": found.steps, **found.metrics["validation"]}]
    file = GOLDEN / f"{name}-{'single' if inner_dim is None else f'mlet-{inner_dim}'}.json"
    if os.environ.get("DLRM_MLET_GOLDEN") == "write":
        file.write_text(json.dumps([{k: round(v, 7) for k, v in point.items()} for point in curve], indent=1) + "\n")
    expected = json.loads(file.read_text())
    assert [point["step"] for point in curve] == [point["step"] for point in expected]
    for mine, its in zip(curve, expected, strict=True):
        assert mine["log_loss"] == pytest.approx(its["log_loss"], abs=CLOSE)
        assert mine["auc"] == pytest.approx(its["auc"], abs=5 * CLOSE)  # which ties move
    assert expected[-1]["log_loss"] < expected[0]["log_loss"]  # it learns
