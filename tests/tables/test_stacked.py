"""The paper's theorems, the start, and the collapse of MLET tables."""

import math

import pytest
import torch

from dlrm_mlet import quantize
from dlrm_mlet.config import ModelConfig
from dlrm_mlet.tables.stacked import MLETTables, SingleLayerTables, make_tables, start_at
from dlrm_mlet.training.model import build_tables

TABLE_ROWS = (7, 1, 40)


def ids(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(n, (batch,), generator=generator) for n in TABLE_ROWS], dim=1).int()


@pytest.mark.parametrize(("n", "k", "d"), [(20, 8, 8), (20, 16, 4), (3, 8, 5)])
def test_theorem_2_1_any_table_is_reached_when_k_is_at_least_d(n, k, d):
    wanted = torch.randn(n, d, dtype=torch.float64)
    q, r = torch.linalg.qr(wanted.T, mode="complete")  # d x d, d x n: wanted = r.T @ q.T
    w1 = torch.cat((r.T, torch.zeros(n, k - d)), dim=1)
    w2 = torch.cat((q.T, torch.zeros(k - d, d)))
    tables = MLETTables((n,), w1, [w2[None]])
    torch.testing.assert_close(tables.collapse().weight.data, wanted)
    torch.testing.assert_close(tables(torch.arange(n)[:, None]).data[:, 0], wanted)


def test_theorem_2_2_k_below_d_bounds_the_rank():
    narrow = make_tables((50,), (3,), 8, 0.25).collapse().weight
    wide = make_tables((50,), (8,), 8, 0.25).collapse().weight
    assert torch.linalg.matrix_rank(narrow) == 3
    assert torch.linalg.matrix_rank(wide) == 8


@pytest.mark.parametrize("inner_dims", [(), (16,), (16, 8), (16, 16, 8)])
def test_vectors_are_the_rows_of_the_explicit_product(inner_dims):
    tables = make_tables(TABLE_ROWS, inner_dims, 4, 0.25, torch.Generator().manual_seed(0))
    vectors = tables(ids(9))
    assert vectors.shape == (9, len(TABLE_ROWS), 4)
    for feature, w1 in enumerate(tables.weight.split(TABLE_ROWS)):
        table = w1
        for projection in getattr(tables, "projections", ()):
            table = table @ projection[feature]
        for row in range(9):
            torch.testing.assert_close(vectors[row, feature], table[ids(9)[row, feature]])


@pytest.mark.parametrize("inner_dims", [(16,), (16, 8, 8)])
def test_collapsed_tables_give_the_same_vectors(inner_dims):
    tables = make_tables(TABLE_ROWS, inner_dims, 4, 0.25, torch.Generator().manual_seed(0))
    collapsed = tables.collapse()
    assert type(collapsed) is SingleLayerTables
    assert collapsed.weight.shape == (sum(TABLE_ROWS), 4)
    assert collapsed.collapse() is collapsed
    torch.testing.assert_close(collapsed(ids(32)), tables(ids(32)), rtol=0, atol=1e-6)


def test_the_start_is_the_published_one():
    rows = (100, 10_000)
    tables = make_tables(rows, (64,), 32, 0.25, torch.Generator().manual_seed(0))
    for table, n in zip(tables.weight.split(rows), rows, strict=True):
        bound = 1 / math.sqrt(n)
        assert table.abs().max() <= bound
        assert abs(table.std() / (bound / math.sqrt(3)) - 1) < 0.02  # a uniform's standard deviation
    (w2,) = tables.projections
    assert w2.shape == (2, 64, 32)
    assert abs(w2.std() - 0.25) < 0.01
    assert not torch.equal(w2[0], w2[1])
    single = make_tables(rows, (), 32, 0.25, torch.Generator().manual_seed(0))
    assert single.weight.split(rows)[0].abs().max() <= 1 / math.sqrt(100)


@pytest.mark.parametrize("inner_dims", [(), (16,), (16, 8)])
def test_any_start_is_reached_without_changing_the_projections(inner_dims):
    wanted = make_tables(TABLE_ROWS, (), 4, 0.25)
    tables = make_tables(TABLE_ROWS, inner_dims, 4, 0.25)
    before = [projection.detach().clone() for projection in getattr(tables, "projections", ())]
    start_at(tables, wanted)
    torch.testing.assert_close(tables.collapse().weight.data, wanted.weight.data, rtol=1e-4, atol=1e-5)
    for projection, was in zip(getattr(tables, "projections", ()), before, strict=True):
        assert torch.equal(projection, was)


def test_the_start_is_scaled():
    one, four = (make_tables((40,), (), 4, 0.25, torch.Generator().manual_seed(0), scale) for scale in (1.0, 4.0))
    torch.testing.assert_close(four.weight.data, 4 * one.weight.data)


def rival(kind):
    def make():
        return build_tables(ModelConfig(4, (4,), (4,), tables=kind), (7, 300, 9), torch.Generator().manual_seed(0))

    return make


KINDS = {
    "single": lambda: make_tables((7, 300, 9), (), 4, 0.25),
    "MLET": lambda: make_tables((7, 300, 9), (8,), 4, 0.25),
    "collapsed": lambda: make_tables((7, 300, 9), (8, 6), 4, 0.25).collapse(),
    "int8": lambda: quantize(make_tables((7, 300, 9), (), 4, 0.25), report=lambda line: None),
    "int4": lambda: quantize(make_tables((7, 300, 9), (), 4, 0.25), 4, report=lambda line: None),
    "quotient-remainder": rival("quotient-remainder"),
    "mixed-dimension": rival("mixed-dimension"),
    "hashed": rival("hashed"),
    "robe": rival("robe"),
    "tensor-train": rival("tensor-train"),
    "min-count": rival("min-count"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("f", "wrong"), [(0, -1), (1, -1), (1, 300), (0, 7), (2, 9), (2, 2**31 - 1), (1, -(2**31))])
def test_an_id_outside_of_its_table_is_named(kind, f, wrong):
    """Once: id n of a feature read the next one's first row, -1 the last of the one before, and nothing was said."""
    if kind == "hashed" and wrong > 0:
        return  # every number has a row there
    tables, ids = KINDS[kind](), torch.zeros(5, 3, dtype=torch.int32)
    assert tables(ids).shape == (5, 3, 4)
    ids[3, f] = wrong
    with pytest.raises(IndexError, match=f"feature {f} of 3: id {wrong}; expected 0 to"):
        tables(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 1), (5,), (5, 4), (1, 5, 3)])
def test_ids_of_another_shape_are_refused(kind, shape):
    """Once: (B, 1) ids counted for all features."""
    with pytest.raises(ValueError, match=r"ids of shape .*; expected \(B, 3\), an id a feature"):
        KINDS[kind]()(torch.zeros(shape, dtype=torch.int64))
