"""Rows in few bits: how far off they are, what they take, and that everything else about a table stays."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dlrm_mlet import convert, quantize
from dlrm_mlet.config import ModelConfig
from dlrm_mlet.tables import quantize as module
from dlrm_mlet.tables.quantize import (
    Int4Rows,
    QuantizedEmbedding,
    QuantizedEmbeddingBag,
    QuantizedTables,
    make_rows,
    quantize_rows,
)
from dlrm_mlet.training.model import build

QUIET = {"report": lambda line: None}
EACH = [(8, False), (8, True), (4, False), (4, True), (16, False)]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.integers(0, 2**31), st.sampled_from(EACH[:4]))
def test_a_row_of_any_size_is_off_by_half_a_unit_at_most_and_never_cut(powers, seed, how):
    bits, offset = how
    numbers = torch.randn(len(powers), 5, generator=torch.Generator().manual_seed(seed))
    weight = numbers / numbers.abs().amax(1, keepdim=True) * 2.0 ** torch.tensor(powers).unsqueeze(1)
    codes, scales, offsets = quantize_rows(weight, bits, offset)
    assert (codes.dtype, scales.dtype, scales.shape) == (torch.int8, torch.bfloat16, (len(powers), 1))
    low = offsets.double() if offset else 0
    assert ((codes.double() * scales.double() + low - weight.double()).abs() <= 0.5001 * scales.double()).all()
    # and no scale is larger than it needs to be: by what bfloat16 rounds, of the offset too
    reach = weight.amax(1) - weight.amin(1) if offset else weight.abs().amax(1)
    steps = 2**bits - 1 if offset else 2 ** (bits - 1) - 1
    bound = reach.double() / steps * (1 + 2**-7) + (
        weight.abs().amax(1).double() * 2**-8 / (steps / 2) if offset else 0
    )
    assert (scales.double().flatten() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("bits", "offset"), EACH[:4])
def test_no_type_wraps_around(dtype, bits, offset):
    weight = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    codes, scales, offsets = quantize_rows(weight, bits, offset)
    low = offsets.double() if offset else 0
    assert codes.max() == 2 ** (bits - 1) - 1
    assert ((codes.double() * scales.double() + low - weight.double()).abs() <= 0.5001 * scales.double()).all()


@given(st.integers(1, 9), st.integers(1, 7), st.booleans())
def test_four_bits_are_packed_and_unpacked(n, d, offset):
    weight = torch.randn(n, d)
    codes, scales, offsets = quantize_rows(weight, 4, offset)
    rows = Int4Rows(weight, offset, lambda rows: rows)
    assert rows.codes.shape == (n, (d + 1) // 2)
    torch.testing.assert_close(
        rows.table(), codes * scales.float() + (offsets.float() if offset else 0), rtol=1e-6, atol=1e-7
    )


def test_a_table_is_quantized_in_parts_as_it_would_be_whole(monkeypatch):
    weight = torch.randn(100, 4)
    whole = [make_rows(weight, bits, offset).table() for bits, offset in EACH]
    monkeypatch.setattr(module, "AT_ONCE", 7)
    assert all(torch.equal(make_rows(weight, *how).table(), table) for how, table in zip(EACH, whole, strict=True))
    weight[93] = torch.inf
    for bits, offset in EACH:
        with pytest.raises(ValueError, match="row 93 has inf"):
            make_rows(weight, bits, offset)


@pytest.mark.parametrize(("bits", "offset"), EACH)
def test_a_row_of_nothing_stays_nothing(bits, offset):
    assert not make_rows(torch.zeros(2, 3), bits, offset).table().any()


@pytest.mark.parametrize(
    ("number", "bits"), [(float("inf"), 8), (float("nan"), 4), (float("nan"), 16), (1e6, 16), (-1e6, 16)]
)
def test_a_row_that_has_no_scale_is_named(number, bits):
    model = nn.Sequential(nn.Embedding(5, 2), nn.Embedding(5, 2))
    model[1].weight.data[3, 1] = number
    with pytest.raises(ValueError, match=r"1: row 3 has .*; expected finite numbers"):
        quantize(model, bits)
    assert type(model[0]) is type(model[1]) is nn.Embedding


def test_rows_of_any_size_keep_their_digits():
    table = nn.Embedding(200, 8)
    table.weight.data *= 10.0 ** torch.linspace(-30, 30, 200).unsqueeze(1)
    before = table.weight.detach().clone()
    off = (quantize(table, **QUIET).weight - before).abs().amax(1) / before.abs().amax(1)
    assert off.max() < 0.5 / 126


def test_dlrms_tables_take_d_plus_2_bytes_a_row(device):
    config = ModelConfig(8, (4,), (4,))
    model = build(config, 2, (7, 500), torch.Generator().manual_seed(0)).to(device)
    dense, ids = torch.randn(64, 2), torch.stack([torch.randint(7, (64,)), torch.randint(500, (64,))], 1).int()
    dense, ids = dense.to(device), ids.to(device)
    vectors, logits = model.tables(ids), model(dense, ids)
    quantize(model, **QUIET)
    assert isinstance(model.tables, QuantizedTables)
    assert model.tables.nbytes == 507 * (8 + 2)
    off = (model.tables(ids) - vectors).abs()
    assert (off <= vectors.abs().amax(2, keepdim=True) / 127 * 0.504 + 1e-9).all()
    torch.testing.assert_close(model(dense, ids), logits, atol=0.01, rtol=0.01)


@given(st.data())
def test_tables_of_any_model_give_their_rows(data):
    n, d = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    mode = data.draw(st.sampled_from(["sum", "mean", "max"]))
    padding = data.draw(st.none() | st.integers(0, n - 1))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    bits, offset = data.draw(st.sampled_from(EACH))
    last = data.draw(st.booleans())
    bag = nn.EmbeddingBag(n, d, mode=mode, padding_idx=padding, dtype=dtype, include_last_offset=last)
    model = nn.ModuleList([nn.Embedding(n, d, padding_idx=padding, dtype=dtype), bag])
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5)))
    ids, offsets = torch.randint(n, (int(lengths.sum()),)), lengths.cumsum(0) - lengths
    offsets = torch.cat((offsets, lengths.sum().unsqueeze(0))) if last else offsets
    weights = torch.rand(len(ids), dtype=dtype) if mode == "sum" and data.draw(st.booleans()) else None
    torch.nn.init.uniform_(model[0].weight)
    quantize(model, bits, offset=offset, **QUIET)
    assert (type(model[0]), type(model[1])) == (QuantizedEmbedding, QuantizedEmbeddingBag)
    assert (model[0].num_embeddings, model[0].embedding_dim, model[0].padding_idx) == (n, d, padding)
    assert model[0](ids).dtype == dtype
    torch.testing.assert_close(model[0](ids), nn.functional.embedding(ids, model[0].weight))
    arguments = {"mode": mode, "padding_idx": padding, "dtype": dtype, "include_last_offset": last}
    plain = nn.EmbeddingBag(n, d, **arguments)
    plain.weight.data = model[1].weight.clone()
    torch.testing.assert_close(model[1](ids, offsets, weights), plain(ids, offsets, weights))
    square = torch.randint(n, (2, data.draw(st.integers(1, 3))))
    weights = torch.rand(square.shape, dtype=dtype) if mode == "sum" else None
    torch.testing.assert_close(model[1](square, per_sample_weights=weights), plain(square, per_sample_weights=weights))


def test_tied_tables_stay_tied_also_when_moved_and_cast():
    model = nn.ModuleList([nn.Embedding(5, 2), nn.Embedding(5, 2), nn.Embedding(5, 2)])
    model[1].weight = model[0].weight
    model[2].weight = nn.Parameter(model[0].weight.data)
    lines = []
    quantize(model, report=lines.append)
    assert lines == ["0: 40 bytes -> 20", "1: tied, and counted already", "2: tied, and counted already"]
    model = copy.deepcopy(model).to("meta").to_empty(device="cpu").half()
    assert model[0].rows is model[1].rows is model[2].rows


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("bits", "offset"), EACH)
def test_a_cast_changes_what_is_given_and_not_what_is_held(dtype, bits, offset):
    model = quantize(nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 2)), bits, offset=offset, **QUIET)
    ids, held = torch.arange(50), {name: value.clone() for name, value in model[0].state_dict().items()}
    exact = model[0](ids)
    model.to(dtype)
    assert model(ids).dtype == dtype
    torch.testing.assert_close(model[0](ids), exact.to(dtype))
    for name, value in model.float()[0].state_dict().items():
        assert torch.equal(value, held[name])
        assert value.dtype == held[name].dtype
    assert torch.equal(model[0](ids), exact)


@pytest.mark.parametrize(("bits", "offset"), EACH)
def test_a_saved_model_is_loaded_where_the_float_one_has_no_room(bits, offset, tmp_path):
    def make():
        return nn.Sequential(nn.EmbeddingBag(50, 4), nn.Linear(4, 2))

    model, ids = quantize(make(), bits, offset=offset, **QUIET), torch.randint(50, (7, 3))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with torch.device("meta"):
        empty = quantize(make(), bits, offset=offset, **QUIET)
    empty.load_state_dict(torch.load(tmp_path / "model.pt"), assign=True)
    assert torch.equal(empty(ids), model(ids))


def test_what_is_asked_for_by_name_and_size_is_quantized_and_the_rest_is_named():
    model = nn.ModuleDict({"user": nn.Embedding(90, 4), "item": nn.Embedding(50, 4), "day": nn.Embedding(7, 4)})
    lines = []
    quantize(model, {"user": 4, "*": 8}, min_rows=10, only=["user", "day", "i*"], report=lines.append)
    assert lines == ["user: 1,440 bytes -> 360", "item: 800 bytes -> 300", "day left: fewer than 10 rows"]
    with pytest.raises(ValueError, match=r"bits = 'users': matches no table; expected a pattern of user, item"):
        quantize(nn.ModuleDict({"user": nn.Embedding(9, 4), "item": nn.Embedding(5, 4)}), {"users": 4})
    with pytest.raises(ValueError, match="user: bits = 2: expected 8, 4 or 16"):
        quantize(nn.ModuleDict({"user": nn.Embedding(9, 4)}), 2)


def test_what_is_not_collapsed_or_has_no_table_is_refused():
    with pytest.raises(ValueError, match="0: isn't collapsed"):
        quantize(convert(nn.Sequential(nn.Embedding(5, 2)), 4, **QUIET))
    with pytest.raises(ValueError, match="tables: isn't collapsed"):
        quantize(build(ModelConfig(2, (4,), (4,), inner_dim=4), 2, (5,), None))
    with pytest.raises(ValueError, match="nothing to quantize in the model: all is quantized"):
        quantize(quantize(nn.Sequential(nn.Embedding(5, 2)), **QUIET))
    with pytest.raises(ValueError, match="nothing to quantize"):
        quantize(nn.Linear(5, 2))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_the_weight_of_a_packed_table_can_not_be_set(kind):
    table = quantize(kind(5, 2), **QUIET)
    before = table.weight.clone()
    with pytest.raises(AttributeError, match="weight: is packed in few bits; expected a change of the table before"):
        table.weight = torch.zeros(5, 2)
    assert torch.equal(table.weight, before)
