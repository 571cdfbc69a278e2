"""Singular values against torch's own, and equation 6 where its assumptions hold and where they don't."""

import csv
import subprocess
import sys

import pytest
import torch

from dlrm_mlet.tables.rivals import MixedDimensionTables
from dlrm_mlet.tables.spectrum import count_above, predicted_change, singular_values
from dlrm_mlet.tables.stacked import make_tables


@pytest.mark.parametrize("inner_dims", [(), (16,), (16, 8)])
def test_singular_values_are_those_of_the_product(inner_dims):
    tables = make_tables((3, 50, 400), inner_dims, 5, 0.25)
    for found, table in zip(singular_values(tables), tables.collapse().weight.split((3, 50, 400)), strict=True):
        expected = torch.linalg.svdvals(table.double())
        torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-6, atol=1e-6)
        assert (found[len(expected) :] < 1e-6).all()


def test_tables_without_a_product_are_refused():
    with pytest.raises(ValueError, match="MixedDimensionTables: have no singular values"):
        singular_values(MixedDimensionTables((3, 50), 4, 0.3, None))


def test_values_above_a_share_of_the_largest_are_counted():
    assert count_above([2.0, 1.0, 0.021, 0.02, 0.0]) == 3
    assert count_above([2.0, 1.0, 0.021], share=0.5) == 1


def test_a_single_layers_singular_values_move_by_the_gradients_share_of_them():
    generator = torch.Generator().manual_seed(0)
    w, gradient = (torch.randn(6, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    measured = torch.linalg.svdvals(w - 1e-7 * gradient) - torch.linalg.svdvals(w)
    torch.testing.assert_close(predicted_change(w, gradient, 1, 1e-7), measured, rtol=1e-4, atol=1e-12)


def test_equation_6_holds_for_balanced_layers_and_not_as_mlet_starts(tmp_path):
    out = tmp_path / "equation-6.csv"
    subprocess.run([sys.executable, "scripts/equation_6.py", "--out", str(out), "--steps", "1000"], check=True)
    with out.open() as file:
        changes = list(csv.DictReader(file))
    ratios = {(c["start"], c["layers"]): [] for c in changes}
    for change in changes:
        ratios[change["start"], change["layers"]].append(float(change["measured"]) / float(change["predicted"]))
    for layers in "1234":
        assert all(abs(ratio - 1) < 0.1 for ratio in ratios["balanced layers", layers])
    assert any(abs(ratio - 1) > 0.1 for ratio in ratios["as MLET starts", "3"])
