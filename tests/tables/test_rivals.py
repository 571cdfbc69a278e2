"""Each rival's vectors are what its definition says, row by row, and its served bytes are counted whole."""

import math

import pytest
import torch

from dlrm_mlet.config import ModelConfig
from dlrm_mlet.tables.rivals import mixed_dimensions, truncated
from dlrm_mlet.tables.stacked import make_tables
from dlrm_mlet.toml import ConfigError
from dlrm_mlet.training.model import build, build_tables, served

TABLE_ROWS = (7, 500, 2001)


def ids(batch: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(n, (batch,), generator=generator) for n in TABLE_ROWS], dim=1).int()


def make(**keys):
    return build_tables(ModelConfig(8, (4,), (4,), **keys), TABLE_ROWS, torch.Generator().manual_seed(0))


def test_hashed_ids_share_a_row_when_they_are_equal_modulo_the_rows():
    tables = make(tables="hashed", collisions=4)
    rows = [7, 125, 501]
    parts = tables.weight.split(rows)
    vectors = tables(ids())
    for b, row in enumerate(ids()):
        for f, i in enumerate(row.tolist()):
            assert torch.equal(vectors[b, f], parts[f][i % rows[f]])
    assert tables.nbytes == 4 * 8 * sum(rows)


def test_quotient_and_remainder_rows_are_multiplied():
    tables = make(tables="quotient-remainder", collisions=4)
    remainders = tables.remainders.weight.split((7, 4, 4))
    quotients = tables.quotients.weight.split((125, 501))
    vectors = tables(ids())
    for b, (small, middle, large) in enumerate(ids().tolist()):
        assert torch.equal(vectors[b, 0], remainders[0][small])
        assert torch.equal(vectors[b, 1], quotients[0][middle // 4] * remainders[1][middle % 4])
        assert torch.equal(vectors[b, 2], quotients[1][large // 4] * remainders[2][large % 4])
    assert tables.nbytes == 4 * 8 * (7 + 4 + 4 + 125 + 501)
    assert quotients[0].min() >= 1 / math.sqrt(500)
    assert remainders[0].min() < 0


def test_mixed_dimensions_fall_with_the_rows_and_are_projected_back():
    assert mixed_dimensions((7, 500, 2001), 8, 0.3) == [8, 2, 1]
    assert mixed_dimensions((7, 500, 2001), 8, 1e-9) == [8, 8, 8]
    tables = make(tables="mixed-dimension", temperature=0.3)
    vectors = tables(ids())
    for b, (small, _, large) in enumerate(ids().tolist()):
        torch.testing.assert_close(vectors[b, 0], tables.tables[0][small])
        torch.testing.assert_close(vectors[b, 2], tables.projections[2].weight @ tables.tables[2][large])
    assert tables.nbytes == 4 * (7 * 8 + 500 * 2 + 2001 * 1 + 8 * (2 + 1))


@pytest.mark.parametrize("kind", ["hashed", "quotient-remainder", "mixed-dimension"])
def test_every_rival_learns_in_all_its_parts(kind):
    tables = make(tables=kind)
    tables(ids()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in tables.parameters())
    assert tables.collapse() is tables


def test_the_truncated_tables_are_the_nearest_of_their_rank():
    tables = make_tables(TABLE_ROWS, (), 8, 0.25)
    for rank in (1, 3, 8):
        low = truncated(tables, rank)
        product = low.collapse()
        for table, near in zip(tables.weight.split(TABLE_ROWS), product.weight.split(TABLE_ROWS), strict=True):
            lost = torch.linalg.svdvals(table)[rank:].square().sum().sqrt()
            torch.testing.assert_close((table - near).norm(), lost, atol=1e-5, rtol=1e-4)
        assert low.nbytes == 4 * rank * (sum(TABLE_ROWS) + 8 * len(TABLE_ROWS))


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"served_as": "int8", "inner_dim": 16}, "QuantizedTables"),
        ({"served_rank": 2}, "LowRankTables"),
        ({}, "SingleLayerTables"),
    ],
)
def test_what_is_served_is_what_the_config_says(keys, kind):
    config = ModelConfig(8, (4,), (4,), **keys)
    model = served(build(config, 2, TABLE_ROWS, None), config)
    assert type(model.tables).__name__ == kind
    assert model(torch.randn(64, 2), ids()).shape == (64,)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tables": "hashed", "inner_dim": 16}, "goes without inner_dim"),
        ({"tables": "mixed-dimension", "served_as": "int8"}, "can't be served otherwise"),
        ({"tables": "hashed", "served_as": "int8"}, "can't be served otherwise"),
        ({"served_rank": 2, "inner_dim": 16}, "served_rank: is of float32 tables of a single layer"),
        ({"collisions": 0}, "collisions = 0: expected a positive number"),
    ],
)
def test_what_does_not_go_together_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(8, (4,), (4,), **keys)


def test_small_tables_alone_are_left_whole():
    tables = build_tables(ModelConfig(8, (4,), (4,), tables="quotient-remainder"), (3, 7), None)
    assert tables(torch.tensor([[2, 6]])).shape == (1, 2, 8)
