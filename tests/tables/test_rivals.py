"""Each rival's vectors are what its definition says, row by row, and its served bytes are counted whole."""

import math

import pytest
import torch

from dlrm_mlet.config import ModelConfig
from dlrm_mlet.tables.quantize import quantize
from dlrm_mlet.tables.rivals import (
    PrunedRows,
    core_shapes,
    mixed_dimensions,
    three_digits,
    truncated,
    without_rare,
)
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


@pytest.mark.parametrize("block_size", [1, 3, 8, 100])
def test_a_number_of_robe_lies_where_its_blocks_hash_says(block_size):
    tables = make(tables="robe", collisions=16, block_size=block_size)
    size = math.ceil(8 * sum(TABLE_ROWS) / 16)
    a, b, c, d = tables.factors.tolist()
    array = tables.array.flatten()
    vectors = tables(ids())
    for i, row in enumerate(ids().tolist()):
        for e, x in enumerate(row):
            for j in range(8):
                hashed = (a * e + b * x + c * (j // block_size) + d) % (2**31 - 1) % size
                assert vectors[i, e, j] == array[(hashed + j % block_size) % size]
    assert tables.nbytes == 4 * size + 4 * 8


def test_the_hash_of_robe_holds_the_largest_id():
    tables = make(tables="robe")
    tables.factors[:] = tables.PRIME - 1
    largest = 2**31 - 1
    a = tables.PRIME - 1
    expected = [(a * e + a * largest + a * (0 // 8) + a) % tables.PRIME % len(tables.array) for e in range(3)]
    assert tables.places(torch.full((1, 3), largest, dtype=torch.int32))[0, :, 0].tolist() == expected


def test_a_row_of_a_tensor_train_is_the_product_of_its_digits_slices():
    tables = make(tables="tensor-train", tensor_rank=5)
    sides = [(8, 8, 8), (13, 13, 12)]  # of 500 and 2001 rows
    assert [three_digits(n) for n in TABLE_ROWS[1:]] == sides
    assert core_shapes(8, 5) == ((2, 5), (5, 10), (5, 2))
    whole = [core.weight.split([side[i] for side in sides]) for i, core in enumerate(tables.cores)]
    vectors = tables(ids())
    for b, row in enumerate(ids().tolist()):
        assert torch.equal(vectors[b, 0], tables.whole.weight[row[0]])
        for f, (_, second, third) in enumerate(sides):
            i, rest = divmod(row[f + 1], second * third)
            j, k = divmod(rest, third)
            first, middle, last = whole[0][f][i].view(2, 5), whole[1][f][j].view(5, 2, 5), whole[2][f][k].view(5, 2)
            product = torch.einsum("ar,rbs,sc->abc", first, middle, last).flatten()
            torch.testing.assert_close(vectors[b, f + 1], product)
    assert tables.nbytes == 4 * (7 * 8 + 21 * 10 + 21 * 50 + 20 * 10)


@pytest.mark.parametrize("n", [*range(1, 200), 365, 10**6, 10**7 + 1, 2**31 - 1])
def test_three_digits_number_all_rows(n):
    first, second, third = three_digits(n)
    assert first * second * (third - 1) < n <= first * second * third
    assert abs(first - n ** (1 / 3)) < 1.001


@pytest.mark.parametrize(
    ("embedding_dim", "factors"), [(1, (1, 1, 1)), (7, (1, 1, 7)), (16, (2, 2, 4)), (64, (4, 4, 4))]
)
def test_cores_share_the_dimension_evenly(embedding_dim, factors):
    (q1, r), (r1, middle), (r2, q3) = core_shapes(embedding_dim, 6)
    assert (q1, middle // 6, q3) == factors
    assert r == r1 == r2 == 6


def test_a_tensor_train_starts_as_wide_as_a_whole_table():
    tables = make(tables="tensor-train", tensor_rank=64)
    rows = torch.arange(500)
    vectors = tables(torch.stack((rows % 7, rows, rows), dim=1))
    for f in (1, 2):
        assert vectors[:, f].var().item() == pytest.approx(1 / (3 * TABLE_ROWS[f]), rel=0.3)


def test_rare_values_share_the_last_row_of_their_table():
    counts = [torch.tensor([5, 0, 2, 1]), torch.tensor([3, 3]), torch.tensor([0, 1])]
    places = without_rare(counts, 2)
    assert places.tolist() == [0, 2, 1, 2, 0, 1, 0, 0]
    config = ModelConfig(8, (4,), (4,), tables="min-count", min_count=2)
    tables = build_tables(config, (4, 2, 2), None, places=places)
    parts = tables.kept.weight.split((3, 2, 1))
    asked = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 0, 0], [3, 1, 1]])
    vectors = tables(asked)
    for b, row in enumerate(asked.tolist()):
        for f, x in enumerate(row):
            rank = sum(count >= 2 for count in counts[f][:x].tolist())
            is_rare = counts[f][x] < 2
            assert torch.equal(vectors[b, f], parts[f][-1 if is_rare else rank])
    assert tables.nbytes == 4 * 8 * (3 + 2 + 1)


@pytest.mark.parametrize(
    "kind", ["hashed", "quotient-remainder", "mixed-dimension", "robe", "tensor-train", "min-count"]
)
def test_every_rival_learns_in_all_its_parts(kind):
    tables = make(tables=kind)
    tables(ids()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in tables.parameters())
    assert tables.collapse() is tables


@pytest.mark.parametrize("kind", ["robe", "tensor-train", "min-count"])
def test_a_rivals_gradient_is_of_what_its_batch_gathers(kind):
    tables = make(tables=kind)
    tables(ids(2)).square().sum().backward()
    gradients = [parameter.grad for parameter in tables.parameters()]
    assert all(gradient.is_sparse for gradient in gradients)
    for parameter, gradient in zip(tables.parameters(), gradients, strict=True):
        stepped = parameter.detach().clone()
        parameter.data -= gradient.to_dense()
        changed = {tuple(row) for row in (parameter != stepped).any(dim=1).nonzero().tolist()}
        assert changed <= {(row,) for row in gradient._indices()[0].tolist()}


@pytest.mark.parametrize("density", [0.0001, 0.1, 0.5, 0.999])
def test_the_numbers_that_stay_are_the_largest_of_all_tables(density):
    tables = make_tables(TABLE_ROWS, (), 8, 0.25, torch.Generator().manual_seed(0))
    rows = PrunedRows(tables.weight, density)
    kept = max(1, round(density * tables.weight.numel()))
    threshold = tables.weight.detach().abs().flatten().sort(descending=True).values[kept - 1]
    slow = torch.where(tables.weight.abs() >= threshold, tables.weight, 0)
    assert torch.equal(rows.table(), slow)
    assert torch.equal(rows(ids()), slow[ids()])
    assert sum(buffer.nbytes for buffer in rows.buffers()) == kept * (4 + 1) + 4 * (sum(TABLE_ROWS) + 1)


def test_pruned_rows_of_equal_numbers_are_as_many_and_wide_rows_have_wider_places():
    assert len(PrunedRows(torch.zeros(30, 8), 0.25).codes) == 60
    wide = torch.randn(3, 300)
    rows = PrunedRows(wide, 0.5)
    assert rows.columns.dtype == torch.int32
    assert (rows.table() != 0).sum() == 450
    assert torch.equal(rows.table()[rows.table() != 0], wide[rows.table() != 0])


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
        ({"served_as": "int4"}, "QuantizedTables"),
        ({"served_density": 0.25, "inner_dim": 16}, "QuantizedTables"),
        ({"served_rank": 2}, "LowRankTables"),
        ({}, "SingleLayerTables"),
    ],
)
def test_what_is_served_is_what_the_config_says(keys, kind):
    config = ModelConfig(8, (4,), (4,), **keys)
    model = served(build(config, 2, TABLE_ROWS, None), config)
    assert type(model.tables).__name__ == kind
    assert model(torch.randn(64, 2), ids()).shape == (64,)


def test_int4_is_served_as_quantize_makes_it_with_offsets():
    config = ModelConfig(8, (4,), (4,), served_as="int4")
    model = build(config, 2, TABLE_ROWS, None)
    dense = torch.randn(64, 2)
    packed = served(model, config)
    assert packed.tables.nbytes == sum(TABLE_ROWS) * (4 + 2 + 2)
    assert torch.equal(packed(dense, ids()), quantize(model, 4, offset=True, report=lambda line: None)(dense, ids()))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tables": "hashed", "inner_dim": 16}, "goes without inner_dim"),
        ({"tables": "mixed-dimension", "served_as": "int8"}, "can't be served otherwise"),
        ({"tables": "hashed", "served_as": "int8"}, "can't be served otherwise"),
        ({"served_rank": 2, "inner_dim": 16}, "served_rank: is of float32 tables of a single layer"),
        ({"tables": "robe", "served_density": 0.5}, "can't be served otherwise"),
        ({"served_density": 1.0}, "served_density = 1.0: expected a share below 1, without served_rank and served_as"),
        ({"served_density": 0.5, "served_rank": 2}, "served_density = 0.5: expected a share below 1"),
        ({"served_density": 0.5, "served_as": "int8"}, "served_density = 0.5: expected a share below 1"),
        ({"served_density": 0.0}, "served_density = 0.0: expected a positive number"),
        ({"collisions": 0}, "collisions = 0: expected a positive number"),
        ({"block_size": 0}, "block_size = 0: expected a positive number"),
        ({"tensor_rank": 0}, "tensor_rank = 0: expected a positive number"),
        ({"min_count": 0}, "min_count = 0: expected a positive number"),
    ],
)
def test_what_does_not_go_together_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(8, (4,), (4,), **keys)


@pytest.mark.parametrize("kind", ["quotient-remainder", "tensor-train"])
def test_small_tables_alone_are_left_whole(kind):
    tables = build_tables(ModelConfig(8, (4,), (4,), tables=kind), (3, 7), None)
    assert tables(torch.tensor([[2, 6]])).shape == (1, 2, 8)
