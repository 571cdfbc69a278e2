"""int8 rows: how far off they are, what they take, and that everything else about a table stays."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dlrm_mlet import convert
from dlrm_mlet.config import ModelConfig
from dlrm_mlet.tables.quantize import Int8Embedding, Int8EmbeddingBag, Int8Tables, quantize, quantize_rows
from dlrm_mlet.training.model import build

QUIET = {"report": lambda line: None}


@given(st.lists(st.floats(-40, 15), min_size=1, max_size=8), st.integers(0, 2**31))
def test_a_row_of_any_size_is_off_by_half_a_unit_at_most_and_never_cut(powers, seed):
    numbers = torch.randn(len(powers), 5, generator=torch.Generator().manual_seed(seed))
    weight = numbers / numbers.abs().amax(1, keepdim=True) * 2.0 ** torch.tensor(powers).unsqueeze(1)
    values, scales = quantize_rows(weight)
    assert (values.dtype, scales.dtype, scales.shape) == (torch.int8, torch.half, (len(powers), 1))
    assert values.abs().max() <= 127
    off = (values.double() * scales.double() - weight.double()).abs()
    assert (off <= 0.5001 * scales.double()).all()
    ordinary = torch.tensor(powers) > -7  # a scale of full half precision
    assert (scales.double() <= weight.abs().amax(1, keepdim=True).double() / 127 * (1 + 2**-10))[ordinary].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_type_wraps_around(dtype):
    weight = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    values, scales = quantize_rows(weight)
    assert values.abs().max() == 127
    assert ((values.double() * scales.double() - weight.double()).abs() <= 0.5001 * scales.double()).all()


def test_a_table_is_quantized_in_parts_as_it_would_be_whole(monkeypatch):
    weight = torch.randn(100, 4)
    whole = quantize_rows(weight)
    monkeypatch.setattr("dlrm_mlet.tables.quantize.AT_ONCE", 7)
    assert all(map(torch.equal, quantize_rows(weight), whole))
    weight[93] = torch.inf
    with pytest.raises(ValueError, match="row 93 has inf"):
        quantize_rows(weight)


def test_a_row_of_nothing_stays_nothing():
    values, scales = quantize_rows(torch.zeros(2, 3))
    assert not (values * scales).any()


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 1e7])
def test_a_row_that_has_no_scale_is_named(number):
    model = nn.Sequential(nn.Embedding(5, 2))
    model[0].weight.data[3, 1] = number
    with pytest.raises(ValueError, match=r"0: row 3 has .*; expected finite numbers below 8e6"):
        quantize(model)
    assert type(model[0]) is nn.Embedding


def test_dlrms_tables_take_d_plus_2_bytes_a_row(device):
    config = ModelConfig(8, (4,), (4,))
    model = build(config, 2, (7, 500), torch.Generator().manual_seed(0)).to(device)
    dense, ids = torch.randn(64, 2), torch.stack([torch.randint(7, (64,)), torch.randint(500, (64,))], 1).int()
    dense, ids = dense.to(device), ids.to(device)
    vectors, logits = model.tables(ids), model(dense, ids)
    quantize(model, **QUIET)
    assert isinstance(model.tables, Int8Tables)
    assert model.tables.nbytes == 507 * (8 + 2)
    off = (model.tables(ids) - vectors).abs()
    assert (off <= vectors.abs().amax(2, keepdim=True) / 127 * 0.502 + 1e-9).all()
    torch.testing.assert_close(model(dense, ids), logits, atol=0.01, rtol=0.01)


@given(st.data())
def test_tables_of_any_model_give_their_rows(data):
    n, d = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    mode = data.draw(st.sampled_from(["sum", "mean", "max"]))
    padding = data.draw(st.none() | st.integers(0, n - 1))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    bag = nn.EmbeddingBag(n, d, mode=mode, padding_idx=padding, dtype=dtype)
    model = nn.ModuleList([nn.Embedding(n, d, padding_idx=padding, dtype=dtype), bag])
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5)))
    ids, offsets = torch.randint(n, (int(lengths.sum()),)), lengths.cumsum(0) - lengths
    weights = torch.rand(len(ids), dtype=dtype) if mode == "sum" and data.draw(st.booleans()) else None
    before = model[0](ids), model[1](ids, offsets, weights)
    quantize(model, **QUIET)
    assert (type(model[0]), type(model[1])) == (Int8Embedding, Int8EmbeddingBag)
    assert model[0](ids).dtype == dtype
    torch.testing.assert_close(model[0](ids), before[0], atol=0.03, rtol=0)
    torch.testing.assert_close(model[1](ids, offsets, weights), before[1], atol=0.09, rtol=0)
    square = torch.randint(n, (2, 3))
    plain = nn.EmbeddingBag(n, d, mode=mode, padding_idx=padding, dtype=dtype)
    plain.weight.data = model[1].values.to(dtype) * model[1].scales.to(dtype)
    weights = torch.rand(2, 3, dtype=dtype) if mode == "sum" else None
    torch.testing.assert_close(model[1](square, per_sample_weights=weights), plain(square, per_sample_weights=weights))


def test_tied_tables_stay_tied():
    model = nn.ModuleList([nn.Embedding(5, 2), nn.Embedding(5, 2)])
    model[1].weight = model[0].weight
    quantize(model, **QUIET)
    assert model[0].values is model[1].values


def test_what_is_not_collapsed_or_has_no_table_is_refused():
    with pytest.raises(ValueError, match="0: isn't collapsed"):
        quantize(convert(nn.Sequential(nn.Embedding(5, 2)), 4, **QUIET))
    with pytest.raises(ValueError, match="tables: isn't collapsed"):
        quantize(build(ModelConfig(2, (4,), (4,), inner_dim=4), 2, (5,), None))
    with pytest.raises(ValueError, match="0: is of int8 rows already"):
        quantize(quantize(nn.Sequential(nn.Embedding(5, 2)), **QUIET))
    with pytest.raises(ValueError, match="nothing to quantize"):
        quantize(nn.Linear(5, 2))
